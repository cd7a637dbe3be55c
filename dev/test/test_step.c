// One optimizer step of train_clip.c on a small random model: train_step() by micro-batches, AdamW and its
// moving average against their definition, locked towers. The gradients are checked in test_layers.c and
// test_clip.c.
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"
#include "dev/test/test.h"

enum {
    PAIRS = 6,
    EMBED = 6,
    TOKENS = 5,
    PIXELS = 3 * 8 * 8
}; // CONFIG: in_proj is longer than a chunk of the update

static const ClipConfig CONFIG = {.embed_dim = EMBED,
    .image_size = 8,
    .patch_size = 4,
    .image_width = 160,
    .image_layers = 2,
    .image_heads = 2,
    .image_mlp = 16,
    .ln_pre = 1,
    .context_length = TOKENS,
    .vocab_size = 20,
    .text_width = 8,
    .text_layers = 1,
    .text_heads = 2,
    .text_mlp = 16,
    .eot_id = 19,
    .image_ln_eps = 1e-5f,
    .text_ln_eps = 1e-5f,
    .std_r = 1,
    .std_g = 1,
    .std_b = 1};

// The pairs of a step, cut into k micro-batches.
typedef struct {
    float images[PAIRS * PIXELS];
    int tokens[PAIRS * TOKENS];
    ClipBatch micro[PAIRS];
    StepBatch step;
} Pairs;

static void pairs_fill(Pairs *p, int k) {
    Rand r = rand_for(5, 0, 0);
    for (int i = 0; i < PAIRS * PIXELS; i++) p->images[i] = (float)rand_normal(&r);
    for (int i = 0; i < PAIRS * TOKENS; i++)
        p->tokens[i] = i % TOKENS < 4 ? (int)rand_below(&r, 19) : CONFIG.eot_id;
    for (int j = 0; j < k; j++) {
        p->micro[j] = clip_batch(PAIRS / k);
        p->micro[j].images = p->images + j * (PAIRS / k) * PIXELS;
        p->micro[j].tokens = p->tokens + j * (PAIRS / k) * TOKENS;
    }
    p->step = (StepBatch){.k = k, .B = PAIRS / k, .micro = p->micro, .positives = POSITIVES_DIAGONAL};
}

static Clip *clip_of(bool ema) {
    const ClipTraining how = {PAIRS, ema, false};
    Clip *clip = clip_create(&CONFIG, NULL, 0, 3);
    clip_set_precision(clip, PRECISION_FP32); // with packed weights, as the programs do
    clip_start_training(clip, &how);
    return clip;
}

static AdamW adamw_of(int64_t step) {
    return (AdamW){.lr = 1e-2,
        .beta1 = 0.8,
        .beta2 = 0.9,
        .eps = 1e-3,
        .weight_decay = 0.3,
        .ema_decay = 0.7,
        .step = step};
}

static float *tensor_values(const Clip *clip, ClipArena arena, const Tensor *x) {
    float *values = malloc_check(x->count * sizeof *values);
    clip_read(clip, arena, x, values);
    return values;
}

// The largest difference between the tensors of two models, relative to the largest number of each.
static double difference(const Clip *a, const Clip *b, ClipArena arena) {
    double worst = 0;
    for (int i = 0; i < a->tensors.count; i++) {
        const Tensor *x = &a->tensors.list[i];
        float *u = tensor_values(a, arena, x), *v = tensor_values(b, arena, x);
        double most = 1e-6, apart = 0;
        for (size_t j = 0; j < x->count; j++) {
            most = fmax(most, fabs(u[j]));
            apart = fabs(u[j] - v[j]) <= apart ? apart : fabs(u[j] - v[j]); // NaN is taken over
        }
        worst = apart / most <= worst ? worst : apart / most;
        free(u);
        free(v);
    }
    return worst;
}

static void test_micro_batches_make_the_step_of_all_pairs(void) {
    static Pairs whole, parts;
    const AdamW a = adamw_of(1);
    for (int k = 2; k <= PAIRS; k += 1 + (k == 3) * 2) { // 2, 3, 6
        Clip *one = clip_of(false), *many = clip_of(false);
        double norm[2];
        pairs_fill(&whole, 1);
        pairs_fill(&parts, k);
        const double loss = train_step(one, &whole.step, &a, &norm[0]);
        EXPECT_CLOSE(train_step(many, &parts.step, &a, &norm[1]), loss, 1e-6);
        EXPECT(norm[0] > 0.1 && loss > 0.1, "norm %g, loss %g", norm[0], loss);
        EXPECT_CLOSE(norm[1], norm[0], 1e-5 * norm[0]);
        EXPECT(difference(one, many, ARENA_M) < 1e-4, "%d parts: m differs by %g", k,
            difference(one, many, ARENA_M));
        EXPECT(difference(one, many, ARENA_PARAMETERS) < 1e-4, "%d parts: weights differ by %g", k,
            difference(one, many, ARENA_PARAMETERS));
        clip_free(one);
        clip_free(many);
    }
}

typedef struct {
    float *p, *m, *v, *e; // of one tensor before the step
} Before;

static void before_free(Before *b) {
    free(b->p);
    free(b->m);
    free(b->v);
    free(b->e);
}

// Did the update of tensor x do what the equations above adamw_update() say? The gradient is still there.
static void expect_update(const Clip *clip, const Tensor *x, const Before *b, const AdamW *a, double scale) {
    float *g = tensor_values(clip, ARENA_GRADIENTS, x), *p = tensor_values(clip, ARENA_PARAMETERS, x);
    float *e = tensor_values(clip, ARENA_EMA, x);
    double worst = 0, worst_average = 0;
    for (size_t j = 0; j < x->count; j++) {
        const double m = a->beta1 * b->m[j] + (1 - a->beta1) * g[j] * scale;
        const double v = a->beta2 * b->v[j] + (1 - a->beta2) * pow(g[j] * scale, 2);
        const double lr = a->lr * x->lr_scale, t = (double)a->step;
        const double step = m / (1 - pow(a->beta1, t)) / (sqrt(v / (1 - pow(a->beta2, t))) + a->eps);
        const double wanted = b->p[j] * (1 - lr * (x->decay ? a->weight_decay : 0)) - lr * step;
        const double average = a->ema_decay * b->e[j] + (1 - a->ema_decay) * p[j];
        worst = fabs(p[j] - wanted) <= worst ? worst : fabs(p[j] - wanted);
        worst_average = fabs(e[j] - average) <= worst_average ? worst_average : fabs(e[j] - average);
    }
    EXPECT(worst < 1e-6 && worst_average < 1e-6, "%s: %g, moving average %g", x->name, worst, worst_average);
    free(g);
    free(p);
    free(e);
}

static double norm_of_gradients(const Clip *clip) {
    double squares = 0;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        float *g = x->trainable ? tensor_values(clip, ARENA_GRADIENTS, x) : NULL;
        for (size_t j = 0; g && j < x->count; j++) squares += (double)g[j] * g[j];
        free(g);
    }
    return sqrt(squares);
}

static void test_update_follows_the_equations(void) {
    static Pairs pairs;
    Clip *clip = clip_of(true);
    Before *before = calloc_check((size_t)clip->tensors.count, sizeof *before);
    clip_scale_rates(clip, IMAGE_TOWER, 0.5, 2);
    EXPECT(clip_exclude_decay(clip, "*in_proj_weight") == 3);
    pairs_fill(&pairs, 1);
    for (int step = 1; step <= 3; step++) {
        AdamW a = adamw_of(step);
        double norm;
        a.grad_clip_norm = step == 1 ? 0 : step == 2 ? 0.01 : 1e6;
        for (int i = 0; i < clip->tensors.count; i++) {
            const Tensor *x = &clip->tensors.list[i];
            before[i] = (Before){tensor_values(clip, ARENA_PARAMETERS, x), tensor_values(clip, ARENA_M, x),
                tensor_values(clip, ARENA_V, x), tensor_values(clip, ARENA_EMA, x)};
        }
        train_step(clip, &pairs.step, &a, &norm);
        EXPECT_CLOSE(norm, norm_of_gradients(clip), 1e-6);
        const double scale = step == 2 ? 0.01 / (norm + 1e-6) : 1;
        for (int i = 0; i < clip->tensors.count; i++) {
            expect_update(clip, &clip->tensors.list[i], &before[i], &a, scale);
            before_free(&before[i]);
        }
    }
    free(before);
    clip_free(clip);
}

// The gradients of a whole step, made so small that what the clipping adds to their norm (1e-6) counts.
static void test_clipping_of_tiny_gradients(void) {
    static Pairs pairs;
    Clip *clip = clip_of(true);
    double norm;
    AdamW a = adamw_of(1);
    pairs_fill(&pairs, 1);
    train_step(clip, &pairs.step, &a, &norm);
    const double factor = 1e-6 / norm;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        float *g = tensor_values(clip, ARENA_GRADIENTS, x),
              *zero = (float *)calloc_check(x->count, sizeof *g);
        for (size_t j = 0; j < x->count; j++) g[j] = (float)(g[j] * factor);
        clip_write(clip, ARENA_GRADIENTS, x, g);
        clip_write(clip, ARENA_M, x, zero);
        free(g);
        free(zero);
    }
    a.grad_clip_norm = 5e-7; // below the norm of 1e-6
    norm = clip_update(clip, &a);
    EXPECT_CLOSE(norm, 1e-6, 1e-10);
    const Tensor *x = tensor_find(&clip->tensors, "visual.proj");
    float *g = tensor_values(clip, ARENA_GRADIENTS, x), *m = tensor_values(clip, ARENA_M, x);
    for (size_t j = 0; j < x->count; j++)
        EXPECT_CLOSE(m[j], (1 - a.beta1) * g[j] * 5e-7 / (norm + 1e-6), 1e-5 * fabs(g[j]) + 1e-20);
    free(g);
    free(m);
    clip_free(clip);
}

static void test_moving_average_takes_the_place_of_the_weights_and_back(void) {
    static Pairs pairs;
    float features[3][PAIRS * EMBED];
    Clip *clip = clip_of(true), *kept = clip_of(true);
    double norm;
    const AdamW a = adamw_of(1);
    clip_lock(clip, TEXT_TOWER, 1);
    clip_lock(kept, TEXT_TOWER, 1);
    const ClipTraining how = {PAIRS, true, false};
    clip_start_training(clip, &how);
    clip_start_training(kept, &how);
    pairs_fill(&pairs, 1);
    train_step(clip, &pairs.step, &a, &norm);
    train_step(kept, &pairs.step, &a, &norm);
    EXPECT(clip_has_ema(clip) && difference(clip, kept, ARENA_PARAMETERS) == 0);
    for (int swap = 0; swap < 3; swap++) {
        clip_encode_image(clip, &pairs.micro[0], features[swap]);
        if (swap == 1)
            for (int i = 0; i < clip->tensors.count; i++) {
                const Tensor *x = &clip->tensors.list[i];
                float *now = tensor_values(clip, ARENA_PARAMETERS, x);
                float *wanted = tensor_values(kept, x->trainable ? ARENA_EMA : ARENA_PARAMETERS, x);
                EXPECT(!memcmp(now, wanted, x->count * sizeof *now), "%s", x->name);
                free(now);
                free(wanted);
            }
        clip_swap_ema(clip);
    }
    clip_swap_ema(clip);
    EXPECT(memcmp(features[0], features[1], sizeof features[0]) &&
               !memcmp(features[0], features[2], sizeof features[0]),
        "features follow the weights");
    EXPECT(difference(clip, kept, ARENA_PARAMETERS) == 0, "twice gives the weights back");
    clip_free(clip);
    clip_free(kept);
}

// The gradient of each micro-batch is complete before it is added: the sum has the bits of (m_0 + m_1) + m_2.
static void test_micro_gradients_are_complete_before_they_are_added(void) {
    enum { K = 3 };
    static Pairs pairs;
    Clip *sum = clip_of(false), *one = clip_of(false);
    pairs_fill(&pairs, K);
    float *wanted = calloc_check(sum->tensors.grad_floats, sizeof *wanted);
    for (int j = 0; j < K; j++)
        for (int c = 0; c < 2; c++) {
            Clip *clip = c ? one : sum;
            for (int i = 0; i < K; i++) clip_forward(clip, &pairs.micro[i], i * (PAIRS / K), false);
            clip_loss(clip, PAIRS, NULL, POSITIVES_DIAGONAL, j == 0 || c);
            if (c) clip->back->accumulate = false;
            clip_forward(clip, &pairs.micro[j], j * (PAIRS / K), true);
            clip_backward(clip, &pairs.micro[j], j * (PAIRS / K));
            for (int i = 0; c && i < clip->tensors.count; i++) {
                const Tensor *x = &clip->tensors.list[i];
                float *m = tensor_values(one, ARENA_GRADIENTS, x), *to = wanted + x->grad_offset;
                for (size_t n = 0; n < x->count; n++) to[n] = j && x->tower != NO_TOWER ? to[n] + m[n] : m[n];
                free(m);
            }
        }
    for (int i = 0; i < sum->tensors.count; i++) {
        const Tensor *x = &sum->tensors.list[i];
        float *got = tensor_values(sum, ARENA_GRADIENTS, x);
        EXPECT(!memcmp(got, wanted + x->grad_offset, x->count * sizeof *got), "%s", x->name);
        free(got);
    }
    free(wanted);
    clip_free(sum);
    clip_free(one);
}

// The packed copies of the weights, which products read, are brought up to date by the update itself.
static void test_packed_weights_follow_the_update(void) {
    static Pairs pairs;
    double norm;
    const AdamW a = adamw_of(1);
    Clip *clip = clip_of(false), *fresh = clip_of(false);
    pairs_fill(&pairs, 1);
    train_step(clip, &pairs.step, &a, &norm);
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        float *values = tensor_values(clip, ARENA_PARAMETERS, x);
        clip_write(fresh, ARENA_PARAMETERS, x, values);
        free(values);
    }
    Clip *both[] = {clip, fresh};
    double loss[2];
    for (int c = 0; c < 2; c++) {
        clip_forward(both[c], &pairs.micro[0], 0, true);
        loss[c] = clip_loss(both[c], PAIRS, NULL, POSITIVES_DIAGONAL, true);
        clip_backward(both[c], &pairs.micro[0], 0);
    }
    EXPECT(loss[0] == loss[1], "%.9g instead of %.9g", loss[0], loss[1]);
    EXPECT(difference(clip, fresh, ARENA_GRADIENTS) == 0, "%g", difference(clip, fresh, ARENA_GRADIENTS));
    clip_free(clip);
    clip_free(fresh);
}

static void test_bytes_and_normalised_pixels_are_the_same_image(void) {
    static Pairs pairs;
    uint8_t bytes[PAIRS * PIXELS];
    float features[2][PAIRS * EMBED];
    Rand r = rand_for(6, 0, 0);
    pairs_fill(&pairs, 1);
    for (int i = 0; i < PAIRS * PIXELS; i++) {
        bytes[i] = (uint8_t)rand_below(&r, 256);
        pairs.images[i] = (float)bytes[i] / 255.0f;
    }
    ClipBatch of_bytes = pairs.micro[0];
    of_bytes.images = NULL;
    of_bytes.pixels = bytes;
    const Precision precisions[] = {PRECISION_FP32, PRECISION_AMP_BF16};
    for (int p = 0; p < 2; p++) {
        if (clip_precision_support(precisions[p]) == SUPPORT_NONE) continue;
        Clip *clip = clip_create(&CONFIG, NULL, 0, 3);
        clip_set_precision(clip, precisions[p]);
        clip_encode_image(clip, &pairs.micro[0], features[0]);
        clip_encode_image(clip, &of_bytes, features[1]);
        EXPECT(!memcmp(features[0], features[1], sizeof features[0]), "precision %d", p);
        clip_free(clip);
    }
}

static void test_tower_is_frozen_when_its_projection_alone_may_train(void) {
    Clip *clip = clip_create(&CONFIG, NULL, 0, 3);
    EXPECT(!tower_is_frozen(clip, IMAGE_TOWER) && !tower_is_frozen(clip, TEXT_TOWER));
    for (int groups = 0; groups <= 5; groups++) {
        clip_lock(clip, IMAGE_TOWER, groups);
        EXPECT(tower_is_frozen(clip, IMAGE_TOWER) == (groups < 2), "%d groups train", groups);
        EXPECT(!tower_is_frozen(clip, TEXT_TOWER));
    }
    clip_free(clip);
}

static void test_caption_ends_with_its_first_end_of_text(void) {
    const int tokens[] = {18, 3, 19, 7, 19, 0};
    EXPECT(caption_length(tokens, 6, 19) == 3 && caption_length(tokens, 2, 19) == 2 &&
           caption_length(tokens, 6, 18) == 1);
    EXPECT(caption_length(tokens, 6, 5) == 6, "the whole row");
}

int main(void) {
    RUN(test_micro_batches_make_the_step_of_all_pairs);
    RUN(test_micro_gradients_are_complete_before_they_are_added);
    RUN(test_update_follows_the_equations);
    RUN(test_clipping_of_tiny_gradients);
    RUN(test_moving_average_takes_the_place_of_the_weights_and_back);
    RUN(test_packed_weights_follow_the_update);
    RUN(test_bytes_and_normalised_pixels_are_the_same_image);
    RUN(test_tower_is_frozen_when_its_projection_alone_may_train);
    RUN(test_caption_ends_with_its_first_end_of_text);
    return test_report();
}
