"""The fit of the latency model of application processors: parameters, priors, search.

The fit is maximum a posteriori in log time: a row's residual is log(predicted / measured) over
`ROW_SD`, damped where it is large; every log rate is drawn towards what the same kernel costs on
the other cores, up to one factor per core and type. Boards of one core differ by more than clock
(memory, build, throttling), so each has a factor of its own, and one for each kernel and type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from application_rows import DOT, Row, Scaling

from edgeshrink.costs.application import BYTE_TERMS, BYTES_PARALLEL, ENGINE_TERMS, OVERHEAD_TERMS

Array = npt.NDArray[Any]
Name = tuple[str, ...]

# Where the search starts and what an unseen kernel is drawn to: cycles per unit of each term.
CENTRES = {
    "gemm": 0.3,
    "winograd": 0.2,
    "direct": 0.4,
    "depthwise": 1.0,
    "transform": 2.0,
    "transform_bytes": 0.5,
    "pool": 0.5,
    "normalize": 20.0,
    "quantize": 2.0,
    "activation_bytes": 0.5,
    "weight_bytes": 0.5,
    "moved_bytes": 0.5,
    "ops": 15000.0,
    "boxes": 30.0,
}
ROW_SD = 0.1
CENTRE_SD = 0.7  # of a kernel's cost over all cores, around CENTRES
CORE_SD = 1.5  # of a core's factor, all types
CORE_DTYPE_SD = 0.5  # of a core's factor for one type, around that
RATE_SD = 0.3  # of one rate, around kernel times core
BOARD_SD, BOARD_THREADS_SD = 0.2, 0.15
BOARD_RATE_SD = 0.2  # of one rate of a board and type: its build of ncnn, its memory
ENGINE_SD = 0.5  # of XNNPACK against ncnn
INDIRECT_SD = 0.1  # of an indirect convolution against a 1x1 one
SCALING_SD = 0.2  # of a speed-up by threads
PARALLEL_CENTRE, PARALLEL_SD = 2.5, 0.7  # logit of the parallel share


class Problem:
    """The parameters that some rows need, the priors on them, and the search."""

    def __init__(self, rows: Iterable[Row], scaling: Iterable[Scaling]) -> None:
        rows = list(rows)
        cores, dtypes = sorted({r.core for r in rows}), ["float16", "float32", "int8"]
        core_dtypes = [(c, d) for c in cores for d in dtypes if d != "float16" or c in DOT]
        boards = sorted({r.board for r in rows})
        names: list[Name] = [("zero",), ("indirect",)]
        names += [("rate", c, d, t) for c, d in core_dtypes for t in CENTRES]
        names += [("kernel", d, t) for d in dtypes for t in CENTRES]
        names += [("core", c) for c in cores] + [("core", c, d) for c, d in core_dtypes]
        names += [
            ("engine", d, isa, kind)
            for d in dtypes for isa in ("plain", "dot") for kind in ("compute", "bytes")
        ]  # fmt: skip
        names += [("parallel", c) for c in cores]
        names += [("parallel", e, c, d) for e in ENGINE_TERMS for c, d in core_dtypes]
        names += [(kind, b) for b in boards for kind in ("board", "board threads")]
        names += [
            ("board rate", b, d, t)
            for b, d in sorted({(r.board, r.dtype) for r in rows if r.engine == "ncnn"})
            for t in CENTRES
        ]
        self.index = {name: i for i, name in enumerate(names)}
        self.is_of_board = np.array([name[0].startswith("board") for name in names])
        self.scaling = [s for s in scaling if s.core in cores]
        self.rows = rows
        self._priors(core_dtypes)

    def _priors(self, core_dtypes: list[tuple[str, str]]) -> None:
        lines: list[tuple[dict[Name, float], float, float]] = [({("zero",): 1.0}, 0.0, 1e-6)]
        for name in self.index:
            match name:
                case ("indirect",):
                    lines.append(({name: 1.0}, 0.0, INDIRECT_SD))
                case ("rate", c, d, t):
                    middle = {name: 1.0, ("kernel", d, t): -1.0, ("core", c, d): -1.0}
                    lines.append((middle, 0.0, RATE_SD))
                case ("kernel", _, t):
                    lines.append(({name: 1.0}, math.log(CENTRES[t]), CENTRE_SD))
                case ("core", _):
                    lines.append(({name: 1.0}, 0.0, CORE_SD))
                case ("core", c, _):
                    lines.append(({name: 1.0, ("core", c): -1.0}, 0.0, CORE_DTYPE_SD))
                case ("engine", _, _, _):
                    lines.append(({name: 1.0}, 0.0, ENGINE_SD))
                case ("parallel", _):
                    lines.append(({name: 1.0}, PARALLEL_CENTRE, PARALLEL_SD))
                case ("parallel", _, c, _):
                    lines.append(({name: 1.0, ("parallel", c): -1.0}, 0.0, PARALLEL_SD))
                case ("board", _):
                    lines.append(({name: 1.0}, 0.0, BOARD_SD))
                case ("board threads", _):
                    lines.append(({name: 1.0}, 0.0, BOARD_THREADS_SD))
                case ("board rate", _, _, _):
                    lines.append(({name: 1.0}, 0.0, BOARD_RATE_SD))
        self.prior = np.zeros((len(lines), len(self.index)))
        self.prior_at = np.zeros(len(lines))
        for number, (line, at, sd) in enumerate(lines):
            for name, factor in line.items():
                self.prior[number, self.index[name]] = factor / sd
            self.prior_at[number] = at / sd

    def _rate_names(self, row: Row, term: str) -> tuple[Name, ...]:
        """Return the parameters whose sum is the log rate of a term of a row."""
        if row.engine == "ncnn":
            names: tuple[Name, ...] = (("rate", row.core, row.dtype, term),)
            of_board = ("board rate", row.board, row.dtype, term)
            return (*names, of_board) if of_board in self.index else names
        kind = "bytes" if term in BYTE_TERMS else "compute"
        like = "gemm" if term == "indirect" else term
        isa = "dot" if row.core in DOT else "plain"
        names = (
            ("rate", row.core, row.dtype, like),
            ("engine", row.dtype, isa, kind),
        )
        return (*names, ("indirect",)) if term == "indirect" else names

    def design(self, rows: Sequence[Row]) -> dict[str, Array]:
        width = max(map(len, ENGINE_TERMS.values()))
        amounts = np.zeros((len(rows), width))
        params = np.zeros((len(rows), width, 3), int)
        share = np.ones((len(rows), width))
        for i, row in enumerate(rows):
            for j, term in enumerate(ENGINE_TERMS[row.engine]):
                amounts[i, j] = row.amounts[j]
                share[i, j] = BYTES_PARALLEL if term in BYTE_TERMS else term not in OVERHEAD_TERMS
                for k, name in enumerate(self._rate_names(row, term)):
                    params[i, j, k] = self.index[name]
        boards = [[self.index.get((k, r.board), 0) for k in ("board", "board threads")]
                  for r in rows]  # fmt: skip
        return {
            "amounts": amounts,
            "params": params,
            "share": share,
            "assumed": np.array([r.assumed_cycles for r in rows]).reshape(-1, 2),
            "threads": np.array([r.threads for r in rows], float),
            "parallel": np.array(
                [self.index["parallel", r.engine, r.core, r.dtype] for r in rows], int
            ),
            "boards": np.array(boards, int).reshape(-1, 2),
            "at": np.array([r.log_cycles for r in rows]),
        }

    def predict(
        self, values: Array, design: dict[str, Array], *, boards: bool
    ) -> tuple[Array, Array, Array]:
        """Return log cycles of the rows, and how they change with rates and parallel shares.

        Without `boards` the rows are predicted as those of a board that nobody measured.
        """
        if not boards:
            values = np.where(self.is_of_board, 0.0, values)
        parallel = 1 / (1 + np.exp(-values[design["parallel"]]))
        threads = design["threads"]
        gain = 1 / threads - 1
        scale = 1 + design["share"] * (parallel * gain)[:, None]
        cost = design["amounts"] * np.exp(values[design["params"]].sum(-1))
        shared, fixed = design["assumed"].T
        total = (cost * scale).sum(1) + shared * (1 + parallel * gain) + fixed
        by_parallel = ((cost * design["share"]).sum(1) + shared) * gain / total
        log_cycles = np.log(total)
        log_cycles = log_cycles + values[design["boards"][:, 0]]
        log_cycles += (threads > 1) * values[design["boards"][:, 1]]
        by_rate = cost * scale / total[:, None]
        return log_cycles, by_rate, by_parallel * parallel * (1 - parallel)

    def start(self) -> Array:
        values = np.zeros(len(self.index))
        for name, i in self.index.items():
            if name[0] in ("rate", "kernel"):
                values[i] = math.log(CENTRES[name[-1]])
            elif name[0] == "parallel":
                values[i] = PARALLEL_CENTRE
        return values

    def solve(
        self, guess: dict[Name, float] | None = None, *, tolerance: float = 1e-10
    ) -> dict[Name, float]:
        """Return the most probable parameters (damped Gauss-Newton, soft-L1 rows)."""
        design = self.design(self.rows)
        n_rows, n = len(self.rows), len(self.index)
        at = np.arange(n_rows)
        scaling_p = np.array(
            [self.index["parallel", "xnnpack", s.core, s.dtype] for s in self.scaling], int
        )
        scaling_n = np.array([s.threads for s in self.scaling], float)
        scaling_at = np.array([s.log_ratio for s in self.scaling])

        def linearise(values: Array) -> tuple[Array, Array]:
            found, by_rate, by_parallel = self.predict(values, design, boards=True)
            jacobian = np.zeros((n_rows, n))
            for j in range(by_rate.shape[1]):
                for k in range(3):
                    np.add.at(jacobian, (at, design["params"][:, j, k]), by_rate[:, j])
            jacobian[at, design["parallel"]] += by_parallel
            jacobian[at, design["boards"][:, 0]] += 1
            jacobian[at, design["boards"][:, 1]] += design["threads"] > 1
            share = 1 / (1 + np.exp(-values[scaling_p]))
            gain = 1 / scaling_n - 1
            speed = np.zeros((len(self.scaling), n))
            speed[np.arange(len(self.scaling)), scaling_p] = (
                gain * share * (1 - share) / (1 + share * gain)
            )
            residual = np.concatenate([
                (found - design["at"]) / ROW_SD,
                (np.log(1 + share * gain) - scaling_at) / SCALING_SD,
            ])  # fmt: skip
            return residual, np.vstack([jacobian / ROW_SD, speed / SCALING_SD])

        def cost(residual: Array, values: Array) -> float:
            strain = self.prior @ values - self.prior_at
            return float((2 * (np.sqrt(1 + residual**2) - 1)).sum() + strain @ strain)

        values, damping = self.start(), 1e-3
        for name, value in (guess or {}).items():
            if name in self.index:
                values[self.index[name]] = value
        stiffness, pull = self.prior.T @ self.prior, self.prior.T @ self.prior_at
        residual, jacobian = linearise(values)
        for _ in range(100):
            weight = 1 / np.sqrt(1 + residual**2)
            normal = (jacobian.T * weight) @ jacobian + stiffness
            slope = jacobian.T @ (weight * residual) + stiffness @ values - pull
            before = cost(residual, values)
            for _ in range(12):
                step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
                trial, trial_jacobian = linearise(values - step)
                after = cost(trial, values - step)
                if after < before:
                    break
                damping *= 5
            else:
                break
            values, residual, jacobian = values - step, trial, trial_jacobian
            damping = max(damping / 5, 1e-9)
            if before - after < tolerance * before:
                break
        return {name: float(values[i]) for name, i in self.index.items()}
