"""Rows, files and docs tables that several tests of datasets use."""

import json
from pathlib import Path
from typing import Any

from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments

from tests.conftest import ROOT
from toolkit.data import load_splits
from toolkit.data.convert import Turns
from toolkit.options.arguments import DataArguments


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def chat(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": [user(prompt)], "completion": [assistant(completion)]}


def pairs(count: int, *, start: int = 0, prefix: str = "q") -> list[dict[str, Any]]:
    """Prompt-completion rows q0 a0, q1 a1, …"""
    return [{"prompt": f"{prefix}{i}", "completion": f"a{i}"} for i in range(start, start + count)]


def write_rows(path: Path, rows: list[Any]) -> str:
    """Write a JSONL file and return its name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(
    name: str | None = None,
    *,
    kind: str = "prompt-completion",
    seed: int = 0,
    script: dict[str, Any] | None = None,
    mixture: dict[str, Any] | None = None,
    turns: Turns = "last",
    texts: bool = False,
    folder: Path | None = None,
    **data_args: Any,
) -> Any:
    """`load_splits` with options as keywords."""
    return load_splits(
        ScriptArguments(dataset_name=name, **(script or {})),
        DatasetMixtureConfig(**(mixture or {})),
        DataArguments(**data_args),
        kind=kind,
        seed=seed,
        turns=turns,
        texts=texts,
        folder=folder,
    )


def docs_table(title: str) -> list[list[str]]:
    """The rows of the first table under a heading of docs/data.md, without its head."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    table = section[section.index("\n|") :].strip("\n").split("\n\n")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


# One row of each format, as docs/data.md shows it.
EXAMPLES: dict[str, dict[str, Any]] = {
    name.strip("`"): json.loads(example.strip("`")) for name, _, _, example in docs_table("Formats")
}
