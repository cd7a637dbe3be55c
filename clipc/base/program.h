// What every program does at its edges: what it says, how it begins, how it ends. All text that it shows is
// cleaned here.
//
// An error reads `program: what is wrong (where); what to do`. The exit code tells who is at fault:
// EXIT_USAGE (2) for wrong options and wrong input, EXIT_RUNTIME (1) for what failed at run time (disk,
// memory, a child process), EXIT_SIGNAL (128) + the signal that ended it.
#ifndef CLIPC_PROGRAM_H
#define CLIPC_PROGRAM_H

#include "clipc/base/text.h" // make_showable
#include "clipc/base/comm.h" // comm_begin, comm_exit

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#define EXIT_RUNTIME 1
#define EXIT_USAGE 2
#define EXIT_SIGNAL 128

#if defined(__GNUC__)
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#else
#define PRINTF_LIKE(f, a)
#endif

// ---------------------------------------------------------------- messages

// argv[0] as the user typed it; macOS and BSD keep only the name.
static inline const char *program_path(void) {
#ifdef __linux__
    return program_invocation_name;
#else
    return getprogname();
#endif
}

// The name with which messages begin.
static inline const char *program_name(void) {
    const char *path = program_path(), *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// Writes all of it, whatever signals come; false with errno.
static inline bool write_all(int fd, const void *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENOSPC;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

enum { LINE_SIZE = 8192 }; // of a line that is shown, its end included; what is longer is cut

// Writes the text behind the `at` bytes that are in the line already, cleans it and ends it; returns its
// bytes.
static inline size_t line_format(char line[LINE_SIZE], size_t at, const char *format, va_list args) {
    vsnprintf(line + at, LINE_SIZE - 1 - at, format, args);
    make_showable(line);
    const size_t bytes = strlen(line);
    line[bytes] = '\n';
    return bytes + 1;
}

// A line on stderr, in one write: messages of several threads do not mix.
static inline void message_v(const char *format, va_list args) {
    char line[LINE_SIZE];
    int name = snprintf(line, sizeof line, "%.80s: ", program_name());
    if (comm_rank())
        name +=
            snprintf(line + name, sizeof line - (size_t)name, "process %d of %d: ", comm_rank(), comm_size());
    const size_t bytes = line_format(line, (size_t)name, format, args);
    if (ftrylockfile(stdout) == 0) { // what was printed before the message stands before it
        fflush(stdout);
        funlockfile(stdout);
    }
    write_all(STDERR_FILENO, line, bytes);
}

PRINTF_LIKE(1, 2) static inline void warn(const char *format, ...) {
    va_list args;
    if (comm_world.quiet) return;
    va_start(args, format);
    message_v(format, args);
    va_end(args);
}

#ifndef PROGRAM_EXIT
#define PROGRAM_EXIT(code) comm_exit(code) // a harness that goes on after die() puts its own here
#endif

// Ends the program with one message. Any thread may call it, several at once: the first one ends the
// program, the others wait for that. It does not run exit()'s handlers, which the other threads may be
// using the memory of.
#ifdef __cplusplus
[[noreturn]]
#else
_Noreturn
#endif
PRINTF_LIKE(2, 3) static inline void die(int code, const char *format, ...) {
    static bool ending;
    static __thread bool here; // in the thread that ends the program
    while (!here && __atomic_exchange_n(&ending, true, __ATOMIC_ACQ_REL)) pause();
    here = true;
    if (comm_rank()) sleep(1); // where all meet the same error, the first process says so and ends the others
    va_list args;
    va_start(args, format);
    message_v(format, args);
    va_end(args);
    PROGRAM_EXIT(code);
}

// A line on stdout.
PRINTF_LIKE(1, 2) static inline void output(const char *format, ...) {
    char line[LINE_SIZE];
    va_list args;
    va_start(args, format);
    const size_t bytes = line_format(line, 0, format, args);
    va_end(args);
    fwrite(line, 1, bytes, stdout);
}

// ---------------------------------------------------------------- the beginning and the end

// First of all in main(). Descriptors 0 to 2 that are closed are opened, or a checkpoint could become stderr;
// reading or writing them fails as before. A reader of our output that goes away is an error of that write,
// and no signal that ends the program.
static inline void program_begin(void) {
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY); // takes the lowest free one: fd
    signal(SIGPIPE, SIG_IGN);
    if (!comm_begin())
        die(EXIT_USAGE,
            "started as %d processes, but this program is built for one; build it with make MPI=1, or start "
            "it "
            "without mpirun or srun",
            comm_launched());
}

// The exit code of a program whose result is what it printed: EXIT_RUNTIME, with a message, where that could
// not be written.
static inline int program_end(int code) {
    const bool failed = ferror(stdout) != 0;
    errno = 0;
    if (fflush(stdout) == 0 && !failed) return code;
    warn("cannot write the output%s%s%s; send it to a place with free space", errno ? " (" : "",
        errno ? strerror(errno) : "", errno ? ")" : "");
    return code ? code : EXIT_RUNTIME;
}

#endif
