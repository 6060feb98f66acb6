"""Rules of data and of what it is measured by, which fit and encode share; some fill in what follows."""

from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.common.text import example_unit
from eltlab.config.checks import values_of
from eltlab.config.schema import Config, DataConfig, EncodeConfig, MetricsConfig

# (size, channels, classes) of the sets that are what they are; data=images and data=clips take any.
NATIVE = {
    "digits": (8, 1, 10),
    "fashion_mnist": (28, 1, 10),
    "cifar10": (32, 3, 10),
    "sprites": (64, 3, 9),
}
SPRITES_FRAMES = 8
CLIPS = ("sprites", "clips")  # sets of clips; the others are of images
MAX_PER_CLASS = 10_000  # samples a class, beyond which a distance no longer changes
INCEPTION_FROM = 32  # pixels a side: below, Inception sees little but its own enlargement


def check_clips(data: DataConfig) -> None:
    """Raises UserError where a key of clips has no meaning, or another set is given one."""
    if data.kind == "pixels" and (data.frames > 1) != (data.name in CLIPS):
        raise UserError(
            f"data.frames={data.frames}: data={data.name} holds "
            + ("clips; give at least 2" if data.name in CLIPS else "images; leave it out")
        )
    if data.name == "sprites" and data.frames != SPRITES_FRAMES:
        raise UserError(
            f"data.frames={data.frames}: the clips of sprites have {SPRITES_FRAMES}; leave it out"
        )
    if data.name == "clips":
        if data.stride < 1:
            raise UserError(f"data.stride={data.stride}: must be at least 1")
        if data.split not in (1, 2, 3):
            raise UserError(f"data.split={data.split}: choose one of 1, 2, 3")
        return
    for key in ("stride", "split"):
        if getattr(data, key) != 1:
            raise UserError(
                f"data.{key}={getattr(data, key)}: of clips, and this is data={data.name}; leave it out, "
                "or choose data=clips"
            )


def choose_extractor(metrics: MetricsConfig, data: DataConfig) -> None:
    """Fills in metrics.extractor where it is left out. Raises UserError for one that does not fit."""
    of_clips = data.frames > 1
    if metrics.extractor is None and of_clips:
        metrics.extractor = "i3d"
    if metrics.extractor is None:
        metrics.extractor = "classifier" if data.pixels < INCEPTION_FROM else "inception"
    fitting = ("classifier", "i3d" if of_clips else "inception")
    if metrics.extractor not in fitting:
        raise UserError(
            f"metrics.extractor={metrics.extractor}: data={data.name} holds "
            f"{'clips' if of_clips else 'images'}; choose one of {', '.join(fitting)}"
        )


def check_encoded_keys(data: DataConfig) -> None:
    """Raises UserError where a key of encoded sets says something of images, or one of latents of tokens:
    it would give the run another name and change nothing else."""
    if data.kind == "pixels" and data.encoding is not None:
        raise UserError(
            f"data.encoding={data.encoding}: of encoded sets, and data={data.name} is of images; leave it out"
        )
    if data.kind != "latents" and data.factor != 1:
        raise UserError(
            f"data.factor={data.factor}: of latents, and data={data.name} is of {data.kind}; leave it out"
        )


def check_source(data: DataConfig) -> None:
    """Raises UserError where a set is asked to be what it is not, or its place is missing."""
    native = NATIVE.get(data.name)
    if native is not None and (data.size, data.channels, data.classes) != native:
        size, channels, classes = native
        raise UserError(
            f"data.size={data.size} data.channels={data.channels} data.classes={data.classes}: "
            f"{data.name} is {size}x{size}, {channels} channels, {classes} classes; leave these out"
            f"{'' if data.name in CLIPS else ', or use data=images, which resizes'}"
        )
    if data.name == "images" and data.root is None:
        raise UserError(
            "data.root is missing: data=images needs a folder or a zip of class folders"
        )
    if data.name == "digits" and data.root is not None:
        raise UserError(f"data.root={data.root}: the digits come with scikit-learn; leave it out")
    # Absolute, so that a run can be measured from another folder.
    if data.root is not None:
        data.root = str(Path(data.root).expanduser().resolve())


def check_metric_places(metrics: MetricsConfig) -> None:
    if metrics.weights is not None and metrics.extractor == "classifier":
        raise UserError(
            f"metrics.weights={metrics.weights}: weights of Inception or I3D, and metrics.extractor is "
            "classifier, which trains its own; leave it out"
        )
    if metrics.weights not in (None, "download"):
        metrics.weights = str(Path(str(metrics.weights)).expanduser().resolve())
    if metrics.images is not None:
        metrics.images = str(Path(metrics.images).expanduser().resolve())


def check_samples(config: Config | EncodeConfig, asked: str = "metrics.samples") -> None:
    """Raises UserError where there are too few samples for a distance, or more than it can use.

    asked: the key that the number of samples was given by.
    """
    classes, unit = config.data.classes, example_unit(config.data.shape)
    for name, count in values_of(config, "metrics.samples metrics.reference"):
        key = asked if name == "metrics.samples" else name
        if count < 2 * classes:
            raise UserError(f"{key}={count}: give at least two a class, {2 * classes}")
        if count > MAX_PER_CLASS * classes:
            raise UserError(
                f"{key}={count}: {count // classes:,} {unit} of each of {classes} classes tell no "
                f"more than {MAX_PER_CLASS:,}; give at most {MAX_PER_CLASS * classes:,}"
            )
