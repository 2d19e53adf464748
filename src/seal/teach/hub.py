"""Sending a folder to the hub. Nothing is sent unless asked, and a new repository is private."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from seal.records import SealError

WHAT = ["*.safetensors", "*.json", "README.md", "adapter*/*", "*.model", "*.txt", "*.jinja"]
"""What is sent: models, adapters and their card."""
PRIVATE = [".*", "passages.jsonl", "learn.json", "chunks/*"]
"""What stays: the documents themselves, and what was made of them on the way."""


def push(folder: Path, repo: str) -> str:
    """Upload what a folder holds of weights and cards to a repository of the hub (made, private, if it is not
    there); the address of what was sent.

    Raises:
        SealError: not logged in, not allowed, or the hub is not reachable.
    """
    api = HfApi()
    try:
        api.create_repo(repo, exist_ok=True, private=True)
        return str(
            api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=WHAT, ignore_patterns=PRIVATE)
        )
    except Exception as error:  # of a client and a server of someone else's
        first = " ".join(str(error).split())[:240]
        raise SealError(f"{folder} was not sent to {repo}: {first} (log in with `hf auth login`)") from error
