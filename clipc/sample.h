// How one sample of a data set is read: the bytes of its image file, its caption, its label. What is wrong with a sample is a
// status and never ends the program. Thread-safe: a Dataset does not change, each thread reads into its own SampleBytes.
#ifndef CLIPC_SAMPLE_H
#define CLIPC_SAMPLE_H

#include "clipc/dataset.h" // Dataset
#include "clipc/image.h"   // ImageStatus

#include <jansson.h>

#define SYNTHETIC_CAPTION "a photo of nothing at all"
#define JSON_MOST_BYTES (1 << 24)  // of one JSON file, and
#define IMAGE_MOST_BYTES (1 << 30) // of one image file: what is longer is cut off, and broken thereby

// ---------------------------------------------------------------- status

// Why a sample was skipped; the reasons of image.h follow: SAMPLE_IMAGE + IMAGE_BROKEN ….
#define SAMPLE_STATUSES(X)                          \
    X(SAMPLE_OK, "ok")                              \
    X(SAMPLE_MISSING, "missing files")              \
    X(SAMPLE_UNREADABLE, "unreadable files")        \
    X(SAMPLE_NO_IMAGE, "without image")             \
    X(SAMPLE_NO_CAPTION, "without caption")         \
    X(SAMPLE_NO_LABEL, "without a label of the set") \
    X(SAMPLE_BAD_JSON, "with broken JSON")
#define SAMPLE_STATUS_ENUM(name, text) name,
enum { SAMPLE_STATUSES(SAMPLE_STATUS_ENUM) SAMPLE_IMAGE, SAMPLE_STATUS_COUNT = SAMPLE_IMAGE + IMAGE_STATUS_COUNT };
typedef int SampleStatus;

#define SAMPLE_STATUS_TEXT(name, text) text,
static inline const char *sample_status_name(SampleStatus status) {
    static const char *const names[SAMPLE_IMAGE] = {SAMPLE_STATUSES(SAMPLE_STATUS_TEXT)};
    return status < SAMPLE_IMAGE ? names[status] : image_status_name((ImageStatus)(status - SAMPLE_IMAGE));
}

// ---------------------------------------------------------------- bytes

typedef struct {
    uint8_t *data; // (bytes)
    size_t bytes, capacity;
} ByteBuffer;

// What one thread reads the samples of one data set into: its buffers grow to the largest sample and are used again; the shards read last stay open.
enum { SAMPLE_OPEN_SHARDS = 8 };
typedef struct {
    ByteBuffer image;    // the image file as it is; nothing for synthetic
    const char *caption; // (caption_bytes) UTF-8 as it stands, no NUL behind it
    size_t caption_bytes;
    int label;       // -1: none
    ByteBuffer text; // what the caption is read into
    int shard_fd[SAMPLE_OPEN_SHARDS], shard[SAMPLE_OPEN_SHARDS]; // of file `shard` - 1; 0: none is open
} SampleBytes;

static inline void sample_bytes_free(SampleBytes *b) {
    for (int i = 0; i < SAMPLE_OPEN_SHARDS; i++)
        if (b->shard[i]) close(b->shard_fd[i]);
    free(b->image.data);
    free(b->text.data);
    memset(b, 0, sizeof *b);
}

static inline SampleStatus sample_open_error(int error) { return error == ENOENT || error == ENOTDIR ? SAMPLE_MISSING : SAMPLE_UNREADABLE; }

// Bytes [offset, offset + bytes) of an open file.
static inline SampleStatus sample_pread(ByteBuffer *out, int fd, int64_t offset, int64_t bytes) {
    list_grow((void **)&out->data, &out->capacity, (size_t)bytes + 1, 1); // never NULL
    for (out->bytes = 0; out->bytes < (size_t)bytes;) {
        ssize_t got = pread(fd, out->data + out->bytes, (size_t)bytes - out->bytes, (off_t)(offset + (int64_t)out->bytes));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return SAMPLE_UNREADABLE; // also a file that has become shorter
        out->bytes += (size_t)got;
    }
    return SAMPLE_OK;
}

// A file, its first `most` bytes. What is no regular file (a pipe would block) is unreadable.
static inline SampleStatus sample_read_file(ByteBuffer *out, const char *path, int64_t most) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sample_open_error(errno);
    struct stat st;
    SampleStatus status = fstat(fd, &st) || !S_ISREG(st.st_mode) ? SAMPLE_UNREADABLE : sample_pread(out, fd, 0, min_i64(st.st_size, most));
    close(fd);
    return status;
}

// ---------------------------------------------------------------- tar

// The open shard of a sample, or -1 with errno.
static inline int sample_shard(const Dataset *d, int file, SampleBytes *b) {
    int slot = file % SAMPLE_OPEN_SHARDS;
    if (b->shard[slot] == file + 1) return b->shard_fd[slot];
    if (b->shard[slot]) close(b->shard_fd[slot]);
    b->shard_fd[slot] = open(d->files[file].path, O_RDONLY | O_CLOEXEC);
    b->shard[slot] = b->shard_fd[slot] < 0 ? 0 : file + 1;
    return b->shard_fd[slot];
}

// One member, from the shard or the unpacked data.
static inline SampleStatus sample_read_member(ByteBuffer *out, const Dataset *d, int file, int64_t offset, int64_t bytes, SampleBytes *b) {
    if (offset < 0) return sample_pread(out, d->spill_fd, ~offset, bytes);
    int fd = sample_shard(d, file, b);
    return fd < 0 ? sample_open_error(errno) : sample_pread(out, fd, offset, bytes);
}

// Puts the caption in the place of the JSON text that holds it.
static inline SampleStatus sample_json_caption(ByteBuffer *text, const char *key) {
    json_t *root = json_loadb((const char *)text->data, text->bytes, JSON_ALLOW_NUL, NULL);
    json_t *value = json_object_get(root, key); // NULL for what is no object
    SampleStatus status = !root ? SAMPLE_BAD_JSON : json_is_string(value) ? SAMPLE_OK : SAMPLE_NO_CAPTION;
    if (status == SAMPLE_OK) { // never longer than the text that it was written in
        text->bytes = (size_t)min_i64((int64_t)json_string_length(value), CAPTION_MOST_BYTES);
        memcpy(text->data, json_string_value(value), text->bytes);
    }
    json_decref(root);
    return status;
}

static inline SampleStatus sample_read_tar(const Dataset *d, const DataSample *s, SampleBytes *out) {
    const char *key = d->config.json_text_key;
    if (d->config.need_caption) {
        int64_t bytes = min_i64(s->caption_bytes, key ? JSON_MOST_BYTES : CAPTION_MOST_BYTES);
        SampleStatus status = sample_read_member(&out->text, d, s->file, s->caption, bytes, out);
        if (status == SAMPLE_OK && key) status = sample_json_caption(&out->text, key);
        if (status != SAMPLE_OK) return status;
        out->caption = (const char *)out->text.data;
        out->caption_bytes = out->text.bytes;
    }
    return sample_read_member(&out->image, d, s->file, s->image, min_i64(s->image_bytes, IMAGE_MOST_BYTES), out);
}

// ---------------------------------------------------------------- CSV, folder

// The image's path: absolute, else from the CSV's folder, else from the working directory.
static inline SampleStatus sample_read_csv(const Dataset *d, const DataSample *s, SampleBytes *out) {
    const DataFile *f = &d->files[s->file];
    const char *path = f->text + s->image, *slash = strrchr(f->path, '/');
    char beside[2 * PATH_SIZE];
    SampleStatus status = SAMPLE_MISSING;
    if (d->config.need_caption) {
        out->caption = f->text + s->caption;
        out->caption_bytes = (size_t)s->caption_bytes;
    }
    if (path[0] != '/' && slash) {
        snprintf(beside, sizeof beside, "%.*s/%s", (int)(slash - f->path), f->path, path);
        status = sample_read_file(&out->image, beside, IMAGE_MOST_BYTES);
    }
    return status == SAMPLE_MISSING ? sample_read_file(&out->image, path, IMAGE_MOST_BYTES) : status;
}

static inline SampleStatus sample_read_folder(const Dataset *d, const DataSample *s, SampleBytes *out) {
    const char *path = d->files[s->file].text + s->image;
    if (d->config.need_caption) {
        char text[PATH_SIZE];
        int stem = (int)(strrchr(path, '.') - path);
        if (snprintf(text, sizeof text, "%.*s.txt", stem, path) >= (int)sizeof text) return SAMPLE_UNREADABLE;
        SampleStatus status = sample_read_file(&out->text, text, CAPTION_MOST_BYTES);
        if (status != SAMPLE_OK) return status == SAMPLE_MISSING ? SAMPLE_NO_CAPTION : status;
        out->caption = (const char *)out->text.data;
        out->caption_bytes = out->text.bytes;
    }
    return sample_read_file(&out->image, path, IMAGE_MOST_BYTES);
}

// ---------------------------------------------------------------- any

static inline bool is_blank(const char *text, size_t length) {
    while (length && isspace((unsigned char)text[length - 1])) length--;
    return length == 0;
}

// Reads sample `index` (0 … count-1): the bytes of its image file, its caption (when captions are needed), its label. What `out`
// shows is valid until its next use. `out` starts as zeros and is freed with sample_bytes_free.
static inline SampleStatus dataset_read(const Dataset *d, int64_t index, SampleBytes *out) {
    const DataSample *s = &d->samples[index];
    out->caption = "";
    out->image.bytes = out->caption_bytes = 0;
    out->label = s->label;
    if (d->type == DATASET_SYNTHETIC) {
        out->caption = SYNTHETIC_CAPTION;
        out->caption_bytes = strlen(SYNTHETIC_CAPTION);
        return d->config.need_label ? SAMPLE_NO_LABEL : SAMPLE_OK;
    }
    if (s->image_bytes < 0) return SAMPLE_NO_IMAGE;
    if (d->config.need_label && s->label < 0) return SAMPLE_NO_LABEL;
    if (d->config.need_caption && d->type != DATASET_FOLDER && s->caption_bytes < 0) return SAMPLE_NO_CAPTION;
    SampleStatus status = d->type == DATASET_CSV      ? sample_read_csv(d, s, out)
                          : d->type == DATASET_FOLDER ? sample_read_folder(d, s, out)
                                                      : sample_read_tar(d, s, out);
    if (status == SAMPLE_OK && d->config.need_caption && is_blank(out->caption, out->caption_bytes)) return SAMPLE_NO_CAPTION;
    return status;
}

// Where a sample comes from, for messages: "shard.tar:000123.jpg", a path, or "table.csv:PATH".
static inline void dataset_origin(const Dataset *d, int64_t index, char *out, size_t size) {
    const DataSample *s = &d->samples[index];
    const DataFile *f = &d->files[s->file];
    if (d->type == DATASET_SYNTHETIC) snprintf(out, size, "synthetic:%lld", (long long)index);
    else if (d->type == DATASET_FOLDER) snprintf(out, size, "%s", f->text + s->image);
    else snprintf(out, size, "%s:%s", f->path, d->type == DATASET_WEBDATASET ? f->text + s->name : s->image_bytes < 0 ? "" : f->text + s->image);
    make_one_line(out);
}

// Random pixels (3,size,size), a function of the sample alone.
static inline void dataset_synthetic_pixels(int64_t index, uint8_t *out, int size) {
    Rand r = rand_for(0x73796e7468 /* "synth" */, (uint64_t)index, 0);
    for (int i = 0; i < 3 * size * size; i++) out[i] = (uint8_t)(rand_u64(&r) >> 56);
}

#endif
