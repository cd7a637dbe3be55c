// Line charts as SVG, readable in light and dark: panels one below the other, each with lines, their last
// values at the right edge in place of a legend, and marks; and the chart of a run's metrics.jsonl.
//
//     PlotPanel p = plot_panel("loss", "learning rate", PLOT_LOG_X);
//     plot_line(&p, "smoothed", rates, losses, n, 0, 0);
//     plot_mark(&p, 3e-4, "steepest");
//     plot_write("lr_find.svg", "Loss falls fastest at a learning rate of 3e-4", &p, 1);
//
// A failing chart never ends a run: what cannot be drawn or written gives a warning and false.
#ifndef CLIPC_PLOT_H
#define CLIPC_PLOT_H

#include "clipc/base/logger.h" // metrics_next, utf8_copy

// ---------------------------------------------------------------- what to draw

// of a panel: y in percent; the y axis begins at 0; x and y are shares on logit scales
enum { PLOT_LOG_X = 1, PLOT_LOG_Y = 2, PLOT_PERCENT = 4, PLOT_FROM_ZERO = 8, PLOT_LOGIT = 16 };
// of a line: drawn below the others; a dot at every point
enum { PLOT_FAINT = 1, PLOT_DOTS = 2 };
enum { PLOT_SERIES = 8, PLOT_MARKS = 8, PLOT_COLORS = 6, PLOT_TICKS = 24 };

typedef struct {
    const char *name; // written at the right edge with the last value; "" only the value, NULL neither
    const double *x, *y;
    size_t n;
    int color, style; // 0 … PLOT_COLORS - 1; PLOT_FAINT, PLOT_DOTS
} PlotSeries;

typedef struct {
    double x, y; // y NaN: a vertical line
    const char *label;
} PlotMark;

typedef struct {
    const char *y_title, *x_title; // with units; x_title may be NULL
    int flags, series_count, mark_count;
    double height;        // of the plotting area, in pixels
    double x_low, x_high; // ends of the x axis; equal: those of the data
    PlotSeries series[PLOT_SERIES];
    PlotMark marks[PLOT_MARKS];
} PlotPanel;

static inline PlotPanel plot_panel(const char *y_title, const char *x_title, int flags) {
    PlotPanel p;
    memset(&p, 0, sizeof p);
    p.y_title = y_title;
    p.x_title = x_title;
    p.flags = flags;
    p.height = 180;
    return p;
}

// Adds a line through (x[i], y[i]); NaN, infinity, and what a logarithmic axis cannot show are gaps. The
// arrays and the name are not copied and must outlive the panel. Beyond PLOT_SERIES lines nothing is added.
static inline void plot_line(
    PlotPanel *p, const char *name, const double *x, const double *y, size_t n, int color, int style) {
    if (p->series_count == PLOT_SERIES) return;
    PlotSeries *s = &p->series[p->series_count++];
    s->name = name;
    s->x = x;
    s->y = y;
    s->n = n;
    s->color = color % PLOT_COLORS;
    s->style = style;
}

// A labelled vertical line. Beyond PLOT_MARKS of them nothing is added.
static inline void plot_mark(PlotPanel *p, double x, const char *label) {
    if (p->mark_count == PLOT_MARKS) return;
    PlotMark *m = &p->marks[p->mark_count++];
    m->x = x;
    m->y = NAN;
    m->label = label;
}

// A label next to a point.
static inline void plot_note(PlotPanel *p, double x, double y, const char *label) {
    plot_mark(p, x, label);
    p->marks[p->mark_count - 1].y = y;
}

// ---------------------------------------------------------------- axes

typedef struct {
    double low, high; // values at the ends
    double from, to;  // their pixels
    bool log, percent, logit;
} PlotAxis;

static inline bool axis_shows(const PlotAxis *a, double v) {
    return isfinite(v) && (!a->log || v > 0) && (!a->logit || (v > 0 && v < 1));
}

// A value on the axis's scale, before conversion to pixels.
static inline double axis_scale(const PlotAxis *a, double v) {
    return a->log ? log(v) : a->logit ? log(v / (1 - v)) : v;
}

static inline double axis_pixel(const PlotAxis *a, double v) {
    double low = axis_scale(a, a->low);
    double share = (axis_scale(a, v) - low) / (axis_scale(a, a->high) - low);
    return a->from + share * (a->to - a->from);
}

// Extends the axis (low > high: empty) to the values that it can show.
static inline void axis_include(PlotAxis *a, const double *v, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!axis_shows(a, v[i])) continue;
        if (v[i] < a->low) a->low = v[i];
        if (v[i] > a->high) a->high = v[i];
    }
}

// Adds a margin at both ends, a share of the range; a single value gets a range around it.
static inline void axis_pad(PlotAxis *a, double share) {
    if (a->log) {
        double factor = a->low < a->high ? pow(a->high / a->low, share) : 2;
        a->low /= factor;
        a->high *= factor;
    } else if (a->logit) {
        double low = axis_scale(a, a->low);
        double high = axis_scale(a, a->high);
        double margin = low < high ? share * (high - low) : 0.5;
        a->low = 1 / (1 + exp(margin - low));
        a->high = 1 / (1 + exp(-margin - high));
    } else {
        double margin = a->low < a->high ? share * (a->high - a->low) : a->low != 0 ? 0.1 * fabs(a->low) : 1;
        a->low -= margin;
        a->high += margin;
    }
}

// 5e-6, 0.25, 12.5k, 40%; a dash for what is not finite. `size` (the largest value nearby) chooses the unit,
// `step` between ticks the decimals; 0: three digits.
static inline void plot_number(char text[32], double v, double size, double step, bool percent) {
    double scale = percent ? 100 : size >= 1e6 ? 1e-6 : size >= 1e4 ? 1e-3 : 1;
    if (!isfinite(v)) snprintf(text, 32, "–");
    else if (v == 0) snprintf(text, 32, percent ? "0%%" : "0");
    else if (!percent && (size >= 1e10 || (step > 0 ? step < 1e-3 && size < 1e-2 : size < 1.001e-3))) {
        int exponent = (int)floor(log10(fabs(v)) + 1e-9);
        snprintf(text, 32, "%.3ge%d", v / pow(10, exponent), exponent);
    } else {
        int decimals = percent        ? fabs(v) < 0.9995
                       : scale < 1    ? 1
                       : size >= 1000 ? 0
                                      : 2 - (int)floor(log10(fabs(v)));
        if (step > 0) {
            double s = step * scale;
            for (decimals = 0; decimals < 6 && fabs(s - round(s)) > 1e-6 * s; decimals++) s *= 10;
        }
        snprintf(text, 32, "%.*f%s", decimals, v * scale,
            percent        ? "%"
            : scale == 1   ? ""
            : scale < 1e-4 ? "M"
                           : "k");
    }
}

typedef struct {
    double value;
    char label[32];
} PlotTick;

// Round values, about `wanted` of them, between the ends. On a logarithmic axis powers of ten; 2 and 5
// between them where there are few.
static inline int axis_ticks(const PlotAxis *a, int wanted, PlotTick ticks[PLOT_TICKS]) {
    int count = 0;
    double decades = a->log ? log10(a->high / a->low) : 0;
    if (decades >= 1) {
        static const double parts[] = {1, 2, 5};
        int every = (int)ceil(decades / wanted);
        int first = (int)floor(log10(a->low));
        int last = (int)ceil(log10(a->high));
        for (int e = first; e <= last; e++) {
            for (int k = 0; k < (decades < 2.5 ? 3 : 1) && count < PLOT_TICKS; k++) {
                double v = parts[k] * pow(10, e);
                if (e % every != 0 || v < a->low * 0.9999 || v > a->high * 1.0001) continue;
                ticks[count].value = v;
                plot_number(ticks[count++].label, v, v, v, a->percent);
            }
        }
        return count;
    }
    double raw = (a->high - a->low) / wanted, power = pow(10, floor(log10(raw))), part = raw / power;
    double step = power * (part < 1.5 ? 1 : part < 2.25 ? 2 : part < 3.5 ? 2.5 : part < 7 ? 5 : 10);
    for (double i = ceil(a->low / step - 1e-9); i * step <= a->high + 1e-9 * step && count < PLOT_TICKS;
         i++) {
        ticks[count].value = i * step;
        plot_number(ticks[count++].label, i * step, fmax(fabs(a->low), fabs(a->high)), step, a->percent);
    }
    return count;
}

// ---------------------------------------------------------------- SVG

enum { PLOT_WIDTH = 800, PLOT_LEFT = 56, PLOT_RIGHT = 156 };

// Text of an element, at most `columns` characters of it.
static inline void svg_text(FILE *f, const char *text, int columns) {
    char valid[512];
    utf8_copy(valid, sizeof valid, text);
    for (const char *p = valid; *p; p++) {
        bool starts = ((unsigned char)*p & 0xc0) != 0x80;
        if (starts && columns-- == 0) {
            fputs("…", f);
            break;
        }
        if (*p == '&') fputs("&amp;", f);
        else if (*p == '<') fputs("&lt;", f);
        else if (*p == '>') fputs("&gt;", f);
        else if (*p == '"') fputs("&quot;", f);
        else fputc(*p, f);
    }
}

// Classes: t title, h heading, l small text, k text with a halo, g grid, a axis, m mark, s line, d dot, cN
// colour of a line, fN of text and dots.
static inline void svg_style(FILE *f) {
    static const char *const light[] = {"#2563eb", "#d9480f", "#0d8a5f", "#9333ea", "#b0186e", "#4b5563"};
    static const char *const dark[] = {"#6ea8fe", "#ff9d5c", "#45c99a", "#c08bfa", "#f57bbd", "#a3adba"};
    fputs("<style>\n"
          "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:11px}\n"
          ".p{fill:#fff}.t{font-size:16px;font-weight:600}.h{font-size:12px;font-weight:600}.t,.h{fill:#"
          "1c2128}.l{fill:#5b6472}\n"
          ".g{stroke:#e6e9ee}.a{stroke:#9aa3af}.m{stroke:#5b6472;stroke-dasharray:3 3}\n"
          ".d{stroke:#fff;stroke-width:1.5}.k{paint-order:stroke;stroke:#fff;stroke-width:4px}\n"
          ".s{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.s.faint{stroke-width:1;"
          "opacity:.3}\n",
        f);
    for (int i = 0; i < PLOT_COLORS; i++)
        fprintf(f, ".c%d{stroke:%s}.f%d{fill:%s}", i, light[i], i, light[i]);
    fputs("\n@media (prefers-color-scheme:dark){\n"
          ".p{fill:#0f141b}.t,.h{fill:#e8ebf0}.l{fill:#98a2b0}.g{stroke:#252c36}.a{stroke:#5d6776}.m{stroke:#"
          "98a2b0}.d,.k{stroke:#0f141b}\n",
        f);
    for (int i = 0; i < PLOT_COLORS; i++) fprintf(f, ".c%d{stroke:%s}.f%d{fill:%s}", i, dark[i], i, dark[i]);
    fputs("\n}\n</style>\n", f);
}

// The line as a path. A hundred thousand steps share some hundred pixels: of the points in one pixel column
// the first, the lowest, the highest and the last are drawn, which looks the same.
static inline void svg_path(FILE *f, const PlotSeries *s, const PlotAxis *x, const PlotAxis *y) {
    fprintf(f, "<path class=\"s c%d%s\" d=\"", s->color, s->style & PLOT_FAINT ? " faint" : "");
    for (size_t i = 0, end; i < s->n; i = end) {
        end = i + 1;
        if (!axis_shows(x, s->x[i]) || !axis_shows(y, s->y[i])) continue;
        double column = floor(axis_pixel(x, s->x[i]));
        size_t low = i, high = i;
        for (; end < s->n && axis_shows(x, s->x[end]) && axis_shows(y, s->y[end]) &&
               floor(axis_pixel(x, s->x[end])) == column;
             end++) {
            if (s->y[end] < s->y[low]) low = end;
            if (s->y[end] > s->y[high]) high = end;
        }
        bool starts = i == 0 || !axis_shows(x, s->x[i - 1]) || !axis_shows(y, s->y[i - 1]);
        bool stops = end == s->n || !axis_shows(x, s->x[end]) || !axis_shows(y, s->y[end]);
        size_t keep[4] = {i, low < high ? low : high, low < high ? high : low, end - 1};
        for (int k = 0; k < 4; k++) {
            if (k > 0 && keep[k] == keep[k - 1]) continue;
            fprintf(f, "%c%.1f %.1f", starts && k == 0 ? 'M' : 'L', axis_pixel(x, s->x[keep[k]]),
                axis_pixel(y, s->y[keep[k]]));
        }
        if (starts && stops && end == i + 1)
            fputs("h0", f); // a point between gaps: the round ends of the line make it a dot
    }
    fputs("\"/>\n", f);
}

static inline void svg_dot(FILE *f, int color, double x, double y) {
    fprintf(f, "<circle class=\"d f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", color, x, y);
}

typedef struct {
    double y; // pixels
    int series;
    double value;
} PlotEnd;

// The last values at the right edge, moved apart where they would overlap.
static inline void svg_ends(FILE *f, const PlotPanel *p, const PlotAxis *x, const PlotAxis *y) {
    enum { LINE = 14 };
    PlotEnd ends[PLOT_SERIES];
    int count = 0;
    for (int k = 0; k < p->series_count; k++) {
        const PlotSeries *s = &p->series[k];
        size_t i = s->n;
        while (i > 0 && !(axis_shows(x, s->x[i - 1]) && axis_shows(y, s->y[i - 1]))) i--;
        if (i == 0 || !s->name) continue;
        PlotEnd end = {axis_pixel(y, s->y[i - 1]), k, s->y[i - 1]};
        svg_dot(f, s->color, axis_pixel(x, s->x[i - 1]), end.y);
        int at = count++;
        for (; at > 0 && ends[at - 1].y > end.y; at--) ends[at] = ends[at - 1]; // sorted from the top
        ends[at] = end;
    }
    for (int i = 1; i < count; i++) ends[i].y = fmax(ends[i].y, ends[i - 1].y + LINE);
    double bottom = y->from + 4;
    for (int i = count - 1; i >= 0; i--, bottom -= LINE) ends[i].y = fmin(ends[i].y, bottom);
    for (int i = 0; i < count; i++) {
        const PlotSeries *s = &p->series[ends[i].series];
        char value[32];
        plot_number(value, ends[i].value, fabs(ends[i].value), 0, y->percent);
        fprintf(f, "<text class=\"f%d\" x=\"%.0f\" y=\"%.1f\">", s->color, x->to + 10, ends[i].y + 4);
        svg_text(f, s->name, 15);
        fprintf(f, "%s<tspan font-weight=\"600\">%s</tspan></text>\n", s->name[0] ? " " : "", value);
    }
}

static inline void svg_marks(FILE *f, const PlotPanel *p, const PlotAxis *x, const PlotAxis *y) {
    for (int label = 0; label < 2; label++) { // the labels over all lines
        for (int i = 0; i < p->mark_count; i++) {
            const PlotMark *m = &p->marks[i];
            if (!axis_shows(x, m->x) || m->x < x->low || m->x > x->high) continue;
            bool line = isnan(m->y);
            if (!line && !axis_shows(y, m->y)) continue;
            double at = axis_pixel(x, m->x);
            // labels of neighbouring lines in different rows
            double row = line ? y->to + 11 + 15 * (i % 5) : axis_pixel(y, m->y) - 7;
            bool left = at > (x->from + x->to) / 2;
            if (!label && line)
                fprintf(f, "<line class=\"m\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", at, at,
                    y->from, y->to);
            if (!label) continue;
            fprintf(f, "<text class=\"l k\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", at + (left ? -5 : 5),
                row, left ? "end" : "start");
            svg_text(f, m->label, 48);
            fputs("</text>\n", f);
        }
    }
}

static inline void svg_grid(FILE *f, const PlotAxis *x, const PlotAxis *y) {
    PlotTick ticks[PLOT_TICKS];
    int count = axis_ticks(y, (int)fmax(2, (y->from - y->to) / 40), ticks);
    for (int i = 0; i < count; i++) {
        double at = axis_pixel(y, ticks[i].value);
        fprintf(
            f, "<line class=\"g\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>", x->from, x->to, at, at);
        fprintf(f, "<text class=\"l\" x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", x->from - 8,
            at + 4, ticks[i].label);
    }
    fprintf(f, "<line class=\"a\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", x->from, x->to,
        y->from, y->from);
    count = axis_ticks(x, 8, ticks);
    for (int i = 0; i < count; i++) {
        double at = axis_pixel(x, ticks[i].value);
        fprintf(f, "<line class=\"a\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", at, at, y->from,
            y->from + 4);
        fprintf(f, "<text class=\"l\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", at,
            y->from + 16, ticks[i].label);
    }
}

// The ends of both axes from everything in the panel.
static inline void panel_axes(const PlotPanel *p, PlotAxis *x, PlotAxis *y) {
    x->log = (p->flags & PLOT_LOG_X) != 0;
    y->log = (p->flags & PLOT_LOG_Y) != 0;
    x->logit = y->logit = (p->flags & PLOT_LOGIT) != 0;
    x->percent = x->logit;
    y->percent = y->logit || (p->flags & PLOT_PERCENT) != 0;
    x->low = y->low = INFINITY;
    x->high = y->high = -INFINITY;
    for (int i = 0; i < p->series_count; i++) {
        axis_include(x, p->series[i].x, p->series[i].n);
        axis_include(y, p->series[i].y, p->series[i].n);
    }
    static const double whole[] = {0.5, 0.9};
    if (x->low > x->high) axis_include(x, whole, 2); // nothing to show: an empty grid
    if (y->low > y->high) axis_include(y, whole, 2);
    if (p->x_low < p->x_high) {
        x->low = p->x_low;
        x->high = p->x_high;
    }
    if (x->low == x->high || x->logit) axis_pad(x, x->logit ? 0.06 : 0);
    double low = y->low, high = y->high;
    axis_pad(y, 0.06);
    if (p->flags & PLOT_FROM_ZERO && !y->log && low >= 0) y->low = 0;
    if (y->percent && low >= 0) y->low = fmax(y->low, 0);
    if (y->percent && high <= 1) y->high = fmin(y->high, 1);
}

// Draws the panel below `top`; returns the top of the next one.
static inline double svg_panel(FILE *f, const PlotPanel *p, double top) {
    PlotAxis x, y;
    panel_axes(p, &x, &y);
    x.from = PLOT_LEFT;
    x.to = PLOT_WIDTH - PLOT_RIGHT;
    y.to = top + 26;
    y.from = y.to + p->height;
    fprintf(f, "<text class=\"h\" x=\"%d\" y=\"%.0f\">", PLOT_LEFT, top + 14);
    svg_text(f, p->y_title, 96);
    fputs("</text>\n", f);
    svg_grid(f, &x, &y);
    for (int front = 0; front < 2; front++)
        for (int i = 0; i < p->series_count; i++)
            if (front != ((p->series[i].style & PLOT_FAINT) != 0)) svg_path(f, &p->series[i], &x, &y);
    for (int i = 0; i < p->series_count; i++) {
        const PlotSeries *s = &p->series[i];
        for (size_t k = 0; s->style & PLOT_DOTS && k < s->n; k++)
            if (axis_shows(&x, s->x[k]) && axis_shows(&y, s->y[k]))
                svg_dot(f, s->color, axis_pixel(&x, s->x[k]), axis_pixel(&y, s->y[k]));
    }
    svg_marks(f, p, &x, &y);
    svg_ends(f, p, &x, &y);
    if (p->x_title) {
        fprintf(f, "<text class=\"l\" x=\"%.0f\" y=\"%.0f\">", x.to + 22, y.from + 16);
        svg_text(f, p->x_title, 20);
        fputs("</text>\n", f);
    }
    return y.from + 32;
}

// The title in lines of at most 84 characters, broken at blanks. Returns the top of the first panel.
static inline double svg_title(FILE *f, const char *title) {
    double y = 32;
    for (const char *p = title; *p; y += 22) {
        size_t n = strlen(p);
        if (n > 84) {
            for (n = 84; n > 0 && p[n] != ' ';) n--;
            if (n == 0) n = strcspn(p, " ");
        }
        char line[512];
        snprintf(line, sizeof line, "%.*s", (int)n, p);
        fprintf(f, "<text class=\"t\" x=\"%d\" y=\"%.0f\">", PLOT_LEFT, y);
        svg_text(f, line, 84);
        fputs("</text>\n", f);
        p += n;
        p += strspn(p, " ");
    }
    return y - 10;
}

// Writes the panels, one below the other, under a title that says what they show. False, with a warning, if
// the file cannot be written.
static inline bool plot_write(const char *path, const char *title, const PlotPanel *panels, int count) {
    char part[PATH_SIZE], *body = NULL;
    size_t bytes = 0;
    FILE *b = text_open(&body, &bytes); // the height is known at the end
    double y = svg_title(b, title);
    for (int i = 0; i < count; i++) y = svg_panel(b, &panels[i], y);
    text_close(b);
    path_format(part, "%s.part", path);
    FILE *f = file_create(part);
    bool written = f != NULL;
    if (f) {
        fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" ",
            PLOT_WIDTH, y, PLOT_WIDTH, y);
        fputs("role=\"img\">\n<title>", f);
        svg_text(f, title, 500);
        fputs("</title>\n", f);
        svg_style(f);
        fputs("<rect class=\"p\" width=\"100%\" height=\"100%\"/>\n", f);
        fwrite(body, 1, bytes, f);
        fputs("</svg>\n", f);
        written = !ferror(f);
        written = fclose(f) == 0 && written && rename(part, path) == 0;
    }
    if (!written) warn("%s: cannot write (%s); the curves are not drawn", path, strerror(errno));
    if (!written && f) unlink(part);
    free(body);
    return written;
}

// ---------------------------------------------------------------- the curves of a run

// Adds the curves whose name contains `part`, each in its own colour.
static inline void panel_add_curves(PlotPanel *p, const Curves *c, const char *part) {
    for (size_t i = 0; i < c->count; i++) {
        const Curve *curve = &c->list[i];
        if (strstr(curve->name, part))
            plot_line(p, curve->label, curve->x, curve->y, curve->n, p->series_count,
                curve->n <= 60 ? PLOT_DOTS : 0);
    }
}

// Appends "what first → last" to the title.
static inline void title_add(char title[512], const char *what, const double *y, size_t n, bool percent) {
    size_t first = 0, last = n, length = strlen(title);
    while (first < n && !isfinite(y[first])) first++;
    while (last > first && !isfinite(y[last - 1])) last--;
    if (first == n) return;
    char from[32], to[32];
    plot_number(from, y[first], fabs(y[first]), 0, percent);
    plot_number(to, y[last - 1], fabs(y[last - 1]), 0, percent);
    length += (size_t)snprintf(title + length, 512 - length, "%s%s %s", length ? ", " : "", what, from);
    if (strcmp(from, to) != 0) snprintf(title + length, 512 - length, " → %s", to);
}

// Draws a run's metrics.jsonl: loss, zero-shot accuracy, retrieval and learning rate by step, as far as
// they are in it. False, with a warning, if there are none of them.
static inline bool plot_curves(const char *metrics_path, const char *svg_path_name) {
    FILE *f = fopen(metrics_path, "rb");
    if (!f)
        return warn("%s: cannot open (%s); the curves are not drawn", metrics_path, strerror(errno)), false;
    Curves curves = curves_read(f);
    fclose(f);
    const Curve *loss = curves_find(&curves, "loss");
    const Curve *rate = curves_find(&curves, "lr");
    const Curve *top1 = curves_find(&curves, "zeroshot_top1");
    PlotPanel loss_panel = plot_panel("loss (nats)", NULL, 0);
    PlotPanel zeroshot = plot_panel("zero-shot accuracy", NULL, PLOT_PERCENT);
    PlotPanel retrieval = plot_panel("retrieval: the match is among the first k", NULL, PLOT_PERCENT);
    PlotPanel rates = plot_panel("learning rate", NULL, PLOT_FROM_ZERO), panels[4];
    double *smooth = loss ? curve_smooth(loss) : NULL, last_step = 0;
    char title[512] = "";
    int count = 0;
    if (loss) {
        bool noisy = loss->n >= 20;
        if (noisy) plot_line(&loss_panel, NULL, loss->x, loss->y, loss->n, 0, PLOT_FAINT);
        plot_line(&loss_panel, "training", loss->x, noisy ? smooth : loss->y, loss->n, 0,
            loss->n <= 1 ? PLOT_DOTS : 0);
        title_add(title, "Loss", noisy ? smooth : loss->y, loss->n, false);
    }
    for (size_t i = 0; i < curves.count; i++)
        last_step = fmax(last_step, curves.list[i].x[curves.list[i].n - 1]);
    panel_add_curves(&loss_panel, &curves, "val_loss");
    panel_add_curves(&zeroshot, &curves, "zeroshot_top");
    panel_add_curves(&retrieval, &curves, "_R@");
    if (top1) title_add(title, title[0] ? "zero-shot top-1" : "Zero-shot top-1", top1->y, top1->n, true);
    if (rate) plot_line(&rates, "", rate->x, rate->y, rate->n, 5, 0);
    rates.height = 90;
    PlotPanel *all[] = {&loss_panel, &zeroshot, &retrieval, &rates};
    for (int i = 0; i < 4; i++) {
        all[i]->x_high = last_step;
        if (all[i]->series_count > 0) panels[count++] = *all[i];
    }
    if (count > 0) panels[count - 1].x_title = "step";
    bool drawn = count > 0 && plot_write(svg_path_name, title[0] ? title : "Training curves", panels, count);
    if (count == 0) warn("%s: contains nothing to draw", metrics_path);
    free(smooth);
    curves_free(&curves);
    return drawn;
}

#endif
