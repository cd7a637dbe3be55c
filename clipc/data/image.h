// Images from bytes: JPEG (libjpeg-turbo), PNG (libpng), WebP (libwebp) and those of image_forms.h and
// image_tiff.h, recognised by their content, to
// 8-bit RGB.
//
// The reference is Pillow's Image.open(f).convert("RGB"): the same pixels, and the same files refused
// (doc/images.md lists the differences). Files are not trusted: a size is checked against a limit before
// memory is allocated for it, no read leaves the buffer, and no file ends the program.
#ifndef CLIPC_IMAGE_H
#define CLIPC_IMAGE_H

#include "clipc/data/image_pixels.h" // first: it defines _GNU_SOURCE for the system headers
#include "clipc/data/image_forms.h"  // decode_gif …
#include "clipc/data/image_tiff.h"   // decode_tiff

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h> // jpeglib.h needs it
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h> // JWRN_JPEG_EOF
#include <png.h>
#include <webp/decode.h>
#include <webp/demux.h>

// ---------------------------------------------------------------- JPEG

// Real progressive files have some ten scans. Each one is a pass over the whole image, even where it takes
// few bytes: scans * pixels is what a file costs, about 0.7 ns each. An image of any size may have
// JPEG_FEWEST_SCANS.
#define JPEG_MOST_SCANS 500
#define JPEG_FEWEST_SCANS 16
#define JPEG_SCAN_PIXELS 1000000000 // scans * pixels

typedef struct {
    struct jpeg_error_mgr base; // first, so that libjpeg's pointer to it is a pointer to this
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
} JpegControl;

static inline void jpeg_escape(j_common_ptr info) { longjmp(((JpegControl *)(void *)info->err)->escape, 1); }

// Warnings (garbage between markers, invalid codes) are ignored, as in Pillow; but where the data ends
// before the last row is complete, libjpeg would fill the rest with gray, and Pillow refuses the file.
static inline void jpeg_warning(j_common_ptr info, int level) {
    j_decompress_ptr jpeg = (j_decompress_ptr)info;
    if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF && jpeg->output_scanline < jpeg->output_height)
        jpeg_escape(info);
}

static inline int jpeg_most_scans(int64_t pixels) {
    const int64_t scans = JPEG_SCAN_PIXELS / pixels;
    return scans > JPEG_MOST_SCANS     ? JPEG_MOST_SCANS
           : scans < JPEG_FEWEST_SCANS ? JPEG_FEWEST_SCANS
                                       : (int)scans;
}

static inline void jpeg_scan_limit(j_common_ptr info) {
    const j_decompress_ptr jpeg = (j_decompress_ptr)info;
    if (jpeg->input_scan_number > jpeg_most_scans((int64_t)jpeg->image_width * jpeg->image_height))
        jpeg_escape(info);
}

// May leave by longjmp; the caller frees what was allocated until then. Decodes at full size with
// libjpeg-turbo's defaults: the "islow" inverse DCT and "fancy" upsampling.
static inline ImageStatus jpeg_read(Image *out, struct jpeg_decompress_struct *jpeg, const uint8_t *bytes,
    size_t length, int64_t max_pixels) {
    jpeg_create_decompress(jpeg);
    jpeg->progress = &((JpegControl *)(void *)jpeg->err)->progress;
    jpeg_mem_src(jpeg, bytes, (unsigned long)length);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff); // EXIF
    jpeg_read_header(jpeg, TRUE);
    int components = jpeg->num_components;
    if (jpeg->data_precision != 8 || (components != 1 && components != 3 && components != 4))
        return IMAGE_BROKEN;
    ImageStatus status = image_allocate(out, jpeg->image_width, jpeg->image_height, max_pixels);
    if (status != IMAGE_OK) return status;
    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m && out->orientation == 1; m = m->next)
        if (m->data_length >= 6 && memcmp(m->data, "Exif\0", 6) == 0)
            out->orientation = exif_orientation(m->data, m->data_length);
    jpeg->out_color_space = components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(jpeg);
    JSAMPARRAY inks = components == 4 ? jpeg->mem->alloc_sarray(
                                            (j_common_ptr)jpeg, JPOOL_IMAGE, (JDIMENSION)out->width * 4, 1)
                                      : NULL;
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW row = out->rgb + (size_t)jpeg->output_scanline * (size_t)out->width * 3;
        jpeg_read_scanlines(jpeg, inks ? inks : &row, 1);
        if (inks) cmyk_row(row, inks[0], out->width);
    }
    jpeg_finish_decompress(jpeg); // reads on to the end marker, which may be an error
    return IMAGE_OK;
}

static inline ImageStatus decode_jpeg(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    struct jpeg_decompress_struct jpeg;
    JpegControl control;
    ImageStatus status;
    memset(&jpeg, 0, sizeof jpeg);
    memset(&control.progress, 0, sizeof control.progress);
    jpeg.err = jpeg_std_error(&control.base);
    control.base.error_exit = jpeg_escape;
    control.base.emit_message = jpeg_warning;
    control.progress.progress_monitor = jpeg_scan_limit;
    if (setjmp(control.escape) == 0) status = jpeg_read(out, &jpeg, bytes, length, max_pixels);
    else status = IMAGE_BROKEN;
    jpeg_destroy_decompress(&jpeg);
    return status;
}

// ---------------------------------------------------------------- PNG

typedef struct {
    jmp_buf escape;
    const uint8_t *at; // what is left to read
    size_t left;
} PngControl;

static inline void png_escape(png_structp png, png_const_charp message) {
    (void)message;
    longjmp(((PngControl *)png_get_error_ptr(png))->escape, 1);
}

static inline void png_silent(png_structp png, png_const_charp message) {
    (void)png;
    (void)message;
}

static inline void png_take(png_structp png, png_bytep out, size_t bytes) {
    PngControl *control = (PngControl *)png_get_io_ptr(png);
    if (bytes > control->left) png_error(png, "ends early");
    memcpy(out, control->at, bytes);
    control->at += bytes;
    control->left -= bytes;
}

// Chunks: length, name, data, CRC. libpng returns eXIf only since version 1.6.32, and not when it follows the
// pixels.
static inline int png_orientation(const uint8_t *bytes, size_t length) {
    for (size_t at = 8; length - at >= 12;) {
        size_t size = exif_number(bytes + at, 4, true);
        if (size > length - at - 12) break;
        if (memcmp(bytes + at + 4, "eXIf", 4) == 0) return exif_orientation(bytes + at + 8, size);
        at += size + 12;
    }
    return 1;
}

// 16-bit gray to RGB in place, as Pillow converts its mode I;16: values above 255 become 255. The samples
// (big-endian) are in the last two thirds of each row, so that the pixels, written from the left, never
// overwrite a sample before it is read.
static inline void png_gray16_to_rgb(Image *image) {
    for (int y = 0; y < image->height; y++) {
        uint8_t *rgb = image->rgb + (size_t)y * (size_t)image->width * 3;
        const uint8_t *gray = rgb + image->width;
        for (int x = 0; x < image->width; x++, gray += 2, rgb += 3) memset(rgb, gray[0] ? 255 : gray[1], 3);
    }
}

// Whether all rows have been read: what is wrong or missing after them (the rest of IDAT, IEND) is ignored,
// as in Pillow.
static inline bool png_is_complete(png_structp png, png_infop info, const Image *image) {
    if (!image->rgb) return false;
    if (png_get_interlace_type(png, info) == PNG_INTERLACE_NONE)
        return png_get_current_row_number(png) == (png_uint_32)image->height;
    return png_get_current_pass_number(png) == PNG_INTERLACE_ADAM7_PASSES;
}

// May leave by longjmp, see jpeg_read. gAMA, iCCP and transparent colours have no effect, alpha is dropped.
static inline ImageStatus png_read(Image *out, png_structp png, png_infop info, int64_t max_pixels) {
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX); // image_allocate() has its own
    png_set_chunk_malloc_max(png, 0);
    // all chunks but IHDR, PLTE, tRNS and IDAT are skipped
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(png, info);
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_NO_CHANGE); // Pillow does not check the CRC of IDAT
    ImageStatus status =
        image_allocate(out, png_get_image_width(png, info), png_get_image_height(png, info), max_pixels);
    if (status != IMAGE_OK) return status;

    int color = png_get_color_type(png, info), depth = png_get_bit_depth(png, info);
    bool gray16 = color == PNG_COLOR_TYPE_GRAY && depth == 16;
    if (color == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
    if (color == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
    if (!gray16) {
        png_set_strip_16(png); // the high byte
        png_set_strip_alpha(png);
        png_set_gray_to_rgb(png);
    }
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    size_t row_bytes = (size_t)out->width * 3, skip = gray16 ? (size_t)out->width : 0;
    if (png_get_rowbytes(png, info) + skip != row_bytes) return IMAGE_BROKEN;
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < out->height; y++)
            png_read_row(png, out->rgb + (size_t)y * row_bytes + skip, NULL);
    return IMAGE_OK;
}

static inline ImageStatus decode_png(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    PngControl control;
    ImageStatus status;
    control.at = bytes;
    control.left = length;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &control, png_escape, png_silent);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    if (info) {
        png_set_read_fn(png, &control, png_take);
        if (setjmp(control.escape) == 0) status = png_read(out, png, info, max_pixels);
        else status = png_is_complete(png, info, out) ? IMAGE_OK : IMAGE_BROKEN;
        if (status == IMAGE_OK && png_get_bit_depth(png, info) == 16) png_gray16_to_rgb(out);
    } else {
        status = IMAGE_NO_MEMORY;
    }
    png_destroy_read_struct(&png, &info, NULL);
    out->orientation = png_orientation(bytes, length);
    return status;
}

// ---------------------------------------------------------------- WebP

// The first frame on its canvas, by the animation decoder for still images too, as in Pillow. Alpha is
// dropped.
static inline ImageStatus decode_webp(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    WebPData data = {bytes, length};
    WebPBitstreamFeatures features;
    if (WebPGetFeatures(bytes, length, &features) != VP8_STATUS_OK) return IMAGE_BROKEN;
    ImageStatus status = image_allocate(out, features.width, features.height, max_pixels);
    if (status != IMAGE_OK) return status;
    WebPAnimDecoder *decoder = WebPAnimDecoderNew(&data, NULL);
    if (!decoder) return IMAGE_BROKEN;
    WebPAnimInfo info;
    uint8_t *rgba;
    int timestamp;
    if (WebPAnimDecoderGetInfo(decoder, &info) && (int)info.canvas_width == out->width &&
        (int)info.canvas_height == out->height && WebPAnimDecoderGetNext(decoder, &rgba, &timestamp)) {
        size_t pixels = (size_t)out->width * (size_t)out->height;
        for (size_t i = 0; i < pixels; i++) memcpy(out->rgb + 3 * i, rgba + 4 * i, 3);
        WebPChunkIterator chunk;
        if (WebPDemuxGetChunk(WebPAnimDecoderGetDemuxer(decoder), "EXIF", 1, &chunk)) {
            out->orientation = exif_orientation(chunk.chunk.bytes, chunk.chunk.size);
            WebPDemuxReleaseChunkIterator(&chunk);
        }
    } else {
        status = IMAGE_BROKEN;
    }
    WebPAnimDecoderDelete(decoder);
    return status;
}

// ---------------------------------------------------------------- any format

typedef enum {
    FORM_UNKNOWN,
    FORM_JPEG,
    FORM_PNG,
    FORM_WEBP,
    FORM_GIF,
    FORM_BMP,
    FORM_TIFF,
    FORM_AVIF,
    FORM_HEIC,
    FORM_JP2
} ImageForm;

#define IMAGE_FORM_BYTES 32 // from the start of a file, that tell its form

// The form of an image file by its first bytes.
static inline ImageForm image_form(const uint8_t *bytes, size_t length) {
    static const struct {
        ImageForm form;
        size_t at, length;
        const char *bytes;
    } signs[] = {{FORM_JPEG, 0, 3, "\xff\xd8\xff"}, {FORM_PNG, 0, 8, "\x89PNG\r\n\x1a\n"},
        {FORM_WEBP, 8, 4, "WEBP"}, {FORM_GIF, 0, 6, "GIF87a"}, {FORM_GIF, 0, 6, "GIF89a"},
        {FORM_BMP, 0, 2, "BM"}, {FORM_TIFF, 0, 4, "II*\0"}, {FORM_TIFF, 0, 4, "MM\0*"},
        {FORM_TIFF, 0, 4, "II+\0"}, {FORM_TIFF, 0, 4, "MM\0+"}, {FORM_AVIF, 4, 8, "ftypavif"},
        {FORM_AVIF, 4, 8, "ftypavis"}, {FORM_HEIC, 4, 8, "ftypheic"}, {FORM_HEIC, 4, 8, "ftypheix"},
        {FORM_HEIC, 4, 8, "ftyphevc"}, {FORM_HEIC, 4, 8, "ftypmif1"}, {FORM_HEIC, 4, 8, "ftypmsf1"},
        {FORM_JP2, 0, 12, "\0\0\0\x0cjP  \r\n\x87\n"}, {FORM_JP2, 0, 4, "\xff\x4f\xff\x51"}};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (length >= signs[i].at + signs[i].length &&
            memcmp(bytes + signs[i].at, signs[i].bytes, signs[i].length) == 0 &&
            (signs[i].form != FORM_WEBP || memcmp(bytes, "RIFF", 4) == 0))
            return signs[i].form;
    return FORM_UNKNOWN;
}

// Why images of this form are not decoded; IMAGE_OK where they are.
static inline ImageStatus image_form_status(ImageForm form) {
    switch (form) {
    case FORM_UNKNOWN: return IMAGE_UNKNOWN_FORMAT;
#ifndef CLIPC_WITH_GIF
    case FORM_GIF: return IMAGE_GIF;
#endif
#ifndef CLIPC_WITH_TIFF
    case FORM_TIFF: return IMAGE_TIFF;
#endif
#ifndef CLIPC_WITH_AVIF
    case FORM_AVIF: return IMAGE_AVIF;
#endif
#ifndef CLIPC_WITH_HEIC
    case FORM_HEIC: return IMAGE_HEIC;
#endif
#ifndef CLIPC_WITH_JP2
    case FORM_JP2: return IMAGE_JP2;
#endif
    default: return IMAGE_OK;
    }
}

// Decodes a whole file in memory. Only when IMAGE_OK is returned, *out is valid and has to be freed with
// image_free().
//   max_pixels: width · height above it is IMAGE_TOO_LARGE, known from the header
static inline ImageStatus image_decode(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    const ImageForm form = image_form(bytes, length);
    ImageStatus status = image_form_status(form);
    memset(out, 0, sizeof *out);
    out->orientation = 1;
    if (length == 0) return IMAGE_EMPTY;
    if (form == FORM_JPEG) status = decode_jpeg(out, bytes, length, max_pixels);
    if (form == FORM_PNG) status = decode_png(out, bytes, length, max_pixels);
    if (form == FORM_WEBP) status = decode_webp(out, bytes, length, max_pixels);
    if (form == FORM_BMP) status = decode_bmp(out, bytes, length, max_pixels);
#ifdef CLIPC_WITH_GIF
    if (form == FORM_GIF) status = decode_gif(out, bytes, length, max_pixels);
#endif
#ifdef CLIPC_WITH_TIFF
    if (form == FORM_TIFF) status = decode_tiff(out, bytes, length, max_pixels);
#endif
#ifdef CLIPC_WITH_AVIF
    if (form == FORM_AVIF) status = decode_avif(out, bytes, length, max_pixels);
#endif
#ifdef CLIPC_WITH_HEIC
    if (form == FORM_HEIC) status = decode_heic(out, bytes, length, max_pixels);
#endif
#ifdef CLIPC_WITH_JP2
    if (form == FORM_JP2) status = decode_jp2(out, bytes, length, max_pixels);
#endif
    if (status != IMAGE_OK) image_free(out);
    return status;
}

#endif
