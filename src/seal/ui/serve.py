"""`seal ui`: the app behind uvicorn, on this machine alone unless another address is asked for."""

from __future__ import annotations

import socket
from pathlib import Path

from seal.records import SealError


def serve(root: Path, host: str, port: int) -> None:
    """Serve a folder of runs until interrupted.

    Raises:
        SealError: the extra is not installed, the folder is not there, or the port is taken.
    """
    try:
        import uvicorn

        from seal.ui.app import LOCAL, make_app
    except ImportError as error:
        raise SealError(
            f"seal ui needs its extra ({error.name} is missing): pip install 'seal-lm[ui]'"
        ) from error
    if not root.is_dir():
        raise SealError(f"there is no folder {root}: name the one that your runs lie in")
    if any((root / mark).is_file() for mark in ("config.json", "learn.json")):
        raise SealError(f"{root} is a run itself: name the folder above it")
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError as error:
        raise SealError(f"cannot listen on {host}:{port}: {error.strerror}; take another --port") from error
    finally:
        taken.close()
    local = host in ("127.0.0.1", "localhost", "::1")
    print(
        f"seal ui: http://{f'[{host}]' if ':' in host else host}:{port}  ({root.resolve()}; Ctrl-C ends it)",
        flush=True,
    )
    if not local:
        print(
            f"seal ui: anyone who reaches {host} can read these runs and teach documents: there is no "
            "password",
            flush=True,
        )
    uvicorn.run(make_app(root, LOCAL if local else ["*"]), host=host, port=port, log_level="warning")
