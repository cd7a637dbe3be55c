// Where a run's records go besides metrics.jsonl (--report-to): TensorBoard event files, and a companion
// process that sends them elsewhere. Whatever goes wrong here never ends a run.
//
//     EventFile events;
//     events_open(&events, "logs/my_run", step);   `tensorboard --logdir logs` finds it there
//     events_record(&events, &record, time);       a Record of logger.h: every number a scalar over the step
//     events_close(&events);
//
// An event file is a sequence of TFRecords (length, its checksum, data, its checksum;
// tensorflow/core/lib/io/record_writer), each holding one Event message of protocol buffers
// (tensorflow/core/util/event.proto), encoded by hand here: five of its fields. A resumed run writes another
// file, whose first message tells TensorBoard to forget what earlier files hold from that step on.
#ifndef CLIPC_TRACKERS_H
#define CLIPC_TRACKERS_H

#include "clipc/base/logger.h" // Record, logger_warn, utf8_copy

#include <dirent.h>

// ---------------------------------------------------------------- event files: checksums

// CRC-32C (Castagnoli, RFC 3720 B.4): reflected, polynomial 0x1edc6f41.
static inline uint32_t crc32c(const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

// As TFRecord stores it: rotated and offset, so that a checksum over data that contains checksums is still
// good at finding errors.
static inline uint32_t crc32c_masked(const void *data, size_t bytes) {
    const uint32_t crc = crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

// ---------------------------------------------------------------- event files: protocol buffers

typedef struct {
    unsigned char *data;
    size_t bytes, capacity;
} Message;

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static inline void message_append(Message *m, const void *data, size_t bytes) {
    list_grow((void **)&m->data, &m->capacity, m->bytes + bytes, 1);
    memcpy(m->data + m->bytes, data, bytes);
    m->bytes += bytes;
}

// Seven bits a byte, the lowest first; the eighth bit says that more bytes follow.
static inline void message_varint(Message *m, uint64_t x) {
    for (; x >= 0x80; x >>= 7) {
        const unsigned char byte = (unsigned char)(x | 0x80);
        message_append(m, &byte, 1);
    }
    const unsigned char last = (unsigned char)x;
    message_append(m, &last, 1);
}

static inline void message_tag(Message *m, int field, int wire) {
    message_varint(m, (uint64_t)(field << 3 | wire));
}

static inline void message_bytes(Message *m, int field, const void *data, size_t bytes) {
    message_tag(m, field, WIRE_BYTES);
    message_varint(m, bytes);
    message_append(m, data, bytes);
}

// Begins an Event: wall_time = 1 (seconds since 1970), step = 2.
static inline void event_begin(Message *m, double wall_time, int64_t step) {
    m->bytes = 0;
    message_tag(m, 1, WIRE_64);
    message_append(m, &wall_time, 8);
    message_tag(m, 2, WIRE_VARINT);
    message_varint(m, (uint64_t)step);
}

// Appends one value { tag = 1, simple_value = 2 } to a Summary, as its field 1.
static inline void summary_scalar(Message *summary, const char *name, double value) {
    Message scalar = {NULL, 0, 0};
    const float x = (float)value;
    message_bytes(&scalar, 1, name, strlen(name));
    message_tag(&scalar, 2, WIRE_32);
    message_append(&scalar, &x, 4);
    message_bytes(summary, 1, scalar.data, scalar.bytes);
    free(scalar.data);
}

// ---------------------------------------------------------------- event files: on disk

typedef struct {
    char path[PATH_SIZE];
    int fd;      // -1: closed
    off_t whole; // bytes of complete records
    bool failed; // the disk was full: warned about once, and nothing more is written
} EventFile;

// Appends one TFRecord. A full disk gives one warning, and the file is cut back to its last complete record.
static inline void events_write(EventFile *e, const Message *event) {
    if (e->fd < 0 || e->failed) return;
    Message record = {NULL, 0, 0};
    const uint64_t length = event->bytes; // little-endian, as all of clip.c
    const uint32_t length_crc = crc32c_masked(&length, 8);
    const uint32_t data_crc = crc32c_masked(event->data, event->bytes);
    message_append(&record, &length, 8);
    message_append(&record, &length_crc, 4);
    message_append(&record, event->data, event->bytes);
    message_append(&record, &data_crc, 4);
    e->failed = !write_all(e->fd, record.data, record.bytes);
    if (e->failed)
        warn("%s: cannot write (%s); the run goes on without it, free some space", e->path, strerror(errno));
    if (e->failed && ftruncate(e->fd, e->whole)) warn("%s: ends in an incomplete record", e->path);
    e->whole += (off_t)record.bytes;
    free(record.data);
}

// The time for the name of a new file: later than those of all files there, since TensorBoard reads a folder
// in the order of names.
static inline int64_t events_next_second(const char *folder, int64_t now) {
    DIR *d = opendir(folder);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        long long second;
        if (sscanf(entry->d_name, "events.out.tfevents.%lld.", &second) == 1 && second >= now)
            now = second + 1;
    }
    if (d) closedir(d);
    return now;
}

// Opens a new event file in `folder`, which exists. `step`: steps done so far; of a resumed run TensorBoard
// drops what earlier files hold beyond it, since those steps are about to be written again.
static inline void events_open(EventFile *e, const char *folder, int64_t step) {
    static const char version[] = "brain.Event:2";
    static const unsigned char start[] = {
        1 << 3 | WIRE_VARINT, 1}; // SessionLog { status = START }: drops all events from its step on
    const int64_t now = (int64_t)time(NULL);
    char host[64] = "";
    memset(e, 0, sizeof *e);
    if (gethostname(host, sizeof host - 1) || !host[0]) snprintf(host, sizeof host, "localhost");
    path_format(e->path, "%s/events.out.tfevents.%010lld.%s", folder,
        (long long)events_next_second(folder, now), host);
    e->fd = file_append(e->path, O_WRONLY | O_EXCL);
    if (e->fd < 0) die(EXIT_RUNTIME, "%s: cannot open (%s)", e->path, strerror(errno));
    Message m = {NULL, 0, 0};
    event_begin(&m, (double)now, 0);
    message_bytes(&m, 3, version, strlen(version));
    events_write(e, &m);
    if (step > 0) {
        event_begin(&m, (double)now, step + 1);
        message_bytes(&m, 7, start, sizeof start);
        events_write(e, &m);
    }
    free(m.data);
}

// Writes all numbers of a record but the step as one Event at its step; null, JSON's form of a number that
// is not finite, becomes NaN.
static inline void events_record(EventFile *e, const Record *r, double wall_time) {
    char text[RECORD_SIZE + 4];
    snprintf(text, sizeof text, "{%.*s}", (int)r->length, r->text);
    json_t *record = json_loads(text, 0, NULL), *step = json_object_get(record, "step"), *value;
    Message event = {NULL, 0, 0}, summary = {NULL, 0, 0};
    const char *name;
    json_object_foreach(record, name, value) {
        if (value != step)
            summary_scalar(&summary, name, json_is_null(value) ? NAN : json_number_value(value));
    }
    event_begin(&event, wall_time, (int64_t)json_number_value(step));
    message_bytes(&event, 5, summary.data, summary.bytes);
    events_write(e, &event);
    free(event.data);
    free(summary.data);
    json_decref(record);
}

static inline void events_close(EventFile *e) {
    if (e->fd >= 0) close(e->fd);
    e->fd = -1;
}

// ---------------------------------------------------------------- the companion

// A script that follows the run folder while the run lasts (--report-to wandb). Its standard input is a pipe
// that the run holds open and never writes to: when the run ends, in whatever way, the script reads the end
// of it, sends what is left and exits.

enum { COMPANION_WAIT = 60 }; // seconds that the end of a run waits for what the companion still has to send

typedef struct {
    Process process;
    char script[PATH_SIZE], folder[PATH_SIZE];
} Companion;

// Starts `python3 dev/NAME FOLDER --project PROJECT` in a process group of its own, so that Ctrl-C reaches
// the run alone. When it cannot be started, one line says why, and the run goes on.
static inline void companion_start(
    Companion *c, Logger *log, const char *name, const char *folder, const char *project) {
    memset(c, 0, sizeof *c);
    path_format(c->folder, "%s", folder);
    if (!script_find(c->script, name)) {
        logger_warn(log, "dev/%s is not there; the run goes on without it", name);
        return;
    }
    const char *const arguments[] = {"python3", c->script, folder, "--project", project, NULL};
    const int error = process_start(&c->process, arguments, STDIN_FILENO, true);
    if (error)
        logger_warn(
            log, "python3 cannot be started (%s); the run goes on without %s", strerror(error), c->script);
}

// Has it ended by itself? Unless it succeeded, one line says how to report the run afterwards.
static inline void companion_check(Companion *c, Logger *log) {
    int status;
    if (!c->process.pid || !process_wait(&c->process, false, &status)) return;
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        logger_warn(log, "%s has ended; the run goes on, afterwards it can be reported with: python3 %s %s",
            c->script, c->script, c->folder);
}

// Closes the pipe, which tells it that the run is over, and waits for what it still has to send.
static inline void companion_stop(Companion *c, Logger *log) {
    const struct timespec pause = {0, 100 * 1000 * 1000};
    int status;
    if (!c->process.pid) return;
    close(c->process.pipe);
    c->process.pipe = -1;
    for (const double start = seconds_now(); seconds_now() - start < COMPANION_WAIT;) {
        if (process_wait(&c->process, false, &status)) return;
        nanosleep(&pause, NULL);
    }
    logger_warn(log, "%s has not finished after %d seconds; it is left running, process %ld", c->script,
        COMPANION_WAIT, (long)c->process.pid);
    c->process.pid = 0;
}

#endif
