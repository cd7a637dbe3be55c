// The samples of a table in JSON: a file of lines, each an object (JSONL), or one array of objects. The
// members of an object are what columns are in a CSV.
#ifndef CLIPC_DATASET_JSON_H
#define CLIPC_DATASET_JSON_H

#include "clipc/data/dataset_csv.h" // CSV_ROWS, csv_usual_name

#include <jansson.h>

// Is the file one of JSON, by its name, or by its first character in one of another name?
static inline bool is_json_table(const char *path) {
    char start[64];
    FILE *f = fopen(path, "rb");
    const size_t n = f ? fread(start, 1, sizeof start - 1, f) : 0;
    if (f) fclose(f);
    start[n] = 0;
    const char *p = start + (strncmp(start, "\xef\xbb\xbf", 3) == 0 ? 3 : 0);
    p += strspn(p, " \t\r\n");
    return ends_with(path, ".jsonl") || ends_with(path, ".ndjson") || ends_with(path, ".json") || *p == '{';
}

// The member of an object as text, numbers too; NULL when there is none, or it is a list or an object.
// `number` holds it where it is a number.
static inline const char *json_table_text(
    const json_t *row, const char *key, size_t *length, char number[32]) {
    const json_t *value = key ? json_object_get(row, key) : NULL;
    if (json_is_integer(value)) {
        *length = (size_t)snprintf(number, 32, "%lld", (long long)json_integer_value(value));
        return number;
    }
    *length = json_is_string(value) ? json_string_length(value) : 0;
    return json_is_string(value) ? json_string_value(value) : NULL;
}

static inline void dataset_add_json_row(Dataset *d, const json_t *row, const CsvNames *names) {
    DataFile *f = &d->files[d->file_count - 1];
    DataSample *s = dataset_add_sample(d);
    char number[32];
    size_t n;
    f->samples++;
    dataset_account(d)->found++;
    const char *image = json_table_text(row, names->image, &n, number);
    if (image && n && n < PATH_SIZE && strlen(image) == n) {
        s->image = data_file_add_text(f, image);
        s->image_bytes = (int32_t)n;
    }
    const char *caption = json_table_text(row, names->caption, &n, number);
    if (caption) {
        s->caption_bytes = (int32_t)min_i64((int64_t)n, CAPTION_MOST_BYTES);
        s->caption = data_file_add_bytes(f, caption, (size_t)s->caption_bytes);
    }
    const char *label = json_table_text(row, names->label, &n, number);
    if (label) s->label = dataset_label(d, d->count - 1, label, n);
    const char *key = json_table_text(row, names->key, &n, number);
    s->name = key && n ? data_file_add_text(f, key) : -1;
}

// The names of the members that are wanted; those of Hugging Face where the first object has no others.
static inline CsvNames json_table_names(const DatasetConfig *c, const json_t *row, const char *path) {
    CsvNames names = csv_names(c);
    char columns[400];
    size_t n = 0;
    if (!json_object_get(row, names.image) && names.other_image && json_object_get(row, names.other_image))
        names.image = names.other_image;
    if (names.caption && !json_object_get(row, names.caption) && names.other_caption &&
        json_object_get(row, names.other_caption))
        names.caption = names.other_caption;
    columns[0] = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)row, key, value) if (n < sizeof columns - 1) n +=
        (size_t)snprintf(columns + n, sizeof columns - n, "%s%s", n ? ", " : "", key);
    make_one_line(columns);
    if (!json_object_get(row, names.image))
        die(EXIT_USAGE, "%s: no '%s' in its first row (there are: %s); name it with --csv-img-key", path,
            names.image, columns);
    if (names.caption && !json_object_get(row, names.caption) &&
        !(c->prompts && json_object_get(row, names.label)))
        die(EXIT_USAGE, "%s: no '%s' in its first row (there are: %s); name it with --csv-caption-key", path,
            names.caption, columns);
    return names;
}

// Why a line is not a row; NULL for one that is.
static inline void json_line_pass_over(
    Dataset *d, const char *path, int64_t number, const char *line, size_t length, bool object) {
    char where[2 * PATH_SIZE];
    const bool utf8 = is_utf8_text(line, length);
    const char *fits = utf8 ? NULL : encoding_that_fits(line, length);
    snprintf(where, sizeof where, "%s, line %lld%s%s", path, (long long)number, fits ? ", which fits " : "",
        fits ? fits : "");
    if (!utf8)
        account_pass_over(
            dataset_account(d), "caption that is not UTF-8", "captions that are not UTF-8", where);
    else if (object) account_pass_over(dataset_account(d), CSV_ROWS("with broken JSON"), where);
    else
        account_pass_over(
            dataset_account(d), "row that is not an object", "rows that are not objects", where);
}

static inline void dataset_add_json_lines(Dataset *d, const char *path, const char *text, size_t length) {
    CsvNames names;
    bool begun = false;
    int64_t number = 0;
    for (const char *line = text, *end = text + length, *next; line < end; line = next) {
        const char *stop = (const char *)memchr(line, '\n', (size_t)(end - line));
        next = stop ? stop + 1 : end;
        if (!stop) stop = end;
        number++;
        while (stop > line && strchr(" \t\r", stop[-1])) stop--;
        while (line < stop && strchr(" \t\r", *line)) line++;
        if (line == stop) continue;
        json_t *row = json_loadb(line, (size_t)(stop - line), JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
        if (json_is_object(row)) {
            if (!begun) names = json_table_names(&d->config, row, path);
            begun = true;
            dataset_add_json_row(d, row, &names);
        } else json_line_pass_over(d, path, number, line, (size_t)(stop - line), !row);
        json_decref(row);
    }
}

static inline void dataset_add_json(Dataset *d, int source, const char *path) {
    size_t length, i;
    char *text = file_read_all(path, &length);
    const char *begin = text + (strncmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0);
    const char *first = begin + strspn(begin, " \t\r\n");
    dataset_add_file(d, source, path);
    if (*first != '[') {
        dataset_add_json_lines(d, path, begin, length - (size_t)(begin - text));
        free(text);
        return;
    }
    json_error_t error;
    json_t *root = json_loads(begin, JSON_ALLOW_NUL, &error), *row;
    if (!root)
        die(EXIT_USAGE, "%s, line %d: is not JSON (%s); give a JSON array of objects, or one object a line",
            path, error.line, error.text);
    CsvNames names;
    bool begun = false;
    json_array_foreach(root, i, row) {
        if (!json_is_object(row)) {
            char where[2 * PATH_SIZE];
            snprintf(where, sizeof where, "%s, row %zu", path, i + 1);
            account_pass_over(
                dataset_account(d), "row that is not an object", "rows that are not objects", where);
            continue;
        }
        if (!begun) names = json_table_names(&d->config, row, path);
        begun = true;
        dataset_add_json_row(d, row, &names);
    }
    json_decref(root);
    free(text);
}

#endif
