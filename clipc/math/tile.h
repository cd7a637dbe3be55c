// The register tile of a matrix product. No include guard: clipc/math/isa.h and clipc/math/kernels.h include
// this text once for each instruction set and type of operand, with
//   TILE        the name of the function that comes out
//   DOT(c, a, b)  c + a * b on vectors of units, each unit one float, or two bf16 whose products are summed
// and what clipc/math/kernels.h is given. Both macros are undefined again at its end.
//
// partial (m, 2 * LANES) (+)= sum over `steps` units of a[i][k] * b[k][j]: a is broadcast straight from
// memory, its rows a_row bytes and its units a_step bytes apart; b is a packed panel (steps, 2 * LANES). The
// accumulators of the whole tile live in registers. What is behind `next` comes into L2 meanwhile.

INNER void PASTE(TILE, rows)(const int m, int steps, const char *a, size_t a_row, size_t a_step,
    const float *b, float *partial, bool add, const char *next) {
    vec acc[TILE_ROWS][2];
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int h = 0; h < 2; h++) acc[i][h] =
        add ? NAME(load)(partial + (2 * i + h) * LANES) : (vec){0};
    for (int k = 0; k < steps; k++, a += a_step, b += 2 * LANES, next += FETCHED / K_BLOCK) {
        const vec b0 = NAME(load)(b), b1 = NAME(load)(b + LANES);
        __builtin_prefetch(next, 0, 2); // the same line for some steps: few can be on their way at a time
        UNROLL for (int i = 0; i < m; i++) {
            float unit;
            memcpy(&unit, a + (size_t)i * a_row, sizeof unit);
            const vec x = NAME(splat)(unit);
            acc[i][0] = DOT(acc[i][0], x, b0);
            acc[i][1] = DOT(acc[i][1], x, b1);
        }
    }
    UNROLL for (int i = 0; i < m; i++) UNROLL for (int h = 0; h < 2; h++)
        NAME(store)(partial + (2 * i + h) * LANES, acc[i][h]);
}

static void TILE(int m, int steps, const void *a, size_t a_row, size_t a_step, const void *b, float *partial,
    bool add, const char *next) {
    switch (m) { // a constant number of rows each, so that the tile stays in registers
                 // clang-format off
#define ROWS(M) case M: PASTE(TILE, rows)(M <= TILE_ROWS ? M : TILE_ROWS, steps, (const char *)a, a_row, a_step, (const float *)b, partial, add, next); break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if TILE_ROWS > 4
        ROWS(5) ROWS(6)
#endif
#if TILE_ROWS > 6
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
#undef ROWS
        // clang-format on
    }
}

#undef TILE
#undef DOT
