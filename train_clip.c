// clip.c: CLIP (Radford et al. 2021) fine-tuned on a CPU, in plain C. In this file: every layer forward and
// backward, the two towers, AdamW, and the program. Training loop, evaluation, data and files are in clipc/,
// one concern a file.
//
//     ./train_clip --pretrained W.bin --train-data pictures.csv        fine-tunes
//     ./train_clip --help
//
// Captions and images are packed: a batch is R rows of C channels, the tokens of one sequence behind those of
// the next, and captions end at their end of text. What follows it is masked from it by causality, so leaving
// it out is exact. The last block computes only the row that is read in the end (class token, end of text):
// exact too.
//
// B batch, T tokens, R rows (all tokens of a batch), C channels, NH heads, HS head size, F hidden width of
// the MLP, L layers, V vocabulary, E embedding, P patch size, S image size, G patches along a side. Outputs
// first, gradients begin with d, sizes last.

#include "clipc/base/utils.h"        // die, malloc_check
#include "clipc/model/clip.h"        // Clip, ClipBatch, AdamW, the functions implemented here
#include "clipc/model/activations.h" // Sequences, TowerShape, Keep: what it shares with train_clip.cu
#include "clipc/math/matmul.h"       // Kernels, gemm
#include "clipc/math/loss.h"         // contrastive_loss

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---------------------------------------------------------------- layers

// out (B,C) = the rows of x (R,C) that are read; x may be columns of a matrix whose rows are ld apart
static void gather_rows(Operand out, Operand x, size_t ld, const Sequences *s, int C) {
    for (int b = 0; b < s->B; b++)
        memcpy(operand_at(out, (size_t)b * C).p, operand_at(x, (size_t)s->read[b] * ld).p,
            (size_t)C * operand_bytes(x.bf16));
}

// The other way round: rows b of x (B,C) to the rows of out that are read
static void scatter_rows(Operand out, size_t ld, Operand x, const Sequences *s, int C) {
    for (int b = 0; b < s->B; b++)
        memcpy(operand_at(out, (size_t)s->read[b] * ld).p, operand_at(x, (size_t)b * C).p,
            (size_t)C * operand_bytes(x.bf16));
}

static const TileEnd SET = {false, NULL, NULL, NULL, NULL, false};

// A weight (O,C), and its copies packed for forward and backward products; NULL: packed when they are
// computed.
typedef struct {
    const float *w, *forward, *backward;
} Weight;

// As the right side of out (N,O) = inp (N,C) · weightᵀ, and of dinp (N,C) = dout (N,O) · weight
static Matrix weight_forward(const Kernels *k, Weight w, int C, bool bf16) {
    Matrix m = matrix(w.w, 1, (size_t)C);
    m.panels = (const uint32_t *)w.forward;
    m.pitch = panel_pitch(k, C, bf16);
    return m;
}
static Matrix weight_backward(const Kernels *k, Weight w, int C, int O, bool bf16) {
    Matrix m = matrix(w.w, (size_t)C, 1);
    m.panels = (const uint32_t *)w.backward;
    m.pitch = panel_pitch(k, O, bf16);
    return m;
}

// Rows o … of a weight (O,C): packed as it is where a panel begins there.
static Weight weight_rows(const Kernels *k, Weight w, int o, int C, bool bf16) {
    const size_t from = (size_t)o;
    const size_t column = from / (size_t)k->tile_columns * panel_pitch(k, C, bf16);
    const size_t row = from / (size_t)unit_entries(bf16) * (size_t)k->tile_columns;
    const Weight part = {w.w + from * C, w.forward && o % k->tile_columns == 0 ? w.forward + column : NULL,
        w.backward && o % (2 * UNIT_BLOCK) == 0 ? w.backward + row : NULL};
    return part;
}

// out (N,O) = inp (N,C) · weight (O,C)ᵀ + bias (O), and what else `end` says
static void linear_forward(const Kernels *k, Operand out, Operand inp, Weight weight, const float *bias,
    TileEnd end, int N, int C, int O) {
    end.bias = bias;
    gemm(k, out, (size_t)O, operand_matrix(inp, (size_t)C, 1), weight_forward(k, weight, C, inp.bf16), N, O,
        C, end);
}

// dbias (O) (+)= the column sums of dout (N,O), rows ld apart
static void bias_backward(
    const Kernels *k, float *dbias, Operand dout, size_t ld, int N, int O, bool accumulate) {
    enum { STRIP = 64, CHUNK = 128 }; // columns have one owner; rows in chunks, whose sums are added in order
#pragma omp parallel for schedule(static)
    for (int o = 0; o < O; o += STRIP) {
        const int n = O - o < STRIP ? O - o : STRIP;
        float sum[STRIP] = {0}, part[STRIP];
        for (int r = 0; r < N; r += CHUNK) {
            memset(part, 0, sizeof part);
            k->column_sums(part, operand_at(dout, (size_t)r * ld + o), N - r < CHUNK ? N - r : CHUNK, ld, n);
            for (int i = 0; i < n; i++) sum[i] += part[i];
        }
        for (int i = 0; i < n; i++) dbias[o + i] = sum[i] + (accumulate ? dbias[o + i] : 0);
    }
}

// dinp (N,C) = dout · weight (O,C), and what else `end` says. dout (N,O) has its rows ld apart (ld > O: a
// part of the columns of a wider matrix).
static void linear_backward_input(const Kernels *k, Operand dinp, Operand dout, size_t ld, Weight weight,
    TileEnd end, int N, int C, int O) {
    gemm(k, dinp, (size_t)C, operand_matrix(dout, ld, 1), weight_backward(k, weight, C, O, dout.bf16), N, C,
        O, end);
}

// dweight (O,C) (+)= doutᵀ · inp;  dbias (O) (+)= column sums of dout. NULL when frozen.
static void linear_backward_weight(const Kernels *k, float *dweight, float *dbias, Operand dout, size_t ld,
    Operand inp, int N, int C, int O, bool accumulate) {
    const TileEnd end = {accumulate, NULL, NULL, NULL, NULL, false};
    if (dweight)
        gemm(k, fp32(dweight), (size_t)C, operand_matrix(dout, 1, ld), operand_matrix(inp, (size_t)C, 1), O,
            C, N, end);
    if (dbias) bias_backward(k, dbias, dout, ld, N, O, accumulate);
}

// LayerNorm (Ba et al. 2016, eq. 4) over the last axis, biased variance.
//   out  (N,C)  = gain * (x - mean) * rstd + bias
//   mean (N), rstd (N): kept for the backward pass
static void layernorm_forward(const Kernels *k, Operand out, float *mean, float *rstd, const float *x,
    const float *gain, const float *bias, int N, int C, float eps) {
#pragma omp parallel for schedule(static)
    for (int i = 0; i < N; i++)
        k->layernorm(
            operand_at(out, (size_t)i * C), mean + i, rstd + i, x + (size_t)i * C, gain, bias, C, eps);
}

// dx (N,C) = skip (N,C; NULL, or dx itself) + what comes through the LayerNorm; dgain, dbias (C) (+)=, NULL
// when frozen. dout stays. The parameter gradients are summed over a fixed number of chunks of rows, then in
// order: the same bits for any number of threads.
static void layernorm_backward(const Kernels *k, float *dx, float *dgain, float *dbias, const float *skip,
    const float *dout, const float *x, const float *gain, const float *mean, const float *rstd, int N, int C,
    bool accumulate) {
    enum { CHUNKS = 32 };
    float *parts = calloc_check((size_t)CHUNKS * 2 * C, sizeof(float));
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        float *part = parts + (size_t)chunk * 2 * C;
        for (int i = (int)((int64_t)N * chunk / CHUNKS); i < (int)((int64_t)N * (chunk + 1) / CHUNKS); i++) {
            const size_t row = (size_t)i * C;
            k->layernorm_backward(dx ? dx + row : NULL, dgain ? part : NULL, dbias ? part + C : NULL,
                skip ? skip + row : NULL, dout + row, x + row, gain, mean[i], rstd[i], C);
        }
    }
    for (int which = 0; which < 2; which++) {
        float *d = which ? dbias : dgain;
        if (!d) continue;
        if (!accumulate) memset(d, 0, (size_t)C * sizeof(float));
        k->column_sums(d, fp32(parts + (which ? C : 0)), CHUNKS, (size_t)2 * C, C);
    }
    free(parts);
}

// x (n) as an operand: rounded to `narrow` (n), which is returned; or in fp32 as it stands
static Operand round_operand(const Kernels *k, Operand narrow, const float *x, size_t n) {
    if (!narrow.bf16) return fp32(x);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += 4096)
        k->narrow((uint16_t *)narrow.p + i, x + i, n - i < 4096 ? (int)(n - i) : 4096);
    return narrow;
}

// ---------------------------------------------------------------- attention

enum {
    SCORES = 1 << 16,
    QUERIES_MOST = 256
}; // of a head that are held at a time: they stay in L2 for any number of tokens

// One head of one sequence, and a thread's room to work on it. Scores and sums are fp32; what products read
// is an operand.
typedef struct {
    Operand q, k, v;               // (T,HS), rows C3 apart, in qkv
    float *p, *dp;                 // (block,ld) probabilities, gradients of the scores; zero behind T
    Operand p_operand, dp_operand; // the same as operands
    float *dk, *dv;                // (T,HS)
    float *products;               // of gemm_serial()
    int T, HS, queries,
        first; // queries: T, or 1 where only the row that is read matters; position of the first one
    int block; // queries at a time
    size_t ld, in, C3,
        rows; // entries of qkv before q of the first token, a row of it; the first row of the head's output
} Head;

static int larger(int a, int b) { return a > b ? a : b; }
static size_t head_ld(int T) { return round_up((size_t)T, 2 * UNIT_BLOCK); }
static int head_block(int T) { return gemm_least(QUERIES_MOST, larger(16, SCORES / (int)head_ld(T))); }

static size_t head_scores(int T) {
    return larger(SCORES, 16 * (int)head_ld(T));
} // (block,ld) for up to T tokens

// Floats of a thread's room for sequences of up to T tokens.
static size_t head_room(const Kernels *k, int T, int HS) {
    return 4 * head_scores(T) + 2 * round_up((size_t)T * HS, 16) +
           gemm_serial_scratch(k, T, larger((int)head_ld(T), HS));
}

// Head `index` of sequence b.
static Head head_open(
    float *room, Operand qkv, const Sequences *s, int b, int index, int C, int NH, bool only_read) {
    const int start = s->start[b];
    const size_t scores = head_scores(s->longest);
    Head h;
    h.T = s->start[b + 1] - start;
    h.HS = C / NH;
    h.queries = only_read ? 1 : h.T;
    h.first = only_read ? s->read[b] - start : 0;
    h.block = head_block(h.T);
    h.ld = head_ld(h.T);
    h.C3 = 3 * (size_t)C;
    h.in = (size_t)start * h.C3 + (size_t)index * h.HS;
    h.rows = only_read ? (size_t)b : (size_t)start;
    h.q = operand_at(qkv, h.in + (size_t)h.first * h.C3);
    h.k = operand_at(qkv, h.in + (size_t)C);
    h.v = operand_at(qkv, h.in + 2 * (size_t)C);
    h.p = room;
    h.dp = room + scores;
    h.p_operand = qkv.bf16 ? operand(room + 2 * scores, true) : fp32(h.p);
    h.dp_operand = qkv.bf16 ? operand(room + 3 * scores, true) : fp32(h.dp);
    h.dk = room + 4 * scores;
    h.dv = h.dk + round_up((size_t)s->longest * h.HS, 16);
    h.products = h.dv + round_up((size_t)s->longest * h.HS, 16);
    return h;
}

// (n,ld) numbers as an operand: rounded, or in fp32 where they are
static void head_round(const Kernels *k, Operand to, const float *from, size_t n) {
    if (to.bf16) k->narrow((uint16_t *)to.p, from, (int)n);
}

// c (M,N), rows ldc apart, (+)= A · B
static void head_product(const Kernels *k, const Head *h, Operand c, size_t ldc, Matrix A, Matrix B, int M,
    int N, int K, bool add) {
    TileEnd end = SET;
    end.add = add;
    gemm_serial(k, h->products, c, ldc, A, B, M, N, K, end);
}

// (n,ld) probabilities or gradients of scores as a left side
static Matrix head_left(Operand x, size_t ld) {
    Matrix m = operand_matrix(x, ld, 1);
    m.padded = true;
    return m;
}

// p (n,ld) = softmax(q · kᵀ / sqrt(HS)) for queries q0 … q0+n-1; causal: a query sees the keys up to itself
static void head_probabilities(const Kernels *k, const Head *h, int q0, int n, bool causal) {
    head_product(k, h, fp32(h->p), h->ld, operand_matrix(operand_at(h->q, (size_t)q0 * h->C3), h->C3, 1),
        operand_matrix(h->k, 1, h->C3), n, h->T, h->HS, false);
    for (int i = 0; i < n; i++)
        k->softmax(h->p + (size_t)i * h->ld, causal ? h->first + q0 + i + 1 : h->T, (int)h->ld,
            1.0f / sqrtf((float)h->HS));
    head_round(k, h->p_operand, h->p, (size_t)n * h->ld);
}

// Scaled dot-product attention (Vaswani et al. 2017, eq. 1), heads side by side in the channels.
//   out (R,C), or (B,C) with only_read: then only the queries of the rows that are read are computed
//   qkv (R,3C): queries, keys, values of all heads
static void attention_forward(const Kernels *k, Operand out, Operand qkv, const Sequences *s, int C, int NH,
    bool causal, bool only_read) {
#pragma omp parallel
    {
        float *room = aligned_malloc_check(head_room(k, s->longest, C / NH) * sizeof(float));
        products_begin(k, qkv.bf16);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < s->B * NH; item++) {
            const Head h = head_open(room, qkv, s, item / NH, item % NH, C, NH, only_read);
            for (int q0 = 0; q0 < h.queries; q0 += h.block) {
                const int n = gemm_least(h.queries - q0, h.block);
                head_probabilities(k, &h, q0, n, causal);
                head_product(k, &h, operand_at(out, (h.rows + (size_t)q0) * C + (size_t)(item % NH) * h.HS),
                    (size_t)C, head_left(h.p_operand, h.ld), operand_matrix(h.v, h.C3, 1), n, h.HS, h.T,
                    false);
            }
        }
        products_end(k, qkv.bf16);
        free(room);
    }
}

// x (n,HS), rows ld apart, = from
static void head_store(const Kernels *k, Operand x, size_t ld, const float *from, int n, int HS) {
    for (int i = 0; i < n; i++, from += HS) {
        const Operand row = operand_at(x, (size_t)i * ld);
        if (x.bf16) k->narrow((uint16_t *)row.p, from, HS);
        else memcpy(row.p, from, (size_t)HS * sizeof(float));
    }
}

// dqkv (R,3C) = the gradient by queries, keys and values; with only_read the query part of the other rows is
// not written. Probabilities are computed again rather than kept. With P the probabilities and dO = dout:
//   dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP - rowsum(P ∘ dP)) / sqrt(HS),  dQ = dS K,  dK = dSᵀ Q
static void attention_backward(const Kernels *k, Operand dqkv, Operand dout, Operand qkv, const Sequences *s,
    int C, int NH, bool causal, bool only_read) {
#pragma omp parallel
    {
        float *room = aligned_malloc_check(head_room(k, s->longest, C / NH) * sizeof(float));
        products_begin(k, qkv.bf16);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < s->B * NH; item++) {
            const Head h = head_open(room, qkv, s, item / NH, item % NH, C, NH, only_read);
            const size_t HS = (size_t)h.HS;
            for (int q0 = 0; q0 < h.queries; q0 += h.block) {
                const int n = gemm_least(h.queries - q0, h.block);
                const Operand d = operand_at(dout, (h.rows + (size_t)q0) * C + (size_t)(item % NH) * HS);
                const Operand q = operand_at(h.q, (size_t)q0 * h.C3);
                head_probabilities(k, &h, q0, n, causal);
                head_product(k, &h, fp32(h.dv), HS, operand_matrix(h.p_operand, 1, h.ld),
                    operand_matrix(d, (size_t)C, 1), h.T, h.HS, n, q0 > 0);
                head_product(k, &h, fp32(h.dp), h.ld, operand_matrix(d, (size_t)C, 1),
                    operand_matrix(h.v, 1, h.C3), n, h.T, h.HS, false);
                for (int i = 0; i < n; i++)
                    k->softmax_backward(h.dp + (size_t)i * h.ld, h.p + (size_t)i * h.ld,
                        causal ? h.first + q0 + i + 1 : h.T, (int)h.ld, 1.0f / sqrtf((float)h.HS));
                head_round(k, h.dp_operand, h.dp, (size_t)n * h.ld);
                head_product(k, &h, operand_at(dqkv, h.in + (size_t)(h.first + q0) * h.C3), h.C3,
                    head_left(h.dp_operand, h.ld), operand_matrix(h.k, h.C3, 1), n, h.HS, h.T, false);
                head_product(k, &h, fp32(h.dk), HS, operand_matrix(h.dp_operand, 1, h.ld),
                    operand_matrix(q, h.C3, 1), h.T, h.HS, n, q0 > 0);
            }
            head_store(k, operand_at(dqkv, h.in + (size_t)C), h.C3, h.dk, h.T, h.HS);
            head_store(k, operand_at(dqkv, h.in + 2 * (size_t)C), h.C3, h.dv, h.T, h.HS);
        }
        products_end(k, qkv.bf16);
        free(room);
    }
}

// ---------------------------------------------------------------- one residual block

// What is kept of a block for its backward pass. Q = R rows, in the last block B: only those that are read.
// In amp_bf16 what products read or write is bf16; the residual stream is fp32.
typedef struct {
    float *x;                     // (R,C) input, the residual stream
    float *ln_1_mean, *ln_1_rstd; // (R)
    Operand qkv;                  // (R,3C)
    Operand attention;            // (Q,C) heads side by side
    float *resid1;                // (Q,C) residual stream after attention
    float *ln_2_mean, *ln_2_rstd; // (Q)
    Operand mlp_hidden;           // (Q,F) before the activation
} BlockActivations;

// Room that all blocks share.
typedef struct {
    Operand ln;             // (R,C) output of a LayerNorm
    Operand wide;           // (R,max(3C,F)) output of the activation; gradient of its input; gradient of qkv
    Operand activated;      // (R,F) output of the activation once more
    Operand read_a, read_b; // (B,C) rows that are read
    float *read_x;          // (B,C) those of the residual stream
    float *dx, *dy, *dz;    // (R,C) gradients, dz (B,C)
    Operand narrow;         // (R,C) one of them as an operand
} Scratch;

// The weights of a block, and their copies packed for products; see Weight.
typedef struct {
    const BlockPointers *w, *forward, *backward;
} BlockWeights;

#define WEIGHT(block, field) \
    block_weight((block)->w->field, (block)->forward->field, (block)->backward->field)
static Weight block_weight(const float *w, const float *forward, const float *backward) {
    const Weight weight = {w, forward, backward};
    return weight;
}

// out (Q,C) = x + attention(ln_1(x)), + mlp(ln_2(·)) (pre-LN transformer, Radford et al. 2019); NULL: only
// what the backward pass needs
static void block_forward(const Kernels *k, float *out, BlockActivations *a, const BlockWeights *weights,
    const Sequences *s, Scratch *t, TowerShape d, bool last) {
    const int C = d.C, Q = last ? s->B : s->R;
    const BlockPointers *w = weights->w;
    const Weight in_proj = WEIGHT(weights, in_proj_weight);
    TileEnd residual = SET, activation = SET;
    layernorm_forward(
        k, t->ln, a->ln_1_mean, a->ln_1_rstd, a->x, w->ln_1_weight, w->ln_1_bias, s->R, C, d.eps);
    if (!last) {
        linear_forward(k, a->qkv, t->ln, in_proj, w->in_proj_bias, SET, s->R, C, 3 * C);
        residual.residual = a->x;
    } else { // keys and values of all rows, queries only of those that are read
        TileEnd end = SET;
        end.bias = w->in_proj_bias + C;
        gemm(k, operand_at(a->qkv, (size_t)C), (size_t)3 * C, operand_matrix(t->ln, (size_t)C, 1),
            weight_forward(k, weight_rows(k, in_proj, C, C, t->ln.bf16), C, t->ln.bf16), s->R, 2 * C, C, end);
        gather_rows(t->read_a, t->ln, (size_t)C, s, C);
        linear_forward(k, t->read_b, t->read_a, in_proj, w->in_proj_bias, SET, s->B, C, C);
        scatter_rows(a->qkv, (size_t)3 * C, t->read_b, s, C);
        gather_rows(fp32(t->read_x), fp32(a->x), (size_t)C, s, C);
        residual.residual = t->read_x;
    }
    attention_forward(k, a->attention, a->qkv, s, C, d.NH, d.causal, last);
    linear_forward(k, fp32(a->resid1), a->attention, WEIGHT(weights, out_proj_weight), w->out_proj_bias,
        residual, Q, C, C);
    layernorm_forward(
        k, t->ln, a->ln_2_mean, a->ln_2_rstd, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    if (out) {
        activation.activated = t->wide.p;
        activation.quick_gelu = d.quick_gelu;
    }
    linear_forward(
        k, a->mlp_hidden, t->ln, WEIGHT(weights, c_fc_weight), w->c_fc_bias, activation, Q, C, d.F);
    if (!out) return;
    residual.residual = a->resid1;
    linear_forward(
        k, fp32(out), t->wide, WEIGHT(weights, c_proj_weight), w->c_proj_bias, residual, Q, d.F, C);
}

// t->dx: in, the gradient of the block's output (Q,C); out, that of its input (R,C). Gradients of frozen
// tensors are NULL in g.
static void block_backward(const Kernels *k, const BlockPointers *g, const BlockActivations *a,
    const BlockWeights *weights, const Sequences *s, Scratch *t, TowerShape d, bool last, bool accumulate) {
    const int C = d.C, F = d.F, Q = last ? s->B : s->R;
    const size_t C3 = 3 * (size_t)C;
    const BlockPointers *w = weights->w;
    const Weight in_proj = WEIGHT(weights, in_proj_weight);
    // MLP: t->wide becomes the gradient of the activation's input, t->activated its output. LayerNorms are
    // computed again rather than kept.
    Operand dout = round_operand(k, t->narrow, t->dx, (size_t)Q * C);
    TileEnd slope = SET;
    slope.hidden = a->mlp_hidden.p;
    slope.activated = g->c_proj_weight ? t->activated.p : NULL;
    slope.quick_gelu = d.quick_gelu;
    linear_backward_input(k, t->wide, dout, (size_t)C, WEIGHT(weights, c_proj_weight), slope, Q, F, C);
    linear_backward_weight(
        k, g->c_proj_weight, g->c_proj_bias, dout, (size_t)C, t->activated, Q, F, C, accumulate);
    layernorm_forward(
        k, t->ln, a->ln_2_mean, a->ln_2_rstd, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    linear_backward_weight(k, g->c_fc_weight, g->c_fc_bias, t->wide, (size_t)F, t->ln, Q, C, F, accumulate);
    linear_backward_input(k, fp32(t->dy), t->wide, (size_t)F, WEIGHT(weights, c_fc_weight), SET, Q, C, F);
    layernorm_backward(k, t->dx, g->ln_2_weight, g->ln_2_bias, t->dx, t->dy, a->resid1, w->ln_2_weight,
        a->ln_2_mean, a->ln_2_rstd, Q, C, accumulate);

    // attention: t->dx is now the gradient of resid1; t->ln becomes that of the attention's output, t->wide
    // that of qkv
    dout = round_operand(k, t->narrow, t->dx, (size_t)Q * C);
    linear_backward_weight(
        k, g->out_proj_weight, g->out_proj_bias, dout, (size_t)C, a->attention, Q, C, C, accumulate);
    linear_backward_input(k, t->ln, dout, (size_t)C, WEIGHT(weights, out_proj_weight), SET, Q, C, C);
    attention_backward(k, t->wide, t->ln, a->qkv, s, C, d.NH, d.causal, last);
    layernorm_forward(
        k, t->ln, a->ln_1_mean, a->ln_1_rstd, a->x, w->ln_1_weight, w->ln_1_bias, s->R, C, d.eps);
    if (!last) {
        linear_backward_weight(
            k, g->in_proj_weight, g->in_proj_bias, t->wide, C3, t->ln, s->R, C, 3 * C, accumulate);
        linear_backward_input(k, fp32(t->dy), t->wide, C3, in_proj, SET, s->R, C, 3 * C);
    } else { // keys and values, then the few queries; the residual stream and the queries' gradient reach only the rows that are read
        const Operand dkv = operand_at(t->wide, (size_t)C);
        linear_backward_weight(k, g->in_proj_weight ? g->in_proj_weight + (size_t)C * C : NULL,
            g->in_proj_bias ? g->in_proj_bias + C : NULL, dkv, C3, t->ln, s->R, C, 2 * C, accumulate);
        gemm(k, fp32(t->dy), (size_t)C, operand_matrix(dkv, C3, 1),
            weight_backward(k, weight_rows(k, in_proj, C, C, dkv.bf16), C, 3 * C, dkv.bf16), s->R, C, 2 * C,
            SET);
        gather_rows(t->read_b, t->wide, C3, s, C);
        gather_rows(t->read_a, t->ln, (size_t)C, s, C);
        linear_backward_weight(
            k, g->in_proj_weight, g->in_proj_bias, t->read_b, (size_t)C, t->read_a, s->B, C, C, accumulate);
        gemm(k, fp32(t->dz), (size_t)C, operand_matrix(t->read_b, (size_t)C, 1),
            weight_backward(k, in_proj, C, 3 * C, dkv.bf16), s->B, C, C, SET);
        memcpy(t->read_x, t->dx, (size_t)s->B * C * sizeof(float));
        memset(t->dx, 0, (size_t)s->R * C * sizeof(float));
        scatter_rows(fp32(t->dx), (size_t)C, fp32(t->read_x), s, C);
        for (int b = 0; b < s->B; b++)
            for (int c = 0; c < C; c++) t->dy[(size_t)s->read[b] * C + c] += t->dz[(size_t)b * C + c];
    }
    // the key bias has no gradient: softmax ignores a constant added to every score. What was summed is
    // rounding, which Adam would amplify.
    if (g->in_proj_bias) memset(g->in_proj_bias + C, 0, (size_t)C * sizeof(float));
    layernorm_backward(k, t->dx, g->ln_1_weight, g->ln_1_bias, t->dx, t->dy, a->x, w->ln_1_weight,
        a->ln_1_mean, a->ln_1_rstd, s->R, C, accumulate);
}

// ---------------------------------------------------------------- embeddings

// patches (B*N, 3*P*P): the pixels under each of N patches in the order of conv1's weights; a convolution
// whose stride is its size is a matrix product over them. Bytes are normalised as torchvision does: (x / 255
// - mean) / std in fp32.
static void patches_from_images(Operand patches, const ClipBatch *batch, const ClipConfig *c) {
    const int G = config_grid(c);
    const int P = c->patch_size;
    const int S = c->image_size;
    const int N = batch_patches(batch, c);
    const float mean[3] = {c->mean_r, c->mean_g, c->mean_b}, std[3] = {c->std_r, c->std_g, c->std_b};
    float normalised[3][256];
    uint16_t narrow[3][256];
    for (int ch = 0; ch < 3; ch++)
        for (int v = 0; v < 256; v++) {
            normalised[ch][v] = ((float)v / 255.0f - mean[ch]) / std[ch];
            narrow[ch][v] = float_to_bf16(normalised[ch][v]);
        }
#pragma omp parallel for schedule(static)
    for (int row = 0; row < batch->size * N; row++) {
        const int b = row / N;
        const int patch = batch_patch(batch, b, row % N);
        const int gy = patch / G;
        const int gx = patch % G;
        for (int i = 0; i < 3 * P; i++) {
            const int ch = i / P, y = i % P;
            const size_t from = (((size_t)b * 3 + ch) * S + (size_t)gy * P + y) * S + (size_t)gx * P;
            const Operand to = operand_at(patches, ((size_t)row * 3 * P + i) * P);
            float *whole = to.p;
            uint16_t *half = to.p;
            if (batch->images)
                for (int x = 0; x < P; x++)
                    to.bf16 ? (void)(half[x] = float_to_bf16(batch->images[from + x]))
                            : (void)(whole[x] = batch->images[from + x]);
            else if (to.bf16)
                for (int x = 0; x < P; x++) half[x] = narrow[ch][batch->pixels[from + x]];
            else
                for (int x = 0; x < P; x++) whole[x] = normalised[ch][batch->pixels[from + x]];
        }
    }
}

// x (B*(N+1),C): class token, then the patches, all with their position added; embedded (B*N,C): conv1's
// output
static void image_embedding_forward(const Kernels *k, float *x, float *embedded, Operand patches,
    const ClipBatch *batch, const TowerPointers *w, Weight conv1, const ClipConfig *c) {
    const int C = c->image_width, N = batch_patches(batch, c), K = 3 * c->patch_size * c->patch_size;
    patches_from_images(patches, batch, c);
    linear_forward(k, fp32(embedded), patches, conv1, w->conv1_bias, SET, batch->size * N, K, C);
#pragma omp parallel for schedule(static)
    for (int row = 0; row < batch->size * (N + 1); row++) {
        const int b = row / (N + 1), t = row % (N + 1);
        const float *from = t ? embedded + ((size_t)b * N + t - 1) * C : w->class_embedding;
        const float *position =
            w->positional_embedding + (t ? 1 + (size_t)batch_patch(batch, b, t - 1) : 0) * C;
        for (int i = 0; i < C; i++) x[(size_t)row * C + i] = from[i] + position[i];
    }
}

enum {
    EMBEDDING_STRIP = 64
}; // embeddings' gradients: channels have one owner, rows are added in their order

// From dx (B*(N+1),C); scratch as in the forward pass.
static void image_embedding_backward(const Kernels *k, const TowerPointers *g, const float *dx,
    float *dembedded, Operand patches, const ClipBatch *batch, const ClipConfig *c, bool accumulate) {
    const int C = c->image_width;
    const int N = batch_patches(batch, c);
    const int T = config_image_tokens(c);
    const int K = 3 * c->patch_size * c->patch_size;
    const int B = batch->size;
    const Operand dout = operand(dembedded, patches.bf16);
    if (!accumulate) memset(g->positional_embedding, 0, (size_t)T * C * sizeof(float));
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < C; i0 += EMBEDDING_STRIP)
        for (int row = 0; row < B * (N + 1); row++) {
            const int b = row / (N + 1);
            const int t = row % (N + 1);
            const int n = C - i0 < EMBEDDING_STRIP ? C - i0 : EMBEDDING_STRIP;
            const float *from = dx + (size_t)row * C + i0;
            float *position =
                g->positional_embedding + (t ? 1 + (size_t)batch_patch(batch, b, t - 1) : 0) * C + i0;
            for (int i = 0; i < n; i++) position[i] += from[i];
            if (t) head_store(k, operand_at(dout, ((size_t)b * N + t - 1) * C + i0), 0, from, 1, n);
        }
    bias_backward(k, g->class_embedding, fp32(dx), (size_t)(N + 1) * C, B, C,
        accumulate); // the first row of each image
    patches_from_images(patches, batch, c);
    linear_backward_weight(
        k, g->conv1_weight, g->conv1_bias, dout, (size_t)C, patches, B * N, K, C, accumulate);
}

// x (R,C) = token embedding + position, up to each caption's end of text
static void text_embedding_forward(
    float *x, const ClipBatch *batch, const Sequences *s, const TowerPointers *w, const ClipConfig *c) {
    const int C = c->text_width;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < s->B; b++)
        for (int row = s->start[b], t = 0; row < s->start[b + 1]; row++, t++) {
            const float *token =
                w->token_embedding + (size_t)batch->tokens[(size_t)b * c->context_length + t] * C;
            const float *position = w->positional_embedding + (size_t)t * C;
            for (int i = 0; i < C; i++) x[(size_t)row * C + i] = token[i] + position[i];
        }
}

// used (V): the tokens whose gradient is not zero. A batch touches few of many: only those rows are cleared
// for the next one.
static void text_embedding_backward(const TowerPointers *g, bool *used, const float *dx,
    const ClipBatch *batch, const Sequences *s, const ClipConfig *c, bool accumulate) {
    const int C = c->text_width;
    for (int v = 0; v < c->vocab_size && !accumulate; v++)
        if (used[v]) {
            used[v] = false;
            memset(g->token_embedding + (size_t)v * C, 0, (size_t)C * sizeof(float));
        }
    if (!accumulate) memset(g->positional_embedding, 0, (size_t)c->context_length * C * sizeof(float));
    for (int b = 0; b < s->B; b++)
        for (int t = 0; t < s->start[b + 1] - s->start[b]; t++)
            used[batch->tokens[(size_t)b * c->context_length + t]] = true;
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < C; i0 += EMBEDDING_STRIP)
        for (int b = 0; b < s->B; b++)
            for (int row = s->start[b], t = 0; row < s->start[b + 1]; row++, t++) {
                float *token =
                    g->token_embedding + (size_t)batch->tokens[(size_t)b * c->context_length + t] * C;
                float *position = g->positional_embedding + (size_t)t * C;
                for (int i = i0; i < C && i < i0 + EMBEDDING_STRIP; i++) {
                    token[i] += dx[(size_t)row * C + i];
                    position[i] += dx[(size_t)row * C + i];
                }
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
static void normalize_backward(
    float *dx, const float *dout, const float *out, const float *norm, int B, int E) {
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
    BlockActivations *blocks;             // (L)
    float *embedding;                     // (R,C) before ln_pre
    float *ln_pre_mean, *ln_pre_rstd;     // (R)
    float *last;                          // (B,C) output of the last block
    float *ln_final_mean, *ln_final_rstd; // (B)
    float *pooled;                        // (B,C) after the final LayerNorm
    float *projected;                     // (B,E) before L2 normalisation; its gradient
    float *norm;                          // (B)
    Operand patches;                      // image tower: (B*G*G,3*P*P)
    float *embedded;                      // (B*G*G,C)
    Scratch scratch;
    float *arena; // all of the above
    size_t capacity;
} Tower;

// The weights of products once more, packed as the right side of the forward products, or of the backward
// ones. In the packed type: as a table of tensors of its own, which has a place for those that are packed
// only.
typedef struct {
    TensorTable table;
    float *arena; // units; NULL: nothing is packed
    TensorPointers at;
} Panels;

struct Backend {
    const Kernels *kernels;
    bool bf16;                     // operands of the towers' products: --precision amp_bf16
    float *params, *grads, *m, *v; // arenas, laid out by clip->tensors
    TensorPointers w, g;
    Panels forward, backward; // weights packed for products
    bool panels_stale;        // they are not those of `params`
    Tower tower[2];
    int pairs;           // rows of features
    float *features[2];  // (pairs,E), L2-normalised
    float *dfeatures[2]; // (pairs,E)
    bool *used_tokens;   // (V) with a gradient that is not zero
    float *ema;          // moving average of the trainable tensors, laid out as the gradients; or NULL
    bool grad_checkpointing;
    bool accumulate; // gradients hold a part of the step already
};

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

static Operand arena_take_operand(Arena *a, size_t n, bool bf16) {
    return operand(arena_take(a, bf16 ? (n + 1) / 2 : n), bf16);
}

static void block_layout(Arena *a, BlockActivations *k, size_t R, size_t Q, const TowerShape *d, bool bf16) {
    k->ln_1_mean = arena_take(a, R);
    k->ln_1_rstd = arena_take(a, R);
    k->qkv = arena_take_operand(a, R * 3 * d->C, bf16);
    k->attention = arena_take_operand(a, Q * d->C, bf16);
    k->resid1 = arena_take(a, Q * d->C);
    k->ln_2_mean = arena_take(a, Q);
    k->ln_2_rstd = arena_take(a, Q);
    k->mlp_hidden = arena_take_operand(a, Q * d->F, bf16);
}

// Lays a tower's activations out for the sequences at hand. Blocks that are not kept share one set, but for
// their inputs, of which there are two in turn. Returns the floats needed; base NULL: only counts.
static size_t tower_layout(Tower *t, float *base, const ClipConfig *c, int tower, Keep keep, bool bf16) {
    Arena a = {base, 0};
    const TowerShape d = tower_shape(c, tower);
    const size_t B = (size_t)t->seq.B, R = (size_t)t->seq.R, C = (size_t)d.C;
    t->embedding = arena_take(&a, R * C);
    t->ln_pre_mean = arena_take(&a, R);
    t->ln_pre_rstd = arena_take(&a, R);
    BlockActivations shared = {0};
    float *input[2] = {NULL, NULL};
    if (keep.first > 0 || keep.inputs_only) block_layout(&a, &shared, R, R, &d, bf16);
    if (keep.first > 0) {
        input[0] = arena_take(&a, R * C);
        input[1] = arena_take(&a, R * C);
    }
    for (int l = 0; l < d.L; l++) {
        BlockActivations *block = &t->blocks[l];
        *block = shared;
        if (l >= keep.first && !keep.inputs_only) block_layout(&a, block, R, l == d.L - 1 ? B : R, &d, bf16);
        block->x = l >= keep.first ? arena_take(&a, R * C) : input[l % 2];
    }
    t->last = arena_take(&a, B * C);
    t->ln_final_mean = arena_take(&a, B);
    t->ln_final_rstd = arena_take(&a, B);
    t->pooled = arena_take(&a, B * C);
    t->projected = arena_take(&a, B * d.E);
    t->norm = arena_take(&a, B);
    if (tower == IMAGE_TOWER && R > B) {
        const size_t N = R - B, P = (size_t)c->patch_size;
        t->patches = arena_take_operand(&a, N * 3 * P * P, bf16);
        t->embedded = arena_take(&a, N * C);
    }
    Scratch *s = &t->scratch;
    s->ln = arena_take_operand(&a, R * C, bf16);
    s->wide = arena_take_operand(&a, R * (size_t)larger(d.F, 3 * d.C), bf16);
    s->read_a = arena_take_operand(&a, B * C, bf16);
    s->read_b = arena_take_operand(&a, B * C, bf16);
    s->read_x = arena_take(&a, B * C);
    if (keep.backward) {
        s->dx = arena_take(&a, R * C);
        s->dy = arena_take(&a, R * C);
        s->dz = arena_take(&a, B * C);
        s->activated = arena_take_operand(&a, R * (size_t)d.F, bf16);
        s->narrow = bf16 ? arena_take_operand(&a, R * C, true) : operand(NULL, false);
    }
    return a.used;
}

// ---------------------------------------------------------------- weights packed for products

// Is this tensor the right side of products (O,C) of the blocks, or of the patch embedding? The projections
// are small: fp32, and packed as they come.
static bool tensor_is_packed(const Tensor *x, bool backward) {
    return (x->ndim == 2 && strstr(x->name, "resblocks") && ends_with(x->name, "weight")) ||
           (!backward && x->ndim == 4);
}

static int tensor_rows(const Tensor *x) { return x->shape[0]; }
static int tensor_columns(const Tensor *x) { return (int)(x->count / (size_t)x->shape[0]); }

// K and N of the products with the weight (O,C) on their right side
static void panels_shape(const Tensor *x, bool backward, int *K, int *N) {
    *K = backward ? tensor_rows(x) : tensor_columns(x);
    *N = backward ? tensor_columns(x) : tensor_rows(x);
}

// A place for the weights of products from each tower's group first[tower] on; empty where none is left.
static void panels_create(Panels *p, const Clip *clip, bool backward, const int first[2]) {
    const Kernels *k = clip->back->kernels;
    int K, N;
    p->table = tensor_table_create(&clip->config);
    for (int i = 0; i < p->table.count; i++) {
        Tensor *x = &p->table.list[i];
        x->trainable = tensor_is_packed(x, backward) && x->group >= first[x->tower]; // has a place
        if (!x->trainable) continue;
        panels_shape(x, backward, &K, &N);
        x->count = panel_pitch(k, K, clip->back->bf16) * (size_t)panel_count(k, N);
    }
    tensor_table_pack(&p->table);
    p->arena = aligned_malloc_check(p->table.slots * sizeof(float));
    tensor_pointers_bind(&p->at, &p->table, &clip->config, p->arena, true);
}

static void panels_free(Panels *p) {
    tensor_pointers_free(&p->at);
    tensor_table_free(&p->table);
    free(p->arena);
    memset(p, 0, sizeof *p);
}

// Packs rows o0 … o1-1 (multiples of 32, or the last) of tensor `index`, by the calling thread.
static void panels_pack_rows(Panels *p, const Clip *clip, int index, bool backward, int o0, int o1) {
    const Kernels *k = clip->back->kernels;
    const Tensor *x = &clip->tensors.list[index];
    const float *w = clip->back->params + x->offset;
    const size_t C = (size_t)tensor_columns(x);
    uint32_t *to = (uint32_t *)tensor_in(&p->table.list[index], p->arena, true);
    int K, N;
    if (!to) return;
    panels_shape(x, backward, &K, &N);
    if (backward) pack_panels(k, to, matrix(w, C, 1), K, N, o0, o1, 0, panel_count(k, N), clip->back->bf16);
    else
        pack_panels(
            k, to, matrix(w, 1, C), K, N, 0, K, o0 / k->tile_columns, panel_count(k, o1), clip->back->bf16);
}

enum { PACK_ROWS = 32 };

// All of them, where weights have changed otherwise than by clip_update().
static void panels_refresh(Clip *clip) {
    Backend *b = clip->back;
    if (!b->panels_stale || !b->forward.arena) return;
    for (int i = 0; i < clip->tensors.count; i++) {
        if (!b->forward.table.list[i].trainable) continue;
        const int rows = tensor_rows(&clip->tensors.list[i]);
#pragma omp parallel for schedule(dynamic)
        for (int o = 0; o < rows; o += PACK_ROWS) {
            const int end = o + PACK_ROWS < rows ? o + PACK_ROWS : rows;
            panels_pack_rows(&b->forward, clip, i, false, o, end);
            if (b->backward.arena) panels_pack_rows(&b->backward, clip, i, true, o, end);
        }
    }
    b->panels_stale = false;
}

static BlockWeights block_weights(const Backend *b, int tower, int l) {
    static const BlockPointers none;
    const BlockWeights weights = {&b->w.tower[tower].blocks[l],
        b->forward.arena ? &b->forward.at.tower[tower].blocks[l] : &none,
        b->backward.arena ? &b->backward.at.tower[tower].blocks[l] : &none};
    return weights;
}

// ---------------------------------------------------------------- towers forward and backward

// Sets the batch's sequences and makes room for their activations; `backward`: also for a backward pass.
static void tower_prepare(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    const ClipConfig *c = &clip->config;
    Tower *t = &clip->back->tower[tower];
    const bool bf16 = clip->back->bf16;
    const Keep keep = tower_keep(clip, tower, backward, clip->back->grad_checkpointing);
    sequences_of_batch(&t->seq, batch, tower, c);
    const size_t need = tower_layout(t, NULL, c, tower, keep, bf16);
    if (need > t->capacity) {
        free(t->arena);
        t->arena = aligned_malloc_check(need * sizeof(float));
        t->capacity = need;
    }
    guard_lift(t->arena, t->capacity);
    tower_layout(t, t->arena, c, tower, keep, bf16);
    panels_refresh(clip);
}

// Everything before the projection: t->pooled (B,C).
static void tower_pool(Clip *clip, int tower, const ClipBatch *batch) {
    const Kernels *k = clip->back->kernels;
    const ClipConfig *c = &clip->config;
    const TowerPointers *w = &clip->back->w.tower[tower];
    const TowerShape d = tower_shape(c, tower);
    Tower *t = &clip->back->tower[tower];
    float *x = t->blocks[0].x, *embedding = w->ln_pre_weight ? t->embedding : x;
    const TowerPointers *forward = &clip->back->forward.at.tower[tower];
    if (tower == IMAGE_TOWER)
        image_embedding_forward(k, embedding, t->embedded, t->patches, batch, w,
            block_weight(w->conv1_weight, forward->conv1_weight, NULL), c);
    else text_embedding_forward(embedding, batch, &t->seq, w, c);
    if (w->ln_pre_weight)
        layernorm_forward(k, fp32(x), t->ln_pre_mean, t->ln_pre_rstd, embedding, w->ln_pre_weight,
            w->ln_pre_bias, t->seq.R, d.C, d.eps);
    for (int l = 0; l < d.L; l++) {
        const BlockWeights weights = block_weights(clip->back, tower, l);
        block_forward(k, l + 1 < d.L ? t->blocks[l + 1].x : t->last, &t->blocks[l], &weights, &t->seq,
            &t->scratch, d, l == d.L - 1);
    }
    layernorm_forward(k, fp32(t->pooled), t->ln_final_mean, t->ln_final_rstd, t->last, w->ln_final_weight,
        w->ln_final_bias, t->seq.B, d.C, d.eps);
}

// Encodes the batch into rows of `out` (B,E), L2-normalised.
static void tower_forward(Clip *clip, int tower, float *out, const ClipBatch *batch, bool keep) {
    const Kernels *k = clip->back->kernels;
    const TowerShape d = tower_shape(&clip->config, tower);
    tower_prepare(clip, tower, batch, keep);
    Tower *t = &clip->back->tower[tower];
    if (batch->pooled[tower]) memcpy(t->pooled, batch->pooled[tower], (size_t)t->seq.B * d.C * sizeof(float));
    else tower_pool(clip, tower, batch);
    gemm(k, fp32(t->projected), (size_t)d.E, matrix(t->pooled, (size_t)d.C, 1),
        matrix(clip->back->w.tower[tower].proj, (size_t)d.E, 1), t->seq.B, d.E, d.C, SET);
    normalize_forward(out, t->norm, t->projected, t->seq.B, d.E);
}

// From the gradient of the normalised features (B,E) down to the lowest trainable group.
static void tower_backward(
    Clip *clip, int tower, const float *dfeatures, const float *features, const ClipBatch *batch) {
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
    TileEnd add = SET;
    add.add = accumulate;
    float *dprojected = t->projected; // its place is free now
    normalize_backward(dprojected, dfeatures, features, t->norm, B, d.E);
    gemm(k, fp32(g->proj), E, matrix(t->pooled, 1, C), matrix(dprojected, E, 1), d.C, d.E, B, add);
    if (first > L) return;
    gemm(k, fp32(s->dy), C, matrix(dprojected, E, 1), matrix(w->proj, 1, E), B, d.C, d.E, SET);
    layernorm_backward(k, s->dx, g->ln_final_weight, g->ln_final_bias, NULL, s->dy, t->last,
        w->ln_final_weight, t->ln_final_mean, t->ln_final_rstd, B, d.C, accumulate);
    for (int l = L - 1; l >= 0 && l + 1 >= first; l--) {
        const BlockWeights weights = block_weights(clip->back, tower, l);
        if (clip->back->grad_checkpointing)
            block_forward(k, NULL, &t->blocks[l], &weights, &t->seq, s, d, l == L - 1);
        block_backward(k, &g->blocks[l], &t->blocks[l], &weights, &t->seq, s, d, l == L - 1, accumulate);
    }
    if (first > 0) return;
    const float *dembedding = s->dx;
    if (w->ln_pre_weight) {
        layernorm_backward(k, s->dy, g->ln_pre_weight, g->ln_pre_bias, NULL, s->dx, t->embedding,
            w->ln_pre_weight, t->ln_pre_mean, t->ln_pre_rstd, t->seq.R, d.C, accumulate);
        dembedding = s->dy;
    }
    if (tower == IMAGE_TOWER)
        image_embedding_backward(k, g, dembedding, t->embedded, t->patches, batch, c, accumulate);
    else text_embedding_backward(g, clip->back->used_tokens, dembedding, batch, &t->seq, c, accumulate);
}

// ---------------------------------------------------------------- the model (the functions of clipc/model/clip.h)

// An arena for parameters, or (slots) for gradients, m or v; zero, with guards between the tensors.
static float *arena_create(const TensorTable *t, bool slots) {
    const size_t floats = slots ? t->slots : t->floats;
    float *arena = aligned_calloc_check(floats * sizeof(float));
    for (int i = 0; i < t->count; i++) {
        float *x = tensor_in(&t->list[i], arena, slots);
        if (x) guard_behind(x, t->list[i].count, x + round_up(t->list[i].count, 16) + GUARD_FLOATS);
    }
    return arena;
}

Clip *clip_create_empty(const ClipConfig *config, const char *merges, size_t merges_bytes) {
    Clip *clip = calloc_check(1, sizeof *clip);
    if (merges) {
        clip->merges = memcpy(malloc_check(merges_bytes + 1), merges, merges_bytes);
        clip->merges[merges_bytes] = 0;
        clip->merges_bytes = merges_bytes;
    }
    Backend *b = clip->back = calloc_check(1, sizeof *b);
    clip->config = *config;
    clip->tensors = tensor_table_create(config);
    b->kernels = kernels_select();
    b->params = arena_create(&clip->tensors, false);
    tensor_pointers_bind(&b->w, &clip->tensors, config, b->params, false);
    for (int tower = 0; tower < 2; tower++)
        b->tower[tower].blocks =
            calloc_check((size_t)clip_tower_layers(config, tower), sizeof(BlockActivations));
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

Clip *clip_create(const ClipConfig *config, const char *merges, size_t merges_bytes, uint64_t seed) {
    Clip *clip = clip_create_empty(config, merges, merges_bytes);
    tensors_init(clip->back->params, &clip->tensors, config, seed);
    return clip;
}

uint64_t clip_save(Clip *clip, SafeFile *out) {
    return weight_file_write(
        out, &clip->config, clip->merges, clip->merges_bytes, &clip->tensors, clip->back->params);
}

void clip_free(Clip *clip) {
    Backend *b = clip->back;
    for (int tower = 0; tower < 2; tower++) {
        Tower *t = &b->tower[tower];
        sequences_free(&t->seq);
        free(t->blocks);
        free(t->arena);
        free(b->features[tower]);
        free(b->dfeatures[tower]);
    }
    tensor_pointers_free(&b->w);
    tensor_pointers_free(&b->g);
    tensor_table_free(&clip->tensors);
    panels_free(&b->forward);
    panels_free(&b->backward);
    free(b->used_tokens);
    free(b->params);
    free(b->grads);
    free(b->m);
    free(b->v);
    free(b->ema);
    free(b);
    free(clip->merges);
    free(clip);
}

PrecisionSupport clip_precision_support(Precision precision) {
    return precision == PRECISION_TF32                                    ? SUPPORT_NONE
           : precision == PRECISION_FP32 || kernels_select()->native_bf16 ? SUPPORT_NATIVE
                                                                          : SUPPORT_SLOW;
}

void clip_set_precision(Clip *clip, Precision precision) {
    const int all[2] = {0, 0};
    clip->back->bf16 = precision == PRECISION_AMP_BF16;
    panels_free(&clip->back->forward);
    panels_free(&clip->back->backward);
    panels_create(&clip->back->forward, clip, false, all);
    clip->back->panels_stale = true;
}

void clip_start_training(Clip *clip, const ClipTraining *how) {
    Backend *b = clip->back;
    free(b->grads);
    free(b->m);
    free(b->v);
    free(b->ema);
    free(b->used_tokens);
    b->used_tokens = calloc_check((size_t)clip->config.vocab_size, sizeof(bool));
    b->grads = arena_create(&clip->tensors, true);
    b->m = arena_create(&clip->tensors, true);
    b->v = arena_create(&clip->tensors, true);
    b->ema = how->ema ? arena_create(&clip->tensors, true) : NULL;
    for (int i = 0; how->ema && i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->trainable) memcpy(b->ema + x->slot, b->params + x->offset, x->count * sizeof(float));
    }
    tensor_pointers_bind(&b->g, &clip->tensors, &clip->config, b->grads, true);
    if (b->forward.arena) {
        const int first[2] = {
            first_trainable_group(clip, IMAGE_TOWER), first_trainable_group(clip, TEXT_TOWER)};
        panels_free(&b->backward);
        panels_create(&b->backward, clip, true, first);
        b->panels_stale = true;
    }
    b->pairs = how->pairs;
    b->grad_checkpointing = how->grad_checkpointing;
    b->accumulate = false;
    const size_t floats = (size_t)how->pairs * (size_t)clip->config.embed_dim;
    for (int tower = 0; tower < 2; tower++) {
        free(b->features[tower]);
        free(b->dfeatures[tower]);
        b->features[tower] = aligned_malloc_check(floats * sizeof(float));
        b->dfeatures[tower] = aligned_malloc_check(floats * sizeof(float));
    }
}

void clip_memory(
    const Clip *clip, int batch_size, size_t *parameters, size_t *training, size_t *activations) {
    const ClipConfig *c = &clip->config;
    *parameters =
        (clip->tensors.floats + clip->back->forward.table.slots + clip->back->backward.table.slots) *
        sizeof(float);
    *training = (clip->back->ema ? 4 : 3) * clip->tensors.slots * sizeof(float);
    *activations =
        4 * (size_t)clip->back->pairs * (size_t)c->embed_dim * sizeof(float); // features and their gradients
    for (int tower = 0; tower < 2; tower++) {
        Tower counted = {.seq = {batch_size,
                             batch_size * (tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length),
                             0, NULL, NULL}};
        counted.blocks = calloc_check((size_t)clip_tower_layers(c, tower), sizeof *counted.blocks);
        *activations += tower_layout(&counted, NULL, c, tower,
                            tower_keep(clip, tower, true, clip->back->grad_checkpointing), clip->back->bf16) *
                        sizeof(float);
        free(counted.blocks);
    }
}

void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features) {
    tower_forward(clip, IMAGE_TOWER, features, batch, false);
}
void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features) {
    tower_forward(clip, TEXT_TOWER, features, batch, false);
}

void clip_pool(Clip *clip, int tower, const ClipBatch *batch, float *pooled) {
    tower_prepare(clip, tower, batch, false);
    tower_pool(clip, tower, batch);
    memcpy(pooled, clip->back->tower[tower].pooled,
        (size_t)batch->size * tower_shape(&clip->config, tower).C * sizeof(float));
}

void clip_forward(Clip *clip, const ClipBatch *batch, int first_row, bool keep) {
    for (int tower = 0; tower < 2; tower++)
        tower_forward(clip, tower, clip->back->features[tower] + (size_t)first_row * clip->config.embed_dim,
            batch, keep);
}

double clip_loss(Clip *clip, int pairs, const uint64_t *keys, Positives positives, bool gradient) {
    Backend *b = clip->back;
    double dlogit_scale = 0;
    const double loss = contrastive_loss(b->kernels, gradient ? b->dfeatures[0] : NULL,
        gradient ? b->dfeatures[1] : NULL, &dlogit_scale, b->features[0], b->features[1], keys, positives,
        pairs, clip->config.embed_dim, clip_logit_scale(clip));
    if (gradient && b->g.logit_scale)
        *b->g.logit_scale = (float)dlogit_scale; // once a step, whatever the accumulation
    return loss;
}

void clip_backward(Clip *clip, const ClipBatch *batch, int first_row) {
    Backend *b = clip->back;
    const size_t row = (size_t)first_row * (size_t)clip->config.embed_dim;
    for (int tower = 0; tower < 2; tower++)
        tower_backward(clip, tower, b->dfeatures[tower] + row, b->features[tower] + row, batch);
    b->accumulate = true;
}

enum {
    UPDATE_CHUNK = 1 << 16
}; // numbers a thread takes at a time, about; chunks are fixed, and so is the order of their sums

// Of a weight that is packed: whole rows, as many as are packed together.
static size_t update_chunk(const Clip *clip, int index) {
    const Tensor *x = &clip->tensors.list[index];
    if (!clip->back->forward.arena || !clip->back->forward.table.list[index].trainable) return UPDATE_CHUNK;
    const size_t rows = PACK_ROWS * (size_t)tensor_columns(x);
    return rows * (rows < UPDATE_CHUNK ? UPDATE_CHUNK / rows : 1);
}

// The sum of squares of a tensor's gradient.
static double gradient_squares(const Clip *clip, int index) {
    const Tensor *x = &clip->tensors.list[index];
    const size_t chunk = update_chunk(clip, index), chunks = (x->count + chunk - 1) / chunk;
    double *sums = malloc_check(chunks * sizeof(double)), total = 0;
#pragma omp parallel for schedule(static) if (chunks > 1)
    for (size_t c = 0; c < chunks; c++)
        sums[c] = clip->back->kernels->sum_squares(clip->back->grads + x->slot + c * chunk,
            x->count - c * chunk < chunk ? x->count - c * chunk : chunk);
    for (size_t c = 0; c < chunks; c++) total += sums[c];
    free(sums);
    return total;
}

// AdamW on a tensor, chunk by chunk together with all that follows from its new values while they are in the
// cache: moving average, packed copies. Returns the sum of squares of its gradient.
static double tensor_update(Clip *clip, int index, const AdamW *a, AdamWTerms terms) {
    Backend *b = clip->back;
    const Tensor *x = &clip->tensors.list[index];
    const size_t chunk = update_chunk(clip, index);
    const size_t chunks = (x->count + chunk - 1) / chunk;
    const size_t C = (size_t)tensor_columns(x);
    double *sums = malloc_check(chunks * sizeof(double)), total = 0;
#pragma omp parallel for schedule(static) if (chunks > 1)
    for (size_t c = 0; c < chunks; c++) {
        const size_t at = c * chunk, n = x->count - at < chunk ? x->count - at : chunk;
        float *p = b->params + x->offset + at, *grad = b->grads + x->slot + at;
        sums[c] = b->kernels->sum_squares(grad, n);
        b->kernels->adamw(p, grad, b->m + x->slot + at, b->v + x->slot + at, (int)n, terms);
        if (x->tower == NO_TOWER) *p = fminf(fmaxf(*p, 0), (float)LOGIT_SCALE_MAX);
        if (b->ema) b->kernels->moving_average(b->ema + x->slot + at, p, (int)n, (float)a->ema_decay);
        if (b->forward.arena)
            panels_pack_rows(&b->forward, clip, index, false, (int)(at / C), (int)((at + n) / C));
        if (b->backward.arena)
            panels_pack_rows(&b->backward, clip, index, true, (int)(at / C), (int)((at + n) / C));
    }
    for (size_t c = 0; c < chunks; c++) total += sums[c];
    free(sums);
    return total;
}

double clip_update(Clip *clip, const AdamW *a) {
    double squares = 0, scale = 1;
    if (a->grad_clip_norm > 0) { // the norm is needed first; otherwise it falls out of the update
        for (int i = 0; i < clip->tensors.count; i++)
            if (clip->tensors.list[i].trainable) squares += gradient_squares(clip, i);
        scale = fmin(1, a->grad_clip_norm / (sqrt(squares) + 1e-6));
        squares = 0;
    }
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!x->trainable) continue;
        squares += tensor_update(clip, i, a, adamw_terms(a, x, scale));
    }
    clip->back->accumulate = false;
    return sqrt(squares);
}

bool clip_has_ema(const Clip *clip) { return clip->back->ema != NULL; }

void clip_swap_ema(Clip *clip) {
    Backend *b = clip->back;
    for (int i = 0; b->ema && i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        float *p = b->params + x->offset, *e = b->ema + x->slot;
        for (size_t j = 0; x->trainable && j < x->count; j++) {
            const float kept = p[j];
            p[j] = e[j];
            e[j] = kept;
        }
    }
    b->panels_stale = true;
}

float clip_logit_scale(const Clip *clip) { return expf(*clip->back->w.logit_scale); }

static float *tensor_place(const Clip *clip, ClipArena arena, const Tensor *x) {
    float *bases[] = {clip->back->params, clip->back->grads, clip->back->m, clip->back->v, clip->back->ema};
    return tensor_in(x, bases[arena], arena != ARENA_PARAMETERS);
}

void clip_read(const Clip *clip, ClipArena arena, const Tensor *x, float *values) {
    memcpy(values, tensor_place(clip, arena, x), x->count * sizeof(float));
}
void clip_write(Clip *clip, ClipArena arena, const Tensor *x, const float *values) {
    memcpy(tensor_place(clip, arena, x), values, x->count * sizeof(float));
    if (arena == ARENA_PARAMETERS) clip->back->panels_stale = true;
}

const char *clip_kernels(const Clip *clip) { return clip->back->kernels->products[clip->back->bf16].isa; }

#ifndef CLIP_WITHOUT_MAIN
#include "clipc/train/training.h" // train_main, evaluate_main, classify_main, print_schedule_main

int main(int argc, char **argv) {
    Options options;
    options_parse(&options, argc, argv);
    Training training = {.o = &options};
    if (options.print_schedule) return print_schedule_main(&training);
    const int code = options.classify.count ? classify_main(&training)
                     : options.eval_only    ? evaluate_main(&training)
                                            : train_main(&training);
    training_free(&training);
    return code;
}
#endif
