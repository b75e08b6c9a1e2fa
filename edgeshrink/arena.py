"""Place buffers in one arena: smallest size, with operators that may write over their own inputs.

`plan_arena` gives every block an offset. Blocks that hold their content at the same step are
disjoint, unless an `Overlap` says how far an operator's output may run over its input (diagonal
memory optimisation). `order_for_memory` chooses the operator order before that, `verify_plan`
checks a plan by other means than those that made it, and `render` draws it.

Everything here is deterministic: effort is counted in work done, never in wall time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_GREEDY_VISITS: Final = 2_000_000  # relations looked at by all greedy placements together
_GREEDY_TRIES: Final = 2_000  # placements at most, for small plans
_CP_SAT_PAIRS: Final = 10_000  # relations above which CP-SAT finds little in any bearable time
_CP_SAT_EASY: Final = 1_000  # relations up to which its deterministic seconds are about real ones
_ORDER_STATES: Final = 100_000  # sets of finished operators the exact search may reach
_ORDER_BEAM: Final = 32  # sets kept per length by the search with lookahead
_RENDER_COLUMNS: Final = 100
_SYMBOLS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One buffer: a tensor, a state, or an operator's scratch."""

    name: str
    n_bytes: int  # 0 is allowed: such a block meets nobody
    first: int  # first and last step, both inclusive, in which it must keep its content
    last: int
    align: int = 4  # the offset is a multiple of it; the arena's start is aligned to the largest


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The operator at `step` may write `output` over its `input`.

    Holds when `offset(input) - offset(output) >= distance`: at every moment, what has been written
    lies below what is still to be read. 0 is elementwise with equal element sizes; a convolution
    over rows needs about one row and a few pixels; a pointwise one its growth. It counts only where
    the input's last step and the output's first are `step`, and is passed over elsewhere, so a
    caller can state it for every operator that allows it. Where several name the same two blocks
    (an operator that reads one tensor twice), all must hold.
    """

    input: str
    output: str
    distance: int  # bytes; may be negative
    step: int


@dataclass(frozen=True, kw_only=True)
class ArenaPlan:
    """Where every block lies, and how much smaller the arena could be at best."""

    offsets: Mapping[str, int]
    n_bytes: int
    lower_bound: int  # no plan is smaller
    optimal: bool  # n_bytes == lower_bound
    method: str  # what found it: `greedy` or `cp-sat`
    seconds: float = field(default=0.0, compare=False)


# Two blocks that meet: offset(a) - offset(b) must not lie strictly between `low` and `high`. Plain
# disjointness is (-n_a, n_b); an overlap narrows one side of it.
_Relation = tuple[int, int, int, int]  # a, b, low, high


def plan_arena(
    blocks: Sequence[Block],
    overlaps: Iterable[Overlap] = (),
    *,
    time_limit_s: float = 5.0,
    seed: int = 0,
) -> ArenaPlan:
    """Return offsets that make the arena as small as can be found.

    First many greedy placements (lowest fit in several orders, then a local search over orders);
    then, unless these meet the lower bound, CP-SAT with the greedy plan as hint and upper bound.
    Without ortools the greedy plan stands.

    Args:
        blocks: Names must differ.
        overlaps: What operators may write over; both names must be among `blocks`.
        time_limit_s: Of CP-SAT, about seconds of one core, but counted in work done: the same
            arguments give the same plan on any machine. 0 leaves CP-SAT out; so do plans of more
            than 10,000 pairs of blocks that meet.
        seed: Of the random orders and of CP-SAT.

    Raises:
        ValueError: A block or an overlap is malformed; the message names it.
    """
    started = time.perf_counter()
    allowed = _applicable(blocks, overlaps)
    bound = _lower_bound(blocks, allowed)
    relations = _relations(blocks, allowed)
    offsets, n_bytes = _greedy(blocks, relations, allowed, bound=bound, seed=seed)
    method = "greedy"
    if n_bytes > bound and time_limit_s > 0 and len(relations) <= _CP_SAT_PAIRS:
        found = _cp_sat(blocks, relations, allowed, offsets, n_bytes, bound, time_limit_s, seed)
        if found is not None:
            better, proved = found
            bound = max(bound, proved)
            size = _extent(blocks, better)
            if size < n_bytes:
                offsets, n_bytes, method = better, size, "cp-sat"
    return ArenaPlan(
        offsets={block.name: offset for block, offset in zip(blocks, offsets, strict=True)},
        n_bytes=n_bytes,
        lower_bound=bound,
        optimal=n_bytes == bound,
        method=method,
        seconds=time.perf_counter() - started,
    )


def _applicable(blocks: Sequence[Block], overlaps: Iterable[Overlap]) -> dict[tuple[int, int], int]:
    """Check the arguments; return the distance of every (input, output) that may share bytes."""
    index: dict[str, int] = {}
    for i, block in enumerate(blocks):
        if block.name in index:
            raise ValueError(f"block {block.name!r}: there are two of this name; names must differ")
        if block.n_bytes < 0 or block.align < 1 or block.first > block.last:
            raise ValueError(
                f"block {block.name!r}: {block.n_bytes} bytes, alignment {block.align}, steps "
                f"{block.first} to {block.last}; must be at least 0, at least 1, and in order"
            )
        index[block.name] = i
    allowed: dict[tuple[int, int], int] = {}
    for overlap in overlaps:
        for name in (overlap.input, overlap.output):
            if name not in index:
                raise ValueError(f"overlap at step {overlap.step}: there is no block {name!r}")
        if overlap.input == overlap.output:
            raise ValueError(f"overlap at step {overlap.step}: {overlap.input!r} over itself")
        pair = index[overlap.input], index[overlap.output]
        if blocks[pair[0]].last == overlap.step == blocks[pair[1]].first:
            allowed[pair] = max(overlap.distance, allowed.get(pair, overlap.distance))
    return allowed


def _relations(blocks: Sequence[Block], allowed: Mapping[tuple[int, int], int]) -> list[_Relation]:
    """Return what every two blocks that meet must keep."""
    found: list[_Relation] = []
    by_first = sorted((i for i, b in enumerate(blocks) if b.n_bytes), key=lambda i: blocks[i].first)
    alive: list[int] = []
    for b in by_first:
        alive = [a for a in alive if blocks[a].last >= blocks[b].first]
        for a in alive:
            low, high = -blocks[a].n_bytes, blocks[b].n_bytes
            if (a, b) in allowed:
                high = min(high, allowed[a, b])
            if (b, a) in allowed:
                low = max(low, -allowed[b, a])
            if high - low >= 2:  # an integer lies strictly between
                found.append((a, b, low, high))
        alive.append(b)
    return found


def _extent(blocks: Sequence[Block], offsets: Sequence[int]) -> int:
    return max(
        (o + b.n_bytes for b, o in zip(blocks, offsets, strict=True) if b.n_bytes), default=0
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _lower_bound(blocks: Sequence[Block], allowed: Mapping[tuple[int, int], int]) -> int:
    """Return a size no plan can beat: the most that one step needs by itself.

    Take one step, its blocks of more than 0 bytes, and any plan of A bytes. Let g divide all their
    alignments, and pad each block's n bytes to N, the next multiple of g.

    1. Offsets are multiples of g, so blocks that were disjoint stay so when padded. All padded
       blocks end at or below A + s, s being the largest padding. So A >= |union| - s.
    2. |union| >= sum(N) - sum of the shares of all pairs (Bonferroni). Only pairs with an overlap
       have a share. With D = offset(input) - offset(output), a share is at most N_input, N_output
       and N_output - D; D is a multiple of g and at least `distance`, so at least d, that is
       `distance` rounded up to g. Hence share <= max(0, min(N_input, N_output - max(0, d))).
    3. If no block is both an input and an output of overlaps at this step, two inputs have no
       overlap with each other, so they are disjoint, and so are two outputs. Hence all shares with
       one input sum to at most N_input. The inputs that share with one output lie, as far as they
       do, between its offset + max(0, smallest d) and its end, so these shares sum to at most
       N_output - max(0, smallest d). All shares together are at most either sum over these caps.
    4. The union holds its largest block, so A >= n of the largest.

    Steps 1 to 3 hold for any g that divides; 1 is tried as well. The greatest need is at a step
    where a block begins, or at the next, where nothing is shared unless another begins: no block
    begins between these and any other step.
    """
    pairs_at: dict[int, list[tuple[int, int]]] = {}
    for i, o in allowed:
        if blocks[i].n_bytes and blocks[o].n_bytes:
            pairs_at.setdefault(blocks[o].first, []).append((i, o))
    real = [b for b in blocks if b.n_bytes]
    bound = 0
    for step in sorted({b.first for b in real} | {b.first + 1 for b in real}):
        live = [b for b in real if b.first <= step <= b.last]
        if not live:
            continue
        bound = max(bound, *(b.n_bytes for b in live))
        for unit in {1, math.gcd(*(b.align for b in live))}:
            padded = [_round_up(b.n_bytes, unit) for b in live]
            padding = max(n - b.n_bytes for n, b in zip(padded, live, strict=True))
            shared = _most_shared(blocks, allowed, pairs_at.get(step, []), unit)
            bound = max(bound, sum(padded) - shared - padding)
    return bound


def _most_shared(
    blocks: Sequence[Block],
    allowed: Mapping[tuple[int, int], int],
    pairs: Sequence[tuple[int, int]],
    unit: int,
) -> int:
    """Return the bytes that the overlaps of one step can save at most (see `_lower_bound`)."""
    by_input: dict[int, int] = {}
    by_output: dict[int, int] = {}
    nearest: dict[int, int] = {}
    for i, o in pairs:
        away = max(0, _round_up(allowed[i, o], unit))
        n_in, n_out = (_round_up(blocks[k].n_bytes, unit) for k in (i, o))
        share = max(0, min(n_in, n_out - away))
        by_input[i] = by_input.get(i, 0) + share
        by_output[o] = by_output.get(o, 0) + share
        nearest[o] = min(away, nearest.get(o, away))
    if by_input.keys() & by_output.keys():
        return sum(by_input.values())
    inputs = sum(min(s, _round_up(blocks[i].n_bytes, unit)) for i, s in by_input.items())
    outputs = sum(
        min(s, max(0, _round_up(blocks[o].n_bytes, unit) - nearest[o]))
        for o, s in by_output.items()
    )
    return min(inputs, outputs)


def _greedy(
    blocks: Sequence[Block],
    relations: Sequence[_Relation],
    allowed: Mapping[tuple[int, int], int],
    *,
    bound: int,
    seed: int,
) -> tuple[list[int], int]:
    """Return the best of many lowest-fit placements, and its size.

    With distances of at least 0, some order makes lowest fit optimal: that of an optimal plan's
    offsets, since pushing blocks down one by one, lowest first, never puts one above its place.
    """
    around: list[list[tuple[int, int, int]]] = [[] for _ in blocks]
    for a, b, low, high in relations:
        around[a].append((b, low, high))
        around[b].append((a, -high, -low))

    def place(order: Sequence[int], limit: int | None) -> tuple[list[int], int] | None:
        """Place in this order; None as soon as the arena exceeds `limit`."""
        offsets = [-1] * len(blocks)
        size = 0
        for b in order:
            align = blocks[b].align
            taken = sorted((offsets[p] + lo, offsets[p] + hi) for p, lo, hi in around[b]
                           if offsets[p] >= 0)  # fmt: skip
            offset = 0
            for low, high in taken:
                if low >= offset:
                    break
                if offset < high:
                    offset = -(-high // align) * align
            offsets[b] = offset
            if blocks[b].n_bytes:
                size = max(size, offset + blocks[b].n_bytes)
            if limit is not None and size > limit:
                return None
        return offsets, size

    everyone = list(range(len(blocks)))
    sizes = [b.n_bytes for b in blocks]
    spans = [b.last - b.first + 1 for b in blocks]
    crowd = [sizes[i] + sum(sizes[p] for p, _, _ in around[i]) for i in everyone]
    keys = (
        lambda i: (-sizes[i], -blocks[i].last, i),
        lambda i: (-blocks[i].last, -blocks[i].first, -sizes[i], i),  # outputs before their inputs
        lambda i: (-sizes[i] * spans[i], -blocks[i].last, i),
        lambda i: (-spans[i], -blocks[i].last, -sizes[i], i),
        lambda i: (-crowd[i], -sizes[i], -blocks[i].last, i),
        lambda i: (blocks[i].first, blocks[i].last, -sizes[i], i),
    )
    best_order: list[int] = everyone
    placed = place(everyone, None)
    assert placed is not None
    best, best_size = placed
    for key in keys:
        if best_size <= bound:
            break
        order = sorted(everyone, key=key)
        placed = place(order, best_size)
        if placed is not None and placed[1] < best_size:
            (best, best_size), best_order = placed, order

    rng = random.Random(seed)
    current, current_offsets = best_order, best
    pairs = sorted(allowed)
    tries = min(_GREEDY_TRIES, _GREEDY_VISITS // (2 * len(relations) + len(blocks) + 1))
    for _ in range(tries):
        if best_size <= bound:
            break
        order = list(current)
        for _ in range(rng.choice((1, 1, 2, 4))):
            if pairs and rng.random() < 0.3:  # the output down first, its input after it
                second, moved = pairs[rng.randrange(len(pairs))]
                order.remove(moved)
                order.insert(order.index(second), moved)
                continue
            moved = rng.randrange(len(order))
            if rng.random() < 0.5:  # one of those at the top, earlier
                tops = [i for i in everyone if current_offsets[i] + sizes[i] == best_size]
                if tops:
                    moved = order.index(tops[rng.randrange(len(tops))])
            block = order.pop(moved)
            order.insert(rng.randrange(max(moved, 1)), block)
        placed = place(order, best_size)
        if placed is not None:  # not worse: equal sizes let the search drift
            current, (current_offsets, size) = order, placed
            if size < best_size:
                best, best_size = current_offsets, size
    return best, best_size


def _cp_sat(
    blocks: Sequence[Block],
    relations: Sequence[_Relation],
    allowed: Mapping[tuple[int, int], int],
    hint: Sequence[int],
    upper: int,
    lower: int,
    time_limit_s: float,
    seed: int,
) -> tuple[list[int], int] | None:
    """Return offsets and a proved lower bound, or None without ortools or without a result."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None

    # Offsets count units of the common alignment; sizes round up to it, for whatever follows begins
    # at a multiple. The objective stays in bytes.
    unit = math.gcd(*(b.align for b in blocks))
    model = cp_model.CpModel()
    starts = []
    for i, block in enumerate(blocks):
        highest = max(0, upper - block.n_bytes) // block.align if block.n_bytes else 0
        steps = model.new_int_var(0, highest, f"u{i}")
        model.add_hint(steps, hint[i] // block.align if block.n_bytes else 0)
        starts.append(steps * (block.align // unit))
    size = model.new_int_var(lower, upper, "size")
    model.add_hint(size, upper)
    for block, start in zip(blocks, starts, strict=True):
        if block.n_bytes:
            model.add(size >= start * unit + block.n_bytes)

    # Rectangles in time and space, a step being two halves: an input that may be written over ends
    # in the middle of its last step, where the output begins. Relations that this loses, and those
    # of blocks that are both within one step, are stated one by one.
    inputs, outputs = {i for i, _ in allowed}, {o for _, o in allowed}
    spans: dict[int, tuple[int, int]] = {}
    for i, block in enumerate(blocks):
        begin, end = 2 * block.first + (i in outputs), 2 * block.last + 2 - (i in inputs)
        if block.n_bytes and begin < end:
            spans[i] = begin, end
    rows, columns = [], []
    for i, (begin, end) in spans.items():
        rows.append(model.new_fixed_size_interval_var(begin, end - begin, f"t{i}"))
        length = -(-blocks[i].n_bytes // unit)
        columns.append(model.new_fixed_size_interval_var(starts[i], length, f"b{i}"))
    model.add_no_overlap_2d(rows, columns)
    for a, b, low, high in relations:
        if (
            a in spans
            and b in spans
            and max(spans[a][0], spans[b][0]) < min(spans[a][1], spans[b][1])
        ):
            continue
        above = model.new_bool_var(f"above{a}_{b}")
        model.add(starts[a] - starts[b] >= -(-high // unit)).only_enforce_if(above)
        model.add(starts[a] - starts[b] <= low // unit).only_enforce_if(~above)
        model.add_hint(above, hint[a] - hint[b] >= high)
    model.minimize(size)

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    # What its clock leaves out grows with the square of the relations.
    scale = min(1.0, (_CP_SAT_EASY / max(1, len(relations))) ** 2)
    solver.parameters.max_deterministic_time = time_limit_s * scale
    status = solver.solve(model)
    assert status not in (cp_model.INFEASIBLE, cp_model.MODEL_INVALID), "the hint is a solution"
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    offsets = [int(solver.value(start)) * unit for start in starts]
    return offsets, math.ceil(solver.best_objective_bound - 1e-6)


def verify_plan(blocks: Sequence[Block], overlaps: Iterable[Overlap], plan: ArenaPlan) -> None:
    """Check a plan against the plain words of its rules, pair by pair.

    Raises:
        ValueError: Names the block that is misplaced, or the two that clash and the step.
    """
    if plan.offsets.keys() != {block.name for block in blocks} or len(plan.offsets) != len(blocks):
        odd = sorted(plan.offsets.keys() ^ {block.name for block in blocks})
        raise ValueError(f"the plan and the blocks differ in {', '.join(odd) or 'their number'}")
    for block in blocks:
        start, end = plan.offsets[block.name], plan.offsets[block.name] + block.n_bytes
        if start < 0 or start % block.align:
            raise ValueError(
                f"block {block.name!r} at {start}: not a multiple of {block.align} from 0 upwards"
            )
        if block.n_bytes and end > plan.n_bytes:
            raise ValueError(f"block {block.name!r} ends at {end}, the arena at {plan.n_bytes}")
    if plan.lower_bound > plan.n_bytes or plan.optimal != (plan.lower_bound == plan.n_bytes):
        raise ValueError(
            f"arena of {plan.n_bytes} bytes, bound {plan.lower_bound}, optimal {plan.optimal}"
        )
    permits: dict[tuple[str, str], list[Overlap]] = {}
    for overlap in overlaps:
        permits.setdefault((overlap.input, overlap.output), []).append(overlap)
    for k, one in enumerate(blocks):
        for two in blocks[k + 1 :]:
            begin, end = max(one.first, two.first), min(one.last, two.last)
            here, there = plan.offsets[one.name], plan.offsets[two.name]
            shared = min(here + one.n_bytes, there + two.n_bytes) - max(here, there)
            if begin > end or shared <= 0 or not one.n_bytes or not two.n_bytes:
                continue
            if any(
                _excused(source, result, permits, plan, begin)
                for source, result in ((one, two), (two, one))
            ):
                continue
            raise ValueError(
                f"blocks {one.name!r} at {here} and {two.name!r} at {there} share {shared} bytes "
                f"at step {begin}, and no overlap allows it"
            )


def _excused(
    source: Block,
    result: Block,
    permits: Mapping[tuple[str, str], Sequence[Overlap]],
    plan: ArenaPlan,
    step: int,
) -> bool:
    """Tell whether writing `result` over `source` is allowed where the plan puts them."""
    if not source.last == step == result.first:
        return False
    stated = [o for o in permits.get((source.name, result.name), ()) if o.step == step]
    lead = plan.offsets[source.name] - plan.offsets[result.name]
    return bool(stated) and all(lead >= o.distance for o in stated)


def render(plan: ArenaPlan, blocks: Sequence[Block]) -> str:
    """Draw the arena: one line per step, addresses from left to right, then a legend.

    Plain ASCII of at most 100 columns. A letter is the block that holds most of the column's bytes,
    `*` bytes that two blocks share (an operator in place), `.` free. Steps that look alike share a
    line. Letters repeat when there are many blocks, never at one step while others are left.
    """
    real = sorted((b for b in blocks if b.n_bytes), key=lambda b: (b.first, plan.offsets[b.name]))
    gap = "optimal" if plan.optimal else f"at least {plan.lower_bound} in any plan"
    lines = [f"arena {plan.n_bytes} bytes ({gap}), {plan.method}"]
    if not real:
        return lines[0] + "\n"
    symbols: dict[str, str] = {}
    for block in real:
        near = {symbols[b.name] for b in real if b.name in symbols
                and b.first <= block.last + 1 and block.first <= b.last + 1}  # fmt: skip
        turn = len(symbols) % len(_SYMBOLS)
        turning = _SYMBOLS[turn:] + _SYMBOLS[:turn]
        symbols[block.name] = next((s for s in turning if s not in near), turning[0])

    steps = range(min(b.first for b in real), max(b.last for b in real) + 1)
    label = max(2 * max(len(str(steps[0])), len(str(steps[-1]))) + 1, 4)
    width = _RENDER_COLUMNS - label - 3
    per_column = max(1, -(-plan.n_bytes // width))
    drawn: list[tuple[int, int, str]] = []  # first step, last step, map
    changes = sorted({b.first for b in real} | {b.last + 1 for b in real})
    for begin, following in itertools.pairwise(changes):
        row = _row(plan, [b for b in real if b.first <= begin <= b.last], symbols, per_column)
        if drawn and drawn[-1][2] == row:
            drawn[-1] = drawn[-1][0], following - 1, row
        else:
            drawn.append((begin, following - 1, row))
    lines.append(f"{'step':>{label}} |one column is {per_column} bytes")
    for begin, end, row in drawn:
        lines.append(f"{str(begin) if begin == end else f'{begin}-{end}':>{label}} |{row}|")
    numbers = max(len(str(plan.n_bytes)), 6)
    lines.append(f"  {'offset':>{numbers}} {'bytes':>{numbers}}  steps")
    for block in real:
        head = f"{symbols[block.name]} {plan.offsets[block.name]:>{numbers}} "
        head += f"{block.n_bytes:>{numbers}}  {block.first}-{block.last}  "
        name = block.name.encode("ascii", "backslashreplace").decode()
        name = "".join(c if c.isprintable() else "?" for c in name)
        room = _RENDER_COLUMNS - len(head)
        lines.append(head + (name if len(name) <= room else "..." + name[3 - room :]))
    return "\n".join(lines) + "\n"


def _row(
    plan: ArenaPlan, live: Sequence[Block], symbols: Mapping[str, str], per_column: int
) -> str:
    cells = []
    for low in range(0, plan.n_bytes, per_column):
        high = min(low + per_column, plan.n_bytes)
        most, symbol, held = 0, ".", 0
        spans = []
        for block in live:
            start = max(plan.offsets[block.name], low)
            n_here = min(plan.offsets[block.name] + block.n_bytes, high) - start
            if n_here <= 0:
                continue
            spans.append((start, start + n_here))
            held += n_here
            if n_here > most:
                most, symbol = n_here, symbols[block.name]
        covered, edge = 0, low
        for start, end in sorted(spans):
            covered += max(0, end - max(start, edge))
            edge = max(edge, end)
        cells.append("*" if held - covered > (high - low) // 2 else symbol)
    return "".join(cells)


def order_for_memory(
    n_ops: int,
    reads: Sequence[Sequence[str]],
    writes: Sequence[Sequence[str]],
    sizes: Mapping[str, int],
    *,
    in_place: Iterable[Overlap] = (),
    scratch: Sequence[int] = (),
    keep: Collection[str] = (),
) -> tuple[int, ...]:
    """Return the order of operators with the smallest peak of live bytes.

    Operators that touch the same buffer keep their relative order if one of them writes it. A
    buffer lives from its first writer (from the start, if it is read before it is written: an
    input) to its last reader (to the end, if it is in `keep` or nobody reads it: an output).

    Exact by best-first search over sets of finished operators, as long as these are few enough;
    beyond, a beam search. The given order comes back if no better one is found.

    Args:
        n_ops: Operators, numbered in a valid order.
        reads: Buffers that each operator reads.
        writes: Buffers that each operator writes.
        sizes: Bytes of every buffer.
        in_place: What operators may write over; `step` is the operator's number.
        scratch: Bytes each operator needs while it runs; empty for none.
        keep: Buffers that live to the end though they are read.

    Raises:
        ValueError: A count does not match, or a buffer has no size; the message names it.
    """
    ops = _Ops.of(n_ops, reads, writes, sizes, in_place, scratch, keep)
    given = tuple(range(n_ops))
    given_peak = ops.peak(given)
    if given_peak <= ops.need_alone():
        return given
    best, best_peak = given, given_peak
    order = _beam(ops)
    if ops.peak(order) < best_peak:
        best, best_peak = order, ops.peak(order)
    exact = _best_first(ops, best_peak)
    if exact is not None:
        best = exact
    return best


@dataclass(frozen=True, kw_only=True)
class _Ops:
    """Operators for the search over orders; sets of operators are bit masks."""

    before: tuple[int, ...]  # per operator: those that must be finished
    after: tuple[tuple[int, ...], ...]  # per operator: those that wait for it
    touched: tuple[tuple[int, ...], ...]  # per operator: its buffers
    scratch: tuple[int, ...]
    overlaps: tuple[tuple[tuple[int, int, int], ...], ...]  # per operator: input, output, bytes
    n_bytes: tuple[int, ...]  # per buffer
    users: tuple[int, ...]  # per buffer: operators that read or write it
    early: tuple[bool, ...]  # per buffer: lives from the start
    late: tuple[bool, ...]  # per buffer: lives to the end

    @classmethod
    def of(
        cls,
        n_ops: int,
        reads: Sequence[Sequence[str]],
        writes: Sequence[Sequence[str]],
        sizes: Mapping[str, int],
        in_place: Iterable[Overlap],
        scratch: Sequence[int],
        keep: Collection[str],
    ) -> _Ops:
        """Check the arguments of `order_for_memory` and number its buffers."""
        if not len(reads) == len(writes) == n_ops or len(scratch) not in (0, n_ops):
            raise ValueError(
                f"{n_ops} operators, but {len(reads)} reads, {len(writes)} writes and "
                f"{len(scratch)} scratch sizes; the counts must match"
            )
        names = list(dict.fromkeys(n for op in range(n_ops) for n in (*reads[op], *writes[op])))
        for name in names:
            if sizes.get(name, -1) < 0:
                raise ValueError(f"buffer {name!r}: its size is missing or negative")
        number = {name: i for i, name in enumerate(names)}
        before = [0] * n_ops
        users, readers, writer = ([0] * len(names) for _ in range(3))
        early, ever_read = ([False] * len(names) for _ in range(2))
        for op in range(n_ops):
            for b in {number[name]: None for name in reads[op]}:
                early[b] = early[b] or not writer[b]
                before[op] |= writer[b]
                ever_read[b] = True
            for b in {number[name]: None for name in writes[op]}:
                before[op] |= writer[b] | readers[b]
                writer[b], readers[b] = 1 << op, 0
            for name in reads[op]:
                readers[number[name]] |= 1 << op
            for name in (*reads[op], *writes[op]):
                users[number[name]] |= 1 << op
        before = [mask & ~(1 << op) for op, mask in enumerate(before)]
        overlaps: list[list[tuple[int, int, int]]] = [[] for _ in range(n_ops)]
        for o in in_place:
            if (
                not 0 <= o.step < n_ops
                or o.input not in reads[o.step]
                or (o.output not in writes[o.step])
            ):
                raise ValueError(
                    f"overlap of {o.input!r} and {o.output!r}: operator {o.step} does not read "
                    "the one and write the other"
                )
            share = min(sizes[o.input], sizes[o.output] - max(0, o.distance))
            if share > 0:
                overlaps[o.step].append((number[o.input], number[o.output], share))
        return cls(
            before=tuple(before),
            after=tuple(
                tuple(w for w in range(n_ops) if before[w] >> op & 1) for op in range(n_ops)
            ),
            touched=tuple(
                tuple(dict.fromkeys(number[name] for name in (*reads[op], *writes[op])))
                for op in range(n_ops)
            ),
            scratch=tuple(scratch) or (0,) * n_ops,
            overlaps=tuple(tuple(pairs) for pairs in overlaps),
            n_bytes=tuple(sizes[name] for name in names),
            users=tuple(users),
            early=tuple(early),
            late=tuple(n in keep or not r for n, r in zip(names, ever_read, strict=True)),
        )

    def live_at_start(self) -> int:
        return sum(n for n, early in zip(self.n_bytes, self.early, strict=True) if early)

    def run(self, op: int, done: int, live: int) -> tuple[int, int]:
        """Return the bytes needed while `op` runs after the set `done`, and those live after it."""
        left = ~(done | 1 << op)
        freed = 0
        for b in self.touched[op]:
            users = self.users[b]
            if not self.early[b] and not users & done:
                live += self.n_bytes[b]
            if not self.late[b] and not users & left:
                freed += self.n_bytes[b]
        by_input: dict[int, int] = {}
        by_output: dict[int, int] = {}
        for i, o, share in self.overlaps[op]:
            new = not self.early[o] and not self.users[o] & done
            if new and not self.late[i] and not self.users[i] & left:
                by_input[i] = by_input.get(i, 0) + share
                by_output[o] = by_output.get(o, 0) + share
        saved = min(
            sum(min(s, self.n_bytes[b]) for b, s in side.items()) for side in (by_input, by_output)
        )
        return live + self.scratch[op] - saved, live - freed

    def peak(self, order: Sequence[int]) -> int:
        """Return the most bytes needed at any moment of this order."""
        done, live = 0, self.live_at_start()
        most = live
        for op in order:
            need, live = self.run(op, done, live)
            most = max(most, need)
            done |= 1 << op
        return most

    def need_alone(self) -> int:
        """Return a bound on the peak of every order: what each operator needs by itself."""
        most = self.live_at_start()
        for op, touched in enumerate(self.touched):
            own = sum(self.n_bytes[b] for b in touched) + self.scratch[op]
            most = max(most, own - sum(share for _, _, share in self.overlaps[op]))
        return most

    def ready_at_start(self) -> int:
        return sum(1 << op for op, mask in enumerate(self.before) if not mask)

    def ready_after(self, op: int, done: int, ready: int) -> int:
        """Return who can run after `op` did; `done` holds it already."""
        ready &= ~(1 << op)
        for w in self.after[op]:
            if not self.before[w] & ~done:
                ready |= 1 << w
        return ready


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _path(parents: Mapping[int, int], done: int) -> tuple[int, ...]:
    order = []
    while done:
        order.append(parents[done])
        done ^= 1 << parents[done]
    return tuple(reversed(order))


def _best_first(ops: _Ops, below: int) -> tuple[int, ...] | None:
    """Return an order with the smallest peak, if that is below `below` and the search ends.

    The peak of the path that first reaches a set, sets being taken by smallest peak, is the least
    of all paths to it, and the bytes live after a set do not depend on the path.

    An operator that needs no more than the peak so far and leaves no more bytes live than before is
    run at once, without a branch: moved to the front of any continuation, it raises no need. The
    others find its outputs live and its inputs gone, which is not more in sum (its inputs would be
    freed by it later just as well), and can write over whatever they could before.
    """
    n_ops = len(ops.before)
    full = (1 << n_ops) - 1
    live = ops.live_at_start()
    # By peak, then longest path, then the order of discovery: deterministic, and quick to the end.
    queue = [(live, n_ops, 0, 0, live, ops.ready_at_start(), -1)]
    parents: dict[int, int] = {}
    closed: set[int] = set()
    n_pushed = 0
    while queue:
        peak, n_left, _, done, live, ready, last = heapq.heappop(queue)
        if done in closed:
            continue
        closed.add(done)
        if last >= 0:
            parents[done] = last
        if done == full:
            return _path(parents, done)
        if n_pushed > _ORDER_STATES:
            return None
        steps = []
        for op in _bits(ready):
            need, after = ops.run(op, done, live)
            if need <= peak and after <= live:
                steps = [(op, need, after)]
                break
            if need < below:
                steps.append((op, need, after))
        for op, need, after in steps:
            reached = done | 1 << op
            if reached not in closed:
                n_pushed += 1
                entry = ops.ready_after(op, reached, ready)
                heapq.heappush(
                    queue, (max(peak, need), n_left - 1, n_pushed, reached, after, entry, op)
                )
    return None


def _beam(ops: _Ops) -> tuple[int, ...]:
    """Return a good order: of all sets of one length, the few best go on."""
    live = ops.live_at_start()
    layer = {0: (live, live, ops.ready_at_start())}
    parents: dict[int, int] = {}
    for _ in ops.before:
        found: dict[int, tuple[int, int, int, int]] = {}
        for done, (peak, live, ready) in layer.items():
            for op in _bits(ready):
                need, after = ops.run(op, done, live)
                reached = done | 1 << op
                if reached not in found or max(peak, need) < found[reached][0]:
                    entry = ops.ready_after(op, reached, ready)
                    found[reached] = max(peak, need), after, entry, op
        kept = sorted(found.items(), key=lambda item: (*item[1][:2], item[0]))[:_ORDER_BEAM]
        layer = {reached: entry[:3] for reached, entry in kept}
        parents.update((reached, entry[3]) for reached, entry in kept)
    return _path(parents, (1 << len(ops.before)) - 1)
