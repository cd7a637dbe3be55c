// clip.c: CLIP (Radford et al. 2021) fine-tuned on a CPU, in plain C. In this file: every layer forward and backward, the two
// towers, AdamW, and the program. Training loop, evaluation, data and files are in clipc/, one concern a file.
//
//     ./train_clip --pretrained W.bin --train-data pictures.csv        fine-tunes
//     ./train_clip --help
//
// Captions and images are packed: a batch is R rows of C channels, the tokens of one sequence behind those of the next, and
// captions end at their end of text. What follows it is masked from it by causality, so leaving it out is exact. The last block
// computes only the row that is read in the end (class token, end of text): exact too.
//
// B batch, T tokens, R rows (all tokens of a batch), C channels, NH heads, HS head size, F hidden width of the MLP, L layers,
// V vocabulary, E embedding, P patch size, S image size, G patches along a side. Outputs first, gradients begin with d, sizes last.

#include "clipc/utils.h"    // die, malloc_check
#include "clipc/rand.h"     // rand_for, rand_normal
#include "clipc/clip.h"     // Clip, ClipBatch, AdamW, the functions implemented here
#include "clipc/matmul.h"   // Kernels, gemm
#include "clipc/loss.h"     // contrastive_loss

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---------------------------------------------------------------- sequences of a batch

// The rows of sequence b are start[b] … start[b+1]-1; row read[b] is the one that the head reads.
typedef struct {
    int B, R, longest;
    int *start; // (B+1)
    int *read;  // (B)
} Sequences;

static void sequences_reserve(Sequences *s, int B) {
    s->start = realloc_check(s->start, ((size_t)B + 1) * sizeof(int));
    s->read = realloc_check(s->read, (size_t)B * sizeof(int));
    s->B = B, s->R = s->longest = s->start[0] = 0;
}

static void sequences_add(Sequences *s, int b, int T, int read) {
    s->start[b] = s->R, s->read[b] = s->R + read;
    s->R += T, s->start[b + 1] = s->R;
    if (T > s->longest) s->longest = T;
}

// out (B,C) = the rows of x (R,C) that are read
static void gather_rows(float *out, const float *x, const Sequences *s, int C) {
    for (int b = 0; b < s->B; b++) memcpy(out + (size_t)b * C, x + (size_t)s->read[b] * C, (size_t)C * sizeof(float));
}

// ---------------------------------------------------------------- layers

// out (N,O) = inp (N,C) · weight (O,C)ᵀ + bias (O) [+ residual (N,O)]; bias and residual may be NULL
static void linear_forward(const Kernels *k, float *out, const float *inp, const float *weight, const float *bias, const float *residual, int N, int C, int O) {
    const TileEnd end = {false, bias, residual};
    gemm(k, out, (size_t)O, matrix(inp, (size_t)C, 1), matrix(weight, 1, (size_t)C), N, O, C, end);
}

// dbias (O) (+)= the column sums of dout (N,O), rows ld apart
static void bias_backward(const Kernels *k, float *dbias, const float *dout, size_t ld, int N, int O, bool accumulate) {
    enum { STRIP = 64, CHUNK = 128 }; // columns have one owner; rows in chunks, whose sums are added in order
#pragma omp parallel for schedule(static)
    for (int o = 0; o < O; o += STRIP) {
        const int n = O - o < STRIP ? O - o : STRIP;
        float sum[STRIP] = {0}, part[STRIP];
        for (int r = 0; r < N; r += CHUNK) {
            memset(part, 0, sizeof part);
            k->column_sums(part, dout + (size_t)r * ld + o, N - r < CHUNK ? N - r : CHUNK, ld, n);
            for (int i = 0; i < n; i++) sum[i] += part[i];
        }
        for (int i = 0; i < n; i++) dbias[o + i] = sum[i] + (accumulate ? dbias[o + i] : 0);
    }
}

// dinp (N,C) = dout · weight;  dweight (O,C) (+)= doutᵀ · inp;  dbias (O) (+)= column sums of dout. Any output may be NULL.
// dout (N,O) has its rows ld apart (ld > O: a part of the columns of a wider matrix).
static void linear_backward(const Kernels *k, float *dinp, float *dweight, float *dbias, const float *dout, size_t ld, const float *inp, const float *weight, int N,
                            int C, int O, bool accumulate) {
    const TileEnd set = {false, NULL, NULL}, add = {accumulate, NULL, NULL};
    if (dinp) gemm(k, dinp, (size_t)C, matrix(dout, ld, 1), matrix(weight, (size_t)C, 1), N, C, O, set);
    if (dweight) gemm(k, dweight, (size_t)C, matrix(dout, 1, ld), matrix(inp, (size_t)C, 1), O, C, N, add);
    if (dbias) bias_backward(k, dbias, dout, ld, N, O, accumulate);
}

// LayerNorm (Ba et al. 2016, eq. 4) over the last axis, biased variance.
//   out  (N,C)  = gain * (x - mean) * rstd + bias
//   mean (N), rstd (N): kept for the backward pass
static void layernorm_forward(const Kernels *k, float *out, float *mean, float *rstd, const float *x, const float *gain, const float *bias, int N, int C, float eps) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < N; i++) k->layernorm(out + (size_t)i * C, mean + i, rstd + i, x + (size_t)i * C, gain, bias, C, eps);
}

// dx (N,C) = skip (N,C; NULL, or dx itself) + what comes through the LayerNorm; dgain, dbias (C) (+)=, NULL when frozen. dout stays.
// The parameter gradients are summed over a fixed number of chunks of rows, then in order: the same bits for any number of threads.
static void layernorm_backward(const Kernels *k, float *dx, float *dgain, float *dbias, const float *skip, const float *dout, const float *x, const float *gain,
                               const float *mean, const float *rstd, int N, int C, bool accumulate) {
    enum { CHUNKS = 32 };
    float *parts = calloc_check((size_t)CHUNKS * 2 * C, sizeof(float));
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        float *part = parts + (size_t)chunk * 2 * C;
        for (int i = (int)((int64_t)N * chunk / CHUNKS); i < (int)((int64_t)N * (chunk + 1) / CHUNKS); i++) {
            const size_t row = (size_t)i * C;
            k->layernorm_backward(dx ? dx + row : NULL, dgain ? part : NULL, dbias ? part + C : NULL, skip ? skip + row : NULL, dout + row, x + row, gain, mean[i],
                                  rstd[i], C);
        }
    }
    for (int which = 0; which < 2; which++) {
        float *d = which ? dbias : dgain;
        if (!d) continue;
        if (!accumulate) memset(d, 0, (size_t)C * sizeof(float));
        k->column_sums(d, parts + (which ? C : 0), CHUNKS, (size_t)2 * C, C);
    }
    free(parts);
}

// out (n) = GELU or QuickGELU
static void gelu_forward(const Kernels *k, float *out, const float *x, size_t n, bool quick) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += 4096) k->gelu(out + i, x + i, n - i < 4096 ? (int)(n - i) : 4096, quick);
}

static void gelu_backward(const Kernels *k, float *dx, const float *x, const float *dout, size_t n, bool quick) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += 4096) k->gelu_backward(dx + i, x + i, dout + i, n - i < 4096 ? (int)(n - i) : 4096, quick);
}

// ---------------------------------------------------------------- attention

enum { QUERY_BLOCK = 64 }; // queries whose scores are held at a time: they stay in L1/L2 for any number of tokens

// What one thread needs for one head: scores and their gradients (QUERY_BLOCK, longest), a panel for the products.
static size_t attention_scratch(const Kernels *k, int longest) { return gemm_serial_scratch(k) + 2 * (size_t)QUERY_BLOCK * round_up((size_t)longest, 16); }

// One head of one sequence, as seen by forward and backward.
typedef struct {
    const float *q, *k, *v; // (T,HS), rows 3C apart
    int T, HS, queries;     // queries: T, or 1 where only the row that is read matters
    int first;              // position of the first query in the sequence
    size_t C, out;          // channels; the first row of the head's output
} Head;

static Head attention_head(const float *qkv, const Sequences *s, int b, int h, int C, int NH, bool only_read) {
    const int start = s->start[b], T = s->start[b + 1] - start, HS = C / NH, first = only_read ? s->read[b] - start : 0;
    const float *row = qkv + (size_t)start * 3 * C + (size_t)h * HS;
    Head head = {row + (size_t)first * 3 * C, row + C, row + 2 * C, T, HS, only_read ? 1 : T, first, (size_t)C, only_read ? (size_t)b : (size_t)start};
    return head;
}

// p (n,ld) = softmax(q · kᵀ / sqrt(HS)) for queries q0 … q0+n-1 of the head; causal: a query sees the keys up to itself
static void attention_probabilities(const Kernels *k, float *p, size_t ld, float *panel, const Head *h, int q0, int n, bool causal) {
    const TileEnd set = {false, NULL, NULL};
    gemm_serial(k, panel, p, ld, matrix(h->q + (size_t)q0 * 3 * h->C, 3 * h->C, 1), matrix(h->k, 1, 3 * h->C), n, h->T, h->HS, set);
    for (int i = 0; i < n; i++) k->softmax(p + (size_t)i * ld, causal ? h->first + q0 + i + 1 : h->T, (int)ld, 1.0f / sqrtf((float)h->HS));
}

// Scaled dot-product attention (Vaswani et al. 2017, eq. 1), heads side by side in the channels.
//   out (R,C), or (B,C) with only_read: then only the queries of the rows that are read are computed
//   qkv (R,3C): queries, keys, values of all heads
static void attention_forward(const Kernels *k, float *out, const float *qkv, const Sequences *s, int C, int NH, bool causal, bool only_read) {
#pragma omp parallel
    {
        float *panel = aligned_malloc_check(attention_scratch(k, s->longest) * sizeof(float)), *p = panel + gemm_serial_scratch(k);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < s->B * NH; item++) {
            const int head = item % NH;
            const Head h = attention_head(qkv, s, item / NH, head, C, NH, only_read);
            const size_t ld = round_up((size_t)h.T, 16);
            const TileEnd set = {false, NULL, NULL};
            for (int q0 = 0; q0 < h.queries; q0 += QUERY_BLOCK) {
                const int n = h.queries - q0 < QUERY_BLOCK ? h.queries - q0 : QUERY_BLOCK;
                attention_probabilities(k, p, ld, panel, &h, q0, n, causal);
                gemm_serial(k, panel, out + (h.out + (size_t)q0) * C + (size_t)head * h.HS, (size_t)C, matrix(p, ld, 1), matrix(h.v, 3 * h.C, 1), n, h.HS, h.T, set);
            }
        }
        free(panel);
    }
}

// dqkv (R,3C) = the gradient by queries, keys and values; with only_read the query part of the other rows is not written.
// Probabilities are computed again rather than kept. With P the probabilities and dO = dout:
//   dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP - rowsum(P ∘ dP)) / sqrt(HS),  dQ = dS K,  dK = dSᵀ Q
static void attention_backward(const Kernels *k, float *dqkv, const float *dout, const float *qkv, const Sequences *s, int C, int NH, bool causal, bool only_read) {
#pragma omp parallel
    {
        float *panel = aligned_malloc_check(attention_scratch(k, s->longest) * sizeof(float)), *p = panel + gemm_serial_scratch(k);
        float *dp = p + (size_t)QUERY_BLOCK * round_up((size_t)s->longest, 16);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < s->B * NH; item++) {
            const int head = item % NH;
            const Head h = attention_head(qkv, s, item / NH, head, C, NH, only_read);
            const size_t ld = round_up((size_t)h.T, 16), C3 = 3 * h.C;
            float *dq = dqkv + (h.q - qkv), *dk = dqkv + (h.k - qkv), *dv = dqkv + (h.v - qkv);
            for (int q0 = 0; q0 < h.queries; q0 += QUERY_BLOCK) {
                const int n = h.queries - q0 < QUERY_BLOCK ? h.queries - q0 : QUERY_BLOCK;
                const float *d = dout + (h.out + (size_t)q0) * C + (size_t)head * h.HS;
                const TileEnd set = {false, NULL, NULL}, add = {q0 > 0, NULL, NULL};
                attention_probabilities(k, p, ld, panel, &h, q0, n, causal);
                gemm_serial(k, panel, dv, C3, matrix(p, 1, ld), matrix(d, (size_t)C, 1), h.T, h.HS, n, add);
                gemm_serial(k, panel, dp, ld, matrix(d, (size_t)C, 1), matrix(h.v, 1, C3), n, h.T, h.HS, set);
                for (int i = 0; i < n; i++)
                    k->softmax_backward(dp + (size_t)i * ld, p + (size_t)i * ld, causal ? h.first + q0 + i + 1 : h.T, (int)ld, 1.0f / sqrtf((float)h.HS));
                gemm_serial(k, panel, dq + (size_t)q0 * C3, C3, matrix(dp, ld, 1), matrix(h.k, C3, 1), n, h.HS, h.T, set);
                gemm_serial(k, panel, dk, C3, matrix(dp, 1, ld), matrix(h.q + (size_t)q0 * C3, C3, 1), h.T, h.HS, n, add);
            }
        }
        free(panel);
    }
}

// ---------------------------------------------------------------- one residual block

// What is kept of a block for its backward pass. Q = R rows, in the last block B: only those that are read.
typedef struct {
    float *x;                     // (R,C) input, the residual stream
    float *ln_1_mean, *ln_1_rstd; // (R)
    float *qkv;                   // (R,3C)
    float *attention;             // (Q,C) heads side by side
    float *resid1;                // (Q,C) residual stream after attention
    float *ln_2_mean, *ln_2_rstd; // (Q)
    float *mlp_hidden;            // (Q,F) before the activation
} BlockActivations;

// Room that all blocks share.
typedef struct {
    float *ln;             // (R,C) output of a LayerNorm
    float *wide;           // (R,max(3C,F)) output of the activation; gradient of it; gradient of qkv
    float *read_a, *read_b; // (B,C) rows that are read
    float *dx, *dy, *dz;   // (R,C) gradients
} Scratch;

typedef struct {
    int C, NH, F, L, E;
    float eps;
    bool quick_gelu, causal;
} TowerShape;

static TowerShape tower_shape(const ClipConfig *c, int tower) {
    const TowerShape image = {c->image_width, c->image_heads, c->image_mlp, c->image_layers, c->embed_dim, c->image_ln_eps, c->quick_gelu, false};
    const TowerShape text = {c->text_width, c->text_heads, c->text_mlp, c->text_layers, c->embed_dim, c->text_ln_eps, c->quick_gelu, true};
    return tower == IMAGE_TOWER ? image : text;
}

// out (Q,C) = x + attention(ln_1(x)), + mlp(ln_2(·)) (pre-LN transformer, Radford et al. 2019); NULL: only what the backward pass needs
static void block_forward(const Kernels *k, float *out, BlockActivations *a, const BlockPointers *w, const Sequences *s, Scratch *t, TowerShape d, bool last) {
    const int C = d.C, Q = last ? s->B : s->R;
    layernorm_forward(k, t->ln, a->ln_1_mean, a->ln_1_rstd, a->x, w->ln_1_weight, w->ln_1_bias, s->R, C, d.eps);
    if (!last) {
        linear_forward(k, a->qkv, t->ln, w->in_proj_weight, w->in_proj_bias, NULL, s->R, C, 3 * C);
    } else { // keys and values of all rows, queries only of those that are read
        const TileEnd end = {false, w->in_proj_bias + C, NULL};
        gemm(k, a->qkv + C, (size_t)3 * C, matrix(t->ln, (size_t)C, 1), matrix(w->in_proj_weight + (size_t)C * C, 1, (size_t)C), s->R, 2 * C, C, end);
        gather_rows(t->read_a, t->ln, s, C);
        linear_forward(k, t->read_b, t->read_a, w->in_proj_weight, w->in_proj_bias, NULL, s->B, C, C);
        for (int b = 0; b < s->B; b++) memcpy(a->qkv + (size_t)s->read[b] * 3 * C, t->read_b + (size_t)b * C, (size_t)C * sizeof(float));
        gather_rows(t->read_a, a->x, s, C);
    }
    attention_forward(k, a->attention, a->qkv, s, C, d.NH, d.causal, last);
    linear_forward(k, a->resid1, a->attention, w->out_proj_weight, w->out_proj_bias, last ? t->read_a : a->x, Q, C, C);
    layernorm_forward(k, t->ln, a->ln_2_mean, a->ln_2_rstd, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    linear_forward(k, a->mlp_hidden, t->ln, w->c_fc_weight, w->c_fc_bias, NULL, Q, C, d.F);
    if (!out) return;
    gelu_forward(k, t->wide, a->mlp_hidden, (size_t)Q * d.F, d.quick_gelu);
    linear_forward(k, out, t->wide, w->c_proj_weight, w->c_proj_bias, a->resid1, Q, d.F, C);
}

// t->dx: in, the gradient of the block's output (Q,C); out, that of its input (R,C). Gradients of frozen tensors are NULL in g.
static void block_backward(const Kernels *k, const BlockPointers *g, const BlockActivations *a, const BlockPointers *w, const Sequences *s, Scratch *t, TowerShape d,
                           bool last, bool accumulate) {
    const int C = d.C, F = d.F, Q = last ? s->B : s->R;
    // MLP: t->wide is first the activation's output, then its gradient. LayerNorms are computed again rather than kept.
    gelu_forward(k, t->wide, a->mlp_hidden, (size_t)Q * F, d.quick_gelu);
    linear_backward(k, NULL, g->c_proj_weight, g->c_proj_bias, t->dx, (size_t)C, t->wide, NULL, Q, F, C, accumulate);
    linear_backward(k, t->wide, NULL, NULL, t->dx, (size_t)C, NULL, w->c_proj_weight, Q, F, C, false);
    gelu_backward(k, t->wide, a->mlp_hidden, t->wide, (size_t)Q * F, d.quick_gelu);
    layernorm_forward(k, t->ln, a->ln_2_mean, a->ln_2_rstd, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    linear_backward(k, t->dy, g->c_fc_weight, g->c_fc_bias, t->wide, (size_t)F, t->ln, w->c_fc_weight, Q, C, F, accumulate);
    layernorm_backward(k, t->dx, g->ln_2_weight, g->ln_2_bias, t->dx, t->dy, a->resid1, w->ln_2_weight, a->ln_2_mean, a->ln_2_rstd, Q, C, accumulate);

    // attention: t->dx is now the gradient of resid1, t->wide becomes that of qkv
    linear_backward(k, t->dy, g->out_proj_weight, g->out_proj_bias, t->dx, (size_t)C, a->attention, w->out_proj_weight, Q, C, C, accumulate);
    attention_backward(k, t->wide, t->dy, a->qkv, s, C, d.NH, d.causal, last);
    layernorm_forward(k, t->ln, a->ln_1_mean, a->ln_1_rstd, a->x, w->ln_1_weight, w->ln_1_bias, s->R, C, d.eps);
    if (!last) {
        linear_backward(k, t->dy, g->in_proj_weight, g->in_proj_bias, t->wide, (size_t)3 * C, t->ln, w->in_proj_weight, s->R, C, 3 * C, accumulate);
    } else { // keys and values, then the few queries; the residual stream and the queries' gradient reach only the rows that are read
        float *dkv_weight = g->in_proj_weight ? g->in_proj_weight + (size_t)C * C : NULL, *dkv_bias = g->in_proj_bias ? g->in_proj_bias + C : NULL;
        linear_backward(k, t->dy, dkv_weight, dkv_bias, t->wide + C, (size_t)3 * C, t->ln, w->in_proj_weight + (size_t)C * C, s->R, C, 2 * C, accumulate);
        for (int b = 0; b < s->B; b++) memcpy(t->read_b + (size_t)b * C, t->wide + (size_t)s->read[b] * 3 * C, (size_t)C * sizeof(float));
        gather_rows(t->read_a, t->ln, s, C);
        linear_backward(k, t->dz, g->in_proj_weight, g->in_proj_bias, t->read_b, (size_t)C, t->read_a, w->in_proj_weight, s->B, C, C, accumulate);
        memcpy(t->read_a, t->dx, (size_t)s->B * C * sizeof(float));
        memset(t->dx, 0, (size_t)s->R * C * sizeof(float));
        for (int b = 0; b < s->B; b++) {
            memcpy(t->dx + (size_t)s->read[b] * C, t->read_a + (size_t)b * C, (size_t)C * sizeof(float));
            for (int c = 0; c < C; c++) t->dy[(size_t)s->read[b] * C + c] += t->dz[(size_t)b * C + c];
        }
    }
    // the key bias has no gradient: softmax ignores a constant added to every score. What was summed is rounding, which Adam would amplify.
    if (g->in_proj_bias) memset(g->in_proj_bias + C, 0, (size_t)C * sizeof(float));
    layernorm_backward(k, t->dx, g->ln_1_weight, g->ln_1_bias, t->dx, t->dy, a->x, w->ln_1_weight, a->ln_1_mean, a->ln_1_rstd, s->R, C, accumulate);
}

// ---------------------------------------------------------------- embeddings

// How many patches of an image are computed, and which is the j-th.
static int batch_patches(const ClipBatch *batch, const ClipConfig *c) { return batch->kept ? batch->kept_count : config_image_tokens(c) - 1; }
static int batch_patch(const ClipBatch *batch, int b, int j) { return batch->kept ? batch->kept[b * batch->kept_count + j] : j; }

// patches (B*N, 3*P*P): the pixels under each of N patches in the order of conv1's weights; a convolution whose stride is its size is a
// matrix product over them. Bytes are normalised as torchvision does: (x / 255 - mean) / std in fp32.
static void patches_from_images(float *patches, const ClipBatch *batch, const ClipConfig *c) {
    const int G = config_grid(c), P = c->patch_size, S = c->image_size, N = batch_patches(batch, c);
    const float mean[3] = {c->mean_r, c->mean_g, c->mean_b}, std[3] = {c->std_r, c->std_g, c->std_b};
    float normalised[3][256];
    for (int ch = 0; ch < 3; ch++)
        for (int v = 0; v < 256; v++) normalised[ch][v] = ((float)v / 255.0f - mean[ch]) / std[ch];
#pragma omp parallel for schedule(static)
    for (int row = 0; row < batch->size * N; row++) {
        const int b = row / N, patch = batch_patch(batch, b, row % N), gy = patch / G, gx = patch % G;
        float *to = patches + (size_t)row * 3 * P * P;
        for (int ch = 0; ch < 3; ch++)
            for (int y = 0; y < P; y++, to += P) {
                const size_t from = (((size_t)b * 3 + ch) * S + (size_t)gy * P + y) * S + (size_t)gx * P;
                if (batch->images) memcpy(to, batch->images + from, (size_t)P * sizeof(float));
                else
                    for (int x = 0; x < P; x++) to[x] = normalised[ch][batch->pixels[from + x]];
            }
    }
}

// x (B*(N+1),C): class token, then the patches, all with their position added; embedded (B*N,C): conv1's output
static void image_embedding_forward(const Kernels *k, float *x, float *embedded, float *patches, const ClipBatch *batch, const TowerPointers *w, const ClipConfig *c) {
    const int C = c->image_width, N = batch_patches(batch, c), K = 3 * c->patch_size * c->patch_size;
    patches_from_images(patches, batch, c);
    linear_forward(k, embedded, patches, w->conv1_weight, w->conv1_bias, NULL, batch->size * N, K, C);
#pragma omp parallel for schedule(static)
    for (int row = 0; row < batch->size * (N + 1); row++) {
        const int b = row / (N + 1), t = row % (N + 1);
        const float *from = t ? embedded + ((size_t)b * N + t - 1) * C : w->class_embedding;
        const float *position = w->positional_embedding + (t ? 1 + (size_t)batch_patch(batch, b, t - 1) : 0) * C;
        for (int i = 0; i < C; i++) x[(size_t)row * C + i] = from[i] + position[i];
    }
}

enum { EMBEDDING_STRIP = 64 }; // embeddings' gradients: channels have one owner, rows are added in their order

// From dx (B*(N+1),C); scratch as in the forward pass.
static void image_embedding_backward(const Kernels *k, const TowerPointers *g, const float *dx, float *dembedded, float *patches, const ClipBatch *batch, const ClipConfig *c,
                                     bool accumulate) {
    const int C = c->image_width, N = batch_patches(batch, c), T = config_image_tokens(c), K = 3 * c->patch_size * c->patch_size, B = batch->size;
    if (!accumulate) memset(g->positional_embedding, 0, (size_t)T * C * sizeof(float));
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < C; i0 += EMBEDDING_STRIP)
        for (int row = 0; row < B * (N + 1); row++) {
            const int b = row / (N + 1), t = row % (N + 1), n = C - i0 < EMBEDDING_STRIP ? C - i0 : EMBEDDING_STRIP;
            const float *from = dx + (size_t)row * C + i0;
            float *position = g->positional_embedding + (t ? 1 + (size_t)batch_patch(batch, b, t - 1) : 0) * C + i0;
            for (int i = 0; i < n; i++) position[i] += from[i];
            if (t) memcpy(dembedded + ((size_t)b * N + t - 1) * C + i0, from, (size_t)n * sizeof(float));
        }
    bias_backward(k, g->class_embedding, dx, (size_t)(N + 1) * C, B, C, accumulate); // the first row of each image
    patches_from_images(patches, batch, c);
    linear_backward(k, NULL, g->conv1_weight, g->conv1_bias, dembedded, (size_t)C, patches, NULL, B * N, K, C, accumulate);
}

// x (R,C) = token embedding + position, up to each caption's end of text
static void text_embedding_forward(float *x, const ClipBatch *batch, const Sequences *s, const TowerPointers *w, const ClipConfig *c) {
    const int C = c->text_width;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < s->B; b++)
        for (int row = s->start[b], t = 0; row < s->start[b + 1]; row++, t++) {
            const float *token = w->token_embedding + (size_t)batch->tokens[(size_t)b * c->context_length + t] * C, *position = w->positional_embedding + (size_t)t * C;
            for (int i = 0; i < C; i++) x[(size_t)row * C + i] = token[i] + position[i];
        }
}

static void text_embedding_backward(const TowerPointers *g, const float *dx, const ClipBatch *batch, const Sequences *s, const ClipConfig *c, bool accumulate) {
    const int C = c->text_width;
    if (!accumulate) memset(g->token_embedding, 0, (size_t)c->vocab_size * C * sizeof(float)), memset(g->positional_embedding, 0, (size_t)c->context_length * C * sizeof(float));
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < C; i0 += EMBEDDING_STRIP)
        for (int b = 0; b < s->B; b++)
            for (int row = s->start[b], t = 0; row < s->start[b + 1]; row++, t++) {
                float *token = g->token_embedding + (size_t)batch->tokens[(size_t)b * c->context_length + t] * C, *position = g->positional_embedding + (size_t)t * C;
                for (int i = i0; i < C && i < i0 + EMBEDDING_STRIP; i++) token[i] += dx[(size_t)row * C + i], position[i] += dx[(size_t)row * C + i];
            }
}

// out (B,E) = x / |x|; norm (B) is kept
static void normalize_forward(float *out, float *norm, const float *x, int B, int E) {
    for (int b = 0; b < B; b++) {
        double sum = 0;
        for (int i = 0; i < E; i++) sum += (double)x[(size_t)b * E + i] * x[(size_t)b * E + i];
        norm[b] = (float)fmax(sqrt(sum), 1e-12); // torch.nn.functional.normalize's eps
        for (int i = 0; i < E; i++) out[(size_t)b * E + i] = x[(size_t)b * E + i] / norm[b];
    }
}

// dx = (dout - out (out · dout)) / |x|
static void normalize_backward(float *dx, const float *dout, const float *out, const float *norm, int B, int E) {
    for (int b = 0; b < B; b++) {
        const size_t row = (size_t)b * E;
        double dot = 0;
        for (int i = 0; i < E; i++) dot += (double)out[row + i] * dout[row + i];
        for (int i = 0; i < E; i++) dx[row + i] = (dout[row + i] - out[row + i] * (float)dot) / norm[b];
    }
}

// ---------------------------------------------------------------- a tower

typedef struct {
    Sequences seq;
    BlockActivations *blocks;        // (L)
    float *embedding;                // (R,C) before ln_pre
    float *ln_pre_mean, *ln_pre_rstd; // (R)
    float *last;                     // (B,C) output of the last block
    float *ln_final_mean, *ln_final_rstd; // (B)
    float *pooled;                   // (B,C) after the final LayerNorm
    float *projected;                // (B,E) before L2 normalisation; its gradient
    float *norm;                     // (B)
    float *patches, *embedded;       // image tower: (B*G*G,3*P*P), (B*G*G,C)
    Scratch scratch;
    float *arena; // all of the above
    size_t capacity;
} Tower;

struct Backend {
    const Kernels *kernels;
    float *params, *grads, *m, *v; // arenas, laid out by clip->tensors
    TensorPointers w, g;
    Tower tower[2];
    int pairs;               // rows of features
    float *features[2];      // (pairs,E), L2-normalised
    float *dfeatures[2];     // (pairs,E)
    float *ema;              // moving average of the trainable tensors, laid out as the gradients; or NULL
    bool grad_checkpointing;
    bool accumulate;         // gradients hold a part of the step already
};

// The lowest group of a tower that trains; L + 2 when none does.
static int first_trainable_group(const Clip *clip, int tower) {
    int first = clip_tower_layers(&clip->config, tower) + 2;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower == tower && x->trainable && x->group < first) first = x->group;
    }
    return first;
}

typedef struct {
    float *base; // NULL: only count
    size_t used;
} Arena;

static float *arena_take(Arena *a, size_t n) {
    float *p = a->base ? a->base + a->used : NULL;
    a->used += round_up(n, 16) + GUARD_FLOATS;
    if (p) guard_behind(p, n, a->base + a->used);
    return p;
}

static void block_layout(Arena *a, BlockActivations *k, size_t R, size_t Q, const TowerShape *d) {
    k->ln_1_mean = arena_take(a, R), k->ln_1_rstd = arena_take(a, R);
    k->qkv = arena_take(a, R * 3 * d->C);
    k->attention = arena_take(a, Q * d->C), k->resid1 = arena_take(a, Q * d->C);
    k->ln_2_mean = arena_take(a, Q), k->ln_2_rstd = arena_take(a, Q);
    k->mlp_hidden = arena_take(a, Q * d->F);
}

// What is kept of a forward pass: from which block on (L: of none), for a backward pass at all, and of each block its input alone.
typedef struct {
    int first;
    bool backward, inputs_only;
} Keep;

static Keep tower_keep(const Clip *clip, int tower, bool backward) {
    const int group = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    const Keep keep = {!backward || group > L ? L : group > 0 ? group - 1 : 0, backward, clip->back->grad_checkpointing};
    return keep;
}

// Lays a tower's activations out for the sequences at hand. Blocks that are not kept share one set, but for their inputs, of which there are
// two in turn. Returns the floats needed; base NULL: only counts.
static size_t tower_layout(Tower *t, float *base, const ClipConfig *c, int tower, Keep keep) {
    Arena a = {base, 0};
    const TowerShape d = tower_shape(c, tower);
    const size_t B = (size_t)t->seq.B, R = (size_t)t->seq.R, C = (size_t)d.C;
    t->embedding = arena_take(&a, R * C), t->ln_pre_mean = arena_take(&a, R), t->ln_pre_rstd = arena_take(&a, R);
    BlockActivations shared = {0};
    float *input[2] = {NULL, NULL};
    if (keep.first > 0 || keep.inputs_only) block_layout(&a, &shared, R, R, &d);
    if (keep.first > 0) input[0] = arena_take(&a, R * C), input[1] = arena_take(&a, R * C);
    for (int l = 0; l < d.L; l++) {
        BlockActivations *block = &t->blocks[l];
        *block = shared;
        if (l >= keep.first && !keep.inputs_only) block_layout(&a, block, R, l == d.L - 1 ? B : R, &d);
        block->x = l >= keep.first ? arena_take(&a, R * C) : input[l % 2];
    }
    t->last = arena_take(&a, B * C), t->ln_final_mean = arena_take(&a, B), t->ln_final_rstd = arena_take(&a, B);
    t->pooled = arena_take(&a, B * C), t->projected = arena_take(&a, B * d.E), t->norm = arena_take(&a, B);
    if (tower == IMAGE_TOWER && R > B) {
        const size_t N = R - B, P = (size_t)c->patch_size;
        t->patches = arena_take(&a, N * 3 * P * P), t->embedded = arena_take(&a, N * C);
    }
    Scratch *s = &t->scratch;
    s->ln = arena_take(&a, R * C), s->wide = arena_take(&a, R * (size_t)(d.F > 3 * d.C ? d.F : 3 * d.C));
    s->read_a = arena_take(&a, B * C), s->read_b = arena_take(&a, B * C);
    if (keep.backward) s->dx = arena_take(&a, R * C), s->dy = arena_take(&a, R * C), s->dz = arena_take(&a, B * C);
    return a.used;
}

// Sets the batch's sequences and makes room for their activations; `backward`: also for a backward pass.
static void tower_prepare(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    const ClipConfig *c = &clip->config;
    Tower *t = &clip->back->tower[tower];
    sequences_reserve(&t->seq, batch->size);
    for (int b = 0; b < batch->size; b++) {
        const int T = batch->pooled[tower] ? 1 // a row to project, nothing before it
                      : tower == IMAGE_TOWER ? batch_patches(batch, c) + 1
                                             : caption_length(batch->tokens + (size_t)b * c->context_length, c->context_length, c->eot_id);
        sequences_add(&t->seq, b, T, tower == IMAGE_TOWER ? 0 : T - 1);
    }
    const Keep keep = tower_keep(clip, tower, backward);
    const size_t need = tower_layout(t, NULL, c, tower, keep);
    if (need > t->capacity) {
        free(t->arena);
        t->arena = aligned_malloc_check(need * sizeof(float));
        t->capacity = need;
    }
    guard_lift(t->arena, t->capacity);
    tower_layout(t, t->arena, c, tower, keep);
}

// Everything before the projection: t->pooled (B,C).
static void tower_pool(Clip *clip, int tower, const ClipBatch *batch) {
    const Kernels *k = clip->back->kernels;
    const ClipConfig *c = &clip->config;
    const TowerPointers *w = &clip->back->w.tower[tower];
    const TowerShape d = tower_shape(c, tower);
    Tower *t = &clip->back->tower[tower];
    float *x = t->blocks[0].x, *embedding = w->ln_pre_weight ? t->embedding : x;
    if (tower == IMAGE_TOWER) image_embedding_forward(k, embedding, t->embedded, t->patches, batch, w, c);
    else text_embedding_forward(embedding, batch, &t->seq, w, c);
    if (w->ln_pre_weight) layernorm_forward(k, x, t->ln_pre_mean, t->ln_pre_rstd, embedding, w->ln_pre_weight, w->ln_pre_bias, t->seq.R, d.C, d.eps);
    for (int l = 0; l < d.L; l++)
        block_forward(k, l + 1 < d.L ? t->blocks[l + 1].x : t->last, &t->blocks[l], &w->blocks[l], &t->seq, &t->scratch, d, l == d.L - 1);
    layernorm_forward(k, t->pooled, t->ln_final_mean, t->ln_final_rstd, t->last, w->ln_final_weight, w->ln_final_bias, t->seq.B, d.C, d.eps);
}

// Encodes the batch into rows of `out` (B,E), L2-normalised.
static void tower_forward(Clip *clip, int tower, float *out, const ClipBatch *batch, bool keep) {
    const Kernels *k = clip->back->kernels;
    const TowerShape d = tower_shape(&clip->config, tower);
    tower_prepare(clip, tower, batch, keep);
    Tower *t = &clip->back->tower[tower];
    if (batch->pooled[tower]) memcpy(t->pooled, batch->pooled[tower], (size_t)t->seq.B * d.C * sizeof(float));
    else tower_pool(clip, tower, batch);
    const TileEnd set = {false, NULL, NULL};
    gemm(k, t->projected, (size_t)d.E, matrix(t->pooled, (size_t)d.C, 1), matrix(clip->back->w.tower[tower].proj, (size_t)d.E, 1), t->seq.B, d.E, d.C, set);
    normalize_forward(out, t->norm, t->projected, t->seq.B, d.E);
}

// From the gradient of the normalised features (B,E) down to the lowest trainable group.
static void tower_backward(Clip *clip, int tower, const float *dfeatures, const float *features, const ClipBatch *batch) {
    const int first = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    if (first > L + 1) return;
    const Kernels *k = clip->back->kernels;
    const ClipConfig *c = &clip->config;
    const TowerPointers *w = &clip->back->w.tower[tower], *g = &clip->back->g.tower[tower];
    const TowerShape d = tower_shape(c, tower);
    const bool accumulate = clip->back->accumulate;
    Tower *t = &clip->back->tower[tower];
    Scratch *s = &t->scratch;
    const size_t C = (size_t)d.C, E = (size_t)d.E;
    const int B = t->seq.B;
    const TileEnd set = {false, NULL, NULL}, add = {accumulate, NULL, NULL};
    float *dprojected = t->projected; // its place is free now
    normalize_backward(dprojected, dfeatures, features, t->norm, B, d.E);
    gemm(k, g->proj, E, matrix(t->pooled, 1, C), matrix(dprojected, E, 1), d.C, d.E, B, add);
    if (first > L) return;
    gemm(k, s->dy, C, matrix(dprojected, E, 1), matrix(w->proj, 1, E), B, d.C, d.E, set);
    layernorm_backward(k, s->dx, g->ln_final_weight, g->ln_final_bias, NULL, s->dy, t->last, w->ln_final_weight, t->ln_final_mean, t->ln_final_rstd, B, d.C, accumulate);
    for (int l = L - 1; l >= 0 && l + 1 >= first; l--) {
        if (clip->back->grad_checkpointing) block_forward(k, NULL, &t->blocks[l], &w->blocks[l], &t->seq, s, d, l == L - 1);
        block_backward(k, &g->blocks[l], &t->blocks[l], &w->blocks[l], &t->seq, s, d, l == L - 1, accumulate);
    }
    if (first > 0) return;
    const float *dembedding = s->dx;
    if (w->ln_pre_weight) {
        layernorm_backward(k, s->dy, g->ln_pre_weight, g->ln_pre_bias, NULL, s->dx, t->embedding, w->ln_pre_weight, t->ln_pre_mean, t->ln_pre_rstd, t->seq.R, d.C, accumulate);
        dembedding = s->dy;
    }
    if (tower == IMAGE_TOWER) image_embedding_backward(k, g, dembedding, t->embedded, t->patches, batch, c, accumulate);
    else text_embedding_backward(g, dembedding, batch, &t->seq, c, accumulate);
}

// ---------------------------------------------------------------- the model (the functions of clipc/clip.h)

// An arena for parameters, or (slots) for gradients, m or v; zero, with guards between the tensors.
static float *arena_create(const TensorTable *t, bool slots) {
    const size_t floats = slots ? t->slots : t->floats;
    float *arena = aligned_malloc_check(floats * sizeof(float));
#pragma omp parallel for schedule(static) // each thread touches its pages
    for (size_t i = 0; i < floats; i += 1 << 18) memset(arena + i, 0, (floats - i < 1 << 18 ? floats - i : 1 << 18) * sizeof(float));
    for (int i = 0; i < t->count; i++) {
        float *x = tensor_in(&t->list[i], arena, slots);
        if (x) guard_behind(x, t->list[i].count, x + round_up(t->list[i].count, 16) + GUARD_FLOATS);
    }
    return arena;
}

Clip *clip_create_empty(const ClipConfig *config, const char *merges, size_t merges_bytes) {
    Clip *clip = calloc_check(1, sizeof *clip);
    if (merges) clip->merges = memcpy(malloc_check(merges_bytes + 1), merges, merges_bytes), clip->merges[merges_bytes] = 0, clip->merges_bytes = merges_bytes;
    Backend *b = clip->back = calloc_check(1, sizeof *b);
    clip->config = *config;
    clip->tensors = tensor_table_create(config);
    b->kernels = kernels_select();
    b->params = arena_create(&clip->tensors, false);
    tensor_pointers_bind(&b->w, &clip->tensors, config, b->params, false);
    for (int tower = 0; tower < 2; tower++) b->tower[tower].blocks = calloc_check((size_t)clip_tower_layers(config, tower), sizeof(BlockActivations));
    return clip;
}

Clip *clip_load(const char *path) {
    WeightFile w;
    weight_file_open(&w, path);
    Clip *clip = clip_create_empty(&w.config, w.merges, w.merges_bytes);
    free(w.merges);
    weight_file_read(&w, &clip->tensors, clip->back->params);
    return clip;
}

// How open_clip draws a tensor (VisionTransformer.__init__, TextTransformer.init_parameters): normal with a standard deviation, or
// uniform within a bound; LayerNorm is the identity, attention biases are 0.
static void tensor_init(float *x, const Tensor *t, const ClipConfig *c, Rand *r) {
    const bool image = t->tower == IMAGE_TOWER;
    const double C = image ? c->image_width : c->text_width, L = c->text_layers, F = image ? c->image_mlp : c->text_mlp;
    double normal = 0, bound = 0, constant = 0;
    if (t->tower == NO_TOWER) constant = LOGIT_SCALE_INIT;
    else if (strstr(t->name, "ln_")) constant = ends_with(t->name, "weight");
    else if (ends_with(t->name, "in_proj_weight")) image ? (bound = sqrt(6 / (4 * C))) : (normal = 1 / sqrt(C)); // Xavier over (3C,C)
    else if (ends_with(t->name, "c_fc.bias")) bound = 1 / sqrt(C);
    else if (ends_with(t->name, "c_proj.bias")) bound = 1 / sqrt(F);
    else if (ends_with(t->name, "bias")) constant = 0;
    else if (ends_with(t->name, "conv1.weight")) bound = 1 / sqrt(3.0 * c->patch_size * c->patch_size);
    else if (ends_with(t->name, "out_proj.weight")) image ? (bound = 1 / sqrt(C)) : (normal = 1 / sqrt(C * 2 * L));
    else if (ends_with(t->name, "c_proj.weight")) image ? (bound = 1 / sqrt(F)) : (normal = 1 / sqrt(C * 2 * L));
    else if (ends_with(t->name, "c_fc.weight")) image ? (bound = 1 / sqrt(C)) : (normal = 1 / sqrt(2 * C));
    else if (ends_with(t->name, "token_embedding.weight")) normal = 0.02;
    else if (!image && ends_with(t->name, "positional_embedding")) normal = 0.01;
    else normal = 1 / sqrt(C); // class and positional embedding of the image tower, both projections
    for (size_t i = 0; i < t->count; i++) x[i] = (float)(normal > 0 ? normal * rand_normal(r) : bound > 0 ? rand_range(r, -bound, bound) : constant);
}

Clip *clip_create(const ClipConfig *config, const char *merges, size_t merges_bytes, uint64_t seed) {
    Clip *clip = clip_create_empty(config, merges, merges_bytes);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < clip->tensors.count; i++) {
        Rand r = rand_for(seed, (uint64_t)i, 0x696e6974 /* "init" */);
        tensor_init(clip->back->params + clip->tensors.list[i].offset, &clip->tensors.list[i], config, &r);
    }
    return clip;
}

uint64_t clip_save(Clip *clip, SafeFile *out) {
    return weight_file_write(out, &clip->config, clip->merges, clip->merges_bytes, &clip->tensors, clip->back->params);
}

void clip_free(Clip *clip) {
    Backend *b = clip->back;
    for (int tower = 0; tower < 2; tower++) {
        Tower *t = &b->tower[tower];
        free(t->seq.start), free(t->seq.read), free(t->blocks), free(t->arena), free(b->features[tower]), free(b->dfeatures[tower]);
    }
    tensor_pointers_free(&b->w), tensor_pointers_free(&b->g), tensor_table_free(&clip->tensors);
    free(b->params), free(b->grads), free(b->m), free(b->v), free(b->ema), free(b), free(clip->merges), free(clip);
}

PrecisionSupport clip_precision_support(Precision precision) { return precision == PRECISION_FP32 ? SUPPORT_NATIVE : SUPPORT_NONE; }
void clip_set_precision(Clip *clip, Precision precision) { (void)clip, (void)precision; }

void clip_start_training(Clip *clip, const ClipTraining *how) {
    Backend *b = clip->back;
    free(b->grads), free(b->m), free(b->v), free(b->ema);
    b->grads = arena_create(&clip->tensors, true), b->m = arena_create(&clip->tensors, true), b->v = arena_create(&clip->tensors, true);
    b->ema = how->ema ? arena_create(&clip->tensors, true) : NULL;
    for (int i = 0; how->ema && i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->trainable) memcpy(b->ema + x->slot, b->params + x->offset, x->count * sizeof(float));
    }
    tensor_pointers_bind(&b->g, &clip->tensors, &clip->config, b->grads, true);
    b->pairs = how->pairs, b->grad_checkpointing = how->grad_checkpointing, b->accumulate = false;
    const size_t floats = (size_t)how->pairs * (size_t)clip->config.embed_dim;
    for (int tower = 0; tower < 2; tower++) {
        free(b->features[tower]), free(b->dfeatures[tower]);
        b->features[tower] = aligned_malloc_check(floats * sizeof(float)), b->dfeatures[tower] = aligned_malloc_check(floats * sizeof(float));
    }
}

void clip_memory(const Clip *clip, int batch_size, size_t *parameters, size_t *training, size_t *activations) {
    const ClipConfig *c = &clip->config;
    *parameters = clip->tensors.floats * sizeof(float);
    *training = (clip->back->ema ? 4 : 3) * clip->tensors.slots * sizeof(float);
    *activations = 4 * (size_t)clip->back->pairs * (size_t)c->embed_dim * sizeof(float); // features and their gradients
    for (int tower = 0; tower < 2; tower++) {
        Tower counted = {.seq = {batch_size, batch_size * (tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length), 0, NULL, NULL}};
        counted.blocks = calloc_check((size_t)clip_tower_layers(c, tower), sizeof *counted.blocks);
        *activations += tower_layout(&counted, NULL, c, tower, tower_keep(clip, tower, true)) * sizeof(float);
        free(counted.blocks);
    }
}

void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features) { tower_forward(clip, IMAGE_TOWER, features, batch, false); }
void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features) { tower_forward(clip, TEXT_TOWER, features, batch, false); }

void clip_pool(Clip *clip, int tower, const ClipBatch *batch, float *pooled) {
    tower_prepare(clip, tower, batch, false);
    tower_pool(clip, tower, batch);
    memcpy(pooled, clip->back->tower[tower].pooled, (size_t)batch->size * tower_shape(&clip->config, tower).C * sizeof(float));
}

void clip_forward(Clip *clip, const ClipBatch *batch, int first_row, bool keep) {
    for (int tower = 0; tower < 2; tower++) tower_forward(clip, tower, clip->back->features[tower] + (size_t)first_row * clip->config.embed_dim, batch, keep);
}

double clip_loss(Clip *clip, int pairs, const uint64_t *keys, Positives positives, bool gradient) {
    Backend *b = clip->back;
    double dlogit_scale = 0;
    const double loss = contrastive_loss(b->kernels, gradient ? b->dfeatures[0] : NULL, gradient ? b->dfeatures[1] : NULL, &dlogit_scale, b->features[0], b->features[1], keys,
                                         positives, pairs, clip->config.embed_dim, clip_logit_scale(clip));
    if (gradient && b->g.logit_scale) *b->g.logit_scale = (float)dlogit_scale; // once a step, whatever the accumulation
    return loss;
}

void clip_backward(Clip *clip, const ClipBatch *batch, int first_row) {
    Backend *b = clip->back;
    const size_t row = (size_t)first_row * (size_t)clip->config.embed_dim;
    for (int tower = 0; tower < 2; tower++) tower_backward(clip, tower, b->dfeatures[tower] + row, b->features[tower] + row, batch);
    b->accumulate = true;
}

enum { UPDATE_CHUNK = 1 << 16 }; // numbers a thread takes at a time; chunks are fixed, and so is the order of their sums

// The L2 norm of all gradients.
static double gradient_norm(const Clip *clip) {
    const TensorTable *t = &clip->tensors;
    double total = 0;
    for (int i = 0; i < t->count; i++) {
        const Tensor *x = &t->list[i];
        if (!x->trainable) continue;
        const size_t chunks = (x->count + UPDATE_CHUNK - 1) / UPDATE_CHUNK;
        double *sums = malloc_check(chunks * sizeof(double));
#pragma omp parallel for schedule(static) if (chunks > 1)
        for (size_t c = 0; c < chunks; c++) {
            const size_t at = c * UPDATE_CHUNK, n = x->count - at < UPDATE_CHUNK ? x->count - at : UPDATE_CHUNK;
            sums[c] = clip->back->kernels->sum_squares(clip->back->grads + x->slot + at, n);
        }
        for (size_t c = 0; c < chunks; c++) total += sums[c];
        free(sums);
    }
    return sqrt(total);
}

double clip_update(Clip *clip, const AdamW *a) {
    Backend *b = clip->back;
    const double norm = gradient_norm(clip), scale = a->grad_clip_norm > 0 ? fmin(1, a->grad_clip_norm / (norm + 1e-6)) : 1;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!x->trainable) continue;
        const double lr = a->lr * x->lr_scale, decay = x->decay ? a->weight_decay : 0;
        const AdamWTerms terms = {(float)scale, (float)a->beta1, (float)(1 - a->beta1), (float)a->beta2, (float)(1 - a->beta2), (float)(lr / (1 - pow(a->beta1, (double)a->step))),
                                  (float)(1 / (1 - pow(a->beta2, (double)a->step))), (float)a->eps, (float)(1 - lr * decay)};
#pragma omp parallel for schedule(static) if (x->count > UPDATE_CHUNK)
        for (size_t at = 0; at < x->count; at += UPDATE_CHUNK) {
            const size_t n = x->count - at < UPDATE_CHUNK ? x->count - at : UPDATE_CHUNK;
            float *p = b->params + x->offset + at;
            b->kernels->adamw(p, b->grads + x->slot + at, b->m + x->slot + at, b->v + x->slot + at, (int)n, terms);
            if (x->tower == NO_TOWER) *p = fminf(fmaxf(*p, 0), (float)LOGIT_SCALE_MAX);
            if (b->ema) b->kernels->moving_average(b->ema + x->slot + at, p, (int)n, (float)a->ema_decay);
        }
    }
    b->accumulate = false;
    return norm;
}

bool clip_has_ema(const Clip *clip) { return clip->back->ema != NULL; }

void clip_swap_ema(Clip *clip) {
    Backend *b = clip->back;
    for (int i = 0; b->ema && i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        float *p = b->params + x->offset, *e = b->ema + x->slot;
        for (size_t j = 0; x->trainable && j < x->count; j++) {
            const float kept = p[j];
            p[j] = e[j], e[j] = kept;
        }
    }
}

float clip_logit_scale(const Clip *clip) { return expf(*clip->back->w.logit_scale); }

static float *tensor_place(const Clip *clip, ClipArena arena, const Tensor *x) {
    float *bases[] = {clip->back->params, clip->back->grads, clip->back->m, clip->back->v, clip->back->ema};
    return tensor_in(x, bases[arena], arena != ARENA_PARAMETERS);
}

void clip_read(const Clip *clip, ClipArena arena, const Tensor *x, float *values) { memcpy(values, tensor_place(clip, arena, x), x->count * sizeof(float)); }
void clip_write(Clip *clip, ClipArena arena, const Tensor *x, const float *values) { memcpy(tensor_place(clip, arena, x), values, x->count * sizeof(float)); }

const char *clip_kernels(const Clip *clip) { return clip->back->kernels->name; }

#ifndef TESTING
#include "clipc/train.h" // train_main, evaluate_main, classify_main, print_schedule_main

int main(int argc, char **argv) {
    Options options;
    options_parse(&options, argc, argv);
    Training training = {.o = &options};
    if (options.print_schedule) return print_schedule_main(&training);
    const int code = options.classify.count ? classify_main(&training) : options.eval_only ? evaluate_main(&training) : train_main(&training);
    training_free(&training);
    return code;
}
#endif
