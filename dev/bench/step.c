// Takes steps of a model on one synthetic batch, as many as each line on stdin asks for. bench.sh and peer.py
// measure with it.
//
//     build/bench_step train|image|text MODEL BATCH [PRECISION] [image=N] [text=N] [cached]
//
// MODEL: a packed .bin, or a name (random weights). BATCH: a file of peer.py, or PAIRS:TOKENS, with captions
// of TOKENS tokens on average. train: forward, loss, backward, AdamW; image, text: encoding only. image=N,
// text=N: that tower is locked except for its last N groups; cached: the features of a locked image tower are
// in the cache, as from the second epoch on. Each line on stdin is a number of steps. The answer is the
// seconds that they took, and a number by which results are compared: the loss before the last step, or the
// first feature. Between lines the process sleeps. On a GPU (build/bench_stepcu) three more numbers follow:
// the seconds and FLOPs of the matrix products if the line says `STEPS profile`, which slows the steps a
// little, otherwise 0; and the bytes of GPU memory in use.
#define CLIP_WITHOUT_MAIN // without the main() of
#if defined(__CUDACC__) || defined(CLIPC_EMULATE)
#include "dev/bench/gpu_profile.h"
#include "train_clip.cu"
#else
#include "train_clip.c"
#endif
#include "clipc/model/architectures.h" // model_load
#include "clipc/base/utils.h"          // rand_for

typedef struct {
    Clip *clip;
    ClipBatch batch;
    AdamW hyper;
    float *features; // (B,E)
    void (*step)(Clip *, const ClipBatch *, float *);
} Bench;

// ---------------------------------------------------------------- the batch

// A file of peer.py: B, S, T as int32, then pixels (B,3,S,S), then tokens (B,T) as int32.
static void batch_read(ClipBatch *b, const ClipConfig *c, const char *path) {
    int32_t head[3];
    FILE *f = fopen_check(path, "rb");
    fread_check(head, sizeof head, f, path);
    if (head[0] < 1 || head[1] != c->image_size || head[2] != c->context_length)
        die(EXIT_USAGE, "%s: is not a batch for this model", path);
    const size_t B = (size_t)head[0];
    const size_t pixels = 3 * B * (size_t)head[1] * (size_t)head[1];
    const size_t tokens = B * (size_t)head[2] * sizeof(int32_t);
    uint8_t *p = (uint8_t *)malloc_check(pixels);
    int *t = (int *)malloc_check(tokens);
    fread_check(p, pixels, f, path);
    fread_check(t, tokens, f, path);
    fclose(f);
    b->size = head[0];
    b->pixels = p;
    b->tokens = t;
}

// Images of noise and captions of random tokens; the captions' lengths are spread evenly between half and one
// and a half times their mean.
static void batch_draw(ClipBatch *b, const ClipConfig *c, int B, int mean) {
    const size_t pixels = 3 * (size_t)B * (size_t)c->image_size * (size_t)c->image_size;
    const int T = c->context_length, spread = mean == T ? 0 : mean / 2;
    if (B < 1 || mean - spread < 2 || mean + spread > T)
        die(EXIT_USAGE, "%d:%d is not a batch; give PAIRS:TOKENS, with captions of at most %d tokens", B,
            mean, T);
    uint8_t *p = (uint8_t *)malloc_check(pixels);
    int *t = (int *)calloc_check((size_t)B * (size_t)T, sizeof *t);
    Rand r = rand_for(0, 0, 0);
    for (size_t i = 0; i < pixels; i++) p[i] = (uint8_t)rand_below(&r, 256);
    for (int i = 0; i < B; i++) {
        const int length =
            mean - spread + (B > 1 ? (int)((2 * spread * (int64_t)i + (B - 1) / 2) / (B - 1)) : spread);
        int *row = t + (size_t)i * (size_t)T;
        row[0] = c->vocab_size - 2;
        row[length - 1] = c->eot_id;
        for (int j = 1; j < length - 1; j++) row[j] = (int)rand_below(&r, (uint64_t)c->vocab_size - 2);
    }
    b->size = B;
    b->pixels = p;
    b->tokens = t;
}

// ---------------------------------------------------------------- steps

static void encode_images(Clip *clip, const ClipBatch *b, float *features) {
    clip_encode_image(clip, b, features);
}
static void encode_texts(Clip *clip, const ClipBatch *b, float *features) {
    clip_encode_text(clip, b, features);
}

static double bench_step(Bench *b) {
    if (b->step) {
        b->step(b->clip, &b->batch, b->features);
        return b->features[0];
    }
    clip_forward(b->clip, &b->batch, 0, true);
    const double loss = clip_loss(b->clip, b->batch.size, NULL, POSITIVES_DIAGONAL, true);
    clip_backward(b->clip, &b->batch, 0);
    b->hyper.step++;
    clip_update(b->clip, &b->hyper);
    return loss;
}

static void bench_answer(Bench *b, int steps, bool profiled) {
    double result = 0;
#if defined(__CUDACC__) || defined(CLIPC_EMULATE)
    profile_begin(profiled);
#endif
    const double start = seconds_now();
    for (int i = 0; i < steps; i++) result = bench_step(b);
    printf("%.6f %.6f", seconds_now() - start, result);
#if defined(__CUDACC__) || defined(CLIPC_EMULATE)
    profile_end();
    printf(" %.6f %.6g %.0f", profile.seconds, profile.flops, gpu_memory());
#else
    (void)profiled;
#endif
    putchar('\n');
    fflush(stdout);
}

static Clip *bench_model(const char *name) {
    ClipConfig config;
    if (ends_with(name, ".bin")) return clip_load(name);
    model_load(name, &config);
    return clip_create(&config, NULL, 0, 0);
}

// Applies the arguments after the batch.
static void bench_configure(Bench *b, char **words, bool *cached) {
    for (; *words; words++) {
        int groups;
        if (sscanf(*words, "image=%d", &groups) == 1) clip_lock(b->clip, IMAGE_TOWER, groups);
        else if (sscanf(*words, "text=%d", &groups) == 1) clip_lock(b->clip, TEXT_TOWER, groups);
        else if (strcmp(*words, "cached") == 0) *cached = true;
        else if (strcmp(*words, "amp_bf16") == 0 &&
                 clip_precision_support(PRECISION_AMP_BF16) != SUPPORT_NONE)
            clip_set_precision(b->clip, PRECISION_AMP_BF16);
        else if (strcmp(*words, "fp32") == 0) clip_set_precision(b->clip, PRECISION_FP32);
        else die(EXIT_USAGE, "%s: unknown argument, or not supported on this machine", *words);
    }
}

int main(int argc, char **argv) {
    static const AdamW hyper = {1e-5, 0.9, 0.98, 1e-6, 0.2, 0, 0, 0};
    Bench b = {.hyper = hyper};
    int pairs, tokens, steps;
    bool cached = false;
    if (argc < 4)
        die(EXIT_USAGE,
            "usage: bench_step train|image|text MODEL BATCH [PRECISION] [image=N] [text=N] [cached]");
    b.clip = bench_model(argv[2]);
    if (sscanf(argv[3], "%d:%d", &pairs, &tokens) == 2) batch_draw(&b.batch, &b.clip->config, pairs, tokens);
    else batch_read(&b.batch, &b.clip->config, argv[3]);
    bench_configure(&b, argv + 4, &cached);
    b.features =
        (float *)malloc_check((size_t)b.batch.size * (size_t)b.clip->config.embed_dim * sizeof(float));
    b.step = strcmp(argv[1], "image") == 0  ? encode_images
             : strcmp(argv[1], "text") == 0 ? encode_texts
                                            : NULL;
    if (cached) {
        float *pooled =
            (float *)malloc_check((size_t)b.batch.size * (size_t)b.clip->config.image_width * sizeof(float));
        clip_pool(b.clip, IMAGE_TOWER, &b.batch, pooled);
        b.batch.pooled[IMAGE_TOWER] = pooled;
        b.batch.pixels = NULL;
    }
    if (!b.step) {
        const ClipTraining how = {b.batch.size, false, false};
        clip_start_training(b.clip, &how);
    }
    char line[64];
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%d", &steps) == 1)
        bench_answer(&b, steps, strstr(line, "profile") != NULL);
    clip_free(b.clip);
    return 0;
}
