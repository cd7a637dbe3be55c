// The samples of a table of text.
#ifndef CLIPC_DATASET_CSV_H
#define CLIPC_DATASET_CSV_H

#include "clipc/data/csv.h"          // CsvReader
#include "clipc/data/dataset_list.h" // Dataset

// Columns of a table, -1: none.
typedef struct {
    int image, caption, label, key;
} CsvColumns;

// Names of the columns of a table, NULL: not wanted.
typedef struct {
    const char *image, *caption, *label, *key;
    const char *other_image,
        *other_caption; // those of Hugging Face's metadata files; NULL where a name was given
} CsvNames;

static inline CsvNames csv_names(const DatasetConfig *c) {
    const DatasetConfig usual = dataset_config_default();
    CsvNames n = {
        c->csv_img_key, c->need_caption ? c->csv_caption_key : NULL, c->csv_label_key, NULL, NULL, NULL};
    if (positives_key(c) == KEY_COLUMN) n.key = c->positives_key;
    if (positives_key(c) == KEY_CLASS) n.key = c->csv_label_key;
    if (!strcmp(c->csv_img_key, usual.csv_img_key)) n.other_image = "file_name";
    if (!strcmp(c->csv_caption_key, usual.csv_caption_key)) n.other_caption = "text";
    return n;
}

// Opens the table and finds its columns. A missing column that is needed ends the program.
static inline CsvColumns dataset_open_csv(const DatasetConfig *c, CsvReader *r, const char *path) {
    const PositivesKey kind = positives_key(c);
    CsvNames n = csv_names(c);
    // every table has the image: what separates it separates the others
    const char *images[2] = {n.image, n.other_image};
    csv_open(r, path, c->csv_separator, images, 2);
    if (csv_find_column(r, n.image) < 0 && n.other_image && csv_find_column(r, n.other_image) >= 0)
        n.image = n.other_image;
    if (n.caption && csv_find_column(r, n.caption) < 0 && n.other_caption &&
        csv_find_column(r, n.other_caption) >= 0)
        n.caption = n.other_caption;
    CsvColumns out = {
        csv_need_column(r, path, n.image, "--csv-img-key"), -1, csv_find_column(r, c->csv_label_key), -1};
    if (c->need_label) out.label = csv_need_column(r, path, c->csv_label_key, "--csv-label-key");
    if (c->need_caption) out.caption = csv_find_column(r, n.caption);
    if (c->need_caption && !(c->prompts && out.label >= 0))
        out.caption = csv_need_column(r, path, n.caption, "--csv-caption-key");
    if (kind == KEY_COLUMN && c->validation) {
        out.key = csv_find_column(r, c->positives_key);
        if (out.key < 0)
            warn("%s: no column '%s' of --positives-key; the captions of one image are right for it", path,
                c->positives_key);
    } else if (kind == KEY_COLUMN) out.key = csv_need_column(r, path, c->positives_key, "--positives-key");
    if (kind == KEY_CLASS) out.key = out.label;
    return out;
}

// A reason for one row, and for several.
#define CSV_ROWS(text) "row " text, "rows " text

// Counts the row read last, and passes it over where it can be read in two ways, or lacks a field that is
// needed. False then.
static inline bool csv_row_counts(
    Account *a, const CsvReader *r, const char *path, const CsvColumns *column) {
    char where[2 * PATH_SIZE];
    bool extra = false;
    const int last = max_int(max_int(column->image, column->caption), max_int(column->label, column->key));
    for (int i = r->columns; i < r->count; i++) extra = extra || r->fields[i].length;
    a->found++;
    if (!r->stray && !extra && !r->unclosed && !r->rows_within && r->count >= r->columns) return true;
    snprintf(where, sizeof where, "%s, line %lld", path, (long long)r->line);
    const bool fewer = r->count < r->columns, needed = r->count <= last;
    if (r->stray)
        account_add_named(a, PASSED_OVER, CSV_ROWS("with text after a closing quotation mark"), where);
    else if (extra)
        account_add_named(a, PASSED_OVER,
            CSV_ROWS("with more fields than the header; quote what holds a separator"), where);
    else if (fewer && needed)
        account_add_named(a, PASSED_OVER, CSV_ROWS("with fewer fields than the header"), where);
    if (r->stray || extra || (fewer && needed)) return false;
    if (fewer)
        account_add_named(
            a, USED, CSV_ROWS("with fewer fields than the header; none of those is needed"), where);
    if (r->unclosed)
        account_add_named(
            a, USED, CSV_ROWS("with a quotation mark that is never closed; it is taken literally"), where);
    if (r->rows_within)
        account_add_named(
            a, USED, CSV_ROWS("with a quoted field of several lines that look like rows"), where);
    return true;
}

static inline void dataset_add_csv(Dataset *d, int source, const char *path) {
    const DatasetConfig *c = &d->config;
    CsvReader r;
    const CsvColumns column = dataset_open_csv(c, &r, path);
    DataFile *f = dataset_add_file(d, source, path);
    while (csv_read_row(&r)) {
        if (!csv_row_counts(&d->sources[source].account, &r, path, &column)) continue;
        const CsvField *image = csv_field(&r, column.image), *caption = csv_field(&r, column.caption);
        const CsvField *label = csv_field(&r, column.label), *key = csv_field(&r, column.key);
        DataSample *s = dataset_add_sample(d);
        f->samples++;
        if (image && image->length && image->length < PATH_SIZE) {
            s->image = image->start - r.text;
            s->image_bytes = (int32_t)image->length;
        }
        if (caption) {
            s->caption = caption->start - r.text;
            s->caption_bytes = (int32_t)min_i64((int64_t)caption->length, CAPTION_MOST_BYTES);
        }
        if (label) s->label = dataset_label(d, d->count - 1, label->start, label->length);
        s->name = key && key->length ? key->start - r.text : -1;
    }
    f->text = r.text;
    f->text_bytes = r.length;
    free(r.fields);
}

#endif
