"""Whole channels go, least important first, through all layers that depend on them.

torch-pruning finds which channels of which layers belong together and rates them; how many go from
where is decided here. Its map of a model can be wrong (concatenated and flattened maps, recurrent
layers, views by heads), so each result is proved: a channel that is gone must be worth as much as
one that nobody reads. The pruned copy has to give the outputs of the given model with those weights
set to zero that read the channels.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch_pruning
from torch import Tensor, nn

from edgeshrink.channels import ChannelGroup
from edgeshrink.compression.layers import (
    CONVOLUTIONS,
    TRANSPOSED,
    excluded_layers,
    macs_of,
    require_layers,
    tensors_in,
)
from edgeshrink.compression.steps import Changed, Context
from edgeshrink.errors import ConfigError, ModelError
from edgeshrink.quantizer.canonical import TORCH_ERRORS
from edgeshrink.recipe import Prune, kept_channels
from edgeshrink.strict_toml import nearest
from edgeshrink.target import Target
from edgeshrink.task import Task, Training
from edgeshrink.training import check_trainable, retrain
from edgeshrink.user_code import UserCode

IMPORTANCES: Final[Mapping[str, Callable[[], Any] | None]] = {
    "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    "taylor": torch_pruning.importance.GroupTaylorImportance,
    "fpgm": torch_pruning.importance.FPGMImportance,
    "lamp": torch_pruning.importance.LAMPImportance,
    "bn-scale": torch_pruning.importance.BNScaleImportance,
    "random": None,  # drawn here, from the seed
}
ROOTS: Final = (*CONVOLUTIONS, nn.Linear)
# Norms over channels: without a channel, the others change. The proof leaves them out.
CHANNEL_NORMS: Final = (nn.LayerNorm, nn.GroupNorm)
GRADIENT_SAMPLES: Final = 1024  # of the training split, for first-order Taylor
FINEST_RATIO: Final = 1000  # ratios are searched in steps of 1/1000 at least
COMPUTED: Final = "computed, by weight norm or another parametrization"
TOLERANCE: Final = 1e-3  # of the largest output; a wrong channel changes far more
# How many channels kernels take at a time, by word of `cpu.isa`; the first that the core has.
LIKED: Final = {"mve": 16, "neon": 8, "dsp": 4}
LIKED_ELSE: Final = 4


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Indices that leave one axis of one layer."""

    path: str  # of the layer, or of a parameter that belongs to none that is known
    prune: Callable[[Any, list[int]], Any]
    reads: bool  # it is the axis of a layer's inputs
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Analysis:
    """A model as torch-pruning sees it."""

    graph: Any
    groups: tuple[ChannelGroup, ...]
    held: Mapping[str, str]  # root → why it keeps its channels


def apply(model: nn.Module, step: Prune, context: Context) -> Changed:
    """Return a copy of `model` with fewer channels; the model given is left as it is.

    Raises:
        ConfigError: `exclude` names no layer, training is asked for and the task has none, or the
            share of the MACs can't be reached.
        ModelError: There is nothing to prune, a layer would lose all its channels, or the model
            can't be pruned faithfully; names the layer.
    """
    task = context.task
    check_layers(model, step)
    if step.epochs:
        check_trainable(task, f"epochs = {step.epochs}")
    if step.importance == "taylor":
        check_trainable(task, "importance = 'taylor'")
    first = _analyse(model, step, context, seed=context.seed)
    widths = {group.root: group.n_channels for group in first.groups}
    start = macs_of(model, task.example_inputs)
    current, rounds = model, []
    for index in range(1, step.rounds + 1):
        analysis = first if index == 1 else _analyse(current, step, context, seed=context.seed)
        done = index / step.rounds
        kept = _choose(current, analysis, step, task, widths=widths, done=done, start=start)
        current = _proved(current, analysis, kept, task)
        rounds.append({"macs": macs_of(current, task.example_inputs)})
        if step.epochs:
            fitted = retrain(
                current,
                task,
                Training(epochs=step.epochs, learning_rate=step.learning_rate),
                seed=context.seed + index - 1,
                progress=_share(context, index - 1, step.rounds),
                checkpoints=context.checkpoints and context.checkpoints / f"round-{index}",
                identity={"step": repr(step), "round": str(index)},
                where=f"recovery, round {index} of {step.rounds}",
            )
            rounds[-1]["kept_epoch"] = fitted.kept_epoch
    layers = _layers(model, current)
    end = macs_of(current, task.example_inputs)
    return Changed(
        model=current,
        note=_note(layers, start, end, first.held, step, context.target),
        details={
            "layers": layers,
            "macs": {"before": start, "after": end},
            "rounds": rounds,
            "held": dict(first.held),
        },
    )


def check_layers(model: nn.Module, step: Prune) -> None:
    """Raise what `apply` raises for a layer that is not there, or a model without any."""
    excluded_layers(model, step.exclude)
    require_layers(
        model,
        [m for m in model.modules() if isinstance(m, ROOTS)],
        "convolution or linear layer",
    )


def rehearse(model: nn.Module, step: Prune, context: Context) -> nn.Module:
    """Return a copy of an untrained `model`, pruned about as much as `apply` will prune it.

    Every layer loses the same share, so that nothing is refused for what weights happen to be; for
    gradients the weights themselves stand in.

    Raises:
        ConfigError, ModelError: As `apply` does, for what no training mends.
    """
    check_layers(model, step)
    task = context.task
    step = replace(step, scope="layer", rounds=1, epochs=0)
    analysis = _analyse(model, step, context, seed=context.seed, has_data=False)
    widths = {group.root: group.n_channels for group in analysis.groups}
    start = macs_of(model, task.example_inputs)
    if step.macs:
        with _explained(model, analysis, task):
            least = _keep(analysis.groups, step, widths, 1.0)
            cuts = _cuts(analysis, _rounded(analysis.groups, least, step))
            left = macs_of(_cut(model, cuts), task.example_inputs)
        if left > start * step.macs:
            raise _out_of_reach(step, left / start)
        # Widths about so that products of two of them take the share.
        step = replace(step, macs=0.0, ratio=min(0.99, max(0.01, 1 - math.sqrt(step.macs))))
    kept = _choose(model, analysis, step, task, widths=widths, done=1.0, start=start)
    return _proved(model, analysis, kept, task)


def pruning(
    model: nn.Module, step: Prune, context: Context
) -> tuple[tuple[ChannelGroup, ...], Callable[[Mapping[str, int]], nn.Module]]:
    """Return the groups of channels that can go, and a function that cuts a copy.

    It takes how many channels each root keeps, and proves nothing: it is for looking ahead.
    """
    analysis = _analyse(model, step, context, seed=context.seed)
    return analysis.groups, lambda kept: _cut(model, _cuts(analysis, kept)).eval()


def _share(context: Context, index: int, count: int) -> Callable[[float, str], None]:
    """Return a progress of one of `count` rounds."""
    return lambda share, detail: context.progress((index + share) / count, detail)


# What belongs together


def _analyse(
    model: nn.Module, step: Prune, context: Context, *, seed: int, has_data: bool = True
) -> _Analysis:
    """Find the groups of channels of `model` and rate them; without data by weights alone."""
    task = context.task
    whole = f"model {type(model).__name__}"
    with _as_model_error(whole, "can't be copied", "drop the step"):
        traced = copy.deepcopy(model).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(True)  # dependencies are found by following gradients
    if step.importance == "taylor" and has_data:
        _gradients(traced, task)
    elif step.importance == "taylor":
        for parameter in traced.parameters():
            parameter.grad = parameter.detach().clone()
    inputs = tuple(_traceable(example) for example in task.example_inputs)
    with (
        _told_for_loops(traced),
        _as_model_error(whole, "can't be followed from layer to layer", "drop the step"),
    ):
        graph = torch_pruning.DependencyGraph().build_dependency(
            traced, inputs, output_transform=_outputs, verbose=False
        )
        found = list(graph.get_all_groups(root_module_types=ROOTS))
    input_functions = {id(x.grad_fn) for x in inputs if x.grad_fn is not None}
    excluded = excluded_layers(traced, step.exclude)
    rng = np.random.default_rng(seed)
    groups, held = [], {}
    for item in found:
        _sort(item)
        root = _path_of(graph, item[0].dep.target)
        n_channels, n_ways = len(item[0].idxs), _ways(graph, item)
        reason = _reason_to_hold(graph, item, excluded, input_functions)
        if n_channels % n_ways or n_channels <= n_ways:
            reason = reason or "its channels go all or not at all"
        ratings: Any = None
        if step.importance == "random":
            ratings = torch.from_numpy(rng.random(n_channels))
        elif not reason:
            ratings = _rated(graph, item, root, step)
            if ratings is None:
                reason = f"it has nothing that {step.importance!r} rates"
        if reason:
            held[root] = reason
            continue
        units = ratings.detach().double().reshape(n_ways, -1).mean(dim=0).numpy()
        groups.append(
            ChannelGroup(
                root=root,
                n_channels=n_channels,
                n_ways=n_ways,
                importance=np.nan_to_num(units),
                members=_members(graph, item, n_channels // n_ways),
            )
        )
    if not groups:
        reasons = "; ".join(f"{root}: {why}" for root, why in held.items())
        fault = f"has no layer whose channels can go ({reasons})"
        fix = "drop the step, or exclude less"
        if any(COMPUTED in why for why in held.values()):
            merge = "merge such weights (torch.nn.utils.parametrize.remove_parametrizations)"
            fix = f"{merge}, or {fix}"
        raise ModelError(whole, fault, fix)
    return _Analysis(graph=graph, groups=tuple(groups), held=held)


def _members(graph: Any, item: Any, n_units: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return which outputs of which layers make up each unit of a group."""
    found: dict[str, list[list[int]]] = {}
    for part in item:
        node = part.dep.target
        if not graph.is_out_channel_pruning_fn(part.dep.handler):
            continue
        if not isinstance(node.module, ROOTS):
            continue
        units = found.setdefault(_path_of(graph, node), [[] for _ in range(n_units)])
        for index, root in zip(part.idxs, part.root_idxs, strict=True):
            if int(index) not in units[int(root) % n_units]:
                units[int(root) % n_units].append(int(index))
    return {
        path: np.array([sorted(unit) for unit in units], np.int64)
        for path, units in found.items()
        if len({len(unit) for unit in units}) == 1
    }


def _traceable(example: Tensor) -> Tensor:
    """Return the example input with a gradient function, by which its readers know it."""
    if not example.is_floating_point():
        return example
    return example.detach().clone().requires_grad_(True) * 1


def _outputs(outputs: Any) -> list[Tensor]:
    """Return the model's outputs behind an operator of their own, which marks them."""
    traced = [leaf * 1 for leaf in tensors_in(outputs) if leaf.grad_fn is not None]
    if not traced:
        raise ValueError("no output depends on the parameters in a way that has a gradient")
    return traced


def _sort(item: Any) -> None:
    """Put the indices of every part into ascending order, which some importances expect."""
    for part in item:
        order = np.argsort(part.idxs, kind="stable")
        roots = part.root_idxs
        part.idxs[:] = [part.idxs[i] for i in order]
        part.root_idxs = [roots[i] for i in order]


def _path_of(graph: Any, node: Any) -> str:
    return str(graph._module2name.get(node.module, ""))


def _ways(graph: Any, item: Any) -> int:
    """Return of how many equal blocks each must lose the same channels."""
    ways = 1
    for part in item:
        layer = part.dep.target.module
        if isinstance(layer, nn.MultiheadAttention):
            ways = math.lcm(ways, layer.num_heads)
        elif isinstance(layer, nn.GroupNorm):
            ways = math.lcm(ways, layer.num_groups)
        elif isinstance(layer, CONVOLUTIONS) and not 1 < layer.groups == layer.out_channels:
            ways = math.lcm(ways, layer.groups)
    return ways


def _reason_to_hold(
    graph: Any, item: Any, excluded: set[nn.Module], input_functions: set[int]
) -> str:
    """Return why a group of channels has to stay; empty if it may shrink."""
    for part in item:
        node = part.dep.target
        if isinstance(node.module, torch_pruning.ops._OutputOp):
            return "its channels are outputs of the model"
        if id(node.grad_fn) in input_functions:
            return "its channels are those of an input of the model"
        if node.module in excluded and graph.is_out_channel_pruning_fn(part.dep.handler):
            return f"{_path_of(graph, node)} is excluded"
        if any(root is None for root in part.root_idxs):
            return "its channels can't be followed"
        if isinstance(node.module, ROOTS) and "weight" not in node.module._parameters:
            name = _path_of(graph, node)
            return f"the weight of {name} is {COMPUTED}"
    return ""


def _rated(graph: Any, item: Any, root: str, step: Prune) -> Any:
    """Return the importance of each channel of a group; None if it holds nothing that is rated."""
    rate = IMPORTANCES[step.importance]
    assert rate is not None
    where, fix = f"layer {root!r}", f'exclude = ["{root}"]'
    try:
        with _as_model_error(where, "can't be rated", fix):
            return rate()(item)
    except ModelError as err:
        idle = _without_gradient(graph, item) if step.importance == "taylor" else ""
        if not idle:
            raise
        fault = f"can't be rated by 'taylor': the loss does not depend on {idle}"
        raise ModelError(where, fault, f"{fix}, or choose another importance") from err


def _without_gradient(graph: Any, item: Any) -> str:
    """Return the first layer of a group that the loss has no gradient for; empty if none."""
    for part in item:
        layer = part.dep.target.module
        if isinstance(layer, ROOTS) and layer.weight.grad is None:
            return _path_of(graph, part.dep.target)
    return ""


def _gradients(model: nn.Module, task: Task) -> None:
    """Accumulate the loss's gradients over some training samples."""
    assert task.loss is not None
    count = 0
    with UserCode(f"task {task.name!r}: loss", task.folder):
        for inputs, targets in task.data["train"]:
            outputs = model(*(torch.from_numpy(np.array(a)) for a in inputs))
            labels = torch.utils._pytree.tree_map_only(
                np.ndarray, lambda a: torch.from_numpy(np.array(a)), targets
            )
            task.loss(outputs, labels).backward()  # type: ignore[no-untyped-call]
            count += len(inputs[0])
            if count >= GRADIENT_SAMPLES:
                break


# How many go from where


def _choose(
    model: nn.Module,
    analysis: _Analysis,
    step: Prune,
    task: Task,
    *,
    widths: Mapping[str, int],
    done: float,
    start: int,
) -> dict[str, int]:
    """Return how many channels each root keeps in this round.

    Args:
        model: As this round finds it.
        analysis: Of `model`.
        step: Its ratio or share holds for the last round.
        task: Its example inputs give the MACs.
        widths: Channels of each root before the first round.
        done: Share of the rounds, this one included.
        start: MACs before the first round.
    """
    groups = analysis.groups
    if step.keep:
        return _named_counts(groups, step, analysis.held, done)
    if step.ratio > 0:
        kept = _keep(groups, step, widths, step.ratio * done)
        for group in groups:
            if not kept[group.root]:
                raise ModelError(
                    f"layer {group.root!r}",
                    f"ratio = {step.ratio:g} would take all its {group.n_channels} channels",
                    'lower the ratio, set scope = "layer", or exclude the layer',
                )
        return _rounded(groups, kept, step)
    limit = start * (1 - (1 - step.macs) * done)
    finest = max(FINEST_RATIO, sum(widths.values()) // step.keep_multiple)
    known: dict[tuple[int, ...], int] = {}

    def fits(kept: Mapping[str, int]) -> bool:
        key = tuple(kept.values())
        if key not in known:
            known[key] = macs_of(_cut(model, _cuts(analysis, kept)), task.example_inputs)
        return known[key] <= limit

    def at(index: int) -> dict[str, int]:
        return _rounded(groups, _keep(groups, step, widths, index / finest), step)

    with _explained(model, analysis, task):
        if not fits(at(finest)):
            least = min(known.values()) / start
            raise _out_of_reach(step, least)
        low, high = -1, finest  # `low` is too wide, `high` fits
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(at(middle)) else (middle, high)
        return _widened(groups, at(high), step, fits)


def _out_of_reach(step: Prune, least: float) -> ConfigError:
    fault = f"{step.macs:g} can't be reached: {least:.3f} of the MACs stay at least"
    return ConfigError("macs", fault, "raise it, exclude less or lower keep_multiple")


def _named_counts(
    groups: Sequence[ChannelGroup], step: Prune, held: Mapping[str, str], done: float
) -> dict[str, int]:
    """Return the counts that `keep` names, on the way to them in earlier rounds."""
    wanted, by_root = kept_channels(step), {group.root: group for group in groups}
    counts = {group.root: group.n_channels for group in groups}
    for layer, count in wanted.items():
        if layer in held:
            fix = f"leave {layer} out of keep"
            raise ConfigError("keep", f"{layer!r} can't shrink: {held[layer]}", fix)
        if layer not in by_root:
            fault = f"the model has no layer {layer!r} that others follow"
            raise ConfigError("keep", fault, nearest(layer, by_root))
        group = by_root[layer]
        if count % group.n_ways:
            fault = f"{layer!r} has {group.n_ways} blocks, which {count} does not divide into"
            raise ConfigError("keep", fault, f"keep a multiple of {group.n_ways}")
        here = min(group.n_channels, count)
        part = math.ceil((1 - done) * (group.n_channels - here) / group.n_ways - 1e-9)
        counts[layer] = here + part * group.n_ways
    return counts


def _widened(
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, int],
    step: Prune,
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """Give channels back, the most important first, while the counts still fit.

    Where counts move by `keep_multiple` at a time, and several at once, the search ends well below
    what is allowed.
    """
    counts = dict(kept)
    open_groups = list(groups)
    while open_groups:
        offers = {}
        for group in open_groups:
            old = counts[group.root]
            new = min(group.n_channels, old + _unit(group, step))
            ranked = np.sort(group.importance)[::-1]
            back = ranked[old // group.n_ways : new // group.n_ways]
            offers[group.root] = (float(back.mean()) if new > old else -math.inf, new, group)
        root = max(offers, key=lambda name: offers[name][0])
        _, new, group = offers[root]
        if new > counts[root] and fits(counts | {root: new}):
            counts[root] = new
        else:
            open_groups.remove(group)  # nor will it fit beside more of others
    return counts


def _keep(
    groups: Sequence[ChannelGroup], step: Prune, widths: Mapping[str, int], ratio: float
) -> dict[str, int]:
    """Return how many channels each root keeps if `ratio` of the first widths are to go."""
    units = {group.root: len(group.importance) for group in groups}
    ways = {group.root: group.n_ways for group in groups}
    if step.scope == "layer":
        return {
            root: min(count, math.ceil(widths[root] // ways[root] * (1 - ratio) - 1e-9))
            * ways[root]
            for root, count in units.items()
        }
    gone = sum(widths.values()) - sum(group.n_channels for group in groups)
    left = math.floor(ratio * sum(widths.values()) + 1e-9) - gone  # to remove now
    ranked = np.argsort(np.concatenate([group.importance for group in groups]), kind="stable")
    owners = [group.root for group in groups for _ in group.importance]
    for index in ranked:
        root = owners[index]
        if ways[root] > left:
            break
        left -= ways[root]
        units[root] -= 1
    return {root: count * ways[root] for root, count in units.items()}


def _rounded(
    groups: Sequence[ChannelGroup], kept: Mapping[str, int], step: Prune
) -> dict[str, int]:
    """Return the counts as multiples of `keep_multiple` where the layers are wide enough.

    Rounds to the nearest, up from the middle, never to 0; a layer narrower than the multiple takes
    the largest divisor of it that it can.
    """
    counts = {}
    for group in groups:
        full, count, unit = group.n_channels, kept[group.root], _unit(group, step)
        nearest = max(unit, (2 * count + unit) // (2 * unit) * unit)
        counts[group.root] = full if count >= full else min(full, nearest)
    return counts


def _unit(group: ChannelGroup, step: Prune) -> int:
    """Return by how many channels a group's width moves."""
    divisors = [d for d in range(1, step.keep_multiple + 1) if step.keep_multiple % d == 0]
    units = [math.lcm(divisor, group.n_ways) for divisor in divisors]
    return max(unit for unit in units if unit <= group.n_channels)  # n_ways is among them


# Cutting


def _cuts(analysis: _Analysis, kept: Mapping[str, int]) -> list[_Cut]:
    """Return everything that goes when each root keeps so many of its channels."""
    graph = analysis.graph
    found: dict[tuple[str, str], tuple[_Cut, set[int]]] = {}
    by_name = dict(graph.model.named_modules())
    for group in analysis.groups:
        n_units = (group.n_channels - kept[group.root]) // group.n_ways
        if not n_units:
            continue
        least = np.argsort(group.importance, kind="stable")[:n_units]
        all_units = len(group.importance)
        gone = sorted(int(u) + way * all_units for way in range(group.n_ways) for u in least)
        layer = by_name[group.root]
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        for part in graph.get_pruning_group(layer, prune, gone):
            node, handler = part.dep.target, part.dep.handler
            if isinstance(node.module, nn.Parameter):
                path = graph._param_to_name[node.module]
            elif node.module in graph._module2name:
                path = _path_of(graph, node)
            else:
                continue  # an operator without state
            cut = _Cut(
                path=path, prune=handler, axis=node.pruning_dim, indices=(),
                reads=not graph.is_out_channel_pruning_fn(handler),
            )  # fmt: skip
            found.setdefault((path, handler.__name__), (cut, set()))[1].update(part.idxs)
    return [
        _Cut(path=c.path, prune=c.prune, axis=c.axis, reads=c.reads, indices=tuple(sorted(indices)))
        for c, indices in found.values()
    ]


def _cut(model: nn.Module, cuts: Iterable[_Cut]) -> nn.Module:
    """Return a copy of `model` without what `cuts` name."""
    pruned = copy.deepcopy(model)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for cut in cuts:
        owner_path, _, name = cut.path.rpartition(".")
        owner = pruned.get_submodule(owner_path)
        part = getattr(owner, name)
        if isinstance(part, nn.LayerNorm):
            _cut_layer_norm(part, cut)
            continue
        cut.prune.__self__.pruning_dim = cut.axis  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed = cut.prune(part, list(cut.indices))
        if isinstance(part, nn.Parameter):
            setattr(owner, name, changed)
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(trained[name])
        parameter.grad = None
    return pruned


def _cut_layer_norm(layer: nn.LayerNorm, cut: _Cut) -> None:
    """Remove channels of a layer norm (torch-pruning 1.6.1 may mix up those that stay)."""
    kept = [i for i in range(layer.normalized_shape[cut.axis]) if i not in set(cut.indices)]
    index = torch.tensor(kept)
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        if value is not None:
            setattr(layer, name, nn.Parameter(value.detach().index_select(cut.axis, index)))
    shape = list(layer.normalized_shape)
    shape[cut.axis] = len(kept)
    layer.normalized_shape = tuple(shape)


# The proof


def _proved(
    model: nn.Module, analysis: _Analysis, kept: Mapping[str, int], task: Task
) -> nn.Module:
    """Return the pruned copy, once it has been found to be faithful.

    Raises:
        ModelError: It is not, for the layers named.
    """
    cuts = _cuts(analysis, kept)
    with _explained(model, analysis, task):
        pruned = _cut(model, cuts)
    fault = _fault_of(model, pruned, cuts, task)
    if fault:
        raise _refusal(model, analysis, kept, task, fault)
    return pruned.eval()


@contextmanager
def _explained(model: nn.Module, analysis: _Analysis, task: Task) -> Iterator[None]:
    """Name the layer where cutting or running a cut copy fails."""
    try:
        yield
    except TORCH_ERRORS as err:
        halves = {g.root: max(g.n_ways, g.n_channels // 2 // g.n_ways * g.n_ways)
                  for g in analysis.groups}  # fmt: skip
        raise _refusal(model, analysis, halves, task, _short(err)) from err


def _fault_of(model: nn.Module, pruned: nn.Module, cuts: Sequence[_Cut], task: Task) -> str:
    """Return what is wrong with the pruned copy; empty if nothing is."""
    with _without_channel_norms(pruned) as faster, _without_channel_norms(model) as reference:
        reference = copy.deepcopy(reference)
        is_exact = _silence(reference, cuts)
        for inputs in _probes(task.example_inputs):
            with torch.no_grad():
                expected = list(tensors_in(reference.eval()(*inputs)))
                try:
                    got = list(tensors_in(faster.eval()(*inputs)))
                except TORCH_ERRORS as err:
                    return f"without some of its channels the model fails ({_short(err)})"
            for want, have in zip(expected, got, strict=True):
                if want.shape != have.shape:
                    return (
                        f"without some of its channels an output has the shape "
                        f"{tuple(have.shape)}, not {tuple(want.shape)}"
                    )
                most = float(want.double().abs().max()) if want.numel() else 0.0
                error = float((want.double() - have.double()).abs().max()) if want.numel() else 0.0
                if is_exact and not error <= TOLERANCE * most + 1e-7:
                    return "without some of its channels others are mixed up"
    return ""


def _probes(examples: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Return inputs to compare models on: the examples, and the examples with noise."""
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return [examples, tuple(noisy(x) for x in examples)]


@contextmanager
def _without_channel_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Give a copy of `model` that passes channel norms by; the model itself if it has none."""
    if not any(isinstance(m, CHANNEL_NORMS) for m in model.modules()):
        yield model
        return
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, CHANNEL_NORMS):
            layer.forward = _unchanged  # type: ignore[assignment, method-assign]
    was_fast = torch.backends.mha.get_fastpath_enabled()  # it would not ask the layers
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield plain
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _silence(model: nn.Module, cuts: Sequence[_Cut]) -> bool:
    """Set to zero, in place, what reads the channels that go.

    Returns:
        Whether this says it all. Attention divides by the width of its heads, which changes.
    """
    for cut in cuts:
        owner_path, _, name = cut.path.rpartition(".")
        layer = getattr(model.get_submodule(owner_path), name)
        if isinstance(layer, nn.MultiheadAttention):
            return False
        if not cut.reads:
            continue
        with torch.no_grad():
            if isinstance(layer, CONVOLUTIONS):
                axis = 0 if isinstance(layer, TRANSPOSED) else 1
                width = layer.weight.shape[axis]
                here = [i for i in cut.indices if i < width]  # the same ones in every group
                layer.weight.data.index_fill_(axis, torch.tensor(here), 0)
            elif isinstance(layer, nn.Linear):
                layer.weight.data.index_fill_(1, torch.tensor(cut.indices), 0)
            elif isinstance(layer, nn.RNNBase):
                for each, value in layer.named_parameters(recurse=False):
                    if each.startswith("weight_ih_l0"):
                        value.data.index_fill_(1, torch.tensor(cut.indices), 0)
    return True


def _refusal(
    model: nn.Module, analysis: _Analysis, kept: Mapping[str, int], task: Task, fault: str
) -> ModelError:
    """Return an error that names the layers which can't be pruned by themselves."""
    guilty: dict[str, str] = {}
    for group in analysis.groups:
        alone = {g.root: g.n_channels for g in analysis.groups} | {group.root: kept[group.root]}
        try:
            cuts = _cuts(analysis, alone)
            found = _fault_of(model, _cut(model, cuts), cuts, task)
        except TORCH_ERRORS as err:
            found = f"cutting its channels fails ({_short(err)})"
        if found:
            guilty[group.root] = found
    names = list(guilty) or [group.root for group in analysis.groups]
    plural = "s" if len(names) > 1 else ""
    where = f"layer{plural} {', '.join(map(repr, names))}"
    fix = "exclude = [" + ", ".join(f'"{name}"' for name in names) + "]"
    return ModelError(where, f"can't be pruned: {next(iter(guilty.values()), fault)}", fix)


# Words


@contextmanager
def _told_for_loops(model: nn.Module) -> Iterator[None]:
    """Say it plainly where what fails is known: recurrent layers that run both ways."""
    try:
        yield
    except ModelError as err:
        names = [
            repr(path)
            for path, layer in model.named_modules()
            if isinstance(layer, nn.RNNBase) and layer.bidirectional
        ]
        if not names:
            raise
        plural = "s" if len(names) > 1 else ""
        fault = f"has channels that can't be followed through the bidirectional layer{plural} "
        fix = 'drop the step (step = "factorize" takes its linear layers and convolutions)'
        raise ModelError(err.where, fault + ", ".join(names), fix) from err


@contextmanager
def _as_model_error(where: str, what: str, fix: str) -> Iterator[None]:
    """Turn what PyTorch and torch-pruning raise into a ModelError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TORCH_ERRORS as err:
        raise ModelError(where, f"{what} ({_short(err)})", fix) from err


def _short(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0][:200]}" if lines else type(err).__name__


def _layers(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """Return the widths of all layers that changed."""
    found = []
    for path, layer in before.named_modules():
        if not isinstance(layer, ROOTS):
            continue
        new = after.get_submodule(path)
        names = ("in", "out")
        kind = "features" if isinstance(layer, nn.Linear) else "channels"
        was = {name: getattr(layer, f"{name}_{kind}") for name in names}
        now = {name: getattr(new, f"{name}_{kind}") for name in names}
        if was != now:
            found.append(
                {
                    "layer": path,
                    "inputs": {"before": was["in"], "after": now["in"]},
                    "outputs": {"before": was["out"], "after": now["out"]},
                }
            )
    return found


def _note(
    layers: Sequence[Mapping[str, Any]],
    start: int,
    end: int,
    held: Mapping[str, str],
    step: Prune,
    target: Target,
) -> str:
    narrowed = [x for x in layers if x["outputs"]["before"] != x["outputs"]["after"]]
    if not narrowed:
        return f"nothing removed: too little is asked for at keep_multiple = {step.keep_multiple}"
    before, after = (sum(x["outputs"][k] for x in narrowed) for k in ("before", "after"))
    parts = [
        f"{before - after:,} of {before:,} channels removed in {len(narrowed)} layers",
        f"multiply-accumulates {start:,} -> {end:,} ({end / start:.1%}); "
        f"weights, activations and time shrink on {target.name}",
    ]
    liked = next((LIKED[word] for word in LIKED if word in target.cpu.isa), LIKED_ELSE)
    odd = [x["layer"] for x in narrowed if x["outputs"]["after"] % liked]
    if odd:
        parts.append(
            f"its kernels take {liked} channels at a time, which does not divide those of "
            f"{', '.join(odd)}: keep_multiple = {liked} would"
        )
    stays = [f"{root} ({why})" for root, why in held.items() if "output" not in why]
    if stays:
        parts.append(f"kept as wide as they were: {', '.join(stays)}")
    return "; ".join(parts)
