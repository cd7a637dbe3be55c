// The contrastive loss of clipc/math/loss.h on a GPU: the same passes over tiles of logits, in fp32. The
// order of every sum is fixed, whichever thread is first.
#ifndef CLIPC_GPU_LOSS_H
#define CLIPC_GPU_LOSS_H

#include "clipc/math/gpu_matmul.h" // matmul, Gpu, block_sum
#include "clipc/math/loss.h"       // Positives, LOSS_MASKED

// Buffers of contrastive_loss() for up to `pairs` pairs, on the GPU.
typedef struct {
    int tile;              // rows of logits held at a time
    float *logits;         // (tile,pairs), then their gradients
    float *row_lse;        // (pairs) log-sum-exp of each row of logits
    float *column_lse;     // (pairs) of each column; until all rows are seen, the running maximum
    double *column_sum;    // (pairs) running sum of e^(logit - running maximum) of each column
    float *target;         // (pairs) 1 / number of the row's positives: the target of each of them
    double *positive_mean; // (pairs) mean logit of the row's positives
    double *row_loss;      // (pairs) what each pair adds to the loss
    double *row_dot;       // (pairs) sum over the row of gradient * logit
    double *totals;        // (2) loss; its gradient with respect to logit_scale
    uint64_t *keys;        // (pairs)
} LossScratch;

// Row i0 + blockIdx.x of the logits: masks pairs that are left out, takes the log-sum-exp and the mean over
// its positives.
__global__ void loss_rows_kernel(float *row_lse, double *positive_mean, float *target, float *logits,
    const uint64_t *keys, Positives positives, int i0, int n) {
    SHARED_ARRAY(double, sums); // (32)
    const int i = i0 + blockIdx.x;
    float *row = logits + (size_t)blockIdx.x * n, max = -INFINITY, sum = 0;
    double positive_sum = 0, count = 0;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const bool equal = i == j || (keys && positives != POSITIVES_DIAGONAL && keys[i] == keys[j]);
        if (equal && i != j && positives == POSITIVES_MASK) row[j] = LOSS_MASKED;
        else if (equal) {
            positive_sum += row[j];
            count++;
        }
        const float before = max;
        max = fmaxf(max, row[j]);
        if (max > before) sum *= expf(before - max);
        sum += expf(row[j] - max);
    }
    float most = max;
    for (int lanes = 16; lanes; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, lanes));
    float *warp_max = (float *)sums;
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = most;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; w++) most = fmaxf(most, warp_max[w]);
    __syncthreads();
    const double total = block_sum(max > -INFINITY ? (double)sum * expf(max - most) : 0, sums);
    positive_sum = block_sum(positive_sum, sums);
    count = block_sum(count, sums);
    if (threadIdx.x) return;
    row_lse[i] = most + (float)log(total);
    target[i] = (float)(1 / count);
    positive_mean[i] = positive_sum / count;
}

// Continues the running maximum and sum of e^(x - maximum) of each column by the m rows of a tile; `first`:
// begins them.
__global__ void loss_columns_kernel(
    float *column_max, double *column_sum, const float *logits, int m, int n, bool first) {
    SHARED_ARRAY(float, shared); // (2,8,32)
    const int j = blockIdx.x * 32 + threadIdx.x, at = threadIdx.y * 32 + threadIdx.x;
    float max = -INFINITY, sum = 0;
    for (int i = threadIdx.y; j < n && i < m; i += 8) {
        const float x = logits[(size_t)i * n + j], before = max;
        max = fmaxf(max, x);
        if (max > before) sum *= expf(before - max);
        sum += expf(x - max);
    }
    shared[at] = max;
    shared[256 + at] = sum;
    __syncthreads();
    if (threadIdx.y || j >= n) return;
    const float before = first ? -INFINITY : column_max[j];
    float most = before;
    for (int y = 0; y < 8; y++) most = fmaxf(most, shared[y * 32 + threadIdx.x]);
    double total = first ? 0 : column_sum[j] * exp((double)before - most);
    for (int y = 0; y < 8; y++)
        total += (double)shared[256 + y * 32 + threadIdx.x] * expf(shared[y * 32 + threadIdx.x] - most);
    column_max[j] = most;
    column_sum[j] = total;
}

// column_lse from running maximum and sum, and what each pair adds to the loss. The matrix of targets is
// symmetric, so a pair's row and column have the same mean over positives.
__global__ void loss_pairs_kernel(double *row_loss, float *column_lse, const double *column_sum,
    const float *row_lse, const double *positive_mean, int n) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    column_lse[j] += (float)log(column_sum[j]);
    row_loss[j] = 0.5 * ((double)row_lse[j] + column_lse[j] - 2 * positive_mean[j]) / n;
}

// Replaces a row of logits by its gradient: (softmax over the row + softmax over the column - 2 targets) / 2n
__global__ void loss_gradient_kernel(float *logits, double *row_dot, const float *row_lse,
    const float *column_lse, const float *target, const double *positive_mean, const uint64_t *keys,
    Positives positives, int i0, int n) {
    SHARED_ARRAY(double, sums); // (32)
    const int i = i0 + blockIdx.x;
    float *row = logits + (size_t)blockIdx.x * n;
    double dot = 0;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float x = row[j];
        const float g = (expf(x - row_lse[i]) + expf(x - column_lse[j])) * (0.5f / (float)n);
        const bool positive = i == j || (positives == POSITIVES_SOFT && keys[i] == keys[j]);
        dot += (double)g * x;
        row[j] = positive ? g - target[i] / (float)n : g;
    }
    dot = block_sum(dot, sums);
    if (threadIdx.x == 0) row_dot[i] = dot - positive_mean[i] / n;
}

// out (M,N) (+)= scale * a · b, never in tf32
static inline void loss_product(const Gpu *k, float *out, int ldo, GpuMatrix<float> a, GpuMatrix<float> b,
    int M, int N, int K, float scale, bool accumulate) {
    const MatmulEpilogue<float> epilogue = {NULL, accumulate ? out : NULL};
    matmul(k, out, ldo, a, b, M, N, K, epilogue, scale, MATMUL_EXACT);
}

// Logits of images i0 … i0+m-1 with all texts, and the row sums over them.
static inline void loss_tile(const Gpu *k, const LossScratch *t, const float *image, const float *text,
    const uint64_t *keys, Positives positives, int i0, int m, int n, int E, float scale) {
    loss_product(
        k, t->logits, n, rows_of(image + (size_t)i0 * E, E), transposed(text, E), m, n, E, scale, false);
    LAUNCH(loss_rows_kernel, m, 256, 32 * sizeof(double), k->stream, t->row_lse, t->positive_mean, t->target,
        t->logits, keys, positives, i0, n);
}

// contrastive_loss() of clipc/math/loss.h on the GPU; waits for the result.
//   dimage, dtext (n,E)  gradients with respect to the features; NULL: the loss alone
//   image, text (n,E)    L2-normalised features;  keys (n), NULL only with POSITIVES_DIAGONAL
//   scale                exp(logit_scale)
static inline double contrastive_loss(const Gpu *k, float *dimage, float *dtext, double *dlogit_scale,
    const LossScratch *t, const float *image, const float *text, const uint64_t *keys, Positives positives,
    int n, int E, float scale) {
    assert(n > 0 && E > 0 && t->tile > 0 && "a loss over nothing");
    assert((keys || positives == POSITIVES_DIAGONAL) && "soft and masked positives need keys");
    assert(!dimage == !dtext && "gradients of both towers or of none");
    const int tile = n < t->tile ? n : t->tile;
    const size_t shared = 32 * sizeof(double);
    double totals[2] = {0, 0};
    for (int i0 = 0; i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        loss_tile(k, t, image, text, keys, positives, i0, m, n, E, scale);
        LAUNCH(loss_columns_kernel, blocks_for(n, 32), dim3(32, 8), 2 * 256 * sizeof(float), k->stream,
            t->column_lse, t->column_sum, t->logits, m, n, i0 == 0);
    }
    LAUNCH(loss_pairs_kernel, blocks_for(n, 256), 256, 0, k->stream, t->row_loss, t->column_lse,
        t->column_sum, t->row_lse, t->positive_mean, n);
    LAUNCH(total_kernel, 1, 1024, shared, k->stream, t->totals, t->row_loss, (size_t)n);
    for (int i0 = 0; dimage && i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        const bool accumulate = i0 > 0;
        if (n > tile) // else the logits are still there
            loss_tile(k, t, image, text, keys, positives, i0, m, n, E, scale);
        LAUNCH(loss_gradient_kernel, m, 256, shared, k->stream, t->logits, t->row_dot, t->row_lse,
            t->column_lse, t->target, t->positive_mean, keys, positives, i0, n);
        loss_product(
            k, dimage + (size_t)i0 * E, E, rows_of(t->logits, n), rows_of(text, E), m, E, n, scale, false);
        loss_product(k, dtext, E, transposed(t->logits, n), rows_of(image + (size_t)i0 * E, E), n, E, m,
            scale, accumulate);
    }
    if (dimage) LAUNCH(total_kernel, 1, 1024, shared, k->stream, t->totals + 1, t->row_dot, (size_t)n);
    CUDA_CHECK(cudaMemcpyAsync(
        totals, t->totals, (dimage ? 2 : 1) * sizeof *totals, cudaMemcpyDeviceToHost, k->stream));
    CUDA_CHECK(cudaStreamSynchronize(k->stream));
    if (dimage)
        *dlogit_scale = totals[1]; // logits = exp(logit_scale) * cosine: d logits / d logit_scale = logits
    return totals[0];
}

#endif
