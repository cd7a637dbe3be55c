// Checks image_cache.h: batches with and without the file are equal to the bit, other data and damaged files
// are refused, and what is not finished leaves no file.
#include "dev/test/data_files.h"

#include "clipc/data/dataloader.h" // Loader

#include <sys/resource.h>

enum { SAMPLES = 41, SIZE = 24, BATCH = 7, BATCHES = 13 };

// 41 rows of a table, in each of two shards as many samples: images of all sizes, some of them broken,
// missing, too large, turned or shared.
static void make_data(void) {
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

static LoaderConfig loading(const AugmentConfig *augment, bool exif_rotate) {
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

static ImageSettings keeping(const LoaderConfig *c) {
    ImageSettings k = c->image;
    if (c->augment) k.size = 0;
    return k;
}

// A hash of all that two epochs give, skipped samples counted.
static uint64_t run(const Dataset *d, const LoaderConfig *c) {
    uint64_t hash = HASH_START;
    Loader *l = loader_create(d, c);
    Batch b = batch_create(c);
    for (int epoch = 0; epoch < 2; epoch++) {
        loader_start_epoch(l, epoch, 0);
        for (int i = 0; i < BATCHES; i++) {
            const size_t n = (size_t)loader_next(l, &b);
            hash = hash_bytes(hash, b.pixels, n * 3 * SIZE * SIZE);
            hash = hash_bytes(hash, b.indices, n * sizeof *b.indices);
        }
        const int64_t seen[3] = {loader_position(l), loader_skipped(l), l->rotated};
        hash = hash_bytes(hash, seen, sizeof seen);
    }
    batch_free(&b);
    loader_free(l);
    return hash;
}

static void test_cached_images_give_the_same_batches(
    const char *spec, const AugmentConfig *augment, bool exif_rotate) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(spec, &dc, 2);
    LoaderConfig c = loading(augment, exif_rotate);
    const ImageSettings k = keeping(&c);
    const uint64_t plain = run(&d, &c);
    const char *path = at("kept");
    EXPECT(image_cache_make(path, &d, &k, NULL));
    ImageCache cache = image_cache_open(path, &d, &k);
    c.cache = &cache;
    EXPECT(run(&d, &c) == plain, "%s, %s, %s", spec, augment ? "crops" : "squares",
        exif_rotate ? "turned" : "as they lie");
    int good = 0, own = 0;
    for (int i = 0; i < SAMPLES; i++) {
        const ImageEntry *e = &cache.entries[i];
        good += e->status == SAMPLE_OK;
        bool shared = false;
        for (int j = 0; j < i; j++)
            shared = shared || (cache.entries[j].offset == e->offset && cache.entries[j].status == SAMPLE_OK);
        own += e->status == SAMPLE_OK && !shared;
    }
    const bool table = ends_with(spec, ".csv");
    EXPECT(good == SAMPLES - (table ? 3 : 2) && own == good - (table ? 4 : 0), "%d good, %d of their own",
        good, own); // 9, 19, 29 and 39 show image 2
    image_cache_close(&cache);
    unlink(path);
    dataset_free(&d);
}

// Where the file is there, no image is read.
static void test_cached_images_are_not_read_again(void) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("set/t.csv"), &dc, 2);
    LoaderConfig c = loading(NULL, false);
    const ImageSettings k = keeping(&c);
    const char *path = at("kept");
    EXPECT(image_cache_make(path, &d, &k, NULL));
    ImageCache cache = image_cache_open(path, &d, &k);
    const uint64_t plain = run(&d, &c);
    char from[PATH_SIZE], to[PATH_SIZE];
    for (int i = 0; i < SAMPLES; i++) {
        path_format(from, "%s/set/%d.png", folder, i);
        path_format(to, "%s/set/%d.away", folder, i);
        if (i != 12 && rename(from, to)) die(EXIT_RUNTIME, "%s", from);
    }
    c.cache = &cache;
    EXPECT(run(&d, &c) == plain);
    for (int i = 0; i < SAMPLES; i++) {
        path_format(from, "%s/set/%d.away", folder, i);
        path_format(to, "%s/set/%d.png", folder, i);
        if (i != 12 && rename(from, to)) die(EXIT_RUNTIME, "%s", from);
    }
    image_cache_close(&cache);
    dataset_free(&d);
}

// ---------------------------------------------------------------- what is refused

typedef struct {
    const Dataset *d;
    ImageSettings k;
} OpenFile;

static void open_file(const void *argument) {
    const OpenFile *o = (const OpenFile *)argument;
    image_cache_open(at("kept"), o->d, &o->k);
}

static void make_on_full_disk(const void *argument) {
    const OpenFile *o = (const OpenFile *)argument;
    const struct rlimit limit = {20000, 20000};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    image_cache_make(at("kept"), o->d, &o->k, NULL);
}

static void make_file(const void *argument) {
    const OpenFile *o = (const OpenFile *)argument;
    image_cache_make(at("kept"), o->d, &o->k, NULL);
}

static void overwrite(size_t offset, const void *bytes, size_t n) {
    FILE *f = fopen_check(at("kept"), "r+b");
    fseek(f, (long)offset, SEEK_SET);
    fwrite_check(bytes, n, f, "kept");
    fclose(f);
}

// The file is made by children: what they inherit of OpenMP's threads does not run, so this comes before
// anything else has started them.
static void test_wrong_or_damaged_files_are_refused(void) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("set/t.csv"), &dc, 2), other = dataset_open(at("set/s0.tar"), &dc, 2);
    LoaderConfig c = loading(NULL, false);
    const OpenFile good = {&d, keeping(&c)};
    const int code = child_run(make_on_full_disk, &good);
    EXPECT(code == EXIT_RUNTIME && strstr(child.text, "kept: cannot write (") && !file_exists(at("kept")) &&
               !file_exists(at("kept.part")),
        "%d: %s", code, child.text);
    EXPECT(child_run(make_file, &good) == 0 && child_run(open_file, &good) == 0);
    for (int i = 0; i < 7; i++) {
        OpenFile o = good;
        if (i == 0) o.k.size = 32;
        if (i == 1) o.k.size = 0;
        if (i == 2) o.k.interpolation = INTERPOLATION_BILINEAR;
        if (i == 3) o.k.resize_mode = RESIZE_SQUASH;
        if (i == 4) o.k.exif_rotate = true;
        if (i == 5) o.k.max_pixels = 30000;
        if (i == 6) o.d = &other;
        EXPECT_REFUSED(
            open_file, &o, "holds the images of other data, or for other image settings; remove it");
    }
    const int64_t first = d.samples[0].image; // the same samples in another order
    d.samples[0].image = d.samples[1].image;
    d.samples[1].image = first;
    EXPECT_REFUSED(open_file, &good, "other data");
    d.samples[1].image = d.samples[0].image;
    d.samples[0].image = first;
    EXPECT(child_run(open_file, &good) == 0);

    size_t bytes;
    char *whole = file_read_all(at("kept"), &bytes);
    const size_t last = bytes - sizeof(ImageEntry);
    const int64_t far = (int64_t)bytes - 100, negative = -5;
    const int32_t wide = 1 << 30, unknown = 1000;
    overwrite(last + offsetof(ImageEntry, offset), &far, sizeof far);
    EXPECT_REFUSED(open_file, &good, "is damaged; remove it");
    overwrite(last + offsetof(ImageEntry, offset), &negative, sizeof negative);
    EXPECT_REFUSED(open_file, &good, "is damaged; remove it");
    write_file(at("kept"), whole, bytes);
    overwrite(last + offsetof(ImageEntry, width), &wide, sizeof wide);
    EXPECT_REFUSED(open_file, &good, "is damaged; remove it");
    write_file(at("kept"), whole, bytes);
    overwrite(last + offsetof(ImageEntry, status), &unknown, sizeof unknown);
    EXPECT_REFUSED(open_file, &good, "is damaged; remove it");
    write_file(at("kept"), whole, 100);
    EXPECT_REFUSED(open_file, &good, "is not complete; remove it");
    write_file(at("kept"), whole, 10);
    EXPECT_REFUSED(open_file, &good, "is not a file of images");
    write_text(at("kept"), "something else that is long enough for a header");
    EXPECT_REFUSED(open_file, &good, "is not a file of images; give --cache-images another name");
    free(whole);
    dataset_free(&d);
    dataset_free(&other);
}

static void test_interrupted_cache_leaves_no_file(void) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("set/t.csv"), &dc, 2);
    LoaderConfig c = loading(NULL, false);
    const ImageSettings k = keeping(&c);
    const volatile sig_atomic_t interrupted = 1;
    EXPECT(!image_cache_make(at("never"), &d, &k, &interrupted) && !file_exists(at("never")) &&
           !file_exists(at("never.part")));
    dataset_free(&d);
}

int main(void) {
    AugmentConfig crops;
    char error[256];
    augment_parse(&crops, "scale=0.5,1.0 color_jitter=0.4,0.4,0.4,0.1", error);
    make_test_folder("test_image_cache");
    make_data();
    RUN(test_wrong_or_damaged_files_are_refused);
    RUN(test_interrupted_cache_leaves_no_file);
    for (int i = 0; i < 8; i++)
        RUN(test_cached_images_give_the_same_batches, i & 1 ? at("set/t.csv") : at("set/s0.tar"),
            i & 2 ? &crops : NULL, i & 4);
    RUN(test_cached_images_are_not_read_again);
    remove_test_folder();
    return test_report();
}
