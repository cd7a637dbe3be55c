// What a sweep found, for people and for programs: the table on the terminal, wise_ft.jsonl, wise_ft.csv and
// wise_ft.svg.
#ifndef CLIPC_SWEEP_REPORT_H
#define CLIPC_SWEEP_REPORT_H

#include "clipc/base/plot.h"   // plot_line, plot_write
#include "clipc/train/sweep.h" // Sweep, SweepPoint

// ---------------------------------------------------------------- terminal

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

// A line for each point and set: {"model": "0.1", "alpha": 0.1, "set": "sketch", "role": "shift", "top1":
// 0.5, "top5": 0.8, "samples": 100}
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

// A line for each point: its name, the accuracy on each set, their means. Names with a comma or quotation
// mark stand in quotes.
static inline void csv_text(SafeFile *f, const char *text) {
    if (!strpbrk(text, ",\"\n")) {
        safe_file_print(f, "%s", text);
        return;
    }
    safe_file_print(f, "\"");
    for (const char *p = text; *p; p++) safe_file_print(f, "%s%c", *p == '"' ? "\"" : "", *p);
    safe_file_print(f, "\"");
}

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

// ---------------------------------------------------------------- picture

// "best for clean: α = 0.7, 54.9% (ends 50.8%, 55.0%)", without a line break inside of "α = 0.7"
static inline int sweep_title_part(char *out, size_t size, const Sweep *s, const SweepPoint *points,
    int count, SweepMeasure what, const char *name) {
    const int best = sweep_best(s, points, count, what);
    return snprintf(out, size, "best for %s: α\u00a0=\u00a0%s, %.1f%% (ends %.1f%%, %.1f%%)", name,
        points[best].label, 100 * sweep_value(s, points[best].top1, what),
        100 * sweep_value(s, points[0].top1, what), 100 * sweep_value(s, points[count - 1].top1, what));
}

// Two panels from points sorted by α: the shifted sets' mean over the target's accuracy on logit scales,
// where fine-tuning alone goes along the straight line between the ends; both over α. `chosen`: the point to
// mark, or -1.
static inline bool sweep_draw(
    const Sweep *s, const SweepPoint *points, int count, int chosen, const char *path) {
    double *values = (double *)malloc_check((size_t)(3 + s->count) * (size_t)count * sizeof *values);
    double ends[2][2];
    double *alpha = values, *target = values + count, *shift = target + count;
    char title[512], of_target[96], note[2][96];
    const char *name = s->sets[s->target].set.name;
    const bool shifted = s->count > 1;
    for (int k = 0; k < count; k++) {
        alpha[k] = points[k].alpha;
        target[k] = points[k].top1[s->target];
        shift[k] = sweep_value(s, points[k].top1, SWEEP_SHIFT);
    }
    int n = sweep_title_part(title, sizeof title, s, points, count, SWEEP_TARGET, name);
    if (shifted) {
        n += snprintf(title + n, sizeof title - (size_t)n, "; ");
        sweep_title_part(
            title + n, sizeof title - (size_t)n, s, points, count, SWEEP_SHIFT, "the mean of shifted sets");
    }
    PlotPanel panels[2];
    int drawn = 0;
    if (shifted) {
        PlotPanel *p = &panels[drawn++];
        snprintf(of_target, sizeof of_target, "%s", name);
        *p = plot_panel(
            "mean accuracy on shifted sets over the target's, logit scales; gray: straight between the ends",
            of_target, PLOT_LOGIT);
        p->height = 260;
        for (int k = 0; k < 2; k++) {
            ends[0][k] = target[k ? count - 1 : 0];
            ends[1][k] = shift[k ? count - 1 : 0];
        }
        plot_line(p, NULL, ends[0], ends[1], 2, 5, 0);
        plot_line(p, NULL, target, shift, (size_t)count, 0, PLOT_DOTS);
        for (int k = 0; k < 2; k++) {
            const int at = k ? count - 1 : 0;
            snprintf(note[k], sizeof note[k], "α = %s", points[at].label);
            plot_note(p, target[at], shift[at], note[k]);
        }
    }
    PlotPanel *p = &panels[drawn++];
    *p = plot_panel("zero-shot accuracy over α (0: before fine-tuning, 1: fine-tuned)", "α", PLOT_PERCENT);
    for (int i = 0, faint = 0; i < s->count; i++) {
        if (i == s->target || faint >= PLOT_SERIES - 2) continue;
        double *one = values + (size_t)(3 + faint++) * (size_t)count;
        for (int k = 0; k < count; k++) one[k] = points[k].top1[i];
        plot_line(p, NULL, alpha, one, (size_t)count, 1, PLOT_FAINT);
    }
    plot_line(p, name, alpha, target, (size_t)count, 0, PLOT_DOTS);
    if (shifted) plot_line(p, "shifted, mean", alpha, shift, (size_t)count, 1, PLOT_DOTS);
    char mark[96];
    if (chosen >= 0) {
        snprintf(mark, sizeof mark, "chosen: α = %s", points[chosen].label);
        plot_mark(p, points[chosen].alpha, mark);
        if (shifted) plot_note(&panels[0], target[chosen], shift[chosen], mark);
    }
    const bool written = plot_write(path, title, panels, drawn);
    free(values);
    return written;
}

// Writes the three files into `folder`; the picture where the models lie on a line.
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
