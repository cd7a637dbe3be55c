// Metrics of features: ranks, their means, the rank of a label, the zero-shot classifier. With the folder
// golden/model as argument: retrieval.npz and zeroshot.npz instead.
//     test_metrics [GOLDEN/model]
#include "clipc/train/metrics.h"

#include "dev/test/child.h"
#include "dev/test/features.h"
#include "dev/test/npz.h"

// ---------------------------------------------------------------- ranks

enum { N = 53, E = 7 };

// The definition: how many candidates score higher than the target, or as high at a lower index.
static int naive_rank(const float *query, const float *candidates, int index) {
    double target = dot(query, candidates + index * E, E);
    int rank = 0;
    for (int j = 0; j < N; j++) {
        double score = dot(query, candidates + j * E, E);
        rank += score > target || (score == target && j < index);
    }
    return rank;
}

static void test_ranks_match_the_definition_with_ties(const Kernels *kernels) {
    static const int chunks[] = {1, 7, 8, 52, 53, 54, 4096};
    float image[N * E], text[N * E];
    int ranks[2 * N], ties = 0;
    Rand r = rand_for(1, 2, 3);
    for (int i = 0; i < N * E; i++) {
        image[i] = (float)rand_below(&r, 3) - 1;
        text[i] = (float)rand_below(&r, 3) - 1;
    } // small integers: exact sums
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            ties += i != j && dot(image + i * E, text + j * E, E) == dot(image + i * E, text + i * E, E);
    EXPECT(ties > N, "%d ties", ties);
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        retrieval_ranks(kernels, ranks, ranks + N, image, text, N, E, chunks[c]);
        for (int i = 0; i < N; i++) {
            EXPECT(ranks[i] == naive_rank(image + i * E, text, i), "image %d, chunk %d: rank %d", i,
                chunks[c], ranks[i]);
            EXPECT(ranks[N + i] == naive_rank(text + i * E, image, i), "caption %d, chunk %d: rank %d", i,
                chunks[c], ranks[N + i]);
        }
    }
}

// Equal captions have equal features: their scores tie to the bit in whatever block they meet, so the
// chunk size changes nothing.
static void test_ranks_do_not_depend_on_the_chunk(const Kernels *kernels) {
    enum { M = 301, D = 37, KINDS = 20 };
    float *image = (float *)malloc_check(M * D * sizeof(float));
    float *text = (float *)malloc_check(M * D * sizeof(float));
    int whole[2 * M], parts[2 * M];
    fill_normal(image, M * D, 5);
    fill_normal(text, M * D, 6);
    normalise_rows(image, M, D);
    normalise_rows(text, M, D);
    for (int i = KINDS; i < M; i++) memcpy(text + i * D, text + i % KINDS * D, D * sizeof(float));
    retrieval_ranks(kernels, whole, whole + M, image, text, M, D, M);
    for (int chunk = 1; chunk < M; chunk += chunk < 20 ? 1 : 67) {
        retrieval_ranks(kernels, parts, parts + M, image, text, M, D, chunk);
        EXPECT(memcmp(whole, parts, sizeof whole) == 0, "chunk %d", chunk);
    }
    for (int i = KINDS; i < M; i++)
        EXPECT(whole[i] > whole[i - KINDS] || i % KINDS == 0 || whole[i] >= i / KINDS,
            "equal captions before number %d", i);
    free(image);
    free(text);
}

static void test_not_a_number_ranks_last(const Kernels *kernels) {
    float image[N * E], text[N * E];
    int ranks[2 * N];
    fill_normal(image, N * E, 7);
    fill_normal(text, N * E, 8);
    image[10 * E + 3] = NAN;
    retrieval_ranks(kernels, ranks, ranks + N, image, text, N, E, 16);
    EXPECT(ranks[10] == N - 1 && ranks[N + 10] == N - 1, "%d, %d", ranks[10], ranks[N + 10]);
    for (int i = 0; i < N * E; i++) image[i] = text[i] = NAN;
    RetrievalMetrics m = retrieval_metrics(kernels, image, text, N, E, 16);
    EXPECT(m.image_to_text.R10 == 0 && m.text_to_image.R10 == 0, "a broken model finds nothing");
}

static void test_rank_metrics_match_those_by_hand(void) {
    static const int ranks[] = {9, 1, 0, 5, 10, 4, 11, 2, 0, 11, 3, 6}; // sorted: 0 0 1 2 3 4 5 6 9 10 11 11
    static const int odd[] = {3, 0, 4, 1, 4}, one[] = {0};
    RankMetrics m = rank_metrics(ranks, 12, 12);
    EXPECT_CLOSE(m.mean_rank, 62 / 12.0 + 1, 1e-12);
    EXPECT(m.median_rank == 5, "%g: floor((4 + 5) / 2) + 1", m.median_rank);
    EXPECT_CLOSE(m.R1, 2 / 12.0, 1e-12);
    EXPECT_CLOSE(m.R5, 6 / 12.0, 1e-12);
    EXPECT_CLOSE(m.R10, 9 / 12.0, 1e-12);
    m = rank_metrics(odd, 5, 5);
    EXPECT(m.median_rank == 4, "%g", m.median_rank);
    m = rank_metrics(one, 1, 1);
    EXPECT(m.mean_rank == 1 && m.median_rank == 1 && m.R1 == 1 && m.R5 == 1 && m.R10 == 1,
        "one pair is always found");
}

static void rank_a_label_beyond_the_classes(const void *unused) {
    (void)unused;
    const float logits[3] = {1, 2, 3};
    zeroshot_rank(logits, 3, 3);
}

static void rank_nothing(const void *unused) {
    (void)unused;
    int ranks[2];
    retrieval_ranks(kernels_select(), ranks, ranks + 1, NULL, NULL, 0, E, 0);
}

static void measure_a_rank_beyond_the_candidates(const void *unused) {
    (void)unused;
    const int ranks[2] = {0, 2};
    rank_metrics(ranks, 2, 2);
}

static void add_captions_without_templates(const void *unused) {
    (void)unused;
    double sums[E] = {0};
    const float features[E] = {0};
    classifier_add(sums, features, 0, 1, 0, E);
}

static void test_wrong_shapes_and_labels_are_asserted(void) {
    EXPECT_ASSERT(rank_a_label_beyond_the_classes, NULL, "label");
    EXPECT_ASSERT(rank_nothing, NULL, "N > 0");
    EXPECT_ASSERT(measure_a_rank_beyond_the_candidates, NULL, "ranks[i]");
    EXPECT_ASSERT(add_captions_without_templates, NULL, "templates");
}
static void test_rank_of_a_label_puts_ties_and_nan_last(void) {
    static const float logits[] = {1, 7, 3, 7, NAN, 0, -2};
    static const int expected[] = {
        4, 1, 3, 2, 6, 5, 6}; // a NaN comes before every label, and a label that is NaN last
    for (int i = 0; i < 7; i++)
        EXPECT(
            zeroshot_rank(logits, 7, i) == expected[i], "label %d: rank %d", i, zeroshot_rank(logits, 7, i));
}

// ---------------------------------------------------------------- golden arrays

static const float *golden(
    const Npz *npz, const char *prefix, const char *name, const char *dtype, int64_t *count) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const NpzArray *a = npz_find(npz, full);
    if (!a || strcmp(a->dtype, dtype))
        die(EXIT_USAGE, "%s: %s; is the folder whole?", full, a ? "of another type" : "no such array");
    if (count) *count = a->count;
    return (const float *)a->data;
}

static double golden_double(const Npz *npz, const char *prefix, const char *name) {
    return *(const double *)(const void *)golden(npz, prefix, name, "f8", NULL);
}

static const int32_t *golden_ints(const Npz *npz, const char *prefix, const char *name, int64_t *count) {
    return (const int32_t *)(const void *)golden(npz, prefix, name, "i4", count);
}

static void check_rank_metrics(const Npz *npz, const char *prefix, RankMetrics m) {
    EXPECT_CLOSE(m.mean_rank, golden_double(npz, prefix, "_mean_rank"), 1e-12);
    EXPECT_CLOSE(m.median_rank, golden_double(npz, prefix, "_median_rank"), 1e-12);
    EXPECT_CLOSE(m.R1, golden_double(npz, prefix, "_R@1"), 1e-12);
    EXPECT_CLOSE(m.R5, golden_double(npz, prefix, "_R@5"), 1e-12);
    EXPECT_CLOSE(m.R10, golden_double(npz, prefix, "_R@10"), 1e-12);
}

// One case of retrieval.npz, by the part of the names before ".image_features".
static void check_retrieval_case(const Kernels *kernels, const Npz *npz, const char *name) {
    static const char *const directions[] = {"image_to_text", "text_to_image"};
    char prefix[128];
    snprintf(prefix, sizeof prefix, "%s.", name);
    int64_t n, entries;
    const int32_t *expected[2] = {golden_ints(npz, prefix, "image_to_text_rank", &n),
        golden_ints(npz, prefix, "text_to_image_rank", NULL)};
    const float *image = golden(npz, prefix, "image_features", "f4", &entries);
    const float *text = golden(npz, prefix, "text_features", "f4", NULL);
    int *ranks = (int *)malloc_check(2 * (size_t)n * sizeof(int)), D = (int)(entries / n);
    static const int chunks[] = {1, 7, 4096};
    for (int c = 0; c < 3; c++) {
        retrieval_ranks(kernels, ranks, ranks + n, image, text, (int)n, D, chunks[c]);
        for (int i = 0; i < 2 * n; i++) {
            int rank = expected[i / n][i % n];
            EXPECT(ranks[i] == rank, "%s, row %d of %s: rank %d instead of %d", directions[i / n],
                (int)(i % n), name, ranks[i], rank);
        }
        RetrievalMetrics m = retrieval_metrics(kernels, image, text, (int)n, D, chunks[c]);
        for (int d = 0; d < 2; d++) {
            snprintf(prefix, sizeof prefix, "%s.%s", name, directions[d]);
            check_rank_metrics(npz, prefix, d ? m.text_to_image : m.image_to_text);
        }
    }
    free(ranks);
}

static void check_retrieval(const Kernels *kernels, const char *folder) {
    char path[PATH_SIZE], name[100];
    int cases = 0;
    path_format(path, "%s/retrieval.npz", folder);
    Npz npz = npz_read(path);
    for (size_t i = 0; i < npz.count; i++) {
        const char *end = strstr(npz.arrays[i].name, ".image_features");
        if (!end) continue;
        snprintf(name, sizeof name, "%.*s", (int)(end - npz.arrays[i].name), npz.arrays[i].name);
        check_retrieval_case(kernels, &npz, name);
        cases++;
    }
    EXPECT(cases > 0, "%s holds no case", path);
    npz_free(&npz);
}

static void check_zeroshot(const Kernels *kernels, const char *folder) {
    char path[PATH_SIZE];
    int64_t n, C, entries, captions;
    path_format(path, "%s/zeroshot.npz", folder);
    Npz npz = npz_read(path);
    const int32_t *labels = golden_ints(&npz, "", "labels", &n);
    const float *image = golden(&npz, "", "image_features", "f4", &entries);
    const float *templates = golden(&npz, "", "template_embeddings", "f4", &captions);
    int D = (int)(entries / n);
    const float *expected = golden(&npz, "", "classifier", "f4", &C);
    const float *expected_logits = golden(&npz, "", "logits", "f4", NULL);
    C /= D;
    captions /= D;

    double *sums = (double *)calloc_check((size_t)(C * D), sizeof(double));
    float *classifier = (float *)malloc_check((size_t)(C * D) * sizeof(float));
    float *logits = (float *)malloc_check((size_t)(n * C) * sizeof(float));
    for (int64_t first = 0; first < captions; first += 7) // batches that end within a class
        classifier_add(
            sums, templates + first * D, first, (int)min_i64(7, captions - first), (int)(captions / C), D);
    classifier_normalise(classifier, sums, (int)C, D);
    for (int64_t i = 0; i < C * D; i++) EXPECT_CLOSE(classifier[i], expected[i], 1e-6);
    zeroshot_logits(kernels, logits, image, classifier, (int)n, (int)C, D, ZEROSHOT_SCALE);
    for (int64_t i = 0; i < n * C; i++)
        EXPECT(fabs(logits[i] - expected_logits[i]) <= 100 * 1e-6, "%.9g instead of %.9g", logits[i],
            expected_logits[i]);
    int hits1 = 0, hits5 = 0;
    for (int64_t i = 0; i < n; i++) {
        int rank = zeroshot_rank(logits + i * C, (int)C, labels[i]);
        hits1 += rank < 1;
        hits5 += rank < 5;
    }
    EXPECT_CLOSE((double)hits1 / (double)n, golden_double(&npz, "", "top1"), 1e-12);
    EXPECT_CLOSE((double)hits5 / (double)n, golden_double(&npz, "", "top5"), 1e-12);
    free(logits);
    free(classifier);
    free(sums);
    npz_free(&npz);
}

int main(int argc, char **argv) {
    const Kernels *kernels = kernels_select();
    if (argc > 1) {
        RUN(check_retrieval, kernels, argv[1]);
        RUN(check_zeroshot, kernels, argv[1]);
        return test_report();
    }
    RUN(test_wrong_shapes_and_labels_are_asserted); // those with children first: see child.h
    RUN(test_ranks_match_the_definition_with_ties, kernels);
    RUN(test_ranks_do_not_depend_on_the_chunk, kernels);
    RUN(test_not_a_number_ranks_last, kernels);
    RUN(test_rank_metrics_match_those_by_hand);
    RUN(test_rank_of_a_label_puts_ties_and_nan_last);
    return test_report();
}
