// The packed weight file (.bin) on disk: reading, with every check, and writing.
//
// Little-endian, four parts, each beginning at a multiple of 64 bytes:
//   header     256 int32, see the HEADER_ constants: the configuration in the order of CONFIG_FIELDS (floats
//              by their bits), and in the last 256 bytes a name, padded with NUL
//   tokenizer  the text of CLIP's merges, one pair a line, or a packed vocabulary (clipc/data/vocabulary.h);
//              absent where captions cannot be read
//   tensors    in the order of the tables, each at a multiple of 64 bytes, padded with zeros
//   seal       checksums of all that, see clipc/base/safe_file.h (absent in version 1)
#ifndef CLIPC_WEIGHT_FILE_H
#define CLIPC_WEIGHT_FILE_H

#include "clipc/base/safe_file.h" // SafeFile
#include "clipc/model/weights.h"  // ClipConfig, TensorTable

// An open weight file whose header was checked; the tensors are not read yet.
typedef struct {
    FILE *f;
    char path[PATH_SIZE];
    ClipConfig config;
    int dtype;    // DTYPE_FP32, DTYPE_BF16
    char *merges; // the tokenizer section, with a NUL after it, or NULL; free() it
    size_t merges_bytes;
} WeightFile;

// What a tokenizer section holds: a table of merges has no NUL, a packed vocabulary begins with "VOC\0".
static inline int tokenizer_kind(const char *section, size_t bytes) {
    return bytes >= 4 && memcmp(section, "VOC", 4) == 0 ? TOKENIZER_VOCABULARY : TOKENIZER_MERGES;
}

static inline size_t weights_element_bytes(int dtype) { return dtype == DTYPE_BF16 ? 2 : 4; }

// Bytes of all tensors in a file of number format `dtype`, padding included.
static inline size_t weights_tensor_bytes(const TensorTable *t, int dtype) {
    size_t bytes = 0;
    for (int i = 0; i < t->count; i++)
        bytes += round_up(t->list[i].count * weights_element_bytes(dtype), WEIGHTS_ALIGNMENT);
    return bytes;
}

// The configuration in a header; ends the program when a field is outside its limits.
static inline void weight_file_read_config(WeightFile *w, const int32_t header[HEADER_INTS]) {
    int field = 0, stored = header[HEADER_FIELDS];
#define X(type, name, low, high)                                    \
    if (field < stored && field < HEADER_NAME - HEADER_CONFIG)      \
        memcpy(&w->config.name, &header[HEADER_CONFIG + field], 4); \
    field++;
    CONFIG_FIELDS(X)
#undef X
    char error[256];
    if (stored < 1 || stored > field)
        die(EXIT_USAGE,
            "%s: %d configuration fields, this program knows %d; get a newer clip.c or convert it again with "
            "dev/convert.py",
            w->path, stored, field);
    if (!config_check(&w->config, error))
        die(EXIT_USAGE, "%s: %s; convert it again with dev/convert.py", w->path, error);
    memcpy(w->config.name, &header[HEADER_NAME], NAME_BYTES);
    w->config.name[NAME_BYTES - 1] = 0;
    for (char *p = w->config.name; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) *p = '?'; // it is printed, and names a folder
}

// Compares the number of tensors, the kind and size of the tokenizer section and the size of the file with
// what the configuration implies; ends the program when one differs.
static inline void weight_file_check_size(const WeightFile *w, const int32_t header[HEADER_INTS]) {
    TensorTable t = tensor_table_create(&w->config);
    const int64_t merges = header[HEADER_MERGES_BYTES];
    struct stat st;
    if (fstat(fileno(w->f), &st)) die(EXIT_RUNTIME, "%s: %s", w->path, strerror(errno));
    if (merges < 0 || merges > TOKENIZER_MOST_BYTES)
        die(EXIT_USAGE, "%s: a tokenizer of %lld bytes; convert it again with dev/convert.py", w->path,
            (long long)merges);
    if (header[HEADER_TOKENIZER] < 0 || header[HEADER_TOKENIZER] > TOKENIZER_VOCABULARY)
        die(EXIT_USAGE, "%s: tokenizer of kind %d, this program knows kinds 0 to %d; get a newer clip.c",
            w->path, header[HEADER_TOKENIZER], TOKENIZER_VOCABULARY);
    if (header[HEADER_TENSORS] != t.count)
        die(EXIT_USAGE, "%s: %d tensors, its configuration has %d; convert it again with dev/convert.py",
            w->path, header[HEADER_TENSORS], t.count);
    const int64_t contents = HEADER_BYTES + (int64_t)round_up((size_t)merges, WEIGHTS_ALIGNMENT) +
                             (int64_t)weights_tensor_bytes(&t, w->dtype);
    const int64_t expected = contents + (header[HEADER_VERSION] > 1 ? seal_bytes(contents) : 0);
    tensor_table_free(&t);
    const int64_t short_of = expected - st.st_size;
    if (short_of)
        die(EXIT_USAGE,
            "%s: file is %lld bytes %s the %lld its header announces; convert it again with dev/convert.py",
            w->path, (long long)(short_of > 0 ? short_of : -short_of),
            short_of > 0 ? "short of" : "longer than", (long long)expected);
}

// Opens `path` and checks every field, the exact size and the seal before anything is allocated by them; any
// fault ends the program with one line that says what is wrong and what to do.
static inline void weight_file_open(WeightFile *w, const char *path) {
    memset(w, 0, sizeof *w);
    path_format(w->path, "%s", path);
    w->f = fopen_check(path, "rb");
    int32_t header[HEADER_INTS];
    const bool whole = fread(header, 1, HEADER_BYTES, w->f) == HEADER_BYTES;
    if (ferror(w->f)) die(EXIT_RUNTIME, "%s: read error (%s)", path, strerror(errno));
    if (!whole)
        die(EXIT_USAGE, "%s: shorter than the %d bytes of a header; make it with dev/convert.py", path,
            HEADER_BYTES);
    if (header[HEADER_MAGIC] != WEIGHTS_MAGIC)
        die(EXIT_USAGE,
            "%s: not a packed weight file; convert a checkpoint with dev/convert.py %s -o OUT.bin", path,
            path);
    if (header[HEADER_VERSION] < 1 || header[HEADER_VERSION] > WEIGHTS_VERSION)
        die(EXIT_USAGE,
            "%s: version %d, this program reads versions 1 to %d; convert it again with dev/convert.py", path,
            header[HEADER_VERSION], WEIGHTS_VERSION);
    w->dtype = header[HEADER_DTYPE];
    if (w->dtype != DTYPE_FP32 && w->dtype != DTYPE_BF16)
        die(EXIT_USAGE,
            "%s: unknown number format %d (0 is fp32, 1 is bf16); convert it again with dev/convert.py", path,
            w->dtype);
    weight_file_read_config(w, header);
    weight_file_check_size(w, header);
    uint64_t identity;
    if (header[HEADER_VERSION] > 1 && !sealed_file_holds(fileno(w->f), &identity)) {
        if (errno) die(EXIT_RUNTIME, "%s: cannot be read (%s)", path, strerror(errno));
        die(EXIT_USAGE,
            "%s: is damaged (its checksums differ); take another copy, or convert it again with "
            "dev/convert.py",
            path);
    }
    w->merges_bytes = (size_t)header[HEADER_MERGES_BYTES];
    if (!w->merges_bytes) return;
    const size_t padded = round_up(w->merges_bytes, WEIGHTS_ALIGNMENT);
    w->merges = (char *)malloc_check(padded + 1);
    fread_check(w->merges, padded, w->f, path);
    w->merges[w->merges_bytes] = 0;
    if (tokenizer_kind(w->merges, w->merges_bytes) != header[HEADER_TOKENIZER])
        die(EXIT_USAGE,
            "%s: its tokenizer is not of the kind %d that its header names; convert it again with "
            "dev/convert.py",
            path, header[HEADER_TOKENIZER]);
}

// Reads the tensors in fp32 into `arena` (t->floats, laid out by `t`; gaps between tensors are not touched)
// and closes the file. A number that is not finite ends the program with its tensor's name.
static inline void weight_file_read(WeightFile *w, const TensorTable *t, float *arena) {
    char *bf16 = NULL; // a tensor as it is in the file
    size_t capacity = 0;
    for (int i = 0; i < t->count; i++) {
        const Tensor *x = &t->list[i];
        float *out = tensor_ptr(x, arena, PARAMETER_LAYOUT);
        const size_t used = x->count * weights_element_bytes(w->dtype);
        char padding[WEIGHTS_ALIGNMENT];
        if (w->dtype == DTYPE_BF16) list_grow((void **)&bf16, &capacity, used, 1);
        void *raw = w->dtype == DTYPE_BF16 ? (void *)bf16 : out;
        fread_check(raw, used, w->f, w->path);
        fread_check(padding, round_up(used, WEIGHTS_ALIGNMENT) - used, w->f, w->path);
        if (w->dtype == DTYPE_BF16) bf16_to_floats(out, raw, x->count);
        if (!all_finite(out, x->count))
            die(EXIT_USAGE, "%s: %s holds a number that is not finite; take an earlier checkpoint", w->path,
                x->name);
    }
    free(bf16);
    fclose(w->f);
    w->f = NULL;
}

// Writes a weight file into `s`, which the caller opens and commits; returns the file's identity. `merges`
// may be NULL.
static inline uint64_t weight_file_write(SafeFile *s, const ClipConfig *c, const char *merges,
    size_t merges_bytes, const TensorTable *t, const float *arena) {
    int32_t header[HEADER_INTS] = {0};
    int field = HEADER_CONFIG;
    header[HEADER_MAGIC] = WEIGHTS_MAGIC;
    header[HEADER_VERSION] = WEIGHTS_VERSION;
    header[HEADER_DTYPE] = DTYPE_FP32;
    header[HEADER_MERGES_BYTES] = (int32_t)merges_bytes;
    header[HEADER_TENSORS] = t->count;
    header[HEADER_TOKENIZER] = tokenizer_kind(merges, merges_bytes);
#define X(type, name, low, high) memcpy(&header[field++], &c->name, 4);
    CONFIG_FIELDS(X)
#undef X
    header[HEADER_FIELDS] = field - HEADER_CONFIG;
    memcpy(&header[HEADER_NAME], c->name, NAME_BYTES);
    const char zeros[WEIGHTS_ALIGNMENT] = {0};

    safe_file_write(s, header, sizeof header);
    if (merges_bytes) {
        safe_file_write(s, merges, merges_bytes);
        safe_file_write(s, zeros, round_up(merges_bytes, WEIGHTS_ALIGNMENT) - merges_bytes);
    }
    for (int i = 0; i < t->count; i++) {
        const Tensor *x = &t->list[i];
        const size_t used = x->count * sizeof(float);
        safe_file_write(s, arena + x->offset, used);
        safe_file_write(s, zeros, round_up(used, WEIGHTS_ALIGNMENT) - used);
    }
    return safe_file_seal(s);
}

#endif
