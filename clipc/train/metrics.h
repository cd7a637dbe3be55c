// What features are worth: zero-shot classification (a class is the mean of its captions' features) and
// retrieval (at which rank each image finds one of its captions, and each caption its image).
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

// Images and captions, and which are right for each other: those of one group, a number from 0 on. Every
// group has at least one image and one caption. Of COCO's and Flickr30k's images each is a group with its
// captions.
typedef struct {
    const float *image, *text;           // (M,E), (N,E)
    const int *image_group, *text_group; // (M), (N)
    int M, N, E;
} RetrievalSet;

// For each of a number of queries the member of its group that is found first: the one with the highest
// score, in a tie the lowest index; NaN only where there is no other.
typedef struct {
    float *score; // (queries)
    int *index;   // (queries) -1: none so far
} Targets;

static inline Targets targets_create(int queries) {
    Targets t = {(float *)malloc_check((size_t)queries * sizeof(float)),
        (int *)malloc_check((size_t)queries * sizeof(int))};
    for (int i = 0; i < queries; i++) t.index[i] = -1;
    return t;
}

static inline void targets_free(Targets *t) {
    free(t->score);
    free(t->index);
}

// Candidates are offered in the order of their indices.
static inline void targets_offer(Targets *t, int query, float score, int index) {
    const float best = t->score[query];
    if (t->index[query] >= 0 && !(score > best) && !(isnan(best) && !isnan(score))) return;
    t->score[query] = score;
    t->index[query] = index;
}

// order (n) of the items by group; within a group they keep theirs
static inline void order_by_group(int *order, const int *group, int n) {
    int groups = 0;
    for (int i = 0; i < n; i++) groups = group[i] >= groups ? group[i] + 1 : groups;
    int *place = (int *)calloc_check((size_t)groups + 1, sizeof *place);
    for (int i = 0; i < n; i++) place[group[i] + 1]++;
    for (int g = 0; g < groups; g++) place[g + 1] += place[g];
    for (int i = 0; i < n; i++) order[place[group[i]]++] = i;
    free(place);
}

// out (n,E): the rows of x that order names
static inline void pick_rows(float *out, const float *x, const int *order, int n, int E) {
    for (int i = 0; i < n; i++)
        memcpy(out + (size_t)i * (size_t)E, x + (size_t)order[i] * (size_t)E, (size_t)E * sizeof(float));
}

// of_image (M) among the captions, of_text (N) among the images. Images and captions are sorted by group, so
// that only blocks along the diagonal are computed.
static inline void retrieval_targets(
    const Kernels *kernels, Targets *of_image, Targets *of_text, const RetrievalSet *s) {
    enum { BLOCK = 64 };
    const size_t rows = (size_t)BLOCK * (size_t)s->E;
    int *images = (int *)malloc_check((size_t)s->M * sizeof *images); // in the order of their groups
    int *texts = (int *)malloc_check((size_t)s->N * sizeof *texts);
    float *image = (float *)aligned_malloc_check(rows * sizeof(float)); // (BLOCK,E)
    float *text = (float *)aligned_malloc_check(rows * sizeof(float));  // (BLOCK,E)
    float scores[BLOCK * BLOCK];
    order_by_group(images, s->image_group, s->M);
    order_by_group(texts, s->text_group, s->N);
    for (int j = 0, from = 0; j < s->N; j += BLOCK) {
        const int n = (int)min_i64(BLOCK, s->N - j), last = s->text_group[texts[j + n - 1]];
        pick_rows(text, s->text, texts + j, n, s->E);
        while (from < s->M && s->image_group[images[from]] < s->text_group[texts[j]]) from++;
        for (int i = from; i < s->M && s->image_group[images[i]] <= last; i += BLOCK) {
            const int m = (int)min_i64(BLOCK, s->M - i);
            pick_rows(image, s->image, images + i, m, s->E);
            matmul_nt(kernels, scores, image, text, m, n, s->E);
            for (int k = 0; k < m * n; k++) {
                const int row = images[i + k / n], column = texts[j + k % n];
                if (s->image_group[row] != s->text_group[column]) continue;
                targets_offer(of_image, row, scores[k], column);
                targets_offer(of_text, column, scores[k], row);
            }
        }
    }
    free(text);
    free(image);
    free(texts);
    free(images);
}

// Adds to the ranks (M and N) what one block of the score matrix (M,N) contributes: scores (rows,columns),
// whose first entry is at (row, column).
static inline void count_block(int *image_to_text, int *text_to_image, const float *scores,
    const Targets *of_image, const Targets *of_text, int row, int rows, int column, int columns) {
    enum { COLUMNS = 64 }; // that a thread counts at a time, going down the rows: whole cache lines of a row
#pragma omp parallel for
    for (int i = 0; i < rows; i++)
        image_to_text[row + i] += count_ahead(scores + (size_t)i * (size_t)columns, columns,
            of_image->score[row + i], of_image->index[row + i] - column);
#pragma omp parallel for
    for (int first = 0; first < columns; first += COLUMNS) {
        const int last = first + COLUMNS < columns ? first + COLUMNS : columns;
        const float *target = of_text->score + column;
        const int *index = of_text->index + column;
        int *rank = text_to_image + column;
        for (int i = 0; i < rows; i++) {
            const float *score = scores + (size_t)i * (size_t)columns;
            for (int j = first; j < last; j++)
                rank[j] += row + i < index[j] ? !(score[j] < target[j])
                                              : row + i > index[j] && !(score[j] <= target[j]);
        }
    }
}

// The rank at which an image finds the first caption of its group among all captions (M entries), and a
// caption the first image of its group among all images (N entries): rank = #(score > target) + #(score =
// target, index < target's).
//   chunk: the (M,N) scores are computed in blocks of chunk × chunk, which serve both directions; anything
//       below 1 means all at once. Memory is 4 · chunk² bytes.
// The ranks do not depend on chunk: an entry of matmul_nt() depends on its two rows alone, so equal features
// tie in whatever block they meet.
static inline void group_ranks(
    const Kernels *kernels, int *image_to_text, int *text_to_image, const RetrievalSet *s, int chunk) {
    assert(s->M > 0 && s->N > 0 && s->E > 0);
    const int most_rows = chunk < 1 || chunk > s->M ? s->M : chunk;
    const int most_columns = chunk < 1 || chunk > s->N ? s->N : chunk;
    float *scores = (float *)aligned_malloc_check((size_t)most_rows * (size_t)most_columns * sizeof(float));
    Targets of_image = targets_create(s->M), of_text = targets_create(s->N);
    memset(image_to_text, 0, (size_t)s->M * sizeof(int));
    memset(text_to_image, 0, (size_t)s->N * sizeof(int));
    retrieval_targets(kernels, &of_image, &of_text, s);
    for (int i = 0; i < s->M; i++) assert(of_image.index[i] >= 0);
    for (int j = 0; j < s->N; j++) assert(of_text.index[j] >= 0);
    for (int row = 0; row < s->M; row += most_rows) {
        const int rows = (int)min_i64(most_rows, s->M - row);
        for (int column = 0; column < s->N; column += most_columns) {
            const int columns = (int)min_i64(most_columns, s->N - column);
            matmul_nt(kernels, scores, s->image + (size_t)row * (size_t)s->E,
                s->text + (size_t)column * (size_t)s->E, rows, columns, s->E);
            count_block(
                image_to_text, text_to_image, scores, &of_image, &of_text, row, rows, column, columns);
        }
    }
    targets_free(&of_text);
    targets_free(&of_image);
    free(scores);
}

// 0, 1, … N - 1: the groups of N images with one caption each
static inline int *groups_of_pairs(int N) {
    int *group = (int *)malloc_check((size_t)N * sizeof *group);
    for (int i = 0; i < N; i++) group[i] = i;
    return group;
}

// The same for N pairs (N entries each): image i goes with caption i alone.
static inline void retrieval_ranks(const Kernels *kernels, int *image_to_text, int *text_to_image,
    const float *image, const float *text, int N, int E, int chunk) {
    int *group = groups_of_pairs(N);
    const RetrievalSet pairs = {image, text, group, group, N, N, E};
    group_ranks(kernels, image_to_text, text_to_image, &pairs, chunk);
    free(group);
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

// The metrics of `queries` ranks, each among `candidates` (0 … candidates - 1), as open_clip's
// get_clip_metrics defines them.
static inline RankMetrics rank_metrics(const int *ranks, int queries, int candidates) {
    assert(queries > 0 && candidates > 0);
    int *count = (int *)calloc_check((size_t)candidates, sizeof(int)); // how many have this rank
    int below = 0;
    int low = -1, high = -1; // the two middle ranks; the same one where the number of queries is odd
    RankMetrics m = {0, 0, 0, 0, 0};
    for (int i = 0; i < queries; i++) {
        assert(ranks[i] >= 0 && ranks[i] < candidates);
        count[ranks[i]]++;
        m.mean_rank += ranks[i];
    }
    for (int rank = 0; rank < candidates; rank++) {
        below += count[rank];
        if (rank == 0) m.R1 = (double)below / queries;
        if (rank <= 4) m.R5 = (double)below / queries;
        if (rank <= 9) m.R10 = (double)below / queries;
        if (low < 0 && below > (queries - 1) / 2) low = rank;
        if (high < 0 && below > queries / 2) high = rank;
    }
    m.mean_rank = m.mean_rank / queries + 1;
    m.median_rank = (low + high) / 2 + 1;
    free(count);
    return m;
}

// Retrieval in both directions; `chunk` (open_clip's --val-retrieval-chunk-size) as above.
static inline RetrievalMetrics group_metrics(const Kernels *kernels, const RetrievalSet *s, int chunk) {
    int *ranks = (int *)malloc_check(((size_t)s->M + (size_t)s->N) * sizeof(int));
    group_ranks(kernels, ranks, ranks + s->M, s, chunk);
    RetrievalMetrics m = {rank_metrics(ranks, s->M, s->N), rank_metrics(ranks + s->M, s->N, s->M)};
    free(ranks);
    return m;
}

// The same over N pairs.
static inline RetrievalMetrics retrieval_metrics(
    const Kernels *kernels, const float *image, const float *text, int N, int E, int chunk) {
    int *group = groups_of_pairs(N);
    const RetrievalSet pairs = {image, text, group, group, N, N, E};
    const RetrievalMetrics m = group_metrics(kernels, &pairs, chunk);
    free(group);
    return m;
}

// The mean of the six recalls, which papers call mR.
static inline double mean_recall(const RetrievalMetrics *m) {
    const RankMetrics *a = &m->image_to_text, *b = &m->text_to_image;
    return (a->R1 + a->R5 + a->R10 + b->R1 + b->R5 + b->R10) / 6;
}

#endif
