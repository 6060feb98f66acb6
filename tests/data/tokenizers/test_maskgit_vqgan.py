"""The VQGAN of MaskGIT equals its authors' network."""

import numpy as np
import support.vqgan_reference as reference
import torch
from support.tokenizers import VQGAN, built, pictures


def test_the_maskgit_vqgan_equals_the_original(weight_places, flax_weights):
    tokenizer, images = built(weight_places, "maskgit_vqgan"), pictures(2, size=32)
    params = flax_weights["params"]
    x = images.permute(0, 2, 3, 1).numpy() / np.float32(255)
    z = reference.encode(reference.Flax(params["encoder"]), x, *VQGAN, 4)
    found = tokenizer.network.encoder(images / 255).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, z, atol=1e-3 * np.abs(z).max())

    codes = params["quantizer"]["codebook"]
    ids = np.square(z[..., None, :] - codes).sum(-1).argmin(-1)
    assert np.array_equal(tokenizer.encode(images), ids.reshape(2, -1)) and len(np.unique(ids)) > 3

    y = reference.decode(reference.Flax(params["decoder"]), codes[ids], *VQGAN)
    shown = tokenizer.network.decoder(tokenizer.codes[torch.from_numpy(ids)].permute(0, 3, 1, 2))
    np.testing.assert_allclose(shown.permute(0, 2, 3, 1), y, atol=1e-3 * np.abs(y).max())
    pixels = (y.clip(0, 1) * 255).round().transpose(0, 3, 1, 2)
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert np.abs(decoded.numpy() - pixels).max() <= 1
