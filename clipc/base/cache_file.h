// What the files that are kept between runs have in common (--cache-images, --feature-cache): 128-bit hashes
// that identify what is stored, tables of them, and files that several runs may share. Such a file is only
// appended to; what was written completely before stays as it is, whatever happens to a run.
#ifndef CLIPC_CACHE_FILE_H
#define CLIPC_CACHE_FILE_H

#include "clipc/base/safe_file.h" // pread_all, pwrite_all, crc_of
#include "clipc/base/utils.h"     // die, warn, rand_mix

#include <assert.h>
#include <signal.h>
#include <sys/file.h>

// ---------------------------------------------------------------- identities

// Two hashes of the same bytes that have nothing in common: what one of them confuses, the other tells apart.
// Not cryptographic.
typedef struct {
    uint64_t a, b;
} Hash128;

static inline Hash128 hash128_start(void) {
    const Hash128 h = {HASH_START, 0x9e3779b97f4a7c15ull};
    return h;
}

static inline bool hash128_equal(Hash128 x, Hash128 y) { return x.a == y.a && x.b == y.b; }

// a: FNV-1a by words, as hash_bytes(). b: rotate, add, multiply.
static inline Hash128 hash128_word(Hash128 h, uint64_t word) {
    h.a = (h.a ^ word) * 0x100000001b3ull;
    h.a ^= h.a >> 32;
    h.b = ((h.b << 23 | h.b >> 41) + word) * 0x9e3779b97f4a7c15ull;
    return h;
}

// Continues `h` with these bytes and their number: two strings are not confused with their concatenation.
static inline Hash128 hash128_bytes(Hash128 h, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    const size_t words = bytes / 8;
    uint64_t word;
    for (size_t i = 0; i < words; i++) {
        memcpy(&word, p + 8 * i, 8);
        h = hash128_word(h, word);
    }
    word = 0;
    memcpy(&word, p + 8 * words, bytes % 8);
    return hash128_word(hash128_word(h, word), (uint64_t)bytes);
}

static inline Hash128 hash128_text(Hash128 h, const char *text) {
    return hash128_bytes(h, text, strlen(text));
}

// When a file was changed last: its content (m), or that or its status (c).
#ifdef __APPLE__
#define STAT_NANOSECONDS(st, which) \
    ((int64_t)(st).st_##which##timespec.tv_sec * 1000000000 + (st).st_##which##timespec.tv_nsec)
#else
#define STAT_NANOSECONDS(st, which) \
    ((int64_t)(st).st_##which##tim.tv_sec * 1000000000 + (st).st_##which##tim.tv_nsec)
#endif

// Continues *h with the path of a regular file and with what changes when its content does: its inode, size,
// and the times of change. False where there is no such file. The time of the last change of status (ctime)
// cannot be set back by a program, so that a file which was overwritten and given its old date is seen, too.
static inline bool hash128_file(Hash128 *h, const char *path) {
    struct stat st;
    if (stat(path, &st) || !S_ISREG(st.st_mode)) return false;
    const int64_t stamp[] = {
        (int64_t)st.st_ino, (int64_t)st.st_size, STAT_NANOSECONDS(st, m), STAT_NANOSECONDS(st, c)};
    *h = hash128_bytes(hash128_text(*h, path), stamp, sizeof stamp);
    return true;
}

// ---------------------------------------------------------------- a table of identities

// From keys to numbers from 0 on; a hash table with open addressing, at most half full. Starts as zeros.
typedef struct {
    Hash128 *keys;   // (slots)
    int64_t *values; // (slots) -1: free
    size_t slots, count;
} KeyTable;

static inline void key_table_free(KeyTable *t) {
    free(t->keys);
    free(t->values);
    memset(t, 0, sizeof *t);
}

// The slot of a key: where it is, or the free one where it belongs.
static inline size_t key_table_slot(const KeyTable *t, Hash128 key) {
    size_t at = (size_t)rand_mix(key.a ^ key.b) & (t->slots - 1);
    while (t->values[at] >= 0 && !hash128_equal(t->keys[at], key)) at = (at + 1) & (t->slots - 1);
    return at;
}

// The number of a key, or -1.
static inline int64_t key_table_find(const KeyTable *t, Hash128 key) {
    return t->slots ? t->values[key_table_slot(t, key)] : -1;
}

static inline void key_table_grow(KeyTable *t) {
    KeyTable bigger = {NULL, NULL, t->slots ? 2 * t->slots : 1024, t->count};
    bigger.keys = (Hash128 *)malloc_check(bigger.slots * sizeof *bigger.keys);
    bigger.values = (int64_t *)malloc_check(bigger.slots * sizeof *bigger.values);
    for (size_t i = 0; i < bigger.slots; i++) bigger.values[i] = -1;
    for (size_t i = 0; i < t->slots; i++) {
        if (t->values[i] < 0) continue;
        const size_t at = key_table_slot(&bigger, t->keys[i]);
        bigger.keys[at] = t->keys[i];
        bigger.values[at] = t->values[i];
    }
    key_table_free(t);
    *t = bigger;
}

// Gives a key its number; false, and nothing changed, where it has one.
static inline bool key_table_add(KeyTable *t, Hash128 key, int64_t value) {
    assert(value >= 0);
    if (2 * (t->count + 1) > t->slots) key_table_grow(t);
    const size_t at = key_table_slot(t, key);
    if (t->values[at] >= 0) return false;
    t->keys[at] = key;
    t->values[at] = value;
    t->count++;
    return true;
}

// ---------------------------------------------------------------- files

// Opens a cache to be read and written, or only read where writing is not permitted: *writable. Makes an
// empty file where there is none. -1 with errno where that is not possible.
static inline int cache_open(const char *path, bool *writable) {
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    *writable = fd >= 0;
    if (fd >= 0 || (errno != EACCES && errno != EROFS)) return fd;
    const int error = errno;
    const int read_only = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (read_only < 0) errno = error; // that nothing can be made in the folder, not that nothing is there
    return read_only;
}

// The same at the start of a run, which ends where it is not possible.
static inline int cache_open_check(const char *path, bool *writable) {
    struct stat st;
    const int fd = cache_open(path, writable);
    if (fd < 0) die(EXIT_RUNTIME, "%s: cannot open (%s); give another name", path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        die(EXIT_USAGE, "%s: is not a regular file; give another name", path);
    return fd;
}

// Waits until no other run holds the file; says so where it has to. False when `interrupted` (or NULL) became
// true before. Closing the file releases it, as does cache_unlock(). Where a file system has no locks, the
// file is used without.
static inline bool cache_lock(int fd, const char *path, const volatile sig_atomic_t *interrupted) {
    for (bool told = false; flock(fd, LOCK_EX | LOCK_NB);) {
        const struct timespec pause = {0, 100000000};
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK) {
            warn("%s: cannot be locked (%s); let only one run use it at a time", path, strerror(errno));
            return true;
        }
        if (!told) warn("%s: another run writes to it; waiting until that is done", path);
        told = true;
        nanosleep(&pause, NULL);
        if (interrupted && *interrupted) return false;
    }
    return true;
}

static inline void cache_unlock(int fd) { flock(fd, LOCK_UN); }

static inline int64_t file_bytes(int fd, const char *path) {
    struct stat st;
    if (fstat(fd, &st)) die(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
    return (int64_t)st.st_size;
}

#endif
