// TIFF by libtiff (CLIPC_WITH_TIFF): bilevel, gray, palette, RGB, CMYK and YCbCr, of 1 to 16 bits, in strips
// or tiles, of any compression that the library has. Pixels as Pillow's: 16 bits keep the high byte, but gray
// of 16 bits is cut at 255 (as for PNG); alpha is dropped; the orientation of the file is applied.
#ifndef CLIPC_IMAGE_TIFF_H
#define CLIPC_IMAGE_TIFF_H

#include "clipc/data/image_pixels.h" // Image, image_allocate

#ifdef CLIPC_WITH_TIFF
#include <pthread.h>
#include <tiffio.h>

typedef struct {
    const uint8_t *bytes;
    size_t length, at;
} TiffFile;

typedef struct {
    uint32_t width, height;
    uint16_t bits, samples, photometric, planar, compression, orientation;
    bool alpha_multiplied;              // colours are multiplied by alpha
    const uint16_t *red, *green, *blue; // of the palette
} TiffInfo;

enum { TIFF_MOST_SAMPLES = 8 };

static inline tmsize_t tiff_read(thandle_t file, void *out, tmsize_t n) {
    TiffFile *f = (TiffFile *)file;
    const size_t left = f->at < f->length ? f->length - f->at : 0, take = (size_t)n < left ? (size_t)n : left;
    memcpy(out, f->bytes + (take ? f->at : 0), take);
    f->at += take;
    return (tmsize_t)take;
}

static inline tmsize_t tiff_write(thandle_t file, void *data, tmsize_t n) {
    (void)file;
    (void)data;
    (void)n;
    return -1;
}

static inline toff_t tiff_seek(thandle_t file, toff_t at, int whence) {
    TiffFile *f = (TiffFile *)file;
    const toff_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? f->at : f->length;
    f->at = (size_t)(from + at);
    return (toff_t)f->at;
}

static inline int tiff_close(thandle_t file) {
    (void)file;
    return 0;
}

static inline toff_t tiff_size(thandle_t file) { return ((TiffFile *)file)->length; }

static inline void tiff_be_silent(void) {
    TIFFSetErrorHandler(NULL);
    TIFFSetWarningHandler(NULL);
}

// False for what Pillow does not read either, or nobody has: Lab, floating point, more than 16 bits.
static inline bool tiff_read_info(TIFF *tif, TiffInfo *t) {
    uint16_t format = SAMPLEFORMAT_UINT, extras = 0, *kinds = NULL, *maps[3] = {NULL, NULL, NULL};
    memset(t, 0, sizeof *t);
    if (!TIFFGetField(tif, TIFFTAG_IMAGEWIDTH, &t->width) ||
        !TIFFGetField(tif, TIFFTAG_IMAGELENGTH, &t->height))
        return false;
    TIFFGetFieldDefaulted(tif, TIFFTAG_BITSPERSAMPLE, &t->bits);
    TIFFGetFieldDefaulted(tif, TIFFTAG_SAMPLESPERPIXEL, &t->samples);
    TIFFGetFieldDefaulted(tif, TIFFTAG_PLANARCONFIG, &t->planar);
    TIFFGetFieldDefaulted(tif, TIFFTAG_COMPRESSION, &t->compression);
    TIFFGetFieldDefaulted(tif, TIFFTAG_ORIENTATION, &t->orientation);
    TIFFGetFieldDefaulted(tif, TIFFTAG_SAMPLEFORMAT, &format);
    TIFFGetFieldDefaulted(tif, TIFFTAG_EXTRASAMPLES, &extras, &kinds);
    if (!TIFFGetField(tif, TIFFTAG_PHOTOMETRIC, &t->photometric)) t->photometric = PHOTOMETRIC_MINISWHITE;
    if (t->compression == COMPRESSION_OJPEG) t->photometric = PHOTOMETRIC_YCBCR;
    t->alpha_multiplied = extras && kinds && kinds[0] == EXTRASAMPLE_ASSOCALPHA;
    if (format != SAMPLEFORMAT_UINT && !(format == SAMPLEFORMAT_INT && t->bits == 8)) return false;
    if (t->samples < 1 || t->samples > TIFF_MOST_SAMPLES) return false;
    if (t->photometric == PHOTOMETRIC_PALETTE) {
        if (t->bits > 8 || !TIFFGetField(tif, TIFFTAG_COLORMAP, &maps[0], &maps[1], &maps[2])) return false;
        t->red = maps[0];
        t->green = maps[1];
        t->blue = maps[2];
    }
    const bool few = t->bits == 1 || t->bits == 2 || t->bits == 4;
    switch (t->photometric) {
    case PHOTOMETRIC_MINISWHITE:
    case PHOTOMETRIC_MINISBLACK:
    case PHOTOMETRIC_PALETTE: return t->bits == 8 || (t->samples == 1 && (few || t->bits == 16));
    case PHOTOMETRIC_RGB: return t->samples >= 3 && (t->bits == 8 || t->bits == 16);
    case PHOTOMETRIC_SEPARATED: return t->samples >= 4 && (t->bits == 8 || t->bits == 16);
    case PHOTOMETRIC_YCBCR: return t->bits == 8;
    default: return false;
    }
}

// ---------------------------------------------------------------- samples

// The bytes of a row of one plane; interleaved samples are in one plane.
static inline size_t tiff_row_bytes(const TiffInfo *t) {
    const size_t samples = t->planar == PLANARCONFIG_SEPARATE ? 1 : t->samples;
    return ((size_t)t->width * samples * t->bits + 7) / 8;
}

// raw (height, row) of one plane, from its strips.
static inline bool tiff_read_strips(TIFF *tif, const TiffInfo *t, uint16_t plane, uint8_t *raw, size_t row) {
    uint32_t rows = t->height;
    TIFFGetFieldDefaulted(tif, TIFFTAG_ROWSPERSTRIP, &rows);
    if (!rows) return false;
    for (uint32_t y = 0; y < t->height;) {
        const uint32_t n = rows < t->height - y ? rows : t->height - y;
        const tmsize_t bytes = (tmsize_t)(row * n);
        const uint32_t strip = TIFFComputeStrip(tif, y, plane);
        if (TIFFReadEncodedStrip(tif, strip, raw + row * y, bytes) != bytes) return false;
        y += n;
    }
    return true;
}

// The same from tiles, which may reach beyond the image.
static inline bool tiff_read_tiles(TIFF *tif, const TiffInfo *t, uint16_t plane, uint8_t *raw, size_t row) {
    uint32_t width = 0, height = 0;
    TIFFGetField(tif, TIFFTAG_TILEWIDTH, &width);
    TIFFGetField(tif, TIFFTAG_TILELENGTH, &height);
    const tmsize_t tile_row = TIFFTileRowSize(tif), size = TIFFTileSize(tif);
    if (!width || !height || tile_row <= 0 || size <= 0 || size / tile_row < (tmsize_t)height) return false;
    // a tile is held whole; one far larger than its image is refused
    if ((uint64_t)size > ((uint64_t)1 << 28) + 64 * (uint64_t)row * t->height) return false;
    uint8_t *tile = (uint8_t *)malloc((size_t)size);
    bool whole = tile != NULL;
    for (uint32_t y = 0; y < t->height && whole; y += height) {
        size_t left = 0; // bytes of a row left of the tile
        for (uint32_t x = 0; x < t->width && whole; x += width, left += (size_t)tile_row) {
            whole = left < row &&
                    TIFFReadEncodedTile(tif, TIFFComputeTile(tif, x, y, 0, plane), tile, size) == size;
            const size_t take = row - left < (size_t)tile_row ? row - left : (size_t)tile_row;
            for (uint32_t i = 0; i < height && y + i < t->height && whole; i++)
                memcpy(raw + row * (y + i) + left, tile + (size_t)tile_row * i, take);
        }
    }
    free(tile);
    return whole;
}

// ---------------------------------------------------------------- pixels

// A sample of 1 to 16 bits; those of 16 bits are in the byte order of the machine.
static inline int tiff_sample(const uint8_t *row, size_t index, int bits) {
    uint16_t wide;
    if (bits == 8) return row[index];
    if (bits == 16) {
        memcpy(&wide, row + 2 * index, 2);
        return wide;
    }
    const size_t bit = index * (size_t)bits;
    return row[bit / 8] >> (8 - (size_t)bits - bit % 8) & ((1 << bits) - 1);
}

// One pixel from its samples, as in the file.
static inline void tiff_pixel(uint8_t *rgb, const TiffInfo *t, const int *sample) {
    int v[4];
    if (t->photometric == PHOTOMETRIC_PALETTE) {
        rgb[0] = (uint8_t)(t->red[sample[0]] >> 8);
        rgb[1] = (uint8_t)(t->green[sample[0]] >> 8);
        rgb[2] = (uint8_t)(t->blue[sample[0]] >> 8);
        return;
    }
    if (t->photometric == PHOTOMETRIC_MINISBLACK || t->photometric == PHOTOMETRIC_MINISWHITE ||
        (t->photometric == PHOTOMETRIC_YCBCR && t->samples < 3)) {
        int gray = t->bits == 16 ? min_int(sample[0], 255) : sample[0] * 255 / ((1 << t->bits) - 1);
        if (t->photometric == PHOTOMETRIC_MINISWHITE && t->bits < 16) gray = 255 - gray;
        memset(rgb, gray, 3);
        return;
    }
    for (int i = 0; i < 4; i++) v[i] = i < t->samples ? sample[i] >> (t->bits - 8) : 255;
    if (t->photometric == PHOTOMETRIC_SEPARATED) {
        const uint8_t inks[4] = {
            (uint8_t)(255 - v[0]), (uint8_t)(255 - v[1]), (uint8_t)(255 - v[2]), (uint8_t)(255 - v[3])};
        cmyk_row(rgb, inks, 1);
        return;
    }
    const bool divide = t->alpha_multiplied && v[3] < 255;
    for (int i = 0; i < 3; i++)
        rgb[i] = (uint8_t)(!divide ? v[i] : v[3] ? min_int(255, v[i] * 255 / v[3]) : 0);
}

static inline ImageStatus tiff_decode_samples(Image *out, TIFF *tif, const TiffInfo *t) {
    const bool separate = t->planar == PLANARCONFIG_SEPARATE && t->samples > 1;
    const uint16_t planes = separate ? t->samples : 1;
    const size_t row = tiff_row_bytes(t), plane_bytes = row * t->height;
    uint8_t *raw = (uint8_t *)malloc(plane_bytes * planes);
    if (!raw) return IMAGE_NO_MEMORY;
    bool whole = true;
    for (uint16_t p = 0; p < planes && whole; p++)
        whole = TIFFIsTiled(tif) ? tiff_read_tiles(tif, t, p, raw + p * plane_bytes, row)
                                 : tiff_read_strips(tif, t, p, raw + p * plane_bytes, row);
    uint8_t *rgb = out->rgb;
    for (size_t y = 0; y < t->height && whole; y++)
        for (size_t x = 0; x < t->width; x++, rgb += 3) {
            int sample[TIFF_MOST_SAMPLES];
            for (size_t s = 0; s < t->samples; s++)
                sample[s] = tiff_sample(raw + (separate ? s * plane_bytes : 0) + y * row,
                    separate ? x : x * t->samples + s, t->bits);
            tiff_pixel(rgb, t, sample);
        }
    free(raw);
    return whole ? IMAGE_OK : IMAGE_BROKEN;
}

// YCbCr that is not JPEG, by the library's own conversion.
static inline ImageStatus tiff_decode_ycbcr(Image *out, TIFF *tif) {
    const size_t pixels = (size_t)out->width * (size_t)out->height;
    uint32_t *raster = (uint32_t *)malloc(pixels * sizeof *raster);
    if (!raster) return IMAGE_NO_MEMORY;
    TIFFSetField(tif, TIFFTAG_ORIENTATION, ORIENTATION_TOPLEFT); // image_apply_orientation() turns it
    const bool whole = TIFFReadRGBAImageOriented(
        tif, (uint32_t)out->width, (uint32_t)out->height, raster, ORIENTATION_TOPLEFT, 1);
    for (size_t i = 0; i < pixels && whole; i++) {
        out->rgb[3 * i] = (uint8_t)TIFFGetR(raster[i]);
        out->rgb[3 * i + 1] = (uint8_t)TIFFGetG(raster[i]);
        out->rgb[3 * i + 2] = (uint8_t)TIFFGetB(raster[i]);
    }
    free(raster);
    return whole ? IMAGE_OK : IMAGE_BROKEN;
}

static inline ImageStatus tiff_decode_image(Image *out, TIFF *tif, int64_t max_pixels) {
    TiffInfo t;
    if (!tiff_read_info(tif, &t)) return IMAGE_BROKEN;
    ImageStatus status = image_allocate(out, t.width, t.height, max_pixels);
    if (status != IMAGE_OK) return status;
    const bool jpeg = t.compression == COMPRESSION_JPEG && t.planar == PLANARCONFIG_CONTIG;
    if (t.photometric == PHOTOMETRIC_YCBCR && jpeg && t.samples == 3) {
        TIFFSetField(tif, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
        t.photometric = PHOTOMETRIC_RGB;
    }
    if (t.photometric == PHOTOMETRIC_YCBCR && t.samples >= 3) status = tiff_decode_ycbcr(out, tif);
    else status = tiff_decode_samples(out, tif, &t);
    if (status != IMAGE_OK) return status;
    out->orientation = t.orientation; // Pillow applies that of a TIFF, whatever is asked for
    image_apply_orientation(out);
    out->orientation = 1;
    return IMAGE_OK;
}

static inline ImageStatus decode_tiff(Image *out, const uint8_t *bytes, size_t length, int64_t max_pixels) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    TiffFile file = {bytes, length, 0};
    pthread_once(&once, tiff_be_silent);
    TIFF *tif = TIFFClientOpen("memory", "rm", (thandle_t)&file, tiff_read, tiff_write, tiff_seek, tiff_close,
        tiff_size, NULL, NULL);
    if (!tif) return IMAGE_BROKEN;
    const ImageStatus status = tiff_decode_image(out, tif, max_pixels);
    TIFFClose(tif);
    return status;
}
#endif

#endif
