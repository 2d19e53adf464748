"""Reads run folders, and shows them: tables, figures, pages. No torch.

The room is its own verb: ``seal.report("runs/mine")``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


class _Verb(ModuleType):
    """A module that can be called (its ``__class__`` may be set, says Python's data model)."""

    def __call__(self, folder: str | Path) -> Path:
        """Write the report of a run that has been evaluated, beside its results.

        Returns:
            the page, ``report.html``.

        Raises:
            SealError: the run has no results.
        """
        from seal.report.pages import write_report

        return write_report(Path(folder))


sys.modules[__name__].__class__ = _Verb
