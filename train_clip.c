// clip.c: CLIP (Radford et al. 2021) fine-tuned on a CPU, in plain C. In this file: every layer forward and
// backward, the two towers, AdamW, and the training recipe. MODEL.md has the equations, clipc/math/plain.h
// every layer as a plain loop. A comment that starts with the name of such a loop, for example
// "linear_forward_plain:", means that the function below it computes the same.
//
//     ./train_clip --pretrained W.bin --train-data images.csv        fine-tunes
//     ./train_clip --help
//
// Image: patches of P x P pixels, a linear layer (conv1), a class token in front, positions, LayerNorm
// (ln_pre). Caption: token embedding, positions. Both: L blocks x += attention(ln_1(x)), x += mlp(ln_2(x));
// then, for the pooled row of each sequence only (class token, end of text), LayerNorm, projection to E
// numbers, L2 normalisation. The loss compares all images of a batch with all captions.
//
// Sequences are packed: a batch is a matrix of R rows of C channels, sequence after sequence, and each
// caption stops at its end of text (caption_length()). Tokens after it cannot influence it (causal mask), so
// they are not computed at all; the result is exact. The last block computes only the pooled row of each
// sequence, since no other row is used after it; that is exact, too.
//
// B batch, T tokens, R rows (all tokens of a batch), C channels, NH heads, HS head size, F hidden width of
// the MLP, L layers, V vocabulary, E embedding, P patch size, S image size, G patches along a side. Outputs
// come first, sizes last; the names of gradients begin with d. (+)= adds if `accumulate` is set, and what it
// adds is complete; else it overwrites. An Operand is an array of fp32, or of bf16 with --precision amp_bf16.

#include "clipc/base/utils.h"        // die, malloc_check
#include "clipc/math/fastest.h"      // kernels_fastest
#include "clipc/math/loss.h"         // contrastive_loss
#include "clipc/math/matmul.h"       // Kernels, gemm
#include "clipc/math/plain.h"        // …_plain
#include "clipc/model/activations.h" // Sequences, TowerActivations, Panels
#include "clipc/model/clip.h"        // Clip, ClipBatch, AdamW, the functions implemented here
#include "clipc/model/slices.h"      // Slices

#include <assert.h>
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// ---------------------------------------------------------------- linear layer

// out = x weightᵀ + bias. towers_bind() sets the pointers.
typedef struct {
    const float *weight, *bias; // (O,C), (O) or NULL
    float *dweight, *dbias;     // gradients; NULL when frozen
    // the weight packed for x weightᵀ and for dout weight, or NULL
    const uint32_t *forward, *backward;
    size_t forward_pitch, backward_pitch;
    int C, O;
    size_t ld; // entries from one row of the output to the next: O, or more if it is part of wider rows
    bool bf16; // type of the packed copies
    const Kernels *kernels;
} Linear;

// Outputs first … first+count-1 of w as a layer of their own, whose output has rows `ld` apart. A packed copy
// can be shared only if `first` is at the start of a micro-panel (forward) or of a block of packing
// (backward).
static Linear linear_part(const Linear *w, int first, int count, size_t ld) {
    Linear part = *w;
    const size_t at = (size_t)first, width = (size_t)w->kernels->tile_columns;
    part.weight = w->weight + at * (size_t)w->C;
    part.bias = w->bias ? w->bias + first : NULL;
    part.dweight = w->dweight ? w->dweight + at * (size_t)w->C : NULL;
    part.dbias = w->dbias ? w->dbias + first : NULL;
    part.forward = w->forward && at % width == 0 ? w->forward + at / width * w->forward_pitch : NULL;
    part.backward = w->backward && at % (2 * UNIT_BLOCK) == 0
                        ? w->backward + at / (size_t)unit_entries(w->bf16) * width
                        : NULL;
    part.O = count;
    part.ld = ld;
    return part;
}

// out (N,O; ld) = epilogue(x (N,C) weightᵀ)
static void linear_product(Operand out, Operand x, const Linear *w, Epilogue epilogue, int N) {
    Matrix weight = matrix(w->weight, 1, (size_t)w->C);
    weight.panels = w->forward;
    weight.pitch = w->forward_pitch;
    epilogue.bias = w->bias;
    gemm(w->kernels, out, w->ld, operand_matrix(x, (size_t)w->C, 1), weight, N, w->O, w->C, epilogue);
}

// linear_forward_plain: out (N,O) = x (N,C) weightᵀ + bias
static void linear_forward(Operand out, Operand x, const Linear *w, int N) {
    if (w->kernels->plain) linear_forward_plain(out.p, x.p, w->weight, w->bias, N, w->C, w->O, w->ld);
    else linear_product(out, x, w, epilogue_of(EPILOGUE_STORE, NULL), N);
}

// out (N,O) = x (N,C) weightᵀ + bias + residual (N,O)
static void linear_residual_forward(float *out, Operand x, const Linear *w, const float *residual, int N) {
    Epilogue epilogue = epilogue_of(EPILOGUE_RESIDUAL, NULL);
    epilogue.residual = residual;
    if (!w->kernels->plain) {
        linear_product(fp32(out), x, w, epilogue, N);
        return;
    }
    linear_forward_plain(out, x.p, w->weight, w->bias, N, w->C, w->O, w->ld);
    for (size_t i = 0; i < (size_t)N * w->O; i++) out[i] += residual[i];
}

// activation_forward_plain: hidden (N,O) = x (N,C) weightᵀ + bias, activated (N,O) = activation(hidden)
static void linear_activation_forward(
    Operand hidden, Operand activated, Operand x, const Linear *w, Activation activation, int N) {
    Epilogue epilogue = epilogue_of(EPILOGUE_ACTIVATION, NULL);
    epilogue.activated = activated.p;
    epilogue.activation = activation;
    if (!w->kernels->plain) {
        linear_product(hidden, x, w, epilogue, N);
        return;
    }
    linear_forward_plain(hidden.p, x.p, w->weight, w->bias, N, w->C, w->O, w->ld);
    activation_forward_plain(activated.p, hidden.p, (size_t)N * w->O, activation);
}

// dx (N,C) = epilogue(dout (N,O; ld) weight)
static void linear_product_backward(Operand dx, Operand dout, const Linear *w, Epilogue epilogue, int N) {
    Matrix weight = matrix(w->weight, (size_t)w->C, 1);
    weight.panels = w->backward;
    weight.pitch = w->backward_pitch;
    gemm(w->kernels, dx, (size_t)w->C, operand_matrix(dout, w->ld, 1), weight, N, w->C, w->O, epilogue);
}

// linear_backward_input_plain: dx (N,C) = dout (N,O) weight
static void linear_backward_input(Operand dx, Operand dout, const Linear *w, int N) {
    if (w->kernels->plain) linear_backward_input_plain(dx.p, dout.p, w->weight, N, w->C, w->O, w->ld);
    else linear_product_backward(dx, dout, w, epilogue_of(EPILOGUE_STORE, NULL), N);
}

// activation_backward_plain: dhidden (N,C) = (dout (N,O) weight) ∘ activation'(hidden), for a layer that
// follows an activation. The input of the layer, activated (N,C) = activation(hidden), is recomputed for the
// gradient of the weight if the weight trains.
static void linear_activation_backward(Operand dhidden, Operand activated, Operand dout, Operand hidden,
    const Linear *w, Activation activation, int N) {
    Epilogue epilogue = epilogue_of(EPILOGUE_SLOPE, NULL);
    epilogue.hidden = hidden.p;
    epilogue.activated = w->dweight ? activated.p : NULL;
    epilogue.activation = activation;
    if (!w->kernels->plain) {
        linear_product_backward(dhidden, dout, w, epilogue, N);
        return;
    }
    linear_backward_input_plain(dhidden.p, dout.p, w->weight, N, w->C, w->O, w->ld);
    activation_backward_plain(dhidden.p, dhidden.p, hidden.p, (size_t)N * w->C, activation);
    activation_forward_plain(activated.p, hidden.p, (size_t)N * w->C, activation);
}

// sum (n) += the columns of x (rows,n), rows ld apart
static void column_sums(float *sum, Operand x, int rows, size_t ld, int n) {
    const float *row = x.p;
    const uint16_t *row_bf16 = x.p;
    for (int r = 0; r < rows; r++, row += ld, row_bf16 += ld) {
        if (x.bf16)
            for (int i = 0; i < n; i++) sum[i] += bf16_to_float(row_bf16[i]);
        else
            for (int i = 0; i < n; i++) sum[i] += row[i];
    }
}

// dbias (O) (+)= the column sums of dout (N,O; ld). Each column is summed by one thread, in chunks of rows
// whose sums are added in order: the same bits for any number of threads.
static void bias_backward(float *dbias, Operand dout, size_t ld, int N, int O, bool accumulate) {
    enum { COLUMNS = 64, CHUNK = 128 };
#pragma omp parallel for schedule(static)
    for (int o = 0; o < O; o += COLUMNS) {
        const int n = min_int(COLUMNS, O - o);
        float sum[COLUMNS] = {0};
        for (int r = 0; r < N; r += CHUNK) {
            float part[COLUMNS] = {0};
            column_sums(part, operand_at(dout, (size_t)r * ld + o), min_int(CHUNK, N - r), ld, n);
            for (int i = 0; i < n; i++) sum[i] += part[i];
        }
        for (int i = 0; i < n; i++) dbias[o + i] = sum[i] + (accumulate ? dbias[o + i] : 0);
    }
}

// linear_backward_weight_plain: dweight (O,C) (+)= dout (N,O)ᵀ x (N,C);  dbias (O) (+)= the column sums of
// dout
static void linear_backward_weight(const Linear *w, Operand dout, Operand x, int N, bool accumulate) {
    if (w->kernels->plain) {
        linear_backward_weight_plain(w->dweight, w->dbias, dout.p, x.p, N, w->C, w->O, w->ld, accumulate);
        return;
    }
    const Epilogue epilogue = epilogue_of(accumulate ? EPILOGUE_ADD : EPILOGUE_STORE, NULL);
    const Matrix doutT = operand_matrix(dout, 1, w->ld), input = operand_matrix(x, (size_t)w->C, 1);
    if (w->dweight) gemm(w->kernels, fp32(w->dweight), (size_t)w->C, doutT, input, w->O, w->C, N, epilogue);
    if (w->dbias) bias_backward(w->dbias, dout, w->ld, N, w->O, accumulate);
}

// x (n) as an operand of products: rounded to bf16 in `rounded` (n) if that is bf16, else x itself
static Operand to_operand(const Kernels *k, Operand rounded, const float *x, size_t n) {
    if (!rounded.bf16) return fp32(x);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i += 4096)
        k->to_bf16((uint16_t *)rounded.p + i, x + i, n - i < 4096 ? (int)(n - i) : 4096);
    return rounded;
}

// ---------------------------------------------------------------- LayerNorm

typedef struct {
    const float *gain, *bias; // (C)
    float *dgain, *dbias;     // (C) gradients; NULL when frozen
    int C;
    float eps;
    const Kernels *kernels;
} LayerNorm;

// layernorm_forward_plain (Ba et al. 2016, eq. 4): out (N,C) = (x - mean) rstd gain + bias; mean and rstd (N)
// are saved
static void layernorm_forward(Operand out, RowStats stats, const float *x, const LayerNorm *w, int N) {
    const Kernels *k = w->kernels;
    const size_t C = (size_t)w->C;
    if (k->plain) {
        layernorm_forward_plain(out.p, stats.mean, stats.rstd, x, w->gain, w->bias, N, w->C, w->eps);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int i = 0; i < N; i++)
        k->layernorm(operand_at(out, (size_t)i * C), stats.mean + i, stats.rstd + i, x + (size_t)i * C,
            w->gain, w->bias, w->C, w->eps);
}

// The gradients of gain and bias are summed over a fixed number of chunks of rows, then in order: the same
// bits for any number of threads.
enum { LAYERNORM_CHUNKS = 32 };

// d (C) (+)= the sum of parts (LAYERNORM_CHUNKS,C), rows 2C apart
static void layernorm_sum_parts(float *d, const float *parts, int C, bool accumulate) {
    if (!d) return;
    if (!accumulate) memset(d, 0, (size_t)C * sizeof(float));
    float *sum = calloc_check((size_t)C, sizeof *sum);
    column_sums(sum, fp32(parts), LAYERNORM_CHUNKS, (size_t)2 * C, C);
    for (int c = 0; c < C; c++) d[c] += sum[c];
    free(sum);
}

// layernorm_backward_plain: dx (N,C) = skip + the gradient through the LayerNorm of dout (N,C); dgain, dbias
// (+)=. skip (N,C) is the gradient of the residual connection around the LayerNorm: NULL, or dx itself.
static void layernorm_backward(float *dx, const float *skip, const float *dout, const float *x,
    RowStats stats, const LayerNorm *w, int N, bool accumulate) {
    const Kernels *k = w->kernels;
    const int C = w->C;
    if (k->plain) {
        layernorm_backward_plain(
            dx, w->dgain, w->dbias, skip, dout, x, w->gain, stats.mean, stats.rstd, N, C, accumulate);
        return;
    }
    float *parts = calloc_check((size_t)LAYERNORM_CHUNKS * 2 * C, sizeof(float)); // (chunks,2C): dgain, dbias
#pragma omp parallel for schedule(static)
    for (int chunk = 0; chunk < LAYERNORM_CHUNKS; chunk++) {
        float *dgain = w->dgain ? parts + (size_t)chunk * 2 * C : NULL;
        float *dbias = w->dbias ? parts + (size_t)chunk * 2 * C + C : NULL;
        const int end = (int)((int64_t)N * (chunk + 1) / LAYERNORM_CHUNKS);
        for (int i = (int)((int64_t)N * chunk / LAYERNORM_CHUNKS); i < end; i++) {
            const size_t row = (size_t)i * C;
            k->layernorm_backward(dx + row, dgain, dbias, skip ? skip + row : NULL, dout + row, x + row,
                w->gain, stats.mean[i], stats.rstd[i], C);
        }
    }
    layernorm_sum_parts(w->dgain, parts, C, accumulate);
    layernorm_sum_parts(w->dbias, parts + C, C, accumulate);
    free(parts);
}

// ---------------------------------------------------------------- attention

typedef struct {
    int C, NH;
    bool causal; // a query sees the keys up to its own position
    const Kernels *kernels;
} Attention;

// A head is computed in blocks of queries. These limits on scores and queries per block keep the block in L2
// for any sequence length.
enum { SCORES = 1 << 16, QUERIES_MOST = 256, QUERIES_LEAST = 16 };

// One head of one sequence, and scratch for the thread that computes it. Scores and sums are fp32; arrays
// that products read are Operands.
typedef struct {
    const Kernels *kernels;
    Operand q, k, v;       // (queries,HS), (T,HS), (T,HS): rows 3C apart, in qkv
    size_t C, C3;          // entries from one row of out, of qkv to the next
    size_t dq, dk, dv;     // offsets of q, k, v in qkv, and of their gradients in dqkv
    size_t out;            // offset of the head's output in out (pooled: one row per sequence)
    int T, HS, queries;    // queries: T; pooled: 1
    int first_query;       // position of the first query in the sequence
    int queries_per_block; // see SCORES
    bool causal;
    size_t ld;                     // entries from one row of scores to the next; columns from T on are zero
    float *p, *dp;                 // (queries_per_block,ld) probabilities; dP, later dS
    Operand p_operand, ds_operand; // P and dS as operands
    float *dk_sum, *dv_sum;        // (T,HS) sums over blocks of queries
    float *gemm_scratch;           // for gemm_serial()
} Head;

static size_t scores_ld(int T) { return round_up((size_t)T, 2 * UNIT_BLOCK); }
static int queries_per_block(int T) {
    return min_int(QUERIES_MOST, max_int(QUERIES_LEAST, SCORES / (int)scores_ld(T)));
}
static size_t scores_floats(int T) { return (size_t)max_int(SCORES, QUERIES_LEAST * (int)scores_ld(T)); }

// Floats of scratch that a thread needs for sequences of up to T tokens.
static size_t head_scratch(const Kernels *k, int T, int HS) {
    return 4 * scores_floats(T) + 2 * round_up((size_t)T * HS, 16) +
           gemm_serial_scratch(k, T, max_int((int)scores_ld(T), HS));
}

// Head `index` of sequence b. pooled: only the query of the pooled row.
static Head head_open(
    float *scratch, Operand qkv, const Sequences *s, int b, int index, const Attention *a, bool pooled) {
    const int HS = a->C / a->NH, first = s->start[b];
    const size_t channel = (size_t)index * HS, scores = scores_floats(s->longest);
    Head h;
    h.kernels = a->kernels;
    h.T = s->start[b + 1] - first;
    h.HS = HS;
    h.C = (size_t)a->C;
    h.C3 = 3 * h.C;
    h.causal = a->causal;
    h.queries = pooled ? 1 : h.T;
    h.first_query = pooled ? s->pooled_row[b] - first : 0;
    h.queries_per_block = queries_per_block(h.T);
    h.ld = scores_ld(h.T);
    h.out = (size_t)(pooled ? b : first) * h.C + channel;
    h.dq = (size_t)(first + h.first_query) * h.C3 + channel;
    h.dk = (size_t)first * h.C3 + h.C + channel;
    h.dv = h.dk + h.C;
    h.q = operand_at(qkv, h.dq);
    h.k = operand_at(qkv, h.dk);
    h.v = operand_at(qkv, h.dv);
    h.p = scratch;
    h.dp = scratch + scores;
    h.p_operand = qkv.bf16 ? operand(scratch + 2 * scores, true) : fp32(h.p);
    h.ds_operand = qkv.bf16 ? operand(scratch + 3 * scores, true) : fp32(h.dp);
    h.dk_sum = scratch + 4 * scores;
    h.dv_sum = h.dk_sum + round_up((size_t)s->longest * HS, 16);
    h.gemm_scratch = h.dv_sum + round_up((size_t)s->longest * HS, 16);
    return h;
}

// c (M,N; ldc) = A B, or += with EPILOGUE_ADD
static void head_product(
    const Head *h, EpilogueKind kind, Operand c, size_t ldc, Matrix A, Matrix B, int M, int N, int K) {
    gemm_serial(h->kernels, h->gemm_scratch, c, ldc, A, B, M, N, K, epilogue_of(kind, NULL));
}

// x, whose rows are ld apart, as a factor of a product; and its transpose
static Matrix rows_of(Operand x, size_t ld) { return operand_matrix(x, ld, 1); }
static Matrix transposed(Operand x, size_t ld) { return operand_matrix(x, 1, ld); }

// P or dS as the A of a product: its rows are padded with zeros, so that the kernel can read whole steps.
static Matrix scores_of(Operand x, size_t ld) {
    Matrix m = operand_matrix(x, ld, 1);
    m.padded = true;
    return m;
}

// Rounds n rows of scores to `to` if that is bf16; in fp32 `to` is the scores themselves.
static void scores_to_operand(const Head *h, Operand to, const float *scores, int n) {
    if (to.bf16) h->kernels->to_bf16((uint16_t *)to.p, scores, n * (int)h->ld);
}

// How many keys query i of the head sees.
static int visible_keys(const Head *h, int i) { return h->causal ? h->first_query + i + 1 : h->T; }

// P (n,ld) = softmax(q kᵀ / sqrt(HS)) of queries q0 … q0+n-1
static void head_probabilities(const Head *h, int q0, int n) {
    const Operand q = operand_at(h->q, (size_t)q0 * h->C3);
    const float scale = 1.0f / sqrtf((float)h->HS);
    head_product(
        h, EPILOGUE_STORE, fp32(h->p), h->ld, rows_of(q, h->C3), transposed(h->k, h->C3), n, h->T, h->HS);
    for (int i = 0; i < n; i++)
        h->kernels->softmax(h->p + (size_t)i * h->ld, visible_keys(h, q0 + i), (int)h->ld, scale);
    scores_to_operand(h, h->p_operand, h->p, n);
}

typedef void (*HeadPass)(const Head *h, Operand out, Operand in);

// Calls `pass` for each head of each sequence; the threads divide the heads among themselves.
static void for_each_head(HeadPass pass, Operand out, Operand in, Operand qkv, const Sequences *s,
    const Attention *a, bool pooled) {
    assert(a->C % a->NH == 0 && s->longest > 0 && qkv.p);
#pragma omp parallel
    {
        const size_t floats = head_scratch(a->kernels, s->longest, a->C / a->NH);
        float *scratch = aligned_malloc_check(floats * sizeof(float));
        products_begin(a->kernels, qkv.bf16);
#pragma omp for schedule(dynamic)
        for (int item = 0; item < s->B * a->NH; item++) {
            const Head h = head_open(scratch, qkv, s, item / a->NH, item % a->NH, a, pooled);
            pass(&h, out, in);
        }
        products_end(a->kernels, qkv.bf16);
        free(scratch);
    }
}

// O = P V, by blocks of queries
static void head_forward(const Head *h, Operand out, Operand in) {
    (void)in;
    for (int q0 = 0; q0 < h->queries; q0 += h->queries_per_block) {
        const int n = min_int(h->queries - q0, h->queries_per_block);
        const Operand o = operand_at(out, h->out + (size_t)q0 * h->C);
        head_probabilities(h, q0, n);
        head_product(
            h, EPILOGUE_STORE, o, h->C, scores_of(h->p_operand, h->ld), rows_of(h->v, h->C3), n, h->HS, h->T);
    }
}

// attention_forward_plain (Vaswani et al. 2017, eq. 1): heads side by side in the channels.
//   out (R,C), pooled: (B,C), the pooled rows only;  qkv (R,3C) queries, keys, values of all heads
static void attention_forward(Operand out, Operand qkv, const Sequences *s, const Attention *a, bool pooled) {
    if (a->kernels->plain)
        attention_forward_plain(
            out.p, qkv.p, s->start, pooled ? s->pooled_row : NULL, s->B, a->C, a->NH, a->causal);
    else for_each_head(head_forward, out, qkv, qkv, s, a, pooled);
}

// x (n,HS; ld) = from (n,HS), rounded if x is bf16
static void head_store(const Kernels *k, Operand x, size_t ld, const float *from, int n, int HS) {
    for (int i = 0; i < n; i++, from += HS) {
        const Operand row = operand_at(x, (size_t)i * ld);
        if (x.bf16) k->to_bf16((uint16_t *)row.p, from, HS);
        else memcpy(row.p, from, (size_t)HS * sizeof(float));
    }
}

// The gradients of one head, by blocks of queries. dO is dout; P, the probabilities, is recomputed rather
// than saved.
static void head_backward(const Head *h, Operand dqkv, Operand dout) {
    const float scale = 1.0f / sqrtf((float)h->HS);
    const int T = h->T, HS = h->HS;
    for (int q0 = 0; q0 < h->queries; q0 += h->queries_per_block) {
        const int n = min_int(h->queries - q0, h->queries_per_block);
        const EpilogueKind sum = q0 ? EPILOGUE_ADD : EPILOGUE_STORE;
        const Operand dO = operand_at(dout, h->out + (size_t)q0 * h->C),
                      q = operand_at(h->q, (size_t)q0 * h->C3);
        const Operand dq = operand_at(dqkv, h->dq + (size_t)q0 * h->C3);
        head_probabilities(h, q0, n);
        // dV = Pᵀ dO
        head_product(h, sum, fp32(h->dv_sum), (size_t)HS, transposed(h->p_operand, h->ld), rows_of(dO, h->C),
            T, HS, n);
        // dP = dO Vᵀ
        head_product(
            h, EPILOGUE_STORE, fp32(h->dp), h->ld, rows_of(dO, h->C), transposed(h->v, h->C3), n, T, HS);
        // dS = P ∘ (dP - rowsum(P ∘ dP)) / sqrt(HS), in place of dP
        for (int i = 0; i < n; i++)
            h->kernels->softmax_backward(h->dp + (size_t)i * h->ld, h->p + (size_t)i * h->ld,
                visible_keys(h, q0 + i), (int)h->ld, scale);
        scores_to_operand(h, h->ds_operand, h->dp, n);
        // dQ = dS K
        head_product(
            h, EPILOGUE_STORE, dq, h->C3, scores_of(h->ds_operand, h->ld), rows_of(h->k, h->C3), n, HS, T);
        // dK = dSᵀ Q
        head_product(h, sum, fp32(h->dk_sum), (size_t)HS, transposed(h->ds_operand, h->ld), rows_of(q, h->C3),
            T, HS, n);
    }
    head_store(h->kernels, operand_at(dqkv, h->dk), h->C3, h->dk_sum, T, HS);
    head_store(h->kernels, operand_at(dqkv, h->dv), h->C3, h->dv_sum, T, HS);
}

// attention_backward_plain: dqkv (R,3C) from dout (R,C). pooled: from dout (B,C); of the queries' gradients
// only the pooled rows are written.
static void attention_backward(
    Operand dqkv, Operand dout, Operand qkv, const Sequences *s, const Attention *a, bool pooled) {
    if (a->kernels->plain)
        attention_backward_plain(
            dqkv.p, dout.p, qkv.p, s->start, pooled ? s->pooled_row : NULL, s->B, a->C, a->NH, a->causal);
    else for_each_head(head_backward, dqkv, dout, qkv, s, a, pooled);
}

// ---------------------------------------------------------------- one residual block

typedef struct {
    LayerNorm ln_1;
    Linear in_proj;
    Attention attention;
    Linear out_proj;
    LayerNorm ln_2;
    Linear c_fc, c_proj;
    Activation activation;
} Block;

// out (N,C) = resid1 + mlp(ln_2(resid1)); out NULL: computes only what the backward pass needs
static void mlp_forward(float *out, BlockActivations *a, const Block *w, Scratch *t, int N) {
    layernorm_forward(t->ln, a->ln_2, a->resid1, &w->ln_2, N);
    if (!out) {
        linear_forward(a->mlp_hidden, t->ln, &w->c_fc, N);
        return;
    }
    linear_activation_forward(a->mlp_hidden, t->wide, t->ln, &w->c_fc, w->activation, N);
    linear_residual_forward(out, t->wide, &w->c_proj, a->resid1, N);
}

// x + attention(ln_1(x)), then + mlp(ln_2(·)): a pre-LN transformer block (Radford et al. 2019). out (R,C);
// NULL: computes only what the backward pass needs (gradient checkpointing)
static void block_forward(float *out, BlockActivations *a, const Block *w, const Sequences *s, Scratch *t) {
    layernorm_forward(t->ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_forward(a->qkv, t->ln, &w->in_proj, s->R);
    attention_forward(a->attention, a->qkv, s, &w->attention, false);
    linear_residual_forward(a->resid1, a->attention, &w->out_proj, a->x, s->R);
    mlp_forward(out, a, w, t, s->R);
}

// t->dx is the gradient of the MLP's output (N,C) on entry, that of resid1 (N,C) on return. The outputs of
// LayerNorm and activation are recomputed rather than saved. t->wide becomes the gradient of mlp_hidden.
static void mlp_backward(const BlockActivations *a, const Block *w, Scratch *t, int N, bool accumulate) {
    const Operand dout = to_operand(w->c_proj.kernels, t->dout, t->dx, (size_t)N * w->ln_2.C);
    linear_activation_backward(t->wide, t->activated, dout, a->mlp_hidden, &w->c_proj, w->activation, N);
    linear_backward_weight(&w->c_proj, dout, t->activated, N, accumulate);
    layernorm_forward(t->ln, a->ln_2, a->resid1, &w->ln_2, N);
    linear_backward_weight(&w->c_fc, t->wide, t->ln, N, accumulate);
    linear_backward_input(fp32(t->dy), t->wide, &w->c_fc, N);
    layernorm_backward(t->dx, t->dx, t->dy, a->resid1, a->ln_2, &w->ln_2, N, accumulate);
}

// The key bias has no gradient: softmax ignores a constant added to every score. The sum is nothing but
// rounding errors, which Adam would amplify.
static void clear_key_bias_gradient(const Block *w) {
    const int C = w->ln_1.C;
    if (w->in_proj.dbias) memset(w->in_proj.dbias + C, 0, (size_t)C * sizeof(float));
}

// t->dx is the gradient of the block's output (R,C) on entry, that of its input (R,C) on return. t->ln
// becomes the gradient of attention's output, t->wide that of qkv.
static void block_backward(
    const BlockActivations *a, const Block *w, const Sequences *s, Scratch *t, bool accumulate) {
    mlp_backward(a, w, t, s->R, accumulate);
    const Operand dout = to_operand(w->out_proj.kernels, t->dout, t->dx, (size_t)s->R * w->ln_1.C);
    linear_backward_weight(&w->out_proj, dout, a->attention, s->R, accumulate);
    linear_backward_input(t->ln, dout, &w->out_proj, s->R);
    attention_backward(t->wide, t->ln, a->qkv, s, &w->attention, false);
    layernorm_forward(t->ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_backward_weight(&w->in_proj, t->wide, t->ln, s->R, accumulate);
    linear_backward_input(fp32(t->dy), t->wide, &w->in_proj, s->R);
    clear_key_bias_gradient(w);
    layernorm_backward(t->dx, t->dx, t->dy, a->x, a->ln_1, &w->ln_1, s->R, accumulate);
}

// ---------------------------------------------------------------- the last block: pooled rows only

// out (B,C) = the pooled rows of x (R,C; ld)
static void gather_rows(Operand out, Operand x, size_t ld, const Sequences *s, int C) {
    const size_t bytes = (size_t)C * operand_bytes(x.bf16);
    for (int b = 0; b < s->B; b++)
        memcpy(operand_at(out, (size_t)b * C).p, operand_at(x, (size_t)s->pooled_row[b] * ld).p, bytes);
}

// The pooled rows of out (R,C; ld) = x (B,C)
static void scatter_rows(Operand out, size_t ld, Operand x, const Sequences *s, int C) {
    const size_t bytes = (size_t)C * operand_bytes(x.bf16);
    for (int b = 0; b < s->B; b++)
        memcpy(operand_at(out, (size_t)s->pooled_row[b] * ld).p, operand_at(x, (size_t)b * C).p, bytes);
}

// in_proj in two parts: queries, needed for the pooled rows only; keys and values, needed for all rows
static Linear query_part(const Block *w) { return linear_part(&w->in_proj, 0, w->ln_1.C, (size_t)w->ln_1.C); }
static Linear key_value_part(const Block *w) {
    return linear_part(&w->in_proj, w->ln_1.C, 2 * w->ln_1.C, 3 * (size_t)w->ln_1.C);
}

// block_forward() for the pooled rows only: out (B,C). Attention needs the keys and values of all rows, so
// ln_1 is computed for all of them; everything else is computed for the pooled rows, the only ones used after
// the block.
static void block_forward_pooled(
    float *out, BlockActivations *a, const Block *w, const Sequences *s, Scratch *t) {
    const int C = w->ln_1.C;
    const Linear query = query_part(w), key_value = key_value_part(w);
    layernorm_forward(t->ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_forward(operand_at(a->qkv, (size_t)C), t->ln, &key_value, s->R);
    gather_rows(t->pooled_a, t->ln, (size_t)C, s, C);
    linear_forward(t->pooled_b, t->pooled_a, &query, s->B);
    scatter_rows(a->qkv, 3 * (size_t)C, t->pooled_b, s, C);
    attention_forward(a->attention, a->qkv, s, &w->attention, true);
    gather_rows(fp32(t->pooled_x), fp32(a->x), (size_t)C, s, C);
    linear_residual_forward(a->resid1, a->attention, &w->out_proj, t->pooled_x, s->B);
    mlp_forward(out, a, w, t, s->B);
}

// Expands t->dx from the pooled rows (B,C) to all rows (R,C); the other rows are zero. t->pooled_x is
// scratch.
static void spread_pooled_gradient(Scratch *t, const Sequences *s, int C) {
    memcpy(t->pooled_x, t->dx, (size_t)s->B * C * sizeof(float));
    memset(t->dx, 0, (size_t)s->R * C * sizeof(float));
    scatter_rows(fp32(t->dx), (size_t)C, fp32(t->pooled_x), s, C);
}

// The pooled rows of dy (R,C) += dz (B,C)
static void add_to_pooled_rows(float *dy, const float *dz, const Sequences *s, int C) {
    for (int b = 0; b < s->B; b++)
        for (int c = 0; c < C; c++) dy[(size_t)s->pooled_row[b] * C + c] += dz[(size_t)b * C + c];
}

// block_backward() after block_forward_pooled(). t->dx: (B,C) on entry, (R,C) on return
static void block_backward_pooled(
    const BlockActivations *a, const Block *w, const Sequences *s, Scratch *t, bool accumulate) {
    const int C = w->ln_1.C;
    const Linear query = query_part(w), key_value = key_value_part(w);
    const Operand dkv = operand_at(t->wide, (size_t)C);
    mlp_backward(a, w, t, s->B, accumulate);
    const Operand dout = to_operand(w->out_proj.kernels, t->dout, t->dx, (size_t)s->B * C);
    linear_backward_weight(&w->out_proj, dout, a->attention, s->B, accumulate);
    linear_backward_input(t->ln, dout, &w->out_proj, s->B);
    attention_backward(t->wide, t->ln, a->qkv, s, &w->attention, true);
    layernorm_forward(t->ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_backward_weight(&key_value, dkv, t->ln, s->R, accumulate);
    linear_backward_input(fp32(t->dy), dkv, &key_value, s->R);
    gather_rows(t->pooled_b, t->wide, 3 * (size_t)C, s, C);
    gather_rows(t->pooled_a, t->ln, (size_t)C, s, C);
    linear_backward_weight(&query, t->pooled_b, t->pooled_a, s->B, accumulate);
    linear_backward_input(fp32(t->dz), t->pooled_b, &query, s->B);
    add_to_pooled_rows(t->dy, t->dz, s, C);
    spread_pooled_gradient(t, s, C);
    clear_key_bias_gradient(w);
    layernorm_backward(t->dx, t->dx, t->dy, a->x, a->ln_1, &w->ln_1, s->R, accumulate);
}

// ---------------------------------------------------------------- embeddings

typedef struct {
    Linear conv1;                                            // image tower: patches (N,3*P*P) to (N,C)
    const float *class_embedding, *token_embedding;          // (C) image tower; (V,C) text tower
    const float *positions;                                  // (T,C)
    float *dclass_embedding, *dtoken_embedding, *dpositions; // gradients; NULL when frozen
} Embedding;

// For each channel and value of a pixel's byte, the normalised number: (x / 255 - mean) / std in fp32, as
// torchvision computes it.
typedef struct {
    float fp32[3][256];
    uint16_t bf16[3][256]; // the same rounded
} PixelTable;

static PixelTable pixel_table(const ClipConfig *c) {
    const float mean[3] = {c->mean_r, c->mean_g, c->mean_b}, std[3] = {c->std_r, c->std_g, c->std_b};
    PixelTable t;
    for (int channel = 0; channel < 3; channel++)
        for (int v = 0; v < 256; v++) {
            t.fp32[channel][v] = ((float)v / 255.0f - mean[channel]) / std[channel];
            t.bf16[channel][v] = float_to_bf16(t.fp32[channel][v]);
        }
    return t;
}

// to (n) = the n normalised pixels of a channel from index `at` of the batch on
static void copy_pixels(
    Operand to, const ClipBatch *batch, const PixelTable *t, int channel, size_t at, int n) {
    float *x = to.p;
    uint16_t *x_bf16 = to.p;
    if (batch->images && to.bf16)
        for (int i = 0; i < n; i++) x_bf16[i] = float_to_bf16(batch->images[at + i]);
    else if (batch->images) memcpy(x, batch->images + at, (size_t)n * sizeof *x);
    else if (to.bf16)
        for (int i = 0; i < n; i++) x_bf16[i] = t->bf16[channel][batch->pixels[at + i]];
    else
        for (int i = 0; i < n; i++) x[i] = t->fp32[channel][batch->pixels[at + i]];
}

// patches (B*N, 3*P*P): the pixels of each patch, in the order of conv1's weights. A convolution whose stride
// is its kernel size is a matrix product with them.
static void patches_from_images(Operand patches, const ClipBatch *batch, const ClipConfig *c) {
    const int G = config_grid(c), P = c->patch_size, S = c->image_size, N = batch_patches(batch, c);
    const PixelTable table = pixel_table(c);
#pragma omp parallel for schedule(static)
    for (int row = 0; row < batch->size * N; row++) {
        const int b = row / N, patch = batch_patch(batch, b, row % N), gy = patch / G, gx = patch % G;
        for (int i = 0; i < 3 * P; i++) { // a line of pixels in one channel
            const int channel = i / P, y = i % P;
            const size_t at = (((size_t)b * 3 + channel) * S + (size_t)gy * P + y) * S + (size_t)gx * P;
            copy_pixels(operand_at(patches, ((size_t)row * 3 * P + i) * P), batch, &table, channel, at, P);
        }
    }
}

// (B,N): the index in its image of each patch that is computed; free() it
static int *patch_list(const ClipBatch *batch, int N) {
    int *patch = malloc_check((size_t)batch->size * N * sizeof *patch);
    for (int i = 0; i < batch->size * N; i++) patch[i] = batch_patch(batch, i / N, i % N);
    return patch;
}

// image_embedding_forward_plain: x (B*(N+1),C) is the class token, then the patches, all with their position
// added; embedded (B*N,C) is conv1's output
static void image_embedding_forward(float *x, float *embedded, Operand patches, const ClipBatch *batch,
    const Embedding *w, const ClipConfig *c) {
    const int C = c->image_width, N = batch_patches(batch, c), B = batch->size;
    patches_from_images(patches, batch, c);
    linear_forward(fp32(embedded), patches, &w->conv1, B * N);
    if (w->conv1.kernels->plain) {
        int *patch = patch_list(batch, N);
        image_embedding_forward_plain(x, embedded, w->class_embedding, w->positions, patch, B, N, C);
        free(patch);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int row = 0; row < B * (N + 1); row++) {
        const int b = row / (N + 1), t = row % (N + 1);
        const float *token = t ? embedded + ((size_t)b * N + t - 1) * C : w->class_embedding;
        const float *position = w->positions + (t ? 1 + (size_t)batch_patch(batch, b, t - 1) : 0) * (size_t)C;
        for (int i = 0; i < C; i++) x[(size_t)row * C + i] = token[i] + position[i];
    }
}

enum { EMBEDDING_COLUMNS = 64 }; // of gradients: one thread adds all rows of these, in order

// d (rows,n; C) (+)= sum (rows,n; EMBEDDING_COLUMNS)
static void embedding_add(float *d, const float *sum, int rows, int C, int n, bool accumulate) {
    for (int r = 0; r < rows; r++, d += C, sum += EMBEDDING_COLUMNS)
        for (int i = 0; i < n; i++) d[i] = sum[i] + (accumulate ? d[i] : 0);
}

// image_embedding_backward_plain, from dx (B*(N+1),C). patches and dembedded are scratch.
static void image_embedding_backward(const Embedding *w, const float *dx, float *dembedded, Operand patches,
    const ClipBatch *batch, const ClipConfig *c, bool accumulate) {
    const int C = c->image_width, N = batch_patches(batch, c), T = config_image_tokens(c), B = batch->size;
    const Kernels *k = w->conv1.kernels;
    const Operand dout = operand(dembedded, patches.bf16);
    patches_from_images(patches, batch, c);
    if (k->plain) {
        int *patch = patch_list(batch, N);
        image_embedding_backward_plain(
            dembedded, w->dclass_embedding, w->dpositions, dx, patch, B, N, T, C, accumulate);
        free(patch);
        linear_backward_weight(&w->conv1, dout, patches, B * N, accumulate);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < C; i0 += EMBEDDING_COLUMNS) {
        const int n = min_int(EMBEDDING_COLUMNS, C - i0);
        float *sum = calloc_check((size_t)T * EMBEDDING_COLUMNS, sizeof *sum);
        for (int row = 0; row < B * (N + 1); row++) {
            const int b = row / (N + 1), t = row % (N + 1);
            const float *from = dx + (size_t)row * C + i0;
            const size_t position = t ? 1 + (size_t)batch_patch(batch, b, t - 1) : 0;
            for (int i = 0; i < n; i++) sum[position * EMBEDDING_COLUMNS + i] += from[i];
            if (t) head_store(k, operand_at(dout, ((size_t)b * N + t - 1) * C + i0), 0, from, 1, n);
        }
        embedding_add(w->dpositions + i0, sum, T, C, n, accumulate);
        free(sum);
    }
    // row 0 of each image
    bias_backward(w->dclass_embedding, fp32(dx), (size_t)(N + 1) * C, B, C, accumulate);
    linear_backward_weight(&w->conv1, dout, patches, B * N, accumulate);
}

// text_embedding_forward_plain: x (R,C) = token embedding + position, up to each caption's end of text
static void text_embedding_forward(
    float *x, const ClipBatch *batch, const Sequences *s, const Embedding *w, const ClipConfig *c) {
    const int C = c->text_width, T = c->context_length;
    assert(batch_tokens_are_known(batch, c));
    if (w->conv1.kernels->plain) {
        text_embedding_forward_plain(
            x, batch->tokens, s->start, w->token_embedding, w->positions, s->B, T, C);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int b = 0; b < s->B; b++)
        for (int t = 0; t < s->start[b + 1] - s->start[b]; t++) {
            const int id = batch->tokens[(size_t)b * T + t];
            const float *token = w->token_embedding + (size_t)id * C,
                        *position = w->positions + (size_t)t * C;
            float *row = x + (size_t)(s->start[b] + t) * C;
            for (int i = 0; i < C; i++) row[i] = token[i] + position[i];
        }
}

// With `clear`, zeroes the gradients of the used tokens, which are few of V, and forgets these tokens. Then
// marks those of this batch as used (V).
static void text_embedding_clear(float *dtoken_embedding, bool *used, const ClipBatch *batch,
    const Sequences *s, const ClipConfig *c, bool clear) {
    const size_t C = (size_t)c->text_width;
    for (int v = 0; v < c->vocab_size && clear; v++) {
        if (used[v]) memset(dtoken_embedding + (size_t)v * C, 0, C * sizeof(float));
        used[v] = false;
    }
    for (int b = 0; b < s->B; b++)
        for (int t = 0; t < s->start[b + 1] - s->start[b]; t++)
            used[batch->tokens[(size_t)b * c->context_length + t]] = true;
}

// text_embedding_backward_plain, from dx (R,C). used (V): the tokens whose gradient is not zero.
static void text_embedding_backward(const Embedding *w, bool *used, const float *dx, const ClipBatch *batch,
    const Sequences *s, const ClipConfig *c, bool accumulate) {
    const int C = c->text_width, T = c->context_length;
    if (w->conv1.kernels->plain) {
        text_embedding_backward_plain(w->dtoken_embedding, w->dpositions, dx, batch->tokens, s->start, s->B,
            c->vocab_size, T, C, accumulate);
        return;
    }
    text_embedding_clear(w->dtoken_embedding, used, batch, s, c, !accumulate);
    int *token = malloc_check(2 * (size_t)s->R * sizeof *token), *slot = token + s->R;
    const int count = tokens_of_batch(token, slot, batch, s, c);
#pragma omp parallel for schedule(static)
    for (int i0 = 0; i0 < C; i0 += EMBEDDING_COLUMNS) {
        const int n = min_int(EMBEDDING_COLUMNS, C - i0);
        float *sum = calloc_check((size_t)(count + T) * EMBEDDING_COLUMNS, sizeof *sum);
        float *position_sum = sum + (size_t)count * EMBEDDING_COLUMNS;
        for (int b = 0; b < s->B; b++)
            for (int row = s->start[b]; row < s->start[b + 1]; row++) {
                const float *from = dx + (size_t)row * C + i0;
                float *token_sum = sum + (size_t)slot[row] * EMBEDDING_COLUMNS;
                float *position = position_sum + (size_t)(row - s->start[b]) * EMBEDDING_COLUMNS;
                for (int i = 0; i < n; i++) {
                    token_sum[i] += from[i];
                    position[i] += from[i];
                }
            }
        for (int v = 0; v < count; v++)
            embedding_add(w->dtoken_embedding + (size_t)token[v] * C + i0,
                sum + (size_t)v * EMBEDDING_COLUMNS, 1, C, n, accumulate);
        embedding_add(w->dpositions + i0, position_sum, T, C, n, accumulate);
        free(sum);
    }
    free(token);
}

// ---------------------------------------------------------------- L2 normalisation

// normalize_forward_plain: out (B,E) = x / |x|; norm (B) is saved
static void normalize_forward(float *out, float *norm, const float *x, int B, int E) {
    for (int b = 0; b < B; b++) {
        const float *row = x + (size_t)b * E;
        double sum = 0;
        for (int i = 0; i < E; i++) sum += (double)row[i] * row[i];
        norm[b] = (float)fmax(sqrt(sum), 1e-12); // torch.nn.functional.normalize's eps
        for (int i = 0; i < E; i++) out[(size_t)b * E + i] = row[i] / norm[b];
    }
}

// normalize_backward_plain: dx = (dout - out (out · dout)) / |x|
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
    Embedding embedding;
    LayerNorm ln_pre;   // gain NULL: there is none (text tower)
    Block *blocks;      // (L)
    LayerNorm ln_final; // ln_post of the image tower
    const float *proj;  // (C,E)
    float *dproj;       // NULL when frozen
} TowerWeights;

struct Backend {
    const Kernels *kernels;
    bool bf16;             // operands of the towers' products: --precision amp_bf16
    float *params, *grads; // arenas, laid out by clip->tensors
    Slices slices;         // which process updates what
    float *m, *v;          // of this process's slice of the gradients
    float *ema;            // moving average of the weights likewise; or NULL
    TensorPointers w, g;
    Panels forward, backward; // weights packed for products
    bool panels_stale;        // `params` has changed since they were packed
    TowerWeights weights[2];  // each layer's pointers to all of these
    TowerActivations tower[2];
    int pairs;           // rows of features, of all processes
    int batch;           // pairs of a micro-batch
    float *features[2];  // (pairs,E), L2-normalised
    float *dfeatures[2]; // (pairs,E)
    bool *used_tokens;   // (V) is the token's gradient not zero?
    bool grad_checkpointing;
    bool accumulate; // the gradients hold earlier micro-batches of the step
};

static Linear linear_bind(const Backend *b, const float *weight, const float *bias, float *dweight,
    float *dbias, const float *forward, const float *backward, int C, int O) {
    const Linear w = {.weight = weight,
        .bias = bias,
        .dweight = dweight,
        .dbias = dbias,
        .forward = (const uint32_t *)forward,
        .backward = (const uint32_t *)backward,
        .forward_pitch = panel_pitch(b->kernels, C, b->bf16),
        .backward_pitch = panel_pitch(b->kernels, O, b->bf16),
        .C = C,
        .O = O,
        .ld = (size_t)O,
        .bf16 = b->bf16,
        .kernels = b->kernels};
    return w;
}

static LayerNorm layernorm_bind(
    const Backend *b, const float *gain, const float *bias, float *dgain, float *dbias, TowerShape d) {
    const LayerNorm w = {gain, bias, dgain, dbias, d.C, d.eps, b->kernels};
    return w;
}

#define BIND_LINEAR(name, C, O)                                                                            \
    linear_bind(b, w->name##_weight, w->name##_bias, g->name##_weight, g->name##_bias, fwd->name##_weight, \
        bwd->name##_weight, C, O)
#define BIND_LAYERNORM(name) \
    layernorm_bind(b, w->name##_weight, w->name##_bias, g->name##_weight, g->name##_bias, d)

static Block block_bind(const Backend *b, const BlockPointers *w, const BlockPointers *g,
    const BlockPointers *fwd, const BlockPointers *bwd, TowerShape d) {
    const Block block = {.ln_1 = BIND_LAYERNORM(ln_1),
        .in_proj = BIND_LINEAR(in_proj, d.C, 3 * d.C),
        .attention = {d.C, d.NH, d.causal, b->kernels},
        .out_proj = BIND_LINEAR(out_proj, d.C, d.C),
        .ln_2 = BIND_LAYERNORM(ln_2),
        .c_fc = BIND_LINEAR(c_fc, d.C, d.F),
        .c_proj = BIND_LINEAR(c_proj, d.F, d.C),
        .activation = d.activation};
    return block;
}

// Sets the pointers of all layers to weights, gradients and packed copies. Call it whenever one of these has
// been allocated anew.
static void towers_bind(Clip *clip) {
    static const BlockPointers none;
    const ClipConfig *c = &clip->config;
    Backend *b = clip->back;
    for (int tower = 0; tower < 2; tower++) {
        const TowerShape d = tower_shape(c, tower);
        const TowerPointers *w = &b->w.tower[tower], *g = &b->g.tower[tower];
        const TowerPointers *fwd = &b->forward.at.tower[tower], *bwd = &b->backward.at.tower[tower];
        TowerWeights *t = &b->weights[tower];
        t->embedding.conv1 = BIND_LINEAR(conv1, 3 * c->patch_size * c->patch_size, d.C);
        t->embedding.class_embedding = w->class_embedding;
        t->embedding.dclass_embedding = g->class_embedding;
        t->embedding.token_embedding = w->token_embedding;
        t->embedding.dtoken_embedding = g->token_embedding;
        t->embedding.positions = w->positional_embedding;
        t->embedding.dpositions = g->positional_embedding;
        t->ln_pre = BIND_LAYERNORM(ln_pre);
        t->ln_final = BIND_LAYERNORM(ln_final);
        t->proj = w->proj;
        t->dproj = g->proj;
        for (int l = 0; l < d.L; l++)
            t->blocks[l] = block_bind(b, &w->blocks[l], g->blocks ? &g->blocks[l] : &none,
                fwd->blocks ? &fwd->blocks[l] : &none, bwd->blocks ? &bwd->blocks[l] : &none, d);
    }
}

// Packs all weights again if they were written by anything but clip_update().
static void panels_refresh(Clip *clip) {
    Backend *b = clip->back;
    if (!b->panels_stale || !b->forward.arena) return;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!panels_hold(&b->forward, i)) continue;
        const int rows = tensor_rows(x);
#pragma omp parallel for schedule(dynamic)
        for (int o = 0; o < rows; o += PACK_ROWS) {
            const int end = min_int(o + PACK_ROWS, rows);
            panels_pack_rows(&b->forward, x, i, b->params + x->offset, o, end);
            panels_pack_rows(&b->backward, x, i, b->params + x->offset, o, end);
        }
    }
    b->panels_stale = false;
}

static LayoutSizes layout_sizes(const Clip *clip, size_t B, size_t R) {
    const LayoutSizes n = {B, R, clip->back->bf16, false};
    return n;
}

// Sets up the sequences of the batch and memory for their activations. backward: a backward pass follows.
static void tower_prepare(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    const ClipConfig *c = &clip->config;
    TowerActivations *t = &clip->back->tower[tower];
    const SavePolicy save = tower_save_policy(clip, tower, backward, clip->back->grad_checkpointing);
    assert(
        batch->size > 0 && (batch->pooled[tower] || tower == TEXT_TOWER || !batch->pixels != !batch->images));
    assert(tower == IMAGE_TOWER || batch->pooled[tower] || batch->tokens);
    sequences_of_batch(&t->seq, batch, tower, c);
    const LayoutSizes n = layout_sizes(clip, (size_t)t->seq.B, (size_t)t->seq.R);
    const size_t need = tower_layout(t, NULL, c, tower, save, n);
    if (need > t->capacity) {
        free(t->arena);
        t->arena = aligned_malloc_check(need);
        t->capacity = need;
    }
    guard_lift((float *)(void *)t->arena, t->capacity / sizeof(float));
    tower_layout(t, t->arena, c, tower, save, n);
    panels_refresh(clip);
}

static void tower_embedding_forward(Clip *clip, int tower, float *x, const ClipBatch *batch) {
    TowerActivations *t = &clip->back->tower[tower];
    const Embedding *w = &clip->back->weights[tower].embedding;
    if (tower == IMAGE_TOWER) image_embedding_forward(x, t->embedded, t->patches, batch, w, &clip->config);
    else text_embedding_forward(x, batch, &t->seq, w, &clip->config);
}

// Everything before the projection: t->pooled (B,C).
static void tower_pool(Clip *clip, int tower, const ClipBatch *batch) {
    TowerActivations *t = &clip->back->tower[tower];
    const TowerWeights *w = &clip->back->weights[tower];
    const int last = clip_tower_layers(&clip->config, tower) - 1;
    float *x = t->blocks[0].x;
    tower_embedding_forward(clip, tower, w->ln_pre.gain ? t->embedding : x, batch);
    if (w->ln_pre.gain) layernorm_forward(fp32(x), t->ln_pre, t->embedding, &w->ln_pre, t->seq.R);
    for (int l = 0; l < last; l++)
        block_forward(t->blocks[l + 1].x, &t->blocks[l], &w->blocks[l], &t->seq, &t->scratch);
    block_forward_pooled(t->last, &t->blocks[last], &w->blocks[last], &t->seq, &t->scratch);
    layernorm_forward(fp32(t->pooled), t->ln_final, t->last, &w->ln_final, t->seq.B);
}

// Encodes the batch into rows of `out` (B,E), L2-normalised. keep: saves the activations for tower_backward()
static void tower_forward(Clip *clip, int tower, float *out, const ClipBatch *batch, bool keep) {
    const TowerShape d = tower_shape(&clip->config, tower);
    const Backend *b = clip->back;
    const size_t C = (size_t)d.C, E = (size_t)d.E;
    tower_prepare(clip, tower, batch, keep);
    TowerActivations *t = &clip->back->tower[tower];
    if (batch->pooled[tower]) memcpy(t->pooled, batch->pooled[tower], (size_t)t->seq.B * C * sizeof(float));
    else tower_pool(clip, tower, batch);
    gemm(b->kernels, fp32(t->projected), E, matrix(t->pooled, C, 1), matrix(b->weights[tower].proj, E, 1),
        t->seq.B, d.E, d.C, epilogue_of(EPILOGUE_STORE, NULL));
    normalize_forward(out, t->norm, t->projected, t->seq.B, d.E);
}

// dproj (C,E) (+)= pooledᵀ dprojected;  dpooled (B,C) = dprojected projᵀ, NULL: not needed
static void projection_backward(const Kernels *k, float *dpooled, float *dproj, const float *dprojected,
    const float *pooled, const float *proj, int B, TowerShape d, bool accumulate) {
    const size_t C = (size_t)d.C, E = (size_t)d.E;
    gemm(k, fp32(dproj), E, matrix(pooled, 1, C), matrix(dprojected, E, 1), d.C, d.E, B,
        epilogue_of(accumulate ? EPILOGUE_ADD : EPILOGUE_STORE, NULL));
    if (dpooled)
        gemm(k, fp32(dpooled), C, matrix(dprojected, E, 1), matrix(proj, 1, E), B, d.C, d.E,
            epilogue_of(EPILOGUE_STORE, NULL));
}

// Backward pass of block l; with gradient checkpointing its activations are recomputed first.
static void tower_block_backward(Clip *clip, int tower, int l) {
    const Backend *b = clip->back;
    const Block *w = &b->weights[tower].blocks[l];
    TowerActivations *t = &clip->back->tower[tower];
    BlockActivations *a = &t->blocks[l];
    if (l == clip_tower_layers(&clip->config, tower) - 1) {
        if (b->grad_checkpointing) block_forward_pooled(NULL, a, w, &t->seq, &t->scratch);
        block_backward_pooled(a, w, &t->seq, &t->scratch, b->accumulate);
    } else {
        if (b->grad_checkpointing) block_forward(NULL, a, w, &t->seq, &t->scratch);
        block_backward(a, w, &t->seq, &t->scratch, b->accumulate);
    }
}

// Backward pass of embeddings and ln_pre; scratch.dx is the gradient of the first block's input.
static void tower_embedding_backward(Clip *clip, int tower, const ClipBatch *batch) {
    const Backend *b = clip->back;
    const ClipConfig *c = &clip->config;
    const TowerWeights *w = &b->weights[tower];
    const TowerActivations *t = &b->tower[tower];
    const Scratch *s = &t->scratch;
    const float *dembedding = w->ln_pre.gain ? s->dy : s->dx;
    if (w->ln_pre.gain)
        layernorm_backward(s->dy, NULL, s->dx, t->embedding, t->ln_pre, &w->ln_pre, t->seq.R, b->accumulate);
    if (tower == IMAGE_TOWER)
        image_embedding_backward(&w->embedding, dembedding, t->embedded, t->patches, batch, c, b->accumulate);
    else text_embedding_backward(&w->embedding, b->used_tokens, dembedding, batch, &t->seq, c, b->accumulate);
}

// Backward pass of a tower, from the gradient of the normalised features (B,E) down to the lowest group that
// trains.
static void tower_backward(
    Clip *clip, int tower, const float *dfeatures, const float *features, const ClipBatch *batch) {
    const int first = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    if (first > L + 1) return;
    const Backend *b = clip->back;
    const TowerWeights *w = &b->weights[tower];
    const TowerShape d = tower_shape(&clip->config, tower);
    TowerActivations *t = &clip->back->tower[tower];
    Scratch *s = &t->scratch;
    const int B = t->seq.B;
    float *dprojected = t->projected; // whose values are no longer needed
    normalize_backward(dprojected, dfeatures, features, t->norm, B, d.E);
    projection_backward(
        b->kernels, first > L ? NULL : s->dy, w->dproj, dprojected, t->pooled, w->proj, B, d, b->accumulate);
    if (first > L) return;
    layernorm_backward(s->dx, NULL, s->dy, t->last, t->ln_final, &w->ln_final, B, b->accumulate);
    for (int l = L - 1; l >= 0 && l + 1 >= first; l--) tower_block_backward(clip, tower, l);
    if (first == 0) tower_embedding_backward(clip, tower, batch);
}

// ---------------------------------------------------------------- the functions of clipc/model/clip.h

// A zeroed arena of either layout, with guards between the tensors.
static float *arena_create(const TensorTable *t, ArenaLayout layout) {
    const size_t floats = layout == GRADIENT_LAYOUT ? t->grad_floats : t->floats;
    float *arena = aligned_calloc_check(floats * sizeof(float));
    for (int i = 0; i < t->count; i++) {
        float *x = tensor_ptr(&t->list[i], arena, layout);
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
    b->params = arena_create(&clip->tensors, PARAMETER_LAYOUT);
    tensor_pointers_bind(&b->w, &clip->tensors, config, b->params, PARAMETER_LAYOUT);
    for (int tower = 0; tower < 2; tower++) {
        const size_t L = (size_t)clip_tower_layers(config, tower);
        b->tower[tower].blocks = calloc_check(L, sizeof(BlockActivations));
        b->weights[tower].blocks = calloc_check(L, sizeof(Block));
    }
    towers_bind(clip);
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
        TowerActivations *t = &b->tower[tower];
        free(b->weights[tower].blocks);
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
    slices_free(&b->slices);
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
    const Kernels *k = kernels_select();
    if (precision == PRECISION_FP32) return SUPPORT_NATIVE;
    if (precision == PRECISION_TF32 || k->plain) return SUPPORT_NONE;
    return k->native_bf16 ? SUPPORT_NATIVE : SUPPORT_SLOW;
}

// The choice is handed on as CLIPC_ISA, where kernels_select() finds it.
Precision clip_choose_fastest(Precision wanted) {
    if (kernels_select()->plain) return PRECISION_FP32;
    const KernelPath path = kernels_fastest(wanted == PRECISIONS ? -1 : wanted == PRECISION_AMP_BF16);
    char name[16]; // processes take what the first one found
    bool bf16 = path.bf16;
    snprintf(name, sizeof name, "%s", path.kernels->name);
    comm_broadcast(name, sizeof name, 0);
    comm_broadcast(&bf16, sizeof bf16, 0);
    setenv("CLIPC_ISA", name, true);
    return bf16 ? PRECISION_AMP_BF16 : PRECISION_FP32;
}

void clip_keep_kernels(const char *name) {
    const Kernels *list[KERNELS_MOST];
    for (int i = kernels_list(list) - 1; i >= 0; i--)
        if (strcmp(list[i]->name, name) == 0) setenv("CLIPC_ISA", name, false);
}

// Allocates packed weights, which panels_refresh() fills. The plain loops use none.
static void panels_replace(
    Clip *clip, Panels *p, bool backward, int first_image_group, int first_text_group) {
    const Backend *b = clip->back;
    const int first[2] = {first_image_group, first_text_group};
    panels_free(p);
    if (!b->kernels->plain) panels_create(p, b->kernels, &clip->config, b->bf16, backward, first);
    clip->back->panels_stale = true;
}

void clip_set_precision(Clip *clip, Precision precision) {
    assert(clip_precision_support(precision) != SUPPORT_NONE);
    clip->back->kernels = kernels_select();
    clip->back->bf16 = precision == PRECISION_AMP_BF16;
    panels_replace(clip, &clip->back->forward, false, 0, 0);
    panels_free(&clip->back->backward);
    towers_bind(clip);
}

Precision clip_precision(const Clip *clip) { return clip->back->bf16 ? PRECISION_AMP_BF16 : PRECISION_FP32; }

void clip_start_training(Clip *clip, const ClipTraining *how) {
    Backend *b = clip->back;
    float **moments[] = {&b->m, &b->v, &b->ema};
    assert(how->pairs > 0);
    free(b->grads);
    b->grads = arena_create(&clip->tensors, GRADIENT_LAYOUT);
    free(b->used_tokens);
    b->used_tokens = calloc_check((size_t)clip->config.vocab_size, sizeof(bool));
    tensor_pointers_bind(&b->g, &clip->tensors, &clip->config, b->grads, GRADIENT_LAYOUT);
    if (b->forward.arena)
        panels_replace(clip, &b->backward, true, first_trainable_group(clip, IMAGE_TOWER),
            first_trainable_group(clip, TEXT_TOWER));
    towers_bind(clip);
    slices_free(&b->slices);
    b->slices = slices_create(&clip->tensors, &b->forward);
    for (int i = 0; i < 3; i++) {
        free(*moments[i]);
        *moments[i] =
            i < 2 || how->ema ? aligned_calloc_check(slices_length(&b->slices) * sizeof(float)) : NULL;
    }
    for (int i = 0; how->ema && i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->trainable) slices_write(&b->slices, b->ema, x, b->params + x->offset);
    }
    b->pairs = how->pairs;
    b->grad_checkpointing = how->grad_checkpointing;
    b->accumulate = false;
    const size_t bytes = (size_t)how->pairs * (size_t)clip->config.embed_dim * sizeof(float);
    for (int tower = 0; tower < 2; tower++) {
        free(b->features[tower]);
        free(b->dfeatures[tower]);
        b->features[tower] = aligned_malloc_check(bytes);
        b->dfeatures[tower] = aligned_malloc_check(bytes);
    }
}

void clip_memory(
    const Clip *clip, int batch_size, size_t *parameters, size_t *training, size_t *activations) {
    const ClipConfig *c = &clip->config;
    const Backend *b = clip->back;
    const size_t packed = b->forward.table.grad_floats + b->backward.table.grad_floats,
                 B = (size_t)batch_size;
    *parameters = (clip->tensors.floats + packed) * sizeof(float);
    *training = (clip->tensors.grad_floats + (b->ema ? 3 : 2) * slices_length(&b->slices)) * sizeof(float);
    *activations = 4 * (size_t)b->pairs * (size_t)c->embed_dim * sizeof(float); // features, their gradients
    for (int tower = 0; tower < 2; tower++) {
        const int T = tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length;
        const SavePolicy save = tower_save_policy(clip, tower, true, b->grad_checkpointing);
        *activations += tower_bytes(c, tower, save, layout_sizes(clip, B, B * (size_t)T));
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
    assert(first_row >= 0 && first_row + batch->size <= clip->back->pairs);
    clip->back->batch = batch->size;
    for (int tower = 0; tower < 2; tower++)
        tower_forward(clip, tower, clip->back->features[tower] + (size_t)first_row * clip->config.embed_dim,
            batch, keep);
}

double clip_loss(Clip *clip, int pairs, const uint64_t *keys, Positives positives, bool gradient) {
    Backend *b = clip->back;
    assert(pairs > 0 && pairs <= b->pairs);
    const int E = clip->config.embed_dim;
    double dlogit_scale = 0;
    for (int tower = 0; tower < 2; tower++)
        comm_gather_blocks(b->features[tower], (size_t)E * sizeof(float), b->batch, pairs);
    const double loss = contrastive_loss(b->kernels, gradient ? b->dfeatures[0] : NULL,
        gradient ? b->dfeatures[1] : NULL, &dlogit_scale, b->features[0], b->features[1], keys, positives,
        pairs, E, clip_logit_scale(clip), b->batch);
    if (gradient && b->g.logit_scale) // =, not +=: the loss covers the whole step, and all processes
        *b->g.logit_scale = comm_rank() == 0 ? (float)dlogit_scale : 0;
    return loss;
}

void clip_backward(Clip *clip, const ClipBatch *batch, int first_row) {
    Backend *b = clip->back;
    assert(first_row >= 0 && first_row + batch->size <= b->pairs && batch->size == b->tower[0].seq.B);
    const size_t row = (size_t)first_row * (size_t)clip->config.embed_dim;
    for (int tower = 0; tower < 2; tower++)
        tower_backward(clip, tower, b->dfeatures[tower] + row, b->features[tower] + row, batch);
    b->accumulate = true;
}

// ---------------------------------------------------------------- AdamW

// The sum of squares of all gradients.
static double gradient_squares(const Clip *clip) {
    const Backend *b = clip->back;
    const Slices *s = &b->slices;
    const size_t *own = &s->first[comm_rank()];
    double *sums = malloc_check(s->count * sizeof(double));
#pragma omp parallel for schedule(static)
    for (size_t c = own[0]; c < own[1]; c++) {
        const UpdateChunk *u = &s->chunks[c];
        const size_t at = clip->tensors.list[u->tensor].grad_offset + u->at;
        sums[c] = b->kernels->sum_squares(b->grads + at, u->n);
    }
    const double total = slices_total(s, sums);
    free(sums);
    return total;
}

// adamw_plain: one step on the n numbers of tensor x from `at` on
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g²,  g the gradient times `scale` (clipping)
//   p = p - lr weight_decay p - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
static void adamw_update(Backend *b, const Tensor *x, size_t at, size_t n, const AdamW *a, double scale) {
    float *p = b->params + x->offset + at, *g = b->grads + x->grad_offset + at;
    const size_t own = x->grad_offset + at - slices_begin(&b->slices);
    float *m = b->m + own, *v = b->v + own;
    if (b->kernels->plain)
        adamw_plain(p, g, m, v, n, scale, a->lr * x->lr_scale, a->beta1, a->beta2, a->eps,
            x->decay ? a->weight_decay : 0, a->step);
    else b->kernels->adamw(p, g, m, v, (int)n, adamw_terms(a, x, scale));
    if (x->tower == NO_TOWER)
        *p = *p < 0 ? 0 : *p > (float)LOGIT_SCALE_MAX ? (float)LOGIT_SCALE_MAX : *p; // NaN stays
    if (b->ema) b->kernels->moving_average(b->ema + own, p, (int)n, (float)a->ema_decay);
}

// The packed copies of a chunk that was updated.
static void chunk_pack(Clip *clip, const UpdateChunk *u) {
    Backend *b = clip->back;
    const Tensor *x = &clip->tensors.list[u->tensor];
    const size_t C = (size_t)tensor_columns(x);
    const float *w = b->params + x->offset;
    panels_pack_rows(&b->forward, x, u->tensor, w, (int)(u->at / C), (int)((u->at + u->n) / C));
    panels_pack_rows(&b->backward, x, u->tensor, w, (int)(u->at / C), (int)((u->at + u->n) / C));
}

// Gives the weights of this process's slice to all others, by way of the gradients.
static void weights_hand_out(Clip *clip) {
    Backend *b = clip->back;
    const Slices *s = &b->slices;
    if (comm_size() == 1) return;
    slices_hand_out(s, &clip->tensors, b->params, b->grads);
#pragma omp parallel for schedule(static)
    for (size_t c = 0; c < s->count; c++)
        if (!slices_own(s, c)) chunk_pack(clip, &s->chunks[c]);
    memset(b->used_tokens, true, (size_t)clip->config.vocab_size); // their rows hold no gradients now
}

// While a chunk is in the cache, its moving average and packed copies are updated as well.
double clip_update(Clip *clip, const AdamW *a) {
    Backend *b = clip->back;
    const Slices *s = &b->slices;
    const size_t *first = &s->first[comm_rank()];
    assert(b->grads && a->step > 0);
    comm_sum_slices(b->grads, s->cut);
    const double norm = sqrt(gradient_squares(clip));
    const double scale = a->grad_clip_norm > 0 ? fmin(1, a->grad_clip_norm / (norm + 1e-6)) : 1;
    b->accumulate = false;
    if (!isfinite(norm)) return norm;
#pragma omp parallel for schedule(static)
    for (size_t c = first[0]; c < first[1]; c++) {
        const UpdateChunk *u = &s->chunks[c];
        adamw_update(b, &clip->tensors.list[u->tensor], u->at, u->n, a, scale);
        chunk_pack(clip, u);
    }
    weights_hand_out(clip);
    return norm;
}

bool clip_has_ema(const Clip *clip) { return clip->back->ema != NULL; }

void clip_swap_ema(Clip *clip) {
    Backend *b = clip->back;
    if (!b->ema) return;
    slices_swap(&b->slices, &clip->tensors, b->params, b->ema);
    weights_hand_out(clip);
    b->panels_stale = true;
}

float clip_logit_scale(const Clip *clip) { return expf(*clip->back->w.logit_scale); }

static float *tensor_place(const Clip *clip, ClipArena arena, const Tensor *x) {
    return arena == ARENA_PARAMETERS ? clip->back->params + x->offset : clip->back->grads + x->grad_offset;
}

void clip_read(const Clip *clip, ClipArena arena, const Tensor *x, float *values) {
    const Backend *b = clip->back;
    const float *moments[] = {b->m, b->v, b->ema};
    if (arena >= ARENA_M) slices_read(&b->slices, moments[arena - ARENA_M], x, values);
    else memcpy(values, tensor_place(clip, arena, x), x->count * sizeof(float));
}
void clip_write(Clip *clip, ClipArena arena, const Tensor *x, const float *values) {
    Backend *b = clip->back;
    float *moments[] = {b->m, b->v, b->ema};
    if (arena >= ARENA_M) slices_write(&b->slices, moments[arena - ARENA_M], x, values);
    else memcpy(tensor_place(clip, arena, x), values, x->count * sizeof(float));
    if (arena == ARENA_PARAMETERS) b->panels_stale = true;
}

const char *clip_kernels(const Clip *clip) { return clip->back->kernels->products[clip->back->bf16].isa; }

// ---------------------------------------------------------------- the recipe
//
// First a model is opened, and parts of it may be locked; the training, validation and zero-shot samples are
// listed; a folder for the log and the checkpoints is made. Then, step by step:
//     batch      k micro-batches of B image-caption pairs, decoded and tokenized by other threads
//     forward    both towers encode them: k*B image features and k*B text features, L2-normalised
//     loss       the contrastive loss compares each image with each caption of the step
//     backward   from the gradients of the features through both towers to those of the weights
//     update     AdamW, at the rate that the schedule has for this step
//     log, evaluate, save    the last two only when they are due
// The functions are in clipc/train/training.h unless a comment names another file.

// One optimizer step; returns the loss before the update, and in *norm the L2 norm of the gradients. The loss
// is over all k*B pairs at once, so accumulation is exact. With k > 1 the first pass keeps only the features;
// once their gradients are known, each micro-batch is encoded again, now with the activations that its
// backward pass needs.
static inline double train_step(Clip *clip, const StepBatch *step, const AdamW *adamw, double *norm) {
    const int k = step->k;
    for (int j = 0; j < k; j++) clip_forward(clip, &step->micro[j], step_row(step, j), k == 1);
    const double loss = clip_loss(clip, step_pairs(step), step->keys, step->positives, true);
    for (int j = 0; j < k; j++) {
        if (k > 1) clip_forward(clip, &step->micro[j], step_row(step, j), true);
        clip_backward(clip, &step->micro[j], step_row(step, j));
    }
    *norm = clip_update(clip, adamw); // nothing is updated where it is not finite
    return loss;
}

#ifndef CLIP_WITHOUT_MAIN
#include "clipc/train/other_uses.h"

// Fine-tunes. Returns the exit code.
static int train(Options *o) {
    static Training t; // 100 KB, nearly half of a small stack
    double norm;
    train_open_model(&t, o);        // from weights, or from a checkpoint
    model_lock(t.clip, o);          // clipc/model/open_model.h
    model_set_precision(t.clip, o); // the same
    train_open_data(&t);
    train_open_folder(&t);
    model_start_training(t.clip, o);                                // clipc/train/setup.h
    if (!train_find_rate(&t, train_step)) return train_abandon(&t); // --lr auto
    train_write_settings(&t);
    if (o->resume) train_restore(&t);
    train_start(&t);
    while (train_goes_on(&t)) {
        if (!train_next_batch(&t)) break; // Ctrl-C while it waited for data
        const AdamW adamw = train_adamw(&t);
        const double logit_scale = clip_logit_scale(t.clip);
        const double loss = train_step(t.clip, &t.loader.batch, &adamw, &norm); // above
        train_log(&t, loss, norm, adamw.lr, logit_scale);
        const bool epoch_ends = train_epoch_ends(&t) || train_ends(&t);
        if (epoch_ends) train_end_epoch(&t);
        train_evaluate(&t);
        train_save(&t);
        if (epoch_ends && train_goes_on(&t)) train_draw(&t);
    }
    return train_end(&t);
}

int main(int argc, char **argv) {
    Options o;
    int code;
    program_begin();
    json_begin();
    strategies_help(argc, argv);
    command_line_read(&o, argc, argv); // clipc/train/setup.h
    if (o.schema) code = program_end(schema_print(stdout));
    else if (o.print_schedule) code = print_schedule_main(&o);
    else if (o.classify.count) code = classify_main(&o);
    else if (o.check_data) code = check_data_main(&o);
    else if (o.eval_only) code = evaluate_main(&o);
    else code = train(&o);
    options_free(&o);
    return code;
}
#endif
