// WebDataset's tar shards: lists of shards written as brace ranges, and the members of one shard with the
// offsets of their data, so that samples are read later with pread(), in any order. Format:
// github.com/webdataset/webdataset, as open_clip uses it. A shard is a file, or the output of a shell
// command, `pipe:COMMAND`.
#ifndef CLIPC_WEBDATASET_H
#define CLIPC_WEBDATASET_H

#include "clipc/base/utils.h" // die, warn, list_grow

#include <archive.h>
#include <archive_entry.h>
#include <ctype.h>
#include <fcntl.h>
#include <glob.h>

// ---------------------------------------------------------------- lists of shards

#ifndef MOST_SHARDS         // dev/fuzz has a lower one
#define MOST_SHARDS 1000000 // LAION-5B has 231,349
#endif
#define MOST_BRACES 8 // pairs in one name

#define BRACE_HELP "write a range such as {00000..00099} or a list such as {a,b}"

// Digits only, at most 18 of them; -1 for anything else.
static inline int64_t brace_number(const char *s, size_t length) {
    int64_t value = 0;
    if (length < 1 || length > 18) return -1;
    for (size_t i = 0; i < length; i++) {
        if (s[i] < '0' || s[i] > '9') return -1;
        value = 10 * value + (s[i] - '0');
    }
    return value;
}

static inline void brace_expand_part(StringList *out, const char *spec, const char *whole, int depth);

// Joins head + middle + tail and expands the remaining braces.
static inline void brace_expand_with(StringList *out, const char *spec, const char *open, const char *middle,
    int middle_length, const char *tail, const char *whole, int depth) {
    char name[PATH_SIZE];
    path_format(name, "%.*s%.*s%s", (int)(open - spec), spec, middle_length, middle, tail);
    brace_expand_part(out, name, whole, depth + 1);
}

// {FIRST..LAST}: padded with zeros to the longer of the two if one of them begins with a zero, as in shells.
static inline void brace_expand_range(StringList *out, const char *spec, const char *open, const char *dots,
    const char *close, const char *whole, int depth) {
    size_t first_length = (size_t)(dots - open) - 1, last_length = (size_t)(close - dots) - 2;
    int64_t first = brace_number(open + 1, first_length), last = brace_number(dots + 2, last_length);
    int shown = (int)(close - open) + 1;
    if (first < 0 || last < 0)
        die(EXIT_USAGE, "%s: %.*s is not a range of numbers; " BRACE_HELP, whole, shown, open);
    if (last < first) die(EXIT_USAGE, "%s: %.*s runs backwards; " BRACE_HELP, whole, shown, open);
    if (last - first >= MOST_SHARDS)
        die(EXIT_USAGE, "%s: %.*s is more than %d shards; give a smaller range", whole, shown, open,
            MOST_SHARDS);
    bool pad = (open[1] == '0' && first_length > 1) || (dots[2] == '0' && last_length > 1);
    int width = pad ? (int)(first_length > last_length ? first_length : last_length) : 1;
    for (int64_t i = first; i <= last; i++) {
        char number[24];
        int n = snprintf(number, sizeof number, "%0*lld", width, (long long)i);
        brace_expand_with(out, spec, open, number, n, close + 1, whole, depth);
    }
}

static inline void brace_expand_part(StringList *out, const char *spec, const char *whole, int depth) {
    const char *open = strchr(spec, '{'), *close = NULL, *comma = NULL;
    if (!open && strchr(spec, '}')) die(EXIT_USAGE, "%s: } without {; " BRACE_HELP, whole);
    if (!open) {
        if (out->count >= MOST_SHARDS)
            die(EXIT_USAGE, "%s: more than %d shards; give a smaller range", whole, MOST_SHARDS);
        string_list_add(out, spec);
        return;
    }
    if (depth >= MOST_BRACES)
        die(EXIT_USAGE, "%s: more than %d pairs of braces; give a simpler list", whole, MOST_BRACES);
    int level = 0;
    for (const char *p = open; *p && !close; p++) {
        level += (*p == '{') - (*p == '}');
        if (*p == ',' && level == 1 && !comma) comma = p;
        if (level == 0) close = p;
    }
    if (!close) die(EXIT_USAGE, "%s: { without }; " BRACE_HELP, whole);
    const char *dots = (const char *)memmem(open, (size_t)(close - open), "..", 2);
    if (!comma && !dots)
        die(EXIT_USAGE, "%s: %.*s is neither a range nor a list; " BRACE_HELP, whole, (int)(close - open) + 1,
            open);
    if (!comma) {
        brace_expand_range(out, spec, open, dots, close, whole, depth);
        return;
    }
    level = 1;
    for (const char *item = open + 1, *p = item; p <= close; p++) {
        level += (*p == '{') - (*p == '}');
        if (p < close && !(*p == ',' && level == 1)) continue;
        brace_expand_with(out, spec, open, item, (int)(p - item), close + 1, whole, depth);
        item = p + 1;
    }
}

// The parts of `spec`, which `::` joins. Free with string_list_free().
static inline StringList parts_split(const char *spec) {
    StringList out = {NULL, 0, 0};
    for (const char *part = spec;;) {
        const char *end = strstr(part, "::");
        char name[PATH_SIZE];
        path_format(name, "%.*s", end ? (int)(end - part) : (int)strnlen(part, PATH_SIZE), part);
        if (!name[0]) die(EXIT_USAGE, "%s: nothing on one side of ::; give a source on each side", spec);
        string_list_add(&out, name);
        if (!end) return out;
        part = end + 2;
    }
}

// Are these shards on another machine? By the first characters as given: braces cannot spell it.
static inline bool is_shard_url(const char *part) {
    return !strncmp(part, "http://", 7) || !strncmp(part, "https://", 8) || !strncmp(part, "s3://", 5);
}

// The shell command that writes the shard at a URL to its output: into a temporary file, again where the
// transfer breaks off, and out only once it is whole. Free it.
static inline char *shard_download(const char *url) {
    const bool s3 = strncmp(url, "s3://", 5) == 0;
    char *command = NULL;
    size_t length;
    FILE *f = open_memstream(&command, &length);
    if (!f) die(EXIT_RUNTIME, "out of memory");
    fputs("t=$(mktemp \"${TMPDIR:-/tmp}/clipc-XXXXXX\") || exit 1; trap 'rm -f \"$t\"' EXIT; n=0; until e=$(",
        f);
    fputs(s3 ? "aws s3 cp --only-show-errors '"
             : "curl --fail --silent --show-error --location --globoff --retry 3 --connect-timeout 30 "
               "--speed-limit 1 --speed-time 60 --output \"$t\" --url '",
        f);
    for (const char *c = url; *c; c++) {
        if (*c == '\'') fputs("'\\''", f);
        else fputc(*c, f);
    }
    fputs(s3 ? "' \"$t\" 2>&1)" : "' 2>&1)", f);
    // 22: the server says that it is not there; 127: there is no such program
    fputs("; do r=$?; n=$((n + 1)); if [ $r = 22 ] || [ $r = 127 ]; then exit $r; fi; "
          "if [ $n -ge 8 ]; then echo \"$e\" >&2; exit $r; fi; sleep $((n > 3)); done; cat \"$t\"",
        f);
    fclose(f);
    return command;
}

// The command of a `pipe:` shard, else NULL.
static inline const char *shard_command(const char *shard) {
    return strncmp(shard, "pipe:", 5) == 0 ? shard + 5 : NULL;
}

// Whether .tar, .tgz, .tar.gz or the like is at the end of a name or of an item in braces.
static inline bool is_shard_name(const char *spec) {
    for (const char *p = spec; (p = strchr(p, '.')); p++)
        if ((!strncasecmp(p, ".tar", 4) || !strncasecmp(p, ".tgz", 4)) && strchr(".,}", p[4]))
            return true; // strchr finds the NUL, too
    return false;
}

// The shards of one part: its braces, {00000..00099} or {a,b}, several or nested, are expanded, then * and ?;
// a folder stands for the shards in it. A malformed list ends the program. Free with string_list_free().
static inline StringList shard_list(const char *part) {
    StringList names = {NULL, 0, 0}, out = {NULL, 0, 0};
    brace_expand_part(&names, part, part, 0);
    for (size_t i = 0; i < names.count; i++) {
        const char *name = names.list[i];
        char pattern[PATH_SIZE];
        const bool remote = shard_command(name) || is_shard_url(part), folder = !remote && is_directory(name);
        if (remote || (!folder && (file_exists(name) || !strpbrk(name, "*?")))) {
            string_list_add(&out, name);
            continue;
        }
        path_format(pattern, "%s%s", name, folder ? "/*" : "");
        glob_t found;
        const bool any = glob(pattern, 0, NULL, &found) == 0; // sorted
        const size_t before = out.count;
        for (size_t k = 0; any && k < found.gl_pathc; k++)
            if (is_shard_name(found.gl_pathv[k])) string_list_add(&out, found.gl_pathv[k]);
        globfree(&found);
        if (out.count == before) die(EXIT_USAGE, "%s: no shards there; give tars that exist", name);
    }
    string_list_free(&names);
    return out;
}

// ---------------------------------------------------------------- keys

// The key of a member's sample is its path up to the first dot of the base name; what follows is its kind
// ("jpg"). Returns the length of the key; 0 for names without one (no dot, hidden files), which belong to no
// sample.
static inline size_t member_key_length(const char *name) {
    const char *base = strrchr(name, '/');
    base = base ? base + 1 : name;
    const char *dot = strchr(base, '.');
    return dot && dot > base ? (size_t)(dot - name) : 0;
}

// The index of `kind` in a list such as "jpg;png;jpeg;webp", ignoring case; -1 if it is not in it.
static inline int member_kind(const char *kind, const char *list) {
    size_t n = strlen(kind);
    for (int i = 0;; i++) {
        size_t item = strcspn(list, ";");
        if (item == n && n && !strncasecmp(list, kind, n)) return i;
        if (!list[item]) return -1;
        list += item + 1;
    }
}

// ---------------------------------------------------------------- one shard

// A compressed shard may inflate to INFLATION_FREE bytes and INFLATION_MOST times its own size: images hardly
// shrink, but gzip makes a gigabyte of zeros of a megabyte, a sparse member any number of a kilobyte, and all
// of it would be written to a temporary file. Shards from a command have no bound: their size is not known.
#define INFLATION_FREE (1 << 26)
#define INFLATION_MOST 64

typedef struct {
    struct archive *archive;
    const char *path;
    Process command; // its output is the shard; pid 0: the shard is a file
    bool url;        // the command downloads it
    int status;      // the exit status of the download, once it is closed
    int fd;
    int64_t file_bytes,
        inflated_bytes; // inflated: headers and data of members that are not stored as they are
    int64_t links;      // members that are no files but links or devices; they are passed over
    char link[256];     // the name of the first one
    char error[256];    // why reading ended early, or ""
} TarReader;

typedef struct {
    const char *name; // valid until the next member
    // of its data in the shard; -1: compressed, sparse or from a command, tar_copy_member() unpacks it
    int64_t offset;
    int64_t bytes;
} TarMember;

// Opens the file, or starts the command: t->fd; false with t->error.
static inline bool tar_open_fd(TarReader *t, const char *command) {
    struct stat st;
    if (command) {
        const char *const shell[] = {"/bin/sh", "-c", command, NULL}; // as WebDataset does
        const int error = process_start(&t->command, shell, STDOUT_FILENO, false);
        if (error) die(EXIT_RUNTIME, "%s: cannot start the command (%s)", t->path, strerror(error));
        t->fd = t->command.pipe;
        return true;
    }
    t->fd = open(t->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe would block
    if (t->fd < 0 || fstat(t->fd, &st) || !S_ISREG(st.st_mode)) {
        snprintf(t->error, sizeof t->error, "%s", t->fd < 0 ? strerror(errno) : "it is not a file");
        return false;
    }
    t->file_bytes = st.st_size;
    return true;
}

// False when the shard cannot be read at all; t->error says why. download: the command that fetches it from
// its URL; or NULL.
static inline bool tar_open(TarReader *t, const char *path, const char *download) {
    memset(t, 0, sizeof *t);
    t->path = path;
    t->url = download != NULL;
    t->archive = archive_read_new();
    if (!t->archive) die(EXIT_RUNTIME, "%s: out of memory; close other programs", path);
    archive_read_support_filter_gzip(t->archive);
    archive_read_support_filter_bzip2(t->archive);
    archive_read_support_filter_xz(t->archive);
    archive_read_support_filter_zstd(t->archive);
    archive_read_support_filter_lz4(t->archive);
    archive_read_support_format_tar(t->archive);
    if (!tar_open_fd(t, download ? download : shard_command(path))) return false;
    // reads a page for each header; archive_read_open_filename() would read 64 KiB
    if (archive_read_open_fd(t->archive, t->fd, 4096) == ARCHIVE_OK) return true;
    snprintf(t->error, sizeof t->error, "%s", archive_error_string(t->archive));
    return false;
}

// A command that fails ends the program, but for a download, which gives nothing then (t->status): otherwise
// a part of its shard would be taken as the whole, and perhaps a different part in the next run.
static inline void tar_close(TarReader *t) {
    char rest[4096];
    int status;
    archive_read_free(t->archive);
    if (!t->command.pid) {
        if (t->fd >= 0) close(t->fd);
        return;
    }
    // reads what follows the end of the archive, or the command would fail with a broken pipe
    while (read(t->fd, rest, sizeof rest) > 0) {}
    process_wait(&t->command, true, &status);
    if (status == -1) die(EXIT_RUNTIME, "%s: the command has no exit status", t->path);
    if (WIFSIGNALED(status))
        die(EXIT_RUNTIME, "%s: the command was ended by signal %d (%s)", t->path, WTERMSIG(status),
            strsignal(WTERMSIG(status)));
    t->status = WEXITSTATUS(status);
    if (status && !t->url)
        die(EXIT_RUNTIME, "%s: the command failed with exit status %d; try it in a shell", t->path,
            WEXITSTATUS(status));
}

// Counts a member that is not stored as it is; false, with t->error, where the shard inflates too far.
static inline bool tar_count_inflated(TarReader *t, int64_t bytes) {
    const int64_t most = INFLATION_FREE + INFLATION_MOST * t->file_bytes, header = 512;
    if (t->command.pid) return true;
    if (bytes > most - t->inflated_bytes - header) {
        snprintf(t->error, sizeof t->error,
            "its %lld bytes inflate to more than %lld; images do not shrink so", (long long)t->file_bytes,
            (long long)most);
        return false;
    }
    t->inflated_bytes += bytes + header;
    return true;
}

// The next regular file, without its data; false at the end, or where the shard is broken (t->error).
static inline bool tar_next(TarReader *t, TarMember *out) {
    for (;;) {
        struct archive_entry *entry;
        int status = archive_read_next_header(t->archive, &entry);
        if (status == ARCHIVE_EOF) return false;
        if (status != ARCHIVE_OK && status != ARCHIVE_WARN) {
            snprintf(t->error, sizeof t->error, "%s",
                archive_error_string(t->archive) ? archive_error_string(t->archive) : "damaged");
            return false;
        }
        // the one filter: none
        const bool plain = archive_filter_count(t->archive) == 1 && archive_entry_sparse_count(entry) == 0;
        if (!plain && !tar_count_inflated(t, archive_entry_size(entry))) return false;
        out->name = archive_entry_pathname(entry);
        // a name in UTF-8, under a locale that is not
        if (!out->name) out->name = archive_entry_pathname_utf8(entry);
        if (!out->name) out->name = "";
        if (archive_entry_filetype(entry) == AE_IFDIR) continue;
        if (archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry)) {
            if (!t->links++) snprintf(t->link, sizeof t->link, "%s", out->name);
            continue;
        }
        out->bytes = archive_entry_size(entry);
        const bool stored = !t->command.pid && plain;
        out->offset = stored ? archive_filter_bytes(t->archive, 0) : -1;
        if (!stored || (out->bytes >= 0 && out->offset >= 0 && out->offset <= t->file_bytes &&
                           out->bytes <= t->file_bytes - out->offset))
            return true;
        snprintf(t->error, sizeof t->error, "the file ends within %.150s", out->name);
        return false;
    }
}

// Up to `capacity` bytes of the member that tar_next() returned; returns how many, -1 where the shard is
// broken (t->error).
static inline int64_t tar_read(TarReader *t, void *out, size_t capacity) {
    size_t n = 0;
    while (n < capacity) {
        ssize_t got = archive_read_data(t->archive, (char *)out + n, capacity - n);
        if (got == 0) break;
        if (got < 0) {
            snprintf(t->error, sizeof t->error, "%s",
                archive_error_string(t->archive) ? archive_error_string(t->archive) : "damaged");
            return -1;
        }
        n += (size_t)got;
    }
    return (int64_t)n;
}

// An unnamed file for the data of compressed shards and of commands; it disappears with the program,
// however that ends.
static inline int spill_open(void) {
    const char *folder = getenv("TMPDIR");
    char path[PATH_SIZE];
    path_format(path, "%s/clipc-XXXXXX", folder && folder[0] ? folder : "/tmp");
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        die(EXIT_RUNTIME, "%s: cannot make a temporary file (%s); set TMPDIR to a folder with free space",
            path, strerror(errno));
    unlink(path);
    return fd;
}

// Appends the data of the member that tar_next() returned to `fd`; out->offset and out->bytes then refer to
// `fd`.
static inline bool tar_copy_member(TarReader *t, TarMember *out, int fd, int64_t *end) {
    char buffer[65536];
    out->offset = *end;
    for (int64_t n; (n = tar_read(t, buffer, sizeof buffer)) != 0; *end += n) {
        if (n < 0) return false;
        if (pwrite(fd, buffer, (size_t)n, (off_t)*end) != n)
            die(EXIT_RUNTIME,
                "%s: cannot be unpacked into a temporary file (%s); set TMPDIR to a folder with free space",
                t->path, strerror(errno));
    }
    out->bytes = *end - out->offset;
    return true;
}

#endif
