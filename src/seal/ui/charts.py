"""Charts as SVG that follow the page's light or dark theme: colours come from its style sheet by class."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from seal.stats import Interval

Point = tuple[float, Interval | float]


def _y(value: float, height: int, low: float, high: float) -> float:
    return 10 + (height - 40) * (1 - (value - low) / (high - low))


def nice(top: float) -> float:
    """The next number of one digit, 1, 2, 4 or 8 times a power of ten, so that quarters of it are short."""
    power = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    return next(x * power for x in (1, 2, 4, 8, 10) if x * power >= top * 0.999) if top > 0 else 1.0


def lines(series: dict[str, Sequence[Point]], label: str, x_label: str, high: float | None = 1.0) -> str:
    """One line per series over whole numbers; intervals as bars."""
    points = [p for row in series.values() for p in row]
    if not points:
        return ""
    tops = [p[1].high if isinstance(p[1], Interval) else p[1] for p in points]
    top = nice(high if high is not None else max(tops))
    width, height, left = 460, 230, 46
    xs = sorted({p[0] for p in points})
    span = max(1.0, xs[-1] - xs[0])

    def x(value: float) -> float:
        return left + 20 + (width - left - 50) * ((value - xs[0]) / span if len(xs) > 1 else 0.5)

    out = [
        f'<svg class="chart" viewBox="0 0 {width} {height + 8 + 18 * len(series)}" role="img" '
        f'aria-label="{html.escape(label)}">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share * top, height, 0, top)
        out.append(f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.3g}</text>')
    for value in xs if len(xs) <= 12 else xs[:: len(xs) // 10]:
        out.append(f'<text x="{x(value):.1f}" y="{height - 10}" text-anchor="middle">{value:g}</text>')
    out.append(
        f'<text x="{(left + width) / 2}" y="{height + 4}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    for number, (name, row) in enumerate(series.items()):
        kind = f"s{number % 6}"
        middle = [(x(at), _y(v.mean if isinstance(v, Interval) else v, height, 0, top)) for at, v in row]
        for (px, _), (_, v) in zip(middle, row, strict=True):
            if isinstance(v, Interval):
                out.append(
                    f'<line class="bar {kind}" x1="{px:.1f}" x2="{px:.1f}" '
                    f'y1="{_y(v.low, height, 0, top):.1f}" y2="{_y(v.high, height, 0, top):.1f}"/>'
                )
        out.append(
            f'<polyline class="line {kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in middle)}"/>'
        )
        out += [f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in middle]
        at = height + 18 * (number + 1) - 2
        out.append(
            f'<line class="line {kind}" x1="{left}" x2="{left + 22}" y1="{at - 4}" y2="{at - 4}"/><text '
            f'x="{left + 30}" y="{at}">{html.escape(name)}</text>'
        )
    return "".join([*out, "</svg>"])


def bars(rows: Sequence[tuple[str, Interval, str]], label: str) -> str:
    """One bar per row (name, mean with its interval, kind of setting)."""
    width, left, step = 640, 230, 26
    height = step * len(rows) + 34
    out = [
        f'<svg class="chart wide" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(label)}">'
    ]

    def x(value: float) -> float:
        return left + (width - left - 60) * max(0.0, min(1.0, value))

    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line class="grid" x1="{x(share):.1f}" x2="{x(share):.1f}" y1="4" y2="{height - 22}"/>')
        out.append(f'<text x="{x(share):.1f}" y="{height - 6}" text-anchor="middle">{share:g}</text>')
    for number, (name, value, kind) in enumerate(rows):
        y = 4 + step * number
        colour = {"seal": "s0", "control": "s1"}.get(kind, "s5")
        out.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{html.escape(name[:34])}</text>')
        out.append(
            f'<rect class="fill {colour}" x="{left}" y="{y + 4}" width="{x(value.mean) - left:.1f}" '
            f'height="{step - 8}"/>'
        )
        out.append(
            f'<line class="ink" x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y + step / 2}" '
            f'y2="{y + step / 2}"/>'
        )
        out.append(f'<text x="{x(value.high) + 6:.1f}" y="{y + 17}">{value.mean:.3f}</text>')
    return "".join([*out, "</svg>"])
