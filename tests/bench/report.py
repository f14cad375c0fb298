"""What a bench says, to be read: tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.bench.ratios import BARS
from tests.bench.runs import Medians, Run, spread

#: The figures of each kind: name, heading, how to write one, what to multiply it with.
FIGURES: Mapping[str, Sequence[tuple[str, str, str, float]]] = {
    "drain": (
        ("rate", "jobs/s", "{:,.0f}", 1),
        ("cpu", "µs CPU/job", "{:,.0f}", 1),
        ("worker", "worker", "{:,.0f}", 1),
        ("postgres", "Postgres", "{:,.0f}", 1),
        ("redis", "Redis", "{:,.0f}", 1),
        ("memory", "MB, workers", "{:,.0f}", 1e-6),
    ),
    "enqueue": (("rate", "jobs/s", "{:,.0f}", 1),),
    "floor": (("p50_ms", "p50 ms", "{:.2f}", 1), ("p99_ms", "p99 ms", "{:.2f}", 1)),
    "latency": (
        ("start_p50_ms", "start p50 ms", "{:.1f}", 1),
        ("start_p99_ms", "start p99 ms", "{:.1f}", 1),
        ("result_p50_ms", "result p50 ms", "{:.1f}", 1),
        ("result_p99_ms", "result p99 ms", "{:.1f}", 1),
        ("load", "load/s", "{:,.0f}", 1),
    ),
    "recovery": (("seconds", "s", "{:.1f}", 1),),
}
HEADINGS = {
    "drain": "Drained: median (least to most); processor time of worker, Postgres and Redis",
    "enqueue": "Enqueued by one producer",
    "floor": "One enqueue, in turn with a bare commit and a bare LPUSH",
    "latency": "From the call that enqueues until the start, and until the result is committed",
    "recovery": "From a worker's SIGKILL until the last of its jobs runs again",
}


def line(run: Run) -> str:
    """A run's figures, short."""
    parts = []
    for name, heading, form, times in FIGURES[run.kind]:
        if name in run.figures:
            parts.append(f"{form.format(run.figures[name] * times)} {heading}")
    if run.figures.get("proxy_load"):
        parts.append(f"proxy {run.figures['proxy_load']:.0%} busy")
    if run.figures.get("others", 0) > 0.05:
        parts.append(f"OTHERS took {run.figures['others']:.0%} of the machine")
    if run.figures.get("pause", 0) > 1:
        parts.append(f"a pause of {run.figures['pause']:.1f} s")
    return f"{', '.join(parts)}, {run.seconds:.1f} s"


def tables(runs: Sequence[Run]) -> str:
    """A table for each kind of run; nothing for what was not measured."""
    found = []
    for kind, heading in HEADINGS.items():
        groups = [group for group in Medians(runs).groups() if group[0].kind == kind]
        if groups:
            found.append(f"{heading}:\n\n" + _table(kind, groups))
    return "\n\n".join(found)


def _table(kind: str, groups: Sequence[Sequence[Run]]) -> str:
    columns = FIGURES[kind]
    head = ["", "jobs", *(heading for _, heading, _, _ in columns)]
    lines = [_row(head), _row(["---", "---", *("---:" for _ in columns)])]
    for group in groups:
        first = group[0]
        what = first.workload + (f", {first.setting}" if first.setting else "")
        lines.append(_row([first.title, what, *(_cell(group, *column) for column in columns)]))
    return "\n".join(lines)


def _cell(group: Sequence[Run], name: str, heading: str, form: str, times: float) -> str:
    found = spread(group, name)
    if found is None:
        return ""
    median, least, most = (form.format(value * times) for value in found)
    return f"{median} ({least} to {most})" if heading == "jobs/s" and len(group) > 1 else median


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def verdicts(ratios: Mapping[str, float]) -> str:
    """Each ratio beside its bar."""
    lines = [
        _row(["ratio", "measured", "bar", "", "what"]),
        _row(["---", "---:", "---:", "---", "---"]),
    ]
    for name, bar in BARS.items():
        wanted = f"{bar.side} {bar.bound:g} {bar.unit}"
        if name in ratios:
            verdict = "PASS" if bar.passes(ratios[name]) else "MISSED"
            measured = f"{ratios[name]:.3g} {bar.unit}"
        else:
            verdict, measured = "not measured", ""
        lines.append(_row([name, measured, wanted, verdict, bar.meaning]))
    return "\n".join(lines)


def missed(ratios: Mapping[str, float]) -> list[str]:
    """The ratios that do not clear their bars."""
    return [name for name, value in ratios.items() if not BARS[name].passes(value)]
