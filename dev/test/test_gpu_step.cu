// Whole steps of train_clip.cu: gradients in bf16 against those in fp32; and memory, which is what was
// announced and does not grow while a run lasts.
#define CLIP_WITHOUT_MAIN
#include "train_clip.cu"
#include "dev/test/not_finite.h"
#include "dev/test/test.h"

enum { B = 9 };

// Two towers of odd sizes (loads of one number), or of multiples of 8 (16-byte loads).
static ClipConfig test_config(bool odd) {
    ClipConfig c = {};
    c.embed_dim = odd ? 21 : 24;
    c.quick_gelu = odd;
    c.ln_pre = true;
    c.image_size = 26;
    c.patch_size = 5;
    c.image_width = odd ? 39 : 48;
    c.image_heads = odd ? 3 : 2;
    c.image_layers = 3;
    c.image_mlp = odd ? 128 : 136;
    c.context_length = 19;
    c.vocab_size = 131;
    c.text_width = odd ? 28 : 40;
    c.text_heads = odd ? 4 : 5;
    c.text_layers = 3;
    c.text_mlp = odd ? 75 : 160;
    c.image_ln_eps = c.text_ln_eps = 1e-5f;
    c.eot_id = 130;
    c.std_r = c.std_g = c.std_b = 0.27f;
    c.mean_r = c.mean_g = c.mean_b = 0.45f;
    return c;
}

// Pairs of step `step`; captions reach `longest` tokens.
static ClipBatch test_batch(const ClipConfig *c, int step, int longest) {
    const size_t pixels = (size_t)B * 3 * c->image_size * c->image_size;
    const size_t tokens = (size_t)B * c->context_length;
    uint8_t *p = (uint8_t *)malloc_check(pixels);
    int *t = (int *)calloc_check(tokens, sizeof(int));
    Rand r = rand_for(5, (uint64_t)step, 0);
    // each plane has a brightness of its own and a coarse pattern: noise would make all images alike to an
    // untrained tower
    for (int plane = 0; plane < B * 3; plane++) {
        const int low = (int)rand_below(&r, 200), wave = 3 + (int)rand_below(&r, 9), S = c->image_size;
        for (int i = 0; i < S * S; i++)
            p[plane * S * S + i] = (uint8_t)(low + (i / S / wave + i % S / wave) % 2 * 50);
    }
    for (int b = 0; b < B; b++) {
        const int length = 2 + (int)rand_below(&r, (uint64_t)longest - 1);
        for (int i = 0; i < length; i++)
            t[b * c->context_length + i] =
                i == length - 1 ? c->eot_id : (int)rand_below(&r, (uint64_t)c->eot_id);
    }
    ClipBatch batch = clip_batch(B);
    batch.pixels = p;
    batch.tokens = t;
    return batch;
}

static double step(Clip *clip, int number, int longest, bool update) {
    const AdamW hyper = {1e-3, 0.9, 0.98, 1e-6, 0.2, 0, 0, number};
    ClipBatch batch = test_batch(&clip->config, number, longest);
    clip_forward(clip, &batch, 0, true);
    const double loss = clip_loss(clip, B, NULL, POSITIVES_DIAGONAL, true);
    clip_backward(clip, &batch, 0);
    if (update) clip_update(clip, &hyper);
    free((void *)batch.pixels);
    free((void *)batch.tokens);
    return loss;
}

static Clip *test_clip(const ClipConfig *c, Precision precision) {
    Clip *clip = clip_create(c, NULL, 0, 7);
    const ClipTraining how = {B, false, false};
    clip_set_precision(clip, precision);
    clip_start_training(clip, &how);
    return clip;
}

// Untrained towers make all inputs alike, so that their gradients are differences of large sums: the
// tolerances are wide (for trained towers, see test_clip).
static void check_gradients_in_bf16(bool odd) {
    const ClipConfig c = test_config(odd);
    Clip *exact = test_clip(&c, PRECISION_FP32), *rounded = test_clip(&c, PRECISION_AMP_BF16);
    const double loss = step(exact, 1, 19, false), loss_rounded = step(rounded, 1, 19, false);
    EXPECT_CLOSE(loss_rounded, loss, 1e-2);
    double all_norm = 0, all_distance = 0;
    for (int i = 0; i < exact->tensors.count; i++) {
        const Tensor *x = &exact->tensors.list[i];
        float *want = (float *)malloc_check(x->count * sizeof(float));
        float *got = (float *)malloc_check(x->count * sizeof(float));
        clip_read(exact, ARENA_GRADIENTS, x, want);
        clip_read(rounded, ARENA_GRADIENTS, &rounded->tensors.list[i], got);
        double norm = 0, distance = 0;
        for (size_t j = 0; j < x->count; j++) {
            norm += (double)want[j] * want[j];
            distance += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        }
        EXPECT(sqrt(distance) <= 8e-2 * sqrt(norm), "%s: bf16 gradient is off by %g of its norm", x->name,
            sqrt(distance / norm));
        all_norm += norm;
        all_distance += distance;
        free(want);
        free(got);
    }
    EXPECT(sqrt(all_distance) <= 4e-2 * sqrt(all_norm), "all bf16 gradients are off by %g of their norm",
        sqrt(all_distance / all_norm));
    clip_free(exact);
    clip_free(rounded);
}

static size_t memory_used(void) {
    size_t free_bytes, total;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    return total - free_bytes;
}

static void check_memory(Precision precision) {
    const ClipConfig c = test_config(false);
    const size_t before = memory_used();
    Clip *clip = test_clip(&c, precision);
    size_t parameters, training, activations;
    clip_memory(clip, B, &parameters, &training, &activations);
    step(clip, 1, 3, true);
    step(clip, 2, 3, true); // batches take turns in two buffers
    const size_t used = memory_used();
    for (int i = 3; i < 6; i++) step(clip, i, 19, true);
    EXPECT(memory_used() == used, "%zu bytes taken after the second step", memory_used() - used);
#ifdef CLIPC_EMULATE // a GPU allocates in larger units, and some for itself
    EXPECT(used - before <= 1.05 * (double)(parameters + training + activations) + 1e6,
        "%zu bytes, announced were %zu", used - before, parameters + training + activations);
#endif
    clip_free(clip);
#ifdef CLIPC_EMULATE
    EXPECT(memory_used() == before, "%zu bytes are not freed", memory_used() - before);
#endif
}

static void test_gradients_in_bf16_are_near_those_in_fp32(void) {
    check_gradients_in_bf16(true);
    check_gradients_in_bf16(false);
}

static void test_memory_is_what_was_announced_and_does_not_grow(void) {
    check_memory(PRECISION_FP32);
    check_memory(PRECISION_AMP_BF16);
}

static void test_nothing_is_updated_where_a_gradient_is_not_finite(void) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    const ClipConfig c = test_config(true);
    for (int i = 0; i < 3; i++) {
        Clip *clip = test_clip(&c, PRECISION_FP32);
        step(clip, 1, c.context_length, false);
        expect_no_update_with(clip, bad[i], i);
        clip_free(clip);
    }
}

int main(void) {
    RUN(test_gradients_in_bf16_are_near_those_in_fp32);
    RUN(test_nothing_is_updated_where_a_gradient_is_not_finite);
    RUN(test_memory_is_what_was_announced_and_does_not_grow);
    return test_report();
}
