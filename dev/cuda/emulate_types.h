// CUDA's small types and device functions as C++: vectors, bfloat16, intrinsics. Part of dev/cuda/emulate.h.
#ifndef CLIPC_EMULATE_TYPES_H
#define CLIPC_EMULATE_TYPES_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

// Static shared memory: one block runs at a time, so one copy suffices. The variables go to an ELF section
// of their own, which is filled with NaN before each block; AddressSanitizer would put no guards between them
// there, so under it they are plain variables.
#if defined(__SANITIZE_ADDRESS__) || !defined(__ELF__)
#define __shared__ static
#else
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __shared__ static
#endif
#endif
#endif
#ifndef __shared__
#define CLIPC_SHARED_SECTION
#define __shared__ static __attribute__((section("clipc_shared")))
#endif

// ---------------------------------------------------------------- vectors

#define EMULATE_VECTORS(T, name, a2, a4)                                      \
    struct alignas(a2) name##2 {                                              \
        T x, y;                                                               \
    };                                                                        \
    struct name##3 {                                                          \
        T x, y, z;                                                            \
    };                                                                        \
    struct alignas(a4) name##4 {                                              \
        T x, y, z, w;                                                         \
    };                                                                        \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATE_VECTORS(float, float, 8, 16)
EMULATE_VECTORS(int, int, 8, 16)
EMULATE_VECTORS(unsigned, uint, 8, 16)
EMULATE_VECTORS(unsigned char, uchar, 2, 4)
EMULATE_VECTORS(unsigned short, ushort, 4, 8)
#undef EMULATE_VECTORS
struct alignas(16) double2 {
    double x, y;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---------------------------------------------------------------- bfloat16

// The upper half of a float. It has no arithmetic, which would round in other places than
// that of a GPU.
struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) { // to the nearest, ties to even; NaN as the GPU writes it
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        bits = f != f ? 0x7fff : (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    operator float() const {
        const uint32_t u = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &u, sizeof f);
        return f;
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
#define EMULATE_NO_ARITHMETIC(op)                                     \
    __nv_bfloat16 operator op(__nv_bfloat16, __nv_bfloat16) = delete; \
    float operator op(__nv_bfloat16, float) = delete;                 \
    float operator op(float, __nv_bfloat16) = delete;
EMULATE_NO_ARITHMETIC(+)
EMULATE_NO_ARITHMETIC(-)
EMULATE_NO_ARITHMETIC(*)
EMULATE_NO_ARITHMETIC(/)
#undef EMULATE_NO_ARITHMETIC

static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
static inline float __bfloat162float(__nv_bfloat16 b) { return b; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) {
    __nv_bfloat16 b;
    b.bits = u;
    return b;
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__nv_bfloat16(x), __nv_bfloat16(y)};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 f) {
    return {__nv_bfloat16(f.x), __nv_bfloat16(f.y)};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 b) { return {b.x, b.y}; }
static inline float __low2float(__nv_bfloat162 b) { return b.x; }
static inline float __high2float(__nv_bfloat162 b) { return b.y; }

// ---------------------------------------------------------------- intrinsics

using std::max;
using std::min;

template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline void __stcs(T *p, T value) { *p = value; }
template <typename T> static inline void __stcg(T *p, T value) { *p = value; }

#define __expf expf // the C library has functions of these names
#define __logf logf
#define __log2f log2f
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }

template <typename To, typename From> static inline To emulate_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline int __float_as_int(float x) { return emulate_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emulate_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emulate_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emulate_bits<float>(x); }

static inline void __threadfence() {}
static inline void __threadfence_block() {}

// Integer atomics only: a sum of floats depends on the order of its additions, and no two runs would be the
// same.
template <typename T> static inline T emulate_exchange(T *p, T value) {
    const T old = *p;
    *p = value;
    return old;
}
#define EMULATE_ATOMICS(T)                                                                               \
    static inline T atomicAdd(T *p, T value) { return emulate_exchange<T>(p, *p + value); }              \
    static inline T atomicMax(T *p, T value) { return emulate_exchange<T>(p, *p > value ? *p : value); } \
    static inline T atomicMin(T *p, T value) { return emulate_exchange<T>(p, *p < value ? *p : value); } \
    static inline T atomicExch(T *p, T value) { return emulate_exchange<T>(p, value); }                  \
    static inline T atomicCAS(T *p, T expected, T value) {                                               \
        return emulate_exchange<T>(p, *p == expected ? value : *p);                                      \
    }
EMULATE_ATOMICS(int)
EMULATE_ATOMICS(unsigned)
EMULATE_ATOMICS(unsigned long long)
#undef EMULATE_ATOMICS
float atomicAdd(float *, float) = delete;
double atomicAdd(double *, double) = delete;
__nv_bfloat16 atomicAdd(__nv_bfloat16 *, __nv_bfloat16) = delete;

#endif
