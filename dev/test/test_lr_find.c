// The range test: its ramp and where it ends, the reading of curves whose answer is known, and snapshots,
// which restore a model to the bit. test_lr_find.py tests the program on real losses.
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"
#include "clipc/train/lr_range.h"
#include "dev/test/test.h"

static RangeConfig config_of(int64_t steps) {
    const RangeConfig c = {1e-7, 10, steps, false, 0.9, 4};
    return c;
}

// A ramp over losses given by a function of the natural logarithm of the rate.
static RangeCurve ramp(const RangeConfig *config, double (*loss)(double ln_rate), double equal) {
    RangeCurve c = range_create(config);
    while (range_add(&c, loss(log(range_rate(config, (int64_t)c.n))), equal)) {}
    return c;
}

static void test_ramp_goes_from_the_first_to_the_last_rate(void) {
    RangeConfig c = config_of(101);
    EXPECT_CLOSE(range_rate(&c, 0), 1e-7, 1e-15);
    EXPECT(fabs(range_rate(&c, 100) - 10) < 1e-12 && fabs(range_rate(&c, 50) / 1e-3 - 1) < 1e-12, "%g",
        range_rate(&c, 50));
    EXPECT(fabs(range_rate(&c, 13) / range_rate(&c, 12) - pow(1e8, .01)) < 1e-12);
    c.linear = true;
    EXPECT(range_rate(&c, 0) == 1e-7 && fabs(range_rate(&c, 50) - (1e-7 + 10) / 2) < 1e-12);
}

// 0.1 is not exact in binary, so an average of rounded terms would differ from it.
static double constant(double x) {
    (void)x;
    return 0.1;
}

static void test_constant_loss_reads_constant(void) {
    const RangeConfig c = config_of(100);
    RangeCurve r = ramp(&c, constant, 3);
    EXPECT(r.n == 100 && r.stop == RANGE_COMPLETE);
    for (size_t i = 0; i < r.n; i++) EXPECT(r.average[i] == 0.1, "step %zu: %.17g", i, r.average[i]);
    EXPECT(!range_read(&r).fell); // and there is nothing to suggest
    range_free(&r);
}

static double wavy(double x) { return 2 + sin(3 * x) + 0.1 * x; }

// The average is β avg + (1-β) loss over 1 - β^(i+1), as the formula says it.
static void test_running_average_follows_its_formula(void) {
    const RangeConfig c = config_of(57);
    RangeCurve r = ramp(&c, wavy, 3);
    double average = 0;
    for (size_t i = 0; i < r.n; i++) {
        average = 0.9 * average + 0.1 * r.loss[i];
        EXPECT_CLOSE(r.average[i], average / (1 - pow(0.9, (double)i + 1)), 1e-12);
    }
    range_free(&r);
}

static double equal_features; // the loss of equal features, for the batch of the next curve

// Falls from 80% of the ceiling to 60% at 1e-4, and is at the ceiling from 1e-2 on.
static double collapsing(double x) {
    const double ceiling = equal_features;
    const double low = log(1e-6);
    const double best = log(1e-4);
    const double end = log(1e-2);
    return ceiling * (x < low       ? 0.8
                         : x < best ? 0.8 - 0.2 * (x - low) / (best - low)
                         : x < end  ? 0.6 + 0.4 * (x - best) / (end - best)
                                    : 1.0005);
}

static void test_collapse_ends_the_ramp(void) {
    static const int batches[] = {8, 64, 512, 32768};
    for (int k = 0; k < 4; k++) {
        const RangeConfig c = config_of(100);
        equal_features = log(batches[k]);
        RangeCurve r = ramp(&c, collapsing, equal_features);
        size_t first = 0;
        while (first < r.n && r.lr[first] < 0.98e-2) first++;
        EXPECT(r.stop == RANGE_COLLAPSED && r.n <= first + 6,
            "batch %d: stop %d after %zu steps, collapsed at %zu", batches[k], r.stop, r.n, first);
        EXPECT(r.end + 5 == r.n && r.end + 1 >= first, "end %zu", r.end);
        const RangeReading reading = range_read(&r);
        EXPECT(reading.fell && fabs(log(reading.rate[RANGE_MINIMUM] / 1e-5)) < 0.5, "minimum/10 at %g",
            reading.rate[RANGE_MINIMUM]);
        EXPECT(reading.rate[RANGE_STEEPEST] > 1e-6 && reading.rate[RANGE_STEEPEST] < 1e-4, "steepest at %g",
            reading.rate[RANGE_STEEPEST]);
        EXPECT(fabs(log(reading.rate[RANGE_VALLEY] / 1e-5)) < 1, "valley at %g", reading.rate[RANGE_VALLEY]);
        EXPECT(reading.rate[RANGE_SLIDE] < 1e-2, "slide at %g", reading.rate[RANGE_SLIDE]);
        range_free(&r);
    }
}

// Random weights: the loss begins at the ceiling, which is not a collapse; then learning, then the collapse.
static double learning(double x) {
    return equal_features * (x < log(1e-5)      ? 1.002
                                : x < log(1e-3) ? 1.002 - 0.08 * (x - log(1e-5)) / log(100)
                                : x < log(1e-2) ? 1.05
                                                : 1);
}

static void test_a_start_at_chance_is_not_a_collapse(void) {
    const RangeConfig c = config_of(100);
    equal_features = log(64);
    RangeCurve r = ramp(&c, learning, equal_features);
    EXPECT(r.stop == RANGE_COLLAPSED && r.lr[r.n - 1] > 1e-2 && r.lr[r.n - 1] < 0.1, "stop %d at %g", r.stop,
        r.lr[r.n - 1]);
    range_free(&r);
}

// Worse than chance at the start, then all features equal: never better than that. At rates that are too low
// a model comes down to it, too, and learns later, so that the plateau has to be long.
static double sinking(double x) {
    return equal_features * fmax(1.0002, 1.4 - 0.4 * (x - log(1e-7)) / log(1e4));
}

static void test_coming_down_to_chance_is_a_collapse(void) {
    const RangeConfig c = config_of(100);
    equal_features = log(512);
    RangeCurve r = ramp(&c, sinking, equal_features);
    EXPECT(r.stop == RANGE_COLLAPSED && r.lr[r.n - 1] > 0.3 && r.lr[r.n - 1] < 1, "stop %d at %g", r.stop,
        r.lr[r.n - 1]);
    range_free(&r);
}

// A pretrained model at a logit_scale of 100 on pairs that it does not know: the loss begins far above that
// of equal features, comes down to it, and stays; or it learns something before it does.
static double learned; // how far below the loss of equal features it comes, as a share of it
static double from_above(double x) {
    const double start = log(1e-6), plateau = log(1e-3), collapse = log(3e-2);
    const double low = equal_features * (1 - learned);
    return x < start      ? 3 * equal_features
           : x < plateau  ? 3 * equal_features - (3 * equal_features - low) * (x - start) / (plateau - start)
           : x < collapse ? low
                          : 1.0003 * equal_features;
}

static void test_the_plateau_is_no_rate_in_ramps_of_any_length(void) {
    static const int64_t lengths[] = {10, 20, 30, 100, 400, 2000};
    for (int batch = 8; batch <= 512; batch *= 8)
        for (int k = 0; k < 6; k++) {
            const RangeConfig c = config_of(lengths[k]);
            equal_features = log(batch);
            learned = 0.005;
            RangeCurve r = ramp(&c, from_above, equal_features);
            EXPECT(!range_read(&r).learned, "batch %d, %lld steps: %g", batch, (long long)lengths[k],
                range_read(&r).lowest);
            range_free(&r);
            learned = 0.3;
            r = ramp(&c, from_above, equal_features);
            const RangeReading reading = range_read(&r);
            if (lengths[k] > 10)
                EXPECT(reading.learned && reading.rate[RANGE_THIRD] < 3e-2, "batch %d, %lld steps: %g", batch,
                    (long long)lengths[k], reading.rate[RANGE_THIRD]);
            EXPECT(r.lr[r.end - 1] < 6e-2, "batch %d, %lld steps: the plateau begins at %g", batch,
                (long long)lengths[k], r.lr[r.end - 1]);
            range_free(&r);
        }
}

static Rand batch_noise;
static double noise_level;
static double nothing_learned(double x) {
    (void)x;
    return equal_features * (1 + noise_level * rand_normal(&batch_noise));
}
static double something_learned(double x) {
    return nothing_learned(x) - (x < log(1e-5) ? 0 : fmin(0.1, 0.05 * (x - log(1e-5)))) * equal_features;
}

// Of many ramps in which the loss is that of guessing but for noise, a lucky batch or two makes no rate; a
// loss that is a tenth lower makes one.
static void test_noise_is_not_a_rate(void) {
    static const int64_t lengths[] = {20, 100, 400};
    static const double levels[] = {0.01, 0.05, 0.1};
    batch_noise = rand_for(5, 0, 0);
    equal_features = log(64);
    int lucky = 0, found = 0;
    for (int i = 0; i < 900; i++) {
        const RangeConfig c = config_of(lengths[i % 3]);
        noise_level = levels[i / 3 % 3];
        RangeCurve r = ramp(&c, nothing_learned, equal_features);
        lucky += range_read(&r).learned;
        range_free(&r);
        if (noise_level > 0.05) continue;
        r = ramp(&c, something_learned, equal_features);
        found += range_read(&r).learned;
        range_free(&r);
    }
    EXPECT(lucky <= 9, "%d of 900", lucky);
    EXPECT(found >= 450, "%d of 600", found);
}

static double exploding(double x) { return x < log(1e-3) ? 1 : 1 + 50 * (x - log(1e-3)); }
static double not_finite(double x) { return x < log(1e-3) ? 1 : NAN; }

static void test_divergence_and_nan_end_the_ramp(void) {
    const RangeConfig c = config_of(100);
    RangeCurve r = ramp(&c, exploding, 4);
    EXPECT(r.stop == RANGE_DIVERGED && r.average[r.n - 1] > 4 && r.average[r.n - 2] <= 4 && r.end == r.n,
        "stop %d", r.stop);
    range_free(&r);
    r = ramp(&c, not_finite, 4);
    EXPECT(r.stop == RANGE_NOT_FINITE && r.n == 50 && r.lr[49] < 1e-3, "stop %d after %zu", r.stop, r.n);
    range_free(&r);
    r = range_create(&c); // not even a first step
    EXPECT(!range_add(&r, INFINITY, 4) && r.stop == RANGE_NOT_FINITE && r.n == 0 && !range_read(&r).fell);
    range_free(&r);
}

static double parabola(double x) { return 1 + pow(x - log(1e-3), 2) / 100; }
static double step_down(double x) { return 2 - tanh(3 * (x - log(2e-4))); }

// The slope is by the logarithm of the rate: by the rate itself the steepest place of step_down() would be at
// a much lower rate.
static void test_suggestions_by_the_log_of_the_rate(void) {
    RangeConfig c = config_of(401);
    RangeCurve r = ramp(&c, step_down, 10);
    EXPECT(fabs(log(range_read(&r).rate[RANGE_STEEPEST] / 2e-4)) < 0.1, "steepest at %g",
        range_read(&r).rate[RANGE_STEEPEST]);
    range_free(&r);
    c = config_of(200);
    r = ramp(&c, parabola, 10);
    const RangeReading reading = range_read(&r);
    EXPECT(reading.fell && fabs(log(reading.rate[RANGE_MINIMUM] / 1e-4)) < 0.1, "minimum/10 at %g",
        reading.rate[RANGE_MINIMUM]);
    EXPECT_CLOSE(reading.rate[RANGE_THIRD], reading.rate[RANGE_MINIMUM] * 10 / 3, 1e-15);
    EXPECT(fabs(log(reading.rate[RANGE_VALLEY] / sqrt(1e-3 * r.lr[20]))) < 0.2, "valley at %g",
        reading.rate[RANGE_VALLEY]); // from the first tenth on
    EXPECT(reading.noise < 0.02 && reading.dip > 0.5, "noise %g, dip %g", reading.noise, reading.dip);
    range_free(&r);
}

static void test_smoothing_is_centred(void) {
    double line[40], bump[41] = {0}, out[41];
    for (int i = 0; i < 40; i++) line[i] = 3 - 0.5 * i;
    range_smooth(out, line, 40, 4);
    for (int i = 0; i < 40; i++) EXPECT_CLOSE(out[i], line[i], 1e-12); // no lag, not even at the ends
    bump[20] = 1;
    range_smooth(out, bump, 41, 4);
    for (int i = 0; i <= 20; i++)
        EXPECT(out[20 - i] == out[20 + i] && (i == 0 || out[20 + i] <= out[20 + i - 1]), "offset %d", i);
    range_smooth(out, bump, 1, 4);
    EXPECT(out[0] == 0);
}

static void test_valley_ignores_a_bump(void) {
    const double y[] = {9, 9, 8, 7, 7.5, 6, 5, 4, 8, 8, 8};
    EXPECT(range_valley(y, 0, 11) == 3 || range_valley(y, 0, 11) == 4, "%zu",
        range_valley(y, 0, 11)); // 9 8 7 6 5 4: from 0 to 7
    EXPECT(range_valley(y, 8, 11) == 8);
}

static void test_mean_ends_with_the_shortest_pass(void) {
    const RangeConfig c = config_of(100);
    RangeCurve r[2] = {ramp(&c, parabola, 10), ramp(&c, not_finite, 10)};
    RangeCurve mean = range_mean(r, 2);
    EXPECT(mean.n == 50 && mean.stop == RANGE_NOT_FINITE && mean.lr[7] == r[0].lr[7]);
    EXPECT_CLOSE(mean.loss[7], (r[0].loss[7] + 1) / 2, 1e-15);
    for (int k = 0; k < 2; k++) range_free(&r[k]);
    range_free(&mean);
}

// {fell, learned, {steepest, valley, minimum/10, minimum/3, slide}, lowest, equal, dip, noise}
static void test_advice_says_how_sure(void) {
    RangeReading r = {true, true, {4e-4, 6e-5, 3.7e-5, 1.2345e-4, 5e-5}, 1, 2, 0.8, 0.1};
    RangeAdvice a = range_advise(&r, &r, 1, RANGE_PARTIAL);
    EXPECT(
        a.rate == 1.2e-4 && strstr(a.text, "--lr 0.00012 ") && strstr(a.text, "fairly sure"), "%s", a.text);
    r.rate[RANGE_SLIDE] = 9; // has no vote
    r.rate[RANGE_VALLEY] = 1e-4;
    a = range_advise(&r, &r, 1, RANGE_PARTIAL);
    EXPECT(strstr(a.text, "; sure") && strstr(a.text, "0.0001 and 0.0004"), "%s", a.text);
    r.rate[RANGE_STEEPEST] = 1e-6; // 120 times lower
    a = range_advise(&r, &r, 1, RANGE_PARTIAL);
    EXPECT(strstr(a.text, "; unsure"), "%s", a.text);
    r.rate[RANGE_STEEPEST] = 4e-4;
    r.dip = 0.15;
    a = range_advise(&r, &r, 1, RANGE_FULL);
    EXPECT(a.rate == 1.2e-4 && strstr(a.text, "unsure") && strstr(a.text, "--repeats"), "%s", a.text);
    RangeReading passes[2] = {r, r};
    a = range_advise(&r, passes, 2, RANGE_FULL);
    EXPECT(strstr(a.text, "batches differ by 0.1;") && strstr(a.text, "more --repeats"), "%s", a.text);
    r.dip = passes[0].dip = passes[1].dip = 2;
    a = range_advise(&r, passes, 2, RANGE_FROM_SCRATCH);
    EXPECT(a.rate == 1.2e-4 && strstr(a.text, "; sure") && strstr(a.text, "0.0001 and 0.0004"), "%s", a.text);
    passes[1].rate[RANGE_THIRD] = 9e-4;
    a = range_advise(&r, passes, 2, RANGE_FROM_SCRATCH);
    EXPECT(strstr(a.text, "fairly sure") && strstr(a.text, "0.0001 and 0.0009"), "%s", a.text);
    passes[1].learned = false;
    a = range_advise(&r, passes, 2, RANGE_FULL);
    EXPECT(strstr(a.text, "unsure") && strstr(a.text, "a pass alone shows no rate"), "%s", a.text);
    r.learned = false;
    a = range_advise(&r, passes, 2, RANGE_FULL);
    EXPECT(isnan(a.rate) && strstr(a.text, "No rate") && strstr(a.text, "guessing costs 2,"), "%s", a.text);
    r.fell = false;
    a = range_advise(&r, passes, 2, RANGE_ONE_TOWER);
    EXPECT(isnan(a.rate) && strstr(a.text, "No rate") && strstr(a.text, "did not fall"), "%s", a.text);
}

// At random weights the loss may begin above the loss of equal features, come down to it at rates that are
// too low, and fall below it at higher ones.
static double late(double x) {
    return equal_features * (x < log(1e-5)      ? 1.1
                                : x < log(1e-3) ? 1.0001
                                : x < log(1e-2) ? 1 - 0.3 * (x - log(1e-3)) / log(10)
                                                : 1.0002);
}

static void test_a_plateau_before_the_fall_is_no_collapse(void) {
    const RangeConfig c = config_of(100);
    equal_features = log(64);
    RangeCurve r = ramp(&c, late, equal_features);
    const RangeReading reading = range_read(&r);
    EXPECT(r.stop == RANGE_COLLAPSED && r.lr[r.end - 1] > 0.8e-2 && reading.learned, "end at %g, lowest %g",
        r.lr[r.end - 1], reading.lowest);
    EXPECT(reading.rate[RANGE_THIRD] > 1e-3 && reading.rate[RANGE_THIRD] < 4e-3, "%g",
        reading.rate[RANGE_THIRD]);
    range_free(&r);
}

// A closer look has three times the steps, within the ramp that was asked for.
static void test_a_closer_look_stays_within_the_ramp(void) {
    RangeConfig c = config_of(100), closer = range_closer(&c);
    EXPECT(closer.steps == 300 && closer.min_lr == 1e-6 && closer.max_lr == 0.1);
    c.min_lr = 1e-4;
    c.max_lr = 1e-2;
    closer = range_closer(&c);
    EXPECT(closer.steps == 300 && closer.min_lr == 1e-4 && closer.max_lr == 1e-2);
    c.min_lr = 1;
    c.max_lr = 5;
    closer = range_closer(&c);
    EXPECT(closer.steps == 300 && closer.min_lr == 1 && closer.max_lr == 5);
}

// ---------------------------------------------------------------- leaving no trace

enum { B = 6 };

static Clip *small_model(void) {
    ClipConfig c;
    char error[256];
    memset(&c, 0, sizeof c);
    c.embed_dim = 9;
    c.image_size = 13;
    c.patch_size = 4;
    c.image_width = 15;
    c.image_layers = 2;
    c.image_heads = 3;
    c.image_mlp = 21;
    c.ln_pre = 1;
    c.context_length = 7;
    c.vocab_size = 61;
    c.text_width = 10;
    c.text_layers = 1;
    c.text_heads = 2;
    c.text_mlp = 23;
    c.eot_id = 60;
    c.image_ln_eps = c.text_ln_eps = 1e-5f;
    c.std_r = c.std_g = c.std_b = 1;
    EXPECT(config_check(&c, error), "%s", error);
    return clip_create(&c, NULL, 0, 7);
}

static void one_step(Clip *clip, int64_t step) {
    static float images[B * 3 * 13 * 13];
    static int tokens[B * 7];
    Rand r = rand_for(3, (uint64_t)step, 1);
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) images[i] = (float)rand_normal(&r);
    for (int i = 0; i < B * 7; i++)
        tokens[i] = i % 7 == 0 ? 59 : i % 7 == 5 ? 60 : 1 + (int)rand_below(&r, 50);
    ClipBatch b = clip_batch(B);
    AdamW a;
    memset(&a, 0, sizeof a);
    b.images = images;
    b.tokens = tokens;
    a.lr = 0.5;
    a.beta1 = 0.9;
    a.beta2 = 0.98;
    a.eps = 1e-6;
    a.weight_decay = 0.2;
    a.ema_decay = 0.9;
    a.step = step;
    clip_forward(clip, &b, 0, true);
    clip_loss(clip, B, NULL, POSITIVES_DIAGONAL, true);
    clip_backward(clip, &b, 0);
    clip_update(clip, &a);
}

static uint64_t hash_of(const Clip *clip) {
    uint64_t hash = HASH_START;
    float *values = snapshot_scratch(clip);
    for (int arena = ARENA_PARAMETERS; arena <= ARENA_EMA; arena++) {
        if (arena == ARENA_GRADIENTS || (arena == ARENA_EMA && !clip_has_ema(clip))) continue;
        for (int i = 0; i < clip->tensors.count; i++) {
            const Tensor *x = &clip->tensors.list[i];
            if (arena != ARENA_PARAMETERS && !x->trainable) continue;
            clip_read(clip, (ClipArena)arena, x, values);
            hash = hash_bytes(hash, values, x->count * sizeof *values);
        }
    }
    free(values);
    return hash;
}

static void test_model_is_restored_to_the_bit(void) {
    for (int variant = 0; variant < 16; variant++) {
        const bool in_file = variant & 1;
        const bool locked = variant & 2;
        const bool begun = variant & 4;
        const bool ema = variant & 8;
        Clip *clip = small_model();
        if (locked) clip_lock(clip, IMAGE_TOWER, 1);
        const ClipTraining how = {B, ema, false};
        clip_start_training(clip, &how);
        if (begun) {
            one_step(clip, 1);
            one_step(clip, 2);
        }
        const uint64_t before = hash_of(clip);
        ClipSnapshot s = snapshot_take(clip, in_file);
        for (int pass = 0; pass < 2; pass++) {
            one_step(clip, 3);
            EXPECT(hash_of(clip) != before, "variant %d: the step changed nothing", variant);
            snapshot_restore(&s, clip);
            EXPECT(hash_of(clip) == before, "variant %d, pass %d: the model is another one", variant, pass);
        }
        snapshot_free(&s);
        clip_free(clip);
    }
}

static void test_strategy_follows_from_what_trains(void) {
    static const struct {
        int image, text; // unlocked groups; -1: not locked
        RangeStrategy strategy;
    } cases[] = {{-1, -1, RANGE_FULL}, {0, -1, RANGE_ONE_TOWER}, {-1, 0, RANGE_ONE_TOWER},
        {2, -1, RANGE_PARTIAL}, {1, 1, RANGE_PARTIAL}};
    for (int i = 0; i < 5; i++) {
        Clip *clip = small_model();
        if (cases[i].image >= 0) clip_lock(clip, IMAGE_TOWER, cases[i].image);
        if (cases[i].text >= 0) clip_lock(clip, TEXT_TOWER, cases[i].text);
        EXPECT(range_strategy(clip, true) == cases[i].strategy, "case %d", i);
        EXPECT(range_strategy(clip, false) == RANGE_FROM_SCRATCH);
        clip_free(clip);
    }
}

int main(void) {
    RUN(test_ramp_goes_from_the_first_to_the_last_rate);
    RUN(test_constant_loss_reads_constant);
    RUN(test_running_average_follows_its_formula);
    RUN(test_collapse_ends_the_ramp);
    RUN(test_a_start_at_chance_is_not_a_collapse);
    RUN(test_coming_down_to_chance_is_a_collapse);
    RUN(test_the_plateau_is_no_rate_in_ramps_of_any_length);
    RUN(test_noise_is_not_a_rate);
    RUN(test_divergence_and_nan_end_the_ramp);
    RUN(test_suggestions_by_the_log_of_the_rate);
    RUN(test_smoothing_is_centred);
    RUN(test_valley_ignores_a_bump);
    RUN(test_mean_ends_with_the_shortest_pass);
    RUN(test_advice_says_how_sure);
    RUN(test_a_plateau_before_the_fall_is_no_collapse);
    RUN(test_a_closer_look_stays_within_the_ramp);
    RUN(test_model_is_restored_to_the_bit);
    RUN(test_strategy_follows_from_what_trains);
    return test_report();
}
