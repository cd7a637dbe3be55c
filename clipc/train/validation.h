// Validation on captioned images: the loss, and retrieval, where an image may have several captions.
#ifndef CLIPC_VALIDATION_H
#define CLIPC_VALIDATION_H

#include "clipc/data/groups.h"    // ImageGroups
#include "clipc/math/loss.h"      // contrastive_loss
#include "clipc/train/evaluate.h" // Evaluation, EvaluationPass
#include "clipc/train/metrics.h"  // group_metrics

// Captioned images.
typedef struct {
    char name[64]; // "" or that of NAME=PATH
    Dataset data;
} ValidationSet;

typedef struct {
    double loss; // mean over the samples, each in its batch
    RetrievalMetrics retrieval;
    int64_t samples, images; // pairs that could be read, and how many different images they have
} ValidationMetrics;

// ---------------------------------------------------------------- encoding

// Images and captions as the model encodes them; an image with several captions is there once.
typedef struct {
    float *image;                  // (images,E)
    float *text;                   // (pairs,E)
    int *image_of;                 // (pairs) row of its image
    int *image_group, *text_group; // (images), (pairs) see RetrievalSet
    int64_t *indices, *labels;     // (pairs) sample of the data set; -1: without a label
    int images, pairs;
} EncodedPairs;

// For at most `images` images of `pairs` pairs.
static inline EncodedPairs pairs_create(size_t images, size_t pairs, int E) {
    const EncodedPairs p = {(float *)malloc_check(images * (size_t)E * sizeof(float)),
        (float *)malloc_check(pairs * (size_t)E * sizeof(float)), (int *)malloc_check(pairs * sizeof(int)),
        (int *)malloc_check(images * sizeof(int)), (int *)malloc_check(pairs * sizeof(int)),
        (int64_t *)malloc_check(pairs * sizeof(int64_t)), (int64_t *)malloc_check(pairs * sizeof(int64_t)), 0,
        0};
    return p;
}

static inline void pairs_free(EncodedPairs *p) {
    free(p->image);
    free(p->text);
    free(p->image_of);
    free(p->image_group);
    free(p->text_group);
    free(p->indices);
    free(p->labels);
}

// Encodes every image with its caption. False after Ctrl-C.
static inline bool pairs_encode_both(
    EncodedPairs *p, const Evaluation *e, const Dataset *data, const ImageGroups *g) {
    const size_t E = (size_t)e->clip->config.embed_dim;
    EvaluationPass pass = pass_start(e, data, PASS_PAIRS, "validation");
    for (int n; (n = pass_next(&pass, p->image + (size_t)p->pairs * E, p->text + (size_t)p->pairs * E)) > 0;)
        for (int i = 0; i < n; i++, p->pairs++) {
            p->indices[p->pairs] = pass.batch.indices[i];
            p->labels[p->pairs] = pass.batch.labels[i];
            p->image_of[p->pairs] = p->pairs;
            p->image_group[p->pairs] = p->text_group[p->pairs] = g->group_of[pass.batch.indices[i]];
        }
    p->images = p->pairs;
    return pass_end(&pass);
}

// Encodes every image once. row_of (g->images): its row in p->image, -1 where it cannot be read.
static inline bool pairs_encode_images(
    EncodedPairs *p, int *row_of, const Evaluation *e, const Dataset *data, const ImageGroups *g) {
    const size_t E = (size_t)e->clip->config.embed_dim;
    Dataset images = dataset_subset(data, g->first, g->images);
    images.config.need_caption = false;
    EvaluationPass pass = pass_start(e, &images, PASS_IMAGES, "images");
    for (int i = 0; i < g->images; i++) row_of[i] = -1;
    for (int n; (n = pass_next(&pass, p->image + (size_t)p->images * E, NULL)) > 0;)
        for (int i = 0; i < n; i++, p->images++) row_of[pass.batch.indices[i]] = p->images;
    const bool whole = pass_end(&pass);
    dataset_free(&images);
    return whole;
}

// Encodes the captions of the images that could be read.
static inline bool pairs_encode_captions(
    EncodedPairs *p, const int *row_of, const Evaluation *e, const Dataset *data, const ImageGroups *g) {
    const size_t E = (size_t)e->clip->config.embed_dim;
    int64_t *list = (int64_t *)malloc_check((size_t)data->count * sizeof *list), n = 0;
    for (int64_t i = 0; i < data->count; i++)
        if (row_of[g->image_of[i]] >= 0) list[n++] = i;
    if (n < data->count)
        warn("%s: %lld of %lld captions are left out with the images that cannot be read",
            data->files[0].path, (long long)(data->count - n), (long long)data->count);
    Dataset captions = dataset_subset(data, list, n);
    EvaluationPass pass = pass_start(e, &captions, PASS_CAPTIONS, "captions");
    for (int batch; (batch = pass_next(&pass, NULL, p->text + (size_t)p->pairs * E)) > 0;)
        for (int i = 0; i < batch; i++, p->pairs++) {
            const int64_t sample = list[pass.batch.indices[i]];
            p->indices[p->pairs] = sample;
            p->labels[p->pairs] = pass.batch.labels[i];
            p->image_of[p->pairs] = row_of[g->image_of[sample]];
            p->text_group[p->pairs] = g->group_of[sample];
        }
    const bool whole = pass_end(&pass);
    dataset_free(&captions);
    free(list);
    return whole;
}

// Removes images of which no caption could be read, and sets the groups of the others.
static inline void pairs_keep_captioned(EncodedPairs *p, int E) {
    int *to = (int *)malloc_check((size_t)p->images * sizeof *to), kept = 0;
    for (int i = 0; i < p->images; i++) p->image_group[i] = -1;
    for (int i = 0; i < p->pairs; i++) p->image_group[p->image_of[i]] = p->text_group[i];
    for (int i = 0; i < p->images; i++) {
        to[i] = kept;
        if (p->image_group[i] < 0) continue;
        memmove(
            p->image + (size_t)kept * (size_t)E, p->image + (size_t)i * (size_t)E, (size_t)E * sizeof(float));
        p->image_group[kept++] = p->image_group[i];
    }
    for (int i = 0; i < p->pairs; i++) p->image_of[i] = to[p->image_of[i]];
    p->images = kept;
    free(to);
}

// Encodes the pairs of a data set; where images have several captions, each image once. False after Ctrl-C.
static inline bool pairs_encode(EncodedPairs *p, const Evaluation *e, const Dataset *data) {
    ImageGroups g = image_groups(data);
    *p = pairs_create((size_t)g.images, (size_t)data->count, e->clip->config.embed_dim);
    bool whole;
    if (g.images == data->count) whole = pairs_encode_both(p, e, data, &g);
    else {
        int *row_of = (int *)malloc_check((size_t)g.images * sizeof *row_of);
        whole = pairs_encode_images(p, row_of, e, data, &g) && pairs_encode_captions(p, row_of, e, data, &g);
        if (whole) pairs_keep_captioned(p, e->clip->config.embed_dim);
        free(row_of);
    }
    image_groups_free(&g);
    return whole;
}

// ---------------------------------------------------------------- measuring

// image (pairs,E): that of each pair
static inline float *pairs_images(const EncodedPairs *p, int E) {
    float *image = (float *)malloc_check((size_t)p->pairs * (size_t)E * sizeof(float));
    pick_rows(image, p->image, p->image_of, p->pairs, E);
    return image;
}

// The mean over the pairs of open_clip's loss, each pair among the others of its batch: other captions of its
// image count as wrong there, as in training.
static inline double pairs_loss(const Evaluation *e, const EncodedPairs *p, const float *image) {
    const int E = e->clip->config.embed_dim;
    double loss = 0;
    for (int first = 0; first < p->pairs; first += e->loader.batch_size) {
        const int n = (int)min_i64(e->loader.batch_size, p->pairs - first);
        const size_t at = (size_t)first * (size_t)E;
        loss += n * contrastive_loss(e->kernels, NULL, NULL, NULL, image + at, p->text + at, NULL,
                        POSITIVES_DIAGONAL, n, E, clip_logit_scale(e->clip), 0);
    }
    return loss / p->pairs;
}

// open_clip's evaluation on captioned images: the loss in batches of training's size (the last one may be
// smaller), and retrieval over the whole set, for which all features are held: 12 N E bytes. All captions of
// an image are right for it (see sample_group_key). The features are saved to `features_path` unless it is
// NULL. False, and *out unchanged, after Ctrl-C.
static inline bool evaluate_validation(
    const Evaluation *e, const Dataset *data, const char *features_path, ValidationMetrics *out) {
    const int E = e->clip->config.embed_dim;
    EncodedPairs p;
    if (dataset_count(data) > 1 << 30)
        die(EXIT_USAGE, "%s: %lld pairs are too many to validate on; use --val-num-samples",
            data->files[0].path, (long long)dataset_count(data));
    const bool whole = pairs_encode(&p, e, data);
    if (whole) {
        const RetrievalSet set = {p.image, p.text, p.image_group, p.text_group, p.images, p.pairs, E};
        float *image = pairs_images(&p, E);
        bool labelled = false;
        for (int i = 0; i < p.pairs; i++) labelled |= p.labels[i] >= 0;
        out->samples = p.pairs;
        out->images = p.images;
        out->loss = pairs_loss(e, &p, image);
        if (!isfinite(out->loss))
            die(EXIT_RUNTIME,
                "the validation loss is not finite (logit scale %g); take an earlier checkpoint, or lower "
                "--lr",
                clip_logit_scale(e->clip));
        out->retrieval = group_metrics(e->kernels, &set, e->retrieval_chunk);
        if (features_path)
            save_features(features_path, e->clip->config.name, clip_logit_scale(e->clip), image, p.text,
                p.indices, labelled ? p.labels : NULL, p.pairs, E);
        free(image);
    }
    pairs_free(&p);
    return whole;
}

// ---------------------------------------------------------------- metrics by name

static inline void rank_metric_add(MetricList *m, const char *prefix, const char *set, const RankMetrics *r) {
    metric_add(m, prefix, "mean_rank", set, r->mean_rank);
    metric_add(m, prefix, "median_rank", set, r->median_rank);
    metric_add(m, prefix, "R@1", set, r->R1);
    metric_add(m, prefix, "R@5", set, r->R5);
    metric_add(m, prefix, "R@10", set, r->R10);
}

static inline MetricList validation_metric_list(const ValidationMetrics *v, const char *set) {
    MetricList m;
    m.count = 0;
    metric_add(&m, "", "val_loss", set, v->loss);
    rank_metric_add(&m, "image_to_text_", set, &v->retrieval.image_to_text);
    rank_metric_add(&m, "text_to_image_", set, &v->retrieval.text_to_image);
    metric_add(&m, "", "mean_recall", set, mean_recall(&v->retrieval));
    return m;
}

#endif
