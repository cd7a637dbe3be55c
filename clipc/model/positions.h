// Position embeddings for another number of positions, as open_clip resizes them when a model is taken to
// other pictures (--force-image-size) or captions: open_clip's resize_pos_embed and resize_text_pos_embed,
// which call torch.nn.functional.interpolate.
#ifndef CLIPC_POSITIONS_H
#define CLIPC_POSITIONS_H

#include "clipc/base/utils.h"     // malloc_check
#include "clipc/data/transform.h" // bicubic

#include <math.h>

// The taps of one output position i of `to` on an axis of `from`: their weights (widened by from/to when
// shrinking, those outside dropped, the rest summing to 1), the first tap and their number. weight holds
// positions_most_taps() numbers.
static inline int positions_most_taps(int to, int from) {
    return (int)ceil(4 * fmax(1, (double)from / to)) + 2;
}

static inline int positions_taps(double *weight, int *first, int i, int to, int from) {
    const double scale = (double)from / to, wide = fmax(1, scale), centre = scale * (i + 0.5);
    const int low = (int)fmax(0, floor(centre - 2 * wide + 0.5));
    const int high = (int)fmin(from, floor(centre + 2 * wide + 0.5));
    double sum = 0;
    for (int j = low; j < high; j++) sum += weight[j - low] = bicubic((j - centre + 0.5) / wide);
    for (int j = low; j < high; j++) weight[j - low] /= sum;
    *first = low;
    return high - low;
}

// out (1 + to_grid², C) from in (1 + from_grid², C): row 0, the class token's, is copied; the others, a
// square of positions, are interpolated bicubically with antialiasing, corners not aligned. Equal grids: a
// copy.
static inline void positions_resize_image(float *out, int to_grid, const float *in, int from_grid, int C) {
    const size_t width = (size_t)C;
    if (to_grid == from_grid) {
        memcpy(out, in, ((size_t)to_grid * (size_t)to_grid + 1) * width * sizeof(float));
        return;
    }
    memcpy(out, in, width * sizeof(float));
    const size_t most = (size_t)positions_most_taps(to_grid, from_grid);
    double *wy = (double *)malloc_check(most * sizeof *wy);
    double *wx = (double *)malloc_check(most * sizeof *wx);
    double *sum = (double *)malloc_check(width * sizeof *sum);
    for (int y = 0; y < to_grid; y++)
        for (int x = 0; x < to_grid; x++) {
            int top, left;
            const int rows = positions_taps(wy, &top, y, to_grid, from_grid);
            const int columns = positions_taps(wx, &left, x, to_grid, from_grid);
            for (size_t c = 0; c < width; c++) sum[c] = 0;
            for (int j = 0; j < rows * columns; j++) {
                const float *row = in + (1 + (size_t)(top + j / columns) * (size_t)from_grid +
                                            (size_t)(left + j % columns)) *
                                            width;
                const double weight = wy[j / columns] * wx[j % columns];
                for (size_t c = 0; c < width; c++) sum[c] += weight * row[c];
            }
            float *to = out + (1 + (size_t)y * (size_t)to_grid + (size_t)x) * width;
            for (size_t c = 0; c < width; c++) to[c] = (float)sum[c];
        }
    free(sum);
    free(wx);
    free(wy);
}

// out (to_length, C) from in (from_length, C): linear, no antialiasing, corners not aligned. Equal lengths: a
// copy.
static inline void positions_resize_text(float *out, int to_length, const float *in, int from_length, int C) {
    const size_t width = (size_t)C;
    for (int i = 0; i < to_length; i++) {
        const double at = fmax(0, (double)from_length / to_length * (i + 0.5) - 0.5);
        const int below = (int)at, above = below + 1 < from_length ? below + 1 : below;
        const double share = at - below;
        const float *a = in + (size_t)below * width, *b = in + (size_t)above * width;
        for (size_t c = 0; c < width; c++)
            out[(size_t)i * width + c] = (float)((1 - share) * a[c] + share * b[c]);
    }
}

#endif
