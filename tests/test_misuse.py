"""300 generated misuses: whatever a user gets wrong ends in one sentence and a code, never in a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seal.cli.main import main
from seal.config import RunConfig
from tests.runs import ROOT
from tests.test_endpoint import Server

STORED = ROOT / "tests/data/run-format-1"
COMMANDS = ("demo", "train", "eval", "try", "continual")
FILES = ("learn", "edits", "ask", "quiz", "check", "import", "export", "report")
ODD = [
    "", "-1", "0", "1e999", "nan", "NaN", "Infinity", "null", "true", "[]", "{}", "[[[[", '{"a":', "é\ud800"[:1],
    "..", "/", "/dev/null", "a" * 5000, "\x00", "-", "--", "@", "∞", "1.5", "0x10", "9" * 400, "None", "'",
]  # fmt: skip


def keys(data: dict[str, object], at: str = "") -> list[str]:
    return [
        x
        for k, v in data.items()
        for x in ([f"{at}{k}"] + (keys(v, f"{at}{k}.") if isinstance(v, dict) else []))
    ]


SETTINGS = keys(json.loads(RunConfig().model_dump_json()))


def ends(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command of the user's ends with a code, and never in a traceback."""
    try:
        code = main(argv)
    except SystemExit as error:  # argparse's
        code = int(error.code or 0)
    told = capsys.readouterr()
    assert code in (0, 1, 2), argv
    assert "Traceback" not in told.err + told.out
    if code == 2:
        assert told.err.strip(), f"{argv}: nothing said"
        assert len(told.err) < 20_000, f"{argv}: too much said"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_arguments(seed: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw = random.Random(seed)
    command = draw.choice(COMMANDS)
    words = [command]
    for _ in range(draw.randint(1, 3)):
        flag = "--" + draw.choice([*SETTINGS, "no.such", "inner..rank", "", "controls", "json"])
        words += [flag + "=" + draw.choice(ODD)] if draw.random() < 0.5 else [flag, draw.choice(ODD)]
    draw_file = draw.random()
    if draw_file < 0.2:
        words[1:1] = ["@", str(tmp_path / draw.choice(["no.toml", "", "."]))]
    ends([*words, "--dry-run"], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_files_and_folders_as_arguments(
    seed: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text(draw.choice(["", "{}", "[]", "null", "\x00", "NaN", '{"articles": 3}']))
    odd = [str(tmp_path / name) for name in ("empty", "file", "not-there")] + ["", "/dev/null", "x" * 300]
    command = draw.choice([c for c in FILES if c not in ("ask", "learn", "edits")])
    words = [command, *(draw.choice(odd) for _ in range(draw.randint(0, 2)))]
    if command == "check":
        words.insert(1, draw.choice(["domain", "reward", "graders", "nothing"]))
    if draw.random() < 0.5:
        words += [draw.choice(["--json", "--out", "--stage", "--figure"]), draw.choice(odd)]
    ends(words, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(80))
def test_damaged_runs(seed: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw = random.Random(seed)
    run = tmp_path / "run"
    shutil.copytree(STORED, run)
    for name in ("report.html", "report.md"):
        (run / name).unlink(missing_ok=True)
    path = draw.choice(sorted(p for p in run.rglob("*.json*") if p.is_file()))
    spoil(path, draw)
    words: list[list[str]] = [
        ["report", str(run)],
        ["report", str(run), str(STORED)],
        ["check", "reward", str(run)],
        ["export", str(run), "--stage", "seal/round-1", "--out", str(tmp_path / "out.json")],
    ]
    ends(draw.choice(words), capsys)


def spoil(path: Path, draw: random.Random) -> None:
    """A file as a crash, another version or a hand leaves it."""
    data = path.read_bytes()
    ways: list[Callable[[], bytes]] = [
        lambda: data[: draw.randrange(len(data))],
        lambda: b"",
        lambda: b"\xff\xfe" + data,
        lambda: data.replace(b"0", b"null"),
        lambda: data.replace(b'"', b"'"),
        lambda: data.replace(b"[", b"{").replace(b"]", b"}"),
        lambda: b"[]" if path.suffix == ".json" else b"[]\n",
        lambda: data.replace(b"1", b"NaN"),
    ]
    path.write_bytes(draw.choice(ways)())
    if draw.random() < 0.2:
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_what_an_endpoint_may_say(seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from seal import endpoint
    from seal.endpoint import Endpoint
    from seal.records import SealError

    pytest.importorskip("openai")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(endpoint, "GIVEN", {})
    draw = random.Random(seed)
    server = Server()
    value = [None, [], {}, 3, "text", [None], [{}], [{"message": None}], [{"message": {"content": 3}}]]
    bodies = [
        json.dumps({"choices": draw.choice(value), "error": draw.choice([None, {}, "x", {"message": 3}])}),
        json.dumps(draw.choice(value)),
        draw.choice(ODD).replace("\ud800", ""),
        "<html>" + "x" * 1000,
    ]
    kind = draw.choice(["application/json", "text/html", "text/plain", "x/y"])
    status = draw.choice([200, 200, 200, 201, 204, 400, 404, 422, 500])
    server.raw = lambda body: (status, kind, "" if status == 204 else draw.choice(bodies))
    try:
        found = Endpoint(server.name, retries=0).complete(["a", "b"], 5)
        assert len(found) == 2
    except SealError as error:
        assert len(str(error)) < 600 and "attribute" not in str(error)
    finally:
        server.http.shutdown()
