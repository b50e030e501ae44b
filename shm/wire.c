#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A content gets room for so many times of what has come of it. */
#define GROWTH 8u
/* So much of a large content must be there before it gets a block, bytes. */
#define BELIEVE_FROM ((size_t)32 << 10)
/* Smaller messages are put together in one piece of memory, bytes. */
#define SMALL_PIECE 4096u
/* A thread writes so much for one wire before it looks after others, bytes. */
#define FLUSH_MOST ((size_t)4 << 20)
/* Within this time after a write the next message waits for company. */
#define QUIET_NS 20000
/* A message of this size needs no company, bytes. */
#define LONE_LEAST 16384u
/* So long a direct write waits for the system with its message half written; then others finish it. */
#define STALL_NS 50000000

int wire_init(wire *w)
{
    return pthread_mutex_init(&w->writing, NULL);
}

void wire_drop(wire *w)
{
    wire_content *c = w->content;
    if (!c || !c->is_active)
        return;
    c->is_active = false;
    if (w->own)
        arena_release(w->own, &c->b);
    else
        free(c->data);
}

void wire_destroy(wire *w)
{
    wire_drop(w);
    free(w->content);
    free(w->rest);
    free(w->tail);
    pthread_mutex_destroy(&w->writing);
}

/* ---- reading ---- */

static int from_ring(int rc)
{
    switch (rc) {
    case RING_OK:
        return WIRE_OK;
    case RING_FULL:
        return WIRE_BLOCKED;
    case RING_CLOSED:
        return WIRE_CLOSED;
    case RING_TOO_LONG:
        return WIRE_TOO_LONG;
    case RING_NO_MEMORY:
        return WIRE_BLOCKED; /* others may give some back */
    default:
        return WIRE_CORRUPT;
    }
}

static bool is_large(const wire *w, const message *m)
{
    return m->length >= w->large || (w->own && !ring_takes(w->inbox, m));
}

/* Room for so many bytes of the content, keeping what is there. */
static int grow_content(wire *w, uint32_t room)
{
    wire_content *c = w->content;
    if (!w->own) {
        uint8_t *data = realloc(c->data, room);
        if (!data)
            return WIRE_NO_MEMORY;
        c->data = data;
        c->room = room;
        return WIRE_OK;
    }
    block b;
    int rc = arena_take_instead(w->own, room, w->holder, c->data ? &c->b : NULL, &b);
    if (rc == RING_OK && (rc = arena_back(w->own, &b)) != RING_OK)
        arena_release(w->own, &b);
    if (rc != RING_OK) {
        if (!w->starved)
            w->starved = platform_now();
        return from_ring(rc);
    }
    w->starved = 0;
    atomic_store_explicit(&w->arena_used, 1, memory_order_relaxed);
    if (c->filled)
        platform_copy(b.data, c->data, c->filled);
    if (c->data)
        arena_release(w->own, &c->b);
    c->b = b;
    c->data = b.data;
    c->room = room;
    return WIRE_OK;
}

static uint32_t believed(uint32_t length, size_t came)
{
    uint64_t room = (uint64_t)came * GROWTH;
    return room < length ? (uint32_t)room : length;
}

/* Begins a content that comes in parts, of a message whose head is whole. */
static int begin_content(wire *w, const message *m, size_t came)
{
    if (!w->content && !(w->content = calloc(1, sizeof *w->content)))
        return WIRE_NO_MEMORY;
    wire_content *c = w->content;
    c->m = *m;
    c->m.is_remote = 1;
    c->data = NULL;
    c->room = c->filled = 0;
    message_encode_head(c->head, m);
    c->m.source = c->head + META_SIZE;
    c->m.destination = c->m.source + source_size(m);
    int rc = grow_content(w, believed(m->length, came));
    c->is_active = rc == WIRE_OK;
    return rc;
}

/* A content that is whole goes into the inbox. */
static int deliver_content(wire *w)
{
    wire_content *c = w->content;
    ring_writer writer;
    uint8_t bytes[NOTE_SIZE];
    c->m.content = c->data;
    c->m.note = NULL;
    if (w->own) {
        note n = {.arena = w->own->id, .reference = c->b.reference, .generation = c->b.generation};
        note_encode(bytes, &n);
        c->m.note = bytes;
    }
    int rc = ring_begin(w->inbox, &writer, true);
    if (rc != RING_OK)
        return from_ring(rc);
    rc = ring_put(&writer, w->pipe, &c->m);
    if (rc == RING_OK && w->own)
        rc = arena_address(w->own, c->b.reference, c->b.generation, w->holder, w->socket, WHERE_INBOX, w->socket);
    if (rc == RING_OK)
        ring_publish(&writer);
    ring_end(&writer);
    if (rc != RING_OK)
        return from_ring(rc);
    c->is_active = false;
    if (!w->own)
        free(c->data);
    return WIRE_OK;
}

/* Until the content is whole and in the inbox, or needs more bytes (WIRE_OK, still active). */
static int go_on_with_content(wire *w)
{
    wire_content *c = w->content;
    if (c->filled == c->m.length)
        return deliver_content(w);
    return c->filled < c->room ? WIRE_OK : grow_content(w, believed(c->m.length, c->filled));
}

static size_t fill_content(wire *w, const uint8_t *in, size_t size)
{
    wire_content *c = w->content;
    size_t n = c->room - c->filled;
    if (n > size)
        n = size;
    platform_copy(c->data + c->filled, in, n);
    c->filled += (uint32_t)n;
    return n;
}

/* Messages that are whole, as many as there is room for. Stops at one that is large, or not whole. */
static int take_small(wire *w, const uint8_t *in, size_t size, size_t *used)
{
    ring_writer writer;
    int rc = ring_begin(w->inbox, &writer, true);
    if (rc != RING_OK)
        return from_ring(rc);
    message m;
    for (size_t whole; (whole = message_decode(in + *used, size - *used, &m)); *used += whole) {
        if (m.length > w->most || is_large(w, &m))
            break;
        m.is_remote = 1;
        if ((rc = ring_put(&writer, w->pipe, &m)) != RING_OK)
            break;
    }
    ring_publish(&writer);
    ring_end(&writer);
    return from_ring(rc);
}

/* The message at `in`, which take_small left: WIRE_OK with nothing used means that more bytes are needed. */
static int take_large(wire *w, const uint8_t *in, size_t size, size_t *used)
{
    message m;
    message_decode(in, size, &m);
    if (size < META_SIZE)
        return WIRE_OK;
    if (m.length > w->most)
        return WIRE_TOO_LONG;
    size_t head = META_SIZE + source_size(&m) + destination_size(&m);
    if (size < head || !is_large(w, &m))
        return WIRE_OK;
    size_t came = size - head;
    if (came < BELIEVE_FROM && came < m.length)
        return WIRE_OK;
    int rc = begin_content(w, &m, came);
    if (rc == WIRE_OK)
        *used = head;
    return rc;
}

static int take_framed(wire *w, const uint8_t *in, size_t size, size_t *used)
{
    for (;;) {
        while (w->content && w->content->is_active) {
            *used += fill_content(w, in + *used, size - *used);
            int rc = go_on_with_content(w);
            if (rc != WIRE_OK)
                return rc;
            if (*used == size)
                return WIRE_OK;
        }
        int rc = take_small(w, in, size, used);
        if (rc != WIRE_OK)
            return rc;
        size_t more = 0;
        rc = take_large(w, in + *used, size - *used, &more);
        *used += more;
        if (rc != WIRE_OK || !more)
            return rc;
    }
}

/* What a Socket with no_recv gets. */
static int discard_framed(wire *w, const uint8_t *in, size_t size, size_t *used)
{
    for (;;) {
        size_t n = w->skip < size - *used ? (size_t)w->skip : size - *used;
        w->skip -= n;
        *used += n;
        message m;
        message_decode(in + *used, size - *used, &m);
        if (w->skip || size - *used < META_SIZE)
            return WIRE_OK;
        if (m.length > w->most)
            return WIRE_TOO_LONG;
        w->skip = message_size(&m);
    }
}

static int put_raw(wire *w, const uint8_t *in, size_t size, uint8_t flags)
{
    message m = {.flags = flags, .ttl = w->raw_ttl, .length = (uint32_t)size, .content = in, .is_remote = 1};
    return w->inbox ? from_ring(ring_push(w->inbox, w->pipe, &m, true)) : WIRE_OK;
}

static int take_raw(wire *w, const uint8_t *in, size_t size, size_t *used)
{
    int rc = WIRE_OK;
    if (!w->announced && (rc = put_raw(w, NULL, 0, FLAG_RAW)) == WIRE_OK)
        w->announced = true;
    while (rc == WIRE_OK && *used < size) {
        size_t n = size - *used < w->chunk ? size - *used : w->chunk;
        if ((rc = put_raw(w, in + *used, n, FLAG_RAW)) == WIRE_OK)
            *used += n;
    }
    return rc;
}

static int take_bytes(wire *w, const uint8_t *in, size_t size, size_t *used)
{
    if (wire_is_closed(w))
        return WIRE_CLOSED;
    if (w->chunk)
        return take_raw(w, in, size, used);
    return w->inbox ? take_framed(w, in, size, used) : discard_framed(w, in, size, used);
}

static int keep_rest(wire *w, const uint8_t *from, size_t n)
{
    if (n == 0) {
        free(w->rest);
        w->rest = NULL;
    } else {
        uint8_t *kept = realloc(w->rest, n);
        if (!kept)
            return WIRE_NO_MEMORY;
        memcpy(kept, from, n);
        w->rest = kept;
    }
    w->rest_size = n;
    return WIRE_OK;
}

uint8_t *wire_space(wire *w, uint8_t *scratch, size_t *room)
{
    wire_content *c = w->content;
    if (c && c->is_active && w->rest_size == 0) {
        *room = c->room - c->filled;
        return c->data + c->filled;
    }
    if (w->rest_size)
        memcpy(scratch, w->rest, w->rest_size);
    *room = WIRE_SCRATCH - w->rest_size;
    return scratch + w->rest_size;
}

static int take_scratch(wire *w, uint8_t *scratch, size_t size)
{
    size_t used = 0;
    int rc = take_bytes(w, scratch, size, &used);
    int kept = keep_rest(w, scratch + used, size - used);
    return kept == WIRE_OK ? rc : kept;
}

int wire_filled(wire *w, uint8_t *scratch, size_t n)
{
    wire_content *c = w->content;
    atomic_fetch_add_explicit(&w->bytes_in, n, memory_order_relaxed);
    if (c && c->is_active && w->rest_size == 0) {
        c->filled += (uint32_t)n;
        return wire_is_closed(w) ? WIRE_CLOSED : go_on_with_content(w);
    }
    return take_scratch(w, scratch, w->rest_size + n);
}

int wire_take(wire *w, uint8_t *scratch)
{
    if (w->rest_size)
        memcpy(scratch, w->rest, w->rest_size);
    int rc = take_scratch(w, scratch, w->rest_size);
    return rc == WIRE_OK && w->ended ? wire_end(w) : rc;
}

int wire_end(wire *w)
{
    w->ended = true;
    if (w->rest_size)
        return w->chunk ? WIRE_BLOCKED : WIRE_CUT;
    if (!w->chunk)
        return (w->content && w->content->is_active) || w->skip ? WIRE_CUT : WIRE_END;
    int rc = w->end_told ? WIRE_OK : put_raw(w, NULL, 0, FLAGS_RAW_END);
    w->end_told |= rc == WIRE_OK;
    return rc == WIRE_OK ? WIRE_END : rc;
}

/* ---- what is to be written ---- */

static arena *known_arena(wire *w, segment_id wanted)
{
    if (w->own && is_same_segment(w->own->id, wanted))
        return w->own;
    for (unsigned i = 0; i < WIRE_ARENAS; i++)
        if (w->known[i].arena && is_same_segment(w->known[i].id, wanted))
            return w->known[i].arena;
    arena *found = w->find(w->context, wanted);
    unsigned at = w->known_next++ % WIRE_ARENAS;
    w->known[at].id = wanted;
    w->known[at].arena = found;
    return found;
}

/* The content of a record that lies in an arena. False: it is gone. */
static bool find_content(wire *w, const note *n, block *out)
{
    arena *a = known_arena(w, n->arena);
    return a && arena_look(a, n, out) == RING_OK;
}

static void give_back(wire *w, const record *rec)
{
    note n;
    block b;
    if (!record_note(w->outbox, rec, &n))
        return;
    arena *a = known_arena(w, n.arena);
    if (a && arena_claim(a, &n, w->holder, &b) == RING_OK)
        arena_release(a, &b);
}

static bool is_raw_end(const wire *w, const message *m)
{
    return w->chunk && is_end_of_raw(m);
}

/* Bytes of a record on the wire. */
static uint64_t wire_size(const wire *w, const message *m)
{
    return w->chunk ? m->length : message_size(m);
}

static void add_piece(wire_batch *batch, const void *from, size_t n)
{
    struct iovec *last = batch->n ? &batch->pieces[batch->n - 1] : NULL;
    batch->total += n;
    if (last && (const uint8_t *)last->iov_base + last->iov_len == (const uint8_t *)from) {
        last->iov_len += n;
        return;
    }
    batch->pieces[batch->n++] = (struct iovec){.iov_base = (void *)(uintptr_t)from, .iov_len = n};
}

static void add_small(wire_batch *batch, const ring *r, const record *rec, uint64_t offset, size_t n)
{
    uint8_t *to = batch->scratch + batch->used;
    ring_copy(r, rec, offset, to, n);
    batch->used += n;
    add_piece(batch, to, n);
}

/* Bytes [skip, ...) of a record. False: they do not fit any more, or are gone. */
static bool add_record(wire *w, wire_batch *batch, const record *rec, uint64_t skip)
{
    const ring *r = w->outbox;
    const message *m = &rec->head;
    note n;
    block b;
    uint64_t paths = record_content_at(rec);
    uint64_t head_size = w->chunk ? 0 : META_SIZE + paths;
    uint64_t inline_size = rec->is_far ? 0 : m->length;
    bool is_small = inline_size <= SMALL_PIECE;
    if (batch->n + 4 > WIRE_PIECES || batch->used + head_size + SMALL_PIECE > WIRE_GATHER)
        return false;
    if (rec->is_far && (!record_note(r, rec, &n) || !find_content(w, &n, &b) || b.length < m->length))
        return false;
    if (skip < head_size) {
        uint8_t *to = batch->scratch + batch->used;
        meta_encode(to, m);
        ring_copy(r, rec, 0, to + META_SIZE, paths);
        batch->used += head_size;
        add_piece(batch, to + skip, head_size - skip);
    }
    uint64_t from = skip > head_size ? skip - head_size : 0; /* of the content */
    if (from == m->length)
        return true;
    if (rec->is_far) {
        add_piece(batch, b.data + from, m->length - from);
        return true;
    }
    if (is_small) {
        add_small(batch, r, rec, paths + from, m->length - from);
        return true;
    }
    const uint8_t *parts[2];
    size_t sizes[2];
    ring_parts(r, rec, paths + from, m->length - from, parts, sizes);
    for (int i = 0; i < 2; i++)
        if (sizes[i])
            add_piece(batch, parts[i], sizes[i]);
    return true;
}

/* The first record has nothing that could be written. */
static void drop_first(wire *w)
{
    ring_reader reader;
    record rec;
    if (ring_enter(w->outbox, &reader, true) != RING_OK)
        return;
    if (ring_front(&reader, &rec) == RING_OK) {
        give_back(w, &rec);
        ring_pop(&reader, &rec);
    }
    ring_leave(&reader);
    w->written = 0;
}

/* Only the holder of `writing` takes records from the outbox, so from the first one on what stands there stays, without
 * the consumers' lock. (While there is none, producers may move the beginning.) */
static int find_first(ring *r, uint64_t *cursor)
{
    ring_reader reader;
    record rec;
    int rc = ring_enter(r, &reader, true);
    if (rc != RING_OK)
        return rc;
    rc = ring_front(&reader, &rec);
    *cursor = reader.head;
    ring_leave(&reader);
    return rc;
}

/* Nothing of the first record can be put into the batch. */
static int pass_over(wire *w, const record *rec, uint64_t skip)
{
    /* Its content is gone. When a part was written already, the stream cannot go on with the next message. */
    if (wire_size(w, &rec->head) && skip)
        return WIRE_CORRUPT;
    drop_first(w);
    return WIRE_OK;
}

int wire_gather(wire *w, wire_batch *batch, unsigned most)
{
    uint64_t cursor, skip = w->written;
    record rec;
    batch->n = 0;
    batch->total = batch->used = 0;
    batch->at_end = false;
    if (w->tail) {
        add_piece(batch, w->tail + w->tail_at, w->tail_size - w->tail_at);
        return WIRE_OK;
    }
    int rc = find_first(w->outbox, &cursor);
    if (rc != RING_OK)
        return rc == RING_CORRUPT ? WIRE_CORRUPT : WIRE_OK;
    for (; most && batch->total < FLUSH_MOST; skip = 0) {
        rc = ring_frozen_next(w->outbox, &cursor, &rec);
        if (rc != RING_OK)
            return rc == RING_CORRUPT ? WIRE_CORRUPT : WIRE_OK;
        batch->at_end = is_raw_end(w, &rec.head);
        if (batch->at_end || (!add_record(w, batch, &rec, skip) && batch->n))
            return WIRE_OK;
        if (batch->n)
            most--;
        else if ((rc = pass_over(w, &rec, skip)) != WIRE_OK || find_first(w->outbox, &cursor) != RING_OK)
            return rc;
    }
    return WIRE_OK;
}

static void consume_tail(wire *w, size_t n)
{
    w->tail_at += n;
    if (w->tail_at < w->tail_size)
        return;
    free(w->tail);
    w->tail = NULL;
}

void wire_consume(wire *w, size_t n)
{
    ring_reader reader;
    record rec;
    atomic_fetch_add_explicit(&w->bytes_out, n, memory_order_relaxed);
    if (w->tail) {
        consume_tail(w, n);
        return;
    }
    if (ring_enter(w->outbox, &reader, true) != RING_OK)
        return;
    uint64_t gone = w->written + n;
    while (ring_front(&reader, &rec) == RING_OK && !is_raw_end(w, &rec.head)) {
        uint64_t size = wire_size(w, &rec.head);
        if (size > gone)
            break;
        gone -= size;
        give_back(w, &rec);
        ring_pop(&reader, &rec);
    }
    w->written = gone;
    ring_leave(&reader);
}

bool wire_is_idle(wire *w)
{
    pthread_mutex_lock(&w->writing);
    bool idle = !w->tail && (ring_depth(w->outbox) == 0 || ring_is_closed(w->outbox));
    pthread_mutex_unlock(&w->writing);
    return idle;
}

/* ---- writing ---- */

static ssize_t give_to_system(wire *w, struct iovec *pieces, int n)
{
    struct msghdr what = {.msg_iov = pieces, .msg_iovlen = (size_t)n};
    ssize_t sent;
    do
        sent = sendmsg(w->fd, &what, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return sent;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)
        return 0;
    w->error = errno;
    atomic_store_explicit(&w->is_broken, 1, memory_order_release);
    return -1;
}

static void end_writing_side(wire *w)
{
    shutdown(w->fd, SHUT_WR);
    drop_first(w);
}

static int flush_locked(wire *w)
{
    wire_batch batch;
    for (size_t flushed = 0; flushed < FLUSH_MOST;) {
        if (w->fd < 0 || atomic_load_explicit(&w->is_broken, memory_order_relaxed))
            return WIRE_CLOSED;
        int rc = wire_gather(w, &batch, UINT32_MAX);
        if (rc == WIRE_CORRUPT)
            atomic_store_explicit(&w->is_broken, 1, memory_order_release);
        if (rc != WIRE_OK)
            return rc;
        /* What is in there is for others now. */
        if (batch.n == 0 && ring_is_closed(w->outbox))
            return WIRE_CLOSED;
        if (batch.n == 0 && !batch.at_end)
            return WIRE_OK;
        if (batch.n) {
            size_t total = batch.total;
            ssize_t sent = give_to_system(w, batch.pieces, batch.n);
            if (sent < 0)
                return WIRE_FAILED;
            wire_consume(w, (size_t)sent);
            flushed += (size_t)sent;
            if ((size_t)sent < total)
                return WIRE_BLOCKED;
        }
        if (batch.at_end)
            end_writing_side(w);
    }
    return WIRE_MORE;
}

static bool begin_writing(wire *w)
{
    if (pthread_mutex_trylock(&w->writing) != 0)
        return false;
    atomic_store_explicit(&w->is_writing, 1, memory_order_relaxed);
    return true;
}

static void end_writing(wire *w)
{
    atomic_store_explicit(&w->last_write, platform_now(), memory_order_relaxed);
    /* With half a message to be finished, none is written directly. */
    atomic_store_explicit(&w->is_writing, w->tail != NULL, memory_order_relaxed);
    pthread_mutex_unlock(&w->writing);
    atomic_thread_fence(memory_order_seq_cst);
}

int wire_flush(wire *w)
{
    int rc;
    do {
        if (!begin_writing(w))
            return WIRE_BUSY;
        rc = flush_locked(w);
        end_writing(w);
        /* Whoever found the wire busy in the meantime relies on us. */
    } while (rc == WIRE_OK && ring_depth(w->outbox));
    return rc;
}

bool wire_is_quiet(const wire *w, const message *m)
{
    if (w->fd < 0 || wire_is_closed(w) || atomic_load_explicit(&w->is_writing, memory_order_relaxed) ||
        ring_depth(w->outbox))
        return false;
    if (m->length >= LONE_LEAST)
        return true;
    return platform_now() - atomic_load_explicit(&w->last_write, memory_order_relaxed) > QUIET_NS;
}

static void advance(struct iovec *pieces, size_t n)
{
    for (int i = 0; i < 2; i++) {
        size_t part = n < pieces[i].iov_len ? n : pieces[i].iov_len;
        pieces[i].iov_base = (uint8_t *)pieces[i].iov_base + part;
        pieces[i].iov_len -= part;
        n -= part;
    }
}

static size_t left_of(const struct iovec *pieces)
{
    return pieces[0].iov_len + pieces[1].iov_len;
}

/* The caller goes on; whoever flushes finishes the message. */
static int leave_tail(wire *w, const struct iovec *pieces)
{
    size_t size = left_of(pieces);
    w->tail = malloc(size);
    if (!w->tail) {
        w->error = ENOMEM;
        atomic_store_explicit(&w->is_broken, 1, memory_order_release);
        return WIRE_FAILED;
    }
    memcpy(w->tail, pieces[0].iov_base, pieces[0].iov_len);
    memcpy(w->tail + pieces[0].iov_len, pieces[1].iov_base, pieces[1].iov_len);
    w->tail_size = size;
    w->tail_at = 0;
    return WIRE_OK;
}

static int write_locked(wire *w, const message *m)
{
    uint8_t head[WIRE_HEAD_MOST];
    if (w->fd < 0 || wire_is_closed(w) || atomic_load_explicit(&w->is_broken, memory_order_relaxed))
        return WIRE_CLOSED;
    if (w->tail || ring_depth(w->outbox) || is_raw_end(w, m))
        return WIRE_BUSY;
    struct iovec pieces[2] = {
        {.iov_base = head, .iov_len = w->chunk ? 0 : message_encode_head(head, m)},
        {.iov_base = (void *)(uintptr_t)m->content, .iov_len = m->length},
    };
    bool begun = false;
    for (int64_t give_up = 0; left_of(pieces);) {
        ssize_t sent = give_to_system(w, pieces, 2);
        if (sent < 0)
            return WIRE_FAILED;
        advance(pieces, (size_t)sent);
        atomic_fetch_add_explicit(&w->bytes_out, (uint64_t)sent, memory_order_relaxed);
        begun |= sent > 0;
        if (!begun && left_of(pieces))
            return WIRE_BUSY;
        if (sent > 0) {
            give_up = platform_now() + STALL_NS;
            continue;
        }
        struct pollfd one = {.fd = w->fd, .events = POLLOUT};
        if (platform_now() >= give_up || poll(&one, 1, 5) < 0)
            return leave_tail(w, pieces);
    }
    return WIRE_OK;
}

int wire_write(wire *w, const message *m)
{
    if (!begin_writing(w))
        return WIRE_BUSY;
    int rc = write_locked(w, m);
    end_writing(w);
    /* Half a message is left, or others found the wire busy in the meantime and rely on us. */
    if (rc == WIRE_OK && !wire_looks_idle(w))
        while (wire_flush(w) == WIRE_MORE)
            continue;
    return rc;
}

void wire_stop(wire *w)
{
    pthread_mutex_lock(&w->writing);
    atomic_store_explicit(&w->is_broken, 1, memory_order_release);
    pthread_mutex_unlock(&w->writing);
}

int wire_close(wire *w)
{
    atomic_store_explicit(&w->is_closed, 1, memory_order_release);
    pthread_mutex_lock(&w->writing);
    int fd = w->fd;
    w->fd = -1;
    pthread_mutex_unlock(&w->writing);
    return fd;
}
