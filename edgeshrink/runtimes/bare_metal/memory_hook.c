/* Simulates the caches of a device's flash while firmware_worker.py runs its program.
 *
 * Two least-recently-used caches, one for instructions and one for data (or one for both), see every
 * unit that the program fetches from flash and every word it reads there, in the order of the run. A
 * unit is what one read of the flash brings; a line holds one or more, each with a bit that says
 * whether it is there. For every operator it counts what the caches did not hold: units behind a jump,
 * units that follow the one before them (which a prefetch may have begun to read), and constants.
 *
 * Before it calls a hook for a read, the emulator restores the state that an exception would see. In
 * an IT block that is a state with conditions to come, which nothing takes back: the blocks that
 * follow would be translated as if they were in the IT block. So `es_on_read` clears it.
 *
 * A set is a row of `n_ways` entries, the last used first; a tag is a line's number plus 1, 0 is
 * empty.
 */
#include <stdint.h>

typedef struct {
    uint32_t tag, units;
} entry_t;

typedef struct {
    entry_t *entries;
    uint32_t line_bits; /* log2 of a line's units */
    uint32_t n_sets, n_ways;
} cache_t;

typedef struct {
    uint64_t fetched;    /* units of code, in the cache or not */
    uint64_t jumps;      /* of them not in the cache, the first of a block that a jump led to */
    uint64_t successors; /* of them not in the cache, else */
    uint64_t reads;      /* of constants */
    uint64_t misses;     /* of them not in the cache */
} waits_t;

#define CPSR_IT 0x0600FC00u /* conditions to come, in an Arm core's status register */

typedef int (*access_register_t)(void *engine, int number, void *value);

typedef struct {
    const cache_t *code, *data;
    waits_t *waits;
    const uint32_t *op; /* which operator runs: of the block hook, that is called before */
    uint32_t n_ops;
    uint32_t low, end; /* flash */
    uint32_t unit_bits; /* log2 of a unit's bytes */
    uint32_t next;      /* address behind the last block */
    uint32_t unit;      /* the last unit that was fetched */
    int status_number;  /* of the status register for the two functions; below 0: it has no IT */
    access_register_t read_register, write_register;
} memory_t;

static int is_held(const cache_t *cache, uint32_t unit)
{
    uint32_t line = unit >> cache->line_bits, tag = line + 1, at = 0;
    uint32_t bit = 1u << (unit & ((1u << cache->line_bits) - 1u));
    entry_t *set = cache->entries + (line % cache->n_sets) * cache->n_ways, found;
    int held;
    while (at + 1 < cache->n_ways && set[at].tag != tag)
        at++;
    found = set[at];
    if (found.tag != tag) {
        found.tag = tag;
        found.units = 0;
    }
    held = (found.units & bit) != 0;
    found.units |= bit;
    for (; at > 0; at--)
        set[at] = set[at - 1];
    set[0] = found;
    return held;
}

static waits_t *of_op(memory_t *m)
{
    return &m->waits[*m->op < m->n_ops ? *m->op : 0];
}

void es_on_fetch(void *engine, uint64_t address64, uint32_t size, void *user)
{
    memory_t *m = user;
    uint32_t address = (uint32_t)address64;
    uint32_t unit = address >> m->unit_bits, last = (address + size - 1) >> m->unit_bits;
    int is_jump = address != m->next;
    waits_t *waits = of_op(m);
    (void)engine;
    m->next = address + size;
    if (address < m->low || address >= m->end)
        return;
    if (!is_jump && unit == m->unit)
        unit++; /* goes on in the unit it is in */
    for (; unit <= last; unit++) {
        waits->fetched++;
        if (!is_held(m->code, unit)) {
            if (is_jump)
                waits->jumps++;
            else
                waits->successors++;
        }
        is_jump = 0;
    }
    m->unit = last;
}

void es_on_read(void *engine, int kind, uint64_t address64, int size, int64_t value, void *user)
{
    memory_t *m = user;
    uint32_t address = (uint32_t)address64;
    waits_t *waits = of_op(m);
    uint64_t status = 0;
    (void)kind;
    (void)size;
    (void)value;
    if (m->status_number >= 0) {
        m->read_register(engine, m->status_number, &status);
        if (status & CPSR_IT) {
            status &= ~(uint64_t)CPSR_IT;
            m->write_register(engine, m->status_number, &status);
        }
    }
    if (address < m->low || address >= m->end)
        return;
    waits->reads++;
    if (!is_held(m->data, address >> m->unit_bits))
        waits->misses++;
}
