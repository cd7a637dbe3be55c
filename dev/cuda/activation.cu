// GELU with erf (LAION's models) and QuickGELU (OpenAI's), forward and backward, bf16. Limit: bytes; 4 a
// number forward, 6 backward. cuBLASLt's own GELU epilogue is the tanh form, which is neither.
//
//   1  a number a thread, erff of the library
//   2  16 bytes a thread, the normal distribution by a polynomial of degree 7 and one exponential, which the
//      backward pass needs anyway; the backward pass also takes the column sums of its result, the gradient
//      of the bias before the activation, instead of reading it once more
#include "dev/cuda/bench.h"

__global__ void gelu_forward_1(bf16 *out, const bf16 *x, size_t n, bool quick) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = to_float(x[i]);
    out[i] =
        from_float<bf16>(quick ? v / (1.0f + expf(-1.702f * v)) : 0.5f * v * (1.0f + erff(v * 0.707106781f)));
}

__global__ void gelu_backward_1(bf16 *dx, const bf16 *x, const bf16 *dout, size_t n, bool quick) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = to_float(x[i]), s = 1.0f / (1.0f + expf(-1.702f * v));
    const float slope = quick
                            ? s + 1.702f * v * s * (1.0f - s)
                            : 0.5f * (1.0f + erff(v * 0.707106781f)) + v * 0.398942280f * expf(-0.5f * v * v);
    dx[i] = from_float<bf16>(to_float(dout[i]) * slope);
}

static void lab_activation(Lab *lab, int N, int F, Activation activation) {
    const size_t n = (size_t)N * F;
    const bool quick = activation == ACTIVATION_QUICK_GELU;
    Array<float> dbias = array_create<float>((size_t)F);
    Array<bf16> x = array_random<bf16>(1, n, 2), out = array_create<bf16>(n),
                dout = array_random<bf16>(2, n, 1), dx = array_create<bf16>(n);
    float *want = floats(n), *want_dx = floats(n);
    if (!lab->timed) activation_forward_plain(want, x.host, n, activation);
    if (!lab->timed) activation_backward_plain(want_dx, dout.host, x.host, n, activation);
    const char *names[2] = {
        quick ? "QuickGELU forward" : "GELU forward", quick ? "QuickGELU backward" : "GELU backward"};
    const auto forward = [&](int version, const char *idea, auto run) {
        lab_version(lab, names[0], version, idea, 4.0 * (double)n, 0, run,
            [&](int v) { lab_compare(names[0], v, &out, want, 4e-3); });
    };
    const auto backward = [&](int version, const char *idea, auto run) {
        lab_version(lab, names[1], version, idea, 6.0 * (double)n, 0, run,
            [&](int v) { lab_compare(names[1], v, &dx, want_dx, 4e-3); });
    };
    forward(1, "a number a thread", [&] {
        LAUNCH(gelu_forward_1, blocks_for(n, 256), 256, 0, lab->gpu.stream, out.gpu, x.gpu, n, quick);
    });
    forward(2, "16 bytes a thread", [&] { activation_forward(&lab->gpu, out.gpu, x.gpu, n, activation); });
    backward(1, "a number a thread", [&] {
        LAUNCH(
            gelu_backward_1, blocks_for(n, 256), 256, 0, lab->gpu.stream, dx.gpu, x.gpu, dout.gpu, n, quick);
    });
    backward(2, "columns, their sums, too",
        [&] { activation_backward(&lab->gpu, dx.gpu, dbias.gpu, dout.gpu, x.gpu, N, F, activation, false); });
    free(want);
    free(want_dx);
    arrays_free(&x, &out, &dout, &dx, &dbias);
}
