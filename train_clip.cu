// clip.c: CLIP (Radford et al. 2021) fine-tuned on a GPU, in CUDA: train_clip.c with the same layers under
// the same names, in the same order. In this file: every layer forward and backward, the two towers, AdamW,
// and the training recipe.
//
//     ./train_clipcu --pretrained W.bin --train-data images.csv        fine-tunes
//     ./train_clipcu --help
//
// Real is the type of activations and of the operands of matrix products: float, or bf16 with --precision
// amp_bf16. Weights, their gradients, m and v, the statistics of LayerNorm and softmax, features and the loss
// are fp32 in both; for products in bf16, AdamW writes a copy of the weights.
//
// Sequences are packed as on a CPU: a batch is R rows of C channels, the tokens of one sequence after those
// of the other; the last block computes the pooled row of each sequence only. No sum depends on the order in
// which threads run: the same seed gives the same bits.
//
// B batch, T tokens, R rows (all tokens of a batch), C channels, NH heads, HS head size, F hidden width of
// the MLP, L layers, V vocabulary, E embedding, P patch size, S image size. Outputs first, gradients begin
// with d, sizes last. clipc/math/plain.h has every layer as a plain loop.

#include "clipc/base/utils.h"         // die, malloc_check
#include "clipc/math/gpu.h"           // Gpu, Feed, LAUNCH, load, store, warp_sum
#include "clipc/math/gpu_attention.h" // attention_forward_kernel, attention_backward_kernel
#include "clipc/math/gpu_kernels.h"   // layernorm_forward_kernel and so on
#include "clipc/math/gpu_matmul.h"    // matmul, bf16
#include "clipc/model/activations.h"  // Sequences, TowerShape, TowerActivations, SavePolicy, tensors_init
#include "clipc/model/clip.h"         // Clip, ClipBatch, AdamW, the functions implemented here

// An array that is fp32 or bf16, by precision, as what it is.
template <typename Real> static inline Real *as(Operand x) {
    assert((!x.p || x.bf16 == (sizeof(Real) == 2)) && "an array of the other type");
    return (Real *)x.p;
}

// ---------------------------------------------------------------- linear layer

// out = x weightᵀ + bias. Bound once to its places in the arenas, see towers_bind().
typedef struct {
    const float *weight, *bias; // (O,C), (O) or NULL
    float *dweight, *dbias;     // gradients; NULL when frozen
    int C, O;
    int ld; // numbers from one row of the output to the next: O, or more where it is a part of wider rows
    const Gpu *gpu;
} Linear;

// Outputs first … first+count-1 of a layer as a layer of their own, whose output has rows `ld` apart.
static Linear linear_part(const Linear *w, int first, int count, int ld) {
    Linear part = *w;
    const size_t at = (size_t)first;
    part.weight = w->weight + at * w->C;
    part.bias = w->bias ? w->bias + at : NULL;
    part.dweight = w->dweight ? w->dweight + at * w->C : NULL;
    part.dbias = w->dbias ? w->dbias + at : NULL;
    part.O = count;
    part.ld = ld;
    return part;
}

// A weight or bias in the type of a product of type Real.
template <typename Real> static const Real *weight_as(const Gpu *k, const float *weight);
template <> const float *weight_as<float>(const Gpu *, const float *weight) { return weight; }
template <> const bf16 *weight_as<bf16>(const Gpu *k, const float *weight) {
    return weight ? k->params_bf16 + (weight - k->params) : NULL;
}

// linear_forward_plain: out (N,O) = x (N,C) weightᵀ + bias [+ residual (N,O)]
template <typename Out, typename Real>
static void linear_forward(Out *out, const Real *x, const Linear *w, int N, const Out *residual = NULL) {
    const Gpu *k = w->gpu;
    const MatmulEpilogue<Out> epilogue = {weight_as<Out>(k, w->bias), residual};
    matmul(k, out, w->ld, rows_of(x, w->C), transposed(weight_as<Real>(k, w->weight), w->C), N, w->O, w->C,
        epilogue);
}

// out (N,O) = x (N,C) weightᵀ + bias + residual (N,O)
template <typename Real>
static void linear_residual_forward(
    float *out, const Real *x, const Linear *w, const float *residual, int N) {
    linear_forward(out, x, w, N, residual);
}

// linear_backward_input_plain: dx (N,C) = dout (N,O) weight
template <typename Real>
static void linear_backward_input(Real *dx, const Real *dout, const Linear *w, int N) {
    matmul(w->gpu, dx, w->C, rows_of(dout, w->ld), rows_of(weight_as<Real>(w->gpu, w->weight), w->C), N, w->C,
        w->O);
}

static void add_partials(
    const Gpu *k, float *out, const float *partials, int chunks, size_t ld, int n, bool accumulate) {
    LAUNCH(add_partials_kernel, blocks_for(n, 32), dim3(32, 16), 16 * 32 * sizeof(float), k->stream, out,
        partials, chunks, ld, n, accumulate);
}

// dbias (O) (+)= the column sums of dout (N,O; ld)
template <typename Real>
static void bias_backward(
    const Gpu *k, float *dbias, const Real *dout, size_t ld, int N, int O, bool accumulate) {
    const auto grid = [&](int V) { return dim3(blocks_for(O, 32 * V), column_chunks(N)); };
    LAUNCH_PACKED(column_sums_kernel, Real, O | (int)ld, grid, dim3(32, 8), COLUMN_SHARED, k->stream,
        k->partials, dout, ld, N, O);
    add_partials(k, dbias, k->partials, column_chunks(N), O, O, accumulate);
}

// linear_backward_weight_plain: dweight (O,C) (+)= dout (N,O)ᵀ x (N,C);  dbias (O) (+)= the column sums of
// dout
template <typename Real>
static void linear_backward_weight(const Linear *w, const Real *dout, const Real *x, int N, bool accumulate) {
    const MatmulEpilogue<float> epilogue = {NULL, accumulate ? w->dweight : NULL};
    if (w->dweight)
        matmul(w->gpu, w->dweight, w->C, transposed(dout, w->ld), rows_of(x, w->C), w->O, w->C, N, epilogue);
    if (w->dbias) bias_backward(w->gpu, w->dbias, dout, w->ld, N, w->O, accumulate);
}

// ---------------------------------------------------------------- LayerNorm

typedef struct {
    const float *gain, *bias; // (C)
    float *dgain, *dbias;     // (C) gradients; NULL when frozen
    int C;
    float eps;
    const Gpu *gpu;
} LayerNorm;

// layernorm_forward_plain (Ba et al. 2016, eq. 4): out (N,C) = (x - mean) rstd gain + bias; mean and rstd (N)
// are saved
template <typename Real>
static void layernorm_forward(Real *out, RowStats stats, const float *x, const LayerNorm *w, int N) {
    const auto grid = [&](int) { return blocks_for(N, ROW_WARPS); };
    LAUNCH_PACKED(layernorm_forward_kernel, Real, w->C, grid, 32 * ROW_WARPS, 0, w->gpu->stream, out,
        stats.mean, stats.rstd, x, w->gain, w->bias, N, w->C, w->eps);
}

// layernorm_backward_plain: dx (N,C) = skip + what comes through the LayerNorm from dout (N,C); dgain, dbias
// (+)=. skip (N,C) is the gradient of the residual stream: NULL, or dx itself.
template <typename Real, typename DOut>
static void layernorm_backward(Real *dx, const Real *skip, const DOut *dout, const float *x, RowStats stats,
    const LayerNorm *w, int N, bool accumulate) {
    const Gpu *k = w->gpu;
    const int C = w->C, chunks = min_int(N, MAX_PARTIALS);
    const size_t shared = 2 * 4 * 32 * sizeof(float);
    if (C % 4 == 0)
        LAUNCH((layernorm_backward_kernel<4, Real, DOut>), chunks, 32 * blocks_for(C, 4 * 32), shared,
            k->stream, dx, k->partials, skip, dout, x, w->gain, stats.mean, stats.rstd, N, C);
    else
        LAUNCH((layernorm_backward_kernel<1, Real, DOut>), chunks, 32 * blocks_for(C, 32), shared, k->stream,
            dx, k->partials, skip, dout, x, w->gain, stats.mean, stats.rstd, N, C);
    if (w->dgain) add_partials(k, w->dgain, k->partials, chunks, (size_t)2 * C, C, accumulate);
    if (w->dbias) add_partials(k, w->dbias, k->partials + C, chunks, (size_t)2 * C, C, accumulate);
}

// ---------------------------------------------------------------- activation

// activation_forward_plain: out (n) = activation(x)
template <typename Real>
static void activation_forward(const Gpu *k, Real *out, const Real *x, size_t n, Activation activation) {
    const auto grid = [&](int V) { return blocks_for(n, 256 * V); };
    LAUNCH_PACKED(activation_forward_kernel, Real, n, grid, 256, 0, k->stream, out, x, n, activation);
}

// activation_backward_plain: dx (N,F) = dout activation'(x), dx may be dout; dbias (F) (+)= the column sums
// of dx, which are the gradient of the bias before the activation; NULL when frozen
template <typename Real>
static void activation_backward(const Gpu *k, Real *dx, float *dbias, const Real *dout, const Real *x, int N,
    int F, Activation activation, bool accumulate) {
    const auto grid = [&](int V) { return dim3(blocks_for(F, 32 * V), column_chunks(N)); };
    LAUNCH_PACKED(activation_backward_kernel, Real, F, grid, dim3(32, 8), COLUMN_SHARED, k->stream, dx,
        k->partials, x, dout, N, F, activation);
    if (dbias) add_partials(k, dbias, k->partials, column_chunks(N), F, F, accumulate);
}

// ---------------------------------------------------------------- attention

typedef struct {
    int C, NH;
    bool causal; // a query sees the keys up to itself
    const Gpu *gpu;
} Attention;

static void attention_check(const Sequences *s, const Attention *w) {
    assert(w->C % w->NH == 0 && "heads of unequal size");
    assert(w->C / w->NH <= LARGEST_HEAD && "heads larger than the kernels are made for");
    assert(s->B > 0 && s->R > 0 && s->longest > 0 && s->longest <= s->R && "sequences without tokens");
    (void)s, (void)w; // without asserts
}

// attention_forward_plain (Vaswani et al. 2017, eq. 1): O = softmax(Q Kᵀ / sqrt(HS)) V, heads side by side in
// the channels.
//   out (R,C), pooled: (B,C) of the pooled rows alone
//   lse (R,NH), pooled: (B,NH): log-sum-exp of each query's scores, saved for the backward pass
//   qkv (R,3C): queries, keys, values of all heads;  s: on the GPU
template <typename Real>
static void attention_forward(
    Real *out, float *lse, const Real *qkv, const Sequences *s, const Attention *w, bool pooled) {
    attention_check(s, w);
    const dim3 grid(s->B * w->NH, pooled ? 1 : blocks_for(s->longest, ATTENTION_ROWS<Real>));
    LAUNCH_ATTENTION(attention_forward_kernel, Real, w->C / w->NH, FORWARD_BYTES, grid, w->gpu->stream, out,
        lse, qkv, s->start, s->pooled_row, w->C, w->NH, w->causal, pooled);
}

// attention_backward_plain: dqkv (R,3C) from dout (R,C). With P the probabilities, which are computed again
// rather than saved:
//   dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP - rowsum(P ∘ dP)) / sqrt(HS),  dQ = dS K,  dK = dSᵀ Q
// pooled: dout, out (B,C) and lse (B,NH); the query part of the other rows is not written. delta (R,NH) is
// scratch.
template <typename Real>
static void attention_backward(Real *dqkv, float *delta, const Real *dout, const Real *out, const float *lse,
    const Real *qkv, const Sequences *s, const Attention *w, bool pooled) {
    attention_check(s, w);
    const int Q = pooled ? s->B : s->R;
    const unsigned blocks = blocks_for(s->longest, ATTENTION_ROWS<Real>);
    const dim3 grid(s->B * w->NH, blocks == 1 ? 1 : 2 * blocks);
    LAUNCH((attention_delta_kernel<Real>), blocks_for((size_t)Q * w->NH, ROW_WARPS), 32 * ROW_WARPS, 0,
        w->gpu->stream, delta, dout, out, Q, w->C, w->NH);
    LAUNCH_ATTENTION(attention_backward_kernel, Real, w->C / w->NH, BACKWARD_BYTES, grid, w->gpu->stream,
        dqkv, dout, qkv, lse, delta, s->start, s->pooled_row, w->C, w->NH, w->causal, pooled);
}

// ---------------------------------------------------------------- one residual block

// The residual stream is fp32: rounding it would double the error of the gradients. Its gradient is Real,
// which adds nothing to that error.
typedef struct {
    LayerNorm ln_1;
    Linear in_proj;
    Attention attention;
    Linear out_proj;
    LayerNorm ln_2;
    Linear c_fc, c_proj;
    Activation activation;
} Block;

// out (N,C) = resid1 + mlp(ln_2(resid1)); out NULL: only what the backward pass needs of it
template <typename Real>
static void mlp_forward(float *out, BlockActivations *a, const Block *w, Scratch *t, int N) {
    Real *ln = as<Real>(t->ln), *activated = as<Real>(t->wide), *hidden = as<Real>(a->mlp_hidden);
    layernorm_forward(ln, a->ln_2, a->resid1, &w->ln_2, N);
    linear_forward(hidden, ln, &w->c_fc, N);
    if (!out) return;
    activation_forward(w->c_fc.gpu, activated, hidden, (size_t)N * w->c_fc.O, w->activation);
    linear_residual_forward(out, activated, &w->c_proj, a->resid1, N);
}

// x + attention(ln_1(x)), then + mlp(ln_2(·)): a pre-LN transformer block (Radford et al. 2019). out (R,C);
// NULL: only what the backward pass needs (gradient checkpointing)
template <typename Real>
static void block_forward(float *out, BlockActivations *a, const Block *w, const Sequences *s, Scratch *t) {
    Real *ln = as<Real>(t->ln), *qkv = as<Real>(a->qkv), *attention = as<Real>(a->attention);
    layernorm_forward(ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_forward(qkv, ln, &w->in_proj, s->R);
    attention_forward(attention, a->lse, qkv, s, &w->attention, false);
    linear_residual_forward(a->resid1, attention, &w->out_proj, a->x, s->R);
    mlp_forward<Real>(out, a, w, t, s->R);
}

// t->dx: in, the gradient of the MLP's output (N,C); out, that of resid1 (N,C). LayerNorm and activation are
// computed again rather than saved. t->wide is first the activation's output, then its gradient, then that of
// mlp_hidden.
template <typename Real>
static void mlp_backward(const BlockActivations *a, const Block *w, Scratch *t, int N, bool accumulate) {
    Real *ln = as<Real>(t->ln), *wide = as<Real>(t->wide), *hidden = as<Real>(a->mlp_hidden);
    Real *dx = (Real *)t->dx, *dy = (Real *)t->dy;
    const Gpu *k = w->c_fc.gpu;
    Linear c_fc = w->c_fc;
    c_fc.dbias = NULL; // activation_backward() sums it
    activation_forward(k, wide, hidden, (size_t)N * c_fc.O, w->activation);
    linear_backward_weight(&w->c_proj, dx, wide, N, accumulate);
    linear_backward_input(wide, dx, &w->c_proj, N);
    activation_backward(k, wide, w->c_fc.dbias, wide, hidden, N, c_fc.O, w->activation, accumulate);
    layernorm_forward(ln, a->ln_2, a->resid1, &w->ln_2, N);
    linear_backward_weight(&c_fc, wide, ln, N, accumulate);
    linear_backward_input(dy, wide, &c_fc, N);
    layernorm_backward(dx, dx, dy, a->resid1, a->ln_2, &w->ln_2, N, accumulate);
}

// The key bias has no gradient: softmax ignores a constant added to every score. What was summed is rounding,
// which Adam would amplify.
static void clear_key_bias_gradient(const Block *w) {
    const size_t C = (size_t)w->ln_1.C;
    if (w->in_proj.dbias)
        CUDA_CHECK(cudaMemsetAsync(w->in_proj.dbias + C, 0, C * sizeof(float), w->in_proj.gpu->stream));
}

// t->dx: in, the gradient of the block's output (R,C); out, that of its input (R,C). t->dy is first the
// gradient of attention's output, t->wide becomes that of qkv.
template <typename Real>
static void block_backward(
    const BlockActivations *a, const Block *w, const Sequences *s, Scratch *t, bool accumulate) {
    Real *ln = as<Real>(t->ln), *dqkv = as<Real>(t->wide), *dx = (Real *)t->dx, *dy = (Real *)t->dy;
    Real *attention = as<Real>(a->attention);
    mlp_backward<Real>(a, w, t, s->R, accumulate);
    linear_backward_weight(&w->out_proj, dx, attention, s->R, accumulate);
    linear_backward_input(dy, dx, &w->out_proj, s->R);
    attention_backward(dqkv, t->delta, dy, attention, a->lse, as<Real>(a->qkv), s, &w->attention, false);
    layernorm_forward(ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_backward_weight(&w->in_proj, dqkv, ln, s->R, accumulate);
    linear_backward_input(dy, dqkv, &w->in_proj, s->R);
    clear_key_bias_gradient(w);
    layernorm_backward(dx, dx, dy, a->x, a->ln_1, &w->ln_1, s->R, accumulate);
}

// ---------------------------------------------------------------- the last block: pooled rows alone

template <typename Real>
static void copy_rows(const Gpu *k, Real *out, size_t out_ld, const int *to, const Real *x, size_t x_ld,
    const int *from, int n, int C, bool add) {
    const auto grid = [&](int V) { return blocks_for((size_t)n * C / V, 256); };
    LAUNCH_PACKED(
        copy_rows_kernel, Real, C, grid, 256, 0, k->stream, out, out_ld, to, x, x_ld, from, n, C, add);
}

// out (B,C) = the pooled rows of x (R,C; ld)
template <typename Real>
static void gather_rows(const Gpu *k, Real *out, const Real *x, size_t ld, const Sequences *s, int C) {
    copy_rows(k, out, (size_t)C, (int *)NULL, x, ld, s->pooled_row, s->B, C, false);
}

// The other way round: x (B,C) to the pooled rows of out (R,C; ld)
template <typename Real>
static void scatter_rows(const Gpu *k, Real *out, size_t ld, const Real *x, const Sequences *s, int C) {
    copy_rows(k, out, ld, s->pooled_row, x, (size_t)C, (int *)NULL, s->B, C, false);
}

// The pooled rows of dy (R,C) += dz (B,C)
template <typename Real>
static void add_to_pooled_rows(const Gpu *k, Real *dy, const Real *dz, const Sequences *s, int C) {
    copy_rows(k, dy, (size_t)C, s->pooled_row, dz, (size_t)C, (int *)NULL, s->B, C, true);
}

// From dx (B,C) of the pooled rows to dx (R,C): those of the other rows are zero. scratch (B,C)
template <typename Real>
static void spread_pooled_gradient(const Gpu *k, Real *dx, Real *scratch, const Sequences *s, int C) {
    copy_rows(k, scratch, (size_t)C, (int *)NULL, dx, (size_t)C, (int *)NULL, s->B, C, false);
    CUDA_CHECK(cudaMemsetAsync(dx, 0, (size_t)s->R * C * sizeof(Real), k->stream));
    scatter_rows(k, dx, (size_t)C, scratch, s, C);
}

// in_proj in two parts: queries, of which those of the pooled rows are needed, and keys and values of all
// rows.
static Linear query_part(const Block *w) { return linear_part(&w->in_proj, 0, w->ln_1.C, w->ln_1.C); }
static Linear key_value_part(const Block *w) {
    return linear_part(&w->in_proj, w->ln_1.C, 2 * w->ln_1.C, 3 * w->ln_1.C);
}

// block_forward() of which only the pooled rows are computed from attention on: out (B,C)
template <typename Real>
static void block_forward_pooled(
    float *out, BlockActivations *a, const Block *w, const Sequences *s, Scratch *t) {
    const int C = w->ln_1.C;
    const Gpu *k = w->ln_1.gpu;
    const Linear query = query_part(w), key_value = key_value_part(w);
    Real *ln = as<Real>(t->ln), *qkv = as<Real>(a->qkv), *attention = as<Real>(a->attention);
    Real *pooled_ln = as<Real>(t->pooled_a), *pooled_query = as<Real>(t->pooled_b);
    layernorm_forward(ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_forward(qkv + C, ln, &key_value, s->R);
    gather_rows(k, pooled_ln, ln, (size_t)C, s, C);
    linear_forward(pooled_query, pooled_ln, &query, s->B);
    scatter_rows(k, qkv, 3 * (size_t)C, pooled_query, s, C);
    attention_forward(attention, a->lse, qkv, s, &w->attention, true);
    gather_rows(k, t->pooled_x, a->x, (size_t)C, s, C);
    linear_residual_forward(a->resid1, attention, &w->out_proj, t->pooled_x, s->B);
    mlp_forward<Real>(out, a, w, t, s->B);
}

// block_backward() after block_forward_pooled(). t->dx: in (B,C), out (R,C)
template <typename Real>
static void block_backward_pooled(
    const BlockActivations *a, const Block *w, const Sequences *s, Scratch *t, bool accumulate) {
    const int C = w->ln_1.C;
    const Gpu *k = w->ln_1.gpu;
    const Linear query = query_part(w), key_value = key_value_part(w);
    Real *ln = as<Real>(t->ln), *dqkv = as<Real>(t->wide), *attention = as<Real>(a->attention);
    Real *dx = (Real *)t->dx, *dy = (Real *)t->dy, *dz = (Real *)t->dz;
    Real *pooled_ln = as<Real>(t->pooled_a), *dquery = as<Real>(t->pooled_b);
    mlp_backward<Real>(a, w, t, s->B, accumulate);
    linear_backward_weight(&w->out_proj, dx, attention, s->B, accumulate);
    linear_backward_input(dy, dx, &w->out_proj, s->B);
    attention_backward(dqkv, t->delta, dy, attention, a->lse, as<Real>(a->qkv), s, &w->attention, true);
    layernorm_forward(ln, a->ln_1, a->x, &w->ln_1, s->R);
    linear_backward_weight(&key_value, dqkv + C, ln, s->R, accumulate);
    linear_backward_input(dy, dqkv + C, &key_value, s->R);
    gather_rows(k, dquery, dqkv, 3 * (size_t)C, s, C);
    gather_rows(k, pooled_ln, ln, (size_t)C, s, C);
    linear_backward_weight(&query, dquery, pooled_ln, s->B, accumulate);
    linear_backward_input(dz, dquery, &query, s->B);
    add_to_pooled_rows(k, dy, dz, s, C);
    spread_pooled_gradient(k, dx, pooled_ln, s, C);
    clear_key_bias_gradient(w);
    layernorm_backward(dx, dx, dy, a->x, a->ln_1, &w->ln_1, s->R, accumulate);
}

// ---------------------------------------------------------------- embeddings

typedef struct {
    Linear conv1;                                            // image tower: patches (N,3*P*P) to (N,C)
    const float *class_embedding, *token_embedding;          // (C) image tower; (V,C) text tower
    const float *positions;                                  // (T,C)
    float *dclass_embedding, *dtoken_embedding, *dpositions; // gradients; NULL when frozen
} Embedding;

// A tower's batch on the GPU.
typedef struct {
    const uint8_t *pixels; // (B,3,S,S), or
    const float *images;   // (B,3,S,S) normalised
    const float *pooled;   // (B,C) in place of all else
    const int *position;   // (R) of each row in the positional embedding
    const int *source;     // (R) token; of the image tower: row among all patches, -1 for the class token
    const int *patch_rows; // (R-B) rows of the patches
    RowGroups by_position, by_token;
} Inputs;

template <typename Real, typename Pixel>
static void patches_cut(const Gpu *k, Real *patches, const Pixel *pixels, const Inputs *in,
    const Sequences *s, const ClipConfig *c) {
    const float3 mean = {c->mean_r, c->mean_g, c->mean_b}, std = {c->std_r, c->std_g, c->std_b};
    const int N = s->R - s->B, S = c->image_size, P = c->patch_size;
    if ((S | P) % 4 == 0)
        LAUNCH((patches_kernel<Real, 4, Pixel>), N, 256, 0, k->stream, patches, pixels, in->patch_rows,
            in->position, N / s->B, S, P, mean, std);
    else if ((S | P) % 2 == 0)
        LAUNCH((patches_kernel<Real, 2, Pixel>), N, 256, 0, k->stream, patches, pixels, in->patch_rows,
            in->position, N / s->B, S, P, mean, std);
    else
        LAUNCH((patches_kernel<Real, 1, Pixel>), N, 256, 0, k->stream, patches, pixels, in->patch_rows,
            in->position, N / s->B, S, P, mean, std);
}

template <typename Real>
static void patches_from_images(
    const Gpu *k, Real *patches, const Inputs *in, const Sequences *s, const ClipConfig *c) {
    if (in->images) patches_cut(k, patches, in->images, in, s, c);
    else patches_cut(k, patches, in->pixels, in, s, c);
}

// image_embedding_forward_plain: x (R,C) is the class token, then the patches, all with their position added,
// through ln_pre where there is one (gain NULL: none). embedding (R,C): x before ln_pre; embedded (R-B,C):
// conv1's output
template <typename Real>
static void image_embedding_forward(float *x, float *embedding, RowStats stats, Real *embedded, Real *patches,
    const Inputs *in, const Sequences *s, const Embedding *w, const LayerNorm *ln_pre, const ClipConfig *c) {
    const Gpu *k = w->conv1.gpu;
    const int C = c->image_width;
    const auto grid = [&](int) { return blocks_for(s->R, ROW_WARPS); };
    patches_from_images(k, patches, in, s, c);
    linear_forward(embedded, patches, &w->conv1, s->R - s->B);
    LAUNCH_PACKED(embedding_kernel, Real, C, grid, 32 * ROW_WARPS, 0, k->stream, x,
        ln_pre->gain ? embedding : x, stats.mean, stats.rstd, embedded, w->class_embedding, w->positions,
        in->source, in->position, ln_pre->gain, ln_pre->bias, s->R, C, c->image_ln_eps);
}

// text_embedding_forward_plain: x (R,C) = token embedding + position
template <typename Real>
static void text_embedding_forward(
    float *x, const Inputs *in, const Sequences *s, const Embedding *w, const ClipConfig *c) {
    const int C = c->text_width;
    const auto grid = [&](int) { return blocks_for(s->R, ROW_WARPS); };
    LAUNCH_PACKED(embedding_kernel, Real, C, grid, 32 * ROW_WARPS, 0, w->conv1.gpu->stream, (float *)NULL, x,
        (float *)NULL, (float *)NULL, (const Real *)NULL, w->token_embedding, w->positions, in->source,
        in->position, (const float *)NULL, (const float *)NULL, s->R, C, 0.0f);
}

// dtable (rows,C) (+)= for every key the sum of its rows of dx; one block owns a key
template <typename Real>
static void table_backward(
    const Gpu *k, float *dtable, const Real *dx, RowGroups g, int rows, int C, bool accumulate) {
    const auto grid = [&](int V) { return dim3(g.count, blocks_for(C, 32 * V)); };
    if (!accumulate) CUDA_CHECK(cudaMemsetAsync(dtable, 0, (size_t)rows * C * sizeof(float), k->stream));
    LAUNCH_PACKED(table_backward_kernel, Real, C, grid, dim3(32, TABLE_LANES),
        TABLE_LANES * 32 * 8 * sizeof(float), k->stream, dtable, dx, g.key, g.start, g.row, C, true);
}

// image_embedding_backward_plain, from dx (R,C); patches (R-B,3*P*P) as the forward pass left them, dembedded
// is scratch
template <typename Real>
static void image_embedding_backward(const Embedding *w, const Real *dx, Real *dembedded, const Real *patches,
    const Inputs *in, const Sequences *s, const ClipConfig *c, bool accumulate) {
    const Gpu *k = w->conv1.gpu;
    const int C = c->image_width, N = s->R - s->B;
    const size_t image_ld = (size_t)s->R / s->B * C; // from the class token of an image to the next
    table_backward(k, w->dpositions, dx, in->by_position, config_image_tokens(c), C, accumulate);
    bias_backward(k, w->dclass_embedding, dx, image_ld, s->B, C, accumulate);
    copy_rows(k, dembedded, (size_t)C, (int *)NULL, dx, (size_t)C, in->patch_rows, N, C, false);
    linear_backward_weight(&w->conv1, dembedded, patches, N, accumulate);
}

// text_embedding_backward_plain, from dx (R,C)
template <typename Real>
static void text_embedding_backward(
    const Embedding *w, const Real *dx, const Inputs *in, const ClipConfig *c, bool accumulate) {
    const Gpu *k = w->conv1.gpu;
    table_backward(k, w->dtoken_embedding, dx, in->by_token, c->vocab_size, c->text_width, accumulate);
    table_backward(k, w->dpositions, dx, in->by_position, c->context_length, c->text_width, accumulate);
}

// ---------------------------------------------------------------- L2 normalisation

// normalize_forward_plain: out (B,E) = x / |x|; norm (B) is saved
static void normalize_forward(const Gpu *k, float *out, float *norm, const float *x, int B, int E) {
    LAUNCH(
        normalize_forward_kernel, blocks_for(B, ROW_WARPS), 32 * ROW_WARPS, 0, k->stream, out, norm, x, B, E);
}

// normalize_backward_plain: dx = (dout - out (out · dout)) / |x|
static void normalize_backward(
    const Gpu *k, float *dx, const float *dout, const float *out, const float *norm, int B, int E) {
    LAUNCH(normalize_backward_kernel, blocks_for(B, ROW_WARPS), 32 * ROW_WARPS, 0, k->stream, dx, dout, out,
        norm, B, E);
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

typedef struct {
    TowerActivations a;
    Sequences on_gpu; // a.seq with its arrays on the GPU
    Inputs in;
    Feed feed[2]; // batches take turns
    int turn;
} Tower;

// A chunk of one tensor, which one block of threads updates.
typedef struct {
    size_t offset;      // in the arena of weights
    size_t grad_offset; // in those of gradients, m, v and the moving average
    int count;          // floats, up to UPDATE_CHUNK
    int tensor;
} UpdateChunk;
enum { UPDATE_CHUNK = 8192 };

struct Backend {
    Gpu gpu;
    char kernels[16];
    Precision precision;
    float *grads, *m, *v; // arenas as gpu.params, laid out by clip->tensors
    float *ema;           // moving average of the trainable tensors, laid out as the gradients; or NULL
    TensorPointers w, g;
    TowerWeights weights[2]; // where each layer finds all of these
    Tower tower[2];
    int pairs;           // rows of features
    float *features[2];  // (pairs,E), L2-normalised
    float *dfeatures[2]; // (pairs,E)
    LossScratch loss;
    char *step_arena;    // features, their gradients, scratch of the loss
    UpdateChunk *chunks; // (chunk_count) on the GPU, trainable tensors first
    int trainable_chunks, chunk_count;
    AdamWTerms *terms, *terms_pinned; // of each tensor, on the GPU and on the host
    double *squares;                  // (1 + chunk_count) sums of squared gradients: in all, of each chunk
    bool grad_checkpointing;
    bool accumulate;        // gradients hold a part of the step already
    bool params_bf16_stale; // weights were written since their copy in bf16 was made
    float logit_scale;      // exp(logit_scale) on the host; 0: has to be read again
};

static Linear linear_bind(
    const Gpu *k, const float *weight, const float *bias, float *dweight, float *dbias, int C, int O) {
    const Linear w = {weight, bias, dweight, dbias, C, O, O, k};
    return w;
}

static LayerNorm layernorm_bind(
    const Gpu *k, const float *gain, const float *bias, float *dgain, float *dbias, TowerShape d) {
    const LayerNorm w = {gain, bias, dgain, dbias, d.C, d.eps, k};
    return w;
}

#define BIND_LINEAR(name, C, O) \
    linear_bind(k, w->name##_weight, w->name##_bias, g->name##_weight, g->name##_bias, C, O)
#define BIND_LAYERNORM(name) \
    layernorm_bind(k, w->name##_weight, w->name##_bias, g->name##_weight, g->name##_bias, d)

static Block block_bind(const Gpu *k, const BlockPointers *w, const BlockPointers *g, TowerShape d) {
    Block block;
    block.ln_1 = BIND_LAYERNORM(ln_1);
    block.in_proj = BIND_LINEAR(in_proj, d.C, 3 * d.C);
    block.attention = {d.C, d.NH, d.causal, k};
    block.out_proj = BIND_LINEAR(out_proj, d.C, d.C);
    block.ln_2 = BIND_LAYERNORM(ln_2);
    block.c_fc = BIND_LINEAR(c_fc, d.C, d.F);
    block.c_proj = BIND_LINEAR(c_proj, d.F, d.C);
    block.activation = d.activation;
    return block;
}

// Binds the layers of both towers to weights and gradients, wherever those are now.
static void towers_bind(Clip *clip) {
    static const BlockPointers none = {};
    const ClipConfig *c = &clip->config;
    Backend *b = clip->back;
    const Gpu *k = &b->gpu;
    for (int tower = 0; tower < 2; tower++) {
        const TowerShape d = tower_shape(c, tower);
        const TowerPointers *w = &b->w.tower[tower], *g = &b->g.tower[tower];
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
            t->blocks[l] = block_bind(k, &w->blocks[l], g->blocks ? &g->blocks[l] : &none, d);
    }
}

static LayoutSizes layout_sizes(const Clip *clip, size_t B, size_t R) {
    const LayoutSizes n = {B, R, clip->back->precision == PRECISION_AMP_BF16, true};
    return n;
}

// Bytes of a tower's activations for B sequences of R rows: to encode, and if `training`, to train.
static size_t tower_memory(
    const Clip *clip, int tower, size_t B, size_t R, bool training, bool grad_checkpointing) {
    const LayoutSizes n = layout_sizes(clip, B, R);
    size_t bytes = 0;
    for (int backward = 0; backward <= (training ? 1 : 0); backward++) {
        const SavePolicy save = tower_save_policy(clip, tower, backward != 0, grad_checkpointing);
        bytes = max_i64(bytes, tower_bytes(&clip->config, tower, save, n));
    }
    return bytes;
}

// Takes memory for batches of this size whose captions fill the context, so that no later batch asks for
// more.
static void tower_reserve(Clip *clip, int tower, const ClipBatch *batch) {
    Backend *b = clip->back;
    TowerActivations *a = &b->tower[tower].a;
    const bool training = b->grads != NULL, captions = tower == TEXT_TOWER && !batch->pooled[tower];
    const size_t B = a->seq.B, R = captions ? B * clip->config.context_length : (size_t)a->seq.R;
    const size_t need = tower_memory(clip, tower, B, R, training, b->grad_checkpointing);
    if (need <= a->capacity) return;
    char what[256];
    snprintf(what, sizeof what,
        "activations of the %s tower for %zu pairs (%.2f GB for half of them, %.2f GB with "
        "--grad-checkpointing)",
        tower == IMAGE_TOWER ? "image" : "text", B,
        (double)tower_memory(clip, tower, B / 2, R / 2, training, b->grad_checkpointing) / 1e9,
        (double)tower_memory(clip, tower, B, R, training, true) / 1e9);
    CUDA_CHECK(cudaStreamSynchronize(b->gpu.stream));
    CUDA_CHECK(cudaFree(a->arena));
    a->arena = (char *)gpu_malloc(need, what);
    a->capacity = need;
}

// Fills Inputs' position, source and patch_rows (R each) from a batch.
static void inputs_of_rows(int *position, int *source, int *patch_rows, const Sequences *s,
    const ClipBatch *batch, int tower, const ClipConfig *c) {
    int patches = 0;
    for (int b = 0; b < s->B; b++)
        for (int row = s->start[b], t = 0; row < s->start[b + 1]; row++, t++) {
            if (tower == TEXT_TOWER) {
                position[row] = t;
                source[row] = batch->tokens[(size_t)b * c->context_length + t];
                assert(0 <= source[row] && source[row] < c->vocab_size && "a token outside the vocabulary");
            } else if (t == 0) {
                position[row] = 0;
                source[row] = -1;
            } else {
                position[row] = 1 + batch_patch(batch, b, t - 1);
                source[row] = patches;
                patch_rows[patches++] = row;
            }
        }
}

// Starts to copy a tower's part of the batch to the GPU.
static void tower_feed(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    const ClipConfig *c = &clip->config;
    const Gpu *k = &clip->back->gpu;
    Tower *t = &clip->back->tower[tower];
    Inputs *in = &t->in;
    const Sequences *s = &t->a.seq;
    const size_t B = s->B, R = s->R, pixels = B * 3 * c->image_size * c->image_size;
    t->turn ^= 1;
    Feed *f = &t->feed[t->turn];
    memset(in, 0, sizeof *in);
    t->on_gpu = *s;
    if (batch->pooled[tower]) {
        const size_t numbers = B * tower_shape(c, tower).C;
        feed_begin(k, f, round_up(numbers * sizeof(float), 256));
        in->pooled = feed_add(k, f, batch->pooled[tower], numbers);
        feed_end(k, f);
        return;
    }
    // pixels; two arrays of sequences, up to nine of rows; padding
    const size_t rows = tower == TEXT_TOWER ? B * c->context_length : R;
    const size_t pixel_bytes = tower == TEXT_TOWER ? 0 : pixels * (batch->images ? sizeof(float) : 1);
    feed_begin(k, f, pixel_bytes + (2 * B + 9 * rows) * sizeof(int) + 16 * 256);
    memcpy(feed_reserve(f, B + 1, (const int **)&t->on_gpu.start), s->start, (B + 1) * sizeof(int));
    memcpy(feed_reserve(f, B, (const int **)&t->on_gpu.pooled_row), s->pooled_row, B * sizeof(int));
    int *position = feed_reserve(f, R, &in->position);
    int *source = feed_reserve(f, R, &in->source);
    int *patch_rows = feed_reserve(f, R, &in->patch_rows);
    inputs_of_rows(position, source, patch_rows, s, batch, tower, c);
    const int positions = tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length;
    if (backward) in->by_position = feed_groups(f, position, (int)R, positions);
    if (backward && tower == TEXT_TOWER) in->by_token = feed_groups(f, source, (int)R, c->vocab_size);
    if (tower == IMAGE_TOWER && batch->images) in->images = feed_add(k, f, batch->images, pixels);
    else if (tower == IMAGE_TOWER) in->pixels = feed_add(k, f, batch->pixels, pixels);
    feed_end(k, f);
}

// Finds the batch's sequences and a place for their activations. backward: a backward pass follows.
static void tower_prepare(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    const ClipConfig *c = &clip->config;
    const Backend *b = clip->back;
    TowerActivations *a = &clip->back->tower[tower].a;
    const SavePolicy save = tower_save_policy(clip, tower, backward, b->grad_checkpointing);
    assert(batch->size > 0 && "an empty batch");
    assert((batch->pooled[tower] || tower == TEXT_TOWER || !batch->pixels != !batch->images) &&
           "either pixels or images");
    assert((batch->pooled[tower] || tower == IMAGE_TOWER || batch->tokens) && "no tokens");
    sequences_of_batch(&a->seq, batch, tower, c);
    tower_reserve(clip, tower, batch);
    guard_lift((float *)a->arena, a->capacity / sizeof(float));
#ifdef CLIPC_EMULATE // NaN: what is read unwritten spoils the result
    CUDA_CHECK(cudaMemsetAsync(a->arena, 0xff, a->capacity, b->gpu.stream));
#endif
    tower_layout(a, a->arena, c, tower, save, layout_sizes(clip, a->seq.B, a->seq.R));
    tower_feed(clip, tower, batch, backward);
}

// The input of the first block, x (R,C)
template <typename Real> static void tower_embedding_forward(Clip *clip, int tower, float *x) {
    const ClipConfig *c = &clip->config;
    const Tower *t = &clip->back->tower[tower];
    const TowerActivations *a = &t->a;
    const TowerWeights *w = &clip->back->weights[tower];
    if (tower == IMAGE_TOWER)
        image_embedding_forward(x, a->embedding, a->ln_pre, (Real *)a->embedded, as<Real>(a->patches), &t->in,
            &t->on_gpu, &w->embedding, &w->ln_pre, c);
    else text_embedding_forward<Real>(x, &t->in, &t->on_gpu, &w->embedding, c);
}

// Everything before the projection: a.pooled (B,C).
template <typename Real> static void tower_pool(Clip *clip, int tower) {
    Tower *t = &clip->back->tower[tower];
    TowerActivations *a = &t->a;
    const TowerWeights *w = &clip->back->weights[tower];
    const int last = clip_tower_layers(&clip->config, tower) - 1;
    tower_embedding_forward<Real>(clip, tower, a->blocks[0].x);
    for (int l = 0; l < last; l++)
        block_forward<Real>(a->blocks[l + 1].x, &a->blocks[l], &w->blocks[l], &t->on_gpu, &a->scratch);
    block_forward_pooled<Real>(a->last, &a->blocks[last], &w->blocks[last], &t->on_gpu, &a->scratch);
    layernorm_forward(a->pooled, a->ln_final, a->last, &w->ln_final, a->seq.B);
}

// Encodes the batch into rows of `out` (B,E) on the GPU, L2-normalised; NULL: into a.features. keep: with
// activations for tower_backward()
template <typename Real>
static void tower_forward(Clip *clip, int tower, float *out, const ClipBatch *batch, bool keep) {
    const TowerShape d = tower_shape(&clip->config, tower);
    const Gpu *k = &clip->back->gpu;
    const float *proj = clip->back->weights[tower].proj;
    tower_prepare(clip, tower, batch, keep);
    Tower *t = &clip->back->tower[tower];
    TowerActivations *a = &t->a;
    const int B = a->seq.B;
    if (t->in.pooled)
        CUDA_CHECK(cudaMemcpyAsync(
            a->pooled, t->in.pooled, (size_t)B * d.C * sizeof(float), cudaMemcpyDeviceToDevice, k->stream));
    else tower_pool<Real>(clip, tower);
    matmul(k, a->projected, d.E, rows_of(a->pooled, d.C), rows_of(proj, d.E), B, d.E, d.C);
    normalize_forward(k, out ? out : a->features, a->norm, a->projected, B, d.E);
    feed_release(k, &t->feed[t->turn]);
}

// dproj (C,E) (+)= pooledᵀ dprojected;  dpooled (B,C) = dprojected projᵀ, NULL: not needed
static void projection_backward(const Gpu *k, float *dpooled, float *dproj, const float *dprojected,
    const float *pooled, const float *proj, int B, TowerShape d, bool accumulate) {
    const MatmulEpilogue<float> epilogue = {NULL, accumulate ? dproj : NULL};
    matmul(k, dproj, d.E, transposed(pooled, d.C), rows_of(dprojected, d.E), d.C, d.E, B, epilogue);
    if (dpooled) matmul(k, dpooled, d.C, rows_of(dprojected, d.E), transposed(proj, d.E), B, d.C, d.E);
}

// Block l of the backward pass; with gradient checkpointing its activations are computed again first.
template <typename Real> static void tower_block_backward(Clip *clip, int tower, int l) {
    Backend *b = clip->back;
    const Block *w = &b->weights[tower].blocks[l];
    const Sequences *s = &b->tower[tower].on_gpu;
    BlockActivations *a = &b->tower[tower].a.blocks[l];
    Scratch *t = &b->tower[tower].a.scratch;
    if (l == clip_tower_layers(&clip->config, tower) - 1) {
        if (b->grad_checkpointing) block_forward_pooled<Real>(NULL, a, w, s, t);
        block_backward_pooled<Real>(a, w, s, t, b->accumulate);
    } else {
        if (b->grad_checkpointing) block_forward<Real>(NULL, a, w, s, t);
        block_backward<Real>(a, w, s, t, b->accumulate);
    }
}

// Embeddings and ln_pre, from the gradient of the first block's input in scratch.dx.
template <typename Real> static void tower_embedding_backward(Clip *clip, int tower) {
    const Backend *b = clip->back;
    const ClipConfig *c = &clip->config;
    const TowerWeights *w = &b->weights[tower];
    const Tower *t = &b->tower[tower];
    const TowerActivations *a = &t->a;
    Real *dx = (Real *)a->scratch.dx, *dy = (Real *)a->scratch.dy;
    const Real *dembedding = w->ln_pre.gain ? dy : dx;
    if (w->ln_pre.gain)
        layernorm_backward(
            dy, (Real *)NULL, dx, a->embedding, a->ln_pre, &w->ln_pre, a->seq.R, b->accumulate);
    if (tower == IMAGE_TOWER)
        image_embedding_backward(&w->embedding, dembedding, (Real *)a->embedded, as<Real>(a->patches), &t->in,
            &t->on_gpu, c, b->accumulate);
    else text_embedding_backward(&w->embedding, dembedding, &t->in, c, b->accumulate);
}

// From the gradient of the normalised features (B,E) down to the lowest trainable group.
template <typename Real>
static void tower_backward(Clip *clip, int tower, const float *dfeatures, const float *features) {
    const int first = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    if (first > L + 1) return;
    const Backend *b = clip->back;
    const Gpu *k = &b->gpu;
    const TowerWeights *w = &b->weights[tower];
    const TowerShape d = tower_shape(&clip->config, tower);
    Tower *t = &clip->back->tower[tower];
    TowerActivations *a = &t->a;
    const int B = a->seq.B;
    float *dprojected = a->projected; // which is not needed any more
    normalize_backward(k, dprojected, dfeatures, features, a->norm, B, d.E);
    projection_backward(
        k, first > L ? NULL : a->dpooled, w->dproj, dprojected, a->pooled, w->proj, B, d, b->accumulate);
    if (first > L) return;
    layernorm_backward((Real *)a->scratch.dx, (Real *)NULL, a->dpooled, a->last, a->ln_final, &w->ln_final, B,
        b->accumulate);
    for (int l = L - 1; l >= 0 && l + 1 >= first; l--) tower_block_backward<Real>(clip, tower, l);
    if (first == 0) tower_embedding_backward<Real>(clip, tower);
    feed_release(k, &t->feed[t->turn]);
}

// ---------------------------------------------------------------- optimizer

// sums (chunks) = the sum of squares of each chunk of the gradients
__global__ void sum_squares_kernel(double *sums, const float *grads, const UpdateChunk *chunks) {
    SHARED_ARRAY(double, shared); // (32)
    const UpdateChunk chunk = chunks[blockIdx.x];
    float sum = 0, g[4];
    for (int i = threadIdx.x * 4; i < chunk.count; i += blockDim.x * 4) {
        load_some(g, grads + chunk.grad_offset + i, min(4, chunk.count - i));
        sum += g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + g[3] * g[3];
    }
    const double total = block_sum((double)sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// AdamW (Loshchilov and Hutter 2019, algorithm 2), a chunk a block; see AdamWTerms. Gradients are scaled by
// min(1, clip_norm / norm) if clip_norm > 0, squares (1) being the square of their norm.
//   params_bf16: the weights in bf16, or NULL;  ema: their moving average, or NULL
__global__ void adamw_kernel(float *params, bf16 *params_bf16, const float *grads, float *m, float *v,
    float *ema, const UpdateChunk *chunks, const AdamWTerms *terms, const double *squares, double clip_norm,
    float ema_decay, int logit_scale) {
    const UpdateChunk chunk = chunks[blockIdx.x];
    const AdamWTerms t = terms[chunk.tensor];
    if (!isfinite(*squares)) return; // NaN or infinity in a gradient: nothing is updated
    const float scale = clip_norm > 0 ? (float)fmin(1.0, clip_norm / (sqrt(*squares) + 1e-6)) : 1;
    for (int i = threadIdx.x * 4; i < chunk.count; i += blockDim.x * 4) {
        const int n = min(4, chunk.count - i);
        const size_t at = chunk.offset + i, grad_at = chunk.grad_offset + i;
        float p[4], g[4], m1[4], v1[4], average[4];
        load_some(p, params + at, n);
        load_some(g, grads + grad_at, n);
        load_some(m1, m + grad_at, n);
        load_some(v1, v + grad_at, n);
        if (ema) load_some(average, ema + grad_at, n);
        for (int j = 0; j < 4; j++) {
            const float x = g[j] * scale;
            m1[j] = fmaf(m1[j], t.beta1, x * t.one_minus_beta1);
            v1[j] = fmaf(v1[j], t.beta2, x * x * t.one_minus_beta2);
            p[j] = p[j] * t.decay_factor - m1[j] * t.rate / (sqrtf(v1[j] * t.bias_correction2) + t.eps);
            if (chunk.tensor == logit_scale)
                p[j] = p[j] < 0                        ? 0
                       : p[j] > (float)LOGIT_SCALE_MAX ? (float)LOGIT_SCALE_MAX
                                                       : p[j]; // NaN stays
            if (ema) average[j] = fmaf(average[j] - p[j], ema_decay, p[j]);
        }
        store_some(params + at, p, n);
        store_some(m + grad_at, m1, n);
        store_some(v + grad_at, v1, n);
        if (ema) store_some(ema + grad_at, average, n);
        if (params_bf16) store_some(params_bf16 + at, p, n);
    }
}

// Exchanges the weights with `ema` (or NULL), and writes them in bf16 (or NULL).
__global__ void exchange_kernel(float *params, bf16 *params_bf16, float *ema, const UpdateChunk *chunks) {
    const UpdateChunk chunk = chunks[blockIdx.x];
    for (int i = threadIdx.x; i < chunk.count; i += blockDim.x) {
        const size_t at = chunk.offset + i, grad_at = chunk.grad_offset + i;
        const float old = params[at], now = ema ? ema[grad_at] : old;
        if (ema) {
            params[at] = now;
            ema[grad_at] = old;
        }
        if (params_bf16) params_bf16[at] = from_float<bf16>(now);
    }
}

// Lists the chunks of all tensors, the trainable ones first.
static void chunks_create(Clip *clip) {
    Backend *b = clip->back;
    const TensorTable *t = &clip->tensors;
    size_t most = 0;
    for (int i = 0; i < t->count; i++) most += (t->list[i].count + UPDATE_CHUNK - 1) / UPDATE_CHUNK;
    UpdateChunk *list = (UpdateChunk *)malloc_check(most * sizeof *list);
    b->chunk_count = 0;
    for (int frozen = 0; frozen < 2; frozen++) {
        for (int i = 0; i < t->count; i++) {
            const Tensor *x = &t->list[i];
            if (x->trainable == (frozen != 0)) continue;
            for (size_t at = 0; at < x->count; at += UPDATE_CHUNK)
                list[b->chunk_count++] = {
                    x->offset + at, x->grad_offset + at, (int)min_i64(UPDATE_CHUNK, x->count - at), i};
        }
        if (!frozen) b->trainable_chunks = b->chunk_count;
    }
    if (!b->chunks) {
        b->chunks = (UpdateChunk *)gpu_malloc(most * sizeof *list, "tables");
        b->squares = (double *)gpu_malloc((1 + most) * sizeof(double), "tables");
    }
    CUDA_CHECK(cudaMemcpy(b->chunks, list, most * sizeof *list, cudaMemcpyHostToDevice));
    free(list);
}

double clip_update(Clip *clip, const AdamW *a) {
    Backend *b = clip->back;
    const Gpu *k = &b->gpu;
    const TensorTable *t = &clip->tensors;
    const size_t shared = 32 * sizeof(double);
    double squares = 0;
    LAUNCH(
        sum_squares_kernel, b->trainable_chunks, 256, shared, k->stream, b->squares + 1, b->grads, b->chunks);
    LAUNCH(total_kernel, 1, 1024, shared, k->stream, b->squares, b->squares + 1, (size_t)b->trainable_chunks);
    for (int i = 0; i < t->count; i++) b->terms_pinned[i] = adamw_terms(a, &t->list[i], 1);
    CUDA_CHECK(cudaMemcpyAsync(
        b->terms, b->terms_pinned, t->count * sizeof *b->terms, cudaMemcpyHostToDevice, k->stream));
    LAUNCH(adamw_kernel, b->trainable_chunks, 256, 0, k->stream, k->params, k->params_bf16, b->grads, b->m,
        b->v, b->ema, b->chunks, b->terms, b->squares, a->grad_clip_norm, (float)a->ema_decay, t->count - 1);
    CUDA_CHECK(cudaMemcpyAsync(&squares, b->squares, sizeof squares, cudaMemcpyDeviceToHost, k->stream));
    CUDA_CHECK(cudaStreamSynchronize(k->stream));
    b->accumulate = false;
    b->logit_scale = 0;
    return sqrt(squares);
}

bool clip_has_ema(const Clip *clip) { return clip->back->ema != NULL; }

void clip_swap_ema(Clip *clip) {
    Backend *b = clip->back;
    if (b->ema)
        LAUNCH(exchange_kernel, b->trainable_chunks, 256, 0, b->gpu.stream, b->gpu.params, b->gpu.params_bf16,
            b->ema, b->chunks);
    b->logit_scale = 0;
}

// ---------------------------------------------------------------- the functions of clipc/model/clip.h

// A zeroed arena of either layout, with guards between the tensors.
static float *arena_create(const TensorTable *t, ArenaLayout layout, const char *what) {
    const size_t floats = layout == GRADIENT_LAYOUT ? t->grad_floats : t->floats;
    float *arena = (float *)gpu_malloc(floats * sizeof(float), what);
    CUDA_CHECK(cudaMemset(arena, 0, floats * sizeof(float)));
    for (int i = 0; i < t->count; i++) {
        float *x = tensor_ptr(&t->list[i], arena, layout);
        if (x) guard_behind(x, t->list[i].count, x + round_up(t->list[i].count, 16) + GUARD_FLOATS);
    }
    return arena;
}

static void gpu_create(Gpu *k, char kernels[16]) {
    int count = 0;
    cudaDeviceProp device;
    if (cudaGetDeviceCount(&count) != cudaSuccess || !count)
        die(EXIT_RUNTIME,
            "no GPU found; nvidia-smi shows whether its driver works; ./train_clip runs on the CPU");
    CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
    if (device.major < 8)
        die(EXIT_RUNTIME, "%s has compute capability %d.%d, 8.0 is needed; ./train_clip runs on the CPU",
            device.name, device.major, device.minor);
#ifdef CLIPC_EMULATE
    snprintf(kernels, 16, "emulated");
#else
    snprintf(kernels, 16, "sm_%d%d", device.major, device.minor);
#endif
    // both wait for work that is started without a stream, as cudaMemcpy() is, and it waits for them
    CUDA_CHECK(cudaStreamCreate(&k->stream));
    CUDA_CHECK(cudaStreamCreate(&k->copies));
    k->matmul = matmul_create();
}

static void gpu_free(Gpu *k) {
    CUDA_CHECK(cudaFree(k->params));
    CUDA_CHECK(cudaFree(k->params_bf16));
    CUDA_CHECK(cudaFree(k->partials));
    matmul_free(k->matmul);
    CUDA_CHECK(cudaStreamDestroy(k->stream));
    CUDA_CHECK(cudaStreamDestroy(k->copies));
}

// Ends the program if the kernels are not made for a tower of this shape.
static void tower_shape_check(TowerShape d) {
    if (d.C / d.NH > LARGEST_HEAD)
        die(EXIT_USAGE, "heads of %d channels; up to %d run on a GPU", d.C / d.NH, LARGEST_HEAD);
    if (d.C > (d.C % 4 ? 1024 : 4096))
        die(EXIT_USAGE, "a width of %d; multiples of 4 up to 4096 run on a GPU", d.C);
}

Clip *clip_create_empty(const ClipConfig *config, const char *merges, size_t merges_bytes) {
    Clip *clip = (Clip *)calloc_check(1, sizeof *clip);
    if (merges) {
        clip->merges = (char *)memcpy(malloc_check(merges_bytes + 1), merges, merges_bytes);
        clip->merges[merges_bytes] = 0;
        clip->merges_bytes = merges_bytes;
    }
    Backend *b = clip->back = (Backend *)calloc_check(1, sizeof *b);
    clip->config = *config;
    clip->tensors = tensor_table_create(config);
    gpu_create(&b->gpu, b->kernels);
    b->gpu.params = arena_create(&clip->tensors, PARAMETER_LAYOUT, "weights");
    tensor_pointers_bind(&b->w, &clip->tensors, config, b->gpu.params, PARAMETER_LAYOUT);
    size_t widest = (size_t)config->embed_dim; // of the vectors whose partial sums are taken
    for (int tower = 0; tower < 2; tower++) {
        const TowerShape d = tower_shape(config, tower);
        tower_shape_check(d);
        b->tower[tower].a.blocks = (BlockActivations *)calloc_check(d.L, sizeof(BlockActivations));
        b->weights[tower].blocks = (Block *)calloc_check(d.L, sizeof(Block));
        // layernorm_backward() has up to MAX_PARTIALS chunks, column sums an eighth of that
        widest = max_i64(widest, max_i64(2 * d.C, max_i64(3 * d.C, d.F) * COLUMN_CHUNKS / MAX_PARTIALS));
        for (int turn = 0; turn < 2; turn++) feed_create(&b->tower[tower].feed[turn]);
    }
    b->gpu.partials = (float *)gpu_malloc(MAX_PARTIALS * widest * sizeof(float), "partial sums");
    b->terms = (AdamWTerms *)gpu_malloc(clip->tensors.count * sizeof *b->terms, "tables");
    CUDA_CHECK(cudaMallocHost(&b->terms_pinned, clip->tensors.count * sizeof *b->terms_pinned));
    chunks_create(clip);
    towers_bind(clip);
    return clip;
}

// Weights from an arena on the host.
static void weights_upload(Clip *clip, const float *arena) {
    for (int i = 0; i < clip->tensors.count; i++)
        clip_write(clip, ARENA_PARAMETERS, &clip->tensors.list[i], arena + clip->tensors.list[i].offset);
}

Clip *clip_load(const char *path) {
    WeightFile w;
    weight_file_open(&w, path);
    Clip *clip = clip_create_empty(&w.config, w.merges, w.merges_bytes);
    float *arena = (float *)aligned_malloc_check(clip->tensors.floats * sizeof(float));
    weight_file_read(&w, &clip->tensors, arena);
    weights_upload(clip, arena);
    free(arena);
    free(w.merges);
    return clip;
}

Clip *clip_create(const ClipConfig *config, const char *merges, size_t merges_bytes, uint64_t seed) {
    Clip *clip = clip_create_empty(config, merges, merges_bytes);
    float *arena = (float *)aligned_malloc_check(clip->tensors.floats * sizeof(float));
    tensors_init(arena, &clip->tensors, config, seed);
    weights_upload(clip, arena);
    free(arena);
    return clip;
}

uint64_t clip_save(Clip *clip, SafeFile *out) {
    float *arena = (float *)aligned_malloc_check(clip->tensors.floats * sizeof(float));
    for (int i = 0; i < clip->tensors.count; i++)
        clip_read(clip, ARENA_PARAMETERS, &clip->tensors.list[i], arena + clip->tensors.list[i].offset);
    const uint64_t identity =
        weight_file_write(out, &clip->config, clip->merges, clip->merges_bytes, &clip->tensors, arena);
    free(arena);
    return identity;
}

void clip_free(Clip *clip) {
    Backend *b = clip->back;
    CUDA_CHECK(cudaDeviceSynchronize());
    for (int tower = 0; tower < 2; tower++) {
        Tower *t = &b->tower[tower];
        free(b->weights[tower].blocks);
        sequences_free(&t->a.seq);
        free(t->a.blocks);
        CUDA_CHECK(cudaFree(t->a.arena));
        for (int turn = 0; turn < 2; turn++) feed_free(&t->feed[turn]);
    }
    void *on_gpu[] = {b->grads, b->m, b->v, b->ema, b->step_arena, b->chunks, b->squares, b->terms};
    for (void *p : on_gpu) CUDA_CHECK(cudaFree(p));
    CUDA_CHECK(cudaFreeHost(b->terms_pinned));
    gpu_free(&b->gpu);
    tensor_pointers_free(&b->w);
    tensor_pointers_free(&b->g);
    tensor_table_free(&clip->tensors);
    free(b);
    free(clip->merges);
    free(clip);
}

Precision clip_choose_fastest(Precision wanted) {
    if (wanted != PRECISIONS) return wanted;
    return clip_precision_support(PRECISION_AMP_BF16) == SUPPORT_NATIVE ? PRECISION_AMP_BF16 : PRECISION_FP32;
}

void clip_keep_kernels(const char *name) { (void)name; } // a GPU has one set of them

PrecisionSupport clip_precision_support(Precision precision) {
#ifdef CLIPC_EMULATE
    if (precision == PRECISION_TF32) return SUPPORT_NONE;
    return precision == PRECISION_FP32 ? SUPPORT_NATIVE : SUPPORT_SLOW;
#else
    (void)precision; // any GPU from compute capability 8.0 on has all of them, and gpu_create() asks for that
    return SUPPORT_NATIVE;
#endif
}

void clip_set_precision(Clip *clip, Precision precision) {
    Backend *b = clip->back;
    b->precision = precision;
    b->gpu.matmul->tf32 = precision == PRECISION_TF32;
    if (precision != PRECISION_AMP_BF16 || b->gpu.params_bf16) return;
    b->gpu.params_bf16 = (bf16 *)gpu_malloc(clip->tensors.floats * sizeof(bf16), "weights in bf16");
    b->params_bf16_stale = true;
}

Precision clip_precision(const Clip *clip) { return clip->back->precision; }

// Copies the weights to bf16 again; needed after they were written by anything but clip_update().
static void weights_refresh(Backend *b) {
    if (b->gpu.params_bf16 && b->params_bf16_stale)
        LAUNCH(exchange_kernel, b->chunk_count, 256, 0, b->gpu.stream, b->gpu.params, b->gpu.params_bf16,
            (float *)NULL, b->chunks);
    b->params_bf16_stale = false;
}

// Lays out features of a step (n,E), their gradients, and what the loss needs. Returns the bytes; base NULL:
// only counts.
static size_t step_layout(Backend *b, char *base, size_t n, size_t E) {
    enum { LOGITS = 1 << 25 }; // held at a time
    Arena a = {base, 0, 256};
    LossScratch *t = &b->loss;
    t->tile = (int)max_i64(1, min_i64(n, LOGITS / n));
    for (int tower = 0; tower < 2; tower++) {
        b->features[tower] = arena_floats(&a, n * E);
        b->dfeatures[tower] = arena_floats(&a, n * E);
    }
    t->logits = arena_floats(&a, t->tile * n);
    t->row_lse = arena_floats(&a, n);
    t->column_lse = arena_floats(&a, n);
    t->target = arena_floats(&a, n);
    t->column_sum = (double *)arena_take(&a, n * sizeof(double));
    t->positive_mean = (double *)arena_take(&a, n * sizeof(double));
    t->row_loss = (double *)arena_take(&a, n * sizeof(double));
    t->row_dot = (double *)arena_take(&a, n * sizeof(double));
    t->totals = (double *)arena_take(&a, 2 * sizeof(double));
    t->keys = (uint64_t *)arena_take(&a, n * sizeof(uint64_t));
    return a.used;
}

void clip_start_training(Clip *clip, const ClipTraining *how) {
    Backend *b = clip->back;
    const TensorTable *t = &clip->tensors;
    float **arenas[] = {&b->grads, &b->m, &b->v, &b->ema};
    for (int i = 0; i < 4; i++) {
        CUDA_CHECK(cudaFree(*arenas[i]));
        *arenas[i] =
            i < 3 || how->ema ? arena_create(t, GRADIENT_LAYOUT, "gradients and optimizer state") : NULL;
    }
    for (int i = 0; how->ema && i < t->count; i++) {
        const Tensor *x = &t->list[i];
        if (x->trainable)
            CUDA_CHECK(cudaMemcpy(b->ema + x->grad_offset, b->gpu.params + x->offset,
                x->count * sizeof(float), cudaMemcpyDeviceToDevice));
    }
    tensor_pointers_bind(&b->g, t, &clip->config, b->grads, GRADIENT_LAYOUT);
    towers_bind(clip);
    chunks_create(clip);
    b->pairs = how->pairs;
    b->grad_checkpointing = how->grad_checkpointing;
    b->accumulate = false;
    CUDA_CHECK(cudaFree(b->step_arena));
    const size_t bytes = step_layout(b, NULL, how->pairs, clip->config.embed_dim);
    b->step_arena = (char *)gpu_malloc(bytes, "features and logits of a step");
    step_layout(b, b->step_arena, how->pairs, clip->config.embed_dim);
}

void clip_memory(
    const Clip *clip, int batch_size, size_t *parameters, size_t *training, size_t *activations) {
    const ClipConfig *c = &clip->config;
    const Backend *b = clip->back;
    Backend counted = *b;
    *parameters = clip->tensors.floats * (sizeof(float) + (b->gpu.params_bf16 ? sizeof(bf16) : 0));
    *training = (b->ema ? 4 : 3) * clip->tensors.grad_floats * sizeof(float);
    *activations = step_layout(&counted, NULL, max_i64(1, b->pairs), c->embed_dim) +
                   2 * (size_t)batch_size * 3 * c->image_size * c->image_size; // pixels
    for (int tower = 0; tower < 2; tower++) {
        const size_t R =
            (size_t)batch_size * (tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length);
        *activations += tower_memory(clip, tower, batch_size, R, true, b->grad_checkpointing);
    }
}

// Calls one of the two instances of a function, by precision.
#define CALL_BY_PRECISION(clip, function, ...)                                   \
    ((clip)->back->precision == PRECISION_AMP_BF16 ? function<bf16>(__VA_ARGS__) \
                                                   : function<float>(__VA_ARGS__))

// Copies n floats from the GPU when the kernels launched so far are done.
static void download(const Gpu *k, float *to, const float *from, size_t n) {
    CUDA_CHECK(cudaMemcpyAsync(to, from, n * sizeof(float), cudaMemcpyDeviceToHost, k->stream));
    CUDA_CHECK(cudaStreamSynchronize(k->stream));
}

static void encode(Clip *clip, int tower, const ClipBatch *batch, float *features) {
    Backend *b = clip->back;
    weights_refresh(b);
    CALL_BY_PRECISION(clip, tower_forward, clip, tower, NULL, batch, false);
    download(&b->gpu, features, b->tower[tower].a.features, (size_t)batch->size * clip->config.embed_dim);
}

void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features) {
    encode(clip, IMAGE_TOWER, batch, features);
}
void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features) {
    encode(clip, TEXT_TOWER, batch, features);
}

void clip_pool(Clip *clip, int tower, const ClipBatch *batch, float *pooled) {
    Backend *b = clip->back;
    const size_t n = (size_t)batch->size * tower_shape(&clip->config, tower).C;
    weights_refresh(b);
    tower_prepare(clip, tower, batch, false);
    CALL_BY_PRECISION(clip, tower_pool, clip, tower);
    download(&b->gpu, pooled, b->tower[tower].a.pooled, n);
}

void clip_forward(Clip *clip, const ClipBatch *batch, int first_row, bool keep) {
    const size_t offset = (size_t)first_row * clip->config.embed_dim;
    weights_refresh(clip->back);
    for (int tower = TEXT_TOWER; tower >= IMAGE_TOWER; tower--) // text first: meanwhile pixels are copied
        CALL_BY_PRECISION(
            clip, tower_forward, clip, tower, clip->back->features[tower] + offset, batch, keep);
}

double clip_loss(Clip *clip, int pairs, const uint64_t *keys, Positives positives, bool gradient) {
    Backend *b = clip->back;
    double dlogit_scale = 0;
    if (keys)
        CUDA_CHECK(cudaMemcpyAsync(
            b->loss.keys, keys, (size_t)pairs * sizeof *keys, cudaMemcpyHostToDevice, b->gpu.stream));
    const double loss = contrastive_loss(&b->gpu, gradient ? b->dfeatures[0] : NULL,
        gradient ? b->dfeatures[1] : NULL, &dlogit_scale, &b->loss, b->features[0], b->features[1],
        keys ? b->loss.keys : NULL, positives, pairs, clip->config.embed_dim, clip_logit_scale(clip));
    const float dscale = (float)dlogit_scale; // once a step, whatever the accumulation
    if (gradient && b->g.logit_scale)
        CUDA_CHECK(
            cudaMemcpyAsync(b->g.logit_scale, &dscale, sizeof dscale, cudaMemcpyHostToDevice, b->gpu.stream));
    return loss;
}

void clip_backward(Clip *clip, const ClipBatch *batch, int first_row) {
    Backend *b = clip->back;
    const size_t row = (size_t)first_row * clip->config.embed_dim;
    (void)batch; // it is still on the GPU
    for (int tower = 0; tower < 2; tower++)
        CALL_BY_PRECISION(
            clip, tower_backward, clip, tower, b->dfeatures[tower] + row, b->features[tower] + row);
    b->accumulate = true;
}

float clip_logit_scale(const Clip *clip) {
    float value, *known = &clip->back->logit_scale;
    if (*known == 0) {
        clip_read(clip, ARENA_PARAMETERS, tensor_find(&clip->tensors, LOGIT_SCALE_KEY), &value);
        *known = expf(value);
    }
    return *known;
}

static float *tensor_place(const Clip *clip, ClipArena arena, const Tensor *x) {
    float *bases[] = {
        clip->back->gpu.params, clip->back->grads, clip->back->m, clip->back->v, clip->back->ema};
    return tensor_ptr(x, bases[arena], arena == ARENA_PARAMETERS ? PARAMETER_LAYOUT : GRADIENT_LAYOUT);
}

void clip_read(const Clip *clip, ClipArena arena, const Tensor *x, float *values) {
    CUDA_CHECK(cudaStreamSynchronize(clip->back->gpu.stream));
    CUDA_CHECK(
        cudaMemcpy(values, tensor_place(clip, arena, x), x->count * sizeof(float), cudaMemcpyDeviceToHost));
}

void clip_write(Clip *clip, ClipArena arena, const Tensor *x, const float *values) {
    CUDA_CHECK(cudaStreamSynchronize(clip->back->gpu.stream));
    CUDA_CHECK(
        cudaMemcpy(tensor_place(clip, arena, x), values, x->count * sizeof(float), cudaMemcpyHostToDevice));
    if (arena == ARENA_PARAMETERS) {
        clip->back->params_bf16_stale = true;
        clip->back->logit_scale = 0;
    }
}

const char *clip_kernels(const Clip *clip) { return clip->back->kernels; }

// ---------------------------------------------------------------- the recipe
//
// First a model is opened, and parts of it may be locked; the training, validation and zero-shot samples are
// listed; a folder for the log and the checkpoints is made. Then, step by step:
//     batch      k micro-batches of B image-caption pairs, decoded and tokenized by other threads
//     forward    both towers encode them: k*B image features and k*B text features, L2-normalised
//     loss       the contrastive loss compares each image with each caption of the step
//     backward   from the gradients of the features through both towers to those of the weights
//     update     AdamW, at the rate that the schedule has for this step
//     log, evaluate, save    the last two only where they are due
// The functions are in clipc/train/training.h, where no comment names another file.

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
