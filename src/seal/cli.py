"""The ``seal`` command. Imports the rest late, so that ``seal --help`` is instant."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal.types import SealError

SETTINGS = """\
Settings come from a TOML file named after @, then from flags over it, dotted where they are nested:

    seal train @ configs/atlas.toml --rounds 3 --inner.recipe.learning_rate 3e-3 --name my-run

--dry-run prints what the settings come to and does nothing. Every setting is described in seal.config.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did its work, 2 if the user has something to put right, 130 if interrupted."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except SealError as error:
        print(f"seal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("seal: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="seal",
        formatter_class=form,
        description="Self-adapting language models: a model reads something new, writes its own finetuning data (a\n"
        "self-edit), is finetuned on it, and learns by reinforcement to write edits that help.",
        epilog="Start with `seal demo`: everything on the embedded model, offline, in a few minutes.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, more: str = "", settings: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, formatter_class=form, description=text + "\n\n" + more)
        if settings:
            sub.epilog = SETTINGS
            sub.usage = f"seal {name} [@ FILE] [--part.name VALUE ...] [--dry-run]"
        return sub

    add(
        "demo",
        "the whole story on an embedded model: learn to edit, compare writers, write a report",
        "`seal demo` learns from passages, `seal demo arc` from puzzles.",
    )
    add(
        "train",
        "the outer loop: rounds of write, try, select, imitate",
        "With --control also the control loop (SFT on random edits).",
    )
    add(
        "eval",
        "the table of writers on held-out tasks, for a run that has been trained",
        "With --json FILE the table is also written as JSON. --split select uses the selection tasks instead of the held-out ones\n(to choose settings on). --rounds 0 compares writers before any reinforcement.",
    )
    add(
        "try",
        "one passage, everything shown: prompt, edits, training rows, answers before and after, reward",
        "--task N picks the task, --policy DIR a trained policy.",
    )
    check = add("check", "test a domain without a model: gold answers must grade 1, silence 0", settings=False)
    check.add_argument("domain", help="my_domain.py:MyDomain, or knowledge")
    check.add_argument("--options", default="{}", help="its options, as JSON")
    judge = add(
        "judge",
        "how far the graders agree with known verdicts: accuracy, kappa, bias in points, by length of the answer",
        "FILE holds JSON lines (also .gz): {question, gold, answer, right}.",
        settings=False,
    )
    judge.add_argument("file", type=Path)
    judge.add_argument("--json", type=Path, help="also write the figures here")
    noise = add(
        "noise",
        "how much of a reward is the edit and how much is luck (seed, questions), and how far selection can be trusted",
        "SOURCE is a run folder whose edits were tried under several seeds (--inner.seeds 3), or one of SEAL's result files.",
        settings=False,
    )
    noise.add_argument("source", type=Path)
    noise.add_argument("--json", type=Path, help="also write the figures here")
    report = add("report", "one page per run, and the table over several runs (seeds)", settings=False)
    report.add_argument("runs", nargs="+", type=Path, help="run folders")
    report.add_argument("--json", type=Path, help="also write the table here")
    report.add_argument("--figure", type=Path, help="also draw the table here (.png, .svg or .pdf)")
    return parser


def _run(argv: list[str]) -> int:
    with_settings = argv[:1] and argv[0] in COMMANDS and not {"-h", "--help"} & set(argv)
    args = _parser().parse_args(argv[:1] if with_settings else argv)  # settings are not argparse's to read
    if args.command == "check":
        return _check(args.domain, args.options)
    if args.command == "judge":
        return _judge(args.file, args.json)
    if args.command == "noise":
        return _noise(args.source, args.json)
    if args.command == "report":
        return _report(args.runs, args.json, args.figure)
    own, settings = _own_flags(args.command, argv[1:])
    from seal.config import load_config

    if args.command == "demo" and not own["config"]:
        own["config"] = str(Path(__file__).parent / "configs" / f"{DEMOS[own['demo']]}.toml")
        settings = ["--name", (own["demo"] and f"demo-{own['demo']}") or "demo", *settings]
    config = load_config(own["config"], settings)
    if args.command in ("demo", "train") and config.model.quantize and config.rounds:
        raise SealError(
            "model.quantize: the outer loop merges into the weights, which 4-bit ones do not allow; take --rounds 0 or none"
        )
    if own["dry_run"]:
        print(json.dumps(json.loads(config.model_dump_json()), indent=2))
        return 0
    _offline_quiet()
    return COMMANDS[args.command](config, own)


DEMOS = {"": "atlas", "arc": "arc"}
"""What ``seal demo`` can show, and the config of each."""
OWN = {
    "demo": ("--json",),
    "train": ("--control",),
    "eval": ("--json", "--split"),
    "try": ("--task", "--policy"),
}
"""Flags of a command that are no settings."""


def _own_flags(command: str, rest: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The command's own flags (``@ FILE``, ``--dry-run``, and those of :data:`OWN`) and the rest."""
    own: dict[str, Any] = {
        "config": None,
        "dry_run": False,
        "control": False,
        "json": None,
        "task": 0,
        "policy": None,
        "split": "eval",
        "demo": "",
    }
    settings: list[str] = []
    queue = list(rest)
    if command == "demo" and queue and queue[0] in DEMOS:
        own["demo"] = queue.pop(0)
    while queue:
        word = queue.pop(0)
        flag, equals, value = word.partition("=")
        if equals and flag in OWN[command]:
            word = flag
            queue.insert(0, value)
        if word.startswith("@"):
            own["config"] = word[1:] or (queue.pop(0) if queue else None)
            if not own["config"]:
                raise SealError("@ names no config file")
        elif word == "--dry-run" or (word == "--control" and word in OWN[command]):
            own[word[2:].replace("-", "_")] = True
        elif word in OWN[command]:
            if not queue:
                raise SealError(f"{word} has no value")
            own[word[2:]] = queue.pop(0)
        else:
            settings.append(word)
    try:
        own["task"] = int(own["task"])
    except ValueError as error:
        raise SealError(f"--task takes a number, not {own['task']!r}") from error
    return own, settings


def _offline_quiet() -> None:
    """Libraries' own chatter and bars off; ours are enough."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
    import logging as standard

    standard.getLogger("huggingface_hub").setLevel(standard.ERROR)


def _open(config: Any) -> Any:
    from seal.results import environment
    from seal.store import Store

    return Store(config, environment())


def _train(config: Any, own: dict[str, Any]) -> int:
    from seal.loop import run
    from seal.report import round_rewards

    store = _open(config)
    run(config, store)
    if own["control"]:
        run(control_of(config), store, "control")
    for row in round_rewards(store.folder, "seal", config.rounds):
        print(
            f"round {row['round']:.0f}: mean reward {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] over "
            f"{row['attempts']:.0f} attempts, unadapted {row['before']:.3f}, bad edits {row['bad']:.1%}"
        )
    if config.rounds:
        print(f"policy: {store.folder / f'seal/round-{config.rounds}/policy'}")
    return 0


def control_of(config: Any) -> Any:
    """The same run with the control's selection: as many edits imitated, drawn without looking at the reward."""
    return config.model_copy(update={"outer": config.outer.model_copy(update={"select": "random_of"})})


def _eval(config: Any, own: dict[str, Any]) -> int:
    import time

    from seal.evaluate import CONTROL, Evaluation
    from seal.report import write_report
    from seal.results import run_record, summarise
    from seal.store import read_json, write_whole

    _must_be_new(own["json"])
    store = _open(config)
    missing = [r for r in range(1, config.rounds + 1) if not (store.folder / f"seal/round-{r}/policy").exists()]
    if missing:
        raise SealError(f"{store.folder} has no policy of round {missing[0]}: run `seal train` with the same settings first")
    split = own["split"]
    if split not in ("eval", "select"):
        raise SealError(f"--split is eval or select, not {split!r}: what a policy was trained on proves nothing")
    path = store.folder / ("results.json" if split == "eval" else "results-select.json")
    control = (store.folder / f"control/round-{config.rounds}/policy").exists()
    if not path.exists():
        start = time.monotonic()
        evaluation = Evaluation(config, store, split)
        results = evaluation.table(control)
        names = [t.id for t in evaluation.tasks]
        write_whole(path, json.dumps(run_record(config, results, names, time.monotonic() - start), indent=1))
    record = read_json(path)
    if control and not any(s["setting"] == CONTROL for s in record["settings"]):
        raise SealError(f"{path} was made before the control was trained: move it and the report away, and run this again")
    summary = summarise([record], _command())
    _print_table(summary)
    if own["json"]:
        write_whole(Path(own["json"]), json.dumps(summary, indent=1) + "\n")
    if split == "eval":
        if not (store.folder / "report.html").exists():
            write_report(store.folder)
        print(f"report: {store.folder / 'report.html'}")
    return 0


def _must_be_new(*paths: Path | str | None) -> None:
    """Nothing is overwritten, and that is said before the work is done.

    Raises:
        SealError: one of the files to be written is there already.
    """
    for path in paths:
        if path and Path(path).exists():
            raise SealError(f"{path} exists already, and nothing is overwritten: give another name, or move it away")


def _command() -> str:
    return " ".join(["seal", *sys.argv[1:]])


def _demo(config: Any, own: dict[str, Any]) -> int:
    from seal.loop import run

    _must_be_new(own["json"])
    store = _open(config)
    say = (
        f"SEAL on {config.model.name}: {config.rounds} rounds of {config.tasks_per_round} tasks × {config.edits_per_task} edits"
    )
    print(f"{say}, in {store.folder}", file=sys.stderr)
    run(config, store)
    run(control_of(config), store, "control")
    del store
    return _eval(config, own)


def _print_table(summary: dict[str, Any]) -> None:
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


def _try(config: Any, own: dict[str, Any]) -> int:
    from seal.show import show_task

    show_task(config, own["task"], own["policy"])
    return 0


def _check(name: str, options: str) -> int:
    from seal.check import check_domain
    from seal.domains import load_domain

    try:
        parsed = json.loads(options)
    except json.JSONDecodeError as error:
        raise SealError(f"--options is not JSON: {error}") from error
    for line in check_domain(load_domain(name, parsed)):
        print(line)
    return 0


def _judge(file: Path, out: Path | None) -> int:
    from rich import box
    from rich.table import Table

    from seal.judge import judge_graders, read_verdicts
    from seal.progress import Console
    from seal.store import write_whole

    _must_be_new(out)
    report = judge_graders(read_verdicts(file))
    table = Table("grader", "answers of", "n", "accuracy", "kappa", "bias, points", box=box.SIMPLE_HEAD)
    for name, rows in report.items():
        for label, row in rows.items():
            table.add_row(name, label, str(row["n"]), f"{row['accuracy']:.3f}", f"{row['kappa']:.3f}", f"{row['bias']:+.1f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if out:
        write_whole(out, json.dumps({"command": _command(), "graders": report}, indent=1) + "\n")
    return 0


def _noise(source: Path, out: Path | None) -> int:
    from seal.noise import read_scores, report
    from seal.store import write_whole

    _must_be_new(out)
    found = report(read_scores(source))
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, number in value.items():
                print(f"  {inner:<32} {number:g}")
        else:
            print(f"{name:<34} {value:g}")
    if out:
        write_whole(out, json.dumps({"command": _command(), **found}, indent=1) + "\n")
    return 0


def _report(runs: list[Path], out: Path | None, figure: Path | None) -> int:
    from seal.report import accuracy_figure, write_report
    from seal.results import load_runs, summarise
    from seal.store import write_whole

    _must_be_new(out, figure)
    if figure and (figure.suffix not in (".png", ".svg", ".pdf") or not figure.parent.is_dir()):
        raise SealError(f"cannot draw {figure}: the folder must be there, and the name end in .png, .svg or .pdf")
    summary = summarise(load_runs(runs), _command())
    _print_table(summary)
    if out:
        write_whole(out, json.dumps(summary, indent=1) + "\n")
    if figure:
        try:
            accuracy_figure(summary).savefig(figure, dpi=160)
        except (OSError, ValueError) as error:
            raise SealError(f"cannot draw {figure}: {error}") from error
    for run in runs:
        if not (run / "report.html").exists():
            write_report(run)
        print(f"report: {run / 'report.html'}")
    return 0


COMMANDS = {"demo": _demo, "train": _train, "eval": _eval, "try": _try}
"""The commands that take settings."""

if __name__ == "__main__":
    sys.exit(main())
