"""What every tokenizer does: whole batches, grey images, clips frame by frame, and no gradients."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.encoded_sets import tokenizer_weights
from support.tiny_run import tiny
from support.tokenizers import NAMES, built, encoded, pictures

from eltlab.common.errors import UserError
from eltlab.data.build import build_data
from eltlab.data.tokenizers.autoencoders import load_autoencoder
from eltlab.data.tokenizers.tokenizer import RECONSTRUCTED, PerFrame, psnr, reconstruct
from eltlab.data.tokenizers.tokenizer_files import pack_tokenizer, unpack_tokenizer
from eltlab.evaluation.encode_set import encode
from eltlab.runs.compose_config import compose_encode
from eltlab.runs.load_model import load as load_model
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit


@pytest.mark.parametrize(("frames", "parts"), [(1, [8, 1]), (4, [2, 2, 2, 2, 1]), (16, [1] * 9)])
def test_clips_are_reconstructed_eight_frames_or_one_clip_at_a_time(frames, parts):
    seen = []

    class Watched:
        def encode(self, images):
            seen.append(len(images))
            return images

        def decode(self, images):
            return images

    shape = (9, 3, 2, 2) if frames == 1 else (9, frames, 3, 2, 2)
    images = torch.randint(256, shape, dtype=torch.uint8)
    assert torch.equal(reconstruct(Watched(), images), images)
    assert seen == parts


def test_psnr_by_hand():
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    grey = black.clone()
    grey[0, 0, 0, 0] = 10  # mean squared error 25
    assert psnr(black, grey) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == pytest.approx(0)
    many = torch.randint(256, (2 * RECONSTRUCTED + 3, 1, 2, 2), dtype=torch.uint8)
    error = (many.double() - 100).square().mean().item()
    assert psnr(many, torch.full_like(many, 100)) == pytest.approx(10 * math.log10(255**2 / error))


@pytest.mark.parametrize(
    ("name", "kind", "factor", "channels", "codebook"),
    [
        ("taesd", "latents", 4, 4, None),
        ("sd_vae", "latents", 2, 4, None),
        ("vqmodel", "tokens", 2, 3, 24),
        ("maskgit_vqgan", "tokens", 4, 4, 12),
        ("kmeans", "tokens", 2, 4, 8),
    ],
)
def test_attributes_of_a_tokenizer(weight_places, name, kind, factor, channels, codebook):
    tokenizer, images = built(weight_places, name), pictures(3)
    attributes = tokenizer.kind, tokenizer.factor, tokenizer.channels, tokenizer.codebook
    assert (tokenizer.name, *attributes) == (name, kind, factor, channels, codebook)
    side, x = 16 // factor, encoded(tokenizer, images)
    if kind == "tokens":
        assert x.shape == (3, side**2) and x.dtype == torch.int64 and x.min() >= 0
        assert len(x.unique()) > 1 and x.max() < codebook
    else:
        assert x.shape == (3, channels, side, side) and x.dtype == torch.float32
    decoded = tokenizer.decode(x)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8
    assert decoded.float().std() > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_an_image_does_not_depend_on_its_batch(weight_places, name):
    tokenizer, images = built(weight_places, name), pictures(5, seed=1)
    together = encoded(tokenizer, images)
    alone = torch.cat([encoded(tokenizer, image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    apart = torch.cat([tokenizer.decode(x[None]) for x in together])
    assert (apart.int() - tokenizer.decode(together).int()).abs().max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_encoded_as_rgb(weight_places, name):
    tokenizer, grey = built(weight_places, name), pictures(2, channels=1)
    assert torch.equal(encoded(tokenizer, grey), encoded(tokenizer, grey.expand(-1, 3, -1, -1).contiguous()))


@pytest.mark.parametrize("name", NAMES)
def test_a_size_that_the_factor_does_not_divide_is_refused(weight_places, name):
    tokenizer = built(weight_places, name)
    with pytest.raises(UserError, match=f"^data.size=17: .* choose a multiple of {tokenizer.factor}"):
        tokenizer.encode(torch.zeros(1, 3, 17, 17, dtype=torch.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_matmul_precision_change_nothing(weight_places, name):
    """And the tokenizer does not change them for its caller."""
    tokenizer, images = built(weight_places, name), pictures(2)
    plain = encoded(tokenizer, images)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            inside = encoded(tokenizer, images)
            shown = tokenizer.decode(inside)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(plain, inside) and torch.equal(tokenizer.decode(plain), shown)


def test_encoded_tensors_can_be_trained_on(weight_places):
    latents, logvar = built(weight_places, "sd_vae").encode(pictures(1))
    for x in (latents, logvar):
        weight = torch.ones(4, requires_grad=True)
        (x * weight[:, None, None]).sum().backward()
    logits = torch.zeros(64, 24, requires_grad=True)
    ids = built(weight_places, "vqmodel").encode(pictures(1))[0]
    torch.nn.functional.cross_entropy(logits, ids).backward()


@pytest.mark.parametrize("name", ["taesd", "sd_vae", "vqmodel", "maskgit_vqgan"])
def test_a_tokenizer_is_frozen(weight_places, name):
    tokenizer = built(weight_places, name)
    for network in (tokenizer.network, unpack_tokenizer(*pack_tokenizer(tokenizer)).network):
        assert not network.training and not any(p.requires_grad for p in network.parameters())


# --- clips ----------------------------------------------------------------------------------------


class Clips(NamedTuple):
    keys: tuple[str, ...]  # overrides of encode
    frames: int
    size: int
    evaluation: tuple[str, ...]  # overrides of fit


@pytest.fixture(params=["videos", pytest.param("sprites", marks=pytest.mark.slow)])
def clips(request) -> Clips:
    if request.param == "sprites":
        root, evaluation = (
            request.getfixturevalue("few_sprites"),
            ("metrics.samples=18", "metrics.reference=36"),
        )
        return Clips(("data=sprites", f"data.root={root}"), 8, 64, evaluation)
    root, evaluation = request.getfixturevalue("clip_folder"), ("metrics.samples=4", "metrics.reference=16")
    keys = "data=clips", f"data.root={root}", "data.frames=4", "data.size=16", "data.workers=0"
    return Clips(keys, 4, 16, evaluation)


def encoded_clips(clips: Clips, folder: Path, tokenizer: str, *overrides: str) -> Path:
    weights, out = tokenizer_weights(folder / "weights"), folder / "set"
    keys = f"out={out}", "evaluate=false", "accelerator=cpu", f"tokenizer={tokenizer}"
    encode(compose_encode([*clips.keys, *keys, f"tokenizer.weights={weights / 'taesd'}", *overrides]), out)
    return out


@pytest.mark.integration
def test_clips_are_encoded_frame_by_frame_and_train(clips, tmp_path):
    out = encoded_clips(clips, tmp_path, "taesd")
    keys = f"data=latents data.root={out} data.workers=0 objective=diffusion metrics.extractor=classifier"
    short = f"loops=2 budget.images=32 sampler.steps=3 trainer.grids=1 runs_dir={tmp_path}"
    cut = "data.frame_patch=2", "data.patch=4", "data.codebook=1024"
    config = tiny(*keys.split(), *short.split(), *cut, *clips.evaluation)
    frames, side = clips.frames, clips.size // 2
    assert config.data.shape == (frames, 2, side, side)
    assert config.data.tokens == frames // 2 * (side // 4) ** 2
    data = build_data(config)
    train, _ = data.images(config)
    inputs, _ = next(iter(data.batches(config, 0, torch.device("cpu"))))
    assert inputs.shape == (8, frames, 2, side, side)
    stored = data.train.tensors["mean"][torch.tensor([5])].float()
    tokenizer = load_autoencoder("taesd", str(tmp_path / "weights" / "taesd"), None)
    latents, _ = tokenizer.encode(next(iter(train.read_batches([[5]])))[0])
    torch.testing.assert_close(stored[0], latents, atol=2e-3, rtol=2e-3)
    fit(config)
    sampled = load_model(Run.of(config).folder, "cpu").sample([0, 1], loops=1)
    assert sampled.shape == (2, frames, 3, clips.size, clips.size)


def test_tokens_of_clips_are_ordered_by_frame(clips, tmp_path, monkeypatch):
    out = encoded_clips(clips, tmp_path, "kmeans", "tokenizer.base=taesd", "tokenizer.codes=8")
    keys = f"data=tokens data.root={out} data.workers=0 data.codebook=0 metrics.extractor=classifier"
    config = tiny(*keys.split(), f"runs_dir={tmp_path}")
    frames, size = clips.frames, clips.size
    assert (config.data.frames, config.data.frame_patch) == (frames, 1)
    assert config.data.tokens == frames * (size // 2) ** 2
    data = build_data(config)
    assert isinstance(data.tokenizer, PerFrame)
    ids = data.train.tensors["ids"][torch.tensor([7])].long()
    clip = data.tokenizer.decode(ids)
    assert clip.shape == (1, frames, 3, size, size)
    one = data.tokenizer.inner.decode(ids.view(frames, -1)[3:4])
    assert torch.equal(clip[0, 3], one[0])
    seen, inner = [], data.tokenizer.inner.encode
    monkeypatch.setattr(data.tokenizer.inner, "encode", lambda part: seen.append(len(part)) or inner(part))
    [pixels] = data.images(config)[0].read_batches([[7]])
    assert torch.equal(data.tokenizer.encode(pixels), ids)
    assert seen == [2] * (frames // 2)  # frames are encoded two at a time, which suits a CPU's caches
