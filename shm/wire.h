/* A wire: one end of a connection that carries messages as a stream of bytes, to a peer across a network.
 *
 *   peer ── bytes ──▶ wire_space, wire_filled ──▶ inbox of the Socket
 *   peer ◀─ bytes ─── wire_gather, wire_consume ◀── outbox of the pipe, a ring of its own
 *
 * What lies in the outbox is already in the form of the wire (see codec.h), so it is written from where it lies. A record
 * stays in the outbox until the last of its bytes was taken by the system: what is in there when the connection breaks
 * can be sent to somebody else.
 *
 * A wire belongs to the process that made the Socket. Reading is done by one thread at a time (the one that the wire's
 * driver says), and all that writing uses is under `writing`. Every process that shares the Socket pushes to the outbox
 * and rings the Socket's bell (bell.h) afterwards.
 *
 * A peer's word about a length is believed for so far only: a content gets room for GROWTH times of what has come of it,
 * and so whoever sends lengths without contents costs next to nothing.
 *
 * Raw wires carry contents without any framing: what comes is cut into messages as it comes, and of a message that goes
 * only the content is written. An empty message says that the connection is there, one with FLAGS_RAW_END that the
 * peer will send nothing more. */
#ifndef MULTISOCKET_WIRE_H
#define MULTISOCKET_WIRE_H

#include <sys/uio.h>

#include "arena.h"

#define WIRE_SCRATCH ((size_t)256 << 10) /* bytes that are read at a go at most */
#define WIRE_GATHER ((size_t)64 << 10) /* bytes of small messages that are put together for one write */
#define WIRE_PIECES 64 /* pieces of memory that one write takes */
#define WIRE_HEAD_MOST (META_SIZE + 8u * PATH_MAX_IDS)

enum {
    WIRE_OK = 0, /* all that came was taken; or: nothing is left to be written */
    WIRE_MORE, /* there may be more: go on soon, but let others come first */
    WIRE_BLOCKED, /* no room for now: the inbox is full, or the arena; or the system takes no more bytes */
    WIRE_BUSY, /* somebody else is writing */
    WIRE_CLOSED, /* the wire, or the Socket */
    WIRE_END, /* the peer will send nothing more */
    WIRE_CUT, /* the same, in the middle of a message */
    WIRE_TOO_LONG, /* a content above the limit */
    WIRE_NO_MEMORY,
    WIRE_CORRUPT, /* shared memory contradicts itself */
    WIRE_FAILED /* the connection: see error */
};

/* Finds an arena that a note tells of, or NULL. May need the GIL. */
typedef arena *find_arena(void *context, segment_id wanted);

#define WIRE_ARENAS 8

/* A content that comes in parts. */
typedef struct {
    bool is_active;
    message m; /* its paths are in head */
    uint8_t head[WIRE_HEAD_MOST];
    block b; /* with an arena */
    uint8_t *data; /* of the block; without an arena: malloc */
    uint32_t room; /* bytes at data */
    uint32_t filled;
} wire_content;

typedef struct {
    /* Set once. */
    uint32_t pipe; /* its id in the Socket */
    ring *inbox; /* NULL: the Socket discards what comes */
    ring *outbox;
    segment_id socket; /* whose inbox it is */
    arena *own; /* for large contents that come; NULL: they go through the inbox */
    uint32_t large; /* contents from this size on go there, bytes */
    uint32_t most; /* longest content that may come, bytes */
    uint32_t chunk; /* raw: bytes of a message at most; 0: framed */
    uint8_t raw_ttl;
    uint64_t holder;
    find_arena *find;
    void *context;

    /* Reading: one thread at a time. */
    uint8_t *rest; /* bytes that came and are not taken yet: at most WIRE_SCRATCH */
    size_t rest_size;
    wire_content *content; /* NULL until one comes */
    uint64_t skip; /* bytes of a content that nobody wants, still to come */
    bool announced; /* raw */
    bool ended; /* the peer sends nothing more */
    bool end_told; /* raw: and the Socket knows */
    int64_t starved; /* since when there is no room in the arena; 0: there is */
    _Atomic uint32_t arena_used; /* a block was taken; whoever looks after the arena clears it */

    /* Writing. */
    pthread_mutex_t writing;
    _Atomic int fd; /* -1: somebody else moves the bytes; changes under `writing`, read anywhere as a hint */
    size_t written; /* bytes of the outbox's first record that are gone already */
    uint8_t *tail; /* the rest of a message that was written directly */
    size_t tail_size, tail_at;
    _Atomic int error; /* errno, with WIRE_FAILED; of the reader too */
    struct {
        segment_id id;
        arena *arena;
    } known[WIRE_ARENAS];
    unsigned known_next;
    _Atomic uint32_t is_writing; /* hint: a direct write now had to wait */
    _Atomic uint32_t is_closed;
    _Atomic uint32_t is_broken; /* a write failed */
    _Atomic int64_t last_write; /* when bytes were last given to the system, directly or not */

    _Atomic uint64_t bytes_in, bytes_out;
} wire;

/* What was set once must be set; the rest zero. 0 or an errno. */
int wire_init(wire *w);
/* Nobody uses it any more. */
void wire_destroy(wire *w);

static inline bool wire_is_closed(const wire *w)
{
    return atomic_load_explicit(&w->is_closed, memory_order_acquire) != 0;
}

/* --- reading --- */

/* Where the next bytes go, and how many at most. scratch: WIRE_SCRATCH bytes of the calling thread. 0 bytes: see
 * wire_take, which comes first. */
uint8_t *wire_space(wire *w, uint8_t *scratch, size_t *room);
/* n bytes were put there. WIRE_OK; WIRE_BLOCKED: call wire_take later, before anything else is read; or an error that
 * ends the connection. */
int wire_filled(wire *w, uint8_t *scratch, size_t n);
/* Goes on with what has come already, after WIRE_BLOCKED, and at the beginning. */
int wire_take(wire *w, uint8_t *scratch);
/* The peer sends nothing more. WIRE_END, WIRE_CUT, or WIRE_BLOCKED: not yet told, call wire_take later. */
int wire_end(wire *w);

/* --- writing: under `writing` --- */

typedef struct {
    struct iovec pieces[WIRE_PIECES];
    int n;
    size_t total; /* bytes */
    size_t used; /* of scratch */
    bool at_end; /* raw: behind these bytes our side ends */
    uint8_t scratch[WIRE_GATHER];
} wire_batch;

/* The next bytes to be written. most: messages at most. WIRE_OK (also: none, when n is 0), WIRE_CORRUPT. */
int wire_gather(wire *w, wire_batch *batch, unsigned most);
/* n bytes of these have been taken. */
void wire_consume(wire *w, size_t n);

/* Whether there is nothing to be written: a quick look, and a certain one, which waits for who is just writing. */
static inline bool wire_looks_idle(const wire *w)
{
    return !atomic_load_explicit(&w->is_writing, memory_order_relaxed) && ring_depth(w->outbox) == 0;
}
bool wire_is_idle(wire *w);

/* --- writing to a file descriptor --- */

/* Writes what is there as far as the system takes it. WIRE_OK, WIRE_MORE, WIRE_BLOCKED (there will be an event when it
 * takes more), WIRE_BUSY (whoever writes goes on with it), WIRE_CLOSED, WIRE_FAILED. */
int wire_flush(wire *w);

/* Whether a message had better be written by the caller itself: nothing is queued, and the last write was long ago. Then
 * a message is there sooner than through the outbox; one soon after another goes quicker in batches. */
bool wire_is_quiet(const wire *w, const message *m);

/* Writes one message now, behind nothing. Waits for the system a short time if some of it is written. WIRE_OK: it is on its way;
 * WIRE_BUSY: nothing is written, take the outbox; WIRE_CLOSED, WIRE_FAILED: it is not sent. */
int wire_write(wire *w, const message *m);

/* Writes nothing any more: what is in the outbox when this returns stays there, and can be sent to somebody else. Before the
 * outbox is closed, or a message that was just written might not be taken out of it, and be sent twice. */
void wire_stop(wire *w);
/* Gives up what was read in part; in the thread that reads. */
void wire_drop(wire *w);
/* Takes no more part in anything. Gives the file descriptor, for the caller to close; or -1. */
int wire_close(wire *w);

#endif
