// Seeds for `make fuzz`: small inputs of every binary format, made by the functions that write the format in
// the programs and by the encoders of the image libraries. dev/fuzz/seeds.py makes the others.
//   seeds FOLDER      writes FOLDER/HARNESS/NAME
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"

#include "clipc/train/training.h"
#include "dev/fuzz/tiny.h"
#include "dev/test/data_files.h" // make_png, make_rotated_jpeg, tar_add

#include <webp/encode.h>
#include <webp/mux.h>

static const char *root;

// Writes a seed: `mode` holds the bytes by which the harness chooses its settings, then the file follows.
static void seed(const char *harness, const char *name, const char *mode, const void *data, size_t bytes) {
    char path[PATH_SIZE];
    path_format(path, "%s/%s", root, harness);
    make_directories(path);
    path_format(path, "%s/%s/%s", root, harness, name);
    FILE *f = fopen_check(path, "wb");
    fwrite_check(mode, strlen(mode), f, path);
    fwrite_check(data, bytes, f, path);
    fclose(f);
}

// The same of a file in the test folder.
static void seed_file(const char *harness, const char *name, const char *mode, const char *file) {
    size_t bytes;
    char *data = file_read_all(at(file), &bytes);
    seed(harness, name, mode, data, bytes);
    free(data);
}

// The same, damaged in the ways that a reader of a binary format has to notice: cut off, longer, and each of
// the int32 of its first `head` bytes too large, negative, or one more.
static void seed_damaged(const char *harness, const char *mode, const void *data, size_t bytes, size_t head) {
    static const int32_t wrong[] = {INT32_MAX, -1, 3};
    char name[64];
    uint8_t *copy = (uint8_t *)calloc_check(bytes + 4, 1);
    memcpy(copy, data, bytes);
    const size_t lengths[] = {0, head / 2, head, bytes / 2, bytes - 1, bytes + 4};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        snprintf(name, sizeof name, "%s-length-%zu", mode, lengths[i]);
        seed(harness, name, mode, copy, lengths[i]);
    }
    for (size_t field = 0; field + 4 <= head; field += 4)
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            memcpy(copy + field, &wrong[i], 4);
            snprintf(name, sizeof name, "%s-field-%zu-%zu", mode, field, i);
            seed(harness, name, mode, copy, bytes);
            memcpy(copy + field, (const char *)data + field, 4);
        }
    free(copy);
}

static void seed_file_damaged(const char *harness, const char *mode, const char *file, size_t head) {
    size_t bytes;
    char *data = file_read_all(at(file), &bytes);
    seed_damaged(harness, mode, data, bytes, head);
    free(data);
}

// ---------------------------------------------------------------- weights, states

static void save_weights(const char *file, const ClipConfig *c, const char *merges, bool bf16) {
    const size_t merges_bytes = merges ? strlen(merges) : 0;
    Clip *clip = clip_create(c, merges, merges_bytes, 7);
    SafeFile s;
    safe_file_open(&s, at(file));
    clip_save(clip, &s);
    safe_file_commit(&s);
    clip_free(clip);
    if (!bf16) return;
    // programs do not write bf16; zeros of the right length are enough
    TensorTable t = tensor_table_create(c);
    size_t bytes;
    int32_t *header = (int32_t *)(void *)file_read_all(at(file), &bytes);
    const size_t tensors = HEADER_BYTES + round_up(merges_bytes, WEIGHTS_ALIGNMENT);
    header[HEADER_VERSION] = 1; // without a seal
    header[HEADER_DTYPE] = DTYPE_BF16;
    memset((char *)header + tensors, 0, bytes - tensors);
    write_file(at(file), header, tensors + weights_tensor_bytes(&t, DTYPE_BF16));
    free(header);
    tensor_table_free(&t);
}

static void seed_weights(void) {
    ClipConfig c = tiny_config();
    save_weights("w.bin", &c, NULL, false);
    seed_file("weights", "fp32", "0", "w.bin");
    seed_file("weights", "repaired", "1", "w.bin");
    seed_file_damaged("weights", "0", "w.bin", 4 * (HEADER_CONFIG + 30));
    seed_file_damaged("weights", "1", "w.bin", 4 * (HEADER_CONFIG + 30));
    save_weights("w.bin", &c, NULL, true);
    seed_file("weights", "bf16", "1", "w.bin");
    save_weights("w.bin", &c, "a b\nb c</w>\n", false);
    seed_file("weights", "merges", "1", "w.bin");
    c.ln_pre = 0;
    c.patch_bias = 1;
    c.absent = ABSENT_TEXT | ABSENT_IMAGE_PROJ;
    save_weights("w.bin", &c, NULL, true);
    seed_file("weights", "vit", "1", "w.bin");
}

static void save_state(Clip *clip, const RunState *run, const char *settings) {
    FileSet *set = file_set_open(folder);
    checkpoint_write(set, clip, "s", run, settings);
    file_set_commit(set);
}

static void seed_states(void) {
    const ClipConfig c = tiny_config();
    const ClipTraining plain = {2, false, false};
    const RunState run = {12, 1, 4, 11, 0.5, 10, 1.5, 1, 2};
    Clip *clip = clip_create(&c, NULL, 0, 1);
    clip_start_training(clip, &plain);
    save_state(
        clip, &run, "train-data                   a.csv\nlr                           0.001\nwarmup  10%\n");
    seed_file("state", "plain", "0", "s.state");
    save_state(clip, &run, "");
    seed_file_damaged("state", "0", "s.state", sizeof(StateHeader));
    seed_file_damaged("state", "1", "s.state", sizeof(StateHeader));
    size_t bytes;
    char *data = file_read_all(at("s.state"), &bytes);
    const float nan = NAN;
    memcpy(data + bytes - seal_bytes(1) - sizeof nan, &nan, sizeof nan);
    seed("state", "not finite", "1", data, bytes);
    ((StateHeader *)(void *)data)->version = 2; // without a seal
    seed("state", "version 2", "0", data, bytes - (size_t)seal_bytes(1));
    free(data);
    seed_file("state", "no settings", "0", "s.state");
    clip_free(clip);
}

// ---------------------------------------------------------------- caches

static void seed_features(void) {
    const ClipConfig config = tiny_config();
    const float row[2] = {1, 2};
    Clip *clip = clip_create(&config, NULL, 0, 1);
    FeatureCache c = feature_cache_create(clip, TEXT_TOWER, 0);
    feature_cache_open(&c, clip, at("features"));
    for (uint64_t i = 0; i < 4; i++) {
        const Hash128 key = {i, 7};
        feature_cache_add(&c, key, row);
    }
    feature_cache_save(&c);
    seed_file("features", "text", "3", "features");
    seed_file("features", "image", "1", "features");
    seed_file_damaged("features", "1", "features", 0);
    seed_file_damaged("features", "2", "features", sizeof(FeaturesHeader));
    feature_cache_free(&c);
    clip_free(clip);
}

// A file with two segments.
static void seed_image_cache(const char *name, const char *mode, const ImageSettings *settings) {
    uint8_t pixels[3 * 2 * 2] = {1, 2, 3};
    const Image image = {2, 2, pixels, 1};
    Dataset d = tiny_dataset();
    ImageCache c;
    image_cache_open(&c, at(name), &d, settings, NULL);
    for (uint64_t segment = 0; segment < 2; segment++) {
        SegmentWriter w = segment_begin(&c);
        for (uint64_t i = 0; i < 2; i++) {
            const Hash128 key = {segment, i};
            segment_add(&w, key, &image, 1);
        }
        segment_end(&w);
    }
    image_cache_close(&c);
    dataset_free(&d);
    seed_file("image_cache", name, mode, name);
}

static void seed_caches(void) {
    const ImageSettings squares = tiny_images(2), whole = tiny_images(0);
    seed_features();
    seed_image_cache("squares", "1", &squares);
    seed_file_damaged("image_cache", "3", "squares", sizeof(ImagesHeader) + sizeof(ImagesSegment));
    seed_file_damaged("image_cache", "1", "squares", sizeof(ImagesHeader) + sizeof(ImagesSegment));
    seed_image_cache("whole", "0", &whole);
    seed_file("image_cache", "repaired", "2", "whole");
    size_t bytes;
    char *data = file_read_all(at("whole"), &bytes);
    for (int32_t width = -1; width < 3; width++) { // of the last entry
        memcpy(data + bytes - sizeof(ImageEntry) + offsetof(ImageEntry, width), &width, 4);
        seed("image_cache", width < 0 ? "width -1" : width == 0 ? "width 0" : "width 1", "2", data, bytes);
    }
    data[bytes / 2] ^= 1;
    seed("image_cache", "flipped", "0", data, bytes);
    free(data);
}

// ---------------------------------------------------------------- images

enum { SIDE = 9 };

// An image file, whole, cut off, and with a wrong byte in the middle; each for other settings.
static void seed_image(const char *name, const uint8_t *file, size_t bytes) {
    static int settings;
    char other[64], mode[3] = "00";
    for (int i = 0; i < 2; i++) mode[i] = (char)('0' + (settings++ * 7 + 3) % 64);
    seed("image", name, mode, file, bytes);
    snprintf(other, sizeof other, "cut-%s", name);
    seed("image", other, mode, file, bytes * 3 / 4);
    uint8_t *copy = (uint8_t *)memcpy(malloc_check(bytes), file, bytes);
    copy[bytes / 2] ^= 255;
    snprintf(other, sizeof other, "wrong-%s", name);
    seed("image", other, mode, copy, bytes);
    free(copy);
}

static void seed_jpeg(const char *name, J_COLOR_SPACE space, int components, bool progressive, int restart) {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long length = 0;
    uint8_t row[4 * SIDE];
    JSAMPROW rows[1] = {row};
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &bytes, &length);
    jpeg.image_width = jpeg.image_height = SIDE;
    jpeg.in_color_space = space;
    jpeg.input_components = components;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, 30, TRUE);
    jpeg.restart_interval = (unsigned)restart;
    if (progressive) jpeg_simple_progression(&jpeg);
    jpeg_start_compress(&jpeg, TRUE);
    for (int y = 0; y < SIDE; y++) {
        for (int i = 0; i < components * SIDE; i++) row[i] = (uint8_t)(20 * y + 11 * i);
        jpeg_write_scanlines(&jpeg, rows, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    seed_image(name, bytes, length);
    free(bytes);
}

static void png_append(png_structp png, png_bytep bytes, size_t n) {
    ByteBuffer *out = (ByteBuffer *)png_get_io_ptr(png);
    list_grow((void **)&out->data, &out->capacity, out->bytes + n, 1);
    memcpy(out->data + out->bytes, bytes, n);
    out->bytes += n;
}

static void png_no_flush(png_structp png) { (void)png; }

static void seed_png(const char *name, int color, int depth, bool interlaced) {
    const png_color palette[4] = {{0, 0, 0}, {255, 0, 0}, {0, 255, 0}, {9, 9, 255}};
    uint8_t row[8 * SIDE];
    png_byte exif[] = {'I', 'I', '*', 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 3, 0, 0, 0};
    ByteBuffer file = {NULL, 0, 0};
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_set_write_fn(png, &file, png_append, png_no_flush);
    png_set_IHDR(
        png, info, SIDE, SIDE, depth, color, interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, 0, 0);
    if (color == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette, 4);
    png_set_eXIf_1(png, info, sizeof exif, exif);
    png_write_info(png, info);
    const int passes = png_set_interlace_handling(png);
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < SIDE; y++) {
            for (size_t i = 0; i < sizeof row; i++) row[i] = (uint8_t)(33 * y + 7 * (int)i);
            png_write_row(png, row);
        }
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    seed_image(name, file.data, file.bytes);
    free(file.data);
}

// Lossy or lossless; with `exif` in a container that has an EXIF chunk.
static void seed_webp(const char *name, bool lossless, bool exif) {
    const uint8_t orientation[] = {'I', 'I', '*', 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0};
    uint8_t pixels[3 * SIDE * SIDE], *bytes = NULL;
    for (int i = 0; i < 3 * SIDE * SIDE; i++) pixels[i] = (uint8_t)(13 * i);
    const size_t n = lossless ? WebPEncodeLosslessRGB(pixels, SIDE, SIDE, 3 * SIDE, &bytes)
                              : WebPEncodeRGB(pixels, SIDE, SIDE, 3 * SIDE, 50, &bytes);
    const WebPData still = {bytes, n}, chunk = {orientation, sizeof orientation};
    WebPData file = still;
    if (exif) {
        WebPMux *mux = WebPMuxNew();
        WebPMuxSetImage(mux, &still, 1);
        WebPMuxSetChunk(mux, "EXIF", &chunk, 1);
        WebPMuxAssemble(mux, &file);
        WebPMuxDelete(mux);
    }
    seed_image(name, file.bytes, file.size);
    if (exif) WebPDataClear(&file);
    WebPFree(bytes);
}

static void seed_images(void) {
    static uint8_t bytes[1 << 14];
    seed_image("turned.jpg", bytes, make_rotated_jpeg(bytes, sizeof bytes));
    seed_jpeg("rgb.jpg", JCS_RGB, 3, false, 0);
    seed_jpeg("gray.jpg", JCS_GRAYSCALE, 1, false, 1);
    seed_jpeg("cmyk.jpg", JCS_CMYK, 4, false, 0);
    seed_jpeg("progressive.jpg", JCS_RGB, 3, true, 0);
    seed_png("rgb.png", PNG_COLOR_TYPE_RGB, 8, false);
    seed_png("rgba16.png", PNG_COLOR_TYPE_RGB_ALPHA, 16, false);
    seed_png("gray1.png", PNG_COLOR_TYPE_GRAY, 1, false);
    seed_png("gray16.png", PNG_COLOR_TYPE_GRAY, 16, true);
    seed_png("gray_alpha.png", PNG_COLOR_TYPE_GRAY_ALPHA, 8, true);
    seed_png("palette.png", PNG_COLOR_TYPE_PALETTE, 2, false);
    seed_webp("lossy.webp", false, false);
    seed_webp("lossless.webp", true, false);
    seed_webp("turned.webp", false, true);
}

// ---------------------------------------------------------------- shards

static void seed_shard(const char *name, const char *mode, ArchiveOption format, ArchiveOption filter) {
    static uint8_t png[1 << 14];
    const size_t n = make_png(png, sizeof png, 3, 2, 2);
    struct archive *a = tar_create(at("shard.tar"), format, filter);
    tar_add(a, "a/000.png", png, n);
    tar_add_text(a, "a/000.txt", "a cat");
    tar_add_text(a, "a/000.json", "{\"caption\": \"a dog\"}");
    tar_add_text(a, "a/000.cls", "1");
    tar_add(a, "001.jpg", png, 20);
    tar_add_text(a, "001.json", "{\"text\": \" \"}");
    tar_add_text(a, "002.txt", "");
    tar_add(a, "002.webp", png, 0);
    tar_finish(a);
    seed_file("tar", name, mode, "shard.tar");
    size_t bytes;
    char *data = file_read_all(at("shard.tar"), &bytes);
    char cut[64];
    snprintf(cut, sizeof cut, "%s-cut", name);
    seed("tar", cut, mode, data, bytes < 2000 ? bytes * 2 / 3 : 1100);
    data[bytes / 3] ^= 64;
    snprintf(cut, sizeof cut, "%s-flipped", name);
    seed("tar", cut, mode, data, bytes);
    free(data);
}

// What the account of a shard has to say: files of systems, names without a key or with several dots, a link,
// members of a sample that are apart, text that is not UTF-8.
static void seed_odd_shard(void) {
    struct archive *a;
    tar_plain(at("shard.tar"), &a);
    tar_add_text(a, "x.txt", "apart");
    tar_add_text(a, "._x.txt", "");
    tar_add_text(a, "MD5SUMS", "");
    tar_add_text(a, "folder/.hidden", "");
    tar_add_text(a, "no_ending", "");
    tar_add_text(a, "a.b.jpg", "dotted");
    tar_add_text(a, "a.b.txt", "dotted");
    tar_add_text(a, "c.d.jpg", "dotted");
    tar_add_text(a, "e.svg", "neither");
    tar_add_text(a, "y.txt", "caf\xe9 au lait");
    tar_add_text(a, "y.jpg", "no image");
    tar_add_text(a, "x.jpg", "no image");
    tar_add_text(a, "z.json", "{\"caption\": \"\xff\"}");
    tar_add_text(a, "z.jpg", "");
    struct archive_entry *e = archive_entry_new();
    archive_entry_set_pathname(e, "link.jpg");
    archive_entry_set_filetype(e, AE_IFLNK);
    archive_entry_set_symlink(e, "x.jpg");
    archive_write_header(a, e);
    archive_entry_free(e);
    tar_finish(a);
    seed_file("tar", "odd", "0", "shard.tar");
    seed_file("tar", "odd, JSON", "1", "shard.tar");
}

static void seed_shards(void) {
    seed_odd_shard();
    seed_shard("ustar", "0", archive_write_set_format_ustar, archive_write_add_filter_none);
    seed_shard("pax", "1", archive_write_set_format_pax, archive_write_add_filter_none);
    seed_shard("gnu", "2", archive_write_set_format_gnutar, archive_write_add_filter_none);
    seed_shard("gzip", "4", archive_write_set_format_ustar, archive_write_add_filter_gzip);
    seed_shard("xz", "1", archive_write_set_format_ustar, archive_write_add_filter_xz);
    seed_shard("zstd", "8", archive_write_set_format_ustar, archive_write_add_filter_zstd);
    seed_shard("bzip2", "0", archive_write_set_format_ustar, archive_write_add_filter_bzip2);
    seed_shard("lz4", "0", archive_write_set_format_ustar, archive_write_add_filter_lz4);
}

int main(int argc, char **argv) {
    if (argc != 2) die(EXIT_USAGE, "give the folder that the seeds go to");
    root = argv[1];
    make_test_folder("fuzz_seeds");
    seed_weights();
    seed_states();
    seed_caches();
    seed_images();
    seed_shards();
    remove_test_folder();
    return 0;
}
