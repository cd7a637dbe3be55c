// For LD_PRELOAD under Linux with glibc (test_run_faults.py): one call of a function fails, or clocks jump.
//   FAULT=name      which calls: a name of FAULTS below
//   FAULT_AT=n      the one that fails, 0 is the first
//   FAULT_ERRNO=n   its errno
//   FAULT_JUMP=n    after n readings of the time of day it is an hour behind
//   FAULT_COUNT=file   at exit, lines "name calls" are appended
// Streams 0 to 2 are left alone. fopen(), fread(), fwrite(), fclose(), … count as open, read, write, close:
// what the C library calls inside is out of reach.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define FAULTS(X) \
    X(malloc) X(pthread_create) X(open) X(read) X(pread) X(write) X(fsync) X(rename) X(close) X(clock)

#define ENUMERATOR(name) FAULT_##name,
#define NAME(name) #name,
enum { FAULTS(ENUMERATOR) FAULT_KINDS };
static const char *const names[] = {FAULTS(NAME)};
static long counts[FAULT_KINDS];
static int which = -1, error;
static long at = -1, jump = -1;
static const char *count_file;
static bool counting; // not before the constructor, nor when the program has ended

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

__attribute__((constructor)) static void begin(void) {
    const char *fault = getenv("FAULT");
    for (int i = 0; fault && i < FAULT_KINDS; i++)
        if (strcmp(fault, names[i]) == 0) which = i;
    at = number("FAULT_AT", -1);
    error = (int)number("FAULT_ERRNO", EIO);
    jump = number("FAULT_JUMP", -1);
    count_file = getenv("FAULT_COUNT");
    unsetenv("LD_PRELOAD"); // not in what the program starts
    counting = true;
}

__attribute__((destructor)) static void end(void) {
    counting = false;
    const int fd =
        count_file ? (int)syscall(SYS_openat, AT_FDCWD, count_file, O_WRONLY | O_CREAT | O_APPEND, 0666) : -1;
    for (int i = 0; fd >= 0 && i < FAULT_KINDS; i++) dprintf(fd, "%s %ld\n", names[i], counts[i]);
}

// Does this call fail? Then errno is set.
static bool fails(int kind) {
    if (!counting) return false;
    const long count = __atomic_fetch_add(&counts[kind], 1, __ATOMIC_RELAXED);
    if (kind != which || count != at) return false;
    errno = error;
    return true;
}

// The function of the C library, looked up once: two threads that do so at once find the same.
#define REAL(type, name, ...)                \
    static type (*real)(__VA_ARGS__) = NULL; \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

// ---------------------------------------------------------------- memory, threads

void *malloc(size_t bytes) { return fails(FAULT_malloc) ? NULL : __libc_malloc(bytes); }
void *calloc(size_t count, size_t size) { return fails(FAULT_malloc) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t bytes) { return fails(FAULT_malloc) ? NULL : __libc_realloc(old, bytes); }
int posix_memalign(void **p, size_t alignment, size_t bytes) {
    if (fails(FAULT_malloc)) return error;
    *p = __libc_memalign(alignment, bytes);
    return *p ? 0 : ENOMEM;
}
int pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return fails(FAULT_pthread_create) ? error : real(thread, attributes, start, argument);
}

// ---------------------------------------------------------------- files

int open(const char *path, int flags, ...) {
    REAL(int, open, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return fails(FAULT_open) ? -1 : real(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    REAL(int, openat, int, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return fails(FAULT_open) ? -1 : real(folder, path, flags, mode);
}
FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, fopen, const char *, const char *);
    return fails(FAULT_open) ? NULL : real(path, mode);
}
ssize_t read(int fd, void *data, size_t bytes) {
    REAL(ssize_t, read, int, void *, size_t);
    return fd > 2 && fails(FAULT_read) ? -1 : real(fd, data, bytes);
}
ssize_t pread(int fd, void *data, size_t bytes, off_t offset) {
    REAL(ssize_t, pread, int, void *, size_t, off_t);
    return fails(FAULT_pread) ? -1 : real(fd, data, bytes, offset);
}
ssize_t write(int fd, const void *data, size_t bytes) {
    REAL(ssize_t, write, int, const void *, size_t);
    return fd > 2 && fails(FAULT_write) ? -1 : real(fd, data, bytes);
}
int fsync(int fd) {
    REAL(int, fsync, int);
    return fails(FAULT_fsync) ? -1 : real(fd);
}
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    return fails(FAULT_rename) ? -1 : real(from, to);
}
int close(int fd) { // closed all the same, as Linux does
    REAL(int, close, int);
    const bool failing = fd > 2 && fails(FAULT_close);
    const int result = real(fd);
    if (failing) errno = error;
    return failing ? -1 : result;
}

// What ferror() tells, of a stream of glibc
static bool stream_fails(FILE *f, int kind) {
    if (f == stdin || f == stdout || f == stderr || !fails(kind)) return false;
    f->_flags |= 0x20;
    return true;
}
size_t fread(void *data, size_t size, size_t count, FILE *f) {
    REAL(size_t, fread, void *, size_t, size_t, FILE *);
    return stream_fails(f, FAULT_read) ? 0 : real(data, size, count, f);
}
char *fgets(char *line, int size, FILE *f) {
    REAL(char *, fgets, char *, int, FILE *);
    return stream_fails(f, FAULT_read) ? NULL : real(line, size, f);
}
ssize_t getline(char **line, size_t *size, FILE *f) {
    REAL(ssize_t, getline, char **, size_t *, FILE *);
    return stream_fails(f, FAULT_read) ? -1 : real(line, size, f);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *f) {
    REAL(size_t, fwrite, const void *, size_t, size_t, FILE *);
    return stream_fails(f, FAULT_write) ? 0 : real(data, size, count, f);
}
int fflush(FILE *f) {
    REAL(int, fflush, FILE *);
    return f && stream_fails(f, FAULT_write) ? EOF : real(f);
}
int fclose(FILE *f) {
    REAL(int, fclose, FILE *);
    const bool failing = f != stdin && f != stdout && f != stderr && fails(FAULT_close);
    const int result = real(f);
    if (failing) errno = error;
    return failing ? EOF : result;
}

// ---------------------------------------------------------------- clocks

static time_t behind(void) {
    const long count = counting ? __atomic_fetch_add(&counts[FAULT_clock], 1, __ATOMIC_RELAXED) : 0;
    return jump >= 0 && count >= jump ? 3600 : 0;
}
int clock_gettime(clockid_t clock, struct timespec *t) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    const int result = real(clock, t);
    if (result == 0 && clock == CLOCK_REALTIME) t->tv_sec -= behind(); // the others never go back
    return result;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    REAL(int, gettimeofday, struct timeval *, void *);
    const int result = real(t, zone);
    if (result == 0) t->tv_sec -= behind();
    return result;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
