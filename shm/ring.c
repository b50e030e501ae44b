#include "ring.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define RING_MAGIC 0x6d737269u /* "msri" */
#define RING_LAYOUT 1u
#define RECORD_HEAD 16u /* units, pipe, Meta */

/* ---- cursors ---- */

static inline uint64_t cursor(uint32_t position, uint32_t count)
{
    return (uint64_t)position << 32 | count;
}

static inline uint32_t position_of(uint64_t cursor)
{
    return (uint32_t)(cursor >> 32);
}

static inline uint32_t count_of(uint64_t cursor)
{
    return (uint32_t)cursor;
}

static inline uint32_t records_between(uint64_t head, uint64_t tail)
{
    return count_of(tail) - count_of(head);
}

static inline uint32_t units_between(uint64_t head, uint64_t tail)
{
    return position_of(tail) - position_of(head);
}

static inline uint64_t load_head(const ring *r)
{
    return atomic_load_explicit(&r->shared->head, memory_order_acquire);
}

static inline uint64_t load_tail(const ring *r)
{
    return atomic_load_explicit(&r->shared->tail, memory_order_acquire);
}

/* Index into the data of a position in bytes. */
static inline uint64_t index_of(const ring *r, uint64_t at)
{
    return at & (r->capacity - 1);
}

static inline uint64_t bytes_at(uint32_t position)
{
    return (uint64_t)position * RING_UNIT;
}

static uint64_t units_for(uint64_t message_bytes)
{
    /* RECORD_HEAD holds the Meta too. */
    return (message_bytes - META_SIZE + RECORD_HEAD + RING_UNIT - 1) / RING_UNIT;
}

/* Units that a record with a note in place of its content needs at least. */
static uint64_t units_with_note(const message *m)
{
    return units_for(message_size(m) - m->length + NOTE_SIZE);
}

/* Units that a record takes: see Far in ring.h. */
static uint64_t units_taken(const ring *r, const message *m, bool is_far)
{
    uint64_t units = units_for(message_size(m));
    if (!is_far)
        return units;
    uint64_t most = r->units / 2, least = units_with_note(m);
    if (units > most)
        units = most;
    return units < least ? least : units;
}

static uint64_t units_wanted(const ring *r, const message *m)
{
    return units_taken(r, m, m->note != NULL);
}

/* ---- making and attaching ---- */

uint64_t ring_capacity(uint64_t bytes)
{
    uint64_t capacity = RING_MIN_BYTES;
    while (capacity < bytes && capacity < RING_MAX_BYTES)
        capacity *= 2;
    return capacity;
}

int ring_init(ring_shared *shared, uint64_t capacity, uint32_t limit, uint32_t longest)
{
    memset(shared, 0, sizeof *shared);
    shared->capacity = capacity;
    shared->limit = limit;
    shared->longest = longest;
    int rc = robust_init(&shared->producers);
    if (!rc)
        rc = robust_init(&shared->consumers);
    shared->layout = RING_LAYOUT;
    shared->magic = RING_MAGIC;
    return rc;
}

int ring_attach(ring *r, ring_shared *shared, uint8_t *data, uint64_t room, void *base, int fd)
{
    if (shared->magic != RING_MAGIC || shared->layout != RING_LAYOUT)
        return RING_CORRUPT;
    uint64_t capacity = shared->capacity;
    if (capacity != room || capacity < RING_MIN_BYTES || capacity > RING_MAX_BYTES || (capacity & (capacity - 1)))
        return RING_CORRUPT;
    if (shared->limit == 0 || shared->limit > INT32_MAX)
        return RING_CORRUPT;
    r->shared = shared;
    r->data = data;
    r->capacity = capacity;
    r->units = (uint32_t)(capacity / RING_UNIT);
    r->limit = shared->limit;
    r->longest = shared->longest;
    r->base = base;
    r->fd = fd;
    atomic_store(&r->spin, ring_get_spin());
    return RING_OK;
}

static bool is_acceptable(const ring *r, const message *m, uint64_t units)
{
    return m->length <= r->longest && units <= r->units;
}

bool ring_takes(const ring *r, const message *m)
{
    return is_acceptable(r, m, units_wanted(r, m));
}

uint64_t ring_max_message(const ring *r)
{
    return r->capacity - RECORD_HEAD + META_SIZE;
}

/* ---- counters ---- */

uint32_t ring_depth(const ring *r)
{
    /* head first: read the other way round it could have passed the tail just read. */
    uint64_t head = load_head(r);
    return records_between(head, load_tail(r));
}

uint64_t ring_used(const ring *r)
{
    uint64_t head = load_head(r);
    uint32_t units = units_between(head, load_tail(r));
    return units > r->units ? 0 : bytes_at(units);
}

static bool fits(const ring *r, uint64_t head, uint64_t tail, uint64_t units)
{
    return records_between(head, tail) < r->limit && units_between(head, tail) + units <= r->units;
}

static bool has_room_left(const ring *r, const message *m, uint32_t spare_units, uint32_t spare_records)
{
    uint64_t units = units_wanted(r, m);
    if (ring_is_closed(r) || !is_acceptable(r, m, units))
        return false;
    uint64_t head = load_head(r);
    uint64_t tail = load_tail(r);
    uint64_t used = units_between(head, tail);
    uint32_t depth = records_between(head, tail);
    if (depth == 0) /* also while it is rewound, when used means nothing */
        return true;
    return depth + spare_records < r->limit && used + spare_units + units <= r->units;
}

bool ring_has_room(const ring *r, const message *m)
{
    return has_room_left(r, m, 0, 0);
}

bool ring_has_ample_room(const ring *r, const message *m)
{
    return has_room_left(r, m, r->units / 4, r->limit / 4);
}

/* ---- locks ---- */

/* The total counts on, but is stored after the cursor: bring it along when a process was killed in between. */
static void recover_total(_Atomic uint64_t *total, uint64_t cursor)
{
    uint64_t known = atomic_load_explicit(total, memory_order_relaxed);
    known += (uint32_t)(count_of(cursor) - (uint32_t)known);
    atomic_store_explicit(total, known, memory_order_relaxed);
}

/* A producer was killed: its record stands beyond tail and is forgotten; a rewind may be half done. */
static void recover_producers(ring *r)
{
    ring_shared *s = r->shared;
    uint64_t head = load_head(r);
    uint64_t tail = load_tail(r);
    if (count_of(head) == count_of(tail) && head != tail) {
        tail = head;
        atomic_store_explicit(&s->tail, tail, memory_order_release);
    }
    s->seen_head = head;
    recover_total(&s->pushed, tail);
    event_notify_all(&s->readable);
}

/* A consumer was killed: what it had not taken in full is still there. */
static void recover_consumers(ring *r)
{
    ring_shared *s = r->shared;
    s->seen_tail = load_head(r); /* looks empty, so the next look reads tail */
    recover_total(&s->popped, load_head(r));
    event_notify_all(&s->room);
}

static int lock_side(ring *r, pthread_mutex_t *lock, void (*recover)(ring *), bool wait)
{
    int rc = robust_lock(lock, wait);
    if (rc == EBUSY)
        return RING_BUSY;
    if (rc == EOWNERDEAD) {
        recover(r);
        pthread_mutex_consistent(lock);
        rc = 0;
    }
    if (rc)
        return RING_CORRUPT;
    return RING_OK;
}

static int lock_producers(ring *r, bool wait)
{
    return lock_side(r, &r->shared->producers, recover_producers, wait);
}

static int lock_consumers(ring *r, bool wait)
{
    return lock_side(r, &r->shared->consumers, recover_consumers, wait);
}

void ring_await_consumers(ring *r)
{
    if (lock_consumers(r, true) == RING_OK)
        pthread_mutex_unlock(&r->shared->consumers);
}

/* ---- producing ---- */

int ring_begin(ring *r, ring_writer *w, bool wait)
{
    int rc = lock_producers(r, wait);
    if (rc != RING_OK)
        return rc;
    if (ring_is_closed(r)) {
        pthread_mutex_unlock(&r->shared->producers);
        return RING_CLOSED;
    }
    *w = (ring_writer){.r = r, .tail = load_tail(r)};
    return RING_OK;
}

/* Start again at the first page when the ring is empty: see Rewind in ring.h. */
static void rewind_if_empty(ring_writer *w)
{
    ring *r = w->r;
    ring_shared *s = r->shared;
    uint64_t tail = w->tail;
    if (w->added || load_head(r) != tail || index_of(r, bytes_at(position_of(tail))) == 0)
        return;
    if (lock_consumers(r, false) != RING_OK)
        return;
    if (load_head(r) == tail) {
        uint64_t start = cursor((position_of(tail) | (r->units - 1)) + 1, count_of(tail));
        atomic_store_explicit(&s->head, start, memory_order_release);
        CRASH_POINT("rewind: head is ahead of tail");
        atomic_store_explicit(&s->tail, start, memory_order_release);
        s->seen_tail = start;
        s->seen_head = start;
        w->tail = start;
    }
    pthread_mutex_unlock(&s->consumers);
}

/* Memory behind [at, at + length) of the data, at already masked. */
static int reserve(ring *r, uint64_t at, uint64_t length)
{
    ring_shared *s = r->shared;
    uint64_t end = at + length;
    if (end > r->capacity)
        end = r->capacity; /* it wraps: what is at the front was reserved on the way here, or is below */
    if (end <= s->reserved)
        return RING_OK;
    uint64_t from = s->reserved;
    /* Twice as much each time: a ring that is hardly used takes one page, a busy one few calls. */
    uint64_t step = from < RING_RESERVE_LEAST  ? RING_RESERVE_LEAST
                    : from < RING_RESERVE_MOST ? from
                                               : RING_RESERVE_MOST;
    uint64_t to =
        end < from + step ? from + step : (end + RING_RESERVE_LEAST - 1) & ~(uint64_t)(RING_RESERVE_LEAST - 1);
    if (to > r->capacity)
        to = r->capacity;
    size_t offset = (size_t)((uint8_t *)r->data - (uint8_t *)r->base) + from;
    if (platform_reserve(r->fd, r->base, offset, to - from) != 0)
        return RING_NO_MEMORY;
    s->reserved = to;
    return RING_OK;
}

static void copy_in(ring *r, uint64_t at, const void *from, size_t n)
{
    uint64_t index = index_of(r, at);
    uint64_t straight = r->capacity - index;
    if (n <= straight) {
        memcpy(r->data + index, from, n);
        return;
    }
    memcpy(r->data + index, from, straight);
    memcpy(r->data, (const uint8_t *)from + straight, n - straight);
}

static void write_record(ring *r, uint64_t at, uint32_t units, uint32_t pipe, const message *m)
{
    /* Records start on whole units, so the head never wraps. */
    uint8_t *head = r->data + index_of(r, at);
    uint32_t word = units | (m->note ? RECORD_FAR : 0) | (m->is_remote ? RECORD_REMOTE : 0);
    memcpy(head, &word, 4);
    memcpy(head + 4, &pipe, 4);
    meta_encode(head + 8, m);
    at += RECORD_HEAD;
    if (m->hops)
        copy_in(r, at, m->source, source_size(m));
    at += source_size(m);
    if (m->distance)
        copy_in(r, at, m->destination, destination_size(m));
    at += destination_size(m);
    if (m->note)
        copy_in(r, at, m->note, NOTE_SIZE);
    else if (m->length)
        copy_in(r, at, m->content, m->length);
}

int ring_put(ring_writer *w, uint32_t pipe, const message *m)
{
    ring *r = w->r;
    ring_shared *s = r->shared;
    uint64_t units = units_wanted(r, m);
    if (!is_acceptable(r, m, units))
        return RING_TOO_LONG;
    uint64_t before = bytes_at(position_of(w->tail));
    if (before / RING_REWIND != (before + units * RING_UNIT) / RING_REWIND)
        rewind_if_empty(w);
    if (!fits(r, s->seen_head, w->tail, units)) {
        s->seen_head = load_head(r);
        if (units_between(s->seen_head, w->tail) > r->units)
            return RING_CORRUPT;
        if (records_between(s->seen_head, w->tail) == 0 && s->seen_head != w->tail)
            return RING_CORRUPT; /* empty, and yet not */
        if (!fits(r, s->seen_head, w->tail, units))
            return RING_FULL;
    }
    uint64_t at = bytes_at(position_of(w->tail));
    int rc = reserve(r, index_of(r, at), (m->note ? units_with_note(m) : units) * RING_UNIT);
    if (rc != RING_OK)
        return rc;
    CRASH_POINT("put: before the record is written");
    write_record(r, at, (uint32_t)units, pipe, m);
    CRASH_POINT("put: written but not published");
    w->tail = cursor(position_of(w->tail) + (uint32_t)units, count_of(w->tail) + 1);
    w->added++;
    return RING_OK;
}

void ring_publish(ring_writer *w)
{
    if (!w->added)
        return;
    ring_shared *s = w->r->shared;
    atomic_store_explicit(&s->tail, w->tail, memory_order_release);
    CRASH_POINT("publish: published but not counted");
    uint64_t pushed = atomic_load_explicit(&s->pushed, memory_order_relaxed);
    atomic_store_explicit(&s->pushed, pushed + w->added, memory_order_relaxed);
    w->total += w->added;
    w->added = 0;
}

void ring_end(ring_writer *w)
{
    CRASH_POINT("end: before the unlock");
    pthread_mutex_unlock(&w->r->shared->producers);
    CRASH_POINT("end: before the wake");
    if (w->total)
        event_notify(&w->r->shared->readable, (int)w->total);
}

int ring_push(ring *r, uint32_t pipe, const message *m, bool wait)
{
    ring_writer w;
    int rc = ring_begin(r, &w, wait);
    if (rc != RING_OK)
        return rc;
    rc = ring_put(&w, pipe, m);
    if (rc == RING_OK)
        ring_publish(&w);
    ring_end(&w);
    return rc;
}

/* ---- consuming ---- */

int ring_enter(ring *r, ring_reader *reader, bool wait)
{
    int rc = lock_consumers(r, wait);
    if (rc != RING_OK)
        return rc;
    if (ring_is_closed(r)) {
        pthread_mutex_unlock(&r->shared->consumers);
        return RING_CLOSED;
    }
    *reader = (ring_reader){.r = r, .head = load_head(r)};
    return RING_OK;
}

/* The record at a position, checked against what is published. */
static int read_record(const ring *r, uint64_t head, uint64_t tail, record *out)
{
    uint32_t available = units_between(head, tail);
    if (available > r->units || available == 0)
        return RING_CORRUPT;
    out->at = bytes_at(position_of(head));
    uint8_t copy[RECORD_HEAD]; /* read once: the memory may change under a corrupt peer's hands */
    memcpy(copy, r->data + index_of(r, out->at), RECORD_HEAD);
    memcpy(&out->units, copy, 4);
    memcpy(&out->pipe, copy + 4, 4);
    meta_decode(copy + 8, &out->head);
    out->is_far = out->units & RECORD_FAR;
    out->head.is_remote = (out->units & RECORD_REMOTE) != 0;
    out->units &= ~(RECORD_FAR | RECORD_REMOTE);
    if (out->units > available || units_taken(r, &out->head, out->is_far) != out->units)
        return RING_CORRUPT;
    return RING_OK;
}

int ring_front(ring_reader *reader, record *out)
{
    ring *r = reader->r;
    ring_shared *s = r->shared;
    if (records_between(reader->head, s->seen_tail) == 0) {
        s->seen_tail = load_tail(r);
        if (records_between(reader->head, s->seen_tail) == 0)
            return RING_EMPTY;
    }
    int rc = read_record(r, reader->head, s->seen_tail, out);
    if (rc == RING_OK)
        return RING_OK;
    reader->head = s->seen_tail; /* nothing behind a broken record can be found again */
    return RING_CORRUPT;
}

void ring_pop(ring_reader *reader, const record *rec)
{
    reader->head = cursor(position_of(reader->head) + rec->units, count_of(reader->head) + 1);
}

bool ring_peek(ring *r, message *out)
{
    static const uint8_t somewhere[NOTE_SIZE];
    ring_reader reader;
    record rec;
    if (ring_enter(r, &reader, false) != RING_OK)
        return false;
    bool found = ring_front(&reader, &rec) == RING_OK;
    ring_leave(&reader);
    if (!found)
        return false;
    *out = rec.head;
    out->note = rec.is_far ? somewhere : NULL;
    return true;
}

/* A full ring is not reported as having room at every single pop, else each would cost a wake-up: producers are woken
 * when half of it is free. (They look by themselves every ROOM_SLICE_NS.) */
static bool worth_telling(const ring *r, uint64_t head)
{
    uint64_t tail = load_tail(r);
    return units_between(head, tail) <= r->units / 2 && records_between(head, tail) <= r->limit / 2;
}

void ring_take(ring_reader *reader)
{
    ring_shared *s = reader->r->shared;
    CRASH_POINT("take: read but not taken");
    uint32_t taken = records_between(load_head(reader->r), reader->head);
    if (!taken)
        return;
    atomic_store_explicit(&s->head, reader->head, memory_order_release);
    CRASH_POINT("take: taken but not counted");
    uint64_t popped = atomic_load_explicit(&s->popped, memory_order_relaxed);
    atomic_store_explicit(&s->popped, popped + taken, memory_order_relaxed);
}

uint32_t ring_taken(const ring *r)
{
    return count_of(load_head(r));
}

uint32_t ring_will_be_taken(const ring_reader *reader)
{
    return count_of(reader->head);
}

void ring_leave(ring_reader *reader)
{
    ring *r = reader->r;
    ring_shared *s = r->shared;
    ring_take(reader);
    CRASH_POINT("leave: before the unlock");
    pthread_mutex_unlock(&s->consumers);
    CRASH_POINT("leave: before the wake");
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&s->room.armed, memory_order_relaxed) && worth_telling(r, reader->head))
        event_wake(&s->room, INT_MAX);
}

void ring_parts(const ring *r, const record *rec, uint64_t offset, size_t n, const uint8_t *parts[2], size_t sizes[2])
{
    uint64_t index = index_of(r, rec->at + RECORD_HEAD + offset);
    uint64_t straight = r->capacity - index;
    parts[0] = r->data + index;
    sizes[0] = n <= straight ? n : straight;
    parts[1] = r->data;
    sizes[1] = n - sizes[0];
}

void ring_copy(const ring *r, const record *rec, uint64_t offset, void *out, size_t n)
{
    const uint8_t *parts[2];
    size_t sizes[2];
    ring_parts(r, rec, offset, n, parts, sizes);
    memcpy(out, parts[0], sizes[0]);
    if (sizes[1])
        memcpy((uint8_t *)out + sizes[0], parts[1], sizes[1]);
}

void ring_read(const ring *r, const record *rec, uint8_t *out, message *m)
{
    ring_copy(r, rec, 0, out, record_body_size(rec));
    *m = rec->head;
    m->source = out;
    m->destination = m->source + source_size(m);
    m->content = m->destination + destination_size(m);
    m->note = rec->is_far ? m->content : NULL;
}

/* ---- closing ---- */

int ring_hold(ring *r)
{
    int rc = lock_producers(r, true);
    if (rc != RING_OK)
        return rc;
    rc = lock_consumers(r, true);
    if (rc != RING_OK)
        pthread_mutex_unlock(&r->shared->producers);
    return rc;
}

void ring_unhold(ring *r)
{
    pthread_mutex_unlock(&r->shared->consumers);
    pthread_mutex_unlock(&r->shared->producers);
}

void ring_close(ring *r)
{
    ring_shared *s = r->shared;
    bool producers = lock_producers(r, true) == RING_OK;
    bool consumers = lock_consumers(r, true) == RING_OK;
    atomic_store_explicit(&s->closed, 1, memory_order_release);
    if (consumers)
        pthread_mutex_unlock(&s->consumers);
    if (producers)
        pthread_mutex_unlock(&s->producers);
    event_notify_all(&s->readable);
    event_notify_all(&s->room);
}

uint64_t ring_frozen_start(const ring *r)
{
    return load_head(r);
}

int ring_frozen_next(const ring *r, uint64_t *at, record *out)
{
    uint64_t tail = load_tail(r);
    if (records_between(*at, tail) == 0)
        return RING_EMPTY;
    int rc = read_record(r, *at, tail, out);
    if (rc == RING_OK)
        *at = cursor(position_of(*at) + out->units, count_of(*at) + 1);
    return rc;
}

/* ---- waiting ---- */

#define SPIN_DEFAULT_NS 100000u
#define SPIN_LOOKS 64

static _Atomic uint32_t spin_limit = SPIN_DEFAULT_NS;

void ring_set_spin(uint32_t ns)
{
    atomic_store(&spin_limit, ns);
}

uint32_t ring_get_spin(void)
{
    return atomic_load_explicit(&spin_limit, memory_order_relaxed);
}

/* So many looks come before the clock is read for the first time, and between two readings: it costs more than a look. */
static bool look_often(bool (*done)(const void *), const void *arg)
{
    for (int i = 0; i < SPIN_LOOKS; i++) {
        if (done(arg))
            return true;
        platform_pause();
    }
    return false;
}

bool spin_until(bool (*done)(const void *), const void *arg, _Atomic uint32_t *learnt, int64_t deadline)
{
    uint32_t allowed = atomic_load_explicit(learnt, memory_order_relaxed);
    uint32_t limit = ring_get_spin();
    if (allowed > limit)
        allowed = limit;
    if (done(arg))
        return true;
    if (allowed == 0 || platform_processors() < 2)
        return false;
    if (!look_often(done, arg)) {
        int64_t end = platform_now() + allowed;
        if (end > deadline)
            end = deadline;
        while (!look_often(done, arg)) {
            if (platform_now() >= end)
                return false;
            platform_yield(); /* where processors are scarce, the one that we wait for may wait for ours */
        }
    }
    if (allowed != limit)
        atomic_store_explicit(learnt, limit, memory_order_relaxed);
    return true;
}

/* A sleep that was short enough to be spun away earns the next wait the full limit; each longer one halves it, so that
 * an idle Socket soon sleeps at once. */
void spin_learn(_Atomic uint32_t *learnt, int64_t slept_ns)
{
    uint32_t limit = ring_get_spin();
    uint32_t allowed = atomic_load_explicit(learnt, memory_order_relaxed);
    atomic_store_explicit(learnt, slept_ns <= (int64_t)limit ? limit : allowed / 2, memory_order_relaxed);
}

static bool is_readable(const void *arg)
{
    return ring_is_readable(arg);
}

int ring_wait_readable(ring *r, int64_t deadline)
{
    if (spin_until(is_readable, r, &r->spin, deadline))
        return WAIT_WOKEN;
    int64_t began = platform_now();
    int rc = WAIT_WOKEN;
    while (!ring_is_readable(r)) {
        if (rc == WAIT_SIGNAL)
            return WAIT_SIGNAL;
        if (platform_now() >= deadline)
            return WAIT_TIMEOUT;
        event *e = &r->shared->readable;
        uint32_t ticket = event_arm(e);
        if (!ring_is_readable(r))
            rc = event_wait(e, ticket, deadline);
    }
    spin_learn(&r->spin, platform_now() - began);
    return WAIT_WOKEN;
}

typedef struct {
    const ring *r;
    const message *m;
} room_wish;

static bool is_writable(const void *arg)
{
    const room_wish *wish = arg;
    return ring_is_closed(wish->r) || ring_has_room(wish->r, wish->m);
}

static bool is_amply_writable(const void *arg)
{
    const room_wish *wish = arg;
    return ring_is_closed(wish->r) || ring_has_ample_room(wish->r, wish->m);
}

int ring_wait_room(ring *r, const message *m, int64_t deadline)
{
    room_wish wish = {.r = r, .m = m};
    atomic_fetch_add_explicit(&r->shared->blocked, 1, memory_order_relaxed);
    if (spin_until(is_amply_writable, &wish, &r->spin, deadline))
        return WAIT_WOKEN;
    int64_t began = platform_now();
    int64_t slice = ROOM_SLICE_NS;
    int rc = WAIT_WOKEN;
    while (!is_writable(&wish)) {
        if (rc == WAIT_SIGNAL)
            return WAIT_SIGNAL;
        if (platform_now() >= deadline)
            return WAIT_TIMEOUT;
        uint32_t ticket = event_arm(&r->shared->room);
        if (!is_writable(&wish))
            rc = platform_wait(&r->shared->room.seq, ticket, room_slice(&slice, deadline));
    }
    spin_learn(&r->spin, platform_now() - began);
    return WAIT_WOKEN;
}
