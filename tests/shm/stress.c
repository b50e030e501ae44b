/* The native core under threads of one process, so that ThreadSanitizer sees everything.
 *
 *   stress [scale [seed [test]]]     scale 0 only says that the program can start */
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>

static double scale = 1;

static unsigned scaled(unsigned n)
{
    double many = n * scale;
    return many < 1 ? 1 : (unsigned)many;
}

static uint64_t number_of(unsigned producer, unsigned sequence)
{
    return (uint64_t)producer << 32 | sequence;
}

/* ---- accounting: who got which message ---- */

typedef struct {
    unsigned producers, messages; /* of each producer */
    _Atomic uint8_t *seen;
    _Atomic unsigned total;
} ledger;

static void ledger_open(ledger *l, unsigned producers, unsigned messages)
{
    *l = (ledger){.producers = producers, .messages = messages};
    l->seen = allocate((size_t)producers * messages);
}

static void ledger_note(ledger *l, uint64_t number)
{
    unsigned producer = (unsigned)(number >> 32), sequence = (unsigned)number;
    CHECK(producer < l->producers && sequence < l->messages, "message %llx was never sent", (unsigned long long)number);
    unsigned before =
        atomic_fetch_add_explicit(&l->seen[(size_t)producer * l->messages + sequence], 1, memory_order_relaxed);
    CHECK(before == 0, "message %u of producer %u came twice", sequence, producer);
    atomic_fetch_add_explicit(&l->total, 1, memory_order_relaxed);
}

/* sent: how many of each producer, from the first on. */
static void ledger_close(ledger *l, const unsigned *sent)
{
    unsigned expected = 0;
    for (unsigned p = 0; p < l->producers; p++) {
        for (unsigned i = 0; i < l->messages; i++)
            CHECK(l->seen[(size_t)p * l->messages + i] == (i < sent[p]),
                  "message %u of producer %u (%u sent) came %u times", i, p, sent[p],
                  l->seen[(size_t)p * l->messages + i]);
        expected += sent[p];
    }
    CHECK(l->total == expected, "%u came, %u were sent", l->total, expected);
    free(l->seen);
}

/* ---- many producers and consumers on one ring ---- */

#define BATCH_MOST 12
#define THREADS_MOST 8

typedef struct {
    const char *name;
    uint64_t capacity;
    uint32_t limit;
    unsigned producers, consumers, messages;
    uint32_t longest; /* of paths and content */
    uint32_t spin; /* ns */
    unsigned lazy_producer, lazy_consumer; /* one operation in so many is followed by a nap; 0: none */
    bool at_wrap; /* positions and counts begin just below their wrap-around */
    bool drain; /* producers often wait until the ring is empty, so that it is rewound */
    bool until_closed; /* producers go on until the ring is closed */
} traffic_plan;

typedef struct {
    const traffic_plan *plan;
    test_ring t;
    ledger l;
    unsigned messages;
    unsigned sent[THREADS_MOST];
    _Atomic unsigned names; /* of the threads */
    uint64_t records_before;
} traffic;

static uint32_t units_of(const message *m)
{
    return (uint32_t)((message_size(m) + 8 + RING_UNIT - 1) / RING_UNIT);
}

static void be_lazy(rng *g, unsigned one_in)
{
    if (one_in && rng_one_in(g, one_in))
        nap((int64_t)rng_below(g, 300000));
}

static void note_sent(traffic *w, unsigned producer, unsigned n)
{
    w->sent[producer] += n;
}

static int send_single(traffic *w, unsigned producer, rng *g, uint8_t *body, message *m)
{
    make_message(number_of(producer, w->sent[producer]), w->plan->longest, body, m);
    int rc = ring_push(&w->t.r, producer, m, rng_one_in(g, 2));
    if (rc == RING_OK)
        note_sent(w, producer, 1);
    return rc;
}

/* Several under one lock, published in one or several steps; what is not published at the end does not count. */
static int send_batch(traffic *w, unsigned producer, rng *g, uint8_t *body, message *m)
{
    ring_writer writer;
    int rc = ring_begin(&w->t.r, &writer, rng_one_in(g, 2));
    if (rc != RING_OK)
        return rc;
    unsigned most = 1 + (unsigned)rng_below(g, BATCH_MOST), put = 0;
    while (put < most && w->sent[producer] + put < w->messages) {
        make_message(number_of(producer, w->sent[producer] + put), w->plan->longest, body, m);
        rc = ring_put(&writer, producer, m);
        if (rc != RING_OK)
            break;
        put++;
        if (!rng_one_in(g, 4))
            continue;
        ring_publish(&writer);
        note_sent(w, producer, put);
        put = 0;
    }
    if (!rng_one_in(g, 8)) {
        ring_publish(&writer);
        note_sent(w, producer, put);
    }
    ring_end(&writer);
    return rc;
}

static void await_empty(const ring *r)
{
    while (ring_depth(r) && !ring_is_closed(r))
        sched_yield();
}

static void *produce(void *arg)
{
    traffic *w = arg;
    unsigned producer = atomic_fetch_add(&w->names, 1);
    rng g = rng_new(1000 + producer);
    uint8_t *body = allocate(PATH_BYTES + w->plan->longest);
    message m;
    while (w->sent[producer] < w->messages) {
        int rc = rng_one_in(&g, 3) ? send_batch(w, producer, &g, body, &m) : send_single(w, producer, &g, body, &m);
        if (rc == RING_CLOSED)
            break;
        CHECK(rc == RING_OK || rc == RING_FULL || rc == RING_BUSY, "sending gave %d", rc);
        if (rc == RING_FULL)
            CHECK(ring_wait_room(&w->t.r, &m, NEVER) == WAIT_WOKEN, "a wait for room");
        if (rc == RING_BUSY)
            sched_yield();
        if (w->plan->drain && rng_one_in(&g, 2))
            await_empty(&w->t.r);
        be_lazy(&g, w->plan->lazy_producer);
    }
    free(body);
    return NULL;
}

typedef struct {
    int64_t last[THREADS_MOST]; /* sequence number, of each producer */
    uint64_t taken[BATCH_MOST];
    unsigned n;
    uint8_t *body, *scratch;
} taker;

static void look_at(traffic *w, taker *k, const record *rec)
{
    message m;
    CHECK(record_body_size(rec) <= PATH_BYTES + w->plan->longest, "a record of %llu bytes",
          (unsigned long long)record_body_size(rec));
    ring_read(&w->t.r, rec, k->body, &m);
    uint64_t number = check_message(&m, w->plan->longest, k->scratch);
    unsigned producer = (unsigned)(number >> 32);
    CHECK(producer < w->plan->producers && rec->pipe == producer, "the record of producer %u names pipe %u", producer,
          rec->pipe);
    CHECK((int64_t)(uint32_t)number > k->last[producer], "message %u of producer %u came after %lld", (uint32_t)number,
          producer, (long long)k->last[producer]);
    k->taken[k->n] = number;
}

/* Some records under one lock. RING_OK when there may be more. */
static int take_some(traffic *w, taker *k, rng *g)
{
    ring_reader reader;
    record rec;
    int rc = ring_enter(&w->t.r, &reader, rng_one_in(g, 2));
    if (rc != RING_OK)
        return rc;
    CHECK(ring_depth(&w->t.r) <= w->plan->limit, "%u records, limit %u", ring_depth(&w->t.r), w->plan->limit);
    CHECK(ring_used(&w->t.r) <= w->plan->capacity, "more is used than there is");
    if (rng_one_in(g, 8))
        nap(1000); /* with the lock held: whatever producers do meanwhile */
    unsigned most = 1 + (unsigned)rng_below(g, BATCH_MOST);
    k->n = 0;
    while (k->n < most && (rc = ring_front(&reader, &rec)) == RING_OK) {
        look_at(w, k, &rec);
        if (rng_one_in(g, 16))
            break; /* looked at, but not taken: it must come again */
        k->last[(unsigned)(k->taken[k->n] >> 32)] = (uint32_t)k->taken[k->n];
        k->n++;
        ring_pop(&reader, &rec);
        if (rng_one_in(g, 8))
            ring_take(&reader);
    }
    ring_leave(&reader);
    for (unsigned i = 0; i < k->n; i++)
        ledger_note(&w->l, k->taken[i]);
    return rc;
}

static void *consume(void *arg)
{
    traffic *w = arg;
    rng g = rng_new(2000 + atomic_fetch_add(&w->names, 1));
    taker k = {.body = allocate(PATH_BYTES + w->plan->longest), .scratch = allocate(PATH_BYTES + w->plan->longest)};
    for (unsigned i = 0; i < THREADS_MOST; i++)
        k.last[i] = -1;
    for (;;) {
        int rc = take_some(w, &k, &g);
        if (rc == RING_CLOSED)
            break;
        CHECK(rc == RING_OK || rc == RING_EMPTY || rc == RING_BUSY, "taking gave %d", rc);
        if (rc == RING_EMPTY)
            CHECK(ring_wait_readable(&w->t.r, NEVER) == WAIT_WOKEN, "a wait for a record");
        if (rc == RING_BUSY)
            ring_await_consumers(&w->t.r);
        be_lazy(&g, w->plan->lazy_consumer);
    }
    free(k.body);
    free(k.scratch);
    return NULL;
}

static void traffic_open(traffic *w, const traffic_plan *plan)
{
    *w = (traffic){.plan = plan, .messages = scaled(plan->messages)};
    make_ring(&w->t, plan->capacity, plan->limit);
    if (plan->at_wrap) {
        w->records_before = ((uint64_t)7 << 32) - w->messages / 2;
        start_ring_at(w->t.shared, (uint32_t)-(int32_t)(w->messages / 2), w->records_before);
    }
    ledger_open(&w->l, plan->producers, w->messages);
    ring_set_spin(plan->spin);
    atomic_store(&w->t.r.spin, plan->spin);
}

/* What is still in the closed ring counts as received. */
static unsigned drain_frozen(traffic *w)
{
    record rec;
    unsigned n = 0;
    uint64_t at = ring_frozen_start(&w->t.r);
    taker k = {.body = allocate(PATH_BYTES + w->plan->longest), .scratch = allocate(PATH_BYTES + w->plan->longest)};
    for (unsigned i = 0; i < THREADS_MOST; i++)
        k.last[i] = -1;
    for (; ring_frozen_next(&w->t.r, &at, &rec) == RING_OK; n++) {
        look_at(w, &k, &rec);
        ledger_note(&w->l, k.taken[0]);
    }
    CHECK(n == ring_depth(&w->t.r), "%u records in a frozen ring, depth %u", n, ring_depth(&w->t.r));
    free(k.body);
    free(k.scratch);
    return n;
}

static void traffic_check(traffic *w)
{
    ring_shared *s = w->t.shared;
    unsigned sent = 0, left = drain_frozen(w);
    for (unsigned p = 0; p < w->plan->producers; p++)
        sent += w->sent[p];
    CHECK(s->pushed == w->records_before + sent, "pushed %llu", (unsigned long long)s->pushed);
    CHECK(s->popped == s->pushed - left, "popped %llu", (unsigned long long)s->popped);
    CHECK((uint32_t)s->tail == (uint32_t)s->pushed && (uint32_t)s->head == (uint32_t)s->popped, "counts");
    ledger_close(&w->l, w->sent);
    free_ring(&w->t);
}

static void run_traffic(const traffic_plan *plan)
{
    traffic w;
    pthread_t producers[THREADS_MOST], consumers[THREADS_MOST];
    traffic_open(&w, plan);
    for (unsigned i = 0; i < plan->producers; i++)
        producers[i] = start(produce, &w);
    while (atomic_load(&w.names) < plan->producers) /* names of producers are their numbers */
        sched_yield();
    for (unsigned i = 0; i < plan->consumers; i++)
        consumers[i] = start(consume, &w);
    uint64_t head = 0, tail = 0;
    if (plan->until_closed) {
        nap((int64_t)scaled(30) * MS);
        ring_close(&w.t.r);
        head = w.t.shared->head;
        tail = w.t.shared->tail;
    }
    for (unsigned i = 0; i < plan->producers; i++)
        join(producers[i]);
    while (!plan->until_closed && ring_depth(&w.t.r))
        nap(100000);
    ring_close(&w.t.r);
    for (unsigned i = 0; i < plan->consumers; i++)
        join(consumers[i]);
    if (plan->until_closed)
        CHECK(w.t.shared->head == head && w.t.shared->tail == tail, "something went in or out after the close");
    traffic_check(&w);
}

#define ANY 0x7fffffffu

static const traffic_plan plans[] = {
    {"small records", 65536, ANY, 3, 3, 30000, 40, 20000, 0, 0, false, false, false},
    {"records up to more than half the ring", 4096, ANY, 3, 2, 15000, 2500, 20000, 0, 0, false, false, false},
    {"records as large as the ring", 4096, ANY, 2, 2, 8000, 4096 - RING_UNIT, 20000, 0, 0, false, false, false},
    {"rewound often", 131072, ANY, 1, 2, 12000, 1500, 20000, 0, 0, false, true, false},
    {"a small ring rewound often", 4096, ANY, 1, 2, 12000, 1500, 20000, 0, 0, false, true, false},
    {"a limit of records", 65536, 5, 3, 3, 6000, 100, 0, 0, 0, false, false, false},
    {"a limit of one record", 4096, 1, 2, 2, 1500, 100, 20000, 0, 0, false, false, false},
    {"positions and counts wrap", 8192, ANY, 3, 3, 20000, 1000, 20000, 0, 0, true, false, false},
    {"rewound over the wrap", 16384, ANY, 1, 2, 12000, 1500, 20000, 0, 0, true, true, false},
    {"producers asleep", 4096, ANY, 3, 2, 1500, 600, 0, 0, 4, false, false, false},
    {"consumers asleep", 16384, ANY, 2, 4, 1500, 600, 0, 4, 0, false, false, false},
    {"closed under way", 8192, ANY, 3, 3, 200000, 600, 20000, 0, 0, false, false, true},
    {"closed under way, all asleep", 4096, ANY, 3, 3, 200000, 600, 0, 8, 8, false, false, true},
};

static void test_traffic(void)
{
    for (unsigned i = 0; i < sizeof plans / sizeof plans[0]; i++) {
        test_name = plans[i].name;
        give_time(120);
        run_traffic(&plans[i]);
    }
}

/* ---- limits of one thread ---- */

static int push_number(ring *r, uint64_t number, uint32_t longest)
{
    static uint8_t body[PATH_BYTES + 65536];
    message m;
    make_message(number, longest, body, &m);
    return ring_push(r, 0, &m, true);
}

static int pop_one(ring *r)
{
    ring_reader reader;
    record rec;
    int rc = ring_enter(r, &reader, true);
    if (rc != RING_OK)
        return rc;
    rc = ring_front(&reader, &rec);
    if (rc == RING_OK)
        ring_pop(&reader, &rec);
    ring_leave(&reader);
    return rc;
}

static void test_limits(void)
{
    test_ring t;
    make_ring(&t, 4096, 3);
    message m = {.content = (const uint8_t *)"", .length = 0};
    for (unsigned round = 0; round < 1000; round++) {
        for (unsigned i = 0; i < 3; i++) {
            CHECK(ring_has_room(&t.r, &m), "%u of 3 records", i);
            CHECK(push_number(&t.r, i, 8) == RING_OK, "%u of 3 records", i);
        }
        CHECK(!ring_has_room(&t.r, &m), "3 of 3 records");
        CHECK(push_number(&t.r, 3, 8) == RING_FULL, "3 of 3 records");
        CHECK(ring_wait_room(&t.r, &m, 0) == WAIT_TIMEOUT, "3 of 3 records");
        for (unsigned i = 0; i < 3; i++)
            CHECK(pop_one(&t.r) == RING_OK, "%u left", 3 - i);
        CHECK(pop_one(&t.r) == RING_EMPTY, "none left");
        CHECK(ring_wait_readable(&t.r, 0) == WAIT_TIMEOUT, "none left");
    }
    uint8_t *body = allocate(8192);
    m = (message){.content = body, .length = (uint32_t)(ring_max_message(&t.r) - META_SIZE)};
    CHECK(ring_push(&t.r, 0, &m, true) == RING_OK && ring_used(&t.r) == 4096, "the largest");
    CHECK(ring_push(&t.r, 0, &(message){.content = body}, true) == RING_FULL, "no unit is left");
    CHECK(pop_one(&t.r) == RING_OK, "the largest");
    m.length++;
    CHECK(ring_push(&t.r, 0, &m, true) == RING_TOO_LONG, "one byte more than the largest");
    m.length = UINT32_MAX;
    m.hops = m.distance = 255;
    CHECK(ring_push(&t.r, 0, &m, true) == RING_TOO_LONG, "the largest length there is");
    ring_close(&t.r);
    CHECK(push_number(&t.r, 0, 8) == RING_CLOSED && pop_one(&t.r) == RING_CLOSED, "closed");
    free(body);
    free_ring(&t);
}

/* A ring that runs empty each time uses its first pages only, whatever goes through it. */
static void test_rewind(void)
{
    test_ring t;
    make_ring(&t, 4 * RING_REWIND, ANY);
    start_ring_at(t.shared, (uint32_t)-(int32_t)t.r.units, 0); /* the position wraps on the way, at the first page */
    uint64_t longest = 2000, bytes = 0;
    for (unsigned i = 0; i < 4000; i++) {
        CHECK(push_number(&t.r, i, (uint32_t)longest) == RING_OK, "an empty ring");
        bytes += ring_used(&t.r);
        CHECK(pop_one(&t.r) == RING_OK, "a record");
    }
    CHECK(bytes > 3 * t.r.capacity / 2, "%llu bytes are too few", (unsigned long long)bytes);
    CHECK(t.shared->reserved <= 2 * RING_REWIND, "memory is reserved up to %llu",
          (unsigned long long)t.shared->reserved);
    free_ring(&t);
}

/* ---- waking ---- */

/* A lost wake-up is made good by the end of the slice: that makes it slow, which is what is counted here. */
#define SLOW_NS (30 * MS)

typedef struct {
    test_ring t;
    unsigned rounds;
    _Atomic unsigned answered;
    _Atomic unsigned slow;
} wake_state;

static void *answer(void *arg)
{
    wake_state *w = arg;
    for (;;) {
        int rc = pop_one(&w->t.r);
        if (rc == RING_CLOSED)
            return NULL;
        if (rc == RING_OK)
            atomic_fetch_add(&w->answered, 1);
        else
            ring_wait_readable(&w->t.r, NEVER);
    }
}

/* With spinning off each round finds the consumers asleep, arming or just about to. */
static void wake_rounds(unsigned consumers)
{
    wake_state w = {.rounds = scaled(3000)};
    pthread_t threads[THREADS_MOST];
    rng g = rng_new(consumers);
    make_ring(&w.t, 4096, ANY);
    ring_set_spin(0);
    for (unsigned i = 0; i < consumers; i++)
        threads[i] = start(answer, &w);
    for (unsigned i = 0; i < w.rounds; i++) {
        int64_t began = platform_now();
        CHECK(push_number(&w.t.r, i, 100) == RING_OK, "an empty ring");
        while (atomic_load(&w.answered) <= i)
            sched_yield();
        if (platform_now() - began > SLOW_NS)
            atomic_fetch_add(&w.slow, 1);
        if (rng_one_in(&g, 4))
            nap((int64_t)rng_below(&g, 60000));
    }
    CHECK(w.slow <= 3 + w.rounds / 50, "%u of %u wake-ups were slow", w.slow, w.rounds);
    ring_close(&w.t.r);
    for (unsigned i = 0; i < consumers; i++)
        join(threads[i]);
    free_ring(&w.t);
}

static void test_wake(void)
{
    wake_rounds(1);
    wake_rounds(4);
}

/* ---- segments, as a Socket has them, and what a binding keeps about its peers ---- */

#define NODES_MOST 256
#define SLOTS_MOST 64
#define NODE_BYTES 8192u

typedef struct {
    segment seg;
    uint64_t size;
    pthread_t consumer;
    bool dead;
} node;

static _Atomic(node *) directory[NODES_MOST];

static node *make_node(uint64_t inbox_bytes, uint64_t pending_bytes, uint32_t pending_limit)
{
    node *n = allocate(sizeof *n);
    n->size = segment_size(inbox_bytes, pending_bytes);
    int fd;
    void *base = map_shared(n->size, &fd);
    CHECK(make_segment_of(base, fd, inbox_bytes, ANY, pending_bytes, pending_limit), "a segment");
    CHECK(segment_attach(&n->seg, base, n->size, fd) == RING_OK, "a segment");
    return n;
}

static void free_node(node *n)
{
    unmap_shared(n->seg.shared, n->size, n->seg.fd);
    free(n);
}

/* A thread's own view of the open pipes, brought up to date as the Python binding does it. */
typedef struct {
    segment *seg;
    peer_list *list;
    peer known[SLOTS_MOST];
    uint32_t turn;
} peers;

/* The plain fields of a slot are read like those behind a sequence lock: while they change, the id does too, and what
 * was read is thrown away. ThreadSanitizer cannot know, so it does not look here. */
__attribute__((no_sanitize("thread"), noinline)) static bool read_slot(const pipe_slot *slot, uint32_t id, peer *out,
                                                                       unsigned *number)
{
    const volatile char *name = slot->peer;
    out->id = id;
    out->peer_id = *(const volatile uint32_t *)&slot->peer_id;
    *number = 0;
    for (unsigned i = 0; i < 4 && name[i] >= '0' && name[i] <= '9'; i++)
        *number = *number * 10 + (unsigned)(name[i] - '0');
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&slot->id, memory_order_acquire) == id;
}

static bool learn_peer(pipe_slot *slot, uint32_t id, peer *out)
{
    unsigned number;
    if (!read_slot(slot, id, out, &number) || number >= NODES_MOST)
        return false;
    node *n = atomic_load_explicit(&directory[number], memory_order_acquire);
    if (!n)
        return false;
    out->slot = slot;
    out->inbox = &n->seg.inbox;
    return true;
}

static void peers_refresh(peers *p)
{
    p->list->version = segment_version(p->seg);
    p->list->size = atomic_load(&p->seg->shared->high) + 1;
    p->list->receivers = 0;
    p->list->only = NULL;
    CHECK(p->list->size <= SLOTS_MOST, "%u slots in use", p->list->size);
    for (uint32_t i = 1; i < p->list->size; i++) {
        pipe_slot *slot = &p->seg->slots[i];
        uint32_t id = atomic_load_explicit(&slot->id, memory_order_acquire);
        p->list->by_slot[i] = NULL;
        if (id == 0 || atomic_load_explicit(&slot->state, memory_order_acquire) != PIPE_OPEN)
            continue;
        if (p->known[i].id != id && !learn_peer(slot, id, &p->known[i])) {
            p->known[i].id = 0;
            continue;
        }
        p->list->by_slot[i] = &p->known[i];
        p->list->receivers++;
        p->list->only = p->list->receivers == 1 ? &p->known[i] : NULL;
    }
}

static void peers_open(peers *p, segment *seg)
{
    *p = (peers){.seg = seg};
    p->list = allocate(sizeof(peer_list) + SLOTS_MOST * sizeof(peer *));
    peers_refresh(p);
}

static void peers_close(peers *p)
{
    free(p->list);
}

static void peers_update(peers *p)
{
    if (p->list->version != segment_version(p->seg))
        peers_refresh(p);
}

static uint32_t open_pipe(segment *seg, unsigned node_number, uint32_t peer_id)
{
    char name[SEGMENT_NAME_SIZE];
    snprintf(name, sizeof name, "%u", node_number);
    uint32_t id = pipe_reserve(seg);
    CHECK(id, "no free slot");
    pipe_open(seg, id, name, peer_id, PIPE_TO_INBOX);
    return id;
}

/* ---- sending to one of several peers that come, go and die ---- */

#define SENDERS 3
#define ALIVE 3 /* peers at a time */
#define PIPES_MOST 6
#define CHURN_LONGEST 3000u

typedef struct {
    uint32_t id, peer_id;
    unsigned node;
} open_pipe_entry;

typedef struct {
    node *own;
    ledger l;
    unsigned messages;
    unsigned sent[SENDERS];
    _Atomic unsigned senders, finished;
    unsigned nodes; /* ever made */
    unsigned alive[ALIVE];
    open_pipe_entry pipes[PIPES_MOST];
    unsigned open;
    uint32_t last_peer_id;
    unsigned owner_of[65536]; /* node that a peer_id belongs to */
} churn;

typedef struct {
    churn *c;
    node *n;
} node_consumer;

static void *consume_node(void *arg)
{
    node_consumer *k = arg;
    rng g = rng_new(3000 + (uint64_t)(uintptr_t)k->n % 997);
    uint8_t *body = allocate(PATH_BYTES + CHURN_LONGEST), *scratch = allocate(PATH_BYTES + CHURN_LONGEST);
    ring *r = &k->n->seg.inbox;
    ring_reader reader;
    record rec;
    int rc;
    while ((rc = ring_enter(r, &reader, true)) == RING_OK) {
        message m;
        uint64_t number = 0;
        rc = ring_front(&reader, &rec);
        if (rc == RING_OK) {
            ring_read(r, &rec, body, &m);
            number = check_message(&m, CHURN_LONGEST, scratch);
            ring_pop(&reader, &rec);
        }
        ring_leave(&reader);
        if (rc == RING_OK)
            ledger_note(&k->c->l, number);
        else
            ring_wait_readable(r, NEVER);
        be_lazy(&g, 64);
    }
    CHECK(rc == RING_CLOSED, "an inbox gave %d", rc);
    free(body);
    free(scratch);
    free(k);
    return NULL;
}

static unsigned new_node(churn *c)
{
    unsigned number = ++c->nodes;
    CHECK(number < NODES_MOST, "too many nodes");
    node *n = make_node(NODE_BYTES, RING_MIN_BYTES, 1);
    node_consumer *k = allocate(sizeof *k);
    *k = (node_consumer){.c = c, .n = n};
    atomic_store_explicit(&directory[number], n, memory_order_release);
    n->consumer = start(consume_node, k);
    return number;
}

static void add_pipe(churn *c, unsigned node_number)
{
    if (c->open == PIPES_MOST)
        return;
    uint32_t peer_id = ++c->last_peer_id;
    CHECK(peer_id < 65536, "too many pipes");
    c->owner_of[peer_id] = node_number;
    uint32_t id = open_pipe(&c->own->seg, node_number, peer_id);
    c->pipes[c->open++] = (open_pipe_entry){.id = id, .peer_id = peer_id, .node = node_number};
}

static void drop_pipe(churn *c, unsigned i)
{
    pipe_release(&c->own->seg, c->pipes[i].id);
    c->pipes[i] = c->pipes[--c->open];
}

/* A peer is gone: what it had not received goes to others, of every pipe that ever led to it. */
static void resend_all(churn *c, unsigned node_number, peers *p)
{
    ring *frozen = &atomic_load(&directory[node_number])->seg.inbox;
    for (uint32_t peer_id = 1; peer_id <= c->last_peer_id; peer_id++) {
        if (c->owner_of[peer_id] != node_number)
            continue;
        uint64_t at = ring_frozen_start(frozen);
        for (;;) {
            peers_update(p);
            int rc = resend_unreceived(p->seg, p->list, &p->turn, frozen, peer_id, &at);
            if (rc == RING_OK)
                break;
            CHECK(rc == RING_FULL, "resending gave %d", rc);
            message longest = message_of(CHURN_LONGEST);
            wait_to_send(p->seg, p->list, 0, &longest, soon(5 * MS));
        }
    }
}

static void kill_node(churn *c, unsigned which, peers *p)
{
    unsigned number = c->alive[which];
    node *n = atomic_load(&directory[number]);
    c->alive[which] = new_node(c);
    segment_close(&n->seg);
    for (unsigned i = c->open; i-- > 0;)
        if (c->pipes[i].node == number)
            drop_pipe(c, i);
    add_pipe(c, c->alive[which]);
    resend_all(c, number, p);
    join(n->consumer);
    n->dead = true;
}

static void flush_some(peers *p, rng *g)
{
    peers_update(p);
    int rc = flush_pending(p->seg, p->list, &p->turn, rng_one_in(g, 2));
    CHECK(rc == RING_OK || rc == RING_FULL || rc == RING_BUSY, "flushing gave %d", rc);
}

static void *own_pipes(void *arg)
{
    churn *c = arg;
    peers p;
    rng g = rng_new(4000);
    peers_open(&p, &c->own->seg);
    while (atomic_load(&c->finished) < SENDERS) {
        unsigned what = (unsigned)rng_below(&g, 16);
        if (what < 6)
            add_pipe(c, c->alive[rng_below(&g, ALIVE)]);
        else if (what < 11 && c->open)
            drop_pipe(c, (unsigned)rng_below(&g, c->open));
        else if (what == 11 && c->nodes + 1 < NODES_MOST)
            kill_node(c, (unsigned)rng_below(&g, ALIVE), &p);
        else if (what == 12)
            while (c->open)
                drop_pipe(c, 0);
        else
            flush_some(&p, &g);
        nap((int64_t)rng_below(&g, 1500000));
    }
    if (!c->open)
        add_pipe(c, c->alive[0]);
    while (ring_depth(&c->own->seg.pending)) {
        flush_some(&p, &g);
        nap(100000);
    }
    peers_close(&p);
    return NULL;
}

static int send_one_somehow(peers *p, const message *m, rng *g, bool wait_lock)
{
    uint32_t i = (uint32_t)rng_below(g, p->list->size);
    if (rng_one_in(g, 8) && p->list->by_slot[i])
        return send_by_pipe(p->seg, p->list, p->known[i].id, m, wait_lock);
    return send_to_one(p->seg, p->list, &p->turn, m, wait_lock);
}

static void after_failure(peers *p, int rc, uint64_t bytes)
{
    CHECK(rc == RING_FULL || rc == RING_BUSY || rc == SEND_STALE || rc == SEND_NO_PATH, "sending gave %d", rc);
    if (rc == RING_FULL) {
        message m = message_of(bytes);
        rc = wait_to_send(p->seg, p->list, 0, &m, soon(50 * MS));
        CHECK(rc == RING_OK || rc == SEND_TIMEOUT, "waiting to send gave %d", rc);
    }
    peers_update(p);
}

static void send_messages(churn *c, unsigned sender, peers *p, rng *g)
{
    enum { ROW = 10 };
    uint8_t *bodies = allocate(ROW * (PATH_BYTES + CHURN_LONGEST));
    message row[ROW];
    while (c->sent[sender] < c->messages) {
        unsigned n = rng_one_in(g, 4) ? 1 + (unsigned)rng_below(g, ROW) : 1, done = 0;
        if (n > c->messages - c->sent[sender])
            n = c->messages - c->sent[sender];
        for (unsigned i = 0; i < n; i++)
            make_message(number_of(sender, c->sent[sender] + i), CHURN_LONGEST,
                         bodies + i * (PATH_BYTES + CHURN_LONGEST), &row[i]);
        int rc;
        while (done < n) {
            bool wait_lock = rng_one_in(g, 2);
            if (n > 1) {
                rc = send_row(p->seg, p->list, &p->turn, row + done, n - done, &done, wait_lock);
            } else {
                rc = send_one_somehow(p, row, g, wait_lock);
                done += rc == RING_OK;
            }
            CHECK(rc != RING_OK || done == n, "%u of %u were sent", done, n);
            if (rc != RING_OK)
                after_failure(p, rc, message_size(&row[done]));
        }
        c->sent[sender] += n;
    }
    free(bodies);
}

static void *send_churn(void *arg)
{
    churn *c = arg;
    unsigned sender = atomic_fetch_add(&c->senders, 1);
    rng g = rng_new(5000 + sender);
    peers p;
    peers_open(&p, &c->own->seg);
    send_messages(c, sender, &p, &g);
    peers_close(&p);
    atomic_fetch_add(&c->finished, 1);
    return NULL;
}

static void churn_end(churn *c)
{
    segment_header *s = c->own->seg.shared;
    CHECK(s->dropped == 0, "%llu were dropped", (unsigned long long)s->dropped);
    CHECK(s->pending.pushed == s->pending.popped, "something is still pending");
    for (unsigned i = 1; i <= c->nodes; i++) {
        node *n = atomic_load(&directory[i]);
        while (!n->dead && ring_depth(&n->seg.inbox))
            nap(100000);
        segment_close(&n->seg);
        if (!n->dead)
            join(n->consumer);
        atomic_store(&directory[i], NULL);
        free_node(n);
    }
    ledger_close(&c->l, c->sent);
    free_node(c->own);
}

static void test_churn(void)
{
    churn *c = allocate(sizeof *c);
    pthread_t threads[SENDERS], owner;
    c->messages = scaled(20000);
    ledger_open(&c->l, SENDERS, c->messages);
    c->own = make_node(RING_MIN_BYTES, NODE_BYTES, 16);
    ring_set_spin(20000);
    for (unsigned i = 0; i < ALIVE; i++)
        c->alive[i] = new_node(c);
    for (unsigned i = 0; i < SENDERS; i++)
        threads[i] = start(send_churn, c);
    owner = start(own_pipes, c);
    for (unsigned i = 0; i < SENDERS; i++)
        join(threads[i]);
    join(owner);
    churn_end(c);
    free(c);
}

/* ---- order of what was pending and what was sent after a pipe opened ---- */

typedef struct {
    node *own, *to;
    unsigned messages;
    _Atomic unsigned senders;
} order_state;

static void *send_in_order(void *arg)
{
    order_state *o = arg;
    unsigned sender = atomic_fetch_add(&o->senders, 1);
    rng g = rng_new(6000 + sender);
    uint8_t *body = allocate(PATH_BYTES + 200);
    message m;
    peers p;
    peers_open(&p, &o->own->seg);
    for (unsigned i = 0; i < o->messages;) {
        make_message(number_of(sender, i), 200, body, &m);
        int rc = send_to_one(p.seg, p.list, &p.turn, &m, rng_one_in(&g, 2));
        if (rc == RING_OK)
            i++;
        else
            after_failure(&p, rc, message_size(&m));
    }
    peers_close(&p);
    free(body);
    return NULL;
}

static void take_in_order(order_state *o, unsigned senders)
{
    uint8_t *body = allocate(PATH_BYTES + 200), *scratch = allocate(PATH_BYTES + 200);
    unsigned next[SENDERS] = {0};
    ring *r = &o->to->seg.inbox;
    for (unsigned n = 0; n < senders * o->messages;) {
        ring_reader reader;
        record rec;
        message m;
        CHECK(ring_enter(r, &reader, true) == RING_OK, "an open inbox");
        for (; ring_front(&reader, &rec) == RING_OK; n++) {
            ring_read(r, &rec, body, &m);
            uint64_t number = check_message(&m, 200, scratch);
            CHECK((uint32_t)number == next[number >> 32], "message %u of sender %u, after %u", (uint32_t)number,
                  (unsigned)(number >> 32), next[number >> 32]);
            next[number >> 32]++;
            ring_pop(&reader, &rec);
        }
        ring_leave(&reader);
        ring_wait_readable(r, soon(5 * MS));
    }
    free(body);
    free(scratch);
}

/* Each round: some threads send while nobody is connected; then a pipe opens in the midst of it. */
static void test_pending_order(void)
{
    ring_set_spin(20000);
    for (unsigned round = 0; round < scaled(60); round++) {
        order_state o = {.messages = 100};
        pthread_t threads[SENDERS];
        rng g = rng_new(7000 + round);
        o.own = make_node(RING_MIN_BYTES, NODE_BYTES, 40);
        o.to = make_node(NODE_BYTES, RING_MIN_BYTES, 1);
        atomic_store(&directory[1], o.to);
        for (unsigned i = 0; i < SENDERS; i++)
            threads[i] = start(send_in_order, &o);
        nap((int64_t)rng_below(&g, 400000));
        open_pipe(&o.own->seg, 1, 1);
        take_in_order(&o, SENDERS);
        for (unsigned i = 0; i < SENDERS; i++)
            join(threads[i]);
        CHECK(ring_depth(&o.to->seg.inbox) == 0 && ring_depth(&o.own->seg.pending) == 0, "nothing is left");
        CHECK(o.own->seg.slots[1].sent == SENDERS * o.messages, "the pipe counts %llu sent",
              (unsigned long long)o.own->seg.slots[1].sent);
        free_node(o.own);
        free_node(o.to);
    }
}

/* ---- a pipe that opens while a sender is about to put its message into pending ---- */

typedef struct {
    node *own, *to;
} gate_state;

static void *open_the_pipe(void *arg)
{
    gate_state *o = arg;
    peers p;
    open_pipe(&o->own->seg, 1, 1);
    peers_open(&p, &o->own->seg);
    CHECK(flush_pending(p.seg, p.list, &p.turn, true) == RING_OK, "an empty inbox");
    peers_close(&p);
    return NULL;
}

static void *send_through_gate(void *arg)
{
    gate_state *o = arg;
    message m = {.ttl = 1, .content = (const uint8_t *)"x", .length = 1};
    peers p;
    peers_open(&p, &o->own->seg);
    int rc;
    while ((rc = send_to_one(p.seg, p.list, &p.turn, &m, true)) != RING_OK)
        after_failure(&p, rc, message_size(&m));
    peers_close(&p);
    return NULL;
}

/* Both wait for the lock, the opener in front. The sender has seen no pipe: its message must not stay in pending, where
 * nobody looks again. */
static void test_gate(void)
{
    for (unsigned round = 0; round < scaled(20); round++) {
        gate_state o = {make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8), make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8)};
        ring_writer gate;
        atomic_store(&directory[1], o.to);
        CHECK(ring_begin(&o.own->seg.pending, &gate, true) == RING_OK, "a fresh ring");
        pthread_t opener = start(open_the_pipe, &o);
        nap(2 * MS);
        pthread_t sender = start(send_through_gate, &o);
        nap(2 * MS);
        ring_end(&gate);
        join(opener);
        join(sender);
        CHECK(ring_depth(&o.own->seg.pending) == 0, "a message is pending behind an open pipe");
        CHECK(ring_depth(&o.to->seg.inbox) == 1, "the message has not come");
        free_node(o.own);
        free_node(o.to);
    }
}

/* ---- closing wakes all who wait ---- */

typedef struct {
    test_ring empty, full;
    node *own, *to;
} close_state;

static void *wait_for_record(void *arg)
{
    close_state *c = arg;
    CHECK(ring_wait_readable(&c->empty.r, NEVER) == WAIT_WOKEN, "a wait that a close ends");
    CHECK(pop_one(&c->empty.r) == RING_CLOSED, "closed");
    return NULL;
}

static void *wait_for_room(void *arg)
{
    close_state *c = arg;
    CHECK(ring_wait_room(&c->full.r, &(message){.length = 4000 - META_SIZE}, NEVER) == WAIT_WOKEN,
          "a wait that a close ends");
    CHECK(ring_is_closed(&c->full.r), "closed");
    return NULL;
}

static void *wait_for_peer(void *arg)
{
    close_state *c = arg;
    peers p;
    peers_open(&p, &c->own->seg);
    CHECK(wait_to_send(p.seg, p.list, 0, &(message){.length = 4000 - META_SIZE}, NEVER) == RING_OK,
          "a wait that a close ends");
    CHECK(segment_is_closed(p.seg), "closed");
    peers_close(&p);
    return NULL;
}

static void fill(ring *r)
{
    for (unsigned i = 0; push_number(r, i, 300) == RING_OK; i++)
        ;
}

static void test_close_wakes(void)
{
    static void *(*const waits[])(void *) = {wait_for_record, wait_for_record, wait_for_room,
                                             wait_for_room,   wait_for_peer,   wait_for_peer};
    enum { WAITS = sizeof waits / sizeof waits[0] };
    ring_set_spin(0);
    for (unsigned round = 0; round < scaled(20); round++) {
        close_state c;
        pthread_t threads[WAITS];
        rng g = rng_new(8000 + round);
        make_ring(&c.empty, 4096, ANY);
        make_ring(&c.full, 4096, ANY);
        c.own = make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8);
        c.to = make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8);
        atomic_store(&directory[1], c.to);
        fill(&c.full.r);
        fill(&c.to->seg.inbox);
        open_pipe(&c.own->seg, 1, 1);
        for (unsigned i = 0; i < WAITS; i++)
            threads[i] = start(waits[i], &c);
        nap((int64_t)rng_below(&g, 3 * MS));
        int64_t began = platform_now();
        ring_close(&c.empty.r);
        ring_close(&c.full.r);
        segment_close(&c.own->seg);
        for (unsigned i = 0; i < WAITS; i++)
            join(threads[i]);
        CHECK(platform_now() - began < 1000 * MS, "waits went on after the close");
        free_ring(&c.empty);
        free_ring(&c.full);
        free_node(c.own);
        free_node(c.to);
    }
}

/* ---- the pipe table ---- */

static void test_pipe_table(void)
{
    node *own = make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8);
    segment *seg = &own->seg;
    uint32_t ids[SLOTS_MOST];
    for (unsigned i = 0; i < SLOTS_MOST; i++)
        ids[i] = pipe_reserve(seg);
    for (unsigned i = 0; i < SLOTS_MOST; i++) {
        CHECK(ids[i] && pipe_find(seg, ids[i]), "pipe %u", ids[i]);
        uint32_t version = segment_version(seg);
        pipe_open(seg, ids[i], "x", 1, PIPE_TO_INBOX);
        CHECK(segment_version(seg) != version, "opening a pipe is a new version");
    }
    /* The slot is used again, but not its id, for as long as generations last. */
    uint32_t before = ids[5];
    for (unsigned i = 0; i < 65535; i++) {
        uint32_t version = segment_version(seg);
        pipe_release(seg, before);
        CHECK(!pipe_find(seg, before) && segment_version(seg) != version, "pipe %u is gone", before);
        before = pipe_reserve(seg);
        CHECK((before & 0xffff) == (ids[5] & 0xffff) && before != ids[5], "pipe %x after %u others", before, i);
    }
    CHECK(!pipe_find(seg, 0) && !pipe_find(seg, 0x10000) && !pipe_find(seg, 0xffff), "no pipes");
    pipe_release(seg, 0xabcd1234);
    pipe_open(seg, 0xabcd1234, "x", 1, PIPE_TO_INBOX);
    free_node(own);
}

/* ---- codec ---- */

static void codec_round(rng *g, uint64_t number)
{
    static uint8_t body[PATH_BYTES + 70000];
    uint32_t longest = rng_one_in(g, 50) ? 70000 : 300;
    message m, out;
    make_message(number, longest, body, &m);
    m.flags = (uint8_t)rng_next(g);
    size_t size = (size_t)message_size(&m);
    uint8_t *wire = allocate(size); /* of just that size: whoever reads beyond it is caught */
    size_t head = message_encode_head(wire, &m);
    CHECK(head == size - m.length, "the head is %zu of %zu bytes", head, size);
    if (m.length)
        memcpy(wire + head, m.content, m.length);
    CHECK(message_decode(wire, size, &out) == size, "a whole message");
    CHECK(out.flags == m.flags && out.ttl == m.ttl && out.hops == m.hops && out.distance == m.distance &&
              out.length == m.length,
          "the Meta");
    CHECK(memcmp(out.source, body, size - META_SIZE) == 0, "paths and content");
    size_t step = size > 2000 ? 97 : 1;
    for (size_t cut = 0; cut < size; cut += step) {
        uint8_t *part = allocate(cut);
        memcpy(part, wire, cut);
        CHECK(message_decode(part, cut, &out) == 0, "%zu of %zu bytes", cut, size);
        CHECK(cut < META_SIZE ? out.length == 0 : out.length == m.length, "the length in %zu bytes", cut);
        free(part);
    }
    free(wire);
}

static void test_codec(void)
{
    rng g = rng_new(9000);
    for (unsigned i = 0; i < scaled(400); i++)
        codec_round(&g, rng_next(&g));
    for (unsigned i = 0; i < scaled(20000); i++) {
        uint8_t noise[64];
        message out;
        for (unsigned k = 0; k < sizeof noise; k++)
            noise[k] = rng_one_in(&g, 2) ? 0 : (uint8_t)rng_next(&g);
        size_t size = (size_t)rng_below(&g, sizeof noise + 1);
        size_t used = message_decode(noise, size, &out);
        CHECK(used <= size && (used == 0 || used == message_size(&out)), "%zu of %zu bytes of noise", used, size);
    }
}

/* ---- memory that contradicts itself ---- */

/* Something between a slip and plain noise. */
static uint64_t garbage(rng *g, uint64_t now)
{
    switch (rng_below(g, 6)) {
    case 0:
        return rng_next(g);
    case 1:
        return now + rng_below(g, 9) - 4;
    case 2:
        return now + ((rng_below(g, 9) - 4) << 32);
    case 3:
        return now ^ ((uint64_t)1 << rng_below(g, 64));
    case 4:
        return (uint64_t)-1 >> rng_below(g, 64);
    default:
        return 0;
    }
}

/* All but the locks: they are what the C library makes of them. */
static void spoil_header(ring_shared *s, rng *g)
{
    switch (rng_below(g, 14)) {
    case 0:
        s->head = garbage(g, s->head);
        break;
    case 1:
        s->tail = garbage(g, s->tail);
        break;
    case 2:
        s->seen_head = garbage(g, s->seen_head);
        break;
    case 3:
        s->seen_tail = garbage(g, s->seen_tail);
        break;
    case 4:
        s->reserved = garbage(g, s->reserved);
        break;
    case 5:
        s->capacity = garbage(g, s->capacity);
        break;
    case 6:
        s->limit = (uint32_t)garbage(g, s->limit);
        break;
    case 7:
        s->magic = (uint32_t)garbage(g, s->magic);
        break;
    case 8:
        s->layout = (uint32_t)garbage(g, s->layout);
        break;
    case 9:
        s->pushed = garbage(g, s->pushed);
        break;
    case 10:
        s->popped = garbage(g, s->popped);
        break;
    case 11:
        s->readable.seq = (uint32_t)garbage(g, s->readable.seq);
        s->room.seq = (uint32_t)garbage(g, s->room.seq);
        break;
    case 12:
        s->readable.armed = (uint32_t)garbage(g, s->readable.armed);
        s->room.armed = (uint32_t)garbage(g, s->room.armed);
        break;
    default:
        if (rng_one_in(g, 8))
            s->closed = 1;
    }
}

/* A head that agrees with itself, only not with the ring: at the first record, or anywhere. */
static void forge_record(test_ring *t, rng *g)
{
    uint64_t at = (t->shared->head >> 32) * RING_UNIT;
    if (rng_one_in(g, 4))
        at = rng_below(g, t->r.units) * RING_UNIT;
    uint8_t *head = t->data + (at & (t->r.capacity - 1));
    message m = {.ttl = 1, .length = (uint32_t)garbage(g, t->r.capacity)};
    uint32_t units = units_of(&m);
    memcpy(head, &units, sizeof units);
    meta_encode(head + 8, &m);
}

static void spoil_data(test_ring *t, rng *g)
{
    if (rng_one_in(g, 4)) {
        forge_record(t, g);
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        /* Word by word, mostly at the beginning of units: there stand the heads of records. */
        uint64_t at = rng_below(g, t->r.capacity / RING_UNIT) * RING_UNIT + 4 * rng_below(g, 4);
        uint32_t now;
        memcpy(&now, t->data + at, 4);
        now = (uint32_t)garbage(g, now);
        memcpy(t->data + at, &now, 4);
    }
}

static bool is_error_of_rings(int rc)
{
    return rc >= RING_OK && rc <= RING_CORRUPT;
}

static int take_spoilt(ring *r, uint8_t *body, uint64_t body_size)
{
    ring_reader reader;
    record rec;
    message m;
    int rc = ring_enter(r, &reader, true);
    if (rc != RING_OK)
        return rc;
    /* Each record moves on by at least a unit, and what is wrong is thrown away. */
    uint64_t most = 2 * r->units + 8;
    while ((rc = ring_front(&reader, &rec)) == RING_OK && most--) {
        CHECK(record_body_size(&rec) <= body_size, "a record of %llu bytes",
              (unsigned long long)record_body_size(&rec));
        ring_read(r, &rec, body, &m);
        ring_pop(&reader, &rec);
    }
    CHECK(rc != RING_OK, "a ring without end");
    ring_leave(&reader);
    return rc;
}

static void read_spoilt_frozen(const ring *r, uint8_t *body)
{
    record rec;
    message m;
    uint64_t at = ring_frozen_start(r), most = 2 * r->units + 8;
    while (ring_frozen_next(r, &at, &rec) == RING_OK && most--)
        ring_read(r, &rec, body, &m);
    CHECK(most + 1, "a frozen ring without end");
}

static void use_spoilt(test_ring *t, rng *g, uint8_t *body)
{
    int rc = RING_OK;
    switch (rng_below(g, 6)) {
    case 0:
    case 1:
        rc = push_number(&t->r, rng_next(g), rng_one_in(g, 4) ? 3000 : 100);
        break;
    case 2:
        rc = take_spoilt(&t->r, body, t->r.capacity);
        break;
    case 3:
        rc = pop_one(&t->r);
        break;
    case 4:
        read_spoilt_frozen(&t->r, body);
        break;
    default:
        ring_wait_readable(&t->r, soon(1000));
        ring_wait_room(&t->r, &(message){.length = 100 - META_SIZE}, soon(1000));
        ring_depth(&t->r);
        ring_used(&t->r);
    }
    CHECK(is_error_of_rings(rc), "a spoilt ring gave %d", rc);
}

static void test_spoilt_ring(void)
{
    test_ring t;
    uint8_t *body = allocate(4096);
    make_ring(&t, 4096, ANY);
    ring_set_spin(0);
    for (unsigned i = 0; i < scaled(6000); i++) {
        rng g = rng_new(10000 + i);
        attach_ring(&t, 4096, rng_one_in(&g, 4) ? 5 : ANY, t.r.fd);
        for (unsigned k = 0; k < 40; k++) {
            if (rng_one_in(&g, 4))
                rng_one_in(&g, 2) ? spoil_header(t.shared, &g) : spoil_data(&t, &g);
            use_spoilt(&t, &g, body);
        }
        ring other;
        int rc = ring_attach(&other, t.shared, t.data, 4096, t.shared, t.r.fd);
        CHECK(rc == RING_OK || rc == RING_CORRUPT, "attaching to a spoilt ring gave %d", rc);
        CHECK(rc != RING_OK || other.capacity == 4096, "attached to a ring of a size that is not there");
    }
    free(body);
    free_ring(&t);
}

static void spoil_segment(segment_header *s, rng *g)
{
    switch (rng_below(g, 6)) {
    case 0:
        s->size = garbage(g, s->size);
        break;
    case 1:
        s->inbox_capacity = garbage(g, s->inbox_capacity);
        break;
    case 2:
        s->pending_capacity = garbage(g, s->pending_capacity);
        break;
    case 3:
        s->inbox.capacity = garbage(g, s->inbox.capacity);
        break;
    case 4:
        s->pending.capacity = garbage(g, s->pending.capacity);
        break;
    default:
        s->magic = (uint32_t)garbage(g, s->magic);
    }
}

static void test_spoilt_segment(void)
{
    node *n = make_node(RING_MIN_BYTES, NODE_BYTES, 8);
    for (unsigned i = 0; i < scaled(2000); i++) {
        rng g = rng_new(20000 + i);
        segment_header *s = n->seg.shared;
        CHECK(make_segment_of(s, n->seg.fd, RING_MIN_BYTES, 8, NODE_BYTES, 8), "a fresh segment");
        unsigned times = 1 + (unsigned)rng_below(&g, 3);
        while (times--)
            spoil_segment(s, &g);
        segment other;
        int rc = segment_attach(&other, s, n->size, n->seg.fd);
        CHECK(rc == RING_OK || rc == RING_CORRUPT, "attaching to a spoilt segment gave %d", rc);
        if (rc != RING_OK)
            continue;
        uint64_t end = (uint64_t)(other.pending.data - (uint8_t *)s) + other.pending.capacity;
        CHECK(end <= n->size, "attached to %llu bytes of %llu", (unsigned long long)end, (unsigned long long)n->size);
    }
    free_node(n);
}

/* Sends to peers whose headers and data are noise; gives up waiting after a moment. */
static void test_spoilt_peers(void)
{
    uint8_t *body = allocate(PATH_BYTES + 3000);
    message m;
    ring_set_spin(0);
    for (unsigned i = 0; i < scaled(400); i++) {
        rng g = rng_new(30000 + i);
        node *own = make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8);
        unsigned n = 1 + (unsigned)rng_below(&g, 3);
        peers p;
        for (unsigned k = 1; k <= n; k++)
            atomic_store(&directory[k], make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8));
        peers_open(&p, &own->seg);
        for (unsigned k = 0; k < 60; k++) {
            node *other = atomic_load(&directory[1 + rng_below(&g, n)]);
            test_ring t = {.r = other->seg.inbox, .shared = &other->seg.shared->inbox, .data = other->seg.inbox.data};
            if (k == 5)
                for (unsigned j = 1; j <= n; j++)
                    open_pipe(&own->seg, j, j);
            if (rng_one_in(&g, 4))
                rng_one_in(&g, 2) ? spoil_header(t.shared, &g) : spoil_data(&t, &g);
            if (rng_one_in(&g, 4))
                take_spoilt(&other->seg.inbox, body, RING_MIN_BYTES);
            make_message(k, 600, body, &m);
            int rc = send_one_somehow(&p, &m, &g, true);
            CHECK(is_error_of_rings(rc) || rc == SEND_STALE || rc == SEND_NO_PATH, "sending gave %d", rc);
            if (rc == RING_FULL)
                wait_to_send(p.seg, p.list, 0, &m, soon(1000));
            peers_update(&p);
        }
        peers_close(&p);
        free_node(own);
        for (unsigned k = 1; k <= n; k++)
            free_node(atomic_exchange(&directory[k], NULL));
    }
    free(body);
}

/* ---- one sender, two peers: a small one and a large one ---- */

typedef struct {
    node *own, *small, *large;
    peers p;
} pair;

static void pair_open(pair *k)
{
    k->own = make_node(RING_MIN_BYTES, 65536, 64);
    k->small = make_node(RING_MIN_BYTES, RING_MIN_BYTES, 1);
    k->large = make_node(65536, RING_MIN_BYTES, 1);
    atomic_store(&directory[1], k->small);
    atomic_store(&directory[2], k->large);
    ring_set_spin(0);
    peers_open(&k->p, &k->own->seg);
}

static void pair_connect(pair *k)
{
    open_pipe(&k->own->seg, 1, 1);
    open_pipe(&k->own->seg, 2, 2);
    peers_update(&k->p);
}

static void pair_close(pair *k)
{
    peers_close(&k->p);
    free_node(k->own);
    free_node(k->small);
    free_node(k->large);
}

static message plain(uint32_t length)
{
    static const uint8_t zeros[65536];
    return (message){.ttl = 1, .content = zeros, .length = length};
}

/* A row may hold messages that only some of the peers can take. */
static void test_unequal_row(void)
{
    pair k;
    unsigned done = 0;
    message row[8];
    pair_open(&k);
    pair_connect(&k);
    for (unsigned i = 0; i < 8; i++)
        row[i] = plain(i % 2 ? 6000 : 10);
    int rc = send_row(k.p.seg, k.p.list, &k.p.turn, row, 8, &done, true);
    CHECK(rc == RING_OK && done == 8, "%u of 8 were sent, then %d", done, rc);
    pair_close(&k);
}

/* Room in a peer that can never take the message is none: the wait must sleep, not return at once. */
static void test_unequal_wait(void)
{
    pair k;
    pair_open(&k);
    pair_connect(&k);
    fill(&k.large->seg.inbox);
    message m = plain(6000);
    int rc = send_to_one(k.p.seg, k.p.list, &k.p.turn, &m, true);
    CHECK(rc == RING_FULL, "sending gave %d", rc);
    rc = wait_to_send(k.p.seg, k.p.list, 0, &m, soon(20 * MS));
    CHECK(rc == SEND_TIMEOUT, "waiting gave %d", rc);
    pair_close(&k);
}

/* The same when the large message is pending, and goes first. */
static void test_unequal_pending(void)
{
    pair k;
    pair_open(&k);
    message large = plain(6000), little = plain(10);
    CHECK(send_to_one(k.p.seg, k.p.list, &k.p.turn, &large, true) == RING_OK, "nobody is connected");
    pair_connect(&k);
    fill(&k.large->seg.inbox);
    int rc = send_to_one(k.p.seg, k.p.list, &k.p.turn, &little, true);
    CHECK(rc == RING_FULL, "sending gave %d", rc);
    rc = wait_to_send(k.p.seg, k.p.list, 0, &little, soon(20 * MS));
    CHECK(rc == SEND_TIMEOUT, "waiting gave %d", rc);
    pair_close(&k);
}

/* Room for the first of many pending messages is enough to go on. */
static void test_pending_wait(void)
{
    pair k;
    pair_open(&k);
    message m = plain(100);
    for (unsigned i = 0; i < 60; i++)
        CHECK(send_to_one(k.p.seg, k.p.list, &k.p.turn, &m, true) == RING_OK, "nobody is connected");
    open_pipe(&k.own->seg, 1, 1);
    peers_update(&k.p);
    CHECK(send_to_one(k.p.seg, k.p.list, &k.p.turn, &m, true) == RING_FULL, "more is pending than has room");
    for (unsigned i = 0; i < 15; i++)
        CHECK(pop_one(&k.small->seg.inbox) == RING_OK, "a full inbox");
    int rc = wait_to_send(k.p.seg, k.p.list, 0, &m, soon(20 * MS));
    CHECK(rc == RING_OK, "there is room for some, and waiting gave %d", rc);
    pair_close(&k);
}

/* Once nobody waits for room, consumers stop making system calls for it. */
static void test_room_disarms(void)
{
    test_ring t;
    make_ring(&t, 4096, ANY);
    fill(&t.r);
    ring_set_spin(0);
    CHECK(ring_wait_room(&t.r, &(message){.length = 4000 - META_SIZE}, soon(MS)) == WAIT_TIMEOUT, "a full ring");
    while (pop_one(&t.r) == RING_OK)
        ;
    uint32_t seq = t.shared->room.seq;
    CHECK(push_number(&t.r, 0, 8) == RING_OK && pop_one(&t.r) == RING_OK, "an empty ring");
    CHECK(t.shared->room.seq == seq, "a pop woke, though nobody waits for room");
    free_ring(&t);
}

/* No choice between peers goes on for ever because one of them is spoilt. */
static void test_spoilt_peer_loops(void)
{
    pair k;
    pair_open(&k);
    pair_connect(&k);
    give_time(5);
    ring_shared *s = &k.small->seg.shared->inbox;
    s->tail += (uint64_t)200 << 32;
    segment_close(&k.large->seg);
    message m = plain(3000);
    int rc = send_to_one(k.p.seg, k.p.list, &k.p.turn, &m, true);
    CHECK(rc == RING_FULL || rc == RING_CORRUPT, "sending gave %d", rc);
    pair_close(&k);
}

/* A peer can write anywhere in the segment, so nothing there may lead out of it. */
static void test_spoilt_table(void)
{
    node *own = make_node(RING_MIN_BYTES, RING_MIN_BYTES, 8);
    for (unsigned i = 0; i < 1000; i++) {
        rng g = rng_new(40000 + i);
        own->seg.shared->high = (uint32_t)garbage(&g, 3);
        own->seg.shared->free_from = (uint32_t)garbage(&g, 3);
        uint32_t id = pipe_reserve(&own->seg);
        CHECK((id & 0xffff) < PIPE_SLOTS, "pipe %x", id);
        if (id)
            pipe_release(&own->seg, id);
    }
    free_node(own);
}

/* ---- */

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"codec", test_codec},
    {"limits", test_limits},
    {"rewind", test_rewind},
    {"pipe table", test_pipe_table},
    {"spoilt ring", test_spoilt_ring},
    {"spoilt segment", test_spoilt_segment},
    {"spoilt peers", test_spoilt_peers},
    {"traffic", test_traffic},
    {"wake", test_wake},
    {"close wakes", test_close_wakes},
    {"pending order", test_pending_order},
    {"gate", test_gate},
    {"churn", test_churn},
    {"unequal row", test_unequal_row},
    {"unequal wait", test_unequal_wait},
    {"unequal pending", test_unequal_pending},
    {"pending wait", test_pending_wait},
    {"room disarms", test_room_disarms},
    {"spoilt peer loops", test_spoilt_peer_loops},
    {"spoilt table", test_spoilt_table},
};

int main(int argc, char **argv)
{
    scale = argc > 1 ? atof(argv[1]) : 1;
    test_seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    for (unsigned i = 0; scale > 0 && i < sizeof tests / sizeof tests[0]; i++) {
        if (argc > 3 && strcmp(argv[3], tests[i].name) != 0)
            continue;
        run_test(tests[i].name, tests[i].run, 120);
    }
    return 0;
}
