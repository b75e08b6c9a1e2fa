"""A search over recipes that Optuna leads, kept in a file so that it goes on where it stopped."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from edgeshrink.errors import ConfigError, EdgeshrinkError
from edgeshrink.planning.search import (
    DISTILLATIONS,
    EPOCHS,
    IMPORTANCES,
    LEARNING_RATES,
    OBSERVERS,
    TEMPERATURES,
    Direction,
    Space,
    first_choices,
)
from edgeshrink.quiet import reason

FILE: Final = "study.db"
NAME: Final = "recipes"
RANDOM_TRIALS: Final = 6  # before the sampler looks at what was found
State = Literal["running", "finished", "failed"]
_STATES: Final[Mapping[TrialState, State]] = {
    TrialState.RUNNING: "running", TrialState.COMPLETE: "finished", TrialState.FAIL: "failed",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A trial as the file has it: what was chosen, and what came of it."""

    number: int
    state: State
    choices: Mapping[str, Any]
    score: float | None
    reason: str  # why it failed


def open_study(
    folder: Path, identity: Mapping[str, str], directions: Sequence[Direction]
) -> optuna.Study:
    """Return the study in `folder`, a new one where there is none.

    Args:
        folder: Made if it is missing.
        identity: Whose study it is, in words; one that differs refuses it.
        directions: Of the score, and of every figure.

    Raises:
        ConfigError: The file is damaged, or the study of something else. It stays as it is.
        EdgeshrinkError: The folder can't be written.
    """
    path = folder / FILE
    fix = f"delete {folder} to start again"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with stored(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            fault = f"can't be written ({err.strerror or err})"
            raise EdgeshrinkError(str(folder), fault, "choose another folder with --out") from err
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
        words: list[Literal["maximize", "minimize"]] = [
            "maximize" if d == "higher" else "minimize" for d in directions
        ]
        is_new = not optuna.get_all_study_names(storage)
        study = optuna.create_study(
            storage=storage, study_name=NAME, directions=words, load_if_exists=True
        )
        if is_new:
            study.set_user_attr("identity", dict(identity))
        found = study.user_attrs.get("identity", {})
        for key in [*identity, *found]:
            if found.get(key) != identity.get(key):
                there, here = found.get(key, "none"), identity.get(key, "none")
                fault = f"belongs to another {key} ({there}), this is {here}; it is left as it is"
                raise ConfigError(str(path), fault, f"go on with that {key}, or {fix}")
    return study


def close(study: optuna.Study) -> None:
    """Let go of the study's file."""
    storage: Any = study._storage
    backend: Any = getattr(storage, "_backend", storage)  # behind a cache
    backend.remove_session()
    backend.engine.dispose()


@contextlib.contextmanager
def stored(folder: Path) -> Iterator[None]:
    """Turn what the storage raises into our words."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError) as err:
        fault = f"is damaged, or can't be written ({reason(err)})"
        raise ConfigError(
            str(folder / FILE), fault, f"delete {folder} to start again, or free space"
        ) from err


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return what can be chosen. Where one choice makes another pointless, it is made anyway."""
    found: dict[str, BaseDistribution] = {
        "widths": IntDistribution(0, len(space.widths) - 1),
        "importance": CategoricalDistribution(IMPORTANCES),
    }
    if not space.trainable.epochs:
        return found | {"observer": CategoricalDistribution(OBSERVERS)}
    found |= {
        "epochs": IntDistribution(0, len(EPOCHS) - 1),
        "learning_rate": FloatDistribution(*LEARNING_RATES, log=True),
    }
    if space.trainable.can_distill:
        found |= {
            "distill": CategoricalDistribution(DISTILLATIONS),
            "temperature": FloatDistribution(*TEMPERATURES, step=0.5),
        }
    if space.trainable.has_validation:
        found["quantize"] = CategoricalDistribution(("ptq", "qat"))
    return found


def ask(study: optuna.Study, space: Space, seed: int) -> Asked:
    """Draw the next trial; the first ones are those that a build without a search would try.

    What is drawn depends on `seed`, the trial's number and the trials before it: a study that was
    interrupted goes on as it would have.
    """
    known = distributions(space)
    if not study.trials:
        for choices in first_choices(space):
            study.enqueue_trial({k: v for k, v in choices.items() if k in known})
    number = sum(t.state != TrialState.WAITING for t in study.trials)
    study.sampler = optuna.samplers.TPESampler(
        seed=(seed + 1009 * number) % 2**32, n_startup_trials=RANDOM_TRIALS
    )
    trial = study.ask(known)
    return Asked(number=trial.number, state="running", choices=trial.params, score=None, reason="")


def tell(
    study: optuna.Study, number: int, score: float, highs: Sequence[float], excess: float
) -> None:
    """Store what came of a trial; `excess` above 0 says that it does not fit."""
    found = study.trials[number]
    if not found.constraints:  # else it was stored, and then the process ended
        optuna.trial.Trial(study, found._trial_id).set_constraint("budget", excess)
    study.tell(number, [score, *highs])


def tell_failure(study: optuna.Study, number: int, why: str) -> None:
    """Store why a trial has no score."""
    optuna.trial.Trial(study, study.trials[number]._trial_id).set_user_attr("reason", why)
    study.tell(number, state=TrialState.FAIL)


def trials(study: optuna.Study) -> tuple[Asked, ...]:
    """Return every trial that was asked for, by number."""
    return tuple(
        Asked(
            number=t.number, state=_STATES[t.state], choices=t.params,
            score=None if not t.values else float(t.values[0]),
            reason=str(t.user_attrs.get("reason", "")),
        )
        for t in study.trials
        if t.state in _STATES
    )  # fmt: skip
