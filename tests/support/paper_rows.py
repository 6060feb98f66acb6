"""The published rows of ELT with their configurations and computed costs, by name."""

from eltlab.analysis import paper

ROWS = {row.name: (row, config, ours) for row, config, ours in paper.compute_rows()}
