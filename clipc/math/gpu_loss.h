// The loss of clipc/math/loss.h on a GPU: the same passes over tiles of logits, fp32, no sum whose order
// depends on the threads.
#ifndef CLIPC_GPU_LOSS_H
#define CLIPC_GPU_LOSS_H

#include "clipc/math/gpu_kernel.h" // Gpu, block_sum
#include "clipc/math/loss.h"       // Positives, LOSS_MASKED

// What the loss holds besides features and their gradients; see contrastive_loss() of clipc/math/loss.h,
// which this computes in the same passes.
typedef struct {
    int tile;                            // rows of logits held at a time
    float *logits;                       // (tile,pairs)
    float *row_lse, *column_lse, *share; // (pairs); column_lse: the running maximum until all rows are seen
    double *column_sum, *right;          // (pairs)
    double *row_loss, *row_dot;          // (pairs)
    double *totals;                      // (2) loss, gradient by logit_scale
    uint64_t *keys;                      // (pairs)
} LossScratch;

// Row i0 + blockIdx.x: pairs that are left out, log-sum-exp, and the mean of its right answers' logits.
__global__ void loss_rows_kernel(float *row_lse, double *right, float *share, float *logits,
    const uint64_t *keys, Positives positives, int i0, int n) {
    SHARED_ARRAY(double, sums); // (32)
    const int i = i0 + blockIdx.x;
    float *row = logits + (size_t)blockIdx.x * n, max = -INFINITY, sum = 0;
    double answers = 0, count = 0;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const bool equal = i == j || (keys && positives != POSITIVES_DIAGONAL && keys[i] == keys[j]);
        if (equal && i != j && positives == POSITIVES_MASK) row[j] = LOSS_MASKED;
        else if (equal) {
            answers += row[j];
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
    answers = block_sum(answers, sums);
    count = block_sum(count, sums);
    if (threadIdx.x) return;
    row_lse[i] = most + (float)log(total);
    share[i] = (float)(1 / count);
    right[i] = answers / count;
}

// Maximum and sum of e^(x - maximum) of each column, continued by the m rows of a tile.
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

// column_lse from maximum and sum, and what each pair adds to the loss: T is symmetric, rows and columns
// share `right`
__global__ void loss_pairs_kernel(double *row_loss, float *column_lse, const double *column_sum,
    const float *row_lse, const double *right, int n) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    column_lse[j] += (float)log(column_sum[j]);
    row_loss[j] = 0.5 * ((double)row_lse[j] + column_lse[j] - 2 * right[j]) / n;
}

// *total = the sum of x (n), by one block
__global__ void total_kernel(double *total, const double *x, size_t n) {
    SHARED_ARRAY(double, sums); // (32)
    double sum = 0;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) *total = sum;
}

// A row of logits becomes that of their gradients, (softmax over the row + softmax over the column - 2 T) /
// 2n
__global__ void loss_gradient_kernel(float *logits, double *row_dot, const float *row_lse,
    const float *column_lse, const float *share, const double *right, const uint64_t *keys,
    Positives positives, int i0, int n) {
    SHARED_ARRAY(double, sums); // (32)
    const int i = i0 + blockIdx.x;
    float *row = logits + (size_t)blockIdx.x * n;
    double dot = 0;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float x = row[j];
        const float g = (expf(x - row_lse[i]) + expf(x - column_lse[j])) * (0.5f / (float)n);
        const bool answer = i == j || (positives == POSITIVES_SOFT && keys[i] == keys[j]);
        dot += (double)g * x;
        row[j] = answer ? g - share[i] / (float)n : g;
    }
    dot = block_sum(dot, sums);
    if (threadIdx.x == 0) row_dot[i] = dot - right[i] / n;
}

// The loss of contrastive_loss() in clipc/math/loss.h: features, keys and gradients on the GPU, keys NULL
// only with POSITIVES_DIAGONAL. Waits for the result.
static inline double contrastive_loss(const Gpu *k, float *dimage, float *dtext, double *dlogit_scale,
    const LossScratch *t, const float *image, const float *text, const uint64_t *keys, Positives positives,
    int n, int E, float scale) {
    const int tile = n < t->tile ? n : t->tile;
    const size_t shared = 32 * sizeof(double);
    const MatmulEnd<float> set = {NULL, NULL};
    double totals[2] = {0, 0};
    for (int i0 = 0; i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        matmul(&k->matmul, k->stream, t->logits, n, plain(image + (size_t)i0 * E, E), transposed(text, E), m,
            n, E, scale, set, true);
        LAUNCH(loss_rows_kernel, m, 256, shared, k->stream, t->row_lse, t->right, t->share, t->logits, keys,
            positives, i0, n);
        LAUNCH(loss_columns_kernel, blocks_for(n, 32), dim3(32, 8), 2 * 256 * sizeof(float), k->stream,
            t->column_lse, t->column_sum, t->logits, m, n, i0 == 0);
    }
    LAUNCH(loss_pairs_kernel, blocks_for(n, 256), 256, 0, k->stream, t->row_loss, t->column_lse,
        t->column_sum, t->row_lse, t->right, n);
    LAUNCH(total_kernel, 1, 1024, shared, k->stream, t->totals, t->row_loss, (size_t)n);
    for (int i0 = 0; dimage && i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        const MatmulEnd<float> add = {NULL, i0 ? dtext : NULL};
        if (n > tile) { // else they are still there
            matmul(&k->matmul, k->stream, t->logits, n, plain(image + (size_t)i0 * E, E), transposed(text, E),
                m, n, E, scale, set, true);
            LAUNCH(loss_rows_kernel, m, 256, shared, k->stream, t->row_lse, t->right, t->share, t->logits,
                keys, positives, i0, n);
        }
        LAUNCH(loss_gradient_kernel, m, 256, shared, k->stream, t->logits, t->row_dot, t->row_lse,
            t->column_lse, t->share, t->right, keys, positives, i0, n);
        matmul(&k->matmul, k->stream, dimage + (size_t)i0 * E, E, plain(t->logits, n), plain(text, E), m, E,
            n, scale, set, true);
        matmul(&k->matmul, k->stream, dtext, E, transposed(t->logits, n), plain(image + (size_t)i0 * E, E), n,
            E, m, scale, add, true);
    }
    if (dimage) LAUNCH(total_kernel, 1, 1024, shared, k->stream, t->totals + 1, t->row_dot, (size_t)n);
    CUDA_CHECK(cudaMemcpyAsync(
        totals, t->totals, (dimage ? 2 : 1) * sizeof *totals, cudaMemcpyDeviceToHost, k->stream));
    CUDA_CHECK(cudaStreamSynchronize(k->stream));
    if (dimage)
        *dlogit_scale = totals[1]; // logits = exp(logit_scale) * cosine, so d logits / d logit_scale = logits
    return totals[0];
}

#endif
