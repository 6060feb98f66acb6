"""The result tables for notebooks: ``eltlab.results.load("runs")`` and what compares its rows."""

from eltlab.analysis.comparable_rows import comparable, latest, one_protocol
from eltlab.runs.result_table import load, write_table

__all__ = ["comparable", "latest", "load", "one_protocol", "write_table"]
