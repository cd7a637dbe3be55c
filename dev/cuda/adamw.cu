// AdamW over all tensors, with the weights' copy in bf16. Limit: bytes; reads weights, gradients, m and v,
// writes weights, m, v and the copy: 30 a number.
//
//   1  a launch for each tensor, a number a thread: 302 launches for ViT-B/32, most of them for biases of a
//      few hundred numbers
//   2  one launch for all tensors: each block takes a chunk of 8,192 numbers from a table, 16 bytes a load;
//      chunks of the small tensors fill the gaps between those of the large ones
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

// Tensors of given sizes, one after the other, each at a multiple of 16 numbers, as the table of tensors
// packs them.
typedef struct {
    const int *sizes;
    size_t *offsets; // (tensors)
    int tensors, chunks;
    size_t numbers, padded;  // in all; with the gaps
    UpdateChunk *gpu_chunks; // (chunks)
    AdamWTerms *gpu_terms;   // (tensors), all the same
} LabTensors;

static LabTensors lab_tensors(const int *sizes, int tensors, AdamWTerms terms) {
    LabTensors t = {
        sizes, (size_t *)malloc_check((size_t)tensors * sizeof(size_t)), tensors, 0, 0, 0, NULL, NULL};
    for (int i = 0; i < tensors; i++) {
        t.offsets[i] = t.padded;
        t.padded += round_up((size_t)sizes[i], 16);
        t.numbers += (size_t)sizes[i];
        t.chunks += (sizes[i] + UPDATE_CHUNK - 1) / UPDATE_CHUNK;
    }
    const size_t chunk_bytes = (size_t)t.chunks * sizeof(UpdateChunk);
    const size_t terms_bytes = (size_t)tensors * sizeof(AdamWTerms);
    UpdateChunk *chunks = (UpdateChunk *)malloc_check(chunk_bytes), *next = chunks;
    AdamWTerms *all = (AdamWTerms *)malloc_check(terms_bytes);
    for (int i = 0; i < tensors; i++) {
        all[i] = terms;
        for (int at = 0; at < sizes[i]; at += UPDATE_CHUNK) {
            const size_t offset = t.offsets[i] + (size_t)at;
            *next++ = {offset, offset, min_int(UPDATE_CHUNK, sizes[i] - at), i};
        }
    }
    CUDA_CHECK(cudaMalloc(&t.gpu_chunks, chunk_bytes));
    CUDA_CHECK(cudaMalloc(&t.gpu_terms, terms_bytes));
    CUDA_CHECK(cudaMemcpy(t.gpu_chunks, chunks, chunk_bytes, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpy(t.gpu_terms, all, terms_bytes, cudaMemcpyHostToDevice));
    free(chunks);
    free(all);
    return t;
}

static float *floats_copied(const float *x, size_t n) {
    return (float *)memcpy(malloc_check(n * sizeof(float)), x, n * sizeof(float));
}

static void lab_adamw(Lab *lab, const int *sizes, int tensors) {
    const AdamW a = {1e-3, 0.9, 0.98, 1e-6, 0.2, 0, 0, 3};
    Tensor x = {};
    x.lr_scale = 1;
    x.decay = true;
    const AdamWTerms terms = adamw_terms(&a, &x, 1);
    LabTensors t = lab_tensors(sizes, tensors, terms);
    const size_t n = t.padded;
    Array<float> p = array_random<float>(1, n, 0.1), g = array_random<float>(2, n, 0.01),
                 m = array_random<float>(3, n, 0.01), v = array_random<float>(4, n, 0.01);
    Array<bf16> params_bf16 = array_create<bf16>(n);
    for (size_t i = 0; i < n; i++) v.host[i] *= v.host[i];
    float *p0 = floats_copied(p.host, n), *m0 = floats_copied(m.host, n), *v0 = floats_copied(v.host, n);
    if (!lab->timed)
        adamw_plain(
            p.host, g.host, m.host, v.host, n, 1, a.lr, a.beta1, a.beta2, a.eps, a.weight_decay, a.step);
    float *want = floats_copied(p.host, n);
    const auto version = [&](int number, const char *idea, auto run) {
        memcpy(p.host, p0, n * sizeof(float));
        memcpy(m.host, m0, n * sizeof(float));
        memcpy(v.host, v0, n * sizeof(float));
        for (Array<float> *array : {&p, &m, &v}) upload(array);
        lab_version(lab, "AdamW", number, idea, 30.0 * (double)t.numbers, 0, run, [&](int number) {
            download(&p);
            download(&params_bf16);
            for (int i = 0; i < tensors; i++)
                for (size_t at = t.offsets[i]; at < t.offsets[i] + (size_t)sizes[i]; at++) {
                    EXPECT_CLOSE(p.host[at], want[at], 1e-6);
                    EXPECT(params_bf16.host[at] == (float)(bf16)p.host[at],
                        "AdamW, version %d: the copy of number %zu", number, at);
                }
            lab_clear(&params_bf16);
        });
    };
    version(1, "a launch for each tensor", [&] {
        for (int i = 0; i < tensors; i++) {
            const size_t at = t.offsets[i], size = (size_t)sizes[i];
            LAUNCH(adamw_1, blocks_for(size, 256), 256, 0, lab->gpu.stream, p.gpu + at, params_bf16.gpu + at,
                g.gpu + at, m.gpu + at, v.gpu + at, size, terms);
        }
    });
    const double finite = 1; // of the gradients' norm: where it is not, nothing is updated
    double *squares = NULL;
    CUDA_CHECK(cudaMalloc(&squares, sizeof finite));
    CUDA_CHECK(cudaMemcpy(squares, &finite, sizeof finite, cudaMemcpyHostToDevice));
    version(2, "one launch, chunks of all tensors", [&] {
        LAUNCH(adamw_kernel, t.chunks, 256, 0, lab->gpu.stream, p.gpu, params_bf16.gpu, g.gpu, m.gpu, v.gpu,
            (float *)NULL, t.gpu_chunks, t.gpu_terms, (const double *)squares, 0.0, 0.0f, -1);
    });
    CUDA_CHECK(cudaFree(squares));
    CUDA_CHECK(cudaFree(t.gpu_chunks));
    CUDA_CHECK(cudaFree(t.gpu_terms));
    free(t.offsets);
    for (float *copy : {p0, m0, v0, want}) free(copy);
    arrays_free(&p, &g, &m, &v, &params_bf16);
}
