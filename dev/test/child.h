// Calls in a child process, for tests of what ends a program: wrong usage, failed assertions, faults. A call
// that uses OpenMP comes before the test program's own first use of it: its threads do not survive a fork.
#ifndef CLIPC_TEST_CHILD_H
#define CLIPC_TEST_CHILD_H

#include "clipc/base/utils.h"
#include "dev/test/test.h"

#include <signal.h>
#include <sys/wait.h>

typedef void (*ChildCall)(const void *argument);

// How the last child ended.
static struct {
    int code;         // its exit code, -1 where a signal ended it
    int signal;       // that signal, 0 where it exited
    char text[65536]; // what it wrote to stdout and stderr, up to this size
} child;

// As child_run(), with stdout and stderr at `to`, which is read from `from`. Closes both files.
static inline int child_run_between(int from, int to, ChildCall call, const void *argument) {
    int status = 0;
    fflush(stdout);
    const pid_t id = fork();
    if (id < 0) die(EXIT_RUNTIME, "fork: %s", strerror(errno));
    if (id == 0) {
        dup2(to, STDOUT_FILENO);
        dup2(to, STDERR_FILENO);
        close(from);
        close(to);
        call(argument);
        fflush(stdout);
        _exit(0); // a call that ends by exit(0) is checked for leaks, where sanitizers do that
    }
    close(to);
    size_t n = 0;
    for (ssize_t got; (got = read(from, child.text + n, sizeof child.text - 1 - n)) > 0;) n += (size_t)got;
    child.text[n] = 0;
    close(from);
    waitpid(id, &status, 0);
    child.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    child.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    return child.code;
}

// Runs call(argument) in a child, which then ends with 0. Fills `child`; returns child.code.
static inline int child_run(ChildCall call, const void *argument) {
    int ends[2];
    if (pipe(ends)) die(EXIT_RUNTIME, "pipe: %s", strerror(errno));
    return child_run_between(ends[0], ends[1], call, argument);
}

// Did the last child end with EXIT_USAGE and exactly one line, which contains `words`?
static inline bool child_refused(const char *words) {
    const char *newline = strchr(child.text, '\n');
    return child.code == EXIT_USAGE && newline && !newline[1] && strstr(child.text, words);
}

// Did the last child end with a failed assertion whose message contains `words`?
static inline bool child_asserted(const char *words) {
    return child.signal == SIGABRT && strstr(child.text, "Assert") && strstr(child.text, words);
}

#define EXPECT_REFUSED(call, argument, words)                                                      \
    do {                                                                                           \
        child_run(call, argument);                                                                 \
        EXPECT(child_refused(words), "exit code %d, '%s' should say '%s' in one line", child.code, \
            child.text, words);                                                                    \
    } while (0)

#ifdef NDEBUG
#define EXPECT_ASSERT(call, argument, words) ((void)(call))
#else
#define EXPECT_ASSERT(call, argument, words)                                                          \
    do {                                                                                              \
        child_run(call, argument);                                                                    \
        EXPECT(child_asserted(words), "%s: exit code %d, '%s' is not an assertion about '%s'", #call, \
            child.code, child.text, words);                                                           \
    } while (0)
#endif

#endif
