// Forms in which people have their data: 16 pairs as tables in JSON, as Hugging Face's imagefolder, as a
// folder with other endings, and with several captions an image, one a line.
#include "dev/test/data_files.h"

enum { PAIRS = 16, SIZE = 8, CONTEXT = 16 };

static void caption_text(char *out, size_t size, int i) {
    snprintf(out, size, "a red square, \"number\" %d", i);
}

static void make_image(const char *name, int i) {
    static uint8_t png[1 << 16];
    write_file(at(name), png, make_png(png, sizeof png, i, 9, 9));
}

// The data set has exactly the 16 pairs, in their order, and its account says that all are used.
static void expect_pairs(const char *name, DatasetConfig c) {
    char caption[128], got[512];
    uint8_t png[4096];
    Dataset d = dataset_open(at(name), &c, 2);
    SampleBuffers b = {0};
    const Account *a = &d.sources[0].account;
    EXPECT(dataset_count(&d) == PAIRS && a->found == PAIRS && !a->passed_over, "%s: %d of %d", name,
        (int)dataset_count(&d), (int)a->found);
    for (int i = 0; i < PAIRS && i < d.count; i++) {
        const size_t bytes = make_png(png, sizeof png, i, 9, 9);
        const SampleStatus status = read_sample(&d, i, &b, got, sizeof got);
        caption_text(caption, sizeof caption, i);
        EXPECT(status == SAMPLE_OK && !strcmp(got, caption), "%s, %d: %s, '%s'", name, i,
            sample_status_name(status), got);
        EXPECT(b.image.bytes == bytes && !memcmp(b.image.data, png, bytes), "%s, %d", name, i);
    }
    sample_buffers_free(&b);
    dataset_free(&d);
}

// ---------------------------------------------------------------- tables

// {"KEY": "PATH", …} of pair i.
static void write_object(FILE *f, int i, const char *image_key, const char *caption_key, const char *end) {
    fprintf(f, "{\"id\": %d, \"%s\": \"%02d.png\", \"%s\": \"a red square, \\\"number\\\" %d\"}%s", i,
        image_key, i, caption_key, i, end);
}

static void test_tables_in_json_are_read(void) {
    char name[64];
    make_directories(at("json"));
    FILE *lines = fopen_check(at("json/t.jsonl"), "w"), *array = fopen_check(at("json/t.json"), "w");
    FILE *named = fopen_check(at("json/other.txt"), "w");
    fputs("[\n", array);
    for (int i = 0; i < PAIRS; i++) {
        snprintf(name, sizeof name, "json/%02d.png", i);
        make_image(name, i);
        write_object(lines, i, "filepath", "title", i % 2 ? "\r\n" : "\n\n");
        write_object(array, i, "file_name", "text", i < PAIRS - 1 ? ",\n " : "\n]\n");
        write_object(named, i, "img", "alt", i < PAIRS - 1 ? "\n" : "");
    }
    fclose(lines);
    fclose(array);
    fclose(named);
    DatasetConfig c = dataset_config_default();
    expect_pairs("json/t.jsonl", c);
    expect_pairs("json/t.json", c);
    OpenCase missing = open_of(at("json/other.txt"));
    EXPECT_REFUSED(open_case, &missing, "no 'filepath' in its first row (there are: id, img, alt)");
    c.csv_img_key = "img";
    missing.config = c;
    EXPECT_REFUSED(open_case, &missing, "name it with --csv-caption-key");
    c.csv_caption_key = "alt";
    expect_pairs("json/other.txt", c);
    write_text(at("json/broken.json"), "[{\"filepath\": \"x.png\", \"title\": ");
    missing = open_of(at("json/broken.json"));
    EXPECT_REFUSED(open_case, &missing, "is not JSON");
}

static void test_labels_and_keys_of_json_rows_are_read(void) {
    write_text(at("json/labels.jsonl"), "{\"filepath\": \"00.png\", \"label\": 2, \"group\": 7}\n"
                                        "{\"filepath\": \"01.png\", \"label\": \"0\", \"group\": \"7\"}\n"
                                        "{\"filepath\": \"02.png\", \"label\": 1, \"group\": \"x\"}\n");
    DatasetConfig c = dataset_config_default();
    c.need_caption = false;
    c.need_label = true;
    c.positives_key = "group";
    Dataset d = dataset_open(at("json/labels.jsonl"), &c, 1);
    EXPECT(d.count == 3 && d.samples[0].label == 2 && d.samples[1].label == 0 && d.samples[2].label == 1);
    EXPECT(sample_key(&d, 0, "", 0) == sample_key(&d, 1, "", 0) &&
           sample_key(&d, 0, "", 0) != sample_key(&d, 2, "", 0));
    dataset_free(&d);
}

// ---------------------------------------------------------------- folders

static void test_a_folder_with_metadata_is_its_table(void) {
    char name[64];
    make_directories(at("hf_csv/images"));
    make_directories(at("hf_lines"));
    FILE *csv = fopen_check(at("hf_csv/metadata.csv"), "w"),
         *lines = fopen_check(at("hf_lines/metadata.jsonl"), "w");
    fputs("file_name,text\n", csv);
    for (int i = 0; i < PAIRS; i++) {
        snprintf(name, sizeof name, "hf_csv/images/%02d.png", i);
        make_image(name, i);
        fprintf(csv, "images/%02d.png,\"a red square, \"\"number\"\" %d\"\n", i, i);
        snprintf(name, sizeof name, "hf_lines/%02d.png", i);
        make_image(name, i);
        write_object(lines, i, "file_name", "text", "\n");
    }
    fclose(csv);
    fclose(lines);
    expect_pairs("hf_csv", dataset_config_default());
    expect_pairs("hf_lines", dataset_config_default());
    make_image("hf_lines/unnamed.png", 3);
    OpenCase c = open_of(at("hf_lines"));
    Dataset d = dataset_open(c.spec, &c.config, 2);
    const Account *a = &d.sources[0].account;
    EXPECT(a->found == PAIRS + 1 && a->passed_over == 1 &&
           account_count(a, PASSED_OVER, "image that the table of its folder does not name") == 1);
    dataset_free(&d);
    write_text(at("hf_lines/03.txt"), "beside it");
    EXPECT_REFUSED(open_case, &c, "captions both in");
    write_text(at("hf_lines/metadata.csv"), "file_name,text\n");
    EXPECT_REFUSED(open_case, &c, "both metadata.csv and metadata.jsonl");
}

static void test_endings_in_upper_case_and_other_captions(void) {
    char name[64], caption[128];
    static const char *const images[] = {"PNG", "Png", "JPG", "tiff"}; // the content decides
    make_directories(at("upper"));
    make_directories(at("other"));
    for (int i = 0; i < PAIRS; i++) {
        caption_text(caption, sizeof caption, i);
        snprintf(name, sizeof name, "upper/%02d.%s", i, images[i % 4]);
        make_image(name, i);
        snprintf(name, sizeof name, "upper/%02d.%s", i, i % 2 ? "TXT" : "Txt");
        write_text(at(name), caption);
        snprintf(name, sizeof name, "other/%02d.png", i);
        make_image(name, i);
        snprintf(name, sizeof name, "other/%02d.caption", i);
        write_text(at(name), caption);
    }
    expect_pairs("upper", dataset_config_default());
    DatasetConfig c = dataset_config_default();
    c.text_key = "caption;txt";
    expect_pairs("other", c);
}

// ---------------------------------------------------------------- one caption a line

// The tokens of the 16 captions of an epoch, by sample.
static void epoch_tokens(Loader *l, int epoch, int tokens[PAIRS][CONTEXT]) {
    Batch b = batch_create(&l->config);
    loader_start_epoch(l, epoch, 0);
    for (int seen = 0, n; seen < PAIRS && (n = loader_next(l, &b)) > 0; seen += n)
        for (int i = 0; i < n; i++)
            memcpy(tokens[b.indices[i]], b.tokens + i * CONTEXT, CONTEXT * sizeof(int));
    batch_free(&b);
}

static void test_one_line_of_a_caption_is_drawn(void) {
    enum { LINES = 3, EPOCHS = 60 };
    char name[64], error[256], line[64];
    make_directories(at("lines"));
    for (int i = 0; i < PAIRS; i++) {
        snprintf(name, sizeof name, "lines/%02d.png", i);
        make_image(name, i);
        snprintf(name, sizeof name, "lines/%02d.txt", i);
        write_text(at(name), "first line\n\n  \nsecond line\r\nthird line");
    }
    DatasetConfig dc = dataset_config_default();
    Dataset d = dataset_open(at("lines"), &dc, 2);
    Tokenizer *t = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    LoaderConfig c = small_batches(2, SIZE, NULL);
    c.tokenizer = t;
    c.context = CONTEXT;
    c.caption_lines = true;
    int expected[LINES][CONTEXT], tokens[PAIRS][CONTEXT], again[PAIRS][CONTEXT], drawn[LINES] = {0},
                                                                                 changed = 0;
    static const char *const words[LINES] = {"first", "second", "third"};
    for (int k = 0; k < LINES; k++) {
        snprintf(line, sizeof line, "%s line", words[k]);
        tokenizer_encode(t, line, strlen(line), expected[k], CONTEXT);
    }
    Loader *l = loader_create(&d, &c);
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        memcpy(again, tokens, sizeof tokens);
        epoch_tokens(l, epoch, tokens);
        changed += epoch && memcmp(again, tokens, sizeof tokens);
        for (int i = 0; i < PAIRS; i++) {
            int k = 0;
            while (k < LINES && memcmp(tokens[i], expected[k], sizeof expected[k])) k++;
            EXPECT(k < LINES, "epoch %d, sample %d: no line", epoch, i);
            if (k < LINES) drawn[k]++;
        }
    }
    for (int k = 0; k < LINES; k++) // 320 of each; 4.5 standard deviations
        EXPECT(abs(drawn[k] - EPOCHS * PAIRS / LINES) < 66, "line %d: %d times", k, drawn[k]);
    EXPECT(changed == EPOCHS - 1, "%d epochs differ from the one before", changed);
    epoch_tokens(l, EPOCHS - 1, again);
    EXPECT(!memcmp(again, tokens, sizeof tokens)); // of the epoch alone
    loader_free(l);
    c.workers = 5;
    l = loader_create(&d, &c);
    epoch_tokens(l, EPOCHS - 1, again);
    EXPECT(!memcmp(again, tokens, sizeof tokens)); // not of the workers
    loader_free(l);
    c.one_pass = true;
    l = loader_create(&d, &c);
    epoch_tokens(l, 0, tokens);
    for (int i = 0; i < PAIRS; i++) EXPECT(!memcmp(tokens[i], expected[0], sizeof expected[0]));
    loader_free(l);
    tokenizer_free(t);
    dataset_free(&d);
}

int main(void) {
    make_test_folder("test_forms");
    RUN(test_tables_in_json_are_read);
    RUN(test_labels_and_keys_of_json_rows_are_read);
    RUN(test_a_folder_with_metadata_is_its_table);
    RUN(test_endings_in_upper_case_and_other_captions);
    RUN(test_one_line_of_a_caption_is_drawn);
    remove_test_folder();
    return test_report();
}
