// Which kernels and number format are the fastest (clipc/math/fastest.h): the choice among given times, what
// is listed, what is kept and what is not believed.
#include "clipc/math/fastest.h"
#include "dev/test/test.h"

#include <dirent.h>

static char folder[] = "/tmp/test_fastest-XXXXXX";

static KernelPath path_of(int number, bool bf16, double seconds) {
    const Kernels *list[KERNELS_MOST];
    const KernelPath p = {list[kernels_list(list) > number ? number : 0], bf16, seconds};
    return p;
}

// All of this processor, whether --precision auto would take them or not: at least two.
static int all_paths(KernelPath *paths) {
    const Kernels *list[KERNELS_MOST];
    const int kernels = kernels_list(list);
    int count = 0;
    for (int i = 1; i < kernels; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) count = paths_add(paths, count, list[i], bf16);
    return count;
}

static void test_choice_has_a_margin(void) {
    const struct {
        double fp32, bf16;
        bool takes_bf16;
    } cases[] = {{1, 0.5, true}, {1, 0.96, true}, {1, 0.98, false}, {1, 1, false}, {1, 1.5, false},
        {1, INFINITY, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const KernelPath both[] = {path_of(1, false, cases[i].fp32), path_of(1, true, cases[i].bf16)};
        const KernelPath turned[] = {both[1], both[0]};
        EXPECT(paths_choose(both, 2).bf16 == cases[i].takes_bf16, "%zu", i);
        EXPECT(paths_choose(turned, 2).bf16 == cases[i].takes_bf16, "%zu", i);
    }
    // the later of two that are as fast, the earlier only where it is clearly faster
    const KernelPath two[] = {path_of(0, false, 0.98), path_of(1, false, 1)};
    EXPECT(paths_choose(two, 2).seconds == 1);
    const KernelPath old[] = {path_of(0, false, 0.9), path_of(1, false, 1)};
    EXPECT(paths_choose(old, 2).seconds == 0.9);
    const KernelPath only[] = {path_of(1, true, 3)};
    EXPECT(paths_choose(only, 1).bf16);
}

static void test_list_has_no_path_twice(void) {
    KernelPath paths[PATHS_MOST];
    for (int wanted = -1; wanted < 2; wanted++) {
        const int count = paths_list(paths, wanted);
        EXPECT(count >= 1 && count <= PATHS_MOST);
        for (int i = 0; i < count; i++) {
            EXPECT(!paths[i].kernels->plain);
            EXPECT(wanted < 0 ? !paths[i].bf16 || paths[i].kernels->native_bf16 : paths[i].bf16 == wanted);
            for (int j = 0; j < i; j++)
                EXPECT(paths[i].bf16 != paths[j].bf16 || paths[i].kernels->products[paths[i].bf16].tile !=
                                                             paths[j].kernels->products[paths[j].bf16].tile);
        }
    }
    const Kernels *list[KERNELS_MOST];
    for (int i = kernels_list(list) - 1; i >= 0; i--) { // CLIPC_ISA leaves the number format open
        setenv("CLIPC_ISA", list[i]->name, true);
        EXPECT(paths_list(paths, -1) == (list[i]->native_bf16 ? 2 : 1), "%s", list[i]->name);
        EXPECT(paths[0].kernels == list[i]);
    }
    unsetenv("CLIPC_ISA");
}

// Each path gets a time, but for those that were given up; the paths differ in nothing else.
static void test_times_are_taken(void) {
    KernelPath paths[PATHS_MOST];
    const int count = all_paths(paths);
    paths_time(paths, count);
    for (int i = 0; i < count; i++)
        EXPECT(paths[i].seconds > 0 && paths[i].seconds < 60, "%s: %g", paths[i].kernels->name,
            paths[i].seconds);
}

static char *kept_file(void) {
    static char path[PATH_SIZE + 300];
    char inner[PATH_SIZE];
    *path = 0;
    snprintf(inner, sizeof inner, "%s/clip.c", folder);
    DIR *d = opendir(inner);
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (*e->d_name != '.') snprintf(path, sizeof path, "%s/%s", inner, e->d_name);
    if (d) closedir(d);
    return path;
}

static void write_kept(const char *text) {
    FILE *f = fopen(kept_file(), "w");
    EXPECT(f && fputs(text, f) >= 0, "%s", kept_file());
    if (f) fclose(f);
}

// What was kept is taken without timing again: another path than the fastest shows it.
static void test_choice_is_kept(void) {
    char line[64], text[64];
    KernelPath paths[PATHS_MOST];
    const int count = all_paths(paths);
    const KernelPath best = paths_fastest(paths, count);
    if (!*kept_file()) return; // a system that does not say when it was started
    for (int i = 0; i < count; i++) {
        snprintf(line, sizeof line, "%s %s\n", paths[i].kernels->name, paths[i].bf16 ? "bf16" : "fp32");
        write_kept(line);
        const KernelPath again = paths_fastest(paths, count);
        EXPECT(again.kernels == paths[i].kernels && again.bf16 == paths[i].bf16, "%s", line);
    }
    const char *damaged[] = {"", "avx2", "plain fp32\n", "no such thing\n", "../../x bf16\n",
        "a line that is longer than any that is ever written, and than the space for it\n"};
    snprintf(line, sizeof line, "%s %s\n", best.kernels->name, best.bf16 ? "bf16" : "fp32");
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        write_kept(damaged[i]);
        paths_fastest(paths, count);
        FILE *f = fopen(kept_file(), "r");
        EXPECT(
            f && fgets(text, sizeof text, f) && strcmp(text, damaged[i]) != 0, "kept after '%s'", damaged[i]);
        if (f) fclose(f);
    }
}

// The key tells apart what the choice depends on.
static void test_key_follows_from_paths(void) {
    KernelPath paths[PATHS_MOST];
    const int count = all_paths(paths);
    const uint64_t key = paths_key(paths, count);
    if (!key) return;
    EXPECT(paths_key(paths, count) == key);
    EXPECT(paths_key(paths, count - 1) != key);
    paths[0].bf16 = !paths[0].bf16;
    EXPECT(paths_key(paths, count) != key);
}

static void test_no_place_to_keep_it(void) {
    const char *places[] = {"", "relative", "/proc/nowhere", "/dev/null"};
    char path[PATH_SIZE], *home = getenv("HOME") ? strdup(getenv("HOME")) : NULL;
    unsetenv("HOME");
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        setenv("XDG_CACHE_HOME", places[i], true);
        EXPECT(!paths_folder(path, sizeof path), "%s", places[i]);
    }
    KernelPath paths[PATHS_MOST];
    EXPECT(!paths_fastest(paths, all_paths(paths)).kernels->plain && !kernels_fastest(-1).kernels->plain);
    EXPECT(!paths_folder(path, 20), "no room for the path");
    if (home) setenv("HOME", home, true);
    free(home);
}

int main(void) {
    if (!mkdtemp(folder)) return perror(folder), 1;
    unsetenv("CLIPC_ISA");
    setenv("XDG_CACHE_HOME", folder, true);
    RUN(test_choice_has_a_margin);
    RUN(test_list_has_no_path_twice);
    RUN(test_times_are_taken);
    RUN(test_choice_is_kept);
    RUN(test_key_follows_from_paths);
    RUN(test_no_place_to_keep_it);
    if (*kept_file()) unlink(kept_file());
    char inner[PATH_SIZE];
    snprintf(inner, sizeof inner, "%s/clip.c", folder);
    rmdir(inner);
    rmdir(folder);
    return test_report();
}
