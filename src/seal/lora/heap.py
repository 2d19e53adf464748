"""The C library's heap, set up for training on a CPU: for a command that trains, not for whoever imports."""

from __future__ import annotations

import ctypes
import os
import sys


def tune_heap() -> None:
    """Let the process keep what it frees, in large pages. Say it before the first tensor is made.

    Activations are allocated and freed at every operation. Kept by the process they cost a fifth less time on
    a CPU than when the system clears fresh pages each time (docs/LOG.md). Whoever sets
    ``MALLOC_MMAP_THRESHOLD_`` has decided already. It is of Linux's C library; elsewhere nothing happens.
    """
    if sys.platform != "linux" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at the first tensor
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: from the heap, up to 1 GiB
        library.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD: up to 512 MiB of free heap is kept
