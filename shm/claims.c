#include "claims.h"

#include <string.h>

#define CLAIMS_MAGIC 0x6d73636cu /* "mscl" */
#define CLAIMS_LAYOUT 2u

static inline uint64_t span(uint32_t number, uint32_t next, uint32_t end)
{
    return (uint64_t)number << 32 | next << 16 | end;
}

static inline uint32_t number_of(uint64_t span)
{
    return (uint32_t)(span >> 32);
}

static inline uint32_t next_of(uint64_t span)
{
    return (uint32_t)(span >> 16) & CLAIMS_TASKS;
}

static inline uint32_t end_of(uint64_t span)
{
    return (uint32_t)span & CLAIMS_TASKS;
}

void claims_init(void *base, uint32_t slots)
{
    claims_header *header = base;
    memset(base, 0, claims_size(slots));
    header->layout = CLAIMS_LAYOUT;
    header->slots = slots;
    header->magic = CLAIMS_MAGIC;
}

int claims_attach(claims *c, void *base, uint64_t size)
{
    claims_header *header = base;
    if (size < RING_LINE || header->magic != CLAIMS_MAGIC || header->layout != CLAIMS_LAYOUT)
        return RING_CORRUPT;
    uint32_t slots = header->slots;
    if (slots > CLAIMS_MOST || size < claims_size(slots))
        return RING_CORRUPT;
    *c = (claims){.header = header, .claims = (claim *)((uint8_t *)base + RING_LINE), .slots = slots};
    return RING_OK;
}

/* ---- taking ---- */

/* Under the consumers' lock. */
static void settle(claims *c, const ring *r)
{
    uint32_t taking = atomic_load_explicit(&c->header->taking, memory_order_acquire);
    if (!taking)
        return;
    if (taking <= c->slots) {
        claim *its = &c->claims[taking - 1];
        if (atomic_load_explicit(&its->state, memory_order_acquire) == CLAIM_TAKING) {
            bool is_taken = atomic_load_explicit(&its->count, memory_order_relaxed) == ring_taken(r);
            atomic_store_explicit(&its->state, is_taken ? CLAIM_TAKEN : CLAIM_FREE, memory_order_release);
        }
    }
    CRASH_POINT("claim: settled, but still noted as taking");
    atomic_store_explicit(&c->header->taking, 0, memory_order_release);
}

int claims_settle(claims *c, ring *r)
{
    ring_reader reader;
    int rc = ring_enter(r, &reader, true);
    if (rc != RING_OK)
        return rc;
    settle(c, r);
    ring_leave(&reader);
    return RING_OK;
}

void claims_take(claims *c, uint32_t slot, ring_reader *reader, const record *rec, uint32_t number, uint32_t tasks)
{
    claim *mine = &c->claims[slot];
    if (tasks > CLAIMS_TASKS)
        tasks = CLAIMS_TASKS;
    settle(c, reader->r);
    ring_pop(reader, rec);
    atomic_store_explicit(&c->header->taking, slot + 1, memory_order_release);
    CRASH_POINT("claim: noted as taking, but not what");
    /* Release: whoever sees this batch's span sees too that the claim on the one before is given up. */
    atomic_store_explicit(&mine->span, span(number, 0, tasks), memory_order_release);
    atomic_store_explicit(&mine->began, 0, memory_order_relaxed);
    atomic_store_explicit(&mine->count, ring_will_be_taken(reader), memory_order_relaxed);
    atomic_store_explicit(&mine->state, CLAIM_TAKING, memory_order_release);
    CRASH_POINT("claim: noted, but not taken");
    ring_take(reader);
    CRASH_POINT("claim: taken, but not confirmed");
    atomic_store_explicit(&mine->state, CLAIM_TAKEN, memory_order_release);
    CRASH_POINT("claim: confirmed, but still noted as taking");
    atomic_store_explicit(&c->header->taking, 0, memory_order_release);
}

/* ---- going through a batch ---- */

static void end_task(claim *mine, int64_t now)
{
    int64_t began = atomic_load_explicit(&mine->began, memory_order_relaxed);
    int64_t loaded = atomic_load_explicit(&mine->loaded, memory_order_relaxed);
    if (!began)
        return;
    uint64_t busy = (uint64_t)atomic_load_explicit(&mine->busy, memory_order_relaxed);
    uint64_t done = atomic_load_explicit(&mine->done, memory_order_relaxed);
    /* Unsigned: garbage may stand there, and must not be able to overflow. */
    busy += (uint64_t)now - (uint64_t)(loaded ? loaded : now);
    atomic_store_explicit(&mine->busy, (int64_t)busy, memory_order_relaxed);
    atomic_store_explicit(&mine->done, done + 1, memory_order_relaxed);
    CRASH_POINT("begin: the last one is counted, but not over");
    atomic_store_explicit(&mine->began, 0, memory_order_release);
}

int claims_begin(claims *c, uint32_t slot)
{
    claim *mine = &c->claims[slot];
    int64_t now = platform_now();
    end_task(mine, now);
    CRASH_POINT("begin: none runs");
    uint64_t seen = atomic_load_explicit(&mine->span, memory_order_acquire);
    do {
        if (next_of(seen) >= end_of(seen)) {
            atomic_store_explicit(&mine->state, CLAIM_FREE, memory_order_release);
            return CLAIM_NO_MORE;
        }
        /* With the fence in claims_condemn: either we see `stop`, or the boss sees that another one has its turn. */
    } while (!atomic_compare_exchange_weak_explicit(&mine->span, &seen,
                                                    span(number_of(seen), next_of(seen) + 1, end_of(seen)),
                                                    memory_order_seq_cst, memory_order_acquire));
    CRASH_POINT("begin: its turn, but not begun");
    /* Before it is noted as running: else it would seem to be what the boss kills us for. */
    if (atomic_load_explicit(&mine->stop, memory_order_seq_cst)) {
        CRASH_POINT("begin: its turn, but stopped");
        return CLAIM_STOPPED;
    }
    atomic_store_explicit(&mine->sent, 0, memory_order_relaxed);
    atomic_store_explicit(&mine->allowed, 0, memory_order_relaxed);
    atomic_store_explicit(&mine->loaded, 0, memory_order_relaxed);
    atomic_store_explicit(&mine->began, now, memory_order_release);
    CRASH_POINT("begin: noted as running");
    return (int)next_of(seen);
}

void claims_loaded(claims *c, uint32_t slot)
{
    atomic_store_explicit(&c->claims[slot].loaded, platform_now(), memory_order_release);
}

void claims_sent(claims *c, uint32_t slot)
{
    uint32_t sent = atomic_load_explicit(&c->claims[slot].sent, memory_order_relaxed);
    atomic_store_explicit(&c->claims[slot].sent, sent + 1, memory_order_relaxed);
}

/* ---- the boss ---- */

void claims_allow(claims *c, uint32_t slot, uint32_t parts)
{
    atomic_fetch_add_explicit(&c->claims[slot].allowed, parts, memory_order_release);
}

void claims_clear(claims *c, uint32_t slot)
{
    claim *its = &c->claims[slot];
    /* Not `done` and `busy`: counters are those of the slot. */
    atomic_store_explicit(&its->state, CLAIM_FREE, memory_order_relaxed);
    atomic_store_explicit(&its->count, 0, memory_order_relaxed);
    atomic_store_explicit(&its->began, 0, memory_order_relaxed);
    atomic_store_explicit(&its->loaded, 0, memory_order_relaxed);
    atomic_store_explicit(&its->ready, 0, memory_order_relaxed);
    atomic_store_explicit(&its->stop, 0, memory_order_relaxed);
    atomic_store_explicit(&its->sent, 0, memory_order_relaxed);
    atomic_store_explicit(&its->allowed, 0, memory_order_relaxed);
    atomic_store_explicit(&its->span, 0, memory_order_release);
}

/* All of one instant: the span never comes back to what it was, so nothing happened between two looks at the same one.
 * (A batch's number is used once. Else the boss could see the last batch's end, and the running task of the next.) */
claim_view claims_view(const claims *c, uint32_t slot)
{
    const claim *its = &c->claims[slot];
    uint64_t seen, again = atomic_load_explicit(&its->span, memory_order_acquire);
    uint32_t state;
    int64_t began, loaded;
    do {
        seen = again;
        state = atomic_load_explicit(&its->state, memory_order_acquire);
        began = atomic_load_explicit(&its->began, memory_order_acquire);
        loaded = atomic_load_explicit(&its->loaded, memory_order_acquire);
        again = atomic_load_explicit(&its->span, memory_order_acquire);
    } while (again != seen);
    if (state != CLAIM_TAKEN)
        return (claim_view){0};
    return (claim_view){.number = number_of(seen),
                        .next = next_of(seen),
                        .end = end_of(seen),
                        .began = began,
                        .loaded = began ? loaded : 0};
}

bool claims_recall(claims *c, uint32_t slot, uint32_t number, uint32_t *from, uint32_t *to)
{
    claim *its = &c->claims[slot];
    uint64_t seen = atomic_load_explicit(&its->span, memory_order_acquire);
    if (atomic_load_explicit(&its->state, memory_order_acquire) != CLAIM_TAKEN)
        return false;
    do {
        if (number_of(seen) != number || next_of(seen) >= end_of(seen))
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&its->span, &seen, span(number, next_of(seen), next_of(seen)),
                                                    memory_order_acq_rel, memory_order_acquire));
    *from = next_of(seen);
    *to = end_of(seen);
    return true;
}

bool claims_condemn(claims *c, uint32_t slot, uint32_t number, uint32_t index)
{
    claim *its = &c->claims[slot];
    atomic_store_explicit(&its->stop, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    claim_view now = claims_view(c, slot);
    if (now.number == number && now.next == index + 1 && now.began)
        return true;
    atomic_store_explicit(&its->stop, 0, memory_order_release);
    return false;
}
