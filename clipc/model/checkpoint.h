// Checkpoints: a pair of files, STEM.bin with the weights and STEM.state with all else that a run needs to
// continue bit for bit.
//
// The state holds the identity of its .bin; a pair that does not match is not a checkpoint. A pair, its
// moving average and their other names (best, latest) are written as one set, which is whole or absent
// whenever the program is killed: clipc/base/file_set.h. Earlier versions renamed the two files of a pair one
// after the other, so a state is also looked for under its temporary name.
#ifndef CLIPC_CHECKPOINT_H
#define CLIPC_CHECKPOINT_H

#include "clipc/base/file_set.h" // FileSet
#include "clipc/model/clip.h"    // clip_save, clip_read, clip_write

#define STATE_MAGIC 0x54534c43 // the bytes "CLST"
#define STATE_VERSION 3 // version 2, which is read as well, has no seal and knows its .bin by file_hash()
enum { STATE_SETTINGS_MOST = 1 << 20 };

// Position of a run: the data order, all random numbers and the schedule are functions of it and of the
// settings.
typedef struct {
    int64_t step;         // steps done
    int64_t epoch;        // epochs done
    int64_t position;     // entries of this epoch's order that are used up
    int64_t evaluated;    // 1 + the step of the last evaluation that was due and is done; 0 before the first
    double best_metric;   // of checkpoints/best
    int64_t best_step;    // its step; 0: none yet
    double best_val_loss; // valid if `validated`
    int64_t validated;    // 1 once a validation loss was measured
    int64_t evaluations_without_better;
} RunState;

// Are the counters such as a run can have? Above 2^53 not even a double counts exactly.
static inline bool run_state_is_possible(const RunState *s) {
    const int64_t counters[] = {
        s->step, s->epoch, s->position, s->evaluated, s->best_step, s->evaluations_without_better};
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
        if (counters[i] < 0 || counters[i] > (int64_t)1 << 53) return false;
    return s->validated == 0 || s->validated == 1;
}

// The beginning of a .state file, little-endian. After it: the settings (text), then m, v and moving average
// of each trainable tensor in order, and a seal (clipc/base/safe_file.h).
typedef struct {
    int32_t magic, version;
    uint64_t weights_identity; // of the .bin: its seal's
    RunState run;
    char kernels[16]; // clip_kernels() of the run: others round differently
    int64_t settings_bytes;
    int64_t tensors; // that train
    int64_t floats;  // of all their arenas together
} StateHeader;

// Number of arenas that a state holds of each trainable tensor, from ARENA_M on: m, v, and the moving average
// of the weights if the model has one.
static inline int state_arenas(const Clip *clip) { return clip_has_ema(clip) ? 3 : 2; }

static inline StateHeader state_header(
    const Clip *clip, const RunState *run, size_t settings_bytes, uint64_t weights_identity) {
    StateHeader h;
    memset(&h, 0, sizeof h);
    h.magic = STATE_MAGIC;
    h.version = STATE_VERSION;
    h.weights_identity = weights_identity;
    h.run = *run;
    h.settings_bytes = (int64_t)settings_bytes;
    snprintf(h.kernels, sizeof h.kernels, "%s", clip_kernels(clip));
    for (int i = 0; i < clip->tensors.count; i++)
        if (clip->tensors.list[i].trainable) {
            h.tensors++;
            h.floats += state_arenas(clip) * (int64_t)clip->tensors.list[i].count;
        }
    return h;
}

// A checkpoint that cannot be trained on is not saved: it must not take the place of one that can.
static inline void checkpoint_check_finite(const SafeFile *out, const Tensor *x, const float *values) {
    if (all_finite(values, x->count)) return;
    safe_file_drop(out);
    die(EXIT_RUNTIME,
        "%s: is not saved, since %s is not finite; go on from the checkpoint before it, with a lower --lr or "
        "--grad-clip-norm 1",
        out->path, x->name);
}

// m, v and moving average of every trainable tensor, in the order of the file: from the model to `out`, or,
// where that is NULL, from `in`, the file of the name `path`, to the model.
static inline void state_transfer(Clip *clip, SafeFile *out, FILE *in, const char *path) {
    float *values = NULL;
    size_t capacity = 0;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!x->trainable) continue;
        list_grow((void **)&values, &capacity, x->count, sizeof *values);
        for (int arena = ARENA_M; arena < ARENA_M + state_arenas(clip); arena++) {
            if (out) {
                clip_read(clip, (ClipArena)arena, x, values);
                checkpoint_check_finite(out, x, values);
                safe_file_write(out, values, x->count * sizeof *values);
                continue;
            }
            fread_check(values, x->count * sizeof *values, in, path);
            if (!all_finite(values, x->count))
                die(EXIT_USAGE, "%s: the optimizer state of %s is not finite; take an earlier checkpoint",
                    path, x->name);
            clip_write(clip, (ClipArena)arena, x, values);
        }
    }
    free(values);
}

// Writes the weights into `out`, if they are finite; returns the file's identity.
static inline uint64_t checkpoint_write_weights(Clip *clip, SafeFile *out) {
    float *values = NULL;
    size_t capacity = 0;
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!x->trainable) continue;
        list_grow((void **)&values, &capacity, x->count, sizeof *values);
        clip_read(clip, ARENA_PARAMETERS, x, values);
        checkpoint_check_finite(out, x, values);
    }
    free(values);
    return clip_save(clip, out);
}

// Sizes of the files of a checkpoint, in bytes.
typedef struct {
    int64_t weights; // .bin, and as much again _ema.bin if there is a moving average
    int64_t state;   // .state
} CheckpointBytes;

static inline CheckpointBytes checkpoint_bytes(const Clip *clip, const char *settings) {
    RunState none;
    memset(&none, 0, sizeof none);
    const StateHeader h = state_header(clip, &none, 0, 0);
    const int64_t weights = HEADER_BYTES + (int64_t)round_up(clip->merges_bytes, WEIGHTS_ALIGNMENT) +
                            (int64_t)weights_tensor_bytes(&clip->tensors, DTYPE_FP32);
    const int64_t state = (int64_t)sizeof h + (int64_t)strlen(settings) + 4 * h.floats;
    const CheckpointBytes bytes = {
        (clip_has_ema(clip) ? 2 : 1) * (weights + seal_bytes(weights)), state + seal_bytes(state)};
    return bytes;
}

static const char *const checkpoint_endings[] = {".bin", "_ema.bin", ".state"};

// Adds NAME.bin, NAME.state and, where there is a moving average of the weights, that as a model of its own,
// NAME_ema.bin, to a set. `settings`: text from which the run can be set up again (params.txt).
static inline void checkpoint_write(
    FileSet *set, Clip *clip, const char *name, const RunState *run, const char *settings) {
    char path[PATH_SIZE];
    path_format(path, "%s.bin", name);
    const uint64_t identity = checkpoint_write_weights(clip, file_set_add(set, path));
    file_set_wrote(set, identity);
    if (clip_has_ema(clip)) {
        path_format(path, "%s_ema.bin", name);
        clip_swap_ema(clip);
        file_set_wrote(set, clip_save(clip, file_set_add(set, path)));
        clip_swap_ema(clip);
    }
    path_format(path, "%s.state", name);
    SafeFile *state = file_set_add(set, path);
    const StateHeader header = state_header(clip, run, strlen(settings), identity);
    safe_file_write(state, &header, sizeof header);
    safe_file_write(state, settings, strlen(settings));
    state_transfer(clip, state, NULL, NULL);
    file_set_wrote(set, safe_file_seal(state));
}

// Takes part in checkpoint_write() of process 0: its exchanges, in the same order.
static inline void checkpoint_hand_over(Clip *clip) {
    float *values = NULL;
    size_t capacity = 0;
    if (clip_has_ema(clip)) {
        clip_swap_ema(clip);
        clip_swap_ema(clip);
    }
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!x->trainable) continue;
        list_grow((void **)&values, &capacity, x->count, sizeof *values);
        for (int arena = ARENA_M; arena < ARENA_M + state_arenas(clip); arena++)
            clip_read(clip, (ClipArena)arena, x, values);
    }
    free(values);
}

// Gives the checkpoint NAME of a set a second name; `ema`: its moving average, too.
static inline void checkpoint_link(FileSet *set, const char *name, const char *second, bool ema) {
    char path[PATH_SIZE], as[PATH_SIZE];
    for (int i = 0; i < 3; i++) {
        if (i == 1 && !ema) continue;
        path_format(path, "%s%s", name, checkpoint_endings[i]);
        path_format(as, "%s%s", second, checkpoint_endings[i]);
        file_set_link(set, path, as);
    }
}

// ---------------------------------------------------------------- reading

// A state file whose header was read.
typedef struct {
    char weights[PATH_SIZE], state[PATH_SIZE];
    StateHeader header;
    char *settings; // NUL-terminated; free() it
} Checkpoint;

// What is wrong with a state file of which the header is read, or NULL. The part that holds header and
// settings must be undamaged; checkpoint_load() looks at the rest.
static inline const char *state_fault(const StateHeader *h, int fd) {
    struct stat st;
    Seal seal;
    if (h->magic != STATE_MAGIC) return "is not a training state";
    if (h->version < 2 || h->version > STATE_VERSION) return "was written by another version of this program";
    if (fstat(fd, &st)) return strerror(errno);
    if (h->settings_bytes < 0 || h->settings_bytes > STATE_SETTINGS_MOST || h->floats < 0 ||
        h->floats > st.st_size)
        return "is damaged";
    const int64_t head = (int64_t)sizeof *h + h->settings_bytes, contents = head + 4 * h->floats;
    if (st.st_size != contents + (h->version > 2 ? seal_bytes(contents) : 0)) return "is not complete";
    if (!run_state_is_possible(&h->run)) return "is damaged";
    if (h->version == 2) return NULL;
    const char *why = seal_read(&seal, fd) && seal_holds(&seal, fd, head) ? NULL : seal_fault();
    free(seal.checksums);
    return why;
}

// Reads header and settings of c->state. Returns NULL, or what is wrong with the file.
static inline const char *checkpoint_open(Checkpoint *c) {
    FILE *f = fopen(c->state, "rb");
    const char *why = NULL;
    c->settings = NULL;
    if (!f) why = strerror(errno);
    else if (fread(&c->header, 1, sizeof c->header, f) != sizeof c->header) why = "is not a training state";
    else why = state_fault(&c->header, fileno(f));
    if (!why) {
        c->settings = (char *)calloc_check((size_t)c->header.settings_bytes + 1, 1);
        if (fread(c->settings, 1, (size_t)c->header.settings_bytes, f) != (size_t)c->header.settings_bytes)
            why = "is not complete";
    }
    if (f) fclose(f);
    c->header.kernels[sizeof c->header.kernels - 1] = 0;
    return why;
}

// Reads m, v and moving average into a model that has the weights of the pair and the locks of its run.
static inline void checkpoint_restore(const Checkpoint *c, Clip *clip) {
    const StateHeader mine = state_header(clip, &c->header.run, 0, 0);
    if (mine.tensors != c->header.tensors || mine.floats != c->header.floats)
        die(EXIT_USAGE,
            "%s: holds the optimizer state of %lld tensors, this run trains %lld; give the locks and "
            "--ema-decay that the run began with",
            c->state, (long long)c->header.tensors, (long long)mine.tensors);
    FILE *f = fopen_check(c->state, "rb");
    if (fseeko(f, (off_t)sizeof c->header + c->header.settings_bytes, SEEK_SET))
        die(EXIT_RUNTIME, "%s: %s", c->state, strerror(errno));
    state_transfer(clip, NULL, f, c->state);
    fclose(f);
}

// latest and best often are other names of a numbered checkpoint.
static inline bool checkpoint_is_second(const char *weights) {
    return ends_with(weights, "/latest.bin") || ends_with(weights, "/best.bin");
}

static inline int checkpoint_newer(const void *a, const void *b) {
    const Checkpoint *x = (const Checkpoint *)a, *y = (const Checkpoint *)b;
    const RunState *p = &x->header.run, *q = &y->header.run;
    if (p->step != q->step) return p->step < q->step ? 1 : -1;
    if (p->evaluated != q->evaluated) return p->evaluated < q->evaluated ? 1 : -1;
    const bool second = checkpoint_is_second(x->weights), other = checkpoint_is_second(y->weights);
    return second != other ? second - other : strcmp(x->state, y->state);
}

// All state files of a folder that can be read, those not yet renamed included, newest first. The caller
// frees the list and the settings in it.
static inline Checkpoint *checkpoint_list(const char *folder, size_t *count) {
    Checkpoint *list = NULL;
    size_t capacity = 0;
    *count = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        const size_t length = strlen(e->d_name);
        const size_t tail = ends_with(e->d_name, ".state") ? 6 : ends_with(e->d_name, ".state.part") ? 11 : 0;
        if (!tail) continue;
        list_grow((void **)&list, &capacity, *count + 1, sizeof *list);
        Checkpoint *c = &list[*count];
        path_format(c->state, "%s/%s", folder, e->d_name);
        path_format(c->weights, "%s/%.*s.bin", folder, (int)(length - tail), e->d_name);
        if (!checkpoint_open(c)) ++*count;
        else free(c->settings);
    }
    if (d) closedir(d);
    if (*count) qsort(list, *count, sizeof *list, checkpoint_newer);
    return list;
}

// What is wrong with a sealed file; NULL when it is undamaged, and then its identity.
static inline const char *file_fault(const char *path, uint64_t *identity) {
    FILE *f = fopen(path, "rb");
    const char *why = f && sealed_file_holds(fileno(f), identity) ? NULL : seal_fault();
    if (f) fclose(f);
    return why;
}

// What keeps a pair from being a checkpoint, and in *path the file with that fault; NULL when both files are
// undamaged and belong together.
static inline const char *checkpoint_fault(const Checkpoint *c, const char **path) {
    const bool old = c->header.version == 2;
    uint64_t weights, state;
    *path = c->state;
    const char *why = old ? NULL : file_fault(c->state, &state);
    if (why) return why;
    *path = c->weights;
    if (!old) why = file_fault(c->weights, &weights);
    else if (!file_hash(c->weights, &weights)) why = strerror(errno);
    if (why) return why;
    *path = c->state;
    return weights == c->header.weights_identity ? NULL : "is not the state of the .bin beside it";
}

// The newest whole pair in a run's folder of checkpoints, with its model; ends the program when there is
// none.
static inline Clip *checkpoint_load_latest(Checkpoint *out, const char *folder) {
    size_t count;
    Checkpoint *list = checkpoint_list(folder, &count);
    Clip *clip = NULL;
    for (size_t i = 0; i < count; i++) {
        const char *path, *why = clip ? NULL : checkpoint_fault(&list[i], &path);
        if (!clip && !why) {
            clip = clip_load(list[i].weights);
            *out = list[i];
            continue;
        }
        if (why && file_exists(list[i].weights) && !ends_with(list[i].state, ".part"))
            warn("%s: %s; taking the checkpoint before it", path, why);
        free(list[i].settings);
    }
    free(list);
    if (!clip)
        die(EXIT_USAGE, "%s: no complete checkpoint; start the run again under another --name", folder);
    if (ends_with(out->state, ".part")) { // killed between the two renames: finish them
        char aside[PATH_SIZE];
        path_format(aside, "%s", out->state);
        out->state[strlen(out->state) - strlen(".part")] = 0;
        if (rename(aside, out->state)) die(EXIT_RUNTIME, "%s: cannot rename (%s)", aside, strerror(errno));
    }
    file_set_drop(folder);
    return clip;
}

// The pair that `path` is a file of, with its model; ends the program when it is not a pair.
static inline Clip *checkpoint_load_pair(Checkpoint *out, const char *path) {
    const size_t tail = ends_with(path, ".bin") ? 4 : ends_with(path, ".state") ? 6 : 0;
    if (!tail)
        die(EXIT_USAGE,
            "--resume %s: give a .bin or .state file of a checkpoint, or latest; a new run begins with "
            "weights "
            "of open_clip: python3 dev/convert.py %s -o OUT.bin, then --pretrained OUT.bin",
            path, path);
    path_format(out->weights, "%.*s.bin", (int)(strlen(path) - tail), path);
    path_format(out->state, "%.*s.state", (int)(strlen(path) - tail), path);
    const char *why = checkpoint_open(out);
    if (!file_exists(out->state) && file_exists(out->weights))
        why = "is not there (--keep-states keeps the newest alone)";
    if (why)
        die(EXIT_USAGE, "%s: %s; to begin a new run from the weights alone use --pretrained %s", out->state,
            why, out->weights);
    const char *path_at_fault;
    why = checkpoint_fault(out, &path_at_fault);
    if (why)
        die(EXIT_USAGE,
            "%s: %s; take another checkpoint, or begin a new run from weights alone with --pretrained",
            path_at_fault, why);
    return clip_load(out->weights);
}

// ---------------------------------------------------------------- snapshots

// A copy of what training changes in a model, to restore it to the bit: parameters, m, v, and their moving
// average. It is in memory, or in a temporary file where memory is short. m and v that are zero, as at the
// start of a run, are not stored.
typedef struct {
    char *memory; // NULL: in the file
    FILE *file;
    bool stored[5]; // by ClipArena; else that arena was zero, or does not exist
} ClipSnapshot;

// Does the tensor change in training? The update clamps logit_scale even where it is locked.
static inline bool snapshot_has(const Tensor *x, ClipArena arena) {
    return x->trainable || (arena == ARENA_PARAMETERS && x->tower == NO_TOWER);
}

static inline bool arena_is_zero(const Clip *clip, ClipArena arena, float *scratch) {
    for (int i = 0; i < clip->tensors.count; i++) {
        const Tensor *x = &clip->tensors.list[i];
        if (!snapshot_has(x, arena)) continue;
        clip_read(clip, arena, x, scratch);
        for (size_t j = 0; j < x->count; j++)
            if (scratch[j] != 0 || signbit(scratch[j])) return false;
    }
    return true;
}

// Copies out (`in` false) or back in, tensor by tensor.
static inline void snapshot_copy(ClipSnapshot *s, Clip *clip, bool in, float *scratch) {
    static const ClipArena arenas[] = {ARENA_PARAMETERS, ARENA_M, ARENA_V, ARENA_EMA};
    char *at = s->memory;
    if (s->file) rewind(s->file);
    for (int a = 0; a < (clip_has_ema(clip) ? 4 : 3); a++) {
        const bool stored = s->stored[arenas[a]];
        for (int i = 0; i < clip->tensors.count; i++) {
            const Tensor *x = &clip->tensors.list[i];
            if (!snapshot_has(x, arenas[a]) || (!stored && !in)) continue;
            const size_t bytes = x->count * sizeof(float);
            float *values = stored && at ? (float *)(void *)at : scratch;
            if (!in) clip_read(clip, arenas[a], x, values);
            if (stored && !at && in) fread_check(values, bytes, s->file, "the copy of the weights");
            if (stored && !at && !in) fwrite_check(values, bytes, s->file, "the copy of the weights");
            if (!stored) memset(values, 0, bytes);
            if (in) clip_write(clip, arenas[a], x, values);
            if (stored && at) at += bytes;
        }
    }
}

static inline float *snapshot_scratch(const Clip *clip) {
    size_t most = 0;
    for (int i = 0; i < clip->tensors.count; i++)
        if (clip->tensors.list[i].count > most) most = clip->tensors.list[i].count;
    return (float *)malloc_check(most * sizeof(float));
}

// Copies a model that is ready to train; in_file: into a file even where there is memory.
static inline ClipSnapshot snapshot_take(Clip *clip, bool in_file) {
    ClipSnapshot s;
    memset(&s, 0, sizeof s);
    float *scratch = snapshot_scratch(clip);
    size_t bytes = 0;
    for (int arena = ARENA_PARAMETERS; arena <= ARENA_EMA; arena++) {
        const bool moments = arena == ARENA_M || arena == ARENA_V;
        s.stored[arena] = arena == ARENA_PARAMETERS || (arena == ARENA_EMA && clip_has_ema(clip)) ||
                          (moments && !arena_is_zero(clip, (ClipArena)arena, scratch));
        for (int i = 0; s.stored[arena] && i < clip->tensors.count; i++)
            if (snapshot_has(&clip->tensors.list[i], (ClipArena)arena))
                bytes += clip->tensors.list[i].count * sizeof(float);
    }
    if (!in_file && bytes < memory_available()) s.memory = (char *)malloc(bytes ? bytes : 1);
    if (!s.memory && !(s.file = tmpfile()))
        die(EXIT_RUNTIME,
            "a copy of the weights (%.2f GB) fits neither into memory nor into a temporary file; close other "
            "programs",
            (double)bytes / 1e9);
    snapshot_copy(&s, clip, false, scratch);
    free(scratch);
    return s;
}

static inline void snapshot_restore(ClipSnapshot *s, Clip *clip) {
    float *scratch = snapshot_scratch(clip);
    snapshot_copy(s, clip, true, scratch);
    free(scratch);
}

static inline void snapshot_free(ClipSnapshot *s) {
    free(s->memory);
    if (s->file) fclose(s->file);
}

#endif
