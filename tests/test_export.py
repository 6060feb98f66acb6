"""The verb export: the file that it refuses to write."""

from pathlib import Path

import pytest

from eltlab import export
from eltlab.common.errors import UserError


def test_the_name_must_end_in_safetensors(trained_run: Path) -> None:
    with pytest.raises(UserError, match=r"out=model\.pt: exports are safetensors files"):
        export.main([f"run={trained_run}", "out=model.pt"])
