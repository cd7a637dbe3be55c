// Random numbers as a pure function of (key, position): there is no state to save, and nothing depends on the
// number of threads. A key is mixed from what the number is for (seed, epoch, sample, purpose); the position
// counts the draws.
#ifndef CLIPC_RAND_H
#define CLIPC_RAND_H

#include "clipc/base/utils.h" // first: it defines _GNU_SOURCE for the system headers

#include <math.h> // log, cos, sqrt

typedef struct {
    uint64_t state;
} Rand;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
static inline uint64_t rand_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// An independent stream for each (seed, a, b): e.g. the seed, the epoch, the sample.
static inline Rand rand_for(uint64_t seed, uint64_t a, uint64_t b) {
    Rand r = {rand_mix(rand_mix(rand_mix(seed + 0x9e3779b97f4a7c15ull) + a + 0x632be59bd9b4e019ull) + b +
                       0xd1b54a32d192ed03ull)};
    return r;
}

static inline uint64_t rand_u64(Rand *r) { return rand_mix(r->state += 0x9e3779b97f4a7c15ull); }

// uniform in [0, 1), 53 bits
static inline double rand_uniform(Rand *r) { return (double)(rand_u64(r) >> 11) * 0x1p-53; }

static inline double rand_range(Rand *r, double low, double high) {
    return low + (high - low) * rand_uniform(r);
}

// uniform in 0 … n-1, n >= 1; unbiased (values of the last, incomplete round are drawn again)
static inline uint64_t rand_below(Rand *r, uint64_t n) {
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do x = rand_u64(r);
    while (x >= limit);
    return x % n;
}

// standard normal (Box-Muller, one of the pair)
static inline double rand_normal(Rand *r) {
    double u = 1.0 - rand_uniform(r), v = rand_uniform(r); // u in (0, 1]: the logarithm is finite
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

// Fisher-Yates
static inline void rand_shuffle(Rand *r, int64_t *items, int64_t n) {
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)rand_below(r, (uint64_t)i + 1), t = items[i];
        items[i] = items[j];
        items[j] = t;
    }
}

#endif
