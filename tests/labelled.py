"""Several devices on a machine that has none: tensors carry the name of the device they would be on.

Values are computed on the CPU. ``.to("cuda:1")`` gives a copy with that label, what is made of labelled
tensors is labelled like them, and an operation on tensors of two devices is refused, as CUDA would. What the
autograd engine makes by itself has no label and goes with any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_READ = torch.Tensor.device.__get__  # type: ignore[attr-defined]
MOVES = {"to", "copy_", "pin_memory", "grad"}
"""What may see two devices."""
INDEXES = {"__getitem__", "__setitem__"}
"""Whose index may be on the CPU."""


class Devices(TorchFunctionMode):
    """While inside, ``cuda:0``, ``cuda:1``, … are there."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = WeakTensorKeyDictionary()
        self.moved = 0

    def label(self, x: Tensor) -> torch.device | None:
        return self.labels.get(x)  # type: ignore[no-any-return]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func == _READ:
            return self.label(args[0]) or torch.device("cpu")
        name = getattr(func, "__name__", str(func))
        inputs = [x for x in _tensors((args, kwargs)) if x.dim() or name in MOVES]
        found = {d for x in inputs if (d := self.label(x)) is not None}
        wanted = self._wanted(name, args, kwargs)
        if name not in MOVES and len(found) > 1 and not (name in INDEXES and self.label(args[0])):
            raise RuntimeError(f"{name}: expected all tensors on one device, found {sorted(map(str, found))}")
        if name == "pin_memory":
            return args[0]
        if name == "grad":  # each gradient where its weight is
            gradients = func(*args, **kwargs)
            for weight, gradient in zip(args[1], gradients, strict=True):
                if gradient is not None:
                    self.labels[gradient] = self.label(weight)
            return gradients
        args, kwargs = _strip((args, kwargs))
        out = func(*args, **kwargs)
        target = wanted or (self.label(args[0]) if name == "copy_" else next(iter(found), None))
        if name == "to" and wanted and self.label(args[0]) != wanted:
            out = out.clone() if out is args[0] else out
            self.moved += 1
        if target is not None:
            for x in _tensors(out):
                if self.label(x) is None or name == "to":
                    self.labels[x] = target
        return out

    def _wanted(self, name: str, args: Any, kwargs: Any) -> torch.device | None:
        given = kwargs.get("device")
        if name == "to":
            given = given or next((a for a in args[1:] if isinstance(a, (str, torch.device))), None)
            if len(args) > 1 and isinstance(args[1], Tensor):
                return self.label(args[1])
        return None if given is None else torch.device(given)


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for x in value:
            yield from _tensors(x)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _strip(value: Any) -> Any:
    """Without any device but the CPU."""
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda:")):
        return torch.device("cpu")
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_strip(x) for x in value)
    return {k: _strip(v) for k, v in value.items()} if type(value) is dict else value


def place(model: Any, places: dict[str, str], labels: Devices) -> Any:
    """Spread a model as accelerate's ``dispatch_model`` does: weights moved, and its hooks that bring inputs
    to them."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook

    for name, device in places.items():
        block = model.get_submodule(name)
        for module in block.modules():
            for values in (module._parameters, module._buffers):
                for key, x in values.items():
                    if x is not None:
                        values[key] = (
                            nn.Parameter(x.detach().clone(), False)
                            if values is module._parameters
                            else x.clone()
                        )
                        labels.labels[values[key]] = torch.device(device)
        add_hook_to_module(block, AlignDevicesHook(device, io_same_device=False))
        attach_execution_device_hook(block, device)  # type: ignore[arg-type]
    add_hook_to_module(model, AlignDevicesHook(next(iter(places.values())), io_same_device=True))
    model.hf_device_map = places
    return model
