// Every layer of train_clip.c at odd sizes: forward against plain double arithmetic, backward against finite
// differences of it.
#define CLIP_WITHOUT_MAIN
#include "train_clip.c"
#include "dev/test/test.h"

// A layer as the reference sees it: the inputs are one array of doubles, the outputs another.
typedef struct Case Case;
struct Case {
    void (*reference)(double *out, const double *in, const Case *c);
    int inputs, outputs;
    int sizes[8];
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

// `out`, `din`: what the layer under test made of `in` and of the gradient `dout`. Gradients are checked at
// up to 60 places of each of the stretches of inputs that `stretch` lists (ending with 0).
static void check(const char *name, const Case *c, const float *in, const float *out, const float *dout,
    const float *din, const int *stretch) {
    double *x = malloc_check((size_t)c->inputs * sizeof *x);
    double *y = malloc_check((size_t)c->outputs * sizeof *y);
    double worst = 0;
    for (int i = 0; i < c->inputs; i++) x[i] = in[i];
    c->reference(y, x, c);
    for (int i = 0; i < c->outputs; i++) {
        const double error = fabs(out[i] - y[i]) / largest(out, c->outputs);
        if (!(error <= worst)) worst = error;
    }
    EXPECT(worst <= 2e-6, "%s: forward error %g", name, worst);
    Rand r = rand_for(3, (uint64_t)c->inputs, 1);
    for (int at = 0; *stretch; at += *stretch++) {
        const double size = largest(din + at, *stretch);
        worst = 0;
        for (int k = 0; k < *stretch && k < 60; k++) {
            const int i = at + (*stretch <= 60 ? k : (int)rand_below(&r, (uint64_t)*stretch));
            const double h = 1e-5, kept = x[i];
            double slope = 0;
            for (int side = -1; side <= 1; side += 2) {
                x[i] = kept + side * h;
                c->reference(y, x, c);
                for (int j = 0; j < c->outputs; j++) slope += side * y[j] * dout[j] / (2 * h);
            }
            x[i] = kept;
            const double error = fabs(din[i] - slope) / size;
            if (!(error <= worst)) worst = error;
        }
        EXPECT(worst <= 1e-5, "%s: gradient of inputs %d … %d, error %g", name, at, at + *stretch - 1, worst);
    }
    free(x);
    free(y);
}

// ---------------------------------------------------------------- references in double

// in: inp (N,C), weight (O,C), bias (O), residual (N,O)
static void reference_linear(double *out, const double *in, const Case *c) {
    const int N = c->sizes[0], C = c->sizes[1], O = c->sizes[2];
    const double *inp = in;
    const double *weight = inp + N * C;
    const double *bias = weight + O * C;
    const double *residual = bias + O;
    for (int i = 0; i < N; i++)
        for (int o = 0; o < O; o++) {
            double sum = bias[o] + residual[i * O + o];
            for (int k = 0; k < C; k++) sum += inp[i * C + k] * weight[o * C + k];
            out[i * O + o] = sum;
        }
}

// in: x (N,C), gain (C), bias (C)
static void reference_layernorm(double *out, const double *in, const Case *c) {
    const int N = c->sizes[0], C = c->sizes[1];
    for (int i = 0; i < N; i++) {
        double mean = 0, variance = 0;
        for (int k = 0; k < C; k++) mean += in[i * C + k] / C;
        for (int k = 0; k < C; k++) variance += (in[i * C + k] - mean) * (in[i * C + k] - mean) / C;
        for (int k = 0; k < C; k++)
            out[i * C + k] =
                (in[i * C + k] - mean) / sqrt(variance + 1e-5) * in[N * C + k] + in[N * C + C + k];
    }
}

static void reference_gelu(double *out, const double *in, const Case *c) {
    for (int i = 0; i < c->outputs; i++)
        out[i] = c->sizes[0] ? in[i] / (1 + exp(-1.702 * in[i])) : in[i] * 0.5 * erfc(-in[i] / sqrt(2));
}

// in: qkv (R,3C)
static void reference_attention(double *out, const double *in, const Case *c) {
    const int C = c->sizes[0];
    const int NH = c->sizes[1];
    const int causal = c->sizes[2];
    const int only_read = c->sizes[3];
    const int HS = C / NH;
    for (int b = 0; b < c->seq->B; b++)
        for (int i = c->seq->start[b]; i < c->seq->start[b + 1]; i++)
            for (int h = 0; h < NH && (!only_read || i == c->seq->read[b]); h++) {
                const int first = c->seq->start[b], end = causal ? i + 1 : c->seq->start[b + 1];
                double *o = out + (size_t)(only_read ? b : i) * C + (size_t)h * HS, sum = 0;
                for (int d = 0; d < HS; d++) o[d] = 0;
                for (int j = first; j < end; j++) {
                    double score = 0;
                    for (int d = 0; d < HS; d++)
                        score += in[(size_t)i * 3 * C + h * HS + d] * in[(size_t)j * 3 * C + C + h * HS + d];
                    const double p = exp(score / sqrt(HS));
                    sum += p;
                    for (int d = 0; d < HS; d++) o[d] += p * in[(size_t)j * 3 * C + 2 * C + h * HS + d];
                }
                for (int d = 0; d < HS; d++) o[d] /= sum;
            }
}

static void reference_normalize(double *out, const double *in, const Case *c) {
    const int B = c->sizes[0], E = c->sizes[1];
    for (int b = 0; b < B; b++) {
        double sum = 0;
        for (int e = 0; e < E; e++) sum += in[b * E + e] * in[b * E + e];
        for (int e = 0; e < E; e++) out[b * E + e] = in[b * E + e] / sqrt(sum);
    }
}

// in: conv1 (C,3,P,P), class (C), position (T,C); the convolution written out pixel by pixel
static void reference_image_embedding(double *out, const double *in, const Case *c) {
    const ClipConfig *f = c->config;
    const int C = f->image_width;
    const int P = f->patch_size;
    const int S = f->image_size;
    const int G = config_grid(f);
    const int T = config_image_tokens(f);
    const double *class_embedding = in + C * 3 * P * P, *position = class_embedding + C;
    for (int b = 0; b < c->batch->size; b++)
        for (int t = 0; t < T; t++)
            for (int o = 0; o < C; o++) {
                double sum = position[t * C + o] + (t ? 0 : class_embedding[o]);
                for (int ch = 0; t && ch < 3; ch++)
                    for (int y = 0; y < P; y++)
                        for (int x = 0; x < P; x++)
                            sum += in[((o * 3 + ch) * P + y) * P + x] *
                                   c->batch->images[((b * 3 + ch) * S + (t - 1) / G * P + y) * S +
                                                    (t - 1) % G * P + x];
                out[(b * T + t) * C + o] = sum;
            }
}

// in: token embedding (V,C), position (T,C)
static void reference_text_embedding(double *out, const double *in, const Case *c) {
    const int C = c->config->text_width, V = c->config->vocab_size, T = c->config->context_length;
    for (int b = 0; b < c->seq->B; b++)
        for (int row = c->seq->start[b], t = 0; row < c->seq->start[b + 1]; row++, t++)
            for (int i = 0; i < C; i++)
                out[row * C + i] = in[c->batch->tokens[b * T + t] * C + i] + in[(V + t) * C + i];
}

// ---------------------------------------------------------------- the layers

// Gradients land in arrays that hold something already: set (accumulate false) must ignore it, accumulate
// must add to it.
static void test_linear(const Kernels *k) {
    const int sizes[][3] = {{1, 1, 1}, {3, 7, 5}, {37, 53, 41}, {130, 19, 67}};
    for (int s = 0; s < 4; s++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const int N = sizes[s][0];
            const int C = sizes[s][1];
            const int O = sizes[s][2];
            const int n = N * C + O * C + O + N * O;
            const int stretch[] = {N * C, O * C, O, 0};
            Case c = {reference_linear, n, N * O, {N, C, O}, NULL, NULL, NULL};
            float *in = random_floats(1, (size_t)n);
            float *out = random_floats(2, (size_t)N * O);
            float *dout = random_floats(3, (size_t)N * O);
            float *din = random_floats(4, (size_t)n);
            float *before = malloc_check((size_t)n * sizeof(float));
            memcpy(before, din, (size_t)n * sizeof(float));
            TileEnd residual = SET;
            residual.residual = in + N * C + O * C + O;
            const Weight weight = block_weight(in + N * C, NULL, NULL);
            linear_forward(k, fp32(out), fp32(in), weight, in + N * C + O * C, residual, N, C, O);
            linear_backward_input(k, fp32(din), fp32(dout), (size_t)O, weight, SET, N, C, O);
            linear_backward_weight(
                k, din + N * C, din + N * C + O * C, fp32(dout), (size_t)O, fp32(in), N, C, O, accumulate);
            for (int i = N * C; accumulate && i < N * C + O * C + O; i++) din[i] -= before[i];
            check("linear", &c, in, out, dout, din, stretch);
            free(in);
            free(out);
            free(dout);
            free(din);
            free(before);
        }
}

static void test_layernorm(const Kernels *k) {
    const int sizes[][2] = {{1, 3}, {3, 7}, {71, 33}, {5, 130}};
    for (int s = 0; s < 4; s++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const int N = sizes[s][0];
            const int C = sizes[s][1];
            const int n = N * C + 2 * C;
            const int stretch[] = {N * C, C, C, 0};
            Case c = {reference_layernorm, n, N * C, {N, C}, NULL, NULL, NULL};
            float *in = random_floats(1, (size_t)n);
            float *out = random_floats(2, (size_t)N * C);
            float *dout = random_floats(3, (size_t)N * C);
            float *din = random_floats(4, (size_t)n);
            float *mean = random_floats(5, (size_t)N);
            float *rstd = random_floats(6, (size_t)N);
            float *skip = random_floats(7, (size_t)N * C);
            float *before = malloc_check((size_t)n * sizeof(float));
            memcpy(before, din, (size_t)n * sizeof(float));
            layernorm_forward(k, fp32(out), mean, rstd, in, in + N * C, in + N * C + C, N, C, 1e-5f);
            layernorm_backward(k, din, din + N * C, din + N * C + C, skip, dout, in, in + N * C, mean, rstd,
                N, C, accumulate);
            for (int i = 0; i < n; i++) din[i] -= i < N * C ? skip[i] : accumulate ? before[i] : 0;
            check("layernorm", &c, in, out, dout, din, stretch);
            free(in);
            free(out);
            free(dout);
            free(din);
            free(mean);
            free(rstd);
            free(skip);
            free(before);
        }
}

// GELU'(x) * dout where dout is a product, here with the identity (1,1)
static void test_gelu(const Kernels *k) {
    for (int quick = 0; quick < 2; quick++) {
        enum { N = 5003 };
        const int stretch[] = {N, 0};
        const float one = 1;
        Case c = {reference_gelu, N, N, {quick}, NULL, NULL, NULL};
        float *in = random_floats(1, N);
        float *out = random_floats(2, N);
        float *dout = random_floats(3, N);
        float *din = random_floats(4, N);
        for (int i = 0; i < N; i++) in[i] *= 3;
        TileEnd slope = SET;
        slope.hidden = in;
        slope.activated = out;
        slope.quick_gelu = quick;
        gemm(k, fp32(din), 1, matrix(dout, 1, 1), matrix(&one, 1, 1), N, 1, 1, slope);
        check("gelu", &c, in, out, dout, din, stretch);
        free(in);
        free(out);
        free(dout);
        free(din);
    }
}

static void test_attention(const Kernels *k) {
    // heads, head size; sequences of very different lengths, one longer than QUERY_BLOCK
    const int sizes[][2] = {{5, 9}, {1, 64}, {2, 80}, {1, 88}, {2, 104}, {3, 1}};
    const int lengths[] = {7, 1, 2, 77, 33};
    for (int s = 0; s < 6; s++)
        for (int mode = 0; mode < 4; mode++) {
            const int NH = sizes[s][0];
            const int C = NH * sizes[s][1];
            const int causal = mode & 1;
            const int only_read = mode >> 1;
            Sequences seq = {0};
            sequences_reserve(&seq, 5);
            for (int b = 0; b < 5; b++)
                sequences_add(&seq, b, lengths[b], causal ? lengths[b] - 1 : lengths[b] / 2);
            const int n = seq.R * 3 * C, outputs = (only_read ? seq.B : seq.R) * C, stretch[] = {n, 0};
            Case c = {reference_attention, n, outputs, {C, NH, causal, only_read}, &seq, NULL, NULL};
            float *in = random_floats(1, (size_t)n);
            float *out = random_floats(2, (size_t)outputs);
            float *dout = random_floats(3, (size_t)outputs);
            float *din = calloc_check((size_t)n, sizeof(float));
            attention_forward(k, fp32(out), fp32(in), &seq, C, NH, causal, only_read);
            attention_backward(k, fp32(din), fp32(dout), fp32(in), &seq, C, NH, causal, only_read);
            check("attention", &c, in, out, dout, din, stretch);
            free(in);
            free(out);
            free(dout);
            free(din);
            free(seq.start);
            free(seq.read);
        }
}

static void test_normalize(void) {
    enum { B = 7, E = 13 };
    const int stretch[] = {B * E, 0};
    Case c = {reference_normalize, B * E, B * E, {B, E}, NULL, NULL, NULL};
    float *in = random_floats(1, B * E);
    float *out = random_floats(2, B * E);
    float *dout = random_floats(3, B * E);
    float *din = random_floats(4, B * E);
    float norm[B];
    normalize_forward(out, norm, in, B, E);
    normalize_backward(din, dout, out, norm, B, E);
    check("normalize", &c, in, out, dout, din, stretch);
    free(in);
    free(out);
    free(dout);
    free(din);
}

static void test_image_embedding(const Kernels *k) {
    ClipConfig f = {0};
    f.image_size = 17;
    f.patch_size = 5;
    f.image_width = 11; // two pixels left over
    const int B = 3;
    const int T = config_image_tokens(&f);
    const int C = f.image_width;
    const int K = 3 * f.patch_size * f.patch_size;
    const int n = C * K + C + T * C;
    const int stretch[] = {C * K, C, T * C, 0};
    float *images = random_floats(9, (size_t)B * 3 * 17 * 17);
    float *in = random_floats(1, (size_t)n);
    float *out = random_floats(2, (size_t)B * T * C);
    float *dout = random_floats(3, (size_t)B * T * C);
    float *embedded = random_floats(5, (size_t)B * T * C);
    float *patches = random_floats(6, (size_t)B * T * K);
    const ClipBatch batch = {.size = B, .images = images};
    Case c = {reference_image_embedding, n, B * T * C, {0}, NULL, &batch, &f};
    const TowerPointers w = {
        .conv1_weight = in, .class_embedding = in + C * K, .positional_embedding = in + C * K + C};
    image_embedding_forward(k, out, embedded, fp32(patches), &batch, &w, block_weight(in, NULL, NULL), &f);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *din = random_floats(4, (size_t)n), *before = random_floats(4, (size_t)n);
        const TowerPointers g = {
            .conv1_weight = din, .class_embedding = din + C * K, .positional_embedding = din + C * K + C};
        image_embedding_backward(k, &g, dout, embedded, fp32(patches), &batch, &f, accumulate);
        for (int i = 0; accumulate && i < n; i++) din[i] -= before[i];
        check("image embedding", &c, in, out, dout, din, stretch);
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

static void test_text_embedding(void) {
    ClipConfig f = {0};
    f.text_width = 70;
    f.vocab_size = 23;
    f.context_length = 6; // more channels than one strip
    const int B = 4;
    const int C = f.text_width;
    const int n = (f.vocab_size + f.context_length) * C;
    const int stretch[] = {f.vocab_size * C, f.context_length * C, 0};
    const int tokens[] = {21, 5, 5, 0, 22, 0, 21, 22, 0, 0, 0, 0, 21, 1, 2, 3, 4, 22, 21, 5, 22, 0, 0, 0};
    const ClipBatch batch = {.size = B, .tokens = tokens};
    Sequences seq = {0};
    sequences_reserve(&seq, B);
    for (int b = 0; b < B; b++) {
        const int length = caption_length(tokens + b * f.context_length, f.context_length, 22);
        sequences_add(&seq, b, length, length - 1);
    }
    EXPECT(seq.R == 5 + 2 + 6 + 3 && seq.longest == 6, "%d rows", seq.R);
    Case c = {reference_text_embedding, n, seq.R * C, {0}, &seq, &batch, &f};
    float *in = random_floats(1, (size_t)n);
    float *out = random_floats(2, (size_t)seq.R * C);
    float *dout = random_floats(3, (size_t)seq.R * C);
    const TowerPointers w = {.token_embedding = in, .positional_embedding = in + f.vocab_size * C};
    text_embedding_forward(out, &batch, &seq, &w, &f);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *din = random_floats(4, (size_t)n), *before = random_floats(4, (size_t)n);
        const TowerPointers g = {.token_embedding = din, .positional_embedding = din + f.vocab_size * C};
        bool used[23] = {false};
        for (int v = 0; v < 23; v++) used[v] = v != 7; // not this one: its row is zero
        for (int i = 0; i < C && !accumulate; i++) din[7 * C + i] = 0;
        text_embedding_backward(&g, used, dout, &batch, &seq, &f, accumulate);
        EXPECT(used[5] && used[21] && used[7] == false && used[9] == accumulate, "tokens that are used");
        for (int i = 0; accumulate && i < n; i++) din[i] -= before[i];
        check("text embedding", &c, in, out, dout, din, stretch);
        free(din);
        free(before);
    }
    free(in);
    free(out);
    free(dout);
    free(seq.start);
    free(seq.read);
}

int main(void) {
    const Kernels *k = kernels_select();
    RUN(test_linear, k);
    RUN(test_layernorm, k);
    RUN(test_gelu, k);
    RUN(test_attention, k);
    RUN(test_normalize);
    RUN(test_image_embedding, k);
    RUN(test_pixels_are_normalised_as_torchvision_does);
    RUN(test_text_embedding);
    return test_report();
}
