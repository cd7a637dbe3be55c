// Matrix products on a CPU.
//
// Every product is one function: C (M,N) = A (M,K) · B (K,N), A and B with any strides, so that forward,
// input gradient and weight gradient need no transposed copies:
//     forward           out (M,N)  = inp (M,K) · weight (N,K)ᵀ
//     input gradient    dinp (M,K) = dout (M,N) · weight (N,K)
//     weight gradient   dweight (N,K) += dout (M,N)ᵀ · inp (M,K)
// Operands are fp32 or bf16, sums always fp32. Both are counted in units of 32 bits: one fp32, or two bf16
// that are neighbours along K, so that one text serves both. B is packed into panels as wide as a register
// tile, units one behind the other; what is multiplied often, the weights, is packed once a step. A is read
// straight from memory, or packed into strips as high as a tile where its rows are not contiguous (Goto and
// van de Geijn 2008). A block of a panel stays in L1, the block of A that meets it in L2; the next block of
// the panel is on its way while tiles compute. Every tile of C has one owner and K is cut at fixed places:
// the same bits for any number of threads. What happens to a sum before it is written (bias, residual,
// activation) happens while it is in L2.
#ifndef CLIPC_MATMUL_H
#define CLIPC_MATMUL_H

#include "clipc/math/isa.h"   // Kernels, Operand, TileEnd
#include "clipc/base/utils.h" // aligned_malloc_check, round_up; sysconf

#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    UNIT_BLOCK = 16,    // packing goes by blocks of 16 x 16 units
    GEMM_ROWS = 256,    // of A that are taken at a time, at most
    GEMM_PANELS = 8,    // packed at a time,
    GEMM_STRETCH = 128, // and rows of B
    GEMM_GROUP = 4,     // panels whose sums are written together
    GEMM_K_MOST = 768   // units of K at a time where the end allows it: the more rows of A stay in L2
};

// A matrix with any strides. As right side of a product it may be packed already.
typedef struct {
    Operand x;
    size_t row, col;        // entries from one row, one column to the next
    const uint32_t *panels; // from pack_panels(), in the type that the left side has; NULL: not packed
    size_t pitch;           // units from one panel to the next
    bool
        // rows end in zeros up to a multiple of 32 entries: they can be read in whole steps where they are
        padded;
} Matrix;

static inline Matrix operand_matrix(Operand x, size_t row, size_t col) {
    Matrix m = {x, row, col, NULL, 0, false};
    return m;
}
static inline Matrix matrix(const float *p, size_t row, size_t col) {
    return operand_matrix(fp32(p), row, col);
}

static inline int gemm_least(int a, int b) { return a < b ? a : b; }
static inline int unit_entries(bool bf16) { return bf16 ? 2 : 1; }
static inline int units_of(int K, bool bf16) { return (K + unit_entries(bf16) - 1) / unit_entries(bf16); }

// ---------------------------------------------------------------- packing

// A stretch of a matrix along K and across, for packing: entry (k, c) of K x N.
typedef struct {
    Operand x;
    size_t along, across; // entries from one k, one c to the next
    int K, N;
} Source;

// Where a block of units goes: unit u of column c to p[u * pitch + c], or with `columns` to p[c * pitch + u].
typedef struct {
    uint32_t *p;
    size_t pitch;
    bool columns;
} Destination;

// Units first … last-1 of columns 0 … n-1 by single entries, in whichever order; entries behind K are zero.
// For what the kernels cannot take: no entries that are neighbours, half a unit.
static inline void pack_entries(
    Destination to, const Source *s, int k, int c, int n, int first, int last, bool bf16) {
    const int e = unit_entries(bf16);
    for (int u = first; u < last; u++)
        for (int j = 0; j < n; j++) {
            uint16_t halves[2] = {0, 0};
            float x = 0;
            for (int i = 0; i < e && k + e * u + i < s->K; i++) {
                const size_t at = (size_t)(k + e * u + i) * s->along + (size_t)(c + j) * s->across;
                if (s->x.bf16) halves[i] = ((const uint16_t *)s->x.p)[at];
                else {
                    x = ((const float *)s->x.p)[at];
                    halves[i] = float_to_bf16(x);
                }
            }
            memcpy(to.p + (to.columns ? (size_t)j * to.pitch + (size_t)u : (size_t)u * to.pitch + (size_t)j),
                bf16 ? (const void *)halves : (const void *)&x, 4);
        }
}

// Packs 16 units from entry k on of n <= 16 columns from c on, zeros behind the matrix' edges.
static inline void pack_block(
    const Kernels *kernels, Destination to, const Source *s, int k, int c, int n, bool bf16) {
    const int e = unit_entries(bf16);
    const int columns = gemm_least(n, s->N - c);
    const int whole = s->along == 1 || s->across == 1 ? gemm_least(UNIT_BLOCK, (s->K - k) / e) : 0;
    const bool turn = (s->along == 1) != to.columns; // is the order that comes by itself the wrong one?
    uint32_t natural[UNIT_BLOCK * UNIT_BLOCK], turned[UNIT_BLOCK * UNIT_BLOCK];
    const Destination here = {turn ? natural : to.p, turn ? (size_t)UNIT_BLOCK : to.pitch, s->along == 1};
    if (turn ? columns < UNIT_BLOCK || whole < UNIT_BLOCK : columns < n || whole < UNIT_BLOCK)
        for (int i = 0; i < (turn ? UNIT_BLOCK : to.columns ? n : UNIT_BLOCK); i++)
            memset(here.p + (size_t)i * here.pitch, 0, (size_t)(turn || to.columns ? UNIT_BLOCK : n) * 4);
    if (columns > 0) {
        const Operand from = operand_at(s->x, (size_t)k * s->along + (size_t)c * s->across);
        if (here.columns) kernels->units_along(here.p, here.pitch, from, s->across, whole, columns, bf16);
        else kernels->units_across(here.p, here.pitch, from, s->along, whole, columns, bf16);
        if (whole < UNIT_BLOCK)
            pack_entries(
                here, s, k, c, columns, whole, gemm_least(UNIT_BLOCK, units_of(s->K - k, bf16)), bf16);
    }
    if (turn && n == UNIT_BLOCK) kernels->transpose(to.p, to.pitch, natural);
    else if (turn) {
        kernels->transpose(turned, UNIT_BLOCK, natural);
        for (int i = 0; i < (to.columns ? n : UNIT_BLOCK); i++)
            memcpy(to.p + (size_t)i * to.pitch, turned + i * UNIT_BLOCK,
                (size_t)(to.columns ? UNIT_BLOCK : n) * 4);
    }
}

// Units from one panel of a (K,N) matrix to the next.
static inline size_t panel_pitch(const Kernels *kernels, int K, bool bf16) {
    return round_up((size_t)units_of(K, bf16), UNIT_BLOCK) * (size_t)kernels->tile_columns;
}
static inline int panel_count(const Kernels *kernels, int N) {
    return (N + kernels->tile_columns - 1) / kernels->tile_columns;
}

// Packs rows k0 … k1-1 (k0 a multiple of 32) of the panels first … last-1 of B (K,N).
static inline void pack_panels(const Kernels *kernels, uint32_t *panels, Matrix B, int K, int N, int k0,
    int k1, int first, int last, bool bf16) {
    const Source source = {B.x, B.row, B.col, K, N};
    const int e = unit_entries(bf16), width = kernels->tile_columns, n = gemm_least(width, UNIT_BLOCK);
    const size_t pitch = panel_pitch(kernels, K, bf16);
    for (int k = k0; k < k1; k += UNIT_BLOCK * e) // all of a stretch of rows before the next ones
        for (int p = first; p < last; p++)
            for (int c = 0; c < width; c += n) {
                const Destination to = {
                    panels + (size_t)p * pitch + (size_t)(k / e) * width + c, (size_t)width, false};
                pack_block(kernels, to, &source, k, p * width + c, n, bf16);
            }
}

// Packs `rows` rows of A (M,K) from `row` on into strips of `strip` units, tile behind tile: units in the
// order that the tile reads them.
static inline void pack_strips(const Kernels *kernels, uint32_t *strips, size_t strip, Matrix A, int M, int K,
    int row, int rows, bool bf16) {
    const TileKernel *t = &kernels->products[bf16];
    const Source source = {A.x, A.col, A.row, K, M};
    const int e = unit_entries(bf16), n = gemm_least(t->rows, UNIT_BLOCK);
    for (int k = 0; k < K; k += UNIT_BLOCK * e)
        for (int i = 0; i < rows; i += t->rows)
            for (int c = 0; c < t->rows; c += n) {
                uint32_t *at = strips + (size_t)(i / t->rows) * strip + (size_t)(k / e) * t->rows;
                const Destination by_unit = {at + c, (size_t)t->rows, false};
                const Destination by_row = {at + (size_t)c * UNIT_BLOCK, UNIT_BLOCK, true};
                pack_block(kernels, t->step == 1 ? by_unit : by_row, &source, k, row + i + c, n, bf16);
            }
}

// Copies `rows` rows of K numbers side by side into rows `pitch` units apart, zeros behind their ends and up
// to `all` rows.
static inline void copy_rows(
    uint32_t *to, size_t pitch, Operand x, size_t distance, int K, int rows, int all) {
    const size_t bytes = (size_t)K * operand_bytes(x.bf16), row = 4 * pitch;
    for (int i = 0; i < all; i++, to += pitch) {
        const size_t copied = i < rows ? bytes : 0;
        if (copied) memcpy(to, operand_at(x, (size_t)i * distance).p, copied);
        memset((char *)to + copied, 0, row - copied);
    }
}

// ---------------------------------------------------------------- products

// A product in progress.
typedef struct {
    const Kernels *kernels;
    const TileKernel *t;
    Operand C;
    size_t ldc;
    Matrix A;
    int M, N, K;
    bool bf16, direct; // direct: whole tiles of A are read where they are
    int rows, units;   // rows of A that are taken at a time; units of K
    size_t pitch;      // units from row to row of A where its rows are copied, an odd number of cache lines
    const TileEnd *end;
} Gemm;

// Whether the rows of a tile, `bytes` apart, fall into the same few sets of L1 (64 sets of 64 bytes, 8 or 12
// ways) and drive each other out.
static inline bool rows_collide(size_t bytes, int rows) {
    const size_t lines = bytes / 64 | 64,
                 step = lines & (~lines + 1); // sets between two of them: the largest power of two in it
    return (size_t)rows * step > 8 * 64;
}

// Bytes of a core's L2.
static inline long l2_bytes(void) {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return 2 << 20; // the system does not say
}

// Rows of A (of so many units) that fit into a quarter of L2, whole tiles, three at least.
static inline int gemm_fitting_rows(const TileKernel *t, int units) {
    const long fit = l2_bytes() / 4 / (4 * units), least = 3 * t->rows;
    return gemm_least(GEMM_ROWS, (int)(fit > least ? fit : least)) / t->rows * t->rows;
}

// rows: of A that are taken at a time, whole tiles
static inline Gemm gemm_plan(const Kernels *kernels, Operand C, size_t ldc, Matrix A, int M, int N, int K,
    int rows, const TileEnd *end) {
    const bool bf16 = A.x.bf16;
    const TileKernel *t = &kernels->products[bf16];
    const int units = units_of(K, bf16);
    const bool whole = A.padded || K % (unit_entries(bf16) * t->step) == 0;
    const bool collide = units >= t->k_block && rows_collide(A.row * operand_bytes(bf16), t->rows);
    const Gemm g = {kernels, t, C, ldc, A, M, N, K, bf16, A.col == 1 && whole && !collide, rows, units,
        (size_t)((units + UNIT_BLOCK - 1) / UNIT_BLOCK | 1) * UNIT_BLOCK, end};
    return g;
}

// Where tiles of A are read: the first, bytes from there down a row and along a unit, and those that a tile
// goes from row to row and step to step.
typedef struct {
    const char *p;
    size_t down, along, row, step;
} Left;

static inline Left gemm_where_it_is(const Gemm *g, int first) {
    const size_t row = g->A.row * operand_bytes(g->bf16);
    const Left left = {(const char *)g->A.x.p + (size_t)first * row, row, 4, row, 4 * (size_t)g->t->step};
    return left;
}
static inline Left gemm_in_strips(const Gemm *g,
    const uint32_t *strips) { // rows copied, or units packed in the order that the tile reads them
    const size_t step = 4 * (size_t)g->t->step, rows = (size_t)g->t->rows, row = 4 * g->pitch;
    const Left copied = {(const char *)strips, row, 4, row, step};
    const Left packed = {(const char *)strips, row, 4 * rows, step, step * rows};
    return g->A.col == 1 ? copied : packed;
}

// Whether a tile of m rows is in the strips: with step > 1 also the last one of a block, which has fewer
// rows.
static inline bool gemm_reads_strip(const Gemm *g, int m) {
    return !g->direct || (g->t->step > 1 && m < g->t->rows);
}

static inline void gemm_pack_strips(const Gemm *g, uint32_t *strips, int row, int rows) {
    const int tile = g->t->rows, whole = g->direct ? rows / tile * tile : 0, left = rows - whole;
    if (left == 0 || !gemm_reads_strip(g, left)) return;
    if (g->A.col != 1)
        pack_strips(g->kernels, strips, g->pitch * (size_t)tile, g->A, g->M, g->K, row, rows, g->bf16);
    else
        copy_rows(strips + (size_t)whole * g->pitch, g->pitch,
            operand_at(g->A.x, (size_t)(row + whole) * g->A.row), g->A.row, g->K, left,
            (left + tile - 1) / tile * tile);
}

// Floats of sums that a panel needs in gemm_block(), units of its strips.
static inline size_t gemm_sums(const Gemm *g) {
    return (size_t)(g->rows + g->t->rows) * g->kernels->tile_columns;
}
static inline size_t gemm_strips(const Gemm *g) { return (size_t)(g->rows + g->t->rows) * g->pitch; }

// Rows row … row+rows-1 of C by the columns of panels first … last-1, the first at `panels`. The sums of all
// of them are complete before the first is written: rows of C lie pages apart, and pieces of a line or two
// would cost as much as the product.
static inline void gemm_block(const Gemm *g, int row, int rows, const uint32_t *strips, int first, int last,
    const uint32_t *panels, size_t pitch, float *sums) {
    const TileKernel *t = g->t;
    const int width = g->kernels->tile_columns;
    const size_t room = gemm_sums(g);
    const Left there = gemm_where_it_is(g, row), strip = gemm_in_strips(g, strips);
    for (int p = 0; p < last - first; p++)
        for (int u = 0; u < g->units; u += t->k_block) {
            const int depth = gemm_least(g->units - u, t->k_block);
            const int steps = (depth + t->step - 1) / t->step;
            const uint32_t *b = panels + (size_t)p * pitch + (size_t)u * width;
            for (int i = 0; i < rows; i += t->rows) {
                const int m = gemm_least(rows - i, t->rows);
                const char *next =
                    (const char *)(b + (size_t)depth * width) + (size_t)(i / t->rows) * FETCHED;
                const Left *a = gemm_reads_strip(g, m) ? &strip : &there;
                t->tile(m, steps, a->p + (size_t)i * a->down + (size_t)u * a->along, a->row, a->step, b,
                    sums + (size_t)p * room + (size_t)i * width, u > 0, next);
            }
        }
    g->kernels->finish(rows, gemm_least(g->N, last * width) - first * width, sums, room, g->C, g->ldc,
        (size_t)row, (size_t)first * width, g->end);
}

// Around a thread's products.
static inline void products_begin(const Kernels *kernels, bool bf16) {
    if (bf16 && kernels->begin) kernels->begin();
}
static inline void products_end(const Kernels *kernels, bool bf16) {
    if (bf16 && kernels->end) kernels->end();
}

// How many parts the panels are cut into, so that there is work for all threads.
static inline int gemm_parts(int row_blocks, int panels) {
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    return gemm_least(panels, threads == 1 ? 1 : (4 * threads + row_blocks - 1) / row_blocks);
}

// C (M,N), rows ldc apart, = A (M,K) · B (K,N), and what `end` says. In A's type; B may be fp32 beside an A
// of bf16. By all threads; call it from outside of parallel regions.
static inline void gemm(
    const Kernels *kernels, Operand C, size_t ldc, Matrix A, Matrix B, int M, int N, int K, TileEnd end) {
    const int entries = unit_entries(A.x.bf16);
    const int pieces = (units_of(K, A.x.bf16) + GEMM_K_MOST - 1) / GEMM_K_MOST;
    const bool sum_only =
        !C.bf16 && !end.activated &&
        !end.hidden; // bias and residual come with the first piece, an activation needs the whole sum
    if (pieces > 1 && sum_only) {
        const int piece = (int)round_up((size_t)((K + pieces - 1) / pieces), (size_t)UNIT_BLOCK * 2);
        for (int k = 0; k < K; k += piece) {
            Matrix a = A, b = B;
            a.x = operand_at(A.x, (size_t)k * A.col);
            b.x = operand_at(B.x, (size_t)k * B.row);
            if (B.panels) b.panels = B.panels + (size_t)(k / entries) * (size_t)kernels->tile_columns;
            const TileEnd more = {true, NULL, NULL, NULL, NULL, false};
            gemm(kernels, C, ldc, a, b, M, N, gemm_least(K - k, piece), k ? more : end);
        }
        return;
    }
    const Gemm g = gemm_plan(kernels, C, ldc, A, M, N, K,
        gemm_fitting_rows(&kernels->products[A.x.bf16], units_of(K, A.x.bf16)), &end);
    const int panels = panel_count(kernels, N);
    const int row_blocks = (M + g.rows - 1) / g.rows;
    const int parts = gemm_parts(row_blocks, panels);
    const size_t pitch = B.panels ? B.pitch : panel_pitch(kernels, K, g.bf16);
    uint32_t *packed = B.panels ? NULL : (uint32_t *)aligned_malloc_check((size_t)panels * pitch * 4);
#pragma omp parallel
    {
        float *sums = (float *)aligned_malloc_check(GEMM_GROUP * gemm_sums(&g) * sizeof(float));
        uint32_t *strips = (uint32_t *)aligned_malloc_check(gemm_strips(&g) * 4);
        products_begin(kernels, g.bf16);
        if (packed) {
            const int groups = (panels + GEMM_PANELS - 1) / GEMM_PANELS;
            const int stretches = (K + GEMM_STRETCH - 1) / GEMM_STRETCH;
#pragma omp for schedule(dynamic)
            for (int item = 0; item < groups * stretches; item++) {
                const int p = item % groups * GEMM_PANELS, k = item / groups * GEMM_STRETCH;
                pack_panels(kernels, packed, B, K, N, k, gemm_least(k + GEMM_STRETCH, K), p,
                    gemm_least(p + GEMM_PANELS, panels), g.bf16);
            }
        }
        int row_of_strips = -1;
#pragma omp for schedule(dynamic)
        for (int item = 0; item < row_blocks * parts; item++) { // neighbours share the rows of A
            const int row = item / parts * g.rows;
            const int part = item % parts;
            const int rows = gemm_least(M - row, g.rows);
            if (row != row_of_strips) gemm_pack_strips(&g, strips, row_of_strips = row, rows);
            const int last = panels * (part + 1) / parts;
            for (int j = panels * part / parts; j < last; j += GEMM_GROUP)
                gemm_block(&g, row, rows, strips, j, gemm_least(j + GEMM_GROUP, last),
                    (packed ? packed : B.panels) + (size_t)j * pitch, pitch, sums);
        }
        products_end(kernels, g.bf16);
        free(sums);
        free(strips);
    }
    free(packed);
}

// The same by the calling thread alone, for products within a parallel region (one head of attention).
// Between products_begin() and products_end() of the operands' type. `scratch`: room for
// gemm_serial_scratch() floats for the largest M and K that come.
static inline size_t gemm_serial_scratch(const Kernels *kernels, int M, int K) {
    const size_t tallest =
        (size_t)(kernels->products[0].rows > kernels->products[1].rows ? kernels->products[0].rows
                                                                       : kernels->products[1].rows);
    const size_t rows = (size_t)gemm_least(M, GEMM_ROWS) + tallest;
    const size_t depth = round_up((size_t)K, UNIT_BLOCK) + UNIT_BLOCK;
    return rows * (size_t)kernels->tile_columns + rows * depth + depth * (size_t)kernels->tile_columns;
}

static inline void gemm_serial(const Kernels *kernels, float *scratch, Operand C, size_t ldc, Matrix A,
    Matrix B, int M, int N, int K, TileEnd end) {
    const int tile = kernels->products[A.x.bf16].rows;
    const int most = GEMM_ROWS / tile * tile;
    const int width = kernels->tile_columns;
    const Gemm g = gemm_plan(kernels, C, ldc, A, M, N, K, most, &end);
    const size_t rows_at_most = (size_t)gemm_least(M, most) + (size_t)g.t->rows;
    const size_t pitch = panel_pitch(kernels, K, g.bf16);
    uint32_t *panel = (uint32_t *)scratch, *strips = panel + pitch;
    float *sums = scratch + pitch + rows_at_most * g.pitch;
    for (int row = 0; row < M; row += most) {
        const int rows = gemm_least(M - row, most);
        gemm_pack_strips(&g, strips, row, rows);
        for (int j = 0; j < panel_count(kernels, N); j++) {
            const Matrix columns = operand_matrix(operand_at(B.x, (size_t)j * width * B.col), B.row, B.col);
            pack_panels(kernels, panel, columns, K, N - j * width, 0, K, 0, 1, g.bf16);
            gemm_block(&g, row, rows, strips, j, j + 1, panel, pitch, sums);
        }
    }
}

// out (M,N) = a (M,K) · b (N,K)ᵀ
static inline void matmul_nt(
    const Kernels *kernels, float *out, const float *a, const float *b, int M, int N, int K) {
    const TileEnd set = {false, NULL, NULL, NULL, NULL, false};
    gemm(kernels, fp32(out), (size_t)N, matrix(a, (size_t)K, 1), matrix(b, 1, (size_t)K), M, N, K, set);
}

#endif
