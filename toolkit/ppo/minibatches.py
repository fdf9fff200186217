"""Which rows of a rollout each micro-batch of PPO's updates gets; a function of the seed and the step."""

import torch

from toolkit.models.passes import by_length
from toolkit.ppo.config import PPOConfig
from toolkit.ppo.rollout import Experience


def micro_batch(experience: Experience, args: PPOConfig, micro_step: int) -> tuple[list[int], int]:
    """Row numbers of a micro-batch, and the real tokens of the whole minibatch it belongs to.

    Every epoch over a rollout has an order of its own. A minibatch's rows are spread over its
    micro-batches by length: the gradient is the same, the padding is not.

    Args:
        experience: the open rollout.
        args: sizes and seed.
        micro_step: forward and backward passes since training began, rollouts before included.
    """
    rollout, at = divmod(micro_step, args.micro_steps_per_rollout)
    mini, micro = divmod(at, args.gradient_accumulation_steps)
    epoch, mini = divmod(mini, args.num_mini_batches)
    generator = torch.Generator().manual_seed((args.seed * 1_000_003 + rollout) * 1_009 + epoch)
    order = torch.randperm(len(experience), generator=generator).tolist()
    chosen = order[mini * args.mini_batch_size : (mini + 1) * args.mini_batch_size]
    completions = [experience.completions[i] for i in chosen]
    prompts = [experience.prompts[i] for i in chosen]
    groups = list(by_length(prompts, completions, args.per_device_train_batch_size))
    return [chosen[i] for i in groups[micro]], sum(map(len, completions))
