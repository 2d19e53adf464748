"""What leaves a run for papers and trackers: LaTeX, CSV, SVG, PDF, numbers by round."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from seal.cli.main import main
from seal.report.compare import Sheet, latex
from seal.report.export import csv_text, flat, metrics_of


def test_tables_and_figures_in_every_form(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert (
        tex.startswith(r"\begin{tabular}{l")
        and r"\bottomrule" in tex
        and "SEAL round 2 & " in tex
        and tex.count(r" \\") > 8
    )
    assert out["pdf"].read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "accuracy.csv", "accuracy.svg", "edits.csv", "edits.svg", "rewards.csv", "rewards.svg",
    ]  # fmt: skip
    results = json.loads((unbroken / "results.json").read_text())
    rows = list(csv.DictReader((tmp_path / "figures/accuracy.csv").open()))
    assert [r["setting"] for r in rows] == [s["setting"] for s in results["settings"]]
    assert main(words) == 2 and "nothing is overwritten" in capsys.readouterr().err


def test_latex_keeps_its_special_characters_in_check() -> None:
    sheet = Sheet("x", "y", {}, ["a"], [["50 % of $_{x}\\&"]], [], [])
    assert r"50 \% of \$\_\{x\}\textbackslash{}\&" in latex(sheet)


def another(unbroken: Path, folder: Path, seed: int, **recipe: object) -> None:
    """A copy of a run, as one of another experiment whose last round is worth a tenth more on every task."""
    shutil.copytree(unbroken, folder)
    results = json.loads((folder / "results.json").read_text())
    results["seed"] = seed
    if recipe:
        results["of"]["inner"]["recipe"] |= recipe
        last = next(s for s in results["settings"] if s["setting"] == "SEAL round 2")
        last["scores"] = [x + 0.1 for x in last["scores"]]
    (folder / "results.json").write_text(json.dumps(results))


ALIKE = (-0.1 * 0.05 ** (1 / 3) - (1 - 0.05 ** (1 / 3)), -0.1 * 0.05 ** (1 / 3) + (1 - 0.05 ** (1 / 3)))
"""Of three tasks whose differences are all -0.1: what they leave open."""


def test_several_experiments_make_one_report(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        another(unbroken, tmp_path / f"plain-seed-{seed}", seed)
        another(unbroken, tmp_path / f"hot-seed-{seed}", seed, learning_rate=0.5)
    runs = [str(p) for p in sorted(tmp_path.iterdir())]
    out = {k: tmp_path / f"x.{k}" for k in ("json", "html", "md", "latex", "pdf")}
    assert (
        main(
            [
                "report",
                *runs,
                *(w for k, p in out.items() for w in (f"--{k}", str(p))),
                "--figure",
                str(tmp_path / "x.png"),
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    record = json.loads(out["json"].read_text())
    assert [(e["name"], e["seeds"]) for e in record["experiments"]] == [("hot", [0, 1]), ("plain", [0, 1])]
    assert record["experiments"][0]["settings"] == {"inner.recipe.learning_rate": 0.5}
    found = {d["setting"]: d for d in record["differences"]}
    assert found["SEAL, last round"]["mean"] == pytest.approx(-0.1) and found["no RL"]["mean"] == 0
    last = found["SEAL, last round"]
    assert (last["low"], last["high"]) == pytest.approx(ALIKE, abs=1e-4), (
        "paired: what both share is no part of it"
    )
    note = f"SEAL, last round: plain − hot: -0.100 [{ALIKE[0]:+.3f}, {ALIKE[1]:+.3f}] (seeds in common: 0, 1)"
    assert all(
        note in x for x in (told, out["html"].read_text(), out["md"].read_text(), out["latex"].read_text())
    )
    assert "<svg" in out["html"].read_text() and out["pdf"].read_bytes().startswith(b"%PDF")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_odd_names_are_shown_and_do_not_collide(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rate in (
        ("_a$^$|<b>1-0", 0.1),
        ("_a$^$|<b>1-1", 0.1),
        ("_a$^$|<b>2-0", 0.2),
        ("_a$^$|<b>2-1", 0.2),
    ):
        another(unbroken, tmp_path / name, int(name[-1]), learning_rate=rate)
    runs = [str(p) for p in sorted(tmp_path.iterdir())]
    assert (
        main(
            [
                "report",
                *runs,
                "--md",
                str(tmp_path / "x.md"),
                "--html",
                str(tmp_path / "x.html"),
                "--json",
                str(tmp_path / "x.json"),
            ]
        )
        == 0
    )
    record = json.loads((tmp_path / "x.json").read_text())
    assert [e["name"] for e in record["experiments"]] == ["_a$^$|<b>1", "_a$^$|<b>2"]
    assert "<b>" not in (tmp_path / "x.html").read_text() + (tmp_path / "x.md").read_text()
    head, line = (tmp_path / "x.md").read_text().splitlines()[4:6]
    assert len(re.split(r"(?<!\\)\|", head)) == len(line.split("|")) == 5
    capsys.readouterr()
    for odd in (["--pdf", str(tmp_path / "none/x.pdf")], ["--beside", "x.json"], ["--figure", "x.gif"]):
        assert main(["report", *runs, "--latex", str(tmp_path / "y.tex"), *odd]) == 2
        assert not (tmp_path / "y.tex").exists(), "nothing is half done"
    assert main(["report", runs[0], runs[0]]) == 2
    assert "named twice" in capsys.readouterr().err


def test_settings_of_a_later_version_do_not_split_an_experiment(unbroken: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        another(unbroken, tmp_path / f"x-{seed}", seed)
    file = tmp_path / "x-1/results.json"
    results = json.loads(file.read_text())
    del results["of"]["outer"]["imitate"]
    file.write_text(json.dumps(results | {"of": results["of"] | {"workers": 0}}))
    assert (
        main(["report", str(tmp_path / "x-0"), str(tmp_path / "x-1"), "--json", str(tmp_path / "x.json")])
        == 0
    )
    assert json.loads((tmp_path / "x.json").read_text())["seeds"] == [0, 1]


def test_one_experiment_has_a_page_over_its_seeds(unbroken: Path, tmp_path: Path) -> None:
    another(unbroken, tmp_path / "plain-seed-1", 1)
    assert (
        main(["report", str(unbroken), str(tmp_path / "plain-seed-1"), "--html", str(tmp_path / "x.html")])
        == 0
    )
    page = (tmp_path / "x.html").read_text()
    assert "seeds 0, 1" in page and "SEAL − no RL" in page


def test_numbers_by_round(unbroken: Path) -> None:
    found = {(step, name): value for step, name, value in metrics_of(unbroken)}
    assert {step for step, _ in found} == {1, 2} and found[1, "reward/attempts"] == 9
    assert (2, "held-out/no-RL/accuracy") in found and 0 <= found[2, "held-out/no-RL/accuracy"] <= 1
    assert csv_text([{"a": 1}, {"b": "x,y"}]) == 'a,b\n1,\n,"x,y"\n'
    assert flat({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}


def test_tensorboard_takes_a_run(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["export", str(unbroken), "--kind", "tensorboard", "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    if code == 2:
        assert "pip install tensorboard" in told.err
        pytest.skip("tensorboard is not installed")
    assert code == 0 and any(p.is_file() and p.stat().st_size for p in (tmp_path / "out").rglob("*"))
