// The learning-rate range test (Smith 2015): the rate grows step by step, and the loss shows which rates are
// good. In this file: the recommendation, the files, and the test itself on a run's model and data, for
// lr_find and for train_clip --lr auto. The test leaves the model as it was.
#ifndef CLIPC_LR_RANGE_H
#define CLIPC_LR_RANGE_H

#include "clipc/base/plot.h"         // plot_write
#include "clipc/model/checkpoint.h"  // ClipSnapshot
#include "clipc/train/lr_curve.h"    // RangeCurve, range_read
#include "clipc/train/step_loader.h" // StepLoader

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
    const double pairs = (double)l->batch.k * l->batch.B;
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
            const double rate = (double)loader.batch.k * loader.batch.B / (seconds_now() - loader.start);
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

// The ramp to take where one shows no rate: the part of it that holds the rates at which models learn, in
// three times as many steps. In as few steps at each rate as the first one takes, a model that starts above
// the loss of equal features only comes down to it.
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
        range_draw(path, &r);
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
