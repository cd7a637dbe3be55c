// CLIP's contrastive loss over all pairs of a batch, and its gradients. The (n,n) logits are computed tile by
// tile and never held as a whole, so that even 32,768 pairs need only megabytes. doc/clip_loss.md derives it;
// contrastive_loss_plain (plain.h) computes the same with the whole matrix in memory.
//
// Images ask for their texts, then texts for their images: one function does both, with the roles exchanged.
// It takes any rows of the asking side against tiles of the other side. What it computes for a row depends on
// no other row that asks, so the rows can be divided as one likes, and the bits stay the same.
#ifndef CLIPC_LOSS_H
#define CLIPC_LOSS_H

#include "clipc/math/matmul.h" // gemm, Kernels
#include "clipc/math/plain.h"  // Positives, contrastive_loss_plain

enum { LOSS_TILE = 256 }; // rows of the other side that are compared at a time

// The value of a masked logit: e^(this - any log-sum-exp) is 0 in fp32, and products with it stay finite.
static const float LOSS_MASKED = -1e4f;

enum { IMAGES_ASK, TEXTS_ASK }; // the side whose rows are compared with all of the other

// The state of both passes over the tiles. T[i][j], the target of logit (i, j), is 1 / number of positives of
// row i for its positives, else 0; it is symmetric, so that it is the same from both sides.
typedef struct {
    const Kernels *kernels;
    const float *features[2]; // (n,E) images, texts
    const uint64_t *keys;     // (n), or NULL
    Positives positives;
    int n, E;
    float scale;          // exp(logit_scale)
    float *lse[2];        // (n) of each side: log-sum-exps of its logits with all of the other side
    float *target_weight; // (n) 1 / number of positives of the row
    double *target_logit; // (n) sum over j of T[i][j] logit[i][j], i an image
    double *dot;          // (n) sum over j of logit[i][j] and its gradient, i an image
} ContrastiveLoss;

static inline bool is_positive(const ContrastiveLoss *l, int i, int j) {
    return i == j || (l->positives == POSITIVES_SOFT && l->keys[i] == l->keys[j]);
}

// The columns of a tile that can hold positives of row i: its own, with soft targets all.
static inline int first_positive(const ContrastiveLoss *l, int i, int j0) {
    return l->positives == POSITIVES_SOFT ? 0 : max_int(0, i - j0);
}
static inline int end_of_positives(const ContrastiveLoss *l, int i, int j0, int width) {
    return l->positives == POSITIVES_SOFT ? width : min_int(width, i - j0 + 1);
}

// logits (m,width) of rows i0 … i0+m-1 of the asking side with rows j0 … j0+width-1 of the other
static inline void loss_tile(
    const ContrastiveLoss *l, float *logits, int side, int i0, int m, int j0, int width) {
    const size_t E = (size_t)l->E;
    matmul_nt(l->kernels, logits, l->features[side] + (size_t)i0 * E, l->features[!side] + (size_t)j0 * E, m,
        width, l->E);
#pragma omp parallel for schedule(static)
    for (int i = i0; i < i0 + m; i++) {
        float *row = logits + (size_t)(i - i0) * (size_t)width;
        for (int j = 0; j < width; j++) row[j] *= l->scale;
        for (int j = 0; l->positives == POSITIVES_MASK && j < width; j++)
            if (i != j0 + j && l->keys[i] == l->keys[j0 + j]) row[j] = LOSS_MASKED;
    }
}

// Adds a tile to the log-sum-exp of row i: its running maximum *max, and *sum of e^(logit - *max) (the online
// softmax of Milakov and Gimelshein 2018).
static inline void loss_add_row(const Kernels *k, float *max, double *sum, const float *row, int width) {
    const float before = *max;
    for (int j = 0; j < width; j++) *max = row[j] > *max ? row[j] : *max;
    *sum = *sum * exp((double)before - *max) + k->sum_exp(row, *max, width);
}

// Adds the positives of row i that are in a tile to target_logit, and their number to target_weight.
static inline void loss_add_targets(ContrastiveLoss *l, const float *row, int i, int j0, int width) {
    for (int j = first_positive(l, i, j0); j < end_of_positives(l, i, j0, width); j++) {
        if (!is_positive(l, i, j0 + j)) continue;
        l->target_logit[i] += row[j];
        l->target_weight[i]++;
    }
}

// First pass over rows i0 … i0+m-1 of a side: their log-sum-exps, and their targets if images ask.
static inline void loss_forward(ContrastiveLoss *l, int side, int i0, int m) {
    float *logits = (float *)aligned_malloc_check((size_t)m * LOSS_TILE * sizeof(float)), *max = l->lse[side];
    double *sum = (double *)calloc_check((size_t)m, sizeof *sum);
    for (int i = i0; i < i0 + m; i++) max[i] = -INFINITY;
    for (int i = i0; side == IMAGES_ASK && i < i0 + m; i++) l->target_logit[i] = l->target_weight[i] = 0;
    for (int j0 = 0; j0 < l->n; j0 += LOSS_TILE) {
        const int width = min_int(LOSS_TILE, l->n - j0);
        loss_tile(l, logits, side, i0, m, j0, width);
#pragma omp parallel for schedule(static)
        for (int i = i0; i < i0 + m; i++) {
            const float *row = logits + (size_t)(i - i0) * (size_t)width;
            loss_add_row(l->kernels, &max[i], &sum[i - i0], row, width);
            if (side == IMAGES_ASK) loss_add_targets(l, row, i, j0, width);
        }
    }
#pragma omp parallel for schedule(static)
    for (int i = i0; i < i0 + m; i++) {
        max[i] += (float)log(sum[i - i0]);
        if (side == TEXTS_ASK) continue;
        l->target_logit[i] /= l->target_weight[i];
        l->target_weight[i] = 1 / l->target_weight[i];
    }
    free(logits);
    free(sum);
}

// The loss, from the results of the first pass, added in the order of rows.
static inline double loss_sum(const ContrastiveLoss *l) {
    double loss = 0;
    for (int i = 0; i < l->n; i++) // T is symmetric: both sides have the same sum of target logits
        loss += 0.5 * ((double)l->lse[IMAGES_ASK][i] + l->lse[TEXTS_ASK][i] - 2 * l->target_logit[i]) / l->n;
    return loss;
}

// Second pass: the gradients dx (m,E) of rows i0 … i0+m-1 of a side, dx = scale * G other, where G is the
// gradient of the logits, (softmax of the row + softmax of the column - 2 T) / 2n. If images ask: and dot.
static inline void loss_backward(ContrastiveLoss *l, float *dx, int side, int i0, int m) {
    const size_t E = (size_t)l->E;
    const float n = (float)l->n;
    float *logits = (float *)aligned_malloc_check((size_t)m * LOSS_TILE * sizeof(float));
    double *dot = (double *)calloc_check((size_t)m, sizeof *dot);
    for (int j0 = 0; j0 < l->n; j0 += LOSS_TILE) {
        const int width = min_int(LOSS_TILE, l->n - j0);
        loss_tile(l, logits, side, i0, m, j0, width);
#pragma omp parallel for schedule(static)
        for (int i = i0; i < i0 + m; i++) {
            float *row = logits + (size_t)(i - i0) * (size_t)width;
            dot[i - i0] +=
                l->kernels->logit_gradient(row, l->lse[side][i], l->lse[!side] + j0, 0.5f / n, width);
            for (int j = first_positive(l, i, j0); j < end_of_positives(l, i, j0, width); j++)
                if (is_positive(l, i, j0 + j)) row[j] -= l->target_weight[i] / n;
        }
        gemm(l->kernels, fp32(dx), E, matrix(logits, (size_t)width, 1),
            matrix(l->features[!side] + (size_t)j0 * E, E, 1), m, l->E, width,
            epilogue_of(j0 ? EPILOGUE_ADD : EPILOGUE_STORE, NULL));
    }
    for (size_t i = 0; i < (size_t)m * E; i++) dx[i] *= l->scale;
    for (int i = i0; side == IMAGES_ASK && i < i0 + m; i++)
        l->dot[i] = dot[i - i0] - l->target_logit[i] / l->n;
    free(logits);
    free(dot);
}

// loss = 1/2 [CE(s X Yᵀ) + CE(s Y Xᵀ)], mean over rows, pair i is row i of both (Radford et al. 2021,
// figure 3; open_clip's ClipLoss). Logits in fp32, sums in double; the same bits for any number of threads.
//   image, text   (n,E) X and Y, L2-normalised
//   keys          (n) pairs of equal keys are treated as `positives` says; NULL with POSITIVES_DIAGONAL only
//   scale         s = exp(logit_scale)
//   dimage, dtext (n,E) gradients, overwritten; NULL: the loss only
//   dlogit_scale  gradient of logit_scale, the logarithm of s (the derivative of a logit by it is the logit
//                 itself); NULL if dimage is NULL
//   block         0: this process computes all rows; else blocks of so many rows belong to the processes in
//                 turn, n a multiple of block * processes. All call it together, with all features; each gets
//                 the loss, dlogit_scale, and the gradients of its own rows
static inline double contrastive_loss(const Kernels *kernels, float *dimage, float *dtext,
    double *dlogit_scale, const float *image, const float *text, const uint64_t *keys, Positives positives,
    int n, int E, float scale, int block) {
    assert(n > 0 && E > 0 && image && text && (keys || positives == POSITIVES_DIAGONAL));
    assert(!dimage == !dtext && (!dimage || dlogit_scale));
    if (kernels->plain)
        return contrastive_loss_plain(dimage, dtext, dlogit_scale, image, text, keys, positives, n, E, scale);
    const size_t N = (size_t)n;
    double *sums = (double *)malloc_check(2 * N * sizeof *sums);
    float *floats = (float *)malloc_check(3 * N * sizeof *floats), *dfeatures[2] = {dimage, dtext};
    ContrastiveLoss l = {kernels, {image, text}, keys, positives, n, E, scale, {floats, floats + N},
        floats + 2 * N, sums, sums + N};
    const bool shared = block > 0 && comm_size() > 1;
    const int m = shared ? block : n, step = shared ? block * comm_size() : n,
              own = shared ? block * comm_rank() : 0;
    assert(n % step == 0);
    for (int side = 0; side < 2; side++)
        for (int i = own; i < n; i += step) loss_forward(&l, side, i, m);
    for (int side = 0; shared && side < 2; side++) comm_gather_blocks(l.lse[side], sizeof(float), m, n);
    if (shared) comm_gather_blocks(l.target_logit, sizeof(double), m, n);
    const double loss = loss_sum(&l);
    for (int side = 0; dimage && side < 2; side++)
        for (int i = own; i < n; i += step)
            loss_backward(&l, dfeatures[side] + (size_t)i * (size_t)E, side, i, m);
    if (dimage && shared) comm_gather_blocks(l.dot, sizeof(double), m, n);
    if (dimage) *dlogit_scale = 0;
    for (int i = 0; dimage && i < n; i++) *dlogit_scale += l.dot[i];
    free(floats);
    free(sums);
    return loss;
}

#endif
