"""Encoded sets: what encode writes, what training reads, and what each refuses."""

import hashlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from sets import asked, make, photographs, tokenizer_weights

import eltlab
from eltlab import encode, export
from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.seeds import BatchSlice
from eltlab.config.identity import identity
from eltlab.data.build import build_data
from eltlab.data.encoded import shard_files, shard_writing
from eltlab.data.encoded.manifest import TOKENIZER, read_manifest
from eltlab.data.image_sources import load_source_splits
from eltlab.data.sets import image_listing
from eltlab.data.tokenizers import kmeans
from eltlab.data.tokenizers.tokenizer_files import load_tokenizer
from eltlab.evaluation import encode_set
from eltlab.evaluation.prepare_run import prepare_evaluation
from eltlab.runs.compose_config import compose_encode
from eltlab.runs.load_model import load_run
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.training import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes of 12 training and 4 test photographs."""
    return photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return tokenizer_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def latents(images, weights, tmp_path_factory) -> Path:
    """A set of means and log-variances."""
    return make(images, weights, tmp_path_factory.mktemp("latents") / "set").root


@pytest.fixture(scope="module")
def tokens(images, weights, tmp_path_factory) -> Path:
    return make(images, weights, tmp_path_factory.mktemp("tokens") / "set", tokenizer="kmeans").root


@pytest.fixture
def copied(latents, tmp_path) -> Path:
    """A copy of the set that a test may damage."""
    return Path(shutil.copytree(latents, tmp_path / "copy"))


def fails(function, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def on(root: Path, *overrides: str, kind: str = "latents"):
    """A tiny run on an encoded set."""
    objective = "diffusion" if kind == "latents" else "masked"
    data = [f"data={kind}", f"data.root={root}", "data.workers=0", f"objective={objective}"]
    return tiny(*(data), "data.codebook=1024" if kind == "latents" else "data.codebook=0", *overrides)


# --- what encode writes ---------------------------------------------------------------------------


def test_a_set_contains_each_image_as_the_tokenizer_encodes_it(images, latents) -> None:
    manifest = read_manifest(latents)
    splits = dict(zip(("train", "test"), load_source_splits(on(latents)), strict=True))
    tokenizer = load_tokenizer(latents / TOKENIZER)
    for split, files in manifest.shards.items():
        assert [file.images for file in files] == [5] * (len(splits[split]) // 5) + [len(splits[split]) % 5]
        held = [load_file(latents / file.file) for file in files]
        pixels = splits[split].subset(None).images
        for ending, seen in (("", pixels), ("_flipped", pixels.flip(-1))):
            mean, logvar = tokenizer.encode(seen)
            for name, value in (("mean", mean), ("logvar", logvar)):
                found = torch.cat([shard[name + ending] for shard in held])
                assert found.dtype == torch.float16
                torch.testing.assert_close(found.float(), value, atol=2e-3, rtol=2e-3)
        labels = torch.cat([shard["labels"] for shard in held])
        assert labels.tolist() == splits[split].labels.tolist()
    assert manifest.encoding.classes == sorted(path.name for path in (images / "train").iterdir())
    assert manifest.encoding.shape == [2, 8, 8] and manifest.encoding.variance


def test_tokens_are_ids_of_the_fitted_codes(tokens) -> None:
    manifest = read_manifest(tokens)
    tokenizer = load_tokenizer(tokens / TOKENIZER)
    pixels = load_source_splits(on(tokens, kind="tokens"))[1].subset(None).images
    held = [load_file(tokens / file.file) for file in manifest.shards["test"]]
    assert held[0]["ids"].dtype == torch.int16
    assert torch.equal(torch.cat([shard["ids"] for shard in held]).long(), tokenizer.encode(pixels))
    mirrored = torch.cat([shard["ids_flipped"] for shard in held]).long()
    assert torch.equal(mirrored, tokenizer.encode(pixels.flip(-1)))
    assert manifest.encoding.codebook == 12 and manifest.encoding.shape == [64]


def test_a_set_without_flips_cannot_be_mirrored(images, weights, tmp_path) -> None:
    manifest = make(images, weights, tmp_path / "set", "flips=false", tokenizer="taesd")
    assert load_file(tmp_path / "set/train-00000.safetensors").keys() == {"mean", "labels"}
    assert not manifest.encoding.variance
    assert "was encoded with flips=false" in fails(on, tmp_path / "set", "data.flip=true")
    assert build_data(on(tmp_path / "set")).held_out(4)[0].shape == (4, 2, 8, 8)


def test_the_id_depends_on_the_content_and_not_on_the_folder(latents, copied, images) -> None:
    assert read_manifest(copied).id == read_manifest(latents).id
    assert identity(on(copied)) == identity(on(latents))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eltlab.encode", *arguments]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*.safetensors")}


def killed_at_random(kills: int, images: Path, weights: Path, out: Path, again: list[str], seed: int) -> int:
    """Restarts encode until it is done and kills it this many times while it writes shards.

    Returns how often it was killed before it had written all shards."""
    rng, ended_early = random.Random(seed), 0
    for _ in range(kills):
        before = len(list(out.glob("t*-*.safetensors")))
        process = subprocess.Popen(again, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        more = rng.randrange(1, 6)
        while process.poll() is None:
            if len(list(out.glob("t*-*.safetensors"))) >= before + more:
                time.sleep(rng.random() / 100)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        process.wait()
        ended_early += process.returncode == -signal.SIGKILL and not (out / "manifest.json").exists()
    assert subprocess.run(again, capture_output=True).returncode == 0
    return ended_early


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.chaos)], ids=["three", "twenty"])
def test_encode_that_is_killed_and_restarted_writes_the_same_set(kills, weights, tmp_path) -> None:
    images = photographs(tmp_path / "images", 3, 15 * kills, 5 * kills)
    more = ["shard=2", "batch=2"]
    make(images, weights, tmp_path / "whole", *more)
    out = tmp_path / "killed"
    again = command(*asked(images, weights, out, *more))
    assert killed_at_random(kills, images, weights, out, again, kills) >= kills - 1
    assert contents(out) == contents(tmp_path / "whole")
    assert read_manifest(out).id == read_manifest(tmp_path / "whole").id
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left <= {".lock"}


def test_each_process_writes_its_part_of_the_shards(images, weights, latents, tmp_path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    out = tmp_path / "set"
    done = subprocess.run(
        [*torchrun, "-m", "eltlab.encode", *asked(images, weights, out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "encoded 27 images" in done.stderr  # of 48: six of eleven shards
    assert contents(out) == contents(latents)


def test_the_same_command_encodes_nothing_twice(images, weights, latents, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in latents.glob("*.safetensors")}
    make(images, weights, latents)
    assert "encoded" not in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in latents.glob("*.safetensors")}


def test_a_shard_that_is_encoded_again_is_in_the_manifest_with_its_new_hash(
    images, weights, copied, monkeypatch
) -> None:
    path, before = copied / "train-00002.safetensors", read_manifest(copied)
    path.unlink()
    encoded_as(monkeypatch, lambda value: value * 1.25)  # as on another device
    after = make(images, weights, copied)
    assert after.id != before.id
    assert after.shards["train"][2].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert after.shards["test"] == before.shards["test"]
    build_data(on(copied))
    # All other shards must keep their hashes, even if encode was stopped in between.
    path.unlink()
    other = copied / "test-00001.safetensors"
    content = bytearray(other.read_bytes())
    content[-3] ^= 1
    other.write_bytes(content)
    for _ in range(2):
        assert f"{other}: a corrupt shard (its hash differs" in fails(make, images, weights, copied)
        assert "run the same encode command to finish it" in fails(on, copied)
    other.unlink()
    assert make(images, weights, copied).shards["test"][1] != after.shards["test"][1]
    build_data(on(copied))


def encoded_as(monkeypatch, change) -> None:
    real = shard_writing.encode_batch

    def encode_batch(*given):
        return {name: change(value) for name, value in real(*given).items()}

    monkeypatch.setattr(shard_writing, "encode_batch", encode_batch)


def test_a_damaged_manifest_is_written_again(images, weights, copied) -> None:
    before = read_manifest(copied)
    path = copied / "manifest.json"
    path.write_text(path.read_text()[:100])
    assert "encode the images again" in fails(on, copied)
    assert make(images, weights, copied) == before


def test_a_shard_that_another_process_finished_first_stays(latents, tmp_path) -> None:
    path = tmp_path / "train-00000.safetensors"
    held = load_file(latents / path.name)
    shard_files.write_shard(path, held)
    shard_files.write_shard(path, {name: value + 1 for name, value in held.items()})
    assert torch.equal(load_file(path)["mean"], held["mean"])


def test_a_new_set_is_read_once(images, weights, tmp_path, monkeypatch) -> None:
    hashed: list[str] = []
    real = hashlib.file_digest

    def file_digest(file, name):
        hashed.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    manifest = make(images, weights, tmp_path / "set")
    build_data(on(tmp_path / "set"))
    assert sorted(hashed) == sorted(s.file for of in manifest.shards.values() for s in of)


def test_encode_lists_the_images_once(images, weights, tmp_path, monkeypatch) -> None:
    listed: list[Path] = []
    real = image_listing.walk_folder
    monkeypatch.setattr(image_listing, "walk_folder", lambda root: (listed.append(root), real(root))[1])
    encode.main(asked(images, weights, tmp_path / "set"))
    assert listed == [images]
    image_listing.list_images(str(images))
    assert len(listed) == 2  # after encode, the folder is listed again


def test_only_the_main_process_lists_the_images_of_an_encoded_set(latents, tmp_path, monkeypatch) -> None:
    asked_for: list[int] = []
    monkeypatch.setattr("eltlab.data.build.load_source_splits", lambda config: asked_for.append(1))
    monkeypatch.setattr(ranks, "is_main_process", lambda: False)
    monkeypatch.setattr("eltlab.training.train.train", lambda *_: None)
    monkeypatch.setattr(
        "eltlab.evaluation.evaluate.evaluate", lambda prepared: asked_for.append(prepared.splits)
    )
    fit.fit(on(latents, "metrics.samples=12", f"runs_dir={tmp_path}/runs"))
    assert asked_for == [None]


def test_values_that_cannot_be_trained_on_make_no_manifest(images, weights, tmp_path, monkeypatch) -> None:
    encoded_as(monkeypatch, lambda value: value * torch.inf)
    assert "is not finite everywhere" in fails(make, images, weights, tmp_path / "set")
    assert not (tmp_path / "set/manifest.json").exists()


def test_a_deleted_shard_is_encoded_again(images, weights, copied) -> None:
    path = copied / "train-00002.safetensors"
    content = path.read_bytes()
    path.unlink()
    assert f"{path}: missing" in fails(build_data, on(copied))
    make(images, weights, copied)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["data.size=8"], "shape, source"),
        (["flips=false"], "flips"),
        (["shard=6"], "shard"),
    ],
)
def test_a_different_encoding_does_not_continue_in_the_folder(
    changed, named, images, weights, latents
) -> None:
    assert f"contains a different encoding ({named} differ)" in fails(
        make, images, weights, latents, *changed
    )


def test_a_missing_or_damaged_tokenizer_is_written_again(images, weights, copied) -> None:
    path = copied / TOKENIZER
    content = path.read_bytes()
    for spoil in (path.unlink, lambda: path.write_bytes(content[:-9])):
        spoil()
        make(images, weights, copied)
        assert path.read_bytes() == content


def test_a_set_with_fitted_codes_is_resumed_without_the_cache(
    images, weights, tokens, tmp_path, monkeypatch
) -> None:
    out = Path(shutil.copytree(tokens, tmp_path / "set"))
    (out / "test-00000.safetensors").unlink()
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    real = kmeans.fit_means  # codes fitted on another processor may differ
    monkeypatch.setattr(kmeans, "fit_means", lambda *given: real(*given) + 1e-3)
    make(images, weights, out, tokenizer="kmeans")
    assert contents(out) == contents(tokens)
    eleven = compose_encode(asked(images, weights, out, "tokenizer.codes=11", tokenizer="kmeans"))
    message = fails(encode_set.encode, eleven, out)
    assert "contains a different encoding (codebook, tokenizer differ)" in message


def test_a_different_tokenizer_does_not_continue_in_the_folder(images, weights, latents) -> None:
    taesd = asked(images, weights, latents, tokenizer="taesd")
    config = compose_encode(taesd)
    message = fails(encode_set.encode, config, latents)
    assert "contains a different encoding (variance, tokenizer differ)" in message


def test_different_images_do_not_continue_in_the_folder(images, weights, latents, tmp_path) -> None:
    fewer = Path(shutil.copytree(images, tmp_path / "fewer"))
    next((fewer / "val").rglob("*.jpeg")).unlink()
    assert "(counts, source differ)" in fails(make, fewer, weights, latents)


def test_a_folder_with_other_files_is_refused(images, weights, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert "contains files that are not an encoded set" in fails(make, images, weights, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", ".lock"}


def test_a_folder_with_only_the_first_file_is_resumed(images, weights, latents, tmp_path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    shutil.copy(latents / TOKENIZER, out)
    (out / ".encoding.json.host.1.tmp").write_text("{")
    make(images, weights, out)
    assert contents(out) == contents(latents)


def test_a_full_disk_leaves_no_partial_shard(images, weights, tmp_path) -> None:
    out = tmp_path / "set"

    def small_disk() -> None:
        # The tokenizer's file fits, a shard of 36 images does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    again = asked(images, weights, out, "shard=64", "data.size=64")
    done = subprocess.run(command(*again), capture_output=True, text=True, preexec_fn=small_disk)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "train-00000.safetensors: not written (File too large); free disk space" in done.stderr
    assert {path.name for path in out.iterdir()} == {".lock", "encoding.json", TOKENIZER}
    assert subprocess.run(command(*again), capture_output=True).returncode == 0
    assert read_manifest(out).shards["train"][0].images == 36


def test_odd_modes_and_sizes_are_encoded_and_unreadable_images_named(weights, tmp_path) -> None:
    rng = np.random.default_rng(0)
    odd = {
        "grey.png": Image.fromarray(rng.integers(0, 255, (9, 40), np.uint8)),
        "deep.png": Image.fromarray(rng.integers(0, 60000, (30, 30)).astype(np.uint16)),
        "palette.gif": Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).quantize(8),
        "alpha.png": Image.fromarray(rng.integers(0, 255, (20, 21, 4), np.uint8)),
        "print.jpg": Image.fromarray(rng.integers(0, 255, (50, 20, 3), np.uint8)).convert("CMYK"),
        "dot.bmp": Image.fromarray(rng.integers(0, 255, (1, 1, 3), np.uint8)),
    }
    for split in ("train", "test"):
        for label in ("a", "b"):
            for name, image in odd.items():
                path = tmp_path / "odd" / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    manifest = make(tmp_path / "odd", weights, tmp_path / "set")
    assert manifest.encoding.counts == {"train": 12, "test": 12}
    broken = tmp_path / "odd/train/b/print.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    message = fails(make, tmp_path / "odd", weights, tmp_path / "again")
    assert message.startswith(f"{broken}: not a readable image")
    assert not (tmp_path / "again/manifest.json").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data=digits", "data.root=null"],
            "tokenizers encode colour images; give data.channels=3",
        ),
        (["data.size=15"], "choose a multiple of 2"),
        (["data=latents"], "data=latents: encoded already"),
        (["tokenizer=vqgan"], "did you mean"),
        (["tokenizer.name=taesd"], "write tokenizer=taesd"),
        (["tokenizer.codes=8"], "tokenizer.codes=8 applies to kmeans only"),
        (["tokenizer.base=taesd"], "tokenizer.base=taesd applies to kmeans only"),
        (["tokenizer.weights=null"], "tokenizer.weights=null: sd_vae needs weights"),
        (["data.channels=1"], "tokenizers encode colour images; give data.channels=3"),
        (["data.flip=true"], "data.flip has no effect in encode"),
        (["data.codebook=8"], "data.codebook has no effect in encode"),
        (["data.encoding=abc"], "data.encoding has no effect in encode"),
        (["metrics.images=/x"], "metrics.images has no effect in encode"),
        (["loops=2"], "unknown key loops=2"),
        (["shard=0"], "shard=0: must be at least 1"),
        (["metrics.samples=3"], "give at least two per class"),
    ],
)
def test_mistakes_are_explained(overrides, said, images, weights, tmp_path) -> None:
    arguments = [*asked(images, weights, tmp_path / "set"), *overrides]
    if overrides[0].startswith("data="):
        arguments = [text for text in arguments if not text.startswith(("data.root", "data.size"))]
        arguments += ["metrics.samples=20"]

    def run() -> None:
        encode_set.encode(compose_encode(arguments), tmp_path / "set")

    assert said in fails(run)
    assert not (tmp_path / "set").exists()


# --- the floor ------------------------------------------------------------------------------------


def test_the_floor_is_measured_once_for_the_set_and_its_runs(images, weights, tmp_path) -> None:
    out = tmp_path / "set"
    make(images, weights, out, "evaluate=true", "metrics.extractor=classifier", tokenizer="kmeans")
    [row] = read_rows(out / "rows.jsonl")
    assert row["kind"] == "tokenizer" and row["samples"] == 12 and row["name"] == "kmeans"
    assert row["fd_classifier"] > 0 and row["psnr"] > 0 and row["tokens"] == 64
    config = on(
        out,
        *("metrics.samples=12", f"runs_dir={tmp_path}/runs", "loops=2", "evaluate_loops=[2]"),
        *("trainer.grids=1", "sampler.steps=2"),
        kind="tokens",
    )
    fit.fit(config)
    floor, measured = read_rows(Run.of(config).rows)
    for key in ("protocol", "fd_classifier", "psnr"):
        assert floor[key] == row[key]
    reference = json.loads(measured["protocol_text"])["reference"]
    assert reference == json.loads(row["protocol_text"])["reference"]
    assert reference.startswith("images/train-36-")


# --- what training reads --------------------------------------------------------------------------


def batches(root: Path, *overrides: str, kind: str = "latents", start: int = 0, batch_slice=None):
    config = on(root, "budget.images=80", *overrides, kind=kind)
    given = (batch_slice,) if batch_slice is not None else ()
    return list(build_data(config).batches(config, start, CPU, *given))


@pytest.mark.parametrize("kind", ["latents", "tokens"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_files_equal_batches_from_memory(kind, workers, request) -> None:
    root = request.getfixturevalue(kind)
    whole = batches(root, "data.flip=true", "data.in_memory=true", kind=kind)
    read = batches(root, "data.flip=true", "data.in_memory=false", f"data.workers={workers}", kind=kind)
    assert len(whole) == len(read) == 10
    for (x, labels), (other, theirs) in zip(whole, read, strict=True):
        assert torch.equal(x, other) and torch.equal(labels, theirs)
        assert x.dtype == (torch.int64 if kind == "tokens" else torch.float32)


def test_labels_match_and_half_of_the_examples_are_mirrored(tokens) -> None:
    config = on(tokens, kind="tokens")
    data = build_data(config)
    straight = data.train.rows(CPU, flip=True, in_memory=True)
    seen = {False: 0, True: 0}
    known = {
        (tuple(row.tolist()), int(label)): ending != ""
        for ending in ("_flipped", "")
        for row, label in zip(straight["ids" + ending], data.train.labels, strict=True)
    }
    for x, labels in batches(tokens, "data.flip=true", kind="tokens"):
        for row, label in zip(x, labels, strict=True):
            seen[known[tuple(row.tolist()), int(label)]] += 1
    assert seen[False] + seen[True] == 80 and 20 < seen[True] < 60
    plain = batches(tokens, kind="tokens")
    assert not any(
        known[tuple(row.tolist()), int(label)]
        for x, labels in plain
        for row, label in zip(x, labels, strict=True)
    )


def test_latents_are_drawn_from_their_posterior_at_each_step(latents) -> None:
    data = build_data(on(latents))
    rows = {name: tensor.load(CPU) for name, tensor in data.train.tensors.items()}
    mean, deviation = rows["mean"].float(), (rows["logvar"].float() / 2).exp()
    draws = [batches(latents, f"seed={seed}") for seed in (0, 0, 1)]
    for (x, _), (again, _) in zip(draws[0], draws[1], strict=True):
        assert torch.equal(x, again)
    assert not torch.equal(draws[0][0][0], draws[2][0][0])
    # 80 draws include each of 36 images more than once: residuals are unit normal, and all differ.
    residuals = []
    for x, _ in draws[0]:
        for image in x:
            best = (((image - mean) / deviation) ** 2).flatten(1).mean(1).argmin()
            residuals.append(((image - mean[best]) / deviation[best]).flatten())
    values = torch.stack(residuals)
    assert abs(values.mean().item()) < 0.05 and abs(values.std().item() - 1) < 0.05
    assert len(values.unique(dim=0)) == 80


def test_a_resumed_run_gets_the_same_batches(latents) -> None:
    later = batches(latents, "data.flip=true", start=6)
    for (x, labels), (again, theirs) in zip(batches(latents, "data.flip=true")[6:], later, strict=True):
        assert torch.equal(x, again) and torch.equal(labels, theirs)


def test_slices_of_a_batch_make_the_whole_batch(latents) -> None:
    whole = batches(latents, "data.flip=true")
    parts = [batches(latents, "data.flip=true", batch_slice=BatchSlice(rank, 2, 0, 2)) for rank in (0, 1)]
    for step, (x, labels) in enumerate(whole):
        slices = [parts[rank][2 * step + n] for n in (0, 1) for rank in (0, 1)]
        assert torch.equal(x, torch.cat([part[0] for part in slices]))
        assert torch.equal(labels, torch.cat([part[1] for part in slices]))


def test_a_set_that_is_too_large_stays_in_its_files(latents, monkeypatch) -> None:
    config = on(latents)
    data = build_data(config)
    assert data.batches(config, 0, CPU).in_memory
    size = data.train.nbytes(flip=False)
    assert size == sum(t.nbytes for t in data.train.rows(CPU, False, True).values())
    monkeypatch.setattr("eltlab.data.encoded.encoded_split.physical_memory", lambda: 4 * size)
    assert data.batches(config, 0, CPU).in_memory
    monkeypatch.setattr(ranks, "local_world_size", lambda: 2)  # each process has a copy in the same memory
    assert not data.batches(config, 0, CPU).in_memory
    monkeypatch.undo()
    monkeypatch.setattr("eltlab.data.encoded.encoded_split.physical_memory", lambda: 4 * size - 4)
    assert not data.batches(config, 0, CPU).in_memory


def test_a_set_is_copied_to_the_device_file_by_file(latents, monkeypatch) -> None:
    mapped = build_data(on(latents)).train.tensors["mean"]
    monkeypatch.setattr(torch, "cat", None)
    assert torch.equal(mapped.load(CPU), mapped[torch.arange(36)])
    assert mapped.load(torch.device("meta")).shape == (36, 2, 8, 8)


# --- a run on it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["latents", "tokens"])
def test_an_exported_run_does_not_need_its_set(kind, request, tmp_path, monkeypatch) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "set"))
    config = on(
        root,
        *("evaluate=false", f"runs_dir={tmp_path}/runs", "loops=2", "trainer.grids=1"),
        "data.flip=true",
        kind=kind,
    )
    fit.fit(config)
    run = Run.of(config)
    labels = [0, 1, 2]
    drawn = eltlab.load(run.folder).sample(labels)
    assert drawn.shape == (3, 3, 16, 16) and drawn.dtype == torch.uint8
    export.main([f"run={run.folder}", f"out={tmp_path}/model.safetensors"])
    moved = root.rename(tmp_path / "elsewhere")
    assert "no complete encoded set" in fails(eltlab.load, run.folder)
    assert torch.equal(eltlab.load(tmp_path / "model.safetensors").sample(labels), drawn)
    config.data.root = str(moved)
    assert torch.equal(load_run(run.folder, config)[0].sample(labels), drawn)
    # Refused: a different set, and the right set with a different tokenizer.
    other = request.getfixturevalue({"latents": "tokens", "tokens": "latents"}[kind])
    config.data.root = str(other)
    assert "another encoded set" in fails(load_run, run.folder, config)
    config.data.root = str(moved)
    shutil.copy(other / TOKENIZER, moved / TOKENIZER)
    assert "but the set was encoded with" in fails(load_run, run.folder, config)


def test_samples_are_compared_with_the_images_wherever_they_are(images, weights, tmp_path, latents) -> None:
    here = Path(shutil.copytree(images, tmp_path / "here"))
    root = make(here, weights, tmp_path / "set").root
    there = here.rename(tmp_path / "there")
    config = on(root, "metrics.samples=12", f"runs_dir={tmp_path}/runs", "trainer.grids=0")
    assert f"data.root={here}: does not exist" in fails(fit.fit, config)
    assert not (tmp_path / "runs").exists()
    config = on(root, "metrics.samples=12", f"runs_dir={tmp_path}/runs", f"metrics.images={there}")
    fit.fit(config)
    rows = read_rows(Run.of(config).rows)
    assert {row["kind"] for row in rows} == {"tokenizer", "eval"}
    next((there / "train").rglob("*.jpeg")).write_bytes(b"")
    message = fails(prepare_evaluation, Run.of(config), config, [1], 0)
    assert "not the train images" in message and "metrics.images=" in message


# --- sets that are not what they should be -------------------------------------------------------


def replace_tensors(root: Path, **tensors: torch.Tensor) -> None:
    """Replaces tensors of a shard and updates its hash in the manifest."""
    path = root / "train-00001.safetensors"
    save_file(load_file(path) | tensors, path)
    manifest = read_manifest(root)
    shard = manifest.shards["train"][1]
    manifest.shards["train"][1] = shard._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write()


def test_a_truncated_shard_is_named(copied) -> None:
    path = copied / "train-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: truncated" in fails(build_data, on(copied))


def test_a_shard_with_one_bit_flipped_is_named(copied) -> None:
    build_data(on(copied))  # checked once; must be checked again after a file changes
    path = copied / "test-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert f"{path}: a corrupt shard (its hash differs" in fails(build_data, on(copied))


def test_a_shard_of_another_shape_is_named(copied) -> None:
    replace_tensors(copied, mean=torch.zeros(5, 2, 8, 7, dtype=torch.float16))
    message = fails(build_data, on(copied))
    assert "train-00001.safetensors: a corrupt shard (mean is ((5, 2, 8, 7), torch.float16)" in message


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_named(label, copied) -> None:
    replace_tensors(copied, labels=torch.tensor([0, 1, 2, 0, label], dtype=torch.int32))
    message = fails(build_data, on(copied))
    assert "train-00001.safetensors: a corrupt shard (labels from" in message
    assert "not 0 to 2" in message


def test_ids_out_of_range_and_infinite_latents_are_named(tokens, copied, tmp_path) -> None:
    other = Path(shutil.copytree(tokens, tmp_path / "tokens"))
    ids = torch.zeros(5, 64, dtype=torch.int16)
    ids[2, 2] = 12
    replace_tensors(other, ids_flipped=ids)
    message = fails(build_data, on(other, kind="tokens"))
    assert "ids_flipped from 0 to 12, not 0 to 11" in message
    replace_tensors(copied, mean=torch.full((5, 2, 8, 8), torch.inf, dtype=torch.float16))
    assert "mean is not finite everywhere" in fails(build_data, on(copied))


def test_a_manifest_that_was_changed_is_refused(copied) -> None:
    path = copied / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"factor": 2', '"factor": 4'))
    assert "changed by hand or damaged" in fails(on, copied)
    path.write_text(text[:100])
    assert "not a manifest of this version" in fails(on, copied)
    path.unlink()
    assert "run the same encode command to finish it" in fails(on, copied)
    assert "give a folder that encode wrote" in fails(on, copied.parent)


def test_a_manifest_of_another_tokenizer_is_refused(copied, weights, images, tmp_path) -> None:
    """The manifest's own id is right, but the tokenizer next to it has a different hash."""
    manifest = read_manifest(copied)
    manifest.encoding.tokenizer["hash"] = "0" * 12
    manifest.write()
    assert f"{copied / TOKENIZER}: holds tokenizer" in fails(build_data, on(copied))


def test_a_damaged_tokenizer_is_named(copied) -> None:
    path = copied / TOKENIZER
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path}: truncated" in fails(build_data, on(copied))


def test_verify_reads_every_shard_again(images, weights, copied, monkeypatch, capsys) -> None:
    read: list[str] = []
    real = shard_files.check_shard
    monkeypatch.setattr(
        shard_files,
        "check_shard",
        lambda root, shard, e: (read.append(shard.file), real(root, shard, e)),
    )
    make(images, weights, copied)
    make(images, weights, copied)
    assert len(read) == len(set(read)) == 11  # the second call reads no shard: the set is known
    make(images, weights, copied, "verify=true")
    assert len(read) == 22


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=tokens"], "holds latents; choose data=latents"),
        (["data=imagenette128_latents"], "data.classes=10: the set in data.root="),
        (["objective=masked"], "holds latents, and objective=masked corrupts tokens"),
        (["sampler.clip=true"], "latents, which have no bounds"),
        (["data.classes=4"], "data.classes=4: the set in data.root="),
        (["data.root=null"], "data.root is missing"),
        (["data.frames=4"], "data.frames=4: the set in data.root="),
        (["data.kind=pixels"], "write data=pixels"),
        (["data.encoding=123456789abc"], "another encoded set"),
    ],
)
def test_what_does_not_fit_the_set_is_refused(overrides, said, latents) -> None:
    def run() -> None:
        build_data(tiny(f"data.root={latents}", "data=latents", "objective=diffusion", *overrides))

    assert said in fails(run)


@pytest.mark.parametrize(
    "name", ["imagenet256_latents", "imagenet256_tokens", "imagenette128_latents", "ucf101"]
)
def test_known_sets_are_planned_without_their_files(name) -> None:
    objective = "diffusion" if name.endswith("latents") else "masked"
    config = tiny(f"data={name}", f"objective={objective}", "data.codebook=1024", "metrics.samples=2000")
    assert config.data.root is None
    assert "data.root is missing" in fails(build_data, config)


def test_images_have_no_keys_of_encoded_sets(tokens) -> None:
    assert "metrics.images=/x applies to encoded sets only" in fails(tiny, "metrics.images=/x")
    assert "data.encoding=abc applies to encoded sets only" in fails(tiny, "data.encoding=abc")
    assert "data.factor=2 applies to latents only" in fails(tiny, "data.factor=2")
    assert "data.factor=2 applies to latents only" in fails(
        lambda: on(tokens, "data.factor=2", kind="tokens")
    )


def test_wrong_tokenizer_keys_are_refused() -> None:
    message = fails(compose_encode, ["data=cifar10", "out=x", "tokenizer.codes=8"])
    assert "codes=8" in message and message.endswith("Remove it.")
