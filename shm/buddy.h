/* Which parts of a region are free: the buddy system, over bitmaps that the caller provides and protects.
 *
 * The region is `units` long, a power of two. A part of order k is 2^k units at a multiple of 2^k. One bitmap for each
 * order says which parts of it are free and not part of a larger free one. Of the free parts the lowest is taken, so
 * that the same memory is used again and again and the upper end stays empty.
 *
 * Idea: Knowlton's buddy system. The bitmaps hold no pointers: a corrupt one gives wrong parts, never a wild access. */
#ifndef MULTISOCKET_BUDDY_H
#define MULTISOCKET_BUDDY_H

#include <stdbool.h>
#include <stdint.h>

#define BUDDY_ORDERS 32u
#define BUDDY_NONE UINT32_MAX

typedef struct {
    uint64_t *count; /* free parts of each order: saves looking through an empty bitmap */
    uint64_t *bits;
    uint32_t units;
    uint32_t top; /* the order of the whole region */
    uint32_t start[BUDDY_ORDERS]; /* first word of each order's bitmap */
} buddy;

/* Words that counts and bitmaps of so many units take. */
uint64_t buddy_words(uint32_t units);
void buddy_attach(buddy *b, uint64_t *words, uint32_t units);

/* Smallest order of so many units. */
uint32_t buddy_order(uint32_t units);

/* Everything is free. */
void buddy_reset(buddy *b);
/* The first unit of a part, or BUDDY_NONE. */
uint32_t buddy_take(buddy *b, uint32_t order);
/* Takes just this part. False: it is not free. */
bool buddy_take_at(buddy *b, uint32_t unit, uint32_t order);
void buddy_give(buddy *b, uint32_t unit, uint32_t order);
/* The order of the free part that a unit lies in, or BUDDY_NONE. */
uint32_t buddy_free_order(const buddy *b, uint32_t unit);

#endif
