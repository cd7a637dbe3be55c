// Image forms beside JPEG, PNG and WebP: GIF (giflib), BMP (here), TIFF (libtiff), AVIF (libavif), HEIC
// (libheif) and JPEG 2000 (OpenJPEG). A library is used where it was there at build time (CLIPC_WITH_GIF …,
// set by the Makefile); otherwise the images that need it are counted as such.
//
// The reference is Pillow's Image.open(f).convert("RGB"), as in image.h: GIF, BMP, TIFF and JPEG 2000 to the
// byte, AVIF within two levels.
#ifndef CLIPC_IMAGE_FORMS_H
#define CLIPC_IMAGE_FORMS_H

#include "clipc/data/image_pixels.h" // Image, image_allocate

// What is left to read of a file in memory.
typedef struct {
    const uint8_t *bytes;
    size_t length, at;
} MemoryFile;

// Reads up to n bytes; returns how many.
static inline size_t memory_read(MemoryFile *f, void *out, size_t n) {
    const size_t left = f->length - f->at, take = n < left ? n : left;
    memcpy(out, f->bytes + f->at, take);
    f->at += take;
    return take;
}

// ---------------------------------------------------------------- GIF

#ifdef CLIPC_WITH_GIF
#include <gif_lib.h>

static inline int gif_read(GifFileType *gif, GifByteType *out, int n) {
    return (int)memory_read((MemoryFile *)gif->UserData, out, (size_t)n);
}

// Reads records up to the first image; *transparent is its transparent colour, or -1.
static inline bool gif_first_image(GifFileType *gif, int *transparent) {
    GifRecordType type;
    GraphicsControlBlock control;
    *transparent = -1;
    for (;;) {
        int code;
        GifByteType *data;
        if (DGifGetRecordType(gif, &type) != GIF_OK) return false;
        if (type == IMAGE_DESC_RECORD_TYPE) return DGifGetImageDesc(gif) == GIF_OK;
        if (type != EXTENSION_RECORD_TYPE) return false;
        if (DGifGetExtension(gif, &code, &data) != GIF_OK) return false;
        if (data && code == GRAPHICS_EXT_FUNC_CODE &&
            DGifExtensionToGCB(data[0], data + 1, &control) == GIF_OK)
            *transparent = control.TransparentColor;
        while (data)
            if (DGifGetExtensionNext(gif, &data) != GIF_OK) return false;
    }
}

// Colours beyond the palette are black; where there is none, all are grays.
static inline void gif_pixel(uint8_t *rgb, const ColorMapObject *palette, int index) {
    const bool in = palette && index < palette->ColorCount;
    const uint8_t other = palette ? 0 : (uint8_t)index;
    rgb[0] = in ? palette->Colors[index].Red : other;
    rgb[1] = in ? palette->Colors[index].Green : other;
    rgb[2] = in ? palette->Colors[index].Blue : other;
}

// The rows of an interlaced image come in four passes.
static inline int gif_row(int i, int height) {
    static const int first[] = {0, 4, 2, 1}, every[] = {8, 8, 4, 2};
    for (int pass = 0; pass < 4; pass++) {
        const int rows = (height - first[pass] + every[pass] - 1) / every[pass];
        if (i < rows) return first[pass] + i * every[pass];
        i -= rows;
    }
    return 0;
}

// The first frame on its canvas, around which the transparent or the first colour is.
static inline ImageStatus gif_decode_frame(Image *out, GifFileType *gif, int64_t max_pixels) {
    int transparent;
    if (!gif_first_image(gif, &transparent)) return IMAGE_BROKEN;
    const GifImageDesc *frame = &gif->Image;
    const ColorMapObject *palette = frame->ColorMap ? frame->ColorMap : gif->SColorMap;
    const ImageStatus status = image_allocate(out, max_int(gif->SWidth, frame->Left + frame->Width),
        max_int(gif->SHeight, frame->Top + frame->Height), max_pixels);
    if (status != IMAGE_OK) return status;
    const size_t pixels = (size_t)out->width * (size_t)out->height;
    for (size_t i = 0; i < pixels; i++)
        gif_pixel(out->rgb + 3 * i, palette, transparent < 0 ? 0 : transparent);
    GifPixelType *line = (GifPixelType *)malloc((size_t)frame->Width + 1);
    bool whole = line != NULL;
    for (int i = 0; i < frame->Height && whole; i++) {
        const int y = frame->Top + (frame->Interlace ? gif_row(i, frame->Height) : i);
        whole = DGifGetLine(gif, line, frame->Width) == GIF_OK;
        uint8_t *rgb = out->rgb + 3 * ((size_t)y * (size_t)out->width + (size_t)frame->Left);
        for (int x = 0; x < frame->Width && whole; x++) gif_pixel(rgb + 3 * x, palette, line[x]);
    }
    free(line);
    return whole ? IMAGE_OK : IMAGE_BROKEN;
}

static inline ImageStatus decode_gif(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    MemoryFile file = {bytes, length, 0};
    int error;
    GifFileType *gif = DGifOpen(&file, gif_read, &error);
    if (!gif) return IMAGE_BROKEN;
    const ImageStatus status = gif_decode_frame(out, gif, max_pixels);
    DGifCloseFile(gif, &error);
    return status;
}
#endif

// ---------------------------------------------------------------- BMP

// No library of the usual systems reads BMP as Pillow does (5 bits become v·255/31).
typedef struct {
    int64_t width, height, bits, compression, colors, offset;
    bool down;        // the first row is the top one
    uint32_t mask[3]; // of red, green, blue, for BMP_BITFIELDS
    uint8_t palette[3 * 256];
} BmpHeader;

enum { BMP_RAW, BMP_RLE8, BMP_RLE4, BMP_BITFIELDS };

static inline bool bmp_read_palette(
    BmpHeader *h, const uint8_t *bytes, size_t length, size_t at, size_t step) {
    if (h->colors < 1 || h->colors > 65536) return false;
    memset(h->palette, 0, sizeof h->palette); // colours beyond it are black
    for (int64_t i = 0; i < h->colors && i < 256; i++, at += step) {
        if (at + 3 > length) return false;
        for (int k = 0; k < 3; k++) h->palette[3 * i + k] = bytes[at + 2 - (size_t)k];
    }
    return true;
}

static inline bool bmp_read_header(BmpHeader *h, const uint8_t *bytes, size_t length) {
    const uint8_t *p = bytes + 14;
    if (length < 26) return false;
    const size_t size = exif_number(p, 4, false);
    const bool old = size == 12;
    memset(h, 0, sizeof *h);
    h->offset = exif_number(bytes + 10, 4, false);
    if (!old && size != 40 && size != 52 && size != 56 && size != 64 && size != 108 && size != 124)
        return false;
    if (length < 14 + size) return false;
    h->width = exif_number(p + 4, old ? 2 : 4, false);
    h->height = exif_number(p + (old ? 6 : 8), old ? 2 : 4, false);
    h->bits = exif_number(p + (old ? 10 : 14), 2, false);
    size_t at = 14 + size;
    if (!old) {
        h->down = p[11] == 0xFF; // a negative height
        if (h->down) h->height = ((int64_t)1 << 32) - h->height;
        h->compression = exif_number(p + 16, 4, false);
        h->colors = exif_number(p + 32, 4, false);
    }
    if (h->compression == BMP_BITFIELDS) {
        const size_t masks = size >= 52 ? 54 : at; // within the header, or after it
        if (masks + 12 > length) return false;
        for (size_t i = 0; i < 3; i++) h->mask[i] = exif_number(bytes + masks + 4 * i, 4, false);
        if (size < 52) at += 12;
    }
    if (!h->colors) h->colors = h->bits < 32 ? (int64_t)1 << h->bits : 0;
    if (h->bits > 8) return h->bits == 16 || h->bits == 24 || h->bits == 32;
    if (h->offset == (int64_t)(14 + size))
        h->offset += (old ? 3 : 4) * h->colors; // that is where the palette is
    return (h->bits == 1 || h->bits == 4 || h->bits == 8) &&
           bmp_read_palette(h, bytes, length, at, old ? 3 : 4);
}

// How a pixel of 16, 24 or 32 bits is made of red, green and blue: where their bits begin, and how many they
// are.
static inline bool bmp_layout(const BmpHeader *h, int shift[3], int bits[3]) {
    static const uint32_t usual[3][3] = {
        {0x7C00, 0x3E0, 0x1F}, {0xFF0000, 0xFF00, 0xFF}, {0xFF0000, 0xFF00, 0xFF}}; // 16, 24, 32 bits
    const uint32_t *mask = usual[h->bits / 8 - 2];
    if (h->compression == BMP_BITFIELDS && (h->mask[0] | h->mask[1] | h->mask[2])) mask = h->mask;
    for (int i = 0; i < 3; i++) {
        if (!mask[i]) return false;
        shift[i] = __builtin_ctz(mask[i]);
        bits[i] = __builtin_popcount(mask[i]);
        const uint32_t ones = mask[i] >> shift[i];
        if ((ones & (ones + 1)) || (bits[i] != 8 && (h->bits != 16 || bits[i] < 5 || bits[i] > 6)))
            return false;
    }
    return true;
}

static inline ImageStatus bmp_read_raw(Image *out, const BmpHeader *h, const uint8_t *bytes, size_t length) {
    const size_t row = (size_t)((h->width * h->bits + 31) / 32 * 4), width = (size_t)out->width;
    int shift[3] = {0}, bits[3] = {0}; // of an image with a palette: unused
    if (h->bits > 8 && !bmp_layout(h, shift, bits)) return IMAGE_BROKEN;
    // the padding of the last row may be missing
    const size_t need = row * (size_t)(h->height - 1) + (size_t)((h->width * h->bits + 7) / 8);
    if ((size_t)h->offset > length || length - (size_t)h->offset < need) return IMAGE_BROKEN;
    for (int y = 0; y < out->height; y++) {
        const uint8_t *from = bytes + h->offset + row * (size_t)(h->down ? y : out->height - 1 - y);
        uint8_t *rgb = out->rgb + 3 * width * (size_t)y;
        for (size_t x = 0; x < width; x++, rgb += 3) {
            if (h->bits <= 8) {
                const size_t bit = x * (size_t)h->bits;
                const int index = from[bit / 8] >> (8 - (size_t)h->bits - bit % 8) & ((1 << h->bits) - 1);
                memcpy(rgb, h->palette + 3 * index, 3);
                continue;
            }
            const uint32_t pixel = exif_number(from + x * (size_t)(h->bits / 8), (int)(h->bits / 8), false);
            for (int i = 0; i < 3; i++) {
                const uint32_t most = (1u << bits[i]) - 1;
                rgb[i] = (uint8_t)((pixel >> shift[i] & most) * 255 / most);
            }
        }
    }
    return IMAGE_OK;
}

// Writes `count` pixels of a run to indices (total) from *to on: two colours in turn, or of `literal` as they
// are.
static inline void bmp_write_run(
    uint8_t *indices, size_t total, size_t *to, size_t count, const uint8_t *literal, int code, bool four) {
    for (size_t i = 0; i < count && *to < total; i++) {
        const int value = literal ? literal[four ? i / 2 : i] : code;
        indices[(*to)++] = (uint8_t)(!four ? value : i % 2 ? value & 15 : value >> 4);
    }
}

// Run lengths: (count, value), or 0 and 0: end of row, 1: end, 2: a jump, else so many literal values.
static inline bool bmp_unpack_runs(
    uint8_t *indices, size_t width, size_t total, const uint8_t *file, size_t at, size_t length, bool four) {
    size_t to = 0, x = 0;
    const uint8_t *p = file + at, *end = file + length;
    while (to < total && p < end && end - p >= 2) {
        const size_t count = p[0], code = p[1];
        p += 2;
        if (count) {
            const size_t fits = x + count > width ? (x < width ? width - x : 0) : count;
            bmp_write_run(indices, total, &to, fits, NULL, (int)code, four);
            x += fits;
        } else if (code == 0) {
            to = (to + width - 1) / width * width;
            x = 0;
        } else if (code == 1) {
            break;
        } else if (code == 2) {
            if (end - p < 2) return false;
            const size_t jump = p[0] + p[1] * width;
            to = jump < total - to ? to + jump : total;
            p += 2;
            x = to % width;
        } else {
            const size_t take = code < total - to ? code : total - to, bytes = four ? (take + 1) / 2 : take;
            if ((size_t)(end - p) < bytes) return false;
            bmp_write_run(indices, total, &to, take, p, 0, four);
            p += bytes;
            p += (p - file) & 1; // to an even place in the file
            x += code;
        }
    }
    return to >= total;
}

static inline ImageStatus bmp_read_runs(Image *out, const BmpHeader *h, const uint8_t *bytes, size_t length) {
    const size_t width = (size_t)out->width, total = width * (size_t)out->height;
    if (h->bits > 8 || (size_t)h->offset > length) return IMAGE_BROKEN;
    uint8_t *indices = (uint8_t *)calloc(total, 1);
    if (!indices) return IMAGE_NO_MEMORY;
    const bool whole =
        bmp_unpack_runs(indices, width, total, bytes, (size_t)h->offset, length, h->compression == BMP_RLE4);
    for (size_t y = 0; y < (size_t)out->height; y++)
        for (size_t x = 0; x < width; x++) {
            const size_t from = (h->down ? y : (size_t)out->height - 1 - y) * width + x;
            memcpy(out->rgb + 3 * (y * width + x), h->palette + 3 * indices[from], 3);
        }
    free(indices);
    return whole ? IMAGE_OK : IMAGE_BROKEN;
}

static inline ImageStatus decode_bmp(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    BmpHeader h;
    if (!bmp_read_header(&h, bytes, length) || h.compression > BMP_BITFIELDS) return IMAGE_BROKEN;
    const ImageStatus status = image_allocate(out, h.width, h.height, max_pixels);
    if (status != IMAGE_OK) return status;
    if (h.compression == BMP_RLE8 || h.compression == BMP_RLE4) return bmp_read_runs(out, &h, bytes, length);
    return bmp_read_raw(out, &h, bytes, length);
}

// ---------------------------------------------------------------- AVIF

#ifdef CLIPC_WITH_AVIF
#include <avif/avif.h>

// The EXIF orientation that a rotation and a mirror of the container amount to.
static inline int avif_orientation(const avifImage *image) {
#if AVIF_VERSION_MAJOR >= 1
    const int axis = image->imir.axis;
#else
    const int axis = image->imir.mode;
#endif
    static const int turned[4][3] = {
        {1, 4, 2}, {8, 5, 7}, {3, 2, 4}, {6, 7, 5}}; // angle; no mirror, axis 0, axis 1
    const int angle = image->transformFlags & AVIF_TRANSFORM_IROT ? image->irot.angle & 3 : 0;
    return turned[angle][image->transformFlags & AVIF_TRANSFORM_IMIR ? 1 + (axis & 1) : 0];
}

// With alpha, which is then dropped: without it the library would multiply the colours by it.
static inline ImageStatus avif_copy_pixels(Image *out, const avifImage *image) {
    const size_t pixels = (size_t)out->width * (size_t)out->height;
    avifRGBImage rgba;
    avifRGBImageSetDefaults(&rgba, image);
    rgba.format = AVIF_RGB_FORMAT_RGBA;
    rgba.depth = 8;
    rgba.rowBytes = 4 * (uint32_t)out->width;
    rgba.pixels = (uint8_t *)malloc(4 * pixels);
    if (!rgba.pixels) return IMAGE_NO_MEMORY;
    const bool whole = avifImageYUVToRGB(image, &rgba) == AVIF_RESULT_OK;
    for (size_t i = 0; i < pixels && whole; i++) memcpy(out->rgb + 3 * i, rgba.pixels + 4 * i, 3);
    free(rgba.pixels);
    return whole ? IMAGE_OK : IMAGE_BROKEN;
}

static inline ImageStatus avif_decode_first(
    Image *out, avifDecoder *decoder, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    decoder->maxThreads = 1;
    decoder->strictFlags &= ~(avifStrictFlags)(AVIF_STRICT_CLAP_VALID | AVIF_STRICT_PIXI_REQUIRED);
    decoder->imageSizeLimit = AVIF_DEFAULT_IMAGE_SIZE_LIMIT;
    if (avifDecoderSetIOMemory(decoder, bytes, length) != AVIF_RESULT_OK) return IMAGE_BROKEN;
    if (avifDecoderParse(decoder) != AVIF_RESULT_OK) return IMAGE_BROKEN;
    const ImageStatus status = image_allocate(out, decoder->image->width, decoder->image->height, max_pixels);
    if (status != IMAGE_OK) return status;
    if (avifDecoderNextImage(decoder) != AVIF_RESULT_OK) return IMAGE_BROKEN;
    if ((int)decoder->image->width != out->width || (int)decoder->image->height != out->height)
        return IMAGE_BROKEN;
    out->orientation = avif_orientation(decoder->image);
    return avif_copy_pixels(out, decoder->image);
}

static inline ImageStatus decode_avif(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    avifDecoder *decoder = avifDecoderCreate();
    if (!decoder) return IMAGE_NO_MEMORY;
    const ImageStatus status = avif_decode_first(out, decoder, bytes, length, max_pixels);
    avifDecoderDestroy(decoder);
    return status;
}
#endif

// ---------------------------------------------------------------- HEIC

#ifdef CLIPC_WITH_HEIC
#include <libheif/heif.h>

// libheif turns the image upright itself, as viewers do.
static inline ImageStatus heif_copy_pixels(
    Image *out, const struct heif_image_handle *handle, int64_t max_pixels) {
    struct heif_image *image = NULL;
    int stride = 0;
    const ImageStatus status = image_allocate(
        out, heif_image_handle_get_width(handle), heif_image_handle_get_height(handle), max_pixels);
    if (status != IMAGE_OK) return status;
    const struct heif_error error =
        heif_decode_image(handle, &image, heif_colorspace_RGB, heif_chroma_interleaved_RGB, NULL);
    if (error.code != heif_error_Ok) return IMAGE_BROKEN;
    const uint8_t *plane = heif_image_get_plane_readonly(image, heif_channel_interleaved, &stride);
    const bool fits = plane && heif_image_get_width(image, heif_channel_interleaved) == out->width &&
                      heif_image_get_height(image, heif_channel_interleaved) == out->height;
    const size_t row = 3 * (size_t)out->width;
    for (int y = 0; y < out->height && fits; y++)
        memcpy(out->rgb + (size_t)y * row, plane + (size_t)y * (size_t)stride, row);
    heif_image_release(image);
    return fits ? IMAGE_OK : IMAGE_BROKEN;
}

static inline ImageStatus decode_heic(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    struct heif_context *context = heif_context_alloc();
    struct heif_image_handle *handle = NULL;
    ImageStatus status = IMAGE_BROKEN;
    if (!context) return IMAGE_NO_MEMORY;
    if (heif_context_read_from_memory_without_copy(context, bytes, length, NULL).code == heif_error_Ok &&
        heif_context_get_primary_image_handle(context, &handle).code == heif_error_Ok)
        status = heif_copy_pixels(out, handle, max_pixels);
    if (handle) heif_image_handle_release(handle);
    heif_context_free(context);
    return status;
}
#endif

// ---------------------------------------------------------------- JPEG 2000

#ifdef CLIPC_WITH_JP2
#include <openjpeg.h>

static inline OPJ_SIZE_T jp2_read(void *out, OPJ_SIZE_T n, void *file) {
    const size_t got = memory_read((MemoryFile *)file, out, n);
    return got ? got : (OPJ_SIZE_T)-1;
}

static inline OPJ_OFF_T jp2_skip(OPJ_OFF_T n, void *file) {
    MemoryFile *f = (MemoryFile *)file;
    if (n < 0 || (size_t)n > f->length - f->at) return -1;
    f->at += (size_t)n;
    return n;
}

static inline OPJ_BOOL jp2_seek(OPJ_OFF_T n, void *file) {
    MemoryFile *f = (MemoryFile *)file;
    if (n < 0 || (size_t)n > f->length) return OPJ_FALSE;
    f->at = (size_t)n;
    return OPJ_TRUE;
}

// A component's value at a pixel, of 8 bits; with `wide` of 16 bits, where those above 255 become 255
// (Pillow's I;16).
static inline int jp2_value(const opj_image_comp_t *c, int x, int y, bool wide) {
    const size_t column = (size_t)x / c->dx, row = (size_t)y / c->dy;
    if (column >= c->w || row >= c->h) return 0;
    int value = c->data[row * c->w + column] + (c->sgnd ? 1 << (c->prec - 1) : 0);
    const int bits = wide ? 16 : 8;
    value = (int)c->prec > bits ? value >> ((int)c->prec - bits) : value << (bits - (int)c->prec);
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

// ITU-R BT.601 as in JPEG, to 8 bits.
static inline uint8_t clip_to_byte(double x) { return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x + 0.5); }

static inline ImageStatus jp2_copy_pixels(Image *out, const opj_image_t *image) {
    const uint32_t n = image->numcomps;
    const bool color = n >= 3, ycc = color && image->color_space == OPJ_CLRSPC_SYCC;
    const bool wide = n == 1 && image->comps[0].prec > 8;
    for (uint32_t i = 0; i < n; i++)
        if (!image->comps[i].data || image->comps[i].prec < 1 || image->comps[i].prec > 16 ||
            !image->comps[i].dx || !image->comps[i].dy)
            return IMAGE_BROKEN;
    uint8_t *rgb = out->rgb;
    for (int y = 0; y < out->height; y++)
        for (int x = 0; x < out->width; x++, rgb += 3) {
            int v[3];
            for (uint32_t i = 0; i < 3; i++) v[i] = jp2_value(&image->comps[color ? i : 0], x, y, wide);
            for (int i = 0; i < 3; i++) rgb[i] = (uint8_t)v[i];
            if (!ycc) continue;
            rgb[0] = clip_to_byte(v[0] + 1.402 * (v[2] - 128));
            rgb[1] = clip_to_byte(v[0] - 0.344136 * (v[1] - 128) - 0.714136 * (v[2] - 128));
            rgb[2] = clip_to_byte(v[0] + 1.772 * (v[1] - 128));
        }
    return IMAGE_OK;
}

static inline ImageStatus jp2_decode_stream(
    Image *out, opj_codec_t *codec, opj_stream_t *stream, int64_t max_pixels) {
    opj_dparameters_t parameters;
    opj_image_t *image = NULL;
    opj_set_default_decoder_parameters(&parameters);
    ImageStatus status = IMAGE_BROKEN;
    if (opj_setup_decoder(codec, &parameters) && opj_read_header(stream, codec, &image))
        status =
            image_allocate(out, (int64_t)image->x1 - image->x0, (int64_t)image->y1 - image->y0, max_pixels);
    if (status == IMAGE_OK) {
        const bool whole = opj_decode(codec, stream, image) && opj_end_decompress(codec, stream);
        status = whole && image->numcomps ? jp2_copy_pixels(out, image) : IMAGE_BROKEN;
    }
    if (image) opj_image_destroy(image);
    return status;
}

static inline ImageStatus decode_jp2(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    MemoryFile file = {bytes, length, 0};
    const bool boxed = length >= 12 && bytes[0] == 0; // in a JP2 file, or a bare code stream
    opj_codec_t *codec = opj_create_decompress(boxed ? OPJ_CODEC_JP2 : OPJ_CODEC_J2K);
    opj_stream_t *stream = opj_stream_default_create(OPJ_TRUE);
    ImageStatus status = IMAGE_NO_MEMORY;
    if (codec && stream) {
        opj_stream_set_user_data(stream, &file, NULL);
        opj_stream_set_user_data_length(stream, length);
        opj_stream_set_read_function(stream, jp2_read);
        opj_stream_set_skip_function(stream, jp2_skip);
        opj_stream_set_seek_function(stream, jp2_seek);
        status = jp2_decode_stream(out, codec, stream, max_pixels);
    }
    if (stream) opj_stream_destroy(stream);
    if (codec) opj_destroy_codec(codec);
    return status;
}
#endif

#endif
