// For tests of images: noise, and the stored results of Pillow and open_clip (make golden).
#ifndef CLIPC_TEST_IMAGES_H
#define CLIPC_TEST_IMAGES_H

#include "clipc/data/transform.h"
#include "dev/test/npz.h"
#include "dev/test/test.h"

#include <jansson.h>

#define MAX_PIXELS 25000000 // the program's default

static inline void random_bytes(uint8_t *out, size_t n, uint64_t seed) {
    Rand r = rand_for(seed, 0, 0);
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(rand_u64(&r) >> 56);
}

static inline Image random_image(int width, int height, uint64_t seed) {
    Image image = {width, height, (uint8_t *)malloc_check((size_t)width * (size_t)height * 3), 1};
    random_bytes(image.rgb, (size_t)width * (size_t)height * 3, seed);
    if (seed % 2) // hard edges: overshoot must clamp
        for (size_t i = 0; i < (size_t)width * (size_t)height * 3; i++)
            image.rgb[i] = image.rgb[i] < 128 ? 0 : 255;
    return image;
}

static inline int largest_difference(const uint8_t *a, const uint8_t *b, size_t n) {
    int worst = 0;
    for (size_t i = 0; i < n; i++) worst = abs(a[i] - b[i]) > worst ? abs(a[i] - b[i]) : worst;
    return worst;
}

// ---------------------------------------------------------------- stored results

// FOLDER/NAME; it ends the program where that is not JSON. Free with json_decref().
static inline json_t *json_read(const char *folder, const char *name) {
    char path[PATH_SIZE];
    json_error_t error;
    path_format(path, "%s/%s", folder, name);
    json_t *json = json_load_file(path, 0, &error);
    if (!json) die(EXIT_USAGE, "%s: line %d: %s", path, error.line, error.text);
    return json;
}

// NULL if there is no such string.
static inline const char *json_text(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static inline ImageStatus decode_golden(
    Image *image, const char *folder, const char *subfolder, const char *name, int64_t max_pixels) {
    char path[PATH_SIZE];
    size_t length;
    path_format(path, "%s/%s/%s", folder, subfolder, name);
    char *bytes = file_read_all(path, &length);
    ImageStatus status = image_decode(image, (const uint8_t *)bytes, length, max_pixels);
    free(bytes);
    return status;
}

// Files of other modes are resized by open_clip before they become RGB.
static inline bool is_rgb_or_gray(const char *pil_mode) {
    return pil_mode && (strcmp(pil_mode, "RGB") == 0 || strcmp(pil_mode, "L") == 0);
}

static inline void expect_bytes(const NpzArray *a, const uint8_t *got, int height, int width) {
    bool shape = strcmp(a->dtype, "u1") == 0 && a->ndim == 3 && a->shape[0] == 3 && a->shape[1] == height &&
                 a->shape[2] == width;
    EXPECT(shape, "%s: another shape or type", a->name);
    if (!shape) return;
    const uint8_t *want = (const uint8_t *)a->data;
    int64_t differ = 0;
    for (int64_t i = 0; i < a->count; i++) differ += want[i] != got[i];
    EXPECT(differ == 0, "%s: %lld of %lld bytes differ, by at most %d", a->name, (long long)differ,
        (long long)a->count, largest_difference(want, got, (size_t)a->count));
}

#endif
