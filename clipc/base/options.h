// Command lines: strict parsing, --help, the settings printed at the start and written to params.txt, all by
// walking the table in option_table.h.
//
//     Options o;
//     options_parse(&o, argc, argv);              wrong usage: one line, then exit code 2
//     if (!options_was_set(&o, lr)) o.lr = 1e-5;  for defaults that depend on other options
//     options_print(&o, stdout);                  the settings; with a file: params.txt
#ifndef CLIPC_OPTIONS_H
#define CLIPC_OPTIONS_H

#include "clipc/base/utils.h"        // die, warn, edit_distance, list_grow
#include "clipc/base/option_table.h" // ALL_OPTIONS, FOREIGN_OPTIONS

#include <fnmatch.h>
#include <limits.h> // INT_MAX
#include <math.h>   // isfinite, floor
#include <stddef.h> // offsetof

// ---------------------------------------------------------------- types and rows made from the table

// How many of `total` steps (or other units) `s` is: its count, or its percentage rounded down.
static inline int64_t share_of(Share s, int64_t total) {
    return (int64_t)floor(s.percent ? (double)total * s.value / 100 : s.value);
}

#define K(kind, type, value) typedef type OptionType##kind;
OPTION_KINDS(K)
#undef K

#define K(kind, type, value) KIND_##kind,
enum { OPTION_KINDS(K) KIND_COUNT };
#undef K

#define X(group, kind, field, name, initial, range, help) OPTION_##field,
enum { ALL_OPTIONS(X) OPTION_COUNT };
#undef X

#define G(group, heading) GROUP_##group,
enum { OPTION_GROUPS(G) GROUP_COUNT };
#undef G
#define GROUP_BIT(group) (1u << GROUP_##group)

// One field per option. Texts point into argv, or into memory that the fields below own.
typedef struct {
#define X(group, kind, field, name, initial, range, help) OptionType##kind field;
    ALL_OPTIONS(X)
#undef X
    bool set[OPTION_COUNT];    // given on the command line
    char *owned[OPTION_COUNT]; // texts of WORDS and TRIPLE
    char *settings;            // texts that options_adopt() took over
    char *preset_settings;     // texts that preset_apply() set
} Options;

#define options_was_set(options, field) ((options)->set[OPTION_##field])

typedef struct {
    int group, kind;
    const char *name, *initial, *range, *help;
    size_t offset, size; // of the field in Options
} OptionRow;

static inline const OptionRow *option_rows(void) {
    static const OptionRow rows[OPTION_COUNT] = {
#define X(group, kind, field, name, initial, range, help)                              \
    {GROUP_##group, KIND_##kind, name, initial, range, help, offsetof(Options, field), \
        sizeof(OptionType##kind)},
        ALL_OPTIONS(X)
#undef X
    };
    return rows;
}

// Does `text` match one of the alternatives a|b|c, each a pattern as for file names (* ? [])?
static inline bool matches_any(const char *alternatives, const char *text) {
    char pattern[64];
    for (const char *p = alternatives; *p; p += strcspn(p, "|"), p += *p == '|') {
        snprintf(pattern, sizeof pattern, "%.*s", (int)strcspn(p, "|"), p);
        if (fnmatch(pattern, text, 0) == 0) return true;
    }
    return false;
}

static inline bool option_offered(const OptionRow *row) {
    return PROGRAM_GROUPS >> row->group & 1 || matches_any(PROGRAM_ALSO, row->name);
}
static inline bool option_has_default(const OptionRow *row) {
    return row->initial[0] && row->initial[0] != '(';
}

// ---------------------------------------------------------------- values

// Reads a decimal number and nothing else: no spaces, hex, inf or nan. (The characters are checked first,
// since strtod() accepts all of these.)
static inline bool parse_number(const char *text, double *value) {
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) return false;
    char *end;
    *value = strtod(text, &end);
    return *end == 0 && isfinite(*value);
}

typedef struct {
    double low, high;
    bool low_open, high_open;
    char low_text[32], high_text[32]; // the bounds as written in the table
} OptionRange;

static inline OptionRange option_range_parse(const char *text) {
    OptionRange r;
    r.low_open = text[0] == '(';
    r.high_open = ends_with(text, ")");
    snprintf(r.low_text, sizeof r.low_text, "%.*s", (int)strcspn(text + 1, ","), text + 1);
    const char *high = strchr(text, ',') + 1;
    snprintf(r.high_text, sizeof r.high_text, "%.*s", (int)strlen(high) - 1, high);
    r.low = strtod(r.low_text, NULL);
    r.high = strtod(r.high_text, NULL);
    return r;
}

static inline bool option_range_holds(const OptionRange *r, double x) {
    return (r->low_open ? x > r->low : x >= r->low) && (r->high_open ? x < r->high : x <= r->high);
}

// "1 or more", "0 to 1", "0 or more, below 1"
static inline void option_range_describe(const OptionRange *r, char text[96]) {
    const char *low = r->low_text, *high = r->high_text;
    if (isinf(r->high)) snprintf(text, 96, r->low_open ? "above %s" : "%s or more", low);
    else if (!r->low_open && !r->high_open) snprintf(text, 96, "%s to %s", low, high);
    else
        snprintf(text, 96, r->low_open ? "above %s, %s %s" : "%s or more, %s %s", low,
            r->high_open ? "below" : "up to", high);
}

enum { OPTION_ERROR_SIZE = 512 };

// Reads a number in the row's range. Returns false with the reason in `error` if it is not one.
static inline bool option_number(const OptionRow *row, const char *text, double *value, char *error) {
    OptionRange range = option_range_parse(row->range);
    char allowed[96];
    option_range_describe(&range, allowed);
    if (!parse_number(text, value))
        return snprintf(error, OPTION_ERROR_SIZE, "is not a number; give %s", allowed), false;
    if (!option_range_holds(&range, *value))
        return snprintf(error, OPTION_ERROR_SIZE, "is out of range; give %s", allowed), false;
    return true;
}

// Plain digits are read as an integer, since a double does not hold every whole number beyond 2^53; forms
// like 25e6 are read as a double.
static inline bool option_integer(const OptionRow *row, const char *text, int64_t *value, char *error) {
    double number;
    if (!option_number(row, text, &number, error)) return false;
    char *end;
    *value = strtoll(text, &end, 10);
    if (*end == 0) return true;
    *value = (int64_t)number;
    if (number == floor(number)) return true;
    snprintf(error, OPTION_ERROR_SIZE, "is not a whole number");
    return false;
}

static inline bool option_share(const OptionRow *row, const char *text, Share *share, char *error) {
    char digits[64];
    size_t n = strlen(text);
    share->percent = n > 0 && n < sizeof digits && text[n - 1] == '%';
    if (!share->percent) {
        int64_t count = 0;
        if (!option_integer(row, text, &count, error))
            return strcat(error, ", or a percentage such as 10%"), false;
        share->value = (double)count;
        return true;
    }
    snprintf(digits, sizeof digits, "%.*s", (int)n - 1, text);
    if (parse_number(digits, &share->value) && share->value >= 0 && share->value <= 100) return true;
    snprintf(error, OPTION_ERROR_SIZE, "is not a percentage; give 0%% to 100%%, or a number of steps");
    return false;
}

static inline bool option_triple(const OptionRow *row, const char *text, Triple *triple, char *error) {
    int count = 0;
    for (const char *p = text; *p; count++) {
        char word[64];
        size_t n = strcspn(p, ", ");
        snprintf(word, sizeof word, "%.*s", (int)n, p);
        double value;
        if (n >= sizeof word || !option_number(row, word, &value, error)) return false;
        if (count < 3) triple->v[count] = value;
        p += n + (p[n] != 0);
        p += strspn(p, " ");
    }
    if (count != 3)
        snprintf(error, OPTION_ERROR_SIZE, "has %d number%s; give three, for red, green and blue", count,
            count == 1 ? "" : "s");
    return count == 3;
}

static inline bool option_choice(const OptionRow *row, const char *text, const char **word, char *error) {
    size_t n = strlen(text);
    for (const char *p = row->range; *p; p += strcspn(p, " "), p += strspn(p, " "))
        if (strcspn(p, " ") == n && memcmp(p, text, n) == 0) return *word = text, true;
    snprintf(error, OPTION_ERROR_SIZE, "is not one of the choices; give %s%s",
        strchr(row->range, ' ') ? "one of: " : "", row->range);
    return false;
}

static inline bool option_character(const char *text, char *c, char *error) {
    *c = strcmp(text, "\\t") == 0 || strcmp(text, "tab") == 0 ? '\t' : text[0];
    if (*c == '\t' || (text[0] && !text[1] && text[0] > ' ')) return true;
    snprintf(error, OPTION_ERROR_SIZE, "is not a single character; give one such as , or ; or \\t");
    return false;
}

// Stores a value in its field. If the value is not valid, returns false and the reason in `error`, which has
// OPTION_ERROR_SIZE bytes.
static inline bool option_store(Options *o, const OptionRow *row, const char *text, char *error) {
    void *field = (char *)o + row->offset;
    switch (row->kind) {
    case KIND_FLAG: *(bool *)field = true; return true;
    case KIND_INT: return option_integer(row, text, (int64_t *)field, error);
    case KIND_REAL: return option_number(row, text, (double *)field, error);
    case KIND_RATE:
        if (strcmp(text, "auto") == 0) return *(double *)field = RATE_AUTO, true;
        return option_number(row, text, (double *)field, error) || (strcat(error, ", or auto"), false);
    case KIND_TRIPLE: return option_triple(row, text, (Triple *)field, error);
    case KIND_SHARE: return option_share(row, text, (Share *)field, error);
    case KIND_CHOICE: return option_choice(row, text, (const char **)field, error);
    case KIND_CHARACTER: return option_character(text, (char *)field, error);
    case KIND_LIST: {
        TextList *list = (TextList *)field;
        list_grow((void **)&list->items, &list->capacity, list->count + 1, sizeof *list->items);
        list->items[list->count++] = text;
        return true;
    }
    default: *(const char **)field = text; return true;
    }
}

// ---------------------------------------------------------------- parsing

static inline void options_free(Options *o) {
    free(o->settings);
    free(o->preset_settings);
    const OptionRow *rows = option_rows();
    for (int i = 0; i < OPTION_COUNT; i++) {
        free(o->owned[i]);
        if (rows[i].kind == KIND_LIST) free((void *)((TextList *)((char *)o + rows[i].offset))->items);
    }
}

static inline void options_defaults(Options *o) {
    const OptionRow *rows = option_rows();
    char error[OPTION_ERROR_SIZE];
    memset(o, 0, sizeof *o);
    for (int i = 0; i < OPTION_COUNT; i++) {
        void *field = (char *)o + rows[i].offset;
        if (option_has_default(&rows[i])) {
            if (!option_store(o, &rows[i], rows[i].initial, error))
                die(EXIT_RUNTIME, "--%s: default %s %s", rows[i].name, rows[i].initial, error);
        } else if (rows[i].kind == KIND_INT) *(int64_t *)field = -1;
        else if (rows[i].kind == KIND_REAL || rows[i].kind == KIND_RATE) *(double *)field = NAN;
    }
}

static inline void options_help(FILE *f);

typedef enum { IGNORED_FLAG, IGNORED_VALUE, REFUSED } ForeignVerdict;

// Handles an option that the table does not have, given with `value` (NULL: none), by the list of foreign
// options: one to refuse ends the program; for one to ignore it warns, returns true, and sets `takes` to the
// number of values that the option has. Returns false for an option that is not in the list.
static inline bool option_foreign(const char *name, const char *value, int *takes) {
    static const struct {
        ForeignVerdict verdict;
        const char *names, *why;
    } foreign[] = {
#define F(verdict, names, why) {verdict, names, why},
        FOREIGN_OPTIONS(F)
#undef F
    };
    char both[512];
    snprintf(both, sizeof both, "%s %s", name, value ? value : "");
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        const char *given = strchr(foreign[i].names, ' ') ? both : name;
        if (!matches_any(foreign[i].names, given)) continue;
        if (foreign[i].verdict == REFUSED) die(EXIT_USAGE, "--%s: %s", given, foreign[i].why);
        warn("--%s has no effect here and is ignored: %s", given, foreign[i].why);
        *takes = foreign[i].verdict == IGNORED_VALUE;
        return true;
    }
    return false;
}

// The option that an unknown name was probably meant to be: one that begins with the name, otherwise the one
// at the smallest edit distance.
static inline const char *option_nearest(const char *name) {
    const OptionRow *rows = option_rows();
    const char *nearest = "";
    int best = INT_MAX;
    for (int i = 0; i < OPTION_COUNT; i++) {
        if (!option_offered(&rows[i])) continue;
        int distance = strncmp(rows[i].name, name, strlen(name)) == 0 ? 0 : edit_distance(name, rows[i].name);
        if (distance < best) {
            best = distance;
            nearest = rows[i].name;
        }
    }
    return edit_distance(name, "help") < best ? "help" : nearest;
}

static inline const OptionRow *option_find(const char *name) {
    const OptionRow *rows = option_rows();
    for (int i = 0; i < OPTION_COUNT; i++)
        if (strcmp(rows[i].name, name) == 0 && option_offered(&rows[i])) return &rows[i];
    return NULL;
}

// Reads an option's value from `values`: `count` words up to the next --option, or with `inlined` the one
// word after the =. Returns how many words belong to the option.
static inline int option_take(Options *o, const OptionRow *row, char **values, int count, bool inlined) {
    int index = (int)(row - option_rows());
    char error[OPTION_ERROR_SIZE] = "";
    if (o->set[index] && row->kind != KIND_LIST) die(EXIT_USAGE, "--%s is given twice; keep one", row->name);
    o->set[index] = true;
    if (row->kind == KIND_FLAG) {
        if (inlined) die(EXIT_USAGE, "--%s=%s: takes no value; write --%s", row->name, values[0], row->name);
        option_store(o, row, "", error);
        return 0;
    }
    bool empty = count == 0;
    for (int i = 0; i < count; i++) empty |= !values[i][0];
    if (empty) die(EXIT_USAGE, "--%s needs a value; see --help", row->name);
    if (row->kind == KIND_LIST) {
        for (int i = 0; i < count; i++) option_store(o, row, values[i], error);
        return count;
    }
    const char *text = values[0];
    if (row->kind == KIND_WORDS || row->kind == KIND_TRIPLE) {
        size_t bytes = 1;
        for (int i = 0; i < count; i++) bytes += strlen(values[i]) + 1;
        char *joined = o->owned[index] = (char *)calloc_check(bytes, 1);
        for (int i = 0; i < count; i++) strcat(strcat(joined, i ? " " : ""), values[i]);
        text = joined;
    } else count = 1;
    int takes;
    if (!option_store(o, row, text, error) && !option_foreign(row->name, text, &takes))
        die(EXIT_USAGE, "--%s %s: %s", row->name, text, error);
    return count;
}

// Reads a command line. Wrong usage ends the program with one line and EXIT_USAGE; --help ends it with 0.
static inline void options_parse(Options *o, int argc, char **argv) {
    options_defaults(o);
    const OptionRow *previous = NULL; // the option before this argument
    for (int i = 1; i < argc; i++) {
        char *arg = argv[i], name[128];
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            options_help(stdout);
            exit(program_end(EXIT_SUCCESS));
        }
        if (strncmp(arg, "--", 2) != 0 || !arg[2] || arg[2] == '=') {
            if (!previous && file_exists(arg))
                die(EXIT_USAGE, "%s: does not belong to an option; to train on it, write --train-data %s",
                    arg, arg);
            if (!previous)
                die(EXIT_USAGE, "%s: does not belong to an option; write --name value (see --help)", arg);
            die(EXIT_USAGE, "%s: does not belong to an option: --%s takes %s", arg, previous->name,
                previous->kind == KIND_FLAG
                    ? "no value"
                    : "one value here; quote patterns and values that contain spaces");
        }
        char *equals = strchr(arg, '=');
        snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - arg - 2 : (ptrdiff_t)strlen(arg) - 2),
            arg + 2);
        char *inlined[1] = {equals ? equals + 1 : NULL}, **values = equals ? inlined : argv + i + 1;
        int count = equals ? 1 : 0, taken = 0;
        while (!equals && i + 1 + count < argc && strncmp(values[count], "--", 2) != 0) count++;
        const OptionRow *row = option_find(name);
        if (row) taken = option_take(o, row, values, count, equals != NULL);
        else if (!option_foreign(name, count ? values[0] : NULL, &taken))
            die(EXIT_USAGE, "--%s: unknown option; did you mean --%s?", name, option_nearest(name));
        previous = row;
        if (!equals) i += min_i64(taken, count);
    }
}

// ---------------------------------------------------------------- printing

// Prints 15 digits if they read back as the same number, otherwise 17.
static inline void print_number(FILE *f, double x) {
    char text[32];
    snprintf(text, sizeof text, "%.15g", x);
    fprintf(f, strtod(text, NULL) == x ? "%.15g" : "%.17g", x);
}

static inline void option_print_value(FILE *f, int kind, const void *field, size_t item) {
    const Triple *triple = (const Triple *)field;
    const Share *share = (const Share *)field;
    switch (kind) {
    case KIND_FLAG: fputs("true", f); break;
    case KIND_INT: fprintf(f, "%lld", (long long)*(const int64_t *)field); break;
    case KIND_RATE:
        if (*(const double *)field == RATE_AUTO) {
            fputs("auto", f);
            break;
        } // fall through
    case KIND_REAL: print_number(f, *(const double *)field); break;
    case KIND_TRIPLE:
        for (int i = 0; i < 3; i++) {
            fputs(i ? " " : "", f);
            print_number(f, triple->v[i]);
        }
        break;
    case KIND_SHARE:
        print_number(f, share->value);
        fputs(share->percent ? "%" : "", f);
        break;
    case KIND_CHARACTER: {
        char text[2] = {*(const char *)field, 0};
        print_escaped(f, text);
        break;
    }
    case KIND_LIST: print_escaped(f, ((const TextList *)field)->items[item]); break;
    default: print_escaped(f, *(const char *const *)field);
    }
}

// Prints the settings, one line each: name and value (for a list, one line per value; as print_escaped()
// writes it). Options that are not set are left out; those that the program has set are included.
static inline void options_print(const Options *o, FILE *f) {
    const OptionRow *rows = option_rows();
    Options unset;
    options_defaults(&unset);
    for (int i = 0; i < OPTION_COUNT; i++) {
        const OptionRow *row = &rows[i];
        const void *field = (const char *)o + row->offset;
        bool known = o->set[i] || option_has_default(row) ||
                     memcmp(field, (const char *)&unset + row->offset, row->size) != 0;
        size_t lines = row->kind == KIND_LIST ? ((const TextList *)field)->count : known;
        for (size_t k = 0; option_offered(row) && k < lines; k++) {
            fprintf(f, "%-28s ", row->name);
            option_print_value(f, row->kind, field, k);
            fputc('\n', f);
        }
    }
}

// ---------------------------------------------------------------- settings of an earlier run

// Does the option affect the trained weights, rather than only logging, evaluation or speed?
static inline bool option_changes_result(const OptionRow *row) {
    return row->group != GROUP_EVALUATION && row->group != GROUP_OUTPUT &&
           !matches_any(
               "pretrained|resume|resume-override|cache-dir|val-data|val-num-samples|workers", row->name);
}

// Takes over the settings of an earlier run, as options_print() wrote them, for every option that the command
// line does not give. If the command line differs in an option that affects the weights, the program ends,
// unless `override`.
static inline void options_adopt(Options *o, const char *settings, bool override) {
    bool adopted[OPTION_COUNT] = {false}, named[OPTION_COUNT] = {false};
    char *text = o->settings = strdup_check(settings), *line, *rest = text, error[OPTION_ERROR_SIZE];
    while ((line = strsep(&rest, "\n"))) {
        char *value = line + strcspn(line, " ");
        if (*value) *value++ = 0;
        value += strspn(value, " ");
        const OptionRow *row = option_find(line);
        if (!row) continue; // an option of another version
        const size_t i = (size_t)(row - option_rows());
        named[i] = true;
        unescape(value);
        if (!o->set[i] || adopted[i]) {
            if (!option_store(o, row, value, error))
                die(EXIT_USAGE, "--%s, from the settings of the run: %s", row->name, error);
            o->set[i] = adopted[i] = true;
            continue;
        }
        char *mine = NULL;
        size_t length;
        FILE *f = text_open(&mine, &length);
        option_print_value(f, row->kind, (const char *)o + row->offset, 0);
        text_close(f);
        unescape(mine);
        if (strcmp(mine, value) != 0 && option_changes_result(row) && !override)
            die(EXIT_USAGE,
                "--%s %s: the run was started with %s; leave the option out, or add --resume-override to "
                "continue with the new value",
                row->name, mine, value);
        free(mine);
    }
    const OptionRow *rows = option_rows();
    for (int i = 0; i < OPTION_COUNT; i++)
        if (o->set[i] && !named[i] && option_changes_result(&rows[i]) && !override)
            die(EXIT_USAGE,
                "--%s: the run was started without it; leave the option out, or add --resume-override to "
                "continue with it",
                rows[i].name);
}

// ---------------------------------------------------------------- help

// Prints `text` from `column` on and wraps it there at spaces, to lines of at most HELP_WIDTH columns. Text
// in [] at the end stays on one line if it fits on one.
enum { HELP_WIDTH = 100 };

static inline void print_wrapped(FILE *f, int column, const char *text) {
    int x = column;
    while (*text) {
        const bool fits_whole = *text == '[' && column + (int)strlen(text) <= HELP_WIDTH;
        const int n = (int)strcspn(text, fits_whole ? "" : " ");
        if (x > column && x + 1 + n > HELP_WIDTH) {
            fprintf(f, "\n%*s", column, "");
            x = column;
        } else if (x > column) {
            fputc(' ', f);
            x++;
        }
        fwrite(text, 1, (size_t)n, f);
        x += n;
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', f);
}

static inline void option_help(FILE *f, const OptionRow *row) {
    static const char *const takes[KIND_COUNT] = {
#define K(kind, type, value) value,
        OPTION_KINDS(K)
#undef K
    };
    enum { HELP_COLUMN = 36 };
    char left[128], text[1024], note[512] = "";
    snprintf(left, sizeof left, "  --%s %s", row->name, takes[row->kind] ? takes[row->kind] : row->range);
    if (row->kind == KIND_INT || row->kind == KIND_REAL || row->kind == KIND_RATE ||
        row->kind == KIND_TRIPLE) {
        OptionRange range = option_range_parse(row->range);
        option_range_describe(&range, note);
    } else if (row->kind == KIND_CHOICE) {
        size_t n = 0;
        for (const char *p = row->range; *p && n + 3 < sizeof note; p++)
            n += (size_t)snprintf(note + n, sizeof note - n, *p == ' ' ? ", " : "%c", *p);
    }
    if (row->initial[0] && strcmp(row->initial, "(none)") != 0) {
        size_t n = strlen(note), open = row->initial[0] == '(';
        snprintf(note + n, sizeof note - n, "%sdefault: %.*s", n ? "; " : "",
            (int)(strlen(row->initial) - 2 * open), row->initial + open);
    }
    snprintf(text, sizeof text, note[0] ? "%s [%s]" : "%s", row->help, note);
    fprintf(f, "%-*s", HELP_COLUMN, left);
    if ((int)strlen(left) >= HELP_COLUMN) fprintf(f, "\n%*s", HELP_COLUMN, "");
    print_wrapped(f, HELP_COLUMN, text);
}

static inline void options_help(FILE *f) {
    static const char *const headings[GROUP_COUNT] = {
#define G(group, heading) heading,
        OPTION_GROUPS(G)
#undef G
    };
    fprintf(f, "%s\nOptions are written --name value or --name=value, and named as in open_clip.\n",
        PROGRAM_USAGE);
    const OptionRow *rows = option_rows();
    for (int group = 0; group < GROUP_COUNT; group++) {
        bool first = true;
        for (int i = 0; i < OPTION_COUNT; i++) {
            if (rows[i].group != group || !option_offered(&rows[i])) continue;
            if (first) fprintf(f, "\n%s\n", headings[group]);
            first = false;
            option_help(f, &rows[i]);
        }
    }
    fprintf(f, "\n  --help                            this text\n"
               "  --help strategies                 rates, epochs and presets by strategy, how to read the "
               "curves\n");
}

#endif
