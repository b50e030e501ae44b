/* Claims: which process has taken which batch of tasks from a ring, and how far it is with it.
 *
 * A board is a segment of its own: a header and a claim for each worker. A record in the ring begins with the batch's
 * number and how many tasks it holds (u32 each). Taking the record and noting who has it is one step, whoever is killed
 * between any two instructions:
 *
 *   under the ring's consumers' lock: taking = this slot; claim = number, count of the ring's head behind the record,
 *   TAKING; head moves (the step); TAKEN; taking = none
 *
 * Whoever next holds the lock and finds `taking` set settles that claim: the head stands at the noted count, or the
 * record is still there and the claim void. Nobody else can have moved the head before that, as all who take records
 * from this ring settle first.
 *
 * Words of a claim, and who writes them:
 *   span    number << 32 | next << 16 | end    the worker raises next (it begins the task), the boss lowers end (it
 *                                              recalls the tasks that have not begun): both by compare-and-swap, so
 *                                              each task is begun by the worker or recalled, never both
 *   began   when the running task began, 0: none runs. The worker's. Its result is sent before this changes.
 *   loaded  when its function and arguments were there, and its own time began; 0: not yet. The worker's.
 *   state   the worker's, under the consumers' lock; back to FREE, without it, when the batch is done
 *   stop    the boss's: the worker must not begin another task
 *   done, busy   the worker's: tasks, and nanoseconds that they took
 *   sent, allowed   the worker's, the boss's: parts of the running task's outcome, see claims_may_send (so a
 *                   part that belongs to an earlier task of the slot may be counted for this one: it only limits memory)
 *
 * So when a worker is dead, its claim tells exactly which task it ran, and which it had not begun. Where none runs
 * (began is 0) the task before `next` is either done, or was about to begin: whether its result came tells. */
#ifndef MULTISOCKET_CLAIMS_H
#define MULTISOCKET_CLAIMS_H

#include "ring.h"

#define CLAIMS_MOST 4096u /* workers */
#define CLAIMS_TASKS 0xFFFFu /* tasks of a batch */

enum { CLAIM_FREE = 0, CLAIM_TAKING = 1, CLAIM_TAKEN = 2 };

typedef struct {
    alignas(RING_LINE) _Atomic uint64_t span;
    _Atomic int64_t began;
    _Atomic uint32_t state;
    _Atomic uint32_t count;
    _Atomic uint32_t ready; /* the worker's: it has finished its initializer */
    _Atomic uint32_t stop;
    _Atomic uint64_t done;
    _Atomic int64_t busy;
    _Atomic uint32_t sent;
    _Atomic uint32_t allowed;
    _Atomic int64_t loaded;
} claim;

typedef struct {
    uint32_t magic;
    uint32_t layout;
    uint32_t slots;
    _Atomic uint32_t taking; /* slot + 1 of who is just taking a record; 0: nobody */
} claims_header;

typedef struct {
    claims_header *header;
    claim *claims;
    uint32_t slots; /* checked once, then never read from shared memory again */
} claims;

static inline uint64_t claims_size(uint32_t slots)
{
    return RING_LINE + (uint64_t)slots * sizeof(claim);
}
void claims_init(void *base, uint32_t slots);
/* RING_OK or RING_CORRUPT. */
int claims_attach(claims *c, void *base, uint64_t size);

/* --- the worker of a slot --- */

/* Takes the record in front, found under the lock that the reader holds. tasks: how many it says to hold. */
void claims_take(claims *c, uint32_t slot, ring_reader *reader, const record *rec, uint32_t number, uint32_t tasks);

enum { CLAIM_NO_MORE = -1, CLAIM_STOPPED = -2 };
/* The running task, if any, is done; begins the next of the batch: its index, or that there is none. */
int claims_begin(claims *c, uint32_t slot);
/* The function and the arguments of the running task are there: what it takes counts from now on. */
void claims_loaded(claims *c, uint32_t slot);
/* A task whose outcome has many parts: whether it may send one more, being less than `ahead` parts before the boss. */
static inline bool claims_may_send(const claims *c, uint32_t slot, uint32_t ahead)
{
    const claim *mine = &c->claims[slot];
    uint32_t unread = atomic_load_explicit(&mine->sent, memory_order_relaxed) -
                      atomic_load_explicit(&mine->allowed, memory_order_acquire);
    return (int32_t)unread < (int32_t)ahead;
}
void claims_sent(claims *c, uint32_t slot);

/* --- the boss --- */

/* So many more parts of the worker's outcome have been read. */
void claims_allow(claims *c, uint32_t slot, uint32_t parts);

/* A slot for a new worker; nobody has it. */
void claims_clear(claims *c, uint32_t slot);

typedef struct {
    uint32_t number; /* 0: it has no batch */
    uint32_t next; /* behind the last task whose turn it was; when none runs, that may not have begun */
    uint32_t end; /* behind the last task that is its */
    int64_t began; /* of task next - 1, when that runs; otherwise 0 */
    int64_t loaded; /* the same, of its own time; 0: its function and arguments are not there yet */
} claim_view;

/* What a worker has, at one instant. Of one that is dead it is exact after claims_settle. */
claim_view claims_view(const claims *c, uint32_t slot);
/* Decides what somebody killed in the middle left open. Takes the ring's consumers' lock. RING_OK, RING_CLOSED. */
int claims_settle(claims *c, ring *r);
/* Takes back the tasks of this batch that have not begun: from `*from` up to the result. False: there are none. */
bool claims_recall(claims *c, uint32_t slot, uint32_t number, uint32_t *from, uint32_t *to);
/* Lets the worker begin no other task. True: it still runs this one. False: it does not, and may go on, but it may have
 * seen that it shall not. */
bool claims_condemn(claims *c, uint32_t slot, uint32_t number, uint32_t index);

#endif
