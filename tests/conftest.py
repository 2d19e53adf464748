import os
import subprocess
from pathlib import Path

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
