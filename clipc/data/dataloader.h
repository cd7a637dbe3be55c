// From a data set to batches: threads that read, decode, augment and tokenize while the model computes.
//
// Each worker takes the next position of the order and fills a slot of a ring; the consumer takes the slots
// in the order of their positions and skips the bad ones. So a batch is a function of (seed, epoch,
// position) alone, whatever the number of workers. The place of a skipped sample goes to the next in the
// order; after its end, the order begins again within the epoch.
#ifndef CLIPC_DATALOADER_H
#define CLIPC_DATALOADER_H

#include "clipc/base/utils.h"       // die, warn, malloc_check
#include "clipc/data/image_cache.h" // ImageCache
#include "clipc/data/order.h"       // dataset_order
#include "clipc/data/sample.h"      // dataset_read, dataset_pass_over
#include "clipc/data/tokenizer.h"   // tokenizer_encode
#include "clipc/data/transform.h"   // image_train_transform

#include <assert.h>
#include <pthread.h>
#include <signal.h>

#define PREFETCH_MOST_BYTES ((size_t)1 << 30) // of pixels prepared beyond the next batch
// What random numbers are for.
#define AUGMENT_STREAM 0x6175676d656e74ull       // "augment"
#define PROMPT_STREAM 0x70726f6d7074ull          // "prompt"
#define LINE_STREAM 0x6c696e65ull                // "line"
#define SYNTHETIC_TOKEN_STREAM 0x746f6b656e73ull // "tokens"

typedef struct {
    int batch_size, workers;      // 1 …
    int micro_batches;            // of a step, with several processes: see shares.h; else 0
    ImageSettings image;          // size: of the pixels, square
    const AugmentConfig *augment; // NULL: the evaluation transform
    ImageCache *cache;            // the images of this data set, decoded before; or NULL
    uint64_t seed;
    bool shuffle;       // else 0 … N-1
    bool caption_lines; // a caption is one line of the text, drawn anew in each epoch; one_pass: the first
    bool one_pass;      // evaluation: one pass without wrapping, the last batch is smaller
    int context;        // tokens of a caption, 2 …; 0: images only
    bool captions_only; // images are neither read nor decoded; pixels stay undefined
    const Tokenizer *tokenizer; // NULL: only synthetic captions, by vocab_size
    int vocab_size;             // 3 … without a tokenizer
    // of the captions that replace labels (DatasetConfig.prompts), or NULL
    const StringList *templates, *classnames;
    int64_t distinct_step;    // pairs of a step without equal keys; needs dataset_read_keys(); 0: any keys
    const char *skipped_path; // where the names of skipped samples are written, or NULL
    const volatile sig_atomic_t *interrupted; // not 0 after Ctrl-C: loader_next() stops waiting; or NULL
} LoaderConfig;

typedef struct {
    uint8_t *pixels;     // (B,3,S,S) 0 … 255
    int *tokens;         // (B,context) zeros after the end of text; NULL without captions
    int *lengths;        // (B) tokens used, start and end of text included
    int *labels;         // (B) -1: none
    int64_t *indices;    // (B) which samples of the data set
    uint64_t *keys;      // (B) equal for false negatives of each other: sample_key()
    int count;           // samples in it: B, or fewer at the end of one pass
    double wait_seconds; // for which loader_next() waited for workers
} Batch;

// One position of the order, filled by a worker.
typedef struct {
    int64_t position;
    uint8_t *pixels; // (3,S,S)
    int *tokens;     // (context + 1), the last one is scratch
    int length, label;
    int64_t index;
    uint64_t key;
    SampleStatus status;
    bool rotated; // EXIF says that the image is not upright
    bool cut;     // the caption has more tokens than the context
    bool ready;
} LoaderSlot;

typedef struct {
    const Dataset *data;
    LoaderConfig config;
    int64_t count;      // entries of an epoch's order
    int64_t *order;     // (count) of this epoch
    int64_t epoch, end; // positions from `end` on are not read: 0 while the epoch changes
    int64_t next;       // the position a worker takes next
    int64_t position;   // the position the consumer takes next
    int64_t committed;  // `position` after the last whole batch
    LoaderSlot *slots;  // (ring) position p is filled into slot p % ring
    int64_t ring;
    int64_t exact;    // with several processes: up to here the slots' positions are set; see shares.h
    int64_t base[2];  // with several processes: a ticket, and the position at which its step begins
    int busy;         // workers that are filling a slot
    bool micro_waits; // the consumer waits for any slot, not for that of `position` alone
    bool stop;
    pthread_mutex_t mutex; // guards end, next, position, busy, stop, and `ready` of the slots
    pthread_cond_t work, done;
    pthread_t *threads; // (config.workers)
    // what follows is the consumer's alone
    uint8_t *named;                        // (samples) bits: already named in skipped_path
    FILE *skipped;                         // NULL: nothing was skipped yet, or no path
    int64_t good_samples;                  // in this epoch
    int64_t failed_streak;                 // bad samples since the last good one
    int64_t failures[SAMPLE_STATUS_COUNT]; // those by reason
    uint64_t *step_keys; // (step_slots) keys of the current step, a hash table, 0 is free; NULL: not distinct
    size_t step_slots;   // a power of 2
    int64_t in_step;     // samples in the current step
    int64_t unfit_streak; // samples since the last one that fitted into a step
} Loader;

// ---------------------------------------------------------------- workers

// For a vocabulary without a tokenizer: start of text V-2, random tokens below it, end of text V-1.
static inline void synthetic_tokens(int *tokens, int context, int vocab_size, int64_t index) {
    Rand r = rand_for(SYNTHETIC_TOKEN_STREAM, (uint64_t)index, 0);
    tokens[0] = vocab_size - 2;
    for (int t = 1; t < context - 1; t++) tokens[t] = (int)rand_below(&r, (uint64_t)vocab_size - 2);
    tokens[context - 1] = vocab_size - 1;
}

static inline bool loader_crops(const LoaderConfig *c) {
    return c->augment && !c->augment->evaluation_transform;
}

// Transforms an image into the slot. draw: a number for each place in the epoch, from which what is random is
// drawn.
static inline SampleStatus loader_transform(
    const Loader *l, const Image *image, uint64_t draw, LoaderSlot *s) {
    const LoaderConfig *c = &l->config;
    if (!loader_crops(c)) return sample_transform(s->pixels, image, &c->image);
    Rand r = rand_for(c->seed ^ AUGMENT_STREAM, (uint64_t)l->epoch, draw);
    // open_clip's rule: bicubic, whatever interpolation the weights ask for
    image_train_transform(s->pixels, image, c->image.size, INTERPOLATION_BICUBIC, c->augment, &r);
    return SAMPLE_OK;
}

// The pixels of the slot's sample from the cache; false where it does not hold them.
static inline bool loader_take_cached(const Loader *l, SampleBuffers *b, uint64_t draw, LoaderSlot *s) {
    ImageCache *cache = l->config.cache;
    const ImageEntry *e = cache ? image_cache_find(cache, s->index) : NULL;
    if (!e) return false;
    s->rotated = e->orientation != 1;
    if (cache->squares) return image_cache_read(cache, e, s->pixels);
    ByteBuffer *pixels = &b->image;
    list_grow((void **)&pixels->data, &pixels->capacity, image_entry_bytes(e) + 1, 1);
    if (!image_cache_read(cache, e, pixels->data)) return false;
    const Image image = {e->width, e->height, pixels->data, 1};
    s->status = loader_transform(l, &image, draw, s);
    return true;
}

// The pixels of the slot's sample, decoded from its image file.
static inline SampleStatus loader_decode(const Loader *l, SampleBuffers *b, uint64_t draw, LoaderSlot *s) {
    Image image;
    int orientation = 1;
    SampleStatus status = sample_read_image(l->data, &l->data->samples[s->index], b);
    if (status == SAMPLE_OK) status = sample_decode(&image, &orientation, &b->image, &l->config.image);
    s->rotated = orientation != 1;
    if (status != SAMPLE_OK) return status;
    status = loader_transform(l, &image, draw, s);
    image_free(&image);
    return status;
}

// The pixels of the slot's sample: drawn, from the cache, or decoded.
static inline void loader_fill_pixels(const Loader *l, uint64_t draw, LoaderSlot *s, SampleBuffers *b) {
    if (sample_type(l->data, &l->data->samples[s->index]) == DATASET_SYNTHETIC)
        dataset_synthetic_pixels(s->index, s->pixels, l->config.image.size);
    else if (!loader_take_cached(l, b, draw, s)) s->status = loader_decode(l, b, draw, s);
}

// Replaces the caption by a template with the name of the sample's class (FLYP). False for a class without a
// name.
static inline bool loader_draw_prompt(const Loader *l, uint64_t draw, SampleBuffers *b) {
    const LoaderConfig *c = &l->config;
    if ((size_t)b->label >= c->classnames->count) return false;
    Rand r = rand_for(c->seed ^ PROMPT_STREAM, (uint64_t)l->epoch, draw);
    const char *sentence = c->templates->list[rand_below(&r, c->templates->count)];
    template_fill(&b->prompt, &b->prompt_capacity, sentence, c->classnames->list[b->label]);
    b->caption = b->prompt;
    b->caption_bytes = strlen(b->prompt);
    return true;
}

static inline bool tokens_are_below(const int *tokens, int n, int vocabulary) {
    for (int t = 0; t < n; t++)
        if (tokens[t] < 0 || tokens[t] >= vocabulary) return false;
    return true;
}

// Makes the caption line `wanted` of it, from 0; blank lines do not count. Returns how many lines there are.
static inline uint64_t caption_take_line(SampleBuffers *b, uint64_t wanted) {
    const char *line = b->caption, *end = line + b->caption_bytes;
    uint64_t lines = 0;
    for (const char *next; line < end; line = next) {
        const char *stop = (const char *)memchr(line, '\n', (size_t)(end - line));
        next = stop ? stop + 1 : end;
        const size_t n = (size_t)((stop ? stop : end) - line);
        if (is_blank(line, n)) continue;
        if (lines++ != wanted) continue;
        b->caption = line;
        b->caption_bytes = n;
    }
    return lines;
}

// One line of the caption, by the seed, the epoch and the place in it alone; in one pass the first.
static inline void loader_draw_line(const Loader *l, uint64_t draw, SampleBuffers *b) {
    const LoaderConfig *c = &l->config;
    const uint64_t lines = caption_take_line(b, UINT64_MAX);
    Rand r = rand_for(c->seed ^ LINE_STREAM, (uint64_t)l->epoch, draw);
    if (lines) caption_take_line(b, c->one_pass ? 0 : rand_below(&r, lines));
}

// tokens (context + 1) of the caption in b; returns how many are in use, at most `context`. Cut: it has more.
static inline int loader_tokenize(const LoaderConfig *c, const SampleBuffers *b, int *tokens, bool *cut) {
    const int n = tokenizer_encode(c->tokenizer, b->caption, b->caption_bytes, tokens, c->context + 1);
    *cut = n > c->context;
    if (!*cut) return n;
    tokens[c->context - 1] = c->tokenizer->end_of_text;
    return c->context;
}

static inline void loader_fill(const Loader *l, int64_t position, LoaderSlot *s, SampleBuffers *b) {
    const LoaderConfig *c = &l->config;
    const int64_t entry = l->order[position % l->count];
    // another number also after the order has begun again
    const uint64_t draw = (uint64_t)entry + (uint64_t)(position / l->count) * order_limit(l->data);
    s->index = order_sample(l->data, entry);
    s->rotated = s->cut = false;
    s->status = dataset_read_caption(l->data, s->index, b);
    s->label = b->label;
    s->length = c->context;
    if (s->status != SAMPLE_OK) return;
    if (c->caption_lines) loader_draw_line(l, draw, b);
    s->key = sample_key(l->data, s->index, b->caption, b->caption_bytes);
    if (!c->captions_only) loader_fill_pixels(l, draw, s, b);
    if (s->status != SAMPLE_OK || !c->context) return;
    if (c->templates && sample_is_prompted(l->data, &l->data->samples[s->index]) &&
        !loader_draw_prompt(l, draw, b))
        s->status = SAMPLE_NO_LABEL;
    else if (c->tokenizer) s->length = loader_tokenize(c, b, s->tokens, &s->cut);
    else synthetic_tokens(s->tokens, c->context, c->vocab_size, s->index);
    assert(s->status != SAMPLE_OK ||
           tokens_are_below(s->tokens, c->context, c->tokenizer ? c->tokenizer->vocabulary : c->vocab_size));
}

// The position that a worker fills next into slot `ticket` % ring. With one process they count alike. With
// several, the tickets count what this one needs, as far as no sample fails: micro-batch j of process r in a
// step is number j * processes + r. See shares.h.
static inline int64_t loader_position_of(const Loader *l, int64_t ticket) {
    const int64_t B = l->config.batch_size, k = l->config.micro_batches, size = comm_size();
    if (!k) return ticket;
    if (ticket < l->exact) return l->slots[ticket % l->ring].position;
    const int64_t t = ticket - l->base[0], j = t % (k * B) / B;
    return l->base[1] + t / (k * B) * k * B * size + (j * size + comm_rank()) * B + t % B;
}

static inline void *loader_worker(void *argument) {
    Loader *l = (Loader *)argument;
    SampleBuffers buffers;
    memset(&buffers, 0, sizeof buffers);
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (!l->stop && !(l->next < l->end && l->next < l->position + l->ring))
            pthread_cond_wait(&l->work, &l->mutex);
        if (l->stop) break;
        const int64_t ticket = l->next++;
        LoaderSlot *slot = &l->slots[ticket % l->ring];
        if (slot->ready) continue; // kept, where the step was divided anew
        slot->position = loader_position_of(l, ticket);
        l->busy++;
        pthread_mutex_unlock(&l->mutex);
        loader_fill(l, slot->position, slot, &buffers);
        pthread_mutex_lock(&l->mutex);
        slot->ready = true;
        l->busy--;
        if (ticket == l->position || l->micro_waits || l->end == 0) pthread_cond_signal(&l->done);
    }
    pthread_mutex_unlock(&l->mutex);
    sample_buffers_free(&buffers);
    return NULL;
}

// ---------------------------------------------------------------- making and freeing

static inline void loader_make_slots(Loader *l) {
    size_t pixels = 3 * (size_t)l->config.image.size * (size_t)l->config.image.size;
    size_t context = (size_t)l->config.context;
    int64_t batch = l->config.batch_size;
    if (l->config.micro_batches) batch *= l->config.micro_batches; // a step is held until it is divided
    l->ring = batch + min_i64(batch, (int64_t)(PREFETCH_MOST_BYTES / pixels)) + l->config.workers;
    if (l->config.micro_batches) l->ring = max_i64(l->ring, batch + l->config.batch_size);
    l->slots = (LoaderSlot *)calloc_check((size_t)l->ring, sizeof *l->slots);
    for (int64_t i = 0; i < l->ring; i++) {
        l->slots[i].pixels = (uint8_t *)malloc_check(pixels);
        l->slots[i].tokens = (int *)malloc_check((context + 1) * sizeof(int));
    }
}

// Ends the program when captions are needed but there is no tokenizer for them.
static inline void loader_check_captions(const Dataset *data, const LoaderConfig *config) {
    bool text = false;
    for (size_t i = 0; i < data->source_count; i++) text = text || data->sources[i].type != DATASET_SYNTHETIC;
    if (config->context && !config->tokenizer && text)
        die(EXIT_USAGE,
            "%s: the model's vocabulary of %d has no tokenizer, so captions cannot be read; use --train-data "
            "synthetic",
            data->files[0].path, config->vocab_size);
}

enum { WORKER_STACK = 2 << 20 }; // bytes: JSON nested as deep as jansson reads it takes most

// Starts the workers; they are idle until loader_start_epoch(). `data` and what `config` points to must
// outlive the loader.
static inline Loader *loader_create(const Dataset *data, const LoaderConfig *config) {
    loader_check_captions(data, config);
    assert(config->batch_size >= 1 && config->image.size >= 1 && config->image.max_pixels >= 1);
    assert(config->context == 0 || config->context >= 2);
    assert(config->context == 0 || config->tokenizer || config->vocab_size >= 3);
    assert(!config->templates == !config->classnames);
    assert(config->distinct_step >= 0 && config->distinct_step % config->batch_size == 0);
    assert(!config->distinct_step || data->keys);
    assert(!config->cache || config->cache->samples == data->count);
    Loader *l = (Loader *)calloc_check(1, sizeof *l);
    l->data = data;
    l->config = *config;
    l->count = config->one_pass ? dataset_count(data) : dataset_epoch_length(data);
    if (config->workers < 1) l->config.workers = 1;
    l->order = (int64_t *)malloc_check((size_t)l->count * sizeof *l->order);
    l->named = (uint8_t *)calloc_check((size_t)data->count / 8 + 1, 1);
    if (config->distinct_step) {
        for (l->step_slots = 2; l->step_slots < 2 * (size_t)config->distinct_step;) l->step_slots *= 2;
        l->step_keys = (uint64_t *)calloc_check(l->step_slots, sizeof *l->step_keys);
    }
    loader_make_slots(l);
    json_object_seed(0); // else jansson does it in whichever thread parses first

    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->done, NULL);

    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, WORKER_STACK); // whatever `ulimit -s` says
    sigset_t all, before;                                 // only the main thread receives signals
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    l->threads = (pthread_t *)malloc_check((size_t)l->config.workers * sizeof *l->threads);
    for (int i = 0; i < l->config.workers; i++) {
        int error = pthread_create(&l->threads[i], &attributes, loader_worker, l);
        if (error)
            die(EXIT_RUNTIME, "cannot start worker %d of %d (%s); lower --workers", i + 1, l->config.workers,
                strerror(error));
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return l;
}

// Waits only for the samples that the workers are reading.
static inline void loader_free(Loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    for (int i = 0; i < l->config.workers; i++) pthread_join(l->threads[i], NULL);
    for (int64_t i = 0; i < l->ring; i++) {
        free(l->slots[i].pixels);
        free(l->slots[i].tokens);
    }
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->done);
    if (l->skipped) fclose(l->skipped);
    free(l->slots);
    free(l->threads);
    free(l->order);
    free(l->named);
    free(l->step_keys);
    free(l);
}

// Buffers for the batches of a loader.
static inline Batch batch_create(const LoaderConfig *c) {
    size_t B = (size_t)c->batch_size, S = (size_t)c->image.size;
    Batch b;
    memset(&b, 0, sizeof b);
    b.pixels = (uint8_t *)aligned_malloc_check(B * 3 * S * S);
    if (c->context) b.tokens = (int *)malloc_check(B * (size_t)c->context * sizeof(int));
    b.lengths = (int *)malloc_check(B * sizeof(int));
    b.labels = (int *)malloc_check(B * sizeof(int));
    b.indices = (int64_t *)malloc_check(B * sizeof(int64_t));
    b.keys = (uint64_t *)malloc_check(B * sizeof(uint64_t));
    return b;
}

static inline void batch_free(Batch *b) {
    free(b->pixels);
    free(b->tokens);
    free(b->lengths);
    free(b->labels);
    free(b->indices);
    free(b->keys);
    memset(b, 0, sizeof *b);
}

static inline int compare_keys(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

// How many pairs (i,j), i ≠ j, over all `count` batches of a step have equal keys; (i,j) and (j,i) count as
// two. The image of i matches the caption of j, but the loss takes it as a negative. Divided by the number
// of samples: false negatives per sample.
static inline int64_t batch_false_negatives(const Batch *batches, int64_t count) {
    int64_t n = 0, pairs = 0, same = 0;
    for (int64_t b = 0; b < count; b++) n += batches[b].count;
    uint64_t *keys = (uint64_t *)malloc_check((size_t)n * sizeof *keys);
    n = 0;
    for (int64_t b = 0; b < count; n += batches[b++].count)
        memcpy(keys + n, batches[b].keys, (size_t)batches[b].count * sizeof *keys);
    qsort(keys, (size_t)n, sizeof *keys, compare_keys);
    for (int64_t i = 1; i < n; i++) {
        same = keys[i] == keys[i - 1] ? same + 1 : 0; // equal keys before this one
        pairs += 2 * same;
    }
    free(keys);
    return pairs;
}

// ---------------------------------------------------------------- an epoch

// Begins an epoch at a position of its order: 0, or loader_position() of an earlier run. The workers start at
// once; called before an evaluation, it has the first batches ready after it.
static inline void loader_start_epoch(Loader *l, int64_t epoch, int64_t position) {
    assert(epoch >= 0 && position >= 0);
    pthread_mutex_lock(&l->mutex);
    l->end = 0;
    while (l->busy) pthread_cond_wait(&l->done, &l->mutex);
    l->epoch = epoch;
    if (!l->config.one_pass) dataset_order(l->data, l->config.seed, epoch, l->config.shuffle, l->order);
    for (int64_t i = 0; i < l->count && l->config.one_pass; i++) l->order[i] = i;
    if (l->config.distinct_step)
        order_make_distinct(l->data, l->config.seed, epoch, l->config.distinct_step, l->order, l->count);
    l->next = l->position = l->committed = l->exact = position;
    l->base[0] = l->base[1] = position;
    for (int64_t i = 0; i < l->ring; i++) l->slots[i].ready = false;
    l->failed_streak = l->good_samples = l->unfit_streak = 0;
    l->in_step = l->config.distinct_step; // full: the next sample begins another step
    memset(l->failures, 0, sizeof l->failures);
    l->end = l->config.one_pass ? l->count : INT64_MAX;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
}

// How many entries of the epoch's order the batches have used, the skipped ones included: where a resumed run
// continues.
static inline int64_t loader_position(const Loader *l) { return l->committed; }

// "9 broken images, 3 without caption"
static inline void skip_reasons(char *out, size_t size, const int64_t counts[SAMPLE_STATUS_COUNT]) {
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < SAMPLE_STATUS_COUNT && n < size; i++)
        if (counts[i])
            n += (size_t)snprintf(out + n, size - n, "%s%lld %s", n ? ", " : "", (long long)counts[i],
                sample_status_counted(i, counts[i]));
}

// Names the sample in the list of skipped ones, once in a run.
static inline void loader_name_skipped(Loader *l, const char *origin, const LoaderSlot *s) {
    if (!l->config.skipped_path || !set_bit(l->named, s->index)) return;
    if (!l->skipped) {
        const int fd = file_append(l->config.skipped_path, O_WRONLY);
        l->skipped = fd < 0 ? NULL : fdopen(fd, "a");
        if (!l->skipped) {
            warn("%s: cannot write (%s); skipped samples are only counted", l->config.skipped_path,
                strerror(errno));
            l->config.skipped_path = NULL;
            return;
        }
        setvbuf(l->skipped, NULL, _IOLBF, 0);
    }
    fprintf(l->skipped, "%s\t%s\n", origin, sample_status_name(s->status));
}

// Names a bad sample, and counts it in the account; ends the program when a whole pass found none that can be
// used, or in training fewer than two.
static inline void loader_skip(Loader *l, const LoaderSlot *s) {
    char origin[2 * PATH_SIZE], reasons[400];
    dataset_origin(l->data, s->index, origin, sizeof origin);
    make_showable(origin);
    loader_name_skipped(l, origin, s);
    dataset_pass_over(l->data, s->index, s->status);
    l->failures[s->status]++;
    l->failed_streak++;
    bool pass = l->config.one_pass;
    if (l->good_samples && pass) return;
    int64_t most = pass ? l->count : max_i64(l->count - 1, 1);
    if (l->failed_streak < most) return;
    skip_reasons(reasons, sizeof reasons, l->failures);
    die(EXIT_USAGE,
        "%s: %s of %lld samples can be used (%s; the last is %.1000s); check the data and its options",
        l->data->files[0].path, pass ? "none" : "fewer than two", (long long)l->count, reasons, origin);
}

static inline void batch_add(Batch *b, const LoaderConfig *c, const LoaderSlot *s) {
    size_t i = (size_t)b->count++;
    size_t pixels = 3 * (size_t)c->image.size * (size_t)c->image.size;
    size_t context = (size_t)c->context;
    if (!c->captions_only) memcpy(b->pixels + i * pixels, s->pixels, pixels);
    if (context) memcpy(b->tokens + i * context, s->tokens, context * sizeof(int));
    b->lengths[i] = s->length;
    b->labels[i] = s->label;
    b->indices[i] = s->index;
    b->keys[i] = s->key;
}

// With distinct steps: whether the sample's key is new in the step. The order makes sure of it
// (order_make_distinct), but when a broken sample gives its place to the next one, equal keys can meet:
// such a sample is skipped. When no sample fits, the program ends.
static inline bool loader_fits_step(Loader *l, const LoaderSlot *s) {
    if (!l->step_keys) return true;
    if (l->in_step == l->config.distinct_step) {
        memset(l->step_keys, 0, l->step_slots * sizeof *l->step_keys);
        l->in_step = 0;
    }
    if (++l->unfit_streak > l->count)
        die(EXIT_USAGE,
            "%s: the samples that can be used have fewer than %lld different keys; lower --batch-size, or "
            "leave out --distinct-batches",
            l->data->files[0].path, (long long)l->config.distinct_step);
    if (s->status != SAMPLE_OK) return true;
    const uint64_t key = s->key ? s->key : 1;
    size_t i = (size_t)rand_mix(key) & (l->step_slots - 1);
    while (l->step_keys[i] && l->step_keys[i] != key) i = (i + 1) & (l->step_slots - 1);
    if (l->step_keys[i] == key) return false;
    l->step_keys[i] = key;
    l->in_step++;
    l->unfit_streak = 0;
    return true;
}

// Waits until the slot of l->position is filled, with the mutex held; false after Ctrl-C.
static inline bool loader_wait(Loader *l, const LoaderSlot *s, double *waited) {
    if (s->ready) return true;
    double start = seconds_now();
    while (!s->ready && !(l->config.interrupted && *l->config.interrupted)) {
        struct timespec until; // checks for Ctrl-C ten times a second
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        pthread_cond_timedwait(&l->done, &l->mutex, &until);
    }
    *waited += seconds_now() - start;
    return s->ready;
}

// Counts the sample of the next position in the account; returns whether the step takes it.
static inline bool loader_judge(Loader *l, const LoaderSlot *s) {
    const bool fits = loader_fits_step(l, s);
    if (s->status == SAMPLE_OK) {
        l->good_samples++;
        l->failed_streak = 0;
        memset(l->failures, 0, sizeof l->failures);
    } else {
        loader_skip(l, s);
    }
    if (s->rotated || s->cut)
        dataset_note(l->data, s->index, s->rotated && !l->config.image.exif_rotate, s->cut);
    return fits && s->status == SAMPLE_OK;
}

// The next batch; returns out->count: batch_size, fewer at the end of one pass, 0 after it. 0 also when
// Ctrl-C ended the wait for a sample; loader_position() is then that of the batch before.
static inline int loader_next(Loader *l, Batch *out) {
    out->count = 0;
    out->wait_seconds = 0;
    while (out->count < l->config.batch_size && l->position < l->end) {
        LoaderSlot *s = &l->slots[l->position % l->ring];
        pthread_mutex_lock(&l->mutex);
        bool ready = loader_wait(l, s, &out->wait_seconds);
        pthread_mutex_unlock(&l->mutex);
        if (!ready) return out->count = 0;
        if (loader_judge(l, s)) batch_add(out, &l->config, s);
        pthread_mutex_lock(&l->mutex);
        s->ready = false;
        l->position++;
        pthread_cond_signal(&l->work);
        pthread_mutex_unlock(&l->mutex);
    }
    l->committed = l->position;
    return out->count;
}

#endif
