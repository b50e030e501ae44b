#include "lock.h"

#include <errno.h>
#include <time.h>

#include "platform.h"

/* How often a taken lock is tried before sleeping on it: it is held for a copy, so it is free again soon. */
#define LOCK_TRIES 100
#define LOCK_SLICE_NS 50000000

int robust_init(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attr;
    int rc = pthread_mutexattr_init(&attr);
    if (rc)
        return rc;
    rc = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    if (!rc)
        rc = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    if (!rc)
        rc = pthread_mutex_init(lock, &attr);
    pthread_mutexattr_destroy(&attr);
    return rc;
}

/* Sleeps for the lock in slices. A waiter who was woken and is killed before it takes the lock would else leave the
 * others asleep at a lock that is free: the kernel only helps when nobody else has taken and released it meanwhile. */
static int lock_in_slices(pthread_mutex_t *lock)
{
    int rc;
    do {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until); /* the only clock that pthread_mutex_timedlock knows */
        int64_t ns = until.tv_nsec + LOCK_SLICE_NS;
        until.tv_sec += ns / 1000000000;
        until.tv_nsec = ns % 1000000000;
        rc = pthread_mutex_timedlock(lock, &until);
    } while (rc == ETIMEDOUT);
    return rc;
}

int robust_lock(pthread_mutex_t *lock, bool wait)
{
    int rc = pthread_mutex_trylock(lock);
    if (rc != EBUSY || !wait)
        return rc;
    for (int i = 0; rc == EBUSY && i < LOCK_TRIES; i++) {
        platform_pause();
        rc = pthread_mutex_trylock(lock);
    }
    return rc == EBUSY ? lock_in_slices(lock) : rc;
}
