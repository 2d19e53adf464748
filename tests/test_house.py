"""The house stands: who may import whom, what loads without torch, and how long things may get."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "seal"
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers"}
TRAINERS = {"loop/full.py", "loop/trl.py"}
"""Whole-model finetuning by the trainers of others."""
LATE = {"machine.py", "cli/main.py"}
"""The versions that a number depends on, and the quiet of libraries."""


def imports(path: Path) -> set[str]:
    """Modules named by the import lines of a file, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_rooms_import_downwards() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize("path", FILES, ids=name)
def test_torch_stays_with_the_trainers(path: Path) -> None:
    if not name(path).startswith("lora/") and name(path) not in TRAINERS | LATE:
        assert not {i.split(".")[0] for i in imports(path) if "tensorboard" not in i} & HEAVY


def test_the_loop_can_be_read_in_five_minutes() -> None:
    assert len((SOURCE / "loop/outer.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_module_outgrows_its_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if {what}:
            raise ImportError(f"{{name}} is not to be loaded here")
sys.meta_path.insert(0, Block())
"""


def without(what: str, code: str) -> None:
    """Run a piece of code in a process in which some modules cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(what=what) + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_is_instant() -> None:
    what = "name.split('.')[0] in ('torch', 'transformers', 'matplotlib', 'scipy')"
    without(
        what,
        "from seal.cli import main\ntry: main(['--help'])\nexcept SystemExit as end: assert end.code == 0",
    )


def test_the_trainer_is_usable_alone() -> None:
    """``seal.lora`` imports nothing else of ours, not even late."""
    allowed = [
        f"seal.lora.{p.stem}" for p in sorted((SOURCE / "lora").glob("*.py")) if p.stem not in ("__init__",)
    ]
    what = "name.startswith('seal.') and not name.startswith('seal.lora')"
    without(what, "\n".join(f"import {m}" for m in allowed))


def test_reading_a_run_takes_no_torch() -> None:
    modules = [
        f"seal.report.{p.stem}" for p in sorted((SOURCE / "report").glob("*.py")) if p.stem != "__init__"
    ]
    what = "name.split('.')[0] in ('torch', 'transformers')"
    without(what, "\n".join(f"import {m}" for m in modules))


@pytest.mark.parametrize(
    "words",
    [
        ["report", "RUN"],
        ["check", "reward", "RUN"],
        ["export", "RUN", "--out", "OUT"],
        ["check", "knowledge"],
        ["ui", "--help"],
    ],
    ids=" ".join,
)
def test_commands_that_only_read_take_no_torch(words: list[str], tmp_path: Path) -> None:
    run = shutil.copytree(ROOT / "tests/data/run-format-1", tmp_path / "small")
    words = [{"RUN": str(run), "OUT": str(tmp_path / "out.json")}.get(w, w) for w in words]
    what = "name.split('.')[0] in ('torch', 'transformers')"
    without(
        what,
        f"from seal.cli import main\ntry: code = main({words!r})\nexcept SystemExit as e: code = e.code\nassert code == 0",
    )
