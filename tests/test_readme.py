"""What the README shows works: its commands one after the other, on a tiny model, and its Python."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest

from seal.cli import main
from tests.runs import FLAGS, ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line for kind, text in BLOCKS if not kind for line in text.splitlines() if line.startswith("seal ")
]
SERVES = ("ui",)
"""Commands that do not end by themselves; the dashboard's tests start it."""


def words_of(line: str, model: str, tmp_path: Path) -> list[str]:
    """A command of the README, made small: later flags win over earlier ones."""
    words = shlex.split(line, comments=True)[1:]
    small = [*FLAGS, f"--model.name={model}", "--model.device=cpu", "--inner.seeds=2"]
    if words[0] == "try":
        return [*words, *small, *(["--model", model] if "--model" in words else []), "--task", "0"]
    if words[:2] == ["model", "get"]:
        return ["model", "get", "mine", "--from", model]
    if words[0] in ("train", "eval"):
        return (
            [*words, *small, "--inner.seeds=1", "--trial.race=4"]
            if "--trial.race" in words
            else [*words, *small]
        )
    if words[0] == "continual":
        return [
            *words, *small, "--continual.sequences=1", "--continual.length=2", "--continual.known=1", "--continual.rehearsed=1",
            '--continual.strategies=["merge", "library"]',
        ]  # fmt: skip
    if words[0] == "learn":
        return [*words, "--edits", "1", "--epochs", "1", "--questions", "4"]
    return words


@pytest.mark.slow
def test_the_commands_of_the_readme(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEAL_CACHE", str(tmp_path / "cache"))
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    with gzip.open("verdicts.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": "q", "gold": "red", "answer": "red", "right": True}) + "\n")
    assert len(COMMANDS) >= 17
    for line in COMMANDS:
        words = words_of(line, model, tmp_path)
        if words[0] in SERVES:
            continue
        if words[0] == "import":  # one of the original's files is made of our own
            assert main(["export", "runs/mine", "--stage", "eval/no-RL", "--out", "RESULTS.json"]) == 0
        code = main(words)
        said = capsys.readouterr()
        if code == 2 and "pip install tensorboard" in said.err:
            continue
        assert code in ((0, 1) if words[0] == "learn" else (0,)), (
            f"{line}\n{said.err}"
        )  # 1: the quiz shows no gain
        assert "Traceback" not in said.err


def test_the_trainers_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "src/seal/lora/README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert (
        "[['amber'], ['wine']" in capsys.readouterr().out
        and (tmp_path / "adapters/amber/adapter_config.json").exists()
    )


def test_the_python_of_the_readme_names_what_there_is() -> None:
    import seal

    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    compile(code, "README.md", "exec")
    for name in re.findall(r"seal\.(\w+)", code):
        assert callable(getattr(seal, name)), name
