// The loader (dataloader.h), on files in a temporary folder. Usage: test_dataloader [FOLDER]. In a folder
// with cifar10/ (sizes.json) or emoji/, also on these.
#include "dev/test/data_files.h"

enum { SIZE = 9, CONTEXT = 12, SAMPLES = 53 };

static bool is_bad(int64_t i) { return i % 7 == 3 || i == 51 || i == 52; }

// A CSV of 53 samples, ten of them broken in different ways; tar shards of the same.
static void make_loader_data(void) {
    static uint8_t png[1 << 16];
    char line[256], name[64];
    struct archive *a = NULL;
    make_directories(at("set"));
    FILE *f = fopen_check(at("set/t.tsv"), "w");
    fprintf(f, "filepath\ttitle\n");
    for (int i = 0; i < SAMPLES; i++) {
        size_t n = make_png(png, sizeof png, i * 4, 11 + i % 5, 8 + i % 3);
        if (i == 3) n /= 2;
        if (i == 10) n = 0;
        if (i == 17) n = 3;
        if (i == 24) n = make_png(png, sizeof png, 1, 200, 300); // above max_image_pixels
        if (i == 5) n = make_rotated_jpeg(png, sizeof png);
        snprintf(name, sizeof name, "set/%d.png", i);
        if (i != 31) write_file(at(name), png, n);
        snprintf(line, sizeof line, "%s", is_bad(i) && i > 31 ? "" : "a caption");
        fprintf(f, "%d.png\t%s\n", i, line);
        if (i % 20 == 0) {
            if (a) tar_finish(a);
            snprintf(name, sizeof name, "set/s%d.tar", i / 20);
            tar_plain(at(name), &a);
        }
        snprintf(name, sizeof name, "%03d.png", i);
        tar_add(a, name, png, i == 31 ? 4 : n);
        snprintf(name, sizeof name, "%03d.txt", i);
        tar_add_text(a, name, line);
    }
    tar_finish(a);
    fclose(f);
}

static LoaderConfig loader_config(int workers) {
    static AugmentConfig augment;
    augment = augment_of("scale=0.5,1.0 color_jitter=0.4,0.4,0.4,0.1");
    return small_batches(workers, SIZE, &augment);
}

// Runs an epoch from `position` for `batches`; a hash of all that the batches hold, each sample's index in
// `indices`.
static uint64_t run_epoch(const Dataset *d, const LoaderConfig *c, int64_t epoch, int64_t position,
    int batches, int64_t *indices, int64_t *end) {
    Loader *l = loader_create(d, c);
    Batch b = batch_create(c);
    uint64_t hash = HASH_START;
    loader_start_epoch(l, epoch, position);
    for (int i = 0; i < batches; i++) {
        int n = loader_next(l, &b);
        hash = hash_bytes(hash, b.pixels, (size_t)n * 3 * SIZE * SIZE);
        if (c->context) hash = hash_bytes(hash, b.tokens, (size_t)n * (size_t)c->context * sizeof(int));
        hash = hash_bytes(hash, b.indices, (size_t)n * sizeof(int64_t));
        for (int k = 0; k < n && indices; k++) *indices++ = b.indices[k];
    }
    if (end) *end = loader_position(l);
    batch_free(&b);
    loader_free(l);
    return hash;
}

static void test_batches_do_not_depend_on_workers_or_resuming(const char *spec) {
    char error[256];
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(spec, &dc, 2);
    Tokenizer *t = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    if (!t) die(EXIT_RUNTIME, "tokenizer: %s", error);
    int64_t indices[3][96], end[3], first_end;
    uint64_t hash[3];
    const int workers[3] = {1, 2, 5};
    EXPECT(dataset_count(&d) == SAMPLES);
    for (int k = 0; k < 3; k++) {
        LoaderConfig c = loader_config(workers[k]);
        c.tokenizer = t;
        c.context = CONTEXT;
        hash[k] = run_epoch(&d, &c, 2, 0, 12, indices[k], &end[k]); // 96 of 53: the order begins again twice
        EXPECT(hash[k] == hash[0] && end[k] == end[0] && !memcmp(indices[k], indices[0], sizeof indices[0]),
            "%d workers", workers[k]);
    }
    // exactly the good ones of the order, wrapped
    int64_t order[SAMPLES], at_order = 0;
    dataset_order(&d, 3, 2, true, order);
    for (int i = 0; i < 96; i++, at_order++) {
        while (is_bad(order[at_order % SAMPLES])) at_order++;
        EXPECT(indices[0][i] == order[at_order % SAMPLES], "place %d", i);
    }
    EXPECT(end[0] == at_order, "%d", (int)end[0]);

    LoaderConfig c = loader_config(2); // resumed in the middle, with another number of workers
    c.tokenizer = t;
    c.context = CONTEXT;
    uint64_t tail = 0;
    int64_t resumed[56];
    run_epoch(&d, &c, 2, 0, 5, NULL, &first_end);
    c.workers = 3;
    tail = run_epoch(&d, &c, 2, first_end, 7, resumed, NULL);
    EXPECT(!memcmp(resumed, indices[0] + 40, sizeof resumed));
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    uint64_t straight = HASH_START;
    loader_start_epoch(l, 1, 0); // given up at once for another epoch
    loader_start_epoch(l, 2, 0);
    for (int i = 0; i < 12; i++) {
        loader_next(l, &b);
        EXPECT(b.count == 8 && b.tokens[0] == t->start_of_text &&
               b.tokens[b.lengths[0] - 1] == t->end_of_text && b.lengths[0] == 4);
        if (i < 5) continue;
        straight = hash_bytes(straight, b.pixels, 8 * 3 * SIZE * SIZE);
        straight = hash_bytes(straight, b.tokens, 8 * CONTEXT * sizeof(int));
        straight = hash_bytes(straight, b.indices, 8 * sizeof(int64_t));
    }
    EXPECT(straight == tail);
    EXPECT(run_epoch(&d, &c, 3, 0, 12, NULL, NULL) != hash[0]);
    c.seed = 4;
    EXPECT(run_epoch(&d, &c, 2, 0, 12, NULL, NULL) != hash[0]);
    batch_free(&b);
    loader_free(l);
    tokenizer_free(t);
    dataset_free(&d);
}

static int lines_of(const char *path) {
    char *text = file_read_all(path, NULL);
    int lines = 0;
    for (char *p = text; *p; p++) lines += *p == '\n';
    free(text);
    return lines;
}

// Two epochs, after each the account of the data.
static void report_case(const void *spec) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open((const char *)spec, &dc, 2);
    LoaderConfig c = loader_config(2);
    c.skipped_path = at("skipped.txt");
    Logger log;
    logger_open(&log, NULL, false);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    for (int epoch = 0; epoch < 2; epoch++) {
        loader_start_epoch(l, epoch, 0);
        for (int i = 0; i < 14; i++)
            loader_next(l, &b);           // the order begins again twice: each sample counts once
        dataset_print_accounts(&d, &log); // the second time nothing is new
        if (ends_with((const char *)spec, ".tsv") && lines_of(c.skipped_path) != 9)
            _exit(9); // named when first met
    }
    batch_free(&b);
    loader_free(l);
    dataset_free(&d);
}

static void test_skipped_samples_are_counted_and_named(void) {
    EXPECT(child_run(report_case, at("set/t.tsv")) == 0, "%s", child.text);
    static const char *const lines_of_account[] = {"set/t.tsv: 53 rows found, 44 used, 9 passed over",
        "passed over: 1 missing file (",
        "passed over: 4 empty captions (the first: ", "passed over: 1 empty file (",
        "passed over: 1 unknown image format (", "passed over: 1 broken image (",
        "passed over: 1 with too many pixels (", "used: 1 image with an EXIF rotation"};
    for (size_t i = 0; i < sizeof lines_of_account / sizeof *lines_of_account; i++) {
        const char *line = strstr(child.text, lines_of_account[i]);
        EXPECT(line && !strstr(line + 1, lines_of_account[i]), "%s: %s", lines_of_account[i], child.text);
    }
    char *skipped = file_read_all(at("skipped.txt"), NULL);
    EXPECT(lines_of(at("skipped.txt")) == 9 && strstr(skipped, "t.tsv:31.png\tmissing file"), "%s", skipped);
    free(skipped);
    EXPECT(child_run(report_case, at("set/s{0..2}.tar")) == 0, "%s", child.text);
    EXPECT(strstr(child.text, "set/s{0..2}.tar: 53 samples found, 44 used, 9 passed over"), "%s", child.text);
    EXPECT(strstr(child.text, "4 empty captions (the first: "), "%s", child.text);
}

static void test_one_pass_gives_every_sample_once(void) {
    DatasetConfig dc = dataset_config_default();
    dc.need_caption = false; // those without caption are good then
    Dataset d = dataset_open(at("set/t.tsv"), &dc, 1);
    uint64_t first = 0;
    for (int workers = 1; workers < 5; workers += 3) {
        LoaderConfig c = loader_config(workers);
        c.augment = NULL;
        c.one_pass = true;
        Loader *l = loader_create(&d, &c);
        Batch b = batch_create(&c);
        for (int pass = 0; pass < 2; pass++) {
            int64_t next = -1, total = 0;
            uint64_t hash = HASH_START;
            loader_start_epoch(l, pass, 0);
            for (int n; (n = loader_next(l, &b)) > 0; total += n) {
                EXPECT(n == 8 || total + n == 48, "%d", n);
                for (int i = 0; i < n; next = b.indices[i++]) EXPECT(b.indices[i] > next);
                hash = hash_bytes(hash, b.pixels, (size_t)n * 3 * SIZE * SIZE);
            }
            EXPECT(total == 48 && loader_next(l, &b) == 0 && d.sources[0].account.passed_over == 5, "%d, %d",
                (int)total, (int)d.sources[0].account.passed_over);
            if (!first) first = hash;
            EXPECT(hash == first);
        }
        batch_free(&b);
        loader_free(l);
    }
    dataset_free(&d);
}

static void no_sample_case(const void *spec) {
    DatasetConfig dc = dataset_config_default();
    const char *path = (const char *)spec;
    bool pass = path[0] == '!';
    Dataset d = dataset_open(path + pass, &dc, 2);
    LoaderConfig c = loader_config(2);
    c.one_pass = pass;
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    loader_start_epoch(l, 0, 0);
    loader_next(l, &b);
}

static void test_data_without_usable_samples_ends_in_one_line(void) {
    write_text(at("none.csv"), "filepath,title\nx.png,a\ny.png,b\nset/3.png,c\n");
    EXPECT_REFUSED(no_sample_case, at("none.csv"), "fewer than two of 3 samples can be used (");
    write_text(at("one.csv"), "filepath,title\nx.png,a\nset/0.png,b\ny.png,c\nset/3.png,d\n");
    EXPECT_REFUSED(no_sample_case, at("one.csv"), "fewer than two of 4 samples");
    char pass[PATH_SIZE];
    path_format(pass, "!%s", at("none.csv"));
    EXPECT_REFUSED(no_sample_case, pass, "none of 3 samples can be used (2 missing files");
    path_format(pass, "!%s", at("one.csv"));
    EXPECT(child_run(no_sample_case, pass) == 0, "%s", child.text);
}

static void test_loader_stops_at_any_moment(void) {
    static uint8_t png[1 << 22];
    volatile sig_atomic_t interrupted = 1;
    char text[256];
    make_directories(at("big"));
    size_t bytes = make_png(png, sizeof png, 5, 3000, 3000); // takes far longer than the first wait
    write_file(at("big/a.png"), png, bytes);
    snprintf(text, sizeof text, "filepath,title\n");
    for (int i = 0; i < 8; i++) strcat(text, "a.png,a\n");
    write_text(at("big/t.csv"), text);
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("big/t.csv"), &dc, 2);
    LoaderConfig c = loader_config(2);
    c.image.max_pixels = 25000000;
    c.interrupted = &interrupted;
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    double start = seconds_now();
    loader_start_epoch(l, 0, 0);
    EXPECT(loader_next(l, &b) == 0 && loader_position(l) == 0);
    loader_free(l); // waits for the two images in work alone
    EXPECT(seconds_now() - start < 20, "%.1f s", seconds_now() - start);
    batch_free(&b);
    dataset_free(&d);

    c = loader_config(3);
    d = dataset_open(at("set/t.tsv"), &dc, 2);
    for (int i = 0; i < 20; i++) { // at once; with a full ring; without an epoch
        l = loader_create(&d, &c);
        if (i % 3) loader_start_epoch(l, 0, i);
        if (i % 3 == 2) usleep(20000);
        loader_free(l);
    }
    EXPECT(1);
    dataset_free(&d);
}

static void text_without_tokenizer(const void *spec) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open((const char *)spec, &dc, 2);
    LoaderConfig c = loader_config(1);
    c.context = CONTEXT;
    c.vocab_size = 100;
    loader_create(&d, &c);
}

static void test_synthetic_samples_need_no_tokenizer(void) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open("synthetic", &dc, 2);
    EXPECT(dataset_count(&d) == SYNTHETIC_SAMPLES);
    LoaderConfig c = loader_config(2);
    c.context = CONTEXT;
    c.vocab_size = 100;
    uint64_t hash = run_epoch(&d, &c, 0, 0, 9, NULL, NULL);
    c.workers = 1;
    EXPECT(run_epoch(&d, &c, 0, 0, 9, NULL, NULL) == hash);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    loader_start_epoch(l, 0, 0);
    EXPECT(loader_next(l, &b) == 8);
    for (int i = 0; i < 8; i++)
        EXPECT(b.tokens[i * CONTEXT] == 98 && b.tokens[i * CONTEXT + CONTEXT - 1] == 99 &&
               b.lengths[i] == CONTEXT);
    for (int i = 0; i < 8 * CONTEXT; i++) EXPECT(b.tokens[i] >= 0 && b.tokens[i] < 100);
    EXPECT(memcmp(b.pixels, b.pixels + 3 * SIZE * SIZE, 3 * SIZE * SIZE));
    batch_free(&b);
    loader_free(l);
    dataset_free(&d);
    EXPECT_REFUSED(text_without_tokenizer, at("set/t.tsv"), "has no tokenizer");
}

#ifndef NDEBUG
typedef struct {
    const Dataset *data;
    LoaderConfig config;
    int64_t position;
} AssertCase;

static void assert_case(const void *argument) {
    const AssertCase *c = (const AssertCase *)argument;
    Loader *l = loader_create(c->data, &c->config);
    Batch b = batch_create(&c->config);
    loader_start_epoch(l, 0, c->position);
    loader_next(l, &b);
}

static void test_loader_asserts_its_configuration(void) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open("synthetic", &dc, 2);
    AssertCase good = {&d, loader_config(1), 0};
    good.config.context = CONTEXT;
    good.config.vocab_size = 100;
    EXPECT(child_run(assert_case, &good) == 0, "%s", child.text);
    const char *const conditions[] = {"batch_size >= 1", "image.size >= 1", "max_pixels >= 1", "context >= 2",
        "vocab_size >= 3", "distinct_step % config->batch_size", "data->keys", "position >= 0"};
    for (size_t i = 0; i < sizeof conditions / sizeof *conditions; i++) {
        AssertCase c = good;
        if (i == 0) c.config.batch_size = 0;
        if (i == 1) c.config.image.size = 0;
        if (i == 2) c.config.image.max_pixels = 0;
        if (i == 3) c.config.context = 1;
        if (i == 4) c.config.vocab_size = 2;
        if (i == 5) c.config.distinct_step = 9;
        if (i == 6) c.config.distinct_step = 8;
        if (i == 7) c.position = -1;
        EXPECT_ASSERT(assert_case, &c, conditions[i]);
    }
    dataset_free(&d);
}
#endif

// ---------------------------------------------------------------- real data

static void test_cifar10_is_read_as_listed(const char *data) {
    char path[PATH_SIZE], spec[PATH_SIZE], missing[256];
    path_format(path, "%s/cifar10/sizes.json", data);
    json_t *sizes = json_load_file(path, 0, NULL), *size;
    EXPECT(sizes != NULL, "%s", path);
    const char *shard;
    DatasetConfig c = dataset_config_default();
    SampleBuffers b = {0};
    json_object_foreach(sizes, shard, size) {
        path_format(spec, "%s/cifar10/%s", data, shard);
        Dataset d = dataset_open(spec, &c, 2);
        int good = 0;
        for (int64_t i = 0; i < d.count; i++)
            good += dataset_read(&d, i, &b) == SAMPLE_OK && b.image.bytes > 100 && b.image.data[0] == 0xff &&
                    b.image.data[1] == 0xd8;
        EXPECT(d.count == json_integer_value(size) && good == d.count, "%s: %d samples", shard, (int)d.count);
        if (!strncmp(shard, "test", 4)) EXPECT(b.label >= 0 && b.label < 10, "%d", b.label);
        sample_buffers_free(&b);
        dataset_free(&d);
    }
    json_decref(sizes);
    snprintf(missing, sizeof missing, "train-00010.tar");
    path_format(spec, "%s/cifar10/train-{00000..00010}.tar", data);
    OpenCase o = open_of(spec);
    EXPECT_REFUSED(open_case, &o, missing);

    path_format(spec, "%s/cifar10/train-{00000..00003}.tar", data);
    for (int workers = 1; workers <= 2; workers++) { // decoding and cropping alone
        double start = seconds_now();
        Dataset d = dataset_open(spec, &c, 2);
        double listed = seconds_now();
        LoaderConfig lc = loader_config(workers);
        lc.batch_size = 64;
        lc.image.size = 32;
        lc.augment = NULL;
        Loader *l = loader_create(&d, &lc);
        Batch batch = batch_create(&lc);
        int64_t samples = 0;
        loader_start_epoch(l, 0, 0);
        for (int i = 0; i < 312; i++) samples += loader_next(l, &batch);
        EXPECT(samples == 312 * 64);
        printf("cifar10, %d worker%s: %lld samples listed in %.2f s, %.0f images/s\n", workers,
            workers > 1 ? "s" : "", (long long)d.count, listed - start,
            (double)samples / (seconds_now() - listed));
        batch_free(&batch);
        loader_free(l);
        dataset_free(&d);
    }
}

static void test_emoji_is_read_as_listed(const char *data) {
    const char *const tables[] = {"train.csv", "val.csv", "train_multilingual.csv", "val_multilingual.csv"};
    DatasetConfig c = dataset_config_default();
    SampleBuffers b = {0};
    for (int k = 0; k < 4; k++) {
        char path[PATH_SIZE];
        path_format(path, "%s/emoji/%s", data, tables[k]);
        int64_t lines = -1, good = 0;
        char *text = file_read_all(path, NULL);
        for (char *p = text; *p; p++) lines += *p == '\n';
        Dataset d = dataset_open(path, &c, 2);
        for (int64_t i = 0; i < d.count; i++)
            good += dataset_read(&d, i, &b) == SAMPLE_OK && b.image.bytes > 50 && b.caption_bytes;
        EXPECT(d.count == lines && good == lines, "%s: %d of %d", path, (int)good, (int)lines);
        dataset_free(&d);
        free(text);
    }
    sample_buffers_free(&b);
}

int main(int argc, char **argv) {
    char data[PATH_SIZE] = "";
    if (argc > 1 && !realpath(argv[1], data)) die(EXIT_USAGE, "%s: no such folder", argv[1]);
    make_test_folder("test_dataloader");
    make_loader_data();
    RUN(test_batches_do_not_depend_on_workers_or_resuming, at("set/t.tsv"));
    RUN(test_batches_do_not_depend_on_workers_or_resuming, at("set/s{0..2}.tar"));
    RUN(test_skipped_samples_are_counted_and_named);
    RUN(test_one_pass_gives_every_sample_once);
    RUN(test_data_without_usable_samples_ends_in_one_line);
    RUN(test_loader_stops_at_any_moment);
    RUN(test_synthetic_samples_need_no_tokenizer);
#ifndef NDEBUG
    RUN(test_loader_asserts_its_configuration);
#endif
    char part[PATH_SIZE];
    if (data[0]) {
        path_format(part, "%.4000s/cifar10", data);
        if (is_directory(part)) RUN(test_cifar10_is_read_as_listed, data);
        path_format(part, "%.4000s/emoji", data);
        if (is_directory(part)) RUN(test_emoji_is_read_as_listed, data);
    }
    remove_test_folder();
    return test_report();
}
