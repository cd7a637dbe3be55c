// A run's log (numbers, records, files, resuming, a full disk, the bar) and the charts drawn from it.
#include "clipc/base/plot.h"
#include "dev/test/child.h"

#include <sys/resource.h>

static char folder[PATH_SIZE]; // scratch, removed at the end

static const char *in_folder(const char *name) {
    static char paths[8][PATH_SIZE];
    static int next;
    char *path = paths[next++ % 8];
    path_format(path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, const char *text) {
    FILE *f = fopen_check(path, "wb");
    fputs(text, f);
    fclose(f);
}

static int count_of(const char *text, const char *part) {
    int n = 0;
    for (; (text = strstr(text, part)); text += strlen(part)) n++;
    return n;
}

// ---------------------------------------------------------------- logger

static void test_numbers_read_back_as_they_were(void) {
    const struct {
        double x;
        const char *text;
    } cases[] = {{0, "0"}, {5, "5"}, {-3, "-3"}, {0.1, "0.1"}, {0.1f, "0.1"}, {1e-5, "1e-05"},
        {1e-5f, "1e-05"}, {2.25, "2.25"}, {1234567, "1234567"}, {1.0 / 3, "0.3333333333333333"},
        {1.0f / 3, "0.33333334"}, {NAN, "null"}, {INFINITY, "null"}, {-INFINITY, "null"}, {25e6, "25000000"}};
    char text[32];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        number_format(text, cases[i].x);
        EXPECT_STRING(text, cases[i].text);
    }
    Rand r = rand_for(1, 2, 3);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = rand_u64(&r);
        double x;
        memcpy(&x, &bits, 8);
        float f = (float)rand_normal(&r) * powf(10, (float)(i % 60 - 30));
        if (!isfinite(x)) continue;
        number_format(text, x);
        EXPECT(strtod(text, NULL) == x, "%s is not %.17g", text, x);
        number_format(text, f);
        EXPECT(strtof(text, NULL) == f, "%s is not %.9g", text, f);
    }
}

static void test_record_is_valid_json(void) {
    const char *key = "zeroshot_top1/a \"b\"\\\n\x01/größe";
    Record r = record_new(12345678901LL);
    record_number(&r, key, 0.5f);
    record_number(&r, "\xff\xfe", NAN);
    char line[RECORD_SIZE + 2];
    snprintf(line, sizeof line, "{%.*s}", (int)r.length, r.text);
    json_t *json = json_loads(line, 0, NULL);
    EXPECT(json_is_object(json) && json_object_size(json) == 3, "%s", line);
    EXPECT(json_integer_value(json_object_get(json, "step")) == 12345678901LL, "%s", line);
    // without characters that act on a terminal
    const char *shown = "zeroshot_top1/a \"b\"\\ ?/größe";
    EXPECT(json_real_value(json_object_get(json, shown)) == 0.5, "%s", line);
    EXPECT(json_is_null(json_object_get(json, "??")), "%s", line);
    json_decref(json);
}

static void log_steps(Logger *l, int from, int to) {
    for (int step = from; step <= to; step++) {
        LogStep s = {step, 34, step / 10.0, 2.5 / step, 1e-4, 88.25};
        logger_step(l, &s, 5);
        Record r = record_new(step);
        record_number(&r, "loss", s.loss);
        record_number(&r, "lr", s.lr);
        logger_record(l, &r);
    }
}

static void work_run(const void *path) {
    Logger l;
    logger_open(&l, path, false);
    logger_print(&l, "%d parameters", 42);
    log_steps(&l, 1, 34);
    logger_warn(&l, "%d images are broken", 3);
    logger_close(&l);
    exit(0);
}

static void test_run_writes_whole_lines(void) {
    const char *path = in_folder("logs/run");
    EXPECT(child_run(work_run, path) == 0, "%s", child.text);
    char *out = file_read_all(in_folder("logs/run/out.log"), NULL);
    char *metrics = file_read_all(in_folder("logs/run/metrics.jsonl"), NULL);
    EXPECT(strncmp(out, "42 parameters\nstep 5/34  epoch 0.50  loss 0.5000  lr 0.0001  88.2 samples/s  0:0",
               78) == 0,
        "%s", out);
    EXPECT(count_of(out, "\nstep ") == 7 && strstr(out, "step 34/34"), "%s", out); // 5, 10 … 30 and the last
    EXPECT(strstr(out, "warning: 3 images are broken\n") && strstr(child.text, ": 3 images are broken\n"),
        "%s", child.text);
    EXPECT(strncmp(child.text, out, strlen(out) - strlen("warning: 3 images are broken\n")) == 0,
        "console:\n%s\nout.log:\n%s", child.text, out);
    EXPECT(!strchr(child.text, '\r') && !strchr(out, '\r'), "%s", child.text);
    EXPECT(strncmp(metrics, "{\"step\": 1, \"loss\": 2.5, \"lr\": 0.0001}\n", 39) == 0 &&
               count_of(metrics, "\n") == 34,
        "%s", metrics);
    EXPECT(child_run(work_run, path) == EXIT_USAGE && strstr(child.text, "exists already") &&
               count_of(child.text, "\n") == 1,
        "%s", child.text);
    char *again = file_read_all(in_folder("logs/run/metrics.jsonl"), NULL);
    EXPECT_STRING(again, metrics);
    free(out);
    free(metrics);
    free(again);
    write_file(in_folder("file"), "");
    EXPECT(child_run(work_run, in_folder("file/run")) == EXIT_RUNTIME && count_of(child.text, "\n") == 1,
        "%s", child.text);
}

static void test_terminal_shows_a_bar(void) {
    const int from = posix_openpt(O_RDWR | O_NOCTTY);
    const int to = from < 0 || grantpt(from) || unlockpt(from) ? -1 : open(ptsname(from), O_RDWR | O_NOCTTY);
    if (to < 0) { // a bare chroot has no /dev/pts
        printf("no pseudo-terminal here: the progress bar is not tested\n");
        return;
    }
    setenv("TERM", "xterm", 1);
    EXPECT(child_run_between(from, to, work_run, in_folder("logs/bar")) == 0, "%s", child.text);
    EXPECT(strstr(child.text, "\r\033[K"), "no bar: %s", child.text);
    EXPECT(strstr(child.text, "% ") && strstr(child.text, " step 1/34  loss 2.5000"), "%s", child.text);
    EXPECT(
        strstr(child.text, "\033[Kstep 34/34  epoch 3.40"), "the last line does not stand: %s", child.text);
    char *out = file_read_all(in_folder("logs/bar/out.log"), NULL);
    EXPECT(count_of(out, "\nstep ") == 7 && !strchr(out, '\033'), "%s", out);
    free(out);
}

static void work_resume(const void *path) {
    Logger l;
    logger_open(&l, path, true);
    logger_truncate_after(&l, 7);
    logger_print(&l, "goes on");
    log_steps(&l, 8, 9);
    logger_close(&l);
    exit(0);
}

static void test_resuming_cuts_later_records(void) {
    const char *path = in_folder("logs/torn");
    make_directories(path);
    write_file(in_folder("logs/torn/out.log"), "first\nhal");
    write_file(in_folder("logs/torn/metrics.jsonl"),
        "{\"step\": 6, \"loss\": 0.1}\n{\"step\": 7, \"zeroshot_top1\": null}\nrubbish\n{\"note\": 1}\n"
        "{\"step\": 8, \"loss\": 5}\n[7]\n{\"step\": 9, \"lo");
    EXPECT(child_run(work_resume, path) == 0, "%s", child.text);
    char *out = file_read_all(in_folder("logs/torn/out.log"), NULL);
    char *metrics = file_read_all(in_folder("logs/torn/metrics.jsonl"), NULL);
    EXPECT_STRING(out, "first\nhal\ngoes on\n");
    EXPECT_STRING(metrics,
        "{\"step\": 6, \"loss\": 0.1}\n{\"step\": 7, \"zeroshot_top1\": null}\n{\"note\": 1}\n"
        "{\"step\": 8, \"loss\": 0.3125, \"lr\": 0.0001}\n{\"step\": 9, \"loss\": 0.2777777777777778, "
        "\"lr\": 0.0001}\n");
    EXPECT(!file_exists(in_folder("logs/torn/metrics.jsonl.part")), "the file aside was left");
    free(out);
    free(metrics);
    EXPECT(child_run(work_resume, in_folder("logs/fresh")) == 0, "%s",
        child.text); // its logs were thrown away
    metrics = file_read_all(in_folder("logs/fresh/metrics.jsonl"), NULL);
    EXPECT(count_of(metrics, "\n") == 2, "%s", metrics);
    free(metrics);
}

// A file size limit simulates the full disk: writes beyond it fail with EFBIG, at first in the middle of a
// line.
static void work_full_disk(const void *path) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    Logger l;
    logger_open(&l, path, false);
    limit.rlim_cur = 100;
    setrlimit(RLIMIT_FSIZE, &limit);
    log_steps(&l, 1, 20);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
    log_steps(&l, 21, 30);
    logger_close(&l);
    exit(0);
}

static void test_full_disk_is_reported_once(void) {
    EXPECT(child_run(work_full_disk, in_folder("logs/full")) == 0, "%s", child.text);
    EXPECT(count_of(child.text, "cannot write") == 1 &&
               count_of(child.text, "\nstep ") + (strncmp(child.text, "step ", 5) == 0) >= 5,
        "%s", child.text);
    FILE *f = fopen_check(in_folder("logs/full/metrics.jsonl"), "rb");
    char *line = NULL;
    size_t capacity = 0;
    int whole = 0, last = 0;
    for (json_t *record; (record = metrics_next(f, &line, &capacity)); json_decref(record)) {
        last = (int)json_integer_value(json_object_get(record, "step"));
        whole++;
    }
    EXPECT(whole >= 12 && last == 30, "%d whole records, the last of step %d", whole,
        last); // two before, ten after
    free(line);
    fclose(f);
}

static void test_durations_are_readable(void) {
    const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "0:00"}, {59.4, "0:59"}, {59.6, "1:00"}, {3599, "59:59"}, {3600, "1:00:00"},
        {100000, "27:46:40"}, {-1, "0:00"}, {NAN, "0:00"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        duration_format(text, cases[i].seconds);
        EXPECT_STRING(text, cases[i].text);
    }
}

// ---------------------------------------------------------------- charts

static void test_time_left_goes_by_the_speed_so_far(void) {
    Logger l;
    memset(&l, 0, sizeof l);
    EXPECT(logger_seconds_left(&l, "step", 5, 30) < 0, "not known yet");
    l.first_time -= 10; // as if that had been ten seconds ago
    EXPECT(logger_seconds_left(&l, "step", 5, 30) < 0, "nothing is done since");
    EXPECT(fabs(logger_seconds_left(&l, "step", 10, 30) - 40) < 1);
    EXPECT(logger_seconds_left(&l, "zero-shot", 10, 30) < 0, "another clock");
    l.first_time -= 10;
    EXPECT(logger_seconds_left(&l, "zero-shot", 9, 30) < 0, "it began again");
}

static void test_numbers_on_plots_are_short(void) {
    static const struct {
        double v, size, step;
        bool percent;
        const char *text;
    } cases[] = {{0, 1, 0, false, "0"}, {0, 1, 0, true, "0%"}, {1000, 1000, 0, false, "1000"},
        {999, 999, 0, false, "999"}, {0.25, 0.25, 0, false, "0.250"}, {12500, 12500, 0, false, "12.5k"},
        {2.5e6, 2.5e6, 0, false, "2.5M"}, {5e-6, 5e-6, 0, false, "5e-6"}, {0.4, 1, 0.2, true, "40%"},
        {0.25, 1, 0.25, false, "0.25"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        plot_number(text, cases[i].v, cases[i].size, cases[i].step, cases[i].percent);
        EXPECT_STRING(text, cases[i].text);
    }
}

static void test_ticks_are_round_numbers(void) {
    const struct {
        double low, high;
        bool log, percent;
        int wanted;
        const char *labels;
    } cases[] = {{0, 1, false, true, 4, "0% 25% 50% 75% 100% "},
        {0, 600, false, false, 8, "0 100 200 300 400 500 600 "}, {0, 5e-4, false, false, 2, "0 2.5e-4 5e-4 "},
        {0, 25000, false, false, 5, "0 5k 10k 15k 20k 25k "},
        {1e-7, 10, true, false, 8, "1e-7 1e-6 1e-5 1e-4 0.001 0.01 0.1 1 10 "},
        {1, 100, true, false, 4, "1 2 5 10 20 50 100 "},
        {2.99, 3.01, false, false, 4, "2.990 2.995 3.000 3.005 3.010 "},
        {-1, 1, false, false, 4, "-1.0 -0.5 0 0.5 1.0 "}, {3, 4, true, false, 4, "3.00 3.25 3.50 3.75 4.00 "},
        {0, 2e6, false, false, 4, "0 0.5M 1.0M 1.5M 2.0M "}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        PlotAxis a = {cases[i].low, cases[i].high, 0, 100, cases[i].log, cases[i].percent, false};
        PlotTick ticks[PLOT_TICKS];
        char labels[512] = "";
        int count = axis_ticks(&a, cases[i].wanted, ticks);
        for (int k = 0; k < count; k++) {
            strcat(strcat(labels, ticks[k].label), " ");
            double at = axis_pixel(&a, ticks[k].value);
            EXPECT(at >= -0.1 && at <= 100.1, "tick %s at %g", ticks[k].label, at);
        }
        EXPECT_STRING(labels, cases[i].labels);
    }
    PlotAxis wild[] = {{1e17, 1e17 + 64, 0, 1, false, false, false},
        {-1e308, 1e308, 0, 1, false, false, false}, {1e-300, 1e300, 0, 1, true, false, false},
        {5e-324, 1e-323, 0, 1, true, false, false}};
    for (int i = 0; i < 4; i++) {
        PlotTick ticks[PLOT_TICKS];
        EXPECT(axis_ticks(&wild[i], 4, ticks) <= PLOT_TICKS, "wild axis %d", i);
    }
}

static void test_axis_maps_values_to_pixels(void) {
    PlotAxis log_axis = {1e-4, 1, 10, 50, true, false, false};
    PlotAxis line = {-1, 3, 0, 8, false, false, false};
    EXPECT_CLOSE(axis_pixel(&log_axis, 1e-2), 30, 1e-9);
    EXPECT_CLOSE(axis_pixel(&line, 0), 2, 1e-9);
    PlotAxis logit = {0.2, 0.8, 0, 100, false, true, true}; // 0.2 and 0.8 are ln 4 away from 0.5
    EXPECT_CLOSE(axis_pixel(&logit, 0.5), 50, 1e-9);
    EXPECT_CLOSE(axis_pixel(&logit, 1 / 1.5), 75, 1e-9); // odds of 2: half of ln 4
    EXPECT(!axis_shows(&logit, 0) && !axis_shows(&logit, 1) && axis_shows(&logit, 0.999), "axis_shows");
    EXPECT(!axis_shows(&log_axis, 0) && !axis_shows(&log_axis, -1) && axis_shows(&line, 0), "axis_shows");
    EXPECT(!axis_shows(&line, NAN) && !axis_shows(&line, INFINITY), "axis_shows");
}

// Well-formed: every tag closed in order, no bare & or <, no nan or inf among the numbers; every coordinate
// inside the image.
static void expect_svg(const char *svg, const char *what) {
    char open[16][32];
    int depth = 0;
    double height = 0;
    sscanf(strstr(svg, "height=\"") ? strstr(svg, "height=\"") : "", "height=\"%lf", &height);
    EXPECT(height > 0 && height < 5000, "%s: height %g", what, height);
    for (const char *p = svg; *p; p++) {
        if (*p == '&')
            EXPECT(strncmp(p, "&amp;", 5) == 0 || strncmp(p, "&lt;", 4) == 0 || strncmp(p, "&gt;", 4) == 0 ||
                       strncmp(p, "&quot;", 6) == 0,
                "%s: bare &: %.20s", what, p);
        EXPECT((unsigned char)*p >= ' ' || *p == '\n', "%s: a control character", what);
        if (*p != '<') continue;
        const char *end = strchr(p, '>');
        if (!end) break;
        size_t n = strcspn(p + 1, " >");
        if (p[1] == '/')
            EXPECT(
                depth > 0 && strncmp(open[--depth], p + 2, n - 1) == 0, "%s: </%.*s>", what, (int)n, p + 2);
        else if (end[-1] != '/' && depth < 16) snprintf(open[depth++], 32, "%.*s", (int)n, p + 1);
        const char *d = strstr(p, " d=\"");
        for (d = d && d < end ? d + 4 : NULL; d && *d != '"';) {
            if (*d == 'h') {
                d += 2;
                continue;
            }
            char *next;
            double x = strtod(d + 1, &next), y = strtod(next, &next);
            EXPECT((*d == 'M' || *d == 'L') && x >= 0 && x <= PLOT_WIDTH && y >= 0 && y <= height,
                "%s: %c%g %g", what, *d, x, y);
            d = next > d + 1 ? next : "\"";
        }
        p = end;
    }
    EXPECT(depth == 0, "%s: %d tags are open", what, depth);
    EXPECT(
        !strstr(svg, "\"nan") && !strstr(svg, "\"-nan") && !strstr(svg, "inf\""), "%s: not a number", what);
    EXPECT(strstr(svg, "prefers-color-scheme:dark"), "%s: no dark colours", what);
}

// Draws one line and returns the image.
static char *draw(const double *x, const double *y, size_t n, int flags, const char *what) {
    PlotPanel p = plot_panel("y <&>", "x", flags);
    plot_line(&p, "name", x, y, n, 1, 0);
    plot_mark(&p, x[0], "here & <there>");
    EXPECT(plot_write(in_folder("plot.svg"), "A <title> & \"so\" on\n\xff", &p, 1), "%s", what);
    char *svg = file_read_all(in_folder("plot.svg"), NULL);
    expect_svg(svg, what);
    return svg;
}

static void test_plot_is_valid_whatever_the_data(void) {
    enum { N = 100000 };
    double x[] = {1, 2, 3, 4, 5, 6, 7};
    double gaps[] = {1, NAN, 2, 3, INFINITY, NAN, 2};
    double same[] = {3, 3, 3, 3, 3, 3, 3};
    double none[] = {NAN, NAN}, zero[] = {0, 0}, negative[] = {-1, 0, 5, 6};
    char *svg = draw(x, gaps, 7, 0, "gaps");
    EXPECT(count_of(svg, "M") == 3 && count_of(svg, "h0") == 2, "gaps: %s", svg);
    EXPECT(
        strstr(svg, "A &lt;title&gt; &amp; &quot;so&quot; on ?") && strstr(svg, "here &amp; &lt;there&gt;"),
        "%s", svg);
    free(svg);
    free(draw(x, same, 7, 0, "constant"));
    free(draw(x, same, 7, PLOT_LOG_X | PLOT_LOG_Y, "constant, logarithmic"));
    free(draw(x, same, 1, 0, "one point"));
    free(draw(x, same, 1, PLOT_LOG_X | PLOT_LOG_Y, "one point, logarithmic"));
    free(draw(x, none, 2, 0, "nothing"));
    free(draw(x, none, 2, PLOT_LOG_X | PLOT_LOG_Y, "nothing, logarithmic"));
    free(draw(x, x, 0, 0, "no point"));
    free(draw(x, zero, 2, PLOT_FROM_ZERO, "zero"));
    free(draw(x, zero, 2, PLOT_PERCENT, "zero percent"));
    svg = draw(x, negative, 4, PLOT_LOG_Y, "what a logarithm cannot show");
    EXPECT(count_of(svg, "M") == 1 && count_of(svg, "L") == 1, "%s", svg);
    free(svg);

    double *steps = (double *)malloc_check(N * sizeof *steps);
    double *noise = (double *)malloc_check(N * sizeof *noise);
    Rand r = rand_for(7, 0, 0);
    for (int i = 0; i < N; i++) {
        steps[i] = i;
        noise[i] = rand_normal(&r);
    }
    noise[N / 2 + 37] = 50;
    noise[N / 3 + 37] = -50; // a single high or low point, in the middle of a pixel column, must not be lost
    svg = draw(steps, noise, N, 0, "many points");
    EXPECT(strlen(svg) < 100000, "%zu bytes", strlen(svg));
    double highest = 1e9, lowest = 0, y;
    for (const char *p = strstr(svg, " d=\""); p && *p != '>'; p++)
        if ((*p == 'L' || *p == 'M') && sscanf(p + 1, "%*f %lf", &y) == 1) {
            highest = fmin(highest, y);
            lowest = fmax(lowest, y);
        }
    EXPECT(lowest - highest > 150, "the outliers are drawn at %g and %g", highest, lowest);
    free(svg);
    free(steps);
    free(noise);

    PlotPanel p = plot_panel("y", NULL, 0);
    for (int i = 0; i < 20; i++) {
        plot_line(&p, "same", x, same, 7, i, PLOT_DOTS);
        plot_mark(&p, i, "m");
    } // more than fit
    EXPECT(p.series_count == PLOT_SERIES && p.mark_count == PLOT_MARKS, "%d lines, %d marks", p.series_count,
        p.mark_count);
    const char *title =
        "a title of words that goes on for more than one line and then some more so that it has to be broken";
    EXPECT(plot_write(in_folder("plot.svg"), title, &p, 1), "many lines");
    svg = file_read_all(in_folder("plot.svg"), NULL);
    expect_svg(svg, "many lines");
    EXPECT(count_of(svg, "class=\"t\"") == 2, "the title is not broken in two lines");
    double last = -1e9; // the values at the edge stand apart
    for (const char *q = svg; (q = strstr(q, "<text class=\"f")); q++) {
        sscanf(strstr(q, " y=\""), " y=\"%lf", &y);
        EXPECT(y - last > 13.9, "labels %g apart", y - last);
        last = y;
    }
    sscanf(strstr(strstr(svg, "<line class=\"a\""), " y1=\""), " y1=\"%lf", &y);
    EXPECT(last < y + 10, "the lowest label at %g, the axis at %g", last, y);
    free(svg);
}

static void test_smoothing_is_a_moving_average(void) {
    double x[300], y[300];
    for (int i = 0; i < 300; i++) {
        x[i] = i;
        y[i] = i % 7 == 3 ? NAN : 2;
    }
    Curve c;
    memset(&c, 0, sizeof c);
    c.x = x;
    c.y = y;
    c.n = 300;
    double *s = curve_smooth(&c);
    for (int i = 0; i < 300; i++)
        EXPECT(isnan(y[i]) ? isnan(s[i]) : fabs(s[i] - 2) < 1e-12, "at %d: %g", i, s[i]);
    free(s);
    for (int i = 0; i < 300; i++) y[i] = 0.5 * i + (i % 2 ? 1 : -1);
    s = curve_smooth(&c);
    for (int i = 20; i < 280; i++)
        EXPECT(fabs(s[i] - 0.5 * i) < 0.2, "at %d: %g", i, s[i]); // a slope stays, noise goes
    free(s);
}

static void work_no_metrics(const void *path) { exit(plot_curves(path, in_folder("none.svg"))); }
static void work_no_place(const void *path) { exit(plot_curves(in_folder("curves.jsonl"), path)); }

static void test_curves_are_drawn_from_metrics(void) {
    FILE *f = fopen_check(in_folder("curves.jsonl"), "wb");
    fputs("{\"step\": 0, \"zeroshot_top1\": 0.1, \"zeroshot_top5\": 0.5, \"zeroshot_top1/a<b\": 0.2}\nhalf a "
          "line\n{\"loss\": 3}\n",
        f);
    for (int i = 1; i <= 100; i++)
        fprintf(f, "{\"step\": %d, \"epoch\": 1, \"loss\": %s, \"lr\": %g}\n", i,
            i == 50  ? "null"
            : i < 50 ? "4"
                     : "1.5",
            1e-4);
    fputs("{\"step\": 100, \"zeroshot_top1\": 0.525, \"zeroshot_top5\": 1, \"val_loss\": 2.75, "
          "\"image_to_text_R@1\": 0.25}\n{\"step\": 1",
        f);
    fclose(f);
    EXPECT(plot_curves(in_folder("curves.jsonl"), in_folder("curves.svg")), "not drawn");
    char *svg = file_read_all(in_folder("curves.svg"), NULL);
    expect_svg(svg, "curves");
    EXPECT(strstr(svg, "Loss 4.00 → 1.50, zero-shot top-1 10.0% → 52.5%"), "%.400s", svg);
#define BOLD "<tspan font-weight=\"600\">"
    const char *parts[] = {"training " BOLD "1.50", "validation " BOLD "2.75", "top-1 " BOLD "52.5%",
        "top-5 " BOLD "100%", "top-1/a&lt;b", "image→text R@1 " BOLD "25.0%", "1e-4", ">step<"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        EXPECT(strstr(svg, parts[i]), "%s is missing", parts[i]);
    EXPECT(count_of(svg, "class=\"h\"") == 4, "%d panels", count_of(svg, "class=\"h\""));
    free(svg);
    EXPECT(child_run(work_no_place, in_folder("no/such/curves.svg")) == 0 && count_of(child.text, "\n") == 1,
        "%s", child.text);
    const char *empty[] = {
        "", "{}\n", "{\"step\": 1}\n", "{\"step\": 1, \"grad_norm\": 2}\n", "{\"loss\": 2}\n", "\x00\xff"};
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        write_file(in_folder("empty.jsonl"), empty[i]);
        EXPECT(child_run(work_no_metrics, in_folder("empty.jsonl")) == 0 && count_of(child.text, "\n") == 1,
            "%s: %s", empty[i], child.text);
    }
    EXPECT(child_run(work_no_metrics, in_folder("missing.jsonl")) == 0 && count_of(child.text, "\n") == 1,
        "%s", child.text);
    EXPECT(!file_exists(in_folder("none.svg")), "a image of nothing");
    const char *odd[] = {"{\"step\": 0, \"zeroshot_top1\": 1}\n", "{\"step\": 3, \"loss\": null}\n",
        "{\"step\": 5, \"loss\": 1e300, \"lr\": 0}\n{\"step\": 6, \"loss\": -1e300}\n",
        "{\"step\": 1, \"loss\": 2, \"lr\": 1e-5}\n"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        write_file(in_folder("odd.jsonl"), odd[i]);
        EXPECT(plot_curves(in_folder("odd.jsonl"), in_folder("odd.svg")), "%s", odd[i]);
        svg = file_read_all(in_folder("odd.svg"), NULL);
        expect_svg(svg, odd[i]);
        free(svg);
    }
}

int main(void) {
    const char *base = getenv("TMPDIR");
    path_format(folder, "%s/test_logger.XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: cannot make the folder (%s)", folder, strerror(errno));
    RUN(test_numbers_read_back_as_they_were);
    RUN(test_record_is_valid_json);
    RUN(test_run_writes_whole_lines);
    RUN(test_terminal_shows_a_bar);
    RUN(test_resuming_cuts_later_records);
    RUN(test_full_disk_is_reported_once);
    RUN(test_durations_are_readable);
    RUN(test_time_left_goes_by_the_speed_so_far);
    RUN(test_numbers_on_plots_are_short);
    RUN(test_ticks_are_round_numbers);
    RUN(test_axis_maps_values_to_pixels);
    RUN(test_plot_is_valid_whatever_the_data);
    RUN(test_smoothing_is_a_moving_average);
    RUN(test_curves_are_drawn_from_metrics);
    char command[PATH_SIZE + 16];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    EXPECT(system(command) == 0, "%s", command);
    return test_report();
}
