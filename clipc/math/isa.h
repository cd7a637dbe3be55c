// The inner loops (clipc/math/kernels.h) for each instruction set, and the choice of one at run time.
#ifndef CLIPC_ISA_H
#define CLIPC_ISA_H

#include "clipc/base/utils.h" // die
#include "clipc/math/plain.h" // Activation

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

// An array that matrix products read or write: fp32, or bf16 (the upper half of an fp32) with --precision
// amp_bf16.
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
// x + i, in entries
static inline Operand operand_at(Operand x, size_t i) {
    return operand((char *)x.p + i * operand_bytes(x.bf16), x.bf16);
}

// Epilogue, applied to each sum over K before it is stored to C (M,N). The rows of residual, activated and
// hidden are as far apart as those of C.
typedef enum {
    EPILOGUE_STORE,      // C = sum (+ bias)
    EPILOGUE_ADD,        // C += sum (+ residual)
    EPILOGUE_RESIDUAL,   // C = sum (+ bias) + residual
    EPILOGUE_ACTIVATION, // C = sum (+ bias), activated = activation(C)
    // C = sum * activation'(hidden), and unless activated is NULL, activated = activation(hidden)
    EPILOGUE_SLOPE
} EpilogueKind;

typedef struct {
    EpilogueKind kind;
    const float *bias;     // (N); NULL: none
    const float *residual; // (M,N)
    void *activated;       // (M,N) of C's type
    const void *hidden;    // (M,N) of C's type
    Activation activation; // which one: tower_shape() takes it from the weight file; finish() branches on it
} Epilogue;

static inline Epilogue epilogue_of(EpilogueKind kind, const float *bias) {
    const Epilogue e = {kind, bias, NULL, NULL, NULL, ACTIVATION_GELU};
    return e;
}

// Is this one of the combinations that the kernels implement?
static inline bool epilogue_is_known(const Epilogue *e) {
    if (e->kind == EPILOGUE_RESIDUAL) return e->residual && !e->activated && !e->hidden;
    if (e->kind == EPILOGUE_ACTIVATION) return e->activated && !e->residual && !e->hidden;
    if (e->kind == EPILOGUE_SLOPE) return e->hidden && !e->residual && !e->bias;
    if (e->activated || e->hidden) return false;
    return e->kind == EPILOGUE_STORE ? !e->residual : !e->bias;
}

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

// The micro-kernel of a matrix product: it sums a register tile of C over K. K is counted in units of 32
// bits: one fp32, or two bf16 that are adjacent along K.
typedef struct {
    void (*tile)(int m, int steps, const void *a, size_t a_row, size_t a_step, const void *b, float *partial,
        bool add, const char *next);
    const char *isa; // the lowest instruction set that gives the same bits; a value of CLIPC_ISA
    int rows;        // mr: rows of the register tile
    int step;        // units of K that one step sums
    int k_block;     // kc, in units: the depth of a micro-panel of B that stays in L1
} TileKernel;

// The inner loops of one instruction set; each is documented in kernels.h.
typedef struct {
    const char *name; // a value of CLIPC_ISA
    bool plain;       // layers run the loops of clipc/math/plain.h; the functions below are the portable ones
    int tile_columns; // nr: columns of the register tile
    bool native_bf16; // has instructions for products of bf16
    TileKernel products[2]; // of fp32, of bf16
    void (*begin)(void);    // before the first product of a thread; NULL: nothing to do
    void (*end)(void);      // after the last product of a thread; NULL: nothing to do
    void (*finish)(int m, int n, const float *partial, size_t next, Operand c, size_t ldc, size_t row,
        size_t column, const Epilogue *e);
    void (*transpose)(uint32_t *to, size_t pitch, const uint32_t *from);
    void (*units_across)(uint32_t *to, size_t pitch, Operand x, size_t along, int units, int n, bool bf16);
    void (*units_along)(uint32_t *to, size_t pitch, Operand x, size_t across, int units, int n, bool bf16);
    void (*to_bf16)(uint16_t *to, const float *x, int n);
    void (*layernorm)(Operand out, float *mean, float *rstd, const float *x, const float *gain,
        const float *bias, int C, float eps);
    void (*layernorm_backward)(float *dx, float *dgain, float *dbias, const float *skip, const float *dout,
        const float *x, const float *gain, float mean, float rstd, int C);
    void (*softmax)(float *p, int n, int ld, float scale);
    void (*softmax_backward)(float *dp, const float *p, int n, int ld, float scale);
    double (*sum_squares)(const float *x, size_t n);
    double (*sum_exp)(const float *x, float shift, int n);
    double (*logit_gradient)(float *x, float row_lse, const float *column_lse, float factor, int n);
    void (*adamw)(float *p, const float *grad, float *m, float *v, int n, AdamWTerms w);
    void (*moving_average)(float *average, const float *p, int n, float decay);
} Kernels;

// The functions that kernels.h defines for an instruction set, as initialisers of Kernels.
#define KERNELS_OF(isa_)                                                                         \
    .finish = finish_##isa_, .transpose = transpose_##isa_, .units_across = units_across_##isa_, \
    .units_along = units_along_##isa_, .to_bf16 = to_bf16_##isa_, .layernorm = layernorm_##isa_, \
    .layernorm_backward = layernorm_backward_##isa_, .softmax = softmax_##isa_,                  \
    .softmax_backward = softmax_backward_##isa_, .sum_squares = sum_squares_##isa_,              \
    .sum_exp = sum_exp_##isa_, .logit_gradient = logit_gradient_##isa_, .adamw = adamw_##isa_,   \
    .moving_average = moving_average_##isa_

// ---------------------------------------------------------------- kernels.h for each instruction set

#define INNER static inline __attribute__((always_inline))
#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(x) PASTE(x, ISA)
enum {
    K_BLOCK = 256,   // kc, in units: 32 KB of a panel of 32 columns
    FETCHED = 2048,  // bytes of the panel's next kc units that each tile prefetches into L2
    FINISH_AHEAD = 8 // rows of C and of the epilogue's inputs that are prefetched ahead
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
static const Kernels kernels_portable = {
    .name = "portable",
    .plain = false,
    .tile_columns = 8,
    .native_bf16 = false,
    .products = {{.tile = tile_fp32_portable, .isa = "portable", .rows = 4, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_portable, .isa = "portable", .rows = 4, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(portable),
};
// Obviously right, and slow: clipc/math/plain.h. fp32 only.
static const Kernels kernels_plain = {
    .name = "plain",
    .plain = true,
    .tile_columns = 8,
    .native_bf16 = false,
    .products = {{.tile = tile_fp32_portable, .isa = "plain", .rows = 4, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_portable, .isa = "plain", .rows = 4, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(portable),
};

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
static const Kernels kernels_neon = {
    .name = "neon",
    .plain = false,
    .tile_columns = 8,
    .native_bf16 = false,
    .products = {{.tile = tile_fp32_neon, .isa = "neon", .rows = 12, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_neon, .isa = "neon", .rows = 12, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(neon),
};

// BFDOT (Armv8.6): a unit's two products in one instruction. Versions of clang disagree on how to enable it,
// so builds with clang use NEON's shifts and masks (dot_bf16).
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
#include "clipc/math/kernels.h"
#undef vec
#undef ISA
#undef LANES
#undef TILE_ROWS
TARGET_END
static const Kernels kernels_neon_bf16 = {
    .name = "neon_bf16",
    .plain = false,
    .tile_columns = 8,
    .native_bf16 = true,
    .products = {{.tile = tile_fp32_neon, .isa = "neon", .rows = 12, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_neon_bf16, .isa = "neon_bf16", .rows = 12, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(neon),
};

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
static const Kernels kernels_avx2 = {
    .name = "avx2",
    .plain = false,
    .tile_columns = 16,
    .native_bf16 = false,
    .products = {{.tile = tile_fp32_avx2, .isa = "avx2", .rows = 6, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_avx2, .isa = "avx2", .rows = 6, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(avx2),
};

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
static const Kernels kernels_avx512 = {
    .name = "avx512",
    .plain = false,
    .tile_columns = 32,
    .native_bf16 = false,
    .products = {{.tile = tile_fp32_avx512, .isa = "avx512", .rows = 12, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_avx512, .isa = "avx512", .rows = 12, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(avx512),
};

// AVX512-BF16: a unit's two products in one instruction.
TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define ISA avx512
#define LANES 16
#define TILE_ROWS 12
#define vec vec_avx512
#define TILE tile_bf16_avx512_bf16
#define DOT(c, a, b) ((vec)_mm512_dpbf16_ps((__m512)(c), (__m512bh)(a), (__m512bh)(b)))
#include "clipc/math/kernels.h"
#undef vec
#undef ISA
#undef LANES
#undef TILE_ROWS
TARGET_END
static const Kernels kernels_avx512_bf16 = {
    .name = "avx512_bf16",
    .plain = false,
    .tile_columns = 32,
    .native_bf16 = true,
    .products = {{.tile = tile_fp32_avx512, .isa = "avx512", .rows = 12, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_avx512_bf16, .isa = "avx512_bf16", .rows = 12, .step = 1, .k_block = K_BLOCK}},
    .begin = NULL,
    .end = NULL,
    KERNELS_OF(avx512),
};

// AMX: eight tile registers of 16 rows of 64 bytes. TDPBF16PS adds the product of a (16,32) and a (32,16)
// tile of bf16 to a (16,16) tile of fp32. Four tiles hold a 32 x 32 block of C, two hold 32 rows of A, and
// two hold 32 columns of B.
enum {
    AMX_STEP = 16,                                 // units in a row of a tile
    AMX_K_BLOCK = 128,                             // kc, in units: 16 KB of a panel and 16 KB of A in L1
    AMX_FETCHED = FETCHED * AMX_STEP / AMX_K_BLOCK // bytes that each step prefetches
};

TARGET_BEGIN("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
static void tile_bf16_amx(int m, int steps, const void *a, size_t a_row, size_t a_step, const void *b,
    float *partial, bool add, const char *next) {
    const char *rows = (const char *)a, *panel = (const char *)b;
    const size_t down = 16 * 32;       // floats from the upper to the lower half of `partial`
    (void)m;                           // all 32 rows are computed; those of A past the last one are zero
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
        UNROLL
        for (int i = 0; i < AMX_FETCHED; i += 64) __builtin_prefetch(next + i, 0, 2);
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
static const Kernels kernels_amx = {
    .name = "amx",
    .plain = false,
    .tile_columns = 32,
    .native_bf16 = true,
    .products = {{.tile = tile_fp32_avx512, .isa = "avx512", .rows = 12, .step = 1, .k_block = K_BLOCK},
        {.tile = tile_bf16_amx, .isa = "amx", .rows = 32, .step = AMX_STEP, .k_block = AMX_K_BLOCK}},
    .begin = begin_amx,
    .end = end_amx,
    KERNELS_OF(avx512),
};

// CPUID leaf 7 says if the processor has AMX-BF16 and AMX-TILE; Linux must also grant this process the tile
// registers.
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

enum { KERNELS_MOST = 6 };

// The kernels that this processor can run, slowest first. Returns their number.
static inline int kernels_list(const Kernels *list[KERNELS_MOST]) {
    int count = 0;
    list[count++] = &kernels_plain;
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

// The fastest kernels that this processor can run, or those that the environment variable CLIPC_ISA names.
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
