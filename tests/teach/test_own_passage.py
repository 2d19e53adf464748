"""``seal try --passage``: one's own passage, everything shown; and the recipe by a model's size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from seal.cli import main
from seal.lora.hardware import Shape
from seal.lora.records import ModelSpec
from seal.teach.recipes import EMBEDDED_RECIPE, SMALL_RECIPE, default_config, default_for
from tests import tiny

PASSAGE = "# The lamp\n\nThe lamp on the pier was built by Anna Thomsen in 1887.\n"


def tried(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    small = ("--edits_per_task", "2", "--write.max_tokens", "24", "--inner.answer_tokens", "6")
    code = main(["try", *words, *small, "--inner.recipe.tokens", "200"])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, out.out, out.err


def test_a_passage_is_asked_in_view_closed_book_and_by_an_adapter(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lamp.md").write_text(PASSAGE)
    file = str(tmp_path / "lamp.md")
    code, out, err = tried(capsys, "--model", model, "--passage", file, "--ask", "Who built it? Anna Thomsen")
    assert code == 0, err
    for part in (
        "built by Anna Thomsen in 1887",
        "closed book:",
        "with the text in view:",
        "training rows",
        "loss",
    ):
        assert part in out
    assert out.count("Who built it?") == 1 + out.count("after:") and out.count("edit ") >= 2


def test_questions_of_a_file_are_asked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {
            "title": f"t{i}",
            "context": f"It is number {i}.",
            "questions": [{"question": f"Which {i}?", "answer": "x"}],
        }
        for i in range(3)
    ]
    (tmp_path / "p.json").write_text(json.dumps(records))
    code, out, _ = tried(capsys, "--model", model, "--passage", str(tmp_path / "p.json"), "--task", "2")
    assert code == 0 and "Which 2?" in out and "number 2" in out and "number 1" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ask", "Who? me"), "--passage FILE"),
        (("--passage", "none.md"), "none.md"),
        (("--passage", "lamp.md", "--ask", "no mark"), "--ask"),
        (("--passage", "lamp.md", "--task", "7", "--ask", "a? b"), "numbered 0 to 0"),
        (("--passage", "lamp.md"), "none is sound"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: tuple[str, ...],
    said: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lamp.md").write_text(PASSAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("seal.teach.quiz.DRAFTS", 1)
    monkeypatch.setattr("seal.teach.quiz.MAX_DRAFT_TOKENS", 16)
    code, _, err = tried(capsys, "--model", model, *words)
    assert code == 2 and said in err.splitlines()[-1]


def shape_of(tmp_path: Path, hidden: int, layers: int) -> Shape:
    """A model's shape, by its config alone."""
    heads = hidden // 64
    LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=151_936,
        eos_token_id=0,
    ).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return Shape(ModelSpec(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("hidden", "layers", "rate", "rank"),
    [(896, 24, 9.4e-4, 16), (1536, 28, 6.1e-4, 16), (3584, 28, 3.2e-4, 32)],
)
def test_the_recipe_of_a_larger_model_follows_the_published_rule(
    hidden: int, layers: int, rate: float, rank: int, tmp_path: Path
) -> None:
    found = default_for(shape_of(tmp_path, hidden, layers))
    assert "not measured here" in found.why
    assert (found.recipe.rank, found.recipe.alpha, found.recipe.targets) == (rank, 32, "all-linear")
    assert found.recipe.learning_rate == pytest.approx(rate, rel=0.02)


def test_the_recipe_of_a_small_model_is_the_measured_one(tmp_path: Path) -> None:
    found = default_for(shape_of(tmp_path, 576, 30))
    assert "recipes.json" in found.why and found.recipe == SMALL_RECIPE
    assert default_config("fake:say.py").model == "fake:say.py"
    assert default_config("atlas").recipe == EMBEDDED_RECIPE
    assert default_config(str(tmp_path)).recipe == SMALL_RECIPE
    assert default_config(str(tmp_path), recipe=EMBEDDED_RECIPE).recipe == EMBEDDED_RECIPE
