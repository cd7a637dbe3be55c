// CLIP's contrastive loss and its gradient, step by step, in double precision. doc/clip_loss.md derives each
// step and quotes what this program prints.
//
//     cc doc/clip_loss.c -lm -o clip_loss && ./clip_loss
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N = 64, E = 16 }; // the largest batch and the most channels here

typedef enum { DIAGONAL, SOFT, MASK } Positives; // what to do with pairs of equal keys

typedef struct {
    int n, e;            // pairs and channels in use
    double X[N][E];      // (n,e) features of the images; pair i is row i of X and row i of Y
    double Y[N][E];      // (n,e) features of the texts
    double logit_scale;  // a parameter: e^logit_scale, called s, multiplies the cosines
    int key[N];          // pairs of equal keys are positives of each other
    Positives positives; // how they are treated
    double dX[N][E], dY[N][E], dlogit_scale; // gradients of the loss
} Problem;

// log(sum of e^x) of n numbers that are `stride` apart. The largest term becomes e^0: nothing overflows.
static double log_sum_exp(const double *x, int n, int stride) {
    double max = x[0], sum = 0;
    for (int i = 1; i < n; i++) max = fmax(max, x[i * stride]);
    for (int i = 0; i < n; i++) sum += exp(x[i * stride] - max);
    return max + log(sum);
}

// L (rows,n) = s X Yᵀ for `rows` rows of X from i0 on; MASK removes the other pairs of the same key
static void logits(double L[][N], const Problem *p, int i0, int rows) {
    const double s = exp(p->logit_scale);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < p->n; j++) {
            L[i][j] = 0;
            for (int c = 0; c < p->e; c++) L[i][j] += s * p->X[i0 + i][c] * p->Y[j][c];
            if (p->positives == MASK && i0 + i != j && p->key[i0 + i] == p->key[j]) L[i][j] = -INFINITY;
        }
}

// T[i][j]: 1 on the diagonal; with SOFT shared evenly among the pairs of the key
static double target(const Problem *p, int i, int j) {
    if (p->positives != SOFT) return i == j;
    int count = 0;
    for (int k = 0; k < p->n; k++) count += p->key[k] == p->key[i];
    return p->key[i] == p->key[j] ? 1.0 / count : 0;
}

// The loss from all logits L (n,n), and the log-sum-exps of its rows (n) and columns (n)
static double loss_whole(const Problem *p, double L[][N], double *row_lse, double *column_lse) {
    double loss = 0;
    logits(L, p, 0, p->n);
    for (int i = 0; i < p->n; i++) {
        row_lse[i] = log_sum_exp(L[i], p->n, 1);
        column_lse[i] = log_sum_exp(&L[0][i], p->n, N);
        loss += (row_lse[i] + column_lse[i]) / (2 * p->n);
        for (int j = 0; j < p->n; j++)
            if (target(p, i, j) > 0) loss -= target(p, i, j) * L[i][j] / p->n;
    }
    return loss;
}

// Adds to the gradients what `rows` rows of logits from i0 on contribute (the first rows: sets them);
// L (rows,n) becomes G = d loss / d L
static void backward(
    Problem *p, double L[][N], const double *row_lse, const double *column_lse, int i0, int rows) {
    const double s = exp(p->logit_scale);
    if (i0 == 0) {
        memset(p->dX, 0, sizeof p->dX);
        memset(p->dY, 0, sizeof p->dY);
        p->dlogit_scale = 0;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < p->n; j++) {
            const double row = exp(L[i][j] - row_lse[i0 + i]);
            const double column = exp(L[i][j] - column_lse[j]);
            const double g = (row + column - 2 * target(p, i0 + i, j)) / (2 * p->n);
            if (g != 0) p->dlogit_scale += g * L[i][j]; // not where L is -∞
            for (int c = 0; c < p->e; c++) p->dX[i0 + i][c] += s * g * p->Y[j][c];
            for (int c = 0; c < p->e; c++) p->dY[j][c] += s * g * p->X[i0 + i][c];
            L[i][j] = g;
        }
}

static double loss_and_gradient(Problem *p, double L[][N]) {
    double row_lse[N], column_lse[N];
    const double loss = loss_whole(p, L, row_lse, column_lse);
    backward(p, L, row_lse, column_lse, 0, p->n);
    return loss;
}

// The same with `tile` rows of logits at a time, of which L holds no more (diagonal positives)
static double loss_in_tiles(Problem *p, double L[][N], int tile) {
    double row_lse[N], column_lse[N], max[N], sum[N] = {0}, loss = 0;
    for (int j = 0; j < p->n; j++) max[j] = -INFINITY;
    for (int i0 = 0; i0 < p->n; i0 += tile) {
        const int rows = p->n - i0 < tile ? p->n - i0 : tile;
        logits(L, p, i0, rows);
        for (int i = 0; i < rows; i++) {
            row_lse[i0 + i] = log_sum_exp(L[i], p->n, 1); // the whole row is here
            loss += (row_lse[i0 + i] - 2 * L[i][i0 + i]) / (2 * p->n);
            for (int j = 0; j < p->n; j++) { // of a column, only a part: update its maximum and its sum
                const double larger = fmax(max[j], L[i][j]);
                sum[j] = sum[j] * exp(max[j] - larger) + exp(L[i][j] - larger);
                max[j] = larger;
            }
        }
    }
    for (int j = 0; j < p->n; j++) column_lse[j] = max[j] + log(sum[j]);
    for (int j = 0; j < p->n; j++) loss += column_lse[j] / (2 * p->n);
    for (int i0 = 0; i0 < p->n; i0 += tile) {
        const int rows = p->n - i0 < tile ? p->n - i0 : tile;
        logits(L, p, i0, rows); // once more, now that the log-sum-exps of all columns are known
        backward(p, L, row_lse, column_lse, i0, rows);
    }
    return loss;
}

// ---------------------------------------------------------------- checks and printing

static double L[N][N], row_lse[N], column_lse[N];

// |(loss(x + h) - loss(x - h)) / 2h - dx|
static double error_at(Problem *p, double *x, double dx, double h) {
    const double before = *x;
    *x = before + h;
    const double above = loss_whole(p, L, row_lse, column_lse);
    *x = before - h;
    const double below = loss_whole(p, L, row_lse, column_lse);
    *x = before;
    return fabs((above - below) / (2 * h) - dx);
}

// The worst error at two step sizes, over logit_scale and a channel of some rows of X and Y
static void check_gradient(const char *what, Problem *p) {
    loss_and_gradient(p, L);
    printf("%-20s", what);
    for (double h = 1e-2; h > 1e-4; h /= 10) {
        double worst = error_at(p, &p->logit_scale, p->dlogit_scale, h);
        for (int i = 0; i < p->n; i += 1 + p->n / 16) {
            worst = fmax(worst, error_at(p, &p->X[i][i % p->e], p->dX[i][i % p->e], h));
            worst = fmax(worst, error_at(p, &p->Y[i][i % p->e], p->dY[i][i % p->e], h));
        }
        printf("   h = %.0e: %.1e", h, worst);
    }
    printf("\n");
}

// Four decimals; + 0.0 makes a rounded -0 a 0
static void print(const char *name, const double *x, int rows, int columns, int stride) {
    for (int i = 0; i < rows; i++) {
        printf("%-12s", i ? "" : name);
        for (int j = 0; j < columns; j++) printf("%8.4f", rint(x[i * stride + j] * 1e4) / 1e4 + 0.0);
        printf("\n");
    }
}

// |a - b| / |b| of n rows of features
static double distance(double a[][E], double b[][E], int n) {
    double difference = 0, norm = 0;
    for (int i = 0; i < n; i++)
        for (int c = 0; c < E; c++) {
            difference += (a[i][c] - b[i][c]) * (a[i][c] - b[i][c]);
            norm += b[i][c] * b[i][c];
        }
    return sqrt(difference / norm);
}

static void print_by_hand(Problem p) {
    double P[3][N], Q[3][N];
    const double loss = loss_whole(&p, L, row_lse, column_lse);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            P[i][j] = exp(L[i][j] - row_lse[i]);
            Q[i][j] = exp(L[i][j] - column_lse[j]);
        }
    print("L", L[0], 3, 3, N);
    print("row lse", row_lse, 1, 3, N);
    print("column lse", column_lse, 1, 3, N);
    print("P", P[0], 3, 3, N);
    print("Q", Q[0], 3, 3, N);
    print("loss", &loss, 1, 1, N);
    printf("\n");
    loss_and_gradient(&p, L);
    print("G", L[0], 3, 3, N);
    print("dX", p.dX[0], 3, 4, E);
    print("dY", p.dY[0], 3, 4, E);
    print("dlogit_scale", &p.dlogit_scale, 1, 1, N);
    printf("\n");
}

static void print_tiles(Problem p) {
    const double loss = loss_and_gradient(&p, L);
    printf("n = 64        loss %.6f   dlogit_scale %.6f\n", loss, p.dlogit_scale);
    for (int tile = 1; tile < 64; tile = 3 * tile + 4) {
        Problem q = p;
        const double tiled = loss_in_tiles(&q, L, tile);
        const double worst =
            fmax(fabs(tiled - loss), fmax(distance(q.dX, p.dX, 64), distance(q.dY, p.dY, 64)));
        printf("tiles of %2d   loss %.6f   dlogit_scale %.6f   largest difference %s 1e-13\n", tile, tiled,
            q.dlogit_scale, worst < 1e-13 ? "below" : "NOT BELOW");
    }
    printf("\n");
}

// What accumulation must not do: give 16 of the 64 pairs a loss of their own, divided by 4
static void print_accumulation(Problem p) {
    Problem part = p;
    part.n = 16;
    const double loss = loss_and_gradient(&p, L), part_loss = loss_and_gradient(&part, L);
    for (int i = 0; i < 16; i++)
        for (int c = 0; c < E; c++) part.dX[i][c] /= 4;
    printf("loss over 64 pairs           %.4f\n", loss);
    printf("over the first 16 of them    %.4f   their dX is off by %.0f%%\n\n", part_loss,
        100 * distance(part.dX, p.dX, 16));
}

// Uniform in [-1,1), the same on every machine
static double uniform(void) {
    static unsigned state = 1;
    state = state * 1664525 + 1013904223;
    return state / 2147483648.0 - 1;
}

int main(void) {
    Problem small = {.n = 3,
        .e = 4,
        .logit_scale = log(5),
        .key = {7, 7, 8},
        .X = {{.5, .5, .5, .5}, {.5, .5, -.5, -.5}, {.5, -.5, .5, -.5}},
        .Y = {{.6, .8, 0, 0}, {.6, 0, -.8, 0}, {0, -.6, .8, 0}}};
    Problem large = {.n = N, .e = E, .logit_scale = log(14)};
    for (int i = 0; i < N; i++) {
        double x = 0, y = 0;
        for (int c = 0; c < E; c++) {
            large.X[i][c] = uniform();
            large.Y[i][c] = large.X[i][c] + uniform(); // a text resembles its image
            x += large.X[i][c] * large.X[i][c];
            y += large.Y[i][c] * large.Y[i][c];
        }
        for (int c = 0; c < E; c++) large.X[i][c] /= sqrt(x);
        for (int c = 0; c < E; c++) large.Y[i][c] /= sqrt(y);
    }
    print_by_hand(small);
    check_gradient("n = 3, worst error", &small);
    check_gradient("n = 64, worst error", &large);
    printf("\n");
    print_tiles(large);
    print_accumulation(large);
    for (small.positives = SOFT; small.positives <= MASK; small.positives++) {
        const double loss = loss_and_gradient(&small, L);
        print(small.positives == SOFT ? "soft: loss" : "mask: loss", &loss, 1, 1, N);
        print("G", L[0], 3, 3, N);
        check_gradient("worst error", &small);
    }
    return 0;
}
