// Learning-rate schedules: the rate of a step as a function of the step alone, so that a resumed run
// continues exactly; and the schedule that the options ask for, with its plot (--print-schedule).
//
//     Schedule s = schedule_create(SCHEDULE_COSINE, 1e-4, total);     every parameter at its default
//     s.warmup = total / 10;
//     double lr = schedule_lr(&s, t);                                 t = 0 … total-1
#ifndef CLIPC_SCHEDULES_H
#define CLIPC_SCHEDULES_H

#include "clipc/base/options.h" // Options, share_of
#include "clipc/base/plot.h"    // plot_write

#include <math.h> // cos, pow

// name, as --lr-scheduler has it
#define SCHEDULES(X)               \
    X(COSINE, "cosine")            \
    X(LINEAR, "linear")            \
    X(STLR, "stlr")                \
    X(EXPONENTIAL, "exponential")  \
    X(STEP, "step")                \
    X(RESTARTS, "cosine-restarts") \
    X(ONE_CYCLE, "one-cycle")      \
    X(CONST, "const")              \
    X(CONST_COOLDOWN, "const-cooldown")

#define X(kind, name) SCHEDULE_##kind,
typedef enum { SCHEDULES(X) SCHEDULE_COUNT } ScheduleKind;
#undef X

// Only the fields that the comment's schedules name are read by them.
typedef struct {
    ScheduleKind kind;
    double lr;     // peak rate
    int64_t total; // steps of the run
    // Linear warmup, 0 … total steps; stlr and one-cycle bring their own ramp and take none. The rate of
    // step t is lr (t + offset) / warmup, offset 1 as in open_clip, 0 as in transformers.
    int64_t warmup, warmup_offset;
    double min_lr_ratio; // cosine, linear, exponential, step, restarts: lowest rate / peak rate
    double cycles;     // cosine: periods (1/2 falls once). restarts: equal falls, in place of t_0 and t_mult
    double gamma;      // exponential, step: factor for every step_size steps
    int64_t step_size; // exponential, step: 1 or more
    int64_t t_0;       // restarts: steps to the first restart, 1 or more
    int64_t t_mult;    // restarts: length of a period / length of the one before, 1 or more
    double cut_frac;   // stlr: share of the run in which the rate rises
    double stlr_ratio; // stlr: peak rate / lowest rate
    double pct_start;  // one-cycle: share of the run in which the rate rises
    double div_factor; // one-cycle: peak rate / first rate
    double final_div_factor; // one-cycle: first rate / last rate
    bool anneal_linear;      // one-cycle: straight lines in place of half cosines
    bool three_phase;        // one-cycle: down to the first rate as steeply as up, then on to the last rate
    bool cycle_momentum;     // one-cycle: beta1 falls while the rate rises, and rises while it falls
    int64_t cooldown;        // const-cooldown: steps of the cooldown, which ends the run
    double cooldown_end;     // const-cooldown: the rate that it ends at
    double cooldown_power;   // const-cooldown: the power of the fall
} Schedule;

// Every parameter at the default of its paper or of the usual programs. What depends on the length of an
// epoch (step_size of exponential, cooldown) is left to the caller.
static inline Schedule schedule_create(ScheduleKind kind, double lr, int64_t total) {
    Schedule s;
    memset(&s, 0, sizeof s);
    s.kind = kind;
    s.lr = lr;
    s.total = total;
    s.warmup_offset = 1;
    s.cycles = kind == SCHEDULE_RESTARTS ? 0 : 0.5;
    s.gamma = kind == SCHEDULE_STEP ? 0.1 : 0.95;
    s.step_size = kind == SCHEDULE_STEP && total > 0
                      ? (total + 2) / 3 // rounded up, so that there is no fourth phase of a step or two
                      : 1;
    s.t_0 = total >= 4 ? total / 4 : 1;
    s.t_mult = 2;
    s.cut_frac = 0.1;
    s.stlr_ratio = 32;
    s.pct_start = 0.3;
    s.div_factor = 25;
    s.final_div_factor = 1e4;
    s.cooldown_power = 1;
    return s;
}

static inline bool schedule_has_own_ramp(ScheduleKind kind) {
    return kind == SCHEDULE_STLR || kind == SCHEDULE_ONE_CYCLE;
}

// 1 at p = 0, 0 at p = 1, half a period of the cosine in between
static inline double half_cosine(double p) { return 0.5 * (1 + cos(3.14159265358979323846 * p)); }

// a/b clamped to 0 … 1; 1 where b is 0
static inline double schedule_part(double a, double b) { return b <= 0 || a >= b ? 1 : a <= 0 ? 0 : a / b; }

// Cosine with restarts (Loshchilov and Hutter 2017), periods T0, T0 M, T0 M^2 … They are counted in integers:
// the closed form, which takes logarithms, misses restarts (M = 3, t = 121 T0).
static inline double restarts_factor(const Schedule *s, int64_t t, int64_t length) {
    if (s->cycles > 0) {
        if (t >= length) return 0;
        return half_cosine(fmod(s->cycles * ((double)t / (double)length), 1));
    }
    int64_t period = s->t_0;
    if (s->t_mult == 1) t %= period;
    while (t >= period) {
        t -= period;
        period *= s->t_mult;
    }
    return half_cosine((double)t / (double)period);
}

// Slanted triangular (Howard and Ruder 2018, eq. 3). The paper's fall takes cut (1/cut_frac - 1) steps, which
// ends below the lowest rate where cut was rounded; here the fall takes the steps that are left.
static inline double stlr_factor(const Schedule *s, int64_t t) {
    const int64_t cut = (int64_t)floor((double)s->total * s->cut_frac);
    const double p =
        t < cut ? (double)t / (double)cut : 1 - schedule_part((double)(t - cut), (double)(s->total - cut));
    return (1 + p * (s->stlr_ratio - 1)) / s->stlr_ratio;
}

// One cycle (Smith and Topin 2018; the phases end where those of torch's OneCycleLR do): from `first` up to
// `peak` and down to `last`; with three phases down to `middle`, then on to `last`.
static inline double one_cycle_value(
    const Schedule *s, int64_t t, double first, double peak, double middle, double last) {
    const double rise = s->pct_start * (double)s->total - 1;
    const double fall = 2 * s->pct_start * (double)s->total - 2;
    const double end = (double)s->total - 1;
    const double x = (double)t;
    double from = peak;
    double to = last;
    double start = rise;
    double stop = end;
    if (x <= rise) {
        from = first;
        to = peak;
        start = 0;
        stop = rise;
    } else if (s->three_phase && x <= fall) {
        to = middle;
        stop = fall;
    } else if (s->three_phase) {
        from = middle;
        start = fall;
    }
    const double p = schedule_part(x - start, stop - start);
    return s->anneal_linear ? from + (to - from) * p : to + (from - to) * half_cosine(p);
}

// The rate of step t = 0 … total-1. Warmup as in open_clip: lr (t+1)/W for t < W. After it, with
// u = t - W and p = u/(total-W), lr times
//   cosine (Loshchilov and Hutter 2017)  m + (1-m) 1/2 (1 + cos(pi p))      m = min_lr_ratio
//   linear                               m + (1-m) (1-p)
//   exponential                          m + (1-m) gamma^(u/step_size)
//   step                                 m + (1-m) gamma^floor(u/step_size)
//   restarts                             m + (1-m) 1/2 (1 + cos(pi u_i/T_i)), u_i steps into a period of T_i
//   const                                1
//   const with cooldown (open_clip)      1, and in step e of the last E (1-e/E)^power (1 - end) + end
// After the run's end the rate stays at its last value. Every rate is finite, whatever the lengths.
static inline double schedule_lr(const Schedule *s, int64_t t) {
    const double m = s->min_lr_ratio, first = s->lr / s->div_factor;
    if (s->kind == SCHEDULE_STLR) return s->lr * stlr_factor(s, t);
    if (s->kind == SCHEDULE_ONE_CYCLE)
        return one_cycle_value(s, t, first, s->lr, first, first / s->final_div_factor);
    if (t < s->warmup) return s->lr * (double)(t + s->warmup_offset) / (double)s->warmup;
    const int64_t u = t - s->warmup, length = s->total - s->warmup;
    const double p = schedule_part((double)u, (double)length);
    double fall = 1;
    switch (s->kind) {
    case SCHEDULE_COSINE: fall = half_cosine(2 * s->cycles * p); break;
    case SCHEDULE_LINEAR: fall = 1 - p; break;
    case SCHEDULE_EXPONENTIAL: fall = pow(s->gamma, (double)u / (double)s->step_size); break;
    case SCHEDULE_STEP: fall = pow(s->gamma, (double)(u / s->step_size)); break;
    case SCHEDULE_RESTARTS: fall = restarts_factor(s, u, length); break;
    case SCHEDULE_CONST_COOLDOWN: {
        const int64_t e = t - (s->total - s->cooldown);
        if (e < 0 || s->cooldown < 1) return s->lr;
        return pow(1 - schedule_part((double)e, (double)s->cooldown), s->cooldown_power) *
                   (s->lr - s->cooldown_end) +
               s->cooldown_end;
    }
    default: return s->lr;
    }
    return s->lr * (m + (1 - m) * fall);
}

// AdamW's beta1 of a step: `beta1`, or with cycle_momentum between .95 and .85, lowest where the rate is
// highest (torch's OneCycleLR).
static inline double schedule_beta1(const Schedule *s, int64_t t, double beta1) {
    return s->kind == SCHEDULE_ONE_CYCLE && s->cycle_momentum ? one_cycle_value(s, t, 0.95, 0.85, 0.95, 0.95)
                                                              : beta1;
}

// ---------------------------------------------------------------- from the options

static inline const char *schedule_name(ScheduleKind kind) {
    static const char *const names[] = {
#define X(kind, name) name,
        SCHEDULES(X)
#undef X
    };
    return names[kind];
}

static inline ScheduleKind schedule_kind(const Options *o) {
    int kind = 0;
    while (kind + 1 < SCHEDULE_COUNT && strcmp(o->lr_scheduler, schedule_name((ScheduleKind)kind)) != 0)
        kind++;
    return (ScheduleKind)kind;
}

// field of Options, option, the schedules that read it
#define SCHEDULE_PARAMETERS(X)                                                        \
    X(min_lr_ratio, "min-lr-ratio", "cosine|linear|exponential|step|cosine-restarts") \
    X(cut_frac, "cut-frac", "stlr")                                                   \
    X(stlr_ratio, "stlr-ratio", "stlr")                                               \
    X(gamma, "gamma", "exponential|step")                                             \
    X(step_size, "step-size", "exponential|step")                                     \
    X(t_0, "t-0", "cosine-restarts")                                                  \
    X(t_mult, "t-mult", "cosine-restarts")                                            \
    X(pct_start, "pct-start", "one-cycle")                                            \
    X(div_factor, "div-factor", "one-cycle")                                          \
    X(final_div_factor, "final-div-factor", "one-cycle")                              \
    X(anneal, "anneal", "one-cycle")                                                  \
    X(three_phase, "three-phase", "one-cycle")                                        \
    X(cycle_momentum, "cycle-momentum", "one-cycle")                                  \
    X(epochs_cooldown, "epochs-cooldown", "const-cooldown")                           \
    X(lr_cooldown_end, "lr-cooldown-end", "const-cooldown")                           \
    X(lr_cooldown_power, "lr-cooldown-power", "const-cooldown")

// Refuses contradictions that the options alone show, before any data is read, and warns of options that the
// schedule does not read. Call it after --lr and --epochs have their defaults.
static inline void schedule_check_options(Options *o) {
    const ScheduleKind kind = schedule_kind(o);
    const char *name = o->lr_scheduler;
    if (schedule_has_own_ramp(kind)) { // the settings of a resumed run hold 0
        if (options_was_set(o, warmup) && o->warmup.value > 0)
            die(EXIT_USAGE,
                "--warmup: %s has a ramp of its own; leave it out, --%s is the share of the run that rises",
                name, kind == SCHEDULE_STLR ? "cut-frac" : "pct-start");
        o->warmup.value = 0;
        o->warmup.percent = false;
    }
    const bool steps = options_was_set(o, steps);
    if (kind == SCHEDULE_CONST_COOLDOWN) {
        if (!options_was_set(o, epochs_cooldown))
            die(EXIT_USAGE, "--lr-scheduler const-cooldown: how long is the cooldown? give --epochs-cooldown "
                            "N, the last N epochs");
        if (!steps && o->epochs_cooldown > o->epochs)
            die(EXIT_USAGE, "--epochs-cooldown %lld: the run has %lld epochs; use at most that",
                (long long)o->epochs_cooldown, (long long)o->epochs);
        if (o->lr != RATE_AUTO && o->lr_cooldown_end > o->lr)
            die(EXIT_USAGE, "--lr-cooldown-end %g: is above --lr %g; it is the rate at the end of the run",
                o->lr_cooldown_end, o->lr);
    }
#define X(field, option, schedules)                                               \
    if (options_was_set(o, field) && !o->resume && !matches_any(schedules, name)) \
        warn("--" option " has no effect with --lr-scheduler %s: it is for " schedules, name);
    SCHEDULE_PARAMETERS(X)
#undef X
}

// The schedule of a run of `total` steps; steps_per_epoch is 0 where it is not known.
static inline Schedule schedule_from_options(const Options *o, int64_t total, int64_t steps_per_epoch) {
    const ScheduleKind kind = schedule_kind(o);
    Schedule s = schedule_create(kind, o->lr, total);
    s.min_lr_ratio = o->min_lr_ratio;
    s.warmup = share_of(o->warmup, total);
    if (s.warmup > total) { // open_clip's default of 10,000 steps, in a short run
        warn("--warmup %lld: the run has %lld steps; the warmup is 10%% of them: %lld", (long long)s.warmup,
            (long long)total, (long long)(total / 10));
        s.warmup = total / 10;
    }
    if (!steps_per_epoch &&
        (kind == SCHEDULE_CONST_COOLDOWN || (kind == SCHEDULE_EXPONENTIAL && !options_was_set(o, step_size))))
        die(EXIT_USAGE, "--lr-scheduler %s: how long is an epoch? give --train-data%s", o->lr_scheduler,
            kind == SCHEDULE_EXPONENTIAL ? ", or --step-size" : "");
    if (kind == SCHEDULE_EXPONENTIAL) s.step_size = steps_per_epoch;
    if (options_was_set(o, step_size)) s.step_size = o->step_size;
    if (options_was_set(o, gamma)) s.gamma = o->gamma;
    if (options_was_set(o, t_0)) s.t_0 = o->t_0;
    s.t_mult = o->t_mult;
    s.cut_frac = o->cut_frac;
    s.stlr_ratio = o->stlr_ratio;
    s.pct_start = o->pct_start;
    s.div_factor = o->div_factor;
    s.final_div_factor = o->final_div_factor;
    s.anneal_linear = strcmp(o->anneal, "linear") == 0;
    s.three_phase = o->three_phase;
    s.cycle_momentum = o->cycle_momentum;
    if (kind == SCHEDULE_CONST_COOLDOWN) {
        s.cooldown = o->epochs_cooldown * steps_per_epoch;
        s.cooldown_end = o->lr_cooldown_end;
        s.cooldown_power = o->lr_cooldown_power;
    }
    if (s.cooldown > total)
        die(EXIT_USAGE, "--epochs-cooldown %lld: is %lld steps, the run has %lld; use fewer",
            (long long)o->epochs_cooldown, (long long)s.cooldown, (long long)total);
    return s;
}

// "one-cycle over 200 steps: from 4e-06 up to 0.0001 at step 59, ends at 4e-10"
static inline void schedule_describe(const Schedule *s, char text[256]) {
    int64_t top = 0, every = max_i64(1, s->total / 100000);
    for (int64_t t = 0; t < s->total; t += every)
        if (schedule_lr(s, t) > schedule_lr(s, top)) top = t;
    const double first = schedule_lr(s, 0);
    const double peak = schedule_lr(s, top);
    const double last = schedule_lr(s, s->total - 1);
    int n = snprintf(text, 256, "%s over %lld steps: ", schedule_name(s->kind), (long long)s->total);
    if (top > 0)
        n += snprintf(
            text + n, 256 - (size_t)n, "from %.3g up to %.3g at step %lld", first, peak, (long long)top);
    else n += snprintf(text + n, 256 - (size_t)n, "from %.3g", peak);
    if (last < peak) snprintf(text + n, 256 - (size_t)n, ", ends at %.3g", last);
}

// Draws the rate over the run, and with cycle_momentum beta1 too. Returns false when the file cannot be
// written.
static inline bool schedule_draw(const Schedule *s, const char *rate_title, const char *path) {
    enum { POINTS = 1200 }; // two for each pixel
    const size_t n = (size_t)min_i64(s->total, POINTS);
    double *steps = (double *)malloc_check(3 * n * sizeof *steps);
    double *rates = steps + n;
    double *betas = rates + n;
    for (size_t i = 0; i < n; i++) {
        const int64_t t = n > 1 ? (int64_t)((double)i * (double)(s->total - 1) / (double)(n - 1)) : 0;
        steps[i] = (double)t;
        rates[i] = schedule_lr(s, t);
        betas[i] = schedule_beta1(s, t, 0.9);
    }
    char title[256];
    schedule_describe(s, title);
    title[0] = (char)(title[0] >= 'a' && title[0] <= 'z' ? title[0] - 'a' + 'A' : title[0]);
    const bool momentum = s->kind == SCHEDULE_ONE_CYCLE && s->cycle_momentum;
    PlotPanel panels[2] = {plot_panel(rate_title, momentum ? NULL : "step", PLOT_FROM_ZERO),
        plot_panel("beta1 of AdamW", "step", 0)};
    plot_line(&panels[0], "last", steps, rates, n, 0, n <= 60 ? PLOT_DOTS : 0);
    plot_line(&panels[1], "last", steps, betas, n, 1, n <= 60 ? PLOT_DOTS : 0);
    panels[1].height = 90;
    const bool written = plot_write(path, title, panels, momentum ? 2 : 1);
    free(steps);
    return written;
}

#endif
