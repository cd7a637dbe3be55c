// The kernel laboratory: one file for each operation, with versions 1 … N of it; the last is the one in
// train_clip.cu.
//
//     build/lab              checks every version against plain loops at odd sizes (emulated: make test)
//     build/labcu --time     the same on a GPU, and times them at the sizes of ViT-B/32 with 1,024 pairs
//         (make bench-gpu)
#define CLIP_WITHOUT_MAIN
#include "train_clip.cu"

#include "dev/cuda/activation.cu"
#include "dev/cuda/adamw.cu"
#include "dev/cuda/attention.cu"
#include "dev/cuda/embedding.cu"
#include "dev/cuda/layernorm.cu"
#include "dev/cuda/loss.cu"

static void check_all(Lab *lab) {
    const int sizes[] = {1, 39, 10007, 512, 77};
    lab_layernorm(lab, 37, 39);
    lab_layernorm(lab, 19, 104);
    lab_activation(lab, 37, 21, ACTIVATION_QUICK_GELU);
    lab_activation(lab, 125, 8, ACTIVATION_GELU);
    lab_attention(lab, "captions", 5, 19, 2, 3, 13, true);
    lab_attention(lab, "images", 2, 50, 50, 2, 24, false);
    lab_adamw(lab, sizes, 5);
    lab_loss(lab, 61, 13, 17);
    lab_loss(lab, 61, 13, 61);
    lab_embedding(lab, 7, 5, 131, 39);
    lab_embedding(lab, 19, 3, 67, 40);
}

static void time_all(Lab *lab) {
    enum { B = 1024, PATCHES = 50, TOKENS = 16, CI = 768, CT = 512, V = 49408, LAYERS = 12, A_BLOCK = 12 };
    int sizes[2 * LAYERS * A_BLOCK], n = 0;
    for (int tower = 0; tower < 2; tower++)
        for (int l = 0; l < LAYERS; l++) {
            const int C = tower ? CT : CI;
            const int block[A_BLOCK] = {
                C, C, 3 * C * C, 3 * C, C * C, C, C, C, 4 * C * C, 4 * C, 4 * C * C, C};
            for (int i = 0; i < A_BLOCK; i++) sizes[n++] = block[i];
        }
    lab_layernorm(lab, B * PATCHES, CI);
    lab_activation(lab, B * PATCHES, 4 * CI, ACTIVATION_QUICK_GELU);
    lab_activation(lab, B * PATCHES, 4 * CI, ACTIVATION_GELU);
    lab_attention(lab, "images of 50 tokens", B, PATCHES, PATCHES, CI / 64, 64, false);
    lab_attention(lab, "images of 257 tokens", B / 8, 257, 257, 16, 64, false);
    lab_attention(lab, "captions of 8 to 24 tokens", B, 24, 8, CT / 64, 64, true);
    lab_adamw(lab, sizes, n);
    lab_loss(lab, 8192, 512, 2048);
    lab_embedding(lab, B, TOKENS, V, CT);
}

int main(int argc, char **argv) {
    const bool time = argc == 2 && strcmp(argv[1], "--time") == 0;
    if (argc > 1 && !time) die(EXIT_USAGE, "unknown option %s; the only one is --time", argv[1]);
    Lab lab;
    lab_open(&lab, false, 4096);
    check_all(&lab);
    lab_close(&lab);
    if (time && !tests_failed) {
        lab_open(&lab, true, 4096);
        time_all(&lab);
        lab_close(&lab);
    }
    return test_report();
}
