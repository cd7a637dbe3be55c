// The operations of a step in plain double arithmetic: what the kernels are compared with, in the tests and
// in the laboratory.
#ifndef CLIPC_REFERENCE_H
#define CLIPC_REFERENCE_H

#include "clipc/math/loss.h" // Positives
#include "dev/cuda/arrays.h" // doubles

// n = (x - mean) * rstd of a row
static inline double normalized_row(double *n, const float *x, int C) {
    double mean = 0, variance = 0;
    for (int c = 0; c < C; c++) mean += (double)x[c] / C;
    for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
    const double rstd = 1 / sqrt(variance + 1e-5);
    for (int c = 0; c < C; c++) n[c] = (x[c] - mean) * rstd;
    return rstd;
}

// LayerNorm and its gradients, x and dout (N,C); skip (N,C) is added to dx, or NULL; dgain and dbias (C) are
// increased.
static inline void reference_layernorm(double *out, double *dx, double *dgain, double *dbias,
    const float *skip, const float *dout, const float *x, const float *gain, const float *bias, int N,
    int C) {
    double *row = doubles((size_t)C);
    for (int i = 0; i < N; i++) {
        const size_t at = (size_t)i * C;
        const double r = normalized_row(row, x + at, C);
        double mean_g = 0, mean_gn = 0;
        for (int c = 0; c < C; c++) {
            const double g = (double)dout[at + c] * gain[c];
            out[at + c] = row[c] * gain[c] + bias[c];
            mean_g += g / C;
            mean_gn += g * row[c] / C;
            dgain[c] += dout[at + c] * row[c];
            dbias[c] += dout[at + c];
        }
        for (int c = 0; c < C; c++)
            dx[at + c] =
                (skip ? skip[at + c] : 0) + r * ((double)dout[at + c] * gain[c] - mean_g - row[c] * mean_gn);
    }
    free(row);
}

// GELU or QuickGELU of v, and its derivative
static inline double reference_gelu(double v, bool quick, double *derivative) {
    const double cdf = quick ? 1 / (1 + exp(-1.702 * v)) : 0.5 * erfc(-v / sqrt(2));
    const double pdf = exp(-v * v / 2) / sqrt(2 * 3.14159265358979324);
    *derivative = quick ? cdf + 1.702 * v * cdf * (1 - cdf) : cdf + v * pdf;
    return v * cdf;
}

// out and the gradient by qkv, both (rows,·) as the kernels lay them out; lse.
static inline void reference_attention(double *out, double *lse, double *dqkv, const float *qkv,
    const float *dout, const int *start, const int *read, int B, int C, int NH, bool causal, bool only_read) {
    const int HS = C / NH, C3 = 3 * C;
    const double scale = 1 / sqrt(HS);
    for (int b = 0; b < B; b++)
        for (int i = start[b]; i < start[b + 1]; i++)
            for (int h = 0; h < NH && (!only_read || i == read[b]); h++) {
                const int first = start[b];
                const int n = (causal ? i + 1 : start[b + 1]) - first;
                const int row = only_read ? b : i;
                double *p = doubles((size_t)n);
                double *dp = doubles((size_t)n);
                double sum = 0;
                double delta = 0;
                double most = -INFINITY;
                const float *q = qkv + (size_t)i * C3 + h * HS, *d = dout + (size_t)row * C + h * HS;
                for (int j = 0; j < n; j++) {
                    const float *k = qkv + (size_t)(first + j) * C3 + C + h * HS, *v = k + C;
                    for (int c = 0; c < HS; c++) {
                        p[j] += scale * q[c] * k[c];
                        dp[j] += (double)d[c] * v[c];
                    }
                    most = fmax(most, p[j]);
                }
                for (int j = 0; j < n; j++) sum += exp(p[j] - most);
                lse[(size_t)row * NH + h] = most + log(sum);
                for (int j = 0; j < n; j++) {
                    p[j] = exp(p[j] - most) / sum;
                    delta += p[j] * dp[j];
                }
                for (int j = 0; j < n; j++) {
                    const size_t key = (size_t)(first + j) * C3 + C + h * HS;
                    const double ds = p[j] * (dp[j] - delta) * scale;
                    for (int c = 0; c < HS; c++) {
                        out[(size_t)row * C + h * HS + c] += p[j] * qkv[key + C + c];
                        dqkv[key + C + c] += p[j] * d[c];
                        dqkv[(size_t)i * C3 + h * HS + c] += ds * qkv[key + c];
                        dqkv[key + c] += ds * q[c];
                    }
                }
                free(p);
                free(dp);
            }
}

// The loss and its gradients with the whole matrix at hand. T: which pairs are right answers, rows adding up
// to 1; -1: left out.
static inline double reference_loss(double *dimage, double *dtext, double *dscale, const float *image,
    const float *text, const uint64_t *keys, Positives positives, int n, int E, double scale) {
    double *x = doubles((size_t)n * n), *target = doubles((size_t)n * n), loss = 0;
    *dscale = 0;
    for (int i = 0; i < n; i++) {
        int equal = 0;
        for (int j = 0; j < n; j++) equal += keys && keys[i] == keys[j];
        for (int j = 0; j < n; j++) {
            const bool same = keys && i != j && keys[i] == keys[j];
            for (int e = 0; e < E; e++) x[i * n + j] += scale * image[i * E + e] * text[j * E + e];
            target[i * n + j] = positives == POSITIVES_SOFT && keys   ? (same || i == j ? 1.0 / equal : 0)
                                : i == j                              ? 1
                                : positives == POSITIVES_MASK && same ? -1
                                                                      : 0;
        }
    }
    for (int i = 0; i < n; i++) {
        double row = 0, column = 0;
        for (int j = 0; j < n; j++) {
            row += target[i * n + j] < 0 ? 0 : exp(x[i * n + j]);
            column += target[j * n + i] < 0 ? 0 : exp(x[j * n + i]);
        }
        for (int j = 0; j < n; j++) {
            if (target[i * n + j] >= 0) loss += target[i * n + j] * (log(row) - x[i * n + j]) / (2 * n);
            if (target[j * n + i] >= 0) loss += target[j * n + i] * (log(column) - x[j * n + i]) / (2 * n);
            for (int way = 0; way < 2; way++) { // the row's part, the column's
                const int a = way ? j : i, b = way ? i : j;
                if (target[a * n + b] < 0) continue;
                const double g = (exp(x[a * n + b]) / (way ? column : row) - target[a * n + b]) / (2 * n);
                for (int e = 0; e < E; e++) {
                    dimage[a * E + e] += scale * g * text[b * E + e];
                    dtext[b * E + e] += scale * g * image[a * E + e];
                }
                *dscale += g * x[a * n + b];
            }
        }
    }
    free(x);
    free(target);
    return loss;
}

// One number's step of AdamW; m and v are updated.
static inline double reference_adamw(double p, double gradient, double *m, double *v, double lr, double beta1,
    double beta2, double eps, double decay, int step) {
    *m = beta1 * *m + (1 - beta1) * gradient;
    *v = beta2 * *v + (1 - beta2) * gradient * gradient;
    return p - lr * decay * p - lr * *m / (1 - pow(beta1, step)) / (sqrt(*v / (1 - pow(beta2, step))) + eps);
}

#endif
