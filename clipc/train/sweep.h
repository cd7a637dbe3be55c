// Many models of one architecture on the same labelled pictures: each picture is read and decoded once, and
// what a tower that did not change says of it is kept. Then: which model is best, and how sure that is.
#ifndef CLIPC_SWEEP_H
#define CLIPC_SWEEP_H

#include "clipc/train/evaluate.h" // ZeroshotSet, zeroshot_classifier

enum { SWEEP_SETS = 32, SWEEP_BOOTSTRAP = 2000 };

// A set with all that is kept of it. The program's own number of a tower's weights, 1 …, tells whether
// features are still true.
typedef struct {
    ZeroshotSet set;
    int64_t count;     // samples that can be read; known after the first pass
    bool read;         // labels are known
    uint8_t *pixels;   // (count,3,S,S); NULL: there is no room, they are read again for each model
    int *labels;       // (count)
    float *features;   // (count,E)
    float *classifier; // (C,E)
    int64_t
        version[2]; // of the image tower behind `features`, of the text tower behind `classifier`; 0: none
} SweepSet;

typedef struct {
    Evaluation *e;
    SweepSet sets[SWEEP_SETS];
    int count, target; // the others are the shifted ones
    bool keeps_pixels;
} Sweep;

// What one model gets.
typedef struct {
    char label[64]; // its line in the table
    double alpha;   // NaN: not of a line of models
    double top1[SWEEP_SETS], top5[SWEEP_SETS];
    uint8_t *hits[SWEEP_SETS]; // (count) 1 where the first answer is right
} SweepPoint;

// ---------------------------------------------------------------- sets

// A set without NAME= is called as its file or folder is.
static inline void sweep_name(ZeroshotSet *set, const char *spec) {
    if (set->name[0]) return;
    char path[PATH_SIZE];
    path_format(path, "%s", spec);
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/';) path[--n] = 0;
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    snprintf(set->name, sizeof set->name, "%.*s",
        (int)min_i64((int64_t)strcspn(base, "."), sizeof set->name - 1), base);
}

// Opens `count` sets, each [NAME=]PATH; `target` is the name of one of them, or NULL for the first.
static inline void sweep_open(Sweep *s, Evaluation *e, const char *const *specs, size_t count,
    const char *target, const char *classnames, const char *templates, const DatasetConfig *keys) {
    memset(s, 0, sizeof *s);
    s->e = e;
    if (count > SWEEP_SETS)
        die(EXIT_USAGE, "--eval: %zu sets, at most %d can be compared", count, SWEEP_SETS);
    const size_t S = (size_t)e->loader.image.size;
    size_t pixels = 0;
    for (size_t i = 0; i < count; i++) {
        SweepSet *x = &s->sets[s->count++];
        x->set = zeroshot_open("eval", specs[i], classnames, templates, keys);
        sweep_name(&x->set, specs[i]);
        for (size_t k = 0; k < i; k++)
            if (strcmp(s->sets[k].set.name, x->set.name) == 0)
                die(EXIT_USAGE, "--eval %s: another set is called %s; write NAME=PATH", specs[i],
                    x->set.name);
        pixels += (size_t)dataset_count(&x->set.data) * 3 * S * S;
    }
    s->keeps_pixels = pixels <= memory_available() / 2;
    s->target = -1;
    for (int i = 0; i < s->count; i++)
        if (!target || strcmp(target, s->sets[i].set.name) == 0) {
            s->target = i;
            break;
        }
    if (s->target < 0) die(EXIT_USAGE, "--target %s: no set of --eval has this name", target);
}

static inline void sweep_close(Sweep *s) {
    for (int i = 0; i < s->count; i++) {
        SweepSet *x = &s->sets[i];
        free(x->pixels);
        free(x->labels);
        free(x->features);
        free(x->classifier);
        zeroshot_close(&x->set);
    }
}

static inline void sweep_point_free(SweepPoint *p) {
    for (int i = 0; i < SWEEP_SETS; i++) free(p->hits[i]);
}

// ---------------------------------------------------------------- one model

// Encodes the pictures of a set from their files, the first time with their labels and, where there is room,
// pixels kept.
static inline bool sweep_read(Sweep *s, SweepSet *x) {
    const size_t E = (size_t)s->e->clip->config.embed_dim;
    const size_t S = (size_t)s->e->loader.image.size;
    const size_t N = (size_t)dataset_count(&x->set.data);
    const size_t picture = 3 * S * S;
    if (!x->read) {
        x->labels = (int *)malloc_check(N * sizeof(int));
        x->features = (float *)malloc_check(N * E * sizeof(float));
        if (s->keeps_pixels) x->pixels = (uint8_t *)malloc_check(N * picture);
    }
    EvaluationPass pass = pass_start(s->e, &x->set.data, false, x->set.name);
    for (size_t first = 0;; first = (size_t)pass.seen) {
        const int n = pass_next(&pass, x->features + first * E, NULL);
        if (!n) break;
        memcpy(x->labels + first, pass.batch.labels, (size_t)n * sizeof(int));
        if (x->pixels) memcpy(x->pixels + first * picture, pass.batch.pixels, (size_t)n * picture);
    }
    x->count = pass.seen;
    x->read = !pass.interrupted;
    return pass_end(&pass);
}

// Encodes them from the pixels that were kept.
static inline bool sweep_encode(Sweep *s, SweepSet *x) {
    const size_t E = (size_t)s->e->clip->config.embed_dim, S = (size_t)s->e->loader.image.size;
    for (int64_t first = 0; first < x->count; first += s->e->loader.batch_size) {
        ClipBatch batch;
        memset(&batch, 0, sizeof batch);
        batch.size = (int)min_i64(s->e->loader.batch_size, x->count - first);
        batch.pixels = x->pixels + (size_t)first * 3 * S * S;
        clip_encode_image(s->e->clip, &batch, x->features + (size_t)first * E);
        if (!evaluation_goes_on(s->e, x->set.name, first + batch.size, x->count)) return false;
    }
    return true;
}

static inline bool string_lists_equal(const StringList *a, const StringList *b) {
    for (size_t i = 0; i < a->count && i < b->count; i++)
        if (strcmp(a->list[i], b->list[i]) != 0) return false;
    return a->count == b->count;
}

// The classifier of set i, taken from an earlier set of the same words where there is one.
static inline bool sweep_classifier(Sweep *s, int i, int64_t version) {
    SweepSet *x = &s->sets[i];
    const size_t floats = x->set.classnames.count * (size_t)s->e->clip->config.embed_dim;
    if (!x->classifier) x->classifier = (float *)malloc_check(floats * sizeof(float));
    for (int k = 0; k < i; k++) // templates are those of the options: the same for all
        if (s->sets[k].version[TEXT_TOWER] == version &&
            string_lists_equal(&s->sets[k].set.classnames, &x->set.classnames)) {
            memcpy(x->classifier, s->sets[k].classifier, floats * sizeof(float));
            return true;
        }
    return zeroshot_classifier(s->e, x->classifier, &x->set.classnames, &x->set.templates);
}

// Right answers of set i from its features and classifier.
static inline void sweep_count_hits(const Sweep *s, int i, SweepPoint *p) {
    enum { ROWS = 256 };
    const SweepSet *x = &s->sets[i];
    const int E = s->e->clip->config.embed_dim, C = (int)x->set.classnames.count;
    float *logits = (float *)malloc_check(ROWS * (size_t)C * sizeof(float));
    int64_t hits1 = 0, hits5 = 0;
    p->hits[i] = (uint8_t *)malloc_check((size_t)x->count);
    for (int64_t first = 0; first < x->count; first += ROWS) {
        const int n = (int)min_i64(ROWS, x->count - first);
        zeroshot_logits(s->e->kernels, logits, x->features + (size_t)first * (size_t)E, x->classifier, n, C,
            E, ZEROSHOT_SCALE);
        for (int k = 0; k < n; k++) {
            const int rank = zeroshot_rank(logits + (size_t)k * (size_t)C, C, x->labels[first + k]);
            p->hits[i][first + k] = rank < 1;
            hits1 += rank < 1;
            hits5 += rank < 5;
        }
    }
    p->top1[i] = (double)hits1 / (double)x->count;
    p->top5[i] = (double)hits5 / (double)x->count;
    free(logits);
}

// Measures the model of s->e on all sets. version[tower] is another number when the tower's weights are
// others. False after Ctrl-C.
static inline bool sweep_measure(
    Sweep *s, const int64_t version[2], const char *label, double alpha, SweepPoint *out) {
    memset(out, 0, sizeof *out);
    utf8_copy(out->label, sizeof out->label, label);
    out->alpha = alpha;
    for (int i = 0; i < s->count; i++) {
        SweepSet *x = &s->sets[i];
        if (x->version[TEXT_TOWER] != version[TEXT_TOWER] && !sweep_classifier(s, i, version[TEXT_TOWER]))
            return false;
        x->version[TEXT_TOWER] = version[TEXT_TOWER];
        if (x->version[IMAGE_TOWER] != version[IMAGE_TOWER] &&
            !(x->read && x->pixels ? sweep_encode(s, x) : sweep_read(s, x)))
            return false;
        x->version[IMAGE_TOWER] = version[IMAGE_TOWER];
        sweep_count_hits(s, i, out);
    }
    return true;
}

// ---------------------------------------------------------------- which is best

// What is to be high: the target's accuracy, the mean over the shifted sets, or the mean of these two.
typedef enum { SWEEP_TARGET, SWEEP_SHIFT, SWEEP_MEAN } SweepMeasure;

// From the accuracies of the sets; without a shifted set, that of the target.
static inline double sweep_value(const Sweep *s, const double *top1, SweepMeasure what) {
    double shift = 0;
    for (int i = 0; i < s->count; i++) shift += i == s->target ? 0 : top1[i];
    if (what == SWEEP_TARGET || s->count == 1) return top1[s->target];
    shift /= s->count - 1;
    return what == SWEEP_SHIFT ? shift : (top1[s->target] + shift) / 2;
}

// The point of the highest value; of equal ones that whose α is nearest to the middle, else the first.
static inline int sweep_best(const Sweep *s, const SweepPoint *points, int count, SweepMeasure what) {
    int best = 0;
    for (int i = 1; i < count; i++) {
        const double gain = sweep_value(s, points[i].top1, what) - sweep_value(s, points[best].top1, what);
        if (gain > 0 || (gain == 0 && fabs(points[i].alpha - 0.5) < fabs(points[best].alpha - 0.5))) best = i;
    }
    return best;
}

// Where to look next, by golden section (Brent 1973, chapter 5): within the wider of the two gaps beside the
// best point. `points` are sorted by α. NaN when no gap is wider than `least`.
static inline double sweep_next_alpha(
    const Sweep *s, const SweepPoint *points, int count, SweepMeasure what, double least) {
    const int best = sweep_best(s, points, count, what);
    const double at = points[best].alpha;
    const double below = best > 0 ? at - points[best - 1].alpha : 0;
    const double above = best + 1 < count ? points[best + 1].alpha - at : 0;
    const double gap = fmax(below, above), step = (3 - sqrt(5)) / 2 * gap;
    return gap <= least ? NAN : round(1000 * (above >= below ? at + step : at - step)) / 1000;
}

typedef struct {
    double value, low, high; // and the ends of its 95% interval
} Interval;

static inline Interval interval_of(double value, double *draws, int count) {
    qsort(draws, (size_t)count, sizeof *draws, compare_doubles);
    const Interval interval = {value, draws[count / 40], draws[count - 1 - count / 40]};
    return interval;
}

// A point's value, and what it is above the better of two others (its gain), with intervals by the percentile
// bootstrap (Efron 1979): the samples of each set are drawn again with replacement, for all three points the
// same ones.
static inline void sweep_bootstrap(const Sweep *s, const SweepPoint *p, const SweepPoint *a,
    const SweepPoint *b, SweepMeasure what, Interval *value, Interval *gain) {
    const SweepPoint *points[3] = {p, a, b};
    double *values = (double *)malloc_check(2 * SWEEP_BOOTSTRAP * sizeof *values);
    double *gains = values + SWEEP_BOOTSTRAP;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < SWEEP_BOOTSTRAP; r++) {
        double top1[3][SWEEP_SETS], v[3];
        for (int i = 0; i < s->count; i++) {
            Rand random = rand_for(0x626f6f74 /* "boot" */, (uint64_t)r, (uint64_t)i);
            const int64_t n = s->sets[i].count;
            int64_t hits[3] = {0, 0, 0};
            for (int64_t k = 0; k < n; k++) {
                const uint64_t draw = rand_below(&random, (uint64_t)n);
                for (int j = 0; j < 3; j++) hits[j] += points[j]->hits[i][draw];
            }
            for (int j = 0; j < 3; j++) top1[j][i] = (double)hits[j] / (double)n;
        }
        for (int j = 0; j < 3; j++) v[j] = sweep_value(s, top1[j], what);
        values[r] = v[0];
        gains[r] = v[0] - fmax(v[1], v[2]);
    }
    const double best = sweep_value(s, p->top1, what);
    *value = interval_of(best, values, SWEEP_BOOTSTRAP);
    *gain = interval_of(
        best - fmax(sweep_value(s, a->top1, what), sweep_value(s, b->top1, what)), gains, SWEEP_BOOTSTRAP);
    free(values);
}

#endif
