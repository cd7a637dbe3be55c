// Watching a run: where its records go, which checkpoint is the best, when to stop early, what to advise, and
// the page about it.
#ifndef CLIPC_MONITOR_H
#define CLIPC_MONITOR_H

#include "clipc/model/checkpoint.h"  // RunState
#include "clipc/train/companion.h"   // Companion
#include "clipc/base/presets.h"      // strategy_note
#include "clipc/train/report.h"      // report_write, advice_at
#include "clipc/train/tensorboard.h" // EventFile

typedef struct {
    bool tensorboard;
    EventFile events;
    Companion companion;
    Record last[2]; // of the evaluation measured last, and of the moving average's; length 0: none
    char best_metric[192], val_metric[192]; // what checkpoints/best and --early-stop go by; "" none
    AdviceSet *sets;                        // (facts.set_count)
    AdviceFacts facts;
    StrategyGiven given;
    ReportGrid grid;
    double began;
} Monitor;

// ---------------------------------------------------------------- options

static inline bool report_goes_to(const Options *o, const char *where) {
    const size_t n = strlen(where);
    for (const char *p = o->report_to; p && *p; p += strcspn(p, ","), p += *p == ',')
        if ((strcspn(p, ",") == n && memcmp(p, where, n) == 0) || strncmp(p, "all", strcspn(p, ",")) == 0)
            return true;
    return false;
}

// Refuses what cannot be watched, before any data is touched.
static inline void monitor_check_options(const Options *o) {
    for (const char *p = o->report_to; p && *p; p += strcspn(p, ","), p += *p == ',') {
        char word[32];
        snprintf(word, sizeof word, "%.*s", (int)strcspn(p, ","), p);
        if (!matches_any("tensorboard|wandb|all", word))
            die(EXIT_USAGE,
                "--report-to %s: is not offered; give tensorboard, wandb, or both with a comma between",
                o->report_to);
    }
    const bool validates = (o->val_data.count || o->val_split > 0) && o->val_frequency > 0;
    const bool zeroshot = o->zeroshot_data.count && o->zeroshot_frequency > 0;
    if (o->early_stop > 0 && !validates)
        die(EXIT_USAGE, "--early-stop %lld: goes by the validation loss; give --val-data or --val-split",
            (long long)o->early_stop);
    const char *best = o->best_metric;
    if (!best || strcmp(best, "none") == 0) return;
    if (!curve_is_evaluation(best) || !(strstr(best, "zeroshot_top") ? zeroshot : validates))
        die(EXIT_USAGE,
            "--best-metric %s: is not measured in this run; give the name of a metric such as zeroshot_top1 "
            "or val_loss, with /NAME of a named set, or none",
            best);
}

// ---------------------------------------------------------------- from the beginning to the end

// The names that metrics go by follow from those of the sets: (set_count) zero-shot, (val_count) validation.
static inline void monitor_name_metrics(Monitor *m, const Options *o, const ZeroshotSet *sets,
    size_t set_count, const ValidationSet *val, size_t val_count) {
    if (val_count && o->val_frequency > 0)
        snprintf(m->val_metric, sizeof m->val_metric, "val_loss%s%s", val[0].name[0] ? "/" : "", val[0].name);
    if (set_count && o->zeroshot_frequency > 0)
        snprintf(m->best_metric, sizeof m->best_metric, "zeroshot_top1%s%s", sets[0].name[0] ? "/" : "",
            sets[0].name);
    else snprintf(m->best_metric, sizeof m->best_metric, "%s", m->val_metric);
    if (o->best_metric)
        snprintf(m->best_metric, sizeof m->best_metric, "%s",
            strcmp(o->best_metric, "none") == 0 ? "" : o->best_metric);
    m->facts.val_metric = m->val_metric[0] ? m->val_metric : NULL;
    m->sets = (AdviceSet *)calloc_check(set_count, sizeof *m->sets);
    m->facts.sets = m->sets;
    m->facts.set_count = (int)set_count;
    for (size_t i = 0; i < set_count; i++) {
        m->sets[i].name = sets[i].name;
        m->sets[i].classes = (int)sets[i].classnames.count;
        m->sets[i].samples = dataset_count(&sets[i].data);
    }
}

// Opens what the records go to beside metrics.jsonl. `step`: steps done so far.
static inline void monitor_open(Monitor *m, const Options *o, Logger *log, const char *folder, int64_t step) {
    m->began = seconds_now();
    m->tensorboard = report_goes_to(o, "tensorboard");
    if (m->tensorboard) events_open(&m->events, folder, step);
    if (report_goes_to(o, "wandb"))
        companion_start(&m->companion, log, "report_wandb.py", folder, o->wandb_project_name);
}

static inline void monitor_close(Monitor *m, Logger *log) {
    if (m->tensorboard) events_close(&m->events);
    m->tensorboard = false;
    companion_stop(&m->companion, log);
    report_grid_free(&m->grid);
    free(m->sets);
    m->sets = NULL;
}

// A record goes everywhere.
static inline void monitor_record(Monitor *m, Logger *log, const Record *r) {
    logger_record(log, r);
    if (m->tensorboard) events_record(&m->events, r, (double)time(NULL));
    companion_check(&m->companion, log);
}

// ---------------------------------------------------------------- after an evaluation

// A number of the last evaluation; NaN when it has none of that name.
static inline double monitor_value(const Monitor *m, const char *name) {
    double x = NAN;
    for (int i = 0; i < 2; i++) {
        char text[RECORD_SIZE + 4];
        snprintf(text, sizeof text, "{%.*s}", (int)m->last[i].length, m->last[i].text);
        json_t *record = json_loads(text, 0, NULL), *value = json_object_get(record, name);
        if (json_is_number(value)) x = json_number_value(value);
        json_decref(record);
    }
    return x;
}

// Enters the last evaluation into the state: is the model of this step the best one so far? The start is
// none: it is saved already.
static inline bool monitor_judge(const Monitor *m, RunState *s) {
    const double val = monitor_value(m, m->val_metric), value = monitor_value(m, m->best_metric);
    if (isfinite(val)) {
        const bool better = !s->validated || val < s->best_val_loss;
        s->evaluations_without_better = better ? 0 : s->evaluations_without_better + 1;
        if (better) s->best_val_loss = val;
        s->validated = 1;
    }
    if (s->step == 0 || !isfinite(value)) return false;
    const bool best =
        !s->best_step || (curve_falls(m->best_metric) ? value < s->best_metric : value > s->best_metric);
    if (best) {
        s->best_metric = value;
        s->best_step = s->step;
    }
    return best;
}

// Says in one line what the curves show, where they show anything.
static inline void monitor_advise(Monitor *m, Logger *log, int64_t step) {
    char text[ADVICE_SIZE];
    FILE *f = log->metrics.fd < 0 ? NULL : fopen(log->metrics.path, "rb");
    if (!f) return;
    Curves history = curves_read(f);
    fclose(f);
    const Advice a = advice_at(text, &history, step, &m->facts);
    if (a != ADVICE_NONE) logger_print(log, "advice       %s: %s", advice_name(a), text);
    curves_free(&history);
}

static inline bool monitor_stops(const Options *o, const RunState *s) {
    return o->early_stop > 0 && s->evaluations_without_better >= o->early_stop;
}

#endif
