"""Models: the only place that imports torch. They know no world: text and records in, text and records out."""

import ctypes
import os
import sys

if sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    # Activations are allocated and freed at every operation. Kept by the process and in large pages, they cost a fifth less
    # time on a CPU than when the system clears fresh pages each time (docs/LOG.md). torch reads its variable at the first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _libc = ctypes.CDLL(None)
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: from the heap, up to 1 GiB
        _libc.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD: up to 512 MiB of free heap is kept
