# What the binding uses of C.

cdef extern from *:
    # That of the project; the build defines it.
    const char *MULTISOCKET_VERSION

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define HAS_GIL 0
    #else
    #define HAS_GIL 1
    #endif
    """
    # Whether this is a build of Python with a GIL.
    const bint HAS_GIL

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

cdef extern from "errno.h" nogil:
    int errno, EINVAL, ENAMETOOLONG, ENOENT


cdef extern from "stdatomic.h" nogil:
    int memory_order_acquire, memory_order_relaxed
    ctypedef uint32_t atomic_hint "_Atomic uint32_t"
    ctypedef uint64_t atomic_word "_Atomic uint64_t"
    void atomic_thread_fence(int order)
    uint32_t load_hint "atomic_load_explicit"(const atomic_hint *of, int order)
    void store_hint "atomic_store_explicit"(atomic_hint *of, uint32_t value, int order)
    uint32_t exchange_hint "atomic_exchange"(atomic_hint *of, uint32_t value)
    uint64_t atomic_load(const atomic_word *of)
    uint64_t atomic_fetch_add(atomic_word *to, uint64_t n)

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)
    int c_unlink "unlink"(const char *path)

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED

cdef extern from "platform.h" nogil:
    const int64_t NEVER
    int WAIT_WOKEN, WAIT_TIMEOUT, WAIT_SIGNAL
    int64_t platform_now()
    int platform_open_memory(const char *name, bint create, uint64_t size)
    int platform_unlink_memory(const char *name)
    int platform_reserve(int fd, void *base, size_t offset, size_t length)
    int platform_reserve_needs_fd()
    uint32_t platform_fork_generation()
    int platform_is_locked(int fd)
    void platform_copy(void *to, const void *of, size_t n)
    void platform_large_pages(void *start, size_t length)

cdef extern from "cleanup.h" nogil:
    int c_cleanup_add "cleanup_add"(const char *path)
    void c_cleanup_remove "cleanup_remove"(const char *path)

cdef extern from "codec.h" nogil:
    const uint32_t META_SIZE, PATH_MAX_IDS
    enum: NOTE_SIZE
    int FLAG_SEND_TYPE, SEND_TO_ONE, SEND_TO_ALL, SEND_TO_DEST, FLAG_NO_SOURCE, FLAGS_RAW_END
    ctypedef struct message:
        uint8_t flags, ttl, hops, distance
        uint32_t length
        const uint8_t *source
        const uint8_t *destination
        const uint8_t *content
        const uint8_t *note
        uint8_t is_remote
    void put_u32(uint8_t *out, uint32_t value)
    uint32_t get_u32(const uint8_t *data)
    bint is_end_of_raw(const message *m)
    uint64_t message_size(const message *m)
    size_t message_encode_head(uint8_t *out, const message *m)
    size_t message_decode(const uint8_t *data, size_t size, message *out)

cdef extern from "ring.h" nogil:
    int RING_OK, RING_EMPTY, RING_FULL, RING_BUSY, RING_CLOSED, RING_TOO_LONG, RING_NO_MEMORY, RING_CORRUPT
    const uint64_t RING_MAX_BYTES
    ctypedef struct ring_shared:
        uint64_t blocked, pushed, popped
    ctypedef struct ring:
        ring_shared *shared
        uint64_t capacity
        uint32_t limit, longest
    ctypedef struct ring_writer:
        unsigned total
    ctypedef struct ring_reader:
        ring *r
    ctypedef struct record:
        uint32_t pipe
        uint64_t at
        bint is_far
        message head
    uint64_t ring_capacity(uint64_t)
    int ring_init(ring_shared *shared, uint64_t capacity, uint32_t limit, uint32_t longest)
    int ring_attach(ring *r, ring_shared *shared, uint8_t *data, uint64_t room, void *base, int fd)
    uint64_t ring_max_message(const ring *r)
    uint32_t ring_depth(const ring *r)
    uint64_t ring_used(const ring *r)
    bint ring_is_closed(const ring *r)
    int ring_begin(ring *r, ring_writer *w, bint wait)
    int ring_put(ring_writer *w, uint32_t pipe, const message *m)
    void ring_publish(ring_writer *w)
    void ring_end(ring_writer *w)
    int ring_enter(ring *r, ring_reader *reader, bint wait)
    int ring_front(ring_reader *reader, record *out)
    void ring_pop(ring_reader *reader, const record *rec)
    void ring_leave(ring_reader *reader)
    void ring_copy(const ring *r, const record *rec, uint64_t offset, void *out, size_t n)
    uint64_t record_content_at(const record *rec)
    void ring_close(ring *r)
    uint64_t ring_frozen_start(const ring *r)
    int ring_wait_readable(ring *r, int64_t deadline)
    bint ring_is_readable(const ring *r)
    int ring_wait_room(ring *r, const message *m, int64_t deadline)
    void ring_await_consumers(ring *r)
    void ring_set_spin(uint32_t ns)
    uint32_t ring_get_spin()

    void ring_take(ring_reader *reader)

cdef extern from "claims.h" nogil:
    enum: CLAIM_NO_MORE, CLAIM_STOPPED, CLAIMS_MOST, CLAIMS_TASKS
    ctypedef struct claim:
        uint32_t ready, stop
        uint64_t done
        int64_t busy
    ctypedef struct claims:
        claim *claims
        uint32_t slots
    ctypedef struct claim_view:
        uint32_t number, next, end
        int64_t began, loaded
    uint64_t claims_size(uint32_t slots)
    void claims_init(void *base, uint32_t slots)
    int claims_attach(claims *c, void *base, uint64_t size)
    void claims_take(claims *c, uint32_t slot, ring_reader *reader, const record *rec, uint32_t number, uint32_t tasks)
    int claims_begin(claims *c, uint32_t slot)
    void claims_loaded(claims *c, uint32_t slot)
    bint claims_may_send(const claims *c, uint32_t slot, uint32_t ahead)
    void claims_sent(claims *c, uint32_t slot)
    void claims_allow(claims *c, uint32_t slot, uint32_t parts)
    void claims_clear(claims *c, uint32_t slot)
    claim_view claims_view_of "claims_view"(const claims *c, uint32_t slot)
    int claims_settle(claims *c, ring *r)
    bint claims_recall(claims *c, uint32_t slot, uint32_t number, uint32_t *first, uint32_t *to)
    bint claims_condemn(claims *c, uint32_t slot, uint32_t number, uint32_t index)

cdef extern from "lifeline.h" nogil:
    int lifeline_start(int fd)

cdef extern from "arena.h" nogil:
    const uint32_t ARENA_UNIT, ARENA_REFERENCES
    int WHERE_NOWHERE, WHERE_PENDING
    ctypedef struct segment_id:
        uint64_t family
        uint32_t number
    ctypedef struct note:
        segment_id arena
        uint32_t reference, generation
    ctypedef struct arena_shared:
        uint64_t used, backed
        uint32_t live
    ctypedef struct arena:
        arena_shared *shared
        segment_id id
    ctypedef struct block:
        uint32_t reference, generation, length
        uint8_t *data
    ctypedef struct sighting:
        uint64_t holder
        segment_id ring, via
        uint8_t where
        bint is_held
    void note_encode(uint8_t *out, const note *n)
    bint record_note(const ring *r, const record *rec, note *out)
    uint64_t arena_size(uint64_t limit)
    int arena_init(void *base, int fd, uint64_t limit, segment_id socket)
    int arena_attach(arena *a, void *base, uint64_t size, int fd)
    int arena_take(arena *a, uint32_t length, uint64_t holder, block *out)
    int arena_back(arena *a, const block *b)
    int arena_share(arena *a, const block *b, uint64_t holder, block *out)
    bint arena_release(arena *a, const block *b)
    int arena_claim(arena *a, const note *n, uint64_t holder, block *out)
    void arena_trim(arena *a, uint64_t keep, uint64_t holder)
    bint arena_rest(arena *a, uint64_t holder)
    uint32_t arena_arm(arena *a)
    int arena_wait(arena *a, uint32_t ticket, int64_t deadline)
    unsigned arena_list(arena *a, sighting *out, unsigned most)
    void arena_reclaim(arena *a, const sighting *seen)
    int arena_settle(arena *a, ring *r, const sighting *seen, unsigned n)
    void arena_forget(arena *a, segment_id ring, segment_id via)
    bint arena_is_closed(const arena *a)
    void arena_close(arena *a)
    bint arena_is_empty(arena *a)

cdef extern from "bell.h" nogil:
    ctypedef struct event:
        pass

cdef extern from "wire.h" nogil:
    const size_t WIRE_SCRATCH
    int WIRE_OK, WIRE_BLOCKED, WIRE_CLOSED, WIRE_END, WIRE_CUT, WIRE_TOO_LONG, WIRE_NO_MEMORY
    int WIRE_CORRUPT, WIRE_FAILED
    ctypedef struct iovec:
        void *iov_base
        size_t iov_len
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct wire:
        uint32_t pipe
        ring *inbox
        ring *outbox
        segment_id socket
        arena *own
        uint32_t large, most, chunk
        uint8_t raw_ttl
        uint64_t holder
        arena *(*find)(void *, segment_id) noexcept
        void *context
        atomic_hint arena_used
        pthread_mutex_t writing
        int fd, error
        uint64_t bytes_in, bytes_out
    ctypedef struct wire_batch:
        iovec *pieces
        int n
        size_t total
    int wire_init(wire *w)
    void wire_destroy(wire *w)
    bint wire_is_closed(const wire *w)
    uint8_t *wire_space(wire *w, uint8_t *scratch, size_t *room)
    int wire_filled(wire *w, uint8_t *scratch, size_t n)
    int wire_take(wire *w, uint8_t *scratch)
    int wire_end(wire *w)
    int wire_gather(wire *w, wire_batch *batch, unsigned most)
    void wire_consume(wire *w, size_t n)
    bint wire_is_idle(wire *w)
    void wire_stop(wire *w)
    void wire_drop(wire *w)

cdef extern from "pthread.h" nogil:
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "carrier.h" nogil:
    ctypedef struct carrier:
        pass
    ctypedef struct post:
        event *rung
        atomic_word *waiting
    ctypedef struct load:
        wire w
        post *post
        bint keeps_half
    int TOLD_END, TOLD_WRITABLE, TOLD_GONE
    ctypedef struct tale:
        load *whose
        int what, reason, error
    carrier *carrier_start()
    void carrier_stop(carrier *c)
    int carrier_told_fd(const carrier *c)
    unsigned carrier_told(carrier *c, tale *out, unsigned most)
    void carrier_add_post(carrier *c, post *p)
    void carrier_remove_post(carrier *c, post *p)
    int carrier_add(carrier *c, load *l)
    void carrier_finish(carrier *c, load *l, int64_t deadline)

cdef extern from "endpoint.h" nogil:
    int SEND_STALE, SEND_NO_PATH, SEND_TIMEOUT, SEND_SIGNAL, SEND_NO_ARENA, SEND_DISCARDED, SEND_WRITTEN
    int PIPE_OPEN, PIPE_TO_INBOX, PIPE_TO_WIRE, PIPE_TO_RAW_WIRE
    ctypedef struct pipe_slot:
        uint32_t id, state, peer_id, kind
        uint64_t sent
        char *peer
    ctypedef struct segment_header:
        uint64_t sent_before
        atomic_word dropped
        uint32_t high
        event bell
    ctypedef struct segment:
        segment_header *shared
        pipe_slot *slots
        atomic_word *bell_waiting
        ring inbox
        ring pending
        segment_id id
    ctypedef struct peer:
        uint32_t id
        uint32_t peer_id
        pipe_slot *slot
        ring *inbox
        segment_id segment
        uint32_t kind
        wire *wire
    ctypedef struct known_arena:
        segment_id id
        arena *arena
    ctypedef struct peer_list:
        uint32_t version
        uint32_t size
        uint32_t receivers
        peer *only
        const known_arena *arenas
        unsigned arena_count
        peer **by_slot
    ctypedef struct segment_plan:
        segment_id id
        uint64_t inbox_capacity, pending_capacity
        uint32_t inbox_limit, pending_limit, longest
    uint64_t segment_size(uint64_t inbox, uint64_t pending)
    int segment_init(void *base, int fd, const segment_plan *plan)
    int segment_attach(segment *seg, void *base, uint64_t size, int fd)
    void segment_close(segment *seg)
    bint segment_is_closed(const segment *seg)
    uint32_t segment_version(const segment *seg)
    uint32_t pipe_reserve(segment *seg)
    int bell_reserve(segment *seg)
    void pipe_open(segment *seg, uint32_t id, const char *peer, uint32_t peer_id, uint32_t kind)
    int send_directly(segment *seg, const peer_list *peers, uint32_t id, uint32_t *turn, const message *m)
    void pipe_release(segment *seg, uint32_t id)
    pipe_slot *pipe_find(const segment *seg, uint32_t id)
    int send_to_one(segment *seg, const peer_list *peers, uint32_t *turn, const message *m, bint wait_lock)
    int send_row(segment *seg, const peer_list *peers, uint32_t *turn, const message *row, unsigned n, unsigned *done,
                 bint wait_lock)
    int send_by_pipe(segment *seg, const peer_list *peers, uint32_t id, const message *m, bint wait_lock)
    bint may_send(segment *seg, const peer_list *peers, uint32_t id, const message *m)
    int wait_to_send(segment *seg, const peer_list *peers, uint32_t id, const message *m, int64_t deadline)
    segment_id send_missing_arena()
    void set_arena_holder(uint64_t family)
    uint64_t arena_holder()
    int release_orphans(segment *seg, const peer_list *peers, uint64_t *at)
    int flush_pending(segment *seg, const peer_list *peers, uint32_t *turn, bint wait_lock)
    int resend_unreceived(segment *seg, const peer_list *peers, uint32_t *turn, const ring *frozen, uint32_t peer_id,
                          uint64_t *at)

cdef extern from "lookout.h" nogil:
    enum:
        LOOKOUT_READABLE
        LOOKOUT_FULL
        LOOKOUT_MOST
    ctypedef struct lookout:
        int poke
    int lookout_init(lookout *l)
    void lookout_destroy(lookout *l)
    void lookout_run(lookout *l)
    void lookout_stop(lookout *l)
    int lookout_watch(lookout *l, ring *inbox)
    unsigned lookout_struck(lookout *l, ring **out)
    void lookout_forget(lookout *l, ring *inbox)
