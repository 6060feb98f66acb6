"""Where conf/, sweeps/ and analysis/ are, in a checkout and in the installed package."""

from pathlib import Path


def package_folder(name: str) -> Path:
    """conf, sweeps or analysis: inside the package in the wheel, at the top of a checkout."""
    packaged = Path(__file__).parents[1] / name
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / name
