"""What an artifact is worth, for people: a page, a card, tables. Draws only what its files say."""

from edgeshrink.reporting.card import model_card
from edgeshrink.reporting.facts import MODEL_CARD, PARETO, REPORT, Facts, read_facts
from edgeshrink.reporting.page import html_report
from edgeshrink.reporting.tables import Table, tables

__all__ = [
    "MODEL_CARD", "PARETO", "REPORT", "Facts", "Table", "html_report", "model_card", "read_facts",
    "tables",
]  # fmt: skip
