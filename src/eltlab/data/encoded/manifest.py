"""The manifest of an encoded set, DIR/manifest.json: its encoding and shards. Does not import torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.common.files import write_atomic
from eltlab.config.schema import DataConfig

NAME = "manifest.json"
ENCODING = "encoding.json"  # written before the shards; the manifest is written last
TOKENIZER = "tokenizer.safetensors"
LOCK = ".lock"
SPLITS = ("train", "test")


class Shard(NamedTuple):
    file: str  # relative to the folder of the set
    images: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The images or clips that were encoded, under the names of data.*."""

    name: str
    size: int
    channels: int
    transform: str  # names how files are decoded to pixels
    hashes: dict[str, str]  # of each split
    root: str | None = None  # path of the images when they were encoded; not part of the identity
    frames: int = 1
    stride: int = 1
    split: int = 1


@dataclass(frozen=True)
class Encoding:
    """Everything that determines the contents of the shards. It is in the folder from the start, so that
    only the same command can resume the set."""

    kind: str  # latents | tokens
    shape: list[int]  # latents [C, H, W], of clips [F, C, H, W]; tokens [T]
    factor: int  # pixels per side of one position
    codebook: int | None  # number of codes, for tokens
    variance: bool  # latents are means with log-variances
    flips: bool
    shard: int  # images per file
    classes: list[str]
    counts: dict[str, int]  # images per split
    tokenizer: dict[str, str]  # name and hash
    source: Source

    def identity(self) -> dict[str, Any]:
        """What identifies the encoding: all keys but the root, and keys of clips only if they are not 1."""
        identity = asdict(self)
        del identity["source"]["root"]
        for key in ("frames", "stride", "split"):
            if identity["source"][key] == 1:
                del identity["source"][key]
        return identity


@dataclass(frozen=True)
class Manifest:
    root: Path
    encoding: Encoding
    shards: dict[str, list[Shard]]  # per split, in the order of its images

    @property
    def id(self) -> str:
        """Identifies the set by its bytes, which may differ if it is encoded again on another machine."""
        return digest(json.dumps([self.encoding.identity(), self.shards], sort_keys=True))

    def write(self) -> None:
        plain = {"id": self.id, "encoding": asdict(self.encoding), "shards": self.shards}
        write_atomic(self.root / NAME, json.dumps(plain, indent=1) + "\n")


def read_manifest(root: str | Path) -> Manifest:
    """The manifest in a folder. Raises UserError if it is missing or was changed."""
    folder = Path(root).expanduser().resolve()
    path = folder / NAME
    if not path.is_file():
        started = (folder / ENCODING).is_file()
        fix = "run the same encode command to finish it" if started else "give a folder that encode wrote"
        raise UserError(f"data.root={folder}: no complete encoded set (no {NAME}); {fix}")
    try:
        plain = json.loads(path.read_text())
        shards = {name: [Shard(*shard) for shard in plain["shards"][name]] for name in SPLITS}
        manifest = Manifest(folder, parse_encoding(plain["encoding"]), shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a manifest of this version; encode the images again") from error
    if manifest.id != plain.get("id"):
        raise UserError(f"{path}: changed by hand or damaged; encode the images again")
    return manifest


def parse_encoding(plain: Mapping[str, Any]) -> Encoding:
    return Encoding(**{**plain, "source": Source(**plain["source"])})


def open_set(data: DataConfig) -> Manifest:
    """The manifest of the set in data.root. Raises UserError if a key of data.* differs from the set."""
    if data.root is None:
        raise UserError(
            f"data.root is missing: data={data.name} needs the folder that python -m eltlab.encode wrote"
        )
    manifest = read_manifest(data.root)
    if data.encoding not in (None, manifest.id):
        raise UserError(
            f"data.root={data.root}: another encoded set ({manifest.id}) than the requested "
            f"{data.encoding}; give the folder of that set"
        )
    if (kind := manifest.encoding.kind) != data.kind:
        raise UserError(f"data.root={data.root}: holds {kind}; choose data={kind}")
    for key, found in decided_keys(manifest.encoding).items():
        wanted = getattr(data, key)
        if wanted not in (0, found):  # 0: the key was not given
            raise UserError(
                f"data.{key}={wanted}: the set in data.root={data.root} has {found}; remove it, or "
                f"choose data={kind}"
            )
    return manifest


def fill_from_manifest(data: DataConfig) -> None:
    """Sets the keys that the set in data.root decides. Raises UserError if the configuration differs."""
    manifest = open_set(data)
    if data.flip and not manifest.encoding.flips:
        raise UserError(
            f"data.flip=true: the set in data.root={data.root} was encoded with flips=false; remove it, "
            "or encode again with flips=true"
        )
    for key, found in decided_keys(manifest.encoding).items():
        setattr(data, key, found)
    data.encoding = manifest.id


def decided_keys(encoding: Encoding) -> dict[str, int | None]:
    """The keys of data.* that an encoded set decides."""
    source = encoding.source
    keys = {"classes": len(encoding.classes), "frames": source.frames}
    if encoding.kind == "latents":
        channels, size, _ = encoding.shape[-3:]
        return {**keys, "channels": channels, "size": size, "factor": encoding.factor}
    patches = {"patch": encoding.factor, "frame_patch": 1, "codebook": encoding.codebook}
    return {**keys, "channels": source.channels, "size": source.size, **patches}
