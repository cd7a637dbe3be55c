// Matrix products on a CPU: C (M,N) = A (M,K) · B (K,N). A and B may have any strides, so that forward pass,
// input gradient and weight gradient need no transposed copies:
//     forward           out (M,N)  = inp (M,K) · weight (N,K)ᵀ
//     input gradient    dinp (M,K) = dout (M,N) · weight (N,K)
//     weight gradient   dweight (N,K) += dout (M,N)ᵀ · inp (M,K)
//
// Terms, as in BLIS (Van Zee and van de Geijn 2015; doc/matmul.md derives each step):
//     register tile   mr x nr entries of C whose sums are held in registers
//                     (mr: TileKernel.rows, nr: Kernels.tile_columns)
//     micro-panel     of B ("panel" for short): nr columns and all of K, packed in the order in which the
//                     tile reads them; of A: mr rows, packed likewise if not contiguous in memory
//     kc              depth of a panel that stays in L1 (TileKernel.k_block)
//     mc              rows of A that stay in L2 (chosen by gemm_mc())
//     epilogue        what happens to each sum before it is stored: bias, residual, activation (Epilogue)
//
// Operands are fp32 or bf16, sums always fp32. K is counted in units of 32 bits: one fp32, or two bf16 that
// are adjacent along K, so that the same code serves both. Weights are used in many products and therefore
// packed once a step. Every tile of C is computed by one thread and K is split at fixed places: the same bits
// for any number of threads.
#ifndef CLIPC_MATMUL_H
#define CLIPC_MATMUL_H

#include "clipc/base/utils.h" // aligned_malloc_check, round_up, min_int; sysconf
#include "clipc/math/isa.h"   // Kernels, Operand, Epilogue

#include <assert.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    UNIT_BLOCK = 16,  // packing works in blocks of 16 x 16 units
    GEMM_ROWS = 256,  // the largest mc
    PACK_PANELS = 8,  // panels that a thread packs at a time
    PACK_DEPTH = 128, // rows of these panels that it packs at a time
    STORE_PANELS = 4, // panels whose sums are stored together
    GEMM_K_MOST = 768 // units: longer sums are split where possible, so that more rows of A stay in L2
};

// A matrix with any strides. The B of a product may be packed already.
typedef struct {
    Operand x;
    size_t row, col;        // entries from one row, one column to the next
    const uint32_t *panels; // from pack_panels(), in A's number format; NULL: not packed
    size_t pitch;           // units from one panel to the next
    // rows end in zeros up to a multiple of 32 entries, so that the kernel can read whole steps in place
    bool padded;
} Matrix;

static inline Matrix operand_matrix(Operand x, size_t row, size_t col) {
    Matrix m = {x, row, col, NULL, 0, false};
    return m;
}
static inline Matrix matrix(const float *p, size_t row, size_t col) {
    return operand_matrix(fp32(p), row, col);
}

static inline int unit_entries(bool bf16) { return bf16 ? 2 : 1; }
static inline int units_of(int K, bool bf16) { return (K + unit_entries(bf16) - 1) / unit_entries(bf16); }

// ---------------------------------------------------------------- packing

// A matrix to be packed: entry (k, c) of K x N; columns c are those of B, or the rows of A.
typedef struct {
    Operand x;
    size_t along, across; // entries from one k, one c to the next
    int K, N;
} Source;

// Where a block of units is stored: unit u of column c in p[u * pitch + c], or with `columns` in
// p[c * pitch + u].
typedef struct {
    uint32_t *p;
    size_t pitch;
    bool columns;
} Destination;

// Packs units first … last-1 of columns 0 … n-1 entry by entry; entries past K are zero. For what the kernels
// cannot do: entries that are contiguous in neither direction, and half a unit at the end of K.
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

// Packs 16 units from entry k on of the n <= 16 columns from c on; zeros past the edges of the matrix.
static inline void pack_block(
    const Kernels *kernels, Destination to, const Source *s, int k, int c, int n, bool bf16) {
    const int e = unit_entries(bf16);
    const int columns = min_int(n, s->N - c);
    const int whole = s->along == 1 || s->across == 1 ? min_int(UNIT_BLOCK, (s->K - k) / e) : 0;
    const bool turn = (s->along == 1) != to.columns; // does the order in memory have to be transposed?
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
            pack_entries(here, s, k, c, columns, whole, min_int(UNIT_BLOCK, units_of(s->K - k, bf16)), bf16);
    }
    if (turn && n == UNIT_BLOCK) kernels->transpose(to.p, to.pitch, natural);
    else if (turn) {
        kernels->transpose(turned, UNIT_BLOCK, natural);
        for (int i = 0; i < (to.columns ? n : UNIT_BLOCK); i++)
            memcpy(to.p + (size_t)i * to.pitch, turned + i * UNIT_BLOCK,
                (size_t)(to.columns ? UNIT_BLOCK : n) * 4);
    }
}

// The size of a micro-panel of a (K,N) matrix in units; the number of its panels.
static inline size_t panel_pitch(const Kernels *kernels, int K, bool bf16) {
    return round_up((size_t)units_of(K, bf16), UNIT_BLOCK) * (size_t)kernels->tile_columns;
}
static inline int panel_count(const Kernels *kernels, int N) {
    return (N + kernels->tile_columns - 1) / kernels->tile_columns;
}

// Packs rows k0 … k1-1 (k0 a multiple of 32) of the micro-panels first … last-1 of B (K,N).
static inline void pack_panels(const Kernels *kernels, uint32_t *panels, Matrix B, int K, int N, int k0,
    int k1, int first, int last, bool bf16) {
    const Source source = {B.x, B.row, B.col, K, N};
    const int e = unit_entries(bf16), width = kernels->tile_columns, n = min_int(width, UNIT_BLOCK);
    const size_t pitch = panel_pitch(kernels, K, bf16);
    for (int k = k0; k < k1; k += UNIT_BLOCK * e) // these rows of all panels before the next rows
        for (int p = first; p < last; p++)
            for (int c = 0; c < width; c += n) {
                const Destination to = {
                    panels + (size_t)p * pitch + (size_t)(k / e) * width + c, (size_t)width, false};
                pack_block(kernels, to, &source, k, p * width + c, n, bf16);
            }
}

// Packs `rows` rows of A (M,K) from `row` on into micro-panels of `pitch` units, in the order in which the
// tile reads them.
static inline void pack_a_panels(const Kernels *kernels, uint32_t *a_panels, size_t pitch, Matrix A, int M,
    int K, int row, int rows, bool bf16) {
    const TileKernel *t = &kernels->products[bf16];
    const Source source = {A.x, A.col, A.row, K, M};
    const int e = unit_entries(bf16), n = min_int(t->rows, UNIT_BLOCK);
    for (int k = 0; k < K; k += UNIT_BLOCK * e)
        for (int i = 0; i < rows; i += t->rows)
            for (int c = 0; c < t->rows; c += n) {
                uint32_t *at = a_panels + (size_t)(i / t->rows) * pitch + (size_t)(k / e) * t->rows;
                const Destination by_unit = {at + c, (size_t)t->rows, false};
                const Destination by_row = {at + (size_t)c * UNIT_BLOCK, UNIT_BLOCK, true};
                pack_block(kernels, t->step == 1 ? by_unit : by_row, &source, k, row + i + c, n, bf16);
            }
}

// Copies `rows` rows of K contiguous numbers, `distance` entries apart, to rows `pitch` units apart. The rest
// of each row and the rows up to `all` are filled with zeros.
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

// A product: operands, sizes, blocking.
typedef struct {
    const Kernels *kernels;
    const TileKernel *t;
    Operand C;
    size_t ldc;
    Matrix A;
    int M, N, K;
    bool bf16, in_place; // in_place: whole tiles of A are read from A itself, not packed or copied
    int mc, units;       // rows of A that are multiplied at a time; K in units
    size_t pitch;        // units from one copied row of A to the next: an odd number of cache lines
    const Epilogue *epilogue;
} Gemm;

// Do the rows of a tile, `bytes` apart, fall into so few sets of L1 that they evict each other? (64 sets of
// 64-byte lines, 8 or 12 ways.)
static inline bool rows_collide(size_t bytes, int rows) {
    const size_t lines = bytes / 64 | 64;
    const size_t step = lines & (~lines + 1); // sets between two rows: the largest power of two in `lines`
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

// mc: how many rows of A, `units` deep, fill a quarter of L2; a multiple of the tile height, at least three
// tiles.
static inline int gemm_mc(const TileKernel *t, int units) {
    const long fit = l2_bytes() / 4 / (4 * units), least = 3 * t->rows;
    return min_int(GEMM_ROWS, (int)(fit > least ? fit : least)) / t->rows * t->rows;
}

static inline Gemm gemm_plan(const Kernels *kernels, Operand C, size_t ldc, Matrix A, int M, int N, int K,
    int mc, const Epilogue *epilogue) {
    const bool bf16 = A.x.bf16;
    const TileKernel *t = &kernels->products[bf16];
    const int units = units_of(K, bf16);
    const bool whole = A.padded || K % (unit_entries(bf16) * t->step) == 0;
    const bool collide = units >= t->k_block && rows_collide(A.row * operand_bytes(bf16), t->rows);
    const bool in_place = A.col == 1 && whole && !collide;
    const size_t pitch = (size_t)((units + UNIT_BLOCK - 1) / UNIT_BLOCK | 1) * UNIT_BLOCK;
    const Gemm g = {kernels, t, C, ldc, A, M, N, K, bf16, in_place, mc, units, pitch, epilogue};
    return g;
}

// How the micro-kernel addresses A: base pointer; bytes between rows and between units of the matrix; the
// bytes by which the kernel itself goes from row to row and from step to step.
typedef struct {
    const char *p;
    size_t matrix_row, matrix_unit, row, step;
} LeftAddress;

static inline LeftAddress gemm_address_in_place(const Gemm *g, int first) {
    const size_t row = g->A.row * operand_bytes(g->bf16);
    const char *p = (const char *)g->A.x.p + (size_t)first * row;
    const LeftAddress left = {p, row, 4, row, 4 * (size_t)g->t->step};
    return left;
}

// Rows that were copied unchanged, or micro-panels.
static inline LeftAddress gemm_address_packed(const Gemm *g, const uint32_t *a_panels) {
    const size_t step = 4 * (size_t)g->t->step, rows = (size_t)g->t->rows, row = 4 * g->pitch;
    const LeftAddress copied = {(const char *)a_panels, row, 4, row, step};
    const LeftAddress packed = {(const char *)a_panels, row, 4 * rows, step, step * rows};
    return g->A.col == 1 ? copied : packed;
}

// Is a tile of m rows read from the packed copy? With step > 1 (AMX) that includes the last tile of a block
// if it has fewer rows.
static inline bool gemm_reads_packed(const Gemm *g, int m) {
    return !g->in_place || (g->t->step > 1 && m < g->t->rows);
}

// Copies or packs those of `rows` rows of A from `row` on that are not read in place.
static inline void gemm_pack_rows(const Gemm *g, uint32_t *a_panels, int row, int rows) {
    const int tile = g->t->rows, whole = g->in_place ? rows / tile * tile : 0, rest = rows - whole;
    if (rest == 0 || !gemm_reads_packed(g, rest)) return;
    if (g->A.col != 1) {
        pack_a_panels(g->kernels, a_panels, g->pitch * (size_t)tile, g->A, g->M, g->K, row, rows, g->bf16);
        return;
    }
    const Operand from = operand_at(g->A.x, (size_t)(row + whole) * g->A.row);
    copy_rows(a_panels + (size_t)whole * g->pitch, g->pitch, from, g->A.row, g->K, rest,
        (rest + tile - 1) / tile * tile);
}

// Scratch for gemm_block(): floats of sums per panel; units of packed rows of A.
static inline size_t gemm_sum_floats(const Gemm *g) {
    return (size_t)(g->mc + g->t->rows) * g->kernels->tile_columns;
}
static inline size_t gemm_packed_units(const Gemm *g) { return (size_t)(g->mc + g->t->rows) * g->pitch; }

// Computes rows row … row+rows-1 of C in the columns of panels first … last-1; `panels` points to panel
// `first`. All sums are completed before the first is stored: rows of C are pages apart, and storing a cache
// line or two of each at a time would cost as much as the product.
static inline void gemm_block(const Gemm *g, int row, int rows, const uint32_t *a_panels, int first, int last,
    const uint32_t *panels, size_t pitch, float *sums) {
    const TileKernel *t = g->t;
    const int width = g->kernels->tile_columns;
    const size_t panel_sums = gemm_sum_floats(g);
    const LeftAddress in_place = gemm_address_in_place(g, row), packed = gemm_address_packed(g, a_panels);
    for (int p = 0; p < last - first; p++)
        for (int u = 0; u < g->units; u += t->k_block) {
            const int depth = min_int(g->units - u, t->k_block);
            const int steps = (depth + t->step - 1) / t->step;
            const uint32_t *b = panels + (size_t)p * pitch + (size_t)u * width;
            for (int i = 0; i < rows; i += t->rows) {
                const int m = min_int(rows - i, t->rows);
                const char *next =
                    (const char *)(b + (size_t)depth * width) + (size_t)(i / t->rows) * FETCHED;
                const LeftAddress *a = gemm_reads_packed(g, m) ? &packed : &in_place;
                const char *from = a->p + (size_t)i * a->matrix_row + (size_t)u * a->matrix_unit;
                float *to = sums + (size_t)p * panel_sums + (size_t)i * width;
                t->tile(m, steps, from, a->row, a->step, b, to, u > 0, next);
            }
        }
    g->kernels->finish(rows, min_int(g->N, last * width) - first * width, sums, panel_sums, g->C, g->ldc,
        (size_t)row, (size_t)first * width, g->epilogue);
}

// Call before the first and after the last product of a thread (AMX tile configuration).
static inline void products_begin(const Kernels *kernels, bool bf16) {
    if (bf16 && kernels->begin) kernels->begin();
}
static inline void products_end(const Kernels *kernels, bool bf16) {
    if (bf16 && kernels->end) kernels->end();
}

// Into how many parts the panels are divided, so that all threads have work.
static inline int gemm_parts(int row_blocks, int panels) {
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    return min_int(panels, threads == 1 ? 1 : (4 * threads + row_blocks - 1) / row_blocks);
}

// Packs B (K,N); the threads of the enclosing parallel region divide the work.
static inline void gemm_pack_b(const Gemm *g, uint32_t *panels, Matrix B) {
    const int count = panel_count(g->kernels, g->N);
    const int groups = (count + PACK_PANELS - 1) / PACK_PANELS;
    const int depths = (g->K + PACK_DEPTH - 1) / PACK_DEPTH;
#pragma omp for schedule(dynamic)
    for (int item = 0; item < groups * depths; item++) {
        const int p = item % groups * PACK_PANELS, k = item / groups * PACK_DEPTH;
        pack_panels(g->kernels, panels, B, g->K, g->N, k, min_int(k + PACK_DEPTH, g->K), p,
            min_int(p + PACK_PANELS, count), g->bf16);
    }
}

// CLIPC_ISA=plain: a matrix product as three loops.
static inline void gemm_plain(float *C, size_t ldc, Matrix A, Matrix B, int M, int N, int K, bool add) {
    const float *a = (const float *)A.x.p, *b = (const float *)B.x.p;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)a[(size_t)i * A.row + (size_t)k * A.col] *
                       b[(size_t)k * B.row + (size_t)j * B.col];
            C[(size_t)i * ldc + (size_t)j] = (float)sum + (add ? C[(size_t)i * ldc + (size_t)j] : 0);
        }
}

// The preconditions of gemm(): valid sizes, a known epilogue, bf16 in B or C only if A is bf16, aligned
// panels.
static inline bool gemm_can_take(
    Operand C, size_t ldc, Matrix A, Matrix B, int M, int N, int K, const Epilogue *epilogue) {
    return M > 0 && N > 0 && K > 0 && ldc >= (size_t)N && C.p && A.x.p && B.x.p &&
           epilogue_is_known(epilogue) && (A.x.bf16 || (!B.x.bf16 && !C.bf16)) &&
           (uintptr_t)B.panels % 64 == 0;
}

static inline void gemm(const Kernels *kernels, Operand C, size_t ldc, Matrix A, Matrix B, int M, int N,
    int K, Epilogue epilogue);

// gemm() of a long sum, piece by piece along K. The pieces are added up in C, the first with bias and
// residual; with EPILOGUE_ADD in scratch, so that the sum is complete before it is added to C.
static inline void gemm_in_pieces(const Kernels *kernels, float *C, size_t ldc, Matrix A, Matrix B, int M,
    int N, int K, Epilogue epilogue) {
    const int entries = unit_entries(A.x.bf16), units = units_of(K, A.x.bf16);
    const int pieces = (units + GEMM_K_MOST - 1) / GEMM_K_MOST;
    const int depth = (int)round_up((size_t)((K + pieces - 1) / pieces), (size_t)UNIT_BLOCK * 2);
    const bool add = epilogue.kind == EPILOGUE_ADD;
    float *scratch = add ? (float *)aligned_malloc_check((size_t)M * ldc * sizeof(float)) : NULL;
    if (add) epilogue.kind = EPILOGUE_STORE;
    for (int k = 0; k < K; k += depth) {
        float *to = scratch ? scratch : C;
        Matrix a = A, b = B;
        a.x = operand_at(A.x, (size_t)k * A.col);
        b.x = operand_at(B.x, (size_t)k * B.row);
        if (B.panels) b.panels = B.panels + (size_t)(k / entries) * (size_t)kernels->tile_columns;
        if (k) epilogue = epilogue_of(EPILOGUE_ADD, NULL);
        if (scratch && k + depth >= K) {
            epilogue.residual = scratch;
            to = C;
        }
        gemm(kernels, fp32(to), ldc, a, b, M, N, min_int(K - k, depth), epilogue);
    }
    free(scratch);
}

// C (M,N), rows ldc apart, = epilogue(A (M,K) · B (K,N)), computed in A's number format; if A is bf16, B may
// be fp32. Uses all threads: call it outside of parallel regions.
static inline void gemm(const Kernels *kernels, Operand C, size_t ldc, Matrix A, Matrix B, int M, int N,
    int K, Epilogue epilogue) {
    const int units = units_of(K, A.x.bf16);
    assert(gemm_can_take(C, ldc, A, B, M, N, K, &epilogue));
    if (kernels->plain) {
        // layers with another epilogue call the loops of plain.h instead
        assert(epilogue.kind <= EPILOGUE_ADD && !epilogue.bias && !A.x.bf16);
        gemm_plain((float *)C.p, ldc, A, B, M, N, K, epilogue.kind == EPILOGUE_ADD);
        return;
    }
    // an activation needs the whole sum
    if (units > GEMM_K_MOST && !C.bf16 && epilogue.kind <= EPILOGUE_RESIDUAL) {
        gemm_in_pieces(kernels, (float *)C.p, ldc, A, B, M, N, K, epilogue);
        return;
    }
    const int mc = gemm_mc(&kernels->products[A.x.bf16], units);
    const Gemm g = gemm_plan(kernels, C, ldc, A, M, N, K, mc, &epilogue);
    const int panels = panel_count(kernels, N);
    const int row_blocks = (M + g.mc - 1) / g.mc;
    const int parts = gemm_parts(row_blocks, panels);
    const size_t pitch = B.panels ? B.pitch : panel_pitch(kernels, K, g.bf16);
    uint32_t *packed = B.panels ? NULL : (uint32_t *)aligned_malloc_check((size_t)panels * pitch * 4);
#pragma omp parallel
    {
        float *sums = (float *)aligned_malloc_check(STORE_PANELS * gemm_sum_floats(&g) * sizeof(float));
        uint32_t *a_panels = (uint32_t *)aligned_malloc_check(gemm_packed_units(&g) * 4);
        products_begin(kernels, g.bf16);
        if (packed) gemm_pack_b(&g, packed, B);
        int packed_row = -1;
#pragma omp for schedule(dynamic)
        for (int item = 0; item < row_blocks * parts; item++) { // consecutive items share rows of A
            const int row = item / parts * g.mc;
            const int part = item % parts;
            const int rows = min_int(M - row, g.mc);
            if (row != packed_row) gemm_pack_rows(&g, a_panels, row, rows);
            packed_row = row;
            const int last = panels * (part + 1) / parts;
            for (int j = panels * part / parts; j < last; j += STORE_PANELS)
                gemm_block(&g, row, rows, a_panels, j, min_int(j + STORE_PANELS, last),
                    (packed ? packed : B.panels) + (size_t)j * pitch, pitch, sums);
        }
        products_end(kernels, g.bf16);
        free(sums);
        free(a_panels);
    }
    free(packed);
}

// Floats of scratch that gemm_serial() needs for products of up to M rows and K units.
static inline size_t gemm_serial_scratch(const Kernels *kernels, int M, int K) {
    const int tallest = max_int(kernels->products[0].rows, kernels->products[1].rows);
    const size_t rows = (size_t)min_int(M, GEMM_ROWS) + (size_t)tallest;
    const size_t depth = round_up((size_t)K, UNIT_BLOCK) + UNIT_BLOCK;
    return rows * (size_t)kernels->tile_columns + rows * depth + depth * (size_t)kernels->tile_columns;
}

// gemm() on the calling thread alone, for products inside a parallel region (a head of attention). Call it
// between products_begin() and products_end().
static inline void gemm_serial(const Kernels *kernels, float *scratch, Operand C, size_t ldc, Matrix A,
    Matrix B, int M, int N, int K, Epilogue epilogue) {
    const int tile = kernels->products[A.x.bf16].rows;
    const int mc = GEMM_ROWS / tile * tile;
    const int width = kernels->tile_columns;
    assert(gemm_can_take(C, ldc, A, B, M, N, K, &epilogue));
    const Gemm g = gemm_plan(kernels, C, ldc, A, M, N, K, mc, &epilogue);
    const size_t most_rows = (size_t)min_int(M, mc) + (size_t)g.t->rows;
    const size_t pitch = panel_pitch(kernels, K, g.bf16);
    uint32_t *panel = (uint32_t *)scratch, *a_panels = panel + pitch;
    float *sums = scratch + pitch + most_rows * g.pitch;
    for (int row = 0; row < M; row += mc) {
        const int rows = min_int(M - row, mc);
        gemm_pack_rows(&g, a_panels, row, rows);
        for (int j = 0; j < panel_count(kernels, N); j++) {
            const Matrix columns = operand_matrix(operand_at(B.x, (size_t)j * width * B.col), B.row, B.col);
            pack_panels(kernels, panel, columns, K, N - j * width, 0, K, 0, 1, g.bf16);
            gemm_block(&g, row, rows, a_panels, j, j + 1, panel, pitch, sums);
        }
    }
}

// out (M,N) = a (M,K) · b (N,K)ᵀ
static inline void matmul_nt(
    const Kernels *kernels, float *out, const float *a, const float *b, int M, int N, int K) {
    gemm(kernels, fp32(out), (size_t)N, matrix(a, (size_t)K, 1), matrix(b, 1, (size_t)K), M, N, K,
        epilogue_of(EPILOGUE_STORE, NULL));
}

#endif
