// Files that are whole or absent, and that say when they are damaged.
#ifndef CLIPC_SAFE_FILE_H
#define CLIPC_SAFE_FILE_H

#include "clipc/base/utils.h" // die, file_create, path_format

#include <zlib.h> // crc32_z

// A file that is whole or absent: written as PATH.part, then fsync, rename, and fsync of its folder. A run
// that is killed before safe_file_commit() leaves the previous file untouched; the next attempt overwrites
// what is left of `.part`.
typedef struct SafeFile {
    FILE *f;
    char path[PATH_SIZE], part[PATH_SIZE];
    const struct SafeFile
        *set; // (SAFE_FILE_SET) files that are saved together, this one of them; NULL: alone
} SafeFile;
enum { SAFE_FILE_SET = 10 };

static inline void safe_file_open(SafeFile *s, const char *path) {
    s->set = NULL;
    path_format(s->path, "%s", path);
    path_format(s->part, "%s.part", path);
    s->f = file_create(s->part); // read again by safe_file_seal()
    if (!s->f) die(EXIT_RUNTIME, "%s: cannot open (%s)", s->part, strerror(errno));
}

// Removes what was written so far, of the whole set.
static inline void safe_file_drop(const SafeFile *s) {
    for (int i = SAFE_FILE_SET - 1; s->set && i >= 0; i--)
        if (s->set[i].part[0]) unlink(s->set[i].part);
    unlink(s->part);
}

static inline void safe_file_failed(SafeFile *s) {
    int error = errno;
    safe_file_drop(s);
    die(EXIT_RUNTIME, "%s: cannot write (%s); free some space, the previous file is untouched", s->path,
        strerror(error));
}

static inline void safe_file_write(SafeFile *s, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, s->f) != bytes) safe_file_failed(s);
}

// Makes the names in a folder last through a power cut. False: it failed. A file system that has no such
// thing has done what it can.
static inline bool folder_sync(const char *folder) {
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool done = fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP || errno == ENOSYS;
    const int error = errno;
    close(fd);
    errno = error;
    return done;
}

// The two halves of safe_file_commit(), for files that change together: all are on disk before the first is
// renamed.
static inline void safe_file_sync(SafeFile *s) {
    if (fflush(s->f) || fsync(fileno(s->f)) || fclose(s->f)) safe_file_failed(s);
}

static inline void safe_file_rename(SafeFile *s) {
    if (rename(s->part, s->path)) safe_file_failed(s);
}

static inline void safe_file_commit(SafeFile *s) {
    char folder[PATH_SIZE];
    safe_file_sync(s);
    safe_file_rename(s);
    const char *slash = strrchr(s->path, '/');
    path_format(folder, "%.*s", slash ? (int)(slash - s->path) + 1 : 1, slash ? s->path : ".");
    if (!folder_sync(folder))
        die(EXIT_RUNTIME,
            "%s: is written, but may not last through a power cut: fsync of its folder failed (%s)", s->path,
            strerror(errno));
}

// ---------------------------------------------------------------- seals

// A sealed file ends with checksums, by which a reader notices damage anywhere in it. After the contents:
//   checksums  CRC-32 (zlib's) of each block of SEAL_BLOCK bytes; the last block may be shorter
//   end        four uint32, little-endian: CRC-32 of the checksums, their number, SEAL_BLOCK, SEAL_MAGIC
// Any flipped bit is found, as is any damage of up to 32 bits in a row; of other damage to a block all but
// one in 2^32.
enum { SEAL_BLOCK = 1 << 20, SEAL_END_BYTES = 16 };
#define SEAL_MAGIC 0x4c414553u // the bytes "SEAL"

typedef struct {
    int64_t contents;    // bytes before the checksums
    size_t blocks;       // that these are divided into
    uint32_t *checksums; // (blocks); free() it
    uint64_t identity;   // of the contents, from the checksums: a state names its weights by it
} Seal;

static inline size_t seal_blocks(int64_t contents) {
    return (size_t)((contents + SEAL_BLOCK - 1) / SEAL_BLOCK);
}

// Bytes that a seal adds to a file.
static inline int64_t seal_bytes(int64_t contents) {
    return (int64_t)seal_blocks(contents) * 4 + SEAL_END_BYTES;
}

// pread() until all is there; false with errno on an error, with errno 0 at the end of the file.
static inline bool pread_all(int fd, void *data, size_t bytes, int64_t at) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = pread(fd, (char *)data + done, bytes - done, (off_t)(at + (int64_t)done));
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = 0;
        if (got <= 0) return false;
        done += (size_t)got;
    }
    return true;
}

// pwrite() until all is there; false with errno on an error.
static inline bool pwrite_all(int fd, const void *data, size_t bytes, int64_t offset) {
    for (size_t n = 0; n < bytes;) {
        const ssize_t got = pwrite(fd, (const char *)data + n, bytes - n, (off_t)(offset + (int64_t)n));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        n += (size_t)got;
    }
    return true;
}

// CRC-32
static inline uint32_t crc_of(const void *data, size_t bytes) {
    return (uint32_t)crc32_z(0, (const unsigned char *)data, bytes);
}

// The checksums (blocks) of the first `contents` bytes of a file; false with errno (0: the end of the file)
// when they cannot be read.
static inline bool seal_compute(uint32_t *checksums, int fd, int64_t contents) {
    const int64_t blocks = (int64_t)seal_blocks(contents);
    bool whole = true;
    int error = 0;
#pragma omp parallel if (blocks > 1)
    {
        unsigned char *block = (unsigned char *)malloc_check(SEAL_BLOCK);
#pragma omp for schedule(dynamic) reduction(&& : whole) reduction(max : error)
        for (int64_t i = 0; i < blocks; i++) {
            const size_t bytes = (size_t)min_i64(SEAL_BLOCK, contents - i * SEAL_BLOCK);
            if (!pread_all(fd, block, bytes, i * SEAL_BLOCK)) {
                whole = false;
                error = errno;
            }
            checksums[i] = crc_of(block, bytes);
        }
        free(block);
    }
    errno = error;
    return whole;
}

static inline uint64_t seal_identity(int64_t contents, const uint32_t *checksums, size_t blocks) {
    return hash_bytes(
        hash_bytes(HASH_START, &contents, sizeof contents), checksums, blocks * sizeof *checksums);
}

// Ends a file, of which everything is written, with its seal; safe_file_commit() it next. Returns its
// identity.
static inline uint64_t safe_file_seal(SafeFile *s) {
    struct stat st;
    if (fflush(s->f) || fstat(fileno(s->f), &st) || fseeko(s->f, 0, SEEK_END)) safe_file_failed(s);
    const size_t blocks = seal_blocks(st.st_size);
    uint32_t *checksums = (uint32_t *)malloc_check(blocks * sizeof *checksums);
    if (!seal_compute(checksums, fileno(s->f), st.st_size)) safe_file_failed(s);
    const uint32_t end[] = {
        crc_of(checksums, blocks * sizeof *checksums), (uint32_t)blocks, (uint32_t)SEAL_BLOCK, SEAL_MAGIC};
    safe_file_write(s, checksums, blocks * sizeof *checksums);
    safe_file_write(s, end, sizeof end);
    const uint64_t identity = seal_identity(st.st_size, checksums, blocks);
    free(checksums);
    return identity;
}

// Reads the seal of an open file. False with errno 0 when it has none, or a damaged one; with another errno
// when it cannot be read.
static inline bool seal_read(Seal *seal, int fd) {
    struct stat st;
    uint32_t end[SEAL_END_BYTES / 4];
    memset(seal, 0, sizeof *seal);
    errno = 0;
    if (fstat(fd, &st) || st.st_size < SEAL_END_BYTES ||
        !pread_all(fd, end, sizeof end, st.st_size - SEAL_END_BYTES))
        return false;
    seal->blocks = end[1];
    seal->contents = st.st_size - SEAL_END_BYTES - 4 * (int64_t)seal->blocks;
    if (end[2] != SEAL_BLOCK || end[3] != SEAL_MAGIC || seal->contents < 0 ||
        seal_blocks(seal->contents) != seal->blocks)
        return false;
    seal->checksums = (uint32_t *)malloc_check(seal->blocks * sizeof *seal->checksums);
    const size_t bytes = seal->blocks * sizeof *seal->checksums;
    errno = 0;
    const bool read = pread_all(fd, seal->checksums, bytes, seal->contents);
    if (read && crc_of(seal->checksums, bytes) == end[0]) {
        seal->identity = seal_identity(seal->contents, seal->checksums, seal->blocks);
        return true;
    }
    const int error = read ? 0 : errno;
    free(seal->checksums);
    seal->checksums = NULL;
    errno = error;
    return false;
}

// Are the blocks undamaged that hold the first `bytes` bytes of the contents? errno as for seal_read().
static inline bool seal_holds(const Seal *seal, int fd, int64_t bytes) {
    const size_t blocks = seal_blocks(min_i64(bytes, seal->contents));
    const int64_t covered = min_i64(seal->contents, (int64_t)blocks * SEAL_BLOCK);
    uint32_t *checksums = (uint32_t *)malloc_check(blocks * sizeof *checksums);
    const bool read = seal_compute(checksums, fd, covered);
    const int error = read ? 0 : errno;
    const bool same = read && memcmp(checksums, seal->checksums, blocks * sizeof *checksums) == 0;
    free(checksums);
    errno = error;
    return same;
}

// Is a sealed file undamaged, from its first to its last bit? Then its identity. errno as for seal_read().
static inline bool sealed_file_holds(int fd, uint64_t *identity) {
    Seal seal;
    if (!seal_read(&seal, fd)) return false;
    const bool holds = seal_holds(&seal, fd, seal.contents);
    const int error = errno;
    *identity = seal.identity;
    free(seal.checksums);
    errno = error;
    return holds;
}

// After one of these said no: what is wrong with the file.
static inline const char *seal_fault(void) { return errno ? strerror(errno) : "is damaged"; }

#endif
