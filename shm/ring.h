/* A bounded ring of variable-length records in shared memory: many producers, many consumers, in any process.
 *
 * Positions. Space is counted in units of 16 bytes. A cursor packs, in one 64-bit word, the position (units since the
 * beginning, modulo 2^32) and the number of records up to it (modulo 2^32): one atomic store moves both, so that
 * whoever is killed leaves either the old state or the new one. The capacity is a power of two of units, at most 2^29.
 *
 *   tail   what has been published    written under the producers' lock, last step of a push (release)
 *   head   what has been taken        written under the consumers' lock, last step of a pop (release)
 *
 * Invariants:
 *   - tail.position - head.position <= capacity, tail.count - head.count = number of records between them.
 *   - Memory in [head, tail) is only read, memory in [tail, head + capacity) only written by the holder of the
 *     producers' lock. A half-written record therefore stands beyond tail and is never seen.
 *   - Both locks are robust mutexes: when a holder is killed, the next one gets EOWNERDEAD, repairs what can be half
 *     done (see recover_* in ring.c) and goes on.
 *   - Lock order: producers, then consumers.
 *
 * Rewind. A ring that is often empty would still walk through all its memory. So a producer who crosses a multiple of
 * RING_REWIND bytes in an empty ring and gets the consumers' lock too moves head and then tail to the next multiple of
 * the capacity: the same first pages are used again, warm in the cache. In between (or when killed there) head is ahead
 * of tail with equal counts: readers go by the counts and see an empty ring; the next producer brings tail along.
 *
 * Reserve. Memory is taken from the system the first time a producer gets there, by a call that can fail
 * (RING_NO_MEMORY) instead of a store that raises SIGBUS. `reserved` is how far the data is backed.
 *
 * A record: u32 units | u32 pipe (the receiver's id of the pipe it came by) | Meta | source | destination | content,
 * padded to whole units.
 *
 * Far. Instead of the content, a record may hold a note of where it lies (RECORD_FAR set in the word of units). It takes
 * as many units as if the content were here, or half of the ring where that is less, though hardly any of them is
 * written: so a queue holds so many bytes of messages, wherever they lie, and two messages of any size at least.
 *
 * Remote. RECORD_REMOTE in the same word: the message came over a network. It says so in every ring that it goes through
 * on this machine, and no peer across the network can say otherwise.
 *
 * Idea of positions and record layout: Agrona's ring buffers; of the two cached cursors: Erik
 * Rigtorp's SPSCQueue. */
#ifndef MULTISOCKET_RING_H
#define MULTISOCKET_RING_H

#include <stdalign.h>
#include <stdbool.h>

#include "codec.h"
#include "event.h"
#include "lock.h"

#define RING_UNIT 16u
#define RING_LINE 64
#define RING_REWIND (64u * 1024u)
#define RING_RESERVE_LEAST 4096u
#define RING_RESERVE_MOST (256u * 1024u)
#define RING_MIN_BYTES 4096u
#define RING_MAX_BYTES ((uint64_t)1 << 33) /* units of a record take 30 bits, and not all of them */
#define RECORD_FAR ((uint32_t)1 << 31)
#define RECORD_REMOTE ((uint32_t)1 << 30)

enum {
    RING_OK = 0,
    RING_EMPTY, /* nothing to take */
    RING_FULL, /* no room now */
    RING_BUSY, /* somebody else holds the lock (only when asked not to wait for it) */
    RING_CLOSED, /* nothing goes in or out any more */
    RING_TOO_LONG, /* longer than it takes, or would not fit into the empty ring */
    RING_NO_MEMORY, /* the system has no memory for these pages */
    RING_CORRUPT /* what stands in shared memory contradicts itself */
};

typedef struct {
    /* Written once by the creator. */
    uint32_t magic;
    uint32_t layout;
    uint64_t capacity; /* bytes */
    uint32_t limit; /* records */
    uint32_t longest; /* content that it takes, bytes */
    /* Written under both locks, read anywhere. */
    _Atomic uint32_t closed;
    /* Sends that found no room and waited; any process adds. */
    _Atomic uint64_t blocked;

    /* Owned by the holder of the producers' lock. */
    alignas(RING_LINE) pthread_mutex_t producers;
    uint64_t seen_head; /* head when last looked at: saves reading a line that consumers write */
    _Atomic uint64_t pushed; /* records ever published; low half equals tail.count */
    alignas(RING_LINE) _Atomic uint64_t tail;
    uint64_t reserved; /* bytes of data that have memory behind them */

    /* Owned by the holder of the consumers' lock. */
    alignas(RING_LINE) pthread_mutex_t consumers;
    uint64_t seen_tail;
    _Atomic uint64_t popped;
    alignas(RING_LINE) _Atomic uint64_t head;

    alignas(RING_LINE) event readable; /* notified by producers */
    alignas(RING_LINE) event room; /* notified by consumers */
} ring_shared;

/* A process's own view of a ring. Sizes are copied here once checked: shared ones are never trusted again. */
typedef struct {
    ring_shared *shared;
    uint8_t *data;
    uint64_t capacity; /* bytes, a power of two */
    uint32_t units; /* capacity in units */
    uint32_t limit;
    uint32_t longest;
    int fd; /* of the mapped file, where platform_reserve needs it; else -1 */
    void *base; /* of the mapping, for platform_reserve */
    _Atomic uint32_t spin; /* ns that the next wait may spin, learnt from the last ones */
} ring;

/* Capacity that a ring made for so many bytes has: the next power of two within the limits. */
uint64_t ring_capacity(uint64_t bytes);

/* Initialises shared memory that nobody else knows yet. capacity must come from ring_capacity. 0 or an errno. */
int ring_init(ring_shared *shared, uint64_t capacity, uint32_t limit, uint32_t longest);

/* Makes a view. RING_CORRUPT when the header is not one, or its capacity is not the expected `room` bytes. */
int ring_attach(ring *r, ring_shared *shared, uint8_t *data, uint64_t room, void *base, int fd);

/* Whether the ring could ever take the message. Of these and the next ones only its sizes count, and note. */
bool ring_takes(const ring *r, const message *m);
/* Bytes of the largest message (Meta, paths and content) that fits into the ring itself. */
uint64_t ring_max_message(const ring *r);

/* --- counters, readable at any time without a lock; each by itself exact, together only nearly so --- */
uint32_t ring_depth(const ring *r);
uint64_t ring_used(const ring *r); /* bytes */
static inline bool ring_is_closed(const ring *r)
{
    return atomic_load_explicit(&r->shared->closed, memory_order_acquire) != 0;
}
/* Whether a reader need not wait: there is something, or nothing will ever come. */
static inline bool ring_is_readable(const ring *r)
{
    return ring_depth(r) != 0 || ring_is_closed(r);
}
/* Whether a message of that size would be taken right now. */
bool ring_has_room(const ring *r, const message *m);
/* Whether a quarter of the ring is free beyond that. Who spins for room waits for so much, else it would go on into the
 * next wait after each message, and both sides fight for the same cache lines. */
bool ring_has_ample_room(const ring *r, const message *m);

/* --- producing: begin, put*, publish, end --- */
typedef struct {
    ring *r;
    uint64_t tail; /* where the next record goes */
    unsigned added; /* records put but not published */
    unsigned total; /* records published since begin */
} ring_writer;

/* wait = false: RING_BUSY instead of waiting for the lock. RING_OK: the lock is held until ring_end. */
int ring_begin(ring *r, ring_writer *w, bool wait);
int ring_put(ring_writer *w, uint32_t pipe, const message *m);
void ring_publish(ring_writer *w); /* one step for all that was put */
void ring_end(ring_writer *w); /* drops what was not published, unlocks, wakes consumers */

/* begin, put, publish, end. */
int ring_push(ring *r, uint32_t pipe, const message *m, bool wait);

/* --- consuming: enter, (front, [copy], pop)*, leave --- */
typedef struct {
    ring *r;
    uint64_t head; /* of the next record; behind what was popped but not yet taken */
} ring_reader;

typedef struct {
    uint32_t pipe;
    uint32_t units;
    bool is_far;
    uint64_t at; /* position of the record, bytes; an index into the data when masked */
    message head; /* without pointers */
} record;

int ring_enter(ring *r, ring_reader *reader, bool wait);
int ring_front(ring_reader *reader, record *out); /* RING_OK, RING_EMPTY, RING_CORRUPT (all was thrown away) */
void ring_pop(ring_reader *reader, const record *rec);
void ring_leave(ring_reader *reader); /* takes all that was popped, in one step; unlocks; wakes producers */
/* Takes what was popped so far, and keeps the lock. */
void ring_take(ring_reader *reader);
/* Records ever taken (modulo 2^32), and what that will be once all that was popped is taken. */
uint32_t ring_taken(const ring *r);
uint32_t ring_will_be_taken(const ring_reader *reader);

/* The sizes of the oldest message. False: there is none, or somebody has the consumers' lock. */
bool ring_peek(ring *r, message *out);

/* Copies n bytes from `offset` into the record's paths and content. */
void ring_copy(const ring *r, const record *rec, uint64_t offset, void *out, size_t n);
static inline uint64_t record_body_size(const record *rec)
{
    return message_size(&rec->head) - META_SIZE - (rec->is_far ? (uint64_t)rec->head.length - NOTE_SIZE : 0);
}
/* Offset of the content, or the note of it, behind the paths. */
static inline uint64_t record_content_at(const record *rec)
{
    return 4u * ((uint64_t)rec->head.hops + rec->head.distance);
}
/* Where n bytes from `offset` on stand: in one part, or, around the end of the data, in two. */
void ring_parts(const ring *r, const record *rec, uint64_t offset, size_t n, const uint8_t *parts[2], size_t sizes[2]);
/* Copies paths and content (or note) to out (record_body_size bytes) and points the message there. */
void ring_read(const ring *r, const record *rec, uint8_t *out, message *m);

/* Takes both locks: nothing is put or taken until ring_unhold. */
int ring_hold(ring *r);
void ring_unhold(ring *r);

/* Freezes the ring: after it returned, nothing is put or taken. Wakes everybody. */
void ring_close(ring *r);

/* Reading a ring that is closed or held, from its head to its tail. Start with a cursor of ring_frozen_start. */
uint64_t ring_frozen_start(const ring *r);
int ring_frozen_next(const ring *r, uint64_t *cursor, record *out); /* RING_OK, RING_EMPTY, RING_CORRUPT */

/* --- waiting; never hold a lock of Python's meanwhile --- */

/* Until the ring has a record or is closed (WAIT_WOKEN), a signal came, or the deadline has passed. */
int ring_wait_readable(ring *r, int64_t deadline);

/* Producers are told of room only when half of it is free, so they look by themselves too: at first after this time,
 * then after twice that, and so on up to EVENT_SLICE_NS. */
#define ROOM_SLICE_NS 5000000
static inline int64_t room_slice(int64_t *slice, int64_t deadline)
{
    int64_t end = platform_now() + *slice;
    *slice = *slice * 2 < EVENT_SLICE_NS ? *slice * 2 : EVENT_SLICE_NS;
    return end < deadline ? end : deadline;
}

/* Until the message would be taken or the ring is closed (WAIT_WOKEN), a signal, or the deadline. */
int ring_wait_room(ring *r, const message *m, int64_t deadline);

/* Waits for the consumers' lock to become free. */
void ring_await_consumers(ring *r);

/* Spinning before sleeping, at most this long; 0 never spins. Process-wide. */
void ring_set_spin(uint32_t ns);
uint32_t ring_get_spin(void);

/* Spins until done(arg) for as long as *learnt allows. If it was in vain: sleep, and tell spin_learn how long. */
bool spin_until(bool (*done)(const void *), const void *arg, _Atomic uint32_t *learnt, int64_t deadline);
void spin_learn(_Atomic uint32_t *learnt, int64_t slept_ns);

/* In a build for fault tests, a place where a test can have the process killed. */
#ifdef CRASH_POINTS
void crash_point(const char *where);
#define CRASH_POINT(where) crash_point(where)
#else
#define CRASH_POINT(where) ((void)0)
#endif

#endif
