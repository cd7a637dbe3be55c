// Published weights by open_clip's tags. train_clip names the command that brings them; dev/convert.py downloads
// them, by the same table in data/schema.json.
#ifndef CLIPC_PRETRAINED_TAGS_H
#define CLIPC_PRETRAINED_TAGS_H

// model, tag, activation, repository of the model hub, what else differs. Apple's repositories hold
// open_clip_pytorch_model.bin, all others open_clip_model.safetensors; each also holds open_clip_config.json.
// clang-format off
#define PRETRAINED_TAGS(T) \
    T("ViT-B-32", "openai", "quick", "timm/vit_base_patch32_clip_224.openai", "") \
    T("ViT-B-32", "laion400m_e31", "quick", "timm/vit_base_patch32_clip_224.laion400m_e31", "") \
    T("ViT-B-32", "laion400m_e32", "quick", "timm/vit_base_patch32_clip_224.laion400m_e32", "") \
    T("ViT-B-32", "laion2b_e16", "gelu", "timm/vit_base_patch32_clip_224.laion2b_e16", "") \
    T("ViT-B-32", "laion2b_s34b_b79k", "gelu", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "") \
    T("ViT-B-32", "datacomp_xl_s13b_b90k", "gelu", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "") \
    T("ViT-B-32", "datacomp_m_s128m_b4k", "gelu", "laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K", "") \
    T("ViT-B-32", "datacomp_s_s13m_b4k", "gelu", "laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K", "") \
    T("ViT-B-32", "metaclip_400m", "quick", "timm/vit_base_patch32_clip_224.metaclip_400m", "") \
    T("ViT-B-32", "metaclip_fullcc", "quick", "timm/vit_base_patch32_clip_224.metaclip_2pt5b", "") \
    T("ViT-B-32-256", "datacomp_s34b_b86k", "gelu", "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", "") \
    T("ViT-B-16", "openai", "quick", "timm/vit_base_patch16_clip_224.openai", "") \
    T("ViT-B-16", "laion400m_e31", "gelu", "timm/vit_base_patch16_clip_224.laion400m_e31", "") \
    T("ViT-B-16", "laion400m_e32", "gelu", "timm/vit_base_patch16_clip_224.laion400m_e32", "") \
    T("ViT-B-16", "laion2b_s34b_b88k", "gelu", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "") \
    T("ViT-B-16", "datacomp_xl_s13b_b90k", "gelu", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "") \
    T("ViT-B-16", "datacomp_l_s1b_b8k", "gelu", "laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K", "") \
    T("ViT-B-16", "dfn2b", "quick", "apple/DFN2B-CLIP-ViT-B-16", "") \
    T("ViT-B-16", "metaclip_400m", "quick", "timm/vit_base_patch16_clip_224.metaclip_400m", "") \
    T("ViT-B-16", "metaclip_fullcc", "quick", "timm/vit_base_patch16_clip_224.metaclip_2pt5b", "") \
    T("ViT-B-16-plus-240", "laion400m_e31", "gelu", "timm/vit_base_patch16_plus_clip_240.laion400m_e31", "") \
    T("ViT-B-16-plus-240", "laion400m_e32", "gelu", "timm/vit_base_patch16_plus_clip_240.laion400m_e32", "") \
    T("ViT-L-14", "openai", "quick", "timm/vit_large_patch14_clip_224.openai", "") \
    T("ViT-L-14", "laion400m_e31", "gelu", "timm/vit_large_patch14_clip_224.laion400m_e31", "") \
    T("ViT-L-14", "laion400m_e32", "gelu", "timm/vit_large_patch14_clip_224.laion400m_e32", "") \
    T("ViT-L-14", "laion2b_s32b_b82k", "gelu", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "mean/std=0.5") \
    T("ViT-L-14", "datacomp_xl_s13b_b90k", "gelu", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "") \
    T("ViT-L-14", "metaclip_400m", "quick", "timm/vit_large_patch14_clip_224.metaclip_400m", "") \
    T("ViT-L-14", "metaclip_fullcc", "quick", "timm/vit_large_patch14_clip_224.metaclip_2pt5b", "") \
    T("ViT-L-14", "dfn2b", "quick", "apple/DFN2B-CLIP-ViT-L-14", "") \
    T("ViT-L-14", "dfn2b_s39b", "gelu", "apple/DFN2B-CLIP-ViT-L-14-39B", "") \
    T("ViT-L-14-336", "openai", "quick", "timm/vit_large_patch14_clip_336.openai", "") \
    T("ViT-H-14", "laion2b_s32b_b79k", "gelu", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "") \
    T("ViT-H-14", "metaclip_fullcc", "quick", "timm/vit_huge_patch14_clip_224.metaclip_2pt5b", "") \
    T("ViT-H-14", "metaclip_altogether", "gelu", "timm/vit_huge_patch14_clip_224.metaclip_altogether", "") \
    T("ViT-H-14", "dfn5b", "quick", "apple/DFN5B-CLIP-ViT-H-14", "squash") \
    T("ViT-H-14-378", "dfn5b", "quick", "apple/DFN5B-CLIP-ViT-H-14-378", "squash") \
    T("ViT-g-14", "laion2b_s12b_b42k", "gelu", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "") \
    T("ViT-g-14", "laion2b_s34b_b88k", "gelu", "laion/CLIP-ViT-g-14-laion2B-s34B-b88K", "") \
    T("ViT-bigG-14", "laion2b_s39b_b160k", "gelu", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "") \
    T("ViT-bigG-14", "metaclip_fullcc", "quick", "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b", "")
// clang-format on

#endif
