// What all image decoders share: why an image gave no pixels, the pixels, EXIF's orientation, CMYK.
#ifndef CLIPC_IMAGE_PIXELS_H
#define CLIPC_IMAGE_PIXELS_H

#include "clipc/base/utils.h" // first: it defines _GNU_SOURCE for the system headers

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Why an image gave no pixels. A sample with any of these but IMAGE_OK is skipped and counted, and the run
// goes on. Name, text for one, text for several.
#define IMAGE_STATUSES(X)                                                             \
    X(IMAGE_OK, "ok", "ok")                                                           \
    X(IMAGE_EMPTY, "empty file", "empty files")                                       \
    X(IMAGE_UNKNOWN_FORMAT, "unknown image format", "unknown image formats")          \
    X(IMAGE_GIF, "GIF image (the program was built without giflib)",                  \
        "GIF images (the program was built without giflib)")                          \
    X(IMAGE_TIFF, "TIFF image (the program was built without libtiff)",               \
        "TIFF images (the program was built without libtiff)")                        \
    X(IMAGE_AVIF, "AVIF image (the program was built without libavif)",               \
        "AVIF images (the program was built without libavif)")                        \
    X(IMAGE_HEIC, "HEIC image (the program was built without libheif)",               \
        "HEIC images (the program was built without libheif)")                        \
    X(IMAGE_JP2, "JPEG 2000 image (the program was built without OpenJPEG)",          \
        "JPEG 2000 images (the program was built without OpenJPEG)")                  \
    X(IMAGE_BROKEN, "broken image", "broken images")                                  \
    X(IMAGE_TOO_LARGE, "with too many pixels", "with too many pixels")                \
    X(IMAGE_TOO_THIN, "too thin for the resize mode", "too thin for the resize mode") \
    X(IMAGE_NO_MEMORY, "too large for the memory", "too large for the memory")

#define IMAGE_STATUS_ENUM(name, one, many) name,
typedef enum { IMAGE_STATUSES(IMAGE_STATUS_ENUM) IMAGE_STATUS_COUNT } ImageStatus;

#define IMAGE_STATUS_ONE(name, one, many) one,
#define IMAGE_STATUS_MANY(name, one, many) many,
// The reason why one image gave no pixels.
static inline const char *image_status_name(ImageStatus status) {
    static const char *const names[IMAGE_STATUS_COUNT] = {IMAGE_STATUSES(IMAGE_STATUS_ONE)};
    return names[status];
}

// The same after a number: "1 broken image", "9 broken images".
static inline const char *image_status_counted(ImageStatus status, int64_t count) {
    static const char *const names[IMAGE_STATUS_COUNT] = {IMAGE_STATUSES(IMAGE_STATUS_MANY)};
    return count == 1 ? image_status_name(status) : names[status];
}

typedef struct {
    int width, height;
    uint8_t *rgb;    // (height, width, 3)
    int orientation; // EXIF 1 … 8: how to turn the image upright; 1 (as it is) when the file does not say
} Image;

static inline void image_free(Image *image) {
    free(image->rgb);
    image->rgb = NULL;
}

// Allocates the pixels if the size is allowed.
static inline ImageStatus image_allocate(Image *out, int64_t width, int64_t height, int64_t max_pixels) {
    if (width < 1 || height < 1 || width > INT32_MAX || height > INT32_MAX) return IMAGE_BROKEN;
    if (width > max_pixels / height) return IMAGE_TOO_LARGE;
    out->width = (int)width;
    out->height = (int)height;
    out->rgb = (uint8_t *)malloc((size_t)width * (size_t)height * 3);
    return out->rgb ? IMAGE_OK : IMAGE_NO_MEMORY;
}

// ---------------------------------------------------------------- EXIF

static inline uint32_t exif_number(const uint8_t *p, int bytes, bool big_endian) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | p[big_endian ? i : bytes - 1 - i];
    return value;
}

// The orientation (tag 0x0112 of the first directory) from an EXIF block: "Exif\0\0" or not, then a TIFF
// header. 1 when it has none.
static inline int exif_orientation(const uint8_t *exif, size_t length) {
    if (length >= 6 && memcmp(exif, "Exif\0", 6) == 0) {
        exif += 6;
        length -= 6;
    }
    if (length < 8 || (memcmp(exif, "II*", 4) != 0 && memcmp(exif, "MM\0*", 4) != 0)) return 1;
    bool big = exif[0] == 'M';
    size_t at = exif_number(exif + 4, 4, big);
    if (at > length - 2) return 1;
    uint32_t entries = exif_number(exif + at, 2, big);
    at += 2;
    for (uint32_t i = 0; i < entries && at + 12 <= length; i++, at += 12) {
        if (exif_number(exif + at, 2, big) != 0x0112 || exif_number(exif + at + 2, 2, big) != 3 /* SHORT */)
            continue;
        uint32_t value = exif_number(exif + at + 8, 2, big);
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

// Turns the pixels upright as the EXIF orientation says (Pillow's ImageOps.exif_transpose); afterwards the
// orientation is 1.
static inline void image_apply_orientation(Image *image) {
    int o = image->orientation, w = image->width, h = image->height;
    if (o <= 1 || o > 8) return;
    bool swap = o >= 5;
    bool mirror_x = o == 2 || o == 3 || o == 7 || o == 8;
    bool mirror_y = o == 3 || o == 4 || o == 6 || o == 7;
    int width = swap ? h : w, height = swap ? w : h;
    uint8_t *rgb = (uint8_t *)malloc_check((size_t)w * (size_t)h * 3), *to = rgb;
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++, to += 3) {
            int from_x = swap ? y : x, from_y = swap ? x : y;
            if (mirror_x) from_x = w - 1 - from_x;
            if (mirror_y) from_y = h - 1 - from_y;
            memcpy(to, image->rgb + ((size_t)from_y * (size_t)w + (size_t)from_x) * 3, 3);
        }
    }
    free(image->rgb);
    image->width = width;
    image->height = height;
    image->rgb = rgb;
    image->orientation = 1;
}

// ---------------------------------------------------------------- CMYK

// One row of CMYK to RGB. Four-component files store inverted inks (c' = 255 - c …), with an Adobe marker or
// without: Pillow always inverts.
//   red = K' - C·K'/255, the division rounded, where C = 255 - c' and K' = 255 - K = k'
static inline void cmyk_row(uint8_t *rgb, const uint8_t *cmyk, int width) {
    for (int x = 0; x < width; x++, cmyk += 4, rgb += 3) {
        for (int c = 0; c < 3; c++) {
            int t = (255 - cmyk[c]) * cmyk[3] + 128;
            rgb[c] = (uint8_t)(cmyk[3] - (((t >> 8) + t) >> 8));
        }
    }
}

#endif
