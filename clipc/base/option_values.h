// The struct that the options of a command line become, how their values are read, checked and stored, and
// what is to be said of words that the table of options does not have.
#ifndef CLIPC_OPTION_VALUES_H
#define CLIPC_OPTION_VALUES_H

#include "clipc/base/utils.h"        // list_grow, StringList
#include "clipc/base/option_table.h" // ALL_OPTIONS, FOREIGN_OPTIONS, SYNONYMS

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
    StringList refused;        // what is wrong with the command line
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

// ---------------------------------------------------------------- words that the table does not have

typedef enum { IGNORED_FLAG, IGNORED_VALUE, REFUSED } ForeignVerdict;

typedef struct {
    ForeignVerdict verdict;
    const char *names, *why;
} ForeignOption;

// The name of an option as this program would write it: --Train_Data is --train-data.
static inline void option_normalise(const char *given, char name[128]) {
    lower_case(name, 128, given);
    for (char *p = name; *p; p++) *p = *p == '_' ? '-' : *p;
}

// The entry of FOREIGN_OPTIONS for an option that is given with `value` (NULL: none), or NULL. Of an option
// in the table (`known`) only single values are foreign.
static inline const ForeignOption *foreign_find(const char *given, const char *value, bool known) {
    static const ForeignOption foreign[] = {
#define F(verdict, names, why) {verdict, names, why},
        FOREIGN_OPTIONS(F)
#undef F
    };
    char both[512], name[128];
    option_normalise(given, name);
    snprintf(both, sizeof both, "%s %s", name, value ? value : "");
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        const bool of_value = strchr(foreign[i].names, ' ') != NULL;
        if ((of_value || !known) && matches_any(foreign[i].names, of_value ? both : name)) return &foreign[i];
    }
    return NULL;
}

// The value that another spelling of it stands for, after a line that says so; else `value` itself.
static inline const char *value_synonym(const char *option, const char *value) {
#define V(name, values, meaning, why)                                               \
    if (strcmp(option, name) == 0 && matches_any(values, value)) {                  \
        warn("--%s %s: is taken as --%s %s: " why, option, value, option, meaning); \
        return meaning;                                                             \
    }
    VALUE_SYNONYMS(V)
#undef V
    return value;
}

// The option that an unknown name was probably meant to be: one that begins with the name, otherwise the one
// at the smallest edit distance. NULL where none is near. Underscores count as dashes.
static inline const char *option_nearest(const char *name) {
    const OptionRow *rows = option_rows();
    const char *nearest = "help";
    int best = edit_distance(name, nearest);
    for (int i = 0; i < OPTION_COUNT; i++) {
        if (!option_offered(&rows[i])) continue;
        const bool begins = strlen(name) > 2 && strncmp(rows[i].name, name, strlen(name)) == 0;
        const int distance = begins ? 0 : edit_distance(name, rows[i].name);
        if (distance < best) {
            best = distance;
            nearest = rows[i].name;
        }
    }
    return is_near(best, strlen(name)) ? nearest : NULL;
}

// Writes what to do instead of an unknown option: our name for it, one that is near, or nothing.
static inline void option_unknown(const char *given, char text[256]) {
    char name[128];
    option_normalise(given, name);
    const OptionRow *rows = option_rows();
#define S(names, ours, how)                                                    \
    if (matches_any(names, name))                                              \
        for (int i = 0; i < OPTION_COUNT; i++)                                 \
            if (strcmp(rows[i].name, ours) == 0 && option_offered(&rows[i])) { \
                snprintf(text, 256, "unknown option; use --%s%s", ours, how);  \
                return;                                                        \
            }
    SYNONYMS(S)
#undef S
    const char *nearest = option_nearest(name);
    if (nearest) snprintf(text, 256, "unknown option; did you mean --%s?", nearest);
    else snprintf(text, 256, "unknown option; --help lists all");
}

// ---------------------------------------------------------------- copied lines

// How many words before the options call another program, in a line such as
// `python -m open_clip_train.main --train-data …`; 0: none.
static inline int launcher_words(int argc, char **argv) {
    const char *programs = "*open_clip_train.main|*training.main|main.py|*/main.py|train_clip|*/train_clip";
    if (argc < 2 || argv[1][0] == '-') return 0;
    for (int i = 1; i < argc; i++)
        if (matches_any(programs, argv[i])) return i;
    return 0;
}

// Does it start one process, without options that count?
static inline bool launcher_is_plain(int words, char **argv) {
    for (int i = 1; i < words; i++)
        if (!matches_any("python|python3|python3.*|*/python|*/python3|-m|-u", argv[i])) return false;
    return true;
}

// What is wrong with a word that belongs to no option, of those that copying makes; NULL: nothing of that.
static inline const char *copied_fault(const char *word) {
    if (strspn(word, " \t\r\n\\") == strlen(word))
        return "an empty word; is there a space after a backslash at the end of a line?";
    if (strncmp(word, "\xe2\x80\x93", 3) == 0 || strncmp(word, "\xe2\x80\x94", 3) == 0 ||
        strncmp(word, "\xe2\x88\x92", 3) == 0)
        return "begins with a dash of another kind, as word processors make them; write --";
    return NULL;
}

#endif
