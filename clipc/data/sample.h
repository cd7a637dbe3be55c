// How one sample of a data set is read: the bytes of its image file, its caption, its label, and the pixels
// that the image tower takes. What is wrong with a sample is a status and never ends the program.
// Thread-safe: a Dataset does not change, each thread reads into its own SampleBuffers.
#ifndef CLIPC_SAMPLE_H
#define CLIPC_SAMPLE_H

#include "clipc/base/cache_file.h" // hash128_file, pread_all
#include "clipc/data/dataset.h"    // Dataset
#include "clipc/data/image.h"      // image_decode
#include "clipc/data/transform.h"  // image_eval_transform
#include "clipc/data/unicode.h"    // is_utf8_text

#include <jansson.h>

#define SYNTHETIC_CAPTION "a photo of nothing at all"
// The longest JSON and image files; a longer one is cut off and therefore broken.
#define JSON_MOST_BYTES (1 << 20)
#define IMAGE_MOST_BYTES (1 << 30)

// ---------------------------------------------------------------- status

// Why a sample was skipped; the reasons of image.h follow: SAMPLE_IMAGE + IMAGE_BROKEN ….
// name, of one, of several
#define SAMPLE_STATUSES(X)                                                         \
    X(SAMPLE_OK, "ok", "ok")                                                       \
    X(SAMPLE_MISSING, "missing file", "missing files")                             \
    X(SAMPLE_UNREADABLE, "unreadable file", "unreadable files")                    \
    X(SAMPLE_NO_IMAGE, "without image", "without image")                           \
    X(SAMPLE_NO_CAPTION, "without caption", "without caption")                     \
    X(SAMPLE_EMPTY_CAPTION, "empty caption", "empty captions")                     \
    X(SAMPLE_NO_LABEL, "without a label of the set", "without a label of the set") \
    X(SAMPLE_BAD_JSON, "with broken JSON", "with broken JSON")                     \
    X(SAMPLE_NOT_UTF8, "caption that is not UTF-8", "captions that are not UTF-8")
#define SAMPLE_STATUS_ENUM(name, one, many) name,
enum {
    SAMPLE_STATUSES(SAMPLE_STATUS_ENUM) SAMPLE_IMAGE,
    SAMPLE_STATUS_COUNT = SAMPLE_IMAGE + IMAGE_STATUS_COUNT
};
typedef int SampleStatus;

#define SAMPLE_STATUS_ONE(name, one, many) one,
#define SAMPLE_STATUS_MANY(name, one, many) many,
static inline const char *sample_status_name(SampleStatus status) {
    static const char *const names[SAMPLE_IMAGE] = {SAMPLE_STATUSES(SAMPLE_STATUS_ONE)};
    return status < SAMPLE_IMAGE ? names[status] : image_status_name((ImageStatus)(status - SAMPLE_IMAGE));
}

// The same after a number.
static inline const char *sample_status_counted(SampleStatus status, int64_t count) {
    static const char *const names[SAMPLE_IMAGE] = {SAMPLE_STATUSES(SAMPLE_STATUS_MANY)};
    if (status >= SAMPLE_IMAGE) return image_status_counted((ImageStatus)(status - SAMPLE_IMAGE), count);
    return count == 1 ? sample_status_name(status) : names[status];
}

// ---------------------------------------------------------------- bytes

typedef struct {
    uint8_t *data; // (bytes)
    size_t bytes, capacity;
} ByteBuffer;

// Into which one thread reads the samples of one data set: the buffers grow to the largest sample and are
// reused; the shards read last stay open. Starts as zeros; free with sample_buffers_free().
enum { SAMPLE_OPEN_SHARDS = 8 };
typedef struct {
    ByteBuffer image;    // the image file as it is; synthetic: empty
    const char *caption; // (caption_bytes) UTF-8 as in the file, without a NUL
    size_t caption_bytes;
    int label;       // -1: none
    ByteBuffer text; // the caption's file
    char *prompt;    // the caption of a label (dataloader.h)
    size_t prompt_capacity;
    int shard_fd[SAMPLE_OPEN_SHARDS], shard[SAMPLE_OPEN_SHARDS]; // fd of file `shard` - 1; 0: none is open
} SampleBuffers;

static inline void sample_buffers_free(SampleBuffers *b) {
    for (int i = 0; i < SAMPLE_OPEN_SHARDS; i++)
        if (b->shard[i]) close(b->shard_fd[i]);
    free(b->image.data);
    free(b->text.data);
    free(b->prompt);
    memset(b, 0, sizeof *b);
}

static inline bool is_blank(const char *text, size_t length) {
    while (length && isspace((unsigned char)text[length - 1])) length--;
    return length == 0;
}

// What a file is that cannot be opened. Where the system has run out of something, it is not a fault of the
// file: the run ends rather than leave samples out.
static inline SampleStatus sample_open_error(const char *path, int error) {
    if (error == EMFILE || error == ENFILE || error == ENOMEM)
        die(EXIT_RUNTIME, "%s: cannot open (%s)", path, strerror(error));
    return error == ENOENT || error == ENOTDIR ? SAMPLE_MISSING : SAMPLE_UNREADABLE;
}

// Bytes [offset, offset + bytes) of an open file.
static inline SampleStatus sample_pread(ByteBuffer *out, int fd, int64_t offset, int64_t bytes) {
    list_grow((void **)&out->data, &out->capacity, (size_t)bytes + 1, 1); // never NULL
    out->bytes = (size_t)bytes;
    if (!pread_all(fd, out->data, out->bytes, offset)) return SAMPLE_UNREADABLE; // also if it has been cut
    return SAMPLE_OK;
}

// The first `most` bytes of a file. What is not a regular file (a pipe would block) is unreadable.
static inline SampleStatus sample_read_file(ByteBuffer *out, const char *path, int64_t most) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sample_open_error(path, errno);
    struct stat st;
    SampleStatus status = fstat(fd, &st) || !S_ISREG(st.st_mode)
                              ? SAMPLE_UNREADABLE
                              : sample_pread(out, fd, 0, min_i64(st.st_size, most));
    close(fd);
    return status;
}

// ---------------------------------------------------------------- tar

// The open shard of a sample, or -1 with errno.
static inline int sample_shard(const Dataset *d, int file, SampleBuffers *b) {
    int slot = file % SAMPLE_OPEN_SHARDS;
    if (b->shard[slot] == file + 1) return b->shard_fd[slot];
    if (b->shard[slot]) close(b->shard_fd[slot]);
    b->shard_fd[slot] = open(d->files[file].path, O_RDONLY | O_CLOEXEC);
    b->shard[slot] = b->shard_fd[slot] < 0 ? 0 : file + 1;
    return b->shard_fd[slot];
}

// One member, from the shard or the unpacked data.
static inline SampleStatus sample_read_member(
    ByteBuffer *out, const Dataset *d, int file, int64_t offset, int64_t bytes, SampleBuffers *b) {
    if (offset < 0) return sample_pread(out, d->spill_fd, ~offset, bytes);
    int fd = sample_shard(d, file, b);
    return fd < 0 ? sample_open_error(d->files[file].path, errno) : sample_pread(out, fd, offset, bytes);
}

// The string under the first of `keys` ("a;b") that exists and is not blank, or NULL.
static inline const json_t *json_first_text(const json_t *root, const char *keys) {
    for (;; keys++) {
        const size_t n = strcspn(keys, ";");
        char key[256];
        snprintf(key, sizeof key, "%.*s", (int)min_i64((int64_t)n, 255), keys);
        const json_t *value = json_object_get(root, key); // NULL for what is not an object
        if (json_is_string(value) && !is_blank(json_string_value(value), json_string_length(value)))
            return value;
        keys += n;
        if (!*keys) return NULL;
    }
}

// Replaces a JSON text by the caption in it.
static inline SampleStatus sample_json_caption(ByteBuffer *text, const char *keys) {
    json_t *root = json_loadb((const char *)text->data, text->bytes, JSON_ALLOW_NUL, NULL);
    const json_t *value = json_first_text(root, keys);
    const bool utf8 = is_utf8_text((const char *)text->data, text->bytes);
    SampleStatus status = !utf8   ? SAMPLE_NOT_UTF8
                          : !root ? SAMPLE_BAD_JSON
                          : value ? SAMPLE_OK
                                  : SAMPLE_NO_CAPTION;
    if (status == SAMPLE_OK) { // never longer than the JSON text
        text->bytes = (size_t)min_i64((int64_t)json_string_length(value), CAPTION_MOST_BYTES);
        memcpy(text->data, json_string_value(value), text->bytes);
    }
    json_decref(root);
    return status;
}

static inline SampleStatus sample_tar_caption(const Dataset *d, const DataSample *s, SampleBuffers *out) {
    const char *keys = d->config.json_text_key;
    const int64_t bytes = min_i64(s->caption_bytes, keys ? JSON_MOST_BYTES : CAPTION_MOST_BYTES);
    SampleStatus status = sample_read_member(&out->text, d, s->file, s->caption, bytes, out);
    return status == SAMPLE_OK && keys ? sample_json_caption(&out->text, keys) : status;
}

// ---------------------------------------------------------------- CSV, folder

// The image's path from the CSV's folder; false where it is absolute, or the CSV is in the working directory.
static inline bool csv_image_path(const DataFile *f, const DataSample *s, char out[2 * PATH_SIZE]) {
    const char *path = f->text + s->image, *slash = strrchr(f->path, '/');
    if (path[0] == '/' || !slash) return false;
    snprintf(out, 2 * PATH_SIZE, "%.*s/%s", (int)(slash - f->path), f->path, path);
    return true;
}

// The image's path: absolute, else from the CSV's folder, else from the working directory.
static inline SampleStatus sample_csv_image(const DataFile *f, const DataSample *s, ByteBuffer *out) {
    char path[2 * PATH_SIZE];
    SampleStatus status =
        csv_image_path(f, s, path) ? sample_read_file(out, path, IMAGE_MOST_BYTES) : SAMPLE_MISSING;
    return status == SAMPLE_MISSING ? sample_read_file(out, f->text + s->image, IMAGE_MOST_BYTES) : status;
}

// Continues *hash with path and stamp of the file that sample_read_image() opens, for a CSV or a folder.
// False where there is none.
static inline bool sample_hash_file(Hash128 *hash, const Dataset *d, const DataSample *s) {
    const DataFile *f = &d->files[s->file];
    char path[2 * PATH_SIZE];
    if (sample_type(d, s) == DATASET_CSV && csv_image_path(f, s, path) && hash128_file(hash, path))
        return true;
    return hash128_file(hash, f->text + s->image);
}

static inline SampleStatus sample_folder_caption(const DataFile *f, const DataSample *s, SampleBuffers *out) {
    char text[PATH_SIZE];
    const char *path = f->text + s->image;
    int stem = (int)(path_ending(path) - path);
    if (snprintf(text, sizeof text, "%.*s%s", stem, path, f->text + s->caption) >= (int)sizeof text)
        return SAMPLE_UNREADABLE;
    SampleStatus status = sample_read_file(&out->text, text, CAPTION_MOST_BYTES);
    return status == SAMPLE_MISSING ? SAMPLE_NO_CAPTION : status;
}

// ---------------------------------------------------------------- a sample of any kind

// Only the caption.
static inline SampleStatus sample_read_caption(const Dataset *d, const DataSample *s, SampleBuffers *out) {
    const DataFile *f = &d->files[s->file];
    const DatasetType type = sample_type(d, s);
    if (type != DATASET_SYNTHETIC && s->caption_bytes < 0) return SAMPLE_NO_CAPTION;
    if (type == DATASET_SYNTHETIC) {
        out->caption = SYNTHETIC_CAPTION;
        out->caption_bytes = strlen(SYNTHETIC_CAPTION);
    } else if (type == DATASET_CSV) {
        out->caption = f->text + s->caption;
        out->caption_bytes = (size_t)s->caption_bytes;
    } else {
        SampleStatus status =
            type == DATASET_FOLDER ? sample_folder_caption(f, s, out) : sample_tar_caption(d, s, out);
        if (status != SAMPLE_OK) return status;
        out->caption = (const char *)out->text.data;
        out->caption_bytes = out->text.bytes;
    }
    if (out->caption_bytes == CAPTION_MOST_BYTES) // cut off, perhaps within a character
        out->caption_bytes = utf8_whole_length(out->caption, out->caption_bytes);
    if (is_blank(out->caption, out->caption_bytes)) return SAMPLE_EMPTY_CAPTION;
    return is_utf8_text(out->caption, out->caption_bytes) ? SAMPLE_OK : SAMPLE_NOT_UTF8;
}

// Only the bytes of the image file; synthetic: none.
static inline SampleStatus sample_read_image(const Dataset *d, const DataSample *s, SampleBuffers *out) {
    const DataFile *f = &d->files[s->file];
    switch (sample_type(d, s)) {
    case DATASET_CSV: return sample_csv_image(f, s, &out->image);
    case DATASET_FOLDER: return sample_read_file(&out->image, f->text + s->image, IMAGE_MOST_BYTES);
    case DATASET_WEBDATASET:
        return sample_read_member(
            &out->image, d, s->file, s->image, min_i64(s->image_bytes, IMAGE_MOST_BYTES), out);
    default: return SAMPLE_OK;
    }
}

// Reads the label of sample `index` (0 … count-1) and its caption, where captions are needed and no prompt
// replaces it. What `out` points to is valid until its next use.
static inline SampleStatus dataset_read_caption(const Dataset *d, int64_t index, SampleBuffers *out) {
    const DataSample *s = &d->samples[index];
    out->caption = "";
    out->image.bytes = out->caption_bytes = 0;
    out->label = s->label;
    if (s->image_bytes < 0 && sample_type(d, s) != DATASET_SYNTHETIC) return SAMPLE_NO_IMAGE;
    if (d->config.need_label && s->label < 0) return SAMPLE_NO_LABEL;
    return d->config.need_caption && !sample_is_prompted(d, s) ? sample_read_caption(d, s, out) : SAMPLE_OK;
}

// The same and the bytes of its image file.
static inline SampleStatus dataset_read(const Dataset *d, int64_t index, SampleBuffers *out) {
    const SampleStatus status = dataset_read_caption(d, index, out);
    return status == SAMPLE_OK ? sample_read_image(d, &d->samples[index], out) : status;
}

// Where a sample comes from, for messages: "shard.tar:000123.jpg", a path, or "table.csv:PATH".
static inline void dataset_origin(const Dataset *d, int64_t index, char *out, size_t size) {
    const DataSample *s = &d->samples[index];
    const DataFile *f = &d->files[s->file];
    const DatasetType type = sample_type(d, s);
    if (type == DATASET_SYNTHETIC) snprintf(out, size, "synthetic:%lld", (long long)index);
    else if (type == DATASET_FOLDER) snprintf(out, size, "%s", f->text + s->image);
    else
        snprintf(out, size, "%s:%s", f->path,
            type == DATASET_WEBDATASET ? f->text + s->name
            : s->image_bytes < 0       ? ""
                                       : f->text + s->image);
    make_one_line(out);
}

// Ends the program where a label of a table or shard is not a class, with the first such label; says so where
// the numbers do not reach from the first class name to the last. `names` says where the class names are
// from.
static inline void dataset_check_labels(const Dataset *d, const char *names) {
    const LabelReading *r = &d->labels;
    const int classes = d->config.classname_count;
    const LabelNote *note = r->unknown.count ? &r->unknown : &r->beyond;
    char origin[2 * PATH_SIZE];
    if (r->beyond.count && r->lowest > 0 && r->highest == classes && !r->unknown.count)
        die(EXIT_USAGE,
            "%s: its labels count from %d to %d, but the %d names in %s have the labels 0 to %d; subtract 1, "
            "or write names",
            d->files[0].path, r->lowest, r->highest, classes, names, classes - 1);
    if (note->count) {
        dataset_origin(d, note->sample, origin, sizeof origin);
        die(EXIT_USAGE,
            "%.2000s: '%s' is not a class, as for %lld of %lld samples: they have no label among the %d "
            "names in %s; give one line a class, and labels from 0 or by name",
            origin, note->text, (long long)(r->unknown.count + r->beyond.count), (long long)dataset_count(d),
            classes, names);
    }
    if (r->numbers && !r->number_names && classes && (r->lowest > 0 || r->highest < classes - 1))
        warn("%s: its labels are %d to %d, and the names in %s are those of 0 ('%s') to %d ('%s'); check "
             "that they belong together",
            d->files[0].path, r->lowest, r->highest, names, d->config.classnames[0], classes - 1,
            d->config.classnames[classes - 1]);
}

// ---------------------------------------------------------------- the account

static inline Account *sample_account(const Dataset *d, int64_t index) {
    return &d->sources[d->files[d->samples[index].file].source].account;
}

// Counts a sample that cannot be used, once, in the account of its source. The first caption that is not
// UTF-8 is named with the encoding that it fits.
static inline void dataset_pass_over(const Dataset *d, int64_t index, SampleStatus status) {
    if (d->whole) {
        dataset_pass_over(d->whole, d->whole_index[index], status);
        return;
    }
    if (!set_bit(d->passed_over, index)) return;
    AccountLine *line = account_add(
        sample_account(d, index), PASSED_OVER, sample_status_name(status), sample_status_counted(status, 2));
    if (line->first) return;
    char origin[2 * PATH_SIZE];
    dataset_origin(d, index, origin, sizeof origin);
    if (status == SAMPLE_NOT_UTF8) {
        SampleBuffers buffers;
        memset(&buffers, 0, sizeof buffers);
        sample_read_caption(d, &d->samples[index], &buffers);
        const bool json = !buffers.caption; // it is the JSON text that is not UTF-8
        const char *fits = encoding_that_fits(json ? (const char *)buffers.text.data : buffers.caption,
            json ? buffers.text.bytes : buffers.caption_bytes);
        if (fits) snprintf(origin + strlen(origin), sizeof origin - strlen(origin), ", which fits %s", fits);
        sample_buffers_free(&buffers);
    }
    line->first = strdup_check(origin);
}

// Counts, once, what is to note of a sample that is used.
//   rotated   EXIF says that its image is not upright, and that is ignored
//   cut       its caption has more tokens than the context
static inline void dataset_note(const Dataset *d, int64_t index, bool rotated, bool cut) {
    char origin[2 * PATH_SIZE];
    if (d->whole) {
        dataset_note(d->whole, d->whole_index[index], rotated, cut);
        return;
    }
    if (!(rotated || cut) || !set_bit(d->noted, index)) return;
    dataset_origin(d, index, origin, sizeof origin);
    if (rotated)
        account_add_named(sample_account(d, index), USED,
            "image with an EXIF rotation that is ignored, as in open_clip (--exif-rotate applies it)",
            "images with an EXIF rotation that is ignored, as in open_clip (--exif-rotate applies it)",
            origin);
    if (cut)
        account_add_named(sample_account(d, index), USED, "caption cut at the context length",
            "captions cut at the context length", origin);
}

// A sample that repeats an earlier one.
static inline void dataset_note_repeated(const Dataset *d, int64_t index) {
    char origin[2 * PATH_SIZE];
    AccountLine *line =
        account_add(sample_account(d, index), USED, "repetition of an earlier image with its caption",
            "repetitions of earlier images with their captions");
    if (line->first) return;
    dataset_origin(d, index, origin, sizeof origin);
    line->first = strdup_check(origin);
}

// Random pixels (3,size,size), a function of the sample alone.
static inline void dataset_synthetic_pixels(int64_t index, uint8_t *out, int size) {
    Rand r = rand_for(0x73796e7468 /* "synth" */, (uint64_t)index, 0);
    for (int i = 0; i < 3 * size * size; i++) out[i] = (uint8_t)(rand_u64(&r) >> 56);
}

// ---------------------------------------------------------------- pixels

// How an image file becomes pixels.
typedef struct {
    int size; // of the square that the image tower takes
    Interpolation interpolation;
    ResizeMode resize_mode;
    bool exif_rotate;   // turn images upright as EXIF says
    int64_t max_pixels; // larger images are skipped
} ImageSettings;

// Decodes an image file, and turns it upright if that is wanted; *orientation is the file's. *out has to be
// freed when SAMPLE_OK is returned.
static inline SampleStatus sample_decode(
    Image *out, int *orientation, const ByteBuffer *file, const ImageSettings *c) {
    const ImageStatus status = image_decode(out, file->data, file->bytes, c->max_pixels);
    *orientation = 1;
    if (status != IMAGE_OK) return SAMPLE_IMAGE + (SampleStatus)status;
    *orientation = out->orientation;
    if (c->exif_rotate) image_apply_orientation(out);
    return SAMPLE_OK;
}

// The evaluation transform: pixels (3,size,size).
static inline SampleStatus sample_transform(uint8_t *pixels, const Image *image, const ImageSettings *c) {
    const ImageStatus status = image_eval_transform(pixels, image, c->size, c->interpolation, c->resize_mode);
    return status == IMAGE_OK ? SAMPLE_OK : SAMPLE_IMAGE + (SampleStatus)status;
}

// From an image file to pixels (3,size,size), without augmentation; *orientation is the file's.
static inline SampleStatus sample_eval_pixels(
    uint8_t *pixels, int *orientation, const ByteBuffer *file, const ImageSettings *c) {
    Image image;
    SampleStatus status = sample_decode(&image, orientation, file, c);
    if (status != SAMPLE_OK) return status;
    status = sample_transform(pixels, &image, c);
    image_free(&image);
    return status;
}

// ---------------------------------------------------------------- keys

// What a key is the hash of.
#define CLASS_STREAM 0x636c617373ull // "class"
#define ALONE_STREAM 0x616c6f6e65ull // "alone"

static inline uint64_t key_of_text(const char *text, size_t length) {
    return rand_mix(hash_bytes(HASH_START, text, length));
}

// Ignores white space and the case of ASCII letters, as the tokenizer does.
static inline uint64_t key_of_caption(const char *text, size_t length) {
    uint64_t hash = HASH_START;
    bool blank = false, begun = false;
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (isspace(c)) {
            blank = begun;
            continue;
        }
        const unsigned char seen[2] = {' ', (unsigned char)(c >= 'A' && c <= 'Z' ? c + 'a' - 'A' : c)};
        hash = hash_bytes(hash, blank ? seen : seen + 1, blank ? 2 : 1);
        blank = false;
        begun = true;
    }
    return rand_mix(hash);
}

// Equal for samples with the same image: the path of its file, or its member in a shard.
static inline uint64_t sample_image_key(const Dataset *d, int64_t index) {
    const DataSample *s = &d->samples[index];
    const DataFile *f = &d->files[s->file];
    char path[2 * PATH_SIZE];
    if (s->image_bytes < 0) return rand_for(ALONE_STREAM, (uint64_t)index, 0).state;
    if (sample_type(d, s) != DATASET_CSV) dataset_origin(d, index, path, sizeof path);
    else if (!csv_image_path(f, s, path)) snprintf(path, sizeof path, "%s", f->text + s->image);
    return key_of_text(path, strlen(path));
}

// Samples with the same key are false negatives of each other when they meet in a step (--positives-key). By
// default these are those with the same caption; where labels replace captions, those of the same class.
// `caption` is what dataset_read gave.
//   caption  the text
//   image    the path of the file: several captions of one image
//   cls      the label; in a CSV also a text that is not one of the classnames
//   COLUMN   the text in this column of a CSV
// A sample that lacks it has a unique key.
static inline uint64_t sample_key(
    const Dataset *d, int64_t index, const char *caption, size_t caption_bytes) {
    const DataSample *s = &d->samples[index];
    const DataFile *f = &d->files[s->file];
    PositivesKey kind = positives_key(&d->config);
    if (d->keys) return d->keys[index];
    if (kind == KEY_CAPTION && sample_is_prompted(d, s)) kind = KEY_CLASS;
    if (kind == KEY_CAPTION && caption_bytes) return key_of_caption(caption, caption_bytes);
    if (kind == KEY_IMAGE) return sample_image_key(d, index);
    if (kind == KEY_CLASS && s->label >= 0) return rand_for(CLASS_STREAM, (uint64_t)s->label, 0).state;
    const bool column =
        (kind == KEY_CLASS || kind == KEY_COLUMN) && sample_type(d, s) == DATASET_CSV && s->name >= 0;
    if (column) return key_of_text(f->text + s->name, strlen(f->text + s->name));
    return rand_for(ALONE_STREAM, (uint64_t)index, 0).state;
}

// The keys of all samples at once, into d->keys. Where captions are the keys, those of shards and folders are
// read for it.
static inline void dataset_read_keys(Dataset *d) {
    uint64_t *keys = (uint64_t *)malloc_check((size_t)d->count * sizeof *keys);
    const bool show = isatty(STDERR_FILENO), captions = positives_key(&d->config) == KEY_CAPTION;
    SampleBuffers buffers;
    memset(&buffers, 0, sizeof buffers);
    free(d->keys);
    d->keys = NULL;
    for (int64_t i = 0; i < d->count; i++) {
        const DataSample *s = &d->samples[i];
        bool read = captions && !sample_is_prompted(d, s) && sample_read_caption(d, s, &buffers) == SAMPLE_OK;
        keys[i] = sample_key(d, i, buffers.caption, read ? buffers.caption_bytes : 0);
        if (show && i % 10000 == 9999)
            fprintf(stderr, "\rreading the captions: %lld of %lld ", (long long)i + 1, (long long)d->count);
    }
    if (show && d->count > 9999) fprintf(stderr, "\r\033[K");
    sample_buffers_free(&buffers);
    d->keys = keys;
}

#endif
