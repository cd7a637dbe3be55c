// Checks image_cache.h: batches with and without the file are equal to the bit, whatever changes in the data
// or in the settings from one run to the next. What happens to the file itself: test_image_cache_damage.c.
#include "dev/test/image_cache.h"

static void test_cached_images_give_the_same_batches(
    const char *data, const AugmentConfig *augment, bool exif_rotate) {
    const LoaderConfig c = loading(augment, exif_rotate);
    char spec[PATH_SIZE];
    path_format(spec, "%s/%s", folder, data);
    // 9, 19, 29 and 39 of the table show image 2; one image is broken, one too large, one missing
    const size_t images = ends_with(data, ".csv") ? SAMPLES - 7 : SAMPLES - 2;
    unlink(at("kept"));
    for (int i = 0; i < 2; i++) {
        size_t held;
        EXPECT(same_with_cache(spec, &c, &held), "%s, %s, %s, run %d", spec, augment ? "crops" : "squares",
            exif_rotate ? "turned" : "as they lie", i + 1);
        EXPECT(held == images, "%s: %zu", spec, held);
    }
}

// What the file holds is not read again: the images may be away when the run begins.
static void test_cached_images_are_not_read_again(void) {
    Dataset d = open_data(at("set/t.csv"));
    LoaderConfig c = loading(NULL, false);
    const ImageSettings k = keeping(&c);
    unlink(at("kept"));
    ImageCache cache;
    EXPECT(image_cache_open(&cache, at("kept"), &d, &k, NULL));
    const uint64_t plain = run(&d, &c);
    char from[PATH_SIZE], to[PATH_SIZE];
    for (int away = 0; away < 2; away++) {
        for (int i = 0; i < SAMPLES; i++) {
            path_format(from, "%s/set/%d.%s", folder, i, away ? "away" : "png");
            path_format(to, "%s/set/%d.%s", folder, i, away ? "png" : "away");
            if (i != 12 && rename(from, to)) die(EXIT_RUNTIME, "%s", from);
        }
        c.cache = &cache;
        if (!away) EXPECT(run(&d, &c) == plain);
    }
    image_cache_close(&cache);
    dataset_free(&d);
}

// ---------------------------------------------------------------- what changes between two runs

static void png_file(const char *name, int number, int width, int height) {
    static uint8_t png[1 << 16];
    write_file(at(name), png, make_png(png, sizeof png, number, width, height));
}

// Writes other bytes into the file, as many as before, and sets its time back.
static void overwrite_in_secret(const char *name, const void *data, size_t bytes) {
    struct stat st;
    if (stat(at(name), &st) || (size_t)st.st_size != bytes) die(EXIT_RUNTIME, "%s: not of this size", name);
    write_file(at(name), data, bytes);
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    if (utimensat(AT_FDCWD, at(name), times, 0)) die(EXIT_RUNTIME, "%s: %s", name, strerror(errno));
}

// A shard of 3 pairs whose images are those of the numbers first …; without compression.
static void shard(const char *path, int first, ArchiveOption filter, const char *before) {
    static uint8_t bmp[20000];
    struct archive *a = tar_create(path, archive_write_set_format_ustar, filter);
    char name[32];
    if (before) tar_add_text(a, before, "another member");
    for (int i = 0; i < 3; i++) {
        const size_t n = make_png(bmp, sizeof bmp, first + i, 20, 20);
        memset(bmp + n, 0, 4096 - n); // bytes after the end of a PNG do not count
        snprintf(name, sizeof name, "%d.png", i);
        tar_add(a, name, bmp, 4096);
        snprintf(name, sizeof name, "%d.txt", i);
        tar_add_text(a, name, "words");
    }
    tar_finish(a);
}

static void small_table(const char *rows) {
    char text[1024];
    snprintf(text, sizeof text, "filepath,title\n%s", rows);
    write_text(at("small.csv"), text);
}

static void make_small_set(void) {
    make_directories(at("a"));
    make_directories(at("b"));
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "a/%d.png", i);
        png_file(name, i, 20, 20);
        snprintf(name, sizeof name, "b/%d.png", i);
        png_file(name, 100 + i, 20, 20);
        snprintf(name, sizeof name, "a/%d.txt", i);
        write_text(at(name), "words");
    }
    small_table("a/0.png,x\na/1.png,y\na/2.png,z\na/3.png,missing\n");
    shard(at("s.tar"), 30, archive_write_add_filter_none, NULL);
    shard(at("s.tar.gz"), 40, archive_write_add_filter_gzip, NULL);
    shard(at("p.tar"), 50, archive_write_add_filter_none, NULL);
}

static void nothing(void) {}
static void another_order(void) { small_table("a/2.png,z\na/0.png,x\na/1.png,y\n"); }
static void fewer_rows(void) { small_table("a/2.png,z\na/1.png,y\n"); }
static void rows_twice(void) { small_table("a/0.png,x\na/1.png,y\na/2.png,z\na/0.png,x\na/2.png,w\n"); }
static void another_caption(void) { small_table("a/0.png,xx\na/1.png,yy\na/2.png,zz\n"); }
static void a_new_row(void) { small_table("b/0.png,n\na/0.png,x\na/1.png,y\na/2.png,z\n"); }
static void another_path(void) { small_table("a/0.png,x\nb/1.png,y\na/2.png,z\n"); }
static void paths_swapped(void) { small_table("a/1.png,x\na/0.png,y\na/2.png,z\n"); }
static void a_missing_file_comes(void) { png_file("a/3.png", 7, 20, 20); }
static void another_image(void) { png_file("a/1.png", 77, 22, 22); }
static void other_pixels_of_the_same_size_and_time(void) {
    static uint8_t png[1 << 16];
    struct stat st;
    size_t n = 0;
    if (stat(at("a/1.png"), &st)) die(EXIT_RUNTIME, "a/1.png");
    for (int i = 200; n != (size_t)st.st_size; i++) // one that compresses to the same size
        n = make_png(png, sizeof png, i, 20, 20);
    overwrite_in_secret("a/1.png", png, n);
}
static void files_exchanged(void) {
    if (rename(at("a/0.png"), at("t")) || rename(at("a/1.png"), at("a/0.png")) ||
        rename(at("t"), at("a/1.png")))
        die(EXIT_RUNTIME, "rename");
}
static void another_file_renamed_to_it(void) {
    if (rename(at("b/1.png"), at("a/1.png"))) die(EXIT_RUNTIME, "rename");
}
static void other_members_of_the_same_size_and_time(void) {
    size_t bytes;
    shard(at("t.tar"), 60, archive_write_add_filter_none, NULL);
    char *other = file_read_all(at("t.tar"), &bytes);
    overwrite_in_secret("s.tar", other, bytes);
    free(other);
}
static void a_member_before_the_others(void) {
    shard(at("s.tar"), 30, archive_write_add_filter_none, "0.json");
}
static void another_compressed_shard(void) {
    shard(at("s.tar.gz"), 41, archive_write_add_filter_gzip, NULL); // two images of three are the same
}
static void another_output_of_the_command(void) {
    shard(at("p.tar"), 51, archive_write_add_filter_none, NULL);
}

// One ingredient of the data changed alone: how many images must be decoded and added. The batches are those
// without the cache in any case.
static const struct {
    const char *what;
    const char *data; // in the folder
    void (*change)(void);
    size_t added;
} changes[] = {
    {"nothing", "small.csv", nothing, 0},
    {"the order of the rows", "small.csv", another_order, 0},
    {"fewer rows", "small.csv", fewer_rows, 0},
    {"rows that repeat", "small.csv", rows_twice, 0},
    {"the captions", "small.csv", another_caption, 0},
    {"a row is added in front", "small.csv", a_new_row, 1},
    {"a row names another image", "small.csv", another_path, 1},
    {"two rows exchange their images", "small.csv", paths_swapped, 0},
    {"a missing file is there", "small.csv", a_missing_file_comes, 1},
    {"an image is replaced", "small.csv", another_image, 1},
    {"an image is overwritten, size and time as before", "small.csv", other_pixels_of_the_same_size_and_time,
        1},
    {"two files exchange their names", "small.csv", files_exchanged, 2},
    {"another file takes the name", "small.csv", another_file_renamed_to_it, 1},
    {"folder: an image is replaced", "a", another_image, 1},
    {"folder: the same size and time", "a", other_pixels_of_the_same_size_and_time, 1},
    {"shard: nothing", "s.tar", nothing, 0},
    {"shard: other bytes, size and time as before", "s.tar", other_members_of_the_same_size_and_time, 3},
    {"shard: a member in front", "s.tar", a_member_before_the_others, 3},
    {"compressed shard: nothing", "s.tar.gz", nothing, 0},
    {"compressed shard: other images", "s.tar.gz", another_compressed_shard, 1},
    {"command: nothing", "pipe", nothing, 0},
    {"command: other output", "pipe", another_output_of_the_command, 1},
};

static void test_each_ingredient_of_the_data_changed_alone(void) {
    char spec[PATH_SIZE];
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        size_t before, after;
        const LoaderConfig c = loading(NULL, false);
        const bool pipe = strcmp(changes[i].data, "pipe") == 0;
        path_format(spec, "%s%s/%s", pipe ? "pipe:cat " : "", folder, pipe ? "p.tar" : changes[i].data);
        make_small_set();
        unlink(at("kept"));
        EXPECT(same_with_cache(spec, &c, &before) && before == 3, "%s: %zu", changes[i].what, before);
        changes[i].change();
        EXPECT(
            same_with_cache(spec, &c, &after), "%s: other batches than without the cache", changes[i].what);
        EXPECT(after - before == changes[i].added, "%s: %zu added", changes[i].what, after - before);
        unlink(at("a/3.png"));
    }
}

// The same relative paths from another working directory are other files.
static void test_relative_paths_are_those_of_the_working_directory(void) {
    size_t held;
    const LoaderConfig c = loading(NULL, false);
    char here[PATH_SIZE], table[PATH_SIZE];
    path_format(table, "%s/c/t.csv", folder);
    if (!getcwd(here, sizeof here)) die(EXIT_RUNTIME, "getcwd");
    make_small_set();
    unlink(at("kept"));
    make_directories(at("c"));
    write_text(table, "filepath,title\n0.png,x\n1.png,y\n2.png,z\n");
    for (int i = 0; i < 2; i++) {
        if (chdir(at(i ? "b" : "a"))) die(EXIT_RUNTIME, "chdir");
        EXPECT(same_with_cache(table, &c, &held) && held == (size_t)(i ? 6 : 3), "%zu", held);
    }
    if (chdir(here)) die(EXIT_RUNTIME, "chdir");
}

typedef struct {
    const Dataset *d;
    ImageSettings k;
} OpenFile;

static void open_file(const void *argument) {
    const OpenFile *o = (const OpenFile *)argument;
    ImageCache cache;
    image_cache_open(&cache, at("kept"), o->d, &o->k, NULL);
    image_cache_close(&cache);
}

// Comes before anything has started OpenMP's threads, which a child does not inherit.
static void test_each_setting_changed_alone_is_refused(void) {
    static const char *const names[] = {"image size or --aug-cfg", "image size or --aug-cfg", "interpolation",
        "resize mode", "--exif-rotate", "--max-image-pixels"};
    Dataset d = open_data(at("set/t.csv"));
    const LoaderConfig c = loading(NULL, false);
    const OpenFile good = {&d, keeping(&c)};
    EXPECT(child_run(open_file, &good) == 0 && child_run(open_file, &good) == 0 && !child.text[0], "%s",
        child.text);
    for (int i = 0; i < 6; i++) {
        OpenFile o = good;
        char says[128];
        if (i == 0) o.k.size = 32;
        if (i == 1) o.k.size = 0;
        if (i == 2) o.k.interpolation = INTERPOLATION_BILINEAR;
        if (i == 3) o.k.resize_mode = RESIZE_SQUASH;
        if (i == 4) o.k.exif_rotate = true;
        if (i == 5) o.k.max_pixels = 30000;
        snprintf(says, sizeof says, "kept: holds images made with another %s; remove it, or", names[i]);
        EXPECT_REFUSED(open_file, &o, says);
    }
    EXPECT(child_run(open_file, &good) == 0);
    dataset_free(&d);
}

int main(void) {
    AugmentConfig crops = augment_of("scale=0.5,1.0 color_jitter=0.4,0.4,0.4,0.1");
    make_test_folder("test_image_cache");
    make_data();
    RUN(test_each_setting_changed_alone_is_refused);
    for (int i = 0; i < 8; i++)
        RUN(test_cached_images_give_the_same_batches, i & 1 ? "set/t.csv" : "set/s0.tar",
            i & 2 ? &crops : NULL, i & 4);
    RUN(test_cached_images_are_not_read_again);
    RUN(test_each_ingredient_of_the_data_changed_alone);
    RUN(test_relative_paths_are_those_of_the_working_directory);
    remove_test_folder();
    return test_report();
}
