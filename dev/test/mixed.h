// For tests of mixed data: sources of three kinds in the test folder, and what a loader gives of them.
#ifndef CLIPC_TEST_MIXED_H
#define CLIPC_TEST_MIXED_H

#include "dev/test/data_files.h"

enum { SIZE = 6, CONTEXT = 16, CSV = 30, TAR = 20, FOLDER = 10, ALL = CSV + TAR + FOLDER };

static Tokenizer *tokenizer;
static char mixed[3 * PATH_SIZE]; // CSV::TAR::FOLDER

static inline char *join(char *out, const char *a, const char *b) {
    snprintf(out, 2 * PATH_SIZE, "%s::%s", a, b);
    return out;
}

// 30 rows in 3 groups of 10 and with 15 captions, 20 samples in a shard with 4 classes, 10 images in a
// folder.
static inline void make_sources(void) {
    static uint8_t png[1 << 14];
    char name[64], text[64];
    struct archive *a;
    make_directories(at("m"));
    make_directories(at("f/deep"));
    FILE *f = fopen_check(at("m/m.csv"), "w");
    fprintf(f, "filepath,title,group,label\n");
    for (int i = 0; i < CSV; i++) {
        size_t n = make_png(png, sizeof png, i, 9 + i % 4, 8);
        snprintf(name, sizeof name, "m/%d.png", i);
        write_file(at(name), png, n);
        fprintf(f, "%d.png,%s %d,%s,%d\n", i, i % 2 ? " of   ROW" : "of row", i / 2,
            i % 5 == 4 ? ""
            : i % 3    ? "some"
                       : "none",
            i % 7);
    }
    fclose(f);
    tar_plain(at("m.tar"), &a);
    for (int i = 0; i < TAR; i++) {
        size_t n = make_png(png, sizeof png, 100 + i, 8, 9);
        snprintf(name, sizeof name, "%02d.png", i);
        tar_add(a, name, png, n);
        snprintf(name, sizeof name, "%02d.txt", i);
        snprintf(text, sizeof text, "of row %d", i);
        tar_add_text(a, name, text);
        snprintf(name, sizeof name, "%02d.cls", i);
        snprintf(text, sizeof text, "%d", i % 4);
        tar_add_text(a, name, text);
    }
    tar_finish(a);
    for (int i = 0; i < FOLDER; i++) {
        size_t n = make_png(png, sizeof png, 200 + i, 7, 7);
        snprintf(name, sizeof name, "f/%s%d.png", i % 2 ? "deep/" : "", i);
        write_file(at(name), png, n);
        strcpy(name + strlen(name) - 3, "txt");
        snprintf(text, sizeof text, "in folder %d", i);
        write_text(at(name), text);
    }
    snprintf(mixed, sizeof mixed, "%s::%s::%s", at("m/m.csv"), at("m.tar"), at("f"));
}

static inline LoaderConfig loader_config(int workers) {
    static AugmentConfig augment;
    augment = augment_of("scale=0.4,1.0");
    LoaderConfig c = small_batches(workers, SIZE, &augment);
    c.tokenizer = tokenizer;
    c.context = CONTEXT;
    return c;
}

typedef struct {
    int64_t indices[512], positions[64]; // of the samples; after each batch
    uint64_t keys[512], hashes[64];      // of the samples; of each batch
    int tokens[512 * CONTEXT];
    uint64_t pixels[512]; // their hashes
    int count;
} Seen;

// `batches` of an epoch from a position on.
static inline void run_epoch(
    Seen *seen, const Dataset *d, const LoaderConfig *c, int64_t epoch, int64_t position, int batches) {
    Loader *l = loader_create(d, c);
    Batch b = batch_create(c);
    loader_start_epoch(l, epoch, position);
    seen->count = 0;
    for (int i = 0; i < batches; i++) {
        const int n = loader_next(l, &b);
        uint64_t hash = hash_bytes(HASH_START, b.pixels, (size_t)n * 3 * SIZE * SIZE);
        hash = hash_bytes(hash, b.tokens, (size_t)n * CONTEXT * sizeof(int));
        hash = hash_bytes(hash, b.labels, (size_t)n * sizeof(int));
        for (int k = 0; k < n; k++) {
            seen->indices[seen->count] = b.indices[k];
            seen->keys[seen->count] = b.keys[k];
            seen->pixels[seen->count] =
                hash_bytes(HASH_START, b.pixels + (size_t)k * 3 * SIZE * SIZE, 3 * SIZE * SIZE);
            memcpy(seen->tokens + seen->count++ * CONTEXT, b.tokens + k * CONTEXT, CONTEXT * sizeof(int));
        }
        hash = hash_bytes(hash, b.keys, (size_t)n * sizeof(uint64_t));
        seen->hashes[i] = hash_bytes(hash, b.indices, (size_t)n * sizeof(int64_t));
        seen->positions[i] = loader_position(l);
    }
    batch_free(&b);
    loader_free(l);
}

// Of the samples that were seen again, how many had the same pixels? In *repeated how many those are.
static inline int same_pixels(const Seen *seen, int *repeated) {
    int equal = 0;
    *repeated = 0;
    for (int i = 0; i < seen->count; i++)
        for (int k = 0; k < i; k++)
            if (seen->indices[i] == seen->indices[k]) {
                ++*repeated;
                equal += seen->pixels[i] == seen->pixels[k];
            }
    return equal;
}

// The same for any number of workers, and when resumed after any `step` batches.
static inline void expect_reproducible(
    const Dataset *d, LoaderConfig c, int64_t epoch, int batches, int step) {
    static Seen whole, again;
    c.workers = 1;
    run_epoch(&whole, d, &c, epoch, 0, batches);
    for (int workers = 2; workers < 6; workers += 3) {
        c.workers = workers;
        run_epoch(&again, d, &c, epoch, 0, batches);
        EXPECT(!memcmp(again.hashes, whole.hashes, (size_t)batches * sizeof *again.hashes), "%d workers",
            workers);
    }
    for (int done = step; done < batches; done += step) {
        run_epoch(&again, d, &c, epoch, whole.positions[done - 1], batches - done);
        EXPECT(!memcmp(again.hashes, whole.hashes + done, (size_t)(batches - done) * sizeof *again.hashes),
            "from batch %d", done);
        EXPECT(again.positions[batches - done - 1] == whole.positions[batches - 1]);
    }
}

static inline void make_mixed_folder(const char *name) {
    char error[256];
    make_test_folder(name);
    tokenizer = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    if (!tokenizer) die(EXIT_RUNTIME, "tokenizer: %s", error);
    make_sources();
}

static inline void remove_mixed_folder(void) {
    tokenizer_free(tokenizer);
    remove_test_folder();
}

#endif
