// LayerNorm forward and backward over rows of C channels of the residual stream x, which is fp32; the rest is
// bf16. Limit: bytes. Forward reads x and writes out, 6 bytes a number; backward reads dout, x and the
// gradient of the residual stream and writes dx, 10 bytes a number.
//
// Forward
//   1  a thread a row: neighbours in a warp read C numbers apart, so every load touches a cache line of its
//       own
//   2  a block a row: coalesced, but two block-wide sums with their barriers for a few numbers a thread
//   3  a warp a row, 16 bytes a load, sums by shuffles: no barrier at all; the second and third pass over the
//      row hit the L1 cache
// Backward
//   1  dx with a warp a row, then dgain and dbias with a thread a column: x and dout are read twice, and few
//      threads run down the columns
//   2  a block walks down a chunk of rows with a column a thread: one pass for all three; the sums of the
//      chunks are added in order, so that the bits do not depend on which block is first
#include "dev/cuda/bench.h"

__global__ void layernorm_forward_1(
    bf16 *out, const float *x, const float *gain, const float *bias, int N, int C, float eps) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= N) return;
    const float *row = x + (size_t)i * C;
    float mean = 0, variance = 0;
    for (int c = 0; c < C; c++) mean += row[c] / C;
    for (int c = 0; c < C; c++) variance += (row[c] - mean) * (row[c] - mean) / C;
    const float rstd = 1.0f / sqrtf(variance + eps);
    for (int c = 0; c < C; c++)
        out[(size_t)i * C + c] = from_float<bf16>((row[c] - mean) * rstd * gain[c] + bias[c]);
}

__global__ void layernorm_forward_2(
    bf16 *out, const float *x, const float *gain, const float *bias, int C, float eps) {
    SHARED_ARRAY(float, sums); // (32)
    const float *row = x + (size_t)blockIdx.x * C;
    float sum = 0, squares = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) sum += row[c];
    const float mean = block_sum(sum, sums) / C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) squares += (row[c] - mean) * (row[c] - mean);
    const float rstd = 1.0f / sqrtf(block_sum(squares, sums) / C + eps);
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        out[(size_t)blockIdx.x * C + c] = from_float<bf16>((row[c] - mean) * rstd * gain[c] + bias[c]);
}

__global__ void layernorm_dx_1(bf16 *dx, const bf16 *skip, const bf16 *dout, const float *x,
    const float *gain, const float *mean, const float *rstd, int N, int C) {
    const size_t i = (size_t)blockIdx.x * ROW_WARPS + threadIdx.x / 32;
    if (i >= (size_t)N) return;
    float sum_g = 0, sum_gn = 0;
    for (int c = threadIdx.x % 32; c < C; c += 32) {
        const float g = to_float(dout[i * C + c]) * gain[c];
        sum_g += g;
        sum_gn += g * (x[i * C + c] - mean[i]) * rstd[i];
    }
    sum_g = warp_sum(sum_g) / C;
    sum_gn = warp_sum(sum_gn) / C;
    for (int c = threadIdx.x % 32; c < C; c += 32) {
        const float n = (x[i * C + c] - mean[i]) * rstd[i];
        dx[i * C + c] = from_float<bf16>(
            to_float(skip[i * C + c]) + rstd[i] * (to_float(dout[i * C + c]) * gain[c] - sum_g - n * sum_gn));
    }
}

__global__ void layernorm_parameters_1(float *dgain, float *dbias, const bf16 *dout, const float *x,
    const float *mean, const float *rstd, int N, int C) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float g = 0, b = 0;
    for (size_t i = 0; i < (size_t)N; i++) {
        const float d = to_float(dout[i * C + c]);
        g += d * (x[i * C + c] - mean[i]) * rstd[i];
        b += d;
    }
    dgain[c] = g;
    dbias[c] = b;
}

static void lab_layernorm(Lab *lab, int N, int C) {
    const size_t n = (size_t)N * C;
    const float eps = 1e-5f;
    Array<float> x = array_random<float>(1, n, 2);
    Array<bf16> out = array_create<bf16>(n), dout = array_random<bf16>(2, n, 1),
                skip = array_random<bf16>(3, n, 1), dx = array_create<bf16>(n);
    Array<float> gain = array_random<float>(4, (size_t)C, 1), bias = array_random<float>(5, (size_t)C, 1),
                 mean = array_create<float>((size_t)N), rstd = array_create<float>((size_t)N);
    Array<float> dgain = array_create<float>((size_t)C), dbias = array_create<float>((size_t)C);
    float *want = floats(n), *want_dx = floats(n), *want_dgain = floats((size_t)C),
          *want_dbias = floats((size_t)C);
    float *want_mean = floats((size_t)N), *want_rstd = floats((size_t)N);
    const LayerNorm w = {gain.gpu, bias.gpu, dgain.gpu, dbias.gpu, C, eps, &lab->gpu};
    const RowStats stats = {mean.gpu, rstd.gpu};
    if (!lab->timed) {
        layernorm_forward_plain(want, want_mean, want_rstd, x.host, gain.host, bias.host, N, C, eps);
        layernorm_backward_plain(want_dx, want_dgain, want_dbias, skip.host, dout.host, x.host, gain.host,
            want_mean, want_rstd, N, C, false);
    }
    const auto forward = [&](int version, const char *idea, auto run) {
        lab_version(lab, "LayerNorm forward", version, idea, 6.0 * (double)n, 0, run,
            [&](int v) { lab_compare("LayerNorm forward", v, &out, want, 4e-3); });
    };
    const auto backward = [&](int version, const char *idea, auto run) {
        lab_version(lab, "LayerNorm backward", version, idea, 10.0 * (double)n, 0, run, [&](int v) {
            lab_compare("LayerNorm backward, dx", v, &dx, want_dx, 4e-3);
            lab_compare("LayerNorm backward, dgain", v, &dgain, want_dgain, 5e-6);
            lab_compare("LayerNorm backward, dbias", v, &dbias, want_dbias, 5e-6);
        });
    };
    forward(1, "a thread a row", [&] {
        LAUNCH(layernorm_forward_1, blocks_for(N, 128), 128, 0, lab->gpu.stream, out.gpu, x.gpu, gain.gpu,
            bias.gpu, N, C, eps);
    });
    forward(2, "a block a row", [&] {
        LAUNCH(layernorm_forward_2, N, 256, 32 * sizeof(float), lab->gpu.stream, out.gpu, x.gpu, gain.gpu,
            bias.gpu, C, eps);
    });
    forward(3, "a warp a row", [&] { layernorm_forward(out.gpu, stats, x.gpu, &w, N); });
    backward(1, "rows, then columns", [&] {
        LAUNCH(layernorm_dx_1, blocks_for(N, ROW_WARPS), 32 * ROW_WARPS, 0, lab->gpu.stream, dx.gpu, skip.gpu,
            dout.gpu, x.gpu, gain.gpu, mean.gpu, rstd.gpu, N, C);
        LAUNCH(layernorm_parameters_1, blocks_for(C, 32), 32, 0, lab->gpu.stream, dgain.gpu, dbias.gpu,
            dout.gpu, x.gpu, mean.gpu, rstd.gpu, N, C);
    });
    backward(2, "chunks of rows",
        [&] { layernorm_backward(dx.gpu, skip.gpu, dout.gpu, x.gpu, stats, &w, N, false); });
    for (float *p : {want, want_dx, want_dgain, want_dbias, want_mean, want_rstd}) free(p);
    arrays_free(&x, &out, &dout, &skip, &dx, &gain, &bias, &mean, &rstd, &dgain, &dbias);
}
