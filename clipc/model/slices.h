// Which process updates which numbers of the trainable tensors. Each owns a slice of the arena of gradients,
// of nearly the same length, and holds AdamW's moments and the moving average of its slice alone (ZeRO-1,
// Rajbhandari et al. 2020). One process owns all. doc/processes.md has the exchange around it.
#ifndef CLIPC_SLICES_H
#define CLIPC_SLICES_H

#include "clipc/base/utils.h"        // list_grow, comm_rank
#include "clipc/model/activations.h" // Panels
#include "clipc/model/weights.h"     // TensorTable

// What a thread updates at a time: numbers at … at+n-1 of a tensor. The chunks, and the order in which their
// sums are added, depend neither on the number of threads nor on that of processes.
typedef struct {
    int tensor;
    size_t at, n;
} UpdateChunk;

typedef struct {
    UpdateChunk *chunks; // (count) of all trainable tensors, in the order of the table
    size_t count;
    size_t *first; // (processes + 1) chunks first[r] … first[r+1]-1 are those of process r,
    size_t *cut;   // and so are the numbers cut[r] … cut[r+1]-1 of the gradients
} Slices;

static inline void slices_free(Slices *s) {
    free(s->chunks);
    free(s->first);
    free(s->cut);
    memset(s, 0, sizeof *s);
}

// How many numbers of a tensor make a chunk: about UPDATE_CHUNK; a packed weight is divided at multiples of
// PACK_ROWS rows.
static inline size_t slices_chunk(const TensorTable *t, int tensor, const Panels *packed) {
    enum { UPDATE_CHUNK = 1 << 16 };
    const size_t rows = PACK_ROWS * (size_t)tensor_columns(&t->list[tensor]);
    if (!panels_hold(packed, tensor)) return UPDATE_CHUNK;
    return rows * (rows < UPDATE_CHUNK ? UPDATE_CHUNK / rows : 1);
}

// packed: the weights that products read packed
static inline Slices slices_create(const TensorTable *t, const Panels *packed) {
    const size_t size = (size_t)comm_size();
    Slices s;
    size_t capacity = 0, total = 0, done = 0, owner = 0;
    memset(&s, 0, sizeof s);
    for (int i = 0; i < t->count; i++) {
        const Tensor *x = &t->list[i];
        const size_t chunk = slices_chunk(t, i, packed);
        for (size_t at = 0; x->trainable && at < x->count; at += chunk, s.count++) {
            const UpdateChunk c = {i, at, x->count - at < chunk ? x->count - at : chunk};
            list_grow((void **)&s.chunks, &capacity, s.count + 1, sizeof *s.chunks);
            s.chunks[s.count] = c;
            total += c.n;
        }
    }
    s.first = (size_t *)calloc_check(size + 1, sizeof *s.first);
    s.cut = (size_t *)calloc_check(size + 1, sizeof *s.cut);
    for (size_t c = 0; c < s.count; done += s.chunks[c++].n)
        for (; owner < size && done >= total * owner / size; owner++) {
            s.first[owner] = c;
            s.cut[owner] = owner ? t->list[s.chunks[c].tensor].grad_offset + s.chunks[c].at : 0;
        }
    for (; owner <= size; owner++) { // more processes than chunks: the last ones own nothing
        s.first[owner] = s.count;
        s.cut[owner] = t->grad_floats;
    }
    return s;
}

// Numbers that this process owns, 0 where nothing trains, and where its slice begins.
static inline size_t slices_length(const Slices *s) {
    return s->cut ? s->cut[comm_rank() + 1] - s->cut[comm_rank()] : 0;
}
static inline size_t slices_begin(const Slices *s) { return s->cut[comm_rank()]; }

static inline bool slices_own(const Slices *s, size_t chunk) {
    return chunk >= s->first[comm_rank()] && chunk < s->first[comm_rank() + 1];
}

// The part of a tensor that process r owns: *n numbers from *at on.
static inline void slices_part(const Slices *s, int r, const Tensor *x, size_t *at, size_t *n) {
    const size_t end = x->grad_offset + x->count;
    const size_t low = s->cut[r] > x->grad_offset ? s->cut[r] : x->grad_offset;
    const size_t high = s->cut[r + 1] < end ? s->cut[r + 1] : end;
    *at = low - x->grad_offset;
    *n = high > low ? high - low : 0;
}

// values (count) of a tensor, from the slices of `arena` that all processes hold. All call it.
static inline void slices_read(const Slices *s, const float *arena, const Tensor *x, float *values) {
    for (int r = 0; r < comm_size(); r++) {
        size_t at, n;
        slices_part(s, r, x, &at, &n);
        if (!n) continue;
        if (r == comm_rank())
            memcpy(values + at, arena + (x->grad_offset + at - slices_begin(s)), n * sizeof(float));
        comm_broadcast(values + at, n * sizeof(float), r);
    }
}

// The part of values (count) that this process holds, into its slice.
static inline void slices_write(const Slices *s, float *arena, const Tensor *x, const float *values) {
    size_t at, n;
    slices_part(s, comm_rank(), x, &at, &n);
    if (n) memcpy(arena + (x->grad_offset + at - slices_begin(s)), values + at, n * sizeof(float));
}

// The sum over all chunks of a number of each, sums (count), of which each process has its own: of a tensor's
// chunks in their order, then of the tensors.
static inline double slices_total(const Slices *s, double *sums) {
    double of_tensor = 0, total = 0;
    comm_gather_slices(sums, sizeof *sums, s->first);
    for (size_t c = 0; c < s->count; c++) {
        of_tensor = s->chunks[c].at ? of_tensor + sums[c] : sums[c];
        if (c + 1 == s->count || s->chunks[c + 1].at == 0) total += of_tensor;
    }
    return total;
}

// Gives all processes the weights that each has of its slice. grads is scratch.
static inline void slices_hand_out(const Slices *s, const TensorTable *t, float *params, float *grads) {
    for (int get = 0; get < 2; get++) {
        if (get) comm_gather_slices(grads, sizeof *grads, s->cut);
#pragma omp parallel for schedule(static)
        for (size_t c = 0; c < s->count; c++) {
            const UpdateChunk *u = &s->chunks[c];
            const Tensor *x = &t->list[u->tensor];
            float *p = params + x->offset + u->at, *g = grads + x->grad_offset + u->at;
            if (!get && slices_own(s, c)) memcpy(g, p, u->n * sizeof *p);
            if (get && !slices_own(s, c)) memcpy(p, g, u->n * sizeof *p);
        }
    }
}

// Exchanges the weights of this process's slice with those in its `arena`.
static inline void slices_swap(const Slices *s, const TensorTable *t, float *params, float *arena) {
    for (size_t c = s->first[comm_rank()]; c < s->first[comm_rank() + 1]; c++) {
        const UpdateChunk *u = &s->chunks[c];
        const Tensor *x = &t->list[u->tensor];
        float *p = params + x->offset + u->at, *e = arena + (x->grad_offset + u->at - slices_begin(s));
        for (size_t i = 0; i < u->n; i++) {
            const float kept = p[i];
            p[i] = e[i];
            e[i] = kept;
        }
    }
}

#endif
