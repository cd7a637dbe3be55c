// Features of a locked tower, kept from the first time that an image or a caption is seen: the tower's pooled
// output, before the projection (which may train). Later epochs then cost only the other tower. Results have
// the same bits as without the cache.
//
// With --feature-cache they are kept in a file, too, for later runs. There an image is known by its pixels as
// the tower sees them, a caption by its tokens. So nothing that is done to the data can give an image the
// features of another: not another order, split, decoder or file under the same name. All else that features
// depend on is in the file's header: the weights of the tower, precision, kernels.
//     FeaturesHeader
//     records of one size: key (16 bytes), row (C), checksum (4 bytes)
// The file is only appended to. A record whose checksum is wrong is not used, nor is what a killed run left
// of its last one.
#ifndef CLIPC_FEATURE_CACHE_H
#define CLIPC_FEATURE_CACHE_H

#include "clipc/base/cache_file.h" // Hash128, KeyTable, cache_lock
#include "clipc/base/options.h"    // matches_any
#include "clipc/model/clip.h"      // clip_pool

#define FEATURES_MAGIC 0x54464c43 // the bytes "CLFT"
#define FEATURES_VERSION 2
#define FEATURES_UNSAVED ((size_t)1 << 24) // bytes of rows from which on they are written: what a kill costs

typedef struct {
    int32_t magic, version, tower, width;
    Hash128 weights;   // of the tower and its configuration
    int32_t precision; // Precision
    char kernels[16];  // clip_kernels(): others round differently
    uint32_t crc;      // of what is before it
} FeaturesHeader;

typedef struct {
    int tower, width;   // width: C, of the tower; 0: there is no cache
    KeyTable row_of;    // of the keys of captions, and of images where there is a file
    int64_t *image_row; // (samples) of the images seen so far, -1: none; NULL for captions
    float *rows;        // (count,C)
    Hash128 *keys;      // (count) of the rows
    size_t count;
    size_t row_capacity, key_capacity;
    char path[PATH_SIZE]; // "": only in memory
    FeaturesHeader header;
    size_t saved; // the first so many rows are in the file
} FeatureCache;

// ---------------------------------------------------------------- in memory

// A cache of a locked tower's features of `samples` images, or of captions.
static inline FeatureCache feature_cache_create(const Clip *clip, int tower, int64_t samples) {
    FeatureCache c;
    memset(&c, 0, sizeof c);
    c.tower = tower;
    c.width = tower == IMAGE_TOWER ? clip->config.image_width : clip->config.text_width;
    if (tower != IMAGE_TOWER) return c;
    c.image_row = (int64_t *)malloc_check((size_t)samples * sizeof *c.image_row);
    for (int64_t i = 0; i < samples; i++) c.image_row[i] = -1;
    return c;
}

static inline void feature_cache_free(FeatureCache *c) {
    key_table_free(&c->row_of);
    free(c->image_row);
    free(c->rows);
    free(c->keys);
    memset(c, 0, sizeof *c);
}

static inline const float *feature_cache_row(const FeatureCache *c, int64_t row) {
    return c->rows + (size_t)row * (size_t)c->width;
}

// Adds a row (C), unless there is one of this key; returns its number.
static inline int64_t feature_cache_add(FeatureCache *c, Hash128 key, const float *row) {
    if (!key_table_add(&c->row_of, key, (int64_t)c->count)) return key_table_find(&c->row_of, key);
    list_grow((void **)&c->rows, &c->row_capacity, c->count + 1, (size_t)c->width * sizeof *c->rows);
    list_grow((void **)&c->keys, &c->key_capacity, c->count + 1, sizeof *c->keys);
    memcpy(c->rows + c->count * (size_t)c->width, row, (size_t)c->width * sizeof *row);
    c->keys[c->count] = key;
    return (int64_t)c->count++;
}

// ---------------------------------------------------------------- the header

// Fields of ClipConfig, by patterns, on which the features of a tower do not depend: those of the other tower
// alone, and those that are in the pixels. Whatever is not named here counts.
static inline bool config_field_is_foreign(const char *field, int tower) {
    static const char *const foreign[2] = {
        "embed_dim|interpolation|resize_mode|context_length|vocab_size|text_*|eot_id",
        "embed_dim|interpolation|resize_mode|image_*|patch_*|ln_pre|mean_?|std_?"};
    return matches_any(foreign[tower], field);
}

// Configuration and weights of a tower without its projection.
static inline Hash128 tower_hash(const Clip *clip, int tower) {
    Hash128 hash = hash128_start();
#define X(type, field, low, high)                \
    if (!config_field_is_foreign(#field, tower)) \
        hash = hash128_bytes(hash128_text(hash, #field), &clip->config.field, sizeof clip->config.field);
    CONFIG_FIELDS(X)
#undef X
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower != tower || x->group > clip_tower_layers(&clip->config, tower)) continue;
        float *values = (float *)malloc_check(x->count * sizeof *values);
        clip_read(clip, ARENA_PARAMETERS, x, values);
        hash = hash128_bytes(hash, values, x->count * sizeof *values);
        free(values);
    }
    return hash;
}

static inline FeaturesHeader features_header(const Clip *clip, const FeatureCache *c) {
    FeaturesHeader h;
    memset(&h, 0, sizeof h);
    h.magic = FEATURES_MAGIC;
    h.version = FEATURES_VERSION;
    h.tower = c->tower;
    h.width = c->width;
    h.weights = tower_hash(clip, c->tower);
    h.precision = clip_precision(clip);
    snprintf(h.kernels, sizeof h.kernels, "%s", clip_kernels(clip));
    h.crc = crc_of(&h, offsetof(FeaturesHeader, crc));
    return h;
}

// Ends the program where the file is of another kind, or made by another tower or in another way.
static inline void features_check_header(const FeatureCache *c, const FeaturesHeader *h, bool whole) {
    const FeaturesHeader *want = &c->header;
    if (h->magic != FEATURES_MAGIC)
        die(EXIT_USAGE, "%s: is not a feature file; give --feature-cache another name", c->path);
    if (h->version != FEATURES_VERSION)
        die(EXIT_USAGE, "%s: was written by another version of the program; remove it, and it is made again",
            c->path);
    if (!whole || h->crc != crc_of(h, offsetof(FeaturesHeader, crc)))
        die(EXIT_USAGE, "%s: is damaged; remove it, and it is made again", c->path);
    const char *other = h->tower != want->tower                                ? "another tower"
                        : h->width != want->width                              ? "other weights"
                        : !hash128_equal(h->weights, want->weights)            ? "other weights"
                        : h->precision != want->precision                      ? "another --precision"
                        : memcmp(h->kernels, want->kernels, sizeof h->kernels) ? "other kernels"
                                                                               : NULL;
    if (other)
        die(EXIT_USAGE, "%s: holds features made with %s; remove it, or give --feature-cache another name",
            c->path, other);
}

// ---------------------------------------------------------------- the file

static inline size_t feature_record_bytes(const FeatureCache *c) {
    return sizeof(Hash128) + (size_t)c->width * sizeof(float) + sizeof(uint32_t);
}

static inline void feature_record_write(const FeatureCache *c, size_t row, uint8_t *out) {
    const size_t bytes = feature_record_bytes(c) - sizeof(uint32_t);
    memcpy(out, &c->keys[row], sizeof(Hash128));
    memcpy(out + sizeof(Hash128), feature_cache_row(c, (int64_t)row), (size_t)c->width * sizeof(float));
    const uint32_t crc = crc_of(out, bytes);
    memcpy(out + bytes, &crc, sizeof crc);
}

static inline bool feature_record_is_intact(const FeatureCache *c, const uint8_t *record) {
    const size_t bytes = feature_record_bytes(c) - sizeof(uint32_t);
    uint32_t crc;
    memcpy(&crc, record + bytes, sizeof crc);
    return crc == crc_of(record, bytes);
}

// Adds the records of an open file whose header is c->header; returns how many were damaged.
static inline int64_t feature_cache_read(FeatureCache *c, int fd) {
    enum { CHUNK = 512 };
    const size_t bytes = feature_record_bytes(c);
    const int64_t count = (file_bytes(fd, c->path) - (int64_t)sizeof c->header) / (int64_t)bytes;
    uint8_t *records = (uint8_t *)malloc_check(CHUNK * bytes);
    float *row = (float *)malloc_check((size_t)c->width * sizeof *row);
    bool intact[CHUNK];
    int64_t damaged = 0;
    for (int64_t first = 0; first < count; first += CHUNK) {
        const int n = (int)min_i64(CHUNK, count - first);
        if (!pread_all(fd, records, (size_t)n * bytes, (int64_t)sizeof c->header + first * (int64_t)bytes))
            die(EXIT_RUNTIME, "%s: cannot be read; it was cut, or the disk fails", c->path);
#pragma omp parallel for
        for (int i = 0; i < n; i++) intact[i] = feature_record_is_intact(c, records + (size_t)i * bytes);
        for (int i = 0; i < n; i++) {
            const uint8_t *record = records + (size_t)i * bytes;
            Hash128 key;
            damaged += !intact[i];
            if (!intact[i]) continue;
            memcpy(&key, record, sizeof key);
            memcpy(row, record + sizeof key, (size_t)c->width * sizeof *row);
            feature_cache_add(c, key, row);
        }
    }
    free(records);
    free(row);
    return damaged;
}

// Makes `path` the file of an empty cache, and reads what it holds.
static inline void feature_cache_open(FeatureCache *c, const Clip *clip, const char *path) {
    FeaturesHeader h;
    bool writable;
    path_format(c->path, "%s", path);
    c->header = features_header(clip, c);
    const int fd = cache_open_check(path, &writable);
    if (writable) cache_lock(fd, path, NULL); // another run adds to it only for a moment
    if (file_bytes(fd, path) > 0) {
        memset(&h, 0, sizeof h);
        const bool whole = pread_all(fd, &h, sizeof h, 0);
        features_check_header(c, &h, whole);
        const int64_t damaged = feature_cache_read(c, fd);
        if (damaged)
            warn("%s: %lld of its features are damaged; they are computed again", path, (long long)damaged);
    }
    c->saved = c->count;
    close(fd);
}

// Writes the rows from c->saved on to the open file at `offset`.
static inline bool feature_cache_write(const FeatureCache *c, int fd, int64_t offset) {
    enum { CHUNK = 512 };
    const size_t bytes = feature_record_bytes(c);
    uint8_t *records = (uint8_t *)malloc_check(CHUNK * bytes);
    bool written = true;
    for (size_t first = c->saved; first < c->count && written; first += CHUNK) {
        const size_t n = c->count - first < CHUNK ? c->count - first : (size_t)CHUNK;
        for (size_t i = 0; i < n; i++) feature_record_write(c, first + i, records + i * bytes);
        written = pwrite_all(fd, records, n * bytes, offset + (int64_t)((first - c->saved) * bytes));
    }
    free(records);
    return written;
}

// Adds what an open file does not hold yet. NULL, or what is wrong.
static inline const char *feature_cache_append(FeatureCache *c, int fd) {
    FeaturesHeader h;
    int64_t end = file_bytes(fd, c->path);
    if (end == 0) { // new, or emptied or removed under the run: all rows belong in it
        c->saved = 0;
        end = (int64_t)sizeof h;
        if (!pwrite_all(fd, &c->header, sizeof h, 0)) return strerror(errno);
    } else if (!pread_all(fd, &h, sizeof h, 0) || memcmp(&h, &c->header, sizeof h) != 0) {
        return "it was replaced under this run";
    }
    end -= (end - (int64_t)sizeof h) % (int64_t)feature_record_bytes(c); // what a kill left of a record
    const bool written = ftruncate(fd, (off_t)end) == 0 && feature_cache_write(c, fd, end);
    const int error = errno;
    if (!written && ftruncate(fd, (off_t)end)) {} // else the next run cuts off what is left of it
    if (!written) return strerror(error);
    c->saved = c->count;
    return NULL;
}

// Adds to the file what it does not hold yet. Where it cannot be written to, the run goes on without it.
static inline void feature_cache_save(FeatureCache *c) {
    bool writable;
    if (!c->path[0] || c->saved == c->count) return;
    const int fd = cache_open(c->path, &writable);
    const char *wrong = strerror(fd < 0 ? errno : EACCES);
    if (fd >= 0 && writable && cache_lock(fd, c->path, NULL)) wrong = feature_cache_append(c, fd);
    if (fd >= 0) close(fd);
    if (!wrong) return;
    warn("%s: cannot be written to (%s); features are not kept any more", c->path, wrong);
    c->path[0] = 0;
}

// ---------------------------------------------------------------- features of a batch

// key of row b of a batch: an image by its pixels, a caption by its tokens.
static inline Hash128 feature_key(const FeatureCache *c, const Clip *clip, const ClipBatch *batch, int b) {
    const size_t S = (size_t)clip->config.image_size, T = (size_t)clip->config.context_length;
    if (c->tower == IMAGE_TOWER)
        return hash128_bytes(hash128_start(), batch->pixels + (size_t)b * 3 * S * S, 3 * S * S);
    const int *tokens = batch->tokens + (size_t)b * T;
    const int length = caption_length(tokens, (int)T, clip->config.eot_id);
    return hash128_bytes(hash128_start(), tokens, (size_t)length * sizeof *tokens);
}

// rows (B): of each image or caption of a batch, -1: not there; and their keys (B). indices (B): of the
// samples. The pixels of an image are only hashed when it is seen first.
static inline void feature_cache_find(const FeatureCache *c, const Clip *clip, const ClipBatch *batch,
    const int64_t *indices, Hash128 *keys, int64_t *rows) {
#pragma omp parallel for
    for (int b = 0; b < batch->size; b++) {
        rows[b] = c->image_row ? c->image_row[indices[b]] : -1;
        if (rows[b] >= 0) continue;
        keys[b] = feature_key(c, clip, batch, b);
        rows[b] = key_table_find(&c->row_of, keys[b]);
    }
}

// Encodes the rows missing (count) of a batch as one smaller batch into out (count,C).
static inline void feature_cache_encode(
    const FeatureCache *c, Clip *clip, const ClipBatch *batch, const int *missing, int count, float *out) {
    const size_t S = 3 * (size_t)clip->config.image_size * (size_t)clip->config.image_size;
    const size_t T = (size_t)clip->config.context_length;
    ClipBatch part = clip_batch(count);
    uint8_t *pixels = NULL;
    int *tokens = NULL;
    if (c->tower == IMAGE_TOWER) part.pixels = pixels = (uint8_t *)malloc_check((size_t)count * S);
    else part.tokens = tokens = (int *)malloc_check((size_t)count * T * sizeof *tokens);
    for (int i = 0; i < count; i++) {
        if (pixels) memcpy(pixels + (size_t)i * S, batch->pixels + (size_t)missing[i] * S, S);
        else memcpy(tokens + (size_t)i * T, batch->tokens + (size_t)missing[i] * T, T * sizeof *tokens);
    }
    clip_pool(clip, c->tower, &part, out);
    free(pixels);
    free(tokens);
}

// pooled (B,C): the features of a batch of the samples indices (B). What is missing is computed and added.
static inline void feature_cache_gather(
    FeatureCache *c, Clip *clip, float *pooled, const ClipBatch *batch, const int64_t *indices) {
    const size_t B = (size_t)batch->size, C = (size_t)c->width;
    int *missing = (int *)malloc_check(B * sizeof *missing), count = 0;
    int64_t *rows = (int64_t *)malloc_check(B * sizeof *rows);
    Hash128 *keys = (Hash128 *)malloc_check(B * sizeof *keys);
    feature_cache_find(c, clip, batch, indices, keys, rows);
    for (int b = 0; b < batch->size; b++)
        if (rows[b] < 0) missing[count++] = b;
    if (count) feature_cache_encode(c, clip, batch, missing, count, pooled);
    for (int i = 0; i < count; i++)
        rows[missing[i]] = feature_cache_add(c, keys[missing[i]], pooled + (size_t)i * C);
    for (size_t b = 0; b < B; b++) {
        if (c->image_row) c->image_row[indices[b]] = rows[b];
        memcpy(pooled + b * C, feature_cache_row(c, rows[b]), C * sizeof *pooled);
    }
    if (c->path[0] && (c->count - c->saved) * C * sizeof(float) >= FEATURES_UNSAVED) feature_cache_save(c);
    free(missing);
    free(rows);
    free(keys);
}

#endif
