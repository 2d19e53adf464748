"""Going down and coming up: signals, disks without locks, terminals that are not UTF-8, other systems."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from seal import store
from seal.cli.main import main
from seal.config import WriteConfig
from seal.domains.knowledge import Knowledge
from seal.loop import write
from seal.lora.model import Model
from seal.records import SealError, Stopped
from seal.store import Stage, claim, stop_when_saved
from tests.runs import ROOT, command


def test_writing_stops_part_by_part_and_goes_on_to_the_same_texts(
    policy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = Knowledge(sizes={"train": 4, "select": 1, "eval": 1})
    tasks, config = domain.tasks("train"), WriteConfig(max_tokens=8, resample=1)
    monkeypatch.setattr(write, "PART", 4)

    def texts(folder: str) -> list[list[str]]:
        return write.write_edits(policy, domain, tasks, 2, config, "seed", Stage(tmp_path / folder))

    whole = texts("whole")
    stop_when_saved()
    with pytest.raises(Stopped):
        texts("stopped")
    kept = tmp_path / "stopped/written/00000.json"
    first = kept.read_bytes()
    assert texts("stopped") == whole and kept.read_bytes() == first
    for name in ("cut.json", "resampled.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_signal_stopped_ends_with_143(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_when_saved()
    assert main(command(model, tmp_path, "run")[3:]) == 143
    assert "the same command goes on" in capsys.readouterr().err


def test_a_second_interrupt_changes_nothing(tmp_path: Path) -> None:
    script = tmp_path / "twice.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "import seal.cli.main\n"
        "m = sys.modules['seal.cli.main']\n"
        "def run(words):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT); time.sleep(.2)\n"
        "m._run = run\n"
        "sys.argv = ['seal', 'train']\n"
        "sys.exit(m.main())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert done.stderr == "seal: interrupted; the same command goes on where it stopped\n"


@pytest.mark.parametrize("number", sorted({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 0}))
def test_a_disk_without_locks_is_one_sentence_and_has_a_way_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unlockable:
        def __init__(self, *_: object) -> None: ...

        def acquire(self, **_: object) -> None:
            raise OSError(number, os.strerror(number)) if number else NotImplementedError("no locks")

    monkeypatch.setattr(store, "FileLock", Unlockable)
    with pytest.raises(SealError, match="knows no locks: --no-lock"):
        claim(tmp_path / "run")
    monkeypatch.setattr(store, "_unlocked", threading.Event())
    store.no_locks()
    with claim(tmp_path / "run"):
        pass


def test_no_lock_is_said_and_is_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "_unlocked", threading.Event())
    assert main(["train", "--no-lock", "--dry-run", "--runs", str(tmp_path)]) == 0
    assert "no lock is taken" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_terminal_that_is_not_utf8_gets_replaced_characters(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = io.BytesIO()
    stream = io.TextIOWrapper(out, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["train", "@", str(tmp_path / "京都−….toml")]) == 2
    stream.flush()
    assert b"there is no config file" in out.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output_is_one_sentence() -> None:
    command = [sys.executable, "-m", "seal", "report", str(ROOT / "tests/data/run-format-1")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfrounds = 7\n")
    assert main(["train", "@", str(tmp_path / "c.toml"), "--dry-run"]) == 0
    assert '"rounds": 7' in capsys.readouterr().out


def test_systems_without_fcntl_and_affinity_import_everything(tmp_path: Path) -> None:
    """Windows has no ``fcntl``; it and macOS have no ``sched_getaffinity``."""
    rooms = [
        "seal.store",
        "seal.loop.workers",
        "seal.loop.verbs",
        "seal.teach.learn",
        "seal.report",
        "seal.ui.app",
    ]
    script = (
        "import os, sys\n"
        "del os.sched_getaffinity\n"
        "import filelock, torch, transformers  # bring what they need themselves\n"
        "sys.modules['fcntl'] = None\n"
        f"import importlib\nfor name in {rooms!r}: importlib.import_module(name)\n"
        "from seal.lora.load import allowed_cores, usable_cores\n"
        "assert len(allowed_cores()) == os.cpu_count() and usable_cores() >= 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_holder_that_the_table_of_locks_does_not_list_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another PID namespace."""
    read = Path.read_text

    def hidden(path: Path, *given: str) -> str:
        return "" if str(path) == "/proc/locks" else read(path, *given)

    monkeypatch.setattr(Path, "read_text", hidden)
    assert not store.is_claimed(tmp_path)
    with claim(tmp_path):
        assert store.is_claimed(tmp_path)
    assert not store.is_claimed(tmp_path)
