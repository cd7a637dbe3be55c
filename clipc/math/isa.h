// The inner loops (clipc/math/kernels.h, clipc/math/tile.h) for each instruction set, and the choice of one
// at run time.
#ifndef CLIPC_ISA_H
#define CLIPC_ISA_H

#include "clipc/base/utils.h" // die

#include <math.h> // sqrtf
#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

// What matrix products read and may write: fp32, or bf16 (the upper half of an fp32) where --precision says
// so.
typedef struct {
    void *p;
    bool bf16;
} Operand;

static inline Operand operand(void *p, bool bf16) {
    const Operand x = {p, bf16};
    return x;
}
static inline Operand fp32(const float *p) { return operand((void *)p, false); }
static inline size_t operand_bytes(bool bf16) { return bf16 ? 2 : 4; }
static inline Operand operand_at(Operand x, size_t i) {
    return operand((char *)x.p + i * operand_bytes(x.bf16), x.bf16);
} // x + i

// What becomes of a sum over K before it is written to C (M,N):
//   C = sum (+ what C holds) (+ bias) (+ residual)
//   C = sum + bias, activated = GELU(C)                    the activation, forward
//   C = sum * GELU'(hidden) (, activated = GELU(hidden))   and backward, where its value is needed once more
// residual, activated and hidden have their rows as far apart as C. NULL: without it.
typedef struct {
    bool add;
    const float *bias;     // (N)
    const float *residual; // (M,N)
    void *activated;       // (M,N) of C's type
    const void *hidden;    // (M,N) of C's type
    bool quick_gelu;
} TileEnd;

// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2) on a tensor, with g the gradient * grad_scale:
//   m = beta1 * m + one_minus_beta1 * g,  v = beta2 * v + one_minus_beta2 * g * g,
//   p = p * decay_factor - rate * m / (sqrt(v * bias_correction2) + eps)
typedef struct {
    float grad_scale; // of gradient clipping
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float rate;             // lr / (1 - beta1^t)
    float bias_correction2; // 1 / (1 - beta2^t)
    float eps;
    float decay_factor; // 1 - lr * weight_decay
} AdamWTerms;

// Products sum over units of 32 bits, one fp32 or two bf16 that are neighbours along K; `steps` of so many
// units.
typedef struct {
    void (*tile)(int m, int steps, const void *a, size_t a_row, size_t a_step, const void *b, float *partial,
        bool add, const char *next);
    const char *isa; // the first instruction set that computes just so, as CLIPC_ISA takes it
    int rows;        // of the register tile
    int step;        // units
    int k_block;     // units of a panel that stay in L1 while rows of A pass by
} TileKernel;

// The inner loops of one instruction set; each is documented in kernels.h.
typedef struct {
    const char *name; // as CLIPC_ISA takes it
    int tile_columns;
    bool native_bf16;                  // has instructions for products of bf16
    TileKernel products[2];            // of fp32, of bf16
    void (*begin)(void), (*end)(void); // around the products of one thread; NULL: nothing to do
    void (*finish)(int m, int n, const float *partial, size_t next, Operand c, size_t ldc, size_t row,
        size_t column, const TileEnd *end);
    void (*transpose)(uint32_t *to, size_t pitch, const uint32_t *from);
    void (*units_across)(uint32_t *to, size_t pitch, Operand x, size_t along, int units, int n, bool bf16);
    void (*units_along)(uint32_t *to, size_t pitch, Operand x, size_t across, int units, int n, bool bf16);
    void (*narrow)(uint16_t *to, const float *x, int n);
    void (*widen)(float *to, const uint16_t *x, int n);
    void (*layernorm)(Operand out, float *mean, float *rstd, const float *x, const float *gain,
        const float *bias, int C, float eps);
    void (*layernorm_backward)(float *dx, float *dgain, float *dbias, const float *skip, const float *dout,
        const float *x, const float *gain, float mean, float rstd, int C);
    void (*softmax)(float *p, int n, int room, float scale);
    void (*softmax_backward)(float *dp, const float *p, int n, int room, float scale);
    void (*column_sums)(float *out, Operand x, int rows, size_t ld, int n);
    double (*sum_squares)(const float *x, size_t n);
    double (*sum_exp)(const float *x, float shift, int n);
    void (*add_exp)(float *sum, const float *x, const float *shift, int n);
    double (*logit_gradient)(float *x, float row_lse, const float *column_lse, float factor, int n);
    void (*adamw)(float *p, const float *grad, float *m, float *v, int n, AdamWTerms w);
    void (*moving_average)(float *average, const float *p, int n, float decay);
} Kernels;

// An entry of this type: the elementwise loops of `isa`, the products of bf16 by another kernel perhaps.
#define KERNELS(name, isa, columns, native, rows, tile_bf16, rows_bf16, step_bf16, k_block_bf16, begin, end) \
    {                                                                                                        \
        name, columns, native,                                                                               \
            {{tile_fp32_##isa, #isa, rows, 1, K_BLOCK},                                                      \
                {tile_bf16, name, rows_bf16, step_bf16, k_block_bf16}},                                      \
            begin, end, finish_##isa, transpose_##isa, units_across_##isa, units_along_##isa, narrow_##isa,  \
            widen_##isa, layernorm_##isa, layernorm_backward_##isa, softmax_##isa, softmax_backward_##isa,   \
            column_sums_##isa, sum_squares_##isa, sum_exp_##isa, add_exp_##isa, logit_gradient_##isa,        \
            adamw_##isa, moving_average_##isa                                                                \
    }

// ---------------------------------------------------------------- one text, several instruction sets

#define INNER static inline __attribute__((always_inline))
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(x) PASTE(x, ISA)
enum {
    K_BLOCK = 256, // units: of a panel of 32 columns 32 KB
    FETCHED =
        2048, // bytes from `next` on, of the panel's next block, that a tile of that depth brings into L2
    FINISH_AHEAD = 8 // rows of C and what is read beside it, fetched before they are written
};
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(isa) PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(isa) _Pragma("GCC push_options") PRAGMA(GCC target(isa))
#define TARGET_END _Pragma("GCC pop_options")
#endif

#define ISA portable // 4 floats: SSE2 or whatever the compiler makes of it
#define LANES 4
#define TILE_ROWS 4
#define FMA(a, b, c) ((a) * (b) + (c))
#define SQRT(v) NAME(sqrt)(v)
#define SELECT(mask, yes, no) ((vec)(((ivec)(yes) & (mask)) | ((ivec)(no) & ~(mask))))
#define MIN(a, b) SELECT((a) < (b), a, b)
#define MAX(a, b) SELECT((a) > (b), a, b)
#define IF_POSITIVE(v, yes, no) SELECT((v) > 0, yes, no)
INNER float __attribute__((vector_size(16))) sqrt_portable(float __attribute__((vector_size(16))) v) {
    for (int j = 0; j < 4; j++) v[j] = sqrtf(v[j]);
    return v;
}
#include "clipc/math/kernels.h"
static const Kernels kernels_portable =
    KERNELS("portable", portable, 8, false, 4, tile_bf16_portable, 4, 1, K_BLOCK, NULL, NULL);

#if defined(__aarch64__)
#define ISA neon
#define LANES 4
#define TILE_ROWS 12
#define FMA(a, b, c) ((vec)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define SQRT(v) ((vec)vsqrtq_f32((float32x4_t)(v)))
#define MIN(a, b) SELECT((a) < (b), a, b)
#define MAX(a, b) SELECT((a) > (b), a, b)
#define IF_POSITIVE(v, yes, no) SELECT((v) > 0, yes, no)
#include "clipc/math/kernels.h" // the compiler makes one instruction of SELECT
static const Kernels kernels_neon =
    KERNELS("neon", neon, 8, false, 12, tile_bf16_neon, 12, 1, K_BLOCK, NULL, NULL);

// BFDOT (Armv8.6): a unit's two products in one instruction. Versions of clang disagree on how to ask for it:
// they have NEON's shift and mask.
#if !defined(__clang__)
TARGET_BEGIN("arch=armv8.2-a+bf16")
#define ISA neon
#define LANES 4
#define TILE_ROWS 12
#define vec vec_neon
#define TILE tile_bf16_neon_bf16
#define DOT(c, a, b)                                                              \
    ((vec)vbfdotq_f32((float32x4_t)(c), vreinterpretq_bf16_f32((float32x4_t)(a)), \
        vreinterpretq_bf16_f32((float32x4_t)(b))))
#include "clipc/math/tile.h"
#undef vec
#undef ISA
#undef LANES
#undef TILE_ROWS
TARGET_END
static const Kernels kernels_neon_bf16 =
    KERNELS("neon_bf16", neon, 8, true, 12, tile_bf16_neon_bf16, 12, 1, K_BLOCK, NULL, NULL);

static inline bool neon_bf16_available(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP2) >> 14 & 1; // HWCAP2_BF16
#else
    return false;
#endif
}
#endif
#endif
#undef SELECT

#if defined(__x86_64__)
TARGET_BEGIN("avx2,fma")
#define ISA avx2
#define LANES 8
#define TILE_ROWS 6
#define FMA(a, b, c) ((vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SQRT(v) ((vec)_mm256_sqrt_ps((__m256)(v)))
#define MIN(a, b) ((vec)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define MAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define IF_POSITIVE(v, yes, no) ((vec)_mm256_blendv_ps((__m256)(no), (__m256)(yes), (__m256)((v) > 0)))
#include "clipc/math/kernels.h"
TARGET_END
static const Kernels kernels_avx2 =
    KERNELS("avx2", avx2, 16, false, 6, tile_bf16_avx2, 6, 1, K_BLOCK, NULL, NULL);

TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define ISA avx512
#define LANES 16
#define TILE_ROWS 12
#define FMA(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define SQRT(v) ((vec)_mm512_sqrt_ps((__m512)(v)))
#define MIN(a, b) ((vec)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define MAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define IF_POSITIVE(v, yes, no) \
    ((vec)_mm512_mask_blend_ps( \
        _mm512_cmp_ps_mask((__m512)(v), _mm512_setzero_ps(), _CMP_GT_OQ), (__m512)(no), (__m512)(yes)))
#include "clipc/math/kernels.h"
TARGET_END
static const Kernels kernels_avx512 =
    KERNELS("avx512", avx512, 32, false, 12, tile_bf16_avx512, 12, 1, K_BLOCK, NULL, NULL);

// AVX512-BF16: a unit's two products in one instruction.
TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define ISA avx512
#define LANES 16
#define TILE_ROWS 12
#define vec vec_avx512
#define TILE tile_bf16_avx512_bf16
#define DOT(c, a, b) ((vec)_mm512_dpbf16_ps((__m512)(c), (__m512bh)(a), (__m512bh)(b)))
#include "clipc/math/tile.h"
#undef vec
#undef ISA
#undef LANES
#undef TILE_ROWS
TARGET_END
static const Kernels kernels_avx512_bf16 =
    KERNELS("avx512_bf16", avx512, 32, true, 12, tile_bf16_avx512_bf16, 12, 1, K_BLOCK, NULL, NULL);

// AMX: eight tiles of 16 rows of 64 bytes; TDPBF16PS adds the product of a (16,32) and a (32,16) tile of bf16
// to a (16,16) tile of fp32. Four of them hold a 32 x 32 block of C, two each 32 rows of A and 32 columns of
// B.
enum {
    AMX_STEP = 16,                                 // units in a row of a tile
    AMX_K_BLOCK = 128,                             // units: 16 KB of a panel and as much of A pass through L1
    AMX_FETCHED = FETCHED * AMX_STEP / AMX_K_BLOCK // bytes a step
};

TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
static void tile_bf16_amx(int m, int steps, const void *a, size_t a_row, size_t a_step, const void *b,
    float *partial, bool add, const char *next) {
    const char *rows = (const char *)a, *panel = (const char *)b;
    const size_t down = 16 * 32;       // floats from the upper to the lower half of `partial`
    (void)m;                           // rows behind the last one are zero, and computed with the others
    __asm__ volatile("" ::: "memory"); // the compiler does not know that tiles are read from memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (add) {
        _tile_loadd(0, partial, 128);
        _tile_loadd(1, partial + 16, 128);
        _tile_loadd(2, partial + down, 128);
        _tile_loadd(3, partial + down + 16, 128);
    }
    for (int k = 0; k < steps; k++, rows += a_step, panel += AMX_STEP * 128, next += AMX_FETCHED) {
        UNROLL for (int i = 0; i < AMX_FETCHED; i += 64) __builtin_prefetch(next + i, 0, 2);
        _tile_loadd(6, panel, 128);
        _tile_loadd(4, rows, a_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + 64, 128);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, rows + 16 * a_row, a_row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, partial, 128);
    _tile_stored(1, partial + 16, 128);
    _tile_stored(2, partial + down, 128);
    _tile_stored(3, partial + down + 16, 128);
    __asm__ volatile("" ::: "memory"); // nor that they are written
}

static void begin_amx(void) {
    uint8_t shape[64] = {1}; // palette 1; bytes in a row (16 bits each) from 16 on, rows from 48 on
    for (int t = 0; t < 8; t++) {
        shape[16 + 2 * t] = 64;
        shape[48 + t] = 16;
    }
    __asm__ volatile("" ::: "memory"); // gcc 12 takes the stores for dead otherwise
    _tile_loadconfig(shape);
}
static void end_amx(void) { _tile_release(); }
TARGET_END
static const Kernels kernels_amx =
    KERNELS("amx", avx512, 32, true, 12, tile_bf16_amx, 32, AMX_STEP, AMX_K_BLOCK, begin_amx, end_amx);

// Bits of CPUID leaf 7: whether there are AMX-BF16 and AMX-TILE, and whether the kernel lends their registers
// to this process.
static inline bool amx_available(void) {
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
#if defined(__linux__)
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return false;
#endif
}

static inline bool avx512_bf16_available(void) {
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    return a >> 5 & 1;
}
#endif

enum { KERNELS_MOST = 5 };

// What this processor runs, each better than the one before. Returns how many.
static inline int kernels_list(const Kernels *list[KERNELS_MOST]) {
    int count = 0;
    list[count++] = &kernels_portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return count;
    list[count++] = &kernels_avx2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return count;
    list[count++] = &kernels_avx512;
    if (avx512_bf16_available()) list[count++] = &kernels_avx512_bf16;
    if (amx_available()) list[count++] = &kernels_amx;
#elif defined(__aarch64__)
    list[count++] = &kernels_neon;
#if !defined(__clang__)
    if (neon_bf16_available()) list[count++] = &kernels_neon_bf16;
#endif
#endif
    return count;
}

// The best inner loops that this processor runs, or those that the environment variable CLIPC_ISA names.
static inline const Kernels *kernels_select(void) {
    const Kernels *list[KERNELS_MOST];
    const int count = kernels_list(list);
    const char *wanted = getenv("CLIPC_ISA");
    if (!wanted || !*wanted) return list[count - 1];
    char names[128] = "";
    for (int i = 0; i < count; i++) {
        if (strcmp(list[i]->name, wanted) == 0) return list[i];
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", list[i]->name);
    }
    die(EXIT_USAGE, "CLIPC_ISA=%s: this processor runs %s; unset it to take the last", wanted, names);
}

#endif
