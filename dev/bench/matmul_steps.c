// The steps of doc/matmul.md, from three loops to gemm(), at a layer of ViT-B/32: GFLOP/s of one thread, best
// of several runs, as Markdown.
//
//     make build/bench_matmul_steps && build/bench_matmul_steps        under 20 s
//
// Time is that of the thread, so that other programs disturb it less. Some entries of every result are
// compared with sums in double.
#include "clipc/math/matmul.h"
#include "clipc/base/utils.h" // rand_for

enum {
    M = 1600,
    N = 3072,
    K = 768,
    FEW = 24
}; // rows, outputs and inputs of c_fc at batch 32; rows of the slow steps

typedef struct {
    const Kernels *k;
    Operand a, w, c, hidden; // (M,K); B (K,N); (M,N); (M,N)
    uint32_t *panels;        // of w
    float *bias, *gradient;  // (N); of w (N,K)
    int rows;                // of the M that are computed
} Layer;

static const Epilogue SET = {EPILOGUE_STORE, NULL, NULL, NULL, NULL, ACTIVATION_GELU};

// ---------------------------------------------------------------- steps 1 to 4, in fp32

static void three_loops(const Layer *l) {
    const float *a = (const float *)l->a.p, *b = (const float *)l->w.p;
    for (int i = 0; i < l->rows; i++)
        for (int j = 0; j < N; j++) {
            float sum = 0;
            for (int k = 0; k < K; k++) sum += a[i * K + k] * b[k * N + j];
            ((float *)l->c.p)[i * N + j] = sum;
        }
}

INNER void loops_reordered_text(const Layer *l) {
    const float *a = (const float *)l->a.p, *b = (const float *)l->w.p;
    memset(l->c.p, 0, (size_t)l->rows * N * sizeof(float));
    for (int i = 0; i < l->rows; i++)
        for (int k = 0; k < K; k++) {
            float *c = (float *)l->c.p + i * N;
            const float x = a[i * K + k], *row = b + k * N;
            for (int j = 0; j < N; j++) c[j] += x * row[j];
        }
}
static void loops_reordered(const Layer *l) { loops_reordered_text(l); }

#if defined(__x86_64__)
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
static void loops_reordered_avx512(const Layer *l) { loops_reordered_text(l); }

// A tile of 12 x 32 sums in registers, B not packed
static void register_tile_avx512(const Layer *l) {
    for (int i = 0; i + 12 <= l->rows; i += 12)
        for (int j = 0; j < N; j += 32) {
            const float *a = (const float *)l->a.p + i * K, *b = (const float *)l->w.p + j;
            float *c = (float *)l->c.p + i * N + j;
            __m512 acc[12][2];
            UNROLL
            for (int r = 0; r < 12; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
            for (int k = 0; k < K; k++, b += N) {
                const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
                UNROLL
                for (int r = 0; r < 12; r++) {
                    const __m512 x = _mm512_set1_ps(a[r * K + k]);
                    acc[r][0] = _mm512_fmadd_ps(x, b0, acc[r][0]);
                    acc[r][1] = _mm512_fmadd_ps(x, b1, acc[r][1]);
                }
            }
            UNROLL
            for (int r = 0; r < 12; r++) {
                _mm512_storeu_ps(c + r * N, acc[r][0]);
                _mm512_storeu_ps(c + r * N + 16, acc[r][1]);
            }
        }
}
TARGET_END
#endif

// B in panels, but all of K at once, and every 12 rows of A by all panels
static void tile_and_panels(const Layer *l) {
    const TileKernel *t = &l->k->products[0];
    const int width = l->k->tile_columns;
    float sums[32 * 32];
    pack_panels(l->k, l->panels, operand_matrix(l->w, N, 1), K, N, 0, K, 0, panel_count(l->k, N), false);
    for (int i = 0; i < l->rows; i += t->rows)
        for (int j = 0; j < panel_count(l->k, N); j++) {
            const int m = min_int(l->rows - i, t->rows);
            const uint32_t *panel = l->panels + (size_t)j * panel_pitch(l->k, K, false);
            t->tile(m, K, (const float *)l->a.p + i * K, K * sizeof(float), sizeof(float), panel, sums, false,
                (const char *)panel);
            l->k->finish(
                m, min_int(N - j * width, width), sums, 0, l->c, N, (size_t)i, (size_t)j * width, &SET);
        }
}

// ---------------------------------------------------------------- gemm()

static Matrix packed(const Layer *l) {
    Matrix w = operand_matrix(l->w, N, 1);
    w.panels = l->panels;
    w.pitch = panel_pitch(l->k, K, l->a.bf16);
    return w;
}
static void product(const Layer *l, Matrix w, Epilogue epilogue) {
    gemm(l->k, l->c, N, operand_matrix(l->a, K, 1), w, l->rows, N, K, epilogue);
}

static void gemm_and_packing(const Layer *l) { product(l, operand_matrix(l->w, N, 1), SET); }
static void gemm_packed(const Layer *l) { product(l, packed(l), SET); }

// dweight (N,K) = doutᵀ (N,M) · a (M,K): as much work as the layer
static void weight_gradient(const Layer *l) {
    gemm(l->k, fp32(l->gradient), K, operand_matrix(l->hidden, 1, N), operand_matrix(l->a, K, 1), N, K,
        l->rows, SET);
}

// The tile alone as often as the layer needs it, on numbers that fit into L1: with AMX 16 KB each of 32 rows
// and of a panel
static void tile_in_l1(const Layer *l) {
    const TileKernel *t = &l->k->products[l->a.bf16];
    enum { DEPTH = 128 }; // units
    const double tiles =
        (double)l->rows * N * K / ((double)t->rows * l->k->tile_columns * DEPTH * unit_entries(l->a.bf16));
    float sums[32 * 32] = {0};
    products_begin(l->k, l->a.bf16);
    for (int i = 0; i < tiles; i++)
        t->tile(t->rows, DEPTH / t->step, l->a.p, K * operand_bytes(l->a.bf16), 4 * (size_t)t->step,
            l->panels, sums, true, (const char *)l->panels);
    products_end(l->k, l->a.bf16);
}

static Epilogue bias_and_gelu(const Layer *l) {
    const Epilogue e = {EPILOGUE_ACTIVATION, l->bias, NULL, l->hidden.p, NULL, ACTIVATION_GELU};
    return e;
}
static void gemm_with_epilogue(const Layer *l) { product(l, packed(l), bias_and_gelu(l)); }

// The same epilogue as a pass of its own over what the product wrote
static void gemm_and_pass(const Layer *l) {
    const Epilogue epilogue = bias_and_gelu(l);
    const int width = l->k->tile_columns;
    float row[32];
    gemm_packed(l);
    for (int i = 0; i < l->rows; i++)
        for (int j = 0; j < N; j += width) {
            const Operand at = operand_at(l->c, (size_t)i * N + (size_t)j);
            for (int c = 0; c < width && at.bf16; c++) row[c] = bf16_to_float(((const uint16_t *)at.p)[c]);
            if (!at.bf16) memcpy(row, at.p, (size_t)width * sizeof(float));
            l->k->finish(1, width, row, 0, l->c, N, (size_t)i, (size_t)j, &epilogue);
        }
}

// ---------------------------------------------------------------- measuring

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// GFLOP/s of the best run within some 0.2 s, of three at least
static double gflops(void (*step)(const Layer *), const Layer *l) {
    double best = INFINITY, total = 0;
    for (int run = 0; run < 3 || total < 0.2; run++) {
        const double start = thread_seconds();
        step(l);
        const double seconds = thread_seconds() - start;
        best = fmin(best, seconds);
        total += seconds;
    }
    return 2e-9 * l->rows * N * K / best;
}

static double number(Operand x, size_t i) {
    return x.bf16 ? bf16_to_float(((const uint16_t *)x.p)[i]) : ((const float *)x.p)[i];
}

// The same, of a step that leaves A · B in C
static double checked(const char *name, void (*step)(const Layer *), const Layer *l) {
    const double speed = gflops(step, l);
    const int rows = step == gemm_packed || step == gemm_and_packing || step == tile_and_panels
                         ? l->rows
                         : l->rows / 12 * 12;
    for (int s = 0; s < 64; s++) {
        const int i = s * (rows - 1) / 63, j = s * (N - 1) / 63;
        double sum = 0, size = 0;
        for (int k = 0; k < K; k++) {
            const double term = number(l->a, (size_t)(i * K + k)) * number(l->w, (size_t)(k * N + j));
            sum += term;
            size += fabs(term);
        }
        const double error =
            fabs(number(l->c, (size_t)i * N + (size_t)j) - sum) - (l->c.bf16 ? fabs(sum) / 256 : 0);
        if (!(error <= 1e-6 * size))
            die(EXIT_RUNTIME, "%s, %s: entry (%d,%d) is off by %g", name, l->k->name, i, j, error);
    }
    return speed;
}

// n numbers of mean 0, which repeat
static Operand draw(uint64_t key, size_t n, double deviation, bool bf16) {
    enum { DRAWN = 65521 };
    const Operand x = operand(aligned_malloc_check(n * operand_bytes(bf16)), bf16);
    Rand r = rand_for(key, 0, 0);
    for (size_t i = 0; i < n; i++) {
        if (i >= DRAWN) memcpy(operand_at(x, i).p, operand_at(x, i - DRAWN).p, operand_bytes(bf16));
        else if (bf16) ((uint16_t *)x.p)[i] = float_to_bf16((float)(deviation * rand_normal(&r)));
        else ((float *)x.p)[i] = (float)(deviation * rand_normal(&r));
    }
    return x;
}

static Layer layer_open(const Kernels *k, bool bf16) {
    const size_t wide = (size_t)M * N;
    Layer l = {k, draw(1, (size_t)M * K, 1, bf16), draw(2, (size_t)K * N, 1 / sqrt(K), bf16),
        draw(3, wide, 1, bf16), draw(4, wide, 1, bf16), NULL, (float *)draw(5, N, 1, false).p,
        (float *)draw(6, (size_t)N * K, 1, false).p, M};
    l.panels = (uint32_t *)aligned_malloc_check(panel_pitch(k, K, bf16) * (size_t)panel_count(k, N) * 4);
    pack_panels(k, l.panels, operand_matrix(l.w, N, 1), K, N, 0, K, 0, panel_count(k, N), bf16);
    return l;
}

static void layer_close(Layer *l) {
    free(l->a.p);
    free(l->w.p);
    free(l->c.p);
    free(l->hidden.p);
    free(l->bias);
    free(l->gradient);
    free(l->panels);
}

static void steps(const Kernels *k, bool avx512) {
    Layer l = layer_open(k, false);
    printf("| step | GFLOP/s |\n|---|---|\n");
    l.rows = FEW;
    printf("| three loops | %.2f |\n", checked("three loops", three_loops, &l));
    printf("| loops reordered | %.1f |\n", checked("loops reordered", loops_reordered, &l));
#if defined(__x86_64__)
    if (avx512) {
        printf("| loops reordered, AVX-512 | %.1f |\n",
            checked("loops reordered, AVX-512", loops_reordered_avx512, &l));
        l.rows = M;
        printf("| register tile | %.0f |\n", checked("register tile", register_tile_avx512, &l));
    }
#endif
    l.rows = M;
    printf("| + panels | %.0f |\n", checked("panels", tile_and_panels, &l));
    printf("| + cache blocks: gemm() | %.0f |\n", checked("gemm", gemm_and_packing, &l));
    printf("| + panels packed before | %.0f |\n", checked("gemm, packed", gemm_packed, &l));
    (void)avx512;
    layer_close(&l);
}

// One row: a kind of product in all its uses
static void kernel_row(const Kernels *k, bool bf16) {
    Layer l = layer_open(k, bf16);
    if (k->tile_columns < 32) l.rows = M / 4; // slow ones
    const double tile = gflops(tile_in_l1, &l);
    const double before = checked("gemm, packed", gemm_packed, &l);
    const double now = checked("gemm", gemm_and_packing, &l);
    printf(
        "| %s, %s | %.0f | %.0f | %.0f |", k->products[bf16].isa, bf16 ? "bf16" : "fp32", tile, before, now);
    printf(" %.0f |", gflops(weight_gradient, &l));
    const double fused = gflops(gemm_with_epilogue, &l), apart = gflops(gemm_and_pass, &l);
    printf(" %.0f | %.0f |\n", fused, apart);
    layer_close(&l);
}

int main(void) {
    const Kernels *list[KERNELS_MOST];
    const int count = kernels_list(list);
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    steps(list[count - 1], list[count - 1]->tile_columns == 32);
    printf("\n| kernel, operands | tile alone, in L1 | weight packed before | weight packed in the call | "
           "weight gradient | bias and GELU at the end "
           "| as a pass of their own |\n|---|---|---|---|---|---|---|\n");
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int i = 0; i < count; i++)
            if (i == 0 || list[i]->products[bf16].tile != list[i - 1]->products[bf16].tile)
                kernel_row(list[i], bf16);
    return 0;
}
