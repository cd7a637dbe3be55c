// Numbers that are not finite: no update with such a gradient, no file with such weights or optimizer state.
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"

#include "clipc/model/checkpoint.h"
#include "dev/test/child.h"
#include "dev/test/not_finite.h"

static char folder[] = "/tmp/test_not_finite_XXXXXX";

static Clip *tiny_clip(void) {
    ClipConfig c = {.embed_dim = 5,
        .ln_pre = true,
        .image_size = 8,
        .patch_size = 4,
        .image_width = 6,
        .image_heads = 2,
        .image_layers = 1,
        .image_mlp = 8,
        .context_length = 5,
        .vocab_size = 17,
        .text_width = 4,
        .text_heads = 1,
        .text_layers = 1,
        .text_mlp = 8,
        .eot_id = 16,
        .image_ln_eps = 1e-5f,
        .text_ln_eps = 1e-5f,
        .mean_r = 0.5f,
        .mean_g = 0.5f,
        .mean_b = 0.5f,
        .std_r = 0.3f,
        .std_g = 0.3f,
        .std_b = 0.3f};
    Clip *clip = clip_create(&c, NULL, 0, 7);
    clip_set_precision(clip, PRECISION_FP32);
    clip_start_training(clip, &(ClipTraining){2, true, false});
    return clip;
}

// The gradients of two pairs.
static void backward(Clip *clip) {
    uint8_t images[2 * 3 * 8 * 8];
    int tokens[2 * 5] = {3, 4, 16, 0, 0, 5, 16, 0, 0, 0};
    for (size_t i = 0; i < sizeof images; i++) images[i] = (uint8_t)(i * 37 % 251);
    ClipBatch batch = clip_batch(2);
    batch.pixels = images;
    batch.tokens = tokens;
    clip_forward(clip, &batch, 0, true);
    EXPECT(isfinite(clip_loss(clip, 2, NULL, POSITIVES_DIAGONAL, true)));
    clip_backward(clip, &batch, 0);
}

static void test_nothing_is_updated_where_a_gradient_is_not_finite(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 6; i++) {
        Clip *clip = tiny_clip();
        backward(clip);
        expect_no_update_with(clip, bad[i % 3], i < 3 ? 0 : 1);
        clip_free(clip);
    }
}

typedef struct {
    Clip *clip;
    char stem[PATH_SIZE];
} Saved;

static void save(const void *argument) {
    const Saved *s = argument;
    FileSet *set = file_set_open(folder);
    checkpoint_write(set, s->clip, "last", &(RunState){.step = 2}, "settings");
    file_set_commit(set);
}

static void test_what_is_not_finite_is_not_saved_and_the_last_files_stay(void) {
    static const ClipArena arenas[] = {ARENA_PARAMETERS, ARENA_M, ARENA_V, ARENA_EMA};
    enum { FILES = 3 };
    Saved s = {.clip = tiny_clip()};
    uint64_t before[FILES], after;
    path_format(s.stem, "%s/last", folder);
    save(&s);
    for (int a = 0; a < 4; a++)
        for (int i = 0; i < s.clip->tensors.count; i++) {
            char path[PATH_SIZE], what[256];
            const Tensor *x = &s.clip->tensors.list[i];
            float *values = malloc_check(x->count * sizeof *values);
            for (int k = 0; k < FILES; k++) {
                path_format(path, "%s%s", s.stem, checkpoint_endings[k]);
                EXPECT(file_hash(path, &before[k]));
            }
            clip_read(s.clip, arenas[a], x, values);
            const float kept = values[0];
            values[0] = i % 2 ? NAN : INFINITY;
            clip_write(s.clip, arenas[a], x, values);
            child_run(save, &s);
            snprintf(what, sizeof what, "is not saved, since %s is not finite", x->name);
            EXPECT(child.code == EXIT_RUNTIME && strstr(child.text, what), "exit %d, '%s'", child.code,
                child.text);
            values[0] = kept;
            clip_write(s.clip, arenas[a], x, values);
            for (int k = 0; k < FILES; k++) {
                path_format(path, "%s%s", s.stem, checkpoint_endings[k]);
                EXPECT(file_hash(path, &after) && after == before[k], "%s has changed", path);
                path_format(path, "%s%s.part", s.stem, checkpoint_endings[k]);
                EXPECT(!file_exists(path), "%s is left", path);
            }
            free(values);
        }
    clip_free(s.clip);
    for (int k = 0; k < FILES; k++) {
        path_format(s.stem, "%s/last%s", folder, checkpoint_endings[k]);
        unlink(s.stem);
    }
}

static void test_logit_scale_is_clamped_and_nan_stays_nan(void) {
    const float values[][2] = {{-1, 0}, {9, (float)LOGIT_SCALE_MAX}, {2, 2}, {NAN, NAN}};
    for (int i = 0; i < 4; i++) {
        Clip *clip = tiny_clip();
        const Tensor *x = tensor_find(&clip->tensors, LOGIT_SCALE_KEY);
        const AdamW hyper = {.beta1 = 0.9, .beta2 = 0.98, .eps = 1e-6, .step = 1}; // a rate of 0
        float now;
        backward(clip);
        clip_write(clip, ARENA_PARAMETERS, x, &values[i][0]);
        clip_update(clip, &hyper);
        clip_read(clip, ARENA_PARAMETERS, x, &now);
        EXPECT(now == values[i][1] || (isnan(now) && isnan(values[i][1])), "%g became %g", values[i][0], now);
        clip_free(clip);
    }
}

int main(void) {
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: %s", folder, strerror(errno));
    RUN(test_what_is_not_finite_is_not_saved_and_the_last_files_stay);
    RUN(test_nothing_is_updated_where_a_gradient_is_not_finite);
    RUN(test_logit_scale_is_clamped_and_nan_stays_nan);
    rmdir(folder);
    return test_report();
}
