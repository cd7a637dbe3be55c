// AdamW over all tensors, with the weights' copy in bf16. Limit: bytes; reads weights, gradients, m and v,
// writes weights, m, v and the copy: 30 a number.
//
//           1  a launch a tensor, a number a thread: 302 launches for ViT-B/32, most of them for biases of a
//               few hundred numbers
//           2  one launch for all tensors: a block takes a piece of 8,192 numbers from a table, 16 bytes a
//               load; chunks of the small tensors fill
//              the gaps between those of the large ones
#include "dev/cuda/bench.h"

__global__ void adamw_1(
    float *params, bf16 *params_bf16, const float *grads, float *m, float *v, size_t n, AdamWTerms t) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    m[i] = m[i] * t.beta1 + grads[i] * t.one_minus_beta1;
    v[i] = v[i] * t.beta2 + grads[i] * grads[i] * t.one_minus_beta2;
    params[i] = params[i] * t.decay_factor - m[i] * t.rate / (sqrtf(v[i] * t.bias_correction2) + t.eps);
    params_bf16[i] = from_float<bf16>(params[i]);
}

// Tensors of these sizes lie one behind the other, each at a multiple of 16 numbers, as the table of tensors
// packs them.
static void lab_adamw(Lab *lab, const int *sizes, int tensors) {
    const double lr = 1e-3;
    const double beta1 = 0.9;
    const double beta2 = 0.98;
    const double eps = 1e-6;
    const double decay = 0.2;
    const int step = 3;
    size_t n = 0, *offset = (size_t *)malloc_check((size_t)tensors * sizeof *offset), count = 0;
    int chunks = 0;
    for (int i = 0; i < tensors; i++) {
        offset[i] = n;
        n += round_up((size_t)sizes[i], 16);
        count += (size_t)sizes[i];
        chunks += (sizes[i] + UPDATE_CHUNK - 1) / UPDATE_CHUNK;
    }
    Array<float> p = array_random<float>(1, n, 0.1), g = array_random<float>(2, n, 0.01),
                 m = array_random<float>(3, n, 0.01), v = array_random<float>(4, n, 0.01);
    Array<bf16> params_bf16 = array_create<bf16>(n);
    for (size_t i = 0; i < n; i++) v.host[i] *= v.host[i];
    float *before[3];
    double *want = doubles(n);
    for (int k = 0; k < 3; k++) {
        before[k] = (float *)malloc_check(n * sizeof(float));
        memcpy(before[k], (k == 0 ? p : k == 1 ? m : v).host, n * sizeof(float));
    }
    for (int t = 0; t < tensors && !lab->timed; t++)
        for (size_t i = offset[t]; i < offset[t] + (size_t)sizes[t]; i++) {
            double m1 = m.host[i], v1 = v.host[i];
            want[i] = reference_adamw(p.host[i], g.host[i], &m1, &v1, lr, beta1, beta2, eps, decay, step);
        }
    const AdamWTerms terms = {1, (float)beta1, (float)(1 - beta1), (float)beta2, (float)(1 - beta2),
        (float)(lr / (1 - pow(beta1, step))), (float)(1 / (1 - pow(beta2, step))), (float)eps,
        (float)(1 - lr * decay)};
    UpdateChunk *list = (UpdateChunk *)calloc_check((size_t)chunks, sizeof *list), *gpu_list;
    AdamWTerms *all = (AdamWTerms *)malloc_check((size_t)tensors * sizeof *all), *gpu_all;
    for (int t = 0, at = 0; t < tensors; t++) {
        all[t] = terms;
        for (int i = 0; i < sizes[t]; i += UPDATE_CHUNK) {
            list[at].offset = list[at].grad_offset = offset[t] + (size_t)i;
            list[at].count = sizes[t] - i < UPDATE_CHUNK ? sizes[t] - i : UPDATE_CHUNK;
            list[at++].tensor = t;
        }
    }
    CUDA_CHECK(cudaMalloc(&gpu_list, (size_t)chunks * sizeof *list));
    CUDA_CHECK(cudaMalloc(&gpu_all, (size_t)tensors * sizeof *all));
    CUDA_CHECK(cudaMemcpy(gpu_list, list, (size_t)chunks * sizeof *list, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(gpu_all, all, (size_t)tensors * sizeof *all, cudaMemcpyHostToDevice));
    const auto version = [&](int number, const char *idea, auto run) {
        memcpy(p.host, before[0], n * sizeof(float));
        memcpy(m.host, before[1], n * sizeof(float));
        memcpy(v.host, before[2], n * sizeof(float));
        upload(&p);
        upload(&m);
        upload(&v);
        lab_version(lab, "AdamW", number, idea, 30.0 * (double)count, 0, run, [&](int number) {
            download(&p);
            download(&params_bf16);
            for (int t = 0; t < tensors; t++)
                for (size_t i = offset[t]; i < offset[t] + (size_t)sizes[t]; i++) {
                    EXPECT_CLOSE(p.host[i], want[i], 1e-6);
                    EXPECT(params_bf16.host[i] == (float)(bf16)p.host[i],
                        "AdamW, version %d: the copy of number %zu", number, i);
                }
            lab_clear(&params_bf16);
        });
    };
    version(1, "a launch a tensor", [&] {
        for (int t = 0; t < tensors; t++)
            LAUNCH(adamw_1, blocks_for((size_t)sizes[t], 256), 256, 0, lab->gpu.stream, p.gpu + offset[t],
                params_bf16.gpu + offset[t], g.gpu + offset[t], m.gpu + offset[t], v.gpu + offset[t],
                (size_t)sizes[t], terms);
    });
    version(2, "one launch, chunks of all tensors", [&] {
        LAUNCH(adamw_kernel, chunks, 256, 0, lab->gpu.stream, p.gpu, params_bf16.gpu, g.gpu, m.gpu, v.gpu,
            (float *)NULL, gpu_list, gpu_all, (const double *)NULL, 0.0, 0.0f, -1);
    });
    CUDA_CHECK(cudaFree(gpu_list));
    CUDA_CHECK(cudaFree(gpu_all));
    for (float *x : before) free(x);
    free(offset);
    free(want);
    free(list);
    free(all);
    arrays_free(&p, &g, &m, &v, &params_bf16);
}
