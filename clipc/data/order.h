// The order of an epoch: which samples, in which order, as a function of (seed, epoch) and the list of
// samples alone; and parts of a data set. The length of the order is the same in every epoch, so that
// steps, and the position from which a run is resumed, can be counted.
//
// An entry of an order is sample + k · (samples of the data set), if this is the k-th time, from 0, that the
// epoch takes the sample. So every entry is unique, and so is what is drawn at random for it (crop, prompt).
#ifndef CLIPC_ORDER_H
#define CLIPC_ORDER_H

#include "clipc/data/dataset.h" // Dataset

#include <assert.h>

#define SHUFFLE_BUFFER 5000 // tar: samples of the stream from which one is drawn, open_clip's number
// What random numbers are for.
#define ORDER_STREAM 0x6f72646572ull          // "order"
#define TURN_STREAM 0x7475726eull             // "turn"
#define MERGE_STREAM 0x6d65726765ull          // "merge"
#define RESAMPLE_STREAM 0x726573616d706c65ull // "resample"
#define DISTINCT_STREAM 0x64697374696e6374ull // "distinct"

static inline int64_t order_sample(const Dataset *d, int64_t entry) { return entry % d->count; }

// ---------------------------------------------------------------- how many

// How many entries of an epoch come from a source of `samples`.
static inline int64_t source_quota(const DataSource *s, int64_t samples) {
    return (int64_t)(s->factor * (double)samples + 0.5);
}

// The entries of an epoch: each sample once; with upsampling factors round(factor · samples) of each source;
// resampled: num_samples, or as many as there are samples.
static inline int64_t dataset_epoch_length(const Dataset *d) {
    if (d->config.resampled) return d->config.num_samples ? d->config.num_samples : d->count;
    int64_t *first = (int64_t *)malloc_check((d->source_count + 1) * sizeof *first), length = 0;
    dataset_source_ranges(d, first);
    for (size_t s = 0; s < d->source_count; s++)
        length += source_quota(&d->sources[s], first[s + 1] - first[s]);
    free(first);
    return length;
}

// (source_count) how many entries of an epoch come from each source; resampled: on average, rounded
static inline int64_t *dataset_source_shares(const Dataset *d) {
    const size_t S = d->source_count;
    int64_t *first = (int64_t *)malloc_check((S + 1) * sizeof *first);
    int64_t *out = (int64_t *)malloc_check(S * sizeof *out);
    double total = 0;
    dataset_source_ranges(d, first);
    for (size_t s = 0; s < S; s++) total += d->sources[s].factor * (double)(first[s + 1] - first[s]);
    for (size_t s = 0; s < S; s++) {
        const double weight = d->sources[s].factor * (double)(first[s + 1] - first[s]);
        out[s] = source_quota(&d->sources[s], first[s + 1] - first[s]);
        if (d->config.resampled) out[s] = (int64_t)((double)dataset_epoch_length(d) * weight / total + 0.5);
    }
    free(first);
    return out;
}

// Greater than every entry of an epoch.
static inline uint64_t order_limit(const Dataset *d) {
    double most = 1;
    for (size_t s = 0; s < d->source_count; s++)
        most = d->sources[s].factor > most ? d->sources[s].factor : most;
    return (uint64_t)d->count *
           (d->config.resampled ? (uint64_t)dataset_epoch_length(d) : (uint64_t)ceil(most));
}

// ---------------------------------------------------------------- one source

// Flags of the `rest` samples of n that the epoch takes once more than the others. They take turns, so that
// over the epochs no sample is taken more than once more often than another.
static inline bool *source_turn(uint64_t seed, int64_t epoch, uint64_t source, int64_t n, int64_t rest) {
    int64_t *turns = (int64_t *)malloc_check((size_t)n * sizeof *turns);
    bool *taken = (bool *)calloc_check((size_t)n, sizeof *taken);
    Rand r = rand_for(seed ^ TURN_STREAM, source, 0);
    for (int64_t i = 0; i < n; i++) turns[i] = i;
    rand_shuffle(&r, turns, n);
    for (int64_t i = 0; i < rest; i++) taken[turns[(epoch % n * rest + i) % n]] = true;
    free(turns);
    return taken;
}

// Tar shards: the shards are shuffled, then each place is drawn from the next SHUFFLE_BUFFER entries of their
// stream. Other sources: the same with a buffer for all.
static inline void source_shuffle(const Dataset *d, Rand *r, bool shards, int64_t *order, int64_t n) {
    const int64_t buffer = shards ? SHUFFLE_BUFFER : n;
    if (buffer < n) {
        int64_t *starts = (int64_t *)malloc_check((size_t)n * sizeof *starts);
        int64_t *from = (int64_t *)malloc_check((size_t)n * sizeof *from);
        int64_t runs = 0, to = 0;
        memcpy(from, order, (size_t)n * sizeof *from);
        for (int64_t i = 0; i < n; i++) // a shard's samples are consecutive
            if (i == 0 ||
                d->samples[order_sample(d, from[i])].file != d->samples[order_sample(d, from[i - 1])].file)
                starts[runs++] = i;
        rand_shuffle(r, starts, runs);
        for (int64_t k = 0; k < runs; k++) {
            const int32_t file = d->samples[order_sample(d, from[starts[k]])].file;
            for (int64_t i = starts[k]; i < n && d->samples[order_sample(d, from[i])].file == file; i++)
                order[to++] = from[i];
        }
        free(starts);
        free(from);
    }
    // the buffer begins at i: the entry drawn leaves it, the next one enters
    for (int64_t i = 0; i < n; i++) {
        int64_t j = i + (int64_t)rand_below(r, (uint64_t)min_i64(buffer, n - i)), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

// order (quota) of the n samples from `first` on; returns the quota.
static inline int64_t source_order(const Dataset *d, uint64_t seed, int64_t epoch, size_t source,
    int64_t first, int64_t n, bool shuffle, int64_t *order) {
    const int64_t quota = source_quota(&d->sources[source], n);
    const int64_t whole = n ? quota / n : 0;
    const int64_t rest = n ? quota % n : 0;
    int64_t to = 0;
    for (int64_t k = 0; k < whole; k++)
        for (int64_t i = 0; i < n; i++) order[to++] = first + i + k * d->count;
    if (rest) {
        bool *taken = source_turn(seed, epoch, source, n, rest);
        for (int64_t i = 0; i < n; i++)
            if (taken[i]) order[to++] = first + i + whole * d->count;
        free(taken);
    }
    Rand r = rand_for(seed ^ ORDER_STREAM, (uint64_t)epoch, source);
    if (shuffle) source_shuffle(d, &r, d->sources[source].type == DATASET_WEBDATASET, order, quota);
    return quota;
}

// ---------------------------------------------------------------- all sources

// Each place is drawn from what is left of all sources, so that every part of the epoch has them in
// proportion. lists: the orders of the sources one after the other; left (sources): their lengths.
static inline void orders_merge(
    int64_t *order, const int64_t *lists, int64_t *left, size_t sources, Rand *r) {
    const int64_t **next = (const int64_t **)malloc_check(sources * sizeof *next);
    int64_t total = 0;
    for (size_t s = 0; s < sources; total += left[s++]) next[s] = lists + total;
    for (; total > 0; total--) {
        int64_t j = (int64_t)rand_below(r, (uint64_t)total);
        size_t s = 0;
        while (j >= left[s]) j -= left[s++];
        *order++ = *next[s]++;
        left[s]--;
    }
    free(next);
}

// Draws with replacement: the probability of a sample is proportional to the factor of its source.
static inline void order_resample(
    const Dataset *d, uint64_t seed, int64_t epoch, const int64_t *first, int64_t *order, int64_t length) {
    double total = 0;
    for (size_t s = 0; s < d->source_count; s++)
        total += d->sources[s].factor * (double)(first[s + 1] - first[s]);
    for (int64_t p = 0; p < length; p++) {
        Rand r = rand_for(seed ^ RESAMPLE_STREAM, (uint64_t)epoch, (uint64_t)p);
        double left = total * rand_uniform(&r);
        size_t source = 0;
        // the last source with a share, if rounding leaves `left` above 0
        for (size_t s = 0; s < d->source_count && left >= 0; s++) {
            const double share = d->sources[s].factor * (double)(first[s + 1] - first[s]);
            if (share > 0) source = s;
            left -= share;
        }
        order[p] = first[source] + (int64_t)rand_below(&r, (uint64_t)(first[source + 1] - first[source])) +
                   p * d->count;
    }
}

// order (dataset_epoch_length) of an epoch. Without shuffle, sources and samples come as in the list.
static inline void dataset_order(
    const Dataset *d, uint64_t seed, int64_t epoch, bool shuffle, int64_t *order) {
    const size_t S = d->source_count;
    const int64_t length = dataset_epoch_length(d);
    int64_t *first = (int64_t *)malloc_check((S + 1) * sizeof *first);
    int64_t *left = (int64_t *)malloc_check(S * sizeof *left);
    const bool merge = shuffle && S > 1 && !d->config.resampled;
    int64_t *lists = merge ? (int64_t *)malloc_check((size_t)length * sizeof *lists) : order, to = 0;
    dataset_source_ranges(d, first);
    if (d->config.resampled) order_resample(d, seed, epoch, first, order, length);
    for (size_t s = 0; s < S && !d->config.resampled; to += left[s++])
        left[s] = source_order(d, seed, epoch, s, first[s], first[s + 1] - first[s], shuffle, lists + to);
    if (merge) {
        Rand r = rand_for(seed ^ MERGE_STREAM, (uint64_t)epoch, 0);
        orders_merge(order, lists, left, S, &r);
        free(lists);
    }
    free(first);
    free(left);
}

// ---------------------------------------------------------------- distinct steps

// An entry of an order with its key.
typedef struct {
    uint64_t key;
    int64_t place, entry;
} KeyedEntry;

static inline int compare_keyed_entries(const void *a, const void *b) {
    const KeyedEntry *x = (const KeyedEntry *)a, *y = (const KeyedEntry *)b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

// (n) entries, those of one key together; the order of the keys is drawn from r.
static inline KeyedEntry *order_by_key(const Dataset *d, const int64_t *order, int64_t n, Rand *r) {
    KeyedEntry *out = (KeyedEntry *)malloc_check((size_t)n * sizeof *out);
    const uint64_t turn = rand_u64(r);
    for (int64_t i = 0; i < n; i++) {
        // a bijection: equal keys stay equal, others stay different
        out[i].key = rand_mix(d->keys[order_sample(d, order[i])] ^ turn);
        out[i].place = i;
        out[i].entry = order[i];
    }
    qsort(out, (size_t)n, sizeof *out, compare_keyed_entries);
    return out;
}

// How many steps of `step` entries with different keys can be made of them: the largest K with
// Σ min(K, entries of a key) ≥ K · step, since K steps can take at most K entries of a key.
static inline int64_t distinct_steps(const KeyedEntry *sorted, int64_t n, int64_t step) {
    int64_t low = 0, high = n / step;
    while (low < high) {
        const int64_t K = low + (high - low + 1) / 2;
        int64_t sum = 0, same = 0;
        for (int64_t i = 0; i < n; i++) {
            same = i > 0 && sorted[i].key == sorted[i - 1].key ? same + 1 : 1;
            sum += same <= K;
        }
        if (sum >= K * step) low = K;
        else high = K - 1;
    }
    return low;
}

// Rearranges an epoch's order so that each of its first K steps, K as above, holds every key at most once:
// key by key the entries are dealt to the steps in turn, so that those of one key go to different steps. The
// entries left over follow these steps; they differ from epoch to epoch. Needs d->keys (dataset_read_keys).
// Returns K.
static inline int64_t order_make_distinct(
    const Dataset *d, uint64_t seed, int64_t epoch, int64_t step, int64_t *order, int64_t n) {
    Rand r = rand_for(seed ^ DISTINCT_STREAM, (uint64_t)epoch, 0);
    assert(step >= 1 && d->keys);
    KeyedEntry *sorted = order_by_key(d, order, n, &r);
    const int64_t K = distinct_steps(sorted, n, step);
    int64_t *turn = (int64_t *)malloc_check((size_t)K * sizeof *turn);
    int64_t dealt = 0, same = 0, rest = K * step;
    for (int64_t k = 0; k < K; k++) turn[k] = k;
    rand_shuffle(&r, turn, K);
    for (int64_t i = 0; i < n; i++) {
        same = i > 0 && sorted[i].key == sorted[i - 1].key ? same + 1 : 1;
        if (same > K || dealt == K * step) order[rest++] = sorted[i].entry;
        else {
            order[turn[dealt % K] * step + dealt / K] = sorted[i].entry;
            dealt++;
        }
    }
    free(turn);
    free(sorted);
    return K;
}

// How many such steps an epoch has; with factors or resampled, the first one.
static inline int64_t dataset_distinct_steps(const Dataset *d, uint64_t seed, int64_t step) {
    const int64_t n = dataset_epoch_length(d);
    int64_t *order = (int64_t *)malloc_check((size_t)n * sizeof *order);
    dataset_order(d, seed, 0, false, order);
    const int64_t K = order_make_distinct(d, seed, 0, step, order, n);
    free(order);
    return K;
}

// ---------------------------------------------------------------- parts of a data set

// The samples of `d` that the list (n) names, as a data set that uses the files of `d` and has to be freed
// before it.
static inline Dataset dataset_subset(const Dataset *d, const int64_t *list, int64_t n) {
    Dataset out = *d;
    out.keys = NULL; // they belong to the old list; dataset_read_keys() makes new ones
    out.passed_over = out.noted = NULL;
    out.whole = d;
    out.whole_index =
        (int64_t *)memcpy(malloc_check((size_t)n * sizeof *list), list, (size_t)n * sizeof *list);
    out.borrowed = true;
    out.samples = (DataSample *)malloc_check((size_t)n * sizeof *out.samples);
    out.capacity = (size_t)n;
    out.count = n;
    out.files = (DataFile *)malloc_check(d->file_count * sizeof *out.files);
    memcpy(out.files, d->files, d->file_count * sizeof *out.files);
    for (size_t i = 0; i < d->file_count; i++) out.files[i].samples = 0;
    for (int64_t i = 0; i < n; i++) {
        out.samples[i] = d->samples[list[i]];
        out.files[out.samples[i].file].samples++;
    }
    return out;
}

// Moves round(share · count) samples, drawn by `seed` alone, from `d` to the returned data set, which uses
// the files and accounts of `d` and has to be freed before it. Both keep their order. share: 0 … 1. To be
// called before dataset_check() or a loader counts anything of a sample.
static inline Dataset dataset_split(Dataset *d, double share, uint64_t seed) {
    assert(share >= 0 && share <= 1);
    const int64_t take = (int64_t)((double)d->count * share + 0.5);
    int64_t *order = (int64_t *)malloc_check((size_t)d->count * sizeof *order);
    int64_t kept = 0, moved = 0;
    bool *taken = (bool *)calloc_check((size_t)d->count, sizeof *taken);
    for (int64_t i = 0; i < d->count; i++) order[i] = i;
    Rand r = rand_for(seed, 0x73706c6974 /* "split" */, 0);
    rand_shuffle(&r, order, d->count);
    for (int64_t i = 0; i < take; i++) taken[order[i]] = true;
    for (int64_t i = 0; i < d->count; i++)
        if (taken[i]) order[moved++] = i;
    Dataset out = dataset_subset(d, order, take);
    free(out.whole_index); // the samples of `d` move
    out.whole = NULL;
    out.whole_index = NULL;
    out.passed_over = (uint8_t *)calloc_check((size_t)take / 8 + 1, 1);
    out.noted = (uint8_t *)calloc_check((size_t)take / 8 + 1, 1);
    for (int64_t i = 0; i < d->count; i++)
        if (taken[i]) d->files[d->samples[i].file].samples--;
        else d->samples[kept++] = d->samples[i];
    free(d->keys);
    d->keys = NULL;
    d->count = kept;
    free(order);
    free(taken);
    return out;
}

#endif
