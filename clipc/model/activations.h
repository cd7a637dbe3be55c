// What both back ends do in the same way: the sequences of a batch, the shape of a tower, what training
// keeps, random weights.
#ifndef CLIPC_ACTIVATIONS_H
#define CLIPC_ACTIVATIONS_H

#include "clipc/model/clip.h" // Clip, ClipBatch
#include "clipc/base/rand.h"  // rand_for, rand_normal

// ---------------------------------------------------------------- sequences of a batch

// The rows of sequence b are start[b] … start[b+1]-1; row read[b] is the one that the head reads.
typedef struct {
    int B, R, longest;
    int *start; // (B+1)
    int *read;  // (B)
} Sequences;

static inline void sequences_reserve(Sequences *s, int B) {
    s->start = (int *)realloc_check(s->start, ((size_t)B + 1) * sizeof(int));
    s->read = (int *)realloc_check(s->read, (size_t)B * sizeof(int));
    s->B = B;
    s->R = s->longest = s->start[0] = 0;
}

static inline void sequences_add(Sequences *s, int b, int T, int read) {
    s->start[b] = s->R;
    s->read[b] = s->R + read;
    s->R += T;
    s->start[b + 1] = s->R;
    if (T > s->longest) s->longest = T;
}

static inline void sequences_free(Sequences *s) {
    free(s->start);
    free(s->read);
}

// How many patches of an image are computed, and which is the j-th.
static inline int batch_patches(const ClipBatch *batch, const ClipConfig *c) {
    return batch->kept ? batch->kept_count : config_image_tokens(c) - 1;
}
static inline int batch_patch(const ClipBatch *batch, int b, int j) {
    return batch->kept ? batch->kept[b * batch->kept_count + j] : j;
}

// The sequences of a tower's batch: pooled rows; class token and patches; captions up to their end of text.
static inline void sequences_of_batch(Sequences *s, const ClipBatch *batch, int tower, const ClipConfig *c) {
    sequences_reserve(s, batch->size);
    for (int b = 0; b < batch->size; b++) {
        const int T = batch->pooled[tower] ? 1 // a row to project, nothing before it
                      : tower == IMAGE_TOWER
                          ? batch_patches(batch, c) + 1
                          : caption_length(batch->tokens + (size_t)b * (size_t)c->context_length,
                                c->context_length, c->eot_id);
        sequences_add(s, b, T, tower == IMAGE_TOWER ? 0 : T - 1);
    }
}

// ---------------------------------------------------------------- towers

typedef struct {
    int C, NH, F, L, E;
    float eps;
    bool quick_gelu, causal;
} TowerShape;

static inline TowerShape tower_shape(const ClipConfig *c, int tower) {
    const TowerShape image = {c->image_width, c->image_heads, c->image_mlp, c->image_layers, c->embed_dim,
        c->image_ln_eps, c->quick_gelu != 0, false};
    const TowerShape text = {c->text_width, c->text_heads, c->text_mlp, c->text_layers, c->embed_dim,
        c->text_ln_eps, c->quick_gelu != 0, true};
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

// What is kept of a forward pass: from which block on (L: of none), for a backward pass at all, and of each
// block its input alone.
typedef struct {
    int first;
    bool backward, inputs_only;
} Keep;

static inline Keep tower_keep(const Clip *clip, int tower, bool backward, bool grad_checkpointing) {
    const int group = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    const Keep keep = {!backward || group > L ? L : group > 0 ? group - 1 : 0, backward, grad_checkpointing};
    return keep;
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

// All tensors, each from its own stream of numbers: the same for any number of threads.
static inline void tensors_init(float *arena, const TensorTable *t, const ClipConfig *c, uint64_t seed) {
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < t->count; i++) {
        Rand r = rand_for(seed, (uint64_t)i, 0x696e6974 /* "init" */);
        tensor_init(arena + t->list[i].offset, &t->list[i], c, &r);
    }
}

#endif
