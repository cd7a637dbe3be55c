// Features for tests: random ones, of unit length, and their dot product.
#ifndef CLIPC_TEST_FEATURES_H
#define CLIPC_TEST_FEATURES_H

#include "clipc/base/utils.h"

static inline void fill_normal(float *x, size_t n, uint64_t seed) {
    Rand r = rand_for(seed, 0, 0);
    for (size_t i = 0; i < n; i++) x[i] = (float)rand_normal(&r);
}

static inline void normalise_rows(float *x, int n, int E) {
    for (int i = 0; i < n; i++, x += E) {
        double square = 0;
        for (int e = 0; e < E; e++) square += (double)x[e] * x[e];
        for (int e = 0; e < E; e++) x[e] = (float)(x[e] / sqrt(square));
    }
}

static inline double dot(const float *a, const float *b, int E) {
    double sum = 0;
    for (int e = 0; e < E; e++) sum += (double)a[e] * b[e];
    return sum;
}

#endif
