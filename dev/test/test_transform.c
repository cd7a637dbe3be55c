// Resizing, cropping and padding, against the definition and against hashes of what Pillow makes. Usage:
// test_transform [FOLDER]. In a folder with the files that its README describes (files.json, bad.json,
// expected.npz), every file and every array is decoded and compared.
#include "dev/test/images.h"

static double direct_weight(double x, Interpolation filter) {
    x = fabs(x);
    if (filter == INTERPOLATION_BILINEAR) return x < 1 ? 1 - x : 0;
    return x < 1 ? 1.5 * x * x * x - 2.5 * x * x + 1 : x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2 : 0;
}

// One pass over a line of n_in samples `step` apart, by the definition in double: every input weighted,
// rounded to a level.
static void direct_pass(double *out, int n_out, const double *in, int n_in, int lines, int in_line,
    int out_line, int in_step, int out_step, Interpolation filter) {
    double scale = (double)n_in / n_out, filter_scale = scale > 1 ? scale : 1;
    for (int line = 0; line < lines; line++) {
        for (int o = 0; o < n_out; o++) {
            double sum = 0, total = 0;
            for (int i = 0; i < n_in; i++) {
                double w = direct_weight(((i + 0.5) - (o + 0.5) * scale) / filter_scale, filter);
                sum += w * in[line * in_line + i * in_step];
                total += w;
            }
            out[line * out_line + o * out_step] = fmin(255, fmax(0, floor(sum / total + 0.5)));
        }
    }
}

// The whole image resized to width x height, one colour; columns first or rows first.
static double *direct_resize(
    const Image *image, int channel, int width, int height, bool columns_first, Interpolation filter) {
    int w = image->width, h = image->height;
    double *in = (double *)malloc_check(sizeof(double) * (size_t)w * (size_t)h);
    double *out = (double *)malloc_check(sizeof(double) * (size_t)width * (size_t)height);
    double *between =
        (double *)malloc_check(sizeof(double) * (size_t)(columns_first ? w * height : width * h));
    for (int i = 0; i < w * h; i++) in[i] = image->rgb[3 * i + channel];
    if (columns_first) {
        direct_pass(between, height, in, h, w, 1, 1, w, w, filter);
        direct_pass(out, width, between, w, height, w, width, 1, 1, filter);
    } else {
        direct_pass(between, width, in, w, h, w, width, 1, 1, filter);
        direct_pass(out, height, between, h, width, 1, 1, width, width, filter);
    }
    free(in);
    free(between);
    return out;
}

static int half_to_even(double x) {
    return (int)(x - floor(x) == 0.5 ? 2 * floor(x / 2 + 0.5) : floor(x + 0.5));
}

// Weights of 22 bits and weights in double may round a tie to different levels, hence the 1; a shifted window
// or a wrong size is off by far more on noise.
static void expect_like_direct(const uint8_t *got, const Image *image, int width, int height, int size,
    Interpolation filter, const char *what) {
    bool columns_first = image->height > height && image->height - height > 2 * (image->width - width);
    int top = height >= size ? half_to_even((height - size) / 2.0) : -((size - height) / 2);
    int left = width >= size ? half_to_even((width - size) / 2.0) : -((size - width) / 2);
    int worst = 0, differ = 0;
    for (int c = 0; c < 3; c++) {
        double *direct = direct_resize(image, c, width, height, columns_first, filter);
        for (int y = 0; y < size; y++) {
            for (int x = 0; x < size; x++) {
                int from_y = y + top, from_x = x + left;
                bool inside = from_y >= 0 && from_y < height && from_x >= 0 && from_x < width;
                int expected = inside ? (int)direct[from_y * width + from_x] : 0;
                int d = abs(got[(c * size + y) * size + x] - expected);
                if (d > worst) worst = d;
                differ += d > 0;
            }
        }
        free(direct);
    }
    EXPECT(worst <= 1 && differ <= 3 * size * size * 15 / 100,
        "%s, %dx%d to %d, filter %d: worst %d, %d differ", what, image->width, image->height, size, filter,
        worst, differ);
}

static void test_resize_matches_the_definition(void) {
    const int sizes[][2] = {{61, 47}, {47, 61}, {100, 23}, {23, 100}, {9, 7}, {1, 1}, {31, 31}, {200, 199},
        {33, 180}, {2, 50}, {150, 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int k = 0; k < 6; k++) {
            Interpolation filter = (Interpolation)(k % 2);
            ResizeMode mode = (ResizeMode)(k / 2);
            int w = sizes[i][0];
            int h = sizes[i][1];
            int size = i % 2 ? 31 : 24;
            int width = size;
            int height = size;
            Image image = random_image(w, h, i + 1);
            uint8_t *out = (uint8_t *)malloc_check((size_t)(3 * size * size));
            if (mode == RESIZE_SHORTEST) {
                width = w <= h ? size : size * w / h;
                height = w <= h ? size * h / w : size;
            }
            if (mode == RESIZE_LONGEST) {
                width = half_to_even(w >= h ? size : (double)w * size / h);
                height = half_to_even(w >= h ? (double)h * size / w : size);
            }
            EXPECT(image_eval_transform(out, &image, size, filter, mode) == IMAGE_OK, "mode %d", mode);
            expect_like_direct(out, &image, width, height, size, filter,
                mode == RESIZE_SHORTEST ? "shortest"
                : mode == RESIZE_SQUASH ? "squash"
                                        : "longest");
            free(out);
            image_free(&image);
        }
    }
    Image thin = random_image(1, 300, 1);
    uint8_t out[3 * 16 * 16];
    EXPECT(image_eval_transform(out, &thin, 16, INTERPOLATION_BICUBIC, RESIZE_LONGEST) == IMAGE_TOO_THIN,
        "no width is left");
    EXPECT(image_eval_transform(out, &thin, 16, INTERPOLATION_BICUBIC, RESIZE_SHORTEST) == IMAGE_OK,
        "4800 rows, of which 16 are computed");
    image_free(&thin);
}

// To the byte, the order of the passes included: hashes of what Pillow 13.0 makes of the same noise.
static void test_resize_equals_pillow_to_the_byte(void) {
    static const struct {
        int width, height, seed, size;
        Interpolation filter;
        ResizeMode mode;
        uint64_t hash;
    } cases[] = {
        {67, 201, 1, 32, INTERPOLATION_BICUBIC, RESIZE_SQUASH, 0xf28d3691c7fe4c17ull},
        {67, 201, 2, 32, INTERPOLATION_BILINEAR, RESIZE_SQUASH, 0xb34735ef9c3acee1ull},
        {90, 150, 3, 40, INTERPOLATION_BICUBIC, RESIZE_SHORTEST, 0xf9240019dd62b80eull},
        {150, 90, 4, 40, INTERPOLATION_BILINEAR, RESIZE_SHORTEST, 0x06043d8a8e7ee2d9ull},
        {33, 180, 5, 24, INTERPOLATION_BICUBIC, RESIZE_LONGEST, 0x5420121789750abfull},
        {180, 33, 6, 24, INTERPOLATION_BILINEAR, RESIZE_LONGEST, 0xdbc78db387828c7dull},
        {20, 30, 7, 56, INTERPOLATION_BICUBIC, RESIZE_SQUASH, 0xd254e6a6ca5894b8ull},
        {33, 91, 9, 32, INTERPOLATION_BICUBIC, RESIZE_SQUASH, 0x4fbd93f9fa28d702ull},
    };
    static uint8_t out[3 * 56 * 56];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Image image = random_image(cases[i].width, cases[i].height, (uint64_t)cases[i].seed);
        image_eval_transform(out, &image, cases[i].size, cases[i].filter, cases[i].mode);
        EXPECT(hash_bytes(HASH_START, out, (size_t)(3 * cases[i].size * cases[i].size)) == cases[i].hash,
            "case %zu", i);
        image_free(&image);
    }
}

static void test_resize_without_change_is_a_copy(void) {
    enum { S = 30 };
    Image image = random_image(S, S, 3);
    uint8_t out[3 * S * S];
    for (int k = 0; k < 6; k++) {
        image_eval_transform(out, &image, S, (Interpolation)(k % 2), (ResizeMode)(k / 2));
        int differ = 0;
        for (int i = 0; i < S * S; i++)
            for (int c = 0; c < 3; c++) differ += out[c * S * S + i] != image.rgb[3 * i + c];
        EXPECT(differ == 0, "%d bytes differ", differ);
    }
    image_free(&image);
}

// The vector code and the plain loop are the same integers, at lengths around the block and the vector.
static void test_vector_sums_equal_the_plain_loop(void) {
    enum { MOST = 600, TAPS = 9 };
    static uint8_t in[TAPS * MOST], fast[MOST], plain[MOST];
    int32_t weight[TAPS];
    random_bytes(in, sizeof in, 21);
    Rand rand = rand_for(4, 4, 4);
    for (int k = 0; k < TAPS; k++) weight[k] = (int32_t)rand_range(&rand, -400000, 1300000);
    for (size_t n = 1; n <= MOST; n += n < 70 ? 1 : 37) {
        weighted_sum(fast, in, MOST, n, weight, TAPS);
        weighted_sum_plain(plain, in, MOST, n, weight, TAPS);
        EXPECT(memcmp(fast, plain, n) == 0, "%zu bytes", n);
    }
}

static void test_crop_ignores_what_is_outside(void) {
    enum { S = 20 };
    Image image = random_image(70, 50, 8);
    const int boxes[][4] = {{0, 0, 50, 70}, {3, 5, 40, 41}, {49, 69, 1, 1}, {10, 0, 9, 70},
        {0, 60, 50, 3}}; // top, left, height, width
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++) {
        const int *b = boxes[i];
        Image box = random_image(b[3], b[2], 2);
        uint8_t cut[3 * S * S], copied[3 * S * S];
        for (int y = 0; y < b[2]; y++)
            memcpy(box.rgb + (size_t)(y * b[3]) * 3, image.rgb + (size_t)((b[0] + y) * 70 + b[1]) * 3,
                (size_t)b[3] * 3);
        image_crop_resize(cut, &image, b[0], b[1], b[2], b[3], S, INTERPOLATION_BICUBIC);
        image_eval_transform(copied, &box, S, INTERPOLATION_BICUBIC, RESIZE_SQUASH);
        EXPECT(memcmp(cut, copied, sizeof cut) == 0, "box %zu", i);
        image_free(&box);
    }
    image_free(&image);
}

// ---------------------------------------------------------------- stored results

typedef struct {
    const char *folder;
    Npz expected;
    bool *used; // (expected.count) which arrays were compared or left out for a stated reason
    size_t compared, left_out, errors;
} Golden;

static const float GOLDEN_MEAN[3] = {0.48145466f, 0.4578275f, 0.40821073f};
static const float GOLDEN_STD[3] = {0.26862954f, 0.26130258f, 0.27577711f};

// out (3,size,size) = (pixel/255 - mean)/std, each step rounded to float as in PyTorch; the model does the
// same.
static void normalize(float *out, const uint8_t *pixels, int size) {
    const size_t plane = (size_t)size * (size_t)size;
    for (size_t i = 0; i < 3 * plane; i++)
        out[i] = ((float)pixels[i] / 255.0f - GOLDEN_MEAN[i / plane]) / GOLDEN_STD[i / plane];
}

// "shortest|bicubic|32…" → mode, filter, size; returns what follows, NULL when it is none of these.
static const char *read_case(const char *key, ResizeMode *mode, Interpolation *filter, int *size) {
    char names[2][16];
    int n = 0;
    if (sscanf(key, "%15[a-z]|%15[a-z]|%d%n", names[0], names[1], size, &n) != 3 || *size < 1) return NULL;
    if (strcmp(names[0], "shortest") == 0) *mode = RESIZE_SHORTEST;
    else if (strcmp(names[0], "squash") == 0) *mode = RESIZE_SQUASH;
    else if (strcmp(names[0], "longest") == 0) *mode = RESIZE_LONGEST;
    else return NULL;
    if (strcmp(names[1], "bicubic") == 0) *filter = INTERPOLATION_BICUBIC;
    else if (strcmp(names[1], "bilinear") == 0) *filter = INTERPOLATION_BILINEAR;
    else return NULL;
    return key + n;
}

// One array against the image it belongs to. In what way the file was resized by Pillow is read from the
// end of its key.
static void check_array(Golden *g, size_t index, const char *key, const Image *image, bool rgb_or_gray) {
    const NpzArray *a = &g->expected.arrays[index];
    ResizeMode mode = RESIZE_SQUASH;
    Interpolation filter = INTERPOLATION_BICUBIC;
    int size = 0;
    g->used[index] = true;
    if (strcmp(key, "decoded") == 0) {
        size_t n = (size_t)image->width * (size_t)image->height;
        uint8_t *planes = (uint8_t *)malloc_check(3 * n);
        for (size_t i = 0; i < 3 * n; i++) planes[i % 3 * n + i / 3] = image->rgb[i];
        expect_bytes(a, planes, image->height, image->width);
        free(planes);
        g->compared++;
        return;
    }
    const char *rest = read_case(key, &mode, &filter, &size);
    bool as_float = rest && strcmp(rest, "|float") == 0, plain = rest && (*rest == 0 || as_float);
    bool older = rest && (strcmp(rest, "|pillow12") == 0 || strcmp(rest, "|rgb|pillow12") == 0);
    if (older || (plain && !rgb_or_gray)) { // plain: resized in the file's own mode
        g->left_out++;
        return;
    }
    EXPECT(plain || (rest && strcmp(rest, "|rgb") == 0), "%s: a key of an unknown kind", a->name);
    if (!plain && (!rest || strcmp(rest, "|rgb") != 0)) return;
    size_t n = 3 * (size_t)size * (size_t)size;
    uint8_t *out = (uint8_t *)malloc_check(n);
    float *normalized = (float *)malloc_check(n * sizeof(float));
    ImageStatus status = image_eval_transform(out, image, size, filter, mode);
    EXPECT(status == IMAGE_OK, "%s: %s", a->name, image_status_name(status));
    if (as_float) {
        normalize(normalized, out, size);
        EXPECT(strcmp(a->dtype, "f4") == 0 && a->count == (int64_t)n &&
                   memcmp(a->data, normalized, n * sizeof(float)) == 0,
            "%s: floats differ", a->name);
    } else if (status == IMAGE_OK) {
        expect_bytes(a, out, size, size);
    }
    free(out);
    free(normalized);
    g->compared++;
}

// All arrays whose key begins with prefix|. Returns how many there were. image NULL: the file was refused,
// they are left out.
static size_t check_arrays(Golden *g, const char *prefix, const Image *image, const char *pil_mode) {
    size_t n = strlen(prefix), found = 0;
    for (size_t i = 0; i < g->expected.count; i++) {
        const char *name = g->expected.arrays[i].name;
        if (strncmp(name, prefix, n) != 0 || name[n] != '|') continue;
        found++;
        if (image) check_array(g, i, name + n + 1, image, is_rgb_or_gray(pil_mode));
        else {
            g->used[i] = true;
            g->left_out++;
        }
    }
    return found;
}

static bool is_offered(const char *format) {
    return format &&
           (strcmp(format, "JPEG") == 0 || strcmp(format, "PNG") == 0 || strcmp(format, "WEBP") == 0);
}

// The cases in which open_clip ends in an error: "file|mode|filter|size" → "ValueError …"
static void check_errors(Golden *g, json_t *errors, const Image *image) {
    const char *name;
    json_t *value;
    json_object_foreach(errors, name, value) {
        ResizeMode mode = RESIZE_SQUASH;
        Interpolation filter = INTERPOLATION_BICUBIC;
        int size = 0;
        const char *key = strchr(name, '|');
        const char *rest = key ? read_case(key + 1, &mode, &filter, &size) : NULL;
        EXPECT(rest && (*rest == 0 || strcmp(rest, "|rgb") == 0), "%s: a key of an unknown kind", name);
        if (!rest) continue;
        uint8_t *out = (uint8_t *)malloc_check(3 * (size_t)size * (size_t)size);
        EXPECT(image_eval_transform(out, image, size, filter, mode) != IMAGE_OK, "%s: accepted", name);
        free(out);
        g->errors++;
    }
}

static void check_files(Golden *g) {
    json_t *files = json_read(g->folder, "files.json"), *entry;
    size_t i;
    int decoded = 0;
    json_array_foreach(files, i, entry) {
        const char *file = json_text(entry, "file"), *format = json_text(entry, "format");
        const char *pil_mode = json_text(entry, "pil_mode");
        const json_t *exif = json_object_get(entry, "exif_orientation");
        Image image;
        ImageStatus status = decode_golden(&image, g->folder, "files", file, MAX_PIXELS);
        if (!is_offered(format) && status >= IMAGE_GIF && status <= IMAGE_JP2) { // built without its library
            printf("  %s: %s is not supported\n", file, format ? format : "?");
            check_arrays(g, file, NULL, pil_mode);
            continue;
        }
        EXPECT(status == IMAGE_OK, "%s: %s", file, image_status_name(status));
        if (status != IMAGE_OK) continue;
        EXPECT(image.orientation == (exif ? json_integer_value(exif) : 1), "%s: orientation %d", file,
            image.orientation);
        EXPECT(check_arrays(g, file, &image, pil_mode) > 0, "%s: no array in expected.npz", file);
        check_errors(g, json_object_get(entry, "errors"), &image);
        image_free(&image);
        decoded++;
    }
    EXPECT(decoded > 0, "files.json names no file that can be decoded");
    printf("  files.json: %d of %zu files decoded\n", decoded, json_array_size(files));
    json_decref(files);
}

static void check_bad_files(Golden *g) {
    json_t *files = json_read(g->folder, "bad.json"), *entry;
    size_t i;
    int decoded = 0;
    json_array_foreach(files, i, entry) {
        const char *file = json_text(entry, "file"), *format = json_text(entry, "format");
        const char *pil = json_text(entry, "pil");
        bool decodes = pil && strcmp(pil, "decodes") == 0;
        bool undecided = pil && !decodes && strncmp(pil, "decodes", 7) == 0;
        char prefix[1024];
        Image image;
        ImageStatus status = decode_golden(&image, g->folder, "bad", file, MAX_PIXELS);
        snprintf(prefix, sizeof prefix, "bad/%s", file);
        EXPECT(pil != NULL, "%s: bad.json does not say what Pillow does", file);
        if (decodes && is_offered(format))
            EXPECT(status == IMAGE_OK, "%s: %s, but Pillow decodes it", file, image_status_name(status));
        if (!decodes && !undecided)
            EXPECT(status != IMAGE_OK, "%s: decodes, but Pillow: %s", file, pil ? pil : "?");
        printf("  bad/%s: %s (Pillow: %s)\n", file, image_status_name(status), pil ? pil : "?");
        size_t arrays =
            check_arrays(g, prefix, status == IMAGE_OK ? &image : NULL, json_text(entry, "pil_mode"));
        if (decodes && status == IMAGE_OK) EXPECT(arrays > 0, "%s: no array in expected.npz", file);
        if (status == IMAGE_OK) {
            image_free(&image);
            decoded++;
        }
    }
    EXPECT(json_array_size(files) > 0, "bad.json names no file");
    printf("  bad.json: %zu files, %d of them decoded\n", json_array_size(files), decoded);
    json_decref(files);
}

// Every stored file is decoded and resized as Pillow and open_clip did it, or refused as there.
static void test_stored_files_are_decoded_and_resized_as_in_open_clip(const char *folder) {
    Golden g = {folder, {NULL, 0, 0}, NULL, 0, 0, 0};
    char path[PATH_SIZE];
    path_format(path, "%s/expected.npz", folder);
    g.expected = npz_read(path);
    g.used = (bool *)calloc_check(g.expected.count, sizeof(bool));
    printf("%s\n", folder);
    check_files(&g);
    check_bad_files(&g);
    size_t unclaimed = 0;
    for (size_t i = 0; i < g.expected.count; i++) unclaimed += !g.used[i];
    EXPECT(unclaimed == 0, "%zu arrays of expected.npz belong to no file", unclaimed);
    EXPECT(g.compared > 0, "no array was compared");
    printf("  expected.npz: %zu / %zu arrays compared, %zu left out (resized in the file's own mode, older "
           "Pillow, format not supported)\n",
        g.compared, g.expected.count, g.left_out);
    printf("  errors as expected: %zu\n", g.errors);
    npz_free(&g.expected);
    free(g.used);
}

int main(int argc, char **argv) {
    if (argc > 2) die(EXIT_USAGE, "one argument at most: the folder of stored images");
    RUN(test_resize_matches_the_definition);
    RUN(test_resize_equals_pillow_to_the_byte);
    RUN(test_resize_without_change_is_a_copy);
    RUN(test_vector_sums_equal_the_plain_loop);
    RUN(test_crop_ignores_what_is_outside);
    if (argc == 2) RUN(test_stored_files_are_decoded_and_resized_as_in_open_clip, argv[1]);
    return test_report();
}
