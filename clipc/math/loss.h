// CLIP's contrastive loss over all pairs of a batch, and its gradients, in tiles: the (n,n) logits are never
// held as a whole, so that 32,768 pairs need megabytes. With several right answers in a batch: left out of
// the softmax, or joint targets.
#ifndef CLIPC_LOSS_H
#define CLIPC_LOSS_H

#include "clipc/math/matmul.h" // gemm, Kernels

enum { LOSS_TILE = 256, LOSS_STRIP = 256 }; // rows of logits held at a time; columns that a thread takes

// What to do with pairs i != j of equal keys, which are false negatives of each other:
//   DIAGONAL  nothing, as open_clip
//   SOFT      all of them are right, T[i][j] = 1 / their number: soft cross-entropy (UniCL, Yang et al. 2022,
//       eq. 3-5)
//   MASK      they are left out of row and column
typedef enum { POSITIVES_DIAGONAL, POSITIVES_SOFT, POSITIVES_MASK } Positives;

static const float LOSS_MASKED =
    -1e4f; // a logit that is left out: e^(this - any log-sum-exp) is 0 to fp32, and its products stay finite

// Log-sum-exps of the rows in a tile (m,n), and the running ones of the columns: max (n), and sum (n) of e^(x
// - max).
static inline void loss_reduce_tile(const Kernels *kernels, float *row_lse, float *column_max,
    double *column_sum, const float *logits, int m, int n) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int i = 0; i < m; i++) {
            const float *row = logits + (size_t)i * (size_t)n;
            float max = row[0];
            for (int j = 1; j < n; j++) max = row[j] > max ? row[j] : max;
            row_lse[i] = max + (float)log(kernels->sum_exp(row, max, n));
        }
#pragma omp for schedule(static)
        for (int j0 = 0; j0 < n; j0 += LOSS_STRIP) {
            const int width = n - j0 < LOSS_STRIP ? n - j0 : LOSS_STRIP;
            float sum[LOSS_STRIP] = {0}, *max = column_max + j0, before[LOSS_STRIP];
            memcpy(before, max, (size_t)width * sizeof(float));
            for (int i = 0; i < m; i++) {
                const float *row = logits + (size_t)i * (size_t)n + j0;
                for (int j = 0; j < width; j++) max[j] = row[j] > max[j] ? row[j] : max[j];
            }
            for (int i = 0; i < m; i++)
                kernels->add_exp(sum, logits + (size_t)i * (size_t)n + j0, max, width);
            for (int j = 0; j < width; j++)
                column_sum[j0 + j] = column_sum[j0 + j] * exp((double)before[j] - max[j]) + sum[j];
        }
    }
}

// The right answers of row i: itself, with soft targets all of its key.
#define FOR_RIGHT_ANSWERS(i, j)                                 \
    for (int j = soft ? 0 : (i); j < (soft ? n : (i) + 1); j++) \
        if (!soft || keys[i] == keys[j])

// logits (m,n) of rows i0 … i0+m-1, from scaled (m,E) = s X of these rows
static inline void loss_logits_tile(const Kernels *kernels, float *logits, float *scaled, const float *image,
    const float *text, const uint64_t *keys, bool mask, int i0, int m, int n, int E, float scale) {
    const TileEnd set = {false, NULL, NULL, NULL, NULL, false};
    const size_t N = (size_t)n, W = (size_t)E;
    for (size_t i = 0; i < (size_t)m * W; i++) scaled[i] = scale * image[(size_t)i0 * W + i];
    gemm(kernels, fp32(logits), N, matrix(scaled, W, 1), matrix(text, 1, W), m, n, E, set);
    if (!mask) return;
#pragma omp parallel for schedule(static)
    for (int i = i0; i < i0 + m; i++)
        for (int j = 0; j < n; j++)
            if (i != j && keys[i] == keys[j]) logits[(size_t)(i - i0) * N + (size_t)j] = LOSS_MASKED;
}

// loss = 1/2 [CE(s X Yᵀ) + CE(s Y Xᵀ)], mean over rows, pair i is row i of both (Radford et al. 2021, fig. 3;
// open_clip's ClipLoss).
//   image, text   (n,E) X and Y, L2-normalised
//   keys          (n) pairs of equal keys are treated as `positives` says; may be NULL with
//       POSITIVES_DIAGONAL
//   scale         s = exp(logit_scale)
//   dimage, dtext (n,E) gradients, overwritten; NULL: the loss only
//   dlogit_scale  gradient by the logarithm of s; NULL with dimage
// Two passes over tiles of LOSS_TILE rows: one for the log-sum-exps of rows and columns, one for the
// gradients, which are
//   d loss / d logits = (softmax over the row + softmax over the column - 2 T) / 2n
// Logits in fp32, sums in double. The same bits for any number of threads.
static inline double contrastive_loss(const Kernels *kernels, float *dimage, float *dtext,
    double *dlogit_scale, const float *image, const float *text, const uint64_t *keys, Positives positives,
    int n, int E, float scale) {
    const int tile = n < LOSS_TILE ? n : LOSS_TILE;
    const bool soft = positives == POSITIVES_SOFT, mask = positives == POSITIVES_MASK;
    const size_t N = (size_t)n, W = (size_t)E;
    float *logits = (float *)aligned_malloc_check((size_t)tile * N * sizeof(float)); // (tile,n)
    float *scaled = (float *)aligned_malloc_check((size_t)tile * W * sizeof(float)); // (tile,E) s X
    float *row_lse = (float *)malloc_check(N * sizeof(float));
    float *column_lse = (float *)malloc_check(N * sizeof(float));
    float *share = (float *)malloc_check(N * sizeof(float));
    double *column_sum = (double *)calloc_check(N, sizeof(double));
    double *right = (double *)calloc_check(N, sizeof(double)); // right[i]: sum over j of T[i][j] logit[i][j]
    double loss = 0, dscale = 0;
    for (int j = 0; j < n; j++) column_lse[j] = -INFINITY; // the running maximum until all rows are seen
    for (int i0 = 0; i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        loss_logits_tile(kernels, logits, scaled, image, text, keys, mask, i0, m, n, E, scale);
        loss_reduce_tile(kernels, row_lse + i0, column_lse, column_sum, logits, m, n);
#pragma omp parallel for schedule(static)
        for (int i = i0; i < i0 + m; i++) {
            int count = 0;
            FOR_RIGHT_ANSWERS(i, j) {
                right[i] += logits[(size_t)(i - i0) * N + (size_t)j];
                count++;
            }
            share[i] = 1.0f / (float)count;
            right[i] /= count;
        }
    }
    for (int j = 0; j < n; j++) {
        column_lse[j] += (float)log(column_sum[j]);
        loss += 0.5 * ((double)row_lse[j] + column_lse[j] - 2 * right[j]) /
                n; // T is symmetric: rows and columns share `right`
    }
    for (int i0 = 0; dimage && i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        const TileEnd set = {false, NULL, NULL, NULL, NULL, false};
        const TileEnd add = {i0 > 0, NULL, NULL, NULL, NULL, false};
        double row_dot[LOSS_TILE];
        if (n > tile)
            loss_logits_tile(kernels, logits, scaled, image, text, keys, mask, i0, m, n, E,
                scale); // else they are still there
#pragma omp parallel for schedule(static)
        for (int i = i0; i < i0 + m; i++) {
            float *row = logits + (size_t)(i - i0) * N;
            row_dot[i - i0] =
                kernels->logit_gradient(row, row_lse[i], column_lse, 0.5f / (float)n, n) - right[i] / n;
            FOR_RIGHT_ANSWERS(i, j) row[j] -= share[i] / (float)n;
        }
        for (int i = 0; i < m; i++) dscale += row_dot[i];
        gemm(kernels, fp32(dimage + (size_t)i0 * W), W, matrix(logits, N, 1), matrix(text, W, 1), m, E, n,
            set);
        gemm(kernels, fp32(dtext), W, matrix(logits, 1, N), matrix(scaled, W, 1), n, E, m, add);
    }
    for (size_t i = 0; dimage && i < N * W; i++) dimage[i] *= scale;
    if (dimage)
        *dlogit_scale = dscale; // logits = exp(logit_scale) * cosine, so d logits / d logit_scale = logits
    free(logits);
    free(scaled);
    free(row_lse);
    free(column_lse);
    free(share);
    free(column_sum);
    free(right);
    return loss;
}

#endif
