// What happens to a file of cached images: flipped bits, cut and hostile files, kills and full disks, other
// runs at the same time. A run is told, or decodes the images itself; it never trains on other pixels.
#include "dev/test/image_cache.h"

#include <sys/resource.h>

#ifdef _OPENMP
#include <omp.h>
#else
static void omp_set_num_threads(int n) { (void)n; }
#endif

static char *whole; // (whole_bytes) an undamaged file
static size_t whole_bytes, whole_images;

enum { DIFFERENT = 3, UNREADABLE = 4 }; // exit codes of children

// Each child opens the table of set/ with the cache.
typedef struct {
    const char *data;
    bool crops;
    void (*under_the_run)(void); // after the cache was opened; NULL: nothing
} Use;

static AugmentConfig crops;
static const Use squares = {"set/t.csv", false, NULL};

// Two epochs with the cache are those without.
static void use_cache(const void *argument) {
    const Use *u = (const Use *)argument;
    LoaderConfig c = loading(u->crops ? &crops : NULL, false);
    char spec[PATH_SIZE];
    path_format(spec, "%s/%s", folder, u->data);
    omp_set_num_threads(1); // a child has none of OpenMP's threads
    Dataset d = open_data(spec);
    const ImageSettings k = keeping(&c);
    const uint64_t plain = run(&d, &c);
    ImageCache cache;
    if (!image_cache_open(&cache, at("kept"), &d, &k, NULL)) exit(UNREADABLE);
    c.cache = &cache;
    for (int i = 0; i < 2; i++) {
        if (run(&d, &c) != plain) exit(DIFFERENT);
        if (u->under_the_run) u->under_the_run();
    }
    printf("%zu images\n", cache.count);
    image_cache_close(&cache);
    dataset_free(&d);
}

static void restore(void) { write_file(at("kept"), whole, whole_bytes); }

// The run has the same batches as without the cache, and says what is in `says` ("": nothing) in one line.
static void expect_same(const Use *u, const char *says, const char *what) {
    char *line;
    const int code = child_run(use_cache, u);
    const char *images = strstr(child.text, " images\n");
    EXPECT(code == 0 && images, "%s: exit code %d, signal %d: %s", what, code, child.signal, child.text);
    if (says[0]) {
        line = strstr(child.text, says);
        EXPECT(line && !strstr(line + 1, says), "%s: '%s' should say '%s' once", what, child.text, says);
    } else EXPECT(!strstr(child.text, "test_image"), "%s: %s", what, child.text);
}

static size_t images_now(void) {
    const char *end = strstr(child.text, " images\n");
    while (end && end > child.text && end[-1] >= '0' && end[-1] <= '9') end--;
    return end ? strtoull(end, NULL, 10) : 0;
}

static void make_whole(void) {
    unlink(at("kept"));
    expect_same(&squares, "", "a new file");
    whole_images = images_now();
    whole = file_read_all(at("kept"), &whole_bytes);
    EXPECT(whole_images == SAMPLES - 7 && whole_bytes % SEGMENT_UNIT == 0, "%zu", whole_images);
}

static ImageEntry *whole_entries(char *file) {
    return (ImageEntry *)(void *)(file + whole_bytes - whole_images * sizeof(ImageEntry));
}

// Checksums of the only segment of a file like `whole`, after its table was changed.
static void seal(char *file) {
    ImagesSegment h;
    memcpy(&h, file + sizeof(ImagesHeader), sizeof h);
    h.table_crc = crc_of(whole_entries(file), whole_images * sizeof(ImageEntry));
    h.crc = crc_of(&h, offsetof(ImagesSegment, crc));
    memcpy(file + sizeof(ImagesHeader), &h, sizeof h);
}

// ---------------------------------------------------------------- before the run

static void test_a_flipped_bit_is_told_or_makes_no_difference(void) {
    enum { FLIPS = 150 };
    char *file = (char *)malloc_check(whole_bytes);
    Rand r = rand_for(3, 0, 0);
    int told = 0;
    for (int i = 0; i < FLIPS; i++) {
        size_t at_byte = rand_below(&r, whole_bytes); // pixels, mostly
        if (i % 4 == 0) at_byte = rand_below(&r, sizeof(ImagesHeader) + sizeof(ImagesSegment));
        if (i % 4 == 1) at_byte = whole_bytes - 1 - rand_below(&r, whole_images * sizeof(ImageEntry));
        memcpy(file, whole, whole_bytes);
        file[at_byte] = (char)(file[at_byte] ^ 1 << (i / 4 % 8));
        write_file(at("kept"), file, whole_bytes);
        const int code = child_run(use_cache, &squares);
        EXPECT(code == 0 || child_refused("; remove it") || child_refused("is not a file of images") ||
                   child_refused("give --cache-images another name"),
            "byte %zu: exit code %d, signal %d: %s", at_byte, code, child.signal, child.text);
        told += strstr(child.text, "test_image_cache_damage: ") != NULL;
    }
    EXPECT(told > FLIPS / 2, "%d", told);
    free(file);
}

static void test_a_damaged_image_is_named_and_decoded(void) {
    char *file = (char *)malloc_check(whole_bytes);
    memcpy(file, whole, whole_bytes);
    file[whole_entries(file)[5].offset + 77] ^= 4;
    write_file(at("kept"), file, whole_bytes);
    expect_same(&squares, "kept: is damaged, or was changed while this run uses it", "a pixel");
    free(file);
}

// Tables with right checksums, as an attacker writes them, and what is no table at all.
static void test_impossible_entries_are_refused(void) {
    char *file = (char *)malloc_check(whole_bytes);
    for (int i = 0; i < 9; i++) {
        memcpy(file, whole, whole_bytes);
        ImageEntry e = whole_entries(file)[2];
        if (i == 0) e.width = 0;
        if (i == 1) e.width = e.height = 0;
        if (i == 2) e.width = SIZE + 1;
        if (i == 3) e.width = e.height = INT32_MAX;
        if (i == 4) e.height = -SIZE;
        if (i == 5) e.offset = (int64_t)whole_bytes - 10;
        if (i == 6) e.offset = -5;
        if (i == 7) e.offset = INT64_MAX - 3;
        if (i == 8) e.offset = 0;
        memcpy(&whole_entries(file)[2], &e, sizeof e);
        write_file(at("kept"), file, whole_bytes);
        EXPECT_REFUSED(use_cache, &squares, "is damaged; remove it");
        seal(file);
        write_file(at("kept"), file, whole_bytes);
        EXPECT_REFUSED(use_cache, &squares, "is damaged; remove it");
    }
    const int64_t heads[][2] = {{-64, 1}, {64, INT64_MAX}, {64, 100}, {INT64_MAX - 63, 1}, {16, 0}, {100, 1}};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        ImagesSegment h = {SEGMENT_MAGIC, 0, heads[i][0], heads[i][1], 0, 0};
        h.crc = crc_of(&h, offsetof(ImagesSegment, crc));
        memcpy(file, whole, whole_bytes);
        memcpy(file + sizeof(ImagesHeader), &h, sizeof h);
        write_file(at("kept"), file, whole_bytes);
        if (i == 3) expect_same(&squares, "ends within its last", "a segment larger than the file");
        else EXPECT_REFUSED(use_cache, &squares, "is damaged; remove it");
    }
    free(file);
}

static void test_other_files_are_refused_and_left_alone(void) {
    const int32_t old[16] = {IMAGES_MAGIC, 1};
    write_file(at("kept"), old, sizeof old);
    EXPECT_REFUSED(use_cache, &squares, "was written by another version of the program; remove it");
    write_text(at("kept"), "something else that is long enough for a header, and then some more of it ...");
    EXPECT_REFUSED(use_cache, &squares, "is not a file of images; give --cache-images another name");
    write_text(at("kept"), "short");
    EXPECT_REFUSED(use_cache, &squares, "is not a file of images");
    size_t bytes;
    char *text = file_read_all(at("kept"), &bytes);
    EXPECT_STRING(text, "short");
    free(text);
    unlink(at("kept"));
    if (mkfifo(at("kept"), 0600)) die(EXIT_RUNTIME, "mkfifo");
    EXPECT_REFUSED(use_cache, &squares, "is not a regular file");
    unlink(at("kept"));
    make_directories(at("kept"));
    EXPECT(child_run(use_cache, &squares) == EXIT_RUNTIME && strstr(child.text, "cannot open ("), "%s",
        child.text);
    rmdir(at("kept"));
}

// What a kill or a full disk leaves: everything up to the last segment with a head is used.
static void test_a_cut_file_is_completed(void) {
    const size_t segment = sizeof(ImagesHeader);
    const size_t cuts[] = {
        0, segment, segment + 1, segment + sizeof(ImagesSegment), whole_bytes / 2, whole_bytes - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        write_file(at("kept"), whole, cuts[i]);
        expect_same(&squares, i < 3 ? "" : "ends within its last", "cut");
        EXPECT(images_now() == whole_images, "cut to %zu: %zu images", cuts[i], images_now());
        expect_same(&squares, "", "completed");
    }
    write_file(at("kept"), whole, 10);
    EXPECT_REFUSED(use_cache, &squares, "is damaged; remove it");
    const ImagesSegment unwritten = {0, 0, 0, 0, 0, 0};
    char *torn = (char *)calloc_check(whole_bytes + 5000, 1); // killed within the second segment
    memcpy(torn, whole, whole_bytes);
    memcpy(torn + whole_bytes, &unwritten, sizeof unwritten);
    memset(torn + whole_bytes + sizeof unwritten, 0x55, 5000 - sizeof unwritten);
    write_file(at("kept"), torn, whole_bytes + 5000);
    expect_same(&squares, "", "a torn second segment");
    EXPECT(images_now() == whole_images);
    const Use shards = {"set/s0.tar", false, NULL};
    write_file(at("kept"), torn, whole_bytes + 5000);
    expect_same(&shards, "", "a segment in place of a torn one");
    EXPECT(images_now() == whole_images + SAMPLES - 2, "%zu", images_now());
    expect_same(&squares, "", "both data sets");
    EXPECT(images_now() == whole_images + SAMPLES - 2, "%zu", images_now());
    free(torn);
}

static void use_on_full_disk(const void *argument) {
    const struct rlimit limit = {20000, 20000};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    use_cache(argument);
}

static void test_a_full_disk_leaves_a_file_that_is_completed(void) {
    unlink(at("kept"));
    const int code = child_run(use_on_full_disk, &squares);
    EXPECT(code == EXIT_RUNTIME && strstr(child.text, "kept: cannot write (") &&
               strstr(child.text, "free some space"),
        "%d: %s", code, child.text);
    expect_same(&squares, "", "after a full disk");
    EXPECT(images_now() == whole_images);
}

static void open_interrupted(const void *argument) {
    const volatile sig_atomic_t interrupted = 1;
    const LoaderConfig c = loading(NULL, false);
    Dataset d = open_data(at("set/t.csv"));
    const ImageSettings k = keeping(&c);
    ImageCache cache;
    (void)argument;
    omp_set_num_threads(1);
    if (image_cache_open(&cache, at("kept"), &d, &k, &interrupted)) exit(UNREADABLE);
    dataset_free(&d);
}

static void test_an_interrupted_cache_is_completed(void) {
    unlink(at("kept"));
    EXPECT(child_run(open_interrupted, NULL) == 0 && !child.text[0], "%s", child.text);
    expect_same(&squares, "", "after Ctrl-C");
    EXPECT(images_now() == whole_images);
    expect_same(&squares, "", "again");
}

// ---------------------------------------------------------------- under the run

static void empty_it(void) {
    if (truncate(at("kept"), 0)) die(EXIT_RUNTIME, "truncate");
}
static void cut_it(void) {
    if (truncate(at("kept"), (off_t)whole_bytes / 2)) die(EXIT_RUNTIME, "truncate");
}
static void remove_it(void) { unlink(at("kept")); }
static void replace_it(void) {
    write_file(at("other"), "nothing", 7);
    if (rename(at("other"), at("kept"))) die(EXIT_RUNTIME, "rename");
}
// Another run makes a cache of other pixels in the same file, its images elsewhere.
static void fill_it_anew(void) {
    char *file = (char *)malloc_check(whole_bytes);
    memcpy(file, whole, whole_bytes);
    memmove(file + 3000, file + 3000 + 3 * SIZE * SIZE, whole_bytes / 2);
    write_file(at("kept"), file, whole_bytes);
    free(file);
}

static void test_a_file_that_is_lost_under_a_run_is_decoded(void) {
    const struct {
        const char *what;
        void (*change)(void);
        bool told;
    } cases[] = {{"emptied", empty_it, true}, {"cut", cut_it, true}, {"removed", remove_it, false},
        {"replaced", replace_it, false}, {"overwritten", fill_it_anew, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int way = 0; way < 2; way++) {
            const Use u = {"set/t.csv", way == 1, cases[i].change};
            unlink(at("kept"));
            if (way == 0) restore();
            expect_same(&u, cases[i].told ? "was changed while this run uses it" : "", cases[i].what);
        }
}

// ---------------------------------------------------------------- at the same time

static void test_runs_at_the_same_time_share_the_work(void) {
    enum { RUNS = 4 };
    pid_t runs[RUNS];
    unlink(at("kept"));
    fflush(stdout);
    for (int i = 0; i < RUNS; i++) {
        runs[i] = fork();
        if (runs[i] == 0) {
            if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr)) _exit(1);
            use_cache(&squares);
            _exit(0);
        }
    }
    for (int i = 0; i < RUNS; i++) {
        int status = -1;
        waitpid(runs[i], &status, 0);
        EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "run %d: %x", i, status);
    }
    expect_same(&squares, "", "after all");
    EXPECT(images_now() == whole_images, "%zu", images_now());
}

static void test_a_run_waits_for_the_one_that_writes(void) {
    restore();
    bool writable;
    const int fd = cache_open_check(at("kept"), &writable);
    int ends[2];
    if (pipe(ends) || !cache_lock(fd, at("kept"), NULL)) die(EXIT_RUNTIME, "pipe");
    const pid_t other = fork();
    if (other == 0) {
        close(ends[0]);
        dup2(ends[1], STDERR_FILENO);
        use_cache(&squares);
        _exit(0);
    }
    close(ends[1]);
    char said[256] = "";
    EXPECT(read(ends[0], said, sizeof said - 1) > 0 && strstr(said, "another run writes to it; waiting"),
        "%s", said);
    cache_unlock(fd);
    int status = -1;
    waitpid(other, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(fd);
    close(ends[0]);
}

int main(void) {
    crops = augment_of("scale=0.5,1.0");
    make_test_folder("test_image_cache_damage");
    make_data();
    make_whole();
    RUN(test_a_flipped_bit_is_told_or_makes_no_difference);
    RUN(test_a_damaged_image_is_named_and_decoded);
    RUN(test_impossible_entries_are_refused);
    RUN(test_other_files_are_refused_and_left_alone);
    RUN(test_a_cut_file_is_completed);
    RUN(test_a_full_disk_leaves_a_file_that_is_completed);
    RUN(test_an_interrupted_cache_is_completed);
    RUN(test_a_file_that_is_lost_under_a_run_is_decoded);
    RUN(test_runs_at_the_same_time_share_the_work);
    RUN(test_a_run_waits_for_the_one_that_writes);
    free(whole);
    remove_test_folder();
    return test_report();
}
