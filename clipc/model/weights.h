// What a CLIP is made of: the configuration and the tensors of the packed weight file, which
// clipc/model/weight_file.h reads and writes.
//
// The tables CONFIG_FIELDS and …_TENSORS are the only place that knows fields, names, shapes and order:
// loading, saving, locking, weight decay and layer-wise rates walk them. `train_clip --schema` prints them
// for dev/convert.py (data/schema.json; `make schema` after a change).
#ifndef CLIPC_WEIGHTS_H
#define CLIPC_WEIGHTS_H

#include "clipc/base/utils.h" // calloc_check, round_up

#include <assert.h>

// ---------------------------------------------------------------- configuration

#define WEIGHTS_MAGIC 0x50494c43 // the bytes "CLIP"
#define WEIGHTS_VERSION 2        // version 1, which is read as well, has no seal
#define WEIGHTS_ALIGNMENT 64
enum { HEADER_INTS = 256, HEADER_BYTES = 4 * HEADER_INTS, NAME_BYTES = 256, CLIP_VOCABULARY = 49408 };
enum { DTYPE_FP32 = 0, DTYPE_BF16 = 1 };
// how the tokenizer section is meant: the text of CLIP's merges, or clipc/data/vocabulary.h
enum { TOKENIZER_MERGES = 0, TOKENIZER_VOCABULARY = 1, TOKENIZER_MOST_BYTES = 1 << 26 };
// positions in the header, in int32
enum {
    HEADER_MAGIC = 0,
    HEADER_VERSION = 1,
    HEADER_DTYPE = 2,
    HEADER_FIELDS = 3,
    HEADER_MERGES_BYTES = 4,
    HEADER_TENSORS = 5,
    HEADER_TOKENIZER = 6, // TOKENIZER_MERGES or TOKENIZER_VOCABULARY
    HEADER_CONFIG = 16,
    HEADER_NAME = 192
};

// type, name, lowest, highest value. New fields go to the end and read as 0 from older files.
// clang-format off
#define CONFIG_FIELDS(X)                                                                             \
    X(int,   embed_dim,      1,     16384)   /* E, width of the space that both towers share */      \
    X(int,   image_size,     1,     4096)    /* pixels, square */                                    \
    X(int,   patch_size,     1,     4096)                                                            \
    X(int,   image_width,    1,     16384)                                                           \
    X(int,   image_layers,   1,     256)                                                             \
    X(int,   image_heads,    1,     1024)                                                            \
    X(int,   image_mlp,      1,     65536)   /* hidden width of the MLP */                           \
    X(int,   ln_pre,         0,     1)       /* LayerNorm before the image tower's first block: */   \
                                             /* every CLIP has it, ImageNet ViTs do not */           \
    X(int,   context_length, 2,     65536)   /* tokens, start and end of text included */            \
    X(int,   vocab_size,     3,     4194304)                                                         \
    X(int,   text_width,     1,     16384)                                                           \
    X(int,   text_layers,    1,     256)                                                             \
    X(int,   text_heads,     1,     1024)                                                            \
    X(int,   text_mlp,       1,     65536)                                                           \
    X(int,   eot_id,         0,     4194303) /* end of text: its first occurrence is pooled */       \
    X(int,   quick_gelu,     0,     1)       /* 1: x * sigmoid(1.702 x), as OpenAI's weights need */ \
                                             /* 0: GELU with erf */                                  \
    X(int,   interpolation,  0,     1)       /* 0 bicubic, 1 bilinear */                             \
    X(int,   resize_mode,    0,     2)       /* 0 shortest side + centre crop, 1 squash, */          \
                                             /* 2 longest side + padding */                          \
    X(float, image_ln_eps,   1e-12, 1e-2)                                                            \
    X(float, text_ln_eps,    1e-12, 1e-2)                                                            \
    X(float, mean_r,         -10,   10)      /* (pixels / 255 - mean) / std, by channel */           \
    X(float, mean_g,         -10,   10)                                                              \
    X(float, mean_b,         -10,   10)                                                              \
    X(float, std_r,          1e-4,  10)                                                              \
    X(float, std_g,          1e-4,  10)                                                              \
    X(float, std_b,          1e-4,  10)                                                              \
    X(int,   patch_bias,     0,     1)       /* conv1 has a bias: in ImageNet ViTs, not in CLIPs */  \
    X(int,   absent,         0,     3)       /* what a file leaves out: ABSENT_ bits, 0 for a CLIP */
// clang-format on

// A file that holds an image tower alone serves --pretrained-image: an ImageNet ViT has neither a text tower
// nor a projection.
enum { ABSENT_TEXT = 1, ABSENT_IMAGE_PROJ = 2 };

typedef struct {
#define X(type, name, low, high) type name;
    CONFIG_FIELDS(X)
#undef X
    char name[NAME_BYTES]; // e.g. "ViT-B-32", for people
} ClipConfig;

// Patches along a side; pixels beyond the last whole patch stay unused, as in a strided convolution.
static inline int config_grid(const ClipConfig *c) { return c->image_size / c->patch_size; }

// Patches and the class token.
static inline int config_image_tokens(const ClipConfig *c) { return config_grid(c) * config_grid(c) + 1; }

// True when every field is in its range and all fit together; else `error` says which does not.
static inline bool config_check(const ClipConfig *c, char error[256]) {
#define X(type, name, low, high)                                                                      \
    if (!(c->name >= (type)(low) && c->name <= (type)(high))) {                                       \
        snprintf(error, 256, "%s is %g, allowed are %g to %g", #name, (double)c->name, (double)(low), \
            (double)(high));                                                                          \
        return false;                                                                                 \
    }
    CONFIG_FIELDS(X)
#undef X
    const char *why = NULL;
    if (c->patch_size > c->image_size) why = "patch_size is larger than image_size";
    else if (c->image_width % c->image_heads) why = "image_width is not a multiple of image_heads";
    else if (c->text_width % c->text_heads) why = "text_width is not a multiple of text_heads";
    else if (c->eot_id >= c->vocab_size) why = "eot_id is outside the vocabulary";
    else if ((int64_t)config_grid(c) * config_grid(c) > 1 << 20) why = "more than 2^20 patches";
    if (why) snprintf(error, 256, "%s", why);
    return !why;
}

// ---------------------------------------------------------------- the table of tensors

enum { NO_DECAY = 0, DECAY = 1 };
enum { IMAGE_TOWER = 0, TEXT_TOWER = 1, NO_TOWER = 2 };

// Which models have a tensor: name, and the field of the configuration that decides, its bits, their value.
// clang-format off
#define TENSOR_CONDITIONS(X)                          \
    X(ALWAYS,          absent,     0,                 0) \
    X(WITH_LN_PRE,     ln_pre,     1,                 1) \
    X(WITH_PATCH_BIAS, patch_bias, 1,                 1) \
    X(WITH_IMAGE_PROJ, absent,     ABSENT_IMAGE_PROJ, 0) \
    X(WITH_TEXT,       absent,     ABSENT_TEXT,       0)
// clang-format on

typedef enum {
#define X(condition, field, bits, value) condition,
    TENSOR_CONDITIONS(X)
#undef X
} TensorCondition;

// The sizes that shapes and groups name, of a tower: letter, its value for the image and for the text tower.
// clang-format off
#define TOWER_SIZES(X)                                                       \
    X(C, image_width,          text_width)     /* width */                   \
    X(L, image_layers,         text_layers)    /* layers */                  \
    X(F, image_mlp,            text_mlp)       /* hidden width of the MLP */ \
    X(E, embed_dim,            embed_dim)                                    \
    X(P, patch_size,           patch_size)                                   \
    X(V, vocab_size,           vocab_size)
// and T, the positions: patches and class token, or the context

// field, open_clip's key, in which models, weight decay, group, shape
//
// Group: the tower's layer groups from input to output, as open_clip locks them and as layer-wise rates count
// them: the embeddings are group 0, block l is l + 1 (the last one together with the final LayerNorm), the
// projection is L + 1; L + 2 groups in all.
// Weight decay as open_clip at HEAD: not on vectors, nor on class and positional embeddings.
#define IMAGE_TENSORS(X)                                                                                \
    X(conv1_weight,         "visual.conv1.weight",         ALWAYS,          DECAY,    0,     C, 3, P, P) \
    X(conv1_bias,           "visual.conv1.bias",           WITH_PATCH_BIAS, NO_DECAY, 0,     C)          \
    X(class_embedding,      "visual.class_embedding",      ALWAYS,          NO_DECAY, 0,     C)          \
    X(positional_embedding, "visual.positional_embedding", ALWAYS,          NO_DECAY, 0,     T, C)       \
    X(ln_pre_weight,        "visual.ln_pre.weight",        WITH_LN_PRE,     NO_DECAY, 0,     C)          \
    X(ln_pre_bias,          "visual.ln_pre.bias",          WITH_LN_PRE,     NO_DECAY, 0,     C)          \
    X(ln_final_weight,      "visual.ln_post.weight",       ALWAYS,          NO_DECAY, L,     C)          \
    X(ln_final_bias,        "visual.ln_post.bias",         ALWAYS,          NO_DECAY, L,     C)          \
    X(proj,                 "visual.proj",                 WITH_IMAGE_PROJ, DECAY,    L + 1, C, E)

#define TEXT_TENSORS(X)                                                                     \
    X(token_embedding,      "token_embedding.weight", WITH_TEXT, DECAY,    0,     V, C)     \
    X(positional_embedding, "positional_embedding",   WITH_TEXT, NO_DECAY, 0,     T, C)     \
    X(ln_final_weight,      "ln_final.weight",        WITH_TEXT, NO_DECAY, L,     C)        \
    X(ln_final_bias,        "ln_final.bias",          WITH_TEXT, NO_DECAY, L,     C)        \
    X(proj,                 "text_projection",        WITH_TEXT, DECAY,    L + 1, C, E)

// Once a layer, after all others of the tower; the key follows "visual.transformer.resblocks.N." or
// "transformer.resblocks.N.". field, key, weight decay, group, shape
#define BLOCK_TENSORS(X)                                                \
    X(ln_1_weight,     "ln_1.weight",          NO_DECAY, l + 1, C)        \
    X(ln_1_bias,       "ln_1.bias",            NO_DECAY, l + 1, C)        \
    X(in_proj_weight,  "attn.in_proj_weight",  DECAY,    l + 1, 3 * C, C) \
    X(in_proj_bias,    "attn.in_proj_bias",    NO_DECAY, l + 1, 3 * C)    \
    X(out_proj_weight, "attn.out_proj.weight", DECAY,    l + 1, C, C)     \
    X(out_proj_bias,   "attn.out_proj.bias",   NO_DECAY, l + 1, C)        \
    X(ln_2_weight,     "ln_2.weight",          NO_DECAY, l + 1, C)        \
    X(ln_2_bias,       "ln_2.bias",            NO_DECAY, l + 1, C)        \
    X(c_fc_weight,     "mlp.c_fc.weight",      DECAY,    l + 1, F, C)     \
    X(c_fc_bias,       "mlp.c_fc.bias",        NO_DECAY, l + 1, F)        \
    X(c_proj_weight,   "mlp.c_proj.weight",    DECAY,    l + 1, C, F)     \
    X(c_proj_bias,     "mlp.c_proj.bias",      NO_DECAY, l + 1, C)
// clang-format on

#define LOGIT_SCALE_KEY "logit_scale" // the last tensor: one number, no decay, in no tower

// One tensor of a model.
typedef struct {
    char name[96]; // open_clip's key
    int tower;     // IMAGE_TOWER, TEXT_TOWER, NO_TOWER
    int group;     // see above
    bool decay;    // weight decay applies
    int ndim, shape[4];
    size_t count;       // entries
    size_t offset;      // floats from the start of the arena of parameters, a multiple of 16
    bool trainable;     // set by locking; a frozen tensor has no gradient and no optimizer state
    size_t grad_offset; // floats from the start of the arenas of gradients, m, v and moving average
    float lr_scale;     // factor on the learning rate
} Tensor;

typedef struct {
    Tensor *list; // (count), in the order of the file
    int count;
    size_t floats;      // of the arena of parameters, padding included
    size_t grad_floats; // of the arenas of gradients, m, v and moving average
    size_t parameters;  // entries of all tensors, without padding
} TensorTable;

// How an arena is laid out: every tensor at its `offset`, or trainable tensors alone at their `grad_offset`
// (gradients, m, v, moving average).
typedef enum { PARAMETER_LAYOUT, GRADIENT_LAYOUT } ArenaLayout;

// Pointers into an arena that is laid out by a TensorTable; NULL where the model has no such tensor, or where
// it is frozen and the arena is one of gradients. Shapes: see the tables.
typedef struct {
#define X(field, ...) float *field;
    BLOCK_TENSORS(X)
#undef X
} BlockPointers;

typedef struct {
    float *conv1_weight, *conv1_bias, *class_embedding, *ln_pre_weight, *ln_pre_bias; // image tower
    float *token_embedding;                                                           // text tower
    float *positional_embedding;                                                      // both
    float *ln_final_weight, *ln_final_bias; // both; visual.ln_post in the image tower
    float *proj;                            // both
    BlockPointers *blocks;                  // (L)
} TowerPointers;

typedef struct {
    TowerPointers tower[2]; // IMAGE_TOWER, TEXT_TOWER
    float *logit_scale;
} TensorPointers;

// Lays out the trainable tensors one after the other for gradients, m and v; call it after each change of
// `trainable`.
static inline void tensor_table_pack(TensorTable *t) {
    t->grad_floats = 0;
    for (int i = 0; i < t->count; i++) {
        t->list[i].grad_offset = t->grad_floats;
        if (t->list[i].trainable) t->grad_floats += round_up(t->list[i].count, 16) + GUARD_FLOATS;
    }
}

static inline bool tensor_present(const ClipConfig *c, TensorCondition condition) {
    switch (condition) {
#define X(name, field, bits, value) \
    case name: return (c->field & (bits)) == (value);
        TENSOR_CONDITIONS(X)
#undef X
    }
    return false;
}

// Name of a tensor outside the blocks (layer -1), or of one of block `layer` of a tower.
static inline void tensor_name(char name[96], int tower, int layer, const char *key) {
    if (layer < 0) snprintf(name, 96, "%s", key);
    else
        snprintf(
            name, 96, "%stransformer.resblocks.%d.%s", tower == IMAGE_TOWER ? "visual." : "", layer, key);
}

// Appends a tensor to the table; shape (ndim).
static inline void tensor_table_add(TensorTable *t, int tower, int layer, const char *key, bool decay,
    int group, const int *shape, int ndim) {
    Tensor *x = &t->list[t->count++];
    assert(ndim >= 1 && ndim <= 4 && group >= 0);
    assert(t->count == 1 || tower >= x[-1].tower); // the file's order: image tower, text tower, logit_scale
    tensor_name(x->name, tower, layer, key);
    x->tower = tower;
    x->group = group;
    x->decay = decay;
    x->ndim = ndim;
    x->count = 1;
    for (int i = 0; i < ndim; i++) {
        assert(shape[i] >= 1);
        x->shape[i] = shape[i];
        x->count *= (size_t)shape[i];
    }
    x->offset = t->floats;
    x->trainable = true;
    x->lr_scale = 1;
    t->floats += round_up(x->count, WEIGHTS_ALIGNMENT / sizeof(float)) + GUARD_FLOATS;
    t->parameters += x->count;
}

// The table of a model of this configuration, which config_check() has accepted; all tensors are trainable.
// tensor_table_free() it.
static inline TensorTable tensor_table_create(const ClipConfig *c) {
    TensorTable t = {NULL, 0, 0, 0, 0};
    t.list = (Tensor *)calloc_check(16 + 12 * (size_t)(c->image_layers + c->text_layers), sizeof(Tensor));
#define ADD(tower, layer, key, decay, group, ...)                                                          \
    do {                                                                                                   \
        const int shape[] = {__VA_ARGS__};                                                                 \
        tensor_table_add(&t, tower, layer, key, decay, group, shape, (int)(sizeof shape / sizeof *shape)); \
    } while (0);
    for (int tower = IMAGE_TOWER; tower <= TEXT_TOWER; tower++) {
        if (tower == TEXT_TOWER && !tensor_present(c, WITH_TEXT)) continue;
#define X(letter, image, text) const int letter = tower == IMAGE_TOWER ? c->image : c->text;
        TOWER_SIZES(X)
#undef X
        const int T = tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length;
#define X(field, key, condition, decay, group, ...) \
    if (tensor_present(c, condition)) ADD(tower, -1, key, decay, group, __VA_ARGS__)
        if (tower == IMAGE_TOWER) {
            IMAGE_TENSORS(X)
        } else {
            TEXT_TENSORS(X)
        }
#undef X
#define X(field, key, decay, group, ...) ADD(tower, l, key, decay, group, __VA_ARGS__)
        for (int l = 0; l < L; l++) {
            BLOCK_TENSORS(X)
        }
#undef X
    }
    ADD(NO_TOWER, -1, LOGIT_SCALE_KEY, NO_DECAY, 0, 1)
#undef ADD
    tensor_table_pack(&t);
    return t;
}

static inline void tensor_table_free(TensorTable *t) {
    free(t->list);
    t->list = NULL;
}

// NULL when the table has no tensor of that name.
static inline const Tensor *tensor_find(const TensorTable *t, const char *name) {
    for (int i = 0; i < t->count; i++)
        if (strcmp(t->list[i].name, name) == 0) return &t->list[i];
    return NULL;
}

// Address of a tensor in an arena of either layout. NULL when `x` or the arena is NULL, or when the arena is
// one of gradients and `x` is frozen.
static inline float *tensor_ptr(const Tensor *x, float *arena, ArenaLayout layout) {
    if (!x || !arena || (layout == GRADIENT_LAYOUT && !x->trainable)) return NULL;
    const size_t offset = layout == GRADIENT_LAYOUT ? x->grad_offset : x->offset;
    assert(offset % (WEIGHTS_ALIGNMENT / sizeof(float)) == 0); // vector loads and GPU kernels rely on it
    return arena + offset;
}

// Fills `p` with pointers into `arena`. p->tower[].blocks are allocated on the first call, freed by
// tensor_pointers_free().
static inline void tensor_pointers_bind(
    TensorPointers *p, const TensorTable *t, const ClipConfig *c, float *arena, ArenaLayout layout) {
    const int layers[2] = {c->image_layers, c->text_layers};
    char name[96];
    for (int k = 0; k < 2; k++) {
        TowerPointers *w = &p->tower[k];
        if (!w->blocks) w->blocks = (BlockPointers *)calloc_check((size_t)layers[k], sizeof *w->blocks);
#define X(field, key, ...) w->field = tensor_ptr(tensor_find(t, key), arena, layout);
        if (k == IMAGE_TOWER) {
            IMAGE_TENSORS(X)
        } else {
            TEXT_TENSORS(X)
        }
#undef X
        for (int l = 0; l < layers[k]; l++) {
#define X(field, key, ...)        \
    tensor_name(name, k, l, key); \
    w->blocks[l].field = tensor_ptr(tensor_find(t, name), arena, layout);
            BLOCK_TENSORS(X)
#undef X
        }
    }
    p->logit_scale = tensor_ptr(tensor_find(t, LOGIT_SCALE_KEY), arena, layout);
}

static inline void tensor_pointers_free(TensorPointers *p) {
    free(p->tower[0].blocks);
    free(p->tower[1].blocks);
    memset(p, 0, sizeof *p);
}

#endif
