// Every layer of CLIP as a plain loop over its equation. The tests compare train_clip.c's fast layers and the
// GPU's kernels with these loops, and CLIPC_ISA=plain runs the whole program on them. Slow, and meant to be
// obviously right. Order and names are those of train_clip.c, with _plain appended.
//
// Numbers have the type `real`: float in the programs; dev/test/plain64.h includes this file again with
// double. Sums are double in both. Outputs come first, sizes last; the names of gradients begin with d. An
// array marked `ld` has rows that are ld entries apart. `accumulate`: parameter gradients, once they are
// complete, are added to those already there, else they overwrite them. NULL gradients are not computed.
#ifndef CLIPC_PLAIN_H
#define CLIPC_PLAIN_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef real
#define real float
#endif

#ifndef CLIPC_PLAIN_TYPES
#define CLIPC_PLAIN_TYPES
// The activation of the MLP: GELU with erf (Hendrycks and Gimpel 2016), x * cdf(x); QuickGELU, with which
// OpenAI trained, x * sigmoid(1.702 x).
typedef enum { ACTIVATION_GELU, ACTIVATION_QUICK_GELU } Activation;

// What the loss does with pairs i != j of equal keys, which are false negatives of each other:
//   DIAGONAL  they are negatives like all others, as in open_clip
//   SOFT      they are positives, T[i][j] = 1 / their number: soft cross-entropy
//             (UniCL, Yang et al. 2022, eq. 3-5)
//   MASK      they are left out of the softmax of the row and of the column
typedef enum { POSITIVES_DIAGONAL, POSITIVES_SOFT, POSITIVES_MASK } Positives;
#endif

// ---------------------------------------------------------------- linear layer

// out (N,O; ld) = x (N,C) weight (O,C)ᵀ + bias (O; or NULL)
static inline void linear_forward_plain(
    real *out, const real *x, const real *weight, const real *bias, int N, int C, int O, size_t ld) {
    for (int i = 0; i < N; i++)
        for (int o = 0; o < O; o++) {
            double sum = bias ? bias[o] : 0;
            for (int c = 0; c < C; c++) sum += (double)x[(size_t)i * C + c] * weight[(size_t)o * C + c];
            out[i * ld + o] = (real)sum;
        }
}

// dx (N,C) = dout (N,O; ld) weight (O,C)
static inline void linear_backward_input_plain(
    real *dx, const real *dout, const real *weight, int N, int C, int O, size_t ld) {
    for (int i = 0; i < N; i++)
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (int o = 0; o < O; o++) sum += (double)dout[i * ld + o] * weight[(size_t)o * C + c];
            dx[(size_t)i * C + c] = (real)sum;
        }
}

// dweight (O,C) (+)= dout (N,O; ld)ᵀ x (N,C);  dbias (O) (+)= the column sums of dout
static inline void linear_backward_weight_plain(real *dweight, real *dbias, const real *dout, const real *x,
    int N, int C, int O, size_t ld, bool accumulate) {
    for (int o = 0; o < O; o++) {
        for (int c = 0; dweight && c < C; c++) {
            double sum = 0;
            for (int i = 0; i < N; i++) sum += (double)dout[i * ld + o] * x[(size_t)i * C + c];
            dweight[(size_t)o * C + c] = (real)sum + (accumulate ? dweight[(size_t)o * C + c] : 0);
        }
        if (!dbias) continue;
        double sum = 0;
        for (int i = 0; i < N; i++) sum += dout[i * ld + o];
        dbias[o] = (real)sum + (accumulate ? dbias[o] : 0);
    }
}

// ---------------------------------------------------------------- LayerNorm

// out (N,C) = (x - mean) rstd gain + bias, with the mean and the biased variance of each row (Ba et al. 2016,
// eq. 4); mean (N) and rstd = 1 / sqrt(variance + eps) (N) are saved
static inline void layernorm_forward_plain(real *out, real *mean, real *rstd, const real *x, const real *gain,
    const real *bias, int N, int C, double eps) {
    for (int i = 0; i < N; i++) {
        const real *row = x + (size_t)i * C;
        double m = 0, variance = 0;
        for (int c = 0; c < C; c++) m += (double)row[c] / C;
        for (int c = 0; c < C; c++) variance += (row[c] - m) * (row[c] - m) / C;
        const double r = 1 / sqrt(variance + eps);
        for (int c = 0; c < C; c++) out[(size_t)i * C + c] = (real)((row[c] - m) * r * gain[c] + bias[c]);
        mean[i] = (real)m;
        rstd[i] = (real)r;
    }
}

// With n = (x - mean) rstd and g = dout gain:
//   dx (N,C) = skip + rstd (g - mean(g) - n mean(g n));  dgain (C) (+)= sum dout n;  dbias (C) (+)= sum dout
// skip (N,C) is the gradient of the residual connection around the LayerNorm: NULL, or dx itself.
static inline void layernorm_backward_plain(real *dx, real *dgain, real *dbias, const real *skip,
    const real *dout, const real *x, const real *gain, const real *mean, const real *rstd, int N, int C,
    bool accumulate) {
    for (int c = 0; c < C; c++) { // dx may overwrite skip, but never dout or x
        double sum_gain = 0, sum_bias = 0;
        for (int i = 0; i < N; i++) {
            const size_t at = (size_t)i * C + c;
            sum_gain += (double)dout[at] * ((double)x[at] - mean[i]) * rstd[i];
            sum_bias += dout[at];
        }
        if (dgain) dgain[c] = (real)sum_gain + (accumulate ? dgain[c] : 0);
        if (dbias) dbias[c] = (real)sum_bias + (accumulate ? dbias[c] : 0);
    }
    for (int i = 0; i < N; i++) {
        const size_t row = (size_t)i * C;
        double mean_g = 0, mean_gn = 0;
        for (int c = 0; c < C; c++) {
            const double g = (double)dout[row + c] * gain[c], n = ((double)x[row + c] - mean[i]) * rstd[i];
            mean_g += g / C;
            mean_gn += g * n / C;
        }
        for (int c = 0; c < C; c++) {
            const double g = (double)dout[row + c] * gain[c], n = ((double)x[row + c] - mean[i]) * rstd[i];
            dx[row + c] = (real)((skip ? skip[row + c] : 0) + rstd[i] * (g - mean_g - n * mean_gn));
        }
    }
}

// ---------------------------------------------------------------- attention

// Sequence b has the rows start[b] … start[b+1]-1 of qkv (R,3C): queries, keys, values of all heads side by
// side. causal: a query sees the keys up to its own position. pooled_row (B): of each sequence only the query
// of that row is computed, which gives one row of output per sequence; NULL: all queries.

// p (T) = softmax(q kᵀ / sqrt(HS)) of query `row`, over those keys of the rows first … last-1 that it sees;
// returns the number of these keys
static inline int attention_probabilities_plain(
    double *p, const real *qkv, int first, int last, int row, int C, int HS, int head, bool causal) {
    const int n = causal ? row + 1 - first : last - first;
    const real *q = qkv + (size_t)row * 3 * C + head * HS;
    double max = -INFINITY, sum = 0;
    for (int j = 0; j < n; j++) {
        const real *k = qkv + (size_t)(first + j) * 3 * C + C + head * HS;
        p[j] = 0;
        for (int c = 0; c < HS; c++) p[j] += (double)q[c] * k[c];
        p[j] /= sqrt(HS);
        max = fmax(max, p[j]);
    }
    for (int j = 0; j < n; j++) sum += exp(p[j] - max);
    for (int j = 0; j < n; j++) p[j] = exp(p[j] - max) / sum;
    return n;
}

// out (R,C; pooled: B,C) = P V (Vaswani et al. 2017, eq. 1)
static inline void attention_forward_plain(
    real *out, const real *qkv, const int *start, const int *pooled_row, int B, int C, int NH, bool causal) {
    const int HS = C / NH;
    for (int b = 0; b < B; b++) {
        double *p = (double *)malloc((size_t)(start[b + 1] - start[b]) * sizeof *p);
        for (int row = start[b]; row < start[b + 1]; row++) {
            if (pooled_row && row != pooled_row[b]) continue;
            for (int head = 0; head < NH; head++) {
                const int n =
                    attention_probabilities_plain(p, qkv, start[b], start[b + 1], row, C, HS, head, causal);
                for (int c = 0; c < HS; c++) {
                    double sum = 0;
                    for (int j = 0; j < n; j++)
                        sum += p[j] * qkv[(size_t)(start[b] + j) * 3 * C + 2 * C + head * HS + c];
                    out[(size_t)(pooled_row ? b : row) * C + head * HS + c] = (real)sum;
                }
            }
        }
        free(p);
    }
}

// dqkv (R,3C) from dout (R,C; pooled: B,C):
//   dP = dO Vᵀ,  dS = P ∘ (dP - rowsum(P ∘ dP)) / sqrt(HS),  dQ = dS K,  dK = dSᵀ Q,  dV = Pᵀ dO
static inline void attention_backward_plain(real *dqkv, const real *dout, const real *qkv, const int *start,
    const int *pooled_row, int B, int C, int NH, bool causal) {
    const int HS = C / NH;
    for (int b = 0; b < B; b++) {
        const int T = start[b + 1] - start[b];
        double *p = (double *)malloc((size_t)T * sizeof *p), *dp = (double *)malloc((size_t)T * sizeof *dp);
        double *d = (double *)calloc((size_t)T * 3 * C, sizeof *d); // dqkv of this sequence
        for (int row = start[b]; row < start[b + 1]; row++) {
            if (pooled_row && row != pooled_row[b]) continue;
            for (int head = 0; head < NH; head++) {
                const int n =
                    attention_probabilities_plain(p, qkv, start[b], start[b + 1], row, C, HS, head, causal);
                const real *dO = dout + (size_t)(pooled_row ? b : row) * C + head * HS;
                const real *q = qkv + (size_t)row * 3 * C + head * HS;
                double *dq = d + (size_t)(row - start[b]) * 3 * C + head * HS, rowsum = 0;
                for (int j = 0; j < n; j++) {
                    const real *v = qkv + (size_t)(start[b] + j) * 3 * C + 2 * C + head * HS;
                    dp[j] = 0;
                    for (int c = 0; c < HS; c++) dp[j] += (double)dO[c] * v[c];
                    rowsum += p[j] * dp[j];
                }
                for (int j = 0; j < n; j++) {
                    const real *k = qkv + (size_t)(start[b] + j) * 3 * C + C + head * HS;
                    double *dk = d + (size_t)j * 3 * C + C + head * HS, *dv = dk + C;
                    const double ds = p[j] * (dp[j] - rowsum) / sqrt(HS);
                    for (int c = 0; c < HS; c++) {
                        dq[c] += ds * k[c];
                        dk[c] += ds * q[c];
                        dv[c] += p[j] * dO[c];
                    }
                }
            }
        }
        for (size_t i = 0; i < (size_t)T * 3 * C; i++) dqkv[(size_t)start[b] * 3 * C + i] = (real)d[i];
        free(p);
        free(dp);
        free(d);
    }
}

// ---------------------------------------------------------------- activation

static inline double activation_plain(double x, Activation activation, double *derivative) {
    switch (activation) {
    case ACTIVATION_GELU: {
        const double cdf = 0.5 * erfc(-x / sqrt(2)), pdf = exp(-x * x / 2) / sqrt(2 * 3.14159265358979324);
        *derivative = cdf + x * pdf;
        return x * cdf;
    }
    case ACTIVATION_QUICK_GELU: {
        const double sigmoid = 1 / (1 + exp(-1.702 * x));
        *derivative = sigmoid + 1.702 * x * sigmoid * (1 - sigmoid);
        return x * sigmoid;
    }
    }
    return *derivative = NAN;
}

// out (n) = activation(x)
static inline void activation_forward_plain(real *out, const real *x, size_t n, Activation activation) {
    double derivative;
    for (size_t i = 0; i < n; i++) out[i] = (real)activation_plain(x[i], activation, &derivative);
}

// dx (n) = dout activation'(x); dx may be dout
static inline void activation_backward_plain(
    real *dx, const real *dout, const real *x, size_t n, Activation activation) {
    double derivative;
    for (size_t i = 0; i < n; i++) {
        activation_plain(x[i], activation, &derivative);
        dx[i] = (real)(dout[i] * derivative);
    }
}

// ---------------------------------------------------------------- embeddings

// x (B,1+N,C): row 0 of each image is the class token, row 1+j is patch j; to each row the embedding of its
// position is added, a row of positions (T,C). embedded (B,N,C) are the patches after conv1; patch (B,N) is
// the index of each in its image (with patch dropout, N patches of all).
static inline void image_embedding_forward_plain(real *x, const real *embedded, const real *class_embedding,
    const real *positions, const int *patch, int B, int N, int C) {
    for (int b = 0; b < B; b++)
        for (int t = 0; t <= N; t++)
            for (int c = 0; c < C; c++) {
                const size_t j = (size_t)b * N + t - 1; // for t > 0
                const int position = t ? 1 + patch[j] : 0;
                const double token = t ? embedded[j * C + c] : class_embedding[c];
                x[((size_t)b * (N + 1) + t) * C + c] = (real)(token + positions[(size_t)position * C + c]);
            }
}

// d (n) (+)= sum (n), which is freed
static inline void add_gradient_plain(real *d, real *sum, size_t n, bool accumulate) {
    for (size_t i = 0; i < n; i++) d[i] = sum[i] + (accumulate ? d[i] : 0);
    free(sum);
}

static inline void image_embedding_backward_plain(real *dembedded, real *dclass_embedding, real *dpositions,
    const real *dx, const int *patch, int B, int N, int T, int C, bool accumulate) {
    real *class_embedding = (real *)calloc((size_t)C, sizeof(real));
    real *positions = (real *)calloc((size_t)T * C, sizeof(real));
    for (int b = 0; b < B; b++)
        for (int t = 0; t <= N; t++)
            for (int c = 0; c < C; c++) {
                const size_t j = (size_t)b * N + t - 1; // for t > 0
                const real d = dx[((size_t)b * (N + 1) + t) * C + c];
                if (t) dembedded[j * C + c] = d;
                else class_embedding[c] += d;
                positions[(size_t)(t ? 1 + patch[j] : 0) * C + c] += d;
            }
    add_gradient_plain(dclass_embedding, class_embedding, (size_t)C, accumulate);
    add_gradient_plain(dpositions, positions, (size_t)T * C, accumulate);
}

// x (R,C) = the token's embedding (V,C) + the position's (T,C); tokens (B,T); sequence b has the rows
// start[b] … start[b+1]-1
static inline void text_embedding_forward_plain(real *x, const int *tokens, const int *start,
    const real *token_embedding, const real *positions, int B, int T, int C) {
    for (int b = 0; b < B; b++)
        for (int row = start[b]; row < start[b + 1]; row++)
            for (int c = 0; c < C; c++) {
                const int t = row - start[b], token = tokens[(size_t)b * T + t];
                x[(size_t)row * C + c] =
                    (real)((double)token_embedding[(size_t)token * C + c] + positions[(size_t)t * C + c]);
            }
}

static inline void text_embedding_backward_plain(real *dtoken_embedding, real *dpositions, const real *dx,
    const int *tokens, const int *start, int B, int V, int T, int C, bool accumulate) {
    real *token_embedding = (real *)calloc((size_t)V * C, sizeof(real));
    real *positions = (real *)calloc((size_t)T * C, sizeof(real));
    for (int b = 0; b < B; b++)
        for (int row = start[b]; row < start[b + 1]; row++)
            for (int c = 0; c < C; c++) {
                const int t = row - start[b], token = tokens[(size_t)b * T + t];
                token_embedding[(size_t)token * C + c] += dx[(size_t)row * C + c];
                positions[(size_t)t * C + c] += dx[(size_t)row * C + c];
            }
    add_gradient_plain(dtoken_embedding, token_embedding, (size_t)V * C, accumulate);
    add_gradient_plain(dpositions, positions, (size_t)T * C, accumulate);
}

// ---------------------------------------------------------------- L2 normalisation

// out (B,E) = x / norm, norm (B) = max(|x|, 1e-12), torch.nn.functional.normalize's eps
static inline void normalize_forward_plain(real *out, real *norm, const real *x, int B, int E) {
    for (int b = 0; b < B; b++) {
        const real *row = x + (size_t)b * E;
        double sum = 0;
        for (int e = 0; e < E; e++) sum += (double)row[e] * row[e];
        norm[b] = (real)fmax(sqrt(sum), 1e-12);
        for (int e = 0; e < E; e++) out[(size_t)b * E + e] = row[e] / norm[b];
    }
}

// dx (B,E) = (dout - out (out · dout)) / norm
static inline void normalize_backward_plain(
    real *dx, const real *dout, const real *out, const real *norm, int B, int E) {
    for (int b = 0; b < B; b++) {
        const size_t row = (size_t)b * E;
        double dot = 0;
        for (int e = 0; e < E; e++) dot += (double)out[row + e] * dout[row + e];
        for (int e = 0; e < E; e++) dx[row + e] = (real)((dout[row + e] - out[row + e] * dot) / norm[b]);
    }
}

// ---------------------------------------------------------------- contrastive loss

// T[i][j], the target probability of logit (i, j); a row sums to 1. -1: the logit is masked out.
static inline double contrastive_target_plain(
    const uint64_t *keys, Positives positives, int n, int i, int j) {
    const bool equal = i == j || (keys && keys[i] == keys[j]);
    if (positives == POSITIVES_DIAGONAL || !equal) return i == j;
    if (positives == POSITIVES_MASK) return i == j ? 1 : -1;
    int count = 0;
    for (int k = 0; k < n; k++) count += k == i || (keys && keys[i] == keys[k]);
    return 1.0 / count;
}

// One direction of the loss: returns the cross-entropy summed over the rows of logits (n,n), and adds its
// gradient to dlogits unless that is NULL. transposed: over the columns.
static inline double cross_entropy_plain(double *dlogits, const double *logits, const uint64_t *keys,
    Positives positives, int n, bool transposed) {
    double loss = 0;
    for (int i = 0; i < n; i++) {
        double max = -INFINITY, sum = 0;
        for (int j = 0; j < n; j++) max = fmax(max, logits[transposed ? j * n + i : i * n + j]);
        for (int j = 0; j < n; j++)
            if (contrastive_target_plain(keys, positives, n, i, j) >= 0)
                sum += exp(logits[transposed ? j * n + i : i * n + j] - max);
        for (int j = 0; j < n; j++) {
            const int at = transposed ? j * n + i : i * n + j;
            const double target = contrastive_target_plain(keys, positives, n, i, j);
            if (target < 0) continue;
            loss += target * (max + log(sum) - logits[at]);
            if (dlogits) dlogits[at] += exp(logits[at] - max) / sum - target;
        }
    }
    return loss;
}

// loss = 1/2 [CE(s X Yᵀ) + CE(s Y Xᵀ)], mean over n rows (Radford et al. 2021, figure 3): image X and text Y
// (n,E) are L2-normalised, pair i is row i of both, s = exp(logit_scale). keys (n): see Positives. Gradients
// are overwritten; dimage NULL: the loss only. *dlogit_scale is the gradient of logit_scale, the logarithm of
// s.
static inline double contrastive_loss_plain(real *dimage, real *dtext, double *dlogit_scale,
    const real *image, const real *text, const uint64_t *keys, Positives positives, int n, int E,
    double scale) {
    double *logits = (double *)calloc((size_t)n * n, sizeof *logits);
    double *dlogits = dimage ? (double *)calloc((size_t)n * n, sizeof *dlogits) : NULL;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            for (int e = 0; e < E; e++)
                logits[i * n + j] += scale * image[(size_t)i * E + e] * text[(size_t)j * E + e];
    const double rows = cross_entropy_plain(dlogits, logits, keys, positives, n, false);
    const double columns = cross_entropy_plain(dlogits, logits, keys, positives, n, true);
    if (dimage) *dlogit_scale = 0;
    for (int i = 0; dimage && i < n; i++)
        for (int e = 0; e < E; e++) {
            double by_image = 0, by_text = 0;
            for (int j = 0; j < n; j++) by_image += scale * dlogits[i * n + j] * text[(size_t)j * E + e];
            for (int j = 0; j < n; j++) by_text += scale * dlogits[j * n + i] * image[(size_t)j * E + e];
            dimage[(size_t)i * E + e] = (real)(by_image / (2 * n));
            dtext[(size_t)i * E + e] = (real)(by_text / (2 * n));
        }
    for (int i = 0; dimage && i < n * n; i++) *dlogit_scale += dlogits[i] * logits[i] / (2 * n);
    free(logits);
    free(dlogits);
    return (rows + columns) / (2 * n);
}

// ---------------------------------------------------------------- AdamW

// One step (Loshchilov and Hutter 2019, algorithm 2, as torch.optim.AdamW) on p (n), with gradient g times
// grad_scale and moments m, v; `step` counts from 1.
static inline void adamw_plain(real *p, const real *g, real *m, real *v, size_t n, double grad_scale,
    double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step) {
    for (size_t i = 0; i < n; i++) {
        const double gradient = grad_scale * g[i];
        const double m1 = beta1 * m[i] + (1 - beta1) * gradient;
        const double v1 = beta2 * v[i] + (1 - beta2) * gradient * gradient;
        const double m_hat = m1 / (1 - pow(beta1, (double)step)), v_hat = v1 / (1 - pow(beta2, (double)step));
        p[i] = (real)(p[i] - lr * weight_decay * p[i] - lr * m_hat / (sqrt(v_hat) + eps));
        m[i] = (real)m1;
        v[i] = (real)v1;
    }
}

#undef real
#endif
