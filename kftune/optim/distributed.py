"""Curvature over several processes of torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def process_group_of(model: nn.Module) -> dist.ProcessGroup | None:
    """The processes among which the model's gradients are averaged; None if there is one or none."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) and dist.get_world_size(module.process_group) > 1:
            return module.process_group
    return None


def rank_of(group: dist.ProcessGroup | None) -> int:
    """This process' place in the group; 0 without one."""
    return 0 if group is None else dist.get_rank(group)


def mean_over_processes(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replace each tensor by its mean over all processes, in one message.

    Every process must give tensors of the same shapes in the same order.
    """
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
