"""The picture: no-ops drained a second by everyone, as SVG that is legible on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tests.bench.runs import Medians, Run, spread

WIDTH, ROW, TOP, LEFT, RIGHT = 900, 34, 58, 370, 90
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px; fill: #59636e }
.ours { fill: #1a7f37 } .other { fill: #8c959f } .spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 }
  .ours { fill: #3fb950 } .other { fill: #656c76 } .spread { stroke: #f0f6fc }
}
"""


def picture(runs: Sequence[Run], caption: str) -> str:
    """Bars in the order of their length: the median, with a line from the least to the most."""
    found = []
    for group in Medians(runs).groups():
        first = group[0]
        if first.kind == "drain" and first.workload == "noop" and not first.setting:
            measured = spread(group, "rate")
            if measured is not None:
                found.append((measured, first))
    found.sort(key=lambda one: -one[0][0])
    longest = max((most for (_, _, most), _ in found), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + ROW * len(found) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img" aria-label="{escape(caption)}">',
        f"<style>{_STYLE}</style>",
        '<text x="12" y="24" font-weight="600">No-op jobs drained a second</text>',
        f'<text x="12" y="42" class="small">{escape(caption)}</text>',
    ]
    for number, (measured, run) in enumerate(found):
        parts += _bar(TOP + ROW * number, measured, run, scale)
    return "\n".join([*parts, "</svg>", ""])


def _bar(top: int, measured: tuple[float, float, float], run: Run, scale: float) -> list[str]:
    median, least, most = measured
    name, _, rest = run.title.partition(", ")
    kind = "ours" if run.contender.startswith("ledger-") else "other"
    spread_line = f"M{LEFT + least * scale:.1f} {top + 11}H{LEFT + most * scale:.1f}"
    return [
        f'<text x="{LEFT - 10}" y="{top + 11}" text-anchor="end">{escape(name)}</text>',
        f'<text x="{LEFT - 10}" y="{top + 24}" text-anchor="end" class="small">'
        f"{escape(rest)}</text>",
        f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{median * scale:.1f}" height="22"'
        ' rx="2"/>',
        f'<path class="spread" d="{spread_line}"/>',
        f'<text x="{LEFT + most * scale + 8:.1f}" y="{top + 16}">{median:,.0f}</text>',
    ]
