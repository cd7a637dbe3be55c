// Features of a locked tower, kept from the first time that an image or a caption is seen: the tower's pooled
// output, before the projection (which may train). Later epochs then cost only the other tower. Results have
// the same bits as without the cache.
#ifndef CLIPC_FEATURE_CACHE_H
#define CLIPC_FEATURE_CACHE_H

#include "clipc/model/clip.h" // clip_pool

// A hash table with open addressing from a sample's key to its row.
typedef struct {
    int tower, width;    // width: C, of the tower
    uint64_t *keys;      // (slots) 0: free
    int64_t *row_of;     // (slots) the key's row
    size_t slots, count; // slots: a power of two; count: of rows
    float *rows;         // (capacity,C)
    size_t capacity;
} FeatureCache;

static inline FeatureCache feature_cache_create(const Clip *clip, int tower) {
    FeatureCache c;
    memset(&c, 0, sizeof c);
    c.tower = tower;
    c.width = tower == IMAGE_TOWER ? clip->config.image_width : clip->config.text_width;
    return c;
}

static inline void feature_cache_free(FeatureCache *c) {
    free(c->keys);
    free(c->row_of);
    free(c->rows);
    memset(c, 0, sizeof *c);
}

// The key of an image is its index in the data set; that of a caption hashes its tokens, so that equal
// captions share a row.
static inline uint64_t image_key(int64_t index) { return (uint64_t)index + 1; }
static inline uint64_t caption_key(const int *tokens, int length) {
    const uint64_t hash = hash_bytes(HASH_START, tokens, (size_t)length * sizeof *tokens);
    return hash ? hash : 1;
}

// The slot of a key: where it is, or the free one where it belongs.
static inline size_t feature_cache_slot(const FeatureCache *c, uint64_t key) {
    const uint64_t spread = key * 0x9e3779b97f4a7c15ull; // Fibonacci hashing: neighbouring indices spread
    size_t at = (size_t)spread & (c->slots - 1);
    while (c->keys[at] && c->keys[at] != key) at = (at + 1) & (c->slots - 1);
    return at;
}

// The row (C) of a key, or NULL.
static inline const float *feature_cache_find(const FeatureCache *c, uint64_t key) {
    if (!c->slots) return NULL;
    const size_t at = feature_cache_slot(c, key);
    return c->keys[at] ? c->rows + (size_t)c->row_of[at] * (size_t)c->width : NULL;
}

// Adds a row (C) unless its key is there already.
static inline void feature_cache_add(FeatureCache *c, uint64_t key, const float *row) {
    if (2 * (c->count + 1) > c->slots) { // at most half full
        FeatureCache bigger = *c;
        bigger.slots = c->slots ? 2 * c->slots : 1024;
        bigger.keys = (uint64_t *)calloc_check(bigger.slots, sizeof *bigger.keys);
        bigger.row_of = (int64_t *)malloc_check(bigger.slots * sizeof *bigger.row_of);
        for (size_t i = 0; i < c->slots; i++) {
            if (!c->keys[i]) continue;
            const size_t at = feature_cache_slot(&bigger, c->keys[i]);
            bigger.keys[at] = c->keys[i];
            bigger.row_of[at] = c->row_of[i];
        }
        free(c->keys);
        free(c->row_of);
        *c = bigger;
    }
    const size_t at = feature_cache_slot(c, key);
    if (c->keys[at]) return; // the same caption twice in a batch
    list_grow((void **)&c->rows, &c->capacity, c->count + 1, (size_t)c->width * sizeof *c->rows);
    memcpy(c->rows + c->count * (size_t)c->width, row, (size_t)c->width * sizeof *row);
    c->keys[at] = key;
    c->row_of[at] = (int64_t)c->count++;
}

// pooled (B,C): the rows of a batch whose samples have these keys (B). Rows that are missing are computed as
// one smaller batch and added.
static inline void feature_cache_gather(
    FeatureCache *c, Clip *clip, float *pooled, const ClipBatch *batch, const uint64_t *keys) {
    const size_t S = 3 * (size_t)clip->config.image_size * (size_t)clip->config.image_size;
    const size_t T = (size_t)clip->config.context_length;
    const size_t C = (size_t)c->width;
    int *missing = (int *)malloc_check((size_t)batch->size * sizeof *missing), count = 0;
    for (int b = 0; b < batch->size; b++)
        if (!feature_cache_find(c, keys[b])) missing[count++] = b;
    if (count) {
        ClipBatch part = clip_batch(count);
        uint8_t *pixels = NULL;
        int *tokens = NULL;
        if (c->tower == IMAGE_TOWER) part.pixels = pixels = (uint8_t *)malloc_check((size_t)count * S);
        else part.tokens = tokens = (int *)malloc_check((size_t)count * T * sizeof *tokens);
        for (int i = 0; i < count; i++) {
            if (pixels) memcpy(pixels + (size_t)i * S, batch->pixels + (size_t)missing[i] * S, S);
            else memcpy(tokens + (size_t)i * T, batch->tokens + (size_t)missing[i] * T, T * sizeof *tokens);
        }
        clip_pool(clip, c->tower, &part, pooled);
        for (int i = 0; i < count; i++) feature_cache_add(c, keys[missing[i]], pooled + (size_t)i * C);
        free(pixels);
        free(tokens);
    }
    for (int b = 0; b < batch->size; b++)
        memcpy(pooled + (size_t)b * C, feature_cache_find(c, keys[b]), C * sizeof *pooled);
    free(missing);
}

// ---------------------------------------------------------------- on disk

#define FEATURES_MAGIC 0x54464c43 // the bytes "CLFT"

// The header of a feature file. After it come the keys (count) in the order of the rows, then the rows
// (count,C).
typedef struct {
    int32_t magic, version, tower, width;
    uint64_t identity; // hash of the weights and the data that made it
    int64_t count;
} FeaturesHeader;

static inline void feature_cache_save(const FeatureCache *c, const char *path, uint64_t identity) {
    const FeaturesHeader h = {FEATURES_MAGIC, 1, c->tower, c->width, identity, (int64_t)c->count};
    uint64_t *keys = (uint64_t *)malloc_check(c->count * sizeof *keys);
    for (size_t i = 0; i < c->slots; i++)
        if (c->keys[i]) keys[c->row_of[i]] = c->keys[i];
    SafeFile s;
    safe_file_open(&s, path);
    safe_file_write(&s, &h, sizeof h);
    safe_file_write(&s, keys, c->count * sizeof *keys);
    safe_file_write(&s, c->rows, c->count * (size_t)c->width * sizeof *c->rows);
    safe_file_commit(&s);
    free(keys);
}

// Fills an empty cache from a file, if there is one. A file made with other weights or other data ends the
// program.
static inline void feature_cache_load(FeatureCache *c, const char *path, uint64_t identity) {
    FeaturesHeader h;
    struct stat st;
    if (!file_exists(path)) return;
    FILE *f = fopen_check(path, "rb");
    fread_check(&h, sizeof h, f, path);
    if (h.magic != FEATURES_MAGIC || h.version != 1)
        die(EXIT_USAGE, "%s: is not a feature file; give --feature-cache another name", path);
    if (h.identity != identity || h.tower != c->tower || h.width != c->width)
        die(EXIT_USAGE,
            "%s: holds the features of other weights, data or image settings; remove it, or give "
            "--feature-cache another name",
            path);
    if (fstat(fileno(f), &st) || h.count < 0 ||
        st.st_size != (int64_t)sizeof h + h.count * (8 + 4 * (int64_t)h.width))
        die(EXIT_USAGE, "%s: is not complete; remove it", path);
    uint64_t *keys = (uint64_t *)malloc_check((size_t)h.count * sizeof *keys);
    float *row = (float *)malloc_check((size_t)h.width * sizeof *row);
    fread_check(keys, (size_t)h.count * sizeof *keys, f, path);
    for (int64_t i = 0; i < h.count; i++) {
        fread_check(row, (size_t)h.width * sizeof *row, f, path);
        if (keys[i]) feature_cache_add(c, keys[i], row);
    }
    free(keys);
    free(row);
    fclose(f);
}

#endif
