// TensorBoard event files: every number of a run's records as a scalar over the step, named as in
// metrics.jsonl.
//
//     EventFile events;
//     events_open(&events, "logs/my_run", step);   `tensorboard --logdir logs` finds it there
//     events_record(&events, &record, time);       a Record of logger.h
//     events_close(&events);
//
// An event file is a row of TFRecords (length, its checksum, data, its checksum;
// tensorflow/core/lib/io/record_writer), each holding one Event message of protocol buffers
// (tensorflow/core/util/event.proto), written by hand here: five of its fields. A run that goes on writes a
// further file, whose first message tells TensorBoard to forget what earlier files hold from that step on.
#ifndef CLIPC_TENSORBOARD_H
#define CLIPC_TENSORBOARD_H

#include "clipc/base/logger.h" // Record, utf8_copy

#include <dirent.h>

// ---------------------------------------------------------------- checksums

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

// As TFRecord stores it: turned and shifted, so that a checksum over data that holds checksums stays a good
// one.
static inline uint32_t crc32c_masked(const void *data, size_t bytes) {
    const uint32_t crc = crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

// ---------------------------------------------------------------- protocol buffers

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

// Seven bits a byte, the lowest first; the eighth says that more follow.
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

// An Event so far: wall_time = 1 (seconds since 1970), step = 2.
static inline void event_begin(Message *m, double wall_time, int64_t step) {
    m->bytes = 0;
    message_tag(m, 1, WIRE_64);
    message_append(m, &wall_time, 8);
    message_tag(m, 2, WIRE_VARINT);
    message_varint(m, (uint64_t)step);
}

// Appends to a Summary one value: { tag = 1, simple_value = 2 }, as its field 1.
static inline void summary_scalar(Message *summary, const char *name, double value) {
    Message scalar = {NULL, 0, 0};
    const float x = (float)value;
    message_bytes(&scalar, 1, name, strlen(name));
    message_tag(&scalar, 2, WIRE_32);
    message_append(&scalar, &x, 4);
    message_bytes(summary, 1, scalar.data, scalar.bytes);
    free(scalar.data);
}

// ---------------------------------------------------------------- the file

typedef struct {
    char path[PATH_SIZE];
    int fd;      // -1: not kept
    off_t whole; // bytes of whole records
    bool failed; // the disk was full: told once, and nothing more is written
} EventFile;

// Appends one TFRecord. Events are not worth a run: a full disk is told once, and what stands there stays
// readable.
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
    e->failed = write(e->fd, record.data, record.bytes) != (ssize_t)record.bytes;
    if (e->failed)
        warn("%s: cannot write (%s); the run goes on without it, free some space", e->path, strerror(errno));
    if (e->failed && ftruncate(e->fd, e->whole)) warn("%s: ends in half a record", e->path);
    e->whole += (off_t)record.bytes;
    free(record.data);
}

// TensorBoard reads the files of a folder in the order of their names, so a new one gets a later second than
// all that are there.
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

// Opens a new event file in `folder`, which exists. `step`: steps done so far; when a run goes on,
// TensorBoard drops what earlier files hold beyond it, since those steps are about to be written again.
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
    e->fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
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

// All numbers of a record but the step as one Event at its step; null, which JSON writes for what is not
// finite, is NaN.
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

#endif
