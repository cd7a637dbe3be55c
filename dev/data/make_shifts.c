// Copies of a labelled image set in other styles, as a tar of .png, .txt and .cls, to measure forgetting and
// robustness.
//
//     make_shifts SHARDS CLASSNAMES OUT.tar FIRST COUNT PICK STYLE...
//
// Images FIRST … FIRST+COUNT-1 of the WebDataset SHARDS. PICK 0: each in every style. PICK n: each in n
// styles drawn at random, mirrored half of the time. The class is that of .cls, else the class name in the
// caption. Styles, with a number after the colon: clean, gray, blur:SIGMA, contrast:FACTOR,
// noise:SIGMA, dark:FACTOR, bright:PLUS, warm:FACTOR, invert.
#include "clipc/base/safe_file.h"
#include "clipc/data/sample.h"

#include <png.h>

typedef struct {
    const char *name; // as on the command line
    char kind;        // c clean, g gray, b blur, k contrast, n noise, x factor, p plus, w warm, i invert
    double amount;
    const char *caption;
} Style;

static Style style_parse(const char *text) {
    static const struct {
        const char *name, *caption;
        char kind;
    } known[] = {{"clean", "a photo of a {}.", 'c'}, {"gray", "a black and white photo of a {}.", 'g'},
        {"blur", "a blurry photo of a {}.", 'b'}, {"contrast", "a low contrast photo of a {}.", 'k'},
        {"noise", "a noisy photo of a {}.", 'n'}, {"dark", "a dark photo of a {}.", 'x'},
        {"bright", "a bright photo of a {}.", 'p'}, {"warm", "a warm photo of a {}.", 'w'},
        {"invert", "a negative of a photo of a {}.", 'i'}};
    const size_t n = strcspn(text, ":");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == n && strncmp(known[i].name, text, n) == 0) {
            const Style s = {text, known[i].kind, text[n] ? atof(text + n + 1) : 0, known[i].caption};
            return s;
        }
    die(EXIT_USAGE, "%s: no such style; see the head of make_shifts.c", text);
}

static uint8_t to_byte(double x) { return (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x + 0.5); }
static double luma(const uint8_t *p) { return 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]; }

// Gaussian blur, edges repeated
static void blur(uint8_t *out, const uint8_t *in, int W, int H, double sigma) {
    enum { MOST = 16 };
    const int reach = (int)fmin(MOST, ceil(3 * sigma));
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++)
            for (int c = 0; c < 3; c++) {
                double sum = 0, weights = 0;
                for (int dy = -reach; dy <= reach; dy++)
                    for (int dx = -reach; dx <= reach; dx++) {
                        const int yy = y + dy < 0 ? 0 : y + dy >= H ? H - 1 : y + dy;
                        const int xx = x + dx < 0 ? 0 : x + dx >= W ? W - 1 : x + dx;
                        const double weight = exp(-(dx * dx + dy * dy) / (2 * sigma * sigma));
                        sum += weight * in[(yy * W + xx) * 3 + c];
                        weights += weight;
                    }
                out[(y * W + x) * 3 + c] = to_byte(sum / weights);
            }
}

static void apply(const Style *s, uint8_t *out, const uint8_t *in, int W, int H, Rand *r) {
    double mean = 0;
    for (int i = 0; i < W * H; i++) mean += luma(in + 3 * i) / (W * H);
    if (s->kind == 'b') {
        blur(out, in, W, H, s->amount);
        return;
    }
    for (int i = 0; i < 3 * W * H; i++) {
        const double v = in[i];
        out[i] = to_byte(s->kind == 'g'   ? luma(in + i / 3 * 3)
                         : s->kind == 'k' ? mean + s->amount * (v - mean)
                         : s->kind == 'n' ? v + s->amount * rand_normal(r)
                         : s->kind == 'x' ? v * s->amount
                         : s->kind == 'p' ? v + s->amount
                         : s->kind == 'w' ? v * (i % 3 == 0      ? s->amount
                                                    : i % 3 == 2 ? 1 / s->amount
                                                                 : 1)
                         : s->kind == 'i' ? 255 - v
                                          : v);
    }
}

static void mirror(uint8_t *rgb, int W, int H) {
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W / 2; x++)
            for (int c = 0; c < 3; c++) {
                uint8_t *a = rgb + (y * W + x) * 3 + c, *b = rgb + (y * W + W - 1 - x) * 3 + c, t = *a;
                *a = *b;
                *b = t;
            }
}

// ---------------------------------------------------------------- tar

static void tar_add(FILE *f, const char *path, const char *name, const void *data, size_t bytes) {
    char header[512] = "";
    unsigned sum = 0;
    snprintf(header, 100, "%s", name);
    snprintf(header + 100, 8, "%07o", 0644u);
    snprintf(header + 108, 8, "%07o", 0u);
    snprintf(header + 116, 8, "%07o", 0u);
    snprintf(header + 124, 12, "%011o", (unsigned)bytes);
    snprintf(header + 136, 12, "%011o", 0u);
    memset(header + 148, ' ', 8);
    header[156] = '0';
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++) sum += (unsigned char)header[i];
    snprintf(header + 148, 8, "%06o", sum);
    const char zeros[512] = "";
    fwrite_check(header, 512, f, path);
    fwrite_check(data, bytes, f, path);
    fwrite_check(zeros, round_up(bytes, 512) - bytes, f, path);
}

static void add_image(FILE *f, const char *path, const char *key, const uint8_t *rgb, int W, int H,
    const char *caption, int label) {
    char name[64], text[32];
    png_image png;
    png_alloc_size_t bytes = 0;
    memset(&png, 0, sizeof png);
    png.version = PNG_IMAGE_VERSION;
    png.width = (png_uint_32)W;
    png.height = (png_uint_32)H;
    png.format = PNG_FORMAT_RGB;
    png.flags = PNG_IMAGE_FLAG_FAST;
    if (!png_image_write_to_memory(&png, NULL, &bytes, 0, rgb, 0, NULL))
        die(EXIT_RUNTIME, "%s: %s", key, png.message);
    void *file = malloc_check(bytes);
    if (!png_image_write_to_memory(&png, file, &bytes, 0, rgb, 0, NULL))
        die(EXIT_RUNTIME, "%s: %s", key, png.message);
    snprintf(name, sizeof name, "%s.png", key);
    tar_add(f, path, name, file, bytes);
    free(file);
    snprintf(name, sizeof name, "%s.txt", key);
    tar_add(f, path, name, caption, strlen(caption));
    snprintf(name, sizeof name, "%s.cls", key);
    snprintf(text, sizeof text, "%d", label);
    tar_add(f, path, name, text, strlen(text));
}

static int find_label(const SampleBuffers *b, const StringList *names) {
    char caption[256];
    if (b->label >= 0) return b->label;
    snprintf(caption, sizeof caption, "%.*s", (int)min_i64((int64_t)b->caption_bytes, 255), b->caption);
    for (size_t i = 0; i < names->count; i++)
        if (strstr(caption, names->list[i])) return (int)i;
    return -1;
}

int main(int argc, char **argv) {
    enum { MOST_STYLES = 16 };
    if (argc < 8 || argc > 7 + MOST_STYLES)
        die(EXIT_USAGE, "make_shifts SHARDS CLASSNAMES OUT.tar FIRST COUNT PICK STYLE...");
    const int64_t first = atoll(argv[4]), count = atoll(argv[5]);
    const int pick = atoi(argv[6]), styles = argc - 7;
    StringList names = classnames_read(argv[2]);
    Style style[MOST_STYLES];
    for (int i = 0; i < styles; i++) style[i] = style_parse(argv[7 + i]);
    DatasetConfig config = dataset_config_default();
    config.classnames = (const char *const *)names.list;
    config.classname_count = (int)names.count;
    Dataset d = dataset_open(argv[1], &config, 1);
    SafeFile out;
    safe_file_open(&out, argv[3]);
    SampleBuffers bytes;
    memset(&bytes, 0, sizeof bytes);
    char *caption = NULL;
    size_t capacity = 0;
    for (int64_t i = first; i < first + count && i < dataset_count(&d); i++) {
        Image image;
        if (dataset_read(&d, i, &bytes) != SAMPLE_OK ||
            image_decode(&image, bytes.image.data, bytes.image.bytes, 1 << 24) != IMAGE_OK)
            die(EXIT_USAGE, "%s: sample %lld cannot be read", argv[1], (long long)i);
        const int label = find_label(&bytes, &names), W = image.width, H = image.height;
        if (label < 0) die(EXIT_USAGE, "%s: sample %lld names no class", argv[1], (long long)i);
        uint8_t *rgb = malloc_check((size_t)W * (size_t)H * 3);
        Rand r = rand_for(0x736869667473 /* "shifts" */, (uint64_t)i, (uint64_t)pick);
        int64_t order[MOST_STYLES];
        for (int k = 0; k < styles; k++) order[k] = k;
        if (pick) rand_shuffle(&r, order, styles);
        for (int k = 0; k < (pick ? pick : styles) && k < styles; k++) {
            char key[32];
            const Style *s = &style[order[k]];
            apply(s, rgb, image.rgb, W, H, &r);
            if (pick && rand_below(&r, 2)) mirror(rgb, W, H);
            template_fill(&caption, &capacity, s->caption, names.list[label]);
            snprintf(key, sizeof key, "%06lld_%d", (long long)i, k);
            add_image(out.f, out.part, key, rgb, W, H, caption, label);
        }
        free(rgb);
        image_free(&image);
    }
    const char end[1024] = "";
    safe_file_write(&out, end, sizeof end);
    safe_file_commit(&out);
    sample_buffers_free(&bytes);
    dataset_free(&d);
    string_list_free(&names);
    free(caption);
    return 0;
}
