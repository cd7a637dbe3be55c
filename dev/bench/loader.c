// Images per second and core: decoding, and each transform to 224 pixels, on 500x375 JPEGs, by thread time.
//
//     build/bench_loader [JPEG...]
//
// Without files it draws some: quality 90, 4:2:0, about 100 KB, as those of ImageNet.
#include "clipc/data/transform.h"
#include "clipc/base/utils.h"

enum { WIDTH = 500, HEIGHT = 375, SIZE = 224, DRAWN = 8, MOST = 64 };

typedef struct {
    uint8_t *data;
    size_t bytes;
    Image image;
} Sample;

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Draws waves of all lengths, the short ones weaker, as in photographs, plus some noise.
static Sample draw_jpeg(int number) {
    uint8_t *rgb = (uint8_t *)malloc_check(3 * WIDTH * HEIGHT);
    Rand r = rand_for((uint64_t)number, 0, 0);
    double waves[24][4];
    for (int w = 0; w < 24; w++) {
        const double turn = rand_range(&r, 0, 6.283), length = 500 / pow(1.25, w);
        waves[w][0] = 6.283 * cos(turn) / length;
        waves[w][1] = 6.283 * sin(turn) / length;
        waves[w][2] = rand_range(&r, 0, 6.283);
        waves[w][3] = 40 * pow(0.9, w);
    }
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++)
            for (int c = 0; c < 3; c++) {
                double value = 128 + 12 * rand_normal(&r);
                for (int w = c; w < 24; w += 2)
                    value += waves[w][3] * sin(waves[w][0] * x + waves[w][1] * y + waves[w][2]);
                rgb[3 * (y * WIDTH + x) + c] = (uint8_t)fmin(255, fmax(0, value));
            }
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    unsigned char *data = NULL;
    unsigned long bytes = 0;
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &data, &bytes);
    jpeg.image_width = WIDTH;
    jpeg.image_height = HEIGHT;
    jpeg.input_components = 3;
    jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, 90, TRUE);
    jpeg_start_compress(&jpeg, TRUE);
    for (int y = 0; y < HEIGHT; y++) {
        JSAMPROW row = rgb + (size_t)y * WIDTH * 3;
        jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    free(rgb);
    const Sample p = {data, bytes, {0, 0, NULL, 1}};
    return p;
}

// ---------------------------------------------------------------- the stages of a worker

typedef void (*Stage)(Sample *p, uint8_t *out, int round);

static void decode(Sample *p, uint8_t *out, int round) {
    (void)out;
    (void)round;
    image_free(&p->image);
    if (image_decode(&p->image, p->data, p->bytes, INT64_MAX) != IMAGE_OK)
        die(EXIT_USAGE, "an image cannot be decoded");
}
static void evaluation(Sample *p, uint8_t *out, int round) {
    (void)round;
    image_eval_transform(out, &p->image, SIZE, INTERPOLATION_BICUBIC, RESIZE_SHORTEST);
}
static void training(Sample *p, uint8_t *out, int round) {
    static const AugmentConfig crops = {false, {0.9, 1.0}, {3.0 / 4, 4.0 / 3}, {0, 0, 0, 0}, 0.8, 0};
    Rand r = rand_for(1, (uint64_t)round, 0);
    image_train_transform(out, &p->image, SIZE, INTERPOLATION_BICUBIC, &crops, &r);
}
static void decode_and_train(Sample *p, uint8_t *out, int round) {
    decode(p, out, round);
    training(p, out, round);
}

int main(int argc, char **argv) {
    static Sample samples[MOST];
    const int count = argc > 1 ? (int)min_i64(argc - 1, MOST) : DRAWN;
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        if (argc > 1) samples[i].data = (uint8_t *)file_read_all(argv[1 + i], &samples[i].bytes);
        else samples[i] = draw_jpeg(i);
        bytes += samples[i].bytes;
    }
    const struct {
        const char *name;
        Stage run;
    } stages[] = {{"decoding", decode}, {"evaluation transform to 224 pixels", evaluation},
        {"crop of 0.9 to 1 to 224 pixels", training},
        {"decoding and crop, as in training", decode_and_train}};
    uint8_t *out = (uint8_t *)malloc_check(3 * SIZE * SIZE);
    printf("%d images of %zu KB on average\n\n| stage | images per second and core |\n|---|---|\n", count,
        bytes / (size_t)count / 1000);
    for (size_t s = 0; s < sizeof stages / sizeof *stages; s++) {
        double best = INFINITY, total = 0;
        for (int round = 0; round < 5 || total < 0.5; round++) {
            const double start = thread_seconds();
            for (int i = 0; i < count; i++) stages[s].run(&samples[i], out, round * count + i);
            const double seconds = thread_seconds() - start;
            best = fmin(best, seconds);
            total += seconds;
        }
        printf("| %s | %.0f |\n", stages[s].name, count / best);
    }
    for (int i = 0; i < count; i++) {
        image_free(&samples[i].image);
        free(samples[i].data);
    }
    free(out);
    return 0;
}
