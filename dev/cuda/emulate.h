// CUDA kernels as C++ on a CPU, to be checked without a GPU: clipc/math/gpu.h includes this file when
// CLIPC_EMULATE is defined.
//
// The threads of a block are fibers of one thread of the operating system, and blocks run one after another
// in random order. A fiber runs until it has to wait (__syncthreads, a warp function); then another one that
// is ready runs: in half of the blocks a random one, in the others the one that became ready last, so that
// one warp runs ahead to the barrier before the next begins. Code that relies on an order which no barrier
// enforces gives wrong results in one or the other. These faults are found as well:
//   - reading unwritten memory, or leaving an output unwritten: shared memory and that of cudaMalloc() begin
//     filled with NaN, which spoils the result
//   - writing outside a buffer: guard bytes surround both kinds of memory, and are checked when a block and a
//     launch ends; under AddressSanitizer they stop the first access
//   - a barrier or warp function that not all of its threads reach, a mask without the caller, a shuffle from
//     a lane outside the mask
//   - a pointer to memory of the wrong kind, given to a kernel or a copy; the host touching the GPU's memory
//   - a missing event between streams: work on a stream is delayed, and streams overtake each other
//       (emulate_streams.h)
//   - blocks, grids and shared memory beyond the limits of the GPU
// Each of these ends the program with one line that names the kernel. Numbers are fp32 as C++ computes it,
// not bit for bit those of a GPU. CLIPC_EMULATE_SEED=n in the environment runs threads and blocks in another
// order.
#ifndef CLIPC_EMULATE_H
#define CLIPC_EMULATE_H

#include "clipc/base/utils.h" // die
#include "dev/cuda/emulate_types.h"

#include <functional>
#include <sys/mman.h>
#include <tuple>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#ifdef CLIPC_GUARDS // AddressSanitizer, see clipc/base/utils.h
#include <sanitizer/common_interface_defs.h>
#endif

enum { warpSize = 32 };
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    emulate::launch(#kernel, kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define SHARED_ARRAY(type, name) type *const name = reinterpret_cast<type *>(emulate::machine.shared.bytes)

typedef struct emulate_stream *cudaStream_t;

namespace emulate {

enum { STACK_BYTES = 256 << 10, MAX_THREADS = 1024, GUARD_BYTES = 256, POISON = 0xff };
enum { DEFAULT_SHARED = 48 << 10, MAX_SHARED = 227 << 10 };

// ---------------------------------------------------------------- memory with guards

// Bytes with GUARD_BYTES before and after them, 256-byte aligned.
struct Guarded {
    unsigned char *bytes = nullptr;
    size_t size = 0;
};

// The guard byte at address p: NaN as float and as bfloat16, so that reading it spoils the result, too.
static inline unsigned char guard_byte(const unsigned char *p) { return (uintptr_t)p & 1 ? 0x7f : 0xff; }

// space (size + 2 * GUARD_BYTES): 256-byte aligned
static inline Guarded guarded_in(void *space, size_t size) {
    Guarded g;
    g.bytes = (unsigned char *)space + GUARD_BYTES;
    g.size = size;
    for (unsigned char *before = g.bytes - GUARD_BYTES, *after = g.bytes + size; before < g.bytes;
         before++, after++) {
        *before = guard_byte(before);
        *after = guard_byte(after);
    }
    memset(g.bytes, POISON, size);
#ifdef CLIPC_GUARDS
    ASAN_POISON_MEMORY_REGION(g.bytes - GUARD_BYTES, GUARD_BYTES);
    ASAN_POISON_MEMORY_REGION(g.bytes + size, GUARD_BYTES);
#endif
    return g;
}

static inline Guarded guarded_alloc(size_t size) {
    void *p = nullptr;
    return posix_memalign(&p, 256, size + 2 * GUARD_BYTES) ? Guarded() : guarded_in(p, size);
}

static inline void guarded_lift(const Guarded &g) {
#ifdef CLIPC_GUARDS
    ASAN_UNPOISON_MEMORY_REGION(g.bytes - GUARD_BYTES, g.size + 2 * GUARD_BYTES);
#endif
    (void)g;
}

static inline void guarded_free(Guarded *g) {
    if (!g->bytes) return;
    guarded_lift(*g);
    free(g->bytes - GUARD_BYTES);
    *g = Guarded();
}

// Offset from the start of the buffer of the first guard byte that was overwritten; 0: none was.
static inline ptrdiff_t guarded_damage(const Guarded &g) {
#ifndef CLIPC_GUARDS // AddressSanitizer checks them otherwise
    const unsigned char *after = g.bytes + g.size;
    for (ptrdiff_t i = 0; i < GUARD_BYTES; i++) {
        if (after[i] != guard_byte(after + i)) return (ptrdiff_t)g.size + i;
        if (g.bytes[-1 - i] != guard_byte(g.bytes - 1 - i)) return -1 - i;
    }
#endif
    (void)g;
    return 0;
}

// ---------------------------------------------------------------- fibers

// A stack and where on it the fiber stopped. resume() enters or continues it, until it calls pause() or its
// function ends.
struct Stack {
    char *bytes, *top;
    void *stopped; // stack pointer
    void *fake;    // AddressSanitizer's
};

enum State { NEW, READY, AT_BARRIER, IN_WARP, FINISHED };

struct Thread {
    State state;
    uint3 index;
    Stack *stack;
    const char *at;                                 // the function it waits in
    int line;                                       // of the barrier; 0 in a warp function
    unsigned mask;                                  // lanes of the warp function
    void *payload;                                  // its arguments and results
    void (*combine)(void **payload, unsigned mask); // computes the results of all lanes
};

struct Machine {
    // the launch and block that run
    const char *kernel = nullptr;
    void (*call)(const void *) = nullptr; // the kernel and its arguments
    const void *arguments = nullptr;
    Guarded shared;
    int threads = 0, ready_count = 0, current = 0, at_barrier = 0;
    Thread thread[MAX_THREADS];
    int ready[MAX_THREADS];
    Stack *idle[MAX_THREADS];
    int idle_count = 0, stacks = 0;
    Stack scheduler = {nullptr, nullptr, nullptr, nullptr};
    const void *scheduler_bottom = nullptr;
    size_t scheduler_size = 0;
    uint64_t random = 0;
};
inline Machine machine;

[[noreturn]] PRINTF_LIKE(1, 2) static inline void fail(const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const Machine &m = machine;
    if (!m.kernel) die(EXIT_RUNTIME, "emulated GPU: %s", text);
    die(EXIT_RUNTIME, "emulated GPU: %s (kernel %s, block %u,%u,%u of %u,%u,%u, thread %u,%u,%u of %u,%u,%u)",
        text, m.kernel, blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, threadIdx.x,
        threadIdx.y, threadIdx.z, blockDim.x, blockDim.y, blockDim.z);
}

static inline unsigned random_below(unsigned n) { // xorshift64*
    uint64_t &r = machine.random;
    if (!r) {
        const char *seed = getenv("CLIPC_EMULATE_SEED");
        r = 0x9e3779b97f4a7c15ull * (2 * strtoull(seed ? seed : "1", NULL, 10) + 1);
    }
    r ^= r >> 12;
    r ^= r << 25;
    r ^= r >> 27;
    return (unsigned)(((r * 0x2545f4914f6cdd1dull >> 32) * n) >> 32);
}

static inline void fiber_main();

#if defined(__x86_64__)
// Saves the registers that a function must preserve, stores the stack pointer, and continues on another
// stack.
extern "C" void clipc_emulate_switch(void **stopped, void *next);
asm(".text\n"
    "clipc_emulate_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
static inline void stack_begin(Stack *s) {
    void **top = (void **)s->top - 1; // as if fiber_main had been called: 8 bytes past a multiple of 16
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    s->stopped = top;
}
static inline void stack_switch(Stack *from, Stack *to) { clipc_emulate_switch(&from->stopped, to->stopped); }
#else
static inline void stack_begin(Stack *s) {
    if (!s->stopped) s->stopped = malloc_check(sizeof(ucontext_t));
    ucontext_t *context = (ucontext_t *)s->stopped;
    getcontext(context);
    context->uc_stack.ss_sp = s->bytes;
    context->uc_stack.ss_size = (size_t)(s->top - s->bytes);
    context->uc_link = nullptr;
    makecontext(context, fiber_main, 0);
}
static inline void stack_switch(Stack *from, Stack *to) {
    if (!from->stopped) from->stopped = malloc_check(sizeof(ucontext_t));
    swapcontext((ucontext_t *)from->stopped, (ucontext_t *)to->stopped);
}
#endif

static inline void switch_started(Stack *from, const void *bottom, size_t size, bool ends) {
#ifdef CLIPC_GUARDS
    __sanitizer_start_switch_fiber(ends ? nullptr : &from->fake, bottom, size);
#endif
    (void)from;
    (void)bottom;
    (void)size;
    (void)ends;
}

static inline void switch_finished(Stack *to, const void **bottom, size_t *size) {
#ifdef CLIPC_GUARDS
    __sanitizer_finish_switch_fiber(to->fake, bottom, size);
#endif
    (void)to;
    (void)bottom;
    (void)size;
}

static inline Stack *stack_take() {
    Machine &m = machine;
    if (m.idle_count) return m.idle[--m.idle_count];
    const size_t page = 4096; // unreadable, below the stack: an overflow stops the program
    char *bytes =
        (char *)mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED || mprotect(bytes, page, PROT_NONE))
        die(EXIT_RUNTIME, "emulated GPU: no memory for the stacks of a block; lower its size");
    Stack *s = (Stack *)calloc_check(1, sizeof *s);
    s->bytes = bytes + page;
    s->top = bytes + page + STACK_BYTES -
             m.stacks++ % 64 * 448; // tops at equal distances would share a few lines of the cache
    return s;
}

// Runs thread i until it waits or ends.
static inline void resume(int i) {
    Machine &m = machine;
    Thread *t = &m.thread[i];
    if (t->state == NEW) {
        t->stack = stack_take();
        t->stack->fake = nullptr;
        stack_begin(t->stack);
    }
    t->state = READY;
    m.current = i;
    threadIdx = t->index;
    switch_started(&m.scheduler, t->stack->bytes, STACK_BYTES, false);
    stack_switch(&m.scheduler, t->stack);
    switch_finished(&m.scheduler, nullptr, nullptr);
    if (t->state == FINISHED) {
        m.idle[m.idle_count++] = t->stack;
        t->stack = nullptr;
    }
}

// Back to the scheduler, until it resumes this thread.
static inline void pause(State state) {
    Machine &m = machine;
    Thread *t = &m.thread[m.current];
    t->state = state;
    switch_started(t->stack, m.scheduler_bottom, m.scheduler_size, state == FINISHED);
    stack_switch(t->stack, &m.scheduler);
    switch_finished(t->stack, &m.scheduler_bottom, &m.scheduler_size);
}

static inline void fiber_main() {
    Machine &m = machine;
    switch_finished(m.thread[m.current].stack, &m.scheduler_bottom, &m.scheduler_size);
    m.call(m.arguments);
    pause(FINISHED);
    abort(); // a finished fiber is not resumed
}

// ---------------------------------------------------------------- barriers and warp functions

// Threads first … first + n - 1 whose bit is set in mask become ready, in a random order.
static inline void make_ready(int first, int n, unsigned mask, State state) {
    Machine &m = machine;
    const int begin = m.ready_count;
    for (int i = 0; i < n; i++) {
        if (!(mask >> i & 1)) continue;
        const unsigned at = random_below((unsigned)(m.ready_count - begin + 1));
        m.ready[m.ready_count++] = m.ready[begin + (int)at];
        m.ready[begin + (int)at] = first + i;
        m.thread[first + i].state = state;
    }
}

// All threads become ready, warp by warp, so that the last one may run far ahead of the others.
static inline void make_all_ready(State state) {
    Machine &m = machine;
    const int warps = (m.threads + warpSize - 1) / warpSize;
    int order[MAX_THREADS / warpSize];
    for (int w = 0; w < warps; w++) {
        const unsigned at = random_below((unsigned)w + 1);
        order[w] = order[at];
        order[at] = w;
    }
    for (int w = 0; w < warps; w++)
        make_ready(
            order[w] * warpSize, std::min<int>(warpSize, m.threads - order[w] * warpSize), 0xffffffff, state);
}

static inline void barrier(const char *file, int line) {
    if (!machine.kernel) fail("%s:%d: __syncthreads() outside a kernel", file, line);
    Thread *t = &machine.thread[machine.current];
    t->at = file;
    t->line = line;
    pause(AT_BARRIER);
}

// All threads have arrived: at the same barrier?
static inline void release_barrier() {
    Machine &m = machine;
    for (int i = 0; i < m.threads; i++) {
        const Thread *t = &m.thread[i], *first = &m.thread[0];
        if (t->line != first->line || strcmp(t->at, first->at) != 0) {
            threadIdx = t->index;
            fail("__syncthreads() of %s:%d meets that of %s:%d", t->at, t->line, first->at, first->line);
        }
    }
    make_all_ready(READY);
    m.at_barrier = 0;
}

// Every lane of `mask` calls this with its own payload; when the last has arrived, combine() computes the
// results of all.
static inline void warp_function(
    const char *name, unsigned mask, void *payload, void (*combine)(void **payload, unsigned mask)) {
    Machine &m = machine;
    if (!m.kernel) fail("%s outside a kernel", name);
    Thread *t = &m.thread[m.current];
    const int lane = m.current % warpSize;
    const int lanes = std::min<int>(warpSize, m.threads - (m.current - lane));
    if (!(mask >> lane & 1)) fail("%s: mask %08x leaves out the lane %d that calls", name, mask, lane);
    if (lanes < warpSize && mask >> lanes)
        fail("%s: mask %08x names lanes that a warp of %d threads does not have", name, mask, lanes);
    t->at = name;
    t->line = 0;
    t->mask = mask;
    t->payload = payload;
    t->combine = combine;
    pause(IN_WARP);
}

// Thread i waits in a warp function: if all lanes of its mask do, they become ready.
static inline void release_warp(int i) {
    Machine &m = machine;
    const Thread *caller = &m.thread[i];
    const int first = i - i % warpSize;
    void *payload[warpSize] = {nullptr};
    for (int lane = 0; lane < warpSize; lane++) {
        if (!(caller->mask >> lane & 1)) continue;
        const Thread *t = &m.thread[first + lane];
        if (t->state != IN_WARP || t->mask != caller->mask || t->combine != caller->combine ||
            strcmp(t->at, caller->at) != 0)
            return;
        payload[lane] = t->payload;
    }
    if (caller->combine) caller->combine(payload, caller->mask);
    make_ready(first, warpSize, caller->mask, READY);
}

// No thread is ready and not all have finished.
[[noreturn]] static inline void report_stuck() {
    const Machine &m = machine;
    int finished = 0, waiting = 0;
    for (int i = 0; i < m.threads; i++) {
        finished += m.thread[i].state == FINISHED;
        waiting += m.thread[i].state == AT_BARRIER;
    }
    for (int i = 0; i < m.threads; i++) {
        const Thread *t = &m.thread[i];
        threadIdx = t->index;
        if (t->state == IN_WARP) fail("not all lanes of mask %08x reach %s", t->mask, t->at);
        if (t->state == AT_BARRIER)
            fail("the barrier of %s:%d is reached by %d of %d threads, %d have ended", t->at, t->line,
                waiting, m.threads, finished);
    }
    abort(); // one of them waits
}

// ---------------------------------------------------------------- blocks and launches

#ifdef CLIPC_SHARED_SECTION
extern "C" __attribute__((weak)) unsigned char __start_clipc_shared[], __stop_clipc_shared[];
static inline void poison_static_shared() {
    if (__start_clipc_shared)
        memset(__start_clipc_shared, POISON, (size_t)(__stop_clipc_shared - __start_clipc_shared));
}
#else
static inline void poison_static_shared() {}
#endif

static inline void run_block() {
    Machine &m = machine;
    m.ready_count = m.at_barrier = 0;
    for (int i = 0; i < m.threads; i++) {
        const unsigned u = (unsigned)i;
        m.thread[i].index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
    }
    make_all_ready(NEW);
    poison_static_shared();
    memset(m.shared.bytes, POISON, m.shared.size);
    int finished = 0;
    const bool fair = random_below(2);
    while (m.ready_count) {
        const unsigned pick = fair ? random_below((unsigned)m.ready_count) : (unsigned)m.ready_count - 1;
        const int i = m.ready[pick];
        m.ready[pick] = m.ready[--m.ready_count];
        resume(i);
        switch (m.thread[i].state) {
        case FINISHED: finished++; break;
        case IN_WARP: release_warp(i); break;
        case AT_BARRIER:
            if (++m.at_barrier == m.threads) release_barrier();
            break;
        default: abort();
        }
    }
    if (finished < m.threads) report_stuck();
    const ptrdiff_t damage = guarded_damage(m.shared);
    if (damage) fail("byte %td of %zu of shared memory is written", damage, m.shared.size);
}

static inline void check_launch(dim3 grid, dim3 block, size_t shared_bytes, size_t shared_limit) {
    const unsigned threads = block.x * block.y * block.z;
    if (!threads || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > MAX_THREADS)
        fail("a block of %u x %u x %u threads; 1 to 1024", block.x, block.y, block.z);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    if (shared_bytes > shared_limit)
        fail("%zu bytes of shared memory, where cudaFuncSetAttribute() allows this kernel %zu", shared_bytes,
            shared_limit);
}

// Blocks in a random order: first, then every stride-th, where stride and count have no common divisor.
static inline void run_grid(size_t count) {
    const size_t first = random_below((unsigned)std::min<size_t>(count, 0xffffffff));
    size_t stride = 1 + random_below((unsigned)std::min<size_t>(count, 0xffffffff));
    for (size_t a = stride, b = count; b; a = stride, b = count) {
        while (b) {
            const size_t r = a % b;
            a = b;
            b = r;
        }
        if (a == 1) break;
        stride++;
    }
    for (size_t i = 0, at = first; i < count; i++, at = (at + stride) % count) {
        blockIdx = {(unsigned)(at % gridDim.x), (unsigned)(at / gridDim.x % gridDim.y),
            (unsigned)(at / gridDim.x / gridDim.y)};
        run_block();
    }
}

// While one of these is alive, the memory of the GPU can be read and written: in kernels, and in what
// replaces them on the host. Otherwise only cudaMemcpy() and its relatives can, as on a GPU.
struct DeviceAccess {
    DeviceAccess();
    ~DeviceAccess();
};

size_t shared_limit(const void *kernel); // emulate_api.h
void check_argument(const void *p);      // a pointer handed to a kernel
void check_device_guards();
template <typename T> static inline void check_any(const T &) {}
template <typename T> static inline void check_any(T *const &p) { check_argument((const void *)p); }

void enqueue(emulate_stream *stream, std::function<void()> task); // emulate_streams.h

// What fail() reports.
static inline void launch_begin(const char *name, dim3 grid, dim3 block) {
    machine.kernel = name;
    gridDim = grid;
    blockDim = block;
    blockIdx = threadIdx = {0, 0, 0};
}

// Runs a launch whose turn has come.
static inline void run_launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes,
    void (*call)(const void *), const void *arguments) {
    Machine &m = machine;
    launch_begin(name, grid, block);
    m.call = call;
    m.arguments = arguments;
    m.threads = (int)(block.x * block.y * block.z);
    m.shared = guarded_alloc(shared_bytes);
    if (!m.shared.bytes) fail("no memory for %zu bytes of shared memory", shared_bytes);
    const DeviceAccess access;
    run_grid((size_t)grid.x * grid.y * grid.z);
    check_device_guards();
    guarded_free(&m.shared);
    m.kernel = nullptr;
}

// The arguments are converted to the kernel's parameters and copied, as a real launch does.
template <typename... P, typename... A>
static inline void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
    cudaStream_t stream, A &&...arguments) {
    Machine &m = machine;
    if (m.kernel) fail("a kernel launches the kernel %s", name);
    launch_begin(name, grid, block);
    check_launch(grid, block, shared_bytes, shared_limit((const void *)kernel));
    const std::tuple<P...> parameters(std::forward<A>(arguments)...);
    std::apply([](const P &...p) { (check_any(p), ...); }, parameters);
    m.kernel = nullptr;
    enqueue(stream, [=] {
        const auto body = [&] { std::apply(kernel, parameters); };
        run_launch(
            name, grid, block, shared_bytes, [](const void *f) { (*(decltype(body) *)f)(); }, &body);
    });
}

} // namespace emulate

#define __syncthreads() emulate::barrier(__FILE__, __LINE__)

#include "dev/cuda/emulate_warp.h" // __shfl_sync and its relatives, wmma
#include "dev/cuda/emulate_api.h"  // cudaMalloc and the other functions of the host

#endif
