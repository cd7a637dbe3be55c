// The settings of a run as text: a line for each option, as options_print() writes them. They are in
// params.txt and in every checkpoint, from which a resumed run takes them.
//
// A checkpoint may come from a stranger. So its settings do not act: what would run a command, start a
// program or choose a place to write (ACTING_OPTIONS) is taken from the command line alone.
#ifndef CLIPC_SETTINGS_H
#define CLIPC_SETTINGS_H

#include "clipc/base/options.h" // Options, ACTING_OPTIONS

// ---------------------------------------------------------------- a line of them

typedef struct {
    char option[64];
    char *value; // free() it
} Setting;

static inline Setting setting_of(const char *line) {
    const size_t n = strcspn(line, " ");
    Setting s;
    snprintf(s.option, sizeof s.option, "%.*s", (int)n, line);
    s.value = strdup_check(line + n + strspn(line + n, " "));
    unescape(s.value);
    return s;
}

// Can one of these sources be a command? Braces may spell one: {pipe,x}:… does, after they are expanded.
// URLs, which a command downloads, are known by their own first characters (is_shard_url).
static inline bool data_can_be_command(const char *value) {
    if (strstr(value, "pipe:") || strstr(value, "http://") || strstr(value, "https://") ||
        strstr(value, "s3://"))
        return true;
    for (const char *p = value; *p; p++) {
        const size_t before = strcspn(p, "{");
        const bool begins = p == value || p[-1] == '=' || p[-1] == ':';
        if (begins && p[before] && before < 5 && strncmp(p, "pipe:", before) == 0) return true;
    }
    return false;
}

// The number after an option in the settings of a run, or `missing`.
static inline int64_t settings_number(const char *settings, const char *name, int64_t missing) {
    for (const char *line = settings; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ' ')
            return strtoll(line + strlen(name), NULL, 10);
    return missing;
}

// What this setting would do; NULL when it does not act.
static inline const char *setting_action(const Setting *s) {
    static const struct {
        const char *names, *harmless, *does;
    } acting[] = {
#define A(names, harmless, does) {names, harmless, does},
        ACTING_OPTIONS(A)
#undef A
    };
    for (size_t i = 0; i < sizeof acting / sizeof *acting; i++) {
        if (!matches_any(acting[i].names, s->option)) continue;
        const char *harmless = acting[i].harmless;
        const bool acts = harmless ? !matches_any(harmless, s->value) : data_can_be_command(s->value);
        return acts ? acting[i].does : NULL;
    }
    return NULL;
}

// ---------------------------------------------------------------- what acts among them

// A copy of a run's settings without those that act and were not given on this command line; names each of
// these, but for the place of the run, which follows from where the checkpoint is. free() it.
static inline char *settings_without_acting(const char *settings, const Options *o) {
    char *kept = strdup_check(settings), *lines = strdup_check(settings), *rest = lines, *line, *end = kept;
    while ((line = strsep(&rest, "\n"))) {
        const Setting s = setting_of(line);
        const OptionRow *row = option_find(s.option);
        const bool given = row && o->set[row - option_rows()];
        const char *action = given ? NULL : setting_action(&s);
        if (!action) end += sprintf(end, "%s%s", line, rest ? "\n" : "");
        else if (strcmp(s.option, "train-data") == 0)
            die(EXIT_USAGE,
                "--train-data: in the settings of the run it %s; only the command line can ask for that: "
                "give --train-data again (params.txt in the run folder has it)",
                action);
        else if (!matches_any("logs|name", s.option))
            warn(
                "--%s: in the settings of the run it %s; that is left out, give the option again to continue "
                "with it",
                s.option, action);
        free(s.value);
    }
    *end = 0;
    free(lines);
    return kept;
}

// Does a line about this option act? A list has several lines.
static inline bool settings_act(const char *settings, const char *option) {
    char *lines = strdup_check(settings), *rest = lines, *line;
    bool acts = false;
    while ((line = strsep(&rest, "\n"))) {
        const Setting s = setting_of(line);
        acts |= strcmp(s.option, option) == 0 && setting_action(&s) && !matches_any("logs|name", option);
        free(s.value);
    }
    free(lines);
    return acts;
}

// The options that a resumed run does not take from these settings, as they are written in a shell.
static inline void settings_print_acting(const char *settings, FILE *f) {
    char *lines = strdup_check(settings), *rest = lines, *line;
    while ((line = strsep(&rest, "\n"))) {
        const Setting s = setting_of(line);
        if (settings_act(settings, s.option)) {
            fprintf(f, " --%s", s.option);
            shell_word(f, s.value);
        }
        free(s.value);
    }
    free(lines);
}

#endif
