// From a data set to batches: the order of an epoch, and threads that read, decode, augment and tokenize ahead of the step.
//
// Each worker takes the next position of the order and fills a slot of a ring; the consumer takes the slots in the order of
// their positions and passes over the bad ones. So a batch is a function of (seed, epoch, position) alone, whatever the number of workers.
// The place of a skipped sample goes to the next in the order; behind its end, the order begins again within the epoch.
#ifndef CLIPC_DATALOADER_H
#define CLIPC_DATALOADER_H

#include "clipc/image.h"     // image_decode
#include "clipc/rand.h"      // rand_for
#include "clipc/sample.h"    // dataset_read
#include "clipc/tokenizer.h" // tokenizer_encode
#include "clipc/transform.h" // image_train_transform
#include "clipc/utils.h"     // die, warn, malloc_check

#include <pthread.h>
#include <signal.h>

#define SHUFFLE_BUFFER 5000                       // tar: samples of the stream that one is drawn from, open_clip's number
#define PREFETCH_MOST_BYTES ((size_t)1 << 30)     // pixels kept ready beyond the next batch
#define ORDER_STREAM 0x6f72646572ull              // "order": what the random numbers are for
#define AUGMENT_STREAM 0x6175676d656e74ull        // "augment"
#define SYNTHETIC_TOKEN_STREAM 0x746f6b656e73ull  // "tokens"

typedef struct {
    int batch_size, workers; // 1 …
    int image_size;          // pixels, square
    Interpolation interpolation;
    ResizeMode resize_mode;
    const AugmentConfig *augment; // NULL: the evaluation transform
    int64_t max_image_pixels;     // larger pictures are skipped
    bool exif_rotate;             // turn pictures upright as EXIF says
    uint64_t seed;
    bool shuffle;               // else 0 … N-1
    bool one_pass;              // evaluation: one pass without wrapping, the last batch is smaller
    int context;                // tokens of a caption; 0: images alone
    const Tokenizer *tokenizer; // NULL: only synthetic captions, by vocab_size
    int vocab_size;
    const char *skipped_path;                  // a file to name the skipped samples in, or NULL
    const volatile sig_atomic_t *interrupted;  // not 0 after Ctrl-C: loader_next() waits no longer; or NULL
} LoaderConfig;

typedef struct {
    uint8_t *pixels;  // (B,3,S,S) 0 … 255
    int *tokens;      // (B,context) zeros behind the end of text; NULL without captions
    int *lengths;     // (B) tokens used, start and end of text included
    int *labels;      // (B) -1: none
    int64_t *indices; // (B) which samples of the data set
    int count;        // samples in it, B but at the end of one pass
    double wait_seconds; // that loader_next() waited for workers
} Batch;

// One position of the order, filled by a worker.
typedef struct {
    uint8_t *pixels; // (3,S,S)
    int *tokens;     // (context)
    int length, label;
    int64_t index;
    SampleStatus status;
    bool rotated; // the file asks to be turned, by EXIF
    bool ready;
} LoaderSlot;

typedef struct {
    const Dataset *data;
    LoaderConfig config;
    int64_t count;      // samples of the data set
    int64_t *order;     // (count) of this epoch
    int64_t epoch, end; // positions from `end` on are not read: 0 while the epoch changes
    int64_t next;       // the position a worker takes next
    int64_t position;   // the position the consumer takes next
    int64_t committed;  // `position` behind the last whole batch
    LoaderSlot *slots;  // (ring) position p is filled into slot p % ring
    int64_t ring;
    int busy; // workers that fill a slot
    bool stop;
    pthread_mutex_t mutex; // guards end, next, position, busy, stop, and `ready` of the slots
    pthread_cond_t work, done;
    pthread_t *threads; // (config.workers)
    // of the consumer alone
    int64_t *skips;                            // (files, SAMPLE_STATUS_COUNT) of this epoch
    uint8_t *named;                            // (count) bits: already named in skipped_path
    FILE *skipped;                             // NULL: nothing was skipped yet, or no path
    int64_t failed_in_a_row, good, rotated;    // since the last good sample; in this epoch
    int64_t failures[SAMPLE_STATUS_COUNT];     // those in a row by reason
    bool rotated_told;
} Loader;

// ---------------------------------------------------------------- order

// order (count) of an epoch, a function of (seed, epoch) and the list of samples alone. Tar shards: the shards are shuffled, then each
// place is drawn from the SHUFFLE_BUFFER samples that are next in their stream. Other data sets: the same with a buffer that holds all.
static inline void dataset_order(const Dataset *d, uint64_t seed, int64_t epoch, bool shuffle, int64_t *order) {
    int64_t n = d->count, runs = 0, to = 0;
    for (int64_t i = 0; i < n; i++) order[i] = i;
    if (!shuffle) return;
    Rand r = rand_for(seed ^ ORDER_STREAM, (uint64_t)epoch, 0);
    int64_t buffer = d->type == DATASET_WEBDATASET ? SHUFFLE_BUFFER : n;
    if (buffer < n) {
        int64_t *starts = (int64_t *)malloc_check((d->file_count + 1) * sizeof *starts); // a shard's samples stand side by side
        for (int64_t i = 0; i < n; i++)
            if (i == 0 || d->samples[i].file != d->samples[i - 1].file) starts[runs++] = i;
        rand_shuffle(&r, starts, runs);
        for (int64_t k = 0; k < runs; k++)
            for (int64_t i = starts[k]; i < n && d->samples[i].file == d->samples[starts[k]].file; i++) order[to++] = i;
        free(starts);
    }
    for (int64_t i = 0; i < n; i++) { // the window from i on is the buffer: what is drawn leaves it, the next of the stream enters
        int64_t j = i + (int64_t)rand_below(&r, (uint64_t)min_i64(buffer, n - i)), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
}

// ---------------------------------------------------------------- workers

// A model whose vocabulary has no tokenizer: start of text V-2, any tokens below, end of text V-1.
static inline void synthetic_tokens(int *tokens, int context, int vocab_size, int64_t index) {
    Rand r = rand_for(SYNTHETIC_TOKEN_STREAM, (uint64_t)index, 0);
    tokens[0] = vocab_size - 2;
    for (int t = 1; t < context - 1; t++) tokens[t] = (int)rand_below(&r, (uint64_t)vocab_size - 2);
    tokens[context - 1] = vocab_size - 1;
}

// Decodes and transforms the image in `bytes`. wrap: how often the order has begun again in this epoch.
static inline SampleStatus loader_fill_pixels(const Loader *l, const SampleBytes *bytes, int64_t wrap, LoaderSlot *s) {
    const LoaderConfig *c = &l->config;
    Image image;
    ImageStatus status = image_decode(&image, bytes->image.data, bytes->image.bytes, c->max_image_pixels);
    if (status != IMAGE_OK) return SAMPLE_IMAGE + (SampleStatus)status;
    s->rotated = image.orientation != 1;
    if (c->exif_rotate) image_apply_orientation(&image);
    if (c->augment && !c->augment->evaluation_transform) {
        Rand r = rand_for(c->seed ^ AUGMENT_STREAM, (uint64_t)l->epoch, (uint64_t)s->index + (uint64_t)wrap * (uint64_t)l->count);
        image_train_transform(s->pixels, &image, c->image_size, INTERPOLATION_BICUBIC, c->augment, &r); // whatever the weights say: open_clip's rule
    } else {
        status = image_eval_transform(s->pixels, &image, c->image_size, c->interpolation, c->resize_mode);
    }
    image_free(&image);
    return status == IMAGE_OK ? SAMPLE_OK : SAMPLE_IMAGE + (SampleStatus)status;
}

static inline void loader_fill(const Loader *l, int64_t position, LoaderSlot *s, SampleBytes *bytes) {
    const LoaderConfig *c = &l->config;
    s->index = l->order[position % l->count];
    s->rotated = false;
    s->status = dataset_read(l->data, s->index, bytes);
    s->label = bytes->label;
    s->length = c->context;
    if (s->status != SAMPLE_OK) return;
    if (l->data->type == DATASET_SYNTHETIC) dataset_synthetic_pixels(s->index, s->pixels, c->image_size);
    else s->status = loader_fill_pixels(l, bytes, position / l->count, s);
    if (s->status != SAMPLE_OK || !c->context) return;
    if (c->tokenizer) s->length = tokenizer_encode(c->tokenizer, bytes->caption, bytes->caption_bytes, s->tokens, c->context);
    else synthetic_tokens(s->tokens, c->context, c->vocab_size, s->index);
}

static inline void *loader_worker(void *argument) {
    Loader *l = (Loader *)argument;
    SampleBytes bytes;
    memset(&bytes, 0, sizeof bytes);
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (!l->stop && !(l->next < l->end && l->next < l->position + l->ring)) pthread_cond_wait(&l->work, &l->mutex);
        if (l->stop) break;
        int64_t position = l->next++;
        l->busy++;
        pthread_mutex_unlock(&l->mutex);
        LoaderSlot *slot = &l->slots[position % l->ring];
        loader_fill(l, position, slot, &bytes);
        pthread_mutex_lock(&l->mutex);
        slot->ready = true;
        l->busy--;
        if (position == l->position || l->end == 0) pthread_cond_signal(&l->done);
    }
    pthread_mutex_unlock(&l->mutex);
    sample_bytes_free(&bytes);
    return NULL;
}

// ---------------------------------------------------------------- making and freeing

static inline void loader_make_slots(Loader *l) {
    size_t pixels = 3 * (size_t)l->config.image_size * (size_t)l->config.image_size, context = (size_t)l->config.context;
    int64_t batch = l->config.batch_size;
    l->ring = batch + min_i64(batch, (int64_t)(PREFETCH_MOST_BYTES / pixels)) + l->config.workers;
    l->slots = (LoaderSlot *)calloc_check((size_t)l->ring, sizeof *l->slots);
    for (int64_t i = 0; i < l->ring; i++) {
        l->slots[i].pixels = (uint8_t *)malloc_check(pixels);
        l->slots[i].tokens = (int *)malloc_check(context * sizeof(int));
    }
}

// Ends the program where captions are wanted that nothing can read.
static inline void loader_check_captions(const Dataset *data, const LoaderConfig *config) {
    if (config->context && !config->tokenizer && data->type != DATASET_SYNTHETIC)
        die(EXIT_USAGE, "%s: the model's vocabulary of %d has no tokenizer, so captions cannot be read; use --train-data synthetic", data->files[0].path,
            config->vocab_size);
}

// Starts the workers; they have nothing to do before loader_start_epoch(). `data` must outlive the loader, and what `config` points to.
static inline Loader *loader_create(const Dataset *data, const LoaderConfig *config) {
    loader_check_captions(data, config);
    Loader *l = (Loader *)calloc_check(1, sizeof *l);
    l->data = data;
    l->config = *config;
    l->count = dataset_count(data);
    if (config->workers < 1) l->config.workers = 1;
    l->order = (int64_t *)malloc_check((size_t)l->count * sizeof *l->order);
    l->named = (uint8_t *)calloc_check((size_t)l->count / 8 + 1, 1);
    l->skips = (int64_t *)calloc_check(data->file_count * SAMPLE_STATUS_COUNT, sizeof *l->skips);
    loader_make_slots(l);
    json_object_seed(0); // jansson would do it at the first parse, in whichever thread

    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->done, &monotonic);
    pthread_condattr_destroy(&monotonic);

    sigset_t all, before; // signals are for the main thread
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    l->threads = (pthread_t *)malloc_check((size_t)l->config.workers * sizeof *l->threads);
    for (int i = 0; i < l->config.workers; i++) {
        int error = pthread_create(&l->threads[i], NULL, loader_worker, l);
        if (error) die(EXIT_RUNTIME, "cannot start worker %d of %d (%s); lower --workers", i + 1, l->config.workers, strerror(error));
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return l;
}

// Waits for no more than the samples that the workers are at.
static inline void loader_free(Loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
    for (int i = 0; i < l->config.workers; i++) pthread_join(l->threads[i], NULL);
    for (int64_t i = 0; i < l->ring; i++) free(l->slots[i].pixels), free(l->slots[i].tokens);
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->done);
    if (l->skipped) fclose(l->skipped);
    free(l->slots), free(l->threads), free(l->order), free(l->named), free(l->skips);
    free(l);
}

// Buffers for the batches of a loader.
static inline Batch batch_create(const LoaderConfig *c) {
    size_t B = (size_t)c->batch_size, S = (size_t)c->image_size;
    Batch b;
    memset(&b, 0, sizeof b);
    b.pixels = (uint8_t *)aligned_malloc_check(B * 3 * S * S);
    if (c->context) b.tokens = (int *)malloc_check(B * (size_t)c->context * sizeof(int));
    b.lengths = (int *)malloc_check(B * sizeof(int));
    b.labels = (int *)malloc_check(B * sizeof(int));
    b.indices = (int64_t *)malloc_check(B * sizeof(int64_t));
    return b;
}

static inline void batch_free(Batch *b) {
    free(b->pixels), free(b->tokens), free(b->lengths), free(b->labels), free(b->indices);
    memset(b, 0, sizeof *b);
}

// ---------------------------------------------------------------- an epoch

// Begins an epoch at a position of its order: 0, or loader_position() of an earlier run. The workers start at once, so this may
// be called before an evaluation, to have the first batches ready after it.
static inline void loader_start_epoch(Loader *l, int64_t epoch, int64_t position) {
    pthread_mutex_lock(&l->mutex);
    l->end = 0;
    while (l->busy) pthread_cond_wait(&l->done, &l->mutex);
    l->epoch = epoch;
    dataset_order(l->data, l->config.seed, epoch, l->config.shuffle && !l->config.one_pass, l->order);
    l->next = l->position = l->committed = position;
    for (int64_t i = 0; i < l->ring; i++) l->slots[i].ready = false;
    l->failed_in_a_row = l->good = 0;
    memset(l->failures, 0, sizeof l->failures);
    l->end = l->config.one_pass ? l->count : INT64_MAX;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->mutex);
}

// How many entries of the epoch's order the batches have used up, the skipped ones included: where a resumed run goes on.
static inline int64_t loader_position(const Loader *l) { return l->committed; }

// "9 broken images, 3 without caption"
static inline void skip_reasons(char *out, size_t size, const int64_t counts[SAMPLE_STATUS_COUNT]) {
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < SAMPLE_STATUS_COUNT && n < size; i++)
        if (counts[i]) n += (size_t)snprintf(out + n, size - n, "%s%lld %s", n ? ", " : "", (long long)counts[i], sample_status_name(i));
}

// Names the sample in the list of skipped ones, once in a run.
static inline void loader_name_skipped(Loader *l, const char *origin, const LoaderSlot *s) {
    uint8_t bit = (uint8_t)(1 << (s->index & 7));
    if (!l->config.skipped_path || (l->named[s->index / 8] & bit)) return;
    l->named[s->index / 8] |= bit;
    if (!l->skipped) {
        l->skipped = fopen(l->config.skipped_path, "a");
        if (!l->skipped) {
            warn("%s: cannot write (%s); skipped samples are only counted", l->config.skipped_path, strerror(errno));
            l->config.skipped_path = NULL;
            return;
        }
        setvbuf(l->skipped, NULL, _IOLBF, 0);
    }
    fprintf(l->skipped, "%s\t%s\n", origin, sample_status_name(s->status));
}

// Counts a bad sample; when no good one can come any more, the program ends. Training needs two different ones.
static inline void loader_skip(Loader *l, const LoaderSlot *s) {
    char origin[2 * PATH_SIZE], reasons[400];
    dataset_origin(l->data, s->index, origin, sizeof origin);
    if (l->position < l->count) { // each sample once in an epoch
        l->skips[(size_t)l->data->samples[s->index].file * SAMPLE_STATUS_COUNT + (size_t)s->status]++;
        loader_name_skipped(l, origin, s);
    }
    l->failures[s->status]++;
    l->failed_in_a_row++;
    bool pass = l->config.one_pass;
    if (l->good && pass) return;
    int64_t most = pass ? l->count : max_i64(l->count - 1, 1);
    if (l->failed_in_a_row < most) return;
    skip_reasons(reasons, sizeof reasons, l->failures);
    die(EXIT_USAGE, "%s: %s of %lld samples can be used (%s; the last is %.1000s); check the data and its options", l->data->files[0].path,
        pass ? "none" : "fewer than two", (long long)l->count, reasons, origin);
}

static inline void batch_add(Batch *b, const LoaderConfig *c, const LoaderSlot *s) {
    size_t i = (size_t)b->count++, pixels = 3 * (size_t)c->image_size * (size_t)c->image_size, context = (size_t)c->context;
    memcpy(b->pixels + i * pixels, s->pixels, pixels);
    if (context) memcpy(b->tokens + i * context, s->tokens, context * sizeof(int));
    b->lengths[i] = s->length;
    b->labels[i] = s->label;
    b->indices[i] = s->index;
}

// Waits until the slot of l->position is filled, with the mutex held; false after Ctrl-C.
static inline bool loader_wait(Loader *l, const LoaderSlot *s, double *waited) {
    if (s->ready) return true;
    double start = seconds_now();
    while (!s->ready && !(l->config.interrupted && *l->config.interrupted)) {
        struct timespec until; // looks after Ctrl-C ten times a second
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += 100000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&l->done, &l->mutex, &until);
    }
    *waited += seconds_now() - start;
    return s->ready;
}

// The next batch; returns out->count: batch_size, or less at the end of one pass, 0 behind it; 0 also when Ctrl-C ended the
// wait for a sample (loader_position() then is that of the batch before).
static inline int loader_next(Loader *l, Batch *out) {
    out->count = 0;
    out->wait_seconds = 0;
    while (out->count < l->config.batch_size && l->position < l->end) {
        LoaderSlot *s = &l->slots[l->position % l->ring];
        pthread_mutex_lock(&l->mutex);
        bool ready = loader_wait(l, s, &out->wait_seconds);
        pthread_mutex_unlock(&l->mutex);
        if (!ready) return out->count = 0;
        if (s->status == SAMPLE_OK) {
            batch_add(out, &l->config, s);
            l->good++;
            l->failed_in_a_row = 0;
            memset(l->failures, 0, sizeof l->failures);
        } else {
            loader_skip(l, s);
        }
        l->rotated += s->rotated && l->position < l->count;
        pthread_mutex_lock(&l->mutex);
        s->ready = false;
        l->position++;
        pthread_cond_signal(&l->work);
        pthread_mutex_unlock(&l->mutex);
    }
    l->committed = l->position;
    return out->count;
}

// Samples skipped in this epoch so far.
static inline int64_t loader_skipped(const Loader *l) {
    int64_t total = 0;
    for (size_t i = 0; i < l->data->file_count * SAMPLE_STATUS_COUNT; i++) total += l->skips[i];
    return total;
}

// One line a source file that samples were skipped of, for ten files at most, and one about pictures that EXIF would turn, once. To be called
// at the end of each epoch; the counts begin again.
static inline void loader_report_skips(Loader *l) {
    enum { MOST_LINES = 10 };
    int64_t lines = 0, more_samples = 0;
    char reasons[400], see[PATH_SIZE + 8] = "";
    if (l->skipped) snprintf(see, sizeof see, "; see %s", l->config.skipped_path);
    for (size_t i = 0; i < l->data->file_count; i++) {
        const DataFile *f = &l->data->files[i];
        const int64_t *counts = l->skips + i * SAMPLE_STATUS_COUNT;
        int64_t skipped = 0;
        for (int k = 0; k < SAMPLE_STATUS_COUNT; k++) skipped += counts[k];
        if (!skipped) continue;
        if (++lines > MOST_LINES) more_samples += skipped;
        else {
            skip_reasons(reasons, sizeof reasons, counts);
            warn("%s: %lld of %lld samples skipped (%s)%s", f->path, (long long)skipped, (long long)f->samples, reasons, see);
        }
    }
    if (more_samples) warn("%lld more files: %lld samples skipped%s", (long long)(lines - MOST_LINES), (long long)more_samples, see);
    if (l->rotated && !l->config.exif_rotate && !l->rotated_told) {
        warn("%lld pictures ask by EXIF to be turned and are taken as they lie, as open_clip does; --exif-rotate turns them", (long long)l->rotated);
        l->rotated_told = true;
    }
    memset(l->skips, 0, l->data->file_count * SAMPLE_STATUS_COUNT * sizeof *l->skips);
    l->rotated = 0;
}

#endif
