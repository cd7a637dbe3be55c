// The inner loops of every instruction set that this processor runs, against plain double arithmetic at odd
// sizes; error bounds of exponential and activations; the same bits for any number of threads.
#include "clipc/math/matmul.h"
#include "clipc/math/loss.h"
#include "clipc/base/rand.h"
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

static const TileEnd SET = {false, NULL, NULL, NULL, NULL, false};

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

static double gelu_exact(double x) { return x * 0.5 * erfc(-x / sqrt(2)); }
static double quick_exact(double x) { return x / (1 + exp(-1.702 * x)); }
static double slope_exact(double v, bool quick) {
    const double h = 1e-5;
    return quick ? (quick_exact(v + h) - quick_exact(v - h)) / (2 * h)
                 : (gelu_exact(v + h) - gelu_exact(v - h)) / (2 * h);
}

typedef struct {
    bool bf16, c_bf16, b_fp32, packed, a_transposed,
        b_transposed; // b_fp32: the right side in fp32 beside a left side in bf16
    enum { PLAIN, ADD, BIAS, BIAS_RESIDUAL, ACTIVATED, QUICK_ACTIVATED, SLOPE, QUICK_SLOPE, ENDS } end;
} GemmCase;

// C (M,N) with gaps behind its rows, all kinds of operands and ends that are used
static void check_gemm(const Kernels *k, int M, int N, int K, GemmCase c) {
    const size_t ldc = (size_t)N + 3;
    const size_t room = (size_t)M * ldc;
    const size_t a_row = c.a_transposed ? 1 : (size_t)K + 1;
    const size_t a_col = c.a_transposed ? (size_t)M + 2 : 1;
    const Operand a = random_operand(1, (size_t)(M + 2) * (K + 1), c.bf16);
    const Operand b = random_operand(2, (size_t)K * N, c.bf16 && !c.b_fp32);
    const Operand out = random_operand(3, room, c.c_bf16);
    const Operand hidden = random_operand(6, room, c.c_bf16);
    const Operand activated = random_operand(7, room, c.c_bf16);
    const Operand before = random_operand(3, room, c.c_bf16);
    float *bias = random_floats(4, (size_t)N), *residual = random_floats(5, room);
    const Matrix A = operand_matrix(a, a_row, a_col);
    Matrix B = c.b_transposed ? operand_matrix(b, 1, (size_t)K) : operand_matrix(b, (size_t)N, 1);
    uint32_t *panels = NULL;
    if (c.packed) {
        const size_t units = panel_pitch(k, K, c.bf16) * (size_t)panel_count(k, N);
        B.panels = panels = aligned_malloc_check(units * 4);
        B.pitch = panel_pitch(k, K, c.bf16);
        pack_panels(k, panels, B, K, N, 0, K, 0, panel_count(k, N), c.bf16);
    }
    TileEnd end = SET;
    end.add = c.end == ADD;
    end.bias = c.end >= BIAS && c.end <= QUICK_ACTIVATED ? bias : NULL;
    end.residual = c.end == BIAS_RESIDUAL ? residual : NULL;
    end.activated = c.end >= ACTIVATED && (c.end < SLOPE || c.packed) ? activated.p : NULL;
    end.hidden = c.end >= SLOPE ? hidden.p : NULL;
    end.quick_gelu = c.end == QUICK_ACTIVATED || c.end == QUICK_SLOPE;
    gemm(k, out, ldc, A, B, M, N, K, end);
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
            double sum = end.add ? number(before, at) : 0, size = 1e-30;
            for (int p = 0; p < K; p++) {
                const double y = number(b, (size_t)p * B.row + (size_t)j * B.col);
                const double term =
                    number(a, (size_t)i * a_row + (size_t)p * a_col) * (c.bf16 ? rounded(y) : y);
                sum += term;
                size += fabs(term);
            }
            if (end.bias) {
                sum += bias[j];
                size += fabs(bias[j]);
            }
            if (end.residual) {
                sum += residual[at];
                size += fabs(residual[at]);
            }
            if (end.hidden) sum *= slope_exact(number(hidden, at), end.quick_gelu);
            const double error = (fabs(number(out, at) - sum) - half_ulp * fabs(sum)) / size;
            if (!(error <= worst)) worst = error;
            if (!end.activated) continue;
            const double x = end.hidden ? number(hidden, at) : sum;
            const double want = end.quick_gelu ? quick_exact(x) : gelu_exact(x);
            const double wrong = (fabs(number(activated, at) - want) - half_ulp * fabs(want)) / size;
            if (!(wrong <= worst_activated)) worst_activated = wrong;
        }
    EXPECT(worst <= 1e-6 && worst_activated <= 1e-6,
        "%s M=%d N=%d K=%d bf16 %d C %d B fp32 %d packed %d transposed %d %d end %d: error %g, activated %g",
        k->name, M, N, K, c.bf16, c.c_bf16, c.b_fp32, c.packed, c.a_transposed, c.b_transposed, c.end, worst,
        worst_activated);
    EXPECT(untouched == 3 * M, "%s M=%d N=%d K=%d: wrote beside its columns", k->name, M, N, K);
    if ((c.end == ADD || c.end == PLAIN) && K <= GEMM_K_MOST) { // one head's products are the same ones
        const Operand serial = random_operand(3, room, c.c_bf16);
        float *scratch = aligned_malloc_check(gemm_serial_scratch(k, M, K) * sizeof(float));
        products_begin(k, c.bf16);
        gemm_serial(k, scratch, serial, ldc, A, B, M, N, K, end);
        products_end(k, c.bf16);
        EXPECT(memcmp(out.p, serial.p, room * operand_bytes(c.c_bf16)) == 0,
            "%s M=%d N=%d K=%d: serial differs", k->name, M, N, K);
        free(serial.p);
        free(scratch);
    }
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

static void test_gemm(const Kernels *k) {
    const int sizes[][3] = {{1, 1, 1}, {7, 5, 3}, {12, 32, 256}, {32, 64, 96}, {13, 33, 257}, {25, 65, 600},
        {100, 31, 19}, {3, 130, 511}, {201, 70, 37}, {50, 50, 64}, {270, 40, 1024}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int end = 0; end < ENDS; end++)
            for (int bits = 0; bits < 64; bits++) {
                const GemmCase c = {bits & 1, (bits & 2) != 0 && end != ADD && end != BIAS_RESIDUAL,
                    (bits & 4) != 0 && (bits & 1), (bits & 8) != 0, (bits & 16) != 0, (bits & 32) != 0, end};
                if (sizes[s][0] * sizes[s][1] * sizes[s][2] < 20000 || bits % 16 == end)
                    check_gemm(k, sizes[s][0], sizes[s][1], sizes[s][2], c); // of the large ones a sample
            }
    for (int bf16 = 0; bf16 < 2; bf16++) { // K in pieces
        const GemmCase plain = {bf16, false, false, false, true, false, BIAS_RESIDUAL};
        const GemmCase more = {bf16, false, false, false, false, true, ADD};
        const GemmCase packed = {bf16, false, false, true, false, true, BIAS_RESIDUAL};
        const int most = GEMM_K_MOST * unit_entries(bf16);
        check_gemm(k, 5, 9, 2 * most + 33, plain);
        check_gemm(k, 5, 9, most + 1, more);
        check_gemm(k, 35, 37, most + 64, packed);
    }
}

// Panels packed a few rows of the weight at a time, as the update does it, are those that are packed at once.
static void test_panels_by_rows(const Kernels *k) {
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
                const int end = gemm_least(o + 32, O);
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
            gemm(k, fp32(c[threads - 1]), N, operand_matrix(a, K, 1), operand_matrix(b, N, 1), M, N, K, SET);
            EXPECT(memcmp(c[0], c[threads - 1], sizeof(float) * M * N) == 0, "%s: %d threads differ", k->name,
                threads);
        }
        for (int i = 0; i < 4; i++) free(c[i]);
        free(a.p);
        free(b.p);
    }
}

// Rounding to bf16 as the scalar function does it: ties, NaN, infinities, the numbers that vectors leave
// over.
static void test_bf16(const Kernels *k) {
    enum { N = 4099 };
    float *x = random_floats(1, N), back[N];
    uint16_t half[N];
    const uint32_t special[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x7f800000, 0xff800000, 0x7fc00000,
        0x7f800001, 0xffffffff, 0x7f7fffff, 0, 0x80000000, 1, 0x007fffff};
    memcpy(x + 5, special, sizeof special);
    memcpy(x + N - 13, special, sizeof special);
    k->narrow(half, x, N);
    k->widen(back, half, N);
    int wrong = 0;
    for (int i = 0; i < N; i++) {
        const float widened = bf16_to_float(half[i]);
        wrong += half[i] != float_to_bf16(x[i]) || memcmp(&back[i], &widened, 4) != 0;
    }
    EXPECT(wrong == 0, "%s: %d of %d", k->name, wrong, N);
    free(x);
}

// y (n) = the activation of x (n), slope (n) its derivative and again (n) its value as the backward pass has
// it
static void activate(
    const Kernels *k, float *y, float *slope, float *again, const float *x, int n, bool quick) {
    const float one = 1;
    float *product = malloc_check((size_t)n * sizeof(float));
    float *ones = malloc_check((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++) ones[i] = 1;
    const TileEnd forward = {false, NULL, NULL, y, NULL, quick};
    const TileEnd backward = {false, NULL, NULL, again, x, quick};
    gemm(k, fp32(product), 1, matrix(x, 1, 1), matrix(&one, 1, 1), n, 1, 1, forward);
    gemm(k, fp32(slope), 1, matrix(ones, 1, 1), matrix(&one, 1, 1), n, 1, 1, backward);
    free(product);
    free(ones);
}

// Bounds that the model relies on: 2e-7 of the largest value that an input of that size can give
static void test_activations(const Kernels *k) {
    enum { N = 20003 };
    float *x = malloc_check(N * sizeof(float));
    float *y = malloc_check(N * sizeof(float));
    float *d = malloc_check(N * sizeof(float));
    float *again = malloc_check(N * sizeof(float));
    for (int quick = 0; quick < 2; quick++) {
        double worst = 0, worst_gradient = 0;
        for (int i = 0; i < N; i++) x[i] = -12 + 24.0f * (float)i / N;
        activate(k, y, d, again, x, N, quick);
        for (int i = 0; i < N; i++) {
            const double v = x[i];
            const double want = quick ? quick_exact(v) : gelu_exact(v);
            const double e = fmax(fabs(y[i] - want), fabs(again[i] - want)) / fmax(1, fabs(v));
            const double g = fabs(d[i] - slope_exact(v, quick));
            if (!(e <= worst)) worst = e;
            if (!(g <= worst_gradient)) worst_gradient = g;
        }
        EXPECT(worst <= 2e-7, "%s quick %d: error %g", k->name, quick, worst);
        EXPECT(worst_gradient <= 5e-7, "%s quick %d: gradient error %g", k->name, quick, worst_gradient);
    }
    x[0] = NAN;
    x[1] = INFINITY;
    x[2] = -INFINITY;
    x[3] = 1e30f;
    x[4] = -1e30f;
    for (int quick = 0; quick < 2; quick++) {
        activate(k, y, d, again, x, 5, quick);
        EXPECT(isnan(y[0]) && y[3] == 1e30f && fabsf(y[4]) <= 1e-6f, "%s quick %d: %g %g %g", k->name, quick,
            y[0], y[3], y[4]);
    }
    free(x);
    free(y);
    free(d);
    free(again);
}

static void test_softmax(const Kernels *k) {
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

static void test_sums_and_adamw(const Kernels *k) {
    for (int n = 1; n < 5000; n = 3 * n + 2) {
        float *p = random_floats(1, (size_t)n);
        float *g = random_floats(2, (size_t)n);
        float *m = random_floats(3, (size_t)n);
        float *v = random_floats(4, (size_t)n);
        const AdamWTerms w = {0.5f, 0.9f, 1 - 0.9f, 0.98f, 1 - 0.98f, 0.01f, 1.5f, 1e-6f, 0.999f};
        double squares = 0, worst = 0, want[8192];
        for (int i = 0; i < n; i++) {
            v[i] = fabsf(v[i]);
            squares += (double)g[i] * g[i];
            const double gi = 0.5 * g[i];
            const double mi = 0.9f * (double)m[i] + (1 - 0.9f) * gi;
            const double vi = 0.98f * (double)v[i] + (1 - 0.98f) * gi * gi;
            want[i] = p[i] * 0.999f - 0.01f * mi / (sqrt(vi * 1.5) + 1e-6f);
        }
        EXPECT_CLOSE(k->sum_squares(g, (size_t)n), squares, 1e-6);
        k->adamw(p, g, m, v, n, w);
        for (int i = 0; i < n; i++) {
            const double e = fabs(p[i] - want[i]);
            if (!(e <= worst)) worst = e;
        }
        EXPECT(worst <= 1e-6, "%s n=%d: %g", k->name, n, worst);
        free(p);
        free(g);
        free(m);
        free(v);
    }
    float *x = random_floats(9, 37 * 50), sums[43] = {0};
    k->column_sums(sums, fp32(x), 37, 50, 43);
    for (int j = 0; j < 43; j++) {
        double want = 0;
        for (int i = 0; i < 37; i++) want += x[i * 50 + j];
        EXPECT(fabs(sums[j] - want) <= 1e-5, "%s column %d", k->name, j);
    }
    free(x);
}

// The loss in tiles against the whole matrix in double, for numbers of pairs below, at and above the tile.
static void test_loss(const Kernels *k) {
    const int counts[] = {2, 5, LOSS_TILE, 2 * LOSS_TILE + 37}, E = 19;
    for (int c = 0; c < 4; c++) {
        const int n = counts[c];
        const float scale = 30;
        float *x = random_floats(1, (size_t)n * E);
        float *y = random_floats(2, (size_t)n * E);
        float *dx = malloc_check((size_t)n * E * sizeof(float));
        float *dy = malloc_check((size_t)n * E * sizeof(float));
        for (int i = 0; i < n * E; i++) {
            x[i] *= 0.2f;
            y[i] *= 0.2f;
        }
        double *logits = malloc_check((size_t)n * n * sizeof(double));
        double *row = calloc_check((size_t)n, sizeof(double));
        double *column = calloc_check((size_t)n, sizeof(double));
        double loss = 0;
        double dscale;
        double want = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                double dot = 0;
                for (int e = 0; e < E; e++) dot += (double)x[i * E + e] * y[j * E + e];
                logits[(size_t)i * n + j] = scale * dot;
                row[i] += exp(scale * dot);
                column[j] += exp(scale * dot);
            }
        for (int i = 0; i < n; i++)
            loss += (0.5 * (log(row[i]) + log(column[i])) - logits[(size_t)i * n + i]) / n;
        EXPECT_CLOSE(
            contrastive_loss(k, NULL, NULL, NULL, x, y, NULL, POSITIVES_DIAGONAL, n, E, scale), loss, 1e-6);
        EXPECT_CLOSE(
            contrastive_loss(k, dx, dy, &dscale, x, y, NULL, POSITIVES_DIAGONAL, n, E, scale), loss, 1e-6);
        double worst = 0;
        for (int i = 0; i < n; i++)
            for (int e = 0; e < E; e++) {
                double gx = 0, gy = 0;
                for (int j = 0; j < n; j++) {
                    const size_t ij = (size_t)i * n + j, ji = (size_t)j * n + i;
                    gx += scale * (exp(logits[ij]) / row[i] + exp(logits[ij]) / column[j] - 2 * (i == j)) /
                          (2.0 * n) * y[j * E + e];
                    gy += scale * (exp(logits[ji]) / row[j] + exp(logits[ji]) / column[i] - 2 * (i == j)) /
                          (2.0 * n) * x[j * E + e];
                    if (e == 0)
                        want += (exp(logits[ij]) / row[i] + exp(logits[ij]) / column[j] - 2 * (i == j)) /
                                (2.0 * n) * logits[ij];
                }
                const double error = fmax(fabs(gx - dx[i * E + e]), fabs(gy - dy[i * E + e]));
                if (!(error <= worst)) worst = error;
            }
        EXPECT(worst <= 1e-5, "%s n=%d: gradient error %g", k->name, n, worst);
        EXPECT_CLOSE(dscale, want, 1e-5);
        free(x);
        free(y);
        free(dx);
        free(dy);
        free(logits);
        free(row);
        free(column);
    }
}

int main(void) {
    const Kernels *list[KERNELS_MOST];
    const int count = kernels_list(list);
    for (int i = 0; i < count; i++) { // every path that this processor runs
        const Kernels *k = list[i];
        setenv("CLIPC_ISA", k->name, 1);
        EXPECT(kernels_select() == k, "CLIPC_ISA=%s", k->name);
        RUN(test_gemm, k);
        RUN(test_panels_by_rows, k);
        RUN(test_threads_give_the_same_bits, k);
        RUN(test_bf16, k);
        RUN(test_activations, k);
        RUN(test_softmax, k);
        RUN(test_sums_and_adamw, k);
        RUN(test_loss, k);
        printf("%s: tested\n", k->name);
    }
    return test_report();
}
