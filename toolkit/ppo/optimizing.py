"""Groups of an optimizer: the value may learn at a rate of its own."""

from torch import nn
from torch.optim import Optimizer

from toolkit.models.roles import VALUE, belongs_to


def value_groups(optimizer: Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Move the value's tensors into groups of their own, with another learning rate.

    Adam divides a gradient by its size, so a weight of the value's loss (`vf_coef`) hardly changes how
    fast the value learns; this does. Whatever else a group says stays.

    Args:
        optimizer: new, over the model's trainable tensors.
        model: with the roles.
        learning_rate: the peak; the schedule scales it as it does the policy's.
    """
    value = {id(p) for name, p in model.named_parameters() if belongs_to(name, VALUE)}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in value]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in value]
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
