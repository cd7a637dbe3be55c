// What all harnesses of `make fuzz` share. A harness is a file dev/fuzz/fuzz_NAME.c that includes this file,
// then the shipped headers of a reader, and defines fuzz_one(), which reads one input as the programs would.
// An engine calls it with inputs by the thousand, in one process: libFuzzer, or dev/fuzz/loop.c.
//
// A reader may refuse an input by die(). Here exit() jumps back to the engine instead, and what the reader
// held then (memory, streams, descriptors, archives, maps) is given back: the macros below note what it
// acquires. Faults, which end the harness:
//   what AddressSanitizer and UBSan report
//   a reader that returns and still holds something
//   an exit code other than EXIT_USAGE: the machine is not to blame for an input
//   a message that is not one line of text
//   one allocation above FUZZ_MOST_BYTES, one input that takes more than FUZZ_SECONDS of processor time
// Nothing is written to disk: an input file is in memory, an output file is /dev/null.
#ifndef CLIPC_FUZZ_H
#define CLIPC_FUZZ_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
// The system headers that declare what the macros at the end replace come before those.
#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include <jpeglib.h>
#include <png.h>
#include <webp/decode.h>
#include <webp/demux.h>

enum { FUZZ_MOST_BYTES = 256 << 20, FUZZ_SECONDS = 2, FUZZ_REFUSED = 2 };

static void fuzz_one(const uint8_t *data, size_t size);

// Says what is wrong and ends the harness; the engine keeps the input.
__attribute__((format(printf, 1, 2))) static inline void fuzz_fault(const char *format, ...) {
    char line[1024];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    const size_t length = n < (int)sizeof line - 2 ? (size_t)n : sizeof line - 2;
    line[length] = '\n';
    if (write(STDERR_FILENO, "FAULT: ", 7) < 0 || write(STDERR_FILENO, line, length + 1) < 0) _exit(70);
    abort();
}

// ---------------------------------------------------------------- what the reader holds

typedef enum { FUZZ_MEMORY, FUZZ_STREAM, FUZZ_DESCRIPTOR, FUZZ_ARCHIVE, FUZZ_FOLDER, FUZZ_MAP } FuzzKind;

enum { FUZZ_MOST_HELD = 1 << 18, FUZZ_SLOTS = 2 * FUZZ_MOST_HELD };
typedef struct {
    uintptr_t key; // an address, or a descriptor + 1
    size_t bytes;  // of a map
    FuzzKind kind;
} FuzzHeld;
static FuzzHeld fuzz_held[FUZZ_MOST_HELD]; // (fuzz_held_count)
static int32_t fuzz_index[FUZZ_SLOTS];     // a hash table with open addressing: 1 + place in fuzz_held, or 0
static int fuzz_held_count;
static bool fuzz_inside; // a reader is at work

static inline size_t fuzz_home(uintptr_t key) {
    return (size_t)((uint64_t)key * 0x9e3779b97f4a7c15ull >> 40) % FUZZ_SLOTS;
}

static inline size_t fuzz_slot(uintptr_t key) {
    size_t i = fuzz_home(key);
    while (fuzz_index[i] && fuzz_held[fuzz_index[i] - 1].key != key) i = (i + 1) % FUZZ_SLOTS;
    return i;
}

static inline void fuzz_hold(uintptr_t key, FuzzKind kind, size_t bytes) {
    const FuzzHeld held = {key, bytes, kind};
    if (!fuzz_inside || !key) return;
    if (fuzz_held_count == FUZZ_MOST_HELD) fuzz_fault("holds more than %d things", FUZZ_MOST_HELD);
    const size_t i = fuzz_slot(key);
    if (!fuzz_index[i]) fuzz_index[i] = ++fuzz_held_count;
    fuzz_held[fuzz_index[i] - 1] = held;
}

static inline void fuzz_drop(uintptr_t key) {
    size_t hole = fuzz_slot(key);
    if (!fuzz_index[hole]) return;
    // the last one moves to its place in the list
    const size_t last = fuzz_slot(fuzz_held[fuzz_held_count - 1].key);
    fuzz_held[fuzz_index[hole] - 1] = fuzz_held[fuzz_held_count - 1];
    fuzz_index[last] = fuzz_index[hole];
    fuzz_held_count--;
    // and in the table moves up what stands behind the hole (Knuth 1973, 6.4, algorithm R)
    for (size_t i = (hole + 1) % FUZZ_SLOTS; fuzz_index[i]; i = (i + 1) % FUZZ_SLOTS) {
        const size_t home = fuzz_home(fuzz_held[fuzz_index[i] - 1].key);
        if ((i - home) % FUZZ_SLOTS < (i - hole) % FUZZ_SLOTS) continue;
        fuzz_index[hole] = fuzz_index[i];
        hole = i;
    }
    fuzz_index[hole] = 0;
}

static inline void fuzz_give_back(const FuzzHeld *h) {
    void *p = (void *)h->key;
    switch (h->kind) {
    case FUZZ_MEMORY: free(p); break;
    case FUZZ_STREAM: fclose((FILE *)p); break;
    case FUZZ_DESCRIPTOR: close((int)h->key - 1); break;
    case FUZZ_ARCHIVE: archive_read_free((struct archive *)p); break;
    case FUZZ_FOLDER: closedir((DIR *)p); break;
    case FUZZ_MAP: munmap(p, h->bytes); break;
    }
}

static inline void fuzz_give_all_back(void) {
    while (fuzz_held_count) {
        const FuzzHeld last = fuzz_held[fuzz_held_count - 1];
        fuzz_drop(last.key);
        fuzz_give_back(&last);
    }
}

// ---------------------------------------------------------------- what the macros below stand for

static inline void *fuzz_bounded(size_t bytes) {
    if (bytes > FUZZ_MOST_BYTES) fuzz_fault("asks for %zu bytes at once", bytes);
    return NULL;
}

static inline void *fuzz_malloc(size_t bytes) {
    fuzz_bounded(bytes);
    void *p = malloc(bytes);
    fuzz_hold((uintptr_t)p, FUZZ_MEMORY, 0);
    return p;
}

static inline void *fuzz_calloc(size_t count, size_t size) {
    fuzz_bounded(size && count > SIZE_MAX / size ? SIZE_MAX : count * size);
    void *p = calloc(count, size);
    fuzz_hold((uintptr_t)p, FUZZ_MEMORY, 0);
    return p;
}

static inline void *fuzz_realloc(void *old, size_t bytes) {
    fuzz_bounded(bytes);
    if (old) fuzz_drop((uintptr_t)old);
    void *p = realloc(old, bytes);
    fuzz_hold((uintptr_t)p, FUZZ_MEMORY, 0);
    return p;
}

static inline int fuzz_memalign(void **p, size_t alignment, size_t bytes) {
    fuzz_bounded(bytes);
    const int error = posix_memalign(p, alignment, bytes);
    if (!error) fuzz_hold((uintptr_t)*p, FUZZ_MEMORY, 0);
    return error;
}

static inline void fuzz_free(void *p) {
    if (p) fuzz_drop((uintptr_t)p);
    free(p);
}

static inline ssize_t fuzz_getline(char **line, size_t *capacity, FILE *f) {
    if (*line) fuzz_drop((uintptr_t)*line);
    const ssize_t n = getline(line, capacity, f);
    fuzz_hold((uintptr_t)*line, FUZZ_MEMORY, 0);
    return n;
}

static inline FILE *fuzz_fopen(const char *path, const char *mode) {
    FILE *f = fopen(mode[0] == 'r' ? path : "/dev/null", mode);
    fuzz_hold((uintptr_t)f, FUZZ_STREAM, 0);
    return f;
}

static inline FILE *fuzz_fdopen(int fd, const char *mode) {
    FILE *f = fdopen(fd, mode);
    if (f) fuzz_drop((uintptr_t)fd + 1);
    fuzz_hold((uintptr_t)f, FUZZ_STREAM, 0);
    return f;
}

// The text of a stream in memory belongs to its caller once the stream is closed.
static struct {
    FILE *f;
    char **text;
} fuzz_memory_stream;

static inline FILE *fuzz_open_memstream(char **text, size_t *bytes) {
    FILE *f = open_memstream(text, bytes);
    fuzz_memory_stream.f = f;
    fuzz_memory_stream.text = text;
    fuzz_hold((uintptr_t)f, FUZZ_STREAM, 0);
    return f;
}

static inline int fuzz_fclose(FILE *f) {
    fuzz_drop((uintptr_t)f);
    const int result = fclose(f);
    if (f == fuzz_memory_stream.f) fuzz_hold((uintptr_t)*fuzz_memory_stream.text, FUZZ_MEMORY, 0);
    if (f == fuzz_memory_stream.f) fuzz_memory_stream.f = NULL;
    return result;
}

static char fuzz_path[32]; // of the input: fuzz_file()

// A new file is /dev/null, unless the input has its name.
static inline int fuzz_open(const char *path, int flags, ...) {
    const bool new_file = flags & O_CREAT && strcmp(path, fuzz_path) != 0;
    const int fd = open(new_file ? "/dev/null" : path, flags & ~(O_CREAT | O_EXCL));
    if (fd >= 0) fuzz_hold((uintptr_t)fd + 1, FUZZ_DESCRIPTOR, 0);
    return fd;
}

// In place of a temporary file.
static inline int fuzz_temporary(void) {
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd >= 0) fuzz_hold((uintptr_t)fd + 1, FUZZ_DESCRIPTOR, 0);
    return fd;
}

static inline int fuzz_close(int fd) {
    fuzz_drop((uintptr_t)fd + 1);
    return close(fd);
}

static inline void *fuzz_mmap(size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *p = mmap(NULL, bytes, protection, flags, fd, offset);
    if (p != MAP_FAILED) fuzz_hold((uintptr_t)p, FUZZ_MAP, bytes);
    return p;
}

static inline int fuzz_munmap(void *p, size_t bytes) {
    fuzz_drop((uintptr_t)p);
    return munmap(p, bytes);
}

static inline struct archive *fuzz_archive_new(void) {
    struct archive *a = archive_read_new();
    fuzz_hold((uintptr_t)a, FUZZ_ARCHIVE, 0);
    return a;
}

static inline int fuzz_archive_free(struct archive *a) {
    fuzz_drop((uintptr_t)a);
    return archive_read_free(a);
}

static inline DIR *fuzz_opendir(const char *path) {
    DIR *d = opendir(path);
    fuzz_hold((uintptr_t)d, FUZZ_FOLDER, 0);
    return d;
}

static inline int fuzz_closedir(DIR *d) {
    fuzz_drop((uintptr_t)d);
    return closedir(d);
}

// A message is one write of a line (message_v); it is swallowed.
static inline ssize_t fuzz_write(int fd, const void *data, size_t bytes) {
    const unsigned char *text = (const unsigned char *)data;
    if (fd != STDERR_FILENO) return write(fd, data, bytes);
    for (size_t i = 0; i < bytes; i++)
        if ((text[i] < ' ' && i + 1 < bytes) || text[i] == 127)
            fuzz_fault("a message with control character %d: %.*s", text[i], (int)bytes, (const char *)text);
    return (ssize_t)bytes;
}

// In place of rename(), unlink(), fsync().
static inline int fuzz_done(const char *path) {
    (void)path;
    return 0;
}

static jmp_buf fuzz_return;

_Noreturn static inline void fuzz_exit(int code) {
    if (code != 0 && code != FUZZ_REFUSED) fuzz_fault("exit code %d", code);
    longjmp(fuzz_return, 1);
}

// ---------------------------------------------------------------- the input as a file

// The path of a file of these bytes, in memory; each call replaces the file of the call before.
static inline const char *fuzz_file(const uint8_t *data, size_t size) {
    static int fd = -1;
    if (fd < 0) fd = memfd_create("input", MFD_CLOEXEC);
    snprintf(fuzz_path, sizeof fuzz_path, "/proc/self/fd/%d", fd);
    if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size)
        fuzz_fault("no file in memory: %s", strerror(errno));
    return fuzz_path;
}

// The input as a string: `size` bytes, then a NUL. free() it.
static inline char *fuzz_string(const uint8_t *data, size_t size) {
    char *text = (char *)fuzz_malloc(size + 1);
    memcpy(text, data, size);
    text[size] = 0;
    return text;
}

// Uses all bytes, so that a sanitizer sees one that is not there.
static inline void fuzz_use(const void *data, size_t size) {
    static volatile uint8_t sum;
    for (size_t i = 0; i < size; i++) sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
}

// ---------------------------------------------------------------- the engine's side

// In place of stdout, without a system call for each line.
static inline ssize_t fuzz_swallow(void *nothing, const char *text, size_t bytes) {
    (void)nothing;
    (void)text;
    return (ssize_t)bytes;
}

static volatile sig_atomic_t fuzz_executions;

// After each second of processor time: is it still the same input?
static inline void fuzz_tick(int signal) {
    static sig_atomic_t last, ticks;
    (void)signal;
    ticks = fuzz_executions == last ? ticks + 1 : 0;
    last = fuzz_executions;
    if (fuzz_inside && ticks > FUZZ_SECONDS) fuzz_fault("one input takes more than %d seconds", FUZZ_SECONDS);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const struct itimerval second = {{1, 0}, {1, 0}};
    const cookie_io_functions_t nowhere = {NULL, fuzz_swallow, NULL, NULL};
    (void)argc;
    (void)argv;
    json_set_alloc_funcs(fuzz_malloc, fuzz_free);
    signal(SIGPROF, fuzz_tick);
    setitimer(ITIMER_PROF, &second, NULL);
    stdout = fopencookie(NULL, "w", nowhere);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_executions = (fuzz_executions + 1) & 0xffffff;
    if (setjmp(fuzz_return) == 0) {
        fuzz_inside = true;
        fuzz_one(data, size);
        if (fuzz_held_count) fuzz_fault("%d things are still held", fuzz_held_count);
    }
    fuzz_inside = false;
    fuzz_memory_stream.f = NULL;
    fuzz_give_all_back();
    return 0;
}

#define malloc(bytes) fuzz_malloc(bytes)
#define calloc(count, size) fuzz_calloc(count, size)
#define realloc(old, bytes) fuzz_realloc(old, bytes)
#define posix_memalign(p, alignment, bytes) fuzz_memalign(p, alignment, bytes)
#define free(p) fuzz_free(p)
#define getline(line, capacity, f) fuzz_getline(line, capacity, f)
#define fopen(path, mode) fuzz_fopen(path, mode)
#define fdopen(fd, mode) fuzz_fdopen(fd, mode)
#define open_memstream(text, bytes) fuzz_open_memstream(text, bytes)
#define fclose(f) fuzz_fclose(f)
#define open(...) fuzz_open(__VA_ARGS__)
#define mkostemp(path, flags) fuzz_temporary()
#define close(fd) fuzz_close(fd)
#define mmap(at, bytes, protection, flags, fd, offset) fuzz_mmap(bytes, protection, flags, fd, offset)
#define munmap(p, bytes) fuzz_munmap(p, bytes)
#define archive_read_new() fuzz_archive_new()
#define archive_read_free(a) fuzz_archive_free(a)
#define opendir(path) fuzz_opendir(path)
#define closedir(d) fuzz_closedir(d)
#define rename(from, to) fuzz_done(to)
#define unlink(path) fuzz_done(path)
#define fsync(fd) fuzz_done((fd) < 0 ? NULL : "")
#define write(fd, data, bytes) fuzz_write(fd, data, bytes)
#define exit(code) fuzz_exit(code)
#define PROGRAM_EXIT(code) fuzz_exit(code) // of die()

#endif
