"""Forwards of many batches that go on together, from layer to layer.

To refit a layer on what the layers before it, refitted themselves, pass on, the network would have
to be run anew for every layer. Here the forward of every batch runs once, on a thread of its own,
and waits at the layers asked for until it is told to go on: one forward in all, whatever the number
of layers. One thread runs at a time, so nothing is gained or lost in speed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics import position_weights

__all__ = ["Lockstep"]

_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)


class Lockstep:
    """The forwards of a model on several batches, in eval mode and without gradients.

    A context manager; on leaving it forwards that are under way are abandoned. What a forward holds
    at the layer where it waits stays in memory: of all samples the activations that are still
    needed there.

    Args:
        model: its weights may be changed while the forwards wait.
        batches: one forward each.
        layers: module paths at which forwards may be asked to wait.
        after: wait behind a layer's forward with its output, else before it with its first input.
        added: module paths at whose output's sum with another tensor forwards may wait too.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Inputs],
        layers: Iterable[str],
        *,
        after: bool,
        added: Iterable[str] = (),
    ) -> None:
        self._model, self._after = model, after
        self._walks = [_Walk(model, batch) for batch in batches]
        self._layers = list(dict.fromkeys(layers))
        self._added = list(added)
        self._mode = evaluating(model)

    def weights(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """Those of the batches, for what the forwards stand at."""
        return [position_weights(w.weights, x) for w, x in zip(self._walks, values, strict=True)]

    def __enter__(self) -> Lockstep:
        self._mode.__enter__()
        self._hooks = [self._hook(name) for name in self._layers]
        self._hooks += [self._hook_sum(name) for name in self._added]
        return self

    def __exit__(self, *_: object) -> None:
        for walk in self._walks:
            walk.abandon()
        for hook in self._hooks:
            hook.remove()
        self._mode.__exit__(None, None, None)

    def at(self, name: str) -> Sequence[Tensor]:
        """Let every forward go on to its next call of layer ``name``; what is there, per batch.

        The tensors are the forward's own: read them before asking for the next layer. Raises
        ValueError if a forward ends before it calls the layer, and what a forward raises.
        """
        found = []
        for walk in self._walks:
            if walk.at != name:
                walk.go_on(name)
            if walk.value is None:
                raise ValueError(
                    f"Lockstep: argument name: expected a layer that the forward calls after those "
                    f"before, got '{name}'"
                )
            found.append(walk.value)
        return found

    def at_sum(self, name: str) -> Sequence[Tensor]:
        """Let every forward go on to the sum of module ``name``'s output; the other operands."""
        return self.at(_sum_of(name))

    def replace(self, outputs: Sequence[Tensor]) -> None:
        """At a sum: what every forward is to add in place of the module's output."""
        for walk, output in zip(self._walks, outputs, strict=True):
            walk.replacement = output

    def _own_walk(self) -> _Walk | None:
        """That of the thread which calls, if it is one of ours."""
        walk: _Walk | None = getattr(_walking, "walk", None)
        return walk if walk in self._walks else None

    def _hook_sum(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            walk = self._own_walk()
            if walk is not None:
                walk.addends.append((name, output))

        return self._model.get_submodule(name).register_forward_hook(note)

    def _hook(self, name: str) -> Any:
        def stop(value: Any) -> None:
            walk = self._own_walk()
            if walk is not None:
                walk.reach(name, value)

        layer = self._model.get_submodule(name)
        if self._after:
            return layer.register_forward_hook(lambda _, args, output: stop(output))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stop(args[0] if args else next(iter(kwargs.values()), None))

        return layer.register_forward_pre_hook(before, with_kwargs=True)


class _AbandonedError(BaseException):
    """Ends a forward that nobody waits for; no ``except Exception`` of the model stops it."""


_walking = threading.local()


def _sum_of(name: str) -> str:
    return f"{name}+"


class _Sums(TorchFunctionMode):
    """On a walk's thread: sees when the output of a module that is watched is added."""

    def __init__(self, walk: _Walk) -> None:
        super().__init__()
        self._walk = walk

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        addends = self._walk.addends
        if addends and func in _ADDITIONS and len(args) == 2:
            for name, output in addends:
                for place in (0, 1):
                    if args[place] is output:
                        addends.remove((name, output))
                        del output
                        self._walk.reach(_sum_of(name), args[1 - place])
                        new, self._walk.replacement = self._walk.replacement, None
                        if new is not None:
                            args = (new, args[1]) if place == 0 else (args[0], new)
                        return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Walk:
    """One forward. ``at``: the layer where it waits, with ``value`` there; else both None."""

    def __init__(self, model: nn.Module, batch: Inputs) -> None:
        self.of, self._batch, self.weights = model, batch, batch.weights
        self.at: str | None = None
        self.value: Tensor | None = None
        self.addends: list[tuple[str, Tensor]] = []  # outputs that are to be added
        self.replacement: Tensor | None = None
        self._target: str | None = None
        self._error: BaseException | None = None
        self._ended = self._abandoned = False
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        # The current device is a thread's own, and a new thread starts at device 0.
        self._device = next((t.device for t in batch.tensors() if t.is_cuda), None)

    def go_on(self, target: str) -> None:
        """Run until the layer is reached, or to the end."""
        self.at = self.value = None
        self._target = target
        if self._ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._mine.release()
        self._theirs.acquire()
        if self._error is not None:
            raise self._error

    def reach(self, name: str, value: Tensor) -> None:
        """On the walk's own thread: wait, if this is where to wait."""
        if self._abandoned:
            raise _AbandonedError
        if name == self._target:
            self.at, self.value = name, value
            del value
            self._theirs.release()
            self._mine.acquire()
            if self._abandoned:
                raise _AbandonedError

    def abandon(self) -> None:
        self._abandoned = True
        self.value = None
        if self._thread is not None and not self._ended:
            self._mine.release()
            self._thread.join()

    def _run(self) -> None:
        _walking.walk = self
        try:
            with torch.no_grad(), _Sums(self):
                if self._device is not None:
                    torch.cuda.set_device(self._device)
                self.of(*self._batch.args, **self._batch.kwargs)
        except _AbandonedError:
            pass
        except BaseException as error:  # handed on to the thread that waits
            self._error = error
        self._ended = True
        self._theirs.release()
