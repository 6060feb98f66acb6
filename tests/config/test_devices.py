"""How many devices a run has: those of its configuration, or those that a launcher has started."""

import pytest
from support.tiny_run import TINY, tiny

from eltlab import fit
from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.seeds import BatchSlice, slice_of_this_process
from eltlab.config import devices


def test_a_batch_that_devices_do_not_divide_is_an_error_with_its_fix() -> None:
    with pytest.raises(UserError, match="6 does not divide batch_size=8") as error:
        tiny("trainer.devices=3", "trainer.accumulate=2")
    assert str(error.value).endswith("make it one of 1, 2, 4, 8")


def test_the_launcher_decides_how_many_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(key, str(value))
    config = tiny()
    devices.adopt_launcher_devices(config)
    assert (config.trainer.devices, config.trainer.nodes) == (2, 2)
    assert slice_of_this_process(1) == BatchSlice(3, 4) and not ranks.is_main_process()
    devices.adopt_launcher_devices(tiny("trainer.devices=2", "trainer.nodes=2"))
    with pytest.raises(UserError, match="started 2 processes on each of 2 nodes"):
        devices.adopt_launcher_devices(tiny("trainer.devices=4"))
    with pytest.raises(UserError, match="8 does not divide batch_size=12"):
        devices.adopt_launcher_devices(tiny("batch_size=12", "trainer.accumulate=2"))


def test_several_nodes_need_torchrun() -> None:
    with pytest.raises(UserError, match=r"trainer\.nodes=2: start the command on every node"):
        fit.main([*TINY, "trainer.nodes=2"])
