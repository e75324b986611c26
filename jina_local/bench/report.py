"""What was measured: a record for each contender, as JSON to be pasted and as a table to be read."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .work import MIX, SHORT


@dataclass
class Row:
    """One contender's numbers, as far as they were measured."""

    name: str
    file_mb: float
    load_s: float
    about: dict[str, str | int]
    peak_mb: float = 0.0  # after all bulk, before the single texts
    agreement: float | None = None  # with the reference
    rates: dict[str, list[float]] = field(default_factory=dict)  # workload -> tokens or pairs per second, each round
    latency: dict[int, list[float]] = field(default_factory=dict)  # tokens of a text -> seconds of each run


@dataclass
class Report:
    """One run."""

    model: str
    task: str
    unit: str  # "tokens" | "pairs"
    facts: dict[str, Any]  # machine, versions, settings
    rows: list[Row] = field(default_factory=list)
    reference: str = ""  # the contender that all others are compared with
    refused: dict[str, str] = field(default_factory=dict)  # contender -> why it was not timed, or not to the end

    def times(self, row: Row, workload: str) -> float | None:
        """How many times as fast as the first contender, the median over the rounds; None before the first round."""
        pairs = list(zip(row.rates.get(workload, ()), self.rows[0].rates.get(workload, ()), strict=False))
        return statistics.median(own / first for own, first in pairs) if pairs else None

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "bench": self.model,
            "task": self.task,
            "unit": f"{self.unit} per second",
            **self.facts,
            "results": [self._row(row) for row in self.rows],
            "compared_with": self.reference,
            "refused": self.refused,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        return {
            "name": row.name,
            **row.about,
            "per_s": {work: round(statistics.median(rates), 1) for work, rates in row.rates.items()},
            "per_s_rounds": {work: [round(rate, 1) for rate in rates] for work, rates in row.rates.items()},
            "times_the_first": {
                work: round(times, 3) for work in row.rates if (times := self.times(row, work)) is not None
            },
            "latency_ms": {str(n): round(1e3 * statistics.median(s), 2) for n, s in row.latency.items()},
            "load_s": round(row.load_s, 2),
            "peak_mb": round(row.peak_mb),
            "file_mb": row.file_mb,
            "agreement": None if row.agreement is None else round(row.agreement, 6),
        }

    def as_table(self) -> str:
        """The numbers for a person."""
        machine, settings = self.facts["machine"], self.facts["settings"]
        versions = ", ".join(f"{name} {version}" for name, version in self.facts["versions"].items())
        lines = [
            f"{self.model}, {self.task}: {settings['texts']} texts, {settings['tokens']:,} tokens, "
            f"{settings['rounds']} rounds{', interrupted' if self.facts.get('interrupted') else ''}",
            f"{machine['cpu']}, {machine['cores']} cores: {', '.join(machine['multiplies']) or 'nothing known'}",
            f"{machine['system']}, load {machine['load_1min']} before the run; {versions}",
            "",
            *_aligned([self._heads(), *map(self._cells, self.rows)]),
        ]
        lengths = sorted({n for row in self.rows for n in row.latency})
        if lengths:
            heads = ["ms for one text of tokens", *map(str, lengths)]
            lines += ["", *_aligned([heads, *(_latencies(row, lengths) for row in self.rows)])]
        lines += [f"\nNot a result: {why}." for why in self.refused.values()]
        return "\n".join(lines) + "\n"

    def _heads(self) -> list[str]:
        short = ["short texts"] if any(SHORT in row.rates for row in self.rows) else []
        agree = "cosine" if self.unit == "tokens" else "correl."
        return [f"{self.unit} per second", "mix", "times", *short, "load s", "peak MB", "file MB", agree]

    def _cells(self, row: Row) -> list[str]:
        rates = [f"{statistics.median(r):,.{int(self.unit == 'pairs')}f}" for r in row.rates.values() if r]
        times = self.times(row, MIX)
        cells = [row.name, *rates[:1], "" if times is None else f"{times:.2f}", *rates[1:]]
        cells += [""] * (len(self._heads()) - 4 - len(cells))
        agree = "" if row.agreement is None else f"{row.agreement:.4f}"
        return [*cells, f"{row.load_s:.1f}", f"{row.peak_mb:,.0f}", f"{row.file_mb:,.0f}", agree]


def _latencies(row: Row, lengths: Sequence[int]) -> list[str]:
    milliseconds = [1e3 * statistics.median(row.latency[n]) if n in row.latency else None for n in lengths]
    return [row.name, *("" if ms is None else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}" for ms in milliseconds)]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines whose first cells begin and whose other cells end at the same columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
