"""What a release consists of, and what is to be signed about it: read from an artifact or a file.

An artifact brings its own proof. A bare model file gets what a device needs to try it: names and
types of inputs and outputs, and golden vectors that this machine's runtime gives.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgeshrink import __version__
from edgeshrink.artifact import (
    GOLDEN,
    MANIFEST,
    MODEL_FILES,
    Artifact,
    FileEntry,
    IoSpec,
    file_entry,
    read_artifact,
)
from edgeshrink.errors import BudgetError, ConfigError
from edgeshrink.fleet.archive import check_name
from edgeshrink.fleet.eligibility import OPERATORS, version_key
from edgeshrink.fleet.provenance import recipe_digest
from edgeshrink.fleet.selftest import READS
from edgeshrink.graph import Graph
from edgeshrink.release import NAME, RuntimeNeed
from edgeshrink.target import load_target

PROFILE: Final = "profile.json"
AUDIT: Final = "audit.json"
CARD: Final = "MODEL_CARD.md"
FIGURES: Final = (
    "flash_bytes", "ram_bytes", "arena_bytes", "latency_ms", "energy_uj", "macs",
)  # fmt: skip
# By how much integer outputs of another runtime, or of other kernels, may differ where an artifact
# does not say: what a build allows between LiteRT's kernels.
MAX_LSB: Final = 4.0
N_GOLDEN: Final = 8  # samples made for a file that brings none
MAX_MODEL_BYTES: Final = 2**31
_FIRST_LITERT: Final = "1.0.1"  # of ai-edge-litert; it has all of TensorFlow Lite 2.17


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A release before it has a version: its files, and what holds of them."""

    artifact: Artifact
    is_built: bool  # by edgeshrink; False: a model file that somebody brought
    files: Mapping[str, bytes]
    runtimes: tuple[RuntimeNeed, ...]
    operators: Mapping[str, int]
    max_lsb: float
    facts: Mapping[str, Any]  # for people; see `Release.facts`
    unmet: tuple[BudgetError, ...]  # limits of the budget that the artifact says it misses
    notes: tuple[str, ...]  # what a publisher should know


def read_contents(
    path: Path,
    *,
    target: str | None = None,
    name: str | None = None,
    runtimes: Sequence[RuntimeNeed] = (),
) -> Contents:
    """Read what `path` holds, an artifact's folder or a `.tflite` or `.pte`.

    Args:
        path: What to release.
        target: What it is for; an artifact says so itself.
        name: Of the model; left out, the artifact's or the file's.
        runtimes: What devices need, where somebody knows better than the file.

    Raises:
        ConfigError: It is neither, or its digests lie, or its target is not known, or runs no
            agent.
        ModelError: The model file is damaged, or the runtime here does not run it.
        ToolchainError: A bare file's runtime is not installed here.
    """
    if path.is_dir():
        return _of_artifact(path, target, name, runtimes)
    if path.suffix.lstrip(".") in MODEL_FILES and path.is_file():
        return _of_file(path, target, name, runtimes)
    what = "is no file" if not path.exists() else "is neither an artifact nor a .tflite or .pte"
    raise ConfigError(str(path), what, "give the folder that `edgeshrink build` wrote, or a model")


def _of_artifact(
    folder: Path, target: str | None, name: str | None, runtimes: Sequence[RuntimeNeed]
) -> Contents:
    artifact = read_artifact(folder)
    if target is not None and target != artifact.target:
        what = f"is {target}, and {folder} was built for {artifact.target}"
        raise ConfigError("--target", what, "build it for that target, or leave --target out")
    _check_target(artifact.target)
    artifact = replace(artifact, name=_checked_name(name or artifact.name, "--name"))
    if GOLDEN not in artifact.files:
        what = f"has no {GOLDEN}: no device could tell whether it works there"
        raise ConfigError(str(folder), what, "build the artifact again")
    files = {MANIFEST: (folder / MANIFEST).read_bytes()}
    for file, entry in artifact.files.items():
        files[file] = (folder / file).read_bytes()
        if file_entry(files[file]) != entry:
            raise ConfigError(str(folder / file), "changes while it is read", "try again")
    contents = _contents(artifact, files, runtimes, is_built=True)
    notes = contents.notes
    if CARD not in files:
        notes += (
            f"{folder} has no {CARD}, only the card in its bill of materials; build it again",
        )
    return replace(contents, unmet=_unmet(files), notes=notes)


def _of_file(
    path: Path, target: str | None, name: str | None, runtimes: Sequence[RuntimeNeed]
) -> Contents:
    if target is None:
        raise ConfigError("--target", "is missing: a model file does not say", "name the device")
    target = _check_target(target)
    named = name or re.sub(r"[^a-z0-9_.-]+", "-", path.stem.lower()).strip("-_.")
    named = _checked_name(named, "--name")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise ConfigError(str(path), "is larger than 2 GiB", "no runtime here reads that")
    data = path.read_bytes()
    kind = path.suffix.lstrip(".")
    engine = "litert" if kind == "tflite" else "executorch"
    inputs, outputs, golden, version = _try_out(data, engine, path.name)
    artifact = Artifact(
        folder=path.parent,
        name=named,
        target=target,
        engine="tflite" if kind == "tflite" else "executorch",
        quantization="none",
        inputs=inputs,
        outputs=outputs,
        structure="single" if len(outputs) == 1 else "tuple",
        metric={},
        scores={},
        recipe={},
        versions={"edgeshrink": __version__, **version},
        seed=0,
    )
    files = {MODEL_FILES[kind]: data, GOLDEN: golden}
    contents = _contents(artifact, files, runtimes, is_built=False)
    flash = {
        "value": len(data),
        "unit": "B",
        "how": "measured",
        "low": len(data),
        "high": len(data),
    }
    facts = {**contents.facts, "figures": {"flash_bytes": flash}}
    files[CARD] = _card(artifact, path.name, len(data)).encode()
    entries = {file: file_entry(content) for file, content in files.items()}
    artifact = replace(artifact, files=entries)
    files[MANIFEST] = json.dumps(artifact.to_json(), indent=1).encode()
    note = (
        f"{path.name} brings no test data: devices compare its outputs with those of "
        f"{N_GOLDEN} random inputs here; nobody has scored it, or checked a budget"
    )
    return replace(
        contents, artifact=artifact, files=files, facts=facts, notes=(note, *contents.notes)
    )


def _check_target(name: str) -> str:
    """Return the target's own name; ConfigError if it is unknown or can run no agent."""
    target = load_target(name)
    if target.kind == "microcontroller":
        what = "is a microcontroller, which runs no agent"
        raise ConfigError(target.name, what, "use `edgeshrink pack --format mcuboot`")
    return target.name


def _checked_name(name: str, option: str) -> str:
    if not NAME.fullmatch(name):
        fix = "give --name: up to 64 lower-case letters, digits, '.', '_' and '-'"
        raise ConfigError(option, f"is {name!r:.80}", fix)
    return name


def _contents(
    artifact: Artifact,
    files: Mapping[str, bytes],
    given: Sequence[RuntimeNeed],
    *,
    is_built: bool,
) -> Contents:
    for file in files:
        check_name(file, str(artifact.folder))
    operators, needs, notes = find_needs(artifact, files)
    metric = dict(artifact.metric)
    facts: dict[str, Any] = {
        "inputs": [spec.to_json() for spec in artifact.inputs],
        "outputs": [spec.to_json() for spec in artifact.outputs],
        "quantization": artifact.quantization,
        "metric": metric,
        "scores": dict(artifact.scores),
        "figures": _figures(files),
        "golden_sha256": file_entry(files[GOLDEN]).sha256,
        "built": is_built,
    }
    kind = "pte" if artifact.engine == "executorch" else "tflite"
    if kind in artifact.scores:
        facts["score"] = artifact.scores[kind]
    if is_built:
        facts["recipe_sha256"] = recipe_digest(artifact)
    runtimes = tuple(given) or needs
    if not runtimes:
        reasons = "; ".join(notes) or f"its engine is {artifact.engine}"
        what = f"runs on no runtime that an agent knows ({reasons})"
        raise ConfigError(str(artifact.folder), what, "name one: --runtime litert>=2.3.0")
    for need in runtimes:
        if MODEL_FILES[READS[need.name]] not in files:
            what = f"{need.name} reads {MODEL_FILES[READS[need.name]]}, which is not there"
            raise ConfigError("--runtime", what, "name another runtime")
    return Contents(
        artifact=artifact,
        is_built=is_built,
        files=files,
        runtimes=runtimes,
        operators=operators,
        max_lsb=_max_lsb(files),
        facts=facts,
        unmet=(),
        notes=notes,
    )


def find_needs(
    artifact: Artifact, files: Mapping[str, bytes]
) -> tuple[Mapping[str, int], tuple[RuntimeNeed, ...], tuple[str, ...]]:
    """Return operators with their versions, runtimes that have them, and why others have not."""
    operators: dict[str, int] = {}
    needs: list[RuntimeNeed] = []
    notes: list[str] = []
    if "model.tflite" in files and artifact.engine != "executorch":
        from edgeshrink.graph_reader import min_runtime_version, read_graph

        data = files["model.tflite"]
        operators = _operators(read_graph(data))
        oldest = min_runtime_version(data)
        known = json.loads(OPERATORS.read_bytes())
        lacks = {name: _lacking(known[name]["operators"], operators) for name in READS
                 if READS[name] == "tflite"}  # fmt: skip
        for name, lack in lacks.items():
            if lack is not None:
                notes.append(f"{name} {known[name]['version']} {lack}")
                continue
            version = known[name]["version"]
            if name == "litert" and lacks["tflite-runtime"] is None:
                version = _FIRST_LITERT  # it goes on where tflite-runtime ends
            elif name == "tflite-runtime" and oldest is not None:
                version = min(oldest, version, key=version_key)
            needs.append(RuntimeNeed(name=name, min_version=version))
    is_same = artifact.quantization != "separate" or artifact.engine == "executorch"
    if "model.pte" in files and is_same:  # the golden vectors are those of one quantization
        version = artifact.versions.get("executorch", "1.0.0").partition("+")[0]
        needs.append(RuntimeNeed(name="executorch", min_version=version))
    return operators, tuple(needs), tuple(notes)


def _operators(graph: Graph) -> dict[str, int]:
    """Return the highest version of each kind of operator, in all subgraphs."""
    highest: dict[str, int] = {}
    for part in (graph, *graph.subgraphs):
        for op in part.ops:
            highest[op.kind] = max(op.version, highest.get(op.kind, 0))
    return dict(sorted(highest.items()))


def _lacking(has: Mapping[str, int], operators: Mapping[str, int]) -> str | None:
    for kind, version in operators.items():
        if kind not in has:
            return f"has no {kind}"
        if version > has[kind]:
            return f"has {kind} up to version {has[kind]}, {version} is needed"
    return None


def _figures(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the profile's figures that tell what a device must have."""
    found = _json(files, PROFILE).get("figures")
    figures = found if isinstance(found, dict) else {}
    return {
        name: {key: figure[key] for key in ("value", "unit", "how", "low", "high")}
        for name in FIGURES
        if isinstance(figure := figures.get(name), dict)
        and all(type(figure.get(key)) in (int, float) for key in ("value", "low", "high"))
        and all(isinstance(figure.get(key), str) for key in ("unit", "how"))
    }


def _unmet(files: Mapping[str, bytes]) -> tuple[BudgetError, ...]:
    """Return what of its budget an artifact says it misses."""
    remedy = "build it until it fits, or publish it nevertheless with --force"
    budget = _json(files, PROFILE).get("budget")
    found = []
    for overrun in budget.get("overruns", ()) if isinstance(budget, dict) else ():
        need, limit = float(overrun["need"]), float(overrun["limit"])
        error = BudgetError(
            str(overrun["what"]), need=need, limit=limit, unit=str(overrun["unit"]), remedy=remedy
        )
        found.append(error)
    audit = _json(files, AUDIT)
    limits, drop = audit.get("budget"), audit.get("drop")
    most = limits.get("accuracy_drop") if isinstance(limits, dict) else None
    if isinstance(drop, int | float) and isinstance(most, int | float) and drop > most:
        unit = "of the metric"
        found.append(BudgetError("drop", need=drop, limit=most, unit=unit, remedy=remedy))
    return tuple(found)


def _max_lsb(files: Mapping[str, bytes]) -> float:
    """Return how far the build let other kernels be from the golden outputs."""
    agreements = _json(files, AUDIT).get("agreements")
    limits = [
        float(entry["limit"])
        for entry in (agreements if isinstance(agreements, list) else ())
        if isinstance(entry, dict)
        and entry.get("unit") == "LSB"
        and entry.get("engine") in ("litert-builtin", "tflm")
        and type(entry.get("limit")) in (int, float)
    ]
    return max(limits, default=MAX_LSB)


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as err:
        raise ConfigError(name, f"is no JSON ({err})", "build the artifact again") from err
    return content if isinstance(content, dict) else {}


# ---- a file that somebody brings


def _try_out(
    data: bytes, engine: str, name: str
) -> tuple[tuple[IoSpec, ...], tuple[IoSpec, ...], bytes, dict[str, str]]:
    """Run a model here; return what goes in and out, golden vectors, and the runtime's version."""
    from importlib import metadata

    import numpy as np

    from edgeshrink.fleet.device import RUNTIMES
    from edgeshrink.runtimes import open_model

    distribution = RUNTIMES[engine][1]
    with open_model(data, engine, name=name) as runner:
        inputs, outputs = runner.inputs, runner.outputs
        given = [_random(spec, number) for number, spec in enumerate(inputs)]
        wanted = runner.run(*given)
    arrays = {f"input/{spec.name}": a for spec, a in zip(inputs, given, strict=True)}
    arrays |= {f"output/{spec.name}": a for spec, a in zip(outputs, wanted, strict=True)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return inputs, outputs, buffer.getvalue(), {distribution: metadata.version(distribution)}


def _random(spec: IoSpec, seed: int) -> Any:
    """Return inputs of a type's own range; indices are 0 and 1, which any table has."""
    import numpy as np

    random = np.random.default_rng(seed)
    shape = (N_GOLDEN * (spec.shape or (1,))[0], *spec.shape[1:])
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return random.standard_normal(shape).astype(spec.dtype)
    if spec.dtype in ("int8", "uint8", "int16"):
        limits = np.iinfo(spec.dtype)
        return random.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)
    return random.integers(0, 2, shape).astype(spec.dtype)


def _card(artifact: Artifact, file: str, n_bytes: int) -> str:
    lines = [
        f"# {artifact.name} for {artifact.target}",
        "",
        f"Made from the file {file} ({n_bytes:,} bytes), which edgeshrink did not build: its",
        "training, its data and its score are not known here.",
        "",
        *(f"- input {s.name}: {s.dtype} {list(s.shape)}" for s in artifact.inputs),
        *(f"- output {s.name}: {s.dtype} {list(s.shape)}" for s in artifact.outputs),
        "",
    ]
    return "\n".join(lines)


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Return digest and size of each file."""
    return {name: file_entry(data) for name, data in files.items()}
