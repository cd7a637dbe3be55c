// A step's samples divided among the processes, as one process would take them: micro-batch j of process r
// holds those that are in use from number (j * processes + r) * B on.
//
// A broken sample gives its place to the next in the order, so who needs what is known only when all samples
// of a step are decoded. Each process decodes what it would need if none failed, ahead of time. Then they
// exchange what became of each position: once a step, and once more for those that fill up the step where
// samples failed. From that each process finds the same division, and decodes what it does not have yet.
#ifndef CLIPC_SHARES_H
#define CLIPC_SHARES_H

#include "clipc/data/dataloader.h" // Loader

// What became of a position of the order; all zero: another process has it.
typedef struct {
    uint64_t key;
    uint8_t decoded, status, rotated, cut;
    uint32_t unused; // zero
} SampleFate;

typedef struct {
    SampleFate *fates; // (capacity) of the positions from the step's first one on
    size_t capacity;
    int64_t *taken;       // (pairs of a step) the positions that the step takes, in their order
    int64_t count, known; // of taken, of fates
} StepShare;

static inline int64_t share_pairs(const Loader *l) {
    return (int64_t)l->config.batch_size * l->config.micro_batches * comm_size();
}

// Is number i of a step this process's?
static inline bool share_is_own(const Loader *l, int64_t i) {
    return i / l->config.batch_size % comm_size() == comm_rank();
}

// The next n tickets are for these positions (n), ascending, and those after them for the steps that begin at
// `base`. What was decoded already is kept.
static inline void loader_divide(Loader *l, const int64_t *positions, int64_t n, int64_t base) {
    LoaderSlot *old = (LoaderSlot *)malloc_check((size_t)l->ring * sizeof *old);
    bool *used = (bool *)calloc_check((size_t)l->ring, sizeof *used);
    assert(n <= l->ring);
    pthread_mutex_lock(&l->mutex);
    const int64_t end = l->end;
    l->end = 0;
    while (l->busy) pthread_cond_wait(&l->done, &l->mutex);
    for (int64_t i = 0; i < l->ring; i++) old[i] = l->slots[(l->position + i) % l->ring];
    l->exact = l->position;
    l->base[0] = l->position + n;
    l->base[1] = base;
    int64_t *source = (int64_t *)malloc_check((size_t)l->ring * sizeof *source);
    for (int64_t i = 0, from = 0; i < l->ring; i++) {
        const int64_t want = i < n ? positions[i] : loader_position_of(l, l->position + i);
        while (from < l->ring && (!old[from].ready || old[from].position < want)) from++;
        source[i] = from < l->ring && old[from].position == want ? from : -1;
        if (source[i] >= 0) used[from++] = true;
    }
    for (int64_t i = 0, free_one = 0; i < l->ring; i++) {
        LoaderSlot *s = &l->slots[(l->position + i) % l->ring];
        while (source[i] < 0 && used[free_one]) free_one++;
        *s = old[source[i] < 0 ? free_one++ : source[i]];
        if (source[i] < 0) s->ready = false;
        if (i < n) s->position = positions[i];
    }
    l->exact = l->position + n;
    l->next = l->position;
    l->end = end;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    free(old);
    free(used);
    free(source);
}

// Waits for the next n tickets.
static inline void loader_wait_for(Loader *l, int64_t n, double *waited) {
    pthread_mutex_lock(&l->mutex);
    l->micro_waits = true;
    for (int64_t i = 0; i < n; i++) loader_wait(l, &l->slots[(l->position + i) % l->ring], waited);
    l->micro_waits = false;
    pthread_mutex_unlock(&l->mutex);
}

// Tells all processes what became of the next n tickets, and learns it of all positions up to known + more.
static inline void share_exchange(StepShare *s, const Loader *l, int64_t n, int64_t more) {
    const size_t all = (size_t)(s->known + more);
    list_grow((void **)&s->fates, &s->capacity, all, sizeof *s->fates);
    memset(s->fates + s->known, 0, (size_t)more * sizeof *s->fates);
    for (int64_t i = 0; i < n; i++) {
        const LoaderSlot *slot = &l->slots[(l->position + i) % l->ring];
        const int64_t at = slot->position - l->committed;
        if (at < s->known) continue; // told before
        SampleFate *fate = &s->fates[at];
        fate->key = slot->status == SAMPLE_OK ? slot->key : 0;
        fate->decoded = 1;
        fate->status = (uint8_t)slot->status;
        fate->rotated = slot->rotated;
        fate->cut = slot->cut;
    }
    comm_merge(s->fates + s->known, (size_t)more * sizeof *s->fates);
}

// Goes through the positions from `known` on and takes those that can be used.
static inline void share_take(StepShare *s, Loader *l, int64_t more) {
    for (int64_t end = s->known + more; s->known < end; s->known++) {
        const SampleFate *fate = &s->fates[s->known];
        const int64_t position = l->committed + s->known;
        LoaderSlot sample;
        memset(&sample, 0, sizeof sample);
        assert(fate->decoded);
        sample.index = order_sample(l->data, l->order[position % l->count]);
        sample.key = fate->key;
        sample.status = (SampleStatus)fate->status;
        sample.rotated = fate->rotated;
        sample.cut = fate->cut;
        if (loader_judge(l, &sample)) s->taken[s->count++] = position;
    }
}

// own (pairs of a step + B): what this process has to decode: its part of what is taken, and of what comes
// next, in case that it is needed. Returns how many.
static inline int64_t share_own_positions(const StepShare *s, const Loader *l, int64_t *own, int64_t more) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->count; i++)
        if (share_is_own(l, i)) own[n++] = s->taken[i];
    for (int64_t i = 0; i < more; i++)
        if (share_is_own(l, s->count + i)) own[n++] = l->committed + s->known + i;
    return n;
}

// The next step: fills out (micro_batches) with this process's part, keys (pairs of the step) with those of
// all. *signal: each process gives its own; all get the largest. Where it is not 0, no step is taken, and
// false returned.
static inline bool loader_next_step(Loader *l, Batch *out, uint64_t *keys, int *signal) {
    const int64_t pairs = share_pairs(l), own = pairs / comm_size();
    StepShare s = {NULL, 0, (int64_t *)malloc_check((size_t)pairs * sizeof *s.taken), 0, 0};
    int64_t *positions = (int64_t *)malloc_check((size_t)(2 * pairs) * sizeof *positions);
    int64_t more = pairs, n = own;
    bool divided = false;
    for (int j = 0; j < l->config.micro_batches; j++) out[j].count = 0;
    out[0].wait_seconds = 0;
    loader_wait_for(l, own, &out[0].wait_seconds);
    *signal = (int)comm_most(*signal);
    while (!*signal && s.count < pairs) {
        share_exchange(&s, l, n, more);
        share_take(&s, l, more);
        divided |= s.count < s.known;
        if (s.count == pairs) break;
        more = min_i64(pairs - s.count, l->config.batch_size);
        n = share_own_positions(&s, l, positions, more);
        loader_divide(l, positions, n, l->committed + s.known + more);
        loader_wait_for(l, n, &out[0].wait_seconds);
    }
    if (!*signal && divided) {
        n = share_own_positions(&s, l, positions, 0);
        loader_divide(l, positions, n, l->committed + s.known);
        loader_wait_for(l, n, &out[0].wait_seconds);
    }
    for (int64_t i = 0; !*signal && i < own; i++) {
        const LoaderSlot *slot = &l->slots[(l->position + i) % l->ring];
        if (slot->status != SAMPLE_OK)
            die(EXIT_RUNTIME, "sample %lld: could be read by another process, but not by this one",
                (long long)slot->index);
        batch_add(&out[i / l->config.batch_size], &l->config, slot);
    }
    for (int64_t i = 0; !*signal && i < pairs; i++) keys[i] = s.fates[s.taken[i] - l->committed].key;
    if (!*signal) {
        pthread_mutex_lock(&l->mutex);
        for (int64_t i = 0; i < own; i++) l->slots[(l->position + i) % l->ring].ready = false;
        l->position += own;
        l->next = max_i64(l->next, l->position); // workers may not have passed by what was kept
        l->committed += s.known;
        pthread_cond_broadcast(&l->work);
        pthread_mutex_unlock(&l->mutex);
    }
    free(s.fates);
    free(s.taken);
    free(positions);
    return !*signal;
}

#endif
