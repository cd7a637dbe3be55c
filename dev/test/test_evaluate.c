// Evaluation: class names and templates, zero-shot and validation over a data set, feature files, single
// images. A toy back end takes the place of the model.
#include "clipc/train/validation.h"

#include "dev/test/child.h"
#include "dev/test/features.h"

// ---------------------------------------------------------------- helpers

static void write_text(const char *path, const char *text) {
    FILE *f = fopen_check(path, "wb");
    fwrite_check(text, strlen(text), f, path);
    fclose(f);
}

static void remove_folder(const char *folder) {
    char *const roots[2] = {(char *)(uintptr_t)folder, NULL};
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    for (FTSENT *f; (f = fts_read(walk));)
        if (f->fts_info != FTS_D) remove(f->fts_accpath);
    fts_close(walk);
}

// ---------------------------------------------------------------- class names, templates

static void read_classnames(const void *path) {
    StringList names = classnames_read((const char *)path);
    string_list_free(&names);
    exit(0);
}

static void read_templates(const void *path) {
    StringList templates = templates_read((const char *)path);
    string_list_free(&templates);
    exit(0);
}

static void test_classnames_and_templates_are_read(const char *folder) {
    char path[PATH_SIZE];
    path_format(path, "%s/lines.txt", folder);
    write_text(path, "\xef\xbb\xbf"
                     // BOM, CRLF, blanks, no end at the end
                     "tench\r\n\r\n  great white shark \t\r\n\n\xc3\xa9l\xc3\xa9phant");
    StringList names = classnames_read(path);
    EXPECT(names.count == 3, "%zu names", names.count);
    EXPECT_STRING(names.list[0], "tench");
    EXPECT_STRING(names.list[1], "great white shark");
    EXPECT_STRING(names.list[2], "\xc3\xa9l\xc3\xa9phant");
    string_list_free(&names);

    EXPECT(child_run(read_classnames, path) == 0 && !*child.text, "'%s'", child.text);
    write_text(path, "crane\nmaillot\ncrane\nmaillot\ncrane\nbird\n");
    EXPECT(child_run(read_classnames, path) == 0 &&
               strstr(child.text, "3 lines repeat an earlier class name, such as 'maillot'"),
        "'%s'", child.text);
    write_text(path, " \r\n\n");
    EXPECT_REFUSED(read_classnames, path, "no class names in it");
    write_text(path, "");
    EXPECT_REFUSED(read_classnames, path, "no class names in it");
    FILE *f = fopen_check(path, "wb");
    fwrite_check("c\0a\0t\0", 6, f, path);
    fclose(f);
    EXPECT_REFUSED(read_classnames, path, "UTF-8");
    path_format(path, "%s/none.txt", folder);
    EXPECT_REFUSED(read_classnames, path, "none.txt: cannot open");

    path_format(path, "%s/sentences.txt", folder);
    write_text(path, "a photo of a {}.\n\nthe {c} in {c}, {}\r\n{}");
    StringList templates = templates_read(path);
    char *caption = NULL;
    size_t capacity = 0;
    static const char *const expected[] = {"a photo of a cat.", "the cat in cat, cat", "cat"};
    EXPECT(templates.count == 3, "%zu templates", templates.count);
    for (size_t i = 0; i < templates.count && i < 3; i++) {
        template_fill(&caption, &capacity, templates.list[i], "cat");
        EXPECT_STRING(caption, expected[i]);
    }
    template_fill(&caption, &capacity, "{}{", "a {} in braces"); // a name is put in as it is
    EXPECT_STRING(caption, "a {} in braces{");
    string_list_free(&templates);
    write_text(path, "a photo of a {}.\na photo of { }.\n");
    EXPECT_REFUSED(read_templates, path, "no {} in 'a photo of { }.'");
    templates = templates_read(NULL);
    EXPECT(templates.count == 1, "%zu templates", templates.count);
    template_fill(&caption, &capacity, templates.list[0], "dog");
    EXPECT_STRING(caption, "a photo of a dog.");
    string_list_free(&templates);
    free(caption);
}

// ---------------------------------------------------------------- a toy model

// It sees the mean colour of an image, and the words for six colours in a caption; other words shift a
// caption's feature a little.
enum { TOY_E = 6, TOY_SIZE = 5, TOY_CONTEXT = 16, COLOURS = 6 };
static const char *const COLOUR_NAMES[COLOURS] = {
    "blue", "cyan", "green", "magenta", "red", "yellow"}; // sorted, as folders are
static const float COLOUR_RGB[COLOURS][3] = {
    {0, 0, 1}, {0, 1, 1}, {0, 1, 0}, {1, 0, 1}, {1, 0, 0}, {1, 1, 0}};

struct Backend {
    int word[COLOURS]; // token ids
    float scale;
    int calls;                   // of either tower
    volatile sig_atomic_t *stop; // set at the fourth call, as Ctrl-C would; or NULL
};

static void toy_count_call(Backend *back) {
    if (++back->calls != 4 || !back->stop) return;
    usleep(50000); // the workers have the next batch ready by then
    *back->stop = 1;
}

static void toy_image_feature(float *out, const double rgb[3]) {
    for (int e = 0; e < TOY_E; e++) out[e] = e < 3 ? (float)rgb[e] : 0.05f;
    normalise_rows(out, 1, TOY_E);
}

static void toy_text_feature(float *out, const Backend *back, const int *tokens, int length) {
    for (int e = 0; e < TOY_E; e++) out[e] = 0;
    for (int t = 0; t < length; t++) {
        Rand r = rand_for(3, (uint64_t)tokens[t], 0);
        for (int e = 0; e < TOY_E; e++) out[e] += 0.15f * (float)rand_normal(&r);
        for (int c = 0; c < COLOURS; c++)
            for (int e = 0; e < 3 && tokens[t] == back->word[c]; e++) out[e] += COLOUR_RGB[c][e];
    }
    normalise_rows(out, 1, TOY_E);
}

void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features) {
    toy_count_call(clip->back);
    int area = clip->config.image_size * clip->config.image_size;
    for (int i = 0; i < batch->size; i++) {
        double rgb[3] = {0, 0, 0};
        for (int j = 0; j < 3 * area; j++) rgb[j / area] += batch->pixels[i * 3 * area + j] / (255.0 * area);
        toy_image_feature(features + i * TOY_E, rgb);
    }
}

void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features) {
    toy_count_call(clip->back);
    for (int i = 0; i < batch->size; i++) {
        const int *tokens = batch->tokens + i * TOY_CONTEXT;
        toy_text_feature(features + i * TOY_E, clip->back, tokens,
            caption_length(tokens, TOY_CONTEXT, clip->config.eot_id));
    }
}

float clip_logit_scale(const Clip *clip) { return clip->back->scale; }

static void toy_caption_feature(float *out, const Evaluation *e, const char *caption) {
    int tokens[TOY_CONTEXT];
    int length = tokenizer_encode(e->loader.tokenizer, caption, strlen(caption), tokens, TOY_CONTEXT);
    toy_text_feature(out, e->clip->back, tokens, length);
}

static Evaluation toy_create(void) {
    Evaluation e;
    char error[256];
    memset(&e, 0, sizeof e);
    Tokenizer *tokenizer = tokenizer_create(tokenizer_builtin_merges, tokenizer_builtin_merges_length, error);
    if (!tokenizer) die(EXIT_RUNTIME, "the built-in merges: %s", error);
    e.clip = (Clip *)calloc_check(1, sizeof(Clip));
    e.clip->back = (Backend *)calloc_check(1, sizeof(Backend));
    e.clip->back->scale = 20;
    for (int c = 0; c < COLOURS; c++) {
        int tokens[TOY_CONTEXT];
        tokenizer_encode(tokenizer, COLOUR_NAMES[c], strlen(COLOUR_NAMES[c]), tokens, TOY_CONTEXT);
        e.clip->back->word[c] = tokens[1];
    }
    e.clip->config.embed_dim = TOY_E;
    e.clip->config.context_length = TOY_CONTEXT;
    e.clip->config.image_size = TOY_SIZE;
    e.clip->config.vocab_size = CLIP_VOCABULARY;
    e.clip->config.eot_id = CLIP_VOCABULARY - 1;
    strcpy(e.clip->config.name, "toy \"quoted\"");
    e.kernels = kernels_select();
    e.loader.batch_size = 5;
    e.loader.workers = 2;
    e.loader.image.size = TOY_SIZE;
    e.loader.context = TOY_CONTEXT;
    e.loader.image.max_pixels = 1000000;
    e.loader.tokenizer = tokenizer;
    e.loader.one_pass = true;
    return e;
}

static void toy_free(Evaluation *e) {
    tokenizer_free((Tokenizer *)(uintptr_t)e->loader.tokenizer);
    free(e->clip->back);
    free(e->clip);
}

// An image of one colour; rgb from 0 to 1.
static void write_png(const char *path, const double rgb[3]) {
    enum { W = 9, H = 7 };
    uint8_t pixels[W * H * 3];
    png_image png;
    for (int i = 0; i < W * H * 3; i++) pixels[i] = (uint8_t)(rgb[i % 3] * 255 + 0.5);
    memset(&png, 0, sizeof png);
    png.version = PNG_IMAGE_VERSION;
    png.width = W;
    png.height = H;
    png.format = PNG_FORMAT_RGB;
    if (!png_image_write_to_file(&png, path, 0, pixels, 0, NULL)) die(EXIT_RUNTIME, "%s: cannot write", path);
}

// ---------------------------------------------------------------- images on disk

enum { PER_CLASS = 4, IMAGES = COLOURS * PER_CLASS };

// In bytes / 255, exactly as the toy model will see it.
static void image_colour(double rgb[3], int colour, int i) {
    Rand r = rand_for(9, (uint64_t)colour, (uint64_t)i);
    for (int e = 0; e < 3; e++)
        rgb[e] = floor(255 * (0.5 * COLOUR_RGB[colour][e] + rand_range(&r, 0, 0.5))) / 255;
}

static void image_caption(char *out, size_t size, int colour, int i) {
    static const char *const words[PER_CLASS] = {
        "cup", "door", "flower", "cup"}; // the first and the last of a class have equal captions
    snprintf(out, size, "a %s %s", COLOUR_NAMES[colour], words[i % PER_CLASS]);
}

// FOLDER/classes/COLOUR/I.png with one broken file; tables of them: labels.csv (by number and by name),
// pairs.csv (captions and labels; row 3 has no file), nolabel.csv; names.txt, five.txt, templates.txt
static void write_images(const char *folder) {
    char path[PATH_SIZE], caption[100];
    double rgb[3];
    path_format(path, "%s/labels.csv", folder);
    FILE *labels = fopen_check(path, "w");
    path_format(path, "%s/pairs.csv", folder);
    FILE *pairs = fopen_check(path, "w");
    fprintf(labels, "filepath,label\n");
    fprintf(pairs, "filepath,title,label\n");
    for (int c = 0; c < COLOURS; c++)
        for (int i = 0; i < PER_CLASS; i++) {
            path_format(path, "%s/classes/%s", folder, COLOUR_NAMES[c]);
            make_directories(path);
            path_format(path, "%s/classes/%s/%d.png", folder, COLOUR_NAMES[c], i);
            image_colour(rgb, c, i);
            write_png(path, rgb);
            image_caption(caption, sizeof caption, c, i);
            if (i % 2) fprintf(labels, "classes/%s/%d.png,%d\n", COLOUR_NAMES[c], i, c);
            else fprintf(labels, "classes/%s/%d.png,%s\n", COLOUR_NAMES[c], i, COLOUR_NAMES[c]);
            if (c == 0 && i == 3) fprintf(pairs, "classes/none.png,nothing,0\n");
            fprintf(pairs, "classes/%s/%d.png,%s,%d\n", COLOUR_NAMES[c], i, caption, c);
        }
    fclose(labels);
    fclose(pairs);
    path_format(path, "%s/classes/red/broken.png", folder);
    write_text(path, "not an image");
    path_format(path, "%s/names.txt", folder);
    write_text(path, "blue\ncyan\ngreen\nmagenta\nred\nyellow\n");
    path_format(path, "%s/five.txt", folder);
    write_text(path, "blue\ncyan\ngreen\nmagenta\nred\n");
    path_format(path, "%s/templates.txt", folder);
    write_text(path, "a photo of a {}.\na {} cup\n{} flower, very {}\n");
}

// ---------------------------------------------------------------- evaluation of the toy model

// What the accuracy must be, straight from the definition.
static void expected_zeroshot(const Evaluation *e, const StringList *templates, double *top1, double *top5) {
    double classifier[COLOURS][TOY_E], rgb[3], shares[COLOURS] = {0};
    for (int c = 0; c < COLOURS; c++) {
        char *caption = NULL;
        size_t capacity = 0;
        float feature[TOY_E];
        double square = 0;
        memset(classifier[c], 0, sizeof classifier[c]);
        for (size_t t = 0; t < templates->count; t++) {
            template_fill(&caption, &capacity, templates->list[t], COLOUR_NAMES[c]);
            toy_caption_feature(feature, e, caption);
            for (int k = 0; k < TOY_E; k++) classifier[c][k] += feature[k] / (double)templates->count;
        }
        for (int k = 0; k < TOY_E; k++) square += classifier[c][k] * classifier[c][k];
        for (int k = 0; k < TOY_E; k++) classifier[c][k] /= sqrt(square);
        free(caption);
    }
    for (int p = 0; p < IMAGES; p++) {
        float image[TOY_E];
        double scores[COLOURS] = {0};
        image_colour(rgb, p / PER_CLASS, p % PER_CLASS);
        toy_image_feature(image, rgb);
        for (int c = 0; c < COLOURS; c++)
            for (int k = 0; k < TOY_E; k++) scores[c] += image[k] * classifier[c][k];
        int rank = 0;
        for (int c = 0; c < COLOURS; c++) rank += scores[c] > scores[p / PER_CLASS];
        shares[rank] += 1.0 / IMAGES;
    }
    *top1 = shares[0];
    *top5 = 1 - shares[5];
}

static void test_zeroshot_is_the_same_over_folders_and_tables(Evaluation e, const char *folder) {
    char spec[PATH_SIZE], names[PATH_SIZE], templates[PATH_SIZE];
    DatasetConfig keys = dataset_config_default();
    ZeroshotMetrics m;
    path_format(names, "%s/names.txt", folder);
    path_format(templates, "%s/templates.txt", folder);
    for (int kind = 0; kind < 4;
         kind++) { // a folder with and without names, a table with a name, default templates
        path_format(spec,
            kind < 2    ? "%s/classes"
            : kind == 2 ? "%s/labels.csv"
                        : "shapes=%s/labels.csv",
            folder);
        ZeroshotSet set =
            zeroshot_open("zeroshot-data", spec, kind ? names : NULL, kind < 3 ? templates : NULL, &keys);
        EXPECT_STRING(set.name, kind == 3 ? "shapes" : "");
        double top1, top5;
        expected_zeroshot(&e, &set.templates, &top1, &top5);
        EXPECT(top1 > 0.3 && top1 < 1 && top5 > top1, "the toy must be neither blind nor perfect: %g, %g",
            top1, top5);
        for (int batch = 1; batch < 40; batch += 6) {
            e.loader.batch_size = batch;
            e.loader.workers = 1 + batch % 3;
            EXPECT(evaluate_zeroshot(&e, &set, &m), "it runs through");
            EXPECT_CLOSE(m.top1, top1, 1e-12);
            EXPECT_CLOSE(m.top5, top5, 1e-12);
            EXPECT(m.samples == IMAGES && m.classes == COLOURS, "%lld samples", (long long)m.samples);
        }
        MetricList list = zeroshot_metric_list(&m, set.name);
        EXPECT(list.count == 2, "%d metrics", list.count);
        EXPECT_STRING(list.list[0].name, kind == 3 ? "zeroshot_top1/shapes" : "zeroshot_top1");
        EXPECT_STRING(list.list[1].name, kind == 3 ? "zeroshot_top5/shapes" : "zeroshot_top5");
        EXPECT(list.list[0].value == m.top1 && list.list[1].value == m.top5, "values");
        zeroshot_close(&set);
    }
    m.classes = 5;
    EXPECT(zeroshot_metric_list(&m, "").count == 2, "a top-5 of five classes");
    m.classes = 4;
    EXPECT(zeroshot_metric_list(&m, "").count == 1, "no top-5 of four classes");
}

static const char *const VALIDATION_NAMES[] = {"val_loss", "image_to_text_mean_rank",
    "image_to_text_median_rank", "image_to_text_R@1", "image_to_text_R@5", "image_to_text_R@10",
    "text_to_image_mean_rank", "text_to_image_median_rank", "text_to_image_R@1", "text_to_image_R@5",
    "text_to_image_R@10", "mean_recall"};

static double naive_loss(const float *image, const float *text, int n, double scale) {
    double loss = 0;
    for (int i = 0; i < n; i++) {
        double row = 0, column = 0;
        for (int j = 0; j < n; j++) {
            row += exp(scale * dot(image + i * TOY_E, text + j * TOY_E, TOY_E));
            column += exp(scale * dot(image + j * TOY_E, text + i * TOY_E, TOY_E));
        }
        loss += (log(row) + log(column)) / 2 - scale * dot(image + i * TOY_E, text + i * TOY_E, TOY_E);
    }
    return loss / n;
}

// Parses a file of features as any reader would, and compares it with what it must hold.
static void check_features_file(const char *path, const float *image, const float *text) {
    static const char *const names[] = {"image_features", "text_features", "indices", "labels"};
    size_t length;
    char *data = file_read_all(path, &length);
    uint64_t header_bytes;
    memcpy(&header_bytes, data, 8);
    EXPECT(header_bytes % 8 == 0 && header_bytes + 8 < length, "header of %llu bytes",
        (unsigned long long)header_bytes);
    json_error_t error;
    json_t *header = json_loadb(data + 8, header_bytes, 0, &error);
    json_t *metadata = json_object_get(header, "__metadata__");
    EXPECT(header && json_object_size(header) == 5, "%s", error.text);
    EXPECT_STRING(json_string_value(json_object_get(metadata, "model")), "toy \"quoted\"");
    EXPECT_STRING(json_string_value(json_object_get(metadata, "logit_scale")), "20");
    int64_t at = 0, row = 0;
    const char *start[4];
    for (int i = 0; i < 4; i++) {
        json_t *tensor = json_object_get(header, names[i]);
        json_t *shape = json_object_get(tensor, "shape");
        json_t *offsets = json_object_get(tensor, "data_offsets");
        EXPECT_STRING(json_string_value(json_object_get(tensor, "dtype")), i < 2 ? "F32" : "I64");
        EXPECT(json_array_size(shape) == (i < 2 ? 2 : 1) &&
                   json_integer_value(json_array_get(shape, 0)) == IMAGES,
            "rows of %s", names[i]);
        EXPECT(i > 1 || json_integer_value(json_array_get(shape, 1)) == TOY_E, "columns of %s", names[i]);
        EXPECT(json_array_size(offsets) == 2 && json_integer_value(json_array_get(offsets, 0)) == at,
            "%s begins where the last one ends", names[i]);
        start[i] = data + 8 + header_bytes + at;
        at = json_integer_value(json_array_get(offsets, 1));
    }
    EXPECT(8 + header_bytes + (uint64_t)at == length, "the file ends with the last tensor");
    for (int p = 0; p < IMAGES; p++, row++) {
        int64_t index, label;
        row += row == 3; // the row without a file
        memcpy(&index, start[2] + 8 * p, 8);
        memcpy(&label, start[3] + 8 * p, 8);
        EXPECT(index == row && label == p / PER_CLASS, "row %d: sample %lld, label %lld", p, (long long)index,
            (long long)label);
    }
    EXPECT(
        memcmp(start[0], image, IMAGES * TOY_E * 4) == 0 && memcmp(start[1], text, IMAGES * TOY_E * 4) == 0,
        "the features");
    json_decref(header);
    free(data);
}

static void test_validation_measures_loss_and_retrieval_and_saves_features(Evaluation e, const char *folder) {
    static const int batches[] = {5, 1, 7, 24, 64};
    char path[PATH_SIZE], features[PATH_SIZE], caption[100];
    float image[IMAGES * TOY_E], text[IMAGES * TOY_E];
    double rgb[3];
    for (int p = 0; p < IMAGES; p++) {
        image_colour(rgb, p / PER_CLASS, p % PER_CLASS);
        toy_image_feature(image + p * TOY_E, rgb);
        image_caption(caption, sizeof caption, p / PER_CLASS, p % PER_CLASS);
        toy_caption_feature(text + p * TOY_E, &e, caption);
    }
    RetrievalMetrics expected = retrieval_metrics(e.kernels, image, text, IMAGES, TOY_E, 0);
    EXPECT(expected.image_to_text.R1 > 0 && expected.image_to_text.R1 < 1, "%g", expected.image_to_text.R1);
    path_format(path, "%s/pairs.csv", folder);
    path_format(features, "%s/features.safetensors", folder);
    DatasetConfig config = dataset_config_default();
    Dataset data = dataset_open(path, &config, 2);
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        double loss = 0;
        for (int first = 0; first < IMAGES; first += batches[b]) {
            int n = IMAGES - first < batches[b] ? IMAGES - first : batches[b];
            loss += n * naive_loss(image + first * TOY_E, text + first * TOY_E, n, 20) / IMAGES;
        }
        ValidationMetrics m = {0};
        e.loader.batch_size = batches[b];
        e.retrieval_chunk = batches[b] - 1;
        EXPECT(evaluate_validation(&e, &data, b ? NULL : features, &m), "it runs through");
        EXPECT(m.samples == IMAGES, "%lld samples", (long long)m.samples);
        EXPECT_CLOSE(m.loss, loss, 1e-5);
        EXPECT(memcmp(&m.retrieval, &expected, sizeof expected) == 0, "retrieval at batch %d", batches[b]);
        MetricList list = validation_metric_list(&m, "");
        EXPECT(list.count == 12 && list.list[0].value == m.loss &&
                   list.list[10].value == m.retrieval.text_to_image.R10,
            "values");
        for (int i = 0; i < 12 && i < list.count; i++) EXPECT_STRING(list.list[i].name, VALIDATION_NAMES[i]);
    }
    check_features_file(features, image, text);
    dataset_free(&data);
}

// ---------------------------------------------------------------- Ctrl-C

static void test_ctrl_c_ends_an_evaluation(Evaluation e, const char *folder) {
    char path[PATH_SIZE], features[PATH_SIZE];
    volatile sig_atomic_t stop = 0;
    ValidationMetrics v = {-1, {{0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}}, -1, -1};
    ZeroshotMetrics z = {-1, -1, -1, -1};
    DatasetConfig config = dataset_config_default();
    e.loader.interrupted = e.clip->back->stop = &stop;
    path_format(path, "%s/pairs.csv", folder);
    path_format(features, "%s/never.safetensors", folder);
    Dataset data = dataset_open(path, &config, 2);
    e.clip->back->calls = 0;
    EXPECT(!evaluate_validation(&e, &data, features, &v), "an interrupted validation says nothing");
    EXPECT(e.clip->back->calls == 4 && v.samples == -1 && !file_exists(features),
        "it ends with the batch: %d calls", e.clip->back->calls);
    dataset_free(&data);
    path_format(path, "%s/classes", folder);
    ZeroshotSet set = zeroshot_open("zeroshot-data", path, NULL, NULL, &config);
    for (int calls = 1; calls < 4;
         calls += 2) { // 6 captions by 5 are two calls: stopped at the first image, and at the first captions
        e.clip->back->calls = calls;
        stop = 0;
        EXPECT(!evaluate_zeroshot(&e, &set, &z) && z.samples == -1,
            "an interrupted zero-shot evaluation says nothing");
    }
    e.clip->back->stop = NULL;
    stop = 0;
    e.loader.interrupted = &stop;
    EXPECT(evaluate_zeroshot(&e, &set, &z) && z.samples == IMAGES, "it runs through");
    zeroshot_close(&set);
}

// ---------------------------------------------------------------- wrong sets, single images (in children)

static const char *folder_of_child; // where the fixtures are

// words: "SPEC CLASSNAMES", both within the folder; CLASSNAMES may be missing
static void open_zeroshot(const void *words) {
    const char *argument = (const char *)words;
    char spec[PATH_SIZE], names[PATH_SIZE];
    const char *blank = strchr(argument, ' ');
    DatasetConfig keys = dataset_config_default();
    path_format(
        spec, "%s/%.*s", folder_of_child, blank ? (int)(blank - argument) : (int)strlen(argument), argument);
    path_format(names, "%s/%s", folder_of_child, blank ? blank + 1 : "");
    ZeroshotSet set = zeroshot_open("zeroshot-data", spec, blank ? names : NULL, NULL, &keys);
    zeroshot_close(&set);
    exit(0);
}

static void test_wrong_zeroshot_sets_are_named(void) {
    int code = child_run(open_zeroshot, "labels.csv names.txt");
    EXPECT(code == 0 && !*child.text, "%d: %s", code, child.text);
    EXPECT_REFUSED(open_zeroshot, "labels.csv five.txt", "'yellow' is not a class, as for 4 of 24 samples");
    EXPECT_REFUSED(open_zeroshot, "labels.csv", "--classnames");
    EXPECT_REFUSED(open_zeroshot, "classes five.txt", "'yellow' is not one of the 5 class names");
    EXPECT_REFUSED(open_zeroshot, "none.csv names.txt", "none.csv");
    EXPECT_REFUSED(open_zeroshot, "classes/red", "no sub-folders");
}

// list: images within the folder, a blank between them; a leading ! takes the tokenizer away
static void classify_images(const void *list) {
    const char *argument = (const char *)list;
    Evaluation e = toy_create();
    Tokenizer *tokenizer = (Tokenizer *)(uintptr_t)e.loader.tokenizer;
    char names_path[PATH_SIZE], words[256];
    StringList paths = {NULL, 0, 0}, templates = templates_read(NULL);
    path_format(names_path, "%s/names.txt", folder_of_child);
    StringList names = classnames_read(names_path);
    if (*argument == '!') {
        e.loader.tokenizer = NULL;
        argument++;
    }
    snprintf(words, sizeof words, "%s", argument);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) {
        char path[PATH_SIZE];
        path_format(path, "%s/%s", folder_of_child, word);
        string_list_add(&paths, path);
    }
    int code = classify(&e, paths.list, (int)paths.count, &names, &templates, 3);
    string_list_free(&paths);
    string_list_free(&names);
    string_list_free(&templates);
    e.loader.tokenizer = tokenizer;
    toy_free(&e);
    exit(code);
}

static void test_classes_of_single_images_are_printed(void) {
    char name[64] = "";
    int code = child_run(
        classify_images, "classes/blue/0.png classes/red/broken.png none.png classes classes/red/1.png");
    EXPECT(code == 0, "exit code %d: %s", code, child.text);
    EXPECT(strstr(child.text, "broken.png: unknown image format") &&
               strstr(child.text, "none.png: no such file") && strstr(child.text, "classes: cannot be read"),
        "%s", child.text);
    const char *blue = strstr(child.text, "blue/0.png\n"), *red = strstr(child.text, "red/1.png\n");
    EXPECT(blue && red, "%s", child.text);
    double share[3] = {0, 0, 0};
    int got =
        blue ? sscanf(blue, "%*s %lf%% %63s %lf%% %*s %lf%%", &share[0], name, &share[1], &share[2]) : 0;
    EXPECT(got == 4, "%s", child.text);
    EXPECT(share[0] >= share[1] && share[1] >= share[2] && share[2] >= 0 &&
               share[0] + share[1] + share[2] <= 100.02,
        "%s", child.text);

    Evaluation e = toy_create(); // the first probability, from the definition
    double rgb[3], sum = 0, first = 0;
    const char *best = "";
    float image[TOY_E], feature[TOY_E];
    image_colour(rgb, 0, 0);
    toy_image_feature(image, rgb);
    for (int c = 0; c < COLOURS; c++) {
        char caption[100];
        snprintf(caption, sizeof caption, "a photo of a %s.", COLOUR_NAMES[c]);
        toy_caption_feature(feature, &e, caption);
        double x = exp(20 * dot(image, feature, TOY_E));
        if (x > first) {
            best = COLOUR_NAMES[c];
            first = x;
        }
        sum += x;
    }
    EXPECT_STRING(name, best);
    EXPECT(fabs(share[0] - 100 * first / sum) <= 0.0051, "%g%% instead of %g%%", share[0], 100 * first / sum);
    toy_free(&e);
    EXPECT(child_run(classify_images, "classes/red/broken.png none.png") == EXIT_USAGE, "nothing usable: %s",
        child.text);
    EXPECT_REFUSED(classify_images, "!classes/red/0.png", "no tokenizer");
}

int main(void) {
    char folder[] = "/tmp/test_evaluate_XXXXXX";
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: cannot make the folder", folder);
    write_images(folder);
    folder_of_child = folder;
    RUN(test_classnames_and_templates_are_read, folder); // those with children first: see child.h
    RUN(test_wrong_zeroshot_sets_are_named);
    RUN(test_classes_of_single_images_are_printed);
    Evaluation e = toy_create();
    RUN(test_zeroshot_is_the_same_over_folders_and_tables, e, folder);
    RUN(test_validation_measures_loss_and_retrieval_and_saves_features, e, folder);
    RUN(test_ctrl_c_ends_an_evaluation, e, folder);
    toy_free(&e);
    remove_folder(folder);
    return test_report();
}
