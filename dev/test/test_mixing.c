// Checks what several sources, repeated samples and prompts do to the order of an epoch and to batches
// (dataset.h, order.h, sample.h, dataloader.h), on files that it makes in a temporary folder.
#include "dev/test/mixed.h"

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

static void test_two_sources_are_mixed(void) {
    char spec[2 * PATH_SIZE];
    DatasetConfig c = dataset_config_default();
    Dataset d = dataset_open(join(spec, at("m/m.csv"), at("m.tar")), &c, 2);
    int64_t order[CSV + TAR];
    for (int64_t epoch = 0; epoch < 20; epoch++) {
        int first = 0; // of the first source in the first half
        dataset_order(&d, 5, epoch, true, order);
        for (int i = 0; i < (CSV + TAR) / 2; i++) first += order[i] < CSV;
        EXPECT(first >= 7 && first <= 23, "%d", first);
    }
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
    EXPECT_REFUSED(open_case, &c, "no shards there");
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
    Logger log;
    logger_open(&log, NULL, false);
    dataset_print_accounts(&d, &log);
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
    EXPECT(strstr(child.text, "bad.csv: 5 rows found, 2 used, 3 passed over\n"), "%s", child.text);
    EXPECT(strstr(child.text, "bad: 3 samples found, 0 used, 3 passed over\n"), "%s", child.text);
    EXPECT(strstr(child.text, "passed over: 2 unknown image formats (the first: "), "%s", child.text);
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
    d.config.num_samples = 60;
    d.sources[2].factor = 2.9; // 20 and 29 of 49
    int64_t *shares = dataset_source_shares(&d);
    EXPECT(shares[0] == 0 && shares[1] == 24 && shares[2] == 36, "%d, %d", (int)shares[1], (int)shares[2]);
    free(shares);
    d.sources[2].factor = 3;
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
    write_text(at("both.csv"), "filepath,title,label\nm/1.png,a cow,cow\nm/2.png,a cat,cat\n");
    Dataset both = dataset_open(at("both.csv"), &c, 2);
    EXPECT_CAPTION(&both, 0, &b, "a cow"); // no class of that name
    EXPECT(both.samples[1].label == 1);
    dataset_free(&both);
    sample_buffers_free(&b);
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
    make_mixed_folder("test_mixing");
    RUN(test_sources_of_all_kinds_are_mixed);
    RUN(test_two_sources_are_mixed);
    RUN(test_wrong_sources_end_in_one_line);
    RUN(test_skipped_samples_are_counted_by_source);
    RUN(test_factors_repeat_samples_in_turn);
    RUN(test_resampling_draws_by_factor);
    RUN(test_shard_of_a_command_is_read);
    RUN(test_labels_of_class_folders_become_prompts);
    RUN(test_labels_become_prompts_next_to_captions);
    RUN(test_first_json_key_with_words_is_the_caption);
    remove_mixed_folder();
    return test_report();
}
