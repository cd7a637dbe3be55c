// Matrix products on a CPU, and the table of inner loops (kernels.h) for the instruction set at hand.
//
// Every product is one function: C (M,N) = A (M,K) · B (K,N), A and B with any strides, so that forward, input gradient and weight
// gradient need no transposed copies:
//     forward           out (M,N)  = inp (M,K) · weight (N,K)ᵀ
//     input gradient    dinp (M,K) = dout (M,N) · weight (N,K)
//     weight gradient   dweight (N,K) += dout (M,N)ᵀ · inp (M,K)
// B is packed into panels as wide as a register tile, K in blocks that keep a panel in L1; A is broadcast straight from memory
// (Goto and van de Geijn 2008, without their packing of A, which gains nothing here). Every tile of C has one owner and K is cut
// at fixed places: the same bits for any number of threads.
#ifndef CLIPC_MATMUL_H
#define CLIPC_MATMUL_H

#include "clipc/utils.h" // die, aligned_malloc_check, round_up

#include <math.h> // sqrtf
#if defined(__x86_64__)
#include <immintrin.h> // _mm512_fmadd_ps
#endif

// What happens to a tile when its sum over K is complete: added to what C holds, plus bias (N), plus residual (M,N; rows as far
// apart as those of C).
typedef struct {
    bool add;
    const float *bias, *residual;
} TileEnd;

// AdamW (Loshchilov and Hutter 2019): g is scaled by grad_scale, m and v updated, p = p * keep - rate * m / (sqrt(v * correct2) + eps)
typedef struct {
    float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    float rate;     // lr / (1 - beta1^t)
    float correct2; // 1 / (1 - beta2^t)
    float eps;
    float keep; // 1 - lr * weight_decay
} AdamWTerms;

// The inner loops of one instruction set; each is documented in kernels.h.
typedef struct {
    const char *name; // as CLIPC_ISA takes it
    int tile_rows, tile_columns;
    void (*tile)(int m, int K, const float *a, size_t a_row, size_t a_col, const float *b, float *c, size_t ldc, int n, TileEnd end);
    void (*layernorm)(float *out, float *mean, float *rstd, const float *x, const float *gain, const float *bias, int C, float eps);
    void (*layernorm_backward)(float *dx, float *dgain, float *dbias, const float *skip, const float *dout, const float *x, const float *gain, float mean,
                               float rstd, int C);
    void (*softmax)(float *p, int n, int room, float scale);
    void (*softmax_backward)(float *dp, const float *p, int n, int room, float scale);
    void (*gelu)(float *out, const float *x, int n, bool quick);
    void (*gelu_backward)(float *dx, const float *x, const float *dout, int n, bool quick);
    void (*column_sums)(float *out, const float *x, int rows, size_t ld, int n);
    double (*sum_squares)(const float *x, size_t n);
    double (*sum_exp)(const float *x, float shift, int n);
    void (*add_exp)(float *sum, const float *x, const float *shift, int n);
    double (*logit_gradient)(float *x, float row_lse, const float *column_lse, float factor, int n);
    void (*adamw)(float *p, const float *grad, float *m, float *v, int n, AdamWTerms w);
    void (*moving_average)(float *average, const float *p, int n, float decay);
} Kernels;

// ---------------------------------------------------------------- one text, several instruction sets

#define INNER static inline __attribute__((always_inline))
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define ISA portable // 4 floats: SSE2, NEON or whatever the compiler makes of it
#define ISA_NAME "portable"
#define NAME(x) PASTE(x, ISA)
#define LANES 4
#define TILE_ROWS 4
#define FMA(a, b, c) ((a) * (b) + (c))
#define SQRT(v) NAME(sqrt)(v)
INNER float __attribute__((vector_size(16))) sqrt_portable(float __attribute__((vector_size(16))) v) {
    for (int j = 0; j < 4; j++) v[j] = sqrtf(v[j]);
    return v;
}
#include "clipc/kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#define TARGET_BEGIN_AVX2 _Pragma("clang attribute push(__attribute__((target(\"avx2,fma\"))), apply_to = function)")
#define TARGET_BEGIN_AVX512 _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma\"))), apply_to = function)")
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma\")")
#define TARGET_BEGIN_AVX512 _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma\")")
#define TARGET_END _Pragma("GCC pop_options")
#endif

TARGET_BEGIN_AVX2
#define ISA avx2
#define ISA_NAME "avx2"
#define LANES 8
#define TILE_ROWS 6
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SQRT(v) ((vec)_mm256_sqrt_ps((__m256)(v)))
#include "clipc/kernels.h"
TARGET_END

TARGET_BEGIN_AVX512
#define ISA avx512
#define ISA_NAME "avx512"
#define LANES 16
#define TILE_ROWS 12
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define SQRT(v) ((vec)_mm512_sqrt_ps((__m512)(v)))
#include "clipc/kernels.h"
TARGET_END
#endif

// The best inner loops that this processor runs, or those that the environment variable CLIPC_ISA names.
static inline const Kernels *kernels_select(void) {
    const Kernels *all[3] = {&kernels_portable, NULL, NULL};
    int count = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all[count++] = &kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        all[count++] = &kernels_avx512;
#endif
    const char *wanted = getenv("CLIPC_ISA");
    if (!wanted || !*wanted) return all[count - 1];
    for (int i = 0; i < count; i++)
        if (strcmp(all[i]->name, wanted) == 0) return all[i];
    die(EXIT_USAGE, "CLIPC_ISA=%s: this processor runs %s%s%s%s%s; unset it to take the last", wanted, all[0]->name, count > 1 ? ", " : "",
        count > 1 ? all[1]->name : "", count > 2 ? ", " : "", count > 2 ? all[2]->name : "");
}

// ---------------------------------------------------------------- products

enum { GEMM_K_BLOCK = 256, GEMM_ROW_TILES = 16 }; // a panel of 256 x 32 floats is 32 KB: L1; 16 tiles of 12 rows of A: 192 KB, L2

typedef struct {
    const float *p;
    size_t row, col; // distances of entries one row, one column apart
} Matrix;

static inline Matrix matrix(const float *p, size_t row, size_t col) {
    Matrix m = {p, row, col};
    return m;
}

// Packs rows k … k+K-1 and `n` columns from column `j` of B into one panel (K, tile_columns), missing columns 0.
static inline void gemm_pack(const Kernels *kernels, float *panel, Matrix B, int k, int K, int j, int n) {
    const int width = kernels->tile_columns;
    const float *b = B.p + (size_t)k * B.row + (size_t)j * B.col;
    if (B.col == 1) {
        for (int i = 0; i < K; i++) {
            memcpy(panel + (size_t)i * width, b + (size_t)i * B.row, (size_t)n * sizeof *b);
            memset(panel + (size_t)i * width + n, 0, (size_t)(width - n) * sizeof *b);
        }
        return;
    }
    if (n < width) memset(panel, 0, (size_t)K * width * sizeof *b);
    int i0 = 0;
    for (; i0 + 16 <= K && B.row == 1; i0 += 16) // 16 rows at a time: each cache line of B is read once
        for (int c = 0; c < n; c++) {
            const float *from = b + (size_t)c * B.col + i0;
            float *to = panel + (size_t)i0 * width + c;
            UNROLL for (int i = 0; i < 16; i++) to[i * width] = from[i];
        }
    for (int i = i0; i < K; i++)
        for (int c = 0; c < n; c++) panel[(size_t)i * width + c] = b[(size_t)i * B.row + (size_t)c * B.col];
}

// Some rows of A and a block of the inner dimension, tile by tile: entry (i, k) of tile t is p[t * tile + i * row + k * col].
typedef struct {
    const float *p;
    size_t tile, row, col;
} TileRows;

// Rows row0 … row1-1 and columns k … k+K-1 of A. Where its rows are not contiguous (a transposed matrix), each k would be a cache line of
// its own: then the entries are packed into `strips`, tile behind tile.
static inline TileRows gemm_rows(const Kernels *kernels, float *strips, Matrix A, int row0, int row1, int k, int K) {
    const int height = kernels->tile_rows;
    const float *a = A.p + (size_t)row0 * A.row + (size_t)k * A.col;
    const TileRows plain = {a, (size_t)height * A.row, A.row, A.col}, packed = {strips, (size_t)height * (size_t)K, 1, (size_t)height};
    if (A.col == 1) return plain;
    for (int i = 0; i < row1 - row0; i += height, strips += height * K) {
        const int m = row1 - row0 - i < height ? row1 - row0 - i : height;
        for (int j = 0; j < K; j++)
            for (int r = 0; r < m; r++) strips[j * height + r] = a[(size_t)(i + r) * A.row + (size_t)j * A.col];
    }
    return packed;
}

// `rows` rows of C from `c` on, n columns: one packed panel against tiles of A. bias and residual of `end` begin where c does.
static inline void gemm_panel(const Kernels *kernels, float *c, size_t ldc, TileRows a, const float *panel, int rows, int K, int n, TileEnd end) {
    for (int i = 0; i < rows; i += kernels->tile_rows, a.p += a.tile) {
        const TileEnd e = {end.add, end.bias, end.residual ? end.residual + (size_t)i * ldc : NULL};
        kernels->tile(rows - i < kernels->tile_rows ? rows - i : kernels->tile_rows, K, a.p, a.row, a.col, panel, c + (size_t)i * ldc, ldc, n, e);
    }
}

// What a block of K does at the end of its tiles, `at` floats into C, at column j: all but the first add to C, only the last one adds bias
// and residual.
static inline TileEnd gemm_end(TileEnd end, bool first, bool last, size_t at, int j) {
    const TileEnd e = {end.add || !first, last && end.bias ? end.bias + j : NULL, last && end.residual ? end.residual + at : NULL};
    return e;
}

static inline int gemm_least(int a, int b) { return a < b ? a : b; }

// C (M,N), rows ldc apart. By all threads; call it from outside of parallel regions.
static inline void gemm(const Kernels *kernels, float *C, size_t ldc, Matrix A, Matrix B, int M, int N, int K, TileEnd end) {
    const int width = kernels->tile_columns, panels = (N + width - 1) / width, most = GEMM_ROW_TILES * kernels->tile_rows, row_blocks = (M + most - 1) / most;
    float *packed = (float *)aligned_malloc_check((size_t)panels * width * GEMM_K_BLOCK * sizeof(float));
#pragma omp parallel
    {
        float *strips = (float *)aligned_malloc_check((size_t)most * GEMM_K_BLOCK * sizeof(float));
        for (int k = 0; k < K; k += GEMM_K_BLOCK) {
            const int depth = gemm_least(K - k, GEMM_K_BLOCK);
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p++) gemm_pack(kernels, packed + (size_t)p * width * GEMM_K_BLOCK, B, k, depth, p * width, gemm_least(N - p * width, width));
            TileRows a = {NULL, 0, 0, 0};
            int row_of_a = -1;
#pragma omp for schedule(dynamic, 4)
            for (int item = 0; item < row_blocks * panels; item++) { // neighbours share the rows of A
                const int row = item / panels * most, p = item % panels, rows = gemm_least(M - row, most);
                const size_t at = (size_t)row * ldc + (size_t)p * width;
                if (row != row_of_a) a = gemm_rows(kernels, strips, A, row_of_a = row, row + rows, k, depth);
                gemm_panel(kernels, C + at, ldc, a, packed + (size_t)p * width * GEMM_K_BLOCK, rows, depth, gemm_least(N - p * width, width),
                           gemm_end(end, k == 0, k + depth == K, at, p * width));
            }
        }
        free(strips);
    }
    free(packed);
}

// The same by the calling thread alone, for products within a parallel region (one head of attention). `scratch`: room for
// gemm_serial_scratch() floats.
static inline size_t gemm_serial_scratch(const Kernels *kernels) { return (size_t)(kernels->tile_columns + GEMM_ROW_TILES * kernels->tile_rows) * GEMM_K_BLOCK; }

static inline void gemm_serial(const Kernels *kernels, float *scratch, float *C, size_t ldc, Matrix A, Matrix B, int M, int N, int K, TileEnd end) {
    const int width = kernels->tile_columns, most = GEMM_ROW_TILES * kernels->tile_rows;
    float *panel = scratch, *strips = scratch + (size_t)width * GEMM_K_BLOCK;
    for (int k = 0; k < K; k += GEMM_K_BLOCK)
        for (int row = 0; row < M; row += most) {
            const int depth = gemm_least(K - k, GEMM_K_BLOCK), rows = gemm_least(M - row, most);
            const TileRows a = gemm_rows(kernels, strips, A, row, row + rows, k, depth);
            for (int j = 0; j < N; j += width) {
                const size_t at = (size_t)row * ldc + (size_t)j;
                gemm_pack(kernels, panel, B, k, depth, j, gemm_least(N - j, width));
                gemm_panel(kernels, C + at, ldc, a, panel, rows, depth, gemm_least(N - j, width), gemm_end(end, k == 0, k + depth == K, at, j));
            }
        }
}

// out (M,N) = a (M,K) · b (N,K)ᵀ
static inline void matmul_nt(const Kernels *kernels, float *out, const float *a, const float *b, int M, int N, int K) {
    TileEnd end = {false, NULL, NULL};
    gemm(kernels, out, (size_t)N, matrix(a, (size_t)K, 1), matrix(b, 1, (size_t)K), M, N, K, end);
}

#endif
