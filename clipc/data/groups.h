// Several captions of an image: which samples of a data set have the same image, and which images and
// captions are right for each other in retrieval.
#ifndef CLIPC_GROUPS_H
#define CLIPC_GROUPS_H

#include "clipc/data/sample.h" // sample_image_key

typedef struct {
    int64_t *first; // (images) the first sample with this image
    int *image_of;  // (samples) number of its image, counted in the order of the samples
    int *group_of;  // (samples) its image and caption are right for those of the same number
    int images;
} ImageGroups;

typedef struct {
    uint64_t key;
    int64_t index;
} KeyedSample;

static inline int compare_keyed_samples(const void *a, const void *b) {
    const KeyedSample *x = (const KeyedSample *)a, *y = (const KeyedSample *)b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

// numbers (n): equal for equal keys, counted from 0 in the order in which the keys come. Returns how many.
static inline int number_keys(int *numbers, const uint64_t *keys, int64_t n) {
    KeyedSample *sorted = (KeyedSample *)malloc_check((size_t)n * sizeof *sorted);
    int64_t *first = (int64_t *)malloc_check((size_t)n * sizeof *first); // the first sample with this key
    int count = 0;
    for (int64_t i = 0; i < n; i++) {
        sorted[i].key = keys[i];
        sorted[i].index = i;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, compare_keyed_samples);
    for (int64_t i = 0; i < n; i++)
        first[sorted[i].index] =
            i > 0 && sorted[i].key == sorted[i - 1].key ? first[sorted[i - 1].index] : sorted[i].index;
    for (int64_t i = 0; i < n; i++) numbers[i] = first[i] == i ? count++ : numbers[first[i]];
    free(first);
    free(sorted);
    return count;
}

// What makes samples right for each other: with --positives-key cls or COLUMN their class or the text of this
// column, where they have one; else the image.
static inline uint64_t sample_group_key(const Dataset *d, int64_t index) {
    const DataSample *s = &d->samples[index];
    const PositivesKey kind = positives_key(&d->config);
    const bool text = sample_type(d, s) == DATASET_CSV && s->name >= 0;
    if ((kind == KEY_CLASS && (s->label >= 0 || text)) || (kind == KEY_COLUMN && text))
        return sample_key(d, index, "", 0);
    return sample_image_key(d, index);
}

static inline ImageGroups image_groups(const Dataset *d) {
    const size_t n = (size_t)d->count;
    uint64_t *keys = (uint64_t *)malloc_check(n * sizeof *keys);
    ImageGroups g = {(int64_t *)malloc_check(n * sizeof(int64_t)), (int *)malloc_check(n * sizeof(int)),
        (int *)malloc_check(n * sizeof(int)), 0};
    for (int64_t i = 0; i < d->count; i++) keys[i] = sample_group_key(d, i);
    number_keys(g.group_of, keys, d->count);
    // an image in two groups is one image in each
    for (int64_t i = 0; i < d->count; i++)
        keys[i] = rand_mix(sample_image_key(d, i) + (uint64_t)g.group_of[i] * 0x9e3779b97f4a7c15ull);
    const int images = number_keys(g.image_of, keys, d->count);
    for (int64_t i = 0; i < d->count; i++)
        if (g.image_of[i] == g.images) g.first[g.images++] = i;
    assert(g.images == images);
    (void)images;
    free(keys);
    return g;
}

static inline void image_groups_free(ImageGroups *g) {
    free(g->first);
    free(g->image_of);
    free(g->group_of);
    memset(g, 0, sizeof *g);
}

// How many other samples with its image a sample meets on average in a step of `step` samples, drawn at
// random.
static inline double images_met_again(const Dataset *d, int64_t step) {
    const int64_t n = d->count;
    if (n < 2) return 0;
    uint64_t *keys = (uint64_t *)malloc_check((size_t)n * sizeof *keys);
    int *image_of = (int *)malloc_check((size_t)n * sizeof *image_of);
    for (int64_t i = 0; i < n; i++) keys[i] = sample_image_key(d, i);
    const int images = number_keys(image_of, keys, n);
    int64_t *samples = (int64_t *)calloc_check((size_t)images, sizeof *samples), others = 0;
    for (int64_t i = 0; i < n; i++) samples[image_of[i]]++;
    for (int i = 0; i < images; i++) others += samples[i] * (samples[i] - 1);
    free(samples);
    free(image_of);
    free(keys);
    return (double)others / (double)n * (double)(min_i64(step, n) - 1) / (double)(n - 1);
}

#endif
