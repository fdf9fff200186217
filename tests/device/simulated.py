"""A simulated accelerator: its tensors are stored on the CPU but report another device, and operations
that mix them with CPU tensors raise an error, as on CUDA.

It detects tensors that are created on the wrong device, which a test on a CPU cannot. It does not
simulate speed, memory, rounding, or libraries with their own kernels (bitsandbytes). It uses PyTorch's
device for external backends, `privateuseone`. A process cannot unregister that device again, so its
tests run in their own process.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "simulated"
_ATEN = torch.ops.aten
_COPIES = {_ATEN.copy_.default, _ATEN._to_copy.default}
# CPU tensors can index CUDA tensors, but not the other way round
_INDEXING = {
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
    _ATEN._unsafe_index.Tensor,
}


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    # random numbers come from the CPU
    def get_rng_state(self, _: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, _: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(f"{NAME}:0")


class Simulated(Tensor):
    """A tensor on the device; the CPU tensor `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Simulated":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    def __init__(self, inner: Tensor) -> None: ...

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @property
    def data(self) -> Tensor:
        return Simulated(self.inner.detach())

    @data.setter
    def data(self, new: "Simulated") -> None:
        self.inner = new.inner.detach()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()  # identifies tensors that share memory

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; copy it to the CPU")

    __array__ = numpy

    def __deepcopy__(self, _: Any) -> Tensor:
        copied = Simulated(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copied, self.requires_grad)
        return copied.requires_grad_(self.requires_grad)

    def __reduce_ex__(self, _: Any) -> Any:
        return (Simulated, (self.inner,))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _compute(func, args, kwargs or {})


class Generator(torch.Generator):
    """A replacement for torch's Generator, which cannot be created for the device."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        cpu = "cpu" if torch.device(device).type == NAME else device
        return super().__new__(cls, cpu)


torch.serialization.add_safe_globals([Simulated])


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run `func` on the CPU; place its results by the device's rules."""
    flat, _ = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, Simulated)]
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Simulated)]
    _refuse_mixtures(func, args, there, here)
    if there and func == _ATEN._fused_sdp_choice.default:
        return 0  # attention from plain operations
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif func == _ATEN.copy_.default:
        on_device = isinstance(args[0], Simulated)
    else:
        on_device = bool(there)
    flat, spec = tree_flatten((args, kwargs))
    args, kwargs = tree_unflatten([x.inner if isinstance(x, Simulated) else x for x in flat], spec)
    result = func(*args, **kwargs)
    known = {id(x.inner): x for x in there}  # in-place results keep their object

    def placed(x: Any) -> Any:
        if not on_device or not isinstance(x, Tensor) or isinstance(x, Simulated):
            return x
        return known[id(x)] if id(x) in known else Simulated(x)

    return tree_map(placed, result)


def _refuse_mixtures(func: Any, args: Any, there: list[Tensor], here: list[Tensor]) -> None:
    if not there or func in _COPIES:
        return
    # zero-dimensional tensors may be on any device
    shapes = [tuple(x.shape) for x in here if x.dim() > 0]
    if func in _INDEXING:
        shapes = [] if isinstance(args[0], Simulated) else [tuple(args[0].shape)]
    if shapes:
        raise RuntimeError(
            f"{func}: expected all tensors on {DEVICE}, but found {shapes} on the CPU"
        )


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Handles functions that create tensors from Python numbers below the level of `_Dispatch`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        place = kwargs.get("device")
        creates = func in (torch.tensor, torch.as_tensor)
        if creates and place is not None and torch.device(place).type == NAME:
            return func(*args, **(kwargs | {"device": "cpu"})).to(place)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Allow tensors on the device, in this thread and in threads started inside the block."""
    threading.Thread.run = _run_with_device  # type: ignore[method-assign]
    modes = _Functions(), _Dispatch()
    for mode in modes:
        mode.__enter__()
    try:
        yield
    finally:
        for mode in reversed(modes):
            mode.__exit__(None, None, None)
        threading.Thread.run = _run  # type: ignore[method-assign]


_run = threading.Thread.run


def _run_with_device(thread: threading.Thread) -> None:
    with _Functions(), _Dispatch():
        _run(thread)
