/* Processes are killed at every CRASH_POINT of the rings, and at random instants; the others go on and nothing is lost
 * but what the killed one held. Built with -DCRASH_POINTS.
 *
 *   crash path/to/ring.c [scale [seed]]
 *
 * Each message is a number with an entry in shared memory, where whoever has to do with it writes down what it is about
 * to do or has done. So it is known for each number, when a process is killed at a known point, whether it must come
 * out, must not, or either. */
#define _GNU_SOURCE /* CPU_SET */
#include "native.h"

#include <sched.h>
#include <sys/wait.h>

#define ANY 0x7fffffffu
#define CAPACITY 16384u
#define LONGEST 900u
#define NUMBERS_MOST (4u << 20)
#define WORKERS 4
#define BATCH 6

/* What survivors may take to go on (they promise 100 ms), and what a busy machine may add now and then. */
#define GO_ON_NS (100 * (int64_t)MS)
#define HANG_NS (5000 * (int64_t)MS)

/* ---- the points ---- */

typedef struct {
    const char *name;
    bool produces, consumes; /* which sides come there */
} point;

static const point points[] = {
    {"rewind: head is ahead of tail", false, false}, /* only where a ring runs empty just there: see rewinder */
    {"put: before the record is written", true, false},
    {"put: written but not published", true, false},
    {"publish: published but not counted", true, false},
    {"end: before the unlock", true, false},
    {"end: before the wake", true, false},
    {"take: read but not taken", false, true},
    {"take: taken but not counted", false, true},
    {"leave: before the unlock", false, true},
    {"leave: before the wake", false, true},
};
enum { POINTS = sizeof points / sizeof points[0] };
enum { REWIND = 0, WRITING = 1, WRITTEN, PUBLISHED, END, END_WAKE, READ, TAKEN, LEAVE, LEAVE_WAKE, NOWHERE };

static int point_called(const char *name)
{
    for (int i = 0; i < POINTS; i++)
        if (strcmp(points[i].name, name) == 0)
            return i;
    return -1;
}

/* ---- what all processes share ---- */

/* What is known of a message. */
enum { UNUSED, STARTED, PUT, SENT };
/* Who has it in hand. */
enum { NOBODY, TAKING };

typedef struct {
    _Atomic uint8_t sent; /* one of UNUSED to SENT */
    _Atomic uint8_t taking; /* 1 + the worker that last looked at it; 0: nobody did */
    _Atomic uint8_t got; /* how often it came out */
    _Atomic uint8_t doubtful; /* a process was killed with it in hand */
} entry;

typedef struct {
    _Atomic uint32_t next; /* number */
    _Atomic uint32_t stop;
    _Atomic uint64_t steps[WORKERS]; /* of each worker: shows that it goes on */
    _Atomic uint32_t moving[WORKERS]; /* 1 while a worker is in flush_pending, whose messages it does not know */
    _Atomic uint32_t reached[POINTS];
    _Atomic uint32_t unknown; /* points came by that are in no table */
    entry entries[NUMBERS_MOST];
} board;

static board *b;
static segment own, other; /* messages wait in own.pending, or are in other.inbox */
static void *own_base, *other_base;
static int own_fd, other_fd;

/* ---- being killed ---- */

static int fatal = NOWHERE;
static unsigned fatal_visit;
static int64_t fatal_pause; /* so that others queue up for the locks held */
static int me;

static unsigned slow_cases, cases; /* how many deaths held others up, of how many */

void crash_point(const char *where)
{
    int at = point_called(where);
    if (at < 0) {
        atomic_store(&b->unknown, 1);
        return;
    }
    atomic_fetch_add_explicit(&b->reached[at], 1, memory_order_relaxed);
    if (at != fatal || --fatal_visit)
        return;
    if (fatal_pause)
        nap(fatal_pause);
    raise(SIGKILL);
}

/* ---- producing and consuming with the board up to date ---- */

static void note_step(void)
{
    atomic_fetch_add_explicit(&b->steps[me], 1, memory_order_relaxed);
}

/* Puts up to n messages and publishes them in one step or two. *put: how many. */
static int push_some(ring *r, unsigned n, rng *g)
{
    static uint8_t body[LONGEST];
    uint32_t numbers[BATCH];
    ring_writer w;
    message m;
    unsigned put = 0, published = 0;
    int rc = ring_begin(r, &w, rng_one_in(g, 2));
    if (rc != RING_OK)
        return rc;
    while (put < n && rc == RING_OK) {
        uint32_t number = atomic_fetch_add(&b->next, 1);
        if (number >= NUMBERS_MOST)
            break;
        make_message(number, LONGEST, body, &m);
        atomic_store(&b->entries[number].sent, STARTED);
        rc = ring_put(&w, number, &m);
        atomic_store(&b->entries[number].sent, rc == RING_OK ? PUT : UNUSED);
        if (rc != RING_OK)
            break;
        numbers[put++] = number;
        if (!rng_one_in(g, 3) && put < n)
            continue;
        ring_publish(&w);
        while (published < put)
            atomic_store(&b->entries[numbers[published++]].sent, SENT);
    }
    ring_publish(&w);
    while (published < put)
        atomic_store(&b->entries[numbers[published++]].sent, SENT);
    ring_end(&w);
    note_step();
    return rc;
}

static uint32_t look(const ring *r, const record *rec)
{
    static uint8_t body[LONGEST], scratch[LONGEST];
    message m;
    CHECK(record_body_size(rec) <= LONGEST, "a record of %llu bytes", (unsigned long long)record_body_size(rec));
    ring_read(r, rec, body, &m);
    uint64_t number = check_message(&m, LONGEST, scratch);
    CHECK(number < NUMBERS_MOST, "message %llx was never sent", (unsigned long long)number);
    return (uint32_t)number;
}

static void note_got(const uint32_t *numbers, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned before = atomic_fetch_add(&b->entries[numbers[i]].got, 1);
        CHECK(before == 0, "message %u came twice", numbers[i]);
        atomic_store(&b->entries[numbers[i]].taking, NOBODY);
    }
}

/* Takes up to n messages in one step. */
static int pop_some(ring *r, unsigned n, rng *g)
{
    uint32_t numbers[BATCH];
    ring_reader reader;
    record rec;
    unsigned popped = 0;
    int rc = ring_enter(r, &reader, rng_one_in(g, 2));
    if (rc != RING_OK)
        return rc;
    while (popped < n && (rc = ring_front(&reader, &rec)) == RING_OK) {
        numbers[popped] = look(r, &rec);
        atomic_store(&b->entries[numbers[popped]].taking, (uint8_t)(1 + me));
        ring_pop(&reader, &rec);
        popped++;
        if (popped == n || !rng_one_in(g, 4))
            continue;
        ring_take(&reader);
        note_got(numbers, popped);
        n -= popped;
        popped = 0;
    }
    ring_leave(&reader);
    note_got(numbers, popped);
    note_step();
    return rc;
}

/* ---- what a process does ---- */

typedef struct {
    const char *name;
    bool produces, consumes, rewinds, moves;
    unsigned batch;
} role;

static const role roles[] = {
    {"producer", true, false, false, false, 1}, {"batch producer", true, false, false, false, BATCH},
    {"consumer", false, true, false, false, 1}, {"batch consumer", false, true, false, false, BATCH},
    {"rewinder", true, true, true, false, 1},   {"mover", true, true, true, true, BATCH},
};
enum { ROLES = sizeof roles / sizeof roles[0], MOVER = ROLES - 1 };

/* One open pipe, from own to other. */
static struct {
    peer_list list;
    peer *by_slot[2];
} peers_memory;
static peer only_peer;
static peer_list *peers = &peers_memory.list;

static void connect_peers(void)
{
    uint32_t id = pipe_reserve(&own);
    pipe_open(&own, id, "other", 7, PIPE_TO_INBOX);
    CHECK(id == 1, "the first pipe is %u", id);
    only_peer = (peer){.id = id, .peer_id = 7, .slot = pipe_find(&own, id), .inbox = &other.inbox};
    *peers = (peer_list){.version = segment_version(&own), .size = 2, .receivers = 1, .only = &only_peer};
    peers_memory.list.by_slot[1] = &only_peer;
}

static int move_some(rng *g)
{
    uint32_t turn = 0;
    atomic_store(&b->moving[me], 1);
    int rc = flush_pending(&own, peers, &turn, rng_one_in(g, 2));
    atomic_store(&b->moving[me], 0);
    note_step();
    return rc;
}

static void check_code(int rc)
{
    CHECK(rc == RING_OK || rc == RING_EMPTY || rc == RING_FULL || rc == RING_BUSY, "a ring gave %d", rc);
}

static void act(const role *as, rng *g)
{
    unsigned n = as->batch == 1 ? 1 : 1 + (unsigned)rng_below(g, as->batch);
    if (as->moves) {
        check_code(push_some(&own.pending, n, g));
        check_code(move_some(g));
        check_code(pop_some(&other.inbox, BATCH, g));
        return;
    }
    if (as->produces)
        check_code(push_some(&other.inbox, n, g));
    if (as->consumes)
        check_code(pop_some(&other.inbox, as->rewinds ? BATCH : n, g));
    if (!as->produces || !as->consumes)
        sched_yield();
}

/* The others: they do everything now and then, and nothing for long. */
static void act_as_any(rng *g, bool moves)
{
    static const role all[] = {
        {"", true, false, false, false, 1}, {"", true, false, false, false, BATCH},
        {"", false, true, false, false, 1}, {"", false, true, false, false, BATCH},
        {"", true, true, true, false, 1},   {"", true, true, true, true, BATCH},
    };
    act(&all[rng_below(g, moves ? 6 : 5)], g);
    if (rng_one_in(g, 16))
        nap((int64_t)rng_below(g, 50000));
}

static void be_child(int number)
{
    me = number;
    give_time(60);
}

static int wait_for_child(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child, "no child");
    return status;
}

static void await_clean_end(pid_t child)
{
    int status;
    for (int64_t end = soon(HANG_NS); waitpid(child, &status, WNOHANG) != child;) {
        CHECK(platform_now() < end, "a surviving process does not end");
        nap(MS);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a surviving process ended with status %x", (unsigned)status);
}

/* ---- one field for all cases: made anew each time ---- */

static void make_segment(segment *seg, void *base, uint64_t size, int fd)
{
    CHECK(make_segment_of(base, fd, CAPACITY, ANY, CAPACITY, ANY), "a segment");
    CHECK(segment_attach(seg, base, size, fd) == RING_OK, "a segment");
}

/* Every other case begins where positions and counts are about to wrap. */
static void reset(bool at_wrap)
{
    static uint64_t size;
    if (!size) {
        size = segment_size(CAPACITY, CAPACITY);
        int unused;
        b = map_shared(sizeof *b, &unused);
        own_base = map_shared(size, &own_fd);
        other_base = map_shared(size, &other_fd);
    }
    uint32_t used = atomic_load(&b->next);
    memset((void *)b->entries, 0, (used < NUMBERS_MOST ? used : NUMBERS_MOST) * sizeof(entry));
    memset((void *)own_base, 0, SEGMENT_PAGE + 2 * sizeof(pipe_slot));
    atomic_store(&b->next, 0);
    atomic_store(&b->stop, 0);
    for (int i = 0; i < WORKERS; i++) {
        atomic_store(&b->steps[i], 0);
        atomic_store(&b->moving[i], 0);
    }
    make_segment(&own, own_base, size, own_fd);
    make_segment(&other, other_base, size, other_fd);
    if (at_wrap) {
        start_ring_at(&other.shared->inbox, (uint32_t)-100, ((uint64_t)3 << 32) - 50);
        start_ring_at(&own.shared->pending, (uint32_t)-100, ((uint64_t)3 << 32) - 50);
    }
    connect_peers();
    fatal = NOWHERE;
    fatal_pause = 0;
    me = 0;
}

/* ---- checks ---- */

/* Both locks can be had at once and what stands there agrees. Nobody else works on the ring. */
static void check_ring(ring *r)
{
    ring_writer w;
    ring_reader reader;
    CHECK(ring_begin(r, &w, false) == RING_OK, "the producers' lock was not recovered");
    ring_end(&w);
    CHECK(ring_enter(r, &reader, false) == RING_OK, "the consumers' lock was not recovered");
    ring_leave(&reader);
    const ring_shared *s = r->shared;
    uint64_t pushed = s->pushed, popped = s->popped;
    CHECK(pushed - popped == ring_depth(r), "pushed %llu, popped %llu, depth %u", (unsigned long long)pushed,
          (unsigned long long)popped, ring_depth(r));
    CHECK((uint32_t)pushed == (uint32_t)s->tail && (uint32_t)popped == (uint32_t)s->head,
          "counters and cursors differ");
    CHECK(ring_used(r) <= r->capacity, "%llu bytes used", (unsigned long long)ring_used(r));
    CHECK(ring_depth(r) || s->head == s->tail, "an empty ring whose cursors differ");
}

static void drain(rng *g)
{
    int64_t end = soon(HANG_NS);
    while (ring_depth(&own.pending) || ring_depth(&other.inbox)) {
        check_code(move_some(g));
        check_code(pop_some(&other.inbox, BATCH, g));
        CHECK(platform_now() < end, "the rings do not run empty");
    }
}

/* Thousands more go through, alone in the field. */
static void use_on(unsigned n, rng *g)
{
    for (unsigned i = 0; i < n; i++) {
        check_code(push_some(&other.inbox, 1 + (unsigned)rng_below(g, BATCH), g));
        check_code(push_some(&own.pending, 1, g));
        check_code(move_some(g));
        check_code(pop_some(&other.inbox, BATCH, g));
    }
    drain(g);
}

/* ---- killed at a point ---- */

typedef struct {
    int point;
    const role *victim;
    unsigned visit;
    bool at_wrap, alone; /* alone: no other process meanwhile, so that occurrences are counted exactly */
    int64_t pause;
} kill_case;

/* Whether a producer of that state must have sent the message, when killed there. */
static bool must_come(int sent, int at)
{
    return sent == SENT || (sent == PUT && at == PUBLISHED);
}

/* Whether a consumer that had it in hand took it away, when killed there. */
static bool took_away(int at)
{
    return at == TAKEN || at == LEAVE || at == LEAVE_WAKE;
}

/* What the dead process left: the messages in its hand, by what the point says of them. */
static unsigned judge(const kill_case *c, int victim, unsigned *lost)
{
    uint32_t used = atomic_load(&b->next);
    unsigned taken_away = 0;
    *lost = 0;
    for (uint32_t i = 0; i < used && i < NUMBERS_MOST; i++) {
        entry *e = &b->entries[i];
        unsigned got = e->got;
        CHECK(got <= 1, "message %u came %u times", i, got);
        if (e->taking == 1 + victim && !got) {
            CHECK(took_away(c->point), "message %u was read by the killed process, not taken, and is lost", i);
            taken_away++;
            continue;
        }
        if (must_come(e->sent, c->point))
            *lost += !got;
        else
            CHECK(got == 0, "message %u was not published (state %u) and yet came", i, e->sent);
    }
    return taken_away;
}

/* A mover killed between the two rings loses the one message it moves, rather than have it twice. */
static unsigned may_lose(const kill_case *c)
{
    return c->victim->moves && c->point == TAKEN ? 1 : 0;
}

static void run_victim(const kill_case *c, uint64_t stream)
{
    rng g = rng_new(stream);
    be_child(2);
    fatal = c->point;
    fatal_visit = c->visit;
    fatal_pause = c->pause;
    for (int64_t end = soon(HANG_NS); platform_now() < end;) {
        act(c->victim, &g);
        if (c->alone && !c->victim->consumes && ring_depth(&other.inbox) > 30)
            break; /* nobody else takes anything */
    }
    _exit(3);
}

static void run_survivor(uint64_t stream)
{
    rng g = rng_new(stream);
    be_child(1);
    while (!atomic_load(&b->stop))
        act_as_any(&g, true);
    _exit(0);
}

/* After the death both this process and the survivor take steps. */
static void check_going_on(int64_t died, bool survivor, rng *g)
{
    uint64_t before = atomic_load(&b->steps[1]);
    int done = 0;
    while (done != 3) {
        CHECK(platform_now() - died < HANG_NS, "the %s does not go on", done & 1 ? "parent" : "survivor");
        int in = push_some(&other.inbox, 1, g);
        check_code(in);
        int out = pop_some(&other.inbox, 1, g);
        check_code(out);
        if (out != RING_BUSY)
            done |= 1;
        if (!survivor || atomic_load(&b->steps[1]) > before + 1)
            done |= 2;
        if (done != 3)
            sched_yield();
    }
    slow_cases += platform_now() - died > GO_ON_NS;
}

static void prefill(const kill_case *c, rng *g)
{
    if (c->victim->consumes && !c->victim->produces)
        for (unsigned i = 0; i < 30; i++)
            check_code(push_some(&other.inbox, 1, g));
}

static void run_case(const kill_case *c, uint64_t stream)
{
    rng g = rng_new(stream);
    reset(c->at_wrap);
    prefill(c, &g);
    pid_t survivor = 0;
    if (!c->alone && (survivor = fork()) == 0)
        run_survivor(stream + 1);
    pid_t victim = fork();
    if (victim == 0)
        run_victim(c, stream + 2);
    int status = wait_for_child(victim);
    int64_t died = platform_now();
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a %s never came %u times to '%s' (status %x)",
          c->victim->name, c->visit, points[c->point].name, (unsigned)status);
    check_going_on(died, survivor != 0, &g);
    atomic_store(&b->stop, 1);
    if (survivor)
        await_clean_end(survivor);
    drain(&g);
    use_on(400, &g);
    check_ring(&other.inbox);
    check_ring(&own.pending);
    unsigned lost, taken_away = judge(c, 2, &lost);
    CHECK(taken_away <= BATCH, "one batch holds at most %u messages, %u are gone", BATCH, taken_away);
    CHECK(lost <= may_lose(c), "%u messages are lost after a %s was killed at '%s'", lost, c->victim->name,
          points[c->point].name);
    cases++;
}

static bool comes_there(const role *as, int at)
{
    if (at == REWIND)
        return as->rewinds;
    return (as->produces && points[at].produces) || (as->consumes && points[at].consumes);
}

static void kill_at_points(unsigned visits)
{
    static const unsigned all_visits[] = {1, 2, 3, 7, 20};
    uint64_t stream = 100000;
    for (int at = 0; at < POINTS; at++)
        for (int as = 0; as < ROLES; as++)
            for (unsigned v = 0; v < visits && comes_there(&roles[as], at); v++, stream += 10) {
                kill_case c = {.point = at, .victim = &roles[as], .visit = all_visits[v], .at_wrap = v % 2};
                c.pause = v % 2 ? 2 * MS : 0;
                c.alone = v == 0;
                test_name = points[at].name;
                give_time(60);
                run_case(&c, stream);
            }
}

/* ---- sleepers whose waker is killed ---- */

/* The child is the only one who could wake; it is killed before it does. */
static void check_sleeper(int at, bool for_room)
{
    rng g = rng_new((uint64_t)at);
    ring *r = &other.inbox;
    reset(false);
    ring_set_spin(0);
    atomic_store(&r->spin, 0);
    while (for_room && push_some(r, 1, &g) != RING_FULL)
        ;
    message largest = message_of(ring_max_message(r)); /* only the very last pop makes room for that */
    unsigned depth = ring_depth(r);
    pid_t child = fork();
    if (child == 0) {
        be_child(2);
        nap(5 * MS);
        fatal = at;
        fatal_visit = for_room ? depth : 1;
        for (;;)
            for_room ? pop_some(r, 1, &g) : push_some(r, 1, &g);
    }
    int64_t began = platform_now();
    int rc = for_room ? ring_wait_room(r, &largest, soon(HANG_NS)) : ring_wait_readable(r, soon(HANG_NS));
    CHECK(rc == WAIT_WOKEN, "asleep for ever");
    slow_cases += platform_now() - began > GO_ON_NS + 60 * MS;
    wait_for_child(child);
    use_on(100, &g);
    check_ring(r);
    ring_set_spin(20000);
    cases++;
}

static void kill_wakers(void)
{
    for (unsigned i = 0; i < 3; i++) {
        check_sleeper(PUBLISHED, false);
        check_sleeper(END, false);
        check_sleeper(END_WAKE, false);
        check_sleeper(TAKEN, true);
        check_sleeper(LEAVE, true);
        check_sleeper(LEAVE_WAKE, true);
    }
}

/* ---- a waiter for a lock that is killed just when it is woken ---- */

static void stay_on_one_processor(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sched_getcpu(), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static pid_t start_lock_waiter(int number)
{
    pid_t child = fork();
    if (child == 0) {
        ring_writer w;
        be_child(number);
        CHECK(ring_begin(&other.inbox, &w, true) == RING_OK, "an open ring");
        ring_end(&w);
        note_step();
        _exit(0);
    }
    nap(3 * MS); /* it sleeps on the lock now */
    return child;
}

/* Two sleep on a lock. The one that its release wakes is killed before it runs, while the lock is taken anew: the new
 * holder does not know of the other one. */
static void kill_woken_waiter(void)
{
    ring_writer w;
    reset(false);
    CHECK(ring_begin(&other.inbox, &w, true) == RING_OK, "a fresh ring");
    pid_t first = start_lock_waiter(2), second = start_lock_waiter(1);
    ring_end(&w);
    CHECK(ring_begin(&other.inbox, &w, true) == RING_OK, "an open ring");
    kill(first, SIGKILL);
    wait_for_child(first);
    ring_end(&w);
    int64_t died = platform_now();
    while (!atomic_load(&b->steps[1])) {
        CHECK(platform_now() - died < HANG_NS, "a waiter sleeps on a lock that is free");
        nap(MS);
    }
    slow_cases += platform_now() - died > GO_ON_NS;
    cases++;
    await_clean_end(second);
}

static void kill_woken_waiters(void)
{
    pid_t child = fork(); /* only there all stay on one processor */
    if (child == 0) {
        test_name = "woken waiters";
        give_time(60);
        stay_on_one_processor();
        for (unsigned i = 0; i < 20; i++)
            kill_woken_waiter();
        _exit(slow_cases > 2);
    }
    int status = wait_for_child(child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
}

/* ---- killed at any instant ---- */

static void run_worker(int number, uint64_t stream)
{
    rng g = rng_new(stream);
    be_child(number);
    while (!atomic_load(&b->stop) && atomic_load(&b->next) < NUMBERS_MOST - 100)
        act_as_any(&g, true);
    _exit(0);
}

static pid_t start_worker(int number, uint64_t stream)
{
    pid_t child = fork();
    CHECK(child >= 0, "no process");
    if (child == 0)
        run_worker(number, stream);
    return child;
}

/* What the killed one had in hand may come or not; its successor has the same place on the board. */
static void mark_doubtful(int worker, uint32_t *from)
{
    uint32_t used = atomic_load(&b->next), oldest = used;
    for (uint32_t i = *from; i < used && i < NUMBERS_MOST; i++) {
        entry *e = &b->entries[i];
        if (!e->got && !e->doubtful && oldest == used)
            oldest = i;
        if (!e->got && e->taking == 1 + worker)
            e->doubtful = 1;
    }
    *from = oldest; /* all before it are done with */
}

static void check_all(unsigned kills, unsigned in_move)
{
    uint32_t used = atomic_load(&b->next);
    unsigned unfinished = 0, gone = 0, lost = 0;
    for (uint32_t i = 0; i < used && i < NUMBERS_MOST; i++) {
        entry *e = &b->entries[i];
        CHECK(e->got <= 1, "message %u came %u times", i, e->got);
        if (e->sent == SENT && !e->got && !e->doubtful)
            lost++;
        gone += !e->got && e->doubtful;
        unfinished += e->sent == STARTED || e->sent == PUT;
        CHECK(e->sent != UNUSED || !e->got, "message %u was not sent and yet came", i);
    }
    CHECK(lost <= in_move, "%u messages are lost, %u processes were killed moving one", lost, in_move);
    CHECK(gone <= kills * BATCH && unfinished <= kills * BATCH, "%u and %u in the hands of %u", gone, unfinished,
          kills);
    printf("%u random kills among %u messages: %u not finished, %u taken, %u in between\n", kills, used, unfinished,
           gone, lost);
}

/* Whoever is left takes steps. */
static void await_steps(int dead)
{
    uint64_t before[WORKERS];
    int64_t died = platform_now();
    for (int i = 0; i < WORKERS; i++)
        before[i] = atomic_load(&b->steps[i]);
    for (int i = 1; i < WORKERS; i++)
        while (i != dead && atomic_load(&b->steps[i]) == before[i] && atomic_load(&b->next) < NUMBERS_MOST - 100) {
            CHECK(platform_now() - died < HANG_NS, "worker %d does not go on", i);
            nap(20000);
        }
    slow_cases += platform_now() - died > GO_ON_NS;
    cases++;
}

static void kill_at_random(unsigned kills)
{
    pid_t workers[WORKERS] = {0};
    unsigned in_move = 0;
    uint32_t from = 0;
    rng g = rng_new(1);
    test_name = "random kills";
    give_time(200);
    reset(true);
    for (int i = 1; i < WORKERS; i++)
        workers[i] = start_worker(i, (uint64_t)i);
    for (unsigned i = 0; i < kills; i++) {
        nap((int64_t)rng_below(&g, 3 * MS));
        int dead = 1 + (int)rng_below(&g, WORKERS - 1);
        kill(workers[dead], SIGKILL);
        int status = wait_for_child(workers[dead]);
        CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "a worker ended with status %x", (unsigned)status);
        in_move += atomic_exchange(&b->moving[dead], 0);
        mark_doubtful(dead, &from);
        await_steps(dead);
        workers[dead] = start_worker(dead, 1000 + i);
    }
    atomic_store(&b->stop, 1);
    for (int i = 1; i < WORKERS; i++)
        await_clean_end(workers[i]);
    drain(&g);
    use_on(400, &g);
    check_ring(&other.inbox);
    check_ring(&own.pending);
    check_all(kills, in_move);
}

/* ---- the table above and the source ---- */

static void check_source(const char *path)
{
    bool found[POINTS] = {false};
    find_points(path, point_called, found);
    for (int i = 0; i < POINTS; i++)
        CHECK(found[i], "'%s' is not in %s", points[i].name, path);
}

static void check_reached(void)
{
    CHECK(!atomic_load(&b->unknown), "a point was reached that is not in the table");
    for (int i = 0; i < POINTS; i++)
        CHECK(b->reached[i], "'%s' was never reached", points[i].name);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: crash path/to/ring.c [scale [seed]]\n");
        return 2;
    }
    double scale = argc > 2 ? atof(argv[2]) : 1;
    test_seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
    int64_t began = platform_now();
    test_name = "source";
    check_source(argv[1]);
    ring_set_spin(20000);
    kill_at_points(scale < 1 ? 3 : 5);
    test_name = "sleepers";
    give_time(60);
    kill_wakers();
    kill_woken_waiters();
    kill_at_random(scale * 300 < 1 ? 1 : (unsigned)(scale * 300));
    check_reached();
    CHECK(slow_cases <= 2 + cases / 50, "%u of %u kills held up the others for more than 100 ms", slow_cases, cases);
    printf("%u kills in all, %u slow, %.2f s\n", cases, slow_cases, (double)(platform_now() - began) / 1e9);
    return 0;
}
