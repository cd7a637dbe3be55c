// A run on several processes: what they agree on before the first step, how a checkpoint of another number of
// processes goes on, and how much they exchange. doc/processes.md has the whole.
#ifndef CLIPC_PROCESSES_H
#define CLIPC_PROCESSES_H

#include "clipc/base/options.h"   // Options
#include "clipc/data/dataset.h"   // Dataset
#include "clipc/model/clip.h"     // Clip, comm_size
#include "clipc/train/settings.h" // settings_number

// Ends the program where several processes would do the same work.
static inline void processes_refuse(const char *what) {
    if (comm_size() > 1)
        die(EXIT_USAGE, "%s: works in one process, and %d were started; start it without mpirun or srun",
            what, comm_size());
}

// Options that only one process offers.
static inline void processes_check_options(const Options *o) {
    if (comm_size() == 1) return;
    if (o->cache_images) processes_refuse("--cache-images");
    if (o->feature_cache) processes_refuse("--feature-cache");
    if (o->classify.count) processes_refuse("--classify");
    if (o->check_data) processes_refuse("--check-data");
    if (o->print_schedule) processes_refuse("--print-schedule");
    if (o->schema) processes_refuse("--schema");
    if (o->eval_only) processes_refuse("--eval-only");
}

// Pairs of a step, of all processes.
static inline int64_t processes_pairs(const Options *o) {
    return o->batch_size * o->accum_freq * comm_size();
}

// ---------------------------------------------------------------- agreement

static inline void processes_agree_on(const char *what, uint64_t hash, const char *advice) {
    const int other = comm_first_other(hash);
    if (other < 0) return;
    if (comm_rank() == 0) die(EXIT_USAGE, "processes 0 and %d differ in their %s; %s", other, what, advice);
    comm_most(0); // process 0 ends all
}

static inline uint64_t weights_hash(const Clip *clip) {
    uint64_t hash = 0;
    float *values = NULL;
    size_t capacity = 0;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        list_grow((void **)&values, &capacity, x->count, sizeof *values);
        clip_read(clip, ARENA_PARAMETERS, x, values);
        hash = hash_bytes(hash, values, x->count * sizeof *values);
    }
    free(values);
    return hash;
}

// Which samples there are, and where.
static inline uint64_t samples_hash(const Dataset *d) {
    uint64_t hash = hash_bytes(0, d->samples, (size_t)d->count * sizeof *d->samples);
    for (size_t i = 0; i < d->file_count; i++) {
        hash = hash_bytes(hash, d->files[i].path, strlen(d->files[i].path));
        hash = hash_bytes(hash, d->files[i].text, d->files[i].text_bytes);
    }
    return hash;
}

// Of all lines but that of --workers, which follows from the machine.
static inline uint64_t settings_hash(const char *settings) {
    uint64_t hash = 0;
    for (const char *line = settings; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, "workers ", 8) != 0) hash = hash_bytes(hash, line, strcspn(line, "\n"));
    return hash;
}

// Before the first step: the same program, options, kernels, weights and samples everywhere, or the program
// ends. `settings`: as in params.txt.
static inline void processes_agree(const Clip *clip, const char *settings, const Dataset *d) {
    static const char build[] = __DATE__ " " __TIME__ " " __VERSION__;
    const char *kernels = clip_kernels(clip);
    if (comm_size() == 1) return;
    processes_agree_on("build", hash_bytes(0, build, sizeof build), "copy one program to all machines");
    processes_agree_on("options", settings_hash(settings), "give all the same ones");
    processes_agree_on("kernels or precision", hash_bytes(0, kernels, strlen(kernels)) + clip_precision(clip),
        "set CLIPC_ISA and --precision to what all processors have");
    processes_agree_on("weights", weights_hash(clip), "one machine has another file of that name");
    processes_agree_on("samples", samples_hash(d), "one machine has other data under that path");
}

// ---------------------------------------------------------------- resuming

// The settings of a run for this number of processes: a step keeps its pairs. --batch-size is the run's,
// unless given, and --accum-freq follows from it. Ends the program where that does not come out even. free()
// it.
static inline char *processes_adopt(Options *o, const char *settings, bool override) {
    const int64_t then = settings_number(settings, "processes", 1),
                  B = settings_number(settings, "batch-size", 1);
    const int64_t k = settings_number(settings, "accum-freq", 1), pairs = then * k * B;
    const int64_t batch = options_was_set(o, batch_size) ? o->batch_size : B;
    const int64_t part = batch * comm_size();
    char *text = NULL;
    size_t length;
    if (override || (then == comm_size() && batch == B)) return strdup_check(settings);
    if (pairs % part != 0 || (options_was_set(o, accum_freq) && o->accum_freq != pairs / part))
        die(EXIT_USAGE,
            "the run has steps of %lld pairs, and %d processes with --batch-size %lld%s cannot make them; "
            "give another number of processes or --batch-size",
            (long long)pairs, comm_size(), (long long)batch,
            options_was_set(o, accum_freq) ? " and that --accum-freq" : "");
    FILE *f = text_open(&text, &length);
    for (const char *line = settings; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const int n = (int)strcspn(line, "\n");
        if (strncmp(line, "batch-size ", 11) == 0) fprintf(f, "%-28s %lld\n", "batch-size", (long long)batch);
        else if (strncmp(line, "accum-freq ", 11) == 0)
            fprintf(f, "%-28s %lld\n", "accum-freq", (long long)(pairs / part));
        else fprintf(f, "%.*s\n", n, line);
    }
    text_close(f);
    return text;
}

// How the weights of a run go on that had `then` processes, k micro-batches and batches of B.
static inline const char *processes_same_bits(const Options *o, int64_t then, int64_t k, int64_t B) {
    const bool plain = (then == 1 || k == 1) && (comm_size() == 1 || o->accum_freq == 1);
    return B == o->batch_size && plain ? "with the same bits" : "equal up to rounding";
}

// ---------------------------------------------------------------- what is exchanged

// Bytes that a process sends in a step, by the formula of doc/processes.md.
static inline double processes_step_bytes(const Clip *clip, const Options *o) {
    const double R = comm_size(), pairs = (double)processes_pairs(o), E = clip->config.embed_dim;
    const double weights = 2 * 4 * (double)clip->tensors.grad_floats, features = 2 * 4 * E * pairs;
    const double loss = (2 * 4 + 2 * 8) * pairs, fates = 2 * 16 * pairs;
    return (R - 1) / R * (weights + features + loss + fates);
}

#endif
