"""Codebooks of latents: those of a VQ network, and those that k-means fits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from sklearn.cluster import MiniBatchKMeans
from support.tokenizers import TRAIN, VQ, built, pictures, refused, saved

from eltlab.config.schema import TokenizerConfig
from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.data.tokenizers import kmeans
from eltlab.data.tokenizers.tokenizer_files import build_tokenizer


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"norm_type": "spatial", "block_out_channels": [32, 32]},  # its norms have 32 groups
        {"lookup_from_codebook": True},
        {"vq_embed_dim": 5},
    ],
    ids=["latent diffusion", "movq", "amused", "another width"],
)
def test_vqmodel_gives_the_ids_of_diffusers(tmp_path, config):
    place = saved(VQModel, tmp_path / "vq", **{**VQ, **config})
    tokenizer = build_tokenizer(TokenizerConfig("vqmodel", str(place)), None)
    original = VQModel.from_pretrained(place, low_cpu_mem_usage=False)
    images = pictures(3)
    # amused's pipeline gives its network images in [0, 1], the others theirs in [−1, 1].
    amused = "lookup_from_codebook" in config
    x = images.float() / 255 if amused else to_float(images)
    with torch.no_grad():
        latents = original.encode(x).latents
        quantized, _, (_, _, ids) = original.quantize(latents)
        y = original(x).sample
    found = tokenizer.encode(images)
    assert torch.equal(found.flatten(), ids.flatten()) and len(found.unique()) > 5
    shape = (3, 8, 8, latents.shape[1])
    entries = original.quantize.get_codebook_entry(found.flatten(), shape)
    torch.testing.assert_close(entries, quantized)
    expected = to_uint8(y * 2 - 1 if amused else y)
    assert (tokenizer.decode(found).int() - expected.int()).abs().max() <= 1


# --- k-means --------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codebooks"


def test_kmeans_codes_are_means_of_the_latents(weight_places, empty_cache):
    tokenizer, base = built(weight_places, "kmeans"), built(weight_places, "sd_vae")
    latents = base.encode(TRAIN.images)[0]
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    means = MiniBatchKMeans(8, random_state=0, n_init=3, batch_size=4096).fit(vectors.numpy())
    np.testing.assert_allclose(tokenizer.codes, means.cluster_centers_, atol=1e-4)

    ids = tokenizer.encode(TRAIN.images)
    nearest = (vectors[:, None] - tokenizer.codes).square().sum(-1).argmin(-1)
    assert torch.equal(ids, nearest.view(40, 64))
    quantized = tokenizer.codes[ids].transpose(1, 2).reshape(40, 4, 8, 8)
    assert (tokenizer.decode(ids).int() - base.decode(quantized).int()).abs().max() <= 1


def test_kmeans_is_fitted_once_per_base_and_number_of_codes(weight_places, empty_cache, monkeypatch):
    first = built(weight_places, "kmeans")
    others = [built(weight_places, "kmeans", codes=9), built(weight_places, "kmeans", base="taesd")]
    assert len({first.hash, *(other.hash for other in others)}) == 3
    assert len(list(empty_cache.glob("*.npy"))) == 3
    monkeypatch.setattr(kmeans, "fit_means", None)  # would fail if it were called
    assert built(weight_places, "kmeans").hash == first.hash


def test_kmeans_needs_as_many_latents_as_codes(weight_places):
    grey = ImageSet("grey", torch.full((3, 3, 16, 16), 99).byte(), torch.zeros(3).long())
    config = TokenizerConfig("kmeans", str(weight_places["taesd"]), None, "taesd", 500)
    refused(config, "tokenizer.codes=500: the training split has ", "at most", train=grey)
    refused(config, "data= with a training split", train=None)
