// CLIP's contrastive loss over all pairs of a batch, and its gradients, in tiles: the (n,n) logits are never held as a whole.
#ifndef CLIPC_LOSS_H
#define CLIPC_LOSS_H

#include "clipc/matmul.h" // gemm, Kernels

enum { LOSS_TILE = 256 }; // rows of logits held at a time

// Online log-sum-exp: adds x to a running (max, sum of e^(x - max)).
static inline void logsumexp_add(float *max, double *sum, float x) {
    if (x > *max) *sum = *sum * exp((double)*max - x) + 1, *max = x;
    else *sum += exp((double)x - *max);
}

// loss = 1/2 [CE(s X Yᵀ) + CE(s Y Xᵀ)], mean over rows, pair i is row i of both (Radford et al. 2021, fig. 3; open_clip's ClipLoss).
//   image, text   (n,E) X and Y, L2-normalised
//   scale         s = exp(logit_scale)
//   dimage, dtext (n,E) gradients, overwritten; NULL: the loss only
//   dlogit_scale  gradient by the logarithm of s; NULL with dimage
// Two passes over tiles of LOSS_TILE rows: one for the log-sum-exps of rows and columns, one for the gradients. Logits in fp32,
// sums in double. The same bits for any number of threads.
static inline double contrastive_loss(const Kernels *kernels, float *dimage, float *dtext, double *dlogit_scale, const float *image, const float *text, int n, int E,
                                      float scale) {
    const int tile = n < LOSS_TILE ? n : LOSS_TILE;
    const size_t N = (size_t)n, W = (size_t)E;
    float *logits = (float *)aligned_malloc_check((size_t)tile * N * sizeof(float)); // (tile,n)
    float *scaled = (float *)aligned_malloc_check((size_t)tile * W * sizeof(float)); // (tile,E) s X
    float *row_lse = (float *)malloc_check(N * sizeof(float)), *column_max = (float *)malloc_check(N * sizeof(float)), *diagonal = (float *)malloc_check(N * sizeof(float));
    double *column_sum = (double *)calloc_check(N, sizeof(double)), *row_dot = (double *)malloc_check(N * sizeof(double));
    const TileEnd set = {false, NULL, NULL};
    for (int j = 0; j < n; j++) column_max[j] = -INFINITY;

    double loss = 0, dscale = 0;
    for (int pass = 0; pass < (dimage ? 2 : 1); pass++)
        for (int i0 = 0; i0 < n; i0 += tile) {
            const int m = n - i0 < tile ? n - i0 : tile;
            for (size_t i = 0; i < (size_t)m * W; i++) scaled[i] = scale * image[(size_t)i0 * W + i];
            if (pass == 0 || n > tile) gemm(kernels, logits, N, matrix(scaled, W, 1), matrix(text, 1, W), m, n, E, set);
            if (pass == 0) {
#pragma omp parallel
                {
#pragma omp for schedule(static)
                    for (int i = 0; i < m; i++) {
                        float max = -INFINITY;
                        double sum = 0;
                        for (int j = 0; j < n; j++) logsumexp_add(&max, &sum, logits[(size_t)i * N + j]);
                        row_lse[i0 + i] = max + (float)log(sum), diagonal[i0 + i] = logits[(size_t)i * N + i0 + i];
                    }
#pragma omp for schedule(static)
                    for (int j0 = 0; j0 < n; j0 += 64) // 64 columns at a time: whole cache lines, row after row
                        for (int i = 0; i < m; i++)
                            for (int j = j0; j < n && j < j0 + 64; j++) logsumexp_add(&column_max[j], &column_sum[j], logits[(size_t)i * N + j]);
                }
                if (i0 + m < n) continue;
                for (int j = 0; j < n; j++) { // all rows seen: the loss; column_max becomes the columns' log-sum-exp
                    column_max[j] += (float)log(column_sum[j]);
                    loss += 0.5 * ((double)row_lse[j] - diagonal[j] + column_max[j] - diagonal[j]) / n;
                }
                continue;
            }
            // d loss / d logits = (softmax over the row + softmax over the column - 2 on the diagonal) / 2n, in place of the logits
#pragma omp parallel for schedule(static)
            for (int i = 0; i < m; i++) {
                float *row = logits + (size_t)i * N;
                row_dot[i] = 0;
                for (int j = 0; j < n; j++) {
                    float g = (expf(row[j] - row_lse[i0 + i]) + expf(row[j] - column_max[j]) - (j == i0 + i ? 2.0f : 0.0f)) / (2.0f * (float)n);
                    row_dot[i] += (double)g * row[j];
                    row[j] = g;
                }
            }
            for (int i = 0; i < m; i++) dscale += row_dot[i];
            gemm(kernels, dimage + (size_t)i0 * W, W, matrix(logits, N, 1), matrix(text, W, 1), m, E, n, set);
            const TileEnd add = {i0 > 0, NULL, NULL};
            gemm(kernels, dtext, W, matrix(logits, 1, N), matrix(scaled, W, 1), n, E, m, add);
        }
    if (dimage) {
        for (size_t i = 0; i < N * W; i++) dimage[i] *= scale;
        *dlogit_scale = dscale; // logits = exp(logit_scale) * cosine, so d logits / d logit_scale = logits
    }
    free(logits), free(scaled), free(row_lse), free(column_max), free(diagonal), free(column_sum), free(row_dot);
    return loss;
}

#endif
