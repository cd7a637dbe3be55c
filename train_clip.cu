// clip.c: CLIP (Radford et al. 2021) fine-tuned on a GPU, in CUDA: train_clip.c with the same layers under
// the same names, in the same order. In this file: every layer forward and backward, the two towers, AdamW,
// and the program.
//
//     ./train_clipcu --pretrained W.bin --train-data pictures.csv        fine-tunes
//     ./train_clipcu --help
//
// Real is the type of activations and of the operands of matrix products: float, or bf16 (amp_bf16). Weights,
// their gradients, m and v, statistics of LayerNorm and softmax, features and the loss are fp32 in both; of
// the weights AdamW writes a copy in bf16 as well.
//
// Captions and images are packed as on a CPU: a batch is R rows of C channels, the tokens of one sequence
// behind those of the next; the last block computes only the row that is read in the end. No sum depends on
// the order in which threads run: the same seed gives the same bits.
//
// B batch, T tokens, R rows (all tokens of a batch), C channels, NH heads, HS head size, F hidden width of
// the MLP, L layers, V vocabulary, E embedding, P patch size, S image size. Outputs first, gradients begin
// with d, sizes last.

#include "clipc/base/utils.h"         // die, malloc_check
#include "clipc/model/clip.h"         // Clip, ClipBatch, AdamW, the functions implemented here
#include "clipc/model/activations.h"  // Sequences, TowerShape, tensors_init
#include "clipc/math/gpu.h"           // Gpu, Feed, LAUNCH, load, store, warp_sum
#include "clipc/math/gpu_attention.h" // attention_forward_kernel, attention_backward_kernel
#include "clipc/math/gpu_loss.h"      // contrastive_loss
#include "clipc/math/gpu_matmul.h"    // matmul

// ---------------------------------------------------------------- rows

// Row to[i] of out = row from[i] of x, or is increased by it; NULL stands for i. Rows are ld apart.
template <typename Real, int V>
__global__ void copy_rows_kernel(Real *out, size_t out_ld, const int *to, const Real *x, size_t x_ld,
    const int *from, int n, int C, bool add) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const size_t packs = (size_t)C / V;
    const size_t row = i / packs;
    const size_t c = i % packs * V;
    if (row >= (size_t)n) return;
    Real *target = out + (to ? to[row] : row) * out_ld + c;
    float value[V], old[V];
    load(value, x + (from ? from[row] : row) * x_ld + c);
    if (add) {
        load(old, target);
        for (int j = 0; j < V; j++) value[j] += old[j];
    }
    store(target, value);
}

template <typename Real>
static void copy_rows(const Gpu *k, Real *out, size_t out_ld, const int *to, const Real *x, size_t x_ld,
    const int *from, int n, int C, bool add) {
    const auto grid = [&](int V) { return blocks_for((size_t)n * C / V, 256); };
    LAUNCH_PACKED(
        copy_rows_kernel, Real, C, grid, 256, 0, k->stream, out, out_ld, to, x, x_ld, from, n, C, add);
}

// out (B,C) = the rows of x (R,C) that are read
template <typename Real>
static void gather_rows(const Gpu *k, Real *out, const Real *x, const Sequences *s, int C) {
    copy_rows(k, out, C, NULL, x, C, s->read, s->B, C, false);
}

enum { MAX_PARTIALS = 1024 }; // at most so many chunks of rows are summed, and their sums added in order

// Column sums by blocks of (32,8) threads: a thread has V columns of its own and every eighth row of the
// block's chunk. Writes what the eight have summed into partials (chunks,O); `sums`: room for (8,32*V).
enum { COLUMN_CHUNKS = 128, COLUMN_SHARED = 8 * 32 * 8 * sizeof(float) };
static inline int column_chunks(int N) { return N < 8 * COLUMN_CHUNKS ? (N + 7) / 8 : COLUMN_CHUNKS; }

template <int V>
__device__ inline void write_column_sums(float *partials, float *sums, const float (&sum)[V], int O) {
    for (int j = 0; j < V; j++) sums[(threadIdx.y * 32 + threadIdx.x) * V + j] = sum[j];
    __syncthreads();
    for (int i = threadIdx.y * 32 + threadIdx.x; i < 32 * V && (int)blockIdx.x * 32 * V + i < O; i += 256) {
        float total = 0;
        for (int y = 0; y < 8; y++) total += sums[y * 32 * V + i];
        partials[(size_t)blockIdx.y * O + blockIdx.x * 32 * V + i] = total;
    }
}

// partials (chunks,O) = the column sums of each chunk of rows of x (N,O)
template <typename Real, int V>
__global__ void column_sums_kernel(float *partials, const Real *x, size_t ld, int N, int O) {
    SHARED_ARRAY(float, sums); // (8,32*V)
    const int c = (blockIdx.x * 32 + threadIdx.x) * V;
    const int last = (int)((int64_t)N * (blockIdx.y + 1) / gridDim.y);
    float sum[V] = {0}, row[V];
    for (int r = (int)((int64_t)N * blockIdx.y / gridDim.y) + threadIdx.y; c < O && r < last; r += 8) {
        load(row, x + (size_t)r * ld + c);
        for (int j = 0; j < V; j++) sum[j] += row[j];
    }
    write_column_sums(partials, sums, sum, O);
}

// out (n) (+)= the sum of partials (chunks,n), rows ld apart
__global__ void add_partials_kernel(
    float *out, const float *partials, int chunks, size_t ld, int n, bool accumulate) {
    SHARED_ARRAY(float, sums); // (16,32)
    const int i = blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    for (int chunk = threadIdx.y; i < n && chunk < chunks; chunk += 16) sum += partials[chunk * ld + i];
    sums[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || i >= n) return;
    for (int y = 1; y < 16; y++) sum += sums[y * 32 + threadIdx.x];
    out[i] = sum + (accumulate ? out[i] : 0);
}

static void add_partials(
    const Gpu *k, float *out, const float *partials, int chunks, size_t ld, int n, bool accumulate) {
    LAUNCH(add_partials_kernel, blocks_for(n, 32), dim3(32, 16), 16 * 32 * sizeof(float), k->stream, out,
        partials, chunks, ld, n, accumulate);
}

// ---------------------------------------------------------------- layers

// Of a weight or bias: what a matrix product of type Real takes.
template <typename Real> static const Real *operand(const Gpu *k, const float *weight);
template <> const float *operand<float>(const Gpu *, const float *weight) { return weight; }
template <> const bf16 *operand<bf16>(const Gpu *k, const float *weight) {
    return weight ? k->params_bf16 + (weight - k->params) : NULL;
}

// out (N,O) = inp (N,C) · weight (O,C)ᵀ + bias (O) [+ residual (N,O)]; bias and residual may be NULL
template <typename Out, typename Real>
static void linear_forward(const Gpu *k, Out *out, const Real *inp, const float *weight, const float *bias,
    const Out *residual, int N, int C, int O) {
    const MatmulEpilogue<Out> epilogue = {operand<Out>(k, bias), residual};
    matmul(k, out, O, row_major(inp, C), transposed(operand<Real>(k, weight), C), N, O, C, epilogue);
}

// dbias (O) (+)= the column sums of dout (N,O), rows ld apart
template <typename Real>
static void bias_backward(
    const Gpu *k, float *dbias, const Real *dout, size_t ld, int N, int O, bool accumulate) {
    const auto grid = [&](int V) { return dim3(blocks_for(O, 32 * V), column_chunks(N)); };
    LAUNCH_PACKED(column_sums_kernel, Real, O | (int)ld, grid, dim3(32, 8), COLUMN_SHARED, k->stream,
        k->partials, dout, ld, N, O);
    add_partials(k, dbias, k->partials, column_chunks(N), O, O, accumulate);
}

// dinp (N,C) = dout · weight;  dweight (O,C) (+)= doutᵀ · inp;  dbias (O) (+)= column sums of dout. Any
// output may be NULL. dout (N,O) has its rows ld apart (ld > O: a part of the columns of a wider matrix).
template <typename Real>
static void linear_backward(const Gpu *k, Real *dinp, float *dweight, float *dbias, const Real *dout,
    size_t ld, const Real *inp, const float *weight, int N, int C, int O, bool accumulate) {
    const MatmulEpilogue<float> add = {NULL, accumulate ? dweight : NULL};
    if (dinp) matmul(k, dinp, C, row_major(dout, (int)ld), row_major(operand<Real>(k, weight), C), N, C, O);
    if (dweight) matmul(k, dweight, C, transposed(dout, (int)ld), row_major(inp, C), O, C, N, add);
    if (dbias) bias_backward(k, dbias, dout, ld, N, O, accumulate);
}

// One row by one warp. The second and third pass find the row in the L1 cache.
template <int V, typename Out>
__device__ void layernorm_row(Out *out, float *mean, float *rstd, const float *x, const float *gain,
    const float *bias, int C, float eps) {
    const int first = threadIdx.x % 32 * V;
    float v[V], g[V], b[V], sum = 0, squares = 0;
    for (int c = first; c < C; c += 32 * V) {
        load(v, x + c);
        for (int j = 0; j < V; j++) sum += v[j];
    }
    const float m = warp_sum(sum) / (float)C;
    for (int c = first; c < C; c += 32 * V) {
        load(v, x + c);
        for (int j = 0; j < V; j++) squares += (v[j] - m) * (v[j] - m);
    }
    const float r = 1.0f / sqrtf(warp_sum(squares) / (float)C + eps);
    for (int c = first; c < C; c += 32 * V) {
        load(v, x + c);
        load(g, gain + c);
        load(b, bias + c);
        for (int j = 0; j < V; j++) v[j] = (v[j] - m) * r * g[j] + b[j];
        store(out + c, v);
    }
    if (threadIdx.x % 32 == 0) {
        *mean = m;
        *rstd = r;
    }
}

template <typename Real, int V>
__global__ void layernorm_forward_kernel(Real *out, float *mean, float *rstd, const float *x,
    const float *gain, const float *bias, int N, int C, float eps) {
    const size_t i = (size_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
    if (i < (size_t)N) layernorm_row<V>(out + i * C, mean + i, rstd + i, x + i * C, gain, bias, C, eps);
}

// LayerNorm (Ba et al. 2016, eq. 4) over the last axis, biased variance.
//   out  (N,C)  = gain * (x - mean) * rstd + bias
//   mean (N), rstd (N): kept for the backward pass
template <typename Real>
static void layernorm_forward(const Gpu *k, Real *out, float *mean, float *rstd, const float *x,
    const float *gain, const float *bias, int N, int C, float eps) {
    const auto grid = [&](int) { return blocks_for(N, ROW_WARPS); };
    LAUNCH_PACKED(layernorm_forward_kernel, Real, C, grid, 32 * ROW_WARPS, 0, k->stream, out, mean, rstd, x,
        gain, bias, N, C, eps);
}

// A block walks down a chunk of rows, two at a time, a thread owns V columns: dx of every row, and the
// chunk's sums of dgain and dbias, partials (chunks,2C).  dx = skip + rstd * (g - mean(g) - n * mean(g * n)),  g
// = dout * gain,  n = (x - mean) * rstd
template <int V, typename Real, typename DOut>
__global__ void layernorm_backward_kernel(Real *dx, float *partials, const Real *skip, const DOut *dout,
    const float *x, const float *gain, const float *mean, const float *rstd, int N, int C) {
    SHARED_ARRAY(float, sums); // (2,4,32): in turn, so that one barrier a pair of rows will do
    const int c = threadIdx.x * V;
    const int warps = blockDim.x / 32;
    const int last = (int)((int64_t)N * (blockIdx.x + 1) / gridDim.x);
    const bool mine = c < C;
    float g[V] = {0}, d[2][V], n[2][V], past[2][V], dgain[V] = {0}, dbias[V] = {0};
    if (mine) load(g, gain + c);
    for (int i = (int)((int64_t)N * blockIdx.x / gridDim.x), turn = 0; i < last; i += 2, turn ^= 1) {
        float m[2] = {0};
        float r[2] = {0};
        float sum[4] = {0};
        float *s = sums + turn * 128; // sums of g and of g * n, of both rows
        UNROLLED
        for (int k = 0; k < 2; k++) {
            const size_t row = (size_t)(i + k) * C + c;
            for (int j = 0; j < V; j++) d[k][j] = n[k][j] = past[k][j] = 0;
            if (!mine || i + k >= last) continue;
            m[k] = mean[i + k];
            r[k] = rstd[i + k];
            load(d[k], dout + row);
            load(n[k], x + row);
            if (skip) load(past[k], skip + row);
        }
        UNROLLED
        for (int k = 0; k < 2; k++)
            for (int j = 0; j < V; j++) {
                n[k][j] = (n[k][j] - m[k]) * r[k];
                dgain[j] += d[k][j] * n[k][j];
                dbias[j] += d[k][j];
                sum[2 * k] += d[k][j] * g[j];
                sum[2 * k + 1] += d[k][j] * g[j] * n[k][j];
            }
        UNROLLED
        for (int q = 0; q < 4; q++) {
            sum[q] = warp_sum(sum[q]);
            if (threadIdx.x % 32 == 0) s[32 * q + threadIdx.x / 32] = sum[q];
        }
        __syncthreads();
        UNROLLED
        for (int q = 0; q < 4; q++) {
            sum[q] = 0;
            for (int w = 0; w < warps; w++) sum[q] += s[32 * q + w];
        }
        UNROLLED
        for (int k = 0; k < 2; k++) {
            if (!mine || i + k >= last) continue;
            for (int j = 0; j < V; j++)
                past[k][j] +=
                    r[k] * (d[k][j] * g[j] - sum[2 * k] / (float)C - n[k][j] * (sum[2 * k + 1] / (float)C));
            store(dx + (size_t)(i + k) * C + c, past[k]);
        }
    }
    if (!mine) return;
    store(partials + (size_t)blockIdx.x * 2 * C + c, dgain);
    store(partials + (size_t)blockIdx.x * 2 * C + C + c, dbias);
}

// dx (N,C) = skip (N,C; NULL, or dx itself) + what comes through the LayerNorm; dgain, dbias (C) (+)=, NULL
// when frozen. dout stays.
template <typename Real, typename DOut>
static void layernorm_backward(const Gpu *k, Real *dx, float *dgain, float *dbias, const Real *skip,
    const DOut *dout, const float *x, const float *gain, const float *mean, const float *rstd, int N, int C,
    bool accumulate) {
    const int chunks = N < MAX_PARTIALS ? N : MAX_PARTIALS;
    const size_t shared = 2 * 4 * 32 * sizeof(float);
    if (C % 4 == 0)
        LAUNCH((layernorm_backward_kernel<4, Real, DOut>), chunks, 32 * blocks_for(C, 4 * 32), shared,
            k->stream, dx, k->partials, skip, dout, x, gain, mean, rstd, N, C);
    else
        LAUNCH((layernorm_backward_kernel<1, Real, DOut>), chunks, 32 * blocks_for(C, 32), shared, k->stream,
            dx, k->partials, skip, dout, x, gain, mean, rstd, N, C);
    if (dgain) add_partials(k, dgain, k->partials, chunks, (size_t)2 * C, C, accumulate);
    if (dbias) add_partials(k, dbias, k->partials + C, chunks, (size_t)2 * C, C, accumulate);
}

// The cumulative normal distribution, absolute error below 1e-7: the form of clipc/math/kernels.h, see there.
// *density = e^(-x^2/2).
template <typename Real> __device__ inline float normal_cdf(float x, float *density) {
    const float t = reciprocal<Real>(0.282842712f * fabsf(x) + 1.0f);
    float p = 0.0754980984f;
    p = fmaf(p, t, -0.398413772f);
    p = fmaf(p, t, 0.687805392f);
    p = fmaf(p, t, -0.372271734f);
    p = fmaf(p, t, 0.403725177f);
    p = fmaf(p, t, 0.143248878f);
    p = fmaf(p, t, 0.235330311f);
    p = fmaf(p, t, 0.225077641f);
    *density = exponential<Real>(-0.5f * x * x);
    const float tail = *density * t * p * 0.5f;
    return x > 0 ? 1.0f - tail : tail;
}

// GELU (Hendrycks and Gimpel 2016) with erf: x * cdf(x); QuickGELU, as OpenAI trained: x * sigmoid(1.702 x)
template <typename Real, int V>
__global__ void gelu_forward_kernel(Real *out, const Real *x, size_t n, bool quick) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    float v[V], density;
    load(v, x + i);
    for (int j = 0; j < V; j++)
        v[j] *= quick ? reciprocal<Real>(1.0f + exponential<Real>(-1.702f * v[j]))
                      : normal_cdf<Real>(v[j], &density);
    store(out + i, v);
}

// out (n) = GELU or QuickGELU
template <typename Real>
static void gelu_forward(const Gpu *k, Real *out, const Real *x, size_t n, bool quick) {
    const auto grid = [&](int V) { return blocks_for(n, 256 * V); };
    LAUNCH_PACKED(gelu_forward_kernel, Real, n, grid, 256, 0, k->stream, out, x, n, quick);
}

// dx = dout * activation'(x): cdf + x * pdf, or s + 1.702 x s (1 - s) with s = 1 / (1 + e), where e s is 1 -
// s without cancellation
template <typename Real> __device__ inline float gelu_slope(float x, bool quick) {
    float density;
    const float e = quick ? exponential<Real>(fminf(-1.702f * x, 85.0f)) : 0;
    const float s = reciprocal<Real>(1.0f + e); // e must not overflow
    if (quick) return s + 1.702f * x * s * (e * s);
    const float cdf = normal_cdf<Real>(x, &density);
    return cdf + x * 0.398942280f * density;
}

// In one pass the column sums, which are the gradient of the bias before the activation; see
// column_sums_kernel().
template <typename Real, int V>
__global__ void gelu_backward_kernel(
    Real *dx, float *partials, const Real *x, const Real *dout, int N, int F, bool quick) {
    SHARED_ARRAY(float, sums); // (8,32*V)
    const int c = (blockIdx.x * 32 + threadIdx.x) * V;
    const int last = (int)((int64_t)N * (blockIdx.y + 1) / gridDim.y);
    float sum[V] = {0}, v[V], d[V];
    for (int r = (int)((int64_t)N * blockIdx.y / gridDim.y) + threadIdx.y; c < F && r < last; r += 8) {
        load(v, x + (size_t)r * F + c);
        load(d, dout + (size_t)r * F + c);
        for (int j = 0; j < V; j++) sum[j] += d[j] *= gelu_slope<Real>(v[j], quick);
        store(dx + (size_t)r * F + c, d);
    }
    write_column_sums(partials, sums, sum, F);
}

// dx (N,F) = dout * activation'(x), in place of dout too; dbias (F) (+)= its column sums, NULL when frozen
template <typename Real>
static void gelu_backward(const Gpu *k, Real *dx, float *dbias, const Real *x, const Real *dout, int N, int F,
    bool quick, bool accumulate) {
    const auto grid = [&](int V) { return dim3(blocks_for(F, 32 * V), column_chunks(N)); };
    LAUNCH_PACKED(gelu_backward_kernel, Real, F, grid, dim3(32, 8), COLUMN_SHARED, k->stream, dx, k->partials,
        x, dout, N, F, quick);
    if (dbias) add_partials(k, dbias, k->partials, column_chunks(N), F, F, accumulate);
}

// ---------------------------------------------------------------- attention (kernels: clipc/math/gpu_attention.h)

// Scaled dot-product attention (Vaswani et al. 2017, eq. 1), heads side by side in the channels.
//   out (R,C), or (B,C) with only_read: then only the queries of the rows that are read are computed
//   lse (R,NH), or (B,NH): the logarithm of each softmax's denominator, kept for the backward pass
//   qkv (R,3C): queries, keys, values of all heads
template <typename Real>
static void attention_forward(const Gpu *k, Real *out, float *lse, const Real *qkv, const Sequences *s, int C,
    int NH, bool causal, bool only_read) {
    const dim3 grid(s->B * NH, only_read ? 1 : blocks_for(s->longest, ATTENTION_ROWS<Real>));
    LAUNCH_ATTENTION(attention_forward_kernel, Real, C / NH, FORWARD_BYTES, grid, k->stream, out, lse, qkv,
        s->start, s->read, C, NH, causal, only_read);
}

// dqkv (R,3C) = the gradient by queries, keys and values; with only_read the query part of the other rows is
// not written. Probabilities are computed again rather than kept; delta (R,NH) is scratch. With P the
// probabilities and dO = dout:
//   dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP - rowsum(P ∘ dP)) / sqrt(HS),  dQ = dS K,  dK = dSᵀ Q
template <typename Real>
static void attention_backward(const Gpu *k, Real *dqkv, float *delta, const Real *dout, const Real *out,
    const float *lse, const Real *qkv, const Sequences *s, int C, int NH, bool causal, bool only_read) {
    const int Q = only_read ? s->B : s->R;
    const unsigned blocks = blocks_for(s->longest, ATTENTION_ROWS<Real>);
    const dim3 grid(s->B * NH, blocks == 1 ? 1 : 2 * blocks);
    LAUNCH((attention_delta_kernel<Real>), blocks_for((size_t)Q * NH, ROW_WARPS), 32 * ROW_WARPS, 0,
        k->stream, delta, dout, out, Q, C, NH);
    LAUNCH_ATTENTION(attention_backward_kernel, Real, C / NH, BACKWARD_BYTES, grid, k->stream, dqkv, dout,
        qkv, lse, delta, s->start, s->read, C, NH, causal, only_read);
}

// ---------------------------------------------------------------- one residual block

// What is kept of a block for its backward pass. Q = R rows, in the last block B: only those that are read.
// The residual stream is fp32: its rounding would double the error of the gradients. Its gradient is Real,
// which adds nothing to it.
template <typename Real> struct BlockActivations {
    float *x;                     // (R,C) input, the residual stream
    float *ln_1_mean, *ln_1_rstd; // (R)
    Real *qkv;                    // (R,3C)
    Real *attention;              // (Q,C) heads side by side
    float *lse;                   // (Q,NH) of the scores
    float *resid1;                // (Q,C) residual stream after attention
    float *ln_2_mean, *ln_2_rstd; // (Q)
    Real *mlp_hidden;             // (Q,F) before the activation
};

// Room that all blocks share.
template <typename Real> struct Scratch {
    Real *ln;              // (R,C) output of a LayerNorm
    Real *wide;            // (R,max(3C,F)) output of the activation; gradient of it; gradient of qkv
    Real *read_a, *read_b; // (B,C) rows that are read
    float *read_x;         // (B,C) those of the residual stream
    Real *dx, *dy, *dz;    // (R,C), (R,C), (B,C) gradients
    float *delta;          // (R,NH)
};

// out (Q,C) = x + attention(ln_1(x)), + mlp(ln_2(·)) (pre-LN transformer, Radford et al. 2019); NULL: only
// what the backward pass needs
template <typename Real>
static void block_forward(const Gpu *k, float *out, BlockActivations<Real> *a, const BlockPointers *w,
    const Sequences *s, Scratch<Real> *t, TowerShape d, bool last) {
    const int C = d.C, Q = last ? s->B : s->R;
    Real *const no_residual = NULL;
    layernorm_forward(
        k, t->ln, a->ln_1_mean, a->ln_1_rstd, a->x, w->ln_1_weight, w->ln_1_bias, s->R, C, d.eps);
    if (!last) {
        linear_forward(k, a->qkv, t->ln, w->in_proj_weight, w->in_proj_bias, no_residual, s->R, C, 3 * C);
    } else { // keys and values of all rows, queries only of those that are read
        const MatmulEpilogue<Real> bias = {operand<Real>(k, w->in_proj_bias + C), NULL};
        matmul(k, a->qkv + C, 3 * C, row_major(t->ln, C),
            transposed(operand<Real>(k, w->in_proj_weight + (size_t)C * C), C), s->R, 2 * C, C, bias);
        gather_rows(k, t->read_a, t->ln, s, C);
        linear_forward(k, t->read_b, t->read_a, w->in_proj_weight, w->in_proj_bias, no_residual, s->B, C, C);
        copy_rows(k, a->qkv, (size_t)3 * C, s->read, t->read_b, (size_t)C, (int *)NULL, s->B, C, false);
        gather_rows(k, t->read_x, a->x, s, C);
    }
    attention_forward(k, a->attention, a->lse, a->qkv, s, C, d.NH, d.causal, last);
    linear_forward(
        k, a->resid1, a->attention, w->out_proj_weight, w->out_proj_bias, last ? t->read_x : a->x, Q, C, C);
    layernorm_forward(
        k, t->ln, a->ln_2_mean, a->ln_2_rstd, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    linear_forward(k, a->mlp_hidden, t->ln, w->c_fc_weight, w->c_fc_bias, no_residual, Q, C, d.F);
    if (!out) return;
    gelu_forward(k, t->wide, a->mlp_hidden, (size_t)Q * d.F, d.quick_gelu);
    linear_forward(k, out, t->wide, w->c_proj_weight, w->c_proj_bias, a->resid1, Q, d.F, C);
}

// t->dx: in, the gradient of the block's output (Q,C); out, that of its input (R,C). Gradients of frozen
// tensors are NULL in g.
template <typename Real>
static void block_backward(const Gpu *k, const BlockPointers *g, const BlockActivations<Real> *a,
    const BlockPointers *w, const Sequences *s, Scratch<Real> *t, TowerShape d, bool last, bool accumulate) {
    const int C = d.C, F = d.F, Q = last ? s->B : s->R;
    const size_t C1 = (size_t)C, C3 = 3 * C1;
    Real *const none = NULL;
    // MLP: t->wide is first the activation's output, then its gradient. Both it and the LayerNorms are
    // computed again rather than kept.
    gelu_forward(k, t->wide, a->mlp_hidden, (size_t)Q * F, d.quick_gelu);
    linear_backward(k, none, g->c_proj_weight, g->c_proj_bias, t->dx, C1, t->wide, NULL, Q, F, C, accumulate);
    linear_backward(k, t->wide, NULL, NULL, t->dx, C1, none, w->c_proj_weight, Q, F, C, false);
    gelu_backward(k, t->wide, g->c_fc_bias, a->mlp_hidden, t->wide, Q, F, d.quick_gelu, accumulate);
    layernorm_forward(
        k, t->ln, a->ln_2_mean, a->ln_2_rstd, a->resid1, w->ln_2_weight, w->ln_2_bias, Q, C, d.eps);
    linear_backward(
        k, t->dy, g->c_fc_weight, NULL, t->wide, (size_t)F, t->ln, w->c_fc_weight, Q, C, F, accumulate);
    layernorm_backward(k, t->dx, g->ln_2_weight, g->ln_2_bias, t->dx, t->dy, a->resid1, w->ln_2_weight,
        a->ln_2_mean, a->ln_2_rstd, Q, C, accumulate);

    // attention: t->dx is now the gradient of resid1, t->wide becomes that of qkv
    linear_backward(k, t->dy, g->out_proj_weight, g->out_proj_bias, t->dx, C1, a->attention,
        w->out_proj_weight, Q, C, C, accumulate);
    attention_backward(k, t->wide, t->delta, t->dy, a->attention, a->lse, a->qkv, s, C, d.NH, d.causal, last);
    layernorm_forward(
        k, t->ln, a->ln_1_mean, a->ln_1_rstd, a->x, w->ln_1_weight, w->ln_1_bias, s->R, C, d.eps);
    if (!last) {
        linear_backward(k, t->dy, g->in_proj_weight, g->in_proj_bias, t->wide, C3, t->ln, w->in_proj_weight,
            s->R, C, 3 * C, accumulate);
    } else { // keys and values, then the few queries; the residual stream and the queries' gradient reach only the rows that are read
        float *dkv_weight = g->in_proj_weight ? g->in_proj_weight + C1 * C1 : NULL;
        float *dkv_bias = g->in_proj_bias ? g->in_proj_bias + C : NULL;
        linear_backward(k, t->dy, dkv_weight, dkv_bias, t->wide + C, C3, t->ln, w->in_proj_weight + C1 * C1,
            s->R, C, 2 * C, accumulate);
        copy_rows(k, t->read_b, C1, (int *)NULL, t->wide, C3, s->read, s->B, C, false);
        gather_rows(k, t->read_a, t->ln, s, C);
        linear_backward(k, t->dz, g->in_proj_weight, g->in_proj_bias, t->read_b, C1, t->read_a,
            w->in_proj_weight, s->B, C, C, accumulate);
        copy_rows(k, t->dy, C1, s->read, t->dz, C1, (int *)NULL, s->B, C, true);
        copy_rows(k, t->read_a, C1, (int *)NULL, t->dx, C1, (int *)NULL, s->B, C, false);
        CUDA_CHECK(cudaMemsetAsync(t->dx, 0, (size_t)s->R * C1 * sizeof(Real), k->stream));
        copy_rows(k, t->dx, C1, s->read, t->read_a, C1, (int *)NULL, s->B, C, false);
    }
    // the key bias has no gradient: softmax ignores a constant added to every score. What was summed is
    // rounding, which Adam would amplify.
    if (g->in_proj_bias) CUDA_CHECK(cudaMemsetAsync(g->in_proj_bias + C, 0, C1 * sizeof(float), k->stream));
    layernorm_backward(k, t->dx, g->ln_1_weight, g->ln_1_bias, t->dx, t->dy, a->x, w->ln_1_weight,
        a->ln_1_mean, a->ln_1_rstd, s->R, C, accumulate);
}

// ---------------------------------------------------------------- embeddings

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

// patches (N, 3*P*P): the pixels under each patch in the order of conv1's weights; a convolution whose stride
// is its size is a matrix product over them. Bytes are normalised as torchvision does: (x / 255 - mean) / std
// in fp32.
template <typename Real, int V, typename Pixel>
__global__ void patches_kernel(Real *patches, const Pixel *pixels, const int *patch_rows, const int *position,
    int patches_an_image, int S, int P, float3 mean, float3 std) {
    const int i = blockIdx.x;
    const int patch = position[patch_rows[i]] - 1;
    const int G = S / P;
    const int b = i / patches_an_image;
    for (int j = threadIdx.x * V; j < 3 * P * P; j += blockDim.x * V) {
        const int channel = j / (P * P), y = j / P % P, x = j % P;
        const float m = channel == 0 ? mean.x : channel == 1 ? mean.y : mean.z;
        const float s = channel == 0 ? std.x : channel == 1 ? std.y : std.z;
        float value[V];
        load(value, pixels + (((size_t)b * 3 + channel) * S + patch / G * P + y) * S + patch % G * P + x);
        for (int k = 0; k < V && sizeof(Pixel) == 1; k++) value[k] = (value[k] / 255.0f - m) / s;
        store(patches + (size_t)i * 3 * P * P + j, value);
    }
}

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

// embedding (R,C) = a row of `rows`, or (below 0, or no rows) of `table`, + position; with a gain also x
// (R,C), its LayerNorm
template <typename Real, int V>
__global__ void embedding_kernel(float *x, float *embedding, float *mean, float *rstd, const Real *rows,
    const float *table, const float *positions, const int *source, const int *position, const float *gain,
    const float *bias, int R, int C, float eps) {
    const size_t i = (size_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
    if (i >= (size_t)R) return;
    const int from = source[i];
    float *row = embedding + i * C;
    for (int c = threadIdx.x % 32 * V; c < C; c += 32 * V) {
        float value[V], at[V];
        if (rows && from >= 0) load(value, rows + (size_t)from * C + c);
        else load(value, table + (size_t)(from < 0 ? 0 : from) * C + c);
        load(at, positions + (size_t)position[i] * C + c);
        for (int j = 0; j < V; j++) value[j] += at[j];
        store(row + c, value);
    }
    if (gain) layernorm_row<V>(x + i * C, mean + i, rstd + i, row, gain, bias, C, eps);
}

// x (R,C): class token, then the patches, all with their position added; through ln_pre where there is one.
// embedded (R-B,C): conv1's output
template <typename Real>
static void image_embedding_forward(const Gpu *k, float *x, float *embedding, float *mean, float *rstd,
    Real *embedded, Real *patches, const Inputs *in, const Sequences *s, const TowerPointers *w,
    const ClipConfig *c) {
    const int C = c->image_width;
    const auto grid = [&](int) { return blocks_for(s->R, ROW_WARPS); };
    patches_from_images(k, patches, in, s, c);
    linear_forward(k, embedded, patches, w->conv1_weight, w->conv1_bias, (Real *)NULL, s->R - s->B,
        3 * c->patch_size * c->patch_size, C);
    LAUNCH_PACKED(embedding_kernel, Real, C, grid, 32 * ROW_WARPS, 0, k->stream, x,
        w->ln_pre_weight ? embedding : x, mean, rstd, embedded, w->class_embedding, w->positional_embedding,
        in->source, in->position, w->ln_pre_weight, w->ln_pre_bias, s->R, C, c->image_ln_eps);
}

// x (R,C) = token embedding + position
template <typename Real>
static void text_embedding_forward(const Gpu *k, float *x, const Inputs *in, const Sequences *s,
    const TowerPointers *w, const ClipConfig *c) {
    const int C = c->text_width;
    const auto grid = [&](int) { return blocks_for(s->R, ROW_WARPS); };
    LAUNCH_PACKED(embedding_kernel, Real, C, grid, 32 * ROW_WARPS, 0, k->stream, (float *)NULL, x,
        (float *)NULL, (float *)NULL, (const Real *)NULL, w->token_embedding, w->positional_embedding,
        in->source, in->position, (const float *)NULL, (const float *)NULL, s->R, C, 0.0f);
}

enum { TABLE_LANES = 16 }; // rows of threads that share the rows of a key

template <typename Real, int V>
__global__ void table_backward_kernel(
    float *dtable, const Real *dx, const int *key, const int *start, const int *row, int C, bool accumulate) {
    SHARED_ARRAY(float, sums); // (TABLE_LANES,32*V)
    const int at = threadIdx.x * V, c = blockIdx.y * 32 * V + at, last = start[blockIdx.x + 1];
    float sum[V] = {0}, value[V];
    for (int i = start[blockIdx.x] + threadIdx.y; c < C && i < last; i += TABLE_LANES) {
        load(value, dx + (size_t)row[i] * C + c);
        for (int j = 0; j < V; j++) sum[j] += value[j];
    }
    for (int j = 0; j < V; j++) sums[threadIdx.y * 32 * V + at + j] = sum[j];
    __syncthreads();
    for (int i = threadIdx.y * 32 + threadIdx.x; i < 32 * V && (int)blockIdx.y * 32 * V + i < C;
         i += 32 * TABLE_LANES) {
        float total = 0, *to = dtable + (size_t)key[blockIdx.x] * C + blockIdx.y * 32 * V + i;
        for (int y = 0; y < TABLE_LANES; y++) total += sums[y * 32 * V + i];
        *to = total + (accumulate ? *to : 0);
    }
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

// From dx (R,C); patches as the forward pass left them.
template <typename Real>
static void image_embedding_backward(const Gpu *k, const TowerPointers *g, const Real *dx, Real *dembedded,
    const Real *patches, const Inputs *in, const Sequences *s, const ClipConfig *c, bool accumulate) {
    const int C = c->image_width, N = s->R - s->B;
    table_backward(k, g->positional_embedding, dx, in->by_position, config_image_tokens(c), C, accumulate);
    bias_backward(k, g->class_embedding, dx, (size_t)s->R / s->B * C, s->B, C,
        accumulate); // the first row of each image
    copy_rows(k, dembedded, (size_t)C, (int *)NULL, dx, (size_t)C, in->patch_rows, N, C, false);
    linear_backward(k, (Real *)NULL, g->conv1_weight, g->conv1_bias, dembedded, (size_t)C, patches, NULL, N,
        3 * c->patch_size * c->patch_size, C, accumulate);
}

template <typename Real>
static void text_embedding_backward(const Gpu *k, const TowerPointers *g, const Real *dx, const Inputs *in,
    const ClipConfig *c, bool accumulate) {
    table_backward(k, g->token_embedding, dx, in->by_token, c->vocab_size, c->text_width, accumulate);
    table_backward(
        k, g->positional_embedding, dx, in->by_position, c->context_length, c->text_width, accumulate);
}

// out (B,E) = x / |x|; norm (B) is kept. One warp a row.
__global__ void normalize_forward_kernel(float *out, float *norm, const float *x, int B, int E) {
    const int b = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= B) return;
    double sum = 0;
    for (int i = lane; i < E; i += 32) sum += (double)x[(size_t)b * E + i] * x[(size_t)b * E + i];
    const float length = (float)fmax(sqrt(warp_sum(sum)), 1e-12); // torch.nn.functional.normalize's eps
    for (int i = lane; i < E; i += 32) out[(size_t)b * E + i] = x[(size_t)b * E + i] / length;
    if (lane == 0) norm[b] = length;
}

static void normalize_forward(const Gpu *k, float *out, float *norm, const float *x, int B, int E) {
    LAUNCH(
        normalize_forward_kernel, blocks_for(B, ROW_WARPS), 32 * ROW_WARPS, 0, k->stream, out, norm, x, B, E);
}

// dx = (dout - out (out · dout)) / |x|
__global__ void normalize_backward_kernel(
    float *dx, const float *dout, const float *out, const float *norm, int B, int E) {
    const int b = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= B) return;
    const size_t row = (size_t)b * E;
    double dot = 0;
    for (int i = lane; i < E; i += 32) dot += (double)out[row + i] * dout[row + i];
    const float d = (float)warp_sum(dot);
    for (int i = lane; i < E; i += 32) dx[row + i] = (dout[row + i] - out[row + i] * d) / norm[b];
}

static void normalize_backward(
    const Gpu *k, float *dx, const float *dout, const float *out, const float *norm, int B, int E) {
    LAUNCH(normalize_backward_kernel, blocks_for(B, ROW_WARPS), 32 * ROW_WARPS, 0, k->stream, dx, dout, out,
        norm, B, E);
}

// ---------------------------------------------------------------- a tower

// One allocation that is handed out piece by piece, each at a multiple of 256 bytes.
typedef struct {
    char *base; // NULL: only count
    size_t used;
} Arena;

template <typename T> static void arena_take(Arena *a, T **out, size_t n) {
    const size_t at = a->used, floats = round_up(n * sizeof(T), sizeof(float)) / sizeof(float);
    a->used += round_up(n * sizeof(T), 256) + GUARD_FLOATS * sizeof(float);
    *out = a->base ? (T *)(a->base + at) : NULL;
    if (a->base) guard_behind((float *)(a->base + at), floats, (float *)(a->base + a->used));
}

// A chunk of one tensor, which one block of threads updates.
typedef struct {
    size_t offset;      // in the arena of weights
    size_t grad_offset; // in those of gradients, m, v and the moving average
    int count;          // floats, up to UPDATE_CHUNK
    int tensor;
} UpdateChunk;
enum { UPDATE_CHUNK = 8192 };

template <typename Real> struct Tower {
    Sequences seq, on_gpu; // the same twice: on the host; start and read on the GPU
    Inputs in;
    BlockActivations<Real> *blocks;       // (L)
    float *embedding;                     // (R,C) before ln_pre
    float *ln_pre_mean, *ln_pre_rstd;     // (R)
    float *last;                          // (B,C) output of the last block
    float *ln_final_mean, *ln_final_rstd; // (B)
    float *pooled,
        // (B,C) after the final LayerNorm: from here on all is fp32, since contrasts are small beside what
        // features share
        *dpooled;
    float *projected;         // (B,E) before L2 normalisation; its gradient
    float *norm, *features;   // (B), (B,E) of clip_encode_…
    Real *patches, *embedded; // image tower: (B*G*G,3*P*P), (B*G*G,C)
    Scratch<Real> scratch;
    char *arena; // all of the above
    size_t capacity;
};

struct Backend {
    Gpu gpu;
    char kernels[16];
    Precision precision;
    float *grads, *m, *v; // arenas as gpu.params, laid out by clip->tensors
    float *ema;           // moving average of the trainable tensors, laid out as the gradients; or NULL
    TensorPointers w, g;
    Tower<float> tower[2]; // one of the two kinds is in use
    Tower<bf16> tower_bf16[2];
    Feed feed[2][2]; // tower, turn
    int turn[2];
    int pairs;           // rows of features
    float *features[2];  // (pairs,E), L2-normalised
    float *dfeatures[2]; // (pairs,E)
    char *step_arena;    // features, their gradients, the loss
    LossScratch loss;
    UpdateChunk *chunks; // of the trainable tensors, then of all others
    int trainable_chunks, chunk_count;
    AdamWTerms *terms, *terms_pinned; // a tensor, on the GPU and on the host
    double *squares;                  // (1 + chunk_count) sums of squared gradients: in all, of each chunk
    bool grad_checkpointing;
    bool accumulate;        // gradients hold a part of the step already
    bool params_bf16_stale; // weights were written since
    float logit_scale;      // its exponential on the host; 0: to be read anew
};

template <typename Real> static Tower<Real> *tower_of(Backend *b, int tower);
template <> Tower<float> *tower_of<float>(Backend *b, int tower) { return &b->tower[tower]; }
template <> Tower<bf16> *tower_of<bf16>(Backend *b, int tower) { return &b->tower_bf16[tower]; }

template <typename Real>
static void block_layout(Arena *a, BlockActivations<Real> *k, size_t R, size_t Q, const TowerShape *d) {
    arena_take(a, &k->ln_1_mean, R);
    arena_take(a, &k->ln_1_rstd, R);
    arena_take(a, &k->qkv, R * 3 * d->C);
    arena_take(a, &k->attention, Q * d->C);
    arena_take(a, &k->lse, Q * d->NH);
    arena_take(a, &k->resid1, Q * d->C);
    arena_take(a, &k->ln_2_mean, Q);
    arena_take(a, &k->ln_2_rstd, Q);
    arena_take(a, &k->mlp_hidden, Q * d->F);
}

// Lays out a tower's activations for B sequences of R rows. Blocks that are not kept share one set, but for
// their inputs, of which there are two in turn. Returns the bytes needed; base NULL: only counts.
template <typename Real>
static size_t tower_layout(
    Tower<Real> *t, char *base, size_t B, size_t R, const ClipConfig *c, int tower, Keep keep) {
    Arena a = {base, 0};
    const TowerShape d = tower_shape(c, tower);
    const size_t C = (size_t)d.C, E = (size_t)d.E, wide = (size_t)(d.F > 3 * d.C ? d.F : 3 * d.C);
    BlockActivations<Real> shared;
    float *input[2] = {NULL, NULL};
    Scratch<Real> *s = &t->scratch;
    memset(&shared, 0, sizeof shared);
    if (tower == IMAGE_TOWER && c->ln_pre) {
        arena_take(&a, &t->embedding, R * C);
        arena_take(&a, &t->ln_pre_mean, R);
        arena_take(&a, &t->ln_pre_rstd, R);
    }
    if (keep.first > 0 || keep.inputs_only) block_layout(&a, &shared, R, R, &d);
    if (keep.first > 0) {
        arena_take(&a, &input[0], R * C);
        arena_take(&a, &input[1], R * C);
    }
    for (int l = 0; l < d.L; l++) {
        BlockActivations<Real> *block = &t->blocks[l];
        *block = shared;
        if (l >= keep.first && !keep.inputs_only) block_layout(&a, block, R, l == d.L - 1 ? B : R, &d);
        block->x = input[l % 2];
        if (l >= keep.first) arena_take(&a, &block->x, R * C);
    }
    arena_take(&a, &t->last, B * C);
    arena_take(&a, &t->ln_final_mean, B);
    arena_take(&a, &t->ln_final_rstd, B);
    arena_take(&a, &t->pooled, B * C);
    arena_take(&a, &t->dpooled, B * C);
    arena_take(&a, &t->projected, B * E);
    arena_take(&a, &t->norm, B);
    arena_take(&a, &t->features, B * E);
    if (tower == IMAGE_TOWER && R > B) {
        arena_take(&a, &t->patches, (R - B) * 3 * c->patch_size * c->patch_size);
        arena_take(&a, &t->embedded, (R - B) * C);
    }
    arena_take(&a, &s->ln, R * C);
    arena_take(&a, &s->wide, R * wide);
    arena_take(&a, &s->read_x, B * C);
    arena_take(&a, &s->read_a, B * C);
    arena_take(&a, &s->read_b, B * C);
    if (keep.backward) {
        arena_take(&a, &s->dx, R * C);
        arena_take(&a, &s->dy, R * C);
        arena_take(&a, &s->dz, B * C);
        arena_take(&a, &s->delta, R * d.NH);
    }
    return a.used;
}

// Bytes of a tower's activations for B sequences of R rows, trained on or not.
template <typename Real>
static size_t tower_bytes(
    const Clip *clip, int tower, size_t B, size_t R, bool training, bool checkpointing) {
    Tower<Real> counted;
    memset(&counted, 0, sizeof counted);
    counted.blocks = (BlockActivations<Real> *)calloc_check(
        clip_tower_layers(&clip->config, tower), sizeof *counted.blocks);
    size_t bytes = tower_layout(
        &counted, NULL, B, R, &clip->config, tower, tower_keep(clip, tower, false, checkpointing));
    if (training)
        bytes = max_i64(bytes, tower_layout(&counted, NULL, B, R, &clip->config, tower,
                                   tower_keep(clip, tower, true, checkpointing)));
    free(counted.blocks);
    return bytes;
}

// Takes memory for batches of this size, captions filling the context, so that no later batch asks for more.
template <typename Real> static void tower_reserve(Clip *clip, int tower, const ClipBatch *batch) {
    Backend *b = clip->back;
    Tower<Real> *t = tower_of<Real>(b, tower);
    const size_t B = t->seq.B;
    const size_t R =
        batch->pooled[tower] || tower == IMAGE_TOWER ? (size_t)t->seq.R : B * clip->config.context_length;
    const size_t need = tower_bytes<Real>(clip, tower, B, R, b->grads != NULL, b->grad_checkpointing);
    if (need <= t->capacity) return;
    char what[256];
    snprintf(what, sizeof what,
        "activations of the %s tower for %zu pairs (%.2f GB for half of them, %.2f GB with "
        "--grad-checkpointing)",
        tower == IMAGE_TOWER ? "image" : "text", B,
        (double)tower_bytes<Real>(clip, tower, B / 2, R / 2, b->grads != NULL, b->grad_checkpointing) / 1e9,
        (double)tower_bytes<Real>(clip, tower, B, R, b->grads != NULL, true) / 1e9);
    CUDA_CHECK(cudaStreamSynchronize(b->gpu.stream));
    CUDA_CHECK(cudaFree(t->arena));
    t->arena = (char *)gpu_malloc(need, what);
    t->capacity = need;
}

// Brings a tower's part of the batch to the GPU.
template <typename Real>
static void tower_feed(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    Backend *back = clip->back;
    const ClipConfig *c = &clip->config;
    const Gpu *k = &back->gpu;
    Tower<Real> *t = tower_of<Real>(back, tower);
    Feed *f = &back->feed[tower][back->turn[tower] ^= 1];
    const size_t B = t->seq.B, R = t->seq.R, pixels = B * 3 * c->image_size * c->image_size;
    const size_t bytes = tower == TEXT_TOWER ? 0 : pixels * (batch->images ? sizeof(float) : 1);
    Inputs *in = &t->in;
    memset(in, 0, sizeof *in);
    t->on_gpu = t->seq;
    if (batch->pooled[tower]) {
        const size_t numbers = B * tower_shape(c, tower).C;
        feed_begin(k, f, round_up(numbers * sizeof(float), 256));
        in->pooled = feed_add(k, f, batch->pooled[tower], numbers);
        return feed_end(k, f);
    }
    feed_begin(k, f,
        bytes + (tower == TEXT_TOWER ? B * c->context_length : R) * 9 * sizeof(int) + B * 2 * sizeof(int) +
            16 * 256);
    memcpy(feed_reserve(f, B + 1, (const int **)&t->on_gpu.start), t->seq.start, (B + 1) * sizeof(int));
    memcpy(feed_reserve(f, B, (const int **)&t->on_gpu.read), t->seq.read, B * sizeof(int));
    int *position = feed_reserve(f, R, &in->position);
    int *source = feed_reserve(f, R, &in->source);
    int *patch_rows = feed_reserve(f, R, &in->patch_rows);
    int patches = 0;
    for (size_t b = 0; b < B; b++)
        for (int row = t->seq.start[b], i = 0; row < t->seq.start[b + 1]; row++, i++) {
            if (tower == TEXT_TOWER) {
                position[row] = i;
                source[row] = batch->tokens[b * c->context_length + i];
            } else if (i == 0) {
                position[row] = 0;
                source[row] = -1;
            } else {
                position[row] = 1 + batch_patch(batch, (int)b, i - 1);
                source[row] = patches;
                patch_rows[patches++] = row;
            }
        }
    if (backward)
        in->by_position = feed_groups(
            f, position, (int)R, tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length);
    if (backward && tower == TEXT_TOWER) in->by_token = feed_groups(f, source, (int)R, c->vocab_size);
    if (tower == IMAGE_TOWER && batch->images) in->images = feed_add(k, f, batch->images, pixels);
    else if (tower == IMAGE_TOWER) in->pixels = feed_add(k, f, batch->pixels, pixels);
    feed_end(k, f);
}

// Sets the batch's sequences and makes room for their activations; `backward`: also for a backward pass.
template <typename Real>
static void tower_prepare(Clip *clip, int tower, const ClipBatch *batch, bool backward) {
    Tower<Real> *t = tower_of<Real>(clip->back, tower);
    sequences_of_batch(&t->seq, batch, tower, &clip->config);
    tower_reserve<Real>(clip, tower, batch);
    guard_lift((float *)t->arena, t->capacity / sizeof(float));
#ifdef CLIPC_EMULATE
    CUDA_CHECK(cudaMemsetAsync(t->arena, 0xff, t->capacity,
        clip->back->gpu.stream)); // NaN: what is read unwritten spoils the result
#endif
    tower_layout(t, t->arena, t->seq.B, t->seq.R, &clip->config, tower,
        tower_keep(clip, tower, backward, clip->back->grad_checkpointing));
    tower_feed<Real>(clip, tower, batch, backward);
}

// Everything before the projection: t->pooled (B,C).
template <typename Real> static void tower_pool(Clip *clip, int tower) {
    const Gpu *k = &clip->back->gpu;
    const ClipConfig *c = &clip->config;
    const TowerPointers *w = &clip->back->w.tower[tower];
    const TowerShape d = tower_shape(c, tower);
    Tower<Real> *t = tower_of<Real>(clip->back, tower);
    const Sequences *s = &t->on_gpu;
    float *x = t->blocks[0].x;
    if (tower == IMAGE_TOWER)
        image_embedding_forward(
            k, x, t->embedding, t->ln_pre_mean, t->ln_pre_rstd, t->embedded, t->patches, &t->in, s, w, c);
    else text_embedding_forward<Real>(k, x, &t->in, s, w, c);
    for (int l = 0; l < d.L; l++)
        block_forward(k, l + 1 < d.L ? t->blocks[l + 1].x : t->last, &t->blocks[l], &w->blocks[l], s,
            &t->scratch, d, l == d.L - 1);
    layernorm_forward(k, t->pooled, t->ln_final_mean, t->ln_final_rstd, t->last, w->ln_final_weight,
        w->ln_final_bias, s->B, d.C, d.eps);
}

// Encodes the batch into rows of `out` (B,E) on the GPU, L2-normalised; NULL: into t->features.
template <typename Real>
static void tower_forward(Clip *clip, int tower, float *out, const ClipBatch *batch, bool keep) {
    Backend *b = clip->back;
    const Gpu *k = &b->gpu;
    const TowerShape d = tower_shape(&clip->config, tower);
    tower_prepare<Real>(clip, tower, batch, keep);
    Tower<Real> *t = tower_of<Real>(b, tower);
    if (t->in.pooled)
        copy_rows(k, t->pooled, (size_t)d.C, (int *)NULL, t->in.pooled, (size_t)d.C, (int *)NULL, t->seq.B,
            d.C, false);
    else tower_pool<Real>(clip, tower);
    matmul(k, t->projected, d.E, row_major(t->pooled, d.C),
        row_major((const float *)b->w.tower[tower].proj, d.E), t->seq.B, d.E, d.C);
    normalize_forward(k, out ? out : t->features, t->norm, t->projected, t->seq.B, d.E);
    feed_release(k, &b->feed[tower][b->turn[tower]]);
}

// From the gradient of the normalised features (B,E) down to the lowest trainable group.
template <typename Real>
static void tower_backward(Clip *clip, int tower, const float *dfeatures, const float *features) {
    const int first = first_trainable_group(clip, tower), L = clip_tower_layers(&clip->config, tower);
    if (first > L + 1) return;
    Backend *b = clip->back;
    const Gpu *k = &b->gpu;
    const ClipConfig *c = &clip->config;
    const TowerPointers *w = &b->w.tower[tower], *g = &b->g.tower[tower];
    const TowerShape d = tower_shape(c, tower);
    Tower<Real> *t = tower_of<Real>(b, tower);
    Scratch<Real> *s = &t->scratch;
    const Sequences *seq = &t->on_gpu;
    const MatmulEpilogue<float> add = {NULL, b->accumulate ? g->proj : NULL};
    float *dprojected = t->projected; // its place is free now
    normalize_backward(k, dprojected, dfeatures, features, t->norm, seq->B, d.E);
    matmul(k, g->proj, d.E, transposed(t->pooled, d.C), row_major(dprojected, d.E), d.C, d.E, seq->B, add);
    if (first > L) return;
    matmul(k, t->dpooled, d.C, row_major(dprojected, d.E), transposed(w->proj, d.E), seq->B, d.C, d.E);
    layernorm_backward(k, s->dx, g->ln_final_weight, g->ln_final_bias, (Real *)NULL, t->dpooled, t->last,
        w->ln_final_weight, t->ln_final_mean, t->ln_final_rstd, seq->B, d.C, b->accumulate);
    for (int l = L - 1; l >= 0 && l + 1 >= first; l--) {
        if (b->grad_checkpointing)
            block_forward(k, (float *)NULL, &t->blocks[l], &w->blocks[l], seq, s, d, l == L - 1);
        block_backward(k, &g->blocks[l], &t->blocks[l], &w->blocks[l], seq, s, d, l == L - 1, b->accumulate);
    }
    if (first > 0) return;
    const Real *dembedding = s->dx;
    if (w->ln_pre_weight) {
        layernorm_backward(k, s->dy, g->ln_pre_weight, g->ln_pre_bias, (Real *)NULL, s->dx, t->embedding,
            w->ln_pre_weight, t->ln_pre_mean, t->ln_pre_rstd, seq->R, d.C, b->accumulate);
        dembedding = s->dy;
    }
    if (tower == IMAGE_TOWER)
        image_embedding_backward(k, g, dembedding, t->embedded, t->patches, &t->in, seq, c, b->accumulate);
    else text_embedding_backward(k, g, dembedding, &t->in, c, b->accumulate);
    feed_release(k, &b->feed[tower][b->turn[tower]]);
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

// AdamW (Loshchilov and Hutter 2019, algorithm 2), a chunk a block; see AdamWTerms. Gradients are scaled by min(1,
// clip_norm / norm) if clip_norm > 0, squares (1) being the square of their norm.
//   params_bf16: the weights in bf16, or NULL;  ema: their moving average, or NULL
__global__ void adamw_kernel(float *params, bf16 *params_bf16, const float *grads, float *m, float *v,
    float *ema, const UpdateChunk *chunks, const AdamWTerms *terms, const double *squares, double clip_norm,
    float ema_decay, int logit_scale) {
    const UpdateChunk chunk = chunks[blockIdx.x];
    const AdamWTerms t = terms[chunk.tensor];
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
            if (chunk.tensor == logit_scale) p[j] = fminf(fmaxf(p[j], 0), (float)LOGIT_SCALE_MAX);
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
                    x->offset + at, x->slot + at, (int)min_i64(UPDATE_CHUNK, x->count - at), i};
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

// ---------------------------------------------------------------- the model (the functions of clipc/model/clip.h)

// An arena for parameters, or (slots) for gradients, m or v; zero, with guards between the tensors.
static float *tensors_create(const TensorTable *t, bool slots, const char *what) {
    const size_t floats = slots ? t->slots : t->floats;
    float *arena = (float *)gpu_malloc(floats * sizeof(float), what);
    CUDA_CHECK(cudaMemset(arena, 0, floats * sizeof(float)));
    for (int i = 0; i < t->count; i++) {
        float *x = tensor_in(&t->list[i], arena, slots);
        if (x) guard_behind(x, t->list[i].count, x + round_up(t->list[i].count, 16) + GUARD_FLOATS);
    }
    return arena;
}

static void gpu_create(Gpu *k, char kernels[16]) {
    int count = 0;
    cudaDeviceProp device;
    if (cudaGetDeviceCount(&count) != cudaSuccess || !count)
        die(EXIT_RUNTIME, "no GPU is found here; nvidia-smi tells whether its driver runs. ./train_clip "
                          "computes on the CPU");
    CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
    if (device.major < 8)
        die(EXIT_RUNTIME, "%s has compute capability %d.%d, 8.0 is needed; ./train_clip computes on the CPU",
            device.name, device.major, device.minor);
#ifdef CLIPC_EMULATE
    snprintf(kernels, 16, "emulated");
#else
    snprintf(kernels, 16, "sm_%d%d", device.major, device.minor);
#endif
    CUDA_CHECK(cudaStreamCreate(
        &k->stream)); // both keep the order with what is done without a stream, as cudaMemcpy()
    CUDA_CHECK(cudaStreamCreate(&k->copies));
    k->matmul = matmul_create();
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
    b->gpu.params = tensors_create(&clip->tensors, false, "weights");
    tensor_pointers_bind(&b->w, &clip->tensors, config, b->gpu.params, false);
    size_t widest = (size_t)config->embed_dim;
    for (int tower = 0; tower < 2; tower++) {
        const TowerShape d = tower_shape(config, tower);
        if (d.C / d.NH > LARGEST_HEAD)
            die(EXIT_USAGE, "heads of %d channels; up to %d run on a GPU", d.C / d.NH, LARGEST_HEAD);
        if (d.C > (d.C % 4 ? 1024 : 4096))
            die(EXIT_USAGE, "a width of %d; multiples of 4 up to 4096 run on a GPU", d.C);
        b->tower[tower].blocks = (BlockActivations<float> *)calloc_check(d.L, sizeof *b->tower[tower].blocks);
        b->tower_bf16[tower].blocks =
            (BlockActivations<bf16> *)calloc_check(d.L, sizeof *b->tower_bf16[tower].blocks);
        widest = max_i64(widest, max_i64(2 * d.C, max_i64(3 * d.C, d.F) / 8));
        for (int turn = 0; turn < 2; turn++) {
            feed_create(&b->feed[tower][turn]);
        }
    }
    b->gpu.partials = (float *)gpu_malloc(MAX_PARTIALS * widest * sizeof(float), "partial sums");
    b->terms = (AdamWTerms *)gpu_malloc(clip->tensors.count * sizeof *b->terms, "tables");
    CUDA_CHECK(cudaMallocHost(&b->terms_pinned, clip->tensors.count * sizeof *b->terms_pinned));
    chunks_create(clip);
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
    const uint64_t hash =
        weight_file_write(out, &clip->config, clip->merges, clip->merges_bytes, &clip->tensors, arena);
    free(arena);
    return hash;
}

template <typename Real> static void tower_free(Tower<Real> *t) {
    sequences_free(&t->seq);
    free(t->blocks);
    CUDA_CHECK(cudaFree(t->arena));
}

void clip_free(Clip *clip) {
    Backend *b = clip->back;
    CUDA_CHECK(cudaDeviceSynchronize());
    for (int tower = 0; tower < 2; tower++) {
        tower_free(&b->tower[tower]);
        tower_free(&b->tower_bf16[tower]);
        for (int turn = 0; turn < 2; turn++) {
            feed_free(&b->feed[tower][turn]);
        }
    }
    void *arenas[] = {b->gpu.params, b->gpu.params_bf16, b->gpu.partials, b->grads, b->m, b->v, b->ema,
        b->step_arena, b->chunks, b->squares, b->terms};
    for (void *arena : arenas) CUDA_CHECK(cudaFree(arena));
    CUDA_CHECK(cudaFreeHost(b->terms_pinned));
    matmul_free(b->gpu.matmul);
    CUDA_CHECK(cudaStreamDestroy(b->gpu.stream));
    CUDA_CHECK(cudaStreamDestroy(b->gpu.copies));
    tensor_pointers_free(&b->w);
    tensor_pointers_free(&b->g);
    tensor_table_free(&clip->tensors);
    free(b);
    free(clip->merges);
    free(clip);
}

PrecisionSupport clip_precision_support(Precision precision) {
#ifdef CLIPC_EMULATE
    return precision == PRECISION_FP32       ? SUPPORT_NATIVE
           : precision == PRECISION_AMP_BF16 ? SUPPORT_SLOW
                                             : SUPPORT_NONE;
#else
    return (void)precision, SUPPORT_NATIVE; // any GPU since compute capability 8.0, which is asked for
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

// Weights that were written from outside have no copy in bf16 yet.
static void weights_refresh(Backend *b) {
    if (b->gpu.params_bf16 && b->params_bf16_stale)
        LAUNCH(exchange_kernel, b->chunk_count, 256, 0, b->gpu.stream, b->gpu.params, b->gpu.params_bf16,
            (float *)NULL, b->chunks);
    b->params_bf16_stale = false;
}

// Features of a step, their gradients, and what the loss needs; returns the bytes, base NULL: only counts.
static size_t step_layout(Backend *b, char *base, size_t n, size_t E) {
    enum { LOGITS = 1 << 25 }; // numbers held at a time
    Arena a = {base, 0};
    LossScratch *t = &b->loss;
    t->tile = (int)max_i64(1, min_i64(n, LOGITS / n));
    for (int tower = 0; tower < 2; tower++) {
        arena_take(&a, &b->features[tower], n * E);
        arena_take(&a, &b->dfeatures[tower], n * E);
    }
    arena_take(&a, &t->logits, t->tile * n);
    arena_take(&a, &t->row_lse, n);
    arena_take(&a, &t->column_lse, n);
    arena_take(&a, &t->target, n);
    arena_take(&a, &t->column_sum, n);
    arena_take(&a, &t->positive_mean, n);
    arena_take(&a, &t->row_loss, n);
    arena_take(&a, &t->row_dot, n);
    arena_take(&a, &t->totals, 2);
    arena_take(&a, &t->keys, n);
    return a.used;
}

void clip_start_training(Clip *clip, const ClipTraining *how) {
    Backend *b = clip->back;
    const TensorTable *t = &clip->tensors;
    float **arenas[] = {&b->grads, &b->m, &b->v, &b->ema};
    for (int i = 0; i < 4; i++) {
        CUDA_CHECK(cudaFree(*arenas[i]));
        *arenas[i] = i < 3 || how->ema ? tensors_create(t, true, "gradients and optimizer state") : NULL;
    }
    for (int i = 0; how->ema && i < t->count; i++) {
        const Tensor *x = &t->list[i];
        if (x->trainable)
            CUDA_CHECK(cudaMemcpy(b->ema + x->slot, b->gpu.params + x->offset, x->count * sizeof(float),
                cudaMemcpyDeviceToDevice));
    }
    tensor_pointers_bind(&b->g, t, &clip->config, b->grads, true);
    chunks_create(clip);
    b->pairs = how->pairs;
    b->grad_checkpointing = how->grad_checkpointing;
    b->accumulate = false;
    CUDA_CHECK(cudaFree(b->step_arena));
    const size_t bytes = step_layout(b, NULL, how->pairs, clip->config.embed_dim);
    step_layout(b, b->step_arena = (char *)gpu_malloc(bytes, "features and logits of a step"), how->pairs,
        clip->config.embed_dim);
}

void clip_memory(
    const Clip *clip, int batch_size, size_t *parameters, size_t *training, size_t *activations) {
    const ClipConfig *c = &clip->config;
    const Backend *b = clip->back;
    Backend counted = *b;
    *parameters = clip->tensors.floats * (sizeof(float) + (b->gpu.params_bf16 ? sizeof(bf16) : 0));
    *training = (b->ema ? 4 : 3) * clip->tensors.slots * sizeof(float);
    *activations = step_layout(&counted, NULL, max_i64(1, b->pairs), c->embed_dim) +
                   2 * (size_t)batch_size * 3 * c->image_size * c->image_size; // pixels
    for (int tower = 0; tower < 2; tower++) {
        const size_t R =
            (size_t)batch_size * (tower == IMAGE_TOWER ? config_image_tokens(c) : c->context_length);
        *activations += b->precision == PRECISION_AMP_BF16
                            ? tower_bytes<bf16>(clip, tower, batch_size, R, true, b->grad_checkpointing)
                            : tower_bytes<float>(clip, tower, batch_size, R, true, b->grad_checkpointing);
    }
}

// One of two instances of a function by the precision at hand
#define BY_PRECISION(clip, function) \
    ((clip)->back->precision == PRECISION_AMP_BF16 ? function<bf16> : function<float>)

template <typename Real> static void encode(Clip *clip, int tower, const ClipBatch *batch, float *features) {
    weights_refresh(clip->back);
    tower_forward<Real>(clip, tower, NULL, batch, false);
    CUDA_CHECK(cudaMemcpyAsync(features, tower_of<Real>(clip->back, tower)->features,
        (size_t)batch->size * clip->config.embed_dim * sizeof(float), cudaMemcpyDeviceToHost,
        clip->back->gpu.stream));
    CUDA_CHECK(cudaStreamSynchronize(clip->back->gpu.stream));
}

void clip_encode_image(Clip *clip, const ClipBatch *batch, float *features) {
    BY_PRECISION(clip, encode)(clip, IMAGE_TOWER, batch, features);
}
void clip_encode_text(Clip *clip, const ClipBatch *batch, float *features) {
    BY_PRECISION(clip, encode)(clip, TEXT_TOWER, batch, features);
}

template <typename Real> static void pool(Clip *clip, int tower, const ClipBatch *batch, float *pooled) {
    const Gpu *k = &clip->back->gpu;
    const size_t n = (size_t)batch->size * tower_shape(&clip->config, tower).C;
    weights_refresh(clip->back);
    tower_prepare<Real>(clip, tower, batch, false);
    tower_pool<Real>(clip, tower);
    CUDA_CHECK(cudaMemcpyAsync(pooled, tower_of<Real>(clip->back, tower)->pooled, n * sizeof(float),
        cudaMemcpyDeviceToHost, k->stream));
    CUDA_CHECK(cudaStreamSynchronize(k->stream));
}

void clip_pool(Clip *clip, int tower, const ClipBatch *batch, float *pooled) {
    BY_PRECISION(clip, pool)(clip, tower, batch, pooled);
}

void clip_forward(Clip *clip, const ClipBatch *batch, int first_row, bool keep) {
    weights_refresh(clip->back);
    for (int tower = TEXT_TOWER; tower >= IMAGE_TOWER;
         tower--) // text first: while it is computed, pixels are copied
        BY_PRECISION(clip, tower_forward)
    (clip, tower, clip->back->features[tower] + (size_t)first_row * clip->config.embed_dim, batch, keep);
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
        BY_PRECISION(clip, tower_backward)(clip, tower, b->dfeatures[tower] + row, b->features[tower] + row);
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
    return tensor_in(x, bases[arena], arena != ARENA_PARAMETERS);
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

#ifndef CLIP_WITHOUT_MAIN
#include "clipc/train/training.h" // train_main, evaluate_main, classify_main, print_schedule_main

int main(int argc, char **argv) {
    Options options;
    options_parse(&options, argc, argv);
    Training training;
    memset(&training, 0, sizeof training);
    training.o = &options;
    if (options.print_schedule) return print_schedule_main(&training);
    const int code = options.classify.count ? classify_main(&training)
                     : options.eval_only    ? evaluate_main(&training)
                                            : train_main(&training);
    training_free(&training);
    return code;
}
#endif
