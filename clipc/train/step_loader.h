// What an optimizer step trains on: micro-batches from the loader, with the kept features of locked towers
// and the patches that dropout leaves.
#ifndef CLIPC_STEP_LOADER_H
#define CLIPC_STEP_LOADER_H

#include "clipc/data/shares.h"         // loader_next_step
#include "clipc/model/activations.h"   // draw_patch_index
#include "clipc/train/feature_cache.h" // FeatureCache
#include "clipc/train/setup.h"         // TrainData

// ---------------------------------------------------------------- features of locked towers

// Is the tower locked, and its input the same in each epoch?
static inline bool features_are_kept(const Options *o, const Clip *clip, const TrainData *data, int tower) {
    return tower_is_frozen(clip, tower) &&
           (tower == TEXT_TOWER || (o->force_patch_dropout <= 0 && augment_is_fixed(data->loading.augment)));
}

// Makes `cache` (2) ready for the towers whose features are kept; other entries stay all zero.
// --feature-cache FILE: those of images are in FILE, those of captions in FILE.text.
static inline void features_open(
    FeatureCache *cache, const Options *o, const Clip *clip, const TrainData *data) {
    char path[PATH_SIZE];
    for (int tower = 0; tower < 2; tower++) {
        if (!features_are_kept(o, clip, data, tower)) continue;
        cache[tower] = feature_cache_create(clip, tower, dataset_count(&data->train));
        if (!o->feature_cache) continue;
        path_format(path, "%s%s", o->feature_cache, tower == IMAGE_TOWER ? "" : ".text");
        feature_cache_open(&cache[tower], clip, path);
    }
}

// Writes what was encoded so far to the files of --feature-cache, for later runs.
static inline void features_save(FeatureCache *cache) {
    for (int tower = 0; tower < 2; tower++) feature_cache_save(&cache[tower]);
}

// Logs which features are kept, or what would make it possible.
static inline void features_describe(const FeatureCache *cache, const Clip *clip, Logger *log) {
    for (int tower = 0; tower < 2; tower++) {
        if (cache[tower].width)
            logger_print(log,
                "features     the %s tower is locked: each %s is encoded once; %zu are cached already",
                tower == IMAGE_TOWER ? "image" : "text", tower == IMAGE_TOWER ? "image" : "caption",
                cache[tower].count);
        else if (tower_is_frozen(clip, tower))
            logger_print(log,
                "features     the image tower is locked: with --aug-cfg none and no patch dropout "
                "each image would be encoded only once");
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
    config.micro_batches = comm_size() > 1 ? (int)k : 0;
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
    l->batch.keys = (uint64_t *)malloc_check((size_t)step_pairs(&l->batch) * sizeof *l->batch.keys);
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
    FeatureCache *cache = &l->cache[tower];
    ClipBatch *b = &l->batch.micro[j];
    float *pooled = l->pooled[tower] + (size_t)j * (size_t)l->batch.B * (size_t)cache->width;
    feature_cache_gather(cache, l->clip, pooled, b, l->loaded[j].indices);
    b->pooled[tower] = pooled;
}

// Micro-batch j as the model takes it.
static inline void step_loader_fill(StepLoader *l, int j, int64_t step) {
    const size_t B = (size_t)l->batch.B, row = (size_t)j * B;
    const Batch *loaded = &l->loaded[j];
    ClipBatch *b = &l->batch.micro[j];
    *b = clip_batch(l->batch.B);
    b->pixels = loaded->pixels;
    b->tokens = loaded->tokens;
    if (comm_size() == 1) memcpy(l->batch.keys + row, loaded->keys, B * sizeof *loaded->keys);
    for (int tower = 0; tower < 2; tower++)
        if (l->pooled[tower]) step_loader_pool(l, j, tower);
    if (!l->patch_index) return;
    const int patches = config_image_tokens(&l->clip->config) - 1;
    b->kept = l->patch_index + row * (size_t)l->patch_count;
    b->kept_count = l->patch_count;
    for (size_t i = 0; i < B; i++)
        draw_patch_index(l->patch_index + (row + i) * (size_t)l->patch_count, l->patch_count, patches,
            l->seed, step, step_row(&l->batch, j) + (int)i);
}

// Fills l->loaded with this process's part of the next step. False at a signal, on which all agree.
static inline bool step_loader_share(StepLoader *l) {
    int number = (int)train_signal;
    if (loader_next_step(l->loader, l->loaded, l->batch.keys, &number)) return true;
    train_interrupted = number;
    return false;
}

// Fills l->batch for the step after `step` steps; false when Ctrl-C came before its data was there.
static inline bool step_loader_next(StepLoader *l, int64_t step) {
    l->start = seconds_now();
    l->waited = 0;
    if (comm_size() > 1 && !step_loader_share(l)) return false;
    for (int j = 0; j < l->batch.k; j++) {
        if (comm_size() == 1 && !loader_next(l->loader, &l->loaded[j])) return false;
        l->waited += l->loaded[j].wait_seconds;
    }
    for (int j = 0; j < l->batch.k; j++) step_loader_fill(l, j, step);
    return true;
}

// How many of a pair's negatives in this step have its own key, in the mean over all pairs.
static inline double step_loader_false_negatives(const StepLoader *l) {
    const int pairs = step_pairs(&l->batch);
    Batch all;
    memset(&all, 0, sizeof all);
    all.keys = l->batch.keys;
    all.count = pairs;
    return (double)batch_false_negatives(&all, 1) / pairs;
}

// The optimizer's settings for the step after `step` steps.
static inline AdamW adamw_from(const Options *o, double lr, double beta1, int64_t step) {
    const AdamW a = {lr, beta1, o->beta2, o->eps, o->wd, o->ema_decay, o->grad_clip_norm, step + 1};
    return a;
}

#endif
