// Features of locked towers, kept in memory and in a file: they are those that the tower computes, to the
// bit, whatever changes between two runs or in the file.
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"

#include "clipc/train/feature_cache.h"
#include "dev/test/data_files.h"

#include <sys/resource.h>

enum { PAIRS = 12, B = 5, T = 7, S = 19, PIXELS = 3 * S * S };

static Clip *clip;
static uint8_t pixels[PAIRS][PIXELS];
static int tokens[PAIRS][T];
static float *truth[2]; // (PAIRS,C) what the towers compute

static Clip *make_clip(void) {
    ClipConfig c;
    memset(&c, 0, sizeof c);
    c.embed_dim = 9;
    c.image_size = S;
    c.patch_size = 6;
    c.image_width = 15;
    c.image_layers = 2;
    c.image_heads = 3;
    c.image_mlp = 60;
    c.ln_pre = 1;
    c.context_length = T;
    c.vocab_size = 97;
    c.text_width = 12;
    c.text_layers = 2;
    c.text_heads = 3;
    c.text_mlp = 48;
    c.eot_id = 96;
    c.image_ln_eps = c.text_ln_eps = 1e-5f;
    c.mean_r = c.mean_g = c.mean_b = 0.5f;
    c.std_r = c.std_g = c.std_b = 0.25f;
    return clip_create(&c, NULL, 0, 5);
}

static ClipBatch batch_of(const int64_t *indices, int n, uint8_t *its_pixels, int *its_tokens) {
    ClipBatch batch = clip_batch(n);
    for (int i = 0; i < n; i++) {
        memcpy(its_pixels + (size_t)i * PIXELS, pixels[indices[i]], PIXELS);
        memcpy(its_tokens + (size_t)i * T, tokens[indices[i]], sizeof tokens[0]);
    }
    batch.pixels = its_pixels;
    batch.tokens = its_tokens;
    return batch;
}

static void compute_truth(int tower) {
    const size_t C = (size_t)(tower == IMAGE_TOWER ? clip->config.image_width : clip->config.text_width);
    truth[tower] = (float *)realloc_check(truth[tower], PAIRS * C * sizeof(float));
    for (int64_t i = 0; i < PAIRS; i++) {
        ClipBatch one = clip_batch(1);
        one.pixels = pixels[i];
        one.tokens = tokens[i];
        clip_pool(clip, tower, &one, truth[tower] + (size_t)i * C);
    }
}

static void make_pairs(void) {
    Rand r = rand_for(8, 0, 0);
    for (int i = 0; i < PAIRS; i++) {
        for (int k = 0; k < PIXELS; k++) pixels[i][k] = (uint8_t)rand_below(&r, 256);
        tokens[i][0] = 95;
        for (int t = 1; t < T; t++) tokens[i][t] = (int)rand_below(&r, 95);
        tokens[i][2 + i % (T - 2)] = 96;
    }
    for (int tower = 0; tower < 2; tower++) compute_truth(tower);
}

// A batch of these samples has the features that the tower computes.
static bool gathers(FeatureCache *c, const int64_t *indices, int n) {
    static uint8_t its_pixels[PAIRS * PIXELS];
    static int its_tokens[PAIRS * T];
    const size_t C = (size_t)c->width;
    float *pooled = (float *)malloc_check((size_t)n * C * sizeof *pooled);
    const ClipBatch batch = batch_of(indices, n, its_pixels, its_tokens);
    feature_cache_gather(c, clip, pooled, &batch, indices);
    bool same = true;
    for (int i = 0; i < n; i++)
        same = same &&
               !memcmp(pooled + (size_t)i * C, truth[c->tower] + (size_t)indices[i] * C, C * sizeof *pooled);
    free(pooled);
    return same;
}

static bool gathers_all(FeatureCache *c) {
    bool same = true;
    for (int64_t first = 0; first < PAIRS; first += B) {
        int64_t indices[B];
        const int n = (int)min_i64(B, PAIRS - first);
        for (int i = 0; i < n; i++) indices[i] = first + i;
        same = gathers(c, indices, n) && same;
    }
    return same;
}

static FeatureCache open_kept(int tower) {
    FeatureCache c = feature_cache_create(clip, tower, PAIRS);
    feature_cache_open(&c, clip, at("kept"));
    return c;
}

// A run over all pairs with the file "kept": are all features right? *found: how many it held before.
static bool run_with_file(int tower, size_t *found) {
    FeatureCache c = open_kept(tower);
    *found = c.count;
    const bool same = gathers_all(&c);
    feature_cache_save(&c);
    feature_cache_free(&c);
    return same;
}

static void expect_run(int tower, size_t found, const char *what) {
    size_t held;
    EXPECT(run_with_file(tower, &held), "%s: a feature is wrong", what);
    EXPECT(held == found, "%s: %zu were in the file, not %zu", what, held, found);
}

// ---------------------------------------------------------------- what features depend on

static void test_features_are_those_of_the_tower(void) {
    for (int tower = 0; tower < 2; tower++) {
        FeatureCache c = feature_cache_create(clip, tower, PAIRS);
        for (int epoch = 0; epoch < 2; epoch++) EXPECT(gathers_all(&c) && c.count == PAIRS, "%zu", c.count);
        const int64_t twice[] = {3, 7, 3, 3, 0};
        EXPECT(gathers(&c, twice, 5) && c.count == PAIRS);
        feature_cache_free(&c);
        unlink(at("kept"));
        expect_run(tower, 0, "new file");
        expect_run(tower, PAIRS, "second run");
    }
}

// What the features of each tower depend on; quick_gelu is a matter of both, embed_dim of none.
static const char *const fields_of[2] = {" image_size patch_size image_width image_layers image_heads "
                                         "image_mlp ln_pre image_ln_eps quick_gelu mean_r "
                                         "mean_g mean_b std_r std_g std_b patch_bias absent ",
    " context_length vocab_size text_width text_layers text_heads text_mlp eot_id text_ln_eps quick_gelu "
    "absent "};

static void expect_hash(Hash128 before, int tower, bool depends, const char *what) {
    EXPECT(hash128_equal(tower_hash(clip, tower), before) == !depends, "tower %d, %s", tower, what);
}

static void test_each_field_changed_alone(void) {
    char word[64];
    for (int tower = 0; tower < 2; tower++) {
        const Hash128 before = tower_hash(clip, tower);
#define X(type, field, low, high)                                         \
    {                                                                     \
        const type old = clip->config.field;                              \
        snprintf(word, sizeof word, " %s ", #field);                      \
        clip->config.field = (type)(old + 1);                             \
        expect_hash(before, tower, strstr(fields_of[tower], word), word); \
        clip->config.field = old;                                         \
    }
        CONFIG_FIELDS(X)
#undef X
    }
}

static void test_each_weight_changed_alone(void) {
    for (int tower = 0; tower < 2; tower++) {
        const Hash128 before = tower_hash(clip, tower);
        for (int i = 0; i < clip->tensors.count; i++) {
            const Tensor *x = &clip->tensors.list[i];
            float *values = (float *)malloc_check(x->count * sizeof *values);
            clip_read(clip, ARENA_PARAMETERS, x, values);
            const float old = values[x->count - 1];
            values[x->count - 1] = old + 0.5f;
            clip_write(clip, ARENA_PARAMETERS, x, values);
            const bool after_pooling = strcmp(x->name, "visual.proj") == 0 ||
                                       strcmp(x->name, "text_projection") == 0 ||
                                       strcmp(x->name, "logit_scale") == 0;
            expect_hash(before, tower, x->tower == tower && !after_pooling, x->name);
            values[x->count - 1] = old;
            clip_write(clip, ARENA_PARAMETERS, x, values);
            free(values);
        }
        expect_hash(before, tower, false, "nothing");
    }
}

// Of the pixels, of the tokens up to the end of the text, one changed alone: one miss, and the right feature.
static void test_each_input_changed_alone(void) {
    size_t held;
    unlink(at("kept"));
    run_with_file(IMAGE_TOWER, &held);
    for (size_t i = 0; i < 12; i++) { // the first one, the last one, ten between
        const size_t k = i * (PIXELS - 1) / 11;
        pixels[4][k] ^= 1;
        compute_truth(IMAGE_TOWER);
        expect_run(IMAGE_TOWER, PAIRS + i, "a pixel");
        expect_run(IMAGE_TOWER, PAIRS + i + 1, "a pixel, again");
        pixels[4][k] ^= 1;
    }
    compute_truth(IMAGE_TOWER);
    unlink(at("kept"));
    run_with_file(TEXT_TOWER, &held);
    for (int t = 0; t < T; t++) {
        const int old = tokens[T - 3][t]; // the last token of this caption is the end of the text
        tokens[T - 3][t] = old == 96 ? 7 : old == 7 ? 8 : 7;
        compute_truth(TEXT_TOWER);
        expect_run(TEXT_TOWER, (size_t)(PAIRS + t), "a token");
        tokens[T - 3][t] = old;
    }
    compute_truth(TEXT_TOWER);
}

// Samples in another order, some left out, some twice, some with the image of another: all are found.
static void test_samples_are_found_in_any_order(void) {
    const int64_t orders[][B] = {{11, 10, 9, 8, 7}, {3, 3, 0, 3, 0}, {5, 1, 5, 1, 2}};
    size_t held;
    for (int tower = 0; tower < 2; tower++) {
        unlink(at("kept"));
        run_with_file(tower, &held);
        for (int i = 0; i < 3; i++) {
            FeatureCache c = open_kept(tower);
            EXPECT(gathers(&c, orders[i], B) && c.count == PAIRS, "%zu", c.count);
            feature_cache_free(&c);
        }
        uint8_t other[PIXELS];
        memcpy(other, pixels[2], PIXELS); // the data is edited: samples 2 and 9 exchange their images
        memcpy(pixels[2], pixels[9], PIXELS);
        memcpy(pixels[9], other, PIXELS);
        compute_truth(IMAGE_TOWER);
        expect_run(tower, PAIRS, "exchanged images");
    }
}

static void open_image_file(const void *argument) {
    (void)argument;
    FeatureCache c = open_kept(IMAGE_TOWER);
    feature_cache_free(&c);
}
static void open_text_file(const void *argument) {
    (void)argument;
    FeatureCache c = open_kept(TEXT_TOWER);
    feature_cache_free(&c);
}

// The header of "kept" with one field changed, its checksum right.
static void change_header(size_t offset, int by) {
    size_t bytes;
    char *file = file_read_all(at("kept"), &bytes);
    FeaturesHeader h;
    file[offset] = (char)(file[offset] + by);
    memcpy(&h, file, sizeof h);
    h.crc = crc_of(&h, offsetof(FeaturesHeader, crc));
    memcpy(file, &h, sizeof h);
    write_file(at("kept"), file, bytes);
    free(file);
}

static void test_files_made_in_another_way_are_refused(void) {
    const struct {
        size_t offset;
        const char *says;
    } cases[] = {
        {offsetof(FeaturesHeader, magic), "is not a feature file; give --feature-cache another name"},
        {offsetof(FeaturesHeader, version), "was written by another version of the program; remove it"},
        {offsetof(FeaturesHeader, tower), "made with another tower; remove it"},
        {offsetof(FeaturesHeader, width), "made with other weights; remove it"},
        {offsetof(FeaturesHeader, weights), "made with other weights; remove it"},
        {offsetof(FeaturesHeader, weights) + 8, "made with other weights; remove it"},
        {offsetof(FeaturesHeader, precision), "made with another --precision; remove it"},
        {offsetof(FeaturesHeader, kernels), "made with other kernels"}};
    size_t held;
    unlink(at("kept"));
    run_with_file(IMAGE_TOWER, &held);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        change_header(cases[i].offset, 1);
        EXPECT_REFUSED(open_image_file, NULL, cases[i].says);
        change_header(cases[i].offset, -1);
    }
    EXPECT_REFUSED(open_text_file, NULL, "made with another tower; remove it");
    expect_run(IMAGE_TOWER, PAIRS, "changed and back");
    const int32_t old[8] = {FEATURES_MAGIC, 1, 0, 15, 7, 0, 1 << 30, 1 << 30};
    write_file(at("kept"), old, sizeof old);
    EXPECT_REFUSED(open_image_file, NULL, "was written by another version of the program; remove it");
    write_text(at("kept"), "a text");
    EXPECT_REFUSED(open_image_file, NULL, "is not a feature file");
    write_file(at("kept"), old, 10);
    EXPECT_REFUSED(open_image_file, NULL, "was written by another version");
    const int32_t cut[2] = {FEATURES_MAGIC, FEATURES_VERSION};
    write_file(at("kept"), cut, sizeof cut);
    EXPECT_REFUSED(open_image_file, NULL, "is damaged; remove it");
}

// ---------------------------------------------------------------- what happens to the file

static char *whole; // (whole_bytes) a file of all images
static size_t whole_bytes;

static void make_whole(void) {
    size_t held;
    unlink(at("kept"));
    run_with_file(IMAGE_TOWER, &held);
    free(whole);
    whole = file_read_all(at("kept"), &whole_bytes);
}

static void run_once(const void *argument) {
    size_t held;
    (void)argument;
    omp_set_num_threads(1); // a child has none of OpenMP's threads
    if (!run_with_file(IMAGE_TOWER, &held)) exit(3);
    printf("%zu found\n", held);
}

static void test_a_flipped_bit_costs_one_feature_or_is_refused(void) {
    Rand r = rand_for(4, 0, 0);
    char *file = (char *)malloc_check(whole_bytes);
    for (int i = 0; i < 120; i++) {
        const size_t byte = rand_below(&r, i % 3 ? whole_bytes : sizeof(FeaturesHeader));
        memcpy(file, whole, whole_bytes);
        file[byte] ^= (char)(1 << (i % 8));
        write_file(at("kept"), file, whole_bytes);
        const int code = child_run(run_once, NULL);
        const bool told = strstr(child.text, "1 of its features are damaged; they are computed again") &&
                          strstr(child.text, "11 found");
        EXPECT(byte < sizeof(FeaturesHeader) ? code == EXIT_USAGE : code == 0 && told, "byte %zu: %d, %s",
            byte, code, child.text);
    }
    free(file);
}

// A killed run leaves a part of a record, or nothing but a part of the header.
static void test_a_cut_file_keeps_its_whole_records(void) {
    const FeatureCache c = feature_cache_create(clip, IMAGE_TOWER, 0);
    const size_t record = feature_record_bytes(&c);
    for (size_t cut = 1; cut < 2 * record; cut += 7) {
        write_file(at("kept"), whole, whole_bytes - cut);
        expect_run(IMAGE_TOWER, cut <= record ? PAIRS - 1 : PAIRS - 2, "cut");
        expect_run(IMAGE_TOWER, PAIRS, "completed");
        struct stat st;
        EXPECT(stat(at("kept"), &st) == 0 && (size_t)st.st_size == whole_bytes, "cut by %zu", cut);
    }
    write_file(at("kept"), whole, 0);
    expect_run(IMAGE_TOWER, 0, "empty");
    write_file(at("kept"), whole, sizeof(FeaturesHeader) - 1);
    EXPECT_REFUSED(open_image_file, NULL, "is damaged; remove it");
    free(c.image_row);
}

// Under the run the file is removed, emptied, or cut: what the run knows is written again, or later.
static void test_a_file_that_is_lost_under_a_run_is_written_again(void) {
    for (int way = 0; way < 3; way++) {
        int64_t first[] = {0, 1, 2};
        unlink(at("kept"));
        FeatureCache c = open_kept(IMAGE_TOWER);
        EXPECT(gathers(&c, first, 3));
        feature_cache_save(&c);
        if (way == 0) unlink(at("kept"));
        else if (truncate(at("kept"), way == 1 ? 0 : (off_t)sizeof(FeaturesHeader) + 9))
            die(EXIT_RUNTIME, "truncate");
        EXPECT(gathers_all(&c));
        feature_cache_save(&c);
        feature_cache_free(&c);
        expect_run(IMAGE_TOWER, way == 2 ? PAIRS - 3 : PAIRS, "afterwards");
        expect_run(IMAGE_TOWER, PAIRS, "again");
    }
}

static void replace_under_the_run(const void *argument) {
    omp_set_num_threads(1);
    FeatureCache c = open_kept(IMAGE_TOWER);
    write_text(at("kept"), (const char *)argument);
    if (!gathers_all(&c)) exit(3);
    feature_cache_save(&c);
    feature_cache_save(&c);
    feature_cache_free(&c);
}

static void test_another_file_of_the_name_is_left_alone(void) {
    const char *texts[] = {"mine", "a text of mine that is longer than the header of a file of features is"};
    for (int i = 0; i < 2; i++) {
        size_t bytes;
        unlink(at("kept"));
        const int code = child_run(replace_under_the_run, texts[i]);
        const char *line = strstr(child.text, "cannot be written to (it was replaced under this run)");
        EXPECT(code == 0 && line && !strstr(line + 1, "cannot"), "%d: %s", code, child.text);
        char *text = file_read_all(at("kept"), &bytes);
        EXPECT_STRING(text, texts[i]);
        free(text);
    }
}

static void run_on_full_disk(const void *argument) {
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = (rlim_t)(sizeof(FeaturesHeader) + 333);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) exit(EXIT_FAILURE);
    run_once(argument);
}

static void test_a_full_disk_does_not_end_the_run(void) {
    unlink(at("kept"));
    const int code = child_run(run_on_full_disk, NULL);
    EXPECT(code == 0 && strstr(child.text, "kept: cannot be written to (") &&
               strstr(child.text, "; features are not kept any more"),
        "%d: %s", code, child.text);
    expect_run(IMAGE_TOWER, 0, "after a full disk");
    expect_run(IMAGE_TOWER, PAIRS, "and then");
}

// Two runs append by turns; what either has computed is found afterwards.
static void test_two_runs_share_a_file(void) {
    unlink(at("kept"));
    FeatureCache one = open_kept(IMAGE_TOWER), other = open_kept(IMAGE_TOWER);
    for (int64_t i = 0; i < PAIRS; i++) {
        FeatureCache *c = i % 3 ? &one : &other;
        EXPECT(gathers(c, &i, 1));
        feature_cache_save(c);
    }
    const int64_t both = 5;
    EXPECT(gathers(&one, &both, 1) && gathers(&other, &both, 1));
    feature_cache_save(&one);
    feature_cache_save(&other);
    feature_cache_free(&one);
    feature_cache_free(&other);
    expect_run(IMAGE_TOWER, PAIRS, "of two runs");
}

// Rows are written before there are too many to be lost, and not again at the end of each epoch.
static void test_a_file_is_only_appended_to(void) {
    struct stat before, after;
    unlink(at("kept"));
    FeatureCache c = open_kept(IMAGE_TOWER);
    EXPECT(gathers_all(&c));
    feature_cache_save(&c);
    if (stat(at("kept"), &before)) die(EXIT_RUNTIME, "stat");
    for (int epoch = 0; epoch < 3; epoch++) {
        EXPECT(gathers_all(&c));
        feature_cache_save(&c);
    }
    EXPECT(stat(at("kept"), &after) == 0 && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec &&
           before.st_size == after.st_size && before.st_ino == after.st_ino);
    feature_cache_free(&c);
}

int main(void) {
    make_test_folder("test_feature_cache");
    clip = make_clip();
    make_pairs();
    RUN(test_features_are_those_of_the_tower);
    RUN(test_each_field_changed_alone);
    RUN(test_each_weight_changed_alone);
    RUN(test_each_input_changed_alone);
    RUN(test_samples_are_found_in_any_order);
    RUN(test_files_made_in_another_way_are_refused);
    make_whole();
    RUN(test_a_flipped_bit_costs_one_feature_or_is_refused);
    RUN(test_a_cut_file_keeps_its_whole_records);
    RUN(test_a_file_that_is_lost_under_a_run_is_written_again);
    RUN(test_another_file_of_the_name_is_left_alone);
    RUN(test_a_full_disk_does_not_end_the_run);
    RUN(test_two_runs_share_a_file);
    RUN(test_a_file_is_only_appended_to);
    for (int tower = 0; tower < 2; tower++) free(truth[tower]);
    free(whole);
    clip_free(clip);
    remove_test_folder();
    return test_report();
}
