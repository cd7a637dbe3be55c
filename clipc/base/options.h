// Command lines: strict parsing, --help, the settings printed at the start and written to params.txt, all by
// walking the table in option_table.h.
//
//     Options o;
//     options_parse(&o, argc, argv);              wrong usage: a line a mistake, then exit code 2
//     if (!options_was_set(&o, lr)) o.lr = 1e-5;  for defaults that depend on other options
//     options_print(&o, stdout);                  the settings; with a file: params.txt
#ifndef CLIPC_OPTIONS_H
#define CLIPC_OPTIONS_H

#include "clipc/base/option_values.h" // Options, option_rows, option_store, foreign_find

// ---------------------------------------------------------------- parsing

static inline void options_free(Options *o) {
    free(o->settings);
    free(o->preset_settings);
    string_list_free(&o->refused);
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

static inline const OptionRow *option_find(const char *name) {
    const OptionRow *rows = option_rows();
    for (int i = 0; i < OPTION_COUNT; i++)
        if (strcmp(rows[i].name, name) == 0 && option_offered(&rows[i])) return &rows[i];
    return NULL;
}

// Notes what is wrong with the command line. All of it is printed at once, by options_end_refused().
PRINTF_LIKE(2, 3) static inline void options_refuse(Options *o, const char *format, ...) {
    char text[LINE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    string_list_add(&o->refused, text);
}

// Ends the program with a line for each thing that is wrong, and EXIT_USAGE; does nothing where nothing is.
static inline void options_end_refused(const Options *o) {
    const StringList *r = &o->refused;
    for (size_t i = 0; i + 1 < r->count; i++) warn("%s", r->list[i]);
    if (r->count) die(EXIT_USAGE, "%s", r->list[r->count - 1]);
}

// The first of `values`, or for an option of several words all of them, joined; `count` becomes how many
// those are.
static inline const char *option_text(Options *o, const OptionRow *row, char **values, int *count) {
    if (row->kind != KIND_WORDS && row->kind != KIND_TRIPLE) return *count = 1, values[0];
    size_t bytes = 1;
    for (int i = 0; i < *count; i++) bytes += strlen(values[i]) + 1;
    char *joined = o->owned[row - option_rows()] = (char *)calloc_check(bytes, 1);
    for (int i = 0; i < *count; i++) strcat(strcat(joined, i ? " " : ""), values[i]);
    return joined;
}

// Reads an option's value from `values`: `count` words up to the next --option, or with `inlined` the one
// word after the =. Returns how many words belong to the option.
static inline int option_take(Options *o, const OptionRow *row, char **values, int count, bool inlined) {
    const int index = (int)(row - option_rows()), given = count;
    char error[OPTION_ERROR_SIZE] = "";
    if (o->set[index] && row->kind != KIND_LIST) {
        options_refuse(o, "--%s is given twice; keep one", row->name);
        return given;
    }
    o->set[index] = true;
    if (row->kind == KIND_FLAG) {
        if (inlined)
            options_refuse(o, "--%s=%s: takes no value; write --%s", row->name, values[0], row->name);
        return option_store(o, row, "", error), 0;
    }
    bool empty = count == 0;
    for (int i = 0; i < count; i++) empty |= !values[i][0];
    if (empty) {
        const ForeignOption *foreign = foreign_find(row->name, NULL, true);
        options_refuse(o, "--%s %s", row->name, foreign ? foreign->why : "needs a value; see --help");
        return given;
    }
    if (row->kind == KIND_LIST) {
        for (int i = 0; i < count; i++) option_store(o, row, values[i], error);
        return count;
    }
    const char *text = value_synonym(row->name, option_text(o, row, values, &count));
    const ForeignOption *foreign = foreign_find(row->name, text, true);
    if (foreign || !option_store(o, row, text, error))
        options_refuse(o, "--%s %s: %s", row->name, text, foreign ? foreign->why : error);
    return count;
}

// An option that is not in the table, with the words up to the next one. Returns how many belong to it.
static inline int option_take_foreign(Options *o, const char *name, char **values, int count) {
    char text[256], given[256];
    const ForeignOption *foreign = foreign_find(name, count ? values[0] : NULL, false);
    if (!foreign) {
        option_unknown(name, text);
        options_refuse(o, "--%s: %s", name, text);
        return count;
    }
    const bool of_value = count && strchr(foreign->names, ' ');
    snprintf(given, sizeof given, "%s%s%s", name, of_value ? " " : "", of_value ? values[0] : "");
    if (foreign->verdict == REFUSED) {
        options_refuse(o, "--%s: %s", given, foreign->why);
        return count;
    }
    warn("--%s has no effect here and is ignored: %s", given, foreign->why);
    return foreign->verdict == IGNORED_VALUE;
}

// A word that belongs to no option: `previous` is the option before it, NULL where there is none.
static inline void option_stray(Options *o, const char *word, const OptionRow *previous) {
    const char *fault = copied_fault(word);
    if (fault) options_refuse(o, "'%s': %s", word, fault);
    else if (previous)
        options_refuse(o, "%s: does not belong to an option: --%s takes %s", word, previous->name,
            previous->kind == KIND_FLAG ? "no value"
                                        : "one value here; quote patterns and values that contain spaces");
    else if (file_exists(word))
        options_refuse(
            o, "%s: does not belong to an option; to train on it, write --train-data %s", word, word);
    else options_refuse(o, "%s: does not belong to an option; write --name value (see --help)", word);
}

// The words before the options that call another program. Returns how many there are.
static inline int options_skip_launcher(Options *o, int argc, char **argv) {
    const int words = launcher_words(argc, argv);
    char text[512] = "";
    for (int i = 1; i <= words; i++) {
        const size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, "%s%s", i > 1 ? " " : "", argv[i]);
    }
    if (words && launcher_is_plain(words, argv)) warn("%s: is left out; this is %s", text, program_name());
    else if (words)
        options_refuse(
            o, "%s: leave it out; the options follow %s, which runs as one process", text, program_path());
    return words;
}

// Reads a command line. What is wrong is noted, see options_end_refused(); --help ends the program with 0.
static inline void options_read(Options *o, int argc, char **argv) {
    options_defaults(o);
    const OptionRow *previous = NULL; // the option before this argument
    for (int i = 1 + options_skip_launcher(o, argc, argv); i < argc; i++) {
        char *arg = argv[i], name[128];
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            options_help(stdout);
            exit(program_end(EXIT_SUCCESS));
        }
        char *equals = strchr(arg, '='), *inlined[1] = {equals ? equals + 1 : NULL};
        char **values = equals ? inlined : argv + i + 1;
        int next = i + 1;
        while (next < argc && strncmp(argv[next], "--", 2) != 0) next++;
        if (strncmp(arg, "--", 2) != 0 || !arg[2] || arg[2] == '=') {
            option_stray(o, arg, previous);
            i = next - 1; // one line for all of them
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - arg - 2 : (ptrdiff_t)strlen(arg) - 2),
            arg + 2);
        const int count = equals ? 1 : next - i - 1;
        const OptionRow *row = previous = option_find(name);
        const int taken = row ? option_take(o, row, values, count, equals != NULL)
                              : option_take_foreign(o, name, values, count);
        if (!equals) i += (int)min_i64(taken, count);
    }
}

// Reads a command line. Wrong usage ends the program with a line for each mistake and EXIT_USAGE.
static inline void options_parse(Options *o, int argc, char **argv) {
    options_read(o, argc, argv);
    options_end_refused(o);
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
