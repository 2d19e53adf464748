"""The ``seal`` command. Imports the rest late, so that ``seal --help`` is instant."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from seal.cli.flags import FILE_COMMANDS
from seal.records import Json, LoraError, SealError, Stopped

SETTINGS = """\
Settings come from a TOML file named after @, then from flags over it, dotted where they are nested:

    seal train @ configs/atlas.toml --rounds 3 --inner.recipe.learning_rate 3e-3 --name my-run

--dry-run prints what the settings come to, and what the run will cost, and does nothing. Every setting is described in seal.config.
--no-lock is for disks that know no locks: that nobody else writes the folder is then yours to see to.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did its work, 2 if the user has something to put right, 130 if interrupted. On
    SIGTERM it finishes the wave it is at, saves it, and ends with 143, as what a signal ended and is not
    done; on a second one it ends at once."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # of a terminal that is not UTF-8
    if argv is None:
        _heed_interrupts_once()
    try:
        return _run(words)
    except LoraError as error:  # SealError is one
        print(f"seal: {error}", file=sys.stderr)
        return 2
    except Stopped:
        print("seal: stopped as asked, and saved; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        goes_on = bool(words) and words[0] in (*COMMANDS, "learn")
        print("seal: interrupted" + "; the same command goes on where it stopped" * goes_on, file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of a file or folder that was named, where nobody foresaw it
        if error.errno is None:
            raise
        what = "what there is to say" if error.filename is None else str(error.filename)[:200]
        print(f"seal: cannot write or read {what}: {error.strerror}", file=sys.stderr)
        if error.filename is None:  # standard output, which would fail once more at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


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
        "With --control also the control loop (SFT on random edits); --controls random,worst,others names "
        "several: the edits that did worst,\n"
        "and SEAL's kept edits after the prompts of other tasks.",
    )
    add(
        "eval",
        "the table of writers on held-out tasks, for a run that has been trained",
        "With --json FILE the table is also written as JSON. --split select uses the selection tasks instead "
        "of the held-out ones\n(to choose settings on). --rounds 0 compares writers before any "
        "reinforcement.",
    )
    add(
        "try",
        "one passage, everything shown: prompt, edits, training rows, answers before and after, reward",
        "--task N picks the task, --policy DIR a trained policy.\n"
        "--passage FILE takes a passage of yours: a document, or passages with questions as JSON; --ask 'QUESTION? "
        "ANSWER' (again and\nagain) asks your own. It is asked with the text in view, closed book, and by the "
        "adapter of each edit. --model NAME is short for\n--model.name: seal try --model smollm2-135m-q4 "
        "--passage handbook.md --ask 'When was it built? 1862'",
    )
    add(
        "continual",
        "learn passages one after the other, and see what stays: strategies against forgetting, side by side",
        '--continual.strategies \'["merge", "replay:0.5", "library"]\' names them; --continual.sequences, '
        "--continual.length. With --json FILE the table is\nalso written as JSON, with --figure FILE the "
        "matrices are drawn; --beside FILE sets a result file of the original experiment beside them.",
    )
    for name, (text, more, arguments) in FILE_COMMANDS.items():
        sub = add(name, text, more, settings=False)
        for flags, options in arguments:
            sub.add_argument(*flags, **options)
    return parser


GONE = {
    "chat": "`seal ask` without a question is a chat",
    "judge": "it is `seal check graders FILE` now",
    "noise": "it is `seal check reward SOURCE` now",
    "merge": "it is `seal export TAUGHT --merge FOLDER` now",
}
"""Commands of earlier versions, and where what they did is to be had."""


def _run(argv: list[str]) -> int:
    if "--no-lock" in argv and argv[0] in (*COMMANDS, "learn", "edits"):
        from seal import store

        argv = [word for word in argv if word != "--no-lock"]
        store.no_locks()
        print("seal: no lock is taken: see to it that no other process writes the folder", file=sys.stderr)
    if argv[:1] and argv[0] in GONE:
        raise SealError(f"there is no command {argv[0]} any more: {GONE[argv[0]]}")
    with_settings = argv[:1] and argv[0] in COMMANDS and not {"-h", "--help"} & set(argv)
    args = _parser().parse_args(argv[:1] if with_settings else argv)  # settings are not argparse's to read
    if args.command in FILE_COMMANDS:
        from seal.cli import commands, export, models

        if args.command in ("learn", "edits"):
            _heed_sigterm()
        if commands.takes_model(args):
            _ready_for_models()
        apart = {"model": models.model, "export": export.export}
        if args.command in apart:
            return apart[args.command](args)
        return int(getattr(commands, args.command.replace("import", "import_"))(args))
    own, settings = _own_flags(args.command, argv[1:])
    from seal.config import load_config

    if args.command == "demo" and not own["config"]:
        own["config"] = str(Path(__file__).parents[1] / "configs" / f"{DEMOS[own['demo']]}.toml")
        settings = ["--name", (own["demo"] and f"demo-{own['demo']}") or "demo", *settings]
    if own["model"]:
        settings += ["--model.name", own["model"]]
    config = load_config(own["config"], settings)
    if "name" not in config.model.model_fields_set:
        from seal.cli.models import default_model

        config = load_config(own["config"], ["--model.name", default_model(), *settings])
    if own["dry_run"]:
        print(json.dumps(json.loads(config.model_dump_json()), indent=2))
        return _say_cost(args.command, config, own)
    _heed_sigterm()
    _ready_for_models()
    return COMMANDS[args.command](config, own)


DEMOS = {"": "atlas", "arc": "arc"}
"""What ``seal demo`` can show, and the config of each."""
OWN = {
    "demo": ("--json",),
    "train": ("--control", "--controls"),
    "eval": ("--json", "--split"),
    "try": ("--task", "--policy", "--passage", "--model", "--ask"),
    "continual": ("--json", "--figure", "--beside"),
}
"""Flags of a command that are no settings."""


def _own_flags(command: str, rest: Sequence[str]) -> tuple[Json, list[str]]:
    """The command's own flags (``@ FILE``, ``--dry-run``, and those of :data:`OWN`) and the rest."""
    own: Json = {
        "config": None,
        "dry_run": False,
        "control": False,
        "controls": None,
        "json": None,
        "figure": None,
        "beside": None,
        "task": 0,
        "policy": None,
        "passage": None,
        "model": None,
        "ask": [],
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
            if word == "--ask":
                own["ask"].append(queue.pop(0))
            else:
                own[word[2:]] = queue.pop(0)
        else:
            settings.append(word)
    try:
        own["task"] = int(own["task"])
    except ValueError as error:
        raise SealError(f"--task takes a number, not {own['task']!r}") from error
    return own, settings


def _heed_interrupts_once() -> None:
    """The first Ctrl-C ends the command; another one while it is ending changes nothing."""

    def heed(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, heed)


def _heed_sigterm() -> None:
    from seal.store import stop_when_saved

    def heed(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop_when_saved()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, heed)


def _ready_for_models() -> None:
    """The heap set up, and the libraries' own chatter and bars off; ours are enough."""
    from seal.lora.heap import tune_heap

    tune_heap()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
    import logging as standard

    standard.getLogger("huggingface_hub").setLevel(standard.ERROR)


def _controls(command: str, config: Any, own: Json) -> list[str]:
    """The controls that a command trains, or has a table of."""
    from seal.loop.evaluate import trained_controls

    if command == "eval":
        return [b.name for b in trained_controls(config.folder, config.rounds)]
    named = own["controls"].split(",") if own["controls"] else []
    return ["random"] if command == "demo" else [*(["random"] * own["control"]), *named]


def _cost(command: str, config: Any, controls: list[str]) -> Any:
    from seal.loop.cost import reckon

    return reckon(config, command, controls)


def _say_cost(command: str, config: Any, own: Json) -> int:
    """What a dry run comes to; on standard error, as the settings are to be read by programs. They are in
    order also where a model is not at hand."""
    if command == "try":
        return 0
    from seal.lora.load import shape_of
    from seal.records import LoraError, SealError

    _ready_for_models()
    try:
        if not config.model.name.startswith("fake:"):
            print(f"seal: model    {shape_of(config.model)[1].words()}", file=sys.stderr)
        cost = _cost(command, config, _controls(command, config, own))
    except (SealError, LoraError) as error:
        print(f"seal: what it costs cannot be reckoned: {error}", file=sys.stderr)
        return 0
    nothing = ["seal: of a scripted model nothing is reckoned"]
    print("\n".join(cost.lines("seal: reckoned") if cost else nothing), file=sys.stderr)
    return 0


def _train(config: Any, own: Json) -> int:
    from seal.loop.cost import compared
    from seal.loop.verbs import train
    from seal.report.tables import round_rewards

    controls = _controls("train", config, own)
    with compared(config.folder, config.model.device, lambda: _cost("train", config, controls)):
        folder = train(config, controls)
    for row in round_rewards(folder, "seal", config.rounds):
        print(
            f"round {row['round']:.0f}: mean reward ({config.inner.reward}) {row['mean']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}] over {row['attempts']:.0f} attempts, accuracy "
            f"{row['after']:.3f}, unadapted {row['before']:.3f}, bad edits {row['bad']:.1%}, cut off "
            f"{row['cut']:.1%}"
        )
    if config.rounds:
        print(f"policy: {folder / f'seal/round-{config.rounds}/policy'}")
    return 0


def _eval(config: Any, own: Json) -> int:
    from seal.cli.commands import command_line, must_be_new, print_table
    from seal.loop.cost import compared
    from seal.loop.verbs import evaluate, results_path
    from seal.records import record_text
    from seal.report.pages import write_report
    from seal.report.tables import summarise
    from seal.store import read_json, write_whole

    must_be_new(own["json"])
    controls = _controls("eval", config, own)
    with compared(config.folder / own["split"], config.model.device, lambda: _cost("eval", config, controls)):
        evaluate(config, own["split"])
    summary = summarise([read_json(results_path(config.folder, own["split"]))], command_line())
    if own["json"]:
        write_whole(Path(own["json"]), record_text(summary))
    if own["split"] == "eval" and not (config.folder / "report.html").exists():
        write_report(config.folder)
    print_table(summary)
    if own["split"] == "eval":
        print(f"report: {config.folder / 'report.html'}")
    return 0


def _demo(config: Any, own: Json) -> int:
    from seal.cli.commands import must_be_new
    from seal.loop.cost import compared
    from seal.loop.verbs import evaluate, train

    must_be_new(own["json"])
    say = f"{config.rounds} rounds of {config.tasks_per_round} tasks × {config.edits_per_task} edits"
    print(f"SEAL on {config.model.name}: {say}, in {config.folder}", file=sys.stderr)
    with compared(config.folder, config.model.device, lambda: _cost("demo", config, ["random"])):
        train(config, ["random"])
        evaluate(config)
    return _eval(config, own)


def _try(config: Any, own: Json) -> int:
    from seal.loop.show import show_task
    from seal.teach.show import show_passage

    if own["passage"]:
        show_passage(config, Path(own["passage"]), own["task"], own["ask"], own["policy"])
    elif own["ask"]:
        raise SealError("--ask is of a passage of yours: --passage FILE")
    else:
        show_task(config, own["task"], own["policy"])
    return 0


def _continual(config: Any, own: Json) -> int:
    from datetime import date

    from seal.cli.commands import must_be_new, report_continual
    from seal.loop.cost import compared
    from seal.lora.load import threads_of
    from seal.machine import environment, machine
    from seal.memory.stream import Continual
    from seal.store import Store, write_whole

    must_be_new(own["json"], own["figure"])
    store = Store(config, environment(threads_of(config.model)))
    experiment = Continual(config, store)
    record: Json = {"date": date.today().isoformat(), "machine": machine(), "seed": config.seed}
    with compared(store.folder / "continual", config.model.device, lambda: _cost("continual", config, [])):
        record |= {"untouched": experiment.untouched(), "baseline": experiment.baseline()}
        record["results"] = [experiment.run(name) for name in config.continual.strategies]
    path = store.folder / "continual.json"
    if not path.exists():
        write_whole(path, json.dumps(record))
    report_continual([store.folder], own["json"], own["figure"], [own["beside"]] if own["beside"] else [])
    return 0


COMMANDS = {"demo": _demo, "train": _train, "eval": _eval, "try": _try, "continual": _continual}
"""The commands that take settings."""

if __name__ == "__main__":
    sys.exit(main())
