// The training loop, the same for every back end: from the options to a run folder with its log, metrics and
// checkpoints.
#ifndef CLIPC_TRAINING_H
#define CLIPC_TRAINING_H

#include "clipc/base/plot.h"        // plot_curves
#include "clipc/train/range_test.h" // train_find_rate, --lr auto
#include "clipc/train/setup.h"      // Training, model_open

// ---------------------------------------------------------------- evaluation

static inline void train_report(
    Training *t, Record *r, const char *what, const char *prefix, const MetricList *m) {
    char line[1024], name[160];
    int n = snprintf(line, sizeof line, "%-12s", what);
    for (int i = 0; i < m->count; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, m->list[i].name);
        record_number(r, name, m->list[i].value);
        if (n < (int)sizeof line)
            n += snprintf(line + n, sizeof line - (size_t)n, " %s %.4g", name, m->list[i].value);
    }
    logger_print(&t->log, "%s", line);
}

// Zero-shot accuracy on each set, loss and retrieval on the validation sets, as lines and as one record;
// false when Ctrl-C came. `prefix` stands before the names of the metrics: "ema_" when the weights at hand
// are the moving average.
static inline bool train_evaluate(
    Training *t, bool zeroshot, bool validation, const char *prefix, const char *features_path) {
    if (!t->o->zeroshot_data.count) zeroshot = false;
    if (!t->val_count) validation = false;
    t->monitor.last[prefix[0] != 0].length = 0;
    if (!zeroshot && !validation) return true;
    Record r = record_new(t->state.step);
    record_number(&r, "epoch", (double)t->state.epoch);
    bool whole = true;
    for (size_t i = 0; zeroshot && whole && i < t->o->zeroshot_data.count; i++) {
        ZeroshotMetrics z;
        if (!(whole = evaluate_zeroshot(&t->evaluation, &t->zeroshot[i], &z))) break;
        const MetricList m = zeroshot_metric_list(&z, t->zeroshot[i].name);
        train_report(t, &r, "zero-shot", prefix, &m);
    }
    for (size_t i = 0; validation && whole && i < t->val_count; i++) {
        ValidationMetrics v;
        if (!(whole =
                    evaluate_validation(&t->evaluation, &t->val[i].data, i == 0 ? features_path : NULL, &v)))
            break;
        const MetricList m = validation_metric_list(&v, t->val[i].name);
        train_report(t, &r, "validation", prefix, &m);
    }
    if (whole) {
        monitor_record(&t->monitor, &t->log, &r);
        t->monitor.last[prefix[0] != 0] = r;
    }
    return whole;
}

// Is this step one of every N, or of those that part each epoch by a share?
static inline bool train_due_steps(const Training *t, Share every) {
    if (every.value <= 0) return false;
    if (!every.percent) return t->state.step % (int64_t)every.value == 0;
    const int64_t part = max_i64(1, share_of(every, t->steps_per_epoch));
    const int64_t at = t->state.step % t->steps_per_epoch;
    return at % part == 0 && (at == 0 || t->steps_per_epoch - at >= part);
}

static inline bool train_due(int64_t epoch, int64_t frequency, bool last) {
    return frequency > 0 && (last || epoch % frequency == 0);
}

// Saves STEM_ema.bin, too: the moving average of the weights, as a model of its own.
static inline void train_save_ema(Training *t, const char *stem) {
    char path[PATH_SIZE];
    SafeFile file;
    if (!clip_has_ema(t->clip)) return;
    path_format(path, "%s_ema.bin", stem);
    safe_file_open(&file, path);
    clip_swap_ema(t->clip);
    clip_save(t->clip, &file);
    clip_swap_ema(t->clip);
    safe_file_commit(&file);
}

// Keeps the best model, and says what the curves show.
static inline void train_judge(Training *t) {
    char stem[PATH_SIZE];
    if (!t->monitor.last[0].length) return;
    if (monitor_judge(&t->monitor, &t->state)) {
        path_format(stem, "%s/checkpoints/best", t->folder);
        checkpoint_save(t->clip, stem, &t->state, t->settings);
        train_save_ema(t, stem);
    }
    monitor_advise(&t->monitor, &t->log, t->state.step);
}

// The evaluation that is due at the beginning, by --eval-steps, behind an epoch and at the end, unless it is
// done; false when Ctrl-C came.
static inline bool train_evaluate_due(Training *t) {
    const Options *o = t->o;
    RunState *s = &t->state;
    const bool last = s->step == t->schedule.total, now = last || train_due_steps(t, o->eval_steps);
    if (s->evaluated == s->step + 1 || (s->position > 0 && !now)) return true;
    const bool zeroshot = train_due(s->epoch, o->zeroshot_frequency, now);
    const bool validation = train_due(s->epoch, o->val_frequency, now);
    bool done = train_evaluate(t, zeroshot, validation, "", last ? o->save_features : NULL);
    if (done && clip_has_ema(t->clip) && s->step > 0) {
        clip_swap_ema(t->clip);
        done = train_evaluate(t, zeroshot, validation, "ema_", NULL);
        clip_swap_ema(t->clip);
    }
    if (done) {
        s->evaluated = s->step + 1;
        train_judge(t);
    }
    return done;
}

// ---------------------------------------------------------------- checkpoints and pictures of the run

// Is this stem a checkpoint in the folder of this run, other than latest and best?
static inline bool train_numbered(const Training *t, const char *stem) {
    char own[PATH_SIZE];
    path_format(own, "%s/checkpoints/", t->folder);
    return strncmp(stem, own, strlen(own)) == 0 && !ends_with(stem, "/latest") && !ends_with(stem, "/best");
}

// Deletes the run's numbered checkpoints behind the `keep` newest up to this step; t->last_saved is one of
// those.
static inline void train_prune(const Training *t, int64_t keep) {
    char folder[PATH_SIZE];
    size_t count;
    path_format(folder, "%s/checkpoints", t->folder);
    Checkpoint *list = checkpoint_list(folder, &count); // newest first
    for (size_t i = 0; i < count; i++) {
        char *stem = list[i].weights;
        stem[strlen(stem) - strlen(".bin")] = 0;
        if (train_numbered(t, stem) && list[i].header.run.step <= t->state.step && keep-- <= 0 &&
            strcmp(stem, t->last_saved) != 0)
            checkpoint_delete(stem);
        free(list[i].settings);
    }
    free(list);
}

static inline void train_save(Training *t, const char *kind, int64_t number) {
    char stem[PATH_SIZE];
    path_format(stem, "%s/checkpoints/%s_%lld", t->folder, kind, (long long)number);
    checkpoint_save(t->clip, stem, &t->state, t->settings);
    train_save_ema(t, stem);
    path_format(t->last_saved, "%s", stem);
    if (t->o->delete_previous_checkpoint || t->o->keep_checkpoints > 0)
        train_prune(t, t->o->delete_previous_checkpoint ? 1 : t->o->keep_checkpoints);
    if (t->o->save_most_recent) {
        path_format(stem, "%s/checkpoints/latest", t->folder);
        checkpoint_save(t->clip, stem, &t->state, t->settings);
    }
}

// The page about the run; the pictures in it are looked at anew unless the run is to end.
static inline void train_write_report(Training *t, const char *metrics, const char *curves) {
    char html[PATH_SIZE], status[512], model[512], when[32];
    const ClipConfig *c = &t->clip->config;
    const time_t now = time(NULL);
    const char *doing = t->state.step == t->schedule.total ? "Done"
                        : train_interrupted                ? "Interrupted"
                        : monitor_stops(t->o, &t->state)   ? "Stopped early"
                                                           : "Running";
    if (!train_interrupted && (t->val_count || t->o->zeroshot_data.count)) {
        report_grid_free(&t->grid);
        t->grid = t->val_count ? report_grid(&t->evaluation, &t->val[0].data, NULL)
                               : report_grid(&t->evaluation, &t->zeroshot[0].data, &t->zeroshot[0]);
    }
    strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime(&now));
    snprintf(status, sizeof status, "%s: step %lld of %lld, epoch %.4g, %s", doing, (long long)t->state.step,
        (long long)t->schedule.total, (double)t->state.step / (double)t->steps_per_epoch, when);
    snprintf(model, sizeof model,
        "%s: pictures of %d pixels in patches of %d, captions of %d tokens, %.4g million parameters",
        c->name[0] ? c->name : "CLIP", c->image_size, c->patch_size, c->context_length,
        (double)t->clip->tensors.parameters / 1e6);
    const Report r = {t->o->name, model, status, t->settings, metrics, curves, t->steps_per_epoch,
        &t->monitor.facts, &t->grid};
    path_format(html, "%s/report.html", t->folder);
    report_write(html, &r);
}

// curves.svg and report.html
static inline void train_draw(Training *t) {
    char metrics[PATH_SIZE], svg[PATH_SIZE];
    path_format(metrics, "%s/metrics.jsonl", t->folder);
    path_format(svg, "%s/curves.svg", t->folder);
    struct stat st;
    if (stat(metrics, &st) == 0 && st.st_size == 0) return; // interrupted before the first record
    plot_curves(metrics, svg);
    train_write_report(t, metrics, svg);
}

// Saves and says how to go on. Returns the exit code.
static inline int train_end_interrupted(Training *t, bool saved) {
    if (!saved) train_save(t, "step", t->state.step);
    train_draw(t);
    logger_print(&t->log, "interrupted after step %lld; go on with: %s --resume %s.bin",
        (long long)t->state.step, program_path(), t->last_saved);
    return EXIT_INTERRUPTED;
}

// ---------------------------------------------------------------- a step

// A micro-batch as the model takes it: with the kept features of a tower that is locked, and with the patches
// that dropout leaves.
static inline ClipBatch train_batch(Training *t, const Batch *batch, int micro) {
    const ClipConfig *c = &t->clip->config;
    ClipBatch b = clip_batch((int)t->o->batch_size);
    b.pixels = batch->pixels;
    b.tokens = batch->tokens;
    uint64_t *keys = (uint64_t *)malloc_check((size_t)b.size * sizeof *keys);
    for (int tower = 0; tower < 2; tower++) {
        FeatureCache *cache = &t->cache[tower];
        if (!cache->width) continue;
        for (int i = 0; i < b.size; i++)
            keys[i] =
                tower == IMAGE_TOWER
                    ? image_key(batch->indices[i])
                    : caption_key(batch->tokens + (size_t)i * (size_t)c->context_length, batch->lengths[i]);
        float *pooled = t->pooled[tower] + (size_t)micro * (size_t)b.size * (size_t)cache->width;
        feature_cache_gather(cache, t->clip, pooled, &b, keys);
        b.pooled[tower] = pooled;
    }
    free(keys);
    if (t->kept) {
        const int patches = config_image_tokens(c) - 1;
        int *kept = t->kept + (size_t)micro * (size_t)b.size * (size_t)t->kept_count;
        for (int i = 0; i < b.size; i++)
            draw_kept_patches(kept + (size_t)i * (size_t)t->kept_count, t->kept_count, patches,
                (uint64_t)t->o->seed, t->state.step, micro * b.size + i);
        b.kept = kept;
        b.kept_count = t->kept_count;
    }
    return b;
}

// One optimizer step over accum_freq batches; returns the loss before the update, *norm that of the
// gradients.
static inline double train_step(Training *t, const Batch *batches, double lr, double *norm) {
    const Options *o = t->o;
    const int k = (int)o->accum_freq, B = (int)o->batch_size;
    ClipBatch *b = (ClipBatch *)malloc_check((size_t)k * sizeof *b);
    for (int j = 0; j < k; j++) {
        b[j] = train_batch(t, &batches[j], j);
        clip_forward(t->clip, &b[j], j * B, k == 1);
    }
    uint64_t *keys = (uint64_t *)malloc_check((size_t)k * (size_t)B * sizeof *keys);
    for (int j = 0; j < k; j++)
        memcpy(keys + (size_t)j * (size_t)B, batches[j].keys, (size_t)B * sizeof *keys);
    const double loss = clip_loss(t->clip, k * B, keys, t->positives, true);
    free(keys);
    for (int j = 0; j < k; j++) {
        if (k > 1) clip_forward(t->clip, &b[j], j * B, true);
        clip_backward(t->clip, &b[j], j * B);
    }
    free(b);
    const AdamW hyper = {lr, schedule_beta1(&t->schedule, t->state.step, o->beta1), o->beta2, o->eps, o->wd,
        o->ema_decay, o->grad_clip_norm, t->state.step + 1};
    *norm = clip_update(t->clip, &hyper);
    return loss;
}

// At the end of an epoch, once: how many of a step's other pairs are right answers taken for wrong ones,
// where they are many.
static inline void train_note_false_negatives(Training *t) {
    const Options *o = t->o;
    const double pairs = (double)(o->batch_size * o->accum_freq);
    const double each = t->false_negatives / (pairs * (double)max_i64(1, t->steps_counted));
    if (each >= 0.1 && strcmp(o->train_data, "synthetic") != 0 && t->positives == POSITIVES_DIAGONAL &&
        !t->false_negatives_told)
        logger_print(&t->log,
            "note         each pair meets %.2g others of its %s in a step, taught as wrong answers; "
            "--positives mask or --distinct-batches avoid that",
            each, o->positives_key ? o->positives_key : "caption");
    t->false_negatives_told = true;
}

// The next step of the run, logged; false when Ctrl-C came before its data was there.
static inline bool train_next(Training *t, Loader *loader, Batch *batches) {
    const Options *o = t->o;
    const double start = seconds_now();
    double waited = 0, norm;
    for (int64_t j = 0; j < o->accum_freq; j++) {
        if (!loader_next(loader, &batches[j])) return false;
        waited += batches[j].wait_seconds;
    }
    const double lr = schedule_lr(&t->schedule, t->state.step), scale = clip_logit_scale(t->clip);
    const double loss = train_step(t, batches, lr, &norm), seconds = seconds_now() - start;
    t->state.step++;
    t->state.position = loader_position(loader);
    if (!isfinite(loss))
        die(EXIT_RUNTIME,
            "step %lld: the loss is not finite; lower --lr, add --grad-clip-norm 1, and go on from the last "
            "checkpoint in %s/checkpoints",
            (long long)t->state.step, t->folder);
    const int64_t false_negatives = batch_false_negatives(batches, o->accum_freq);
    t->false_negatives += (double)false_negatives;
    t->steps_counted++;
    const double rate = (double)(o->batch_size * o->accum_freq) / seconds;
    const LogStep line = {
        t->state.step, t->schedule.total, (double)t->state.step / (double)t->steps_per_epoch, loss, lr, rate};
    logger_step(&t->log, &line, o->log_every_n_steps);
    if (t->state.step % o->log_every_n_steps == 0 || t->state.step == t->schedule.total) {
        Record r = record_new(t->state.step);
        record_number(&r, "epoch", (double)t->state.epoch + 1);
        record_number(&r, "loss", loss);
        record_number(&r, "lr", lr);
        record_number(&r, "grad_norm", norm);
        record_number(&r, "logit_scale", scale);
        record_number(
            &r, "false_negatives", (double)false_negatives / (double)(o->batch_size * o->accum_freq));
        record_number(&r, "samples_per_second", rate);
        record_number(&r, "data_time", waited);
        record_number(&r, "batch_time", seconds);
        monitor_record(&t->monitor, &t->log, &r);
    }
    return true;
}

// From where the state stands to the end of the run. Returns the exit code.
static inline int train_run(Training *t) {
    const Options *o = t->o;
    char skipped[PATH_SIZE];
    path_format(skipped, "%s/skipped.txt", t->folder);
    t->loading.skipped_path = skipped;
    Loader *loader = loader_create(&t->train, &t->loading);
    Batch *batches = (Batch *)malloc_check((size_t)o->accum_freq * sizeof *batches);
    for (int64_t j = 0; j < o->accum_freq; j++) batches[j] = batch_create(&t->loading);
    loader_start_epoch(loader, t->state.epoch, t->state.position);
    const int64_t evaluated = t->state.evaluated;
    bool whole = train_evaluate_due(t), saved = false;
    if (whole && t->state.step > 0 && t->state.evaluated != evaluated) train_save(t, "step", t->state.step);
    while (whole && t->state.step < t->schedule.total && !monitor_stops(o, &t->state)) {
        saved = false;
        if (!train_next(t, loader, batches)) break;
        const bool last = t->state.step == t->schedule.total;
        const bool end_of_epoch = t->state.step % t->steps_per_epoch == 0;
        if (end_of_epoch || last) {
            loader_report_skips(loader);
            train_save_features(t);
            train_note_false_negatives(t);
            if (end_of_epoch) {
                t->state.epoch++;
                t->state.position = 0;
            }
            if (!last) loader_start_epoch(loader, t->state.epoch, 0); // decodes while the evaluation runs
            whole = train_evaluate_due(t);
            if (last || monitor_stops(o, &t->state) || train_due(t->state.epoch, o->save_frequency, false)) {
                train_save(t, end_of_epoch ? "epoch" : "step", end_of_epoch ? t->state.epoch : t->state.step);
                saved = true;
            }
            train_draw(t);
        } else {
            whole = train_evaluate_due(t);
            if (monitor_stops(o, &t->state) || train_due_steps(t, o->save_steps)) {
                train_save(t, "step", t->state.step);
                saved = true;
            }
        }
        if (train_interrupted && !last) break;
    }
    const bool stopped = whole && !train_interrupted && monitor_stops(o, &t->state);
    if (stopped) {
        logger_print(&t->log, "stopped      val_loss has not fallen below %.4g for %lld evaluations",
            t->state.best_val_loss, (long long)t->state.evaluations_without_better);
        train_draw(t);
    }
    const int code = stopped || (whole && t->state.step >= t->schedule.total)
                         ? EXIT_SUCCESS
                         : train_end_interrupted(t, saved);
    for (int64_t j = 0; j < o->accum_freq; j++) batch_free(&batches[j]);
    free(batches);
    loader_free(loader);
    return code;
}

// ---------------------------------------------------------------- what the program does

static inline void training_free(Training *t) {
    monitor_close(&t->monitor, &t->log);
    report_grid_free(&t->grid);
    for (size_t i = 0; i < t->o->zeroshot_data.count; i++) zeroshot_close(&t->zeroshot[i]);
    for (int tower = 0; tower < 2; tower++) {
        feature_cache_free(&t->cache[tower]);
        free(t->pooled[tower]);
    }
    free(t->kept);
    free(t->zeroshot);
    free(t->settings);
    train_free_data(t);
    tokenizer_free(t->tokenizer);
    logger_close(&t->log);
    clip_free(t->clip);
    options_free(t->o);
}

static inline void train_start_monitor(Training *t) {
    const Options *o = t->o;
    AdviceFacts *f = &t->monitor.facts;
    char note[512];
    monitor_name_metrics(&t->monitor, o, t->zeroshot, o->zeroshot_data.count, t->val, t->val_count);
    f->pairs = o->batch_size * o->accum_freq;
    f->steps = t->schedule.total;
    f->warmup = t->schedule.warmup;
    f->pretrained = o->pretrained != NULL;
    f->quick_gelu = t->clip->config.quick_gelu;
    f->locked = o->lock_image || o->lock_text;
    f->lock_more = strategy_lock_more(o);
    if (!o->resume && strategy_note(note, sizeof note, o, t->monitor.given, o->lr, t->schedule.total,
                          t->schedule.warmup, t->steps_per_epoch))
        logger_print(&t->log, "note         %s", note);
    monitor_open(&t->monitor, o, &t->log, t->folder, t->state.step);
}

static inline void train_print_end(Training *t) {
    const Preset *preset = preset_find(t->o->preset);
    logger_print(&t->log, "done         %s.bin; curves in %s/curves.svg, all about it in report.html",
        t->last_saved, t->folder);
    if (t->state.best_step)
        logger_print(&t->log, "best         %s/checkpoints/best.bin, %s %.4g after step %lld", t->folder,
            t->monitor.best_metric, t->state.best_metric, (long long)t->state.best_step);
    if (preset && preset->afterwards) logger_print(&t->log, "next         %s", preset->afterwards);
}

// Fine-tunes, from the beginning or from a checkpoint. Returns the exit code.
static inline int train_main(Training *t) {
    Options *o = t->o;
    Checkpoint checkpoint;
    if (o->resume) t->clip = train_find_checkpoint(o, &checkpoint);
    t->monitor.given = strategy_given(o);
    train_defaults(o);
    if (!o->resume) t->clip = model_open(o);
    model_lock(t->clip, o);
    model_set_precision(t->clip, o);
    train_open_tokenizer(t);
    train_set_loading(t);
    train_name_folder(t);
    Options given = *o;
    train_open_data(t);
    t->settings = train_settings(&given,
        dataset_count(
            // as given: a batch that is too large shrinks in train_open_data(), in a resumed run as well
            &t->train));
    train_open_evaluation(t);
    if (!o->resume && file_exists(t->folder))
        die(EXIT_USAGE, "%s: exists already; choose another --name, or go on with --resume latest",
            t->folder);
    train_catch_signals();
    train_keep_images(t);
    logger_open(&t->log, t->folder, o->resume != NULL);
    char checkpoints[PATH_SIZE];
    path_format(checkpoints, "%s/checkpoints", t->folder);
    make_directories(checkpoints);
    train_start_model(t);
    if (o->lr == RATE_AUTO) {
        if (!train_find_rate(t)) return train_abandon(t);
        given.lr = o->lr; // a resumed run takes the rate that was found
        free(t->settings);
        t->settings = train_settings(&given, dataset_count(&t->train));
    }
    train_write_settings(t);
    logger_print(&t->log, "%s", t->settings);
    if (o->resume) {
        checkpoint_restore(&checkpoint, t->clip);
        t->state = checkpoint.header.run;
        path_format(
            t->last_saved, "%.*s", (int)(strlen(checkpoint.weights) - strlen(".bin")), checkpoint.weights);
        logger_truncate_after(&t->log, t->state.step);
        const int64_t samples = train_samples_then(checkpoint.settings), now = dataset_count(&t->train);
        if (samples >= 0 && samples != now)
            logger_warn(&t->log,
                "the run was begun on %lld samples, there are %lld now: it goes on, in another order than it "
                "would have had",
                (long long)samples, (long long)now);
        if (strcmp(checkpoint.header.kernels, clip_kernels(t->clip)) != 0)
            logger_warn(&t->log,
                "the run was computed with %s kernels, now with %s: results differ in rounding (CLIPC_ISA=%s "
                "takes the former)",
                checkpoint.header.kernels, clip_kernels(t->clip), checkpoint.header.kernels);
        logger_print(&t->log, "resumed      %s after step %lld", checkpoint.state, (long long)t->state.step);
        free(checkpoint.settings);
    }
    train_print_model(t);
    train_print_run(t);
    train_keep_features(t);
    train_start_monitor(t);
    const int code = train_run(t);
    if (code == EXIT_SUCCESS) train_print_end(t);
    return code;
}

// --eval-only: measures the model, writes the features if asked for. Returns the exit code.
static inline int evaluate_main(Training *t) {
    Options *o = t->o;
    train_defaults(o);
    t->clip = model_open(o);
    model_set_precision(t->clip, o);
    train_open_tokenizer(t);
    logger_open(&t->log, NULL, false);
    train_set_loading(t);
    if (!o->val_data.count && !o->zeroshot_data.count)
        die(EXIT_USAGE, "--eval-only: nothing to evaluate on; give --zeroshot-data or --val-data");
    if (o->save_features && !o->val_data.count)
        die(EXIT_USAGE, "--save-features: of which pairs? give --val-data");
    train_open_evaluation(t);
    train_print_model(t);
    train_catch_signals();
    return train_evaluate(t, true, true, "", o->save_features) ? EXIT_SUCCESS : EXIT_INTERRUPTED;
}

// --print-schedule: the rate over the run, from the options and the number of samples alone. Returns the exit
// code.
static inline int print_schedule_main(Training *t) {
    Options *o = t->o;
    train_defaults(o);
    if (o->train_data) train_open_data(t);
    else if (options_was_set(o, steps)) t->schedule = schedule_from_options(o, o->steps, 0);
    else die(EXIT_USAGE, "--print-schedule: how long is the run? give --steps N, or --train-data");
    const bool found_later = o->lr == RATE_AUTO;
    if (found_later) t->schedule.lr = 1;
    const bool drawn = schedule_draw(&t->schedule,
        found_later ? "learning rate, as a share of the one that --lr auto finds" : "learning rate",
        o->print_schedule);
    char text[256];
    schedule_describe(&t->schedule, text);
    printf("%s\n", text);
    if (o->train_data) train_free_data(t);
    options_free(o);
    return drawn ? EXIT_SUCCESS : EXIT_RUNTIME;
}

// --classify: the model put to use. Returns the exit code.
static inline int classify_main(Training *t) {
    Options *o = t->o;
    enum { MOST = 5 };
    train_defaults(o);
    if (!o->classnames) die(EXIT_USAGE, "--classify: as what? give --classnames FILE, one class a line");
    StringList names = classnames_read(o->classnames), templates = templates_read(o->templates);
    t->clip = model_open(o);
    model_set_precision(t->clip, o);
    train_open_tokenizer(t);
    logger_open(&t->log, NULL, false);
    train_set_loading(t);
    train_catch_signals();
    const int code = classify(
        &t->evaluation, (char *const *)o->classify.items, (int)o->classify.count, &names, &templates, MOST);
    string_list_free(&names);
    string_list_free(&templates);
    return code;
}

#endif
