// Checks what several sources, repeated samples, keys of false negatives, distinct steps and prompts do to
// the order of an epoch and to batches (dataset.h, order.h, sample.h, dataloader.h), on files that it makes
// in a temporary folder.
#include "dev/test/data_files.h"

enum { SIZE = 6, CONTEXT = 16, CSV = 30, TAR = 20, FOLDER = 10, ALL = CSV + TAR + FOLDER };

static Tokenizer *tokenizer;
static char mixed[3 * PATH_SIZE]; // CSV::TAR::FOLDER

static char *join(char *out, const char *a, const char *b) {
    snprintf(out, 2 * PATH_SIZE, "%s::%s", a, b);
    return out;
}

// 30 rows in 3 groups of 10 and with 15 captions, 20 samples in a shard with 4 classes, 10 images in a
// folder.
static void make_sources(void) {
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

static LoaderConfig loader_config(int workers) {
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
static void run_epoch(
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
static int same_pixels(const Seen *seen, int *repeated) {
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
static void expect_reproducible(const Dataset *d, LoaderConfig c, int64_t epoch, int batches, int step) {
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

// ---------------------------------------------------------------- sources

static void test_sources_of_all_kinds_are_mixed(void) {
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_open(mixed, &c, 2);
    SampleBuffers b = {0};
    int64_t first[4], order[ALL];
    dataset_source_ranges(&d, first);
    EXPECT(
        d.count == ALL && d.source_count == 3 && first[1] == CSV && first[2] == CSV + TAR && first[3] == ALL);
    EXPECT(
        d.files[d.samples[CSV].file].source == 1 && sample_type(&d, &d.samples[CSV]) == DATASET_WEBDATASET);
    EXPECT(sample_type(&d, &d.samples[ALL - 1]) == DATASET_FOLDER);
    EXPECT_CAPTION(&d, 0, &b, "of row 0");
    EXPECT_CAPTION(&d, CSV + 3, &b, "of row 3");
    EXPECT(b.label == 3 && b.image.bytes > 50);
    EXPECT_CAPTION(&d, ALL - 1, &b, "in folder 9");
    char origin[PATH_SIZE];
    dataset_origin(&d, CSV, origin, sizeof origin);
    EXPECT(ends_with(origin, "m.tar:00.png"), "%s", origin);
    dataset_origin(&d, ALL - 1, origin, sizeof origin);
    EXPECT(ends_with(origin, "f/deep/9.png"), "%s", origin);
    for (int64_t epoch = 0; epoch < 20; epoch++) { // each sample once, and each source in either half
        int seen[ALL] = {0}, half[3] = {0};
        dataset_order(&d, 5, epoch, true, order);
        for (int i = 0; i < ALL; i++) seen[order[i]]++;
        for (int i = 0; i < ALL; i++) EXPECT(seen[i] == 1);
        for (int i = 0; i < ALL / 2; i++) half[order[i] < CSV ? 0 : order[i] < CSV + TAR ? 1 : 2]++;
        EXPECT(half[0] >= 7 && half[0] <= 23 && half[1] >= 3 && half[1] <= 17 && half[2] >= 1 && half[2] <= 9,
            "%d, %d, %d", half[0], half[1], half[2]);
    }
    dataset_order(&d, 5, 0, false, order);
    for (int i = 0; i < ALL; i++) EXPECT(order[i] == i);
    expect_reproducible(&d, loader_config(1), 1, 12, 1); // 96 of 60: the order begins again
    static Seen seen;
    LoaderConfig lc = loader_config(2);
    run_epoch(&seen, &d, &lc, 1, 0, 12);
    int repeated, equal = same_pixels(&seen, &repeated);
    EXPECT(repeated == 36 && equal < 9, "%d of %d", equal, repeated); // with other crops
    dataset_free(&d);

    c.num_samples = 13; // the same share of each
    d = dataset_open(mixed, &c, 2);
    dataset_source_ranges(&d, first);
    EXPECT(d.count == 13 && first[1] == 7 && first[2] == 11, "%d, %d", (int)first[1],
        (int)first[2]); // 6.5, 10.83
    EXPECT_CAPTION(&d, 7, &b, "of row 0");
    EXPECT_CAPTION(&d, 11, &b, "in folder 0");
    Dataset held = dataset_split(&d, 0.4, 1);
    dataset_source_ranges(&held, first);
    EXPECT(held.count == 5 && first[3] == 5 && d.count == 8 && dataset_epoch_length(&d) == 8);
    for (int64_t i = 0; i < held.count; i++) EXPECT_STATUS(&held, i, &b, SAMPLE_OK);
    sample_buffers_free(&b);
    dataset_free(&held);
    dataset_free(&d);
}

static void test_wrong_sources_end_in_one_line(void) {
    char spec[2 * PATH_SIZE];
    OpenCase c = open_of(join(spec, at("m/m.csv"), at("gone.csv")));
    EXPECT_REFUSED(open_case, &c, "gone.csv: no such file");
    c = open_of(join(spec, at("f"), at("gone-{0..1}.tar")));
    EXPECT_REFUSED(open_case, &c, "no such shard");
    c = open_of(join(spec, at("f"), ""));
    EXPECT_REFUSED(open_case, &c, "nothing on one side of ::");
    c = open_of(join(spec, at("f"), at("m.tar")));
    c.config.type = DATASET_WEBDATASET;
    EXPECT(child_run(open_case, &c) == 0 && strstr(child.text, "it is not a file"), "%s",
        child.text); // a broken shard, the other one is read
    c = open_of(mixed);
    c.config.upsampling_factors = "1::2";
    EXPECT_REFUSED(open_case, &c, "2 factors for 3 sources");
    c.config.upsampling_factors = "1::2::x";
    EXPECT_REFUSED(open_case, &c, "'x' is not a number");
    c.config.upsampling_factors = "1::-2::1";
    EXPECT_REFUSED(open_case, &c, "'-2' is not a number from 0");
    c.config.upsampling_factors = "nan::1::1";
    EXPECT_REFUSED(open_case, &c, "'nan' is not a number");
    c.config.upsampling_factors = "0::0::0";
    EXPECT_REFUSED(open_case, &c, "leaves no data");
    c.config.upsampling_factors = NULL;
    c.config.positives_key = "colour";
    EXPECT_REFUSED(open_case, &c, "no column 'colour'");
    c.spec = at("m.tar");
    EXPECT_REFUSED(open_case, &c, "needs a CSV with this column");
}

static void skip_case(const void *spec) {
    DatasetConfig dc = dataset_config_default();
    dc.upsampling_factors = "3::1";
    Dataset d = dataset_open((const char *)spec, &dc, 2);
    LoaderConfig c = loader_config(2);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    loader_start_epoch(l, 0, 0);
    for (int i = 0; i < 16; i++) loader_next(l, &b);
    loader_report_skips(l);
    loader_free(l);
    batch_free(&b);
    dataset_free(&d);
}

static void test_skipped_samples_are_counted_by_source(
    void) { // also of samples that an epoch holds three times
    char spec[2 * PATH_SIZE], text[256];
    snprintf(text, sizeof text, "filepath,title\nm/1.png,a\nm/2.png,b\ngone.png,c\nm.tar,d\nm/3.png,\n");
    write_text(at("bad.csv"), text);
    make_directories(at("bad"));
    write_text(at("bad/a.png"), "");
    write_text(at("bad/a.txt"), "empty");
    write_text(at("bad/b.png"), "x");
    write_text(at("bad/b.txt"), "none");
    write_text(at("bad/c.png"), "y");
    write_text(at("bad/c.txt"), "none");
    EXPECT(child_run(skip_case, join(spec, at("bad.csv"), at("bad"))) == 0, "%s", child.text);
    EXPECT(strstr(child.text,
               "bad.csv: 3 of 5 samples skipped (1 missing file, 1 without caption, 1 unknown image format)"),
        "%s", child.text);
    EXPECT(strstr(child.text, "bad: 3 of 3 samples skipped (1 empty file, 2 unknown image formats)"), "%s",
        child.text);
}

// ---------------------------------------------------------------- factors, replacement

static void test_factors_repeat_samples_in_turn(void) {
    DatasetConfig c = dataset_config_default();
    c.upsampling_factors = "1::2.5::0.3";
    Dataset d = dataset_open(mixed, &c, 2);
    enum { LENGTH = 30 + 50 + 3 };
    int64_t order[LENGTH], again[LENGTH], total[ALL] = {0}, *shares = dataset_source_shares(&d);
    EXPECT(dataset_epoch_length(&d) == LENGTH && d.count == ALL, "%d", (int)dataset_epoch_length(&d));
    EXPECT(shares[0] == 30 && shares[1] == 50 && shares[2] == 3);
    free(shares);
    for (int64_t epoch = 0; epoch < 10; epoch++) {
        int seen[ALL] = {0};
        int64_t of_source[3] = {0};
        dataset_order(&d, 5, epoch, true, order);
        dataset_order(&d, 5, epoch, true, again);
        EXPECT(!memcmp(order, again, sizeof order));
        for (int p = 0; p < LENGTH; p++) {
            const int64_t i = order_sample(&d, order[p]);
            EXPECT((uint64_t)order[p] < order_limit(&d));
            for (int q = 0; q < p; q++) EXPECT(order[p] != order[q]); // each time another entry
            seen[i]++;
            total[i]++;
            of_source[d.files[d.samples[i].file].source]++;
        }
        EXPECT(of_source[0] == 30 && of_source[1] == 50 && of_source[2] == 3);
        for (int i = 0; i < ALL; i++)
            EXPECT(i < CSV         ? seen[i] == 1
                   : i < CSV + TAR ? seen[i] == 2 || seen[i] == 3
                                   : seen[i] <= 1,
                "%d: %d", i, seen[i]);
    }
    for (int i = 0; i < ALL; i++)
        EXPECT(total[i] == (i < CSV            ? 10
                               : i < CSV + TAR ? 25
                                               : 3),
            "%d: %d", i, (int)total[i]); // they take turns
    expect_reproducible(&d, loader_config(1), 2, 20, 3);

    static Seen seen; // the same image again in an epoch is another crop of it
    LoaderConfig lc = loader_config(2);
    run_epoch(&seen, &d, &lc, 0, 0, 10);
    int repeated, equal = same_pixels(&seen, &repeated);
    EXPECT(repeated > 20 && equal < repeated / 4, "%d of %d", equal, repeated);
    dataset_free(&d);
}

static void test_resampling_draws_by_factor(void) {
    DatasetConfig c = dataset_config_default();
    c.upsampling_factors = "0::1::3";
    c.resampled = true;
    c.num_samples = 4000;
    Dataset d = dataset_open(mixed, &c, 2);
    int64_t *order = (int64_t *)malloc_check(4000 * sizeof *order);
    int64_t *other = (int64_t *)malloc_check(4000 * sizeof *order);
    int64_t drawn[ALL] = {0};
    int64_t of_folder = 0;
    EXPECT(dataset_epoch_length(&d) == 4000 && d.count == ALL); // the list is whole
    dataset_order(&d, 5, 0, true, order);
    for (int p = 0; p < 4000; p++) {
        const int64_t i = order_sample(&d, order[p]);
        EXPECT(i >= CSV && (uint64_t)order[p] < order_limit(&d));
        drawn[i]++;
        of_folder += i >= CSV + TAR;
    }
    EXPECT(fabs((double)of_folder / 4000 - 30.0 / 50) < 5 * sqrt(0.24 / 4000), "%d", (int)of_folder);
    for (int i = CSV; i < ALL; i++)
        EXPECT(fabs((double)drawn[i] - (i < CSV + TAR ? 80 : 240)) < (i < CSV + TAR ? 45 : 80), "%d: %d", i,
            (int)drawn[i]);
    dataset_order(&d, 5, 1, true, other);
    EXPECT(memcmp(order, other, 4000 * sizeof *order));
    d.config.num_samples = 100; // a place's draw does not depend on how many there are
    dataset_order(&d, 5, 0, true, other);
    EXPECT(dataset_epoch_length(&d) == 100 && !memcmp(order, other, 100 * sizeof *order));
    d.config.num_samples = 0;
    EXPECT(dataset_epoch_length(&d) == ALL);
    expect_reproducible(&d, loader_config(1), 0, 9, 2);
    free(order);
    free(other);
    dataset_free(&d);
}

// ---------------------------------------------------------------- commands

static void test_shard_of_a_command_is_read(void) {
    char spec[3 * PATH_SIZE], path[PATH_SIZE];
    DatasetConfig c = dataset_config_default();
    snprintf(spec, sizeof spec, "pipe:cat %s::%s", at("m.tar"), at("m/m.csv"));
    Dataset d = dataset_open(spec, &c, 2), plain = dataset_open(at("m.tar"), &c, 2);
    SampleBuffers b, p;
    memset(&b, 0, sizeof b);
    memset(&p, 0, sizeof p);
    EXPECT(d.count == TAR + CSV && d.spill_fd >= 0 && plain.spill_fd < 0);
    for (int64_t i = 0; i < TAR; i++) {
        EXPECT(dataset_read(&d, i, &b) == SAMPLE_OK && dataset_read(&plain, i, &p) == SAMPLE_OK &&
               b.label == p.label);
        EXPECT(b.image.bytes == p.image.bytes && !memcmp(b.image.data, p.image.data, p.image.bytes));
        EXPECT(b.caption_bytes == p.caption_bytes && !memcmp(b.caption, p.caption, p.caption_bytes));
    }
    EXPECT_CAPTION(&d, TAR, &b, "of row 0");
    dataset_free(&d);
    dataset_free(&plain);
    path_format(path, "%s", at("m.tar"));
    snprintf(spec, sizeof spec, "pipe:gzip -c %s", path);
    d = dataset_open(spec, &c, 2);
    EXPECT(d.count == TAR);
    EXPECT_CAPTION(&d, 7, &b, "of row 7");
    dataset_free(&d);
    snprintf(spec, sizeof spec, "pipe:cat %.*s{m,m}.tar; head -c 300000 /dev/zero", (int)(strlen(path) - 5),
        path); // braces; data after the archive
    d = dataset_open(spec, &c, 2);
    EXPECT(d.count == 2 * TAR && d.file_count == 2);
    EXPECT_CAPTION(&d, 2 * TAR - 1, &b, "of row 19");
    dataset_free(&d);
    sample_buffers_free(&b);
    sample_buffers_free(&p);

    OpenCase o = open_of(spec);
    snprintf(spec, sizeof spec, "pipe:cat %s; exit 3", path);
    EXPECT(child_run(open_case, &o) == EXIT_RUNTIME &&
               strstr(child.text, "exit 3: the command failed with exit status 3"),
        "%s", child.text);
    snprintf(spec, sizeof spec, "pipe:no_such_program_here 2>/dev/null");
    EXPECT(
        child_run(open_case, &o) == EXIT_RUNTIME && strstr(child.text, "exit status 127"), "%s", child.text);
    snprintf(spec, sizeof spec, "pipe:kill -9 $$");
    EXPECT(child_run(open_case, &o) == EXIT_RUNTIME && strstr(child.text, "was ended by signal 9"), "%s",
        child.text);
    snprintf(spec, sizeof spec, "pipe:true");
    EXPECT(child_run(open_case, &o) == EXIT_USAGE && strstr(child.text, "the data set is empty"), "%s",
        child.text);
}

// ---------------------------------------------------------------- keys

// Are the keys of samples i and k equal?
static bool same_key(const Dataset *d, int64_t i, int64_t k) { return d->keys[i] == d->keys[k]; }

static void test_keys_are_equal_for_false_negatives(void) {
    DatasetConfig c = dataset_config_default();
    const char *const kinds[] = {NULL, "image", "cls", "group"};
    static Seen seen;
    for (int kind = 0; kind < 4; kind++) {
        c.positives_key = kinds[kind];
        Dataset d = dataset_open(mixed, &c, 2), lazy = dataset_open(mixed, &c, 2);
        LoaderConfig lc = loader_config(2);
        dataset_read_keys(&d);
        run_epoch(&seen, &lazy, &lc, 0, 0, 7); // found at the start or when read: the same
        for (int i = 0; i < seen.count; i++) EXPECT(seen.keys[i] == d.keys[seen.indices[i]]);
        int64_t pairs = 0;
        for (int64_t i = 0; i < d.count; i++)
            for (int64_t k = 0; k < i; k++) pairs += same_key(&d, i, k);
        if (kind == 0) { // rows 2r, 2r + 1 and member r, whatever the case and white space
            EXPECT(same_key(&d, 0, 1) && same_key(&d, 1, CSV) && !same_key(&d, 1, 2) &&
                       same_key(&d, 28, CSV + 14) && pairs == 15 * 3,
                "%d", (int)pairs);
        } else if (kind == 1) {
            EXPECT(pairs == 0);
        } else if (kind == 2) { // 30 rows of 7 classes and 20 members of 4
            int64_t of[7] = {0}, wanted = 0;
            for (int i = 0; i < CSV; i++) of[i % 7]++;
            for (int i = 0; i < TAR; i++) of[i % 4]++;
            for (int i = 0; i < 7; i++) wanted += of[i] * (of[i] - 1) / 2;
            EXPECT(same_key(&d, 0, 7) && same_key(&d, 3, CSV + 3) && pairs == wanted, "%d of %d", (int)pairs,
                (int)wanted);
        } else { // 24 rows with a text: 8 none, 16 some; the others have unique keys
            EXPECT(pairs == 8 * 7 / 2 + 16 * 15 / 2 && same_key(&d, 0, 3) && !same_key(&d, 4, 9), "%d",
                (int)pairs);
        }
        dataset_free(&d);
        dataset_free(&lazy);
    }
    write_text(at("twice.csv"),
        // one image with two captions
        "filepath,title,label\nm/1.png,a,dog\nm/1.png,b,cat\nm/2.png,A,dog\n");
    c.positives_key = "image";
    Dataset d = dataset_open(at("twice.csv"), &c, 2);
    dataset_read_keys(&d);
    EXPECT(same_key(&d, 0, 1) && !same_key(&d, 0, 2));
    dataset_free(&d);
    c.positives_key = "cls"; // names that no list holds
    d = dataset_open(at("twice.csv"), &c, 2);
    dataset_read_keys(&d);
    EXPECT(same_key(&d, 0, 2) && !same_key(&d, 0, 1));
    dataset_free(&d);
    EXPECT(key_of_caption(" A  cat\n", 8) == key_of_caption("a cat", 5) &&
           key_of_caption("a cat", 5) != key_of_caption("acat", 4));
    EXPECT(key_of_caption("a", 1) != key_of_caption("b", 1));
}

static void test_false_negatives_are_counted(void) {
    uint64_t keys[2][4] = {{1, 2, 3, 2}, {2, 9, 3, 0}};
    Batch b[2];
    memset(b, 0, sizeof b);
    b[0].keys = keys[0];
    b[0].count = 4;
    b[1].keys = keys[1];
    b[1].count = 3;
    EXPECT(batch_false_negatives(b, 1) == 2 && batch_false_negatives(b + 1, 1) == 0);
    EXPECT(batch_false_negatives(b, 2) == 3 * 2 + 2, "%d",
        (int)batch_false_negatives(b, 2)); // 2 occurs three times, 3 twice
    b[0].count = b[1].count = 0;
    EXPECT(batch_false_negatives(b, 2) == 0);
}

// ---------------------------------------------------------------- distinct steps

static bool all_differ(const uint64_t *keys, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < i; k++)
            if (keys[i] == keys[k]) return false;
    return true;
}

// Random keys: the most steps that there can be, each with different keys, and nothing lost.
static void test_distinct_order_has_no_key_twice_in_a_step(void) {
    enum { MOST = 200 };
    DatasetConfig c = dataset_config_default();
    for (int round = 0; round < 300; round++) {
        Rand r = rand_for(1, (uint64_t)round, 0);
        const int64_t n = 2 + (int64_t)rand_below(&r, MOST - 2);
        const int64_t step = 1 + (int64_t)rand_below(&r, 20);
        const int64_t kinds = 1 + (int64_t)rand_below(&r, (uint64_t)n);
        int64_t order[MOST], other[MOST], of[MOST] = {0}, most = 0;
        c.num_samples = n;
        Dataset d = dataset_open("synthetic", &c, 2);
        d.keys = (uint64_t *)malloc_check((size_t)n * sizeof *d.keys);
        for (int64_t i = 0; i < n; i++) {
            d.keys[i] = rand_below(&r,
                round % 3 ? (uint64_t)kinds
                          : 1 + rand_below(&r, (uint64_t)kinds)); // as likely, or some far more than others
            of[d.keys[i]]++;
        }
        for (int64_t K = 1; K * step <= n; K++) {
            int64_t sum = 0;
            for (int64_t k = 0; k < kinds; k++) sum += min_i64(of[k], K);
            if (sum >= K * step) most = K;
        }
        dataset_order(&d, 7, round, true, order);
        const int64_t K = order_make_distinct(&d, 7, round, step, order, n);
        EXPECT(
            K == most && dataset_distinct_steps(&d, 7, step) == most, "%d instead of %d", (int)K, (int)most);
        uint64_t keys[MOST];
        bool hit[MOST] = {false};
        for (int64_t p = 0; p < n; p++) {
            keys[p] = d.keys[order[p]];
            hit[order[p]] = true;
        }
        for (int64_t p = 0; p < n; p++) EXPECT(hit[p]);
        for (int64_t k = 0; k < K; k++)
            EXPECT(all_differ(keys + k * step, step), "step %d of %d", (int)k, (int)K);
        dataset_order(&d, 7, round + 1, true, other);
        order_make_distinct(&d, 7, round + 1, step, other, n);
        if (n > 20) EXPECT(memcmp(order, other, (size_t)n * sizeof *order));
        dataset_free(&d);
    }
    c.num_samples = 100; // a caption that 60 of 100 have: they take turns, none of the others is lost
    Dataset d = dataset_open("synthetic", &c, 2);
    d.keys = (uint64_t *)malloc_check(100 * sizeof *d.keys);
    int64_t order[100], seen[100] = {0}, never = 0;
    for (int i = 0; i < 100; i++) d.keys[i] = i < 60 ? 0 : (uint64_t)i;
    for (int epoch = 0; epoch < 100; epoch++) {
        dataset_order(&d, 1, epoch, true, order);
        EXPECT(order_make_distinct(&d, 1, epoch, 5, order, 100) == 10);
        for (int p = 0; p < 50; p++) seen[order[p]]++;
    }
    for (int i = 60; i < 100; i++) EXPECT(seen[i] == 100);
    for (int i = 0; i < 60; i++) never += !seen[i];
    EXPECT(never == 0 && seen[0] < 40, "%d never, %d", (int)never, (int)seen[0]);
    dataset_free(&d);
}

static void no_step_case(const void *argument) {
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open((const char *)argument, &dc, 2);
    LoaderConfig c = loader_config(2);
    c.batch_size = 2;
    c.distinct_step = 4;
    dataset_read_keys(&d);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    loader_start_epoch(l, 0, 0);
    for (int i = 0; i < 2; i++) loader_next(l, &b);
}

// Through the loader, with two batches a step and broken samples between: their places go to the next, but
// never to one of the same key.
static void test_distinct_batches_survive_broken_samples(void) {
    FILE *f = fopen_check(at("m/d.csv"), "w");
    fprintf(f, "filepath,title\n");
    for (int i = 0; i < 120; i++)
        fprintf(f, "%d.png,caption %d\n", i % 9 == 5 ? 999 : i % CSV, i % 4 ? i / 3 : i % 3);
    fclose(f);
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("m/d.csv"), &dc, 2);
    static Seen seen;
    LoaderConfig c = loader_config(2);
    c.batch_size = 6;
    c.distinct_step = 12;
    dataset_read_keys(&d);
    const int steps = (int)dataset_distinct_steps(&d, c.seed, 12);
    EXPECT(steps >= 5 && steps <= 10, "%d", steps);
    for (int64_t epoch = 0; epoch < 8; epoch++) {
        run_epoch(&seen, &d, &c, epoch, 0, 2 * steps);
        EXPECT(seen.count == 12 * steps);
        for (int k = 0; k < steps; k++) EXPECT(all_differ(seen.keys + 12 * k, 12), "step %d", k);
    }
    expect_reproducible(&d, c, 3, 2 * steps, 2);
    Loader *l = loader_create(&d, &c);
    Batch b = batch_create(&c);
    run_epoch(&seen, &d, &c, 4, 0, 1);
    loader_start_epoch(l, 3, 0); // an epoch given up in the middle of a step leaves no keys
    loader_next(l, &b);
    loader_start_epoch(l, 4, 0);
    EXPECT(loader_next(l, &b) == 6 && !memcmp(b.indices, seen.indices, 6 * sizeof *b.indices));
    batch_free(&b);
    loader_free(l);
    c.distinct_step = 0;
    run_epoch(&seen, &d, &c, 0, 0, 2 * steps);
    int met = 0;
    for (int k = 0; k < steps; k++) met += !all_differ(seen.keys + 12 * k, 12);
    EXPECT(met > 0); // without it they do meet
    dataset_free(&d);

    dc.upsampling_factors = "1::2.5::1"; // the same sample again is its own false negative
    d = dataset_open(mixed, &dc, 2);
    c.distinct_step = 12;
    dataset_read_keys(&d);
    const int upsampled = (int)dataset_distinct_steps(&d, c.seed, 12);
    EXPECT(upsampled >= 5 && upsampled <= 7, "%d", upsampled);
    for (int64_t epoch = 0; epoch < 4; epoch++) {
        run_epoch(&seen, &d, &c, epoch, 0, 2 * upsampled);
        for (int k = 0; k < upsampled; k++) EXPECT(all_differ(seen.keys + 12 * k, 12), "step %d", k);
    }
    dataset_free(&d);
    write_text(at("m/few.csv"), "filepath,title\n0.png,a\n1.png,b\n2.png,c\n3.png,A\n99.png,d\n");
    EXPECT_REFUSED(no_step_case, at("m/few.csv"), "fewer than 4 different keys");
}

// ---------------------------------------------------------------- prompts

// Are these the tokens of one of the templates with `name`? Which one, or -1.
static int prompt_of(const int *tokens, const StringList *templates, const char *name) {
    char *text = NULL;
    size_t capacity = 0;
    int found = -1, wanted[CONTEXT];
    for (size_t i = 0; i < templates->count && found < 0; i++) {
        template_fill(&text, &capacity, templates->list[i], name);
        tokenizer_encode(tokenizer, text, strlen(text), wanted, CONTEXT);
        if (!memcmp(wanted, tokens, sizeof wanted)) found = (int)i;
    }
    free(text);
    return found;
}

static DatasetConfig prompt_config(const StringList *classnames) {
    DatasetConfig c = dataset_config_default();
    c.prompts = true;
    if (classnames) {
        c.classnames = (const char *const *)classnames->list;
        c.classname_count = (int)classnames->count;
    }
    return c;
}

static const char *const prompt_classes[] = {"big dog", "cat", "emu"};

// Two class folders and templates; *names of the classes.
static StringList make_prompts(StringList *names) {
    static uint8_t png[1 << 14];
    char name[64];
    const char *const folders[] = {"c1/big_dog", "c1/cat", "c2/cat", "c2/emu"};
    for (int i = 0; i < 4; i++) {
        make_directories(at(folders[i]));
        for (int k = 0; k < 6; k++) {
            snprintf(name, sizeof name, "%s/%d.png", folders[i], k);
            write_file(at(name), png, make_png(png, sizeof png, 10 * i + k, 8, 8));
        }
    }
    write_text(at("templates"), "a photo of a {}.\na drawing of a {c}\n{} {}\n");
    memset(names, 0, sizeof *names);
    for (int i = 0; i < 3; i++) string_list_add(names, prompt_classes[i]);
    return templates_read(at("templates"));
}

static void test_labels_of_class_folders_become_prompts(void) {
    char spec[2 * PATH_SIZE];
    StringList names, templates = make_prompts(&names);
    DatasetConfig c = prompt_config(NULL); // classes are named like their folders, the same in both roots
    Dataset d = dataset_open(join(spec, at("c1"), at("c2")), &c, 2);
    EXPECT(
        d.count == 24 && d.class_folders.count == 3 && d.samples[12].label == 1 && d.samples[23].label == 2);
    EXPECT_STRING(d.class_folders.list[0], "big_dog");
    LoaderConfig lc = loader_config(2);
    static Seen seen, next;
    lc.templates = &templates;
    lc.classnames = &names;
    run_epoch(&seen, &d, &lc, 0, 0, 6); // 48 of 24: each twice
    run_epoch(&next, &d, &lc, 1, 0, 6);
    int drawn[3] = {0}, changed = 0;
    for (int i = 0; i < 48; i++) {
        const int label = d.samples[seen.indices[i]].label;
        const int which = prompt_of(seen.tokens + i * CONTEXT, &templates, prompt_classes[label]);
        EXPECT(which >= 0, "sample %d", i);
        if (which >= 0) drawn[which]++;
        // the key is the class; the prompts of one image differ from epoch to epoch
        for (int k = 0; k < 48; k++) {
            EXPECT((seen.keys[i] == next.keys[k]) == (label == d.samples[next.indices[k]].label));
            changed += seen.indices[i] == next.indices[k] &&
                       memcmp(seen.tokens + i * CONTEXT, next.tokens + k * CONTEXT, CONTEXT * sizeof(int));
        }
    }
    EXPECT(drawn[0] > 5 && drawn[1] > 5 && drawn[2] > 5 && changed > 40, "%d %d %d, %d", drawn[0], drawn[1],
        drawn[2], changed);
    expect_reproducible(&d, lc, 0, 6, 1);
    dataset_free(&d);
    string_list_free(&templates);
    string_list_free(&names);
}

// A CSV with labels and no captions, one with captions and no labels, and a shard whose class 3 has no name.
static void test_labels_become_prompts_next_to_captions(void) {
    char spec[2 * PATH_SIZE];
    static Seen seen;
    StringList names, templates = make_prompts(&names);
    LoaderConfig lc = loader_config(2);
    lc.templates = &templates;
    lc.classnames = &names;
    DatasetConfig c = prompt_config(&names);
    write_text(at("labels.csv"), "filepath,label\nm/1.png,cat\nm/2.png,2\nm/3.png,cow\nm/4.png,0\n");
    write_text(at("captions.csv"), "filepath,title\nm/5.png,a cow\nm/6.png,a cow\n");
    char three[3 * PATH_SIZE];
    snprintf(three, sizeof three, "%s::%s", join(spec, at("labels.csv"), at("captions.csv")), at("m.tar"));
    Dataset d = dataset_open(three, &c, 2);
    SampleBuffers b = {0};
    EXPECT(d.samples[0].label == 1 && d.samples[1].label == 2 && d.samples[2].label == -1);
    EXPECT_STATUS(&d, 2, &b, SAMPLE_NO_CAPTION);
    EXPECT_CAPTION(&d, 4, &b, "a cow");
    EXPECT_CAPTION(&d, 6 + 3, &b, "of row 3"); // what is not a class of the list keeps its caption
    EXPECT_CAPTION(&d, 6 + 2, &b, "");
    sample_buffers_free(&b);
    run_epoch(&seen, &d, &lc, 0, 0, 6);
    for (int i = 0; i < seen.count; i++) {
        const int label = d.samples[seen.indices[i]].label;
        char caption[32];
        snprintf(caption, sizeof caption, "of row %d", (int)seen.indices[i] - 6);
        const char *own = seen.indices[i] < 6 ? "a cow" : caption;
        StringList as_it_is = {(char **)&own, 1, 0};
        const int *tokens = seen.tokens + i * CONTEXT;
        EXPECT(label >= 0 ? prompt_of(tokens, &templates, prompt_classes[label]) >= 0
                          : prompt_of(tokens, &as_it_is, "") == 0,
            "sample %d", i);
    }
    names.count = 2; // numbers above the names: skipped
    run_epoch(&seen, &d, &lc, 0, 0, 3);
    for (int i = 0; i < seen.count; i++) EXPECT(d.samples[seen.indices[i]].label < 2);
    names.count = 3;
    dataset_free(&d);
    OpenCase o = {at("captions.csv"), dataset_config_default(), 2};
    o.config.csv_caption_key = "none";
    o.config.prompts = true;
    EXPECT_REFUSED(open_case, &o, "--csv-caption-key");
    o.spec = at("f/deep");
    EXPECT_REFUSED(open_case, &o, "has no sub-folders");
    string_list_free(&templates);
    string_list_free(&names);
}

// The first of several keys of KEY.json that holds words.
static void test_first_json_key_with_words_is_the_caption(void) {
    struct archive *a;
    tar_plain(at("j.tar"), &a);
    tar_add_text(a, "a.png", "x");
    tar_add_text(a, "a.json", "{\"long\": \" \", \"short\": \"second\"}");
    tar_add_text(a, "b.png", "x");
    tar_add_text(a, "b.json", "{\"long\": \"first\", \"short\": \"second\"}");
    tar_add_text(a, "c.png", "x");
    tar_add_text(a, "c.json", "{\"other\": \"none\", \"short\": 5}");
    tar_finish(a);
    DatasetConfig c = dataset_config_default();
    c.json_text_key = "long;short";
    Dataset d = dataset_open(at("j.tar"), &c, 2);
    SampleBuffers b = {0};
    EXPECT_CAPTION(&d, 0, &b, "second");
    EXPECT_CAPTION(&d, 1, &b, "first");
    EXPECT_STATUS(&d, 2, &b, SAMPLE_NO_CAPTION);
    sample_buffers_free(&b);
    dataset_free(&d);
}

int main(void) {
    char error[256];
    make_test_folder("test_mixing");
    tokenizer = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    if (!tokenizer) die(EXIT_RUNTIME, "tokenizer: %s", error);
    make_sources();
    RUN(test_sources_of_all_kinds_are_mixed);
    RUN(test_wrong_sources_end_in_one_line);
    RUN(test_skipped_samples_are_counted_by_source);
    RUN(test_factors_repeat_samples_in_turn);
    RUN(test_resampling_draws_by_factor);
    RUN(test_shard_of_a_command_is_read);
    RUN(test_keys_are_equal_for_false_negatives);
    RUN(test_false_negatives_are_counted);
    RUN(test_distinct_order_has_no_key_twice_in_a_step);
    RUN(test_distinct_batches_survive_broken_samples);
    RUN(test_labels_of_class_folders_become_prompts);
    RUN(test_labels_become_prompts_next_to_captions);
    RUN(test_first_json_key_with_words_is_the_caption);
    tokenizer_free(tokenizer);
    remove_test_folder();
    return test_report();
}
