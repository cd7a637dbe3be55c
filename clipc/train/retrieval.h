// Retrieval: at which rank each image finds its caption, and each caption its image, among all pairs of a
// set.
//
// Features are (N,E) floats, L2-normalised; pair i is row i of both.
#ifndef CLIPC_RETRIEVAL_H
#define CLIPC_RETRIEVAL_H

#include "clipc/math/matmul.h" // Kernels, matmul_nt
#include "clipc/base/utils.h"  // malloc_check, min_i64

// ---------------------------------------------------------------- ranks

// How many of n scores come before a target of score `target` at `index` (which may lie outside 0 … n - 1):
// the larger ones, and those as large at a lower index. Written so that a NaN on either side counts against
// the target; the target itself never counts.
static inline int count_ahead(const float *scores, int n, float target, int index) {
    int ahead = 0, middle = index < 0 ? 0 : index > n ? n : index;
    for (int j = 0; j < middle; j++) ahead += !(scores[j] < target);
    for (int j = index < 0 ? 0 : index + 1; j < n; j++) ahead += !(scores[j] <= target);
    return ahead;
}

// Adds to the ranks what one block of the matrix of scores says: rows row … row + rows - 1 by columns column
// … column + columns - 1.
static inline void count_block(int *image_to_text, int *text_to_image, const float *scores,
    const float *targets, int row, int rows, int column, int columns) {
    enum { STRIP = 64 }; // columns that one thread counts at a time, walking down the rows
    int shift = row - column;
#pragma omp parallel for
    for (int i = 0; i < rows; i++)
        image_to_text[row + i] +=
            count_ahead(scores + (size_t)i * (size_t)columns, columns, targets[row + i], i + shift);
#pragma omp parallel for
    for (int first = 0; first < columns; first += STRIP) {
        int last = first + STRIP < columns ? first + STRIP : columns;
        for (int i = 0; i < rows; i++) {
            const float *score = scores + (size_t)i * (size_t)columns, *target = targets + column;
            int *rank = text_to_image + column;
            for (int j = first; j < last; j++)
                rank[j] +=
                    i + shift < j ? !(score[j] < target[j]) : i + shift > j && !(score[j] <= target[j]);
        }
    }
}

// The rank, from 0, at which image i finds caption i among all captions, and caption i image i among all
// images (N entries each). In a tie the lower index comes first, as open_clip's sort has it: rank = #(score >
// target) + #(score = target, index < target's).
//
// The (N,N) scores are made in blocks of chunk × chunk, each serving both directions, so memory is 4 · chunk²
// bytes and the ranks do not depend on chunk: an entry of matmul_nt() depends on its two rows alone, so equal
// features tie wherever they stand.
static inline void retrieval_ranks(const Kernels *kernels, int *image_to_text, int *text_to_image,
    const float *image, const float *text, int N, int E, int chunk) {
    if (chunk < 1 || chunk > N) chunk = N;
    float *scores =
        (float *)aligned_malloc_check((size_t)chunk * (size_t)chunk * sizeof(float)); // (chunk,chunk)
    float *targets = (float *)malloc_check((size_t)N * sizeof(float));                // the diagonal
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

// ---------------------------------------------------------------- metrics

typedef struct {
    double mean_rank;   // counted from 1
    double median_rank; // floor(median) + 1
    double R1, R5, R10; // share of targets among the first 1, 5, 10
} RankMetrics;

typedef struct {
    RankMetrics image_to_text, text_to_image;
} RetrievalMetrics;

// The metrics of N ranks counted from 0, as open_clip's get_clip_metrics states them.
static inline RankMetrics rank_metrics(const int *ranks, int N) {
    int *count = (int *)calloc_check((size_t)N, sizeof(int));
    int below = 0;
    int low = -1;
    int high = -1; // count: of each rank
    RankMetrics m = {0, 0, 0, 0, 0};
    for (int i = 0; i < N; i++) {
        count[ranks[i]]++;
        m.mean_rank += ranks[i];
    }
    for (int rank = 0; rank < N; rank++) {
        below += count[rank];
        if (rank == 0) m.R1 = (double)below / N;
        if (rank <= 4) m.R5 = (double)below / N;
        if (rank <= 9) m.R10 = (double)below / N;
        if (low < 0 && below > (N - 1) / 2) low = rank; // the two middle ranks; the same one where N is odd
        if (high < 0 && below > N / 2) high = rank;
    }
    m.mean_rank = m.mean_rank / N + 1;
    m.median_rank = (low + high) / 2 + 1;
    free(count);
    return m;
}

// Retrieval over all N >= 1 pairs in both directions, `chunk` rows (open_clip's --val-retrieval-chunk-size)
// at a time; 0: all.
static inline RetrievalMetrics retrieval_metrics(
    const Kernels *kernels, const float *image, const float *text, int N, int E, int chunk) {
    int *ranks = (int *)malloc_check(2 * (size_t)N * sizeof(int));
    retrieval_ranks(kernels, ranks, ranks + N, image, text, N, E, chunk);
    RetrievalMetrics m = {rank_metrics(ranks, N), rank_metrics(ranks + N, N)};
    free(ranks);
    return m;
}

#endif
