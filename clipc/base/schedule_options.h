// The schedule as the options ask for it: what is refused, what is filled in, and its picture
// (--print-schedule).
#ifndef CLIPC_SCHEDULE_OPTIONS_H
#define CLIPC_SCHEDULE_OPTIONS_H

#include "clipc/base/options.h"    // Options, share_of
#include "clipc/base/plot.h"       // plot_write
#include "clipc/base/schedulers.h" // Schedule

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

// field, option, the schedules that read it
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

// Refuses what the options alone show to be nonsense, before any data is touched; says which of them mean
// nothing. --lr and --epochs have their defaults already.
static inline void schedule_check_options(Options *o) {
    const ScheduleKind kind = schedule_kind(o);
    const char *name = o->lr_scheduler;
    if (schedule_has_own_ramp(kind)) { // in the settings of a run that goes on it stands as 0
        if (options_was_set(o, warmup) && o->warmup.value > 0)
            die(EXIT_USAGE,
                "--warmup: %s brings its own ramp; leave it out, --%s says which share of the run rises",
                name, kind == SCHEDULE_STLR ? "cut-frac" : "pct-start");
        o->warmup.value = 0;
        o->warmup.percent = false;
    }
    const bool steps = options_was_set(o, steps);
    if (!o->warmup.percent && steps && o->warmup.value > (double)o->steps)
        die(EXIT_USAGE,
            "--warmup %.0f: the run has %lld steps; use at most %lld, or a share such as --warmup 10%%",
            o->warmup.value, (long long)o->steps, (long long)o->steps);
    if (kind == SCHEDULE_CONST_COOLDOWN) {
        if (!options_was_set(o, epochs_cooldown))
            die(EXIT_USAGE,
                "--lr-scheduler const-cooldown: for how long? give --epochs-cooldown N, the last N epochs");
        if (!steps && o->epochs_cooldown > o->epochs)
            die(EXIT_USAGE, "--epochs-cooldown %lld: the run has %lld epochs; use at most that",
                (long long)o->epochs_cooldown, (long long)o->epochs);
        if (o->lr != RATE_AUTO && o->lr_cooldown_end > o->lr)
            die(EXIT_USAGE, "--lr-cooldown-end %g: is above --lr %g; it is the rate that the run ends at",
                o->lr_cooldown_end, o->lr);
    }
#define X(field, option, schedules)                                               \
    if (options_was_set(o, field) && !o->resume && !matches_any(schedules, name)) \
        warn("--" option " means nothing with --lr-scheduler %s, ignored: it is for " schedules, name);
    SCHEDULE_PARAMETERS(X)
#undef X
}

// The schedule of a run of `total` steps. steps_per_epoch 0: not known.
static inline Schedule schedule_from_options(const Options *o, int64_t total, int64_t steps_per_epoch) {
    const ScheduleKind kind = schedule_kind(o);
    Schedule s = schedule_create(kind, o->lr, total);
    s.min_lr_ratio = o->min_lr_ratio;
    s.warmup = share_of(o->warmup, total);
    if (s.warmup > total)
        die(EXIT_USAGE,
            "--warmup %lld: the run has %lld steps; use at most %lld, or a share such as --warmup 10%%",
            (long long)s.warmup, (long long)total, (long long)total);
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

// Draws the rate of every step, with cycle_momentum beta1 too. Returns false when the file cannot be written.
static inline bool schedule_draw(const Schedule *s, const char *rate_title, const char *path) {
    enum { POINTS = 1200 }; // two a pixel
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
