"""FSDP2 through Lightning: each device holds a shard of weights, gradients, moments and average."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from eltlab.common import ranks


class Sharded(ModelParallelStrategy):
    """All devices share the data, none the tensors. Its checkpoints are those of one device."""

    def __init__(self) -> None:
        super().__init__(ranks.world_size(), 1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(optimizer.state_dict())


def shard(backbone: nn.Module, average: nn.Module, mesh: DeviceMesh, half: bool) -> None:
    """Shards both networks in place, each as one group.

    A looped network needs the same weights at every loop: they are gathered once a step, and so are
    their gradients reduced. half: the live weights travel and compute in bf16; gradients are reduced
    in float32.
    """
    policy = MixedPrecisionPolicy()
    if half:  # autocast, and not this, decides what the inputs are: the residual stream is float32
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    fully_shard(backbone, mesh=mesh, mp_policy=policy)
    # Its weights are averaged between its passes, so they must be shards again after each.
    fully_shard(average, mesh=mesh, reshard_after_forward=True)


def whole(state: Any) -> Any:
    """A state with every sharded tensor gathered, on the CPU. All processes must call this; only the
    first is sure to keep what it gathers."""

    def gather(value: Tensor) -> Tensor:
        if not isinstance(value, DTensor):
            return value.cpu()
        full = value.full_tensor()
        return full.cpu() if ranks.is_main_process() else full.new_empty(0)

    return mapped(state, gather)


def like_parameters(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, cut into shards wherever its parameters are."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    cut = {}
    for name, parameter in zip(names, parameters, strict=True):
        values = state["state"].get(name)
        if values is not None:
            cut[name] = {key: like(value, parameter) for key, value in values.items()}
    return {**state, "state": cut}


def like(value: Any, parameter: Tensor) -> Any:
    """A moment of a parameter, sharded as it is; counters stay."""
    if not isinstance(parameter, DTensor) or value.dim() == 0:
        return value
    here = value.to(parameter.device)
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(here, mesh, placements, src_data_rank=None)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Dicts and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [mapped(value, change) for value in tree]
    return tree
