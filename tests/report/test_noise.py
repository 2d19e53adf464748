"""Variance components: found again where they are known, and the released file's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seal.cli.main import main
from seal.report.reliability import Components, components, in_better_half, read_scores, report

SHARED = Path(__file__).parents[3] / "shared" / "data"


def simulated(true: Components, n_tasks: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (5, 3, 6)

    def part(variance: float, *sizes: int) -> np.ndarray:
        return rng.standard_normal(sizes) * variance**0.5

    return [
        rng.standard_normal((1, 1, 6))
        + part(true.edit, 5, 1, 1)
        + part(true.question, 5, 1, 6)
        + part(true.seed, 5, 3, 1)
        + part(true.rest, *shape)
        for _ in range(n_tasks)
    ]


def test_components_are_found_again() -> None:
    true = Components(0.4, 0.3, 0.2, 1.0)
    found = components(simulated(true, 3000))
    assert np.allclose([found.edit, found.question, found.seed, found.rest], [0.4, 0.3, 0.2, 1.0], atol=0.03)


def test_luck_with_the_questions_is_no_worth() -> None:
    """Edits that differ only by which questions they happen to help with: the questions' part takes it
    all."""
    found = components(simulated(Components(0.0, 1.2, 0.0, 0.5), 3000, seed=1))
    assert found.edit < 0.02 and found.question == pytest.approx(1.2, abs=0.05)
    assert found.reliability(3, 6) < 0.1 and found.reliability(3, 6, other_questions=False) > 0.6


def test_without_any_worth_selection_is_luck() -> None:
    found = components(simulated(Components(0.0, 0.0, 0.0, 1.0), 3000))
    assert found.edit < 0.01 and found.reliability(3, 6) < 0.1
    assert in_better_half(0.0, 5) == pytest.approx(0.5, abs=0.01)
    assert in_better_half(1.0, 5) == 1.0


def test_reliability_grows_with_seeds_and_questions() -> None:
    c = Components(0.1, 0.2, 0.1, 0.5)
    assert (
        c.reliability(1, 5)
        < c.reliability(3, 5)
        < c.reliability(3, 20)
        < c.reliability(3, 20, other_questions=False)
        < 1
    )


def test_a_run_is_read_and_one_without_seeds_is_one_clear_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"task": t, "edit": e, "seed": s, "scores": rng.integers(0, 2, 4).tolist()}
        for t in "abc" for e in range(4) for s in range(2)
    ]  # fmt: skip
    path = tmp_path / "seal/round-1/attempts.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [y.shape for y in read_scores(tmp_path)] == [(4, 2, 4)] * 3
    assert main(["check", "reward", str(tmp_path)]) == 0 and "reliability" in capsys.readouterr().out
    path.write_text("".join(json.dumps(r) + "\n" for r in rows if r["seed"] == 0))
    assert main(["check", "reward", str(tmp_path)]) == 2 and "--inner.seeds" in capsys.readouterr().err
    assert (
        main(["check", "reward", str(tmp_path / "none.json")]) == 2 and "neither" in capsys.readouterr().err
    )


@pytest.mark.skipif(not SHARED.exists(), reason="sample data is not beside the project")
def test_the_released_file_gives_its_own_figures() -> None:
    found = report(read_scores(SHARED / "result_file.json"))
    assert found["sd between edits"] == pytest.approx(0.124, abs=0.001)
    assert found["sd between seeds"] == pytest.approx(0.159, abs=0.001)
    assert found["reliability"]["of 3 seeds, these questions"] == pytest.approx(0.32, abs=0.03)
