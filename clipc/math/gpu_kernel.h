// What GPU kernels share: the types of numbers, loads and stores of several at once, sums over a warp and a
// block.
#ifndef CLIPC_GPU_KERNEL_H
#define CLIPC_GPU_KERNEL_H

#include "clipc/math/gpu_matmul.h" // Matmul, bf16, cudaStream_t

#if defined(CLIPC_EMULATE)
#define UNROLLED
#else
#define UNROLLED _Pragma("unroll")
#endif

// What every layer needs to run.
typedef struct {
    cudaStream_t stream, copies; // kernels run on one, what a batch brings is copied on the other
    Matmul matmul;
    float *params; // weights, laid out by the table of tensors
    bf16 *halves;  // the same in bf16; NULL in fp32
    float *parts;  // (PARTS, widest vector of parameters) sums over chunks of rows
} Gpu;

// ---------------------------------------------------------------- numbers

template <typename Real> __device__ inline Real rounded(float x);
template <> __device__ inline float rounded<float>(float x) { return x; }
template <> __device__ inline bf16 rounded<bf16>(float x) { return __float2bfloat16(x); }
__device__ inline float widened(float x) { return x; }
__device__ inline float widened(bf16 x) { return __bfloat162float(x); }
__device__ inline float widened(uint8_t x) { return (float)x; }

// e^x and 1 / x for results of type Real: for bf16 by the fast instructions, whose error is far below its
// rounding
template <typename Real> __device__ inline float exponential(float x) {
    return sizeof(Real) == 2 ? __expf(x) : expf(x);
}
template <typename Real> __device__ inline float reciprocal(float x) {
    return sizeof(Real) == 2 ? __fdividef(1.0f, x) : 1.0f / x;
}

// V neighbours that are loaded and stored at once: 16 bytes where the rows' length allows it, else one
// number.
template <typename Real, int V> struct alignas(V * sizeof(Real)) Pack { Real x[V]; };
template <typename Real> constexpr int PACK = 16 / (int)sizeof(Real);

template <int V, typename Real> __device__ inline void load(float (&out)[V], const Real *p) {
    constexpr int W = V * sizeof(Real) > 16 ? PACK<Real> : V;
    UNROLLED
    for (int i = 0; i < V; i += W) {
        const Pack<Real, W> pack = *reinterpret_cast<const Pack<Real, W> *>(p + i);
        UNROLLED
        for (int j = 0; j < W; j++) out[i + j] = widened(pack.x[j]);
    }
}

template <int V, typename Real> __device__ inline void store(Real *p, const float (&x)[V]) {
    constexpr int W = V * sizeof(Real) > 16 ? PACK<Real> : V;
    UNROLLED
    for (int i = 0; i < V; i += W) {
        Pack<Real, W> pack;
        UNROLLED
        for (int j = 0; j < W; j++) pack.x[j] = rounded<Real>(x[i + j]);
        *reinterpret_cast<Pack<Real, W> *>(p + i) = pack;
    }
}

// LAUNCH of kernel<Real, V> with the widest V that divides C
#define LAUNCH_PACKED(kernel, Real, C, grid, ...)                                                     \
    do {                                                                                              \
        if ((C) % PACK<Real> == 0) LAUNCH((kernel<Real, PACK<Real>>), grid(PACK<Real>), __VA_ARGS__); \
        else LAUNCH((kernel<Real, 1>), grid(1), __VA_ARGS__);                                         \
    } while (0)

static inline unsigned blocks_for(size_t n, size_t a_block) {
    return (unsigned)((n + a_block - 1) / a_block);
}

template <typename T> __device__ inline T warp_sum(T x) {
    for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
    return x;
}

// The sum over a block of up to 1,024 threads, for all of them; `shared`: room for 32 numbers, free when this
// is called.
template <typename T> __device__ inline T block_sum(T x, T *shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) sum += shared[i];
    __syncthreads();
    return sum;
}

#endif
