// Files that change together: a set is whole or absent, wherever its writing ends: killed, with a full disk,
// in a power cut.
//
// All of a set is in one folder. It is written so:
//   1. manifest.part is made. From now on a .part in the folder belongs to a set that does not count yet.
//   2. Each file is written as NAME.part, then fsync. A second name of a file is a hard link to it, or a copy
//      where the file system has no links.
//   3. manifest.part gets a line for each name: identity and size of the file, NAME. It is sealed; fsync of
//      it and of the folder.
//   4. manifest.part is renamed to manifest, then fsync of the folder. This rename is what makes the set:
//      before it no earlier file has changed, after it every new one is on disk.
//   5. Each NAME.part is renamed to NAME, in any order; fsync of the folder.
//   6. manifest is removed; fsync of the folder.
// A failure in 1 to 4 removes every part. After 4 they stay, and the next file_set_recover() does the rest.
//
// file_set_recover() comes before anything else that looks into the folder. It finds
//   manifest               the set counts: 5 and 6, in which what is renamed already has no NAME.part
//   manifest.part alone    it does not: every .part is removed, manifest.part last
// Both can themselves be killed and begun again. Only one process may use the folder meanwhile.
#ifndef CLIPC_FILE_SET_H
#define CLIPC_FILE_SET_H

#include "clipc/base/safe_file.h" // SafeFile, sealed_file_holds

#include <dirent.h>

typedef struct {
    char folder[PATH_SIZE];
    SafeFile files[SAFE_FILE_SET]; // the first is the manifest
    uint64_t identity[SAFE_FILE_SET];
    int source[SAFE_FILE_SET]; // the file of which it is a second name; its own index: of none
    int count;
} FileSet;

static inline SafeFile *file_set_next(FileSet *set, const char *name) {
    SafeFile *s = &set->files[set->count];
    path_format(s->path, "%s/%s", set->folder, name);
    path_format(s->part, "%s.part", s->path);
    s->set = set->files;
    set->source[set->count] = set->count;
    set->count++;
    return s;
}

static inline void file_set_create(SafeFile *s) {
    s->f = file_create(s->part);
    if (!s->f) safe_file_failed(s);
}

// Opens the next file of a set; its name in the folder is `name`.
static inline SafeFile *file_set_add(FileSet *set, const char *name) {
    SafeFile *s = file_set_next(set, name);
    file_set_create(s);
    return s;
}

// Ends the file that was added last. `identity`: its seal's.
static inline void file_set_wrote(FileSet *set, uint64_t identity) {
    set->identity[set->count - 1] = identity;
}

// Gives a file of the set a second name.
static inline void file_set_link(FileSet *set, const char *name, const char *second) {
    char path[PATH_SIZE];
    path_format(path, "%s/%s", set->folder, name);
    int source = 1;
    while (strcmp(set->files[source].path, path) != 0) source++;
    const int i = set->count;
    file_set_next(set, second);
    set->source[i] = source;
    set->identity[i] = set->identity[source];
}

// Begins a set in `folder`; file_set_commit() frees it.
static inline FileSet *file_set_open(const char *folder) {
    FileSet *set = (FileSet *)calloc_check(1, sizeof *set);
    path_format(set->folder, "%s", folder);
    file_set_add(set, "manifest");
    return set;
}

// ---------------------------------------------------------------- from parts to files

// Removes every .part in a folder, and with `manifest` that, too; manifest and manifest.part last.
static inline void file_set_drop(const char *folder) {
    char path[PATH_SIZE];
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!ends_with(e->d_name, ".part") || strcmp(e->d_name, "manifest.part") == 0) continue;
        path_format(path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    if (d) closedir(d);
    folder_sync(folder);
    for (int part = 0; part < 2; part++) {
        path_format(path, "%s/manifest%s", folder, part ? ".part" : "");
        unlink(path);
    }
}

// Steps 5 and 6.
static inline void file_set_finish(const char *folder, const StringList *names) {
    char part[PATH_SIZE], path[PATH_SIZE];
    bool done = folder_sync(folder);
    for (size_t i = 0; done && i < names->count; i++) {
        path_format(path, "%s/%s", folder, names->list[i]);
        path_format(part, "%s.part", path);
        done = rename(part, path) == 0 || errno == ENOENT;
    }
    path_format(path, "%s/manifest", folder);
    done = done && folder_sync(folder) && unlink(path) == 0 && folder_sync(folder);
    if (!done)
        die(EXIT_RUNTIME,
            "%s: cannot give the saved files their names (%s); nothing is lost, --resume latest goes on from "
            "them",
            folder, strerror(errno));
}

// A second name for a file of which all is on disk: a link, else a copy.
static inline void file_set_copy(FileSet *set, int i) {
    SafeFile *to = &set->files[i];
    const SafeFile *from = &set->files[set->source[i]];
    unlink(to->part);
    if (link(from->part, to->part) == 0) return;
    enum { BLOCK = 1 << 20 };
    char *block = (char *)malloc_check(BLOCK);
    FILE *in = fopen(from->part, "rb");
    if (!in) safe_file_failed(to);
    file_set_create(to);
    for (size_t n; (n = fread(block, 1, BLOCK, in)) > 0;) safe_file_write(to, block, n);
    if (ferror(in)) safe_file_failed(to);
    fclose(in);
    free(block);
    safe_file_sync(to);
}

// Steps 2 (what is left of it) to 6. Frees the set.
static inline void file_set_commit(FileSet *set) {
    SafeFile *manifest = &set->files[0];
    StringList names;
    char line[PATH_SIZE];
    struct stat st;
    memset(&names, 0, sizeof names);
    for (int i = 1; i < set->count; i++)
        if (set->source[i] == i) safe_file_sync(&set->files[i]);
    for (int i = 1; i < set->count; i++) {
        if (set->source[i] != i) file_set_copy(set, i);
        if (stat(set->files[i].part, &st)) safe_file_failed(manifest);
        string_list_add(&names, set->files[i].path + strlen(set->folder) + 1);
        path_format(line, "%016llx %lld %s\n", (unsigned long long)set->identity[i], (long long)st.st_size,
            names.list[names.count - 1]);
        safe_file_write(manifest, line, strlen(line));
    }
    safe_file_seal(manifest);
    safe_file_sync(manifest);
    if (!folder_sync(set->folder)) safe_file_failed(manifest);
    safe_file_rename(manifest);
    file_set_finish(set->folder, &names);
    string_list_free(&names);
    free(set);
}

// ---------------------------------------------------------------- recovery

// Is what a line of the manifest names there: the part, undamaged, or else renamed already? False with errno
// 0 when it is damaged, with another when it cannot be read.
static inline bool manifest_line_holds(
    const char *folder, uint64_t identity, int64_t bytes, const char *name) {
    char path[PATH_SIZE];
    struct stat st;
    uint64_t found = 0;
    path_format(path, "%s/%s.part", folder, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ELOOP) errno = 0; // a link, which is never ours
    if (fd < 0) return errno == ENOENT;
    errno = 0;
    const bool holds = fstat(fd, &st) == 0 && st.st_size == bytes && sealed_file_holds(fd, &found);
    const int error = errno;
    close(fd);
    errno = error;
    return holds && found == identity;
}

// The names in a manifest; false when it, or a part that it names, is damaged (errno 0) or cannot be read. A
// manifest may come from a stranger: no name leads out of the folder.
static inline bool manifest_read(const char *folder, StringList *names) {
    char path[PATH_SIZE];
    Seal seal;
    path_format(path, "%s/manifest", folder);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ELOOP) errno = 0; // a link, which is never ours
    bool holds = fd >= 0 && seal_read(&seal, fd);
    holds = holds && seal_holds(&seal, fd, seal.contents);
    char *text = holds ? (char *)calloc_check((size_t)seal.contents + 1, 1) : NULL, *rest = text, *line;
    holds = holds && pread_all(fd, text, (size_t)seal.contents, 0);
    int error = holds ? 0 : errno;
    while (holds && (line = strsep(&rest, "\n")) && *line) {
        errno = 0;
        unsigned long long identity;
        long long bytes;
        int name = 0;
        holds = sscanf(line, "%16llx %lld %n", &identity, &bytes, &name) == 2 && name > 0 && line[name] &&
                line[name] != '.' && !strchr(line + name, '/') &&
                manifest_line_holds(folder, identity, bytes, line + name);
        error = holds ? 0 : errno;
        if (holds) string_list_add(names, line + name);
    }
    free(text);
    if (fd >= 0) free(seal.checksums);
    if (fd >= 0) close(fd);
    errno = error;
    return holds;
}

// Is there a set that counts, but whose files do not have their names yet?
static inline bool file_set_pending(const char *folder) {
    char path[PATH_SIZE];
    path_format(path, "%s/manifest", folder);
    return file_exists(path);
}

// Finishes or drops the set that was being written when a process ended.
static inline void file_set_recover(const char *folder) {
    char part[PATH_SIZE];
    StringList names;
    memset(&names, 0, sizeof names);
    path_format(part, "%s/manifest.part", folder);
    if (file_set_pending(folder)) {
        const bool holds = manifest_read(folder, &names);
        if (!holds && errno)
            die(EXIT_RUNTIME,
                "%s/manifest: it or a file that it names cannot be read (%s); nothing is lost, try again",
                folder, strerror(errno));
        if (holds) file_set_finish(folder, &names);
        else warn("%s/manifest: it or a file that it names is damaged; that save is left out", folder);
        file_set_drop(folder);
    } else if (file_exists(part)) file_set_drop(folder);
    string_list_free(&names);
}

#endif
