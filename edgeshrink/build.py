"""The life of a build: train, compress, quantize, lower, score every file, profile, write."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeshrink import __version__
from edgeshrink.artifact import (
    GOLDEN,
    MANIFEST,
    MODEL_FILES,
    Artifact,
    FileEntry,
    file_entry,
)
from edgeshrink.budget import Budget
from edgeshrink.checkpoints import claim_folder
from edgeshrink.compression import (
    Compressed,
    StepReport,
    calibrate_probabilities,
    check_recipe,
    compress,
    compressing_steps,
    reached,
    rehearse_recipe,
    report_quantization,
)
from edgeshrink.emulation import check_threads, emulate
from edgeshrink.errors import BudgetError, ConfigError
from edgeshrink.exporting import (
    Agreement,
    Exported,
    check_exportable,
    check_widths,
    export,
    golden_samples,
)
from edgeshrink.exporting.exporter import quantization_error
from edgeshrink.exporting.gates import EQUAL, compare, engine_limit, is_exact
from edgeshrink.firmware import (
    ELF,
    Firmware,
    compile_firmware,
    flash_bytes,
    open_on_core,
    profile_of,
)
from edgeshrink.lowering import Optimize
from edgeshrink.predict import (
    Runs,
    dequantize_array,
    from_file_layout,
    pte_predict,
    quantize_array,
    tflite_predict,
    to_file_layout,
)
from edgeshrink.profile import Profile
from edgeshrink.recipe import Factorize, Quantize, Recipe, ScaleTemperature, quantizing_step
from edgeshrink.reporting import MODEL_CARD, PARETO, REPORT, html_report, model_card, read_facts
from edgeshrink.runtimes import open_model
from edgeshrink.scoring import score
from edgeshrink.staging import check_writable, staging
from edgeshrink.target import Target
from edgeshrink.task import Predict, Task
from edgeshrink.training import float_predict, train

Progress = Callable[[str, float, str], None]  # stage, share done in [0, 1], detail

FIRMWARE: Final = "firmware"
FLOAT_MODELS: Final = frozenset({"float", "teacher"})  # keys of scores
STEPS: Final = "steps"  # folder of the checkpoints of a recipe's steps
ENGINE_C: Final = "c"
EMULATED_S: Final = 60.0  # spent on emulating the test split, about
INSTRUCTIONS_PER_S: Final = 1.2e8  # of the emulator, about
TOOLS: Final = ("torch", "torchao", "executorch", "litert-torch", "ai-edge-litert", "numpy")


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build leaves: the artifact and everything that is printed about it.

    `scores` are on the test split: `float`, `tflite`, `pte`, `c`, and `teacher` where the task
    brings one. `seconds` are wall time by stage.
    """

    artifact: Artifact
    profile: Profile
    scores: Mapping[str, float]
    drop: float | None  # of the worst file against the best float model, in the metric's unit
    agreements: tuple[Agreement, ...]
    budget: Budget
    seconds: Mapping[str, float]
    overruns: tuple[str, ...]  # one sentence each; empty when the budget is met
    unchecked: tuple[str, ...] = ()  # limits of the budget for which there is no figure
    steps: tuple[StepReport, ...] = ()  # what each step of the recipe did


def build(
    task: Task,
    target: Target,
    *,
    recipe: Recipe,
    budget: Budget,
    out: Path,
    seed: int = 0,
    threads: int = 1,
    optimize: Optimize = "latency",
    checkpoints: Path | None = None,
    spent: Mapping[str, float] | None = None,
    study: Mapping[str, Any] | None = None,
    progress: Progress = lambda stage, share, detail: None,
) -> Built:
    """Build the artifact of `task` for `target` in the folder `out`.

    The artifact appears in one step; an interrupted or failed build leaves the last one as it was.
    An interrupted training goes on from its last epoch when the same build is started again: what
    it needs for that lies in `<out>.checkpoints` until a build comes to its end.
    For a microcontroller the `.tflite` is compiled to C as well, and the firmware on the emulated
    core is what is scored and profiled; `optimize` says what its kernels are chosen by.

    Args:
        task, target, recipe, budget, out, seed, threads, optimize: See above.
        checkpoints: In place of `<out>.checkpoints`: one attempt of several has its own.
        spent: Seconds by stage that came before, for the table.
        study: What a search over recipes found; becomes `pareto.json`.
        progress: Called as the build advances.

    Raises:
        ConfigError: the target does not take the recipe's type or the number of threads, the task
            can't do a step, `out` holds something else than an artifact, or an interrupted build of
            another recipe, task or seed lies in `<out>.checkpoints`.
        ModelError: the model can't be trained, traced or lowered, or its files disagree.
        BudgetError: a limit is not met; `closest` names where the artifact was left for inspection.
        EdgeshrinkError: `out` can't be written.
    """
    seconds = dict(spent or {})

    @contextmanager
    def stage(name: str) -> Iterator[Callable[[float, str], None]]:
        start = time.monotonic()
        progress(name, 0.0, "")
        yield lambda share, detail: progress(name, share, detail)
        progress(name, 1.0, "")
        seconds[name] = time.monotonic() - start

    step = quantizing_step(recipe)
    with stage("checking"):
        check_build(task, target, recipe, threads=threads, out=out)
    checkpoints = checkpoints or checkpoints_folder(out)
    if task.training is not None or compressing_steps(recipe):
        claim_folder(checkpoints, claim(task, target, seed))
    if compressing_steps(recipe):
        claim_steps(checkpoints / STEPS, recipe)
    if task.training is not None:
        with stage("training") as report:
            train(task, seed=seed, progress=report, checkpoints=checkpoints / "float")
    scores: dict[str, float] = {}
    if task.evaluate is not None and "test" in task.data:
        with stage("scoring float"):
            scores["float"] = score(task, float_predict(task.model), "test")
            if task.teacher is not None:
                scores["teacher"] = score(task, float_predict(task.teacher), "test")
    baseline = None  # of the drop that int16 activations may leave
    is_scored = task.evaluate is not None and "validation" in task.data
    is_auto = isinstance(step, Quantize) and step.activations == "auto"
    if is_auto and is_scored and compressing_steps(recipe):
        baseline = best_float_score(task)
    compressed = Compressed(model=task.model)
    if compressing_steps(recipe):
        with stage("compressing") as report:
            compressed = compress(
                task, recipe, target,
                seed=seed, checkpoints=checkpoints / STEPS, progress=report,
            )  # fmt: skip
    task = replace(task, model=compressed.model)
    with stage("conversion") as report:
        exported = export(
            task, target, step,
            progress=report, quantized=compressed.quantized, most_drop=budget.accuracy_drop,
            baseline=baseline,
        )  # fmt: skip
    agreements = exported.agreements
    seen: _Recorder | None = None
    if scores:
        with stage("scoring files"):
            file_scores, whole, seen = _score_files(task, exported)
            scores |= file_scores
            agreements = (*agreements, *whole)
    if exported.chosen is not None:
        with stage("scoring quantization"):
            compressed = _report_chosen(task, recipe, compressed, exported, seconds["conversion"])
    if isinstance(recipe.steps[-1], ScaleTemperature):
        with stage("calibrating"):
            compressed = _calibrate(task, recipe, compressed, exported)
    is_mcu = target.kind == "microcontroller"
    with staging(out) as folder:
        (folder / MODEL_FILES["tflite"]).write_bytes(exported.tflite)
        if exported.pte is not None:
            (folder / MODEL_FILES["pte"]).write_bytes(exported.pte)
        golden = golden_samples(exported)
        if is_mcu:
            with stage("compiling") as report:
                firmware = _compile(task, target, exported, folder, optimize, budget, report)
            golden |= _golden_of_firmware(exported, firmware)
            with stage("profiling"):
                profile = profile_of(firmware, target, budget=budget, shown=f"{FIRMWARE}/{ELF}")
            if seen is not None and firmware.elf is not None:
                with stage("scoring firmware"):
                    scores[ENGINE_C], found = _score_firmware(
                        task, target, exported, firmware, profile, seen
                    )
                    agreements = (*agreements, found)
        else:
            with stage("profiling"):
                profile = emulate(
                    folder / MODEL_FILES["tflite"],
                    target,
                    threads=threads,
                    budget=budget,
                    name=MODEL_FILES["tflite"],
                )
        drop = _drop(task, scores)
        reports = compressed.reports
        _write_documents(
            folder, golden, profile, recipe, scores, drop, agreements, reports, budget
        )  # fmt: skip
        if study is not None:
            _write_json(folder / PARETO, {**study, "built": _found(profile, scores, drop)})
        artifact = _manifest(
            _artifact(folder, task, target, recipe, exported, scores, seed, reports)
        )
        exceeded = exceeded_limits(profile, budget, drop)
        if exceeded:
            shutil.rmtree(checkpoints, ignore_errors=True)  # this build has come to its end
            closest = rejected_folder(out)
            with staging(closest) as rejected:
                shutil.copytree(folder, rejected, dirs_exist_ok=True)
            (what, need, limit, unit), *others = exceeded
            also = ", ".join(f"{w} {n:.4g} of {most:.4g} {u}" for w, n, most, u in others)
            raise BudgetError(
                what, need=need, limit=limit, unit=unit, closest=str(closest),
                remedy=f"over as well: {also}" if also else "",
            )  # fmt: skip
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Built(
        artifact=replace(artifact, folder=out),
        profile=profile,
        scores=scores,
        drop=drop,
        agreements=agreements,
        budget=budget,
        seconds=seconds,
        overruns=(),
        unchecked=unchecked_limits(profile, budget, drop),
        steps=reports,
    )


def check_build(task: Task, target: Target, recipe: Recipe, *, threads: int, out: Path) -> None:
    """Raise what can be known before anything is trained.

    Raises:
        ConfigError: The target does not take the recipe's type or the number of threads, the task
            can't do a step, or `out` holds something else than an artifact.
        ModelError: The model can't be traced or pruned, or holds an operator without an int8 form.
        EdgeshrinkError: `out` can't be written.
    """
    step = quantizing_step(recipe)
    check_threads(threads, target)
    dtype = step.dtype if isinstance(step, Quantize) else "int8"
    if dtype not in target.ops.dtypes:
        fault = f"is {dtype!r}, and {target.name} takes {', '.join(target.ops.dtypes)}"
        raise ConfigError("recipe: dtype", fault, "change the recipe, or choose another target")
    check_widths(step, target)
    check_recipe(task, recipe)
    check_writable(out)
    if task.training is not None or compressing_steps(recipe):
        names_stay = not any(isinstance(s, Factorize) for s in recipe.steps)
        check_exportable(task, step, target, names_stay=names_stay)
    rehearse_recipe(task, recipe, target)


def claim(task: Task, target: Target, seed: int) -> dict[str, str]:
    """Return whose checkpoints a folder holds."""
    return {"task": task.name, "seed": str(seed), "target": target.name}


def claim_steps(folder: Path, recipe: Recipe) -> None:
    """Say in `folder` whose steps leave checkpoints there; refuse those of other steps.

    What is there depends on the steps up to the last one that has left something: those behind it
    may be corrected.

    Raises:
        ConfigError: There are checkpoints of other steps. They stay as they are.
        EdgeshrinkError: The folder can't be written.
    """
    done = reached(folder)
    identity = {f"step {i + 1}": repr(step) for i, step in enumerate(recipe.steps)}
    claim_folder(folder, identity, of=lambda key: int(key.rpartition(" ")[2]) <= done)


def exceeded_limits(
    profile: Profile, budget: Budget, drop: float | None
) -> list[tuple[str, float, float, str]]:
    """Return (what, need, limit, unit) of every limit that is not met."""
    exceeded = [(o.what, o.need, o.limit, o.unit) for o in profile.overruns]
    if budget.accuracy_drop is not None and drop is not None and drop > budget.accuracy_drop:
        exceeded.append(("drop", drop, budget.accuracy_drop, "of the metric"))
    return exceeded


def unchecked_limits(profile: Profile, budget: Budget, drop: float | None) -> tuple[str, ...]:
    """Return the limits of `budget` that nothing was found about."""
    found = {
        "flash": (budget.flash_bytes, "flash_bytes" in profile.figures),
        "ram": (budget.ram_bytes, "ram_bytes" in profile.figures),
        "latency": (budget.latency_ms, "latency_ms" in profile.figures),
        "drop": (budget.accuracy_drop, drop is not None),
    }
    return tuple(
        what for what, (limit, is_known) in found.items() if limit is not None and not is_known
    )


def rejected_folder(out: Path) -> Path:
    """Return where an artifact that misses its budget is left: beside `out`, never in its place."""
    out = out if out.name.strip(".") else out.resolve()
    return out.with_name(out.name + ".rejected")


def checkpoints_folder(out: Path) -> Path:
    """Return where trainings leave what they need to go on after an interrupt: beside `out`."""
    out = out if out.name.strip(".") else out.resolve()
    return out.with_name(out.name + ".checkpoints")


def _calibrate(
    task: Task, recipe: Recipe, compressed: Compressed, exported: Exported
) -> Compressed:
    """Fit the temperature on what the `.tflite` itself gives on the validation split."""
    inputs, outputs, structure = exported.inputs, exported.outputs, exported.structure
    with open_model(exported.tflite, "litert", name=MODEL_FILES["tflite"]) as runner:
        predict = tflite_predict(runner, inputs, outputs, structure)
        return calibrate_probabilities(task, recipe, compressed, predict)


def _report_chosen(
    task: Task, recipe: Recipe, compressed: Compressed, exported: Exported, seconds: float
) -> Compressed:
    """Report which ranges and widths were chosen, with the score of the `.tflite` itself."""
    assert exported.chosen is not None
    inputs, outputs, structure = exported.inputs, exported.outputs, exported.structure
    with open_model(exported.tflite, "litert", name=MODEL_FILES["tflite"]) as runner:
        return report_quantization(
            task, recipe, compressed, tflite_predict(runner, inputs, outputs, structure),
            note="; ".join((exported.chosen.note, *exported.notes)),
            details=exported.chosen.to_json(),
            seconds=seconds,
        )  # fmt: skip


def _drop(task: Task, scores: Mapping[str, float]) -> float | None:
    """Return by how much the worst file is worse than the best float model: model or teacher."""
    drops = [
        task.metric.drop(scores[reference], scores[file])
        for reference in FLOAT_MODELS & scores.keys()
        for file in scores.keys() - FLOAT_MODELS
    ]
    return max(drops, default=None)


def best_float_score(task: Task) -> float:
    """Return the better score on `validation` of the float model and its teacher."""
    models = [m for m in (task.model, task.teacher) if m is not None]
    return task.metric.best([score(task, float_predict(m), "validation") for m in models])


def _temperature(reports: Sequence[StepReport]) -> float | None:
    found = [r.details["temperature"] for r in reports if isinstance(r.step, ScaleTemperature)]
    return float(found[-1]) if found else None


def _compile(
    task: Task,
    target: Target,
    exported: Exported,
    folder: Path,
    optimize: Optimize,
    budget: Budget,
    progress: Callable[[float, str], None],
) -> Firmware:
    """Compile the `.tflite` into the artifact; by size where the flash budget asks for it."""
    inputs = [
        np.ascontiguousarray(exported.golden_inputs[spec.name]).reshape(-1, *spec.shape)
        for spec in exported.inputs
    ]

    def compiled(by: Optimize, place: Path) -> Firmware:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return compile_firmware(
            exported.tflite,
            target,
            place,
            name=task.name,
            shown=MODEL_FILES["tflite"],
            optimize=by,
            budget=budget,
            inputs=inputs,
            progress=progress,
        )

    firmware = compiled(optimize, folder / FIRMWARE)
    limit = budget.flash_bytes
    if limit is None or optimize == "flash" or flash_bytes(firmware) <= limit:
        return firmware
    return compiled("flash", folder / FIRMWARE)


def _golden_of_firmware(exported: Exported, firmware: Firmware) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs that the firmware gives on the golden inputs, as `golden.npz` has them."""
    return {
        f"output/{spec.name}": values.reshape(-1, *spec.shape[1:])
        for spec, values in zip(exported.outputs, firmware.golden.outputs, strict=True)
    }


def _score_firmware(
    task: Task,
    target: Target,
    exported: Exported,
    firmware: Firmware,
    profile: Profile,
    seen: _Recorder,
) -> tuple[float, Agreement]:
    """Score the firmware on the test split, and compare it with TensorFlow Lite Micro bit for bit.

    Where emulating the whole split would take longer than `EMULATED_S`, the score is TensorFlow
    Lite Micro's, and the firmware is compared with it on as many samples as fit.
    """
    assert firmware.elf is not None
    inputs, outputs, structure = exported.inputs, exported.outputs, exported.structure
    raw = [np.concatenate(column) for column in zip(*(c[0] for c in seen.calls), strict=True)]
    instructions = max(1.0, profile.figures["instructions"].value)
    affordable = max(8, int(EMULATED_S * INSTRUCTIONS_PER_S / instructions))
    n_compared = min(affordable, len(raw[0]))
    sample = [a[:n_compared] for a in raw]
    with (
        open_model(exported.tflite, "tflm", name=MODEL_FILES["tflite"]) as oracle,
        open_on_core(firmware.elf, firmware.before, target) as core,
    ):
        got, expected = core.run(*sample), oracle.run(*sample)
        agreement = compare(
            f"firmware on the emulated {target.cpu.core}", "tflm", got, expected, limit=EQUAL
        )
        runner: Runs = core if n_compared == len(raw[0]) else oracle
        predict = tflite_predict(runner, inputs, outputs, structure)
        return score(task, predict, "test"), replace(
            agreement, reference=f"tflm, {n_compared} test samples"
        )


def _score_files(
    task: Task, exported: Exported
) -> tuple[dict[str, float], list[Agreement], _Recorder]:
    """Score the files themselves on the test split, and compare their raw outputs on all of it."""
    inputs, outputs, structure = exported.inputs, exported.outputs, exported.structure
    with open_model(exported.tflite, "litert", name=MODEL_FILES["tflite"]) as tflite:
        recorder = _Recorder(tflite)
        predict: Predict = tflite_predict(recorder, inputs, outputs, structure)
        scores = {"tflite": score(task, predict, "test")}
        if exported.pte is None:
            return scores, [], recorder
        with open_model(exported.pte, "executorch", name=MODEL_FILES["pte"]) as pte:
            second = _Recorder(pte)
            scores["pte"] = score(task, pte_predict(second, outputs, structure), "test")
            if not recorder.calls or len(recorder.calls) != len(second.calls):
                return scores, [], recorder
            got: list[list[npt.NDArray[Any]]] = []
            expected: list[list[npt.NDArray[Any]]] = []
            for (stored, raw), (real, floats) in zip(recorder.calls, second.calls, strict=True):
                again = [
                    quantize_array(to_file_layout(a, spec), spec)
                    for a, spec in zip(real, inputs, strict=True)
                ]
                if any(not np.array_equal(a, b) for a, b in zip(again, stored, strict=True)):
                    return (
                        scores,
                        [],
                        recorder,
                    )  # the user's evaluate went through the data in another order
                as_stored = [
                    quantize_array(to_file_layout(a, spec), spec)
                    for a, spec in zip(floats, outputs, strict=True)
                ]
                _settle_ties(pte, stored, raw, as_stored, exported)
                got.append(as_stored)
                expected.append(list(raw))
    joined_got = [np.concatenate(column) for column in zip(*got, strict=True)]
    joined_expected = [np.concatenate(column) for column in zip(*expected, strict=True)]
    exact = is_exact(exported.graph) and exported.quantization == "one"
    limit = EQUAL
    if not exact:
        error = None
        if exported.quantization == "one":
            batches = (stored for stored, _ in recorder.calls)
            error = quantization_error(
                exported.reference, batches, joined_expected, inputs, outputs
            )
        limit = engine_limit(exported.graph, error)
    agreement = compare("executorch", "litert", joined_got, joined_expected, limit=limit)
    return scores, [replace(agreement, reference="litert, whole test set")], recorder


def _settle_ties(
    pte: Runs,
    stored: tuple[npt.NDArray[Any], ...],
    raw: tuple[npt.NDArray[Any], ...],
    got: list[npt.NDArray[Any]],
    exported: Exported,
) -> None:
    """Run differing samples again on exactly the stored inputs.

    A `.pte` quantizes its input itself; a value half-way between two codes may be rounded the
    other way there. Only what differs on equal int8 inputs is a difference of the files.
    """
    differs = np.zeros(len(stored[0]), bool)
    for a, b in zip(got, raw, strict=True):
        differs |= (a != b).reshape(len(a), -1).any(axis=1)
    rows = np.flatnonzero(differs)
    if not len(rows):
        return
    real = [
        np.ascontiguousarray(from_file_layout(dequantize_array(a[rows], spec), spec))
        for a, spec in zip(stored, exported.inputs, strict=True)
    ]
    for position, (values, spec) in enumerate(zip(pte.run(*real), exported.outputs, strict=True)):
        got[position][rows] = quantize_array(to_file_layout(values, spec), spec)


class _Recorder:
    """A runner that remembers what went in and came out."""

    def __init__(self, runner: Runs) -> None:
        self.runner = runner
        self.calls: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []

    def run(self, *arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        results = self.runner.run(*arrays)
        self.calls.append((arrays, results))
        return results


def _write_documents(
    folder: Path,
    golden: Mapping[str, npt.NDArray[Any]],
    profile: Profile,
    recipe: Recipe,
    scores: Mapping[str, float],
    drop: float | None,
    agreements: tuple[Agreement, ...],
    reports: Sequence[StepReport],
    budget: Budget,
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **golden)
    (folder / GOLDEN).write_bytes(buffer.getvalue())
    (folder / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    _write_json(folder / "profile.json", profile.to_json())
    audit = {
        "scores": scores,
        "drop": drop,
        "budget": {name: limit for name, limit in vars(budget).items() if limit is not None},
        "agreements": [vars(a) for a in agreements],
        "steps": [report.to_json() for report in reports],
    }
    _write_json(folder / "audit.json", audit)


def _manifest(artifact: Artifact) -> Artifact:
    """Write report, card and manifest beside the files of `artifact`; return it with all of them.

    The manifest lists every file but itself.
    """
    facts = read_facts(artifact)
    (artifact.folder / REPORT).write_text(html_report(facts), "utf-8")
    (artifact.folder / MODEL_CARD).write_text(model_card(facts), "utf-8")
    whole = replace(artifact, files=_files(artifact.folder))
    _write_json(artifact.folder / MANIFEST, whole.to_json())
    return whole


def _files(folder: Path) -> dict[str, FileEntry]:
    return {
        p.relative_to(folder).as_posix(): file_entry(p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def _artifact(
    folder: Path,
    task: Task,
    target: Target,
    recipe: Recipe,
    exported: Exported,
    scores: Mapping[str, float],
    seed: int,
    reports: Sequence[StepReport],
) -> Artifact:
    return Artifact(
        folder=folder,
        name=task.name,
        target=target.name,
        engine=ENGINE_C if target.kind == "microcontroller" else "tflite",
        quantization=exported.quantization,
        inputs=exported.inputs,
        outputs=exported.outputs,
        structure=exported.structure,
        metric={"name": task.metric.name, "direction": task.metric.direction},
        scores=scores,
        recipe=recipe.to_json(),
        versions={"edgeshrink": __version__} | {tool: metadata.version(tool) for tool in TOOLS},
        seed=seed,
        temperature=_temperature(reports),
        files=_files(folder),
    )


def _found(profile: Profile, scores: Mapping[str, float], drop: float | None) -> dict[str, Any]:
    """Return what a build found, beside what a search had predicted."""
    figures = {name: figure.to_json() for name, figure in profile.figures.items()}
    return {"scores": dict(scores), "drop": drop, "figures": figures}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=False) + "\n", "utf-8")
