/* The arena: what is free, threads that work on it, processes that are killed with it in hand, corrupt memory. Built
 * with -DCRASH_POINTS.
 *
 *   arena path/to/arena.c [scale [seed [test]]] */
#define _GNU_SOURCE /* SEEK_DATA */
#include "native.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>

static double scale = 1;

static unsigned scaled(unsigned n)
{
    double many = n * scale;
    return many < 1 ? 1 : (unsigned)many;
}

/* It takes a lock for held for ever whose holder died, whatever becomes of it. */
#ifdef __SANITIZE_THREAD__
#define IS_THREAD_SANITIZER true
#else
#define IS_THREAD_SANITIZER false
#endif

static uint32_t units_of(uint32_t length)
{
    return length ? (length - 1) / ARENA_UNIT + 1 : 1;
}

/* ---- buddy: against a tree that counts the taken units below each part ---- */

typedef struct {
    uint32_t unit, order;
} part;

typedef struct {
    buddy b;
    uint64_t *words, *fresh;
    uint32_t *taken[BUDDY_ORDERS];
    part *parts; /* that are taken */
    uint32_t n;
} region;

static void region_open(region *r, uint32_t units)
{
    size_t size = (size_t)buddy_words(units) * 8;
    r->words = allocate(size);
    r->fresh = allocate(size);
    r->parts = allocate(units * sizeof(part));
    r->n = 0;
    buddy_attach(&r->b, r->words, units);
    for (uint32_t order = 0; order <= r->b.top; order++)
        r->taken[order] = allocate((units >> order) * sizeof(uint32_t));
    memset(r->words, 0x5a, size);
    buddy_reset(&r->b);
    memcpy(r->fresh, r->words, size);
}

static void region_close(region *r)
{
    for (uint32_t order = 0; order <= r->b.top; order++)
        free(r->taken[order]);
    free(r->words);
    free(r->fresh);
    free(r->parts);
}

static bool is_all_free(const region *r, uint32_t unit, uint32_t order)
{
    return r->taken[order][unit >> order] == 0;
}

/* The order of the largest free part around a unit. */
static uint32_t free_order_of(const region *r, uint32_t unit)
{
    uint32_t found = BUDDY_NONE;
    for (uint32_t order = 0; order <= r->b.top && is_all_free(r, unit, order); order++)
        found = order;
    return found;
}

/* The lowest part of the smallest order that does. */
static uint32_t expected_unit(const region *r, uint32_t wanted)
{
    for (uint32_t order = wanted; order <= r->b.top; order++)
        for (uint32_t unit = 0; unit < r->b.units; unit += (uint32_t)1 << order)
            if (is_all_free(r, unit, order) && free_order_of(r, unit) == order)
                return unit;
    return BUDDY_NONE;
}

static void mark(region *r, uint32_t unit, uint32_t order, bool is_taken)
{
    uint32_t change = is_taken ? (uint32_t)1 << order : (uint32_t)0 - ((uint32_t)1 << order);
    for (uint32_t o = order; o <= r->b.top; o++)
        r->taken[o][unit >> o] += change;
    for (uint32_t o = 0; o < order; o++)
        for (uint32_t i = unit >> o; i < (unit + ((uint32_t)1 << order)) >> o; i++)
            r->taken[o][i] = is_taken ? (uint32_t)1 << o : 0;
}

static void note_taken(region *r, uint32_t unit, uint32_t order)
{
    CHECK(unit + ((uint32_t)1 << order) <= r->b.units, "unit %u of order %u lies outside", unit, order);
    CHECK((unit & (((uint32_t)1 << order) - 1)) == 0, "unit %u of order %u", unit, order);
    CHECK(is_all_free(r, unit, order), "unit %u of order %u is taken already", unit, order);
    mark(r, unit, order, true);
    r->parts[r->n++] = (part){unit, order};
}

/* Small parts mostly, so that many are taken. */
static uint32_t random_order(const region *r, rng *g)
{
    uint32_t most = rng_one_in(g, 4) ? r->b.top + 1 : 3;
    return (uint32_t)rng_below(g, most);
}

static void take_one(region *r, rng *g)
{
    uint32_t order = random_order(r, g);
    uint32_t expected = expected_unit(r, order);
    uint32_t unit = buddy_take(&r->b, order);
    CHECK(unit == expected, "order %u: unit %u instead of %u", order, unit, expected);
    if (unit != BUDDY_NONE)
        note_taken(r, unit, order);
}

static void take_one_at(region *r, rng *g)
{
    uint32_t order = random_order(r, g);
    uint32_t unit = (uint32_t)rng_below(g, r->b.units >> order) << order;
    bool expected = is_all_free(r, unit, order);
    CHECK(buddy_take_at(&r->b, unit, order) == expected, "unit %u of order %u: free %d", unit, order, expected);
    if (expected)
        note_taken(r, unit, order);
}

static void give_one(region *r, rng *g)
{
    if (!r->n)
        return;
    uint32_t i = (uint32_t)rng_below(g, r->n);
    part p = r->parts[i];
    r->parts[i] = r->parts[--r->n];
    mark(r, p.unit, p.order, false);
    buddy_give(&r->b, p.unit, p.order);
}

static void check_one(const region *r, rng *g)
{
    uint32_t unit = (uint32_t)rng_below(g, r->b.units);
    uint32_t expected = free_order_of(r, unit);
    uint32_t order = buddy_free_order(&r->b, unit);
    CHECK(order == expected, "unit %u is free in order %d instead of %d", unit, (int)order, (int)expected);
}

static void use_region(uint32_t units, unsigned steps)
{
    region r;
    rng g = rng_new(units);
    region_open(&r, units);
    for (unsigned i = 0; i < steps; i++) {
        bool fills = i / 100 % 2 == 0; /* mostly taken for a while, then mostly given */
        unsigned dice = (unsigned)rng_below(&g, 8);
        if (dice < (fills ? 5u : 2u))
            take_one(&r, &g);
        else if (dice < (fills ? 7u : 3u))
            take_one_at(&r, &g);
        else
            give_one(&r, &g);
        check_one(&r, &g);
    }
    while (r.n)
        give_one(&r, &g);
    CHECK(buddy_free_order(&r.b, 0) == r.b.top, "what is free is in pieces");
    CHECK(memcmp(r.words, r.fresh, (size_t)buddy_words(units) * 8) == 0, "all is free, and the bitmaps are not as new");
    region_close(&r);
}

static void test_buddy(void)
{
    unsigned times = IS_THREAD_SANITIZER ? 1 : 10; /* there are no threads here */
    use_region(64, scaled(3000 * times));
    use_region(1024, scaled(2000 * times));
    use_region(131072, scaled(200 * times));
}

/* Random words, single bits, all, none. */
static uint64_t garbage(rng *g, uint64_t now)
{
    switch (rng_below(g, 6)) {
    case 0:
        return rng_next(g);
    case 1:
        return now + rng_below(g, 9) - 4;
    case 2:
        return now ^ (uint64_t)1 << rng_below(g, 64);
    case 3:
        return (uint64_t)-1 >> rng_below(g, 64);
    case 4:
        return rng_next(g) & 0x0001000100010001u * 0x3ff;
    default:
        return 0;
    }
}

static void spoil_words(uint64_t *words, uint64_t n, unsigned most, rng *g)
{
    for (uint64_t i = rng_below(g, most); i > 0; i--) {
        uint64_t *word = &words[rng_below(g, n)];
        *word = garbage(g, *word);
    }
}

static void use_spoilt_region(uint32_t units, unsigned rounds)
{
    region r;
    region_open(&r, units);
    for (unsigned i = 0; i < rounds; i++) {
        rng g = rng_new(1000 + i);
        buddy_reset(&r.b);
        for (unsigned k = 0; k < 40; k++) {
            if (rng_one_in(&g, 4))
                spoil_words(r.words, rng_one_in(&g, 2) ? BUDDY_ORDERS : buddy_words(units), 40, &g);
            uint32_t order = random_order(&r, &g);
            uint32_t unit = (uint32_t)rng_below(&g, units >> order) << order;
            switch (rng_below(&g, 4)) {
            case 0:
                buddy_give(&r.b, unit, order);
                break;
            case 1:
                buddy_take_at(&r.b, unit, order);
                break;
            case 2:
                order = buddy_free_order(&r.b, unit);
                CHECK(order == BUDDY_NONE || order <= r.b.top, "order %u", order);
                break;
            default:
                unit = buddy_take(&r.b, order);
                CHECK(unit == BUDDY_NONE || (unit < units && (unit & (((uint32_t)1 << order) - 1)) == 0),
                      "unit %u of order %u of %u", unit, order, units);
            }
        }
    }
    region_close(&r);
}

static void test_spoilt_buddy(void)
{
    use_spoilt_region(64, scaled(4000));
    use_spoilt_region(1024, scaled(4000));
    use_spoilt_region(131072, scaled(1000));
}

/* ---- an arena in memory with guard pages around it ---- */

static const segment_id own_id = {1, 1}, other_id = {1, 2}, arena_id = {1, 3};

static arena field;
static int file; /* of its memory */
static uint64_t data_start; /* of the data in it */

static void fresh_field(uint64_t limit)
{
    int fd = platform_reserve_needs_fd() ? file : -1;
    CHECK(arena_init(field.base, fd, limit, arena_id) == RING_OK, "no arena");
    CHECK(arena_attach(&field, field.base, arena_size(limit), fd) == RING_OK, "a fresh arena");
    CHECK(is_same_segment(field.id, arena_id), "a fresh arena");
}

static void open_field(uint64_t limit)
{
    uint64_t size = arena_size(limit);
    file = (int)syscall(SYS_memfd_create, "arena", 0u);
    CHECK(file >= 0 && ftruncate(file, (off_t)size) == 0, "no memory");
    uint8_t *base = mmap(NULL, (size_t)size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED, "no memory");
    field.base =
        mmap(base + PAGE, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, 0);
    CHECK(field.base != MAP_FAILED, "no memory");
    fresh_field(limit);
    data_start = (uint64_t)(field.data - (uint8_t *)field.base);
    CHECK(data_start + field.bytes == size, "%llu bytes", (unsigned long long)size);
}

static void close_field(void)
{
    munmap((uint8_t *)field.base - PAGE, (size_t)(data_start + field.bytes) + 2 * PAGE);
    close(file);
}

/* Bytes of the arena's data that have memory behind them. */
static uint64_t resident(void)
{
    uint64_t sum = 0;
    off_t at = (off_t)data_start;
    while ((at = lseek(file, at, SEEK_DATA)) >= 0) {
        off_t end = lseek(file, at, SEEK_HOLE);
        sum += (uint64_t)(end - at);
        at = end;
    }
    CHECK(errno == ENXIO, "the file does not tell what is in it");
    return sum;
}

static uint64_t file_bytes(void)
{
    struct stat s;
    CHECK(fstat(file, &s) == 0, "no file");
    return (uint64_t)s.st_blocks * 512;
}

static uint64_t used(void)
{
    return atomic_load(&field.shared->used);
}

static uint64_t backed(void)
{
    return atomic_load(&field.shared->backed);
}

/* Nothing is in use, and all that is free is in one piece. Nobody else works on the arena. */
static void check_empty(void)
{
    CHECK(arena_is_empty(&field), "%u references are in use", field.shared->live);
    CHECK(used() == 0 && field.shared->live == 0, "%llu units are used by nobody", (unsigned long long)used());
    for (uint32_t order = 0; order <= field.parts.top; order++)
        CHECK(field.parts.count[order] == (order == field.parts.top), "%llu parts of order %u are free",
              (unsigned long long)field.parts.count[order], order);
    CHECK(buddy_free_order(&field.parts, 0) == field.parts.top, "what is free is in pieces");
    sighting seen;
    CHECK(arena_list(&field, &seen, 1) == 0, "reference %u is in use", seen.index);
}

/* ---- contents: all follows from the number, so that any wrong byte shows ---- */

static void make_page(uint64_t number, uint64_t *page)
{
    uint64_t word = (number + 1) * 0x9e3779b97f4a7c15u;
    for (unsigned i = 0; i < PAGE / 8; i++, word += 0x94d049bb133111ebu)
        page[i] = word;
}

static void fill_content(uint8_t *out, uint32_t length, uint64_t number)
{
    uint64_t page[PAGE / 8];
    make_page(number, page);
    for (uint32_t at = 0; at < length; at += PAGE, page[0]++)
        memcpy(out + at, page, length - at < PAGE ? length - at : PAGE);
}

static void check_content(const uint8_t *content, uint32_t length, uint64_t number)
{
    uint64_t page[PAGE / 8];
    make_page(number, page);
    for (uint32_t at = 0; at < length; at += PAGE, page[0]++)
        CHECK(memcmp(content + at, page, length - at < PAGE ? length - at : PAGE) == 0,
              "content %llu of %u bytes is not what was written, from %u on", (unsigned long long)number, length, at);
}

static uint32_t content_length(rng *g)
{
    unsigned dice = (unsigned)rng_below(g, 16);
    if (dice == 0)
        return ARENA_UNIT * (uint32_t)rng_below(g, 9);
    return (uint32_t)rng_below(g, dice < 10 ? 3000 : dice < 15 ? 2 * ARENA_UNIT : 8 * ARENA_UNIT);
}

static block take_filled(uint32_t length, uint64_t number)
{
    block b;
    int rc = arena_take(&field, length, 1, &b);
    CHECK(rc == RING_OK, "taking %u bytes gave %d", length, rc);
    CHECK(b.length == length && b.data >= field.data && b.data + length <= field.data + field.bytes, "a wild block");
    CHECK(arena_back(&field, &b) == RING_OK, "no memory");
    fill_content(b.data, length, number);
    return b;
}

/* ---- threads against a model ---- */

#define THREADS 4
#define HOLD_MOST 24
#define EXCHANGE_MOST 64
#define ARENA_LIMIT (300 * (uint64_t)ARENA_UNIT + 1)
#define THREADS_LIMIT (60 * (uint64_t)ARENA_UNIT + 1)

typedef struct {
    block b;
    uint64_t number; /* of the content */
} holding;

typedef struct {
    uint64_t name;
    unsigned steps;
    rng g;
    holding held[HOLD_MOST];
    unsigned n;
    unsigned full;
} worker;

/* What is on its way, as if through a ring. */
static struct {
    pthread_mutex_t lock;
    holding sent[EXCHANGE_MOST];
    unsigned n;
} exchange = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Atomic uint64_t next_content;

static holding drop_from(holding *row, unsigned *n, unsigned i)
{
    holding h = row[i];
    row[i] = row[--*n];
    return h;
}

static holding drop_any(worker *w)
{
    return drop_from(w->held, &w->n, (unsigned)rng_below(&w->g, w->n));
}

static void take_content(worker *w)
{
    holding h = {.number = atomic_fetch_add(&next_content, 1)};
    uint32_t length = content_length(&w->g);
    int rc = arena_take(&field, length, w->name, &h.b);
    w->full += rc == RING_FULL;
    if (rc == RING_FULL)
        return;
    CHECK(rc == RING_OK, "taking %u bytes gave %d", length, rc);
    CHECK(arena_back(&field, &h.b) == RING_OK, "no memory");
    fill_content(h.b.data, length, h.number);
    w->held[w->n++] = h;
}

static void share_content(worker *w)
{
    holding from = w->held[rng_below(&w->g, w->n)], h = {.number = from.number};
    CHECK(arena_share(&field, &from.b, w->name, &h.b) == RING_OK, "sharing what is held");
    CHECK(h.b.data == from.b.data && h.b.length == from.b.length && h.b.reference != from.b.reference,
          "a second reference to something else");
    w->held[w->n++] = h;
}

static void check_stale(const block *b, uint64_t name)
{
    block out;
    note n = {arena_id, b->reference, b->generation};
    CHECK(arena_claim(&field, &n, name, &out) == RING_CORRUPT, "a stale reference was claimed");
    CHECK(arena_share(&field, b, name, &out) == RING_CORRUPT, "a stale reference was shared");
    CHECK(arena_address(&field, b->reference, b->generation, name, other_id, WHERE_INBOX, own_id) == RING_CORRUPT,
          "a stale reference was sent");
    arena_release(&field, b); /* whose else it may be now */
}

static void release_content(worker *w)
{
    holding h = drop_any(w);
    check_content(h.b.data, h.b.length, h.number);
    arena_release(&field, &h.b);
    if (rng_one_in(&w->g, 4))
        check_stale(&h.b, w->name);
}

static void send_content(worker *w)
{
    holding h = drop_any(w);
    int rc = arena_address(&field, h.b.reference, h.b.generation, w->name, other_id, WHERE_INBOX, own_id);
    CHECK(rc == RING_OK, "sending what is held gave %d", rc);
    pthread_mutex_lock(&exchange.lock);
    bool room = exchange.n < EXCHANGE_MOST;
    if (room)
        exchange.sent[exchange.n++] = h;
    pthread_mutex_unlock(&exchange.lock);
    if (!room)
        w->held[w->n++] = h;
}

static void receive_content(worker *w)
{
    holding h = {0};
    pthread_mutex_lock(&exchange.lock);
    bool any = exchange.n > 0;
    if (any)
        h = drop_from(exchange.sent, &exchange.n, (unsigned)rng_below(&w->g, exchange.n));
    pthread_mutex_unlock(&exchange.lock);
    if (!any)
        return;
    uint8_t bytes[NOTE_SIZE];
    note n, back;
    n = (note){arena_id, h.b.reference, h.b.generation};
    note_encode(bytes, &n);
    note_decode(bytes, &back);
    uint8_t *data = h.b.data;
    CHECK(arena_claim(&field, &back, w->name, &h.b) == RING_OK, "what was sent cannot be claimed");
    CHECK(h.b.data == data, "another block was claimed");
    check_content(h.b.data, h.b.length, h.number);
    w->held[w->n++] = h;
}

static void *work(void *arg)
{
    worker *w = arg;
    for (unsigned i = 0; i < w->steps; i++) {
        unsigned dice = (unsigned)rng_below(&w->g, 32);
        if (dice == 0)
            arena_trim(&field, rng_below(&w->g, 200), w->name);
        else if (dice == 1)
            arena_rest(&field, w->name);
        else if (dice < 10 && w->n < HOLD_MOST)
            take_content(w);
        else if (dice < 15 && w->n && w->n < HOLD_MOST)
            share_content(w);
        else if (dice < 19 && w->n)
            send_content(w);
        else if (dice < 23 && w->n < HOLD_MOST)
            receive_content(w);
        else if (w->n)
            release_content(w);
    }
    return NULL;
}

/* Adds the block to the model's map of units, unless it was there: then it must be the same content. */
static unsigned map_block(uint64_t *map, const holding *h)
{
    uint32_t units = units_of(h->b.length), first = h->b.unit;
    uint64_t owner = h->number + 1;
    check_content(h->b.data, h->b.length, h->number);
    for (uint32_t i = 0; i < (uint32_t)1 << buddy_order(units); i++)
        CHECK(map[first + i] == (map[first] == owner ? owner : 0), "two contents in unit %u", first + i);
    if (map[first] == owner)
        return 0;
    for (uint32_t i = 0; i < (uint32_t)1 << buddy_order(units); i++)
        map[first + i] = owner;
    return units;
}

/* While all threads rest, the arena and the model agree. */
static void check_model(const worker *workers)
{
    uint64_t *map = allocate(field.units * sizeof *map);
    uint64_t units = 0, live = exchange.n;
    for (unsigned i = 0; i < exchange.n; i++)
        units += map_block(map, &exchange.sent[i]);
    for (unsigned k = 0; k < THREADS; k++) {
        live += workers[k].n;
        for (unsigned i = 0; i < workers[k].n; i++)
            units += map_block(map, &workers[k].held[i]);
    }
    free(map);
    CHECK(used() == units, "%llu units used instead of %llu", (unsigned long long)used(), (unsigned long long)units);
    CHECK(field.shared->live == live, "%u references instead of %llu", field.shared->live, (unsigned long long)live);
    CHECK(units <= (THREADS_LIMIT - 1) / ARENA_UNIT + 1, "%llu units are more than the limit",
          (unsigned long long)units);
    CHECK(resident() == backed() * ARENA_UNIT, "%llu bytes are there, %llu units are known",
          (unsigned long long)resident(), (unsigned long long)backed());
}

static void test_threads(void)
{
    static worker workers[THREADS];
    unsigned full = 0;
    open_field(THREADS_LIMIT);
    for (unsigned k = 0; k < THREADS; k++)
        workers[k] = (worker){.name = 100 + k, .steps = scaled(1000), .g = rng_new(k)};
    for (unsigned round = 0; round < 20; round++) {
        pthread_t threads[THREADS];
        field.shared->rested = 0; /* so that the first call of arena_rest is due */
        for (unsigned k = 0; k < THREADS; k++)
            threads[k] = start(work, &workers[k]);
        for (unsigned k = 0; k < THREADS; k++)
            join(threads[k]);
        check_model(workers);
    }
    for (unsigned k = 0; k < THREADS; k++, full += workers[k - 1].full)
        while (workers[k].n)
            release_content(&workers[k]);
    while (exchange.n) {
        receive_content(&workers[0]);
        release_content(&workers[0]);
    }
    check_empty();
    arena_trim(&field, 0, 1);
    CHECK(backed() == 0 && resident() == 0, "memory is left in an empty arena");
    check_empty();
    CHECK(full || scale < 1, "the limit was never reached");
    close_field();
}

/* ---- memory, the limit, sleepers ---- */

static void test_trim(void)
{
    block held[40];
    open_field(ARENA_LIMIT);
    uint64_t before = file_bytes();
    for (unsigned i = 0; i < 40; i++)
        held[i] = take_filled(1 + i * 5000, i);
    uint64_t full = resident();
    CHECK(full == backed() * ARENA_UNIT && full == used() * ARENA_UNIT, "%llu bytes", (unsigned long long)full);
    arena_trim(&field, 0, 1);
    CHECK(resident() == full, "memory in use was given up");
    for (unsigned i = 0; i < 40; i += 2)
        arena_release(&field, &held[i]);
    arena_trim(&field, used() + 5, 1);
    CHECK(backed() == used() + 5 && resident() == backed() * ARENA_UNIT, "%llu units are kept",
          (unsigned long long)backed());
    arena_trim(&field, 0, 1);
    CHECK(backed() == used() && resident() == used() * ARENA_UNIT, "%llu units are kept", (unsigned long long)backed());
    for (unsigned i = 1; i < 40; i += 2) {
        check_content(held[i].data, held[i].length, i);
        arena_release(&field, &held[i]);
    }
    arena_trim(&field, 3, 1);
    CHECK(backed() == 3, "%llu units are kept", (unsigned long long)backed());
    arena_trim(&field, 0, 1);
    CHECK(resident() == 0, "%llu bytes are kept", (unsigned long long)resident());
    CHECK(file_bytes() <= before + 2 * PAGE, "the file keeps %llu bytes, it began with %llu",
          (unsigned long long)file_bytes(), (unsigned long long)before);
    check_empty();
    close_field();
}

/* What was used lately is kept, for one rest. */
static void test_rest(void)
{
    open_field(ARENA_LIMIT);
    block b = take_filled(10 * ARENA_UNIT, 1);
    arena_release(&field, &b);
    field.shared->rested = 0;
    CHECK(arena_rest(&field, 1), "nothing to give up");
    CHECK(backed() == 10, "%llu units are kept", (unsigned long long)backed());
    CHECK(arena_rest(&field, 1) && backed() == 10, "a rest so soon");
    b = take_filled(2 * ARENA_UNIT, 1);
    arena_release(&field, &b);
    field.shared->rested = 0;
    CHECK(arena_rest(&field, 1) && backed() == 2, "%llu units are kept", (unsigned long long)backed());
    field.shared->rested = 0;
    CHECK(!arena_rest(&field, 1) && backed() == 0, "%llu units are kept", (unsigned long long)backed());
    field.shared->rested = INT64_MIN; /* garbage */
    CHECK(!arena_rest(&field, 1), "memory where there was none");
    field.shared->rested = 0;
    CHECK(!arena_rest(&field, 1), "memory where there was none");
    CHECK(resident() == 0, "%llu bytes are kept", (unsigned long long)resident());
    close_field();
}

static void test_limit(void)
{
    block held[10], b;
    open_field(10 * ARENA_UNIT - 5);
    for (unsigned i = 0; i < 10; i++)
        held[i] = take_filled(ARENA_UNIT, i);
    CHECK(arena_take(&field, 0, 1, &b) == RING_FULL, "beyond the limit");
    arena_release(&field, &held[0]);
    CHECK(arena_take(&field, ARENA_UNIT + 1, 1, &b) == RING_FULL, "beyond the limit");
    held[0] = take_filled(0, 0);
    for (unsigned i = 0; i < 10; i++)
        arena_release(&field, &held[i]);
    CHECK(arena_take(&field, UINT32_MAX, 1, &held[0]) == RING_OK, "nothing else is in use");
    CHECK(arena_take(&field, 0, 1, &b) == RING_FULL, "beyond the limit");
    arena_release(&field, &held[0]);
    check_empty();
    close_field();
    open_field(UINT64_MAX); /* none, but for the address space */
    held[0] = take_filled(1, 0);
    held[1] = take_filled(1, 1);
    arena_release(&field, &held[0]);
    arena_release(&field, &held[1]);
    check_empty();
    close_field();
}

/* More references than memory was taken for at first. */
static void test_many_references(void)
{
    enum { MANY = 1000 };
    block first, *b = allocate(MANY * sizeof *b);
    open_field(ARENA_LIMIT);
    first = take_filled(70000, 7);
    for (unsigned i = 0; i < MANY; i++)
        CHECK(arena_share(&field, i ? &b[i - 1] : &first, 1, &b[i]) == RING_OK, "reference %u", i);
    CHECK(used() == 2 && field.shared->live == MANY + 1, "%u references", field.shared->live);
    sighting *seen = allocate((MANY + 1) * sizeof *seen);
    CHECK(arena_list(&field, seen, MANY + 1) == MANY + 1, "not all are listed");
    free(seen);
    arena_release(&field, &first);
    for (unsigned i = 0; i < MANY; i++) {
        check_content(b[i].data, b[i].length, 7);
        CHECK(used() == 2, "%llu units", (unsigned long long)used());
        arena_release(&field, &b[i]);
    }
    check_empty();
    close_field();
    free(b);
}

/* A file too short stands for a full /dev/shm: what was got on the way is not lost for ever. */
static void test_no_memory(void)
{
    block b;
    open_field(ARENA_LIMIT);
    if (!platform_reserve_needs_fd()) {
        CHECK(ftruncate(file, (off_t)(data_start + 5 * ARENA_UNIT)) == 0, "no file");
        CHECK(arena_take(&field, 20 * ARENA_UNIT, 1, &b) == RING_OK, "an empty arena");
        CHECK(arena_back(&field, &b) == RING_NO_MEMORY, "there is no such memory");
        arena_release(&field, &b);
        arena_trim(&field, 0, 1);
        CHECK(resident() == 0, "%llu bytes are kept", (unsigned long long)resident());
        check_empty();
    }
    close_field();
}

static void *release_later(void *arg)
{
    nap(5 * MS);
    arena_release(&field, arg);
    return NULL;
}

static void test_room(void)
{
    open_field(ARENA_UNIT);
    for (unsigned i = 0; i < 5; i++) {
        block held = take_filled(ARENA_UNIT, 1), b;
        pthread_t thread = start(release_later, &held);
        for (;;) {
            uint32_t ticket = arena_arm(&field);
            int rc = arena_take(&field, 5, 1, &b);
            if (rc == RING_OK)
                break;
            CHECK(rc == RING_FULL, "taking gave %d", rc);
            CHECK(arena_wait(&field, ticket, soon(5000 * (int64_t)MS)) != WAIT_SIGNAL, "a wait for room");
        }
        join(thread);
        arena_release(&field, &b);
    }
    check_empty();
    close_field();
}

/* ---- kills: the points ---- */

typedef struct {
    const char *name;
    bool in_arena; /* it is one of arena.c; otherwise of ring.c, or of this file */
} point;

static const point points[] = {
    {"take: a part without a reference", true},
    {"take: a reference of a dead holder", true},
    {"share: in the circle but not in use", true},
    {"release: free but not accounted for", true},
    {"trim: not known as backed but not given up", true},
    {"put: written but not published", false},
    {"publish: published but not counted", false},
    {"end: before the unlock", false},
    {"take: read but not taken", false},
    {"take: taken but not counted", false},
    {"leave: before the unlock", false},
    {"test: sent but not published", false},
    {"test: claimed but not popped", false},
    {"test: in hand", false},
};
enum { POINTS = sizeof points / sizeof points[0] };
enum {
    PART,
    HELD,
    SHARED,
    FREED,
    TRIMMED,
    WRITTEN,
    PUBLISHED,
    END,
    READ,
    TAKEN,
    LEAVE,
    ADDRESSED,
    CLAIMED,
    IN_HAND,
    NOWHERE
};

static int point_called(const char *name)
{
    for (int i = 0; i < POINTS; i++)
        if (strcmp(points[i].name, name) == 0)
            return i;
    return -1;
}

static void check_source(const char *path)
{
    bool found[POINTS] = {false};
    find_points(path, point_called, found);
    for (int i = 0; i < POINTS; i++)
        CHECK(found[i] == points[i].in_arena, "'%s' is not in %s", points[i].name, path);
}

/* ---- kills: what all processes share ---- */

#define NUMBERS_MOST (1u << 20)
#define WORKERS 4 /* with the parent, which is 0 */
#define BATCH 4
#define SEEN_MOST 4096
#define INLINE_MOST 200u
#define RING_BYTES ((uint64_t)1 << 22)
#define HANG_NS (5000 * (int64_t)MS)
#define KILL_LIMIT (64 * (uint64_t)ARENA_UNIT)

/* What is known of a message. */
enum { UNUSED, STARTED, PUT, SENT };

typedef struct {
    _Atomic uint8_t sent; /* one of UNUSED to SENT */
    _Atomic uint8_t taking; /* 1 + the worker that last looked at it; 0: nobody did */
    _Atomic uint8_t got; /* how often it came */
    _Atomic uint8_t doubtful; /* a process was killed with it in hand */
    _Atomic uint8_t sender; /* 1 + worker */
} entry;

typedef struct {
    _Atomic uint32_t next; /* number */
    _Atomic uint32_t stop;
    _Atomic uint64_t steps[WORKERS]; /* of each worker: shows that it goes on */
    _Atomic uint64_t holders[WORKERS]; /* what each calls itself in the arena; 0: there is none */
    _Atomic uint32_t moving[WORKERS]; /* 1 while a worker is in flush_pending, whose messages it does not know */
    _Atomic uint32_t reached[POINTS];
    entry entries[NUMBERS_MOST];
} board;

static board *shared;
static segment own, other; /* messages wait in own.pending, or are in other.inbox */
static int me;
static uint64_t holder;
static uint64_t last_holder = 1000; /* each process has a new one */
static unsigned kills;

static int fatal = NOWHERE;
static unsigned fatal_visit;

void crash_point(const char *where)
{
    int at = shared ? point_called(where) : -1;
    if (at < 0)
        return;
    atomic_fetch_add_explicit(&shared->reached[at], 1, memory_order_relaxed);
    if (at == fatal && --fatal_visit == 0)
        raise(SIGKILL);
}

/* ---- kills: sending ---- */

typedef struct {
    block b;
    uint32_t number; /* of the message */
    uint64_t content; /* number of the content, which several messages may share */
    uint32_t length;
    bool is_far;
    uint8_t body[16 + INLINE_MOST];
    uint8_t note[NOTE_SIZE];
    message m;
} outgoing;

static void note_step(void)
{
    atomic_fetch_add_explicit(&shared->steps[me], 1, memory_order_relaxed);
}

static void check_code(int rc)
{
    CHECK(rc == RING_OK || rc == RING_EMPTY || rc == RING_FULL || rc == RING_BUSY, "a ring gave %d", rc);
}

static int place_content(outgoing *o, const outgoing *before, rng *g)
{
    if (before && before->is_far && rng_one_in(g, 2)) {
        o->content = before->content;
        o->length = before->length;
        return arena_share(&field, &before->b, holder, &o->b);
    }
    int rc = arena_take(&field, o->length, holder, &o->b);
    if (rc != RING_OK)
        return rc;
    CHECK(arena_back(&field, &o->b) == RING_OK, "no memory");
    fill_content(o->b.data, o->length, o->content);
    return RING_OK;
}

/* The source path holds the numbers of message and content. */
static int prepare(outgoing *o, const outgoing *before, rng *g)
{
    uint32_t number = atomic_fetch_add(&shared->next, 1);
    CHECK(number < NUMBERS_MOST, "too many messages");
    o->number = number;
    o->content = number;
    o->is_far = !rng_one_in(g, 4);
    o->length = o->is_far ? content_length(g) : (uint32_t)rng_below(g, INLINE_MOST);
    atomic_store(&shared->entries[number].sender, (uint8_t)(1 + me));
    int rc = o->is_far ? place_content(o, before, g) : RING_OK;
    if (rc != RING_OK)
        return rc;
    uint64_t ids[2] = {number, o->content};
    note n = {arena_id, o->b.reference, o->b.generation};
    memcpy(o->body, ids, sizeof ids);
    note_encode(o->note, &n);
    if (!o->is_far)
        fill_content(o->body + 16, o->length, o->content);
    o->m = (message){.flags = SEND_TO_ONE, .hops = 4, .length = o->length, .source = o->body};
    o->m.destination = o->m.content = o->body + 16;
    o->m.note = o->is_far ? o->note : NULL;
    return RING_OK;
}

/* As push_to and put_pending of endpoint.c. *put: how many; those are not ours any more. */
static int push_prepared(ring *r, segment_id to, uint8_t where, outgoing *row, unsigned n, unsigned *put, rng *g)
{
    ring_writer w;
    int rc = ring_begin(r, &w, rng_one_in(g, 2));
    if (rc != RING_OK)
        return rc;
    while (*put < n) {
        outgoing *o = &row[*put];
        entry *e = &shared->entries[o->number];
        atomic_store(&e->sent, STARTED);
        rc = ring_put(&w, 7, &o->m);
        if (rc == RING_OK && o->is_far)
            CHECK(arena_address(&field, o->b.reference, o->b.generation, holder, to, where, own_id) == RING_OK,
                  "a reference of our own");
        atomic_store(&e->sent, rc == RING_OK ? PUT : UNUSED);
        if (rc != RING_OK)
            break;
        CRASH_POINT("test: sent but not published");
        ++*put;
    }
    ring_publish(&w);
    for (unsigned i = 0; i < *put; i++)
        atomic_store(&shared->entries[row[i].number].sent, SENT);
    ring_end(&w);
    return rc;
}

static int send_some(bool to_pending, unsigned n, rng *g)
{
    static outgoing row[BATCH];
    unsigned ready = 0, put = 0;
    int rc = RING_OK;
    while (ready < n && (rc = prepare(&row[ready], ready ? &row[ready - 1] : NULL, g)) == RING_OK)
        ready++;
    check_code(rc);
    ring *r = to_pending ? &own.pending : &other.inbox;
    if (ready)
        rc = push_prepared(r, to_pending ? own_id : other_id, to_pending ? WHERE_PENDING : WHERE_INBOX, row, ready,
                           &put, g);
    for (unsigned i = put; i < ready; i++)
        if (row[i].is_far)
            arena_release(&field, &row[i].b);
    note_step();
    return rc;
}

/* ---- kills: receiving ---- */

typedef struct {
    block b;
    uint64_t number, content;
    uint32_t length;
    bool is_far;
    uint8_t body[16 + INLINE_MOST];
} incoming;

/* Under the consumers' lock. */
static void look(const ring *r, const record *rec, incoming *in)
{
    message m;
    note n;
    CHECK(record_body_size(rec) <= sizeof in->body && rec->head.hops == 4, "a wrong record");
    ring_read(r, rec, in->body, &m);
    memcpy(&in->number, m.source, 8);
    memcpy(&in->content, m.source + 8, 8);
    CHECK(in->number < NUMBERS_MOST && in->content <= in->number, "message %llx", (unsigned long long)in->number);
    atomic_store(&shared->entries[in->number].taking, (uint8_t)(1 + me));
    in->length = m.length;
    in->is_far = record_note(r, rec, &n);
    if (!in->is_far)
        return;
    CHECK(arena_claim(&field, &n, holder, &in->b) == RING_OK, "message %llu: its content is gone",
          (unsigned long long)in->number);
    CHECK(in->b.length == in->length, "message %llu has another content", (unsigned long long)in->number);
    CRASH_POINT("test: claimed but not popped");
}

static void note_got(const incoming *in)
{
    unsigned before = atomic_fetch_add(&shared->entries[in->number].got, 1);
    CHECK(before == 0, "message %llu came twice", (unsigned long long)in->number);
}

static int receive_some(unsigned n, rng *g)
{
    static incoming row[BATCH];
    ring_reader reader;
    record rec;
    unsigned popped = 0;
    int rc = ring_enter(&other.inbox, &reader, rng_one_in(g, 2));
    if (rc != RING_OK)
        return rc;
    while (popped < n && (rc = ring_front(&reader, &rec)) == RING_OK) {
        look(&other.inbox, &rec, &row[popped++]);
        ring_pop(&reader, &rec);
    }
    ring_leave(&reader);
    for (unsigned i = 0; i < popped; i++) {
        incoming *in = &row[i];
        CRASH_POINT("test: in hand");
        check_content(in->is_far ? in->b.data : in->body + 16, in->length, in->content);
        note_got(in);
        if (in->is_far)
            arena_release(&field, &in->b);
    }
    note_step();
    return rc;
}

/* ---- kills: moving what is pending, giving memory up, finding what the dead held ---- */

static struct {
    peer_list list;
    peer *by_slot[2];
} peers_memory;
static peer only_peer;
static known_arena known = {{1, 3}, &field};

static void connect_peers(void)
{
    uint32_t id = pipe_reserve(&own);
    pipe_open(&own, id, "other", 7, PIPE_TO_INBOX);
    only_peer = (peer){.id = id, .peer_id = 7, .slot = pipe_find(&own, id), .inbox = &other.inbox, .segment = other_id};
    peers_memory.list = (peer_list){.version = segment_version(&own),
                                    .size = 2,
                                    .receivers = 1,
                                    .only = &only_peer,
                                    .arenas = &known,
                                    .arena_count = 1};
    peers_memory.list.by_slot[1] = &only_peer;
}

static int move_some(rng *g)
{
    uint32_t turn = 0;
    set_arena_holder(holder);
    atomic_store(&shared->moving[me], 1);
    int rc = flush_pending(&own, &peers_memory.list, &turn, rng_one_in(g, 2));
    atomic_store(&shared->moving[me], 0);
    note_step();
    return rc;
}

static void trim_some(rng *g)
{
    if (rng_one_in(g, 4))
        arena_rest(&field, holder);
    else
        arena_trim(&field, rng_below(g, 20), holder);
    note_step();
}

/* A process that was seen in the arena was on the board before. */
static bool is_alive(uint64_t name)
{
    for (int i = 0; i < WORKERS; i++)
        if (atomic_load(&shared->holders[i]) == name)
            return true;
    return false;
}

static void settle_ring(segment_id id, uint8_t where, ring *r, const sighting *seen, unsigned n)
{
    static sighting there[SEEN_MOST];
    unsigned found = 0;
    for (unsigned i = 0; i < n; i++)
        if (seen[i].where == where && is_same_segment(seen[i].ring, id))
            there[found++] = seen[i];
    if (found)
        CHECK(arena_settle(&field, r, there, found) == RING_OK, "%u references", found);
}

/* As arena.h says: of a dead holder, the ring that is noted decides. */
static void settle_dead(void)
{
    static sighting seen[SEEN_MOST];
    unsigned n = arena_list(&field, seen, SEEN_MOST), dead = 0;
    CHECK(n < SEEN_MOST, "too many references");
    for (unsigned i = 0; i < n; i++)
        if (!is_alive(seen[i].holder))
            seen[dead++] = seen[i];
    for (unsigned i = 0; i < dead; i++)
        if (seen[i].where == WHERE_NOWHERE)
            arena_reclaim(&field, &seen[i]);
    settle_ring(other_id, WHERE_INBOX, &other.inbox, seen, dead);
    settle_ring(own_id, WHERE_PENDING, &own.pending, seen, dead);
    note_step();
}

/* ---- kills: processes ---- */

enum { SENDER, RECEIVER, MOVER, TRIMMER, SETTLER, ROLES };
static const char *const role_names[] = {"sender", "receiver", "mover", "trimmer", "settler"};

static void act(int role, rng *g)
{
    unsigned n = 1 + (unsigned)rng_below(g, BATCH);
    if (role == SENDER)
        check_code(send_some(rng_one_in(g, 2), n, g));
    else if (role == RECEIVER)
        check_code(receive_some(n, g));
    else if (role == MOVER)
        check_code(move_some(g));
    else if (role == TRIMMER)
        trim_some(g);
    else
        settle_dead();
}

/* Sends, receives and moves mostly. */
static void act_as_any(rng *g)
{
    unsigned dice = (unsigned)rng_below(g, 64);
    act(dice < 20 ? SENDER : dice < 44 ? RECEIVER : dice < 58 ? MOVER : dice < 62 ? TRIMMER : SETTLER, g);
    if (rng_one_in(g, 16))
        nap((int64_t)rng_below(g, 50000));
}

/* Goes on as the parent, or as a new worker. */
static pid_t start_worker(int number)
{
    fflush(stdout);
    atomic_store(&shared->holders[number], ++last_holder);
    pid_t child = fork();
    CHECK(child >= 0, "no process");
    if (child == 0) {
        me = number;
        holder = last_holder;
        give_time(60);
    }
    return child;
}

static pid_t start_any(int number, uint64_t stream)
{
    pid_t child = start_worker(number);
    if (child)
        return child;
    rng g = rng_new(stream);
    while (!atomic_load(&shared->stop))
        act_as_any(&g);
    _exit(0);
}

static int wait_for_child(pid_t child, int number)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child, "no child");
    atomic_store(&shared->holders[number], 0);
    return status;
}

static void end_worker(pid_t child, int number)
{
    int status = wait_for_child(child, number);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a surviving process ended with status %x", (unsigned)status);
}

/* All but the dead take steps. */
static void await_steps(int dead, int workers, rng *g)
{
    uint64_t before[WORKERS];
    int64_t died = platform_now();
    for (int i = 1; i < workers; i++)
        before[i] = atomic_load(&shared->steps[i]);
    act_as_any(g);
    for (int i = 1; i < workers; i++)
        while (i != dead && atomic_load(&shared->steps[i]) < before[i] + 2) {
            CHECK(platform_now() - died < HANG_NS, "worker %d does not go on", i);
            nap(20000);
        }
}

/* ---- kills: one field for all ---- */

static void make_segment(segment *seg, segment_id id)
{
    uint64_t size = segment_size(RING_BYTES, RING_BYTES);
    int fd;
    void *base = map_shared(size, &fd);
    segment_plan plan = {.id = id,
                         .inbox_capacity = RING_BYTES,
                         .pending_capacity = RING_BYTES,
                         .inbox_limit = 1000,
                         .pending_limit = 1000,
                         .longest = UINT32_MAX};
    CHECK(segment_init(base, fd, &plan) == RING_OK, "a segment");
    CHECK(segment_attach(seg, base, size, fd) == RING_OK, "a segment");
}

static void open_kills(void)
{
    int unused;
    if (shared)
        return;
    open_field(KILL_LIMIT);
    make_segment(&own, own_id);
    make_segment(&other, other_id);
    connect_peers();
    shared = map_shared(sizeof *shared, &unused);
    holder = ++last_holder;
    atomic_store(&shared->holders[0], holder);
}

static void begin_case(void)
{
    uint32_t used_numbers = atomic_load(&shared->next);
    memset((void *)shared->entries, 0, used_numbers * sizeof(entry));
    atomic_store(&shared->next, 0);
    atomic_store(&shared->stop, 0);
}

/* All that is left arrives; then nothing of the arena is in use. */
static void end_case(rng *g)
{
    int64_t end = soon(HANG_NS);
    while (ring_depth(&own.pending) || ring_depth(&other.inbox)) {
        check_code(move_some(g));
        check_code(receive_some(BATCH, g));
        CHECK(platform_now() < end, "the rings do not run empty");
    }
    settle_dead();
    check_empty();
    for (unsigned i = 0; i < 30; i++) {
        check_code(send_some(i % 2, BATCH, g));
        check_code(move_some(g));
        while (receive_some(BATCH, g) != RING_EMPTY)
            ;
    }
    check_empty();
}

/* ---- kills at points ---- */

typedef struct {
    int point, role;
    unsigned visit;
} kill_case;

/* Whether a receiver that had it in hand took it away, when killed there. */
static bool took_away(const kill_case *c)
{
    return c->role == RECEIVER && (c->point == TAKEN || c->point == LEAVE || c->point == IN_HAND || c->point == FREED);
}

static bool must_come(const kill_case *c, const entry *e, int victim)
{
    return e->sent == SENT || (e->sent == PUT && e->sender == 1 + victim && c->point == PUBLISHED);
}

static void judge(const kill_case *c, int victim)
{
    uint32_t numbers = atomic_load(&shared->next);
    unsigned lost = 0, taken_away = 0;
    for (uint32_t i = 0; i < numbers; i++) {
        entry *e = &shared->entries[i];
        unsigned got = e->got;
        CHECK(got <= 1, "message %u came %u times", i, got);
        if (e->taking == 1 + victim && !got) {
            CHECK(took_away(c), "message %u was read by the killed process, not taken, and is lost", i);
            taken_away++;
        } else if (must_come(c, e, victim))
            lost += !got;
        else
            CHECK(got == 0, "message %u was not published (state %u) and yet came", i, e->sent);
    }
    CHECK(taken_away <= BATCH, "%u messages are gone", taken_away);
    CHECK(lost <= (c->role == MOVER && c->point == TAKEN), "%u messages are lost", lost);
}

static void run_victim(const kill_case *c, uint64_t stream)
{
    rng g = rng_new(stream);
    fatal = c->point;
    fatal_visit = c->visit;
    for (int64_t end = soon(HANG_NS); platform_now() < end;)
        act(c->role, &g);
    _exit(3);
}

static void run_case(const kill_case *c, uint64_t stream)
{
    rng g = rng_new(stream);
    begin_case();
    for (unsigned i = 0; i < 10; i++)
        check_code(send_some(i % 2, BATCH, &g));
    pid_t survivor = start_any(1, stream + 1);
    pid_t victim = start_worker(2);
    if (victim == 0)
        run_victim(c, stream + 2);
    int status = wait_for_child(victim, 2);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a %s never came %u times to '%s' (status %x)",
          role_names[c->role], c->visit, points[c->point].name, (unsigned)status);
    settle_dead();
    await_steps(2, 3, &g);
    atomic_store(&shared->stop, 1);
    end_worker(survivor, 1);
    end_case(&g);
    judge(c, 2);
    kills++;
}

static void test_points(void)
{
    static const struct {
        int point, role;
    } plan[] = {
        {PART, SENDER},     {HELD, SENDER},      {SHARED, SENDER},    {FREED, RECEIVER},   {FREED, TRIMMER},
        {TRIMMED, TRIMMER}, {WRITTEN, SENDER},   {WRITTEN, MOVER},    {PUBLISHED, SENDER}, {PUBLISHED, MOVER},
        {END, SENDER},      {READ, RECEIVER},    {READ, MOVER},       {TAKEN, RECEIVER},   {TAKEN, MOVER},
        {LEAVE, RECEIVER},  {ADDRESSED, SENDER}, {CLAIMED, RECEIVER}, {IN_HAND, RECEIVER},
    };
    static const unsigned visits[] = {1, 2, 3, 7, 20};
    uint64_t stream = 100000;
    open_kills();
    for (unsigned i = 0; i < sizeof plan / sizeof plan[0]; i++)
        for (unsigned v = 0; v < (scale < 1 ? 2 : 5); v++, stream += 10) {
            kill_case c = {.point = plan[i].point, .role = plan[i].role, .visit = visits[v]};
            test_name = points[c.point].name;
            give_time(60);
            run_case(&c, stream);
        }
    for (int i = 0; i < POINTS; i++)
        CHECK(shared->reached[i], "'%s' was never reached", points[i].name);
}

/* ---- kills at any instant ---- */

/* What the killed one had in hand may come or not; its successor has the same place on the board. */
static void mark_doubtful(int dead)
{
    uint32_t numbers = atomic_load(&shared->next);
    for (uint32_t i = 0; i < numbers; i++) {
        entry *e = &shared->entries[i];
        if (!e->got && e->taking == 1 + dead)
            e->doubtful = 1;
    }
}

static void check_all(unsigned dead, unsigned in_move)
{
    uint32_t numbers = atomic_load(&shared->next);
    unsigned unfinished = 0, gone = 0, lost = 0;
    for (uint32_t i = 0; i < numbers; i++) {
        entry *e = &shared->entries[i];
        CHECK(e->got <= 1, "message %u came %u times", i, e->got);
        CHECK(e->sent != UNUSED || !e->got, "message %u was not sent and yet came", i);
        lost += e->sent == SENT && !e->got && !e->doubtful;
        gone += !e->got && e->doubtful;
        unfinished += e->sent == STARTED || e->sent == PUT;
    }
    CHECK(lost <= in_move, "%u messages are lost, %u processes were killed moving one", lost, in_move);
    CHECK(gone <= dead * BATCH && unfinished <= dead * BATCH, "%u and %u in the hands of %u", gone, unfinished, dead);
    printf("%u random kills among %u messages: %u not finished, %u taken, %u in between\n", dead, numbers, unfinished,
           gone, lost);
}

static void test_random_kills(void)
{
    pid_t workers[WORKERS] = {0};
    unsigned in_move = 0, many = scaled(200);
    rng g = rng_new(1);
    open_kills();
    begin_case();
    for (int i = 1; i < WORKERS; i++)
        workers[i] = start_any(i, (uint64_t)i);
    for (unsigned i = 0; i < many; i++) {
        nap((int64_t)rng_below(&g, 2 * MS));
        int dead = 1 + (int)rng_below(&g, WORKERS - 1);
        kill(workers[dead], SIGKILL);
        int status = wait_for_child(workers[dead], dead);
        CHECK(WIFSIGNALED(status), "a worker ended with status %x", (unsigned)status);
        in_move += atomic_exchange(&shared->moving[dead], 0);
        mark_doubtful(dead);
        settle_dead();
        await_steps(dead, WORKERS, &g);
        workers[dead] = start_any(dead, 1000 + i);
        kills++;
    }
    atomic_store(&shared->stop, 1);
    for (int i = 1; i < WORKERS; i++)
        end_worker(workers[i], i);
    end_case(&g);
    check_all(many, in_move);
    arena_trim(&field, 0, holder);
    check_empty();
    printf("%u kills in all\n", kills);
}

/* ---- references in the hands of endpoint.c ---- */

/* A far message of number 1 to 4 at the front of the batch's memory. */
static message far_message(uint8_t *memory, const block *b, uint64_t number, uint8_t type)
{
    note n = {arena_id, b->reference, b->generation};
    memcpy(memory, &number, 8);
    note_encode(memory + 8, &n);
    return (message){.flags = type, .hops = 2, .length = b->length, .source = memory, .note = memory + 8};
}

/* A message whose arena is not known yet stays with the sender: it is not in the ring as well. */
static void test_unknown_arena(void)
{
    uint8_t memory[32];
    uint32_t turn = 0;
    open_field(ARENA_LIMIT);
    make_segment(&own, own_id);
    make_segment(&other, other_id);
    block b = take_filled(100, 1);
    message m = far_message(memory, &b, 1, SEND_TO_ONE);
    set_arena_holder(1);
    peer_list nobody = {.version = segment_version(&own)};
    CHECK(send_to_one(&own, &nobody, &turn, &m, true) == SEND_NO_ARENA, "an arena that is not in the list");
    CHECK(is_same_segment(send_missing_arena(), arena_id), "another arena is missing");
    CHECK(ring_depth(&own.pending) == 0, "it was sent nevertheless");
    connect_peers();
    peer_list *list = &peers_memory.list;
    set_arena_holder(1);
    list->arena_count = 0;
    CHECK(send_to_one(&own, list, &turn, &m, true) == SEND_NO_ARENA, "an arena that is not in the list");
    CHECK(ring_depth(&other.inbox) == 0, "it was sent nevertheless");
    list->arena_count = 1;
    CHECK(send_to_one(&own, list, &turn, &m, true) == RING_OK && ring_depth(&other.inbox) == 1, "a known arena");
    arena_release(&field, &b);
    check_empty();
    close_field();
}

/* A peer goes away: what it had for one is sent again, what it had for all is given back; and what came by a pipe that
 * is gone is given back when the Socket is closed. */
static void test_gone_peer(void)
{
    uint8_t memory[32];
    uint32_t turn = 0;
    sighting seen[8];
    open_field(ARENA_LIMIT);
    make_segment(&own, own_id);
    make_segment(&other, other_id);
    connect_peers();
    peer_list *list = &peers_memory.list;
    set_arena_holder(1);
    list->arena_count = 1;
    for (unsigned i = 0; i < 6; i++) {
        block b = take_filled(1000 + i, i);
        message m = far_message(memory, &b, i, i % 2 ? SEND_TO_ALL : SEND_TO_ONE);
        CHECK(send_by_pipe(&own, list, only_peer.id, &m, true) == RING_OK, "an empty inbox");
    }
    CHECK(used() == 6, "%llu units", (unsigned long long)used());
    ring gone = other.inbox;
    ring_close(&gone);
    make_segment(&other, (segment_id){1, 9}); /* another peer in its place; it knows the pipe as 7 too */
    only_peer.segment = (segment_id){1, 9};
    uint64_t at = ring_frozen_start(&gone);
    CHECK(resend_unreceived(&own, list, &turn, &gone, 7, &at) == RING_OK, "sending again");
    CHECK(ring_depth(&other.inbox) == 3 && used() == 3, "%u messages, %llu units", ring_depth(&other.inbox),
          (unsigned long long)used());
    arena_forget(&field, other_id, own_id);
    unsigned n = arena_list(&field, seen, 8);
    for (unsigned i = 0; i < n; i++)
        CHECK(!seen[i].is_held && seen[i].where == WHERE_INBOX && seen[i].ring.number == 9, "sent elsewhere");
    CHECK(arena_settle(&field, &other.inbox, seen, n) == RING_OK && used() == 3, "the records are there");
    ring_close(&other.inbox);
    at = ring_frozen_start(&other.inbox);
    CHECK(release_orphans(&other, list, &at) == RING_OK, "giving back");
    check_empty();
    close_field();
}

/* ---- corrupt memory ---- */

static block known_blocks[32];
static unsigned known_n;

/* A holder is killed with the lock: the next one makes all anew, from what it finds. */
static void *die_with_lock(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&field.shared->lock);
    return NULL;
}

static void spoil_bytes(void *start, size_t n, unsigned most, rng *g)
{
    for (uint64_t i = rng_below(g, most); i > 0; i--) {
        uint32_t *word = (uint32_t *)start + rng_below(g, n / 4);
        *word = (uint32_t)garbage(g, *word);
    }
}

static void spoil_header(rng *g)
{
    arena_shared *s = field.shared;
    uint8_t *after = (uint8_t *)(&s->lock + 1); /* the lock itself is the C library's */
    if (rng_one_in(g, 3))
        spoil_bytes(s, offsetof(arena_shared, lock), 4, g);
    else if (rng_one_in(g, 2))
        spoil_bytes(after, (size_t)((uint8_t *)(s + 1) - after), 4, g);
    else
        spoil_words((uint64_t *)&s->used, (size_t)((uint64_t *)(s + 1) - (uint64_t *)&s->used), 3, g);
}

/* Any number, but in a row that may fit together now and then. */
static void spoil_reference(reference *ref, rng *g)
{
    ref->generation = (uint32_t)rng_below(g, 4);
    ref->order = (uint8_t)rng_below(g, rng_one_in(g, 4) ? 256 : 3);
    ref->unit = (uint32_t)rng_below(g, rng_one_in(g, 4) ? UINT32_MAX : 64) >> ref->order % 32 << ref->order % 32;
    ref->length = (uint32_t)rng_next(g) >> rng_below(g, 32);
    ref->next = (uint32_t)rng_below(g, 64);
    ref->previous = (uint32_t)garbage(g, 3);
    ref->where = (uint8_t)rng_below(g, 4);
    ref->is_held = (uint8_t)rng_below(g, 3);
}

static void spoil(rng *g)
{
    uint64_t words = buddy_words(field.units);
    uint32_t high = field.shared->high;
    uint32_t references = high && high < 1000 ? high : 64;
    switch (rng_below(g, 6)) {
    case 0:
        spoil_header(g);
        break;
    case 1:
        spoil_bytes(field.references, references * sizeof(reference), 30, g);
        break;
    case 2:
        for (unsigned i = 0; i < 20; i++)
            spoil_reference(&field.references[rng_below(g, references)], g);
        break;
    case 3:
        spoil_words(field.parts.count, rng_one_in(g, 2) ? BUDDY_ORDERS : words, 40, g);
        break;
    case 4: /* the low end is what is used */
        spoil_words(field.parts.bits, 4, 5, g);
        break;
    default:
        spoil_words((uint64_t *)field.backed, rng_one_in(g, 2) ? 4 : field.units / 64, 5, g);
    }
}

static void keep_block(const block *b)
{
    CHECK(b->data >= field.data && b->data + b->length <= field.data + field.bytes, "a block outside of the arena");
    if (b->length)
        b->data[0] = b->data[b->length - 1] = 1;
    known_blocks[known_n++ % 32] = *b;
}

static note some_note(rng *g)
{
    const block *b = &known_blocks[rng_below(g, 32)];
    note n = {arena_id, b->reference, b->generation};
    if (rng_one_in(g, 4))
        n.reference = (uint32_t)garbage(g, n.reference);
    if (rng_one_in(g, 4))
        n.generation = field.references[n.reference % ARENA_REFERENCES].generation;
    return n;
}

static void check_spoilt_code(int rc)
{
    CHECK(rc == RING_OK || rc == RING_FULL || rc == RING_CORRUPT || rc == RING_NO_MEMORY, "a spoilt arena gave %d", rc);
}

static void take_spoilt(rng *g)
{
    block b;
    int rc = arena_take(&field, content_length(g), 1, &b);
    check_spoilt_code(rc);
    if (rc != RING_OK)
        return;
    check_spoilt_code(arena_back(&field, &b));
    keep_block(&b);
}

static void share_spoilt(rng *g)
{
    block b;
    int rc = arena_share(&field, &known_blocks[rng_below(g, 32)], 2, &b);
    check_spoilt_code(rc);
    if (rc == RING_OK)
        keep_block(&b);
}

static void claim_spoilt(rng *g)
{
    block b;
    note n = some_note(g);
    int rc = arena_claim(&field, &n, 3, &b);
    check_spoilt_code(rc);
    if (rc == RING_OK)
        keep_block(&b);
}

static void send_spoilt(test_ring *t, rng *g)
{
    uint8_t bytes[NOTE_SIZE];
    note n = some_note(g);
    note_encode(bytes, &n);
    message m = {.length = (uint32_t)garbage(g, 100), .note = bytes};
    check_spoilt_code(arena_address(&field, n.reference, n.generation, 4, other_id, WHERE_INBOX, own_id));
    ring_push(&t->r, 1, &m, true);
    if (rng_one_in(g, 8))
        spoil_bytes(t->data, 4096, 8, g);
}

static void settle_spoilt(test_ring *t, rng *g)
{
    sighting seen[50];
    unsigned n = arena_list(&field, seen, 50);
    CHECK(n <= 50, "%u references", n);
    if (n && rng_one_in(g, 2))
        arena_reclaim(&field, &seen[rng_below(g, n)]);
    else
        check_spoilt_code(arena_settle(&field, &t->r, seen, n));
    if (rng_one_in(g, 4))
        arena_forget(&field, other_id, own_id);
}

static void use_spoilt(test_ring *t, rng *g)
{
    arena another;
    unsigned dice = (unsigned)rng_below(g, 32);
    if (dice < 8)
        take_spoilt(g);
    else if (dice < 12)
        share_spoilt(g);
    else if (dice < 20)
        arena_release(&field, &known_blocks[rng_below(g, 32)]);
    else if (dice < 23)
        claim_spoilt(g);
    else if (dice < 26)
        send_spoilt(t, g);
    else if (dice < 28)
        settle_spoilt(t, g);
    else if (dice == 28)
        arena_trim(&field, rng_below(g, 10), 5);
    else if (dice == 29)
        arena_rest(&field, 5);
    else if (dice == 30)
        arena_is_empty(&field);
    else if (arena_attach(&another, field.base, arena_size(rng_one_in(g, 2) ? 0 : garbage(g, 1)), -1) == RING_OK)
        CHECK(another.bytes == field.bytes && another.data == field.data, "attached to something else");
}

static void test_spoilt_arena(void)
{
    test_ring t;
    open_field(ARENA_LIMIT);
    make_ring(&t, 4096, INT32_MAX);
    for (unsigned i = 0; i < scaled(400); i++) {
        rng g = rng_new(50000 + i);
        platform_discard(field.base, (size_t)data_start);
        fresh_field(ARENA_LIMIT);
        attach_ring(&t, 4096, INT32_MAX, t.r.fd);
        for (unsigned k = 0; k < 32; k++)
            take_spoilt(&g);
        for (unsigned k = 0; k < 60; k++) {
            if (rng_one_in(&g, 4))
                spoil(&g);
            if (rng_one_in(&g, 16) && !IS_THREAD_SANITIZER)
                join(start(die_with_lock, NULL));
            use_spoilt(&t, &g);
        }
    }
    free_ring(&t);
    close_field();
}

/* ---- */

static const struct {
    const char *name;
    void (*run)(void);
    bool kills;
} tests[] = {
    {"buddy", test_buddy, false},
    {"spoilt buddy", test_spoilt_buddy, false},
    {"threads", test_threads, false},
    {"trim", test_trim, false},
    {"rest", test_rest, false},
    {"limit", test_limit, false},
    {"many references", test_many_references, false},
    {"no memory", test_no_memory, false},
    {"room", test_room, false},
    {"unknown arena", test_unknown_arena, false},
    {"gone peer", test_gone_peer, false},
    {"spoilt arena", test_spoilt_arena, false},
    {"kills at points", test_points, true},
    {"random kills", test_random_kills, true},
};

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: arena path/to/arena.c [scale [seed [test]]]\n");
        return 2;
    }
    scale = argc > 2 ? atof(argv[2]) : 1;
    test_seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
    test_name = "source";
    check_source(argv[1]);
    ring_set_spin(20000);
    for (unsigned i = 0; scale > 0 && i < sizeof tests / sizeof tests[0]; i++) {
        if (tests[i].kills && IS_THREAD_SANITIZER)
            continue;
        if (argc > 4 && strcmp(argv[4], tests[i].name) != 0)
            continue;
        run_test(tests[i].name, tests[i].run, 30);
    }
    return 0;
}
