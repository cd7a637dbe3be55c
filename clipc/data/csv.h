// Tables of text: fields by RFC 4180 (quotes, doubled quotes and line breaks within them) with any one-byte
// separator; LF, CRLF or CR; with or without a UTF-8 byte order mark. Fields are unquoted in place and each
// ends with a NUL: nothing is copied.
#ifndef CLIPC_CSV_H
#define CLIPC_CSV_H

#include "clipc/base/utils.h"   // die, list_grow
#include "clipc/data/unicode.h" // encoding_that_fits

typedef struct {
    char *start; // NUL-terminated
    size_t length;
} CsvField;

typedef struct {
    char *text; // `length` bytes and a NUL; changed by reading
    size_t length, at;
    char separator;
    CsvField *fields; // of the row read last
    int count;
    size_t capacity;
    int columns;       // of the header line
    int64_t line;      // where the row read last begins, from 1
    int64_t next_line; // where the next one does, from 0
    bool unclosed;     // it has a quotation mark that is never closed, taken literally
    bool stray; // it has a field with text after the closing quotation mark: all of it is taken literally
    bool rows_within; // it has a quoted field one of whose lines has as many separators as the header
} CsvReader;

#define CSV_SEPARATORS "\t,;|" // tried in this order when none is given

// The end of a quoted field that opens at `at`: the closing quotation mark, or `length` when there is none.
static inline size_t csv_quote_end(const char *text, size_t length, size_t at) {
    for (at++; at < length; at++) {
        if (text[at] != '"') continue;
        if (at + 1 < length && text[at + 1] == '"') at++;
        else return at;
    }
    return length;
}

static inline bool csv_ends_field(const CsvReader *r, char c) {
    return c == r->separator || c == '\n' || c == '\r';
}

// Does a line of a quoted field, after the first, look like a row of its own? Then the marks may be stray.
static inline bool csv_has_row(const CsvReader *r, const char *field, size_t length) {
    const char *line = (const char *)memchr(field, '\n', length), *end = field + length;
    while (line) {
        const char *next = (const char *)memchr(line + 1, '\n', (size_t)(end - line - 1));
        int separators = 0;
        for (const char *p = line; p < (next ? next : end); p++) separators += *p == r->separator;
        if (separators && separators == r->columns - 1) return true;
        line = next;
    }
    return false;
}

// Is the mark at `close` the end of its field? Blanks may follow it.
static inline bool csv_closes(const CsvReader *r, size_t close) {
    size_t at = close + 1;
    while (at < r->length && r->text[at] == ' ' && r->separator != ' ') at++;
    return at == r->length || csv_ends_field(r, r->text[at]);
}

// One field from r->at on; returns the byte that ended it (the separator, \n, \r, or 0 at the end of the
// text), which is consumed.
static inline char csv_read_field(CsvReader *r, CsvField *out) {
    char *text = r->text;
    size_t to = r->at, from = r->at;
    out->start = text + r->at;
    if (from < r->length && text[from] == '"') {
        size_t close = csv_quote_end(text, r->length, from);
        const bool quoted = close < r->length && csv_closes(r, close);
        r->unclosed |= close == r->length;
        r->stray |= close < r->length && !quoted;
        if (quoted) {
            for (size_t i = from; i < close; i++) r->next_line += text[i] == '\n';
            r->rows_within |= csv_has_row(r, text + from, close - from);
            for (from++; from < close; from++) {
                if (text[from] == '"') from++; // the second one of a doubled mark
                text[to++] = text[from];
            }
            from = close + 1;
        }
    }
    while (from < r->length && !csv_ends_field(r, text[from])) text[to++] = text[from++];
    char end = from < r->length ? text[from] : 0;
    if (end == '\r' && from + 1 < r->length && text[from + 1] == '\n') from++;
    r->at = from < r->length ? from + 1 : from;
    text[to] = 0;
    out->length = (size_t)(text + to - out->start);
    return end;
}

// The next row that is not empty into r->fields; false at the end of the text.
static inline bool csv_read_row(CsvReader *r) {
    while (r->at < r->length) {
        char end;
        r->count = 0;
        r->unclosed = r->stray = r->rows_within = false;
        r->line = ++r->next_line;
        do {
            list_grow((void **)&r->fields, &r->capacity, (size_t)r->count + 1, sizeof *r->fields);
            end = csv_read_field(r, &r->fields[r->count++]);
        } while (end == r->separator && end);
        if (r->count > 1 || r->fields[0].length) return true;
    }
    return false;
}

// Control characters become blanks: names from files are shown in messages of one line.
static inline void make_one_line(char *text) {
    for (; *text; text++) *text = (unsigned char)*text < ' ' ? ' ' : *text;
}

// The index of the column `name` in the row read last (spaces around the names do not matter), or -1.
static inline int csv_find_column(const CsvReader *r, const char *name) {
    for (int i = 0; i < r->count; i++) {
        const char *s = r->fields[i].start, *e = s + r->fields[i].length;
        while (s < e && *s == ' ') s++;
        while (s < e && e[-1] == ' ') e--;
        if ((size_t)(e - s) == strlen(name) && !memcmp(s, name, (size_t)(e - s))) return i;
    }
    return -1;
}

// The field of a column in the row read last; NULL where the row is too short, or the column is -1.
static inline const CsvField *csv_field(const CsvReader *r, int column) {
    return column >= 0 && column < r->count ? &r->fields[column] : NULL;
}

// The separator that gives the header line the most of `names` (NULL ones do not count), then the most
// columns.
static inline char csv_find_separator(
    const char *text, size_t length, const char *const *names, int name_count) {
    size_t end = 0;
    while (end < length && text[end] != '\n' && text[end] != '\r')
        end = text[end] == '"' ? csv_quote_end(text, length, end) + 1 : end + 1;
    if (end > length) end = length;
    char best = ',', *copy = (char *)malloc_check(end + 1);
    int64_t best_score = -1;
    for (const char *s = CSV_SEPARATORS; *s; s++) {
        CsvReader r;
        memset(&r, 0, sizeof r);
        r.text = copy;
        r.length = end;
        r.separator = *s;
        memcpy(copy, text, end);
        copy[end] = 0;
        int64_t score = csv_read_row(&r) ? r.count : 0;
        for (int i = 0; i < name_count; i++)
            score += names[i] && csv_find_column(&r, names[i]) >= 0 ? (int64_t)1 << 40 : 0;
        if (score > best_score) {
            best = *s;
            best_score = score;
        }
        free(r.fields);
    }
    free(copy);
    return best;
}

// Reads `path` and its header line, which is then the row read last. separator 0: found by `names` in the
// header line. A file that is not text ends the program. The caller frees r->text and r->fields.
static inline void csv_open(
    CsvReader *r, const char *path, char separator, const char *const *names, int name_count) {
    memset(r, 0, sizeof *r);
    r->text = file_read_all(path, &r->length);
    if (r->length >= 3 && !memcmp(r->text, "\xef\xbb\xbf", 3)) r->at = 3;
    const char *encoding = encoding_that_fits(r->text, r->length < 65536 ? r->length : 65536);
    if (memchr(r->text, 0, r->length < 65536 ? r->length : 65536))
        die(EXIT_USAGE,
            "%s: is not a table of UTF-8 text (it contains zero bytes%s%s); save it as UTF-8, or give "
            "--dataset-type",
            path, encoding ? ", as " : "", encoding ? encoding : "");
    r->separator =
        separator ? separator : csv_find_separator(r->text + r->at, r->length - r->at, names, name_count);
    if (!csv_read_row(r))
        die(EXIT_USAGE, "%s: is empty; a header line with the names of the columns is needed", path);
    r->columns = r->count;
}

// csv_find_column that ends the program when there is none; `option` names the column.
static inline int csv_need_column(
    const CsvReader *r, const char *path, const char *name, const char *option) {
    int found = csv_find_column(r, name);
    if (found >= 0) return found;
    char columns[400];
    size_t n = 0;
    columns[0] = 0;
    for (int i = 0; i < r->count && n < sizeof columns - 1; i++)
        n += (size_t)snprintf(columns + n, sizeof columns - n, "%s%s", i ? ", " : "", r->fields[i].start);
    make_one_line(columns);
    die(EXIT_USAGE, "%s: no column '%s' (there are: %s); name it with %s", path, name, columns, option);
}

#endif
