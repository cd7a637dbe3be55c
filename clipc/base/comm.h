// Several processes that train one model: who they are, and what they say to each other. doc/processes.md
// has the algorithm around it.
//
// `make MPI=1` builds with MPI, and mpirun or srun starts the processes. Otherwise there is one, and each of
// these functions does nothing. All processes call the functions that exchange something in the same order.
// What is added up is added by our own loops, in the order of the processes, since MPI's reductions choose
// theirs.
#ifndef CLIPC_COMM_H
#define CLIPC_COMM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef CLIPC_MPI
#include <mpi.h>
#endif

enum { COMM_BUCKET = 1 << 18 }; // floats that a process receives of each other at a time, to add them up

typedef struct {
    int rank, size;
    int local_size; // processes on this machine
    bool quiet;     // what is said now is said by process 0 for all
    int64_t sent;   // bytes that this process has sent to others, by what each exchange needs at least
} Comm;

static Comm comm_world = {0, 1, 1, false, 0}; // set once, by comm_begin()

static inline int comm_rank(void) { return comm_world.rank; }
static inline int comm_size(void) { return comm_world.size; }

// ---------------------------------------------------------------- the beginning and the end

// How many processes mpirun or srun started, as they tell each in its environment; 1: none of them did.
static inline int comm_launched(void) {
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *size = getenv(sizes[i]);
        if (size && atoi(size) > 1) return atoi(size);
    }
    return 1;
}

#ifdef CLIPC_MPI

static inline void comm_end(void) { MPI_Finalize(); }

// Joins the other processes. False when there are some that this build cannot reach.
static inline bool comm_begin(void) {
    int provided;
    MPI_Comm local;
    if (comm_launched() == 1) return true;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &comm_world.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &comm_world.size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_size(local, &comm_world.local_size);
    MPI_Comm_free(&local);
    comm_world.quiet = comm_world.rank > 0;
    atexit(comm_end);
    return true;
}

// Ends this process, and with it all others. Where all meet the same error, the first one speaks for them.
__attribute__((noreturn)) static inline void comm_exit(int code) {
    if (comm_world.size > 1) MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

#else

static inline bool comm_begin(void) { return comm_launched() == 1; }
__attribute__((noreturn)) static inline void comm_exit(int code) { _exit(code); }

#endif

// ---------------------------------------------------------------- exchanges

// rows (n, row_bytes): blocks of `block` rows belong to the processes in turn, n a multiple of block * size.
// Each has its own; afterwards all have all.
static inline void comm_gather_blocks(void *rows, size_t row_bytes, int block, int n) {
    if (comm_world.size == 1) return;
#ifdef CLIPC_MPI
    const size_t bytes = (size_t)block * row_bytes;
    char *at = (char *)rows;
    for (int i = 0; i < n; i += block * comm_world.size, at += bytes * (size_t)comm_world.size)
        MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, at, (int)bytes, MPI_BYTE, MPI_COMM_WORLD);
    comm_world.sent += (int64_t)(row_bytes * (size_t)n) / comm_world.size * (comm_world.size - 1);
#else
    (void)rows, (void)row_bytes, (void)block, (void)n;
#endif
}

// x: units cut[r] … cut[r+1]-1, of `bytes` each, are those of process r. Each has its own; afterwards all
// have all.
static inline void comm_gather_slices(void *x, size_t bytes, const size_t *cut) {
    if (comm_world.size == 1) return;
#ifdef CLIPC_MPI
    const int size = comm_world.size, rank = comm_world.rank;
    int *counts = (int *)malloc(2 * (size_t)size * sizeof *counts), *first = counts + size;
    MPI_Datatype unit;
    if (!counts) comm_exit(1);
    for (int r = 0; r < size; r++) {
        first[r] = (int)cut[r];
        counts[r] = (int)(cut[r + 1] - cut[r]);
    }
    MPI_Type_contiguous((int)bytes, MPI_BYTE, &unit);
    MPI_Type_commit(&unit);
    MPI_Allgatherv(MPI_IN_PLACE, 0, unit, x, counts, first, unit, MPI_COMM_WORLD);
    MPI_Type_free(&unit);
    comm_world.sent += (int64_t)counts[rank] * (int64_t)bytes * (size - 1);
    free(counts);
#else
    (void)x, (void)bytes, (void)cut;
#endif
}

#ifdef CLIPC_MPI
// own (n) = the sum of own and of received (size,COMM_BUCKET), in the order of the processes
static inline void comm_add_in_order(float *own, const float *received, size_t n) {
    const int size = comm_world.size, rank = comm_world.rank;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++) {
        float sum = rank ? received[i] : own[i];
        for (int r = 1; r < size; r++) sum += r == rank ? own[i] : received[(size_t)r * COMM_BUCKET + i];
        own[i] = sum;
    }
}

// Sends numbers `at` … of each slice to its owner, who receives the others' of its own slice and adds them
// up.
static inline void comm_sum_bucket(
    float *x, const size_t *cut, size_t at, float *received, MPI_Request *requests) {
    const int size = comm_world.size, rank = comm_world.rank;
    int count = 0;
    size_t mine = 0;
    for (int r = 0; r < size; r++) {
        const size_t length = cut[r + 1] - cut[r], left = length > at ? length - at : 0;
        const size_t n = left < COMM_BUCKET ? left : COMM_BUCKET;
        if (r == rank) mine = n;
        else if (n) {
            MPI_Isend(x + cut[r] + at, (int)n, MPI_FLOAT, r, 0, MPI_COMM_WORLD, &requests[count++]);
            comm_world.sent += (int64_t)(n * sizeof *x);
        }
    }
    for (int r = 0; r < size && mine; r++)
        if (r != rank)
            MPI_Irecv(received + (size_t)r * COMM_BUCKET, (int)mine, MPI_FLOAT, r, 0, MPI_COMM_WORLD,
                &requests[count++]);
    MPI_Waitall(count, requests, MPI_STATUSES_IGNORE);
    if (mine) comm_add_in_order(x + cut[rank] + at, received, mine);
}
#endif

// x: process r owns the slice cut[r] … cut[r+1]-1; it gets the sum of this slice of all processes, added in
// their order, ((x_0 + x_1) + x_2) + …. Elsewhere x stays as it is.
static inline void comm_sum_slices(float *x, const size_t *cut) {
    if (comm_world.size == 1) return;
#ifdef CLIPC_MPI
    const size_t size = (size_t)comm_world.size;
    size_t longest = 0;
    float *received = (float *)malloc(size * COMM_BUCKET * sizeof *received);
    MPI_Request *requests = (MPI_Request *)malloc(2 * size * sizeof *requests);
    if (!received || !requests) comm_exit(1);
    for (size_t r = 0; r < size; r++) longest = cut[r + 1] - cut[r] > longest ? cut[r + 1] - cut[r] : longest;
    for (size_t at = 0; at < longest; at += COMM_BUCKET) comm_sum_bucket(x, cut, at, received, requests);
    free(received);
    free(requests);
#else
    (void)x, (void)cut;
#endif
}

// Gives all processes what process `from` has.
static inline void comm_broadcast(void *x, size_t bytes, int from) {
    if (comm_world.size == 1) return;
#ifdef CLIPC_MPI
    enum { MOST = 1 << 30 };
    for (size_t at = 0; at < bytes; at += MOST)
        MPI_Bcast(
            (char *)x + at, (int)(bytes - at < MOST ? bytes - at : MOST), MPI_BYTE, from, MPI_COMM_WORLD);
    if (from == comm_world.rank) comm_world.sent += (int64_t)bytes * (comm_world.size - 1);
#else
    (void)x, (void)bytes, (void)from;
#endif
}

// The bits that are set in any process's x.
static inline void comm_merge(void *x, size_t bytes) {
    if (comm_world.size == 1) return;
#ifdef CLIPC_MPI
    MPI_Allreduce(MPI_IN_PLACE, x, (int)bytes, MPI_BYTE, MPI_BOR, MPI_COMM_WORLD);
    comm_world.sent += 2 * (int64_t)bytes * (comm_world.size - 1) / comm_world.size;
#else
    (void)x, (void)bytes;
#endif
}

// The largest of all processes' values.
static inline int64_t comm_most(int64_t value) {
#ifdef CLIPC_MPI
    if (comm_world.size > 1) MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD);
#endif
    return value;
}

// The lowest process whose value differs from that of process 0; -1: none does.
static inline int comm_first_other(uint64_t value) {
    uint64_t first = value;
    comm_broadcast(&first, sizeof first, 0);
    const int64_t mine = first == value ? -1 : comm_world.size - comm_world.rank;
    const int64_t most = comm_most(mine);
    return most < 0 ? -1 : comm_world.size - (int)most;
}

#endif
