"""Training of a compressed model, with or without a teacher."""

from __future__ import annotations

from torch import nn

from edgeshrink.compression.distill import (
    check_features,
    distillation_identity,
    features_of,
    is_distilling,
    teacher_of,
    with_teacher,
)
from edgeshrink.compression.steps import Changed, Context
from edgeshrink.recipe import Finetune
from edgeshrink.task import Training
from edgeshrink.training import hold, retrain


def apply(model: nn.Module, step: Finetune, context: Context) -> Changed:
    """Train `model` in place; it never ends with a worse score on `validation` than before."""
    teacher = teacher_of(context.task)
    check_features(step, model, teacher)
    fitted = retrain(
        model,
        context.task,
        Training(
            epochs=step.epochs,
            learning_rate=step.learning_rate,
            weight_decay=step.weight_decay,
            warmup_share=step.warmup_share,
            optimizer=step.optimizer,
            ema=step.ema,
            patience=step.patience,
            precision=step.precision,
        ),
        seed=context.seed,
        loss=with_teacher(context.task, step, teacher) if is_distilling(step) else None,
        after_step=None if context.held == "nothing" else hold(model, context.held),
        progress=context.progress,
        checkpoints=context.checkpoints,
        identity={"step": repr(step)} | distillation_identity(step, teacher),
        keep="best-or-before",
        where="finetune",
    )
    if fitted.rank is None:
        note = f"{fitted.epochs} epochs"
    elif fitted.kept_epoch:
        note = f"epoch {fitted.kept_epoch} of {fitted.epochs} was best"
    else:
        note = f"none of {fitted.epochs} epochs was better: weights as before"
    if step.distill != "none":
        which = "the float model" if context.task.teacher is None else "the task's teacher"
        note += f"; {step.distill} targets of {which}"
    if features_of(step):
        note += f"; attention of {len(features_of(step))} layers"
    details = {"epochs": fitted.epochs, "kept_epoch": fitted.kept_epoch}
    return Changed(model=model, note=note, details=details)
