import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: no test waits for a network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

from seal.models.policy import Policy
from tests import tiny

torch.set_num_threads(1)


@pytest.fixture
def policy() -> Policy:
    return tiny.policy()
