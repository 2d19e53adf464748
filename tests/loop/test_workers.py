"""Workers through Ray: the same attempts as without them, whatever dies meanwhile. Skipped where Ray is not
installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from seal.config import RunConfig
from seal.domains.knowledge import Knowledge
from seal.records import Query, SealError, Task
from tests.runs import ROOT, command

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'seal-lm[ray]'")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.slow


class Poison(Knowledge):
    """A domain whose edits of one task kill whoever tries them."""

    def queries(self, task: Task) -> list[Query]:
        if os.environ.get("POISON") == task.id and "ray::" in " ".join(psutil.Process().cmdline()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().queries(task)


class OutOnce(Knowledge):
    """A domain that runs one worker out of memory, once."""

    def queries(self, task: Task) -> list[Query]:
        mark = Path(os.environ.get("MARK", ""))
        if "ray::" in " ".join(psutil.Process().cmdline()) and not mark.exists():
            mark.touch()
            raise MemoryError("no memory is left")
        return super().queries(task)


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        timeout=300,
    )


def attempts(folder: Path) -> list[dict[str, object]]:
    """The attempts of the first two rounds, without clock times."""
    rows = []
    for path in sorted(folder.glob("seal/round-*/attempts.jsonl")):
        rows += [json.loads(x) for x in path.read_text().split("\n")[:-1]]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that try edits, of a driver."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [
            c
            for c in children
            if "_Worker.wave" in " ".join(c.cmdline()) or "ray::_Worker" in " ".join(c.cmdline())
        ]
    except psutil.Error:
        return []


def test_workers_find_what_one_process_finds_while_they_are_killed(
    model: str, unbroken: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(model, tmp_path, "crew", "--workers", "2", verb="train"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    killed = 0
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and killed < 2:
        for worker in workers_of(process.pid):
            if (tmp_path / "crew/seal/round-1/before.json").exists() and killed < 2:
                worker.kill()
                killed += 1
                time.sleep(2)
        time.sleep(0.05)
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 0, err
    assert killed, "no worker was caught at work"
    assert attempts(tmp_path / "crew") == attempts(unbroken)
    assert not list((tmp_path / "crew").rglob("waves/*.json")), "nothing stays aside"
    policies = [
        (folder / "seal/round-2/policy/adapter_model.safetensors").read_bytes()
        for folder in (unbroken, tmp_path / "crew")
    ]
    assert policies[0] == policies[1]


def test_a_driver_killed_loses_nothing_and_may_go_on_alone(
    model: str, unbroken: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(model, tmp_path, "driver", "--workers", "2", verb="train"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    path = tmp_path / "driver/seal/round-1/attempts.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = path.read_bytes()
    done = run(*command(model, tmp_path, "driver", verb="train"))
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(held[: held.rfind(b"\n") + 1]), "no finished attempt is repeated"
    assert attempts(tmp_path / "driver") == attempts(unbroken)


def test_an_attempt_that_kills_its_worker_is_set_aside_and_its_neighbours_are_not(
    model: str, unbroken: Path, tmp_path: Path
) -> None:
    poisoned = str(attempts(unbroken)[0]["task"])
    flags = [
        "--workers",
        "2",
        "--rounds",
        "1",
        "--edits_per_task",
        "1",
        "--domain.name",
        f"{__file__}:Poison",
    ]
    done = run(*command(model, tmp_path, "poison", *flags, verb="train"), env={"POISON": poisoned})
    assert done.returncode == 0, done.stderr
    found = attempts(tmp_path / "poison")
    assert {a["status"] for a in found if a["task"] == poisoned} == {"failed"}
    assert all("3 tries" in str(a["reason"]) and a["reward"] is None for a in found if a["task"] == poisoned)
    others = [a for a in attempts(unbroken)[:9] if a["task"] != poisoned and a["edit"] == 0]
    assert [a for a in found if a["task"] != poisoned] == others


def test_a_worker_out_of_memory_is_tried_again(model: str, unbroken: Path, tmp_path: Path) -> None:
    flags = ["--workers", "2", "--rounds", "1", "--domain.name", f"{__file__}:OutOnce"]
    done = run(*command(model, tmp_path, "out", *flags, verb="train"), env={"MARK": str(tmp_path / "mark")})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()
    assert attempts(tmp_path / "out") == attempts(unbroken)[:9]


def test_what_a_user_gets_wrong_is_one_sentence(model: str, tmp_path: Path) -> None:
    done = run(*command(model, tmp_path, "lost", "--workers", "1", "--cluster", "127.0.0.1:1", verb="train"))
    assert (
        done.returncode == 2
        and "Ray does not start" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_other_numbers_of_workers_go_on_with_the_same_folder(tmp_path: Path) -> None:
    from seal.store import Store

    Store(RunConfig(runs=str(tmp_path))).stage("seal/round-1").once("x", int)
    Store(RunConfig(runs=str(tmp_path), workers=3, cluster="auto"))
    with pytest.raises(SealError, match="another config"):
        Store(RunConfig(runs=str(tmp_path), seed=1))
