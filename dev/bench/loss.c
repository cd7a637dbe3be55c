// The contrastive loss in tiles against its plain form, which holds the whole matrix of logits: time, memory,
// and the same numbers.
//
//     build/bench_loss [PAIRS] [EMBEDDING]        32768 and 512 by default; the plain form then takes 4.3 GB
#include "clipc/math/loss.h"
#include "clipc/base/utils.h" // rand_for

#include <sys/resource.h>

static float *unit_rows(uint64_t key, int n, int E) {
    float *x = aligned_malloc_check((size_t)n * (size_t)E * sizeof(float));
    for (int i = 0; i < n; i++) {
        Rand r = rand_for(key, (uint64_t)i, 0);
        double sum = 0;
        for (int e = 0; e < E; e++) {
            x[(size_t)i * E + e] = (float)rand_normal(&r);
            sum += (double)x[(size_t)i * E + e] * x[(size_t)i * E + e];
        }
        for (int e = 0; e < E; e++) x[(size_t)i * E + e] /= (float)sqrt(sum);
    }
    return x;
}

static double peak_megabytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / 1e3;
}

// The textbook: all logits, their softmax over rows and over columns, two products.
static double plain_loss(const Kernels *k, float *dimage, float *dtext, double *dscale, const float *image,
    const float *text, int n, int E, float scale) {
    const size_t N = (size_t)n, W = (size_t)E;
    const Epilogue set = epilogue_of(EPILOGUE_STORE, NULL);
    float *logits = aligned_malloc_check(N * N * sizeof(float));
    float *row_max = malloc_check(N * sizeof(float));
    float *column_max = malloc_check(N * sizeof(float));
    double *row = calloc_check(N, sizeof(double));
    double *column = calloc_check(N, sizeof(double));
    double loss = 0;
    double dot = 0;
    gemm(k, fp32(logits), N, matrix(image, W, 1), matrix(text, 1, W), n, n, E, set);
    for (int i = 0; i < n; i++) row_max[i] = column_max[i] = -INFINITY;
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) {
            const float x = logits[i * N + j] *= scale;
            row_max[i] = fmaxf(row_max[i], x);
            column_max[j] = fmaxf(column_max[j], x);
        }
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) {
            row[i] += expf(logits[i * N + j] - row_max[i]);
            column[j] += expf(logits[i * N + j] - column_max[j]);
        }
    for (size_t i = 0; i < N; i++) {
        row_max[i] += (float)log(row[i]);
        column_max[i] += (float)log(column[i]);
        loss += 0.5 * ((double)row_max[i] + column_max[i] - 2.0 * logits[i * N + i]) / n;
    }
#pragma omp parallel for schedule(static) reduction(+ : dot)
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) {
            const float x = logits[i * N + j];
            const float g = (expf(x - row_max[i]) + expf(x - column_max[j]) - 2 * (i == j)) / (2 * (float)n);
            dot += (double)g * x;
            logits[i * N + j] = g * scale;
        }
    gemm(k, fp32(dimage), W, matrix(logits, N, 1), matrix(text, W, 1), n, E, n, set);
    gemm(k, fp32(dtext), W, matrix(logits, 1, N), matrix(image, W, 1), n, E, n, set);
    *dscale = dot;
    free(logits);
    free(row_max);
    free(column_max);
    free(row);
    free(column);
    return loss;
}

int main(int argc, char **argv) {
    const int n = argc > 1 ? atoi(argv[1]) : 32768, E = argc > 2 ? atoi(argv[2]) : 512;
    if (n < 2 || E < 1) die(EXIT_USAGE, "usage: bench_loss [PAIRS] [EMBEDDING]");
    const Kernels *k = kernels_select();
    const size_t floats = (size_t)n * (size_t)E;
    const float scale = 100;
    float *image = unit_rows(1, n, E), *text = unit_rows(2, n, E), *d[4];
    for (size_t i = 0; i < floats; i++)
        text[i] = 0.15f * image[i] + 0.99f * text[i]; // pairs that resemble each other a little
    for (int i = 0; i < 4; i++) {
        d[i] = aligned_malloc_check(floats * sizeof(float));
        memset(d[i], 0, floats * sizeof(float));
    }
    double dscale[2] = {0}, loss[2], seconds[2], before = peak_megabytes(), megabytes[2];
    for (int plain = 0; plain < 2; plain++) {
        const double start = seconds_now();
        loss[plain] = plain ? plain_loss(k, d[2], d[3], &dscale[1], image, text, n, E, scale)
                            : contrastive_loss(k, d[0], d[1], &dscale[0], image, text, NULL,
                                  POSITIVES_DIAGONAL, n, E, scale, 0);
        seconds[plain] = seconds_now() - start;
        megabytes[plain] = peak_megabytes() - before;
    }
    double worst = 0, largest = 0;
    for (int side = 0; side < 2; side++)
        for (size_t i = 0; i < floats; i++) {
            const double error = fabs((double)d[side][i] - d[2 + side][i]);
            largest = fmax(largest, fabs(d[2 + side][i]));
            if (!(error <= worst)) worst = error;
        }
    printf("%d pairs of %d, %s kernels: in tiles %.1f s and %.0f MB, plain %.1f s and %.0f MB, without "
           "the features\n",
        n, E, k->name, seconds[0], megabytes[0], seconds[1], megabytes[1]);
    printf("loss %.9g and %.9g, gradients within %.1e of their largest entry, that of logit_scale %.9g and "
           "%.9g\n",
        loss[0], loss[1], worst / largest, dscale[0], dscale[1]);
    const bool ok = fabs(loss[0] - loss[1]) <= 1e-6 * fmax(1, loss[1]) && worst <= 1e-5 * largest;
    printf("%d passed, %d failed\n", ok, !ok);
    return !ok;
}
