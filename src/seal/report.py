"""A run folder as pages people read: ``report.md``, one self-contained ``report.html``, and figures. Reads only files."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal.domains import Domain, load_domain
from seal.evaluate import CONTROL, EXTERNAL, NO_RL
from seal.features import mean_features
from seal.results import difference_lines, load_runs, summarise, table_lines
from seal.stats import interval
from seal.store import Stage, read_json, write_whole
from seal.types import Task

INK, MUTED, ACCENT, SECOND, THIRD = "#1b1f24", "#8a929c", "#0b6e99", "#d98c21", "#7a9e3f"


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
        ("Reward of the sampled self-edits, round by round", reward_figure(rewards, config["inner"]["reward"])),
        ("What reinforcement changed in the edits", changes_figure(changes)),
    ]
    page = _html(summary, figures, example, config, environment)
    write_whole(folder / "report.html", page)
    return folder / "report.html"


def texts_of(folder: Path, summary: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The edits that the policies wrote for the evaluation tasks."""
    texts = {}
    names = [NO_RL, EXTERNAL, CONTROL, *(f"SEAL round {r + 1}" for r in range(summary["rounds"]))]
    for name in names:
        path = folder / "eval" / name.replace(" ", "-") / "texts.json"
        if path.exists():
            texts[name] = json.loads(path.read_text("utf-8"))
    return texts


def attempts_of(folder: Path) -> list[dict[str, Any]]:
    """The attempts of a stage as rows; a torn last line is left out."""
    return [a.to_json() for a in Stage(folder).attempts()]


def round_rewards(folder: Path, branch: str, rounds: int) -> list[dict[str, float]]:
    """For each round of the outer loop: mean reward of all edits tried with its interval over tasks, of the best edit of
    each task; the accuracy after the edits (``after``) and of the unadapted model (``before``); and the share of bad edits."""
    out = []
    for r in range(1, rounds + 1):
        rows = [x for x in attempts_of(folder / branch / f"round-{r}") if x["reward"] is not None]
        if not rows:
            continue
        by_task: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_task.setdefault(row["task"], []).append(row)
        means = [sum(x["reward"] for x in g) / len(g) for g in by_task.values()]
        spread = interval([means])
        out.append(
            {
                "round": r,
                "mean": spread.mean,
                "low": spread.low,
                "high": spread.high,
                "best": sum(max(x["reward"] for x in g) for g in by_task.values()) / len(by_task),
                "after": sum(x["after"] for x in rows) / len(rows),
                "before": sum(x["before"] for x in rows) / len(rows),
                "bad": sum(x["status"] == "bad edit" for x in rows) / len(rows),
                "cut": cut_share(folder / branch / f"round-{r}"),
                "attempts": len(rows),
            }
        )
    return out


def cut_share(stage: Path) -> float:
    """Share of a stage's edits that the limit of tokens cut off; 0 where an earlier version did not tell."""
    written = [x for row in Stage(stage).read("cut") or () for x in row]
    return sum(x is not None for x in written) / max(1, len(written))


def _example(folder: Path, domain: Domain, tasks: Sequence[Task], texts: dict[str, list[list[str]]]) -> dict[str, Any] | None:
    """One task with its first edit before and after the loop: of those where it made a difference, the one whose gain is the median."""
    final = next((n for n in reversed(list(texts)) if n.startswith("SEAL")), None)
    if final is None or NO_RL not in texts:
        return None
    scores = {}
    for name in (NO_RL, final):
        rows = [r for r in attempts_of(folder / "eval" / name.replace(" ", "-")) if r["edit"] == 0]
        scores[name] = {r["task"]: r for r in rows}
    gains = {t.id: scores[final][t.id]["after"] - scores[NO_RL][t.id]["after"] for t in tasks}
    order = sorted([t for t in tasks if gains[t.id]] or tasks, key=lambda t: gains[t.id])
    task = order[len(order) // 2]
    number = [t.id for t in tasks].index(task.id)
    first = {n: read_json(folder / "eval" / n.replace(" ", "-") / "before.json")[number] for n in (NO_RL, final)}
    return {
        "pictures": {
            n: domain.picture(task, scores[n][task.id]["text"], first[n], scores[n][task.id]["answers"]) for n in first
        },
        "title": task.data.get("title", task.id),
        "context": task.data.get("context", ""),
        "questions": task.data.get("questions", []),
        "edits": {n: scores[n][task.id] for n in (NO_RL, final)},
    }


# ------------------------------------------------------------------------------------------------------------- figures


def plain_axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif", "svg.hashsalt": "seal"})
    figure, axes = plt.subplots(figsize=(width, height))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def accuracy_figure(summary: dict[str, Any]) -> Any:
    """Accuracy by writer with 95 % intervals; one mark per kind of question beside."""
    rows = summary["rows"]
    figure, axes = plain_axes(8.5, 0.42 * len(rows) + 1.3)
    kinds = list(dict.fromkeys(k for r in rows for k in r["kinds"]))
    for y, row in enumerate(reversed(rows)):
        colour = ACCENT if row["setting"].startswith("SEAL") else SECOND if row["setting"] == CONTROL else MUTED
        axes.barh(y, row["accuracy"], color=colour, alpha=0.85, height=0.62)
        axes.plot([row["low"], row["high"]], [y, y], color=INK, lw=1.6)
        inside = row["accuracy"] > 0.15  # where no mark and no interval is in its way
        at, ink = (0.012, "white") if inside else (row["high"] + 0.012, INK)
        axes.text(at, y, f"{row['accuracy']:.2f}", va="center", fontsize=9, color=ink, weight="bold" if inside else "normal")
        if len(kinds) > 1:
            for kind, mark in zip(kinds, "ovsD", strict=False):
                value = row["kinds"].get(kind, {}).get("mean")
                if value is not None:
                    axes.plot(value, y, mark, ms=5, mfc="white", mec=INK, label=f"{kind} questions" if y == 0 else None)
    axes.set_yticks(range(len(rows)), [r["setting"] + (f" ({r['note']})" if r["note"] else "") for r in reversed(rows)])
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of questions answered correctly (line: 95 % interval)")
    if len(kinds) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncol=len(kinds), frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def reward_figure(rewards: Sequence[dict[str, float]], kind: str) -> Any:
    """Mean and best reward (of that ``kind``) of the edits tried in each round, and the accuracy after and before them."""
    figure, axes = plain_axes(7, 3.4)
    x = [r["round"] for r in rewards]
    axes.plot(x, [r["best"] for r in rewards], "^--", color=MUTED, label="best of each task's edits (flattered by luck)")
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
    palette = {NO_RL: MUTED, CONTROL: SECOND}
    blues = ["#7fb8d1", ACCENT, "#06384f"]
    marks = "os^vD"
    for i, (name, row) in enumerate(changes.items()):
        colour = palette.get(name) or blues[min(len(blues) - 1, i - 2)]
        axes.plot([row.get(k, math.nan) for k in shown], range(len(shown)), marks[i % 5], color=colour, ms=8, label=name)
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


# --------------------------------------------------------------------------------------------------------------- pages


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
        "Intervals: 95 %, over tasks (over groups of them that are alike); differences are paired over tasks.",
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
            [[k, *(f"{c[k]:.3f}" if k in c else "–" for c in changes.values())] for k in next(iter(changes.values()), {})],
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
        f"<h1>{e(config['name'])}</h1><p class=meta><code>{e(summary['command'])}</code> · {e(summary['date'])} · "
        f"{e(summary['machine'])} · seed {summary['seeds'][0]} · model {e(config['model']['name'])}</p>",
        f"<h2>Held-out tasks</h2><div class=scroll><table><tr>{''.join(f'<th>{e(c)}</th>' for c in head)}</tr>{table}</table></div>",
        "<ul>" + "".join(f"<li>{e(line)}</li>" for line in difference_lines(summary)) + "</ul>",
        "<p class=meta>Intervals: 95 %, over tasks (over groups of them that are alike); differences are paired over tasks. <em>silent</em>: share "
        "of empty answers. <em>tokens</em>: training tokens per adapter.</p>",
        *(f"<figure><figcaption>{e(title)}</figcaption>{svg(figure)}</figure>" for title, figure in figures),
    ]
    if example:
        parts.append(
            f"<h2>One task, before and after the loop</h2><p><strong>{e(example['title'])}</strong> {e(example['context'])}</p>"
        )
        cards = []
        for name, row in example["edits"].items():
            answers = "".join(
                f"<li class={'right' if s else 'wrong'}>{e(q['question'])} <strong>{e(a) or '(silence)'}</strong>"
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
        f"<p class=meta>Python {e(environment['python'])}, {e(versions)}, {environment['threads']} threads.</p></html>"
    )
    return "\n".join(parts)
