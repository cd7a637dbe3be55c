// The weights that products multiply with, packed into micro-panels (clipc/math/matmul.h): as a table of
// tensors of its own, which has a place for those that are packed only. Once a step, chunk by chunk, beside
// the update of the weights.
#ifndef CLIPC_PANELS_H
#define CLIPC_PANELS_H

#include "clipc/math/matmul.h"   // pack_panels
#include "clipc/model/weights.h" // TensorTable, TensorPointers

typedef struct {
    const Kernels *kernels;
    bool bf16, backward; // type of the units; for dout weight rather than for x weightᵀ
    TensorTable table;   // count: units of a tensor's panels; trainable: it has a place here
    float *arena;        // units; NULL: nothing is packed
    TensorPointers at;
} Panels;

enum { PACK_ROWS = 32 }; // rows of a weight are packed in multiples of this many

static inline int tensor_rows(const Tensor *x) { return x->shape[0]; }
static inline int tensor_columns(const Tensor *x) { return (int)(x->count / (size_t)x->shape[0]); }

// Is this tensor the right side of products (O,C): of the blocks, or forward of the patch embedding? The
// projections are small: fp32, and packed as they are multiplied.
static inline bool tensor_is_packed(const Tensor *x, bool backward) {
    const bool block_weight = x->ndim == 2 && strstr(x->name, "resblocks") && ends_with(x->name, "weight");
    return block_weight || (!backward && x->ndim == 4);
}

// K and N of the products with the weight (O,C) on their right side.
static inline int panels_K(const Panels *p, const Tensor *x) {
    return p->backward ? tensor_rows(x) : tensor_columns(x);
}
static inline int panels_N(const Panels *p, const Tensor *x) {
    return p->backward ? tensor_columns(x) : tensor_rows(x);
}

// Units from one micro-panel of a weight (O,C) to the next.
static inline size_t panels_pitch(const Kernels *kernels, bool bf16, bool backward, int C, int O) {
    return panel_pitch(kernels, backward ? O : C, bf16);
}

// A place for the weights of products from each tower's group first[tower] on; empty where none is left.
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

// Does tensor `index` have a place?
static inline bool panels_hold(const Panels *p, int index) {
    return p->arena && p->table.list[index].trainable;
}

// Packs rows o0 … o1-1 (multiples of PACK_ROWS, or the last) of tensor `index`, whose values are w, by the
// calling thread.
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

#endif
