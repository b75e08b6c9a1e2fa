"""How far the engines lie apart on exported networks, in LSB of the output.

`python benchmarks/engine_agreement.py` prints a markdown table. The reference is LiteRT with
XNNPACK; each cell is the largest difference over all outputs and the share of values that differ.
tflite-runtime is measured where EDGESHRINK_TFLITE_RUNTIME_PYTHON names a Python that has it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgeshrink.exporting import export
from edgeshrink.exporting.exporter import float_inputs, stored_inputs, stored_outputs
from edgeshrink.recipe import Quantize
from edgeshrink.runtimes import open_model
from edgeshrink.target import load_target
from tests.zoo import ZOO, zoo_task

ENGINES = ("executorch", "litert-builtin", "tflite-runtime", "tflm")
N_INPUTS = 64


def main() -> None:
    target = load_target("rpi4")
    print("| network | .tflite B | .pte B | " + " | ".join(ENGINES) + " |")
    print("|---|---|---|" + "---|" * len(ENGINES))
    for name in ZOO:
        task = zoo_task(name)
        exported = export(task, target, Quantize(), progress=lambda share, text: None)
        assert exported.pte is not None
        fresh = np.random.default_rng(1).standard_normal(
            (N_INPUTS, *task.example_inputs[0].shape[1:]), np.float32
        )
        stored = stored_inputs([(row[None],) for row in fresh], exported.inputs)
        with open_model(exported.tflite, "litert") as runner:
            reference = runner.run(*stored)[0].astype(int)
        cells = []
        for engine in ENGINES:
            if engine == "tflite-runtime" and "EDGESHRINK_TFLITE_RUNTIME_PYTHON" not in os.environ:
                cells.append("not measured")
                continue
            if engine == "executorch":
                with open_model(exported.pte, engine) as runner:
                    raw = runner.run(*float_inputs(stored, exported.inputs))
                got = stored_outputs(raw, exported.outputs)[0]
            else:
                with open_model(exported.tflite, engine) as runner:
                    got = runner.run(*stored)[0]
            difference = np.abs(got.astype(int) - reference)
            cells.append(f"{difference.max()} ({100 * np.mean(difference > 0):.1f} %)")
        sizes = f"{len(exported.tflite):,} | {len(exported.pte):,}"
        print(f"| {name} | {sizes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
