import os

import pytest
import torch

from seal.models.policy import Policy
from tests import tiny

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
torch.set_num_threads(1)


@pytest.fixture
def policy() -> Policy:
    return tiny.policy()
