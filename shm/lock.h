/* A lock in shared memory whose holder may be killed: a robust mutex that is slept for in slices. */
#ifndef MULTISOCKET_LOCK_H
#define MULTISOCKET_LOCK_H

#include <pthread.h>
#include <stdbool.h>

/* 0 or an errno: this system has no robust process-shared mutexes. */
int robust_init(pthread_mutex_t *lock);

/* 0; EBUSY (only without wait); EOWNERDEAD: the lock is ours, its holder was killed: repair what it protects, then call
 * pthread_mutex_consistent. Anything else: the memory is corrupt. */
int robust_lock(pthread_mutex_t *lock, bool wait);

#endif
