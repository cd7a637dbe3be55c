// TensorBoard event files: checksums against published values, every byte decoded by an independent reader,
// resuming, a full disk.
#include "clipc/train/trackers.h"
#include "dev/test/test.h"

#include <sys/resource.h>
#include <signal.h>

enum { MOST_EVENTS = 64, MOST_VALUES = 16 };

typedef struct {
    double wall_time;
    int64_t step;
    char version[32];
    int status; // of a session log; 0: none
    int count;
    struct {
        char name[64];
        float value;
    } values[MOST_VALUES];
} Event;

static uint64_t take_varint(const unsigned char **p, const unsigned char *end) {
    uint64_t x = 0;
    for (int shift = 0; *p < end; shift += 7) {
        unsigned char byte = *(*p)++;
        x |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return x;
    }
    return UINT64_MAX;
}

static void read_value(Event *e, const unsigned char *p, const unsigned char *end) {
    while (p < end) {
        uint64_t tag = take_varint(&p, end);
        if (tag == 0x0a) {
            size_t n = take_varint(&p, end);
            snprintf(e->values[e->count].name, sizeof e->values[0].name, "%.*s", (int)n, (const char *)p);
            p += n;
        } else if (tag == 0x15) {
            memcpy(&e->values[e->count].value, p, 4);
            p += 4;
        } else {
            EXPECT(false, "unknown field %llu of a value", (unsigned long long)tag);
            return;
        }
    }
    e->count++;
}

static void read_event(Event *e, const unsigned char *p, const unsigned char *end) {
    memset(e, 0, sizeof *e);
    while (p < end) {
        uint64_t tag = take_varint(&p, end), n = 0;
        if (tag == 0x09) {
            memcpy(&e->wall_time, p, 8);
            p += 8;
        } else if (tag == 0x10) e->step = (int64_t)take_varint(&p, end);
        else {
            n = take_varint(&p, end);
            EXPECT(p + n <= end);
            if (tag == 0x1a) snprintf(e->version, sizeof e->version, "%.*s", (int)n, (const char *)p);
            else if (tag == 0x3a) e->status = n == 2 && p[0] == 0x08 ? p[1] : -1;
            else if (tag == 0x2a) {
                for (const unsigned char *q = p; q < p + n;) {
                    EXPECT(take_varint(&q, p + n) == 0x0a);
                    size_t inner = take_varint(&q, p + n);
                    read_value(e, q, q + inner);
                    q += inner;
                }
            } else EXPECT(false, "unknown field %llu of an event", (unsigned long long)tag);
            p += n;
        }
    }
}

// All events of a file, checksums verified; returns their number.
static int read_file(const char *path, Event events[MOST_EVENTS]) {
    size_t bytes;
    unsigned char *data = (unsigned char *)file_read_all(path, &bytes);
    int count = 0;
    size_t at = 0;
    while (at + 16 <= bytes && count < MOST_EVENTS) {
        uint64_t length;
        uint32_t crc[2];
        memcpy(&length, data + at, 8);
        memcpy(&crc[0], data + at + 8, 4);
        EXPECT(crc[0] == crc32c_masked(data + at, 8));
        if (length > bytes - at - 16) break;
        memcpy(&crc[1], data + at + 12 + length, 4);
        EXPECT(crc[1] == crc32c_masked(data + at + 12, length));
        read_event(&events[count++], data + at + 12, data + at + 12 + length);
        at += 16 + length;
    }
    EXPECT(at == bytes, "%zu bytes after the last record", bytes - at);
    free(data);
    return count;
}

static void test_checksums_have_the_published_values(void) {
    unsigned char zeros[32] = {0}, ones[32], ascending[32];
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++) ascending[i] = (unsigned char)i;
    EXPECT(crc32c("123456789", 9) == 0xe3069283u); // RFC 3720 B.4 and the usual check value
    EXPECT(crc32c(zeros, 32) == 0x8a9136aau);
    EXPECT(crc32c(ones, 32) == 0x62a8ab43u);
    EXPECT(crc32c(ascending, 32) == 0x46dd794eu);
    EXPECT(crc32c_masked("", 0) == 0xa282ead8u);
}

static Record example(int64_t step) {
    Record r = record_new(step);
    record_number(&r, "loss", 2.5 / (double)step);
    record_number(&r, "grad_norm", NAN);
    record_number(&r, "zeroshot_top1/far \"away\" é", 0.75);
    return r;
}

static void expect_example(const Event *e, int64_t step) {
    EXPECT(e->step == step, "%lld", (long long)e->step);
    EXPECT(e->count == 3 && e->status == 0);
    EXPECT_STRING(e->values[0].name, "loss");
    EXPECT_CLOSE(e->values[0].value, 2.5 / (double)step, 1e-7);
    EXPECT_STRING(e->values[1].name, "grad_norm");
    EXPECT(isnan(e->values[1].value));
    EXPECT_STRING(e->values[2].name, "zeroshot_top1/far \"away\" é");
    EXPECT_CLOSE(e->values[2].value, 0.75, 0);
}

static void test_a_resumed_run_writes_a_later_file(const char *folder) {
    static Event events[MOST_EVENTS];
    EventFile first, second;
    events_open(&first, folder, 0);
    for (int64_t step = 1; step <= 5; step++) {
        Record r = example(step == 5 ? (int64_t)1 << 40 : step); // a step that needs many bytes
        events_record(&first, &r, 1.7e9 + (double)step);
    }
    events_close(&first);
    EXPECT(read_file(first.path, events) == 6);
    EXPECT_STRING(events[0].version, "brain.Event:2");
    EXPECT(events[0].status == 0 && events[0].count == 0);
    for (int i = 1; i <= 4; i++) expect_example(&events[i], i);
    expect_example(&events[5], (int64_t)1 << 40);
    EXPECT_CLOSE(events[3].wall_time, 1.7e9 + 3, 0);

    events_open(&second, folder, 3);
    Record r = example(4);
    events_record(&second, &r, 1.7e9);
    events_close(&second);
    EXPECT(strcmp(second.path, first.path) > 0, "%s is read before %s", second.path, first.path);
    EXPECT(read_file(second.path, events) == 3);
    EXPECT_STRING(events[0].version, "brain.Event:2");
    EXPECT(events[1].status == 1 && events[1].step == 4);
    expect_example(&events[2], 4);
    unlink(first.path);
    unlink(second.path);
}

// The disk is full (here: files may not grow beyond 300 bytes) in the middle of a record: complete records
// remain, and the program goes on.
static void test_a_full_disk_leaves_complete_records(const char *folder) {
    static Event events[MOST_EVENTS];
    struct rlimit old, small;
    EventFile e;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 300;
    signal(SIGXFSZ, SIG_IGN);
    events_open(&e, folder, 0);
    setrlimit(RLIMIT_FSIZE, &small);
    int stderr_copy = dup(2), nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, 2);
    for (int64_t step = 1; step <= 9; step++) {
        Record r = example(step);
        events_record(&e, &r, 1);
    }
    dup2(stderr_copy, 2);
    close(stderr_copy);
    close(nowhere);
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT(e.failed);
    events_close(&e);
    int count = read_file(e.path, events);
    EXPECT(count >= 2 && count < 9, "%d", count);
    for (int i = 1; i < count; i++) expect_example(&events[i], i);
    unlink(e.path);
}

int main(void) {
    char folder[] = "/tmp/test_tensorboard_XXXXXX";
    if (!mkdtemp(folder)) die(EXIT_RUNTIME, "%s: cannot make the folder", folder);
    RUN(test_checksums_have_the_published_values);
    RUN(test_a_resumed_run_writes_a_later_file, folder);
    RUN(test_a_full_disk_leaves_complete_records, folder);
    EXPECT(rmdir(folder) == 0);
    return test_report();
}
