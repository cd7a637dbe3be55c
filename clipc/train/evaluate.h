// Evaluating a model, the same for every back end: zero-shot accuracy, the features themselves as a file, and
// the classes of single images. validation.h measures loss and retrieval.
//
// All results depend on the model and the data alone, not on threads, workers or chunk sizes; the validation
// loss depends on the batch size too, since a pair's negatives are the other pairs of its batch.
#ifndef CLIPC_EVALUATE_H
#define CLIPC_EVALUATE_H

#include "clipc/model/clip.h"      // clip_encode_image, clip_encode_text
#include "clipc/data/check.h"      // dataset_check
#include "clipc/data/dataloader.h" // Loader
#include "clipc/base/logger.h"     // logger_progress
#include "clipc/train/metrics.h"   // zeroshot_logits

// Everything an evaluation needs: model, loader settings, logger.
typedef struct {
    Clip *clip;
    const Kernels *kernels;
    LoaderConfig loader; // see evaluation_loader()
    int retrieval_chunk; // rows of the retrieval matrix held at once (--val-retrieval-chunk-size); 0: all
    Logger *logger;      // shows the progress; or NULL
} Evaluation;

// The loader settings of training, but for one pass in the order of the data set, without augmentation.
static inline LoaderConfig evaluation_loader(const LoaderConfig *training) {
    LoaderConfig c = *training;
    c.augment = NULL;
    c.cache = NULL;
    c.shuffle = false;
    c.one_pass = true;
    c.micro_batches = 0;
    c.distinct_step = 0;
    c.skipped_path = NULL;
    return c;
}

// Shows the progress; false when Ctrl-C asks to end.
static inline bool evaluation_goes_on(const Evaluation *e, const char *what, int64_t done, int64_t total) {
    if (e->logger) logger_progress(e->logger, what, done, total, "");
    return !(e->loader.interrupted && *e->loader.interrupted);
}

// ---------------------------------------------------------------- features

// Ends the program where n features (n,E) are not all finite: no accuracy or loss could be taken from them.
static inline void features_check(const Evaluation *e, const char *what, int n, const float *features) {
    const ClipConfig *c = &e->clip->config;
    if (!all_finite(features, (size_t)n * (size_t)c->embed_dim))
        die(EXIT_RUNTIME,
            "the model %s gives %s features that are not finite, since its weights are too large or damaged; "
            "take an earlier checkpoint, or train with a lower --lr",
            c->name, what);
}

// Encodes the images of a batch into features (B,E).
static inline void encode_images(const Evaluation *e, const ClipBatch *batch, float *features) {
    clip_encode_image(e->clip, batch, features);
    features_check(e, "image", batch->size, features);
}

// The same for its texts.
static inline void encode_texts(const Evaluation *e, const ClipBatch *batch, float *features) {
    clip_encode_text(e->clip, batch, features);
    features_check(e, "text", batch->size, features);
}

// ---------------------------------------------------------------- one pass over a data set

typedef struct {
    const Evaluation *e;
    const char *what; // named in the progress
    Loader *loader;
    Batch batch;  // the one encoded last
    int64_t seen; // samples so far
    bool interrupted;
} EvaluationPass;

typedef enum { PASS_PAIRS, PASS_IMAGES, PASS_CAPTIONS } PassKind; // what is read and encoded

// Starts the loader's workers; pass_end() ends them.
static inline EvaluationPass pass_start(
    const Evaluation *e, const Dataset *data, PassKind kind, const char *what) {
    EvaluationPass p;
    LoaderConfig config = e->loader;
    memset(&p, 0, sizeof p);
    if (kind == PASS_IMAGES) config.context = 0;
    config.captions_only = kind == PASS_CAPTIONS;
    p.e = e;
    p.what = what;
    p.loader = loader_create(data, &config);
    p.batch = batch_create(&config);
    loader_start_epoch(p.loader, 0, 0);
    return p;
}

// Encodes the next batch into image (B,E) and text (B,E), each unless it is NULL. Returns how many samples
// those are; 0 at the end, or after Ctrl-C.
static inline int pass_next(EvaluationPass *p, float *image, float *text) {
    int n = loader_next(p->loader, &p->batch);
    ClipBatch batch = clip_batch(n);
    batch.pixels = p->batch.pixels;
    batch.tokens = p->batch.tokens;
    if (n) {
        if (image) encode_images(p->e, &batch, image);
        if (text) encode_texts(p->e, &batch, text);
        p->seen += n;
    }
    p->interrupted =
        !evaluation_goes_on(p->e, p->what, loader_position(p->loader), dataset_count(p->loader->data));
    return p->interrupted ? 0 : n;
}

// False when Ctrl-C ended the pass early.
static inline bool pass_end(EvaluationPass *p) {
    if (!p->interrupted && p->e->logger) dataset_print_accounts(p->loader->data, p->e->logger);
    loader_free(p->loader);
    batch_free(&p->batch);
    return !p->interrupted;
}

// ---------------------------------------------------------------- zero-shot

// Labelled images and the names of their classes.
typedef struct {
    char name[64]; // of NAME=PATH, or ""
    Dataset data;
    StringList classnames, templates;
} ZeroshotSet;

// Splits `spec`, [NAME=]PATH given to `option`: returns the path; name is "" without one.
static inline const char *set_path(const char *option, const char *spec, char name[64]) {
    const char *equals = strchr(spec, '=');
    name[0] = 0;
    const bool in_path = equals && (file_exists(spec) || memchr(spec, '/', (size_t)(equals - spec)));
    if (!equals || in_path) return spec;
    if (equals == spec || equals - spec >= 64)
        die(EXIT_USAGE, "--%s %s: the name before the = must have 1 to 63 bytes", option, spec);
    memcpy(name, spec, (size_t)(equals - spec));
    name[equals - spec] = 0;
    make_showable(name);
    return equals + 1;
}

// Opens `spec`, [NAME=]PATH given to `option`: a folder of class folders, a CSV with labels, or tar shards
// with .cls.
//   classnames   a file; may be NULL for class folders, which then give the names
//   templates    a file, or NULL for the default
//   keys         names of columns and members
static inline ZeroshotSet zeroshot_open(const char *option, const char *spec, const char *classnames,
    const char *templates, const DatasetConfig *keys) {
    ZeroshotSet set;
    memset(&set, 0, sizeof set);
    const char *path = set_path(option, spec, set.name);
    DatasetConfig config = *keys;
    config.type = DATASET_AUTO;
    config.need_caption = false;
    config.need_label = true;
    config.num_samples = 0;
    if (classnames) set.classnames = classnames_read(classnames);
    config.classnames = (const char *const *)set.classnames.list;
    config.classname_count = (int)set.classnames.count;
    if (is_directory(path)) {
        set.data = dataset_open_class_folders(path, &config);
        if (!classnames) set.classnames = classnames_from_folders(path, &set.data.class_folders);
    } else {
        if (!classnames)
            die(EXIT_USAGE,
                "--%s %s: its classes have no names; give --classnames FILE, one name a line, that of "
                "label 0 first",
                option, path);
        set.data = dataset_open(path, &config, 1);
        dataset_check_labels(&set.data, classnames);
        int64_t none = 0; // samples without a label: without them it would be another test set
        for (int64_t i = 0; i < dataset_count(&set.data); i++) none += set.data.samples[i].label < 0;
        if (none)
            die(EXIT_USAGE,
                "%s: %lld of %lld samples have no label among the %zu names in %s; give one line a class, "
                "and labels from 0 or by name",
                path, (long long)none, (long long)dataset_count(&set.data), set.classnames.count, classnames);
    }
    set.templates = templates_read(templates);
    dataset_check(&set.data, NULL, 1);
    return set;
}

static inline void zeroshot_close(ZeroshotSet *set) {
    dataset_free(&set->data);
    string_list_free(&set->classnames);
    string_list_free(&set->templates);
}

// Makes the zero-shot classifier (C,E) for C class names; false after Ctrl-C. A model without a tokenizer
// ends the program.
static inline bool zeroshot_classifier(
    const Evaluation *e, float *classifier, const StringList *names, const StringList *templates) {
    const ClipConfig *config = &e->clip->config;
    const int E = config->embed_dim;
    const int T = config->context_length;
    const int C = (int)names->count;
    const int P = (int)templates->count;
    const int64_t captions = (int64_t)C * P;
    const int B = (int)min_i64(e->loader.batch_size, captions);
    if (!e->loader.tokenizer)
        die(EXIT_USAGE,
            "%s: the model (vocabulary of %d) has no tokenizer, so it cannot read class names; take one "
            "that has a tokenizer",
            config->name, config->vocab_size);
    int *tokens = (int *)malloc_check((size_t)B * (size_t)T * sizeof(int));         // (B,T)
    float *features = (float *)malloc_check((size_t)B * (size_t)E * sizeof(float)); // (B,E)
    double *sums = (double *)calloc_check((size_t)C * (size_t)E, sizeof(double));   // (C,E)
    char *caption = NULL;
    size_t capacity = 0;
    bool go_on = true;
    for (int64_t first = 0; first < captions && go_on; first += B) {
        ClipBatch batch = clip_batch((int)min_i64(B, captions - first));
        batch.tokens = tokens;
        for (int i = 0; i < batch.size; i++) {
            template_fill(
                &caption, &capacity, templates->list[(first + i) % P], names->list[(first + i) / P]);
            tokenizer_encode(
                e->loader.tokenizer, caption, strlen(caption), tokens + (size_t)i * (size_t)T, T);
        }
        encode_texts(e, &batch, features);
        classifier_add(sums, features, first, batch.size, P, E);
        go_on = evaluation_goes_on(e, "class names", first + batch.size, captions);
    }
    classifier_normalise(classifier, sums, C, E);
    if (go_on) features_check(e, "class", C, classifier);
    free(caption);
    free(sums);
    free(features);
    free(tokens);
    return go_on;
}

typedef struct {
    double top1, top5; // fractions of the samples; top5 has no meaning below 5 classes
    int classes;
    int64_t samples; // those that could be read
} ZeroshotMetrics;

// Top-1 and top-5 accuracy of the model on a set. False, and *out unchanged, after Ctrl-C.
static inline bool evaluate_zeroshot(const Evaluation *e, const ZeroshotSet *set, ZeroshotMetrics *out) {
    const int E = e->clip->config.embed_dim, C = (int)set->classnames.count;
    const size_t B = (size_t)e->loader.batch_size;
    float *classifier = (float *)malloc_check((size_t)C * (size_t)E * sizeof(float)); // (C,E)
    float *image = (float *)malloc_check(B * (size_t)E * sizeof(float));              // (B,E)
    float *logits = (float *)malloc_check(B * (size_t)C * sizeof(float));             // (B,C)
    int64_t hits1 = 0, hits5 = 0;
    EvaluationPass pass =
        pass_start(e, &set->data, PASS_IMAGES, "zero-shot"); // the workers decode while the text tower runs
    pass.interrupted = !zeroshot_classifier(e, classifier, &set->classnames, &set->templates);
    for (int n; !pass.interrupted && (n = pass_next(&pass, image, NULL)) > 0;) {
        zeroshot_logits(e->kernels, logits, image, classifier, n, C, E, ZEROSHOT_SCALE);
        for (int i = 0; i < n; i++) {
            int rank = zeroshot_rank(logits + (size_t)i * (size_t)C, C, pass.batch.labels[i]);
            hits1 += rank < 1;
            hits5 += rank < 5;
        }
    }
    bool whole = pass_end(&pass);
    if (whole) {
        ZeroshotMetrics m = {
            (double)hits1 / (double)pass.seen, (double)hits5 / (double)pass.seen, C, pass.seen};
        *out = m;
    }
    free(logits);
    free(image);
    free(classifier);
    return whole;
}

// ---------------------------------------------------------------- files of features

// Writes a .safetensors file of n rows in the order of the data set:
//   image_features, text_features (n,E) F32, L2-normalised
//   indices (n) I64: which sample of the data set a row is (those that could not be read are missing)
//   labels (n) I64: -1 for samples without one; left out when `labels` is NULL
//   __metadata__: the model's name, and logit_scale as exp(parameter)
static inline void save_features(const char *path, const char *model, float logit_scale, const float *image,
    const float *text, const int64_t *indices, const int64_t *labels, int64_t n, int E) {
    char scale[32];
    snprintf(scale, sizeof scale, "%.9g", logit_scale);
    const struct {
        const char *name, *dtype;
        const void *data;
        size_t bytes;
    } tensors[] = {{"image_features", "F32", image, (size_t)n * (size_t)E * 4},
        {"text_features", "F32", text, (size_t)n * (size_t)E * 4}, {"indices", "I64", indices, (size_t)n * 8},
        {"labels", "I64", labels, labels ? (size_t)n * 8 : 0}};
    json_t *header = json_object(), *metadata = json_object();
    json_object_set_new(metadata, "model", json_string(model));
    json_object_set_new(metadata, "logit_scale", json_string(scale));
    json_object_set_new(header, "__metadata__", metadata);
    json_int_t at = 0;
    for (int i = 0; i < 4; i++) {
        if (!tensors[i].data) continue;
        json_t *shape = json_pack(i < 2 ? "[I,i]" : "[I]", (json_int_t)n, E);
        json_int_t end = at + (json_int_t)tensors[i].bytes;
        json_object_set_new(header, tensors[i].name,
            json_pack(
                "{s:s,s:o,s:[I,I]}", "dtype", tensors[i].dtype, "shape", shape, "data_offsets", at, end));
        at = end;
    }
    char *text_of_header = json_dumps(header, JSON_COMPACT);
    if (!text_of_header) die(EXIT_RUNTIME, "%s: out of memory", path);
    uint64_t length = strlen(text_of_header), padded = round_up(length, 8); // little-endian, as all of clip.c
    SafeFile file;
    safe_file_open(&file, path);
    safe_file_write(&file, &padded, 8);
    safe_file_write(&file, text_of_header, length);
    safe_file_write(&file, "       ", padded - length);
    for (int i = 0; i < 4; i++) safe_file_write(&file, tensors[i].data, tensors[i].bytes);
    safe_file_commit(&file);
    free(text_of_header);
    json_decref(header);
}

// ---------------------------------------------------------------- metrics by name

// A metric's name for the set that it was measured on: zeroshot_top1, or zeroshot_top1/birds of a set with a
// name.
static inline void metric_name(char *out, size_t size, const char *metric, const char *set) {
    snprintf(out, size, "%s%s%s", metric, *set ? "/" : "", set);
}

// The numbers of one evaluation, for the log and a line of metrics.jsonl.
enum { MOST_METRICS = 16 };
typedef struct {
    struct {
        char name[128];
        double value;
    } list[MOST_METRICS];
    int count;
} MetricList;

static inline void metric_add(
    MetricList *m, const char *prefix, const char *name, const char *set, double value) {
    char full[64];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    metric_name(m->list[m->count].name, sizeof m->list[m->count].name, full, set);
    m->list[m->count++].value = value;
}

static inline MetricList zeroshot_metric_list(const ZeroshotMetrics *z, const char *set) {
    MetricList m;
    m.count = 0;
    metric_add(&m, "", "zeroshot_top1", set, z->top1);
    if (z->classes >= 5) metric_add(&m, "", "zeroshot_top5", set, z->top5);
    return m;
}

// ---------------------------------------------------------------- classes of single images

// Reads and transforms one image file to pixels (3,S,S). Returns what is wrong with it, or NULL.
static inline const char *classify_read(const LoaderConfig *c, const char *path, uint8_t *pixels) {
    ByteBuffer file = {NULL, 0, 0};
    int orientation;
    SampleStatus status = sample_read_file(&file, path, IMAGE_MOST_BYTES);
    if (status == SAMPLE_OK) status = sample_eval_pixels(pixels, &orientation, &file, &c->image);
    free(file.data);
    if (status == SAMPLE_OK) return NULL;
    return status == SAMPLE_MISSING      ? "no such file"
           : status == SAMPLE_UNREADABLE ? "cannot be read"
                                         : sample_status_name(status);
}

// Prints the `most` most likely of C classes, best first, with the softmax of their logits (C), which are
// overwritten.
static inline void classify_print(const char *path, float *logits, const StringList *names, int most) {
    const int C = (int)names->count;
    double sum = 0;
    float max = logits[0];
    for (int c = 1; c < C; c++) max = logits[c] > max ? logits[c] : max;
    for (int c = 0; c < C; c++) sum += exp((double)logits[c] - max);
    output("%s", path);
    for (int k = 0; k < most && k < C; k++) {
        int best = 0;
        for (int c = 1; c < C; c++) best = logits[c] > logits[best] ? c : best;
        output("  %6.2f%%  %s", 100 * exp((double)logits[best] - max) / sum, names->list[best]);
        logits[best] = -INFINITY;
    }
}

// Prints for each image file its `most` most likely classes with their probabilities,
// softmax(exp(logit_scale) cos). A file that cannot be read gets one line on stderr. Returns the exit code:
// EXIT_USAGE when no file could be read.
static inline int classify(const Evaluation *e, char *const *paths, int count, const StringList *names,
    const StringList *templates, int most) {
    const int E = e->clip->config.embed_dim, C = (int)names->count, S = e->loader.image.size;
    float *classifier = (float *)malloc_check((size_t)C * (size_t)E * sizeof(float)); // (C,E)
    float *logits = (float *)malloc_check((size_t)C * sizeof(float));
    float *feature = (float *)malloc_check((size_t)E * sizeof(float));
    uint8_t *pixels = (uint8_t *)malloc_check(3 * (size_t)S * (size_t)S);
    int done = 0;
    bool go_on = zeroshot_classifier(e, classifier, names, templates);
    for (int i = 0; i < count && go_on; i++) {
        ClipBatch one = clip_batch(1);
        one.pixels = pixels;
        const char *wrong = classify_read(&e->loader, paths[i], pixels);
        if (wrong) warn("%s: %s; it is left out", paths[i], wrong);
        if (!wrong) {
            encode_images(e, &one, feature);
            zeroshot_logits(e->kernels, logits, feature, classifier, 1, C, E, clip_logit_scale(e->clip));
            if (!all_finite(logits, (size_t)C))
                die(EXIT_RUNTIME,
                    "%s: the logits are not finite (logit scale %g); take an earlier checkpoint", paths[i],
                    clip_logit_scale(e->clip));
            classify_print(paths[i], logits, names, most);
            done++;
        }
        go_on = evaluation_goes_on(e, "images", i + 1, count);
    }
    free(pixels);
    free(feature);
    free(logits);
    free(classifier);
    return !go_on ? EXIT_SIGNAL + *e->loader.interrupted : done ? EXIT_SUCCESS : EXIT_USAGE;
}

#endif
