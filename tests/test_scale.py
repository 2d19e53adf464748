"""Nothing grows faster than n log n: counted, not timed (``bench/robustness.py``)."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.runs import ROOT

spec = importlib.util.spec_from_file_location("robustness", ROOT / "bench/robustness.py")
assert spec and spec.loader
robustness = importlib.util.module_from_spec(spec)
spec.loader.exec_module(robustness)


@pytest.mark.slow
@pytest.mark.parametrize("what", robustness.WORK)
def test_twice_as_much_costs_about_twice_as_much(what: str) -> None:
    cost, n, _ = robustness.WORK[what]
    assert cost(2 * n) <= robustness.MOST * cost(n)


def test_the_record_says_so_of_the_same_things() -> None:
    record = json.loads((ROOT / "docs/results/robustness.json").read_text("utf-8"))
    assert [r["what"] for r in record["rows"]] == list(robustness.WORK)
    assert all(r["n2"] == 2 * r["n"] and r["cost2"] <= robustness.MOST * r["cost"] for r in record["rows"])
