/* The carrier: two threads of a process that move the bytes of its wires.
 *
 *   reader   waits for file descriptors: fills inboxes, and goes on writing where the system had taken no more
 *   writer   waits for the bells of Sockets: writes what was put into outboxes
 *
 * Neither needs the GIL (but for finding an arena that a process sees for the first time), so messages come and go
 * whatever the interpreter does. What happens to connections is told to whoever listens: carrier_told, after `told_fd`
 * became readable.
 *
 * A wire without file descriptor is moved by somebody else (a transport of Python's), who is told when there is something
 * to be written.
 *
 * Lifetime: `load` of a wire and `post` of a Socket belong to their makers. They may be freed once told GONE, or
 * carrier_remove_post returned, respectively. */
#ifndef MULTISOCKET_CARRIER_H
#define MULTISOCKET_CARRIER_H

#include "bell.h"
#include "wire.h"

typedef struct carrier carrier;

/* What the carrier knows of a Socket. */
typedef struct post {
    event *rung;
    _Atomic uint64_t *waiting;
    /* The carrier's: */
    struct load **by_slot;
    uint32_t size; /* of by_slot */
    uint32_t from; /* where the writer goes on; 0: at the beginning */
    struct post *next;
} post;

/* A wire that is carried. */
typedef struct load {
    wire w;
    post *post;
    bool keeps_half; /* raw: when the peer has ended, our side may go on */
    /* The carrier's, under its lock: */
    unsigned users;
    bool is_told_end, is_told_writable;
    _Atomic int64_t finish_by; /* 0: not asked */
    /* The reader's: */
    bool is_ready; /* there may be something to read */
    bool is_blocked; /* what was read finds no room */
    bool is_hung; /* the system says that the end is near: read on until it comes */
    bool is_over; /* it came */
    bool is_finishing, is_shut;
    int low_mark; /* bytes that must be there before the system tells of them */
    int64_t retry_at, patience;
    struct load *next;
} load;

enum {
    TOLD_END = 1, /* the peer has ended, or something is wrong: see reason and error */
    TOLD_WRITABLE, /* a wire without descriptor has something to be written */
    TOLD_GONE /* it is carried no more, and may be freed */
};

typedef struct {
    load *whose;
    int what;
    int reason; /* WIRE_... */
    int error; /* errno */
} tale;

/* Starts the threads. NULL: errno. */
carrier *carrier_start(void);
/* Ends them, and frees it; wires that are left are closed. Does nothing to a parent's, in a forked child. */
void carrier_stop(carrier *c);
int carrier_told_fd(const carrier *c);
/* Takes up to `most` tales. */
unsigned carrier_told(carrier *c, tale *out, unsigned most);

void carrier_add_post(carrier *c, post *p);
void carrier_remove_post(carrier *c, post *p);

/* Begins to carry. w.fd is non-blocking, or -1. 0 or an errno. */
int carrier_add(carrier *c, load *l);
/* Writes what is left, tells the peer that nothing more comes, and waits until it has all of that, or has ended as well,
 * but not after `deadline` (0: not at all). Then TOLD_GONE. Twice is no error; the earlier deadline counts. */
void carrier_finish(carrier *c, load *l, int64_t deadline);

#endif
