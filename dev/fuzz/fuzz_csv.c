// Tables of images and captions, as CSV or in JSON, and the caption files of retrieval benchmarks.
#include "dev/fuzz/fuzz.h"

#include "clipc/data/dataset.h"
#include "dev/fuzz/samples.h"

// A table in JSON, which is otherwise known by the name of its file.
static Dataset open_json(const char *path, const DatasetConfig *c) {
    Dataset d = dataset_new(c);
    dataset_add_source(&d, path, DATASET_CSV);
    dataset_add_json(&d, 0, path);
    dataset_finish(&d, path, 1);
    return d;
}

static void fuzz_one(const uint8_t *data, size_t size) {
    static const char separators[] = {0, 0, ',', '\t', ';', ' ', '"', 'a'};
    static const char *const keys[] = {NULL, "image", "cls", "key"};
    static const char *const names[4][3] = {
        {"cat", "Big dog", ""}, {"1", "0", "2"}, {"tench", "goldfish", "x"}, {"0", "1", "2"}};
    if (size < 2) return;
    DatasetConfig c = dataset_config_default();
    c.type = data[1] & 16 ? DATASET_AUTO : DATASET_CSV;
    c.validation = data[1] & 32;
    c.csv_separator = separators[data[0] & 7];
    c.positives_key = keys[data[0] >> 3 & 3];
    c.need_label = data[0] & 32;
    c.prompts = data[0] & 64;
    if (data[0] & 128) {
        c.classnames = names[data[1] >> 2 & 3];
        c.classname_count = 3;
    }
    if (data[1] & 1) c.num_samples = 2;
    if (data[1] & 2) c.need_caption = false;
    const char *path = fuzz_file(data + 2, size - 2);
    Dataset d = data[1] & 64 ? open_json(path, &c) : dataset_open(path, &c, 1);
    read_all_samples(&d);
    if (c.classname_count) dataset_check_labels(&d, "a list");
    dataset_free(&d);
}
