"""Ray spreads the waves of a stage over processes, devices and machines: a worker holds one device and one
copy of the model.

When a worker dies another is hired, and its wave goes to the next one that is free. A wave that has failed
twice is taken apart; an attempt that fails three times by itself is set aside: recorded as *failed*, with the
reason. At most one wave is with a worker, and no wave is begun that is far ahead of the oldest unfinished
one, so memory does not grow with their number. Weights are read from where the driver read them: on several
machines the run folder lies on a file system they share.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal.config import InnerConfig, RunConfig
from seal.loop.inner import InnerLoop, Trial, open_domain
from seal.loop.rooms import Rooms
from seal.lora.capacity import OutOfRoom, Room, spread
from seal.lora.heap import tune_heap
from seal.lora.load import allowed_cores, load_model
from seal.lora.model import Model
from seal.lora.records import ModelSpec
from seal.records import Attempt, Grade, LoraError, SealError

TRIES = 3
"""After so many deaths over one attempt it is set aside."""
AHEAD = 4
"""Waves per worker that may be done before the oldest one is."""


class _Worker:
    """In a process of its own."""

    def __init__(self, config: str) -> None:
        tune_heap()
        self.config = RunConfig.model_validate_json(config)
        self.domain = open_domain(self.config)
        self.model: Model | None = None

    def ready(self) -> int:
        return os.getpid()

    def wave(
        self,
        spec: ModelSpec,
        trials: Sequence[Trial],
        before: Mapping[str, Grade],
        config: InnerConfig,
        room: Room,
    ) -> list[Attempt]:
        if self.model is None or self.model.spec != spec:
            self.model = load_model(spec, config.recipe.rank, self.model)
        return InnerLoop(self.domain, config).wave(self.model, trials, before, room)


class RayWorkers:
    """``config.workers`` workers, here or on the cluster at ``config.cluster``; a context.

    Raises:
        SealError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, config: RunConfig) -> None:
        self.ray = _ray()
        threads = config.model.threads
        share = max(1, len(allowed_cores()) // config.workers) if threads == "auto" else threads
        self.threads = share
        config = config.model_copy(update={"model": config.model.model_copy(update={"threads": share})})
        n_cpus = share if config.cluster else 0  # here the operating system shares the cores out
        self._start(config)
        needs = {
            "num_cpus": n_cpus,
            "num_gpus": spread(config.model.device)[1] if config.model.device.startswith("cuda") else 0,
        }
        self.kind = self.ray.remote(max_restarts=0, max_task_retries=0, **needs)(_Worker)
        self.config = config.model_dump_json()
        self.free = [self._hire() for _ in range(config.workers)]
        try:
            self.ray.get([worker.ready.remote() for worker in self.free])
        except self.ray.exceptions.RayError as error:
            self.ray.shutdown()
            raise SealError(
                f"the workers do not start: {str(error).strip().splitlines()[-1][:300]}"
            ) from error

    def _hire(self) -> Any:
        return self.kind.remote(self.config)

    def _start(self, config: RunConfig) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        try:
            if config.cluster:
                _reach(config.cluster)
                self.ray.init(address=config.cluster, **quiet)
            else:
                self.ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        except Exception as error:  # of a system of many parts
            raise SealError(
                f"Ray does not start ({config.cluster or 'here'}): {str(error).splitlines()[0][:300]}"
            ) from error

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def waves(
        self,
        inner: InnerLoop,
        model: Model,
        waves: Mapping[int, Sequence[Trial]],
        before: Mapping[str, Grade],
        rooms: Rooms,
    ) -> Iterator[tuple[int, list[Attempt]]]:
        """Number and attempts of each wave, as they are done."""
        spec = self._spec(model)
        shared = self.ray.put(dict(before))
        queue = deque((n, 0, tuple(wave)) for n, wave in waves.items())  # (wave, place in it, trials)
        found: dict[int, dict[int, list[Attempt]]] = {n: {} for n in waves}
        deaths: Counter[tuple[int, int, int]] = Counter()
        running: dict[Any, tuple[Any, Room, tuple[int, int, tuple[Trial, ...]]]] = {}
        n_workers = len(self.free)
        while queue or running:
            oldest = min(found)
            while self.free and queue and queue[0][0] - oldest < AHEAD * n_workers:
                job = queue.popleft()
                worker = self.free.pop()
                room = rooms.of(job[0])
                running[worker.wave.remote(spec, job[2], shared, inner.config, room)] = (worker, room, job)
            [ref], _ = self.ray.wait(list(running), num_returns=1)
            worker, room, job = running.pop(ref)
            number, place, _ = job
            try:
                attempts = self.ray.get(ref)
                self.free.append(worker)
                if room != rooms.of(number):  # memory has run out meanwhile, in this wave or one before it
                    queue.appendleft(job)
                    continue
                found[number][place] = attempts
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, LoraError):  # the same everywhere: for the user to put right
                    raise error.cause from error
                self.free.append(worker)
                if isinstance(error.cause, OutOfRoom):
                    if room == rooms.of(number):
                        rooms.shrink(number, error.cause.smaller)
                    queue.appendleft(job)
                    continue
                self._failed(job, repr(error.cause), deaths, queue, found, before)
            except self.ray.exceptions.RayError as error:
                self.free.append(self._hire())  # it comes when there is a place for it
                self._failed(job, f"its worker died ({type(error).__name__})", deaths, queue, found, before)
            if sum(map(len, found[number].values())) == len(waves[number]):
                pieces = found.pop(number)
                yield number, [attempt for at in sorted(pieces) for attempt in pieces[at]]

    def _spec(self, model: Model) -> ModelSpec:
        """What a worker is to load, wherever it works."""
        assert model.spec is not None, "workers load what lies on disk"
        found: dict[str, Any] = {"threads": self.threads}
        for key, path in (("name", model.spec.name), ("adapter", model.spec.adapter)):
            if path and Path(path).is_dir():
                found[key] = str(Path(path).resolve())
        if model.spec.device.startswith("cuda:"):  # Ray shows a worker its own devices alone
            found["device"] = "cuda"
        return model.spec.model_copy(update=found)

    def _failed(
        self,
        job: tuple[int, int, tuple[Trial, ...]],
        why: str,
        deaths: Counter[tuple[int, int, int]],
        queue: deque[tuple[int, int, tuple[Trial, ...]]],
        found: dict[int, dict[int, list[Attempt]]],
        before: Mapping[str, Grade],
    ) -> None:
        """To the next worker; apart, where it is a wave that has failed twice; aside, where it is one attempt
        that has three times."""
        number, place, trials = job
        key = (number, place, len(trials))
        deaths[key] += 1
        if len(trials) > 1 and deaths[key] == TRIES - 1:
            queue.extendleft((number, place + i, (trial,)) for i, trial in reversed(list(enumerate(trials))))
        elif deaths[key] < TRIES:
            queue.appendleft(job)
        else:
            found[number][place] = [_set_aside(trials[0], before[trials[0].task.id], why)]


def _set_aside(trial: Trial, before: Grade, why: str) -> Attempt:
    attempt = Attempt.begun(trial.task.id, trial.edit, trial.seed, trial.parsed.text, before)
    return attempt.failed(f"{TRIES} tries, each time: {why}"[:500])


def _reach(address: str) -> None:
    """Knock at a cluster's door: Ray itself goes on knocking for many minutes.

    Raises:
        OSError: nobody is there.
    """
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # they are the work itself, not a background of it
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise SealError("--workers needs Ray: pip install 'seal-lm[ray]'") from error
    return ray
