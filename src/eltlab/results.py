"""The result tables for notebooks: ``eltlab.results.load("runs")`` and what compares its rows."""

from eltlab.runs.result_table import comparable, latest, load, one_protocol, write_table

__all__ = ["comparable", "latest", "load", "one_protocol", "write_table"]
