"""The digits set, loaded once (a pytest plugin)."""

import pytest

from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_set import ImageSet
from eltlab.model.patches import Patches

DIGITS = Patches((1, 8, 8), 2)


@pytest.fixture(scope="session")
def digits() -> tuple[ImageSet, ImageSet]:
    return load_digits()
