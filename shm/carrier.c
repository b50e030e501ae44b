#include "carrier.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 256
/* The reader reads so often for one wire before it looks after others. */
#define READS_MOST 4
/* So long it stays awake for the rest of a large content, ns. */
#define AWAKE_NS 50000
#define LOW_MARK_MOST (256 << 10)
/* How soon it looks again whether there is room, at first and at most, ns. */
#define RETRY_FIRST 50000
#define RETRY_MOST 2000000
/* How soon it looks again whether a peer has confirmed all, ns. */
#define CONFIRM_NS 2000000
/* How soon it looks again whether all is written of a wire that shall end, ns. */
#define FINISH_LOOK 10000000
/* An arena that has no room for so long will have none for this wire, ns. */
#define STARVE_MOST ((int64_t)30 * 1000000000)
/* The writer takes so many wires at a go. */
#define DUE 64

typedef struct story {
    tale t;
    struct story *next;
} story;

struct carrier {
    pthread_mutex_t lock; /* over all that is said to be under it; held for short, never while bytes are moved */
    pthread_t reader, writer;
    _Atomic bool stopping;
    /* Loads so far. What their makers wrote is seen by the reader, whom only the system tells of them. */
    _Atomic unsigned added;
    int poller, poke, told_fd;
    event hurry; /* wakes the writer */
    bool is_asleep; /* the writer looks at the words of all posts, without the lock */
    unsigned sleeps; /* how often it did, so far */
    post *posts;
    load *loads;
    story *first, *last;
    uint8_t *scratch; /* the reader's */
    uint8_t garbage[4096];
};

/* A process has one at a time; a child made by fork has none of its parent's threads. */
static carrier *the_carrier;

/* ---- telling ---- */

static void tell(carrier *c, load *l, int what, int reason)
{
    story *s = malloc(sizeof *s);
    if (!s)
        return;
    s->t = (tale){.whose = l, .what = what, .reason = reason, .error = l->w.error};
    s->next = NULL;
    if (c->last)
        c->last->next = s;
    else
        c->first = s;
    c->last = s;
    platform_poke(c->told_fd);
}

static void tell_end(carrier *c, load *l, int reason)
{
    pthread_mutex_lock(&c->lock);
    if (!l->is_told_end)
        tell(c, l, TOLD_END, reason);
    l->is_told_end = true;
    pthread_mutex_unlock(&c->lock);
}

int carrier_told_fd(const carrier *c)
{
    return c->told_fd;
}

unsigned carrier_told(carrier *c, tale *out, unsigned most)
{
    unsigned n = 0;
    pthread_mutex_lock(&c->lock);
    platform_calm(c->told_fd);
    while (n < most && c->first) {
        story *s = c->first;
        c->first = s->next;
        if (!c->first)
            c->last = NULL;
        out[n] = s->t;
        if (s->t.what == TOLD_WRITABLE)
            s->t.whose->is_told_writable = false;
        n++;
        free(s);
    }
    if (c->first)
        platform_poke(c->told_fd);
    pthread_mutex_unlock(&c->lock);
    return n;
}

/* ---- who is carried ---- */

static uint32_t slot_of(const load *l)
{
    return l->w.pipe & (BELL_SLOTS - 1);
}

static void take_out(carrier *c, load *l)
{
    for (load **at = &c->loads; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    if (slot_of(l) < l->post->size && l->post->by_slot[slot_of(l)] == l)
        l->post->by_slot[slot_of(l)] = NULL;
}

/* Under the lock. */
static void let_go(carrier *c, load *l)
{
    if (--l->users == 0)
        tell(c, l, TOLD_GONE, WIRE_OK);
}

static void hurry(carrier *c)
{
    event_notify_all(&c->hurry);
}

void carrier_add_post(carrier *c, post *p)
{
    pthread_mutex_lock(&c->lock);
    p->by_slot = NULL;
    p->size = 0;
    p->next = c->posts;
    c->posts = p;
    pthread_mutex_unlock(&c->lock);
    hurry(c);
}

void carrier_remove_post(carrier *c, post *p)
{
    pthread_mutex_lock(&c->lock);
    for (post **at = &c->posts; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    free(p->by_slot);
    p->by_slot = NULL;
    p->size = 0;
    /* Its memory may go afterwards, so a writer who may look at it now must have done so. */
    for (unsigned sleeps = c->sleeps; c->is_asleep && c->sleeps == sleeps;) {
        pthread_mutex_unlock(&c->lock);
        hurry(c);
        platform_yield();
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

static int find_place(post *p, uint32_t slot)
{
    if (slot < p->size)
        return 0;
    uint32_t size = p->size ? p->size : 16;
    while (size <= slot)
        size *= 2;
    load **grown = realloc(p->by_slot, size * sizeof *grown);
    if (!grown)
        return ENOMEM;
    memset(grown + p->size, 0, (size - p->size) * sizeof *grown);
    p->by_slot = grown;
    p->size = size;
    return 0;
}

int carrier_add(carrier *c, load *l)
{
    pthread_mutex_lock(&c->lock);
    int rc = find_place(l->post, slot_of(l));
    if (rc == 0) {
        l->users = 1;
        l->patience = RETRY_FIRST;
        l->post->by_slot[slot_of(l)] = l;
        l->next = c->loads;
        c->loads = l;
        l->is_blocked = l->w.chunk && l->w.fd >= 0; /* raw: it is announced at once */
        atomic_fetch_add_explicit(&c->added, 1, memory_order_release);
        if (l->w.fd >= 0 && platform_poller_add(c->poller, l->w.fd, l) < 0) {
            rc = errno;
            take_out(c, l);
        }
    }
    pthread_mutex_unlock(&c->lock);
    platform_poke(c->poke);
    /* For what was sent before somebody could hear the bell. */
    if (rc == 0 && ring_depth(l->w.outbox))
        bell_ring(l->post->rung, l->post->waiting, slot_of(l));
    return rc;
}

void carrier_finish(carrier *c, load *l, int64_t deadline)
{
    pthread_mutex_lock(&c->lock);
    if (deadline <= 0)
        deadline = 1; /* long ago */
    if (!l->finish_by || deadline < l->finish_by)
        l->finish_by = deadline;
    pthread_mutex_unlock(&c->lock);
    platform_poke(c->poke);
}

/* ---- writing ---- */

static void flush(carrier *c, load *l)
{
    int rc = wire_flush(&l->w);
    if (rc == WIRE_MORE)
        bell_ring(l->post->rung, l->post->waiting, slot_of(l));
    if (rc == WIRE_FAILED || rc == WIRE_CORRUPT)
        tell_end(c, l, rc);
    /* Found out by who writes directly, and tells nobody. The reader may come to the end much later. */
    if (rc == WIRE_CLOSED && atomic_load_explicit(&l->w.is_broken, memory_order_acquire) && l->w.error)
        tell_end(c, l, WIRE_FAILED);
    if (rc != WIRE_MORE && rc != WIRE_BLOCKED && rc != WIRE_BUSY && l->finish_by)
        platform_poke(c->poke); /* nothing is left, or nothing goes any more */
}

/* Under the lock. The next post comes first: nobody waits for ever behind those who always have something. */
static void rotate_posts(carrier *c)
{
    post *first = c->posts;
    if (!first || !first->next)
        return;
    post *last = first;
    while (last->next)
        last = last->next;
    c->posts = first->next;
    first->next = NULL;
    last->next = first;
}

/* Under the lock. Those of a post with something to write; goes on where the last call has stopped. */
static unsigned find_due_of(post *p, load **due, unsigned most)
{
    unsigned n = 0;
    uint32_t slot = p->from ? p->from : 1;
    while (n < most && (slot = bell_next(p->waiting, slot, p->size))) {
        load *l = slot < p->size ? p->by_slot[slot] : NULL;
        slot++;
        if (!l)
            continue;
        l->users++;
        due[n++] = l;
    }
    p->from = slot;
    return n;
}

/* Under the lock. Those with something to write, to be let go afterwards. None: all posts were looked through. */
static unsigned find_due(carrier *c, load **due)
{
    unsigned n = 0;
    rotate_posts(c);
    for (post *p = c->posts; p && n < DUE; p = p->next)
        n += find_due_of(p, due + n, DUE - n);
    return n;
}

/* Rings for all who have something: a sender may have been killed before it did. */
static void look_at_all(carrier *c)
{
    pthread_mutex_lock(&c->lock);
    for (load *l = c->loads; l; l = l->next)
        if (!wire_looks_idle(&l->w))
            bell_ring(l->post->rung, l->post->waiting, slot_of(l));
    pthread_mutex_unlock(&c->lock);
}

/* Under the lock. */
static unsigned arm_bells(carrier *c, _Atomic uint32_t **words, uint32_t *tickets)
{
    unsigned n = 1;
    words[0] = &c->hurry.seq;
    tickets[0] = event_arm(&c->hurry);
    for (post *p = c->posts; p && n < PLATFORM_WAIT_MANY; p = p->next, n++) {
        words[n] = &p->rung->seq;
        tickets[n] = event_arm(p->rung);
    }
    return n;
}

static void write_one(carrier *c, load *l)
{
    if (l->w.fd >= 0) {
        flush(c, l);
        return;
    }
    pthread_mutex_lock(&c->lock);
    if (!l->is_told_writable && !wire_is_closed(&l->w)) {
        l->is_told_writable = true;
        tell(c, l, TOLD_WRITABLE, WIRE_OK);
    }
    pthread_mutex_unlock(&c->lock);
}

static void write_due(carrier *c, load **due, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        write_one(c, due[i]);
    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; i < n; i++)
        let_go(c, due[i]);
    pthread_mutex_unlock(&c->lock);
}

/* Until somebody rings. is_asleep was set when the words were armed. */
static void sleep_now(carrier *c, _Atomic uint32_t **words, const uint32_t *tickets, unsigned n)
{
    int rc = platform_wait_many(words, tickets, n, event_slice(NEVER));
    pthread_mutex_lock(&c->lock);
    c->is_asleep = false;
    c->sleeps++;
    pthread_mutex_unlock(&c->lock);
    if (rc == WAIT_TIMEOUT)
        look_at_all(c);
}

static void *write_all(void *arg)
{
    carrier *c = arg;
    _Atomic uint32_t *words[PLATFORM_WAIT_MANY];
    uint32_t tickets[PLATFORM_WAIT_MANY];
    load *due[DUE];
    bool is_armed = false;
    while (!atomic_load(&c->stopping)) {
        pthread_mutex_lock(&c->lock);
        unsigned words_n = is_armed ? arm_bells(c, words, tickets) : 0;
        unsigned n = find_due(c, due);
        c->is_asleep = is_armed && n == 0;
        pthread_mutex_unlock(&c->lock);
        if (n)
            write_due(c, due, n);
        else if (is_armed) /* only when nobody rang for one look: who rings meanwhile need not wake us */
            sleep_now(c, words, tickets, words_n);
        is_armed = n == 0;
    }
    return NULL;
}

/* ---- reading ---- */

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void block_for_now(load *l)
{
    l->is_ready = false;
    l->is_blocked = true;
    l->retry_at = platform_now() + l->patience;
    l->patience = least(2 * l->patience, RETRY_MOST);
}

static void end_reading(carrier *c, load *l, int reason)
{
    l->is_ready = l->is_blocked = false;
    l->is_over = true;
    if (!(l->w.chunk && reason == WIRE_END && l->keeps_half))
        tell_end(c, l, reason);
}

static void read_result(carrier *c, load *l, int rc)
{
    bool is_starved = l->w.starved && platform_now() - l->w.starved > STARVE_MOST;
    if (rc == WIRE_BLOCKED && is_starved)
        rc = WIRE_NO_MEMORY;
    if (rc == WIRE_BLOCKED)
        block_for_now(l);
    else if (rc != WIRE_OK)
        end_reading(c, l, rc);
    else
        l->patience = RETRY_FIRST;
}

static bool is_amid_content(const load *l)
{
    return l->w.content && l->w.content->is_active;
}

/* For the middle of a large content it is enough to be woken once for many bytes: each time costs both sides. */
static void set_low_mark(load *l)
{
    size_t missing = is_amid_content(l) ? l->w.content->room - l->w.content->filled : 0;
    int mark = missing > LOW_MARK_MOST ? LOW_MARK_MOST : missing ? (int)missing : 1;
    if (mark == l->low_mark)
        return;
    l->low_mark = mark;
    setsockopt(l->w.fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark);
}

/* The rest of a large content is on its way: being woken for each part of it costs both sides more than waiting awake. */
static bool await_more(load *l)
{
    uint8_t byte;
    for (int64_t end = platform_now() + AWAKE_NS; platform_now() < end; platform_yield())
        if (recv(l->w.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
            return true;
    return false;
}

/* One read. False: nothing more for now. */
static bool read_once(carrier *c, load *l)
{
    size_t room;
    uint8_t *to = wire_space(&l->w, c->scratch, &room);
    ssize_t n = recv(l->w.fd, to, room, MSG_DONTWAIT);
    if (n > 0) {
        read_result(c, l, wire_filled(&l->w, c->scratch, (size_t)n));
        if (l->is_ready && (size_t)n < room && !l->is_hung && !is_amid_content(l))
            l->is_ready = false; /* all that there was: an edge tells of more */
        if (!l->is_ready)
            set_low_mark(l);
        return l->is_ready;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        if (is_amid_content(l) && await_more(l))
            return true;
        l->is_ready = false;
        set_low_mark(l);
        return false;
    }
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0)
        l->w.error = errno;
    read_result(c, l, n < 0 ? WIRE_FAILED : wire_end(&l->w));
    return false;
}

/* A connection that is being closed: what still comes is thrown away. */
static void read_garbage(carrier *c, load *l)
{
    for (int i = 0; i < READS_MOST; i++) {
        ssize_t n = recv(l->w.fd, c->garbage, sizeof c->garbage, MSG_DONTWAIT);
        if (n > 0 || (n < 0 && errno == EINTR))
            continue;
        l->is_ready = false;
        l->is_over |= !(n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
        return;
    }
}

static void read_some(carrier *c, load *l)
{
    if (l->is_finishing) {
        read_garbage(c, l);
        return;
    }
    if (l->is_over) {
        l->is_ready = false;
        return;
    }
    for (int i = 0; i < READS_MOST && read_once(c, l); i++)
        continue;
}

static void try_again(carrier *c, load *l)
{
    l->is_blocked = false;
    l->is_ready = true;
    int rc = wire_take(&l->w, c->scratch);
    read_result(c, l, rc);
}

static void close_load(carrier *c, load *l)
{
    int fd = wire_close(&l->w);
    if (fd >= 0) {
        platform_poller_remove(c->poller, fd);
        close(fd);
        wire_drop(&l->w); /* others read wires without descriptor */
    }
    l->is_ready = l->is_blocked = false;
    pthread_mutex_lock(&c->lock);
    take_out(c, l);
    let_go(c, l);
    pthread_mutex_unlock(&c->lock);
}

/* A wire that shall end. Gives when to look again, or 0: at once. */
static int64_t finish(carrier *c, load *l, int64_t now)
{
    l->is_finishing = true;
    l->is_blocked = false;
    bool broken = atomic_load_explicit(&l->w.is_broken, memory_order_acquire) || l->w.fd < 0;
    if (broken || now >= l->finish_by) {
        close_load(c, l);
        return NEVER;
    }
    if (!l->is_shut && !wire_is_idle(&l->w)) {
        /* Its slot may be another's by now, and whoever writes directly tells us nothing. */
        flush(c, l);
        return least(now + FINISH_LOOK, l->finish_by);
    }
    if (!l->is_shut) {
        shutdown(l->w.fd, SHUT_WR);
        l->is_shut = true;
        l->is_ready = true;
    }
    if (!l->is_over)
        read_garbage(c, l);
    /* Closed earlier, what is on its way would be lost; closed with something unread, the peer would see a reset. */
    if (l->is_over || (!l->is_ready && platform_unconfirmed(l->w.fd) == 0)) {
        close_load(c, l);
        return NEVER;
    }
    return l->is_ready ? 0 : least(now + CONFIRM_NS, l->finish_by);
}

/* Goes through all wires: gives when to look again, or 0: at once. */
static int64_t look_after_all(carrier *c)
{
    int64_t next = NEVER;
    int64_t now = platform_now();
    pthread_mutex_lock(&c->lock);
    load *l = c->loads;
    pthread_mutex_unlock(&c->lock);
    while (l) {
        /* Only this thread takes wires out, and new ones come in front. */
        load *after = l->next;
        if (l->is_blocked && !l->is_finishing && now >= l->retry_at)
            try_again(c, l);
        if (l->is_ready)
            read_some(c, l);
        bool is_ready = l->is_ready;
        if (l->is_blocked)
            next = least(next, l->retry_at);
        int64_t finish_by = atomic_load(&l->finish_by);
        if (finish_by)
            next = least(next, finish(c, l, now));
        else if (is_ready)
            next = 0;
        l = after;
    }
    return next;
}

static void *read_all(void *arg)
{
    carrier *c = arg;
    readiness events[EVENTS];
    int64_t until = 0;
    while (!atomic_load(&c->stopping)) {
        int n = platform_poller_wait(c->poller, events, EVENTS, until);
        atomic_load_explicit(&c->added, memory_order_acquire);
        bool is_poked = until != NEVER && n == 0;
        for (int i = 0; i < n; i++) {
            load *l = events[i].whose;
            if (!l) {
                platform_calm(c->poke);
                is_poked = true;
                continue;
            }
            if (events[i].what & READY_TO_WRITE)
                flush(c, l);
            l->is_hung |= (events[i].what & READY_TO_END) != 0;
            if (events[i].what & READY_TO_READ && !l->is_blocked) {
                l->is_ready = true;
                read_some(c, l);
            }
            /* Only those with something left need the round through all. */
            is_poked |= l->is_ready || l->is_blocked || l->finish_by;
        }
        if (is_poked || (until != NEVER && platform_now() >= until))
            until = look_after_all(c);
    }
    return NULL;
}

/* ---- the threads ---- */

static void before_fork(void)
{
    if (the_carrier)
        pthread_mutex_lock(&the_carrier->lock);
}

static void after_fork_in_parent(void)
{
    if (the_carrier)
        pthread_mutex_unlock(&the_carrier->lock);
}

/* The child gives up its copies, without a word to the peers: they must see the parent's death although it lives on. */
static void after_fork_in_child(void)
{
    carrier *c = the_carrier;
    the_carrier = NULL;
    if (!c)
        return;
    for (load *l = c->loads; l; l = l->next) {
        if (l->w.fd >= 0)
            close(l->w.fd);
        l->w.fd = -1;
        atomic_store(&l->w.is_closed, 1);
    }
    close(c->poller);
    close(c->poke); /* told_fd is left to whoever listens there */
}

static int start_thread(pthread_t *thread, void *(*run)(void *), carrier *c)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the interpreter's threads */
    int rc = pthread_create(thread, NULL, run, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

static void destroy(carrier *c)
{
    for (int *fd = (int[]){c->poller, c->poke, c->told_fd, -2}; *fd != -2; fd++)
        if (*fd >= 0)
            close(*fd);
    while (c->first) {
        story *s = c->first;
        c->first = s->next;
        free(s);
    }
    pthread_mutex_destroy(&c->lock);
    free(c->scratch);
    free(c);
}

carrier *carrier_start(void)
{
    static _Atomic bool is_watching;
    carrier *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    pthread_mutex_init(&c->lock, NULL);
    c->scratch = malloc(WIRE_SCRATCH);
    c->poller = platform_poller_new();
    c->poke = platform_poke_new();
    c->told_fd = platform_poke_new();
    int rc = c->scratch && c->poller >= 0 && c->poke >= 0 && c->told_fd >= 0 ? 0 : errno ? errno : ENOMEM;
    if (!rc && platform_poller_add(c->poller, c->poke, NULL) < 0)
        rc = errno;
    if (!rc && !(rc = start_thread(&c->reader, read_all, c)) && (rc = start_thread(&c->writer, write_all, c))) {
        atomic_store(&c->stopping, true);
        platform_poke(c->poke);
        pthread_join(c->reader, NULL);
    }
    if (rc) {
        destroy(c);
        errno = rc;
        return NULL;
    }
    if (!atomic_exchange(&is_watching, true))
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    the_carrier = c;
    return c;
}

void carrier_stop(carrier *c)
{
    if (c != the_carrier)
        return;
    atomic_store(&c->stopping, true);
    platform_poke(c->poke);
    hurry(c);
    pthread_join(c->reader, NULL);
    pthread_join(c->writer, NULL);
    the_carrier = NULL;
    while (c->loads)
        close_load(c, c->loads);
    destroy(c);
}
