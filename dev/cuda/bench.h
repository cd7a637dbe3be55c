// Shared by the operations of the kernel laboratory: each version is checked at odd sizes and, on a GPU,
// timed against a limit of the card that is measured first, its copy bandwidth or the speed of a large matrix
// product. Included after train_clip.cu.
#ifndef CLIPC_BENCH_H
#define CLIPC_BENCH_H

#include "clipc/math/plain.h" // the plain loops that versions are compared with
#include "dev/cuda/arrays.h"  // Array, error_of
#include "dev/test/test.h"    // EXPECT

#include <algorithm>

typedef struct {
    Gpu gpu;
    bool timed;     // at the sizes of a training step, on a GPU; else checked at odd sizes
    double copy;    // bytes/s of a copy within the card's memory, read and written ones counted
    double product; // FLOP/s of a product of bf16 matrices by cuBLASLt
    void *flush;    // FLUSH_BYTES, more than the L2 cache
} Lab;

enum { FLUSH_BYTES = 256 << 20, RUNS = 21 };

// The median time of a run whose data are not in the cache.
template <typename Run> static double lab_seconds(const Lab *lab, Run run) {
    cudaEvent_t begin, end;
    float ms[RUNS];
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int i = -3; i < RUNS; i++) { // the first three warm up
        CUDA_CHECK(cudaMemsetAsync(lab->flush, i & 1, FLUSH_BYTES, lab->gpu.stream));
        CUDA_CHECK(cudaEventRecord(begin, lab->gpu.stream));
        run();
        CUDA_CHECK(cudaEventRecord(end, lab->gpu.stream));
        CUDA_CHECK(cudaEventSynchronize(end));
        if (i >= 0) CUDA_CHECK(cudaEventElapsedTime(&ms[i], begin, end));
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    std::sort(ms, ms + RUNS);
    return ms[RUNS / 2] * 1e-3;
}

// One version of an operation, which has to move `moved` bytes or to compute `flops` (the other is 0).
// Checked by check(), or timed.
template <typename Run, typename Check>
static void lab_version(const Lab *lab, const char *operation, int version, const char *idea, double moved,
    double flops, Run run, Check check) {
    if (!lab->timed) {
        run();
        check(version);
        return;
    }
    const double seconds = lab_seconds(lab, run);
    const double rate = (moved + flops) / seconds;
    const double limit = flops > 0 ? lab->product : lab->copy;
    printf("| %s | %d | %s | %.3f | %.*f %s | %.0f%% |\n", operation, version, idea, seconds * 1e3,
        flops > 0 ? 1 : 0, rate / (flops > 0 ? 1e12 : 1e9), flops > 0 ? "TFLOP/s" : "GB/s",
        100 * rate / limit);
    fflush(stdout);
}

// Removes what an earlier version wrote.
template <typename Real> static void lab_clear(const Array<Real> *a) {
    CUDA_CHECK(cudaMemset(a->gpu, 0xff, a->n * sizeof(Real)));
}

template <typename Real>
static void lab_compare(
    const char *operation, int version, Array<Real> *out, const float *want, double tolerance) {
    const double error = error_of(download(out), want, out->n);
    EXPECT(
        error <= tolerance, "%s, version %d: error %g, tolerance %g", operation, version, error, tolerance);
    lab_clear(out);
}

static void lab_open(Lab *lab, bool timed, int widest) {
    memset(lab, 0, sizeof *lab);
    lab->timed = timed;
    CUDA_CHECK(cudaStreamCreate(&lab->gpu.stream));
    lab->gpu.matmul = matmul_create();
    CUDA_CHECK(cudaMalloc(&lab->gpu.partials, (size_t)MAX_PARTIALS * widest * sizeof(float)));
    if (!timed) return;
    enum { N = 8192 };
    const size_t bytes = (size_t)1 << 30;
    void *from, *to;
    bf16 *x;
    CUDA_CHECK(cudaMalloc(&lab->flush, FLUSH_BYTES));
    CUDA_CHECK(cudaMalloc(&from, bytes));
    CUDA_CHECK(cudaMalloc(&to, bytes));
    CUDA_CHECK(cudaMemset(from, 0, bytes));
    lab->copy = 2.0 * (double)bytes / lab_seconds(lab, [&] {
        CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, lab->gpu.stream));
    });
    CUDA_CHECK(cudaFree(from));
    CUDA_CHECK(cudaFree(to));
    CUDA_CHECK(cudaMalloc(&x, 3 * (size_t)N * N * sizeof(bf16)));
    CUDA_CHECK(cudaMemset(x, 0x3c, 3 * (size_t)N * N * sizeof(bf16))); // 0.0115
    const double seconds = lab_seconds(lab, [&] {
        matmul(&lab->gpu, x, N, rows_of(x + (size_t)N * N, N), transposed(x + 2 * (size_t)N * N, N), N, N, N);
    });
    lab->product = 2.0 * N * N * N / seconds;
    CUDA_CHECK(cudaFree(x));
    cudaDeviceProp card;
    CUDA_CHECK(cudaGetDeviceProperties(&card, 0));
    printf("%s: copy %.0f GB/s (read and written), bf16 product of 8,192 x 8,192 matrices %.0f TFLOP/s\n\n",
        card.name, lab->copy / 1e9, lab->product / 1e12);
    printf("| operation | version | idea | ms | rate | of the limit |\n|---|---|---|---|---|---|\n");
}

static void lab_close(Lab *lab) {
    CUDA_CHECK(cudaFree(lab->gpu.partials));
    CUDA_CHECK(cudaFree(lab->flush));
    matmul_free(lab->gpu.matmul);
    CUDA_CHECK(cudaStreamDestroy(lab->gpu.stream));
}

#endif
