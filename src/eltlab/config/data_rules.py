"""Rules of the data and metrics keys that fit and encode share, and values that follow from other keys."""

from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError
from eltlab.common.text import example_unit
from eltlab.config.schema import Config, DataConfig, EncodeConfig, MetricsConfig

# (size, channels, classes) of the sets whose shape is fixed; data=images and data=clips take any.
NATIVE = {"digits": (8, 1, 10), "fashion_mnist": (28, 1, 10), "cifar10": (32, 3, 10), "sprites": (64, 3, 9)}
SPRITES_FRAMES = 8
CLIPS = ("sprites", "clips")  # sets of clips; all other sets hold images
MAX_PER_CLASS = 10_000  # samples per class beyond which a distance no longer changes
INCEPTION_FROM = 32  # pixels per side: below, Inception sees little but its own upsampling


def check_clips(data: DataConfig) -> None:
    """Raises UserError if a key of clips is given for images, or does not fit the set."""
    if data.kind == "pixels" and (data.frames > 1) != (data.name in CLIPS):
        raise UserError(
            f"data.frames={data.frames}: data={data.name} holds "
            + ("clips; give at least 2" if data.name in CLIPS else "images. Remove it.")
        )
    if data.name == "sprites" and data.frames != SPRITES_FRAMES:
        raise UserError(
            f"data.frames={data.frames}: the clips of sprites have {SPRITES_FRAMES} frames. Remove it."
        )
    for key in ("stride", "split"):
        _check_use(data, key, 1, data.name == "clips", "data=clips")


def _check_use(data: DataConfig, key: str, default: Any, used: bool, what: str) -> None:
    """Raises UserError if a key is set that this set does not use.

    It would give the run a new id and change nothing else.
    """
    value = getattr(data, key)
    if value != default and not used:
        raise UserError(
            f"data.{key}={value} applies to {what} only; data={data.name} holds {data.kind}. Remove it."
        )


def choose_extractor(metrics: MetricsConfig, data: DataConfig) -> None:
    """Sets metrics.extractor if it is null. Raises UserError if it does not fit the data."""
    of_clips = data.frames > 1
    network = "i3d" if of_clips else "inception"
    if metrics.extractor is None:
        small = not of_clips and data.pixels < INCEPTION_FROM
        metrics.extractor = "classifier" if small else network
    if metrics.extractor not in ("classifier", network):
        raise UserError(
            f"metrics.extractor={metrics.extractor}: data={data.name} holds "
            f"{'clips' if of_clips else 'images'}; choose one of classifier, {network}"
        )


def check_data(data: DataConfig, metrics: MetricsConfig) -> None:
    """Raises UserError if a key contradicts the set; makes paths absolute."""
    _check_use(data, "encoding", None, data.kind != "pixels", "encoded sets")
    _check_use(data, "factor", 1, data.kind == "latents", "latents")
    native = NATIVE.get(data.name)
    if native is not None and (data.size, data.channels, data.classes) != native:
        size, channels, classes = native
        raise UserError(
            f"data.size={data.size} data.channels={data.channels} data.classes={data.classes}: "
            f"{data.name} is {size}x{size}, {channels} channels, {classes} classes; remove these keys"
            f"{'' if data.name in CLIPS else ', or use data=images, which resizes'}"
        )
    if data.name == "images" and data.root is None:
        raise UserError("data.root is missing: data=images needs a folder or a zip of class folders")
    if data.name == "digits" and data.root is not None:
        raise UserError(f"data.root={data.root}: the digits come with scikit-learn. Remove it.")
    if data.kind == "pixels" and metrics.images is not None:
        raise UserError(
            f"metrics.images={metrics.images} applies to encoded sets only; the images of "
            f"data={data.name} are in data.root. Remove it."
        )
    if metrics.weights is not None and metrics.extractor == "classifier":
        raise UserError(
            f"metrics.weights={metrics.weights} applies to inception and i3d only; metrics.extractor is "
            "classifier, which eltlab trains. Remove it."
        )
    file = metrics.statistics not in (None, "reference")
    if file and metrics.extractor == "classifier":
        raise UserError(
            f"metrics.statistics={metrics.statistics}: a file applies to inception and i3d only; "
            "metrics.extractor is classifier. Give reference, or remove it."
        )
    # Absolute, so that a run can be measured from another folder.
    words = (("weights", "download"), ("statistics", "reference"))
    for section, key in ((data, "root"), (metrics, "images"), (metrics, "weights"), (metrics, "statistics")):
        path = getattr(section, key)
        if path is not None and (key, path) not in words:
            setattr(section, key, str(Path(path).expanduser().resolve()))


def check_samples(config: Config | EncodeConfig, samples_key: str = "metrics.samples") -> None:
    """Raises UserError if there are too few samples for a distance, or more than improve it.

    samples_key: the key that set the number of samples.
    """
    classes, unit = config.data.classes, example_unit(config.data.shape)
    counts = {samples_key: config.metrics.samples, "metrics.reference": config.metrics.reference}
    for key, count in counts.items():
        if count is None:
            continue
        if count < 2 * classes:
            raise UserError(f"{key}={count}: give at least two per class, {2 * classes}")
        if count > MAX_PER_CLASS * classes:
            raise UserError(
                f"{key}={count}: more than {MAX_PER_CLASS:,} {unit} per class make no difference; give at "
                f"most {MAX_PER_CLASS * classes:,}"
            )
