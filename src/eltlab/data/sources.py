"""Loads the images of a configuration: those it trains on, or those its encoded set was made from."""

from dataclasses import replace

from eltlab.common.errors import UserError
from eltlab.config.schema import Config, DataConfig
from eltlab.data.clips.sprites import CLASSES, load_sprites
from eltlab.data.encoded.manifest import SPLITS, open_set
from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_files import Images, load_images
from eltlab.data.images.torchvision_sets import load_cifar10, load_fashion_mnist
from eltlab.data.sets.image_listing import list_images
from eltlab.data.sets.video_listing import list_videos

Splits = tuple[Images, Images]


def load_splits(data: DataConfig) -> Splits:
    """(train, test) of a set of images or clips. Raises UserError if files are missing or broken."""
    match data.name:
        case "digits":
            return load_digits()
        case "fashion_mnist":
            return load_fashion_mnist(data.root)
        case "cifar10":
            return load_cifar10(data.root)
        case "clips":
            # PyAV brings FFmpeg, which takes long to load.
            from eltlab.data.clips.clip_files import load_clips

            return load_clips(data)
        case "sprites":
            return load_sprites(data.root)
    return load_images(data)


def class_names(data: DataConfig) -> list[str]:
    """In the order of the labels."""
    match data.name:
        case "images":
            return list_images(data.root).classes
        case "clips":
            return list_videos(data.root, data.split).classes
        case "sprites":
            return CLASSES
    return [str(label) for label in range(data.classes)]


def pixel_data(config: Config) -> DataConfig:
    """The images or clips that a configuration is about: its data, or the source of its encoded set, which
    is then read as it is needed, not into memory."""
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


def load_source_splits(config: Config) -> Splits:
    """(train, test) that an encoded set was made from, which samples are compared with. Raises UserError if
    they are missing or have changed."""
    source, data = open_set(config.data).encoding.source, pixel_data(config)
    try:
        splits = load_splits(data)
    except UserError as error:
        raise UserError(
            f"the images that data.root={config.data.root} was encoded from: {error}; give their place as "
            "metrics.images="
        ) from error
    for name, images in zip(SPLITS, splits, strict=True):
        if images.origin != source.hashes[name]:
            raise UserError(
                f"{data.root}: not the {name} images that data.root={config.data.root} was encoded from "
                "(their hash differs); give the place of those as metrics.images="
            )
    return splits
