"""What an encoded set says of itself: DIR/manifest.json. Free of torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.hashing import digest
from eltlab.config.schema import DataConfig

NAME = "manifest.json"
ENCODING = "encoding.json"  # of a set that is begun
TOKENIZER = "tokenizer.safetensors"
LOCK = ".lock"
SPLITS = ("train", "test")


class Shard(NamedTuple):
    file: str  # below the folder of the set
    images: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """The images or clips that were encoded, as data.* of the configuration that encoded them."""

    name: str
    size: int
    channels: int
    transform: str  # from the bytes of a file to pixels
    hashes: dict[str, str]  # of each split
    root: str | None = None  # where they lay; says nothing of what they are
    frames: int = 1
    stride: int = 1
    split: int = 1


@dataclass(frozen=True)
class Encoding:
    """All that decides what the shards hold. A folder under way carries it, so that another command
    does not go on with it."""

    kind: str  # latents | tokens
    shape: list[int]  # of a latent [C, H, W], of a clip's [F, C, H, W]; of tokens [T]
    factor: int  # pixels a side of one position
    codebook: int | None  # of tokens
    variance: bool  # whether a latent is a mean and a log-variance to draw from
    flips: bool
    shard: int  # images of a file
    classes: list[str]
    counts: dict[str, int]  # images of each split
    tokenizer: dict[str, str]  # name and hash
    source: Source

    def facts(self) -> dict[str, Any]:
        """Without the place, which may change, and of images without what only clips have."""
        facts = asdict(self)
        del facts["source"]["root"]
        for key in ("frames", "stride", "split"):
            if facts["source"][key] == 1:
                del facts["source"][key]
        return facts


@dataclass(frozen=True)
class Manifest:
    root: Path
    encoding: Encoding
    shards: dict[str, list[Shard]]  # of each split, in the order of its images

    @property
    def id(self) -> str:
        """Of all that the set is: encoded again elsewhere, its bytes and so its id may differ."""
        return digest(json.dumps([self.encoding.facts(), self.shards], sort_keys=True))

    def write(self) -> None:
        plain = {"id": self.id, "encoding": asdict(self.encoding), "shards": self.shards}
        write_atomic(self.root / NAME, json.dumps(plain, indent=1) + "\n")


def read_manifest(root: str | Path) -> Manifest:
    """Of the set in a folder. Raises UserError where there is none, or one that was changed."""
    folder = Path(root).expanduser().resolve()
    path = folder / NAME
    if not path.is_file():
        begun = (folder / ENCODING).is_file()
        mend = (
            "the same command of encode goes on with it" if begun else "give a folder of encode's"
        )
        raise UserError(f"data.root={folder}: no whole encoded set (no {NAME}); {mend}")
    try:
        plain = json.loads(path.read_text())
        shards = {name: [Shard(*shard) for shard in plain["shards"][name]] for name in SPLITS}
        manifest = Manifest(folder, parse_encoding(plain["encoding"]), shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a manifest of this version; encode the images again"
        ) from error
    if manifest.id != plain.get("id"):
        raise UserError(f"{path}: changed by hand or damaged; encode the images again")
    return manifest


def parse_encoding(plain: Mapping[str, Any]) -> Encoding:
    return Encoding(**{**plain, "source": Source(**plain["source"])})


def fill_from_manifest(data: DataConfig) -> None:
    """Fills in what the set in data.root holds. Raises UserError where the configuration differs."""
    manifest = read_manifest(str(data.root))
    encoding = manifest.encoding
    if encoding.kind != data.kind:
        raise UserError(
            f"data.root={data.root}: holds {encoding.kind}; choose data={encoding.kind}"
        )
    check_numbers(manifest, data)
    for key, found in numbers(encoding).items():
        setattr(data, key, found)
    if data.flip and not encoding.flips:
        raise UserError(
            f"data.flip=true: the set in data.root={data.root} was encoded with flips=false; leave it "
            "out, or encode again with flips=true"
        )
    if data.encoding not in (None, manifest.id):
        raise another(manifest, data)
    data.encoding = manifest.id


def numbers(encoding: Encoding) -> dict[str, int]:
    """The keys of data.* that an encoded set decides."""
    numbers = {"classes": len(encoding.classes), "frames": encoding.source.frames}
    if encoding.kind == "latents":
        channels, size, _ = encoding.shape[-3:]
        return {**numbers, "channels": channels, "size": size, "factor": encoding.factor}
    assert encoding.codebook is not None
    source = encoding.source
    return {
        **numbers,
        "channels": source.channels,
        "size": source.size,
        "patch": encoding.factor,
        "frame_patch": 1,
        "codebook": encoding.codebook,
    }


def opened(data: DataConfig) -> Manifest:
    """The set that a resolved configuration means. Raises UserError where another lies in its place."""
    if data.root is None:
        raise UserError(
            f"data.root is missing: data={data.name} needs the folder that python -m eltlab.encode wrote"
        )
    manifest = read_manifest(data.root)
    if manifest.id != data.encoding:
        raise another(manifest, data)
    check_numbers(manifest, data)  # a configuration that named the set itself was not filled in
    return manifest


def check_numbers(manifest: Manifest, data: DataConfig) -> None:
    """Raises UserError where a configuration says of the set what it is not; 0 says nothing."""
    for key, found in numbers(manifest.encoding).items():
        wanted = getattr(data, key)
        if wanted not in (0, found):
            raise UserError(
                f"data.{key}={wanted}: the set in data.root={data.root} has {found}; leave it out, or "
                f"choose data={data.kind}"
            )


def another(manifest: Manifest, data: DataConfig) -> UserError:
    return UserError(
        f"data.root={data.root}: another encoded set ({manifest.id}) than {data.encoding}, which is asked "
        "for; give the folder of that one"
    )
