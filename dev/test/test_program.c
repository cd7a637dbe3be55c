// What programs do at their edges: text of others that is shown, messages, die() from several threads,
// streams that are closed, files that a stranger left in the way.
#include "clipc/base/safe_file.h"
#include "dev/test/child.h"
#include "dev/test/test.h"

#include <pthread.h>
#include <sys/time.h>

static char folder[] = "/tmp/test_program_XXXXXX";

// ---------------------------------------------------------------- text

static void test_no_text_of_others_reaches_a_terminal_as_control(void) {
    static const char *const pairs[][2] = {{"plain ASCII ~", "plain ASCII ~"},
        {"größe 日本 🙂", "größe 日本 🙂"}, {"\x1b[2J\x1b]0;title\x07", "?[2J?]0;title?"},
        {"a\tb\nc\rd", "a b c d"}, {"\x7f\x01", "??"},
        {"\xc2\x9b"
         "31m \xc2\x80\xc2\x9f\xc2\xa0",
            "?31m ??\xc2\xa0"},
        {"\x9b"
         "31m",
            "?31m"},
        {"a\xe2\x80\xaegpj.exe", "a?gpj.exe"}, {"\xe2\x80\xaa\xe2\x81\xa6\xe2\x81\xa9\xe2\x80\xa8", "????"},
        {"caf\xe9", "caf?"}, {"\xed\xa0\x80", "???"}, {"\xc0\xaf", "??"}, {"cut \xe2\x80", "cut ?"},
        {"", ""}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s", pairs[i][0]);
        make_showable(text);
        EXPECT_STRING(text, pairs[i][1]);
        EXPECT(is_showable(text), "'%s'", text);
        EXPECT(is_showable(pairs[i][0]) == (strcmp(text, pairs[i][0]) == 0), "'%s'", text);
    }
}

// Random bytes, many of them special.
static void random_text(Rand *r, char text[64]) {
    static const char special[] = "\\'\"x0aft \n\t\x1b\x9b\xc2\xe2\x80\xae\xf0";
    const size_t n = rand_below(r, 63);
    for (size_t i = 0; i < n; i++)
        text[i] =
            rand_below(r, 2) ? special[rand_below(r, sizeof special - 1)] : (char)(1 + rand_below(r, 255));
    text[n] = 0;
}

static char *written(void write(FILE *f, const char *text), const char *text) {
    char *out = NULL;
    size_t n;
    FILE *f = open_memstream(&out, &n);
    write(f, text);
    fclose(f);
    return out;
}

static void test_settings_read_back_and_can_be_shown(void) {
    Rand r = rand_for(1, 2, 3);
    for (int i = 0; i < 2000; i++) {
        char text[64];
        random_text(&r, text);
        char *line = written(print_escaped, text);
        EXPECT(is_showable(line), "'%s'", line);
        unescape(line);
        EXPECT(strcmp(line, text) == 0, "'%s' does not read back", line);
        free(line);
    }
}

static void test_words_for_a_shell_read_back_and_can_be_shown(void) {
    Rand r = rand_for(4, 5, 6);
    for (int i = 0; i < 40; i++) {
        char text[64], command[PATH_SIZE], out[128];
        random_text(&r, text);
        char *word = written(shell_word, text);
        EXPECT(is_showable(word), "'%s'", word);
        const char *const shell[] = {"bash", "-c", command, NULL};
        Process p;
        int status;
        path_format(command, "printf %%s%s", word);
        EXPECT(process_start(&p, shell, STDOUT_FILENO, false) == 0);
        FILE *f = fdopen(dup(p.pipe), "rb");
        const size_t n = fread(out, 1, sizeof out - 1, f);
        out[n] = 0;
        fclose(f);
        process_wait(&p, true, &status);
        EXPECT(strcmp(out, text) == 0, "'%s' became '%s'", word, out);
        free(word);
    }
}

static void say_name(const void *argument) { warn("it is %s", (const char *)argument); }

static void long_name(const void *argument) {
    static char name[8193];
    memset(name, *(const char *)argument, sizeof name - 1);
#ifdef __linux__
    program_invocation_name = name;
#endif
    warn("%s", name);
    die(EXIT_USAGE, "the end");
}

static void test_messages_are_one_clean_line_whatever_is_in_them(void) {
    child_run(say_name, "\x1b[31m\nforged: line");
    EXPECT(strstr(child.text, "it is ?[31m forged: line\n") && !strchr(child.text, 27), "'%s'", child.text);
    child_run(long_name, "x");
    EXPECT(child.code == EXIT_USAGE && strstr(child.text, ": the end\n"), "exit %d, '%.100s'", child.code,
        child.text);
}

// ---------------------------------------------------------------- the end

static pthread_barrier_t all_ready;

static void *die_now(void *argument) {
    pthread_barrier_wait(&all_ready);
    die(3, "thread %d fails", (int)(intptr_t)argument);
}

static void die_in_threads(const void *argument) {
    enum { MOST = 16 };
    pthread_t threads[MOST];
    (void)argument;
    pthread_barrier_init(&all_ready, NULL, MOST);
    for (int i = 0; i < MOST; i++) pthread_create(&threads[i], NULL, die_now, (void *)(intptr_t)i);
    for (int i = 0; i < MOST; i++) pthread_join(threads[i], NULL);
}

static void test_threads_that_fail_at_once_end_the_program_once(void) {
    for (int i = 0; i < 20; i++) {
        child_run(die_in_threads, NULL);
        const char *newline = strchr(child.text, '\n');
        EXPECT(child.code == 3 && newline && !newline[1], "exit %d, '%s'", child.code, child.text);
    }
}

static void handler_must_not_run(void) { abort(); }

static void *hold_stdout(void *argument) {
    flockfile(stdout);
    pthread_barrier_wait(&all_ready);
    sleep(60);
    return argument;
}

static void die_while_stdout_is_held(const void *argument) {
    pthread_t thread;
    (void)argument;
    atexit(handler_must_not_run); // it would use what the other threads use
    pthread_barrier_init(&all_ready, NULL, 2);
    pthread_create(&thread, NULL, hold_stdout, NULL);
    pthread_barrier_wait(&all_ready);
    die(4, "the other thread holds stdout");
}

static void test_die_waits_for_no_lock_and_runs_no_handler(void) {
    const double start = seconds_now();
    child_run(die_while_stdout_is_held, NULL);
    EXPECT(child.code == 4 && strstr(child.text, "holds stdout\n"), "exit %d, '%s'", child.code, child.text);
    EXPECT(seconds_now() - start < 20, "%g s", seconds_now() - start);
}

// ---------------------------------------------------------------- streams

static void begin_without_streams(const void *argument) {
    const int result = dup(STDOUT_FILENO);
    char byte;
    (void)argument;
    for (int fd = 0; fd < 3; fd++) close(fd);
    program_begin();
    const int next = dup(result);
    printf("text");
    dprintf(result, "%d %d %d %d", next > 2, write(STDERR_FILENO, "x", 1) < 0,
        read(STDIN_FILENO, &byte, 1) < 0, program_end(0));
    _exit(0);
}

static void test_closed_streams_are_filled_and_still_fail(void) {
    child_run(begin_without_streams, NULL);
    EXPECT_STRING(child.text, "1 1 1 1");
}

static void nothing(int number) { (void)number; }

static void *read_slowly(void *argument) {
    static char block[4096];
    size_t total = 0;
    sigset_t alarm; // is for the writer
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, NULL);
    for (ssize_t n; (n = read(((int *)argument)[0], block, sizeof block)) != 0;) {
        total += n > 0 ? (size_t)n : 0;
        usleep(200);
    }
    return (void *)total;
}

static void test_signals_do_not_cut_what_is_written(void) {
    enum { BYTES = 1 << 21 };
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    struct sigaction action;
    int ends[2];
    void *total;
    pthread_t thread;
    char *data = (char *)calloc_check(BYTES, 1);
    memset(&action, 0, sizeof action);
    action.sa_handler = nothing; // without SA_RESTART: the write is interrupted
    EXPECT(pipe(ends) == 0);
    pthread_create(&thread, NULL, read_slowly, ends);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    const bool whole = write_all(ends[1], data, BYTES);
    setitimer(ITIMER_REAL, &never, NULL);
    close(ends[1]);
    pthread_join(thread, &total);
    EXPECT(whole && (size_t)total == BYTES, "%zu of %d", (size_t)total, BYTES);
    close(ends[0]);
    free(data);
}

static void test_started_programs_die_of_broken_pipes_as_usual(void) {
    const char *const shell[] = {"/bin/sh", "-c", "kill -PIPE $$", NULL};
    Process p;
    int status;
    program_begin();
    EXPECT(process_start(&p, shell, -1, false) == 0);
    process_wait(&p, true, &status);
    EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE, "status %d", status);
}

// ---------------------------------------------------------------- files in the way

static void path_of(char path[PATH_SIZE], const char *name) { path_format(path, "%s/%s", folder, name); }

static void test_planted_links_are_not_written_through(void) {
    char precious[PATH_SIZE], target[PATH_SIZE], part[PATH_SIZE];
    path_of(precious, "precious");
    path_of(target, "file");
    path_of(part, "file.part");
    FILE *f = fopen_check(precious, "wb");
    fputs("precious", f);
    fclose(f);
    EXPECT(symlink(precious, part) == 0 && symlink(precious, target) == 0);
    SafeFile s;
    safe_file_open(&s, target);
    safe_file_write(&s, "new", 3);
    safe_file_commit(&s);
    char *text = file_read_all(precious, NULL);
    EXPECT_STRING(text, "precious");
    free(text);
    text = file_read_all(target, NULL);
    EXPECT_STRING(text, "new");
    free(text);
    unlink(target);
    EXPECT(symlink(precious, target) == 0 && file_append(target, O_WRONLY) < 0 && errno == ELOOP,
        "appended to a link");
    unlink(target);
    EXPECT(mkfifo(target, 0600) == 0 && file_append(target, O_RDWR) < 0, "appended to a pipe");
    unlink(target);
    unlink(precious);
}

int main(void) {
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: %s", folder, strerror(errno));
    RUN(test_no_text_of_others_reaches_a_terminal_as_control);
    RUN(test_settings_read_back_and_can_be_shown);
    RUN(test_words_for_a_shell_read_back_and_can_be_shown);
    RUN(test_messages_are_one_clean_line_whatever_is_in_them);
    RUN(test_threads_that_fail_at_once_end_the_program_once);
    RUN(test_die_waits_for_no_lock_and_runs_no_handler);
    RUN(test_closed_streams_are_filled_and_still_fail);
    RUN(test_signals_do_not_cut_what_is_written);
    RUN(test_started_programs_die_of_broken_pipes_as_usual);
    RUN(test_planted_links_are_not_written_through);
    rmdir(folder);
    return test_report();
}
