"""The one place where loops happen."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eltlab.config.network_shape import Network
from eltlab.model.layers import BLOCKS, Block, ZeroLinear


class PassOutput(NamedTuple):
    """The result of one pass through a stack or a backbone."""

    exits: dict[int, Tensor]  # the state [B, T, D], or the backbone's prediction, at each exit
    updates: Tensor | None  # relative update of every loop that ran, [loops], if tracked
    loops: int  # that ran: max(exits), or fewer if the pass halted


class LoopedStack(nn.Module):
    """N unique blocks g = f_N ∘ … ∘ f_1, applied L times with the same weights: F_(N,L) = g^L.

    The state after ℓ loops does not depend on how many follow, so one pass of max(exits) loops
    serves every exit.

    Args:
        blocks: the N unique blocks.
        prelude, coda: blocks that run once before the first loop, and on the state of each exit.
        loop_embedding: [loops, D]. Row ℓ is added to every token at the start of loop ℓ (R-MDM, arXiv
            2606.18022). Loops beyond the last row use the last row.
        injection: maps the input of the first loop to what is added at the start of every later loop
            (Huginn, arXiv 2502.05171).
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        prelude: Iterable[Block] = (),
        coda: Iterable[Block] = (),
        loop_embedding: nn.Parameter | None = None,
        injection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Initial weights are drawn in this order.
        self.prelude: Sequence[Block] = nn.ModuleList(prelude)  # type: ignore[assignment]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.coda: Sequence[Block] = nn.ModuleList(coda)  # type: ignore[assignment]
        self.loop_embedding = loop_embedding
        self.injection = injection
        # If set, only each block's input is kept, and the backward runs the block again.
        self.recompute = False

    def forward(
        self,
        x_BTD: Tensor,
        c_BC: Tensor | None,
        exits: Sequence[int],
        track: bool = False,
        halt: float | None = None,
    ) -> PassOutput:
        """The states [B, T, D] after the loop counts in exits (each at least 1), through the coda.

        track: also return the relative update of every loop that ran, the mean over the batch of
            ‖h_ℓ − h_(ℓ−1)‖ / ‖h_(ℓ−1)‖ (the paper: updates of late loops shrink).
        halt: end the pass after the first loop whose relative update is below this, and return that
            state for the exit. Takes a single exit, and synchronises host and device after every loop.

        Raises ValueError if a loop count is below 1, or if a pass that may halt has several exits.
        """
        if not exits or min(exits) < 1:
            raise ValueError(f"exits {tuple(exits)}: name at least one loop count, each at least 1")
        if halt is not None and len(exits) > 1:
            raise ValueError(f"exits {tuple(exits)}: a pass that may halt has one exit")
        # Time and class do not change over the loops, so each modulation is computed once per pass.
        prelude, looped, coda = (
            [(block, block.condition(c_BC)) for block in blocks]
            for blocks in (self.prelude, self.blocks, self.coda)
        )
        x_BTD = self.run(prelude, x_BTD)
        input_BTD, injected_BTD = x_BTD, None
        reached: dict[int, Tensor] = {}
        updates: list[Tensor] = []
        last = max(exits)
        for loop in range(1, last + 1):
            before_BTD = x_BTD
            if loop == 2 and self.injection is not None:  # loop 1 starts from the input itself
                injected_BTD = self.injection(input_BTD)
            # No name here holds the sum, so that it is freed after the first block.
            x_BTD = self.run(looped, self.start_loop(loop, x_BTD, injected_BTD))
            if track or halt is not None:
                updates.append(relative_update(before_BTD, x_BTD))
            if loop in exits:
                reached[loop] = x_BTD
            if halt is not None and updates[-1].item() < halt:
                reached[last] = x_BTD
                break
        states = {exit: self.run(coda, state_BTD) for exit, state_BTD in reached.items()}
        return PassOutput(states, torch.stack(updates) if track else None, loop)

    def start_loop(self, loop: int, x_BTD: Tensor, injected_BTD: Tensor | None) -> Tensor:
        """The state with the loop embedding and the injection added."""
        if self.loop_embedding is not None:
            x_BTD = x_BTD + self.loop_embedding[min(loop, len(self.loop_embedding)) - 1]
        if injected_BTD is not None:
            x_BTD = x_BTD + injected_BTD
        return x_BTD

    def run(self, blocks: list[tuple[Block, Tensor | None]], x_BTD: Tensor) -> Tensor:
        """The state after these blocks, each with its condition."""
        for block, cond in blocks:
            # Reentrant checkpoints fail with shared weights: DDP sees a parameter marked ready twice.
            if self.recompute:
                x_BTD = checkpoint(block, x_BTD, cond, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, cond)
        return x_BTD

    def compile_blocks(self) -> None:
        """Compiles each block in place, and not the loop: a Python-int loop count would make
        torch.compile build one graph per value."""
        for block in (*self.prelude, *self.blocks, *self.coda):
            block.compile()


def build_stack(net: Network) -> LoopedStack:
    """The N looped blocks of a network, and the anatomy around them."""
    block, scale, embedding = BLOCKS[net.block], 1.0, None
    if net.residual_scale is not None:
        # λ/(N·√L), arXiv 2606.18524. L is the trained count, whatever a pass runs; prelude and coda keep 1.
        scale = net.residual_scale / (net.unique_layers * math.sqrt(net.loops))
    if net.loop_embedding:
        embedding = nn.Parameter(torch.zeros(net.loops, net.width))
    return LoopedStack(
        [block(net, scale) for _ in range(net.unique_layers)],
        prelude=[block(net) for _ in range(net.prelude)],
        coda=[block(net) for _ in range(net.coda)],
        loop_embedding=embedding,
        injection=ZeroLinear(net.width, net.width) if net.inject_input else None,
    )


@torch.no_grad()
def relative_update(before_BTD: Tensor, after_BTD: Tensor) -> Tensor:
    """Mean over the batch of ‖after − before‖ / ‖before‖, a scalar."""
    before = before_BTD.float().flatten(1)
    moved = (after_BTD.float().flatten(1) - before).norm(dim=1)
    return (moved / before.norm(dim=1).clamp_min(1e-12)).mean()
