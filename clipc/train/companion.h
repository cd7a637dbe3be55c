// A companion process: a script that follows the run folder while the run goes on (--report-to wandb). Its
// standard input is a pipe that the run only holds open: when the run ends, in whatever way, the companion
// reads the end of it, finishes and goes. Nothing that it does or fails at touches the run.
#ifndef CLIPC_COMPANION_H
#define CLIPC_COMPANION_H

#include "clipc/base/logger.h" // logger_print, logger_warn

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

enum { COMPANION_WAIT = 60 }; // seconds that the end of a run waits for what the companion still has to send

typedef struct {
    pid_t pid; // 0: none runs
    int pipe;  // kept open as long as the run lives
    char script[PATH_SIZE], folder[PATH_SIZE];
} Companion;

// dev/NAME beside the program, above its folder (build/…), or in the working directory; false when it is
// nowhere.
static inline bool companion_script(char path[PATH_SIZE], const char *name) {
    char program[PATH_SIZE];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    program[n > 0 ? n : 0] = 0;
    for (char *slash; (slash = strrchr(program, '/'));) {
        *slash = 0;
        path_format(path, "%s/dev/%s", program, name);
        if (file_exists(path)) return true;
    }
    path_format(path, "dev/%s", name);
    return file_exists(path);
}

// Starts `python3 dev/NAME FOLDER --project PROJECT` in a process group of its own, so that Ctrl-C reaches
// the run alone. What hinders it is one line, and the run goes on.
static inline void companion_start(
    Companion *c, Logger *log, const char *name, const char *folder, const char *project) {
    int ends[2];
    memset(c, 0, sizeof *c);
    path_format(c->folder, "%s", folder);
    if (!companion_script(c->script, name)) {
        logger_warn(log, "dev/%s is not there; the run goes on without it", name);
        return;
    }
    if (pipe(ends)) {
        logger_warn(log, "%s: no pipe (%s); the run goes on without it", c->script, strerror(errno));
        return;
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_adddup2(&files, ends[0], STDIN_FILENO);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    const char *const arguments[] = {"python3", c->script, folder, "--project", project, NULL};
    const int error =
        posix_spawnp(&c->pid, "python3", &files, &attributes, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    close(ends[0]);
    c->pipe = ends[1];
    if (!error) return;
    close(c->pipe);
    c->pid = 0;
    logger_warn(
        log, "python3 cannot be started (%s); the run goes on without %s", strerror(error), c->script);
}

// Has it ended by itself? Then one line says how to catch up, unless it ended well.
static inline void companion_check(Companion *c, Logger *log) {
    int status = 0;
    if (!c->pid || waitpid(c->pid, &status, WNOHANG) == 0) return;
    c->pid = 0;
    close(c->pipe);
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        logger_warn(log, "%s has ended; the run goes on, afterwards it can be reported with: python3 %s %s",
            c->script, c->script, c->folder);
}

// Tells it that the run is over, and waits for what it still has to send.
static inline void companion_stop(Companion *c, Logger *log) {
    if (!c->pid) return;
    close(c->pipe);
    const struct timespec pause = {0, 100 * 1000 * 1000};
    const double start = seconds_now();
    while (c->pid && waitpid(c->pid, NULL, WNOHANG) == 0 && seconds_now() - start < COMPANION_WAIT)
        nanosleep(&pause, NULL);
    if (seconds_now() - start < COMPANION_WAIT) c->pid = 0;
    if (!c->pid) return;
    logger_warn(log, "%s does not come to an end; it is left alone, process %ld", c->script, (long)c->pid);
    c->pid = 0;
}

#endif
