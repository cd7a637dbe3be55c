// The inner loops of every instruction set that this processor runs, against plain double arithmetic at odd sizes; error bounds of
// exponential and activations; the same bits for any number of threads.
#include "clipc/matmul.h"
#include "clipc/loss.h"
#include "clipc/rand.h"
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

// C (M,N) with gaps behind its rows, A and B plain or transposed; add, bias and residual in all combinations that are used
static void check_gemm(const Kernels *k, int M, int N, int K, bool a_transposed, bool b_transposed, int mode) {
    const size_t ldc = (size_t)N + 3, room = (size_t)M * ldc;
    float *a = random_floats(1, (size_t)M * K), *b = random_floats(2, (size_t)K * N), *c = random_floats(3, room), *bias = random_floats(4, (size_t)N);
    float *residual = random_floats(5, room), *before = malloc_check(room * sizeof(float)), *serial = malloc_check(room * sizeof(float));
    float *panel = aligned_malloc_check(gemm_serial_scratch(k) * sizeof(float));
    memcpy(before, c, room * sizeof(float)), memcpy(serial, c, room * sizeof(float));
    const Matrix A = a_transposed ? matrix(a, 1, (size_t)M) : matrix(a, (size_t)K, 1), B = b_transposed ? matrix(b, 1, (size_t)K) : matrix(b, (size_t)N, 1);
    const TileEnd end = {mode == 1, mode == 2 || mode == 3 ? bias : NULL, mode == 3 ? residual : NULL};
    gemm(k, c, ldc, A, B, M, N, K, end);
    gemm_serial(k, panel, serial, ldc, A, B, M, N, K, end);
    double worst = 0;
    int untouched = 0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < (int)ldc; j++) {
            const size_t at = (size_t)i * ldc + (size_t)j;
            if (j >= N) {
                untouched += c[at] == before[at];
                continue;
            }
            double sum = end.add ? before[at] : 0, size = 1e-30;
            for (int p = 0; p < K; p++) {
                const double term = (double)A.p[(size_t)i * A.row + (size_t)p * A.col] * B.p[(size_t)p * B.row + (size_t)j * B.col];
                sum += term, size += fabs(term);
            }
            if (end.bias) sum += bias[j], size += fabs(bias[j]);
            if (end.residual) sum += residual[at], size += fabs(residual[at]);
            const double error = fabs(c[at] - sum) / size;
            if (!(error <= worst)) worst = error;
        }
    EXPECT(worst <= 1e-6, "%s M=%d N=%d K=%d mode %d: error %g", k->name, M, N, K, mode, worst);
    EXPECT(untouched == 3 * M, "%s M=%d N=%d K=%d: wrote beside its columns", k->name, M, N, K);
    EXPECT(memcmp(c, serial, room * sizeof(float)) == 0, "%s M=%d N=%d K=%d: serial differs", k->name, M, N, K);
    free(a), free(b), free(c), free(bias), free(residual), free(before), free(serial), free(panel);
}

static void test_gemm(const Kernels *k) {
    const int sizes[][3] = {{1, 1, 1}, {7, 5, 3}, {12, 32, 256}, {13, 33, 257}, {25, 65, 600}, {100, 31, 19}, {3, 130, 511}, {201, 70, 37}, {50, 50, 64}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int mode = 0; mode < 4; mode++)
            for (int t = 0; t < 4; t++) check_gemm(k, sizes[s][0], sizes[s][1], sizes[s][2], t & 1, t & 2, mode);
}

static void test_threads_give_the_same_bits(const Kernels *k) {
    enum { M = 203, N = 131, K = 515 };
    float *a = random_floats(1, M * K), *b = random_floats(2, K * N), *c[4];
    const TileEnd end = {false, NULL, NULL};
    for (int threads = 1; threads <= 4; threads++) {
        omp_set_num_threads(threads);
        c[threads - 1] = random_floats(3, M * N);
        gemm(k, c[threads - 1], N, matrix(a, K, 1), matrix(b, N, 1), M, N, K, end);
        EXPECT(memcmp(c[0], c[threads - 1], sizeof(float) * M * N) == 0, "%s: %d threads differ", k->name, threads);
    }
    for (int i = 0; i < 4; i++) free(c[i]);
    free(a), free(b);
}

static double gelu_exact(double x) { return x * 0.5 * erfc(-x / sqrt(2)); }
static double quick_exact(double x) { return x / (1 + exp(-1.702 * x)); }

// Bounds that the model relies on: 2e-7 of the largest value that an input of that size can give
static void test_activations(const Kernels *k) {
    enum { N = 20003 };
    float *x = malloc_check(N * sizeof(float)), *y = malloc_check(N * sizeof(float)), *one = malloc_check(N * sizeof(float)), *d = malloc_check(N * sizeof(float));
    for (int quick = 0; quick < 2; quick++) {
        double worst = 0, worst_gradient = 0;
        for (int i = 0; i < N; i++) x[i] = -12 + 24.0f * (float)i / N, one[i] = 1;
        k->gelu(y, x, N, quick), k->gelu_backward(d, x, one, N, quick);
        for (int i = 0; i < N; i++) {
            const double v = x[i], h = 1e-5, want = quick ? quick_exact(v) : gelu_exact(v);
            const double slope = quick ? (quick_exact(v + h) - quick_exact(v - h)) / (2 * h) : (gelu_exact(v + h) - gelu_exact(v - h)) / (2 * h);
            const double e = fabs(y[i] - want) / fmax(1, fabs(v)), g = fabs(d[i] - slope);
            if (!(e <= worst)) worst = e;
            if (!(g <= worst_gradient)) worst_gradient = g;
        }
        EXPECT(worst <= 2e-7, "%s quick %d: error %g", k->name, quick, worst);
        EXPECT(worst_gradient <= 5e-7, "%s quick %d: gradient error %g", k->name, quick, worst_gradient);
    }
    x[0] = NAN, x[1] = INFINITY, x[2] = -INFINITY, x[3] = 1e30f, x[4] = -1e30f;
    for (int quick = 0; quick < 2; quick++) {
        k->gelu(y, x, 5, quick);
        EXPECT(isnan(y[0]) && y[3] == 1e30f && fabsf(y[4]) <= 1e-6f, "%s quick %d: %g %g %g", k->name, quick, y[0], y[3], y[4]);
    }
    free(x), free(y), free(one), free(d);
}

static void test_softmax(const Kernels *k) {
    float p[96], dp[96], q[96];
    for (int n = 1; n <= 70; n += 3) {
        double sum = 0, dot = 0, worst = 0;
        float *x = random_floats((uint64_t)n, 96);
        for (int i = 0; i < 96; i++) p[i] = 10 * x[i], dp[i] = x[95 - i];
        k->softmax(p, n, 96, 0.7f);
        for (int i = 0; i < n; i++) sum += exp(0.7 * (10 * x[i]));
        for (int i = 0; i < n; i++) worst = fmax(worst, fabs(p[i] - exp(0.7 * (10 * x[i])) / sum)), dot += (double)p[i] * dp[i];
        EXPECT(worst <= 1e-6, "%s n=%d: %g", k->name, n, worst);
        for (int i = n; i < 96; i++) EXPECT(p[i] == 0, "%s n=%d: entry %d", k->name, n, i);
        memcpy(q, dp, sizeof q);
        k->softmax_backward(dp, p, n, 96, 0.7f);
        for (int i = 0; i < n; i++) EXPECT(fabs(dp[i] - 0.7 * p[i] * (q[i] - dot)) <= 1e-6, "%s n=%d", k->name, n);
        for (int i = n; i < 96; i++) EXPECT(dp[i] == 0, "%s n=%d: entry %d", k->name, n, i);
        free(x);
    }
    p[0] = 1, p[1] = NAN, p[2] = 3;
    k->softmax(p, 3, 3, 1);
    EXPECT(isnan(p[0]) || isnan(p[1]) || isnan(p[2]), "%s: NaN got lost", k->name);
}

static void test_sums_and_adamw(const Kernels *k) {
    for (int n = 1; n < 5000; n = 3 * n + 2) {
        float *p = random_floats(1, (size_t)n), *g = random_floats(2, (size_t)n), *m = random_floats(3, (size_t)n), *v = random_floats(4, (size_t)n);
        const AdamWTerms w = {0.5f, 0.9f, 1 - 0.9f, 0.98f, 1 - 0.98f, 0.01f, 1.5f, 1e-6f, 0.999f};
        double squares = 0, worst = 0, want[8192];
        for (int i = 0; i < n; i++) {
            v[i] = fabsf(v[i]);
            squares += (double)g[i] * g[i];
            const double gi = 0.5 * g[i], mi = 0.9f * (double)m[i] + (1 - 0.9f) * gi, vi = 0.98f * (double)v[i] + (1 - 0.98f) * gi * gi;
            want[i] = p[i] * 0.999f - 0.01f * mi / (sqrt(vi * 1.5) + 1e-6f);
        }
        EXPECT_CLOSE(k->sum_squares(g, (size_t)n), squares, 1e-6);
        k->adamw(p, g, m, v, n, w);
        for (int i = 0; i < n; i++) {
            const double e = fabs(p[i] - want[i]);
            if (!(e <= worst)) worst = e;
        }
        EXPECT(worst <= 1e-6, "%s n=%d: %g", k->name, n, worst);
        free(p), free(g), free(m), free(v);
    }
    float *x = random_floats(9, 37 * 50), sums[43] = {0};
    k->column_sums(sums, x, 37, 50, 43);
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
        float *x = random_floats(1, (size_t)n * E), *y = random_floats(2, (size_t)n * E), *dx = malloc_check((size_t)n * E * sizeof(float)), *dy = malloc_check((size_t)n * E * sizeof(float));
        for (int i = 0; i < n * E; i++) x[i] *= 0.2f, y[i] *= 0.2f;
        double *logits = malloc_check((size_t)n * n * sizeof(double)), *row = calloc_check((size_t)n, sizeof(double)), *column = calloc_check((size_t)n, sizeof(double)), loss = 0, dscale, want = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                double dot = 0;
                for (int e = 0; e < E; e++) dot += (double)x[i * E + e] * y[j * E + e];
                logits[(size_t)i * n + j] = scale * dot;
                row[i] += exp(scale * dot), column[j] += exp(scale * dot);
            }
        for (int i = 0; i < n; i++) loss += (0.5 * (log(row[i]) + log(column[i])) - logits[(size_t)i * n + i]) / n;
        EXPECT_CLOSE(contrastive_loss(k, NULL, NULL, NULL, x, y, NULL, POSITIVES_DIAGONAL, n, E, scale), loss, 1e-6);
        EXPECT_CLOSE(contrastive_loss(k, dx, dy, &dscale, x, y, NULL, POSITIVES_DIAGONAL, n, E, scale), loss, 1e-6);
        double worst = 0;
        for (int i = 0; i < n; i++)
            for (int e = 0; e < E; e++) {
                double gx = 0, gy = 0;
                for (int j = 0; j < n; j++) {
                    const size_t ij = (size_t)i * n + j, ji = (size_t)j * n + i;
                    gx += scale * (exp(logits[ij]) / row[i] + exp(logits[ij]) / column[j] - 2 * (i == j)) / (2.0 * n) * y[j * E + e];
                    gy += scale * (exp(logits[ji]) / row[j] + exp(logits[ji]) / column[i] - 2 * (i == j)) / (2.0 * n) * x[j * E + e];
                    if (e == 0) want += (exp(logits[ij]) / row[i] + exp(logits[ij]) / column[j] - 2 * (i == j)) / (2.0 * n) * logits[ij];
                }
                const double error = fmax(fabs(gx - dx[i * E + e]), fabs(gy - dy[i * E + e]));
                if (!(error <= worst)) worst = error;
            }
        EXPECT(worst <= 1e-5, "%s n=%d: gradient error %g", k->name, n, worst);
        EXPECT_CLOSE(dscale, want, 1e-5);
        free(x), free(y), free(dx), free(dy), free(logits), free(row), free(column);
    }
}

int main(void) {
    const char *names[] = {"portable", "avx2", "avx512"};
    const char *best = kernels_select()->name;
    for (int i = 0; i < 3; i++) { // every path up to the best one that this processor runs
        setenv("CLIPC_ISA", names[i], 1);
        const Kernels *k = kernels_select();
        test_gemm(k), test_threads_give_the_same_bits(k), test_activations(k), test_softmax(k), test_sums_and_adamw(k), test_loss(k);
        printf("%s: tested\n", k->name);
        if (strcmp(names[i], best) == 0) break;
    }
    return test_report();
}
