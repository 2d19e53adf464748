"""A table over several runs with its figure: seeds of one experiment, or several experiments beside each
other; as text, Markdown, HTML, LaTeX and PDF."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from seal.records import NO_RL, Json, SealError, Table, seal_round
from seal.report.export import figures_of
from seal.report.figures import PALETTE, accuracy_figure, plain_axes, svg
from seal.report.pages import md_table, page
from seal.report.tables import difference_lines, experiment_of, load_runs, summarise, table_lines
from seal.stats import difference

LAST = "SEAL, last round"
MARKS = tuple(zip(PALETTE, "os^Dvp", strict=False))
SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "−": "$-$",
    "…": "--",
}


@dataclass(frozen=True)
class Sheet:
    """What is to be said over some runs, whatever form it takes."""

    title: str
    source: str
    """Command, date, machine."""
    record: Json | Table
    """Everything, as JSON."""
    head: list[str]
    rows: list[list[str]]
    differences: list[str]
    """Paired, with their intervals, a sentence each."""
    notes: list[str]
    """What else is to be known."""

    def figure(self) -> Any:
        """The table as a picture."""
        return (
            _beside(self.record)
            if "experiments" in self.record
            else accuracy_figure(cast(Table, self.record))
        )


def sheet_of(folders: Sequence[Path], command: str) -> Sheet:
    """The sheet over run folders: of one experiment where they differ in their seeds alone, else of several
    beside each other.

    Raises:
        SealError: a folder has no results.
    """
    records = [load_runs([f])[0] for f in folders]
    if len({f.resolve() for f in folders}) < len(folders):
        raise SealError("a run is named twice")
    groups: dict[str, list[int]] = {}
    for i, r in enumerate(records):
        groups.setdefault(experiment_of(r), []).append(i)
    if len(groups) == 1:
        summary = summarise(load_runs(folders), command)
        head, *rows = table_lines(summary)
        seeds = ", ".join(map(str, summary["seeds"]))
        return Sheet(
            _names(folders),
            _source(summary) + f", seeds {seeds}",
            summary,
            head,
            rows,
            difference_lines(summary),
            [],
        )
    members = [[folders[i] for i in g] for g in groups.values()]
    for name in (_names, lambda m: ", ".join(f.resolve().name for f in m), lambda m: ", ".join(map(str, m))):
        named = {name(m): m for m in members}
        if len(named) == len(members):
            break
    return _comparison(named, command)


def _names(folders: Sequence[Path]) -> str:
    """What the folders' names are without a seed at their end, where that is the same; or all of them."""
    names = [f.resolve().name for f in folders]
    stems = {re.sub(r"[-_.]?(seed)?[-_.]?\d+$", "", n) for n in names}
    return stems.pop() if len(names) > 1 and len(stems) == 1 and "" not in stems else ", ".join(names)


def _source(record: Mapping[str, Any]) -> str:
    return f"{record['command']} · {record['date']} · {record['machine']}"


# ---------------------------------------------------------------------------------------- several experiments


def _comparison(named: Mapping[str, Sequence[Path]], command: str) -> Sheet:
    runs = {name: load_runs(folders) for name, folders in named.items()}
    summaries = {name: summarise(records, command) for name, records in runs.items()}
    cells = {name: {_alias(r["setting"], s["rounds"]): r for r in s["rows"]} for name, s in summaries.items()}
    settings = [
        k
        for k in dict.fromkeys(k for c in cells.values() for k in c)
        if sum(k in c for c in cells.values()) > 1
    ]
    differing_ = differing(
        {name: json.loads(experiment_of(records[0]))[0] or {} for name, records in runs.items()}
    )
    first, *others = runs
    differences: list[Json] = []
    lines, notes = [], []
    for name in others:
        for setting in (LAST, NO_RL.label):
            pair = _paired(runs[name], runs[first], setting)
            if pair is not None:
                differences.append({"a": name, "b": first, "setting": setting, **pair})
                seeds = ", ".join(map(str, pair["seeds"]))
                told = f"{pair['mean']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
                line = f"{setting}: {name} − {first}: {told}"
                lines.append(f"{line} (seeds in common: {seeds})")
        if not any(d["a"] == name for d in differences):
            notes.append(
                f"{name} and {first} share no seed with the same tasks: their difference cannot be paired"
            )
    notes += [
        f"{name}: {', '.join(f'{k} = {v}' for k, v in d.items())}" for name, d in differing_.items() if d
    ]
    record = {
        "command": command,
        "date": max(s["date"] for s in summaries.values()),
        "machine": " and ".join(dict.fromkeys(s["machine"] for s in summaries.values())),
        "experiments": [
            {
                "name": n,
                "runs": [f.name for f in named[n]],
                "seeds": summaries[n]["seeds"],
                "settings": differing_[n],
            }
            for n in named
        ],
        "rows": [
            {
                "setting": k,
                "of": {
                    n: {x: c[k][x] for x in ("accuracy", "low", "high", "tokens")}
                    for n, c in cells.items()
                    if k in c
                },
            }
            for k in settings
        ],
        "differences": differences,
    }
    head = ["writer", *(f"{n} ({len(summaries[n]['seeds'])} runs)" for n in named)]
    rows = [
        [
            k,
            *(
                f"{c[k]['accuracy']:.3f} [{c[k]['low']:.3f}, {c[k]['high']:.3f}]" if k in c else ""
                for c in cells.values()
            ),
        ]
        for k in settings
    ]
    return Sheet(", ".join(named), _source(record), record, head, rows, lines, notes)


def _alias(setting: str, rounds: int) -> str:
    return LAST if setting == seal_round(rounds).label else setting


def same_tasks(a: Json, b: Json) -> bool:
    """Whether two results are of the same tasks: by name, and by fingerprint where both have one."""
    prints = {str(r["fingerprint"]) for r in (a, b) if r.get("fingerprint")}
    return a.get("tasks") == b.get("tasks") and len(prints) < 2


def _paired(a: Sequence[Json], b: Sequence[Json], setting: str) -> Json | None:
    """The difference over the seeds that both have, on the same tasks; ``None`` where there is no such
    pair."""
    scores: list[list[Any]] = [[], []]
    seeds = []
    groups = None
    for mine in a:
        other = next((r for r in b if r["seed"] == mine["seed"] and same_tasks(r, mine)), None)
        found = [
            next((s["scores"] for s in r["settings"] if _alias(s["setting"], r["rounds"]) == setting), None)
            for r in (mine, other)
            if r is not None
        ]
        if len(found) == 2 and None not in found:
            seeds.append(mine["seed"])
            groups = mine.get("groups")
            for row, one in zip(scores, found, strict=True):
                row.append(one)
    if not scores[0]:
        return None
    d = difference(scores[0], scores[1], groups)
    return {"mean": round(d.mean, 4), "low": round(d.low, 4), "high": round(d.high, 4), "seeds": seeds}


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Json]:
    """Of each experiment the settings, as dotted names, that are not the same in all."""
    flat = {name: dict(_flat(s)) for name, s in settings.items()}
    keys = dict.fromkeys(k for f in flat.values() for k in f)
    keep = [k for k in keys if len({json.dumps(f.get(k), sort_keys=True) for f in flat.values()}) > 1]
    return {name: {k: f.get(k) for k in keep} for name, f in flat.items()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _beside(record: Mapping[str, Any]) -> Any:
    """Accuracy by writer, a mark per experiment."""
    rows, names = record["rows"], [e["name"] for e in record["experiments"]]
    figure, axes = plain_axes(8.5, (0.2 + 0.16 * len(names)) * len(rows) + 1.5)
    for y, row in enumerate(reversed(rows)):
        axes.axhline(y, color="#e6e8eb", lw=0.8, zorder=0)
        for place, name in enumerate(names):
            if cell := row["of"].get(name):
                colour, mark = MARKS[place % len(MARKS)]
                at = y + 0.5 * ((len(names) - 1) / 2 - place) / len(names)
                axes.plot([cell["low"], cell["high"]], [at, at], color=colour, lw=1.6)
                axes.plot(cell["accuracy"], at, mark, color=colour, ms=5)
    for place, name in enumerate(names):
        axes.plot(
            [], [], MARKS[place % len(MARKS)][1], color=MARKS[place % len(MARKS)][0], label=_plain(name)
        )
    axes.set_yticks(range(len(rows)), [r["setting"] for r in reversed(rows)])
    axes.set_xlim(0, 1.03)
    axes.set_xlabel("share of questions answered correctly (line: 95 % interval)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=min(3, len(names)), frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def _plain(name: str) -> str:
    """A name as a legend shows it: no formula, and not hidden for the underscore it begins with."""
    return ("\u200a" if name.startswith("_") else "") + name.replace("$", r"\$")


# ------------------------------------------------------------------------------------------------------ forms


def latex(sheet: Sheet) -> str:
    """For booktabs, with the notes as comments under it."""
    lines = [
        r"\begin{tabular}{l" + "r" * (len(sheet.head) - 1) + "}",
        r"\toprule",
        _latex_row(sheet.head),
        r"\midrule",
        *map(_latex_row, sheet.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {line} (95 %, paired)" for line in sheet.differences),
        *(f"% {note}" for note in sheet.notes),
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join("".join(SPECIAL.get(c, c) for c in cell) for cell in cells) + r" \\"


def markdown(sheet: Sheet) -> str:
    """Title, table, notes."""
    title, *notes = (line.replace("<", "&lt;") for line in (sheet.title, *sheet.differences, *sheet.notes))
    return "\n".join(
        [
            f"# {title}",
            "",
            f"`{sheet.source}`",
            "",
            *md_table(sheet.head, sheet.rows),
            "",
            *(f"- {n}" for n in notes),
            "",
        ]
    )


def sheet_page(sheet: Sheet) -> str:
    """One self-contained HTML page."""
    caption = "Accuracy on held-out tasks, by who wrote the self-edit"
    return page(
        "compare.html", title=sheet.title, source=sheet.source, head=sheet.head, rows=sheet.rows,
        notes=[*sheet.differences, *sheet.notes], pictures=[(caption, Markup(svg(sheet.figure())))],
    )  # fmt: skip


def write_pdf(sheet: Sheet, folders: Sequence[Path], out: Path) -> None:
    """Table and figure, then each run's own figures.

    Raises:
        SealError: it cannot be written.
    """
    from matplotlib import pyplot
    from matplotlib.backends.backend_pdf import PdfPages

    try:
        with PdfPages(out, metadata={"Title": f"SEAL: {sheet.title}"}) as pdf:
            for figure in (_table_page(sheet), sheet.figure()):
                pdf.savefig(figure, bbox_inches="tight")
                pyplot.close(figure)
            for folder in folders:
                for name, (figure, _) in figures_of(folder).items():
                    if name != "accuracy":
                        figure.suptitle(folder.resolve().name, y=1.02, fontsize=9, parse_math=False)
                        pdf.savefig(figure, bbox_inches="tight")
                    pyplot.close(figure)
    except OSError as error:
        raise SealError(f"cannot write {out}: {error.strerror}") from error


def _table_page(sheet: Sheet) -> Any:
    from matplotlib import pyplot as plt

    width = max(1.25, max(map(len, sheet.head)) * 0.075)
    figure, axes = plt.subplots(
        figsize=(
            width * len(sheet.head) + 2,
            0.28 * (len(sheet.rows) + len(sheet.differences) + len(sheet.notes) + 3) + 1,
        )
    )
    axes.axis("off")
    table = axes.table(cellText=sheet.rows, colLabels=sheet.head, loc="center", cellLoc="right")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(list(range(len(sheet.head))))
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0.4 if row == 0 else 0)
        cell.visible_edges = "B" if row == 0 else ""
        cell.get_text().set_parse_math(False)
        cell.set_text_props(ha="left" if column == 0 else "right", weight="bold" if row == 0 else "normal")
    axes.set_title(sheet.source.replace(" · ", "\n", 1), fontsize=8, parse_math=False)
    if sheet.differences or sheet.notes:
        axes.text(
            0,
            -0.02,
            "\n".join([*sheet.differences, *sheet.notes]),
            fontsize=8,
            va="top",
            transform=axes.transAxes,
            parse_math=False,
        )
    return figure
