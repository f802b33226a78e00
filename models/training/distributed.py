"""Several processes that train one model (`torchrun`): each encodes its share of the batch, every one sees the whole loss."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from edgeclip.errors import TrainingError


@dataclass(frozen=True)
class Shard:
    """Which share of each batch is this process's."""

    rank: int = 0
    world: int = 1


def pick_device(name: str) -> torch.device:
    """`auto` is this process's CUDA device where there is one, else the CPU.

    Raises:
        TrainingError: no such device here.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            f"device: {name} was asked for, but this PyTorch sees no CUDA device. Set device=cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}.")
    return torch.device("cuda", local) if name == "cuda" else device


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[Shard]:
    """Join the processes that `torchrun` started, and leave them at the end; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Shard()
        return
    ours = not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Shard(dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()


def gather(tensor: Tensor, shard: Shard) -> Tensor:
    """(n, ...) of every process -> (world * n, ...), in the order of their ranks; no gradient flows through."""
    if shard.world == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(shard.world)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def sum_gradients(model: nn.Module, shard: Shard) -> None:
    """Add up each parameter's gradient over the processes."""
    if shard.world == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, whole in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(whole.view_as(gradient))


def any_of(flag: bool, shard: Shard, device: torch.device) -> bool:
    """Whether any process says so: they must stop at the same step."""
    if shard.world == 1:
        return flag
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes)
    return bool(votes.item())


def wait(shard: Shard) -> None:
    """Until every process is here."""
    if shard.world > 1:
        dist.barrier()
