// Operations of the 32 lanes of a warp together: shuffles, votes, reductions, tensor cores. Part of
// dev/cuda/emulate.h.
#ifndef CLIPC_EMULATE_WARP_H
#define CLIPC_EMULATE_WARP_H

namespace emulate {

// ---------------------------------------------------------------- shuffles

enum ShuffleMode { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };

template <typename T> struct Shuffle {
    T value, result;
    int operand, width;
};

// The lane that `lane` reads from; itself where the source is outside its segment of `width` lanes.
static inline int shuffle_source(ShuffleMode mode, int lane, int operand, int width) {
    const int first = lane & ~(width - 1), last = first + width - 1;
    switch (mode) {
    case SHUFFLE_UP: return lane - operand < first ? lane : lane - operand;
    case SHUFFLE_DOWN: return lane + operand > last ? lane : lane + operand;
    case SHUFFLE_XOR: return (lane ^ operand) > last ? lane : lane ^ operand;
    default: return first + (operand & (width - 1));
    }
}

template <typename T, ShuffleMode mode> static inline void shuffle_combine(void **payload, unsigned mask) {
    for (int lane = 0; lane < warpSize; lane++) {
        Shuffle<T> *s = (Shuffle<T> *)payload[lane];
        if (!s) continue;
        const int from = shuffle_source(mode, lane, s->operand, s->width);
        if (!(mask >> from & 1))
            fail("lane %d shuffles from lane %d, which mask %08x leaves out", lane, from, mask);
        s->result = ((Shuffle<T> *)payload[from])->value;
    }
}

template <typename T, ShuffleMode mode>
static inline T shuffle(const char *name, unsigned mask, T value, int operand, int width) {
    static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
    if (width < 1 || width > warpSize || width & (width - 1))
        fail("%s: width %d is not a power of two up to 32", name, width);
    Shuffle<T> s = {value, value, operand, width};
    warp_function(name, mask, &s, shuffle_combine<T, mode>);
    return s.result;
}

// ---------------------------------------------------------------- votes and reductions

struct Vote {
    bool predicate;
    unsigned result; // the lanes whose predicate holds
};

static inline void vote_combine(void **payload, unsigned) {
    unsigned ballot = 0;
    for (int lane = 0; lane < warpSize; lane++)
        if (payload[lane] && ((Vote *)payload[lane])->predicate) ballot |= 1u << lane;
    for (int lane = 0; lane < warpSize; lane++)
        if (payload[lane]) ((Vote *)payload[lane])->result = ballot;
}

static inline unsigned vote(const char *name, unsigned mask, bool predicate) {
    Vote v = {predicate, 0};
    warp_function(name, mask, &v, vote_combine);
    return v.result;
}

enum Reduction { REDUCE_ADD, REDUCE_MAX, REDUCE_MIN };

template <typename T, Reduction op> static inline void reduce_combine(void **payload, unsigned) {
    T total = 0;
    bool first = true;
    for (int lane = 0; lane < warpSize; lane++) {
        if (!payload[lane]) continue;
        const T x = *(T *)payload[lane];
        total = first              ? x
                : op == REDUCE_ADD ? (T)(total + x)
                : op == REDUCE_MAX ? std::max(total, x)
                                   : std::min(total, x);
        first = false;
    }
    for (int lane = 0; lane < warpSize; lane++)
        if (payload[lane]) *(T *)payload[lane] = total;
}

template <Reduction op, typename T> static inline T reduce(const char *name, unsigned mask, T value) {
    warp_function(name, mask, &value, reduce_combine<T, op>);
    return value;
}

} // namespace emulate

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize) {
    return emulate::shuffle<T, emulate::SHUFFLE_INDEX>("__shfl_sync", mask, value, lane, width);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    return emulate::shuffle<T, emulate::SHUFFLE_UP>("__shfl_up_sync", mask, value, (int)delta, width);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
    return emulate::shuffle<T, emulate::SHUFFLE_DOWN>("__shfl_down_sync", mask, value, (int)delta, width);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
    return emulate::shuffle<T, emulate::SHUFFLE_XOR>("__shfl_xor_sync", mask, value, lanes, width);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emulate::vote("__ballot_sync", mask, predicate != 0);
}
static inline int __any_sync(unsigned mask, int predicate) {
    return emulate::vote("__any_sync", mask, predicate != 0) != 0;
}
static inline int __all_sync(unsigned mask, int predicate) {
    return emulate::vote("__all_sync", mask, predicate != 0) == mask;
}
static inline int __reduce_add_sync(unsigned mask, int value) {
    return emulate::reduce<emulate::REDUCE_ADD>("__reduce_add_sync", mask, value);
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    return emulate::reduce<emulate::REDUCE_ADD>("__reduce_add_sync", mask, value);
}
static inline int __reduce_max_sync(unsigned mask, int value) {
    return emulate::reduce<emulate::REDUCE_MAX>("__reduce_max_sync", mask, value);
}
static inline int __reduce_min_sync(unsigned mask, int value) {
    return emulate::reduce<emulate::REDUCE_MIN>("__reduce_min_sync", mask, value);
}
static inline void __syncwarp(unsigned mask = 0xffffffff) {
    emulate::warp_function("__syncwarp", mask, nullptr, nullptr);
}

// ---------------------------------------------------------------- tensor cores

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

enum { SIDE = 16, ELEMENTS = SIDE * SIDE / warpSize };

// A 16 x 16 matrix spread over the lanes: as on a GPU a program may only rely on x[i] of two equal fragments
// being the same element.
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    static_assert(M == SIDE && N == SIDE && K == SIDE, "the emulation knows 16 x 16 x 16");
    enum { num_elements = ELEMENTS };
    T x[ELEMENTS];
    fragment() { memset((void *)x, emulate::POISON, sizeof x); }
};

template <typename T> struct Access {
    T *memory;
    unsigned ldm;
    const char *what;
};

template <typename T> static inline void access_combine(void **payload, unsigned) {
    const Access<T> *first = (Access<T> *)payload[0];
    const size_t step = sizeof(T) == 2 ? 8 : 4;
    if ((uintptr_t)first->memory % 32)
        emulate::fail("%s: the address is not a multiple of 32 bytes", first->what);
    if (first->ldm % step || !first->ldm)
        emulate::fail("%s: rows %u elements apart, not a multiple of %zu", first->what, first->ldm, step);
    for (int lane = 1; lane < warpSize; lane++) {
        const Access<T> *a = (Access<T> *)payload[lane];
        if (a->memory != first->memory || a->ldm != first->ldm)
            emulate::fail("%s: the lanes of a warp give different addresses", a->what);
    }
}

// The place in memory of element e of this lane.
static inline size_t element_offset(int e, unsigned ldm, bool columns) {
    const int i = (int)threadIdx.x;
    const int lane =
        (i + (int)blockDim.x * ((int)threadIdx.y + (int)blockDim.y * (int)threadIdx.z)) % warpSize;
    const unsigned at = (unsigned)(lane * ELEMENTS + e), row = at / SIDE, column = at % SIDE;
    return columns ? (size_t)column * ldm + row : (size_t)row * ldm + column;
}

template <typename T> static inline void check_access(const char *what, T *memory, unsigned ldm) {
    Access<T> a = {memory, ldm, what};
    emulate::warp_function(what, 0xffffffff, &a, access_combine<T>);
}

template <typename F, typename T>
static inline void load_elements(F &f, const T *memory, unsigned ldm, bool columns) {
    check_access("load_matrix_sync", memory, ldm);
    for (int e = 0; e < ELEMENTS; e++) f.x[e] = memory[element_offset(e, ldm, columns)];
}

template <typename Use, typename T>
static inline void load_matrix_sync(
    fragment<Use, SIDE, SIDE, SIDE, T, row_major> &f, const T *memory, unsigned ldm) {
    load_elements(f, memory, ldm, false);
}
template <typename Use, typename T>
static inline void load_matrix_sync(
    fragment<Use, SIDE, SIDE, SIDE, T, col_major> &f, const T *memory, unsigned ldm) {
    load_elements(f, memory, ldm, true);
}
template <typename T>
static inline void load_matrix_sync(
    fragment<accumulator, SIDE, SIDE, SIDE, T> &f, const T *memory, unsigned ldm, layout_t layout) {
    load_elements(f, memory, ldm, layout == mem_col_major);
}

template <typename T>
static inline void store_matrix_sync(
    T *memory, const fragment<accumulator, SIDE, SIDE, SIDE, T> &f, unsigned ldm, layout_t layout) {
    check_access("store_matrix_sync", memory, ldm);
    for (int e = 0; e < ELEMENTS; e++) memory[element_offset(e, ldm, layout == mem_col_major)] = f.x[e];
    __syncwarp();
}

template <typename F, typename T> static inline void fill_fragment(F &f, T value) {
    for (int e = 0; e < ELEMENTS; e++) f.x[e] = value;
}

struct Product {
    const __nv_bfloat16 *a, *b;
    const float *c;
    float *d;
};

static inline void product_combine(void **payload, unsigned) {
    float a[SIDE][SIDE], b[SIDE][SIDE], d[SIDE][SIDE];
    for (int at = 0; at < SIDE * SIDE; at++) {
        const Product *p = (Product *)payload[at / ELEMENTS];
        a[at / SIDE][at % SIDE] = p->a[at % ELEMENTS];
        b[at / SIDE][at % SIDE] = p->b[at % ELEMENTS];
        d[at / SIDE][at % SIDE] = p->c[at % ELEMENTS];
    }
    for (int i = 0; i < SIDE; i++)
        for (int k = 0; k < SIDE; k++)
            for (int j = 0; j < SIDE; j++) d[i][j] += a[i][k] * b[k][j];
    for (int at = 0; at < SIDE * SIDE; at++)
        ((Product *)payload[at / ELEMENTS])->d[at % ELEMENTS] = d[at / SIDE][at % SIDE];
}

// d = a · b + c
template <typename LA, typename LB>
static inline void mma_sync(fragment<accumulator, SIDE, SIDE, SIDE, float> &d,
    const fragment<matrix_a, SIDE, SIDE, SIDE, __nv_bfloat16, LA> &a,
    const fragment<matrix_b, SIDE, SIDE, SIDE, __nv_bfloat16, LB> &b,
    const fragment<accumulator, SIDE, SIDE, SIDE, float> &c) {
    Product p = {a.x, b.x, c.x, d.x};
    emulate::warp_function("mma_sync", 0xffffffff, &p, product_combine);
}

} // namespace wmma
} // namespace nvcuda

#endif
