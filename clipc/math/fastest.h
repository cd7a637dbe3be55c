// The kernels and the number format that are the fastest here, found by timing: an instruction that exists is
// not one that is fast. (A virtual machine that shows AVX512-BF16 and no AMX ran amp_bf16 at two thirds of
// the speed of fp32.)
#ifndef CLIPC_FASTEST_H
#define CLIPC_FASTEST_H

#include "clipc/math/matmul.h"

#include <sys/stat.h> // mkdir

// One way to compute the products of the towers.
typedef struct {
    const Kernels *kernels;
    bool bf16;
    double seconds; // of the layer below; the least of some runs
} KernelPath;

enum { PATHS_MOST = 2 * KERNELS_MOST };

// ---------------------------------------------------------------- what is timed

// A linear layer with its activation, forward and backward, of the width of ViT-B and few rows: the products
// in which a step spends most of its time. All arrays are (ROWS,WIDTH) or (WIDTH,WIDTH), of `bf16` or fp32.
enum { FASTEST_ROWS = 128, FASTEST_WIDTH = 768, FASTEST_ROUNDS = 5 };

typedef struct {
    const Kernels *kernels;
    Operand x, hidden, activated, dx;
    float *bias, *weight, *dweight;
    uint32_t *panels;
} TimedLayer;

static inline Operand timed_rows(bool bf16) {
    const size_t n = (size_t)FASTEST_ROWS * FASTEST_WIDTH;
    const Operand rows = operand(aligned_malloc_check(n * operand_bytes(bf16)), bf16);
    for (size_t i = 0; i < n; i++) { // like LayerNorm's outputs; 0x3f80 is 1 in bf16
        if (bf16) ((uint16_t *)rows.p)[i] = (uint16_t)(0x3f80 + i % 61);
        else ((float *)rows.p)[i] = 1 + (float)(i % 61) / 61;
    }
    return rows;
}

static inline TimedLayer timed_layer_create(const Kernels *kernels, bool bf16) {
    const int C = FASTEST_WIDTH;
    const size_t weights = (size_t)C * C,
                 panels = (size_t)panel_count(kernels, C) * panel_pitch(kernels, C, bf16);
    TimedLayer l = {kernels, timed_rows(bf16), timed_rows(bf16), timed_rows(bf16), timed_rows(bf16),
        (float *)calloc_check((size_t)C, sizeof(float)),
        (float *)aligned_malloc_check(weights * sizeof(float)),
        (float *)aligned_malloc_check(weights * sizeof(float)), (uint32_t *)aligned_malloc_check(panels * 4)};
    for (size_t i = 0; i < weights; i++) l.weight[i] = (float)(i % 67) / 67 - 0.5f;
    pack_panels(
        kernels, l.panels, matrix(l.weight, 1, (size_t)C), C, C, 0, C, 0, panel_count(kernels, C), bf16);
    return l;
}

static inline void timed_layer_free(TimedLayer *l) {
    void *all[] = {l->x.p, l->hidden.p, l->activated.p, l->dx.p, l->bias, l->weight, l->dweight, l->panels};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static inline void timed_layer_run(const TimedLayer *l) {
    const int M = FASTEST_ROWS, C = FASTEST_WIDTH;
    const size_t ld = (size_t)C;
    const bool bf16 = l->x.bf16;
    Epilogue forward = epilogue_of(EPILOGUE_ACTIVATION, l->bias),
             backward = epilogue_of(EPILOGUE_SLOPE, NULL);
    Matrix weight = matrix(l->weight, 1, ld);
    weight.panels = l->panels;
    weight.pitch = panel_pitch(l->kernels, C, bf16);
    forward.activated = l->activated.p;
    backward.hidden = l->hidden.p;
    gemm(l->kernels, l->hidden, ld, operand_matrix(l->x, ld, 1), weight, M, C, C, forward);
    gemm(l->kernels, l->dx, ld, operand_matrix(l->activated, ld, 1), weight, M, C, C, backward);
    gemm(l->kernels, fp32(l->dweight), ld, operand_matrix(l->dx, 1, ld), operand_matrix(l->x, ld, 1), C, C, M,
        epilogue_of(EPILOGUE_STORE, NULL));
}

// Processor time of this thread: other programs do not count.
static inline double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Times each path, in turns, so that what else the machine does meets all of them. One that takes twice the
// time of another is not tried again. All with one thread, so that the choice, and with it the bits of a run,
// does not follow from the number of threads.
static inline void paths_time(KernelPath *paths, int count) {
    TimedLayer layers[PATHS_MOST];
    double least = INFINITY;
    for (int i = 0; i < count; i++) {
        layers[i] = timed_layer_create(paths[i].kernels, paths[i].bf16);
        paths[i].seconds = INFINITY;
    }
#ifdef _OPENMP
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
#endif
    timed_layer_run(&layers[count - 1]); // the first touch of its memory
    for (int round = 0; round < FASTEST_ROUNDS; round++)
        for (int i = 0; i < count; i++) {
            if (paths[i].seconds < INFINITY && paths[i].seconds > 2 * least) continue;
            const double begin = thread_seconds();
            timed_layer_run(&layers[i]);
            paths[i].seconds = fmin(paths[i].seconds, thread_seconds() - begin);
            least = fmin(least, paths[i].seconds);
        }
#ifdef _OPENMP
    omp_set_num_threads(threads);
#endif
    for (int i = 0; i < count; i++) timed_layer_free(&layers[i]);
}

// ---------------------------------------------------------------- the choice

// Appends the paths of the given kernels to a list: wanted 0: in fp32, 1: in bf16, -1: both, but bf16 only
// with instructions for it. Kernels that share a product's code are one path.
static inline int paths_add(KernelPath *paths, int count, const Kernels *kernels, int wanted) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
        bool known = wanted >= 0 ? wanted != bf16 || (bf16 && kernels->plain) : bf16 && !kernels->native_bf16;
        for (int i = 0; i < count; i++)
            known |= paths[i].bf16 == (bool)bf16 &&
                     paths[i].kernels->products[bf16].tile == kernels->products[bf16].tile;
        if (known) continue;
        const KernelPath path = {kernels, (bool)bf16, 0};
        paths[count++] = path;
    }
    return count;
}

// All that kernels_select() may choose from, best guess last: those that CLIPC_ISA names, or all of this
// processor but the plain and, where there are better ones, the portable loops.
static inline int paths_list(KernelPath *paths, int wanted) {
    const Kernels *list[KERNELS_MOST];
    const int all = kernels_list(list);
    const char *isa = getenv("CLIPC_ISA");
    if (isa && *isa) return paths_add(paths, 0, kernels_select(), wanted);
    int count = 0;
    for (int i = all > 2 ? 2 : 1; i < all; i++) count = paths_add(paths, count, list[i], wanted);
    return count;
}

// The fastest, by a margin that noise does not reach: bf16 has to beat fp32 by it, since it also rounds, and
// older instructions newer ones.
static inline KernelPath paths_choose(const KernelPath *paths, int count) {
    const double margin = 0.97;
    const KernelPath *best[2] = {NULL, NULL};
    for (int i = count - 1; i >= 0; i--) {
        const KernelPath **b = &best[paths[i].bf16];
        if (!*b || paths[i].seconds < margin * (*b)->seconds) *b = &paths[i];
    }
    if (!best[0]) return *best[1];
    return best[1] && best[1]->seconds < margin * best[0]->seconds ? *best[1] : *best[0];
}

// ---------------------------------------------------------------- kept until the machine starts again

// What the choice depends on: the start of the machine, the processor, this program's compiler, and the
// paths. 0: not known, so nothing is kept.
static inline uint64_t paths_key(const KernelPath *paths, int count) {
    char boot[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!f) return 0;
    const bool known = fgets(boot, sizeof boot, f) != NULL;
    fclose(f);
    if (!known) return 0;
#if defined(__OPTIMIZE__)
    const char build[] = "optimized " __VERSION__;
#else
    const char build[] = __VERSION__;
#endif
    uint64_t key = hash_bytes(HASH_START, boot, strlen(boot));
#if defined(__x86_64__)
    for (unsigned leaf = 0x80000002; leaf <= 0x80000004; leaf++) { // the processor's name
        unsigned part[4] = {0};
        __asm__("cpuid" : "=a"(part[0]), "=b"(part[1]), "=c"(part[2]), "=d"(part[3]) : "a"(leaf), "c"(0));
        key = hash_bytes(key, part, sizeof part);
    }
#endif
    key = hash_bytes(key, build, sizeof build);
    for (int i = 0; i < count; i++) {
        key = hash_bytes(key, paths[i].kernels->name, strlen(paths[i].kernels->name));
        key = hash_bytes(key, &paths[i].bf16, sizeof paths[i].bf16);
    }
    return key ? key : 1;
}

// XDG_CACHE_HOME/clip.c or HOME/.cache/clip.c, made if it does not exist; false when there is no such place.
static inline bool paths_folder(char *folder, size_t size) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    const bool given = cache && *cache == '/';
    if (!given && (!home || *home != '/')) return false;
    int length = snprintf(folder, size, "%s%s", given ? cache : home, given ? "" : "/.cache");
    if (length < 0 || (size_t)length + 40 > size) return false;
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) return false;
    strcat(folder, "/clip.c");
    return mkdir(folder, 0700) == 0 || errno == EEXIST;
}

// A file that holds "NAME bf16" or "NAME fp32"; NULL when it does not hold one of the paths.
static inline const KernelPath *paths_read(const char *file, const KernelPath *paths, int count) {
    char text[64] = "", line[64];
    const int fd = open(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return NULL;
    const ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return NULL;
    for (int i = 0; i < count; i++) {
        snprintf(line, sizeof line, "%s %s\n", paths[i].kernels->name, paths[i].bf16 ? "bf16" : "fp32");
        if (strcmp(text, line) == 0) return &paths[i];
    }
    return NULL;
}

// Nothing is said when it cannot be written: the next run takes the time again.
static inline void paths_write(const char *file, KernelPath path) {
    char line[64];
    const int length =
        snprintf(line, sizeof line, "%s %s\n", path.kernels->name, path.bf16 ? "bf16" : "fp32");
    unlink(file);
    const int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return;
    if (write(fd, line, (size_t)length) != length) unlink(file);
    close(fd);
}

// The fastest of the paths. Takes about a tenth of a second, once after each start of the machine; then the
// choice is read from a file.
static inline KernelPath paths_fastest(KernelPath *paths, int count) {
    char folder[PATH_SIZE], file[PATH_SIZE + 32];
    if (count == 1) return paths[0];
    const uint64_t key = paths_key(paths, count);
    const bool kept = key && paths_folder(folder, sizeof folder);
    if (kept) {
        snprintf(file, sizeof file, "%s/fastest-%016llx", folder, (unsigned long long)key);
        const KernelPath *before = paths_read(file, paths, count);
        if (before) return *before;
    }
    paths_time(paths, count);
    const KernelPath best = paths_choose(paths, count);
    if (kept) paths_write(file, best);
    return best;
}

// wanted 0: in fp32, 1: in bf16, -1: whichever is faster
static inline KernelPath kernels_fastest(int wanted) {
    KernelPath paths[PATHS_MOST];
    return paths_fastest(paths, paths_list(paths, wanted));
}

#endif
