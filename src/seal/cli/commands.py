"""The commands that take files and flags: a function for each, of its parsed arguments. Imports the rest
late."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

from seal.config import first_of
from seal.records import Card, Json, SealError, Table


def must_be_new(*paths: Path | str | None) -> None:
    """Nothing is overwritten, and that is said before the work is done.

    Raises:
        SealError: one of the files to be written is there already.
    """
    for path in paths:
        if path and Path(path).exists():
            raise SealError(
                f"{path} exists already, and nothing is overwritten: give another name, or move it away"
            )


def command_line() -> str:
    """The command as it was given, for the record."""
    return " ".join(["seal", *sys.argv[1:]])


def print_lines(lines: list[list[str]], bold: str = "SEAL round") -> None:
    """A table of text cells, header first; rows that begin with ``bold`` stand out."""
    from rich import box
    from rich.table import Table

    from seal.progress import Console

    head, *rows = lines
    table = Table(*head, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith(bold) else None)
    width = sum(max(map(len, column)) for column in zip(*lines, strict=True)) + 4 * len(head)
    Console(width=None if sys.stdout.isatty() else width).print(table)


def print_table(summary: Table) -> None:
    """The table of writers and the paired differences, on the terminal."""
    from seal.report.tables import difference_lines, table_lines

    n = summary["rows"][0]
    print(f"{n['n_passages']} held-out tasks, {n['n_questions']} questions:")
    print_lines(table_lines(summary))
    for line in difference_lines(summary):
        print("  " + line)


def takes_model(args: Namespace) -> bool:
    """Whether a command may load a model."""
    if args.command == "check":
        return bool(args.grader)
    if args.command == "export":
        return bool(args.merge) or args.kind == "gguf"
    return args.command in ("learn", "edits", "ask", "quiz", "model")


def check(args: Namespace) -> int:
    """``seal check``: a domain, graders, or a reward."""
    kinds = {"graders": check_graders, "reward": check_reward}
    odd = {
        "graders": ("options", "reward"),
        "reward": ("options", "grader", "limit"),
        "domain": ("source", "grader", "limit", "reward", "json"),
    }
    kind = args.what if args.what in kinds else "domain"
    if wrong := next((n for n in odd[kind] if getattr(args, n) is not None), None):
        raise SealError(f"seal check {args.what}: {'--' * (wrong != 'source')}{wrong} says nothing to it")
    if kind != "domain" and args.source is None:
        raise SealError(f"seal check {kind} needs a file: see seal check --help")
    return kinds.get(kind, check_domain)(args)


def check_domain(args: Namespace) -> int:
    """A domain's five methods, without a model."""
    from seal.domains import load_domain
    from seal.domains.check import check_domain as passed

    try:
        options = json.loads(args.options or "{}")
    except json.JSONDecodeError as error:
        raise SealError(f"--options is not JSON: {error}") from error
    for line in passed(load_domain(args.what, options)):
        print(line)
    return 0


def check_graders(args: Namespace) -> int:
    """Graders against known verdicts."""
    from seal.report.agreement import judge_graders, read_verdicts
    from seal.store import write_whole

    must_be_new(args.json)
    judges = {name: load_judge(name) for name in args.grader or ()}
    report = judge_graders(read_verdicts(args.source)[: args.limit], judges)
    lines = [
        [name, label, str(row["n"]), f"{row['accuracy']:.3f}", f"{row['kappa']:.3f}", f"{row['bias']:+.1f}"]
        for name, rows in report.items()
        for label, row in rows.items()
    ]
    print_lines([["grader", "answers of", "n", "accuracy", "kappa", "bias, points"], *lines])
    if args.json:
        write_whole(args.json, json.dumps({"command": command_line(), "graders": report}, indent=1) + "\n")
    return 0


def load_judge(name: str) -> Any:
    """A judge by name: ``http://host/v1#model``, or ``hf:MODEL``.

    Raises:
        SealError: it is neither, or cannot be loaded.
    """
    from seal.domains.judges import EndpointJudge
    from seal.endpoint import is_endpoint

    if is_endpoint(name):
        return EndpointJudge(name)
    if not name.startswith("hf:"):
        raise SealError(f"no judge is named {name!r}: say http://…#model, or hf:MODEL")
    from seal.loop.judge import LocalJudge
    from seal.lora.load import load_model
    from seal.lora.records import ModelSpec

    return LocalJudge(load_model(ModelSpec(name=name.removeprefix("hf:"))))


def check_reward(args: Namespace) -> int:
    """Variance components of a reward."""
    from seal.report.reliability import estimators, read_scores
    from seal.report.reliability import report as noise_report
    from seal.store import read_config, write_whole

    must_be_new(args.json)
    known = (args.source / "config.json").is_file()
    own = read_config(args.source)["inner"]["reward"] if known else "accuracy"
    found = {"reward": args.reward or own} | noise_report(read_scores(args.source, args.reward or own))
    if args.source.is_dir():
        found |= {f"by {kind}": row for kind, row in estimators(args.source).items()}
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for inner, number in value.items():
                print(f"  {inner:<32} {number:g}")
        else:
            print(f"{name:<34} {value:g}" if isinstance(value, float | int) else f"{name:<34} {value}")
    if args.json:
        write_whole(args.json, json.dumps({"command": command_line(), **found}, indent=1) + "\n")
    return 0


def ui(args: Namespace) -> int:
    """``seal ui``: the dashboard."""
    from seal.ui.serve import serve

    serve(args.runs, args.host, args.port)
    return 0


def report(args: Namespace) -> int:
    """``seal report``: pages of runs, and the table over them."""
    from seal.records import record_text
    from seal.report.compare import latex, markdown, sheet_of, sheet_page, write_pdf
    from seal.report.export import write_figures
    from seal.report.pages import write_report
    from seal.store import write_whole

    targets = [
        p for p in (args.json, args.html, args.md, args.latex, args.pdf, args.figure, args.figures) if p
    ]
    must_be_new(*targets)
    if len(set(targets)) < len(targets):
        raise SealError("two outputs have one name: nothing is overwritten")
    if any((run / "continual.json").exists() for run in args.runs):
        if any(p for p in targets if p not in (args.json, args.figure)):
            raise SealError(
                "of continual runs there are --json and --figure; the other forms are of runs of the outer "
                "loop"
            )
        report_continual(args.runs, args.json, args.figure, args.beside)
        return 0
    if args.beside:
        raise SealError("--beside is of continual runs")
    if args.figure and args.figure.suffix not in (".png", ".svg", ".pdf"):
        raise SealError(
            f"cannot draw {args.figure}: the folder must be there, and the name end in .png, .svg or .pdf"
        )
    if missing := next((p for p in targets if p != args.figures and not p.parent.is_dir()), None):
        raise SealError(f"cannot write {missing}: its folder is not there")
    sheet = sheet_of(args.runs, command_line())
    texts = {
        out: form(sheet)
        for out, form in ((args.html, sheet_page), (args.md, markdown), (args.latex, latex))
        if out
    }
    if args.json:
        texts[args.json] = record_text(sheet.record)
    for out, text in texts.items():
        write_whole(out, text)
    if args.figure:
        try:
            sheet.figure().savefig(args.figure, dpi=160)
        except (OSError, ValueError) as error:
            raise SealError(f"cannot draw {args.figure}: {error}") from error
    if args.figures:
        write_figures(args.runs[0], args.figures)
    if args.pdf:
        write_pdf(sheet, args.runs, args.pdf)
    for run in args.runs:
        if not (run / "report.html").exists():
            write_report(run)
    if "experiments" in sheet.record:
        print_lines([sheet.head, *sheet.rows])
        print(*(f"  {line}" for line in (*sheet.differences, *sheet.notes)), sep="\n")
    else:
        print_table(cast(Table, sheet.record))
    for run in args.runs:
        print(f"report: {run / 'report.html'}")
    return 0


def report_continual(
    runs: list[Path], json_file: Path | None, figure: Path | None, beside: list[Path]
) -> None:
    """The table over continual runs (seeds), and in each folder a page of its own."""
    from seal.report.memory import draw, read_released, summarise, table_lines, with_released, write_page
    from seal.store import read_json, write_whole

    records = [read_json(run / "continual.json") for run in runs]
    others = [read_released(Path(path)) for path in beside]
    summary = with_released(summarise(records, command_line()), others)
    if json_file:
        write_whole(Path(json_file), json.dumps(summary, indent=1) + "\n")
    if figure:
        try:
            draw(summary, Path(figure))
        except (OSError, ValueError) as error:
            raise SealError(f"cannot draw {figure}: {error}") from error
    for run, record in zip(runs, records, strict=True):
        if not (run / "report.html").exists():
            write_page(run / "report.html", with_released(summarise([record], command_line()), others))
    print_lines(table_lines(summary))
    for run in runs:
        print(f"report: {run / 'report.html'}")


def learn(args: Namespace) -> int:
    """``seal learn``: teach a model documents, and prove what it knows."""
    from seal.cli.models import default_model
    from seal.config import LearnConfig
    from seal.loop.cost import Cost, compared
    from seal.lora.hardware import Shape
    from seal.records import Recipe
    from seal.teach.ask import open_taught
    from seal.teach.cost import reckon_learn
    from seal.teach.learn import learn as teach
    from seal.teach.learn import passages_for
    from seal.teach.recipes import default_config, default_for

    settings = LearnConfig.model_fields.keys() - {"recipe"}
    given = {n: v for n in settings if (v := getattr(args, n)) is not None}
    if args.prompt:
        given["prompt"] = _template(args.prompt)
    try:
        config = default_config(given.pop("model", None) or default_model(), **given)
        recipe = _recipe(args)
        recipe = Recipe.model_validate({**config.recipe.model_dump(), **recipe}).model_dump()
        config = type(config).model_validate({**config.model_dump(), "recipe": recipe})
    except ValueError as error:
        raise SealError(first_of(error)) from error
    if args.dry_run:
        shape = Shape(config.spec)
        passages = passages_for(shape, args.documents, config.passage_tokens)
        print(f"seal: model    {config.model}: {shape.conventions.words()}")
        default, r = default_for(shape), config.recipe
        told = default.why if default.recipe == r else "as told"
        print(
            f"seal: recipe   rank {r.rank}, alpha {r.alpha:g}, {r.learning_rate:g}, {r.epochs:g} epochs, batch "
            f"{r.batch_size} ({told})"
        )
        print("\n".join(reckon_learn(config, passages, shape).lines("seal: reckoned")))
        return 0

    def reckoned() -> Cost:  # standard input is read once: by now the passages lie in the folder
        return reckon_learn(config, open_taught(args.out).passages, Shape(config.spec))

    with compared(args.out, config.device, reckoned):
        card = teach(config, args.documents, args.out)
    code = _report_card(args.out, card)
    if args.push:
        push(args.out, args.push)
    return code


def _recipe(args: Namespace) -> Json:
    """What the flags say of the recipe; α goes with the rank."""
    given = {
        n: v for n in ("learning_rate", "epochs", "rank", "batch_size") if (v := getattr(args, n)) is not None
    }
    return given | ({"alpha": 2 * args.rank} if args.rank else {})


def _template(given: str) -> str:
    """A prompt variant's name, a template, or the template in a file of that name."""
    try:
        return Path(given).read_text("utf-8") if len(given) < 256 and Path(given).is_file() else given
    except (OSError, UnicodeDecodeError) as error:
        raise SealError(f"--prompt: {given} cannot be read: {error}") from error


def edits(args: Namespace) -> int:
    """``seal edits``: list, show, remove, replay."""
    from seal.teach.edits import list_lines, rebuild, show_lines

    recipe = _recipe(args)
    if args.action == "list":
        print_lines(list_lines(args.folder))
        return 0
    if args.action == "show":
        if len(args.ids) != 1:
            raise SealError("show which passage? seal edits show FOLDER ID")
        print("\n".join(show_lines(args.folder, args.ids[0])).rstrip())
        return 0
    if args.out is None:
        raise SealError(f"where to? seal edits {args.action} FOLDER … --out NEW")
    if bool(args.ids) != (args.action == "remove"):
        raise SealError("remove takes the passages that are to go, replay takes none")
    if args.action == "remove" and (args.model or recipe):
        raise SealError("remove changes nothing else: take replay for another model or recipe")
    try:
        card = rebuild(args.folder, args.out, args.ids, args.model, args.device, **recipe)
    except ValueError as error:
        raise SealError(first_of(error)) from error
    return _report_card(args.out, card)


def _report_card(out: Path, card: Card) -> int:
    """The card on the terminal; 1 if the quiz does not show that it helped."""
    print((out / "README.md").read_text("utf-8").split("---\n", 2)[-1].strip())
    print(f"\ncard: {out / 'README.md'}")
    return 1 if card.get("keep") is False else 0


def push(folder: Path, repo: str) -> None:
    from seal.teach.hub import push

    print(f"sent to {push(folder, repo)}")


def quiz(args: Namespace) -> int:
    """``seal quiz``: passages of documents with questions that the model drafts, as a file that ``seal
    train`` takes."""
    from seal.cli.models import default_model
    from seal.lora.load import load_model
    from seal.lora.records import ModelSpec
    from seal.progress import progress
    from seal.store import write_whole
    from seal.teach.learn import CHUNK, passages_for
    from seal.teach.quiz import draft_quiz

    must_be_new(args.out)
    args.model = args.model or default_model()
    policy = load_model(ModelSpec(name=args.model, device=args.device, bf16="auto"))
    passages = passages_for(policy, args.documents, args.passage_tokens)
    rows = []
    with progress("draft questions", len(passages)) as advance:
        for start in range(0, len(passages), CHUNK):
            some = passages[start : start + CHUNK]
            for passage, record in zip(
                some, draft_quiz(policy, some, args.questions, args.seed), strict=True
            ):
                if record["questions"]:
                    rows.append(
                        {
                            "title": passage["title"],
                            "context": passage["context"],
                            "questions": record["questions"],
                        }
                    )
            advance(len(some))
    if not rows:
        raise SealError(f"{args.model} drafted no sound question for any of {len(passages)} passages")
    write_whole(args.out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    print(
        f"{sum(len(r['questions']) for r in rows)} questions on {len(rows)} of {len(passages)} passages: "
        f"{args.out}"
    )
    return 0


def ask(args: Namespace) -> int:
    """``seal ask``: one question, or one after another until the end of the input."""
    talk = _talk(args)

    def answer(question: str) -> None:
        _say(list(talk.answers(question, args.topic or "", args.compare, args.open_book is not None)))

    if args.question is not None:
        answer(args.question)
        return 0
    a_person = sys.stdin.isatty()
    if a_person:
        print("Each line is a question of its own; an empty line or Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            question = input("? " if a_person else "").strip()
        except EOFError:
            return 0
        if question:
            answer(question)
        elif a_person:
            return 0


def _talk(args: Namespace) -> Any:
    from seal.teach.ask import Talk
    from seal.teach.documents import read_documents

    words = 300  # of a passage in view; a tokenizer is not at hand yet
    documents = (
        list(read_documents([args.open_book], words, lambda text: len(text.split())))
        if args.open_book
        else []
    )
    return Talk(args.adapter, args.model, args.device, documents)


def _say(found: list[tuple[str, str]]) -> None:
    width = max(len(who) for who, _ in found)
    for who, answer in found:
        print(f"{who:<{width}}  {answer or '(silence)'}" if len(found) > 1 else answer)


def import_(args: Namespace) -> int:
    """``seal import``: a result file of SEAL's as a run folder."""
    from seal.loop.released import import_results
    from seal.report.pages import write_report
    from seal.report.tables import load_runs, summarise

    folder = import_results(args.source, args.out)
    print_table(summarise(load_runs([folder]), command_line()))
    print(f"report: {write_report(folder)}")
    return 0


def doctor(_: Namespace) -> int:
    """``seal doctor``: the machine, its rates, and what is missing."""
    from seal.cli.doctor import examine

    print("\n".join(examine()))
    return 0
