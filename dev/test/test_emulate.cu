// The emulated GPU (dev/cuda/emulate.h): warp functions, barriers, tensor cores and copies do what CUDA's
// documentation says, and each kind of fault that the emulation promises to find is planted once in a kernel
// and found. A fault runs in a child process, which has to fail.
#include "clipc/math/gpu.h"
#include "dev/test/child.h"

enum { N = 77 }; // size of blocks and buffers, odd where CUDA allows it

// A device buffer of n elements, copied from `values` where given.
template <typename T> static T *device_array(size_t n, const T *values) {
    T *p;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof(T)));
    if (values) CUDA_CHECK(cudaMemcpy(p, values, n * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

template <typename T> static void take_back(T *values, T *p, size_t n) {
    CUDA_CHECK(cudaMemcpy(values, p, n * sizeof(T), cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(p));
}

// ---------------------------------------------------------------- what must work

__global__ void count_kernel(int *visits) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    atomicAdd(&visits[block * blockDim.x * blockDim.y * blockDim.z + thread], 1);
}

static void test_every_thread_runs_once(void) {
    const dim3 shapes[][2] = {{dim3(1), dim3(1)}, {dim3(13), dim3(7)}, {dim3(3, 4, 5), dim3(5, 3, 2)},
        {dim3(2), dim3(1024)}, {dim3(1, 9, 2), dim3(1, 31)}};
    for (const auto &s : shapes) {
        const size_t n = (size_t)s[0].x * s[0].y * s[0].z * s[1].x * s[1].y * s[1].z;
        int *visits = device_array<int>(n, nullptr), *host = (int *)malloc_check(n * sizeof(int));
        CUDA_CHECK(cudaMemset(visits, 0, n * sizeof(int)));
        LAUNCH(count_kernel, s[0], s[1], 0, 0, visits);
        take_back(host, visits, n);
        for (size_t i = 0; i < n; i++) EXPECT(host[i] == 1, "thread %zu of %zu ran %d times", i, n, host[i]);
        free(host);
    }
}

// The order is random: over some launches, thread 0 is first in some and last in others.
__global__ void order_kernel(int *place, int *counter) {
    if (threadIdx.x == 0) *counter = 0;
    __syncthreads();
    const int mine = atomicAdd(counter, 1);
    if (threadIdx.x == 0) *place = mine;
}

static void test_order_of_threads_is_random(void) {
    int early = 0, late = 0;
    for (int i = 0; i < 64; i++) {
        int *place = device_array<int>(1, nullptr), *counter = device_array<int>(1, nullptr), mine;
        LAUNCH(order_kernel, 1, N, 0, 0, place, counter);
        take_back(&mine, place, 1);
        CUDA_CHECK(cudaFree(counter));
        early += mine < N / 2;
        late += mine >= N / 2;
    }
    EXPECT(early > 10 && late > 10, "%d early, %d late", early, late);
}

enum { SHUFFLES = 10 };
__global__ void shuffle_kernel(int *out) {
    const int lane = (int)(threadIdx.x % 32), x = 1000 * (int)(threadIdx.x / 32) + lane * lane;
    int *o = out + threadIdx.x * SHUFFLES;
    o[0] = __shfl_sync(0xffffffff, x, 5);
    o[1] = __shfl_sync(0xffffffff, x, 11, 8);
    o[2] = __shfl_up_sync(0xffffffff, x, 3);
    o[3] = __shfl_down_sync(0xffffffff, x, 3, 16);
    o[4] = __shfl_xor_sync(0xffffffff, x, 21);
    o[5] = (int)(__shfl_xor_sync(0xffffffff, (double)x + 0.5, 4) - 0.5);
    o[6] = (int)__ballot_sync(0xffffffff, lane % 3 == 1);
    o[7] = __any_sync(0xffffffff, lane == 31) + 2 * __all_sync(0xffffffff, lane < 31) +
           4 * __all_sync(0xffffffff, lane < 32);
    o[8] = __reduce_add_sync(0xffffffff, x);
    o[9] = lane < 7 ? __reduce_max_sync(0x7f, -x) : 0; // a part of the warp
}

static void test_warp_functions_are_those_of_cuda(void) {
    int host[64 * SHUFFLES], *out = device_array<int>(64 * SHUFFLES, nullptr);
    LAUNCH(shuffle_kernel, 1, 64, 0, 0, out);
    take_back(host, out, 64 * SHUFFLES);
    for (int t = 0; t < 64; t++) {
        const int lane = t % 32, base = 1000 * (t / 32);
#define SQUARE(l) (base + (l) * (l))
        const int expected[SHUFFLES] = {SQUARE(5), SQUARE(lane / 8 * 8 + 3),
            SQUARE(lane < 3 ? lane : lane - 3), SQUARE(lane % 16 > 12 ? lane : lane + 3), SQUARE(lane ^ 21),
            SQUARE(lane ^ 4), (int)0x92492492, 1 + 4, 32 * base + 31 * 32 * 63 / 6, lane < 7 ? -base : 0};
        for (int i = 0; i < SHUFFLES; i++)
            EXPECT(host[t * SHUFFLES + i] == expected[i], "function %d, thread %d: %d instead of %d", i, t,
                host[t * SHUFFLES + i], expected[i]);
    }
}

// The sum of a row, written like every reduction in train_clip.cu: lanes, then warps through shared memory.
__global__ void row_sum_kernel(float *out, const float *x, int C) {
    SHARED_ARRAY(float, part);
    __shared__ float total;
    float sum = 0;
    for (int c = (int)threadIdx.x; c < C; c += (int)blockDim.x)
        sum += x[blockIdx.x * (unsigned)C + (unsigned)c];
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        total = 0;
        for (unsigned w = 0; w < blockDim.x / 32; w++) total += part[w];
    }
    __syncthreads();
    if (threadIdx.x == blockDim.x - 1) out[blockIdx.x] = total;
}

static void test_barriers_let_a_block_meet(void) {
    enum { ROWS = 9 };
    float host[ROWS * N], sums[ROWS];
    for (int i = 0; i < ROWS * N; i++) host[i] = (float)(i % 11);
    float *x = device_array(ROWS * N, host), *out = device_array<float>(ROWS, nullptr);
    LAUNCH(row_sum_kernel, ROWS, 96, 3 * sizeof(float), 0, out, x, N);
    take_back(sums, out, ROWS);
    CUDA_CHECK(cudaFree(x));
    for (int r = 0; r < ROWS; r++) {
        float expected = 0;
        for (int c = 0; c < N; c++) expected += host[r * N + c];
        EXPECT(sums[r] == expected, "row %d: %g instead of %g", r, sums[r], expected);
    }
}

template <typename LA, typename LB>
__global__ void product_kernel(
    float *out, const __nv_bfloat16 *a, const __nv_bfloat16 *b, int lda, int ldb, int ldo, bool transposed) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, 16, 16, 16, __nv_bfloat16, LA> fa;
    fragment<matrix_b, 16, 16, 16, __nv_bfloat16, LB> fb;
    fragment<accumulator, 16, 16, 16, float> sum;
    fill_fragment(sum, 0.0f);
    load_matrix_sync(fa, a, (unsigned)lda);
    load_matrix_sync(fb, b, (unsigned)ldb);
    mma_sync(sum, fa, fb, sum);
    mma_sync(sum, fa, fb, sum);
    for (int i = 0; i < sum.num_elements; i++) sum.x[i] *= 0.5f;
    store_matrix_sync(out, sum, (unsigned)ldo, transposed ? mem_col_major : mem_row_major);
}

static void test_tensor_cores_multiply_matrices(void) {
    using namespace nvcuda::wmma;
    enum { LDA = 24, LDB = 32, LDO = 20 };
    for (int layout = 0; layout < 8; layout++) {
        const bool at = layout & 1, bt = layout & 2, ot = layout & 4;
        __nv_bfloat16 a[16 * LDA], b[16 * LDB];
        float out[16 * LDO];
        for (int i = 0; i < 16 * LDA; i++) a[i] = __float2bfloat16((float)(i * 7 % 13 - 6));
        for (int i = 0; i < 16 * LDB; i++) b[i] = __float2bfloat16((float)(i * 5 % 11 - 5));
        __nv_bfloat16 *da = device_array(16 * LDA, a), *db = device_array(16 * LDB, b);
        float *d = device_array<float>(16 * LDO, nullptr);
        if (at && bt)
            LAUNCH((product_kernel<col_major, col_major>), 1, 32, 0, 0, d, da, db, LDA, LDB, LDO, ot);
        if (at && !bt)
            LAUNCH((product_kernel<col_major, row_major>), 1, 32, 0, 0, d, da, db, LDA, LDB, LDO, ot);
        if (!at && bt)
            LAUNCH((product_kernel<row_major, col_major>), 1, 32, 0, 0, d, da, db, LDA, LDB, LDO, ot);
        if (!at && !bt)
            LAUNCH((product_kernel<row_major, row_major>), 1, 32, 0, 0, d, da, db, LDA, LDB, LDO, ot);
        take_back(out, d, 16 * LDO);
        CUDA_CHECK(cudaFree(da));
        CUDA_CHECK(cudaFree(db));
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                float expected = 0;
                for (int k = 0; k < 16; k++)
                    expected += __bfloat162float(a[at ? k * LDA + i : i * LDA + k]) *
                                __bfloat162float(b[bt ? j * LDB + k : k * LDB + j]);
                EXPECT(out[ot ? j * LDO + i : i * LDO + j] == expected, "layout %d, row %d, column %d",
                    layout, i, j);
            }
        EXPECT(isnan(out[16]), "between the rows nothing is written");
    }
}

static void test_bfloat16_rounds_to_nearest_even(void) {
    for (unsigned u = 0; u < 0x10000; u++) {
        const float f = __bfloat162float(__ushort_as_bfloat16((unsigned short)u));
        const unsigned short back = __bfloat16_as_ushort(__float2bfloat16(f));
        EXPECT(f == f ? back == u : back == 0x7fff, "%04x came back as %04x", u, back);
    }
    EXPECT(__bfloat162float(__float2bfloat16(1.00390625f)) == 1.0f, "half way, to the even below");
    EXPECT(__bfloat162float(__float2bfloat16(1.01171875f)) == 1.015625f, "half way, to the even above");
    EXPECT(__bfloat162float(__float2bfloat16(1.00390637f)) == 1.0078125f, "above half way");
    EXPECT(isinf(__bfloat162float(__float2bfloat16(3.4e38f))), "beyond the largest");
}

static void test_memory_is_copied_and_cleared(void) {
    const size_t used = emulate::device.used;
    float *p, host[N], back[N];
    for (int i = 0; i < N; i++) host[i] = (float)i;
    EXPECT(cudaMalloc(&p, (size_t)1 << 40) == cudaErrorMemoryAllocation && !p, "a terabyte");
    p = device_array(N, host);
    EXPECT(emulate::device.used == used + sizeof host, "%zu used", emulate::device.used);
    CUDA_CHECK(cudaMemset(p + 1, 0, 4));
    CUDA_CHECK(cudaMemcpy2D(p + 11, 12, host + 1, 8, 4, 5,
        cudaMemcpyHostToDevice)); // 5 rows of one float, 3 floats apart from 2 apart
    take_back(back, p, N);
    EXPECT(back[0] == 0 && back[1] == 0 && back[2] == 2 && back[11] == 1 && back[12] == 12 && back[14] == 3 &&
               back[23] == 9,
        "copied and cleared");
    EXPECT(emulate::device.used == used, "given back");
    EXPECT(cudaFree(host) == cudaErrorInvalidValue, "not ours");
    size_t free_bytes, total;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    EXPECT(free_bytes + used == total, "%zu + %zu of %zu", free_bytes, used, total);
}

// ---------------------------------------------------------------- planted faults

__global__ void shared_overrun_kernel(float *out, int n) {
    SHARED_ARRAY(float, part);
    part[(int)threadIdx.x + (n == N)] = 1; // one past the end
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}
__global__ void write_kernel(float *out, int shift) { out[(int)threadIdx.x + shift] = 1; }
__global__ void read_kernel(float *out, const float *x, int shift) {
    out[threadIdx.x] = x[(int)threadIdx.x + shift];
}
__global__ void reverse_kernel(float *out, bool meet) {
    SHARED_ARRAY(float, x);
    x[threadIdx.x] = (float)threadIdx.x;
    if (meet) __syncthreads();
    out[threadIdx.x] = x[blockDim.x - 1 - threadIdx.x];
}
__global__ void warp_exchange_kernel(float *out, bool meet) {
    __shared__ float x[32];
    x[threadIdx.x] = (float)threadIdx.x;
    if (meet) __syncwarp();
    out[threadIdx.x] = x[31 - threadIdx.x];
}
__global__ void next_round_kernel(float *out, bool meet) { // the second barrier of a loop is easily forgotten
    __shared__ float x;
    float sum = 0;
    for (int i = 0; i < 8; i++) {
        if ((int)threadIdx.x == i) x = (float)i;
        __syncthreads();
        sum += x;
        if (meet) __syncthreads();
    }
    out[threadIdx.x] = sum;
}
// The sum over a block, twice: without the last barrier a warp that runs ahead writes where others still
// read.
__global__ void two_sums_kernel(float *out, bool meet) {
    SHARED_ARRAY(float, part);
    float sums[2];
    for (int i = 0; i < 2; i++) {
        float sum = (float)(i + 1);
        for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
        __syncthreads();
        sums[i] = 0;
        for (unsigned w = 0; w < blockDim.x / 32; w++) sums[i] += part[w];
        if (meet) __syncthreads();
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = sums[0] + sums[1];
}
__global__ void skip_last_kernel(float *out, int n) {
    if ((int)threadIdx.x < n - 1) out[threadIdx.x] = 1;
}
__global__ void unwritten_shared_kernel(float *out, unsigned unwritten) {
    SHARED_ARRAY(float, x);
    if (threadIdx.x != unwritten) x[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}
__global__ void unwritten_static_shared_kernel(float *out, unsigned unwritten) {
    __shared__ float x[N];
    if (threadIdx.x != unwritten) x[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}
__global__ void divergent_barrier_kernel(int n) {
    if ((int)threadIdx.x < n) __syncthreads();
}
__global__ void early_return_kernel(int n) {
    if ((int)threadIdx.x >= n) return;
    __syncthreads();
}
__global__ void two_barriers_kernel(int n) {
    if ((int)threadIdx.x < n) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void mask_kernel(int *out, unsigned mask, int lanes, int source) {
    if ((int)threadIdx.x < lanes) out[threadIdx.x] = __shfl_sync(mask, 1, source);
}
__global__ void idle_kernel(const float *) {}
__global__ void tensor_address_kernel(float *out, int shift, unsigned ldm) {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum;
    nvcuda::wmma::fill_fragment(sum, 0.0f);
    nvcuda::wmma::store_matrix_sync(out + shift, sum, ldm, nvcuda::wmma::mem_row_major);
}

// 0 when out holds the n values expected (the last argument: i → value), 3 otherwise.
template <typename F> static int compare(float *out, int n, F expected) {
    float *host = (float *)malloc_check((size_t)n * sizeof(float));
    take_back(host, out, (size_t)n);
    int wrong = 0;
    for (int i = 0; i < n; i++) wrong += !(host[i] == (float)expected(i));
    free(host);
    if (wrong) fprintf(stderr, "%d of %d values are wrong\n", wrong, n);
    return wrong ? 3 : 0;
}

static float *buffer(size_t n) { return device_array<float>(n, nullptr); }
static int one(int) { return 1; }
static int reversed(int i) { return N - 1 - i; }

static int shared_overrun(bool fault) {
    float *out = buffer(N);
    LAUNCH(shared_overrun_kernel, 1, N, N * sizeof(float), 0, out, fault ? N : 0);
    return compare(out, N, one);
}
static int write_after(bool fault) {
    float *out = buffer(N);
    LAUNCH(write_kernel, 1, N, 0, 0, out, fault ? 1 : 0);
    return compare(out, N, one);
}
static int write_before(bool fault) {
    float *out = buffer(N);
    LAUNCH(write_kernel, 1, N, 0, 0, out, fault ? -1 : 0);
    return compare(out, N, one);
}
static int read_after(bool fault) {
    float ones[N], *out = buffer(N);
    for (int i = 0; i < N; i++) ones[i] = 1;
    float *x = device_array(N, ones);
    LAUNCH(read_kernel, 1, N, 0, 0, out, x, fault ? 1 : 0);
    const int code = compare(out, N, one);
    CUDA_CHECK(cudaFree(x));
    return code;
}
static int barrier_missing(bool fault) {
    float *out = buffer(N);
    LAUNCH(reverse_kernel, 1, N, N * sizeof(float), 0, out, !fault);
    return compare(out, N, reversed);
}
static int warp_barrier_missing(bool fault) {
    float *out = buffer(32);
    LAUNCH(warp_exchange_kernel, 1, 32, 0, 0, out, !fault);
    return compare(out, 32, [](int i) { return 31 - i; });
}
static int second_barrier_missing(bool fault) {
    float *out = buffer(N);
    LAUNCH(next_round_kernel, 1, N, 0, 0, out, !fault);
    return compare(out, N, [](int) { return 28; });
}
static int ran_ahead(bool fault) {
    enum { BLOCKS = 8, THREADS = 256 };
    float *out = buffer(BLOCKS * THREADS);
    LAUNCH(two_sums_kernel, BLOCKS, THREADS, 8 * sizeof(float), 0, out, !fault);
    return compare(out, BLOCKS * THREADS, [](int) { return 3 * THREADS; });
}
static int output_unwritten(bool fault) {
    float *out = buffer(N);
    LAUNCH(skip_last_kernel, 1, N, 0, 0, out, fault ? N : N + 1);
    return compare(out, N, one);
}
static int shared_unwritten(bool fault) {
    float *out = buffer(N);
    LAUNCH(unwritten_shared_kernel, 1, N, N * sizeof(float), 0, out, fault ? 3u : 1000u);
    return compare(out, N, one);
}
#ifdef CLIPC_SHARED_SECTION // static arrays are poisoned
static int static_shared_unwritten(bool fault) {
    float *out = buffer(N);
    LAUNCH(unwritten_static_shared_kernel, 9, N, 0, 0, out,
        fault ? 3u : 1000u); // written in one block is not written in the next
    return compare(out, N, one);
}
#endif
static int barrier_divergent(bool fault) {
    LAUNCH(divergent_barrier_kernel, 1, N, 0, 0, fault ? 5 : N);
    return 0;
}
static int barrier_after_return(bool fault) {
    LAUNCH(early_return_kernel, 1, N, 0, 0, fault ? N - 1 : N);
    return 0;
}
static int barriers_differ(bool fault) {
    LAUNCH(two_barriers_kernel, 1, N, 0, 0, fault ? 5 : N);
    return 0;
}
static int mask_case(unsigned mask, int lanes, int threads, int source) {
    int *out = device_array<int>(32, nullptr);
    LAUNCH(mask_kernel, 1, threads, 0, 0, out, mask, lanes, source);
    CUDA_CHECK(cudaFree(out));
    return 0;
}
static int mask_without_caller(bool fault) { return mask_case(fault ? 0xfffffffe : 0xffffffff, 32, 32, 3); }
static int mask_of_too_many(bool fault) { return mask_case(fault ? 0xffffffff : 0xff, 8, 32, 3); }
static int mask_beyond_block(bool fault) { return mask_case(fault ? 0xffffffff : 0xfffff, 20, 20, 3); }
static int shuffle_from_outside(bool fault) { return mask_case(0xff, 8, 32, fault ? 9 : 7); }
static int host_pointer(bool fault) {
    float x = 0, *p = buffer(1);
    LAUNCH(idle_kernel, 1, 1, 0, 0, fault ? &x : p);
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int copy_too_long(bool fault) {
    float host[N + 1] = {0}, *p = buffer(N);
    CUDA_CHECK(cudaMemcpy(p, host, (N + (fault ? 1 : 0)) * sizeof(float), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int copy_wrong_way(bool fault) {
    float host[N] = {0}, *p = buffer(N);
    CUDA_CHECK(cudaMemcpy(p, host, sizeof host, fault ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int host_reads_device(bool fault) {
    float host = 1, *p = device_array(1, &host);
    float x = fault ? *p : host;
    CUDA_CHECK(cudaFree(p));
    return x == 1 ? 0 : 3;
}
#ifndef CLIPC_GUARDS // streams run on by themselves
__global__ void copy_kernel(float *out, const float *x, int n) {
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) out[i] = x[i];
}

// As a loader does: batches are gathered in pinned memory, copied on one stream, read by kernels on another.
// One of three waits is missing: that of the kernel for its copy, of the host before it gathers the next
// batch, of the copy for the kernel that reads the last one.
static int stream_case(int without) {
    enum { STEPS = 40, PER_STEP = 7 };
    cudaStream_t copies, kernels;
    cudaEvent_t copied, read;
    float *pinned, *x = buffer(PER_STEP), *out = buffer(STEPS * PER_STEP);
    CUDA_CHECK(cudaStreamCreate(&copies));
    CUDA_CHECK(cudaStreamCreate(&kernels));
    CUDA_CHECK(cudaEventCreate(&copied));
    CUDA_CHECK(cudaEventCreate(&read));
    CUDA_CHECK(cudaMallocHost(&pinned, PER_STEP * sizeof(float)));
    for (int step = 0; step < STEPS; step++) {
        if (without != 1) CUDA_CHECK(cudaEventSynchronize(copied));
        for (int i = 0; i < PER_STEP; i++) pinned[i] = (float)(step * PER_STEP + i);
        if (without != 2) CUDA_CHECK(cudaStreamWaitEvent(copies, read));
        CUDA_CHECK(cudaMemcpyAsync(x, pinned, PER_STEP * sizeof(float), cudaMemcpyHostToDevice, copies));
        CUDA_CHECK(cudaEventRecord(copied, copies));
        if (without != 3) CUDA_CHECK(cudaStreamWaitEvent(kernels, copied));
        LAUNCH(copy_kernel, 1, 32, 0, kernels, out + step * PER_STEP, x, PER_STEP);
        CUDA_CHECK(cudaEventRecord(read, kernels));
    }
    CUDA_CHECK(cudaStreamDestroy(copies));
    CUDA_CHECK(cudaStreamDestroy(kernels));
    CUDA_CHECK(cudaFreeHost(pinned));
    CUDA_CHECK(cudaFree(x));
    return compare(out, STEPS * PER_STEP, [](int i) { return i; });
}
static int host_gathers_early(bool fault) { return stream_case(fault ? 1 : 0); }
static int copy_comes_early(bool fault) { return stream_case(fault ? 2 : 0); }
static int kernel_comes_early(bool fault) { return stream_case(fault ? 3 : 0); }
#endif
static int block_too_large(bool fault) {
    float *p = buffer(1);
    LAUNCH(idle_kernel, 1, fault ? 1025 : 1024, 0, 0, p);
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int shared_too_large(bool fault) {
    float *p = buffer(1);
    if (!fault)
        CUDA_CHECK(cudaFuncSetAttribute(idle_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10));
    LAUNCH(idle_kernel, 1, 32, 64 << 10, 0, p);
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int memory_exhausted(bool fault) {
    float *p;
    CUDA_CHECK(cudaMalloc(&p, fault ? (size_t)1 << 50 : 4));
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int tensor_address(bool fault) {
    float *p = buffer(1000);
    LAUNCH(tensor_address_kernel, 1, 32, 0, 0, p, fault ? 4 : 8, 16);
    CUDA_CHECK(cudaFree(p));
    return 0;
}
static int tensor_rows(bool fault) {
    float *p = buffer(1000);
    LAUNCH(tensor_address_kernel, 1, 32, 0, 0, p, 8, fault ? 18 : 20);
    CUDA_CHECK(cudaFree(p));
    return 0;
}

#define WRONG "values are wrong"
#ifdef CLIPC_GUARDS
#define GUARDED(message) "use-after-poison"
#else
#define GUARDED(message) message
#endif

struct Fault {
    const char *name;
    int (*run)(bool fault); // returns 0: the result is right
    const char *message;
};

static const Fault faults[] = {
    {"shared_overrun", shared_overrun,
        GUARDED("of 308 of shared memory is written (kernel shared_overrun_kernel")},
    {"write_after", write_after,
        GUARDED("byte 308 of a buffer of 308 bytes is written (kernel write_kernel")},
    {"write_before", write_before, GUARDED("byte -1 of a buffer of 308 bytes is written")},
    {"read_after", read_after, GUARDED(WRONG)},
    {"barrier_missing", barrier_missing, WRONG},
    {"warp_barrier_missing", warp_barrier_missing, WRONG},
    {"second_barrier_missing", second_barrier_missing, WRONG},
    {"ran_ahead", ran_ahead, WRONG},
    {"output_unwritten", output_unwritten, "1 of 77 " WRONG},
    {"shared_unwritten", shared_unwritten, "1 of 77 " WRONG},
#ifdef CLIPC_SHARED_SECTION
    {"static_shared_unwritten", static_shared_unwritten, "1 of 77 " WRONG},
#endif
    {"barrier_divergent", barrier_divergent,
        "is reached by 5 of 77 threads, 72 have ended (kernel divergent_barrier_kernel"},
    {"barrier_after_return", barrier_after_return, "is reached by 76 of 77 threads"},
    {"barriers_differ", barriers_differ, "meets that of"},
    {"mask_without_caller", mask_without_caller, "leaves out the lane 0 that calls"},
    {"mask_of_too_many", mask_of_too_many, "not all lanes of mask ffffffff reach __shfl_sync"},
    {"mask_beyond_block", mask_beyond_block, "a warp of 20 threads"},
    {"shuffle_from_outside", shuffle_from_outside, "shuffles from lane 9, which mask 000000ff leaves out"},
    {"host_pointer", host_pointer, "an argument points to memory of the host"},
    {"copy_too_long", copy_too_long, "a copy's target runs 4 bytes over its buffer of 308"},
    {"copy_wrong_way", copy_wrong_way, "a copy's target is in memory of the GPU"},
    {"host_reads_device", host_reads_device, "the host touches memory of the GPU"},
#ifndef CLIPC_GUARDS
    {"host_gathers_early", host_gathers_early, WRONG},
    {"copy_comes_early", copy_comes_early, WRONG},
    {"kernel_comes_early", kernel_comes_early, WRONG},
#endif
    {"block_too_large", block_too_large, "a block of 1025 x 1 x 1 threads"},
    {"shared_too_large", shared_too_large,
        "65536 bytes of shared memory, where cudaFuncSetAttribute() allows this kernel 49152"},
    {"memory_exhausted", memory_exhausted, "out of GPU memory"},
    {"tensor_address", tensor_address, "the address is not a multiple of 32 bytes"},
    {"tensor_rows", tensor_rows, "rows 18 elements apart, not a multiple of 4"},
};

static void run_without_fault(const void *f) { exit(((const Fault *)f)->run(false)); }
static void run_with_fault(const void *f) { exit(((const Fault *)f)->run(true)); }

static void test_each_planted_fault_is_found(void) {
    for (const Fault &f : faults) {
        child_run(run_without_fault, &f);
        EXPECT(child.code == 0, "%s, without the fault: exit code %d: %s", f.name, child.code, child.text);
        child_run(run_with_fault, &f);
        EXPECT(child.code != 0, "%s is not found", f.name);
        EXPECT(strstr(child.text, f.message), "%s: '%s' instead of '%s'", f.name, child.text, f.message);
    }
}

int main(void) {
    RUN(test_every_thread_runs_once);
    RUN(test_order_of_threads_is_random);
    RUN(test_warp_functions_are_those_of_cuda);
    RUN(test_barriers_let_a_block_meet);
    RUN(test_tensor_cores_multiply_matrices);
    RUN(test_bfloat16_rounds_to_nearest_even);
    RUN(test_memory_is_copied_and_cleared);
    RUN(test_each_planted_fault_is_found);
    return test_report();
}
