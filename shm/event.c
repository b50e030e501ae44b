#include "event.h"

#include <limits.h>

void event_wake(event *e, int n)
{
    atomic_fetch_add(&e->seq, 1);
    if (platform_wake(&e->seq, n) > 0)
        return;
    /* Nobody slept. Disarm, then wake whoever armed between the two steps: they look again and arm anew. */
    atomic_store(&e->armed, 0);
    atomic_fetch_add(&e->seq, 1);
    platform_wake(&e->seq, INT_MAX);
}

void event_notify_all(event *e)
{
    atomic_thread_fence(memory_order_seq_cst);
    atomic_fetch_add(&e->seq, 1);
    platform_wake(&e->seq, INT_MAX);
}
