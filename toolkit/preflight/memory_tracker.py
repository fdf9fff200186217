"""Counts the memory that tensors would hold while a training step runs on fake tensors."""

import math
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
CHUNK = 32768  # vocabulary columns of the buffer that TRL's fused head multiplies into
MAX_REAL_BYTES, MAX_ITEM = 1 << 20, 8
MAPPED = 32 << 20  # bytes; glibc serves a smaller block from its heap
ACTIVATIONS, LOGITS = "activations", "logits"


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, count each new storage from its first tensor until its last is freed.

    Weights and states are fake tensors. Token ids and masks are real, so that code that reads their values
    runs as usual. Code that reads the value of a fake tensor, such as a loss for the log, reads 1. Results
    larger than `MAX_REAL_BYTES`, such as a buffer for logits, are fake.

    Args:
        mode: the mode of the fake tensors; None if all tensors are real.
        vocabulary: size of the vocabulary; a tensor with such a dimension counts as logits.
        resident: count resident memory (CPU) instead of allocated memory (GPU). They differ in TRL's
            buffer, whose columns beyond the vocabulary are allocated but never written.

    `peak` is the highest number of bytes, `at_peak` its parts, `peak_number` the operation's number.
    `forward` is the sum of all blocks that forward passes with gradients allocate from glibc's heap. With
    `is_fused`, passes without gradients count, too: the forward of an autograd function is one.
    """

    def __init__(self, mode: FakeTensorMode | None, vocabulary: int, *, resident: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode, self.vocabulary, self.resident = mode, vocabulary, resident
        self.held: Counter[str] = Counter()
        self.total = self.peak = self.number = self.peak_number = self.forward = 0
        self.is_fused = False
        self.at_peak: Counter[str] = Counter()
        self.created: dict[int, int] = {}  # storage: number of the operation

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.total, Counter(self.held)
        self.peak_number = self.number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.number += 1
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is aten.index.Tensor and isinstance(args[0], FakeTensor):
            args = (args[0], [part for index in args[1] for part in _positions(index)])
        returned = func._schema.returns
        if len(returned) == 1 and returned[0].alias_info is not None:
            return func(*args, **(kwargs or {}))  # a view, or a tensor written in place
        out = self._large_result(func, args, kwargs or {})
        if out is None:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _large_result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The fake result of a function of real arguments if it is large, else None."""
        mode = self.mode
        values = [v for v in tree_iter((args, kwargs)) if isinstance(v, Tensor)]
        if mode is None or any(isinstance(v, FakeTensor) for v in values):
            return None
        if torch.Tag.pointwise in func.tags:  # a fake result would take longer
            shape = torch.broadcast_shapes(*(v.shape for v in values))  # type: ignore[no-untyped-call]
            if math.prod(shape) * MAX_ITEM <= MAX_REAL_BYTES:
                return None
        try:
            with mode:
                out = func(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            return None  # the shape or the result depends on the values
        is_large = isinstance(out, Tensor) and out.untyped_storage().nbytes() > MAX_REAL_BYTES
        return out if is_large else None

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.created:
            return
        size, shape = storage.nbytes(), tuple(tensor.shape)
        part = LOGITS if self.vocabulary in shape or CHUNK in shape[-1:] else ACTIVATIONS
        if self.resident and shape[-1:] == (CHUNK,):
            size = size * min(self.vocabulary, CHUNK) // CHUNK
        is_forward = torch._C._current_graph_task_id() < 0  # not in a backward pass
        if size < MAPPED and is_forward and (torch.is_grad_enabled() or self.is_fused):
            self.forward += size
        self.created[key] = self.number
        finalizer = weakref.finalize(storage, self._forget, key, part, size)
        finalizer.atexit = False
        self.held[part] += size
        self.total += size
        if self.total > self.peak:
            self.restart()

    def _forget(self, key: int, part: str, size: int) -> None:
        del self.created[key]
        self.held[part] -= size
        self.total -= size

    def bytes_at_peak(self, tensors: list[Tensor]) -> int:
        """Bytes of those of these tensors that existed at the peak."""
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        return sum(
            size
            for key, size in sizes.items()
            if key in self.created and self.created[key] <= self.peak_number
        )


def _positions(index: Tensor | None) -> list[Tensor | None]:
    """Convert a real boolean mask to indices, so that the shape of the result is known."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    return list(index.nonzero(as_tuple=True))
