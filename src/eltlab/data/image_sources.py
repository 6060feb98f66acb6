"""Loads the images of a configuration: its training data, or the source of its encoded set."""

from dataclasses import replace

from eltlab.common.errors import UserError
from eltlab.config.schema import Config, DataConfig
from eltlab.data.clips.sprites import CLASSES, load_sprites
from eltlab.data.encoded.manifest import SPLITS, open_set
from eltlab.data.fill_from_files import listed_classes
from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_files import CONTENT, Images, load_images
from eltlab.data.images.torchvision_sets import load_cifar10, load_fashion_mnist

Splits = tuple[Images, Images]


def load_splits(data: DataConfig) -> Splits:
    """(train, test) of images or clips. Raises UserError if files are missing or broken."""
    if data.name == "digits":
        return load_digits()
    if data.name == "clips":
        # Imported late: PyAV includes FFmpeg, which takes long to load.
        from eltlab.data.clips.clip_files import load_clips

        return load_clips(data)
    by_root = {"fashion_mnist": load_fashion_mnist, "cifar10": load_cifar10, "sprites": load_sprites}
    return by_root[data.name](data.root) if data.name in by_root else load_images(data)


def class_names(data: DataConfig) -> list[str]:
    """The names of the classes in the order of their labels."""
    if data.name == "sprites":
        return CLASSES
    return listed_classes(data) or [str(label) for label in range(data.classes)]


def pixel_data(config: Config) -> DataConfig:
    """The images or clips of a configuration: its data, or the source of its encoded set, to be streamed."""
    if config.data.kind == "pixels":
        return config.data
    source = open_set(config.data).encoding.source
    same = ("name", "size", "channels", "frames", "stride", "split")
    return replace(
        config.data,
        **{key: getattr(source, key) for key in same},
        root=config.metrics.images or source.root,
        kind="pixels",
        factor=1,
        in_memory=False,
    )


def same_data(recorded: str, found: str) -> bool:
    """Whether an origin is the recorded one. An earlier version recorded names and sizes of files,
    which say nothing about their content: its origin is accepted."""
    return found == recorded or (found.startswith(CONTENT) and not recorded.startswith(CONTENT))


def load_source_splits(config: Config) -> Splits:
    """(train, test) from which an encoded set was made and with which samples are compared. Raises UserError
    if they are missing or have changed."""
    source, data = open_set(config.data).encoding.source, pixel_data(config)
    try:
        splits = load_splits(data)
    except UserError as error:
        raise UserError(
            f"the images that data.root={config.data.root} was encoded from: {error}; give their place as "
            "metrics.images="
        ) from error
    for name, images in zip(SPLITS, splits, strict=True):
        if not same_data(source.hashes[name], images.origin):
            raise UserError(
                f"{data.root}: not the {name} images that data.root={config.data.root} was encoded from "
                "(their hash differs); give the place of those as metrics.images="
            )
    return splits
