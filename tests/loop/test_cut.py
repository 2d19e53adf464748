"""Edits that the limit of tokens cut off: known as such from the engine to the table, and nobody learns to
break off."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seal.config import RunConfig, WriteConfig
from seal.domains.arc import Arc
from seal.domains.arc.domain import ORACLE
from seal.domains.knowledge import Knowledge
from seal.loop import outer as loop
from seal.loop.selection import SEAL, exchanged, kept_in
from seal.loop.write import cut_off, finished, write_edits, write_round
from seal.lora import decoder
from seal.lora.adapter import Adapter
from seal.lora.model import Model
from seal.lora.records import Sampling
from seal.lora.sample import complete
from seal.lora.train import Trained
from seal.records import Attempt, Prompt, Stopped, Written
from seal.report.tables import cut_share, table_lines
from seal.store import Round, Stage, Store, stop_when_saved


def test_a_text_is_cut_if_the_limit_ended_it_and_not_if_it_ended_itself(
    policy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt(f"{i}:") for i in range(6)]
    assert all(
        w.cut and len(policy.tokenizer(w.text)["input_ids"]) == 9
        for w in complete(policy, prompts, Sampling(9), [0] * 6)
    )
    end, plain, step = policy.tokenizer.eos_token_id, decoder._choose, [0]

    def choose(logits: Any, sampling: Sampling, draw: Any) -> Any:
        step[0] += 1
        tokens = plain(logits, sampling, draw)
        tokens[: len(tokens) // 2] = end if step[0] == 4 else tokens[: len(tokens) // 2]
        return tokens

    monkeypatch.setattr(decoder, "_choose", choose)
    found = complete(policy, prompts, Sampling(9), [0] * 6)
    assert sorted(w.cut for w in found) == [False] * 3 + [True] * 3
    assert all(len(policy.tokenizer(w.text)["input_ids"]) == 3 for w in found if not w.cut)
    step[0] = 99
    stopped = complete(policy, prompts, Sampling(30, stop=found[0].text[1]), [0] * 6)
    assert any(not w.cut for w in stopped)


@pytest.mark.parametrize(
    ("prompt", "text", "whole"),
    [
        ("implications", "One.\nTwo is a half li", "One."),
        ("implications", "One.\nTwo.\n", "One.\nTwo."),
        ("implications", "Nothing whole in i", "Nothing whole in i"),
        ("implications", "", ""),
        ("self-qa", "Question: A?\nAnswer: B.\nQuestion: C?\nAns", "Question: A?\nAnswer: B."),
    ],
)
def test_of_a_cut_edit_the_whole_lines_stay(prompt: str, text: str, whole: str) -> None:
    domain = Knowledge(prompt=prompt)
    assert finished(domain, [[Written(text, True), Written(text, False)]]) == (
        [[whole, text]],
        [[text, None]],
    )


def test_an_edit_in_json_is_cut_nowhere_else() -> None:
    whole = ORACLE.model_dump_json(indent=1)
    for text in ('{"data_generation": {"use_', whole, whole + "\n\nand th"):
        assert Arc().finished(text) == text


def test_with_directives_drawn_after_it_an_edit_ends(policy: Model, tmp_path: Path) -> None:
    """`write.explore` appends them to the whole lines: that is what is tried, and what is imitated."""
    sizes = {"source": "atlas", "directives": True, "sizes": {"train": 2, "select": 1, "eval": 1}}
    write = {"max_tokens": 8, "explore": True}
    config = RunConfig.model_validate(
        {"runs": str(tmp_path), "edits_per_task": 2, "write": write, "domain": {"options": sizes}}
    )
    domain, stage = Knowledge(**sizes), Stage(tmp_path / "seal/round-1")  # type: ignore[arg-type]
    texts = write_round(policy, domain, domain.tasks("train"), config, Round(1, stage, 0))
    assert (
        all("{" in x for row in texts for x in row)
        and cut_off(stage, [t.id for t in domain.tasks("train")]) == {}
    )


def test_the_stage_keeps_which_were_cut_and_so_do_the_loop_the_report_and_the_table(
    policy: Model, tmp_path: Path
) -> None:
    domain, stage = Knowledge(sizes={"train": 2, "select": 1, "eval": 1}), Stage(tmp_path / "seal/round-1")
    tasks = domain.tasks("train")
    texts = stage.once(
        "texts", lambda: write_edits(policy, domain, tasks, 2, WriteConfig(max_tokens=8), 0, stage)
    )
    assert cut_share(stage.folder) == 1.0
    written = [x for row in stage.read("cut") for x in row]
    assert (
        cut_off(stage, [t.id for t in tasks]) == {(t.id, e): written.pop(0) for t in tasks for e in range(2)}
        and len(texts) == 2
    )
    (stage.folder / "cut.json").write_text('[[null, null], ["as it broke o", null]]')
    assert (
        cut_off(stage, [t.id for t in tasks]) == {(tasks[1].id, 0): "as it broke o"}
        and cut_share(stage.folder) == 0.25
    )
    (stage.folder / "cut.json").unlink()
    assert cut_off(stage, [t.id for t in tasks]) == {} and cut_share(stage.folder) == 0.0, (
        "an earlier version did not tell"
    )
    row = {
        "setting": "x",
        "accuracy": 0.5,
        "low": 0.4,
        "high": 0.6,
        "kinds": {},
        "note": "",
        "silent": 0.0,
        "tokens": 1,
    }
    head, line = table_lines({"rows": [row | {"cut": 0.25}]})
    assert dict(zip(head, line, strict=True))["cut off"] == "0.250"
    assert "cut off" not in table_lines({"rows": [row | {"cut": 0.0}]})[0]


def test_a_kept_edit_that_was_cut_is_imitated_as_it_was_written_and_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried are its whole lines. With an end token after half a word the policy would learn to break off."""
    seen: list[Any] = []

    def write(
        policy: Any, domain: Any, tasks: Any, n: int, config: Any, seed: object, stage: Stage
    ) -> list[list[str]]:
        texts, cut = finished(domain, [[Written("One.\nTwo is ha", True), Written("Done.")] for _ in tasks])
        stage.once("cut", lambda: cut)
        return texts

    def tried(inner: Any, policy: Any, tasks: Any, texts: Any, *_: Any) -> list[Attempt]:
        assert all(row == ["One.", "Done."] for row in texts)
        return [
            Attempt(t.id, e, 0, x, "ok", "", float(e == i), 0.0, 0.0)
            for i, t in enumerate(tasks)
            for e, x in enumerate(texts[i])
        ]

    def train(policy: Any, job: Any, stage: Any) -> Any:
        seen.extend(job.examples)
        return Trained(None, 1, 1, (1.0, 0.5))

    monkeypatch.setattr("seal.loop.write.write_edits", write)
    monkeypatch.setattr(loop, "try_siblings", tried)
    monkeypatch.setattr("seal.loop.imitate.train_once", train)
    one = Adapter(1, 1.0, {"q": (torch.ones(1, 1), torch.ones(1, 1))})
    nobody: Any = SimpleNamespace(stack=one, base_name="base", fingerprint=dict)
    monkeypatch.setattr(loop, "load_model", lambda *_: nullcontext(nobody))
    sizes = {"options": {"sizes": {"train": 2, "select": 1, "eval": 1}}}
    config = RunConfig.model_validate(
        {"runs": str(tmp_path), "rounds": 1, "tasks_per_round": 2, "domain": sizes}
    )
    loop.run(config, Store(config))
    assert [(e.completion, e.ends) for e in seen] == [("One.\nTwo is ha", False), ("Done.", True)]
    others = exchanged(
        kept_in(Store(config), SEAL, 1), 0
    )  # the control that imitates them after other prompts
    assert sorted((k.text, k.cut) for k in others) == [("Done.", False), ("One.\nTwo is ha", True)]


def test_siblings_with_the_same_whole_lines_are_told_apart_and_what_is_cut_goes_with_its_texts(
    policy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their number. Stopped while writing, nothing of one draw stands beside another."""
    domain, stage = Knowledge(sizes={"train": 1, "select": 1, "eval": 1}), Stage(tmp_path)
    tasks, draws = domain.tasks("train"), iter([["A.\nhal"] * 2, ["B.\nhal", "B."]])

    def draw(*_: Any) -> list[list[Written]]:
        return [[Written(x, x.endswith("hal")) for x in next(draws)]]

    monkeypatch.setattr("seal.loop.write.from_policy", draw)
    stop_when_saved()
    with pytest.raises(Stopped):
        stage.once("texts", lambda: write_edits(policy, domain, tasks, 2, WriteConfig(), 0, stage))
    assert stage.read("texts") == [["A.", "A."]], "what was written is there when it stops"
    (tmp_path / "texts.json").unlink()
    texts = stage.once("texts", lambda: write_edits(policy, domain, tasks, 2, WriteConfig(), 0, stage))
    assert texts == [["B.", "B."]] and cut_off(stage, [t.id for t in tasks]) == {(tasks[0].id, 0): "B.\nhal"}
