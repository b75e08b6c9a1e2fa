"""One HTML page without scripts, fonts or addresses: it can be kept, sent, and read offline."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from edgeshrink.reporting.facts import Facts
from edgeshrink.reporting.tables import NAMES, Table, show, tables
from edgeshrink.units import format_score

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem;
  color: #1c2430; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-size: 13px; width: 100% }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #dfe4ea;
  vertical-align: top }
th { font-weight: 600; color: #5a6675 } .n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.note { color: #5a6675; font-size: 13px } .bad { color: #b3261e; font-weight: 600 }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: #5a6675 }
@media (prefers-color-scheme: dark) { body { color: #e3e8ee; background: #14181d }
  th, td { border-color: #2c343d } th, .note, svg text { color: #97a3b0; fill: #97a3b0 } }
"""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 320.0, 70.0, 20.0, 16.0, 44.0


def html_report(facts: Facts) -> str:
    """Return the page of an artifact. The same artifact gives the same bytes."""
    artifact = facts.artifact
    title = escape(f"{artifact.name} on {artifact.target}")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="note">engine {escape(artifact.engine)}; quantization '
        f"{escape(artifact.quantization)}; seed {artifact.seed}; "
        + escape(", ".join(f"{k} {v}" for k, v in sorted(artifact.versions.items())))
        + "</p>",
    ]
    for table in tables(facts):
        parts.append(f"<h2>{escape(table.title)}</h2>")
        if table.title == "Search" and facts.pareto is not None:
            parts += [_plot(facts.pareto, name) for name in facts.pareto["objectives"][1:]]
        if table.title == "Operators":
            parts.append(_bars(facts.profile.get("ops", ())))
        parts.append(_table(table))
    notes = facts.profile.get("notes", ())
    if notes:
        parts.append("<h2>Notes</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in notes)
                     + "</ul>")  # fmt: skip
    return "\n".join([*(p for p in parts if p), "</body></html>", ""])


def _table(table: Table) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        shown = []
        for position, cell in enumerate(cells):
            kinds = ["n"] if position in table.numbers else []
            kinds += ["bad"] if "NOT MET" in cell else []
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            shown.append(f"<{tag}{kind}>{escape(cell)}</{tag}>")
        return f"<tr>{''.join(shown)}</tr>"

    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table>\n{row(table.head, 'th')}\n{body}\n</table>{note}"


def _plot(pareto: Mapping[str, Any], name: str) -> str:
    """Draw every trial: a figure's upper end to the right, the score upwards, the front as a line.

    The one that was chosen is ringed; a dashed line is the limit.
    """
    trials = pareto["trials"]
    if not trials:
        return ""
    unit = trials[0]["figures"][name]["unit"]
    xs = [float(t["figures"][name]["high"]) for t in trials]
    ys = [float(t["score"]) for t in trials]
    limit = pareto["limits"].get(name)
    x_low, x_high = _range([*xs, *([limit] if limit is not None else [])])
    y_low, y_high = _range(ys)

    def x_at(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_at(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    shapes = [
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#97a3b0"/>',
        *(_label(LEFT - 8, y_at(v) + 4, f"{v:.4g}", "end") for v in (y_low, y_high)),
        *(_label(x_at(v), bottom + 18, show(v, unit), "middle") for v in (x_low, x_high)),
        _label((LEFT + right) / 2, HEIGHT - 8, f"{NAMES[name]} (upper end)", "middle"),
        _label(LEFT + 8, TOP + 10, f"{pareto['metric']} (validation)", "start"),
    ]
    if limit is not None:
        x = x_at(limit)
        shapes.append(
            f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#b3261e" stroke-dasharray="4 3"/>'
        )
        shapes.append(_label(x - 4, bottom - 6, f"limit {show(limit, unit)}", "end"))
    steps = _staircase(pareto, xs, ys)
    if len(steps) > 1:
        line = "L".join(f"{x_at(x):.1f} {y_at(y):.1f}" for x, y in steps)
        shapes.append(f'<path d="M{line}" fill="none" stroke="#2f6fde" stroke-width="1.5"/>')
    for trial, x, y in zip(trials, xs, ys, strict=True):
        place = f'cx="{x_at(x):.1f}" cy="{y_at(y):.1f}"'
        colour = "#2f6fde" if trial["front"] else "#97a3b0"
        fill = colour if trial["fits"] else "none"
        words = escape(
            f"trial {trial['number']}: {format_score(y)}, {show(x, unit)}, {trial['widths']}"
        )
        shapes.append(
            f'<circle {place} r="4" fill="{fill}" stroke="{colour}"><title>{words}</title></circle>'
        )
        if trial["chosen"]:
            shapes.append(f'<circle {place} r="8" fill="none" stroke="#0a7d3c" stroke-width="2"/>')
            anchor = "end" if x_at(x) > WIDTH / 2 else "start"
            shift = -12 if anchor == "end" else 12
            shapes.append(_label(x_at(x) + shift, y_at(y) + 4, "chosen", anchor))
    words = f"score against {NAMES[name]}: filled fits, hollow does not, blue is the Pareto front"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" role="img" '
        f'aria-label="{escape(words)}">{"".join(shapes)}</svg>'
        f'<figcaption class="note">{escape(words)}</figcaption></figure>'
    )


def _staircase(
    pareto: Mapping[str, Any], xs: list[float], ys: list[float]
) -> list[tuple[float, float]]:
    """Return the points that no other one beats in this figure and the score, from left to right.

    The whole front may hold more of them: those that are better in another figure.
    """
    sign = 1.0 if pareto["direction"] == "higher" else -1.0
    found: list[tuple[float, float]] = []
    for x, y in sorted(zip(xs, ys, strict=True), key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * y > sign * found[-1][1]:
            found.append((x, y))
    return found


def _bars(ops: Any) -> str:
    """Draw where the time goes: one bar for each operator that has a latency or cycles."""
    key = "latency_ms" if any("latency_ms" in op for op in ops) else "cycles"
    timed = [(f"{op['kind']} {op['name']}", float(op[key])) for op in ops if op.get(key)]
    total = sum(value for _, value in timed)
    if not timed or total <= 0:
        return ""
    largest = max(value for _, value in timed)
    height = 18 * len(timed) + 8
    rows = []
    for row, (name, value) in enumerate(timed):
        y = 18 * row + 4
        rows.append(_label(250, y + 12, name if len(name) <= 38 else name[:37] + "…", "end"))
        width = max(1.0, 300 * value / largest)
        rows.append(f'<rect x="258" y="{y}" width="{width:.1f}" height="13" fill="#2f6fde"/>')
        rows.append(_label(264 + width, y + 12, f"{value / total:.0%}", "start"))
    return (
        f'<figure><svg viewBox="0 0 {WIDTH:g} {height}" width="{WIDTH:g}" role="img" '
        f'aria-label="share of the time by operator">{"".join(rows)}</svg></figure>'
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
