"""Mutated model files through the compiler: `python benchmarks/fuzz_compiler.py N [FIRST]`.

Prints markdown: of N files, mutated from small models with every operator, how many were refused by
the reader, refused by passes or lowering, and compiled to C; and every file that did anything else
(an exception that is not ours, more than 20 s, more than 4 GiB, a crash) with its number. The same
number gives the same file: `--show NUMBER` compiles one and lets its exception through.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.attacks.mutations import compile_bytes, mutated, seeds

MEMORY_BYTES = 4 << 30
ISAS = (("dsp", "mul"), ("mul",))


def file_of(number: int, models: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the seed's name and the mutated file of a number."""
    name, data = models[number % len(models)]
    return name, mutated(data, random.Random(number))


def work(numbers: range, results: Connection) -> None:
    """Compile the files; send (number, outcome, detail) before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    models = list(seeds().items())
    for number in numbers:
        results.send((number, "started", ""))
        name, data = file_of(number, models)
        try:
            outcome, detail = compile_bytes(data, ISAS[number // 7 % 2]), ""
        except Exception as err:  # noqa: BLE001 - what it looks for
            last = traceback.extract_tb(err.__traceback__)[-1]
            detail = (
                f"{name}: {type(err).__name__}: {err} ({Path(last.filename).name}:{last.lineno})"
            )
            outcome = "FAILED"
        results.send((number, outcome, detail))
    results.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n", type=int, help="how many files")
    parser.add_argument("first", type=int, nargs="?", default=0, help="number of the first")
    parser.add_argument("--show", type=int, help="compile this one alone")
    options = parser.parse_args()
    if options.show is not None:
        name, data = file_of(options.show, list(seeds().items()))
        print(name, compile_bytes(data, ISAS[options.show // 7 % 2]))
        return
    start = time.monotonic()
    counts: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    at, end = options.first, options.first + options.n
    context = multiprocessing.get_context("spawn")
    while at < end:  # once more after every crash, behind the file that crashed
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(range(at, end), sender))
        process.start()
        sender.close()
        at, crashed = _collect(receiver, at, counts, failures)
        process.join()
        if crashed:
            failures.append((at - 1, f"crashed with exit code {process.exitcode}"))
            counts["FAILED"] += 1
    print(f"{options.n:,} mutated files, numbers from {options.first}, "
          f"{time.monotonic() - start:.0f} s\n")  # fmt: skip
    print("| outcome | files |\n|---|---|")
    for outcome in ("not read", "not compiled", "compiled", "FAILED"):
        print(f"| {outcome} | {counts[outcome]:,} |")
    if failures:
        print("\n| number | failure |\n|---|---|")
        for number, detail in failures:
            text = detail.replace("|", "/").replace("\n", " ")[:300]
            print(f"| {number} | {text} |")
    sys.exit(bool(failures))


def _collect(
    receiver: Connection, at: int, counts: Counter[str], failures: list[tuple[int, str]]
) -> tuple[int, bool]:
    """Read results until the worker ends; return the next number, and whether it crashed."""
    open_number = None
    while True:
        try:
            number, outcome, detail = receiver.recv()
        except EOFError:
            return at, open_number is not None
        at = number + 1
        open_number = number if outcome == "started" else None
        if outcome != "started":
            counts[outcome] += 1
        if outcome == "FAILED":
            failures.append((number, detail))


if __name__ == "__main__":
    main()
