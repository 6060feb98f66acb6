"""Autoencoders of diffusers: found in a folder or on the hub, loaded, and rebuilt from their settings."""

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
from eltlab.data.tokenizers.tokenizer import Settings, Tensors, assign_tensors, freeze

CLASSES = {"taesd": "AutoencoderTiny", "sd_vae": "AutoencoderKL", "vqmodel": "VQModel"}
# Keys of a configuration that change no latent and no pixel here: the size of tiles, which are not used,
# and the precision of half-precision pipelines.
INERT = ("sample_size", "force_upcast")


def find_weights(weights: str, subfolder: str | None) -> Path | None:
    """The file or folder that tokenizer.weights names; None if it names a repository of the hub. Raises
    UserError if it is neither."""
    path = Path(weights).expanduser()
    if path.exists():
        return path / subfolder if subfolder else path
    # What the hub allows: owner/name. https://huggingface.co/docs/hub/repositories
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights):
        return None
    raise weights_error(weights, "there is no such file or folder", "a path, or a hub id (owner/name)")


def weights_error(weights: str | Path, problem: str, fix: str) -> UserError:
    return UserError(f"tokenizer.weights={weights}: {problem}; give {fix}")


def hub_error(repository: str, error: Exception) -> UserError:
    problem = textwrap.shorten(first_line(error), 200)
    return weights_error(
        repository,
        f"not a local folder, and the download from the Hugging Face hub failed ({problem})",
        "tokenizer.weights=PATH of a copy, or try again with a connection",
    )


def load_pretrained(name: str, weights: str, subfolder: str | None) -> nn.Module:
    """The frozen network of a name in CLASSES. Raises UserError."""
    import diffusers  # takes seconds

    place, class_name = find_weights(weights, subfolder), CLASSES[name]
    kind = getattr(diffusers, class_name)

    def refuse(problem: str) -> UserError:
        return weights_error(
            place or weights,
            f"not a complete {class_name} ({textwrap.shorten(problem, 120)})",
            f"a folder that {class_name}.save_pretrained wrote, or a hub id",
        )

    # find_weights has already added the subfolder to a local path.
    model, subfolder = str(place or weights), None if place else subfolder
    source = {"pretrained_model_name_or_path": model, "subfolder": subfolder}
    try:
        with _silence(), torch.random.fork_rng(devices=[]):  # it draws weights before it reads them
            config = kind.load_config(**source)
            found = config.get("_class_name", class_name)
            if found != class_name:
                raise refuse(f"it is of class {found}")
            network, report = kind.from_pretrained(
                **source,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,  # True needs the package accelerate
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # diffusers, its hub client, torch and safetensors raise their own
        raise (hub_error(weights, error) if place is None else refuse(first_line(error))) from None
    # diffusers only warns about unknown tensors, and about missing ones, which keep random weights.
    wrong = [key for keys in report.values() for key in keys]
    if wrong:
        raise refuse(f"missing or unknown: {wrong[0]}")
    if config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
        raise refuse("its images do not have 3 channels")
    return freeze(network)


@contextmanager
def _silence() -> Iterator[None]:
    """Hides warnings and the log of diffusers. Our one-line error says what matters."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def diffusers_settings(network: Any) -> Settings:
    """The class, and the configuration without defaults and INERT keys: the same for the same network,
    whichever version of diffusers wrote its file."""
    parameters = inspect.signature(type(network).__init__).parameters
    config = {
        key: network.config[key]
        for key, parameter in parameters.items()
        if key in network.config
        and key not in INERT
        and _as_json(network.config[key]) != _as_json(parameter.default)
    }
    return {"class": type(network).__name__, "config": _as_json(config)}


def _as_json(value: Any) -> Any:
    """As it would be read from a JSON file: tuples become lists."""
    return json.loads(json.dumps(value, default=str))


def rebuild(settings: Settings, tensors: Tensors) -> nn.Module:
    """The network with these `diffusers_settings` and tensors. Raises RuntimeError if they do not fit."""
    import diffusers

    with torch.device("meta"):
        network = getattr(diffusers, settings["class"])(**settings["config"])
    return assign_tensors(network, tensors)
