// The inner loops of every instruction set that this processor runs, against plain double arithmetic at odd
// sizes; error bounds of exponential and activations; the same bits for any number of threads.
#include "clipc/math/matmul.h"
#include "clipc/math/loss.h"
#include "clipc/model/clip.h" // adamw_terms
#include "dev/test/plain64.h"
#include "dev/test/test.h"

#ifdef _OPENMP
#include <omp.h>
#else
static void omp_set_num_threads(int n) { (void)n; }
#endif

static float *random_floats(uint64_t key, size_t n) {
    float *x = aligned_malloc_check(n * sizeof(float));
    Rand r = rand_for(7, key, 0);
    for (size_t i = 0; i < n; i++) x[i] = (float)rand_normal(&r);
    return x;
}

// n numbers as an operand, and what they are after rounding
static Operand random_operand(uint64_t key, size_t n, bool bf16) {
    float *x = random_floats(key, n);
    for (size_t i = 0; bf16 && i < n; i++)
        ((uint16_t *)x)[i] = float_to_bf16(x[i]); // never ahead of what is read
    return operand(x, bf16);
}
static double number(Operand x, size_t i) {
    return x.bf16 ? bf16_to_float(((uint16_t *)x.p)[i]) : ((float *)x.p)[i];
}
static double rounded(double x) { return bf16_to_float(float_to_bf16((float)x)); }

static double activation_of(double x, Activation activation) {
    double derivative;
    return activation_64(x, activation, &derivative);
}
static double slope_of(double x, Activation activation) {
    double derivative;
    activation_64(x, activation, &derivative);
    return derivative;
}

typedef struct {
    bool bf16, c_bf16, packed, a_transposed, b_transposed;
    bool b_fp32; // B in fp32 while A is bf16
    EpilogueKind kind;
    bool bias;
    Activation activation;
} GemmCase;

// The epilogues that products are called with.
static const GemmCase epilogues[] = {{.kind = EPILOGUE_STORE}, {.kind = EPILOGUE_ADD},
    {.kind = EPILOGUE_STORE, .bias = true}, {.kind = EPILOGUE_RESIDUAL, .bias = true},
    {.kind = EPILOGUE_ACTIVATION, .bias = true, .activation = ACTIVATION_GELU},
    {.kind = EPILOGUE_ACTIVATION, .bias = true, .activation = ACTIVATION_QUICK_GELU},
    {.kind = EPILOGUE_SLOPE, .activation = ACTIVATION_GELU},
    {.kind = EPILOGUE_SLOPE, .activation = ACTIVATION_QUICK_GELU}};
enum { EPILOGUES = sizeof epilogues / sizeof *epilogues };

// The products of one head of attention are the same ones: gemm_serial() makes `serial` (size entries) what
// gemm() made `out`.
static void check_gemm_serial(const Kernels *k, Operand out, Operand serial, size_t size, size_t ldc,
    Matrix A, Matrix B, int M, int N, int K, Epilogue e) {
    float *scratch = aligned_malloc_check(gemm_serial_scratch(k, M, K) * sizeof(float));
    products_begin(k, A.x.bf16);
    gemm_serial(k, scratch, serial, ldc, A, B, M, N, K, e);
    products_end(k, A.x.bf16);
    EXPECT(memcmp(out.p, serial.p, size * operand_bytes(out.bf16)) == 0, "%s M=%d N=%d K=%d: serial differs",
        k->name, M, N, K);
    free(serial.p);
    free(scratch);
}

// C (M,N) with gaps after its rows, all kinds of operands and epilogues that are used
static void check_gemm(const Kernels *k, int M, int N, int K, GemmCase c) {
    const size_t ldc = (size_t)N + 3;
    const size_t size_of_C = (size_t)M * ldc; // gaps included
    const size_t a_row = c.a_transposed ? 1 : (size_t)K + 1;
    const size_t a_col = c.a_transposed ? (size_t)M + 2 : 1;
    const Operand a = random_operand(1, (size_t)(M + 2) * (K + 1), c.bf16);
    const Operand b = random_operand(2, (size_t)K * N, c.bf16 && !c.b_fp32);
    const Operand out = random_operand(3, size_of_C, c.c_bf16);
    const Operand hidden = random_operand(6, size_of_C, c.c_bf16);
    const Operand activated = random_operand(7, size_of_C, c.c_bf16);
    const Operand before = random_operand(3, size_of_C, c.c_bf16);
    float *bias = random_floats(4, (size_t)N), *residual = random_floats(5, size_of_C);
    const Matrix A = operand_matrix(a, a_row, a_col);
    Matrix B = c.b_transposed ? operand_matrix(b, 1, (size_t)K) : operand_matrix(b, (size_t)N, 1);
    uint32_t *panels = NULL;
    if (c.packed) {
        B.pitch = panel_pitch(k, K, c.bf16);
        B.panels = panels = aligned_malloc_check(B.pitch * (size_t)panel_count(k, N) * 4);
        pack_panels(k, panels, B, K, N, 0, K, 0, panel_count(k, N), c.bf16);
    }
    Epilogue e = epilogue_of(c.kind, c.bias ? bias : NULL);
    e.residual = c.kind == EPILOGUE_RESIDUAL ? residual : NULL;
    e.hidden = c.kind == EPILOGUE_SLOPE ? hidden.p : NULL;
    e.activated =
        c.kind == EPILOGUE_ACTIVATION || (c.kind == EPILOGUE_SLOPE && c.packed) ? activated.p : NULL;
    e.activation = c.activation;
    gemm(k, out, ldc, A, B, M, N, K, e);
    double worst = 0, worst_activated = 0;
    int untouched = 0;
    const double half_ulp = c.c_bf16 ? 1.0 / 256 : 0; // of bf16, relative
    for (int i = 0; i < M; i++)
        for (int j = 0; j < (int)ldc; j++) {
            const size_t at = (size_t)i * ldc + (size_t)j;
            if (j >= N) {
                untouched += number(out, at) == number(before, at);
                continue;
            }
            double sum = c.kind == EPILOGUE_ADD ? number(before, at) : 0, size = 1e-30;
            for (int p = 0; p < K; p++) {
                const double y = number(b, (size_t)p * B.row + (size_t)j * B.col);
                const double term =
                    number(a, (size_t)i * a_row + (size_t)p * a_col) * (c.bf16 ? rounded(y) : y);
                sum += term;
                size += fabs(term);
            }
            if (e.bias) {
                sum += bias[j];
                size += fabs(bias[j]);
            }
            if (e.residual) {
                sum += residual[at];
                size += fabs(residual[at]);
            }
            if (e.hidden) sum *= slope_of(number(hidden, at), c.activation);
            const double error = (fabs(number(out, at) - sum) - half_ulp * fabs(sum)) / size;
            if (!(error <= worst)) worst = error;
            if (!e.activated) continue;
            const double x = e.hidden ? number(hidden, at) : sum;
            const double want = activation_of(x, c.activation);
            const double wrong = (fabs(number(activated, at) - want) - half_ulp * fabs(want)) / size;
            if (!(wrong <= worst_activated)) worst_activated = wrong;
        }
    EXPECT(worst <= 1e-6 && worst_activated <= 1e-6,
        "%s M=%d N=%d K=%d bf16 %d C %d B fp32 %d packed %d transposed %d %d epilogue %d: error %g, "
        "activated %g",
        k->name, M, N, K, c.bf16, c.c_bf16, c.b_fp32, c.packed, c.a_transposed, c.b_transposed, c.kind, worst,
        worst_activated);
    EXPECT(untouched == 3 * M, "%s M=%d N=%d K=%d: wrote outside its columns", k->name, M, N, K);
    if (c.kind <= EPILOGUE_ADD && !c.bias && K <= GEMM_K_MOST && !k->plain)
        check_gemm_serial(k, out, random_operand(3, size_of_C, c.c_bf16), size_of_C, ldc, A, B, M, N, K, e);
    free(a.p);
    free(b.p);
    free(out.p);
    free(hidden.p);
    free(activated.p);
    free(before.p);
    free(bias);
    free(residual);
    free(panels);
}

static void test_products_agree_with_plain_sums(const Kernels *k) {
    const int sizes[][3] = {{1, 1, 1}, {7, 5, 3}, {12, 32, 256}, {32, 64, 96}, {13, 33, 257}, {25, 65, 600},
        {100, 31, 19}, {3, 130, 511}, {201, 70, 37}, {50, 50, 64}, {270, 40, 1024}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int i = 0; i < EPILOGUES; i++)
            for (int bits = 0; bits < 64; bits++) {
                const int *n = sizes[s];
                GemmCase c = epilogues[i];
                c.bf16 = bits & 1;
                c.c_bf16 = c.bf16 && (bits & 2) && c.kind != EPILOGUE_ADD && c.kind != EPILOGUE_RESIDUAL;
                c.b_fp32 = (bits & 4) && c.bf16;
                c.packed = bits & 8;
                c.a_transposed = bits & 16;
                c.b_transposed = bits & 32;
                const bool small = n[0] * n[1] * n[2] < 20000; // of the large ones a sample
                if (small || bits % 16 == i) check_gemm(k, n[0], n[1], n[2], c);
            }
}

static void test_plain_products_agree_with_sums(const Kernels *k) {
    for (int bits = 0; bits < 8; bits++) {
        const GemmCase c = {.a_transposed = bits & 1,
            .b_transposed = bits & 2,
            .kind = bits & 4 ? EPILOGUE_ADD : EPILOGUE_STORE};
        check_gemm(k, 7, 5, 9, c);
    }
}

static void test_long_sums_are_cut_along_K(const Kernels *k) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const int most = GEMM_K_MOST * unit_entries(bf16);
        const GemmCase residual = {
            .bf16 = bf16, .a_transposed = true, .kind = EPILOGUE_RESIDUAL, .bias = true};
        const GemmCase add = {.bf16 = bf16, .b_transposed = true, .kind = EPILOGUE_ADD};
        const GemmCase packed = {
            .bf16 = bf16, .packed = true, .b_transposed = true, .kind = EPILOGUE_RESIDUAL, .bias = true};
        check_gemm(k, 5, 9, 2 * most + 33, residual);
        check_gemm(k, 5, 9, most + 1, add);
        check_gemm(k, 35, 37, most + 64, packed);
    }
}

// A sum is complete before it is added to what is there, also where it is cut: the bits of C + (A B).
static void test_sums_are_complete_before_they_are_added(const Kernels *k) {
    enum { M = 35, N = 37, K = 2 * GEMM_K_MOST + 33 };
    float *a = random_floats(1, K * M), *b = random_floats(2, K * N), *c = random_floats(3, M * N);
    float *product = random_floats(4, M * N);
    const Matrix A = matrix(a, 1, M), B = matrix(b, N, 1);
    gemm(k, fp32(product), N, A, B, M, N, K, epilogue_of(EPILOGUE_STORE, NULL));
    for (int i = 0; i < M * N; i++) product[i] += c[i];
    gemm(k, fp32(c), N, A, B, M, N, K, epilogue_of(EPILOGUE_ADD, NULL));
    EXPECT(!memcmp(c, product, M * N * sizeof *c), "%s", k->name);
    free(a);
    free(b);
    free(c);
    free(product);
}

// Panels packed a few rows of the weight at a time, as the update does it, are those that are packed at once.
static void test_panels_packed_by_rows_are_those_packed_at_once(const Kernels *k) {
    enum { O = 70, C = 45 };
    float *w = random_floats(1, O * C);
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int backward = 0; backward < 2; backward++) {
            const Matrix m = backward ? matrix(w, C, 1) : matrix(w, 1, C);
            const int K = backward ? O : C, N = backward ? C : O;
            const size_t units = panel_pitch(k, K, bf16) * (size_t)panel_count(k, N);
            uint32_t *at_once = calloc_check(units, 4), *by_rows = calloc_check(units, 4);
            pack_panels(k, at_once, m, K, N, 0, K, 0, panel_count(k, N), bf16);
            for (int o = 0; o < O; o += 32) {
                const int end = min_int(o + 32, O);
                if (backward) pack_panels(k, by_rows, m, K, N, o, end, 0, panel_count(k, N), bf16);
                else pack_panels(k, by_rows, m, K, N, 0, K, o / k->tile_columns, panel_count(k, end), bf16);
            }
            EXPECT(
                memcmp(at_once, by_rows, units * 4) == 0, "%s bf16 %d backward %d", k->name, bf16, backward);
            free(at_once);
            free(by_rows);
        }
    free(w);
}

static void test_threads_give_the_same_bits(const Kernels *k) {
    enum { M = 203, N = 131, K = 515 };
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const Operand a = random_operand(1, M * K, bf16), b = random_operand(2, K * N, bf16);
        float *c[4];
        for (int threads = 1; threads <= 4; threads++) {
            omp_set_num_threads(threads);
            c[threads - 1] = random_floats(3, M * N);
            gemm(k, fp32(c[threads - 1]), N, operand_matrix(a, K, 1), operand_matrix(b, N, 1), M, N, K,
                epilogue_of(EPILOGUE_STORE, NULL));
            EXPECT(memcmp(c[0], c[threads - 1], sizeof(float) * M * N) == 0, "%s: %d threads differ", k->name,
                threads);
        }
        for (int i = 0; i < 4; i++) free(c[i]);
        free(a.p);
        free(b.p);
    }
}

// Ties, NaN, infinities, the numbers that vectors leave over.
static void test_rounding_to_bf16_is_that_of_the_scalar_function(const Kernels *k) {
    enum { N = 4099 };
    float *x = random_floats(1, N);
    uint16_t rounded_x[N];
    const uint32_t special[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x7f800000, 0xff800000, 0x7fc00000,
        0x7f800001, 0xffffffff, 0x7f7fffff, 0, 0x80000000, 1, 0x007fffff};
    memcpy(x + 5, special, sizeof special);
    memcpy(x + N - 13, special, sizeof special);
    k->to_bf16(rounded_x, x, N);
    int wrong = 0;
    for (int i = 0; i < N; i++) wrong += rounded_x[i] != float_to_bf16(x[i]);
    EXPECT(wrong == 0, "%s: %d of %d", k->name, wrong, N);
    free(x);
}

// y (n) = the activation of x (n), slope (n) its derivative and again (n) its value as the backward pass has
// it
static void activate(
    const Kernels *k, float *y, float *slope, float *again, const float *x, int n, Activation activation) {
    const float one = 1;
    float *product = malloc_check((size_t)n * sizeof(float));
    float *ones = malloc_check((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) ones[i] = 1;
    const Epilogue forward = {EPILOGUE_ACTIVATION, NULL, NULL, y, NULL, activation};
    const Epilogue backward = {EPILOGUE_SLOPE, NULL, NULL, again, x, activation};
    gemm(k, fp32(product), 1, matrix(x, 1, 1), matrix(&one, 1, 1), n, 1, 1, forward);
    gemm(k, fp32(slope), 1, matrix(ones, 1, 1), matrix(&one, 1, 1), n, 1, 1, backward);
    free(product);
    free(ones);
}

// Bounds that the model relies on: 2e-7 of the largest value that an input of that size can give
static void test_activations_keep_their_error_bounds(const Kernels *k) {
    enum { N = 20003 };
    float *x = malloc_check(N * sizeof(float));
    float *y = malloc_check(N * sizeof(float));
    float *d = malloc_check(N * sizeof(float));
    float *again = malloc_check(N * sizeof(float));
    for (int i = 0; i < 2; i++) {
        const Activation activation = i ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU;
        double worst = 0, worst_gradient = 0;
        for (int j = 0; j < N; j++) x[j] = -12 + 24.0f * (float)j / N;
        activate(k, y, d, again, x, N, activation);
        for (int j = 0; j < N; j++) {
            const double v = x[j];
            const double want = activation_of(v, activation);
            const double e = fmax(fabs(y[j] - want), fabs(again[j] - want)) / fmax(1, fabs(v));
            const double g = fabs(d[j] - slope_of(v, activation));
            if (!(e <= worst)) worst = e;
            if (!(g <= worst_gradient)) worst_gradient = g;
        }
        EXPECT(worst <= 2e-7, "%s activation %d: error %g", k->name, i, worst);
        EXPECT(worst_gradient <= 5e-7, "%s activation %d: gradient error %g", k->name, i, worst_gradient);
    }
    x[0] = NAN;
    x[1] = INFINITY;
    x[2] = -INFINITY;
    x[3] = 1e30f;
    x[4] = -1e30f;
    for (int i = 0; i < 2; i++) {
        activate(k, y, d, again, x, 5, i ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU);
        EXPECT(isnan(y[0]) && y[3] == 1e30f && fabsf(y[4]) <= 1e-6f, "%s activation %d: %g %g %g", k->name, i,
            y[0], y[3], y[4]);
    }
    free(x);
    free(y);
    free(d);
    free(again);
}

static void test_softmax_and_its_gradient_agree_with_exact_sums(const Kernels *k) {
    float p[96], dp[96], q[96];
    for (int n = 1; n <= 70; n += 3) {
        double sum = 0, dot = 0, worst = 0;
        float *x = random_floats((uint64_t)n, 96);
        for (int i = 0; i < 96; i++) {
            p[i] = 10 * x[i];
            dp[i] = x[95 - i];
        }
        k->softmax(p, n, 96, 0.7f);
        for (int i = 0; i < n; i++) sum += exp(0.7 * (10 * x[i]));
        for (int i = 0; i < n; i++) {
            worst = fmax(worst, fabs(p[i] - exp(0.7 * (10 * x[i])) / sum));
            dot += (double)p[i] * dp[i];
        }
        EXPECT(worst <= 1e-6, "%s n=%d: %g", k->name, n, worst);
        for (int i = n; i < 96; i++) EXPECT(p[i] == 0, "%s n=%d: entry %d", k->name, n, i);
        memcpy(q, dp, sizeof q);
        k->softmax_backward(dp, p, n, 96, 0.7f);
        for (int i = 0; i < n; i++)
            EXPECT(fabs(dp[i] - 0.7 * p[i] * (q[i] - dot)) <= 1e-6, "%s n=%d", k->name, n);
        for (int i = n; i < 96; i++) EXPECT(dp[i] == 0, "%s n=%d: entry %d", k->name, n, i);
        free(x);
    }
    p[0] = 1;
    p[1] = NAN;
    p[2] = 3;
    k->softmax(p, 3, 3, 1);
    EXPECT(isnan(p[0]) || isnan(p[1]) || isnan(p[2]), "%s: NaN got lost", k->name);
}

static void test_squares_and_adamw_agree_with_double(const Kernels *k) {
    const AdamW a = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-6, .weight_decay = 0.1, .step = 3};
    const Tensor x = {.decay = true, .lr_scale = 1};
    for (int n = 1; n < 5000; n = 3 * n + 2) {
        float *p = random_floats(1, (size_t)n), *g = random_floats(2, (size_t)n);
        float *m = random_floats(3, (size_t)n), *v = random_floats(4, (size_t)n);
        double *exact = malloc_check(4 * (size_t)n * sizeof *exact), squares = 0, worst = 0;
        double *p64 = exact, *g64 = exact + n, *m64 = exact + 2 * n, *v64 = exact + 3 * n;
        for (int i = 0; i < n; i++) {
            v[i] = fabsf(v[i]);
            p64[i] = p[i];
            g64[i] = g[i];
            m64[i] = m[i];
            v64[i] = v[i];
            squares += (double)g[i] * g[i];
        }
        EXPECT_CLOSE(k->sum_squares(g, (size_t)n), squares, 1e-6);
        k->adamw(p, g, m, v, n, adamw_terms(&a, &x, 0.5));
        adamw_64(p64, g64, m64, v64, (size_t)n, 0.5, a.lr, a.beta1, a.beta2, a.eps, a.weight_decay, a.step);
        for (int i = 0; i < n; i++) {
            const double e = fmax(fabs(p[i] - p64[i]), fmax(fabs(m[i] - m64[i]), fabs(v[i] - v64[i])));
            if (!(e <= worst)) worst = e;
        }
        EXPECT(worst <= 1e-6, "%s n=%d: %g", k->name, n, worst);
        free(p);
        free(g);
        free(m);
        free(v);
        free(exact);
    }
}

// For numbers of pairs below, at and above the tile; each way to treat pairs of equal keys.
static void test_loss_in_tiles_agrees_with_the_whole_matrix(const Kernels *k) {
    const int counts[] = {2, 5, LOSS_TILE, LOSS_TILE + 37}, E = 19;
    const double scale = 30;
    for (int c = 0; c < 4; c++)
        for (int positives = POSITIVES_DIAGONAL; positives <= POSITIVES_MASK; positives++) {
            const int n = counts[c];
            const size_t N = (size_t)n * (size_t)E;
            float *x = random_floats(1, N), *y = random_floats(2, N);
            float *dx = random_floats(3, N), *dy = random_floats(4, N);
            double *exact = malloc_check(4 * N * sizeof *exact), dscale, dscale64, worst = 0, largest = 0;
            uint64_t *keys = malloc_check((size_t)n * sizeof *keys);
            for (int i = 0; i < n; i++) keys[i] = (uint64_t)(i % 3 ? i : i % 12);
            for (size_t i = 0; i < N; i++) {
                exact[i] = x[i] *= 0.2f;
                exact[N + i] = y[i] *= 0.2f;
            }
            const double want = contrastive_loss_64(exact + 2 * N, exact + 3 * N, &dscale64, exact, exact + N,
                keys, (Positives)positives, n, E, scale);
            EXPECT_CLOSE(
                contrastive_loss(k, NULL, NULL, NULL, x, y, keys, (Positives)positives, n, E, scale, 0), want,
                1e-6);
            EXPECT_CLOSE(
                contrastive_loss(k, dx, dy, &dscale, x, y, keys, (Positives)positives, n, E, scale, 0), want,
                1e-6);
            EXPECT_CLOSE(dscale, dscale64, 1e-5);
            for (size_t i = 0; i < N; i++) {
                const double e = fmax(fabs(dx[i] - exact[2 * N + i]), fabs(dy[i] - exact[3 * N + i]));
                largest = fmax(largest, fabs(exact[2 * N + i]));
                if (!(e <= worst)) worst = e;
            }
            EXPECT(worst <= 1e-5 * fmax(1, largest), "%s n=%d positives %d: gradient error %g", k->name, n,
                positives, worst);
            free(x);
            free(y);
            free(dx);
            free(dy);
            free(exact);
            free(keys);
        }
}

// Rows divided at odd places, as several processes divide them: the same bits as all at once.
static void test_loss_of_divided_rows_has_the_same_bits(const Kernels *k) {
    enum { n = 2 * LOSS_TILE + 37, E = 19 };
    static const int cuts[] = {0, 1, 6, LOSS_TILE + 3, n};
    float *x = random_floats(1, n * E), *y = random_floats(2, n * E), *whole = random_floats(3, 2 * n * E);
    float *divided = random_floats(4, 2 * n * E), *floats = random_floats(5, 3 * n);
    double *sums = calloc_check(2 * n, sizeof *sums), dscale = 0, dot = 0;
    uint64_t keys[n];
    for (int i = 0; i < n; i++) keys[i] = (uint64_t)(i % 5 ? i : 0);
    for (int positives = POSITIVES_DIAGONAL; positives <= POSITIVES_MASK; positives++) {
        ContrastiveLoss l = {k, {x, y}, keys, (Positives)positives, n, E, 3, {floats, floats + n},
            floats + 2 * n, sums, sums + n};
        const double loss =
            contrastive_loss(k, whole, whole + n * E, &dscale, x, y, keys, (Positives)positives, n, E, 3, 0);
        for (int pass = 0; pass < 4; pass++)
            for (int c = 0; c + 1 < (int)(sizeof cuts / sizeof *cuts); c++) {
                float *dx = divided + (pass % 2 * n + cuts[c]) * E;
                if (pass < 2) loss_forward(&l, pass, cuts[c], cuts[c + 1] - cuts[c]);
                else loss_backward(&l, dx, pass % 2, cuts[c], cuts[c + 1] - cuts[c]);
            }
        dot = 0;
        for (int i = 0; i < n; i++) dot += l.dot[i];
        EXPECT(loss_sum(&l) == loss && dot == dscale && loss > 0, "%s positives %d", k->name, positives);
        EXPECT(memcmp(whole, divided, 2 * n * E * sizeof *whole) == 0, "%s positives %d", k->name, positives);
    }
    free(x);
    free(y);
    free(whole);
    free(divided);
    free(floats);
    free(sums);
}

// Every path that this processor runs; the plain one has no products of its own to test but the loss.
int main(void) {
    const Kernels *list[KERNELS_MOST];
    const int count = kernels_list(list);
    for (int i = 0; i < count; i++) {
        const Kernels *k = list[i];
        setenv("CLIPC_ISA", k->name, 1);
        EXPECT(kernels_select() == k, "CLIPC_ISA=%s", k->name);
        RUN(test_loss_in_tiles_agrees_with_the_whole_matrix, k);
        if (k->plain) {
            RUN(test_plain_products_agree_with_sums, k);
            continue;
        }
        RUN(test_loss_of_divided_rows_has_the_same_bits, k);
        RUN(test_sums_are_complete_before_they_are_added, k);
        RUN(test_products_agree_with_plain_sums, k);
        RUN(test_long_sums_are_cut_along_K, k);
        RUN(test_panels_packed_by_rows_are_those_packed_at_once, k);
        RUN(test_threads_give_the_same_bits, k);
        RUN(test_rounding_to_bf16_is_that_of_the_scalar_function, k);
        RUN(test_activations_keep_their_error_bounds, k);
        RUN(test_softmax_and_its_gradient_agree_with_exact_sums, k);
        RUN(test_squares_and_adamw_agree_with_double, k);
        printf("%s: tested\n", k->name);
    }
    return test_report();
}
