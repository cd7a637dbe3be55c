// A run's log: lines on the console and in FOLDER/out.log, records of numbers in FOLDER/metrics.jsonl,
// which are also read back as curves, a progress bar on a terminal. A failing log never ends a run: a full
// disk is reported once and the run goes on. Only opening the log can end the program.
//
//     Logger log;
//     logger_open(&log, "logs/my_run", resume);
//     logger_print(&log, "%d parameters", n);               a line
//     logger_step(&log, &progress, every);                  the bar, or a line every so many steps
//     Record r = record_new(step);
//     record_number(&r, "loss", loss);
//     logger_record(&log, &r);                              {"step": 7, "loss": 2.25}
//     logger_close(&log);
#ifndef CLIPC_LOGGER_H
#define CLIPC_LOGGER_H

#include "clipc/base/safe_file.h" // SafeFile

#include <fcntl.h>
#include <jansson.h> // reading metrics.jsonl back
#include <math.h>
#include <sys/ioctl.h>

// In main(), before anything is read: jansson would leave out of a value what it has no memory for.
static inline void json_begin(void) { json_set_alloc_funcs(malloc_check, free); }

// ---------------------------------------------------------------- numbers and text in JSON

// The shortest decimal number that reads back as `x` (as a float if x is one); null for NaN and infinity,
// which JSON lacks.
static inline void number_format(char text[32], double x) {
    if (!isfinite(x)) snprintf(text, 32, "null");
    else if (x == floor(x) && fabs(x) < 1e15) snprintf(text, 32, "%.0f", x);
    else {
        bool is_float = (double)(float)x == x;
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(text, 32, "%.*g", digits, x);
            if (is_float ? strtof(text, NULL) == (float)x : strtod(text, NULL) == x) break;
        }
    }
}

// Copies text as it may be shown: cleaned, and so valid UTF-8, which JSON and XML require.
static inline void utf8_copy(char *out, size_t size, const char *text) {
    snprintf(out, size, "%s", text);
    make_showable(out);
}

// ---------------------------------------------------------------- a record of metrics

enum { RECORD_SIZE = 16384 };

typedef struct {
    char text[RECORD_SIZE]; // what is between the braces
    size_t length;
} Record;

static inline void record_append(Record *r, const char *text) {
    size_t n = strlen(text);
    if (r->length + n >= RECORD_SIZE)
        die(EXIT_RUNTIME, "a record of metrics is longer than %d bytes; evaluate fewer sets at once",
            RECORD_SIZE);
    memcpy(r->text + r->length, text, n);
    r->length += n;
}

// Adds "key": value.
static inline void record_number(Record *r, const char *key, double value) {
    char name[512], number[32];
    utf8_copy(name, sizeof name, key);
    number_format(number, value);
    record_append(r, r->length ? ", \"" : "\"");
    for (char *p = name; *p; p++) {
        const char escaped[3] = {'\\', *p, 0};
        record_append(r, escaped + (*p != '"' && *p != '\\'));
    }
    record_append(r, "\": ");
    record_append(r, number);
}

// Every record begins with its step, by which resuming truncates the file and curves are drawn.
static inline Record record_new(int64_t step) {
    Record r;
    r.length = 0;
    record_number(&r, "step", (double)step);
    return r;
}

// The next whole record of a metrics file (the caller frees it with json_decref), NULL at the end. Lines that
// are not records, such as one cut off by a kill, are skipped. *line (getline's, to be freed) holds its text.
static inline json_t *metrics_next(FILE *f, char **line, size_t *capacity) {
    ssize_t n;
    while ((n = getline(line, capacity, f)) >= 0) {
        json_t *record = json_loadb(*line, (size_t)n, 0, NULL);
        if (json_is_object(record)) return record;
        json_decref(record);
    }
    return NULL;
}

// Keeps the whole records up to and including `last_step`; the file is replaced as a whole or not at all.
static inline void metrics_cut(const char *path, int64_t last_step) {
    if (!file_exists(path)) return;
    FILE *f = fopen_check(path, "rb");
    SafeFile out;
    safe_file_open(&out, path);
    char *line = NULL;
    size_t capacity = 0;
    for (json_t *record; (record = metrics_next(f, &line, &capacity)); json_decref(record)) {
        json_t *step = json_object_get(record, "step");
        if (json_is_number(step) && json_number_value(step) > (double)last_step) continue;
        safe_file_write(&out, line, strcspn(line, "\n"));
        safe_file_write(&out, "\n", 1);
    }
    free(line);
    fclose(f);
    safe_file_commit(&out);
}

// ---------------------------------------------------------------- the log

typedef struct {
    char path[PATH_SIZE];
    int fd;    // -1: there is none
    bool torn; // the disk was full in the middle of a line
} LogFile;

typedef struct {
    LogFile out, metrics;
    bool terminal, bar_shown, failure_warned, console_failed;
    char what[64]; // the work whose progress is shown
    int64_t first_done;
    double first_time, last_drawn;
} Logger;

// Does it end in the middle of a line, after a kill or on a full disk?
static inline bool log_file_is_torn(const LogFile *f) {
    char last;
    const off_t end = lseek(f->fd, 0, SEEK_END);
    return end > 0 && pread(f->fd, &last, 1, end - 1) == 1 && last != '\n';
}

static inline void log_file_open(LogFile *f, const char *folder, const char *name, bool resume) {
    path_format(f->path, "%s/%s", folder, name);
    f->fd = file_append(f->path, O_RDWR | (resume ? 0 : O_EXCL));
    if (f->fd < 0 && errno == EEXIST)
        die(EXIT_USAGE, "%s: exists already; choose another --name, or continue with --resume latest",
            f->path);
    if (f->fd < 0)
        die(EXIT_RUNTIME, "%s: cannot open (%s); it has to be a file, and no link", f->path, strerror(errno));
    f->torn = log_file_is_torn(f);
}

// Appends a line in one write, so that a kill leaves whole lines and at most one torn line at the end.
static inline void log_file_write(Logger *l, LogFile *f, const char *line, size_t n) {
    if (f->fd < 0) return;
    const bool failed = (f->torn && !write_all(f->fd, "\n", 1)) || !write_all(f->fd, line, n);
    if (failed && !l->failure_warned)
        warn("%s: cannot write (%s); the run goes on without it, free some space", f->path, strerror(errno));
    f->torn = failed && log_file_is_torn(f);
    l->failure_warned |= failed;
}

// Opens the log of the run in `folder`, which is created if needed; NULL: console only. Without `resume`
// existing files are an error; with it lines are appended.
static inline void logger_open(Logger *l, const char *folder, bool resume) {
    memset(l, 0, sizeof *l);
    l->out.fd = l->metrics.fd = -1;
    const char *term = getenv("TERM");
    l->terminal = isatty(fileno(stdout)) && term && strcmp(term, "dumb") != 0 && comm_rank() == 0;
    if (!folder || comm_rank()) return; // process 0 logs for all
    make_directories(folder);
    log_file_open(&l->out, folder, "out.log", resume);
    log_file_open(&l->metrics, folder, "metrics.jsonl", resume);
}

// Resuming from a checkpoint of `step`: removes the later records, which the run will write again.
static inline void logger_truncate_after(Logger *l, int64_t step) {
    if (l->metrics.fd < 0) return;
    metrics_cut(l->metrics.path, step);
    close(l->metrics.fd);
    l->metrics.fd = file_append(l->metrics.path, O_RDWR);
    if (l->metrics.fd < 0) die(EXIT_RUNTIME, "%s: cannot open (%s)", l->metrics.path, strerror(errno));
    l->metrics.torn = false;
}

static inline void logger_clear_bar(Logger *l) {
    if (l->bar_shown) fputs("\r\033[K", stdout);
    l->bar_shown = false;
}

static inline void logger_close(Logger *l) {
    logger_clear_bar(l);
    fflush(stdout);
    if (l->out.fd >= 0) close(l->out.fd);
    if (l->metrics.fd >= 0) close(l->metrics.fd);
    l->out.fd = l->metrics.fd = -1;
}

// A console that is full or gone does not end a run, whose log has the lines, too.
static inline void logger_show(Logger *l, const char *line, size_t bytes) {
    if (comm_rank()) return;
    logger_clear_bar(l);
    const bool shown = fwrite(line, 1, bytes, stdout) == bytes && fflush(stdout) == 0;
    if (!shown && !l->console_failed && l->out.fd >= 0)
        warn("cannot write to the console (%s); the run goes on, its lines are in %s", strerror(errno),
            l->out.path);
    l->console_failed |= !shown;
}

static inline void logger_line(Logger *l, bool console, const char *format, va_list args) {
    char line[LINE_SIZE];
    const size_t bytes = line_format(line, 0, format, args);
    if (console) logger_show(l, line, bytes);
    log_file_write(l, &l->out, line, bytes);
}

// A line on the console and in out.log; line breaks in the text are shown as blanks.
PRINTF_LIKE(2, 3) static inline void logger_print(Logger *l, const char *format, ...) {
    va_list args;
    va_start(args, format);
    logger_line(l, true, format, args);
    va_end(args);
}

// A line in out.log only.
PRINTF_LIKE(2, 3) static inline void logger_note(Logger *l, const char *format, ...) {
    va_list args;
    va_start(args, format);
    logger_line(l, false, format, args);
    va_end(args);
}

// A warning, `program: …`, on stderr and in out.log.
PRINTF_LIKE(2, 3) static inline void logger_warn(Logger *l, const char *format, ...) {
    char text[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    logger_clear_bar(l);
    warn("%s", text);
    logger_note(l, "warning: %s", text);
}

// A record in metrics.jsonl.
static inline void logger_record(Logger *l, const Record *r) {
    char line[RECORD_SIZE + 4];
    int n = snprintf(line, sizeof line, "{%.*s}\n", (int)r->length, r->text);
    log_file_write(l, &l->metrics, line, (size_t)n);
}

// ---------------------------------------------------------------- progress

// "2:05", "1:02:05"
static inline void duration_format(char text[32], double seconds) {
    long long s = seconds > 0 && seconds < 1e9 ? (long long)(seconds + 0.5) : 0;
    if (s >= 3600) snprintf(text, 32, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, 32, "%lld:%02lld", s / 60, s % 60);
}

// Seconds left at the speed so far, when `done` of `total` are done; below 0: not known yet. Another `what`
// restarts the clock.
static inline double logger_seconds_left(Logger *l, const char *what, int64_t done, int64_t total) {
    double now = seconds_now();
    if (strcmp(l->what, what) != 0 || done < l->first_done) {
        snprintf(l->what, sizeof l->what, "%s", what);
        l->first_done = done;
        l->first_time = now;
    }
    return done > l->first_done
               ? (now - l->first_time) / (double)(done - l->first_done) * (double)(total - done)
               : -1;
}

// Draws " 34% ━━━━────── train 340/1000  details  2:31 left" over the previous bar, at most ten times a
// second.
static inline void logger_draw_bar(
    Logger *l, const char *what, int64_t done, int64_t total, const char *details, double seconds_left) {
    double now = seconds_now();
    if (now - l->last_drawn < 0.1) return;
    l->last_drawn = now;
    char left[32] = "", text[512];
    if (seconds_left >= 0) duration_format(left, seconds_left);
    snprintf(text, sizeof text, "%s %lld/%lld%s%s%s%s", what, (long long)done, (long long)total,
        details[0] ? "  " : "", details, left[0] ? "  " : "", left);
    if (left[0]) strncat(text, " left", sizeof text - strlen(text) - 1);
    struct winsize window;
    int columns = ioctl(fileno(stdout), TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
    int cells = columns - 1 - 6 - (int)strlen(text); // 6: " 34% " and a blank
    int share = total > 0 ? (int)(100 * done / total) : 0;
    if (cells > 30) cells = 30;
    printf("\r\033[K%4d%% ", share);
    for (int i = 0; i < cells; i++) fputs(i < cells * share / 100 ? "━" : "─", stdout);
    printf("%s%.*s", cells > 0 ? " " : "", columns > 7 ? columns - 7 : 0, text);
    fflush(stdout);
    l->bar_shown = true;
}

// Shows on a terminal how much of some work is done, e.g. "zero-shot" with `done` of `total` images; the bar
// disappears at the end. `details` may be "".
static inline void logger_progress(
    Logger *l, const char *what, int64_t done, int64_t total, const char *details) {
    if (!l->terminal) return;
    double left = logger_seconds_left(l, what, done, total);
    if (done < total) logger_draw_bar(l, what, done, total, details, left);
    else {
        logger_clear_bar(l);
        fflush(stdout);
    }
}

typedef struct {
    int64_t step, steps; // steps done, of the whole run
    double epoch, loss, lr, samples_per_second;
} LogStep;

// A training step: a line in out.log for every `every`th step and the last; on the console the bar, or the
// same line if it is not a terminal.
static inline void logger_step(Logger *l, const LogStep *s, int64_t every) {
    char details[160], line[320], left[32];
    snprintf(
        details, sizeof details, "loss %.4f  lr %.3g  %.1f samples/s", s->loss, s->lr, s->samples_per_second);
    double seconds = logger_seconds_left(l, "step", s->step, s->steps);
    bool last = s->step == s->steps, bar = l->terminal && !last;
    if (bar) logger_draw_bar(l, "step", s->step, s->steps, details, seconds);
    if (s->step % every != 0 && !last) return;
    int n = snprintf(line, sizeof line, "step %lld/%lld  epoch %.2f  %s", (long long)s->step,
        (long long)s->steps, s->epoch, details);
    if (seconds >= 0 && !last) {
        duration_format(left, seconds);
        snprintf(line + n, sizeof line - (size_t)n, "  %s left", left);
    }
    if (bar) logger_note(l, "%s", line);
    else logger_print(l, "%s", line);
}

// ---------------------------------------------------------------- the curves of a run, read back

typedef struct {
    char *name;
    char label[64]; // as charts and pages show it
    double *x, *y;  // (n): steps and values, NaN for null
    size_t n, x_capacity, y_capacity;
} Curve;

typedef struct {
    Curve *list;
    size_t count, capacity;
} Curves;

static inline void curve_label(char label[64], const char *name) {
    static const char *const shorter[][2] = {{"zeroshot_top", "top-"}, {"val_loss", "validation"},
        {"image_to_text_", "image→text "}, {"text_to_image_", "text→image "}};
    snprintf(label, 64, "%s", name);
    for (size_t i = 0; i < sizeof shorter / sizeof *shorter; i++) {
        size_t n = strlen(shorter[i][0]);
        if (strncmp(name, shorter[i][0], n) == 0) snprintf(label, 64, "%s%s", shorter[i][1], name + n);
    }
}

static inline void curves_add(Curves *c, const char *name, double x, double y) {
    size_t i = 0;
    while (i < c->count && strcmp(c->list[i].name, name) != 0) i++;
    if (i == c->count) {
        list_grow((void **)&c->list, &c->capacity, c->count + 1, sizeof *c->list);
        memset(&c->list[c->count++], 0, sizeof *c->list);
        c->list[i].name = strdup_check(name);
        curve_label(c->list[i].label, name);
    }
    Curve *curve = &c->list[i];
    list_grow((void **)&curve->x, &curve->x_capacity, curve->n + 1, sizeof *curve->x);
    list_grow((void **)&curve->y, &curve->y_capacity, curve->n + 1, sizeof *curve->y);
    curve->x[curve->n] = x;
    curve->y[curve->n++] = y;
}

static inline void curves_free(Curves *c) {
    for (size_t i = 0; i < c->count; i++) {
        free(c->list[i].name);
        free(c->list[i].x);
        free(c->list[i].y);
    }
    free(c->list);
    memset(c, 0, sizeof *c);
}

static inline const Curve *curves_find(const Curves *c, const char *name) {
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->list[i].name, name) == 0) return &c->list[i];
    return NULL;
}

// Every number of the records by step; null is NaN.
static inline Curves curves_read(FILE *f) {
    Curves curves;
    memset(&curves, 0, sizeof curves);
    char *line = NULL;
    size_t capacity = 0;
    for (json_t *record, *value; (record = metrics_next(f, &line, &capacity)); json_decref(record)) {
        const char *key;
        json_t *step = json_object_get(record, "step");
        if (!json_is_number(step)) continue;
        json_object_foreach(record, key, value) {
            if (value != step && (json_is_number(value) || json_is_null(value)))
                curves_add(&curves, key, json_number_value(step),
                    json_is_null(value) ? NAN : json_number_value(value));
        }
    }
    free(line);
    return curves;
}

// Moving average, a sixtieth of the curve to both sides, applied twice; gaps remain gaps and have no weight.
// free() it.
static inline double *curve_smooth(const Curve *c) {
    double *out = (double *)malloc_check(c->n * sizeof *out);
    double *sum = (double *)calloc_check(c->n + 1, sizeof *sum);
    size_t *known = (size_t *)calloc_check(c->n + 1, sizeof *known), half = c->n / 60 + 1;
    memcpy(out, c->y, c->n * sizeof *out);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < c->n; i++) {
            bool finite = isfinite(out[i]);
            sum[i + 1] = sum[i] + (finite ? out[i] : 0);
            known[i + 1] = known[i] + finite;
        }
        for (size_t i = 0; i < c->n; i++) {
            // a shorter reach at the first points, where the loss falls fast
            size_t reach = half < i + 1 + half / 8 ? half : i + 1 + half / 8;
            size_t from = i > reach ? i - reach : 0, to = i + reach + 1 < c->n ? i + reach + 1 : c->n;
            if (isfinite(out[i])) out[i] = (sum[to] - sum[from]) / (double)(known[to] - known[from]);
        }
    }
    free(sum);
    free(known);
    return out;
}

#endif
