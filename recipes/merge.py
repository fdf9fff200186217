"""Merge an adapter into its base: one plain transformers checkpoint, in float32 or bfloat16.

    toolkit merge --config world/merge \\
        --parent runs/world/ppo --output_dir runs/world/merged

Reads   the base and a run of SFT, PPO or DPO.
Writes  a new directory: weights, config, the tokens that end an answer, the tokenizer with its chat
        template, and run.json with the differences between the merged model and base with adapter
        on a probe text: most likely tokens, KL, logits.
"""

import sys
from typing import TYPE_CHECKING

from toolkit.cli import run as run_command
from toolkit.errors import ConfigError
from toolkit.options.arguments import MergeArguments
from toolkit.recipe import Command
from toolkit.runs.inputs import require_separate
from toolkit.runs.parents import base_options, made_with, require_adapter, require_new
from toolkit.runs.run import Run

if TYPE_CHECKING:
    from toolkit import ModelArguments


def main(merge: MergeArguments, model: "ModelArguments") -> Run:
    if merge.parent is None:
        raise ConfigError("merge: `parent` is missing; name the run: --parent runs/world/ppo")
    require_separate(merge.output_dir, merge, model)
    require_adapter(merge.parent, "parent")
    require_new(merge.output_dir, recipe="merge")

    import torch

    from toolkit.models.arguments import reject_adapter_options
    from toolkit.models.base import fingerprint, load_base
    from toolkit.models.export_merged import (
        dequantized,
        differences,
        merge_into_base,
        probe_logits,
        require_full_precision,
        require_mergeable,
    )
    from toolkit.trainers.load_policy import adapted_base

    reject_adapter_options(
        model,
        because=f"the adapter comes from the parent {merge.parent}",
        made_with=[made_with(merge.parent)],
    )
    base = {n: v for n, v in base_options(merge.parent).items() if n.startswith("model_")}
    model = model.with_base_of(base)
    require_full_precision(model)
    require_mergeable(merge.parent)
    parents = {"adapter": merge.parent}
    configs = (merge, model)
    with Run.start(merge.output_dir, recipe="merge", configs=configs, parents=parents) as run:
        base, tokenizer = load_base(
            model, parent=merge.parent, trust_remote_code=merge.trust_remote_code
        )
        run.base = fingerprint(model, tokenizer)
        base = dequantized(base, dtype=torch.float32)
        adapted = adapted_base(base, run.base, merge.parent)
        before = probe_logits(adapted, tokenizer)
        merged = merge_into_base(adapted, dtype=getattr(torch, model.dtype))
        compared = differences(before, probe_logits(merged, tokenizer))
        print(f"merged in {model.dtype}: {compared}")
        run.begin()
        merged.save_pretrained(run.path)
        tokenizer.save_pretrained(run.path)
        return run.finish(**compared._asdict())


def arguments() -> tuple[type, ...]:
    from toolkit.models.arguments import ModelArguments

    return MergeArguments, ModelArguments


COMMAND = Command("merge", __doc__, main, arguments)

if __name__ == "__main__":
    sys.exit(run_command(COMMAND))
