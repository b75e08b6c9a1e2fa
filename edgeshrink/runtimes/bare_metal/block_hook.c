/* Counts translation blocks for firmware_worker.py, called by the emulator without entering Python.
 *
 * For every (address, size, operator) the table holds how often a block was entered and how often
 * it was left by a taken branch, that is to anywhere but the address behind it. Counts of a block
 * that is translated again with another size are kept apart, so they are exact in any case.
 *
 * `op_of` says for each code unit from `op_base` on which operator a block that starts there
 * belongs to: 0 says that it does not matter (the operator that runs goes on), else operator + 1,
 * where operator 0 is what lies between operators.
 */
#include <stdint.h>

#define UNIT 2 /* bytes: Thumb and compressed RISC-V */

typedef struct {
    uint32_t address, size, op, is_used;
    uint64_t entries, taken;
} block_t;

typedef struct {
    block_t *table;
    const uint16_t *op_of;
    uint32_t mask; /* slots of the table, a power of two, less 1 */
    uint32_t n_used;
    uint32_t op_base, op_units;
    uint32_t op;
    uint32_t next; /* address behind the block that runs */
    block_t *last; /* it; NULL: none yet */
    uint32_t overflow; /* the table is full, counts are lost */
} counts_t;

void es_on_block(void *engine, uint64_t address64, uint32_t size, void *user)
{
    counts_t *c = user;
    uint32_t address = (uint32_t)address64;
    uint32_t unit = (address - c->op_base) / UNIT;
    uint32_t slot;
    (void)engine;
    if (c->last && c->next != address)
        c->last->taken++;
    if (unit < c->op_units && c->op_of[unit])
        c->op = c->op_of[unit] - 1u;
    slot = (address / UNIT * 2654435761u + c->op * 40503u + size) >> 4;
    for (;; slot++) {
        block_t *b = &c->table[slot & c->mask];
        if (!b->is_used) {
            if (c->n_used > c->mask / 2) {
                c->overflow = 1;
                c->last = 0;
                return;
            }
            c->n_used++;
            b->address = address;
            b->size = size;
            b->op = c->op;
            b->is_used = 1;
        } else if (b->address != address || b->size != size || b->op != c->op) {
            continue;
        }
        b->entries++;
        c->last = b;
        c->next = address + size;
        return;
    }
}
