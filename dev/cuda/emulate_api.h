// CUDA's functions of the host: memory, copies, properties. Part of dev/cuda/emulate.h.
#ifndef CLIPC_EMULATE_API_H
#define CLIPC_EMULATE_API_H

#include <mutex>
#include <signal.h>

typedef enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNotReady = 600
} cudaError_t;
typedef enum {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
} cudaMemcpyKind;
typedef enum {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
} cudaFuncAttribute;
enum {
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventDisableTiming = 2,
    cudaHostAllocDefault = 0
};

typedef struct emulate_event *cudaEvent_t;
#include "dev/cuda/emulate_streams.h" // cudaStream…, cudaEvent…

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock, l2CacheSize, memoryBusWidth;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};

namespace emulate {

enum MemoryKind { DEVICE, PINNED };

struct Allocation {
    Guarded memory;
    MemoryKind kind;
    Allocation *next;
};

struct Attribute {
    const void *kernel;
    size_t shared;
    Attribute *next;
};

// What the host knows of the GPU. Workers of the loader may ask for pinned memory, hence the lock.
struct Device {
    std::mutex lock;
    Allocation *allocations = nullptr;
    Attribute *attributes = nullptr;
    size_t used = 0, total = (size_t)8 << 30; // CLIPC_EMULATE_MEMORY=bytes in the environment: so much
    // POOL_BYTES of addresses, handed out once and never again; closed while no DeviceAccess is alive
    unsigned char *pool = nullptr;
    size_t pool_used = 0;
    int open = 0;
    struct sigaction before;
    Device() {
        if (const char *bytes = getenv("CLIPC_EMULATE_MEMORY")) total = strtoull(bytes, NULL, 10);
    }
};
inline Device device;
static const size_t POOL_BYTES = (size_t)1 << 40, PAGE = 4096;

// Reports an access to the pool while it is closed; any other fault takes its usual course.
static inline void on_fault(int, siginfo_t *info, void *) {
    const unsigned char *at = (const unsigned char *)info->si_addr;
    if (at >= device.pool && at < device.pool + device.pool_used) {
        static const char text[] =
            "emulated GPU: the host touches memory of the GPU; copy it with cudaMemcpy\n";
        if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(EXIT_RUNTIME);
        _exit(EXIT_RUNTIME);
    }
    sigaction(SIGSEGV, &device.before, nullptr);
}

static inline void pool_protect(int protection) {
    if (device.pool_used && mprotect(device.pool, device.pool_used, protection))
        die(EXIT_RUNTIME, "emulated GPU: mprotect: %s", strerror(errno));
}

inline DeviceAccess::DeviceAccess() {
    if (!device.open++) pool_protect(PROT_READ | PROT_WRITE);
}
inline DeviceAccess::~DeviceAccess() {
    if (!--device.open) pool_protect(PROT_NONE);
}

// Space in the pool; NULL: none is left.
static inline void *pool_take(size_t bytes) {
    if (!device.pool) {
        void *p = mmap(
            nullptr, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return nullptr;
        device.pool = (unsigned char *)p;
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &action, &device.before);
    }
    if (bytes > POOL_BYTES - device.pool_used) return nullptr;
    void *space = device.pool + device.pool_used;
    device.pool_used += (bytes + PAGE - 1) / PAGE * PAGE;
    return space;
}

static inline const Allocation *allocation_of(const void *p) {
    for (const Allocation *a = device.allocations; a; a = a->next)
        if ((const unsigned char *)p >= a->memory.bytes &&
            (const unsigned char *)p <= a->memory.bytes + a->memory.size)
            return a;
    return nullptr;
}

static inline cudaError_t allocate(void **p, size_t bytes, MemoryKind kind) {
    const std::lock_guard<std::mutex> guard(device.lock);
    *p = nullptr;
    if (kind == DEVICE && bytes > device.total - device.used) return cudaErrorMemoryAllocation;
    const DeviceAccess access;
    void *space = kind == DEVICE ? pool_take(bytes + 2 * GUARD_BYTES) : nullptr;
    Allocation *a = new Allocation{space            ? guarded_in(space, bytes)
                                   : kind == PINNED ? guarded_alloc(bytes)
                                                    : Guarded(),
        kind, device.allocations};
    if (!a->memory.bytes) {
        delete a;
        return cudaErrorMemoryAllocation;
    }
    device.allocations = a;
    device.used += kind == DEVICE ? bytes : 0;
    *p = a->memory.bytes;
    return cudaSuccess;
}

static inline void check_allocation(const Allocation *a) {
    const ptrdiff_t damage = guarded_damage(a->memory);
    if (damage) fail("byte %td of a buffer of %zu bytes is written", damage, a->memory.size);
}

static inline cudaError_t release(void *p, MemoryKind kind) {
    run_all(false);
    const std::lock_guard<std::mutex> guard(device.lock);
    if (!p) return cudaSuccess;
    for (Allocation **at = &device.allocations; *at; at = &(*at)->next) {
        Allocation *a = *at;
        if (a->memory.bytes != p || a->kind != kind) continue;
        const DeviceAccess access;
        check_allocation(a);
        *at = a->next;
        device.used -= kind == DEVICE ? a->memory.size : 0;
        if (kind == PINNED) guarded_free(&a->memory);
        else {
            guarded_lift(a->memory);
            madvise(a->memory.bytes - GUARD_BYTES, a->memory.size + 2 * GUARD_BYTES, MADV_DONTNEED);
        }
        delete a;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

inline void check_device_guards() {
    const std::lock_guard<std::mutex> guard(device.lock);
    for (const Allocation *a = device.allocations; a; a = a->next) check_allocation(a);
}

inline void check_argument(const void *p) {
    const std::lock_guard<std::mutex> guard(device.lock);
    if (p && !allocation_of(p)) fail("an argument points to memory of the host");
}

inline size_t shared_limit(const void *kernel) {
    for (const Attribute *a = device.attributes; a; a = a->next)
        if (a->kernel == kernel) return a->shared;
    return DEFAULT_SHARED;
}

static inline cudaError_t allow_shared(const void *kernel, size_t bytes) {
    if (bytes > MAX_SHARED) return cudaErrorInvalidValue;
    for (Attribute *a = device.attributes; a; a = a->next)
        if (a->kernel == kernel) return a->shared = std::max<size_t>(bytes, DEFAULT_SHARED), cudaSuccess;
    device.attributes = new Attribute{kernel, std::max<size_t>(bytes, DEFAULT_SHARED), device.attributes};
    return cudaSuccess;
}

static inline bool is_pinned(const void *p) {
    const std::lock_guard<std::mutex> guard(device.lock);
    const Allocation *a = allocation_of(p);
    return a && a->kind == PINNED;
}

// Are the `bytes` from p on where the copy expects them, and inside one buffer?
static inline void check_range(const void *p, size_t bytes, bool on_device, const char *end) {
    const std::lock_guard<std::mutex> guard(device.lock);
    const Allocation *a = allocation_of(p);
    if (on_device != (a && a->kind == DEVICE))
        fail("a copy's %s is in memory of the %s", end, on_device ? "host" : "GPU");
    if (a && (const unsigned char *)p + bytes > a->memory.bytes + a->memory.size)
        fail("a copy's %s runs %zu bytes over its buffer of %zu", end,
            (size_t)((const unsigned char *)p + bytes - a->memory.bytes) - a->memory.size, a->memory.size);
}

static inline void check_copy(const void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    if (kind == cudaMemcpyDefault || !bytes) return;
    check_range(to, bytes, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, "target");
    check_range(from, bytes, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice, "source");
}

} // namespace emulate

// ---------------------------------------------------------------- memory

template <typename T> static inline cudaError_t cudaMalloc(T **p, size_t bytes) {
    return emulate::allocate((void **)p, bytes, emulate::DEVICE);
}
template <typename T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes) {
    return emulate::allocate((void **)p, bytes, emulate::PINNED);
}
template <typename T> static inline cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned) {
    return emulate::allocate((void **)p, bytes, emulate::PINNED);
}
static inline cudaError_t cudaFree(void *p) { return emulate::release(p, emulate::DEVICE); }
static inline cudaError_t cudaFreeHost(void *p) { return emulate::release(p, emulate::PINNED); }

static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    emulate::check_copy(to, from, bytes, kind);
    emulate::run_all(true);
    const emulate::DeviceAccess access;
    if (bytes) memcpy(to, from, bytes);
    return cudaSuccess;
}

// Host memory that is not pinned is read, or written, before the call returns.
static inline cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
    emulate::check_copy(to, from, bytes, kind);
    std::shared_ptr<std::vector<char>> staged;
    if (kind == cudaMemcpyHostToDevice && !emulate::is_pinned(from))
        staged = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
    emulate::enqueue(stream, [=] {
        const emulate::DeviceAccess access;
        if (bytes) memcpy(to, staged ? staged->data() : from, bytes);
    });
    if (kind == cudaMemcpyDeviceToHost && !emulate::is_pinned(to)) cudaStreamSynchronize(stream);
    return cudaSuccess;
}

static inline cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
    size_t width, size_t height, cudaMemcpyKind kind) {
    if (width > to_pitch || width > from_pitch) return cudaErrorInvalidValue;
    for (size_t y = 0; y < height; y++)
        cudaMemcpy((char *)to + y * to_pitch, (const char *)from + y * from_pitch, width, kind);
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream = nullptr) {
    if (!bytes) return cudaSuccess;
    emulate::check_range(p, bytes, true, "target");
    emulate::enqueue(stream, [=] {
        const emulate::DeviceAccess access;
        memset(p, value, bytes);
    });
    return cudaSuccess;
}
static inline cudaError_t cudaMemset(void *p, int value, size_t bytes) {
    return cudaMemsetAsync(p, value, bytes, nullptr);
}

static inline cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *total = emulate::device.total;
    *free = emulate::device.total - emulate::device.used;
    return cudaSuccess;
}

// ---------------------------------------------------------------- the device

static inline cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
static inline cudaError_t cudaGetDevice(int *index) { return *index = 0, cudaSuccess; }
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
static inline const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory" : e ? "invalid argument" : "no error";
}

static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->major = 9;
    p->minor = 0;
    p->multiProcessorCount = 132;
    p->warpSize = warpSize;
    p->maxThreadsPerBlock = emulate::MAX_THREADS;
    p->l2CacheSize = 50 << 20;
    p->memoryBusWidth = 5120;
    p->totalGlobalMem = emulate::device.total;
    p->sharedMemPerBlock = emulate::DEFAULT_SHARED;
    p->sharedMemPerBlockOptin = emulate::MAX_SHARED;
    p->sharedMemPerMultiprocessor = 228 << 10;
    return cudaSuccess;
}

template <typename... P>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return attribute == cudaFuncAttributeMaxDynamicSharedMemorySize
               ? emulate::allow_shared((const void *)kernel, (size_t)value)
               : cudaSuccess;
}

#endif
