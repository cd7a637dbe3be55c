// The backward passes of LayerNorm, attention and GELU in double precision, each the loop that its equation
// is, checked by difference quotients. doc/backward.md derives them and quotes what this program prints.
//
//     cc doc/backward.c -lm -o backward && ./backward
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { N = 5, C = 12, T = 7, HS = 6 }; // LayerNorm: rows, channels; attention: tokens, head size, at most

// ---------------------------------------------------------------- LayerNorm

// out (n,c) = gain * (x - mean) * rstd + bias, mean and rstd (n) over each row of x (n,c)
static void layernorm_forward(double *out, double *mean, double *rstd, const double *x, const double *gain,
    const double *bias, int n, int c, double eps) {
    for (int i = 0; i < n; i++) {
        double sum = 0, squares = 0;
        for (int j = 0; j < c; j++) sum += x[i * c + j];
        mean[i] = sum / c;
        for (int j = 0; j < c; j++) squares += (x[i * c + j] - mean[i]) * (x[i * c + j] - mean[i]);
        rstd[i] = 1 / sqrt(squares / c + eps);
        for (int j = 0; j < c; j++) out[i * c + j] = gain[j] * (x[i * c + j] - mean[i]) * rstd[i] + bias[j];
    }
}

// dx (n,c); dgain, dbias (c): summed over rows
static void layernorm_backward(double *dx, double *dgain, double *dbias, const double *dout, const double *x,
    const double *gain, const double *mean, const double *rstd, int n, int c) {
    memset(dgain, 0, (size_t)c * sizeof *dgain);
    memset(dbias, 0, (size_t)c * sizeof *dbias);
    for (int i = 0; i < n; i++) {
        double mean_g = 0, mean_gn = 0;
        for (int j = 0; j < c; j++) {
            const double normalised = (x[i * c + j] - mean[i]) * rstd[i];
            const double g = dout[i * c + j] * gain[j];
            mean_g += g / c;
            mean_gn += g * normalised / c;
            dgain[j] += dout[i * c + j] * normalised;
            dbias[j] += dout[i * c + j];
        }
        for (int j = 0; j < c; j++) {
            const double normalised = (x[i * c + j] - mean[i]) * rstd[i];
            dx[i * c + j] = rstd[i] * (dout[i * c + j] * gain[j] - mean_g - normalised * mean_gn);
        }
    }
}

// ---------------------------------------------------------------- attention

// One head: P (t,t) = softmax(Q Kᵀ / sqrt(hs)) over each row, out (t,hs) = P V. causal: a query sees the keys
// up to its own position
static void attention_forward(
    double *out, double *P, const double *Q, const double *K, const double *V, int t, int hs, bool causal) {
    memset(out, 0, (size_t)(t * hs) * sizeof *out);
    for (int i = 0; i < t; i++) {
        const int keys = causal ? i + 1 : t;
        double max = -INFINITY, sum = 0;
        for (int j = 0; j < keys; j++) {
            double score = 0;
            for (int c = 0; c < hs; c++) score += Q[i * hs + c] * K[j * hs + c] / sqrt(hs);
            P[i * t + j] = score;
            max = fmax(max, score);
        }
        for (int j = 0; j < keys; j++) sum += exp(P[i * t + j] - max);
        for (int j = 0; j < t; j++) P[i * t + j] = j < keys ? exp(P[i * t + j] - max) / sum : 0;
        for (int j = 0; j < keys; j++)
            for (int c = 0; c < hs; c++) out[i * hs + c] += P[i * t + j] * V[j * hs + c];
    }
}

// dQ, dK, dV (t,hs) from dout (t,hs); dS (t,t): gradient of Q Kᵀ
static void attention_backward(double *dQ, double *dK, double *dV, double *dS, const double *dout,
    const double *P, const double *Q, const double *K, const double *V, int t, int hs) {
    memset(dQ, 0, (size_t)(t * hs) * sizeof *dQ);
    memset(dK, 0, (size_t)(t * hs) * sizeof *dK);
    memset(dV, 0, (size_t)(t * hs) * sizeof *dV);
    for (int i = 0; i < t; i++) {
        double dot = 0; // of row i of P and row i of dP
        for (int j = 0; j < t; j++) {
            double dP = 0;
            for (int c = 0; c < hs; c++) dP += dout[i * hs + c] * V[j * hs + c];
            for (int c = 0; c < hs; c++) dV[j * hs + c] += P[i * t + j] * dout[i * hs + c];
            dot += P[i * t + j] * dP;
            dS[i * t + j] = dP;
        }
        for (int j = 0; j < t; j++) {
            dS[i * t + j] = P[i * t + j] * (dS[i * t + j] - dot) / sqrt(hs); // masked keys: P = 0
            for (int c = 0; c < hs; c++) dQ[i * hs + c] += dS[i * t + j] * K[j * hs + c];
            for (int c = 0; c < hs; c++) dK[j * hs + c] += dS[i * t + j] * Q[i * hs + c];
        }
    }
}

// ---------------------------------------------------------------- GELU and QuickGELU

static double gelu(double x) { return x * 0.5 * erfc(-x / sqrt(2)); }
static double gelu_slope(double x) {
    return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(2 * acos(-1));
}
static double quick_gelu(double x) { return x / (1 + exp(-1.702 * x)); }
static double quick_gelu_slope(double x) {
    const double e = exp(-1.702 * x), s = 1 / (1 + e);
    return s + 1.702 * x * s * (e * s); // e s is 1 - s
}

static float quick_gelu_slope_fp32(float x, float e) { // e = e^(-1.702 x)
    const float s = 1 / (1 + e);
    return s + 1.702f * x * s * (e * s);
}

// ---------------------------------------------------------------- checks and printing

static void print(const char *name, const double *x, int rows, int columns) {
    for (int i = 0; i < rows; i++) {
        printf("%-8s", i ? "" : name);
        for (int j = 0; j < columns; j++) // + 0.0 makes a rounded -0 a 0
            printf("%9.4f", rint(x[i * columns + j] * 1e4) / 1e4 + 0.0);
        printf("\n");
    }
}

// Uniform in [-1,1), the same on every machine
static void randomize(double *x, int n) {
    static unsigned state = 1;
    for (int i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        x[i] = state / 2147483648.0 - 1;
    }
}

// The inputs of both layers. A check needs one number f to differentiate: the sum of out * weight, so that
// dout = weight.
typedef struct {
    double x[N * C], gain[C], bias[C], Q[T * HS], K[T * HS], V[T * HS], weight[N * C];
    bool causal;
} Inputs;

static double f_layernorm(const Inputs *in) {
    double out[N * C], mean[N], rstd[N], f = 0;
    layernorm_forward(out, mean, rstd, in->x, in->gain, in->bias, N, C, 1e-5);
    for (int i = 0; i < N * C; i++) f += out[i] * in->weight[i];
    return f;
}

static double f_attention(const Inputs *in) {
    double out[T * HS], P[T * T], f = 0;
    attention_forward(out, P, in->Q, in->K, in->V, T, HS, in->causal);
    for (int i = 0; i < T * HS; i++) f += out[i] * in->weight[i];
    return f;
}

// The worst error of a gradient dx (n) of f by x, which is a part of `in`, at two step sizes
static void check(
    const char *what, double (*f)(const Inputs *), const Inputs *in, double *x, const double *dx, int n) {
    printf("%-8s", what);
    for (double h = 1e-2; h > 1e-4; h /= 10) {
        double worst = 0;
        for (int i = 0; i < n; i++) {
            const double before = x[i];
            x[i] = before + h;
            const double above = f(in);
            x[i] = before - h;
            const double below = f(in);
            x[i] = before;
            worst = fmax(worst, fabs((above - below) / (2 * h) - dx[i]));
        }
        if (worst < 1e-10) printf("   h = %.0e: below 1e-10", h);
        else printf("   h = %.0e: %11.1e", h, worst);
    }
    printf("\n");
}

static void print_layernorm(Inputs *in) {
    const double x[4] = {0, 2, 2, 8}, ones[4] = {1, 1, 1, 1}, zeros[4] = {0}, dout[4] = {1, 0, 0, 0};
    double out[N * C], mean[N], rstd[N], dx[N * C], dgain[C], dbias[C];
    layernorm_forward(out, mean, rstd, x, ones, zeros, 1, 4, 0);
    layernorm_backward(dx, dgain, dbias, dout, x, ones, mean, rstd, 1, 4);
    print("mean", mean, 1, 1);
    print("rstd", rstd, 1, 1);
    print("out", out, 1, 4);
    print("dout", dout, 1, 4);
    print("dx", dx, 1, 4);
    printf("\n");
    layernorm_forward(out, mean, rstd, in->x, in->gain, in->bias, N, C, 1e-5);
    layernorm_backward(dx, dgain, dbias, in->weight, in->x, in->gain, mean, rstd, N, C);
    check("dx", f_layernorm, in, in->x, dx, N * C);
    check("dgain", f_layernorm, in, in->gain, dgain, C);
    check("dbias", f_layernorm, in, in->bias, dbias, C);
    printf("\n");
}

static void print_attention(Inputs *in) {
    const double Q[6] = {1, 0, 0, 2, 1, 1}, K[6] = {1, 0, 0, 1, 1, 1}, V[6] = {1, 0, 0, 1, 2, 2};
    const double one_query[6] = {0, 0, 0, 0, 1, 0};
    double out[T * HS], P[T * T], dS[T * T], dQ[T * HS], dK[T * HS], dV[T * HS], moved[T * HS];
    attention_forward(out, P, Q, K, V, 3, 2, true);
    attention_backward(dQ, dK, dV, dS, one_query, P, Q, K, V, 3, 2);
    print("P", P, 3, 3);
    print("out", out, 3, 2);
    print("dS", dS, 3, 3);
    print("dQ", dQ, 3, 2);
    print("dK", dK, 3, 2);
    print("dV", dV, 3, 2);
    printf("\n");
    for (int causal = 0; causal < 2; causal++) {
        in->causal = causal;
        printf("%s\n", causal ? "causal" : "all keys");
        attention_forward(out, P, in->Q, in->K, in->V, T, HS, causal);
        attention_backward(dQ, dK, dV, dS, in->weight, P, in->Q, in->K, in->V, T, HS);
        check("dQ", f_attention, in, in->Q, dQ, T * HS);
        check("dK", f_attention, in, in->K, dK, T * HS);
        check("dV", f_attention, in, in->V, dV, T * HS);
    }
    double bias[HS], column[3] = {0}, change = 0;
    randomize(bias, HS);
    for (int i = 0; i < T * HS; i++) in->K[i] += bias[i % HS];
    attention_forward(moved, P, in->Q, in->K, in->V, T, HS, true);
    for (int i = 0; i < T * HS; i++) change = fmax(change, fabs(moved[i] - out[i]));
    for (int i = 0; i < T; i++) { // gradients of biases: sums over tokens; of the first channel
        column[0] += dQ[i * HS];
        column[1] += dK[i * HS];
        column[2] += dV[i * HS];
    }
    printf("\nthe same vector added to all keys: the output changes by %s\n",
        change < 1e-13 ? "less than 1e-13" : "MORE");
    print("dbias Q", column, 1, 1);
    print("dbias K", column + 1, 1, 1);
    print("dbias V", column + 2, 1, 1);
    printf("\n");
}

static void print_gelu(void) {
    double apart = 0, at = 0, worst[2] = {0};
    printf("      x     GELU    slope    quick    slope\n");
    for (int i = -3; i <= 3; i++) {
        const double row[] = {i, gelu(i), gelu_slope(i), quick_gelu(i), quick_gelu_slope(i)};
        printf("%7.0f%9.4f%9.4f%9.4f%9.4f\n", row[0], row[1], row[2], row[3], row[4]);
    }
    for (double x = -8; x < 8; x += 1.0 / 64) {
        const double h = 1e-3, gap = fabs(gelu(x) - quick_gelu(x));
        worst[0] = fmax(worst[0], fabs((gelu(x + h) - gelu(x - h)) / (2 * h) - gelu_slope(x)));
        worst[1] =
            fmax(worst[1], fabs((quick_gelu(x + h) - quick_gelu(x - h)) / (2 * h) - quick_gelu_slope(x)));
        at = gap > apart ? x : at;
        apart = fmax(apart, gap);
    }
    printf("worst error of the slopes, h = 1e-03: %.1e and %.1e\n", worst[0], worst[1]);
    printf("largest difference of the two functions: %.4f, at x = %.2f\n\n", apart, fabs(at));
    const float overflow = expf(-1.702f * -60), clamped = expf(84); // fp32, at x = -60
    printf("e = %.1e   slope %s\n", (double)overflow,
        isnan(quick_gelu_slope_fp32(-60, overflow)) ? "not a number" : "a number");
    printf("e = %.1e   slope %.1e\n", (double)clamped, (double)quick_gelu_slope_fp32(-60, clamped));
}

int main(void) {
    static Inputs in;
    randomize(in.x, N * C);
    randomize(in.gain, C);
    randomize(in.bias, C);
    randomize(in.Q, T * HS);
    randomize(in.K, T * HS);
    randomize(in.V, T * HS);
    randomize(in.weight, N * C);
    for (int i = 0; i < T * HS; i++) { // sharper probabilities
        in.Q[i] *= 3;
        in.K[i] *= 3;
    }
    print_layernorm(&in);
    print_attention(&in);
    print_gelu();
    return 0;
}
