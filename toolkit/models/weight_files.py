"""The weight files in a model's folder: only safetensors, because opening a pickle can run code."""

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import CheckpointError, ConfigError
from toolkit.runs.run import apply_umask

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LFS_POINTER = b"version https://git-lfs"
CONVERT = (
    "if you trust the model's source, convert it once in Python: "
    "AutoModelForCausalLM.from_pretrained({old!r}, use_safetensors=False).save_pretrained({new!r}), "
    "the same with AutoTokenizer, and name the new folder"
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder, in order.

    Raises: CheckpointError for a folder with pickles only, or with pointers of Git LFS in place of
        weights; ConfigError for one without weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(
                    f"{file}: a pointer of Git LFS, not the weights; run `git lfs pull` in the folder"
                )
    if files:
        return files
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES and is_weights(f))
    if pickles:
        advice = CONVERT.format(old=str(folder), new=f"{folder}-safetensors")
        raise CheckpointError(
            f"{folder}: its weights are pickles ({pickles[0]}), which are never opened, because they "
            f"can run code; {advice}"
        )
    raise ConfigError(f"{folder}: no weight files (*.safetensors); name a model's folder")


def is_weights(file: Path) -> bool:
    """Whether a pickle holds a model's weights, not training options or an optimizer's state."""
    return file.stem not in ("training_args", "optimizer", "scheduler", "rng_state", "scaler")


def save_tensors(tensors: "dict[str, Tensor]", file: Path) -> None:
    """Write a safetensors file with the permissions of any other file."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, file, metadata={"format": "pt"})
    apply_umask(file)
