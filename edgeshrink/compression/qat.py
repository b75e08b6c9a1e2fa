"""Quantization-aware training of a compressed model, never worse than quantizing it as it is.

Its result is a `QuantizedModel`; `build` exports it with
`export(replace(task, model=float_model), target, step, quantized=changed.model.quantized)`, where
`float_model` is what the steps before gave: engines are measured against it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from edgeshrink.compression.distill import (
    distillation_identity,
    is_distilling,
    teacher_of,
    with_teacher,
)
from edgeshrink.compression.steps import Changed, Context
from edgeshrink.errors import ConfigError
from edgeshrink.quantizer.qat import TrainableQuantized
from edgeshrink.quantizer.samples import calibration_samples
from edgeshrink.recipe import TrainQuantized
from edgeshrink.scoring import score
from edgeshrink.task import Task, Training
from edgeshrink.training import check_trainable, float_predict, hold, retrain


def apply(model: nn.Module, step: TrainQuantized, context: Context) -> Changed:
    """Train `model` quantized, and keep post-training quantization where that is better.

    Both are judged on `validation`, as converted: by the task's score, else by its loss.

    Returns:
        Its `model` is a `QuantizedModel`; `model` itself is left as it is.

    Raises:
        ConfigError: The task can't train, or has no validation split to judge by.
        ModelError: An operator has no int8 form, or the training fails.
    """
    task = context.task
    check_trainable(task, "qat")
    if "validation" not in task.data:
        fix = "add the split 'validation' to data, or use the step 'quantize'"
        raise ConfigError("qat", "has nothing to compare training with quantizing by", fix)
    judge = _judge(task)
    context.progress(0.0, "calibrating")
    trainable = TrainableQuantized(
        model.eval(),
        tuple(x.detach().clone() for x in task.example_inputs),
        [
            tuple(torch.from_numpy(a) for a in sample)
            for sample in calibration_samples(task, step.n_samples)
        ],
        observer=step.observer,
        learned_scales=step.learned_scales,
        freeze_at=step.freeze_observers_at,
    )
    untrained = trainable.finish()
    before = judge(untrained)
    held = hold(trainable, context.held)

    def after_step(module: nn.Module, share: float) -> None:
        held(module, share)
        trainable.after_step(module, share)

    teacher = teacher_of(task)
    fitted = retrain(
        trainable,
        task,
        Training(
            epochs=step.epochs,
            learning_rate=step.learning_rate,
            weight_decay=0.0,
            optimizer=step.optimizer,
        ),
        seed=context.seed,
        loss=with_teacher(task, step, teacher) if is_distilling(step) else None,
        after_step=after_step,
        progress=context.progress,
        checkpoints=context.checkpoints,
        identity={"step": repr(step)} | distillation_identity(step, teacher),
        where="quantization-aware training",
    )
    trained = trainable.finish()
    after = judge(trained)
    is_better = after >= before
    by = "score" if task.evaluate is not None else "loss"
    sign = 1.0 if by == "score" and task.metric.direction == "higher" else -1.0
    shown = f"validation {by} {sign * after:.4g} trained, {sign * before:.4g} quantized alone"
    kept = "trained weights kept" if is_better else "post-training quantization kept"
    return Changed(
        model=trained if is_better else untrained,
        note=f"{kept}: {shown}",
        details={
            "kept": "trained" if is_better else "post-training",
            f"{by}_trained": sign * after,
            f"{by}_post_training": sign * before,
            "epochs": fitted.epochs,
            "kept_epoch": fitted.kept_epoch,
        },
    )


def _judge(task: Task) -> Callable[[nn.Module], float]:
    """Return what ranks a model on the validation split; higher is better."""
    if task.evaluate is not None:
        direction = 1.0 if task.metric.direction == "higher" else -1.0
        return lambda model: direction * score(task, float_predict(model), "validation")
    loss = task.loss
    assert loss is not None

    def negative_loss(model: nn.Module) -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, targets in task.data["validation"]:
                outputs = model(*(torch.as_tensor(a) for a in inputs))
                value = loss(outputs, None if targets is None else torch.as_tensor(targets))
                total += float(value) * len(inputs[0])
                count += len(inputs[0])
        return -total / max(1, count)

    return negative_loss
