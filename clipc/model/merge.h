// Merging models of one architecture, entry by entry: A is the model before fine-tuning, B … are fine-tuned.
//
//   WiSE-FT (Wortsman et al. 2021)         (1-α) A + α B; α for all, of a tower, or rising with depth (LiNeS)
//   uniform soup (Wortsman et al. 2022)    the mean of B …
//   Model Stock (Jang et al. 2024)         t mean + (1-t) A; t of each tensor from the angles of the updates
//   task arithmetic (Ilharco et al. 2022)  A + Σ λ (B - A)
//
// The packed files are streamed: each thread reads a chunk of every file, combines and writes it, so that no
// model is ever held in memory as a whole.
#ifndef CLIPC_MERGE_H
#define CLIPC_MERGE_H

#include "clipc/model/clip.h"       // Clip, clip_write
#include "clipc/model/open_model.h" // positions_resize_image

#include <assert.h>

#define MERGE_CHUNK ((size_t)1 << 16) // entries a thread works on at a time: a few such chunks stay in L2

// ---------------------------------------------------------------- files

// A weight file, open for reading at any place.
typedef struct {
    WeightFile w;
    TensorTable tensors; // of the file
    size_t *at;          // (tensors.count) where each tensor begins, in bytes from the start of the file
    float **resized;     // (tensors.count) position embeddings resized by merge_match(); NULL: as in the file
    bool any_resized;
    struct stat st;
} MergeFile;

// Ends the program when `path` is not a complete weight file. Free with merge_file_close().
static inline MergeFile *merge_file_open(const char *path) {
    MergeFile *f = (MergeFile *)calloc_check(1, sizeof *f);
    weight_file_open(&f->w, path);
    if (fstat(fileno(f->w.f), &f->st)) die(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
    f->tensors = tensor_table_create(&f->w.config);
    f->at = (size_t *)malloc_check((size_t)f->tensors.count * sizeof *f->at);
    f->resized = (float **)calloc_check((size_t)f->tensors.count, sizeof *f->resized);
    size_t at = HEADER_BYTES + round_up(f->w.merges_bytes, WEIGHTS_ALIGNMENT);
    for (int i = 0; i < f->tensors.count; i++) {
        f->at[i] = at;
        at += round_up(f->tensors.list[i].count * weights_element_bytes(f->w.dtype), WEIGHTS_ALIGNMENT);
    }
    return f;
}

static inline void merge_file_close(MergeFile *f) {
    for (int i = 0; i < f->tensors.count; i++) free(f->resized[i]);
    fclose(f->w.f);
    free(f->resized);
    free(f->at);
    free(f->w.merges);
    tensor_table_free(&f->tensors);
    free(f);
}

static inline bool merge_same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

typedef enum { MERGE_OK, MERGE_READ_ERROR, MERGE_NOT_FINITE, MERGE_WRITE_ERROR } MergeStatus;

// Entries from … from + n - 1 of tensor i, as fp32 into out (n). Thread-safe.
static inline MergeStatus merge_read(const MergeFile *f, int i, size_t from, size_t n, float *out) {
    assert(i >= 0 && i < f->tensors.count);
    if (f->resized[i]) {
        memcpy(out, f->resized[i] + from, n * sizeof(float));
        return MERGE_OK;
    }
    assert(from + n <= f->tensors.list[i].count);
    const size_t size = weights_element_bytes(f->w.dtype);
    char *raw = (char *)out + (sizeof(float) - size) * n; // bf16: read into the second half of out
    if (!pread_all(fileno(f->w.f), raw, n * size, (int64_t)(f->at[i] + from * size))) return MERGE_READ_ERROR;
    if (f->w.dtype == DTYPE_BF16) bf16_to_floats(out, raw, n);
    return all_finite(out, n) ? MERGE_OK : MERGE_NOT_FINITE;
}

// Ends the program: tensor i of a file could not be read.
static inline void merge_failed(MergeStatus status, const MergeFile *f, int i) {
    const char *tensor = f->tensors.list[i].name;
    if (status == MERGE_NOT_FINITE)
        die(EXIT_USAGE, "%s: %s holds a number that is not finite; take an earlier checkpoint", f->w.path,
            tensor);
    die(EXIT_RUNTIME, "%s: cannot read %s; has the file changed?", f->w.path, tensor);
}

// Resizes the position embeddings of `f` to the sizes of `other`; no other tensor depends on these.
static inline void merge_resize(MergeFile *f, const MergeFile *other) {
    for (int i = 0; i < f->tensors.count; i++) {
        const Tensor *from = &f->tensors.list[i], *to = &other->tensors.list[i];
        if (from->count == to->count) continue;
        const int C = from->shape[1];
        float *in = (float *)malloc_check(from->count * sizeof *in);
        float *out = (float *)malloc_check(to->count * sizeof *out);
        const MergeStatus status = merge_read(f, i, 0, from->count, in);
        if (status != MERGE_OK) merge_failed(status, f, i);
        if (from->tower == IMAGE_TOWER)
            positions_resize_image(out, config_grid(&other->w.config), in, config_grid(&f->w.config), C);
        else positions_resize_text(out, to->shape[0], in, from->shape[0], C);
        free(in);
        f->resized[i] = out;
        f->any_resized = true;
    }
}

// Ends the program and names the first difference unless the two can be merged: the same architecture,
// activation, preprocessing and tokenizer. With `interpolate` image size and context length may differ: `f`
// is then resized to those of `other`.
static inline void merge_match(MergeFile *f, const MergeFile *other, bool interpolate) {
    const ClipConfig *a = &f->w.config, *b = &other->w.config;
#define X(type, name, low, high)                                                                           \
    if (a->name != b->name) {                                                                              \
        const bool size = strcmp(#name, "image_size") == 0 || strcmp(#name, "context_length") == 0;        \
        if (!size)                                                                                         \
            die(EXIT_USAGE,                                                                                \
                "%s and %s do not match: %s is %.9g and %.9g; merge models that were fine-tuned from the " \
                "same one",                                                                                \
                f->w.path, other->w.path, #name, (double)a->name, (double)b->name);                        \
        if (!interpolate)                                                                                  \
            die(EXIT_USAGE,                                                                                \
                "%s and %s do not match: %s is %.9g and %.9g; --interpolate-positions resizes the first "  \
                "to the second",                                                                           \
                f->w.path, other->w.path, #name, (double)a->name, (double)b->name);                        \
    }
    CONFIG_FIELDS(X)
#undef X
    if (f->w.merges_bytes != other->w.merges_bytes ||
        (f->w.merges_bytes && memcmp(f->w.merges, other->w.merges, f->w.merges_bytes) != 0))
        die(EXIT_USAGE,
            "%s and %s do not match: their tokenizers differ; merge models that were fine-tuned from the "
            "same one",
            f->w.path, other->w.path);
    merge_resize(f, other);
}

// Sets equal[IMAGE_TOWER] and equal[TEXT_TOWER]: has the tower the same bits in all files? All have the sizes
// of the last one.
static inline void merge_equal_towers(MergeFile *const *files, int count, bool equal[2]) {
    equal[0] = equal[1] = true;
    float *a = (float *)aligned_malloc_check(2 * MERGE_CHUNK * sizeof(float)), *b = a + MERGE_CHUNK;
    for (int i = 0; i < files[0]->tensors.count; i++) {
        const Tensor *x = &files[count - 1]->tensors.list[i];
        for (size_t at = 0; x->tower != NO_TOWER && equal[x->tower] && at < x->count; at += MERGE_CHUNK) {
            const size_t n = x->count - at < MERGE_CHUNK ? x->count - at : MERGE_CHUNK;
            for (int k = 0; k < count && equal[x->tower]; k++) {
                const MergeStatus status = merge_read(files[k], i, at, n, k ? b : a);
                if (status != MERGE_OK) merge_failed(status, files[k], i);
                if (k && memcmp(a, b, n * sizeof(float)) != 0) equal[x->tower] = false;
            }
        }
    }
    free(a);
}

// ---------------------------------------------------------------- the kinds of merge

typedef enum { MERGE_WISE_FT, MERGE_MEAN, MERGE_MODEL_STOCK, MERGE_TASK_ARITHMETIC } MergeKind;

// α of WiSE-FT, 0 … 1. LiNeS (Wang et al. 2024) multiplies it by a factor that rises linearly from
// first_block at a tower's first block to 1 at its last; embeddings have the factor of the first block, the
// projection that of the last.
typedef struct {
    double all;
    double tower[2]; // in place of `all`; NaN: as all
    bool by_depth;   // LiNeS
    double first_block;
} MergeAlpha;

typedef struct {
    MergeKind kind;
    MergeFile *base;     // A, the model before fine-tuning; NULL where it takes no part (MERGE_MEAN)
    MergeFile **members; // (count) fine-tuned models; WiSE-FT has one
    int count;
    MergeAlpha alpha;     // WiSE-FT
    const double *lambda; // (count) task arithmetic
    double *ratio;        // (tensors) Model Stock's t, from merge_stock_ratios()
} Merge;

// The file whose shapes and header the output takes.
static inline const MergeFile *merge_template(const Merge *m) {
    assert(m->count >= 1);
    return m->members[m->count - 1];
}

// α of a tensor.
static inline double merge_alpha(const Merge *m, const Tensor *x) {
    assert(m->kind == MERGE_WISE_FT && m->count == 1);
    const MergeAlpha *a = &m->alpha;
    double alpha = x->tower == NO_TOWER || isnan(a->tower[x->tower]) ? a->all : a->tower[x->tower];
    if (a->by_depth && x->tower != NO_TOWER) {
        const int L = clip_tower_layers(&merge_template(m)->w.config, x->tower);
        const int block = x->group < 1 ? 1 : x->group > L ? L : x->group;
        alpha *= a->first_block + (1 - a->first_block) * (L > 1 ? (double)(block - 1) / (L - 1) : 1);
    }
    return alpha;
}

// Each product is rounded and stored before it is added. A function marked NO_CONTRACT is never inlined, so
// that no compiler contracts a product and a sum into a fused multiply-add, whatever its flags.
#define NO_CONTRACT __attribute__((noinline, unused)) static

NO_CONTRACT void merge_scale(float *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

NO_CONTRACT void merge_add(float *out, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

// term = weight * (x - base); base may be NULL
NO_CONTRACT void merge_term(double *term, const float *x, const float *base, double weight, size_t n) {
    for (size_t i = 0; i < n; i++) term[i] = weight * ((double)x[i] - (base ? (double)base[i] : 0));
}

NO_CONTRACT void merge_accumulate(double *sum, const double *term, size_t n) {
    for (size_t i = 0; i < n; i++) sum[i] += term[i];
}

// Scratch of one thread for a chunk; free(sum) frees it.
typedef struct {
    float *values;      // (sources,MERGE_CHUNK) the base, where there is one, then the members
    double *sum, *term; // (MERGE_CHUNK)
} MergeScratch;

static inline MergeScratch merge_scratch(int sources) {
    const size_t bytes = MERGE_CHUNK * sizeof(double);
    MergeScratch s;
    s.sum = (double *)aligned_malloc_check(2 * bytes + (size_t)sources * MERGE_CHUNK * sizeof(float));
    s.term = s.sum + MERGE_CHUNK;
    s.values = (float *)(s.term + MERGE_CHUNK);
    return s;
}

// Tensor i of the new model, a chunk of it: out (n) from s->values, which are overwritten.
//   WiSE-FT in fp32: (float)(1-α) * a + (float)α * b, 1-α in double, two roundings; α = 0 and 1 copy a and b.
//   All others in double, summed in the order of the members, rounded once.
static inline void merge_combine(const Merge *m, int i, float *out, MergeScratch *s, size_t n) {
    assert(n <= MERGE_CHUNK && (m->kind == MERGE_MEAN || m->base));
    float *base = s->values, *members = m->base ? s->values + MERGE_CHUNK : s->values;
    if (m->kind == MERGE_WISE_FT) {
        const double alpha = merge_alpha(m, &merge_template(m)->tensors.list[i]);
        assert(alpha >= 0 && alpha <= 1);
        if (alpha == 0 || alpha == 1) {
            memcpy(out, alpha == 0 ? base : members, n * sizeof(float));
            return;
        }
        merge_scale(base, (float)(1 - alpha), n);
        merge_scale(members, (float)alpha, n);
        merge_add(out, base, members, n);
        return;
    }
    const bool task = m->kind == MERGE_TASK_ARITHMETIC;
    for (size_t j = 0; j < n; j++) s->sum[j] = task ? base[j] : 0;
    for (int k = 0; k < m->count; k++) {
        merge_term(
            s->term, members + (size_t)k * MERGE_CHUNK, task ? base : NULL, task ? m->lambda[k] : 1, n);
        merge_accumulate(s->sum, s->term, n);
    }
    for (size_t j = 0; !task && j < n; j++) s->sum[j] /= m->count;
    if (m->kind == MERGE_MODEL_STOCK) {
        const double t = m->ratio[i];
        for (size_t j = 0; j < n; j++) s->sum[j] *= t;
        merge_term(s->term, base, NULL, 1 - t, n);
        merge_accumulate(s->sum, s->term, n);
    }
    for (size_t j = 0; j < n; j++) out[j] = (float)s->sum[j];
}

// Reads the chunk of every file into s->values; *bad is the file that failed, if one did.
static inline MergeStatus merge_read_all(
    const Merge *m, int i, size_t from, size_t n, MergeScratch *s, const MergeFile **bad) {
    float *to = s->values;
    for (int k = m->base ? -1 : 0; k < m->count; k++, to += MERGE_CHUNK) {
        *bad = k < 0 ? m->base : m->members[k];
        const MergeStatus status = merge_read(*bad, i, from, n, to);
        if (status != MERGE_OK) return status;
    }
    return MERGE_OK;
}

// Tensor i of the new model in fp32: into out (its count), or, with out = NULL, to byte `at` of the file
// `fd`. False, with errno, when that cannot be written; a file that cannot be read ends the program.
static inline bool merge_tensor(const Merge *m, int i, float *out, int fd, size_t at) {
    assert(i >= 0 && i < merge_template(m)->tensors.count && (out || fd >= 0));
    const size_t count = merge_template(m)->tensors.list[i].count;
    const MergeFile *bad = NULL;
    MergeStatus failed = MERGE_OK;
    int error = 0;
#pragma omp parallel if (count > MERGE_CHUNK)
    {
        MergeScratch s = merge_scratch(m->count + 2); // the last chunk is for the result
        float *result = s.values + (size_t)(m->count + 1) * MERGE_CHUNK;
#pragma omp for schedule(dynamic)
        for (size_t from = 0; from < count; from += MERGE_CHUNK) {
            const size_t n = count - from < MERGE_CHUNK ? count - from : MERGE_CHUNK;
            const MergeFile *file = NULL;
            float *to = out ? out + from : result;
            MergeStatus status = merge_read_all(m, i, from, n, &s, &file);
            if (status == MERGE_OK) {
                merge_combine(m, i, to, &s, n);
                if (!out && !pwrite_all(fd, to, n * sizeof(float), (int64_t)(at + from * sizeof(float))))
                    status = MERGE_WRITE_ERROR;
            }
            if (status == MERGE_OK) continue;
            const int why = errno;
#pragma omp critical
            if (failed == MERGE_OK) {
                failed = status;
                bad = file;
                error = why;
            }
        }
        free(s.sum);
    }
    if (failed == MERGE_READ_ERROR || failed == MERGE_NOT_FINITE) merge_failed(failed, bad, i);
    errno = error;
    return failed == MERGE_OK;
}

// ---------------------------------------------------------------- Model Stock

// t = N c / (1 + (N-1) c) for N runs whose updates have mean cosine c (Jang et al. 2024, section 4; for two
// runs 2c / (1 + c)). Updates at more than a right angle have no common direction: t is 0, and the base
// remains.
static inline double merge_stock_ratio(double cosine, int runs) {
    return cosine <= 0 ? 0 : runs * cosine / (1 + (runs - 1) * cosine);
}

// The mean cosine between the updates x_k - base from their dot products gram (N,N), upper triangle; an
// update of length 0 counts as at right angles to all others.
static inline double merge_mean_cosine(const double *gram, int N) {
    double sum = 0;
    for (int a = 0; a < N; a++)
        for (int b = a + 1; b < N; b++) {
            const double lengths = sqrt(gram[a * N + a]) * sqrt(gram[b * N + b]);
            sum += lengths > 0 ? gram[a * N + b] / lengths : 0;
        }
    return sum / (0.5 * N * (N - 1));
}

// gram (N,N), upper triangle: dot products of the updates within a chunk of n entries of base and members.
static inline void merge_gram(double *gram, const float *values, int N, size_t n) {
    for (int a = 0; a < N; a++)
        for (int b = a; b < N; b++) {
            const float *w = values;
            const float *x = w + (size_t)(a + 1) * MERGE_CHUNK;
            const float *y = w + (size_t)(b + 1) * MERGE_CHUNK;
            double sum = 0;
            for (size_t j = 0; j < n; j++) sum += ((double)x[j] - w[j]) * ((double)y[j] - w[j]);
            gram[a * N + b] = sum;
        }
}

// Fills m->ratio for all tensors, in one pass over the files. Chunks are summed in order: the same bits for
// any number of threads.
static inline void merge_stock_ratios(const Merge *m) {
    assert(m->kind == MERGE_MODEL_STOCK && m->base && m->count >= 2 && m->ratio);
    const int N = m->count;
    const TensorTable *tensors = &merge_template(m)->tensors;
    for (int i = 0; i < tensors->count; i++) {
        const size_t count = tensors->list[i].count;
        const size_t chunks = (count + MERGE_CHUNK - 1) / MERGE_CHUNK;
        const size_t pairs = (size_t)N * (size_t)N;
        double *gram = (double *)calloc_check(chunks * pairs, sizeof *gram); // (chunks,N,N)
        const MergeFile *bad = NULL;
        MergeStatus failed = MERGE_OK;
#pragma omp parallel if (chunks > 1)
        {
            MergeScratch s = merge_scratch(N + 1);
#pragma omp for schedule(dynamic)
            for (size_t c = 0; c < chunks; c++) {
                const size_t from = c * MERGE_CHUNK;
                const size_t n = count - from < MERGE_CHUNK ? count - from : MERGE_CHUNK;
                const MergeFile *file = NULL;
                const MergeStatus status = merge_read_all(m, i, from, n, &s, &file);
#pragma omp critical
                if (failed == MERGE_OK && status != MERGE_OK) {
                    failed = status;
                    bad = file;
                }
                if (status == MERGE_OK) merge_gram(gram + c * pairs, s.values, N, n);
            }
            free(s.sum);
        }
        if (failed != MERGE_OK) merge_failed(failed, bad, i);
        for (size_t c = 1; c < chunks; c++)
            for (size_t j = 0; j < pairs; j++) gram[j] += gram[c * pairs + j];
        m->ratio[i] = merge_stock_ratio(merge_mean_cosine(gram, N), N);
        free(gram);
    }
}

// ---------------------------------------------------------------- the result: a file, or a model in memory

// The file that the new model equals byte for byte, or NULL: WiSE-FT with α = 0 or α = 1 for all tensors.
static inline const MergeFile *merge_copy_of(const Merge *m) {
    const TensorTable *tensors = &merge_template(m)->tensors;
    if (m->kind != MERGE_WISE_FT) return NULL;
    for (int i = 0; i < tensors->count; i++)
        if (merge_alpha(m, &tensors->list[i]) != merge_alpha(m, &tensors->list[0])) return NULL;
    const double alpha = merge_alpha(m, &tensors->list[0]);
    const MergeFile *end = alpha == 0 ? m->base : alpha == 1 ? m->members[0] : NULL;
    return end && !end->any_resized ? end : NULL;
}

static inline void merge_copy(SafeFile *s, const MergeFile *f) {
    const size_t BLOCK = 1 << 22;
    char *block = (char *)malloc_check(BLOCK);
    const size_t total = (size_t)f->st.st_size;
    for (size_t at = 0; at < total; at += BLOCK) {
        const size_t bytes = total - at < BLOCK ? total - at : BLOCK;
        if (!pread_all(fileno(f->w.f), block, bytes, (int64_t)at))
            die(EXIT_RUNTIME, "%s: cannot read; has the file changed?", f->w.path);
        safe_file_write(s, block, bytes);
    }
    free(block);
}

// Writes the new model, in fp32 (a copy keeps its file's type). Returns how many bytes were read and written.
static inline double merge_save(const Merge *m, const char *path) {
    const MergeFile *shape = merge_template(m), *copy = merge_copy_of(m);
    SafeFile s;
    safe_file_open(&s, path);
    if (copy) {
        merge_copy(&s, copy);
        safe_file_commit(&s);
        return 2.0 * (double)copy->st.st_size;
    }
    const size_t tokenizer = round_up(shape->w.merges_bytes, WEIGHTS_ALIGNMENT);
    const size_t total = HEADER_BYTES + tokenizer + weights_tensor_bytes(&shape->tensors, DTYPE_FP32);
    const int fd = fileno(s.f), dtype = DTYPE_FP32, version = WEIGHTS_VERSION;
    char *head = (char *)malloc_check(HEADER_BYTES + tokenizer);
    if (!pread_all(fileno(shape->w.f), head, HEADER_BYTES + tokenizer, 0))
        die(EXIT_RUNTIME, "%s: cannot read; has the file changed?", shape->w.path);
    memcpy(head + HEADER_DTYPE * sizeof(int32_t), &dtype, sizeof(int32_t));
    memcpy(head + HEADER_VERSION * sizeof(int32_t), &version, sizeof(int32_t));
    if (ftruncate(fd, (off_t)total) || !pwrite_all(fd, head, HEADER_BYTES + tokenizer, 0))
        safe_file_failed(&s); // ftruncate: the padding between tensors reads as zeros
    free(head);
    size_t at = HEADER_BYTES + tokenizer;
    for (int i = 0; i < shape->tensors.count; i++) {
        if (!merge_tensor(m, i, NULL, fd, at)) safe_file_failed(&s);
        at += round_up(shape->tensors.list[i].count * sizeof(float), WEIGHTS_ALIGNMENT);
    }
    safe_file_seal(&s);
    safe_file_commit(&s);
    double bytes = (double)total;
    for (int k = m->base ? -1 : 0; k < m->count; k++)
        bytes += (double)(k < 0 ? m->base : m->members[k])->st.st_size;
    return bytes;
}

// Writes the new model's parameters into `clip`, which has the same sizes; of the towers only those with
// wanted[tower].
static inline void merge_load(const Merge *m, Clip *clip, const bool wanted[2]) {
    float *values = NULL;
    size_t capacity = 0;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower != NO_TOWER && !wanted[x->tower]) continue;
        assert(x->count == merge_template(m)->tensors.list[i].count);
        list_grow((void **)&values, &capacity, x->count, sizeof *values);
        merge_tensor(m, i, values, -1, 0);
        clip_write(clip, ARENA_PARAMETERS, x, values);
    }
    free(values);
}

#endif
