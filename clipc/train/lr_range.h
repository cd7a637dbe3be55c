// The learning-rate range test (Smith 2015): the rate grows step by step, and the loss shows which rates are
// good. In this file: the ramp and where it ends, the reading of its curve, the files, and the test itself on
// a run's model and data, for lr_find and for train_clip --lr auto. The test leaves the model as it was.
#ifndef CLIPC_LR_RANGE_H
#define CLIPC_LR_RANGE_H

#include "clipc/base/plot.h"         // plot_write
#include "clipc/model/checkpoint.h"  // ClipSnapshot
#include "clipc/train/step_loader.h" // StepLoader

// ---------------------------------------------------------------- the ramp

typedef struct {
    double min_lr, max_lr;
    int64_t steps;      // of a whole ramp, 2 or more
    bool linear;        // rates at equal distances (Smith 2015), else at equal ratios
    double smoothing;   // β, the weight of the old value in the running average, 0 … 1; used only to stop
    double stop_factor; // stop where the running average exceeds this many times its lowest value
} RangeConfig;

typedef enum {
    RANGE_COMPLETE,
    RANGE_DIVERGED,   // the loss exceeds stop_factor times its best
    RANGE_COLLAPSED,  // all features are equal
    RANGE_NOT_FINITE, // the loss is NaN or infinite
    RANGE_INTERRUPTED // by Ctrl-C
} RangeStop;

// A loss this close to that of equal features is on the plateau that a collapse leaves; one that is further
// below has learned something.
static const double RANGE_NEAR = 0.01;
static const double RANGE_CLEAR = 0.02;

// The loss of each step before its update, with that step's rate.
typedef struct {
    RangeConfig config;
    double *lr, *loss;  // (config.steps)
    double *average;    // (config.steps) running average of the loss
    double *smooth;     // (config.steps) centred average, from range_read()
    size_t n, end;      // steps with a finite loss; how many of them come before the collapse
    RangeStop stop;     // why the ramp ended
    double best, worst; // lowest and highest running average
    double equal;       // the loss that equal features of all pairs would have
    int64_t near, flat; // consecutive steps whose loss is within 1% and within 0.2% of it
} RangeCurve;

static inline RangeCurve range_create(const RangeConfig *config) {
    RangeCurve c;
    memset(&c, 0, sizeof c);
    c.config = *config;
    c.best = INFINITY;
    const size_t n = (size_t)config->steps;
    c.lr = (double *)calloc_check(4 * n, sizeof *c.lr);
    c.loss = c.lr + n;
    c.average = c.loss + n;
    c.smooth = c.average + n;
    return c;
}

static inline void range_free(RangeCurve *c) { free(c->lr); }

// The rate of step i = 0 … steps-1: min_lr first, max_lr last.
static inline double range_rate(const RangeConfig *c, int64_t i) {
    const double share = c->steps > 1 ? (double)i / (double)(c->steps - 1) : 0;
    return c->linear ? c->min_lr + share * (c->max_lr - c->min_lr)
                     : c->min_lr * pow(c->max_lr / c->min_lr, share);
}

// Was the running average ever clearly away from the loss of equal features? Before that, a loss near it is
// that of weights that know nothing yet, such as random ones, and no collapse.
static inline bool range_left_chance(const RangeCurve *c) {
    return c->best < (1 - RANGE_CLEAR) * c->equal || c->worst > (1 + RANGE_CLEAR) * c->equal;
}

// How many steps at the end are on the plateau.
static inline size_t range_plateau(const RangeCurve *c) {
    size_t n = 0;
    if (!range_left_chance(c)) return 0;
    while (n < c->n && fabs(c->loss[c->n - 1 - n] - c->equal) < RANGE_NEAR * c->equal) n++;
    return n;
}

// Adds the loss of the next step, and the loss that equal features of all pairs would have in it (ln B where
// every other pair is a negative). Returns whether the ramp goes on.
//   The running average is β avg + (1-β) loss, divided by 1 - β^(i+1), in a form in which a constant loss
//   gives exactly that constant.
//   Collapse: when all features have become equal, the loss may still be below stop_factor times the best, so
//   it is detected by its value: a twentieth of the ramp within 1% of it, if the average was clearly below it
//   before; a third of the ramp within 0.2%, if the average only ever came down to it from above, as it does
//   at rates that are too low to learn anything, too.
static inline bool range_add(RangeCurve *c, double loss, double equal) {
    const size_t i = c->n;
    const double beta = c->config.smoothing, old = i ? c->average[i - 1] : 0;
    if (!isfinite(loss)) {
        c->stop = RANGE_NOT_FINITE;
        return false;
    }
    c->lr[i] = range_rate(&c->config, (int64_t)i);
    c->loss[i] = loss;
    c->equal = equal;
    c->average[i] = old + (loss - old) * ((1 - beta) / (1 - pow(beta, (double)i + 1)));
    c->n = c->end = i + 1;
    c->best = fmin(c->best, c->average[i]);
    c->worst = fmax(c->worst, c->average[i]);
    c->end -= range_plateau(c);
    const double distance = fabs(loss - equal);
    c->near = c->best < (1 - RANGE_CLEAR) * equal && distance < RANGE_NEAR * equal ? c->near + 1 : 0;
    c->flat = range_left_chance(c) && distance < 0.002 * equal ? c->flat + 1 : 0;
    if (c->near >= max_i64(3, c->config.steps / 20) || c->flat >= max_i64(3, c->config.steps / 3)) {
        c->stop = RANGE_COLLAPSED;
        return false;
    }
    if (c->average[i] > c->config.stop_factor * c->best) {
        c->stop = RANGE_DIVERGED;
        return false;
    }
    return c->n < (size_t)c->config.steps;
}

// Why the ramp ended, as the end of a sentence.
static inline void range_describe_stop(const RangeCurve *c, char text[160]) {
    const double last = c->n ? c->lr[c->n - 1] : c->config.min_lr;
    switch (c->stop) {
    case RANGE_DIVERGED:
        snprintf(text, 160, "stopped at %.2g: the loss exceeds %g times its lowest value", last,
            c->config.stop_factor);
        break;
    case RANGE_COLLAPSED:
        snprintf(text, 160, "stopped at %.2g: collapsed, all features are equal (loss %.4g)", last, c->equal);
        break;
    case RANGE_NOT_FINITE: snprintf(text, 160, "stopped above %.2g: the loss is not finite", last); break;
    case RANGE_INTERRUPTED: snprintf(text, 160, "interrupted at %.2g", last); break;
    default: snprintf(text, 160, "reached its end, %.2g", last);
    }
}

// The mean of several passes with different data orders, as far as all of them went.
static inline RangeCurve range_mean(const RangeCurve *passes, int count) {
    RangeCurve m = range_create(&passes[0].config);
    m.n = m.end = passes[0].n;
    m.stop = passes[0].stop;
    m.equal = passes[0].equal;
    for (int k = 0; k < count; k++) {
        if (passes[k].n < m.n) {
            m.n = passes[k].n;
            m.stop = passes[k].stop;
            m.equal = passes[k].equal;
        }
        if (passes[k].end < m.end) m.end = passes[k].end;
    }
    for (size_t i = 0; i < m.n; i++) {
        m.lr[i] = passes[0].lr[i];
        for (int k = 0; k < count; k++) {
            m.loss[i] += passes[k].loss[i] / count;
            m.average[i] += passes[k].average[i] / count;
        }
    }
    return m;
}

// ---------------------------------------------------------------- reading the curve

// name, meaning
#define RANGE_SUGGESTIONS(X)                                             \
    X(STEEPEST, "steepest", "where the loss falls fastest")              \
    X(VALLEY, "valley", "middle of the longest fall")                    \
    X(MINIMUM, "minimum/10", "a tenth of the rate with the lowest loss") \
    X(THIRD, "minimum/3", "a third of it")                               \
    X(SLIDE, "slide", "where the slope stops changing, from the right")

#define X(name, text, meaning) RANGE_##name,
enum { RANGE_SUGGESTIONS(X) RANGE_SUGGESTION_COUNT };
#undef X

static inline const char *range_suggestion_name(int suggestion) {
    static const char *const names[] = {
#define X(name, text, meaning) text,
        RANGE_SUGGESTIONS(X)
#undef X
    };
    return names[suggestion];
}

typedef struct {
    bool fell;    // the loss fell before it rose
    bool learned; // to clearly below the loss of equal features; otherwise there is nothing to suggest
    double rate[RANGE_SUGGESTION_COUNT]; // NaN: the curve has no such place
    double lowest, equal;                // the lowest smoothed loss, and that of equal features
    double dip;                          // how far the smoothed loss falls, in nats
    double noise; // standard deviation of the loss around the smoothed loss, up to the minimum
} RangeReading;

// Centred mean over `half` neighbours on each side, fewer at the ends, applied twice: it does not lag.
static inline void range_smooth(double *out, const double *loss, size_t n, size_t half) {
    double *once = (double *)malloc_check(n * sizeof *once);
    for (int pass = 0; pass < 2; pass++) {
        const double *in = pass ? once : loss;
        for (size_t i = 0; i < n; i++) {
            size_t reach = half < i ? half : i;
            if (reach > n - 1 - i) reach = n - 1 - i;
            double sum = 0;
            for (size_t j = i - reach; j <= i + reach; j++) sum += in[j];
            (pass ? out : once)[i] = sum / (double)(2 * reach + 1);
        }
    }
    free(once);
}

// d loss / d ln rate at i; the slope by the rate itself would favour low rates.
static inline double range_slope(const RangeCurve *c, size_t i, size_t n) {
    const size_t a = i ? i - 1 : 0, b = i + 1 < n ? i + 1 : n - 1;
    return (c->smooth[b] - c->smooth[a]) / log(c->lr[b] / c->lr[a]);
}

// The middle of the longest falling subsequence of y[from … n-1], which a bump does not break; of several,
// the first.
static inline size_t range_valley(const double *y, size_t from, size_t n) {
    size_t *length = (size_t *)malloc_check(2 * n * sizeof *length), *start = length + n, best = from;
    for (size_t i = from; i < n; i++) {
        length[i] = 1;
        start[i] = i;
        for (size_t j = from; j < i; j++)
            if (y[j] > y[i] && length[j] + 1 > length[i]) {
                length[i] = length[j] + 1;
                start[i] = start[j];
            }
        if (length[i] > length[best]) best = i;
    }
    const size_t middle = (start[best] + best) / 2;
    free(length);
    return middle;
}

static inline double range_step_slope(const double *y, size_t i, size_t n) {
    const size_t a = i ? i - 1 : 0, b = i + 1 < n ? i + 1 : n - 1;
    return (y[b] - y[a]) / (double)(b - a);
}

// The interval slide rule: a window of 15% of the ramp moves left from the end until the slopes at its two
// sides, in nats per whole ramp, differ by at most 0.5. Returns the left side, or n when the window does not
// fit.
static inline size_t range_slide(const double *y, size_t from, size_t n, int64_t steps) {
    const size_t window = (size_t)max_i64(1, steps * 15 / 100);
    if (n < from + window + 1) return n;
    size_t right = n - 1, found = right - window;
    for (; right >= from + window &&
           fabs(range_step_slope(y, right, n) - range_step_slope(y, right - window, n)) * (double)steps > 0.5;
         right--)
        found = right - window;
    return found;
}

// Standard deviation of the loss around the smoothed loss, at steps from … to.
static inline double range_noise(const RangeCurve *c, size_t from, size_t to) {
    double squares = 0;
    for (size_t i = from; i <= to; i++) squares += (c->loss[i] - c->smooth[i]) * (c->loss[i] - c->smooth[i]);
    return sqrt(squares / (double)(to - from + 1));
}

// Is the smoothed loss at its lowest point below that of equal features by more than RANGE_CLEAR and by four
// standard errors? (Three are not enough for the lowest of many points.) The noise is that of the steps
// around. Smoothing twice over k steps divides its variance by 3/2 k, nearly, and takes 4/(3 k) of it out of
// the distances from the smoothed loss; near the end of the curve there are fewer steps.
static inline bool range_learned(const RangeCurve *c, size_t lowest, size_t half) {
    const size_t last = c->end - 1, around = half > 5 ? 2 * half : 10;
    const size_t from = lowest > around ? lowest - around : 0;
    const size_t reach = last - lowest < half ? last - lowest : half;
    const double noise = range_noise(c, from, lowest + around < last ? lowest + around : last) /
                         sqrt(1 - 4 / (3 * (double)(2 * half + 1)));
    const double error = reach ? noise / sqrt(1.5 * (double)(2 * reach + 1)) : noise;
    return c->smooth[lowest] < c->equal - fmax(RANGE_CLEAR * c->equal, 4 * error);
}

// Smooths the curve and reads it, without its first tenth, which is noise, and without the plateau after a
// collapse.
static inline RangeReading range_read(RangeCurve *c) {
    RangeReading r;
    memset(&r, 0, sizeof r);
    for (int k = 0; k < RANGE_SUGGESTION_COUNT; k++) r.rate[k] = NAN;
    const size_t n = c->end, from = (size_t)c->config.steps / 10;
    const size_t half = (size_t)max_i64(1, c->config.steps / 25);
    if (c->n) range_smooth(c->smooth, c->loss, c->n, half);
    if (n && n < c->n)
        range_smooth(c->smooth, c->loss, n, half); // keeps the collapse out of the steps before it
    if (n < from + 5) return r;
    size_t lowest = from, steepest = from;
    for (size_t i = from; i < n; i++)
        if (c->smooth[i] < c->smooth[lowest]) lowest = i;
    r.lowest = c->smooth[lowest];
    r.equal = c->equal;
    r.fell = lowest != from;
    r.learned = r.fell && range_learned(c, lowest, half);
    if (!r.learned) return r;
    for (size_t i = from; i <= lowest; i++)
        if (range_slope(c, i, n) < range_slope(c, steepest, n)) steepest = i;
    const size_t slide = range_slide(c->smooth, from, n, c->config.steps);
    r.dip = c->smooth[from] - r.lowest;
    r.noise = range_noise(c, from, lowest);
    r.rate[RANGE_STEEPEST] = c->lr[steepest];
    r.rate[RANGE_MINIMUM] = c->lr[lowest] / 10;
    r.rate[RANGE_THIRD] = c->lr[lowest] / 3;
    r.rate[RANGE_VALLEY] = c->lr[range_valley(c->smooth, from, n)];
    if (slide < n) r.rate[RANGE_SLIDE] = c->lr[slide];
    return r;
}

// ---------------------------------------------------------------- the recommendation

// kind, what trains as the sentence names it
#define RANGE_STRATEGIES(X)                         \
    X(FROM_SCRATCH, "training from random weights") \
    X(FULL, "full fine-tuning")                     \
    X(PARTIAL, "partial fine-tuning")               \
    X(ONE_TOWER, "fine-tuning with one tower frozen")

#define X(kind, text) RANGE_##kind,
typedef enum { RANGE_STRATEGIES(X) RANGE_STRATEGY_COUNT } RangeStrategy;
#undef X

static inline RangeStrategy range_strategy(const Clip *clip, bool pretrained) {
    int train[3] = {0, 0, 0}, all[3] = {0, 0, 0};
    if (!pretrained) return RANGE_FROM_SCRATCH;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        all[x->tower]++;
        train[x->tower] += x->trainable;
    }
    if (!train[IMAGE_TOWER] || !train[TEXT_TOWER]) return RANGE_ONE_TOWER;
    return train[IMAGE_TOWER] == all[IMAGE_TOWER] && train[TEXT_TOWER] == all[TEXT_TOWER] ? RANGE_FULL
                                                                                          : RANGE_PARTIAL;
}

// The suggestion to take. Steepest and valley read noise on pretrained weights, and on others that begin
// above the loss of equal features how they come down to it, at rates that are too low; minimum/10 is too low
// as well: measured on CIFAR-10, see doc/learning_rate.md.
enum { RANGE_TAKEN = RANGE_THIRD };

typedef struct {
    double rate;    // rounded to two significant digits; NaN: none
    char text[512]; // the sentence
} RangeAdvice;

// Lowest and highest of the rates that have a say in how certain the recommended one is: those of the mean
// that rest on evidence of their own (slide moves by decades with the noise, minimum/10 and minimum/3 are one
// reading), and the recommended one of each pass; 0 for a pass without a rate, which agrees with nothing.
static inline void range_agreement(
    double *low, double *high, const RangeReading *mean, const RangeReading *passes, int count) {
    static const int votes[] = {RANGE_STEEPEST, RANGE_VALLEY};
    *low = *high = mean->rate[RANGE_TAKEN];
    for (int k = 0; k < 2; k++) {
        *low = fmin(*low, mean->rate[votes[k]]);
        *high = fmax(*high, mean->rate[votes[k]]);
    }
    for (int k = 0; k < count; k++) {
        *low = fmin(*low, passes[k].learned ? passes[k].rate[RANGE_TAKEN] : 0);
        *high = fmax(*high, passes[k].learned ? passes[k].rate[RANGE_TAKEN] : 0);
    }
}

// Why there is no rate, and what to do.
static inline void range_explain_none(char text[512], const RangeReading *r) {
    if (r->fell)
        snprintf(text, 512,
            "No rate: the loss comes down to %.4g, guessing costs %.4g, and the difference is not above the "
            "noise; check that images and captions belong together, give more --num-steps or a larger "
            "--batch-size",
            r->lowest, r->equal);
    else
        snprintf(text, 512,
            "No rate: the loss did not fall before it rose; check that images and captions belong together, "
            "give a lower --min-lr or more --num-steps");
}

// The recommended rate, in one sentence that says how certain it is. `mean` is the reading of the mean curve,
// `passes` (count) are those of the passes.
static inline RangeAdvice range_advise(
    const RangeReading *mean, const RangeReading *passes, int count, RangeStrategy strategy) {
    static const char *const strategies[] = {
#define X(kind, text) text,
        RANGE_STRATEGIES(X)
#undef X
    };
    RangeAdvice a;
    char number[32];
    double low, high;
    memset(&a, 0, sizeof a);
    a.rate = NAN;
    if (!mean->learned) {
        range_explain_none(a.text, mean);
        return a;
    }
    snprintf(number, sizeof number, "%.1e", mean->rate[RANGE_TAKEN]);
    a.rate = strtod(number, NULL);
    range_agreement(&low, &high, mean, passes, count);
    int n = snprintf(a.text, sizeof a.text, "Take --lr %g (%s) for %s; ", a.rate,
        range_suggestion_name(RANGE_TAKEN), strategies[strategy]);
    if (mean->dip < 2 * mean->noise || low == 0)
        snprintf(a.text + n, sizeof a.text - (size_t)n,
            "unsure: the loss falls by %.2g, batches differ by %.2g%s; give more --num-steps or %s",
            mean->dip, mean->noise, low == 0 ? ", a pass alone shows no rate" : "",
            count > 1 ? "more --repeats" : "--repeats 3");
    else
        snprintf(a.text + n, sizeof a.text - (size_t)n,
            "%s: the suggestions%s are between %.2g and %.2g, the loss falls by %.2g while batches differ by "
            "%.2g",
            high <= 5 * low    ? "sure"
            : high <= 50 * low ? "fairly sure"
                               : "unsure",
            count > 1 ? " of all passes" : "", low, high, mean->dip, mean->noise);
    return a;
}

// The curves of the ramps of a test, and what they show.
typedef struct {
    RangeConfig config;
    int count;
    RangeCurve *passes, mean;        // (count)
    RangeReading *readings, reading; // (count) of the passes, and of their mean
    RangeAdvice advice;
} RangeResult;

static inline void range_result_free(RangeResult *r) {
    for (int k = 0; k < r->count; k++) range_free(&r->passes[k]);
    range_free(&r->mean);
    free(r->passes);
    free(r->readings);
}

// ---------------------------------------------------------------- files

// One row for each pass and step (pass 0: the mean of several): pass, step, lr, loss, average (running),
// smoothed (centred).
static inline void range_write_csv(const char *path, const RangeResult *r) {
    SafeFile s;
    safe_file_open(&s, path);
    fputs("pass,step,lr,loss,average,smoothed\n", s.f);
    for (int k = r->count > 1 ? 0 : 1; k <= r->count; k++) {
        const RangeCurve *c = k ? &r->passes[k - 1] : &r->mean;
        for (size_t i = 0; i < c->n; i++)
            fprintf(s.f, "%d,%zu,%.17g,%.17g,%.17g,%.17g\n", k, i, c->lr[i], c->loss[i], c->average[i],
                c->smooth[i]);
    }
    safe_file_commit(&s);
}

// Raw and smoothed loss over the rate with the suggestions; the title names the recommended rate.
static inline bool range_draw(const char *path, const RangeResult *r) {
    char title[128] = "The range test found no rate at which this model learns";
    char stop[160], heading[192], labels[RANGE_SUGGESTION_COUNT][64];
    if (isfinite(r->advice.rate))
        snprintf(title, sizeof title, "The range test recommends a learning rate of %.1e (%s)",
            r->advice.rate, range_suggestion_name(RANGE_TAKEN));
    range_describe_stop(&r->mean, stop);
    snprintf(heading, sizeof heading, "loss (nats); the ramp %s", stop);
    PlotPanel p = plot_panel(heading, "learning rate", r->config.linear ? 0 : PLOT_LOG_X);
    p.height = 300;
    for (int k = 0; k < r->count && k + 1 < PLOT_SERIES; k++)
        plot_line(&p, NULL, r->passes[k].lr, r->passes[k].loss, r->passes[k].n, 0, PLOT_FAINT);
    plot_line(&p, "smoothed", r->mean.lr, r->mean.smooth, r->mean.end, 0, 0);
    for (int k = 0; k < RANGE_SUGGESTION_COUNT; k++) {
        const double rate = r->reading.rate[k];
        if (!isfinite(rate)) continue;
        snprintf(labels[k], sizeof labels[k], "%s %.1e", range_suggestion_name(k), rate);
        plot_mark(&p, rate, labels[k]);
    }
    return plot_write(path, title, &p, 1);
}

// ---------------------------------------------------------------- the test

// The program's optimizer step: train_step() of train_clip.c or train_clip.cu.
typedef double TrainStep(Clip *clip, const StepBatch *batch, const AdamW *adamw, double *norm);

// What a ramp runs on; the model is ready to train.
typedef struct {
    const Options *o;
    Clip *clip;
    const TrainData *data;
    Logger *log;
    TrainStep *step;
} RangeTest;

// The loss of a step's pairs if all features were equal: ln of the pairs that compete in a row, in the mean,
// since equal keys do not compete where they are masked.
static inline double equal_features_loss(const StepLoader *l) {
    const double pairs = step_pairs(&l->batch);
    return log(pairs - (l->batch.positives == POSITIVES_MASK ? step_loader_false_negatives(l) : 0));
}

// One ramp over the training data, in the order of `pass`. Ctrl-C ends it.
static inline void range_pass(const RangeTest *t, RangeCurve *curve, int pass) {
    const int64_t steps = curve->config.steps;
    const double epoch = (double)t->data->steps_per_epoch;
    StepLoader loader;
    step_loader_open(&loader, t->o, t->clip, t->data, NULL, pass);
    bool goes_on = true;
    for (int64_t i = 0; goes_on; i++) {
        if (i % t->data->steps_per_epoch == 0)
            loader_start_epoch(loader.loader, i / t->data->steps_per_epoch, 0);
        const bool loaded = step_loader_next(&loader, i);
        if (loaded) {
            double norm;
            const AdamW adamw = adamw_from(t->o, range_rate(&curve->config, i), t->o->beta1, i);
            const double loss = t->step(t->clip, &loader.batch, &adamw, &norm);
            goes_on = range_add(curve, isfinite(norm) ? loss : NAN, equal_features_loss(&loader));
            const double rate = (double)step_pairs(&loader.batch) / (seconds_now() - loader.start);
            const LogStep line = {i + 1, steps, (double)(i + 1) / epoch, loss, adamw.lr, rate};
            logger_step(t->log, &line, max_i64(1, steps / 10));
        }
        if (!loaded || train_interrupted) {
            curve->stop = RANGE_INTERRUPTED;
            goes_on = false;
        }
    }
    logger_clear_bar(t->log);
    step_loader_free(&loader);
}

// `count` ramps, each from the model as it is now; afterwards it is the same to the bit. False when Ctrl-C
// came. The caller frees the curves.
static inline bool range_test(const RangeTest *t, const RangeConfig *config, RangeCurve *passes, int count) {
    ClipSnapshot before = snapshot_take(t->clip, false);
    bool whole = true;
    for (int k = 0; k < count; k++) {
        passes[k] = range_create(config);
        if (!whole) continue;
        range_pass(t, &passes[k], k);
        snapshot_restore(&before, t->clip);
        whole = passes[k].stop != RANGE_INTERRUPTED;
    }
    snapshot_free(&before);
    return whole;
}

// `count` ramps, read. False when Ctrl-C came. The caller frees the result in any case.
static inline bool range_run(const RangeTest *t, const RangeConfig *config, int count, RangeResult *r) {
    r->config = *config;
    r->count = count;
    r->passes = (RangeCurve *)malloc_check((size_t)count * sizeof *r->passes);
    r->readings = (RangeReading *)malloc_check((size_t)count * sizeof *r->readings);
    const bool whole = range_test(t, config, r->passes, count);
    for (int k = 0; k < count; k++) r->readings[k] = range_read(&r->passes[k]);
    r->mean = range_mean(r->passes, count);
    r->reading = range_read(&r->mean);
    const RangeStrategy strategy = range_strategy(t->clip, t->o->pretrained != NULL);
    r->advice = range_advise(&r->reading, r->readings, count, strategy);
    return whole;
}

// The ramp to take where one shows no rate: the part of it at whose rates models learn, in three times as
// many steps. In fewer, a model that starts above the loss of equal features only comes down to it.
static inline RangeConfig range_closer(const RangeConfig *config) {
    RangeConfig closer = *config;
    const double min_lr = fmax(config->min_lr, 1e-6), max_lr = fmin(config->max_lr, 0.1);
    closer.steps *= 3;
    if (max_lr < 10 * min_lr) return closer;
    closer.min_lr = min_lr;
    closer.max_lr = max_lr;
    return closer;
}

// The range test: `count` ramps, and where they show no rate, once more a closer look. False when Ctrl-C
// came. The caller frees the result in any case.
static inline bool range_find(const RangeTest *t, const RangeConfig *config, int count, RangeResult *r) {
    bool whole = range_run(t, config, count, r);
    if (!whole || r->reading.learned) return whole;
    const RangeConfig closer = range_closer(config);
    logger_print(t->log, "range test   %s", r->advice.text);
    logger_print(t->log, "range test   a closer look: %lld steps from %.2g to %.2g", (long long)closer.steps,
        closer.min_lr, closer.max_lr);
    range_result_free(r);
    return range_run(t, &closer, count, r);
}

// --lr auto: the rate that a range test recommends; its curve goes to FOLDER/lr_find.svg. NaN
// when Ctrl-C came. A ramp without a recommendation ends the program.
static inline double range_find_rate(const RangeTest *t, const char *folder) {
    const RangeConfig config = {1e-7, 10, 100, false, 0.9, 4}; // lr_find's own
    char path[PATH_SIZE], stop[160];
    RangeResult r;
    double rate = NAN;
    logger_print(t->log, "range test   %lld steps from %g to %g; the weights are restored afterwards",
        (long long)config.steps, config.min_lr, config.max_lr);
    if (range_find(t, &config, 1, &r)) {
        range_describe_stop(&r.mean, stop);
        path_format(path, "%s/lr_find.svg", folder);
        if (comm_rank() == 0) range_draw(path, &r);
        if (!isfinite(r.advice.rate))
            die(EXIT_RUNTIME, "--lr auto: %s; or give --lr a number (%s)", r.advice.text, path);
        rate = r.advice.rate;
        logger_print(t->log, "range test   %s; %s", stop, path);
        logger_print(t->log, "rate         %s", r.advice.text);
    }
    range_result_free(&r);
    return rate;
}

#endif
