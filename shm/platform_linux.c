#define _GNU_SOURCE
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#ifdef PLATFORM_OLD_KERNEL /* for tests: as if neither were known */
#undef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 9999
#undef SYS_futex_waitv
#define SYS_futex_waitv 9999
#endif
/* The layout and flags of futex_waitv(2), for headers older than Linux 5.16. */
#define WAITV_SIZE_U32 2u
struct waitv_entry {
    uint64_t expected;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};

/* Without futex_waitv many words are watched by looking at them this often. */
#define POLL_NS 1000000

int64_t platform_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct timespec *to_timespec(int64_t deadline, struct timespec *out)
{
    if (deadline == NEVER)
        return NULL;
    if (deadline < 0)
        deadline = 0;
    out->tv_sec = (time_t)(deadline / 1000000000);
    out->tv_nsec = (long)(deadline % 1000000000);
    return out;
}

static int why_woken(long result)
{
    if (result >= 0 || errno == EAGAIN)
        return WAIT_WOKEN;
    if (errno == EINTR)
        return WAIT_SIGNAL;
    return WAIT_TIMEOUT;
}

int platform_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline)
{
    struct timespec buffer;
    /* FUTEX_WAIT_BITSET takes an absolute time, FUTEX_WAIT a relative one. */
    return why_woken(syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, to_timespec(deadline, &buffer), NULL,
                             FUTEX_BITSET_MATCH_ANY));
}

static int poll_words(_Atomic uint32_t *const *words, const uint32_t *expected, unsigned n, int64_t deadline)
{
    int64_t slice = platform_now() + POLL_NS;
    struct timespec buffer;
    for (unsigned i = 0; i < n; i++)
        if (atomic_load(words[i]) != expected[i])
            return WAIT_WOKEN;
    int rc = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, to_timespec(slice < deadline ? slice : deadline, &buffer),
                             NULL);
    return rc == EINTR ? WAIT_SIGNAL : WAIT_TIMEOUT;
}

int platform_wait_many(_Atomic uint32_t *const *words, const uint32_t *expected, unsigned n, int64_t deadline)
{
    struct waitv_entry entries[PLATFORM_WAIT_MANY];
    struct timespec buffer;
    if (n > PLATFORM_WAIT_MANY)
        n = PLATFORM_WAIT_MANY;
    for (unsigned i = 0; i < n; i++)
        entries[i] = (struct waitv_entry){
            .expected = expected[i], .address = (uint64_t)(uintptr_t)words[i], .flags = WAITV_SIZE_U32, .reserved = 0};
    long rc = syscall(SYS_futex_waitv, entries, n, 0, to_timespec(deadline, &buffer), CLOCK_MONOTONIC);
    if (rc < 0 && (errno == ENOSYS || errno == EPERM))
        return poll_words(words, expected, n, deadline);
    return why_woken(rc);
}

int platform_wake(_Atomic uint32_t *word, int n)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
    return woken < 0 ? 0 : (int)woken;
}

static int populate(void *start, size_t span)
{
    while (madvise(start, span, MADV_POPULATE_WRITE) != 0)
        if (errno != EINTR && errno != EAGAIN)
            return errno;
    return 0;
}

int platform_reserve(int fd, void *base, size_t offset, size_t length)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t start = offset & ~(page - 1);
    size_t span = (offset + length - start + page - 1) & ~(page - 1);
    if (fd >= 0)
        return posix_fallocate(fd, (off_t)start, (off_t)span) == 0 ? 0 : -1;
    return populate((char *)base + start, span) == 0 ? 0 : -1;
}

/* MADV_POPULATE_WRITE came with Linux 5.14; before it only the file can be asked for memory. */
int platform_reserve_needs_fd(void)
{
    static _Atomic int answer = -1;
    int known = atomic_load(&answer);
    if (known >= 0)
        return known;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *probe = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (probe == MAP_FAILED)
        return 0;
    known = populate(probe, page) == EINVAL;
    munmap(probe, page);
    atomic_store(&answer, known);
    return known;
}

/* Where a name of shared memory is. The same as shm_open does it, which is in another library before glibc 2.34. */
static int memory_path(const char *name, char path[PATH_MAX])
{
    while (*name == '/')
        name++;
    int n = snprintf(path, PATH_MAX, "/dev/shm/%s", name);
    errno = !*name || strchr(name, '/') ? EINVAL : n >= PATH_MAX ? ENAMETOOLONG : 0;
    return errno ? -1 : 0;
}

int platform_open_memory(const char *name, bool create, uint64_t size)
{
    char path[PATH_MAX];
    if (memory_path(name, path) != 0)
        return -1;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT | O_EXCL : 0), 0600);
    if (fd < 0 || !create)
        return fd;
    int rc;
    while ((rc = ftruncate(fd, (off_t)size)) != 0 && errno == EINTR)
        continue;
    if (rc == 0)
        return fd;
    int error = errno;
    unlink(path);
    close(fd);
    errno = error;
    return -1;
}

int platform_unlink_memory(const char *name)
{
    char path[PATH_MAX];
    return memory_path(name, path) == 0 ? unlink(path) : -1;
}

void platform_discard(void *start, size_t length)
{
    madvise(start, length, MADV_REMOVE);
}

/* From this size on (bytes) streaming is faster: measured, see docs/design/arena.md. */
#define STREAM_LEAST ((size_t)4 << 20)

#ifdef __SSE2__
/* Whole lines of 64 bytes, to an aligned target. */
static void stream_lines(uint8_t *to, const uint8_t *from, size_t lines)
{
    for (; lines; lines--, to += 64, from += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)from);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(from + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(from + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(from + 48));
        _mm_stream_si128((__m128i *)(void *)to, a);
        _mm_stream_si128((__m128i *)(void *)(to + 16), b);
        _mm_stream_si128((__m128i *)(void *)(to + 32), c);
        _mm_stream_si128((__m128i *)(void *)(to + 48), d);
    }
    _mm_sfence();
}

void platform_copy(void *to, const void *from, size_t n)
{
    if (n < STREAM_LEAST) {
        memcpy(to, from, n);
        return;
    }
    size_t before = -(uintptr_t)to & 63;
    size_t lines = (n - before) / 64;
    size_t streamed = before + lines * 64;
    memcpy(to, from, before);
    stream_lines((uint8_t *)to + before, (const uint8_t *)from + before, lines);
    memcpy((uint8_t *)to + streamed, (const uint8_t *)from + streamed, n - streamed);
}
#else
void platform_copy(void *to, const void *from, size_t n)
{
    memcpy(to, from, n);
}
#endif

void platform_large_pages(void *start, size_t length)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)start + page - 1) & ~(page - 1);
    uintptr_t to = ((uintptr_t)start + length) & ~(page - 1);
    if (from < to)
        madvise((void *)from, to - from, MADV_HUGEPAGE);
}

static _Atomic uint32_t fork_generation;

static void count_fork(void)
{
    atomic_fetch_add(&fork_generation, 1);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

uint32_t platform_fork_generation(void)
{
    return atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

int platform_processors(void)
{
    static _Atomic int known;
    int count = atomic_load_explicit(&known, memory_order_relaxed);
    if (count)
        return count;
    cpu_set_t set;
    count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 2;
    atomic_store_explicit(&known, count, memory_order_relaxed);
    return count;
}

void platform_yield(void)
{
    sched_yield();
}

int platform_poller_new(void)
{
    return epoll_create1(EPOLL_CLOEXEC);
}

int platform_poller_add(int poller, int fd, void *whose)
{
    struct epoll_event wish = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = whose};
    return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wish);
}

void platform_poller_remove(int poller, int fd)
{
    struct epoll_event unused = {0};
    epoll_ctl(poller, EPOLL_CTL_DEL, fd, &unused);
}

#define POLLER_MOST 256

static int poll_events(int poller, struct epoll_event *events, int most, int64_t deadline)
{
    int64_t left = deadline == NEVER ? -1 : deadline - platform_now();
    if (deadline != NEVER && left < 0)
        left = 0;
    struct timespec time = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    long n = syscall(SYS_epoll_pwait2, poller, events, most, left < 0 ? NULL : &time, NULL, 0);
    if (n < 0 && (errno == ENOSYS || errno == EPERM)) /* before Linux 5.11 there are only milliseconds */
        n = epoll_wait(poller, events, most, left < 0 ? -1 : (int)((left + 999999) / 1000000));
    return n < 0 ? 0 : (int)n;
}

int platform_poller_wait(int poller, readiness *out, int most, int64_t deadline)
{
    struct epoll_event events[POLLER_MOST];
    int n = poll_events(poller, events, most < POLLER_MOST ? most : POLLER_MOST, deadline);
    for (int i = 0; i < n; i++) {
        out[i].whose = events[i].data.ptr;
        out[i].what = (events[i].events & ~(uint32_t)EPOLLOUT ? READY_TO_READ : 0) |
                      (events[i].events & EPOLLOUT ? READY_TO_WRITE : 0) |
                      (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) ? READY_TO_END : 0);
    }
    return n;
}

int platform_unconfirmed(int fd)
{
    int domain, bytes = 0;
    socklen_t size = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain == AF_UNIX)
        return 0;
    return ioctl(fd, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

int platform_poke_new(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void platform_poke(int fd)
{
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

void platform_calm(int fd)
{
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
        continue;
}

int platform_is_locked(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_GETLK, &lock) != 0)
        return 1; /* cannot tell: believe that it lives */
    return lock.l_type != F_UNLCK;
}
