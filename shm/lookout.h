/* The lookout: one thread that sleeps on the inboxes of many Sockets, for an event loop that cannot.
 *
 *   loop:    found nothing to take: lookout_watch(l, inbox); goes to sleep on its descriptors, the lookout's among them
 *   lookout: sees that something came, moves the inbox from its list to those struck off, pokes the descriptor
 *   loop:    lookout_struck; takes what there is; watches again if it wants more
 *
 * An inbox that nobody waits for is not on the list, so a busy loop is never disturbed and its senders wake nobody.
 *
 * The list is the lookout's own memory, guarded by `lock`. The thread touches an inbox only with the lock held, so after
 * lookout_forget (or when it was struck off) the inbox may be unmapped. Asleep, the thread has told the system the
 * addresses of words; one that is unmapped then wakes it, or fails the wait, and it reads the list again. */
#ifndef MULTISOCKET_LOOKOUT_H
#define MULTISOCKET_LOOKOUT_H

#include "ring.h"

/* One word more wakes the thread itself. */
#define LOOKOUT_MOST (PLATFORM_WAIT_MANY - 1)

typedef struct {
    ring *inbox;
    uint32_t ticket;
} watched;

typedef struct {
    pthread_mutex_t lock;
    _Atomic uint32_t changed; /* grows with each change that the thread must see; it sleeps on this as well */
    bool stopping;
    unsigned n, struck;
    watched list[LOOKOUT_MOST]; /* n that are watched; from the end on, those struck off that nobody has asked for */
    int poke; /* descriptor */
} lookout;

/* 0 or an errno. */
int lookout_init(lookout *l);
/* Nobody runs it any more. */
void lookout_destroy(lookout *l);

/* The thread's work, until lookout_stop. */
void lookout_run(lookout *l);
void lookout_stop(lookout *l);

enum { LOOKOUT_WATCHES = 0, LOOKOUT_READABLE, LOOKOUT_FULL };

/* Pokes once when the inbox has something, or is closed; what was struck off before counts no more. LOOKOUT_READABLE: it is so now, nothing is watched. */
int lookout_watch(lookout *l, ring *inbox);
/* Calms the descriptor, and gives those that were struck off since: at most LOOKOUT_MOST. */
unsigned lookout_struck(lookout *l, ring **out);
/* Watches it no more; nothing happens if it is not watched. */
void lookout_forget(lookout *l, ring *inbox);

#endif
