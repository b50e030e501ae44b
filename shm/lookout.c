#include "lookout.h"

#include <errno.h>
#include <unistd.h>

int lookout_init(lookout *l)
{
    l->n = l->struck = 0;
    l->stopping = false;
    atomic_init(&l->changed, 0);
    l->poke = platform_poke_new();
    if (l->poke < 0)
        return errno;
    int error = pthread_mutex_init(&l->lock, NULL);
    if (error)
        close(l->poke);
    return error;
}

void lookout_destroy(lookout *l)
{
    close(l->poke);
    pthread_mutex_destroy(&l->lock);
}

static void tell_change(lookout *l)
{
    atomic_fetch_add(&l->changed, 1);
    platform_wake(&l->changed, 1);
}

void lookout_stop(lookout *l)
{
    pthread_mutex_lock(&l->lock);
    l->stopping = true;
    pthread_mutex_unlock(&l->lock);
    tell_change(l);
}

static void drop(lookout *l, unsigned i)
{
    l->list[i] = l->list[--l->n];
}

static void strike(lookout *l, unsigned i)
{
    watched one = l->list[i];
    drop(l, i);
    l->list[LOOKOUT_MOST - ++l->struck] = one;
}

unsigned lookout_struck(lookout *l, ring **out)
{
    platform_calm(l->poke);
    pthread_mutex_lock(&l->lock);
    unsigned n = 0;
    while (l->struck)
        out[n++] = l->list[LOOKOUT_MOST - l->struck--].inbox;
    pthread_mutex_unlock(&l->lock);
    return n;
}

static void forget_struck(lookout *l, const ring *inbox)
{
    for (unsigned i = LOOKOUT_MOST - l->struck; i < LOOKOUT_MOST; i++)
        if (l->list[i].inbox == inbox)
            l->list[i] = l->list[LOOKOUT_MOST - l->struck--];
}

int lookout_watch(lookout *l, ring *inbox)
{
    watched one = {.inbox = inbox, .ticket = event_arm(&inbox->shared->readable)};
    if (ring_is_readable(inbox))
        return LOOKOUT_READABLE;
    pthread_mutex_lock(&l->lock);
    forget_struck(l, inbox);
    unsigned i = 0;
    while (i < l->n && l->list[i].inbox != inbox)
        i++;
    bool is_full = i + l->struck == LOOKOUT_MOST;
    if (!is_full)
        l->list[i] = one;
    if (!is_full && i == l->n)
        l->n++;
    pthread_mutex_unlock(&l->lock);
    if (is_full)
        return LOOKOUT_FULL;
    tell_change(l);
    return LOOKOUT_WATCHES;
}

void lookout_forget(lookout *l, ring *inbox)
{
    pthread_mutex_lock(&l->lock);
    forget_struck(l, inbox);
    for (unsigned i = 0; i < l->n; i++)
        if (l->list[i].inbox == inbox)
            drop(l, i);
    pthread_mutex_unlock(&l->lock);
}

/* Strikes off those that have something. Those whose word has changed though they have not (somebody else was faster)
 * are armed again. */
static bool strike_ready(lookout *l)
{
    bool any = false;
    for (unsigned i = l->n; i-- > 0;) {
        l->list[i].ticket = event_arm(&l->list[i].inbox->shared->readable);
        if (!ring_is_readable(l->list[i].inbox))
            continue;
        strike(l, i);
        any = true;
    }
    return any;
}

void lookout_run(lookout *l)
{
    _Atomic uint32_t *words[PLATFORM_WAIT_MANY];
    uint32_t tickets[PLATFORM_WAIT_MANY];
    for (;;) {
        words[0] = &l->changed;
        tickets[0] = atomic_load(&l->changed);
        pthread_mutex_lock(&l->lock);
        bool stopping = l->stopping;
        bool any = strike_ready(l);
        unsigned n = l->n;
        for (unsigned i = 0; i < n; i++) {
            words[i + 1] = &l->list[i].inbox->shared->readable.seq;
            tickets[i + 1] = l->list[i].ticket;
        }
        pthread_mutex_unlock(&l->lock);
        if (any)
            platform_poke(l->poke);
        if (stopping)
            return;
        /* Nobody's death keeps a word of this process from being changed: with nothing else there are no slices. */
        platform_wait_many(words, tickets, n + 1, n ? event_slice(NEVER) : NEVER);
    }
}
