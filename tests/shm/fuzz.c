/* Fuzzing of what a peer across a network can send: whatever comes, in whatever pieces, exactly the messages in it come
 * out of the inbox, and what is no message ends the wire. Built with libFuzzer; see `fuzz` in the Makefile.
 *
 * An input is data from its beginning, and decisions from its end: how the wire is made, how the data is cut, when
 * somebody takes messages. Some decisions put a row of equal bytes into the stream, so that a small input can have
 * large contents.
 *
 * Built with -DSEEDS it writes inputs to begin with instead: seeds DIRECTORY */
#include "native.h"

#define STREAM_MOST ((size_t)1 << 20)
#define OUT_OF_PLACE(condition)                                                                                        \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Bits of the first decision, how the wire is made. */
enum { IS_RAW = 1, HAS_ARENA = 2, IS_TIGHT = 4, DISCARDS = 8, RING_SHIFT = 4, LARGE_SHIFT = 6 };

/* Decisions afterwards: the two high bits are one of these, the rest is how much. */
enum { FEED_FEW = 0, FEED_MANY = 1, FEED_ROW = 2, TAKE = 3 };

#ifdef SEEDS

typedef struct {
    uint8_t data[1 << 17], decisions[1 << 12];
    size_t size, decided;
} seed;

static void decide(seed *s, unsigned decision)
{
    s->decisions[s->decided++] = (uint8_t)decision;
}

static void add_message(seed *s, uint64_t number, uint32_t longest)
{
    static uint8_t body[1 << 17];
    message m;
    make_message(number, longest, body, &m);
    if (s->size + message_size(&m) > sizeof s->data)
        return;
    s->size += message_encode_head(s->data + s->size, &m);
    memcpy(s->data + s->size, m.content, m.length);
    s->size += m.length;
}

/* A message whose content is a row of equal bytes that the decisions make. */
static void add_row_message(seed *s, unsigned kib)
{
    message m = {.flags = SEND_TO_ONE, .ttl = 3, .length = kib << 10};
    meta_encode(s->data + s->size, &m);
    s->size += META_SIZE;
    decide(s, FEED_FEW << 6 | (META_SIZE - 1));
    for (; kib > 64; kib -= 64)
        decide(s, FEED_ROW << 6 | 63);
    decide(s, FEED_ROW << 6 | (kib - 1));
}

static void save(const seed *s, const char *directory, unsigned number)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%u", directory, number);
    FILE *out = fopen(path, "wb");
    CHECK(out, "cannot write %s", path);
    fwrite(s->data, 1, s->size, out);
    for (size_t i = s->decided; i > 0; i--)
        fputc(s->decisions[i - 1], out);
    fclose(out);
}

int main(int argc, char **argv)
{
    static seed s;
    CHECK(argc == 2, "one directory");
    for (unsigned i = 0; i < 256; i++) {
        rng g = rng_new(i);
        s.size = s.decided = 0;
        decide(&s, i);
        if (rng_one_in(&g, 3))
            add_row_message(&s, 1 + (unsigned)rng_below(&g, 900));
        for (unsigned k = 1 + (unsigned)rng_below(&g, 8); k > 0; k--)
            add_message(&s, rng_next(&g), rng_one_in(&g, 8) ? 40000 : 300);
        for (unsigned k = (unsigned)rng_below(&g, 12); k > 0; k--)
            decide(&s, (unsigned)rng_next(&g));
        for (unsigned k = 0; k < 4; k++)
            decide(&s, FEED_MANY << 6 | 63);
        save(&s, argv[1], i);
    }
    return 0;
}

#else

static const uint32_t ring_sizes[] = {RING_MIN_BYTES, 16384, 65536, 1 << 20};
static const uint32_t large_from[] = {100, 4096, 40000, 131072};

typedef struct {
    const uint8_t *data;
    size_t size;
} input;

static unsigned next_decision(input *in)
{
    return in->size ? in->data[--in->size] : 0;
}

/* An arena for all runs, and one where nothing but one content has room. */
static arena wide, tight;

typedef struct {
    wire w;
    test_ring inbox, outbox;
    uint8_t *stream; /* all that came so far */
    size_t came, out; /* bytes of it, and of those that came out */
    bool is_announced, is_ended; /* raw */
    bool has_failed;
    uint8_t *scratch, *body;
} run;

static void make_arena(arena *a, uint64_t limit, uint32_t number)
{
    int fd;
    uint8_t *base = map_shared(arena_size(limit), &fd);
    OUT_OF_PLACE(arena_init(base, fd, limit, (segment_id){1, number}) != RING_OK);
    OUT_OF_PLACE(arena_attach(a, base, arena_size(limit), fd) != RING_OK);
}

static arena *find_none(void *context, segment_id wanted)
{
    (void)context;
    (void)wanted;
    return NULL;
}

/* The memory stays the same: making it takes longer than a run. */
static test_ring kept_ring(unsigned size_number)
{
    static test_ring kept[4];
    test_ring *t = &kept[size_number];
    if (!t->shared)
        make_ring(t, ring_sizes[size_number], INT32_MAX);
    else
        attach_ring(t, ring_sizes[size_number], INT32_MAX, t->r.fd);
    return *t;
}

static void open_run(run *r, unsigned made)
{
    static uint8_t *stream, *scratch, *body;
    static test_ring outbox;
    if (!stream) {
        stream = allocate(STREAM_MOST);
        scratch = allocate(WIRE_SCRATCH);
        body = allocate(STREAM_MOST);
        make_ring(&outbox, RING_MIN_BYTES, 4);
        make_arena(&wide, UINT64_MAX, 2);
        make_arena(&tight, ARENA_UNIT, 3);
    }
    memset(r, 0, sizeof *r);
    r->stream = stream;
    r->scratch = scratch;
    r->body = body;
    r->inbox = kept_ring(made >> RING_SHIFT & 3);
    r->outbox = outbox;
    wire *w = &r->w;
    w->pipe = 7;
    w->inbox = made & DISCARDS ? NULL : &r->inbox.r;
    w->outbox = &r->outbox.r;
    w->own = !(made & HAS_ARENA) ? NULL : made & IS_TIGHT ? &tight : &wide;
    w->socket = (segment_id){1, 1};
    w->large = large_from[made >> LARGE_SHIFT & 3];
    w->most = made & IS_TIGHT ? 900 << 10 : UINT32_MAX;
    w->chunk = made & IS_RAW ? (made & IS_TIGHT ? 100 : 1000) : 0;
    w->holder = 1;
    w->find = find_none;
    w->fd = -1;
    OUT_OF_PLACE(wire_init(w) != 0);
}

/* ---- what comes out ---- */

static const uint8_t *content_of(run *r, const record *rec, const message *m, block *b)
{
    note n;
    if (!record_note(&r->inbox.r, rec, &n))
        return m->content;
    OUT_OF_PLACE(!r->w.own || !is_same_segment(n.arena, r->w.own->id));
    OUT_OF_PLACE(arena_claim(r->w.own, &n, 2, b) != RING_OK);
    OUT_OF_PLACE(b->length < m->length);
    return b->data;
}

static void expect_framed(run *r, const message *got, const uint8_t *content)
{
    message m;
    size_t whole = message_decode(r->stream + r->out, r->came - r->out, &m);
    OUT_OF_PLACE(!whole);
    OUT_OF_PLACE(m.flags != got->flags || m.ttl != got->ttl || m.hops != got->hops || m.distance != got->distance);
    OUT_OF_PLACE(m.length != got->length || m.length > r->w.most);
    OUT_OF_PLACE(memcmp(m.source, got->source, source_size(&m) + destination_size(&m)) != 0);
    OUT_OF_PLACE(memcmp(m.content, content, m.length) != 0);
    r->out += whole;
}

static void expect_raw(run *r, const message *got, const uint8_t *content)
{
    OUT_OF_PLACE(r->is_ended || got->hops || got->distance || got->length > r->w.chunk);
    if (!r->is_announced) {
        OUT_OF_PLACE(got->length || got->flags != FLAG_RAW);
        r->is_announced = true;
        return;
    }
    r->is_ended = got->flags == FLAGS_RAW_END;
    OUT_OF_PLACE(r->is_ended != (got->length == 0));
    OUT_OF_PLACE(got->length > r->came - r->out);
    OUT_OF_PLACE(memcmp(r->stream + r->out, content, got->length) != 0);
    r->out += got->length;
}

static unsigned take_out(run *r, unsigned most)
{
    ring_reader reader;
    record rec;
    unsigned n = 0;
    OUT_OF_PLACE(ring_enter(&r->inbox.r, &reader, true) != RING_OK);
    for (; n < most && ring_front(&reader, &rec) == RING_OK; n++) {
        message m;
        block b;
        ring_read(&r->inbox.r, &rec, r->body, &m);
        OUT_OF_PLACE(rec.pipe != 7 || !rec.head.is_remote);
        const uint8_t *content = content_of(r, &rec, &m, &b);
        if (r->w.chunk)
            expect_raw(r, &m, content);
        else
            expect_framed(r, &m, content);
        if (rec.is_far)
            arena_release(r->w.own, &b);
        ring_pop(&reader, &rec);
    }
    ring_leave(&reader);
    return n;
}

/* ---- what comes ---- */

/* What the stream has behind all that came out may be refused. */
static bool is_refusable(const run *r)
{
    message m;
    message_decode(r->stream + r->out, r->came - r->out, &m);
    if (r->came - r->out < META_SIZE)
        return false;
    message far = m;
    far.note = r->stream;
    return m.length > r->w.most || !ring_takes(&r->inbox.r, r->w.own ? &far : &m);
}

static void check_bounds(const run *r)
{
    const wire_content *c = r->w.content;
    OUT_OF_PLACE(r->w.rest_size > WIRE_SCRATCH);
    if (c && c->is_active)
        OUT_OF_PLACE(c->filled > c->room || c->room > c->m.length || c->room > 8 * r->came);
    if (!r->w.own)
        return;
    /* Every content takes whole units, however small it is. */
    uint64_t contents = r->came / (r->w.large < 2000 ? r->w.large : 2000);
    OUT_OF_PLACE(atomic_load(&r->w.own->shared->used) * ARENA_UNIT > 8 * r->came + (2 + contents) * ARENA_UNIT);
}

/* Blocked: there is room after somebody has taken all out. */
static int unblock(run *r, int rc)
{
    while (rc == WIRE_BLOCKED) {
        unsigned n = take_out(r, UINT32_MAX);
        rc = wire_take(&r->w, r->scratch);
        OUT_OF_PLACE(rc == WIRE_BLOCKED && n == 0);
    }
    return rc;
}

static void note_result(run *r, int rc)
{
    check_bounds(r);
    rc = unblock(r, rc);
    if (rc == WIRE_OK)
        return;
    OUT_OF_PLACE(rc != WIRE_TOO_LONG || r->w.chunk);
    r->has_failed = true;
    if (!r->w.inbox)
        return;
    take_out(r, UINT32_MAX);
    OUT_OF_PLACE(!is_refusable(r));
}

static void feed(run *r, const uint8_t *from, size_t n)
{
    if (n > STREAM_MOST - r->came)
        n = STREAM_MOST - r->came;
    while (n && !r->has_failed) {
        size_t room;
        uint8_t *to = wire_space(&r->w, r->scratch, &room);
        OUT_OF_PLACE(room == 0);
        size_t part = n < room ? n : room;
        memcpy(to, from, part);
        memcpy(r->stream + r->came, from, part);
        r->came += part;
        from += part;
        n -= part;
        note_result(r, wire_filled(&r->w, r->scratch, part));
    }
}

static void feed_data(run *r, input *in, size_t n)
{
    if (n > in->size)
        n = in->size;
    const uint8_t *from = in->data;
    in->data += n;
    in->size -= n;
    feed(r, from, n);
}

static void feed_row(run *r, unsigned kib)
{
    static uint8_t row[64 << 10];
    feed(r, row, (size_t)kib << 10);
}

static void step(run *r, input *in)
{
    unsigned decision = next_decision(in), much = (decision & 63) + 1;
    switch (decision >> 6) {
    case FEED_FEW:
        feed_data(r, in, much);
        break;
    case FEED_MANY:
        feed_data(r, in, (size_t)much * 64);
        break;
    case FEED_ROW:
        feed_row(r, much);
        break;
    default:
        if (r->w.inbox)
            take_out(r, much);
    }
}

/* ---- the end ---- */

static bool is_at_boundary(const run *r)
{
    size_t at = 0, whole;
    message m;
    while ((whole = message_decode(r->stream + at, r->came - at, &m)))
        at += whole;
    return at == r->came;
}

static void end(run *r)
{
    int rc;
    while ((rc = wire_end(&r->w)) == WIRE_BLOCKED) {
        OUT_OF_PLACE(take_out(r, UINT32_MAX) == 0);
        wire_take(&r->w, r->scratch);
    }
    if (r->w.inbox)
        take_out(r, UINT32_MAX);
    if (r->w.chunk) {
        OUT_OF_PLACE(rc != WIRE_END);
        OUT_OF_PLACE(r->w.inbox && (!r->is_ended || r->out != r->came));
        return;
    }
    OUT_OF_PLACE(rc != (is_at_boundary(r) ? WIRE_END : WIRE_CUT));
    message m;
    OUT_OF_PLACE(r->w.inbox && message_decode(r->stream + r->out, r->came - r->out, &m));
}

static void close_run(run *r)
{
    arena *own = r->w.own;
    take_out(r, UINT32_MAX);
    wire_destroy(&r->w);
    OUT_OF_PLACE(own && !arena_is_empty(own));
    if (own)
        arena_rest(own, 1);
}

static void decode_all(const uint8_t *data, size_t size)
{
    message m;
    size_t whole = message_decode(data, size, &m);
    OUT_OF_PLACE(whole > size);
    if (whole)
        OUT_OF_PLACE(m.content + m.length != data + whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static run r;
    input in = {data, size};
    decode_all(data, size);
    open_run(&r, next_decision(&in));
    note_result(&r, wire_take(&r.w, r.scratch)); /* a raw wire is announced */
    while (in.size && !r.has_failed)
        step(&r, &in);
    if (!r.has_failed)
        end(&r);
    close_run(&r);
    return 0;
}

#endif
