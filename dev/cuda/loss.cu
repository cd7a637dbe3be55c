// The contrastive loss over n pairs and its gradient, fp32. Limit: bytes; a matrix of logits is written by a
// product and read three times: for the log-sum-exps of rows and of columns, and to be replaced by its
// gradient.
//
//   1  the whole (n,n) matrix; a block a row, then a block a column, each with one pass for the maximum and
//       one for the sum
//   2  tiles of rows: log-sum-exps online, in one pass over a tile for the rows and one for the columns;
//      logits are computed again for the gradient where the matrix does not fit into one tile: 4 GB less at
//      32,768 pairs
#include "dev/cuda/bench.h"

// lse (n) of the rows of x (n,n), or of its columns: entries are `step` apart, rows or columns `line`
__global__ void loss_lse_1(float *lse, const float *x, int n, size_t line, size_t step) {
    SHARED_ARRAY(float, sums); // (32)
    const float *at = x + blockIdx.x * line;
    float most = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) most = fmaxf(most, at[j * step]);
    for (int j = threadIdx.x; j < n; j += blockDim.x) sum += expf(at[j * step] - most);
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) lse[blockIdx.x] = most + logf(sum);
}

__global__ void loss_gradient_1(float *x, const float *row_lse, const float *column_lse, int n) {
    const int i = blockIdx.x;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        float *at = x + (size_t)i * n + j;
        *at = (expf(*at - row_lse[i]) + expf(*at - column_lse[j]) - (i == j ? 2 : 0)) * (0.5f / n);
    }
}

static void lab_loss(Lab *lab, int n, int E, int tile) {
    const size_t size = (size_t)n * E;
    const float scale = 2.5f;
    Array<float> image = array_random<float>(1, size, 0.2), text = array_random<float>(2, size, 0.2),
                 dimage = array_create<float>(size), dtext = array_create<float>(size);
    Array<float> logits = array_create<float>((size_t)n * n), row_lse = array_create<float>((size_t)n),
                 column_lse = array_create<float>((size_t)n), target = array_create<float>((size_t)n);
    double *sums[5], dscale;
    float *want_dimage = floats(size), *want_dtext = floats(size);
    for (auto &p : sums) CUDA_CHECK(cudaMalloc(&p, (size_t)n * sizeof(double) + 16));
    const LossScratch t = {tile, logits.gpu, row_lse.gpu, column_lse.gpu, sums[0], target.gpu, sums[1],
        sums[2], sums[3], sums[4], NULL};
    if (!lab->timed)
        contrastive_loss_plain(
            want_dimage, want_dtext, &dscale, image.host, text.host, NULL, POSITIVES_DIAGONAL, n, E, scale);
    const auto version = [&](int number, const char *idea, auto run) {
        lab_version(
            lab, "loss and its gradient", number, idea, 5.0 * sizeof(float) * n * n, 0, run, [&](int v) {
                lab_compare("loss, dimage", v, &dimage, want_dimage, 5e-6);
                lab_compare("loss, dtext", v, &dtext, want_dtext, 5e-6);
            });
    };
    const Gpu *k = &lab->gpu;
    version(1, "the whole matrix, two passes each", [&] {
        loss_product(k, logits.gpu, n, rows_of(image.gpu, E), transposed(text.gpu, E), n, n, E, scale, false);
        LAUNCH(loss_lse_1, n, 256, 32 * sizeof(float), k->stream, row_lse.gpu, logits.gpu, n, (size_t)n,
            (size_t)1);
        LAUNCH(loss_lse_1, n, 256, 32 * sizeof(float), k->stream, column_lse.gpu, logits.gpu, n, (size_t)1,
            (size_t)n);
        LAUNCH(loss_gradient_1, n, 256, 0, k->stream, logits.gpu, row_lse.gpu, column_lse.gpu, n);
        loss_product(k, dimage.gpu, E, rows_of(logits.gpu, n), rows_of(text.gpu, E), n, E, n, scale, false);
        loss_product(
            k, dtext.gpu, E, transposed(logits.gpu, n), rows_of(image.gpu, E), n, E, n, scale, false);
    });
    version(2, "tiles, online", [&] {
        contrastive_loss(k, dimage.gpu, dtext.gpu, &dscale, &t, image.gpu, text.gpu, NULL, POSITIVES_DIAGONAL,
            n, E, scale);
    });
    for (auto p : sums) CUDA_CHECK(cudaFree(p));
    free(want_dimage);
    free(want_dtext);
    arrays_free(&image, &text, &dimage, &dtext, &logits, &row_lse, &column_lse, &target);
}
