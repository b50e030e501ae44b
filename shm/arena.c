#include "arena.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_MAGIC 0x6d736172u /* "msar" */
#define ARENA_LAYOUT 1u
#define NO_REFERENCE ARENA_REFERENCES
/* References that get memory at a time. */
#define REFERENCES_STEP 64u
/* The largest part that is given back to the system at a go, so that a sender never waits long for it. */
#define TRIM_ORDER 10u
#define REST_NS 1000000000

/* ---- layout ---- */

static uint64_t round_up(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

static uint64_t data_bytes(uint64_t limit)
{
    uint64_t bytes = ARENA_LEAST;
    while (bytes < limit && bytes < ARENA_MOST)
        bytes *= 2;
    return bytes;
}

static uint32_t units_of(uint64_t bytes)
{
    return bytes ? (uint32_t)((bytes - 1) / ARENA_UNIT + 1) : 1;
}

static uint64_t backed_words(uint32_t units)
{
    return units / 64;
}

static uint64_t references_at(uint32_t units)
{
    return round_up(ARENA_PAGE + 8 * (buddy_words(units) + backed_words(units)), ARENA_PAGE);
}

static uint64_t data_at(uint32_t units)
{
    return round_up(references_at(units) + (uint64_t)ARENA_REFERENCES * sizeof(reference), ARENA_UNIT);
}

uint64_t arena_size(uint64_t limit)
{
    uint64_t bytes = data_bytes(limit);
    return data_at(units_of(bytes)) + bytes;
}

static void place(arena *a, void *base, uint64_t bytes, int fd)
{
    uint64_t *words = (uint64_t *)(void *)((uint8_t *)base + ARENA_PAGE);
    a->shared = base;
    a->base = base;
    a->fd = fd;
    a->bytes = bytes;
    a->units = units_of(bytes);
    buddy_attach(&a->parts, words, a->units);
    a->backed = (_Atomic uint64_t *)(words + buddy_words(a->units));
    a->references = (reference *)(void *)((uint8_t *)base + references_at(a->units));
    a->data = (uint8_t *)base + data_at(a->units);
}

int arena_init(void *base, int fd, uint64_t limit, segment_id socket)
{
    arena a;
    place(&a, base, data_bytes(limit), fd);
    if (platform_reserve(fd, base, 0, references_at(a.units)) != 0)
        return RING_NO_MEMORY;
    arena_shared *s = a.shared;
    memset(s, 0, sizeof *s);
    s->layout = ARENA_LAYOUT;
    s->bytes = a.bytes;
    s->limit = limit;
    s->socket = socket;
    s->unused = NO_REFERENCE;
    if (robust_init(&s->lock))
        return RING_CORRUPT;
    buddy_reset(&a.parts);
    atomic_store_explicit(&s->magic, ARENA_MAGIC, memory_order_release);
    return RING_OK;
}

int arena_attach(arena *a, void *base, uint64_t size, int fd)
{
    arena_shared *s = base;
    if (size < ARENA_PAGE || atomic_load_explicit(&s->magic, memory_order_acquire) != ARENA_MAGIC ||
        s->layout != ARENA_LAYOUT)
        return RING_CORRUPT;
    uint64_t bytes = s->bytes;
    if (bytes < ARENA_LEAST || bytes > ARENA_MOST || (bytes & (bytes - 1)) || size != arena_size(bytes))
        return RING_CORRUPT;
    place(a, base, bytes, fd);
    a->id = s->socket;
    return RING_OK;
}

/* ---- notes ---- */

void note_encode(uint8_t out[NOTE_SIZE], const note *n)
{
    memcpy(out, &n->arena.family, 8);
    memcpy(out + 8, &n->arena.number, 4);
    memcpy(out + 12, &n->reference, 4);
    memcpy(out + 16, &n->generation, 4);
}

void note_decode(const uint8_t in[NOTE_SIZE], note *out)
{
    memcpy(&out->arena.family, in, 8);
    memcpy(&out->arena.number, in + 8, 4);
    memcpy(&out->reference, in + 12, 4);
    memcpy(&out->generation, in + 16, 4);
}

/* ---- units with memory behind them ---- */

static uint64_t mask_of(uint32_t unit, uint32_t end)
{
    uint32_t first = unit & 63;
    uint32_t last = end - (unit & ~63u) < 64 ? end & 63 : 64;
    return (last == 64 ? ~(uint64_t)0 : ((uint64_t)1 << last) - 1) & ~(((uint64_t)1 << first) - 1);
}

static bool are_backed(const arena *a, uint32_t unit, uint32_t end)
{
    for (; unit < end; unit = (unit & ~63u) + 64) {
        uint64_t mask = mask_of(unit, end);
        if ((atomic_load_explicit(&a->backed[unit / 64], memory_order_relaxed) & mask) != mask)
            return false;
    }
    return true;
}

/* Sets or clears the bits of [unit, end), and counts. Under the lock. */
static void mark_backed(arena *a, uint32_t unit, uint32_t end, bool is_backed)
{
    int64_t change = 0;
    for (; unit < end; unit = (unit & ~63u) + 64) {
        uint64_t mask = mask_of(unit, end);
        uint64_t before = atomic_load_explicit(&a->backed[unit / 64], memory_order_relaxed);
        uint64_t after = is_backed ? before | mask : before & ~mask;
        atomic_store_explicit(&a->backed[unit / 64], after, memory_order_relaxed);
        change += __builtin_popcountll(after) - __builtin_popcountll(before);
    }
    uint64_t backed = atomic_load_explicit(&a->shared->backed, memory_order_relaxed);
    atomic_store_explicit(&a->shared->backed, backed + (uint64_t)change, memory_order_relaxed);
}

/* ---- references: all under the lock ---- */

static bool is_in_use(const reference *ref)
{
    return atomic_load_explicit(&ref->generation, memory_order_relaxed) & 1;
}

static bool is_sane(const arena *a, const reference *ref)
{
    return ref->order <= a->parts.top && ref->unit < a->units && units_of(ref->length) <= (uint32_t)1 << ref->order &&
           (ref->unit & (((uint32_t)1 << ref->order) - 1)) == 0;
}

static uint32_t known_references(const arena *a)
{
    uint32_t high = a->shared->high;
    return high < ARENA_REFERENCES ? high : ARENA_REFERENCES;
}

/* A reference in use with that generation, or NULL. */
static reference *find(const arena *a, uint32_t index, uint32_t generation)
{
    if (index >= known_references(a) || !(generation & 1))
        return NULL;
    reference *ref = &a->references[index];
    if (atomic_load_explicit(&ref->generation, memory_order_relaxed) != generation || !is_sane(a, ref))
        return NULL;
    return ref;
}

static void add_used(arena *a, int64_t units)
{
    uint64_t used = atomic_load_explicit(&a->shared->used, memory_order_relaxed);
    atomic_store_explicit(&a->shared->used, used + (uint64_t)units, memory_order_relaxed);
}

static void note_peak(arena_shared *s)
{
    uint64_t used = atomic_load_explicit(&s->used, memory_order_relaxed);
    if (used > s->peak)
        s->peak = used;
}

static uint32_t free_reference(arena *a)
{
    arena_shared *s = a->shared;
    uint32_t index = s->unused;
    if (index < known_references(a)) {
        s->unused = a->references[index].next;
        return index;
    }
    if (s->high >= s->reserved || s->high >= ARENA_REFERENCES)
        return NO_REFERENCE;
    return s->high++;
}

/* Fills a free reference but for its place in the circle; it is not in use yet. */
static reference *fill(arena *a, uint32_t index, uint32_t unit, uint8_t order, uint32_t length, uint64_t holder)
{
    reference *ref = &a->references[index];
    ref->unit = unit;
    ref->order = order;
    ref->length = length;
    ref->is_held = 1;
    ref->where = WHERE_NOWHERE;
    ref->holder = holder;
    ref->next = ref->previous = index;
    return ref;
}

static void begin_use(arena *a, reference *ref)
{
    a->shared->live++;
    uint32_t generation = atomic_load_explicit(&ref->generation, memory_order_relaxed);
    atomic_store_explicit(&ref->generation, generation + 1, memory_order_release);
}

/* Puts a reference into the circle of another one. */
static void join_circle(arena *a, uint32_t index, uint32_t other)
{
    reference *ref = &a->references[index];
    ref->previous = other;
    ref->next = a->references[other].next;
    if (ref->next < known_references(a))
        a->references[ref->next].previous = index;
    a->references[other].next = index;
}

/* True: it was the last of its block. */
static bool leave_circle(arena *a, uint32_t index)
{
    reference *ref = &a->references[index];
    if (ref->next == index)
        return true;
    if (ref->next < known_references(a) && ref->previous < known_references(a)) {
        a->references[ref->next].previous = ref->previous;
        a->references[ref->previous].next = ref->next;
    }
    return false;
}

static void end_use(arena *a, uint32_t index)
{
    arena_shared *s = a->shared;
    reference *ref = &a->references[index];
    uint32_t generation = atomic_load_explicit(&ref->generation, memory_order_relaxed);
    atomic_store_explicit(&ref->generation, generation + 1, memory_order_release);
    CRASH_POINT("release: free but not accounted for");
    if (leave_circle(a, index)) {
        add_used(a, -(int64_t)units_of(ref->length));
        buddy_give(&a->parts, ref->unit, ref->order);
    }
    s->live--;
    ref->next = s->unused;
    s->unused = index;
}

/* ---- the lock ---- */

/* The earlier reference to the same block. */
static uint32_t sibling_below(const arena *a, uint32_t index)
{
    const reference *ref = &a->references[index];
    for (uint32_t i = 0; i < index; i++) {
        const reference *other = &a->references[i];
        if (is_in_use(other) && other->unit == ref->unit && other->order == ref->order)
            return i;
    }
    return NO_REFERENCE;
}

/* A process was killed with the lock: all is made anew from the references, in one of the states they were in. */
static void recover(arena *a)
{
    arena_shared *s = a->shared;
    buddy_reset(&a->parts);
    s->unused = NO_REFERENCE;
    s->live = 0;
    atomic_store_explicit(&s->used, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < known_references(a); i++) {
        reference *ref = &a->references[i];
        uint32_t sibling = NO_REFERENCE;
        bool sound = is_in_use(ref) && is_sane(a, ref);
        ref->previous = i;
        if (sound && buddy_take_at(&a->parts, ref->unit, ref->order)) {
            ref->next = i;
            add_used(a, units_of(ref->length));
        } else if (sound && (sibling = sibling_below(a, i)) != NO_REFERENCE) {
            join_circle(a, i, sibling);
        } else {
            if (is_in_use(ref))
                atomic_fetch_add_explicit(&ref->generation, 1, memory_order_relaxed);
            ref->next = s->unused;
            s->unused = i;
            continue;
        }
        s->live++;
    }
    uint64_t backed = 0;
    for (uint32_t i = 0; i < backed_words(a->units); i++)
        backed += (uint64_t)__builtin_popcountll(atomic_load_explicit(&a->backed[i], memory_order_relaxed));
    atomic_store_explicit(&s->backed, backed, memory_order_relaxed);
    event_notify_all(&s->room);
}

static int lock(arena *a)
{
    int rc = robust_lock(&a->shared->lock, true);
    if (rc == EOWNERDEAD) {
        recover(a);
        rc = pthread_mutex_consistent(&a->shared->lock);
    }
    return rc ? RING_CORRUPT : RING_OK;
}

static void unlock(arena *a)
{
    pthread_mutex_unlock(&a->shared->lock);
}

/* ---- taking and giving back ---- */

static void describe(const arena *a, uint32_t index, block *out)
{
    const reference *ref = &a->references[index];
    out->reference = index;
    out->generation = atomic_load_explicit(&ref->generation, memory_order_relaxed);
    out->length = ref->length;
    out->unit = ref->unit;
    out->data = a->data + (uint64_t)ref->unit * ARENA_UNIT;
    out->is_backed = are_backed(a, ref->unit, ref->unit + units_of(ref->length));
}

/* More memory for the table of references. Without the lock: it may take a while. */
static int reserve_references(arena *a, uint32_t from)
{
    if (from >= ARENA_REFERENCES)
        return RING_FULL;
    size_t offset = (size_t)((uint8_t *)&a->references[from] - (uint8_t *)a->base);
    if (platform_reserve(a->fd, a->base, offset, REFERENCES_STEP * sizeof(reference)) != 0)
        return RING_NO_MEMORY;
    int rc = lock(a);
    if (rc != RING_OK)
        return rc;
    if (a->shared->reserved == from)
        a->shared->reserved = from + REFERENCES_STEP;
    unlock(a);
    return RING_OK;
}

/* Locks when there is a free reference too. */
static int lock_with_reference(arena *a, uint32_t *index)
{
    for (;;) {
        int rc = lock(a);
        if (rc != RING_OK)
            return rc;
        if ((*index = free_reference(a)) != NO_REFERENCE)
            return RING_OK;
        uint32_t reserved = a->shared->reserved;
        unlock(a);
        rc = reserve_references(a, reserved);
        if (rc != RING_OK)
            return rc;
    }
}

static void put_back(arena *a, uint32_t index)
{
    a->references[index].next = a->shared->unused;
    a->shared->unused = index;
}

/* A content larger than the limit is let in when nothing else is: what has room nowhere would else wait for ever. */
static bool is_allowed(const arena *a, uint32_t units, uint32_t instead)
{
    uint64_t used = atomic_load_explicit(&a->shared->used, memory_order_relaxed);
    used -= used < instead ? used : instead;
    uint64_t limit = a->shared->limit; /* may be anything up to UINT64_MAX */
    return used == 0 || used + units <= limit / ARENA_UNIT + (limit % ARENA_UNIT != 0);
}

int arena_take(arena *a, uint32_t length, uint64_t holder, block *out)
{
    return arena_take_instead(a, length, holder, NULL, out);
}

int arena_take_instead(arena *a, uint32_t length, uint64_t holder, const block *old, block *out)
{
    uint32_t index, units = units_of(length);
    uint32_t order = buddy_order(units);
    if (order > a->parts.top)
        return RING_TOO_LONG;
    int rc = lock_with_reference(a, &index);
    if (rc != RING_OK)
        return rc;
    uint32_t unit = is_allowed(a, units, old ? units_of(old->length) : 0) ? buddy_take(&a->parts, order) : BUDDY_NONE;
    if (unit == BUDDY_NONE) {
        put_back(a, index);
        unlock(a);
        return RING_FULL;
    }
    CRASH_POINT("take: a part without a reference");
    reference *ref = fill(a, index, unit, (uint8_t)order, length, holder);
    add_used(a, units);
    note_peak(a->shared);
    begin_use(a, ref);
    describe(a, index, out);
    CRASH_POINT("take: a reference of a dead holder");
    unlock(a);
    return RING_OK;
}

int arena_back(arena *a, const block *b)
{
    if (b->is_backed)
        return RING_OK;
    uint32_t units = units_of(b->length);
    size_t offset = (size_t)(b->data - (uint8_t *)a->base);
    bool is_there = platform_reserve(a->fd, a->base, offset, (size_t)units * ARENA_UNIT) == 0;
    int rc = lock(a);
    if (rc != RING_OK)
        return rc;
    mark_backed(a, b->unit, b->unit + units, is_there);
    unlock(a);
    if (is_there)
        return RING_OK;
    platform_discard(b->data, (size_t)units * ARENA_UNIT); /* a part of it got memory, and nobody would know */
    return RING_NO_MEMORY;
}

int arena_share(arena *a, const block *b, uint64_t holder, block *out)
{
    uint32_t index;
    int rc = lock_with_reference(a, &index);
    if (rc != RING_OK)
        return rc;
    reference *from = find(a, b->reference, b->generation);
    if (!from) {
        put_back(a, index);
        unlock(a);
        return RING_CORRUPT;
    }
    reference *ref = fill(a, index, from->unit, from->order, from->length, holder);
    join_circle(a, index, b->reference);
    CRASH_POINT("share: in the circle but not in use");
    begin_use(a, ref);
    describe(a, index, out);
    unlock(a);
    return RING_OK;
}

bool arena_release(arena *a, const block *b)
{
    if (lock(a) != RING_OK)
        return false;
    if (find(a, b->reference, b->generation))
        end_use(a, b->reference);
    bool last = a->shared->live == 0 && arena_is_closed(a);
    unlock(a);
    event_notify(&a->shared->room, INT_MAX);
    return last;
}

/* ---- on the way ---- */

int arena_address(arena *a, uint32_t index, uint32_t generation, uint64_t holder, segment_id where, uint8_t which,
                  segment_id via)
{
    if (lock(a) != RING_OK)
        return RING_CORRUPT;
    reference *ref = find(a, index, generation);
    if (ref) {
        /* Killed in between: held by the dead, and sent nowhere. */
        ref->where = WHERE_NOWHERE;
        atomic_signal_fence(memory_order_seq_cst);
        ref->holder = holder;
        ref->is_held = 1;
        ref->ring = where;
        ref->via_family = via.family;
        ref->via_number = via.number;
        atomic_signal_fence(memory_order_seq_cst);
        ref->where = which;
        atomic_signal_fence(memory_order_seq_cst);
        ref->is_held = 0;
    }
    unlock(a);
    return ref ? RING_OK : RING_CORRUPT;
}

int arena_look(arena *a, const note *n, block *out)
{
    if (lock(a) != RING_OK)
        return RING_CORRUPT;
    bool found = find(a, n->reference, n->generation);
    if (found)
        describe(a, n->reference, out);
    unlock(a);
    return found ? RING_OK : RING_CORRUPT;
}

int arena_claim(arena *a, const note *n, uint64_t holder, block *out)
{
    if (lock(a) != RING_OK)
        return RING_CORRUPT;
    reference *ref = find(a, n->reference, n->generation);
    if (ref) {
        /* Killed in between: sent by the dead; the ring still has the record. */
        ref->holder = holder;
        atomic_signal_fence(memory_order_seq_cst);
        ref->is_held = 1;
        describe(a, n->reference, out);
    }
    unlock(a);
    return ref ? RING_OK : RING_CORRUPT;
}

/* ---- memory back to the system ---- */

/* The highest free part with memory behind it, at most of order `most`. BUDDY_NONE: there is none. */
static uint32_t highest_backed(const arena *a, uint32_t most, uint32_t *order)
{
    for (uint32_t i = (uint32_t)backed_words(a->units); i-- > 0;) {
        uint64_t word = atomic_load_explicit(&a->backed[i], memory_order_relaxed);
        while (word) {
            uint32_t bit = 63 - (uint32_t)__builtin_clzll(word);
            uint32_t unit = i * 64 + bit;
            *order = buddy_free_order(&a->parts, unit);
            if (*order != BUDDY_NONE) {
                if (*order > most)
                    *order = most;
                return unit & ~(((uint32_t)1 << *order) - 1);
            }
            word &= ~((uint64_t)1 << bit);
        }
    }
    return BUDDY_NONE;
}

/* Takes a free part out of use, so that it can be given up without the lock. */
static bool take_backed(arena *a, uint64_t keep, uint64_t holder, block *out)
{
    uint32_t index, order = 0;
    if (atomic_load_explicit(&a->shared->backed, memory_order_relaxed) <= keep ||
        lock_with_reference(a, &index) != RING_OK)
        return false;
    uint32_t unit = BUDDY_NONE, most = TRIM_ORDER;
    uint64_t known = atomic_load_explicit(&a->shared->backed, memory_order_relaxed);
    if (known > keep) {
        while ((uint64_t)1 << most > known - keep) /* no less than `keep` is left */
            most--;
        unit = highest_backed(a, most, &order);
    }
    if (unit == BUDDY_NONE || !buddy_take_at(&a->parts, unit, order)) {
        put_back(a, index);
        unlock(a);
        return false;
    }
    uint32_t units = (uint32_t)1 << order;
    reference *ref = fill(a, index, unit, (uint8_t)order, units * ARENA_UNIT, holder);
    add_used(a, units);
    begin_use(a, ref);
    describe(a, index, out);
    mark_backed(a, unit, unit + units, false);
    unlock(a);
    return true;
}

void arena_trim(arena *a, uint64_t keep, uint64_t holder)
{
    block part;
    while (take_backed(a, keep, holder, &part)) {
        CRASH_POINT("trim: not known as backed but not given up");
        platform_discard(part.data, part.length);
        arena_release(a, &part);
    }
}

bool arena_rest(arena *a, uint64_t holder)
{
    arena_shared *s = a->shared;
    if (lock(a) != RING_OK)
        return false;
    int64_t now = platform_now();
    bool due = (int64_t)((uint64_t)now - (uint64_t)s->rested) >= REST_NS; /* rested may be garbage */
    uint64_t keep = s->peak;
    if (due) {
        s->rested = now;
        s->peak = atomic_load_explicit(&s->used, memory_order_relaxed);
    }
    unlock(a);
    if (due)
        arena_trim(a, keep, holder);
    return atomic_load_explicit(&s->backed, memory_order_relaxed) > 0;
}

int arena_wait(arena *a, uint32_t ticket, int64_t deadline)
{
    return event_wait(&a->shared->room, ticket, deadline);
}

/* ---- what the dead held ---- */

unsigned arena_list(arena *a, sighting *out, unsigned most)
{
    unsigned n = 0;
    if (lock(a) != RING_OK)
        return 0;
    for (uint32_t i = 0; i < known_references(a) && n < most; i++) {
        const reference *ref = &a->references[i];
        if (!is_in_use(ref))
            continue;
        out[n++] = (sighting){.index = i,
                              .generation = atomic_load_explicit(&ref->generation, memory_order_relaxed),
                              .holder = ref->holder,
                              .ring = ref->ring,
                              .via = {ref->via_family, ref->via_number},
                              .where = ref->where,
                              .is_held = ref->is_held};
    }
    unlock(a);
    return n;
}

/* Still in use, by the same holder, in the same state. Under the lock. */
static bool is_unchanged(const arena *a, const sighting *seen)
{
    const reference *ref = find(a, seen->index, seen->generation);
    return ref && ref->holder == seen->holder && ref->is_held == seen->is_held && ref->where == seen->where &&
           (ref->where == WHERE_NOWHERE || is_same_segment(ref->ring, seen->ring));
}

void arena_reclaim(arena *a, const sighting *seen)
{
    if (lock(a) != RING_OK)
        return;
    if (is_unchanged(a, seen))
        end_use(a, seen->index);
    unlock(a);
    event_notify_all(&a->shared->room);
}

/* Which references of this arena have a record in the ring. */
static void mark_present(const arena *a, const ring *r, uint8_t *present)
{
    record rec;
    uint64_t at = ring_frozen_start(r);
    while (ring_frozen_next(r, &at, &rec) == RING_OK) {
        uint8_t bytes[NOTE_SIZE];
        note n;
        if (!rec.is_far)
            continue;
        ring_copy(r, &rec, record_content_at(&rec), bytes, NOTE_SIZE);
        note_decode(bytes, &n);
        if (is_same_segment(n.arena, a->id) && n.reference < ARENA_REFERENCES)
            present[n.reference] = 1;
    }
}

int arena_settle(arena *a, ring *r, const sighting *seen, unsigned n)
{
    uint8_t *present = calloc(ARENA_REFERENCES, 1);
    if (!present)
        return RING_NO_MEMORY;
    int rc = ring_hold(r);
    if (rc == RING_OK) {
        mark_present(a, r, present);
        if ((rc = lock(a)) == RING_OK) {
            for (unsigned i = 0; i < n; i++)
                if (!present[seen[i].index] && is_unchanged(a, &seen[i]))
                    end_use(a, seen[i].index);
            unlock(a);
        }
        ring_unhold(r);
    }
    free(present);
    event_notify_all(&a->shared->room);
    return rc;
}

void arena_forget(arena *a, segment_id ring, segment_id via)
{
    if (lock(a) != RING_OK)
        return;
    for (uint32_t i = 0; i < known_references(a); i++) {
        reference *ref = &a->references[i];
        if (is_in_use(ref) && ref->where == WHERE_INBOX && is_same_segment(ref->ring, ring) &&
            is_same_segment((segment_id){ref->via_family, ref->via_number}, via))
            ref->where = WHERE_NOWHERE;
    }
    unlock(a);
}

void arena_close(arena *a)
{
    atomic_store_explicit(&a->shared->closed, 1, memory_order_release);
    event_notify_all(&a->shared->room);
}

bool arena_is_empty(arena *a)
{
    if (lock(a) != RING_OK)
        return false;
    bool empty = a->shared->live == 0;
    unlock(a);
    return empty;
}
