"""Your documents: read them, quiz, write, train, prove, ask.

The room is its own verb: ``seal.teach(["handbook/"], "taught")``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A module that can be called (its ``__class__`` may be set, says Python's data model)."""

    def __call__(
        self,
        documents: str | Path | Sequence[str | Path],
        out: str | Path,
        model: str = "atlas",
        **settings: Any,
    ) -> Any:
        """Teach a model documents, and prove what it knows now.

        Args:
            documents: files or folders.
            out: a new folder, or one that was begun with the same settings.
            model: hub name or local folder of a causal LM.
            settings: of :class:`seal.config.LearnConfig`.

        Returns:
            the card: what was read, what the model knows now, what got worse, what it cost.

        Raises:
            SealError: documents that cannot be read, a setting out of bounds, a model that does not load.
        """
        from pydantic import ValidationError

        from seal.config import first_of
        from seal.records import SealError
        from seal.teach.learn import learn
        from seal.teach.recipes import default_config

        given = [documents] if isinstance(documents, str | Path) else documents
        try:
            config = default_config(model, **settings)
        except ValidationError as error:
            raise SealError(first_of(error)) from error
        return learn(config, [str(d) for d in given], Path(out))


sys.modules[__name__].__class__ = _Verb
