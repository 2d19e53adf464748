"""A run folder as pages people read: ``report.md``, one self-contained ``report.html``, and figures. Reads
only files."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seal.domains import Domain, load_domain
from seal.domains.knowledge.features import mean_features
from seal.records import NO_RL, Json, Table, Task, seal_round
from seal.report.figures import accuracy_figure, changes_figure, reward_figure, svg
from seal.report.tables import (
    difference_lines,
    load_runs,
    round_rewards,
    summarise,
    table_lines,
    texts_of,
    writers_of,
)
from seal.store import Stage, read_config, read_json, write_whole


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and ``report.html`` beside a run's results; the path of the HTML page."""
    config, environment = read_config(folder), read_json(folder / "environment.json")
    records = load_runs([folder])
    summary = summarise(records, records[0]["command"])
    domain = load_domain(config["domain"]["name"], config["domain"]["options"])
    tasks = list(domain.tasks("eval"))
    texts = texts_of(folder, summary)
    changes = {name: mean_features(tasks, t, domain.features) for name, t in texts.items()}
    rewards = round_rewards(folder, "seal", config["rounds"])
    example = _example(folder, domain, tasks, texts)
    write_whole(folder / "report.md", _markdown(summary, rewards, changes, example, config, environment))
    figures = [
        ("Accuracy on held-out tasks, by who wrote the self-edit", accuracy_figure(summary)),
        (
            "Reward of the sampled self-edits, round by round",
            reward_figure(rewards, config["inner"]["reward"]),
        ),
        ("What reinforcement changed in the edits", changes_figure(changes)),
    ]
    page = _html(summary, figures, example, config, environment)
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def _example(
    folder: Path, domain: Domain, tasks: Sequence[Task], texts: dict[str, list[list[str]]]
) -> Json | None:
    """One task with its first edit before and after the loop: of those where it made a difference, the one
    whose gain is the median."""
    rounds = [w for w in writers_of(rounds_in(texts)) if w.kind == "seal"]
    if not rounds or NO_RL.label not in texts:
        return None
    stages = {w.label: Stage(folder / "eval" / w.key) for w in (NO_RL, rounds[-1])}
    firsts = {n: {a.task: a for a in stage.attempts() if a.edit == 0} for n, stage in stages.items()}
    old, new = firsts.values()
    gains = {t.id: new[t.id].after - old[t.id].after for t in tasks}
    order = sorted([t for t in tasks if gains[t.id]] or tasks, key=lambda t: gains[t.id])
    task = order[len(order) // 2]
    number = [t.id for t in tasks].index(task.id)
    edits = {n: found[task.id] for n, found in firsts.items()}
    pictures = {
        n: domain.picture(task, a.text, read_json(stages[n].folder / "before.json")[number], a.answers)
        for n, a in edits.items()
    }
    return {
        "pictures": pictures,
        "title": task.data.get("title", task.id),
        "context": task.data.get("context", ""),
        "questions": task.data.get("questions", []),
        "edits": {n: a.to_json() for n, a in edits.items()},
    }


def rounds_in(texts: dict[str, list[list[str]]]) -> int:
    """After how many rounds edits were written."""
    return next((r for r in range(len(texts), 0, -1) if seal_round(r).label in texts), 0)


# ------------------------------------------------------------------------------------------------------ pages


def _markdown(
    summary: Table,
    rewards: Sequence[dict[str, float]],
    changes: dict[str, dict[str, float]],
    example: Json | None,
    config: Json,
    environment: Json,
) -> str:
    head, *rows = table_lines(summary)
    out = [
        f"# {config['name']}",
        "",
        f"`{summary['command']}` · {summary['date']} · {summary['machine']} · seed {summary['seeds'][0]}",
        "",
        "## Held-out tasks",
        "",
        *md_table(head, rows),
        "",
        *(f"- {line}" for line in difference_lines(summary)),
        "",
        "Intervals: 95 %, over tasks (over groups of them that are alike); differences are paired over "
        "tasks.",
        "",
        f"## Rewards ({config['inner']['reward']}), round by round",
        "",
        *md_table(
            [
                "round",
                "mean reward",
                "95 % interval",
                "best of siblings",
                "accuracy",
                "unadapted",
                "bad edits",
                "cut off",
                "attempts",
            ],
            [
                [
                    str(r["round"]),
                    f"{r['mean']:.3f}",
                    f"{r['low']:.3f} … {r['high']:.3f}",
                    f"{r['best']:.3f}",
                    f"{r['after']:.3f}",
                    f"{r['before']:.3f}",
                    f"{r['bad']:.3f}",
                    f"{r['cut']:.3f}",
                    str(r["attempts"]),
                ]
                for r in rewards
            ],
        ),
        "",
        "## What changed in the edits",
        "",
        *md_table(
            ["", *changes],
            [
                [k, *(f"{c[k]:.3f}" if k in c else "–" for c in changes.values())]
                for k in next(iter(changes.values()), {})
            ],
        ),
        "",
    ]
    if example:
        title, context = (html.escape(plain(str(example[k])), quote=False) for k in ("title", "context"))
        out += ["## One task before and after", "", f"**{title}** {context}", ""]
        for name, row in example["edits"].items():
            out += [f"{name}: {row['before']:.2f} → {row['after']:.2f}", "", *fenced(row["text"]), ""]
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    out += [f"Python {environment['python']}, {versions}, {environment['threads']} threads.", ""]
    return "\n".join(out)


def fenced(text: str) -> list[str]:
    """A text as a block of code, whatever backticks stand in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [fence, text, fence]


def plain(text: str) -> str:
    """A text on one line, with nothing in it that Markdown would take for its own."""
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", " ".join(text.split()))


def md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    safe = [[c.replace("|", r"\|").replace("<", "&lt;") for c in r] for r in (head, *rows)]
    return [f"| {' | '.join(r)} |" for r in (safe[0], ["---"] * len(head), *safe[1:])]


def page(template: str, **values: Any) -> str:
    """A self-contained page by a template of ``templates/``; whatever it is given is escaped, but for
    ``Markup``."""
    places = Environment(
        loader=PackageLoader("seal.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    return places.get_template(template).render(**values)


def _html(
    summary: Table,
    figures: Sequence[tuple[str, Any]],
    example: Json | None,
    config: Json,
    environment: Json,
) -> str:
    head, *rows = table_lines(summary)
    if example:
        example = example | {
            "answered": {
                name: list(zip(example["questions"], edit["answers"], edit["scores"], strict=False))
                for name, edit in example["edits"].items()
            }
        }
    return page(
        "run.html",
        title=config["name"],
        summary=summary,
        head=head,
        rows=rows,
        differences=difference_lines(summary),
        pictures=[(caption, Markup(svg(figure))) for caption, figure in figures],
        example=example,
        config=config,
        environment=environment,
    )
