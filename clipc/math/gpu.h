// The ground of all GPU code: the CUDA names, number types, loads and stores of several numbers at once,
// sums over warps and blocks, memory, and the upload of a batch.
//
// Three macros let the same .cu be compiled by nvcc and, with CLIPC_EMULATE, as C++ for a CPU
// (dev/cuda/emulate.h), where every kernel is checked without a GPU:
//
//     LAUNCH(kernel, grid, block, shared_bytes, stream, arguments…);
//         (kernel<1, 2>) in parentheses where it has commas
//     SHARED_ARRAY(float, sums);
//         in a kernel: its dynamic shared memory, 128-byte aligned
//     CUDA_CHECK(cudaMalloc(&p, bytes));
//         around every call of the CUDA runtime
//
// The emulation asks more of a kernel than CUDA does: every thread of the block reaches every
// __syncthreads(), every lane named in a mask reaches its warp function, and block sizes are multiples of 32
// where warp functions are used. No kernel adds floats atomically: the order of such additions is not fixed.
#ifndef CLIPC_GPU_H
#define CLIPC_GPU_H

#include "clipc/base/utils.h" // die, round_up, calloc_check

#include <assert.h>

#if defined(CLIPC_EMULATE)
#include "dev/cuda/emulate.h"
#define UNROLLED
#elif defined(__CUDACC__)
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>

#define UNROLLED _Pragma("unroll")

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)      \
    do {                                                            \
        kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__); \
        gpu_check(cudaGetLastError(), #kernel, __FILE__, __LINE__); \
    } while (0)

#define SHARED_ARRAY(type, name)                                         \
    extern __shared__ __align__(128) unsigned char clipc_shared_bytes[]; \
    type *const name = reinterpret_cast<type *>(clipc_shared_bytes)
#else
#error "clipc/math/gpu.h: compile with nvcc, or with a C++ compiler and -DCLIPC_EMULATE"
#endif

#define CUDA_CHECK(call) gpu_check(call, #call, __FILE__, __LINE__)

static inline void gpu_check(cudaError_t error, const char *call, const char *file, int line) {
    if (error == cudaSuccess) return;
    if (error == cudaErrorMemoryAllocation)
        die(EXIT_RUNTIME,
            "out of GPU memory (%s, %s:%d); lower --batch-size and raise --accum-freq instead, or add "
            "--grad-checkpointing",
            call, file, line);
    die(EXIT_RUNTIME, "CUDA: %s (%s, %s:%d)", cudaGetErrorString(error), call, file, line);
}

typedef __nv_bfloat16 bf16;
typedef struct Matmul Matmul; // cuBLASLt and its plans: clipc/math/gpu_matmul.h

// What every layer needs to run.
typedef struct {
    cudaStream_t stream; // kernels run on this one
    cudaStream_t copies; // batches are copied to the GPU on this one
    Matmul *matmul;
    float *params;     // weights, laid out by the table of tensors
    bf16 *params_bf16; // the same in bf16; NULL in fp32
    float *partials;   // (MAX_PARTIALS, widest vector of parameters) sums over chunks of rows
} Gpu;

// ---------------------------------------------------------------- numbers

template <typename Real> __device__ inline Real from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(uint8_t x) { return (float)x; }

// e^x and 1 / x for results of type Real: for bf16 by the fast instructions, whose error is far below its
// rounding
template <typename Real> __device__ inline float exponential(float x) {
    return sizeof(Real) == 2 ? __expf(x) : expf(x);
}
template <typename Real> __device__ inline float reciprocal(float x) {
    return sizeof(Real) == 2 ? __fdividef(1.0f, x) : 1.0f / x;
}

// V neighbours that are loaded and stored at once: 16 bytes where the length of a row allows it, else one
// number.
template <typename Real, int V> struct alignas(V * sizeof(Real)) Pack { Real x[V]; };
template <typename Real> constexpr int PACK = 16 / (int)sizeof(Real);

template <int V, typename Real> __device__ inline void load(float (&out)[V], const Real *p) {
    constexpr int W = V * sizeof(Real) > 16 ? PACK<Real> : V;
    UNROLLED
    for (int i = 0; i < V; i += W) {
        const Pack<Real, W> pack = *reinterpret_cast<const Pack<Real, W> *>(p + i);
        UNROLLED
        for (int j = 0; j < W; j++) out[i + j] = to_float(pack.x[j]);
    }
}

template <int V, typename Real> __device__ inline void store(Real *p, const float (&x)[V]) {
    constexpr int W = V * sizeof(Real) > 16 ? PACK<Real> : V;
    UNROLLED
    for (int i = 0; i < V; i += W) {
        Pack<Real, W> pack;
        UNROLLED
        for (int j = 0; j < W; j++) pack.x[j] = from_float<Real>(x[i + j]);
        *reinterpret_cast<Pack<Real, W> *>(p + i) = pack;
    }
}

// The first n <= 4 of 4 neighbours
template <typename Real> __device__ inline void load_some(float (&x)[4], const Real *p, int n) {
    if (n == 4) return load(x, p);
    for (int j = 0; j < 4; j++) x[j] = j < n ? to_float(p[j]) : 0;
}

template <typename Real> __device__ inline void store_some(Real *p, const float (&x)[4], int n) {
    if (n == 4) return store(p, x);
    for (int j = 0; j < n; j++) p[j] = from_float<Real>(x[j]);
}

// LAUNCH of kernel<Real, V> with the widest V that divides C; grid is a function of V
#define LAUNCH_PACKED(kernel, Real, C, grid, ...)                                                     \
    do {                                                                                              \
        if ((C) % PACK<Real> == 0) LAUNCH((kernel<Real, PACK<Real>>), grid(PACK<Real>), __VA_ARGS__); \
        else LAUNCH((kernel<Real, 1>), grid(1), __VA_ARGS__);                                         \
    } while (0)

static inline unsigned blocks_for(size_t n, size_t per_block) {
    return (unsigned)((n + per_block - 1) / per_block);
}

enum { ROW_WARPS = 8 }; // rows that a block takes where one warp does a row

template <typename T> __device__ inline T warp_sum(T x) {
    for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
    return x;
}

// The sum over a block of up to 1,024 threads, returned to all of them. shared (32) may be reused after the
// call.
template <typename T> __device__ inline T block_sum(T x, T *shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) sum += shared[i];
    __syncthreads();
    return sum;
}

// *total = the sum of x (n), by one block
__global__ void total_kernel(double *total, const double *x, size_t n) {
    SHARED_ARRAY(double, sums); // (32)
    double sum = 0;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) *total = sum;
}

// ---------------------------------------------------------------- memory

static inline void *gpu_malloc(size_t bytes, const char *what) {
    void *p;
    size_t free, total;
    const cudaError_t error = cudaMalloc(&p, bytes ? bytes : 1);
    if (error != cudaErrorMemoryAllocation) {
        CUDA_CHECK(error);
        return p;
    }
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    die(EXIT_RUNTIME,
        "out of GPU memory: %s take %.2f GB, %.2f of %.2f GB are free; lower --batch-size (and raise "
        "--accum-freq by the same factor), or add --grad-checkpointing",
        what, (double)bytes / 1e9, (double)free / 1e9, (double)total / 1e9);
}

// ---------------------------------------------------------------- upload of a batch

// Inputs of a batch, gathered in pinned memory and copied on a stream of their own. Each tower has two feeds
// that take turns, so that the next batch can be gathered while kernels still read the last one.
//
//     feed_begin(k, f, bytes); feed_reserve(…); feed_add(…); feed_end(k, f); kernels…; feed_release(k, f);
typedef struct {
    char *pinned, *device; // (capacity) bytes each
    size_t capacity, used, sent;
    cudaEvent_t copied;   // the last copy has arrived
    cudaEvent_t consumed; // kernels have read it
} Feed;

static inline void feed_create(Feed *f) {
    memset(f, 0, sizeof *f);
    CUDA_CHECK(cudaEventCreateWithFlags(&f->copied, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&f->consumed, cudaEventDisableTiming));
}

static inline void feed_free(Feed *f) {
    CUDA_CHECK(cudaFreeHost(f->pinned));
    CUDA_CHECK(cudaFree(f->device));
    CUDA_CHECK(cudaEventDestroy(f->copied));
    CUDA_CHECK(cudaEventDestroy(f->consumed));
}

// Starts the copy of what was gathered since the last call.
static inline void feed_send(const Gpu *k, Feed *f) {
    if (f->used > f->sent)
        CUDA_CHECK(cudaMemcpyAsync(
            f->device + f->sent, f->pinned + f->sent, f->used - f->sent, cudaMemcpyHostToDevice, k->copies));
    f->sent = f->used;
}

// Waits until the feed's last batch has been copied; makes space for `bytes`, padding included.
static inline void feed_begin(const Gpu *k, Feed *f, size_t bytes) {
    CUDA_CHECK(cudaEventSynchronize(f->copied));
    if (bytes > f->capacity) {
        CUDA_CHECK(cudaStreamSynchronize(k->stream));
        CUDA_CHECK(cudaFreeHost(f->pinned));
        CUDA_CHECK(cudaFree(f->device));
        CUDA_CHECK(cudaMallocHost(&f->pinned, bytes));
        f->device = (char *)gpu_malloc(bytes, "pixels and captions of a batch");
        f->capacity = bytes;
    }
    CUDA_CHECK(cudaStreamWaitEvent(k->copies, f->consumed, 0));
    f->used = f->sent = 0;
}

// Kernels launched from here on find the batch on the GPU.
static inline void feed_end(const Gpu *k, Feed *f) {
    feed_send(k, f);
    CUDA_CHECK(cudaEventRecord(f->copied, k->copies));
    CUDA_CHECK(cudaStreamWaitEvent(k->stream, f->copied, 0));
}

// Kernels launched so far are the last that read the batch.
static inline void feed_release(const Gpu *k, const Feed *f) {
    CUDA_CHECK(cudaEventRecord(f->consumed, k->stream));
}

// Space for n numbers in pinned memory, to be filled before the next feed_send(); *device: where they will
// be.
template <typename T> static T *feed_reserve(Feed *f, size_t n, const T **device) {
    T *space = (T *)(f->pinned + f->used);
    *device = (const T *)(f->device + f->used);
    f->used += round_up(n * sizeof(T), 256);
    assert(f->used <= f->capacity && "more bytes than feed_begin() made space for");
    return space;
}

// Copies n numbers from pageable memory; returns where they will be. While one chunk is on its way to the
// GPU, the next is gathered.
template <typename T> static const T *feed_add(const Gpu *k, Feed *f, const T *from, size_t n) {
    const size_t CHUNK = 8 << 20, THREAD_CHUNK = 1 << 18; // bytes: of a copy, of a thread's memcpy()
    const T *device = (const T *)(f->device + f->used);
    const size_t bytes = n * sizeof(T);
    assert(f->used + round_up(bytes, 256) <= f->capacity && "more bytes than feed_begin() made space for");
    feed_send(k, f);
    for (size_t at = 0; at < bytes; at += CHUNK) {
        const size_t chunk = bytes - at < CHUNK ? bytes - at : CHUNK;
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < chunk; i += THREAD_CHUNK)
            memcpy(f->pinned + f->used + i, (const char *)from + at + i,
                chunk - i < THREAD_CHUNK ? chunk - i : THREAD_CHUNK);
        f->used += round_up(chunk, 256);
        feed_send(k, f);
    }
    return device;
}

// The rows of a batch grouped by the row of an embedding table that they took: those of table row key[i] are
// row[start[i]] … row[start[i+1]-1], ascending. All on the GPU.
typedef struct {
    int count;        // of keys that occur
    const int *key;   // (count) ascending
    const int *start; // (count+1)
    const int *row;   // (R)
} RowGroups;

// Groups R rows by keys[row], 0 <= key < bound, by a counting sort on the host.
static inline RowGroups feed_groups(Feed *f, const int *keys, int R, int bound) {
    RowGroups g = {0, NULL, NULL, NULL};
    int *key = feed_reserve(f, R, &g.key);
    int *start = feed_reserve(f, (size_t)R + 1, &g.start);
    int *row = feed_reserve(f, R, &g.row);
    int *next = (int *)calloc_check(bound, sizeof(int)); // first counts, then the place of the key's next row
    int at = 0;
    for (int i = 0; i < R; i++) {
        assert(0 <= keys[i] && keys[i] < bound && "a token or position outside its embedding table");
        next[keys[i]]++;
    }
    for (int v = 0; v < bound; v++) {
        const int n = next[v];
        next[v] = at;
        if (!n) continue;
        key[g.count] = v;
        start[g.count++] = at;
        at += n;
    }
    start[g.count] = R;
    for (int i = 0; i < R; i++) row[next[keys[i]]++] = i;
    free(next);
    return g;
}

#endif
