// JSON: captions in the .json members of shards, model configurations.
#include "dev/fuzz/fuzz.h"

#include "clipc/data/sample.h"
#include "clipc/model/architectures.h"

static void read_caption(const uint8_t *data, size_t size) {
    ByteBuffer text = {(uint8_t *)malloc_check(size + 1), size, size + 1};
    memcpy(text.data, data, size);
    if (sample_json_caption(&text, "caption;text") == SAMPLE_OK) fuzz_use(text.data, text.bytes);
    free(text.data);
}

static void fuzz_one(const uint8_t *data, size_t size) {
    ClipConfig c;
    char error[256];
    if (size < 1) return;
    if (data[0] & 1) {
        read_caption(data + 1, size - 1);
        return;
    }
    model_load(fuzz_file(data + 1, size - 1), &c);
    if (!config_check(&c, error)) fuzz_fault("accepted, but %s", error);
}
