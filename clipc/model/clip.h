// What a CLIP is, and the few functions that every back end offers: train_clip.c implements them for a CPU,
// train_clip.cu for a GPU; training, evaluation and checkpoints are written once, above them.
//
// One training step over k micro-batches of B pairs; features and their gradients stay inside the back end:
//     for j in 0 … k-1:
//         clip_forward(clip, &batch[j], j * B, keep = k == 1)      features of both towers, L2-normalised
//     loss = clip_loss(clip, k * B, keys, positives, true)         over all pairs at once: exact for any k
//     for j in 0 … k-1:
//         if k > 1: clip_forward(clip, &batch[j], j * B, keep = true)
//         clip_backward(clip, &batch[j], j * B)
//     norm = clip_update(clip, &adamw)
#ifndef CLIPC_CLIP_H
#define CLIPC_CLIP_H

#include "clipc/math/loss.h"         // Positives, AdamWTerms
#include "clipc/model/weight_file.h" // ClipConfig, TensorTable, the packed file

#include <fnmatch.h>

typedef struct Backend Backend; // weights, gradients, activations: the back end's own

typedef struct {
    ClipConfig config;
    TensorTable tensors;
    char *merges; // the weight file's tokenizer section, with a NUL after it; NULL: there is no tokenizer
    size_t merges_bytes;
    Backend *back;
} Clip;

// The input of the model. Exactly one of pixels and images is set, or neither if only text is encoded.
typedef struct {
    int size;              // B
    const uint8_t *pixels; // (B,3,S,S), 0 … 255: normalised with the configuration's mean and std
    const float *images;   // (B,3,S,S), normalised already
    const int *tokens;     // (B,T), T = context_length; read up to the first end-of-text token
    // (B,C) for each tower: pooled features from clip_pool(), used instead of pixels or tokens; NULL: none
    const float *pooled[2];
    // (B,kept_count) patch dropout (Li et al. 2023): indices of the patches of each image that are computed,
    // ascending; NULL: all
    const int *kept;
    int kept_count;
} ClipBatch;

// An empty batch of `size` pairs: the caller sets pixels, tokens or other inputs.
static inline ClipBatch clip_batch(int size) {
    ClipBatch batch;
    memset(&batch, 0, sizeof batch);
    batch.size = size;
    return batch;
}

// What one optimizer step trains on: k micro-batches of B pairs in each process; the loss is taken over all
// pairs of all processes. These are in the order of one process: micro-batch j of process r is number
// j * processes + r of theirs.
typedef struct {
    int k, B;
    ClipBatch *micro;    // (k) of size B each, those of this process
    uint64_t *keys;      // (pairs of the step) equal keys mark pairs with the same content; see Positives
    Positives positives; // how the loss takes such pairs
} StepBatch;

// The pairs of a step, and the row among them at which micro-batch j of this process begins.
static inline int step_pairs(const StepBatch *s) { return s->k * s->B * comm_size(); }
static inline int step_row(const StepBatch *s, int j) { return (j * comm_size() + comm_rank()) * s->B; }

// The optimizer's settings for one step (Loshchilov and Hutter 2019; as in torch.optim.AdamW, which open_clip
// uses).
typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    double ema_decay; // of the moving average of the weights, if clip_start_training() was asked for one
    // 0: off; else gradients are scaled by min(1, grad_clip_norm / (norm + 1e-6)), norm over all parameters
    double grad_clip_norm;
    int64_t step; // counted from 1: the exponent in the bias correction
} AdamW;

// The constants of this step for one tensor; grad_scale is the gradient-clipping factor, the same for all
// tensors.
static inline AdamWTerms adamw_terms(const AdamW *a, const Tensor *x, double grad_scale) {
    const double lr = a->lr * x->lr_scale, decay = x->decay ? a->weight_decay : 0;
    const double t = (double)a->step;
    AdamWTerms terms;
    terms.grad_scale = (float)grad_scale;
    terms.beta1 = (float)a->beta1;
    terms.one_minus_beta1 = (float)(1 - a->beta1);
    terms.beta2 = (float)a->beta2;
    terms.one_minus_beta2 = (float)(1 - a->beta2);
    terms.rate = (float)(lr / (1 - pow(a->beta1, t)));
    terms.bias_correction2 = (float)(1 / (1 - pow(a->beta2, t)));
    terms.eps = (float)a->eps;
    terms.decay_factor = (float)(1 - lr * decay);
    return terms;
}

// The arrays of a model that clip_read() and clip_write() copy, tensor by tensor; M and V are AdamW's
// moments.
typedef enum { ARENA_PARAMETERS, ARENA_GRADIENTS, ARENA_M, ARENA_V, ARENA_EMA } ClipArena;

// Logits are cosines times exp(logit_scale). The parameter is clamped to [0, ln 100] after every update
// (Radford et al. 2021, 2.5).
#define LOGIT_SCALE_INIT 2.6592600369327779 // ln(1 / 0.07)
#define LOGIT_SCALE_MAX 4.6051701859880914  // ln 100

// ---------------------------------------------------------------- the back end's functions

// Reads a model from a packed weight file; an invalid file ends the program with a one-line message. The
// model can encode; clip_start_training() prepares it for training.
Clip *clip_load(const char *path);

// A model whose weights are all zero, to be filled with clip_write(); merges, a tokenizer section, may be
// NULL.
Clip *clip_create_empty(const ClipConfig *config, const char *merges, size_t merges_bytes);

// A model with random weights, drawn as open_clip draws them from `seed`; merges, a tokenizer section, may
// be NULL.
Clip *clip_create(const ClipConfig *config, const char *merges, size_t merges_bytes, uint64_t seed);

// Writes a packed fp32 file into `out`, which the caller opens and commits; returns its identity.
uint64_t clip_save(Clip *clip, SafeFile *out);

void clip_free(Clip *clip);

// Training settings; open_clip has options of the same names.
typedef struct {
    int pairs; // pairs per step, over all micro-batches of all processes
    bool ema;  // keep a moving average of the trainable tensors, starting from their current values
    bool grad_checkpointing; // save only the blocks' inputs, recompute the rest: the same bits
} ClipTraining;

// The number format to which the operands of matrix products are rounded. Weights, gradients, m and v, sums,
// softmax, LayerNorm and the loss are fp32 in all three (open_clip's --precision fp32 and amp_bf16; tf32
// exists on GPUs only).
typedef enum { PRECISION_FP32, PRECISION_AMP_BF16, PRECISION_TF32, PRECISIONS } Precision;

// NONE: unsupported. SLOW: emulated, correct but no faster. NATIVE: full hardware speed.
typedef enum { SUPPORT_NONE, SUPPORT_SLOW, SUPPORT_NATIVE } PrecisionSupport;

PrecisionSupport clip_precision_support(Precision precision);

// The precision that is the fastest here, or `wanted` unless that is PRECISIONS; on a CPU it also chooses the
// instruction set. Both by timing them (clipc/math/fastest.h), and for clip_set_precision() and all calls of
// kernels_select() after it.
Precision clip_choose_fastest(Precision wanted);

// From here on kernels of this name (clip_kernels()) are used if this machine has them, unless CLIPC_ISA
// names others: a resumed run keeps its own, and so its bits.
void clip_keep_kernels(const char *name);

// Call it after locking and before clip_start_training(); without it the model computes in fp32. The
// precision must be supported.
void clip_set_precision(Clip *clip, Precision precision);
Precision clip_precision(const Clip *clip);

// Allocates gradients and optimizer state of the trainable tensors (m = v = 0), and the features of a step.
// Call it after locking.
void clip_start_training(Clip *clip, const ClipTraining *how);

// Bytes of parameters; of gradients and optimizer state; of activations and scratch for training on batches
// of `batch_size` pairs whose captions fill the context (the most that such a batch can need).
void clip_memory(const Clip *clip, int batch_size, size_t *parameters, size_t *training, size_t *activations);

// Features of images (B,E) or captions (B,E), L2-normalised; no activations are kept.
void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features);
void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features);

// pooled (B,C) = the output of a tower before its projection, after the final LayerNorm. For a locked tower
// it can be cached and used again in later epochs.
void clip_pool(Clip *clip, int tower, const ClipBatch *batch, float *pooled);

// Encodes a micro-batch into rows first_row … first_row + size - 1 of the step's features. keep: saves the
// activations for clip_backward().
void clip_forward(Clip *clip, const ClipBatch *batch, int first_row, bool keep);

// The contrastive loss over the first `pairs` rows of features, those of all processes; for
// `positives` and keys (pairs) see
// contrastive_loss(). gradient: also computes the gradients of the features and of logit_scale.
double clip_loss(Clip *clip, int pairs, const uint64_t *keys, Positives positives, bool gradient);

// Backward pass of the micro-batch of the last clip_forward(…, first_row, keep = true); adds to the
// gradients.
void clip_backward(Clip *clip, const ClipBatch *batch, int first_row);

// One AdamW step over all trainable tensors; the next clip_backward() overwrites the gradients instead of
// adding to them. Returns the L2 norm of all gradients before clipping; where that
// is not finite, nothing is updated.
double clip_update(Clip *clip, const AdamW *hyper);

// Is there a moving average of the weights?
bool clip_has_ema(const Clip *clip);

// Exchanges the weights with their moving average: to evaluate or save the latter, and back.
void clip_swap_ema(Clip *clip);

// exp(logit_scale) as the next step uses it
float clip_logit_scale(const Clip *clip);

// Copies one tensor (x->count floats) out or in; all arenas but the parameters hold trainable tensors only.
// Reading M, V or EMA is an exchange: all processes do it.
void clip_read(const Clip *clip, ClipArena arena, const Tensor *x, float *values);
void clip_write(Clip *clip, ClipArena arena, const Tensor *x, const float *values);

// Name of the kernels in use, e.g. "avx512". Other kernels round differently, so the training state records
// it.
const char *clip_kernels(const Clip *clip);

// ---------------------------------------------------------------- the same for every back end

static inline int clip_tower_layers(const ClipConfig *c, int tower) {
    return tower == IMAGE_TOWER ? c->image_layers : c->text_layers;
}

// open_clip's --lock-image --lock-image-unlocked-groups n and --lock-text --lock-text-unlocked-layers n: of
// the tower's L + 2 groups (see weights.h) the last n train; n >= L + 2 trains all. logit_scale always
// trains.
static inline void clip_lock(Clip *clip, int tower, int unlocked_groups) {
    int first = clip_tower_layers(&clip->config, tower) + 2 - unlocked_groups;
    for (int i = 0; i < clip->tensors.count; i++) {
        Tensor *x = &clip->tensors.list[i];
        if (x->tower == tower) x->trainable = x->group >= first;
    }
    tensor_table_pack(&clip->tensors);
}

// Is everything in the tower frozen but its projection, which may train? Then the result of clip_pool() can
// be cached.
static inline bool tower_is_frozen(const Clip *clip, int tower) {
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower == tower && x->trainable && x->group <= clip_tower_layers(&clip->config, tower))
            return false;
    }
    return true;
}

// Layer-wise rates (open_clip's --image-layer-decay, --text-layer-decay; Clark et al. 2020): the rate of a
// group is multiplied by decay^(number of groups above it) and by the tower's own factor. logit_scale keeps
// the base rate.
static inline void clip_scale_rates(Clip *clip, int tower, double decay, double factor) {
    const int groups = clip_tower_layers(&clip->config, tower) + 2;
    for (int i = 0; i < clip->tensors.count; i++) {
        Tensor *x = &clip->tensors.list[i];
        if (x->tower == tower) x->lr_scale = (float)(factor * pow(decay, groups - 1 - x->group));
    }
}

// open_clip's --wd-exclude: no weight decay for tensors whose name matches the pattern (a shell pattern,
// fnmatch). Returns the number of matches.
static inline int clip_exclude_decay(Clip *clip, const char *pattern) {
    int matched = 0;
    for (int i = 0; i < clip->tensors.count; i++)
        if (fnmatch(pattern, clip->tensors.list[i].name, 0) == 0) {
            clip->tensors.list[i].decay = false;
            matched++;
        }
    return matched;
}

// The number of tokens up to and including the first end-of-text token: what a text tower computes. The whole
// row if there is none (open_clip's argmax then takes the largest id; the tokenizer never makes such a row).
static inline int caption_length(const int *tokens, int context, int eot_id) {
    for (int t = 0; t < context; t++)
        if (tokens[t] == eot_id) return t + 1;
    return context;
}

#endif
