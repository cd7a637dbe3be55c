// The CUDA names that the programs use, and three macros that let the same .cu be compiled by nvcc and, with
// CLIPC_EMULATE, as C++ for a CPU (dev/cuda/emulate.h), where every kernel is checked without a GPU.
//
//     LAUNCH(kernel, grid, block, shared_bytes, stream, arguments…);   (kernel<1, 2>) in parentheses where it
//         has commas
//     SHARED_ARRAY(float, sums);                                       in a kernel: its dynamic shared
//         memory, 128-byte aligned
//     CUDA_CHECK(cudaMalloc(&p, bytes));                               every call of the CUDA runtime stands
//         in one
//
// What the emulation asks of a kernel beyond CUDA: every thread of the block reaches every __syncthreads(),
// every lane named in a mask reaches its warp function, block sizes are multiples of 32 where warp functions
// are used; no atomics on floats (their order is not fixed).
#ifndef CLIPC_GPU_H
#define CLIPC_GPU_H

#include "clipc/base/utils.h" // die

#if defined(CLIPC_EMULATE)
#include "dev/cuda/emulate.h"
#elif defined(__CUDACC__)
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <mma.h>

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

#endif
