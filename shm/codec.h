/* One message, and its 8-byte Meta as it stands both in rings and on the wire:
 *
 *   flags u8 | ttl u8 | hops u8 | distance u8 | length u32 BE | source 4*hops | destination 4*distance | content
 *
 * A path is a row of u32 BE pipe ids, nearest first. */
#ifndef MULTISOCKET_CODEC_H
#define MULTISOCKET_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define META_SIZE 8u
#define PATH_MAX_IDS 255u
#define NOTE_SIZE 20u

enum {
    FLAG_SEND_TYPE = 3, /* the low two bits */
    SEND_TO_ONE = 0,
    SEND_TO_ALL = 1,
    SEND_TO_DEST = 2,
    FLAG_INTERNAL = 4,
    FLAG_NO_SOURCE = 8,
    FLAG_RAW = 16,
    FLAG_CONTROL = 32,
    /* On a raw pipe, without content: no more bytes come (or go). */
    FLAGS_RAW_END = FLAG_RAW | FLAG_INTERNAL
};

typedef struct {
    uint8_t flags, ttl, hops, distance;
    uint32_t length; /* of the content, bytes */
    const uint8_t *source;
    const uint8_t *destination;
    const uint8_t *content;
    const uint8_t *note; /* NULL, or NOTE_SIZE bytes that say where the content lies: only inside one machine */
    uint8_t is_remote; /* it came over a network, to here or to an earlier node of this machine */
} message;

static inline void put_u32(uint8_t *out, uint32_t value)
{
    out[0] = (uint8_t)(value >> 24);
    out[1] = (uint8_t)(value >> 16);
    out[2] = (uint8_t)(value >> 8);
    out[3] = (uint8_t)value;
}

static inline uint32_t get_u32(const uint8_t *in)
{
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

static inline uint32_t source_size(const message *m)
{
    return 4u * m->hops;
}

static inline uint32_t destination_size(const message *m)
{
    return 4u * m->distance;
}

/* Bytes of Meta, paths and content. */
static inline uint64_t message_size(const message *m)
{
    return (uint64_t)META_SIZE + source_size(m) + destination_size(m) + m->length;
}

/* What FLAGS_RAW_END says. */
static inline bool is_end_of_raw(const message *m)
{
    return m->length == 0 && (m->flags & FLAGS_RAW_END) == FLAGS_RAW_END;
}

void meta_encode(uint8_t out[META_SIZE], const message *m);

/* Fills all but the pointers. */
void meta_decode(const uint8_t in[META_SIZE], message *out);

/* Writes Meta and paths (not the content) to out; gives the bytes written. */
size_t message_encode_head(uint8_t *out, const message *m);

/* Reads one whole message from in[0, size): gives the bytes it takes, or 0 when more are needed. The pointers of *out
 * point into in; its sizes are set as soon as the Meta is there, so that a caller can refuse a length early. */
size_t message_decode(const uint8_t *in, size_t size, message *out);

#endif
