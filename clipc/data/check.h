// The check of all samples before the first step: what costs milliseconds a thousand (is there a file, a
// caption, is it UTF-8), or for --check-data everything (decode it, tokenize it). What it finds goes into the
// accounts.
#ifndef CLIPC_CHECK_H
#define CLIPC_CHECK_H

#include "clipc/data/dataloader.h" // LoaderConfig, loader_tokenize

#define CHECK_MOST_SECONDS 30 // of the check before a run, where files are slow to reach
#define CHECK_BLOCK 1024      // samples that a thread takes at a time
#define CHECK_MOST_THREADS 16

// What the check found of a sample.
typedef struct {
    uint64_t identity; // equal for samples that repeat each other; 0: not known
    uint8_t status;    // SampleStatus; CHECK_NOT_DONE: the time was over
    bool rotated, cut;
} CheckedSample;

#define CHECK_NOT_DONE UINT8_MAX

typedef struct {
    const Dataset *data;
    const LoaderConfig *loading; // everything is decoded and tokenized; NULL: files are only looked at
    CheckedSample *checked;      // (count)
    int64_t next;                // the first sample that no thread has taken
    double end;                  // when the time is over
    pthread_mutex_t mutex;       // guards next
} Check;

// ---------------------------------------------------------------- one sample

// Files whose ending is not that of a form which is always decoded show by their first bytes what they are.
static inline bool check_needs_bytes(const char *path) {
    return member_kind(path_ending(path), "jpg;jpeg;png;webp") < 0;
}

static inline SampleStatus check_form(const uint8_t *bytes, size_t n) {
    const ImageStatus status = image_form_status(image_form(bytes, n));
    return status == IMAGE_OK ? SAMPLE_OK : SAMPLE_IMAGE + (SampleStatus)status;
}

// Is there such a file, and is it perhaps an image?
static inline SampleStatus check_file(const char *path, SampleBuffers *b) {
    struct stat st;
    if (stat(path, &st)) return sample_open_error(path, errno);
    if (!S_ISREG(st.st_mode)) return SAMPLE_UNREADABLE;
    if (!st.st_size) return SAMPLE_IMAGE + (SampleStatus)IMAGE_EMPTY;
    if (!check_needs_bytes(path)) return SAMPLE_OK;
    const SampleStatus status = sample_read_file(&b->image, path, IMAGE_FORM_BYTES);
    return status == SAMPLE_OK ? check_form(b->image.data, b->image.bytes) : status;
}

// The image of a sample, without reading all of it.
static inline SampleStatus check_image(const Dataset *d, const DataSample *s, SampleBuffers *b) {
    const DataFile *f = &d->files[s->file];
    const DatasetType type = sample_type(d, s);
    char path[2 * PATH_SIZE];
    if (type == DATASET_FOLDER) return check_file(f->text + s->image, b);
    if (type == DATASET_CSV) {
        const SampleStatus status = csv_image_path(f, s, path) ? check_file(path, b) : SAMPLE_MISSING;
        return status == SAMPLE_MISSING ? check_file(f->text + s->image, b) : status;
    }
    if (type != DATASET_WEBDATASET) return SAMPLE_OK;
    if (!s->image_bytes) return SAMPLE_IMAGE + (SampleStatus)IMAGE_EMPTY;
    if (!check_needs_bytes(f->text + s->name)) return SAMPLE_OK;
    const SampleStatus status =
        sample_read_member(&b->image, d, s->file, s->image, min_i64(s->image_bytes, IMAGE_FORM_BYTES), b);
    return status == SAMPLE_OK ? check_form(b->image.data, b->image.bytes) : status;
}

// Decodes the image, and tokenizes the caption, as the loader does.
static inline SampleStatus check_contents(
    const Dataset *d, const DataSample *s, const LoaderConfig *c, SampleBuffers *b, CheckedSample *out) {
    Image image;
    int orientation;
    if (sample_type(d, s) == DATASET_SYNTHETIC) return SAMPLE_OK;
    SampleStatus status = sample_decode(&image, &orientation, &b->image, &c->image);
    out->rotated = orientation != 1 && !c->image.exif_rotate;
    if (status != SAMPLE_OK) return status;
    const size_t pixels = 3 * (size_t)c->image.size * (size_t)c->image.size;
    list_grow((void **)&b->image.data, &b->image.capacity, pixels, 1); // the file is not needed any more
    if (!loader_crops(c)) status = sample_transform(b->image.data, &image, &c->image);
    image_free(&image);
    if (status != SAMPLE_OK || !c->tokenizer || !c->context || !d->config.need_caption ||
        sample_is_prompted(d, s))
        return status;
    if (c->caption_lines) caption_take_line(b, 0);
    int *tokens = (int *)malloc_check((size_t)(c->context + 1) * sizeof *tokens);
    loader_tokenize(c, b, tokens, &out->cut);
    free(tokens);
    return SAMPLE_OK;
}

// Rows with the same image and caption, and members of tars with the same name, size and caption, repeat each
// other.
static inline uint64_t check_identity(const Dataset *d, const DataSample *s, const SampleBuffers *b) {
    const DataFile *f = &d->files[s->file];
    const DatasetType type = sample_type(d, s);
    if (type != DATASET_CSV && type != DATASET_WEBDATASET) return 0;
    const char *name = f->text + (type == DATASET_CSV ? s->image : s->name);
    uint64_t hash = hash_bytes(HASH_START, name, strlen(name) + 1);
    hash = hash_bytes(hash, &s->image_bytes, sizeof s->image_bytes);
    hash = hash_bytes(hash, &b->label, sizeof b->label);
    hash = rand_mix(hash_bytes(hash, b->caption, b->caption_bytes));
    return hash ? hash : 1;
}

static inline CheckedSample check_sample(const Check *c, int64_t i, SampleBuffers *b) {
    const Dataset *d = c->data;
    const DataSample *s = &d->samples[i];
    CheckedSample out = {0, 0, false, false};
    SampleStatus status = c->loading ? dataset_read(d, i, b) : dataset_read_caption(d, i, b);
    if (status == SAMPLE_OK)
        status = c->loading ? check_contents(d, s, c->loading, b, &out) : check_image(d, s, b);
    if (status == SAMPLE_OK) out.identity = check_identity(d, s, b);
    out.status = (uint8_t)status;
    return out;
}

// ---------------------------------------------------------------- all samples

static inline void *check_worker(void *argument) {
    Check *c = (Check *)argument;
    SampleBuffers buffers;
    memset(&buffers, 0, sizeof buffers);
    for (;;) {
        pthread_mutex_lock(&c->mutex);
        const int64_t begin = c->next, end = min_i64(begin + CHECK_BLOCK, c->data->count);
        c->next = end;
        pthread_mutex_unlock(&c->mutex);
        if (begin >= end) break;
        for (int64_t i = begin; i < end; i++) {
            const bool late = seconds_now() > c->end;
            if (late) memset(&c->checked[i], 0, sizeof c->checked[i]);
            if (late) c->checked[i].status = CHECK_NOT_DONE;
            else c->checked[i] = check_sample(c, i, &buffers);
        }
    }
    sample_buffers_free(&buffers);
    return NULL;
}

// Counts what the threads found, in the order of the samples.
static inline void check_count(const Check *c) {
    const Dataset *d = c->data;
    size_t slots = 16;
    int64_t undone = 0;
    while (slots < 2 * (size_t)d->count) slots *= 2;
    uint64_t *seen = (uint64_t *)calloc_check(slots, sizeof *seen); // identities so far, 0: free
    for (int64_t i = 0; i < d->count; i++) {
        const CheckedSample *s = &c->checked[i];
        undone += s->status == CHECK_NOT_DONE;
        if (s->status == CHECK_NOT_DONE) continue;
        if (s->status != SAMPLE_OK) dataset_pass_over(d, i, s->status);
        dataset_note(d, i, s->rotated, s->cut);
        if (!s->identity) continue;
        size_t at = (size_t)s->identity & (slots - 1);
        while (seen[at] && seen[at] != s->identity) at = (at + 1) & (slots - 1);
        if (seen[at]) dataset_note_repeated(d, i);
        seen[at] = s->identity;
    }
    free(seen);
    if (!undone) return;
    char text[300];
    snprintf(text, sizeof text,
        "%lld of %lld samples could not be looked at within %d seconds; they are counted as they are read, "
        "and --check-data looks at all",
        (long long)undone, (long long)d->count, CHECK_MOST_SECONDS);
    account_add_named(&d->sources[0].account, NOTED, "late", "", text);
}

// Looks at all samples; with `loading` decodes and tokenizes each. Fewer than `least` that can be used end
// the program.
static inline void dataset_check(const Dataset *d, const LoaderConfig *loading, int64_t least) {
    pthread_t threads[CHECK_MOST_THREADS];
    const int64_t blocks = (d->count + CHECK_BLOCK - 1) / CHECK_BLOCK;
    const int64_t cores = loading ? loading->workers : max_i64(4, sysconf(_SC_NPROCESSORS_ONLN));
    const int count = (int)min_i64(min_i64(blocks, cores), CHECK_MOST_THREADS);
    Check c;
    memset(&c, 0, sizeof c);
    c.data = d;
    c.loading = loading;
    c.end = loading ? INFINITY : seconds_now() + CHECK_MOST_SECONDS;
    c.checked = (CheckedSample *)malloc_check((size_t)d->count * sizeof *c.checked);
    json_object_seed(0); // else jansson does it in whichever thread parses first
    pthread_mutex_init(&c.mutex, NULL);
    int started = 0;
    while (started < count - 1 && !pthread_create(&threads[started], NULL, check_worker, &c)) started++;
    check_worker(&c);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&c.mutex);
    check_count(&c);
    free(c.checked);

    int64_t usable = 0;
    char reasons[2000];
    for (int64_t i = 0; i < d->count; i++) usable += !has_bit(d->passed_over, i);
    if (usable >= least) return;
    account_reasons(&d->sources[0].account, reasons, sizeof reasons);
    die(EXIT_USAGE, "%s: %s of %lld samples can be used: %s; check the data and its options",
        d->sources[0].spec, usable ? "fewer than two" : "none", (long long)d->count, reasons);
}

#endif
