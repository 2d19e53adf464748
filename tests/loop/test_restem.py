"""Selection: pure, and checked against cases one can count by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seal.config import OuterConfig, RunConfig
from seal.loop import imitate
from seal.loop.imitate import told
from seal.loop.selection import (
    as_many,
    best_of,
    exchanged,
    improved,
    nothing_kept,
    random_of,
    sft_examples,
    solved,
    worst_of,
)
from seal.lora.model import Model
from seal.lora.train import learning_rate
from seal.records import Attempt, Prompt, Recipe, Selected
from seal.store import Round, Stage


def attempt(
    task: str, edit: int, reward: float | None, seed: int = 0, status: str = "ok", before: float = 0.2
) -> Attempt:
    return Attempt(task, edit, seed, f"{task}{edit}", status, "", reward, before, reward or 0.0)  # type: ignore[arg-type]


ROWS = [
    attempt("a", 0, 0.4, 0), attempt("a", 0, 0.6, 1), attempt("a", 1, 1.0, 0), attempt("a", 1, 0.2, 1),
    attempt("a", 2, 0.1), attempt("a", 3, 0.0, status="bad edit"),
    attempt("b", 0, 1.0), attempt("b", 1, 1.0), attempt("b", 2, None, status="ungraded"),
    attempt("c", 0, 0.0, status="bad edit"),
]  # fmt: skip


def texts(kept: list) -> list[str]:  # type: ignore[type-arg]
    return [k.text for k in kept]


def test_best_of_goes_by_the_mean_over_training_seeds_and_of_equals_takes_the_first() -> None:
    rows = [*ROWS, attempt("b", 3, 0.5)]
    assert texts(best_of(rows)) == ["a1", "b0"]
    assert texts(best_of(rows, keep=2)) == ["a1", "a0", "b0", "b1"]


def test_siblings_that_all_earned_the_same_are_not_imitated() -> None:
    assert texts(best_of(ROWS)) == ["a1"]
    assert texts(best_of([attempt("b", 0, 1.0)])) == ["b0"], "an only one has no equal"


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([attempt("a", 0, None, status="ungraded")], "none of 1 attempts was graded"),
        ([attempt("a", 0, 0.0, status="bad edit")], "no edit could be used"),
        ([attempt("a", 0, 0.0), attempt("a", 1, 0.0)], "no edit earned anything"),
        ([attempt("a", 0, 0.5), attempt("a", 1, 0.5)], "all edits of a task earned the same"),
        ([attempt("a", 0, 0.1), attempt("a", 1, 0.2)], "no edit helped"),
        ([], "no edit helped"),
    ],
)
def test_why_nothing_was_learnt(rows: list[Attempt], why: str) -> None:
    assert nothing_kept(rows).startswith(why)
    said = told({"kept": 0, "steps": 0, "loss": (0.0, 0.0), "diverged": False}, rows, False)
    assert said == f"nothing was learnt, for {nothing_kept(rows)}; the policy is as it was"


def test_an_edit_that_ruins_the_model_is_not_imitated_for_the_likelihood_that_is_left() -> None:
    def told_(edit: int, reward: float, last: float, after: float = 0.2) -> Attempt:
        return replace(attempt("a", edit, reward), loss=(0.5, last), after=after)

    assert texts(best_of([told_(0, 2e-4, 7.6), told_(1, 1e-4, 0.4)])) == []
    assert texts(best_of([told_(0, 2e-4, 0.4), told_(1, 1e-4, 7.6)])) == ["a0"]
    assert texts(best_of([told_(0, 0.9, 7.6, after=1.0), told_(1, 0.1, 0.4)])) == ["a0"], "it answers better"


def test_a_round_is_told_in_one_sentence() -> None:
    learnt = {"kept": 3, "steps": 2, "loss": (0.53, 0.31), "diverged": False, "worse": False}
    assert told(learnt, ROWS, True) == "learnt from 3 of 8 edits, loss 0.53 → 0.31"
    worse = learnt | {"loss": (0.53, 7.56), "worse": True}
    assert told(worse, ROWS, False) == (
        "learning from 3 edits made it worse (loss 0.53 → 7.56); the policy stays as it was"
    )
    assert "diverged" in told(learnt | {"diverged": True}, ROWS, False)


def test_a_finetune_that_made_it_worse_is_not_taken(
    policy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = imitate.train_once
    config = RunConfig(outer=OuterConfig(recipe=Recipe(rank=2, epochs=1)))
    kept = [Selected("a", "to be or not to be", 1.0, edit=0)]
    for last, taken in ((0.31, True), (0.79, True), (0.8, False), (7.56, False)):

        def train(*given: Any, last: float = last) -> Any:
            return replace(real(*given), loss=(0.53, last))

        monkeypatch.setattr(imitate, "train_once", train)
        adapter, record = imitate.learn_from(
            policy, {"a": Prompt("Say it:")}, kept, [], config, Round(1, Stage(tmp_path), 0)
        )
        assert (adapter is not None, record["worse"]) == (taken, not taken)


@pytest.mark.parametrize("rule", ["dpo", "ipo", "grpo"])
@pytest.mark.parametrize("more", [{"edits_per_task": 1}, {"write": {"temperature": 0}}])
def test_what_could_learn_nothing_is_refused_at_the_start(rule: str, more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="siblings that differ"):
        RunConfig.model_validate({"outer": {"rule": rule}} | more)


def test_a_warm_up_does_not_take_every_step() -> None:
    one = Recipe(learning_rate=1e-3, warmup=0.05)
    assert learning_rate(one, 0, 1) == 1e-3
    assert [learning_rate(one, i, 40) for i in range(3)] == [0.0, 5e-4, 1e-3], "where there are more, as ever"


def test_what_earned_nothing_is_not_imitated() -> None:
    rows = [
        attempt("a", 0, 0.0),
        attempt("a", 1, 0.0, status="diverged"),
        attempt("b", 0, 0.0, status="diverged"),
    ]
    assert best_of(rows) == []


def test_the_control_imitates_as_many_of_each_task_as_it_is_told() -> None:
    assert sorted(k.task for k in random_of(ROWS, keep=2, seed=1, per_task={"a": 2})) == ["a", "a"]


def test_the_control_does_not_learn_from_how_many_were_kept_which_tasks_were_solved() -> None:
    drawn = [tuple(k.task for k in random_of(ROWS, seed=s, per_task={"a": 3})) for s in range(40)]
    assert {len(d) for d in drawn} == {3} and any("b" in d for d in drawn)


def test_a_control_is_told_how_many_edits_of_each_task_were_kept() -> None:
    kept = [Selected("a", "x", 1.0), Selected("b", "y", 1.0), Selected("a", "z", 1.0)]
    assert as_many(kept) == {"a": 2, "b": 1} and as_many([]) == {}


def test_improved_and_solved() -> None:
    assert texts(improved(ROWS)) == ["a0", "a1", "b0", "b1"]
    assert texts(improved([attempt("a", 0, 0.2, before=0.2), attempt("a", 1, 0.3, before=0.2)])) == ["a1"], (
        "no worse is not better"
    )
    assert texts(solved(ROWS)) == ["b0", "b1"]


def test_the_control_keeps_as_many_and_never_looks_at_the_reward() -> None:
    kept = random_of(ROWS, seed=1)
    assert [k.task for k in kept] == ["a", "b"]
    flipped = [
        a if a.reward is None else attempt(a.task, a.edit, 1 - a.reward, a.seed, a.status) for a in ROWS
    ]
    assert texts(random_of(flipped, seed=1)) == texts(kept)
    assert len({tuple(texts(random_of(ROWS, seed=s))) for s in range(20)}) > 1


def test_bad_edits_are_never_imitated() -> None:
    for rule in (best_of, improved, solved, random_of):
        assert not {"a3", "c0"} & set(texts(rule(ROWS, 10)))


def test_what_is_imitated_is_the_edit_after_its_prompt() -> None:
    examples = sft_examples(best_of(ROWS), {"a": Prompt("PA"), "b": Prompt("PB")})
    assert [(e.prompt, e.completion) for e in examples] == [("PA", "a1")]
    assert all(e.chat and e.ends and not e.loss_on_prompt for e in examples), (
        "as the model is asked for one, loss on the edit alone"
    )
    broken = sft_examples([Selected("a", "whole lines", 1.0, cut=True)], {"a": Prompt("PA")})
    assert not broken[0].ends


def test_worst_is_the_other_end_of_best() -> None:
    assert texts(worst_of(ROWS)) == ["a2", "b0"] and texts(worst_of(ROWS, keep=2)) == ["a2", "a0", "b0", "b1"]


def test_exchanged_edits_never_stand_after_their_own_prompt() -> None:
    kept = [Selected(t, f"{t}{i}", 1.0) for t in "abcde" for i in range(2)]
    for seed in range(5):
        swapped = exchanged(kept, seed)
        assert [k.text for k in swapped] == [k.text for k in kept]
        assert all(k.task != k.text[0] for k in swapped)
        assert as_many(swapped) == as_many(kept)
    assert exchanged(kept[:2], 0) == []
