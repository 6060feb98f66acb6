"""The images of a configuration: those it trains on, or those that its encoded set was made of."""

from dataclasses import replace

from eltlab.common.errors import UserError
from eltlab.config.schema import Config, DataConfig
from eltlab.data.clips.sprites import CLASSES, load_sprites
from eltlab.data.encoded.manifest import SPLITS, opened
from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_files import Images, load_images
from eltlab.data.images.torchvision_sets import load_cifar10, load_fashion_mnist
from eltlab.data.sets.folders import class_names
from eltlab.data.sets.videofolders import video_classes

Splits = tuple[Images, Images]


def load_splits(data: DataConfig) -> Splits:
    """(train, test) of a set of images or clips. Raises UserError where they are not there or broken."""
    match data.name:
        case "digits":
            return load_digits()
        case "fashion_mnist":
            return load_fashion_mnist(data.root)
        case "cifar10":
            return load_cifar10(data.root)
        case "clips":
            from eltlab.data.clips.clip_files import load_clips

            return load_clips(data)
        case "sprites":
            return load_sprites(data.root)
    return load_images(
        data.root, data.size, data.channels, data.classes, data.workers, data.in_memory
    )


def pixels_of(config: Config) -> DataConfig:
    """The images or clips that a configuration is about: its data, or what its encoded set was made of;
    these are read as they are needed, not into memory."""
    if config.data.kind == "pixels":
        return config.data
    source = opened(config.data).encoding.source
    return replace(
        config.data,
        name=source.name,
        root=config.metrics.images or source.root,
        size=source.size,
        channels=source.channels,
        frames=source.frames,
        stride=source.stride,
        split=source.split,
        kind="pixels",
        factor=1,
        in_memory=False,
    )


def source_splits(config: Config) -> Splits:
    """(train, test) that the encoded set of a configuration was made of: what samples are held against.
    Raises UserError where others lie there."""
    source, data = opened(config.data).encoding.source, pixels_of(config)
    try:
        splits = load_splits(data)
    except UserError as error:
        raise UserError(
            f"the images that data.root={config.data.root} was encoded from: {error}; say where they lie "
            "by metrics.images="
        ) from error
    for name, images in zip(SPLITS, splits, strict=True):
        if images.origin != source.hashes[name]:
            raise UserError(
                f"{data.root}: other {name} images than data.root={config.data.root} was encoded "
                "from (their hash differs); say where those lie by metrics.images="
            )
    return splits


def names_of_classes(data: DataConfig) -> list[str]:
    """In the order of the labels."""
    if data.name == "images":
        return class_names(data.root)
    if data.name == "clips":
        return video_classes(data.root, data.split)
    if data.name == "sprites":
        return CLASSES
    return [str(label) for label in range(data.classes)]
