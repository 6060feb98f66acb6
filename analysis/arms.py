"""One picture of samples: rows are arms, columns are loop counts, the same noise and labels in each.

    python analysis/arms.py out=PICTURE.png [protocol=ID] RUNS_DIR [RUNS_DIR …]

Reads the tiles that evaluate left in each run's samples/ folder.
"""

from pathlib import Path

import command
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from eltlab import results
from eltlab.errors import UserError


def tiles(table: pd.DataFrame) -> dict[str, dict[int, Path]]:
    """The tile of each arm and loop count."""
    found: dict[str, dict[int, Path]] = {}
    for row in table.itertuples():
        path = Path(row.folder) / "samples" / row.protocol / f"loops_{int(row.loops):03}.png"
        if path.is_file():
            found.setdefault(row.name, {})[int(row.loops)] = path
    if not found:
        raise UserError("no samples beside these rows; give the folders of evaluated runs")
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


def main(paths: list[str], out: Path, protocol: str | None) -> None:
    table = results.comparable(results.load(*paths), protocol)
    chosen = (table["seed"] == table["seed"].min()) & (table["loop_schedule"] == "constant")
    draw(tiles(table[chosen]), out)
    print(f"picture: {out}")


if __name__ == "__main__":
    command.run(main, str(__doc__))
