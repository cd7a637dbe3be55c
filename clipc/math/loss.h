// CLIP's contrastive loss over all pairs of a batch, and its gradients. The (n,n) logits are computed tile by
// tile and never held as a whole, so that even 32,768 pairs need only megabytes. doc/clip_loss.md derives it;
// contrastive_loss_plain (plain.h) computes the same with the whole matrix in memory.
#ifndef CLIPC_LOSS_H
#define CLIPC_LOSS_H

#include "clipc/math/matmul.h" // gemm, Kernels
#include "clipc/math/plain.h"  // Positives, contrastive_loss_plain

enum {
    LOSS_TILE = 256,   // rows of logits held at a time
    LOSS_COLUMNS = 256 // columns that a thread takes at a time
};

// The value of a masked logit: e^(this - any log-sum-exp) is 0 in fp32, and products with it stay finite.
static const float LOSS_MASKED = -1e4f;

// The state of both passes over the tiles. T[i][j], the target of logit (i, j), is target_weight[i] for the
// positives of row i, else 0.
typedef struct {
    const Kernels *kernels;
    const float *image, *text; // (n,E)
    const uint64_t *keys;      // (n), or NULL
    Positives positives;
    int n, E, tile;
    float scale;            // exp(logit_scale)
    float *logits, *scaled; // (tile,n), (tile,E): scale * image of the tile's rows
    float *row_lse;         // (n) log-sum-exp of each row
    float *column_lse;      // (n) of each column; its running maximum until all rows are seen
    double *column_sum;     // (n) sum of e^(logit - running maximum)
    float *target_weight;   // (n) 1 / number of positives of the row
    double *target_logit;   // (n) sum over j of T[i][j] logit[i][j]
} ContrastiveLoss;

static inline bool is_positive(const ContrastiveLoss *l, int i, int j) {
    return i == j || (l->positives == POSITIVES_SOFT && l->keys[i] == l->keys[j]);
}

// The columns that can hold positives of row i: its own, with soft targets all.
static inline int first_positive(const ContrastiveLoss *l, int i) {
    return l->positives == POSITIVES_SOFT ? 0 : i;
}
static inline int end_of_positives(const ContrastiveLoss *l, int i) {
    return l->positives == POSITIVES_SOFT ? l->n : i + 1;
}

// Computes the log-sum-exps of the m rows of a tile from i0 on, and updates the columns' running maxima and
// sums.
static inline void loss_reduce_tile(ContrastiveLoss *l, int i0, int m) {
    const int n = l->n;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int i = 0; i < m; i++) {
            const float *row = l->logits + (size_t)i * (size_t)n;
            float max = row[0];
            for (int j = 1; j < n; j++) max = row[j] > max ? row[j] : max;
            l->row_lse[i0 + i] = max + (float)log(l->kernels->sum_exp(row, max, n));
        }
#pragma omp for schedule(static)
        for (int j0 = 0; j0 < n; j0 += LOSS_COLUMNS) {
            const int width = min_int(LOSS_COLUMNS, n - j0);
            float sum[LOSS_COLUMNS] = {0}, before[LOSS_COLUMNS], *max = l->column_lse + j0;
            double *total = l->column_sum + j0;
            memcpy(before, max, (size_t)width * sizeof(float));
            for (int i = 0; i < m; i++) {
                const float *row = l->logits + (size_t)i * (size_t)n + j0;
                for (int j = 0; j < width; j++) max[j] = row[j] > max[j] ? row[j] : max[j];
            }
            for (int i = 0; i < m; i++)
                l->kernels->add_exp(sum, l->logits + (size_t)i * (size_t)n + j0, max, width);
            for (int j = 0; j < width; j++) total[j] = total[j] * exp((double)before[j] - max[j]) + sum[j];
        }
    }
}

// logits (m,n) = scaled (m,E) text (n,E)ᵀ of rows i0 … i0+m-1, where scaled = scale * image
static inline void loss_logits_tile(ContrastiveLoss *l, int i0, int m) {
    const size_t N = (size_t)l->n, E = (size_t)l->E;
    for (size_t i = 0; i < (size_t)m * E; i++) l->scaled[i] = l->scale * l->image[(size_t)i0 * E + i];
    matmul_nt(l->kernels, l->logits, l->scaled, l->text, m, l->n, l->E);
    if (l->positives != POSITIVES_MASK) return;
#pragma omp parallel for schedule(static)
    for (int i = i0; i < i0 + m; i++)
        for (int j = 0; j < l->n; j++)
            if (i != j && l->keys[i] == l->keys[j]) l->logits[(size_t)(i - i0) * N + (size_t)j] = LOSS_MASKED;
}

// Computes target_weight and target_logit of rows i0 … i0+m-1.
static inline void loss_targets_tile(ContrastiveLoss *l, int i0, int m) {
#pragma omp parallel for schedule(static)
    for (int i = i0; i < i0 + m; i++) {
        int count = 0;
        for (int j = first_positive(l, i); j < end_of_positives(l, i); j++) {
            if (!is_positive(l, i, j)) continue;
            l->target_logit[i] += l->logits[(size_t)(i - i0) * (size_t)l->n + (size_t)j];
            count++;
        }
        l->target_weight[i] = 1.0f / (float)count;
        l->target_logit[i] /= count;
    }
}

// First pass: the loss, and the log-sum-exps that the gradients need.
static inline double loss_forward(ContrastiveLoss *l) {
    double loss = 0;
    for (int j = 0; j < l->n; j++) l->column_lse[j] = -INFINITY;
    for (int i0 = 0; i0 < l->n; i0 += l->tile) {
        const int m = min_int(l->tile, l->n - i0);
        loss_logits_tile(l, i0, m);
        loss_reduce_tile(l, i0, m);
        loss_targets_tile(l, i0, m);
    }
    for (int j = 0; j < l->n; j++) {
        l->column_lse[j] += (float)log(l->column_sum[j]);
        // T is symmetric: rows and columns have the same target_logit
        loss += 0.5 * ((double)l->row_lse[j] + l->column_lse[j] - 2 * l->target_logit[j]) / l->n;
    }
    return loss;
}

// Replaces the tile of logits by its gradient, (softmax over the row + softmax over the column - 2 T) / 2n.
// Returns the sum of gradient * logit, the tile's share of the gradient of logit_scale.
static inline double loss_logits_backward(ContrastiveLoss *l, int i0, int m) {
    const int n = l->n;
    double row_dot[LOSS_TILE], dscale = 0;
#pragma omp parallel for schedule(static)
    for (int i = i0; i < i0 + m; i++) {
        float *row = l->logits + (size_t)(i - i0) * (size_t)n;
        const double softmax_dot =
            l->kernels->logit_gradient(row, l->row_lse[i], l->column_lse, 0.5f / (float)n, n);
        row_dot[i - i0] = softmax_dot - l->target_logit[i] / n;
        for (int j = first_positive(l, i); j < end_of_positives(l, i); j++)
            if (is_positive(l, i, j)) row[j] -= l->target_weight[i] / (float)n;
    }
    for (int i = 0; i < m; i++) dscale += row_dot[i];
    return dscale;
}

// Second pass: dimage = scale * dlogits text, dtext = dlogitsᵀ (scale * image). Returns the gradient of
// logit_scale: logits = exp(logit_scale) * cosine, so d logits / d logit_scale = logits.
static inline double loss_backward(ContrastiveLoss *l, float *dimage, float *dtext) {
    const size_t N = (size_t)l->n, E = (size_t)l->E;
    double dscale = 0;
    for (int i0 = 0; i0 < l->n; i0 += l->tile) {
        const int m = min_int(l->tile, l->n - i0);
        if (l->n > l->tile) loss_logits_tile(l, i0, m); // else the only tile is still there
        dscale += loss_logits_backward(l, i0, m);
        gemm(l->kernels, fp32(dimage + (size_t)i0 * E), E, matrix(l->logits, N, 1), matrix(l->text, E, 1), m,
            l->E, l->n, epilogue_of(EPILOGUE_STORE, NULL));
        gemm(l->kernels, fp32(dtext), E, matrix(l->logits, 1, N), matrix(l->scaled, E, 1), l->n, l->E, m,
            epilogue_of(i0 ? EPILOGUE_ADD : EPILOGUE_STORE, NULL));
    }
    for (size_t i = 0; i < N * E; i++) dimage[i] *= l->scale;
    return dscale;
}

// loss = 1/2 [CE(s X Yᵀ) + CE(s Y Xᵀ)], mean over rows, pair i is row i of both (Radford et al. 2021,
// figure 3; open_clip's ClipLoss). Logits in fp32, sums in double; the same bits for any number of threads.
//   image, text   (n,E) X and Y, L2-normalised
//   keys          (n) pairs of equal keys are treated as `positives` says; NULL with POSITIVES_DIAGONAL only
//   scale         s = exp(logit_scale)
//   dimage, dtext (n,E) gradients, overwritten; NULL: the loss only
//   dlogit_scale  gradient of logit_scale, the logarithm of s; NULL if dimage is NULL
static inline double contrastive_loss(const Kernels *kernels, float *dimage, float *dtext,
    double *dlogit_scale, const float *image, const float *text, const uint64_t *keys, Positives positives,
    int n, int E, float scale) {
    assert(n > 0 && E > 0 && image && text && (keys || positives == POSITIVES_DIAGONAL));
    assert(!dimage == !dtext && (!dimage || dlogit_scale));
    if (kernels->plain)
        return contrastive_loss_plain(dimage, dtext, dlogit_scale, image, text, keys, positives, n, E, scale);
    const int tile = min_int(n, LOSS_TILE);
    const size_t N = (size_t)n;
    ContrastiveLoss l = {.kernels = kernels,
        .image = image,
        .text = text,
        .keys = keys,
        .positives = positives,
        .n = n,
        .E = E,
        .tile = tile,
        .scale = scale,
        .logits = NULL,
        .scaled = NULL,
        .row_lse = NULL,
        .column_lse = NULL,
        .column_sum = NULL,
        .target_weight = NULL,
        .target_logit = NULL};
    l.logits = (float *)aligned_malloc_check((size_t)tile * N * sizeof(float));
    l.scaled = (float *)aligned_malloc_check((size_t)tile * (size_t)E * sizeof(float));
    l.row_lse = (float *)malloc_check(N * sizeof(float));
    l.column_lse = (float *)malloc_check(N * sizeof(float));
    l.column_sum = (double *)calloc_check(N, sizeof(double));
    l.target_weight = (float *)malloc_check(N * sizeof(float));
    l.target_logit = (double *)calloc_check(N, sizeof(double));
    const double loss = loss_forward(&l);
    if (dimage) *dlogit_scale = loss_backward(&l, dimage, dtext);
    free(l.logits);
    free(l.scaled);
    free(l.row_lse);
    free(l.column_lse);
    free(l.column_sum);
    free(l.target_weight);
    free(l.target_logit);
    return loss;
}

#endif
