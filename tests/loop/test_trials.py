"""How siblings are tried and scored: races, proxies; and the rules that learn from them, TRL's included."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal.cli.main import main
from seal.config import InnerConfig, OuterConfig, RunConfig, load_config
from seal.domains.check import check_domain
from seal.domains.knowledge import Knowledge
from seal.loop.inner import InnerLoop, understand
from seal.loop.outer import run
from seal.loop.race import plan_race, proxy_scores, race, rank_correlation, rating_of, try_siblings
from seal.loop.selection import RANDOM, WORST, pairs_of
from seal.loop.trl import preference
from seal.lora.load import load_model
from seal.lora.model import Model
from seal.lora.score import log_likelihood
from seal.records import Attempt, BadEdit, Edit, Prompt, Query, Recipe, SealError, Selected
from seal.report.reliability import estimators
from seal.store import Round, Stage, Store
from tests import tiny
from tests.runs import FLAGS

TEXTS = ["Hu is a city.\nHu lies far.", "x", "\x00", "Question: What is Hu?\nAnswer: a city"]


def attempt(task: str, edit: int, reward: float | None, status: str = "ok", seed: int = 0) -> Attempt:
    return Attempt(task, edit, seed, f"{task} {edit}", status, "", reward, before=0.0, after=0.0)  # type: ignore[arg-type]


def config(**more: object) -> RunConfig:
    data = {
        "domain": {"options": {"sizes": {"train": 3, "select": 1, "eval": 2}}},
        "inner": INNER.model_dump(),
        **more,
    }
    return RunConfig.model_validate(data)


INNER = InnerConfig(
    recipe=Recipe(rank=2, tokens=300, batch_size=2), answer_tokens=3, reward="mixed", slots=2, wave=5
)


@given(n=st.integers(1, 40), budget=st.integers(1, 200))
def test_a_race_keeps_to_its_budget_and_halves_its_field(n: int, budget: int) -> None:
    legs = plan_race(n, budget)
    assert sum(k * seeds for k, seeds in legs) <= max(n, budget)
    assert legs[0][0] == n
    assert all(later == -(-earlier // 2) for (earlier, _), (later, _) in pairwise(legs))
    assert all(seeds >= 1 for _, seeds in legs)


def test_a_race_tries_the_better_ones_again_and_resumes(policy: Model, tmp_path: Path) -> None:
    tasks = Knowledge(sizes={"train": 3, "select": 1, "eval": 2}).tasks("train")[:2]
    domain = Knowledge()
    texts = [dict(enumerate(TEXTS)) for _ in tasks]
    first = race(InnerLoop(domain, INNER), policy, tasks, texts, 9, Round(1, Stage(tmp_path), 0))
    assert {len([a for a in first if a.task == t.id]) for t in tasks} == {
        2 * sum(s for _, s in plan_race(4, 9))
    }
    leg = [json.loads(x) for x in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    for task in tasks:
        mine = sorted((a for a in leg if a["task"] == task.id), key=lambda a: -a["reward"])
        assert {a.edit for a in first if a.task == task.id} <= {a["edit"] for a in mine[:3]} | {
            mine[3]["edit"]
        }
        assert (
            mine[-1]["edit"] not in {a.edit for a in first if a.task == task.id}
            or mine[-1]["reward"] == mine[1]["reward"]
        )
    for task in tasks:  # every leg has seeds of its own, which siblings share
        seeds = {e: sorted(a.seed for a in first if (a.task, a.edit) == (task.id, e)) for e in range(4)}
        ran = [s for s in seeds.values() if s]
        assert all(len(set(s)) == len(s) for s in ran) and len({tuple(s) for s in ran}) == 1
    assert len(leg) == 2 * plan_race(4, 9)[0][0] * plan_race(4, 9)[0][1], (
        "the first leg, with every edit, lies in the stage itself"
    )
    (tmp_path / "leg-2/attempts.jsonl").write_text("")
    again = race(InnerLoop(domain, INNER), policy, tasks, texts, 9, Round(1, Stage(tmp_path), 0))
    assert [(a.task, a.edit, a.seed, a.reward) for a in again] == [
        (a.task, a.edit, a.seed, a.reward) for a in first
    ]


def test_mixed_is_the_mean_of_both_and_likelihoods_are_kept(policy: Model, tmp_path: Path) -> None:
    domain = Knowledge(sizes={"train": 3, "select": 1, "eval": 2})
    found = InnerLoop(domain, INNER).try_edits(policy, domain.tasks("train")[:1], [TEXTS], Stage(tmp_path), 0)
    for a in found:
        if a.status == "ok":
            likely = sum(a.likelihoods) / len(a.likelihoods)
            assert a.reward == pytest.approx((a.after + likely) / 2, abs=1e-5) and len(a.likelihoods) == len(
                a.scores
            )


def test_where_a_proxy_chooses_nothing_is_tried(policy: Model, tmp_path: Path) -> None:
    domain = Knowledge(sizes={"train": 3, "select": 1, "eval": 2})
    tasks = domain.tasks("train")[:2]
    texts = [[*TEXTS, " ".join(q["answer"] for q in t.data["questions"])] for t in tasks]
    alone = config(trial={"proxy": "exposure"})
    untried = try_siblings(
        InnerLoop(domain, INNER), policy, tasks, texts, alone, Round(1, Stage(tmp_path / "alone"), 0)
    )
    assert not (tmp_path / "alone/attempts.jsonl").exists() and len(untried) == 10
    for mine in (untried[:5], untried[5:]):
        assert max(mine, key=lambda a: a.reward or 0).edit == 4, "the edit that holds all answers comes first"
    with pytest.raises(ValueError, match="chooses without a trial"):
        config(trial={"proxy": "exposure"}, outer={"select": "improved"})


def test_a_proxy_gives_a_share_for_every_edit() -> None:
    domain = Knowledge(sizes={"train": 3, "select": 1, "eval": 2})
    tasks = domain.tasks("train")
    scores = proxy_scores("exposure", tasks, [TEXTS] * 3)
    assert [len(row) for row in scores] == [4] * 3 and all(0 <= x <= 1 for row in scores for x in row)
    with pytest.raises(SealError, match="there is no 'luck'"):
        proxy_scores("luck", tasks, [TEXTS] * 3)
    assert [rating_of(x) for x in (" 7", "Rating: 9", "4.5/9", "eleven", "11", "")] == [
        7 / 9,
        1.0,
        0.5,
        None,
        None,
        None,
    ]


def test_rank_correlation_is_spearmans_within_tasks() -> None:
    assert rank_correlation([[1, 2, 3], [0, 0, 1]], [[10, 20, 25], [5, 5, 9]]) == (pytest.approx(1.0), 2)
    assert rank_correlation([[1, 2, 3], [1, 1, 1]], [[3, 2, 1], [1, 2, 3]]) == (pytest.approx(-1.0), 1)


def test_pairs_are_the_best_and_the_worst_and_a_bad_edit_is_the_worst() -> None:
    attempts = [
        attempt("a", 0, 0.5),
        attempt("a", 1, 0.1),
        attempt("b", 0, 0.3),
        attempt("b", 1, 0.3),
        attempt("c", 0, 0.2),
    ]
    pairs = pairs_of([*attempts, attempt("c", 1, 0.0, "bad edit")])
    assert [(b.text, w.text) for b, w in pairs] == [("a 0", "a 1"), ("c 0", "c 1")]


def test_estimators_are_compared_by_their_reliability(policy: Model, tmp_path: Path) -> None:
    domain = Knowledge(sizes={"train": 3, "select": 1, "eval": 2})
    inner = INNER.model_copy(update={"seeds": 2})
    texts = [[*TEXTS[:2], TEXTS[3]] for _ in range(3)]
    InnerLoop(domain, inner).try_edits(
        policy, domain.tasks("train"), texts, Stage(tmp_path / "seal/round-1"), 0
    )
    found = estimators(tmp_path)
    assert set(found) == {"accuracy", "likelihood", "mixed"} and all(
        0 <= r["reliability"] <= 1 for r in found.values()
    )


@pytest.mark.parametrize("rule", ["sft", "dpo", "ipo", "grpo"])
def test_every_rule_changes_the_policy_and_goes_on_where_it_was(
    rule: str, policy: Model, tmp_path: Path
) -> None:
    if rule != "sft":
        pytest.importorskip("trl")
    name = tiny.save(tmp_path / "model")
    flags = [*FLAGS, f"--model.name={name}", f"--runs={tmp_path}", "--rounds=1", f"--outer.rule={rule}"]
    settings = load_config(None, [*flags, "--outer.recipe.learning_rate=1e-2"])
    run(settings, Store(settings))
    before, after = load_model(name), load_model(tmp_path / "run/seal/round-1/policy")
    weights = dict(before.runner.named_parameters())
    assert any(not p.equal(weights[n]) for n, p in after.runner.named_parameters())
    record = json.loads((tmp_path / "run/seal/round-1/outer.json").read_text())
    assert record["steps"] >= 1 and not record["diverged"]
    stage = tmp_path / "run/seal/round-1"
    weights_file = (stage / "policy/adapter_model.safetensors").read_bytes()
    held = (stage / "attempts.jsonl").read_bytes()
    shutil.rmtree(stage / "policy")
    (stage / "outer.json").unlink()
    run(settings, Store(settings))  # as if it had been killed within the finetune
    assert (stage / "policy/adapter_model.safetensors").read_bytes() == weights_file
    assert (stage / "attempts.jsonl").read_bytes() == held, "no attempt is made again"


def test_imitation_beside_preference_keeps_the_best_edit_likely(policy: Model) -> None:
    pytest.importorskip("trl")
    prompts = {"a": Prompt("Write:")}
    pairs = [(Selected("a", "red red red blue", 1.0), Selected("a", "red red red green", 0.0))]
    recipe = Recipe(rank=8, targets="all-linear", learning_rate=3e-2, steps=12, batch_size=1)
    found = []
    for weight in (0.0, 1.0):
        outer = OuterConfig(rule="dpo", imitate=weight, recipe=recipe)
        adapter, _ = preference(policy, prompts, pairs, outer, 0)
        found.append(log_likelihood(policy, [adapter], [[Query(prompts["a"], x.text) for x in pairs[0]]])[0])
    (chosen, rejected), (chosen_too, rejected_too) = found
    assert chosen > rejected and chosen_too > rejected_too and chosen_too > chosen


def test_the_reward_is_a_plain_function_of_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from seal.loop.trl import dataset, reward

    name = tiny.save(tmp_path / "model")
    settings = load_config(None, [*FLAGS, f"--model.name={name}", "--inner.seeds=2"])
    rows = dataset(settings)
    assert rows.column_names == ["prompt", "task"] and len(rows) == 4
    f = reward(settings)
    texts = ["Hu is a city.", "\x00", [{"role": "assistant", "content": "Hu is a city."}]]
    found = f(prompts=["", "", ""], completions=texts, task=[rows[0]["task"]] * 3, trainer_state=None)
    assert found[0] == found[2] and found[0] > 0 and found[1] == 0
    with pytest.raises(SealError, match="names 'nothing'"):
        f(completions=["x"], task=["nothing"])


def test_a_trainer_of_trl_takes_the_reward(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from seal.loop.trl import dataset, reward

    name = tiny.save(tmp_path / "model")
    settings = load_config(None, [*FLAGS, f"--model.name={name}"])
    model = load_model(name)
    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model.model.requires_grad_(True),
        reward_funcs=reward(settings),
        args=args,
        train_dataset=dataset(settings),
        processing_class=model.tokenizer,
    )
    trainer.train()
    assert "rewards/seal_reward/mean" in trainer.state.log_history[0]


def test_what_a_user_gets_wrong_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tiny.save(tmp_path / "model")
    flags = [*FLAGS, f"--model.name={name}", f"--runs={tmp_path}"]
    assert main(["train", *flags, "--trial.proxy", "luck"]) == 2
    assert "there is no 'luck'" in capsys.readouterr().err
    assert main(["train", *flags, "--outer.rule", "ppo"]) == 2
    assert "outer.rule" in capsys.readouterr().err
    for odd in (["--trial.race", "9"], ["--outer.recipe.tokens", "9"], ["--outer.select", "solved"]):
        assert main(["train", *flags, "--outer.rule", "dpo", *odd]) == 2
        told = capsys.readouterr().err
        assert "dpo" in told and "Value error" not in told and len(told.splitlines()) == 1
    assert main(["train", *flags, "--outer.imitate", "1"]) == 2
    assert "outer.imitate is of" in capsys.readouterr().err
    assert main(["train", *flags, "--outer.select", "solved"]) == 2
    assert "take accuracy" in capsys.readouterr().err
    assert main(["train", *flags, "--outer.rule", "dpo", "--controls", "worst"]) == 2
    assert "imitates" in capsys.readouterr().err
    assert OuterConfig().rule == "sft"


def test_an_edit_may_say_how_it_is_to_be_trained_on() -> None:
    domain = Knowledge(sizes={"train": 3, "select": 1, "eval": 2}, directives=True)
    task = domain.tasks("train")[0]
    for text in (
        '{"learning_rate": 0.01, "repeat": 3}\nHu lies far.',
        'Hu lies far.\n{"learning_rate": 0.01, "repeat": 3}',
    ):
        edit, recipe = understand(domain, task, text, Recipe())
        assert isinstance(edit, Edit) and len(edit.examples) == 4 and recipe.learning_rate == 0.01
    bad = {
        '{"learning_rate": 7}\nx': "learning_rate",
        '{"rank": 900}\nx': "rank",
        '{"repeat": 1e99}\nx': "repeat",
        "{]\nx": "JSON",
        '{"repeat": 2}\nx\n{"repeat": 2}': "twice",
        '{"learning_rate": NaN}\nx': "",
        '{"repeat": 2}': "empty",
    }
    for text, reason in bad.items():
        edit, _ = understand(domain, task, text, Recipe())
        assert isinstance(edit, BadEdit) and reason in edit.reason, text
    plain, _ = understand(Knowledge(), task, '{"learning_rate": 7}\nx', Recipe())
    assert isinstance(plain, Edit) and len(plain.examples) == 3, (
        "without the option such a line is a row like any other"
    )
    check_domain(domain)


def test_directives_drawn_at_random_end_the_edits_of_the_first_round(tmp_path: Path) -> None:
    name = tiny.save(tmp_path / "model")
    options = {"sizes": {"train": 4, "select": 1, "eval": 3}, "directives": True}
    flags = [
        *FLAGS,
        f"--domain.options={json.dumps(options)}",
        f"--model.name={name}",
        f"--runs={tmp_path}",
        "--write.explore=true",
    ]
    settings = load_config(None, flags)
    run(settings, Store(settings))
    first, second = (json.loads((tmp_path / f"run/seal/round-{r}/texts.json").read_text()) for r in (1, 2))
    assert all(text.endswith("}") for row in first for text in row)
    assert not any(text.endswith("}") for row in second for text in row), (
        "from then on the model writes them itself, or does not"
    )


def test_completions_of_grpo_are_the_edits_whatever_the_template(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from seal.loop.selection import sft_examples
    from seal.lora.chat import conventions_of
    from seal.lora.tokens import encode_example
    from seal.records import Prompt, Selected

    policy = tiny.policy()
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    policy.conventions = conventions_of(policy.tokenizer, chat="on")
    for prompt in (Prompt("Read."), Prompt("Read.", "Be brief.")):
        example = sft_examples([Selected("a", "Velora is walled.", 1.0)], {"a": prompt})[0]
        row = encode_example(example, policy.conventions)
        begins = row.loss.index(True)
        assert (
            policy.tokenizer.decode(row.ids[begins:], skip_special_tokens=True).strip() == "Velora is walled."
        )


def test_controls_take_as_many_as_seal_did_and_nothing_where_it_kept_nothing() -> None:
    attempts = [attempt(t, e, e / 10) for t in "ab" for e in range(4)]
    seal = [Selected("a", "x", 1.0), Selected("a", "y", 1.0)]
    outer = OuterConfig()
    assert [k.text for k in WORST.select(attempts, seal, outer, 0)] == ["a 0", "a 1"]
    assert RANDOM.select(attempts, [], outer, 0) == [] and len(RANDOM.select(attempts, seal, outer, 0)) == 2
