"""The paper's presets run whole, on a tiny random model and passages made here: every stage and column is
there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from seal.cli.main import main
from seal.config import load_config
from seal.domains.knowledge import atlas
from seal.domains.knowledge.passages import read_passages
from seal.records import LoraError
from tests import tiny

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What makes a preset small; everything else is the preset's own."""
    folder = tmp_path_factory.mktemp("preset")
    rows = [atlas.record("eval", i) for i in range(12)]
    passages = [
        {"title": r["title"], "context": r["context"][:120], "questions": r["questions"][:2]} for r in rows
    ]
    (folder / "passages.json").write_text(json.dumps(passages))
    options = {
        "source": str(folder / "passages.json"),
        "prompt": "implications",
        "grader": "string",
        "sizes": {"train": 2, "select": 2, "eval": 3},
    }
    return [
        f"--domain.options={json.dumps(options)}",
        "--model.name",
        tiny.save(folder / "model"),
        "--model.device",
        "cpu",
        "--model.dtype",
        "float32",
        "--tasks_per_round",
        "2",
        "--edits_per_task",
        "2",
        "--write.max_tokens",
        "12",
        "--inner.answer_tokens",
        "4",
        "--inner.recipe.rank",
        "2",
        "--outer.recipe.rank",
        "2",
        "--inner.recipe.epochs",
        "1",
        "--eval.saturation_epochs",
        "[1]",
    ]


COLUMNS = {
    "base",
    "passage, matched tokens",
    "no RL",
    "random control",
    "SEAL round 1",
    "SEAL round 2",
    "retrieval",
    "open book",
}


def table(run: Path) -> dict[str, dict[str, object]]:
    return {s["setting"]: s for s in json.loads((run / "results.json").read_text())["settings"]}


@pytest.mark.slow
def test_the_single_passage_preset_runs_whole(flags: list[str], tmp_path: Path) -> None:
    assert main(["demo", "@", str(CONFIGS / "paper-knowledge.toml"), *flags, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "paper-knowledge"
    assert set(table(run)) >= COLUMNS
    rows = [json.loads(x) for x in (run / "seal/round-1/attempts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3  # three training seeds
    assert main(["check", "reward", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lora", "full"])
def test_continued_pretraining_makes_one_finetune_of_all_passages(
    flags: list[str], tmp_path: Path, way: str
) -> None:
    flags = [
        *flags,
        "--runs",
        str(tmp_path),
        "--eval.pool",
        way,
        "--eval.edits_per_task",
        "2",
        "--eval.siblings",
        "2",
    ]
    if way == "full":
        pytest.importorskip("accelerate")
    assert main(["demo", "@", str(CONFIGS / "paper-cpt.toml"), *flags, "--rounds", "1"]) == 0
    run = tmp_path / "paper-cpt"
    assert set(table(run)) >= COLUMNS - {"SEAL round 2"}
    rows = [json.loads(x) for x in (run / "eval/no-RL/attempts.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert len({(r["steps"], r["tokens"], r["rows"]) for r in rows}) == 1
    assert rows[0]["steps"] >= rows[0]["rows"]  # batch 1, one epoch
    assert rows[0]["rows"] > 3


def test_a_data_set_that_is_not_there_is_one_clear_sentence() -> None:
    with pytest.raises(LoraError, match=r"the package datasets|cannot be read as SQuAD"):
        read_passages(Path("hub:nobody/nothing"))


def test_what_will_not_fit_is_said_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seal.lora.load import load_model

    model = tiny.save(tmp_path / "model")
    monkeypatch.setattr("seal.lora.capacity.free_memory", lambda device: 10_000)
    with pytest.raises(LoraError, match=r"take about .* GB, and .* are free on cpu"):
        load_model(model)


def test_the_estimate_is_what_the_weights_take() -> None:
    from seal.lora.capacity import weights_bytes

    model = tiny.llama()
    n = sum(p.numel() for p in model.parameters())
    assert weights_bytes(model.config, "float32") == 4 * n
    assert weights_bytes(model.config, "bfloat16") == 2 * n
    assert weights_bytes(model.config, "float32", copy=True) == 6 * n
    assert weights_bytes(model.config, "float32", "4bit") < 2 * n


def test_a_model_that_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from transformers import AutoConfig

    from seal.lora.load import load_model

    with pytest.raises(LoraError, match=r"neither a folder here nor reachable|not in the local cache"):
        load_model("nobody/nothing")
    model = Path(tiny.save(tmp_path / "model"))
    half = Path(shutil.copytree(model, tmp_path / "half"))
    (half / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(LoraError, match="not a whole model"):
        load_model(half)
    for kind, says in ((GatedRepoError, "is gated"), (RepositoryNotFoundError, "no such model")):

        def fail(*args: object, kind: type[Exception] = kind, **options: object) -> None:
            raise OSError("wrapped") from kind.__new__(kind)

        monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
        with pytest.raises(LoraError, match=says):
            load_model("someone/model")


def test_the_recipes_for_clusters_are_commands_of_ours() -> None:
    yaml = pytest.importorskip("yaml")
    text = (CONFIGS.parent / "docs/scale.md").read_text("utf-8")
    job = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert job["kind"] == "RayJob" and len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) == 1
    script = text.split("srun ")[1].split("```")[0].replace("\\\n", " ")
    for words in (
        shlex.split(job["spec"]["entrypoint"]),
        shlex.split(script)[shlex.split(script).index("--") + 1 :],
    ):
        assert words[:3] == ["seal", "train", "@"]
        config = load_config(CONFIGS.parent / words[3], words[4:])
        assert (config.workers, config.cluster, config.runs) == (32, "auto", "/shared/runs")
