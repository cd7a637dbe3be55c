// What features are worth: zero-shot classification (a class is the mean of its captions' features) and
// retrieval (at which rank each image finds its caption, and each caption its image).
//
// Features are (N,E) floats, L2-normalised. Ranks count from 0 and follow one rule, open_clip's sort: in a
// tie the lower index comes first, and NaN never helps, so that a broken model scores nothing.
#ifndef CLIPC_METRICS_H
#define CLIPC_METRICS_H

#include "clipc/math/matmul.h" // Kernels, matmul_nt
#include "clipc/base/utils.h"  // malloc_check, min_i64

#include <assert.h>

// How many of n scores come before a target of score `target` at `index`: the larger ones, and the equal ones
// at a lower index. `index` may be outside 0 … n - 1 (the target is in another block). A NaN on either side
// counts against the target; the target itself never counts.
static inline int count_ahead(const float *scores, int n, float target, int index) {
    int ahead = 0, middle = index < 0 ? 0 : index > n ? n : index;
    for (int j = 0; j < middle; j++) ahead += !(scores[j] < target);
    for (int j = index < 0 ? 0 : index + 1; j < n; j++) ahead += !(scores[j] <= target);
    return ahead;
}

// ---------------------------------------------------------------- zero-shot classification

// Radford et al. 2021, section 3.1: the classifier of a class is the mean over several sentences with its
// name, as the text tower encodes them; an image belongs to the class with the largest cosine.

#define ZEROSHOT_SCALE 100 // logits are 100 cosines, as in open_clip; only their order matters

// Adds features (rows,E) of captions to sums (C,E): caption i belongs to class i / templates, and the first
// row is caption `first`.
static inline void classifier_add(
    double *sums, const float *features, int64_t first, int rows, int templates, int E) {
    assert(first >= 0 && rows >= 0 && templates > 0 && E > 0);
    for (int i = 0; i < rows; i++) {
        double *sum = sums + (first + i) / templates * E;
        for (int e = 0; e < E; e++) sum[e] += features[(size_t)i * (size_t)E + (size_t)e];
    }
}

// classifier (C,E): sums (C,E) scaled to unit length, which is the normalised mean over the templates
static inline void classifier_normalise(float *classifier, const double *sums, int C, int E) {
    assert(C > 0 && E > 0);
    for (int c = 0; c < C; c++, sums += E, classifier += E) {
        double square = 0;
        for (int e = 0; e < E; e++) square += sums[e] * sums[e];
        for (int e = 0; e < E; e++) classifier[e] = (float)(sums[e] / sqrt(square));
    }
}

// logits (n,C) = scale * image (n,E) · classifier (C,E)ᵀ
static inline void zeroshot_logits(const Kernels *kernels, float *logits, const float *image,
    const float *classifier, int n, int C, int E, float scale) {
    assert(n > 0 && C > 0 && E > 0);
    matmul_nt(kernels, logits, image, classifier, n, C, E);
    for (size_t i = 0; i < (size_t)n * (size_t)C; i++) logits[i] *= scale;
}

// The rank of a label among C logits; of equal logits the lower class comes first (torch's topk leaves that
// open).
static inline int zeroshot_rank(const float *logits, int C, int label) {
    assert(label >= 0 && label < C);
    return count_ahead(logits, C, logits[label], label);
}

// ---------------------------------------------------------------- retrieval: ranks

// Adds to the ranks (N each) what one block of the score matrix contributes: scores (rows,columns), whose
// first entry is at (row, column); targets (N) is the diagonal of the whole matrix.
static inline void count_block(int *image_to_text, int *text_to_image, const float *scores,
    const float *targets, int row, int rows, int column, int columns) {
    enum { COLUMNS = 64 }; // that a thread counts at a time, going down the rows: whole cache lines of a row
    const int shift = row - column; // the diagonal is where j = i + shift
#pragma omp parallel for
    for (int i = 0; i < rows; i++)
        image_to_text[row + i] +=
            count_ahead(scores + (size_t)i * (size_t)columns, columns, targets[row + i], i + shift);
#pragma omp parallel for
    for (int first = 0; first < columns; first += COLUMNS) {
        int last = first + COLUMNS < columns ? first + COLUMNS : columns;
        for (int i = 0; i < rows; i++) {
            const float *score = scores + (size_t)i * (size_t)columns, *target = targets + column;
            int *rank = text_to_image + column;
            for (int j = first; j < last; j++)
                rank[j] +=
                    i + shift < j ? !(score[j] < target[j]) : i + shift > j && !(score[j] <= target[j]);
        }
    }
}

// The rank at which image i finds caption i among all captions, and caption i finds image i among all images
// (N entries each): rank = #(score > target) + #(score = target, index < target's).
//   image, text (N,E): pair i is row i of both
//   chunk: the (N,N) scores are computed in blocks of chunk × chunk, which serve both directions; anything
//       outside 1 … N means all at once. Memory is 4 · chunk² bytes.
// The ranks do not depend on chunk: an entry of matmul_nt() depends on its two rows alone, so equal features
// tie in whatever block they meet.
static inline void retrieval_ranks(const Kernels *kernels, int *image_to_text, int *text_to_image,
    const float *image, const float *text, int N, int E, int chunk) {
    assert(N > 0 && E > 0);
    if (chunk < 1 || chunk > N) chunk = N;
    const size_t entries = (size_t)chunk * (size_t)chunk;
    float *scores = (float *)aligned_malloc_check(entries * sizeof(float)); // (chunk,chunk)
    float *targets = (float *)malloc_check((size_t)N * sizeof(float));      // (N) the diagonal
    memset(image_to_text, 0, (size_t)N * sizeof(int));
    memset(text_to_image, 0, (size_t)N * sizeof(int));
    for (int row = 0; row < N; row += chunk) {
        int rows = (int)min_i64(chunk, N - row);
        matmul_nt(
            kernels, scores, image + (size_t)row * (size_t)E, text + (size_t)row * (size_t)E, rows, rows, E);
        for (int i = 0; i < rows; i++) targets[row + i] = scores[(size_t)i * (size_t)rows + (size_t)i];
    }
    for (int row = 0; row < N; row += chunk) {
        int rows = (int)min_i64(chunk, N - row);
        for (int column = 0; column < N; column += chunk) {
            int columns = (int)min_i64(chunk, N - column);
            matmul_nt(kernels, scores, image + (size_t)row * (size_t)E, text + (size_t)column * (size_t)E,
                rows, columns, E);
            count_block(image_to_text, text_to_image, scores, targets, row, rows, column, columns);
        }
    }
    free(targets);
    free(scores);
}

// ---------------------------------------------------------------- retrieval: metrics

typedef struct {
    double mean_rank;   // counted from 1
    double median_rank; // floor(median) + 1
    double R1, R5, R10; // share of targets among the first 1, 5, 10
} RankMetrics;

typedef struct {
    RankMetrics image_to_text, text_to_image;
} RetrievalMetrics;

// The metrics of N ranks (each 0 … N - 1), as open_clip's get_clip_metrics defines them.
static inline RankMetrics rank_metrics(const int *ranks, int N) {
    assert(N > 0);
    int *count = (int *)calloc_check((size_t)N, sizeof(int)); // (N) how many have this rank
    int below = 0;
    int low = -1, high = -1; // the two middle ranks; the same one where N is odd
    RankMetrics m = {0, 0, 0, 0, 0};
    for (int i = 0; i < N; i++) {
        assert(ranks[i] >= 0 && ranks[i] < N);
        count[ranks[i]]++;
        m.mean_rank += ranks[i];
    }
    for (int rank = 0; rank < N; rank++) {
        below += count[rank];
        if (rank == 0) m.R1 = (double)below / N;
        if (rank <= 4) m.R5 = (double)below / N;
        if (rank <= 9) m.R10 = (double)below / N;
        if (low < 0 && below > (N - 1) / 2) low = rank;
        if (high < 0 && below > N / 2) high = rank;
    }
    m.mean_rank = m.mean_rank / N + 1;
    m.median_rank = (low + high) / 2 + 1;
    free(count);
    return m;
}

// Retrieval over all N pairs in both directions; `chunk` (open_clip's --val-retrieval-chunk-size) as above.
static inline RetrievalMetrics retrieval_metrics(
    const Kernels *kernels, const float *image, const float *text, int N, int E, int chunk) {
    int *ranks = (int *)malloc_check(2 * (size_t)N * sizeof(int));
    retrieval_ranks(kernels, ranks, ranks + N, image, text, N, E, chunk);
    RetrievalMetrics m = {rank_metrics(ranks, N), rank_metrics(ranks + N, N)};
    free(ranks);
    return m;
}

#endif
