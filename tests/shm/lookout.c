/* The lookout: an event loop that sleeps on it misses no message, however rings come and go.
 *
 *   lookout [scale [seed]] */
#include "native.h"

#include <poll.h>
#include <pthread.h>

#include "../../shm/lookout.h"

/* More than one lookout holds. */
#define RINGS (LOOKOUT_MOST + 20)
#define PRODUCERS 3
#define CAPACITY 8192u
#define BODY 64u

static test_ring rings[RINGS];
static lookout looks;
static unsigned messages_each = 100000;
static _Atomic unsigned pushed, popped;

static void *look(void *arg)
{
    lookout_run(arg);
    return NULL;
}

static void push_one(ring *r, const message *m)
{
    ring_writer w;
    int rc;
    while ((rc = ring_begin(r, &w, true)) == RING_OK) {
        rc = ring_put(&w, 1, m);
        if (rc == RING_OK)
            ring_publish(&w);
        ring_end(&w);
        if (rc == RING_OK)
            break;
        CHECK(rc == RING_FULL, "a push gives %d", rc);
        platform_yield();
    }
    CHECK(rc == RING_OK, "a push gives %d", rc);
    atomic_fetch_add(&pushed, 1);
}

static void *produce(void *arg)
{
    rng g = rng_new((uint64_t)(uintptr_t)arg);
    message m = message_of(META_SIZE);
    for (unsigned i = 0; i < messages_each; i++) {
        push_one(&rings[rng_below(&g, RINGS)].r, &m);
        if (rng_one_in(&g, 500))
            nap(MS);
    }
    return NULL;
}

static void pop_all(ring *r)
{
    ring_reader reader;
    record rec;
    CHECK(ring_enter(r, &reader, true) == RING_OK, "the ring is there");
    while (ring_front(&reader, &rec) == RING_OK) {
        ring_pop(&reader, &rec);
        atomic_fetch_add(&popped, 1);
    }
    ring_leave(&reader);
}

/* Takes what there is; afterwards it is watched, or, for want of place, looked at in each turn. */
static void serve(test_ring *t, bool *watched)
{
    int rc;
    do {
        pop_all(&t->r);
        rc = lookout_watch(&looks, &t->r);
    } while (rc == LOOKOUT_READABLE);
    *watched = rc == LOOKOUT_WATCHES;
}

static void wait_poked(const bool *watched)
{
    bool all = true;
    for (unsigned i = 0; i < RINGS; i++)
        all &= watched[i];
    struct pollfd fd = {.fd = looks.poke, .events = POLLIN};
    CHECK(poll(&fd, 1, all ? 20000 : 1) >= 0, "poll");
}

static void run_loop(rng *g)
{
    static bool watched[RINGS];
    ring *struck[LOOKOUT_MOST];
    unsigned all = PRODUCERS * messages_each;
    while (atomic_load(&popped) < all) {
        wait_poked(watched);
        unsigned n = lookout_struck(&looks, struck);
        for (unsigned i = 0; i < n; i++) {
            test_ring *t = (test_ring *)(void *)struck[i];
            CHECK(watched[t - rings], "one that was not watched was struck off");
            serve(t, &watched[t - rings]);
        }
        /* Some leave, so that others find a place. */
        unsigned leaves = (unsigned)rng_below(g, RINGS);
        if (watched[leaves] && rng_one_in(g, 4)) {
            lookout_forget(&looks, &rings[leaves].r);
            watched[leaves] = false;
        }
        for (unsigned i = 0; i < RINGS; i++)
            if (!watched[i])
                serve(&rings[i], &watched[i]);
    }
    for (unsigned i = 0; i < RINGS; i++)
        lookout_forget(&looks, &rings[i].r);
}

static void misses_nothing(void)
{
    for (unsigned i = 0; i < RINGS; i++)
        make_ring(&rings[i], CAPACITY, 64);
    CHECK(lookout_init(&looks) == 0, "no lookout");
    rng g = rng_new(99);
    pthread_t looker = start(look, &looks);
    pthread_t producers[PRODUCERS];
    for (unsigned i = 0; i < PRODUCERS; i++)
        producers[i] = start(produce, (void *)(uintptr_t)i);
    run_loop(&g);
    for (unsigned i = 0; i < PRODUCERS; i++)
        join(producers[i]);
    CHECK(atomic_load(&pushed) == atomic_load(&popped), "%u are pushed, %u popped", pushed, popped);
    for (unsigned i = 0; i < RINGS; i++)
        free_ring(&rings[i]); /* the thread must not look at them any more */
    lookout_stop(&looks);
    join(looker);
    lookout_destroy(&looks);
}

static void tells_of_the_end(void)
{
    make_ring(&rings[0], CAPACITY, 64);
    CHECK(lookout_init(&looks) == 0, "no lookout");
    pthread_t looker = start(look, &looks);
    CHECK(lookout_watch(&looks, &rings[0].r) == LOOKOUT_WATCHES, "an empty ring");
    ring_close(&rings[0].r);
    struct pollfd fd = {.fd = looks.poke, .events = POLLIN};
    CHECK(poll(&fd, 1, 20000) == 1, "a closed ring is not told of");
    ring *struck[LOOKOUT_MOST];
    CHECK(lookout_struck(&looks, struck) == 1 && struck[0] == &rings[0].r, "not the one that was closed");
    CHECK(lookout_watch(&looks, &rings[0].r) == LOOKOUT_READABLE, "a closed ring is readable");
    lookout_stop(&looks);
    join(looker);
    lookout_destroy(&looks);
    free_ring(&rings[0]);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        messages_each = (unsigned)(messages_each * strtod(argv[1], NULL));
    if (argc > 2)
        test_seed = strtoull(argv[2], NULL, 10);
    run_test("misses_nothing", misses_nothing, 100);
    run_test("tells_of_the_end", tells_of_the_end, 30);
    return 0;
}
