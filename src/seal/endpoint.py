"""Another model behind an OpenAI-compatible endpoint (vLLM, Ollama, llama.cpp's server, OpenAI): as a writer
of edits, or as a judge.

It is named ``http://localhost:8000/v1#model-name``. A key, where one is needed, comes from the environment
(``SEAL_API_KEY``; for OpenAI's own address ``OPENAI_API_KEY`` too), and is never written anywhere. Requests
go out side by side, are tried again where they fail, and answers are kept on disk, so that nothing is paid
for twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seal.records import SealError, Written

SIDE_BY_SIDE = 8
RETRIES = 5
PATIENCE = 12
"""Retries once it has answered: with the client's pauses of at most 8 s, more than a minute."""
TIMEOUT = 120.0
"""Seconds."""
GONE = {401, 402, 403, 404, 408, 409, 429}
"""Answers that are about the endpoint, not about the prompt; so is 500 and more, and no answer at all."""
CHARS_PER_TOKEN = 20
"""A reply longer than so many characters for each token asked for is cut: the other side may say anything."""


def is_endpoint(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class Endpoint:
    """A model behind ``url#model``.

    Args:
        name: ``url#model``.
        cache: where answers are kept; ``None``: ``seal/endpoint.sqlite`` in the user's cache folder.
        retries: how often a request that failed is sent again, after longer and longer waits.
    """

    def __init__(self, name: str, cache: Path | None = None, retries: int = RETRIES) -> None:
        self.url, _, self.model = name.partition("#")
        try:
            parts = urlsplit(self.url)
            local = parts.hostname or ""
        except ValueError as error:
            raise SealError(f"{self.url!r} is not an address: {error}") from error
        if parts.username or parts.password or parts.query:
            raise SealError(
                f"the address of {local} holds a name, a key or a query: keys come from SEAL_API_KEY, so "
                "that no file holds them"
            )
        if not self.model:
            raise SealError(
                f"{name!r} names no model: say it after the address, as in http://localhost:8000/v1#my-model"
            )
        try:
            from openai import OpenAI
        except ImportError as error:
            raise SealError(
                "a model behind an endpoint needs the package openai: pip install 'seal-lm[endpoint]'"
            ) from error
        openai_key = os.environ.get("OPENAI_API_KEY") if local == "api.openai.com" else None
        self.key = (os.environ.get("SEAL_API_KEY") or openai_key or "").strip()
        if not self.key.isascii() or not self.key.isprintable():
            raise SealError(
                "SEAL_API_KEY holds a character that no key has (a line break, or one that is not ASCII)"
            )
        self.answered = False
        self.client = OpenAI(
            base_url=self.url, api_key=self.key or "none", max_retries=retries, timeout=TIMEOUT
        )
        self.cache = _Cache(
            cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "seal/endpoint.sqlite"
        )

    def write(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        sample: int = 0,
        usable: Callable[[str], bool] = bool,
    ) -> list[str | None]:
        """The texts of :meth:`complete`, wherever they end."""
        found = self.complete(prompts, max_tokens, temperature, sample, usable)
        return [None if written is None else written.text for written in found]

    def complete(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        sample: int = 0,
        usable: Callable[[str], bool] = bool,
    ) -> list[Written | None]:
        """One text per prompt, in order, each told whether it was cut off; ``None`` where the endpoint
        refused one of them. ``sample`` tells apart draws of one prompt; an answer that is not ``usable`` is
        given all the same, but not kept.

        Raises:
            SealError: no request came through, or the endpoint is gone: why. What was answered until then is
                kept.
        """
        reasons: list[str] = []
        gone: list[str] = []

        def one(prompt: str) -> Written | None:
            key = json.dumps([self.url, self.model, prompt, max_tokens, temperature, sample])
            if (known := self.cache.get(key)) is not None:
                return known
            try:
                answer = self._send(prompt, max_tokens, temperature, sample)
            except Exception as error:  # of a client and a server of someone else's
                reason = f"{type(error).__name__}: {error}"
                reasons.append(reason.replace(self.key, "(key)") if self.key else reason)
                if _is_gone(error):
                    gone.append(reasons[-1])
                return None
            self.answered = True
            if usable(answer.text):
                self.cache.put(key, answer)
            return answer

        first = [
            one(p) for p in prompts[:1]
        ]  # alone: whether anybody answers is known before the others are sent
        if gone:
            raise SealError(
                f"{self.url} (model {self.model}) does not answer: {' '.join(reasons[0].split())[:240]}"
            )
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            rest = list(pool.map(lambda p: None if gone else one(p), prompts[1:]))
        if gone:  # not of this prompt: the others would fare no better, and no verdict is not a verdict
            raise SealError(
                f"{self.url} (model {self.model}) no longer answers: {' '.join(gone[0].split())[:240]}; what "
                "is finished is saved, and the "
                "same command goes on"
            )
        if reasons and not self.answered and not any([*first, *rest]):
            raise SealError(
                f"{self.url} (model {self.model}) does not answer: {' '.join(reasons[0].split())[:240]}"
            )
        return [*first, *rest]

    def _send(self, prompt: str, max_tokens: int, temperature: float, sample: int) -> Written:
        client = (
            self.client.with_options(max_retries=max(PATIENCE, self.client.max_retries))
            if self.answered
            else self.client
        )
        reply: Any = client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            temperature=temperature,
            seed=sample,
        )
        choice, most = reply.choices[0], CHARS_PER_TOKEN * max_tokens
        text = str(choice.message.content or "")
        return Written(
            text[:most].encode("utf-8", "replace").decode(),
            choice.finish_reason == "length" or len(text) > most,
        )


def _is_gone(error: Exception) -> bool:
    """Whether a failure is the endpoint's, and would be that of any other prompt."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIStatusError):
        return error.status_code >= 500 or error.status_code in GONE
    return isinstance(error, APIConnectionError)


class _Cache:
    """Answers on disk, by a hash of what was asked."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, check_same_thread=False)
            self.db.execute("create table if not exists answers (key text primary key, answer text)")
            self.db.execute("create table if not exists cut (key text primary key)")
        except (OSError, sqlite3.Error) as error:
            raise SealError(f"answers cannot be kept in {path}: {error}") from error
        self.lock = threading.Lock()

    def get(self, key: str) -> Written | None:
        with self.lock:
            row = self.db.execute("select answer from answers where key = ?", (_hash(key),)).fetchone()
            cut = self.db.execute("select 1 from cut where key = ?", (_hash(key),)).fetchone()
        return Written(str(row[0]), cut is not None) if row else None

    def put(self, key: str, answer: Written) -> None:
        with self.lock, self.db:
            self.db.execute("insert or replace into answers values (?, ?)", (_hash(key), answer.text))
            if answer.cut:
                self.db.execute("insert or replace into cut values (?)", (_hash(key),))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
