// The inner loops of a CPU: one tile of a matrix product, one row of a LayerNorm, a softmax, an activation,
// AdamW on an array. There is no include guard: clipc/math/isa.h includes this file once for each instruction
// set, with
//   ISA        its name; NAME(x) is x_ISA
//   LANES      floats in a vector register
//   TILE_ROWS  rows of the register tile (its width is 2 * LANES)
//   FMA(a, b, c), SQRT(v), MIN(a, b), MAX(a, b), IF_POSITIVE(v, yes, no)
//              lane by lane; MIN and MAX return b if either is NaN
// The file undefines all of these at its end. With TILE defined, it contains the register tile only.
//
// Only functions that gain from hand-written vectors are here. They use GNU C's vector types, which have the
// usual operators. The order of sums depends on LANES alone: the same bits for any number of threads. No
// function of libm is called but sqrtf.

#ifdef TILE // ------------------------------------------------- the register tile of a matrix product

// For the terms unit, micro-panel and tile see clipc/math/matmul.h. Included with
//   TILE          the name of the function to define
//   DOT(c, a, b)  c + a * b on vectors of units; a unit is one float, or two bf16 whose products are summed
//
// partial (m, 2 * LANES) = sum over `steps` units of a[i][k] * b[k][j], or += with `add`. a is broadcast
// straight from memory; its rows are a_row bytes apart, its units a_step bytes. b is a micro-panel
// (steps, 2 * LANES). The sums of the whole tile are held in registers. Meanwhile memory from `next` on is
// prefetched into L2.
INNER void PASTE(TILE, rows)(const int m, int steps, const char *a, size_t a_row, size_t a_step,
    const float *b, float *partial, bool add, const char *next) {
    vec acc[TILE_ROWS][2];
    UNROLL
    for (int i = 0; i < m; i++) {
        UNROLL
        for (int h = 0; h < 2; h++) acc[i][h] = add ? NAME(load)(partial + (2 * i + h) * LANES) : (vec){0};
    }
    for (int k = 0; k < steps; k++, a += a_step, b += 2 * LANES, next += FETCHED / K_BLOCK) {
        const vec b0 = NAME(load)(b), b1 = NAME(load)(b + LANES);
        __builtin_prefetch(next, 0, 2); // the same line for several steps: few can be in flight at a time
        UNROLL
        for (int i = 0; i < m; i++) {
            float unit;
            memcpy(&unit, a + (size_t)i * a_row, sizeof unit);
            const vec x = NAME(splat)(unit);
            acc[i][0] = DOT(acc[i][0], x, b0);
            acc[i][1] = DOT(acc[i][1], x, b1);
        }
    }
    UNROLL
    for (int i = 0; i < m; i++) {
        UNROLL
        for (int h = 0; h < 2; h++) NAME(store)(partial + (2 * i + h) * LANES, acc[i][h]);
    }
}

static void TILE(int m, int steps, const void *a, size_t a_row, size_t a_step, const void *b, float *partial,
    bool add, const char *next) {
    const char *a_bytes = (const char *)a;
    const float *panel = (const float *)b;
    switch (m) { // a constant number of rows each, so that the tile stays in registers
                 // clang-format off
#define ROWS(M) \
    case M: \
        PASTE(TILE, rows)(min_int(M, TILE_ROWS), steps, a_bytes, a_row, a_step, panel, partial, add, next); \
        break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if TILE_ROWS > 4
        ROWS(5) ROWS(6)
#endif
#if TILE_ROWS > 6
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
#undef ROWS
        // clang-format on
    }
}

#undef TILE
#undef DOT

#else // ------------------------------------------------------- everything else

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES)));
typedef uint32_t NAME(uvec) __attribute__((vector_size(4 * LANES)));
typedef uint16_t NAME(halves) __attribute__((vector_size(2 * LANES)));
#define vec NAME(vec)
#define ivec NAME(ivec)
#define uvec NAME(uvec)
#define halves NAME(halves)

INNER vec NAME(load)(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INNER void NAME(store)(float *p, vec v) { memcpy(p, &v, sizeof v); }

// the first n < LANES floats, the rest 0
INNER vec NAME(load_part)(const float *p, int n) {
    float t[LANES] = {0};
    memcpy(t, p, (size_t)n * sizeof *p);
    return NAME(load)(t);
}

INNER void NAME(store_part)(float *p, vec v, int n) {
    float t[LANES];
    NAME(store)(t, v);
    memcpy(p, t, (size_t)n * sizeof *p);
}

// bf16 is the upper half of an fp32.
INNER vec NAME(load_bf16)(const uint16_t *p, int n) {
    halves h = {0};
    if (n == LANES) memcpy(&h, p, sizeof h);
    else memcpy(&h, p, (size_t)n * sizeof *p);
    return (vec)(__builtin_convertvector(h, ivec) << 16);
}

// Rounded to nearest, ties to even, in the upper half of each lane; NaN stays NaN.
INNER ivec NAME(round_bf16)(vec v) {
    const ivec bits = (ivec)v, nan = v != v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (rounded & ~nan) | ((bits | 0x400000) & nan);
}

INNER void NAME(store_bf16)(uint16_t *p, vec v, int n) {
    const halves h = __builtin_convertvector(NAME(round_bf16)(v) >> 16, halves);
    memcpy(p, &h, n == LANES ? sizeof h : (size_t)n * sizeof *p);
}

INNER vec NAME(splat)(float x) { return x - (vec){0}; }

INNER float NAME(sum)(vec v) {
    float t[LANES];
    NAME(store)(t, v);
    for (int w = LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}

// Runs statements for each vector of the entries 0 … n-1; i is its first entry. In them LOAD and STORE move
// `part` entries: LANES, or fewer in the last vector, whose other lanes read as 0. CLEAR zeroes these lanes.
#define FOR_VECTORS(n, ...)                    \
    do {                                       \
        int i = 0;                             \
        for (; i + LANES <= (n); i += LANES) { \
            enum { part = LANES };             \
            __VA_ARGS__                        \
        }                                      \
        if (i < (n)) {                         \
            const int part = (n)-i;            \
            __VA_ARGS__                        \
        }                                      \
    } while (0)
#define LOAD(p) (part == LANES ? NAME(load)((p) + i) : NAME(load_part)((p) + i, part))
#define STORE(p, v) (part == LANES ? NAME(store)((p) + i, v) : NAME(store_part)((p) + i, v, part))
// the same for an Operand (fp32 or bf16), from its entry `at` on
#define LOAD_OPERAND(x, at) \
    ((x).bf16 ? NAME(load_bf16)((const uint16_t *)(x).p + (at) + i, part) : LOAD((const float *)(x).p + (at)))
#define STORE_OPERAND(x, at, v)                                                \
    do {                                                                       \
        if ((x).bf16) NAME(store_bf16)((uint16_t *)(x).p + (at) + i, v, part); \
        else STORE((float *)(x).p + (at), v);                                  \
    } while (0)
#define CLEAR(v) (part == LANES ? (v) : NAME(load_part)((const float *)&(v), part))

// ---------------------------------------------------------------- LayerNorm (Ba et al. 2016, eq. 4), one row

static void NAME(layernorm)(Operand out, float *mean, float *rstd, const float *x, const float *gain,
    const float *bias, int C, float eps) {
    vec sum = {0}, squares = {0};
    FOR_VECTORS(C, sum += LOAD(x););
    float m = NAME(sum)(sum) / (float)C;
    FOR_VECTORS(C, vec d = LOAD(x) - NAME(splat)(m); d = CLEAR(d); squares = FMA(d, d, squares););
    float r = 1.0f / sqrtf(NAME(sum)(squares) / (float)C + eps);
    FOR_VECTORS(C, vec y = FMA((LOAD(x) - NAME(splat)(m)) * NAME(splat)(r), LOAD(gain), LOAD(bias));
                STORE_OPERAND(out, 0, y););
    *mean = m;
    *rstd = r;
}

// dx = skip + rstd * (g - mean(g) - n * mean(g * n)),  g = dout * gain,  n = (x - mean) * rstd
// dgain += dout * n,  dbias += dout
// skip is the gradient of the residual connection around the LayerNorm. dx, dgain, dbias or skip may be NULL.
static void NAME(layernorm_backward)(float *dx, float *dgain, float *dbias, const float *skip,
    const float *dout, const float *x, const float *gain, float mean, float rstd, int C) {
    vec m = NAME(splat)(mean);
    vec r = NAME(splat)(rstd);
    vec sum_g = {0};
    vec sum_gn = {0};
    FOR_VECTORS(C, vec g = LOAD(dout) * LOAD(gain); sum_g += g; vec n = (LOAD(x) - m) * r;
                sum_gn = FMA(g, n, sum_gn););
    vec mean_g = NAME(splat)(NAME(sum)(sum_g) / (float)C);
    vec mean_gn = NAME(splat)(NAME(sum)(sum_gn) / (float)C);
    if (dx)
        FOR_VECTORS(C, vec n = (LOAD(x) - m) * r;
                    vec d = r * (LOAD(dout) * LOAD(gain) - mean_g - n * mean_gn); if (skip) d += LOAD(skip);
                    STORE(dx, d););
    if (dgain) FOR_VECTORS(C, STORE(dgain, FMA(LOAD(dout), (LOAD(x) - m) * r, LOAD(dgain))););
    if (dbias) FOR_VECTORS(C, STORE(dbias, LOAD(dbias) + LOAD(dout)););
}

// ---------------------------------------------------------------- exponential, softmax

// e^x to 1.5 ulp for -87 <= x <= 88, clamped outside: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for
// e^r (Cephes' degree), 2^n by its exponent bits.
INNER vec NAME(exp)(vec x) {
    x = MAX(NAME(splat)(-87.0f), MIN(NAME(splat)(88.0f), x)); // NaN stays
    vec magic = NAME(splat)(12582912.0f); // 1.5 * 2^23: adding it leaves the integer in the low bits
    vec t = FMA(x, NAME(splat)(1.44269504f), magic);
    vec n = t - magic, r = FMA(n, NAME(splat)(-0.693359375f), x);
    r = FMA(n, NAME(splat)(2.12194440e-4f), r);
    vec p = NAME(splat)(1.9875691500e-4f);
    p = FMA(p, r, NAME(splat)(1.3981999507e-3f));
    p = FMA(p, r, NAME(splat)(8.3334519073e-3f));
    p = FMA(p, r, NAME(splat)(4.1665795894e-2f));
    p = FMA(p, r, NAME(splat)(1.6666665459e-1f));
    p = FMA(p, r, NAME(splat)(5.0000001201e-1f));
    p = FMA(p, r * r, r) + 1.0f;
    return p * (vec)(((ivec)t - 0x4b400000 + 127) << 23);
}

// the largest of n numbers; if one is NaN, any of them
INNER float NAME(largest)(const float *p, int n) {
    float t[LANES], max = p[0];
    vec m = NAME(splat)(max);
    int i = 0;
    for (; i + LANES <= n; i += LANES) m = MAX(m, NAME(load)(p + i));
    for (; i < n; i++) max = p[i] > max ? p[i] : max;
    NAME(store)(t, m);
    for (int j = 0; j < LANES; j++) max = t[j] > max ? t[j] : max;
    return max;
}

// p (n) = softmax(scale * p) in place; entries n … ld-1 become 0
static void NAME(softmax)(float *p, int n, int ld, float scale) {
    vec m = NAME(splat)(NAME(largest)(p, n)), s = NAME(splat)(scale), sum = {0};
    FOR_VECTORS(n, vec e = NAME(exp)((LOAD(p) - m) * s); STORE(p, e); sum += CLEAR(e););
    vec inverse = NAME(splat)(1.0f / NAME(sum)(sum));
    FOR_VECTORS(n, STORE(p, LOAD(p) * inverse););
    memset(p + n, 0, (size_t)(ld - n) * sizeof *p);
}

// ds (n) = scale * p * (dp - sum(p * dp)), in place of dp; entries n … ld-1 become 0
static void NAME(softmax_backward)(float *dp, const float *p, int n, int ld, float scale) {
    vec sum = {0};
    FOR_VECTORS(n, sum = FMA(LOAD(p), LOAD(dp), sum););
    vec dot = NAME(splat)(NAME(sum)(sum)), s = NAME(splat)(scale);
    FOR_VECTORS(n, STORE(dp, (LOAD(dp) - dot) * LOAD(p) * s););
    memset(dp + n, 0, (size_t)(ld - n) * sizeof *dp);
}

// ---------------------------------------------------------------- activations

// The cumulative normal distribution, absolute error below 1e-7: erfc(z) = e^(-z^2) t P(t), t = 1 / (1 + 0.4
// z), the form of Abramowitz and Stegun 7.1.26 with more terms (minimax fit, 2e-9); z = |x| / sqrt(2).
// *density = e^(-x^2/2).
INNER vec NAME(normal_cdf)(vec x, vec *density) {
    vec a = (vec)((ivec)x & 0x7fffffff);
    vec t = 1.0f / FMA(a, NAME(splat)(0.282842712f), NAME(splat)(1.0f));
    vec p = NAME(splat)(0.0754980984f);
    p = FMA(p, t, NAME(splat)(-0.398413772f));
    p = FMA(p, t, NAME(splat)(0.687805392f));
    p = FMA(p, t, NAME(splat)(-0.372271734f));
    p = FMA(p, t, NAME(splat)(0.403725177f));
    p = FMA(p, t, NAME(splat)(0.143248878f));
    p = FMA(p, t, NAME(splat)(0.235330311f));
    p = FMA(p, t, NAME(splat)(0.225077641f));
    // clamped, since subnormal numbers, here or in the products below, are slow
    *density = NAME(exp)(MAX(NAME(splat)(-80.0f), x * x * -0.5f));
    vec tail = *density * t * p * 0.5f;
    return IF_POSITIVE(x, 1.0f - tail, tail);
}

// GELU: x * cdf(x); QuickGELU: x * sigmoid(1.702 x). See Activation.
INNER vec NAME(activation)(vec x, const Activation activation) {
    vec density;
    switch (activation) {
    case ACTIVATION_GELU: return x * NAME(normal_cdf)(x, &density);
    case ACTIVATION_QUICK_GELU: return x / (1.0f + NAME(exp)(MIN(NAME(splat)(84.0f), x * -1.702f)));
    }
    return x;
}

// Returns the derivative, and in *value the activation itself.
//   GELU       cdf + x * pdf
//   QuickGELU  s + 1.702 x s (1 - s), with e = exp(-1.702 x) and s = 1 / (1 + e);
//              1 - s is computed as e s, which loses no digits
INNER vec NAME(activation_slope)(vec x, const Activation activation, vec *value) {
    vec density;
    if (activation == ACTIVATION_QUICK_GELU) {
        const vec e = NAME(exp)(MIN(NAME(splat)(84.0f), x * -1.702f)), s = 1.0f / (1.0f + e);
        *value = x * s;
        return FMA(x * 1.702f * s, e * s, s);
    }
    const vec cdf = NAME(normal_cdf)(x, &density);
    *value = x * cdf;
    return FMA(x * 0.398942280f, density, cdf);
}

// ---------------------------------------------------------------- matrix products

INNER vec NAME(dot_bf16)(vec c, vec a, vec b) { // both products of a unit
    const vec low = FMA((vec)((ivec)a << 16), (vec)((ivec)b << 16), c);
    return FMA((vec)((ivec)a & (int32_t)0xffff0000), (vec)((ivec)b & (int32_t)0xffff0000), low);
}

#define TILE NAME(tile_fp32)
#define DOT(c, a, b) FMA(a, b, c)
#include "clipc/math/kernels.h"
#define TILE NAME(tile_bf16)
#define DOT(c, a, b) NAME(dot_bf16)(c, a, b)
#include "clipc/math/kernels.h"

// NAME(finish) below, with the parameters after `e` as compile-time constants: each combination becomes a
// loop without branches.
INNER void NAME(finish_as)(int m, int n, const float *partial, size_t next, Operand c, size_t ldc, size_t row,
    size_t column, const Epilogue *e, const EpilogueKind kind, const Activation activation, const bool bias,
    const bool residual, const bool keep_activated) {
    const Operand hidden = {(void *)e->hidden, c.bf16}, activated = {e->activated, c.bf16};
    for (int r = 0; r < m; r++, partial += 2 * LANES) {
        const size_t at = (row + (size_t)r) * ldc + column;
        if (r + FINISH_AHEAD < m) { // rows are pages apart, too far for the hardware prefetchers
            const size_t ahead = at + FINISH_AHEAD * ldc;
            for (int i = 0; i < n; i += c.bf16 ? 32 : 16) {
                __builtin_prefetch(operand_at(c, ahead + (size_t)i).p, 1);
                if (residual) __builtin_prefetch(e->residual + ahead + i);
                if (kind == EPILOGUE_SLOPE) __builtin_prefetch(operand_at(hidden, ahead + (size_t)i).p);
                if (keep_activated) __builtin_prefetch(operand_at(activated, ahead + (size_t)i).p, 1);
            }
        }
        FOR_VECTORS(
            n, // the sums of vector i begin at sums + i
            const float *sums = partial + (size_t)(i / (2 * LANES)) * (next - 2 * LANES);
            vec v = LOAD(sums); vec value; if (bias) v += LOAD(e->bias + column);
            if (residual) v += LOAD(e->residual + at); if (kind == EPILOGUE_ADD) v += LOAD_OPERAND(c, at);
            if (kind == EPILOGUE_SLOPE) v *=
            NAME(activation_slope)(LOAD_OPERAND(hidden, at), activation, &value);
            STORE_OPERAND(c, at, v); if (kind == EPILOGUE_ACTIVATION) value = NAME(activation)(v, activation);
            if (keep_activated) STORE_OPERAND(activated, at, value););
    }
}

// Calls finish_as with c's format and the activation as constants.
#define FINISH(kind, activation, bias, residual, keep_activated)                                         \
    do {                                                                                                 \
        c.bf16 = is_bf16;                                                                                \
        NAME(finish_as)                                                                                  \
        (m, n, partial, next, c, ldc, row, column, e, kind, activation, bias, residual, keep_activated); \
    } while (0)
#define FINISH_ACTIVATION(kind, bias, keep_activated)                                                     \
    do {                                                                                                  \
        if (e->activation == ACTIVATION_GELU) FINISH(kind, ACTIVATION_GELU, bias, false, keep_activated); \
        else FINISH(kind, ACTIVATION_QUICK_GELU, bias, false, keep_activated);                            \
    } while (0)

INNER void NAME(finish_typed)(int m, int n, const float *partial, size_t next, Operand c, size_t ldc,
    size_t row, size_t column, const Epilogue *e, const bool is_bf16) {
    const bool bias = e->bias != NULL;
    switch (e->kind) {
    case EPILOGUE_STORE:
        if (bias) FINISH(EPILOGUE_STORE, ACTIVATION_GELU, true, false, false);
        else FINISH(EPILOGUE_STORE, ACTIVATION_GELU, false, false, false);
        break;
    case EPILOGUE_ADD:
        if (e->residual) FINISH(EPILOGUE_ADD, ACTIVATION_GELU, false, true, false);
        else FINISH(EPILOGUE_ADD, ACTIVATION_GELU, false, false, false);
        break;
    case EPILOGUE_RESIDUAL: FINISH(EPILOGUE_RESIDUAL, ACTIVATION_GELU, bias, true, false); break;
    case EPILOGUE_ACTIVATION: FINISH_ACTIVATION(EPILOGUE_ACTIVATION, bias, true); break;
    case EPILOGUE_SLOPE:
        if (e->activated) FINISH_ACTIVATION(EPILOGUE_SLOPE, false, true);
        else FINISH_ACTIVATION(EPILOGUE_SLOPE, false, false);
        break;
    }
}

// Applies the epilogue to m rows and n columns of sums and stores them to C from (row, column) on. partial
// (m, 2 * LANES); the sums of the next 2 * LANES columns follow `next` floats later.
static void NAME(finish)(int m, int n, const float *partial, size_t next, Operand c, size_t ldc, size_t row,
    size_t column, const Epilogue *e) {
    if (c.bf16) NAME(finish_typed)(m, n, partial, next, c, ldc, row, column, e, true);
    else NAME(finish_typed)(m, n, partial, next, c, ldc, row, column, e, false);
}
#undef FINISH
#undef FINISH_ACTIVATION

// ---------------------------------------------------------------- packing of units, see clipc/math/matmul.h

// to (16,16), rows `pitch` units apart, = from (16,16) transposed
static void NAME(transpose)(uint32_t *to, size_t pitch, const uint32_t *from) {
#if LANES == 16
    __m512i a[16], b[16]; // exchanges neighbours: single units, then pairs, fours, eights
    UNROLL
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + 16 * i);
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            a[i + 2 * h] = _mm512_unpacklo_epi64(b[i + h], b[i + h + 2]);
            a[i + 2 * h + 1] = _mm512_unpackhi_epi64(b[i + h], b[i + h + 2]);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512(to + (size_t)i * pitch, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (size_t)(i + 8) * pitch, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
#else
    for (int i = 0; i < 16; i++) {
        UNROLL
        for (int j = 0; j < 16; j++) to[(size_t)i * pitch + j] = from[16 * j + i];
    }
#endif
}

INNER void NAME(across_part)(uint32_t *to, size_t pitch, Operand x, size_t along, int units, const int part,
    const bool from_bf16, const bool bf16) {
    for (int u = 0; u < units; u++, to += pitch) {
        const uint16_t *half = (const uint16_t *)x.p + 2 * (size_t)u * along;
        const float *whole = (const float *)x.p + (size_t)u * (bf16 ? 2 : 1) * along;
        ivec unit;
        if (!bf16) unit = (ivec)(part == LANES ? NAME(load)(whole) : NAME(load_part)(whole, part));
        else if (from_bf16)
            unit = (ivec)((uvec)(ivec)NAME(load_bf16)(half, part) >> 16) |
                   (ivec)NAME(load_bf16)(half + along, part);
        else {
            const vec low = part == LANES ? NAME(load)(whole) : NAME(load_part)(whole, part);
            const vec high = part == LANES ? NAME(load)(whole + along) : NAME(load_part)(whole + along, part);
            unit = (ivec)((uvec)NAME(round_bf16)(low) >> 16) | (NAME(round_bf16)(high) & (int32_t)0xffff0000);
        }
        memcpy(to, &unit, (size_t)part * 4);
    }
}

// to (units,n), rows `pitch` units apart: units of n columns of x, whose rows are contiguous and `along`
// entries apart. bf16: the format of the units
static void NAME(units_across)(
    uint32_t *to, size_t pitch, Operand x, size_t along, int units, int n, bool bf16) {
#define ACROSS(part)                                                                             \
    do {                                                                                         \
        if (!bf16) NAME(across_part)(to + c, pitch, from, along, units, part, false, false);     \
        else if (x.bf16) NAME(across_part)(to + c, pitch, from, along, units, part, true, true); \
        else NAME(across_part)(to + c, pitch, from, along, units, part, false, true);            \
    } while (0)
    for (int c = 0; c < n; c += LANES) {
        const Operand from = operand_at(x, (size_t)c);
        if (n - c >= LANES) ACROSS(LANES);
        else if (n - c == TILE_ROWS % LANES)
            ACROSS(TILE_ROWS % LANES); // a constant, so that memcpy is inlined
        else ACROSS(n - c);
    }
#undef ACROSS
}

// to (n,units), rows `pitch` units apart: units of n columns of x, which are contiguous and `across` entries
// apart
static void NAME(units_along)(
    uint32_t *to, size_t pitch, Operand x, size_t across, int units, int n, bool bf16) {
    for (int c = 0; c < n; c++, to += pitch) {
        const Operand from = operand_at(x, (size_t)c * across);
        if (bf16 && !x.bf16)
            FOR_VECTORS(2 * units, NAME(store_bf16)((uint16_t *)to + i, LOAD((const float *)from.p), part););
        else if (units == 16) memcpy(to, from.p, 64); // the same
        else memcpy(to, from.p, (size_t)units * 4);
    }
}

// to (n) = x (n) rounded to bf16
static void NAME(to_bf16)(uint16_t *to, const float *x, int n) {
    FOR_VECTORS(n, NAME(store_bf16)(to + i, LOAD(x), part););
}

// ---------------------------------------------------------------- sums, AdamW

static double NAME(sum_squares)(const float *x, size_t n) {
    double total = 0;
    for (size_t at = 0; at < n; at += 1024) { // chunks are summed in fp32, their sums in double
        int chunk = n - at < 1024 ? (int)(n - at) : 1024;
        const float *y = x + at;
        vec s = {0};
        FOR_VECTORS(chunk, vec v = LOAD(y); s = FMA(v, v, s););
        total += NAME(sum)(s);
    }
    return total;
}

// The sum of e^(x - shift) over n logits: chunks in fp32, their sums in double. x - shift must be <= 88.
static double NAME(sum_exp)(const float *x, float shift, int n) {
    double total = 0;
    for (int at = 0; at < n; at += 1024) {
        const int chunk = n - at < 1024 ? n - at : 1024;
        const float *y = x + at;
        vec s = {0};
        FOR_VECTORS(chunk, vec e = NAME(exp)(LOAD(y) - NAME(splat)(shift)); e = CLEAR(e); s += e;);
        total += NAME(sum)(s);
    }
    return total;
}

// x (n) logits of one row, replaced by g = factor * (e^(x - row_lse) + e^(x - column_lse)). Returns the sum
// of g x.
static double NAME(logit_gradient)(float *x, float row_lse, const float *column_lse, float factor, int n) {
    double total = 0;
    for (int at = 0; at < n; at += 1024) {
        const int chunk = n - at < 1024 ? n - at : 1024;
        float *y = x + at;
        const float *lse = column_lse + at;
        vec s = {0};
        FOR_VECTORS(chunk, vec v = LOAD(y);
                    vec g = (NAME(exp)(v - NAME(splat)(row_lse)) + NAME(exp)(v - LOAD(lse))) * factor;
                    s = FMA(g, v, s); STORE(y, g););
        total += NAME(sum)(s);
    }
    return total;
}

// One step of AdamW on n numbers, see AdamWTerms.
static void NAME(adamw)(float *p, const float *grad, float *m, float *v, int n, AdamWTerms w) {
    FOR_VECTORS(n, vec g = LOAD(grad) * w.grad_scale;
                vec m1 = FMA(LOAD(m), NAME(splat)(w.beta1), g * w.one_minus_beta1);
                vec v1 = FMA(LOAD(v), NAME(splat)(w.beta2), g * g * w.one_minus_beta2);
                vec root = v1 * w.bias_correction2; STORE(m, m1); STORE(v, v1);
                STORE(p, LOAD(p) * w.decay_factor - m1 * w.rate / (SQRT(root) + w.eps)););
}

// average (n) = decay * average + (1 - decay) * p
static void NAME(moving_average)(float *average, const float *p, int n, float decay) {
    FOR_VECTORS(n, vec x = LOAD(p); STORE(average, FMA(LOAD(average) - x, NAME(splat)(decay), x)););
}

#undef vec
#undef ivec
#undef uvec
#undef halves
#undef FOR_VECTORS
#undef LOAD
#undef STORE
#undef LOAD_OPERAND
#undef STORE_OPERAND
#undef CLEAR
#undef ISA
#undef LANES
#undef TILE_ROWS
#undef FMA
#undef SQRT
#undef MIN
#undef MAX
#undef IF_POSITIVE

#endif
