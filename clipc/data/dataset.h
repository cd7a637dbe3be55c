// A data set: the list of all its samples, made once at the start; sample.h reads one of them. It has one
// source or several, joined by `::`, each of its own kind:
//   csv         a table, as CSV or in JSON, with a column of image paths and one of captions (or labels), a
//               folder with metadata.csv or metadata.jsonl, or a caption file of COCO or Flickr
//               (caption_files.h)
//   webdataset  tar shards: KEY.jpg with KEY.txt, KEY.json or KEY.cls
//   folder      images at any depth, each with a .txt of the same stem; or one sub-folder for each class
//               (DatasetConfig.prompts)
//   synthetic   random pixels and a fixed caption, for measurements
// The number of samples is fixed from then on, including the broken ones: an error in a sample is found
// when the sample is read.
#ifndef CLIPC_DATASET_H
#define CLIPC_DATASET_H

#include "clipc/base/utils.h"          // die, warn, list_grow
#include "clipc/data/caption_files.h"  // COCO, Flickr30k
#include "clipc/data/dataset_csv.h"    // tables of text
#include "clipc/data/dataset_folder.h" // folders
#include "clipc/data/dataset_json.h"   // tables in JSON
#include "clipc/data/dataset_tar.h"    // shards

// ---------------------------------------------------------------- class folders

// The label of a class folder when there are no classnames: its index in d->class_folders, to which it is
// added if no folder of another source has this class name.
static inline int class_folder_label(Dataset *d, const char *name) {
    for (size_t i = 0; i < d->class_folders.count; i++)
        if (!compare_name_pointers(&d->class_folders.list[i], &name)) return (int)i;
    string_list_add(&d->class_folders, name);
    return (int)d->class_folders.count - 1;
}

// labels (folders->count) of class folders with sorted names: by the class names, else in their order.
static inline int *class_folder_labels(Dataset *d, const char *root, const StringList *folders) {
    const ClassList classes = dataset_classes(&d->config);
    int *labels = (int *)malloc_check(folders->count * sizeof *labels);
    if (classes.count) folders_label(labels, root, folders, &classes);
    else folders_check_names(root, folders);
    for (size_t i = 0; i < folders->count; i++) {
        const int place = class_folder_label(d, folders->list[i]);
        if (!classes.count) labels[i] = place;
    }
    return labels;
}

// A folder with one sub-folder for each class.
static inline void dataset_add_class_folders(Dataset *d, int source, const char *root) {
    StringList folders = {NULL, 0, 0};
    dataset_add_file(d, source, root);
    StringList files = folder_list(d, root, &folders);
    if (!folders.count) die(EXIT_USAGE, "%s: has no sub-folders; one for each class is needed", root);
    int *labels = class_folder_labels(d, root, &folders);
    size_t root_length = strlen(root);
    while (root_length > 1 && root[root_length - 1] == '/') root_length--;
    for (size_t i = 0; i < files.count; i++) {
        char name[PATH_SIZE], *key = name;
        const char *below = files.list[i] + root_length + (root[root_length - 1] != '/');
        if (!is_image_name(below)) continue;
        if (!strchr(below, '/')) {
            account_pass_over(dataset_account(d), "image that is not in a class folder",
                "images that are not in a class folder", files.list[i]);
            continue;
        }
        path_format(name, "%.*s", (int)(strchr(below, '/') - below), below);
        char **found =
            (char **)bsearch(&key, folders.list, folders.count, sizeof *folders.list, compare_strings);
        if (found) dataset_add_image_file(d, files.list[i], NULL)->label = labels[found - folders.list];
    }
    free(labels);
    string_list_free(&files);
    string_list_free(&folders);
}

// ---------------------------------------------------------------- sources

// Is a folder one of shards? Not one of images; a folder of both can be read in two ways, and ends the
// program.
static inline bool is_shard_folder(const char *path) {
    char pattern[PATH_SIZE];
    glob_t found;
    bool shards = false, images = false;
    path_format(pattern, "%s/*", path);
    const bool any = glob(pattern, 0, NULL, &found) == 0;
    for (size_t k = 0; any && k < found.gl_pathc; k++) {
        shards = shards || (is_shard_name(found.gl_pathv[k]) && !is_directory(found.gl_pathv[k]));
        images = images || is_image_name(found.gl_pathv[k]);
    }
    globfree(&found);
    if (shards && images)
        die(EXIT_USAGE,
            "%s: holds both tar shards and images; give the shards as '%s/*.tar', or the images alone", path,
            path);
    return shards;
}

// The type of one part, by its name; if it is none, the program ends.
static inline DatasetType dataset_find_type(const char *part) {
    if (!strcmp(part, "synthetic")) return DATASET_SYNTHETIC;
    if (is_directory(part)) return is_shard_folder(part) ? DATASET_WEBDATASET : DATASET_FOLDER;
    if (shard_command(part) || is_shard_url(part) || is_shard_name(part)) return DATASET_WEBDATASET;
    if (!file_exists(part))
        die(EXIT_USAGE,
            "%s: no such file or folder; give a CSV file, tar shards, a folder of images, or synthetic",
            part);
    return DATASET_CSV;
}

// Ends the program if a shard or folder does not exist, before any source is read, which may take long.
static inline void data_source_check(const DatasetConfig *c, const DataSource *s) {
    if (s->type == DATASET_FOLDER && folder_fault(s->spec))
        die(EXIT_USAGE, "%s: %s; give a folder of images", s->spec, folder_fault(s->spec));
    if (s->type != DATASET_WEBDATASET || is_shard_url(s->spec) || c->skip_missing_shards) return;
    StringList shards = shard_list(s->spec);
    for (size_t i = 0; i < shards.count; i++)
        if (!shard_command(shards.list[i]) && !file_exists(shards.list[i]))
            die(EXIT_USAGE,
                "%s: no such shard (%s; %zu of %zu); give shards that exist, or --skip-missing-shards",
                shards.list[i], s->spec, i + 1, shards.count);
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
        char table[PATH_SIZE];
        // a folder with a table is the table
        if (type == DATASET_FOLDER && c->need_caption && !c->prompts && folder_metadata(table, parts.list[i]))
            type = DATASET_CSV;
        dataset_add_source(d, parts.list[i], type);
        data_source_check(c, &d->sources[i]);
        csv = csv || type == DATASET_CSV;
    }
    string_list_free(&parts);
    if (c->upsampling_factors) dataset_set_factors(d, c->upsampling_factors);
    if (positives_key(c) == KEY_COLUMN && !csv && !c->validation)
        die(EXIT_USAGE,
            "--positives-key %s: needs a CSV with this column, and %s is not one; give caption, image or cls",
            c->positives_key, spec);
}

// A table: one of JSON, a CSV, or that of a folder.
static inline void dataset_add_table(Dataset *d, int source, const char *spec) {
    char path[PATH_SIZE];
    const bool folder = is_directory(spec) && folder_metadata(path, spec);
    if (!folder) path_format(path, "%s", spec);
    if (is_json_table(path)) dataset_add_json(d, source, path);
    else dataset_add_csv(d, source, path);
    if (folder) folder_count_unnamed(d, spec, path);
}

static inline void dataset_add_source_samples(Dataset *d, int source) {
    const DatasetConfig *c = &d->config;
    const DataSource *s = &d->sources[source];
    const bool captions = c->type == DATASET_AUTO && !c->need_label && !c->prompts;
    if (s->type == DATASET_CSV && captions && dataset_add_caption_file(d, source, s->spec)) return;
    if (s->type == DATASET_CSV) {
        dataset_add_table(d, source, s->spec);
    } else if (s->type == DATASET_WEBDATASET) {
        dataset_add_webdataset(d, source, s->spec);
    } else if (s->type == DATASET_FOLDER && c->prompts) {
        dataset_add_class_folders(d, source, s->spec);
    } else if (s->type == DATASET_FOLDER) {
        dataset_add_folder(d, source, s->spec);
    } else {
        int64_t count = c->num_samples && d->source_count == 1 ? c->num_samples : SYNTHETIC_SAMPLES;
        dataset_add_file(d, source, "synthetic")->samples = count;
        dataset_account(d)->found = count;
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
        const int64_t before = d->count;
        const int64_t end = (int64_t)((double)limit * (double)first[s + 1] / (double)total + 0.5);
        for (int64_t i = first[s]; i < first[s + 1]; i++) {
            if (d->count < end) d->samples[d->count++] = d->samples[i];
            else d->files[d->samples[i].file].samples--;
        }
        for (int64_t i = d->count - before; i < first[s + 1] - first[s]; i++)
            account_add_named(&d->sources[s].account, PASSED_OVER, "beyond the number asked for",
                "beyond the number asked for", d->sources[s].spec);
    }
    free(first);
}

// Notes that --image-key or --text-key was given and names nothing that is there.
static inline void dataset_note_keys(Dataset *d) {
    const DatasetConfig *c = &d->config, usual = dataset_config_default();
    bool images = false, captions = false, members = false, files = false;
    char text[512];
    for (size_t s = 0; s < d->source_count; s++) {
        members = members || d->sources[s].type == DATASET_WEBDATASET;
        files = files || d->sources[s].type == DATASET_FOLDER;
    }
    for (int64_t i = 0; i < d->count && !(images && captions); i++) {
        const DataSample *s = &d->samples[i];
        images = images || (sample_type(d, s) == DATASET_WEBDATASET && s->image_bytes >= 0);
        captions = captions || (sample_type(d, s) != DATASET_CSV && s->caption_bytes >= 0);
    }
    if (strcmp(c->image_key, usual.image_key) != 0 && !images) {
        snprintf(text, sizeof text, "--image-key %.200s: %s", c->image_key,
            members ? "no member of a shard has this ending"
                    : "has no effect, since the data has no tar shards");
        account_add_named(&d->sources[0].account, NOTED, "--image-key", "", text);
    }
    if (strcmp(c->text_key, usual.text_key) != 0 && !captions && !c->json_text_key) {
        snprintf(text, sizeof text, "--text-key %.200s: %s", c->text_key,
            members || files ? "no caption has this ending"
                             : "has no effect, since the data has neither tar shards nor folders");
        account_add_named(&d->sources[0].account, NOTED, "--text-key", "", text);
    }
    if (c->json_text_key && !members) {
        snprintf(text, sizeof text, "--json-text-key %.200s: has no effect, since the data has no tar shards",
            c->json_text_key);
        account_add_named(&d->sources[0].account, NOTED, "--json-text-key", "", text);
    }
}

// Cuts the list to --train-num-samples; ends the program if fewer than `least` samples are left.
static inline void dataset_finish(Dataset *d, const char *spec, int64_t least) {
    const char *hint[] = {"", "rows below the header line", "members such as 000.jpg and 000.txt",
        ".jpg .jpeg .png or .webp files (tar shards are given by name: FOLDER/{00000..00009}.tar)", ""};
    char reasons[1500];
    if (d->config.need_caption) dataset_note_keys(d);
    account_reasons(&d->sources[0].account, reasons, sizeof reasons);
    if (d->count == 0)
        die(EXIT_USAGE, "%s: %s%s; it needs %s", spec,
            reasons[0] ? "nothing in it can be used: " : "the data set is empty", reasons,
            hint[d->sources[0].type]);
    dataset_settle_labels(d, spec);
    if (d->config.num_samples && !d->config.resampled) dataset_cut(d, d->config.num_samples);
    if (d->count < least)
        die(EXIT_USAGE, "%s: %lld samples, at least %lld are needed; give more data", spec,
            (long long)d->count, (long long)least);
    d->passed_over = (uint8_t *)calloc_check((size_t)d->count / 8 + 1, 1);
    d->noted = (uint8_t *)calloc_check((size_t)d->count / 8 + 1, 1);
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

// A folder with one sub-folder for each class; labels are needed, captions are not. With config->classnames
// folders_label() matches the sub-folders to them; without, a label is the index among the sorted names.
static inline Dataset dataset_open_class_folders(const char *root, const DatasetConfig *config) {
    Dataset d = dataset_new(config);
    d.config.need_caption = false;
    d.config.need_label = true;
    if (folder_fault(root))
        die(EXIT_USAGE, "%s: %s; give a folder with one sub-folder for each class", root, folder_fault(root));
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
        for (size_t i = 0; i < d->source_count; i++) {
            free(d->sources[i].spec);
            account_free(&d->sources[i].account);
        }
        if (d->spill_fd >= 0) close(d->spill_fd);
        string_list_free(&d->class_folders);
        labels_free(&d->labels);
        free(d->sources);
    }
    free(d->samples);
    free(d->files);
    free(d->keys);
    free(d->passed_over);
    free(d->noted);
    free(d->whole_index);
    memset(d, 0, sizeof *d);
}

#endif
