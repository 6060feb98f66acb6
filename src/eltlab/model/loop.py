"""The one place where loops happen."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from eltlab.model.layers import Block


class LoopedStack(nn.Module):
    """N unique blocks g = f_N ∘ … ∘ f_1, applied L times with the same weights: F_(N,L) = g^L.

    The state after ℓ loops does not depend on how many follow, so one pass of max(exits) loops
    serves every exit (PAPER, Architecture).
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]

    def forward(
        self, x_BTD: Tensor, c_BC: Tensor | None, exits: Sequence[int], track: bool = False
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """The states [B, T, D] after the loops named in exits (each at least 1).

        With track, also the relative update of every loop that ran, [max(exits)]:
        mean over the batch of ‖h_ℓ − h_(ℓ−1)‖ / ‖h_(ℓ−1)‖ (PAPER, Results: updates of late loops shrink).
        """
        if not exits or min(exits) < 1:
            raise ValueError(f"exits {tuple(exits)}: name at least one loop count, each at least 1")
        # Time and class do not change over the loops: their modulation is computed once a pass.
        conditions = [block.condition(c_BC) for block in self.blocks]
        states: dict[int, Tensor] = {}
        updates: list[Tensor] = []
        for loop in range(1, max(exits) + 1):
            before_BTD = x_BTD
            for block, cond in zip(self.blocks, conditions, strict=True):
                x_BTD = block(x_BTD, cond)
            if loop in exits:
                states[loop] = x_BTD
            if track:
                updates.append(relative_update(before_BTD, x_BTD))
        return states, torch.stack(updates) if track else None

    def compile_blocks(self) -> None:
        """Compiles each block in place: the loop count stays outside of the graphs, so their
        number does not grow with it (DESIGN decision 1)."""
        for block in self.blocks:
            block.compile()


@torch.no_grad()
def relative_update(before_BTD: Tensor, after_BTD: Tensor) -> Tensor:
    """Mean over the batch of ‖after − before‖ / ‖before‖, a scalar."""
    before = before_BTD.float().flatten(1)
    moved = (after_BTD.float().flatten(1) - before).norm(dim=1)
    return (moved / before.norm(dim=1).clamp_min(1e-12)).mean()
