"""Reports: everything that an artifact's files say is drawn, nothing else, and always the same."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgeshrink.artifact import Artifact, IoSpec, file_entry, read_artifact
from edgeshrink.cli import main
from edgeshrink.errors import ConfigError
from edgeshrink.profile import Figure, exact
from edgeshrink.recipe import Recipe
from edgeshrink.reporting import html_report, model_card, read_facts, tables

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def figure(low: float, value: float, high: float, unit: str) -> dict:
    return Figure(
        value=value, unit=unit, how="modelled", low=low, high=high, validated=False
    ).to_json()


def trial(number: int, score: float, flash: float, **marks: bool) -> dict:
    flags = {"fits": True, "front": True, "chosen": False} | marks
    return {
        "number": number, "widths": "whole", "score": score, "drop": 0.0, **flags,
        "figures": {"flash_bytes": figure(flash, flash, flash, "B")},
        "recipe": Recipe().to_json(),
    }  # fmt: skip


PARETO = {
    "metric": "accuracy", "direction": "higher", "split": "validation", "float_score": 0.9,
    "objectives": ["score", "flash_bytes"], "limits": {"flash_bytes": 3000},
    "trials": [
        trial(0, 0.80, 1000), trial(1, 0.90, 2000, chosen=True),
        trial(2, 0.95, 4000, fits=False), trial(3, 0.70, 3500, front=False),
    ],
    "failed": [],
}  # fmt: skip


def write_artifact(folder: Path, *, pareto: dict | None = None, name: str = HOSTILE) -> Artifact:
    folder.mkdir(parents=True)
    profile = {
        "figures": {
            "flash_bytes": exact(2048, "B").to_json(),
            "latency_ms": figure(1.0, 2.0, 4.0, "ms"),
        },
        "ops": [
            {"index": 0, "kind": "CONV_2D", "name": HOSTILE, "macs": 12345, "latency_ms": 1.5},
            {"index": 1, "kind": "MEAN", "name": "pool", "macs": 0, "latency_ms": 0.5},
        ],
        "notes": [HOSTILE],
    }
    audit = {
        "scores": {}, "drop": 0.02, "budget": {"flash_bytes": 4096, "latency_ms": 3.0},
        "agreements": [{
            "engine": "torch", "reference": "litert", "unit": "LSB", "largest": 1.0, "rms": 0.1,
            "differing": 0.25, "n_values": 320, "limit": 4.0, "within_limit": True,
        }],
        "steps": [{
            "step": {"step": "prune"}, "note": "some go", "parameters_before": 2000,
            "parameters_after": 1000, "macs_before": 10, "macs_after": 5, "n_bytes_before": 2,
            "n_bytes_after": 1, "score_before": 0.9, "score_after": None, "seconds": 123.456,
        }],
    }  # fmt: skip
    documents = {"profile.json": profile, "audit.json": audit}
    documents |= {} if pareto is None else {"pareto.json": pareto}
    for file, content in documents.items():
        (folder / file).write_text(json.dumps(content))
    artifact = Artifact(
        folder=folder, name=name, target="rp2040", engine="c", quantization="one",
        inputs=(IoSpec(name="x", shape=(1, 8, 8, 1), dtype="int8", scale=0.5, zero_point=-3),),
        outputs=(), structure="single", metric={"name": "accuracy", "direction": "higher"},
        scores={"float": 0.98765, "tflite": 0.9}, recipe=Recipe().to_json(),
        versions={"edgeshrink": "1"}, seed=7,
        files={file: file_entry((folder / file).read_bytes()) for file in documents},
    )  # fmt: skip
    (folder / "artifact.json").write_text(json.dumps(artifact.to_json()))
    return artifact


class Page(HTMLParser):
    """Collects tags, and words outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":  # the only one that is never closed
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data + "\n"


def report_of(folder: Path, **changes) -> Page:
    page = Page(html_report(read_facts(write_artifact(folder, **changes))))
    assert page.open == []
    return page


def test_the_page_holds_what_the_files_say(tmp_path):
    page = report_of(tmp_path / "a", pareto=PARETO)
    for text in ("0.9877", "2.0 KiB", "1 ms to 4 ms", "modelled, unvalidated", "3 ms: NOT MET",
                 "4.0 KiB: met", "2,000 → 1,000", "0.9000 → -", "25.00 %", "12,345", "chosen",
                 "75%", "limit 2.9 KiB"):  # fmt: skip
        assert text in page.words, text
    assert "123.456" not in page.words  # seconds differ from run to run


def test_names_from_outside_stay_words(tmp_path):
    page = report_of(tmp_path / "a", pareto=PARETO)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count(HOSTILE) >= 3


def test_the_page_fetches_nothing(tmp_path):
    text = html_report(read_facts(write_artifact(tmp_path / "a", pareto=PARETO)))
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script|<link|<iframe", text)


def test_the_plot_rings_the_chosen_trial_and_draws_those_that_nothing_beats(tmp_path):
    page = report_of(tmp_path / "a", pareto=PARETO)
    circles = [a for tag, a in page.tags if tag == "circle"]
    assert len(circles) == len(PARETO["trials"]) + 1
    (ring,) = (a for a in circles if a["r"] == "8")
    points = [(float(a["cx"]), float(a["cy"])) for a in circles if a["r"] == "4"]
    assert (float(ring["cx"]), float(ring["cy"])) == points[1]
    assert [a["fill"] == "none" for a in circles if a["r"] == "4"] == [False, False, True, False]
    by_x = sorted(points)
    assert [points.index(p) for p in by_x] == [0, 1, 3, 2]  # flash to the right
    assert sorted(points, key=lambda p: p[1])[0] == points[2]  # score upwards
    (line,) = (a["d"] for tag, a in page.tags if tag == "path" and a.get("stroke-width") == "1.5")
    drawn = [tuple(map(float, pair.split())) for pair in line[1:].split("L")]
    assert drawn == [points[0], points[1], points[2]]


@pytest.mark.parametrize("trials", [[], [trial(0, 0.5, 100)], [trial(0, 0.0, 0, chosen=True)]])
def test_a_search_that_found_little_is_drawn_as_well(tmp_path, trials):
    report_of(tmp_path / "a", pareto=PARETO | {"trials": trials, "limits": {}})


def test_the_same_artifact_gives_the_same_bytes_wherever_it_lies(tmp_path):
    a, b = (read_facts(write_artifact(tmp_path / n, pareto=PARETO)) for n in ("a", "b"))
    assert html_report(a) == html_report(b)
    assert model_card(a) == model_card(b)


def test_the_card_is_markdown_with_every_score_and_figure(tmp_path):
    card = model_card(read_facts(write_artifact(tmp_path / "a", name="digits")))
    assert card.startswith("# digits for rp2040\n")
    for text in ("0.9877", "1 ms to 4 ms", "int8 (1 x 8 x 8 x 1), scale 0.5, zero point -3"):
        assert text in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_without_a_search_there_is_no_plot(tmp_path):
    facts = read_facts(write_artifact(tmp_path / "a"))
    assert "Search" not in [t.title for t in tables(facts)]
    assert "circle" not in html_report(facts)


@pytest.mark.parametrize(
    ("file", "content"),
    [("profile.json", "{"), ("profile.json", "[]"), ("profile.json", "{}"), ("audit.json", "3"),
     ("profile.json", '{"figures": {"a": {"b": 1}}}')],
)  # fmt: skip
def test_damaged_documents_name_the_file(tmp_path, file, content):
    artifact = write_artifact(tmp_path / "a")
    (tmp_path / "a" / file).write_text(content)
    with pytest.raises(ConfigError, match=file):
        read_facts(artifact)


def command(capfd, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["report", *map(str, arguments)])
    captured = capfd.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_the_command_writes_the_page_and_prints_the_tables(tmp_path, capfd):
    write_artifact(tmp_path / "a", pareto=PARETO, name="digits")
    code, out, err = command(capfd, tmp_path / "a")
    assert (code, err) == (0, "")
    assert "the Pareto front of 4 trials" in out
    assert (tmp_path / "a" / "report.html").read_text().startswith("<!doctype html>")
    assert read_artifact(tmp_path / "a").name == "digits"  # it is intact


def test_json_is_one_document(tmp_path, capfd):
    write_artifact(tmp_path / "a")
    _, out, _ = command(capfd, tmp_path / "a", "--json", "--out", tmp_path / "page.html")
    found = json.loads(out)
    assert found["report"] == str(tmp_path / "page.html")
    assert found["tables"]["Scores"][0] == {"model": "float model", "accuracy": "0.9877"}


def test_a_page_that_is_part_of_the_artifact_is_not_replaced(tmp_path, capfd):
    artifact = write_artifact(tmp_path / "a")
    (tmp_path / "a" / "report.html").write_text("of another version")
    files = dict(artifact.files) | {"report.html": file_entry(b"of another version")}
    manifest = artifact.to_json() | {
        "files": {n: {"sha256": e.sha256, "bytes": e.n_bytes} for n, e in files.items()}
    }
    (tmp_path / "a" / "artifact.json").write_text(json.dumps(manifest))
    code, out, err = command(capfd, tmp_path / "a")
    assert (code, out) == (2, "")
    assert "name another file with --out" in err
    assert (tmp_path / "a" / "report.html").read_text() == "of another version"


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_what_is_no_artifact_is_refused(tmp_path, capfd, what):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    code, out, err = command(capfd, tmp_path / what)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(tmp_path / what) in err


def test_a_place_that_can_not_be_written_is_told(tmp_path, capfd):
    write_artifact(tmp_path / "a")
    (tmp_path / "file").write_text("")
    code, out, err = command(capfd, tmp_path / "a", "--out", tmp_path / "file" / "page.html")
    assert (code, out) == (1, "")
    assert "can't be written" in err
