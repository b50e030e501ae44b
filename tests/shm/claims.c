/* Claims of batches: against a model, threads that take, recall and condemn at once, workers that are killed at every
 * CRASH_POINT and at random instants, corrupt memory. Built with -DCRASH_POINTS.
 *
 *   claims path/to/claims.c [scale [seed [test]]] */
#include "native.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

#include "../../shm/claims.h"

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

#define SLOTS 6
#define WORKERS 4 /* of the slots */
#define CAPACITY 8192u

/* ---- the points ---- */

/* What the dead worker has when killed there, for the first time (in a batch: ever) and with nobody else
 * about. */
enum { HAS_NOT_TAKEN, HAS_TAKEN, HAS_RUNNING, HAS_EITHER };

typedef struct {
    const char *name;
    int has;
    bool is_of_ring; /* not of claims.c, but between two of its points */
} point;

static const point points[] = {
    {"claim: settled, but still noted as taking", HAS_EITHER, false}, /* only after another death: see second_death */
    {"claim: noted as taking, but not what", HAS_NOT_TAKEN, false},
    {"claim: noted, but not taken", HAS_NOT_TAKEN, false},
    {"take: read but not taken", HAS_EITHER, true}, /* comes a second time when the lock is left */
    {"take: taken but not counted", HAS_TAKEN, true},
    {"claim: taken, but not confirmed", HAS_TAKEN, false},
    {"claim: confirmed, but still noted as taking", HAS_TAKEN, false},
    {"leave: before the unlock", HAS_TAKEN, true},
    {"leave: before the wake", HAS_TAKEN, true},
    {"begin: its turn, but not begun", HAS_TAKEN, false},
    {"begin: noted as running", HAS_RUNNING, false},
    {"begin: the last one is counted, but not over", HAS_RUNNING, false},
    {"begin: none runs", HAS_TAKEN, false},
    {"begin: its turn, but stopped", HAS_TAKEN, false},
};
enum { POINTS = sizeof points / sizeof points[0] };
enum { SETTLED = 0, FIRST_TAKING = 1, LAST_TAKING = 6, FIRST_IN_BATCH = 9, STOPPED = 13, NOWHERE = POINTS };

static int point_called(const char *name)
{
    for (int i = 0; i < POINTS; i++)
        if (strcmp(points[i].name, name) == 0)
            return i;
    return -1;
}

static int fatal = NOWHERE;
static unsigned fatal_visit;

void crash_point(const char *where)
{
    if (fatal != NOWHERE && point_called(where) == fatal && --fatal_visit == 0)
        raise(SIGKILL);
}

static void check_source(const char *path)
{
    bool found[POINTS] = {0};
    find_points(path, point_called, found);
    for (int i = 0; i < POINTS; i++)
        CHECK(found[i] != points[i].is_of_ring, "'%s' of the table and the source", points[i].name);
}

/* ---- what all share ---- */

/* A batch's tasks stand in a row of places, each used once. */
#define PLACES (4u << 20)
#define TASKS_MOST (1u << 20)
#define BATCH_MOST 24u

enum { OPEN = 0, BEGUN, RECALLED };

typedef struct {
    _Atomic uint32_t places, tasks, done, stop;
    _Atomic uint64_t begun_last[SLOTS]; /* number << 32 | index */
    _Atomic uint32_t stopped[SLOTS];
    _Atomic uint8_t fate[PLACES]; /* of the task at that place */
    uint32_t task_at[PLACES];
    _Atomic uint8_t is_done[TASKS_MOST];
} board;

/* Content of a record; what follows the head is the test's. */
typedef struct {
    uint32_t number, tasks, first; /* place of task 0 */
} batch;

static board *b;
static claims claimed;
static void *claims_base;
static int claims_fd;
static test_ring queue;

/* The boss's. */
static claim_view seen_last[SLOTS];
static uint32_t last_number;
static uint32_t backlog[TASKS_MOST];
static uint32_t backlog_n;
#define BATCHES_MOST (1u << 20)
static batch batches[BATCHES_MOST]; /* by number */

/* All anew: as often as somebody likes. */
static void reset(uint64_t records)
{
    if (!b) {
        int unused;
        b = map_shared(sizeof *b, &unused);
        claims_base = map_shared(claims_size(SLOTS), &claims_fd);
        make_ring(&queue, CAPACITY, 64);
    }
    uint32_t places = b->places, tasks = b->tasks;
    memset((void *)b, 0, offsetof(board, fate));
    memset((void *)b->fate, 0, places);
    memset((void *)b->is_done, 0, tasks);
    claims_init(claims_base, SLOTS);
    CHECK(claims_attach(&claimed, claims_base, claims_size(SLOTS)) == RING_OK, "a fresh board");
    attach_ring(&queue, CAPACITY, 64, queue.r.fd);
    start_ring_at(queue.shared, (uint32_t)records * 2, records);
    memset(seen_last, 0, sizeof seen_last);
    last_number = backlog_n = 0;
    fatal = NOWHERE;
}

/* ---- the boss's side ---- */

static void add_tasks(uint32_t n)
{
    for (uint32_t i = 0; i < n && b->tasks < TASKS_MOST; i++)
        backlog[backlog_n++] = b->tasks++;
}

/* A batch of the last ones of the backlog. False: the ring is full. */
static bool push_batch(uint32_t tasks)
{
    batch new = {.number = last_number + 1, .tasks = tasks, .first = b->places};
    CHECK(tasks <= backlog_n && new.first + tasks <= PLACES && new.number < BATCHES_MOST, "too few places");
    for (uint32_t i = 0; i < tasks; i++)
        b->task_at[new.first + i] = backlog[backlog_n - 1 - i];
    message m = {.flags = SEND_TO_ONE, .ttl = 1, .length = sizeof new, .content = (const uint8_t *)&new};
    int rc = ring_push(&queue.r, 1, &m, true);
    CHECK(rc == RING_OK || rc == RING_FULL, "a push gives %d", rc);
    if (rc == RING_FULL)
        return false;
    backlog_n -= tasks;
    b->places += tasks;
    batches[++last_number] = new;
    return true;
}

static uint32_t some_tasks(rng *g)
{
    uint32_t most = rng_one_in(g, 3) ? BATCH_MOST : 3;
    uint32_t tasks = (uint32_t)rng_below(g, most + 1);
    return tasks < backlog_n ? tasks : backlog_n;
}

static const batch *batch_called(uint32_t number)
{
    CHECK(number >= 1 && number <= last_number, "batch %u was never pushed", number);
    return &batches[number];
}

/* A task that nobody has begun is to be done by somebody else. */
static void take_back(const batch *of, uint32_t index)
{
    uint8_t before = atomic_exchange(&b->fate[of->first + index], RECALLED);
    CHECK(before == OPEN, "task %u of batch %u comes back, but its fate is %u", index, of->number, before);
    backlog[backlog_n++] = b->task_at[of->first + index];
}

static void recall(uint32_t slot, uint32_t number)
{
    uint32_t from, to;
    if (!claims_recall(&claimed, slot, number, &from, &to))
        return;
    const batch *its = batch_called(number);
    CHECK(from < to && to <= its->tasks, "%u to %u of %u tasks come back", from, to, its->tasks);
    for (uint32_t i = from; i < to; i++)
        take_back(its, i);
}

/* ---- the workers' side ---- */

/* RING_OK, RING_EMPTY, RING_CLOSED. */
static int take_batch(uint32_t slot, batch *out)
{
    ring_reader reader;
    record rec;
    int rc = ring_enter(&queue.r, &reader, true);
    if (rc != RING_OK)
        return rc;
    rc = ring_front(&reader, &rec);
    if (rc == RING_OK) {
        CHECK(rec.head.length == sizeof *out, "a record of %u bytes", rec.head.length);
        ring_copy(&queue.r, &rec, record_content_at(&rec), out, sizeof *out);
        claims_take(&claimed, slot, &reader, &rec, out->number, out->tasks);
    }
    ring_leave(&reader);
    CHECK(rc == RING_OK || rc == RING_EMPTY, "the front gives %d", rc);
    return rc;
}

static unsigned most_pauses = 200; /* in half a task */

static void pass_time(rng *g)
{
    if (rng_one_in(g, 100))
        nap((int64_t)rng_below(g, 50000));
    for (uint64_t i = rng_below(g, most_pauses); i > 0; i--)
        platform_pause();
}

static void do_task(uint32_t slot, const batch *its, uint32_t index, rng *g)
{
    CHECK(index < its->tasks, "task %u of %u", index, its->tasks);
    uint32_t place = its->first + index;
    uint8_t before = atomic_exchange(&b->fate[place], BEGUN);
    CHECK(before == OPEN, "task %u of batch %u begins, but its fate is %u", index, its->number, before);
    atomic_store(&b->begun_last[slot], (uint64_t)its->number << 32 | index);
    pass_time(g);
    /* As if its result was sent. */
    CHECK(atomic_fetch_add(&b->is_done[b->task_at[place]], 1) == 0, "task %u is done twice", b->task_at[place]);
    atomic_fetch_add(&b->done, 1);
    pass_time(g);
}

/* CLAIM_NO_MORE, CLAIM_STOPPED. */
static int run_batch(uint32_t slot, const batch *its, rng *g)
{
    int index;
    while ((index = claims_begin(&claimed, slot)) >= 0)
        do_task(slot, its, (uint32_t)index, g);
    return index;
}

/* Until the ring is closed (RING_CLOSED), or empty at the end (RING_EMPTY), or the worker shall stop (CLAIM_STOPPED). */
static int run_worker(uint32_t slot, rng *g)
{
    batch its;
    for (;;) {
        int rc = take_batch(slot, &its);
        if (rc == RING_CLOSED)
            return rc;
        if (rc == RING_EMPTY && atomic_load(&b->stop))
            return rc;
        if (rc == RING_EMPTY)
            ring_wait_readable(&queue.r, soon(5 * MS));
        else if (run_batch(slot, &its, g) == CLAIM_STOPPED)
            return CLAIM_STOPPED;
    }
}

/* ---- one process against a model ---- */

typedef struct {
    batch has; /* number 0: none */
    uint32_t next, end;
    bool runs, is_taken, is_stopped;
    uint32_t sent, allowed;
} model;

typedef struct {
    model m[SLOTS];
    uint32_t queued[64], first, n; /* numbers of batches in the ring */
    uint64_t done;
} world;

static void check_model(const world *w)
{
    uint64_t done = 0;
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        const model *m = &w->m[slot];
        claim_view seen = claims_view(&claimed, slot);
        uint32_t number = m->is_taken ? m->has.number : 0;
        CHECK(seen.number == number, "slot %u has batch %u instead of %u", slot, seen.number, number);
        CHECK(!number || (seen.next == m->next && seen.end == m->end), "slot %u: %u of %u instead of %u of %u", slot,
              seen.next, seen.end, m->next, m->end);
        CHECK((seen.began != 0) == (number && m->runs), "slot %u began %lld", slot, (long long)seen.began);
        CHECK(seen.began <= platform_now(), "slot %u began in future", slot);
        done += claimed.claims[slot].done;
    }
    CHECK(done == w->done, "%llu tasks are counted, not %llu", (unsigned long long)done, (unsigned long long)w->done);
    CHECK(ring_depth(&queue.r) == w->n, "%u records instead of %u", ring_depth(&queue.r), w->n);
    CHECK(claimed.header->taking == 0, "%u takes", claimed.header->taking);
}

static void model_push(world *w, rng *g)
{
    if (w->n == 64)
        return;
    batch new = {.number = last_number + 1, .tasks = (uint32_t)rng_below(g, rng_one_in(g, 2) ? 4 : 0x10004)};
    if (rng_one_in(g, 8))
        new.number += 1u << 31;
    message m = {.flags = SEND_TO_ONE, .ttl = 1, .length = sizeof new, .content = (const uint8_t *)&new};
    if (ring_push(&queue.r, 1, &m, true) != RING_OK)
        return;
    last_number++;
    w->queued[(w->first + w->n++) % 64] = new.number;
}

static void model_take(world *w, uint32_t slot)
{
    model *m = &w->m[slot];
    if (m->is_taken)
        return; /* a worker takes the next batch only when the last one is done */
    int rc = take_batch(slot, &m->has);
    CHECK(rc == (w->n ? RING_OK : RING_EMPTY), "%u records, and taking gives %d", w->n, rc);
    if (rc != RING_OK)
        return;
    CHECK(m->has.number == w->queued[w->first % 64], "batch %u comes", m->has.number);
    w->first++;
    w->n--;
    m->is_taken = true;
    m->next = 0;
    m->end = m->has.tasks < CLAIMS_TASKS ? m->has.tasks : CLAIMS_TASKS;
}

static void model_begin(world *w, uint32_t slot)
{
    model *m = &w->m[slot];
    if (!m->is_taken)
        return;
    int index = claims_begin(&claimed, slot);
    w->done += m->runs;
    m->runs = false;
    if (m->next >= m->end) {
        CHECK(index == CLAIM_NO_MORE, "%d begins, of %u", index, m->end);
        m->is_taken = false;
        return;
    }
    m->next++;
    if (!m->is_stopped) {
        CHECK(index == (int)m->next - 1, "%d begins instead of %u", index, m->next - 1);
        m->runs = true;
        m->sent = m->allowed = 0;
        return;
    }
    CHECK(index == CLAIM_STOPPED, "%d begins, but shall not", index);
    if (m->next == m->end)
        return; /* it stays for a while like this */
    claims_clear(&claimed, slot);
    *m = (model){0};
}

static void model_recall(world *w, uint32_t slot, rng *g)
{
    model *m = &w->m[slot];
    uint32_t from, to, number = rng_one_in(g, 4) ? (uint32_t)rng_below(g, 9) : m->has.number;
    bool expected = m->is_taken && number == m->has.number && m->next < m->end;
    CHECK(claims_recall(&claimed, slot, number, &from, &to) == expected, "recalled: %d", !expected);
    if (!expected)
        return;
    CHECK(from == m->next && to == m->end, "%u to %u instead of %u to %u", from, to, m->next, m->end);
    m->end = m->next;
}

static void model_condemn(world *w, uint32_t slot, rng *g)
{
    model *m = &w->m[slot];
    uint32_t index = m->next - 1 + (rng_one_in(g, 4) ? (uint32_t)rng_below(g, 3) : 0);
    uint32_t number = rng_one_in(g, 4) ? 3 : m->has.number;
    bool expected = m->is_taken && m->runs && number == m->has.number && index + 1 == m->next;
    CHECK(claims_condemn(&claimed, slot, number, index) == expected, "condemned: %d", !expected);
    m->is_stopped = expected;
}

static void model_parts(world *w, uint32_t slot, rng *g)
{
    model *m = &w->m[slot];
    uint32_t ahead = (uint32_t)rng_below(g, 5);
    CHECK(claims_may_send(&claimed, slot, ahead) == ((int32_t)(m->sent - m->allowed) < (int32_t)ahead),
          "%u sent, %u read, %u ahead", m->sent, m->allowed, ahead);
    if (rng_one_in(g, 2)) {
        claims_sent(&claimed, slot);
        m->sent++;
    } else {
        uint32_t parts = (uint32_t)rng_below(g, 3);
        claims_allow(&claimed, slot, parts);
        m->allowed += parts;
    }
}

static void test_model(void)
{
    world *w = allocate(sizeof *w);
    rng g = rng_new(1);
    reset(((uint64_t)3 << 32) - 50); /* counts wrap on the way */
    for (unsigned i = 0; i < scaled(200000); i++) {
        uint32_t slot = (uint32_t)rng_below(&g, SLOTS);
        unsigned dice = (unsigned)rng_below(&g, 32);
        if (dice < 3)
            model_push(w, &g);
        else if (dice < 6)
            model_take(w, slot);
        else if (dice < 20)
            model_begin(w, slot);
        else if (dice < 22)
            model_recall(w, slot, &g);
        else if (dice < 24)
            model_condemn(w, slot, &g);
        else if (dice < 30)
            model_parts(w, slot, &g);
        else if (dice < 31)
            CHECK(claims_settle(&claimed, &queue.r) == RING_OK, "an open ring");
        else {
            claims_clear(&claimed, slot); /* its worker is gone */
            w->m[slot] = (model){0};
        }
        check_model(w);
    }
    CHECK(w->done > 100 || scale < 0.01, "only %llu tasks", (unsigned long long)w->done);
    ring_close(&queue.r);
    CHECK(claims_settle(&claimed, &queue.r) == RING_CLOSED, "a closed ring");
    free(w);
}

/* What a kill leaves: the head tells whether the record was taken, also when it went back to the first page since. */
static void test_settle(void)
{
    reset(((uint64_t)1 << 32) - 1);
    for (unsigned i = 0; i < 2; i++) {
        claim *its = &claimed.claims[2];
        uint32_t taken = ring_taken(&queue.r);
        add_tasks(1);
        CHECK(push_batch(1), "an empty ring");
        batch other;
        CHECK(take_batch(0, &other) == RING_OK && claims_begin(&claimed, 0) == 0, "a batch");
        CHECK(claims_begin(&claimed, 0) == CLAIM_NO_MORE, "one task");
        its->span = (uint64_t)7 << 32 | 5;
        its->state = CLAIM_TAKING;
        its->count = taken + 1 + i;
        claimed.header->taking = 3;
        uint32_t from, to;
        CHECK(claims_view(&claimed, 2).number == 0, "not settled yet");
        CHECK(!claims_recall(&claimed, 2, 7, &from, &to), "its tasks may be in the ring");
        CHECK(claims_settle(&claimed, &queue.r) == RING_OK, "an open ring");
        claim_view seen = claims_view(&claimed, 2);
        CHECK(seen.number == (i ? 0 : 7) && seen.end == (i ? 0 : 5), "batch %u", seen.number);
        CHECK(claimed.header->taking == 0 && its->state == (i ? CLAIM_FREE : CLAIM_TAKEN), "state %u", its->state);
        CHECK(claims_settle(&claimed, &queue.r) == RING_OK && its->state == (i ? CLAIM_FREE : CLAIM_TAKEN), "again");
    }
}

/* ---- threads ---- */

static void *work(void *arg)
{
    uint32_t slot = (uint32_t)(uintptr_t)arg;
    rng g = rng_new(1000 + slot);
    while (run_worker(slot, &g) == CLAIM_STOPPED) {
        atomic_store(&b->stopped[slot], 1);
        while (atomic_load(&b->stopped[slot]))
            sched_yield();
    }
    return NULL;
}

/* What a worker that is stopped, or dead, leaves: nothing of it runs. */
static void take_back_rest(uint32_t slot)
{
    claim_view seen = claims_view(&claimed, slot);
    CHECK(seen.number && seen.next && seen.next <= seen.end && !seen.began, "stopped at %u of %u", seen.next, seen.end);
    for (uint32_t i = seen.next - 1; i < seen.end; i++)
        take_back(batch_called(seen.number), i);
}

/* Once the boss was told that the worker still runs a task, it begins no other. */
static void serve_stopped(uint32_t slot, uint64_t *condemned, unsigned *stops)
{
    if (!atomic_load(&b->stopped[slot]))
        return;
    uint64_t last = atomic_load(&b->begun_last[slot]);
    CHECK(!*condemned || *condemned == last, "%llx was to be the last task, but %llx was",
          (unsigned long long)*condemned, (unsigned long long)last);
    take_back_rest(slot);
    claims_clear(&claimed, slot);
    *condemned = 0;
    ++*stops;
    atomic_store(&b->stopped[slot], 0);
}

static void condemn(uint32_t slot, uint64_t *condemned)
{
    claim_view seen = claims_view(&claimed, slot);
    if (*condemned || !seen.began)
        return;
    CHECK(seen.next, "a task runs, and none had its turn");
    if (claims_condemn(&claimed, slot, seen.number, seen.next - 1))
        *condemned = (uint64_t)seen.number << 32 | (seen.next - 1);
}

/* A view is of one instant: what it says of a task stays so. */
static void check_live(uint32_t slot)
{
    claim_view seen = claims_view(&claimed, slot), last = seen_last[slot];
    if (!seen.number)
        return;
    seen_last[slot] = seen;
    CHECK(seen.number != last.number || seen.next != last.next || !last.began || !seen.began ||
              seen.began == last.began,
          "task %u of batch %u began twice", seen.next - 1, seen.number);
    CHECK(!seen.began || seen.began >= last.began, "time goes back");
    CHECK(seen.next <= seen.end && seen.end <= batch_called(seen.number)->tasks, "%u of %u", seen.next, seen.end);
    CHECK(!seen.began || seen.next, "task -1 runs");
}

static void check_all_done(void)
{
    uint32_t tasks = b->tasks, begun = 0;
    for (uint32_t i = 0; i < tasks; i++)
        CHECK(b->is_done[i] == 1, "task %u is done %u times", i, b->is_done[i]);
    for (uint32_t i = 0; i < b->places; i++) {
        CHECK(b->fate[i] != OPEN, "the task at %u was neither begun nor recalled", i);
        begun += b->fate[i] == BEGUN;
    }
    CHECK(begun >= tasks, "%u of %u tasks", begun, tasks);
}

static void run_threads(uint32_t tasks, unsigned pauses)
{
    pthread_t threads[WORKERS];
    uint64_t condemned[WORKERS] = {0};
    unsigned stops = 0;
    rng g = rng_new(2);
    reset((uint64_t)0 - 100);
    for (uint32_t i = 0; i < WORKERS; i++)
        threads[i] = start(work, (void *)(uintptr_t)i);
    most_pauses = pauses;
    add_tasks(tasks);
    tasks = b->tasks; /* not more than there is room for */
    while (atomic_load(&b->done) < tasks) {
        uint32_t slot = (uint32_t)rng_below(&g, WORKERS);
        while (backlog_n && ring_depth(&queue.r) < 12 && push_batch(some_tasks(&g)))
            ;
        for (unsigned i = (unsigned)rng_below(&g, 50); i > 0; i--, slot = (uint32_t)rng_below(&g, WORKERS)) {
            check_live(slot);
            if (rng_one_in(&g, 4))
                recall(slot, claims_view(&claimed, slot).number);
            if (rng_one_in(&g, 8))
                condemn(slot, &condemned[slot]);
        }
        for (uint32_t i = 0; i < WORKERS; i++)
            serve_stopped(i, &condemned[i], &stops);
        if (rng_one_in(&g, 50))
            claims_settle(&claimed, &queue.r);
        sched_yield();
    }
    ring_close(&queue.r);
    for (uint32_t i = 0; i < WORKERS; i++) {
        atomic_store(&b->stopped[i], 0);
        join(threads[i]);
    }
    printf("%u tasks in %u batches, %u places, %u stops\n", tasks, last_number, b->places, stops);
    CHECK(scale < 1 || (b->places > tasks && stops), "nothing was recalled or nobody condemned");
    check_all_done();
}

/* Tasks that take some time, and such that are over before the boss has looked twice. */
static void test_threads(void)
{
    run_threads(scaled(IS_THREAD_SANITIZER ? 20000 : 80000), 200);
    run_threads(scaled(IS_THREAD_SANITIZER ? 50000 : 600000), 1);
}

/* ---- processes that are killed ---- */

static pid_t start_worker(uint32_t slot, uint64_t stream, int at, unsigned visit)
{
    pid_t child = fork();
    CHECK(child >= 0, "no process");
    if (child)
        return child;
    give_time(60);
    fatal = at;
    fatal_visit = visit;
    rng g = rng_new(stream);
    _exit(run_worker(slot, &g) == CLAIM_STOPPED ? 4 : 0);
}

static bool was_killed(int status)
{
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static int wait_for(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child, "no child");
    CHECK(was_killed(status) || (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 4)),
          "a worker ended with status %x", (unsigned)status);
    return status;
}

/* How many deaths found the worker so. */
static struct {
    unsigned running, finished, between, about_to_begin, without;
} found;

/* The one whose turn it was last. */
static void judge_last(const batch *its, const claim_view *seen)
{
    uint32_t place = its->first + seen->next - 1;
    bool is_done = b->is_done[b->task_at[place]] != 0;
    if (!seen->began) {
        if (b->fate[place] == OPEN) {
            found.about_to_begin++;
            take_back(its, seen->next - 1);
            return;
        }
        found.between++;
        CHECK(is_done, "task %u of batch %u had begun, was not done, and is not said to run", seen->next - 1,
              seen->number);
        return;
    }
    CHECK(b->fate[place] != RECALLED, "task %u runs, and was recalled", seen->next - 1);
    found.running += !is_done;
    found.finished += is_done;
    b->fate[place] = BEGUN; /* it had not come so far itself, maybe */
    if (!is_done)
        backlog[backlog_n++] = b->task_at[place];
}

/* What a dead worker leaves is known task by task, and comes back where it was not done. */
static claim_view bury(uint32_t slot)
{
    CHECK(claims_settle(&claimed, &queue.r) == RING_OK, "an open ring");
    claim_view seen = claims_view(&claimed, slot);
    claims_clear(&claimed, slot);
    found.without += !seen.number;
    if (!seen.number)
        return seen;
    const batch *its = batch_called(seen.number);
    CHECK(seen.next <= seen.end && seen.end <= its->tasks, "%u of %u of %u", seen.next, seen.end, its->tasks);
    for (uint32_t i = 0; i + 1 < seen.next; i++)
        CHECK(b->fate[its->first + i] == BEGUN && b->is_done[b->task_at[its->first + i]] == 1, "task %u is not done",
              i);
    if (seen.next)
        judge_last(its, &seen);
    else
        CHECK(!seen.began, "task -1 runs");
    for (uint32_t i = seen.next; i < seen.end; i++)
        take_back(its, i);
    for (uint32_t i = seen.end; i < its->tasks; i++)
        CHECK(b->fate[its->first + i] == RECALLED, "task %u is nobody's", i);
    return seen;
}

/* The boss does what is left, in a slot of its own. */
static void finish_alone(rng *g)
{
    batch its;
    claims_clear(&claimed, SLOTS - 1);
    do {
        while (backlog_n && push_batch(some_tasks(g)))
            ;
        while (take_batch(SLOTS - 1, &its) == RING_OK)
            CHECK(run_batch(SLOTS - 1, &its, g) == CLAIM_NO_MORE, "nobody stops the boss");
    } while (backlog_n);
    const ring_shared *s = queue.shared;
    CHECK(s->popped == s->pushed && (uint32_t)s->popped == (uint32_t)s->head, "the ring's counters are off");
    check_all_done();
}

static bool is_in_ring(uint32_t number)
{
    uint64_t at = ring_frozen_start(&queue.r);
    record rec;
    batch its;
    while (ring_frozen_next(&queue.r, &at, &rec) == RING_OK) {
        ring_copy(&queue.r, &rec, record_content_at(&rec), &its, sizeof its);
        if (its.number == number)
            return true;
    }
    return false;
}

static unsigned count_in_batch(const batch *its, bool done)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < its->tasks; i++)
        n += done ? b->is_done[b->task_at[its->first + i]] : b->fate[its->first + i] == BEGUN;
    return n;
}

/* All workers are dead: each batch is in the ring, or one of them has it, or it is done. */
static void account(void)
{
    CHECK(claims_settle(&claimed, &queue.r) == RING_OK, "an open ring");
    for (uint32_t number = 1; number <= last_number; number++) {
        const batch *its = batch_called(number);
        unsigned claims_on_it = 0;
        for (uint32_t slot = 0; slot < SLOTS; slot++)
            claims_on_it += claims_view(&claimed, slot).number == number;
        bool waits = is_in_ring(number);
        CHECK(claims_on_it + waits <= 1, "batch %u waits: %d, and %u have it", number, waits, claims_on_it);
        CHECK(!waits || count_in_batch(its, false) == 0, "batch %u waits, and was begun", number);
        CHECK(claims_on_it || waits || count_in_batch(its, true) == its->tasks, "batch %u is lost", number);
    }
}

static unsigned kills;

static void kill_at(uint32_t slot, uint64_t stream, int at, unsigned visit)
{
    CHECK(was_killed(wait_for(start_worker(slot, stream, at, visit))), "a worker never came %u times to '%s'", visit,
          points[at].name);
    kills++;
}

static void prepare_batches(rng *g)
{
    reset(rng_one_in(g, 2) ? (uint64_t)0 - 7 : 0);
    add_tasks(60);
    while (backlog_n)
        if (!push_batch(1 + some_tasks(g) % (backlog_n < 3 ? backlog_n : 3)))
            break;
}

/* Nobody else is about. */
static void kill_alone(int at, unsigned visit, uint64_t stream)
{
    rng g = rng_new(stream);
    prepare_batches(&g);
    claimed.claims[0].stop = at == STOPPED;
    kill_at(0, stream + 1, at, visit);
    account();
    claim_view seen = bury(0);
    int has = !seen.number ? HAS_NOT_TAKEN : seen.began ? HAS_RUNNING : HAS_TAKEN;
    CHECK((visit > 1 && at < FIRST_IN_BATCH) || points[at].has == HAS_EITHER || has == points[at].has,
          "it has batch %u, began %lld", seen.number, (long long)seen.began);
    finish_alone(&g);
}

/* One dies while it takes a batch; the next one, who finds that, dies over it. */
static void second_death(int first, uint64_t stream)
{
    rng g = rng_new(stream);
    prepare_batches(&g);
    kill_at(0, stream + 1, first, 1);
    kill_at(1, stream + 2, SETTLED, 1);
    kill_at(2, stream + 3, first, 1);
    account();
    for (uint32_t slot = 0; slot < 3; slot++)
        bury(slot);
    finish_alone(&g);
}

/* Another one works on, who may be first to settle. */
static void kill_among_others(int at, unsigned visit, uint64_t stream)
{
    rng g = rng_new(stream);
    prepare_batches(&g);
    pid_t other = start_worker(1, stream + 1, NOWHERE, 0);
    claimed.claims[0].stop = at == STOPPED;
    pid_t victim = start_worker(0, stream + 2, at, visit);
    int status;
    while (waitpid(victim, &status, WNOHANG) == 0) {
        add_tasks(3);
        push_batch(some_tasks(&g));
        recall(1, claims_view(&claimed, 1).number);
        sched_yield();
    }
    CHECK(was_killed(status), "a worker never came to '%s' (status %x)", points[at].name, (unsigned)status);
    kills++;
    bury(0);
    uint32_t before = atomic_load(&b->done);
    while (atomic_load(&b->done) < before + 5) { /* the lock is free, and batches come */
        add_tasks(3);
        push_batch(some_tasks(&g));
        sched_yield();
    }
    atomic_store(&b->stop, 1);
    CHECK(!was_killed(wait_for(other)), "nobody kills the survivor");
    finish_alone(&g);
}

static void test_points(void)
{
    static const unsigned visits[] = {1, 2, 3, 7, 20};
    uint64_t stream = 100000;
    most_pauses = 20;
    for (int at = 0; at < POINTS; at++)
        for (unsigned v = 0; v < (scale < 1 ? 2 : 5) && at != SETTLED; v++, stream += 10) {
            if (at == STOPPED && visits[v] > 1) /* it happens once */
                break;
            test_name = points[at].name;
            give_time(60);
            kill_alone(at, visits[v], stream);
            kill_among_others(at, visits[v], stream + 5);
        }
    for (int at = FIRST_TAKING; at <= LAST_TAKING; at++, stream += 10) {
        test_name = points[at].name;
        second_death(at, stream);
    }
    printf("%u kills at points\n", kills);
}

/* ---- kills at any instant ---- */

static void feed(rng *g)
{
    if (backlog_n < 500)
        add_tasks(500);
    while (ring_depth(&queue.r) < 60 && push_batch(some_tasks(g)))
        ;
    uint32_t slot = (uint32_t)rng_below(g, WORKERS);
    check_live(slot);
    if (rng_one_in(g, 4))
        recall(slot, claims_view(&claimed, slot).number);
}

/* Nothing that was not said to run at the end can have begun after the worker was condemned. */
static void check_condemned(uint64_t condemned, const claim_view *seen)
{
    uint64_t last = (uint64_t)seen->number << 32 | (seen->next - 1);
    CHECK(!condemned || !seen->began || last == condemned, "%llx was to be the last task, but %llx was",
          (unsigned long long)condemned, (unsigned long long)last);
}

static void kill_one(pid_t *worker, uint32_t slot, rng *g)
{
    uint64_t condemned = 0;
    if (rng_one_in(g, 4))
        condemn(slot, &condemned);
    if (rng_one_in(g, 2))
        nap((int64_t)rng_below(g, 20000));
    kill(*worker, SIGKILL);
    kills += was_killed(wait_for(*worker));
    claim_view seen = bury(slot);
    check_condemned(condemned, &seen);
}

static void test_random_kills(void)
{
    pid_t workers[WORKERS];
    uint64_t last[WORKERS] = {0};
    rng g = rng_new(3);
    most_pauses = 20;
    kills = 0;
    memset(&found, 0, sizeof found);
    reset((uint64_t)0 - 1000);
    for (uint32_t i = 0; i < WORKERS; i++)
        workers[i] = start_worker(i, i, NOWHERE, 0);
    unsigned many = scaled(400);
    for (uint64_t i = 0; kills < many; i++) {
        uint32_t slot = (uint32_t)rng_below(&g, WORKERS);
        while (atomic_load(&b->begun_last[slot]) == last[slot]) /* it is at work */
            feed(&g);
        for (int64_t end = soon((int64_t)rng_below(&g, MS / 4)); platform_now() < end;)
            feed(&g);
        kill_one(&workers[slot], slot, &g);
        last[slot] = b->begun_last[slot];
        workers[slot] = start_worker(slot, 1000 + i, NOWHERE, 0);
    }
    atomic_store(&b->stop, 1);
    for (uint32_t i = 0; i < WORKERS; i++) {
        CHECK(!was_killed(wait_for(workers[i])), "nobody kills the last ones");
        bury(i);
    }
    finish_alone(&g);
    printf("%u random kills among %u tasks: %u running, %u done but not over, %u between two, %u about to begin, "
           "%u without a batch\n",
           kills, b->tasks, found.running, found.finished, found.between, found.about_to_begin, found.without);
}

/* ---- corrupt memory ---- */

#define FULL_PAGE ((PAGE - RING_LINE) / sizeof(claim)) /* so many slots end where a guard page begins */

static void test_attach(void)
{
    int fd;
    claims c;
    uint32_t *head = map_shared(PAGE, &fd);
    CHECK(claims_size(FULL_PAGE) == PAGE, "%llu bytes", (unsigned long long)claims_size(FULL_PAGE));
    CHECK(claims_attach(&c, head, PAGE) == RING_CORRUPT, "zeros");
    claims_init(head, FULL_PAGE);
    CHECK(claims_attach(&c, head, PAGE) == RING_OK && c.slots == FULL_PAGE, "a fresh board");
    CHECK(claims_attach(&c, head, PAGE + 1) == RING_OK, "a larger file");
    CHECK(claims_attach(&c, head, PAGE - 1) == RING_CORRUPT, "a slot is missing");
    CHECK(claims_attach(&c, head, RING_LINE - 1) == RING_CORRUPT, "the header is missing");
    CHECK(claims_attach(&c, (uint8_t *)head + PAGE, 0) == RING_CORRUPT, "an empty file");
    for (unsigned i = 0; i < 2; i++) {
        head[i] ^= 1;
        CHECK(claims_attach(&c, head, PAGE) == RING_CORRUPT, "word %u is off", i);
        head[i] ^= 1;
    }
    static const uint32_t slots[] = {FULL_PAGE + 1, CLAIMS_MOST + 1, UINT32_MAX, 1u << 26, 1u << 31};
    for (unsigned i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        head[2] = slots[i];
        CHECK(claims_attach(&c, head, PAGE) == RING_CORRUPT, "%u slots", slots[i]);
    }
    head[2] = CLAIMS_MOST + 1;
    CHECK(claims_attach(&c, head, claims_size(CLAIMS_MOST + 1)) == RING_CORRUPT, "more slots than there may be");
    unmap_shared(head, PAGE, fd);
}

static uint32_t garbage(rng *g, uint32_t now)
{
    switch (rng_below(g, 5)) {
    case 0:
        return (uint32_t)rng_next(g);
    case 1:
        return now + (uint32_t)rng_below(g, 5) - 2;
    case 2:
        return now ^ (uint32_t)1 << rng_below(g, 32);
    case 3:
        return UINT32_MAX >> rng_below(g, 32);
    default:
        return (uint32_t)rng_below(g, 4);
    }
}

static void spoil(claims *c, rng *g)
{
    uint32_t *words = (uint32_t *)(void *)c->header;
    unsigned most = rng_one_in(g, 2) ? PAGE / 4 : 64; /* the first ones are what is used */
    for (uint64_t i = rng_below(g, 40); i > 0; i--) {
        uint32_t *word = &words[rng_below(g, most)];
        *word = garbage(g, *word);
    }
    if (rng_one_in(g, 2))
        c->header->taking = garbage(g, c->slots);
    if (rng_one_in(g, 2))
        c->claims[rng_below(g, 4)].state = (uint32_t)rng_below(g, 4);
}

static void use_spoilt(claims *c, rng *g)
{
    uint32_t slot = rng_one_in(g, 4) ? c->slots - 1 : (uint32_t)rng_below(g, 4);
    uint32_t from = 0, to = 0;
    batch its;
    claim_view seen = claims_view(c, slot);
    CHECK(seen.next <= CLAIMS_TASKS && seen.end <= CLAIMS_TASKS, "%u of %u", seen.next, seen.end);
    switch (rng_below(g, 8)) {
    case 0:
        CHECK(claims_settle(c, &queue.r) == RING_OK && c->header->taking == 0, "%u takes", c->header->taking);
        break;
    case 1:
        if (claims_recall(c, slot, seen.number, &from, &to))
            CHECK(from < to && to <= CLAIMS_TASKS, "%u to %u", from, to);
        break;
    case 2:
        CHECK(!claims_condemn(c, slot, seen.number, seen.next - 1) || seen.began, "none runs");
        break;
    case 3:
        claims_allow(c, slot, (uint32_t)rng_next(g));
        claims_sent(c, slot);
        claims_may_send(c, slot, (uint32_t)rng_below(g, 9));
        break;
    case 4:
        claims_clear(c, slot);
        break;
    case 5:
        add_tasks(1);
        push_batch(1);
        if (take_batch(slot % SLOTS, &its) == RING_OK)
            CHECK(c->header->taking == 0 && claims_view(c, slot % SLOTS).number == its.number, "not what was taken");
        break;
    default:
        CHECK(claims_begin(c, slot) < (int)CLAIMS_TASKS, "there are no more");
    }
}

static void test_spoilt(void)
{
    int fd;
    void *base = map_shared(PAGE, &fd);
    for (unsigned i = 0; i < scaled(3000); i++) {
        rng g = rng_new(50000 + i);
        reset(0);
        claims_init(base, FULL_PAGE);
        CHECK(claims_attach(&claimed, base, PAGE) == RING_OK, "a fresh board");
        for (unsigned k = 0; k < 60; k++) {
            if (rng_one_in(&g, 3))
                spoil(&claimed, &g);
            use_spoilt(&claimed, &g);
        }
    }
    unmap_shared(base, PAGE, fd);
}

/* ---- */

static const struct {
    const char *name;
    void (*run)(void);
    bool kills;
} tests[] = {
    {"model", test_model, false},
    {"settle", test_settle, false},
    {"threads", test_threads, false},
    {"attach", test_attach, false},
    {"spoilt board", test_spoilt, false},
    {"kills at points", test_points, true},
    {"random kills", test_random_kills, true},
};

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: claims path/to/claims.c [scale [seed [test]]]\n");
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
        run_test(tests[i].name, tests[i].run, 60);
    }
    return 0;
}
