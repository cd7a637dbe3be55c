// Streams and events of the emulated GPU. Part of dev/cuda/emulate.h. Work that is put on a stream waits
// there until something demands it (a synchronisation, an event that another stream waits for), or until it
// is drawn: between two calls of the host a random stream does some of its work, or none does. So a copy from
// memory that the host has changed in the meantime, or a kernel that reads before the copy is done, gives
// wrong results. Work on stream 0 waits for all other streams (except those that are non-blocking) and is
// done at once.
#ifndef CLIPC_EMULATE_STREAMS_H
#define CLIPC_EMULATE_STREAMS_H

#include <deque>
#include <functional>
#include <memory>
#include <vector>

struct emulate_stream {
    bool blocking; // it waits for stream 0, and stream 0 for it
    std::deque<std::function<void()>> work;
    uint64_t queued, done; // tasks, since it was created
};

struct emulate_event {
    emulate_stream *stream; // NULL: not recorded, or there is nothing to wait for
    uint64_t at;            // what the stream had queued
    double seconds;
};

namespace emulate {

inline std::vector<emulate_stream *> streams;

static inline void run_until(emulate_stream *s, uint64_t at) {
    while (s && s->done < at) {
        const std::function<void()> task = std::move(s->work.front());
        s->work.pop_front();
        task();
        s->done++;
    }
}

static inline void run_all(bool blocking_only) {
    for (emulate_stream *s : streams)
        if (s->blocking || !blocking_only) run_until(s, s->queued);
}

#ifdef CLIPC_GUARDS // the host moves AddressSanitizer's guards at once, so work must not wait
enum { DEFERS = 0 };
#else
enum { DEFERS = 1 };
#endif

inline void enqueue(emulate_stream *s, std::function<void()> task) {
    if (!s || !DEFERS) {
        run_all(true);
        task();
        return;
    }
    s->work.push_back(std::move(task));
    s->queued++;
    emulate_stream *drawn = streams[random_below((unsigned)streams.size())];
    if (random_below(2)) run_until(drawn, std::min<uint64_t>(drawn->queued, drawn->done + random_below(8)));
}

static inline double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

} // namespace emulate

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    *s = new emulate_stream{!(flags & cudaStreamNonBlocking), {}, 0, 0};
    emulate::streams.push_back(*s);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
static inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    emulate::run_until(s, s->queued);
    emulate::streams.erase(std::find(emulate::streams.begin(), emulate::streams.end(), s));
    delete s;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (s) emulate::run_until(s, s->queued);
    else emulate::run_all(true);
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceSynchronize() { return emulate::run_all(false), cudaSuccess; }

static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    return *e = new emulate_event(), cudaSuccess;
}
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    return emulate::run_until(e->stream, e->at), cudaSuccess;
}
static inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    return e->stream && e->stream->done < e->at ? cudaErrorNotReady : cudaSuccess;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    cudaEventSynchronize(e); // its time is noted there
    delete e;
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr) {
    emulate::enqueue(s, [e] { e->seconds = emulate::now(); });
    e->stream = s;
    e->at = s ? s->queued : 0;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) {
    emulate_stream *other = e->stream;
    const uint64_t at = e->at;
    if (other && other != s) emulate::enqueue(s, [other, at] { emulate::run_until(other, at); });
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    cudaEventSynchronize(begin);
    cudaEventSynchronize(end);
    return *ms = (float)(1e3 * (end->seconds - begin->seconds)), cudaSuccess;
}

#endif
