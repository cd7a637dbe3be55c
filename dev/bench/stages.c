// The stages of a step compared with the machine: matrix products with the register peak and with OpenBLAS,
// the other stages with the bandwidth of a copy. Prints Markdown tables for doc/performance.md; `make bench`
// runs it before bench.sh's whole steps.
//
//     build/bench_stages
//     build/bench_stages forward|input|weight RxCxO fp32|amp_bf16
//
// The first form takes under 2 minutes and uses OMP_NUM_THREADS threads; the comparison with OpenBLAS uses
// one thread for both. The second form is for peer.py: one product, as many times as each line on stdin says.
//
// Times are the best of several runs, since other load can only make them longer. A single thread is measured
// by its own CPU time, which other load hardly changes: OMP_NUM_THREADS=1 gives figures even on a busy
// machine.
#define CLIP_WITHOUT_MAIN // without the main() of
#include "train_clip.c"

#include <dlfcn.h>

enum { CBLAS_ROWS = 101, CBLAS_PLAIN = 111, CBLAS_TURNED = 112 };
typedef void (*Sgemm)(
    int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);

static int threads_now(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double clock_now(void) { return threads_now() == 1 ? thread_seconds() : seconds_now(); }

static void set_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

// ---------------------------------------------------------------- what the registers allow

// Returns the operations done; *sink keeps the compiler from leaving them out.
typedef double (*Peak)(int rounds, float *sink);

#if defined(__x86_64__)
#define PEAK_LOOP(vec, set, op, count, flops)     \
    vec c[count], a = set;                        \
    UNROLL                                        \
    for (int i = 0; i < count; i++) c[i] = a;     \
    for (int r = 0; r < rounds; r++) UNROLL       \
    for (int i = 0; i < count; i++) {             \
        op;                                       \
        __asm__ volatile("" : "+v"(c[i]));        \
    }                                             \
    UNROLL                                        \
    for (int i = 1; i < count; i++) c[0] += c[i]; \
    *sink = c[0][0];                              \
    return (double)rounds * count * flops;

// clang-format off
TARGET_BEGIN("avx2,fma")
static double peak_avx2(int rounds, float *sink) {
    PEAK_LOOP(__m256, _mm256_set1_ps(1e-3f), c[i] = _mm256_fmadd_ps(a, a, c[i]), 12, 16)
}
TARGET_END
TARGET_BEGIN("avx512f,fma")
static double peak_avx512(int rounds, float *sink) {
    PEAK_LOOP(__m512, _mm512_set1_ps(1e-3f), c[i] = _mm512_fmadd_ps(a, a, c[i]), 16, 32)
}
TARGET_END
TARGET_BEGIN("avx512f,avx512bf16")
static double peak_avx512_bf16(int rounds, float *sink) {
    PEAK_LOOP(__m512, _mm512_set1_ps(1e-3f), c[i] = _mm512_dpbf16_ps(c[i], (__m512bh)a, (__m512bh)a), 16, 64)
}
TARGET_END
TARGET_BEGIN("amx-tile,amx-bf16,avx512f")
    // clang-format on
    static double peak_amx(int rounds, float *sink) {
    float zeros[16 * 16] = {0};
    begin_amx();
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    for (int r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, zeros, 64);
    end_amx();
    *sink = zeros[0];
    return rounds * 4.0 * 2 * 16 * 16 * 32;
}
TARGET_END
#endif

static Peak peak_of(const Kernels *k, bool bf16) {
#if defined(__x86_64__)
    if (bf16 && strcmp(k->name, "amx") == 0) return peak_amx;
    if (bf16 && strcmp(k->name, "avx512_bf16") == 0) return peak_avx512_bf16;
    if (strcmp(k->products[0].isa, "avx512") == 0) return peak_avx512;
    if (strcmp(k->products[0].isa, "avx2") == 0) return peak_avx2;
#endif
    (void)k;
    (void)bf16;
    return NULL;
}

// GFLOP/s of all threads together, each in the time that it has run; 0: not known here
static double peak_gflops(const Kernels *k, bool bf16) {
    const Peak peak = peak_of(k, bf16);
    double best = 0;
    for (int run = 0; peak && run < 8; run++) {
        double rate = 0;
#pragma omp parallel reduction(+ : rate)
        {
            float sink;
            const double start = thread_seconds(), done = peak(1 << 20, &sink);
            rate += 1e-9 * done / (thread_seconds() - start);
        }
        best = fmax(best, rate);
    }
    return best;
}

// ---------------------------------------------------------------- matrix products

// A layer: out (R,O) = inp (R,C) · weight (O,C)ᵀ, its three products, and the memory that they take in both
// types.
typedef struct {
    const char *name;
    int R, C, O;
} Shape;

typedef struct {
    const Kernels *k;
    Shape s;
    Operand inp, out; // (R,C), (R,O)
    float *w, *dw;    // (O,C)
    Linear layer;
    Sgemm sgemm; // NULL without OpenBLAS
} Product;

enum { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, PASSES };

static void product_ours(const Product *p, int pass) {
    const Linear *w = &p->layer;
    if (pass == FORWARD) linear_forward(p->out, p->inp, w, p->s.R);
    else if (pass == INPUT_GRADIENT) linear_backward_input(p->inp, p->out, w, p->s.R);
    else linear_backward_weight(w, p->out, p->inp, p->s.R, false);
}

static void product_blas(const Product *p, int pass) {
    const Shape s = p->s;
    float *inp = (float *)p->inp.p, *out = (float *)p->out.p;
    if (pass == FORWARD)
        p->sgemm(CBLAS_ROWS, CBLAS_PLAIN, CBLAS_TURNED, s.R, s.O, s.C, 1, inp, s.C, p->w, s.C, 0, out, s.O);
    else if (pass == INPUT_GRADIENT)
        p->sgemm(CBLAS_ROWS, CBLAS_PLAIN, CBLAS_PLAIN, s.R, s.C, s.O, 1, out, s.O, p->w, s.C, 0, inp, s.C);
    else p->sgemm(CBLAS_ROWS, CBLAS_TURNED, CBLAS_PLAIN, s.O, s.C, s.R, 1, out, s.O, inp, s.C, 0, p->dw, s.C);
}

static double product_seconds(void (*run)(const Product *, int), const Product *p, int pass) {
    const double start = clock_now();
    run(p, pass);
    return clock_now() - start;
}

// GFLOP/s of the best of at least 4 runs, in turns where there are two
static void product_gflops(
    double gflops[2], void (*const run[2])(const Product *, int), const Product *p, int pass) {
    double best[2] = {INFINITY, INFINITY}, total = 0;
    for (int i = 0; i < 4 || total < 0.15; i++)
        for (int which = 0; which < 2 && run[which]; which++) {
            const double seconds = product_seconds(run[which], p, pass);
            best[which] = fmin(best[which], seconds);
            total += seconds;
        }
    for (int which = 0; which < 2; which++)
        gflops[which] = 2e-9 * p->s.R * (double)p->s.C * p->s.O / best[which];
}

// Entries around 0 small enough that no sum grows
static void *draw(size_t n, bool bf16) {
    void *x = aligned_malloc_check(n * operand_bytes(bf16));
    for (size_t i = 0; i < n; i++) {
        const float value = ((float)(i * 2654435761u % 1009) - 504) / 5e4f;
        if (bf16) ((uint16_t *)x)[i] = float_to_bf16(value);
        else ((float *)x)[i] = value;
    }
    return x;
}

static Product product_create(const Kernels *k, Shape s, bool bf16, Sgemm sgemm) {
    const size_t R = (size_t)s.R, C = (size_t)s.C, O = (size_t)s.O;
    float *w = (float *)draw(O * C, false);
    uint32_t *forward =
        (uint32_t *)aligned_malloc_check(4 * panel_pitch(k, s.C, bf16) * (size_t)panel_count(k, s.O));
    uint32_t *backward =
        (uint32_t *)aligned_malloc_check(4 * panel_pitch(k, s.O, bf16) * (size_t)panel_count(k, s.C));
    pack_panels(k, forward, matrix(w, 1, C), s.C, s.O, 0, s.C, 0, panel_count(k, s.O), bf16);
    pack_panels(k, backward, matrix(w, C, 1), s.O, s.C, 0, s.O, 0, panel_count(k, s.C), bf16);
    float *dw = (float *)draw(O * C, false);
    const Backend b = {.kernels = k, .bf16 = bf16};
    const Linear layer =
        linear_bind(&b, w, NULL, dw, NULL, (const float *)forward, (const float *)backward, s.C, s.O);
    const Product p = {
        k, s, operand(draw(R * C, bf16), bf16), operand(draw(R * O, bf16), bf16), w, dw, layer, sgemm};
    return p;
}

static void product_free(Product *p) {
    free(p->inp.p);
    free(p->out.p);
    free(p->w);
    free(p->dw);
    free((void *)(uintptr_t)p->layer.forward);
    free((void *)(uintptr_t)p->layer.backward);
}

// Answers each line with the seconds of so many products, and 1000 times the first entry of the result.
static int serve_product(const Kernels *k, char **words) {
    const char *const names[PASSES] = {"forward", "input", "weight"};
    Shape s = {"", 0, 0, 0};
    int pass = 0, count;
    while (pass < PASSES && strcmp(words[0], names[pass]) != 0) pass++;
    if (pass == PASSES || sscanf(words[1], "%dx%dx%d", &s.R, &s.C, &s.O) != 3 || s.R < 1 || s.C < 1 ||
        s.O < 1)
        die(EXIT_USAGE, "usage: bench_stages forward|input|weight RxCxO PRECISION");
    Product p = product_create(k, s, strcmp(words[2], "amp_bf16") == 0, NULL);
    const Operand results[PASSES] = {p.out, p.inp, fp32(p.dw)}, result = results[pass];
    while (scanf("%d", &count) == 1) {
        const double start = seconds_now();
        for (int i = 0; i < count; i++) product_ours(&p, pass);
        printf("%.6f ", seconds_now() - start);
        printf("%.6f\n",
            1000 * (result.bf16 ? bf16_to_float(*(const uint16_t *)result.p) : *(const float *)result.p));
        fflush(stdout);
    }
    product_free(&p);
    return 0;
}

static void print_products(
    const Kernels *k, const Shape *shapes, int count, const double peak[2], Sgemm sgemm) {
    void (*const ours[2])(const Product *, int) = {product_ours, NULL};
    void (*const both[2])(const Product *, int) = {product_ours, product_blas};
    const int threads = threads_now();
    printf("\nMatrix products, GFLOP/s and share of the peak: forward, input gradient, weight gradient. The "
           "last column is fp32\nrelative to OpenBLAS, with one thread each.\n\n"
           "| rows x in x out | fp32 | amp_bf16 | relative to OpenBLAS |\n|---|---|---|---|\n");
    for (int i = 0; i < count; i++) {
        printf("| %s, %d x %d x %d ", shapes[i].name, shapes[i].R, shapes[i].C, shapes[i].O);
        double gflops[2];
        for (int bf16 = 0; bf16 < 2; bf16++) {
            Product p = product_create(k, shapes[i], bf16, sgemm);
            for (int pass = 0; pass < PASSES; pass++) {
                product_gflops(gflops, ours, &p, pass);
                printf("%s %.0f", pass ? " /" : "|", gflops[0]);
                if (peak[bf16] > 0) printf(" (%.0f%%)", 100 * gflops[0] / peak[bf16]);
            }
            putchar(' ');
            product_free(&p);
        }
        Product p = product_create(k, shapes[i], false, sgemm);
        set_threads(1);
        printf("|");
        for (int pass = 0; sgemm && pass < PASSES; pass++) {
            product_gflops(gflops, both, &p, pass);
            printf("%s %.2fx", pass ? " /" : "", gflops[0] / gflops[1]);
        }
        printf(" |\n");
        fflush(stdout);
        set_threads(threads);
        product_free(&p);
    }
}

// ---------------------------------------------------------------- what memory allows

enum { ROWS = 1600, WIDTH = 768, HIDDEN = 3072, HEADS = 12, SEQUENCE = 50, PARAMETERS = 1 << 25 };

typedef struct {
    const Kernels *k;
    float *a, *b, *c, *d; // (PARAMETERS)
    RowStats stats;       // (ROWS)
} Scratchpad;

static void copy(const Scratchpad *r) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < PARAMETERS; i += 1 << 16) memcpy(r->a + i, r->b + i, (1 << 16) * sizeof(float));
}
static void layernorm(const Scratchpad *r) {
    const LayerNorm w = {r->c, r->d, NULL, NULL, WIDTH, 1e-5f, r->k};
    layernorm_forward(fp32(r->a), r->stats, r->b, &w, ROWS);
}
static void layernorm_gradient(const Scratchpad *r) {
    const LayerNorm w = {r->d + WIDTH, r->d, r->c, r->d, WIDTH, 1e-5f, r->k};
    layernorm_backward(r->a, NULL, r->b, r->c + WIDTH, r->stats, &w, ROWS, false);
}
static void bias_gradient(const Scratchpad *r) {
    bias_backward(r->a, fp32(r->b), HIDDEN, ROWS, HIDDEN, false);
}
static void softmax(const Scratchpad *r) {
    const int ld = (int)round_up(SEQUENCE, 16);
#pragma omp parallel for schedule(static)
    for (int row = 0; row < 32 * HEADS * SEQUENCE; row++)
        r->k->softmax(r->a + (size_t)row * ld, SEQUENCE, ld, 0.125f);
}
// the epilogue of a product: bias, and GELU into a matrix of its own
static void gelu(const Scratchpad *r) {
    enum { BLOCK = 50 }; // rows
    const int width = STORE_PANELS * r->k->tile_columns;
    const Epilogue epilogue = {EPILOGUE_ACTIVATION, r->c, NULL, r->a, NULL, ACTIVATION_GELU};
#pragma omp parallel for schedule(static)
    for (int row = 0; row < ROWS; row += BLOCK)
        for (int column = 0; column < HIDDEN; column += width)
            r->k->finish(BLOCK, width, r->d, (size_t)BLOCK * (size_t)r->k->tile_columns, fp32(r->b), HIDDEN,
                (size_t)row, (size_t)column, &epilogue);
}
static void adamw(const Scratchpad *r) {
    const AdamWTerms w = {1, 0.9f, 0.1f, 0.98f, 0.02f, 1e-5f, 1, 1e-6f, 0.999f};
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < PARAMETERS; i += 1 << 16)
        r->k->adamw(r->a + i, r->b + i, r->c + i, r->d + i, 1 << 16, w);
}

static void print_rest(const Kernels *k) {
    float *mean = (float *)draw(ROWS, false), *rstd = (float *)draw(ROWS, false);
    const Scratchpad r = {k, (float *)draw(PARAMETERS, false), (float *)draw(PARAMETERS, false),
        (float *)draw(PARAMETERS, false), (float *)draw(PARAMETERS, false), {mean, rstd}};
    for (size_t i = 0; i < PARAMETERS; i++) r.d[i] = r.d[i] * r.d[i] + 1e-9f; // v of AdamW
    const double matrix_bytes = 4.0 * ROWS * WIDTH, hidden_bytes = 4.0 * ROWS * HIDDEN;
    const struct {
        const char *name;
        void (*run)(const Scratchpad *);
        double bytes;
    } stages[] = {{"copy of 128 MB", copy, 8.0 * PARAMETERS},
        {"AdamW, 28 bytes per parameter", adamw, 28.0 * PARAMETERS},
        {"LayerNorm, 1600 x 768", layernorm, 2 * matrix_bytes},
        {"LayerNorm, gradient", layernorm_gradient, 3 * matrix_bytes},
        {"bias + GELU after a product, 1600 x 3072", gelu, 2 * hidden_bytes},
        {"bias, gradient, 1600 x 3072", bias_gradient, hidden_bytes},
        {"softmax, 19,200 rows of 50", softmax, 8.0 * 32 * HEADS * SEQUENCE * 64}};
    double first = 0;
    printf(
        "\nThe other stages, in fp32: bytes they have to read and write per second. The matrices of a batch "
        "fit into the\nlast-level cache.\n\n| stage | GB/s | relative to the copy |\n|---|---|---|\n");
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        double best = INFINITY, total = 0;
        for (int run = 0; run < 5 || total < 0.2; run++) {
            const double start = clock_now();
            stages[i].run(&r);
            best = fmin(best, clock_now() - start);
            total += clock_now() - start;
        }
        const double rate = 1e-9 * stages[i].bytes / best;
        if (i == 0) first = rate;
        printf("| %s | %.1f | %.2f |\n", stages[i].name, rate, rate / first);
    }
    free(r.a);
    free(r.b);
    free(r.c);
    free(r.d);
    free(mean);
    free(rstd);
}

int main(int argc, char **argv) {
    static const Shape shapes[] = {{"B/32 image in_proj", 1600, 768, 2304}, {"out_proj", 1600, 768, 768},
        {"c_fc", 1600, 768, 3072}, {"c_proj", 1600, 3072, 768}, {"patches", 1568, 3072, 768},
        {"text in_proj", 512, 512, 1536}, {"out_proj", 512, 512, 512}, {"c_fc", 512, 512, 2048},
        {"c_proj", 512, 2048, 512}, {"B/16 image in_proj", 3152, 768, 2304}, {"out_proj", 3152, 768, 768},
        {"c_fc", 3152, 768, 3072}, {"c_proj", 3152, 3072, 768}};
    const Kernels *k = kernels_select();
    if (argc == 4) return serve_product(k, argv + 1);
    const double peak[2] = {peak_gflops(k, false), peak_gflops(k, true)};
    void *blas = dlopen("libopenblas.so.0", RTLD_NOW);
    void (*one_thread)(int) = blas ? (void (*)(int))(uintptr_t)dlsym(blas, "openblas_set_num_threads") : NULL;
    const Sgemm sgemm = one_thread ? (Sgemm)(uintptr_t)dlsym(blas, "cblas_sgemm") : NULL;
    if (one_thread) one_thread(1);
    printf("%s kernels, %d threads. ", k->name, threads_now());
    if (peak[0] > 0)
        printf("Register peak, measured: %.0f GFLOP/s fp32, %.0f bf16%s.", peak[0], peak[1],
            k->native_bf16 ? "" : " (by fp32 instructions)");
    printf("%s\n", sgemm ? "" : " No libopenblas.so.0 here.");
    print_products(k, shapes, (int)(sizeof shapes / sizeof *shapes), peak, sgemm);
    print_rest(k);
    return 0;
}
