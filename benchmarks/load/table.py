"""Formats the results as a readable table, in milliseconds where the document has seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HEAD = ("at a time", "side", "tok/s", "req/s", "TTFT p50", "p99", "ITL p50", "p99", "TPOT p50", "e2e p50")


def render(document: dict[str, Any]) -> str:
    lines: list[str] = []
    with_goodput = bool(document["settings"]["goodput"])
    head = [*_HEAD, "tokens/round", *(["goodput/s"] if with_goodput else []), "failed"]
    shown: tuple[str, float] | None = None
    rows: list[Sequence[str]] = []
    for point in document["points"]:
        if (place := (point["data"], point["temperature"])) != shown:
            lines += _aligned(rows)
            lines += ["", f"{place[0]}, temperature {place[1]:g}; times in ms"]
            rows, shown = [head], place
        for label, side in point["sides"].items():
            rows.append(_row(str(point["concurrency"]), label, side, with_goodput))
        if point["comparison"]:
            rows.append(("", _compared(point["comparison"])))
    lines += _aligned(rows)
    for average in document["averages"]:
        lines += ["", _average(average)]
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    return "\n".join(lines[1:])


def _row(concurrency: str, label: str, side: dict[str, Any], with_goodput: bool) -> list[str]:
    length = (side["speculation"] or {}).get("mean_acceptance_length")
    return [
        concurrency,
        label,
        f"{side['tokens_per_second']:.1f}",
        f"{side['requests_per_second']:.2f}",
        *(_ms(side[name], percentile) for name in ("ttft", "itl") for percentile in ("p50", "p99")),
        *(_ms(side[name], "p50") for name in ("tpot", "e2e")),
        f"{length:.2f}" if length is not None else "-",
        *([f"{side['goodput']['requests_per_second']:.2f}"] if with_goodput else []),
        str(side["failed"]),
    ]


def _ms(values: dict[str, float] | None, percentile: str) -> str:
    return f"{1e3 * values[percentile]:.1f}" if values else "-"


def _compared(comparison: dict[str, Any]) -> str:
    ratio = comparison["speed_up"]
    return (
        f"first over second: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}), "
        f"same text {comparison['same_answers']}/{comparison['answers']}"
    )


def _average(average: dict[str, Any]) -> str:
    speed_up = f"first over second {average['speed_up']:.2f}, " if average["speed_up"] is not None else ""
    lengths = ", ".join(
        f"{label} {length:.2f}" if length is not None else f"{label} -"
        for label, length in average["mean_acceptance_length"].items()
    )
    return (
        f"average of {average['data_sets']} sets, temperature {average['temperature']:g}, "
        f"{average['concurrency']} at a time: {speed_up}tokens/round {lengths}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns to their widest cell; a row with fewer cells is a remark, and does not widen any."""
    if not rows:
        return []
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        if len(row) < len(widths):
            lines.append(" " * (widths[0] + 2) + row[-1])
        else:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            cells[1] = row[1].ljust(widths[1])
            lines.append("  ".join(cells))
    return lines
