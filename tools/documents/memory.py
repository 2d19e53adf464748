"""Peak memory of `seal learn` against the number of documents: texts go through in parts of sixteen, so it
should not grow with them.

    python tools/documents/memory.py --json docs/results/learn-memory.json

Documents are passages of the embedded world, one a file. The corpus of a model of this size is trained as one
adapter; what grows is the list of training rows alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from seal.domains.knowledge import atlas
from seal.machine import machine


def peak(n: int, folder: Path) -> dict[str, float]:
    """Peak resident memory (GB) and seconds of one run on ``n`` documents."""
    source = folder / f"documents-{n}"
    source.mkdir()
    for i in range(n):
        row = atlas.record("train", i)
        (source / f"{i:04d}.md").write_text(f"# {row['title']}\n\n{row['context']}\n")
    words = [
        "learn",
        str(source),
        "--out",
        str(folder / f"taught-{n}"),
        "--edits",
        "2",
        "--questions",
        "4",
        "--epochs",
        "2",
    ]
    process = subprocess.Popen([sys.executable, "-m", "seal", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        sys.exit(f"`seal {' '.join(words)}` failed")
    return {
        "documents": n,
        "peak_gb": round(usage.ru_maxrss / 2**20, 3),
        "seconds": round(usage.ru_utime + usage.ru_stime),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for n in args.documents:
            rows.append(peak(n, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    if args.json:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "date": date.today().isoformat(),
            "machine": machine(),
            "rows": rows,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
