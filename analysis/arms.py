"""One picture of samples: rows are arms, columns are loop counts, the same noise and labels in each.

    python analysis/arms.py out=PICTURE.png RUNS_DIR

Reads the tiles that evaluate left in each run's samples/ folder.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from eltlab import results
from eltlab.errors import UserError


def tiles(runs: Path) -> dict[str, dict[int, Path]]:
    """The tile of each arm and loop count."""
    table = results.load(runs)
    table = table[table["kind"] == "eval"]
    results.one_protocol(table)
    found: dict[str, dict[int, Path]] = {}
    for row in table.itertuples():
        path = runs / row.run / "samples" / row.protocol / f"loops_{int(row.loops):03}.png"
        if path.is_file():
            found.setdefault(row.name, {})[int(row.loops)] = path
    if not found:
        raise UserError(f"{runs}: no samples of evaluated runs there")
    return found


def draw(arms: dict[str, dict[int, Path]], out: Path) -> None:
    columns = sorted({loops for pictures in arms.values() for loops in pictures})
    figure, axes = plt.subplots(
        len(arms),
        len(columns),
        figsize=(2.6 * len(columns), 1.25 * len(arms)),
        squeeze=False,
        layout="constrained",
    )
    for line, (name, pictures) in zip(axes, arms.items(), strict=True):
        for axis, loops in zip(line, columns, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if loops in pictures:
                axis.imshow(plt.imread(pictures[loops]))
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis, loops in zip(axes[0], columns, strict=True):
        axis.set_title("1 loop" if loops == 1 else f"{loops} loops", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def main(arguments: list[str]) -> None:
    outs = [text.removeprefix("out=") for text in arguments if text.startswith("out=")]
    runs = [text for text in arguments if not text.startswith("out=")]
    if len(outs) != 1 or len(runs) != 1:
        raise UserError("usage: python analysis/arms.py out=PICTURE.png RUNS_DIR")
    draw(tiles(Path(runs[0])), Path(outs[0]))
    print(f"picture: {outs[0]}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
