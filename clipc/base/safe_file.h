// Files that are whole or absent.
#ifndef CLIPC_SAFE_FILE_H
#define CLIPC_SAFE_FILE_H

#include "clipc/base/utils.h" // die, fopen_check, path_format

// A file that is whole or absent: written as PATH.part, then fsync and rename. A run that is killed before
// safe_file_commit() leaves the previous file untouched; the next attempt overwrites what is left of `.part`.
typedef struct SafeFile {
    FILE *f;
    char path[PATH_SIZE], part[PATH_SIZE];
    const struct SafeFile *goes_with; // another file whose part is useless without this one; or NULL
} SafeFile;

static inline void safe_file_open(SafeFile *s, const char *path) {
    s->goes_with = NULL;
    path_format(s->path, "%s", path);
    path_format(s->part, "%s.part", path);
    s->f = fopen_check(s->part, "wb");
}

static inline void safe_file_failed(SafeFile *s) {
    int error = errno;
    unlink(s->part);
    if (s->goes_with) unlink(s->goes_with->part);
    die(EXIT_RUNTIME, "%s: cannot write (%s); free some space, the previous file is untouched", s->path,
        strerror(error));
}

static inline void safe_file_write(SafeFile *s, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, s->f) != bytes) safe_file_failed(s);
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
    safe_file_sync(s);
    safe_file_rename(s);
}

#endif
