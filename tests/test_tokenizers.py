"""Tokenizers: what they encode and decode, where their weights come from, and which files are refused."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import msgpack
import numpy as np
import pytest
import torch
import vqgan_reference as reference
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from sklearn.cluster import MiniBatchKMeans

from eltlab.common.errors import UserError
from eltlab.common.package_info import package_folder
from eltlab.config.encode_rules import check_tokenizer
from eltlab.config.schema import DataConfig, TokenizerConfig
from eltlab.data.images.image_files import load_images
from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.data.tokenizers import kmeans
from eltlab.data.tokenizers.autoencoders import load_autoencoder
from eltlab.data.tokenizers.tokenizer import psnr
from eltlab.data.tokenizers.tokenizer_files import (
    METADATA,
    build_tokenizer,
    load_tokenizer,
    pack_tokenizer,
    save_tokenizer,
    unpack_tokenizer,
)

KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
}
TINY = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "num_encoder_blocks": [1, 1, 1],
    "num_decoder_blocks": [1, 1, 1],
}
VQ = {**KL, "num_vq_embeddings": 24}
# filters, multipliers and blocks of three levels; the first two have the same shape.
VQGAN = (32, [1, 1, 2], 2)


def pictures(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, channels, size // 4, size // 4), generator=generator)
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def saved(kind, at: Path, **config) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(**config)
        for parameter in network.parameters():  # biases too, which start at zero
            parameter.data += 0.1 * torch.randn_like(parameter)
    if kind is VQModel:  # its initial codes are close together compared with the latents
        network.quantize.embedding.weight.data.normal_(0, 0.5)
    network.save_pretrained(at)
    return at


@pytest.fixture(scope="module")
def flax() -> dict:
    """Random parameters of a small VQGAN as flax would hold them."""
    rng, params = np.random.default_rng(0), {"encoder": {}, "decoder": {}}
    x = np.zeros((1, 4, 4, 3), np.float32)
    z = reference.encode(reference.Flax(params["encoder"], rng), x, *VQGAN, 4)
    reference.decode(reference.Flax(params["decoder"], rng), z, *VQGAN)
    for part in params.values():  # so small that the norms' epsilon matters
        part["Conv_0"]["kernel"] *= 0.002
    params["quantizer"] = {"codebook": rng.normal(0, 2, (12, 4)).astype(np.float32)}
    return {"params": params}


@pytest.fixture(scope="module")
def places(tmp_path_factory, flax) -> dict[str, Path]:
    """A folder or file of weights for each kind of tokenizer."""
    root = tmp_path_factory.mktemp("weights")
    vqgan = root / "tokenizer_imagenet256_checkpoint"
    vqgan.write_bytes(reference.to_bytes(flax))
    return {
        "taesd": saved(AutoencoderTiny, root / "taesd", **TINY),
        "sd_vae": saved(AutoencoderKL, root / "sd_vae", **KL, scaling_factor=0.5, shift_factor=0.2),
        "vqmodel": saved(VQModel, root / "vqmodel", **VQ),
        "maskgit_vqgan": vqgan,
    }


TRAIN = ImageSet("pictures/train", pictures(40), torch.zeros(40).long())
NAMES = ["taesd", "sd_vae", "vqmodel", "maskgit_vqgan", "kmeans"]


def built(places: dict[str, Path], name: str, codes: int = 8, base: str = "sd_vae"):
    if name == "kmeans":
        return build_tokenizer(TokenizerConfig(name, str(places[base]), None, base, codes), TRAIN)
    return build_tokenizer(TokenizerConfig(name, str(places[name])), None)


def refused(config: TokenizerConfig, *said: str, train=TRAIN) -> None:
    with pytest.raises(UserError) as caught:
        build_tokenizer(config, train)
    message = str(caught.value)
    assert message.startswith("tokenizer") and "\n" not in message and len(message) < 500
    assert [part for part in said if part not in message] == []


def encoded(tokenizer, images) -> torch.Tensor:
    return tokenizer.encode(images) if tokenizer.kind == "tokens" else tokenizer.encode(images)[0]


# --- all of them ----------------------------------------------------------------------------------


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
def test_attributes_of_a_tokenizer(places, name, kind, factor, channels, codebook):
    tokenizer, images = built(places, name), pictures(3)
    said = tokenizer.kind, tokenizer.factor, tokenizer.channels, tokenizer.codebook
    assert (tokenizer.name, *said) == (name, kind, factor, channels, codebook)
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
def test_the_code_of_an_image_does_not_depend_on_its_batch(places, name):
    tokenizer, images = built(places, name), pictures(5, seed=1)
    together = encoded(tokenizer, images)
    alone = torch.cat([encoded(tokenizer, image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    apart = torch.cat([tokenizer.decode(x[None]) for x in together])
    assert (apart.int() - tokenizer.decode(together).int()).abs().max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_encoded_as_rgb(places, name):
    tokenizer, grey = built(places, name), pictures(2, channels=1)
    assert torch.equal(encoded(tokenizer, grey), encoded(tokenizer, grey.expand(-1, 3, -1, -1).contiguous()))


@pytest.mark.parametrize("name", NAMES)
def test_a_size_that_the_factor_does_not_divide_is_refused(places, name):
    tokenizer = built(places, name)
    with pytest.raises(UserError, match=f"^data.size=17: .* choose a multiple of {tokenizer.factor}"):
        tokenizer.encode(torch.zeros(1, 3, 17, 17, dtype=torch.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_matmul_precision_change_nothing(places, name):
    """And the tokenizer does not change them for its caller."""
    tokenizer, images = built(places, name), pictures(2)
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


def test_encoded_tensors_can_be_trained_on(places):
    latents, logvar = built(places, "sd_vae").encode(pictures(1))
    for x in (latents, logvar):
        weight = torch.ones(4, requires_grad=True)
        (x * weight[:, None, None]).sum().backward()
    logits = torch.zeros(64, 24, requires_grad=True)
    ids = built(places, "vqmodel").encode(pictures(1))[0]
    torch.nn.functional.cross_entropy(logits, ids).backward()


@pytest.mark.parametrize("name", NAMES)
def test_loading_draws_nothing_from_the_global_generator(places, name):
    state = torch.get_rng_state()
    tensors = pack_tokenizer(built(places, name))
    unpack_tokenizer(*tensors)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["taesd", "sd_vae", "vqmodel", "maskgit_vqgan"])
def test_a_tokenizer_is_frozen(places, name):
    tokenizer = built(places, name)
    for network in (tokenizer.network, unpack_tokenizer(*pack_tokenizer(tokenizer)).network):
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_loading_prints_nothing(places, capfd):
    """diffusers warns of keys that its own class wrote into the configuration."""
    built(places, "taesd")
    assert capfd.readouterr() == ("", "")


# --- latents --------------------------------------------------------------------------------------


def test_the_variational_autoencoders_moments_are_scaled(places):
    tokenizer, images = built(places, "sd_vae"), pictures(3)
    original = AutoencoderKL.from_pretrained(places["sd_vae"], low_cpu_mem_usage=False)
    with torch.no_grad():
        gaussian = original.encode(to_float(images)).latent_dist
        shown = to_uint8(original.decode(gaussian.mean).sample)
    mean, logvar = tokenizer.encode(images)
    torch.testing.assert_close(mean, (gaussian.mean - 0.2) * 0.5)
    torch.testing.assert_close(logvar.exp().sqrt(), gaussian.std * 0.5)
    assert (tokenizer.decode(mean).int() - shown.int()).abs().max() <= 1


def test_scales_of_single_channels(tmp_path):
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    saved(AutoencoderKL, tmp_path / "a", **KL, scaling_factor=0.5)
    saved(AutoencoderKL, tmp_path / "b", **KL, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    plain, single = (load_autoencoder("sd_vae", str(tmp_path / ab), None) for ab in "ab")
    (x, _), (y, logvar) = (tokenizer.encode(pictures(2)) for tokenizer in (plain, single))
    for channel in range(4):
        torch.testing.assert_close(y[:, channel], (x[:, channel] / 0.5 - mean[channel]) * 0.5 / std[channel])
    assert logvar.shape == y.shape
    assert (single.decode(y).int() - plain.decode(x).int()).abs().max() <= 1
    assert single.hash != plain.hash


def test_taesd_has_no_variance_and_is_not_rounded_to_bytes(places):
    tokenizer, images = built(places, "taesd"), pictures(2)
    latents, logvar = tokenizer.encode(images)
    assert logvar is None
    original = AutoencoderTiny.from_pretrained(places["taesd"], low_cpu_mem_usage=False)
    with torch.no_grad():
        expected = original.encode(to_float(images)).latents
        shown = to_uint8(original.decode(expected).sample)
    torch.testing.assert_close(latents, expected)
    assert (tokenizer.decode(latents).int() - shown.int()).abs().max() <= 1


def original_taesd(at: Path) -> Path:
    """The two original files of TAESD with random weights. The decoder's layers follow a clamp."""
    network = AutoencoderTiny()
    at.mkdir()
    for part, first in (("encoder", 0), ("decoder", 1)):
        layers = getattr(network, part).layers
        tensors = {
            f"{int(number) + first}.{rest}": value.bfloat16()
            for number, rest, value in (
                (*name.split(".", 1), value) for name, value in layers.state_dict().items()
            )
        }
        save_file(tensors, at / f"taesd_{part}.safetensors")
    return at


def test_original_taesd_files_and_those_of_diffusers_give_the_same_tokenizer(tmp_path):
    own = load_autoencoder("taesd", str(original_taesd(tmp_path / "own")), None)
    assert all(value.dtype == torch.float32 for value in own.tensors().values())
    own.network.save_pretrained(tmp_path / "diffusers")
    again = load_autoencoder("taesd", str(tmp_path / "diffusers"), None)
    assert (own.hash, own.factor) == (again.hash, 8)
    below = load_autoencoder("taesd", str(tmp_path), "own")
    assert below.hash == own.hash


@pytest.mark.parametrize("damage", ["missing", "truncated", "other names", "other shapes"])
def test_incomplete_original_taesd_files_are_refused(tmp_path, damage):
    place = original_taesd(tmp_path / "own")
    decoder = place / "taesd_decoder.safetensors"
    tensors = load_file(decoder)
    if damage == "missing":
        decoder.unlink()
    elif damage == "truncated":
        decoder.write_bytes(decoder.read_bytes()[:-9])
    elif damage == "other names":
        save_file({"layer.weight": torch.zeros(2)}, decoder)
    else:
        save_file(tensors | {"19.weight": torch.zeros(4, 64, 3, 3)}, decoder)
    refused(TokenizerConfig("taesd", str(place)), f"tokenizer.weights={place}", "; give ")


@pytest.fixture(scope="module")
def data() -> Path:
    if "ELTLAB_DATA" not in os.environ:
        pytest.skip("ELTLAB_DATA is not set")
    return Path(os.environ["ELTLAB_DATA"])


@pytest.fixture(scope="module")
def photographs(data) -> torch.Tensor:
    archive = str(data / "imagenette_128_jpeg.zip")
    _, test = load_images(
        DataConfig("images", archive, size=128, channels=3, classes=10, workers=0, in_memory=False)
    )
    return test.subset(16).images


def test_taesd_reconstructs_photographs(data, photographs):
    """With images in a wrong range or a layer in a wrong place, PSNR is at least 9 dB lower."""
    tokenizer = load_autoencoder("taesd", str(data / "taesd"), None)
    latents, _ = tokenizer.encode(photographs)
    assert latents.shape == (16, 4, 16, 16) and 0.6 < latents.std() < 1.2
    assert psnr(photographs, tokenizer.decode(latents)) > 20


# --- tokens ---------------------------------------------------------------------------------------


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


def test_the_maskgit_vqgan_equals_the_original(places, flax):
    tokenizer, images = built(places, "maskgit_vqgan"), pictures(2, size=32)
    params = flax["params"]
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


def test_vqgan_checkpoints_of_all_formats_give_the_same_tokenizer(places, tmp_path):
    original = built(places, "maskgit_vqgan")
    tensors = original.network.state_dict()
    # As the ports name them (huggingface/open-muse, muse/modeling_maskgit_vqgan.py).
    assert {
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.mid.1.norm2.bias",
        "decoder.up.2.upsample_conv.bias",
        "decoder.up.1.block.0.nin_shortcut.weight",
        "quantize.embedding.weight",
    } < set(tensors)
    torch.save(tensors, tmp_path / "port.bin")
    save_file(tensors, tmp_path / "port.safetensors")
    for name in ("port.bin", "port.safetensors"):
        config = TokenizerConfig("maskgit_vqgan", str(tmp_path), name)
        assert build_tokenizer(config, None).hash == original.hash


class Malice:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def _flax(change):
    """A function that makes a checkpoint with a changed tree of parameters."""

    def content(flax: dict) -> bytes:
        params = pickle.loads(pickle.dumps(flax["params"]))
        change(params)
        return reference.to_bytes({"params": params})

    return content


def _torch(thing):
    def content(flax: dict) -> bytes:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        return buffer.getvalue()

    return content


def _array(shape, kind, values) -> bytes:
    array = msgpack.ExtType(1, msgpack.packb((shape, kind, values)))
    return msgpack.packb({"params": {"encoder": {}, "decoder": {}, "quantizer": array}})


STRANGE = {
    "nothing": lambda flax: b"",
    "text": lambda flax: b"<html>404</html>",
    "truncated": lambda flax: reference.to_bytes(flax)[:-9],
    "more behind it": lambda flax: reference.to_bytes(flax) + b"\x00",
    "only optimizer": lambda flax: reference.to_bytes({"opt_state": {}}),
    "a number": lambda flax: b"\x07",
    "a list of numbers": lambda flax: msgpack.packb([1] * 1000),
    "nested without end": lambda flax: b"\x91" * 100_000,
    "an array longer than its bytes": lambda flax: _array((9, 9), "float32", b"1234"),
    "an array of objects": lambda flax: _array((1,), "object", b"12345678"),
    "an array of strange shape": lambda flax: _array("1", "float32", b"1234"),
    "no encoder": _flax(lambda params: params.pop("encoder")),
    "a layer missing": _flax(lambda params: params["decoder"].pop("ResBlock_1")),
    "a layer too many": _flax(lambda params: params["encoder"].update(Conv_2=params["encoder"]["Conv_1"])),
    "learned downsampling": _flax(
        lambda params: params["encoder"].update(Conv_9=params["encoder"]["Conv_0"])
    ),
    "another shape": _flax(lambda params: params["quantizer"].update(codebook=np.ones((12, 5)))),
    "malice": _torch({"a": Malice()}),
    "a list": _torch([torch.zeros(1)]),
    "other tensors": _torch({"a": torch.zeros(1)}),
    "pickle": lambda flax: pickle.dumps(Malice()),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_checkpoint_of_another_network_is_refused(kind, flax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given"
    path.write_bytes(STRANGE[kind](flax))
    refused(
        TokenizerConfig("maskgit_vqgan", str(path)),
        f"tokenizer.weights={path}: ",
        "give tokenizer_imagenet256_checkpoint",
    )
    assert not Path("it-ran").exists()


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "given"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)  # sparse: takes no room
    refused(TokenizerConfig("maskgit_vqgan", str(path)), "larger than 0.5 GiB")
    refused(TokenizerConfig("maskgit_vqgan", str(tmp_path)), "there is no such file")


# --- k-means --------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codebooks"


def test_kmeans_codes_are_means_of_the_latents(places, empty_cache):
    tokenizer, base = built(places, "kmeans"), built(places, "sd_vae")
    latents = base.encode(TRAIN.images)[0]
    vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
    means = MiniBatchKMeans(8, random_state=0, n_init=3, batch_size=4096).fit(vectors.numpy())
    np.testing.assert_allclose(tokenizer.codes, means.cluster_centers_, atol=1e-4)

    ids = tokenizer.encode(TRAIN.images)
    nearest = (vectors[:, None] - tokenizer.codes).square().sum(-1).argmin(-1)
    assert torch.equal(ids, nearest.view(40, 64))
    quantized = tokenizer.codes[ids].transpose(1, 2).reshape(40, 4, 8, 8)
    assert (tokenizer.decode(ids).int() - base.decode(quantized).int()).abs().max() <= 1


def test_kmeans_is_fitted_once_per_base_and_number_of_codes(places, empty_cache, monkeypatch):
    first = built(places, "kmeans")
    others = [built(places, "kmeans", codes=9), built(places, "kmeans", base="taesd")]
    assert len({first.hash, *(other.hash for other in others)}) == 3
    assert len(list(empty_cache.glob("*.npy"))) == 3
    monkeypatch.setattr(kmeans, "fit_means", None)  # would fail if it were called
    assert built(places, "kmeans").hash == first.hash


def test_kmeans_needs_as_many_latents_as_codes(places):
    grey = ImageSet("grey", torch.full((3, 3, 16, 16), 99).byte(), torch.zeros(3).long())
    config = TokenizerConfig("kmeans", str(places["taesd"]), None, "taesd", 500)
    refused(config, "tokenizer.codes=500: the training split has ", "at most", train=grey)
    refused(config, "data= with a training split", train=None)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (("teasd", "a/b"), "tokenizer.name=teasd: did you mean taesd?"),
        (("taesd",), "tokenizer.weights=null: taesd needs weights"),
        (("taesd", "no/where/at/all"), "tokenizer.weights=no/where/at/all: there is no such file"),
        (("taesd", "./nowhere"), "there is no such file"),
        (("taesd", "a/b", None, "sd_vae"), "tokenizer.base=sd_vae applies to kmeans only"),
        (("vqmodel", "a/b", None, None, 8), "tokenizer.codes=8 applies to kmeans only"),
        (("kmeans", "a/b", None, None, 8), "tokenizer.base=null: kmeans needs a continuous"),
        (("kmeans", "a/b", None, "vqmodel", 8), "tokenizer.base=vqmodel: kmeans needs a cont"),
        (("kmeans", "a/b", None, "taesd"), "tokenizer.codes=null: give at least 2"),
        (("kmeans", "a/b", None, "taesd", 1), "tokenizer.codes=1: give at least 2"),
    ],
)
def test_mistakes_in_a_configuration_are_named(config, said):
    refused(TokenizerConfig(*config), said)


def test_weights_of_another_class_are_refused(places, tmp_path):
    for name, other in (("sd_vae", "vqmodel"), ("vqmodel", "taesd"), ("taesd", "sd_vae")):
        given = places[other]
        refused(TokenizerConfig(name, str(given)), f"tokenizer.weights={given}: ", "is of class")
    refused(TokenizerConfig("sd_vae", str(tmp_path)), "not a complete AutoencoderKL", "save_pretrained")


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "truncated", "grey"])
def test_incomplete_weights_are_refused(places, tmp_path, damage):
    """diffusers itself would continue with random weights in place of missing ones."""
    place = tmp_path / "sd_vae"
    shutil.copytree(places["sd_vae"], place)
    file = place / "diffusion_pytorch_model.safetensors"
    tensors, name = load_file(file), "encoder.conv_in.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "unknown":
        tensors["encoder.conv_in.more"] = torch.zeros(1)
    elif damage == "shape":
        tensors[name] = torch.zeros(1, 1, 1, 1)
    save_file(tensors, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-99])
    if damage == "grey":
        shutil.rmtree(place)
        saved(AutoencoderKL, place, **KL, in_channels=1, out_channels=1)
    refused(TokenizerConfig("sd_vae", str(place)), "not a complete AutoencoderKL", "; give a folder")


@pytest.mark.parametrize("name", ["taesd", "vqmodel", "maskgit_vqgan"])
def test_an_unreachable_hub_gives_a_one_line_error(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(
        TokenizerConfig(name, "eltlab-tests/nothing"),
        "tokenizer.weights=eltlab-tests/nothing: ",
        "the download from the Hugging Face hub failed",
        "tokenizer.weights=PATH",
    )


def test_every_tokenizer_of_the_configuration_can_be_chosen():
    files = sorted((package_folder("conf") / "tokenizer").glob("*.yaml"))
    assert sorted(file.stem for file in files) == sorted(NAMES)
    for file in files:
        config = OmegaConf.merge(OmegaConf.structured(TokenizerConfig), OmegaConf.load(file))
        check_tokenizer(OmegaConf.to_object(config))
        assert config.name == file.stem


# --- hash and file --------------------------------------------------------------------------------


def test_the_hash_depends_on_what_affects_latents_and_on_nothing_else(places, tmp_path):
    first = built(places, "sd_vae").hash
    changes = {"scale": {"scaling_factor": 0.6}, "shift": {"shift_factor": 0.3}}
    plain = {**KL, "scaling_factor": 0.5, "shift_factor": 0.2}
    hashes = {first}
    for name, change in changes.items():
        place = saved(AutoencoderKL, tmp_path / name, **{**plain, **change})
        hashes.add(load_autoencoder("sd_vae", str(place), None).hash)
    assert len(hashes) == 3
    moved = saved(AutoencoderKL, tmp_path / "moved", **plain, sample_size=512, force_upcast=False)
    assert load_autoencoder("sd_vae", str(moved), None).hash == first


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_is_saved_in_one_file(places, name, tmp_path, monkeypatch):
    tokenizer, images = built(places, name), pictures(3)
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(tokenizer, path)
    # Weights, cache and hub are no longer available.
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("eltlab.data.tokenizers.diffusers_models.find_weights", None)
    again = load_tokenizer(path)
    for key in ("name", "kind", "factor", "channels", "codebook", "hash"):
        assert getattr(again, key) == getattr(tokenizer, key)
    x = encoded(tokenizer, images)
    assert torch.equal(encoded(again, images), x)
    assert torch.equal(again.decode(x), tokenizer.decode(x))


def damaged(places, path: Path, change) -> None:
    tensors, settings = pack_tokenizer(built(places, "kmeans"))
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors, settings)
    save_file(tensors, path, {METADATA: json.dumps(settings)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, settings: tensors["codes"].add_(1e-6),
        lambda tensors, settings: tensors["base.encoder.conv_in.bias"].mul_(-1),
        lambda tensors, settings: tensors.pop("codes"),
        lambda tensors, settings: settings["base"]["config"].update(scaling_factor=0.4),
        lambda tensors, settings: settings.update(hash="0" * 12),
        lambda tensors, settings: settings.pop("hash"),
    ],
    ids=["codes", "weights", "missing", "scale", "hash", "no hash"],
)
def test_a_file_whose_hash_does_not_match_is_refused(places, tmp_path, change):
    path = tmp_path / "tokenizer.safetensors"
    damaged(places, path, lambda tensors, settings: None)
    load_tokenizer(path)
    damaged(places, path, change)
    with pytest.raises(UserError, match=f"^{path}: damaged: .*; make it again$"):
        load_tokenizer(path)


def test_a_file_that_is_not_a_tokenizer_is_refused(places, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    with pytest.raises(UserError, match=f"^{path}: no such file; "):
        load_tokenizer(path)
    save_tokenizer(built(places, "taesd"), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"^{path}: truncated"):
        load_tokenizer(path)
    for metadata in (None, {METADATA: "{"}, {METADATA: "[1]"}, {METADATA: "1"}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(UserError, match=f"^{path}: not written by eltlab; "):
            load_tokenizer(path)
