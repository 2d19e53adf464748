"""The run folder: whole waves survive, torn ones are owed again, nothing is overwritten or mixed up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from seal.cli import main
from seal.config import RunConfig, load_config
from seal.records import Attempt, Recipe, SealError
from seal.store import Stage, Store, write_whole

ROWS = [
    Attempt(f"t{i}", 0, 1, "text\u2028 é", "ok", "", 0.5, 0.0, 0.5, ("a",), (1.0,), ("all",))
    for i in range(7)
]


@pytest.mark.parametrize("cut", [1, 17, 200, 400])
def test_a_torn_wave_is_cut_off_and_owed_whole(tmp_path: Path, cut: int) -> None:
    stage = Stage(tmp_path)
    stage.append(ROWS[:3])
    whole = (tmp_path / "attempts.jsonl").stat().st_size
    stage.append(ROWS[3:6])
    with (tmp_path / "attempts.jsonl").open("r+b") as file:
        file.truncate(whole + cut)
    assert stage.resumed(wave=3, total=7) == ROWS[:3]
    stage.append(ROWS[3:6])
    stage.append(ROWS[6:])
    assert stage.resumed(wave=3, total=7) == ROWS


def test_a_short_last_wave_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.append(ROWS)
    assert stage.resumed(wave=3, total=7) == ROWS


def test_a_value_is_computed_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s")
    assert [stage.once("v", lambda n=n: {"n": n}) for n in (1, 2)] == [{"n": 1}, {"n": 1}]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    def half(folder: Path) -> None:
        (folder / "a").write_text("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.once_folder("policy", half)
    assert not (tmp_path / "policy").exists()
    stage.once_folder("policy", lambda f: write_whole(f / "b", "b"))
    assert [p.name for p in (tmp_path / "policy").iterdir()] == ["b"]


def test_a_folder_is_not_continued_under_another_config_nor_by_two(tmp_path: Path) -> None:
    config = RunConfig(runs=str(tmp_path), name="a")
    store = Store(config)
    with pytest.raises(SealError, match="in use"):
        Store(config)
    other = config.model_copy(update={"inner": config.inner.model_copy(update={"recipe": Recipe(rank=8)})})
    del store
    Store(other)  # nothing is done yet: the config may still be put right
    Store(config).stage("seal/round-1").once("texts", list)
    with pytest.raises(SealError, match=r"inner\.recipe\.rank: 32 there, 8 here"):
        Store(other)


def test_a_disk_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SealError, match="cannot write"):
        write_whole(tmp_path / "file" / "x.json", "{}")
    with pytest.raises(SealError, match="cannot write"):
        Stage(tmp_path / "file").append(ROWS)


def test_every_shipped_config_loads() -> None:
    configs = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
    assert configs
    for path in configs:
        load_config(path)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--roundz", "3"], "roundz: Extra inputs"),
        (["--rounds", "-1"], r"rounds.*greater than or equal to 0.*-1"),
        (["--inner.recipe.learning_rate", "7"], r"inner\.recipe\.learning_rate.*less than or equal to 1"),
        (["--outer.select", "luck"], r"outer\.select"),
        (["rounds"], "is not a flag"),
        (["--rounds"], "has no value"),
        (["--rounds", "1", "--rounds.x", "1"], "rounds is a value, not a table"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(flags: list[str], match: str) -> None:
    with pytest.raises(SealError, match=match):
        load_config(None, flags)


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("rounds = 5\n[inner.recipe]\nrank = 4\n")
    config = load_config(
        tmp_path / "c.toml", ["--inner.recipe.alpha=9", "--rounds", "1", "--model.name", "some/model"]
    )
    assert (config.rounds, config.inner.recipe.rank, config.inner.recipe.alpha) == (1, 4, 9)
    assert config.model.name == "some/model"
    with pytest.raises(SealError, match="no config file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("rounds = = 5")
    with pytest.raises(SealError, match="not TOML"):
        load_config(tmp_path / "bad.toml")


FORMAT_1 = Path(__file__).parent / "data/run-format-1"
"""A run of November 2026, of a tiny model: what every later version reads."""


def test_a_run_of_format_1_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(FORMAT_1, tmp_path / "small"))
    assert main(["report", str(run), "--json", str(tmp_path / "x.json")]) == 0
    rows = {r["setting"]: r["accuracy"] for r in json.loads((tmp_path / "x.json").read_text())["rows"]}
    told = json.loads((FORMAT_1 / "results.json").read_text())["settings"]
    assert rows == {s["setting"]: pytest.approx(sum(s["scores"]) / len(s["scores"]), abs=1e-4) for s in told}
    assert main(["check", "reward", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "out.json")]) == 0
    stage = Stage(run / "seal/round-1")
    assert len(stage.attempts()) == 18 and {a.status for a in stage.attempts()} <= {
        "ok",
        "bad edit",
        "diverged",
    }
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_of_a_newer_format_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(FORMAT_1, tmp_path / "small"))
    (run / "run.json").write_text('{"format": 2}')
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    config = json.loads((run / "config.json").read_text())
    commands = [
        ["report", str(run)],
        ["eval", f"--runs={tmp_path}", "--name=small", f"--rounds={config['rounds']}"],
    ]
    for words in commands:
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "newer version of SEAL (run format 2, this one knows 1)" in said and said.count("\n") == 1
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == files
    (run / "run.json").write_text("[]")
    assert main(["report", str(run)]) == 2 and "names no format" in capsys.readouterr().err


def test_a_run_with_settings_that_are_gone_goes_on_where_they_changed_nothing(tmp_path: Path) -> None:
    config = RunConfig(runs=str(tmp_path), name="x")
    Store(config).stage("seal/round-1").put("texts", [])
    path = tmp_path / "x/config.json"
    data = json.loads(path.read_text())
    data["trial"] |= {"drafted": 0, "filter": None, "prior": 0.0}
    data["outer"] |= {"replay": 0.0, "anchor": 0.0}
    path.write_text(json.dumps(data))
    Store(config)
    path.write_text(json.dumps(data | {"outer": data["outer"] | {"anchor": 0.5}}))
    with pytest.raises(SealError, match=r"another config \(outer.anchor: 0.5 there"):
        Store(config)
