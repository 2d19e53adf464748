"""``seal model``: get, list, path, remove, and the model that is meant where none is named."""

from __future__ import annotations

import sys
import tomllib
from argparse import Namespace
from pathlib import Path

import platformdirs

from seal.lora.records import EMBEDDED
from seal.records import SealError
from seal.store import write_whole

OF_THE_PACKAGE = "atlas"
"""What is meant where nobody says otherwise."""


def settings_file() -> Path:
    """The user's own settings."""
    return platformdirs.user_config_path("seal-lm", appauthor=False) / "config.toml"


def own_model() -> str | None:
    """The model that ``seal model use`` named; ``None``: none.

    Raises:
        SealError: the user's settings cannot be read.
    """
    path = settings_file()
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SealError(f"your settings in {path} cannot be read: {error}") from error
    if set(found) - {"model"} or not isinstance(found.get("model", ""), str):
        raise SealError(f"your settings in {path} hold something else than the name of a model")
    return found.get("model") or None


def default_model() -> str:
    """The model that is meant where none is named, which is said."""
    name = own_model()
    if name:
        print(f"seal: model    {name} (by `seal model use`, in {settings_file()})", file=sys.stderr)
    return name or OF_THE_PACKAGE


def model(args: Namespace) -> int:
    """``seal model``: what is kept on this machine, under which name."""
    from seal.lora.cache import get, remove
    from seal.lora.names import place_of

    if args.source and args.action != "get":
        raise SealError("--from is of seal model get")
    if args.action == "list":
        if args.name:
            raise SealError("seal model list takes no name")
        return _list()
    if args.action == "get":
        found, already = get(args.name, args.source, args.again)
        what = "is here already" if already else f"{found.bytes / 1e6:,.0f} MB, from {found.note['from']}"
        print(f"{found.name}: {what}")
        print(f"ask for it by name: --model {found.name}")
        return 0
    if not args.name:
        raise SealError(f"which one? seal model {args.action} NAME")
    if args.action == "path":
        print(place_of(args.name).where)
    elif args.action == "remove":
        print(f"{args.name} is gone: {remove(args.name) / 1e6:,.0f} MB")
        if own_model() == args.name:
            _use(OF_THE_PACKAGE)
    else:
        place = place_of(args.name)
        local = Path(args.name).exists()
        _use(str(Path(args.name).resolve()) if local else args.name)
        if not local and place.where == args.name.partition("@")[0] and args.name not in EMBEDDED:
            print("it is a name of the hub, which was not asked", file=sys.stderr)
    return 0


def _use(name: str) -> None:
    path = settings_file()
    if name == OF_THE_PACKAGE:
        path.unlink(missing_ok=True)
        print(f"where no model is named it is {name} again")
        return
    write_whole(path, f"model = {_quoted(name)}\n")
    print(f"where no model is named it is {name} from now on ({path}); seal model use atlas takes it back")


def _quoted(name: str) -> str:
    """As a string of TOML."""
    if any(c in name for c in '"\\\n\r') or not name.isprintable():
        raise SealError(f"{name!r} cannot be written down as a name")
    return f'"{name}"'


def _list() -> int:
    from seal.lora.cache import cache_folder, kept
    from seal.lora.house import HOUSE

    there = {k.name: k for k in kept()}
    rows = [(name, "", "ships with this package") for name in EMBEDDED]
    for name in sorted({*HOUSE, *there}):
        about = (
            f"{HOUSE[name].about} ({HOUSE[name].license})"
            if name in HOUSE
            else f"from {there[name].note['from']}"
        )
        size = f"{there[name].bytes / 1e6:,.0f} MB" if name in there else "not here"
        rows.append((name, size, about))
    wide = max(len(name) for name, _, _ in rows)
    for name, size, about in rows:
        print(f"{name:<{wide}}  {size:>9}  {about}")
    if missing := sorted(HOUSE.keys() - there.keys()):
        print(f"to get one: seal model get {missing[0]}")
    print(f"kept in {cache_folder()}")
    own = own_model()
    print(f"where no model is named: {own or OF_THE_PACKAGE}" + (" (seal model use)" if own else ""))
    return 0
