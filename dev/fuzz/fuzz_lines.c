// Texts that people write: class names, class folders, templates, lists of shards in braces, augmentations.
#define MOST_SHARDS 10000 // a million names take seconds under AddressSanitizer
#include "dev/fuzz/fuzz.h"

#include <glob.h>

// Patterns are for folders, which the input does not hold.
static int no_match(const char *pattern, glob_t *found) {
    memset(found, 0, sizeof *found);
    return pattern[0] ? GLOB_NOMATCH : GLOB_ABORTED;
}
#define glob(pattern, flags, on_error, found) no_match(pattern, found)

#include "clipc/data/sample.h"

static void read_templates(const char *path) {
    StringList s = templates_read(path);
    char *caption = NULL;
    size_t capacity = 0;
    for (size_t i = 0; i < s.count; i++) template_fill(&caption, &capacity, s.list[i], i % 2 ? "{}" : "cat");
    free(caption);
    string_list_free(&s);
}

// The names of the classes, which may be those of class folders, too.
static void read_classnames(const char *path) {
    StringList s = classnames_read(path);
    StringList names = classnames_from_folders("folder", &s);
    string_list_free(&names);
    string_list_free(&s);
}

// The first `count` entries are class folders, the others the classes.
static void match_folders(const char *path, size_t count) {
    StringList s = entries_read(path, "class names");
    count %= s.count;
    int *labels = (int *)malloc_check(s.count * sizeof *labels);
    StringList folders = {s.list, count, 0};
    const ClassList classes = {(const char *const *)s.list + count, (int)(s.count - count)};
    string_list_sort(&folders);
    if (count) folders_label(labels, "folder", &folders, &classes);
    for (size_t i = 0; i < folders.count; i++)
        if (labels[i] < 0 || labels[i] >= classes.count) fuzz_fault("a folder has the label %d", labels[i]);
    free(labels);
    string_list_free(&s);
}

static void read_sources(const char *text) {
    StringList parts = parts_split(text);
    for (size_t i = 0; i < parts.count; i++) {
        is_shard_name(parts.list[i]);
        StringList shards = shard_list(parts.list[i]);
        for (size_t k = 0; k < shards.count; k++) fuzz_use(shards.list[k], strlen(shards.list[k]));
        string_list_free(&shards);
    }
    string_list_free(&parts);
}

static void read_augmentation(const char *text) {
    AugmentConfig a;
    char error[256];
    if (augment_parse(&a, text, error)) fuzz_use(&a, sizeof a);
    else fuzz_use(error, strlen(error));
}

static void fuzz_one(const uint8_t *data, size_t size) {
    if (size < 2) return;
    char *text = fuzz_string(data + 1, size - 1);
    const char *path = fuzz_file(data + 1, size - 1);
    switch (data[0] % 5) {
    case 0: read_templates(path); break;
    case 1: read_classnames(path); break;
    case 2: match_folders(fuzz_file(data + 2, size - 2), data[1]); break;
    case 3: read_sources(text); break;
    default: read_augmentation(text);
    }
    free(text);
}
