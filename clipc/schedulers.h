// Learning-rate schedules: the rate of a step as a function of the step alone, so that a resumed run continues exactly.
#ifndef CLIPC_SCHEDULERS_H
#define CLIPC_SCHEDULERS_H

#include <math.h>   // cos
#include <stdint.h> // int64_t

typedef enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONST } ScheduleKind;

typedef struct {
    ScheduleKind kind;
    double lr;           // peak
    double min_lr_ratio; // the floor that cosine and linear fall to, as a share of the peak
    int64_t total;       // steps of the run
    int64_t warmup;      // steps of linear warmup, 0 … total
} Schedule;

// The rate of step t = 0 … total-1. Warmup as open_clip: lr (t+1)/W for t < W. Then with p = (t-W)/(total-W):
//   cosine (Loshchilov and Hutter 2017)  m + (1-m) 1/2 (1 + cos(pi p))
//   linear                               m + (1-m) (1-p)
//   const                                1
// Behind the run's end cosine and linear stay at the floor.
static inline double schedule_lr(const Schedule *s, int64_t t) {
    if (t < s->warmup) return s->lr * (double)(t + 1) / (double)s->warmup;
    if (s->kind == SCHEDULE_CONST) return s->lr;
    int64_t length = s->total - s->warmup;
    double p = length > 0 ? (double)(t - s->warmup) / (double)length : 1;
    if (p > 1) p = 1;
    double fall = s->kind == SCHEDULE_COSINE ? 0.5 * (1 + cos(3.14159265358979323846 * p)) : 1 - p;
    return s->lr * (s->min_lr_ratio + (1 - s->min_lr_ratio) * fall);
}

#endif
