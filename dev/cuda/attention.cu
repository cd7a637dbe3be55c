// Attention forward and backward over packed sequences, bf16. Limit: FLOPs; 4 T² HS a head forward, 10 T² HS
// backward, half of that under the causal mask. At 50 tokens a head's queries, keys and values are 19 KB:
// moving them once matters as much.
//
// Forward
//   1  a thread a query, keys and values from global memory, softmax online: no tensor cores, every key read
//      T times through the caches
//   2  a block takes 64 queries of a head and walks over the keys in tiles in shared memory; 16 queries a
//      warp by tensor cores. Two passes over the keys, one for the log-sum-exp, one for the probabilities:
//      nothing is rescaled, and a sequence of one tile keeps its scores
// Backward
//   1  a thread a query for dq, a thread a key for dk and dv
//   2  blocks of 64 queries and blocks of 64 keys, tiles as above: probabilities again from the log-sum-exp;
//      every gradient has one owner, so that no two blocks add to it
#include "dev/cuda/bench.h"

// p · k over the head's channels
__device__ inline float head_dot(const bf16 *a, const bf16 *b, int HS) {
    float sum = 0;
    for (int c = 0; c < HS; c++) sum += to_float(a[c]) * to_float(b[c]);
    return sum;
}

// The sequence and the head of a block: T rows from `first`, HS channels from h.
struct BlockHead {
    int first, T, HS, h;
    float scale; // of the scores
};

__device__ inline BlockHead block_head(const int *start, int C, int NH) {
    const int first = start[blockIdx.x], HS = C / NH;
    const int T = start[blockIdx.x + 1] - first;
    return {first, T, HS, (int)blockIdx.y * HS, 1.0f / sqrtf((float)HS)};
}

// grid: sequences, heads; T threads at most take the queries in turn
__global__ void attention_forward_1(
    bf16 *out, float *lse, const bf16 *qkv, const int *start, int C, int NH, bool causal) {
    const auto [first, T, HS, h, scale] = block_head(start, C, NH);
    for (int i = threadIdx.x; i < T; i += blockDim.x) {
        const bf16 *q = qkv + (size_t)(first + i) * 3 * C + h, *k = qkv + (size_t)first * 3 * C + C + h;
        const int n = causal ? i + 1 : T;
        float o[LARGEST_HEAD] = {0}, max = -INFINITY, sum = 0;
        for (int j = 0; j < n; j++) {
            const bf16 *key = k + (size_t)j * 3 * C, *value = key + C;
            const float score = head_dot(q, key, HS) * scale;
            const float most = fmaxf(max, score);
            const float shrink = expf(max - most);
            const float p = expf(score - most);
            sum = sum * shrink + p;
            max = most;
            for (int c = 0; c < HS; c++) o[c] = o[c] * shrink + p * to_float(value[c]);
        }
        for (int c = 0; c < HS; c++) out[(size_t)(first + i) * C + h + c] = from_float<bf16>(o[c] / sum);
        lse[(size_t)(first + i) * NH + blockIdx.y] = max + logf(sum);
    }
}

__global__ void attention_backward_1(bf16 *dqkv, const bf16 *dout, const bf16 *out, const float *lse,
    const bf16 *qkv, const int *start, int C, int NH, bool causal) {
    const auto [first, T, HS, h, scale] = block_head(start, C, NH);
    for (int i = threadIdx.x; i < T; i += blockDim.x) {
        const size_t row = (size_t)(first + i) * 3 * C + h;
        float dq[LARGEST_HEAD] = {0}, dk[LARGEST_HEAD] = {0}, dv[LARGEST_HEAD] = {0};
        for (int j = 0; j < T; j++) { // as a query among keys j, then as a key among queries j
            const size_t other = (size_t)(first + j) * 3 * C + h;
            for (int way = 0; way < 2; way++) {
                const int query = way ? j : i, key = way ? i : j;
                if (causal && key > query) continue;
                const size_t q = way ? other : row;
                const size_t k = (way ? row : other) + C;
                const size_t o = (size_t)(first + query) * C + h;
                const float p = expf(
                    head_dot(qkv + q, qkv + k, HS) * scale - lse[(size_t)(first + query) * NH + blockIdx.y]);
                const float ds =
                    p * (head_dot(dout + o, qkv + k + C, HS) - head_dot(dout + o, out + o, HS)) * scale;
                for (int c = 0; c < HS; c++) {
                    if (way) {
                        dk[c] += ds * to_float(qkv[q + c]);
                        dv[c] += p * to_float(dout[o + c]);
                    } else dq[c] += ds * to_float(qkv[k + c]);
                }
            }
        }
        for (int c = 0; c < HS; c++) {
            dqkv[row + c] = from_float<bf16>(dq[c]);
            dqkv[row + C + c] = from_float<bf16>(dk[c]);
            dqkv[row + 2 * C + c] = from_float<bf16>(dv[c]);
        }
    }
}

static void lab_attention(
    Lab *lab, const char *name, int B, int longest, int shortest, int NH, int HS, bool causal) {
    Sequences s = {0, 0, 0, NULL, NULL};
    sequences_reserve(&s, B);
    double pairs = 0; // of a query and a key that it sees
    for (int b = 0; b < B; b++) {
        const int T = longest - b % (longest - shortest + 1);
        sequences_add(&s, b, T, 0);
        pairs += causal ? T * (T + 1) / 2.0 : (double)T * T;
    }
    const int C = NH * HS;
    const size_t n = (size_t)s.R * C;
    Array<bf16> qkv = array_random<bf16>(1, 3 * n, 1), out = array_create<bf16>(n),
                dout = array_random<bf16>(2, n, 1), dqkv = array_create<bf16>(3 * n);
    Array<float> lse = array_create<float>((size_t)s.R * NH), delta = array_create<float>((size_t)s.R * NH);
    float *want = floats(n), *want_lse = floats(lse.n), *want_dqkv = floats(3 * n);
    if (!lab->timed) {
        attention_forward_plain(want, qkv.host, s.start, NULL, B, C, NH, causal);
        attention_lse(want_lse, qkv.host, s.start, NULL, B, C, NH, causal);
        attention_backward_plain(want_dqkv, dout.host, qkv.host, s.start, NULL, B, C, NH, causal);
    }
    int *start = ints_upload(s.start, (size_t)B + 1), *pooled_row = ints_upload(s.pooled_row, (size_t)B);
    const Sequences on_gpu = {B, s.R, s.longest, start, pooled_row};
    const Attention w = {C, NH, causal, &lab->gpu};
    char names[2][128];
    snprintf(names[0], sizeof names[0], "attention forward, %s", name);
    snprintf(names[1], sizeof names[1], "attention backward, %s", name);
    const auto forward = [&](int version, const char *idea, auto run) {
        lab_version(lab, names[0], version, idea, 0, 4 * pairs * C, run, [&](int v) {
            lab_compare(names[0], v, &lse, want_lse, 3e-6);
            lab_compare(names[0], v, &out, want, 8e-3);
        });
    };
    const auto backward = [&](int version, const char *idea, auto run) {
        lab_version(lab, names[1], version, idea, 0, 10 * pairs * C, run,
            [&](int v) { lab_compare(names[1], v, &dqkv, want_dqkv, 1.2e-2); });
    };
    forward(1, "a thread a query", [&] {
        LAUNCH(attention_forward_1, dim3(B, NH), 64, 0, lab->gpu.stream, out.gpu, lse.gpu, qkv.gpu, start, C,
            NH, causal);
    });
    forward(
        2, "tiles, tensor cores", [&] { attention_forward(out.gpu, lse.gpu, qkv.gpu, &on_gpu, &w, false); });
    attention_forward(out.gpu, lse.gpu, qkv.gpu, &on_gpu, &w, false);
    backward(1, "a thread a query and key", [&] {
        LAUNCH(attention_backward_1, dim3(B, NH), 64, 0, lab->gpu.stream, dqkv.gpu, dout.gpu, out.gpu,
            lse.gpu, qkv.gpu, start, C, NH, causal);
    });
    backward(2, "tiles, tensor cores", [&] {
        attention_backward(dqkv.gpu, delta.gpu, dout.gpu, out.gpu, lse.gpu, qkv.gpu, &on_gpu, &w, false);
    });
    free(want);
    free(want_lse);
    free(want_dqkv);
    CUDA_CHECK(cudaFree(start));
    CUDA_CHECK(cudaFree(pooled_row));
    sequences_free(&s);
    arrays_free(&qkv, &out, &dout, &dqkv, &lse, &delta);
}
