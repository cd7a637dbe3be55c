// wise_ft's own arithmetic and decisions: lists of α, α by depth, Model Stock's ratio, the search and its
// intervals. Weights against numpy and whole runs of the program are in test_wise_ft.py.
#define main wise_ft_main
#include "wise_ft.c"
#undef main
#include "dev/test/child.h"

static void expect_alphas(const char *text, const char *expected) {
    WiseFt w = {0};
    char got[512] = "";
    alphas_parse(&w, text);
    for (int i = 0; i < w.alpha_count; i++)
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%.17g", i ? " " : "", w.alphas[i]);
    EXPECT_STRING(got, expected);
    free(w.alphas);
}

static void test_alphas_are_parsed_to_the_nearest_double(void) {
    expect_alphas("0.5", "0.5");
    expect_alphas("1, 0 0.25 1", "0 0.25 1");
    expect_alphas("0:1:0.25", "0 0.25 0.5 0.75 1");
    expect_alphas("0,0.5,...,1", "0 0.5 1");
    expect_alphas("0,0.25,…,1", "0 0.25 0.5 0.75 1");
    expect_alphas("0:0.5:0.2", "0 0.20000000000000001 0.40000000000000002");
    WiseFt w = {0};
    alphas_parse(&w, "0:1:0.1");
    for (int i = 0; i <= 10; i++) {
        char text[8];
        snprintf(text, sizeof text, "%.1f", i / 10.0);
        EXPECT(w.alpha_count == 11 && w.alphas[i] == strtod(text, NULL),
            "step %d is not the double nearest to %s", i, text); // 3 * 0.1 is another
    }
    free(w.alphas);
}

// α needs no files, only the configuration and the table of tensors.
static void test_alpha_depends_on_tower_and_depth(void) {
    MergeFile shape;
    MergeFile *members[1] = {&shape};
    memset(&shape, 0, sizeof shape);
    shape.w.config.image_layers = 5;
    shape.w.config.text_layers = 1;
    Merge m = {.kind = MERGE_WISE_FT, .members = members, .count = 1, .alpha = {0.8, {NAN, 0.3}, false, 0}};
    Tensor image = {.tower = IMAGE_TOWER}, text = {.tower = TEXT_TOWER}, scale = {.tower = NO_TOWER};
    EXPECT(merge_alpha(&m, &image) == 0.8 && merge_alpha(&m, &text) == 0.3 && merge_alpha(&m, &scale) == 0.8);
    m.alpha.by_depth = true;
    m.alpha.first_block = 0.5;
    const double expected[7] = {0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8}; // embeddings, five blocks, projection
    for (image.group = 0; image.group < 7; image.group++)
        EXPECT_CLOSE(merge_alpha(&m, &image), expected[image.group], 1e-15);
    EXPECT(merge_alpha(&m, &text) == 0.3 && merge_alpha(&m, &scale) == 0.8,
        "one block has all of it, and so has what is in no tower");
}

// Two runs: t = 2 cos / (1 + cos); N runs whose updates meet at equal angles: t = N cos / (1 + (N-1) cos)
static void test_stock_ratio_follows_the_angle(void) {
    EXPECT_CLOSE(merge_stock_ratio(0.5, 2), 2.0 / 3, 1e-15);
    EXPECT_CLOSE(merge_stock_ratio(1, 4), 1, 1e-15);
    EXPECT_CLOSE(merge_stock_ratio(0.25, 3), 0.5, 1e-15);
    EXPECT(merge_stock_ratio(0, 2) == 0 && merge_stock_ratio(-0.9, 2) == 0 && merge_stock_ratio(-1, 2) == 0);
    const double gram[9] = {4, 3, 0, 0, 9, 0, 0, 0, 0}; // lengths 2, 3 and 0: cosines 1/2, 0, 0
    EXPECT_CLOSE(merge_mean_cosine(gram, 3), 0.5 / 3, 1e-15);
}

static float values[2 * 1000];

// Products are rounded before they are added, whatever the compiler's flags; a fused multiply-add would often
// differ in the last bit.
static void test_products_are_rounded_before_they_are_added(void) {
    MergeFile shape;
    MergeFile *members[1] = {&shape};
    Tensor tensor = {.tower = NO_TOWER};
    memset(&shape, 0, sizeof shape);
    shape.tensors.list = &tensor;
    Merge m = {.kind = MERGE_WISE_FT,
        .base = &shape,
        .members = members,
        .count = 1,
        .alpha = {0.3, {NAN, NAN}, false, 0}};
    MergeScratch s = merge_scratch(2);
    int other = 0;
    for (int i = 0; i < 1000; i++) {
        s.values[i] = values[i] = sinf((float)i);
        s.values[MERGE_CHUNK + (size_t)i] = values[1000 + i] = cosf((float)(3 * i));
    }
    float out[1000];
    merge_combine(&m, 0, out, &s, 1000);
    for (int i = 0; i < 1000; i++) {
        const volatile float a = (float)(1 - 0.3) * values[i], b = (float)0.3 * values[1000 + i];
        const float fused = fmaf((float)0.3, values[1000 + i], a);
        EXPECT(out[i] == a + b, "entry %d", i);
        other += fused != a + b;
    }
    EXPECT(other > 100, "a fused multiply-add would differ in %d entries only", other);
    free(s.sum);
}

// ---------------------------------------------------------------- choosing

enum { SAMPLES = 400 };

// A point with these accuracies on target and shifted set; the samples that are right come first.
static SweepPoint point(double alpha, double target, double shift) {
    SweepPoint p;
    memset(&p, 0, sizeof p);
    p.alpha = alpha;
    p.top1[0] = target;
    p.top1[1] = shift;
    for (int i = 0; i < 2; i++) {
        p.hits[i] = calloc_check(SAMPLES, 1);
        memset(p.hits[i], 1, (size_t)lround(p.top1[i] * SAMPLES));
    }
    return p;
}

static void test_search_closes_in_on_the_best_alpha(void) {
    Sweep s;
    memset(&s, 0, sizeof s);
    s.count = 2;
    s.sets[0].count = s.sets[1].count = SAMPLES;
    SweepPoint points[12] = {point(0, 0.5, 0.5), point(0.5, 0.6, 0.575), point(1, 0.625, 0.45)};
    EXPECT(sweep_best(&s, points, 3, SWEEP_TARGET) == 2 && sweep_best(&s, points, 3, SWEEP_SHIFT) == 1 &&
           sweep_best(&s, points, 3, SWEEP_MEAN) == 1);
    EXPECT_CLOSE(sweep_value(&s, points[1].top1, SWEEP_MEAN), 0.5875, 1e-12);
    EXPECT_CLOSE(sweep_next_alpha(&s, points, 3, SWEEP_SHIFT, 0.01), 0.691, 1e-9);  // equal gaps: above
    EXPECT_CLOSE(sweep_next_alpha(&s, points, 3, SWEEP_TARGET, 0.01), 0.809, 1e-9); // an end has one side
    EXPECT(isnan(sweep_next_alpha(&s, points, 3, SWEEP_TARGET, 0.6)));
    // on a parabola the search closes in on its top
    int count = 3;
    for (int i = 0; i < 3; i++) points[i].top1[0] = 1 - pow(points[i].alpha - 0.317, 2);
    while (count < 12) {
        const double alpha = sweep_next_alpha(&s, points, count, SWEEP_TARGET, 1e-3);
        SweepPoint p = point(alpha, 0, 0);
        p.top1[0] = 1 - pow(alpha - 0.317, 2);
        points[count++] = p;
        qsort(points, (size_t)count, sizeof *points, compare_points);
    }
    EXPECT(fabs(points[sweep_best(&s, points, count, SWEEP_TARGET)].alpha - 0.317) < 0.02, "%g",
        points[sweep_best(&s, points, count, SWEEP_TARGET)].alpha);
    points[0].top1[0] = points[1].top1[0] = points[2].top1[0] = 2;
    points[1].alpha = 0.45;
    EXPECT(sweep_best(&s, points, 3, SWEEP_TARGET) == 1, "of equals the one nearest to the middle");
    for (int i = 0; i < count; i++) sweep_point_free(&points[i]);
}

// The interval of an accuracy p of n samples reaches about 1.96 sqrt(p(1-p)/n) to both sides; a gain that is
// the same in all draws has an interval of width 0.
static void test_bootstrap_intervals_have_the_known_width(void) {
    Sweep s;
    Interval value, gain;
    memset(&s, 0, sizeof s);
    s.count = 2;
    s.sets[0].count = s.sets[1].count = SAMPLES;
    SweepPoint p = point(0.5, 0.6, 0.5), same = point(0, 0.6, 0.5), worse = point(1, 0.5, 0.4);
    sweep_bootstrap(&s, &p, &same, &worse, SWEEP_TARGET, &value, &gain);
    const double half = 1.96 * sqrt(0.6 * 0.4 / SAMPLES);
    EXPECT(value.value == 0.6 && fabs(value.low - (0.6 - half)) < 0.1 * half &&
               fabs(value.high - (0.6 + half)) < 0.1 * half,
        "%g to %g", value.low, value.high);
    EXPECT(
        gain.value == 0 && gain.low == 0 && gain.high == 0, "%g: %g to %g", gain.value, gain.low, gain.high);
    sweep_bootstrap(&s, &p, &worse, &worse, SWEEP_MEAN, &value, &gain);
    EXPECT(fabs(gain.value - 0.1) < 1e-12 && gain.low > 0.07 && gain.low < 0.1 && gain.high > 0.1 &&
               gain.high < 0.13,
        "%g: %g to %g", gain.value, gain.low, gain.high);
    sweep_point_free(&p);
    sweep_point_free(&same);
    sweep_point_free(&worse);
}

// ---------------------------------------------------------------- the plot

static void test_plot_says_what_is_there(void) {
    Sweep s;
    char path[] = "/tmp/test_wise_ft_XXXXXX";
    memset(&s, 0, sizeof s);
    s.count = 2;
    s.sets[0].count = s.sets[1].count = SAMPLES;
    snprintf(s.sets[0].set.name, sizeof s.sets[0].set.name, "photo & <co>");
    snprintf(s.sets[1].set.name, sizeof s.sets[1].set.name, "sketch");
    SweepPoint points[3] = {point(0, 0.5, 0.5), point(0.5, 0.6, 0.575),
        point(1, 0.625, 0)}; // the last has no place on a logit scale
    for (int i = 0; i < 3; i++) alpha_label(points[i].label, points[i].alpha);
    close(mkstemp(path));
    EXPECT(sweep_draw(&s, points, 3, 1, path));
    char *text = file_read_all(path, NULL);
    EXPECT(strstr(text, "best for photo &amp; &lt;co&gt;: α\u00a0=\u00a01, 62.5% (ends 50.0%, 62.5%); best "
                        "for the mean of shifted sets: α\u00a0=\u00a00.5, 57.5% (ends 50.0%, 0.0%)"));
    EXPECT(strstr(text, "chosen: α = 0.5") && !strstr(text, "nan") && !strstr(text, "inf\""));
    free(text);
    unlink(path);
    for (int i = 0; i < 3; i++) sweep_point_free(&points[i]);
}

// ---------------------------------------------------------------- asserts

static void combine_without_a_base(const void *unused) {
    (void)unused;
    Tensor tensor = {.tower = NO_TOWER};
    MergeFile shape = {.tensors = {.list = &tensor, .count = 1}};
    MergeFile *members[1] = {&shape};
    const Merge m = {.kind = MERGE_WISE_FT, .members = members, .count = 1};
    MergeScratch s = merge_scratch(2);
    merge_combine(&m, 0, s.values, &s, 1);
}

static void read_beyond_a_tensor(const void *unused) {
    (void)unused;
    Tensor tensor = {.count = 4};
    float *resized[1] = {NULL}, out[2];
    const MergeFile file = {.tensors = {.list = &tensor, .count = 1}, .resized = resized};
    merge_read(&file, 0, 3, 2, out);
}

static void stock_of_one_run(const void *unused) {
    (void)unused;
    MergeFile file = {0};
    MergeFile *members[1] = {&file};
    double ratio[1];
    const Merge m = {
        .kind = MERGE_MODEL_STOCK, .base = &file, .members = members, .count = 1, .ratio = ratio};
    merge_stock_ratios(&m);
}

static void test_wrong_merges_are_asserted(void) {
    EXPECT_ASSERT(combine_without_a_base, NULL, "");
    EXPECT_ASSERT(read_beyond_a_tensor, NULL, "");
    EXPECT_ASSERT(stock_of_one_run, NULL, "");
}

int main(void) {
    RUN(test_wrong_merges_are_asserted); // before the first parallel region: OpenMP does not survive a fork
    RUN(test_alphas_are_parsed_to_the_nearest_double);
    RUN(test_alpha_depends_on_tower_and_depth);
    RUN(test_stock_ratio_follows_the_angle);
    RUN(test_products_are_rounded_before_they_are_added);
    RUN(test_search_closes_in_on_the_best_alpha);
    RUN(test_bootstrap_intervals_have_the_known_width);
    RUN(test_plot_says_what_is_there);
    return test_report();
}
