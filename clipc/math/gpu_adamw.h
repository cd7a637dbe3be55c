// AdamW on a GPU: all tensors in one launch, a piece of one for each block of threads; the norm of all
// gradients.
#ifndef CLIPC_GPU_ADAMW_H
#define CLIPC_GPU_ADAMW_H

#include "clipc/model/clip.h"      // AdamW, Tensor, LOGIT_SCALE_MAX
#include "clipc/math/gpu_kernel.h" // load, store, block_sum, bf16

// A stretch of a tensor that one block of threads updates.
typedef struct {
    size_t offset, slot; // where it begins among the parameters, and among the gradients
    int count, tensor;
} Piece;
enum { PIECE_NUMBERS = 8192 };

// sums (blocks) = the squares of each piece of the gradients
__global__ void sum_squares_kernel(double *sums, const float *grads, const Piece *pieces) {
    SHARED_ARRAY(double, shared); // (32)
    const Piece p = pieces[blockIdx.x];
    float sum = 0;
    for (int i = threadIdx.x * 4; i < p.count; i += blockDim.x * 4) {
        float g[4] = {0};
        if (i + 4 <= p.count) load(g, grads + p.slot + i);
        else
            for (int j = 0; i + j < p.count; j++) g[j] = grads[p.slot + i + j];
        sum += g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + g[3] * g[3];
    }
    const double total = block_sum((double)sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// n <= 4 neighbours
template <typename Real> __device__ inline void load_some(float (&x)[4], const Real *p, int n) {
    if (n == 4) return load(x, p);
    for (int j = 0; j < 4; j++) x[j] = j < n ? widened(p[j]) : 0;
}

template <typename Real> __device__ inline void store_some(Real *p, const float (&x)[4], int n) {
    if (n == 4) return store(p, x);
    for (int j = 0; j < n; j++) p[j] = rounded<Real>(x[j]);
}

// AdamW (Loshchilov and Hutter 2019) on one piece a block: weights, m, v, the weights in bf16 (or NULL) and
// their moving average (or NULL). Gradients are scaled down where their norm is above clip_norm > 0.
__global__ void adamw_kernel(float *params, bf16 *halves, const float *grads, float *m, float *v, float *ema,
    const Piece *pieces, const AdamWTerms *terms, const double *squares, double clip_norm, float ema_decay,
    int logit_scale) {
    const Piece piece = pieces[blockIdx.x];
    const AdamWTerms t = terms[piece.tensor];
    const float scale = clip_norm > 0 ? (float)fmin(1.0, clip_norm / (sqrt(*squares) + 1e-6)) : 1;
    for (int i = threadIdx.x * 4; i < piece.count; i += blockDim.x * 4) {
        const int n = min(4, piece.count - i);
        const size_t at = piece.offset + i, slot = piece.slot + i;
        float p[4], g[4], m1[4], v1[4], average[4];
        load_some(p, params + at, n);
        load_some(g, grads + slot, n);
        load_some(m1, m + slot, n);
        load_some(v1, v + slot, n);
        if (ema) load_some(average, ema + slot, n);
        for (int j = 0; j < 4; j++) {
            const float x = g[j] * scale;
            m1[j] = fmaf(m1[j], t.beta1, x * t.one_minus_beta1);
            v1[j] = fmaf(v1[j], t.beta2, x * x * t.one_minus_beta2);
            p[j] = p[j] * t.decay_factor - m1[j] * t.rate / (sqrtf(v1[j] * t.bias_correction2) + t.eps);
            if (piece.tensor == logit_scale) p[j] = fminf(fmaxf(p[j], 0), (float)LOGIT_SCALE_MAX);
            if (ema) average[j] = fmaf(average[j] - p[j], ema_decay, p[j]);
        }
        store_some(params + at, p, n);
        store_some(m + slot, m1, n);
        store_some(v + slot, v1, n);
        if (ema) store_some(ema + slot, average, n);
        if (halves) store_some(halves + at, p, n);
    }
}

// Exchanges the weights with `ema` (or NULL), and writes them in bf16 (or NULL).
__global__ void exchange_kernel(float *params, bf16 *halves, float *ema, const Piece *pieces) {
    const Piece piece = pieces[blockIdx.x];
    for (int i = threadIdx.x; i < piece.count; i += blockDim.x) {
        const size_t at = piece.offset + i, slot = piece.slot + i;
        const float old = params[at], now = ema ? ema[slot] : old;
        if (ema) {
            params[at] = now;
            ema[slot] = old;
        }
        if (halves) halves[at] = rounded<bf16>(now);
    }
}

#endif
