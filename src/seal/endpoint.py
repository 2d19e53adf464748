"""Another model behind an OpenAI-compatible endpoint (vLLM, Ollama, llama.cpp's server, OpenAI): as a writer
of edits, or as a judge.

It is named ``http://localhost:8000/v1#model-name``. A key, where one is needed, comes from the environment
(``SEAL_API_KEY``, which goes to one host alone; ``SEAL_API_KEY_HOST`` for a host by its name; for OpenAI's
own address ``OPENAI_API_KEY`` too), and is never written anywhere. Requests go out side by side, are tried again where they fail, and answers are kept on disk, so that nothing is paid
for twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

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
        self.key = _key_for(parts)
        self.answered = False
        self.refused: list[str] = []
        """Why prompts were left without an answer for good, one reason each."""
        self.newer = False
        """Whether the model wants ``max_completion_tokens`` for ``max_tokens``."""
        self.own_temperature = False
        """Whether it takes no temperature but its own."""
        try:
            self.client = OpenAI(
                base_url=self.url, api_key=self.key or "none", max_retries=retries, timeout=TIMEOUT
            )
        except Exception as error:  # a proxy that needs a package, certificates that are not there
            raise SealError(f"{self.url} cannot be asked: {_set_up(error)}") from error
        self.cache = _Cache(cache)

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
                reason = why(error, self.url)
                reasons.append(reason.replace(self.key, "(key)") if self.key else reason)
                if _is_gone(error):
                    gone.append(reasons[-1])
                else:
                    self.refused.append(reasons[-1])
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
        for _ in range(3):  # as it is, and with what newer models take instead
            limit = "max_completion_tokens" if self.newer else "max_tokens"
            settings: dict[str, Any] = {limit: max_tokens, "seed": sample}
            if not self.own_temperature:
                settings["temperature"] = temperature
            try:
                reply: Any = client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], **settings
                )
                break
            except Exception as error:
                if not self._yields_to(error):
                    raise
        return _text_of(reply, max_tokens)

    def _yields_to(self, error: Exception) -> bool:
        """Whether a refusal names a setting that can be had another way; the next request does."""
        from openai import BadRequestError

        text = str(error) if isinstance(error, BadRequestError) else ""
        if "max_completion_tokens" in text and not self.newer:
            self.newer = True
        elif "temperature" in text and not self.own_temperature:
            self.own_temperature = True
            print(
                f"seal: {self.model} takes no temperature but its own: edits are drawn at that",
                file=sys.stderr,
            )
        else:
            return False
        return True


GIVEN: dict[str, str] = {}
"""Keys that belong to no host by name, and the host that each went to first: it goes to no other."""


def _key_for(address: SplitResult) -> str:
    """The key of a host: ``SEAL_API_KEY_HOST`` (with the host's name in capitals, and ``_`` for what is
    neither letter nor digit), or ``OPENAI_API_KEY`` for OpenAI's own, or ``SEAL_API_KEY``, which goes to one
    host alone.

    Raises:
        SealError: it is no key, or it would cross a network in plain text.
    """
    host = address.hostname or ""
    own = "SEAL_API_KEY_" + re.sub(r"[^A-Z0-9]", "_", host.upper())
    named = os.environ.get(own)
    general = os.environ.get("SEAL_API_KEY", "").strip()
    where = f"{host}:{address.port}" if address.port else host
    if named is not None:
        key = named.strip()
    elif general and GIVEN.setdefault(general, where) == where:
        own, key = "SEAL_API_KEY", general
    elif host == "api.openai.com" and os.environ.get("OPENAI_API_KEY"):
        own, key = "OPENAI_API_KEY", os.environ["OPENAI_API_KEY"].strip()
    else:
        if general:
            print(
                f"seal: SEAL_API_KEY was given for {GIVEN[general]}, so {where} is asked without a key; one "
                f"of its own comes from {own}",
                file=sys.stderr,
            )
        return ""
    if not key.isascii() or not key.isprintable():
        raise SealError(f"{own} holds a character that no key has (a line break, or one that is not ASCII)")
    if key and address.scheme == "http" and not _is_loopback(host):
        raise SealError(
            f"the key of {own} would go to {host} in plain text: take https://, or an empty "
            f"SEAL_API_KEY_{re.sub(r'[^A-Z0-9]', '_', host.upper())} where it needs none"
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class NoCompletion(Exception):
    """An answer that is not a completion."""

    def __init__(self, text: str, gone: bool) -> None:
        super().__init__(text)
        self.gone = gone


def _text_of(reply: Any, max_tokens: int) -> Written:
    """The text of a completion, bounded, whatever the other side sent.

    Raises:
        NoCompletion: it sent something else: what.
    """
    if isinstance(reply, str):
        start = " ".join(reply.split())[:80]
        if reply.lstrip().startswith("data:"):
            raise NoCompletion(f"it answers with a stream, not with a completion ({start!r})", True)
        if reply.lstrip().startswith("<"):
            raise NoCompletion(f"it answers with a web page: is /v1 missing? ({start!r})", True)
        raise NoCompletion(f"its answer is no completion: {start!r}", True)
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices:
        error = getattr(reply, "error", None)
        told = (error.get("message") or error) if isinstance(error, dict) else error
        code = error.get("code") if isinstance(error, dict) else None
        about_prompt = isinstance(code, int) and 400 <= code < 500 and code not in GONE
        if told:
            raise NoCompletion(f"it answers with an error: {str(told)[:200]}", not about_prompt)
        raise NoCompletion("its answer holds no choices", False)
    message = getattr(choices[0], "message", None)
    content = getattr(message, "content", None) or ""
    if isinstance(content, list):  # parts of a message
        parts = [p.get("text") if isinstance(p, dict) else getattr(p, "text", "") for p in content]
        content = "".join(str(p or "") for p in parts)
    text, most = str(content), CHARS_PER_TOKEN * max_tokens
    return Written(
        text[:most].encode("utf-8", "replace").decode(),
        getattr(choices[0], "finish_reason", None) == "length" or len(text) > most,
    )


def why(error: Exception, url: str) -> str:
    """What went wrong with a request, in the words of whoever refused it."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    if isinstance(error, NoCompletion):
        return str(error)
    if isinstance(error, APIStatusError):
        body = error.body
        told = body.get("message") if isinstance(body, dict) else None
        told = told or (body.get("error") if isinstance(body, dict) else None) or error.response.text
        return f"HTTP {error.status_code}: {' '.join(str(told).split())[:200] or 'nothing more is said'}"
    if isinstance(error, APITimeoutError):
        return f"no answer within {TIMEOUT:.0f} s{_through(url)}"
    if isinstance(error, APIConnectionError):
        cause: BaseException = error
        while (next_ := cause.__cause__ or cause.__context__) is not None:
            cause = next_
        host = urlsplit(url).hostname
        told = str(cause) or type(cause).__name__
        kind = "the name is not known: " if isinstance(cause, socket.gaierror) else ""
        return f"no connection to {host}{_through(url)}: {kind}{told}"
    if isinstance(error, json.JSONDecodeError):
        return f"its answer cannot be read: {error}"
    return f"{type(error).__name__}: {error}"


def _through(url: str) -> str:
    """The proxy that the environment sends such requests through, in words; empty where none."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    found = urlsplit(proxy)
    return f" through the proxy {found.scheme}://{found.hostname}" + (f":{found.port}" if found.port else "")


def _set_up(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        files = [f"{n}={os.environ[n]}" for n in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(n)]
        return f"its certificates are not there ({', '.join(files) or error})"
    return " ".join(str(error).split())


def _is_gone(error: Exception) -> bool:
    """Whether a failure is the endpoint's, and would be that of any other prompt."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, NoCompletion):
        return error.gone
    if isinstance(error, APIStatusError):
        return error.status_code >= 500 or error.status_code in GONE
    return isinstance(error, (APIConnectionError, json.JSONDecodeError))


class _Cache:
    """Answers on disk, by a hash of what was asked. Without a place for it, or once that fails, answers are
    not kept: said once, and nothing else changes."""

    def __init__(self, path: Path | None) -> None:
        self.lock = threading.Lock()
        self.db: sqlite3.Connection | None = None
        try:
            path = path or _cache_folder() / "seal/endpoint.sqlite"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, check_same_thread=False)
            self.db.execute("create table if not exists answers (key text primary key, answer text)")
            self.db.execute("create table if not exists cut (key text primary key)")
        except (OSError, RuntimeError, sqlite3.Error) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.db = None
        print(f"seal: answers of endpoints are not kept: {error}", file=sys.stderr)

    def get(self, key: str) -> Written | None:
        with self.lock:
            if self.db is None:
                return None
            try:
                row = self.db.execute("select answer from answers where key = ?", (_hash(key),)).fetchone()
                cut = self.db.execute("select 1 from cut where key = ?", (_hash(key),)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        return Written(str(row[0]), cut is not None) if row else None

    def put(self, key: str, answer: Written) -> None:
        with self.lock:
            if self.db is None:
                return
            try:
                with self.db:
                    self.db.execute("insert or replace into answers values (?, ?)", (_hash(key), answer.text))
                    if answer.cut:
                        self.db.execute("insert or replace into cut values (?)", (_hash(key),))
            except sqlite3.Error as error:
                self._give_up(error)


def _cache_folder() -> Path:
    """The user's cache folder.

    Raises:
        RuntimeError: the user has no home, and the environment names no folder.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path.home() / ".cache"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
