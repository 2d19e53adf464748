import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: no test waits for a network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

from seal.lora.model import Model
from tests import tiny
from tests.runs import ROOT, command

torch.set_num_threads(1)


@pytest.fixture
def policy() -> Model:
    return tiny.policy()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def unbroken(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        command(model, runs, "whole"), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "SEAL − no RL" in done.stdout and "Traceback" not in done.stderr
    return runs / "whole"


# -------------------------------------------------------------------- what was skipped, and whether it may be

EXPECTED = (
    "no NVIDIA GPU here",
    "there is no second GPU",
    "the devices are there",
    "vLLM is not installed here",
    "could not import 'bitsandbytes'",
    "sample data is not beside the project",
    "the released files are not here",
    "tensorboard is not installed",
)
"""Reasons that a machine may have. Whatever `make` installs is no reason; where CI says so (``CI=true``), nor
is a Chromium."""
_skipped: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _note(report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _note(report.longrepr)


def _note(why: object) -> None:
    _skipped[str(why[2] if isinstance(why, tuple) else why).removeprefix("Skipped: ")] += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _unexpected() and exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, n in _skipped.most_common():
        terminalreporter.write_line(f"skipped {n}: {reason}")
    for reason in _unexpected():
        terminalreporter.write_line(f"FAILED: no test may be skipped for this reason: {reason}", red=True)


def _unexpected() -> list[str]:
    chromium = () if os.environ.get("CI") else ("there is no Chromium",)
    return [reason for reason in _skipped if not reason.startswith((*EXPECTED, *chromium))]
