"""The GPU's memory, read with `nvidia-smi`, which does not use the GPU itself."""

import os
import shutil
import subprocess

QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
QUERY_S = 20.0


def gpu_memory_gb() -> float | None:
    """Memory of the NVIDIA GPU that a run would use, in units of 2^30 bytes; None without one.

    That GPU is the first one, or the first in CUDA_VISIBLE_DEVICES, by number or by UUID.
    """
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if gpu in ("", "-1") or shutil.which(QUERY[0]) is None:
        return None
    command = [*QUERY, f"--id={gpu}"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_S, check=True
        )
        return float(result.stdout.splitlines()[0]) / 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
