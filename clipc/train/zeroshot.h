// Zero-shot classification (Radford et al. 2021, section 3.1): a class is the mean of what the text tower
// says of its name in many sentences, and an image belongs to the class it lies closest to.
#ifndef CLIPC_ZEROSHOT_H
#define CLIPC_ZEROSHOT_H

#include "clipc/data/dataset.h"    // StringList, compare_strings
#include "clipc/math/matmul.h"     // Kernels, matmul_nt
#include "clipc/train/retrieval.h" // count_ahead
#include "clipc/data/sample.h"     // lines_read, templates_read, template_fill

#define ZEROSHOT_SCALE 100 // logits are this times cosines, as in open_clip; only their order counts

// ---------------------------------------------------------------- class names

// Class names, line i that of label i - 1. Equal names are admitted with a warning: no text can tell such
// classes apart.
static inline StringList classnames_read(const char *path) {
    StringList names = lines_read(path, "class names");
    char **sorted = (char **)malloc_check(names.count * sizeof *sorted);
    memcpy(sorted, names.list, names.count * sizeof *sorted);
    qsort(sorted, names.count, sizeof *sorted, compare_strings);
    const char *twice = NULL;
    int repeated = 0;
    for (size_t i = 1; i < names.count; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0) {
            twice = sorted[i];
            repeated++;
        }
    if (twice)
        warn("%s: %d class names stand there before, such as '%s'; of equal names the first wins", path,
            repeated, twice);
    free(sorted);
    return names;
}

// Class names from those of folders: golden_retriever becomes "golden retriever".
static inline StringList classnames_from_folders(char *const *folders, int count) {
    StringList names = {NULL, 0, 0};
    for (int i = 0; i < count; i++) {
        string_list_add(&names, folders[i]);
        for (char *c = names.list[i]; *c; c++)
            if (*c == '_') *c = ' ';
    }
    return names;
}

// ---------------------------------------------------------------- the classifier

// Adds features (rows,E) of captions to the sums (C,E) of their classes: caption i belongs to class i /
// templates, and `first` is the index of the first row's.
static inline void classifier_add(
    double *sums, const float *features, int64_t first, int rows, int templates, int E) {
    for (int i = 0; i < rows; i++) {
        double *sum = sums + (first + i) / templates * E;
        for (int e = 0; e < E; e++) sum[e] += features[(size_t)i * (size_t)E + (size_t)e];
    }
}

// classifier (C,E): the sums (C,E) at unit length, which is the mean over the templates at unit length
static inline void classifier_normalise(float *classifier, const double *sums, int C, int E) {
    for (int c = 0; c < C; c++, sums += E, classifier += E) {
        double square = 0;
        for (int e = 0; e < E; e++) square += sums[e] * sums[e];
        for (int e = 0; e < E; e++) classifier[e] = (float)(sums[e] / sqrt(square));
    }
}

// logits (n,C) = scale * image (n,E) · classifier (C,E)ᵀ
static inline void zeroshot_logits(const Kernels *kernels, float *logits, const float *image,
    const float *classifier, int n, int C, int E, float scale) {
    matmul_nt(kernels, logits, image, classifier, n, C, E);
    for (size_t i = 0; i < (size_t)n * (size_t)C; i++) logits[i] *= scale;
}

// The rank from 0 of a label among C logits; of equal logits the lower class comes first (torch's topk leaves
// that open).
static inline int zeroshot_rank(const float *logits, int C, int label) {
    return count_ahead(logits, C, logits[label], label);
}

#endif
