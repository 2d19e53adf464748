"""What a model's name stands for: one name, one set of weights.

In this order: a model of this package (``atlas``), a GGUF file, a folder, a model kept on this machine
(:mod:`seal.lora.cache`), a name of the hub. Where two of them could be meant it is an error, not a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from seal.lora.cache import NAME, converted, home, named
from seal.lora.house import HOUSE
from seal.lora.records import EMBEDDED, LoraError

DATA = Path(__file__).parents[1] / "data"
HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


@dataclass(frozen=True)
class Place:
    """Where a model is to be read from."""

    where: str
    """A folder, or a name on the hub."""
    revision: str | None = None
    """Of the hub: the branch, tag or commit that was asked for."""

    @property
    def how(self) -> dict[str, str]:
        """Further arguments of ``from_pretrained``."""
        return {"revision": self.revision} if self.revision else {}


def place_of(name: str) -> Place:
    """Where the model of a name is to be read from. A GGUF file is converted first, once.

    Raises:
        LoraError: nothing goes by that name; or two things do.
    """
    if name in EMBEDDED:
        if not (DATA / name).is_dir():
            raise LoraError(
                f"the model {name!r} is not in this package: run `make {name}` in the repository to train it"
            )
        return Place(str(DATA / name))
    path = home(name)
    ours = NAME.fullmatch(name) and (name in HOUSE or named(name) is not None)
    if ours and path.is_dir():
        raise LoraError(
            f"{name!r} is a model kept on this machine and a folder here too: say ./{name} for the folder"
        )
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise LoraError(f"the model {name!r} is a file, and no GGUF file (.gguf)")
        return Place(str(converted(path)))
    if path.is_dir():
        return Place(str(path))
    if name.lower().endswith(".gguf"):
        raise LoraError(f"there is no GGUF file {name}")
    if ours:
        if kept := named(name):
            return Place(str(kept.folder))
        raise LoraError(f"the model {name!r} is not on this machine yet: seal model get {name}")
    if not HUB.fullmatch(name):
        raise LoraError(f"there is no folder {name!r}, and it is no name of the hub either")
    where, _, revision = name.partition("@")
    if revision and (where in (*EMBEDDED, *HOUSE) or home(where).exists() or named(where) is not None):
        raise LoraError(f"{where!r} is no name of the hub, so it has no revision {revision!r}")
    return Place(where, revision or None)
