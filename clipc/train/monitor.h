// Watching a run: what its curves show (a line of advice), which checkpoint is the best, when to stop early,
// and where its records go.
//
//     advice_at(text, &curves, step, &facts);   Advice, ADVICE_NONE when there is nothing to say
//     monitor_record(&monitor, &log, &record);  to metrics.jsonl and --report-to
//     monitor_judge(&monitor, &state);          is this the best model so far?
//
// Advice depends on the history (metrics.jsonl) alone: a mismatched activation, a rate too high, overfitting,
// forgetting, underfitting, each with its figures and what helps, and nothing for a healthy run. The signs
// are those of the fine-tuning guides (--help strategies); each asks for more than the noise of a
// measurement. The first zero-shot set is the target; the others are general ones: what the model could do
// before.
#ifndef CLIPC_MONITOR_H
#define CLIPC_MONITOR_H

#include "clipc/model/checkpoint.h" // RunState
#include "clipc/train/evaluate.h"   // ZeroshotSet, metric_name
#include "clipc/train/validation.h" // ValidationSet
#include "clipc/base/plot.h"        // Curves
#include "clipc/base/strategies.h"  // StrategyGiven
#include "clipc/train/trackers.h"   // EventFile, Companion

// ---------------------------------------------------------------- curves

// Is this the curve of a share, of an evaluation, and one that is better the lower it is?
static inline bool curve_is_share(const char *name) {
    return strstr(name, "zeroshot_top") || strstr(name, "_R@") || strstr(name, "mean_recall");
}
static inline bool curve_is_evaluation(const char *name) {
    return curve_is_share(name) || strstr(name, "val_loss") || strstr(name, "_rank");
}
static inline bool curve_falls(const char *name) { return strstr(name, "loss") || strstr(name, "_rank"); }

// How many points a curve has up to and including a step; NULL has none.
static inline size_t curve_until(const Curve *c, double step) {
    size_t n = c ? c->n : 0;
    while (n > 0 && c->x[n - 1] > step) n--;
    return n;
}

// Mean of the finite values among points from … to - 1; NaN when there are none.
static inline double curve_mean(const Curve *c, size_t from, size_t to) {
    double sum = 0;
    size_t known = 0;
    for (size_t i = from; i < to; i++)
        if (isfinite(c->y[i])) {
            sum += c->y[i];
            known++;
        }
    return known ? sum / (double)known : NAN;
}

// Mean over the steps after `after`, up to and including `until`.
static inline double curve_mean_between(const Curve *c, double after, double until) {
    return curve_mean(c, curve_until(c, after), curve_until(c, until));
}

// Training losses are compared as means over a window of logged steps.
enum { WINDOW_MOST = 50, WINDOW_LEAST = 5 };

// How many of n points a window has: a third of them at most. Below WINDOW_LEAST nothing is concluded.
static inline size_t curve_window(size_t n) { return (size_t)min_i64((int64_t)n / 3, WINDOW_MOST); }

// The upper median of points from … to - 1; what is not finite counts as infinite.
static inline double curve_median(const Curve *c, size_t from, size_t to) {
    double *sorted = (double *)malloc_check((to - from) * sizeof *sorted);
    for (size_t i = from; i < to; i++) sorted[i - from] = isfinite(c->y[i]) ? c->y[i] : INFINITY;
    qsort(sorted, to - from, sizeof *sorted, compare_doubles);
    const double middle = sorted[(to - from) / 2];
    free(sorted);
    return middle;
}

// ---------------------------------------------------------------- advice: what it is made from

enum { ADVICE_SIZE = 512, ADVICE_LOCK_SIZE = 96 };

#define ADVICES(X)                \
    X(NONE, "")                   \
    X(ACTIVATION, "mismatch")     \
    X(RATE, "rate too high")      \
    X(OVERFITTING, "overfitting") \
    X(FORGETTING, "forgetting")   \
    X(UNDERFITTING, "underfitting")
#define X(name, words) ADVICE_##name,
typedef enum { ADVICES(X) ADVICE_COUNT } Advice;
#undef X

static inline const char *advice_name(Advice a) {
#define X(name, words) words,
    static const char *const names[ADVICE_COUNT] = {ADVICES(X)};
#undef X
    return names[a];
}

typedef struct {
    const char *name; // "", or that of --zeroshot-data NAME=PATH
    int classes;
    int64_t samples;
} AdviceSet;

// What the curves do not say about the run.
typedef struct {
    int64_t pairs;         // in a step's loss: guessing costs ln(pairs)
    int64_t steps, warmup; // of the whole run
    bool pretrained;       // both towers start with trained weights
    bool quick_gelu;
    const char *val_metric; // val_loss or val_loss/NAME of the first set; NULL: no validation
    const AdviceSet *sets;  // (set_count) the target first
    int set_count;
    bool locked;           // part of the model is
    const char *lock_more; // the option that would lock more; NULL: there is nothing left to lock
} AdviceFacts;

// Training losses, each a mean over a window: at the start, the lowest so far, now.
typedef struct {
    double start, lowest, now;
    double spread; // the largest distance from `now` within the last window
    bool known;
} LossTrend;

static inline LossTrend loss_trend(const Curve *loss, double step) {
    const size_t n = curve_until(loss, step), window = curve_window(n);
    LossTrend t = {NAN, INFINITY, NAN, 0, window >= WINDOW_LEAST};
    if (!t.known) return t;
    t.start = curve_mean(loss, 0, window);
    t.now = curve_mean(loss, n - window, n);
    for (size_t from = 0; from + window <= n; from += window)
        t.lowest = fmin(t.lowest, curve_mean(loss, from, from + window));
    for (size_t i = n - window; i < n; i++) t.spread = fmax(t.spread, fabs(loss->y[i] - t.now));
    return t;
}

// Top-1 accuracy of a set at the first evaluation, and at the last one up to a step.
typedef struct {
    double start, now;
    double error;      // standard error of `start`, from the number of samples
    bool known, fresh; // fresh: measured at this very step
} Accuracy;

static inline Accuracy accuracy_of(const Curves *h, const AdviceSet *set, double step) {
    char name[160];
    metric_name(name, sizeof name, "zeroshot_top1", set->name);
    const Curve *c = curves_find(h, name);
    const size_t n = curve_until(c, step);
    Accuracy a = {NAN, NAN, NAN, n > 0 && set->samples > 0 && set->classes > 1, n > 0 && c->x[n - 1] == step};
    if (!a.known) return a;
    a.start = c->y[0];
    a.now = c->y[n - 1];
    const double variance = fmax(a.start * (1 - a.start), 0.01); // not 0 where all or none are right
    a.error = sqrt(variance / (double)set->samples);
    return a;
}

// Has the target gained over its start by more than the noise?
static inline bool accuracy_gained(const Accuracy *a) {
    return a->known && a->now - a->start > fmax(0.01, 2 * a->error);
}

// ---------------------------------------------------------------- advice: the signs

// Pretrained weights that guess on every set: usually the activation or the normalisation is not the one that
// they were trained with.
static inline bool advise_activation(char *text, const Curves *h, const AdviceFacts *f) {
    Accuracy first = {NAN, NAN, NAN, false, false};
    if (!f->pretrained || !f->set_count) return false;
    for (int i = 0; i < f->set_count; i++) {
        const Accuracy a = accuracy_of(h, &f->sets[i], 0);
        const double chance = 1.0 / f->sets[i].classes;
        if (!a.known || !(a.start <= chance + 3 * sqrt(chance * (1 - chance) / (double)f->sets[i].samples)))
            return false;
        if (i == 0) first = a;
    }
    snprintf(text, ADVICE_SIZE,
        "zero-shot accuracy at the start is %.1f%%, and guessing among %d classes gives %.1f%%; if these "
        "weights should know such images: check --classnames, the images' mean and standard deviation, and "
        "the activation (%s here; OpenAI's weights want QuickGELU%s)",
        100 * first.start, f->sets[0].classes, 100.0 / f->sets[0].classes,
        f->quick_gelu ? "QuickGELU" : "GELU", f->quick_gelu ? "" : ": --force-quick-gelu");
    return true;
}

// The loss is back at what guessing costs, or never left it; it rises; or it rises while gradients explode.
static inline bool advise_rate(char *text, const Curves *h, double step, const AdviceFacts *f) {
    static const char helps[] = "lower --lr to a third or a tenth (lr_find measures it), --grad-clip-norm 1";
    const Curve *norm = curves_find(h, "grad_norm");
    const LossTrend t = loss_trend(curves_find(h, "loss"), step);
    const double guess = log((double)f->pairs);
    const size_t n = curve_until(norm, step), window = curve_window(n);
    if (!t.known || f->pairs < 2) return false;
    if (t.now > 0.98 * guess && t.lowest < 0.95 * guess) {
        snprintf(text, ADVICE_SIZE,
            "the training loss was %.4g and is now %.4g; guessing costs ln(%lld) = %.4g: the model has "
            "collapsed; %s, and start again",
            t.lowest, t.now, (long long)f->pairs, guess, helps);
        return true;
    }
    if (step > (double)f->warmup && step > 0.1 * (double)f->steps &&
        fabs(t.now - guess) + t.spread < 0.01 * guess) {
        snprintf(text, ADVICE_SIZE,
            "the training loss stays at %.4g, and guessing costs ln(%lld) = %.4g: nothing is learned; %s; if "
            "--lr is small already, raise it",
            t.now, (long long)f->pairs, guess, helps);
        return true;
    }
    if (t.now > 1.1 * t.start && t.now > t.start + 0.1 && t.now > 1.1 * t.lowest) {
        snprintf(text, ADVICE_SIZE,
            "the training loss rises, from %.4g at the start to %.4g; %s, more --warmup", t.start, t.now,
            helps);
        return true;
    }
    if (window < WINDOW_LEAST || !(t.now > 1.05 * t.lowest)) return false;
    const double before = curve_median(norm, 0, n - window), now = curve_median(norm, n - window, n);
    if (!(now > 10 * before)) return false;
    snprintf(text, ADVICE_SIZE,
        "the gradient norm explodes, from %.3g to %.3g, and the training loss rises, from %.4g to %.4g; %s",
        before, now, t.lowest, t.now, helps);
    return true;
}

// "lock more (OPTION), ", or "" when there is nothing left to lock.
static inline void advice_lock(char text[ADVICE_LOCK_SIZE], const AdviceFacts *f) {
    text[0] = 0;
    if (f->lock_more) snprintf(text, ADVICE_LOCK_SIZE, "lock more (%s), ", f->lock_more);
}

// The validation loss has risen at three evaluations in a row while the training loss fell.
static inline bool advise_overfitting(char *text, const Curves *h, double step, const AdviceFacts *f) {
    const Curve *val = f->val_metric ? curves_find(h, f->val_metric) : NULL;
    const Curve *loss = curves_find(h, "loss");
    const size_t n = curve_until(val, step);
    if (n < 4 || val->x[n - 1] != step || !loss) return false;
    const double *v = val->y + n - 4, *at = val->x + n - 4;
    if (!(v[0] < v[1] && v[1] < v[2] && v[2] < v[3]) || !(v[3] > 1.01 * v[0])) return false;
    const double before = curve_mean_between(loss, at[0], at[1]);
    const double now = curve_mean_between(loss, at[2], at[3]);
    if (!(now < before)) return false;
    size_t best = 0;
    char lock[ADVICE_LOCK_SIZE];
    for (size_t i = 1; i < n; i++)
        if (!(val->y[i] >= val->y[best])) best = i;
    advice_lock(lock, f);
    snprintf(text, ADVICE_SIZE,
        "%s has risen three times, %.4g to %.4g, while the training loss fell, %.4g to %.4g; it was best at "
        "step %.0f; lower --lr, fewer --epochs (--early-stop 3), %shigher --wd, more augmentation "
        "(--aug-cfg)",
        f->val_metric, v[0], v[3], before, now, val->x[best], lock);
    return true;
}

// The target has gained, a general set has lost.
static inline bool advise_forgetting(char *text, const Curves *h, double step, const AdviceFacts *f) {
    if (f->set_count < 2 || !f->pretrained) return false;
    const Accuracy target = accuracy_of(h, &f->sets[0], step);
    int worst = 0;
    double most = 0;
    if (!target.fresh || !accuracy_gained(&target)) return false;
    for (int i = 1; i < f->set_count; i++) {
        const Accuracy a = accuracy_of(h, &f->sets[i], step);
        const double loss = a.start - a.now;
        if (a.known && loss > fmax(0.02, 3 * a.error) && loss > most) {
            most = loss;
            worst = i;
        }
    }
    if (!worst) return false;
    const Accuracy general = accuracy_of(h, &f->sets[worst], step);
    char lock[ADVICE_LOCK_SIZE] = "lock early layers (--lock-image --lock-image-unlocked-groups 4), ";
    if (f->locked) advice_lock(lock, f);
    snprintf(text, ADVICE_SIZE,
        "zero-shot on %s went from %.1f%% to %.1f%%, but on %s from %.1f%% to %.1f%%; lower --lr, %saverage "
        "with the starting weights (wise_ft), mix general data into --train-data",
        f->sets[0].name[0] ? f->sets[0].name : "the target", 100 * target.start, 100 * target.now,
        f->sets[worst].name[0] ? f->sets[worst].name : "the general set", 100 * general.start,
        100 * general.now, lock);
    return true;
}

// Half of the run is over, the losses are still as high as at the start, and the target has gained nothing.
static inline bool advise_underfitting(char *text, const Curves *h, double step, const AdviceFacts *f) {
    const LossTrend t = loss_trend(curves_find(h, "loss"), step);
    const Curve *val = f->val_metric ? curves_find(h, f->val_metric) : NULL;
    const size_t n = curve_until(val, step);
    if (step < 0.5 * (double)f->steps || !t.known || !(t.now > 0.97 * t.start) ||
        !(t.now > 0.25 * log((double)f->pairs)))
        return false;
    if (n > 1 && !(val->y[n - 1] > 0.97 * val->y[0])) return false;
    Accuracy target = {NAN, NAN, NAN, false, false};
    if (f->set_count) target = accuracy_of(h, &f->sets[0], step);
    if (accuracy_gained(&target) || (n < 2 && !target.known)) return false;
    int length =
        snprintf(text, ADVICE_SIZE, "the training loss stays at %.4g (%.4g at the start)", t.now, t.start);
    if (n > 1)
        length += snprintf(text + length, ADVICE_SIZE - (size_t)length, ", %s at %.4g (%.4g)", f->val_metric,
            val->y[n - 1], val->y[0]);
    if (target.known)
        length += snprintf(text + length, ADVICE_SIZE - (size_t)length, ", zero-shot at %.1f%% (%.1f%%)",
            100 * target.now, 100 * target.start);
    snprintf(text + length, ADVICE_SIZE - (size_t)length, "; higher --lr, more --epochs, %slower --wd",
        f->locked ? "unlock more, " : "");
    return true;
}

// What the history up to and including a step shows; the most serious finding wins. `text` does not contain
// the finding's name, advice_name().
static inline Advice advice_at(
    char text[ADVICE_SIZE], const Curves *history, int64_t step, const AdviceFacts *facts) {
    const double at = (double)step;
    text[0] = 0;
    if (step == 0) return advise_activation(text, history, facts) ? ADVICE_ACTIVATION : ADVICE_NONE;
    if (advise_rate(text, history, at, facts)) return ADVICE_RATE;
    if (advise_overfitting(text, history, at, facts)) return ADVICE_OVERFITTING;
    if (advise_forgetting(text, history, at, facts)) return ADVICE_FORGETTING;
    if (advise_underfitting(text, history, at, facts)) return ADVICE_UNDERFITTING;
    return ADVICE_NONE;
}

// ---------------------------------------------------------------- has the run died?

// The losses of all steps, logged or not, as shares of what guessing costs.
typedef struct {
    double average;         // running, over some ten steps
    double first, lowest;   // of the first step; of the average, from the tenth step on
    int64_t steps;          // so far
    int64_t near, flat;     // steps in a row within 1% and within 0.1% of guessing
    bool dead;              // nothing is learned any more
    char text[ADVICE_SIZE]; // then: what is seen, and what helps
} LossWatch;

enum { WATCH_COLLAPSED = 20, WATCH_STAGNANT = 40 };

// Adds the loss of a step, where guessing costs `guess`. `settled`: the warmup is over, and a tenth of the
// run. Returns whether the run has died in this step: the loss has been at that of guessing for
// WATCH_COLLAPSED steps after it was 5% below; or for WATCH_STAGNANT, if the run has settled; or closely, if
// it began 5% above.
static inline bool watch_loss(LossWatch *w, double loss, double guess, bool settled) {
    const double share = loss / guess, distance = fabs(share - 1);
    const bool dead = w->dead;
    if (!(guess > 0)) return false;
    if (!w->steps++) w->first = w->average = w->lowest = share;
    w->average += 0.1 * (share - w->average);
    if (w->steps >= 10) w->lowest = fmin(w->lowest, w->average);
    w->near = distance < 0.01 ? w->near + 1 : 0;
    w->flat = distance < 0.001 ? w->flat + 1 : 0;
    if (w->average < 0.97) w->dead = false; // it learns again
    const bool collapsed = w->lowest < 0.95 && w->near >= WATCH_COLLAPSED;
    const bool stagnant =
        (settled && w->near >= WATCH_STAGNANT) || (w->first > 1.05 && w->flat >= WATCH_STAGNANT);
    if (dead || !(collapsed || stagnant)) return false;
    w->dead = true;
    snprintf(w->text, sizeof w->text,
        "the training loss has been %.4g for %lld steps, and guessing costs %.4g: %s; lower --lr to a third "
        "or a "
        "tenth (lr_find measures it), --grad-clip-norm 1, and start again%s",
        loss, (long long)w->near, guess, collapsed ? "the model has collapsed" : "nothing is learned",
        collapsed ? "" : "; if --lr is small already, raise it, and look at the data");
    return true;
}

// ---------------------------------------------------------------- the monitor of a run

typedef struct {
    bool tensorboard; // events are written
    EventFile events;
    Companion companion;
    Record last[2]; // the last evaluation of the weights, and of their moving average; length 0: none
    char best_metric[192], val_metric[192]; // what decides checkpoints/best and --early-stop; "": nothing
    AdviceSet *sets;                        // (facts.set_count)
    AdviceFacts facts;
    StrategyGiven given;
} Monitor;

static inline bool report_goes_to(const Options *o, const char *where) {
    const size_t n = strlen(where);
    for (const char *p = o->report_to; p && *p; p += strcspn(p, ","), p += *p == ',')
        if ((strcspn(p, ",") == n && memcmp(p, where, n) == 0) || strncmp(p, "all", strcspn(p, ",")) == 0)
            return true;
    return false;
}

// Ends the program where the options ask for what the run does not measure; before any data is read.
static inline void monitor_check_options(const Options *o) {
    for (const char *p = o->report_to; p && *p; p += strcspn(p, ","), p += *p == ',') {
        char word[32];
        snprintf(word, sizeof word, "%.*s", (int)strcspn(p, ","), p);
        if (!matches_any("tensorboard|wandb|all", word))
            die(EXIT_USAGE, "--report-to %s: is not offered; give tensorboard, wandb, or tensorboard,wandb",
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

// Names the metrics that decide, after the first zero-shot set (set_count) and validation set (val_count).
static inline void monitor_name_metrics(Monitor *m, const Options *o, const ZeroshotSet *sets,
    size_t set_count, const ValidationSet *val, size_t val_count) {
    if (val_count && o->val_frequency > 0)
        metric_name(m->val_metric, sizeof m->val_metric, "val_loss", val[0].name);
    if (set_count && o->zeroshot_frequency > 0)
        metric_name(m->best_metric, sizeof m->best_metric, "zeroshot_top1", sets[0].name);
    else snprintf(m->best_metric, sizeof m->best_metric, "%s", m->val_metric);
    if (o->best_metric)
        snprintf(m->best_metric, sizeof m->best_metric, "%s",
            strcmp(o->best_metric, "none") == 0 ? "" : o->best_metric);
    make_showable(m->best_metric); // as the names of metrics are
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

// Opens the places to which records go besides metrics.jsonl. `step`: steps done so far.
static inline void monitor_open(Monitor *m, const Options *o, Logger *log, const char *folder, int64_t step) {
    if (comm_rank()) return; // process 0 reports
    m->tensorboard = report_goes_to(o, "tensorboard");
    if (m->tensorboard) events_open(&m->events, folder, step);
    if (report_goes_to(o, "wandb"))
        companion_start(&m->companion, log, "report_wandb.py", folder, o->wandb_project_name);
}

static inline void monitor_close(Monitor *m, Logger *log) {
    if (m->tensorboard) events_close(&m->events);
    m->tensorboard = false;
    companion_stop(&m->companion, log);
    free(m->sets);
    m->sets = NULL;
}

// Writes a record to metrics.jsonl and everywhere else.
static inline void monitor_record(Monitor *m, Logger *log, const Record *r) {
    logger_record(log, r);
    if (m->tensorboard) events_record(&m->events, r, (double)time(NULL));
    companion_check(&m->companion, log);
}

// ---------------------------------------------------------------- after an evaluation

// A number of the last evaluation, by its name; NaN when it was not measured.
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

// Updates best-so-far and patience from the last evaluation; returns true when this step is the new best.
// Step 0 never counts: its weights are the input file.
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

// Prints one line of advice, if the curves give reason for it.
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
