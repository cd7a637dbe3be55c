// The learning-rate range test on a run's model, data and options, for lr_find and for train_clip --lr auto:
// real steps of the optimizer under the ramp of lr_range.h, after which nothing of the run has changed.
#ifndef CLIPC_RANGE_TEST_H
#define CLIPC_RANGE_TEST_H

#include "clipc/train/lr_range.h" // RangeCurve, ClipSnapshot
#include "clipc/train/setup.h"    // Training

// One optimizer step over accum_freq batches (train.h).
static inline double train_step(Training *t, const Batch *batches, double lr, double *norm);

// The loss of features that are all equal: ln of the pairs that compete in a row, their mean where equal keys
// are masked.
static inline double train_equal_loss(const Training *t, const Batch *batches) {
    const double pairs = (double)(t->o->batch_size * t->o->accum_freq);
    const double masked =
        t->positives == POSITIVES_MASK ? (double)batch_false_negatives(batches, t->o->accum_freq) / pairs : 0;
    return log(pairs - masked);
}

// One ramp over the training data, in the order of `pass`, from the model as it is. Ctrl-C ends it.
static inline void train_range_pass(Training *t, RangeCurve *curve, int pass) {
    const Options *o = t->o;
    LoaderConfig loading = t->loading;
    loading.seed += (uint64_t)pass; // another order, other crops
    Loader *loader = loader_create(&t->train, &loading);
    Batch *batches = (Batch *)malloc_check((size_t)o->accum_freq * sizeof *batches);
    for (int64_t j = 0; j < o->accum_freq; j++) batches[j] = batch_create(&loading);
    loader_start_epoch(loader, 0, 0);
    for (bool go_on = true; go_on && curve->stop != RANGE_INTERRUPTED;) {
        const int64_t i = t->state.step, n = o->batch_size * o->accum_freq;
        const double start = seconds_now(), lr = range_rate(&curve->config, i);
        double norm;
        if (i > 0 && i % t->steps_per_epoch == 0) loader_start_epoch(loader, i / t->steps_per_epoch, 0);
        bool data = true;
        for (int64_t j = 0; data && j < o->accum_freq; j++) data = loader_next(loader, &batches[j]);
        if (data) {
            const double loss = train_step(t, batches, lr, &norm);
            go_on = range_add(curve, loss, train_equal_loss(t, batches));
            t->state.step++;
            const LogStep line = {t->state.step, curve->config.steps,
                (double)t->state.step / (double)t->steps_per_epoch, loss, lr,
                (double)n / (seconds_now() - start)};
            logger_step(&t->log, &line, max_i64(1, curve->config.steps / 10));
        }
        if (!data || train_interrupted) curve->stop = RANGE_INTERRUPTED;
    }
    logger_clear_bar(&t->log);
    for (int64_t j = 0; j < o->accum_freq; j++) batch_free(&batches[j]);
    free(batches);
    loader_free(loader);
}

// `count` ramps; the model, which is ready to train, and the run's state afterwards are what they were, to
// the bit. False when Ctrl-C came. The caller frees the curves.
static inline bool train_range_test(Training *t, const RangeConfig *config, RangeCurve *passes, int count) {
    const RunState state = t->state;
    const Schedule schedule = t->schedule;
    ClipSnapshot before = snapshot_take(t->clip, false);
    bool whole = true;
    t->schedule.cycle_momentum = false;
    for (int k = 0; k < count; k++) {
        passes[k] = range_create(config);
        if (!whole) continue;
        memset(&t->state, 0, sizeof t->state);
        train_range_pass(t, &passes[k], k);
        snapshot_restore(&before, t->clip);
        whole = passes[k].stop != RANGE_INTERRUPTED;
    }
    snapshot_free(&before);
    t->state = state;
    t->schedule = schedule;
    return whole;
}

// --lr auto: the rate that a ramp of 100 steps recommends, its curve in the run folder. False when Ctrl-C
// came.
static inline bool train_find_rate(Training *t) {
    const RangeConfig config = {
        RANGE_MIN_LR, RANGE_MAX_LR, RANGE_STEPS, false, RANGE_SMOOTHING, RANGE_STOP_FACTOR};
    char path[PATH_SIZE], stop[160];
    RangeCurve curve;
    logger_print(&t->log, "range test   %d steps from %g to %g, the weights afterwards are as before",
        RANGE_STEPS, RANGE_MIN_LR, RANGE_MAX_LR);
    const bool whole = train_range_test(t, &config, &curve, 1);
    if (whole) {
        const RangeReading reading = range_read(&curve);
        const RangeAdvice advice =
            range_advise(&reading, &reading, 1, range_strategy(t->clip, t->o->pretrained != NULL));
        range_describe_stop(&curve, stop);
        path_format(path, "%s/lr_find.svg", t->folder);
        range_draw(path, &curve, &curve, 1, &reading, &advice);
        if (!isfinite(advice.rate))
            die(EXIT_RUNTIME, "--lr auto: %s; or give --lr a number (%s)", advice.text, path);
        t->o->lr = t->schedule.lr = advice.rate;
        logger_print(&t->log, "range test   %s; %s", stop, path);
        logger_print(&t->log, "rate         %s", advice.text);
    }
    range_free(&curve);
    return whole;
}

// Interrupted before the run began: takes its folder away again. Returns the exit code.
static inline int train_abandon(Training *t) {
    char path[PATH_SIZE];
    static const char *const made[] = {"out.log", "metrics.jsonl"};
    logger_print(&t->log, "interrupted in the range test; nothing is kept");
    for (int i = 0; i < 2; i++) {
        path_format(path, "%s/%s", t->folder, made[i]);
        unlink(path);
    }
    path_format(path, "%s/checkpoints", t->folder);
    rmdir(path);
    rmdir(t->folder);
    return EXIT_INTERRUPTED;
}

#endif
