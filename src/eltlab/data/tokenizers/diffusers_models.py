"""diffusers' autoencoders: found in a folder or on the hub, loaded whole or refused, built again."""

import inspect
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eltlab.common.errors import UserError, first_line
from eltlab.data.tokenizers.frozen_networks import Settings, Tensors, assigned, freeze

CLASSES = {"taesd": "AutoencoderTiny", "sd_vae": "AutoencoderKL", "vqmodel": "VQModel"}
# Of a configuration, what changes no latent and no pixel here: the size of tiles, which are never
# used, and the precision of half-precision pipelines.
INERT = ("sample_size", "force_upcast")


def locate(weights: str, subfolder: str | None) -> Path | None:
    """The file or folder that tokenizer.weights names; None: a repository of the hub.

    Raises UserError where it is neither.
    """
    path = Path(weights).expanduser()
    if path.exists():
        return path / subfolder if subfolder else path
    # As the hub allows it: owner/name. https://huggingface.co/docs/hub/repositories
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights):
        return None
    raise unfit(weights, "there is no such file or folder", "a path, or a hub id (owner/name)")


def unfit(weights: str | Path, problem: str, mend: str) -> UserError:
    return UserError(f"tokenizer.weights={weights}: {problem}; give {mend}")


def unreachable(repository: str, error: Exception) -> UserError:
    problem = textwrap.shorten(first_line(error), 200)
    return unfit(
        repository,
        f"no such folder here, and the Hugging Face hub did not give it ({problem})",
        "tokenizer.weights=PATH of a copy, or try again with a connection",
    )


def load_pretrained(name: str, weights: str, subfolder: str | None) -> nn.Module:
    """The frozen network of `CLASSES`. Raises UserError."""
    place = locate(weights, subfolder)
    wanted = CLASSES[name]
    try:
        config, network, report = _from_pretrained(wanted, weights, place, subfolder)
    except UserError:
        raise
    except Exception as error:  # diffusers, its hub client, torch and safetensors raise their own
        if place is None:
            raise unreachable(weights, error) from None
        raise _not_it(place, wanted, first_line(error)) from None
    wrong = [key for keys in report.values() for key in keys]
    if wrong:
        # diffusers only warns of these, and leaves random weights where some are missing.
        raise _not_it(place or weights, wanted, f"missing or unknown: {wrong[0]}")
    if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
        raise _not_it(place or weights, wanted, "its images do not have 3 channels")
    return freeze(network)


def _from_pretrained(
    wanted: str, weights: str, place: Path | None, subfolder: str | None
) -> tuple[dict[str, Any], nn.Module, dict[str, list]]:
    kind = diffusers_class(wanted)
    where = {"subfolder": subfolder} if place is None else {}
    source = weights if place is None else str(place)
    with _quiet(), torch.random.fork_rng(devices=[]):
        config = kind.load_config(source, **where)
        found = config.get("_class_name", wanted)
        if found != wanted:
            raise _not_it(place or weights, wanted, f"it is of class {found}")
        network, report = kind.from_pretrained(
            source,
            **where,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # it asks for another package
            output_loading_info=True,
        )
    return config, network, report


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and diffusers' own log: what matters of them our one line says."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _not_it(place: str | Path, wanted: str, problem: str) -> UserError:
    return unfit(
        place,
        f"not a whole {wanted} ({textwrap.shorten(problem, 120)})",
        f"a folder that {wanted}.save_pretrained wrote, or a hub id",
    )


def diffusers_class(wanted: str) -> Any:
    """Imported late: diffusers takes seconds."""
    import diffusers

    return getattr(diffusers, wanted)


def settings_of(network: Any) -> Settings:
    """Class and configuration, as far as they differ from the class's defaults and matter here.

    So the same network has the same settings whichever version of diffusers wrote its file.
    """
    parameters = inspect.signature(type(network).__init__).parameters
    config = {
        key: network.config[key]
        for key, parameter in parameters.items()
        if key in network.config
        and key not in INERT
        and _plain(network.config[key]) != _plain(parameter.default)
    }
    return {"class": type(network).__name__, "config": _plain(config)}


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(value, default=str))


def rebuild(settings: Settings, tensors: Tensors) -> nn.Module:
    """The network of `settings_of` with these tensors. Raises RuntimeError as `assigned`."""
    with torch.device("meta"):
        network = diffusers_class(settings["class"])(**settings["config"])
    return assigned(network, tensors)
