// Arrays that are on the GPU and on the host at once, and what they are compared with, for the tests and the
// laboratory. Included after train_clip.cu or clipc/math/gpu.h.
#ifndef CLIPC_ARRAYS_H
#define CLIPC_ARRAYS_H

#include "clipc/math/gpu.h"   // CUDA_CHECK
#include "clipc/base/utils.h" // rand_for

#include <math.h>

// n numbers on the GPU; `host` holds the same as float.
template <typename Real> struct Array {
    size_t n;
    Real *gpu;
    float *host;
};

template <typename Real> static inline Array<Real> array_create(size_t n) {
    Array<Real> a = {n, NULL, (float *)malloc_check(n * sizeof(float))};
    CUDA_CHECK(cudaMalloc(&a.gpu, n * sizeof(Real)));
    CUDA_CHECK(cudaMemset(a.gpu, 0xff, n * sizeof(Real))); // NaN
    return a;
}

template <typename Real> static inline void upload(Array<Real> *a) {
    Real *values = (Real *)malloc_check(a->n * sizeof(Real));
    for (size_t i = 0; i < a->n; i++) {
        values[i] = (Real)a->host[i];
        a->host[i] = (float)values[i];
    }
    CUDA_CHECK(cudaMemcpy(a->gpu, values, a->n * sizeof(Real), cudaMemcpyHostToDevice));
    free(values);
}

template <typename Real> static inline const float *download(Array<Real> *a) {
    Real *values = (Real *)malloc_check(a->n * sizeof(Real));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(values, a->gpu, a->n * sizeof(Real), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < a->n; i++) a->host[i] = (float)values[i];
    free(values);
    return a->host;
}

template <typename Real> static inline Array<Real> array_random(uint64_t key, size_t n, double size) {
    Array<Real> a = array_create<Real>(n);
    Rand r = rand_for(17, key, 0);
    for (size_t i = 0; i < n; i++) a.host[i] = (float)(size * rand_normal(&r));
    upload(&a);
    return a;
}

template <typename Real> static inline void array_free(Array<Real> *a) {
    CUDA_CHECK(cudaFree(a->gpu));
    free(a->host);
}
template <typename A, typename... Rest> static inline void arrays_free(A *a, Rest *...rest) {
    array_free(a);
    if constexpr (sizeof...(rest) > 0) arrays_free(rest...);
}

static inline int *ints_upload(const int *x, size_t n) {
    int *p;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof(int)));
    CUDA_CHECK(cudaMemcpy(p, x, n * sizeof(int), cudaMemcpyHostToDevice));
    return p;
}

static inline float *floats(size_t n) { return (float *)calloc_check(n, sizeof(float)); }
static inline double *doubles(size_t n) { return (double *)calloc_check(n, sizeof(double)); }

// Largest error against `want`, relative to its largest entry; infinite where a number is not finite.
template <typename Want> static inline double error_of(const float *got, const Want *want, size_t n) {
    double worst = 0, largest = 1e-30;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)want[i]));
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) return INFINITY;
        worst = fmax(worst, fabs(got[i] - (double)want[i]) / largest);
    }
    return worst;
}

// lse (R,NH), or with pooled_row (B,NH): log-sum-exp of each query's scores, which attention_forward_plain()
// does not return.
static inline void attention_lse(float *lse, const float *qkv, const int *start, const int *pooled_row, int B,
    int C, int NH, bool causal) {
    const int HS = C / NH;
    for (int b = 0; b < B; b++)
        for (int row = start[b]; row < start[b + 1]; row++)
            for (int head = 0; head < NH && (!pooled_row || row == pooled_row[b]); head++) {
                const float *q = qkv + (size_t)row * 3 * C + head * HS;
                double sum = 0;
                for (int j = start[b]; j < (causal ? row + 1 : start[b + 1]); j++) {
                    const float *k = qkv + (size_t)j * 3 * C + C + head * HS;
                    double score = 0;
                    for (int c = 0; c < HS; c++) score += (double)q[c] * k[c];
                    sum += exp(score / sqrt(HS));
                }
                lse[(size_t)(pooled_row ? b : row) * NH + head] = (float)log(sum);
            }
}

#endif
