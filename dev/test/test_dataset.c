// The forms of a data set: tar shards, folders (webdataset.h, dataset.h, sample.h), its order and its split
// (order.h), on files in a temporary folder. Tables are in test_csv.c.
#include "dev/test/data_files.h"

// ---------------------------------------------------------------- tar

// Names of every length class, each with an image of its own size; the captions say which.
static void test_tar_format(const char *file, ArchiveOption format, ArchiveOption filter, int longest) {
    struct archive *a = tar_create(at(file), format, filter);
    const int lengths[] = {1, 90, 99, 100, 101, 240, 300, 1000, 5};
    char name[1100], text[64];
    uint8_t data[3000];
    int samples = 0;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        if (lengths[i] > longest) continue;
        int n = 0;
        const char *letter = i == 8 ? "\xc3\xa9" : i % 2 ? "k" : "m";
        while (n < lengths[i])
            n += snprintf(
                name + n, sizeof name - (size_t)n, "%s", n % 50 == 49 && n + 1 < lengths[i] ? "/" : letter);
        snprintf(name + n, sizeof name - (size_t)n, "%d.jpg", (int)i);
        size_t bytes =
            700 * i % 2999; // also none, 512·k ± 1 does not matter: every offset follows from the one before
        memset(data, (int)i + 1, sizeof data);
        tar_add(a, name, data, bytes);
        strcpy(name + strlen(name) - 3, "txt");
        snprintf(text, sizeof text, "caption %d", (int)i);
        tar_add_text(a, name, text);
        samples++;
    }
    tar_finish(a);
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_open(at(file), &c, 1);
    SampleBuffers b = {0};
    EXPECT(dataset_count(&d) == samples, "%s: %d of %d", file, (int)dataset_count(&d), samples);
    EXPECT((d.spill_fd >= 0) == (filter != archive_write_add_filter_none));
    for (int64_t i = d.count - 1; i >= 0; i--) { // any order
        char caption[64];
        SampleStatus status = read_sample(&d, i, &b, caption, sizeof caption);
        int number = atoi(caption + 8);
        bool same = b.image.bytes == (size_t)(700 * number % 2999);
        for (size_t k = 0; k < b.image.bytes && same; k++) same = b.image.data[k] == number + 1;
        EXPECT(status == SAMPLE_OK && same, "%s: %s", file, caption);
    }
    sample_buffers_free(&b);
    dataset_free(&d);
}

static void test_tar_of_every_format_is_read(void) {
    test_tar_format("ustar.tar", archive_write_set_format_ustar, archive_write_add_filter_none, 250);
    test_tar_format("pax.tar", archive_write_set_format_pax, archive_write_add_filter_none, 1000);
    test_tar_format("gnu.tar", archive_write_set_format_gnutar, archive_write_add_filter_none, 1000);
    test_tar_format("v7.tar", archive_write_set_format_v7tar, archive_write_add_filter_none, 90);
    test_tar_format("pax.tar.gz", archive_write_set_format_pax, archive_write_add_filter_gzip, 1000);
    test_tar_format("gnu.tgz", archive_write_set_format_gnutar, archive_write_add_filter_gzip, 1000);
    test_tar_format("ustar.tar.xz", archive_write_set_format_ustar, archive_write_add_filter_xz, 250);
    test_tar_format("ustar.tar.zst", archive_write_set_format_ustar, archive_write_add_filter_zstd, 250);
    test_tar_format("compressed.tar", archive_write_set_format_ustar, archive_write_add_filter_bzip2,
        250); // recognised by content
}

static void test_key_of_a_member_ends_at_the_first_dot_of_its_base_name(void) {
    static const struct {
        const char *name;
        size_t length;
    } cases[] = {
        {"a.jpg", 1}, {"d.x/a.jpg", 5}, {"d./a.jpg", 4}, {"d/a.b.jpg", 3}, {"d/.a.jpg", 0}, {"d.x/a", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        EXPECT(member_key_length(cases[i].name) == cases[i].length, "%s", cases[i].name);
}

static void test_tar_members_become_samples(void) {
    struct archive *a;
    tar_plain(at("kinds.tar"), &a);
    tar_add_text(a, "README.md", "no sample");
    tar_add_text(a, ".hidden", "no sample");
    tar_add_text(a, "nodot", "no sample");
    tar_add_text(a, "d.x/a.png", "png");
    tar_add_text(a, "d.x/a.JPG", "jpg");
    tar_add_text(a, "d.x/a.txt", "best first\n"); // the order of --image-key
    tar_add_text(a, "b.txt", "caption first");
    tar_add_text(a, "b.cls", " 2\n");
    tar_add_text(a, "b.webp", "w");
    tar_add_text(a, "b.json", "{\"text\": \"of json\"}");
    tar_add_text(a, "c.seg.jpg", "another kind");
    tar_add_text(a, "c.txt", "no image");
    tar_add_text(a, "e.jpg", "e");
    tar_add_text(a, "e.json", "[1]");
    tar_add_text(a, "f.jpg", "f");
    tar_add_text(a, "f.txt", " \n");
    tar_add_text(a, "f.json", "{\"text\": 5}");
    tar_add_text(a, "g.jpg", "g1");
    tar_add_text(a, "g.txt", "twice 1");
    tar_add_text(a, "g.jpg", "g2");
    tar_add_text(a, "g.txt", "twice 2"); // LAION-400M
    tar_add_text(a, "h.jpeg", "");
    tar_add_text(a, "h.txt", "zero bytes");
    tar_add_text(a, "h.cls", "dog");
    tar_add_text(a, "h.json", "{\"text\": \"\\u00e9\\u0000x\"}");
    tar_add_text(a, "i.jpg", "i");
    tar_add_text(a, "i.json", "{broken");
    tar_finish(a);
    const char *const classnames[3] = {"cat", "dog", "bird"};
    DatasetConfig c = dataset_config_default();
    c.classnames = classnames;
    c.classname_count = 3;
    Dataset d = dataset_open(at("kinds.tar"), &c, 1);
    SampleBuffers b = {0};
    EXPECT(dataset_count(&d) == 9, "%d", (int)dataset_count(&d));
    EXPECT_CAPTION(&d, 0, &b, "best first\n");
    EXPECT(b.image.bytes == 3 && !memcmp(b.image.data, "jpg", 3) && b.label == -1);
    char origin[256];
    dataset_origin(&d, 0, origin, sizeof origin);
    EXPECT(ends_with(origin, "kinds.tar:d.x/a.JPG"), "%s", origin);
    EXPECT_CAPTION(&d, 1, &b, "caption first");
    EXPECT(b.label == 2 && b.image.bytes == 1);
    EXPECT_STATUS(&d, 2, &b, SAMPLE_NO_IMAGE);
    EXPECT_STATUS(&d, 3, &b, SAMPLE_NO_CAPTION);
    EXPECT_STATUS(&d, 4, &b, SAMPLE_EMPTY_CAPTION);
    EXPECT_CAPTION(&d, 5, &b, "twice 1");
    EXPECT_CAPTION(&d, 6, &b, "twice 2");
    EXPECT(b.image.bytes == 2 && b.image.data[1] == '2');
    EXPECT_CAPTION(&d, 7, &b, "zero bytes");
    EXPECT(b.image.bytes == 0 && b.label == 1);
    dataset_free(&d);

    c.json_text_key = "text";
    d = dataset_open(at("kinds.tar"), &c, 1);
    EXPECT_CAPTION(&d, 1, &b, "of json");
    EXPECT_STATUS(
        &d, 2, &b, SAMPLE_NO_CAPTION); // e.json is not an object; c has neither image nor JSON: not a sample
    EXPECT_STATUS(&d, 3, &b, SAMPLE_NO_CAPTION);
    EXPECT_STATUS(&d, 6, &b, SAMPLE_NOT_UTF8); // a NUL
    EXPECT_STATUS(&d, 7, &b, SAMPLE_BAD_JSON);
    dataset_free(&d);
    sample_buffers_free(&b);
}

// A member with a hole is stored without it, next to one that is stored as it is.
static void test_tar_member_with_a_hole_is_unpacked(void) {
    static char data[40960];
    struct archive *a =
        tar_create(at("sparse.tar"), archive_write_set_format_pax, archive_write_add_filter_none);
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, "a.jpg");
    archive_entry_set_size(e, sizeof data);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_sparse_add_entry(e, 0, 4096);
    archive_entry_sparse_add_entry(e, 36864, 4096);
    memset(data, 'x', 4096);
    memset(data + 36864, 'y', 4096);
    if (archive_write_header(a, e) != ARCHIVE_OK || archive_write_data(a, data, sizeof data) < 0)
        die(EXIT_RUNTIME, "%s", archive_error_string(a));
    archive_entry_free(e);
    tar_add_text(a, "a.txt", "with a hole");
    tar_add_text(a, "b.jpg", "plain");
    tar_add_text(a, "b.txt", "without");
    tar_finish(a);
    struct stat st;
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_open(at("sparse.tar"), &c, 2);
    SampleBuffers b = {0};
    EXPECT(!stat(at("sparse.tar"), &st) && st.st_size < (off_t)sizeof data && d.spill_fd >= 0, "%d",
        (int)st.st_size);
    EXPECT_CAPTION(&d, 1, &b, "without");
    EXPECT_CAPTION(&d, 0, &b, "with a hole");
    EXPECT(b.image.bytes == sizeof data && !memcmp(b.image.data, data, sizeof data));
    sample_buffers_free(&b);
    dataset_free(&d);
}

// Indexes a shard that may be broken, reads what there is; returns the number of samples.
static int64_t read_any_shard(const char *path, int *readable) {
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_new(&c);
    SampleBuffers b = {0};
    dataset_add_source(&d, path, DATASET_WEBDATASET);
    dataset_add_shard(&d, 0, path, false);
    *readable = 0;
    for (int64_t i = 0; i < d.count; i++) *readable += dataset_read(&d, i, &b) == SAMPLE_OK;
    int64_t count = d.count;
    sample_buffers_free(&b);
    dataset_free(&d);
    return count;
}

static void broken_shard_case(const void *path) {
    int readable;
    read_any_shard((const char *)path, &readable);
}

static void test_tar_that_is_broken_gives_what_is_whole(void) {
    struct archive *a;
    char name[32];
    tar_plain(at("whole.tar"), &a);
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "%d.jpg", i);
        tar_add(a, name, "0123456789", 10);
        snprintf(name, sizeof name, "%d.txt", i);
        tar_add_text(a, name, "caption");
    }
    tar_finish(a);
    size_t bytes;
    char *whole = file_read_all(at("whole.tar"), &bytes);
    write_file(at("cut.tar"), whole, 2 * 2048 + 512 + 5); // within the third image
    EXPECT(child_run(broken_shard_case, at("cut.tar")) == 0);
    EXPECT(strstr(child.text, "cut.tar: broken shard (the file ends within 2.jpg); 2 samples can be read"),
        "%s", child.text);
    OpenCase c = open_of(at("a.tar::b.tar"));
    EXPECT_REFUSED(open_case, &c, "no such shard");
    write_text(at("zero.tar"), "");
    write_text(at("garbage.tar"), "this is not a tar file at all, whatever its name says");
    c = open_of(at("{zero,garbage}.tar"));
    EXPECT(child_run(open_case, &c) == EXIT_USAGE && strstr(child.text, "zero.tar: broken shard") &&
               strstr(child.text, "garbage.tar: broken shard") && strstr(child.text, "the data set is empty"),
        "%s", child.text);
    mkfifo(at("fifo.tar"), 0600);
    c = open_of(at("fifo.tar"));
    EXPECT(
        child_run(open_case, &c) == EXIT_USAGE && strstr(child.text, "it is not a file"), "%s", child.text);

    int saved = dup(STDERR_FILENO), nowhere = open("/dev/null", O_WRONLY),
        readable; // the lines of hundreds of broken shards are of no interest
    dup2(nowhere, STDERR_FILENO);
    close(nowhere);
    for (size_t cut = 0; cut <= bytes; cut += cut < 5000 ? 100 : 1000) {
        write_file(at("cut.tar"), whole, cut);
        int64_t samples = read_any_shard(at("cut.tar"), &readable);
        int complete = (int)(cut / 2048) < 6
                           ? (int)(cut / 2048)
                           : 6; // a sample has 4 blocks; the padding of the last may be missing
        EXPECT(readable >= complete && readable <= complete + 1 && samples <= complete + 1,
            "cut at %d: %d of %d", (int)cut, readable, (int)samples);
    }
    for (int compressed = 0; compressed < 2;
         compressed++) { // bytes changed at random, also in a compressed shard
        size_t n;
        char *good = file_read_all(at(compressed ? "pax.tar.gz" : "pax.tar"), &n);
        for (int round = 0; round < 300; round++) {
            Rand r = rand_for(2, (uint64_t)round, (uint64_t)compressed);
            char *bad = (char *)memcpy(malloc_check(n), good, n);
            for (uint64_t k = 1 + rand_below(&r, 8); k > 0; k--) bad[rand_below(&r, n)] = (char)rand_u64(&r);
            write_file(at("bad.tar"), bad, round % 3 ? n : rand_below(&r, n));
            EXPECT(read_any_shard(at("bad.tar"), &readable) >= readable);
            free(bad);
        }
        free(good);
    }
    dup2(saved, STDERR_FILENO);
    close(saved);

    write_file(at("shrinks.tar"), whole, bytes); // a shard that becomes shorter after the list was made
    DatasetConfig config = dataset_config_default();
    Dataset d = dataset_open(at("shrinks.tar"), &config, 1);
    SampleBuffers b = {0};
    if (truncate(at("shrinks.tar"), 4096)) die(EXIT_RUNTIME, "truncate");
    EXPECT_STATUS(&d, 0, &b, SAMPLE_OK);
    EXPECT_STATUS(&d, 5, &b, SAMPLE_UNREADABLE);
    sample_buffers_free(&b);
    unlink(at("shrinks.tar"));
    EXPECT_STATUS(&d, 1, &b, SAMPLE_MISSING);
    sample_buffers_free(&b);
    dataset_free(&d);
    free(whole);
}

// ---------------------------------------------------------------- folders

typedef struct {
    const char *root;
    DatasetConfig config;
} ClassCase;

static void class_case(const void *argument) {
    const ClassCase *c = (const ClassCase *)argument;
    Dataset d = dataset_open_class_folders(c->root, &c->config);
    dataset_free(&d);
}

static void test_folder_of_images_becomes_samples(void) {
    make_directories(at("tree/a/deep/er"));
    make_directories(at("tree/.git"));
    const char *const images[] = {"tree/b.PNG", "tree/a/deep/er/x.jpg", "tree/a/y.jpeg", "tree/a.webp",
        "tree/.git/z.png", "tree/.hidden.png"};
    for (int i = 0; i < 6; i++) write_text(at(images[i]), "image");
    write_text(at("tree/b.txt"), "of b\n");
    write_text(at("tree/a/deep/er/x.txt"), "of x");
    write_text(at("tree/a/y.txt"), " ");
    write_text(at("tree/c.txt"), "alone");
    if (symlink("..", at("tree/a/up")) || symlink("nowhere.png", at("tree/z.png")))
        die(EXIT_RUNTIME, "symlink");
    write_text(at("tree/z.txt"), "of a dead link");
    DatasetConfig c = dataset_config_default();
    char root[PATH_SIZE];
    path_format(root, "%s//", at("tree"));
    Dataset d = dataset_open(root, &c, 2);
    SampleBuffers b = {0};
    EXPECT(dataset_count(&d) == 5, "%d",
        (int)dataset_count(&d)); // byte order: a.webp, a/deep/er/x.jpg, a/y.jpeg, b.PNG, z.png
    EXPECT_STATUS(&d, 0, &b, SAMPLE_NO_CAPTION);
    EXPECT_CAPTION(&d, 1, &b, "of x");
    EXPECT_STATUS(&d, 2, &b, SAMPLE_EMPTY_CAPTION);
    EXPECT_CAPTION(&d, 3, &b, "of b\n");
    EXPECT_STATUS(&d, 4, &b, SAMPLE_MISSING);
    dataset_free(&d);
    c.need_caption = false;
    d = dataset_open(at("tree"), &c, 1);
    EXPECT_STATUS(&d, 0, &b, SAMPLE_OK);
    dataset_free(&d);
    make_directories(at("empty"));
    OpenCase empty = open_of(at("empty"));
    EXPECT_REFUSED(open_case, &empty, "the data set is empty");
    sample_buffers_free(&b);
}

static void test_class_folders_give_labels(void) {
    make_directories(at("classes/n02/in"));
    make_directories(at("classes/n01"));
    make_directories(at("classes/n03"));
    write_text(at("classes/n02/in/p.png"), "2");
    write_text(at("classes/n01/q.jpg"), "1");
    write_text(at("classes/beside.png"), "no class");
    const char *const by_name[4] = {"n03", "n02", "other", "n01"};
    const char *const by_order[3] = {"ape", "bear", "cat"};
    ClassCase c = {at("classes/"), dataset_config_default()};
    Dataset d = dataset_open_class_folders(c.root, &c.config);
    EXPECT(d.count == 2 && d.class_folders.count == 3 && d.samples[0].label == 0 && d.samples[1].label == 1);
    EXPECT_STRING(d.class_folders.list[2], "n03");
    dataset_free(&d);
    c.config.classnames = by_order;
    c.config.classname_count = 3;
    d = dataset_open_class_folders(c.root, &c.config);
    EXPECT(d.count == 2 && d.samples[0].label == 0 && d.samples[1].label == 1);
    dataset_free(&d);
    c.config.classnames = by_name;
    c.config.classname_count = 4;
    d = dataset_open_class_folders(c.root, &c.config);
    EXPECT(d.count == 2 && d.samples[0].label == 3 && d.samples[1].label == 1);
    dataset_free(&d);
    c.config.classnames = by_order;
    c.config.classname_count = 2;
    EXPECT_REFUSED(class_case, &c, "3 class folders, but 2 class names");
    c.root = at("empty");
    EXPECT_REFUSED(class_case, &c, "no sub-folders");
}

// ---------------------------------------------------------------- order

static void test_order_is_a_shuffle_that_depends_on_seed_and_epoch(void) {
    enum { N = 20000, SHARD = 1000 };
    DatasetConfig c = dataset_config_default();
    c.num_samples = N;
    Dataset d = dataset_open("synthetic", &c, 2);
    int64_t *a = (int64_t *)malloc_check(N * sizeof *a);
    int64_t *b = (int64_t *)malloc_check(N * sizeof *b);
    int64_t fixed, seen;
    for (int tar = 0; tar < 2; tar++) {
        if (tar) {
            d.sources[0].type = DATASET_WEBDATASET;
            while (d.file_count < N / SHARD) dataset_add_file(&d, 0, "shard");
            for (int i = 0; i < N; i++) d.samples[i].file = i / SHARD;
        }
        bool *hit = (bool *)calloc_check(N, 1);
        dataset_order(&d, 7, 3, true, a);
        dataset_order(&d, 7, 3, true, b);
        EXPECT(!memcmp(a, b, N * sizeof *a));
        for (int i = 0; i < N; i++) hit[a[i]] = true;
        fixed = seen = 0;
        for (int i = 0; i < N; i++) {
            seen += hit[i];
            fixed += a[i] == i;
        }
        EXPECT(seen == N && fixed < 50, "%d of %d, %d in place", (int)seen, N, (int)fixed);
        dataset_order(&d, 7, 4, true, b);
        EXPECT(memcmp(a, b, N * sizeof *a));
        dataset_order(&d, 8, 3, true, b);
        EXPECT(memcmp(a, b, N * sizeof *a));
        int shards = 0; // among the first thousand: all of a global shuffle, few of shards plus buffer
        memset(hit, 0, N);
        for (int i = 0; i < SHARD; i++) {
            shards += !hit[a[i] / SHARD];
            hit[a[i] / SHARD] = true;
        }
        EXPECT(tar ? shards >= 5 && shards <= 7 : shards == N / SHARD, "%d shards", shards);
        free(hit);
    }
    dataset_order(&d, 7, 3, false, a);
    for (int i = fixed = 0; i < N; i++) fixed += a[i] == i;
    EXPECT(fixed == N);
    free(a);
    free(b);
    dataset_free(&d);
}

static void test_split_keeps_every_sample_once(void) {
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_open(at("kinds.tar"), &c, 2);
    Dataset whole = dataset_open(at("kinds.tar"), &c, 2);
    Dataset held = dataset_split(&d, 0.34, 5);
    SampleBuffers b = {0};
    EXPECT(held.count == 3 && d.count == 6 && held.files[0].samples == 3 && d.files[0].samples == 6);
    int64_t i = 0, j = 0; // both in order, together the whole
    while (i + j < whole.count) {
        if (i < d.count && d.samples[i].image == whole.samples[i + j].image &&
            d.samples[i].caption == whole.samples[i + j].caption)
            i++;
        else if (j < held.count && held.samples[j].caption == whole.samples[i + j].caption) j++;
        else break;
    }
    EXPECT(i == 6 && j == 3, "%d and %d", (int)i, (int)j);
    for (j = 0; j < held.count; j++) dataset_read(&held, j, &b);
    sample_buffers_free(&b);
    dataset_free(&held);
    dataset_free(&d);
    dataset_free(&whole);
}

int main(void) {
    make_test_folder("test_dataset");
    RUN(test_tar_of_every_format_is_read);
    RUN(test_key_of_a_member_ends_at_the_first_dot_of_its_base_name);
    RUN(test_tar_members_become_samples);
    RUN(test_tar_member_with_a_hole_is_unpacked);
    RUN(test_tar_that_is_broken_gives_what_is_whole);
    RUN(test_folder_of_images_becomes_samples);
    RUN(test_class_folders_give_labels);
    RUN(test_order_is_a_shuffle_that_depends_on_seed_and_epoch);
    RUN(test_split_keeps_every_sample_once);
    remove_test_folder();
    return test_report();
}
