// Caches of decoded images (--cache-images).
#include "dev/fuzz/fuzz.h"

#include "clipc/data/image_cache.h"
#include "dev/fuzz/tiny.h"

enum { FILE_MOST = 1 << 16 };

// The place of the table of a segment of `left` bytes; 0 where it has none.
static size_t table_of(const ImagesSegment *h, size_t left) {
    if (h->bytes < (int64_t)sizeof *h || h->bytes > (int64_t)left || h->count < 1 || h->count > FILE_MOST)
        return 0;
    const size_t table = (size_t)h->count * sizeof(ImageEntry);
    return table + sizeof *h <= (size_t)h->bytes ? (size_t)h->bytes - table : 0;
}

// Gives all images of a segment of `bytes` bytes at `segment` the right checksums.
static void repair_images(uint8_t *file, uint8_t *segment, size_t table, int64_t count) {
    const int64_t end = segment + table - file;
    for (int64_t i = 0; i < count; i++) {
        ImageEntry e;
        memcpy(&e, segment + table + (size_t)i * sizeof e, sizeof e);
        if (e.width < 1 || e.height < 1 || e.offset < 0 || e.offset > end) continue;
        if (e.width > (end - e.offset) / 3 / e.height) continue;
        e.crc = crc_of(file + e.offset, image_entry_bytes(&e));
        memcpy(segment + table + (size_t)i * sizeof e, &e, sizeof e);
    }
}

// Makes the file one for these settings, and all checksums right.
static void repair(uint8_t *file, size_t size, const ImageSettings *settings) {
    const ImagesHeader header = images_header(settings);
    if (size < sizeof header) return;
    memcpy(file, &header, sizeof header);
    for (size_t at = sizeof header; at + sizeof(ImagesSegment) <= size;) {
        ImagesSegment h;
        memcpy(&h, file + at, sizeof h);
        const size_t table = table_of(&h, size - at);
        if (table) {
            repair_images(file, file + at, table, h.count);
            h.table_crc = crc_of(file + at + table, (size_t)h.count * sizeof(ImageEntry));
        }
        h.crc = crc_of(&h, offsetof(ImagesSegment, crc));
        memcpy(file + at, &h, sizeof h);
        if (!table) return;
        at += (size_t)h.bytes;
    }
}

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t file[FILE_MOST], pixels[FILE_MOST];
    ImageCache c;
    if (size < 1 || size > FILE_MOST) return;
    memcpy(file, data + 1, size - 1);
    Dataset d = tiny_dataset();
    const ImageSettings settings = tiny_images(data[0] & 1 ? 2 : 0);
    if (data[0] & 2) repair(file, size - 1, &settings);
    if (!image_cache_open(&c, fuzz_file(file, size - 1), &d, &settings, NULL)) fuzz_fault("not opened");
    for (size_t i = 0; i < c.count; i++)
        for (int again = 0; again < 2; again++) // the second time without its checksum
            if (image_cache_read(&c, &c.entries[i], pixels))
                fuzz_use(pixels, image_entry_bytes(&c.entries[i]));
    for (int64_t i = 0; i < d.count; i++)
        if (image_cache_find(&c, i)) fuzz_fault("a synthetic sample has an image");
    image_cache_close(&c);
    dataset_free(&d);
}
