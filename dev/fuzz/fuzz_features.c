// Caches of a locked tower's features (--feature-cache).
#include "dev/fuzz/fuzz.h"

#include "clipc/train/feature_cache.h"
#include "dev/fuzz/tiny.h"

enum { FILE_MOST = 1 << 14 };

// What the header of the file asks of the back end: this model has no weights.
const char *clip_kernels(const Clip *clip) { return clip ? "fuzz" : ""; }
Precision clip_precision(const Clip *clip) { return clip ? PRECISION_FP32 : PRECISION_TF32; }
void clip_read(const Clip *clip, ClipArena arena, const Tensor *x, float *values) {
    memset(values, 0, clip && arena == ARENA_PARAMETERS ? x->count * sizeof *values : 0);
}

// Makes the file one of this model, and the checksums of all records right.
static void repair(uint8_t *file, size_t size, const Clip *clip, const FeatureCache *c) {
    const FeaturesHeader header = features_header(clip, c);
    const size_t bytes = feature_record_bytes(c);
    if (size < sizeof header) return;
    memcpy(file, &header, sizeof header);
    for (size_t at = sizeof header; at + bytes <= size; at += bytes) {
        const uint32_t crc = crc_of(file + at, bytes - sizeof crc);
        memcpy(file + at + bytes - sizeof crc, &crc, sizeof crc);
    }
}

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t file[FILE_MOST];
    Clip clip;
    if (size < 1 || size > FILE_MOST) return;
    memcpy(file, data + 1, size - 1);
    memset(&clip, 0, sizeof clip);
    clip.config = tiny_config();
    clip.tensors = tensor_table_create(&clip.config);
    FeatureCache c = feature_cache_create(&clip, data[0] & 2 ? TEXT_TOWER : IMAGE_TOWER, TINY_SAMPLES);
    if (data[0] & 1) repair(file, size - 1, &clip, &c);
    feature_cache_open(&c, &clip, fuzz_file(file, size - 1));
    for (size_t i = 0; i < c.count; i++) {
        if (key_table_find(&c.row_of, c.keys[i]) != (int64_t)i) fuzz_fault("key %zu is not found", i);
        fuzz_use(feature_cache_row(&c, (int64_t)i), (size_t)c.width * sizeof *c.rows);
    }
    feature_cache_free(&c);
    tensor_table_free(&clip.tensors);
}
