#include "buddy.h"

#include <string.h>

static uint64_t words_of(uint32_t units, uint32_t order)
{
    return ((uint64_t)(units >> order) + 63) / 64;
}

uint64_t buddy_words(uint32_t units)
{
    uint64_t words = BUDDY_ORDERS;
    for (uint32_t order = 0; units >> order; order++)
        words += words_of(units, order);
    return words;
}

uint32_t buddy_order(uint32_t units)
{
    uint32_t order = 0;
    while ((uint64_t)1 << order < units)
        order++;
    return order;
}

void buddy_attach(buddy *b, uint64_t *words, uint32_t units)
{
    b->count = words;
    b->bits = words + BUDDY_ORDERS;
    b->units = units;
    b->top = buddy_order(units);
    uint32_t start = 0;
    for (uint32_t order = 0; order <= b->top; order++) {
        b->start[order] = start;
        start += (uint32_t)words_of(units, order);
    }
}

static uint64_t *word_of(const buddy *b, uint32_t unit, uint32_t order)
{
    return &b->bits[b->start[order] + (unit >> order) / 64];
}

static uint64_t bit_of(uint32_t unit, uint32_t order)
{
    return (uint64_t)1 << ((unit >> order) & 63);
}

static bool is_free(const buddy *b, uint32_t unit, uint32_t order)
{
    return *word_of(b, unit, order) & bit_of(unit, order);
}

static void set_free(buddy *b, uint32_t unit, uint32_t order)
{
    *word_of(b, unit, order) |= bit_of(unit, order);
    b->count[order]++;
}

static void set_taken(buddy *b, uint32_t unit, uint32_t order)
{
    *word_of(b, unit, order) &= ~bit_of(unit, order);
    b->count[order]--;
}

static uint32_t lowest_free(const buddy *b, uint32_t order)
{
    if (b->count[order] == 0)
        return BUDDY_NONE;
    const uint64_t *bits = &b->bits[b->start[order]];
    uint64_t words = words_of(b->units, order);
    for (uint64_t i = 0; i < words; i++)
        if (bits[i]) {
            uint32_t unit = (uint32_t)(i * 64 + (uint32_t)__builtin_ctzll(bits[i])) << order;
            return unit < b->units ? unit : BUDDY_NONE;
        }
    return BUDDY_NONE;
}

void buddy_reset(buddy *b)
{
    memset(b->count, 0, buddy_words(b->units) * sizeof *b->count);
    set_free(b, 0, b->top);
}

/* Takes the part of `order` at `unit` out of the free part of order `from` that it lies in. */
static void split(buddy *b, uint32_t unit, uint32_t order, uint32_t from)
{
    set_taken(b, unit, from);
    while (from > order) {
        from--;
        set_free(b, unit ^ (uint32_t)1 << from, from);
    }
}

uint32_t buddy_take(buddy *b, uint32_t order)
{
    for (uint32_t from = order; from <= b->top; from++) {
        uint32_t unit = lowest_free(b, from);
        if (unit == BUDDY_NONE)
            continue;
        split(b, unit, order, from);
        return unit;
    }
    return BUDDY_NONE;
}

bool buddy_take_at(buddy *b, uint32_t unit, uint32_t order)
{
    for (uint32_t from = order; from <= b->top; from++)
        if (is_free(b, unit, from)) {
            split(b, unit, order, from);
            return true;
        }
    return false;
}

void buddy_give(buddy *b, uint32_t unit, uint32_t order)
{
    while (order < b->top && is_free(b, unit ^ (uint32_t)1 << order, order)) {
        set_taken(b, unit ^ (uint32_t)1 << order, order);
        unit &= ~((uint32_t)1 << order);
        order++;
    }
    set_free(b, unit, order);
}

uint32_t buddy_free_order(const buddy *b, uint32_t unit)
{
    for (uint32_t order = 0; order <= b->top; order++)
        if (is_free(b, unit, order))
            return order;
    return BUDDY_NONE;
}
