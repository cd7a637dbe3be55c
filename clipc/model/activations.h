// The activations of a tower, for CPU and GPU: the sequences of a batch, the shape of a tower, which
// activations a forward pass saves, and how they are placed in one allocation. Also the packed weights of the
// CPU, and the random initial weights for training from scratch.
//
// B sequences, R rows (all tokens of a batch), C channels, NH heads, F hidden width of the MLP, L layers, E
// embedding.
#ifndef CLIPC_ACTIVATIONS_H
#define CLIPC_ACTIVATIONS_H

#include "clipc/math/matmul.h" // Operand, pack_panels
#include "clipc/model/clip.h"  // Clip, ClipBatch

// ---------------------------------------------------------------- sequences of a batch

// Sequences are packed one after another: sequence b has the rows start[b] … start[b+1]-1. Of the last
// block's output only row pooled_row[b] is used (class token, end of text).
typedef struct {
    int B, R, longest;
    int *start;      // (B+1)
    int *pooled_row; // (B)
} Sequences;

static inline void sequences_reserve(Sequences *s, int B) {
    s->start = (int *)realloc_check(s->start, ((size_t)B + 1) * sizeof(int));
    s->pooled_row = (int *)realloc_check(s->pooled_row, (size_t)B * sizeof(int));
    s->B = B;
    s->R = s->longest = s->start[0] = 0;
}

// Appends sequence b of T tokens; token `pooled` becomes its pooled row.
static inline void sequences_add(Sequences *s, int b, int T, int pooled) {
    s->start[b] = s->R;
    s->pooled_row[b] = s->R + pooled;
    s->R += T;
    s->start[b + 1] = s->R;
    s->longest = T > s->longest ? T : s->longest;
}

static inline void sequences_free(Sequences *s) {
    free(s->start);
    free(s->pooled_row);
}

// The number of patches of an image that are computed; the index in image b of the j-th of them.
static inline int batch_patches(const ClipBatch *batch, const ClipConfig *c) {
    return batch->kept ? batch->kept_count : config_image_tokens(c) - 1;
}
static inline int batch_patch(const ClipBatch *batch, int b, int j) {
    return batch->kept ? batch->kept[b * batch->kept_count + j] : j;
}

// Patch dropout (Li et al. 2023, open_clip's --force-patch-dropout): draws `count` of an image's `patches`
// indices, in ascending order; a function of the seed, the step, and the index of the image in the step.
static inline void draw_patch_index(
    int *patch_index, int count, int patches, uint64_t seed, int64_t step, int image) {
    Rand r = rand_for(seed ^ 0x706174636865736bull /* "patchesk" */, (uint64_t)step, (uint64_t)image);
    int chosen = 0;
    for (int patch = 0; chosen < count; patch++) // selection sampling (Knuth, TAOCP 2, 3.4.2, algorithm S)
        if ((int)rand_below(&r, (uint64_t)(patches - patch)) < count - chosen) patch_index[chosen++] = patch;
}

// The number of tokens of sequence b that a tower computes: class token and patches; a caption up to its end
// of text (the rest is dropped here); 1 if the batch has pooled features.
static inline int batch_tokens(const ClipBatch *batch, int tower, int b, const ClipConfig *c) {
    if (batch->pooled[tower]) return 1;
    if (tower == IMAGE_TOWER) return batch_patches(batch, c) + 1;
    const int *tokens = batch->tokens + (size_t)b * (size_t)c->context_length;
    return caption_length(tokens, c->context_length, c->eot_id);
}

// Are all token ids that are computed in the vocabulary?
static inline bool batch_tokens_are_known(const ClipBatch *batch, const ClipConfig *c) {
    for (int b = 0; b < batch->size; b++)
        for (int t = 0; t < batch_tokens(batch, TEXT_TOWER, b, c); t++) {
            const int id = batch->tokens[b * c->context_length + t];
            if (id < 0 || id >= c->vocab_size) return false;
        }
    return true;
}

static inline void sequences_of_batch(Sequences *s, const ClipBatch *batch, int tower, const ClipConfig *c) {
    sequences_reserve(s, batch->size);
    for (int b = 0; b < batch->size; b++) {
        const int T = batch_tokens(batch, tower, b, c);
        sequences_add(s, b, T, tower == IMAGE_TOWER ? 0 : T - 1);
    }
}

// The different tokens of the batch: token (R) holds them, slot (R) which of them a row has. Returns their
// number.
static inline int tokens_of_batch(
    int *token, int *slot, const ClipBatch *batch, const Sequences *s, const ClipConfig *c) {
    int *slot_of = (int *)calloc_check((size_t)c->vocab_size, sizeof *slot_of), count = 0; // from 1
    for (int b = 0; b < s->B; b++)
        for (int row = s->start[b]; row < s->start[b + 1]; row++) {
            const int id = batch->tokens[(size_t)b * c->context_length + row - s->start[b]];
            if (!slot_of[id]) {
                token[count++] = id;
                slot_of[id] = count;
            }
            slot[row] = slot_of[id] - 1;
        }
    free(slot_of);
    return count;
}

// ---------------------------------------------------------------- towers

typedef struct {
    int C, NH, F, L, E;
    float eps; // of LayerNorm
    Activation activation;
    bool causal;
} TowerShape;

static inline TowerShape tower_shape(const ClipConfig *c, int tower) {
    const Activation activation = c->quick_gelu ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU;
    const TowerShape image = {c->image_width, c->image_heads, c->image_mlp, c->image_layers, c->embed_dim,
        c->image_ln_eps, activation, false};
    const TowerShape text = {c->text_width, c->text_heads, c->text_mlp, c->text_layers, c->embed_dim,
        c->text_ln_eps, activation, true};
    return tower == IMAGE_TOWER ? image : text;
}

// The lowest group of a tower that trains; L + 2 when none does.
static inline int first_trainable_group(const Clip *clip, int tower) {
    int first = clip_tower_layers(&clip->config, tower) + 2;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower == tower && x->trainable && x->group < first) first = x->group;
    }
    return first;
}

// Which activations the forward pass saves: those of blocks first_block … L-1 (first_block L: none); whether
// a backward pass follows; whether only the input of each block is saved (gradient checkpointing).
typedef struct {
    int first_block;
    bool backward, inputs_only;
} SavePolicy;

static inline SavePolicy tower_save_policy(
    const Clip *clip, int tower, bool backward, bool grad_checkpointing) {
    const int group = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    const int first_block = !backward || group > L ? L : group > 0 ? group - 1 : 0;
    const SavePolicy save = {first_block, backward, grad_checkpointing};
    return save;
}

// ---------------------------------------------------------------- the arrays of a tower

// Mean and reciprocal standard deviation of each row, saved by LayerNorm's forward pass for its backward
// pass.
typedef struct {
    float *mean, *rstd; // (N)
} RowStats;

// The activations that a block saves. Q is R, but B in the last block, which computes pooled rows only. An
// Operand is bf16 in amp_bf16, else fp32; the residual stream is always fp32.
typedef struct {
    float *x;           // (R,C) input, the residual stream
    RowStats ln_1;      // (R)
    Operand qkv;        // (R,3C)
    Operand attention;  // (Q,C) heads side by side
    float *lse;         // (Q,NH) log-sum-exp of the scores; on a GPU only
    float *resid1;      // (Q,C) residual stream after attention
    RowStats ln_2;      // (Q)
    Operand mlp_hidden; // (Q,F) before the activation
} BlockActivations;

// Scratch that all blocks share. `void *`: fp32 on a CPU, the operands' type on a GPU.
typedef struct {
    Operand ln;        // (R,C) output of a LayerNorm; gradient of attention's output
    Operand wide;      // (R,max(3C,F)) output of the activation; gradient of its input; gradient of qkv
    Operand activated; // (R,F) output of the activation, computed again in the backward pass; on a CPU only
    Operand dout;      // (R,C) a gradient rounded for products; on a CPU in bf16 only
    Operand pooled_a, pooled_b; // (B,C) pooled rows of two operands
    float *pooled_x;            // (B,C) pooled rows of the residual stream
    void *dx, *dy;              // (R,C) gradients of the residual stream, of a LayerNorm's output
    void *dz;                   // (B,C) gradient of the pooled rows of a LayerNorm's output
    float *delta;               // (R,NH) rowsum(dO * O) of attention; on a GPU only
} Scratch;

typedef struct {
    Sequences seq;
    BlockActivations *blocks; // (L)
    float *embedding;         // (R,C) input of ln_pre; NULL if there is no ln_pre
    RowStats ln_pre;          // (R)
    float *last;              // (B,C) output of the last block
    RowStats ln_final;        // (B)
    float *pooled;            // (B,C) after the final LayerNorm; all later arrays are fp32
    float *dpooled;           // (B,C) its gradient; on a GPU only
    float *projected;         // (B,E) before L2 normalisation; later its gradient
    float *norm;              // (B) L2 norms of `projected`
    float *features;          // (B,E) result of clip_encode_…; on a GPU only
    Operand patches;          // (R-B,3*P*P) image tower: pixels of each patch
    void *embedded;           // (R-B,C) image tower: output of conv1
    Scratch scratch;
    char *arena;     // all of the above but seq and blocks
    size_t capacity; // bytes of the arena
} TowerActivations;

// One allocation, handed out array by array; each array starts at a multiple of `alignment` bytes. base NULL:
// only counts the bytes.
typedef struct {
    char *base;
    size_t used, alignment;
} Arena;

static inline void *arena_take(Arena *a, size_t bytes) {
    char *p = a->base ? a->base + a->used : NULL;
    a->used += round_up(bytes, a->alignment) + GUARD_FLOATS * sizeof(float);
    const size_t floats = round_up(bytes, sizeof(float)) / sizeof(float);
    if (p) guard_behind((float *)(void *)p, floats, (float *)(void *)(a->base + a->used));
    return p;
}

static inline float *arena_floats(Arena *a, size_t n) { return (float *)arena_take(a, n * sizeof(float)); }

static inline Operand arena_operand(Arena *a, size_t n, bool bf16) {
    return operand(arena_take(a, n * operand_bytes(bf16)), bf16);
}

static inline RowStats arena_row_stats(Arena *a, size_t rows) {
    RowStats s;
    s.mean = arena_floats(a, rows);
    s.rstd = arena_floats(a, rows);
    return s;
}

// B sequences of R rows in all, the number format and the device for which a tower is laid out.
typedef struct {
    size_t B, R;
    bool bf16, gpu;
} LayoutSizes;

static inline void block_layout(
    Arena *a, BlockActivations *block, size_t Q, const TowerShape *d, const LayoutSizes *n) {
    const size_t R = n->R, C = (size_t)d->C;
    block->ln_1 = arena_row_stats(a, R);
    block->qkv = arena_operand(a, R * 3 * C, n->bf16);
    block->attention = arena_operand(a, Q * C, n->bf16);
    if (n->gpu) block->lse = arena_floats(a, Q * (size_t)d->NH);
    block->resid1 = arena_floats(a, Q * C);
    block->ln_2 = arena_row_stats(a, Q);
    block->mlp_hidden = arena_operand(a, Q * (size_t)d->F, n->bf16);
}

// Blocks that are not saved share one set of activations, except for their inputs, which alternate between
// two buffers.
static inline void blocks_layout(
    Arena *a, BlockActivations *blocks, const TowerShape *d, SavePolicy save, const LayoutSizes *n) {
    const size_t RC = n->R * (size_t)d->C;
    BlockActivations shared;
    float *input[2] = {NULL, NULL};
    memset(&shared, 0, sizeof shared);
    if (save.first_block > 0 || save.inputs_only) block_layout(a, &shared, n->R, d, n);
    for (int turn = 0; turn < 2 && save.first_block > 0; turn++) input[turn] = arena_floats(a, RC);
    for (int l = 0; l < d->L; l++) {
        const bool saved = l >= save.first_block;
        blocks[l] = shared;
        if (saved && !save.inputs_only) block_layout(a, &blocks[l], l == d->L - 1 ? n->B : n->R, d, n);
        blocks[l].x = saved ? arena_floats(a, RC) : input[l % 2];
    }
}

static inline void scratch_layout(
    Arena *a, Scratch *s, const TowerShape *d, SavePolicy save, const LayoutSizes *n) {
    const size_t RC = n->R * (size_t)d->C, BC = n->B * (size_t)d->C;
    const bool gradient_bf16 = n->gpu && n->bf16;
    s->ln = arena_operand(a, RC, n->bf16);
    s->wide = arena_operand(a, n->R * (size_t)(d->F > 3 * d->C ? d->F : 3 * d->C), n->bf16);
    s->pooled_a = arena_operand(a, BC, n->bf16);
    s->pooled_b = arena_operand(a, BC, n->bf16);
    s->pooled_x = arena_floats(a, BC);
    if (!save.backward) return;
    s->dx = arena_operand(a, RC, gradient_bf16).p;
    s->dy = arena_operand(a, RC, gradient_bf16).p;
    s->dz = arena_operand(a, BC, gradient_bf16).p;
    if (n->gpu) {
        s->delta = arena_floats(a, n->R * (size_t)d->NH);
    } else {
        s->activated = arena_operand(a, n->R * (size_t)d->F, n->bf16);
        s->dout = n->bf16 ? arena_operand(a, RC, true) : operand(NULL, false);
    }
}

// Places the arrays of a tower in memory from `base` on, for n.B sequences of n.R rows in all. Returns the
// number of bytes; base NULL: only counts them. The caller allocates t->blocks (L).
static inline size_t tower_layout(
    TowerActivations *t, char *base, const ClipConfig *c, int tower, SavePolicy save, LayoutSizes n) {
    Arena a = {base, 0, n.gpu ? (size_t)256 : (size_t)64};
    const TowerShape d = tower_shape(c, tower);
    const size_t B = n.B, R = n.R, C = (size_t)d.C, E = (size_t)d.E, P = (size_t)c->patch_size;
    if (tower == IMAGE_TOWER && c->ln_pre) {
        t->embedding = arena_floats(&a, R * C);
        t->ln_pre = arena_row_stats(&a, R);
    }
    blocks_layout(&a, t->blocks, &d, save, &n);
    t->last = arena_floats(&a, B * C);
    t->ln_final = arena_row_stats(&a, B);
    t->pooled = arena_floats(&a, B * C);
    t->projected = arena_floats(&a, B * E);
    t->norm = arena_floats(&a, B);
    if (n.gpu) t->dpooled = arena_floats(&a, B * C);
    if (n.gpu) t->features = arena_floats(&a, B * E);
    if (tower == IMAGE_TOWER && R > B) {
        t->patches = arena_operand(&a, (R - B) * 3 * P * P, n.bf16);
        t->embedded = arena_operand(&a, (R - B) * C, n.gpu && n.bf16).p;
    }
    scratch_layout(&a, &t->scratch, &d, save, &n);
    return a.used;
}

// Bytes of a tower's arrays for n.B sequences of n.R rows in all.
static inline size_t tower_bytes(const ClipConfig *c, int tower, SavePolicy save, LayoutSizes n) {
    TowerActivations counted;
    memset(&counted, 0, sizeof counted);
    counted.blocks =
        (BlockActivations *)calloc_check((size_t)clip_tower_layers(c, tower), sizeof *counted.blocks);
    const size_t bytes = tower_layout(&counted, NULL, c, tower, save, n);
    free(counted.blocks);
    return bytes;
}

// ---------------------------------------------------------------- weights packed for products (CPU)

// The weights of matrix products, packed into micro-panels (clipc/math/matmul.h). The struct has a tensor
// table of its own, in which only packed tensors have memory. clip_update() packs them again, chunk by chunk,
// as it updates the weights.
typedef struct {
    const Kernels *kernels;
    bool bf16, backward; // format of the units; packed for dout weight, not for x weightᵀ
    TensorTable table;   // count: units of a tensor's panels; trainable: it is packed here
    float *arena;        // units; NULL: nothing is packed
    TensorPointers at;
} Panels;

enum { PACK_ROWS = 32 }; // rows of a weight are packed in multiples of this many

static inline int tensor_rows(const Tensor *x) { return x->shape[0]; }
static inline int tensor_columns(const Tensor *x) { return (int)(x->count / (size_t)x->shape[0]); }

// Is this tensor a packed weight (O,C): of a linear layer in a block, or (forward only) of the patch
// embedding? The final projections are small: they stay fp32, and gemm() packs them each time.
static inline bool tensor_is_packed(const Tensor *x, bool backward) {
    const bool block_weight = x->ndim == 2 && strstr(x->name, "resblocks") && ends_with(x->name, "weight");
    return block_weight || (!backward && x->ndim == 4);
}

// K and N of the product in which the weight (O,C) is B.
static inline int panels_K(const Panels *p, const Tensor *x) {
    return p->backward ? tensor_rows(x) : tensor_columns(x);
}
static inline int panels_N(const Panels *p, const Tensor *x) {
    return p->backward ? tensor_columns(x) : tensor_rows(x);
}

// The size of a micro-panel of a weight (O,C) in units.
static inline size_t panels_pitch(const Kernels *kernels, bool bf16, bool backward, int C, int O) {
    return panel_pitch(kernels, backward ? O : C, bf16);
}

// Allocates the packed weights of each tower's groups from first[tower] on.
static inline void panels_create(Panels *p, const Kernels *kernels, const ClipConfig *config, bool bf16,
    bool backward, const int first[2]) {
    memset(p, 0, sizeof *p);
    p->kernels = kernels;
    p->bf16 = bf16;
    p->backward = backward;
    p->table = tensor_table_create(config);
    for (int i = 0; i < p->table.count; i++) {
        Tensor *x = &p->table.list[i];
        x->trainable = tensor_is_packed(x, backward) && x->group >= first[x->tower];
        if (!x->trainable) continue;
        x->count = panel_pitch(kernels, panels_K(p, x), bf16) * (size_t)panel_count(kernels, panels_N(p, x));
    }
    tensor_table_pack(&p->table);
    p->arena = (float *)aligned_malloc_check(p->table.grad_floats * sizeof(float));
    tensor_pointers_bind(&p->at, &p->table, config, p->arena, GRADIENT_LAYOUT);
}

static inline void panels_free(Panels *p) {
    tensor_pointers_free(&p->at);
    tensor_table_free(&p->table);
    free(p->arena);
    memset(p, 0, sizeof *p);
}

// Is tensor `index` packed here?
static inline bool panels_hold(const Panels *p, int index) {
    return p->arena && p->table.list[index].trainable;
}

// Packs rows o0 … o1-1 of tensor `index`, whose values are w, on the calling thread. o0 and o1 are multiples
// of PACK_ROWS, or o1 is the end of the tensor.
static inline void panels_pack_rows(Panels *p, const Tensor *x, int index, const float *w, int o0, int o1) {
    const Kernels *k = p->kernels;
    const size_t C = (size_t)tensor_columns(x);
    const int K = panels_K(p, x), N = panels_N(p, x);
    if (!panels_hold(p, index)) return;
    uint32_t *to = (uint32_t *)(void *)tensor_ptr(&p->table.list[index], p->arena, GRADIENT_LAYOUT);
    assert(o0 % PACK_ROWS == 0);
    if (p->backward) pack_panels(k, to, matrix(w, C, 1), K, N, o0, o1, 0, panel_count(k, N), p->bf16);
    else pack_panels(k, to, matrix(w, 1, C), K, N, 0, K, o0 / k->tile_columns, panel_count(k, o1), p->bf16);
}

// ---------------------------------------------------------------- random weights

// How open_clip draws a tensor (VisionTransformer.__init__, TextTransformer.init_parameters): normal with a
// standard deviation, or uniform within a bound; LayerNorm is the identity, attention biases are 0.
static inline void tensor_init(float *x, const Tensor *t, const ClipConfig *c, Rand *r) {
    const bool image = t->tower == IMAGE_TOWER;
    const double C = image ? c->image_width : c->text_width;
    const double L = c->text_layers;
    const double F = image ? c->image_mlp : c->text_mlp;
    double normal = 0, bound = 0, constant = 0;
    if (t->tower == NO_TOWER) constant = LOGIT_SCALE_INIT;
    else if (strstr(t->name, "ln_")) constant = ends_with(t->name, "weight");
    else if (ends_with(t->name, "in_proj_weight"))
        image ? (bound = sqrt(6 / (4 * C))) : (normal = 1 / sqrt(C)); // Xavier over (3C,C)
    else if (ends_with(t->name, "c_fc.bias")) bound = 1 / sqrt(C);
    else if (ends_with(t->name, "c_proj.bias")) bound = 1 / sqrt(F);
    else if (ends_with(t->name, "bias")) constant = 0;
    else if (ends_with(t->name, "conv1.weight")) bound = 1 / sqrt(3.0 * c->patch_size * c->patch_size);
    else if (ends_with(t->name, "out_proj.weight"))
        image ? (bound = 1 / sqrt(C)) : (normal = 1 / sqrt(C * 2 * L));
    else if (ends_with(t->name, "c_proj.weight"))
        image ? (bound = 1 / sqrt(F)) : (normal = 1 / sqrt(C * 2 * L));
    else if (ends_with(t->name, "c_fc.weight")) image ? (bound = 1 / sqrt(C)) : (normal = 1 / sqrt(2 * C));
    else if (ends_with(t->name, "token_embedding.weight")) normal = 0.02;
    else if (!image && ends_with(t->name, "positional_embedding")) normal = 0.01;
    else normal = 1 / sqrt(C); // class and positional embedding of the image tower, both projections
    for (size_t i = 0; i < t->count; i++)
        x[i] = (float)(normal > 0  ? normal * rand_normal(r)
                       : bound > 0 ? rand_range(r, -bound, bound)
                                   : constant);
}

// Draws all tensors, each from a random stream of its own: the same for any number of threads.
static inline void tensors_init(float *arena, const TensorTable *t, const ClipConfig *c, uint64_t seed) {
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < t->count; i++) {
        Rand r = rand_for(seed, (uint64_t)i, 0x696e6974 /* "init" */);
        tensor_init(arena + t->list[i].offset, &t->list[i], c, &r);
    }
}

#endif
