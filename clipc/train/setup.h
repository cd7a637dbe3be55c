// A run before its first step: defaults, what it trains on, what it is measured on, what it goes on from.
#ifndef CLIPC_SETUP_H
#define CLIPC_SETUP_H

#include "clipc/base/options.h"     // Options
#include "clipc/base/schedules.h"   // Schedule, schedule_check_options
#include "clipc/base/strategies.h"  // preset_apply
#include "clipc/model/checkpoint.h" // Checkpoint, checkpoint_load_latest
#include "clipc/model/open_model.h" // model_open
#include "clipc/train/evaluate.h"   // Evaluation, ZeroshotSet
#include "clipc/train/monitor.h"    // monitor_check_options
#include "clipc/train/processes.h"  // processes_pairs, processes_adopt
#include "clipc/train/run_folder.h" // RunFolder, folder_take
#include "clipc/train/settings.h"   // settings_without_acting
#include "clipc/train/validation.h" // ValidationSet

// What a run trains on, and how images and captions are read. `loading` points to its neighbours: not to be
// copied.
typedef struct {
    Tokenizer *tokenizer;    // NULL: the model's vocabulary has none
    StringList templates;    // --train-templates: sentences with {} for the class name,
    StringList classnames;   // and the names; index = label
    Dataset train;           // the samples
    AugmentConfig augment;   // --aug-cfg
    ImageCache images;       // --cache-images: decoded images; path NULL: none
    LoaderConfig loading;    // how the loader of a run is made
    char skipped[PATH_SIZE]; // the file that names the samples left out
    int64_t steps_per_epoch; // fixed at the start
} TrainData;

// What a model is measured on, and how.
typedef struct {
    Evaluation how;
    ValidationSet *val;    // (val_count)
    ZeroshotSet *zeroshot; // (zeroshot_count)
    size_t val_count, zeroshot_count;
} EvaluationSets;

// ---------------------------------------------------------------- signals

static volatile sig_atomic_t train_signal; // the signal that came; set by its handler alone
// The signal at which all processes end. Several agree on it before each step: step_loader_next().
static volatile sig_atomic_t train_interrupted;

// The first signal asks the run to end after the step; a Ctrl-C that comes later kills it. (Schedulers and
// closing terminals send the others several times.)
static char train_note[192]; // what the first Ctrl-C says

static inline void train_on_signal(int number) {
    const int error = errno;
    if (train_signal && number == SIGINT) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT); // comes when this handler returns
    } else if (!train_signal && number == SIGINT && comm_rank() == 0) {
        write_all(STDERR_FILENO, train_note, strlen(train_note));
    }
    if (!train_signal) train_signal = number;
    if (comm_size() == 1) train_interrupted = train_signal;
    errno = error;
}

// SIGTERM comes from kill and from systems that shut down, SIGUSR1 from schedulers before the time is up,
// SIGHUP from a terminal that closes; nohup, which ignores it, stays in force.
static inline void train_catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = train_on_signal;
    action.sa_flags = SA_RESTART;
    sigfillset(&action.sa_mask);
    snprintf(train_note, sizeof train_note,
        "%.80s: interrupted; ends after this step, Ctrl-C again ends it at once without saving\n",
        program_name());
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        sigaction(numbers[i], NULL, &before);
        if (numbers[i] != SIGHUP || before.sa_handler != SIG_IGN) sigaction(numbers[i], &action, NULL);
    }
}

// ---------------------------------------------------------------- options

// The preset, and the defaults that depend on how the run begins.
static inline void train_defaults(Options *o) {
    const bool random = !o->pretrained;
    if (!o->resume) preset_apply(o); // the settings of a resumed run contain it
    if (!options_was_set(o, lr)) o->lr = random ? 5e-4 : 1e-5;
    if (!options_was_set(o, epochs)) o->epochs = random ? 32 : 10;
    if (!options_was_set(o, workers))
        o->workers = max_i64(1, min_i64(256, sysconf(_SC_NPROCESSORS_ONLN) / comm_world.local_size));
    processes_check_options(o);
    schedule_check_options(o);
    monitor_check_options(o);
}

// How the options say that data is laid out.
static inline DatasetConfig dataset_config_from(const Options *o) {
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
    c.skip_missing_shards = o->skip_missing_shards;
    return c;
}

// ---------------------------------------------------------------- training data

static inline void data_open_tokenizer(TrainData *d, const Clip *clip) {
    const ClipConfig *c = &clip->config;
    char error[256];
    if (!clip->merges) return;
    d->tokenizer = tokenizer_create(clip->merges, clip->merges_bytes, error);
    if (!d->tokenizer)
        die(EXIT_USAGE, "the tokenizer in the weight file: %s; convert it again with dev/convert.py", error);
    const bool fits = d->tokenizer->words ? d->tokenizer->vocabulary <= c->vocab_size // rows may be left over
                                          : d->tokenizer->vocabulary == c->vocab_size;
    if (!fits || d->tokenizer->end_of_text != c->eot_id)
        die(EXIT_USAGE,
            "the weight file: its tokenizer has %d tokens and ends a text with %d, its model has %d and ends "
            "with %d; convert it again with dev/convert.py",
            d->tokenizer->vocabulary, d->tokenizer->end_of_text, c->vocab_size, c->eot_id);
}

// How images and captions are read for this model. All zero before.
static inline void data_set_loading(TrainData *d, const Options *o, const Clip *clip) {
    const ClipConfig *c = &clip->config;
    LoaderConfig *l = &d->loading;
    char error[256];
    data_open_tokenizer(d, clip);
    if (!augment_parse(&d->augment, o->aug_cfg ? o->aug_cfg : "", error))
        die(EXIT_USAGE, "--aug-cfg %s: %s", o->aug_cfg, error);
    l->batch_size = (int)o->batch_size;
    l->workers = (int)o->workers;
    l->image.size = c->image_size;
    l->image.interpolation = (Interpolation)c->interpolation;
    l->image.resize_mode = (ResizeMode)c->resize_mode;
    l->image.max_pixels = o->max_image_pixels ? o->max_image_pixels : INT64_MAX;
    l->image.exif_rotate = o->exif_rotate;
    l->caption_lines = o->caption_lines;
    l->augment = d->augment.evaluation_transform ? NULL : &d->augment;
    l->seed = (uint64_t)o->seed;
    l->shuffle = !o->no_shuffle;
    l->context = c->context_length;
    l->tokenizer = d->tokenizer;
    l->vocab_size = c->vocab_size;
    l->interrupted = &train_interrupted;
}

// dataset_config_from(), and the options that only training data has.
static inline DatasetConfig data_config(TrainData *d, const Options *o) {
    DatasetConfig c = dataset_config_from(o);
    c.num_samples = max_i64(0, o->train_num_samples);
    c.upsampling_factors = o->train_data_upsampling_factors;
    c.resampled = o->dataset_resampled;
    c.positives_key = o->positives_key;
    if (o->no_shuffle && (o->dataset_resampled || o->distinct_batches))
        die(EXIT_USAGE, "--no-shuffle: contradicts --%s, which sets the order; leave one of them out",
            o->dataset_resampled ? "dataset-resampled" : "distinct-batches");
    if (!o->train_templates) return c;
    d->templates = templates_read(o->train_templates);
    if (o->classnames) d->classnames = classnames_read(o->classnames);
    c.prompts = true;
    c.classnames = (const char *const *)d->classnames.list;
    c.classname_count = (int)d->classnames.count;
    return c;
}

// --train-templates: finds names for the classes; from now on the captions are made of them.
static inline void data_open_prompts(TrainData *d, const Options *o) {
    int64_t labelled = 0;
    if (!o->train_templates) return;
    if (o->classnames) dataset_check_labels(&d->train, o->classnames);
    for (int64_t i = 0; i < dataset_count(&d->train); i++) labelled += d->train.samples[i].label >= 0;
    if (!labelled)
        die(EXIT_USAGE,
            "--train-templates: no sample of %s has a label; give class folders, a CSV with --csv-label-key, "
            "or tars with .cls",
            o->train_data);
    if (!o->classnames) d->classnames = classnames_from_folders(o->train_data, &d->train.class_folders);
    if (!d->classnames.count)
        die(EXIT_USAGE, "--train-templates: the classes have no names; give --classnames FILE, one name per "
                        "line, that of label 0 first");
    d->loading.templates = &d->templates;
    d->loading.classnames = &d->classnames;
}

// --val-split: moves that share of the samples to a validation set.
static inline void data_split(TrainData *d, const Options *o, Dataset *val) {
    *val = dataset_split(&d->train, o->val_split, (uint64_t)o->seed);
    if (!dataset_count(val) || dataset_count(&d->train) < 2)
        die(EXIT_USAGE,
            "--val-split %g: leaves %lld samples to train on and %lld to validate on; change the share",
            o->val_split, (long long)dataset_count(&d->train), (long long)dataset_count(val));
}

// Batch and accumulation shrink where an epoch of n pairs has less than a step.
static inline void data_shrink_batch(TrainData *d, Options *o, int64_t n) {
    if (comm_size() > 1 && n < processes_pairs(o))
        die(EXIT_USAGE,
            "%lld samples are fewer than a step of %d processes takes (%lld pairs); lower --batch-size",
            (long long)n, comm_size(), (long long)processes_pairs(o));
    if (n < o->batch_size) {
        warn("--batch-size %lld: there are %lld samples; the batch shrinks to them", (long long)o->batch_size,
            (long long)n);
        o->batch_size = d->loading.batch_size = (int)n;
    }
    if (n / o->batch_size < o->accum_freq) {
        warn("--accum-freq %lld: %lld samples are %lld batches; it shrinks to that", (long long)o->accum_freq,
            (long long)n, (long long)(n / o->batch_size));
        o->accum_freq = n / o->batch_size;
    }
}

// Steps in an epoch of n pairs: the last, incomplete one is dropped, as in open_clip. With --distinct-batches
// as many steps as can be made in which no key occurs twice.
static inline int64_t data_count_steps(TrainData *d, const Options *o, int64_t n) {
    const int64_t step = processes_pairs(o), steps = n / step;
    if (!o->distinct_batches) return steps;
    dataset_read_keys(&d->train);
    d->loading.distinct_step = step;
    const int64_t distinct = dataset_distinct_steps(&d->train, (uint64_t)o->seed, step);
    if (!distinct)
        die(EXIT_USAGE,
            "--distinct-batches: a step of %lld pairs needs as many different keys, and there are fewer; "
            "lower --batch-size or --accum-freq",
            (long long)step);
    if (distinct < steps)
        warn("--distinct-batches: only %lld of %lld pairs fit into an epoch, others in each; it has %lld "
             "steps, not %lld",
            (long long)(distinct * step), (long long)n, (long long)distinct, (long long)steps);
    return distinct;
}

// Says so where there are fewer samples than were announced: an epoch has those that there are.
static inline void dataset_check_count(const Dataset *d, const char *option, int64_t announced) {
    const int64_t count = dataset_count(d);
    if (!d->config.resampled && announced > count)
        warn("--%s %lld: there are %lld samples, and an epoch has those", option, (long long)announced,
            (long long)count);
}

// Lists the samples and counts the steps of an epoch. `val` takes what --val-split moves out of them.
static inline void data_open(TrainData *d, Options *o, Dataset *val) {
    const DatasetConfig config = data_config(d, o);
    if (!o->train_data)
        die(EXIT_USAGE, "no data; give --train-data a CSV, a folder of images with .txt files, tar shards, "
                        "or synthetic");
    d->train = dataset_open(o->train_data, &config, 2);
    loader_check_captions(&d->train, &d->loading);
    dataset_check_count(&d->train, "train-num-samples", o->train_num_samples);
    data_open_prompts(d, o);
    if (o->val_split > 0) data_split(d, o, val);
    const int64_t n = dataset_epoch_length(&d->train);
    if (n < 2)
        die(EXIT_USAGE,
            "an epoch has %lld pairs, at least 2 are needed; see --train-data-upsampling-factors, "
            "--train-num-samples",
            (long long)n);
    data_shrink_batch(d, o, n);
    d->steps_per_epoch = data_count_steps(d, o, n);
}

// --cache-images: the loader takes decoded images from the file, to which those that it does not hold are
// added first. Ends the program where Ctrl-C came in between.
static inline void data_cache_images(TrainData *d, const Options *o) {
    const char *path = o->cache_images;
    LoaderConfig *l = &d->loading;
    ImageSettings c = l->image;
    if (l->augment) c.size = 0; // the images as decoded
    if (!path) return;
    if (!image_cache_open(&d->images, path, &d->train, &c, l->interrupted)) {
        warn("interrupted; %s keeps the images decoded so far", path);
        exit(EXIT_SIGNAL + train_interrupted);
    }
    l->cache = &d->images;
}

static inline void data_free(TrainData *d) {
    image_cache_close(&d->images);
    if (d->train.file_count) dataset_free(&d->train);
    string_list_free(&d->templates);
    string_list_free(&d->classnames);
    tokenizer_free(d->tokenizer);
}

// The schedule of a run over this data.
static inline Schedule data_schedule(const TrainData *d, const Options *o) {
    const int64_t steps = options_was_set(o, steps) ? o->steps : o->epochs * d->steps_per_epoch;
    return schedule_from_options(o, steps, d->steps_per_epoch);
}

// ---------------------------------------------------------------- evaluation sets

static inline Evaluation evaluation_from(
    const Options *o, Clip *clip, const LoaderConfig *training, Logger *log) {
    const Evaluation e = {
        clip, kernels_select(), evaluation_loader(training), (int)o->val_retrieval_chunk_size, log};
    return e;
}

// Adds a validation set, all zero.
static inline ValidationSet *sets_add_validation(EvaluationSets *s) {
    s->val = (ValidationSet *)realloc_check(s->val, (s->val_count + 1) * sizeof *s->val);
    memset(&s->val[s->val_count], 0, sizeof *s->val);
    return &s->val[s->val_count++];
}

// Opens the sets of --val-data and --zeroshot-data; s->how is set before.
static inline void sets_open(EvaluationSets *s, const Options *o) {
    const DatasetConfig keys = dataset_config_from(o);
    if (o->val_data.count && o->val_split > 0)
        die(EXIT_USAGE, "--val-data and --val-split both name the validation set; give one of them");
    for (size_t i = 0; i < o->val_data.count; i++) {
        DatasetConfig val = keys;
        ValidationSet *set = sets_add_validation(s);
        val.num_samples = max_i64(0, o->val_num_samples);
        val.validation = true;
        val.positives_key = o->positives_key;
        set->data = dataset_open(set_path("val-data", o->val_data.items[i], set->name), &val, 1);
        dataset_check_count(&set->data, "val-num-samples", o->val_num_samples);
        loader_check_captions(&set->data, &s->how.loader);
        for (size_t k = 0; k < i; k++)
            if (strcmp(s->val[k].name, set->name) == 0)
                die(EXIT_USAGE, "--val-data %s: another set has the same name; write NAME=PATH",
                    o->val_data.items[i]);
    }
    s->zeroshot = (ZeroshotSet *)calloc_check(o->zeroshot_data.count, sizeof *s->zeroshot);
    for (; s->zeroshot_count < o->zeroshot_data.count; s->zeroshot_count++) {
        const char *spec = o->zeroshot_data.items[s->zeroshot_count];
        ZeroshotSet *set = &s->zeroshot[s->zeroshot_count];
        *set = zeroshot_open("zeroshot-data", spec, o->classnames, o->templates, &keys);
        for (size_t k = 0; k < s->zeroshot_count; k++)
            if (strcmp(s->zeroshot[k].name, set->name) == 0)
                die(EXIT_USAGE, "--zeroshot-data %s: another set has the same name; write NAME=PATH", spec);
    }
}

static inline void sets_free(EvaluationSets *s) {
    for (size_t i = 0; i < s->zeroshot_count; i++) zeroshot_close(&s->zeroshot[i]);
    for (size_t i = 0; i < s->val_count; i++) dataset_free(&s->val[i].data);
    free(s->zeroshot);
    free(s->val);
}

// ---------------------------------------------------------------- the model

// Gradients, m and v for the trainable tensors, and features for all pairs of a step.
static inline void model_start_training(Clip *clip, const Options *o) {
    const ClipTraining how = {(int)processes_pairs(o), o->ema_decay > 0, o->grad_checkpointing};
    clip_start_training(clip, &how);
}

// Logs the command that continues the run.
static inline void folder_print_resume(RunFolder *folder, int64_t step) {
    char *command = NULL;
    size_t length;
    FILE *f = text_open(&command, &length);
    fprintf(f, "%s --resume %s.bin", program_path(), folder->last_saved);
    settings_print_acting(folder->settings, f);
    text_close(f);
    logger_print(&folder->log, "interrupted after step %lld; go on with: %s", (long long)step, command);
    free(command);
}

// Does this run folder hold anything of a checkpoint?
static inline bool folder_has_checkpoint(const char *folder) {
    char checkpoints[PATH_SIZE];
    bool any = false;
    path_format(checkpoints, "%s/checkpoints", folder);
    DIR *d = opendir(checkpoints);
    for (struct dirent *e; d && (e = readdir(d));) any |= matches_any("*.bin|*.state|manifest", e->d_name);
    if (d) closedir(d);
    return any;
}

// The run that --resume latest goes on with: LOGS/NAME, or without --name the only run in LOGS. False where
// it has no checkpoint yet, or LOGS has none.
static inline bool resume_latest(char folder[PATH_SIZE], const Options *o) {
    char names[1024] = "", found[PATH_SIZE];
    int count = 0;
    path_format(folder, "%s/%s", o->logs, o->name ? o->name : "");
    if (o->name) return folder_has_checkpoint(folder);
    DIR *d = opendir(o->logs);
    for (struct dirent *e; d && (e = readdir(d));) {
        path_format(found, "%s/%s", o->logs, e->d_name);
        if (e->d_name[0] == '.' || !folder_has_checkpoint(found)) continue;
        path_format(folder, "%s", found);
        const size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%s", count++ ? ", " : "", e->d_name);
    }
    if (d) closedir(d);
    if (count > 1)
        die(EXIT_USAGE, "--resume latest: which run? give the --name of one in %s: %s", o->logs, names);
    return count == 1;
}

// Is this a new run that was begun by --resume latest, before there was a checkpoint to go on from?
static inline bool resume_begins(const Options *o) { return options_was_set(o, resume) && !o->resume; }

// The run folder that a resumed run goes on in: LOGS/NAME where the command line names it, else the one that
// the checkpoint lies in, wherever that was moved. False when neither tells.
static inline bool resume_folder(char folder[PATH_SIZE], const Options *o) {
    path_format(folder, "%s/%s", o->logs, o->name ? o->name : "");
    if (strcmp(o->resume, "latest") == 0) {
        if (resume_latest(folder, o)) return true;
        char checkpoints[PATH_SIZE];
        path_format(checkpoints, "%s/checkpoints", folder);
        const char *fault = folder_fault(checkpoints);
        if (fault)
            die(EXIT_USAGE, "--resume latest: %s is not a run folder (%s); see --logs and --name", folder,
                fault);
        die(EXIT_USAGE, "--resume latest: %s has no checkpoint; see --logs and --name", folder);
    }
    if (options_was_set(o, name) || options_was_set(o, logs)) return o->name != NULL;
    // LOGS/NAME/checkpoints/STEM.state; a checkpoint that lies elsewhere begins another folder
    if (!realpath(o->resume, folder)) return false;
    *strrchr(folder, '/') = 0;
    if (!ends_with(folder, "/checkpoints")) return false;
    *strrchr(folder, '/') = 0;
    return true;
}

// The checkpoint that --resume names, with its model. Options that were not given take the values of the run.
static inline Clip *model_open_checkpoint(Options *o, Checkpoint *c) {
    char folder[PATH_SIZE], checkpoints[PATH_SIZE];
    const bool known = resume_folder(folder, o), named = options_was_set(o, name) || options_was_set(o, logs);
    if (comm_rank()) comm_most(0); // after process 0, which ends what a killed run was saving
    if (known && comm_rank() == 0) folder_take(folder);
    path_format(checkpoints, "%s/checkpoints", folder);
    Clip *clip = strcmp(o->resume, "latest") == 0 ? checkpoint_load_latest(c, checkpoints)
                                                  : checkpoint_load_pair(c, o->resume);
    if (comm_rank() == 0) comm_most(0);
    // the settings hold what was found then
    if (o->lr == RATE_AUTO) o->set[OPTION_lr] = false;
    if (strcmp(o->precision, "auto") == 0) o->set[OPTION_precision] = false;
    clip_keep_kernels(c->header.kernels);
    if (!options_was_set(o, keep_states) && !strstr(c->settings, "\nkeep-states "))
        o->keep_states = 0; // the run began before there was this option
    char *harmless = settings_without_acting(c->settings, o);
    char *settings = processes_adopt(o, harmless, o->resume_override);
    options_adopt(o, settings, o->resume_override);
    free(harmless);
    free(settings);
    if (named || !known) return clip;
    char *slash = strrchr(folder, '/');
    o->name = o->owned[OPTION_name] = strdup_check(slash + 1);
    *slash = 0;
    o->logs = o->owned[OPTION_logs] = strdup_check(*folder ? folder : "/");
    return clip;
}

// Which groups of a tower train, in open_clip's order from the embeddings to the projection, and how many
// parameters that is.
static inline void print_groups(Logger *log, const Clip *clip, int tower) {
    const int groups = clip_tower_layers(&clip->config, tower) + 2;
    const char *name = tower == IMAGE_TOWER ? "image" : "text";
    int first = groups;
    size_t count = 0;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (x->tower == tower && x->trainable) {
            first = x->group < first ? x->group : first;
            count += x->count;
        }
    }
    if (first == groups) logger_print(log, "             %s tower: frozen", name);
    else if (first == 0)
        logger_print(log, "             %s tower: all %d groups train, %zu parameters", name, groups, count);
    else
        logger_print(log, "             %s tower: the last %d of %d groups train (%s), %zu parameters", name,
            groups - first, groups,
            groups - first == 1   ? "projection"
            : groups - first == 2 ? "last block and final LayerNorm, projection"
                                  : "blocks, final LayerNorm, projection",
            count);
}

static inline void print_model(Logger *log, const Clip *clip, const Options *o) {
    const ClipConfig *c = &clip->config;
    size_t parameters, training, activations, count = 0;
    for (int i = 0; i < clip->tensors.count; i++)
        count += clip->tensors.list[i].trainable ? clip->tensors.list[i].count : 0;
    clip_memory(clip, (int)o->batch_size, &parameters, &training, &activations);
    logger_print(log,
        "model        %s: image %d pixels, patches of %d, %d x %d wide; text %d tokens, %d x %d wide; "
        "embedding %d; %s",
        c->name[0] ? c->name : "(no name)", c->image_size, c->patch_size, c->image_layers, c->image_width,
        c->context_length, c->text_layers, c->text_width, c->embed_dim, c->quick_gelu ? "QuickGELU" : "GELU");
    logger_print(log, "parameters   %zu, of which %zu train", clip->tensors.parameters, count);
    for (int tower = 0; tower < 2; tower++) print_groups(log, clip, tower);
    logger_print(log,
        "memory       %.2f GB weights, %.2f GB gradients and optimizer, at most %.2f GB activations",
        (double)parameters / 1e9, (double)training / 1e9, (double)activations / 1e9);
    logger_print(log, "kernels      %s", clip_kernels(clip));
}

// ---------------------------------------------------------------- the command line
//
// What the options mean together, before anything is opened. As in open_clip, --resume latest begins a run
// that is not there yet, and a line without --train-data evaluates.

// --resume latest, so that the command of a job that is started again and again stays the same. Without any
// option that names a model it can only mean a run that is there.
static inline void command_line_resume(Options *o) {
    char folder[PATH_SIZE], log[PATH_SIZE];
    const bool model = o->pretrained || o->model || o->pretrained_image || o->pretrained_text;
    if (!o->resume || strcmp(o->resume, "latest") != 0 || !model || resume_latest(folder, o)) return;
    path_format(log, "%s/out.log", folder);
    if (o->name && file_exists(folder) && !file_exists(log)) return; // not a run folder, which then is said
    warn("--resume latest: %s%s; a new run begins", folder,
        o->name ? " has no checkpoint yet" : ": no run there has a checkpoint yet");
    o->resume = NULL;
}

// --dataset-type synthetic needs no path, as in open_clip; with one it would train on something else.
static inline void command_line_synthetic(Options *o) {
    if (strcmp(o->dataset_type, "synthetic") != 0) return;
    if (!o->train_data && !o->resume) o->train_data = "synthetic";
    const bool train = o->train_data && strcmp(o->train_data, "synthetic") != 0;
    for (size_t i = 0; i <= o->val_data.count; i++) {
        const char *path = i < o->val_data.count ? o->val_data.items[i] : train ? o->train_data : "synthetic";
        if (strcmp(path, "synthetic") != 0)
            options_refuse(o, "--dataset-type synthetic: would not read %s; leave one of them out", path);
    }
}

// Data to evaluate on, and none to train on.
static inline void command_line_evaluation(Options *o) {
    const bool other = o->eval_only || o->check_data || o->print_schedule || o->classify.count || o->schema;
    if (o->train_data || o->resume || other || !(o->val_data.count || o->zeroshot_data.count)) return;
    warn("without --train-data the model is evaluated and not trained, as with --eval-only");
    o->eval_only = true;
}

// Reads train_clip's command line. All that is wrong with it is told at once, and ends the program.
static inline void command_line_read(Options *o, int argc, char **argv) {
    options_read(o, argc, argv);
    if (!o->refused.count) command_line_resume(o);
    command_line_synthetic(o);
    if (!o->schema && !o->print_schedule && !o->resume) model_check_options(o);
    options_end_refused(o);
    command_line_evaluation(o);
}

#endif
