"""FSDP2 through Lightning: each rank holds a shard of weights, gradients, moments and average."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from eltlab.common import ranks


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints equal those of a single device."""

    def __init__(self) -> None:
        super().__init__(ranks.world_size(), 1, save_distributed_checkpoint=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return gather_state(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return gather_state(optimizer.state_dict())


def shard_networks(backbone: nn.Module, averages: Iterable[nn.Module], mesh: DeviceMesh, bf16: bool) -> None:
    """Shards the network and its averages in place, each as one group.

    A looped network reuses its weights in every loop, and as one group they are gathered once per step.
    bf16: weights are gathered and used in bf16; gradients are reduced in float32.
    """
    policy = MixedPrecisionPolicy()
    if bf16:
        # Inputs are not cast: the residual stream stays float32, and autocast picks each op's precision.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    fully_shard(backbone, mesh=mesh, mp_policy=policy)
    for average in averages:
        # ema_update changes the average between its passes, so each pass must end with shards again.
        fully_shard(average, mesh=mesh, reshard_after_forward=True)


def gather_state(state: Any) -> Any:
    """The state on the CPU with every sharded tensor gathered on the main process. All ranks must call this.
    The other ranks get empty tensors in place of gathered ones."""

    def gather(value: Tensor) -> Tensor:
        if not isinstance(value, DTensor):
            return value.cpu()
        full = value.full_tensor()
        return full.cpu() if ranks.is_main_process() else full.new_empty(0)

    return tree_map_only(Tensor, gather, state)


def shard_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A gathered optimizer state, with each moment sharded as its parameter is in this optimizer."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        name: {key: shard_like(value, parameter) for key, value in state["state"][name].items()}
        for name, parameter in zip(names, parameters, strict=True)
        if name in state["state"]
    }
    return {**state, "state": sharded}


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment, sharded as its parameter is. Step counts (scalars) are not sharded."""
    if not isinstance(parameter, DTensor) or value.dim() == 0:
        return value
    # Each rank has the whole moment, so it takes its shard locally instead of receiving it from rank 0.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
