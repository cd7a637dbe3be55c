// The account of a source of data: how many rows, samples or files were found in it, how many of them are
// passed over and why, and what is worth knowing of those that are used. found = used + passed over, always.
// It begins with the listing (dataset_list.h) and the check of all files (check.h), and goes on with what
// shows when samples are decoded (dataloader.h): each sample counts once in a run.
#ifndef CLIPC_ACCOUNT_H
#define CLIPC_ACCOUNT_H

#include "clipc/base/logger.h" // logger_print
#include "clipc/base/utils.h"  // list_grow

// What a line of the account says of the items that it counts.
// NOTED: not of items, but of the source; NOTED_ITEMS: of other things than items, which are counted
typedef enum { PASSED_OVER, USED, NOTED, NOTED_ITEMS } AccountKind;

typedef struct {
    AccountKind kind;
    const char *one, *many; // the reason after a number: "missing file", "missing files"; not owned
    int64_t count;
    char *first; // the name of the first one; NULL until it is given. NOTED: what is to be said
} AccountLine;

typedef struct {
    int64_t found;        // items: rows, samples, files
    int64_t passed_over;  // of them
    int64_t system_files; // not items: is_system_file()
    int64_t other_files;  // not items: neither images nor captions
    char *first_other;
    AccountLine *lines; // (count)
    size_t count, capacity;
    bool shown; // account_print() has shown it as it is
} Account;

// Counts an item for this reason. Returns the line, whose `first` is to be given when it is NULL.
static inline AccountLine *account_add(Account *a, AccountKind kind, const char *one, const char *many) {
    AccountLine *line = NULL;
    for (size_t i = 0; i < a->count && !line; i++)
        if (a->lines[i].kind == kind && (a->lines[i].one == one || !strcmp(a->lines[i].one, one)))
            line = &a->lines[i];
    if (!line) {
        list_grow((void **)&a->lines, &a->capacity, a->count + 1, sizeof *a->lines);
        line = &a->lines[a->count++];
        memset(line, 0, sizeof *line);
        line->kind = kind;
        line->one = one;
        line->many = many;
    }
    line->count++;
    a->passed_over += kind == PASSED_OVER;
    a->shown = false;
    return line;
}

// account_add() with the name of the item.
static inline void account_add_named(
    Account *a, AccountKind kind, const char *one, const char *many, const char *name) {
    AccountLine *line = account_add(a, kind, one, many);
    if (!line->first) line->first = strdup_check(name);
}

// An item that is found and passed over.
static inline void account_pass_over(Account *a, const char *one, const char *many, const char *name) {
    a->found++;
    account_add_named(a, PASSED_OVER, one, many, name);
}

// A file that is not an item.
static inline void account_add_other_file(Account *a, const char *name) {
    if (!a->other_files++) a->first_other = strdup_check(name);
}

// How many items the account counts for this reason.
static inline int64_t account_count(const Account *a, AccountKind kind, const char *one) {
    for (size_t i = 0; i < a->count; i++)
        if (a->lines[i].kind == kind && !strcmp(a->lines[i].one, one)) return a->lines[i].count;
    return 0;
}

// "3 missing files (the first: a.png), 1 empty file (b.png)": why items are passed over, and the notes.
static inline void account_reasons(const Account *a, char *out, size_t size) {
    size_t n = 0;
    out[0] = 0;
    for (size_t i = 0; i < a->count && n < size; i++) {
        const AccountLine *l = &a->lines[i];
        if (l->kind == NOTED) n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "", l->first);
        if (l->kind != PASSED_OVER) continue;
        n += (size_t)snprintf(out + n, size - n, "%s%lld %s (%s%.300s)", n ? ", " : "", (long long)l->count,
            l->count == 1 ? l->one : l->many, l->count == 1 ? "" : "the first: ", l->first ? l->first : "");
    }
}

// The table of a source, if anything has changed since it was printed last:
//     data         pairs.csv: 16 rows found, 12 used, 4 passed over
//     data           passed over: 4 missing files (the first: pairs.csv:a.png)
// unit, units: what is counted, "row", "rows"
static inline void account_print(
    Account *a, Logger *log, const char *source, const char *unit, const char *units) {
    char used[60] = "all used", others[600] = "";
    size_t n = 0;
    if (a->shown) return;
    if (a->passed_over)
        snprintf(used, sizeof used, "%lld used, %lld passed over", (long long)(a->found - a->passed_over),
            (long long)a->passed_over);
    if (a->other_files)
        n = (size_t)snprintf(others, sizeof others, "; besides %lld other file%s (%s%.400s)",
            (long long)a->other_files, a->other_files == 1 ? "" : "s",
            a->other_files == 1 ? "" : "the first: ", a->first_other);
    if (a->system_files)
        snprintf(others + n, sizeof others - n, "; besides %lld of the system (._*, .DS_Store, checksums, …)",
            (long long)a->system_files);
    logger_print(log, "data         %s: %lld %s found, %s%s", source, (long long)a->found,
        a->found == 1 ? unit : units, used, others);
    for (size_t i = 0; i < a->count; i++) {
        const AccountLine *l = &a->lines[i];
        const bool one = l->count == 1;
        if (l->kind == NOTED) logger_print(log, "data           %s", l->first);
        else if (l->kind == NOTED_ITEMS)
            logger_print(log, "data           %lld %s (%s%s)", (long long)l->count, one ? l->one : l->many,
                one ? "" : "the first: ", l->first ? l->first : "");
        else
            logger_print(log, "data           %s: %lld %s (%s%s)", l->kind == USED ? "used" : "passed over",
                (long long)l->count, one ? l->one : l->many,
                one ? "" : "the first: ", l->first ? l->first : "");
    }
    a->shown = true;
}

static inline void account_free(Account *a) {
    for (size_t i = 0; i < a->count; i++) free(a->lines[i].first);
    free(a->lines);
    free(a->first_other);
    memset(a, 0, sizeof *a);
}

// ---------------------------------------------------------------- what belongs to no data set

// Files that systems and tools leave among the data: macOS's ._NAME, .DS_Store and __MACOSX/, Windows'
// Thumbs.db and desktop.ini, checksums. They are passed over wherever they are.
static inline bool is_system_file(const char *path) {
    static const char *const names[] = {".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "MD5SUMS",
        "SHA1SUMS", "SHA256SUMS", "SHA512SUMS", "MD5SUM", "SHA256SUM"};
    static const char *const endings[] = {".md5", ".sha1", ".sha256", ".sha512"};
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strncmp(name, "._", 2) == 0 || strncmp(path, "__MACOSX/", 9) == 0 || strstr(path, "/__MACOSX/"))
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const size_t n = strlen(names[i]);
        if (!strncasecmp(name, names[i], n) && (!name[n] || !strcasecmp(name + n, ".txt"))) return true;
    }
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (ends_with(name, endings[i])) return true;
    return false;
}

#endif
