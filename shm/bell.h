/* Tells the process that owns a Socket's connections which outboxes have something to be written.
 *
 *   sender:  publish a record in the outbox; bell_ring(bell, slot)
 *   owner:   bell_next(...) clears a slot's bit and then drains its outbox; none left: event_arm, look again, sleep
 *
 * Words: one bit for each slot of the pipe table; set by any sender after its record is published, cleared by the owner
 * before it looks. So a record is either seen by that look, or its sender finds the bit cleared and sets it again. A
 * sender killed in between leaves a record that nobody was told of: the owner looks at all outboxes now and then. */
#ifndef MULTISOCKET_BELL_H
#define MULTISOCKET_BELL_H

#include "event.h"

#define BELL_SLOTS 65536u
#define BELL_WORDS (BELL_SLOTS / 64)

static inline void bell_ring(event *rung, _Atomic uint64_t *waiting, uint32_t slot)
{
    _Atomic uint64_t *word = &waiting[slot / 64];
    uint64_t bit = (uint64_t)1 << slot % 64;
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(word, memory_order_relaxed) & bit)
        return;
    atomic_fetch_or(word, bit);
    event_notify(rung, 1);
}

/* The next slot from `from` up to `high` that was rung, cleared; 0: none. (No pipe has slot 0.) */
static inline uint32_t bell_next(_Atomic uint64_t *waiting, uint32_t from, uint32_t high)
{
    for (uint32_t i = from / 64; i <= high / 64; i++) {
        uint64_t set = atomic_load_explicit(&waiting[i], memory_order_acquire);
        if (i == from / 64)
            set &= ~(uint64_t)0 << from % 64;
        if (!set)
            continue;
        uint32_t slot = i * 64 + (uint32_t)__builtin_ctzll(set);
        atomic_fetch_and(&waiting[i], ~((uint64_t)1 << slot % 64));
        return slot;
    }
    return 0;
}

#endif
