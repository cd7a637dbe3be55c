// Every layer of train_clip.c at odd sizes, by the processor's kernels and by plain loops: forward against
// the plain loop in double, backward against finite differences of it.
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"
#include "dev/test/plain64.h"
#include "dev/test/test.h"

// A layer as the reference sees it: the inputs are one array of doubles, the outputs another.
typedef struct Case Case;
struct Case {
    const char *name;
    void (*forward)(double *out, const double *in, const Case *c);
    int inputs, outputs;
    int sizes[4];
    Activation activation;
    const Attention *attention;
    bool pooled;
    const Sequences *seq;
    const ClipBatch *batch;
    const ClipConfig *config;
};

static float *random_floats(uint64_t key, size_t n) {
    float *x = aligned_malloc_check((n + 1) * sizeof(float));
    Rand r = rand_for(11, key, 0);
    for (size_t i = 0; i < n; i++) x[i] = (float)rand_normal(&r);
    return x;
}

static double largest(const float *x, int n) {
    double m = 1e-30;
    for (int i = 0; i < n; i++) m = fmax(m, fabs(x[i]));
    return m;
}

// out, din: what the layer under test made of `in` and of the gradient `dout`. Gradients are checked at up to
// 60 entries of each of the parts of the inputs, whose sizes `parts` lists (ending with 0).
static void check(const Case *c, const Kernels *k, const float *in, const float *out, const float *dout,
    const float *din, const int *parts) {
    double *x = malloc_check((size_t)c->inputs * sizeof *x),
           *y = malloc_check((size_t)c->outputs * sizeof *y);
    double worst = 0, most = largest(out, c->outputs);
    for (int i = 0; i < c->inputs; i++) x[i] = in[i];
    c->forward(y, x, c);
    for (int i = 0; i < c->outputs; i++) {
        const double error = fabs(out[i] - y[i]) / most;
        if (!(error <= worst)) worst = error;
    }
    EXPECT(worst <= 2e-6, "%s, %s: forward error %g", c->name, k->name, worst);
    Rand r = rand_for(3, (uint64_t)c->inputs, 1);
    for (int at = 0; *parts; at += *parts++) {
        const double size = largest(din + at, *parts);
        worst = 0;
        for (int j = 0; j < *parts && j < 60; j++) {
            const int i = at + (*parts <= 60 ? j : (int)rand_below(&r, (uint64_t)*parts));
            const double h = 1e-5, before = x[i];
            double slope = 0;
            for (int side = -1; side <= 1; side += 2) {
                x[i] = before + side * h;
                c->forward(y, x, c);
                for (int o = 0; o < c->outputs; o++) slope += side * y[o] * dout[o] / (2 * h);
            }
            x[i] = before;
            const double error = fabs(din[i] - slope) / size;
            if (!(error <= worst)) worst = error;
        }
        EXPECT(worst <= 1e-5, "%s, %s: gradient of inputs %d … %d, error %g", c->name, k->name, at,
            at + *parts - 1, worst);
    }
    free(x);
    free(y);
}

// ---------------------------------------------------------------- the plain loops, from one array to another

// in: x (N,C), weight (O,C), bias (O), residual (N,O)
static void linear_case(double *out, const double *in, const Case *c) {
    const int N = c->sizes[0], C = c->sizes[1], O = c->sizes[2];
    const double *weight = in + N * C, *bias = weight + O * C, *residual = bias + O;
    linear_forward_64(out, in, weight, bias, N, C, O, (size_t)O);
    for (int i = 0; i < N * O; i++) out[i] += residual[i];
}

// in: x (N,C), weight (O,C), bias (O)
static void activated_case(double *out, const double *in, const Case *c) {
    const int N = c->sizes[0], C = c->sizes[1], O = c->sizes[2];
    linear_forward_64(out, in, in + N * C, in + N * C + O * C, N, C, O, (size_t)O);
    activation_forward_64(out, out, (size_t)N * (size_t)O, c->activation);
}

// in: x (N,C) before the activation, weight (O,C)
static void after_activation_case(double *out, const double *in, const Case *c) {
    const int N = c->sizes[0], C = c->sizes[1], O = c->sizes[2];
    double *activated = malloc_check((size_t)(N * C) * sizeof *activated);
    activation_forward_64(activated, in, (size_t)(N * C), c->activation);
    linear_forward_64(out, activated, in + N * C, NULL, N, C, O, (size_t)O);
    free(activated);
}

// in: x (N,C), gain (C), bias (C)
static void layernorm_case(double *out, const double *in, const Case *c) {
    const int N = c->sizes[0], C = c->sizes[1];
    double *stats = malloc_check(2 * (size_t)N * sizeof *stats);
    layernorm_forward_64(out, stats, stats + N, in, in + N * C, in + N * C + C, N, C, 1e-5);
    free(stats);
}

// in: qkv (R,3C)
static void attention_case(double *out, const double *in, const Case *c) {
    const Attention *a = c->attention;
    const int *pooled_row = c->pooled ? c->seq->pooled_row : NULL;
    attention_forward_64(out, in, c->seq->start, pooled_row, c->seq->B, a->C, a->NH, a->causal);
}

static void normalize_case(double *out, const double *in, const Case *c) {
    double norm[16];
    normalize_forward_64(out, norm, in, c->sizes[0], c->sizes[1]);
}

// in: conv1 (C,3,P,P), class (C), positions (T,C); the convolution pixel by pixel
static void image_embedding_case(double *out, const double *in, const Case *c) {
    const ClipConfig *f = c->config;
    const int C = f->image_width, P = f->patch_size, S = f->image_size, G = config_grid(f);
    const int N = batch_patches(c->batch, f), B = c->batch->size;
    const double *class_embedding = in + C * 3 * P * P;
    double *embedded = calloc_check((size_t)(B * N * C), sizeof *embedded);
    int *patch = patch_list(c->batch, N);
    for (int i = 0; i < B * N; i++)
        for (int o = 0; o < C; o++)
            for (int j = 0; j < 3 * P * P; j++) {
                const int ch = j / (P * P), y = patch[i] / G * P + j / P % P, x = patch[i] % G * P + j % P;
                embedded[i * C + o] +=
                    in[o * 3 * P * P + j] * c->batch->images[((i / N * 3 + ch) * S + y) * S + x];
            }
    image_embedding_forward_64(out, embedded, class_embedding, class_embedding + C, patch, B, N, C);
    free(embedded);
    free(patch);
}

// in: token embedding (V,C), positions (T,C)
static void text_embedding_case(double *out, const double *in, const Case *c) {
    const int C = c->config->text_width, V = c->config->vocab_size, T = c->config->context_length;
    text_embedding_forward_64(out, c->batch->tokens, c->seq->start, in, in + V * C, c->seq->B, T, C);
}

// ---------------------------------------------------------------- linear layer

static Linear test_linear_layer(
    const Kernels *k, const float *in, float *din, int N, int C, int O, bool bias) {
    const Backend b = {.kernels = k};
    const int w = N * C;
    return linear_bind(
        &b, in + w, bias ? in + w + O * C : NULL, din + w, bias ? din + w + O * C : NULL, NULL, NULL, C, O);
}

// Gradients land in arrays that hold something already: they overwrite it, or with `accumulate` add to it.
static void test_linear_layer_with_residual(const Kernels *k) {
    const int sizes[][3] = {{1, 1, 1}, {3, 7, 5}, {37, 53, 41}, {130, 19, 67}};
    for (int s = 0; s < 4; s++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const int N = sizes[s][0], C = sizes[s][1], O = sizes[s][2], n = N * C + O * C + O + N * O;
            const int parts[] = {N * C, O * C, O, 0};
            const Case c = {
                .name = "linear", .forward = linear_case, .inputs = n, .outputs = N * O, .sizes = {N, C, O}};
            float *in = random_floats(1, (size_t)n), *out = random_floats(2, (size_t)N * O);
            float *dout = random_floats(3, (size_t)N * O), *din = random_floats(4, (size_t)n);
            float *before = random_floats(4, (size_t)n);
            const Linear w = test_linear_layer(k, in, din, N, C, O, true);
            linear_residual_forward(out, fp32(in), &w, in + N * C + O * C + O, N);
            linear_backward_input(fp32(din), fp32(dout), &w, N);
            linear_backward_weight(&w, fp32(dout), fp32(in), N, accumulate);
            for (int i = N * C; accumulate && i < n - N * O; i++) din[i] -= before[i];
            check(&c, k, in, out, dout, din, parts);
            free(in);
            free(out);
            free(dout);
            free(din);
            free(before);
        }
}

// A part of a layer is what the whole layer computes there.
static void test_part_of_a_linear_layer(const Kernels *k) {
    enum { N = 5, C = 34, O = 96, FIRST = 32, COUNT = 64 };
    float *in = random_floats(1, N * C + O * C + O), *din = random_floats(2, N * C + O * C + O);
    float whole[N * O], part[N * O] = {0};
    const Linear w = test_linear_layer(k, in, din, N, C, O, true), p = linear_part(&w, FIRST, COUNT, O);
    linear_forward(fp32(whole), fp32(in), &w, N);
    linear_forward(fp32(part + FIRST), fp32(in), &p, N);
    for (int i = 0; i < N; i++)
        EXPECT(memcmp(whole + i * O + FIRST, part + i * O + FIRST, COUNT * sizeof(float)) == 0, "row %d", i);
    free(in);
    free(din);
}

static void test_activation_after_a_linear_layer(const Kernels *k) {
    enum { N = 61, C = 17, O = 83, INPUTS = N * C + O * C + O };
    for (int i = 0; i < 2; i++) {
        const int parts[] = {0};
        const Case c = {.name = "activation",
            .forward = activated_case,
            .inputs = INPUTS,
            .outputs = N * O,
            .sizes = {N, C, O},
            .activation = i ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU};
        float *in = random_floats(1, INPUTS), *out = random_floats(2, N * O),
              *hidden = random_floats(3, N * O);
        const Linear w = test_linear_layer(k, in, in, N, C, O, true);
        linear_activation_forward(fp32(hidden), fp32(out), fp32(in), &w, c.activation, N);
        check(&c, k, in, out, NULL, NULL, parts);
        free(in);
        free(out);
        free(hidden);
    }
}

static void test_gradient_through_an_activation(const Kernels *k) {
    enum { N = 61, C = 83, O = 17, INPUTS = N * C + O * C };
    for (int i = 0; i < 2; i++) {
        const int parts[] = {N * C, O * C, 0};
        const Case c = {.name = "activation",
            .forward = after_activation_case,
            .inputs = INPUTS,
            .outputs = N * O,
            .sizes = {N, C, O},
            .activation = i ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU};
        float *in = random_floats(1, INPUTS), *out = random_floats(2, N * O), *dout = random_floats(3, N * O);
        float *din = random_floats(4, INPUTS), *activated = random_floats(5, N * C);
        const Linear w = test_linear_layer(k, in, din, N, C, O, false);
        linear_activation_backward(fp32(din), fp32(activated), fp32(dout), fp32(in), &w, c.activation, N);
        linear_forward(fp32(out), fp32(activated), &w, N); // as the backward pass has it
        linear_backward_weight(&w, fp32(dout), fp32(activated), N, false);
        check(&c, k, in, out, dout, din, parts);
        free(in);
        free(out);
        free(dout);
        free(din);
        free(activated);
    }
}

// ---------------------------------------------------------------- the other layers

static void test_layernorm_adds_to_the_residual_gradient(const Kernels *k) {
    const int sizes[][2] = {{1, 3}, {3, 7}, {71, 33}, {5, 130}};
    for (int s = 0; s < 4; s++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const int N = sizes[s][0], C = sizes[s][1], n = N * C + 2 * C, parts[] = {N * C, C, C, 0};
            const Case c = {.name = "layernorm",
                .forward = layernorm_case,
                .inputs = n,
                .outputs = N * C,
                .sizes = {N, C}};
            float *in = random_floats(1, (size_t)n), *out = random_floats(2, (size_t)N * C);
            float *dout = random_floats(3, (size_t)N * C), *din = random_floats(4, (size_t)n);
            float *skip = random_floats(7, (size_t)N * C), *before = random_floats(4, (size_t)n);
            const RowStats stats = {random_floats(5, (size_t)N), random_floats(6, (size_t)N)};
            const LayerNorm w = {in + N * C, in + N * C + C, din + N * C, din + N * C + C, C, 1e-5f, k};
            layernorm_forward(fp32(out), stats, in, &w, N);
            layernorm_backward(din, skip, dout, in, stats, &w, N, accumulate);
            for (int i = 0; i < n; i++) din[i] -= i < N * C ? skip[i] : accumulate ? before[i] : 0;
            check(&c, k, in, out, dout, din, parts);
            free(in);
            free(out);
            free(dout);
            free(din);
            free(stats.mean);
            free(stats.rstd);
            free(skip);
            free(before);
        }
}

static void check_attention(
    const Kernels *k, int NH, int HS, const int *lengths, int B, bool causal, bool pooled) {
    const Attention a = {NH * HS, NH, causal, k};
    Sequences seq = {0};
    sequences_reserve(&seq, B);
    for (int b = 0; b < B; b++) sequences_add(&seq, b, lengths[b], causal ? lengths[b] - 1 : lengths[b] / 2);
    const int n = seq.R * 3 * a.C, outputs = (pooled ? seq.B : seq.R) * a.C, parts[] = {n, 0};
    const Case c = {.name = "attention",
        .forward = attention_case,
        .inputs = n,
        .outputs = outputs,
        .attention = &a,
        .pooled = pooled,
        .seq = &seq};
    float *in = random_floats(1, (size_t)n), *out = random_floats(2, (size_t)outputs);
    float *dout = random_floats(3, (size_t)outputs), *din = calloc_check((size_t)n, sizeof(float));
    attention_forward(fp32(out), fp32(in), &seq, &a, pooled);
    attention_backward(fp32(din), fp32(dout), fp32(in), &seq, &a, pooled);
    check(&c, k, in, out, dout, din, parts);
    free(in);
    free(out);
    free(dout);
    free(din);
    sequences_free(&seq);
}

static void test_attention_over_sequences_of_different_lengths(const Kernels *k) {
    const int sizes[][2] = {{5, 9}, {1, 64}, {2, 80}, {1, 88}, {2, 104}, {3, 1}}; // heads, head size
    const int lengths[] = {7, 1, 2, 77, 33};
    for (int s = 0; s < 6; s++)
        for (int mode = 0; mode < 4; mode++)
            check_attention(k, sizes[s][0], sizes[s][1], lengths, 5, mode & 1, mode >> 1);
}

static void test_attention_over_more_than_one_block_of_queries(const Kernels *k) {
    const int length = QUERIES_MOST + 37;
    EXPECT(queries_per_block(length) < length, "one block holds %d queries", length);
    for (int causal = 0; causal < 2; causal++) check_attention(k, 1, 5, &length, 1, causal, false);
}

static void test_l2_normalisation(const Kernels *k) {
    enum { B = 7, E = 13 };
    const int parts[] = {B * E, 0};
    const Case c = {
        .name = "normalize", .forward = normalize_case, .inputs = B * E, .outputs = B * E, .sizes = {B, E}};
    float *in = random_floats(1, B * E), *out = random_floats(2, B * E);
    float *dout = random_floats(3, B * E), *din = random_floats(4, B * E), norm[B];
    normalize_forward(out, norm, in, B, E);
    normalize_backward(din, dout, out, norm, B, E);
    check(&c, k, in, out, dout, din, parts);
    double dx[B * E], dout64[B * E], out64[B * E], norm64[B]; // and against the plain loop
    for (int i = 0; i < B * E; i++) {
        dout64[i] = dout[i];
        out64[i] = out[i];
    }
    for (int b = 0; b < B; b++) norm64[b] = norm[b];
    normalize_backward_64(dx, dout64, out64, norm64, B, E);
    for (int i = 0; i < B * E; i++) EXPECT_CLOSE(din[i], dx[i], 1e-6);
    free(in);
    free(out);
    free(dout);
    free(din);
}

// A part of the image is left over by the patches; patch dropout keeps some of them.
static void check_image_embedding(const Kernels *k, const int *kept, int kept_count) {
    ClipConfig f = {0};
    f.image_size = 17;
    f.patch_size = 5;
    f.image_width = 11;
    const int B = 3, T = config_image_tokens(&f), C = f.image_width, K = 3 * f.patch_size * f.patch_size;
    const int n = C * K + C + T * C, parts[] = {C * K, C, T * C, 0};
    float *images = random_floats(9, (size_t)B * 3 * 17 * 17), *in = random_floats(1, (size_t)n);
    float *out = random_floats(2, (size_t)B * T * C), *dout = random_floats(3, (size_t)B * T * C);
    float *embedded = random_floats(5, (size_t)B * T * C), *patches = random_floats(6, (size_t)B * T * K);
    const ClipBatch batch = {.size = B, .images = images, .kept = kept, .kept_count = kept_count};
    const Backend b = {.kernels = k};
    const Case c = {.name = "image embedding",
        .forward = image_embedding_case,
        .inputs = n,
        .outputs = B * (batch_patches(&batch, &f) + 1) * C,
        .batch = &batch,
        .config = &f};
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *din = random_floats(4, (size_t)n), *before = random_floats(4, (size_t)n);
        const Embedding w = {.conv1 = linear_bind(&b, in, NULL, din, NULL, NULL, NULL, K, C),
            .class_embedding = in + C * K,
            .positions = in + C * K + C,
            .dclass_embedding = din + C * K,
            .dpositions = din + C * K + C};
        image_embedding_forward(out, embedded, fp32(patches), &batch, &w, &f);
        image_embedding_backward(&w, dout, embedded, fp32(patches), &batch, &f, accumulate);
        for (int i = 0; accumulate && i < n; i++) din[i] -= before[i];
        check(&c, k, in, out, dout, din, parts);
        free(din);
        free(before);
    }
    free(images);
    free(in);
    free(out);
    free(dout);
    free(embedded);
    free(patches);
}

static void test_image_embedding_of_all_patches(const Kernels *k) { check_image_embedding(k, NULL, 0); }

static void test_image_embedding_after_patch_dropout(const Kernels *k) {
    const int kept[] = {0, 3, 4, 8, 1, 2, 3, 7, 4, 5, 6, 8};
    check_image_embedding(k, kept, 4);
}

static void test_pixels_are_normalised_as_torchvision_does(void) {
    ClipConfig f = {0};
    f.image_size = f.patch_size = 16;
    f.mean_r = 0.48145466f;
    f.mean_g = 0.4578275f;
    f.mean_b = 0.40821073f;
    f.std_r = 0.26862954f;
    f.std_g = 0.26130258f;
    f.std_b = 0.27577711f;
    uint8_t pixels[3 * 256];
    float patches[3 * 256];
    for (int i = 0; i < 3 * 256; i++) pixels[i] = (uint8_t)i;
    const ClipBatch batch = {.size = 1, .pixels = pixels};
    patches_from_images(fp32(patches), &batch, &f);
    for (int ch = 0; ch < 3; ch++)
        for (int v = 0; v < 256; v++) {
            const float mean = (&f.mean_r)[ch], std = (&f.std_r)[ch];
            EXPECT(patches[ch * 256 + v] == ((float)v / 255.0f - mean) / std, "channel %d, value %d", ch, v);
        }
}

static void test_text_embedding_up_to_the_end_of_text(const Kernels *k) {
    ClipConfig f = {0};
    f.text_width = EMBEDDING_COLUMNS + 6;
    f.vocab_size = 23;
    f.context_length = 6;
    f.eot_id = 22;
    const int B = 4, C = f.text_width, V = f.vocab_size, n = (V + f.context_length) * C;
    const int parts[] = {V * C, f.context_length * C, 0};
    const int tokens[] = {21, 5, 5, 0, 22, 0, 21, 22, 0, 0, 0, 0, 21, 1, 2, 3, 4, 22, 21, 5, 22, 0, 0, 0};
    const ClipBatch batch = {.size = B, .tokens = tokens};
    Sequences seq = {0};
    sequences_of_batch(&seq, &batch, TEXT_TOWER, &f);
    EXPECT(seq.R == 5 + 2 + 6 + 3 && seq.longest == 6, "%d rows", seq.R);
    const Case c = {.name = "text embedding",
        .forward = text_embedding_case,
        .inputs = n,
        .outputs = seq.R * C,
        .seq = &seq,
        .batch = &batch,
        .config = &f};
    float *in = random_floats(1, (size_t)n), *out = random_floats(2, (size_t)seq.R * C);
    float *dout = random_floats(3, (size_t)seq.R * C);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *din = random_floats(4, (size_t)n), *before = random_floats(4, (size_t)n);
        const Embedding w = {.conv1 = {.kernels = k},
            .token_embedding = in,
            .positions = in + V * C,
            .dtoken_embedding = din,
            .dpositions = din + V * C};
        bool used[23] = {false};
        for (int v = 0; v < V; v++) used[v] = v != 7; // not this one: its row is zero
        for (int i = 0; i < C && !accumulate; i++) din[7 * C + i] = 0;
        text_embedding_forward(out, &batch, &seq, &w, &f);
        text_embedding_backward(&w, used, dout, &batch, &seq, &f, accumulate);
        EXPECT(
            k->plain || (used[5] && used[21] && !used[7] && used[9] == accumulate), "tokens that are used");
        for (int i = 0; accumulate && i < n; i++) din[i] -= before[i];
        check(&c, k, in, out, dout, din, parts);
        free(din);
        free(before);
    }
    free(in);
    free(out);
    free(dout);
    sequences_free(&seq);
}

// By the kernels that CLIPC_ISA names or the processor's best, and by the plain loops in float.
int main(void) {
    const Kernels *both[] = {kernels_select(), &kernels_plain};
    for (int i = 0; i < 2; i++) {
        const Kernels *k = both[i];
        RUN(test_linear_layer_with_residual, k);
        RUN(test_part_of_a_linear_layer, k);
        RUN(test_activation_after_a_linear_layer, k);
        RUN(test_gradient_through_an_activation, k);
        RUN(test_layernorm_adds_to_the_residual_gradient, k);
        RUN(test_attention_over_sequences_of_different_lengths, k);
        RUN(test_attention_over_more_than_one_block_of_queries, k);
        RUN(test_l2_normalisation, k);
        RUN(test_image_embedding_of_all_patches, k);
        RUN(test_image_embedding_after_patch_dropout, k);
        RUN(test_text_embedding_up_to_the_end_of_text, k);
    }
    RUN(test_pixels_are_normalised_as_torchvision_does);
    return test_report();
}
