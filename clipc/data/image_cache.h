// The decoded images of a data set in a file (--cache-images): what the workers would decode in every epoch
// is read from it instead, the same bits. If every epoch sees the same pixels, the file holds the squares
// that the image tower takes; if crops are random, the images as decoded.
//
// An image is found by its identity: where its bytes are and a stamp of that file. So the order of the
// samples does not matter, samples that share an image share its copy, new images are added, and one that was
// replaced is decoded again. The file is only appended to, in segments:
//     ImagesHeader
//     ImagesSegment, the pixels of its images, a table of ImageEntry      again and again
// The head of a segment is written last. Where it is missing, the run was killed: the segment is cut off.
#ifndef CLIPC_IMAGE_CACHE_H
#define CLIPC_IMAGE_CACHE_H

#include "clipc/base/cache_file.h" // Hash128, KeyTable, cache_lock
#include "clipc/data/sample.h"     // sample_read_image, sample_decode

#define IMAGES_MAGIC 0x4d494c43         // the bytes "CLIM"
#define IMAGES_VERSION 2                // raised also when the same image file becomes other pixels
#define SEGMENT_MAGIC 0x53494c43        // the bytes "CLIS"
#define SEGMENT_FULL ((int64_t)1 << 28) // bytes from which on a segment is finished: a kill costs no more
#define SEGMENT_UNIT 64                 // segments begin at its multiples: a head is not torn between sectors

// The settings that made the pixels; the first SEGMENT_UNIT bytes of the file.
typedef struct {
    int32_t magic, version;
    int64_t max_pixels;
    int32_t size; // 0: images as decoded
    int32_t interpolation, resize_mode, exif_rotate;
    uint32_t crc; // of what is before it
    uint8_t unused[28];
} ImagesHeader;

typedef struct {
    int32_t magic;
    uint32_t table_crc;
    int64_t bytes; // of the segment: this head, the images, zeros, the table
    int64_t count; // images
    uint32_t crc;  // of what is before it
    uint32_t unused;
} ImagesSegment;

typedef struct {
    Hash128 key;
    int64_t offset;        // of the pixels in the file: (3,S,S), or (height,width,3)
    int32_t width, height; // of the stored image
    int32_t orientation;   // of the image file, by EXIF
    uint32_t crc;          // of the pixels
} ImageEntry;

typedef struct {
    const char *path; // NULL: no file is open
    int fd;
    int64_t bytes;       // of the file up to the end of its last segment
    ImageEntry *entries; // (count) all that it holds
    size_t count, capacity;
    int64_t *entry_of; // (samples) of each sample; -1: the file does not hold its image
    int64_t samples;   // of the data set
    int64_t *intact;   // (count) when the file was changed last, as its pixels were found intact; 0: never
    int warned;        // 1: that the file is damaged has been said
    bool squares;      // (3,S,S) as the image tower takes them, not images as decoded
} ImageCache;

static inline size_t image_entry_bytes(const ImageEntry *e) {
    return 3 * (size_t)e->width * (size_t)e->height;
}

// ---------------------------------------------------------------- identity of images

static inline ImagesHeader images_header(const ImageSettings *c) {
    ImagesHeader h;
    memset(&h, 0, sizeof h);
    h.magic = IMAGES_MAGIC;
    h.version = IMAGES_VERSION;
    h.max_pixels = c->max_pixels;
    h.size = c->size;
    h.interpolation = c->size ? (int32_t)c->interpolation : 0;
    h.resize_mode = c->size ? (int32_t)c->resize_mode : 0;
    h.exif_rotate = c->exif_rotate;
    h.crc = crc_of(&h, offsetof(ImagesHeader, crc));
    return h;
}

static inline bool has_key(Hash128 key) { return key.a || key.b; }

// The key of a sample's image, all zeros where there is none to be stored. Image files are known by their
// path and stamp; members of shards by the shard's and their place in it. Where there is no such file, as for
// the output of a command, the bytes of the image are the key.
static inline Hash128 image_key(const Dataset *d, int64_t index, const Hash128 *shards, SampleBuffers *b) {
    const DataSample *s = &d->samples[index];
    const DatasetType type = sample_type(d, s);
    const Hash128 none = {0, 0};
    Hash128 key = hash128_start();
    if (type == DATASET_SYNTHETIC || s->image_bytes < 0) return none;
    if (type == DATASET_CSV || type == DATASET_FOLDER) return sample_hash_file(&key, d, s) ? key : none;
    if (type == DATASET_WEBDATASET && s->image >= 0 && has_key(shards[s->file])) {
        const int64_t member[] = {s->image, s->image_bytes};
        return hash128_bytes(shards[s->file], member, sizeof member);
    }
    if (sample_read_image(d, s, b) != SAMPLE_OK) return none;
    return hash128_bytes(key, b->image.data, b->image.bytes);
}

// keys (d->count) of all images, taken before any of them is read: a file that changes later has another key
// in the next run. Free it.
static inline Hash128 *image_keys(const Dataset *d, const volatile sig_atomic_t *interrupted) {
    Hash128 *keys = (Hash128 *)calloc_check((size_t)d->count, sizeof *keys);
    Hash128 *shards = (Hash128 *)calloc_check(d->file_count, sizeof *shards); // zeros: not a shard in a file
    for (size_t i = 0; i < d->file_count; i++) {
        Hash128 h = hash128_start();
        if (d->sources[d->files[i].source].type == DATASET_WEBDATASET && hash128_file(&h, d->files[i].path))
            shards[i] = h;
    }
#pragma omp parallel
    {
        SampleBuffers buffers;
        memset(&buffers, 0, sizeof buffers);
#pragma omp for schedule(dynamic, 64)
        for (int64_t i = 0; i < d->count; i++)
            if (!(interrupted && *interrupted)) keys[i] = image_key(d, i, shards, &buffers);
        sample_buffers_free(&buffers);
    }
    free(shards);
    return keys;
}

// ---------------------------------------------------------------- reading the tables

static inline void image_cache_damaged(const ImageCache *c) {
    die(EXIT_USAGE, "%s: is damaged; remove it, and it is made again", c->path);
}

// Checks the header, or writes that of a new file. A file for other settings, or of another kind, ends the
// program.
static inline void image_cache_header(ImageCache *c, const ImageSettings *settings, bool writable) {
    const ImagesHeader want = images_header(settings);
    ImagesHeader h;
    if (file_bytes(c->fd, c->path) == 0 && writable) {
        if (!pwrite_all(c->fd, &want, sizeof want, 0))
            die(EXIT_RUNTIME, "%s: cannot write (%s); free some space", c->path, strerror(errno));
    }
    memset(&h, 0, sizeof h);
    const bool whole = pread_all(c->fd, &h, sizeof h, 0);
    if (h.magic != IMAGES_MAGIC)
        die(EXIT_USAGE, "%s: is not a file of images; give --cache-images another name", c->path);
    if (h.version != IMAGES_VERSION)
        die(EXIT_USAGE, "%s: was written by another version of the program; remove it, and it is made again",
            c->path);
    if (!whole || h.crc != crc_of(&h, offsetof(ImagesHeader, crc))) image_cache_damaged(c);
    const char *other = h.size != want.size                     ? "image size or --aug-cfg"
                        : h.interpolation != want.interpolation ? "interpolation"
                        : h.resize_mode != want.resize_mode     ? "resize mode"
                        : h.exif_rotate != want.exif_rotate     ? "--exif-rotate"
                        : h.max_pixels != want.max_pixels       ? "--max-image-pixels"
                                                                : NULL;
    if (other)
        die(EXIT_USAGE,
            "%s: holds images made with another %s; remove it, or give --cache-images another name", c->path,
            other);
    c->bytes = sizeof h;
}

// Is the entry such as image_cache_add() writes into a segment whose images take the bytes begin … end - 1?
static inline bool image_entry_is_possible(
    const ImageEntry *e, int64_t begin, int64_t end, const ImageSettings *settings) {
    if (e->width < 1 || e->height < 1 || e->offset < begin || e->offset > end) return false;
    return e->width <= (end - e->offset) / 3 / e->height &&
           (!settings->size || (e->width == settings->size && e->height == settings->size));
}

// Adds the entries of the segment at c->bytes; false at the end of the file, or where the last segment is not
// complete. A damaged one ends the program.
static inline bool image_cache_read_segment(ImageCache *c, const ImageSettings *settings) {
    ImagesSegment h;
    const ImagesSegment unwritten = {0, 0, 0, 0, 0, 0};
    const int64_t left = file_bytes(c->fd, c->path) - c->bytes;
    if (left < (int64_t)sizeof h || !pread_all(c->fd, &h, sizeof h, c->bytes)) return false;
    if (memcmp(&h, &unwritten, sizeof h) == 0) return false;
    if (h.magic != SEGMENT_MAGIC || h.crc != crc_of(&h, offsetof(ImagesSegment, crc)) ||
        h.bytes < (int64_t)sizeof h || h.bytes % SEGMENT_UNIT || h.count < 1 ||
        h.count > (h.bytes - (int64_t)sizeof h) / (int64_t)sizeof(ImageEntry))
        image_cache_damaged(c);
    if (h.bytes > left) {
        warn("%s: ends within its last %lld images; they are decoded again", c->path, (long long)h.count);
        return false;
    }
    const size_t table = (size_t)h.count * sizeof(ImageEntry);
    const int64_t images = c->bytes + (int64_t)sizeof h, end = c->bytes + h.bytes - (int64_t)table;
    list_grow((void **)&c->entries, &c->capacity, c->count + (size_t)h.count, sizeof *c->entries);
    ImageEntry *entries = c->entries + c->count;
    if (!pread_all(c->fd, entries, table, end))
        die(EXIT_RUNTIME, "%s: cannot be read; it was cut, or the disk fails", c->path);
    if (crc_of(entries, table) != h.table_crc) image_cache_damaged(c);
    for (int64_t i = 0; i < h.count; i++)
        if (!image_entry_is_possible(&entries[i], images, end, settings)) image_cache_damaged(c);
    c->count += (size_t)h.count;
    c->bytes += h.bytes;
    return true;
}

// ---------------------------------------------------------------- adding images

// What is written to cannot be seen by any run before its head is there.
typedef struct {
    ImageCache *cache;
    int64_t at;   // where the next image goes
    size_t first; // entry of the segment
} SegmentWriter;

static inline void segment_write(SegmentWriter *w, const void *data, size_t bytes, int64_t offset) {
    ImageCache *c = w->cache;
    if (pwrite_all(c->fd, data, bytes, offset)) return;
    const int error = errno;
    if (ftruncate(c->fd, (off_t)c->bytes)) {} // what is left of it is cut off by the next run
    die(EXIT_RUNTIME, "%s: cannot write (%s); free some space, the %zu images that are in it are kept",
        c->path, strerror(error), w->first);
}

static inline SegmentWriter segment_begin(ImageCache *c) {
    const ImagesSegment unwritten = {0, 0, 0, 0, 0, 0};
    SegmentWriter w = {c, c->bytes, c->count};
    if (ftruncate(c->fd, (off_t)c->bytes))
        die(EXIT_RUNTIME, "%s: cannot write (%s)", c->path, strerror(errno));
    segment_write(&w, &unwritten, sizeof unwritten, c->bytes);
    w.at += (int64_t)sizeof unwritten;
    return w;
}

static inline void segment_add(SegmentWriter *w, Hash128 key, const Image *image, int orientation) {
    ImageCache *c = w->cache;
    ImageEntry e = {key, w->at, image->width, image->height, orientation, 0};
    const size_t bytes = image_entry_bytes(&e);
    e.crc = crc_of(image->rgb, bytes);
    segment_write(w, image->rgb, bytes, w->at);
    w->at += (int64_t)bytes;
    list_grow((void **)&c->entries, &c->capacity, c->count + 1, sizeof *c->entries);
    c->entries[c->count++] = e;
}

static inline void segment_end(SegmentWriter *w) {
    ImageCache *c = w->cache;
    ImagesSegment h = {SEGMENT_MAGIC, 0, 0, (int64_t)(c->count - w->first), 0, 0};
    const ImageEntry *entries = c->entries + w->first;
    const size_t table = (size_t)h.count * sizeof *entries;
    if (!h.count) return;
    h.bytes = (int64_t)round_up((size_t)(w->at - c->bytes) + table, SEGMENT_UNIT);
    h.table_crc = crc_of(entries, table);
    h.crc = crc_of(&h, offsetof(ImagesSegment, crc));
    segment_write(w, entries, table, c->bytes + h.bytes - (int64_t)table);
    // the head is on disk only after all else is
    if (fsync(c->fd)) die(EXIT_RUNTIME, "%s: cannot write (%s); free some space", c->path, strerror(errno));
    segment_write(w, &h, sizeof h, c->bytes);
    c->bytes += h.bytes;
}

// Decodes a sample's image as it is to be stored; free it when SAMPLE_OK is returned.
static inline SampleStatus image_cache_decode(Image *out, int *orientation, const Dataset *d, int64_t index,
    const ImageSettings *c, SampleBuffers *buffers) {
    const size_t size = (size_t)c->size;
    SampleStatus status = sample_read_image(d, &d->samples[index], buffers);
    if (status != SAMPLE_OK) return status;
    if (!size) return sample_decode(out, orientation, &buffers->image, c);
    const Image square = {c->size, c->size, (uint8_t *)malloc_check(3 * size * size), 1}; // planes
    *out = square;
    status = sample_eval_pixels(out->rgb, orientation, &buffers->image, c);
    if (status != SAMPLE_OK) image_free(out);
    return status;
}

// Decodes the images of the samples todo (count), on all cores, and adds those that can be decoded. Ends
// early, with what it has, when `interrupted` becomes true.
static inline void image_cache_add(ImageCache *c, const Dataset *d, const Hash128 *keys, const int64_t *todo,
    int64_t count, const ImageSettings *settings, const volatile sig_atomic_t *interrupted) {
    enum { CHUNK = 64 };
    const bool show = isatty(STDERR_FILENO);
    Image images[CHUNK];
    int orientation[CHUNK];
    SampleStatus status[CHUNK];
    SegmentWriter w = segment_begin(c);
    for (int64_t begin = 0; begin < count && !(interrupted && *interrupted); begin += CHUNK) {
        const int n = (int)min_i64(CHUNK, count - begin);
#pragma omp parallel
        {
            SampleBuffers buffers;
            memset(&buffers, 0, sizeof buffers);
#pragma omp for schedule(dynamic)
            for (int i = 0; i < n; i++)
                status[i] =
                    image_cache_decode(&images[i], &orientation[i], d, todo[begin + i], settings, &buffers);
            sample_buffers_free(&buffers);
        }
        for (int i = 0; i < n; i++) {
            if (status[i] != SAMPLE_OK) continue;
            segment_add(&w, keys[todo[begin + i]], &images[i], orientation[i]);
            image_free(&images[i]);
        }
        if (w.at - c->bytes >= SEGMENT_FULL) {
            segment_end(&w);
            w = segment_begin(c);
        }
        if (show)
            fprintf(stderr, "\rdecoding the images: %lld of %lld ", (long long)(begin + n), (long long)count);
    }
    if (show) fprintf(stderr, "\r\033[K");
    segment_end(&w);
}

// ---------------------------------------------------------------- using it

static inline void image_cache_close(ImageCache *c) {
    if (c->path) close(c->fd);
    free(c->entries);
    free(c->entry_of);
    free(c->intact);
    memset(c, 0, sizeof *c);
}

// Finds the images of the samples in the file; those that are not in it are decoded and added, one of each
// key.
static inline void image_cache_fill(ImageCache *c, const Dataset *d, const ImageSettings *settings,
    bool writable, const volatile sig_atomic_t *interrupted) {
    Hash128 *keys = image_keys(d, interrupted);
    int64_t *todo = (int64_t *)malloc_check((size_t)d->count * sizeof *todo), missing = 0;
    KeyTable found, wanted;
    memset(&found, 0, sizeof found);
    memset(&wanted, 0, sizeof wanted);
    for (size_t i = 0; i < c->count; i++) key_table_add(&found, c->entries[i].key, (int64_t)i);
    for (int64_t i = 0; i < d->count; i++)
        if (has_key(keys[i]) && key_table_find(&found, keys[i]) < 0 && key_table_add(&wanted, keys[i], i))
            todo[missing++] = i;
    const size_t before = c->count;
    if (missing && !writable)
        warn("%s: %lld images are not in it, and it cannot be written to; they are decoded in every epoch",
            c->path, (long long)missing);
    else if (missing) image_cache_add(c, d, keys, todo, missing, settings, interrupted);
    for (size_t i = before; i < c->count; i++) key_table_add(&found, c->entries[i].key, (int64_t)i);
    c->entry_of = (int64_t *)malloc_check((size_t)d->count * sizeof *c->entry_of);
    for (int64_t i = 0; i < d->count; i++)
        c->entry_of[i] = has_key(keys[i]) ? key_table_find(&found, keys[i]) : -1;
    c->samples = d->count;
    c->intact = (int64_t *)calloc_check(c->count, sizeof *c->intact);
    key_table_free(&found);
    key_table_free(&wanted);
    free(todo);
    free(keys);
}

// Opens the file, which is made where it does not exist, and adds what it does not hold of the data set's
// images; another run that does so is waited for. size 0: images as decoded. False when `interrupted` became
// true: what was decoded by then is kept. `path` must outlive the cache.
static inline bool image_cache_open(ImageCache *c, const char *path, const Dataset *d,
    const ImageSettings *settings, const volatile sig_atomic_t *interrupted) {
    bool writable;
    memset(c, 0, sizeof *c);
    c->path = path;
    c->squares = settings->size > 0;
    c->fd = cache_open_check(path, &writable);
    const bool locked = !writable || cache_lock(c->fd, path, interrupted);
    if (locked) {
        image_cache_header(c, settings, writable);
        while (image_cache_read_segment(c, settings)) {}
        image_cache_fill(c, d, settings, writable, interrupted);
        cache_unlock(c->fd);
    }
    if (!(interrupted && *interrupted)) return true;
    image_cache_close(c);
    return false;
}

// When the file was changed last, in nanoseconds; 0 where the system does not tell.
static inline int64_t file_changed(int fd) {
    struct stat st;
    return fstat(fd, &st) ? 0 : STAT_NANOSECONDS(st, m);
}

// The stored image of a sample; NULL: the file does not hold it.
static inline const ImageEntry *image_cache_find(const ImageCache *c, int64_t index) {
    const int64_t entry = c->entry_of[index];
    return entry >= 0 ? &c->entries[entry] : NULL;
}

// Reads its pixels into out (image_entry_bytes(e)). Their checksum is only compared the first time, and again
// where the file has changed meanwhile, as it does when another run adds to it. False where they are not
// intact, as in a file that was cut under the run. Thread-safe.
static inline bool image_cache_read(ImageCache *c, const ImageEntry *e, uint8_t *out) {
    const size_t bytes = image_entry_bytes(e);
    int64_t *known = &c->intact[e - c->entries], when = __atomic_load_n(known, __ATOMIC_RELAXED);
    bool intact = when && pread_all(c->fd, out, bytes, e->offset) && file_changed(c->fd) == when;
    if (!intact) {
        when = file_changed(c->fd); // before it is read: what is written meanwhile is seen the next time
        intact = pread_all(c->fd, out, bytes, e->offset) && crc_of(out, bytes) == e->crc;
        if (intact) __atomic_store_n(known, when, __ATOMIC_RELAXED);
    }
    if (!intact && !__atomic_exchange_n(&c->warned, 1, __ATOMIC_RELAXED))
        warn("%s: is damaged, or was changed while this run uses it: the images that it has lost are decoded "
             "in every epoch; remove it, and the next run makes it again",
            c->path);
    return intact;
}

#endif
