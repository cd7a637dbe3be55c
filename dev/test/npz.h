// Reads numpy's .npz (a zip of .npy arrays) and lone .npy data for tests. A file that cannot be read ends the
// program. Link with -larchive.
#ifndef CLIPC_NPZ_H
#define CLIPC_NPZ_H

#include "clipc/base/utils.h"

#include <archive.h>
#include <archive_entry.h>

#define NPZ_MAX_DIMENSIONS 8

typedef struct {
    char *name;    // without .npy
    char dtype[4]; // "f4", "f8", "u1", "i4", "i8" …: kind and bytes of an element, little-endian
    int ndim;
    int64_t shape[NPZ_MAX_DIMENSIONS]; // row-major
    int64_t count;                     // product of the shape, 1 for a scalar
    void *data;
} NpzArray;

typedef struct {
    NpzArray *arrays;
    size_t count, capacity;
} Npz;

// What follows 'key': in the header, a Python dictionary: {'descr': '<f4', 'fortran_order': False,
// 'shape': (3, 4), }
static inline const char *npy_field(const char *header, const char *key, const char *path) {
    const char *p = strstr(header, key);
    if (!p) die(EXIT_USAGE, "%s: no %s in the header of an array", path, key);
    p += strlen(key);
    return p + strspn(p, " :'");
}

// A matrix in column-major order (`from`) as row-major.
static inline void npy_transpose(NpzArray *a, const unsigned char *from, size_t size, const char *path) {
    if (a->ndim != 2) die(EXIT_USAGE, "%s: %s: %d axes in column-major order", path, a->name, a->ndim);
    const size_t rows = (size_t)a->shape[0], columns = (size_t)a->shape[1];
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            memcpy((char *)a->data + (i * columns + j) * size, from + (j * rows + i) * size, size);
}

// bytes: one whole .npy file, its data is copied
static inline void npy_parse(
    NpzArray *a, const char *name, const unsigned char *bytes, size_t length, const char *path) {
    char header[4096];
    if (length < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        die(EXIT_USAGE, "%s: %s is not an .npy array", path, name);
    size_t prefix = bytes[6] == 1 ? 10 : 12,
           n = bytes[8] | (size_t)bytes[9] << 8; // version 2 has a length of 4 bytes
    if (prefix == 12) n |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (n >= sizeof header || prefix + n > length) die(EXIT_USAGE, "%s: %s: bad header", path, name);
    memcpy(header, bytes + prefix, n);
    header[n] = 0;
    const char *descr = npy_field(header, "'descr'", path), *shape = npy_field(header, "'shape'", path);
    const bool fortran = strncmp(npy_field(header, "'fortran_order'", path), "False", 5) != 0;
    if (*shape != '(') die(EXIT_USAGE, "%s: %s: bad shape", path, name);
    if ((descr[0] != '<' && descr[0] != '|') || !strchr("fuib", descr[1]) || !strchr("1248", descr[2]) ||
        descr[3] != '\'')
        die(EXIT_USAGE, "%s: %s: type %.4s is not offered", path, name, descr);
    a->name = strdup_check(name);
    if (ends_with(a->name, ".npy")) a->name[strlen(a->name) - 4] = 0;
    snprintf(a->dtype, sizeof a->dtype, "%.2s", descr + 1);
    a->ndim = 0;
    a->count = 1;
    for (const char *p = shape + 1; *p && *p != ')';) {
        char *end;
        long long size = strtoll(p, &end, 10);
        if (end == p || size < 0 || a->ndim == NPZ_MAX_DIMENSIONS)
            die(EXIT_USAGE, "%s: %s: bad shape", path, name);
        a->shape[a->ndim++] = size;
        a->count *= size;
        p = end + strspn(end, ", ");
    }
    size_t data = (size_t)a->count * (size_t)(descr[2] - '0');
    if (prefix + n + data != length)
        die(EXIT_USAGE, "%s: %s: %zu bytes of data instead of %zu", path, name, length - prefix - n, data);
    a->data = memcpy(malloc_check(data), bytes + prefix + n, data);
    if (fortran && a->ndim > 1) npy_transpose(a, bytes + prefix + n, (size_t)(descr[2] - '0'), path);
}

static inline Npz npz_read(const char *path) {
    Npz npz = {NULL, 0, 0};
    struct archive *zip = archive_read_new();
    struct archive_entry *entry;
    unsigned char *bytes = NULL;
    size_t capacity = 0;
    archive_read_support_format_zip(zip);
    if (archive_read_open_filename(zip, path, 1 << 16) != ARCHIVE_OK)
        die(EXIT_USAGE, "%s: cannot open (%s)", path, archive_error_string(zip));
    int status;
    while ((status = archive_read_next_header(zip, &entry)) == ARCHIVE_OK) {
        const char *name = archive_entry_pathname_utf8(entry);
        size_t n = 0;
        for (la_ssize_t got = 1; got > 0; n += (size_t)got) { // the header need not have the size
            list_grow((void **)&bytes, &capacity, n + 65536, 1);
            got = archive_read_data(zip, bytes + n, capacity - n);
            if (got < 0) die(EXIT_USAGE, "%s: %s: %s", path, name, archive_error_string(zip));
        }
        list_grow((void **)&npz.arrays, &npz.capacity, npz.count + 1, sizeof *npz.arrays);
        npy_parse(&npz.arrays[npz.count++], name ? name : "?", bytes, n, path);
    }
    if (status != ARCHIVE_EOF) die(EXIT_USAGE, "%s: %s", path, archive_error_string(zip));
    archive_read_free(zip);
    free(bytes);
    return npz;
}

// NULL if there is no such array
static inline const NpzArray *npz_find(const Npz *npz, const char *name) {
    for (size_t i = 0; i < npz->count; i++)
        if (strcmp(npz->arrays[i].name, name) == 0) return &npz->arrays[i];
    return NULL;
}

static inline void npz_free(Npz *npz) {
    for (size_t i = 0; i < npz->count; i++) {
        free(npz->arrays[i].name);
        free(npz->arrays[i].data);
    }
    free(npz->arrays);
    npz->arrays = NULL;
    npz->count = npz->capacity = 0;
}

#endif
