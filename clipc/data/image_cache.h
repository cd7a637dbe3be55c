// The decoded images of a data set in a file (--cache-images): what the workers would decode in every epoch
// is read through a memory map instead, the same bits. If every epoch sees the same pixels, the file holds
// the squares that the image tower takes; if crops are random, the images as decoded. An image that several
// samples share is stored once. Like the features of a locked tower (step_loader.h), the file is whole or
// absent, and belongs to the data and the settings that made it.
#ifndef CLIPC_IMAGE_CACHE_H
#define CLIPC_IMAGE_CACHE_H

#include "clipc/base/safe_file.h" // SafeFile
#include "clipc/data/sample.h"    // sample_read_image, sample_decode

#include <signal.h>
#include <sys/mman.h>

#define IMAGES_MAGIC 0x4d494c43 // the bytes "CLIM"

// One for each sample, after all pixels.
typedef struct {
    int64_t offset;        // of its pixels in the file: (3,S,S), or (height,width,3)
    int32_t width, height; // of the stored image, 0: there is none
    int32_t status;        // SampleStatus; SAMPLE_OK: there are pixels
    int32_t orientation;   // of the image file, by EXIF
} ImageEntry;

typedef struct {
    int32_t magic, version;
    uint64_t identity;
    int64_t count;
} ImagesHeader;

typedef struct {
    const uint8_t *map; // (bytes) the file
    size_t bytes;
    const ImageEntry *entries; // (count)
    int64_t count;
    bool squares; // (3,S,S) as the image tower takes them, not images as decoded
} ImageCache;

// ---------------------------------------------------------------- identity of data and images

// Hash of the settings (size 0: images are stored as decoded), of where each sample's image comes from, and
// of the sizes of the shards.
static inline uint64_t image_cache_identity(const Dataset *d, const ImageSettings *c) {
    const int64_t settings[] = {c->size, c->size ? c->interpolation : 0, c->size ? c->resize_mode : 0,
        c->exif_rotate, c->max_pixels, d->count};
    uint64_t hash = hash_bytes(HASH_START, settings, sizeof settings);
    char origin[2 * PATH_SIZE];
    struct stat st;
    for (size_t i = 0; i < d->file_count; i++) {
        const int64_t size =
            stat(d->files[i].path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : 0;
        hash = hash_bytes(hash, &size, sizeof size);
    }
    for (int64_t i = 0; i < d->count; i++) {
        dataset_origin(d, i, origin, sizeof origin);
        hash = hash_bytes(hash, origin, strlen(origin) + 1);
    }
    return hash;
}

// first (count): for each sample the first one with the same image, itself or an earlier one. Free it.
static inline int64_t *image_cache_first(const Dataset *d) {
    size_t slots = 2;
    while (slots < 2 * (size_t)d->count) slots *= 2;
    int64_t *first = (int64_t *)malloc_check((size_t)d->count * sizeof *first);
    int64_t *table = (int64_t *)malloc_check(slots * sizeof *table);
    char origin[2 * PATH_SIZE], other[2 * PATH_SIZE];
    for (size_t i = 0; i < slots; i++) table[i] = -1;
    for (int64_t i = 0; i < d->count; i++) {
        dataset_origin(d, i, origin, sizeof origin);
        size_t at = (size_t)key_of_text(origin, strlen(origin)) & (slots - 1);
        for (; table[at] >= 0; at = (at + 1) & (slots - 1)) {
            dataset_origin(d, table[at], other, sizeof other);
            if (d->samples[i].file == d->samples[table[at]].file && strcmp(origin, other) == 0) break;
        }
        if (table[at] < 0) table[at] = i;
        first[i] = table[at];
    }
    free(table);
    return first;
}

// ---------------------------------------------------------------- making the file

// The entry of a sample and its *pixels, which the caller frees; NULL where there are none, as for synthetic
// samples.
static inline ImageEntry image_cache_keep(
    uint8_t **pixels, const Dataset *d, int64_t index, const ImageSettings *c, SampleBuffers *buffers) {
    ImageEntry e = {0, 0, 0, SAMPLE_OK, 1};
    const DataSample *s = &d->samples[index];
    *pixels = NULL;
    if (sample_type(d, s) == DATASET_SYNTHETIC) return e;
    e.status = s->image_bytes < 0 ? SAMPLE_NO_IMAGE : sample_read_image(d, s, buffers);
    if (e.status != SAMPLE_OK) return e;
    Image image = {c->size, c->size, NULL, 1};
    if (c->size) {
        image.rgb = (uint8_t *)malloc_check(3 * (size_t)c->size * (size_t)c->size); // planes
        e.status = sample_eval_pixels(image.rgb, &e.orientation, &buffers->image, c);
        if (e.status != SAMPLE_OK) image_free(&image);
    } else {
        e.status = sample_decode(&image, &e.orientation, &buffers->image, c);
    }
    if (e.status != SAMPLE_OK) return e;
    e.width = image.width;
    e.height = image.height;
    *pixels = image.rgb;
    return e;
}

// Decodes all images of the data set into the file `path`, on all cores. False when `interrupted` became
// true: there is no file then.
static inline bool image_cache_make(
    const char *path, const Dataset *d, const ImageSettings *c, const volatile sig_atomic_t *interrupted) {
    enum { CHUNK = 64 };
    const bool show = isatty(STDERR_FILENO);
    const ImagesHeader h = {IMAGES_MAGIC, 1, image_cache_identity(d, c), d->count};
    const char zeros[8] = {0};
    int64_t *first = image_cache_first(d), at = (int64_t)sizeof h;
    ImageEntry *entries = (ImageEntry *)malloc_check((size_t)d->count * sizeof *entries);
    uint8_t *pixels[CHUNK];
    SafeFile file;
    safe_file_open(&file, path);
    safe_file_write(&file, &h, sizeof h);
    bool whole = true;
    for (int64_t begin = 0; begin < d->count && whole; begin += CHUNK) {
        const int n = (int)min_i64(CHUNK, d->count - begin);
#pragma omp parallel
        {
            SampleBuffers buffers;
            memset(&buffers, 0, sizeof buffers);
#pragma omp for schedule(dynamic)
            for (int i = 0; i < n; i++) {
                pixels[i] = NULL;
                if (first[begin + i] == begin + i)
                    entries[begin + i] = image_cache_keep(&pixels[i], d, begin + i, c, &buffers);
            }
            sample_buffers_free(&buffers);
        }
        for (int i = 0; i < n; i++) {
            ImageEntry *e = &entries[begin + i];
            if (first[begin + i] != begin + i) *e = entries[first[begin + i]];
            else e->offset = at;
            if (!pixels[i]) continue;
            const size_t size = 3 * (size_t)e->width * (size_t)e->height;
            safe_file_write(&file, pixels[i], size);
            at += (int64_t)size;
            free(pixels[i]);
        }
        if (show)
            fprintf(
                stderr, "\rdecoding the images: %lld of %lld ", (long long)(begin + n), (long long)d->count);
        whole = !(interrupted && *interrupted);
    }
    if (show) fprintf(stderr, "\r\033[K");
    if (whole) {
        safe_file_write(&file, zeros, round_up((size_t)at, 8) - (size_t)at);
        safe_file_write(&file, entries, (size_t)d->count * sizeof *entries);
        safe_file_commit(&file);
    } else {
        fclose(file.f);
        unlink(file.part);
    }
    free(first);
    free(entries);
    return whole;
}

// ---------------------------------------------------------------- using it

// Maps a file that image_cache_make() wrote. A file for other data or settings, or a damaged one, ends the
// program.
static inline ImageCache image_cache_open(const char *path, const Dataset *d, const ImageSettings *c) {
    ImageCache cache;
    ImagesHeader h;
    struct stat st;
    FILE *f = fopen_check(path, "rb");
    if (fstat(fileno(f), &st)) die(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
    if (st.st_size < (int64_t)sizeof h)
        die(EXIT_USAGE, "%s: is not a file of images; give --cache-images another name", path);
    fread_check(&h, sizeof h, f, path);
    if (h.magic != IMAGES_MAGIC || h.version != 1)
        die(EXIT_USAGE, "%s: is not a file of images; give --cache-images another name", path);
    if (h.identity != image_cache_identity(d, c) || h.count != d->count)
        die(EXIT_USAGE,
            "%s: holds the images of other data, or for other image settings; remove it, or give "
            "--cache-images another name",
            path);
    cache.bytes = (size_t)st.st_size;
    cache.count = h.count;
    cache.squares = c->size > 0;
    const int64_t table = st.st_size - h.count * (int64_t)sizeof(ImageEntry);
    if (table < (int64_t)sizeof h || table % 8) die(EXIT_USAGE, "%s: is not complete; remove it", path);
    void *map = mmap(NULL, cache.bytes, PROT_READ, MAP_SHARED, fileno(f), 0);
    if (map == MAP_FAILED) die(EXIT_RUNTIME, "%s: cannot be mapped (%s)", path, strerror(errno));
    fclose(f);
    cache.map = (const uint8_t *)map;
    cache.entries = (const ImageEntry *)(const void *)(cache.map + table);
    for (int64_t i = 0; i < h.count; i++) {
        const ImageEntry *e = &cache.entries[i];
        const int64_t left = table - e->offset;
        if (e->status < 0 || e->status >= SAMPLE_STATUS_COUNT || e->width < 0 || e->height < 0 ||
            e->offset < 0 || left < 0 || (e->height && e->width > left / 3 / e->height) ||
            (c->size && e->width && (e->width != c->size || e->height != c->size)))
            die(EXIT_USAGE, "%s: is damaged; remove it", path);
    }
    return cache;
}

static inline void image_cache_close(ImageCache *c) {
    if (c->map) munmap((void *)(uintptr_t)c->map, c->bytes);
    memset(c, 0, sizeof *c);
}

#endif
