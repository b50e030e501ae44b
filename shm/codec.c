#include "codec.h"

#include <string.h>

void meta_encode(uint8_t out[META_SIZE], const message *m)
{
    out[0] = m->flags;
    out[1] = m->ttl;
    out[2] = m->hops;
    out[3] = m->distance;
    put_u32(out + 4, m->length);
}

void meta_decode(const uint8_t in[META_SIZE], message *out)
{
    out->flags = in[0];
    out->ttl = in[1];
    out->hops = in[2];
    out->distance = in[3];
    out->length = get_u32(in + 4);
    out->is_remote = 0;
}

size_t message_encode_head(uint8_t *out, const message *m)
{
    meta_encode(out, m);
    if (m->hops)
        memcpy(out + META_SIZE, m->source, source_size(m));
    if (m->distance)
        memcpy(out + META_SIZE + source_size(m), m->destination, destination_size(m));
    return META_SIZE + source_size(m) + destination_size(m);
}

size_t message_decode(const uint8_t *in, size_t size, message *out)
{
    if (size < META_SIZE) {
        memset(out, 0, sizeof *out);
        return 0;
    }
    meta_decode(in, out);
    out->source = in + META_SIZE;
    out->destination = out->source + source_size(out);
    out->content = out->destination + destination_size(out);
    out->note = NULL;
    uint64_t whole = message_size(out);
    return size < whole ? 0 : (size_t)whole;
}
