// The caption files of retrieval benchmarks, which have several captions an image:
//   Karpathy's split     dataset_coco.json, dataset_flickr30k.json: images[] with filename, filepath, split
//                        and sentences[].raw
//   COCO's captions      captions_val2017.json: images[] with id and file_name, annotations[] with image_id
//                        and caption
//   Flickr's token file  lines NAME#NUMBER<TAB>CAPTION
//   Flickr's tables      columns image,caption or image_name|comment_number|comment
// Their samples are rows of a table of images and captions, as those of dataset_csv.h.
#ifndef CLIPC_CAPTION_FILES_H
#define CLIPC_CAPTION_FILES_H

#include "clipc/data/csv.h"          // CsvReader
#include "clipc/data/dataset_list.h" // Dataset

#include <jansson.h>

// One caption of an image, as the file has them.
typedef struct {
    const char *folder, *image; // the image's file: FOLDER/IMAGE; folder NULL: IMAGE
    const char *caption;
    size_t caption_bytes;
    int64_t number; // of the image, in the order in which the samples are wanted
    int64_t order;  // of the caption
} CaptionEntry;

typedef struct {
    CaptionEntry *list; // (count)
    size_t count, capacity;
    int64_t left_out;  // captions of other splits
    int64_t broken;    // captions that are not text, or of an image that the file does not have
    const char *split; // what was taken: "test", or NULL for all
    char *text;        // what the strings belong to: the file, or
    json_t *root;      // its JSON
} CaptionFile;

static inline void caption_add(CaptionFile *f, const char *folder, const char *image, const char *caption,
    size_t caption_bytes, int64_t number) {
    list_grow((void **)&f->list, &f->capacity, f->count + 1, sizeof *f->list);
    const CaptionEntry e = {folder, image, caption, caption_bytes, number, (int64_t)f->count};
    f->list[f->count++] = e;
}

static inline int compare_captions(const void *a, const void *b) {
    const CaptionEntry *x = (const CaptionEntry *)a, *y = (const CaptionEntry *)b;
    if (x->number != y->number) return x->number < y->number ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

// ---------------------------------------------------------------- JSON

// Adds the string `caption` of an image; counts what is not a string.
static inline void caption_add_json(
    CaptionFile *f, const char *folder, const char *image, const json_t *caption, int64_t number) {
    if (!image || !json_is_string(caption)) f->broken++;
    else caption_add(f, folder, image, json_string_value(caption), json_string_length(caption), number);
}

// Karpathy's split: test to validate on; train and restval to train on.
static inline bool karpathy_wants(const json_t *image, bool validation) {
    const char *split = json_string_value(json_object_get(image, "split"));
    if (!split) return true;
    return validation ? !strcmp(split, "test") : !strcmp(split, "train") || !strcmp(split, "restval");
}

static inline void karpathy_read(CaptionFile *f, const json_t *images, bool validation) {
    f->split = validation ? "test" : "train";
    for (size_t i = 0; i < json_array_size(images); i++) {
        const json_t *image = json_array_get(images, i), *sentences = json_object_get(image, "sentences");
        const bool wanted = karpathy_wants(image, validation);
        if (!wanted) f->left_out += (int64_t)json_array_size(sentences);
        for (size_t k = 0; wanted && k < json_array_size(sentences); k++)
            caption_add_json(f, json_string_value(json_object_get(image, "filepath")),
                json_string_value(json_object_get(image, "filename")),
                json_object_get(json_array_get(sentences, k), "raw"), (int64_t)i);
    }
}

typedef struct {
    int64_t id, number;
    const char *name;
} CocoImage;

static inline int compare_coco_images(const void *a, const void *b) {
    const CocoImage *x = (const CocoImage *)a, *y = (const CocoImage *)b;
    return x->id < y->id ? -1 : x->id > y->id;
}

// The captions in the order of the images.
static inline void coco_read(CaptionFile *f, const json_t *images, const json_t *annotations) {
    const size_t count = json_array_size(images);
    CocoImage *sorted = (CocoImage *)malloc_check(count * sizeof *sorted);
    for (size_t i = 0; i < count; i++) {
        const json_t *image = json_array_get(images, i);
        const CocoImage entry = {json_integer_value(json_object_get(image, "id")), (int64_t)i,
            json_string_value(json_object_get(image, "file_name"))};
        sorted[i] = entry;
    }
    if (count) qsort(sorted, count, sizeof *sorted, compare_coco_images);
    for (size_t i = 0; i < json_array_size(annotations); i++) {
        const json_t *a = json_array_get(annotations, i), *id = json_object_get(a, "image_id");
        const CocoImage key = {json_integer_value(id), 0, NULL};
        const CocoImage *image =
            (const CocoImage *)bsearch(&key, sorted, count, sizeof *sorted, compare_coco_images);
        if (!image || !json_is_integer(id)) f->broken++;
        else caption_add_json(f, NULL, image->name, json_object_get(a, "caption"), image->number);
    }
    free(sorted);
    if (f->count) qsort(f->list, f->count, sizeof *f->list, compare_captions);
}

// Reads a file that is one JSON object with images and captions; false for any other file.
static inline bool caption_file_read_json(CaptionFile *f, const char *path, bool validation) {
    f->root = json_load_file(path, 0, NULL);
    const json_t *images = json_object_get(f->root, "images"), *first = json_array_get(images, 0);
    const json_t *annotations = json_object_get(f->root, "annotations");
    const bool karpathy = json_object_get(first, "sentences") != NULL;
    const bool coco = first && json_object_get(json_array_get(annotations, 0), "image_id") != NULL;
    if (karpathy) karpathy_read(f, images, validation);
    else if (coco) coco_read(f, images, annotations);
    return karpathy || coco;
}

// ---------------------------------------------------------------- text

// Where the caption begins in a line NAME#NUMBER<TAB>CAPTION, after which *name_end is the #; or NULL.
static inline char *token_caption(char *line, char **name_end) {
    char *tab = strchr(line, '\t'), *hash = tab;
    while (hash && hash > line && isdigit((unsigned char)hash[-1])) hash--;
    if (!hash || hash == tab || hash < line + 2 || hash[-1] != '#') return NULL;
    *name_end = hash - 1;
    return tab + 1;
}

// Flickr's token file; false where a line has another form.
static inline bool caption_file_read_tokens(CaptionFile *f) {
    for (char *line = f->text, *next; *line; line = next) {
        char *end = line + strcspn(line, "\r\n"), *name_end;
        next = end + strspn(end, "\r\n");
        *end = 0;
        char *caption = token_caption(line, &name_end);
        if (!caption && !f->count) return false;
        if (!caption) f->broken++;
        else {
            *name_end = 0;
            caption_add(f, NULL, line, caption, (size_t)(end - caption), (int64_t)f->count);
        }
    }
    return f->count > 0;
}

// A table with the columns image,caption or image_name|comment_number|comment, read from r->text.
static inline bool caption_file_read_table(CaptionFile *f, CsvReader *r) {
    static const char *const columns[2][2] = {{"image", "caption"}, {"image_name", "comment"}};
    int image = -1, caption = -1;
    r->separator = csv_find_separator(r->text, r->length, columns[0], 2);
    if (!csv_read_row(r)) return false;
    for (int i = 0; i < 2 && (image < 0 || caption < 0); i++) {
        image = csv_find_column(r, columns[i][0]);
        caption = csv_find_column(r, columns[i][1]);
    }
    if (image < 0 || caption < 0) return false;
    while (csv_read_row(r)) {
        const CsvField *i = csv_field(r, image), *c = csv_field(r, caption);
        if (!i || !i->length || !c) f->broken++;
        else caption_add(f, NULL, i->start, c->start, c->length, (int64_t)f->count);
    }
    return true;
}

// Reads a file of text with captions, a table only if `table_too`; false for any other file.
static inline bool caption_file_read_text(CaptionFile *f, const char *path, bool table_too) {
    CsvReader r;
    memset(&r, 0, sizeof r);
    f->text = file_read_all(path, &r.length);
    if (memchr(f->text, 0, r.length)) return false;
    char *first = f->text + (r.length >= 3 && !memcmp(f->text, "\xef\xbb\xbf", 3) ? 3 : 0), *end;
    char *line_end = first + strcspn(first, "\r\n"), kept = *line_end;
    *line_end = 0;
    const bool tokens = token_caption(first, &end) != NULL;
    *line_end = kept;
    if (tokens) return caption_file_read_tokens(f);
    r.text = f->text;
    r.at = (size_t)(first - f->text);
    const bool table = table_too && caption_file_read_table(f, &r);
    free(r.fields);
    return table;
}

// Does the file begin like one of these? Nothing else is read whole to find out.
static inline bool caption_file_begins(const char *path) {
    char head[512];
    FILE *file = is_directory(path) ? NULL : fopen(path, "rb");
    if (!file) return false;
    const size_t n = fread(head, 1, sizeof head - 1, file);
    fclose(file);
    head[n] = 0;
    char *first = head + (n >= 3 && !memcmp(head, "\xef\xbb\xbf", 3) ? 3 : 0), *end;
    first += strspn(first, " \t\r\n");
    if (*first == '{') return true;
    first[strcspn(first, "\r\n")] = 0;
    return strncmp(first, "image", 5) == 0 || strncmp(first, "\"image", 6) == 0 || token_caption(first, &end);
}

// ---------------------------------------------------------------- the images' folder

// Where the images may be, from the folder of the file and from the one above it; a * stands for what follows
// captions_ in the file's name.
static const char *const CAPTION_FOLDERS[] = {"", "images/", "Images/", "*/", "images/*/",
    "flickr30k-images/", "flickr30k_images/", "Flicker8k_Dataset/", "Flickr8k_Dataset/"};

// The path of an image from the file's folder, in the place `at`; false where there is no such place.
static inline bool caption_image_path(
    char out[PATH_SIZE], const char *file, const CaptionEntry *e, int at, bool with_folder) {
    const int places = (int)(sizeof CAPTION_FOLDERS / sizeof *CAPTION_FOLDERS);
    const char *place = CAPTION_FOLDERS[at % places], *up = at / places ? "../" : "",
               *star = strchr(place, '*');
    const char *slash = strrchr(file, '/'), *base = slash ? slash + 1 : file,
               *under = strstr(base, "captions_");
    const char *part = under ? under + 9 : "";
    if (star && !under) return false;
    if (e->image[0] == '/') return at == 0 && snprintf(out, PATH_SIZE, "%s", e->image) < PATH_SIZE;
    const int before = star ? (int)(star - place) : (int)strlen(place);
    return snprintf(out, PATH_SIZE, "%s%.*s%.*s%s%s%s%s", up, before, place,
               star ? (int)strcspn(part, ".") : 0, part, star ? star + 1 : "",
               with_folder && e->folder ? e->folder : "", with_folder && e->folder ? "/" : "",
               e->image) < PATH_SIZE;
}

// The first place in which one of the first images is; the program ends where there is none.
static inline void caption_find_images(const CaptionFile *f, const char *path, int *at, bool *with_folder) {
    enum { TRIED = 50 };
    const int places = 2 * (int)(sizeof CAPTION_FOLDERS / sizeof *CAPTION_FOLDERS);
    const char *slash = strrchr(path, '/');
    char image[PATH_SIZE], whole[2 * PATH_SIZE];
    for (size_t i = 0; i < f->count && i < TRIED; i++)
        for (*at = 0; *at < places; ++*at)
            for (int k = 1; k >= 0; k--) {
                *with_folder = k;
                if (!caption_image_path(image, path, &f->list[i], *at, k)) continue;
                snprintf(whole, sizeof whole, "%.*s%s",
                    slash && image[0] != '/' ? (int)(slash - path) + 1 : 0, path, image);
                if (file_exists(whole)) return;
            }
    die(EXIT_USAGE,
        "%s: its images, such as %s, are not beside it, in images/ or in a folder of the data set's usual "
        "name, here or one folder up; put or link their folder beside the file",
        path, f->list[0].image);
}

// ---------------------------------------------------------------- samples

static inline void caption_file_free(CaptionFile *f) {
    json_decref(f->root);
    free(f->text);
    free(f->list);
}

static inline void dataset_add_captions(Dataset *d, int source, const char *path, const CaptionFile *f) {
    char image[PATH_SIZE];
    int at;
    bool with_folder;
    int64_t image_at = 0;
    DataFile *file = dataset_add_file(d, source, path);
    caption_find_images(f, path, &at, &with_folder);
    for (size_t i = 0; i < f->count; i++) {
        const CaptionEntry *e = &f->list[i], *last = i ? e - 1 : NULL;
        const bool same = last && last->folder == e->folder && !strcmp(last->image, e->image);
        DataSample *s = dataset_add_sample(d);
        file->samples++;
        dataset_account(d)->found++;
        s->name = -1;
        if (!caption_image_path(image, path, e, at, with_folder)) continue;
        if (!same) image_at = data_file_add_text(file, image);
        s->image = image_at;
        s->image_bytes = (int32_t)strlen(image);
        s->caption = (int64_t)file->text_bytes;
        s->caption_bytes = (int32_t)min_i64((int64_t)e->caption_bytes, CAPTION_MOST_BYTES);
        data_file_add_bytes(file, e->caption, (size_t)s->caption_bytes);
    }
}

// Adds the samples of `path` if it is a caption file; false, and nothing added, for any other file.
static inline bool dataset_add_caption_file(Dataset *d, int source, const char *path) {
    const bool validation = d->config.validation;
    // a table whose columns were named is read as one
    const bool table_too =
        !strcmp(d->config.csv_img_key, "filepath") && positives_key(&d->config) != KEY_COLUMN;
    CaptionFile f;
    memset(&f, 0, sizeof f);
    if (!caption_file_begins(path)) return false;
    const bool found =
        caption_file_read_json(&f, path, validation) || caption_file_read_text(&f, path, table_too);
    if (found && !f.count)
        die(EXIT_USAGE, "%s: no captions%s%s in it%s", path, f.split ? " of the split " : "",
            f.split ? f.split : "",
            f.split ? "; --val-data takes the split test, --train-data train and restval" : "");
    if (found) dataset_add_captions(d, source, path, &f);
    for (int64_t i = 0; found && i < f.left_out; i++)
        account_pass_over(dataset_account(d), "caption of another split", "captions of other splits", path);
    for (int64_t i = 0; found && i < f.broken; i++)
        account_pass_over(dataset_account(d), "caption that is not text or has no image in the file",
            "captions that are not text or have no image in the file", path);
    if (found && f.left_out)
        warn("%s: %zu captions of the split %s; %lld of other splits are passed over", path, f.count,
            validation ? "test" : "train and restval", (long long)f.left_out);
    if (found && f.broken)
        warn("%s: %lld captions are passed over, as they are not text or have no image in the file", path,
            (long long)f.broken);
    caption_file_free(&f);
    return found;
}

#endif
