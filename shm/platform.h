/* What the core needs from the operating system, and nothing else does.
 * platform_linux.c is the only file that calls the kernel: port that one. */
#ifndef MULTISOCKET_PLATFORM_H
#define MULTISOCKET_PLATFORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Times are absolute nanoseconds on the monotonic clock. */
#define NEVER INT64_MAX

int64_t platform_now(void);

enum { WAIT_WOKEN = 0, WAIT_TIMEOUT = 1, WAIT_SIGNAL = 2 };

/* Sleeps while *word == expected; ends by a wake, a changed word, the deadline or a signal. */
int platform_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline);

/* Sleeps while every words[i] == expected[i]. At most PLATFORM_WAIT_MANY of them. */
#define PLATFORM_WAIT_MANY 128
int platform_wait_many(_Atomic uint32_t *const *words, const uint32_t *expected, unsigned n, int64_t deadline);

/* Wakes up to n sleepers of the word, in every process; gives the number woken. */
int platform_wake(_Atomic uint32_t *word, int n);

/* Makes sure that memory stands behind [base + offset, base + offset + length) of a shared mapping, so that no later
 * store there can raise SIGBUS. 0, or -1 when there is none left. fd is the mapped file, or -1: it is needed only where
 * platform_reserve_needs_fd() says so. */
int platform_reserve(int fd, void *base, size_t offset, size_t length);
int platform_reserve_needs_fd(void);

/* Named shared memory, as shm_open and shm_unlink have it; names are like "/name". Opening gives a descriptor, or -1 with
 * errno. With `create` it must not exist yet, gets `size` bytes, and is for this user only; if that fails it is gone. */
int platform_open_memory(const char *name, bool create, uint64_t size);
/* 0, or -1 with errno. */
int platform_unlink_memory(const char *name);

/* Gives whole pages of a shared mapping back to the system: they read as zeros afterwards. */
void platform_discard(void *start, size_t length);

/* Copies; what does not fit into caches anyway goes past them, where the processor can do that: then neither the old
 * content of the target is read nor the cache of others is emptied. */
void platform_copy(void *to, const void *from, size_t n);

/* Advises the system to use large pages for this memory of the process's own. */
void platform_large_pages(void *start, size_t length);

/* Grows by one in the child of every fork, so a handle can tell that it was inherited. */
uint32_t platform_fork_generation(void);

/* Processors this process may run on: spinning helps nobody on one. */
int platform_processors(void);

/* True while some other process holds a write lock (fcntl) on the file. */
int platform_is_locked(int fd);

/* --- file descriptors: edges, so whoever is told of one goes on until the system has nothing more --- */

enum { READY_TO_READ = 1, READY_TO_WRITE = 2, READY_TO_END = 4 };

typedef struct {
    void *whose;
    int what;
} readiness;

/* All give -1 on failure, with errno. */
int platform_poller_new(void);
int platform_poller_add(int poller, int fd, void *whose);
void platform_poller_remove(int poller, int fd);
/* Waits until `deadline` at most; gives how many were filled in. */
int platform_poller_wait(int poller, readiness *out, int most, int64_t deadline);

/* Bytes that a connection's other end has not confirmed yet; 0 where closing the connection takes nothing from them. */
int platform_unconfirmed(int fd);

/* A descriptor that is readable from a poke until it is calmed. */
int platform_poke_new(void);
void platform_poke(int fd);
void platform_calm(int fd);

/* Lets somebody else run, who may be the one that is waited for. */
void platform_yield(void);

/* Tells the processor (and hyperthread sibling) that this is a spin loop. */
static inline void platform_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

#endif
