// WebDataset's shards: tar, compressed or not, with images, captions, JSON and labels.
#include "dev/fuzz/fuzz.h"

#include "dev/fuzz/samples.h"

static void fuzz_one(const uint8_t *data, size_t size) {
    if (size < 1) return;
    DatasetConfig c = dataset_config_default();
    c.type = DATASET_WEBDATASET;
    if (data[0] & 1) c.json_text_key = "caption;text";
    if (data[0] & 2) c.need_label = true;
    if (data[0] & 4) c.positives_key = "image";
    if (data[0] & 8) c.prompts = true;
    Dataset d = dataset_open(fuzz_file(data + 1, size - 1), &c, 1);
    read_all_samples(&d);
    dataset_free(&d);
}
