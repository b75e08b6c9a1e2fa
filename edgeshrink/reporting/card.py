"""The card that goes with a model: what it is and how well it does, and within which limits."""

from __future__ import annotations

from edgeshrink.artifact import IoSpec
from edgeshrink.reporting.facts import Facts
from edgeshrink.reporting.tables import Table, tables


def model_card(facts: Facts) -> str:
    """Return the card as Markdown. The same artifact gives the same bytes."""
    artifact = facts.artifact
    lines = [
        f"# {artifact.name} for {artifact.target}",
        "",
        "| | |", "|---|---|",
        f"| engine | {_text(artifact.engine)} |",
        f"| quantization | {artifact.quantization} |",
        *(f"| input | {_spec(s)} |" for s in artifact.inputs),
        *(f"| output | {_spec(s)} |" for s in artifact.outputs),
        f"| recipe | {' + '.join(str(s['step']) for s in artifact.recipe.get('steps', ()))} |",
        f"| seed | {artifact.seed} |",
        *([] if artifact.temperature is None else
          [f"| temperature | divide logits by {artifact.temperature:.4g} before softmax |"]),
    ]  # fmt: skip
    for table in tables(facts):
        if table.title in ("Scores", "Figures", "Compression"):
            lines += ["", f"## {table.title}", "", *_markdown(table)]
    lines += [
        "", "## Limits", "",
        "Scores are those of the data that the task brought: on other data they may be others.",
        "A figure that is modelled lies in its band with the confidence that its note states; it",
        "was not measured on a device. `audit.json` and `profile.json` hold every detail.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _markdown(table: Table) -> list[str]:
    rule = "|".join("---:" if i in table.numbers else "---" for i in range(len(table.head)))
    rows = [f"| {' | '.join(_text(cell) for cell in row)} |" for row in (table.head, *table.rows)]
    note = ["", f"({table.note})"] if table.note else []
    return [rows[0], f"|{rule}|", *rows[1:], *note]


def _spec(spec: IoSpec) -> str:
    shape = " x ".join(str(n) for n in spec.shape)
    scaled = "" if spec.scale is None else f", scale {spec.scale:.6g}, zero point {spec.zero_point}"
    return _text(f"{spec.name}: {spec.dtype} ({shape}){scaled}")


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
