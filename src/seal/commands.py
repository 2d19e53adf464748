"""The commands that take files and flags: a function for each, of its parsed arguments. Imports the rest late."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from seal.types import SealError


def must_be_new(*paths: Path | str | None) -> None:
    """Nothing is overwritten, and that is said before the work is done.

    Raises:
        SealError: one of the files to be written is there already.
    """
    for path in paths:
        if path and Path(path).exists():
            raise SealError(f"{path} exists already, and nothing is overwritten: give another name, or move it away")


def command_line() -> str:
    """The command as it was given, for the record."""
    return " ".join(["seal", *sys.argv[1:]])


def print_table(summary: dict[str, Any]) -> None:
    """The table of writers and the paired differences, on the terminal."""
    from rich import box
    from rich.table import Table

    from seal.progress import Console
    from seal.results import difference_lines, table_lines

    head, *rows = table_lines(summary)
    table = Table(*head, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith("SEAL round") else None)
    n = summary["rows"][0]
    width = sum(max(map(len, column)) for column in zip(head, *rows, strict=True)) + 4 * len(head)
    console = Console(width=None if sys.stdout.isatty() else width)
    console.print(f"{n['n_passages']} held-out tasks, {n['n_questions']} questions:")
    console.print(table)
    for line in difference_lines(summary):
        console.print("  " + line, highlight=False)


def check(args: Namespace) -> int:
    """``seal check``: a domain's five methods, without a model."""
    from seal.check import check_domain
    from seal.domains import load_domain

    try:
        parsed = json.loads(args.options)
    except json.JSONDecodeError as error:
        raise SealError(f"--options is not JSON: {error}") from error
    for line in check_domain(load_domain(args.domain, parsed)):
        print(line)
    return 0


def judge(args: Namespace) -> int:
    """``seal judge``: graders against known verdicts."""
    from rich import box
    from rich.table import Table

    from seal.judge import judge_graders, read_verdicts
    from seal.progress import Console
    from seal.store import write_whole

    must_be_new(args.json)
    report = judge_graders(read_verdicts(args.file))
    table = Table("grader", "answers of", "n", "accuracy", "kappa", "bias, points", box=box.SIMPLE_HEAD)
    for name, rows in report.items():
        for label, row in rows.items():
            table.add_row(name, label, str(row["n"]), f"{row['accuracy']:.3f}", f"{row['kappa']:.3f}", f"{row['bias']:+.1f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if args.json:
        write_whole(args.json, json.dumps({"command": command_line(), "graders": report}, indent=1) + "\n")
    return 0


def noise(args: Namespace) -> int:
    """``seal noise``: variance components of a reward."""
    from seal.noise import read_scores
    from seal.noise import report as noise_report
    from seal.store import write_whole

    must_be_new(args.json)
    found = noise_report(read_scores(args.source))
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, number in value.items():
                print(f"  {inner:<32} {number:g}")
        else:
            print(f"{name:<34} {value:g}")
    if args.json:
        write_whole(args.json, json.dumps({"command": command_line(), **found}, indent=1) + "\n")
    return 0


def report(args: Namespace) -> int:
    """``seal report``: pages of runs, and the table over them."""
    from seal.report import accuracy_figure, write_report
    from seal.results import load_runs, summarise
    from seal.store import write_whole

    figure = args.figure
    must_be_new(args.json, figure)
    if figure and (figure.suffix not in (".png", ".svg", ".pdf") or not figure.parent.is_dir()):
        raise SealError(f"cannot draw {figure}: the folder must be there, and the name end in .png, .svg or .pdf")
    summary = summarise(load_runs(args.runs), command_line())
    print_table(summary)
    if args.json:
        write_whole(args.json, json.dumps(summary, indent=1) + "\n")
    if figure:
        try:
            accuracy_figure(summary).savefig(figure, dpi=160)
        except (OSError, ValueError) as error:
            raise SealError(f"cannot draw {figure}: {error}") from error
    for run in args.runs:
        if not (run / "report.html").exists():
            write_report(run)
        print(f"report: {run / 'report.html'}")
    return 0
