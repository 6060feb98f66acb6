"""python -m eltlab.bench [overrides]: measured steps and samples, looped beside vanilla beside twin."""

import uuid
from dataclasses import dataclass
from pathlib import Path

from eltlab.cli import options, own_keys
from eltlab.common import seeds
from eltlab.common.command import run_command
from eltlab.config.devices import one_device
from eltlab.runs import row_files
from eltlab.training.benchmark import (
    Turns,
    check_memory,
    checked,
    compared,
    sample_rows,
    sample_table,
    train_rows,
    train_table,
    writable,
)


@dataclass
class Asked(Turns):
    out: str | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "Takes fit's overrides. At each loop count the vanilla loop (supervision=final) and the chosen\n"
        "supervision, beside the unique-layer twin: whole training steps by their parts, then samples.\n"
        "All arms take turns, so that the machine's drift meets all alike. And its own keys:\n\n"
        "  'splits=[2,4,12]'    loop counts at the same depth; default: loops\n"
        "  repeats=10 warmup=2  turns that are measured, and turns before them\n"
        "  'batches=[1,8,64]'   samples at a time; [] for none\n"
        "  out=FILE.jsonl       where the rows go; default: RUNS_DIR/bench/rows.jsonl\n\n"
        f"choices:\n{options()}\n\n"
        "examples:\n"
        "  python -m eltlab.bench loops=4\n"
        "  python -m eltlab.bench model=elt_b 'splits=[2,4,12]' batch_size=8 sampler.steps=4"
    )


def main(overrides: list[str]) -> None:
    asked, rest = own_keys(overrides, Asked())
    asked = checked(asked)
    configs = compared(rest, asked)
    for config in configs:
        one_device(config, "bench times one device")
    check_memory(configs)
    out = writable(Path(asked.out or f"{configs[0].runs_dir}/bench/rows.jsonl").expanduser())

    from eltlab.common.torch_device import choose_device, choose_precision
    from eltlab.data.build import build_data
    from eltlab.training.timing import Arm

    device = choose_device(configs[0].trainer.accelerator)
    precision = choose_precision(configs[0].trainer.precision, device)
    data = build_data(configs[0])
    arms = [
        Arm(
            c,
            device,
            precision,
            data.batches(c, 0, device, seeds.slice_of_this_process(c.trainer.accumulate)),
        )
        for c in configs
    ]
    call = uuid.uuid4().hex[:12]
    rows = train_rows(arms, asked, call)
    row_files.append_rows(out, rows)
    print(*train_table(rows), sep="\n", flush=True)
    rows = sample_rows(arms, data, asked, call, rows[0]["matmul_flops_per_second"])
    if rows:
        row_files.append_rows(out, rows)
        print("", *sample_table(rows), sep="\n")
    print(f"rows: {out}")


if __name__ == "__main__":
    run_command(main, usage, stopped="the measurements that were finished are kept")
