"""Ordered compression steps with their numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from edgeshrink.strict_toml import Key, Kind, Table, read_toml

Scope = Literal["global", "layer"]
Importance = Literal["magnitude", "taylor", "fpgm", "lamp", "bn-scale", "random"]
Observer = Literal["histogram", "minmax", "percentile", "mse", "entropy"]
AnyObserver = Literal["histogram", "minmax", "percentile", "mse", "entropy", "auto"]
Activations = Literal["int8", "int16", "auto"]
Optimizer = Literal["sgd", "adamw"]
Distillation = Literal["none", "soft", "decoupled"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Set the smallest weights to zero; shapes stay, and later steps keep the zeros.

    With `alpha` above 0 by threshold (|w| < alpha * max |w|), with `n` and `m` so that every `m`
    neighbours along the input keep `n`, else by `ratio`.
    """

    ratio: float = 0.5  # share of the weights that become zero
    alpha: float = 0.0  # of the layer's largest weight; 0: not by threshold
    n: int = 0  # kept of every m; 0: no pattern
    m: int = 0
    scope: Scope = "global"
    epochs: int = 0  # over which the share rises (cubic, Zhu and Gupta, 2017); 0: at once
    learning_rate: float = 1e-3
    exclude: tuple[str, ...] = ()  # layers by their path


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove whole channels, least important first, through all layers that depend on them."""

    ratio: float = 0.0  # share of the channels to remove; 0: as `macs` says
    macs: float = 0.0  # share of the multiply-accumulates to keep; 0: as `ratio` says
    keep: tuple[str, ...] = ()  # "layer=channels": what these keep, and others all; else as above
    importance: Importance = "magnitude"
    scope: Scope = "global"
    keep_multiple: int = 8  # channel counts stay divisible by this where they can
    rounds: int = 1  # prune a part, recover, prune the next
    epochs: int = 0  # of recovery after each round
    learning_rate: float = 1e-3
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Factorize:
    """Write layers as two smaller ones (linear: SVD; convolution: Tucker-2), where that is less."""

    energy: float = 0.9  # share of the squared singular values that is kept
    macs: float = 0.0  # share of the multiply-accumulates to keep, at the most energy; 0: `energy`
    least_gain: float = 1.1  # factorize only where the MACs shrink by this factor
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Give each layer's weights few values (k-means codebook): saves in a compressed download."""

    n_clusters: int = 16
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train on, distilling from the float model where asked to."""

    epochs: int = 1
    learning_rate: float = 1e-3
    optimizer: Optimizer = "adamw"
    weight_decay: float = 1e-4
    warmup_share: float = 0.05
    ema: float = 0.0  # decay of the averaged weights; 0: none
    patience: int = 0  # epochs without a better score before it stops; 0: never
    distill: Distillation = "none"
    temperature: float = 4.0
    weight: float = 0.7  # of the teacher's part in the loss
    features: tuple[str, ...] = ()  # "student.layer=teacher.layer": attention transfer
    precision: Precision = "float32"  # bfloat16: of products, teacher's too; half the time


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Post-training quantization, or none of it.

    `observer` finds activation ranges: `histogram` and `mse` by least squared error, `percentile`,
    `entropy` by divergence, `minmax`, or `auto`: for each value what disturbs the outputs least.

    With `activations = "auto"` as few layers get int16 activations as bring the error of the
    outputs below `most_error`; where that is 0, the drop in score on the validation split below the
    budget's, and without such a budget the error below 0.001. Weights are int8 always.
    """

    dtype: Literal["int8", "float32"] = "int8"  # float32: export as it is
    activations: Activations = "int8"
    int16: tuple[str, ...] = ()  # layers by their path whose outputs are int16 in any case
    int8: tuple[str, ...] = ()  # layers whose outputs are int8 in any case
    most_error: float = 0.0  # mean squared error over variance of the outputs; 0: by the drop
    observer: AnyObserver = "histogram"
    n_samples: int = 128  # calibration samples at most
    equalize: bool = False  # cross-layer equalization first (Nagel et al., 2019)
    correct_bias: bool = False  # of layers, by what quantization moves their means
    adaround: bool = False  # learn which way weights round (Nagel et al., 2020)


@dataclass(frozen=True, kw_only=True)
class TrainQuantized:
    """Quantization-aware training; ends quantized. Keeps post-training quantization if better."""

    epochs: int = 3
    learning_rate: float = 1e-4
    optimizer: Optimizer = "adamw"
    observer: Observer = "histogram"
    n_samples: int = 128
    learned_scales: bool = False  # LSQ (Esser et al., 2020)
    freeze_observers_at: float = 0.5  # share of the steps after which ranges stay
    distill: Distillation = "none"
    temperature: float = 4.0
    weight: float = 0.7


@dataclass(frozen=True, kw_only=True)
class ScaleTemperature:
    """Fit one temperature for the final probabilities on validation data (Guo et al., 2017)."""

    n_bins: int = 15  # of the expected calibration error that is reported


Step = (
    Sparsify | Prune | Factorize | Cluster | Finetune | Quantize | TrainQuantized | ScaleTemperature
)

STEPS: Final[dict[str, type[Any]]] = {
    "sparsify": Sparsify,
    "prune": Prune,
    "factorize": Factorize,
    "cluster": Cluster,
    "finetune": Finetune,
    "quantize": Quantize,
    "qat": TrainQuantized,
    "temperature": ScaleTemperature,
}
QUANTIZING: Final = (Quantize, TrainQuantized)

# Lowest and highest value of numbers, by field.
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "ratio": (0, 0.99), "macs": (0, 1), "alpha": (0, 1), "n": (0, 64), "m": (0, 64),
    "energy": (0.01, 1), "least_gain": (1, 1000), "n_clusters": (2, 256), "keep_multiple": (1, 256),
    "rounds": (1, 100), "epochs": (0, 100_000), "learning_rate": (1e-9, 10),
    "weight_decay": (0, 10), "warmup_share": (0, 0.9), "ema": (0, 0.99999), "patience": (0, 99_999),
    "temperature": (0.1, 100), "weight": (0, 1), "n_samples": (1, 1_000_000),
    "freeze_observers_at": (0, 1), "most_error": (0, 1), "n_bins": (2, 1000),
}  # fmt: skip


def keys_of(kind: type[Any]) -> tuple[Key, ...]:
    """Return what may stand in the table of a step in a recipe file."""
    found = []
    for entry in fields(kind):
        assert entry.default is not MISSING
        low, high = _RANGES.get(entry.name, (0, 0))
        choices: Sequence[str] = ()
        kinds: dict[type[Any], Kind] = {
            bool: "flag", int: "integer", float: "number", str: "text", tuple: "texts",
        }  # fmt: skip
        if isinstance(entry.default, str):
            choices = _choices(kind, entry.name)
        found.append(
            Key(
                name=entry.name,
                kind=kinds[type(entry.default)],
                meaning="",
                default=entry.default,
                low=low,
                high=high,
                choices=choices,
            )
        )
    return tuple(found)


def _choices(kind: type[Any], name: str) -> tuple[str, ...]:
    import typing

    return get_args(typing.get_type_hints(kind)[name])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is done to a model, in this order; the last step that changes weights quantizes."""

    steps: tuple[Step, ...] = (Quantize(),)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values."""
        return {"steps": [{"step": name_of(step), **asdict(step)} for step in self.steps]}

    def to_toml(self) -> str:
        """Return the recipe as TOML that `read_recipe` reads."""
        lines = []
        for step in self.steps:
            lines.append("[[steps]]")
            lines.append(f'step = "{name_of(step)}"')
            for key, value in asdict(step).items():
                lines.append(f"{key} = {repr_toml(value)}")
            lines.append("")
        return "\n".join(lines)


def name_of(step: Step) -> str:
    """Return the word that stands for this step in a recipe file."""
    return next(name for name, kind in STEPS.items() if isinstance(step, kind))


def quantizing_step(recipe: Recipe) -> Quantize | TrainQuantized:
    """Return the step that quantizes the model."""
    return next(step for step in recipe.steps if isinstance(step, QUANTIZING))


def repr_toml(value: bool | int | float | str | tuple[str, ...]) -> str:
    """Return a value as TOML."""
    text = json.dumps(value, ensure_ascii=False)  # its strings are TOML's, but for one character
    return text.replace("\x7f", "\\u007f")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; ConfigError names file, key and remedy."""
    table = read_toml(path)
    steps: list[Step] = []
    for entry in table.tables("steps"):
        word = entry.text("step", choices=STEPS)
        kind = STEPS[word]
        step: Step = kind(**entry.read(keys_of(kind), tables=("step",)))
        _check_step(step, entry)
        _check_order(step, steps, entry, word)
        steps.append(step)
    if not steps:
        raise table.error("steps", "is empty", 'add [[steps]] with step = "quantize"')
    if not any(isinstance(step, QUANTIZING) for step in steps):
        raise table.error(
            "steps", "never quantizes", 'end with step = "quantize" (or dtype = "float32" in it)'
        )
    table.finish()
    return Recipe(steps=tuple(steps))


def _check_step(step: Step, entry: Table) -> None:
    if isinstance(step, Prune):
        given = [key for key in ("ratio", "macs", "keep") if getattr(step, key)]
        if len(given) != 1:
            fix = "give exactly one of ratio, macs and keep"
            if not given:
                raise entry.error("ratio", "is not given, nor are macs and keep", fix)
            raise entry.error(given[0], f"is given, and {' and '.join(given[1:])} too", fix)
        try:
            kept_channels(step)
        except ValueError as err:
            raise entry.error("keep", str(err), 'write "layer=channels" for each once') from err
    if isinstance(step, Sparsify) and (step.n or step.m) and not 0 < step.n < step.m:
        raise entry.error("n", f"is {step.n} of m = {step.m}", "keep fewer than m, at least one")
    if isinstance(step, Finetune):
        if step.epochs < 1:
            raise entry.error("epochs", "is 0", "train for 1 epoch or more, or drop the step")
        for pair in step.features:
            if pair.count("=") != 1 or not all(pair.partition("=")[::2]):
                fix = 'write "layer of the student=layer of the teacher"'
                raise entry.error("features", f"holds {pair!r}", fix)
    if isinstance(step, Quantize):
        _check_widths(step, entry)
    if isinstance(step, TrainQuantized) and step.epochs < 1:
        raise entry.error("epochs", "is 0", 'use step = "quantize" for no training')


def _check_widths(step: Quantize, entry: Table) -> None:
    for name in step.int16:
        if name in step.int8:
            raise entry.error("int16", f"names {name!r}, and int8 does too", "name it once")
    if step.dtype == "float32" and (step.activations != "int8" or step.int16):
        fix = 'leave it out, or say dtype = "int8"'
        key = "int16" if step.int16 else "activations"
        raise entry.error(key, "needs quantized weights, and dtype is 'float32'", fix)
    if step.int8 and step.activations == "int8":
        fix = 'say activations = "int16" or "auto", or leave it out'
        raise entry.error("int8", "names layers where all are int8", fix)


def uses_int16(step: Step) -> bool:
    """Say whether a step asks for int16 activations; `auto` may do with none."""
    return isinstance(step, Quantize) and (step.activations == "int16" or bool(step.int16))


def kept_channels(step: Prune) -> dict[str, int]:
    """Return how many channels each layer of `keep` keeps; ValueError says what is wrong."""
    found: dict[str, int] = {}
    for pair in step.keep:
        layer, _, count = pair.rpartition("=")
        if not layer or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"holds {pair!r}")
        if layer in found:
            raise ValueError(f"names {layer!r} twice")
        found[layer] = int(count)
    return found


def _check_order(step: Step, before: Sequence[Step], entry: Table, word: str) -> None:
    """Raise ConfigError for a step that makes no sense after those before it."""
    quantized = next((s for s in before if isinstance(s, QUANTIZING)), None)
    if quantized is not None and isinstance(step, QUANTIZING):
        raise entry.error("step", f"is {word!r} again", "quantize once, as the last step")
    if quantized is not None and not isinstance(step, ScaleTemperature):
        fix = f"put it before {name_of(quantized)!r}"
        raise entry.error("step", f"is {word!r} behind {name_of(quantized)!r}", fix)
    if isinstance(step, ScaleTemperature) and quantized is None:
        raise entry.error("step", "is 'temperature' before quantizing", "make it the last step")
    if isinstance(step, Prune | Factorize) and any(
        isinstance(s, Sparsify | Cluster) for s in before
    ):
        fix = "change shapes first, then single weights"
        raise entry.error("step", f"is {word!r} behind a step on single weights", fix)
