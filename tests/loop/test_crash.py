"""A kill between any two system calls: what is on disk is whole or not there, reading changes nothing, and
resuming ends the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seal.cli.main import main
from seal.config import InnerConfig
from seal.domains.knowledge import Knowledge
from seal.loop.inner import InnerLoop
from seal.lora.model import Model
from seal.records import Attempt, Recipe, SealError
from seal.report.tables import round_rewards
from seal.store import Stage, read_attempts, read_rows, write_whole

ROWS = [
    Attempt(f"t{i}", 0, 1, "text\u2028 é\n", "ok", "", 0.5, 0.0, 0.5, ("a",), (1.0,), ("all",))
    for i in range(7)
]


class Killed(BaseException):
    """As kill -9: no handler of ours gets to see it through."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Die before the n-th of the calls that change a disk."""
    left = [0]
    armed = [False]

    def watched(plain: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if armed[0]:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return plain(*args, **options)

        return call

    class Slow:
        """A file whose text reaches the disk piece by piece."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.close()

        def write(self, text: Any) -> int:
            for start in range(0, len(text), 40):
                watched(self.file.write)(text[start : start + 40])
                self.file.flush()
            return len(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    opened = Path.open

    def open_(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = opened(self, mode, *args, **options)
        return Slow(file) if armed[0] and set("wa+") & set(mode) else file

    monkeypatch.setattr(Path, "open", open_)
    for owner, name in (
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "unlink"),
        (os, "fsync"),
        (os, "replace"),
        (os, "rename"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))

    def at(n: int) -> None:
        left[0], armed[0] = n, n >= 0

    yield at
    armed[0] = False


def dies(at: Callable[[int], None], n: int, work: Callable[[], object]) -> bool:
    at(n)
    try:
        work()
    except Killed:
        return True
    finally:
        at(-1)
    return False


def test_a_file_is_there_whole_or_as_it_was(killing: Callable[[int], None], tmp_path: Path) -> None:
    text = json.dumps(list(range(60)))
    for before in (None, "[0]"):
        for n in range(60):
            path = tmp_path / f"{before}-{n}" / "f.json"
            if before is not None:
                write_whole(path, before)
            died = dies(killing, n, lambda path=path: write_whole(path, text))  # type: ignore[misc]
            held = path.read_text() if path.exists() else None
            assert held == text if not died else held in (before, text), f"killed before call {n}"
            write_whole(path, text)
            assert path.read_text() == text
            if not died:
                break
        else:
            pytest.fail("it never got through")


def test_a_folder_is_there_with_all_its_files_or_not_at_all(
    killing: Callable[[int], None], tmp_path: Path
) -> None:
    def fill(folder: Path) -> None:
        for name in ("a", "b", "c"):
            with (folder / name).open("w") as file:
                file.write(name * 50)

    for n in range(80):
        stage = Stage(tmp_path / str(n))
        died = dies(killing, n, lambda stage=stage: stage.once_folder("policy", fill))  # type: ignore[misc]
        folder = stage.folder / "policy"
        assert (
            not folder.exists()
            if died and not folder.exists()
            else sorted(p.name for p in folder.iterdir()) == ["a", "b", "c"]
        )
        stage.once_folder("policy", fill)
        assert [(p.name, p.read_text()) for p in sorted(folder.iterdir())] == [(x, x * 50) for x in "abc"]
        if not died:
            return
    pytest.fail("it never got through")


def test_a_wave_that_was_torn_anywhere_is_owed_and_made_once(
    killing: Callable[[int], None], tmp_path: Path
) -> None:
    for n in range(200):
        stage = Stage(tmp_path / str(n))
        stage.append(ROWS[:3])
        died = dies(killing, n, lambda stage=stage: stage.append(ROWS[3:6]))  # type: ignore[misc]
        again = dies(killing, n // 3, lambda stage=stage: stage.resumed(3, 7))  # type: ignore[misc]
        done = stage.resumed(3, 7)
        assert done in (ROWS[:3], ROWS[:6])
        stage.append(ROWS[len(done) : 6])
        stage.append(ROWS[6:])
        assert stage.resumed(3, 7) == stage.attempts() == ROWS
        if not died and not again:
            return
    pytest.fail("it never got through")


def test_what_is_torn_off_is_set_aside_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(tmp_path)
    stage.append(ROWS[:5])
    with (tmp_path / "attempts.jsonl").open("ab") as file:
        file.write(b'{"task": "t5", "ed')
    held = (tmp_path / "attempts.jsonl").read_bytes()
    assert stage.attempts() == ROWS[:5] and (tmp_path / "attempts.jsonl").read_bytes() == held, (
        "a read changes nothing"
    )
    assert stage.resumed(3, 7) == ROWS[:3]
    assert (tmp_path / "attempts.jsonl").read_bytes() + (tmp_path / "attempts.torn").read_bytes() == held, (
        "and nothing is lost"
    )
    assert "attempts.torn" in capsys.readouterr().err
    assert stage.resumed(3, 7) == ROWS[:3] and not capsys.readouterr().err


DAMAGE = {
    "one field more": (
        lambda rows: [r | {"invented": 1} for r in rows],
        "line 1: the field 'invented' is of another version",
    ),
    "one field less": (
        lambda rows: [{k: v for k, v in r.items() if k != "after"} for r in rows],
        "line 1: the field 'after' is missing",
    ),
    "a field of another kind": (
        lambda rows: [rows[0], rows[1] | {"scores": 3}, *rows[2:]],
        "line 2: the field 'scores' is no list",
    ),
    "a line that is no record": (lambda rows: [*rows[:2], [1], *rows[3:]], "line 3: it holds no attempt"),
    "a line that is no JSON": (lambda rows: [*rows[:3], "\x00", *rows[4:]], "line 4: "),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", ["attempts", "resumed", "rewards", "read_attempts"])
def test_a_read_never_writes_and_says_which_line_it_does_not_know(
    damage: str, reader: str, tmp_path: Path
) -> None:
    change, says = DAMAGE[damage]
    stage = Stage(tmp_path / "seal/round-1")
    stage.append(ROWS)
    path = stage.folder / "attempts.jsonl"
    lines = [x if x == "\x00" else json.dumps(x) for x in change([a.to_json() for a in ROWS])]
    path.write_text("".join(f"{x}\n" for x in lines))
    held = path.read_bytes()
    readers: dict[str, Callable[[], object]] = {
        "attempts": stage.attempts,
        "resumed": lambda: stage.resumed(3, 9),
        "rewards": lambda: round_rewards(tmp_path, "seal", 1),
        "read_attempts": lambda: read_attempts(path),
    }
    with pytest.raises(SealError, match=r"attempts\.jsonl, " + says):
        readers[reader]()
    assert path.read_bytes() == held and [p.name for p in stage.folder.iterdir()] == ["attempts.jsonl"]


def test_commands_on_a_finished_run_of_another_version_leave_it_as_it_is(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unbroken, tmp_path / "runs/whole")
    run = tmp_path / "runs/whole"
    for path in run.rglob("attempts.jsonl"):
        rows = [json.loads(x) | {"invented": 1} for x in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("results.json", "report.html"):
        (run / name).unlink()
    held = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(config))
    flags = [
        f"--{k}={json.dumps(v) if not isinstance(v, str) else v}"
        for k, v in config.items()
        if k not in ("runs", "cluster")
    ]
    assert main(["eval", *flags, "--runs", str(tmp_path / "runs")]) == 2
    assert main(["check", "reward", str(run)]) in (0, 2)  # it needs scores alone, whoever wrote them
    assert main(["export", str(run), "--kind", "dataset", "--out", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("is of another version of SEAL; nothing has been changed") == 2
        and "Traceback" not in error
    )
    assert {p: p.read_bytes() for p in held} == held


def test_a_wave_that_was_done_before_its_turn_is_not_made_again(policy: Model, tmp_path: Path) -> None:
    domain = Knowledge(sizes={"train": 2, "select": 1, "eval": 1})
    inner = InnerConfig(recipe=Recipe(rank=2, steps=1), answer_tokens=2, wave=2, slots=2)
    texts = [{0: "Hu is far.", 1: "x"}, {0: "y", 1: "\x00"}]
    trials = InnerLoop(domain, inner).trials(domain.tasks("train"), texts, 0, range(1))
    straight = InnerLoop(domain, inner).work_through(
        policy, domain.tasks("train"), trials, Stage(tmp_path / "straight")
    )
    stage = Stage(tmp_path / "jumped")
    early = [Attempt.from_json({**a.to_json(), "seconds": 123.0}) for a in straight[2:]]
    stage.put_aside(1, early)
    assert stage.aside(1) == early and stage.aside(0) == []
    found = InnerLoop(domain, inner).work_through(policy, domain.tasks("train"), trials, stage)
    assert [a.seconds for a in found[2:]] == [123.0] * 2 and not (stage.folder / "waves/00001.json").exists()
    assert [(a.text, a.answers, a.reward) for a in found] == [(a.text, a.answers, a.reward) for a in straight]


def test_a_value_that_is_not_there_is_read_as_none_and_not_made(tmp_path: Path) -> None:
    assert Stage(tmp_path / "s").read("cut") is None and not (tmp_path / "s").exists()


def test_what_needs_less_of_an_attempt_reads_more_and_still_names_a_line_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    path.write_text('{"task": "a"}\n{"invented": 1}\n{"torn')
    assert read_rows(path) == [{"task": "a"}, {"invented": 1}]
    path.write_text('{"task": "a"}\n[]\n')
    with pytest.raises(SealError, match=r"attempts\.jsonl, line 2: it holds no attempt"):
        read_rows(path)
