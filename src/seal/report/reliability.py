"""How much of a reward is the edit, and how much luck: variance components by the method of moments, and what
follows from them.

The score of edit e, training seed s, question q of one task is taken as y = μ_q + a_e + c_eq + b_es + ε_esq:
the edit's worth, its luck with the questions, its luck with the training seed, and the rest. Components are
the usual mean squares of a table crossed in edits and questions with seeds nested in edits (Searle, Casella &
McCulloch, *Variance Components*, 1992), averaged over tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seal.records import Json, SealError
from seal.store import read_rows

Scores = NDArray[np.float64]
"""One task's scores, (E edits, S seeds, Q questions)."""
N_SIMULATED = 200_000


@dataclass(frozen=True)
class Components:
    """Variances. ``edit`` is what selection is after; the others are noise."""

    edit: float
    question: float
    """Edit by question: what other questions would change."""
    seed: float
    """Of one training seed, common to its questions."""
    rest: float
    """Of one answer."""

    def reliability(self, n_seeds: float, n_questions: float, other_questions: bool = True) -> float:
        """Share of the variance between siblings' mean scores that would come again with other seeds and (or
        else these) questions."""
        true = self.edit + (0.0 if other_questions else self.question / n_questions)
        noise = self.seed / n_seeds + self.rest / (n_seeds * n_questions)
        noise += self.question / n_questions if other_questions else 0.0
        return true / (true + noise) if true + noise > 0 else 0.0


def components(tasks: Sequence[Scores]) -> Components:
    """Variance components of scores, averaged over tasks; estimates below zero are set to zero.

    Raises:
        SealError: no task has two edits, two seeds and two questions.
    """
    usable = [y for y in tasks if min(y.shape) >= 2]
    if not usable:
        raise SealError(
            "no task has at least two edits, two training seeds and two questions: run with --inner.seeds 3"
        )
    found = []
    for y in usable:
        n_edits, n_seeds, n_questions = y.shape
        edit_seed, edit_question, edit = y.mean(2), y.mean(1), y.mean((1, 2))
        left = y - edit_seed[:, :, None] - edit_question[:, None, :] + edit[:, None, None]
        rest = (left**2).sum() / (n_edits * (n_seeds - 1) * (n_questions - 1))
        seed = edit_seed.var(1, ddof=1).mean() - rest / n_questions
        crossed = edit_question - edit[:, None] - y.mean((0, 1)) + y.mean()
        question = (crossed**2).sum() / ((n_edits - 1) * (n_questions - 1)) - rest / n_seeds
        worth = edit.var(ddof=1) - question / n_questions - seed / n_seeds - rest / (n_seeds * n_questions)
        found.append((worth, question, seed, rest))
    edit_, question_, seed_, rest_ = (max(0.0, float(x)) for x in np.mean(found, 0))
    return Components(edit_, question_, seed_, rest_)


def in_better_half(reliability: float, n_siblings: int) -> float:
    """Probability that the sibling of the highest mean score is truly in the better half (the middle one of
    an odd number counts half), for normal worth and noise; by simulation."""
    rng = np.random.default_rng(0)
    worth = rng.standard_normal((N_SIMULATED // n_siblings, n_siblings)) * reliability**0.5
    seen = worth + rng.standard_normal(worth.shape) * (1 - reliability) ** 0.5
    kept = worth[np.arange(len(worth)), seen.argmax(1)]
    middle = np.median(worth, 1)
    return float((kept > middle).mean() + (kept == middle).mean() / 2)


def report(tasks: Sequence[Scores]) -> Json:
    """What ``seal check reward`` prints: components, spread as the paper's files give it, and
    reliabilities."""
    found = components(tasks)
    tasks = [y for y in tasks if min(y.shape) >= 2]
    n_edits, n_seeds = tasks[0].shape[:2]
    n_questions = float(np.mean([y.shape[2] for y in tasks]))
    runs = [y.mean(2) for y in tasks]  # (E, S)
    these = found.reliability(n_seeds, n_questions, other_questions=False)
    return {
        "tasks": len(tasks),
        "edits": n_edits,
        "seeds": n_seeds,
        "questions": round(n_questions, 2),
        "sd between edits": round(float(np.mean([r.mean(1).std(ddof=1) for r in runs])), 4),
        "sd between seeds": round(float(np.mean([r.std(1, ddof=1).mean() for r in runs])), 4),
        "variance": {k: round(v, 5) for k, v in asdict(found).items()},
        "reliability": {
            "of one seed, these questions": round(
                found.reliability(1, n_questions, other_questions=False), 3
            ),
            f"of {n_seeds} seeds, these questions": round(these, 3),
            f"of {n_seeds} seeds, other questions": round(found.reliability(n_seeds, n_questions), 3),
            "of one seed, 20 other questions": round(found.reliability(1, 20), 3),
        },
        "kept edit in the better half": round(in_better_half(these, n_edits), 3),
        "of its advantage, luck": round(1 - these, 3),
    }


def estimators(run: Path) -> dict[str, dict[str, float]]:
    """Of every estimator of a run's reward: its reliability, of the seeds there were, with these questions
    and with others, and the probability that it keeps an edit of the better half. Empty where there were too
    few seeds, or gold answers' likelihoods are not on record."""
    found = {}
    for kind in ("accuracy", "likelihood", "mixed"):
        try:
            tasks = [y for y in read_scores(run, kind) if min(y.shape) >= 2]
            c = components(tasks)
        except SealError:
            continue
        n_edits, n_seeds, n_questions = (
            tasks[0].shape[0],
            tasks[0].shape[1],
            float(np.mean([y.shape[2] for y in tasks])),
        )
        these = c.reliability(n_seeds, n_questions, other_questions=False)
        found[kind] = {
            "reliability": round(these, 3),
            "of one seed": round(c.reliability(1, n_questions, other_questions=False), 3),
            "other questions": round(c.reliability(n_seeds, n_questions), 3),
            "kept edit in the better half": round(in_better_half(these, n_edits), 3),
        }
    return found


def read_scores(path: Path, kind: str = "accuracy") -> list[Scores]:
    """Scores of a run folder (every round's attempts with a seed; of a race its first leg) or of one of
    SEAL's result files.

    Args:
        kind: of a run, what is scored: *accuracy*, the gold answer's *likelihood*, or *mixed*, the mean of
            both.

    Raises:
        SealError: it is neither, or holds no scores.
    """
    try:
        if path.is_dir():
            files = sorted(path.glob("seal/round-*/attempts.jsonl"))
            rows = [row | {"round": f.parent.name} for f in files for row in read_rows(f)]
            return list(
                _tables(
                    (r["round"], r["task"], r["edit"], r["seed"], rewarded(r, kind))
                    for r in rows
                    if r["scores"] and r.get("status") not in ("ungraded", "failed")
                )
            )
        data = json.loads(path.read_text("utf-8"))
        return list(
            _tables(
                (
                    0,
                    number,
                    e,
                    rep,
                    [q["adapter_correct"] for q in completion["questions"] if q["rep"] == rep],
                )
                for number, article in enumerate(data["articles"])
                for e, completion in enumerate(article["completions"])
                for rep in sorted({q["rep"] for q in completion["questions"]})
            )
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SealError(
            f"{path} is neither a run folder nor a SEAL result file: {type(error).__name__}: {error}"
        ) from error


def rewarded(row: Json, kind: str) -> list[float]:
    """The scores of an attempt's questions; a bad edit, or one that diverged, has no likelihoods, and is
    worth nothing."""
    if kind == "accuracy":
        return list(row["scores"])
    if row.get("status") == "ok" and not row["likelihoods"]:
        raise ValueError(f"no likelihood of gold answers is on record, which {kind} needs")
    likely = list(row["likelihoods"]) or [0.0] * len(row["scores"])
    return (
        likely if kind == "likelihood" else [(x + y) / 2 for x, y in zip(row["scores"], likely, strict=True)]
    )


def _tables(rows: Iterable[tuple[Any, Any, int, int, Sequence[float]]]) -> Iterable[Scores]:
    """Whole tables (E, S, Q), one per task; edits that lack a seed are left out."""
    tasks: dict[tuple[Any, Any], dict[int, dict[int, Sequence[float]]]] = {}
    for round_, task, edit, seed, scores in rows:
        tasks.setdefault((round_, task), {}).setdefault(edit, {})[seed] = scores
    for edits in tasks.values():
        most = max(map(len, edits.values()))
        whole = [list(seeds.values()) for seeds in edits.values() if len(seeds) == most]
        if len({len(s) for seeds in whole for s in seeds}) == 1:
            yield np.array(whole, dtype=float)
