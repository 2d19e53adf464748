"""What leaves a run for papers and trackers: LaTeX, CSV, SVG, PDF, numbers by round."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from seal.cli import main
from seal.integrations.trackers import flat
from seal.publish import csv_text, latex_table, metrics_of


def test_tables_and_figures_in_every_form(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = {k: tmp_path / f"x.{k}" for k in ("tex", "pdf")}
    words = [
        "report",
        str(unbroken),
        "--latex",
        str(out["tex"]),
        "--pdf",
        str(out["pdf"]),
        "--figures",
        str(tmp_path / "figures"),
    ]
    assert main(words) == 0
    tex = out["tex"].read_text()
    assert tex.startswith(r"\begin{tabular}{l") and r"\bottomrule" in tex and "SEAL round 2 & " in tex and tex.count(r" \\") > 8
    assert out["pdf"].read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "accuracy.csv", "accuracy.svg", "edits.csv", "edits.svg", "rewards.csv", "rewards.svg",
    ]  # fmt: skip
    results = json.loads((unbroken / "results.json").read_text())
    rows = list(csv.DictReader((tmp_path / "figures/accuracy.csv").open()))
    assert [r["setting"] for r in rows] == [s["setting"] for s in results["settings"]]
    assert main(words) == 2 and "nothing is overwritten" in capsys.readouterr().err


def test_latex_keeps_its_special_characters_in_check() -> None:
    row = {
        "setting": "50 % of $_{x}\\&",
        "note": "",
        "accuracy": 0.5,
        "low": 0.4,
        "high": 0.6,
        "kinds": {},
        "silent": 0.0,
        "tokens": 1,
    }
    assert r"50 \% of \$\_\{x\}\textbackslash{}\&" in latex_table({"rows": [row], "differences": []})


def test_numbers_by_round(unbroken: Path) -> None:
    found = {(step, name): value for step, name, value in metrics_of(unbroken)}
    assert {step for step, _ in found} == {1, 2} and found[1, "reward/attempts"] == 9
    assert (2, "held-out/no-RL/accuracy") in found and 0 <= found[2, "held-out/no-RL/accuracy"] <= 1
    assert csv_text([{"a": 1}, {"b": "x,y"}]) == 'a,b\n1,\n,"x,y"\n'
    assert flat({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_trackers_take_a_run(kind: str, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["export", str(unbroken), "--kind", kind, "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    if code == 2:
        assert f"pip install {kind}" in told.err
        pytest.skip(f"{kind} is not installed")
    assert code == 0 and any(p.is_file() and p.stat().st_size for p in (tmp_path / "out").rglob("*"))
