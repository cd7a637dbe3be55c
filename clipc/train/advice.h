// What the curves of a run show, in one line with its figures, and what helps: a mismatched activation, a
// rate too high, overfitting, forgetting, underfitting. Functions of the history (metrics.jsonl) alone, which
// say nothing of a healthy run.
//
//     advice_at(text, &curves, step, &facts);   Advice, ADVICE_NONE when there is nothing to say
//
// The signs are those of the guides (--help strategies); each asks for more than the noise of a measurement.
// The target is the first zero-shot set, all others are general ones: what the model could do before.
#ifndef CLIPC_ADVICE_H
#define CLIPC_ADVICE_H

#include "clipc/base/plot.h" // Curves

enum {
    ADVICE_SIZE = 512,
    ADVICE_LOCK_SIZE = 96,
    ADVICE_WINDOW = 50,
    ADVICE_LEAST = 5
}; // training steps that make a mean: at most, at least

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

// What the curves do not say of the run.
typedef struct {
    int64_t pairs;         // that the loss is taken over: guessing costs ln(pairs)
    int64_t steps, warmup; // of the whole run
    bool pretrained;       // both towers begin with trained weights
    bool quick_gelu;
    const char *val_metric; // "val_loss", with /NAME that of the first set; NULL: no validation
    const AdviceSet *sets;  // (set_count) the target first
    int set_count;
    bool locked;           // part of the model is
    const char *lock_more; // the option that locks more of it; NULL: there is no more to lock
} AdviceFacts;

// ---------------------------------------------------------------- reading the curves

// The points of a curve up to a step; NULL has none.
static inline size_t curve_until(const Curve *c, double step) {
    size_t n = c ? c->n : 0;
    while (n > 0 && c->x[n - 1] > step) n--;
    return n;
}

// Mean of the finite values of points from … to - 1; NaN when there are none.
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

// Mean over the steps behind `after`, up to and including `until`.
static inline double curve_mean_between(const Curve *c, double after, double until) {
    return curve_mean(c, curve_until(c, after), curve_until(c, until));
}

// How many of n points make a mean.
static inline size_t curve_window(size_t n) { return (size_t)min_i64((int64_t)n / 3, ADVICE_WINDOW); }

// Training losses in means of a window each: at the start, lowest on the way, now.
typedef struct {
    double start, lowest, now;
    double spread; // of the values now, largest distance from their mean
    bool known;
} LossTrend;

static inline LossTrend loss_trend(const Curve *loss, double step) {
    const size_t n = curve_until(loss, step), window = curve_window(n);
    LossTrend t = {NAN, INFINITY, NAN, 0, window >= ADVICE_LEAST};
    if (!t.known) return t;
    t.start = curve_mean(loss, 0, window);
    t.now = curve_mean(loss, n - window, n);
    for (size_t from = 0; from + window <= n; from += window)
        t.lowest = fmin(t.lowest, curve_mean(loss, from, from + window));
    for (size_t i = n - window; i < n; i++) t.spread = fmax(t.spread, fabs(loss->y[i] - t.now));
    return t;
}

// The middle one of points from … to - 1; what is not finite counts as infinite.
static inline double curve_median(const Curve *c, size_t from, size_t to) {
    double *sorted = (double *)malloc_check((to - from) * sizeof *sorted);
    for (size_t i = from; i < to; i++) sorted[i - from] = isfinite(c->y[i]) ? c->y[i] : INFINITY;
    qsort(sorted, to - from, sizeof *sorted, compare_doubles);
    const double middle = sorted[(to - from) / 2];
    free(sorted);
    return middle;
}

// Top-1 accuracy of a set at the first evaluation and at the last one up to the step.
typedef struct {
    double start, now;
    double error;      // standard error of an accuracy measured on so many samples
    bool known, fresh; // fresh: measured at this step
} Accuracy;

static inline Accuracy accuracy_of(const Curves *h, const AdviceSet *set, double step) {
    char name[160];
    snprintf(name, sizeof name, "zeroshot_top1%s%s", set->name[0] ? "/" : "", set->name);
    const Curve *c = curves_find(h, name);
    const size_t n = curve_until(c, step);
    Accuracy a = {NAN, NAN, NAN, n > 0 && set->samples > 0 && set->classes > 1, n > 0 && c->x[n - 1] == step};
    if (!a.known) return a;
    a.start = c->y[0];
    a.now = c->y[n - 1];
    a.error = sqrt(fmax(a.start * (1 - a.start), 0.01) /
                   (double)set->samples); // 0.01: not 0 where all or nothing is right
    return a;
}

// Has the target gained over the start, beyond the noise?
static inline bool accuracy_gained(const Accuracy *a) {
    return a->known && a->now - a->start > fmax(0.01, 2 * a->error);
}

// ---------------------------------------------------------------- the signs

// Pretrained weights that guess on every set: usually another activation or normalisation than they were
// trained with.
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
        "zero-shot of the start is %.1f%%, guessing among %d classes gives %.1f%%; if these weights know "
        "such pictures: check --classnames, the mean and standard deviation "
        "of the pictures, and the activation (%s here; OpenAI's weights want QuickGELU%s)",
        100 * first.start, f->sets[0].classes, 100.0 / f->sets[0].classes,
        f->quick_gelu ? "QuickGELU" : "GELU", f->quick_gelu ? "" : ": --force-quick-gelu");
    return true;
}

// The loss back at, or never off, what guessing costs; rising; or gradients that explode while it rises.
static inline bool advise_rate(char *text, const Curves *h, double step, const AdviceFacts *f) {
    static const char helps[] = "lower --lr to a third or a tenth (lr_find measures it), --grad-clip-norm 1";
    const Curve *norm = curves_find(h, "grad_norm");
    const LossTrend t = loss_trend(curves_find(h, "loss"), step);
    const double guess = log((double)f->pairs);
    const size_t n = curve_until(norm, step), window = curve_window(n);
    if (!t.known || f->pairs < 2) return false;
    if (t.now > 0.98 * guess && t.lowest < 0.95 * guess) {
        snprintf(text, ADVICE_SIZE,
            "the training loss was %.4g and is %.4g, where guessing costs ln(%lld) = %.4g: the model has "
            "collapsed; %s, and start again",
            t.lowest, t.now, (long long)f->pairs, guess, helps);
        return true;
    }
    if (step > (double)f->warmup && step > 0.1 * (double)f->steps &&
        fabs(t.now - guess) + t.spread < 0.01 * guess) {
        snprintf(text, ADVICE_SIZE,
            "the training loss stays at %.4g, where guessing costs ln(%lld) = %.4g: nothing is learned; %s; "
            "where it is small already, raise it",
            t.now, (long long)f->pairs, guess, helps);
        return true;
    }
    if (t.now > 1.1 * t.start && t.now > t.start + 0.1 && t.now > 1.1 * t.lowest) {
        snprintf(text, ADVICE_SIZE, "the training loss rises, %.4g at the start, %.4g now; %s, more --warmup",
            t.start, t.now, helps);
        return true;
    }
    if (window < ADVICE_LEAST || !(t.now > 1.05 * t.lowest)) return false;
    const double before = curve_median(norm, 0, n - window), now = curve_median(norm, n - window, n);
    if (!(now > 10 * before)) return false;
    snprintf(text, ADVICE_SIZE,
        "the gradient's norm explodes, %.3g before, %.3g now, and the training loss rises, %.4g to %.4g; %s",
        before, now, t.lowest, t.now, helps);
    return true;
}

// What to lock beyond what is locked, with a comma behind it; nothing when there is no more.
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
        "step %.0f; lower --lr, fewer --epochs (--early-stop 3), %shigher --wd, "
        "more augmentation (--aug-cfg)",
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
        "zero-shot on %s went %.1f%% to %.1f%%, but on %s %.1f%% to %.1f%%; lower --lr, %sensemble with the "
        "start (wise_ft), mix general data into --train-data",
        f->sets[0].name[0] ? f->sets[0].name : "the target", 100 * target.start, 100 * target.now,
        f->sets[worst].name[0] ? f->sets[worst].name : "the general set", 100 * general.start,
        100 * general.now, lock);
    return true;
}

// Half of the run is over, the losses are high and where they were, and the target has gained nothing.
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

// What the history up to and including a step shows; the gravest sign counts. The text says it without the
// sign's name.
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

#endif
