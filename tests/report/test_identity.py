"""What was measured is known again: who may be pooled and paired, wherever a run folder lies, and one reader
of its settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seal.config import RunConfig, load_config
from seal.loop import evaluate
from seal.loop.results import run_record
from seal.machine import environment
from seal.records import SealError
from seal.report.compare import same_tasks
from seal.report.pages import fenced, plain
from seal.report.tables import load_runs
from seal.store import Store, read_config, write_whole

RESULTS = [evaluate.Result("base", [0.1, 0.2], {}, 2, 0.0, 0.0, 0.0)]


def _run(folder: Path, **more: object) -> Path:
    config = RunConfig(rounds=0)
    record = run_record(config, RESULTS, ["x", "y"], ["x", "y"], 1.0) | more
    write_whole(folder / "results.json", json.dumps(record))
    return folder


def test_runs_on_other_questions_under_the_same_names_are_not_pooled(tmp_path: Path) -> None:
    one = _run(tmp_path / "one", fingerprint="aa")
    same = _run(tmp_path / "same", fingerprint="aa")
    other = _run(tmp_path / "other", fingerprint="bb")
    older = _run(tmp_path / "older")
    assert len(load_runs([one, same])) == len(load_runs([one, older])) == 2
    with pytest.raises(SealError, match="other texts, questions or answers"):
        load_runs([one, other])


def test_runs_on_other_questions_are_not_paired() -> None:
    tasks = {"tasks": ["eval-0"]}
    assert same_tasks(tasks | {"fingerprint": "a"}, tasks | {"fingerprint": "a"})
    assert same_tasks(tasks, tasks | {"fingerprint": "a"})
    assert not same_tasks(tasks | {"fingerprint": "a"}, tasks | {"fingerprint": "b"})


def _passages(path: Path) -> Path:
    rows = [{"title": f"T{i}", "context": f"c {i}", "questions": []} for i in range(3)]
    path.write_text(json.dumps(rows))
    return path


def test_a_run_keeps_its_source_and_is_read_wherever_it_lies(tmp_path: Path) -> None:
    source = _passages(tmp_path / "passages.json")
    text = source.read_bytes()
    config = RunConfig(runs=str(tmp_path / "runs"), domain={"options": {"source": str(source)}})  # type: ignore[arg-type]
    Store(config).begun_with({})
    assert read_config(config.folder)["domain"]["options"]["source"] == str(source)
    source.unlink()
    moved = tmp_path / "moved"
    config.folder.rename(moved)
    found = Path(read_config(moved)["domain"]["options"]["source"])
    assert found.parent.parent == moved and found.read_bytes() == text


def test_an_imported_run_that_was_moved_finds_its_passages(tmp_path: Path) -> None:
    folder = tmp_path / "runs/run"
    folder.mkdir(parents=True)
    _passages(folder / "passages.json")
    config = RunConfig(
        runs=str(tmp_path / "runs"),
        domain={"options": {"source": str(folder / "passages.json")}},  # type: ignore[arg-type]
    )
    Store(config).begun_with({})
    assert not (folder / "tasks/passages.json").exists(), "it lies in the folder already"
    folder.rename(tmp_path / "elsewhere")
    found = read_config(tmp_path / "elsewhere")["domain"]["options"]["source"]
    assert found == str(tmp_path / "elsewhere/passages.json")


@pytest.mark.parametrize("gone", [("inner", "reward"), ("inner", "seeds"), ("model", "engine"), ("eval",)])
def test_settings_that_an_older_version_did_not_have_are_at_their_defaults(
    gone: tuple[str, ...], tmp_path: Path
) -> None:
    data = json.loads(RunConfig().model_dump_json())
    part = data
    for key in gone[:-1]:
        part = part[key]
    del part[gone[-1]]
    write_whole(tmp_path / "config.json", json.dumps(data))
    assert read_config(tmp_path) == json.loads(RunConfig().model_dump_json())


@pytest.mark.parametrize("text", ["[]", "{}", '{"inner": 3}', "{"])
def test_settings_that_are_none_are_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SealError):
        read_config(tmp_path)


def test_a_table_given_as_json_is_laid_over_the_files(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[domain]\noptions = {source = "atlas", sizes = {train = 3, eval = 2}}\n')
    flag = '--domain.options={"grader": "string", "sizes": {"eval": 5}}'
    assert load_config(file, [flag]).domain.options == {
        "source": "atlas",
        "grader": "string",
        "sizes": {"train": 3, "eval": 5},
    }
    rates = "[inner.recipe]\nlearning_rate = 3e-3\n"
    file.write_text(rates)
    recipe = load_config(file, ["--inner.recipe", '{"rank": 8}']).inner.recipe
    assert (recipe.rank, recipe.learning_rate) == (8, 3e-3)


def test_the_threads_on_record_are_those_that_the_settings_ask_for() -> None:
    assert environment(7)["threads"] == 7


@pytest.mark.parametrize("text", ["```\n<img>\n```", "````", "plain", "a ` b"])
def test_no_edit_breaks_out_of_its_block(text: str) -> None:
    first, body, last = fenced(text)
    assert body == text and first == last
    assert first not in text and set(first) == {"`"}


def test_titles_are_text_in_markdown() -> None:
    assert plain("# a *b*\n[x](y) | `z`") == r"\# a \*b\* \[x\](y) \| \`z\`"


def test_attempts_without_their_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    config = RunConfig(runs=str(tmp_path))
    Store(config).stage("seal/round-1").append([])
    (config.folder / "config.json").unlink()
    with pytest.raises(SealError, match="no config"):
        Store(config)


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunConfig(runs=str(tmp_path))
    Store(config, {"machine": "a", "threads": 1})
    Store(config, {"machine": "a", "threads": 1})
    assert not capsys.readouterr().err
    Store(config, {"machine": "a", "threads": 2})
    assert "threads: 1 there, 2 here" in capsys.readouterr().err
