// Arrays that lie on the GPU and on the host at once, for the tests and the laboratory. Included behind
// train_clip.cu or clipc/math/gpu.h.
#ifndef CLIPC_ARRAYS_H
#define CLIPC_ARRAYS_H

#include "clipc/math/gpu.h"  // CUDA_CHECK
#include "clipc/base/rand.h" // rand_for

#include <math.h>

// n numbers on the GPU; `host` holds the same widened to float.
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
    Real *narrow = (Real *)malloc_check(a->n * sizeof(Real));
    for (size_t i = 0; i < a->n; i++) {
        narrow[i] = (Real)a->host[i];
        a->host[i] = (float)narrow[i];
    }
    CUDA_CHECK(cudaMemcpy(a->gpu, narrow, a->n * sizeof(Real), cudaMemcpyHostToDevice));
    free(narrow);
}

template <typename Real> static inline const float *download(Array<Real> *a) {
    Real *narrow = (Real *)malloc_check(a->n * sizeof(Real));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(narrow, a->gpu, a->n * sizeof(Real), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < a->n; i++) a->host[i] = (float)narrow[i];
    free(narrow);
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

static inline double *doubles(size_t n) { return (double *)calloc_check(n, sizeof(double)); }

// Largest error against `want`, relative to its largest entry; infinite where a number is not finite.
static inline double error_of(const float *got, const double *want, size_t n) {
    double worst = 0, most = 1e-30;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs(want[i]));
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i])) return INFINITY;
        worst = fmax(worst, fabs(got[i] - want[i]) / most);
    }
    return worst;
}

#endif
