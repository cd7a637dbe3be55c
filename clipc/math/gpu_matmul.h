// Matrix products on a GPU by cuBLASLt, for row-major matrices: one function. The descriptors and the
// algorithm of a shape are looked up once and kept.
//
// cuBLASLt expects column-major matrices: a row-major (M,N) is its column-major (N,M), so C = A · B is
// computed as Cᵀ = Bᵀ · Aᵀ, operands exchanged. With CLIPC_EMULATE, the same interface over a plain product
// on the CPU.
#ifndef CLIPC_GPU_MATMUL_H
#define CLIPC_GPU_MATMUL_H

#include "clipc/math/gpu.h" // Gpu, cudaStream_t, bf16, cublasLt

// An operand of (rows, columns): stored so, with rows ld numbers apart; or stored transposed, as (columns,
// rows).
template <typename T> struct GpuMatrix {
    const T *p;
    int ld;
    bool transposed;
};
template <typename T> static inline GpuMatrix<T> rows_of(const T *p, int ld) { return {p, ld, false}; }
template <typename T> static inline GpuMatrix<T> transposed(const T *p, int ld) { return {p, ld, true}; }

// What is added to a product before it is stored; NULL: nothing.
template <typename Out> struct MatmulEpilogue {
    const Out *bias;     // (N) to every row
    const Out *residual; // (M,N), rows as far apart as those of the output; the output itself: to accumulate
};

// How fp32 operands are multiplied: with 10 bits of mantissa where --precision tf32 asks for it, or always as
// they are.
typedef enum { MATMUL_TF32_ALLOWED, MATMUL_EXACT } MatmulPrecision;

// What callers must keep to: of this cuBLASLt checks a part, the emulation nothing.
template <typename Out, typename In>
static inline void matmul_check(
    const Out *out, int ldo, GpuMatrix<In> a, GpuMatrix<In> b, int M, int N, int K) {
    assert(M > 0 && N > 0 && K > 0 && "an empty product");
    assert(a.ld >= (a.transposed ? M : K) && "rows of the left operand overlap");
    assert(b.ld >= (b.transposed ? K : N) && "rows of the right operand overlap");
    assert(ldo >= N && "rows of the output overlap");
    assert(a.p && b.p && out && "an operand is missing");
    assert((uintptr_t)a.p % sizeof(In) == 0 && (uintptr_t)b.p % sizeof(In) == 0 && "misaligned operand");
    assert((uintptr_t)out % sizeof(Out) == 0 && "misaligned output");
    (void)out, (void)ldo, (void)a, (void)b, (void)M, (void)N, (void)K; // without asserts
}

#if defined(CLIPC_EMULATE)

struct Matmul {
    bool tf32;
};

static inline Matmul *matmul_create(void) { return (Matmul *)calloc_check(1, sizeof(Matmul)); }
static inline void matmul_free(Matmul *mm) { free(mm); }

template <typename T> static inline float gpu_matrix_at(GpuMatrix<T> x, int row, int column) {
    return (float)(x.transposed ? x.p[(size_t)column * x.ld + row] : x.p[(size_t)row * x.ld + column]);
}

template <typename Out, typename In>
static void matmul(const Gpu *gpu, Out *out, int ldo, GpuMatrix<In> a, GpuMatrix<In> b, int M, int N, int K,
    MatmulEpilogue<Out> epilogue = {NULL, NULL}, float alpha = 1,
    MatmulPrecision precision = MATMUL_TF32_ALLOWED) {
    matmul_check(out, ldo, a, b, M, N, K);
    (void)precision;
    emulate::enqueue(gpu->stream, [=] {
        const emulate::DeviceAccess access;
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < K; k++) sum += (double)gpu_matrix_at(a, i, k) * gpu_matrix_at(b, k, j);
                float value = alpha * (float)sum;
                if (epilogue.residual) value += (float)epilogue.residual[(size_t)i * ldo + j];
                if (epilogue.bias) value += (float)epilogue.bias[j];
                out[(size_t)i * ldo + j] = Out(value);
            }
    });
}

#else

// Two products of equal MatmulShape share a plan. Fields are int, so that no padding is hashed.
typedef struct {
    int M, N, K, lda, ldb, ldo;
    int in, out;                    // cudaDataType of the operands, of the output
    int transposed_a, transposed_b; // 0 or 1
    int bias, tf32;                 // 0 or 1: is there a bias; are fp32 operands rounded
    int align;                      // bytes to which all pointers are aligned, at most 256
} MatmulShape;

typedef struct {
    MatmulShape shape;
    cublasLtMatmulDesc_t product; // NULL: a free entry
    cublasLtMatrixLayout_t a, b, out;
    cublasLtMatmulAlgo_t algorithm;
} MatmulPlan;

// Captions bring a new number of rows with each step. Of the shapes that hash to one entry, the latest keeps
// its plan.
enum { MATMUL_PLANS = 1024 };
static const size_t MATMUL_WORKSPACE = 32 << 20; // bytes, as NVIDIA advises for Hopper

struct Matmul {
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    MatmulPlan *plans; // (MATMUL_PLANS)
    bool tf32; // fp32 operands are rounded to 10 bits of mantissa, except in products that are MATMUL_EXACT
};

#define CUBLAS_CHECK(call)                                                                                  \
    do {                                                                                                    \
        const cublasStatus_t status = (call);                                                               \
        if (status != CUBLAS_STATUS_SUCCESS)                                                                \
            die(EXIT_RUNTIME, "cuBLASLt: %s (%s, %s:%d)", cublasLtGetStatusString(status), #call, __FILE__, \
                __LINE__);                                                                                  \
    } while (0)

static inline cudaDataType matmul_type(const float *) { return CUDA_R_32F; }
static inline cudaDataType matmul_type(const bf16 *) { return CUDA_R_16BF; }

static inline Matmul *matmul_create(void) {
    Matmul *mm = (Matmul *)calloc_check(1, sizeof *mm);
    CUBLAS_CHECK(cublasLtCreate(&mm->handle));
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&mm->preference));
    CUDA_CHECK(cudaMalloc(&mm->workspace, MATMUL_WORKSPACE));
    // sums over a split K are added in the workspace, in fp32 and in order: the same bits in every run
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(mm->preference,
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &MATMUL_WORKSPACE, sizeof MATMUL_WORKSPACE));
    CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        mm->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction));
    mm->plans = (MatmulPlan *)calloc_check(MATMUL_PLANS, sizeof *mm->plans);
    return mm;
}

static inline void matmul_plan_free(MatmulPlan *p) {
    if (!p->product) return;
    cublasLtMatmulDescDestroy(p->product);
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->b);
    cublasLtMatrixLayoutDestroy(p->out);
    p->product = NULL;
}

static inline void matmul_free(Matmul *mm) {
    for (int i = 0; i < MATMUL_PLANS; i++) matmul_plan_free(&mm->plans[i]);
    free(mm->plans);
    cudaFree(mm->workspace);
    cublasLtMatmulPreferenceDestroy(mm->preference);
    cublasLtDestroy(mm->handle);
    free(mm);
}

// The descriptor of a product holds the address of its bias, which differs between products of one shape.
static inline void matmul_plan_bias(const MatmulPlan *p, const void *bias) {
    if (bias)
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(
            p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
}

// Takes the first algorithm that cuBLASLt's heuristic suggests.
static inline void matmul_plan_create(
    const Matmul *mm, MatmulPlan *p, const MatmulShape *s, const void *bias) {
    const cudaDataType in = (cudaDataType)s->in, out = (cudaDataType)s->out;
    const cublasOperation_t first = s->transposed_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                            second = s->transposed_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = s->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    p->shape = *s;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(
        &p->product, s->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(
        p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    CUBLAS_CHECK(
        cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out, sizeof out));
    matmul_plan_bias(p, bias);
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(
        &p->b, in, s->transposed_b ? s->K : s->N, s->transposed_b ? s->N : s->K, s->ldb));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(
        &p->a, in, s->transposed_a ? s->M : s->K, s->transposed_a ? s->K : s->M, s->lda));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->out, out, s->N, s->M, s->ldo));
    const uint32_t align = (uint32_t)s->align;
    const cublasLtMatmulPreferenceAttributes_t which[] = {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++)
        CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(mm->preference, which[i], &align, sizeof align));
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        mm->handle, p->product, p->b, p->a, p->out, p->out, mm->preference, 1, &found, &count);
    if (status != CUBLAS_STATUS_SUCCESS || !count)
        die(EXIT_RUNTIME, "cuBLASLt has no algorithm for a product of (%d,%d) and (%d,%d) (%s)", s->M, s->K,
            s->K, s->N, cublasLtGetStatusString(status));
    p->algorithm = found.algo;
}

static inline const MatmulPlan *matmul_plan(const Matmul *mm, const MatmulShape *s, const void *bias) {
    MatmulPlan *p = &mm->plans[hash_bytes(HASH_START, s, sizeof *s) % MATMUL_PLANS];
    if (p->product && memcmp(&p->shape, s, sizeof *s) == 0) {
        matmul_plan_bias(p, bias);
    } else {
        matmul_plan_free(p);
        matmul_plan_create(mm, p, s, bias);
    }
    return p;
}

// out (M,N), rows ldo apart, = alpha * a (M,K) · b (K,N), plus the epilogue. bf16 operands are summed in
// fp32.
template <typename Out, typename In>
static void matmul(const Gpu *gpu, Out *out, int ldo, GpuMatrix<In> a, GpuMatrix<In> b, int M, int N, int K,
    MatmulEpilogue<Out> epilogue = {NULL, NULL}, float alpha = 1,
    MatmulPrecision precision = MATMUL_TF32_ALLOWED) {
    matmul_check(out, ldo, a, b, M, N, K);
    const Matmul *mm = gpu->matmul;
    const Out *residual = epilogue.residual ? epilogue.residual : out;
    const uintptr_t bits = (uintptr_t)a.p | (uintptr_t)b.p | (uintptr_t)out | (uintptr_t)residual |
                           (uintptr_t)epilogue.bias | 256;
    const bool tf32 = mm->tf32 && precision == MATMUL_TF32_ALLOWED && matmul_type(a.p) == CUDA_R_32F;
    const MatmulShape shape = {M, N, K, a.ld, b.ld, ldo, matmul_type(a.p), matmul_type(out), a.transposed,
        b.transposed, epilogue.bias != NULL, tf32, (int)(bits & -bits)};
    const float beta = epilogue.residual ? 1.0f : 0.0f;
    const MatmulPlan *p = matmul_plan(mm, &shape, epilogue.bias);
    CUBLAS_CHECK(cublasLtMatmul(mm->handle, p->product, &alpha, b.p, p->b, a.p, p->a, &beta, residual, p->out,
        out, p->out, &p->algorithm, mm->workspace, MATMUL_WORKSPACE, gpu->stream));
}

#endif
#endif
