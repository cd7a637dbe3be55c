// Learning-rate schedules: the rate of a step as a function of the step alone, so that a resumed run
// continues exactly.
//
//     Schedule s = schedule_create(SCHEDULE_COSINE, 1e-4, total);     every parameter at its default
//     s.warmup = total / 10;
//     double lr = schedule_lr(&s, t);                                 t = 0 … total-1
#ifndef CLIPC_SCHEDULERS_H
#define CLIPC_SCHEDULERS_H

#include <math.h> // cos, pow
#include <stdbool.h>
#include <stdint.h> // int64_t
#include <string.h> // memset

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

typedef struct {
    ScheduleKind kind;
    double lr; // peak
    double
        // cosine, linear, exponential, step, restarts: the floor they fall to, as a share of the peak
        min_lr_ratio;
    int64_t total; // steps of the run
    int64_t
        warmup; // steps of linear warmup, 0 … total; none for stlr and one cycle, which bring their own ramp
    int64_t warmup_offset; // rate of warmup step t: (t + offset) / warmup; 1 as open_clip, 0 as transformers
    double
        // cosine: periods; 1/2 falls once. Restarts, when above 0: equal falls over the run, in place of t_0
        // and t_mult
        cycles;
    double gamma;      // exponential, step: factor for every step_size steps
    int64_t step_size; // exponential, step: 1 or more
    int64_t t_0,
        t_mult; // restarts: steps to the first one, and the factor from one period to the next; 1 or more
    double cut_frac;                     // stlr: share of the run that rises
    double stlr_ratio;                   // stlr: peak over lowest rate
    double pct_start;                    // one cycle: share of the run that rises
    double div_factor, final_div_factor; // one cycle: peak over first rate, first over last rate
    bool anneal_linear;                  // one cycle: straight lines in place of half cosines
    bool three_phase;    // one cycle: down to the first rate as steeply as up, then on to the last rate
    bool cycle_momentum; // one cycle: beta1 goes against the rate
    int64_t cooldown;    // const with cooldown: its steps, at the end of the run
    double cooldown_end, cooldown_power; // the rate it ends at, and the power of its fall
} Schedule;

// Defaults where methods in the literature or the usual programs have one; what depends on an epoch's length
// is the caller's.
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
                      ? (total + 2) / 3
                      : 1; // rounded up: three phases, and no fourth of a step or two
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

// 1 at 0, 0 at 1, half a cosine in between
static inline double half_cosine(double p) { return 0.5 * (1 + cos(3.14159265358979323846 * p)); }

// a/b held within 0 … 1; 1 where there is no length to be part of
static inline double schedule_part(double a, double b) { return b <= 0 || a >= b ? 1 : a <= 0 ? 0 : a / b; }

// Cosine with restarts (Loshchilov and Hutter 2017), periods T0, T0 M, T0 M^2 …: counted in integers, since
// the closed form by logarithms misses restarts (M = 3, t = 121 T0).
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

// Slanted triangular (Howard and Ruder 2018, eq. 3). The paper falls over cut (1/cut_frac - 1) steps, which
// runs below the lowest rate where cut was rounded; here over the steps that are left.
static inline double stlr_factor(const Schedule *s, int64_t t) {
    const int64_t cut = (int64_t)floor((double)s->total * s->cut_frac);
    const double p =
        t < cut ? (double)t / (double)cut : 1 - schedule_part((double)(t - cut), (double)(s->total - cut));
    return (1 + p * (s->stlr_ratio - 1)) / s->stlr_ratio;
}

// One cycle (Smith and Topin 2018; ends of the phases as in torch's OneCycleLR): from `first` over `peak` to
// `last`, in three phases by way of `middle` again.
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

// The rate of step t = 0 … total-1. Warmup as open_clip: lr (t+1)/W for t < W. Behind it, with u = t - W
// steps and p = u/(total-W):
//   cosine (Loshchilov and Hutter 2017)  m + (1-m) 1/2 (1 + cos(pi p))      m = min_lr_ratio
//   linear                               m + (1-m) (1-p)
//   exponential                          m + (1-m) gamma^(u/step_size)
//   step                                 m + (1-m) gamma^floor(u/step_size)
//   restarts                             m + (1-m) 1/2 (1 + cos(pi u_i/T_i)), u_i steps into a period of T_i
//   const                                1
//   const with cooldown (open_clip)      1, and in step e of the last E (1-e/E)^power (1 - end) + end
// Behind the run's end a schedule stays where it ended. Every rate is finite, whatever the lengths.
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

// AdamW's beta1 of a step: `beta1`, or with cycle_momentum between .95 and .85 against the rate (torch's
// OneCycleLR).
static inline double schedule_beta1(const Schedule *s, int64_t t, double beta1) {
    return s->kind == SCHEDULE_ONE_CYCLE && s->cycle_momentum ? one_cycle_value(s, t, 0.95, 0.85, 0.95, 0.95)
                                                              : beta1;
}

#endif
