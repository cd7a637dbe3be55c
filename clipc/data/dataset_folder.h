// The files of a folder: which are images, which captions belong to them, and what is passed over.
#ifndef CLIPC_DATASET_FOLDER_H
#define CLIPC_DATASET_FOLDER_H

#include "clipc/data/csv.h"          // make_one_line
#include "clipc/data/dataset_list.h" // Dataset
#include "clipc/data/webdataset.h"   // member_kind

// The ending of a path, after its last dot; "" when there is none.
static inline const char *path_ending(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    return dot && dot > name ? dot + 1 : "";
}

static inline bool is_image_name(const char *name) {
    return member_kind(path_ending(name), IMAGE_ENDINGS) >= 0;
}

static inline bool is_any_name(const char *name) {
    (void)name;
    return true;
}

// The first of the sorted files that is not before `path`.
static inline size_t files_lower_bound(const StringList *files, const char *path) {
    size_t low = 0, high = files->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (strcmp(files->list[middle], path) < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

// The file with the stem of `path` and the ending that is the first in `endings` ("txt;caption"), upper case
// or not; NULL when there is none.
static inline const char *files_find_partner(const StringList *files, const char *path, const char *endings) {
    char stem[PATH_SIZE];
    const size_t n = (size_t)(path_ending(path) - path);
    const char *best = NULL;
    int best_rank = INT32_MAX;
    if (!*path_ending(path)) return NULL;
    path_format(stem, "%.*s", (int)n, path); // with its dot
    for (size_t i = files_lower_bound(files, stem); i < files->count; i++) {
        if (strncmp(files->list[i], stem, n)) break;
        const int rank = member_kind(files->list[i] + n, endings);
        if (rank < 0 || rank >= best_rank) continue;
        best = files->list[i];
        best_rank = rank;
    }
    return best;
}

// Is there a file with the stem of `path` whose ending is none of these?
static inline bool files_has_other(const StringList *files, const char *path, const char *endings) {
    char stem[PATH_SIZE];
    const size_t n = (size_t)(path_ending(path) - path);
    path_format(stem, "%.*s", (int)n, path);
    for (size_t i = files_lower_bound(files, stem); i < files->count; i++) {
        if (strncmp(files->list[i], stem, n)) break;
        if (member_kind(files->list[i] + n, endings) < 0) return true;
    }
    return false;
}

// Counts the files that are not images.
static inline void folder_count_others(Dataset *d, const StringList *files) {
    const DatasetConfig *c = &d->config;
    Account *a = dataset_account(d);
    char where[PATH_SIZE];
    for (size_t i = 0; i < files->count; i++) {
        const char *path = files->list[i];
        if (is_image_name(path)) continue;
        path_format(where, "%s", path);
        make_one_line(where);
        const bool image = files_find_partner(files, path, IMAGE_ENDINGS) != NULL;
        const bool caption = member_kind(path_ending(path), c->text_key) >= 0;
        if (!c->need_caption || (image && !caption)) account_add_other_file(a, where);
        else if (caption && !image && !files_has_other(files, path, c->text_key))
            account_pass_over(a, "caption without an image", "captions without an image", where);
        else if (!caption && files_find_partner(files, path, c->text_key))
            account_pass_over(a, "file of an unknown ending with a caption beside it",
                "files of unknown endings with captions beside them", where);
        else if (!caption) account_add_other_file(a, where);
    }
}

// The files below `root`, at any depth, sorted, but for those of is_system_file() and hidden ones; in
// `folders`, unless it is NULL, the names of the sub-folders. Counts all that are not images. Free with
// string_list_free().
static inline StringList folder_list(Dataset *d, const char *root, StringList *folders) {
    StringList all = {NULL, 0, 0};
    size_t kept = 0;
    list_files(root, is_any_name, &all, folders);
    for (size_t i = 0; i < all.count; i++) {
        const bool system = is_system_file(all.list[i] + strlen(root));
        dataset_account(d)->system_files += system;
        if (system) free(all.list[i]);
        else all.list[kept++] = all.list[i];
    }
    all.count = kept;
    folder_count_others(d, &all);
    return all;
}

// Adds an image to the file added last, with the file that holds its caption (or NULL).
static inline DataSample *dataset_add_image_file(Dataset *d, const char *path, const char *caption) {
    DataFile *f = &d->files[d->file_count - 1];
    DataSample *s = dataset_add_sample(d);
    s->image_bytes = (int32_t)strlen(path);
    s->image = data_file_add_text(f, path);
    f->samples++;
    dataset_account(d)->found++;
    if (!caption) return s;
    // only its ending is kept, once for all neighbours that have the same
    const char *ending = path_ending(caption);
    const bool same = f->samples > 1 && s[-1].caption_bytes >= 0 && !strcmp(f->text + s[-1].caption, ending);
    s->caption = same ? s[-1].caption : data_file_add_text(f, ending);
    s->caption_bytes = 0;
    return s;
}

// The table that names the images of a folder and their captions, as Hugging Face's imagefolder has it: false
// where there is none.
static inline bool folder_metadata(char path[PATH_SIZE], const char *root) {
    static const char *const names[] = {"metadata.csv", "metadata.jsonl"};
    int found = 0;
    for (int i = 0; i < 2; i++) {
        char one[PATH_SIZE];
        path_format(one, "%s/%s", root, names[i]);
        if (!is_directory(root) || !file_exists(one)) continue; // what root is instead, listing it says
        path_format(path, "%s", one);
        found++;
    }
    if (found > 1)
        die(EXIT_USAGE, "%s: has both metadata.csv and metadata.jsonl; give the one that counts", root);
    return found == 1;
}

// Counts the images of a folder that its table, the file added last, does not name.
static inline void folder_count_unnamed(Dataset *d, const char *root, const char *table) {
    const DataFile *f = &d->files[d->file_count - 1];
    StringList named = {NULL, 0, 0}, files = {NULL, 0, 0};
    char path[PATH_SIZE];
    for (int64_t i = d->count - f->samples; i < d->count; i++) {
        const DataSample *s = &d->samples[i];
        if (s->image_bytes < 0) continue;
        path_format(path, "%s/%s", root, f->text + s->image);
        string_list_add(&named, path);
    }
    string_list_sort(&named);
    list_files(root, is_any_name, &files, NULL);
    for (size_t i = 0; i < files.count; i++) {
        char *key = files.list[i];
        if (!is_image_name(key) || is_system_file(key)) continue;
        if (files_find_partner(&files, key, d->config.text_key))
            die(EXIT_USAGE,
                "%s: there are captions both in %s and beside the images, such as %s; give --train-data the "
                "table itself, or take one of them away",
                root, table, key);
        if (!named.count || !bsearch(&key, named.list, named.count, sizeof *named.list, compare_strings))
            account_pass_over(dataset_account(d), "image that the table of its folder does not name",
                "images that the table of their folder does not name", key);
    }
    string_list_free(&files);
    string_list_free(&named);
}

static inline void dataset_add_folder(Dataset *d, int source, const char *root) {
    dataset_add_file(d, source, root);
    StringList files = folder_list(d, root, NULL);
    for (size_t i = 0; i < files.count; i++)
        if (is_image_name(files.list[i]))
            dataset_add_image_file(d, files.list[i],
                d->config.need_caption ? files_find_partner(&files, files.list[i], d->config.text_key)
                                       : NULL);
    string_list_free(&files);
}

#endif
