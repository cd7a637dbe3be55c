// test_clip.c: the back end that ships, compared with reference tensors one by one.
//
//     ./test_clip MODEL.bin DEBUG.bin     (from dev/convert.py and dev/reference.py; `make test` makes both)
//
// Includes train_clip.c, or train_clip.cu under a CUDA compiler, without its main(). In this order:
//   adapters      one layer at a time, and copies to the host: the only code that differs between CPU and GPU
//   records       what DEBUG.bin holds: named tensors, computed in float64 by dev/reference.py or open_clip
//   comparing     largest error against a tolerance; an entry that is not finite and a missing record fail
//   batches       the images and tokens of a record, and a step from forward to gradients
//   activations   each layer of block 0, the output of each block, features, logits, loss, gradients
//   strategies    locks, weight decay, layer-wise rates, positives, checkpointing, accumulation, validation
//   optimizer     six steps of AdamW with and without clipping, the clamp of logit_scale, gradients in bf16
// Prints a line for each tensor: name, entries compared and stored, largest error, tolerance, ok or OFF.
// Only what the program computes is compared: captions up to end of text, in the last block the pooled row.
#define CLIP_WITHOUT_MAIN
#include "clipc/train/metrics.h" // retrieval_metrics
#include "dev/test/test.h"       // EXPECT, test_report

// ---------------------------------------------------------------- adapters
// The layers in fp32 on arrays in the memory of the back end: backend_floats() allocates n numbers there,
// backend_free() frees them, host_copy() copies n of them to the host (the caller frees the copy).
#if defined(__CUDACC__) || defined(CLIPC_EMULATE)
#include "train_clip.cu"

static const TowerActivations *test_tower(const Clip *clip, int tower) { return &clip->back->tower[tower].a; }
static float *backend_floats(size_t n) { return (float *)gpu_malloc(n * sizeof(float), "a test"); }
static void backend_free(float *x) { CUDA_CHECK(cudaFree(x)); }

static float *host_copy(const float *x, size_t n) {
    float *copy = (float *)malloc_check(n * sizeof(float));
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(copy, x, n * sizeof(float), cudaMemcpyDeviceToHost));
    return copy;
}

static void layer_norm(const Clip *clip, float *out, RowStats stats, const float *x, const float *gain,
    const float *bias, int N, int C, float eps) {
    const LayerNorm w = {gain, bias, NULL, NULL, C, eps, &clip->back->gpu};
    layernorm_forward(out, stats, x, &w, N);
}

static void layer_linear(const Clip *clip, float *out, const float *inp, const float *weight,
    const float *bias, int N, int C, int O) {
    const Linear w = linear_bind(&clip->back->gpu, weight, bias, NULL, NULL, C, O);
    linear_forward(out, inp, &w, N);
}

static void layer_activation(const Clip *clip, float *out, const float *x, size_t n, Activation activation) {
    activation_forward(&clip->back->gpu, out, x, n, activation);
}

// The loss of features on the host.
static double layer_loss(Clip *clip, float *dimage, float *dtext, double *dlogit_scale, const float *image,
    const float *text, const uint64_t *keys, Positives positives, int n, int E, float scale) {
    Backend *b = clip->back;
    const size_t bytes = (size_t)n * (size_t)E * sizeof(float);
    const ClipTraining how = {n, false, false};
    clip_start_training(clip, &how);
    CUDA_CHECK(cudaMemcpy(b->features[0], image, bytes, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(b->features[1], text, bytes, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(b->loss.keys, keys, (size_t)n * sizeof *keys, cudaMemcpyHostToDevice));
    const double loss = contrastive_loss(&b->gpu, b->dfeatures[0], b->dfeatures[1], dlogit_scale, &b->loss,
        b->features[0], b->features[1], b->loss.keys, positives, n, E, scale);
    CUDA_CHECK(cudaMemcpy(dimage, b->dfeatures[0], bytes, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaMemcpy(dtext, b->dfeatures[1], bytes, cudaMemcpyDeviceToHost));
    return loss;
}
#else
#include "train_clip.c"

static const TowerActivations *test_tower(const Clip *clip, int tower) { return &clip->back->tower[tower]; }
static float *backend_floats(size_t n) { return (float *)malloc_check(n * sizeof(float)); }
static void backend_free(float *x) { free(x); }
static float *host_copy(const float *x, size_t n) {
    return (float *)memcpy(malloc_check(n * sizeof(float)), x, n * sizeof(float));
}

static void layer_norm(const Clip *clip, float *out, RowStats stats, const float *x, const float *gain,
    const float *bias, int N, int C, float eps) {
    const LayerNorm w = {gain, bias, NULL, NULL, C, eps, clip->back->kernels};
    layernorm_forward(fp32(out), stats, x, &w, N);
}

static void layer_linear(const Clip *clip, float *out, const float *inp, const float *weight,
    const float *bias, int N, int C, int O) {
    const Linear w = linear_bind(clip->back, weight, bias, NULL, NULL, NULL, NULL, C, O);
    linear_forward(fp32(out), fp32(inp), &w, N);
}

static void layer_activation(const Clip *clip, float *out, const float *x, size_t n, Activation activation) {
    const float one = 1; // a layer that multiplies by 1
    const Linear identity = linear_bind(clip->back, &one, NULL, NULL, NULL, NULL, NULL, 1, 1);
    float *product = backend_floats(n);
    linear_activation_forward(fp32(product), fp32(out), fp32(x), &identity, activation, (int)n);
    backend_free(product);
}

static double layer_loss(Clip *clip, float *dimage, float *dtext, double *dlogit_scale, const float *image,
    const float *text, const uint64_t *keys, Positives positives, int n, int E, float scale) {
    return contrastive_loss(
        clip->back->kernels, dimage, dtext, dlogit_scale, image, text, keys, positives, n, E, scale, 0);
}
#endif

// In fp32 an operand is an array of floats.
static const float *floats_of(Operand x) { return (const float *)x.p; }

// --------------------------------------------------------------- records of DEBUG.bin (see dev/reference.py)

typedef struct {
    char name[160];
    int dtype, ndim; // 0 float32, 1 float64, 2 int32
    int64_t shape[8];
    size_t count;
    double *value; // whatever the type in the file
} Record;

typedef struct {
    Record *list;
    int count;
} Records;

static int32_t read_int(FILE *f, const char *path) {
    int32_t x;
    fread_check(&x, 4, f, path);
    return x;
}

static Records records_load(const char *path) {
    FILE *f = fopen_check(path, "rb");
    if (read_int(f, path) != 0x47424443 || read_int(f, path) != 1)
        die(EXIT_USAGE, "%s: not a file of reference tensors; make it with dev/reference.py", path);
    Records r = {NULL, read_int(f, path)};
    if (r.count < 1 || r.count > 1 << 20) die(EXIT_USAGE, "%s: %d records", path, r.count);
    r.list = (Record *)calloc_check((size_t)r.count, sizeof *r.list);
    for (int i = 0; i < r.count; i++) {
        Record *x = &r.list[i];
        const int32_t length = read_int(f, path);
        if (length < 1 || length >= (int)sizeof x->name)
            die(EXIT_USAGE, "%s: record %d has a name of %d bytes", path, i, length);
        fread_check(x->name, (size_t)length, f, path);
        x->dtype = read_int(f, path);
        x->ndim = read_int(f, path);
        x->count = 1;
        if (x->dtype < 0 || x->dtype > 2 || x->ndim < 0 || x->ndim > 8)
            die(EXIT_USAGE, "%s: %s has type %d and %d axes", path, x->name, x->dtype, x->ndim);
        for (int d = 0; d < x->ndim; d++) {
            fread_check(&x->shape[d], 8, f, path);
            if (x->shape[d] < 0 || x->shape[d] > 1 << 30 || (x->count *= (size_t)x->shape[d]) > 1 << 30)
                die(EXIT_USAGE, "%s: %s is too large", path, x->name);
        }
        x->value = (double *)malloc_check(x->count * sizeof(double));
        for (size_t j = 0; j < x->count; j++) {
            float f32;
            int32_t i32;
            if (x->dtype == 0) {
                fread_check(&f32, 4, f, path);
                x->value[j] = f32;
            }
            if (x->dtype == 1) fread_check(&x->value[j], 8, f, path);
            if (x->dtype == 2) {
                fread_check(&i32, 4, f, path);
                x->value[j] = i32;
            }
        }
    }
    fclose(f);
    return r;
}

static void records_free(Records *r) {
    for (int i = 0; i < r->count; i++) free(r->list[i].value);
    free(r->list);
}

// NULL when no record has that name.
PRINTF_LIKE(2, 3) static const Record *record_find(const Records *r, const char *format, ...) {
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    for (int i = 0; i < r->count; i++)
        if (strcmp(r->list[i].name, name) == 0) return &r->list[i];
    return NULL;
}

// Declares a record that the test needs; where it is missing, the test fails and returns.
#define NEED(variable, ...)                               \
    const Record *variable = record_find(r, __VA_ARGS__); \
    if (!variable) {                                      \
        printf("missing: " __VA_ARGS__);                  \
        putchar('\n');                                    \
        EXPECT(false, "a tensor is missing");             \
        return;                                           \
    }

// `n` entries of a record from entry `from` on, as the model takes them; the caller frees them.
static float *record_floats(const Record *x, size_t from, size_t n) {
    float *out = (float *)malloc_check(n * sizeof(float));
    if (from + n > x->count) die(EXIT_USAGE, "%s: %zu entries, %zu are needed", x->name, x->count, from + n);
    for (size_t i = 0; i < n; i++) out[i] = (float)x->value[from + i];
    return out;
}

static int *record_ints(const Record *x, size_t from, size_t n) {
    int *out = (int *)malloc_check(n * sizeof(int));
    if (from + n > x->count) die(EXIT_USAGE, "%s: %zu entries, %zu are needed", x->name, x->count, from + n);
    for (size_t i = 0; i < n; i++) out[i] = (int)x->value[from + i];
    return out;
}

// ---------------------------------------------------------------- comparing

enum { RELATIVE, ABSOLUTE }; // error relative to the record's largest entry, or as it is

typedef struct {
    const Record *want;
    size_t compared;
    double worst, largest;
} Comparison;

static Comparison comparison(const Record *want) {
    Comparison c = {want, 0, 0, 0};
    for (size_t i = 0; i < want->count; i++) c.largest = fmax(c.largest, fabs(want->value[i]));
    return c;
}

// `n` entries of ours against those of the record from entry `at` on
static void compare_entries(Comparison *c, const float *ours, size_t at, size_t n) {
    if (at + n > c->want->count) {
        c->worst = INFINITY;
        n = 0;
    }
    for (size_t i = 0; i < n; i++) {
        const double error = fabs((double)ours[i] - c->want->value[at + i]);
        if (!(error <= c->worst)) c->worst = isnan(error) ? INFINITY : error;
    }
    c->compared += n;
}

static void compare_end(const Comparison *c, const char *suffix, int mode, double tolerance) {
    const double error = mode == RELATIVE ? c->worst / (c->largest > 0 ? c->largest : 1) : c->worst;
    const bool ok = error <= tolerance && c->compared > 0;
    printf("%-72s%-8s %8zu/%-8zu %10.2e %8.0e %s\n", c->want->name, suffix, c->compared, c->want->count,
        error, tolerance, ok ? "ok" : "OFF");
    EXPECT(ok, "%s: error %g", c->want->name, error);
}

// `n` numbers of ours on the host
static void compare_all(
    const Record *want, const char *suffix, const float *ours, size_t n, int mode, double tolerance) {
    Comparison c = comparison(want);
    compare_entries(&c, ours, 0, n);
    if (n != want->count) c.worst = INFINITY;
    compare_end(&c, suffix, mode, tolerance);
}

// the same in the memory of the back end
static void compare_backend(const Record *want, const float *ours, size_t n, double tolerance) {
    float *copy = host_copy(ours, n);
    compare_all(want, "", copy, n, RELATIVE, tolerance);
    free(copy);
}

static void compare_number(const Record *want, size_t at, double ours, double tolerance) {
    const double error =
        at < want->count ? fabs(ours - want->value[at]) / fmax(1, fabs(want->value[at])) : INFINITY;
    printf("%-72s[%2zu]     %8d/%-8zu %10.2e %8.0e %s\n", want->name, at, 1, want->count, error, tolerance,
        error <= tolerance ? "ok" : "OFF");
    EXPECT(error <= tolerance, "%s: %g", want->name, error);
}

static const double ACTIVATION_TOLERANCE = 2e-6, GRADIENT_TOLERANCE = 1e-5, WEIGHT_TOLERANCE = 3e-5;
// In amp_bf16, in multiples of what rounding operands alone does (bf16/ in DEBUG.bin, where they are rounded
// up or down at random: 1.4 times what rounding to the nearest does): of the loss and of each gradient, and
// of the median over all gradients.
static const double BF16_EACH = 3, BF16_MEDIAN = 1;

// ---------------------------------------------------------------- batches and models

typedef struct {
    ClipBatch batch;
    float *images;
    int *tokens;
} TestBatch;

// `size` pairs from pair `first` on, from records shaped (…,3,S,S) and (…,T)
static TestBatch test_batch(
    const Clip *clip, const Record *images, const Record *tokens, size_t first, int size) {
    const size_t pixels = 3 * (size_t)clip->config.image_size * (size_t)clip->config.image_size;
    const size_t T = (size_t)clip->config.context_length;
    TestBatch b = {{.size = size}, record_floats(images, first * pixels, (size_t)size * pixels),
        record_ints(tokens, first * T, (size_t)size * T)};
    b.batch.images = b.images;
    b.batch.tokens = b.tokens;
    return b;
}

static void test_batch_free(TestBatch *b) {
    free(b->images);
    free(b->tokens);
}

// From forward to gradients, all pairs at once or, with micro < pairs, accumulated. Returns the loss.
static double run_step(
    Clip *clip, const Record *images, const Record *tokens, size_t first, int pairs, int micro) {
    for (int j = 0; j < pairs; j += micro) {
        TestBatch b = test_batch(clip, images, tokens, first + (size_t)j, micro);
        clip_forward(clip, &b.batch, j, micro == pairs);
        test_batch_free(&b);
    }
    const double loss = clip_loss(clip, pairs, NULL, POSITIVES_DIAGONAL, true);
    for (int j = 0; j < pairs; j += micro) {
        TestBatch b = test_batch(clip, images, tokens, first + (size_t)j, micro);
        if (micro < pairs) clip_forward(clip, &b.batch, j, true);
        clip_backward(clip, &b.batch, j);
        test_batch_free(&b);
    }
    return loss;
}

// The weights as loaded, new optimizer state, and the last groups of each tower trainable.
static void restart(Clip *clip, const Records *r, int image_groups, int text_groups, int pairs) {
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        const Record *w = record_find(r, "weights/%s", x->name);
        if (!w) die(EXIT_USAGE, "weights/%s is missing", x->name);
        float *values = record_floats(w, 0, x->count);
        clip_write(clip, ARENA_PARAMETERS, x, values);
        free(values);
    }
    clip_lock(clip, IMAGE_TOWER, image_groups);
    clip_lock(clip, TEXT_TOWER, text_groups);
    const ClipTraining how = {pairs, false, false};
    clip_start_training(clip, &how);
}

static void compare_arena(const Clip *clip, const Records *r, ClipArena arena, const char *prefix,
    const char *suffix, bool all, int mode, double tolerance) {
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!x->trainable && arena != ARENA_PARAMETERS) continue;
        const Record *want = record_find(r, "%s%s", prefix, x->name);
        if (!want && all) {
            printf("missing: %s%s\n", prefix, x->name);
            EXPECT(false, "a tensor is missing");
        }
        if (!want) continue;
        float *ours = (float *)malloc_check(x->count * sizeof(float));
        clip_read(clip, arena, x, ours);
        compare_all(want, suffix, ours, x->count, mode, tolerance);
        free(ours);
    }
}

// ---------------------------------------------------------------- activations

// Rows that the back end has saved, (R,C) packed or (B,C) if pooled_only, against a record (B,T,C)
static void compare_rows(const Records *r, const char *tower, const char *name, const float *saved,
    const Sequences *s, int C, bool pooled_only) {
    NEED(want, "activations/%s.%s", tower, name)
    float *ours = host_copy(saved, (size_t)(pooled_only ? s->B : s->R) * (size_t)C);
    const size_t T = want->ndim == 3 ? (size_t)want->shape[1] : 1;
    Comparison c = comparison(want);
    for (int b = 0; b < s->B; b++) {
        const size_t length = (size_t)(s->start[b + 1] - s->start[b]), row = (size_t)b * T;
        if (pooled_only)
            compare_entries(&c, ours + (size_t)b * C,
                (row + (T > 1 ? (size_t)(s->pooled_row[b] - s->start[b]) : 0)) * C, (size_t)C);
        else compare_entries(&c, ours + (size_t)s->start[b] * C, row * C, length * C);
    }
    compare_end(&c, "", RELATIVE, ACTIVATION_TOLERANCE);
    free(ours);
}

// Block 0 in detail. Activations that are not saved are computed here from the saved ones by the same layers.
static void check_block0(const Clip *clip, const Records *r, int tower, const char *name) {
    const TowerActivations *t = test_tower(clip, tower);
    const TowerShape d = tower_shape(&clip->config, tower);
    const BlockActivations *a = &t->blocks[0];
    const BlockPointers *w = &clip->back->w.tower[tower].blocks[0];
    const bool last = d.L == 1;
    const int C = d.C, Q = last ? t->seq.B : t->seq.R;
    const size_t R = (size_t)t->seq.R;
    float *ln = backend_floats(R * C);
    float *act = backend_floats(R * d.F);
    const RowStats stats = {backend_floats(R), backend_floats(R)};
    layer_norm(clip, ln, stats, a->x, w->ln_1_weight, w->ln_1_bias, t->seq.R, C, d.eps);
    compare_rows(r, name, "block0.ln_1", ln, &t->seq, C, false);
    compare_rows(r, name, "block0.attn_heads", floats_of(a->attention), &t->seq, C, last);
    layer_linear(clip, ln, floats_of(a->attention), w->out_proj_weight, w->out_proj_bias, Q, C, C);
    compare_rows(r, name, "block0.attn", ln, &t->seq, C, last);
    compare_rows(r, name, "block0.resid1", a->resid1, &t->seq, C, last);
    layer_norm(clip, ln, stats, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    compare_rows(r, name, "block0.ln_2", ln, &t->seq, C, last);
    compare_rows(r, name, "block0.mlp_hidden", floats_of(a->mlp_hidden), &t->seq, d.F, last);
    layer_activation(clip, act, floats_of(a->mlp_hidden), (size_t)Q * d.F, d.activation);
    compare_rows(r, name, "block0.mlp_act", act, &t->seq, d.F, last);
    layer_linear(clip, ln, act, w->c_proj_weight, w->c_proj_bias, Q, d.F, C);
    compare_rows(r, name, "block0.mlp", ln, &t->seq, C, last);
    backend_free(ln);
    backend_free(act);
    backend_free(stats.mean);
    backend_free(stats.rstd);
}

static void check_tower(const Clip *clip, const Records *r, int tower, const char *name) {
    const TowerActivations *t = test_tower(clip, tower);
    const TowerShape d = tower_shape(&clip->config, tower);
    char block[32];
    if (tower == IMAGE_TOWER) {
        NEED(want, "activations/vision.patch_embed")
        compare_backend(
            want, (const float *)t->embedded, (size_t)(t->seq.R - t->seq.B) * d.C, ACTIVATION_TOLERANCE);
        compare_rows(
            r, name, "embed", clip->config.ln_pre ? t->embedding : t->blocks[0].x, &t->seq, d.C, false);
        if (clip->config.ln_pre) compare_rows(r, name, "ln_pre", t->blocks[0].x, &t->seq, d.C, false);
    } else {
        compare_rows(r, name, "embed", t->blocks[0].x, &t->seq, d.C, false);
        compare_rows(r, name, "ln_final", t->pooled, &t->seq, d.C, true);
        NEED(eot, "activations/text.eot_index")
        for (int b = 0; b < t->seq.B; b++)
            compare_number(eot, (size_t)b, t->seq.pooled_row[b] - t->seq.start[b], 0);
    }
    check_block0(clip, r, tower, name);
    for (int l = 0; l < d.L; l++) {
        snprintf(block, sizeof block, "block%d", l);
        compare_rows(r, name, block, l + 1 < d.L ? t->blocks[l + 1].x : t->last, &t->seq, d.C, l == d.L - 1);
    }
    compare_rows(r, name, "pooled", t->pooled, &t->seq, d.C, true);
    compare_rows(r, name, "features", t->projected, &t->seq, d.E, true);
    compare_rows(r, name, "normalized", clip->back->features[tower], &t->seq, d.E, true);
}

// The mean cross-entropy of the rows (or columns) of logits (n,n) against the diagonal.
static double cross_entropy(const float *logits, int n, bool columns) {
    double loss = 0;
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++)
            sum += exp((double)(columns ? logits[j * n + i] : logits[i * n + j]) - logits[i * n + i]);
        loss += log(sum) / n;
    }
    return loss;
}

static void test_forward_and_backward_match_the_reference(Clip *clip, const Records *r) {
    NEED(images, "batch/images")
    NEED(tokens, "batch/tokens")
    NEED(loss, "activations/loss")
    NEED(loss_image, "activations/loss_image")
    NEED(loss_text, "activations/loss_text")
    NEED(logits, "activations/logits_per_image")
    NEED(dimage, "grads/image_features")
    NEED(dtext, "grads/text_features")
    const int B = (int)images->shape[0], E = clip->config.embed_dim;
    restart(clip, r, 1000, 1000, B);
    TestBatch b = test_batch(clip, images, tokens, 0, B);
    clip_forward(clip, &b.batch, 0, true);
    check_tower(clip, r, IMAGE_TOWER, "vision");
    check_tower(clip, r, TEXT_TOWER, "text");

    float *ours = (float *)malloc_check((size_t)B * B * sizeof(float));
    float *image = host_copy(clip->back->features[0], (size_t)B * E);
    float *text = host_copy(clip->back->features[1], (size_t)B * E);
    matmul_nt(kernels_select(), ours, image, text, B, B, E);
    for (int i = 0; i < B * B; i++) ours[i] *= clip_logit_scale(clip);
    compare_all(logits, "", ours, (size_t)B * B, RELATIVE, ACTIVATION_TOLERANCE);
    compare_number(loss_image, 0, cross_entropy(ours, B, false), ACTIVATION_TOLERANCE);
    compare_number(loss_text, 0, cross_entropy(ours, B, true), ACTIVATION_TOLERANCE);
    compare_number(loss, 0, clip_loss(clip, B, NULL, POSITIVES_DIAGONAL, true), ACTIVATION_TOLERANCE);
    free(ours);
    free(image);
    free(text);

    compare_backend(dimage, clip->back->dfeatures[0], (size_t)B * E, GRADIENT_TOLERANCE);
    compare_backend(dtext, clip->back->dfeatures[1], (size_t)B * E, GRADIENT_TOLERANCE);
    clip_backward(clip, &b.batch, 0);
    compare_arena(clip, r, ARENA_GRADIENTS, "grads/param.", "", true, RELATIVE, GRADIENT_TOLERANCE);
    test_batch_free(&b);
}

// ---------------------------------------------------------------- strategies

// Which tensors train, and that their gradients are those of full fine-tuning.
static void test_locked_tensors_do_not_train(Clip *clip, const Records *r) {
    NEED(images, "batch/images")
    NEED(tokens, "batch/tokens")
    for (int tower = 0; tower < 2; tower++)
        for (int groups = 0; groups <= clip_tower_layers(&clip->config, tower) + 2; groups++) {
            const char *kind = tower == IMAGE_TOWER ? "image" : "text";
            restart(clip, r, tower == IMAGE_TOWER ? groups : 1000, tower == TEXT_TOWER ? groups : 1000,
                (int)images->shape[0]);
            int wrong = 0, listed = 0;
            for (int i = 0; i < clip->tensors.count; i++) {
                const bool trains =
                    record_find(r, "locked/%s_%d/%s", kind, groups, clip->tensors.list[i].name);
                wrong += trains != clip->tensors.list[i].trainable;
                listed += trains;
            }
            if (listed) EXPECT(wrong == 0, "%s tower, %d groups: %d tensors differ", kind, groups, wrong);
            printf("locked/%s_%d: %d of %d tensors train, %d differ%s\n", kind, groups, listed,
                clip->tensors.count, wrong, listed ? "" : " (no such case stored)");
            run_step(clip, images, tokens, 0, (int)images->shape[0], (int)images->shape[0]);
            compare_arena(
                clip, r, ARENA_GRADIENTS, "grads/param.", "locked", true, RELATIVE, GRADIENT_TOLERANCE);
        }
}

static void test_weight_decay_is_on_the_right_tensors(const Clip *clip, const Records *r) {
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        NEED(want, "weight_decay/%s", x->name)
        EXPECT((want->value[0] > 0) == x->decay, "weight_decay/%s", x->name);
    }
    printf("weight_decay: %d tensors\n", clip->tensors.count);
}

// The factor on the rate of every tensor; a case is called image_0.7, text_0.8 or image_0.7_text_0.8.
static void test_rates_fall_with_depth(Clip *clip, const Records *r) {
    int checked = 0;
    for (int i = 0; i < r->count; i++) {
        char text[sizeof r->list[i].name], *name, *decay;
        strcpy(text, r->list[i].name);
        if (strncmp(text, "layer_decay/", 12) != 0 || !(name = strchr(text + 12, '/'))) continue;
        *name++ = 0;
        clip_scale_rates(
            clip, IMAGE_TOWER, (decay = strstr(text, "image_")) ? strtod(decay + 6, NULL) : 1, 1);
        clip_scale_rates(clip, TEXT_TOWER, (decay = strstr(text, "text_")) ? strtod(decay + 5, NULL) : 1, 1);
        const Tensor *x = tensor_find(&clip->tensors, name);
        EXPECT(x && fabs(x->lr_scale - r->list[i].value[0]) <= 1e-7, "%s", r->list[i].name);
        checked++;
    }
    clip_scale_rates(clip, IMAGE_TOWER, 1, 1);
    clip_scale_rates(clip, TEXT_TOWER, 1, 1);
    printf("layer_decay: %d factors\n", checked);
}

// Several positives in a row: soft targets by equal captions and by groups, and groups masked.
static void check_positives(
    Clip *clip, const Records *r, const char *kind, const uint64_t *keys, Positives positives) {
    NEED(image, "multipos/image_features")
    NEED(text, "multipos/text_features")
    NEED(scale, "multipos/logit_scale")
    NEED(loss, "multipos/%s.loss", kind)
    NEED(dimage, "multipos/%s.grad_image_features", kind)
    NEED(dtext, "multipos/%s.grad_text_features", kind)
    NEED(dscale, "multipos/%s.grad_logit_scale", kind)
    const int n = (int)image->shape[0], E = (int)image->shape[1];
    float *x = record_floats(image, 0, image->count), *y = record_floats(text, 0, text->count);
    float *dx = (float *)malloc_check(image->count * sizeof(float));
    float *dy = (float *)malloc_check(text->count * sizeof(float));
    double d;
    compare_number(loss, 0,
        layer_loss(clip, dx, dy, &d, x, y, keys, positives, n, E, expf((float)scale->value[0])),
        ACTIVATION_TOLERANCE);
    compare_all(dimage, "", dx, image->count, RELATIVE, GRADIENT_TOLERANCE);
    compare_all(dtext, "", dy, text->count, RELATIVE, GRADIENT_TOLERANCE);
    compare_number(dscale, 0, d, GRADIENT_TOLERANCE);
    free(x);
    free(y);
    free(dx);
    free(dy);
}

static void test_loss_with_several_positives(Clip *clip, const Records *r) {
    if (!record_find(r, "multipos/image_features")) return; // not every folder of reference values has them
    NEED(tokens, "multipos/tokens")
    NEED(groups, "multipos/groups")
    const size_t n = groups->count, T = tokens->count / n;
    uint64_t *captions = (uint64_t *)malloc_check(n * sizeof *captions);
    uint64_t *keys = (uint64_t *)malloc_check(n * sizeof *keys);
    for (size_t i = 0; i < n; i++) {
        captions[i] = hash_bytes(HASH_START, tokens->value + i * T, T * sizeof(double));
        keys[i] = (uint64_t)groups->value[i];
    }
    check_positives(clip, r, "equal", captions, POSITIVES_SOFT);
    check_positives(clip, r, "groups", keys, POSITIVES_SOFT);
    check_positives(clip, r, "masked", keys, POSITIVES_MASK);
    free(captions);
    free(keys);
}

// All of them, one tensor after another.
static void read_gradients(const Clip *clip, float *to) {
    for (int i = 0; i < clip->tensors.count; i++) {
        clip_read(clip, ARENA_GRADIENTS, &clip->tensors.list[i], to);
        to += clip->tensors.list[i].count;
    }
}

// Saving only the inputs of the blocks does not change a bit.
static void test_checkpointing_changes_no_bit(Clip *clip, const Records *r) {
    NEED(images, "batch/images")
    NEED(tokens, "batch/tokens")
    const int B = (int)images->shape[0];
    restart(clip, r, 1000, 1000, B);
    run_step(clip, images, tokens, 0, B, B);
    float *before = (float *)malloc_check(clip->tensors.parameters * sizeof(float));
    float *now = (float *)malloc_check(clip->tensors.parameters * sizeof(float));
    read_gradients(clip, before);
    const ClipTraining how = {B, false, true};
    clip_start_training(clip, &how);
    run_step(clip, images, tokens, 0, B, B);
    read_gradients(clip, now);
    EXPECT(memcmp(before, now, clip->tensors.parameters * sizeof(float)) == 0,
        "gradients with checkpointing differ");
    free(before);
    free(now);
}

// However the batch is divided, the gradients are those of the whole batch, also that of logit_scale.
static void test_accumulated_gradients_are_those_of_the_whole_batch(Clip *clip, const Records *r) {
    NEED(images, "accum/images")
    NEED(tokens, "accum/tokens")
    NEED(loss, "accum/loss")
    const int pairs = (int)images->shape[0];
    for (int micro = 1; micro <= pairs; micro++) {
        if (pairs % micro) continue;
        char suffix[32];
        snprintf(suffix, sizeof suffix, " %dx%d", pairs / micro, micro);
        restart(clip, r, 1000, 1000, pairs);
        compare_number(loss, 0, run_step(clip, images, tokens, 0, pairs, micro), ACTIVATION_TOLERANCE);
        compare_arena(clip, r, ARENA_GRADIENTS, "accum/grad.", suffix, true, RELATIVE, GRADIENT_TOLERANCE);
    }
}

// open_clip's evaluation: the mean of the batch losses weighted by size, and retrieval over all pairs.
static void test_validation_is_that_of_open_clip(Clip *clip, const Records *r) {
    NEED(images, "accum/images")
    NEED(tokens, "accum/tokens")
    NEED(rows, "val/rows")
    NEED(batch_size, "val/batch_size")
    NEED(want, "val/clip_val_loss")
    const int n = (int)rows->count, E = clip->config.embed_dim;
    restart(clip, r, 1000, 1000, 1);
    float *image = (float *)malloc_check((size_t)n * E * sizeof(float));
    float *text = (float *)malloc_check((size_t)n * E * sizeof(float));
    for (int i = 0; i < n; i++) {
        TestBatch b = test_batch(clip, images, tokens, (size_t)rows->value[i], 1);
        clip_encode_image(clip, &b.batch, image + (size_t)i * E);
        clip_encode_text(clip, &b.batch, text + (size_t)i * E);
        test_batch_free(&b);
    }
    double loss = 0;
    for (int i = 0; i < n; i += (int)batch_size->value[0]) {
        const int B = n - i < (int)batch_size->value[0] ? n - i : (int)batch_size->value[0];
        loss += B *
                contrastive_loss(kernels_select(), NULL, NULL, NULL, image + (size_t)i * E,
                    text + (size_t)i * E, NULL, POSITIVES_DIAGONAL, B, E, clip_logit_scale(clip), 0) /
                n;
    }
    compare_number(want, 0, loss, ACTIVATION_TOLERANCE);
    const RetrievalMetrics m = retrieval_metrics(kernels_select(), image, text, n, E, 3);
    for (int way = 0; way < 2; way++) {
        const char *name = way ? "text_to_image" : "image_to_text";
        const RankMetrics *ranks = way ? &m.text_to_image : &m.image_to_text;
        NEED(mean_rank, "val/%s_mean_rank", name)
        NEED(median_rank, "val/%s_median_rank", name)
        NEED(R1, "val/%s_R@1", name)
        NEED(R5, "val/%s_R@5", name)
        NEED(R10, "val/%s_R@10", name)
        compare_number(mean_rank, 0, ranks->mean_rank, 1e-12);
        compare_number(median_rank, 0, ranks->median_rank, 1e-12);
        compare_number(R1, 0, ranks->R1, 1e-12);
        compare_number(R5, 0, ranks->R5, 1e-12);
        compare_number(R10, 0, ranks->R10, 1e-12);
    }
    free(image);
    free(text);
}

// ---------------------------------------------------------------- optimizer

static double hyper(const Records *r, const char *name) {
    const Record *x = record_find(r, "hyper/%s", name);
    if (!x) die(EXIT_USAGE, "hyper/%s is missing", name);
    return x->value[0];
}

// Steps over images (steps,B,…), or the same images each step, with the recorded rates.
static void check_steps(Clip *clip, const Records *r, const char *prefix, const Record *images,
    const Record *tokens, bool same_batch, double clip_norm) {
    NEED(loss, "%sloss", prefix)
    NEED(norm, "%sgrad_norm", prefix)
    NEED(lr, "%slr", prefix)
    NEED(logit_scale, "%slogit_scale", prefix)
    const int steps = (int)lr->count, B = (int)tokens->shape[tokens->ndim - 2];
    for (int step = 0; step < steps; step++) {
        const AdamW a = {.lr = lr->value[step],
            .beta1 = hyper(r, "beta1"),
            .beta2 = hyper(r, "beta2"),
            .eps = hyper(r, "eps"),
            .weight_decay = hyper(r, "weight_decay"),
            .grad_clip_norm = clip_norm,
            .step = step + 1};
        // logits are exp(logit_scale) times cosines, so rounding of the features grows with it above 1 / 0.07
        const double grow = fmax(1, 0.07 * clip_logit_scale(clip));
        compare_number(loss, (size_t)step,
            run_step(clip, images, tokens, same_batch ? 0 : (size_t)step * B, B, B),
            grow * ACTIVATION_TOLERANCE);
        compare_number(norm, (size_t)step, clip_update(clip, &a), grow * GRADIENT_TOLERANCE);
        float scale;
        clip_read(clip, ARENA_PARAMETERS, tensor_find(&clip->tensors, LOGIT_SCALE_KEY), &scale);
        compare_number(logit_scale, (size_t)step, scale, ACTIVATION_TOLERANCE);
    }
}

static void test_adamw_steps_match_the_reference(
    Clip *clip, const Records *r, const char *name, double clip_norm) {
    NEED(images, "adamw_batches/images")
    NEED(tokens, "adamw_batches/tokens")
    char prefix[64];
    restart(clip, r, 1000, 1000, (int)images->shape[1]);
    snprintf(prefix, sizeof prefix, "%s/", name);
    check_steps(clip, r, prefix, images, tokens, false, clip_norm);
    snprintf(prefix, sizeof prefix, "%s/final.", name);
    compare_arena(clip, r, ARENA_PARAMETERS, prefix, "", true, ABSOLUTE, WEIGHT_TOLERANCE);
    snprintf(prefix, sizeof prefix, "%s/m.", name);
    compare_arena(clip, r, ARENA_M, prefix, "", false, RELATIVE, GRADIENT_TOLERANCE);
    snprintf(prefix, sizeof prefix, "%s/v.", name);
    compare_arena(clip, r, ARENA_V, prefix, "", false, RELATIVE, 2 * GRADIENT_TOLERANCE);
}

static void test_logit_scale_is_clamped(Clip *clip, const Records *r, const char *end) {
    NEED(images, "adamw_clamp/images")
    NEED(tokens, "adamw_clamp/tokens_%s", end)
    NEED(start, "adamw_clamp/start_%s", end)
    restart(clip, r, 0, 0, (int)images->shape[0]);
    const float scale = (float)start->value[0];
    clip_write(clip, ARENA_PARAMETERS, tensor_find(&clip->tensors, LOGIT_SCALE_KEY), &scale);
    char prefix[64];
    snprintf(prefix, sizeof prefix, "adamw_clamp/%s.", end);
    check_steps(clip, r, prefix, images, tokens, true, 0);
}

// The distance of a gradient from the exact one, and how much longer it is along it, both as a share of the
// exact one's norm and in multiples of what rounding does (noise). A factor on the gradient shows in the
// second: rounding hardly changes the length.
typedef struct {
    double distance, length;
} GradientError;

static GradientError gradient_error(
    const float *ours, double factor, const Record *want, const Record *noise) {
    double distance = 0, along = 0, norm = 0;
    for (size_t j = 0; j < want->count; j++) {
        const double error = factor * ours[j] - want->value[j];
        distance += error * error;
        along += error * want->value[j];
        norm += want->value[j] * want->value[j];
    }
    const GradientError e = {sqrt(distance / norm) / noise->value[0], fabs(along / norm) / noise->value[1]};
    return e;
}

// How many of the n gradients are farther from the exact ones than rounding explains. Not a number counts.
static int gradients_off(const GradientError *e, int n, double *worst, double *median) {
    double *distance = (double *)malloc_check((size_t)n * sizeof *distance);
    int off = 0;
    *worst = 0;
    for (int i = 0; i < n; i++) {
        distance[i] = e[i].distance;
        *worst = fmax(*worst, fmax(e[i].distance, e[i].length));
        off += !(e[i].distance <= BF16_EACH) || !(e[i].length <= BF16_EACH);
    }
    qsort(distance, (size_t)n, sizeof *distance, compare_doubles);
    *median = distance[n / 2];
    free(distance);
    return off;
}

// Loss and gradients in amp_bf16, whose operands are rounded to 8 bits. The check itself is checked: it must
// find gradients that are a tenth too small.
static void test_bf16_gradients_are_close(Clip *clip, const Records *r) {
    NEED(images, "batch/images")
    NEED(tokens, "batch/tokens")
    NEED(loss, "activations/loss")
    NEED(loss_noise, "bf16/loss")
    if (clip_precision_support(PRECISION_AMP_BF16) == SUPPORT_NONE) return;
    const int B = (int)images->shape[0], n = clip->tensors.count;
    GradientError *error = (GradientError *)calloc_check((size_t)n, sizeof *error);
    GradientError *shortened = (GradientError *)calloc_check((size_t)n, sizeof *shortened);
    clip_set_precision(clip, PRECISION_AMP_BF16);
    restart(clip, r, 1000, 1000, B);
    const double off = fabs(run_step(clip, images, tokens, 0, B, B) - loss->value[0]) / loss_noise->value[0];
    EXPECT(off <= BF16_EACH, "the loss in bf16 is off by %.1f times what rounding does", off);
    for (int i = 0; i < n; i++) {
        const Tensor *x = &clip->tensors.list[i];
        NEED(want, "grads/param.%s", x->name)
        NEED(noise, "bf16/grad.%s", x->name)
        float *ours = (float *)malloc_check(x->count * sizeof(float));
        clip_read(clip, ARENA_GRADIENTS, x, ours);
        error[i] = gradient_error(ours, 1, want, noise);
        shortened[i] = gradient_error(ours, 0.9, want, noise);
        EXPECT(error[i].distance <= BF16_EACH && error[i].length <= BF16_EACH,
            "%s: the bf16 gradient is off by %.1f times what rounding does, its length by %.1f times",
            x->name, error[i].distance, error[i].length);
        free(ours);
    }
    double worst, median;
    gradients_off(error, n, &worst, &median);
    printf("bf16: gradients off by %.2f times what rounding does at worst, %.2f times in the median; the "
           "loss by "
           "%.2f times\n",
        worst, median, off);
    EXPECT(median <= BF16_MEDIAN, "the median bf16 gradient is off by %.2f times what rounding does", median);
    EXPECT(gradients_off(shortened, n, &worst, &median) > n / 2,
        "gradients a tenth too small would be found in %d of %d tensors only",
        gradients_off(shortened, n, &worst, &median), n);
    free(error);
    free(shortened);
    clip_set_precision(clip, PRECISION_FP32);
}

int main(int argc, char **argv) {
    if (argc != 3)
        die(EXIT_USAGE, "usage: test_clip MODEL.bin DEBUG.bin (made by dev/convert.py and dev/reference.py; "
                        "see `make golden`)");
    Clip *clip = clip_load(argv[1]);
    Records r = records_load(argv[2]);
    compare_arena(clip, &r, ARENA_PARAMETERS, "weights/", "", true, ABSOLUTE, 0);
    RUN(test_forward_and_backward_match_the_reference, clip, &r);
    RUN(test_locked_tensors_do_not_train, clip, &r);
    RUN(test_weight_decay_is_on_the_right_tensors, clip, &r);
    RUN(test_rates_fall_with_depth, clip, &r);
    RUN(test_loss_with_several_positives, clip, &r);
    RUN(test_checkpointing_changes_no_bit, clip, &r);
    RUN(test_accumulated_gradients_are_those_of_the_whole_batch, clip, &r);
    RUN(test_validation_is_that_of_open_clip, clip, &r);
    RUN(test_adamw_steps_match_the_reference, clip, &r, "adamw_noclip", 0);
    RUN(test_adamw_steps_match_the_reference, clip, &r, "adamw_clip1", hyper(&r, "clip_norm"));
    RUN(test_logit_scale_is_clamped, clip, &r, "high");
    RUN(test_logit_scale_is_clamped, clip, &r, "low");
    RUN(test_bf16_gradients_are_close, clip, &r);
    printf("kernels: %s\n", clip_kernels(clip));
    records_free(&r);
    clip_free(clip);
    return test_report();
}
