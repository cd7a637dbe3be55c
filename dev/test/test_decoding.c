// Decoding: JPEG, PNG and WebP files of every kind, made here with the encoders of the same libraries;
// damaged and hostile ones. Stored files are decoded in test_transform.
#include "dev/test/images.h"

#include <webp/encode.h>

typedef struct {
    uint8_t *bytes;
    size_t length;
} File;

// A smooth image: JPEG at high quality keeps it within a few levels.
static void smooth_image(uint8_t *out, int width, int height, int channels) {
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
    WebPPicture image;
    WebPMemoryWriter writer;
    WebPConfigInit(&config);
    WebPPictureInit(&image);
    WebPMemoryWriterInit(&writer);
    config.lossless = lossless;
    config.exact = 1; // keeps the colours below transparent pixels
    config.quality = 90;
    image.use_argb = lossless;
    image.width = width;
    image.height = height;
    image.writer = WebPMemoryWrite;
    image.custom_ptr = &writer;
    if (alpha) WebPPictureImportRGBA(&image, pixels, width * 4);
    else WebPPictureImportRGB(&image, pixels, width * 3);
    EXPECT(WebPEncode(&config, &image), "encoder");
    WebPPictureFree(&image);
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

static void test_jpeg_of_every_layout_decodes(void) {
    enum { W = 77, H = 53 };
    static uint8_t rgb[W * H * 3], gray[W * H], gray_rgb[W * H * 3], cmyk[W * H * 4], from_cmyk[W * H * 3];
    smooth_image(rgb, W, H, 3);
    smooth_image(gray, W, H, 1);
    smooth_image(cmyk, W, H, 4);
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

static void test_png_of_every_type_decodes_as_in_pillow(void) {
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

static void test_webp_decodes_and_drops_alpha(void) {
    enum { W = 41, H = 33 };
    static uint8_t rgba[W * H * 4], rgb[W * H * 3], smooth[W * H * 3];
    random_bytes(rgba, sizeof rgba, 9);
    for (int i = 0; i < W * H; i++) memcpy(rgb + 3 * i, rgba + 4 * i, 3);
    smooth_image(smooth, W, H, 3);
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

static void test_bad_files_are_refused(void) {
    enum { W = 40, H = 30 };
    static uint8_t rgb[W * H * 3];
    smooth_image(rgb, W, H, 3);
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
    const ImageStatus cut = image_form_status(FORM_GIF) == IMAGE_OK ? IMAGE_BROKEN : IMAGE_GIF;
    expect_status((const uint8_t *)"GIF89a", 6, MAX_PIXELS, cut, "GIF");

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

// The last scan of a progressive gray file, a refinement of coefficients, repeated: each repetition is legal,
// but a pass over the whole image.
static void expect_scans(int width, int height, int repetitions, ImageStatus status) {
    uint8_t *gray = (uint8_t *)calloc_check((size_t)width, (size_t)height);
    File file = encode_jpeg(gray, width, height, JCS_GRAYSCALE, JCS_GRAYSCALE, 1, 1, true);
    size_t sos = file.length;
    while (!(file.bytes[sos - 2] == 0xff && file.bytes[sos - 1] == 0xda)) sos--;
    const uint8_t *scan = file.bytes + sos - 2;
    size_t n = file.length - sos; // up to the end marker
    File many = {(uint8_t *)malloc_check(file.length + (size_t)repetitions * n), file.length - 2};
    memcpy(many.bytes, file.bytes, many.length);
    for (int i = 0; i < repetitions; i++, many.length += n) memcpy(many.bytes + many.length, scan, n);
    memcpy(many.bytes + many.length, "\xff\xd9", 2);
    many.length += 2;
    expect_status(many.bytes, many.length, (int64_t)width * height, status, "number of scans");
    free(many.bytes);
    free(file.bytes);
    free(gray);
}

static void test_jpeg_with_too_many_scans_is_refused(void) {
    expect_scans(16, 16, 400, IMAGE_OK);
    expect_scans(16, 16, 1000, IMAGE_BROKEN);
    expect_scans(4000, 5000, 30, IMAGE_OK); // 36 of 50 scans
    expect_scans(4000, 5000, 50, IMAGE_BROKEN);
    EXPECT(jpeg_most_scans(1) == JPEG_MOST_SCANS && jpeg_most_scans(10000000) == 100 &&
           jpeg_most_scans((int64_t)1 << 40) == JPEG_FEWEST_SCANS);
    const char *shared = "../shared/cases/hostile/jpeg_495_scans_5000x5000.jpg";
    if (!file_exists(shared)) return;
    size_t length;
    char *bytes = file_read_all(shared, &length);
    expect_status((const uint8_t *)bytes, length, 25000000, IMAGE_BROKEN, shared);
    free(bytes);
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

static void test_exif_orientation_is_found_in_every_format(void) {
    enum { W = 24, H = 17 };
    static uint8_t rgb[W * H * 3];
    smooth_image(rgb, W, H, 3);
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
            insert_bytes(png, png.length - 12, chunk, n + 12), expected, "PNG, after the pixels");

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
    for (size_t k = 0; k < n;
         k++) { // cut anywhere, in its own block so that a sanitizer sees a read beyond it
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

static void test_orientation_turns_the_image_upright(void) {
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
        malloc_check(length), bytes, length); // its own block: a sanitizer sees a read beyond it
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

static void test_damaged_files_are_survived(void) {
    enum { W = 35, H = 27, FLIPS = 1500 };
    static uint8_t rgb[W * H * 3], four[W * H * 4];
    png_color palette[PALETTE_COLORS];
    smooth_image(rgb, W, H, 3);
    smooth_image(four, W, H, 4);
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
        size_t spare = png                   ? 20
                       : f->bytes[0] == 0xff ? 1
                                             : 0; // bytes after the last pixel, which a decoder need not miss
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

int main(void) {
    RUN(test_jpeg_of_every_layout_decodes);
    RUN(test_png_of_every_type_decodes_as_in_pillow);
    RUN(test_webp_decodes_and_drops_alpha);
    RUN(test_bad_files_are_refused);
    RUN(test_jpeg_with_too_many_scans_is_refused);
    RUN(test_exif_orientation_is_found_in_every_format);
    RUN(test_orientation_turns_the_image_upright);
    RUN(test_damaged_files_are_survived);
    return test_report();
}
