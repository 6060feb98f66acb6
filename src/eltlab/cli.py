"""What the verbs share: `--help` without torch, mistakes in one line, no traceback for them."""

from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from eltlab.common.command import is_key_value
from eltlab.common.errors import UserError, suggest
from eltlab.common.package_folders import package_folder
from eltlab.common.text import mask_password
from eltlab.config.flat import flatten
from eltlab.config.parsing import groups_of, options_of, parse_overrides, set_key, typed
from eltlab.config.schema import Config
from eltlab.runs.composing import resolve_node
from eltlab.runs.run_folder import Run
from eltlab.studies.sweep_keys import storage_url

Asked = TypeVar("Asked")


# What may differ between a run and a later look at it.
OPEN_KEYS = (
    *("sampler.", "metrics.", "trainer.accelerator", "trainer.devices", "trainer.nodes"),
    *("data.root", "data.workers", "data.in_memory"),  # where the same images lie today
)


def options(root: str = "config") -> str:
    """The choices of every group of a root in conf/, a line a group."""
    return "\n".join(
        f"  {group}={{{', '.join(options_of(package_folder('conf') / group))}}}"
        for group in sorted(groups_of(root))
    )


def own_keys(overrides: list[str], defaults: Asked) -> tuple[Asked, list[str]]:
    """A verb's own keys (a dataclass instance of them) taken out of overrides, and fit's that are left."""
    own = OmegaConf.structured(defaults)
    mine = [text for text in overrides if text.partition("=")[0] in own]
    urls = [text for text in mine if text.startswith("storage=")]
    for text in urls:  # which Hydra's grammar would take apart, and quote in its errors
        set_key(own, "storage", storage_url(text.removeprefix("storage=")))
    for key, value in parse_overrides([text for text in mine if text not in urls]):
        set_key(own, key, value)
    asked = OmegaConf.to_object(own)
    return asked, [text for text in overrides if text not in mine]  # type: ignore[return-value]


def study_keys(arguments: list[str], defaults: Asked) -> tuple[str, Asked, list[str]]:
    """The study that stands before the keys, a verb's own keys, and fit's overrides that are left."""
    names = [text for text in arguments if not is_key_value(text)]
    if len(names) != 1:
        given = " and ".join(map(mask_password, names)) or "none"
        raise UserError(f"give one study, e.g. loops_vs_depth preset=quick; here {given}")
    return names[0], *own_keys([text for text in arguments if is_key_value(text)], defaults)


def open_run(overrides: list[str], defaults: Asked) -> tuple[Run, Config, Asked]:
    """The run named by run=DIR, its configuration under the overrides, and the verb's own keys.

    defaults is a dataclass instance of the verb's keys, `run: str | None` among them.
    """
    parsed = parse_overrides(overrides)
    folder = dict(parsed).get("run")
    if not folder:
        raise UserError("run=DIR is missing: the folder that fit printed after 'run:'")
    run = Run.open(Path(str(folder)).expanduser())
    node = typed(OmegaConf.create(asdict(run.config)))
    # How many devices it was trained on is no reason to measure it on as many.
    node.trainer.devices = node.trainer.nodes = node.trainer.accumulate = 1
    own = OmegaConf.structured(defaults)
    for key, value in parsed:
        if key in own:
            set_key(own, key, value)
        elif key.startswith(OPEN_KEYS):
            set_key(node, key, value)
        else:
            known = [*own, *(k for k in flatten(run.config) if k.startswith(OPEN_KEYS))]
            raise UserError(
                f"{key}={value}: not a key of a trained run: {suggest(key, known, 'keys')}"
            )
    asked = OmegaConf.to_object(own)
    return run, resolve_node(node), asked  # type: ignore[return-value]
