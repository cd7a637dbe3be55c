// What an optimizer step trains on: micro-batches from the loader, with the kept features of locked towers
// and the patches that dropout leaves.
#ifndef CLIPC_STEP_LOADER_H
#define CLIPC_STEP_LOADER_H

#include "clipc/data/dataloader.h"   // Loader
#include "clipc/model/activations.h" // draw_patch_index
#include "clipc/model/clip.h"        // clip_pool
#include "clipc/train/setup.h"       // TrainData

// ---------------------------------------------------------------- a cache of features

// Features of a locked tower, kept from the first time that an image or a caption is seen: the tower's pooled
// output, before the projection (which may train). Later epochs then cost only the other tower. Results have
// the same bits as without the cache.

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

// ---------------------------------------------------------------- features of locked towers

// What the features of a tower depend on: its weights, how its input is made, and which samples there are.
static inline uint64_t features_identity(
    const Options *o, const Clip *clip, const TrainData *data, int tower) {
    uint64_t hash = hash_bytes(HASH_START, &clip->config, offsetof(ClipConfig, name));
    const int64_t count = dataset_count(&data->train);
    hash = hash_bytes(hash, o->train_data, strlen(o->train_data));
    hash = hash_bytes(hash, &count, sizeof count);
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower != tower || x->group > clip_tower_layers(&clip->config, tower)) continue;
        float *values = (float *)malloc_check(x->count * sizeof *values);
        clip_read(clip, ARENA_PARAMETERS, x, values);
        hash = hash_bytes(hash, values, x->count * sizeof *values);
        free(values);
    }
    return hash;
}

// --feature-cache FILE: the image tower's features are in FILE, the text tower's in FILE.text.
static inline void features_path(const Options *o, int tower, char path[PATH_SIZE]) {
    path_format(path, "%s%s", o->feature_cache, tower == IMAGE_TOWER ? "" : ".text");
}

// Makes `cache` (2) ready for the towers that are locked and have the same input in each epoch; logs it, or
// what would make the input the same. Other entries stay all zero.
static inline void features_open(
    FeatureCache *cache, const Options *o, const Clip *clip, const TrainData *data, Logger *log) {
    char path[PATH_SIZE];
    for (int tower = 0; tower < 2; tower++) {
        if (!tower_is_frozen(clip, tower)) continue;
        if (tower == IMAGE_TOWER &&
            (o->force_patch_dropout > 0 || !augment_is_fixed(data->loading.augment))) {
            logger_print(log,
                "features     the image tower is locked: with --aug-cfg none and no patch dropout "
                "each image would be encoded only once");
            continue;
        }
        cache[tower] = feature_cache_create(clip, tower);
        if (o->feature_cache) {
            features_path(o, tower, path);
            feature_cache_load(&cache[tower], path, features_identity(o, clip, data, tower));
        }
        logger_print(log,
            "features     the %s tower is locked: each %s is encoded once; %zu are cached already",
            tower == IMAGE_TOWER ? "image" : "text", tower == IMAGE_TOWER ? "image" : "caption",
            cache[tower].count);
    }
}

// Writes what was encoded so far to --feature-cache, for the next run.
static inline void features_save(
    const FeatureCache *cache, const Options *o, const Clip *clip, const TrainData *data) {
    char path[PATH_SIZE];
    for (int tower = 0; o->feature_cache && tower < 2; tower++)
        if (cache[tower].count) {
            features_path(o, tower, path);
            feature_cache_save(&cache[tower], path, features_identity(o, clip, data, tower));
        }
}

// ---------------------------------------------------------------- micro-batches

typedef struct {
    StepBatch batch; // of the step at hand, k micro-batches of B pairs
    Clip *clip;      // encodes what the feature caches do not have yet
    Loader *loader;
    Batch *loaded;       // (k) as they come from the loader
    FeatureCache *cache; // (2) of locked towers, width 0: none; or NULL
    float *pooled[2];    // (k*B,C) rows of the caches
    int *patch_index;    // (k*B,patch_count) patches that dropout leaves; NULL: all
    int patch_count;
    uint64_t seed; // of patch dropout
    double start;  // when the step began, seconds_now()
    double waited; // seconds of the step spent waiting for the loader
} StepLoader;

static inline Positives positives_from(const Options *o) {
    if (strcmp(o->positives, "soft") == 0) return POSITIVES_SOFT;
    return strcmp(o->positives, "mask") == 0 ? POSITIVES_MASK : POSITIVES_DIAGONAL;
}

// Starts the workers; loader_start_epoch(l->loader, …) gives them work. Each `pass` over the same data has
// another order and other crops. `cache` (2) may be NULL.
static inline void step_loader_open(
    StepLoader *l, const Options *o, Clip *clip, const TrainData *data, FeatureCache *cache, int pass) {
    LoaderConfig config = data->loading;
    const size_t B = (size_t)config.batch_size, k = (size_t)o->accum_freq;
    config.seed += (uint64_t)pass;
    memset(l, 0, sizeof *l);
    l->clip = clip;
    l->cache = cache;
    l->seed = (uint64_t)o->seed;
    l->loader = loader_create(&data->train, &config);
    l->loaded = (Batch *)malloc_check(k * sizeof *l->loaded);
    for (size_t j = 0; j < k; j++) l->loaded[j] = batch_create(&config);
    l->batch.B = (int)B;
    l->batch.k = (int)k;
    l->batch.micro = (ClipBatch *)calloc_check(k, sizeof *l->batch.micro);
    l->batch.keys = (uint64_t *)malloc_check(k * B * sizeof *l->batch.keys);
    l->batch.positives = positives_from(o);
    for (int tower = 0; cache && tower < 2; tower++)
        if (cache[tower].width)
            l->pooled[tower] = (float *)malloc_check(k * B * (size_t)cache[tower].width * sizeof(float));
    if (o->force_patch_dropout > 0) {
        const double patches = config_image_tokens(&clip->config) - 1;
        l->patch_count = (int)max_i64(1, (int64_t)(patches * (1 - o->force_patch_dropout)));
        l->patch_index = (int *)malloc_check(k * B * (size_t)l->patch_count * sizeof *l->patch_index);
    }
}

static inline void step_loader_free(StepLoader *l) {
    for (int j = 0; j < l->batch.k; j++) batch_free(&l->loaded[j]);
    free(l->loaded);
    free(l->batch.micro);
    free(l->batch.keys);
    for (int tower = 0; tower < 2; tower++) free(l->pooled[tower]);
    free(l->patch_index);
    loader_free(l->loader);
}

// The pooled features of a locked tower's part of micro-batch j, in place of its pixels or tokens.
static inline void step_loader_pool(StepLoader *l, int j, int tower) {
    const size_t B = (size_t)l->batch.B, T = (size_t)l->clip->config.context_length;
    const Batch *loaded = &l->loaded[j];
    ClipBatch *b = &l->batch.micro[j];
    float *pooled = l->pooled[tower] + (size_t)j * B * (size_t)l->cache[tower].width;
    uint64_t *keys = (uint64_t *)malloc_check(B * sizeof *keys);
    for (size_t i = 0; i < B; i++)
        keys[i] = tower == IMAGE_TOWER ? image_key(loaded->indices[i])
                                       : caption_key(loaded->tokens + i * T, loaded->lengths[i]);
    feature_cache_gather(&l->cache[tower], l->clip, pooled, b, keys);
    b->pooled[tower] = pooled;
    free(keys);
}

// Micro-batch j as the model takes it.
static inline void step_loader_fill(StepLoader *l, int j, int64_t step) {
    const size_t B = (size_t)l->batch.B, row = (size_t)j * B;
    const Batch *loaded = &l->loaded[j];
    ClipBatch *b = &l->batch.micro[j];
    *b = clip_batch(l->batch.B);
    b->pixels = loaded->pixels;
    b->tokens = loaded->tokens;
    memcpy(l->batch.keys + row, loaded->keys, B * sizeof *loaded->keys);
    for (int tower = 0; tower < 2; tower++)
        if (l->pooled[tower]) step_loader_pool(l, j, tower);
    if (!l->patch_index) return;
    const int patches = config_image_tokens(&l->clip->config) - 1;
    b->kept = l->patch_index + row * (size_t)l->patch_count;
    b->kept_count = l->patch_count;
    for (size_t i = row; i < row + B; i++)
        draw_patch_index(
            l->patch_index + i * (size_t)l->patch_count, l->patch_count, patches, l->seed, step, (int)i);
}

// Fills l->batch for the step after `step` steps; false when Ctrl-C came before its data was there.
static inline bool step_loader_next(StepLoader *l, int64_t step) {
    l->start = seconds_now();
    l->waited = 0;
    for (int j = 0; j < l->batch.k; j++) {
        if (!loader_next(l->loader, &l->loaded[j])) return false;
        l->waited += l->loaded[j].wait_seconds;
    }
    for (int j = 0; j < l->batch.k; j++) step_loader_fill(l, j, step);
    return true;
}

// How many of a pair's negatives in this step have its own key, in the mean over all pairs.
static inline double step_loader_false_negatives(const StepLoader *l) {
    return (double)batch_false_negatives(l->loaded, l->batch.k) / ((double)l->batch.k * l->batch.B);
}

// The optimizer's settings for the step after `step` steps.
static inline AdamW adamw_from(const Options *o, double lr, double beta1, int64_t step) {
    const AdamW a = {lr, beta1, o->beta2, o->eps, o->wd, o->ema_decay, o->grad_clip_norm, step + 1};
    return a;
}

#endif
