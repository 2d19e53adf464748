"""The *teach* page: a document goes in, `seal learn` works in a process of its own, and the page shows what
it has written so far."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from seal.domains.grading import golds_of
from seal.records import Json, SealError
from seal.store import is_claimed

MAX_BYTES = 2_000_000
"""Of a document taught through the page; larger ones go through `seal learn`."""
KINDS = (".md", ".txt", ".html", ".pdf", ".docx")
MAX_QUESTION = 500
SHOWN = 40
"""Passages shown of a taught folder."""


class Classroom:
    """Folders taught from the page, the processes that teach them, and the last model asked.

    Args:
        root: where new folders are made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._talk: tuple[tuple[Path, float], Any] | None = None
        self._asking = asyncio.Lock()

    async def begin(self, request: Request) -> Response:
        """Start teaching a document; the answer leads to its page.

        Raises:
            SealError: there is no document, it is too large or of an unknown kind, or another is being
                taught.
        """
        _same_origin(request)
        if int(request.headers.get("content-length", 0) or 0) > MAX_BYTES + 10_000:
            raise SealError(
                f"the document is larger than {MAX_BYTES // 1_000_000} MB: teach it with `seal learn`"
            )
        async with request.form(max_files=1, max_fields=10, max_part_size=MAX_BYTES) as form:
            text, upload = str(form.get("text") or "").strip(), form.get("file")
            title = re.sub(r"[^\w -]", "", str(form.get("title") or ""))[:60].strip()
            name, body = "pasted.md", f"# {title or 'Pasted text'}\n\n{text}\n".encode()
            if upload is not None and not isinstance(upload, str) and upload.filename:
                name, body = Path(upload.filename).name, await upload.read(MAX_BYTES + 1)
        if Path(name).suffix.lower() not in KINDS:
            raise SealError(f"documents are {', '.join(KINDS)}, and {name!r} is none")
        if not text and name == "pasted.md":
            raise SealError("there is nothing to teach: paste a text, or choose a document")
        if len(body) > MAX_BYTES:
            raise SealError(
                f"the document is larger than {MAX_BYTES // 1_000_000} MB: teach it with `seal learn`"
            )
        if any(p.poll() is None for p in self.processes.values()):
            raise SealError("another document is being taught; wait until it is done")
        stem = re.sub(r"\W+", "-", Path(title or name).stem.lower()).strip("-")[:40] or "document"
        out = self.root / f"taught-{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        source = self._desk(out) / f"{stem}{Path(name).suffix.lower()}"
        source.parent.mkdir(parents=True)
        source.write_bytes(body)
        command = [sys.executable, "-m", "seal", "learn", str(source), "--out", str(out)]
        log = (self._desk(out) / "log.txt").open("wb")
        self.processes[out] = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        for _ in range(100):  # until there is something to show
            if (out / "learn.json").exists() or self.processes[out].poll() is not None:
                break
            await asyncio.sleep(0.2)
        if self.processes[out].poll() == 2:
            last = _tail(self._desk(out) / "log.txt").splitlines()
            raise SealError(last[-1].removeprefix("seal: ") if last else "the document could not be taught")
        return RedirectResponse(f"/taught?name={quote(out.name)}", 303)

    def _desk(self, out: Path) -> Path:
        """Where the document of a taught folder lies, and what `seal learn` said of it: the folder itself is
        `seal learn`'s."""
        return self.root / ".taught" / out.name

    def failed(self, name: str) -> str | None:
        """Why a document was not begun with; ``None`` where it was, or is still waited for."""
        out = self.root / name
        if not name.startswith("taught-") or "/" in name or (out / "learn.json").exists():
            return None
        log, process = self._desk(out) / "log.txt", self.processes.get(out)
        if not log.is_file():
            return None
        if process is not None and process.poll() is None:
            return f"{name} is not begun yet: the model is being loaded; load this page again in a moment"
        last = _tail(log).splitlines()
        return f"{name} could not be taught: {last[-1].removeprefix('seal: ') if last else 'it said nothing'}"

    def state(self, folder: Path, name: str) -> Json:
        """What there is of a taught folder by now: passages with their edits and quiz, and the card."""
        process = self.processes.get(folder)
        busy = (process is not None and process.poll() is None) or is_claimed(folder)
        passages = _lines(folder / "passages.jsonl")
        found = []
        for chunk in sorted(folder.glob("chunks/*")):
            first = int(chunk.name) * 16
            parts = {k: _json(chunk / f"{k}.json") for k in ("quiz", "edits", "kept", "answers")}
            for i, passage in enumerate(passages[first : first + 16]):
                quiz = parts["quiz"][i]["questions"] if i < len(parts["quiz"]) else []
                texts = (parts["kept"] or parts["edits"])[i : i + 1]
                answers = parts["answers"][i] if i < len(parts["answers"]) else None
                found.append(
                    {"passage": passage, "edits": texts[0] if texts else [], "quiz": _quiz(quiz, answers)}
                )
        steps = [
            ("read", bool(passages)),
            ("quiz drafted", any(f["quiz"] for f in found)),
            ("edits written", any(f["edits"] for f in found)),
            ("adapter trained", any(folder.glob("adapter*/**/seal.json"))),
            ("quiz answered", (folder / "card.json").exists()),
        ]
        card = _json(folder / "card.json") or None
        failed = "" if busy or card else _tail(self._desk(folder) / "log.txt")
        return {
            "title": name,
            "found": found[:SHOWN],
            "n_passages": len(passages),
            "steps": steps,
            "card": card,
            "busy": busy,
            "failed": failed,
        }

    async def ask(self, request: Request, folder: Path) -> tuple[str, list[tuple[str, str]]]:
        """A question, and the answers with and without the adapter and with the passage in view."""
        _same_origin(request)
        async with request.form(max_files=0, max_fields=4, max_part_size=10_000) as form:
            question = str(form.get("question") or "").strip()[:MAX_QUESTION]
        if not question:
            return "", []
        if not (folder / "card.json").exists():
            raise SealError(f"{folder.name} is not taught yet")
        async with self._asking:
            return question, await asyncio.to_thread(self._answers, folder, question)

    def _answers(self, folder: Path, question: str) -> list[tuple[str, str]]:
        from seal.teach.ask import Talk

        key = (folder, (folder / "card.json").stat().st_mtime)
        if self._talk is None or self._talk[0] != key:
            self._talk = key, Talk(folder)
        talk = self._talk[1]
        found = list(talk.answers(question, compare=True))
        if talk.passages:
            found += [a for a in talk.answers(question, open_book=True) if a[0].startswith("open book")]
        return found


class Refused(SealError):
    """Not to be done for whoever asks."""


def _same_origin(request: Request) -> None:
    """Only the app's own pages may make it work.

    Raises:
        Refused: the request comes from another page.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host', '')}":
        raise Refused("this came from another page, and is not done")


def _quiz(questions: list[Json], answers: Json | None) -> list[Json]:
    rows = []
    for i, q in enumerate(questions):
        row = {"question": q["question"], "gold": " / ".join(golds_of(q))}
        if answers:
            row |= {
                w.replace(" ", "_"): (answers[w][i], answers["right"][w][i])
                for w in ("before", "after", "open book")
            }
        rows.append(row)
    return rows


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []


def _lines(path: Path) -> list[Json]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError):
        return []


def _tail(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()[-600:]
    except OSError:
        return "it was cut off: the same `seal learn` command goes on"
