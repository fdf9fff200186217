"""Counting the memory that tensors would hold, while a real training step runs on tensors without data."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
CHUNK = 32768  # vocabulary columns of the buffer that TRL's fused head multiplies into
ACTIVATIONS, LOGITS = "activations", "logits"


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, every new storage is counted from its first tensor to its last.

    Tensors without data (`FakeTensor`) take the place of weights and states; token ids and masks are
    real, so that code which asks for their values goes its usual way. Where it asks for a value that
    there is none of, such as a loss for the log, it gets 1.

    Args:
        vocabulary: tokens; a tensor with such a dimension counts as logits.
        resident: count what would be resident (a CPU's memory) instead of what would be allocated
            (a GPU's): of TRL's buffer of logits the columns beyond the vocabulary are never touched.

    `peak` is the most bytes at a time, `at_peak` what they were, `peak_number` counts operations.
    """

    def __init__(self, vocabulary: int, *, resident: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.resident = vocabulary, resident
        self.live: Counter[str] = Counter()
        self.total = self.peak = self.number = self.peak_number = 0
        self.at_peak: Counter[str] = Counter()
        self.born: dict[int, int] = {}

    def restart(self) -> None:
        """Look for a peak from here on."""
        self.peak, self.at_peak = self.total, Counter(self.live)
        self.peak_number = self.number

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.number += 1
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is aten.index.Tensor and isinstance(args[0], FakeTensor):
            args = (args[0], [part for index in args[1] for part in _places(index)])
        out = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        if len(returned) == 1 and returned[0].alias_info is not None:
            return out  # a view, or what was written into
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.born:
            return
        size, shape = storage.nbytes(), tuple(tensor.shape)
        kind = LOGITS if self.vocabulary in shape or CHUNK in shape[-1:] else ACTIVATIONS
        if self.resident and shape[-1:] == (CHUNK,):
            size = size * min(self.vocabulary, CHUNK) // CHUNK
        self.born[key] = self.number
        end = weakref.finalize(storage, self._forget, key, kind, size)
        end.atexit = False
        self.live[kind] += size
        self.total += size
        if self.total > self.peak:
            self.restart()

    def _forget(self, key: int, kind: str, size: int) -> None:
        del self.born[key]
        self.live[kind] -= size
        self.total -= size

    def alive_at_peak(self, tensors: list[Tensor]) -> int:
        """Bytes of these tensors, still alive now, that were there at the peak."""
        found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        return sum(n for key, n in found.items() if self.born.get(key, 1 << 62) <= self.peak_number)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A real mask as the places that it chooses, whose number is then known."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    return list(index.nonzero(as_tuple=True))
