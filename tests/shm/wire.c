/* Wires: what comes in any pieces goes into the inbox as it was sent, what is sent goes out as it stands in the outbox,
 * whatever a peer sends does no harm; and the carrier, which moves the bytes of wires between sockets.
 *
 *   wire [scale [seed [test]]] */
#include "native.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "../../shm/carrier.h"

#define KIB ((size_t)1 << 10)
#define BODY_MOST (2048 * KIB)

static double scale = 1;

static unsigned scaled(unsigned n)
{
    double many = n * scale;
    return many < 1 ? 1 : (unsigned)many;
}

/* ---- arenas ---- */

static const segment_id socket_id = {1, 1}, outbox_id = {1, 2}, store_id = {1, 3}, tight_id = {1, 4};

/* One with room for all, and one whose limit is a single unit: there a content has room only by itself. */
static arena store, tight;

static void open_arena(arena *a, uint64_t limit, segment_id id)
{
    int fd;
    uint8_t *base = map_shared(arena_size(limit), &fd);
    CHECK(arena_init(base, fd, limit, id) == RING_OK, "no arena");
    CHECK(arena_attach(a, base, arena_size(limit), fd) == RING_OK, "a fresh arena");
}

static uint64_t used_bytes(const arena *a)
{
    return atomic_load(&a->shared->used) * ARENA_UNIT;
}

static void check_arenas(void)
{
    CHECK(arena_is_empty(&store) && arena_is_empty(&tight), "%llu and %llu bytes are in use",
          (unsigned long long)used_bytes(&store), (unsigned long long)used_bytes(&tight));
}

static arena *find_store(void *context, segment_id wanted)
{
    (void)context;
    return is_same_segment(wanted, store_id) ? &store : NULL;
}

/* ---- messages ---- */

/* Lengths of contents around which something changes in the wire: when a content is believed, when it goes into an
 * arena, when it fits no longer. */
static uint32_t odd_length(rng *g, uint32_t longest)
{
    static const uint32_t around[] = {4096, 32 * KIB, 128 * KIB, 256 * KIB, 512 * KIB};
    uint32_t length;
    switch (rng_below(g, 8)) {
    case 0:
        length = around[rng_below(g, 5)] - 2 + (uint32_t)rng_below(g, 5);
        break;
    case 1:
        length = (uint32_t)rng_below(g, 600 * KIB);
        break;
    case 2:
        length = longest;
        break;
    case 3:
        length = 0;
        break;
    default:
        length = (uint32_t)rng_below(g, 300);
    }
    return length < longest ? length : longest;
}

/* A message with random bytes and paths of up to five ids, in body. */
static void odd_message(rng *g, uint64_t ring_most, uint8_t *body, message *m)
{
    *m = (message){.flags = (uint8_t)(rng_next(g) & 0x3b), .ttl = (uint8_t)rng_next(g)};
    m->hops = (uint8_t)rng_below(g, 6);
    m->distance = (uint8_t)rng_below(g, 6);
    uint32_t paths = source_size(m) + destination_size(m);
    uint64_t longest = ring_most - META_SIZE - paths;
    m->length = odd_length(g, longest < 600 * KIB ? (uint32_t)longest : 600 * KIB);
    m->source = body;
    m->destination = body + source_size(m);
    m->content = body + paths;
    for (size_t i = 0; i < paths + m->length; i += 8) {
        uint64_t word = rng_next(g);
        memcpy(body + i, &word, 8);
    }
}

static size_t encode(uint8_t *out, const message *m)
{
    size_t head = message_encode_head(out, m);
    if (m->length)
        memcpy(out + head, m->content, m->length);
    return head + m->length;
}

/* Takes the oldest message, whole, into body. False: there is none. */
static bool take_one(ring *r, arena *a, uint8_t *body, message *m)
{
    ring_reader reader;
    record rec;
    note n;
    block b;
    CHECK(ring_enter(r, &reader, true) == RING_OK, "the inbox is closed");
    int rc = ring_front(&reader, &rec);
    CHECK(rc == RING_OK || rc == RING_EMPTY, "the inbox is corrupt");
    if (rc == RING_OK) {
        CHECK(rec.pipe == 7 && rec.head.is_remote, "pipe %u", rec.pipe);
        ring_read(r, &rec, body, m);
        if (record_note(r, &rec, &n)) {
            CHECK(a && arena_claim(a, &n, 2, &b) == RING_OK, "a content that is nowhere");
            CHECK(b.length >= m->length, "a content of %u bytes", b.length);
            memcpy(body + record_content_at(&rec), b.data, m->length);
            m->note = NULL;
            arena_release(a, &b);
        }
        ring_pop(&reader, &rec);
    }
    ring_leave(&reader);
    return rc == RING_OK;
}

/* ---- reading: a stream goes in, in random pieces ---- */

typedef struct {
    wire w;
    test_ring inbox, outbox;
    uint8_t *stream, *scratch, *body;
    size_t size; /* of the stream */
    size_t fed;
    _Atomic size_t out; /* bytes of the stream whose messages came out */
    _Atomic bool stop;
    bool is_announced, is_ended; /* raw */
} reading;

typedef struct {
    uint64_t ring;
    uint32_t limit;
    arena *own;
    uint32_t large, most, chunk;
    bool discards;
} reading_plan;

static void open_wire(wire *w, test_ring *inbox, test_ring *outbox)
{
    memset(w, 0, sizeof *w);
    w->pipe = 7;
    w->inbox = &inbox->r;
    w->outbox = &outbox->r;
    w->socket = socket_id;
    w->large = 128 * KIB;
    w->most = UINT32_MAX;
    w->holder = 1;
    w->find = find_store;
    w->fd = -1;
    CHECK(wire_init(w) == 0, "no mutex");
}

static void open_reading(reading *r, const reading_plan *plan)
{
    memset(r, 0, sizeof *r);
    make_ring(&r->inbox, plan->ring, plan->limit);
    make_ring(&r->outbox, RING_MIN_BYTES, 4);
    r->scratch = allocate(WIRE_SCRATCH);
    r->body = allocate(BODY_MOST);
    r->stream = allocate(4 * BODY_MOST);
    open_wire(&r->w, &r->inbox, &r->outbox);
    r->w.own = plan->own;
    r->w.large = plan->large;
    r->w.most = plan->most;
    r->w.chunk = plan->chunk;
    if (plan->discards)
        r->w.inbox = NULL;
}

static void close_reading(reading *r)
{
    wire_destroy(&r->w);
    free_ring(&r->inbox);
    free_ring(&r->outbox);
    free(r->scratch);
    free(r->body);
    free(r->stream);
    check_arenas();
}

static void expect_framed(reading *r, const message *got)
{
    message m;
    size_t whole = message_decode(r->stream + r->out, r->size - r->out, &m);
    CHECK(whole, "a message that was never sent came at byte %zu", (size_t)r->out);
    CHECK(m.flags == got->flags && m.ttl == got->ttl && m.hops == got->hops && m.distance == got->distance &&
              m.length == got->length,
          "at byte %zu", (size_t)r->out);
    CHECK(memcmp(m.source, got->source, whole - META_SIZE) == 0, "at byte %zu", (size_t)r->out);
    r->out += whole;
}

static void expect_raw(reading *r, const message *got)
{
    CHECK(!r->is_ended && !got->hops && !got->distance && got->length <= r->w.chunk, "%u bytes", got->length);
    if (!r->is_announced) {
        CHECK(got->length == 0 && got->flags == FLAG_RAW, "no announcement comes first");
        r->is_announced = true;
        return;
    }
    r->is_ended = got->flags == FLAGS_RAW_END;
    CHECK(r->is_ended == (got->length == 0), "flags %u, %u bytes", got->flags, got->length);
    CHECK(got->length <= r->size - r->out && memcmp(r->stream + r->out, got->content, got->length) == 0, "at byte %zu",
          (size_t)r->out);
    r->out += got->length;
}

static unsigned take_out(reading *r, unsigned most)
{
    message m;
    unsigned n = 0;
    for (; n < most && take_one(&r->inbox.r, r->w.own, r->body, &m); n++) {
        if (r->w.chunk)
            expect_raw(r, &m);
        else
            expect_framed(r, &m);
    }
    return n;
}

static void *take_all(void *arg)
{
    reading *r = arg;
    while (!atomic_load(&r->stop))
        if (take_out(r, 3) == 0)
            nap(10000);
    return NULL;
}

static size_t random_piece(rng *g)
{
    switch (rng_below(g, 4)) {
    case 0:
        return 1 + rng_below(g, 16);
    case 1:
        return 1 + rng_below(g, 300 * KIB);
    default:
        return 1 + rng_below(g, 8192);
    }
}

/* What a peer sends is believed only as far as it came. */
static void check_bounds(const reading *r)
{
    const wire_content *c = r->w.content;
    CHECK(r->w.rest_size <= WIRE_SCRATCH, "%zu bytes are kept", r->w.rest_size);
    if (c && c->is_active)
        CHECK(c->room <= 8 * r->fed, "room of %u bytes for %zu", c->room, r->fed);
}

static int feed_some(reading *r, rng *g)
{
    size_t room, left = r->size - r->fed, n = random_piece(g);
    uint8_t *to = wire_space(&r->w, r->scratch, &room);
    CHECK(room > 0, "no room, and not blocked");
    n = n < room ? n : room;
    n = n < left ? n : left;
    memcpy(to, r->stream + r->fed, n);
    r->fed += n;
    int rc = wire_filled(&r->w, r->scratch, n);
    check_bounds(r);
    return rc;
}

/* Alone: somebody else takes nothing out of the inbox, so there must be room once all is taken out. */
static int unblock(reading *r, int rc, rng *g, bool is_alone)
{
    while (rc == WIRE_BLOCKED) {
        unsigned n = is_alone ? take_out(r, 1 + (unsigned)rng_below(g, 4)) : 0;
        if (!is_alone)
            nap(20000);
        rc = wire_take(&r->w, r->scratch);
        CHECK(!is_alone || n || rc != WIRE_BLOCKED, "blocked, with nothing in the inbox");
        check_bounds(r);
    }
    return rc;
}

static int feed_all(reading *r, rng *g, bool is_alone)
{
    int rc = unblock(r, wire_take(&r->w, r->scratch), g, is_alone);
    while (rc == WIRE_OK && r->fed < r->size)
        rc = unblock(r, feed_some(r, g), g, is_alone);
    if (rc != WIRE_OK)
        return rc;
    rc = wire_end(&r->w);
    return unblock(r, rc, g, is_alone);
}

static reading_plan random_plan(rng *g)
{
    static const uint32_t large_from[] = {1000, 128 * KIB, 128 * KIB, 200 * KIB};
    reading_plan plan = {.ring = (uint64_t)RING_MIN_BYTES << rng_below(g, 9), .most = UINT32_MAX};
    plan.limit = rng_one_in(g, 3) ? 1 + (uint32_t)rng_below(g, 4) : 1 << 20;
    plan.own = rng_one_in(g, 3) ? NULL : rng_one_in(g, 3) ? &tight : &store;
    plan.large = large_from[rng_below(g, 4)];
    return plan;
}

static void make_stream(reading *r, rng *g)
{
    uint64_t ring_most = r->w.own ? UINT32_MAX : ring_max_message(&r->inbox.r);
    for (unsigned n = (unsigned)rng_below(g, 40); n > 0 && r->size < BODY_MOST; n--) {
        message m;
        odd_message(g, ring_most, r->body, &m);
        r->size += encode(r->stream + r->size, &m);
    }
}

static void read_round(unsigned number)
{
    rng g = rng_new(number);
    reading r;
    reading_plan plan = random_plan(&g);
    bool is_alone = rng_one_in(&g, 2);
    open_reading(&r, &plan);
    make_stream(&r, &g);
    pthread_t taker = is_alone ? 0 : start(take_all, &r);
    int rc = feed_all(&r, &g, is_alone);
    CHECK(rc == WIRE_END, "round %u gave %d", number, rc);
    for (int64_t late = soon(10000 * (int64_t)MS); !is_alone && r.out < r.size; nap(100000))
        CHECK(platform_now() < late, "%zu of %zu bytes came out", (size_t)r.out, r.size);
    atomic_store(&r.stop, true);
    if (!is_alone)
        join(taker);
    take_out(&r, UINT32_MAX);
    CHECK(r.out == r.size && atomic_load(&r.w.bytes_in) == r.size, "%zu of %zu bytes came out", (size_t)r.out, r.size);
    close_reading(&r);
}

static void test_reading(void)
{
    for (unsigned i = 0; i < scaled(80); i++)
        read_round(i);
}

/* A content that comes in parts outgrows its block while the limit of the arena is used up by this very block. */
static void test_growing(void)
{
    rng g = rng_new(1);
    reading r;
    reading_plan plan = {.ring = RING_MIN_BYTES, .limit = 100, .own = &tight, .large = 128 * KIB, .most = UINT32_MAX};
    open_reading(&r, &plan);
    message m = {.length = 1500 * KIB, .content = allocate(1500 * KIB)};
    r.size = encode(r.stream, &m);
    free((void *)(uintptr_t)m.content);
    CHECK(feed_all(&r, &g, true) == WIRE_END, "a content above the limit of the arena never came");
    take_out(&r, 1);
    CHECK(r.out == r.size, "nothing came out");
    close_reading(&r);
}

/* ---- hostile input ---- */

static void make_garbage(reading *r, rng *g)
{
    r->size = 1 + rng_below(g, rng_one_in(g, 4) ? 400 * KIB : 2000);
    for (size_t i = 0; i < r->size; i++)
        r->stream[i] = (uint8_t)(rng_next(g) & (rng_one_in(g, 2) ? 3 : 255));
}

static void spoil_stream(reading *r, rng *g)
{
    make_stream(r, g);
    for (unsigned n = 1 + (unsigned)rng_below(g, 20); r->size && n > 0; n--)
        r->stream[rng_below(g, r->size)] ^= (uint8_t)(1 + rng_below(g, 255));
    if (r->size && rng_one_in(g, 2))
        r->size -= rng_below(g, r->size);
}

/* A length, and then not so much. */
static void make_promise(reading *r, rng *g)
{
    message m = {.length = rng_one_in(g, 2) ? UINT32_MAX : (uint32_t)rng_next(g)};
    message_encode_head(r->stream, &m);
    r->size = META_SIZE + rng_below(g, rng_one_in(g, 2) ? 40 * KIB : 1000 * KIB);
    if (r->size > META_SIZE + m.length)
        r->size = META_SIZE + m.length;
}

/* Whether the wire may refuse what stands behind all that came out. */
static bool is_refusable(const reading *r)
{
    message m;
    if (r->size - r->out < META_SIZE)
        return false;
    message_decode(r->stream + r->out, r->size - r->out, &m);
    message far = m;
    far.note = r->stream;
    return m.length > r->w.most || !ring_takes(&r->inbox.r, r->w.own ? &far : &m);
}

static bool is_at_boundary(const reading *r)
{
    size_t at = 0, whole;
    message m;
    while ((whole = message_decode(r->stream + at, r->size - at, &m)))
        at += whole;
    return at == r->size;
}

static void hostile_round(unsigned number)
{
    rng g = rng_new(10000 + number);
    reading r;
    reading_plan plan = random_plan(&g);
    plan.most = rng_one_in(&g, 2) ? UINT32_MAX : (uint32_t)rng_below(&g, 300 * KIB);
    plan.large = 128 * KIB;
    plan.ring = 256 * KIB; /* contents below `large` need no arena */
    plan.discards = rng_one_in(&g, 8);
    open_reading(&r, &plan);
    void (*const makers[])(reading *, rng *) = {make_garbage, spoil_stream, make_promise};
    makers[rng_below(&g, 3)](&r, &g);
    int rc = feed_all(&r, &g, true);
    if (plan.own)
        CHECK(used_bytes(plan.own) <= 8 * r.fed + 128 * KIB, "%llu bytes are in use for %zu",
              (unsigned long long)used_bytes(plan.own), r.fed);
    take_out(&r, UINT32_MAX);
    if (rc == WIRE_TOO_LONG)
        CHECK(plan.discards || is_refusable(&r), "round %u: refused at byte %zu", number, (size_t)r.out);
    else
        CHECK(rc == (is_at_boundary(&r) ? WIRE_END : WIRE_CUT), "round %u gave %d", number, rc);
    close_reading(&r);
}

static void test_hostile(void)
{
    for (unsigned i = 0; i < scaled(200); i++)
        hostile_round(i);
}

/* ---- raw wires ---- */

static void raw_round(unsigned number)
{
    rng g = rng_new(20000 + number);
    reading r;
    reading_plan plan = random_plan(&g);
    plan.chunk = 1 + (uint32_t)rng_below(&g, plan.ring / 4);
    plan.discards = rng_one_in(&g, 8);
    open_reading(&r, &plan);
    r.size = rng_below(&g, plan.limit < 8 || plan.chunk < 50 ? 2000 : 100 * KIB);
    for (size_t i = 0; i < r.size; i++)
        r.stream[i] = (uint8_t)rng_next(&g);
    int rc = feed_all(&r, &g, true);
    CHECK(rc == WIRE_END, "round %u gave %d", number, rc);
    take_out(&r, UINT32_MAX);
    CHECK(plan.discards || (r.is_ended && r.out == r.size), "%zu of %zu bytes came out", (size_t)r.out, r.size);
    close_reading(&r);
}

static void test_raw(void)
{
    for (unsigned i = 0; i < scaled(100); i++)
        raw_round(i);
}

/* ---- writing: records of the outbox become a stream ---- */

typedef struct {
    wire w;
    test_ring inbox, outbox;
    uint8_t *stream, *body; /* what must be written, from its beginning */
    size_t size, written;
    wire_batch batch;
} writing;

static void open_writing(writing *k, uint64_t ring_bytes, uint32_t chunk)
{
    memset(k, 0, sizeof *k);
    make_ring(&k->inbox, RING_MIN_BYTES, 4);
    make_ring(&k->outbox, ring_bytes, 1 << 20);
    open_wire(&k->w, &k->inbox, &k->outbox);
    k->w.chunk = chunk;
    k->stream = allocate(4 * BODY_MOST);
    k->body = allocate(BODY_MOST);
}

static void close_writing(writing *k)
{
    wire_destroy(&k->w);
    free_ring(&k->inbox);
    free_ring(&k->outbox);
    free(k->stream);
    free(k->body);
    check_arenas();
}

/* A message whose content goes by a note. */
static int push_far(ring *outbox, uint32_t pipe, const message *m)
{
    block b;
    ring_writer w;
    uint8_t bytes[NOTE_SIZE];
    message far = *m;
    CHECK(arena_take(&store, m->length, 1, &b) == RING_OK && arena_back(&store, &b) == RING_OK, "no room");
    if (m->length)
        memcpy(b.data, m->content, m->length);
    note n = {.arena = store_id, .reference = b.reference, .generation = b.generation};
    note_encode(bytes, &n);
    far.note = bytes;
    int rc = ring_begin(outbox, &w, true);
    if (rc == RING_OK) {
        rc = ring_put(&w, pipe, &far);
        if (rc == RING_OK)
            rc = arena_address(&store, b.reference, b.generation, 1, outbox_id, WHERE_INBOX, socket_id);
        if (rc == RING_OK)
            ring_publish(&w);
        ring_end(&w);
    }
    if (rc != RING_OK)
        arena_release(&store, &b);
    return rc;
}

static void push_some(writing *k, rng *g)
{
    for (unsigned n = (unsigned)rng_below(g, 100); n > 0 && k->size < BODY_MOST; n--) {
        message m;
        odd_message(g, ring_max_message(&k->outbox.r), k->body, &m);
        if (k->w.chunk)
            m.flags = FLAG_RAW;
        if ((rng_one_in(g, 3) ? push_far(&k->outbox.r, 1, &m) : ring_push(&k->outbox.r, 1, &m, true)) != RING_OK)
            return;
        if (!k->w.chunk)
            k->size += encode(k->stream + k->size, &m);
        else
            memcpy(k->stream + k->size, m.content, m.length);
        if (k->w.chunk)
            k->size += m.length;
    }
}

static void write_some(writing *k, rng *g)
{
    size_t total = 0;
    CHECK(wire_gather(&k->w, &k->batch, rng_one_in(g, 2) ? UINT32_MAX : 1 + (unsigned)rng_below(g, 4)) == WIRE_OK,
          "the outbox is corrupt");
    for (int i = 0; i < k->batch.n; i++) {
        const struct iovec *piece = &k->batch.pieces[i];
        CHECK(piece->iov_len && piece->iov_len <= k->size - k->written - total, "too much");
        CHECK(memcmp(piece->iov_base, k->stream + k->written + total, piece->iov_len) == 0, "at byte %zu",
              k->written + total);
        total += piece->iov_len;
    }
    CHECK(total == k->batch.total && (total > 0 || k->written == k->size), "%zu bytes", total);
    size_t n = rng_one_in(g, 2) ? total : rng_below(g, total + 1);
    wire_consume(&k->w, n);
    k->written += n;
}

static void write_round(unsigned number)
{
    static writing k;
    rng g = rng_new(30000 + number);
    open_writing(&k, (uint64_t)RING_MIN_BYTES << rng_below(&g, 9), rng_one_in(&g, 4) ? 1000 : 0);
    while (k.size < BODY_MOST / 2) {
        push_some(&k, &g);
        for (unsigned n = (unsigned)rng_below(&g, 10); n > 0; n--)
            write_some(&k, &g);
    }
    for (; k.written < k.size; write_some(&k, &g))
        continue;
    wire_gather(&k.w, &k.batch, UINT32_MAX);
    CHECK(k.batch.n == 0 && wire_is_idle(&k.w), "%u records are left", ring_depth(&k.outbox.r));
    CHECK(atomic_load(&k.w.bytes_out) == k.size, "%zu bytes", k.size);
    close_writing(&k);
}

static void test_writing(void)
{
    for (unsigned i = 0; i < scaled(60); i++)
        write_round(i);
}

/* ---- what cannot be written ---- */

static void open_socket(writing *k, int *other)
{
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0, "no sockets");
    k->w.fd = fds[0];
    *other = fds[1];
}

/* An empty message on a raw wire has no bytes at all: it is done when it is its turn. */
static void test_raw_empty(void)
{
    static writing k;
    int other;
    char got[8];
    message empty = {.flags = FLAG_RAW}, end = {.flags = FLAGS_RAW_END};
    open_writing(&k, RING_MIN_BYTES, 100);
    open_socket(&k, &other);
    CHECK(ring_push(&k.outbox.r, 1, &empty, true) == RING_OK && wire_flush(&k.w) == WIRE_OK, "not written");
    CHECK(wire_is_idle(&k.w), "an empty message is left");
    message two = {.flags = FLAG_RAW, .length = 2, .content = (const uint8_t *)"ab"};
    CHECK(ring_push(&k.outbox.r, 1, &empty, true) == RING_OK && ring_push(&k.outbox.r, 1, &two, true) == RING_OK &&
              ring_push(&k.outbox.r, 1, &empty, true) == RING_OK && ring_push(&k.outbox.r, 1, &end, true) == RING_OK,
          "no room");
    CHECK(wire_flush(&k.w) == WIRE_OK && wire_is_idle(&k.w), "something is left");
    CHECK(read(other, got, sizeof got) == 2 && read(other, got, sizeof got) == 0, "no end came");
    close(other);
    close(wire_close(&k.w));
    close_writing(&k);
}

/* An outbox that was closed with something in it: that is for others now. */
static void test_closed_outbox(void)
{
    static writing k;
    int other;
    message m = message_of(100);
    uint8_t content[100] = {0};
    m.content = content;
    open_writing(&k, RING_MIN_BYTES, 0);
    open_socket(&k, &other);
    CHECK(ring_push(&k.outbox.r, 1, &m, true) == RING_OK, "no room");
    ring_close(&k.outbox.r);
    CHECK(wire_flush(&k.w) == WIRE_CLOSED, "an outbox that is closed");
    close(other);
    close(wire_close(&k.w));
    close_writing(&k);
}

/* The content of a record is gone: before any of it was written it is left out, afterwards the stream cannot go on. */
static void lose_content(size_t written)
{
    static writing k;
    sighting seen;
    uint8_t content[5000] = {0};
    message m = {.length = sizeof content, .content = content}, after = {.ttl = 9};
    open_writing(&k, 65536, 0);
    CHECK(push_far(&k.outbox.r, 1, &m) == RING_OK && ring_push(&k.outbox.r, 1, &after, true) == RING_OK, "no room");
    CHECK(wire_gather(&k.w, &k.batch, 1) == WIRE_OK && k.batch.total == META_SIZE + sizeof content, "nothing to write");
    wire_consume(&k.w, written);
    CHECK(arena_list(&store, &seen, 1) == 1, "no content");
    arena_reclaim(&store, &seen);
    int rc = wire_gather(&k.w, &k.batch, UINT32_MAX);
    if (written)
        CHECK(rc == WIRE_CORRUPT && k.batch.n == 0, "half a message, and then another one: %d", rc);
    else
        CHECK(rc == WIRE_OK && k.batch.total == META_SIZE && ring_depth(&k.outbox.r) == 1, "%zu", k.batch.total);
    close_writing(&k);
}

static void test_lost_content(void)
{
    lose_content(0);
    lose_content(3);
    lose_content(META_SIZE + 100);
}

/* ---- the carrier ---- */

#define LONGEST ((uint32_t)40000)
#define SENDERS 4 /* of each side: the even ones write directly where they can */
#define SENT_MOST 4096

/* One end of a connection. */
typedef struct side {
    load l;
    test_ring inbox, outbox;
    event *rung;
    _Atomic uint64_t *waiting;
    post p;
    carrier *c;
    uint8_t *body, *scratch;
    unsigned messages; /* that each sender sends */
    _Atomic bool stop;
    _Atomic unsigned sent[SENDERS], came;
    unsigned next[SENDERS]; /* that come from each sender */
    pthread_t senders[SENDERS], taker;
    unsigned sender_n;
    struct side *peer;
    int told_end, told_gone, told_writable; /* how often */
    int reason; /* of the end */
} side;

typedef struct {
    side *of;
    unsigned number;
} sender;

typedef struct {
    carrier *c;
    side a, b;
} pair;

static void make_minimal(int fd, bool is_tcp)
{
    int size = is_tcp ? 32768 : 1, on = 1;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (is_tcp)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

static void connect_tcp(int fds[2])
{
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof where;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&where, size) == 0 && listen(listener, 1) == 0 &&
              getsockname(listener, (struct sockaddr *)&where, &size) == 0,
          "no listener");
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fds[0], (struct sockaddr *)&where, size) == 0, "no connection");
    fds[1] = accept(listener, NULL, NULL);
    CHECK(fds[1] >= 0, "no connection");
    close(listener);
}

static void connect_both(bool is_tcp, int fds[2])
{
    if (is_tcp)
        connect_tcp(fds);
    else
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "no sockets");
    make_minimal(fds[0], is_tcp);
    make_minimal(fds[1], is_tcp);
}

static void open_side(side *s, carrier *c, int fd)
{
    memset(s, 0, sizeof *s);
    make_ring(&s->inbox, 65536, 64);
    make_ring(&s->outbox, 262144, 256);
    open_wire(&s->l.w, &s->inbox, &s->outbox);
    s->l.w.own = &store;
    s->l.w.large = 16384;
    s->l.w.fd = fd;
    s->rung = allocate(sizeof *s->rung);
    s->waiting = allocate(BELL_WORDS * sizeof *s->waiting);
    s->p = (post){.rung = s->rung, .waiting = s->waiting};
    s->l.post = &s->p;
    s->c = c;
    s->body = allocate(BODY_MOST);
    s->scratch = allocate(BODY_MOST);
    carrier_add_post(c, &s->p);
    CHECK(fd < 0 || carrier_add(c, &s->l) == 0, "not carried");
}

static void close_side(side *s)
{
    carrier_remove_post(s->c, &s->p);
    free((void *)s->rung);
    free((void *)s->waiting);
    wire_destroy(&s->l.w);
    free_ring(&s->inbox);
    free_ring(&s->outbox);
    free(s->body);
    free(s->scratch);
}

static void open_pair(pair *k, bool is_tcp)
{
    int fds[2];
    connect_both(is_tcp, fds);
    k->c = carrier_start();
    CHECK(k->c, "no carrier");
    open_side(&k->a, k->c, fds[0]);
    open_side(&k->b, k->c, fds[1]);
    k->a.peer = &k->b;
    k->b.peer = &k->a;
}

/* What is in a queue refers to contents. */
static void empty_ring(ring *r)
{
    ring_reader reader;
    record rec;
    note n;
    block b;
    CHECK(ring_enter(r, &reader, true) == RING_OK, "closed");
    for (; ring_front(&reader, &rec) == RING_OK; ring_pop(&reader, &rec))
        if (record_note(r, &rec, &n) && arena_claim(&store, &n, 1, &b) == RING_OK)
            arena_release(&store, &b);
    ring_leave(&reader);
}

static void close_pair(pair *k)
{
    for (side *s = &k->a; s; s = s == &k->a ? &k->b : NULL) {
        CHECK(s->told_gone == 1 && s->told_end <= 1, "told %d and %d times", s->told_gone, s->told_end);
        empty_ring(&s->inbox.r);
        empty_ring(&s->outbox.r);
        close_side(s);
    }
    carrier_stop(k->c);
    check_arenas();
}

/* ---- what it tells ---- */

static void listen_to(pair *k)
{
    tale tales[3];
    struct pollfd one = {.fd = carrier_told_fd(k->c), .events = POLLIN};
    poll(&one, 1, 100);
    for (unsigned n = carrier_told(k->c, tales, 3), i = 0; i < n; i++) {
        side *s = tales[i].whose == &k->a.l ? &k->a : &k->b;
        CHECK(tales[i].whose == &s->l && !s->told_gone, "told of nobody");
        s->told_gone += tales[i].what == TOLD_GONE;
        s->told_end += tales[i].what == TOLD_END;
        s->told_writable += tales[i].what == TOLD_WRITABLE;
        if (tales[i].what == TOLD_END)
            s->reason = tales[i].reason;
    }
}

static void await_end(pair *k, const side *s)
{
    for (int64_t late = soon(20000 * (int64_t)MS); !s->told_end; listen_to(k))
        CHECK(platform_now() < late, "no end came");
}

/* ns: so long it may take. */
static void await_gone(pair *k, const side *s, int64_t ns)
{
    for (int64_t late = soon(ns); !s->told_gone; listen_to(k))
        CHECK(platform_now() < late, "%c is not gone after %lld ms, %u records are left", s == &k->b ? 98 : 97,
              (long long)(ns / MS), ring_depth(&s->outbox.r));
}

/* ---- who sends and takes ---- */

static uint64_t number_of(unsigned who, unsigned sequence)
{
    return (uint64_t)who << 32 | sequence;
}

static int queue(side *s, const message *m, bool is_far)
{
    int rc = is_far ? push_far(&s->outbox.r, 1, m) : ring_push(&s->outbox.r, 1, m, true);
    if (rc == RING_OK)
        bell_ring(s->rung, s->waiting, s->l.w.pipe);
    return rc;
}

/* False: the connection is no more. */
static bool send_one(side *s, const message *m, bool is_direct, bool is_far)
{
    if (is_direct && wire_is_quiet(&s->l.w, m)) {
        int rc = wire_write(&s->l.w, m);
        if (rc != WIRE_BUSY)
            return rc == WIRE_OK;
    }
    int rc;
    while ((rc = queue(s, m, is_far)) == RING_FULL && !atomic_load(&s->stop))
        nap(50000);
    return rc == RING_OK;
}

static void *send_all(void *arg)
{
    sender own = *(sender *)arg;
    side *s = own.of;
    free(arg);
    rng g = rng_new(own.number);
    uint8_t *body = allocate(LONGEST + 8 * PATH_MAX_IDS);
    for (unsigned i = 0; i < s->messages && !atomic_load(&s->stop); i++) {
        message m;
        make_message(number_of(own.number, i), LONGEST, body, &m);
        if (rng_one_in(&g, 50))
            nap((int64_t)rng_below(&g, 300000));
        if (!send_one(s, &m, own.number % 2 == 0, m.length && rng_one_in(&g, 8)))
            break;
        atomic_fetch_add(&s->sent[own.number], 1);
    }
    free(body);
    return NULL;
}

/* In the order of each sender, so each comes once. */
static void note_came(side *s, uint64_t number)
{
    unsigned who = (unsigned)(number >> 32);
    CHECK(who < SENDERS && (unsigned)number == s->next[who], "message %u of sender %u came instead of %u",
          (unsigned)number, who, who < SENDERS ? s->next[who] : 0);
    s->next[who]++;
    atomic_fetch_add(&s->came, 1);
}

static void *take_for(void *arg)
{
    side *s = arg;
    rng g = rng_new(100 + s->messages);
    message m;
    while (!atomic_load(&s->stop)) {
        if (!take_one(&s->inbox.r, &store, s->body, &m)) {
            nap(20000);
            continue;
        }
        note_came(s, check_message(&m, LONGEST, s->scratch));
        if (rng_one_in(&g, 200))
            nap((int64_t)rng_below(&g, 3 * MS));
    }
    return NULL;
}

static void start_side(side *s, unsigned senders, unsigned messages)
{
    s->messages = messages;
    s->sender_n = senders;
    for (unsigned i = 0; i < senders; i++) {
        sender *own = allocate(sizeof *own);
        *own = (sender){.of = s, .number = i};
        s->senders[i] = start(send_all, own);
    }
    s->taker = start(take_for, s);
}

static void join_senders(side *s)
{
    for (unsigned i = 0; i < s->sender_n; i++)
        join(s->senders[i]);
    s->sender_n = 0;
}

static void stop_side(side *s)
{
    atomic_store(&s->stop, true);
    join_senders(s);
    join(s->taker);
}

static void await_came(side *s, unsigned n)
{
    for (int64_t late = soon(30000 * (int64_t)MS); atomic_load(&s->came) < n; nap(200000))
        CHECK(platform_now() < late, "%u of %u messages came", atomic_load(&s->came), n);
}

/* ---- all that is sent comes, in both directions at once ---- */

static void fork_now(void)
{
    pid_t child = fork();
    CHECK(child >= 0, "no child");
    if (child == 0)
        _exit(0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
}

static void traffic_round(bool is_tcp, unsigned messages, bool forks)
{
    static pair k;
    open_pair(&k, is_tcp);
    start_side(&k.a, SENDERS, messages);
    start_side(&k.b, SENDERS, messages);
    for (int i = 0; forks && i < 5; i++) {
        nap(3 * MS);
        fork_now();
    }
    await_came(&k.a, SENDERS * messages);
    await_came(&k.b, SENDERS * messages);
    stop_side(&k.a);
    stop_side(&k.b);
    carrier_finish(k.c, &k.a.l, soon(20000 * (int64_t)MS));
    carrier_finish(k.c, &k.b.l, soon(20000 * (int64_t)MS));
    await_gone(&k, &k.a, 5000 * (int64_t)MS);
    await_gone(&k, &k.b, 5000 * (int64_t)MS);
    close_pair(&k);
}

static void test_carried_unix(void)
{
    traffic_round(false, scaled(800), false);
}

static void test_carried_tcp(void)
{
    traffic_round(true, scaled(800), false);
}

static void test_carried_fork(void)
{
    traffic_round(false, scaled(400), true);
    traffic_round(true, scaled(400), true);
}

/* ---- connections that are cut ---- */

static void cut_round(unsigned number)
{
    static pair k;
    rng g = rng_new(40000 + number);
    open_pair(&k, number % 2);
    int fd = dup(k.a.l.w.fd);
    start_side(&k.a, SENDERS, SENT_MOST);
    start_side(&k.b, SENDERS, SENT_MOST);
    nap((int64_t)rng_below(&g, 20 * MS));
    if (rng_one_in(&g, 2))
        shutdown(fd, SHUT_RDWR);
    else
        carrier_finish(k.c, &k.a.l, rng_one_in(&g, 2) ? 0 : soon((int64_t)rng_below(&g, 10 * MS)));
    close(fd);
    await_end(&k, &k.b);
    CHECK(k.b.reason == WIRE_END || k.b.reason == WIRE_CUT || k.b.reason == WIRE_FAILED, "reason %d", k.b.reason);
    if (rng_one_in(&g, 2))
        stop_side(&k.b);
    carrier_finish(k.c, &k.a.l, 0);
    /* To a peer that is gone with its window shut, the system goes on trying for a while. */
    carrier_finish(k.c, &k.b.l, rng_one_in(&g, 2) ? 0 : soon((int64_t)rng_below(&g, 100 * MS)));
    await_gone(&k, &k.a, 5000 * (int64_t)MS);
    await_gone(&k, &k.b, 5000 * (int64_t)MS);
    stop_side(&k.a);
    if (!k.b.stop)
        stop_side(&k.b);
    close_pair(&k);
}

static void test_cut(void)
{
    for (unsigned i = 0; i < scaled(30); i++)
        cut_round(i);
}

/* ---- finishing ---- */

/* What was sent before the end comes, and the end is told long before the deadline. */
static void finish_round(unsigned number)
{
    static pair k;
    rng g = rng_new(50000 + number);
    open_pair(&k, number % 2);
    start_side(&k.a, 1 + number % SENDERS, 1 + (unsigned)rng_below(&g, 100));
    start_side(&k.b, 0, 0);
    join_senders(&k.a);
    unsigned sent = 0;
    for (unsigned i = 0; i < SENDERS; i++)
        sent += k.a.sent[i];
    carrier_finish(k.c, &k.a.l, soon(60000 * (int64_t)MS));
    await_end(&k, &k.b);
    await_came(&k.b, sent);
    CHECK(k.b.reason == WIRE_END, "reason %d", k.b.reason);
    carrier_finish(k.c, &k.b.l, rng_one_in(&g, 2) ? 0 : soon(60000 * (int64_t)MS));
    await_gone(&k, &k.b, 5000 * (int64_t)MS);
    await_gone(&k, &k.a, 5000 * (int64_t)MS);
    stop_side(&k.a);
    stop_side(&k.b);
    close_pair(&k);
}

static void test_finish(void)
{
    for (unsigned i = 0; i < scaled(40); i++)
        finish_round(i);
}

/* One side is carried, the other is the test's. */
static int open_half(pair *k)
{
    int fds[2], size = 1 << 20;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0, "no sockets");
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    k->c = carrier_start();
    CHECK(k->c, "no carrier");
    open_side(&k->a, k->c, fds[0]);
    open_side(&k->b, k->c, -1);
    k->b.told_gone = 1;
    return fds[1];
}

/* A peer had sent much that nobody took, and then ends: there is no need to wait for the deadline. */
static void test_finish_garbage(void)
{
    static pair k;
    int other = open_half(&k);
    uint8_t *much = allocate(150 * KIB), got;
    fcntl(other, F_SETFL, O_NONBLOCK);
    /* Empty messages, for which the inbox has no room: what comes after the first lot is not even read. */
    for (int i = 0; i < 2; i++, nap(20 * MS))
        CHECK(write(other, much, 150 * KIB) > 100000, "no room");
    carrier_finish(k.c, &k.a.l, soon(60000 * (int64_t)MS));
    fcntl(other, F_SETFL, 0);
    CHECK(read(other, &got, 1) == 0, "no end came");
    close(other);
    await_gone(&k, &k.a, 2000 * (int64_t)MS);
    free(much);
    close_pair(&k);
}

/* Whoever moves the bytes of a wire without descriptor also reads for it. */
static void test_no_descriptor(void)
{
    static pair k;
    close(open_half(&k));
    await_end(&k, &k.a);
    message m = {.ttl = 1};
    k.b.l.w.chunk = 100;
    k.b.told_gone = 0;
    CHECK(carrier_add(k.c, &k.b.l) == 0, "not carried");
    CHECK(queue(&k.b, &m, false) == RING_OK, "no room");
    for (int64_t end = soon(30 * MS); platform_now() < end; listen_to(&k))
        CHECK(k.b.told_end == 0, "reason %d", k.b.reason);
    CHECK(ring_depth(&k.b.inbox.r) == 0, "it was read for");
    CHECK(k.b.told_writable >= 1, "told %d times", k.b.told_writable);
    carrier_finish(k.c, &k.a.l, 0);
    carrier_finish(k.c, &k.b.l, soon(60000 * (int64_t)MS));
    await_gone(&k, &k.a, 2000 * (int64_t)MS);
    await_gone(&k, &k.b, 2000 * (int64_t)MS);
    close_pair(&k);
}

/* A Socket's memory may go once its post is removed: the writer looks at no bell there any more. */
static void test_removed_post(void)
{
    carrier *c = carrier_start();
    CHECK(c, "no carrier");
    for (unsigned i = 0; i < scaled(500); i++) {
        rng g = rng_new(60000 + i);
        event *rung = allocate(sizeof *rung);
        _Atomic uint64_t *waiting = allocate(BELL_WORDS * sizeof *waiting);
        post p = {.rung = rung, .waiting = waiting};
        carrier_add_post(c, &p);
        for (uint64_t n = rng_below(&g, 30000); n > 0; n--)
            platform_pause();
        carrier_remove_post(c, &p);
        free((void *)rung);
        free((void *)waiting);
    }
    carrier_stop(c);
}

/* The peer is gone while something is left to be written: nothing will come of it before the deadline either. */
static void test_finish_broken(void)
{
    static pair k;
    for (unsigned i = 0; i < scaled(20); i++) {
        int other = open_half(&k);
        message m = {.ttl = 1};
        close(other);
        await_end(&k, &k.a);
        carrier_finish(k.c, &k.a.l, soon(60000 * (int64_t)MS));
        for (unsigned n = i; n > 0; n--)
            queue(&k.a, &m, false);
        await_gone(&k, &k.a, 2000 * (int64_t)MS);
        close_pair(&k);
    }
}

/* ---- */

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"reading", test_reading},
    {"growing", test_growing},
    {"hostile", test_hostile},
    {"raw", test_raw},
    {"writing", test_writing},
    {"raw empty", test_raw_empty},
    {"closed outbox", test_closed_outbox},
    {"lost content", test_lost_content},
    {"carried, unix", test_carried_unix},
    {"carried, tcp", test_carried_tcp},
    {"carried, fork", test_carried_fork},
    {"cut", test_cut},
    {"finish", test_finish},
    {"finish garbage", test_finish_garbage},
    {"finish broken", test_finish_broken},
    {"no descriptor", test_no_descriptor},
    {"removed post", test_removed_post},
};

int main(int argc, char **argv)
{
    scale = argc > 1 ? atof(argv[1]) : 1;
    test_seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    open_arena(&store, UINT64_MAX, store_id);
    open_arena(&tight, ARENA_UNIT, tight_id);
    for (unsigned i = 0; scale > 0 && i < sizeof tests / sizeof tests[0]; i++) {
        if (argc > 3 && strcmp(argv[3], tests[i].name) != 0)
            continue;
        run_test(tests[i].name, tests[i].run, 60);
    }
    return 0;
}
