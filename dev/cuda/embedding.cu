// The gradient of the token embedding: each row of the table gets the sum of those rows of dx whose token it
// is. Limit: bytes; dx is read, the rows of the batch's tokens are written. Captions share tokens (begin and
// end of text are in every one), so rows meet; atomic additions would make the sum depend on which comes
// first.
//
//   1  a block a row of the table, which looks through all tokens: its reads grow with vocabulary times batch
//   2  the host sorts rows by token (a counting sort while the GPU is busy), one block owns a token that
//      occurs; 16 groups of threads share its rows, which matters for the two tokens that are in every
//      caption
#include "dev/cuda/bench.h"

__global__ void table_backward_1(float *dtable, const bf16 *dx, const int *token, int R, int C) {
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int i = 0; i < R; i++)
            if (token[i] == (int)blockIdx.x) sum += to_float(dx[(size_t)i * C + c]);
        dtable[(size_t)blockIdx.x * C + c] = sum;
    }
}

static void lab_embedding(Lab *lab, int B, int T, int V, int C) {
    const int R = B * T;
    Array<bf16> dx = array_random<bf16>(1, (size_t)R * C, 1);
    Array<float> dtable = array_create<float>((size_t)V * C);
    int *token = (int *)malloc_check((size_t)R * sizeof(int));
    int *key = (int *)malloc_check((size_t)R * sizeof(int));
    int *start = (int *)malloc_check(((size_t)R + 1) * sizeof(int));
    int *row = (int *)malloc_check((size_t)R * sizeof(int));
    int *next = (int *)calloc_check((size_t)V, sizeof(int));
    int keys = 0;
    int at = 0;
    Rand r = rand_for(3, 3, 3);
    for (int i = 0; i < R; i++) {
        token[i] = i % T == 0 ? V - 2 : i % T == T - 1 ? V - 1 : (int)rand_below(&r, (uint64_t)V - 2);
        next[token[i]]++;
    }
    for (int v = 0; v < V; v++) {
        const int count = next[v];
        next[v] = at;
        if (count) {
            key[keys] = v;
            start[keys++] = at;
            at += count;
        }
    }
    start[keys] = R;
    for (int i = 0; i < R; i++) row[next[token[i]]++] = i;
    int *gpu_token = ints_upload(token, (size_t)R);
    int *gpu_key = ints_upload(key, (size_t)keys);
    int *gpu_start = ints_upload(start, (size_t)keys + 1);
    int *gpu_row = ints_upload(row, (size_t)R);
    float *want = floats(dtable.n);
    for (int i = 0; i < R && !lab->timed; i++)
        for (int c = 0; c < C; c++) want[(size_t)token[i] * C + c] += dx.host[(size_t)i * C + c];
    const auto version = [&](int number, const char *idea, auto run) {
        lab_version(lab, "token embedding backward", number, idea, 2.0 * R * C + 4.0 * keys * C, 0, run,
            [&](int v) { lab_compare("token embedding backward", v, &dtable, want, 1e-6); });
    };
    version(1, "every row looks for its tokens",
        [&] { LAUNCH(table_backward_1, V, 256, 0, lab->gpu.stream, dtable.gpu, dx.gpu, gpu_token, R, C); });
    CUDA_CHECK(cudaMemset(dtable.gpu, 0, dtable.n * sizeof(float)));
    version(2, "rows sorted by token", [&] {
        table_backward(
            &lab->gpu, dtable.gpu, dx.gpu, RowGroups{keys, gpu_key, gpu_start, gpu_row}, V, C, true);
    });
    free(token);
    free(key);
    free(start);
    free(row);
    free(next);
    free(want);
    for (int *p : {gpu_token, gpu_key, gpu_start, gpu_row}) CUDA_CHECK(cudaFree(p));
    arrays_free(&dx, &dtable);
}
