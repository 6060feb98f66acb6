"""Small backbones of every kind, and inputs for them."""

import pytest
import torch

from eltlab.config.network_shape import Network
from eltlab.model.backbone import PatchBackbone, TokenBackbone, initialise_backbone
from eltlab.model.patches import Patches
from support.networks import perturbed

WIDTH, LAYERS, CLASSES, CODES, TOKENS = 16, 2, 5, 7, 9
# Modulated blocks need a condition vector, which the token backbone does not have (config refuses them).
TOKEN = [("token", "post_norm"), ("token", "pre_norm")]
PATCH = [("patch", block) for block in ("post_norm", "pre_norm", "adaln", "film")]
both_backbones = pytest.mark.parametrize(("kind", "block"), TOKEN + PATCH)


def make(kind: str, block: str, dropout: float = 0.0):
    patches = Patches((3, 6, 6), 2)
    net = Network(
        block=block,
        width=WIDTH,
        heads=2,
        mlp_width=24,
        cond_width=12 if block in ("adaln", "film") else WIDTH,
        dropout=dropout,
        masked=kind == "token",
        final_norm=kind == "token" and block == "pre_norm",
        unique_layers=LAYERS,
        loops=1,
        tokens=TOKENS,
        patch_values=patches.values,
        codes=CODES,
        classes=CLASSES,
    )
    backbone = TokenBackbone(net) if net.masked else PatchBackbone(net, patches)
    initialise_backbone(backbone, torch.Generator().manual_seed(0))
    return perturbed(backbone).eval()


def inputs(kind: str, batch: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    if kind == "token":
        return (torch.randint(CODES + 1, (batch, TOKENS), generator=generator),)
    images = torch.randn(batch, 3, 6, 6, generator=generator)
    return images, torch.rand(batch, generator=generator)


def read(net, kind: str, exits=(3,), labels=(0, 1, 2), **settings):
    return net(*inputs(kind), labels_B=torch.tensor(labels), exits=exits, **settings)
