// Every kernel of train_clip.cu at odd sizes against plain double arithmetic, in fp32 and in bf16: emulated
// (make test), on a GPU (make test-gpu). Inputs are rounded to the type under test before either side sees
// them, outputs begin as NaN, and each layer runs twice: the bits are the same.
#define CLIP_WITHOUT_MAIN
#include "train_clip.cu"
#include "dev/cuda/reference.h"
#include "dev/test/test.h"

template <typename Real> constexpr bool HALF = sizeof(Real) == 2;
template <typename Real> static double tolerance(double fp32) {
    return HALF<Real> ? 4e-3 : fp32;
} // bf16: half a unit in the last place is 2e-3

// What a layer wrote, from `run` that is called twice, is equal in both calls and near `want` (freed).
template <typename Real, typename Run>
static void check_output(const char *name, Array<Real> *out, double *want, double tol, Run run) {
    download(out);
    const double error = error_of(out->host, want, out->n);
    EXPECT(error <= tol, "%s, %s: error %g, tolerance %g", name, HALF<Real> ? "bf16" : "fp32", error, tol);
    float *first = (float *)malloc_check(out->n * sizeof(float));
    memcpy(first, out->host, out->n * sizeof(float));
    run();
    EXPECT(memcmp(first, download(out), out->n * sizeof(float)) == 0, "%s: other bits the second time", name);
    free(first);
    free(want);
}

static Gpu gpu;

// ---------------------------------------------------------------- rows

template <typename Real> static void test_copy_rows(int C, bool add) {
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

template <typename Real> static void test_bias_backward(int N, int O, bool accumulate) {
    const int LD = O + 16;
    Array<Real> dout = array_random<Real>(3, (size_t)N * LD, 1);
    Array<float> dbias = array_random<float>(4, (size_t)O, 1);
    double *want = doubles((size_t)O);
    for (int o = 0; o < O; o++) {
        want[o] = accumulate ? dbias.host[o] : 0;
        for (int i = 0; i < N; i++) want[o] += dout.host[(size_t)i * LD + o];
    }
    bias_backward(&gpu, dbias.gpu, dout.gpu, (size_t)LD, N, O, accumulate);
    const double error = error_of(download(&dbias), want, (size_t)O);
    EXPECT(error <= 1e-6, "bias_backward, %d rows of %d: error %g", N, O, error);
    free(want);
    arrays_free(&dout, &dbias);
}

// ---------------------------------------------------------------- layers

template <typename Real, typename DOut>
static void test_layernorm(int N, int C, bool accumulate, bool skips) {
    const size_t n = (size_t)N * C;
    Array<float> x = array_random<float>(1, n, 2);
    Array<DOut> dout = array_random<DOut>(2, n, 1);
    Array<Real> out = array_create<Real>(n), skip = array_random<Real>(3, n, 1), dx = array_create<Real>(n);
    Array<float> gain = array_random<float>(4, (size_t)C, 1), bias = array_random<float>(5, (size_t)C, 1),
                 mean = array_create<float>((size_t)N), rstd = array_create<float>((size_t)N);
    Array<float> dgain = array_random<float>(6, (size_t)C, 1), dbias = array_random<float>(7, (size_t)C, 1);
    double *want = doubles(n);
    double *want_dx = doubles(n);
    double *want_dgain = doubles((size_t)C);
    double *want_dbias = doubles((size_t)C);
    for (int c = 0; c < C && accumulate; c++) {
        want_dgain[c] = dgain.host[c];
        want_dbias[c] = dbias.host[c];
    }
    reference_layernorm(want, want_dx, want_dgain, want_dbias, skips ? skip.host : NULL, dout.host, x.host,
        gain.host, bias.host, N, C);
    const auto forward = [&] {
        layernorm_forward(&gpu, out.gpu, mean.gpu, rstd.gpu, x.gpu, gain.gpu, bias.gpu, N, C, 1e-5f);
    };
    forward();
    check_output("layernorm_forward", &out, want, tolerance<Real>(2e-6), forward);
    const auto backward = [&] {
        upload(&dgain);
        upload(&dbias);
        layernorm_backward(&gpu, dx.gpu, dgain.gpu, dbias.gpu, skips ? skip.gpu : NULL, dout.gpu, x.gpu,
            gain.gpu, mean.gpu, rstd.gpu, N, C, accumulate);
    };
    backward();
    check_output("layernorm_backward, dx", &dx, want_dx, tolerance<Real>(5e-6), backward);
    const double gain_error = error_of(download(&dgain), want_dgain, (size_t)C);
    const double bias_error = error_of(download(&dbias), want_dbias, (size_t)C);
    EXPECT(gain_error <= 5e-6 && bias_error <= 5e-6,
        "layernorm_backward, (%d,%d): error of dgain %g, dbias %g", N, C, gain_error, bias_error);
    free(want_dgain);
    free(want_dbias);
    arrays_free(&x, &out, &dout, &skip, &dx, &gain, &bias, &mean, &rstd, &dgain, &dbias);
}

template <typename Real> static void test_gelu(int N, int F, bool quick, bool accumulate) {
    const size_t n = (size_t)N * F;
    Array<float> dbias = array_random<float>(3, (size_t)F, 1);
    Array<Real> x = array_random<Real>(1, n, 4), out = array_create<Real>(n),
                dout = array_random<Real>(2, n, 1), dx = array_create<Real>(n);
    const float edges[] = {0, -0.0f, 1e-8f, 100, -100, 3e4f, -3e4f};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) x.host[i] = edges[i];
    upload(&x);
    double *want = doubles(n), *want_dx = doubles(n), *want_dbias = doubles((size_t)F);
    for (int f = 0; f < F && accumulate; f++) want_dbias[f] = dbias.host[f];
    for (size_t i = 0; i < n; i++) {
        double derivative;
        want[i] = reference_gelu(x.host[i], quick, &derivative);
        want_dx[i] = dout.host[i] * derivative;
        want_dbias[i % (size_t)F] += want_dx[i];
    }
    want[5] = want[6] = 0; // of 3e4: compared by itself
    const auto forward = [&] { gelu_forward(&gpu, out.gpu, x.gpu, n, quick); };
    forward();
    EXPECT(download(&out)[5] == x.host[5] && out.host[6] == 0, "%g and %g of a large argument",
        (double)out.host[5], (double)out.host[6]);
    want[5] = x.host[5];
    check_output("gelu_forward", &out, want, tolerance<Real>(1e-6), forward);
    const auto backward = [&] {
        upload(&dbias);
        gelu_backward(&gpu, dx.gpu, dbias.gpu, x.gpu, dout.gpu, N, F, quick, accumulate);
    };
    backward();
    const double error = error_of(download(&dbias), want_dbias, (size_t)F);
    EXPECT(error <= 2e-6, "gelu_backward, %d rows of %d: error of dbias %g", N, F, error);
    free(want_dbias);
    check_output("gelu_backward", &dx, want_dx, tolerance<Real>(2e-6), backward);
    arrays_free(&x, &out, &dout, &dx, &dbias);
}

// ---------------------------------------------------------------- attention

template <typename Real>
static void test_attention(const int *lengths, int B, int NH, int HS, bool causal, bool only_read) {
    char name[128];
    snprintf(name, sizeof name, "attention, %d sequences, the first of %d tokens, %d heads of %d%s%s", B,
        lengths[0], NH, HS, causal ? ", causal" : "", only_read ? ", one query" : "");
    Sequences s = {0, 0, 0, NULL, NULL};
    sequences_reserve(&s, B);
    for (int b = 0; b < B; b++) sequences_add(&s, b, lengths[b], causal ? lengths[b] - 1 : lengths[b] / 2);
    Sequences on_gpu = s;
    on_gpu.start = ints_upload(s.start, (size_t)B + 1);
    on_gpu.read = ints_upload(s.read, (size_t)B);
    const int C = NH * HS, Q = only_read ? B : s.R;
    const size_t R = (size_t)s.R;
    Array<Real> qkv = array_random<Real>(1, R * 3 * C, 1.5), out = array_create<Real>((size_t)Q * C),
                dout = array_random<Real>(2, (size_t)Q * C, 1), dqkv = array_create<Real>(R * 3 * C);
    Array<float> lse = array_create<float>((size_t)Q * NH), delta = array_create<float>((size_t)Q * NH);
    double *want = doubles((size_t)Q * C);
    double *want_lse = doubles((size_t)Q * NH);
    double *want_dqkv = doubles(R * 3 * C);
    reference_attention(
        want, want_lse, want_dqkv, qkv.host, dout.host, s.start, s.read, B, C, NH, causal, only_read);
    const auto forward = [&] {
        attention_forward(&gpu, out.gpu, lse.gpu, qkv.gpu, &on_gpu, C, NH, causal, only_read);
    };
    forward();
    check_output(name, &out, want, tolerance<Real>(3e-6) * (HALF<Real> ? 2 : 1), forward);
    const double lse_error = error_of(download(&lse), want_lse, lse.n);
    EXPECT(lse_error <= 3e-6, "%s: error of lse %g", name, lse_error);
    if (only_read) { // the queries that are not computed have no gradient, and none is written
        for (size_t i = 0; i < dqkv.n; i++) dqkv.host[i] = 0;
        upload(&dqkv);
    }
    const auto backward = [&] {
        attention_backward(&gpu, dqkv.gpu, delta.gpu, dout.gpu, out.gpu, lse.gpu, qkv.gpu, &on_gpu, C, NH,
            causal, only_read);
    };
    backward();
    check_output(name, &dqkv, want_dqkv, tolerance<Real>(1e-5) * (HALF<Real> ? 3 : 1), backward);
    free(want_lse);
    CUDA_CHECK(cudaFree(on_gpu.start));
    CUDA_CHECK(cudaFree(on_gpu.read));
    sequences_free(&s);
    arrays_free(&qkv, &out, &dout, &dqkv, &lse, &delta);
}

template <typename Real> static void test_attentions(void) {
    const int captions[] = {5, 17, 1, 77, 33};
    const int image[] = {50, 50};
    const int one[] = {64};
    const int more[] = {65};
    const int many[] = {257};
    const int most[] = {1025};
    test_attention<Real>(captions, 5, 3, 13, true, false);
    test_attention<Real>(captions, 5, 3, 64, true, true);
    test_attention<Real>(captions + 1, 4, 2, 24, true, false);
    test_attention<Real>(image, 2, 3, 64, false, false);
    test_attention<Real>(image, 2, 3, 80, false, true);
    test_attention<Real>(one, 1, 2, 104, false, false);
    test_attention<Real>(more, 1, 1, 88, true, false);
    test_attention<Real>(more, 1, 1, 128, false, false);
    test_attention<Real>(many, 1, 1, 16, true, false);
    test_attention<Real>(most, 1, 1, 8, false, true);
}

// ---------------------------------------------------------------- embeddings

// Two images with three patches each of 3 x 3, in an order of their own: dropped patches are left out.
template <typename Real> static void test_image_embedding(int C, bool ln_pre, bool bytes) {
    enum {
        B = 2,
        KEPT = 3,
        S = 17,
        P = 5,
        G = 3,
        T = G * G + 1,
        R = B * (KEPT + 1),
        PIXELS = B * 3 * S * S,
        K = 3 * P * P
    };
    const int kept[B][KEPT] = {{0, 4, 8}, {1, 2, 6}};
    ClipConfig c = {};
    c.image_size = S;
    c.patch_size = P;
    c.image_width = C;
    c.image_ln_eps = 1e-5f;
    c.mean_r = 0.48f;
    c.mean_g = 0.45f;
    c.mean_b = 0.40f;
    c.std_r = 0.26f;
    c.std_g = 0.27f;
    c.std_b = 0.28f;
    int position[R], source[R], patch_rows[B * KEPT];
    for (int b = 0; b < B; b++)
        for (int t = 0; t <= KEPT; t++) {
            const int row = b * (KEPT + 1) + t;
            position[row] = t ? 1 + kept[b][t - 1] : 0;
            source[row] = t ? b * KEPT + t - 1 : -1;
            if (t) patch_rows[b * KEPT + t - 1] = row;
        }
    uint8_t pixels[PIXELS];
    Array<float> images = array_random<float>(1, PIXELS, 1),
                 conv1 = array_random<float>(2, (size_t)C * K, 0.2),
                 conv1_bias = array_random<float>(3, (size_t)C, 1);
    Array<float> class_embedding = array_random<float>(4, (size_t)C, 1),
                 positions = array_random<float>(5, (size_t)T * C, 1),
                 gain = array_random<float>(6, (size_t)C, 1);
    Array<float> bias = array_random<float>(7, (size_t)C, 1), mean = array_create<float>(R),
                 rstd = array_create<float>(R);
    Array<Real> patches = array_create<Real>((size_t)B * KEPT * K),
                embedded = array_random<Real>(8, (size_t)B * KEPT * C, 1);
    Array<float> embedding = array_create<float>((size_t)R * C), x = array_create<float>((size_t)R * C);
    for (int i = 0; i < PIXELS; i++) pixels[i] = (uint8_t)(i * 37 % 251);
    uint8_t *gpu_pixels;
    CUDA_CHECK(cudaMalloc(&gpu_pixels, sizeof pixels));
    CUDA_CHECK(cudaMemcpy(gpu_pixels, pixels, sizeof pixels, cudaMemcpyHostToDevice));
    Inputs in = {};
    in.pixels = bytes ? gpu_pixels : NULL;
    in.images = bytes ? NULL : images.gpu;
    in.position = ints_upload(position, R);
    in.source = ints_upload(source, R);
    in.patch_rows = ints_upload(patch_rows, B * KEPT);
    Sequences s = {B, R, KEPT + 1, NULL, NULL};

    double *want = doubles(patches.n);
    const float channel_mean[3] = {c.mean_r, c.mean_g, c.mean_b};
    const float channel_std[3] = {c.std_r, c.std_g, c.std_b};
    for (int i = 0; i < B * KEPT; i++)
        for (int j = 0; j < K; j++) {
            const int patch = kept[i / KEPT][i % KEPT];
            const int channel = j / (P * P);
            const int y = patch / G * P + j / P % P;
            const int column = patch % G * P + j % P;
            const int at = ((i / KEPT * 3 + channel) * S + y) * S + column;
            want[i * K + j] =
                bytes ? (pixels[at] / 255.0 - channel_mean[channel]) / channel_std[channel] : images.host[at];
        }
    const auto cut = [&] { patches_from_images(&gpu, patches.gpu, &in, &s, &c); };
    cut();
    check_output("patches_from_images", &patches, want, tolerance<Real>(3e-7), cut);

    const auto grid = [&](int) { return blocks_for(R, ROW_WARPS); };
    const auto embed = [&] {
        LAUNCH_PACKED(embedding_kernel, Real, C, grid, 32 * ROW_WARPS, 0, gpu.stream, x.gpu, embedding.gpu,
            mean.gpu, rstd.gpu, embedded.gpu, class_embedding.gpu, positions.gpu, in.source, in.position,
            ln_pre ? gain.gpu : NULL, bias.gpu, R, C, c.image_ln_eps);
    };
    embed();
    double *want_embedding = doubles(embedding.n), *want_x = doubles(x.n);
    for (int i = 0; i < R; i++)
        for (int k = 0; k < C; k++)
            want_embedding[i * C + k] =
                (source[i] < 0 ? class_embedding.host[k] : embedded.host[source[i] * C + k]) +
                (double)positions.host[position[i] * C + k];
    check_output("embedding_kernel", &embedding, want_embedding, tolerance<Real>(2e-7), embed);
    double *row = doubles((size_t)C);
    for (int i = 0; i < R; i++) {
        normalized_row(row, embedding.host + (size_t)i * C, C); // as it was stored
        for (int k = 0; k < C; k++) want_x[i * C + k] = row[k] * gain.host[k] + bias.host[k];
    }
    if (ln_pre) check_output("embedding_kernel, ln_pre", &x, want_x, tolerance<Real>(2e-6), embed);
    else free(want_x);
    free(row);
    CUDA_CHECK(cudaFree(gpu_pixels));
    CUDA_CHECK(cudaFree((void *)in.position));
    CUDA_CHECK(cudaFree((void *)in.source));
    CUDA_CHECK(cudaFree((void *)in.patch_rows));
    arrays_free(&images, &conv1, &conv1_bias, &class_embedding, &positions, &gain, &bias, &mean, &rstd,
        &patches, &embedded, &embedding, &x);
}

// Rows of equal token are summed in their order, however many there are; the other rows of the table are
// cleared, or left.
template <typename Real> static void test_table_backward(int C, bool accumulate) {
    enum { R = 83, ROWS = 11, KEYS = 4 };
    const int key[KEYS] = {0, 3, 7, 10};
    int token[R], start[KEYS + 1] = {0}, row[R];
    for (int i = 0; i < R; i++) token[i] = key[i < 60 ? 1 : i % KEYS];
    for (int g = 0, n = 0; g < KEYS; start[++g] = n)
        for (int i = 0; i < R; i++)
            if (token[i] == key[g]) row[n++] = i;
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
    const auto run = [&] {
        memcpy(dtable.host, before, dtable.n * sizeof(float));
        upload(&dtable);
        table_backward(
            &gpu, dtable.gpu, dx.gpu, RowGroups{KEYS, gpu_key, gpu_start, gpu_row}, ROWS, C, accumulate);
    };
    run();
    check_output("table_backward", &dtable, want, 1e-6, run);
    free(before);
    CUDA_CHECK(cudaFree(gpu_key));
    CUDA_CHECK(cudaFree(gpu_start));
    CUDA_CHECK(cudaFree(gpu_row));
    arrays_free(&dx, &dtable);
}

// ---------------------------------------------------------------- features and loss

static void test_normalize(int B, int E) {
    const size_t n = (size_t)B * E;
    Array<float> x = array_random<float>(1, n, 3), out = array_create<float>(n),
                 norm = array_create<float>((size_t)B), dout = array_random<float>(2, n, 1);
    Array<float> dx = array_create<float>(n);
    double *want = doubles(n), *want_dx = doubles(n);
    for (int b = 0; b < B; b++) {
        double sum = 0, dot = 0;
        for (int e = 0; e < E; e++) sum += (double)x.host[b * E + e] * x.host[b * E + e];
        for (int e = 0; e < E; e++) {
            want[b * E + e] = x.host[b * E + e] / sqrt(sum);
            dot += want[b * E + e] * dout.host[b * E + e];
        }
        for (int e = 0; e < E; e++)
            want_dx[b * E + e] = (dout.host[b * E + e] - want[b * E + e] * dot) / sqrt(sum);
    }
    const auto forward = [&] { normalize_forward(&gpu, out.gpu, norm.gpu, x.gpu, B, E); };
    forward();
    check_output("normalize_forward", &out, want, 3e-7, forward);
    const auto backward = [&] { normalize_backward(&gpu, dx.gpu, dout.gpu, out.gpu, norm.gpu, B, E); };
    backward();
    check_output("normalize_backward", &dx, want_dx, 1e-6, backward);
    arrays_free(&x, &out, &norm, &dout, &dx);
}

static void test_loss(int n, int tile, Positives positives, bool with_keys) {
    enum { E = 13 };
    const size_t size = (size_t)n * E;
    Array<float> image = array_random<float>(1, size, 1), text = array_random<float>(2, size, 1),
                 dimage = array_create<float>(size), dtext = array_create<float>(size);
    Array<float> logits = array_create<float>((size_t)tile * n), row_lse = array_create<float>((size_t)n),
                 column_lse = array_create<float>((size_t)n), target = array_create<float>((size_t)n);
    double *sums[5], *totals;
    uint64_t *keys = (uint64_t *)malloc_check((size_t)n * sizeof *keys), *gpu_keys;
    for (int i = 0; i < n; i++) keys[i] = (uint64_t)(i % 7 == 3 ? 3 : i) * 0x100000001ull;
    CUDA_CHECK(cudaMalloc(&gpu_keys, (size_t)n * sizeof *keys));
    CUDA_CHECK(cudaMemcpy(gpu_keys, keys, (size_t)n * sizeof *keys, cudaMemcpyHostToDevice));
    for (auto &p : sums) CUDA_CHECK(cudaMalloc(&p, (size_t)n * sizeof(double)));
    CUDA_CHECK(cudaMalloc(&totals, 2 * sizeof(double)));
    LossScratch t = {};
    t.tile = tile;
    t.logits = logits.gpu;
    t.row_lse = row_lse.gpu;
    t.column_lse = column_lse.gpu;
    t.target = target.gpu;
    t.column_sum = sums[0];
    t.positive_mean = sums[1];
    t.row_loss = sums[2];
    t.row_dot = sums[3];
    t.totals = totals;
    double *want_dimage = doubles(size), *want_dtext = doubles(size), want_dscale, dscale = NAN;
    const double want = reference_loss(want_dimage, want_dtext, &want_dscale, image.host, text.host,
        with_keys ? keys : NULL, positives, n, E, 2.5);
    const uint64_t *k = with_keys ? gpu_keys : NULL;
    EXPECT_CLOSE(contrastive_loss(&gpu, NULL, NULL, NULL, &t, image.gpu, text.gpu, k, positives, n, E, 2.5f),
        want, 2e-6);
    const auto run = [&] {
        EXPECT_CLOSE(contrastive_loss(&gpu, dimage.gpu, dtext.gpu, &dscale, &t, image.gpu, text.gpu, k,
                         positives, n, E, 2.5f),
            want, 2e-6);
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

// ---------------------------------------------------------------- optimizer

// Pieces of 8,192 numbers; parameters and gradients lie at places of their own. The last tensor is
// logit_scale, kept within its bounds.
static void test_update(double clip_norm, bool params_bf16) {
    enum { TENSORS = 4 };
    const int sizes[TENSORS] = {39, UPDATE_CHUNK + 3, 77, 1};
    const double lr = 0.01;
    const double beta1 = 0.9;
    const double beta2 = 0.98;
    const double eps = 1e-6;
    const double decay = 0.2;
    const double ema_decay = 0.9;
    const int step = 3;
    UpdateChunk chunks[TENSORS + 1];
    AdamWTerms terms[TENSORS];
    size_t slots = 0;
    int count = 0;
    for (int t = 0; t < TENSORS; slots += round_up((size_t)sizes[t], 16), t++) {
        terms[t] = {1, (float)beta1, (float)(1 - beta1), (float)beta2, (float)(1 - beta2),
            (float)(lr / (1 - pow(beta1, step))), (float)(1 / (1 - pow(beta2, step))), (float)eps,
            (float)(1 - lr * decay)};
        for (int i = 0; i < sizes[t]; i += UPDATE_CHUNK) {
            chunks[count].grad_offset = slots + (size_t)i;
            chunks[count].offset = 48 + slots + (size_t)i;
            chunks[count].tensor = t;
            chunks[count++].count = sizes[t] - i < UPDATE_CHUNK ? sizes[t] - i : UPDATE_CHUNK;
        }
    }
    Array<float> p = array_random<float>(1, 48 + slots, 1), g = array_random<float>(2, slots, 1),
                 m = array_random<float>(3, slots, 1), v = array_random<float>(4, slots, 1);
    Array<float> ema = array_random<float>(5, slots, 1);
    Array<bf16> half = array_create<bf16>(48 + slots);
    for (size_t i = 0; i < slots; i++) v.host[i] *= v.host[i];
    p.host[48 + chunks[count - 1].grad_offset] = 4.6051f;
    g.host[chunks[count - 1].grad_offset] = m.host[chunks[count - 1].grad_offset] =
        -3; // over its upper bound
    upload(&p);
    upload(&g);
    upload(&m);
    upload(&v);
    UpdateChunk *gpu_chunks;
    AdamWTerms *gpu_terms;
    double *squares, sums[TENSORS + 2], want_squares = 0;
    CUDA_CHECK(cudaMalloc(&gpu_chunks, (size_t)count * sizeof *chunks));
    CUDA_CHECK(cudaMalloc(&gpu_terms, sizeof terms));
    CUDA_CHECK(cudaMalloc(&squares, (size_t)(count + 1) * sizeof *squares));
    CUDA_CHECK(cudaMemcpy(gpu_chunks, chunks, (size_t)count * sizeof *chunks, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(gpu_terms, terms, sizeof terms, cudaMemcpyHostToDevice));

    LAUNCH(sum_squares_kernel, count, 256, 32 * sizeof(double), gpu.stream, squares + 1, g.gpu, gpu_chunks);
    LAUNCH(total_kernel, 1, 1024, 32 * sizeof(double), gpu.stream, squares, squares + 1, (size_t)count);
    for (int k = 0; k < count; k++)
        for (int i = 0; i < chunks[k].count; i++)
            want_squares +=
                (double)g.host[chunks[k].grad_offset + (size_t)i] * g.host[chunks[k].grad_offset + (size_t)i];
    CUDA_CHECK(cudaMemcpy(sums, squares, (size_t)(count + 1) * sizeof *squares, cudaMemcpyDeviceToHost));
    EXPECT_CLOSE(sums[0], want_squares, 1e-6);

    double *want = doubles(p.n);
    double *want_m = doubles(slots);
    double *want_v = doubles(slots);
    double *want_ema = doubles(slots);
    for (size_t i = 0; i < p.n; i++) want[i] = p.host[i];
    for (size_t i = 0; i < slots; i++) {
        want_m[i] = m.host[i];
        want_v[i] = v.host[i];
        want_ema[i] = ema.host[i];
    }
    const double scale = clip_norm > 0 ? fmin(1, clip_norm / (sqrt(want_squares) + 1e-6)) : 1;
    for (int k = 0; k < count; k++)
        for (int i = 0; i < chunks[k].count; i++) {
            const size_t slot = chunks[k].grad_offset + (size_t)i, at = chunks[k].offset + (size_t)i;
            want[at] = reference_adamw(want[at], g.host[slot] * scale, &want_m[slot], &want_v[slot], lr,
                beta1, beta2, eps, decay, step);
            if (k == count - 1) want[at] = fmin(fmax(want[at], 0), LOGIT_SCALE_MAX);
            want_ema[slot] = ema_decay * want_ema[slot] + (1 - ema_decay) * want[at];
        }
    EXPECT(want[48 + chunks[count - 1].grad_offset] == LOGIT_SCALE_MAX, "the case reaches the bound");
    LAUNCH(adamw_kernel, count, 256, 0, gpu.stream, p.gpu, params_bf16 ? half.gpu : NULL, g.gpu, m.gpu, v.gpu,
        ema.gpu, gpu_chunks, gpu_terms, squares, clip_norm, (float)ema_decay, TENSORS - 1);
    const double errors[] = {error_of(download(&p), want, p.n), error_of(download(&m), want_m, slots),
        error_of(download(&v), want_v, slots), error_of(download(&ema), want_ema, slots)};
    for (double error : errors) EXPECT(error <= 5e-7, "adamw_kernel: error %g", error);

    LAUNCH(exchange_kernel, count, 256, 0, gpu.stream, p.gpu, params_bf16 ? half.gpu : NULL, ema.gpu,
        gpu_chunks);
    for (int k = 0; k < count; k++)
        for (int i = 0; i < chunks[k].count; i++) {
            const double kept = want[chunks[k].offset + (size_t)i];
            want[chunks[k].offset + (size_t)i] = want_ema[chunks[k].grad_offset + (size_t)i];
            want_ema[chunks[k].grad_offset + (size_t)i] = kept;
        }
    const double exchanged[] = {error_of(download(&p), want, p.n), error_of(download(&ema), want_ema, slots)};
    for (double error : exchanged) EXPECT(error <= 5e-7, "exchange_kernel: error %g", error);
    download(&half);
    for (int k = 0; k < count; k++)
        for (int i = 0; i < chunks[k].count && params_bf16; i++) {
            const size_t at = chunks[k].offset + (size_t)i;
            EXPECT(half.host[at] == (float)(bf16)p.host[at], "number %zu in bf16: %g of %g", at,
                (double)half.host[at], (double)p.host[at]);
        }
    free(want);
    free(want_m);
    free(want_v);
    free(want_ema);
    CUDA_CHECK(cudaFree(gpu_chunks));
    CUDA_CHECK(cudaFree(gpu_terms));
    CUDA_CHECK(cudaFree(squares));
    arrays_free(&p, &g, &m, &v, &ema, &half);
}

template <typename Real> static void test_type(void) {
    for (int add = 0; add < 2; add++) {
        test_copy_rows<Real>(39, add);
        test_copy_rows<Real>(40, add);
    }
    test_bias_backward<Real>(1, 5, false);
    test_bias_backward<Real>(77, 264, true);
    test_bias_backward<Real>(1301, 39, false);
    test_layernorm<Real, Real>(37, 5, false, true);
    test_layernorm<Real, Real>(1, 39, true, false);
    test_layernorm<Real, Real>(1031, 104, true, true);
    test_layernorm<Real, Real>(3, 1288, false, true);
    test_layernorm<Real, float>(19, 48, false, false);
    for (int quick = 0; quick < 2; quick++) {
        test_gelu<Real>(37, 21, quick, false);
        test_gelu<Real>(1050, 8, quick, true);
    }
    test_attentions<Real>();
    for (int bytes = 0; bytes < 2; bytes++) {
        test_image_embedding<Real>(39, bytes, bytes);
        test_image_embedding<Real>(72, true, bytes);
    }
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        test_table_backward<Real>(39, accumulate);
        test_table_backward<Real>(264, accumulate);
    }
}

int main(void) {
    CUDA_CHECK(cudaStreamCreate(&gpu.stream));
    gpu.matmul = matmul_create();
    CUDA_CHECK(cudaMalloc(&gpu.partials, (size_t)MAX_PARTIALS * 4096 * sizeof(float)));
    RUN(test_type<float>);
    RUN(test_type<bf16>);
    RUN(test_update, 0, true);
    RUN(test_update, 1.5, false);
    RUN(test_normalize, 3, 5);
    RUN(test_normalize, 19, 77);
    for (int tile = 5; tile <= 61; tile += 56) {
        RUN(test_loss, 1, 1, POSITIVES_DIAGONAL, false);
        RUN(test_loss, 61, tile, POSITIVES_DIAGONAL, false);
        RUN(test_loss, 61, tile, POSITIVES_SOFT, true);
        RUN(test_loss, 61, tile, POSITIVES_MASK, true);
    }
    CUDA_CHECK(cudaFree(gpu.partials));
    return test_report();
}
