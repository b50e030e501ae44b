/* A Socket's part in shared memory, and sending through its pipes.
 *
 * A segment belongs to one Socket:
 *
 *   page 0     segment header | inbox's ring header | pending's ring header
 *   page 1..   pipe table: PIPE_SLOTS slots of 64 bytes (sparse: a page exists once a pipe is in it)
 *   then       bits of the bell (bell.h), for Sockets with wires
 *   then       data of the inbox, data of pending (sparse as well)
 *
 * inbox holds what peers sent to us. pending holds to-one messages that were sent while no peer was connected.
 *
 * The pipe table is written by the owner (the process that made the Socket) alone, and read by every process that
 * shares the Socket. A pipe id is generation << 16 | slot, so that a slot can be used again under a new id and an id
 * leads to its slot without a search. Each change raises `version`; a reader who sees a new version brings its own list
 * of peers up to date (it must map their segments, which is not this layer's business: see peer_list).
 *
 * Order of a Socket's queued and direct messages: the owner publishes a pipe while it holds pending's producers' lock,
 * and a sender who found no pipe looks at `version` again under that lock, so a message never goes to pending behind
 * the back of a pipe; and senders move what is pending into pipes before they send what is theirs. */
#ifndef MULTISOCKET_ENDPOINT_H
#define MULTISOCKET_ENDPOINT_H

#include "arena.h"
#include "bell.h"
#include "wire.h"

#define PIPE_SLOTS 65536u
#define SEGMENT_NAME_SIZE 32
#define SEGMENT_PAGE 4096u

enum { PIPE_FREE = 0, PIPE_CONNECTING = 1, PIPE_OPEN = 2 };

/* Where a pipe leads: to the inbox of a peer on this machine; or to an outbox of its own, whose other end is a wire
 * (wire.h). Raw wires get only what is sent to them by their id, or to all. */
enum { PIPE_TO_INBOX = 0, PIPE_TO_WIRE = 1, PIPE_TO_RAW_WIRE = 2 };

typedef struct {
    alignas(RING_LINE) _Atomic uint32_t id; /* 0 while free; stored last when a slot is filled, first when emptied */
    _Atomic uint32_t state;
    uint32_t peer_id; /* what the peer calls this pipe: goes into the records for it */
    uint32_t generation;
    _Atomic uint64_t sent; /* messages; written under the producers' lock of the peer's ring, or added to for a wire */
    char peer[SEGMENT_NAME_SIZE]; /* the peer's segment, or the outbox's; empty when the peer discards all it gets */
    uint32_t kind;
} pipe_slot;

typedef struct {
    uint32_t magic;
    uint32_t layout;
    segment_id id;
    uint64_t size; /* of the whole segment, bytes */
    uint64_t inbox_capacity; /* bytes */
    uint64_t pending_capacity;
    _Atomic uint32_t closed; /* by its owner, or by who found the owner dead */
    _Atomic uint32_t version; /* of the pipe table */
    _Atomic uint32_t high; /* no slot above it was ever used */
    uint32_t free_from; /* no slot below it is free; the owner's own */
    event pipes_changed;
    event bell;
    _Atomic uint32_t has_bell; /* its bits have memory */
    _Atomic uint64_t sent_before; /* messages through pipes that are gone */
    _Atomic uint64_t dropped; /* messages given up: best effort, no such path left */
    alignas(RING_LINE) ring_shared inbox;
    ring_shared pending;
} segment_header;

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a cursor is stored in one step, without a lock of the library's own");
_Static_assert(sizeof(pipe_slot) == 64, "a slot is one cache line");
_Static_assert(sizeof(segment_header) <= SEGMENT_PAGE, "the header is one page");

/* A process's view of a segment. */
typedef struct {
    segment_header *shared;
    pipe_slot *slots;
    _Atomic uint64_t *bell_waiting;
    ring inbox;
    ring pending;
    segment_id id;
    int fd;
    _Atomic uint32_t send_spin; /* ns that the next wait to send may spin */
} segment;

uint64_t segment_size(uint64_t inbox_capacity, uint64_t pending_capacity);

/* What a segment is made of. Capacities from ring_capacity. */
typedef struct {
    segment_id id;
    uint64_t inbox_capacity; /* bytes */
    uint64_t pending_capacity;
    uint32_t inbox_limit; /* messages */
    uint32_t pending_limit;
    uint32_t longest; /* content that the inbox takes, bytes */
} segment_plan;

/* Initialises a fresh mapping. RING_OK, RING_NO_MEMORY or RING_CORRUPT (no robust mutexes here). */
int segment_init(void *base, int fd, const segment_plan *plan);
int segment_attach(segment *seg, void *base, uint64_t size, int fd);
/* Freezes both rings and wakes all who wait: nothing goes in or out afterwards. Any process may do it. */
void segment_close(segment *seg);
static inline bool segment_is_closed(const segment *seg)
{
    return atomic_load_explicit(&seg->shared->closed, memory_order_acquire) != 0;
}
static inline uint32_t segment_version(const segment *seg)
{
    return atomic_load_explicit(&seg->shared->version, memory_order_acquire);
}

/* --- the pipe table; the owner calls these under a lock of its own --- */

/* Takes a free slot for a pipe that is being made. 0 when there is none, or no memory for it. */
uint32_t pipe_reserve(segment *seg);
/* Before the first pipe to a wire. RING_OK or RING_NO_MEMORY. */
int bell_reserve(segment *seg);
/* Lets messages through. peer: the name of the segment they go to, or "". */
void pipe_open(segment *seg, uint32_t id, const char *peer, uint32_t peer_id, uint32_t kind);
void pipe_release(segment *seg, uint32_t id);

/* Anybody. The slot of a live pipe, or NULL. */
pipe_slot *pipe_find(const segment *seg, uint32_t id);

/* --- peers: this process's mapped view of the open pipes --- */

typedef struct {
    uint32_t id;
    uint32_t peer_id;
    pipe_slot *slot;
    ring *inbox; /* of the peer, or the outbox; NULL when it discards all it gets */
    segment_id segment; /* the peer's, or the outbox's */
    uint32_t kind;
    wire *wire; /* in the process that has the connection; it may write directly */
} peer;

/* An arena that this process knows. */
typedef struct {
    segment_id id;
    arena *arena; /* NULL: it is gone, and all that was in it */
} known_arena;

/* Never changes once made: a new version of the pipe table makes a new list. */
typedef struct {
    uint32_t version; /* of the pipe table that it shows */
    uint32_t size; /* entries of by_slot */
    uint32_t receivers; /* peers with an inbox */
    peer *only; /* the receiver, when there is just one */
    const known_arena *arenas;
    unsigned arena_count;
    peer *by_slot[]; /* NULL where no open pipe is */
} peer_list;

enum {
    SEND_STALE = 100, /* the pipe table changed: bring the list up to date and try again */
    SEND_NO_PATH, /* no such pipe */
    SEND_TIMEOUT,
    SEND_SIGNAL, /* a signal came: let Python look, then go on */
    SEND_DISCARDED, /* the peer discards all it gets */
    SEND_WRITTEN, /* given to the system by the caller itself: a reference to its content is still the caller's */
    SEND_NO_ARENA /* a message refers to an arena that is not known: see send_missing_arena */
};

/* Sends to the receiver with the shortest queue that has room, ties in turn (*turn). Nobody connected: into pending.
 * RING_OK, RING_FULL, RING_BUSY (only without wait_lock), RING_CLOSED, RING_TOO_LONG, RING_NO_MEMORY, SEND_STALE. */
int send_to_one(segment *seg, const peer_list *peers, uint32_t *turn, const message *m, bool wait_lock);

/* The same for a row of messages: *done grows by those that were sent. */
int send_row(segment *seg, const peer_list *peers, uint32_t *turn, const message *row, unsigned n, unsigned *done,
             bool wait_lock);

/* Sends through one pipe. Also SEND_NO_PATH. A pipe that is just being made: RING_FULL. */
int send_by_pipe(segment *seg, const peer_list *peers, uint32_t id, const message *m, bool wait_lock);

/* Writes a message to a wire, if that is where it goes and nothing is queued there. SEND_WRITTEN; otherwise nothing was
 * done, and a send by the ways above comes next. id: of a pipe, or 0 for any. */
int send_directly(segment *seg, const peer_list *peers, uint32_t id, uint32_t *turn, const message *m);

/* After SEND_NO_ARENA, in the same thread: which one. Zeros: this process has no holder's number yet. */
segment_id send_missing_arena(void);

/* By which number the references of this process are known: that of its family of names, 0 while it has none. */
void set_arena_holder(uint64_t family);
uint64_t arena_holder(void);

/* Whether a send of such a message might succeed at once, or fail for another reason than room. */
bool may_send(segment *seg, const peer_list *peers, uint32_t id, const message *m);

/* Waits until a send of such a message (only its sizes count, and note) might succeed: room in some receiver (or in pipe `id`, unless 0), room in pending
 * when nobody is connected, or another version of the pipe table. RING_OK: try again; SEND_TIMEOUT, SEND_SIGNAL. */
int wait_to_send(segment *seg, const peer_list *peers, uint32_t id, const message *m, int64_t deadline);

/* Moves pending messages into pipes, as far as there is room. RING_OK when nothing is left. */
int flush_pending(segment *seg, const peer_list *peers, uint32_t *turn, bool wait_lock);

/* Goes on through the frozen inbox of a peer that is gone, and sends its to-one messages of pipe peer_id to others.
 * *at: where to go on, from ring_frozen_start. RING_OK at the end. */
int resend_unreceived(segment *seg, const peer_list *peers, uint32_t *turn, const ring *frozen, uint32_t peer_id,
                      uint64_t *at);

/* In a closed inbox: gives back what came from peers that are gone or closed, so that nobody will send it again. RING_OK or
 * SEND_NO_ARENA; *at as above. */
int release_orphans(segment *seg, const peer_list *peers, uint64_t *at);

#endif
