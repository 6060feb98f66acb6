"""The one place where loops happen."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eltlab.model.layers import Block


class Looped(NamedTuple):
    """What one pass through the stack gives."""

    states: dict[int, Tensor]  # [B, T, D] at each asked exit
    updates: Tensor | None  # relative update of every loop that ran, [loops]
    loops: int  # that ran


class LoopedStack(nn.Module):
    """N unique blocks g = f_N ∘ … ∘ f_1, applied L times with the same weights: F_(N,L) = g^L.

    The state after ℓ loops does not depend on how many follow, so one pass of max(exits) loops
    serves every exit (PAPER, Architecture).

    Args:
        blocks: the N unique blocks.
        prelude: blocks that run once, before the first loop.
        coda: blocks that run on the state of each exit before it is read.
        loop_embedding: [loops, D], row ℓ added to every token as loop ℓ begins (R-MDM, arXiv
            2606.18022); loops beyond the last row take the last.
        injection: maps the input of the first loop to what every later loop begins by adding
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
        # Keep each block's input alone and run the block again in the backward.
        self.recompute = False

    def forward(
        self,
        x_BTD: Tensor,
        c_BC: Tensor | None,
        exits: Sequence[int],
        track: bool = False,
        halt: float | None = None,
    ) -> Looped:
        """The states [B, T, D] after the loops named in exits (each at least 1), through the coda.

        With track, also the relative update of every loop that ran, [loops]: mean over the batch of
        ‖h_ℓ − h_(ℓ−1)‖ / ‖h_(ℓ−1)‖ (PAPER, Results: updates of late loops shrink).

        With halt, the pass ends after the first loop whose relative update falls below it, and
        gives the state reached in place of the one exit that may then be asked. The host waits for
        the device after every loop to learn that.
        """
        if not exits or min(exits) < 1:
            raise ValueError(f"exits {tuple(exits)}: name at least one loop count, each at least 1")
        if halt is not None and len(exits) > 1:
            raise ValueError(f"exits {tuple(exits)}: a pass that may halt has one exit")
        # Time and class do not change over the loops: their modulation is computed once a pass.
        prelude, looped, coda = (
            conditioned(blocks, c_BC) for blocks in (self.prelude, self.blocks, self.coda)
        )
        x_BTD = self.run(prelude, x_BTD)
        input_BTD, injected_BTD = x_BTD, None
        reached: dict[int, Tensor] = {}
        updates: list[Tensor] = []
        last = max(exits)
        for loop in range(1, last + 1):
            before_BTD = x_BTD
            if loop == 2 and self.injection is not None:
                injected_BTD = self.injection(input_BTD)
            x_BTD = self.run(looped, self.begin(loop, x_BTD, injected_BTD))
            if track or halt is not None:
                updates.append(relative_update(before_BTD, x_BTD))
            if loop in exits:
                reached[loop] = x_BTD
            if halt is not None and updates[-1].item() < halt:
                reached[last] = x_BTD
                break
        states = {exit: self.run(coda, state_BTD) for exit, state_BTD in reached.items()}
        return Looped(states, torch.stack(updates) if track else None, loop)

    def run(self, blocks: "Conditioned", x_BTD: Tensor) -> Tensor:
        """The state after these blocks, each once."""
        for block, cond in blocks:
            # Not reentrant: the other kind breaks where weights are shared (marked ready twice).
            x_BTD = (
                checkpoint(block, x_BTD, cond, use_reentrant=False)
                if self.recompute
                else block(x_BTD, cond)
            )
        return x_BTD

    def begin(self, loop: int, x_BTD: Tensor, injected_BTD: Tensor | None) -> Tensor:
        """The state that the blocks of a loop start from."""
        if self.loop_embedding is not None:
            x_BTD = x_BTD + self.loop_embedding[min(loop, len(self.loop_embedding)) - 1]
        if injected_BTD is not None:
            x_BTD = x_BTD + injected_BTD
        return x_BTD

    def compile_blocks(self) -> None:
        """Compiles each block in place: the loop count stays outside of the graphs, so their
        number does not grow with it (DESIGN decision 1)."""
        for block in (*self.prelude, *self.blocks, *self.coda):
            block.compile()


Conditioned = list[tuple[Block, Tensor | None]]


def conditioned(blocks: Iterable[Block], c_BC: Tensor | None) -> Conditioned:
    """Each block with what it takes as its condition."""
    return [(block, block.condition(c_BC)) for block in blocks]


@torch.no_grad()
def relative_update(before_BTD: Tensor, after_BTD: Tensor) -> Tensor:
    """Mean over the batch of ‖after − before‖ / ‖before‖, a scalar."""
    before = before_BTD.float().flatten(1)
    moved = (after_BTD.float().flatten(1) - before).norm(dim=1)
    return (moved / before.norm(dim=1).clamp_min(1e-12)).mean()
