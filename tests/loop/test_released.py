"""SEAL's own result files: in, out, and the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seal.cli.main import main
from seal.domains.knowledge import Knowledge
from seal.records import SealError
from seal.report.reliability import read_scores

SHARED = Path(__file__).parents[3] / "shared/data"


def result_file(path: Path) -> Path:
    questions = [
        {
            "rep": rep,
            "question": f"q{i}",
            "answer": "a",
            "baseline_answer": "b",
            "adapter_answer": "a",
            "baseline_correct": i == 0,
            "adapter_correct": (i + rep + e) % 2 == 0,
        }
        for e in range(2)
        for rep in range(2)
        for i in range(3)
    ]
    completions = [
        {"text": f"edit {e}", "questions": questions[6 * e : 6 * e + 6], "stats": {}} for e in range(2)
    ]
    article = {"title": "T", "context": "C.", "completions": completions}
    path.write_text(
        json.dumps({"overall": {}, "articles": [article, article]})
    )  # twice the same: each keeps its place
    return path


def test_a_result_file_goes_in_and_comes_out_with_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = result_file(tmp_path / "in.json")
    assert main(["import", str(source), "--out", str(tmp_path / "run")]) == 0
    assert main(["import", str(source), "--out", str(tmp_path / "run")]) == 2
    assert json.loads((tmp_path / "run/config.json").read_text())["inner"]["reward"] == "accuracy", (
        "as its rewards are"
    )
    with pytest.raises(SealError, match="no likelihood"):  # not taken for zeros
        read_scores(tmp_path / "run", "likelihood")
    assert read_scores(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out.json")]) == 0
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["overall"]["adapter_mean_accuracy"] == 0.5
    assert data["overall"]["baseline_mean_accuracy"] == round(1 / 3, 4)
    assert (
        main(["export", str(tmp_path / "run"), "--kind", "dataset", "--out", str(tmp_path / "set.json")]) == 0
    )
    assert [r["completions"] for r in json.loads((tmp_path / "set.json").read_text())] == [
        ["edit 0", "edit 1"]
    ] * 2
    assert main(["export", str(tmp_path / "run"), "--stage", "none", "--out", str(tmp_path / "x.json")]) == 2
    for number, change in enumerate(
        ({"lora_params": {"rank": 100_000}}, {"articles": [{"title": 1}]}, {"articles": [None]})
    ):
        (tmp_path / "not.json").write_text(json.dumps(json.loads(source.read_text()) | change))
        assert main(["import", str(tmp_path / "not.json"), "--out", str(tmp_path / f"other{number}")]) == 2
        assert not (tmp_path / f"other{number}").exists()
    assert main(["import", str(source), "--out", str(source)]) == 2
    (tmp_path / "not.json").write_text("[]")
    assert main(["import", str(tmp_path / "not.json"), "--out", str(tmp_path / "other")]) == 2
    assert "not one of SEAL's result files" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the released files are not here")
def test_the_released_result_file_is_reproduced(tmp_path: Path) -> None:
    from seal.loop.released import export_results, import_results

    data = json.loads((SHARED / "result_file.json").read_text())
    run = import_results(SHARED / "result_file.json", tmp_path / "run")
    assert export_results(run, "seal/round-1")["overall"] == data["overall"]
    kept = {k["task"]: k["text"] for k in json.loads((run / "seal/round-1/kept.json").read_text())}
    for task in Knowledge(str(run / "passages.json"), sizes={"train": 0, "select": 0, "eval": 50}).tasks(
        "eval"
    ):
        article = next(a for a in data["articles"] if a["context"] == task.data["context"])
        best = max(article["completions"], key=lambda c: c["stats"]["adapter_mean"])
        assert kept.get(task.id, best["text"]) == best["text"]
        assert task.id in kept or best["stats"]["adapter_mean"] == 0
