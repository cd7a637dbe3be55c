// A data set: the list of all its samples, made once at the start; sample.h reads one of them. It has one
// source or several, joined by `::`, each of its own kind:
//   csv         a table of text with a column of image paths and one of captions (or labels)
//   webdataset  tar shards: KEY.jpg with KEY.txt, KEY.json or KEY.cls
//   folder      images at any depth, each with a .txt of the same stem; or one sub-folder for each class
//               (DatasetConfig.prompts)
//   synthetic   random pixels and a fixed caption, for measurements
// The number of samples is fixed from then on, including the broken ones: an error in a sample is found
// when the sample is read.
#ifndef CLIPC_DATASET_H
#define CLIPC_DATASET_H

#include "clipc/base/utils.h"      // die, warn, list_grow
#include "clipc/data/csv.h"        // tables of text
#include "clipc/data/webdataset.h" // shards

#include <ctype.h>

typedef enum { DATASET_AUTO, DATASET_CSV, DATASET_WEBDATASET, DATASET_FOLDER, DATASET_SYNTHETIC } DatasetType;

typedef struct {
    DatasetType type;
    const char *csv_img_key, *csv_caption_key, *csv_label_key; // names of columns
    char csv_separator;                                        // 0: found from the header line
    const char *image_key, *text_key; // kinds of members, the best one first: "jpg;png;jpeg;webp", "txt"
    const char *json_text_key;        // captions are the string under this key of KEY.json; NULL: KEY.txt
    bool need_caption, need_label;    // a sample without one is skipped; captions are read only when needed
    int64_t num_samples;              // only the first so many samples; synthetic: how many; 0: all
    const char *const *classnames;    // (classname_count) labels may be these names; NULL: only numbers
    int classname_count;
    bool prompts;              // labels replace captions (LoaderConfig.templates): folders are class folders
    const char *positives_key; // which samples are false negatives of each other: sample_key(); or NULL
    const char *upsampling_factors; // "A::B", one a source: how often an epoch has each sample; or NULL
    bool resampled; // an epoch is num_samples draws with replacement (0: as many as there are samples)
} DatasetConfig;

static inline DatasetConfig dataset_config_default(void) {
    DatasetConfig c = {DATASET_AUTO, "filepath", "title", "label", 0, "jpg;png;jpeg;webp", "txt", NULL, true,
        false, 0, NULL, 0, false, NULL, NULL, false};
    return c;
}

#define SYNTHETIC_SAMPLES 1000   // without --train-num-samples
#define CAPTION_MOST_BYTES 65536 // of one caption, more than any context needs; the rest is cut off

typedef struct {
    // where: in the shard (tar), at ~where in the unpacked data (tar), or in the file's text; CSV and folders
    // have the path of the image there
    int64_t image, caption;
    int64_t name;          // where in the file's text: the member (tar), the positives' key (CSV; -1: none)
    int32_t image_bytes;   // -1: there is no image
    int32_t caption_bytes; // -1: there is no caption; folders: not known before it is read
    int32_t label;         // -1: none
    int32_t file;          // index of its DataFile
} DataSample;

// One of the parts that `::` joins.
typedef struct {
    char *spec;
    DatasetType type; // never auto
    double factor;    // how often an epoch has each sample; resampled: the weight of each
} DataSource;

#define MOST_FACTOR 1e6 // the largest factor

// A shard, a CSV file, or a folder.
typedef struct {
    char *path;
    int source; // index of its DataSource
    char *text; // CSV: the fields; folder: the paths; tar: the members' names; each ends with a NUL
    size_t text_bytes, text_capacity;
    int64_t samples; // how many samples of the data set come from this file
} DataFile;

typedef struct {
    DatasetConfig config;
    DataSource *sources; // (source_count)
    size_t source_count, source_capacity;
    DataSample *samples; // (count), consecutive for each file and each source
    int64_t count;
    size_t capacity;
    DataFile *files; // (file_count)
    size_t file_count, file_capacity;
    int spill_fd; // unnamed temporary file with the unpacked data of compressed shards and commands, or -1
    int64_t spill_bytes;
    StringList class_folders; // names of the class folders by label
    uint64_t *keys;           // (count) of dataset_read_keys(), or NULL
    bool borrowed; // sources, text of the files and spill_fd belong to another Dataset (dataset_split)
} Dataset;

static inline int64_t dataset_count(const Dataset *d) { return d->count; }
static inline DatasetType sample_type(const Dataset *d, const DataSample *s) {
    return d->sources[d->files[s->file].source].type;
}

// Whether the sample's label replaces its caption.
static inline bool sample_is_prompted(const Dataset *d, const DataSample *s) {
    return d->config.prompts && s->label >= 0;
}

// first (source_count + 1): the samples of source s are first[s] … first[s + 1] - 1.
static inline void dataset_source_ranges(const Dataset *d, int64_t *first) {
    memset(first, 0, (d->source_count + 1) * sizeof *first);
    for (size_t i = 0; i < d->file_count; i++) first[d->files[i].source + 1] += d->files[i].samples;
    for (size_t s = 0; s < d->source_count; s++) first[s + 1] += first[s];
}

// What false negatives of each other have in common.
typedef enum { KEY_CAPTION, KEY_IMAGE, KEY_CLASS, KEY_COLUMN } PositivesKey;
static inline PositivesKey positives_key(const DatasetConfig *c) {
    const char *name = c->positives_key;
    return !name || !strcmp(name, "caption") ? KEY_CAPTION
           : !strcmp(name, "image")          ? KEY_IMAGE
           : !strcmp(name, "cls")            ? KEY_CLASS
                                             : KEY_COLUMN;
}

// ---------------------------------------------------------------- making the list

static inline void dataset_add_source(Dataset *d, const char *spec, DatasetType type) {
    list_grow((void **)&d->sources, &d->source_capacity, d->source_count + 1, sizeof *d->sources);
    DataSource *s = &d->sources[d->source_count++];
    s->spec = strdup_check(spec);
    s->type = type;
    s->factor = 1;
}

static inline DataFile *dataset_add_file(Dataset *d, int source, const char *path) {
    list_grow((void **)&d->files, &d->file_capacity, d->file_count + 1, sizeof *d->files);
    DataFile *f = &d->files[d->file_count++];
    memset(f, 0, sizeof *f);
    f->path = strdup_check(path);
    f->source = source;
    return f;
}

// Adds a sample to the file added last.
static inline DataSample *dataset_add_sample(Dataset *d) {
    list_grow((void **)&d->samples, &d->capacity, (size_t)d->count + 1, sizeof *d->samples);
    DataSample *s = &d->samples[d->count++];
    memset(s, 0, sizeof *s);
    s->image_bytes = s->caption_bytes = s->label = -1;
    s->file = (int32_t)d->file_count - 1;
    return s;
}

// Appends the text with its NUL; returns its offset.
static inline int64_t data_file_add_text(DataFile *f, const char *text) {
    size_t n = strlen(text) + 1, at = f->text_bytes;
    list_grow((void **)&f->text, &f->text_capacity, at + n, 1);
    memcpy(f->text + at, text, n);
    f->text_bytes += n;
    return (int64_t)at;
}

// The index of a class name, or -1.
static inline int class_index(const DatasetConfig *c, const char *name, size_t length) {
    for (int i = 0; i < c->classname_count; i++)
        if (strlen(c->classnames[i]) == length && !memcmp(c->classnames[i], name, length)) return i;
    return -1;
}

// A label is a number from 0 on or the name of a class; -1 if it is neither, or no class has this number.
static inline int label_parse(const DatasetConfig *c, const char *text, size_t length) {
    while (length && isspace((unsigned char)text[0])) {
        text++;
        length--;
    }
    while (length && isspace((unsigned char)text[length - 1])) length--;
    int64_t number = length <= 9 ? brace_number(text, length) : -1;
    if (number >= 0) return c->classnames && number >= c->classname_count ? -1 : (int)number;
    return class_index(c, text, length);
}

// ---------------------------------------------------------------- CSV

// Columns of a table, -1: none.
typedef struct {
    int image, caption, label, key;
} CsvColumns;

// Opens the table and finds its columns. A missing column that is needed ends the program.
static inline CsvColumns dataset_open_csv(const DatasetConfig *c, CsvReader *r, const char *path) {
    const PositivesKey kind = positives_key(c);
    const char *names[4] = {c->csv_img_key, c->need_caption ? c->csv_caption_key : NULL,
        c->need_label || c->prompts ? c->csv_label_key : NULL, kind == KEY_COLUMN ? c->positives_key : NULL};
    csv_open(r, path, c->csv_separator, names, 4);
    CsvColumns out = {csv_need_column(r, path, c->csv_img_key, "--csv-img-key"), -1,
        csv_find_column(r, c->csv_label_key), -1};
    if (c->need_label) out.label = csv_need_column(r, path, c->csv_label_key, "--csv-label-key");
    if (c->need_caption) out.caption = csv_find_column(r, c->csv_caption_key);
    if (c->need_caption && !(c->prompts && out.label >= 0))
        out.caption = csv_need_column(r, path, c->csv_caption_key, "--csv-caption-key");
    if (kind == KEY_COLUMN) out.key = csv_need_column(r, path, c->positives_key, "--positives-key");
    if (kind == KEY_CLASS) out.key = out.label;
    return out;
}

static inline void dataset_add_csv(Dataset *d, int source, const char *path) {
    const DatasetConfig *c = &d->config;
    CsvReader r;
    const CsvColumns column = dataset_open_csv(c, &r, path);
    DataFile *f = dataset_add_file(d, source, path);
    while (csv_read_row(&r)) {
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
        if (label) s->label = label_parse(c, label->start, label->length);
        s->name = key && key->length ? key->start - r.text : -1;
    }
    if (r.unclosed)
        warn("%s: %lld fields begin with a quotation mark that is never closed; it is taken literally", path,
            (long long)r.unclosed);
    f->text = r.text;
    f->text_bytes = r.length;
    free(r.fields);
}

// ---------------------------------------------------------------- WebDataset

// The sample whose members are being read; finished when the key changes.
typedef struct {
    char *key;
    size_t key_length, capacity;
    bool any; // it has an image, a caption or a label; members of other kinds alone are not a sample
    int image_rank;
    DataSample sample;
} MemberGroup;

static inline void member_group_finish(MemberGroup *g, Dataset *d) {
    if (g->any) {
        *dataset_add_sample(d) = g->sample;
        d->files[g->sample.file].samples++;
    }
    g->any = false;
    memset(&g->sample, 0, sizeof g->sample);
    g->sample.image_bytes = g->sample.caption_bytes = g->sample.label = -1;
    g->sample.file = (int32_t)d->file_count - 1;
}

// What a member is for its sample.
typedef enum { MEMBER_OTHER, MEMBER_IMAGE, MEMBER_CAPTION, MEMBER_LABEL } MemberRole;

static inline MemberRole member_role(const DatasetConfig *c, const char *kind, int *image_rank) {
    *image_rank = member_kind(kind, c->image_key);
    if (*image_rank >= 0) return MEMBER_IMAGE;
    if (member_kind(kind, c->json_text_key ? "json" : c->text_key) >= 0) return MEMBER_CAPTION;
    return member_kind(kind, "cls") >= 0 ? MEMBER_LABEL : MEMBER_OTHER;
}

// Adds a member to its sample; false where the shard is broken.
static inline bool member_group_add(MemberGroup *g, Dataset *d, TarReader *t, TarMember *m) {
    size_t key_length = member_key_length(m->name);
    DataSample *s = &g->sample;
    int rank;
    MemberRole role = key_length ? member_role(&d->config, m->name + key_length + 1, &rank) : MEMBER_OTHER;
    bool same = key_length == g->key_length && !memcmp(m->name, g->key, key_length);
    // the next sample may have the same key, as in LAION-400M: then a kind of member comes again
    bool again = (role == MEMBER_IMAGE && s->image_bytes >= 0 && rank == g->image_rank) ||
                 (role == MEMBER_CAPTION && s->caption_bytes >= 0);
    if (!same || again) {
        member_group_finish(g, d);
        list_grow((void **)&g->key, &g->capacity, key_length + 1, 1);
        memcpy(g->key, m->name, key_length);
        g->key_length = key_length;
    }
    if (role == MEMBER_OTHER || (role == MEMBER_IMAGE && s->image_bytes >= 0 && rank > g->image_rank))
        return true;
    if (!g->any || role == MEMBER_IMAGE)
        s->name = data_file_add_text(&d->files[d->file_count - 1], m->name); // the image's, if there is one
    g->any = true;
    if (role == MEMBER_LABEL) {
        char text[256];
        int64_t n = tar_read(t, text, sizeof text);
        if (n >= 0) s->label = label_parse(&d->config, text, (size_t)n);
        return n >= 0;
    }
    if (m->offset < 0) { // compressed, or from a command
        if (d->spill_fd < 0) d->spill_fd = spill_open();
        if (!tar_copy_member(t, m, d->spill_fd, &d->spill_bytes)) return false;
        m->offset = ~m->offset;
    }
    int32_t bytes = (int32_t)min_i64(m->bytes, INT32_MAX);
    if (role == MEMBER_IMAGE) {
        s->image = m->offset;
        s->image_bytes = bytes;
        g->image_rank = rank;
    } else {
        s->caption = m->offset;
        s->caption_bytes = bytes;
    }
    return true;
}

// A broken shard gives the samples before the error, and one line that says so.
static inline void dataset_add_shard(Dataset *d, int source, const char *path) {
    TarReader t;
    TarMember m;
    MemberGroup g;
    memset(&g, 0, sizeof g);
    dataset_add_file(d, source, path);
    member_group_finish(&g, d);
    list_grow((void **)&g.key, &g.capacity, 1, 1);
    bool whole = tar_open(&t, path);
    while (whole && tar_next(&t, &m)) whole = member_group_add(&g, d, &t, &m);
    member_group_finish(&g, d);
    tar_close(&t);
    int64_t samples = d->files[d->file_count - 1].samples;
    make_one_line(t.error);
    if (t.error[0])
        warn("%s: broken shard (%s); %lld samples can be read; download it again", path, t.error,
            (long long)samples);
    else if (!samples)
        warn("%s: contains no samples (members KEY.%s with KEY.%s); see --image-key, --text-key", path,
            d->config.image_key, d->config.text_key);
    free(g.key);
}

static inline void dataset_add_webdataset(Dataset *d, int source, const char *spec) {
    StringList shards = shard_list(spec);
    bool show = isatty(STDERR_FILENO);
    double start = seconds_now();
    for (size_t i = 0; i < shards.count; i++) {
        if (show && seconds_now() - start > 1)
            fprintf(stderr, "\rlisting the samples: shard %zu of %zu ", i + 1, shards.count);
        dataset_add_shard(d, source, shards.list[i]);
    }
    if (show && seconds_now() - start > 1) fprintf(stderr, "\r\033[K");
    string_list_free(&shards);
}

// ---------------------------------------------------------------- folders

static inline bool is_image_name(const char *name) {
    return ends_with(name, ".jpg") || ends_with(name, ".jpeg") || ends_with(name, ".png") ||
           ends_with(name, ".webp");
}

static inline DataSample *dataset_add_image_file(Dataset *d, const char *path) {
    DataFile *f = &d->files[d->file_count - 1];
    DataSample *s = dataset_add_sample(d);
    s->image_bytes = (int32_t)strlen(path);
    s->image = data_file_add_text(f, path);
    f->samples++;
    return s;
}

static inline void dataset_add_folder(Dataset *d, int source, const char *root) {
    StringList images = {NULL, 0, 0};
    list_files(root, is_image_name, &images, NULL);
    dataset_add_file(d, source, root);
    for (size_t i = 0; i < images.count; i++) dataset_add_image_file(d, images.list[i]);
    string_list_free(&images);
}

// The label of a class folder when there are no classnames: its index in d->class_folders, to which it is
// added if it is new.
static inline int class_folder_label(Dataset *d, const char *name) {
    for (size_t i = 0; i < d->class_folders.count; i++)
        if (!strcmp(d->class_folders.list[i], name)) return (int)i;
    string_list_add(&d->class_folders, name);
    return (int)d->class_folders.count - 1;
}

// labels (folders->count) of class folders with sorted names; see dataset_open_class_folders
static inline int *class_folder_labels(Dataset *d, const char *root, const StringList *folders) {
    const DatasetConfig *c = &d->config;
    int *labels = (int *)malloc_check(folders->count * sizeof *labels);
    bool named = c->classnames != NULL;
    for (size_t i = 0; i < folders->count && named; i++) {
        labels[i] = class_index(c, folders->list[i], strlen(folders->list[i]));
        named = labels[i] >= 0;
    }
    if (!named && c->classnames && folders->count != (size_t)c->classname_count)
        die(EXIT_USAGE, "%s: %zu class folders, but %d class names; give --classnames one line a folder",
            root, folders->count, c->classname_count);
    for (size_t i = 0; i < folders->count; i++) {
        int place = class_folder_label(d, folders->list[i]);
        if (!named) labels[i] = c->classnames ? (int)i : place;
    }
    return labels;
}

// A folder with one sub-folder for each class.
static inline void dataset_add_class_folders(Dataset *d, int source, const char *root) {
    StringList images = {NULL, 0, 0}, folders = {NULL, 0, 0};
    list_files(root, is_image_name, &images, &folders);
    if (!folders.count) die(EXIT_USAGE, "%s: has no sub-folders; one for each class is needed", root);
    int *labels = class_folder_labels(d, root, &folders);
    dataset_add_file(d, source, root);
    size_t root_length = strlen(root);
    while (root_length > 1 && root[root_length - 1] == '/') root_length--;
    for (size_t i = 0; i < images.count; i++) {
        char name[PATH_SIZE], *key = name;
        const char *below = images.list[i] + root_length + (root[root_length - 1] != '/');
        if (!strchr(below, '/')) continue; // not in a class folder
        path_format(name, "%.*s", (int)(strchr(below, '/') - below), below);
        char **found =
            (char **)bsearch(&key, folders.list, folders.count, sizeof *folders.list, compare_strings);
        if (found) dataset_add_image_file(d, images.list[i])->label = labels[found - folders.list];
    }
    free(labels);
    string_list_free(&images);
    string_list_free(&folders);
}

// ---------------------------------------------------------------- sources

// The type of one part, by its name; if it is none, the program ends.
static inline DatasetType dataset_find_type(const char *part) {
    if (!strcmp(part, "synthetic")) return DATASET_SYNTHETIC;
    if (is_directory(part)) return DATASET_FOLDER;
    if (shard_command(part) || is_shard_name(part)) return DATASET_WEBDATASET;
    if (!file_exists(part))
        die(EXIT_USAGE,
            "%s: no such file or folder; give a CSV file, tar shards, a folder of images, or synthetic",
            part);
    return DATASET_CSV;
}

// Ends the program if a shard or folder does not exist, before any source is read, which may take long.
static inline void data_source_check(const DataSource *s) {
    if (s->type == DATASET_FOLDER && !is_directory(s->spec))
        die(EXIT_USAGE, "%s: no such folder; give a folder of images", s->spec);
    if (s->type != DATASET_WEBDATASET) return;
    StringList shards = shard_list(s->spec);
    for (size_t i = 0; i < shards.count; i++)
        if (!shard_command(shards.list[i]) && !file_exists(shards.list[i]))
            die(EXIT_USAGE, "%s: no such shard (%s; %zu of %zu); give shards that exist", shards.list[i],
                s->spec, i + 1, shards.count);
    string_list_free(&shards);
}

static inline void dataset_set_factors(Dataset *d, const char *text) {
    StringList parts = parts_split(text);
    double sum = 0;
    if (parts.count != d->source_count)
        die(EXIT_USAGE,
            "--train-data-upsampling-factors %s: %zu factors for %zu sources; give one for each, such as "
            "1::2.5",
            text, parts.count, d->source_count);
    for (size_t i = 0; i < parts.count; i++) {
        char *end;
        double factor = strtod(parts.list[i], &end);
        if (end == parts.list[i] || *end || !(factor >= 0 && factor <= MOST_FACTOR))
            die(EXIT_USAGE,
                "--train-data-upsampling-factors %s: '%s' is not a number from 0 to %g; give for example "
                "1::2.5",
                text, parts.list[i], MOST_FACTOR);
        sum += d->sources[i].factor = factor;
    }
    if (sum == 0)
        die(EXIT_USAGE, "--train-data-upsampling-factors %s: leaves no data; give a factor above 0", text);
    string_list_free(&parts);
}

// The sources of `spec`, checked but not yet read.
static inline void dataset_add_sources(Dataset *d, const char *spec) {
    StringList parts = parts_split(spec);
    const DatasetConfig *c = &d->config;
    bool csv = false;
    for (size_t i = 0; i < parts.count; i++) {
        DatasetType type = c->type == DATASET_AUTO ? dataset_find_type(parts.list[i]) : c->type;
        dataset_add_source(d, parts.list[i], type);
        data_source_check(&d->sources[i]);
        csv = csv || type == DATASET_CSV;
    }
    string_list_free(&parts);
    if (c->upsampling_factors) dataset_set_factors(d, c->upsampling_factors);
    if (positives_key(c) == KEY_COLUMN && !csv)
        die(EXIT_USAGE,
            "--positives-key %s: needs a CSV with this column, and %s is not one; give caption, image or cls",
            c->positives_key, spec);
}

static inline void dataset_add_source_samples(Dataset *d, int source) {
    const DatasetConfig *c = &d->config;
    const DataSource *s = &d->sources[source];
    if (s->type == DATASET_CSV) {
        dataset_add_csv(d, source, s->spec);
    } else if (s->type == DATASET_WEBDATASET) {
        dataset_add_webdataset(d, source, s->spec);
    } else if (s->type == DATASET_FOLDER && c->prompts) {
        dataset_add_class_folders(d, source, s->spec);
    } else if (s->type == DATASET_FOLDER) {
        dataset_add_folder(d, source, s->spec);
    } else {
        int64_t count = c->num_samples && d->source_count == 1 ? c->num_samples : SYNTHETIC_SAMPLES;
        dataset_add_file(d, source, "synthetic")->samples = count;
        for (int64_t i = 0; i < count; i++) dataset_add_sample(d);
    }
}

// ---------------------------------------------------------------- opening

static inline Dataset dataset_new(const DatasetConfig *config) {
    Dataset d;
    memset(&d, 0, sizeof d);
    d.config = *config;
    d.spill_fd = -1;
    return d;
}

// Cuts the list to `limit` samples: the first ones of each source, of each the same share.
static inline void dataset_cut(Dataset *d, int64_t limit) {
    const int64_t total = d->count;
    int64_t *first = (int64_t *)malloc_check((d->source_count + 1) * sizeof *first);
    if (limit >= total) limit = total;
    dataset_source_ranges(d, first);
    d->count = 0;
    for (size_t s = 0; s < d->source_count; s++) {
        // of this source in the new list; the rounded shares add up to the limit
        const int64_t end = (int64_t)((double)limit * (double)first[s + 1] / (double)total + 0.5);
        for (int64_t i = first[s]; i < first[s + 1]; i++) {
            if (d->count < end) d->samples[d->count++] = d->samples[i];
            else d->files[d->samples[i].file].samples--;
        }
    }
    free(first);
}

// Cuts the list to --train-num-samples; ends the program if fewer than `least` samples are left.
static inline void dataset_finish(Dataset *d, const char *spec, int64_t least) {
    const char *hint[] = {"", "rows below the header line", "members such as 000.jpg and 000.txt",
        ".jpg .jpeg .png or .webp files (tar shards are given by name: FOLDER/{00000..00009}.tar)", ""};
    if (d->count == 0)
        die(EXIT_USAGE, "%s: the data set is empty; it needs %s", spec, hint[d->sources[0].type]);
    if (d->config.num_samples && !d->config.resampled) dataset_cut(d, d->config.num_samples);
    if (d->count < least)
        die(EXIT_USAGE, "%s: %lld samples, at least %lld are needed; give more data", spec,
            (long long)d->count, (long long)least);
}

// Lists the samples of `spec`: sources joined by `::`, each a CSV file, tar shards, a folder, or
// "synthetic". Fewer samples than `least` end the program (training needs 2 pairs, anything else 1), as
// does whatever makes the whole set unusable. Free with dataset_free().
static inline Dataset dataset_open(const char *spec, const DatasetConfig *config, int64_t least) {
    Dataset d = dataset_new(config);
    dataset_add_sources(&d, spec);
    for (size_t i = 0; i < d.source_count; i++) dataset_add_source_samples(&d, (int)i);
    dataset_finish(&d, spec, least);
    return d;
}

// A folder with one sub-folder for each class; labels are needed, captions are not. A label is the index of
// the sub-folder's name in config->classnames if all of them are named there; else the index among the
// sorted names, and then there must be as many as classnames, if those are given.
static inline Dataset dataset_open_class_folders(const char *root, const DatasetConfig *config) {
    Dataset d = dataset_new(config);
    d.config.need_caption = false;
    d.config.need_label = true;
    if (!is_directory(root))
        die(EXIT_USAGE, "%s: no such folder; give a folder with one sub-folder for each class", root);
    dataset_add_source(&d, root, DATASET_FOLDER);
    dataset_add_class_folders(&d, 0, root);
    dataset_finish(&d, root, 1);
    return d;
}

static inline void dataset_free(Dataset *d) {
    if (!d->borrowed) {
        for (size_t i = 0; i < d->file_count; i++) {
            free(d->files[i].path);
            free(d->files[i].text);
        }
        for (size_t i = 0; i < d->source_count; i++) free(d->sources[i].spec);
        if (d->spill_fd >= 0) close(d->spill_fd);
        string_list_free(&d->class_folders);
        free(d->sources);
    }
    free(d->samples);
    free(d->files);
    free(d->keys);
    memset(d, 0, sizeof *d);
}

#endif
