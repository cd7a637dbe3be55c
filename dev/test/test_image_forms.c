// Image forms beside JPEG, PNG and WebP (image_forms.h, image_tiff.h) against the pixels that Pillow decodes
// (dev/test/image_forms.npz, made by dev/data/make_image_forms.py), and the same files cut and altered.
// Forms whose library was not there at build time are counted as such.
#include "clipc/data/image.h"
#include "dev/test/npz.h"
#include "dev/test/test.h"

#define MAX_PIXELS 100000

// The largest difference that is allowed: HEIC has no reference but another version of its own library.
static int tolerance_of(const char *name) {
    return ends_with(name, ".avif") ? 2 : ends_with(name, ".heic") ? 12 : 0;
}

static const NpzArray *find(const Npz *z, const char *name, size_t length, const char *kind) {
    for (size_t i = 0; i < z->count; i++) {
        const char *its = z->arrays[i].name;
        if (strncmp(its, name, length) == 0 && its[length] == '|' && strcmp(its + length + 1, kind) == 0)
            return &z->arrays[i];
    }
    return NULL;
}

// Is the form's decoder missing?
static bool is_left_out(ImageStatus status) { return status >= IMAGE_GIF && status <= IMAGE_JP2; }

static void expect_pixels(const char *name, const NpzArray *file, const NpzArray *rgb) {
    Image image;
    const ImageStatus status =
        image_decode(&image, (const uint8_t *)file->data, (size_t)file->count, MAX_PIXELS);
    if (is_left_out(status)) {
        EXPECT(status == image_form_status(image_form((const uint8_t *)file->data, (size_t)file->count)));
        return;
    }
    EXPECT(status == IMAGE_OK, "%s: %s", name, image_status_name(status));
    if (status != IMAGE_OK) return;
    EXPECT(image.height == rgb->shape[0] && image.width == rgb->shape[1], "%s: %d x %d", name, image.width,
        image.height);
    int most = 0;
    for (int64_t i = 0; i < rgb->count && rgb->count == 3 * (int64_t)image.width * image.height; i++)
        most = max_int(most, abs(image.rgb[i] - ((const uint8_t *)rgb->data)[i]));
    EXPECT(most <= tolerance_of(name), "%s: differs by %d", name, most);
    image_free(&image);
    const ImageStatus limited =
        image_decode(&image, (const uint8_t *)file->data, (size_t)file->count, rgb->count / 3 - 1);
    EXPECT(limited == IMAGE_TOO_LARGE, "%s: one pixel above the limit: %s", name, image_status_name(limited));
}

static void test_every_form_is_decoded_as_by_pillow(const Npz *z) {
    int files = 0;
    for (size_t i = 0; i < z->count; i++) {
        char name[128];
        const char *bar = strchr(z->arrays[i].name, '|');
        if (strcmp(bar, "|file") != 0) continue;
        snprintf(name, sizeof name, "%.*s", (int)(bar - z->arrays[i].name), z->arrays[i].name);
        const NpzArray *rgb = find(z, name, strlen(name), "rgb");
        EXPECT(rgb != NULL, "%s", name);
        if (rgb) expect_pixels(name, &z->arrays[i], rgb);
        files++;
    }
    EXPECT(files >= 49, "%d files", files);
}

static void decode_copy(const uint8_t *bytes, size_t length) {
    uint8_t *copy =
        (uint8_t *)memcpy(malloc_check(length), bytes, length); // a sanitizer sees a read beyond it
    Image image;
    if (image_decode(&image, copy, length, MAX_PIXELS) == IMAGE_OK) image_free(&image);
    free(copy);
}

static void test_cut_and_altered_files_are_survived(const Npz *z) {
    int tried = 0;
    for (size_t i = 0; i < z->count; i++) {
        const NpzArray *file = &z->arrays[i];
        if (!strstr(file->name, "|file")) continue;
        const size_t n = (size_t)file->count;
        for (int round = 0; round < 24; round++, tried++) {
            Rand r = rand_for(7, i, (uint64_t)round);
            uint8_t *bytes = (uint8_t *)memcpy(malloc_check(n), file->data, n);
            // the headers most of all
            for (uint64_t k = rand_below(&r, 4); k > 0; k--)
                bytes[rand_below(&r, round % 2 ? n : n < 100 ? n : 100)] = (uint8_t)rand_u64(&r);
            decode_copy(bytes, round % 3 ? n : (size_t)rand_below(&r, n));
            free(bytes);
        }
    }
    EXPECT(tried > 1000);
}

int main(void) {
    Npz z = npz_read("dev/test/image_forms.npz");
    RUN(test_every_form_is_decoded_as_by_pillow, &z);
    RUN(test_cut_and_altered_files_are_survived, &z);
    npz_free(&z);
    return test_report();
}
