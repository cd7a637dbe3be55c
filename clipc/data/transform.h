// From a decoded image to the square that the image tower takes: resize, crop or pad, and the augmentation of
// training.
//
// Equal to the byte to what open_clip does with Pillow 13.0 and torchvision on an image that was converted to
// RGB first. The resize is antialiased: two passes, 8 bits between them, weights with 22 fraction bits.
// Build without -ffast-math.
//
// Sources: Pillow's Image.resize and ImageEnhance, torchvision's RandomResizedCrop, ColorJitter, Grayscale;
// open_clip's transform.py.
#ifndef CLIPC_TRANSFORM_H
#define CLIPC_TRANSFORM_H

#include "clipc/data/image.h"

#include <assert.h>
#include <math.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

// These numbers are stored in the header of the weight file.
typedef enum { INTERPOLATION_BICUBIC = 0, INTERPOLATION_BILINEAR = 1 } Interpolation;
typedef enum {
    RESIZE_SHORTEST = 0, // the short side to the size, then a centre crop
    RESIZE_SQUASH = 1,   // both sides to the size
    RESIZE_LONGEST = 2   // the long side to the size, then padded with black
} ResizeMode;

// ---------------------------------------------------------------- resize

#define RESAMPLE_BITS 22

// The cubic convolution kernel (Keys 1981, eq. 15) with a = -1/2: that of Pillow, and of torch where it
// antialiases (its other interpolation has -3/4).
static inline double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static inline double bilinear(double x) { return fmax(0, 1 - fabs(x)); }

// One axis of a resize: the inputs and weights of which each output pixel is the sum.
typedef struct {
    int64_t size_in, size_out; // pixels along the axis
    int64_t start;             // the outputs wanted are start … start + count - 1
    int count;
    int low, high;   // which read the inputs low … high - 1
    int most;        // the most inputs of one output pixel
    int *first;      // (count) first input of an output pixel
    int *taps;       // (count) number of its inputs
    int32_t *weight; // (count, most), RESAMPLE_BITS fraction bits, sum 1
} ResizeAxis;

static inline void axis_init(
    ResizeAxis *axis, int64_t size_in, int64_t size_out, int64_t start, int count, Interpolation filter) {
    double scale = (double)size_in / (double)size_out;
    double widening = fmax(scale, 1); // of the filter, when shrinking: antialiasing
    double support = (filter == INTERPOLATION_BICUBIC ? 2 : 1) * widening;
    int most = (int)fmin((double)size_in, ceil(support) * 2 + 1);
    axis->size_in = size_in;
    axis->size_out = size_out;
    axis->start = start;
    axis->count = count;
    axis->most = most;
    axis->first = (int *)malloc_check((size_t)count * sizeof(int));
    axis->taps = (int *)malloc_check((size_t)count * sizeof(int));
    axis->weight = (int32_t *)malloc_check((size_t)count * (size_t)most * sizeof(int32_t));
    double *w = (double *)malloc_check((size_t)most * sizeof(double));
    for (int o = 0; o < count; o++) {
        double center = ((double)(start + o) + 0.5) * scale, total = 0;
        int first = (int)fmax(0, center - support + 0.5);
        int taps = (int)fmin((double)size_in, center + support + 0.5) - first;
        for (int i = 0; i < taps; i++) {
            double x = (i + first - center + 0.5) * (1 / widening);
            w[i] = filter == INTERPOLATION_BICUBIC ? bicubic(x) : bilinear(x);
            total += w[i]; // in this order, which decides the last bit
        }
        for (int i = 0; i < taps; i++) // rounds half away from zero
            axis->weight[(size_t)o * (size_t)most + (size_t)i] =
                (int32_t)(w[i] / total * (1 << RESAMPLE_BITS) + (w[i] / total < 0 ? -0.5 : 0.5));
        axis->first[o] = first;
        axis->taps[o] = taps;
    }
    free(w);
    axis->low = axis->first[0];
    axis->high = axis->first[count - 1] + axis->taps[count - 1];
}

static inline void axis_free(ResizeAxis *axis) {
    free(axis->first);
    free(axis->taps);
    free(axis->weight);
}

// out (n) = the weighted sum of `taps` lines of n bytes, `stride` bytes apart, rounded and clamped to 0 …
// 255. A resize spends most of its time here. Integers: every compiler and instruction set gives the same
// result.
static inline void weighted_sum_plain(
    uint8_t *out, const uint8_t *in, size_t stride, size_t n, const int32_t *weight, int taps) {
    enum { BLOCK = 256 }; // the sums stay in the L1 cache
    int32_t sum[BLOCK];
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start;
        if (m > BLOCK) m = BLOCK;
        for (size_t i = 0; i < m; i++) sum[i] = 1 << (RESAMPLE_BITS - 1);
        for (int k = 0; k < taps; k++) {
            const uint8_t *line = in + (size_t)k * stride + start;
            int32_t w = weight[k];
            for (size_t i = 0; i < m; i++) sum[i] += w * line[i];
        }
        for (size_t i = 0; i < m; i++) {
            int32_t value = sum[i] >> RESAMPLE_BITS;
            out[start + i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
// The same for the first n / 32 * 32 bytes, 32 sums in registers. Returns how many.
__attribute__((target("avx2"))) static inline size_t weighted_sum_avx2(
    uint8_t *out, const uint8_t *in, size_t stride, size_t n, const int32_t *weight, int taps) {
    size_t start = 0;
    for (; start + 32 <= n; start += 32) {
        const uint8_t *line = in + start;
        __m256i sum[4];
        for (int i = 0; i < 4; i++) sum[i] = _mm256_set1_epi32(1 << (RESAMPLE_BITS - 1));
        for (int k = 0; k < taps; k++, line += stride) {
            const __m256i w = _mm256_set1_epi32(weight[k]);
            for (int i = 0; i < 4; i++)
                sum[i] = _mm256_add_epi32(
                    sum[i], _mm256_mullo_epi32(w, _mm256_cvtepu8_epi32(_mm_loadl_epi64(
                                                      (const __m128i *)(const void *)(line + 8 * i)))));
        }
        for (int i = 0; i < 4; i++) sum[i] = _mm256_srai_epi32(sum[i], RESAMPLE_BITS);
        // packing saturates, but works on halves of a register: 0 4 1 5 2 6 3 7 in units of 4 bytes
        const __m256i packed =
            _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
        const __m256i ordered =
            _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(void *)(out + start), ordered);
    }
    return start;
}
#endif

static inline void weighted_sum(
    uint8_t *out, const uint8_t *in, size_t stride, size_t n, const int32_t *weight, int taps) {
    size_t done = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx2")) done = weighted_sum_avx2(out, in, stride, n, weight, taps);
#endif
    if (done < n) weighted_sum_plain(out + done, in + done, stride, n - done, weight, taps);
}

// out (count, n): lines of n bytes from lines of n bytes; `in` points to line axis->low.
static inline void pass_down(
    uint8_t *out, const uint8_t *in, size_t stride, size_t n, const ResizeAxis *axis) {
    for (int o = 0; o < axis->count; o++)
        weighted_sum(out + (size_t)o * n, in + (size_t)(axis->first[o] - axis->low) * stride, stride, n,
            axis->weight + (size_t)o * (size_t)axis->most, axis->taps[o]);
}

// out (columns, rows, 3) = in (rows, columns, 3), transposed. Copies four bytes at a time: the next pixel
// overwrites the fourth. In the last column, which has no next pixel, three.
static inline void transpose_pixels(
    uint8_t *out, size_t out_stride, const uint8_t *in, size_t in_stride, int rows, int columns) {
    for (int x = 0; x < columns - 1; x++)
        for (int y = 0; y < rows; y++)
            memcpy(
                out + (size_t)x * out_stride + (size_t)y * 3, in + (size_t)y * in_stride + (size_t)x * 3, 4);
    for (int y = 0, x = columns - 1; y < rows; y++)
        memcpy(out + (size_t)x * out_stride + (size_t)y * 3, in + (size_t)y * in_stride + (size_t)x * 3, 3);
}

// out (rows, count, 3) from rows of pixels; `in` points to column axis->low of the first row. A chunk of
// rows at a time is transposed, so that neighbouring bytes have the same weight, as in pass_down.
static inline void pass_across(
    uint8_t *out, const uint8_t *in, size_t stride, int rows, const ResizeAxis *axis) {
    enum { CHUNK = 32 };
    int most = min_int(rows, CHUNK), columns = axis->high - axis->low;
    size_t out_stride = (size_t)axis->count * 3;
    uint8_t *transposed = (uint8_t *)malloc_check((size_t)columns * (size_t)most * 3);
    uint8_t *sums = (uint8_t *)malloc_check((size_t)axis->count * (size_t)most * 3);
    for (int y = 0; y < rows; y += most) {
        int chunk = min_int(rows - y, most);
        size_t n = (size_t)chunk * 3;
        transpose_pixels(transposed, n, in + (size_t)y * stride, stride, chunk, columns);
        pass_down(sums, transposed, n, n, axis);
        transpose_pixels(out + (size_t)y * out_stride, out_stride, sums, n, axis->count, chunk);
    }
    free(transposed);
    free(sums);
}

// out (down->count, across->count, 3): the wanted part of the resized image
//   rgb: (down->size_in, across->size_in, 3), its rows `stride` bytes apart
// The order of the two passes matters, because of the rounding in between: Pillow 13.0 resizes the columns
// first if the height shrinks by more than twice as many pixels as the width (negative where it grows).
static inline void resize_pixels(
    uint8_t *out, const uint8_t *rgb, size_t stride, const ResizeAxis *across, const ResizeAxis *down) {
    int64_t shrink_down = down->size_in - down->size_out;
    int64_t shrink_across = across->size_in - across->size_out;
    const uint8_t *in = rgb + (size_t)down->low * stride + (size_t)across->low * 3; // only what is read
    int columns = across->high - across->low, rows = down->high - down->low;
    if (shrink_down > 0 && shrink_down > 2 * shrink_across) {
        size_t n = (size_t)columns * 3;
        uint8_t *between = (uint8_t *)malloc_check((size_t)down->count * n);
        pass_down(between, in, stride, n, down);
        pass_across(out, between, n, down->count, across);
        free(between);
    } else {
        size_t n = (size_t)across->count * 3;
        uint8_t *between = (uint8_t *)malloc_check((size_t)rows * n);
        pass_across(between, in, stride, rows, across);
        pass_down(out, between, n, n, down);
        free(between);
    }
}

// The offset of a centred window of `size` in a line of `length` pixels: rounded half to even where the
// line is longer, and negative, -⌊(size-length)/2⌋ pixels of padding, where it is shorter.
static inline int64_t window_offset(int64_t length, int size) {
    return length >= size ? (int64_t)nearbyint((double)(length - size) / 2) : -((size - length) / 2);
}

// Resizes (height_in, width_in, 3) to height × width and takes the middle size × size of it, padded with
// black.
//   out (3,size,size)
static inline void resize_to_planes(uint8_t *out, const uint8_t *rgb, size_t stride, int width_in,
    int height_in, int64_t width, int64_t height, int size, Interpolation filter) {
    int64_t left = window_offset(width, size), top = window_offset(height, size);
    int columns = (int)min_i64(width, size), rows = (int)min_i64(height, size);
    size_t plane = (size_t)size * (size_t)size;
    ResizeAxis across, down;
    axis_init(&across, width_in, width, max_i64(left, 0), columns, filter);
    axis_init(&down, height_in, height, max_i64(top, 0), rows, filter);
    uint8_t *pixels = (uint8_t *)malloc_check((size_t)columns * (size_t)rows * 3), *from = pixels;
    resize_pixels(pixels, rgb, stride, &across, &down);
    if (columns < size || rows < size) memset(out, 0, 3 * plane);
    for (int y = 0; y < rows; y++) {
        uint8_t *to = out + (size_t)(y + max_i64(-top, 0)) * (size_t)size + max_i64(-left, 0);
        for (int x = 0; x < columns; x++, to++, from += 3) {
            to[0] = from[0];
            to[plane] = from[1];
            to[2 * plane] = from[2];
        }
    }
    free(pixels);
    axis_free(&across);
    axis_free(&down);
}

// The evaluation transform of open_clip.
//   out (3,size,size) 0 … 255; size 1 …
// IMAGE_TOO_THIN: "longest" would leave no pixel of the short side.
static inline ImageStatus image_eval_transform(
    uint8_t *out, const Image *image, int size, Interpolation filter, ResizeMode mode) {
    assert(size >= 1 && image->width >= 1 && image->height >= 1);
    int64_t w = image->width;
    int64_t h = image->height;
    int64_t width = size;
    int64_t height = size;
    if (mode == RESIZE_SHORTEST) { // the long side is cut to an integer, not rounded
        if (w <= h) height = (int64_t)((double)(size * h) / (double)w);
        else width = (int64_t)((double)(size * w) / (double)h);
    } else if (mode == RESIZE_LONGEST) { // round half to even
        double ratio = fmax((double)h / size, (double)w / size);
        width = (int64_t)nearbyint((double)w / ratio);
        height = (int64_t)nearbyint((double)h / ratio);
        if (width < 1 || height < 1) return IMAGE_TOO_THIN;
    }
    resize_to_planes(
        out, image->rgb, (size_t)w * 3, image->width, image->height, width, height, size, filter);
    return IMAGE_OK;
}

// The box (top, left, height, width), which is inside the image, resized to size × size. What is outside of
// the box has no influence.
//   out (3,size,size)
static inline void image_crop_resize(uint8_t *out, const Image *image, int top, int left, int height,
    int width, int size, Interpolation filter) {
    size_t stride = (size_t)image->width * 3;
    resize_to_planes(out, image->rgb + (size_t)top * stride + (size_t)left * 3, stride, width, height, size,
        size, size, filter);
}

// ---------------------------------------------------------------- augmentation: settings

// --aug-cfg, open_clip's AugmentationCfg
typedef struct {
    bool evaluation_transform; // "none": training uses image_eval_transform() too
    double scale[2];           // share of the area that a crop keeps
    double ratio[2];           // its width/height
    // brightness, contrast, saturation: factor 1 ± this; hue: ± this share of the colour circle; 0: off
    double color_jitter[4];
    double color_jitter_prob; // share of the images that are jittered
    double gray_scale_prob;   // share of the images made gray
} AugmentConfig;

// One value of --aug-cfg: "0.9,1.0", "(0.9, 1.0)", "'[0.9,1.0]'". Advances *text past it. Returns how many
// numbers, -1 when it is malformed.
static inline int augment_numbers(double numbers[4], const char **text) {
    char plain[128];
    size_t n = 0;
    int depth = 0, count = 0;
    bool quoted = false;
    for (; **text && (depth > 0 || quoted || !strchr(" \t\n;", **text)); (*text)++) {
        char c = **text;
        if (c == '(' || c == '[') depth++;
        else if (c == ')' || c == ']') depth--;
        else if (c == '"' || c == '\'') quoted = !quoted;
        else if (c != ' ' && n < sizeof plain - 1) plain[n++] = c;
    }
    plain[n] = 0;
    if (depth != 0 || quoted) return -1;
    for (char *at = plain, *end;; at = end + 1) {
        if (count == 4) return -1;
        numbers[count] = strtod(at, &end);
        if (end == at || !isfinite(numbers[count])) return -1;
        count++;
        if (*end == 0) return count;
        if (*end != ',') return -1;
    }
}

static inline bool augment_set(
    AugmentConfig *config, const char *key, const double *v, int count, char error[256]) {
    struct {
        const char *name;
        double *to;
        int least, most; // numbers
        double low, high;
        const char *form;
    } keys[] = {
        {"scale", config->scale, 2, 2, 1e-6, 1,
            "two numbers above 0, at most 1, the smaller first, such as scale=0.9,1.0"},
        {"ratio", config->ratio, 2, 2, 1e-6, 1e6,
            "two numbers above 0, the smaller first, such as ratio=0.75,1.333"},
        {"color_jitter", config->color_jitter, 1, 4, 0, 1e6,
            "brightness,contrast,saturation,hue (hue at most 0.5), such as 0.4,0.4,0.4,0.1"},
        {"color_jitter_prob", &config->color_jitter_prob, 1, 1, 0, 1, "a number from 0 to 1"},
        {"gray_scale_prob", &config->gray_scale_prob, 1, 1, 0, 1, "a number from 0 to 1"},
    };
    int k = 0, n = (int)(sizeof keys / sizeof *keys);
    while (k < n && strcmp(keys[k].name, key) != 0) k++;
    if (k == n) {
        snprintf(error, 256,
            "'%.40s' is not offered; known are scale, ratio, color_jitter, color_jitter_prob, "
            "gray_scale_prob, or none alone",
            key);
        return false;
    }
    bool ok = count >= keys[k].least && count <= keys[k].most &&
              !(keys[k].to == config->color_jitter && count == 2);
    for (int i = 0; i < count && ok; i++) ok = v[i] >= keys[k].low && v[i] <= keys[k].high;
    if (keys[k].most == 2) ok = ok && v[0] <= v[1];
    if (keys[k].to == config->color_jitter && count == 4) ok = ok && v[3] <= 0.5;
    if (!ok) {
        snprintf(error, 256, "%s: give %s", key, keys[k].form);
        return false;
    }
    memcpy(keys[k].to, v, (size_t)count * sizeof *v);
    if (keys[k].to == config->color_jitter && count == 1)
        config->color_jitter[1] = config->color_jitter[2] = v[0]; // as timm reads one number
    return true;
}

// Reads --aug-cfg: "none", or "key=value key=value …" in any of open_clip's spellings. Keys that are not
// given keep their defaults: crops of 0.9 to 1 of the area, ratio 3/4 to 4/3, no jitter, no gray;
// color_jitter without color_jitter_prob jitters 0.8 of the images. false: *error says what is wrong.
static inline bool augment_parse(AugmentConfig *config, const char *text, char error[256]) {
    const AugmentConfig start = {false, {0.9, 1.0}, {3.0 / 4, 4.0 / 3}, {0, 0, 0, 0}, 0.8, 0};
    *config = start;
    if (strcasecmp(text, "none") == 0) {
        config->evaluation_transform = true;
        return true;
    }
    for (;;) {
        char key[64];
        double numbers[4];
        text += strspn(text, " \t\n;");
        if (!*text) return true;
        size_t n = strcspn(text, "= \t\n;");
        snprintf(key, sizeof key, "%.*s", (int)(n < 60 ? n : 60), text);
        if (text[n] != '=') {
            snprintf(error, 256, "'%s' has no value; write %s=…", key, key);
            return false;
        }
        text += n + 1;
        int count = augment_numbers(numbers, &text);
        if (!augment_set(config, key, numbers, count, error)) return false;
    }
}

// Does an image come out the same in each epoch? NULL: no augmentation.
static inline bool augment_is_fixed(const AugmentConfig *a) {
    if (!a) return true;
    const double *jitter = a->color_jitter;
    const bool jitters =
        a->color_jitter_prob != 0 && (jitter[0] != 0 || jitter[1] != 0 || jitter[2] != 0 || jitter[3] != 0);
    return a->scale[0] == 1 && a->scale[1] == 1 && a->gray_scale_prob == 0 && !jitters;
}

// ---------------------------------------------------------------- augmentation: random crop

// torchvision's RandomResizedCrop.get_params: ten tries of a box with a random share of the area and a
// random ratio, each uniform (the ratio in its logarithm); if none fits, the largest centred box of an
// allowed ratio.
static inline void image_random_box(int *top, int *left, int *height, int *width, const Image *image,
    const AugmentConfig *config, Rand *rand) {
    int w = image->width, h = image->height;
    for (int i = 0; i < 10; i++) {
        double area = (double)w * h * rand_range(rand, config->scale[0], config->scale[1]);
        double ratio = exp(rand_range(rand, log(config->ratio[0]), log(config->ratio[1])));
        double box_w = nearbyint(sqrt(area * ratio)), box_h = nearbyint(sqrt(area / ratio)); // half to even
        if (!(box_w >= 1 && box_w <= w && box_h >= 1 && box_h <= h)) continue;
        *width = (int)box_w;
        *height = (int)box_h;
        *top = (int)rand_below(rand, (uint64_t)(h - *height) + 1);
        *left = (int)rand_below(rand, (uint64_t)(w - *width) + 1);
        return;
    }
    double ratio = (double)w / h;
    *width = w;
    *height = h;
    if (ratio < config->ratio[0]) *height = (int)fmax(1, nearbyint(w / config->ratio[0]));
    else if (ratio > config->ratio[1]) *width = (int)fmax(1, nearbyint(h * config->ratio[1]));
    *top = (h - *height) / 2;
    *left = (w - *width) / 2;
}

// ---------------------------------------------------------------- augmentation: colours

// Pillow's convert("L"): ITU-R 601 with 16 fraction bits
static inline uint8_t gray_of(uint8_t r, uint8_t g, uint8_t b) {
    return (uint8_t)((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16);
}

// Pillow's Image.blend of a constant or gray `from` towards `to`, in float, truncated to an integer; a factor
// above 1 extrapolates
static inline uint8_t blend_byte(int from, int to, float factor) {
    float value = (float)from + factor * (float)(to - from);
    return (uint8_t)(value <= 0 ? 0 : value >= 255 ? 255 : (int)value);
}

// pixels: planes (3,n), here and below, changed in place.
static inline void adjust_brightness(uint8_t *pixels, size_t n, float factor) {
    for (size_t i = 0; i < 3 * n; i++) pixels[i] = blend_byte(0, pixels[i], factor);
}

static inline void adjust_contrast(uint8_t *pixels, size_t n, float factor) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += gray_of(pixels[i], pixels[n + i], pixels[2 * n + i]);
    int mean = (int)((double)sum / (double)n + 0.5);
    for (size_t i = 0; i < 3 * n; i++) pixels[i] = blend_byte(mean, pixels[i], factor);
}

static inline void adjust_saturation(uint8_t *pixels, size_t n, float factor) {
    for (size_t i = 0; i < n; i++) {
        int gray = gray_of(pixels[i], pixels[n + i], pixels[2 * n + i]);
        for (int c = 0; c < 3; c++) pixels[c * n + i] = blend_byte(gray, pixels[c * n + i], factor);
    }
}

// RGB → HSV (each 0 … 255, truncated to an integer) → hue shifted → RGB (rounded), with Pillow's mixture of
// float and double.
static inline void turn_hue(uint8_t *r, uint8_t *g, uint8_t *b, uint8_t turn) {
    int high = *r > *g ? (*r > *b ? *r : *b) : (*g > *b ? *g : *b);
    int low = *r < *g ? (*r < *b ? *r : *b) : (*g < *b ? *g : *b);
    if (high == low) return; // gray has no hue
    float span = (float)(high - low);
    float red = (float)(high - *r) / span;
    float green = (float)(high - *g) / span;
    float blue = (float)(high - *b) / span;
    float sector = *r == high   ? blue - green
                   : *g == high ? (float)(2.0 + red - blue)
                                : (float)(4.0 + green - red);
    float around = (float)fmod(sector / 6.0 + 1.0, 1.0);
    uint8_t hue = (uint8_t)((uint8_t)(int)(around * 255.0) + turn);
    uint8_t saturation = (uint8_t)(int)(span / (float)high * 255.0);
    if (saturation == 0) {
        *r = *g = *b = (uint8_t)high;
        return;
    }
    int i = (int)((float)hue * 6.0 / 255.0);
    float f = (float)((float)hue * 6.0 / 255.0 - i), s = (float)(saturation / 255.0);
    uint8_t v = (uint8_t)high;
    uint8_t p = (uint8_t)round(high * (1.0 - s));
    uint8_t q = (uint8_t)round(high * (1.0 - s * f));
    uint8_t t = (uint8_t)round(high * (1.0 - s * (1.0 - f)));
    const uint8_t sectors[6][3] = {{v, t, p}, {q, v, p}, {p, v, t}, {p, q, v}, {t, p, v}, {v, p, q}};
    *r = sectors[i % 6][0];
    *g = sectors[i % 6][1];
    *b = sectors[i % 6][2];
}

// shift: a share of the colour circle, -0.5 … 0.5
static inline void adjust_hue(uint8_t *pixels, size_t n, double shift) {
    uint8_t turn = (uint8_t)(int)(shift * 255); // truncated, then modulo 256
    for (size_t i = 0; i < n; i++) turn_hue(&pixels[i], &pixels[n + i], &pixels[2 * n + i], turn);
}

// torchvision's Grayscale(3)
static inline void gray_scale(uint8_t *pixels, size_t n) {
    for (size_t i = 0; i < n; i++)
        pixels[i] = pixels[n + i] = pixels[2 * n + i] = gray_of(pixels[i], pixels[n + i], pixels[2 * n + i]);
}

// torchvision's ColorJitter: the four in random order, each with a random factor; those of strength 0 are
// skipped.
static inline void color_jitter(uint8_t *pixels, size_t n, const double jitter[4], Rand *rand) {
    int64_t order[4] = {0, 1, 2, 3};
    rand_shuffle(rand, order, 4);
    for (int i = 0; i < 4; i++) {
        double strength = jitter[order[i]];
        if (strength <= 0) continue;
        float factor = (float)rand_range(rand, fmax(0, 1 - strength), 1 + strength);
        if (order[i] == 0) adjust_brightness(pixels, n, factor);
        else if (order[i] == 1) adjust_contrast(pixels, n, factor);
        else if (order[i] == 2) adjust_saturation(pixels, n, factor);
        else adjust_hue(pixels, n, rand_range(rand, -strength, strength));
    }
}

// The training transform of open_clip: random crop, resize, colour jitter, gray scale. No flip.
//   out (3,size,size) 0 … 255; the same rand gives the same pixels
static inline void image_train_transform(uint8_t *out, const Image *image, int size, Interpolation filter,
    const AugmentConfig *config, Rand *rand) {
    assert(size >= 1 && image->width >= 1 && image->height >= 1);
    int top, left, height, width;
    size_t n = (size_t)size * (size_t)size;
    const double *j = config->color_jitter;
    image_random_box(&top, &left, &height, &width, image, config, rand);
    image_crop_resize(out, image, top, left, height, width, size, filter);
    if ((j[0] > 0 || j[1] > 0 || j[2] > 0 || j[3] > 0) && rand_uniform(rand) < config->color_jitter_prob)
        color_jitter(out, n, j, rand);
    if (config->gray_scale_prob > 0 && rand_uniform(rand) < config->gray_scale_prob) gray_scale(out, n);
}

#endif
