"""Memory is predicted for the GPU that a run would use."""

import pytest

from toolkit.preflight.gpu import gpu_memory_gb


@pytest.mark.parametrize(
    ("visible", "gpu"),
    [(None, "0"), ("0", "0"), ("1,0", "1"), ("GPU-ab12", "GPU-ab12"), ("", None), ("-1", None)],
)
def test_memory_is_read_from_the_gpu_of_the_run(visible, gpu, tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\necho "$@" > "$0.words"\necho 8192\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory_gb() == (None if gpu is None else 8.0)
    words = tmp_path / "nvidia-smi.words"
    assert words.exists() == (gpu is not None)
    if gpu is not None:
        assert words.read_text().split()[-1] == f"--id={gpu}"
