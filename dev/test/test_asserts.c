// The asserts at the doors of the back end, the matrix product, the loss and the loader: each is called with
// what it does not take, in a child process, which has to end by abort().
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"

#include "clipc/data/dataloader.h"
#include "dev/test/child.h"

// The model and the arrays that the calls below take; each call spoils one of them.
typedef struct {
    Clip *clip;
    ClipBatch batch; // of 2 pairs, captions of 5 tokens
    int tokens[2][5];
    float images[2 * 3 * 8 * 8];
    float floats[4096];
    const Kernels *k;
} Doors;

typedef struct {
    const char *name;
    void (*call)(Doors *d);
} Door;

static void all_is_well(Doors *d) {
    clip_forward(d->clip, &d->batch, 0, true);
    clip_loss(d->clip, 2, NULL, POSITIVES_DIAGONAL, true);
    clip_backward(d->clip, &d->batch, 0);
    const AdamW hyper = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-6, .step = 1};
    clip_update(d->clip, &hyper);
}

// ---------------------------------------------------------------- back end

static void more_rows_than_pairs(Doors *d) { clip_forward(d->clip, &d->batch, 1, true); }
static void a_batch_without_images(Doors *d) {
    d->batch.images = NULL;
    clip_encode_image(d->clip, &d->batch, d->floats);
}
static void a_batch_without_tokens(Doors *d) {
    d->batch.tokens = NULL;
    clip_encode_text(d->clip, &d->batch, d->floats);
}
static void a_token_beyond_the_vocabulary(Doors *d) {
    d->tokens[1][1] = d->clip->config.vocab_size;
    clip_encode_text(d->clip, &d->batch, d->floats);
}
static void a_negative_token(Doors *d) {
    d->tokens[0][0] = -1;
    clip_encode_text(d->clip, &d->batch, d->floats);
}
static void training_without_pairs(Doors *d) {
    const ClipTraining how = {0, false, false};
    clip_start_training(d->clip, &how);
}
static void a_loss_over_more_pairs_than_there_are(Doors *d) {
    clip_loss(d->clip, 3, NULL, POSITIVES_DIAGONAL, true);
}
static void a_backward_pass_of_another_batch(Doors *d) {
    clip_forward(d->clip, &d->batch, 0, true);
    d->batch.size = 1;
    clip_backward(d->clip, &d->batch, 0);
}
static void a_precision_that_a_cpu_does_not_have(Doors *d) { clip_set_precision(d->clip, PRECISION_TF32); }
static void a_step_that_is_not_counted_from_one(Doors *d) {
    const AdamW hyper = {.lr = 1e-3, .step = 0};
    clip_update(d->clip, &hyper);
}

// ---------------------------------------------------------------- matrix product

static void product(Doors *d, Operand C, Operand A, size_t ldc, int M, int N, int K, Epilogue e) {
    gemm(d->k, C, ldc, operand_matrix(A, (size_t)K, 1), matrix(d->floats, (size_t)N, 1), M, N, K, e);
}
static void a_product_without_rows(Doors *d) {
    product(d, fp32(d->floats + 999), fp32(d->floats), 3, 0, 3, 5, epilogue_of(EPILOGUE_STORE, NULL));
}
static void rows_of_C_that_overlap(Doors *d) {
    product(d, fp32(d->floats + 999), fp32(d->floats), 2, 4, 3, 5, epilogue_of(EPILOGUE_STORE, NULL));
}
static void bias_with_add_epilogue(Doors *d) {
    product(d, fp32(d->floats + 999), fp32(d->floats), 3, 4, 3, 5, epilogue_of(EPILOGUE_ADD, d->floats));
}
static void an_activation_without_a_place_for_it(Doors *d) {
    product(d, fp32(d->floats + 999), fp32(d->floats), 3, 4, 3, 5, epilogue_of(EPILOGUE_ACTIVATION, NULL));
}
static void a_residual_that_is_missing(Doors *d) {
    product(d, fp32(d->floats + 999), fp32(d->floats), 3, 4, 3, 5, epilogue_of(EPILOGUE_RESIDUAL, NULL));
}
static void bf16_out_of_fp32(Doors *d) {
    product(
        d, operand(d->floats + 999, true), fp32(d->floats), 3, 4, 3, 5, epilogue_of(EPILOGUE_STORE, NULL));
}
static void panels_that_are_not_aligned(Doors *d) {
    Matrix B = matrix(d->floats, 3, 1);
    B.panels = (const uint32_t *)d->floats + 1 + ((uintptr_t)d->floats / 4 % 16 == 15);
    gemm(d->k, fp32(d->floats + 999), 3, matrix(d->floats, 5, 1), B, 4, 3, 5,
        epilogue_of(EPILOGUE_STORE, NULL));
}

// ---------------------------------------------------------------- loss

static void soft_positives_without_keys(Doors *d) {
    contrastive_loss(d->k, NULL, NULL, NULL, d->floats, d->floats, NULL, POSITIVES_SOFT, 2, 3, 1, 0);
}
static void one_gradient_of_two(Doors *d) {
    double dscale;
    contrastive_loss(
        d->k, d->floats + 999, NULL, &dscale, d->floats, d->floats, NULL, POSITIVES_DIAGONAL, 2, 3, 1, 0);
}
static void a_loss_of_no_pairs(Doors *d) {
    contrastive_loss(d->k, NULL, NULL, NULL, d->floats, d->floats, NULL, POSITIVES_DIAGONAL, 0, 3, 1, 0);
}

// ---------------------------------------------------------------- loader

static LoaderConfig loader_config(void) {
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch_size = 2;
    c.workers = 1;
    c.image.size = 8;
    c.image.max_pixels = 1 << 20;
    return c;
}
static void open_loader(LoaderConfig c) {
    DatasetConfig config = dataset_config_default();
    config.num_samples = 4;
    Dataset data = dataset_open("synthetic", &config, 1);
    Loader *loader = loader_create(&data, &c);
    loader_start_epoch(loader, 0, 0);
    loader_free(loader);
    dataset_free(&data);
}
static void a_loader_as_it_should_be(Doors *d) {
    (void)d;
    open_loader(loader_config());
}
static void a_loader_of_empty_batches(Doors *d) {
    LoaderConfig c = loader_config();
    (void)d;
    c.batch_size = 0;
    open_loader(c);
}
static void a_loader_of_images_without_a_size(Doors *d) {
    LoaderConfig c = loader_config();
    (void)d;
    c.image.size = 0;
    open_loader(c);
}
static void a_loader_of_captions_of_one_token(Doors *d) {
    LoaderConfig c = loader_config();
    (void)d;
    c.context = 1;
    c.vocab_size = 20;
    open_loader(c);
}
static void distinct_steps_that_cut_batches(Doors *d) {
    LoaderConfig c = loader_config();
    (void)d;
    c.distinct_step = 3;
    open_loader(c);
}

// ---------------------------------------------------------------- the test

static Doors doors_create(void) {
    Doors d;
    memset(&d, 0, sizeof d);
    const ClipConfig config = {.embed_dim = 6,
        .image_size = 8,
        .patch_size = 4,
        .image_width = 8,
        .image_layers = 1,
        .image_heads = 2,
        .image_mlp = 16,
        .ln_pre = 1,
        .context_length = 5,
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
    const int tokens[2][5] = {{18, 3, 19, 0, 0}, {18, 4, 5, 6, 19}};
    const ClipTraining how = {2, false, false};
    d.k = kernels_select();
    d.clip = clip_create(&config, NULL, 0, 1);
    clip_start_training(d.clip, &how);
    d.batch = clip_batch(2);
    memcpy(d.tokens, tokens, sizeof tokens);
    return d;
}

static void call_door(const void *door) {
    Doors d = doors_create(); // in the child, since OpenMP's threads do not survive a fork
    d.batch.images = d.images;
    d.batch.tokens = &d.tokens[0][0];
    ((const Door *)door)->call(&d);
}

static void test_what_a_door_takes_passes(void) {
    const Door well[] = {{"a step", all_is_well}, {"a loader", a_loader_as_it_should_be}};
    for (int i = 0; i < 2; i++) {
        child_run(call_door, &well[i]);
        EXPECT(child.code == 0, "%s: exit code %d: %s", well[i].name, child.code, child.text);
    }
}

static void test_what_a_door_does_not_take_ends_in_an_assert(void) {
#define DOOR(call) \
    { #call, call }
    const Door doors[] = {DOOR(more_rows_than_pairs), DOOR(a_batch_without_images),
        DOOR(a_batch_without_tokens), DOOR(a_token_beyond_the_vocabulary), DOOR(a_negative_token),
        DOOR(training_without_pairs), DOOR(a_loss_over_more_pairs_than_there_are),
        DOOR(a_backward_pass_of_another_batch), DOOR(a_precision_that_a_cpu_does_not_have),
        DOOR(a_step_that_is_not_counted_from_one), DOOR(a_product_without_rows), DOOR(rows_of_C_that_overlap),
        DOOR(bias_with_add_epilogue), DOOR(an_activation_without_a_place_for_it),
        DOOR(a_residual_that_is_missing), DOOR(bf16_out_of_fp32), DOOR(panels_that_are_not_aligned),
        DOOR(soft_positives_without_keys), DOOR(one_gradient_of_two), DOOR(a_loss_of_no_pairs),
        DOOR(a_loader_of_empty_batches), DOOR(a_loader_of_images_without_a_size),
        DOOR(a_loader_of_captions_of_one_token), DOOR(distinct_steps_that_cut_batches)};
#undef DOOR
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++) {
        child_run(call_door, &doors[i]);
        EXPECT(child_asserted(""), "%s: exit code %d: %s", doors[i].name, child.code, child.text);
    }
}

int main(void) {
    RUN(test_what_a_door_takes_passes);
    RUN(test_what_a_door_does_not_take_ends_in_an_assert);
    return test_report();
}
