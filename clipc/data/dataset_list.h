// A data set's list of samples: what is known of each before it is read, and how the list is built. dataset.h
// opens one.
#ifndef CLIPC_DATASET_LIST_H
#define CLIPC_DATASET_LIST_H

#include "clipc/base/utils.h"   // die, list_grow
#include "clipc/data/account.h" // Account
#include "clipc/data/labels.h"  // ClassList, LabelReading

// The endings of image files; what is in a file decides how it is decoded. Of a key in a tar the first one is
// taken.
#define IMAGE_ENDINGS "jpg;png;jpeg;webp;jpe;jfif;gif;bmp;tif;tiff;avif;heic;heif;jp2"

typedef enum { DATASET_AUTO, DATASET_CSV, DATASET_WEBDATASET, DATASET_FOLDER, DATASET_SYNTHETIC } DatasetType;

typedef struct {
    DatasetType type;
    const char *csv_img_key, *csv_caption_key, *csv_label_key; // names of columns
    char csv_separator;                                        // 0: found from the header line
    const char *image_key,
        *text_key;             // kinds of members, the best one first: "jpg;png", "txt"; folders: text_key
    const char *json_text_key; // captions are the string under this key of KEY.json; NULL: KEY.txt
    bool need_caption, need_label; // a sample without one is skipped; captions are read only when needed
    int64_t num_samples;           // only the first so many samples; synthetic: how many; 0: all
    const char *const *classnames; // (classname_count) labels may be these names; NULL: only numbers
    int classname_count;
    bool prompts;              // labels replace captions (LoaderConfig.templates): folders are class folders
    const char *positives_key; // which samples are false negatives of each other: sample_key(); or NULL
    bool validation;           // of caption files the test split; a table may lack the column positives_key
    const char *upsampling_factors; // "A::B", one a source: how often an epoch has each sample; or NULL
    bool resampled; // an epoch is num_samples draws with replacement (0: as many as there are samples)
    bool skip_missing_shards; // shards that are not there are left out
} DatasetConfig;

static inline DatasetConfig dataset_config_default(void) {
    DatasetConfig c = {DATASET_AUTO, "filepath", "title", "label", 0, IMAGE_ENDINGS, "txt", NULL, true, false,
        0, NULL, 0, false, NULL, false, NULL, false, false};
    return c;
}

#define SYNTHETIC_SAMPLES 1000   // without --train-num-samples
#define CAPTION_MOST_BYTES 65536 // of one caption, more than any context needs; the rest is cut off

typedef struct {
    // where: in the shard (tar), at ~where in the unpacked data (tar), or in the file's text; CSV and folders
    // have the path of the image there, folders the ending of the caption's path
    int64_t image, caption;
    int64_t name;          // where in the file's text: the member (tar), the positives' key (CSV; -1: none)
    int32_t image_bytes;   // -1: there is no image
    int32_t caption_bytes; // -1: there is no caption; folders: 0, not known before it is read
    int32_t label;         // -1: none
    int32_t file;          // index of its DataFile
} DataSample;

// One of the parts that `::` joins.
typedef struct {
    char *spec;
    DatasetType type; // never auto
    double factor;    // how often an epoch has each sample; resampled: the weight of each
    Account account;  // of all that is in it, those of a set split off included
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

typedef struct Dataset {
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
    StringList class_folders;    // names of the class folders by label
    LabelReading labels;         // of tables and shards
    uint64_t *keys;              // (count) of dataset_read_keys(), or NULL
    uint8_t *passed_over;        // (count) bits: passed over, in the account of the sample's source
    uint8_t *noted;              // (count) bits: read, and what is to note of it is in the account
    const struct Dataset *whole; // dataset_subset(): the set whose bits count; or NULL
    int64_t *whole_index;        // (count) the samples' indices in it
    bool borrowed; // sources, text of the files and spill_fd belong to another Dataset (dataset_split)
} Dataset;

static inline ClassList dataset_classes(const DatasetConfig *c) {
    const ClassList classes = {c->classnames, c->classname_count};
    return classes;
}

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

// The source of the file added last.
static inline Account *dataset_account(const Dataset *d) {
    return &d->sources[d->files[d->file_count - 1].source].account;
}

// Sets a bit; true if it was 0.
static inline bool set_bit(uint8_t *bits, int64_t i) {
    const uint8_t bit = (uint8_t)(1 << (i & 7));
    if (bits[i / 8] & bit) return false;
    bits[i / 8] |= bit;
    return true;
}

static inline bool has_bit(const uint8_t *bits, int64_t i) { return bits[i / 8] >> (i & 7) & 1; }

// What a source is made of, for messages.
static inline const char *dataset_unit(DatasetType type, bool many) {
    if (type == DATASET_CSV) return many ? "rows" : "row";
    return many ? "samples" : "sample";
}

// The accounts of all sources, of those in which anything has changed since they were printed last.
static inline void dataset_print_accounts(const Dataset *d, Logger *log) {
    for (size_t s = 0; s < d->source_count; s++) {
        DataSource *source = &d->sources[s];
        account_print(&source->account, log, source->spec, dataset_unit(source->type, false),
            dataset_unit(source->type, true));
    }
}

// ---------------------------------------------------------------- making the list

static inline void dataset_add_source(Dataset *d, const char *spec, DatasetType type) {
    list_grow((void **)&d->sources, &d->source_capacity, d->source_count + 1, sizeof *d->sources);
    DataSource *s = &d->sources[d->source_count++];
    memset(s, 0, sizeof *s);
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

// Appends the bytes and a NUL; returns their offset.
static inline int64_t data_file_add_bytes(DataFile *f, const char *bytes, size_t n) {
    const size_t at = f->text_bytes;
    list_grow((void **)&f->text, &f->text_capacity, at + n + 1, 1);
    memcpy(f->text + at, bytes, n);
    f->text[at + n] = 0;
    f->text_bytes += n + 1;
    return (int64_t)at;
}

static inline int64_t data_file_add_text(DataFile *f, const char *text) {
    return data_file_add_bytes(f, text, strlen(text));
}

// The label of the sample `index` of the list, from the text beside it.
static inline int dataset_label(Dataset *d, int64_t index, const char *text, size_t length) {
    const ClassList classes = dataset_classes(&d->config);
    return label_parse(&d->labels, &classes, index, text, length);
}

// Numbers that may be names of classes as well, once all labels are read: they are the one if all of them can
// be, else the other; where both are possible, the program ends.
static inline void dataset_settle_labels(Dataset *d, const char *spec) {
    LabelReading *r = &d->labels;
    const bool names = r->as_name == r->numbers;
    for (size_t i = 0; names && i < r->doubtful_count; i++) {
        DataSample *s = &d->samples[r->doubtful[i].sample];
        const int by_name = r->doubtful[i].by_name;
        if (r->as_number == r->numbers && s->label != by_name)
            die(EXIT_USAGE,
                "%s: its labels are numbers of classes and names of others: '%s' is the name of class %d; "
                "give class names that are not numbers",
                spec, d->config.classnames[by_name], by_name);
        s->label = by_name;
        r->beyond.count = 0;
    }
    r->doubtful_count = 0;
}

#endif
