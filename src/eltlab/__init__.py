"""eltlab: what does looping a transformer buy in image and video generation, at matched compute?

``eltlab.load(run)`` opens a trained run for sampling. It is imported on first use, so that
``import eltlab`` (and with it every ``--help``) stays free of torch.
"""

from typing import Any

from eltlab.common.package_info import __version__

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from eltlab.runs.load_model import load

        return load
    raise AttributeError(f"module 'eltlab' has no attribute {name!r}")
