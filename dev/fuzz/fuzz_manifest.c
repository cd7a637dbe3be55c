// The manifest of a set of files that a killed run left.
#include "dev/fuzz/fuzz.h"

static const char *manifest_path; // of the input

// The folder holds the manifest and nothing that it names.
static int open_manifest(const char *path, int flags, ...) {
    const char *slash = strrchr(path, '/');
    if (slash && strcmp(slash, "/manifest") == 0) return fuzz_open(manifest_path, flags & ~O_NOFOLLOW);
    errno = ENOENT;
    return -1;
}
#undef open
#define open(...) open_manifest(__VA_ARGS__)

#include "clipc/base/file_set.h"
#include "dev/fuzz/sealed.h"

enum { FILE_MOST = 1 << 12 };

static void fuzz_one(const uint8_t *data, size_t size) {
    static uint8_t file[FILE_MOST + FUZZ_SEAL_BYTES];
    StringList names = {NULL, 0, 0};
    if (size < 1 || size > FILE_MOST) return;
    memcpy(file, data + 1, size - 1);
    manifest_path = fuzz_file(file, data[0] & 1 ? fuzz_seal(file, size - 1) : size - 1);
    manifest_read("folder", &names);
    for (size_t i = 0; i < names.count; i++)
        if (names.list[i][0] == '.' || strchr(names.list[i], '/')) fuzz_fault("the name %s", names.list[i]);
    string_list_free(&names);
}
