// Tables of images and captions.
#include "dev/fuzz/fuzz.h"

#include "dev/fuzz/samples.h"

static void fuzz_one(const uint8_t *data, size_t size) {
    static const char separators[] = {0, 0, ',', '\t', ';', ' ', '"', 'a'};
    static const char *const keys[] = {NULL, "image", "cls", "title"};
    static const char *const names[4][3] = {
        {"cat", "Big dog", ""}, {"1", "0", "2"}, {"tench", "goldfish", "x"}, {"0", "1", "2"}};
    if (size < 2) return;
    DatasetConfig c = dataset_config_default();
    c.type = DATASET_CSV;
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
    Dataset d = dataset_open(fuzz_file(data + 2, size - 2), &c, 1);
    read_all_samples(&d);
    if (c.classname_count) dataset_check_labels(&d, "a list");
    dataset_free(&d);
}
