"""The card whose memory is predicted for is the one that a run would take."""

import pytest

from toolkit.preflight.gpu import gpu_memory_gb


@pytest.mark.parametrize(
    ("visible", "asked"),
    [(None, "0"), ("0", "0"), ("1,0", "1"), ("GPU-ab12", "GPU-ab12"), ("", None), ("-1", None)],
)
def test_the_card_that_a_run_would_take_is_asked(visible, asked, tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\necho "$@" > "$0.words"\necho 8192\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory_gb() == (None if asked is None else 8.0)
    words = tmp_path / "nvidia-smi.words"
    assert words.exists() == (asked is not None)
    if asked is not None:
        assert words.read_text().split()[-1] == f"--id={asked}"
