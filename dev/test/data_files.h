// For tests of data: a temporary folder, image files and tar shards in it, data sets and loaders over them.
#ifndef CLIPC_TEST_DATA_FILES_H
#define CLIPC_TEST_DATA_FILES_H

#include "clipc/data/dataloader.h"
#include "dev/test/child.h"

static char folder[512]; // the temporary folder: make_test_folder()

static inline const char *at(const char *name) { // a path in it; eight at a time
    static char paths[8][PATH_SIZE];
    static int next;
    char *p = paths[next++ % 8];
    snprintf(p, PATH_SIZE, "%s/%s", folder, name);
    return p;
}

// ---------------------------------------------------------------- fixtures

static inline void write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen_check(path, "wb");
    fwrite_check(data, bytes, f, path);
    fclose(f);
}

static inline void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

// A PNG of width × height whose pixels depend on its number; returns its bytes.
static inline size_t make_png(uint8_t *out, size_t capacity, int number, int width, int height) {
    uint8_t *rgb = (uint8_t *)malloc_check((size_t)(3 * width * height));
    for (int i = 0; i < width * height; i++) {
        rgb[3 * i] = (uint8_t)number;
        rgb[3 * i + 1] = (uint8_t)(i * 7 + number);
        rgb[3 * i + 2] = (uint8_t)(i % width * 9);
    }
    png_image image;
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    image.width = (png_uint_32)width;
    image.height = (png_uint_32)height;
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t bytes = capacity;
    if (!png_image_write_to_memory(&image, out, &bytes, 0, rgb, 0, NULL))
        die(EXIT_RUNTIME, "no PNG: %s", image.message);
    free(rgb);
    return bytes;
}

// A JPEG with the EXIF orientation 6.
static inline size_t make_rotated_jpeg(uint8_t *out, size_t capacity) {
    static const uint8_t exif[] = {'E', 'x', 'i', 'f', 0, 0, 'I', 'I', '*', 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3,
        0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0};
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    unsigned char *data = NULL;
    unsigned long bytes = 0;
    uint8_t row[3 * 16] = {0};
    JSAMPROW rows[1] = {row};
    c.err = jpeg_std_error(&errors);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &data, &bytes);
    c.image_width = 16;
    c.image_height = 8;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_start_compress(&c, TRUE);
    jpeg_write_marker(&c, JPEG_APP0 + 1, exif, sizeof exif);
    for (int y = 0; y < 8; y++) jpeg_write_scanlines(&c, rows, 1);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    if (bytes > capacity) die(EXIT_RUNTIME, "JPEG too long");
    memcpy(out, data, bytes);
    free(data);
    return bytes;
}

typedef int (*ArchiveOption)(struct archive *);

static inline struct archive *tar_create(const char *path, ArchiveOption format, ArchiveOption filter) {
    struct archive *a = archive_write_new();
    format(a);
    filter(a);
    archive_write_set_options(a, "hdrcharset=BINARY");
    if (archive_write_open_filename(a, path) != ARCHIVE_OK)
        die(EXIT_RUNTIME, "%s: %s", path, archive_error_string(a));
    return a;
}

static inline void tar_add(struct archive *a, const char *name, const void *data, size_t bytes) {
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, name);
    archive_entry_set_size(e, (int64_t)bytes);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    if (archive_write_header(a, e) != ARCHIVE_OK) die(EXIT_RUNTIME, "%s: %s", name, archive_error_string(a));
    if (archive_write_data(a, data, bytes) != (ssize_t)bytes)
        die(EXIT_RUNTIME, "%s: %s", name, archive_error_string(a));
    archive_entry_free(e);
}

static inline void tar_add_text(struct archive *a, const char *name, const char *text) {
    tar_add(a, name, text, strlen(text));
}
static inline void tar_finish(struct archive *a) {
    archive_write_close(a);
    archive_write_free(a);
}
static inline void tar_plain(const char *path, struct archive **a) {
    *a = tar_create(path, archive_write_set_format_ustar, archive_write_add_filter_none);
}

// ---------------------------------------------------------------- opening and reading

typedef struct {
    const char *spec;
    DatasetConfig config;
    int64_t least;
} OpenCase;

static inline void open_case(const void *argument) {
    const OpenCase *c = (const OpenCase *)argument;
    Dataset d = dataset_open(c->spec, &c->config, c->least);
    dataset_free(&d);
}

static inline OpenCase open_of(const char *spec) {
    OpenCase c = {spec, dataset_config_default(), 1};
    return c;
}

// Reads a sample; its caption as a string.
static inline SampleStatus read_sample(
    const Dataset *d, int64_t i, SampleBuffers *b, char *caption, size_t size) {
    SampleStatus status = dataset_read(d, i, b);
    snprintf(caption, size, "%.*s", (int)b->caption_bytes, b->caption);
    return status;
}

#define EXPECT_CAPTION(d, i, b, text)                                                      \
    do {                                                                                   \
        char got[512];                                                                     \
        SampleStatus status = read_sample(d, i, b, got, sizeof got);                       \
        EXPECT(status == SAMPLE_OK && !strcmp(got, text), "sample %d: %s: '%s'", (int)(i), \
            sample_status_name(status), got);                                              \
    } while (0)
#define EXPECT_STATUS(d, i, b, wanted)                                                     \
    do {                                                                                   \
        SampleStatus status = dataset_read(d, i, b);                                       \
        EXPECT(status == (wanted), "sample %d: %s", (int)(i), sample_status_name(status)); \
    } while (0)

// A loader of shuffled batches of 8 with random crops.
static inline LoaderConfig small_batches(int workers, int image_size, const AugmentConfig *augment) {
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch_size = 8;
    c.workers = workers;
    c.image.size = image_size;
    c.image.max_pixels = 10000;
    c.augment = augment;
    c.seed = 3;
    c.shuffle = true;
    return c;
}

static inline AugmentConfig augment_of(const char *text) {
    AugmentConfig augment;
    char error[256];
    if (!augment_parse(&augment, text, error)) die(EXIT_USAGE, "--aug-cfg %s: %s", text, error);
    return augment;
}

// ---------------------------------------------------------------- the folder

static inline void make_test_folder(const char *name) {
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.400s/%s-XXXXXX", tmp && tmp[0] ? tmp : "/tmp", name);
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: cannot make it", folder);
}

static inline void remove_test_folder(void) {
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) warn("%s: cannot remove it", folder);
}

#endif
