/* The arena of a Socket: blocks of shared memory for contents too large to be copied through rings.
 *
 * A sender takes a block, writes its content there once, and sends a note of it. Whoever receives the note claims the
 * block, reads it in place, and gives it back. A block may be on its way to many, and be held by many.
 *
 *   page 0     arena_shared
 *   then       the bitmaps of what is free (buddy.h), and of which units have memory behind them
 *   then       references: REFERENCES of 64 bytes (sparse, taken from the system as far as they were ever used)
 *   then       data: units of ARENA_UNIT bytes (sparse, taken from the system block by block)
 *
 * References are the truth. A block is in use as long as a reference to it is; a reference belongs to one holder (a
 * process that writes, sends or reads the block) or is on its way in one ring. What is free, and which references share
 * a block, follows from the references, and is made anew from them when a process was killed while it held the lock.
 *
 * All in arena_shared, the bitmaps and the references is written under `lock`, which is innermost: after the locks of
 * rings. It is held for a few hundred nanoseconds, and never while memory is copied or asked from the system.
 *
 * A reference's life, and what a kill leaves:
 *
 *   arena_take     HELD by the sender                      killed: the holder is dead, so it is given back
 *   arena_address  SENT by the sender to ring X            under X's producers' lock, before the record is published
 *   (publish)      ... and its record is in X              killed: dead holder, but X tells whether it is on its way
 *   arena_claim    HELD by the receiver, still noting X    under X's consumers' lock, before the record is taken
 *   (take)         ... and X has no record of it           killed: dead holder, but X tells whether it can still come
 *   arena_release  free
 *
 * So for a dead holder the ring that is noted decides (arena_settle): with a record there the reference is on its way,
 * without one it is given back. The reference of a live holder is never questioned. `via` is the Socket that will send
 * again what a peer had not received when it went away; so a reference sent to a ring that is closed belongs to via.
 *
 * Which units have memory behind them is known (`backed`), so that a block that is used again needs no system call and
 * a full /dev/shm is an error of arena_back instead of SIGBUS. Memory that is not used for a while goes back to the
 * system (arena_trim). A unit's bit is set after it got memory, and cleared before that is given up.
 *
 * Idea of holders' references in shared memory that outlive their holder: iceoryx2's used-chunk lists. */
#ifndef MULTISOCKET_ARENA_H
#define MULTISOCKET_ARENA_H

#include "buddy.h"
#include "codec.h"
#include "lock.h"
#include "ring.h"

#define ARENA_UNIT 65536u
#define ARENA_LEAST ((uint64_t)8 << 30) /* bytes of the smallest arena's data: two contents of the largest size fit */
#define ARENA_MOST ((uint64_t)1 << 40)
#define ARENA_PAGE 4096u
#define ARENA_REFERENCES (1u << 18)

/* Whose memory it is: the number of a process's family of names, and of a segment in it. Zeros: nobody's. */
typedef struct {
    uint64_t family;
    uint32_t number;
} segment_id;

static inline bool is_same_segment(segment_id a, segment_id b)
{
    return a.family == b.family && a.number == b.number;
}

/* What a record in a ring says of a content that lies in an arena. */
typedef struct {
    segment_id arena;
    uint32_t reference;
    uint32_t generation;
} note;

void note_encode(uint8_t out[NOTE_SIZE], const note *n);
void note_decode(const uint8_t in[NOTE_SIZE], note *out);

/* Whether a record's content lies in an arena; then its note. */
static inline bool record_note(const ring *r, const record *rec, note *out)
{
    uint8_t bytes[NOTE_SIZE];
    if (!rec->is_far)
        return false;
    ring_copy(r, rec, record_content_at(rec), bytes, NOTE_SIZE);
    note_decode(bytes, out);
    return true;
}

enum { WHERE_NOWHERE = 0, WHERE_INBOX = 1, WHERE_PENDING = 2 }; /* which ring of a Socket */

typedef struct {
    alignas(64) _Atomic uint32_t generation; /* odd while in use; stored last when it begins, first when it ends */
    uint32_t unit; /* first of the block */
    uint32_t length; /* of the content, bytes */
    uint32_t next, previous; /* references to the same block, in a circle */
    uint8_t order; /* of the block */
    uint8_t is_held; /* taken or claimed; otherwise sent, and `where` says to which ring */
    uint8_t where;
    uint64_t holder; /* the family of the process that took, sent or claimed it */
    segment_id ring; /* where it was sent last; means nothing while `where` is WHERE_NOWHERE */
    uint32_t via_number; /* the Socket that sent it there: via */
    uint64_t via_family;
} reference;

_Static_assert(sizeof(reference) == 64, "a reference is one cache line");

typedef struct {
    _Atomic uint32_t magic; /* stored last */
    uint32_t layout;
    uint64_t bytes; /* of data, a power of two */
    uint64_t limit; /* bytes that may be in use */
    segment_id socket;
    _Atomic uint32_t closed; /* by its owner, or by who found the owner dead: whoever empties it removes its name */
    event room; /* notified when a block is given back */

    alignas(64) pthread_mutex_t lock;
    uint32_t high; /* references below it were used */
    uint32_t reserved; /* references below it have memory */
    uint32_t unused; /* first of the free references below high, linked by next; REFERENCES: none */
    _Atomic uint32_t live; /* references in use */
    _Atomic uint64_t used; /* units of contents in use */
    _Atomic uint64_t backed; /* units with memory behind them */
    uint64_t peak; /* most used since the last arena_rest */
    int64_t rested; /* when that was */
} arena_shared;

_Static_assert(sizeof(arena_shared) <= ARENA_PAGE, "the header is one page");

/* A process's view. */
typedef struct {
    arena_shared *shared;
    buddy parts;
    _Atomic uint64_t *backed;
    reference *references;
    uint8_t *data;
    uint64_t bytes;
    uint32_t units;
    segment_id id;
    void *base;
    int fd;
} arena;

/* A reference that this process holds. */
typedef struct {
    uint32_t reference;
    uint32_t generation;
    uint32_t length;
    uint32_t unit;
    uint8_t *data;
    bool is_backed; /* only of a block just taken */
} block;

uint64_t arena_size(uint64_t limit); /* of the whole segment, bytes */
int arena_init(void *base, int fd, uint64_t limit, segment_id socket); /* RING_OK, RING_NO_MEMORY, RING_CORRUPT */
int arena_attach(arena *a, void *base, uint64_t size, int fd);

/* Takes a block. RING_FULL: the limit, or no room in one piece. RING_NO_MEMORY: for the table of references. */
int arena_take(arena *a, uint32_t length, uint64_t holder, block *out);
/* The same for one that takes the place of `old`, which the caller has alone and releases next: the limit counts only
 * the larger one. Else a content that grows would wait for ever for the room that it takes itself. */
int arena_take_instead(arena *a, uint32_t length, uint64_t holder, const block *old, block *out);
/* Puts memory behind a block just taken. RING_NO_MEMORY: /dev/shm is full. */
int arena_back(arena *a, const block *b);
/* One more reference to the same block. */
int arena_share(arena *a, const block *b, uint64_t holder, block *out);
/* True: nothing of a closed arena is left in use, so its name can go. */
bool arena_release(arena *a, const block *b);

/* Notes to which ring a reference goes; its record is published next. RING_CORRUPT: there is no such reference. */
int arena_address(arena *a, uint32_t index, uint32_t generation, uint64_t holder, segment_id ring, uint8_t where,
                  segment_id via);
/* Takes over a reference whose record was found in a ring; the record is taken from there next. */
int arena_claim(arena *a, const note *n, uint64_t holder, block *out);

/* Where the content lies that a note tells of, which stays as it is: for the one who alone can take its record. */
int arena_look(arena *a, const note *n, block *out);

/* Gives up free memory until at most `keep` units have memory (or all that do are in use). */
void arena_trim(arena *a, uint64_t keep, uint64_t holder);
/* The same for memory that was not needed since the last call, if that was long enough ago. True: there is memory
 * that a later call may give up. */
bool arena_rest(arena *a, uint64_t holder);

/* Sleeps until a block was given back (WAIT_WOKEN), for a slice, or until a signal. ticket: from arena_arm, taken
 * before the room was looked for. */
static inline uint32_t arena_arm(arena *a)
{
    return event_arm(&a->shared->room);
}
int arena_wait(arena *a, uint32_t ticket, int64_t deadline);

/* --- finding what the dead held --- */

/* A copy of a reference in use. */
typedef struct {
    uint32_t index;
    uint32_t generation;
    uint64_t holder;
    segment_id ring;
    segment_id via;
    uint8_t where;
    bool is_held;
} sighting;

/* Copies of the references in use, at most `most`: the caller finds out which holders live, and which rings. */
unsigned arena_list(arena *a, sighting *out, unsigned most);
/* Gives back a reference, if it is still as it was seen. */
void arena_reclaim(arena *a, const sighting *seen);
/* The same for those seen whose holder is dead and which were sent to this ring, as far as it has no record of them. */
int arena_settle(arena *a, ring *r, const sighting *seen, unsigned n);
/* No longer minds that ring of references which via sent there: via has sent to others what was in it. */
void arena_forget(arena *a, segment_id ring, segment_id via);

static inline bool arena_is_closed(const arena *a)
{
    return atomic_load_explicit(&a->shared->closed, memory_order_acquire) != 0;
}
void arena_close(arena *a);
/* Whether nothing of it is in use. */
bool arena_is_empty(arena *a);

#endif
