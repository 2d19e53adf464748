"""The inner loop's bookkeeping, with adapters made by hand: who was asked, what was answered, what it earns,
what goes where."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from seal.config import InnerConfig
from seal.domains.base import Domain
from seal.domains.knowledge import Knowledge
from seal.loop import inner as module
from seal.loop.inner import InnerLoop
from seal.loop.race import untried
from seal.loop.results import fingerprints
from seal.loop.rooms import Rooms
from seal.lora.adapter import Adapter, init_adapter, target_modules
from seal.lora.capacity import Room
from seal.lora.decoder import fits
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.sample import ask
from seal.lora.score import divergence, log_likelihood
from seal.lora.train import Job, Trained
from seal.records import BadEdit, Edit, Example, Grade, LoraError, Prompt, Query, Recipe, Task
from seal.store import Stage
from tests import tiny

INNER = InnerConfig(
    recipe=Recipe(rank=2, steps=1, targets="all-linear"), answer_tokens=6, reward="mixed", slots=2
)


def shifted(policy: Model, seed: int) -> Adapter:
    """An adapter that changes every answer."""
    fresh = init_adapter(target_modules(policy.runner, "all-linear"), INNER.recipe, seed)
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        2, 64.0, {n: (a, torch.randn(b.shape, generator=generator)) for n, (a, b) in fresh.weights.items()}
    )


class Told(Domain):
    """Any edit but "bad" is one row; every answer of the untouched model is right, and so is none else."""

    stop = ""

    def __init__(self, right: Sequence[Sequence[str]] = ()) -> None:
        self.right = right

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}{i}", {"n": i}) for i in range(2)]

    def prompt(self, task: Task) -> Prompt:
        return Prompt(f"Write of {task.id}:")

    def parse(self, task: Task, text: str) -> Edit | BadEdit:
        return BadEdit(text, "it is bad") if text == "bad" else Edit(text, (Example(text),))

    def queries(self, task: Task) -> Sequence[Query]:
        return [Query(Prompt(f"{task.id} asks {i}:"), f"gold {i}") for i in range(3)]

    def grade(self, task: Task, answers: Sequence[str]) -> Grade:
        right = self.right[task.data["n"]]
        scores = tuple(float(a == r) for a, r in zip(answers, right, strict=True))
        return Grade(sum(scores) / 3, scores, ("all",) * 3)


@pytest.fixture
def told(policy: Model) -> Told:
    domain = Told()
    prompts = [[q.prompt for q in domain.queries(t)] for t in domain.tasks("train")]
    domain.right = ask(policy, [None, None], prompts, Sampling(6))
    assert all(a for row in domain.right for a in row)
    return domain


def by_hand(monkeypatch: pytest.MonkeyPatch, made: Sequence[Adapter | None]) -> list[Job]:
    """Training gives these adapters, whatever it is to learn; the jobs that it was given."""
    seen: list[Job] = []

    def train(policy: Model, jobs: Sequence[Job], *_: Any) -> list[Trained]:
        seen.extend(jobs)
        return [Trained(a, 1, 7, (1.0, math.nan if a is None else 0.5)) for a in made[: len(jobs)]]

    monkeypatch.setattr(module, "train_adapters", train)
    return seen


def test_before_is_asked_of_the_untouched_model_and_after_of_each_edits_own_adapter(
    policy: Model, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [shifted(policy, s) for s in range(4)]
    by_hand(monkeypatch, adapters)
    tasks, stage = told.tasks("train"), Stage(tmp_path)
    found = InnerLoop(told, INNER).try_edits(policy, tasks, [["a", "b"], ["c", "d"]], stage, 0)
    assert stage.read("before") == [list(r) for r in told.right]
    for attempt, adapter, task in zip(found, adapters, [tasks[0]] * 2 + [tasks[1]] * 2, strict=True):
        prompts = [q.prompt for q in told.queries(task)]
        (expected,) = ask(policy, [adapter], [prompts], Sampling(6))
        (likely,) = log_likelihood(policy, [adapter], [list(told.queries(task))])
        plain = log_likelihood(policy, [None], [list(told.queries(task))])[0]
        assert list(attempt.answers) == expected != told.right[task.data["n"]]
        assert attempt.likelihoods == pytest.approx([math.exp(x) for x in likely], abs=1e-5)
        assert attempt.likelihoods != pytest.approx([math.exp(x) for x in plain], rel=0.01)
        assert (attempt.before, attempt.after) == (1.0, sum(attempt.scores) / 3) and attempt.after < 1
        assert attempt.reward == pytest.approx((attempt.after + sum(attempt.likelihoods) / 3) / 2, abs=1e-5)
    assert len({a.answers for a in found}) == 4


def test_what_cannot_be_used_or_diverges_earns_nothing_however_good_the_model_was(
    policy: Model, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(monkeypatch, [None, shifted(policy, 1)])
    bad, diverged, sound = InnerLoop(told, INNER).try_edits(
        policy, told.tasks("train")[:1], [["bad", "wild", "sound"]], Stage(tmp_path), 0
    )
    assert (bad.status, bad.reason, bad.reward, bad.before) == ("bad edit", "it is bad", 0.0, 1.0)
    assert (diverged.status, diverged.reward, diverged.before, diverged.after) == ("diverged", 0.0, 1.0, 0.0)
    assert "not finite" in diverged.reason and diverged.scores == (0.0,) * 3
    assert sound.status == "ok" and sound.answers


def test_silence_is_counted(
    policy: Model, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(monkeypatch, [shifted(policy, 1)])
    monkeypatch.setattr(
        module, "ask", lambda policy, adapters, prompts, *_: [["", " \n", "x"][: len(row)] for row in prompts]
    )
    (found,) = InnerLoop(told, INNER).try_edits(policy, told.tasks("train")[:1], [["a"]], Stage(tmp_path), 0)
    assert found.silent == pytest.approx(2 / 3)


def test_siblings_share_their_training_seeds_and_seeds_differ_otherwise(
    policy: Model, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = by_hand(monkeypatch, [shifted(policy, s) for s in range(8)])
    inner = INNER.model_copy(update={"seeds": 2})
    InnerLoop(told, inner).try_edits(policy, told.tasks("train"), [["a", "b"]] * 2, Stage(tmp_path), 0)
    seeds = [j.seed for j in jobs]
    assert seeds[:2] == seeds[2:4] and seeds[4:6] == seeds[6:8] and len(set(seeds)) == 4
    assert [j.examples[0].completion for j in jobs] == ["a", "a", "b", "b"] * 2


def test_edits_that_nobody_tries_are_still_known_to_be_bad(told: Told) -> None:
    found = untried(InnerLoop(told, INNER), told.tasks("train")[:1], [["a", "bad"]], [[0.3, 0.9]])
    assert [(a.status, a.reason, a.reward) for a in found] == [
        ("ok", "", 0.3),
        ("bad edit", "it is bad", 0.9),
    ]


@pytest.mark.parametrize("change", ["title", "context", "question", "answer"])
def test_a_fingerprint_covers_all_that_a_model_is_shown_or_graded_by(change: str) -> None:
    domain = Knowledge(sizes={"train": 2, "select": 1, "eval": 1})
    before = fingerprints(domain)
    task = domain.tasks("train")[1]
    data = dict(task.data)
    if change in data:
        data[change] = data[change] + "s"
    else:
        data["questions"] = [{**q, change: q[change] + "s"} for q in data["questions"]]
    domain.tasks("train")[1:] = [Task(task.id, data)]  # type: ignore[index]
    after = fingerprints(domain)
    assert after["train"] != before["train"] and after["eval"] == before["eval"]


# ---------------------------------------------------------------------------------- likelihood and divergence


def logits_of(policy: Model, text: str) -> tuple[torch.Tensor, list[int]]:
    ids = [*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id]
    return log_softmax(policy.forward(input_ids=torch.tensor([ids])).logits[0].float(), -1), ids


@torch.no_grad()
def test_likelihood_is_per_token_of_the_gold_answer_after_its_prompt(policy: Model) -> None:
    queries = [Query(Prompt("What is it?"), "a"), Query(Prompt("And where?\n"), "far away from here")]
    found = log_likelihood(policy, [None], [queries])[0]
    for query, mine in zip(queries, found, strict=True):
        join = "" if query.prompt.text.endswith("\n") else " "
        logs, ids = logits_of(policy, query.prompt.text + join + query.gold)
        start = len(policy.tokenizer(query.prompt.text)["input_ids"])
        each = [float(logs[i - 1, ids[i]]) for i in range(start, len(ids))]
        assert mine == pytest.approx(sum(each) / len(each), abs=1e-4)


@torch.no_grad()
def test_divergence_is_kl_from_the_model_to_the_adapted_one(policy: Model) -> None:
    """KL(model ‖ adapted), by hand; the other way round is another number, and rows that only fill up are not
    counted."""
    adapters = [shifted(policy, 1), shifted(policy, 2)]
    rows = [[Example("two rows"), Example("of mine")], [Example("one row, longer than those")]]
    found = divergence(policy, adapters, rows)
    for adapter, mine, value in zip(adapters, rows, found, strict=True):
        moved = tiny.policy().plus(adapter)
        there, back = [], []
        for example in mine:
            (p, _), (q, _) = logits_of(policy, example.completion), logits_of(moved, example.completion)
            there += ((p.exp() * (p - q)).sum(-1)[:-1]).tolist()
            back += ((q.exp() * (q - p)).sum(-1)[:-1]).tolist()
        assert value == pytest.approx(sum(there) / len(there), rel=1e-3)
        assert value != pytest.approx(sum(back) / len(back), rel=0.005)


def test_an_answer_ends_before_its_stop_and_only_once_something_is_written(policy: Model) -> None:
    prompts = [Prompt(f"{i} and so on") for i in range(30)]
    whole = [row[0] for row in ask(policy, [None] * 30, [[p] for p in prompts], Sampling(20))]
    stop = max(
        {c for text in whole for c in text.strip()[1:]}, key=lambda c: sum(c in t.lstrip()[1:] for t in whole)
    )
    cut = [row[0] for row in ask(policy, [None] * 30, [[p] for p in prompts], Sampling(20, stop=stop))]
    assert any(stop in text for text in whole)
    assert cut == [text.lstrip().split(stop)[0] for text in whole]


def test_what_does_not_fit_is_said_not_to(policy: Model) -> None:
    room = policy.context - len("abc")
    assert fits(policy, [Prompt("abc")], Sampling(room)) and not fits(
        policy, [Prompt("abc")], Sampling(room + 1)
    )
    assert not fits(policy, [Prompt("a"), Prompt("a" * policy.context)], Sampling(8))
    with pytest.raises(LoraError, match="does not fit"):
        ask(policy, [None], [[Prompt("abc")]], Sampling(room + 1))


def test_a_smaller_room_is_for_the_waves_from_then_on(tmp_path: Path) -> None:
    rooms = Rooms(Stage(tmp_path), lambda: Room(4, 1000))
    rooms.shrink(3, Room(4, 500))
    rooms.shrink(5, Room(4, 250))
    for found in (rooms, Rooms(Stage(tmp_path), lambda: Room(9, 9))):  # and when the stage is read again
        assert [found.of(n).tokens for n in range(7)] == [1000, 1000, 1000, 500, 500, 250, 250]


def test_memory_that_runs_out_is_written_down_and_a_run_that_goes_on_ends_the_same(
    policy: Model, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller room is on disk before a wave is worked on in it: killed there, or gone on with where there
    is memory again, the same adapters meet in the same passes."""
    config = INNER.model_copy(update={"wave": 2, "pass_tokens": 1000, "recipe": Recipe(rank=2, steps=3)})
    inner, tasks = InnerLoop(told, config), told.tasks("train")
    texts = [["one text", "another text, and a longer one"], ["a third", "the fourth of them all, " * 3]]
    whole, passes = Model.losses, []

    def losses(self: Model, lines: Any) -> Any:
        passes.append(lines.n_real if torch.is_grad_enabled() else 0)
        if len(passes) > 6 and passes[-1] > 75:  # from the second wave on
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, lines)

    def bits(found: Sequence[Any]) -> list[Any]:
        return [(a.loss, a.log_likelihood, a.answers) for a in found]

    with monkeypatch.context() as patch:
        patch.setattr(Model, "losses", losses)
        unbroken = inner.try_edits(policy, tasks, texts, Stage(tmp_path / "a"), 0)
    told_of = (tmp_path / "a/room-smaller.json").read_text()
    assert '"1": {' in told_of and '"0": {' not in told_of, "the first wave went through"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    lines = (tmp_path / "b/attempts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b/attempts.jsonl").write_bytes(b"".join(lines[:2]))  # killed after the first wave
    again = inner.try_edits(policy, tasks, texts, Stage(tmp_path / "b"), 0)  # and memory is there again
    assert bits(again) == bits(unbroken)
