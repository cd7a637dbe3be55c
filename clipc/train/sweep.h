// Many models of one architecture on the same labelled images: each image is read and decoded once, and the
// features of a tower that did not change are kept. Then: which model is best and how certain that is; and
// the results for people and programs: a table on the terminal, wise_ft.jsonl, wise_ft.csv, wise_ft.svg.
#ifndef CLIPC_SWEEP_H
#define CLIPC_SWEEP_H

#include "clipc/train/evaluate.h" // ZeroshotSet, zeroshot_classifier
#include "clipc/base/plot.h"      // plot_line, plot_write

enum { SWEEP_SETS = 32, SWEEP_BOOTSTRAP = 2000 };

// A set, with everything about it that later models can use again. The program numbers the weights that a
// tower gets, from 1; what was computed with another number is out of date.
typedef struct {
    ZeroshotSet set;
    int64_t count;     // samples that can be read; known after the first pass
    bool read;         // labels are known
    uint8_t *pixels;   // (count,3,S,S); NULL: they do not fit into memory and are read again for each model
    int *labels;       // (count)
    float *features;   // (count,E)
    float *classifier; // (C,E)
    int64_t version
        [2]; // the image tower's that made `features`, the text tower's that made `classifier`; 0: none
} SweepSet;

typedef struct {
    Evaluation *e;
    SweepSet sets[SWEEP_SETS];
    int count, target; // the others are the shifted ones
    bool keeps_pixels;
} Sweep;

// The results of one model.
typedef struct {
    char label[64];                            // names its line in the table
    double alpha;                              // NaN where models do not lie between two ends
    double top1[SWEEP_SETS], top5[SWEEP_SETS]; // accuracies, 0 … 1
    uint8_t *hits[SWEEP_SETS];                 // (count) 1 where the most likely class is the label
} SweepPoint;

// ---------------------------------------------------------------- sets

// A set without NAME= takes the name of its file or folder.
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

// ---------------------------------------------------------------- measuring one model

// Encodes the images of a set from their files; the first time, keeps labels and, where they fit, pixels.
// False after Ctrl-C.
static inline bool sweep_read(Sweep *s, SweepSet *x) {
    const size_t E = (size_t)s->e->clip->config.embed_dim;
    const size_t S = (size_t)s->e->loader.image.size;
    const size_t N = (size_t)dataset_count(&x->set.data);
    const size_t image = 3 * S * S;
    if (!x->read) {
        x->labels = (int *)malloc_check(N * sizeof(int));
        x->features = (float *)malloc_check(N * E * sizeof(float));
        if (s->keeps_pixels) x->pixels = (uint8_t *)malloc_check(N * image);
    }
    EvaluationPass pass = pass_start(s->e, &x->set.data, PASS_IMAGES, x->set.name);
    for (size_t first = 0;; first = (size_t)pass.seen) {
        const int n = pass_next(&pass, x->features + first * E, NULL);
        if (!n) break;
        memcpy(x->labels + first, pass.batch.labels, (size_t)n * sizeof(int));
        if (x->pixels) memcpy(x->pixels + first * image, pass.batch.pixels, (size_t)n * image);
    }
    x->count = pass.seen;
    x->read = !pass.interrupted;
    return pass_end(&pass);
}

// Encodes the images of a set from the pixels that were kept. False after Ctrl-C.
static inline bool sweep_encode(Sweep *s, SweepSet *x) {
    const size_t E = (size_t)s->e->clip->config.embed_dim, S = (size_t)s->e->loader.image.size;
    for (int64_t first = 0; first < x->count; first += s->e->loader.batch_size) {
        ClipBatch batch = clip_batch((int)min_i64(s->e->loader.batch_size, x->count - first));
        batch.pixels = x->pixels + (size_t)first * 3 * S * S;
        encode_images(s->e, &batch, x->features + (size_t)first * E);
        if (!evaluation_goes_on(s->e, x->set.name, first + batch.size, x->count)) return false;
    }
    return true;
}

static inline bool string_lists_equal(const StringList *a, const StringList *b) {
    for (size_t i = 0; i < a->count && i < b->count; i++)
        if (strcmp(a->list[i], b->list[i]) != 0) return false;
    return a->count == b->count;
}

// Makes the classifier of set i, or copies that of an earlier set with the same class names. False after
// Ctrl-C.
static inline bool sweep_classifier(Sweep *s, int i, int64_t version) {
    SweepSet *x = &s->sets[i];
    const size_t floats = x->set.classnames.count * (size_t)s->e->clip->config.embed_dim;
    if (!x->classifier) x->classifier = (float *)malloc_check(floats * sizeof(float));
    for (int k = 0; k < i; k++) // all sets have the same templates, those of the options
        if (s->sets[k].version[TEXT_TOWER] == version &&
            string_lists_equal(&s->sets[k].set.classnames, &x->set.classnames)) {
            memcpy(x->classifier, s->sets[k].classifier, floats * sizeof(float));
            return true;
        }
    return zeroshot_classifier(s->e, x->classifier, &x->set.classnames, &x->set.templates);
}

// Classifies set i by its features and classifier: fills hits, top1 and top5 of `p`.
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

// Measures the model of s->e on all sets; version[tower] changes whenever the tower's weights do. False after
// Ctrl-C.
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

// What is maximised: the target's accuracy, the mean over the shifted sets, or the mean of these two.
typedef enum { SWEEP_TARGET, SWEEP_SHIFT, SWEEP_MEAN } SweepMeasure;

// The measure from the accuracies (SWEEP_SETS) of a model; without shifted sets, always the target's
// accuracy.
static inline double sweep_value(const Sweep *s, const double *top1, SweepMeasure what) {
    double shift = 0;
    for (int i = 0; i < s->count; i++) shift += i == s->target ? 0 : top1[i];
    if (what == SWEEP_TARGET || s->count == 1) return top1[s->target];
    shift /= s->count - 1;
    return what == SWEEP_SHIFT ? shift : (top1[s->target] + shift) / 2;
}

// The index of the best point; of equals the one whose α is nearest to 0.5, else the first.
static inline int sweep_best(const Sweep *s, const SweepPoint *points, int count, SweepMeasure what) {
    int best = 0;
    for (int i = 1; i < count; i++) {
        const double gain = sweep_value(s, points[i].top1, what) - sweep_value(s, points[best].top1, what);
        if (gain > 0 || (gain == 0 && fabs(points[i].alpha - 0.5) < fabs(points[best].alpha - 0.5))) best = i;
    }
    return best;
}

// The α to try next, by golden section (Brent 1973, chapter 5): in the wider of the two gaps next to the best
// point. `points` are sorted by α. NaN when no gap is wider than `least`.
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
    double value, low, high; // low, high: the 95% interval
} Interval;

static inline Interval interval_of(double value, double *draws, int count) {
    qsort(draws, (size_t)count, sizeof *draws, compare_doubles);
    const Interval interval = {value, draws[count / 40], draws[count - 1 - count / 40]};
    return interval;
}

// The value of point p and its gain over the better of points a and b, with intervals by the percentile
// bootstrap (Efron 1979): the samples of each set are drawn again with replacement, the same ones for all
// three points.
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

// ---------------------------------------------------------------- the table on the terminal

static inline void sweep_print_header(const Sweep *s, const char *what) {
    char line[1024];
    int n = snprintf(line, sizeof line, "%-14s", what);
    for (int i = 0; i < s->count; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, " %10.10s%s", s->sets[i].set.name,
            i == s->target && s->count > 1 ? "*" : " ");
    if (s->count > 1) snprintf(line + n, sizeof line - (size_t)n, " %10s %10s", "shift", "mean");
    logger_print(s->e->logger, "%s", line);
}

static inline void sweep_print_point(const Sweep *s, const SweepPoint *p) {
    char line[1024];
    int n = snprintf(line, sizeof line, "%-14.40s", p->label);
    for (int i = 0; i < s->count; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, " %9.2f%% ", 100 * p->top1[i]);
    if (s->count > 1)
        snprintf(line + n, sizeof line - (size_t)n, "%9.2f%% %9.2f%%",
            100 * sweep_value(s, p->top1, SWEEP_SHIFT), 100 * sweep_value(s, p->top1, SWEEP_MEAN));
    logger_print(s->e->logger, "%s", line);
}

// ---------------------------------------------------------------- files

PRINTF_LIKE(2, 3) static inline void safe_file_print(SafeFile *f, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    safe_file_write(f, text, (size_t)min_i64(n, sizeof text - 1));
}

// A line for each point and set:
// {"model": "0.1", "alpha": 0.1, "set": "sketch", "role": "shift", "top1": 0.5, "top5": 0.8, "samples": 100}
static inline void sweep_write_jsonl(const Sweep *s, const SweepPoint *points, int count, const char *path) {
    SafeFile f;
    safe_file_open(&f, path);
    for (int k = 0; k < count; k++)
        for (int i = 0; i < s->count; i++) {
            const SweepPoint *p = &points[k];
            const SweepSet *x = &s->sets[i];
            char name[sizeof x->set.name];
            utf8_copy(name, sizeof name, x->set.name);
            json_t *row = json_pack("{s:s,s:s,s:s,s:f,s:I}", "model", p->label, "set", name, "role",
                i == s->target ? "target" : "shift", "top1", p->top1[i], "samples", (json_int_t)x->count);
            if (isfinite(p->alpha)) json_object_set_new(row, "alpha", json_real(p->alpha));
            if (x->set.classnames.count >= 5) json_object_set_new(row, "top5", json_real(p->top5[i]));
            char *text = json_dumps(row, JSON_COMPACT);
            if (!text) die(EXIT_RUNTIME, "%s: out of memory", path);
            safe_file_print(&f, "%s\n", text);
            free(text);
            json_decref(row);
        }
    safe_file_commit(&f);
}

// A CSV field: quoted where it holds a comma, a quotation mark or a line break.
static inline void csv_text(SafeFile *f, const char *text) {
    if (!strpbrk(text, ",\"\n")) {
        safe_file_print(f, "%s", text);
        return;
    }
    safe_file_print(f, "\"");
    for (const char *p = text; *p; p++) safe_file_print(f, "%s%c", *p == '"' ? "\"" : "", *p);
    safe_file_print(f, "\"");
}

// A line for each point: its label, the accuracy on each set, their means.
static inline void sweep_write_csv(const Sweep *s, const SweepPoint *points, int count, const char *path) {
    SafeFile f;
    char number[32];
    safe_file_open(&f, path);
    safe_file_print(&f, "%s", isfinite(points[0].alpha) ? "alpha" : "model");
    for (int i = 0; i < s->count; i++) {
        safe_file_print(&f, ",");
        csv_text(&f, s->sets[i].set.name);
    }
    safe_file_print(&f, s->count > 1 ? ",shift,mean\n" : "\n");
    for (int k = 0; k < count; k++) {
        csv_text(&f, points[k].label);
        for (int i = 0; i < s->count; i++) {
            number_format(number, points[k].top1[i]);
            safe_file_print(&f, ",%s", number);
        }
        for (int what = SWEEP_SHIFT; s->count > 1 && what <= SWEEP_MEAN; what++) {
            number_format(number, sweep_value(s, points[k].top1, (SweepMeasure)what));
            safe_file_print(&f, ",%s", number);
        }
        safe_file_print(&f, "\n");
    }
    safe_file_commit(&f);
}

// ---------------------------------------------------------------- the plot

// "best for clean: α = 0.7, 54.9% (ends 50.8%, 55.0%)", where no line can break within "α = 0.7"
static inline int sweep_title_part(char *out, size_t size, const Sweep *s, const SweepPoint *points,
    int count, SweepMeasure what, const char *name) {
    const int best = sweep_best(s, points, count, what);
    return snprintf(out, size, "best for %s: α\u00a0=\u00a0%s, %.1f%% (ends %.1f%%, %.1f%%)", name,
        points[best].label, 100 * sweep_value(s, points[best].top1, what),
        100 * sweep_value(s, points[0].top1, what), 100 * sweep_value(s, points[count - 1].top1, what));
}

// What the panels of the plot point to.
typedef struct {
    const Sweep *s;
    const SweepPoint *points; // (count) sorted by α
    int count;
    double *alpha, *target, *shift; // (count) α, the target's accuracy, the shifted sets' mean
    double *single;                 // (s->count,count) accuracies on single sets
    double ends[2][2];              // of target and shift: their values at the first and the last point
    char note[3][96];               // of the first, the last and the chosen point
} SweepPlot;

static inline SweepPlot sweep_plot(const Sweep *s, const SweepPoint *points, int count) {
    SweepPlot p;
    memset(&p, 0, sizeof p);
    p.s = s;
    p.points = points;
    p.count = count;
    p.alpha = (double *)malloc_check((size_t)(3 + s->count) * (size_t)count * sizeof(double));
    p.target = p.alpha + count;
    p.shift = p.target + count;
    p.single = p.shift + count;
    for (int k = 0; k < count; k++) {
        p.alpha[k] = points[k].alpha;
        p.target[k] = points[k].top1[s->target];
        p.shift[k] = sweep_value(s, points[k].top1, SWEEP_SHIFT);
        for (int i = 0; i < s->count; i++) p.single[i * count + k] = points[k].top1[i];
    }
    for (int end = 0; end < 2; end++) {
        const int at = end ? count - 1 : 0;
        p.ends[0][end] = p.target[at];
        p.ends[1][end] = p.shift[at];
        snprintf(p.note[end], sizeof p.note[end], "α = %s", points[at].label);
    }
    return p;
}

// The shifted sets' mean against the target's accuracy on logit axes, on which models of different trainings
// lie on a straight line: fine-tuning alone goes along it, a good average lies above.
static inline PlotPanel sweep_panel_shift(const SweepPlot *p) {
    PlotPanel panel = plot_panel("mean accuracy on shifted sets against the target's, logit axes; "
                                 "gray: straight line between ends",
        p->s->sets[p->s->target].set.name, PLOT_LOGIT);
    panel.height = 260;
    plot_line(&panel, NULL, p->ends[0], p->ends[1], 2, 5, 0);
    plot_line(&panel, NULL, p->target, p->shift, (size_t)p->count, 0, PLOT_DOTS);
    for (int end = 0; end < 2; end++) plot_note(&panel, p->ends[0][end], p->ends[1][end], p->note[end]);
    return panel;
}

// All accuracies over α: the target, the shifted sets one by one (as many as a panel shows) and their mean.
static inline PlotPanel sweep_panel_alpha(const SweepPlot *p) {
    const Sweep *s = p->s;
    const size_t n = (size_t)p->count;
    PlotPanel panel =
        plot_panel("zero-shot accuracy over α (0: before fine-tuning, 1: fine-tuned)", "α", PLOT_PERCENT);
    int faint = 0;
    for (int i = 0; i < s->count && faint < PLOT_SERIES - 2; i++) {
        if (i == s->target) continue;
        faint++;
        plot_line(&panel, NULL, p->alpha, p->single + (size_t)i * n, n, 1, PLOT_FAINT);
    }
    plot_line(&panel, s->sets[s->target].set.name, p->alpha, p->target, n, 0, PLOT_DOTS);
    if (s->count > 1) plot_line(&panel, "shifted, mean", p->alpha, p->shift, n, 1, PLOT_DOTS);
    return panel;
}

// Draws points sorted by α. `chosen`: the point to mark, or -1. False, with a warning, when that cannot be
// written.
static inline bool sweep_draw(
    const Sweep *s, const SweepPoint *points, int count, int chosen, const char *path) {
    const bool shifted = s->count > 1;
    SweepPlot p = sweep_plot(s, points, count);
    PlotPanel panels[2];
    char title[512];
    int drawn = 0;
    int n =
        sweep_title_part(title, sizeof title, s, points, count, SWEEP_TARGET, s->sets[s->target].set.name);
    if (shifted) {
        n += snprintf(title + n, sizeof title - (size_t)n, "; ");
        sweep_title_part(
            title + n, sizeof title - (size_t)n, s, points, count, SWEEP_SHIFT, "the mean of shifted sets");
        panels[drawn++] = sweep_panel_shift(&p);
    }
    panels[drawn++] = sweep_panel_alpha(&p);
    if (chosen >= 0) {
        snprintf(p.note[2], sizeof p.note[2], "chosen: α = %s", points[chosen].label);
        plot_mark(&panels[drawn - 1], points[chosen].alpha, p.note[2]);
        if (shifted) plot_note(&panels[0], p.target[chosen], p.shift[chosen], p.note[2]);
    }
    const bool written = plot_write(path, title, panels, drawn);
    free(p.alpha);
    return written;
}

// Writes the three files into `folder`; the plot only where the models lie between two ends.
static inline void sweep_write(
    const Sweep *s, const SweepPoint *points, int count, int chosen, const char *folder) {
    char path[PATH_SIZE];
    path_format(path, "%s/wise_ft.jsonl", folder);
    sweep_write_jsonl(s, points, count, path);
    path_format(path, "%s/wise_ft.csv", folder);
    sweep_write_csv(s, points, count, path);
    path_format(path, "%s/wise_ft.svg", folder);
    const bool drawn = isfinite(points[0].alpha) && count > 1 && sweep_draw(s, points, count, chosen, path);
    logger_print(
        s->e->logger, "written      %s/wise_ft.jsonl, wise_ft.csv%s", folder, drawn ? ", wise_ft.svg" : "");
}

#endif
