"""The card's memory, asked of its driver's own program, so that nothing starts on the card."""

import shutil
import subprocess

ASK = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "--id=0")
ASK_S = 20.0


def card_memory_gb() -> float | None:
    """Of the first NVIDIA card, in units of 2^30 bytes; None where there is none that answers."""
    if shutil.which(ASK[0]) is None:
        return None
    try:
        found = subprocess.run(ASK, capture_output=True, text=True, timeout=ASK_S, check=True)
        return float(found.stdout.splitlines()[0]) / 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
