// For the tests of cached images: data with images of all kinds, and a run over it.
#ifndef CLIPC_TEST_IMAGE_CACHE_H
#define CLIPC_TEST_IMAGE_CACHE_H

#include "dev/test/data_files.h"

enum { SAMPLES = 41, SIZE = 24, BATCH = 7, BATCHES = 13 };

// 41 rows of a table, in each of two shards as many samples: images of all sizes, some of them broken,
// missing, too large, turned or shared.
static inline void make_data(void) {
    static uint8_t png[1 << 16];
    char name[64];
    struct archive *a;
    make_directories(at("set"));
    FILE *f = fopen_check(at("set/t.csv"), "w");
    fprintf(f, "filepath,title\n");
    tar_plain(at("set/s0.tar"), &a);
    for (int i = 0; i < SAMPLES; i++) {
        size_t n = make_png(png, sizeof png, 5 * i, 9 + 7 * (i % 9), 11 + 5 * (i % 7));
        if (i == 3) n /= 2;
        if (i == 8) n = make_png(png, sizeof png, 1, 150, 200); // above max_image_pixels
        if (i == 5) n = make_rotated_jpeg(png, sizeof png);
        snprintf(name, sizeof name, "set/%d.png", i);
        if (i != 12) write_file(at(name), png, n);
        fprintf(f, "%d.png,%s\n", i % 10 == 9 ? 2 : i, i == 20 ? "" : "some words");
        snprintf(name, sizeof name, "%03d.png", i);
        tar_add(a, name, png, n);
        snprintf(name, sizeof name, "%03d.txt", i);
        tar_add_text(a, name, i == 20 ? "" : "some words");
    }
    fclose(f);
    tar_finish(a);
}

static inline LoaderConfig loading(const AugmentConfig *augment, bool exif_rotate) {
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch_size = BATCH;
    c.workers = 2;
    c.image.size = SIZE;
    c.augment = augment;
    c.image.max_pixels = 20000;
    c.image.exif_rotate = exif_rotate;
    c.shuffle = true;
    c.seed = 5;
    return c;
}

static inline ImageSettings keeping(const LoaderConfig *c) {
    ImageSettings k = c->image;
    if (c->augment) k.size = 0;
    return k;
}

// Empties the account of a data set of one source, as if none of its samples had been read.
static inline void forget_samples(const Dataset *d) {
    Account *a = &d->sources[0].account;
    const int64_t found = a->found;
    account_free(a);
    a->found = found;
    memset(d->passed_over, 0, (size_t)d->count / 8 + 1);
    memset(d->noted, 0, (size_t)d->count / 8 + 1);
}

// A hash of all that two epochs give, skipped samples counted.
static inline uint64_t run(const Dataset *d, const LoaderConfig *c) {
    uint64_t hash = HASH_START;
    forget_samples(d);
    Loader *l = loader_create(d, c);
    Batch b = batch_create(c);
    for (int epoch = 0; epoch < 2; epoch++) {
        loader_start_epoch(l, epoch, 0);
        for (int i = 0; i < BATCHES; i++) {
            const size_t n = (size_t)loader_next(l, &b);
            hash = hash_bytes(hash, b.pixels, n * 3 * SIZE * SIZE);
            hash = hash_bytes(hash, b.indices, n * sizeof *b.indices);
        }
        const int64_t position = loader_position(l);
        hash = hash_bytes(hash, &position, sizeof position);
    }
    const Account *a = &d->sources[0].account;
    hash = hash_bytes(hash, &a->passed_over, sizeof a->passed_over);
    for (size_t i = 0; i < a->count; i++)
        if (a->lines[i].kind == USED) hash = hash_bytes(hash, &a->lines[i].count, sizeof a->lines[i].count);
    batch_free(&b);
    loader_free(l);
    return hash;
}

static inline Dataset open_data(const char *spec) {
    const DatasetConfig c = dataset_config_default();
    return dataset_open(spec, &c, 2);
}

// Are two epochs over the data the same with the cache "kept" as without? *held: images in it afterwards.
static inline bool same_with_cache(const char *spec, const LoaderConfig *c, size_t *held) {
    Dataset d = open_data(spec);
    const ImageSettings k = keeping(c);
    const uint64_t plain = run(&d, c);
    ImageCache cache;
    LoaderConfig cached = *c;
    cached.cache = &cache;
    bool same = image_cache_open(&cache, at("kept"), &d, &k, NULL);
    same = same && run(&d, &cached) == plain;
    *held = cache.count;
    image_cache_close(&cache);
    dataset_free(&d);
    return same;
}

#endif
