#include "endpoint.h"

#include <stdlib.h>
#include <string.h>

#define SEGMENT_MAGIC 0x6d737367u /* "mssg" */
#define SEGMENT_LAYOUT 2u

/* Above so many slots a send looks at a window of the pipes instead of at all: the shortest of 64 is short enough. */
#define SELECT_WINDOW 64u

/* ---- the segment ---- */

#define TABLE_AT ((uint64_t)SEGMENT_PAGE)
#define BELL_AT (TABLE_AT + (uint64_t)PIPE_SLOTS * sizeof(pipe_slot))
#define DATA_AT (BELL_AT + BELL_WORDS * sizeof(uint64_t))

uint64_t segment_size(uint64_t inbox_capacity, uint64_t pending_capacity)
{
    return DATA_AT + inbox_capacity + pending_capacity;
}

int segment_init(void *base, int fd, const segment_plan *plan)
{
    if (platform_reserve(fd, base, 0, SEGMENT_PAGE) != 0)
        return RING_NO_MEMORY;
    segment_header *shared = base;
    memset(shared, 0, sizeof *shared);
    shared->id = plan->id;
    shared->size = segment_size(plan->inbox_capacity, plan->pending_capacity);
    shared->inbox_capacity = plan->inbox_capacity;
    shared->pending_capacity = plan->pending_capacity;
    if (ring_init(&shared->inbox, plan->inbox_capacity, plan->inbox_limit, plan->longest) ||
        ring_init(&shared->pending, plan->pending_capacity, plan->pending_limit, UINT32_MAX))
        return RING_CORRUPT;
    shared->layout = SEGMENT_LAYOUT;
    shared->magic = SEGMENT_MAGIC;
    return RING_OK;
}

int segment_attach(segment *seg, void *base, uint64_t size, int fd)
{
    if (size < DATA_AT)
        return RING_CORRUPT;
    segment_header *shared = base;
    if (shared->magic != SEGMENT_MAGIC || shared->layout != SEGMENT_LAYOUT)
        return RING_CORRUPT;
    uint64_t inbox = shared->inbox_capacity;
    uint64_t pending = shared->pending_capacity;
    if (inbox > RING_MAX_BYTES || pending > RING_MAX_BYTES || size < segment_size(inbox, pending))
        return RING_CORRUPT;
    seg->shared = shared;
    seg->id = shared->id;
    seg->slots = (pipe_slot *)(void *)((uint8_t *)base + TABLE_AT);
    seg->bell_waiting = (_Atomic uint64_t *)(void *)((uint8_t *)base + BELL_AT);
    seg->fd = fd;
    atomic_store(&seg->send_spin, ring_get_spin());
    uint8_t *data = (uint8_t *)base + DATA_AT;
    int rc = ring_attach(&seg->inbox, &shared->inbox, data, inbox, base, fd);
    if (rc != RING_OK)
        return rc;
    return ring_attach(&seg->pending, &shared->pending, data + inbox, pending, base, fd);
}

void segment_close(segment *seg)
{
    atomic_store_explicit(&seg->shared->closed, 1, memory_order_release);
    ring_close(&seg->inbox);
    ring_close(&seg->pending);
    event_notify_all(&seg->shared->pipes_changed);
}

/* ---- the pipe table ---- */

static uint32_t slot_of(uint32_t id)
{
    return id & (PIPE_SLOTS - 1);
}

static void tell_change(segment *seg)
{
    atomic_fetch_add(&seg->shared->version, 1);
    event_notify_all(&seg->shared->pipes_changed);
}

pipe_slot *pipe_find(const segment *seg, uint32_t id)
{
    if (slot_of(id) == 0)
        return NULL;
    pipe_slot *slot = &seg->slots[slot_of(id)];
    if (slot_of(id) > atomic_load_explicit(&seg->shared->high, memory_order_acquire))
        return NULL;
    return atomic_load_explicit(&slot->id, memory_order_acquire) == id ? slot : NULL;
}

/* The lowest free slot; none is free below free_from. */
static uint32_t free_slot(segment *seg)
{
    uint32_t high = atomic_load_explicit(&seg->shared->high, memory_order_relaxed);
    uint32_t i = seg->shared->free_from ? seg->shared->free_from : 1;
    while (i <= high && i < PIPE_SLOTS && atomic_load_explicit(&seg->slots[i].id, memory_order_relaxed) != 0)
        i++;
    seg->shared->free_from = i;
    return i < PIPE_SLOTS ? i : 0;
}

uint32_t pipe_reserve(segment *seg)
{
    uint32_t index = free_slot(seg);
    if (index == 0)
        return 0;
    pipe_slot *slot = &seg->slots[index];
    size_t offset = (size_t)((uint8_t *)slot - (uint8_t *)seg->shared);
    if (platform_reserve(seg->fd, seg->shared, offset, sizeof *slot) != 0)
        return 0;
    if (index > atomic_load_explicit(&seg->shared->high, memory_order_relaxed))
        atomic_store_explicit(&seg->shared->high, index, memory_order_release);
    uint32_t id = slot->generation << 16 | index;
    slot->generation = (slot->generation + 1) & 0xffff;
    slot->peer_id = 0;
    slot->peer[0] = 0;
    slot->kind = PIPE_TO_INBOX;
    atomic_store_explicit(&slot->sent, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->state, PIPE_CONNECTING, memory_order_relaxed);
    atomic_store_explicit(&slot->id, id, memory_order_release);
    return id;
}

int bell_reserve(segment *seg)
{
    if (atomic_load_explicit(&seg->shared->has_bell, memory_order_relaxed))
        return RING_OK;
    if (platform_reserve(seg->fd, seg->shared, BELL_AT, BELL_WORDS * sizeof(uint64_t)) != 0)
        return RING_NO_MEMORY;
    atomic_store_explicit(&seg->shared->has_bell, 1, memory_order_relaxed);
    return RING_OK;
}

void pipe_open(segment *seg, uint32_t id, const char *name, uint32_t peer_id, uint32_t kind)
{
    pipe_slot *slot = pipe_find(seg, id);
    if (!slot)
        return;
    slot->peer_id = peer_id;
    slot->kind = kind;
    memset(slot->peer, 0, sizeof slot->peer);
    strncpy(slot->peer, name, sizeof slot->peer - 1);
    /* Under this lock no sender can be between "nobody is connected" and "so into pending". */
    ring_writer gate;
    bool held = ring_begin(&seg->pending, &gate, true) == RING_OK;
    atomic_store_explicit(&slot->state, PIPE_OPEN, memory_order_release);
    atomic_fetch_add(&seg->shared->version, 1);
    if (held)
        ring_end(&gate);
    event_notify_all(&seg->shared->pipes_changed);
}

void pipe_release(segment *seg, uint32_t id)
{
    pipe_slot *slot = pipe_find(seg, id);
    if (!slot)
        return;
    atomic_store_explicit(&slot->id, 0, memory_order_release);
    atomic_store_explicit(&slot->state, PIPE_FREE, memory_order_release);
    if (slot_of(id) < seg->shared->free_from)
        seg->shared->free_from = slot_of(id);
    atomic_fetch_add(&seg->shared->sent_before, atomic_load_explicit(&slot->sent, memory_order_relaxed));
    tell_change(seg);
}

/* ---- choosing ---- */

/* One that messages to one may go to. */
static peer *receiver_at(const peer_list *peers, uint32_t i)
{
    peer *p = peers->by_slot[i];
    return p && p->inbox && p->kind != PIPE_TO_RAW_WIRE && !ring_is_closed(p->inbox) ? p : NULL;
}

static peer *peer_of(const peer_list *peers, uint32_t id)
{
    uint32_t i = slot_of(id);
    peer *p = i < peers->size ? peers->by_slot[i] : NULL;
    return p && p->id == id ? p : NULL;
}

/* The receiver with the shortest queue among those with room, looked for from *turn on; of many pipes, the shortest of
 * the first window that has one with room. NULL: none has room. */
static peer *choose(const peer_list *peers, uint32_t *turn, const message *m)
{
    if (peers->only)
        return ring_has_room(peers->only->inbox, m) ? peers->only : NULL;
    peer *best = NULL;
    uint32_t least = 0, best_at = 0;
    uint32_t start = *turn < peers->size ? *turn : 0;
    for (uint32_t k = 0; k < peers->size; k++) {
        if (best && k >= SELECT_WINDOW)
            break;
        uint32_t i = start + k < peers->size ? start + k : start + k - peers->size;
        peer *p = receiver_at(peers, i);
        if (!p)
            continue;
        uint32_t depth = ring_depth(p->inbox);
        if ((best && depth >= least) || !ring_has_room(p->inbox, m))
            continue;
        best = p;
        least = depth;
        best_at = i;
    }
    if (best)
        *turn = best_at + 1;
    return best;
}

/* Whether some receiver could ever take it, or there is none. */
static bool is_takeable(const peer_list *peers, const message *m)
{
    bool any = false;
    for (uint32_t i = 0; i < peers->size; i++) {
        peer *p = receiver_at(peers, i);
        if (p && ring_takes(p->inbox, m))
            return true;
        any |= p != NULL;
    }
    return !any;
}

/* ---- contents in arenas ---- */

static _Thread_local segment_id missing;
static _Atomic uint64_t this_holder;

void set_arena_holder(uint64_t family)
{
    atomic_store(&this_holder, family);
}

uint64_t arena_holder(void)
{
    return atomic_load_explicit(&this_holder, memory_order_relaxed);
}

segment_id send_missing_arena(void)
{
    return missing;
}

/* NULL: it is gone. *rc: SEND_NO_ARENA when nobody has looked for it yet. */
static arena *arena_of(const peer_list *peers, const note *n, int *rc)
{
    *rc = RING_OK;
    for (unsigned i = 0; arena_holder() && i < peers->arena_count; i++)
        if (is_same_segment(peers->arenas[i].id, n->arena))
            return peers->arenas[i].arena;
    missing = arena_holder() ? n->arena : (segment_id){0, 0};
    *rc = SEND_NO_ARENA;
    return NULL;
}

/* After a record was put into a ring, and before it is published. */
static int address_to(const segment *seg, const peer_list *peers, const message *m, segment_id to, uint8_t where)
{
    if (!m->note)
        return RING_OK;
    int rc;
    note n;
    note_decode(m->note, &n);
    arena *a = arena_of(peers, &n, &rc);
    if (rc != RING_OK)
        return rc;
    return a ? arena_address(a, n.reference, n.generation, arena_holder(), to, where, seg->id) : RING_CORRUPT;
}

/* Takes over the content that a note tells of. SEND_NO_ARENA, or SEND_NO_PATH: it is gone. */
static int claim(const peer_list *peers, const note *n, arena **a, block *b)
{
    int rc;
    *a = arena_of(peers, n, &rc);
    if (rc != RING_OK)
        return rc;
    return *a && arena_claim(*a, n, arena_holder(), b) == RING_OK ? RING_OK : SEND_NO_PATH;
}

/* Gives back the content of a record that nobody will get. */
static int discard(const peer_list *peers, const ring *from, const record *rec)
{
    note n;
    arena *a;
    block b;
    if (!record_note(from, rec, &n))
        return RING_OK;
    int rc = claim(peers, &n, &a, &b);
    if (rc == RING_OK)
        arena_release(a, &b);
    return rc == SEND_NO_ARENA ? rc : RING_OK;
}

/* ---- sending ---- */

/* The sent counter of a pipe is written under the lock of the ring behind it; some messages to wires go by no ring. */
static void count_sent(peer *p, unsigned n)
{
    if (p->kind != PIPE_TO_INBOX) {
        atomic_fetch_add_explicit(&p->slot->sent, n, memory_order_relaxed);
        return;
    }
    uint64_t sent = atomic_load_explicit(&p->slot->sent, memory_order_relaxed);
    atomic_store_explicit(&p->slot->sent, sent + n, memory_order_relaxed);
}

/* After something was published for a peer. */
static void end_push(const segment *seg, const peer *p, ring_writer *w)
{
    bool is_for_wire = w->total && p->kind != PIPE_TO_INBOX;
    ring_end(w);
    if (is_for_wire)
        bell_ring(&seg->shared->bell, seg->bell_waiting, slot_of(p->id));
}

static int write_to(peer *p, const message *m)
{
    switch (wire_write(p->wire, m)) {
    case WIRE_OK:
        count_sent(p, 1);
        return SEND_WRITTEN;
    case WIRE_BUSY:
        return RING_BUSY;
    default:
        return RING_CLOSED;
    }
}

static int push_to(const segment *seg, const peer_list *peers, peer *p, const message *m, bool wait_lock)
{
    ring_writer w;
    if (p->wire && wire_is_quiet(p->wire, m)) {
        /* Giving it to the system takes as long as a lock may. */
        int written = wait_lock ? write_to(p, m) : RING_BUSY;
        if (!wait_lock || written == SEND_WRITTEN)
            return written;
    }
    int rc = ring_begin(p->inbox, &w, wait_lock);
    if (rc != RING_OK)
        return rc;
    rc = ring_put(&w, p->peer_id, m);
    if (rc == RING_OK)
        rc = address_to(seg, peers, m, p->segment, WHERE_INBOX);
    if (rc == RING_OK) {
        ring_publish(&w);
        count_sent(p, 1);
    }
    end_push(seg, p, &w);
    return rc;
}

int send_directly(segment *seg, const peer_list *peers, uint32_t id, uint32_t *turn, const message *m)
{
    if (segment_is_closed(seg) || segment_version(seg) != peers->version || ring_depth(&seg->pending))
        return RING_BUSY;
    message far = *m;
    far.note = m->content; /* the outbox need not hold it */
    peer *p = id ? peer_of(peers, id) : peers->receivers ? choose(peers, turn, &far) : NULL;
    return p && p->wire && wire_is_quiet(p->wire, m) ? write_to(p, m) : RING_BUSY;
}

static int put_pending(segment *seg, const peer_list *peers, const message *row, unsigned n, unsigned *done,
                       bool wait_lock)
{
    ring_writer w;
    int rc = ring_begin(&seg->pending, &w, wait_lock);
    if (rc != RING_OK)
        return rc;
    if (segment_version(seg) != peers->version)
        rc = SEND_STALE;
    unsigned put = 0;
    while (rc == RING_OK && put < n) {
        ring_writer before = w;
        rc = ring_put(&w, 0, &row[put]);
        if (rc == RING_OK)
            rc = address_to(seg, peers, &row[put], seg->id, WHERE_PENDING);
        if (rc == RING_OK)
            put++;
        else
            w = before; /* what was put but not addressed is not published */
    }
    ring_publish(&w);
    ring_end(&w);
    *done += put;
    return rc;
}

/* A full ring that is closed, or a message that no ring of the others takes, is no reason to wait. */
static int why_none(const peer_list *peers, const message *m)
{
    return is_takeable(peers, m) ? RING_FULL : RING_TOO_LONG;
}

/* Before a sender's own message: what is pending goes first. */
static int settle(segment *seg, const peer_list *peers, uint32_t *turn, bool wait_lock)
{
    if (segment_is_closed(seg))
        return RING_CLOSED;
    if (segment_version(seg) != peers->version)
        return SEND_STALE;
    if (peers->receivers && ring_depth(&seg->pending))
        return flush_pending(seg, peers, turn, wait_lock);
    return RING_OK;
}

int send_to_one(segment *seg, const peer_list *peers, uint32_t *turn, const message *m, bool wait_lock)
{
    unsigned done = 0;
    int rc = settle(seg, peers, turn, wait_lock);
    if (rc != RING_OK)
        return rc;
    if (!peers->receivers)
        return put_pending(seg, peers, m, 1, &done, wait_lock);
    /* With one receiver the push itself finds out about room, and need not look at what its consumers write. */
    if (peers->only && (rc = push_to(seg, peers, peers->only, m, wait_lock)) != RING_CLOSED)
        return rc;
    for (;;) {
        peer *p = choose(peers, turn, m);
        if (!p)
            return why_none(peers, m);
        rc = push_to(seg, peers, p, m, wait_lock);
        /* Between the look and the lock others may have taken the room, or closed the ring: choose again. */
        if (rc != RING_FULL && rc != RING_CLOSED)
            return rc;
    }
}

/* How many of n messages go to one receiver at a go: a fair share, so that all get some. */
static unsigned share(unsigned n, uint32_t receivers)
{
    return (n + receivers - 1) / receivers;
}

int send_row(segment *seg, const peer_list *peers, uint32_t *turn, const message *row, unsigned n, unsigned *done,
             bool wait_lock)
{
    int rc = settle(seg, peers, turn, wait_lock);
    if (rc != RING_OK)
        return rc;
    if (!peers->receivers)
        return put_pending(seg, peers, row, n, done, wait_lock);
    unsigned at = 0;
    unsigned portion = share(n, peers->receivers);
    while (at < n) {
        peer *p = choose(peers, turn, &row[at]);
        if (!p)
            return why_none(peers, &row[at]);
        ring_writer w;
        rc = ring_begin(p->inbox, &w, wait_lock);
        if (rc == RING_CLOSED)
            continue;
        if (rc != RING_OK)
            return rc;
        unsigned put = 0;
        while (put < portion && at + put < n && rc == RING_OK) {
            rc = ring_put(&w, p->peer_id, &row[at + put]);
            if (rc == RING_OK)
                put++;
        }
        ring_publish(&w);
        count_sent(p, put);
        end_push(seg, p, &w);
        at += put;
        *done += put;
        /* Too long for this one: another may take it, or choose says that none does. */
        if (rc != RING_OK && rc != RING_FULL && rc != RING_TOO_LONG)
            return rc;
    }
    return RING_OK;
}

int send_by_pipe(segment *seg, const peer_list *peers, uint32_t id, const message *m, bool wait_lock)
{
    if (segment_is_closed(seg))
        return RING_CLOSED;
    if (segment_version(seg) != peers->version)
        return SEND_STALE;
    peer *p = peer_of(peers, id);
    if (!p)
        return pipe_find(seg, id) ? RING_FULL : SEND_NO_PATH;
    if (!p->inbox)
        return SEND_DISCARDED;
    int rc = push_to(seg, peers, p, m, wait_lock);
    return rc == RING_CLOSED ? SEND_NO_PATH : rc;
}

/* ---- waiting ---- */

typedef struct {
    segment *seg;
    const peer_list *peers;
    uint32_t id;
    const message *m;
    bool (*has_room)(const ring *, const message *);
} send_wish;

/* What is pending goes first: a send can go on as soon as there is room for the first of that. */
static message wished(const send_wish *wish)
{
    message first;
    return ring_depth(&wish->seg->pending) && ring_peek(&wish->seg->pending, &first) ? first : *wish->m;
}

static bool worth_trying(const void *arg)
{
    const send_wish *wish = arg;
    const peer_list *peers = wish->peers;
    if (segment_is_closed(wish->seg) || segment_version(wish->seg) != peers->version)
        return true;
    if (wish->id) {
        peer *p = peer_of(peers, wish->id);
        return p ? !p->inbox || ring_is_closed(p->inbox) || wish->has_room(p->inbox, wish->m)
                 : !pipe_find(wish->seg, wish->id);
    }
    if (!peers->receivers)
        return wish->has_room(&wish->seg->pending, wish->m);
    message m = wished(wish);
    for (uint32_t i = 0; i < peers->size; i++) {
        peer *p = receiver_at(peers, i);
        if (p && wish->has_room(p->inbox, &m))
            return true;
    }
    return false;
}

/* The rings whose room would do, at most `most`. With more pipes than that a random part is enough: the others are
 * looked at when the slice ends. */
static unsigned rings_to_watch(const send_wish *wish, ring **out, unsigned most)
{
    if (wish->id) {
        peer *p = peer_of(wish->peers, wish->id);
        if (!p || !p->inbox)
            return 0;
        out[0] = p->inbox;
        return 1;
    }
    if (!wish->peers->receivers) {
        out[0] = &wish->seg->pending;
        return 1;
    }
    unsigned n = 0;
    for (uint32_t i = 0; i < wish->peers->size && n < most; i++) {
        peer *p = receiver_at(wish->peers, i);
        if (p)
            out[n++] = p->inbox;
    }
    return n;
}

static int sleep_for_room(const send_wish *wish, ring **rings, unsigned n, int64_t until)
{
    _Atomic uint32_t *words[PLATFORM_WAIT_MANY];
    uint32_t tickets[PLATFORM_WAIT_MANY];
    event *changed = &wish->seg->shared->pipes_changed;
    words[0] = &changed->seq;
    tickets[0] = event_arm(changed);
    for (unsigned i = 0; i < n; i++) {
        event *room = &rings[i]->shared->room;
        words[i + 1] = &room->seq;
        tickets[i + 1] = event_arm(room);
    }
    if (worth_trying(wish))
        return RING_OK;
    int rc = platform_wait_many(words, tickets, n + 1, until);
    return rc == WAIT_SIGNAL ? SEND_SIGNAL : RING_OK;
}

static bool is_takeable_by(segment *seg, const peer_list *peers, uint32_t id, const message *m)
{
    peer *p = id ? peer_of(peers, id) : NULL;
    if (p && p->inbox)
        return ring_takes(p->inbox, m);
    return id || (peers->receivers ? is_takeable(peers, m) : ring_takes(&seg->pending, m));
}

bool may_send(segment *seg, const peer_list *peers, uint32_t id, const message *m)
{
    send_wish wish = {.seg = seg, .peers = peers, .id = id, .m = m, .has_room = ring_has_room};
    return worth_trying(&wish) || !is_takeable_by(seg, peers, id, m);
}

int wait_to_send(segment *seg, const peer_list *peers, uint32_t id, const message *m, int64_t deadline)
{
    send_wish wish = {.seg = seg, .peers = peers, .id = id, .m = m, .has_room = ring_has_ample_room};
    ring *rings[PLATFORM_WAIT_MANY - 1];
    unsigned n = rings_to_watch(&wish, rings, PLATFORM_WAIT_MANY - 1);
    for (unsigned i = 0; i < n; i++)
        atomic_fetch_add_explicit(&rings[i]->shared->blocked, 1, memory_order_relaxed);
    if (spin_until(worth_trying, &wish, &seg->send_spin, deadline))
        return RING_OK;
    int64_t began = platform_now();
    int64_t slice = ROOM_SLICE_NS;
    int rc = RING_OK;
    wish.has_room = ring_has_room;
    while (!worth_trying(&wish)) {
        if (rc != RING_OK)
            return rc;
        if (platform_now() >= deadline)
            return SEND_TIMEOUT;
        rc = sleep_for_room(&wish, rings, n, room_slice(&slice, deadline));
    }
    spin_learn(&seg->send_spin, platform_now() - began);
    return RING_OK;
}

/* ---- moving messages that wait ---- */

/* Takes over the content of a record that is passed on. */
static int claim_for(const peer_list *peers, const message *m)
{
    note n;
    arena *a;
    block b;
    if (!m->note)
        return RING_OK;
    note_decode(m->note, &n);
    return claim(peers, &n, &a, &b);
}

/* Copies a record of another ring into a receiver's. `taken` removes it there just before it is published here: killed
 * in between, the message is lost rather than there twice. */
static int forward(const segment *seg, const peer_list *peers, uint32_t *turn, const ring *from, const record *rec,
                   bool wait_lock, void (*taken)(void *), void *arg)
{
    uint8_t *body = malloc(record_body_size(rec) + 1);
    if (!body)
        return RING_NO_MEMORY;
    message m;
    ring_read(from, rec, body, &m);
    int rc = RING_FULL;
    for (peer *p; (rc == RING_FULL || rc == RING_CLOSED) && (p = choose(peers, turn, &m));) {
        ring_writer w;
        rc = ring_begin(p->inbox, &w, wait_lock);
        if (rc != RING_OK)
            continue;
        rc = ring_put(&w, p->peer_id, &m);
        if (rc == RING_OK)
            rc = claim_for(peers, &m);
        if (rc == RING_OK) {
            taken(arg);
            rc = address_to(seg, peers, &m, p->segment, WHERE_INBOX);
        }
        if (rc == RING_OK) {
            ring_publish(&w);
            count_sent(p, 1);
        }
        end_push(seg, p, &w);
    }
    if (rc == RING_FULL || rc == RING_CLOSED)
        rc = why_none(peers, &m);
    free(body);
    return rc;
}

/* No receiver can ever take it, or its content is gone: it would block all behind it for ever. */
static bool is_hopeless(int rc)
{
    return rc == RING_TOO_LONG || rc == SEND_NO_PATH;
}

static void give_up(segment *seg, const peer_list *peers, const ring *from, const record *rec)
{
    atomic_fetch_add_explicit(&seg->shared->dropped, 1, memory_order_relaxed);
    discard(peers, from, rec);
}

typedef struct {
    ring_reader reader;
    const record *rec;
} pending_step;

static void take_pending(void *arg)
{
    pending_step *step = arg;
    ring_pop(&step->reader, step->rec);
    ring_take(&step->reader);
}

int flush_pending(segment *seg, const peer_list *peers, uint32_t *turn, bool wait_lock)
{
    pending_step step;
    record rec;
    step.rec = &rec;
    int rc = ring_enter(&seg->pending, &step.reader, wait_lock);
    if (rc != RING_OK)
        return rc;
    while ((rc = ring_front(&step.reader, &rec)) == RING_OK) {
        rc = forward(seg, peers, turn, &seg->pending, &rec, wait_lock, take_pending, &step);
        if (is_hopeless(rc)) {
            give_up(seg, peers, &seg->pending, &rec);
            take_pending(&step);
            rc = RING_OK;
        }
        if (rc != RING_OK)
            break;
    }
    ring_leave(&step.reader);
    /* Of a corrupt pending nothing is left; a corrupt peer is an error. */
    return rc == RING_EMPTY ? RING_OK : rc;
}

static void take_nothing(void *arg)
{
    (void)arg;
}

int resend_unreceived(segment *seg, const peer_list *peers, uint32_t *turn, const ring *frozen, uint32_t peer_id,
                      uint64_t *at)
{
    if (segment_is_closed(seg))
        return RING_CLOSED;
    record rec;
    uint64_t next = *at;
    while (ring_frozen_next(frozen, &next, &rec) == RING_OK) {
        int rc = RING_OK;
        if (rec.pipe == peer_id && (rec.head.flags & FLAG_SEND_TYPE) == SEND_TO_ONE)
            rc = forward(seg, peers, turn, frozen, &rec, true, take_nothing, NULL);
        else if (rec.pipe == peer_id)
            rc = discard(peers, frozen, &rec);
        if (is_hopeless(rc))
            give_up(seg, peers, frozen, &rec);
        else if (rc != RING_OK)
            return rc;
        *at = next;
    }
    return RING_OK;
}

/* Closed, even if its pipe has not been removed here yet. */
static bool is_gone(const segment *seg, const peer_list *peers, uint32_t id)
{
    const peer *p = peer_of(peers, id);
    return !pipe_find(seg, id) || (p && p->inbox && ring_is_closed(p->inbox));
}

int release_orphans(segment *seg, const peer_list *peers, uint64_t *at)
{
    record rec;
    uint64_t next = *at;
    while (ring_frozen_next(&seg->inbox, &next, &rec) == RING_OK) {
        int rc = is_gone(seg, peers, rec.pipe) ? discard(peers, &seg->inbox, &rec) : RING_OK;
        if (rc != RING_OK)
            return rc;
        *at = next;
    }
    return RING_OK;
}
