"""Fast versions of LoRA layers, log-probabilities and batches, with one switch for all of them.

| module | fast version | plain version |
|---|---|---|
| `fused_lora` | base and adapter in one autograd node | PEFT's own layers |
| `chunked_logprobs` | a slice of the logits at a time | log-softmax over all logits |
| `packing` | several sequences share a row | padded batches |

`TOOLKIT_KERNELS=0` in the environment selects the plain versions. docs/performance.md lists the
gain of each fast version.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_enabled = os.environ.get("TOOLKIT_KERNELS", "1") != "0"


def kernels_enabled() -> bool:
    """Whether the fast versions are used."""
    return _enabled


@contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """Select the fast or the plain versions inside the block, for tests and comparisons.

    LoRA layers are chosen when an adapter is attached, so the block must include that step.
    """
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before
