// Every kernel of train_clip.cu at odd sizes against the plain loops of clipc/math/plain.h, in fp32 and in
// bf16: emulated (make test), on a GPU (make test-gpu). Inputs are rounded to the type under test before
// either side sees them, outputs begin as NaN, and each layer runs twice: the bits are the same.
#define CLIP_WITHOUT_MAIN
#include "train_clip.cu"
#include "clipc/math/plain.h"
#include "dev/cuda/arrays.h"
#include "dev/test/child.h"

static Gpu gpu;

template <typename Real> constexpr bool IS_BF16 = sizeof(Real) == 2;
// bf16: half a unit in the last place is 2e-3
template <typename Real> static double tolerance(double fp32) { return IS_BF16<Real> ? 4e-3 : fp32; }

// What `run`, which was called once, wrote is near `want`, and the same bits when it is called again. Frees
// `want`.
template <typename Real, typename Want, typename Run>
static void check_output(const char *name, Array<Real> *out, Want *want, double tol, Run run) {
    download(out);
    const double error = error_of(out->host, want, out->n);
    EXPECT(error <= tol, "%s, %s: error %g, tolerance %g", name, IS_BF16<Real> ? "bf16" : "fp32", error, tol);
    float *first = (float *)malloc_check(out->n * sizeof(float));
    memcpy(first, out->host, out->n * sizeof(float));
    run();
    EXPECT(memcmp(first, download(out), out->n * sizeof(float)) == 0, "%s: other bits the second time", name);
    free(first);
    free(want);
}

// ---------------------------------------------------------------- rows

template <typename Real> static void check_copy_rows(int C, bool add) {
    enum { N = 5, ROWS = 11 };
    const int to[N] = {7, 0, 3, 10, 9}, from[N] = {2, 2, 10, 0, 5}, LD = C + 8;
    Array<Real> x = array_random<Real>(1, (size_t)ROWS * LD, 1),
                out = array_random<Real>(2, (size_t)ROWS * C, 1);
    int *gpu_to = ints_upload(to, N), *gpu_from = ints_upload(from, N);
    double *want = doubles(out.n);
    for (size_t i = 0; i < out.n; i++) want[i] = out.host[i];
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) {
            double *w = &want[to[i] * C + c];
            *w = x.host[from[i] * LD + c] + (add ? *w : 0);
        }
    copy_rows(&gpu, out.gpu, (size_t)C, gpu_to, x.gpu, (size_t)LD, gpu_from, N, C, add);
    const double error = error_of(download(&out), want, out.n);
    EXPECT(error <= (add ? tolerance<Real>(1e-7) : 0), "copy_rows, C %d: error %g", C, error);
    free(want);
    CUDA_CHECK(cudaFree(gpu_to));
    CUDA_CHECK(cudaFree(gpu_from));
    arrays_free(&x, &out);
}

template <typename Real> static void test_copy_rows_sets_or_adds_the_named_rows(void) {
    for (int add = 0; add < 2; add++) {
        check_copy_rows<Real>(39, add);
        check_copy_rows<Real>(40, add);
    }
}

template <typename Real> static void check_bias_backward(int N, int O, bool accumulate) {
    const int LD = O + 16;
    Array<Real> dout = array_random<Real>(3, (size_t)N * LD, 1);
    Array<float> dbias = array_random<float>(4, (size_t)O, 1);
    float *want = floats((size_t)O);
    memcpy(want, dbias.host, (size_t)O * sizeof(float));
    linear_backward_weight_plain(NULL, want, dout.host, NULL, N, 0, O, (size_t)LD, accumulate);
    bias_backward(&gpu, dbias.gpu, dout.gpu, (size_t)LD, N, O, accumulate);
    const double error = error_of(download(&dbias), want, (size_t)O);
    EXPECT(error <= 1e-6, "bias_backward, %d rows of %d: error %g", N, O, error);
    free(want);
    arrays_free(&dout, &dbias);
}

template <typename Real> static void test_bias_backward_sums_columns(void) {
    check_bias_backward<Real>(1, 5, false);
    check_bias_backward<Real>(77, 264, true);
    check_bias_backward<Real>(1301, 39, false);
}

// ---------------------------------------------------------------- LayerNorm and activation

template <typename Real, typename DOut>
static void check_layernorm(int N, int C, bool accumulate, bool skips) {
    const size_t n = (size_t)N * C, bytes = (size_t)C * sizeof(float);
    Array<float> x = array_random<float>(1, n, 2);
    Array<DOut> dout = array_random<DOut>(2, n, 1);
    Array<Real> out = array_create<Real>(n), skip = array_random<Real>(3, n, 1), dx = array_create<Real>(n);
    Array<float> gain = array_random<float>(4, (size_t)C, 1), bias = array_random<float>(5, (size_t)C, 1),
                 mean = array_create<float>((size_t)N), rstd = array_create<float>((size_t)N);
    Array<float> dgain = array_random<float>(6, (size_t)C, 1), dbias = array_random<float>(7, (size_t)C, 1);
    float *want = floats(n), *want_dx = floats(n), *want_mean = floats((size_t)N),
          *want_rstd = floats((size_t)N), *want_dgain = floats((size_t)C), *want_dbias = floats((size_t)C);
    memcpy(want_dgain, dgain.host, bytes);
    memcpy(want_dbias, dbias.host, bytes);
    layernorm_forward_plain(want, want_mean, want_rstd, x.host, gain.host, bias.host, N, C, 1e-5);
    layernorm_backward_plain(want_dx, want_dgain, want_dbias, skips ? skip.host : NULL, dout.host, x.host,
        gain.host, want_mean, want_rstd, N, C, accumulate);
    const LayerNorm w = {gain.gpu, bias.gpu, dgain.gpu, dbias.gpu, C, 1e-5f, &gpu};
    const RowStats stats = {mean.gpu, rstd.gpu};
    const auto forward = [&] { layernorm_forward(out.gpu, stats, x.gpu, &w, N); };
    forward();
    check_output("layernorm_forward", &out, want, tolerance<Real>(2e-6), forward);
    const auto backward = [&] {
        upload(&dgain);
        upload(&dbias);
        layernorm_backward(dx.gpu, skips ? skip.gpu : NULL, dout.gpu, x.gpu, stats, &w, N, accumulate);
    };
    backward();
    check_output("layernorm_backward, dx", &dx, want_dx, tolerance<Real>(5e-6), backward);
    const double gain_error = error_of(download(&dgain), want_dgain, (size_t)C);
    const double bias_error = error_of(download(&dbias), want_dbias, (size_t)C);
    EXPECT(gain_error <= 5e-6 && bias_error <= 5e-6,
        "layernorm_backward, (%d,%d): error of dgain %g, dbias %g", N, C, gain_error, bias_error);
    for (float *p : {want_mean, want_rstd, want_dgain, want_dbias}) free(p);
    arrays_free(&x, &out, &dout, &skip, &dx, &gain, &bias, &mean, &rstd, &dgain, &dbias);
}

template <typename Real> static void test_layernorm_is_the_plain_one(void) {
    check_layernorm<Real, Real>(37, 5, false, true);
    check_layernorm<Real, Real>(1, 39, true, false);
    check_layernorm<Real, Real>(1031, 104, true, true);
    check_layernorm<Real, Real>(3, 1288, false, true);
    check_layernorm<Real, float>(19, 48, false, false);
}

template <typename Real> static void check_activation(int N, int F, Activation activation, bool accumulate) {
    const size_t n = (size_t)N * F;
    Array<float> dbias = array_random<float>(3, (size_t)F, 1);
    Array<Real> x = array_random<Real>(1, n, 4), out = array_create<Real>(n),
                dout = array_random<Real>(2, n, 1), dx = array_create<Real>(n);
    const float edges[] = {0, -0.0f, 1e-8f, 100, -100, 3e4f, -3e4f};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) x.host[i] = edges[i];
    upload(&x);
    float *want = floats(n), *want_dx = floats(n), *want_dbias = floats((size_t)F);
    memcpy(want_dbias, dbias.host, (size_t)F * sizeof(float));
    activation_forward_plain(want, x.host, n, activation);
    activation_backward_plain(want_dx, dout.host, x.host, n, activation);
    linear_backward_weight_plain(NULL, want_dbias, want_dx, NULL, N, 0, F, (size_t)F, accumulate);
    const auto forward = [&] { activation_forward(&gpu, out.gpu, x.gpu, n, activation); };
    forward();
    EXPECT(download(&out)[5] == x.host[5] && out.host[6] == 0, "%g and %g of a large argument",
        (double)out.host[5], (double)out.host[6]);
    want[5] = want[6] = 0; // which would hide the errors of the others
    out.host[5] = out.host[6] = 0;
    const double error = error_of(out.host, want, n);
    EXPECT(error <= tolerance<Real>(1e-6), "activation_forward: error %g", error);
    want[5] = x.host[5];
    check_output("activation_forward", &out, want, tolerance<Real>(1e-6), forward);
    const auto backward = [&] {
        upload(&dbias);
        activation_backward(&gpu, dx.gpu, dbias.gpu, dout.gpu, x.gpu, N, F, activation, accumulate);
    };
    backward();
    const double bias_error = error_of(download(&dbias), want_dbias, (size_t)F);
    EXPECT(bias_error <= 2e-6, "activation_backward, %d rows of %d: error of dbias %g", N, F, bias_error);
    free(want_dbias);
    check_output("activation_backward", &dx, want_dx, tolerance<Real>(2e-6), backward);
    arrays_free(&x, &out, &dout, &dx, &dbias);
}

template <typename Real> static void test_activations_are_the_plain_ones(void) {
    for (Activation activation : {ACTIVATION_GELU, ACTIVATION_QUICK_GELU}) {
        check_activation<Real>(37, 21, activation, false);
        check_activation<Real>(1050, 8, activation, true);
    }
}

// ---------------------------------------------------------------- attention

template <typename Real>
static void check_attention(const int *lengths, int B, int NH, int HS, bool causal, bool pooled) {
    char name[128];
    snprintf(name, sizeof name, "attention, %d sequences, the first of %d tokens, %d heads of %d%s%s", B,
        lengths[0], NH, HS, causal ? ", causal" : "", pooled ? ", pooled rows" : "");
    Sequences s = {0, 0, 0, NULL, NULL};
    sequences_reserve(&s, B);
    for (int b = 0; b < B; b++) sequences_add(&s, b, lengths[b], causal ? lengths[b] - 1 : lengths[b] / 2);
    Sequences on_gpu = s;
    on_gpu.start = ints_upload(s.start, (size_t)B + 1);
    on_gpu.pooled_row = ints_upload(s.pooled_row, (size_t)B);
    const int C = NH * HS, Q = pooled ? B : s.R, *pooled_row = pooled ? s.pooled_row : NULL;
    const size_t R = (size_t)s.R;
    const Attention w = {C, NH, causal, &gpu};
    Array<Real> qkv = array_random<Real>(1, R * 3 * C, 1.5), out = array_create<Real>((size_t)Q * C),
                dout = array_random<Real>(2, (size_t)Q * C, 1), dqkv = array_create<Real>(R * 3 * C);
    Array<float> lse = array_create<float>((size_t)Q * NH), delta = array_create<float>((size_t)Q * NH);
    float *want = floats((size_t)Q * C), *want_lse = floats((size_t)Q * NH), *want_dqkv = floats(R * 3 * C);
    attention_forward_plain(want, qkv.host, s.start, pooled_row, B, C, NH, causal);
    attention_lse(want_lse, qkv.host, s.start, pooled_row, B, C, NH, causal);
    attention_backward_plain(want_dqkv, dout.host, qkv.host, s.start, pooled_row, B, C, NH, causal);
    const auto forward = [&] { attention_forward(out.gpu, lse.gpu, qkv.gpu, &on_gpu, &w, pooled); };
    forward();
    check_output(name, &out, want, tolerance<Real>(3e-6) * (IS_BF16<Real> ? 2 : 1), forward);
    const double lse_error = error_of(download(&lse), want_lse, lse.n);
    EXPECT(lse_error <= 3e-6, "%s: error of lse %g", name, lse_error);
    if (pooled) { // the queries that are not computed have no gradient, and none is written
        for (size_t i = 0; i < dqkv.n; i++) dqkv.host[i] = 0;
        upload(&dqkv);
    }
    const auto backward = [&] {
        attention_backward(dqkv.gpu, delta.gpu, dout.gpu, out.gpu, lse.gpu, qkv.gpu, &on_gpu, &w, pooled);
    };
    backward();
    check_output(name, &dqkv, want_dqkv, tolerance<Real>(1e-5) * (IS_BF16<Real> ? 3 : 1), backward);
    free(want_lse);
    CUDA_CHECK(cudaFree(on_gpu.start));
    CUDA_CHECK(cudaFree(on_gpu.pooled_row));
    sequences_free(&s);
    arrays_free(&qkv, &out, &dout, &dqkv, &lse, &delta);
}

template <typename Real> static void test_attention_is_the_plain_one(void) {
    const int captions[] = {5, 17, 1, 77, 33}, images[] = {50, 50};
    const int one_tile[] = {64}, two_tiles[] = {65}, long_one[] = {257}, longest[] = {1025};
    check_attention<Real>(captions, 5, 3, 13, true, false);
    check_attention<Real>(captions, 5, 3, 64, true, true);
    check_attention<Real>(captions + 1, 4, 2, 24, true, false);
    check_attention<Real>(images, 2, 3, 64, false, false);
    check_attention<Real>(images, 2, 3, 80, false, true);
    check_attention<Real>(one_tile, 1, 2, 104, false, false);
    check_attention<Real>(two_tiles, 1, 1, 88, true, false);
    check_attention<Real>(two_tiles, 1, 1, 128, false, false);
    check_attention<Real>(long_one, 1, 1, 16, true, false);
    check_attention<Real>(longest, 1, 1, 8, false, true);
}

// ---------------------------------------------------------------- embeddings

// Two images of 17 x 17 pixels, of whose 3 x 3 patches three each are computed, as with patch dropout.
enum {
    IMAGES = 2,
    PATCHES = 3,
    SIDE = 17,
    PATCH = 5,
    GRID = 3,
    POSITIONS = GRID * GRID + 1,
    IMAGE_ROWS = IMAGES * (PATCHES + 1),
    PIXELS = IMAGES * 3 * SIDE * SIDE,
    PATCH_PIXELS = 3 * PATCH * PATCH
};
static const int patch_index[IMAGES * PATCHES] = {0, 4, 8, 1, 2, 6};

static ClipConfig image_config(int C) {
    ClipConfig c = {};
    c.image_size = SIDE;
    c.patch_size = PATCH;
    c.image_width = C;
    c.image_ln_eps = 1e-5f;
    c.mean_r = 0.48f;
    c.mean_g = 0.45f;
    c.mean_b = 0.40f;
    c.std_r = 0.26f;
    c.std_g = 0.27f;
    c.std_b = 0.28f;
    return c;
}

static Inputs image_inputs(void) {
    int position[IMAGE_ROWS], source[IMAGE_ROWS], patch_rows[IMAGES * PATCHES];
    for (int b = 0; b < IMAGES; b++)
        for (int t = 0; t <= PATCHES; t++) {
            const int row = b * (PATCHES + 1) + t, patch = b * PATCHES + t - 1;
            position[row] = t ? 1 + patch_index[patch] : 0;
            source[row] = t ? patch : -1;
            if (t) patch_rows[patch] = row;
        }
    Inputs in = {};
    in.position = ints_upload(position, IMAGE_ROWS);
    in.source = ints_upload(source, IMAGE_ROWS);
    in.patch_rows = ints_upload(patch_rows, IMAGES * PATCHES);
    return in;
}

static void image_inputs_free(Inputs *in) {
    CUDA_CHECK(cudaFree((void *)in->position));
    CUDA_CHECK(cudaFree((void *)in->source));
    CUDA_CHECK(cudaFree((void *)in->patch_rows));
}

template <typename Real> static void check_patches(bool bytes) {
    const ClipConfig c = image_config(39);
    const float mean[3] = {c.mean_r, c.mean_g, c.mean_b}, std[3] = {c.std_r, c.std_g, c.std_b};
    const Sequences s = {IMAGES, IMAGE_ROWS, PATCHES + 1, NULL, NULL};
    uint8_t pixels[PIXELS], *gpu_pixels;
    Array<float> images = array_random<float>(1, PIXELS, 1);
    Array<Real> patches = array_create<Real>((size_t)IMAGES * PATCHES * PATCH_PIXELS);
    for (int i = 0; i < PIXELS; i++) pixels[i] = (uint8_t)(i * 37 % 251);
    CUDA_CHECK(cudaMalloc(&gpu_pixels, sizeof pixels));
    CUDA_CHECK(cudaMemcpy(gpu_pixels, pixels, sizeof pixels, cudaMemcpyHostToDevice));
    Inputs in = image_inputs();
    in.pixels = bytes ? gpu_pixels : NULL;
    in.images = bytes ? NULL : images.gpu;
    double *want = doubles(patches.n);
    for (int i = 0; i < IMAGES * PATCHES; i++)
        for (int j = 0; j < PATCH_PIXELS; j++) {
            const int channel = j / (PATCH * PATCH);
            const int y = patch_index[i] / GRID * PATCH + j / PATCH % PATCH;
            const int x = patch_index[i] % GRID * PATCH + j % PATCH;
            const int at = ((i / PATCHES * 3 + channel) * SIDE + y) * SIDE + x;
            want[i * PATCH_PIXELS + j] =
                bytes ? (pixels[at] / 255.0 - mean[channel]) / std[channel] : images.host[at];
        }
    const auto cut = [&] { patches_from_images(&gpu, patches.gpu, &in, &s, &c); };
    cut();
    check_output("patches_from_images", &patches, want, tolerance<Real>(3e-7), cut);
    image_inputs_free(&in);
    CUDA_CHECK(cudaFree(gpu_pixels));
    arrays_free(&images, &patches);
}

template <typename Real> static void test_patches_are_the_pixels_under_them(void) {
    check_patches<Real>(false);
    check_patches<Real>(true);
}

template <typename Real> static void check_image_embedding(int C, bool ln_pre) {
    const int R = IMAGE_ROWS;
    const size_t n = (size_t)R * C;
    Array<float> class_embedding = array_random<float>(4, (size_t)C, 1),
                 positions = array_random<float>(5, (size_t)POSITIONS * C, 1),
                 gain = array_random<float>(6, (size_t)C, 1), bias = array_random<float>(7, (size_t)C, 1),
                 mean = array_create<float>(R), rstd = array_create<float>(R),
                 embedding = array_create<float>(n), x = array_create<float>(n);
    Array<Real> embedded = array_random<Real>(8, (size_t)IMAGES * PATCHES * C, 1);
    Inputs in = image_inputs();
    const auto grid = [&](int) { return blocks_for(R, ROW_WARPS); };
    const auto embed = [&] {
        LAUNCH_PACKED(embedding_kernel, Real, C, grid, 32 * ROW_WARPS, 0, gpu.stream, x.gpu, embedding.gpu,
            mean.gpu, rstd.gpu, embedded.gpu, class_embedding.gpu, positions.gpu, in.source, in.position,
            ln_pre ? gain.gpu : NULL, bias.gpu, R, C, 1e-5f);
    };
    float *want = floats(n), *want_x = floats(n), *want_mean = floats(R), *want_rstd = floats(R);
    image_embedding_forward_plain(
        want, embedded.host, class_embedding.host, positions.host, patch_index, IMAGES, PATCHES, C);
    embed();
    check_output("embedding_kernel", &embedding, want, tolerance<Real>(2e-7), embed);
    layernorm_forward_plain(
        want_x, want_mean, want_rstd, embedding.host, gain.host, bias.host, R, C, 1e-5); // as it was stored
    if (ln_pre) check_output("embedding_kernel, ln_pre", &x, want_x, tolerance<Real>(2e-6), embed);
    else free(want_x);
    free(want_mean);
    free(want_rstd);
    image_inputs_free(&in);
    arrays_free(&class_embedding, &positions, &gain, &bias, &mean, &rstd, &embedded, &embedding, &x);
}

template <typename Real> static void test_image_embedding_is_the_plain_one(void) {
    check_image_embedding<Real>(39, false);
    check_image_embedding<Real>(39, true);
    check_image_embedding<Real>(72, true);
}

template <typename Real> static void check_table_backward(int C, bool accumulate) {
    enum { R = 83, ROWS = 11, KEYS = 4 };
    const int key[KEYS] = {0, 3, 7, 10};
    int token[R], start[KEYS + 1] = {0}, row[R], rows = 0;
    for (int i = 0; i < R; i++) token[i] = key[i < 60 ? 1 : i % KEYS];
    for (int g = 0; g < KEYS; g++) {
        for (int i = 0; i < R; i++)
            if (token[i] == key[g]) row[rows++] = i;
        start[g + 1] = rows;
    }
    Array<Real> dx = array_random<Real>(1, (size_t)R * C, 1);
    Array<float> dtable = array_random<float>(2, (size_t)ROWS * C, 1);
    float *before = (float *)malloc_check(dtable.n * sizeof(float));
    memcpy(before, dtable.host, dtable.n * sizeof(float));
    int *gpu_key = ints_upload(key, KEYS);
    int *gpu_start = ints_upload(start, KEYS + 1);
    int *gpu_row = ints_upload(row, R);
    double *want = doubles(dtable.n);
    for (size_t i = 0; i < dtable.n && accumulate; i++) want[i] = before[i];
    for (int i = 0; i < R; i++)
        for (int c = 0; c < C; c++) want[token[i] * C + c] += dx.host[i * C + c];
    const RowGroups groups = {KEYS, gpu_key, gpu_start, gpu_row};
    const auto run = [&] {
        memcpy(dtable.host, before, dtable.n * sizeof(float));
        upload(&dtable);
        table_backward(&gpu, dtable.gpu, dx.gpu, groups, ROWS, C, accumulate);
    };
    run();
    check_output("table_backward", &dtable, want, 1e-6, run);
    free(before);
    for (int *p : {gpu_key, gpu_start, gpu_row}) CUDA_CHECK(cudaFree(p));
    arrays_free(&dx, &dtable);
}

template <typename Real> static void test_rows_of_equal_token_add_up_in_their_order(void) {
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        check_table_backward<Real>(39, accumulate);
        check_table_backward<Real>(264, accumulate);
    }
}

// ---------------------------------------------------------------- features and loss

static void check_normalize(int B, int E) {
    const size_t n = (size_t)B * E;
    Array<float> x = array_random<float>(1, n, 3), out = array_create<float>(n),
                 norm = array_create<float>((size_t)B), dout = array_random<float>(2, n, 1),
                 dx = array_create<float>(n);
    float *want = floats(n), *want_dx = floats(n), *want_norm = floats((size_t)B);
    normalize_forward_plain(want, want_norm, x.host, B, E);
    normalize_backward_plain(want_dx, dout.host, want, want_norm, B, E);
    const auto forward = [&] { normalize_forward(&gpu, out.gpu, norm.gpu, x.gpu, B, E); };
    forward();
    check_output("normalize_forward", &out, want, 3e-7, forward);
    const auto backward = [&] { normalize_backward(&gpu, dx.gpu, dout.gpu, out.gpu, norm.gpu, B, E); };
    backward();
    check_output("normalize_backward", &dx, want_dx, 1e-6, backward);
    free(want_norm);
    arrays_free(&x, &out, &norm, &dout, &dx);
}

static void test_l2_normalisation_is_the_plain_one(void) {
    check_normalize(3, 5);
    check_normalize(19, 77);
}

static void check_loss(int n, int tile, Positives positives, bool with_keys) {
    enum { E = 13 };
    const size_t size = (size_t)n * E;
    Array<float> image = array_random<float>(1, size, 1), text = array_random<float>(2, size, 1),
                 dimage = array_create<float>(size), dtext = array_create<float>(size);
    Array<float> logits = array_create<float>((size_t)tile * n), row_lse = array_create<float>((size_t)n),
                 column_lse = array_create<float>((size_t)n), target = array_create<float>((size_t)n);
    double *sums[4], *totals;
    uint64_t *keys = (uint64_t *)malloc_check((size_t)n * sizeof *keys), *gpu_keys;
    for (int i = 0; i < n; i++) keys[i] = (uint64_t)(i % 7 == 3 ? 3 : i) * 0x100000001ull;
    CUDA_CHECK(cudaMalloc(&gpu_keys, (size_t)n * sizeof *keys));
    CUDA_CHECK(cudaMemcpy(gpu_keys, keys, (size_t)n * sizeof *keys, cudaMemcpyHostToDevice));
    for (auto &p : sums) CUDA_CHECK(cudaMalloc(&p, (size_t)n * sizeof(double)));
    CUDA_CHECK(cudaMalloc(&totals, 2 * sizeof(double)));
    const LossScratch t = {tile, logits.gpu, row_lse.gpu, column_lse.gpu, sums[0], target.gpu, sums[1],
        sums[2], sums[3], totals, NULL};
    float *want_dimage = floats(size), *want_dtext = floats(size);
    double want_dscale, dscale = NAN;
    const double want = contrastive_loss_plain(want_dimage, want_dtext, &want_dscale, image.host, text.host,
        with_keys ? keys : NULL, positives, n, E, 2.5);
    const uint64_t *k = with_keys ? gpu_keys : NULL;
    const double loss_alone =
        contrastive_loss(&gpu, NULL, NULL, NULL, &t, image.gpu, text.gpu, k, positives, n, E, 2.5f);
    EXPECT_CLOSE(loss_alone, want, 2e-6);
    const auto run = [&] {
        const double loss = contrastive_loss(
            &gpu, dimage.gpu, dtext.gpu, &dscale, &t, image.gpu, text.gpu, k, positives, n, E, 2.5f);
        EXPECT_CLOSE(loss, want, 2e-6);
    };
    run();
    check_output("contrastive_loss, dimage", &dimage, want_dimage, 5e-6, run);
    check_output("contrastive_loss, dtext", &dtext, want_dtext, 5e-6, run);
    EXPECT_CLOSE(dscale, want_dscale, 5e-6);
    free(keys);
    CUDA_CHECK(cudaFree(gpu_keys));
    CUDA_CHECK(cudaFree(totals));
    for (auto p : sums) CUDA_CHECK(cudaFree(p));
    arrays_free(&image, &text, &dimage, &dtext, &logits, &row_lse, &column_lse, &target);
}

static void test_loss_in_tiles_is_the_plain_one(void) {
    for (int tile = 5; tile <= 61; tile += 56) {
        check_loss(1, 1, POSITIVES_DIAGONAL, false);
        check_loss(61, tile, POSITIVES_DIAGONAL, false);
        check_loss(61, tile, POSITIVES_SOFT, true);
        check_loss(61, tile, POSITIVES_MASK, true);
    }
}

// ---------------------------------------------------------------- optimizer

// Four tensors in chunks; parameters and gradients are at places of their own. The last tensor is
// logit_scale, which has to stay within its bounds.
enum { TENSORS = 4, FIRST = 48 };
static const int tensor_sizes[TENSORS] = {39, UPDATE_CHUNK + 3, 77, 1};

typedef struct {
    UpdateChunk chunks[TENSORS + 1], *gpu_chunks;
    int count;     // of chunks
    size_t floats; // of the arenas of gradients
    Array<float> p, g, m, v, ema;
    Array<bf16> params_bf16;
} UpdateCase;

static void update_case_create(UpdateCase *t) {
    memset(t, 0, sizeof *t);
    for (int i = 0; i < TENSORS; i++) {
        for (int at = 0; at < tensor_sizes[i]; at += UPDATE_CHUNK) {
            const size_t offset = t->floats + (size_t)at;
            t->chunks[t->count++] = {FIRST + offset, offset, min_int(UPDATE_CHUNK, tensor_sizes[i] - at), i};
        }
        t->floats += round_up((size_t)tensor_sizes[i], 16);
    }
    t->p = array_random<float>(1, FIRST + t->floats, 1);
    t->g = array_random<float>(2, t->floats, 1);
    t->m = array_random<float>(3, t->floats, 1);
    t->v = array_random<float>(4, t->floats, 1);
    t->ema = array_random<float>(5, t->floats, 1);
    t->params_bf16 = array_create<bf16>(FIRST + t->floats);
    for (size_t i = 0; i < t->floats; i++) t->v.host[i] *= t->v.host[i];
    const size_t logit_scale = t->chunks[t->count - 1].grad_offset;
    t->p.host[FIRST + logit_scale] = 4.6051f;
    t->g.host[logit_scale] = t->m.host[logit_scale] = -3; // over its upper bound
    for (Array<float> *x : {&t->p, &t->g, &t->m, &t->v}) upload(x);
    CUDA_CHECK(cudaMalloc(&t->gpu_chunks, sizeof t->chunks));
    CUDA_CHECK(cudaMemcpy(t->gpu_chunks, t->chunks, sizeof t->chunks, cudaMemcpyHostToDevice));
}

static void update_case_free(UpdateCase *t) {
    CUDA_CHECK(cudaFree(t->gpu_chunks));
    arrays_free(&t->p, &t->g, &t->m, &t->v, &t->ema, &t->params_bf16);
}

// Takes the step in plain loops on the host's arrays.
static void update_plain(UpdateCase *t, const AdamW *a, double grad_scale) {
    for (int i = 0; i < t->count; i++) {
        const UpdateChunk *c = &t->chunks[i];
        float *p = t->p.host + c->offset, *ema = t->ema.host + c->grad_offset;
        adamw_plain(p, t->g.host + c->grad_offset, t->m.host + c->grad_offset, t->v.host + c->grad_offset,
            (size_t)c->count, grad_scale, a->lr, a->beta1, a->beta2, a->eps, a->weight_decay, a->step);
        if (i == t->count - 1) *p = (float)fmin(fmax(*p, 0), LOGIT_SCALE_MAX);
        for (int j = 0; j < c->count; j++)
            ema[j] = (float)(a->ema_decay * ema[j] + (1 - a->ema_decay) * p[j]);
    }
}

static void expect_array(const char *name, Array<float> *x, const float *want) {
    const double error = error_of(download(x), want, x->n);
    EXPECT(error <= 5e-7, "%s: error %g", name, error);
}

static float *copy_of(const Array<float> *x) {
    return (float *)memcpy(malloc_check(x->n * sizeof(float)), x->host, x->n * sizeof(float));
}

static void check_update(double clip_norm, bool with_bf16) {
    UpdateCase t;
    AdamW a = {0.01, 0.9, 0.98, 1e-6, 0.2, 0.9, clip_norm, 3};
    Tensor x = {};
    x.lr_scale = 1;
    x.decay = true;
    update_case_create(&t);
    AdamWTerms terms[TENSORS], *gpu_terms;
    for (int i = 0; i < TENSORS; i++) terms[i] = adamw_terms(&a, &x, 1);
    double *squares, sum, want_squares = 0;
    CUDA_CHECK(cudaMalloc(&gpu_terms, sizeof terms));
    CUDA_CHECK(cudaMemcpy(gpu_terms, terms, sizeof terms, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMalloc(&squares, (size_t)(t.count + 1) * sizeof *squares));
    LAUNCH(sum_squares_kernel, t.count, 256, 32 * sizeof(double), gpu.stream, squares + 1, t.g.gpu,
        t.gpu_chunks);
    LAUNCH(total_kernel, 1, 1024, 32 * sizeof(double), gpu.stream, squares, squares + 1, (size_t)t.count);
    for (int i = 0; i < t.count; i++)
        for (int j = 0; j < t.chunks[i].count; j++)
            want_squares += pow(t.g.host[t.chunks[i].grad_offset + (size_t)j], 2);
    CUDA_CHECK(cudaMemcpy(&sum, squares, sizeof sum, cudaMemcpyDeviceToHost));
    EXPECT_CLOSE(sum, want_squares, 1e-6);

    bf16 *params_bf16 = with_bf16 ? t.params_bf16.gpu : NULL;
    LAUNCH(adamw_kernel, t.count, 256, 0, gpu.stream, t.p.gpu, params_bf16, t.g.gpu, t.m.gpu, t.v.gpu,
        t.ema.gpu, t.gpu_chunks, gpu_terms, squares, clip_norm, (float)a.ema_decay, TENSORS - 1);
    update_plain(&t, &a, clip_norm > 0 ? fmin(1, clip_norm / (sqrt(want_squares) + 1e-6)) : 1);
    float *p = copy_of(&t.p), *m = copy_of(&t.m), *v = copy_of(&t.v), *ema = copy_of(&t.ema);
    EXPECT(p[t.chunks[t.count - 1].offset] == (float)LOGIT_SCALE_MAX, "the case reaches the bound");
    expect_array("adamw_kernel, weights", &t.p, p);
    expect_array("adamw_kernel, m", &t.m, m);
    expect_array("adamw_kernel, v", &t.v, v);
    expect_array("adamw_kernel, moving average", &t.ema, ema);

    LAUNCH(exchange_kernel, t.count, 256, 0, gpu.stream, t.p.gpu, params_bf16, t.ema.gpu, t.gpu_chunks);
    for (int i = 0; i < t.count; i++)
        for (int j = 0; j < t.chunks[i].count; j++)
            std::swap(p[t.chunks[i].offset + j], ema[t.chunks[i].grad_offset + j]);
    expect_array("exchange_kernel, weights", &t.p, p);
    expect_array("exchange_kernel, moving average", &t.ema, ema);
    download(&t.params_bf16);
    for (int i = 0; i < t.count && with_bf16; i++)
        for (int j = 0; j < t.chunks[i].count; j++) {
            const size_t at = t.chunks[i].offset + (size_t)j;
            EXPECT(t.params_bf16.host[at] == (float)(bf16)t.p.host[at], "number %zu in bf16: %g of %g", at,
                (double)t.params_bf16.host[at], (double)t.p.host[at]);
        }
    for (float *copy : {p, m, v, ema}) free(copy);
    CUDA_CHECK(cudaFree(gpu_terms));
    CUDA_CHECK(cudaFree(squares));
    update_case_free(&t);
}

static void test_adamw_is_the_plain_one_in_chunks(void) {
    check_update(0, true);
    check_update(1.5, false);
}

// ---------------------------------------------------------------- doors

#if defined(CLIPC_EMULATE) && !defined(NDEBUG) // a process that uses a GPU cannot be forked
template <typename Call> static void call_it(const void *call) { (*(const Call *)call)(); }

// `call` in a child process ends by an assert.
template <typename Call> static void expect_assert(const char *what, Call call) {
    child_run(call_it<Call>, &call);
    EXPECT(child_asserted(""), "%s is let in: %s", what, child.text);
}

static void test_doors_refuse_what_kernels_are_not_made_for(void) {
    float *x = (float *)gpu_malloc(4096, "a test");
    const GpuMatrix<float> a = rows_of(x, 4), b = rows_of(x, 4);
    expect_assert("an empty product", [&] { matmul(&gpu, x, 4, a, b, 0, 4, 4); });
    expect_assert("an output whose rows overlap", [&] { matmul(&gpu, x, 3, a, b, 4, 4, 4); });
    expect_assert("an operand whose rows overlap", [&] { matmul(&gpu, x, 4, a, rows_of(x, 3), 4, 4, 4); });
    expect_assert(
        "a transposed operand whose rows overlap", [&] { matmul(&gpu, x, 4, transposed(x, 3), b, 4, 4, 4); });
    expect_assert("a misaligned operand",
        [&] { matmul(&gpu, x, 4, rows_of((float *)((char *)x + 2), 4), b, 4, 4, 4); });
    const Sequences s = {1, 4, 4, NULL, NULL}, none = {1, 0, 0, NULL, NULL};
    const Attention wide = {2 * (LARGEST_HEAD + 8), 2, false, &gpu}, unequal = {10, 3, false, &gpu};
    const Attention right = {8, 2, false, &gpu};
    expect_assert("a head that is too large", [&] { attention_forward(x, x, x, &s, &wide, false); });
    expect_assert("heads of unequal size", [&] { attention_forward(x, x, x, &s, &unequal, false); });
    expect_assert(
        "sequences without tokens", [&] { attention_backward(x, x, x, x, x, x, &none, &right, false); });
    expect_assert("an operand of the other type", [&] { as<bf16>(fp32(x)); });
    Feed feed;
    feed_create(&feed);
    feed_begin(&gpu, &feed, 256);
    const int *where, keys[2] = {0, 2};
    expect_assert("more bytes than a feed has space for", [&] { feed_reserve(&feed, 65, &where); });
    feed_begin(&gpu, &feed, 4096);
    expect_assert("a token outside its table", [&] { feed_groups(&feed, keys, 2, 2); });
    LossScratch t = {};
    t.tile = 1;
    expect_assert("soft positives without keys",
        [&] { contrastive_loss(&gpu, NULL, NULL, NULL, &t, x, x, NULL, POSITIVES_SOFT, 2, 2, 1); });
    feed_free(&feed);
    CUDA_CHECK(cudaFree(x));
}
#endif

#define RUN_BOTH(test) \
    RUN(test<float>);  \
    RUN(test<bf16>)

int main(void) {
    CUDA_CHECK(cudaStreamCreate(&gpu.stream));
    CUDA_CHECK(cudaStreamCreate(&gpu.copies));
    gpu.matmul = matmul_create();
    CUDA_CHECK(cudaMalloc(&gpu.partials, (size_t)MAX_PARTIALS * 4096 * sizeof(float)));
    RUN_BOTH(test_copy_rows_sets_or_adds_the_named_rows);
    RUN_BOTH(test_bias_backward_sums_columns);
    RUN_BOTH(test_layernorm_is_the_plain_one);
    RUN_BOTH(test_activations_are_the_plain_ones);
    RUN_BOTH(test_attention_is_the_plain_one);
    RUN_BOTH(test_patches_are_the_pixels_under_them);
    RUN_BOTH(test_image_embedding_is_the_plain_one);
    RUN_BOTH(test_rows_of_equal_token_add_up_in_their_order);
    RUN(test_l2_normalisation_is_the_plain_one);
    RUN(test_loss_in_tiles_is_the_plain_one);
    RUN(test_adamw_is_the_plain_one_in_chunks);
#if defined(CLIPC_EMULATE) && !defined(NDEBUG)
    RUN(test_doors_refuse_what_kernels_are_not_made_for);
#endif
    CUDA_CHECK(cudaFree(gpu.partials));
    matmul_free(gpu.matmul);
    return test_report();
}
