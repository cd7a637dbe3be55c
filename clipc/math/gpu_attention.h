// Attention kernels over packed sequences, forward and backward; the equations are with attention_forward()
// and attention_backward() in train_clip.cu.
//
// A block of threads takes ROWS queries of one head (in the backward pass: ROWS queries, or ROWS keys), a
// warp 16 of them, and walks over the rest of the sequence in tiles of ROWS, which it loads into shared
// memory. Scores never leave it: a warp's 16 rows of them, in fp32, are overwritten by probabilities.
#ifndef CLIPC_GPU_ATTENTION_H
#define CLIPC_GPU_ATTENTION_H

#include "clipc/math/gpu.h" // load, store, warp_sum, bf16

#include <type_traits> // std::conditional

enum { LARGEST_HEAD = 128 }; // channels of a head
template <typename Real> constexpr int ATTENTION_ROWS = sizeof(Real) == 2 ? 64 : 32;

// ---------------------------------------------------------------- tiles

// 16 x 16 sums in fp32, held by a warp.
template <typename Real> struct Tile;

// bf16: by tensor cores. CUDA leaves open which lane holds which element, so tiles are only added to and
// stored.
template <> struct Tile<bf16> {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum;
    __device__ void clear() { nvcuda::wmma::fill_fragment(sum, 0.0f); }
    __device__ void store(float *to, int ld) const {
        nvcuda::wmma::store_matrix_sync(to, sum, ld, nvcuda::wmma::mem_row_major);
    }

    // out (16, n tiles) += a (16, 16 * depth) · b, all in shared memory; a and b may be stored transposed
    template <bool A_TRANSPOSED, bool B_TRANSPOSED, int N>
    static __device__ void multiply(
        Tile (&out)[N], int n, const bf16 *a, int lda, int depth, const bf16 *b, int ldb) {
        using namespace nvcuda::wmma;
        for (int d = 0; d < depth; d++) {
            fragment<matrix_a, 16, 16, 16, bf16,
                typename std::conditional<A_TRANSPOSED, col_major, row_major>::type>
                x;
            load_matrix_sync(x, A_TRANSPOSED ? a + 16 * d * lda : a + 16 * d, lda);
            UNROLLED
            for (int j = 0; j < N; j++) {
                if (j >= n) continue;
                fragment<matrix_b, 16, 16, 16, bf16,
                    typename std::conditional<B_TRANSPOSED, col_major, row_major>::type>
                    y;
                load_matrix_sync(
                    y, B_TRANSPOSED ? b + 16 * j * ldb + 16 * d : b + 16 * d * ldb + 16 * j, ldb);
                mma_sync(out[j].sum, x, y, out[j].sum);
            }
        }
    }
};

// fp32, without tensor cores: a lane holds 8 neighbours of row lane / 2.
template <> struct Tile<float> {
    float sum[8];
    __device__ void clear() {
        for (int i = 0; i < 8; i++) sum[i] = 0;
    }
    __device__ void store(float *to, int ld) const {
        for (int i = 0; i < 8; i++) to[threadIdx.x % 32 / 2 * ld + threadIdx.x % 2 * 8 + i] = sum[i];
    }

    template <bool A_TRANSPOSED, bool B_TRANSPOSED, int N>
    static __device__ void multiply(
        Tile (&out)[N], int n, const float *a, int lda, int depth, const float *b, int ldb) {
        const int row = threadIdx.x % 32 / 2, column = threadIdx.x % 2 * 8;
        for (int d = 0; d < 16 * depth; d++) {
            const float x = A_TRANSPOSED ? a[d * lda + row] : a[row * lda + d];
            UNROLLED
            for (int j = 0; j < N; j++) {
                if (j >= n) continue;
                UNROLLED
                for (int i = 0; i < 8; i++)
                    out[j].sum[i] = fmaf(x,
                        B_TRANSPOSED ? b[(16 * j + column + i) * ldb + d] : b[d * ldb + 16 * j + column + i],
                        out[j].sum[i]);
            }
        }
    }
};

// tile (n,HS), rows ld apart, = rows of `from`, `stride` apart; zeros up to full 16 x 16 tiles
template <typename Real, int V>
__device__ void load_tile_by(Real *tile, int ld, const Real *from, size_t stride, int n, int HS) {
    const int packs = (HS + 15) / 16 * 16 / V, rows = (n + 15) / 16 * 16;
    for (int i = threadIdx.x; i < rows * packs; i += blockDim.x) {
        const int r = i / packs, c = i % packs * V;
        Pack<Real, V> pack;
        if (r < n && c < HS) pack = *reinterpret_cast<const Pack<Real, V> *>(from + r * stride + c);
        else
            for (int j = 0; j < V; j++) pack.x[j] = from_float<Real>(0);
        *reinterpret_cast<Pack<Real, V> *>(tile + r * ld + c) = pack;
    }
}

template <typename Real>
__device__ void load_tile(Real *tile, int ld, const Real *from, size_t stride, int n, int HS) {
    if (HS % PACK<Real> == 0) load_tile_by<Real, PACK<Real>>(tile, ld, from, stride, n, HS);
    else load_tile_by<Real, 1>(tile, ld, from, stride, n, HS);
}

// Writes rows 0 … n-1 of a warp's 16, HS columns, through its scratch (16,ROWS) in shared memory.
template <typename Real, int TILES>
__device__ void write_tiles(
    Real *to, size_t stride, const Tile<Real> (&tiles)[TILES], float *scratch, int ld, int n, int HS) {
    constexpr int ROWS = ATTENTION_ROWS<Real>, AT_ONCE = ROWS / 16;
    UNROLLED
    for (int j0 = 0; j0 < TILES; j0 += AT_ONCE) {
        __syncwarp();
        UNROLLED
        for (int j = j0; j < j0 + AT_ONCE; j++)
            if (16 * j < HS) tiles[j].store(scratch + 16 * (j - j0), ld);
        __syncwarp();
        for (int i = threadIdx.x % 32; i < 16 * ROWS; i += 32) {
            const int r = i / ROWS, c = i % ROWS;
            if (r < n && 16 * j0 + c < HS)
                to[r * stride + 16 * j0 + c] = from_float<Real>(scratch[r * ld + c]);
        }
    }
}

// scores (16, 16 * n), in a warp's scratch, = a (16, 16 * depth) · bᵀ: 16 rows against n tiles of others
template <typename Real>
__device__ void score_tiles(float *scores, int ld, const Real *a, const Real *b, int ldb, int depth, int n) {
    Tile<Real> tiles[ATTENTION_ROWS<Real> / 16];
    UNROLLED
    for (int j = 0; j < ATTENTION_ROWS<Real> / 16; j++) tiles[j].clear();
    Tile<Real>::template multiply<false, true>(tiles, n, a, ldb, depth, b, ldb);
    UNROLLED
    for (int j = 0; j < ATTENTION_ROWS<Real> / 16; j++)
        if (j < n) tiles[j].store(scores + 16 * j, ld);
    __syncwarp();
}

// Sizes in shared memory. Rows are padded against bank conflicts and 32-byte aligned, as tensor cores demand.
template <typename Real, int TILES> struct AttentionLayout {
    enum {
        ROWS = ATTENTION_ROWS<Real>,
        LD = 16 * TILES + PACK<Real>,                // of a tile of q, k, v or dout
        SCORES_LD = ROWS + 4,                        // of scores
        REAL_LD = SCORES_LD * 4 / (int)sizeof(Real), // of what overwrites them in type Real
    };
    static constexpr size_t TILE_BYTES = ROWS * LD * sizeof(Real),
                            SCORES_BYTES = ROWS * SCORES_LD * sizeof(float);
    static constexpr size_t FORWARD_BYTES = SCORES_BYTES + 3 * TILE_BYTES,
                            BACKWARD_BYTES = 2 * SCORES_BYTES + 4 * TILE_BYTES + 2 * ROWS * sizeof(float);
};

// ---------------------------------------------------------------- heads

// One head of one sequence. pooled: only the query of the sequence's pooled row is computed.
struct Head {
    int T;           // tokens of the sequence
    int queries;     // T; pooled: 1
    int first_query; // its position in the sequence: 0, or the pooled row's
    size_t row;      // first row of the sequence among the rows of qkv
    size_t out_row;  // of its first query among the rows of out, dout, lse and delta
    int HS;          // head size
    int channel;     // first channel of the head
    int index;       // of the head: 0 … NH-1
};

// The head of this block; start (B+1): first row of each sequence, pooled_row (B): the row that is pooled.
__device__ inline Head attention_head(const int *start, const int *pooled_row, int C, int NH, bool pooled) {
    const int b = blockIdx.x / NH, HS = C / NH;
    Head h;
    h.T = start[b + 1] - start[b];
    h.queries = pooled ? 1 : h.T;
    h.first_query = pooled ? pooled_row[b] - start[b] : 0;
    h.row = (size_t)start[b];
    h.out_row = (size_t)(pooled ? b : start[b]);
    h.HS = HS;
    h.index = (int)(blockIdx.x % NH);
    h.channel = h.index * HS;
    return h;
}

// ---------------------------------------------------------------- forward

// Two lanes share a row of scores: `parity` says who takes the even columns, who the odd ones.

// Continues a row's maximum and its sum of e^(x - maximum) by the visible scores of a tile.
template <typename Real>
__device__ inline void scores_sum(
    float *max, float *sum, const float *scores, int parity, int visible, float scale) {
    float most = *max;
    for (int c = parity; c < visible; c += 2) most = fmaxf(most, scores[c] * scale);
    if (parity < visible) *sum *= exponential<Real>(*max - most);
    for (int c = parity; c < visible; c += 2) *sum += exponential<Real>(scores[c] * scale - most);
    *max = most;
}

// A row's log-sum-exp from what its two lanes have seen.
template <typename Real> __device__ inline float scores_lse(float max, float sum) {
    const float most = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 1));
    sum *= exponential<Real>(max - most);
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    return most + logf(sum);
}

// Overwrites a row's scores by probabilities of type Real, which take up less space: eight columns of each
// lane are read before any of them is written.
template <typename Real>
__device__ inline void scores_to_probabilities(
    float *scores, int parity, int tiles, int visible, float scale, float lse) {
    Real *probabilities = (Real *)scores;
    for (int c0 = parity; c0 < 16 * tiles; c0 += 16) {
        float p[8];
        UNROLLED
        for (int j = 0; j < 8; j++)
            p[j] = c0 + 2 * j < visible ? exponential<Real>(scores[c0 + 2 * j] * scale - lse) : 0;
        __syncwarp();
        UNROLLED
        for (int j = 0; j < 8; j++) probabilities[c0 + 2 * j] = from_float<Real>(p[j]);
    }
}

// Two passes over the keys: one for the log-sum-exp of each query's scores, one for the probabilities and
// their products with the values. Where the keys fit into one tile, the second pass finds its scores still
// there.
template <typename Real, int TILES>
__global__ void __launch_bounds__(2 * ATTENTION_ROWS<Real>) attention_forward_kernel(Real *out, float *lse,
    const Real *qkv, const int *start, const int *pooled_row, int C, int NH, bool causal, bool pooled) {
    typedef AttentionLayout<Real, TILES> Layout;
    constexpr int ROWS = Layout::ROWS, LD = Layout::LD, SLD = Layout::SCORES_LD;
    SHARED_ARRAY(float, all_scores); // (ROWS,SLD), then q, k and v (ROWS,LD)
    Real *q = (Real *)(all_scores + ROWS * SLD), *k = q + ROWS * LD, *v = k + ROWS * LD;
    const Head h = attention_head(start, pooled_row, C, NH, pooled);
    const int q0 = blockIdx.y * ROWS, n_q = min(ROWS, h.queries - q0), depth = (h.HS + 15) / 16;
    if (q0 >= h.queries) return;
    const int first = threadIdx.x / 32 * 16; // of the warp's 16 queries
    const int row = threadIdx.x / 2, parity = threadIdx.x % 2;
    const int position = h.first_query + q0 + row;
    const int keys = causal ? min(h.T, h.first_query + q0 + n_q) : h.T;
    const float scale = 1.0f / sqrtf((float)h.HS);
    const size_t C3 = (size_t)3 * C;
    const Real *rows = qkv + h.row * C3 + h.channel;
    float *scores = all_scores + first * SLD; // of the warp
    float *mine = all_scores + row * SLD;     // of the lane's query
    float max = -INFINITY, sum = 0, row_lse = 0;
    Tile<Real> o[TILES];
    UNROLLED
    for (int j = 0; j < TILES; j++) o[j].clear();
    load_tile(q, LD, rows + (size_t)(h.first_query + q0) * C3, C3, n_q, h.HS);
    for (int pass = 0; pass < 2; pass++) {
        for (int k0 = 0; k0 < keys; k0 += ROWS) {
            const int n = min(ROWS, keys - k0), tiles = (n + 15) / 16;
            const int visible = causal ? min(n, position - k0 + 1) : n;
            const bool there = pass == 1 && keys <= ROWS;
            if (!there) {
                __syncthreads();
                load_tile(k, LD, rows + C + (size_t)k0 * C3, C3, n, h.HS);
                if (pass == 1 || keys <= ROWS) load_tile(v, LD, rows + 2 * C + (size_t)k0 * C3, C3, n, h.HS);
                __syncthreads();
            }
            if (first >= n_q) continue;
            if (!there) score_tiles(scores, SLD, q + first * LD, k, LD, depth, tiles);
            if (pass == 0) {
                scores_sum<Real>(&max, &sum, mine, parity, visible, scale);
                continue;
            }
            scores_to_probabilities<Real>(mine, parity, tiles, visible, scale, row_lse);
            __syncwarp();
            Tile<Real>::template multiply<false, false>(
                o, depth, (Real *)scores, Layout::REAL_LD, tiles, v, LD);
        }
        if (pass == 1 || first >= n_q) continue;
        row_lse = scores_lse<Real>(max, sum);
        __syncwarp();
    }
    if (first >= n_q) return;
    if (parity == 0 && row < n_q) lse[(h.out_row + q0 + row) * NH + h.index] = row_lse;
    write_tiles(out + (h.out_row + q0 + first) * C + h.channel, C, o, scores, SLD, n_q - first, h.HS);
}

// ---------------------------------------------------------------- backward

// delta (Q,NH) = the sum over each head's channels of dout * out, which equals that of P ∘ dP over the keys
template <typename Real>
__global__ void attention_delta_kernel(
    float *delta, const Real *dout, const Real *out, int Q, int C, int NH) {
    const size_t i = (size_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
    const int HS = C / NH;
    if (i >= (size_t)Q * NH) return;
    float sum = 0;
    for (int c = threadIdx.x % 32; c < HS; c += 32)
        sum += to_float(dout[i * HS + c]) * to_float(out[i * HS + c]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[i] = sum;
}

// What the backward pass reads of a head.
template <typename Real> struct HeadInputs {
    const Real *q, *k, *v;    // (queries,HS), (T,HS), (T,HS), rows 3C apart
    const Real *dout;         // (queries,HS), rows C apart
    const float *lse, *delta; // (queries), NH apart
    int C, NH;
    float scale; // of the scores
};

template <typename Real>
__device__ inline HeadInputs<Real> head_inputs(
    const Head &h, const Real *dout, const Real *qkv, const float *lse, const float *delta, int C, int NH) {
    HeadInputs<Real> x;
    x.C = C;
    x.NH = NH;
    x.q = qkv + (h.row + h.first_query) * 3 * C + h.channel;
    x.k = qkv + h.row * 3 * C + C + h.channel;
    x.v = x.k + C;
    x.dout = dout + h.out_row * C + h.channel;
    x.lse = lse + h.out_row * NH + h.index;
    x.delta = delta + h.out_row * NH + h.index;
    x.scale = 1.0f / sqrtf((float)h.HS);
    return x;
}

// Shared memory of the backward pass.
template <typename Real, int TILES> struct BackwardShared {
    typedef AttentionLayout<Real, TILES> Layout;
    float *scores, *dscores;        // (ROWS,SCORES_LD)
    float *other_lse, *other_delta; // (ROWS) of queries, where they are the others
    Real *mine_0, *mine_1;          // (ROWS,LD) k and v, or q and dout
    Real *other_0, *other_1;        // (ROWS,LD) q and dout, or k and v
    __device__ explicit BackwardShared(float *shared) {
        scores = shared;
        dscores = scores + Layout::ROWS * Layout::SCORES_LD;
        other_lse = dscores + Layout::ROWS * Layout::SCORES_LD;
        other_delta = other_lse + Layout::ROWS;
        mine_0 = (Real *)(other_delta + Layout::ROWS);
        mine_1 = mine_0 + Layout::ROWS * Layout::LD;
        other_0 = mine_1 + Layout::ROWS * Layout::LD;
        other_1 = other_0 + Layout::ROWS * Layout::LD;
    }
};

// Overwrites a row of scores by P (if the row is a key) and of dP by dS, in type Real, as
// scores_to_probabilities() does:
//   P = e^(scale * score - lse),  dS = P ∘ (dP - delta) * scale
// lse(c), delta(c): those of the query that meets in column c; visible(c): whether query and key do.
template <typename Real, bool KEYS, typename Lse, typename Delta, typename Visible>
__device__ inline void scores_backward(
    float *s, float *d, int parity, int tiles, float scale, Lse lse, Delta delta, Visible visible) {
    for (int c0 = parity; c0 < 16 * tiles; c0 += 16) {
        float p[8], ds[8];
        UNROLLED
        for (int j = 0; j < 8; j++) {
            const int c = c0 + 2 * j;
            const bool seen = visible(c);
            p[j] = seen ? exponential<Real>(s[c] * scale - lse(c)) : 0;
            ds[j] = seen ? p[j] * (d[c] - delta(c)) * scale : 0;
        }
        __syncwarp();
        UNROLLED
        for (int j = 0; j < 8; j++) {
            ((Real *)d)[c0 + 2 * j] = from_float<Real>(ds[j]);
            if (KEYS) ((Real *)s)[c0 + 2 * j] = from_float<Real>(p[j]);
        }
    }
}

// The gradient of ROWS keys and their values (KEYS), or of ROWS queries, from row m0 of the head on. `mine`
// are those rows, `other` the rows they meet:
//   mine: k and v, or q and dO;  other: q and dO, or k and v
//   scores = mine_0 · other_0ᵀ,  dP = mine_1 · other_1ᵀ
//   dK or dQ = dS · other_0,  dV = P · other_1,  with keys as rows of P and dS, or with queries
// Where one block takes all keys of a sequence, it holds the whole dS and computes dQ as well.
template <typename Real, int TILES, bool KEYS>
__device__ void attention_backward_rows(
    float *shared, Real *dqkv, const HeadInputs<Real> &x, const Head &h, bool causal, int m0) {
    typedef AttentionLayout<Real, TILES> Layout;
    constexpr int ROWS = Layout::ROWS, LD = Layout::LD, SLD = Layout::SCORES_LD, RLD = Layout::REAL_LD;
    const BackwardShared<Real, TILES> t(shared);
    const int n_m = min(ROWS, (KEYS ? h.T : h.queries) - m0), depth = (h.HS + 15) / 16;
    const int first = threadIdx.x / 32 * 16; // of the warp's 16 rows
    const int row = threadIdx.x / 2, parity = threadIdx.x % 2;
    const size_t C = (size_t)x.C, C3 = 3 * C;
    float *scores = t.scores + first * SLD, *dscores = t.dscores + first * SLD;
    const bool is_query = !KEYS && row < n_m;
    const float my_lse = is_query ? x.lse[(size_t)(m0 + row) * x.NH] : 0;
    const float my_delta = is_query ? x.delta[(size_t)(m0 + row) * x.NH] : 0;
    // causal: keys meet the queries from the first key on; queries meet the keys up to the last query
    const int from = KEYS && causal ? max(0, m0 - h.first_query) / ROWS * ROWS : 0;
    const int to = KEYS ? h.queries : causal ? min(h.T, h.first_query + m0 + n_m) : h.T;
    Tile<Real> grad_0[TILES], grad_1[KEYS ? TILES : 1];
    UNROLLED
    for (int j = 0; j < TILES; j++) grad_0[j].clear();
    UNROLLED
    for (int j = 0; j < (KEYS ? TILES : 1); j++) grad_1[j].clear();
    load_tile(t.mine_0, LD, (KEYS ? x.k : x.q) + m0 * C3, C3, n_m, h.HS);
    load_tile(t.mine_1, LD, KEYS ? x.v + m0 * C3 : x.dout + m0 * C, KEYS ? C3 : C, n_m, h.HS);
    for (int o0 = from; o0 < to; o0 += ROWS) {
        const int n = min(ROWS, to - o0), tiles = (n + 15) / 16;
        __syncthreads();
        load_tile(t.other_0, LD, (KEYS ? x.q : x.k) + o0 * C3, C3, n, h.HS);
        load_tile(t.other_1, LD, KEYS ? x.dout + o0 * C : x.v + o0 * C3, KEYS ? C : C3, n, h.HS);
        if (KEYS && (int)threadIdx.x < n) {
            t.other_lse[threadIdx.x] = x.lse[(size_t)(o0 + threadIdx.x) * x.NH];
            t.other_delta[threadIdx.x] = x.delta[(size_t)(o0 + threadIdx.x) * x.NH];
        }
        __syncthreads();
        if (first >= n_m) continue;
        score_tiles(scores, SLD, t.mine_0 + first * LD, t.other_0, LD, depth, tiles);
        score_tiles(dscores, SLD, t.mine_1 + first * LD, t.other_1, LD, depth, tiles);
        scores_backward<Real, KEYS>(
            t.scores + row * SLD, t.dscores + row * SLD, parity, tiles, x.scale,
            [&](int c) { return KEYS ? t.other_lse[c] : my_lse; },
            [&](int c) { return KEYS ? t.other_delta[c] : my_delta; },
            [&](int c) {
                const int key = KEYS ? m0 + row : o0 + c, query = KEYS ? o0 + c : m0 + row;
                return c < n && row < n_m && (!causal || key <= h.first_query + query);
            });
        __syncwarp();
        Tile<Real>::template multiply<false, false>(
            grad_0, depth, (Real *)dscores, RLD, tiles, t.other_0, LD);
        if (KEYS)
            Tile<Real>::template multiply<false, false>(
                grad_1, depth, (Real *)scores, RLD, tiles, t.other_1, LD);
    }
    Real *dk = dqkv + (h.row + first) * C3 + C + h.channel, *dv = dk + C;
    Real *dq = dqkv + (h.row + h.first_query + first) * C3 + h.channel;
    if (first < n_m) write_tiles((KEYS ? dk : dq) + m0 * C3, C3, grad_0, scores, SLD, n_m - first, h.HS);
    if (KEYS && first < n_m) write_tiles(dv + m0 * C3, C3, grad_1, scores, SLD, n_m - first, h.HS);
    if (!KEYS || h.T > ROWS) return;
    __syncthreads();
    if (first >= h.queries) return;
    UNROLLED
    for (int j = 0; j < TILES; j++) grad_0[j].clear();
    Tile<Real>::template multiply<true, false>(
        grad_0, depth, (Real *)t.dscores + first, RLD, (h.T + 15) / 16, t.mine_0, LD);
    write_tiles(dq, C3, grad_0, scores, SLD, h.queries - first, h.HS);
}

// Even blocks take keys, odd ones queries of sequences that are longer than ROWS; as neighbours, they find
// the head in the L2 cache.
template <typename Real, int TILES>
__global__ void __launch_bounds__(2 * ATTENTION_ROWS<Real>) attention_backward_kernel(Real *dqkv,
    const Real *dout, const Real *qkv, const float *lse, const float *delta, const int *start,
    const int *pooled_row, int C, int NH, bool causal, bool pooled) {
    SHARED_ARRAY(float, shared);
    const Head h = attention_head(start, pooled_row, C, NH, pooled);
    const HeadInputs<Real> x = head_inputs(h, dout, qkv, lse, delta, C, NH);
    const int m0 = blockIdx.y / 2 * ATTENTION_ROWS<Real>;
    if (blockIdx.y % 2 == 0 && m0 < h.T)
        attention_backward_rows<Real, TILES, true>(shared, dqkv, x, h, causal, m0);
    if (blockIdx.y % 2 == 1 && m0 < h.queries && h.T > ATTENTION_ROWS<Real>)
        attention_backward_rows<Real, TILES, false>(shared, dqkv, x, h, causal, m0);
}

// LAUNCH of kernel<Real, TILES> for heads of HS channels
#define LAUNCH_ATTENTION(kernel, Real, HS, bytes, grid, ...)                                              \
    do {                                                                                                  \
        if ((HS) <= 64) {                                                                                 \
            CUDA_CHECK(cudaFuncSetAttribute(kernel<Real, 4>, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                (int)AttentionLayout<Real, 4>::bytes));                                                   \
            LAUNCH((kernel<Real, 4>), grid, 2 * ATTENTION_ROWS<Real>, (AttentionLayout<Real, 4>::bytes),  \
                __VA_ARGS__);                                                                             \
        } else {                                                                                          \
            CUDA_CHECK(cudaFuncSetAttribute(kernel<Real, 8>, cudaFuncAttributeMaxDynamicSharedMemorySize, \
                (int)AttentionLayout<Real, 8>::bytes));                                                   \
            LAUNCH((kernel<Real, 8>), grid, 2 * ATTENTION_ROWS<Real>, (AttentionLayout<Real, 8>::bytes),  \
                __VA_ARGS__);                                                                             \
        }                                                                                                 \
    } while (0)

#endif
