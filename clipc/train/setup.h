// A run before its first step: from the options to the model, the data and the run folder.
#ifndef CLIPC_SETUP_H
#define CLIPC_SETUP_H

#include "clipc/model/checkpoint.h"      // RunState, checkpoint_load_latest
#include "clipc/train/evaluate.h"        // Evaluation, ZeroshotSet
#include "clipc/train/feature_cache.h"   // FeatureCache
#include "clipc/model/open_model.h"      // model_open, model_lock
#include "clipc/train/monitor.h"         // Monitor
#include "clipc/base/options.h"          // Options
#include "clipc/train/report.h"          // ReportGrid
#include "clipc/base/schedule_options.h" // schedule_from_options

typedef struct {
    Options *o;
    Clip *clip;
    Tokenizer *tokenizer;             // NULL: the vocabulary has none
    StringList templates, classnames; // of --train-templates
    Dataset train;
    ValidationSet *val; // (val_count)
    size_t val_count;
    AugmentConfig augment;
    LoaderConfig loading;
    ImageCache images; // of --cache-images
    Evaluation evaluation;
    ZeroshotSet *zeroshot; // (o->zeroshot_data.count)
    Logger log;
    Schedule schedule;
    int64_t steps_per_epoch;
    FeatureCache cache[2]; // of locked towers; width 0: none
    float *pooled[2];      // (k*B,C) what a step takes from them
    int *kept;             // (k*B,kept_count) patches that dropout leaves; NULL: all
    int kept_count;
    Positives positives;
    double false_negatives; // in the steps counted since the run began or went on
    int64_t steps_counted;
    bool false_negatives_told;
    RunState state;
    char folder[PATH_SIZE];     // LOGS/NAME
    char last_saved[PATH_SIZE]; // stem of the checkpoint saved last, or resumed from; "" before there is one
    char *settings;             // as options_print() writes them, kept in every checkpoint
    Monitor monitor;
    ReportGrid grid; // images for report.html, as the model last saw them
} Training;

// ---------------------------------------------------------------- Ctrl-C

static volatile sig_atomic_t train_interrupted; // set by the signal alone; loaders and evaluation look at it

static inline void train_on_signal(int signal) {
    (void)signal;
    train_interrupted = 1;
}

// The first Ctrl-C asks the run to end after the step, the second one kills it.
static inline void train_catch_signals(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = train_on_signal;
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

// ---------------------------------------------------------------- before the first step

// Where a default depends on how the run begins.
static inline void train_defaults(Options *o) {
    const bool random = !o->pretrained;
    if (!o->resume) preset_apply(o); // a run that goes on has it among its settings
    if (!options_was_set(o, lr)) o->lr = random ? 5e-4 : 1e-5;
    if (!options_was_set(o, epochs)) o->epochs = random ? 32 : 10;
    if (!options_was_set(o, workers)) o->workers = max_i64(1, min_i64(256, sysconf(_SC_NPROCESSORS_ONLN)));
    schedule_check_options(o);
    monitor_check_options(o);
}

// ---------------------------------------------------------------- data and evaluation

static inline DatasetConfig train_dataset_config(const Options *o) {
    DatasetConfig c = dataset_config_default();
    const char *types[] = {"auto", "csv", "webdataset", "folder", "synthetic"}; // in the order of DatasetType
    for (int i = 0; i < 5; i++)
        if (strcmp(o->dataset_type, types[i]) == 0) c.type = (DatasetType)i;
    c.csv_img_key = o->csv_img_key;
    c.csv_caption_key = o->csv_caption_key;
    c.csv_label_key = o->csv_label_key;
    c.csv_separator = o->csv_separator;
    c.image_key = o->image_key;
    c.text_key = o->text_key;
    c.json_text_key = o->json_text_key;
    return c;
}

static inline void train_open_tokenizer(Training *t) {
    char error[256];
    if (!t->clip->merges) return;
    t->tokenizer = tokenizer_create(t->clip->merges, t->clip->merges_bytes, error);
    if (!t->tokenizer)
        die(EXIT_USAGE, "the tokenizer in the weight file: %s; convert it again with dev/convert.py", error);
    const ClipConfig *c = &t->clip->config;
    if (t->tokenizer->vocabulary != c->vocab_size || t->tokenizer->end_of_text != c->eot_id)
        die(EXIT_USAGE,
            "the weight file: its tokenizer has %d tokens, end of text is %d, its model %d and %d; convert "
            "it again with dev/convert.py",
            t->tokenizer->vocabulary, t->tokenizer->end_of_text, c->vocab_size, c->eot_id);
}

// How pictures and captions are read, for training and (evaluation_loader) for evaluation.
static inline void train_set_loading(Training *t) {
    const Options *o = t->o;
    const ClipConfig *c = &t->clip->config;
    char error[256];
    if (!augment_parse(&t->augment, o->aug_cfg ? o->aug_cfg : "", error))
        die(EXIT_USAGE, "--aug-cfg %s: %s", o->aug_cfg, error);
    LoaderConfig l;
    memset(&l, 0, sizeof l);
    l.batch_size = (int)o->batch_size;
    l.workers = (int)o->workers;
    l.image.size = c->image_size;
    l.image.interpolation = (Interpolation)c->interpolation;
    l.image.resize_mode = (ResizeMode)c->resize_mode;
    l.augment = t->augment.evaluation_transform ? NULL : &t->augment;
    l.image.max_pixels = o->max_image_pixels ? o->max_image_pixels : INT64_MAX;
    l.image.exif_rotate = o->exif_rotate;
    l.seed = (uint64_t)o->seed;
    l.shuffle = !o->no_shuffle;
    l.context = c->context_length;
    l.tokenizer = t->tokenizer;
    l.vocab_size = c->vocab_size;
    l.interrupted = &train_interrupted;
    t->loading = l;
    Evaluation e = {
        t->clip, kernels_select(), evaluation_loader(&l), (int)o->val_retrieval_chunk_size, &t->log};
    t->evaluation = e;
}

static inline ValidationSet *train_add_validation(Training *t) {
    t->val = (ValidationSet *)realloc_check(t->val, (t->val_count + 1) * sizeof *t->val);
    memset(&t->val[t->val_count], 0, sizeof *t->val);
    return &t->val[t->val_count++];
}

static inline void train_open_evaluation(Training *t) {
    const Options *o = t->o;
    DatasetConfig keys = train_dataset_config(o);
    if (o->val_data.count && o->val_split > 0)
        die(EXIT_USAGE, "--val-data and --val-split both name the validation set; give one of them");
    for (size_t i = 0; i < o->val_data.count; i++) {
        DatasetConfig val = keys;
        ValidationSet *set = train_add_validation(t);
        val.num_samples = max_i64(0, o->val_num_samples);
        set->data = dataset_open(set_path("val-data", o->val_data.items[i], set->name), &val, 1);
        loader_check_captions(&set->data, &t->evaluation.loader);
        for (size_t k = 0; k < i; k++)
            if (strcmp(t->val[k].name, set->name) == 0)
                die(EXIT_USAGE, "--val-data %s: another set has the same name; write NAME=PATH",
                    o->val_data.items[i]);
    }
    t->zeroshot = (ZeroshotSet *)calloc_check(o->zeroshot_data.count, sizeof *t->zeroshot);
    for (size_t i = 0; i < o->zeroshot_data.count; i++) {
        t->zeroshot[i] =
            zeroshot_open("zeroshot-data", o->zeroshot_data.items[i], o->classnames, o->templates, &keys);
        for (size_t k = 0; k < i; k++)
            if (strcmp(t->zeroshot[k].name, t->zeroshot[i].name) == 0)
                die(EXIT_USAGE, "--zeroshot-data %s: another set has the same name; write NAME=PATH",
                    o->zeroshot_data.items[i]);
    }
}

// What training data has and other data has not.
static inline DatasetConfig train_data_config(Training *t) {
    const Options *o = t->o;
    DatasetConfig c = train_dataset_config(o);
    c.num_samples = max_i64(0, o->train_num_samples);
    c.upsampling_factors = o->train_data_upsampling_factors;
    c.resampled = o->dataset_resampled;
    c.positives_key = o->positives_key;
    if (o->no_shuffle && (o->dataset_resampled || o->distinct_batches))
        die(EXIT_USAGE,
            "--no-shuffle: contradicts --%s, which makes an order of its own; leave one of them out",
            o->dataset_resampled ? "dataset-resampled" : "distinct-batches");
    if (!o->train_templates) return c;
    t->templates = templates_read(o->train_templates);
    if (o->classnames) t->classnames = classnames_read(o->classnames);
    c.prompts = true;
    c.classnames = (const char *const *)t->classnames.list;
    c.classname_count = (int)t->classnames.count;
    return c;
}

// Names for the classes of --train-templates; the captions that they make are used from now on.
static inline void train_open_prompts(Training *t) {
    int64_t labelled = 0;
    if (!t->o->train_templates) return;
    for (int64_t i = 0; i < dataset_count(&t->train); i++) labelled += t->train.samples[i].label >= 0;
    if (!labelled)
        die(EXIT_USAGE,
            "--train-templates: no sample of %s has a label; give class folders, a CSV with --csv-label-key, "
            "or tars with .cls",
            t->o->train_data);
    if (!t->o->classnames)
        t->classnames =
            classnames_from_folders(t->train.class_folders.list, (int)t->train.class_folders.count);
    if (!t->classnames.count)
        die(EXIT_USAGE, "--train-templates: the classes have no names; give --classnames FILE, one name a "
                        "line, that of label 0 first");
    t->loading.templates = t->evaluation.loader.templates = &t->templates;
    t->loading.classnames = t->evaluation.loader.classnames = &t->classnames;
}

// Of n pairs an epoch: the last, incomplete step is dropped, as open_clip does. With --distinct-batches as
// many as can be made.
static inline int64_t train_count_steps(Training *t, int64_t n) {
    const Options *o = t->o;
    const int64_t step = o->batch_size * o->accum_freq, steps = n / step;
    if (!o->distinct_batches) return steps;
    dataset_read_keys(&t->train);
    t->loading.distinct_step = step;
    const int64_t distinct = dataset_distinct_steps(&t->train, (uint64_t)o->seed, step);
    if (!distinct)
        die(EXIT_USAGE,
            "--distinct-batches: a step of %lld pairs needs as many different keys, there are fewer; lower "
            "--batch-size or --accum-freq",
            (long long)step);
    if (distinct < steps)
        warn("--distinct-batches: %lld of %lld pairs find a place in an epoch, other ones in each; steps an "
             "epoch: %lld, not %lld",
            (long long)(distinct * step), (long long)n, (long long)distinct, (long long)steps);
    return distinct;
}

// Lists the training samples, takes --val-split off them, and fits batch and schedule to their number.
static inline void train_open_data(Training *t) {
    Options *o = t->o;
    const DatasetConfig config = train_data_config(t);
    if (!o->train_data)
        die(EXIT_USAGE, "no data; give --train-data a CSV, a folder of pictures with .txt files, tar shards, "
                        "or synthetic");
    t->train = dataset_open(o->train_data, &config, 2);
    loader_check_captions(&t->train, &t->loading);
    train_open_prompts(t);
    if (o->val_split > 0) {
        Dataset *val = &train_add_validation(t)->data;
        *val = dataset_split(&t->train, o->val_split, (uint64_t)o->seed);
        if (!dataset_count(val) || dataset_count(&t->train) < 2)
            die(EXIT_USAGE,
                "--val-split %g: leaves %lld samples to train on and %lld to validate; change the share",
                o->val_split, (long long)dataset_count(&t->train), (long long)dataset_count(val));
    }
    const int64_t n = dataset_epoch_length(&t->train);
    if (n < 2)
        die(EXIT_USAGE,
            "an epoch has %lld pairs, at least 2 are needed; see --train-data-upsampling-factors, "
            "--train-num-samples",
            (long long)n);
    if (n < o->batch_size) {
        warn("--batch-size %lld: there are %lld samples; the batch shrinks to them", (long long)o->batch_size,
            (long long)n);
        o->batch_size = t->loading.batch_size = t->evaluation.loader.batch_size = (int)n;
    }
    if (n / o->batch_size < o->accum_freq) {
        warn("--accum-freq %lld: %lld samples are %lld batches; it shrinks to them", (long long)o->accum_freq,
            (long long)n, (long long)(n / o->batch_size));
        o->accum_freq = n / o->batch_size;
    }
    t->steps_per_epoch = train_count_steps(t, n);
    t->schedule = schedule_from_options(
        o, options_was_set(o, steps) ? o->steps : o->epochs * t->steps_per_epoch, t->steps_per_epoch);
}

// --cache-images: the pictures of the training data are in the file from now on. Ends the program where
// Ctrl-C came before they were.
static inline void train_keep_images(Training *t) {
    const char *path = t->o->cache_images;
    LoaderConfig *l = &t->loading;
    if (!path) return;
    ImageSettings c = l->image;
    if (l->augment) c.size = 0; // the images as decoded
    if (!file_exists(path) && !image_cache_make(path, &t->train, &c, l->interrupted)) {
        warn("interrupted; no pictures are kept");
        exit(EXIT_INTERRUPTED);
    }
    t->images = image_cache_open(path, &t->train, &c);
    l->cache = &t->images;
}

static inline void train_free_data(Training *t) {
    image_cache_close(&t->images);
    for (size_t i = 0; i < t->val_count; i++) dataset_free(&t->val[i].data);
    free(t->val);
    dataset_free(&t->train);
    string_list_free(&t->templates);
    string_list_free(&t->classnames);
}

// ---------------------------------------------------------------- the model, made ready to train

// What the features of a tower depend on: its weights, how its input is made, and which samples there are.
static inline uint64_t train_features_identity(const Training *t, int tower) {
    uint64_t hash = hash_bytes(HASH_START, &t->clip->config, offsetof(ClipConfig, name));
    const int64_t count = dataset_count(&t->train);
    hash = hash_bytes(hash, t->o->train_data, strlen(t->o->train_data));
    hash = hash_bytes(hash, &count, sizeof count);
    for (int i = 0; i < t->clip->tensors.count; i++) {
        const Tensor *x = &t->clip->tensors.list[i];
        if (x->tower != tower || x->group > clip_tower_layers(&t->clip->config, tower)) continue;
        float *values = (float *)malloc_check(x->count * sizeof *values);
        clip_read(t->clip, ARENA_PARAMETERS, x, values);
        hash = hash_bytes(hash, values, x->count * sizeof *values);
        free(values);
    }
    return hash;
}

// The file of a tower's features: FILE, for the text tower FILE.text.
static inline void train_features_path(const Training *t, int tower, char path[PATH_SIZE]) {
    path_format(path, "%s%s", t->o->feature_cache, tower == IMAGE_TOWER ? "" : ".text");
}

// Does augmentation leave every picture as it is? Then a locked image tower sees the same pixels in each
// epoch.
static inline bool augment_is_fixed(const LoaderConfig *c) {
    const AugmentConfig *a = c->augment;
    return !a || (a->scale[0] == 1 && a->scale[1] == 1 && a->gray_scale_prob == 0 &&
                     (a->color_jitter_prob == 0 || (a->color_jitter[0] == 0 && a->color_jitter[1] == 0 &&
                                                       a->color_jitter[2] == 0 && a->color_jitter[3] == 0)));
}

// Keeps the features of locked towers where their input is the same in each epoch, and says what would make
// it so.
static inline void train_keep_features(Training *t) {
    char path[PATH_SIZE];
    const size_t pairs = (size_t)(t->o->batch_size * t->o->accum_freq);
    for (int tower = 0; tower < 2; tower++) {
        if (!tower_is_frozen(t->clip, tower)) continue;
        if (tower == IMAGE_TOWER && (t->o->force_patch_dropout > 0 || !augment_is_fixed(&t->loading))) {
            logger_print(&t->log, "features     the image tower is locked: with --aug-cfg none and no patch "
                                  "dropout each picture would be encoded once");
            continue;
        }
        t->cache[tower] = feature_cache_create(t->clip, tower);
        t->pooled[tower] = (float *)malloc_check(pairs * (size_t)t->cache[tower].width * sizeof(float));
        if (t->o->feature_cache) {
            train_features_path(t, tower, path);
            feature_cache_load(&t->cache[tower], path, train_features_identity(t, tower));
        }
        logger_print(&t->log,
            "features     the %s tower is locked: each %s is encoded once, %zu are there already",
            tower == IMAGE_TOWER ? "image" : "text", tower == IMAGE_TOWER ? "picture" : "caption",
            t->cache[tower].count);
    }
}

// After an epoch: what was encoded is there for the next run.
static inline void train_save_features(const Training *t) {
    char path[PATH_SIZE];
    for (int tower = 0; t->o->feature_cache && tower < 2; tower++)
        if (t->cache[tower].count) {
            train_features_path(t, tower, path);
            feature_cache_save(&t->cache[tower], path, train_features_identity(t, tower));
        }
}

static inline void train_start_model(Training *t) {
    const Options *o = t->o;
    const int pairs = (int)(o->batch_size * o->accum_freq);
    const int patches = config_image_tokens(&t->clip->config) - 1;
    t->positives = strcmp(o->positives, "soft") == 0   ? POSITIVES_SOFT
                   : strcmp(o->positives, "mask") == 0 ? POSITIVES_MASK
                                                       : POSITIVES_DIAGONAL;
    const ClipTraining how = {pairs, o->ema_decay > 0, o->grad_checkpointing};
    clip_start_training(t->clip, &how);
    if (o->force_patch_dropout > 0) {
        t->kept_count = (int)max_i64(1, (int64_t)((double)patches * (1 - o->force_patch_dropout)));
        t->kept = (int *)malloc_check((size_t)pairs * (size_t)t->kept_count * sizeof *t->kept);
    }
}

// ---------------------------------------------------------------- the run folder, and what is printed first

// LOGS/NAME, NAME by default made of the time, the model, the rate and the batch.
static inline void train_name_folder(Training *t) {
    Options *o = t->o;
    if (!o->name) {
        char when[32], *name = (char *)malloc_check(PATH_SIZE);
        time_t now = time(NULL);
        strftime(when, sizeof when, "%Y_%m_%d-%H_%M_%S", localtime(&now));
        char rate[32] = "auto";
        if (o->lr != RATE_AUTO) snprintf(rate, sizeof rate, "%g", o->lr);
        path_format(name, "%s-%.64s-lr_%s-b_%lld", when,
            t->clip->config.name[0] ? t->clip->config.name : "clip", rate, (long long)o->batch_size);
        for (char *p = name; *p; p++)
            if (*p == '/') *p = '-';
        o->name = o->owned[OPTION_name] = name;
    }
    path_format(t->folder, "%s/%s", o->logs, o->name);
}

// Which groups of a tower train, in open_clip's order from the embeddings to the projection, and how many
// parameters that is.
static inline void train_print_groups(Training *t, int tower) {
    const int groups = clip_tower_layers(&t->clip->config, tower) + 2;
    const char *name = tower == IMAGE_TOWER ? "image" : "text";
    int first = groups;
    size_t count = 0;
    for (int i = 0; i < t->clip->tensors.count; i++) {
        const Tensor *x = &t->clip->tensors.list[i];
        if (x->tower == tower && x->trainable) {
            first = x->group < first ? x->group : first;
            count += x->count;
        }
    }
    if (first == groups) logger_print(&t->log, "             %s tower: frozen", name);
    else if (first == 0)
        logger_print(&t->log, "             %s tower: all of its %d groups train, %zu parameters", name,
            groups, count);
    else
        logger_print(&t->log, "             %s tower: the last %d of %d groups train (%s), %zu parameters",
            name, groups - first, groups,
            groups - first == 1   ? "projection"
            : groups - first == 2 ? "last block and final LayerNorm, projection"
                                  : "blocks, final LayerNorm, projection",
            count);
}

static inline void train_print_model(Training *t) {
    const ClipConfig *c = &t->clip->config;
    size_t parameters, training, activations, count = 0;
    for (int i = 0; i < t->clip->tensors.count; i++)
        count += t->clip->tensors.list[i].trainable ? t->clip->tensors.list[i].count : 0;
    clip_memory(t->clip, (int)t->o->batch_size, &parameters, &training, &activations);
    logger_print(&t->log,
        "model        %s: image %d pixels, patches of %d, %d x %d wide; text %d tokens, %d x %d wide; "
        "embedding %d; %s",
        c->name[0] ? c->name : "(no name)", c->image_size, c->patch_size, c->image_layers, c->image_width,
        c->context_length, c->text_layers, c->text_width, c->embed_dim, c->quick_gelu ? "QuickGELU" : "GELU");
    logger_print(&t->log, "parameters   %zu, %zu of them train", t->clip->tensors.parameters, count);
    for (int tower = 0; tower < 2; tower++) train_print_groups(t, tower);
    logger_print(&t->log,
        "memory       %.2f GB weights, %.2f GB gradients and optimizer, at most %.2f GB activations",
        (double)parameters / 1e9, (double)training / 1e9, (double)activations / 1e9);
    logger_print(&t->log, "kernels      %s", clip_kernels(t->clip));
}

// Where there are several sources: what each gives to an epoch, drawn samples in the mean.
static inline void train_print_sources(Training *t) {
    const Dataset *d = &t->train;
    int64_t *samples = dataset_source_shares(d);
    for (size_t s = 0; d->source_count > 1 && s < d->source_count; s++)
        logger_print(
            &t->log, "source       %s: %lld pairs an epoch", d->sources[s].spec, (long long)samples[s]);
    free(samples);
}

static inline void train_print_run(Training *t) {
    const Options *o = t->o;
    logger_print(&t->log, "data         %lld pairs, %lld steps an epoch of %lld x %lld",
        (long long)dataset_epoch_length(&t->train), (long long)t->steps_per_epoch, (long long)o->accum_freq,
        (long long)o->batch_size);
    train_print_sources(t);
    if (t->images.map)
        logger_print(&t->log, "pictures     decoded, in %s: %.2f GB", t->o->cache_images,
            (double)t->images.bytes / 1e9);
    char schedule[256];
    schedule_describe(&t->schedule, schedule);
    logger_print(&t->log, "schedule     %s", schedule);
    for (size_t i = 0; i < t->val_count; i++)
        logger_print(&t->log, "validation   %s%s%lld pairs", t->val[i].name, t->val[i].name[0] ? ", " : "",
            (long long)dataset_count(&t->val[i].data));
    logger_print(&t->log, "run folder   %s", t->folder);
}

// The checkpoint that --resume names, with its model; the options that were not given become those of the
// run.
static inline Clip *train_find_checkpoint(Options *o, Checkpoint *c) {
    char folder[PATH_SIZE], *slash;
    Clip *clip;
    if (strcmp(o->resume, "latest") == 0) {
        if (!o->name)
            die(EXIT_USAGE,
                "--resume latest: which run? give its --name (a folder in %s), or --resume a file of the "
                "checkpoint",
                o->logs);
        path_format(folder, "%s/%s/checkpoints", o->logs, o->name);
        if (!is_directory(folder))
            die(EXIT_USAGE, "--resume latest: %s/%s is no run; see --logs and --name", o->logs, o->name);
        clip = checkpoint_load_latest(c, folder);
    } else {
        clip = checkpoint_load_pair(c, o->resume);
    }
    const bool named = options_was_set(o, name) || options_was_set(o, logs);
    if (o->lr == RATE_AUTO) o->set[OPTION_lr] = false; // found when the run began
    options_adopt(o, c->settings, o->resume_override);
    char *whole = strstr(c->state, "/checkpoints/") ? NULL : realpath(c->state, NULL);
    path_format(folder, "%s",
        whole ? whole
              : c->state); // LOGS/NAME/checkpoints/STEM.state: the run goes on where its files are now
    free(whole);
    if (!named && (slash = strstr(folder, "/checkpoints/"))) {
        *slash = 0;
        slash = strrchr(folder, '/');
        char *name = o->owned[OPTION_name] = strdup_check(slash ? slash + 1 : folder);
        if (slash) *slash = 0;
        o->name = name;
        o->logs = o->owned[OPTION_logs] = strdup_check(slash ? folder : ".");
    }
    return clip;
}

// The options, and how many samples they meant.
static inline char *train_settings(const Options *o, int64_t samples) {
    char *text = NULL;
    size_t length;
    FILE *f = open_memstream(&text, &length);
    if (!f) die(EXIT_RUNTIME, "out of memory");
    options_print(o, f);
    fprintf(f, "%-28s %lld\n", "samples", (long long)samples);
    fclose(f);
    return text;
}

// That number out of the settings of an earlier run; -1: they do not say.
static inline int64_t train_samples_then(const char *settings) {
    const char *line = strstr(settings, "\nsamples ");
    return line ? strtoll(line + strlen("\nsamples "), NULL, 10) : -1;
}

static inline void train_write_settings(const Training *t) {
    char path[PATH_SIZE];
    SafeFile s;
    path_format(path, "%s/params.txt", t->folder);
    safe_file_open(&s, path);
    safe_file_write(&s, t->settings, strlen(t->settings));
    safe_file_commit(&s);
}

#endif
