// What a back end does where a gradient is not finite: the same for train_clip.c and train_clip.cu.
#ifndef CLIPC_TEST_NOT_FINITE_H
#define CLIPC_TEST_NOT_FINITE_H

#include "clipc/model/clip.h"
#include "dev/test/test.h"

// The hash of the weights, m, v and moving average.
static inline uint64_t training_hash(const Clip *clip) {
    static const ClipArena arenas[] = {ARENA_PARAMETERS, ARENA_M, ARENA_V, ARENA_EMA};
    uint64_t hash = HASH_START;
    for (int a = 0; a < (clip_has_ema(clip) ? 4 : 3); a++)
        for (int i = 0; i < clip->tensors.count; i++) {
            const Tensor *x = &clip->tensors.list[i];
            float *values = (float *)malloc_check(x->count * sizeof *values);
            clip_read(clip, arenas[a], x, values);
            hash = hash_bytes(hash, values, x->count * sizeof *values);
            free(values);
        }
    return hash;
}

// Puts a number into the gradient of each tensor in turn and updates: nothing may change. `clip` has
// gradients.
static inline void expect_no_update_with(Clip *clip, float bad, double clip_norm) {
    const AdamW hyper = {1e-3, 0.9, 0.98, 1e-6, 0.2, clip_norm, clip_has_ema(clip) ? 0.5 : 0, 1};
    const uint64_t before = training_hash(clip);
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        float *values = (float *)malloc_check(x->count * sizeof *values);
        clip_read(clip, ARENA_GRADIENTS, x, values);
        const float kept = values[x->count / 2];
        values[x->count / 2] = bad;
        clip_write(clip, ARENA_GRADIENTS, x, values);
        EXPECT(!isfinite(clip_update(clip, &hyper)), "%s: %g in the gradient, and the norm is finite",
            x->name, bad);
        EXPECT(
            training_hash(clip) == before, "%s: %g in the gradient, and something is updated", x->name, bad);
        values[x->count / 2] = kept;
        clip_write(clip, ARENA_GRADIENTS, x, values);
        free(values);
    }
    EXPECT(
        isfinite(clip_update(clip, &hyper)) && training_hash(clip) != before, "a good gradient is not used");
}

#endif
