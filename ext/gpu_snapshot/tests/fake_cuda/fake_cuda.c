/* A libcuda for tests: host memory stands in for the device's, and every call can be made to fail.
 * It must never accept what the real driver refuses: unknown handles, wrong lengths, set reserved words.
 *
 * Next to this library, PATH.faults has lines "NAME CODE NTH": the NTH call of NAME (0: every one)
 * answers CODE; "missing NAME 0" hides an entry point; "version V 0" sets the CUDA version, "pid P 0" the
 * process that has CUDA state.
 * PATH.state is rewritten after every call that changes what is held: "NAME COUNT" lines.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, ILLEGAL_STATE = 401,
       NOT_FOUND = 500, NOT_READY = 600 };
enum { UNIT = 2 << 20, SLOTS = 64, NAMES = 64 };
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };

typedef struct { int kind, id; } Location;
typedef struct { int kind, handles; Location location; void *win32; unsigned char flags[8]; } Prop;
typedef struct { Location location; int flags; } Access;
typedef struct { uint64_t at, len; } Range;
typedef struct { char name[64]; int calls; } Counter;
typedef struct { unsigned char old[16], new[16]; } Pair;
typedef struct { Pair *pairs; unsigned count, pad; void *storage_out; uint64_t reserved[5]; } Restore;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Counter counters[NAMES];
static Range reservations[SLOTS], mappings[SLOTS], pins[SLOTS], allocations[SLOTS];
static int contexts, streams, events, initialised, process_state;
static unsigned lock_timeout;
static Pair last_pair;
static unsigned last_count;
static uint64_t capacity = 64ull * UNIT;

static const char *beside(const char *suffix) {
    static __thread char path[4096];
    Dl_info info;
    if (!dladdr((void *)beside, &info)) abort();
    snprintf(path, sizeof path, "%s.%s", info.dli_fname, suffix);
    return path;
}

/* The number of a line "name VALUE NTH" that applies to this call, or `otherwise`. */
static int fault(const char *name, int call, int otherwise) {
    char found[64];
    int value, nth;
    FILE *file = fopen(beside("faults"), "r");
    if (!file) return otherwise;
    while (fscanf(file, "%63s %d %d", found, &value, &nth) == 3)
        if (!strcmp(found, name) && (nth == 0 || nth == call)) otherwise = value;
    fclose(file);
    return otherwise;
}

static int used(Range *all) {
    int count = 0;
    for (int i = 0; i < SLOTS; i++) count += all[i].len != 0;
    return count;
}

static void report(void) {
    char path[4096], temporary[4200];
    snprintf(path, sizeof path, "%s", beside("state"));
    snprintf(temporary, sizeof temporary, "%s.new", path);
    FILE *file = fopen(temporary, "w");
    if (!file) abort();
    fprintf(file, "contexts %d\nstreams %d\nevents %d\nreservations %d\nmappings %d\npins %d\n"
            "allocations %d\nlock_timeout %u\npairs %u\npair_new %d\n",
            contexts, streams, events, used(reservations), used(mappings), used(pins),
            used(allocations), lock_timeout, last_count, last_pair.new[0]);
    fclose(file);
    rename(temporary, path);
}

/* Counts a call; the code it has to answer. Holds the lock until `leave`. */
static int enter(const char *name) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (counters[i].name[0] && strcmp(counters[i].name, name)) i++;
    if (i == NAMES - 1) abort();
    strcpy(counters[i].name, name);
    counters[i].calls++;
    if (!initialised && strcmp(name, "cuInit")) return NOT_INITIALIZED;
    return fault(name, counters[i].calls, OK);
}

static int leave(int result) {
    report();
    pthread_mutex_unlock(&lock);
    return result;
}

#define CALL(name) int result = enter(#name); if (result) return leave(result)
#define NEED(condition) if (!(condition)) return leave(INVALID_VALUE)

static Range *find(Range *all, uint64_t at) {
    for (int i = 0; i < SLOTS; i++) if (all[i].len && all[i].at == at) return &all[i];
    return NULL;
}

static void add(Range *all, uint64_t at, uint64_t len) {
    for (int i = 0; i < SLOTS; i++) if (!all[i].len) { all[i] = (Range){at, len}; return; }
    abort();
}

static int inside(Range *all, uint64_t at, uint64_t len) {
    for (int i = 0; i < SLOTS; i++)
        if (all[i].len && at >= all[i].at && at + len <= all[i].at + all[i].len) return 1;
    return 0;
}

int cuInit(unsigned flags) { CALL(cuInit); NEED(flags == 0); initialised = 1; return leave(OK); }
int cuDriverGetVersion(int *version) { *version = fault("version", 1, 13000); return OK; }
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : "fake error";
    return code == 9999 ? INVALID_VALUE : OK;
}
int cuDeviceGetCount(int *count) { CALL(cuDeviceGetCount); *count = 2; return leave(OK); }
int cuDeviceGet(int *device, int index) { CALL(cuDeviceGet); *device = index; return leave(OK); }
int cuDeviceGetName(char *name, int len, int device) {
    CALL(cuDeviceGetName);
    snprintf(name, len, "Fake GPU %d", device);
    return leave(OK);
}
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    CALL(cuDeviceGetUuid);
    memset(uuid, 0x40 + device, 16);
    return leave(OK);
}
int cuDeviceTotalMem(size_t *bytes, int device) {
    CALL(cuDeviceTotalMem);
    *bytes = capacity;
    return leave(device >= 0 ? OK : INVALID_VALUE);
}
int cuDeviceGetAttribute(int *value, int which, int device) {
    CALL(cuDeviceGetAttribute);
    NEED(device >= 0 && (which == 75 || which == 76));
    *value = which == 75 ? 9 : 0;
    return leave(OK);
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    CALL(cuDevicePrimaryCtxRetain);
    *context = (void *)(uintptr_t)(0x1000 + device);
    contexts++;
    return leave(OK);
}
int cuDevicePrimaryCtxRelease(int device) {
    CALL(cuDevicePrimaryCtxRelease);
    NEED(device >= 0);
    contexts--;
    return leave(OK);
}
int cuCtxSetCurrent(void *context) { CALL(cuCtxSetCurrent); NEED(context); return leave(OK); }

static uint64_t taken(void) {
    uint64_t sum = 0;
    for (int i = 0; i < SLOTS; i++) sum += allocations[i].len;
    return sum;
}
int cuMemGetInfo(size_t *free, size_t *total) {
    CALL(cuMemGetInfo);
    *free = capacity - taken();
    *total = capacity;
    return leave(OK);
}
int cuMemGetAllocationGranularity(size_t *bytes, const Prop *prop, int option) {
    CALL(cuMemGetAllocationGranularity);
    NEED(prop->kind == 1 && prop->location.kind == 1 && option == 0);
    *bytes = UNIT;
    return leave(OK);
}
int cuMemAddressReserve(uint64_t *va, size_t len, size_t align, uint64_t hint, uint64_t flags) {
    CALL(cuMemAddressReserve);
    NEED(len && len % UNIT == 0 && align == 0 && flags == 0);
    char *at = mmap((void *)hint, len + UNIT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return leave(OUT_OF_MEMORY);
    uint64_t aligned = ((uint64_t)at + UNIT - 1) / UNIT * UNIT;
    add(reservations, aligned, len);
    *va = aligned;
    return leave(OK);
}
int cuMemAddressFree(uint64_t va, size_t len) {
    CALL(cuMemAddressFree);
    Range *range = find(reservations, va);
    NEED(range && range->len == len && !inside(mappings, va, 1));
    munmap((void *)va, len);
    range->len = 0;
    return leave(OK);
}
int cuMemCreate(uint64_t *handle, size_t len, const Prop *prop, uint64_t flags) {
    CALL(cuMemCreate);
    NEED(len && len % UNIT == 0 && prop->kind == 1 && prop->location.kind == 1 && flags == 0);
    if (taken() + len > capacity) return leave(OUT_OF_MEMORY);
    int fd = memfd_create("fake-vram", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, len)) abort();
    *handle = 1000 + fd;
    add(allocations, *handle, len);
    return leave(OK);
}
int cuMemRelease(uint64_t handle) {
    CALL(cuMemRelease);
    Range *range = find(allocations, handle);
    NEED(range);
    close(handle - 1000);
    range->len = 0;
    return leave(OK);
}
int cuMemMap(uint64_t va, size_t len, size_t offset, uint64_t handle, uint64_t flags) {
    CALL(cuMemMap);
    Range *range = find(allocations, handle);
    NEED(range && range->len == len && offset == 0 && flags == 0);
    NEED(inside(reservations, va, len) && !inside(mappings, va, 1));
    void *at = mmap((void *)va, len, PROT_NONE, MAP_SHARED | MAP_FIXED, handle - 1000, 0);
    if (at == MAP_FAILED) abort();
    add(mappings, va, len);
    return leave(OK);
}
int cuMemUnmap(uint64_t va, size_t len) {
    CALL(cuMemUnmap);
    Range *range = find(mappings, va);
    NEED(range && range->len == len);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap((void *)va, len, PROT_NONE, flags, -1, 0) == MAP_FAILED) abort();
    range->len = 0;
    return leave(OK);
}
int cuMemSetAccess(uint64_t va, size_t len, const Access *access, size_t count) {
    CALL(cuMemSetAccess);
    NEED(inside(mappings, va, len) && count == 1 && access->location.kind == 1);
    NEED(access->flags == 1 || access->flags == 3);
    mprotect((void *)va, len, access->flags == 3 ? PROT_READ | PROT_WRITE : PROT_READ);
    return leave(OK);
}
int cuMemExportToShareableHandle(int *out, uint64_t handle, int kind, uint64_t flags) {
    CALL(cuMemExportToShareableHandle);
    NEED(find(allocations, handle) && kind == 1 && flags == 0);
    *out = dup(handle - 1000);
    return leave(OK);
}
int cuMemImportFromShareableHandle(uint64_t *handle, void *fd, int kind) {
    CALL(cuMemImportFromShareableHandle);
    struct stat stat;
    NEED(kind == 1 && !fstat((int)(intptr_t)fd, &stat));
    *handle = 1000 + dup((int)(intptr_t)fd);
    add(allocations, *handle, stat.st_size);
    return leave(OK);
}
int cuMemHostRegister(void *at, size_t len, unsigned flags) {
    CALL(cuMemHostRegister);
    NEED(flags == 1 && (uint64_t)at % 4096 == 0 && len % 4096 == 0 && !find(pins, (uint64_t)at));
    add(pins, (uint64_t)at, len);
    return leave(OK);
}
int cuMemHostUnregister(void *at) {
    CALL(cuMemHostUnregister);
    Range *range = find(pins, (uint64_t)at);
    NEED(range);
    range->len = 0;
    return leave(OK);
}

int cuStreamCreate(void **stream, unsigned flags) {
    CALL(cuStreamCreate);
    NEED(flags == 1);
    *stream = (void *)(uintptr_t)(0x2000 + ++streams);
    return leave(OK);
}
int cuStreamDestroy(void *stream) {
    CALL(cuStreamDestroy);
    NEED(stream);
    streams--;
    return leave(OK);
}
int cuMemcpyHtoDAsync(uint64_t to, const void *from, size_t len, void *stream) {
    CALL(cuMemcpyHtoDAsync);
    NEED(stream && inside(mappings, to, len));
    memcpy((void *)to, from, len);
    return leave(OK);
}
int cuMemcpyDtoHAsync(void *to, uint64_t from, size_t len, void *stream) {
    CALL(cuMemcpyDtoHAsync);
    NEED(stream && inside(mappings, from, len));
    memcpy(to, (void *)from, len);
    return leave(OK);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t len, void *stream) {
    CALL(cuMemsetD8Async);
    NEED(stream && inside(mappings, to, len));
    memset((void *)to, value, len);
    return leave(OK);
}
int cuEventCreate(int **event, unsigned flags) {
    CALL(cuEventCreate);
    NEED(flags == 2);
    *event = calloc(1, sizeof **event);
    events++;
    return leave(OK);
}
int cuEventRecord(int *event, void *stream) {
    CALL(cuEventRecord);
    NEED(stream);
    *event = 2;
    return leave(OK);
}
/* A recorded event has come at the second look. */
int cuEventQuery(int *event) { CALL(cuEventQuery); return leave(--*event > 0 ? NOT_READY : OK); }
int cuEventDestroy(int *event) {
    CALL(cuEventDestroy);
    free(event);
    events--;
    return leave(OK);
}

static int zero(const void *at, size_t len) {
    const unsigned char *byte = at;
    while (len--) if (*byte++) return 0;
    return 1;
}
static int step(int pid, int from, int to) {
    if (pid != fault("pid", 1, 77)) return INVALID_VALUE;
    if (process_state != from) return ILLEGAL_STATE;
    process_state = to;
    return OK;
}
int cuCheckpointProcessGetState(int pid, int *state) {
    CALL(cuCheckpointProcessGetState);
    NEED(pid == fault("pid", 1, 77));
    *state = fault("state", 1, process_state);
    return leave(OK);
}
int cuCheckpointProcessLock(int pid, unsigned *args) {
    CALL(cuCheckpointProcessLock);
    NEED(zero(args + 1, 60));
    lock_timeout = args[0];
    return leave(step(pid, RUNNING, LOCKED));
}
int cuCheckpointProcessCheckpoint(int pid, void *args) {
    CALL(cuCheckpointProcessCheckpoint);
    NEED(zero(args, 64));
    return leave(step(pid, LOCKED, CHECKPOINTED));
}
int cuCheckpointProcessRestore(int pid, Restore *args) {
    CALL(cuCheckpointProcessRestore);
    NEED(sizeof *args == 64 && zero((char *)args + 12, 52));
    last_count = args->count;
    if (args->count) last_pair = args->pairs[args->count - 1];
    return leave(step(pid, CHECKPOINTED, LOCKED));
}
int cuCheckpointProcessUnlock(int pid, void *args) {
    CALL(cuCheckpointProcessUnlock);
    NEED(zero(args, 64));
    return leave(step(pid, LOCKED, RUNNING));
}
int cuCheckpointOperationComplete(void *handle) { return handle ? OK : INVALID_VALUE; }

int cuGetProcAddress_v2(const char *name, void **address, int version, uint64_t flags, int *status) {
    int own = fault("version", 1, 13000);
    char missing[80];
    snprintf(missing, sizeof missing, "missing-%s", name);
    int storage = !strcmp(name, "cuCheckpointOperationComplete");
    *status = 0;
    *address = NULL;
    if (flags || version > own || (storage && version < 13040)) return INVALID_VALUE;
    if (fault(missing, 1, 0)) return NOT_FOUND;
    *address = dlsym(RTLD_DEFAULT, name);
    if (!*address) {
        Dl_info info;
        dladdr((void *)beside, &info);
        void *self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
        *address = self ? dlsym(self, name) : NULL;
    }
    return *address ? OK : NOT_FOUND;
}
