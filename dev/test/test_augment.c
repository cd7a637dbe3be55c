// Augmentation: --aug-cfg, random crops, colours. Usage: test_augment [FOLDER]. In a folder with
// augment.json, expected_crops.npz and the files of files.json, every crop is compared with open_clip's,
// and the boxes with torchvision's statistics.
#include "dev/test/images.h"

static AugmentConfig parsed(const char *text) {
    AugmentConfig config;
    char error[256] = "";
    EXPECT(augment_parse(&config, text, error), "'%s': %s", text, error);
    return config;
}

static void test_aug_cfg_is_parsed_or_refused(void) {
    AugmentConfig c = parsed("");
    EXPECT(!c.evaluation_transform && c.scale[0] == 0.9 && c.scale[1] == 1 && c.ratio[0] == 0.75 &&
               c.ratio[1] == 4.0 / 3,
        "defaults");
    EXPECT(c.color_jitter[0] == 0 && c.color_jitter[3] == 0 && c.gray_scale_prob == 0, "defaults");
    EXPECT(parsed("none").evaluation_transform, "none");
    const char *spellings[] = {"scale=0.5,0.75", "scale=(0.5,0.75)", "scale='(0.5, 0.75)'", "scale=[.5, .75]",
        "  scale=\"0.5,0.75\" ", "scale=5e-1,.75"};
    for (int i = 0; i < 6; i++) {
        c = parsed(spellings[i]);
        EXPECT(c.scale[0] == 0.5 && c.scale[1] == 0.75, "%s", spellings[i]);
    }
    c = parsed("scale=0.9,1.0 ratio=0.75,1.333 color_jitter=0.4,0.3,0.2,0.1 color_jitter_prob=.7 "
               "gray_scale_prob=.2");
    EXPECT(c.ratio[1] == 1.333 && c.color_jitter[0] == 0.4 && c.color_jitter[2] == 0.2 &&
               c.color_jitter[3] == 0.1,
        "all of them");
    EXPECT(c.color_jitter_prob == 0.7 && c.gray_scale_prob == 0.2, "all of them");
    c = parsed("color_jitter=0.3");
    EXPECT(c.color_jitter[0] == 0.3 && c.color_jitter[1] == 0.3 && c.color_jitter[2] == 0.3 &&
               c.color_jitter[3] == 0,
        "one number");
    EXPECT(c.color_jitter_prob == 0.8, "its default");
    const char *wrong[] = {"scale", "scale=", "scale=0.9", "scale=1,0.9", "scale=0,1", "scale=0.9,1.1",
        "scale=a,b", "scale=nan,1", "scale=(0.9,1", "scale=0.9,1x", "scale=.9,1,1", "ratio=0,1",
        "color_jitter=1,2", "color_jitter=.4,.4,.4,.6", "color_jitter=-1", "color_jitter=1,1,1,.1,.1",
        "gray_scale_prob=1.5", "color_jitter_prob=-.1", "use_timm=True", "scal=0.9,1", "none scale=1,1", "=1",
        "scale=0.9,1.0,", "scale=,"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char error[256] = "";
        EXPECT(!augment_parse(&c, wrong[i], error) && strlen(error) > 10, "'%s' is accepted", wrong[i]);
    }
}

typedef struct {
    double area_share, log_ratio, log_ratio_std, top, left, most_common_share;
} BoxStatistics;

static BoxStatistics box_statistics(int width, int height, const AugmentConfig *config, int draws) {
    BoxStatistics s = {0, 0, 0, 0, 0, 0};
    Image image = {width, height, NULL, 1};
    int(*boxes)[4] = (int(*)[4])malloc_check((size_t)draws * sizeof *boxes), outside = 0, most = 0;
    double squares = 0;
    for (int i = 0; i < draws; i++) {
        int *b = boxes[i];
        Rand rand = rand_for(7, (uint64_t)i, 0);
        image_random_box(&b[0], &b[1], &b[2], &b[3], &image, config, &rand);
        outside +=
            b[0] < 0 || b[1] < 0 || b[2] < 1 || b[3] < 1 || b[0] + b[2] > height || b[1] + b[3] > width;
        double log_ratio = log((double)b[3] / b[2]);
        s.area_share += (double)b[2] * b[3] / ((double)width * height) / draws;
        s.log_ratio += log_ratio / draws;
        squares += log_ratio * log_ratio / draws;
        s.top += (double)b[0] / draws;
        s.left += (double)b[1] / draws;
    }
    for (int i = 0; i < draws; i++) {
        int same = 0;
        for (int k = 0; k < draws; k++) same += memcmp(boxes[i], boxes[k], sizeof boxes[i]) == 0;
        if (same > most) most = same;
    }
    EXPECT(outside == 0, "%d boxes of %dx%d are not inside", outside, width, height);
    s.log_ratio_std = sqrt(fmax(0, squares - s.log_ratio * s.log_ratio));
    s.most_common_share = (double)most / draws;
    free(boxes);
    return s;
}

static void test_random_boxes_are_uniform(void) {
    AugmentConfig config = parsed("scale=0.25,0.25 ratio=1,1");
    BoxStatistics s = box_statistics(
        101, 61, &config, 2000); // boxes of 39 x 39 in 62 x 22 places, uniform: means 31 and 11
    EXPECT_CLOSE(s.log_ratio, 0, 1e-12);
    EXPECT_CLOSE(s.area_share, 39.0 * 39 / (101 * 61), 1e-12);
    EXPECT(fabs(s.left - 31) < 5 * 63 / sqrt(12.0 * 2000) && fabs(s.top - 11) < 5 * 23 / sqrt(12.0 * 2000),
        "means %g, %g", s.left, s.top);
    config = parsed("scale=0.2,0.6 ratio=0.5,2");
    s = box_statistics(1000, 1000, &config,
        2000); // uniform in the area and in the logarithm of the ratio; hardly any box is refused
    EXPECT(fabs(s.area_share - 0.4) < 5 * 0.4 / sqrt(12.0 * 2000) + 0.01, "mean share %g", s.area_share);
    EXPECT(fabs(s.log_ratio) < 5 * 1.386 / sqrt(12.0 * 2000) && fabs(s.log_ratio_std - 0.4) < 0.02,
        "log ratio %g ± %g", s.log_ratio, s.log_ratio_std);
    config = parsed("");
    s = box_statistics(300, 100, &config, 100); // no box of 0.9 of the area fits: the middle, 4:3
    EXPECT(s.most_common_share == 1 && s.top == 0 && fabs(s.left - 83) < 1e-6, "fallback of a wide image");
    s = box_statistics(2, 300, &config, 100);
    EXPECT(s.most_common_share == 1 && fabs(s.top - 148) < 1e-6 && s.left == 0,
        "fallback of a high image: 2 x 3 at (300 - 3)/2");
}

// 61 x 59 pixels: noise, a row of gray, a row of weak colours. The hashes are of what Pillow 13.0 and
// torchvision's adjust_hue make of them.
static void test_colors_equal_pillow_to_the_byte(void) {
    enum { W = 61, H = 59, N = W * H, BRIGHTNESS = 0, CONTRAST, SATURATION, HUE, GRAY };
    static const struct {
        int what;
        double factor;
        uint64_t hash;
    } cases[] = {
        {BRIGHTNESS, 0, 0x35907a24e97f2fe2ull},
        {BRIGHTNESS, 0.3, 0xbd2f7ce80e8db4b1ull},
        {BRIGHTNESS, 0.77, 0x8826c50977ac6bd2ull},
        {BRIGHTNESS, 1, 0x8652f26f8533ed08ull},
        {BRIGHTNESS, 1.4, 0x9b33f1a55a068decull},
        {CONTRAST, 0, 0x479c8ef479b36134ull},
        {CONTRAST, 0.3, 0x39422e1e189da0b5ull},
        {CONTRAST, 0.77, 0x7a7784bef6a01ec9ull},
        {CONTRAST, 1, 0x8652f26f8533ed08ull},
        {CONTRAST, 1.4, 0x390e5076ab228bdeull},
        {SATURATION, 0, 0x5e75f4a1dd6679a4ull},
        {SATURATION, 0.3, 0x5872933b41e2f9d6ull},
        {SATURATION, 0.77, 0x7ab0e85ed976704aull},
        {SATURATION, 1, 0x8652f26f8533ed08ull},
        {SATURATION, 1.4, 0xf36db566350d1e42ull},
        {HUE, -0.5, 0x67c619878ed9fc58ull},
        {HUE, -0.3, 0xf65bb845d7654dabull},
        {HUE, -0.07, 0x4f40b3f3e57edfcdull},
        {HUE, 0, 0xf09760bde3f5486full},
        {HUE, 0.1, 0x27cc0b3261ac5ae4ull},
        {HUE, 0.5, 0x3149d3a6cf431bf3ull},
        {GRAY, 0, 0x5e75f4a1dd6679a4ull},
    };
    static uint8_t noise[3 * N], pixels[3 * N];
    random_bytes(noise, sizeof noise, 11);
    for (int c = 2; c >= 0; c--) {
        memcpy(noise + c * N, noise, W);
        for (int x = W; x < 2 * W; x++) noise[c * N + x] = (uint8_t)(noise[c * N + x] / 16 + 100);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(pixels, noise, sizeof noise);
        float factor = (float)cases[i].factor;
        if (cases[i].what == BRIGHTNESS) adjust_brightness(pixels, N, factor);
        else if (cases[i].what == CONTRAST) adjust_contrast(pixels, N, factor);
        else if (cases[i].what == SATURATION) adjust_saturation(pixels, N, factor);
        else if (cases[i].what == HUE) adjust_hue(pixels, N, cases[i].factor);
        else gray_scale(pixels, N);
        EXPECT(hash_bytes(HASH_START, pixels, sizeof pixels) == cases[i].hash, "operation %d with factor %g",
            cases[i].what, cases[i].factor);
    }
}

static void test_train_transform_is_a_function_of_its_seed(void) {
    enum { S = 16, DRAWS = 2000 };
    Image image = random_image(40, 30, 6);
    uint8_t a[3 * S * S], b[3 * S * S], plain[3 * S * S];
    AugmentConfig config = parsed("scale=1,1 ratio=1.3333333,1.3333334 color_jitter=.4,.4,.4,.1 "
                                  "color_jitter_prob=.3 gray_scale_prob=.2");
    image_eval_transform(plain, &image, S, INTERPOLATION_BICUBIC,
        RESIZE_SQUASH); // the only box that this configuration leaves
    int same = 0, gray = 0;
    for (int i = 0; i < DRAWS; i++) {
        Rand first = rand_for(1, (uint64_t)i, 0), second = first;
        image_train_transform(a, &image, S, INTERPOLATION_BICUBIC, &config, &first);
        image_train_transform(b, &image, S, INTERPOLATION_BICUBIC, &config, &second);
        if (memcmp(a, b, sizeof a) != 0) EXPECT(false, "draw %d is not repeatable", i);
        same += memcmp(a, plain, sizeof a) == 0;
        gray += memcmp(a, a + S * S, S * S) == 0 && memcmp(a, a + 2 * S * S, S * S) == 0;
    }
    double sigma = sqrt(0.25 / DRAWS);
    EXPECT(fabs((double)same / DRAWS - 0.7 * 0.8) < 5 * sigma, "%d of %d are left as they are", same, DRAWS);
    EXPECT(fabs((double)gray / DRAWS - 0.2) < 5 * sigma, "%d of %d are gray", gray, DRAWS);
    image_free(&image);
}

// Each of the four strengths alone changes what it is for, and leaves what the others are for.
static void test_each_strength_of_the_jitter_acts(void) {
    enum { N = 64 };
    for (int which = 0; which < 4; which++) {
        double jitter[4] = {0, 0, 0, 0};
        int changed = 0, value_kept = 0;
        jitter[which] = 0.4;
        for (int i = 0; i < 50; i++) {
            Rand colours = rand_for(9, 0, 0), rand = rand_for(10, (uint64_t)i, 0);
            uint8_t before[3 * N], after[3 * N];
            for (int k = 0; k < 3 * N; k++) before[k] = after[k] = (uint8_t)(60 + rand_below(&colours, 100));
            color_jitter(after, N, jitter, &rand);
            changed += memcmp(before, after, sizeof before) != 0;
            int kept = 0;
            for (int k = 0; k < N; k++) {
                const int most = max_int(max_int(before[k], before[N + k]), before[2 * N + k]);
                kept += max_int(max_int(after[k], after[N + k]), after[2 * N + k]) == most;
            }
            value_kept += kept == N;
        }
        EXPECT(changed > 40, "strength %d changed %d of 50", which, changed);
        EXPECT(which < 3 ? value_kept < 10 : value_kept == 50, "strength %d kept the value in %d", which,
            value_kept);
    }
}

// ---------------------------------------------------------------- stored results

// The Pillow mode of a file, from files.json.
static const char *pil_mode_of(const json_t *files, const char *name) {
    size_t i;
    json_t *entry;
    json_array_foreach(files, i, entry) {
        if (strcmp(json_text(entry, "file"), name) == 0) return json_text(entry, "pil_mode");
    }
    return NULL;
}

static void test_stored_crops_are_cut_as_in_open_clip(const char *folder, const json_t *augment) {
    char path[PATH_SIZE];
    json_t *files = json_read(folder, "files.json"), *entry;
    path_format(path, "%s/expected_crops.npz", folder);
    Npz crops = npz_read(path);
    size_t i, compared = 0, left_out = 0;
    json_array_foreach(json_object_get(augment, "cases"), i, entry) {
        const char *fields[] = {"top", "left", "height", "width", "size"};
        const char *key = json_text(entry, "key"), *file = json_text(entry, "file");
        const NpzArray *a = key ? npz_find(&crops, key) : NULL;
        const char *pil_mode = file ? pil_mode_of(files, file) : NULL;
        int v[5];
        bool complete = a && pil_mode;
        for (int k = 0; k < 5; k++) {
            const json_t *value = json_object_get(entry, fields[k]);
            complete = complete && json_is_integer(value);
            v[k] = (int)json_integer_value(value);
        }
        EXPECT(complete && v[4] > 0, "%s: a field, its file or its array is missing", key ? key : "?");
        Image image;
        if (!complete || v[4] < 1) continue;
        if (!is_rgb_or_gray(pil_mode)) { // resized in the file's own mode
            left_out++;
            continue;
        }
        ImageStatus status = decode_golden(&image, folder, "files", file, MAX_PIXELS);
        EXPECT(status == IMAGE_OK, "%s: %s", file, image_status_name(status));
        if (status != IMAGE_OK) continue;
        uint8_t *out = (uint8_t *)malloc_check(3 * (size_t)v[4] * (size_t)v[4]);
        image_crop_resize(out, &image, v[0], v[1], v[2], v[3], v[4], INTERPOLATION_BICUBIC);
        expect_bytes(a, out, v[4], v[4]);
        compared++;
        free(out);
        image_free(&image);
    }
    printf("  crops: %zu / %zu arrays compared, %zu left out (resized in the file's own mode)\n", compared,
        crops.count, left_out);
    EXPECT(compared + left_out == crops.count && compared > 0, "an array of expected_crops.npz has no case");
    json_decref(files);
    npz_free(&crops);
}

// torchvision's statistics over its own draws: both means scatter, hence five standard errors of a
// difference, or a rough bound.
static void test_random_boxes_have_torchvisions_statistics(const json_t *augment) {
    AugmentConfig config = parsed("");
    int checked = 0;
    const char *size;
    json_t *wanted;
    json_object_foreach(json_object_get(augment, "statistics_of_torchvision"), size, wanted) {
        int w, h, draws = (int)json_integer_value(json_object_get(wanted, "draws"));
        if (sscanf(size, "%dx%d", &w, &h) != 2 || draws < 1) continue;
        BoxStatistics s = box_statistics(w, h, &config, draws);
        double root = sqrt(2.0 / draws), span = 2 * log(4.0 / 3) / sqrt(12.0);
        const struct {
            const char *name;
            double got, tolerance;
        } rows[] = {{"mean_area_share", s.area_share, 5 * root * 0.03},
            {"mean_log_ratio", s.log_ratio, 5 * root * fmin(span, s.log_ratio_std + 1e-4)},
            {"std_log_ratio", s.log_ratio_std, 5 * root * fmin(span, s.log_ratio_std + 1e-4)},
            {"mean_top", s.top, 5 * root * (s.top + 0.5)}, {"mean_left", s.left, 5 * root * (s.left + 0.5)},
            {"most_common_box_share", s.most_common_share, 5 * root * 0.5}};
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
            const json_t *value = json_object_get(wanted, rows[k].name);
            EXPECT(json_is_number(value), "%s: no %s", size, rows[k].name);
            EXPECT(fabs(rows[k].got - json_number_value(value)) <= rows[k].tolerance + 1e-4,
                "%s: %s is %g instead of %g", size, rows[k].name, rows[k].got, json_number_value(value));
            checked++;
        }
    }
    printf("  random crops: %d statistics compared\n", checked);
    EXPECT(checked > 0, "augment.json has no statistics");
}

int main(int argc, char **argv) {
    if (argc > 2) die(EXIT_USAGE, "one argument at most: the folder of stored images");
    RUN(test_aug_cfg_is_parsed_or_refused);
    RUN(test_random_boxes_are_uniform);
    RUN(test_colors_equal_pillow_to_the_byte);
    RUN(test_each_strength_of_the_jitter_acts);
    RUN(test_train_transform_is_a_function_of_its_seed);
    if (argc == 2) {
        json_t *augment = json_read(argv[1], "augment.json");
        RUN(test_stored_crops_are_cut_as_in_open_clip, argv[1], augment);
        RUN(test_random_boxes_have_torchvisions_statistics, augment);
        json_decref(augment);
    }
    return test_report();
}
