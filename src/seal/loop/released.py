"""SEAL's own file formats: its result files become run folders, and a run's attempts become files of either
kind.

A *result file* is ``{overall, articles: [{title, context, completions: [{text, stats, questions: [{rep,
question, answer, baseline_answer, adapter_answer, baseline_correct, adapter_correct}]}]}]}``; a *dataset* a
list of ``{title, context, prompt, questions, completions}``.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean as mean
from statistics import stdev

from seal.config import DomainConfig, EvalConfig, RunConfig, WriteConfig
from seal.domains import load_domain
from seal.loop.results import fingerprints, from_attempts, run_record
from seal.loop.selection import best_of
from seal.records import BASE, EXTERNAL, Attempt, Json, Result, SealError, Task, record_text
from seal.store import Stage, Store, read_attempts, read_config, write_whole


def import_results(source: Path, out: Path) -> Path:
    """Turn a result file into a run folder: passages, attempts, what ``best_of`` keeps, and the results that
    a report shows.

    Raises:
        SealError: the file is not a result file, or there is something at ``out``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SealError(f"{out} exists already, and nothing is overwritten: give another --out")
    out = out.resolve()
    try:
        return _import(source, out)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError) as error:
        shutil.rmtree(out, ignore_errors=True)
        first = str(error).split("\n")[0][:200]
        raise SealError(
            f"{source} is not one of SEAL's result files: {type(error).__name__}: {first}"
        ) from error
    except SealError:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _import(source: Path, out: Path) -> Path:
    data = json.loads(source.read_text("utf-8"))
    articles = _told_apart(data["articles"])
    passages = [
        {
            "title": a["title"],
            "context": a["context"],
            "questions": _questions(a["completions"][0]["questions"]),
        }
        for a in articles
    ]
    n_edits = min(len(a["completions"]) for a in articles)
    n_seeds = min(len({q["rep"] for q in c["questions"]}) for a in articles for c in a["completions"])
    config = _config(data, out, len(articles), n_edits, n_seeds)
    write_whole(out / "passages.json", json.dumps(passages, ensure_ascii=False, indent=1) + "\n")
    store = Store(
        config,
        {"machine": "", "python": "", "versions": {}, "threads": 0, "cuda": None, "imported": source.name},
    )
    domain = load_domain(config.domain.name, config.domain.options)
    tasks = {(t.data["title"], t.data["context"]): t for t in domain.tasks("eval")}
    attempts = [x for a in articles for x in _attempts(tasks[a["title"], a["context"]], a["completions"])]
    before = {tasks[a["title"], a["context"]].id: _baseline(a["completions"]) for a in articles}
    for place in (store.stage("seal/round-1"), store.stage(f"eval/{EXTERNAL.key}")):
        place.append(attempts)
        place.once("texts", lambda: [[c["text"] for c in a["completions"]] for a in articles])
    store.stage("seal/round-1").once("kept", lambda: [vars(k) for k in best_of(attempts)])
    order = list(domain.tasks("eval"))
    replies = [str(q["baseline_answer"] or "") for a in articles for q in a["completions"][0]["questions"]]
    n_questions = sum(len(p["questions"]) for p in passages)
    scores = [before[t.id] for t in order]
    silent = mean(not r.strip() for r in replies)
    untouched = Result(BASE.label, scores, {"all": list(scores)}, n_questions, silent, 0.0, 0.0)
    results, groups = [untouched, from_attempts(EXTERNAL, order, attempts)], [domain.group(t) for t in order]
    record = run_record(config, results, [t.id for t in order], groups, 0.0)
    record |= {"fingerprint": fingerprints(domain)["eval"], "machine": f"imported from {source.name}"}
    write_whole(out / "results.json", record_text(record))
    return out


def _told_apart(articles: list[Json]) -> list[Json]:
    """Articles that share title and context get a number, so that each keeps its own place."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for article in articles:
        key = (article["title"], article["context"])
        seen[key] += 1
        found.append({**article, "title": article["title"] + (f" ({seen[key]})" if seen[key] > 1 else "")})
    return found


def _questions(rows: list[Json]) -> list[dict[str, str]]:
    first = min(q["rep"] for q in rows)
    return [{"question": q["question"], "answer": q["answer"]} for q in rows if q["rep"] == first]


def _config(data: Json, out: Path, n: int, n_edits: int, n_seeds: int) -> RunConfig:
    """The settings that the file tells, as ours; every passage stands in ``eval``."""
    lora = data.get("lora_params") or {}
    recipe = {"rank": lora.get("rank", 32), "alpha": lora.get("alpha", 64), "epochs": lora.get("epochs", 10)}
    recipe |= {"learning_rate": lora.get("lr", 1e-3), "batch_size": lora.get("batch_size", 1)}
    options = {
        "source": str(out / "passages.json"),
        "grader": "string",
        "sizes": {"train": 0, "select": 0, "eval": n},
    }
    return RunConfig.model_validate(
        {
            "name": out.name,
            "runs": str(out.parent),
            "rounds": 1,
            "tasks_per_round": n,
            "edits_per_task": n_edits,
            "domain": DomainConfig(name="knowledge", options=options).model_dump(),
            "model": {"name": str(data.get("model", "unknown"))},
            "write": WriteConfig().model_dump(),
            "inner": {"recipe": recipe, "seeds": n_seeds, "reward": "accuracy"},
            "eval": EvalConfig(edits_per_task=n_edits, siblings=n_edits).model_dump(),
        }
    )


def _attempts(task: Task, completions: list[Json]) -> list[Attempt]:
    found = []
    for number, completion in enumerate(completions):
        for rep in sorted({q["rep"] for q in completion["questions"]}):
            rows = [q for q in completion["questions"] if q["rep"] == rep]
            scores = tuple(float(q["adapter_correct"]) for q in rows)
            answers = tuple(str(q["adapter_answer"] or "") for q in rows)
            found.append(
                Attempt(
                    task.id,
                    number,
                    rep,
                    completion["text"],
                    "ok",
                    "",
                    reward=round(mean(scores), 4),  # as SEAL records it: equals are equals there
                    before=_before(completion, rows),
                    after=mean(scores),
                    answers=answers,
                    scores=scores,
                    kinds=("all",) * len(rows),
                    silent=mean(not a.strip() for a in answers),
                )
            )
    return found


def _baseline(completions: list[Json]) -> float:
    """The unadapted model's accuracy on an article: mean over completions and repeats, as ``overall`` takes
    it."""
    return mean(_before(c, c["questions"]) for c in completions)


def _before(completion: Json, rows: list[Json]) -> float:
    """The unadapted model's accuracy on these questions; where the file does not tell it question by question
    (ours do not), the completion's."""
    known = [float(q["baseline_correct"]) for q in rows if q["baseline_correct"] is not None]
    return mean(known) if known else float(completion["stats"]["baseline_mean"])


def export_results(run: Path, stage_name: str) -> Json:
    """A stage's attempts (``seal/round-1``, ``eval/no-RL``) as one of SEAL's result files.

    Raises:
        SealError: the folder has no such stage, or its tasks are not passages with questions.
    """
    config, tasks, attempts, before = _stage(run, stage_name)
    articles: list[Json] = []
    graded: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.reward is not None:
            graded.setdefault(attempt.task, []).append(attempt)
    if not graded:
        raise SealError(f"{stage_name} of {run} has no graded attempt, so there is nothing to export")
    for task in tasks:
        if not (mine := graded.get(task.id)):
            continue
        completions = [
            _completion(task, [a for a in mine if a.edit == e], before[task.id])
            for e in sorted({a.edit for a in mine})
        ]
        means = [c["stats"]["adapter_mean"] for c in completions]
        of_article = {
            "baseline_accuracy": completions[0]["stats"]["baseline_mean"],
            "adapter_mean_accuracy": mean(means),
            "adapter_std_over_completions": _sd(means),
            "mean_adapter_std_within_completions": mean(c["stats"]["adapter_std"] for c in completions),
            "mean_gain": mean(c["stats"]["gain_mean"] for c in completions),
        }
        articles.append(
            {
                "title": task.data["title"],
                "context": task.data["context"],
                "stats": of_article,
                "completions": completions,
            }
        )
    stats = [a["stats"] for a in articles]
    overall = {
        "baseline_mean_accuracy": mean(s["baseline_accuracy"] for s in stats),
        "baseline_std_of_article_means": _sd([s["baseline_accuracy"] for s in stats]),
        "adapter_mean_accuracy": mean(s["adapter_mean_accuracy"] for s in stats),
        "adapter_std_of_article_means": _sd([s["adapter_mean_accuracy"] for s in stats]),
        "mean_adapter_std_over_completions": mean(s["adapter_std_over_completions"] for s in stats),
        "mean_adapter_std_within_completions": mean(s["mean_adapter_std_within_completions"] for s in stats),
        "mean_gain": mean(s["mean_gain"] for s in stats),
    }
    recipe = config["inner"]["recipe"]
    lora = {
        "rank": recipe["rank"],
        "alpha": recipe["alpha"],
        "epochs": recipe["epochs"],
        "lr": recipe["learning_rate"],
    }
    return {
        "overall": {k: round(v, 4) for k, v in overall.items()},
        "model": config["model"]["name"],
        "n_articles": len(articles),
        "k_completions": config["edits_per_task"],
        "eval_times": config["inner"]["seeds"],
        "lora_params": lora | {"batch_size": recipe["batch_size"]},
        "articles": articles,
    }


def _completion(task: Task, attempts: list[Attempt], before: list[str]) -> Json:
    scores = [a.after for a in attempts]
    base = attempts[0].before
    questions = [
        {
            "rep": rep,
            "question": q["question"],
            "answer": q["answer"],
            "baseline_answer": before[i] if i < len(before) else "",
            "adapter_answer": a.answers[i] if i < len(a.answers) else "",
            "baseline_correct": None,
            "adapter_correct": bool(a.scores[i] >= 1),
        }
        for rep, a in enumerate(attempts)
        for i, q in enumerate(task.data["questions"])
    ]
    stats = {
        "baseline_mean": base,
        "baseline_std": 0.0,
        "adapter_mean": mean(scores),
        "adapter_std": _sd(scores),
    }
    return {
        "text": attempts[0].text,
        "stats": stats | {"gain_mean": mean(scores) - base},
        "questions": questions,
    }


def _sd(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def export_dataset(run: Path, stage_name: str) -> list[Json]:
    """A stage's passages with the edits written for them, as one of SEAL's datasets."""
    config, tasks, attempts, _ = _stage(run, stage_name)
    domain = load_domain(config["domain"]["name"], config["domain"]["options"])
    found = []
    for task in tasks:
        texts = {a.edit: a.text for a in attempts if a.task == task.id}
        if texts:
            questions = [{"question": q["question"], "answer": q["answer"]} for q in task.data["questions"]]
            row = {
                "title": task.data["title"],
                "context": task.data["context"],
                "prompt": domain.prompt(task).text,
            }
            found.append(row | {"questions": questions, "completions": [texts[e] for e in sorted(texts)]})
    return found


def _stage(run: Path, name: str) -> tuple[Json, list[Task], list[Attempt], dict[str, list[str]]]:
    config = read_config(run)
    domain = load_domain(config["domain"]["name"], config["domain"]["options"])
    path = run / name / "attempts.jsonl"
    if not path.is_file():
        there = sorted(str(p.parent.relative_to(run)) for p in run.glob("*/*/attempts.jsonl"))
        raise SealError(f"{run} has no attempts under {name!r}; there are: {', '.join(there) or 'none'}")
    attempts = read_attempts(path)
    tried = {a.task for a in attempts}
    tasks = [t for s in ("train", "select", "eval") for t in domain.tasks(s) if t.id in tried]
    if any("questions" not in t.data for t in tasks):
        raise SealError(
            f"the tasks of {run} are no passages with questions, which is all that SEAL's files can hold"
        )
    rows = Stage(run / name).read("before") or []
    order = list(dict.fromkeys(a.task for a in attempts))
    return (
        config,
        tasks,
        attempts,
        dict(zip(order, rows, strict=False)) | {t: [] for t in order if len(rows) != len(order)},
    )
