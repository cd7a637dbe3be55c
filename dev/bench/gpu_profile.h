// How long the matrix products of a step take on the GPU, and their FLOPs. Included before train_clip.cu, it
// puts a pair of events around each call of matmul(); a stream runs one kernel after another, so the time
// between the events is that of the product alone.
#ifndef CLIPC_GPU_PROFILE_H
#define CLIPC_GPU_PROFILE_H

#include "clipc/math/gpu_matmul.h"

typedef struct {
    bool on;
    int used, capacity;
    cudaEvent_t *events; // (2 * capacity)
    double flops, seconds;
} Profile;
static Profile profile;

static cudaEvent_t profile_mark(cudaStream_t stream) {
    if (profile.used == profile.capacity) {
        profile.capacity = 2 * profile.capacity + 1024;
        profile.events =
            (cudaEvent_t *)realloc_check(profile.events, (size_t)profile.capacity * sizeof *profile.events);
        for (int i = profile.used; i < profile.capacity; i++) CUDA_CHECK(cudaEventCreate(&profile.events[i]));
    }
    const cudaEvent_t e = profile.events[profile.used++];
    CUDA_CHECK(cudaEventRecord(e, stream));
    return e;
}

template <typename Out, typename A, typename B, typename... Rest>
static void matmul_profiled(const Gpu *k, Out *out, int ldo, A a, B b, int M, int N, int K, Rest... rest) {
    if (profile.on) profile_mark(k->stream);
    (matmul)(k, out, ldo, a, b, M, N, K, rest...);
    if (!profile.on) return;
    profile_mark(k->stream);
    profile.flops += 2.0 * M * N * K;
}
#define matmul(...) matmul_profiled(__VA_ARGS__)

static void profile_begin(bool on) {
    profile.on = on;
    profile.used = 0;
    profile.flops = profile.seconds = 0;
}

// After the last step, which has waited for the GPU.
static void profile_end(void) {
    for (int i = 0; i + 1 < profile.used; i += 2) {
        float ms;
        CUDA_CHECK(cudaEventSynchronize(profile.events[i + 1]));
        CUDA_CHECK(cudaEventElapsedTime(&ms, profile.events[i], profile.events[i + 1]));
        profile.seconds += ms * 1e-3;
    }
}

static double gpu_memory(void) { // bytes in use by all programs
    size_t free_bytes, total;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    return (double)(total - free_bytes);
}

#endif
