// What the lines of the recipe in train_clip.c and train_clip.cu do, one function for each.
#ifndef CLIPC_TRAINING_H
#define CLIPC_TRAINING_H

#include "clipc/base/plot.h"         // plot_curves
#include "clipc/base/strategies.h"   // strategy_note
#include "clipc/model/checkpoint.h"  // checkpoint_save, checkpoint_restore
#include "clipc/train/check_data.h"  // data_check
#include "clipc/train/lr_range.h"    // range_find_rate
#include "clipc/train/monitor.h"     // Monitor
#include "clipc/train/report.h"      // report_write, ReportGrid
#include "clipc/train/setup.h"       // TrainData, EvaluationSets, RunFolder
#include "clipc/train/step_loader.h" // StepLoader

// A run, by concern. Functions take the parts that they need; those that need nearly all take the whole.
typedef struct {
    Options *o;
    Options given; // as they were before a batch that is too large for the data shrank in *o
    Clip *clip;
    TrainData data;
    FeatureCache features[2]; // of locked towers; width 0: none
    StepLoader loader;
    Schedule schedule;
    RunState state;        // how far it is
    Checkpoint checkpoint; // --resume: what it goes on from
    EvaluationSets sets;
    Monitor monitor;
    LossWatch watch;
    int64_t died_after; // the last step before the loss stayed at that of guessing, where watch.dead
    ReportGrid grid;    // images for report.html, as the model last saw them
    RunFolder folder;
    double false_negatives; // of a pair, summed over the steps below
    int64_t steps_counted;  // since the start or the resume
    bool false_negatives_noted;
} Training;

// ---------------------------------------------------------------- before the first step

// The model of --pretrained or --model, or of the checkpoint that --resume names, whose settings then are
// those of the run.
static inline void train_open_model(Training *t, Options *o) {
    memset(t, 0, sizeof *t);
    t->o = o;
    if (o->resume) t->clip = model_open_checkpoint(o, &t->checkpoint);
    t->monitor.given = strategy_given(o);
    train_defaults(o);
    if (!o->resume) t->clip = model_open(o);
}

// Training, validation and zero-shot sets, and the schedule, whose length follows from them.
static inline void train_open_data(Training *t) {
    Options *o = t->o;
    data_set_loading(&t->data, o, t->clip);
    folder_choose_path(&t->folder, o, t->clip);
    t->given = *o;
    data_open(&t->data, o, o->val_split > 0 ? &sets_add_validation(&t->sets)->data : NULL);
    t->schedule = data_schedule(&t->data, o);
    t->sets.how = evaluation_from(o, t->clip, &t->data.loading, &t->folder.log);
    sets_open(&t->sets, o);
    data_check(&t->data, &t->sets);
}

// LOGS/NAME with its log. Nothing before it writes a file, except to caches: one that cannot be used ends the
// program without leaving a folder.
static inline void train_open_folder(Training *t) {
    const Options *o = t->o;
    if (comm_rank() == 0 && !o->resume && !resume_begins(o) && !folder_fault(t->folder.path))
        die(EXIT_USAGE, "%s: exists already; choose another --name, or go on with --resume latest",
            t->folder.path);
    train_catch_signals();
    features_open(t->features, o, t->clip, &t->data);
    data_cache_images(&t->data, o);
    folder_open(&t->folder, o->resume || resume_begins(o));
    if (resume_begins(o)) logger_truncate_after(&t->folder.log, -1); // of a run that ended before it saved
}

// --lr auto: takes the rate that the range test recommends. False when Ctrl-C came.
static inline bool train_find_rate(Training *t, TrainStep *step) {
    const RangeTest test = {t->o, t->clip, &t->data, &t->folder.log, step};
    if (t->o->lr != RATE_AUTO) return true;
    const double rate = range_find_rate(&test, t->folder.path);
    if (!isfinite(rate)) return false;
    t->o->lr = t->given.lr = t->schedule.lr = rate;
    return true;
}

// The settings to params.txt and the log.
static inline void train_write_settings(Training *t) {
    RunFolder *f = &t->folder;
    f->settings = settings_text(&t->given, dataset_count(&t->data.train));
    if (comm_rank() == 0) folder_write_settings(f);
    for (const char *line = f->settings; *line; line += strcspn(line, "\n"), line += *line == '\n')
        logger_print(&f->log, "%.*s", (int)strcspn(line, "\n"), line);
    logger_print(&f->log, "%s", "");
}

// Weights, m, v and the state from the checkpoint; warns of what makes the rest of the run differ from what
// it would have been.
static inline void train_restore(Training *t) {
    const Checkpoint *c = &t->checkpoint;
    Logger *log = &t->folder.log;
    checkpoint_restore(c, t->clip);
    t->state = c->header.run;
    path_format(t->folder.last_saved, "%.*s", (int)(strlen(c->weights) - strlen(".bin")), c->weights);
    if (comm_rank() == 0) // if it was killed before it did
        folder_prune(&t->folder, t->o, t->state.step, t->data.steps_per_epoch);
    logger_truncate_after(log, t->state.step);
    const int64_t samples = settings_number(c->settings, "samples", -1), now = dataset_count(&t->data.train);
    if (samples >= 0 && samples != now)
        logger_warn(log,
            "the run began with %lld samples, and there are %lld now: it goes on with them in another order",
            (long long)samples, (long long)now);
    if (strcmp(c->header.kernels, clip_kernels(t->clip)) != 0)
        logger_warn(log,
            "the run used %s kernels so far, and now %s: results differ in rounding (CLIPC_ISA=%s selects "
            "the former)",
            c->header.kernels, clip_kernels(t->clip), c->header.kernels);
    const int64_t then = settings_number(c->settings, "processes", 1);
    const int64_t k = settings_number(c->settings, "accum-freq", 1),
                  B = settings_number(c->settings, "batch-size", 1);
    if (then != comm_size() || k != t->o->accum_freq || B != t->o->batch_size)
        logger_print(log,
            "processes    %lld with %lld x %lld pairs so far, now %d with %lld x %lld: the run goes on %s",
            (long long)then, (long long)k, (long long)B, comm_size(), (long long)t->o->accum_freq,
            (long long)t->o->batch_size, processes_same_bits(t->o, then, k, B));
    logger_print(log, "resumed      %s after step %lld", c->state, (long long)t->state.step);
    free(c->settings);
}

// What the run is about to do, in the log.
static inline void train_describe(Training *t) {
    const Options *o = t->o;
    const Dataset *d = &t->data.train;
    Logger *log = &t->folder.log;
    print_model(log, t->clip, o);
    logger_print(log, "data         %lld pairs, %lld steps an epoch of %lld x %lld",
        (long long)dataset_epoch_length(d), (long long)t->data.steps_per_epoch,
        (long long)o->accum_freq * comm_size(), (long long)o->batch_size);
    if (comm_size() > 1)
        logger_print(log, "processes    %d, each %lld x %lld pairs a step; exchange %.2f MB a step%s",
            comm_size(), (long long)o->accum_freq, (long long)o->batch_size,
            processes_step_bytes(t->clip, o) / 1e6,
            o->accum_freq > 1 ? "; equal to one process up to rounding" : "");
    int64_t *pairs = dataset_source_shares(d); // a mean where samples are drawn
    for (size_t s = 0; d->source_count > 1 && s < d->source_count; s++)
        logger_print(log, "source       %s: %lld pairs an epoch", d->sources[s].spec, (long long)pairs[s]);
    free(pairs);
    if (t->data.images.path)
        logger_print(log, "images       %zu decoded ones in %s: %.2f GB", t->data.images.count,
            o->cache_images, (double)t->data.images.bytes / 1e9);
    char schedule[256];
    schedule_describe(&t->schedule, schedule);
    logger_print(log, "schedule     %s", schedule);
    for (size_t i = 0; i < t->sets.val_count; i++) {
        const ValidationSet *val = &t->sets.val[i];
        logger_print(log, "validation   %s%s%lld pairs", val->name, val->name[0] ? ", " : "",
            (long long)dataset_count(&val->data));
    }
    data_print_accounts(&t->data, &t->sets, log);
    logger_print(log, "run folder   %s", t->folder.path);
}

static inline void train_start_monitor(Training *t) {
    const Options *o = t->o;
    Monitor *m = &t->monitor;
    AdviceFacts *f = &m->facts;
    char note[512];
    monitor_name_metrics(m, o, t->sets.zeroshot, t->sets.zeroshot_count, t->sets.val, t->sets.val_count);
    f->pairs = processes_pairs(o);
    f->steps = t->schedule.total;
    f->warmup = t->schedule.warmup;
    f->pretrained = o->pretrained != NULL;
    f->quick_gelu = t->clip->config.quick_gelu;
    f->locked = o->lock_image || o->lock_text;
    f->lock_more = strategy_lock_more(o);
    if (!o->resume && strategy_note(note, sizeof note, o, m->given, o->lr, t->schedule.total,
                          t->schedule.warmup, t->data.steps_per_epoch))
        logger_print(&t->folder.log, "note         %s", note);
    monitor_open(m, o, &t->folder.log, t->folder.path, t->state.step);
}

// ---------------------------------------------------------------- when something is due

static inline bool train_ends(const Training *t) { return t->state.step == t->schedule.total; }

static inline bool train_epoch_ends(const Training *t) {
    return t->state.step % t->data.steps_per_epoch == 0;
}

// Is the loop to go on? Not after Ctrl-C, after the last step, or where --early-stop ends the run.
static inline bool train_goes_on(const Training *t) {
    return t->state.step < t->schedule.total && !train_interrupted && !monitor_stops(t->o, &t->state);
}

// Is anything due at this step: every N steps, or every given fraction of an epoch? Fractions are rounded
// down to whole steps and counted from the start of the epoch; a shorter rest at its end does not count.
static inline bool due_at_step(Share every, int64_t step, int64_t steps_per_epoch) {
    if (every.value <= 0) return false;
    if (!every.percent) return step % (int64_t)every.value == 0;
    const int64_t fraction = max_i64(1, share_of(every, steps_per_epoch));
    const int64_t at = step % steps_per_epoch;
    return at % fraction == 0 && (at == 0 || steps_per_epoch - at >= fraction);
}

// Is anything due after this epoch: every `frequency` epochs (0: never), or `now` in any case?
static inline bool due_after_epoch(int64_t epoch, int64_t frequency, bool now) {
    return frequency > 0 && (now || epoch % frequency == 0);
}

// ---------------------------------------------------------------- evaluate

// One line in the log, and each metric in the record, `prefix` before its name.
static inline void report_metrics(
    Logger *log, Record *r, const char *what, const char *prefix, const MetricList *m) {
    char line[1024], name[160];
    int n = snprintf(line, sizeof line, "%-12s", what);
    for (int i = 0; i < m->count; i++) {
        snprintf(name, sizeof name, "%s%s", prefix, m->list[i].name);
        record_number(r, name, m->list[i].value);
        if (n < (int)sizeof line)
            n += snprintf(line + n, sizeof line - (size_t)n, " %s %.4g", name, m->list[i].value);
    }
    logger_print(log, "%s", line);
}

// Zero-shot accuracy on each set, loss and retrieval on each validation set: as lines, and as one record,
// which m->last keeps. `ema`: the weights are the moving average, which the names of the metrics tell. The
// features of the first validation set go to features_path, unless NULL. False when Ctrl-C came.
static inline bool evaluate_sets(const EvaluationSets *s, Monitor *m, const RunState *state, bool zeroshot,
    bool validation, bool ema, const char *features_path) {
    const char *prefix = ema ? "ema_" : "";
    Record *last = &m->last[ema];
    Logger *log = s->how.logger;
    zeroshot = zeroshot && s->zeroshot_count;
    validation = validation && s->val_count;
    last->length = 0;
    if (!zeroshot && !validation) return true;
    Record r = record_new(state->step);
    record_number(&r, "epoch", (double)state->epoch);
    for (size_t i = 0; zeroshot && i < s->zeroshot_count; i++) {
        ZeroshotMetrics z;
        if (!evaluate_zeroshot(&s->how, &s->zeroshot[i], &z)) return false;
        const MetricList metrics = zeroshot_metric_list(&z, s->zeroshot[i].name);
        report_metrics(log, &r, "zero-shot", prefix, &metrics);
    }
    for (size_t i = 0; validation && i < s->val_count; i++) {
        ValidationMetrics v;
        if (!evaluate_validation(&s->how, &s->val[i].data, i == 0 ? features_path : NULL, &v)) return false;
        const MetricList metrics = validation_metric_list(&v, s->val[i].name);
        report_metrics(log, &r, "validation", prefix, &metrics);
    }
    monitor_record(m, log, &r);
    *last = r;
    return true;
}

// checkpoints/best is that of a model which had died already: as the run sees it, or as it turns out later.
static inline void train_note_dead_best(Training *t) {
    if (t->watch.dead && t->state.best_step > t->died_after)
        logger_print(&t->folder.log, "note         best, after step %lld, is a model that has died",
            (long long)t->state.best_step);
}

// After an evaluation: is this the best model so far? train_save() then saves it as checkpoints/best. Logs
// what the curves show.
static inline void train_judge(Training *t) {
    if (!t->monitor.last[0].length) return;
    t->folder.best = monitor_judge(&t->monitor, &t->state);
    if (t->folder.best) train_note_dead_best(t);
    monitor_advise(&t->monitor, &t->folder.log, t->state.step);
}

// The evaluation that is due at the start, by --eval-steps, after an epoch or at the end, unless the state
// says that it is done. Ctrl-C leaves it undone: a resumed run makes up for it.
static inline void train_evaluate(Training *t) {
    const Options *o = t->o;
    RunState *s = &t->state;
    const bool last = train_ends(t);
    const bool now = last || due_at_step(o->eval_steps, s->step, t->data.steps_per_epoch);
    if (s->evaluated == s->step + 1 || (s->position > 0 && !now)) return;
    const bool zeroshot = due_after_epoch(s->epoch, o->zeroshot_frequency, now);
    const bool validation = due_after_epoch(s->epoch, o->val_frequency, now);
    Monitor *m = &t->monitor;
    bool done = evaluate_sets(
        &t->sets, m, s, zeroshot, validation, false, last && comm_rank() == 0 ? o->save_features : NULL);
    if (done && clip_has_ema(t->clip) && s->step > 0) {
        clip_swap_ema(t->clip);
        done = evaluate_sets(&t->sets, m, s, zeroshot, validation, true, NULL);
        clip_swap_ema(t->clip);
    }
    if (!done) return;
    s->evaluated = s->step + 1;
    train_judge(t);
}

// ---------------------------------------------------------------- save

// Bytes of disk that the checkpoints of the run will take, more than they do now.
static inline double train_disk_need(const Training *t, CheckpointBytes each) {
    const bool best = t->monitor.best_metric[0] != 0;
    return fmax(0,
        folder_bytes(t->o, each, t->schedule.total, t->data.steps_per_epoch, best) - folder_used(&t->folder));
}

// Warns once when the rest of the run may not fit on the disk, and before each save that does not fit.
static inline void train_check_disk(Training *t) {
    RunFolder *f = &t->folder;
    const CheckpointBytes each = checkpoint_bytes(t->clip, f->settings);
    const double unused = folder_free(f), one = (double)(each.weights + each.state);
    const double need = train_disk_need(t, each);
    char free_now[32], of_one[32], of_all[32];
    if (unused >= one && (f->short_of_disk || unused >= need)) return;
    bytes_format(free_now, unused);
    bytes_format(of_one, one);
    bytes_format(of_all, need);
    logger_warn(&f->log,
        "%s: %s of disk are free, and the run needs up to %s more for its checkpoints of %s; free some "
        "space, or keep fewer (--keep-checkpoints, --keep-states)",
        f->path, free_now, of_all, of_one);
    f->short_of_disk = true;
}

static inline void train_describe_disk(Training *t) {
    const CheckpointBytes each = checkpoint_bytes(t->clip, t->folder.settings);
    char free_now[32], of_one[32], of_all[32];
    bytes_format(free_now, folder_free(&t->folder));
    bytes_format(of_one, (double)(each.weights + each.state));
    bytes_format(of_all, train_disk_need(t, each));
    logger_print(&t->folder.log, "disk         at most %s for checkpoints of %s; %s are free", of_all, of_one,
        free_now);
    train_check_disk(t);
}

// Saves the run: as epoch_N or step_N if `numbered`, then with --save-most-recent also as latest, and as best
// if it is the best so far. All that is one set, whole or absent.
static inline void train_save_as(Training *t, bool numbered) {
    const Options *o = t->o;
    const RunState *s = &t->state;
    RunFolder *f = &t->folder;
    const bool epoch = s->step > 0 && train_epoch_ends(t);
    char name[64] = "best";
    if (!numbered && !f->best) return;
    if (numbered)
        snprintf(
            name, sizeof name, "%s_%lld", epoch ? "epoch" : "step", (long long)(epoch ? s->epoch : s->step));
    if (comm_rank()) checkpoint_hand_over(t->clip);
    else {
        train_check_disk(t);
        FileSet *set = file_set_open(f->checkpoints);
        checkpoint_write(set, t->clip, name, s, f->settings);
        if (numbered && f->best) checkpoint_link(set, name, "best", clip_has_ema(t->clip));
        if (numbered && o->save_most_recent) checkpoint_link(set, name, "latest", false);
        file_set_commit(set);
    }
    f->best = false;
    if (!numbered) return;
    path_format(f->last_saved, "%s/%s", f->checkpoints, name);
    f->saved = true;
    if (comm_rank() == 0) folder_prune(f, o, s->step, t->data.steps_per_epoch);
}

// The checkpoint that is due after an epoch, by --save-steps, or at the end; and the best.
static inline void train_save(Training *t) {
    const Options *o = t->o;
    const RunState *s = &t->state;
    const bool due = train_epoch_ends(t) ? due_after_epoch(s->epoch, o->save_frequency, false)
                                         : due_at_step(o->save_steps, s->step, t->data.steps_per_epoch);
    train_save_as(t, due || train_ends(t) || monitor_stops(o, s));
}

// report.html. Its images are encoded anew, unless Ctrl-C came.
static inline void train_write_report(Training *t, const char *metrics, const char *curves) {
    char html[PATH_SIZE], status[512], model[512], when[32];
    const ClipConfig *c = &t->clip->config;
    const EvaluationSets *s = &t->sets;
    const time_t now = time(NULL);
    const char *doing = train_ends(t)                    ? "Done"
                        : train_interrupted              ? "Interrupted"
                        : monitor_stops(t->o, &t->state) ? "Stopped early"
                                                         : "Running";
    if (!train_interrupted && (s->val_count || s->zeroshot_count)) {
        report_grid_free(&t->grid);
        t->grid = s->val_count ? report_grid(&s->how, &s->val[0].data, NULL)
                               : report_grid(&s->how, &s->zeroshot[0].data, &s->zeroshot[0]);
    }
    strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime(&now));
    snprintf(status, sizeof status, "%s: step %lld of %lld, epoch %.4g, %s", doing, (long long)t->state.step,
        (long long)t->schedule.total, (double)t->state.step / (double)t->data.steps_per_epoch, when);
    snprintf(model, sizeof model,
        "%s: images of %d pixels in patches of %d, captions of %d tokens, %.4g million parameters",
        c->name[0] ? c->name : "CLIP", c->image_size, c->patch_size, c->context_length,
        (double)t->clip->tensors.parameters / 1e6);
    const Report r = {t->o->name, model, status, t->folder.settings, metrics, curves, t->data.steps_per_epoch,
        &t->monitor.facts, &t->grid, t->watch.dead ? t->watch.text : NULL};
    path_format(html, "%s/report.html", t->folder.path);
    report_write(html, &r);
}

// curves.svg and report.html
static inline void train_draw(Training *t) {
    if (comm_rank()) return;
    char metrics[PATH_SIZE], svg[PATH_SIZE];
    path_format(metrics, "%s/metrics.jsonl", t->folder.path);
    path_format(svg, "%s/curves.svg", t->folder.path);
    struct stat st;
    if (stat(metrics, &st) == 0 && st.st_size == 0) return; // interrupted before the first record
    const bool drawn = plot_curves(metrics, svg);
    train_write_report(t, metrics, drawn ? svg : NULL); // what lies there otherwise may be a stranger's
}

// ---------------------------------------------------------------- the loop

// Describes the run in the log, starts the loader, and evaluates the weights that the run starts from.
static inline void train_start(Training *t) {
    const Options *o = t->o;
    RunFolder *f = &t->folder;
    train_describe(t);
    features_describe(t->features, t->clip, &f->log);
    train_start_monitor(t);
    train_describe_disk(t);
    path_format(t->data.skipped, "%s/skipped.txt", f->path);
    t->data.loading.skipped_path = comm_rank() ? NULL : t->data.skipped;
    processes_agree(t->clip, f->settings, &t->data.train);
    step_loader_open(&t->loader, o, t->clip, &t->data, t->features, 0);
    loader_start_epoch(t->loader.loader, t->state.epoch, t->state.position);
    const int64_t evaluated = t->state.evaluated;
    train_evaluate(t);
    if (t->state.step > 0 && t->state.evaluated != evaluated) train_save_as(t, true);
}

// The micro-batches of the next step, in t->loader.batch; false when Ctrl-C came first.
static inline bool train_next_batch(Training *t) {
    t->folder.saved = false;
    return step_loader_next(&t->loader, t->state.step);
}

// The rate of the schedule, and the optimizer's other settings for the next step.
static inline AdamW train_adamw(const Training *t) {
    const Schedule *s = &t->schedule;
    const int64_t step = t->state.step;
    return adamw_from(t->o, schedule_lr(s, step), schedule_beta1(s, step, t->o->beta1), step);
}

// A note after the first step, of pairs from which nothing can be learned.
static inline void train_note_equal_pairs(Training *t, double false_negatives) {
    const double others = (double)(t->o->batch_size * t->o->accum_freq) - 1;
    const bool known = strcmp(t->o->train_data, "synthetic") != 0;
    const char *what = NULL;
    if (others < 1) what = "a step has one pair, and so no wrong answer: the loss is 0";
    else if (known && false_negatives > others - 0.5)
        what = "all pairs of the first step have the same caption (or other key)";
    else if (known && images_met_again(&t->data.train, (int64_t)others + 1) > others - 0.5)
        what = "all pairs have the same image";
    if (what)
        logger_print(&t->folder.log, "note         %s, and nothing is learned; %s", what,
            others < 1 ? "give --batch-size 2 or more" : "look at --train-data");
}

// Counts a step that is done, and logs it: the loss before the update, the rate and logit_scale that it used,
// the norm of its gradients. One of these that is not finite ends the program.
static inline void train_log(Training *t, double loss, double norm, double lr, double logit_scale) {
    const Options *o = t->o;
    RunState *s = &t->state;
    const double seconds = seconds_now() - t->loader.start;
    s->step++;
    s->position = loader_position(t->loader.loader);
    if (!isfinite(loss) || !isfinite(norm))
        die(EXIT_RUNTIME,
            "step %lld: the %s is not finite, and the weights are not updated; lower --lr, add "
            "--grad-clip-norm 1, and go on from the last checkpoint in %s/checkpoints",
            (long long)s->step, isfinite(loss) ? "norm of the gradients" : "loss", t->folder.path);
    const double false_negatives = step_loader_false_negatives(&t->loader);
    if (t->steps_counted == 0) train_note_equal_pairs(t, false_negatives);
    const bool settled = s->step > t->schedule.warmup && 10 * s->step > t->schedule.total;
    if (watch_loss(&t->watch, loss, equal_features_loss(&t->loader), settled)) {
        logger_print(&t->folder.log, "advice       %s: %s", advice_name(ADVICE_RATE), t->watch.text);
        t->died_after = s->step - t->watch.near;
        train_note_dead_best(t);
    }
    t->false_negatives += false_negatives;
    t->steps_counted++;
    const double rate = (double)processes_pairs(o) / seconds;
    const LogStep line = {
        s->step, t->schedule.total, (double)s->step / (double)t->data.steps_per_epoch, loss, lr, rate};
    logger_step(&t->folder.log, &line, o->log_every_n_steps);
    if (s->step % o->log_every_n_steps != 0 && !train_ends(t)) return;
    Record r = record_new(s->step);
    record_number(&r, "epoch", (double)s->epoch + 1);
    record_number(&r, "loss", loss);
    record_number(&r, "lr", lr);
    record_number(&r, "grad_norm", norm);
    record_number(&r, "logit_scale", logit_scale);
    record_number(&r, "false_negatives", false_negatives);
    record_number(&r, "samples_per_second", rate);
    record_number(&r, "data_time", t->loader.waited);
    record_number(&r, "batch_time", seconds);
    monitor_record(&t->monitor, &t->folder.log, &r);
}

// A note, once: many of a pair's negatives have its own key or image; the loss pushes true pairs apart.
static inline void train_note_false_negatives(Training *t) {
    const Options *o = t->o;
    const char *kind[2] = {o->positives_key ? o->positives_key : "caption", "image"};
    double met[2] = {t->false_negatives / (double)max_i64(1, t->steps_counted), 0};
    if (t->false_negatives_noted || t->loader.batch.positives != POSITIVES_DIAGONAL) return;
    if (strcmp(kind[0], "image")) met[1] = images_met_again(&t->data.train, processes_pairs(o));
    for (int i = 0; i < 2; i++)
        if (met[i] >= 0.1 && strcmp(o->train_data, "synthetic") != 0)
            logger_print(&t->folder.log,
                "note         in a step a pair meets %.2g others with the same %s, which the loss takes for "
                "negatives; %s--positives mask or --distinct-batches avoids that",
                met[i], kind[i], i ? "--positives-key image with " : "");
    t->false_negatives_noted = true;
}

// After the last step of an epoch or of the run. The loader begins to decode the next epoch at once, while
// the model is evaluated.
static inline void train_end_epoch(Training *t) {
    dataset_print_accounts(&t->data.train, &t->folder.log);
    features_save(t->features);
    train_note_false_negatives(t);
    if (train_epoch_ends(t)) {
        t->state.epoch++;
        t->state.position = 0;
    }
    if (!train_ends(t)) loader_start_epoch(t->loader.loader, t->state.epoch, 0);
}

// ---------------------------------------------------------------- after the last step

static inline void training_free(Training *t) {
    monitor_close(&t->monitor, &t->folder.log);
    report_grid_free(&t->grid);
    for (int tower = 0; tower < 2; tower++) feature_cache_free(&t->features[tower]);
    sets_free(&t->sets);
    free(t->folder.settings);
    data_free(&t->data);
    logger_close(&t->folder.log);
    clip_free(t->clip);
}

// Ctrl-C came in the range test, before the run began: takes its folder away again. Returns the exit code.
static inline int train_abandon(Training *t) {
    logger_print(&t->folder.log, "interrupted in the range test; nothing is kept");
    if (comm_rank() == 0) folder_remove(&t->folder);
    training_free(t);
    return EXIT_SIGNAL + train_interrupted;
}

static inline void train_print_end(Training *t) {
    const Preset *preset = preset_find(t->o->preset);
    Logger *log = &t->folder.log;
    logger_print(log, "done         %s.bin; curves in %s/curves.svg, a report of the run in report.html",
        t->folder.last_saved, t->folder.path);
    if (t->state.best_step)
        logger_print(log, "best         %s/checkpoints/best.bin, %s %.4g after step %lld", t->folder.path,
            t->monitor.best_metric, t->state.best_metric, (long long)t->state.best_step);
    if (preset && preset->afterwards) logger_print(log, "next         %s", preset->afterwards);
}

// Saves an interrupted run and says how to go on, or how the run ended. Frees it. Returns the exit code.
static inline int train_end(Training *t) {
    Logger *log = &t->folder.log;
    const RunState *s = &t->state;
    const bool evaluated = !train_ends(t) || s->evaluated == s->step + 1; // not where Ctrl-C came meanwhile
    const bool complete = s->step >= t->schedule.total && evaluated;
    const bool stopped = !train_interrupted && monitor_stops(t->o, s);
    step_loader_free(&t->loader);
    if (stopped)
        logger_print(log, "stopped      val_loss has not fallen below %.4g for %lld evaluations",
            s->best_val_loss, (long long)s->evaluations_without_better);
    if (!complete && !stopped && !t->folder.saved) train_save_as(t, true);
    train_draw(t);
    if (complete || stopped) train_print_end(t);
    else folder_print_resume(&t->folder, s->step);
    features_save(t->features);
    training_free(t);
    return complete || stopped ? EXIT_SUCCESS : EXIT_SIGNAL + train_interrupted;
}

#endif
