/* What the native tests share: checks that name their seed, random numbers, messages that follow from their number, and
 * rings in memory with guard pages around it. */
#ifndef MULTISOCKET_TESTS_NATIVE_H
#define MULTISOCKET_TESTS_NATIVE_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, syscall */
#endif
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../shm/endpoint.h"

/* ---- failing ---- */

static const char *test_name = "";
static uint64_t test_seed = 1;

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (seed %llu): not %s: ", __FILE__, __LINE__, test_name,                          \
                    (unsigned long long)test_seed, #condition);                                                        \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            fflush(NULL);                                                                                              \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* A test that hangs ends here. Only what is safe in a signal handler. */
static inline void too_late(int number)
{
    static const char text[] = ": hangs\n";
    (void)number;
    ssize_t ignored = write(2, test_name, strlen(test_name));
    ignored = write(2, text, sizeof text - 1);
    (void)ignored;
    _exit(1);
}

static inline void give_time(unsigned seconds)
{
    signal(SIGALRM, too_late);
    alarm(seconds);
}

/* ---- time ---- */

#define MS 1000000

static inline void nap(int64_t ns)
{
    struct timespec span = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    nanosleep(&span, NULL);
}

static inline int64_t soon(int64_t ns)
{
    return platform_now() + ns;
}

/* ---- memory and threads ---- */

static inline void *allocate(size_t size)
{
    void *memory = calloc(1, size ? size : 1);
    CHECK(memory, "no memory");
    return memory;
}

static inline pthread_t start(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, arg) == 0, "no thread");
    return thread;
}

static inline void join(pthread_t thread)
{
    CHECK(pthread_join(thread, NULL) == 0, "no thread to wait for");
}

/* ---- running ---- */

static inline void run_test(const char *name, void (*run)(void), unsigned seconds)
{
    int64_t began = platform_now();
    test_name = name;
    give_time(seconds);
    run();
    printf("%-18s %6.2f s\n", name, (double)(platform_now() - began) / 1e9);
    fflush(stdout);
}

/* Marks the CRASH_POINTs of a source file as found. point_called: the place of a name in the test's table, or -1. */
static inline void find_points(const char *path, int (*point_called)(const char *), bool *found)
{
    static const char mark[] = "CRASH_POINT(\"";
    char line[512];
    FILE *source = fopen(path, "r");
    CHECK(source, "cannot read %s", path);
    while (fgets(line, sizeof line, source)) {
        char *name = strstr(line, mark);
        if (!name)
            continue;
        name += sizeof mark - 1;
        name[strcspn(name, "\"")] = 0;
        int at = point_called(name);
        CHECK(at >= 0, "'%s' of %s is not in the table of points", name, path);
        found[at] = true;
    }
    fclose(source);
}

/* ---- random numbers: splitmix64 ---- */

typedef struct {
    uint64_t state;
} rng;

static inline uint64_t rng_next(rng *g)
{
    uint64_t z = g->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline rng rng_new(uint64_t stream)
{
    rng g = {.state = test_seed * 0x2545f4914f6cdd1du};
    uint64_t start = rng_next(&g) + stream;
    g.state ^= start;
    rng_next(&g);
    return g;
}

static inline uint64_t rng_below(rng *g, uint64_t n)
{
    return rng_next(g) % n;
}

static inline bool rng_one_in(rng *g, unsigned n)
{
    return rng_below(g, n) == 0;
}

/* ---- messages ---- */

#define PATH_BYTES (2 * 4 * PATH_MAX_IDS)

static inline uint32_t random_length(rng *g, uint32_t longest)
{
    if (rng_one_in(g, 8))
        return 0;
    uint32_t most = rng_one_in(g, 8) || longest < 200 ? longest : 200;
    return (uint32_t)rng_below(g, (uint64_t)most + 1);
}

/* Everything in a message follows from its number, so whoever receives it can tell any wrong byte. The number itself is
 * the beginning of the source path: a content may be empty. longest: of paths and content together, at least 8 bytes.
 * body: as large as that. */
static inline void make_message(uint64_t number, uint32_t longest, uint8_t *body, message *m)
{
    rng g = rng_new(number);
    m->flags = (uint8_t)((rng_next(&g) & (FLAG_NO_SOURCE | FLAG_RAW | FLAG_CONTROL)) | SEND_TO_ONE);
    m->ttl = (uint8_t)rng_next(&g);
    m->hops = (uint8_t)(2 + rng_below(&g, rng_one_in(&g, 16) ? PATH_MAX_IDS - 1 : 3));
    m->distance = (uint8_t)rng_below(&g, rng_one_in(&g, 16) ? PATH_MAX_IDS + 1 : 3);
    if (source_size(m) + destination_size(m) > longest) {
        m->hops = 2;
        m->distance = 0;
    }
    m->length = random_length(&g, longest - source_size(m) - destination_size(m));
    m->source = body;
    m->destination = body + source_size(m);
    m->content = m->destination + destination_size(m);
    m->note = NULL;
    size_t size = (size_t)(message_size(m) - META_SIZE);
    memcpy(body, &number, sizeof number);
    for (size_t i = sizeof number; i < size; i += 8) {
        uint64_t word = rng_next(&g);
        memcpy(body + i, &word, size - i < 8 ? size - i : 8);
    }
}

/* The number of a received message; every byte of it is checked. scratch: as for make_message. */
static inline uint64_t check_message(const message *m, uint32_t longest, uint8_t *scratch)
{
    message expected;
    uint64_t number;
    CHECK(m->hops >= 2, "a message without its number: %u hops", m->hops);
    memcpy(&number, m->source, sizeof number);
    make_message(number, longest, scratch, &expected);
    CHECK(m->flags == expected.flags && m->ttl == expected.ttl && m->hops == expected.hops &&
              m->distance == expected.distance && m->length == expected.length,
          "message %llx came with a wrong Meta", (unsigned long long)number);
    CHECK(memcmp(m->source, scratch, (size_t)(message_size(m) - META_SIZE)) == 0, "message %llx came with wrong bytes",
          (unsigned long long)number);
    return number;
}

/* ---- memory and rings ---- */

#define PAGE 4096u

/* Memory of a file without a name, so that children share it, between two pages that nobody may touch. *fd: what the
 * core wants to know of the file, -1 where it needs none. */
static inline void *map_shared(size_t size, int *fd)
{
    size = (size + PAGE - 1) & ~(size_t)(PAGE - 1);
    int file = (int)syscall(SYS_memfd_create, "test", 0u);
    CHECK(file >= 0 && ftruncate(file, (off_t)size) == 0, "no memory");
    uint8_t *base = mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED, "no memory");
    void *start = mmap(base + PAGE, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    CHECK(start != MAP_FAILED, "no memory");
    *fd = platform_reserve_needs_fd() ? file : -1;
    if (*fd < 0)
        close(file);
    return start;
}

static inline void unmap_shared(void *start, size_t size, int fd)
{
    size = (size + PAGE - 1) & ~(size_t)(PAGE - 1);
    munmap((uint8_t *)start - PAGE, size + 2 * PAGE);
    if (fd >= 0)
        close(fd);
}

typedef struct {
    ring r;
    ring_shared *shared;
    uint8_t *data;
} test_ring;

static inline void attach_ring(test_ring *t, uint64_t capacity, uint32_t limit, int fd)
{
    CHECK(ring_init(t->shared, capacity, limit, UINT32_MAX) == 0, "no robust mutexes");
    CHECK(ring_attach(&t->r, t->shared, t->data, capacity, t->shared, fd) == RING_OK, "a fresh ring");
}

static inline void make_ring(test_ring *t, uint64_t capacity, uint32_t limit)
{
    int fd;
    uint8_t *base = map_shared(PAGE + capacity, &fd);
    t->shared = (ring_shared *)(void *)base;
    t->data = base + PAGE;
    attach_ring(t, capacity, limit, fd);
}

static inline void free_ring(test_ring *t)
{
    unmap_shared((uint8_t *)t->shared, PAGE + t->r.capacity, t->r.fd);
}

/* A message that takes so many bytes with its Meta: for those who only want to know whether there is room. */
static inline message message_of(uint64_t bytes)
{
    return (message){.length = (uint32_t)(bytes - META_SIZE)};
}

static inline bool make_segment_of(void *base, int fd, uint64_t inbox, uint32_t inbox_limit, uint64_t pending,
                                   uint32_t pending_limit)
{
    segment_plan plan = {.inbox_capacity = inbox,
                         .pending_capacity = pending,
                         .inbox_limit = inbox_limit,
                         .pending_limit = pending_limit,
                         .longest = UINT32_MAX};
    return segment_init(base, fd, &plan) == RING_OK;
}

/* As if so many units and records had gone through it already. */
static inline void start_ring_at(ring_shared *s, uint32_t position, uint64_t records)
{
    uint64_t cursor = (uint64_t)position << 32 | (uint32_t)records;
    s->tail = s->head = s->seen_head = s->seen_tail = cursor;
    s->pushed = s->popped = records;
}

#endif
