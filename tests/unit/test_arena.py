"""Arena plans: legal, as small as brute force finds, with an honest bound, the same everywhere."""

from __future__ import annotations

import builtins
import itertools
import json
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeshrink import arena
from edgeshrink.arena import (
    ArenaPlan,
    Block,
    Overlap,
    order_for_memory,
    plan_arena,
    render,
    verify_plan,
)

# --- the oracle: bytes as cells, and every offset tried ------------------------------------------


def _may_share(one: Block, two: Block, at: int, there: int, overlaps: list[Overlap]) -> bool:
    """The rule of one ordered pair, by cells and steps; `at` and `there` are offsets."""
    cells = set(range(at, at + one.n_bytes)) & set(range(there, there + two.n_bytes))
    steps = set(range(one.first, one.last + 1)) & set(range(two.first, two.last + 1))
    if not cells or not steps:
        return True
    for source, result, lead in ((one, two, at - there), (two, one, there - at)):
        needed = [
            o.distance
            for o in overlaps
            if (o.input, o.output) == (source.name, result.name)
            and o.step == source.last == result.first
        ]
        if steps == {source.last} and needed and lead >= max(needed):
            return True
    return False


def _legal(blocks: list[Block], overlaps: list[Overlap], offsets: dict[str, int]) -> bool:
    return all(
        _may_share(a, b, offsets[a.name], offsets[b.name], overlaps)
        for a, b in itertools.combinations(blocks, 2)
    )


def _smallest(blocks: list[Block], overlaps: list[Overlap]) -> int:
    """Try every offset of every block, in arenas of growing size."""

    def fits(k: int, size: int, chosen: list[int]) -> bool:
        if k == len(blocks):
            return True
        block = blocks[k]
        for offset in range(0, max(size - block.n_bytes, 0) + 1, block.align):
            if all(
                _may_share(blocks[j], block, chosen[j], offset, overlaps) for j in range(k)
            ) and fits(k + 1, size, [*chosen, offset]):
                return True
        return False

    return next(
        size
        for size in itertools.count(max((b.n_bytes for b in blocks), default=0))
        if fits(0, size, [])
    )


@st.composite
def arenas(draw, max_blocks=5, max_bytes=6, steps=4, aligns=(1, 2)):
    blocks = []
    for k in range(draw(st.integers(1, max_blocks))):
        first = draw(st.integers(0, steps - 1))
        blocks.append(
            Block(
                name=f"b{k}",
                n_bytes=draw(st.integers(0, max_bytes)),
                first=first,
                last=draw(st.integers(first, steps - 1)),
                align=draw(st.sampled_from(aligns)),
            )
        )
    meeting = [(a, b) for a, b in itertools.permutations(blocks, 2) if a.last == b.first]
    overlaps = [
        Overlap(input=a.name, output=b.name, distance=draw(st.integers(-3, 5)), step=a.last)
        for a, b in meeting
        if draw(st.booleans())
    ]
    return blocks, overlaps


@settings(max_examples=100, deadline=None)
@given(arenas())
def test_small_plans_are_as_small_as_brute_force_finds(case):
    blocks, overlaps = case
    plan = plan_arena(blocks, overlaps)
    assert _legal(blocks, overlaps, dict(plan.offsets))
    assert all(plan.offsets[b.name] % b.align == 0 for b in blocks)
    assert plan.n_bytes == plan.lower_bound == _smallest(blocks, overlaps)
    assert plan.optimal
    verify_plan(blocks, overlaps, plan)


def _stacked(blocks, *_, **__):
    """A poor start: every block above the last."""
    offsets, end = [], 0
    for block in blocks:
        offsets.append(-(-end // block.align) * block.align)
        end = offsets[-1] + block.n_bytes
    size = max(
        (o + b.n_bytes for o, b in zip(offsets, blocks, strict=True) if b.n_bytes), default=0
    )
    return [o if b.n_bytes else 0 for o, b in zip(offsets, blocks, strict=True)], size


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([(1,), (3,), (4,), (2, 4), (2, 6)]).flatmap(
    lambda aligns: arenas(max_blocks=4, max_bytes=9, steps=3, aligns=aligns)
))  # fmt: skip
def test_cp_sat_alone_finds_the_optimum_from_a_poor_start(case):
    blocks, overlaps = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "_greedy", _stacked)
        plan = plan_arena(blocks, overlaps)
    assert plan.n_bytes == plan.lower_bound == _smallest(blocks, overlaps)
    assert _legal(blocks, overlaps, dict(plan.offsets))
    verify_plan(blocks, overlaps, plan)


@settings(max_examples=100, deadline=None)
@given(arenas(max_blocks=4, max_bytes=8, steps=2, aligns=(1, 2, 4)))
def test_the_bound_alone_is_never_above_the_optimum(case):
    blocks, overlaps = case
    plan = plan_arena(blocks, overlaps, time_limit_s=0)
    assert plan.method == "greedy"
    best = _smallest(blocks, overlaps)
    assert plan.lower_bound <= best <= plan.n_bytes
    assert plan.optimal == (plan.lower_bound == plan.n_bytes)
    verify_plan(blocks, overlaps, plan)


@settings(max_examples=300, deadline=None)
@given(arenas(max_blocks=4, steps=3), st.data())
def test_verify_plan_refuses_exactly_what_the_rule_forbids(case, data):
    blocks, overlaps = case
    offsets = {b.name: b.align * data.draw(st.integers(0, 8 // b.align)) for b in blocks}
    size = max(offsets[b.name] + b.n_bytes for b in blocks)
    plan = ArenaPlan(
        offsets=offsets, n_bytes=size, lower_bound=0, optimal=not size, method="greedy"
    )
    if _legal(blocks, overlaps, offsets):
        verify_plan(blocks, overlaps, plan)
    else:
        with pytest.raises(ValueError, match="share"):
            verify_plan(blocks, overlaps, plan)


# --- known cases ---------------------------------------------------------------------------------


def _chain(*sizes: int) -> list[Block]:
    return [Block(name=f"t{k}", n_bytes=n, first=k, last=k + 1) for k, n in enumerate(sizes)]


def _over(source: str, result: str, step: int, distance: int = 0) -> Overlap:
    return Overlap(input=source, output=result, distance=distance, step=step)


def test_a_chain_of_elementwise_operators_needs_one_buffer():
    blocks = _chain(*[4096] * 6)
    overlaps = [_over(f"t{k}", f"t{k + 1}", k + 1) for k in range(5)]
    plan = plan_arena(blocks, overlaps)
    assert (plan.n_bytes, plan.optimal) == (4096, True)
    assert set(plan.offsets.values()) == {0}


def test_without_overlaps_a_chain_needs_its_two_largest_neighbours():
    plan = plan_arena(_chain(100, 4000, 200, 3000, 1500, 40))
    assert (plan.n_bytes, plan.optimal) == (4500, True)


@pytest.mark.parametrize(("distance", "size"), [(544, 2 * 16384 + 544), (545, 2 * 16384 + 548)])
def test_a_residual_block_needs_two_buffers_and_the_distance_of_its_convolution(distance, size):
    blocks = [
        Block(name="x", n_bytes=16384, first=0, last=3),
        Block(name="t1", n_bytes=16384, first=1, last=2),
        Block(name="t2", n_bytes=16384, first=2, last=3),
        Block(name="y", n_bytes=16384, first=3, last=4),
    ]
    overlaps = [_over("t1", "t2", 2, distance), _over("x", "y", 3), _over("t2", "y", 3)]
    plan = plan_arena(blocks, overlaps)
    verify_plan(blocks, overlaps, plan)
    assert (plan.n_bytes, plan.optimal) == (size, True)


def test_a_growing_operator_overlaps_its_input_in_part():
    blocks = _chain(1000, 3000)
    plan = plan_arena(blocks, [_over("t0", "t1", 1, 2000)])
    assert (plan.n_bytes, dict(plan.offsets)) == (3000, {"t0": 2000, "t1": 0})
    plan = plan_arena(blocks, [_over("t0", "t1", 1, 2400)])
    assert (plan.n_bytes, dict(plan.offsets)) == (3400, {"t0": 2400, "t1": 0})


def test_a_distance_beyond_the_output_saves_nothing():
    plan = plan_arena(_chain(1000, 1000), [_over("t0", "t1", 1, 5000)])
    assert (plan.n_bytes, plan.optimal) == (2000, True)


def test_an_output_may_lie_over_all_inputs_of_its_operator():
    blocks = [
        Block(name="a", n_bytes=600, first=0, last=1),
        Block(name="b", n_bytes=400, first=0, last=1),
        Block(name="y", n_bytes=1000, first=1, last=2),
    ]
    plan = plan_arena(blocks, [_over("a", "y", 1), _over("b", "y", 1)])
    assert (plan.n_bytes, plan.optimal) == (1000, True)


def test_an_overlap_of_an_input_that_lives_on_is_passed_over():
    blocks = _chain(64, 64)
    blocks[0] = replace(blocks[0], last=2)
    overlaps = [_over("t0", "t1", 1)]
    plan = plan_arena(blocks, overlaps)
    assert (plan.n_bytes, plan.optimal) == (128, True)
    with pytest.raises(ValueError, match="'t0' at 0 and 't1' at 0 share 64 bytes at step 1"):
        verify_plan(blocks, overlaps, replace(plan, offsets={"t0": 0, "t1": 0}))


def test_of_two_overlaps_of_the_same_blocks_both_must_hold():
    blocks = _chain(64, 64)
    overlaps = [_over("t0", "t1", 1, 16), _over("t0", "t1", 1, 8)]
    plan = plan_arena(blocks, overlaps)
    assert (plan.n_bytes, plan.optimal) == (80, True)
    with pytest.raises(ValueError, match="share 56 bytes"):
        verify_plan(blocks, overlaps, replace(plan, offsets={"t0": 8, "t1": 0}))


def test_blocks_of_no_bytes_cost_nothing_and_meet_nobody():
    blocks = [Block(name=f"z{k}", n_bytes=0, first=0, last=9) for k in range(3)]
    plan = plan_arena(blocks)
    assert (plan.n_bytes, plan.optimal) == (0, True)
    mixed = [*blocks, Block(name="one", n_bytes=7, first=3, last=3)]
    plan = plan_arena(mixed)
    verify_plan(mixed, (), plan)
    assert plan.n_bytes == 7


def test_no_blocks_make_an_empty_arena():
    assert plan_arena([]).n_bytes == 0


def test_padding_between_blocks_counts_in_the_bound():
    blocks = [Block(name=n, n_bytes=5, first=0, last=0, align=8) for n in "abc"]
    plan = plan_arena(blocks, time_limit_s=0)
    assert (plan.n_bytes, plan.lower_bound) == (21, 21)


# --- mutants: plans that are wrong by one --------------------------------------------------------


def test_a_distance_short_by_one_byte_is_refused():
    blocks = [replace(b, align=1) for b in _chain(100, 100)]
    good = ArenaPlan(
        offsets={"t0": 17, "t1": 0}, n_bytes=117, lower_bound=117, optimal=True, method="greedy"
    )
    verify_plan(blocks, [_over("t0", "t1", 1, 17)], good)
    with pytest.raises(ValueError, match="'t0' at 17 and 't1' at 0"):
        verify_plan(blocks, [_over("t0", "t1", 1, 18)], good)


def test_the_output_may_not_lie_above_where_only_below_is_allowed():
    blocks = _chain(100, 100)
    plan = plan_arena(blocks, [_over("t0", "t1", 1, 20)])
    turned = replace(plan, offsets={"t0": plan.offsets["t1"], "t1": plan.offsets["t0"]})
    with pytest.raises(ValueError, match="share 80 bytes"):
        verify_plan(blocks, [_over("t0", "t1", 1, 20)], turned)


def _wrong(plan: ArenaPlan, **offsets: int) -> ArenaPlan:
    return replace(plan, offsets={**plan.offsets, **offsets})


def test_verify_plan_names_a_misplaced_block():
    blocks = _chain(8, 8, 8)
    plan = plan_arena(blocks)
    cases = [
        (_wrong(plan, t1=2), "'t1' at 2: not a multiple of 4"),
        (_wrong(plan, t1=-4), "'t1' at -4"),
        (_wrong(plan, t1=12), "'t1' ends at 20, the arena at 16"),
        (_wrong(plan, t9=0), "differ in t9"),
        (replace(plan, lower_bound=20), "bound 20"),
        (replace(plan, lower_bound=12), "optimal True"),
        (replace(plan, optimal=False), "optimal False"),
    ]
    verify_plan(blocks, (), plan)
    for wrong, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            verify_plan(blocks, (), wrong)


def test_malformed_arguments_are_refused_by_name():
    good = Block(name="a", n_bytes=4, first=0, last=1)
    cases = [
        ([good, good], [], "'a'.*two of this name"),
        ([replace(good, n_bytes=-1)], [], "'a': -1 bytes"),
        ([replace(good, align=0)], [], "'a'.*alignment 0"),
        ([replace(good, last=-1)], [], "'a'.*steps 0 to -1"),
        ([good], [_over("a", "b", 1)], "no block 'b'"),
        ([good], [_over("a", "a", 1)], "'a' over itself"),
    ]
    for blocks, overlaps, message in cases:
        with pytest.raises(ValueError, match=message):
            plan_arena(blocks, overlaps)


# --- larger plans --------------------------------------------------------------------------------


def _network(n: int, seed: int) -> tuple[list[Block], list[Overlap]]:
    """Blocks with the lives of a network's tensors: short, some skips, a few over all."""
    rng = random.Random(seed)
    steps = max(3, n // 2)
    blocks = []
    for k in range(n):
        first = rng.randrange(steps)
        last = min(steps - 1, first + rng.choice((0, 1, 1, 1, 2, 5, steps // 3)))
        blocks.append(
            Block(name=f"b{k}", n_bytes=rng.randrange(1, 9000), first=first, last=last,
                  align=rng.choice((1, 4, 4, 16)))
        )  # fmt: skip
    overlaps = [
        _over(a.name, b.name, a.last, rng.choice((-40, 0, 0, 33, 700)))
        for a, b in itertools.permutations(blocks, 2)
        if a.last == b.first and rng.random() < 0.3
    ]
    return blocks, overlaps


@pytest.mark.parametrize(("n", "limit"), [(12, 1.0), (30, 0.2), (60, 0.2), (500, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_plans_of_many_blocks_are_legal_and_close_to_the_bound(n, limit, seed):
    blocks, overlaps = _network(n, seed)
    plan = plan_arena(blocks, overlaps, time_limit_s=limit)
    verify_plan(blocks, overlaps, plan)
    assert plan.n_bytes <= 1.15 * plan.lower_bound
    assert plan.n_bytes < _extent_of_first_fit(blocks)


def _extent_of_first_fit(blocks: list[Block]) -> int:
    """What an interpreter's planner does: by size, first gap, nothing in place."""
    placed: list[tuple[int, Block]] = []
    for block in sorted(blocks, key=lambda b: -b.n_bytes):
        offset = 0
        while clash := [
            p + b.n_bytes
            for p, b in placed
            if b.first <= block.last
            and block.first <= b.last
            and p < offset + block.n_bytes
            and offset < p + b.n_bytes
        ]:
            offset = -(-min(clash) // block.align) * block.align
        placed.append((offset, block))
    return max(o + b.n_bytes for o, b in placed)


def test_cp_sat_improves_on_the_greedy_plan_which_stands_without_ortools(monkeypatch):
    blocks, overlaps = _hard()
    plan = plan_arena(blocks, overlaps)
    verify_plan(blocks, overlaps, plan)
    real = builtins.__import__

    def without_ortools(name, *rest, **more):
        if name.startswith("ortools"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_ortools)
    greedy = plan_arena(blocks, overlaps)
    verify_plan(blocks, overlaps, greedy)
    assert greedy.method == "greedy"
    assert not greedy.optimal
    assert plan.method == "cp-sat"
    assert plan.n_bytes < greedy.n_bytes
    assert plan.optimal


def _hard() -> tuple[list[Block], list[Overlap]]:
    """Fourteen blocks that the greedy search does not solve."""
    return _network(14, 46)


_SCRIPT = """
import json, sys
from edgeshrink.arena import Block, Overlap, plan_arena
for blocks, overlaps, limit in json.load(sys.stdin):
    plan = plan_arena([Block(**b) for b in blocks], [Overlap(**o) for o in overlaps],
                      time_limit_s=limit)
    print(json.dumps([dict(plan.offsets), plan.n_bytes, plan.lower_bound, plan.method]))
"""


def test_two_processes_make_the_same_plans():
    cases = [(*_network(20, 1), 0.1), (*_network(14, 46), 1.0), (*_network(80, 6), 0.0)]
    text = json.dumps([([vars(b) for b in bs], [vars(o) for o in os], t) for bs, os, t in cases])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    plans = [json.loads(line) for line in outputs[0]]
    assert [list(plan[0]) for plan in plans] == [[b.name for b in bs] for bs, _, _ in cases]
    assert [plan[3] for plan in plans] == ["cp-sat", "cp-sat", "greedy"]


# --- operator order ------------------------------------------------------------------------------


def _peak(order, reads, writes, sizes, overlaps, scratch, keep) -> int:
    """Play the order with a set of live buffers."""
    everything = {b for names in (*reads, *writes) for b in names}
    first = {}
    for op, _ in enumerate(reads):
        for b in reads[op]:
            first.setdefault(b, "read")
        for b in writes[op]:
            first.setdefault(b, "written")
    read = {b for names in reads for b in names}
    live = {b for b in everything if first[b] == "read"}
    most = sum(sizes[b] for b in live)
    for k, op in enumerate(order):
        fresh = set(writes[op]) - live
        live |= set(writes[op])
        later = {b for o in order[k + 1 :] for b in (*reads[o], *writes[o])}
        dead = {b for b in live if b not in later and b not in keep and b in read}
        need = sum(sizes[b] for b in live) + (scratch[op] if scratch else 0)
        for o in overlaps:  # at most one an operator in these tests
            if o.step == op and o.input in dead and o.output in fresh:
                need -= max(0, min(sizes[o.input], sizes[o.output] - max(0, o.distance)))
        most = max(most, need)
        live -= dead
    return most


def _valid_orders(reads, writes):
    n = len(reads)
    must = {
        (p, q)
        for p, q in itertools.combinations(range(n), 2)
        if set(writes[p]) & {*reads[q], *writes[q]} or set(reads[p]) & set(writes[q])
    }
    for order in itertools.permutations(range(n)):
        place = {op: k for k, op in enumerate(order)}
        if all(place[p] < place[q] for p, q in must):
            yield order


@st.composite
def operators(draw, max_ops=6):
    n = draw(st.integers(1, max_ops))
    names = ["in"]
    reads, writes, overlaps = [], [], []
    for op in range(n):
        reads.append(tuple(draw(st.lists(st.sampled_from(names), max_size=2))))
        new = [f"t{op}_{k}" for k in range(draw(st.integers(1, 2)))]
        again = draw(st.lists(st.sampled_from(names), max_size=1)) if draw(st.booleans()) else []
        writes.append((*new, *again))
        names += new
        if reads[op] and reads[op][0] not in again and draw(st.booleans()):
            output = draw(st.sampled_from(writes[op]))
            overlaps.append(_over(reads[op][0], output, op, draw(st.integers(-2, 4))))
    sizes = {name: draw(st.integers(0, 9)) for name in names}
    scratch = draw(st.one_of(st.just([]), st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    keep = draw(st.lists(st.sampled_from(names), max_size=1))
    return reads, writes, sizes, overlaps, scratch, keep


@settings(max_examples=200, deadline=None)
@given(operators())
def test_the_exact_search_has_the_peak_that_brute_force_finds(case):
    reads, writes, sizes, overlaps, scratch, keep = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "_beam", lambda ops: tuple(range(len(ops.before))))
        order = order_for_memory(
            len(reads), reads, writes, sizes, in_place=overlaps, scratch=scratch, keep=keep
        )
    valid = list(_valid_orders(reads, writes))
    assert order in valid
    best = min(_peak(o, *case) for o in valid)
    assert _peak(order, *case) == best
    if _peak(tuple(range(len(reads))), *case) == best:
        assert order == tuple(range(len(reads)))


@settings(max_examples=100, deadline=None)
@given(operators())
def test_the_search_with_lookahead_gives_valid_orders_no_worse_than_the_given_one(case):
    reads, writes, sizes, overlaps, scratch, keep = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "_ORDER_STATES", 0)
        patch.setattr(arena, "_ORDER_BEAM", 1)
        order = order_for_memory(
            len(reads), reads, writes, sizes, in_place=overlaps, scratch=scratch, keep=keep
        )
    assert order in set(_valid_orders(reads, writes))
    assert _peak(order, *case) <= _peak(tuple(range(len(reads))), *case)


def test_branches_are_run_one_after_the_other_not_side_by_side():
    n = 12  # expand k: 10 -> 1000, reduce k: 1000 -> 10, given breadth first
    reads = [("in",)] * n + [(f"wide{k}",) for k in range(n)]
    reads.append(tuple(f"thin{k}" for k in range(n)))
    writes = [(f"wide{k}",) for k in range(n)] + [(f"thin{k}",) for k in range(n)] + [("out",)]
    sizes = {"in": 10, "out": 10}
    sizes |= {f"wide{k}": 1000 for k in range(n)} | {f"thin{k}": 10 for k in range(n)}
    order = order_for_memory(len(reads), reads, writes, sizes)
    assert sorted(order) == list(range(2 * n + 1))
    # In the last branch: its wide one, the thin ones of all others, and its input or its thin one.
    assert _peak(order, reads, writes, sizes, [], [], ()) == 1000 + 10 * n


def test_an_operator_that_leaves_more_behind_waits_for_the_one_that_leaves_less(monkeypatch):
    monkeypatch.setattr(arena, "_beam", lambda ops: tuple(range(len(ops.before))))
    reads = [("in",), ("a",), ("a",), ("d",), ("b", "e")]
    writes = [("a",), ("b",), ("d",), ("e",), ("out",)]
    sizes = {"in": 11, "a": 1, "b": 8, "d": 9, "e": 1, "out": 1}
    assert order_for_memory(5, reads, writes, sizes) == (0, 2, 3, 1, 4)


def test_writing_over_a_buffer_that_is_kept_saves_nothing():
    reads, writes = [("x",), ("w",)], [("y",), ("v",)]
    sizes = {"x": 10, "y": 10, "w": 1, "v": 5}
    # Operator 0 first: 10 + 1 + 10 and its 8 of scratch, 29. Last: 10 + 5 + 10 + 8, 33. Were x
    # written over, 10 less each, and the bytes left behind would decide for the other order.
    order = order_for_memory(
        2, reads, writes, sizes, in_place=[_over("x", "y", 0)], scratch=[8, 0], keep=["x"]
    )
    assert order == (0, 1)


def test_writing_over_the_input_saves_nothing_when_the_output_held_content_before():
    reads, writes = [("x", "y"), ("w",)], [("y",), ("v",)]
    sizes = {"x": 10, "y": 10, "w": 20, "v": 1}
    # Operator 0 first: 40 and its 8 of scratch, 48. Last: 40 + 1 at operator 1, then 21 + 8.
    order = order_for_memory(
        2, reads, writes, sizes, in_place=[_over("x", "y", 0)], scratch=[8, 0], keep=["y"]
    )
    assert order == (1, 0)


def test_a_wide_graph_of_many_operators_is_ordered_in_bounded_work():
    rng = random.Random(4)
    n = 150
    reads = [tuple(f"t{rng.randrange(op)}" for _ in range(2)) if op else () for op in range(n)]
    writes = [(f"t{op}",) for op in range(n)]
    sizes = {f"t{op}": rng.randrange(1, 1000) for op in range(n)}
    order = order_for_memory(n, reads, writes, sizes)
    given = tuple(range(n))
    place = {op: k for k, op in enumerate(order)}
    assert all(place[int(b[1:])] < place[op] for op in range(n) for b in reads[op])
    assert _peak(order, reads, writes, sizes, [], [], ()) < _peak(
        given, reads, writes, sizes, [], [], ()
    )


def test_malformed_operators_are_refused_by_name():
    with pytest.raises(ValueError, match="2 operators, but 1 reads"):
        order_for_memory(2, [()], [(), ()], {})
    with pytest.raises(ValueError, match="buffer 'x': its size is missing"):
        order_for_memory(1, [("x",)], [()], {})
    with pytest.raises(ValueError, match="operator 0 does not read the one and write the other"):
        order_for_memory(1, [("x",)], [("y",)], {"x": 1, "y": 1}, in_place=[_over("y", "x", 0)])


# --- the map -------------------------------------------------------------------------------------


def test_the_map_shows_each_byte_of_a_small_arena():
    blocks = [
        Block(name="x", n_bytes=4, first=0, last=2),
        Block(name="y", n_bytes=8, first=2, last=3),
        Block(name="scratch", n_bytes=4, first=1, last=1),
    ]
    plan = ArenaPlan(
        offsets={"x": 4, "y": 0, "scratch": 0}, n_bytes=8, lower_bound=8, optimal=True,
        method="greedy",
    )  # fmt: skip
    assert render(plan, blocks).splitlines() == [
        "arena 8 bytes (optimal), greedy",
        "step |one column is 1 bytes",
        "   0 |....aaaa|",
        "   1 |bbbbaaaa|",
        "   2 |cccc****|",
        "   3 |cccccccc|",
        "  offset  bytes  steps",
        "a      4      4  0-2  x",
        "b      0      4  1-1  scratch",
        "c      0      8  2-3  y",
    ]


@settings(max_examples=50, deadline=None)
@given(arenas(max_blocks=8, max_bytes=70_000, steps=200, aligns=(1, 4)), st.text(max_size=200))
def test_the_map_is_plain_ascii_of_at_most_100_columns(case, name):
    blocks, overlaps = case
    if name not in {b.name for b in blocks}:
        blocks[0] = replace(blocks[0], name=name)
        overlaps = []
    text = render(plan_arena(blocks, overlaps, time_limit_s=0), blocks)
    assert text.isascii()
    assert all(len(line) <= 100 and line.isprintable() for line in text.splitlines())
    assert len(text.split("\n")) == len(text.splitlines()) + 1
