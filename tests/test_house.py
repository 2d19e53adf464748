"""The layers hold: who may import whom, and that `seal --help` loads neither torch nor transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "seal"

MAY_IMPORT = {
    "types": set(),
    "progress": set(),
    "stats": {"types"},
    "config": {"types"},
    "judge": {"types"},
    "store": {"types", "config"},
    "endpoint": {"types", "judge"},
    "domains": {"types", "judge", "endpoint", "domains"},
    "models": {"types", "judge", "models"},
    "quiz": {"types", "judge", "domains", "models"},
    "card": {"types", "stats", "store"},
    "learn": {
        "types",
        "config",
        "store",
        "stats",
        "judge",
        "endpoint",
        "domains",
        "models",
        "writers",
        "attempts",
        "quiz",
        "card",
        "progress",
    },
    "flags": set(),
    "edits": {"types", "store", "domains", "models", "attempts", "learn"},
    "talk": {"types", "store", "domains", "models"},
    "features": {"types", "judge"},
    "noise": {"types", "stats", "store"},
    "ui": {"types", "domains", "features", "stats", "retained", "talk", "ui"},
    "check": {"types", "domains"},
    "writers": {"types", "config", "endpoint", "models"},
    "restem": {"types", "models"},
    "attempts": {"types", "config", "domains", "models", "store", "progress", "writers"},
    "workers": {"types", "config", "domains", "models", "attempts"},
    "pooled": {"types", "config", "domains", "models", "store", "attempts"},
    "controls": {"types", "store"},
    "proxy": {"types", "endpoint", "domains", "models", "features"},
    "trials": {"types", "config", "store", "domains", "models", "attempts", "proxy", "quiz"},
    "integrations": {"types", "config", "store", "domains", "models", "restem", "attempts"},
    "rules": {"types", "config", "models", "restem", "integrations"},
    "loop": {
        "types",
        "config",
        "store",
        "domains",
        "models",
        "writers",
        "restem",
        "attempts",
        "controls",
        "trials",
        "rules",
        "integrations",
    },
    "evaluate": {
        "types",
        "config",
        "store",
        "domains",
        "models",
        "writers",
        "attempts",
        "pooled",
        "controls",
        "loop",
        "trials",
    },
    "retention": {"types", "models"},
    "continual": {"types", "config", "store", "domains", "models", "attempts", "loop", "progress", "retention"},
    "retained": {"types", "stats", "store"},
    "matrices": {"store", "retained"},
    "results": {"types", "config", "store", "stats", "evaluate"},
    "released": {"types", "config", "store", "domains", "evaluate", "results", "restem"},
    "report": {"types", "config", "store", "domains", "features", "stats", "evaluate", "results"},
    "publish": {"types", "store", "domains", "features", "results", "report"},
    "sheets": {"types", "store", "stats", "evaluate", "results", "report", "publish"},
    "show": {"types", "config", "store", "domains", "models", "writers", "attempts", "progress"},
}
HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers"}


def imports(path: Path) -> set[str]:
    """Modules named by the import lines of a file, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "seal" or node.module.startswith("seal."):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


FILES = sorted(p for p in SOURCE.rglob("*.py") if part(p) not in ("cli", "commands", "__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    mine = part(path)
    used = {i.split(".")[1] for i in imports(path) if i.startswith("seal.") and i.count(".")}
    assert used - MAY_IMPORT[mine] <= {mine}, f"{path.name} may not import {used - MAY_IMPORT[mine]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_torch_stays_in_models(path: Path) -> None:
    heavy = {i.split(".")[0] for i in imports(path)} & HEAVY
    if part(path) not in ("models", "integrations", "results"):  # results names the versions a number depends on
        assert not heavy


def test_the_loop_can_be_read_in_five_minutes() -> None:
    assert len((SOURCE / "loop.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_module_outgrows_its_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_help_is_instant() -> None:
    code = (
        "import sys; from seal.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'help loads too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
