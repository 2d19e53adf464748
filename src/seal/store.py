"""The run folder: append-only, crash-safe, readable by anyone.

::

    runs/NAME/run.json config.json environment.json
             STAGE/texts.json        the self-edits written, task by task
                   before.json       the unadapted model's answers
                   attempts.jsonl    one row per inner loop, appended wave by wave
                   kept.json         what the outer loop selected
                   policy/           the model after the round
             results.json report.md report.html

A stage is a piece of work with a name (``seal/round-1``, ``eval/oracle``). Whatever is on disk is done;
resuming means doing what is not. Files appear whole (written aside, then renamed) or grow by whole waves;
nothing is overwritten.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from seal.config import RunConfig, of_earlier
from seal.lora.records import ModelSpec
from seal.records import Attempt, Json, SealError, Stopped, seed_of

T = TypeVar("T")
_stop, _unlocked = threading.Event(), threading.Event()


def stop_when_saved() -> None:
    """From now on, whatever is saved next is the last: then :class:`Stopped` is raised."""
    _stop.set()


def _saved() -> None:
    if _stop.is_set():
        _stop.clear()
        raise Stopped


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there complete or not at all, whatever happens meanwhile.

    Raises:
        SealError: it cannot be written (disk full, no permission).
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        raise SealError(f"cannot write {path}: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """A JSON file of a run folder.

    Raises:
        SealError: it is missing, or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SealError(f"{path.parent} has no {path.name}: it is not a whole run folder") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SealError(f"{path} cannot be read: {error}") from error


def read_attempts(path: Path) -> list[Attempt]:
    """The whole lines of an ``attempts.jsonl``.

    Raises:
        SealError: it cannot be read, or a line is no attempt of this version: which, and why.
    """
    return _lines(path, Attempt.from_json)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The same as they stand there, of whatever version.

    Raises:
        SealError: it cannot be read, or a line is no JSON object: which.
    """
    return _lines(path, _row)


def _row(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no attempt")
    return value


def _lines(path: Path, understand: Callable[[Any], T]) -> list[T]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            rows.append(understand(json.loads(line)))
        except ValueError as error:  # of JSON, of UTF-8, or of what an attempt is
            raise SealError(f"{path}, line {number}: {error}; nothing has been changed") from error
    return rows


class Stage:
    """One piece of a run's work, in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def label(self) -> str:
        """Its name, for a progress bar."""
        return "/".join(self.folder.parts[-2:])

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON value: read if it is on disk, else computed and written."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_whole(path, json.dumps(compute(), ensure_ascii=False, indent=1))
            _saved()
        return read_json(path)

    def read(self, name: str) -> Any:
        """A JSON value that is on disk; ``None`` where it is not. A read writes nothing."""
        path = self.folder / f"{name}.json"
        return read_json(path) if path.exists() else None

    def put(self, name: str, value: Any) -> None:
        """A JSON value that belongs to what is computed next: written anew where it is there, and not yet a
        place to stop at."""
        write_whole(self.folder / f"{name}.json", json.dumps(value, ensure_ascii=False, indent=1))

    def drop(self, name: str) -> None:
        """Do away with a folder of parts, once what they were parts of is there whole."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def once_folder(self, name: str, fill: Callable[[Path], None]) -> Path:
        """A folder, filled aside and renamed when it is complete."""
        path = self.folder / name
        if not path.exists():
            aside = self.folder / f".{name}.part"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                fill(aside)
                aside.rename(path)
            except OSError as error:
                raise SealError(f"cannot write {path}: {error.strerror or error}") from error
            _saved()
        return path

    def attempts(self) -> list[Attempt]:
        """The attempts on disk, in order; what a kill has torn off the end is none. A read changes nothing.

        Raises:
            SealError: a line is no attempt of this version: which, and why.
        """
        path = self.folder / "attempts.jsonl"
        return read_attempts(path) if path.exists() else []

    def resumed(self, wave: int, total: int) -> list[Attempt]:
        """The attempts of whole waves, for whoever makes the others. What a kill left of an unfinished wave
        is set aside in ``attempts.torn``: that wave is owed whole.

        Raises:
            SealError: a line is no attempt of this version. Nothing has been changed then.
        """
        rows, path = self.attempts(), self.folder / "attempts.jsonl"
        whole = len(rows) if len(rows) >= total else len(rows) - len(rows) % wave
        data = path.read_bytes() if path.exists() else b""
        keep = sum(map(len, data.splitlines(keepends=True)[:whole]))
        if keep < len(data):
            try:
                with path.with_name("attempts.torn").open("ab") as aside, path.open("r+b") as file:
                    aside.write(data[keep:])
                    aside.flush()
                    os.fsync(aside.fileno())
                    file.truncate(keep)
            except OSError as error:
                raise SealError(f"cannot write {path}: {error.strerror}") from error
            print(
                f"seal: {path} ends in a wave that was not finished: it is made again, and what there was of "
                "it is in attempts.torn",
                file=sys.stderr,
            )
        return rows[:whole]

    def aside(self, number: int) -> list[Attempt]:
        """A wave that was done before its turn; empty if there is none."""
        path = self.folder / f"waves/{number:05d}.json"
        return [Attempt.from_json(row) for row in read_json(path)] if path.exists() else []

    def put_aside(self, number: int, attempts: Sequence[Attempt]) -> None:
        """Keep a wave that was done before its turn."""
        write_whole(
            self.folder / f"waves/{number:05d}.json",
            json.dumps([a.to_json() for a in attempts], ensure_ascii=False),
        )
        _saved()

    def append(self, attempts: Sequence[Attempt], number: int | None = None) -> None:
        """Record a finished wave; with its ``number``, what was kept aside of it goes.

        Raises:
            SealError: it cannot be written; what was recorded before is safe.
        """
        path = self.folder / "attempts.jsonl"
        text = "".join(json.dumps(a.to_json(), ensure_ascii=False) + "\n" for a in attempts)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SealError(
                f"cannot write {path}: {error.strerror}; run the same command again to go on"
            ) from error
        if number is not None:
            (self.folder / f"waves/{number:05d}.json").unlink(missing_ok=True)
        _saved()


FORMAT = 1
"""Of run folders. One without a ``run.json`` is older than the number, and of this format too."""


def must_be_readable(folder: Path) -> None:
    """
    Raises:
        SealError: a newer version of SEAL made the run folder, in a format that this one does not know.
    """
    path = folder / "run.json"
    if not path.exists():
        return
    found = read_json(path)
    number = found.get("format") if isinstance(found, dict) else None
    if not isinstance(number, int):
        raise SealError(f"{path} is damaged: it names no format")
    if number > FORMAT:
        raise SealError(
            f"{folder} was made by a newer version of SEAL (run format {number}, this one knows {FORMAT}): "
            "update to read it"
        )


@dataclass(frozen=True)
class Round:
    """A round of a branch: its number, from 1 on, and the stage that it lies in."""

    number: int
    stage: Stage
    run_seed: int

    def seed(self, *what: object) -> int:
        """A seed for something that is done in this round; of every branch the same."""
        return seed_of(*what, self.run_seed, self.number)


class Store:
    """A run's folder. Opening it a second time with the same config continues it; with another, it is
    refused."""

    def __init__(self, config: RunConfig, environment: dict[str, Any] | None = None) -> None:
        self.folder, self._model, self._seed = config.folder, config.model, config.seed
        self._source = config.domain.options.get("source")
        must_be_readable(self.folder)
        wanted = json.loads(config.model_dump_json())
        self._lock = claim(self.folder)
        path = self.folder / "config.json"
        begun = any(p.is_dir() for p in self.folder.iterdir())  # before that a config may still be put right
        if begun and not path.exists() and any(self.folder.glob("*/*/attempts.jsonl")):
            raise SealError(
                f"{self.folder} has attempts, but no config.json: put it back, or give another --name"
            )
        if path.exists() and begun:
            if changed := _difference(_whole(read_json(path)), wanted):
                raise SealError(
                    f"{self.folder} was made with another config ({changed}); give this run another --name, "
                    "or run it as it was"
                )
        else:
            write_whole(path, json.dumps(wanted, indent=2))
        if not begun:
            write_whole(self.folder / "run.json", json.dumps({"format": FORMAT}))
        known = self.folder / "environment.json"
        if environment is not None and not known.exists():
            write_whole(known, json.dumps(environment, indent=2))
        elif environment is not None and (other := _difference(read_json(known), environment, ".")):
            print(
                f"seal: {self.folder} was begun elsewhere ({other[1:]}): what is still to come may differ in "
                "its last digits",
                file=sys.stderr,
            )

    def stage(self, name: str) -> Stage:
        return Stage(self.folder / name)

    def owed(self, branch: str, rounds: int) -> Iterator[Round]:
        """The rounds of a branch that have not saved their policy yet, in turn."""
        for r in range(1, rounds + 1):
            stage = self.stage(f"{branch}/round-{r}")
            if not (stage.folder / "policy").exists():
                yield Round(r, stage, self._seed)

    def policy(self, branch: str, r: int) -> ModelSpec:
        """The policy of a branch after a round, to be loaded; after round 0 the model itself."""
        return policy_of(self._model, self.folder, branch, r)

    def begun_with(self, fingerprints: dict[str, str]) -> None:
        """Refuse to go on with other tasks than the folder was begun with: its texts and answers belong to
        those.

        Raises:
            SealError: a split is not what it was.
        """
        found = self.stage("tasks").once("fingerprints", lambda: fingerprints)
        _keep_source(self.folder, self._source)
        if changed := next((s for s, print_ in fingerprints.items() if found.get(s) != print_), None):
            raise SealError(
                f"{self.folder} was begun with other {changed} tasks (their source has changed, or how a "
                "version of SEAL divides it): give this run "
                "another --name"
            )


def policy_of(model: ModelSpec, run: Path, branch: str, r: int) -> ModelSpec:
    """The policy of a run's branch after a round: an adapter over the model. Whole weights are what rounds
    saved once, and an adapter lies over the last of those."""
    folders = [run / branch / f"round-{k}/policy" for k in range(1, r + 1)]
    whole = next((f for f in reversed(folders) if (f / "config.json").exists()), None)
    spec = model.at(whole) if whole else model
    return spec if not folders or folders[-1] == whole else spec.at(folders[-1])


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a disk that knows no locks says."""


def no_locks() -> None:
    """From now on folders are not locked (``--no-lock``)."""
    _unlocked.set()


def read_config(folder: Path) -> Json:
    """A run's settings, whatever version wrote them: those that have come since are at their defaults, and a
    source that is no longer where it was is the run's own copy of it.

    Raises:
        SealError: there are none, or they are damaged.
    """
    must_be_readable(folder)
    written = read_json(folder / "config.json")
    known = isinstance(written, dict) and isinstance(written.get("domain"), dict) and "model" in written
    found: Json = _whole(written)
    if not known or not isinstance(found.get("inner"), dict):
        raise SealError(f"{folder / 'config.json'} is no run's config")
    options = found.get("domain", {}).get("options", {})
    source = options.get("source")
    if isinstance(source, str) and not _is_file(source):
        name = source.replace("\\", "/").rsplit("/", 1)[-1]
        for own in (folder / name, folder / "tasks" / name):
            if name and own.is_file():
                options["source"] = str(own)
                break
    return found


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


MAX_SOURCE = 64_000_000
"""Bytes of a source that is kept with the run; of a larger one the fingerprint alone."""


def _keep_source(folder: Path, source: object) -> None:
    """A copy of the file that the tasks come from: the run can then be moved, and read without it."""
    if not isinstance(source, str) or not _is_file(source):
        return
    path, own = Path(source), folder / "tasks" / Path(source).name
    if folder.resolve() in path.resolve().parents or own.exists() or path.stat().st_size > MAX_SOURCE:
        return
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        aside = own.with_name(f".{own.name}.part")
        shutil.copyfile(path, aside)
        aside.rename(own)
    except OSError as error:
        raise SealError(f"cannot write {own}: {error.strerror or error}") from error


def claim(folder: Path) -> AbstractContextManager[Any]:
    """Hold a folder for this process as long as what is returned lives (or until its context ends): two
    writers would spoil it. The lock goes with the process.

    Raises:
        SealError: the folder cannot be made, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=GLANCE) if not _unlocked.is_set() else nullcontext()
    except Timeout as error:
        raise SealError(f"{folder} is in use by another process") from error
    except (OSError, NotImplementedError) as error:  # the second is filelock's for a disk without locks
        if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:
            raise SealError(
                f"the disk of {folder} knows no locks: --no-lock goes on without, and then it is yours to see "
                "to it that no other process writes there"
            ) from error
        why = getattr(error, "strerror", None) or error
        raise SealError(f"cannot make the folder {folder}: {why}") from error


def is_claimed(folder: Path) -> bool:
    """Whether some process holds a folder; where that is not known otherwise, by holding it for a moment."""
    lock, table = folder / ".lock", Path("/proc/locks")
    try:
        inode = str(lock.stat().st_ino)
        if table.exists():
            rows = (x.split() for x in table.read_text().splitlines() if "->" not in x)
            if any(row[5].rsplit(":", 1)[-1] == inode for row in rows):
                return True  # a holder in another PID namespace is not listed, so the lock is tried too
        FileLock(lock).acquire(timeout=0).lock.release()
        return False
    except (Timeout, OSError, NotImplementedError) as error:
        return isinstance(error, Timeout)


GLANCE = 0.3
"""Seconds that a claim waits: whoever only looks (:func:`is_claimed`) is gone by then."""


def _whole(found: Any) -> Any:
    """A config as it was written, with the defaults of settings that have come since."""
    if not isinstance(found, dict):
        return found
    found = of_earlier(found)
    try:
        return json.loads(RunConfig.model_validate(found).model_dump_json())
    except ValidationError:
        return found


def _difference(found: Any, wanted: Any, at: str = "") -> str:
    """The first key in which two configs differ; empty if none. Where the folder lies and who works do not
    count."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(k for k in wanted if k not in found)]:
            if at == "" and key in ("runs", "name", "workers", "cluster"):
                continue
            if text := _difference(found.get(key), wanted.get(key), f"{at}{key}."):
                return text
        return ""
    return "" if found == wanted else f"{at[:-1]}: {found!r} there, {wanted!r} here"
