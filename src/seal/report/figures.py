"""A run's figures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from seal.records import NO_RL, Table, control, settings_of

PALETTE = (
    "#0b6e99",
    "#d98c21",
    "#7a9e3f",
    "#a64d79",
    "#5b5ea6",
    "#b5651d",
    "#2f8f83",
    "#c0392b",
    "#6b7280",
    "#111827",
    "#8e6c8a",
)
"""Of every chart; the first of them mean SEAL, its control, and a third thing."""
ACCENT, SECOND, THIRD = PALETTE[:3]
INK, MUTED = "#1b1f24", "#8a929c"


# ---------------------------------------------------------------------------------------------------- figures


def plain_axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif", "svg.hashsalt": "seal"}
    )
    figure, axes = plt.subplots(figsize=(width, height))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def accuracy_figure(summary: Table) -> Any:
    """Accuracy by writer with 95 % intervals; one mark per kind of question beside."""
    rows = summary["rows"]
    figure, axes = plain_axes(8.5, 0.42 * len(rows) + 1.3)
    kinds = list(dict.fromkeys(k for r in rows for k in r["kinds"]))
    of_kind = {"seal": ACCENT, "control": SECOND}
    colours = {label: of_kind.get(s.kind, MUTED) for label, s in settings_of(summary["rounds"]).items()}
    for y, row in enumerate(reversed(rows)):
        colour = colours.get(row["setting"], MUTED)
        axes.barh(y, row["accuracy"], color=colour, alpha=0.85, height=0.62)
        axes.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.6)
        inside = row["accuracy"] > 0.15  # where no mark and no interval is in its way
        at, ink = (0.012, "white") if inside else (row["high"] + 0.012, INK)
        axes.text(
            at,
            y,
            f"{row['accuracy']:.2f}",
            va="center",
            fontsize=9,
            color=ink,
            weight="bold" if inside else "normal",
        )
        if len(kinds) > 1:
            for kind, mark in zip(kinds, "ovsD", strict=False):
                if kind in row["kinds"]:
                    value = row["kinds"][kind]["mean"]
                    axes.plot(
                        value,
                        y,
                        mark,
                        ms=5,
                        mfc="white",
                        mec=INK,
                        label=f"{kind} questions" if y == 0 else None,
                    )
    axes.set_yticks(
        range(len(rows)), [r["setting"] + (f" ({r['note']})" if r["note"] else "") for r in reversed(rows)]
    )
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of questions answered correctly (line: 95 % interval)")
    if len(kinds) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=len(kinds), frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def reward_figure(rewards: Sequence[dict[str, float]], kind: str) -> Any:
    """Mean and best reward (of that ``kind``) of the edits tried in each round, and the accuracy after and
    before them."""
    figure, axes = plain_axes(7, 3.4)
    x = [r["round"] for r in rewards]
    axes.plot(
        x,
        [r["best"] for r in rewards],
        "^--",
        color=MUTED,
        label="best of each task's edits (flattered by luck)",
    )
    axes.errorbar(
        x,
        [r["mean"] for r in rewards],
        yerr=[[r["mean"] - r["low"] for r in rewards], [r["high"] - r["mean"] for r in rewards]],
        fmt="o-",
        color=ACCENT,
        capsize=4,
        label="all edits tried (95 % interval)",
    )
    if kind != "accuracy":
        axes.plot(x, [r["after"] for r in rewards], "D-", color=THIRD, label="accuracy after them")
    axes.plot(x, [r["before"] for r in rewards], "s:", color=SECOND, label="accuracy, unadapted")
    axes.set_xticks(x, [f"round {r}" for r in x])
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"mean reward: {kind}")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncol=2)
    figure.tight_layout()
    return figure


def changes_figure(changes: dict[str, dict[str, float]]) -> Any:
    """Features of the edits before the loop, after the control and after each round."""
    shown = [k for k in next(iter(changes.values())) if k not in ("lines", "words")]
    figure, axes = plain_axes(8.5, 0.45 * len(shown) + 1.2)
    palette = {NO_RL.label: MUTED, control("random").label: SECOND}
    blues = ["#7fb8d1", ACCENT, "#06384f"]
    marks = "os^vD"
    for i, (name, row) in enumerate(changes.items()):
        colour = palette.get(name) or blues[min(len(blues) - 1, i - 2)]
        axes.plot(
            [row.get(k, math.nan) for k in shown],
            range(len(shown)),
            marks[i % 5],
            color=colour,
            ms=8,
            label=name,
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="y", color="#e4e7ea")
    axes.set_axisbelow(True)
    axes.set_xlabel("share (mean over held-out tasks)")
    axes.legend(frameon=False, fontsize=9, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figure.tight_layout()
    return figure


def svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
