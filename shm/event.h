/* An event count in shared memory: sleep until somebody says that something may have changed.
 *
 *   sleeper: ticket = event_arm(e); if (nothing to do) event_wait(e, ticket, deadline);
 *   waker:   make the change; event_notify(e, n);
 *
 * Words (any process writes both):
 *   seq    grows with every notify that finds the event armed; sleepers sleep on this word.
 *   armed  1 when somebody may sleep. A waker that finds 0 makes no system call.
 *
 * No lost wake-up: a sleeper stores `armed` and then looks at the condition, a waker makes the change and then looks
 * at `armed`, each with a full fence in between, so one of them sees the other (Dekker). The count of sleepers is not
 * kept, because a killed sleeper would stay in it for ever: `armed` is only cleared by a waker who woke nobody, who
 * then wakes once more all that armed themselves meanwhile; they arm again.
 *
 * A waker killed between its change and its wake leaves sleepers asleep: every wait is therefore cut into slices of at
 * most EVENT_SLICE_NS, after which the sleeper looks again. */
#ifndef MULTISOCKET_EVENT_H
#define MULTISOCKET_EVENT_H

#include "platform.h"

#define EVENT_SLICE_NS 100000000

typedef struct {
    _Atomic uint32_t seq;
    _Atomic uint32_t armed;
} event;

static inline uint32_t event_arm(event *e)
{
    uint32_t ticket = atomic_load_explicit(&e->seq, memory_order_acquire);
    atomic_store_explicit(&e->armed, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    return ticket;
}

/* The end of the slice. All sleepers of a machine look at the same instants: one interrupt serves them all. */
static inline int64_t event_slice(int64_t deadline)
{
    int64_t slice = (platform_now() / EVENT_SLICE_NS + 1) * EVENT_SLICE_NS;
    return slice < deadline ? slice : deadline;
}

static inline int event_wait(event *e, uint32_t ticket, int64_t deadline)
{
    return platform_wait(&e->seq, ticket, event_slice(deadline));
}

void event_wake(event *e, int n);

/* Wakes up to n sleepers, if there may be any. */
static inline void event_notify(event *e, int n)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&e->armed, memory_order_relaxed))
        event_wake(e, n);
}

void event_notify_all(event *e);

#endif
