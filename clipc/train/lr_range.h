// The learning-rate range test (Smith 2015): the rate grows step by step, the loss says which rates are good.
// Here are the ramp, its end, the reading of the curve, its files, and the copy of a model that makes the
// test leave no trace. Taking the steps is the caller's: range_test.h, for lr_find and for train_clip --lr
// auto.
#ifndef CLIPC_LR_RANGE_H
#define CLIPC_LR_RANGE_H

#include "clipc/model/clip.h" // clip_read, clip_write
#include "clipc/base/plot.h"  // plot_write

// ---------------------------------------------------------------- the ramp

typedef struct {
    double min_lr, max_lr;
    int64_t steps;      // of a whole ramp, 2 or more
    bool linear;        // rates at equal distances (Smith 2015), else at equal ratios
    double smoothing;   // weight of the old average in the running one, 0 … 1; only for stopping
    double stop_factor; // stop where the running average is so many times the best one
} RangeConfig;

typedef enum {
    RANGE_COMPLETE,
    RANGE_DIVERGED,
    RANGE_COLLAPSED,
    RANGE_NOT_FINITE,
    RANGE_INTERRUPTED
} RangeStop;

enum { RANGE_COLLAPSE_STEPS = 5, RANGE_FLAT_STEPS = 10, RANGE_STEPS = 100 };
static const double RANGE_MIN_LR = 1e-7, RANGE_MAX_LR = 10, RANGE_SMOOTHING = 0.9,
                    RANGE_STOP_FACTOR = 4; // as the usual range tests

// The loss of each step before its update, with that step's rate.
typedef struct {
    RangeConfig config;
    double *lr, *loss, *average, *smooth; // (config.steps); smooth by range_read()
    size_t n, end;                        // steps with a finite loss; those of them before the collapse
    RangeStop stop;
    double best, worst; // lowest and highest running average
    double equal;       // the loss of equal features
    int near, flat;     // steps in a row within 1% and 0.2% of it
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

// Takes the loss of the next step, and the loss that equal features of all pairs would have in it (ln B where
// every other pair is a negative). Returns whether the ramp goes on.
//   The running average is avg = β avg + (1-β) loss over 1 - β^(i+1), written so that a constant loss reads
//       constant to the bit.
//   Collapse: features that are all equal have a loss which may be less than stop_factor times the best.
//       After a minimum that lies
//   clearly below it, 5 steps within 1% of it end the ramp; where the model was never better than that but
//       came down to it from above,
//   10 steps within 0.2%. A start there, as from random weights, is none.
static inline bool range_add(RangeCurve *c, double loss, double equal) {
    const size_t i = c->n;
    const double beta = c->config.smoothing, old = i ? c->average[i - 1] : 0;
    if (!isfinite(loss)) return c->stop = RANGE_NOT_FINITE, false;
    c->lr[i] = range_rate(&c->config, (int64_t)i);
    c->loss[i] = loss;
    c->equal = equal;
    c->average[i] = old + (loss - old) * ((1 - beta) / (1 - pow(beta, (double)i + 1)));
    c->n = c->end = i + 1;
    c->best = fmin(c->best, c->average[i]);
    c->worst = fmax(c->worst, c->average[i]);
    c->near = c->best < 0.98 * equal && fabs(loss - equal) < 0.01 * equal ? c->near + 1 : 0;
    c->flat = c->worst > 1.02 * equal && fabs(loss - equal) < 0.002 * equal ? c->flat + 1 : 0;
    if (c->near >= RANGE_COLLAPSE_STEPS || c->flat >= RANGE_FLAT_STEPS) {
        c->end -= (size_t)(c->near >= RANGE_COLLAPSE_STEPS ? c->near : c->flat);
        return c->stop = RANGE_COLLAPSED, false;
    }
    if (c->average[i] > c->config.stop_factor * c->best) return c->stop = RANGE_DIVERGED, false;
    return c->n < (size_t)c->config.steps;
}

// Why the ramp ended, for people.
static inline void range_describe_stop(const RangeCurve *c, char text[160]) {
    const double last = c->n ? c->lr[c->n - 1] : c->config.min_lr;
    switch (c->stop) {
    case RANGE_DIVERGED:
        snprintf(
            text, 160, "stopped at %.2g: the loss is above %g times its best", last, c->config.stop_factor);
        break;
    case RANGE_COLLAPSED:
        snprintf(text, 160, "stopped at %.2g: collapsed, all features are equal (loss %.4g)", last, c->equal);
        break;
    case RANGE_NOT_FINITE: snprintf(text, 160, "stopped above %.2g: the loss is not finite", last); break;
    case RANGE_INTERRUPTED: snprintf(text, 160, "interrupted at %.2g", last); break;
    default: snprintf(text, 160, "went on to the end, %.2g", last);
    }
}

// The mean of several passes with different data orders, as far as all of them reached.
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
    bool fell;                           // the loss fell before it rose: there is something to suggest
    double rate[RANGE_SUGGESTION_COUNT]; // NaN: not to be found
    double dip;                          // how far the smoothed loss falls, in nats
    double noise; // standard deviation of the loss around the smoothed one, up to the minimum
} RangeReading;

// Centred mean over `half` neighbours to both sides, fewer at the ends, twice: it lags behind nothing, as a
// running average does.
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

// The slope at i by the natural logarithm of the rate: by the rate itself it would favour low rates.
static inline double range_slope(const RangeCurve *c, size_t i, size_t n) {
    const size_t a = i ? i - 1 : 0, b = i + 1 < n ? i + 1 : n - 1;
    return (c->smooth[b] - c->smooth[a]) / log(c->lr[b] / c->lr[a]);
}

// The middle of the longest falling subsequence of y[from … n-1] (a bump does not break it); the first of
// several.
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

// The interval slide rule: a window of 15% of the ramp moves left from the end, until the slopes at its two
// sides, taken over the whole ramp, differ by no more than half a nat; its left side. n when the window does
// not fit.
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

// Smooths the curve and reads it, without its first tenth (nothing moves there but noise) and what follows a
// collapse.
static inline RangeReading range_read(RangeCurve *c) {
    RangeReading r;
    memset(&r, 0, sizeof r);
    for (int k = 0; k < RANGE_SUGGESTION_COUNT; k++) r.rate[k] = NAN;
    const size_t n = c->end, from = (size_t)c->config.steps / 10;
    if (c->n) range_smooth(c->smooth, c->loss, c->n, (size_t)max_i64(1, c->config.steps / 25));
    if (n && n < c->n)
        range_smooth(c->smooth, c->loss, n,
            (size_t)max_i64(1, c->config.steps / 25)); // the collapse reaches into nothing before it
    if (n < from + 5) return r;
    size_t lowest = from, steepest = from;
    for (size_t i = from; i < n; i++)
        if (c->smooth[i] < c->smooth[lowest]) lowest = i;
    if (lowest == from) return r;
    for (size_t i = from; i <= lowest; i++)
        if (range_slope(c, i, n) < range_slope(c, steepest, n)) steepest = i;
    double squares = 0;
    for (size_t i = from; i <= lowest; i++)
        squares += (c->loss[i] - c->smooth[i]) * (c->loss[i] - c->smooth[i]);
    const size_t slide = range_slide(c->smooth, from, n, c->config.steps);
    r.fell = true;
    r.dip = c->smooth[from] - c->smooth[lowest];
    r.noise = sqrt(squares / (double)(lowest - from + 1));
    r.rate[RANGE_STEEPEST] = c->lr[steepest];
    r.rate[RANGE_MINIMUM] = c->lr[lowest] / 10;
    r.rate[RANGE_THIRD] = c->lr[lowest] / 3;
    r.rate[RANGE_VALLEY] = c->lr[range_valley(c->smooth, from, n)];
    if (slide < n) r.rate[RANGE_SLIDE] = c->lr[slide];
    return r;
}

// ---------------------------------------------------------------- what to take

// kind, what trains, for people, the suggestion to take. Of pretrained weights steepest and valley read noise
// first, and low, and so is minimum/10: measured on CIFAR-10, see doc/learning_rate.md.
#define RANGE_STRATEGIES(X)                                   \
    X(FROM_SCRATCH, "training from random weights", STEEPEST) \
    X(FULL, "full fine-tuning", THIRD)                        \
    X(PARTIAL, "partial fine-tuning", THIRD)                  \
    X(ONE_TOWER, "fine-tuning with one tower frozen", THIRD)

#define X(kind, text, suggestion) RANGE_##kind,
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

typedef struct {
    int suggestion;
    double rate;    // with two significant digits, as one would type it; NaN: none
    char text[512]; // the sentence
} RangeAdvice;

// The recommended rate in one sentence with how sure it is. `mean` is the reading of the mean curve, `passes`
// (count) those of the single ones.
static inline RangeAdvice range_advise(
    const RangeReading *mean, const RangeReading *passes, int count, RangeStrategy strategy) {
    static const int suggestions[] = {
#define X(kind, text, suggestion) RANGE_##suggestion,
        RANGE_STRATEGIES(X)
#undef X
    };
    static const char *const strategies[] = {
#define X(kind, text, suggestion) text,
        RANGE_STRATEGIES(X)
#undef X
    };
    RangeAdvice a;
    char number[32];
    memset(&a, 0, sizeof a);
    a.suggestion = suggestions[strategy];
    a.rate = mean->rate[a.suggestion];
    if (!mean->fell || !isfinite(a.rate)) {
        a.rate = NAN;
        snprintf(a.text, sizeof a.text,
            "No rate to recommend: the loss did not fall before it rose; look at the data, give a lower "
            "--min-lr or more --num-steps");
        return a;
    }
    snprintf(number, sizeof number, "%.1e", a.rate);
    a.rate = strtod(number, NULL);
    double low = INFINITY, high = 0,
           noise = mean->noise; // of the mean over the passes, where there are several
    for (int k = 0; count == 1 && k < RANGE_SUGGESTION_COUNT; k++)
        if (isfinite(mean->rate[k])) {
            low = fmin(low, mean->rate[k]);
            high = fmax(high, mean->rate[k]);
        }
    for (int k = 0; count > 1 && k < count; k++)
        if (isfinite(passes[k].rate[a.suggestion])) {
            low = fmin(low, passes[k].rate[a.suggestion]);
            high = fmax(high, passes[k].rate[a.suggestion]);
        }
    int n = snprintf(a.text, sizeof a.text, "Take --lr %g (%s) for %s; ", a.rate,
        range_suggestion_name(a.suggestion), strategies[strategy]);
    if (mean->dip < 2 * noise)
        snprintf(a.text + n, sizeof a.text - (size_t)n,
            "unsure: the loss falls by %.2g, batches differ by %.2g; give more --num-steps or %s", mean->dip,
            noise, count > 1 ? "more --repeats" : "--repeats 3");
    else
        snprintf(a.text + n, sizeof a.text - (size_t)n,
            "%s: the %s lie between %.2g and %.2g, the loss falls by %.2g where batches differ by %.2g",
            high <= 5 * low    ? "sure"
            : high <= 50 * low ? "fairly sure"
                               : "unsure",
            count > 1 ? "passes" : "suggestions", low, high, mean->dip, noise);
    return a;
}

// ---------------------------------------------------------------- files

// A row a step and pass (the mean of several is pass 0): pass, step, lr, loss, average (running), smoothed
// (centred).
static inline void range_write_csv(
    const char *path, const RangeCurve *mean, const RangeCurve *passes, int count) {
    SafeFile s;
    safe_file_open(&s, path);
    fputs("pass,step,lr,loss,average,smoothed\n", s.f);
    for (int k = count > 1 ? 0 : 1; k <= count; k++) {
        const RangeCurve *c = k ? &passes[k - 1] : mean;
        for (size_t i = 0; i < c->n; i++)
            fprintf(s.f, "%d,%zu,%.17g,%.17g,%.17g,%.17g\n", k, i, c->lr[i], c->loss[i], c->average[i],
                c->smooth[i]);
    }
    safe_file_commit(&s);
}

// Raw and smoothed loss over the rate, the suggestions, and in the title what came out.
static inline bool range_draw(const char *path, const RangeCurve *mean, const RangeCurve *passes, int count,
    const RangeReading *r, const RangeAdvice *a) {
    char title[128] = "The range test found no rate: the loss did not fall before it rose";
    char stop[160], heading[192], labels[RANGE_SUGGESTION_COUNT][64];
    if (isfinite(a->rate))
        snprintf(title, sizeof title, "The range test recommends a learning rate of %.1e (%s)", a->rate,
            range_suggestion_name(a->suggestion));
    range_describe_stop(mean, stop);
    snprintf(heading, sizeof heading, "loss (nats); the ramp %s", stop);
    PlotPanel p = plot_panel(heading, "learning rate", mean->config.linear ? 0 : PLOT_LOG_X);
    p.height = 300;
    for (int k = 0; k < count && k + 1 < PLOT_SERIES; k++)
        plot_line(&p, NULL, passes[k].lr, passes[k].loss, passes[k].n, 0, PLOT_FAINT);
    plot_line(&p, "smoothed", mean->lr, mean->smooth, mean->end, 0, 0);
    for (int k = 0; k < RANGE_SUGGESTION_COUNT; k++) {
        if (!isfinite(r->rate[k])) continue;
        snprintf(labels[k], sizeof labels[k], "%s %.1e", range_suggestion_name(k), r->rate[k]);
        plot_mark(&p, r->rate[k], labels[k]);
    }
    return plot_write(path, title, &p, 1);
}

// ---------------------------------------------------------------- leaving no trace

// What training changes of a model, to be put back to the bit: parameters, m, v, their moving average. In
// memory, or in a file without a name where memory is short. Moments that are zero, as at the start of a run,
// take no place.
typedef struct {
    char *memory; // NULL: in the file
    FILE *file;
    bool arena[5]; // kept
} ClipSnapshot;

// Whether the tensor changes in training; the update clamps logit_scale even where it is locked.
static inline bool snapshot_keeps(const Tensor *x, ClipArena arena) {
    return x->trainable || (arena == ARENA_PARAMETERS && x->tower == NO_TOWER);
}

static inline bool arena_is_zero(const Clip *clip, ClipArena arena, float *scratch) {
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!snapshot_keeps(x, arena)) continue;
        clip_read(clip, arena, x, scratch);
        for (size_t j = 0; j < x->count; j++)
            if (scratch[j] != 0 || signbit(scratch[j])) return false;
    }
    return true;
}

// Copies out (`in` false) or back in, tensor by tensor.
static inline void snapshot_copy(ClipSnapshot *s, Clip *clip, bool in, float *scratch) {
    static const ClipArena arenas[] = {ARENA_PARAMETERS, ARENA_M, ARENA_V, ARENA_EMA};
    char *at = s->memory;
    if (s->file) rewind(s->file);
    for (int a = 0; a < (clip_has_ema(clip) ? 4 : 3); a++) {
        const bool kept = s->arena[arenas[a]];
        for (int i = 0; i < clip->tensors.count; i++) {
            const Tensor *x = &clip->tensors.list[i];
            if (!snapshot_keeps(x, arenas[a]) || (!kept && !in)) continue;
            const size_t bytes = x->count * sizeof(float);
            float *values = kept && at ? (float *)(void *)at : scratch;
            if (!in) clip_read(clip, arenas[a], x, values);
            if (kept && !at)
                in ? fread_check(values, bytes, s->file, "the copy of the weights")
                   : fwrite_check(values, bytes, s->file, "the copy of the weights");
            if (!kept) memset(values, 0, bytes);
            if (in) clip_write(clip, arenas[a], x, values);
            if (kept && at) at += bytes;
        }
    }
}

static inline float *snapshot_scratch(const Clip *clip) {
    size_t most = 0;
    for (int i = 0; i < clip->tensors.count; i++)
        if (clip->tensors.list[i].count > most) most = clip->tensors.list[i].count;
    return (float *)malloc_check(most * sizeof(float));
}

// Of a model that is ready to train. in_file: not in memory, whatever there is of it.
static inline ClipSnapshot snapshot_take(Clip *clip, bool in_file) {
    ClipSnapshot s;
    memset(&s, 0, sizeof s);
    float *scratch = snapshot_scratch(clip);
    size_t bytes = 0;
    for (int arena = ARENA_PARAMETERS; arena <= ARENA_EMA; arena++) {
        const bool moments = arena == ARENA_M || arena == ARENA_V;
        s.arena[arena] = arena == ARENA_PARAMETERS || (arena == ARENA_EMA && clip_has_ema(clip)) ||
                         (moments && !arena_is_zero(clip, (ClipArena)arena, scratch));
        for (int i = 0; s.arena[arena] && i < clip->tensors.count; i++)
            if (snapshot_keeps(&clip->tensors.list[i], (ClipArena)arena))
                bytes += clip->tensors.list[i].count * sizeof(float);
    }
    if (!in_file && bytes < memory_available()) s.memory = (char *)malloc(bytes ? bytes : 1);
    if (!s.memory && !(s.file = tmpfile()))
        die(EXIT_RUNTIME,
            "no place for a copy of the weights (%.2f GB), neither in memory nor in a temporary file; close "
            "other programs",
            (double)bytes / 1e9);
    snapshot_copy(&s, clip, false, scratch);
    free(scratch);
    return s;
}

static inline void snapshot_restore(ClipSnapshot *s, Clip *clip) {
    float *scratch = snapshot_scratch(clip);
    snapshot_copy(s, clip, true, scratch);
    free(scratch);
}

static inline void snapshot_free(ClipSnapshot *s) {
    free(s->memory);
    if (s->file) fclose(s->file);
}

#endif
