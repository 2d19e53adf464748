"""The whole run on a tiny random model: it resumes bit-identical after kill -9, and the commands behave."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from seal.cli.main import main
from seal.config import RunConfig, load_config
from seal.domains import load_domain
from seal.domains.check import HOSTILE, check_domain
from seal.domains.knowledge import Knowledge
from seal.loop.inner import InnerLoop
from seal.loop.outer import run
from seal.loop.write import from_file
from seal.lora.load import load_model
from seal.records import NO_RL, ORACLE, PASSAGE_MATCHED, Edit, Grade, SealError, Task, control, seal_round
from seal.report.tables import load_runs
from seal.store import Stage, Store
from tests import tiny
from tests.runs import FLAGS, ROOT, command, content


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(
    model: str, unbroken: Path, tmp_path: Path
) -> None:
    kills = 0
    moments = iter(
        (("seal/round-1/attempts.jsonl", 3), ("seal/round-2/texts.json", 1), ("eval/no-RL/attempts.jsonl", 1))
    )
    for name, n_lines in moments:
        process = subprocess.Popen(
            command(model, tmp_path, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        path = tmp_path / "killed" / name
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_bytes().count(b"\n") >= n_lines:
                break
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    before = {p: p.read_bytes() for p in (tmp_path / "killed").rglob("attempts.jsonl")}
    done = subprocess.run(
        command(model, tmp_path, "killed"), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert kills == 3
    for (
        path,
        held,
    ) in before.items():  # finished waves are still the same bytes, seconds included: not repeated
        whole = held[: held.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(whole[: len(b"\n".join(whole.split(b"\n")[:3]))])
    assert content(tmp_path / "killed") == content(unbroken)


@pytest.mark.slow
def test_asked_to_stop_it_finishes_the_wave_ends_with_143_and_goes_on(
    model: str, unbroken: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(model, tmp_path, "asked"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    path = tmp_path / "asked/seal/round-1/attempts.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not path.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.terminate()
    assert "stopped as asked" in process.communicate(timeout=120)[1]
    assert process.returncode == 143
    assert not (tmp_path / "asked/results.json").exists()
    assert path.read_bytes().count(b"\n") % 3 == 0, "whole waves alone"
    done = subprocess.run(
        command(model, tmp_path, "asked"), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "asked") == content(unbroken)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(
    model: str, unbroken: Path, tmp_path: Path
) -> None:
    def no_file_larger() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    words = command(model, tmp_path, "full")
    full = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=no_file_larger
    )
    assert full.returncode == 2 and full.stderr.strip().splitlines()[-1].startswith("seal: cannot write"), (
        full.stderr
    )
    held = {p: p.read_bytes() for p in (tmp_path / "full").rglob("attempts.jsonl")}
    assert not (tmp_path / "full/results.json").exists()
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(p.read_bytes().startswith(b[: b.rfind(b"\n") + 1]) for p, b in held.items())
    assert content(tmp_path / "full") == content(unbroken)


def test_a_clock_that_jumps_changes_nothing(
    model: str, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter([10**6, -(10**6)] * 10**6)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    flags = command(model, tmp_path, "jumping", verb="train")[3:]
    assert main([*flags, "--rounds=1"]) == 0
    mine, other = (run_ / "seal/round-1/attempts.jsonl" for run_ in (tmp_path / "jumping", unbroken))
    rows = [
        [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in p.read_text().splitlines()]
        for p in (mine, other)
    ]
    assert rows[0] == rows[1] and all(json.loads(x)["seconds"] >= 0 for x in mine.read_text().splitlines())


@pytest.mark.slow
def test_controls_stand_in_the_table_by_name(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS, "--rounds=1", f"--model.name={model}", f"--runs={tmp_path}", "--name=controls"]
    assert main(["train", *flags, "--controls", "random,worst,others"]) == 0
    assert main(["eval", *flags]) == 0
    rows = [s["setting"] for s in json.loads((tmp_path / "controls/results.json").read_text())["settings"]]
    assert [r for r in rows if "control" in r] == ["random control", "worst control", "others control"]
    assert main(["train", *flags, "--controls", "best"]) == 2
    assert "there is no control 'best'" in capsys.readouterr().err


def test_the_run_folder_tells_everything(unbroken: Path) -> None:
    config = json.loads((unbroken / "config.json").read_text())
    assert (
        config["rounds"] == 2 and json.loads((unbroken / "environment.json").read_text())["versions"]["torch"]
    )
    rows = content(unbroken)["seal/round-1/attempts.jsonl"]
    assert isinstance(rows, list) and len(rows) == 9
    seeds = {(r["task"], r["seed"]) for r in rows}
    assert len(seeds) == 3  # siblings share their training seed
    record = json.loads((unbroken / "results.json").read_text())
    names = [s["setting"] for s in record["settings"]]
    assert {
        s.label for s in (NO_RL, control("random"), ORACLE, PASSAGE_MATCHED, seal_round(1), seal_round(2))
    } <= set(names)
    page = (unbroken / "report.html").read_text()
    assert page.count("<svg") == 3 and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    assert (unbroken / "report.md").read_text().count("|") > 50


def test_the_trained_policy_loads_as_any_model(unbroken: Path, model: str) -> None:
    policy = load_model(unbroken / "seal/round-2/policy")
    base = load_model(model)
    assert any(
        (a != b).any() for a, b in zip(policy.runner.parameters(), base.runner.parameters(), strict=True)
    )
    assert all(a.equal(b) for a, b in zip(policy.model.parameters(), base.model.parameters(), strict=True))


def test_json_and_reports(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(unbroken), "--json", str(tmp_path / "t.json")]) == 0
    table = json.loads((tmp_path / "t.json").read_text())
    assert {"command", "date", "machine", "seeds", "rows", "differences"} <= set(table)
    assert {
        "setting",
        "accuracy",
        "low",
        "high",
        "n_passages",
        "n_questions",
        "silent",
        "tokens",
        "seconds",
    } <= set(table["rows"][0])
    assert [(d["a"], d["b"]) for d in table["differences"]] == [
        ("SEAL", NO_RL.label),
        ("SEAL", control("random").label),
        (NO_RL.label, PASSAGE_MATCHED.label),
    ]
    assert all(d["low"] <= d["mean"] <= d["high"] for d in table["differences"])
    assert "questions:" in capsys.readouterr().out
    held = (tmp_path / "t.json").read_bytes()
    assert main(["report", str(unbroken), "--json", str(tmp_path / "t.json")]) == 2  # nothing is overwritten
    assert "exists already" in capsys.readouterr().err and (tmp_path / "t.json").read_bytes() == held


def test_hostile_edits_are_recorded_with_a_reason_and_reward_0(tmp_path: Path) -> None:
    policy = tiny.policy()
    domain = Knowledge(sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("train")[0]
    config = load_config(None, FLAGS).inner
    stage = Stage(tmp_path)
    attempts = InnerLoop(domain, config).try_edits(policy, [task], [list(HOSTILE.values())], stage, 0)
    assert len(attempts) == len(HOSTILE)
    for name, attempt in zip(HOSTILE, attempts, strict=True):
        bad = name in ("empty", "blank", "control characters", "1 MB", "a million lines")
        assert (attempt.status == "bad edit") is bad
        assert bool(attempt.reason) is bad
        assert attempt.reward == 0.0 or not bad
    assert stage.attempts() == attempts
    assert (tmp_path / "attempts.jsonl").stat().st_size < 200_000  # a 1 MB edit does not fill the disk


def test_likelihood_reward_is_between_0_and_1(tmp_path: Path) -> None:
    policy = tiny.policy()
    domain = Knowledge(sizes={"train": 1, "select": 1, "eval": 1})
    task = domain.tasks("train")[0]
    config = load_config(None, [*FLAGS, "--inner.reward=likelihood"]).inner
    rewards = [
        a.reward
        for a in InnerLoop(domain, config).try_edits(
            policy, [task], [[domain.oracle(task) or "", "x"]], Stage(tmp_path), 0
        )
    ]
    assert all(r is not None and 0 < r < 1 for r in rewards)


def test_the_example_domain_is_sound_and_short(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / "my_domain.py"
    assert len(check_domain(load_domain(f"{path}:Lexicon"))) >= 4
    code = path.read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 45
    assert main(["check", f"{path}:Lexicon"]) == 0
    assert "gold answers grade 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["train", "@", "nowhere.toml"], "no config file nowhere.toml"),
        (["train", "@"], "@ names no config file"),
        (["train", "--model.name", "no/such-model", "--name", "x"], "cannot be loaded"),
        (["train", "--domain.name", "no_domain"], "no domain is named"),
        (["train", "--domain.name", "gone.py:X"], "no file gone.py"),
        (["eval", "--name", "untrained"], "run `seal train`"),
        (["report", "nowhere"], "nowhere has no results.json"),
        (["check", "knowledge", "--options", "{"], "not JSON"),
        (["try", "--task=x"], "takes a number"),
        (["train", "--task", "1"], "task: Extra inputs"),
        (["train", "--model.device", "banana"], "no device is named 'banana'"),
        (["train", "--model.device", "cuda:99"], "is not on this machine"),
        (["train", "@", "."], "cannot be read"),
        (
            ["train", "@", str(ROOT / "configs/atlas.toml"), "--rounds", "x"],
            "--rounds: Input should be a valid integer",
        ),
        (["train", "--name", ""], "--name: String should match"),
        (["train", "--model.quantize", "4bit", "--outer.rule", "dpo"], "trains a whole copy"),
        (["train", "--eval.saturation_epochs", "[]"], "saturation_epochs"),
        (["report", ".", "--figure", "x.xyz"], "name end in .png"),
        (["try", "--task", "999"], "numbered 0 to"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence_and_exit_code_2(
    argv: list[str],
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1 and "Traceback" not in error


def test_another_models_edits_are_read_from_a_file(tmp_path: Path) -> None:
    tasks = Knowledge(sizes={"train": 1, "select": 1, "eval": 2}).tasks("eval")
    rows = [
        {
            "title": t.data["title"],
            "context": t.data["context"],
            "completions": [f"{t.id} {i}" for i in range(3)],
        }
        for t in tasks
    ]
    (tmp_path / "edits.json").write_text(json.dumps(rows))
    assert from_file(tmp_path / "edits.json", tasks, 2) == [[f"{t.id} 0", f"{t.id} 1"] for t in tasks]
    with pytest.raises(SealError, match="has 3 edits"):
        from_file(tmp_path / "edits.json", tasks, 4)
    with pytest.raises(SealError, match="is not a list"):
        from_file(tmp_path / "none.json", tasks, 1)


def test_adapting_from_the_frozen_base_means_the_model_before_any_round(model: str, tmp_path: Path) -> None:
    flags = [
        *FLAGS,
        f"--model.name={model}",
        f"--runs={tmp_path}",
        "--inner.start=base",
        "--tasks_per_round=4",
    ]
    config = load_config(None, flags)
    run(config, Store(config))
    asked = [json.loads((tmp_path / f"run/seal/round-{r}/before.json").read_text()) for r in (1, 2)]
    assert sorted(asked[0]) == sorted(
        asked[1]
    )  # the same tasks, in another order, and the same untouched model


def test_a_run_is_not_continued_on_other_tasks(model: str, tmp_path: Path) -> None:
    rows = [
        {"title": f"T{i}", "context": f"c{i}", "questions": [{"question": "q?", "answer": "a"}]}
        for i in range(9)
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    options = {"source": str(tmp_path / "p.json"), "sizes": {"train": 3, "select": 2, "eval": 4}}
    flags = [
        *FLAGS,
        f"--model.name={model}",
        f"--runs={tmp_path}",
        "--rounds=1",
        f"--domain.options={json.dumps(options)}",
    ]
    config = load_config(None, flags)
    run(config, Store(config))
    rows[0]["title"] = "other"
    (tmp_path / "p.json").write_text(json.dumps(rows))
    with pytest.raises(SealError, match=r"was begun with other \w+ tasks"):
        run(config, Store(config))


def test_runs_of_different_experiments_are_not_pooled(unbroken: Path, tmp_path: Path) -> None:
    record = json.loads((unbroken / "results.json").read_text())
    record["of"]["rounds"] = 5
    (tmp_path / "results.json").write_text(json.dumps(record))
    with pytest.raises(SealError, match="not seeds of one experiment"):
        load_runs([unbroken, tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SealError, match="cannot be read"):
        load_runs([tmp_path])


class _Broken(Knowledge):
    fault = ""

    def tasks(self, split: str) -> Any:
        return [] if self.fault == "none" else super().tasks(split)

    def prompt(self, task: Task) -> Any:
        return "text" if self.fault == "prompt" else super().prompt(task)

    def grade(self, task: Task, answers: Any) -> Any:
        if self.fault == "raises":
            raise RuntimeError("oh")
        grade = super().grade(task, answers)
        return Grade(grade.score, (*grade.scores, 1.0), grade.kinds) if self.fault == "grade" else grade

    def parse(self, task: Task, text: str) -> Any:
        if self.fault == "rows":
            return Edit(text, ())
        return (
            Edit(text, super()._passage(task), {"learning_rate": 50})
            if self.fault == "settings"
            else super().parse(task, text)
        )


@pytest.mark.parametrize("fault", ["none", "prompt", "raises", "grade", "rows", "settings"])
def test_check_finds_what_is_wrong_with_a_domain(fault: str) -> None:
    domain = _Broken(sizes={"train": 1, "select": 1, "eval": 1})
    assert check_domain(domain)
    domain.fault = fault
    with pytest.raises(SealError):
        check_domain(domain)


def test_dry_run_prints_the_config_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "@", str(ROOT / "configs/atlas.toml"), "--rounds", "7", "--slots", "5", "--dry-run"])
        == 0
    )
    config = RunConfig.model_validate_json(capsys.readouterr().out)
    assert (config.rounds, config.inner.slots) == (7, 5)
    assert not list(tmp_path.iterdir())


def test_a_domain_with_a_fault_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nonexistent_thing\n")
    with pytest.raises(SealError, match=r"bad\.py cannot be imported: ModuleNotFoundError"):
        load_domain(f"{tmp_path / 'bad.py'}:X")


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    config = RunConfig(runs=str(tmp_path))
    Store(config).stage("seal/round-1").once("x", int)
    path = tmp_path / "run/config.json"
    older = json.loads(path.read_text())
    del older["trial"], older["outer"]["rule"]
    path.write_text(json.dumps(older))
    Store(config)
    with pytest.raises(SealError, match="trial"):
        Store(config.model_copy(update={"trial": config.trial.model_copy(update={"race": 9})}))
