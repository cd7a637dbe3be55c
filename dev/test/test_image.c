// Pictures: decoders, resize, augmentation. Usage: test_image [GOLDEN_DIR]
// Without a folder: own fixtures, made here with the encoders of the same libraries. With a folder laid out
// as its README says (files.json, bad.json, augment.json, expected.npz, expected_crops.npz): every file and
// every array in it.
#include "clipc/data/transform.h"
#include "dev/test/npz.h"
#include "dev/test/test.h"

#include <webp/encode.h>

#define MAX_PIXELS 25000000 // the program's default

typedef struct {
    uint8_t *bytes;
    size_t length;
} File;

static void random_bytes(uint8_t *out, size_t n, uint64_t seed) {
    Rand r = rand_for(seed, 0, 0);
    for (size_t i = 0; i < n; i++) out[i] = (uint8_t)(rand_u64(&r) >> 56);
}

// A smooth picture: JPEG at high quality keeps it within a few levels.
static void smooth_picture(uint8_t *out, int width, int height, int channels) {
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < channels; c++)
                *out++ = (uint8_t)(128 + 60 * sin(0.05 * x * (c + 1) + c) + 50 * cos(0.04 * y * (3 - c)));
}

// ---------------------------------------------------------------- encoders

// in: components given to libjpeg in `space`, which it stores in `stored`; h, v: sampling of the first
// component
static File encode_jpeg(const uint8_t *in, int width, int height, J_COLOR_SPACE space, J_COLOR_SPACE stored,
    int h, int v, bool progressive) {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long length = 0;
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &bytes, &length);
    jpeg.image_width = (JDIMENSION)width;
    jpeg.image_height = (JDIMENSION)height;
    jpeg.in_color_space = space;
    jpeg.input_components = space == JCS_GRAYSCALE ? 1 : space == JCS_CMYK ? 4 : 3;
    jpeg_set_defaults(&jpeg);
    jpeg_set_colorspace(&jpeg, stored);
    jpeg_set_quality(&jpeg, 98, TRUE);
    jpeg.comp_info[0].h_samp_factor = h;
    jpeg.comp_info[0].v_samp_factor = v;
    if (progressive) jpeg_simple_progression(&jpeg);
    jpeg_start_compress(&jpeg, TRUE);
    while (jpeg.next_scanline < jpeg.image_height) {
        JSAMPROW row =
            (JSAMPROW)(uintptr_t)(in + (size_t)jpeg.next_scanline * (size_t)(width * jpeg.input_components));
        jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    File file = {bytes, (size_t)length};
    return file;
}

static void png_append(png_structp png, png_bytep data, size_t n) {
    File *file = (File *)png_get_io_ptr(png);
    file->bytes = (uint8_t *)realloc_check(file->bytes, file->length + n);
    memcpy(file->bytes + file->length, data, n);
    file->length += n;
}

static void png_flush_nothing(png_structp png) { (void)png; }

#define PALETTE_COLORS 10 // fewer than a byte can name

// rows: packed samples as PNG stores them (16 bits big-endian)
static File encode_png(const uint8_t *rows, size_t row_bytes, int width, int height, int color, int depth,
    bool interlaced, const png_color *palette) {
    File file = {NULL, 0};
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_set_write_fn(png, &file, png_append, png_flush_nothing);
    png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, depth, color,
        interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, 0, 0);
    png_byte alpha[3] = {0, 100, 200};
    png_color_16 clear = {1, 1, 1, 1, 1};
    if (palette) png_set_PLTE(png, info, palette, (int)min_i64(PALETTE_COLORS, 1 << depth));
    png_set_check_for_invalid_index(png, 0);
    if (palette) png_set_tRNS(png, info, alpha, depth == 1 ? 2 : 3, NULL);
    else if (!(color & PNG_COLOR_MASK_ALPHA)) png_set_tRNS(png, info, NULL, 0, &clear);
    png_set_gAMA(png, info, 1.0);
    png_set_filter(png, 0, PNG_ALL_FILTERS);
    png_set_compression_buffer_size(png, 500); // several IDAT chunks
    png_write_info(png, info);
    int passes = png_set_interlace_handling(png);
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < height; y++) png_write_row(png, rows + (size_t)y * row_bytes);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    return file;
}

static File encode_webp(const uint8_t *pixels, int width, int height, bool alpha, bool lossless) {
    WebPConfig config;
    WebPPicture picture;
    WebPMemoryWriter writer;
    WebPConfigInit(&config);
    WebPPictureInit(&picture);
    WebPMemoryWriterInit(&writer);
    config.lossless = lossless;
    config.exact = 1; // keeps the colours below transparent pixels
    config.quality = 90;
    picture.use_argb = lossless;
    picture.width = width;
    picture.height = height;
    picture.writer = WebPMemoryWrite;
    picture.custom_ptr = &writer;
    if (alpha) WebPPictureImportRGBA(&picture, pixels, width * 4);
    else WebPPictureImportRGB(&picture, pixels, width * 3);
    EXPECT(WebPEncode(&config, &picture), "encoder");
    WebPPictureFree(&picture);
    File file = {(uint8_t *)malloc_check(writer.size), writer.size};
    memcpy(file.bytes, writer.mem, writer.size);
    WebPMemoryWriterClear(&writer);
    return file;
}

// Inserts a chunk of bytes into a file at `at`.
static File insert_bytes(File file, size_t at, const uint8_t *bytes, size_t n) {
    File out = {(uint8_t *)malloc_check(file.length + n), file.length + n};
    memcpy(out.bytes, file.bytes, at);
    memcpy(out.bytes + at, bytes, n);
    memcpy(out.bytes + at + n, file.bytes + at, file.length - at);
    return out;
}

static void write_be(uint8_t *p, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

// CRC-32 of PNG (ISO 3309), bit by bit
static uint32_t crc_of(const uint8_t *p, size_t n) {
    uint32_t crc = 0xffffffffu;
    for (; n; n--, p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

// ---------------------------------------------------------------- decoders

static int largest_difference(const uint8_t *a, const uint8_t *b, size_t n) {
    int worst = 0;
    for (size_t i = 0; i < n; i++) worst = abs(a[i] - b[i]) > worst ? abs(a[i] - b[i]) : worst;
    return worst;
}

static void expect_decodes(
    File file, const uint8_t *rgb, int width, int height, int tolerance, const char *what) {
    Image image;
    ImageStatus status = image_decode(&image, file.bytes, file.length, MAX_PIXELS);
    EXPECT(status == IMAGE_OK, "%s: %s", what, image_status_name(status));
    if (status != IMAGE_OK) return;
    EXPECT(image.width == width && image.height == height, "%s: %d x %d", what, image.width, image.height);
    int worst = largest_difference(image.rgb, rgb, (size_t)width * (size_t)height * 3);
    EXPECT(worst <= tolerance, "%s: off by %d", what, worst);
    EXPECT(image.orientation == 1, "%s: orientation %d", what, image.orientation);
    image_free(&image);
}

static void test_jpeg_layouts(void) {
    enum { W = 77, H = 53 };
    static uint8_t rgb[W * H * 3], gray[W * H], gray_rgb[W * H * 3], cmyk[W * H * 4], from_cmyk[W * H * 3];
    smooth_picture(rgb, W, H, 3);
    smooth_picture(gray, W, H, 1);
    smooth_picture(cmyk, W, H, 4);
    for (int i = 0; i < W * H; i++) {
        memset(gray_rgb + 3 * i, gray[i], 3);
        for (int c = 0; c < 3; c++)
            from_cmyk[3 * i + c] =
                (uint8_t)(cmyk[4 * i + c] * cmyk[4 * i + 3] / 255.0 + 0.5); // the file holds inverted inks
    }
    const struct {
        const char *name;
        const uint8_t *in, *expected;
        J_COLOR_SPACE space, stored;
        int h, v, tolerance;
    } layouts[] = {
        {"4:4:4", rgb, rgb, JCS_RGB, JCS_YCbCr, 1, 1, 4},
        {"4:2:0", rgb, rgb, JCS_RGB, JCS_YCbCr, 2, 2, 16},
        {"4:2:2", rgb, rgb, JCS_RGB, JCS_YCbCr, 2, 1, 16},
        {"4:4:0", rgb, rgb, JCS_RGB, JCS_YCbCr, 1, 2, 16},
        {"4:1:1", rgb, rgb, JCS_RGB, JCS_YCbCr, 4, 1, 40},
        {"RGB", rgb, rgb, JCS_RGB, JCS_RGB, 1, 1, 4},
        {"gray", gray, gray_rgb, JCS_GRAYSCALE, JCS_GRAYSCALE, 1, 1, 4},
        {"CMYK", cmyk, from_cmyk, JCS_CMYK, JCS_CMYK, 1, 1, 5},
        {"YCCK", cmyk, from_cmyk, JCS_CMYK, JCS_YCCK, 1, 1, 6},
    };
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        File baseline = encode_jpeg(
            layouts[i].in, W, H, layouts[i].space, layouts[i].stored, layouts[i].h, layouts[i].v, false);
        File progressive = encode_jpeg(
            layouts[i].in, W, H, layouts[i].space, layouts[i].stored, layouts[i].h, layouts[i].v, true);
        expect_decodes(baseline, layouts[i].expected, W, H, layouts[i].tolerance, layouts[i].name);
        Image image;
        if (image_decode(&image, baseline.bytes, baseline.length, MAX_PIXELS) == IMAGE_OK) {
            expect_decodes(
                progressive, image.rgb, W, H, 0, "progressive: the same coefficients in another order");
            image_free(&image);
        }
        free(baseline.bytes);
        free(progressive.bytes);
    }
}

// Sample x of a packed PNG row.
static int packed_sample(const uint8_t *row, int x, int depth) {
    if (depth == 16) return row[2 * x] << 8 | row[2 * x + 1];
    return row[x * depth / 8] >> (8 - depth - x * depth % 8) & ((1 << depth) - 1);
}

// What Pillow makes of one PNG pixel (the rules of doc/images.md, written here a second time).
static void png_expected_pixel(
    uint8_t rgb[3], const uint8_t *row, int x, int color, int depth, const png_color *palette) {
    int channels = color == PNG_COLOR_TYPE_RGBA         ? 4
                   : color == PNG_COLOR_TYPE_RGB        ? 3
                   : color == PNG_COLOR_TYPE_GRAY_ALPHA ? 2
                                                        : 1;
    for (int c = 0; c < 3; c++) {
        int s = packed_sample(row, x * channels + (channels >= 3 ? c : 0), depth);
        if (color == PNG_COLOR_TYPE_PALETTE)
            rgb[c] = c == 0 ? palette[s].red : c == 1 ? palette[s].green : palette[s].blue;
        else if (depth == 16) rgb[c] = (uint8_t)(color == PNG_COLOR_TYPE_GRAY ? (s > 255 ? 255 : s) : s >> 8);
        else rgb[c] = (uint8_t)(s * 255 / ((1 << depth) - 1));
    }
}

static void test_png_layouts(void) {
    enum { W = 37, H = 29 };
    const struct {
        int color, depths;
    } kinds[] = {{PNG_COLOR_TYPE_GRAY, 1 | 2 | 4 | 8 | 16}, {PNG_COLOR_TYPE_GRAY_ALPHA, 8 | 16},
        {PNG_COLOR_TYPE_RGB, 8 | 16}, {PNG_COLOR_TYPE_RGBA, 8 | 16}, {PNG_COLOR_TYPE_PALETTE, 1 | 2 | 4 | 8}};
    static uint8_t rows[H * W * 8], expected[H * W * 3];
    png_color palette[256];
    memset(palette, 0, sizeof palette);
    random_bytes((uint8_t *)palette, sizeof(png_color) * PALETTE_COLORS, 5); // indices beyond are black
    for (int i = 0; i < 10; i++) {
        int color = kinds[i / 2].color;
        bool interlaced = i % 2;
        for (int depth = 1; depth <= 16; depth *= 2) {
            if (!(kinds[i / 2].depths & depth)) continue;
            int channels = color == PNG_COLOR_TYPE_RGBA         ? 4
                           : color == PNG_COLOR_TYPE_RGB        ? 3
                           : color == PNG_COLOR_TYPE_GRAY_ALPHA ? 2
                                                                : 1;
            size_t row_bytes = ((size_t)W * (size_t)(channels * depth) + 7) / 8;
            random_bytes(rows, sizeof rows, (uint64_t)(100 * i + depth));
            if (color == PNG_COLOR_TYPE_GRAY && depth == 16)
                for (size_t k = 0; k < H * row_bytes; k += 4) rows[k] = 0; // half of the samples below 256
            for (int y = 0; y < H; y++)
                for (int x = 0; x < W; x++)
                    png_expected_pixel(
                        expected + (y * W + x) * 3, rows + (size_t)y * row_bytes, x, color, depth, palette);
            File file = encode_png(rows, row_bytes, W, H, color, depth, interlaced,
                color == PNG_COLOR_TYPE_PALETTE ? palette : NULL);
            char what[64];
            snprintf(what, sizeof what, "PNG colour type %d, %d bits%s", color, depth,
                interlaced ? ", interlaced" : "");
            expect_decodes(file, expected, W, H, 0, what);
            free(file.bytes);
        }
    }
}

static void test_webp(void) {
    enum { W = 41, H = 33 };
    static uint8_t rgba[W * H * 4], rgb[W * H * 3], smooth[W * H * 3];
    random_bytes(rgba, sizeof rgba, 9);
    for (int i = 0; i < W * H; i++) memcpy(rgb + 3 * i, rgba + 4 * i, 3);
    smooth_picture(smooth, W, H, 3);
    File files[] = {encode_webp(rgba, W, H, true, true), encode_webp(rgb, W, H, false, true),
        encode_webp(smooth, W, H, false, false)};
    expect_decodes(files[0], rgb, W, H, 0, "lossless WebP, alpha dropped");
    expect_decodes(files[1], rgb, W, H, 0, "lossless WebP");
    expect_decodes(files[2], smooth, W, H, 24, "lossy WebP");
    for (int i = 0; i < 3; i++) free(files[i].bytes);
}

static void expect_status(
    const uint8_t *bytes, size_t length, int64_t max_pixels, ImageStatus expected, const char *what) {
    Image image;
    ImageStatus status = image_decode(&image, bytes, length, max_pixels);
    EXPECT(status == expected, "%s: '%s' instead of '%s'", what, image_status_name(status),
        image_status_name(expected));
    if (status == IMAGE_OK) image_free(&image);
}

static void test_refusals(void) {
    enum { W = 40, H = 30 };
    static uint8_t rgb[W * H * 3];
    smooth_picture(rgb, W, H, 3);
    File jpeg = encode_jpeg(rgb, W, H, JCS_RGB, JCS_YCbCr, 2, 2, false);
    File webp = encode_webp(rgb, W, H, false, false);
    File png = encode_png(rgb, W * 3, W, H, PNG_COLOR_TYPE_RGB, 8, false, NULL);
    const File files[] = {jpeg, png, webp};
    for (int i = 0; i < 3; i++) {
        expect_status(files[i].bytes, files[i].length, W * H, IMAGE_OK, "at the limit");
        expect_status(
            files[i].bytes, files[i].length, W * H - 1, IMAGE_TOO_LARGE, "one pixel above the limit");
        expect_status(
            files[i].bytes + 1, files[i].length - 1, MAX_PIXELS, IMAGE_UNKNOWN_FORMAT, "first byte gone");
    }
    expect_status((const uint8_t *)"", 0, MAX_PIXELS, IMAGE_EMPTY, "empty");
    expect_status((const uint8_t *)"<html>404</html>", 16, MAX_PIXELS, IMAGE_UNKNOWN_FORMAT, "text");
    expect_status((const uint8_t *)"GIF89a", 6, MAX_PIXELS, IMAGE_UNKNOWN_FORMAT, "GIF");

    // the sizes in the headers, altered; the pixels of 60000 x 60000 would not fit into memory
    size_t sof = 2;
    while (jpeg.bytes[sof + 1] != 0xc0) sof += 2 + exif_number(jpeg.bytes + sof + 2, 2, true);
    write_be(jpeg.bytes + sof + 5, 60000, 2);
    write_be(jpeg.bytes + sof + 7, 60000, 2);
    expect_status(jpeg.bytes, jpeg.length, MAX_PIXELS, IMAGE_TOO_LARGE, "JPEG of 60000 x 60000");
    write_be(jpeg.bytes + sof + 5, 0, 2);
    expect_status(jpeg.bytes, jpeg.length, MAX_PIXELS, IMAGE_BROKEN, "JPEG of height 0");
    write_be(jpeg.bytes + sof + 5, H, 2);
    write_be(jpeg.bytes + sof + 7, W, 2);
    jpeg.bytes[sof + 4] = 12;
    expect_status(jpeg.bytes, jpeg.length, MAX_PIXELS, IMAGE_BROKEN, "JPEG of 12 bits");

    for (size_t at = 8; at < png.length;
         at += exif_number(png.bytes + at, 4, true) + 12) // the CRC of IDAT: not checked, as in Pillow
        if (memcmp(png.bytes + at + 4, "IDAT", 4) == 0)
            png.bytes[at + 8 + exif_number(png.bytes + at, 4, true)] ^= 1;
    expect_decodes(png, rgb, W, H, 0, "wrong CRC of IDAT");
    const File without_end = {png.bytes, png.length - 12};
    expect_decodes(without_end, rgb, W, H, 0, "without IEND");
    const File without_crc = {png.bytes, png.length - 15};
    expect_decodes(without_crc, rgb, W, H, 0, "cut inside the CRC of IDAT");
    png.bytes[16 + 13] ^= 1;
    expect_status(png.bytes, png.length, MAX_PIXELS, IMAGE_BROKEN, "wrong CRC of IHDR");
    for (uint32_t size = 0; size <= 0x7fffffff; size += 0x7fffffff) {
        write_be(png.bytes + 16, size, 4);
        write_be(png.bytes + 20, size, 4);
        write_be(png.bytes + 29, crc_of(png.bytes + 12, 17), 4);
        expect_status(png.bytes, png.length, MAX_PIXELS, size ? IMAGE_TOO_LARGE : IMAGE_BROKEN,
            "PNG of size 0 or 2^31 - 1");
    }
    for (int i = 0; i < 3; i++) free(files[i].bytes);
    for (int i = 0; i < IMAGE_STATUS_COUNT; i++)
        EXPECT(strlen(image_status_name((ImageStatus)i)) > 1, "status %d has a name", i);
}

// The scan header of a progressive file, repeated: each repetition is legal, a thousand is an attack on time.
static void test_scan_limit(void) {
    enum { W = 16, H = 16 };
    static uint8_t gray[W * H];
    File file = encode_jpeg(gray, W, H, JCS_GRAYSCALE, JCS_GRAYSCALE, 1, 1, true);
    size_t sos = file.length;
    while (!(file.bytes[sos - 2] == 0xff && file.bytes[sos - 1] == 0xda))
        sos--; // the last scan: a refinement of coefficients
    const uint8_t *scan = file.bytes + sos - 2;
    size_t n = file.length - sos; // up to the end marker
    for (int count = 10; count <= 1000; count += 990) {
        File many = {(uint8_t *)malloc_check(file.length + (size_t)count * n), file.length};
        memcpy(many.bytes, file.bytes, file.length - 2);
        many.length -= 2;
        for (int i = 0; i < count; i++, many.length += n) memcpy(many.bytes + many.length, scan, n);
        memcpy(many.bytes + many.length, "\xff\xd9", 2);
        many.length += 2;
        expect_status(many.bytes, many.length, MAX_PIXELS, count < JPEG_MOST_SCANS ? IMAGE_OK : IMAGE_BROKEN,
            "number of scans");
        free(many.bytes);
    }
    free(file.bytes);
}

// ---------------------------------------------------------------- EXIF

// A TIFF header with one directory of two entries, the second the orientation. Returns its length.
static size_t make_exif(uint8_t out[64], int orientation, bool big) {
    static const uint8_t little_endian[38] = {
        'I', 'I', 42, 0, 8, 0, 0, 0, 2, 0, 0x0f, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x12, 1, 3, 0, 1, 0, 0, 0};
    static const uint8_t big_endian[38] = {
        'M', 'M', 0, 42, 0, 0, 0, 8, 0, 2, 1, 0x0f, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0x12, 0, 3, 0, 0, 0, 1};
    memcpy(out, big ? big_endian : little_endian, 38);
    out[big ? 31 : 30] = (uint8_t)orientation;
    return 38;
}

static void expect_orientation(File file, int orientation, const char *what) {
    Image image;
    ImageStatus status = image_decode(&image, file.bytes, file.length, MAX_PIXELS);
    EXPECT(status == IMAGE_OK && image.orientation == orientation, "%s: %s, orientation %d", what,
        image_status_name(status), image.orientation);
    if (status == IMAGE_OK) image_free(&image);
    free(file.bytes);
}

static void test_exif_is_found(void) {
    enum { W = 24, H = 17 };
    static uint8_t rgb[W * H * 3];
    smooth_picture(rgb, W, H, 3);
    File jpeg = encode_jpeg(rgb, W, H, JCS_RGB, JCS_YCbCr, 1, 1, false);
    File png = encode_png(rgb, W * 3, W, H, PNG_COLOR_TYPE_RGB, 8, false, NULL);
    File webp = encode_webp(rgb, W, H, false, false);
    for (int o = 0; o <= 9; o++) { // 0 and 9 mean nothing
        int expected = o >= 1 && o <= 8 ? o : 1;
        uint8_t chunk[80];
        size_t n = make_exif(chunk + 10, o, o % 2);
        memcpy(chunk, "\xff\xe1\0\0Exif\0", 10);
        write_be(chunk + 2, (uint32_t)n + 8, 2);
        expect_orientation(insert_bytes(jpeg, 2, chunk, n + 10), expected, "JPEG");

        n = make_exif(chunk + 8, o, o % 2);
        memcpy(chunk + 4, "eXIf", 4);
        write_be(chunk, (uint32_t)n, 4);
        write_be(chunk + 8 + n, crc_of(chunk + 4, n + 4), 4);
        expect_orientation(insert_bytes(png, 33, chunk, n + 12), expected, "PNG");
        expect_orientation(
            insert_bytes(png, png.length - 12, chunk, n + 12), expected, "PNG, behind the pixels");

        memcpy(chunk, "EXIF\x26\0\0\0", 8);
        File with = insert_bytes(webp, webp.length, chunk, n + 8);
        const uint8_t extended[18] = {
            'V', 'P', '8', 'X', 10, 0, 0, 0, 8 /* has EXIF */, 0, 0, 0, W - 1, 0, 0, H - 1, 0, 0};
        File whole = insert_bytes(with, 12, extended, sizeof extended);
        for (int i = 0; i < 4; i++) whole.bytes[4 + i] = (uint8_t)((whole.length - 8) >> 8 * i);
        expect_orientation(whole, expected, "WebP");
        free(with.bytes);
    }
    uint8_t exif[64];
    size_t n = make_exif(exif, 6, true);
    for (size_t k = 0; k < n; k++) { // cut anywhere, in a block of its own so that a read behind it is seen
        uint8_t *cut = (uint8_t *)memcpy(malloc_check(k), exif, k);
        EXPECT(exif_orientation(cut, k) == (k >= 34 ? 6 : 1), "EXIF cut at %zu", k);
        free(cut);
    }
    for (int i = 4; i < 10; i++) { // an offset or a count out of the block
        make_exif(exif, 6, true);
        exif[i] = 0xff;
        EXPECT(exif_orientation(exif, n) >= 1, "EXIF with byte %d altered", i);
    }
    free(jpeg.bytes);
    free(png.bytes);
    free(webp.bytes);
}

static void test_orientation_is_applied(void) {
    // 3 wide, 2 high: abc / def, turned upright
    const struct {
        int width, height;
        const char *letters;
    } upright[9] = {{0, 0, ""}, {3, 2, "abcdef"}, {3, 2, "cbafed"}, {3, 2, "fedcba"}, {3, 2, "defabc"},
        {2, 3, "adbecf"}, {2, 3, "daebfc"}, {2, 3, "fcebda"}, {2, 3, "cfbead"}};
    for (int o = 1; o <= 8; o++) {
        Image image = {3, 2, (uint8_t *)malloc_check(18), o};
        for (int i = 0; i < 18; i++) image.rgb[i] = (uint8_t)("abcdef"[i / 3] + 10 * (i % 3));
        image_apply_orientation(&image);
        EXPECT(image.width == upright[o].width && image.height == upright[o].height && image.orientation == 1,
            "orientation %d", o);
        for (int i = 0; i < 18; i++)
            EXPECT(image.rgb[i] == upright[o].letters[i / 3] + 10 * (i % 3), "orientation %d, byte %d", o, i);
        image_free(&image);
    }
}

// ---------------------------------------------------------------- damaged bytes

static void decode_copy(const uint8_t *bytes, size_t length, bool must_fail) {
    uint8_t *copy = (uint8_t *)memcpy(
        malloc_check(length), bytes, length); // a block of its own: a read behind it is seen
    Image image;
    uint8_t out[3 * 8 * 8];
    ImageStatus status = image_decode(&image, copy, length, 100000);
    EXPECT(!must_fail || status != IMAGE_OK, "a file cut at %zu decodes", length);
    if (status == IMAGE_OK) {
        image_eval_transform(out, &image, 8, INTERPOLATION_BICUBIC, RESIZE_SHORTEST);
        image_apply_orientation(&image);
        image_free(&image);
    }
    free(copy);
}

static void test_damaged_files(void) {
    enum { W = 35, H = 27, FLIPS = 1500 };
    static uint8_t rgb[W * H * 3], four[W * H * 4];
    png_color palette[PALETTE_COLORS];
    smooth_picture(rgb, W, H, 3);
    smooth_picture(four, W, H, 4);
    random_bytes((uint8_t *)palette, sizeof palette, 3);
    const File files[] = {
        encode_jpeg(rgb, W, H, JCS_RGB, JCS_YCbCr, 2, 2, false),
        encode_jpeg(rgb, W, H, JCS_RGB, JCS_YCbCr, 2, 1, true),
        encode_jpeg(four, W, H, JCS_CMYK, JCS_YCCK, 1, 1, true),
        encode_png(rgb, W * 3, W, H, PNG_COLOR_TYPE_RGB, 8, false, NULL),
        encode_png(four, W * 4, W, H, PNG_COLOR_TYPE_RGBA, 8, true, NULL),
        encode_png(rgb, W * 2, W, H, PNG_COLOR_TYPE_GRAY, 16, true, NULL),
        encode_png(rgb, (W + 1) / 2, W, H, PNG_COLOR_TYPE_PALETTE, 4, true, palette),
        encode_webp(four, W, H, true, false),
        encode_webp(four, W, H, true, true),
        encode_webp(rgb, W, H, false, false),
    };
    Rand rand = rand_for(1, 2, 3);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const File *f = &files[i];
        bool png = f->bytes[0] == 0x89;
        size_t spare = png ? 20
                       : f->bytes[0] == 0xff
                           ? 1
                           : 0; // bytes behind the last pixel, which a decoder need not miss
        for (size_t n = 0; n < f->length; n++) decode_copy(f->bytes, n, n + spare < f->length);
        uint8_t *altered = (uint8_t *)malloc_check(f->length);
        for (int k = 0; k < FLIPS; k++) {
            memcpy(altered, f->bytes, f->length);
            for (uint64_t hits = 1 + rand_below(&rand, 4); hits; hits--)
                altered[rand_below(&rand, f->length)] = (uint8_t)rand_u64(&rand);
            if (png) { // so that more than the check of the CRC is reached
                for (size_t at = 8; f->length - at >= 12;) {
                    size_t size = exif_number(altered + at, 4, true);
                    if (size > f->length - at - 12) break;
                    write_be(altered + at + 8 + size, crc_of(altered + at + 4, size + 4), 4);
                    at += size + 12;
                }
            }
            decode_copy(altered, f->length, false);
        }
        free(altered);
        free(f->bytes);
    }
}

// ---------------------------------------------------------------- resize

static Image random_image(int width, int height, uint64_t seed) {
    Image image = {width, height, (uint8_t *)malloc_check((size_t)width * (size_t)height * 3), 1};
    random_bytes(image.rgb, (size_t)width * (size_t)height * 3, seed);
    if (seed % 2) // hard edges: overshoot must clamp
        for (size_t i = 0; i < (size_t)width * (size_t)height * 3; i++)
            image.rgb[i] = image.rgb[i] < 128 ? 0 : 255;
    return image;
}

static double direct_weight(double x, Interpolation filter) {
    x = fabs(x);
    if (filter == INTERPOLATION_BILINEAR) return x < 1 ? 1 - x : 0;
    return x < 1 ? 1.5 * x * x * x - 2.5 * x * x + 1 : x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2 : 0;
}

// One pass over a line of n_in samples `step` apart, by the definition in double: every input weighted,
// rounded to a level.
static void direct_pass(double *out, int n_out, const double *in, int n_in, int lines, int in_line,
    int out_line, int in_step, int out_step, Interpolation filter) {
    double scale = (double)n_in / n_out, stretch = scale > 1 ? scale : 1;
    for (int line = 0; line < lines; line++) {
        for (int o = 0; o < n_out; o++) {
            double sum = 0, total = 0;
            for (int i = 0; i < n_in; i++) {
                double w = direct_weight(((i + 0.5) - (o + 0.5) * scale) / stretch, filter);
                sum += w * in[line * in_line + i * in_step];
                total += w;
            }
            out[line * out_line + o * out_step] = fmin(255, fmax(0, floor(sum / total + 0.5)));
        }
    }
}

// The whole picture resized to width x height, one colour; columns first or rows first.
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
static void test_resize_equals_pillow(void) {
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
static void test_weighted_sums_agree(void) {
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

static void test_crop_sees_nothing_outside(void) {
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

static void test_normalize(void) {
    const float mean[3] = {0.5f, 0.25f, 0}, std[3] = {0.5f, 0.25f, 2};
    const uint8_t pixels[3 * 4] = {0, 51, 102, 255, 0, 51, 102, 255, 0, 51, 102, 255};
    const double expected[3 * 4] = {-1, -0.6, -0.2, 1, -1, -0.2, 0.6, 3, 0, 0.1, 0.2, 0.5};
    float out[3 * 4];
    image_normalize(out, pixels, 2, mean, std);
    for (int i = 0; i < 12; i++) EXPECT_CLOSE(out[i], expected[i], 1e-6);
}

// ---------------------------------------------------------------- augmentation

static AugmentConfig parsed(const char *text) {
    AugmentConfig config;
    char error[256] = "";
    EXPECT(augment_parse(&config, text, error), "'%s': %s", text, error);
    return config;
}

static void test_augment_parse(void) {
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

static void test_random_boxes(void) {
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
    EXPECT(s.most_common_share == 1 && s.top == 0 && fabs(s.left - 83) < 1e-6, "fallback of a wide picture");
    s = box_statistics(2, 300, &config, 100);
    EXPECT(s.most_common_share == 1 && fabs(s.top - 148) < 1e-6 && s.left == 0,
        "fallback of a high picture: 2 x 3 at (300 - 3)/2");
}

// 61 x 59 pixels: noise, a row of gray, a row of weak colours. The hashes are of what Pillow 13.0 and
// torchvision's adjust_hue make of them.
static void test_colors_equal_pillow(void) {
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

static void test_train_transform(void) {
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

// ---------------------------------------------------------------- JSON: flattened to (path, value), enough for a test

typedef struct {
    char **paths, **values; // "12.errors.some key" → text of a string, number, true, false or null
    size_t count, path_capacity, value_capacity;
} Json;

static const char *json_space(const char *p) { return p + strspn(p, " \t\r\n"); }

// A string at *p, which stands on its first quote; \u escapes below 128 only (names and messages).
static char *json_string(const char **p) {
    char *out = (char *)malloc_check(strlen(*p) + 1), *to = out;
    const char *from = *p + 1;
    for (; *from && *from != '"'; from++) {
        if (*from != '\\') *to++ = *from;
        else if (*++from == 'n') *to++ = '\n';
        else if (*from == 'u') {
            unsigned code = 0;
            if (sscanf(from + 1, "%4x", &code) == 1) from += 4;
            *to++ = code < 128 ? (char)code : '?';
        } else *to++ = *from;
    }
    *to = 0;
    *p = *from ? from + 1 : from;
    return out;
}

static const char *json_flatten(Json *json, const char *p, const char *path) {
    p = json_space(p);
    if (*p == '{' || *p == '[') {
        bool object = *p == '{';
        p = json_space(p + 1);
        for (int i = 0; *p && *p != '}' && *p != ']'; i++) {
            char inner[1024], number[16], *key = NULL;
            snprintf(number, sizeof number, "%d", i);
            if (object) {
                key = json_string(&p);
                p = json_space(p) + 1; // the colon
            }
            snprintf(inner, sizeof inner, "%s%s%s", path, *path ? "." : "", object ? key : number);
            free(key);
            p = json_space(json_flatten(json, p, inner));
            if (*p == ',') p = json_space(p + 1);
        }
        return *p ? p + 1 : p;
    }
    char *value;
    if (*p == '"') value = json_string(&p);
    else {
        size_t n = strcspn(p, ",]} \t\r\n");
        value = strdup_check(p);
        value[n] = 0;
        p += n;
    }
    list_grow((void **)&json->paths, &json->path_capacity, json->count + 1, sizeof(char *));
    list_grow((void **)&json->values, &json->value_capacity, json->count + 1, sizeof(char *));
    json->paths[json->count] = strdup_check(path);
    json->values[json->count++] = value;
    return p;
}

static Json json_read(const char *folder, const char *name) {
    Json json = {NULL, NULL, 0, 0, 0};
    char path[PATH_SIZE];
    path_format(path, "%s/%s", folder, name);
    char *text = file_read_all(path, NULL);
    json_flatten(&json, text, "");
    free(text);
    return json;
}

static void json_free(Json *json) {
    for (size_t i = 0; i < json->count; i++) {
        free(json->paths[i]);
        free(json->values[i]);
    }
    free(json->paths);
    free(json->values);
}

PRINTF_LIKE(2, 3) static const char *json_get(const Json *json, const char *format, ...) {
    char path[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(path, sizeof path, format, args);
    va_end(args);
    for (size_t i = 0; i < json->count; i++)
        if (strcmp(json->paths[i], path) == 0) return json->values[i];
    return NULL;
}

// ---------------------------------------------------------------- golden files

typedef struct {
    const char *folder;
    Npz expected;
    bool *used; // (expected.count) which arrays were compared or left out for a stated reason
    size_t compared, left_out, errors;
} Golden;

static const float GOLDEN_MEAN[3] = {0.48145466f, 0.4578275f, 0.40821073f},
                   GOLDEN_STD[3] = {0.26862954f, 0.26130258f, 0.27577711f};

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

static void expect_bytes(const NpzArray *a, const uint8_t *got, int height, int width) {
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

// One array against the picture it belongs to. In what way the file was resized by Pillow is read from the
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
        image_normalize(normalized, out, size, GOLDEN_MEAN, GOLDEN_STD);
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

static bool is_rgb_or_gray(const char *pil_mode) {
    return pil_mode && (strcmp(pil_mode, "RGB") == 0 || strcmp(pil_mode, "L") == 0);
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

static ImageStatus decode_golden(
    Image *image, const char *folder, const char *subfolder, const char *name, int64_t max_pixels) {
    char path[PATH_SIZE];
    size_t length;
    path_format(path, "%s/%s/%s", folder, subfolder, name);
    char *bytes = file_read_all(path, &length);
    ImageStatus status = image_decode(image, (const uint8_t *)bytes, length, max_pixels);
    free(bytes);
    return status;
}

static bool is_offered(const char *format) {
    return format &&
           (strcmp(format, "JPEG") == 0 || strcmp(format, "PNG") == 0 || strcmp(format, "WEBP") == 0);
}

// The cases in which open_clip ends in an error: "file|mode|filter|size" → "ValueError …"
static void check_errors(Golden *g, const Json *json, int entry, const char *file, const Image *image) {
    char prefix[1024];
    snprintf(prefix, sizeof prefix, "%d.errors.%s|", entry, file);
    for (size_t i = 0; i < json->count; i++) {
        ResizeMode mode = RESIZE_SQUASH;
        Interpolation filter = INTERPOLATION_BICUBIC;
        int size = 0;
        if (strncmp(json->paths[i], prefix, strlen(prefix)) != 0) continue;
        const char *rest = read_case(json->paths[i] + strlen(prefix), &mode, &filter, &size);
        EXPECT(rest && (*rest == 0 || strcmp(rest, "|rgb") == 0), "%s: a key of an unknown kind",
            json->paths[i]);
        if (!rest) continue;
        uint8_t *out = (uint8_t *)malloc_check(3 * (size_t)size * (size_t)size);
        EXPECT(
            image_eval_transform(out, image, size, filter, mode) != IMAGE_OK, "%s: accepted", json->paths[i]);
        free(out);
        g->errors++;
    }
}

static void check_files(Golden *g) {
    Json json = json_read(g->folder, "files.json");
    const char *file;
    int i = 0, decoded = 0;
    for (; (file = json_get(&json, "%d.file", i)); i++) {
        const char *format = json_get(&json, "%d.format", i);
        const char *pil_mode = json_get(&json, "%d.pil_mode", i);
        const char *exif = json_get(&json, "%d.exif_orientation", i);
        Image image;
        ImageStatus status = decode_golden(&image, g->folder, "files", file, MAX_PIXELS);
        if (!is_offered(format) && status == IMAGE_UNKNOWN_FORMAT) {
            printf("  %s: %s is not offered\n", file, format ? format : "?");
            check_arrays(g, file, NULL, pil_mode);
            continue;
        }
        EXPECT(status == IMAGE_OK, "%s: %s", file, image_status_name(status));
        if (status != IMAGE_OK) continue;
        EXPECT(image.orientation == (exif ? atoi(exif) : 1), "%s: orientation %d", file, image.orientation);
        EXPECT(check_arrays(g, file, &image, pil_mode) > 0, "%s: no array in expected.npz", file);
        check_errors(g, &json, i, file, &image);
        image_free(&image);
        decoded++;
    }
    EXPECT(decoded > 0, "files.json names no file that can be decoded");
    printf("  files.json: %d of %d files decoded\n", decoded, i);
    json_free(&json);
}

static void check_bad_files(Golden *g) {
    Json json = json_read(g->folder, "bad.json");
    const char *file;
    int i = 0, decoded = 0;
    for (; (file = json_get(&json, "%d.file", i)); i++) {
        const char *pil = json_get(&json, "%d.pil", i), *format = json_get(&json, "%d.format", i);
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
            check_arrays(g, prefix, status == IMAGE_OK ? &image : NULL, json_get(&json, "%d.pil_mode", i));
        if (decodes && status == IMAGE_OK) EXPECT(arrays > 0, "%s: no array in expected.npz", file);
        if (status == IMAGE_OK) {
            image_free(&image);
            decoded++;
        }
    }
    EXPECT(i > 0, "bad.json names no file");
    printf("  bad.json: %d files, %d of them decoded\n", i, decoded);
    json_free(&json);
}

// The Pillow mode of a file, from files.json.
static const char *pil_mode_of(const Json *files, const char *name) {
    const char *file;
    for (int i = 0; (file = json_get(files, "%d.file", i)); i++)
        if (strcmp(file, name) == 0) return json_get(files, "%d.pil_mode", i);
    return NULL;
}

static void check_crops(const char *folder, const Json *json) {
    char path[PATH_SIZE];
    Json files = json_read(folder, "files.json");
    path_format(path, "%s/expected_crops.npz", folder);
    Npz crops = npz_read(path);
    const char *key;
    size_t compared = 0, left_out = 0;
    for (int i = 0; (key = json_get(json, "cases.%d.key", i)); i++) {
        const char *fields[] = {"top", "left", "height", "width", "size"};
        const char *file = json_get(json, "cases.%d.file", i);
        const NpzArray *a = npz_find(&crops, key);
        int v[5];
        bool complete = file && a;
        for (int k = 0; k < 5; k++) {
            const char *value = json_get(json, "cases.%d.%s", i, fields[k]);
            complete = complete && value;
            v[k] = value ? atoi(value) : 0;
        }
        const char *pil_mode = file ? pil_mode_of(&files, file) : NULL;
        EXPECT(complete && v[4] > 0 && pil_mode, "%s: a field, its file or its array is missing", key);
        Image image;
        if (!complete || v[4] < 1 || !pil_mode) continue;
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
    json_free(&files);
    npz_free(&crops);
}

// torchvision's statistics over its own draws: both means scatter, hence five standard errors of a
// difference, or a rough bound.
static void check_box_statistics(const Json *json) {
    const char *prefix = "statistics_of_torchvision.";
    AugmentConfig config = parsed("");
    int checked = 0;
    for (size_t i = 0; i < json->count; i++) {
        int w, h, n = 0;
        if (strncmp(json->paths[i], prefix, strlen(prefix)) != 0) continue;
        if (sscanf(json->paths[i] + strlen(prefix), "%dx%d.draws%n", &w, &h, &n) != 2 || n == 0) continue;
        int draws = atoi(json->values[i]);
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
            const char *value = json_get(json, "%s%dx%d.%s", prefix, w, h, rows[k].name);
            EXPECT(value != NULL, "%dx%d: no %s", w, h, rows[k].name);
            if (!value) continue;
            EXPECT(fabs(rows[k].got - atof(value)) <= rows[k].tolerance + 1e-4,
                "%dx%d: %s is %g instead of %s", w, h, rows[k].name, rows[k].got, value);
            checked++;
        }
    }
    printf("  random crops: %d statistics compared\n", checked);
    EXPECT(checked > 0, "augment.json has no statistics");
}

static void check_golden(const char *folder) {
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
           "Pillow, format not offered)\n",
        g.compared, g.expected.count, g.left_out);
    printf("  errors as expected: %zu\n", g.errors);
    Json json = json_read(folder, "augment.json");
    check_crops(folder, &json);
    check_box_statistics(&json);
    json_free(&json);
    npz_free(&g.expected);
    free(g.used);
}

int main(int argc, char **argv) {
    if (argc > 2) die(EXIT_USAGE, "one argument at most: the folder of golden images");
    RUN(test_jpeg_layouts);
    RUN(test_png_layouts);
    RUN(test_webp);
    RUN(test_refusals);
    RUN(test_scan_limit);
    RUN(test_exif_is_found);
    RUN(test_orientation_is_applied);
    RUN(test_damaged_files);
    RUN(test_resize_matches_the_definition);
    RUN(test_resize_equals_pillow);
    RUN(test_resize_without_change_is_a_copy);
    RUN(test_weighted_sums_agree);
    RUN(test_crop_sees_nothing_outside);
    RUN(test_normalize);
    RUN(test_augment_parse);
    RUN(test_random_boxes);
    RUN(test_colors_equal_pillow);
    RUN(test_train_transform);
    if (argc == 2) RUN(check_golden, argv[1]);
    return test_report();
}
