// Ground helpers: one-line errors, checked allocation and files, lists of strings, small mathematics, time.
#ifndef CLIPC_UTILS_H
#define CLIPC_UTILS_H

#include "clipc/base/program.h" // die, warn, make_showable

#include <fnmatch.h>
#include <fts.h>
#include <math.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>

#define PATH_SIZE 4096 // longest path we build, terminator included

// ---------------------------------------------------------------- memory

// p, the result of an allocation; NULL ends the program.
static inline void *allocated(void *p, double bytes) {
    if (!p)
        die(EXIT_RUNTIME, "out of memory (%.1f MB asked for); lower --batch-size or close other programs",
            bytes / 1e6);
    return p;
}

static inline void *malloc_check(size_t bytes) { return allocated(malloc(bytes ? bytes : 1), (double)bytes); }

static inline void *calloc_check(size_t count, size_t size) {
    return allocated(calloc(count ? count : 1, size ? size : 1), (double)count * (double)size);
}

static inline void *realloc_check(void *old, size_t bytes) {
    return allocated(realloc(old, bytes ? bytes : 1), (double)bytes);
}

// 64-byte aligned (a cache line, an AVX-512 register); freed with free().
static inline void *aligned_malloc_check(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 64)) p = NULL;
    return allocated(p, (double)bytes);
}

// Zeroed variant. Whole pages go back to the kernel (MADV_DONTNEED), which zero-fills them on first touch, so
// start-up does not pay for gigabytes. valgrind and MemorySanitizer do not know that: -DCLIPC_WRITE_ZEROS.
static inline void *aligned_calloc_check(size_t bytes) {
    char *p = (char *)aligned_malloc_check(bytes);
    size_t front = bytes, whole = 0;
#if defined(__linux__) && !defined(CLIPC_WRITE_ZEROS) // elsewhere MADV_DONTNEED does not promise zeros
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), lead = page - (size_t)((uintptr_t)p % page);
    if (bytes > lead + page && madvise(p + lead, (bytes - lead) / page * page, MADV_DONTNEED) == 0) {
        front = lead;
        whole = (bytes - lead) / page * page;
    }
#endif
    memset(p, 0, front);
    memset(p + front + whole, 0, bytes - front - whole);
    return p;
}

// Tensors are neighbours in one allocation, where an index beyond a tensor's end would go unnoticed. Under
// AddressSanitizer each is followed by a gap that is poisoned from the tensor's exact end on, so that any
// access there stops the program.
#if defined(__SANITIZE_ADDRESS__)
#define CLIPC_GUARDS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CLIPC_GUARDS
#endif
#endif
#ifdef CLIPC_GUARDS
#include <sanitizer/asan_interface.h> // ASAN_POISON_MEMORY_REGION
enum { GUARD_FLOATS = 16 };
static inline void guard_behind(float *tensor, size_t n, float *next) {
    ASAN_POISON_MEMORY_REGION(tensor + n, (size_t)(next - tensor - (ptrdiff_t)n) * sizeof(float));
}
static inline void guard_lift(float *arena, size_t n) {
    ASAN_UNPOISON_MEMORY_REGION(arena, n * sizeof(float));
}
#else
enum { GUARD_FLOATS = 0 };
static inline void guard_behind(float *tensor, size_t n, float *next) {
    (void)tensor;
    (void)n;
    (void)next;
}
static inline void guard_lift(float *arena, size_t n) {
    (void)arena;
    (void)n;
}
#endif

// Grows a list by doubling: list_grow((void **)&items, &capacity, count + 1, sizeof *items).
static inline void list_grow(void **items, size_t *capacity, size_t need, size_t size) {
    if (need <= *capacity) return;
    *capacity = need > 2 * *capacity ? need + 16 : 2 * *capacity;
    *items = realloc_check(*items, *capacity * size);
}

// Bytes that can be allocated without swapping.
static inline size_t memory_available(void) {
    // a quarter of the memory, where the system does not tell
    size_t bytes = (size_t)sysconf(_SC_PHYS_PAGES) / 4 * (size_t)sysconf(_SC_PAGESIZE);
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "MemAvailable:", 13) == 0) bytes = 1024 * (size_t)strtoull(line + 13, NULL, 10);
    if (f) fclose(f);
    return bytes;
}

static inline char *strdup_check(const char *s) {
    size_t n = strlen(s) + 1;
    return (char *)memcpy(malloc_check(n), s, n);
}

// A stream whose text is in *text once it is closed by text_close(); free() it.
static inline FILE *text_open(char **text, size_t *length) {
    FILE *f = open_memstream(text, length);
    if (!f) die(EXIT_RUNTIME, "out of memory");
    return f;
}

static inline void text_close(FILE *f) {
    const bool whole = !ferror(f);
    if (fclose(f) || !whole) die(EXIT_RUNTIME, "out of memory");
}

// ---------------------------------------------------------------- files

// Is there anything of this name? Also where that cannot be told: opening it then says why.
static inline bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

static inline bool is_directory(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

// Why this is not a folder; NULL when it is one.
static inline const char *folder_fault(const char *path) {
    struct stat st;
    if (stat(path, &st)) return errno == ENOENT ? "no such folder" : strerror(errno);
    return S_ISDIR(st.st_mode) ? NULL : "not a folder";
}

static inline FILE *fopen_check(const char *path, const char *mode) {
    const int code = mode[0] == 'r' ? EXIT_USAGE : EXIT_RUNTIME;
    if (is_directory(path)) die(code, "%s: cannot open (it is a folder)", path);
    FILE *f = fopen(path, mode);
    if (!f) die(code, "%s: cannot open (%s)", path, strerror(errno));
    return f;
}

// open(), again for as long as signals interrupt it
static inline int open_retry(const char *path, int flags) {
    int fd;
    do fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

// A new file to write and read. What has its name already, such as the rest of a run that was killed, is
// removed; a link that someone put there is not followed. NULL with errno where that fails.
static inline FILE *file_create(const char *path) {
    if (unlink(path) && errno != ENOENT) return NULL;
    const int fd = open_retry(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW);
    return fd < 0 ? NULL : fdopen(fd, "w+b");
}

// Opens a file that a run appends to, and makes it where there is none. -1 with errno where that fails; also
// for a link or a device with that name: a run folder may come from someone else.
static inline int file_append(const char *path, int flags) {
    struct stat st;
    const int fd = open_retry(path, flags | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))) return fd;
    close(fd);
    errno = EINVAL;
    return -1;
}

static inline void fread_check(void *out, size_t bytes, FILE *f, const char *path) {
    if (fread(out, 1, bytes, f) == bytes) return;
    if (ferror(f)) die(EXIT_RUNTIME, "%s: read error (%s)", path, strerror(errno));
    die(EXIT_USAGE, "%s: ends early (%zu more bytes expected); is the file complete?", path, bytes);
}

static inline void fwrite_check(const void *data, size_t bytes, FILE *f, const char *path) {
    if (fwrite(data, 1, bytes, f) != bytes)
        die(EXIT_RUNTIME, "%s: cannot write (%s); free some space", path, strerror(errno));
}

// The whole file, its *length bytes followed by a NUL; free() it.
static inline char *file_read_all(const char *path, size_t *length) {
    FILE *f = fopen_check(path, "rb");
    size_t capacity = 0, n = 0;
    char *data = NULL;
    for (;;) { // not by the size that stat() gives: the path may be a pipe
        list_grow((void **)&data, &capacity, n + 65537, 1);
        size_t got = fread(data + n, 1, capacity - n - 1, f);
        n += got;
        if (got == 0) break;
    }
    if (ferror(f)) die(EXIT_RUNTIME, "%s: read error (%s)", path, strerror(errno));
    fclose(f);
    data[n] = 0;
    if (length) *length = n;
    return data;
}

PRINTF_LIKE(2, 3) static inline void path_format(char path[PATH_SIZE], const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(path, PATH_SIZE, format, args);
    va_end(args);
    if (n < 0 || n >= PATH_SIZE) die(EXIT_USAGE, "path is too long: %.100s…", path);
}

// mkdir -p
static inline void make_directories(const char *path) {
    char part[PATH_SIZE];
    path_format(part, "%s", path);
    for (char *p = part + 1;; p++) {
        if (*p && *p != '/') continue;
        char saved = *p;
        *p = 0;
        if (mkdir(part, 0777) && errno != EEXIST)
            die(EXIT_RUNTIME, "%s: cannot make the folder (%s)", part, strerror(errno));
        *p = saved;
        if (!saved) break;
    }
    if (!is_directory(path)) die(EXIT_RUNTIME, "%s: is not a folder", path);
}

// ---------------------------------------------------------------- lists of strings

typedef struct {
    char **list; // (count)
    size_t count, capacity;
} StringList;

// Appends a copy.
static inline void string_list_add(StringList *s, const char *text) {
    list_grow((void **)&s->list, &s->capacity, s->count + 1, sizeof *s->list);
    s->list[s->count++] = strdup_check(text);
}

static inline void string_list_free(StringList *s) {
    for (size_t i = 0; i < s->count; i++) free(s->list[i]);
    free(s->list);
    memset(s, 0, sizeof *s);
}

static inline int compare_strings(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static inline void string_list_sort(StringList *s) {
    if (s->count) qsort(s->list, s->count, sizeof *s->list, compare_strings);
}

// The files below `root`, at any depth, for which wanted(name) holds, and in `folders`, unless it is NULL,
// the names of the sub-folders; both sorted. Hidden files and folders are skipped. Links are followed, but
// not into a parent folder; a dead link counts as a file.
static inline void list_files(
    const char *root, bool (*wanted)(const char *name), StringList *files, StringList *folders) {
    char path[PATH_SIZE];
    path_format(path, "%s", root);
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) path[n - 1] = 0;
    char *const roots[2] = {path, NULL};
    FTS *walk = fts_open(roots, FTS_LOGICAL | FTS_NOCHDIR, NULL);
    if (!walk) die(EXIT_RUNTIME, "%s: cannot list the folder (%s)", root, strerror(errno));
    for (FTSENT *e; (e = fts_read(walk));) {
        const bool file = e->fts_info == FTS_F || e->fts_info == FTS_SLNONE || e->fts_info == FTS_NS ||
                          e->fts_info == FTS_DEFAULT; // a pipe or a device
        if (e->fts_level > 0 && e->fts_name[0] == '.') fts_set(walk, e, FTS_SKIP);
        else if (e->fts_info == FTS_DNR)
            warn("%s: cannot list the folder (%s); its files are left out", e->fts_path,
                strerror(e->fts_errno));
        else if (e->fts_info == FTS_D && e->fts_level == 1 && folders) string_list_add(folders, e->fts_name);
        else if (file && wanted(e->fts_name)) string_list_add(files, e->fts_path);
    }
    fts_close(walk);
    string_list_sort(files);
    if (folders) string_list_sort(folders);
}

// ---------------------------------------------------------------- child processes

extern char **environ;

// The project's script dev/NAME: next to this program or in a folder above it (build/…); in the working
// directory only where the system does not tell where the program is. False when it is not there.
static inline bool script_find(char path[PATH_SIZE], const char *name) {
    char program[PATH_SIZE];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    for (char *slash; (slash = strrchr(program, '/'));) {
        *slash = 0;
        path_format(path, "%s/dev/%s", program, name);
        if (file_exists(path)) return true;
    }
    path_format(path, "dev/%s", name);
    return n < 0 && file_exists(path);
}

typedef struct {
    pid_t pid; // 0: none runs
    int pipe;  // our end of the pipe, to write to its input or to read its output; -1: none
} Process;

// Starts arguments[0], looked up in PATH, with these arguments (the last is NULL).
//   piped      STDIN_FILENO or STDOUT_FILENO: that stream of it is a pipe; -1: it shares all of ours
//   own_group  Ctrl-C in the terminal does not reach it
// Returns 0, or an errno when it cannot be started.
static inline int process_start(Process *p, const char *const *arguments, int piped, bool own_group) {
    int ends[2] = {-1, -1}; // to read from, to write to
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    p->pid = 0;
    p->pipe = -1;
    if (piped >= 0 && pipe(ends)) return errno;
    const int theirs = piped == STDIN_FILENO ? 0 : 1;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    if (piped >= 0) {
        for (int i = 0; i < 2; i++) fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        posix_spawn_file_actions_adddup2(&files, ends[theirs], piped);
    }
    sigset_t pipe_signal; // ignored in this program, and by what it starts otherwise, too
    sigemptyset(&pipe_signal);
    sigaddset(&pipe_signal, SIGPIPE);
    posix_spawnattr_setsigdefault(&attributes, &pipe_signal);
    posix_spawnattr_setflags(
        &attributes, (short)(POSIX_SPAWN_SETSIGDEF | (own_group ? POSIX_SPAWN_SETPGROUP : 0)));
    const int error =
        posix_spawnp(&p->pid, arguments[0], &files, &attributes, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    if (piped >= 0) close(ends[theirs]);
    if (piped >= 0 && error) close(ends[1 - theirs]);
    if (error) p->pid = 0;
    else p->pipe = ends[1 - theirs];
    return error;
}

// Has the process ended, or does it, when `block` waits for that? Then true, its pipe is closed, and *status
// is waitpid()'s: WIFEXITED(status) …; -1 when the system does not know it.
static inline bool process_wait(Process *p, bool block, int *status) {
    pid_t ended;
    *status = -1;
    do ended = waitpid(p->pid, status, block ? 0 : WNOHANG);
    while (ended < 0 && errno == EINTR);
    if (ended == 0) return false;
    if (p->pipe >= 0) close(p->pipe);
    p->pid = 0;
    p->pipe = -1;
    return true;
}

// ---------------------------------------------------------------- text

// Levenshtein distance, for "did you mean"; names longer than 63 bytes are cut.
static inline int edit_distance(const char *a, const char *b) {
    int row[64], n = (int)strnlen(b, 63), m = (int)strnlen(a, 63);
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

// Does `text` match one of the alternatives a|b|c, each a pattern as for file names (* ? [])?
static inline bool matches_any(const char *alternatives, const char *text) {
    char pattern[64];
    for (const char *p = alternatives; *p; p += strcspn(p, "|"), p += *p == '|') {
        snprintf(pattern, sizeof pattern, "%.*s", (int)strcspn(p, "|"), p);
        if (fnmatch(pattern, text, 0) == 0) return true;
    }
    return false;
}

// A copy in lower case, cut to `size` bytes; of ASCII letters alone.
static inline void lower_case(char *out, size_t size, const char *text) {
    snprintf(out, size, "%s", text);
    for (char *p = out; *p; p++)
        if (*p >= 'A' && *p <= 'Z') *p = (char)(*p - 'A' + 'a');
}

// Is a known word at this edit distance near enough to a word of `length` characters to be named as a guess?
static inline bool is_near(int distance, size_t length) {
    const size_t most = (length + 2) / 3;
    return distance <= (int)(most < 3 ? most : 3);
}

static inline bool ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcasecmp(s + n - m, suffix) == 0;
}

// ---------------------------------------------------------------- small mathematics, time

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// for qsort(), ascending
static inline int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// FNV-1a by 8-byte words: identifies contents (a state file names its weights by it); not cryptographic.
static inline uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        hash = (hash ^ word) * 0x100000001b3ull;
        hash ^= hash >> 32; // whole words need this: the multiplication alone carries upwards only
    }
    for (; bytes; bytes--, p++) hash = (hash ^ *p) * 0x100000001b3ull;
    return hash;
}
#define HASH_START 0xcbf29ce484222325ull

// The hash of a whole file; false where it cannot be read.
static inline bool file_hash(const char *path, uint64_t *hash) {
    char block[65536]; // a multiple of 8: the hash of the blocks is that of the file
    FILE *f = fopen(path, "rb");
    size_t n;
    *hash = HASH_START;
    while (f && (n = fread(block, 1, sizeof block, f)) > 0) *hash = hash_bytes(*hash, block, n);
    const bool whole = f && !ferror(f);
    if (f) fclose(f);
    return whole;
}

// ---------------------------------------------------------------- random numbers

// Random numbers as a pure function of (key, position): there is no state to save, and nothing depends on the
// number of threads. A key is mixed from what the number is for (seed, epoch, sample, purpose); the position
// counts the draws.

typedef struct {
    uint64_t state;
} Rand;

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
static inline uint64_t rand_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// An independent stream for each (seed, a, b): e.g. the seed, the epoch, the sample.
static inline Rand rand_for(uint64_t seed, uint64_t a, uint64_t b) {
    Rand r = {rand_mix(rand_mix(rand_mix(seed + 0x9e3779b97f4a7c15ull) + a + 0x632be59bd9b4e019ull) + b +
                       0xd1b54a32d192ed03ull)};
    return r;
}

static inline uint64_t rand_u64(Rand *r) { return rand_mix(r->state += 0x9e3779b97f4a7c15ull); }

// uniform in [0, 1), 53 bits
static inline double rand_uniform(Rand *r) { return (double)(rand_u64(r) >> 11) * 0x1p-53; }

static inline double rand_range(Rand *r, double low, double high) {
    return low + (high - low) * rand_uniform(r);
}

// uniform in 0 … n-1, n >= 1; unbiased (values of the last, incomplete round are drawn again)
static inline uint64_t rand_below(Rand *r, uint64_t n) {
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do x = rand_u64(r);
    while (x >= limit);
    return x % n;
}

// standard normal (Box-Muller, one of the pair)
static inline double rand_normal(Rand *r) {
    double u = 1.0 - rand_uniform(r), v = rand_uniform(r); // u in (0, 1]: the logarithm is finite
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

// Fisher-Yates
static inline void rand_shuffle(Rand *r, int64_t *items, int64_t n) {
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)rand_below(r, (uint64_t)i + 1), t = items[i];
        items[i] = items[j];
        items[j] = t;
    }
}

// ---------------------------------------------------------------- fp32, and bf16: its upper half

static inline float bf16_to_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// out (n) from n bf16 at any address; they may be the second half of out's own bytes
static inline void bf16_to_floats(float *out, const void *bf16, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, (const char *)bf16 + 2 * i, 2);
        out[i] = bf16_to_float(bits);
    }
}

// Is none of n numbers infinite or NaN? Those have all exponent bits set.
static inline bool all_finite(const float *x, size_t n) {
    uint32_t special = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        special |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !special;
}

// round to nearest, ties to even; NaN stays NaN
static inline uint16_t float_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
