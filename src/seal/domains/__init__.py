"""Domains: what there is to learn from. They know the world and no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from seal.domains.base import Domain
from seal.records import SealError

__all__ = ["Domain", "load_domain"]


def load_domain(name: str, options: dict[str, object] | None = None) -> Domain:
    """``knowledge``, ``arc``, or a user's own class: ``my_domain.py:MyDomain``.

    Raises:
        SealError: no such domain, or an option that it does not take.
    """
    if name == "knowledge":
        from seal.domains.knowledge import Knowledge

        kind: type[Domain] = Knowledge
    elif name == "arc":
        from seal.domains.arc import Arc

        kind = Arc
    else:
        kind = _from_file(name)
    try:
        return kind(**(options or {}))
    except SealError:
        raise
    except Exception as error:  # of a user's own class anything
        raise SealError(
            f"the domain {name} does not take these options: {type(error).__name__}: {error}"
        ) from error


def _from_file(name: str) -> type[Domain]:
    file, _, attribute = name.partition(":")
    path = Path(file)
    if not attribute or path.suffix != ".py":
        raise SealError(
            f"no domain is named {name!r}: say knowledge, arc, or your own as my_domain.py:MyDomain"
        )
    if not path.is_file():
        raise SealError(f"there is no file {path} to take the domain {attribute} from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own file: say where it breaks
        raise SealError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    kind = getattr(module, attribute, None)
    if not (isinstance(kind, type) and issubclass(kind, Domain)):
        raise SealError(f"{path} has no class {attribute} that is a seal.Domain")
    return kind
