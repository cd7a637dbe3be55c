// The GPU kernels of all layers but attention, and the loss; the layers are in train_clip.cu, which says what
// each computes. (AdamW's are there as well.) Rows of `ld` are that many numbers apart.
#ifndef CLIPC_GPU_KERNELS_H
#define CLIPC_GPU_KERNELS_H

#include "clipc/math/gpu.h"        // load, store, warp_sum
#include "clipc/math/gpu_matmul.h" // matmul, block_sum
#include "clipc/math/loss.h"       // Positives, LOSS_MASKED
#include "clipc/math/plain.h"      // Activation

// ---------------------------------------------------------------- column sums

// Column sums by blocks of (32,8) threads: a thread has V columns of its own and every eighth row of the
// block's chunk of rows. The sums of the chunks are then added in order: the same bits whichever block is
// first.
enum { COLUMN_CHUNKS = 128, COLUMN_SHARED = 8 * 32 * 8 * sizeof(float) };
enum { MAX_PARTIALS = 1024 }; // the largest number of chunks, of column sums and of layernorm_backward()
static inline int column_chunks(int N) { return N < 8 * COLUMN_CHUNKS ? (N + 7) / 8 : COLUMN_CHUNKS; }

// Adds up what the eight threads of a column have summed, into partials (chunks,O); sums (8,32*V).
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

// partials (chunks,O) = the column sums of each chunk of rows of x (N,O; ld)
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

// out (n) (+)= the sum of partials (chunks,n; ld)
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

// ---------------------------------------------------------------- row copies

// Row to[i] of out (ld) = row from[i] of x (ld), or += it; NULL means i.
template <typename Real, int V>
__global__ void copy_rows_kernel(Real *out, size_t out_ld, const int *to, const Real *x, size_t x_ld,
    const int *from, int n, int C, bool add) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const size_t packs = (size_t)C / V, row = i / packs, c = i % packs * V;
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

// ---------------------------------------------------------------- LayerNorm

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

// A block walks down a chunk of rows, two at a time; a thread owns V columns. With n = (x - mean) rstd and g
// = dout gain:
//   dx = skip + rstd (g - mean(g) - n mean(g n)) of every row;  partials (chunks,2C): the chunk's sums of
//       dgain and dbias
template <int V, typename Real, typename DOut>
__global__ void layernorm_backward_kernel(Real *dx, float *partials, const Real *skip, const DOut *dout,
    const float *x, const float *gain, const float *mean, const float *rstd, int N, int C) {
    SHARED_ARRAY(float, sums); // (2,4,32): in turn, so that one barrier a pair of rows will do
    const int c = threadIdx.x * V;
    const int warps = blockDim.x / 32;
    const int last = (int)((int64_t)N * (blockIdx.x + 1) / gridDim.x);
    const bool mine = c < C;
    float g[V] = {0}, d[2][V], n[2][V], result[2][V], dgain[V] = {0}, dbias[V] = {0};
    if (mine) load(g, gain + c);
    for (int i = (int)((int64_t)N * blockIdx.x / gridDim.x), turn = 0; i < last; i += 2, turn ^= 1) {
        float m[2] = {0};
        float r[2] = {0};
        float sum[4] = {0};
        float *s = sums + turn * 128; // sums of g and of g * n, of both rows
        UNROLLED
        for (int k = 0; k < 2; k++) {
            const size_t row = (size_t)(i + k) * C + c;
            for (int j = 0; j < V; j++) d[k][j] = n[k][j] = result[k][j] = 0;
            if (!mine || i + k >= last) continue;
            m[k] = mean[i + k];
            r[k] = rstd[i + k];
            load(d[k], dout + row);
            load(n[k], x + row);
            if (skip) load(result[k], skip + row);
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
                result[k][j] +=
                    r[k] * (d[k][j] * g[j] - sum[2 * k] / (float)C - n[k][j] * (sum[2 * k + 1] / (float)C));
            store(dx + (size_t)(i + k) * C + c, result[k]);
        }
    }
    if (!mine) return;
    store(partials + (size_t)blockIdx.x * 2 * C + c, dgain);
    store(partials + (size_t)blockIdx.x * 2 * C + C + c, dbias);
}

// ---------------------------------------------------------------- activation

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

// activation(x), see clipc/math/plain.h
template <typename Real> __device__ inline float activation_of(float x, Activation activation) {
    float density;
    switch (activation) {
    case ACTIVATION_GELU: return x * normal_cdf<Real>(x, &density);
    case ACTIVATION_QUICK_GELU: return x * reciprocal<Real>(1.0f + exponential<Real>(-1.702f * x));
    }
    return NAN;
}

// activation'(x): cdf + x pdf; of QuickGELU s + 1.702 x s (1 - s) with s = 1 / (1 + e), where e s is 1 - s
// without cancellation
template <typename Real> __device__ inline float activation_slope(float x, Activation activation) {
    switch (activation) {
    case ACTIVATION_GELU: {
        float density;
        const float cdf = normal_cdf<Real>(x, &density);
        return cdf + x * 0.398942280f * density;
    }
    case ACTIVATION_QUICK_GELU: {
        const float e = exponential<Real>(fminf(-1.702f * x, 85.0f)); // must not overflow
        const float s = reciprocal<Real>(1.0f + e);
        return s + 1.702f * x * s * (e * s);
    }
    }
    return NAN;
}

template <typename Real, int V>
__global__ void activation_forward_kernel(Real *out, const Real *x, size_t n, Activation activation) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    float v[V];
    load(v, x + i);
    for (int j = 0; j < V; j++) v[j] = activation_of<Real>(v[j], activation);
    store(out + i, v);
}

// In one pass also the column sums of dx, as column_sums_kernel() takes them
template <typename Real, int V>
__global__ void activation_backward_kernel(
    Real *dx, float *partials, const Real *x, const Real *dout, int N, int F, Activation activation) {
    SHARED_ARRAY(float, sums); // (8,32*V)
    const int c = (blockIdx.x * 32 + threadIdx.x) * V;
    const int last = (int)((int64_t)N * (blockIdx.y + 1) / gridDim.y);
    float sum[V] = {0}, v[V], d[V];
    for (int r = (int)((int64_t)N * blockIdx.y / gridDim.y) + threadIdx.y; c < F && r < last; r += 8) {
        load(v, x + (size_t)r * F + c);
        load(d, dout + (size_t)r * F + c);
        for (int j = 0; j < V; j++) {
            d[j] *= activation_slope<Real>(v[j], activation);
            sum[j] += d[j];
        }
        store(dx + (size_t)r * F + c, d);
    }
    write_column_sums(partials, sums, sum, F);
}

// ---------------------------------------------------------------- embeddings

// patches (N, 3*P*P): the pixels under each patch in the order of conv1's weights; a convolution whose stride
// is its size is a matrix product over them. Bytes are normalised as torchvision does: (x / 255 - mean) / std
// in fp32.
template <typename Real, int V, typename Pixel>
__global__ void patches_kernel(Real *patches, const Pixel *pixels, const int *patch_rows, const int *position,
    int patches_per_image, int S, int P, float3 mean, float3 std) {
    const int i = blockIdx.x;
    const int patch = position[patch_rows[i]] - 1;
    const int G = S / P;
    const int b = i / patches_per_image;
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

// embedding (R,C) = row source[i] of `rows` (if NULL, of `table`; if source[i] < 0, the first of `table`) +
// the position's vector; with a gain also x (R,C), its LayerNorm
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

// ---------------------------------------------------------------- L2 normalisation

// One row by one warp.
__global__ void normalize_forward_kernel(float *out, float *norm, const float *x, int B, int E) {
    const int b = blockIdx.x * ROW_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (b >= B) return;
    double sum = 0;
    for (int i = lane; i < E; i += 32) sum += (double)x[(size_t)b * E + i] * x[(size_t)b * E + i];
    const float length = (float)fmax(sqrt(warp_sum(sum)), 1e-12); // torch.nn.functional.normalize's eps
    for (int i = lane; i < E; i += 32) out[(size_t)b * E + i] = x[(size_t)b * E + i] / length;
    if (lane == 0) norm[b] = length;
}

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

// ---------------------------------------------------------------- the contrastive loss

// The contrastive loss of clipc/math/loss.h on a GPU: the same passes over tiles of logits, in fp32. The
// order of every sum is fixed, whichever thread is first.

// Buffers of contrastive_loss() for up to `pairs` pairs, on the GPU.
typedef struct {
    int tile;              // rows of logits held at a time
    float *logits;         // (tile,pairs), then their gradients
    float *row_lse;        // (pairs) log-sum-exp of each row of logits
    float *column_lse;     // (pairs) of each column; until all rows are seen, the running maximum
    double *column_sum;    // (pairs) running sum of e^(logit - running maximum) of each column
    float *target;         // (pairs) 1 / number of the row's positives: the target of each of them
    double *positive_mean; // (pairs) mean logit of the row's positives
    double *row_loss;      // (pairs) what each pair adds to the loss
    double *row_dot;       // (pairs) sum over the row of gradient * logit
    double *totals;        // (2) loss; its gradient with respect to logit_scale
    uint64_t *keys;        // (pairs)
} LossScratch;

// Row i0 + blockIdx.x of the logits: masks pairs that are left out, takes the log-sum-exp and the mean over
// its positives.
__global__ void loss_rows_kernel(float *row_lse, double *positive_mean, float *target, float *logits,
    const uint64_t *keys, Positives positives, int i0, int n) {
    SHARED_ARRAY(double, sums); // (32)
    const int i = i0 + blockIdx.x;
    float *row = logits + (size_t)blockIdx.x * n, max = -INFINITY, sum = 0;
    double positive_sum = 0, count = 0;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const bool equal = i == j || (keys && positives != POSITIVES_DIAGONAL && keys[i] == keys[j]);
        if (equal && i != j && positives == POSITIVES_MASK) row[j] = LOSS_MASKED;
        else if (equal) {
            positive_sum += row[j];
            count++;
        }
        const float before = max;
        max = fmaxf(max, row[j]);
        if (max > before) sum *= expf(before - max);
        sum += expf(row[j] - max);
    }
    float most = max;
    for (int lanes = 16; lanes; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, lanes));
    float *warp_max = (float *)sums;
    if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = most;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; w++) most = fmaxf(most, warp_max[w]);
    __syncthreads();
    const double total = block_sum(max > -INFINITY ? (double)sum * expf(max - most) : 0, sums);
    positive_sum = block_sum(positive_sum, sums);
    count = block_sum(count, sums);
    if (threadIdx.x) return;
    row_lse[i] = most + (float)log(total);
    target[i] = (float)(1 / count);
    positive_mean[i] = positive_sum / count;
}

// Continues the running maximum and sum of e^(x - maximum) of each column by the m rows of a tile; `first`:
// begins them.
__global__ void loss_columns_kernel(
    float *column_max, double *column_sum, const float *logits, int m, int n, bool first) {
    SHARED_ARRAY(float, shared); // (2,8,32)
    const int j = blockIdx.x * 32 + threadIdx.x, at = threadIdx.y * 32 + threadIdx.x;
    float max = -INFINITY, sum = 0;
    for (int i = threadIdx.y; j < n && i < m; i += 8) {
        const float x = logits[(size_t)i * n + j], before = max;
        max = fmaxf(max, x);
        if (max > before) sum *= expf(before - max);
        sum += expf(x - max);
    }
    shared[at] = max;
    shared[256 + at] = sum;
    __syncthreads();
    if (threadIdx.y || j >= n) return;
    const float before = first ? -INFINITY : column_max[j];
    float most = before;
    for (int y = 0; y < 8; y++) most = fmaxf(most, shared[y * 32 + threadIdx.x]);
    double total = first ? 0 : column_sum[j] * exp((double)before - most);
    for (int y = 0; y < 8; y++)
        total += (double)shared[256 + y * 32 + threadIdx.x] * expf(shared[y * 32 + threadIdx.x] - most);
    column_max[j] = most;
    column_sum[j] = total;
}

// column_lse from running maximum and sum, and what each pair adds to the loss. The matrix of targets is
// symmetric, so a pair's row and column have the same mean over positives.
__global__ void loss_pairs_kernel(double *row_loss, float *column_lse, const double *column_sum,
    const float *row_lse, const double *positive_mean, int n) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    column_lse[j] += (float)log(column_sum[j]);
    row_loss[j] = 0.5 * ((double)row_lse[j] + column_lse[j] - 2 * positive_mean[j]) / n;
}

// Replaces a row of logits by its gradient: (softmax over the row + softmax over the column - 2 targets) / 2n
__global__ void loss_gradient_kernel(float *logits, double *row_dot, const float *row_lse,
    const float *column_lse, const float *target, const double *positive_mean, const uint64_t *keys,
    Positives positives, int i0, int n) {
    SHARED_ARRAY(double, sums); // (32)
    const int i = i0 + blockIdx.x;
    float *row = logits + (size_t)blockIdx.x * n;
    double dot = 0;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        const float x = row[j];
        const float g = (expf(x - row_lse[i]) + expf(x - column_lse[j])) * (0.5f / (float)n);
        const bool positive = i == j || (positives == POSITIVES_SOFT && keys[i] == keys[j]);
        dot += (double)g * x;
        row[j] = positive ? g - target[i] / (float)n : g;
    }
    dot = block_sum(dot, sums);
    if (threadIdx.x == 0) row_dot[i] = dot - positive_mean[i] / n;
}

// out (M,N) (+)= scale * a · b, never in tf32
static inline void loss_product(const Gpu *k, float *out, int ldo, GpuMatrix<float> a, GpuMatrix<float> b,
    int M, int N, int K, float scale, bool accumulate) {
    const MatmulEpilogue<float> epilogue = {NULL, accumulate ? out : NULL};
    matmul(k, out, ldo, a, b, M, N, K, epilogue, scale, MATMUL_EXACT);
}

// Logits of images i0 … i0+m-1 with all texts, and the row sums over them.
static inline void loss_tile(const Gpu *k, const LossScratch *t, const float *image, const float *text,
    const uint64_t *keys, Positives positives, int i0, int m, int n, int E, float scale) {
    loss_product(
        k, t->logits, n, rows_of(image + (size_t)i0 * E, E), transposed(text, E), m, n, E, scale, false);
    LAUNCH(loss_rows_kernel, m, 256, 32 * sizeof(double), k->stream, t->row_lse, t->positive_mean, t->target,
        t->logits, keys, positives, i0, n);
}

// contrastive_loss() of clipc/math/loss.h on the GPU; waits for the result.
//   dimage, dtext (n,E)  gradients with respect to the features; NULL: the loss alone
//   image, text (n,E)    L2-normalised features;  keys (n), NULL only with POSITIVES_DIAGONAL
//   scale                exp(logit_scale)
static inline double contrastive_loss(const Gpu *k, float *dimage, float *dtext, double *dlogit_scale,
    const LossScratch *t, const float *image, const float *text, const uint64_t *keys, Positives positives,
    int n, int E, float scale) {
    assert(n > 0 && E > 0 && t->tile > 0 && "a loss over nothing");
    assert((keys || positives == POSITIVES_DIAGONAL) && "soft and masked positives need keys");
    assert(!dimage == !dtext && "gradients of both towers or of none");
    const int tile = n < t->tile ? n : t->tile;
    const size_t shared = 32 * sizeof(double);
    double totals[2] = {0, 0};
    for (int i0 = 0; i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        loss_tile(k, t, image, text, keys, positives, i0, m, n, E, scale);
        LAUNCH(loss_columns_kernel, blocks_for(n, 32), dim3(32, 8), 2 * 256 * sizeof(float), k->stream,
            t->column_lse, t->column_sum, t->logits, m, n, i0 == 0);
    }
    LAUNCH(loss_pairs_kernel, blocks_for(n, 256), 256, 0, k->stream, t->row_loss, t->column_lse,
        t->column_sum, t->row_lse, t->positive_mean, n);
    LAUNCH(total_kernel, 1, 1024, shared, k->stream, t->totals, t->row_loss, (size_t)n);
    for (int i0 = 0; dimage && i0 < n; i0 += tile) {
        const int m = n - i0 < tile ? n - i0 : tile;
        const bool accumulate = i0 > 0;
        if (n > tile) // else the logits are still there
            loss_tile(k, t, image, text, keys, positives, i0, m, n, E, scale);
        LAUNCH(loss_gradient_kernel, m, 256, shared, k->stream, t->logits, t->row_dot, t->row_lse,
            t->column_lse, t->target, t->positive_mean, keys, positives, i0, n);
        loss_product(
            k, dimage + (size_t)i0 * E, E, rows_of(t->logits, n), rows_of(text, E), m, E, n, scale, false);
        loss_product(k, dtext, E, transposed(t->logits, n), rows_of(image + (size_t)i0 * E, E), n, E, m,
            scale, accumulate);
    }
    if (dimage) LAUNCH(total_kernel, 1, 1024, shared, k->stream, t->totals + 1, t->row_dot, (size_t)n);
    CUDA_CHECK(cudaMemcpyAsync(
        totals, t->totals, (dimage ? 2 : 1) * sizeof *totals, cudaMemcpyDeviceToHost, k->stream));
    CUDA_CHECK(cudaStreamSynchronize(k->stream));
    if (dimage)
        *dlogit_scale = totals[1]; // logits = exp(logit_scale) * cosine: d logits / d logit_scale = logits
    return totals[0];
}

#endif
