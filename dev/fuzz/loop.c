// The engine of `make fuzz` where clang's libFuzzer is not there: reads the corpus, then changes its inputs
// at random for a while. It is blind: it does not see which code an input reaches.
//   HARNESS [-max_total_time=SECONDS] [-seed=N] [-max_len=N] [-artifact_prefix=PREFIX] FILE|FOLDER…
// The options are libFuzzer's; of others it takes no notice. Without a time each file is read once. The input
// that crashes is written to PREFIXcrash.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "clipc/base/utils.h"

#include <signal.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct {
    uint8_t *data; // (size)
    size_t size;
} Input;

static Input *corpus; // (corpus_count)
static size_t corpus_count, corpus_capacity;
static Input now; // the one that is being read
static char crash_path[PATH_SIZE];

static void corpus_add(const char *path) {
    list_grow((void **)&corpus, &corpus_capacity, corpus_count + 1, sizeof *corpus);
    Input *input = &corpus[corpus_count++];
    input->data = (uint8_t *)file_read_all(path, &input->size);
}

static bool any_name(const char *name) { return name[0] != 0; }

// Runs the reader on a copy that ends where its memory ends.
static void execute(const uint8_t *data, size_t size) {
    now.data = (uint8_t *)malloc_check(size);
    now.size = size;
    memcpy(now.data, data, size);
    LLVMFuzzerTestOneInput(now.data, now.size);
    free(now.data);
    now.data = NULL;
}

static void keep_crash(void) {
    const int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || !now.data) return;
    if (write(fd, now.data, now.size) != (ssize_t)now.size) unlink(crash_path);
    close(fd);
}

static void on_abort(int number) {
    keep_crash();
    signal(number, SIG_DFL);
    raise(number);
}

#ifdef CLIPC_GUARDS // AddressSanitizer ends the program by itself
#include <sanitizer/common_interface_defs.h>
static void watch_crashes(void) {
    __sanitizer_set_death_callback(keep_crash);
    signal(SIGABRT, on_abort);
}
#else
static void watch_crashes(void) {
    const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) signal(numbers[i], on_abort);
}
#endif

// ---------------------------------------------------------------- changing an input

static size_t below(Rand *r, size_t n) { return n ? (size_t)rand_below(r, n) : 0; }

// Numbers at which lengths and counts go wrong, as 1, 2, 4 or 8 bytes.
static size_t put_number(uint8_t *data, size_t size, Rand *r) {
    static const int64_t numbers[] = {0, 1, -1, 2, 3, 4, 7, 8, 16, 63, 64, 127, 128, 255, 256, 4096, 32767,
        65535, 65536, INT32_MAX, INT32_MIN, UINT32_MAX, INT64_MAX, INT64_MIN};
    const size_t bytes = (size_t)1 << below(r, 4);
    const int64_t number = numbers[below(r, sizeof numbers / sizeof *numbers)];
    if (size >= bytes) memcpy(data + below(r, size - bytes + 1), &number, bytes); // little-endian
    return size;
}

// One change, in place; `data` has room for `most` bytes. Returns the new size.
static size_t change(uint8_t *data, size_t size, size_t most, Rand *r) {
    const size_t at = below(r, size), n = 1 + below(r, size - at < 32 ? size - at : 32);
    const Input *other = &corpus[below(r, corpus_count)];
    size_t from, bytes;
    switch (below(r, 8)) {
    case 0: // a bit
        if (size) data[at] ^= (uint8_t)(1 << below(r, 8));
        return size;
    case 1: // a byte
        if (size) data[at] = (uint8_t)rand_u64(r);
        return size;
    case 2: return put_number(data, size, r);
    case 3: return at; // cut off
    case 4:            // take some bytes out
        if (at + n > size) return size;
        memmove(data + at, data + at + n, size - at - n);
        return size - n;
    case 5: // double some bytes
        if (at + n > size || size + n > most) return size;
        memmove(data + at + n, data + at, size - at);
        return size + n;
    case 6: // put in some bytes
        if (size + n > most) return size;
        memmove(data + at + n, data + at, size - at);
        for (size_t i = 0; i < n; i++) data[at + i] = (uint8_t)rand_u64(r);
        return size + n;
    default: // a piece of another input, over or at the end of this one
        from = below(r, other->size);
        bytes = below(r, other->size - from + 1);
        if (at + bytes > most) return size;
        memcpy(data + at, other->data + from, bytes);
        return at + bytes > size ? at + bytes : size;
    }
}

static void mutate_for(double seconds, uint64_t seed, size_t most, int64_t *executions) {
    uint8_t *data = (uint8_t *)malloc_check(most);
    Rand r = rand_for(seed, 0, 0);
    for (const double start = seconds_now(); seconds_now() - start < seconds; ++*executions) {
        const Input *input = &corpus[below(&r, corpus_count)];
        size_t size = input->size < most ? input->size : most;
        memcpy(data, input->data, size);
        for (size_t n = 1 + below(&r, 4); n > 0; n--) size = change(data, size, most, &r);
        execute(data, size);
    }
    free(data);
}

int main(int argc, char **argv) {
    double seconds = 0;
    uint64_t seed = 1;
    size_t most = 4096;
    int64_t executions = 0;
    snprintf(crash_path, sizeof crash_path, "crash");
    for (int i = 1; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        if (strncmp(argv[i], "-max_total_time=", 16) == 0) seconds = atof(value + 1);
        else if (strncmp(argv[i], "-seed=", 6) == 0) seed = strtoull(value + 1, NULL, 10);
        else if (strncmp(argv[i], "-max_len=", 9) == 0) most = strtoull(value + 1, NULL, 10);
        else if (strncmp(argv[i], "-artifact_prefix=", 17) == 0)
            path_format(crash_path, "%scrash", value + 1);
        else if (argv[i][0] != '-' && is_directory(argv[i])) {
            StringList files = {NULL, 0, 0};
            list_files(argv[i], any_name, &files, NULL);
            for (size_t k = 0; k < files.count; k++) corpus_add(files.list[k]);
            string_list_free(&files);
        } else if (argv[i][0] != '-') corpus_add(argv[i]);
    }
    watch_crashes();
    LLVMFuzzerInitialize(&argc, &argv);
    for (size_t i = 0; i < corpus_count; i++, executions++) execute(corpus[i].data, corpus[i].size);
    if (seconds > 0 && corpus_count) mutate_for(seconds, seed, most, &executions);
    fprintf(stderr, "stat::number_of_executed_units: %lld\n", (long long)executions);
    for (size_t i = 0; i < corpus_count; i++) free(corpus[i].data);
    free(corpus);
    return 0;
}
