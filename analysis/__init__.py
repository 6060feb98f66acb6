"""Figures and tables from rows: functions over the table of `eltlab.results.load`, each also a command.

    python -m eltlab.analysis.pareto runs/loops_vs_depth        any module of this folder
    from eltlab.analysis import pareto; pareto.draw(table)      in a notebook

In a checkout this folder is at the top, where it is easy to edit, and src/eltlab/analysis links to it.
"""
