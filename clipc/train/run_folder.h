// The folder of a run: who may write there, what it holds, which checkpoints stay, and whether the disk is
// large enough.
#ifndef CLIPC_RUN_FOLDER_H
#define CLIPC_RUN_FOLDER_H

#include "clipc/base/logger.h"      // Logger
#include "clipc/base/options.h"     // Options
#include "clipc/model/checkpoint.h" // checkpoint_bytes

#include <sys/statvfs.h>

// Where a run writes.
typedef struct {
    char path[PATH_SIZE]; // LOGS/NAME
    char checkpoints[PATH_SIZE];
    char last_saved[PATH_SIZE]; // stem of the checkpoint saved last, or resumed from; "" before there is one
    bool saved;                 // nothing was trained since
    bool best;                  // the model is the best so far, and not yet saved as such
    bool short_of_disk;         // said once
    char *settings;             // as options_print() writes them; part of every checkpoint
    Logger log;
} RunFolder;

// ---------------------------------------------------------------- whose it is

// Takes a run folder for this process; a process that comes second is told so and ends. The lock is on
// out.log: the system takes it away when the process ends, however it ends, and child processes do not have
// it. It also goes when any descriptor of out.log is closed, which only logger_close() does, at the end.
static inline void folder_lock(const char *folder) {
    char path[PATH_SIZE];
    struct flock lock;
    path_format(path, "%s/out.log", folder);
    const int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT) return; // no run has begun here
    if (fd < 0) die(EXIT_RUNTIME, "%s: cannot open (%s)", path, strerror(errno));
    for (;;) {
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_WRLCK;
        if (fcntl(fd, F_SETLK, &lock) == 0) return;
        if (errno != EACCES && errno != EAGAIN) {
            warn("%s: cannot be locked (%s); see to it that no other process writes there", path,
                strerror(errno));
            return;
        }
        if (fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK) continue; // it has just ended
        die(EXIT_USAGE, "%s: process %lld trains there; wait for its end, or stop it with kill %lld", folder,
            (long long)lock.l_pid, (long long)lock.l_pid);
    }
}

// Takes the folder of an earlier run, and brings what it was saving when it ended to an end.
static inline void folder_take(const char *folder) {
    char checkpoints[PATH_SIZE];
    if (!is_directory(folder)) return;
    folder_lock(folder);
    path_format(checkpoints, "%s/checkpoints", folder);
    file_set_recover(checkpoints);
}

// ---------------------------------------------------------------- what it holds

// LOGS/NAME; NAME is by default made of the time, the model, the rate and the batch.
static inline void folder_choose_path(RunFolder *f, Options *o, const Clip *clip) {
    if (!o->name) {
        char when[32], *name = (char *)malloc_check(PATH_SIZE);
        time_t now = time(NULL);
        strftime(when, sizeof when, "%Y_%m_%d-%H_%M_%S", localtime(&now));
        char rate[32] = "auto";
        if (o->lr != RATE_AUTO) snprintf(rate, sizeof rate, "%g", o->lr);
        path_format(name, "%s-%.64s-lr_%s-b_%lld", when, clip->config.name[0] ? clip->config.name : "clip",
            rate, (long long)o->batch_size);
        for (char *p = name; *p; p++)
            if (*p == '/') *p = '-';
        comm_broadcast(name, PATH_SIZE, 0); // of one second
        o->name = o->owned[OPTION_name] = name;
    }
    path_format(f->path, "%s/%s", o->logs, o->name);
    path_format(f->checkpoints, "%s/checkpoints", f->path);
}

// Makes the folder with its log. One that exists is an error, except for a resumed run.
static inline void folder_open(RunFolder *f, bool resume) {
    logger_open(&f->log, f->path, resume);
    if (comm_rank()) return;
    folder_lock(f->path);
    make_directories(f->checkpoints);
    if (file_set_pending(f->checkpoints)) // the checkpoint of --resume was read before its names may change
        die(EXIT_USAGE, "%s: has an unfinished save; give --name %s, so that it is finished first", f->path,
            strrchr(f->path, '/') + 1);
}

// Takes away a folder in which nothing was saved.
static inline void folder_remove(const RunFolder *f) {
    char path[PATH_SIZE];
    static const char *const made[] = {"out.log", "metrics.jsonl"};
    for (int i = 0; i < 2; i++) {
        path_format(path, "%s/%s", f->path, made[i]);
        unlink(path);
    }
    rmdir(f->checkpoints);
    rmdir(f->path);
}

// The options as text, and the number of samples that they stood for. A run that was resumed has those of one
// that was not.
static inline char *settings_text(const Options *o, int64_t samples) {
    char *text = NULL;
    size_t length;
    FILE *f = text_open(&text, &length);
    Options run = *o;
    run.resume = NULL;
    run.resume_override = run.set[OPTION_resume] = run.set[OPTION_resume_override] = false;
    options_print(&run, f);
    if (comm_size() > 1) fprintf(f, "%-28s %d\n", "processes", comm_size());
    fprintf(f, "%-28s %lld\n", "samples", (long long)samples);
    text_close(f);
    return text;
}

// params.txt
static inline void folder_write_settings(const RunFolder *f) {
    char path[PATH_SIZE];
    SafeFile s;
    path_format(path, "%s/params.txt", f->path);
    safe_file_open(&s, path);
    safe_file_write(&s, f->settings, strlen(f->settings));
    safe_file_commit(&s);
}

// ---------------------------------------------------------------- which checkpoints stay

// A numbered checkpoint, epoch_N or step_N.
typedef struct {
    int64_t step;
    char name[64];
} Numbered;

// Reads the file name of the weights of a numbered checkpoint; false for another file.
static inline bool numbered_parse(Numbered *c, const char *file, int64_t steps_per_epoch) {
    static const char *const kinds[] = {"epoch", "step"};
    char name[64];
    for (int kind = 0; kind < 2; kind++) {
        const size_t n = strlen(kinds[kind]);
        if (strncmp(file, kinds[kind], n) != 0 || file[n] != '_') continue;
        const int64_t number = strtoll(file + n + 1, NULL, 10), most = (int64_t)1 << 53;
        snprintf(c->name, sizeof c->name, "%s_%lld", kinds[kind], (long long)number);
        snprintf(name, sizeof name, "%s_%lld.bin", kinds[kind], (long long)number);
        if (number < 0 || number > most / steps_per_epoch || strcmp(file, name) != 0) return false;
        c->step = kind == 0 ? number * steps_per_epoch : number;
        return true;
    }
    return false;
}

// for qsort(): newest first
static inline int numbered_newer(const void *a, const void *b) {
    const Numbered *x = (const Numbered *)a, *y = (const Numbered *)b;
    return x->step != y->step ? (x->step < y->step) - (x->step > y->step) : strcmp(x->name, y->name);
}

// The numbered checkpoints up to `step`, newest first; free() the list. Later ones are left from before the
// run was resumed at an earlier step, and not its concern yet.
static inline Numbered *numbered_list(
    const RunFolder *f, int64_t step, int64_t steps_per_epoch, size_t *count) {
    Numbered *list = NULL;
    size_t capacity = 0;
    *count = 0;
    DIR *d = opendir(f->checkpoints);
    for (struct dirent *e; d && (e = readdir(d));) {
        list_grow((void **)&list, &capacity, *count + 1, sizeof *list);
        if (numbered_parse(&list[*count], e->d_name, steps_per_epoch) && list[*count].step <= step) ++*count;
    }
    if (d) closedir(d);
    if (*count) qsort(list, *count, sizeof *list, numbered_newer);
    return list;
}

static inline bool folder_delete(const RunFolder *f, const char *name, const char *ending) {
    char path[PATH_SIZE];
    path_format(path, "%s/%s%s", f->checkpoints, name, ending);
    if (unlink(path) == 0 || errno == ENOENT) return true;
    warn("%s: cannot be removed (%s)", path, strerror(errno));
    return false;
}

// Deletes what --keep-checkpoints and --keep-states do not keep of the numbered checkpoints up to `step`;
// never the one saved last. What a kill or a failure leaves over, the next call deletes: it goes by the .bin
// files, so they come last.
static inline void folder_prune(const RunFolder *f, const Options *o, int64_t step, int64_t steps_per_epoch) {
    const int64_t keep = o->delete_previous_checkpoint ? 1 : o->keep_checkpoints;
    size_t count;
    Numbered *list = numbered_list(f, step, steps_per_epoch, &count);
    const char *slash = strrchr(f->last_saved, '/'), *last = slash ? slash + 1 : f->last_saved;
    for (size_t i = 0; i < count; i++) {
        const bool whole = keep > 0 && (int64_t)i >= keep;
        if (strcmp(list[i].name, last) == 0) continue;
        if (!whole && (o->keep_states == 0 || (int64_t)i < o->keep_states)) continue;
        if (folder_delete(f, list[i].name, ".state") && whole && folder_delete(f, list[i].name, "_ema.bin"))
            folder_delete(f, list[i].name, ".bin");
    }
    free(list);
}

// ---------------------------------------------------------------- the disk

// "1.81 GB", "0.3 MB"
static inline void bytes_format(char text[32], double bytes) {
    if (bytes < 1e9) snprintf(text, 32, "%.1f MB", bytes / 1e6);
    else snprintf(text, 32, "%.2f GB", bytes / 1e9);
}

// How many numbered checkpoints the run saves in its first `step` steps, at most.
static inline int64_t numbered_saves(const Options *o, int64_t step, int64_t steps_per_epoch) {
    const int64_t epochs = step / steps_per_epoch, every = share_of(o->save_steps, steps_per_epoch);
    int64_t count = 1; // at the end
    if (o->save_frequency > 0) count += epochs / o->save_frequency;
    if (o->save_steps.value > 0)
        count += o->save_steps.percent ? (epochs + 1) * (steps_per_epoch / max_i64(1, every))
                                       : step / max_i64(1, every);
    return min_i64(count, max_i64(1, step));
}

// Bytes of the checkpoints that a run of `steps` steps leaves, and of the one being written beside them, at
// most; latest is a link.
static inline double folder_bytes(
    const Options *o, CheckpointBytes each, int64_t steps, int64_t steps_per_epoch, bool best) {
    const int64_t keep = o->delete_previous_checkpoint ? 1 : o->keep_checkpoints;
    int64_t weights = numbered_saves(o, steps, steps_per_epoch);
    if (keep > 0) weights = min_i64(weights, keep);
    const int64_t states = o->keep_states > 0 ? min_i64(weights, o->keep_states) : weights;
    return (double)(weights + best + 1) * (double)each.weights +
           (double)(states + best + 1) * (double)each.state;
}

// Bytes of the files in the folder of checkpoints. A file with several names counts once.
static inline double folder_used(const RunFolder *f) {
    char path[PATH_SIZE];
    struct stat st;
    double bytes = 0;
    DIR *d = opendir(f->checkpoints);
    for (struct dirent *e; d && (e = readdir(d));) {
        path_format(path, "%s/%s", f->checkpoints, e->d_name);
        if (lstat(path, &st) == 0 && S_ISREG(st.st_mode)) bytes += (double)st.st_size / (double)st.st_nlink;
    }
    if (d) closedir(d);
    return bytes;
}

// Bytes free on the disk of the run folder; infinite where the system does not tell.
static inline double folder_free(const RunFolder *f) {
    struct statvfs disk;
    if (statvfs(f->path, &disk) || disk.f_blocks == 0) return INFINITY;
    return (double)disk.f_bavail * (double)disk.f_frsize;
}

#endif
