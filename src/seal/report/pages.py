"""A run folder as pages people read: ``report.md``, one self-contained ``report.html``, and figures. Reads
only files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal.domains import Domain, load_domain
from seal.domains.knowledge.features import mean_features
from seal.records import NO_RL, Task, seal_round
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
from seal.store import Stage, read_json, write_whole


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and ``report.html`` beside a run's results; the path of the HTML page."""
    config, environment = read_json(folder / "config.json"), read_json(folder / "environment.json")
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
) -> dict[str, Any] | None:
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
    summary: dict[str, Any],
    rewards: Sequence[dict[str, float]],
    changes: dict[str, dict[str, float]],
    example: dict[str, Any] | None,
    config: dict[str, Any],
    environment: dict[str, Any],
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
        out += ["## One task before and after", "", f"**{example['title']}** {example['context']}", ""]
        for name, row in example["edits"].items():
            out += [f"{name}: {row['before']:.2f} → {row['after']:.2f}", "", "```", row["text"], "```", ""]
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    out += [f"Python {environment['python']}, {versions}, {environment['threads']} threads.", ""]
    return "\n".join(out)


def md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    safe = [[c.replace("|", r"\|").replace("<", "&lt;") for c in r] for r in (head, *rows)]
    return [f"| {' | '.join(r)} |" for r in (safe[0], ["---"] * len(head), *safe[1:])]


STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#f4f6f8;--line:#dfe3e8;--good:#2c7a3f;--bad:#b3372f}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#15181c;--soft:#1f242a;--line:#343b43;--good:#7fd08f;--bad:#f0938c}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin-bottom:.2rem}.meta{opacity:.7;font-size:.9rem}table{border-collapse:collapse;width:100%;margin:1rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right}td{white-space:nowrap}td:first-child,th:first-child{text-align:left}
figure{margin:2rem 0;background:#fff;padding:1rem;border-radius:8px;border:1px solid var(--line);color:#1b1f24;overflow-x:auto}
figure svg{max-width:100%;min-width:34rem;height:auto}
figcaption{font-weight:600;margin-bottom:.5rem}.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem}
.card{background:var(--soft);border-radius:8px;padding:1rem}pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem;margin:.5rem 0}
.right{color:var(--good)}.wrong{color:var(--bad)}.scroll{overflow-x:auto}
"""


def _html(
    summary: dict[str, Any],
    figures: Sequence[tuple[str, Any]],
    example: dict[str, Any] | None,
    config: dict[str, Any],
    environment: dict[str, Any],
) -> str:
    e = html.escape
    head, *rows = table_lines(summary)
    table = "".join(f"<tr>{''.join(f'<td>{e(c)}</td>' for c in r)}</tr>" for r in rows)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{e(config['name'])}: SEAL report</title><style>{STYLE}</style>",
        f"<h1>{e(config['name'])}</h1><p class=meta><code>{e(summary['command'])}</code> · "
        f"{e(summary['date'])} · "
        f"{e(summary['machine'])} · seed {summary['seeds'][0]} · model {e(config['model']['name'])}</p>",
        "<h2>Held-out tasks</h2><div "
        f"class=scroll><table><tr>{''.join(f'<th>{e(c)}</th>' for c in head)}</tr>{table}</table></div>",
        "<ul>" + "".join(f"<li>{e(line)}</li>" for line in difference_lines(summary)) + "</ul>",
        "<p class=meta>Intervals: 95 %, over tasks (over groups of them that are alike); differences are "
        "paired over tasks. <em>silent</em>: share "
        "of empty answers. <em>tokens</em>: training tokens per adapter.</p>",
        *(f"<figure><figcaption>{e(title)}</figcaption>{svg(figure)}</figure>" for title, figure in figures),
    ]
    if example:
        parts.append(
            f"<h2>One task, before and after the loop</h2><p><strong>{e(example['title'])}</strong> "
            f"{e(example['context'])}</p>"
        )
        cards = []
        for name, row in example["edits"].items():
            answers = "".join(
                f"<li class={'right' if s else 'wrong'}>{e(q['question'])} "
                f"<strong>{e(a) or '(silence)'}</strong>"
                f"{'' if s else ' — ' + e(q['answer'])}</li>"
                for q, a, s in zip(example["questions"], row["answers"], row["scores"], strict=False)
            )
            cards.append(
                f"<div class=card><strong>{e(name)}</strong>: {row['before']:.2f} → {row['after']:.2f}"
                f"<pre>{e(row['text'])}</pre><ul>{answers}</ul>{example['pictures'][name]}</div>"
            )
        parts.append(f"<div class=pair>{''.join(cards)}</div>")
    versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
    parts.append(
        f"<p class=meta>Python {e(environment['python'])}, {e(versions)}, {environment['threads']} "
        "threads.</p></html>"
    )
    return "\n".join(parts)
