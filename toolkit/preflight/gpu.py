"""The card's memory, asked of its driver's own program, so that nothing starts on the card."""

import os
import shutil
import subprocess

ASK = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
ASK_S = 20.0


def gpu_memory_gb() -> float | None:
    """Of the NVIDIA card that a run would take, in units of 2^30 bytes; None where none answers.

    That is the first, or the first that CUDA_VISIBLE_DEVICES names, by number or by its own name.
    """
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if card in ("", "-1") or shutil.which(ASK[0]) is None:
        return None
    ask = [*ASK, f"--id={card}"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True)
        return float(found.stdout.splitlines()[0]) / 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
