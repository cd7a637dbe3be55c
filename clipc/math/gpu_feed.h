// Memory on a GPU: one allocation for many arrays, and the way of a batch from the host to there.
#ifndef CLIPC_GPU_FEED_H
#define CLIPC_GPU_FEED_H

#include "clipc/math/gpu_kernel.h" // Gpu, CUDA_CHECK

static inline void *gpu_malloc(size_t bytes, const char *what) {
    void *p;
    size_t free, total;
    const cudaError_t error = cudaMalloc(&p, bytes ? bytes : 1);
    if (error != cudaErrorMemoryAllocation) return CUDA_CHECK(error), p;
    CUDA_CHECK(cudaMemGetInfo(&free, &total));
    die(EXIT_RUNTIME,
        "out of GPU memory: %s take %.2f GB, %.2f of %.2f GB are free; lower --batch-size (and raise "
        "--accum-freq as much), or add --grad-checkpointing",
        what, (double)bytes / 1e9, (double)free / 1e9, (double)total / 1e9);
}

// One allocation that is handed out piece by piece, each at a multiple of 256 bytes.
typedef struct {
    char *base; // NULL: only count
    size_t used;
} Arena;

template <typename T> static void arena_take(Arena *a, T **out, size_t n) {
    const size_t at = a->used, floats = round_up(n * sizeof(T), sizeof(float)) / sizeof(float);
    a->used += round_up(n * sizeof(T), 256) + GUARD_FLOATS * sizeof(float);
    *out = a->base ? (T *)(a->base + at) : NULL;
    if (a->base) guard_behind((float *)(a->base + at), floats, (float *)(a->base + a->used));
}

// What a batch brings to the GPU: gathered in pinned memory, then copied on a stream of its own. Two of them
// take turns, so that the next batch can be gathered while kernels still read the last.
typedef struct {
    char *pinned, *device;
    size_t capacity, used, sent; // bytes
    cudaEvent_t copied, read;    // the last copy is done; kernels have read it
} Feed;

static inline void feed_send(const Gpu *k, Feed *f) {
    if (f->used > f->sent)
        CUDA_CHECK(cudaMemcpyAsync(
            f->device + f->sent, f->pinned + f->sent, f->used - f->sent, cudaMemcpyHostToDevice, k->copies));
    f->sent = f->used;
}

static inline void feed_begin(const Gpu *k, Feed *f, size_t bytes) {
    CUDA_CHECK(cudaEventSynchronize(f->copied));
    if (bytes > f->capacity) {
        CUDA_CHECK(cudaStreamSynchronize(k->stream));
        CUDA_CHECK(cudaFreeHost(f->pinned));
        CUDA_CHECK(cudaFree(f->device));
        CUDA_CHECK(cudaMallocHost(&f->pinned, bytes));
        f->device = (char *)gpu_malloc(bytes, "pixels and captions of a batch");
        f->capacity = bytes;
    }
    CUDA_CHECK(cudaStreamWaitEvent(k->copies, f->read, 0));
    f->used = f->sent = 0;
}

static inline void feed_end(const Gpu *k, Feed *f) {
    feed_send(k, f);
    CUDA_CHECK(cudaEventRecord(f->copied, k->copies));
    CUDA_CHECK(cudaStreamWaitEvent(k->stream, f->copied, 0));
}

// Room for n numbers, to be filled at once; *device: where they will be.
template <typename T> static T *feed_room(Feed *f, size_t n, const T **device) {
    T *room = (T *)(f->pinned + f->used);
    *device = (const T *)(f->device + f->used);
    f->used += round_up(n * sizeof(T), 256);
    return room;
}

// Copies n numbers; while one piece is on its way to the GPU the next is gathered.
template <typename T> static const T *feed_add(const Gpu *k, Feed *f, const T *from, size_t n) {
    const size_t PIECE = 8 << 20, STRETCH = 1 << 18;
    const T *device = (const T *)(f->device + f->used);
    const size_t bytes = n * sizeof(T);
    feed_send(k, f);
    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t piece = bytes - at < PIECE ? bytes - at : PIECE;
#pragma omp parallel for schedule(static)
        for (size_t i = 0; i < piece; i += STRETCH)
            memcpy(f->pinned + f->used + i, (const char *)from + at + i,
                piece - i < STRETCH ? piece - i : STRETCH);
        f->used += round_up(piece, 256);
        feed_send(k, f);
    }
    return device;
}

// Which rows of a batch share a row of a table: those of key[i] are row[start[i]] … row[start[i+1]-1],
// ascending.
typedef struct {
    int count;
    const int *key, *start, *row;
} RowGroups;

// The rows by their key, below `bound`: a counting sort.
static inline RowGroups feed_groups(Feed *f, const int *keys, int R, int bound) {
    RowGroups g = {0, NULL, NULL, NULL};
    int *key = feed_room(f, R, &g.key);
    int *start = feed_room(f, (size_t)R + 1, &g.start);
    int *row = feed_room(f, R, &g.row);
    int *next = (int *)calloc_check(bound, sizeof(int));
    int at = 0;
    for (int i = 0; i < R; i++) next[keys[i]]++;
    for (int v = 0; v < bound; v++) {
        const int n = next[v];
        next[v] = at;
        if (n) {
            key[g.count] = v;
            start[g.count++] = at;
            at += n;
        }
    }
    start[g.count] = R;
    for (int i = 0; i < R; i++) row[next[keys[i]]++] = i;
    free(next);
    return g;
}

#endif
