// The inner loops of a CPU: one tile of a matrix product, one row of a LayerNorm, a softmax, an activation, AdamW on a stretch of
// numbers. No include guard: clipc/matmul.h includes this text once for each instruction set, with
//   LANES      floats in a vector register              FMA(a, b, c)   a * b + c on vectors
//   NAME(x)    x with the instruction set's name behind  TILE_ROWS      rows of the register tile (its width is 2 * LANES)
// All of these are undefined again at its end.
// Vectors are GNU C's, so that arithmetic is written with + and *. Sums run in a fixed order given by LANES alone: the same
// bits for any number of threads. No call into libm.

typedef float NAME(vec) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ivec) __attribute__((vector_size(4 * LANES)));
#define vec NAME(vec)
#define ivec NAME(ivec)

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

INNER vec NAME(splat)(float x) { return x - (vec){0}; }

INNER vec NAME(select)(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }

INNER float NAME(sum)(vec v) {
    float t[LANES];
    NAME(store)(t, v);
    for (int w = LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}

// Runs a statement for the vectors of 0 … n-1; within it LOAD and STORE go by whole registers, in the last, incomplete one by
// its `part` entries (the others read as 0); CLEAR zeroes what is not part.
#define FOR_VECTORS(n, ...) \
    do { \
        int i = 0; \
        for (; i + LANES <= (n); i += LANES) { \
            enum { part = LANES }; \
            __VA_ARGS__ \
        } \
        if (i < (n)) { \
            const int part = (n)-i; \
            __VA_ARGS__ \
        } \
    } while (0)
#define LOAD(p) (part == LANES ? NAME(load)((p) + i) : NAME(load_part)((p) + i, part))
#define STORE(p, v) (part == LANES ? NAME(store)((p) + i, v) : NAME(store_part)((p) + i, v, part))
#define CLEAR(v) (part == LANES ? (v) : NAME(load_part)((const float *)&(v), part))

// ---------------------------------------------------------------- matrix products

// c (m, n) = sum over k of a[i * a_row + k * a_col] * b[k][j], b a packed panel (K, 2 * LANES), n <= 2 * LANES.
// The accumulators of the whole tile live in registers; a is broadcast straight from memory.
INNER void NAME(tile_rows)(const int m, int K, const float *a, size_t a_row, size_t a_col, const float *b, float *c, size_t ldc, int n, TileEnd end) {
    vec acc[TILE_ROWS][2];
    UNROLL for (int i = 0; i < m; i++) acc[i][0] = acc[i][1] = (vec){0};
    for (int k = 0; k < K; k++, a += a_col, b += 2 * LANES) {
        vec b0 = NAME(load)(b), b1 = NAME(load)(b + LANES);
        UNROLL for (int i = 0; i < m; i++) {
            vec x = NAME(splat)(a[(size_t)i * a_row]);
            acc[i][0] = FMA(x, b0, acc[i][0]);
            acc[i][1] = FMA(x, b1, acc[i][1]);
        }
    }
    UNROLL for (int i = 0; i < m; i++) {
        float *row = c + (size_t)i * ldc;
        UNROLL for (int h = 0; h < 2; h++) {
            int left = n - h * LANES, at = h * LANES;
            if (left <= 0) continue;
            int part = left < LANES ? left : LANES;
            vec v = acc[i][h];
            if (part == LANES) {
                if (end.add) v += NAME(load)(row + at);
                if (end.bias) v += NAME(load)(end.bias + at);
                if (end.residual) v += NAME(load)(end.residual + (size_t)i * ldc + at);
                NAME(store)(row + at, v);
            } else {
                if (end.add) v += NAME(load_part)(row + at, part);
                if (end.bias) v += NAME(load_part)(end.bias + at, part);
                if (end.residual) v += NAME(load_part)(end.residual + (size_t)i * ldc + at, part);
                NAME(store_part)(row + at, v, part);
            }
        }
    }
}

static void NAME(tile)(int m, int K, const float *a, size_t a_row, size_t a_col, const float *b, float *c, size_t ldc, int n, TileEnd end) {
    switch (m) { // a constant number of rows each, so that the tile stays in registers
#define ROWS(M) case M: NAME(tile_rows)(M <= TILE_ROWS ? M : TILE_ROWS, K, a, a_row, a_col, b, c, ldc, n, end); break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if TILE_ROWS > 4
        ROWS(5) ROWS(6)
#endif
#if TILE_ROWS > 6
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
#undef ROWS
    }
}

// ---------------------------------------------------------------- LayerNorm (Ba et al. 2016, eq. 4), one row

static void NAME(layernorm)(float *out, float *mean, float *rstd, const float *x, const float *gain, const float *bias, int C, float eps) {
    vec sum = {0}, squares = {0};
    FOR_VECTORS(C, sum += LOAD(x););
    float m = NAME(sum)(sum) / (float)C;
    FOR_VECTORS(C, vec d = LOAD(x) - NAME(splat)(m); d = CLEAR(d); squares = FMA(d, d, squares););
    float r = 1.0f / sqrtf(NAME(sum)(squares) / (float)C + eps);
    FOR_VECTORS(C, STORE(out, FMA((LOAD(x) - NAME(splat)(m)) * NAME(splat)(r), LOAD(gain), LOAD(bias))););
    *mean = m, *rstd = r;
}

// dx = skip + rstd * (g - mean(g) - n * mean(g * n)),  g = dout * gain,  n = (x - mean) * rstd; skip is the gradient that passes
// by on the residual stream. dgain += dout * n, dbias += dout where given.
static void NAME(layernorm_backward)(float *dx, float *dgain, float *dbias, const float *skip, const float *dout, const float *x, const float *gain,
                                     float mean, float rstd, int C) {
    vec m = NAME(splat)(mean), r = NAME(splat)(rstd), sum_g = {0}, sum_gn = {0};
    FOR_VECTORS(C, vec g = LOAD(dout) * LOAD(gain); sum_g += g; vec n = (LOAD(x) - m) * r; sum_gn = FMA(g, n, sum_gn););
    vec mean_g = NAME(splat)(NAME(sum)(sum_g) / (float)C), mean_gn = NAME(splat)(NAME(sum)(sum_gn) / (float)C);
    if (dx)
        FOR_VECTORS(C, vec n = (LOAD(x) - m) * r; vec d = r * (LOAD(dout) * LOAD(gain) - mean_g - n * mean_gn); if (skip) d += LOAD(skip); STORE(dx, d););
    if (dgain) FOR_VECTORS(C, STORE(dgain, FMA(LOAD(dout), (LOAD(x) - m) * r, LOAD(dgain))););
    if (dbias) FOR_VECTORS(C, STORE(dbias, LOAD(dbias) + LOAD(dout)););
}

// ---------------------------------------------------------------- exponential, softmax

// e^x to 1.5 ulp for -87 <= x <= 88, clamped outside: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r (Cephes' degree),
// 2^n by its exponent bits.
INNER vec NAME(exp)(vec x) {
    x = NAME(select)(x > 88.0f, NAME(splat)(88.0f), x); // NaN compares false and stays
    x = NAME(select)(x < -87.0f, NAME(splat)(-87.0f), x);
    vec magic = NAME(splat)(12582912.0f), t = FMA(x, NAME(splat)(1.44269504f), magic); // 1.5 * 2^23: the integer ends in the low bits
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

// p (n) = softmax(scale * p) in place; entries n … room-1 become 0
static void NAME(softmax)(float *p, int n, int room, float scale) {
    float max = p[0];
    for (int i = 1; i < n; i++) max = p[i] > max ? p[i] : max;
    vec m = NAME(splat)(max), s = NAME(splat)(scale);
    FOR_VECTORS(n, STORE(p, NAME(exp)((LOAD(p) - m) * s)););
    vec sum = {0};
    FOR_VECTORS(n, sum += LOAD(p););
    vec inverse = NAME(splat)(1.0f / NAME(sum)(sum));
    FOR_VECTORS(n, STORE(p, LOAD(p) * inverse););
    memset(p + n, 0, (size_t)(room - n) * sizeof *p);
}

// ds (n) = scale * p * (dp - sum(p * dp)), in place of dp; entries n … room-1 become 0
static void NAME(softmax_backward)(float *dp, const float *p, int n, int room, float scale) {
    vec sum = {0};
    FOR_VECTORS(n, sum = FMA(LOAD(p), LOAD(dp), sum););
    vec dot = NAME(splat)(NAME(sum)(sum)), s = NAME(splat)(scale);
    FOR_VECTORS(n, STORE(dp, (LOAD(dp) - dot) * LOAD(p) * s););
    memset(dp + n, 0, (size_t)(room - n) * sizeof *dp);
}

// ---------------------------------------------------------------- activations

// The cumulative normal distribution, absolute error below 1e-7: erfc(z) = e^(-z^2) t P(t), t = 1 / (1 + 0.4 z), the form of
// Abramowitz and Stegun 7.1.26 with more terms (minimax fit, 2e-9); z = |x| / sqrt(2). *density = e^(-x^2/2).
INNER vec NAME(normal_cdf)(vec x, vec *density) {
    vec a = (vec)((ivec)x & 0x7fffffff), t = 1.0f / FMA(a, NAME(splat)(0.282842712f), NAME(splat)(1.0f));
    vec p = NAME(splat)(0.0754980984f);
    p = FMA(p, t, NAME(splat)(-0.398413772f));
    p = FMA(p, t, NAME(splat)(0.687805392f));
    p = FMA(p, t, NAME(splat)(-0.372271734f));
    p = FMA(p, t, NAME(splat)(0.403725177f));
    p = FMA(p, t, NAME(splat)(0.143248878f));
    p = FMA(p, t, NAME(splat)(0.235330311f));
    p = FMA(p, t, NAME(splat)(0.225077641f));
    *density = NAME(exp)(x * x * -0.5f);
    vec tail = *density * t * p * 0.5f;
    return NAME(select)(x > 0.0f, 1.0f - tail, tail);
}

// GELU (Hendrycks and Gimpel 2016) with erf: x * cdf(x); QuickGELU, as OpenAI trained: x * sigmoid(1.702 x)
static void NAME(gelu)(float *out, const float *x, int n, bool quick) {
    vec density;
    if (quick) FOR_VECTORS(n, vec v = LOAD(x); STORE(out, v / (1.0f + NAME(exp)(v * -1.702f))););
    else FOR_VECTORS(n, vec v = LOAD(x); STORE(out, v * NAME(normal_cdf)(v, &density)););
}

// dx = dout * activation'(x): cdf + x * pdf, or s + 1.702 x s (1 - s) with s = 1 / (1 + e), where e s is 1 - s without cancellation
static void NAME(gelu_backward)(float *dx, const float *x, const float *dout, int n, bool quick) {
    vec density;
    if (quick)
        FOR_VECTORS(n, vec v = LOAD(x); vec e = NAME(exp)(v * -1.702f); vec s = 1.0f / (1.0f + e); STORE(dx, LOAD(dout) * FMA(v * 1.702f * s, e * s, s)););
    else
        FOR_VECTORS(n, vec v = LOAD(x); vec cdf = NAME(normal_cdf)(v, &density); STORE(dx, LOAD(dout) * FMA(v * 0.398942280f, density, cdf)););
}

// ---------------------------------------------------------------- sums, AdamW

// out (n) += the columns of x (rows, n), rows ld apart
static void NAME(column_sums)(float *out, const float *x, int rows, size_t ld, int n) {
    FOR_VECTORS(n, vec s = {0}; for (int r = 0; r < rows; r++) s += LOAD(x + (size_t)r * ld); STORE(out, LOAD(out) + s););
}

static double NAME(sum_squares)(const float *x, size_t n) {
    double total = 0;
    for (size_t at = 0; at < n; at += 1024) { // short stretches in fp32, their sum in double
        int stretch = n - at < 1024 ? (int)(n - at) : 1024;
        const float *y = x + at;
        vec s = {0};
        FOR_VECTORS(stretch, vec v = LOAD(y); s = FMA(v, v, s););
        total += NAME(sum)(s);
    }
    return total;
}

// The sum over n logits of e^(x - shift), in double over short stretches; no x - shift above 88
static double NAME(sum_exp)(const float *x, float shift, int n) {
    double total = 0;
    for (int at = 0; at < n; at += 1024) {
        const int stretch = n - at < 1024 ? n - at : 1024;
        const float *y = x + at;
        vec s = {0};
        FOR_VECTORS(stretch, vec e = NAME(exp)(LOAD(y) - NAME(splat)(shift)); e = CLEAR(e); s += e;);
        total += NAME(sum)(s);
    }
    return total;
}

// sum (n) += e^(x - shift), shift (n)
static void NAME(add_exp)(float *sum, const float *x, const float *shift, int n) {
    FOR_VECTORS(n, STORE(sum, LOAD(sum) + NAME(exp)(LOAD(x) - LOAD(shift))););
}

// x (n) logits of one row, in place: g = factor * (e^(x - row_lse) + e^(x - column_lse)). Returns the sum of g x.
static double NAME(logit_gradient)(float *x, float row_lse, const float *column_lse, float factor, int n) {
    double total = 0;
    for (int at = 0; at < n; at += 1024) {
        const int stretch = n - at < 1024 ? n - at : 1024;
        float *y = x + at;
        const float *lse = column_lse + at;
        vec s = {0};
        FOR_VECTORS(stretch, vec v = LOAD(y); vec g = (NAME(exp)(v - NAME(splat)(row_lse)) + NAME(exp)(v - LOAD(lse))) * factor; s = FMA(g, v, s); STORE(y, g););
        total += NAME(sum)(s);
    }
    return total;
}

// One step of AdamW on n numbers, see AdamWTerms.
static void NAME(adamw)(float *p, const float *grad, float *m, float *v, int n, AdamWTerms w) {
    FOR_VECTORS(n, vec g = LOAD(grad) * w.grad_scale;
                vec m1 = FMA(LOAD(m), NAME(splat)(w.beta1), g * w.one_minus_beta1);
                vec v1 = FMA(LOAD(v), NAME(splat)(w.beta2), g * g * w.one_minus_beta2);
                vec root = v1 * w.correct2;
                STORE(m, m1); STORE(v, v1);
                STORE(p, LOAD(p) * w.keep - m1 * w.rate / (SQRT(root) + w.eps)););
}

// average (n) = decay * average + (1 - decay) * p
static void NAME(moving_average)(float *average, const float *p, int n, float decay) {
    FOR_VECTORS(n, vec x = LOAD(p); STORE(average, FMA(LOAD(average) - x, NAME(splat)(decay), x)););
}

static const Kernels NAME(kernels) = {ISA_NAME, TILE_ROWS, 2 * LANES, NAME(tile), NAME(layernorm), NAME(layernorm_backward), NAME(softmax),
                                      NAME(softmax_backward), NAME(gelu), NAME(gelu_backward), NAME(column_sums), NAME(sum_squares), NAME(sum_exp),
                                      NAME(add_exp), NAME(logit_gradient), NAME(adamw), NAME(moving_average)};

#undef vec
#undef ivec
#undef FOR_VECTORS
#undef LOAD
#undef STORE
#undef CLEAR
#undef ISA
#undef ISA_NAME
#undef LANES
#undef TILE_ROWS
#undef FMA
#undef SQRT
