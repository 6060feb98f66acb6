"""Writes the pages of results, their figures, and the measured numbers of README.md, docs/ and sweeps/.

    python -m eltlab.analysis.results       (make results; in a checkout)

analysis/pages/NAME.md is the template (Jinja) of docs/results/NAME.md, and analysis/pages/blocks/NAME.md that
of the text between <!-- NAME --> and <!-- /NAME --> in README.md or in a page of docs/. Every number comes
from committed rows. Prints a line per file. docs/analysis.md says how to add a page.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from os.path import relpath
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from matplotlib.figure import Figure

from eltlab.analysis import paper, performance, style
from eltlab.analysis.chosen_settings import choose_settings
from eltlab.analysis.measured_study import MeasuredStudy, add_final_losses
from eltlab.analysis.points import name_arms
from eltlab.analysis.recipes import recipe_rows
from eltlab.analysis.study_headers import study_headers
from eltlab.analysis.table_files import format_markdown
from eltlab.common.command import run_command
from eltlab.common.errors import UserError, first_line
from eltlab.common.files import write_atomic
from eltlab.common.text import format_bytes, format_duration, format_si
from eltlab.runs import result_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = Path("docs", "results")  # generated as a whole


class PageSummary(NamedTuple):
    """What an index says of a page: its first heading and its first paragraph."""

    question: str
    answer: str


@dataclass
class Results:
    """All that the command writes: the text of each file, and what draws each figure, by path."""

    texts: dict[Path, str] = field(default_factory=dict)
    figures: dict[Path, Callable[[], Figure]] = field(default_factory=dict)


def make_results(root: Path = ROOT) -> Results:
    """Renders every template of root/analysis/pages. Raises UserError, naming the template and its line."""
    made = Results()
    templates = root / "analysis" / "pages"
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"si": format_si, "duration": format_duration, "bytes": format_bytes}
    environment.filters["sentence"] = lambda clause: clause[:1].upper() + clause[1:] + "."
    summaries = {}
    for template in sorted(templates.glob("*.md")):
        target = PAGES / template.name
        text = render(environment, template.name, functions(root, target.parent, made))
        made.texts[target] = text + "\n"
        summaries[template.stem] = summarize(template.name, text)
    documents = {path.relative_to(root): path.read_text() for path in find_documents(root)}
    for template in sorted(templates.glob("blocks/*.md")):
        target = find_document(documents, template.stem)
        known = functions(root, target.parent, made)
        text = render(environment, f"blocks/{template.name}", {**known, "pages": summaries})
        documents[target] = made.texts[target] = replace_block(documents[target], template.stem, text)
    made.texts |= study_headers(root)
    return made


def render(environment: Environment, name: str, known: dict[str, Any]) -> str:
    try:
        return environment.get_template(name).render(known).strip()
    except (UserError, TemplateError, TypeError, ValueError) as error:
        # Jinja makes the template's lines part of the traceback.
        frames = walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename.endswith(f"/{name}")]
        line = error.lineno if isinstance(error, TemplateSyntaxError) else next(iter(lines), 1)
        raise UserError(f"analysis/pages/{name}:{line}: {first_line(error)}") from error


# --- what templates can call ----------------------------------------------------------------------


def functions(root: Path, folder: Path, made: Results) -> dict[str, Any]:
    """The functions of the templates. folder: of the file that is made, to which its links are relative."""
    return {
        "study": partial(open_study, root, partial(add_figure, made, folder)),
        "rows": partial(read_rows, root),
        "recipes": partial(format_recipes, root),
        "claim": claim,
        "markdown": format_cells,
        "benchmark_table": lambda: performance.format_benchmark(read_rows(root, "benchmarks/rows.jsonl")),
        "published_costs": paper.format_page,
    }


def open_study(
    root: Path,
    add_figure: Callable[..., str],
    name: str,
    names: dict[str, str] | None = None,
    final_losses: bool = False,
    settings: str = "chosen",
) -> MeasuredStudy:
    """The study of analysis/data/NAME.jsonl. names: what sentences call its arms. final_losses: of rows
    from before the column heldout_loss (`add_final_losses`). settings: all makes each setting an arm."""
    table = read_rows(root, f"analysis/data/{name}.jsonl")
    table = add_final_losses(table) if final_losses else table
    return MeasuredStudy(name, table, names or {}, add_figure, all_settings=settings == "all")


def format_recipes(root: Path, names: list[str]) -> str:
    """The recipe that each of these studies of sweeps/recipe.yaml found, and its gain."""
    studies = {name: choose_settings(read_rows(root, f"analysis/data/{name}.jsonl"))[0] for name in names}
    return format_markdown(recipe_rows({name: name_arms(rows) for name, rows in studies.items()}))


@cache
def read_rows(root: Path, file: str) -> pd.DataFrame:
    return result_table.load(root / file)


def add_figure(made: Results, folder: Path, file: str, alt: str, draw: Callable[[], Figure]) -> str:
    made.figures[PAGES / file] = draw
    return f"![{alt}]({relpath(PAGES / file, folder)})"


def claim(condition: Any, caller: Callable[[], str]) -> str:
    """The sentence of {% call claim(condition) %}sentence{% endcall %}, if the rows support it.

    Raises UserError otherwise: no finding outlives its rows.
    """
    text = caller().strip()
    sentence = " ".join(text.split())
    if isinstance(condition, pd.Series | pd.DataFrame):
        raise UserError(f'the condition of "{sentence}" is a table; end it with .all()')
    if not condition:
        raise UserError(f'the rows do not support "{sentence}"; change the sentence')
    return text + "\n"  # trim_blocks removes the line break after the tag


def format_cells(table: pd.DataFrame, formats: dict[str, str]) -> str:
    """These columns of a table in Markdown, each in its format: {"fid": "{:.2f}"}; empty if missing."""
    cells = [
        ["" if pd.isna(value) else form.format(value) for value in table[column]]
        for column, form in formats.items()
    ]
    return format_markdown([list(formats), *map(list, zip(*cells, strict=True))])


# --- files ----------------------------------------------------------------------------------------


def summarize(name: str, text: str) -> PageSummary:
    """The question and the answer of a page. Raises UserError if it does not start with them."""
    heading, answer, *_ = [*text.split("\n\n"), ""]
    if not heading.startswith("# ") or not answer or answer.startswith("#"):
        raise UserError(f"analysis/pages/{name}: must start with # and its question, and then a paragraph")
    return PageSummary(heading.removeprefix("# "), " ".join(answer.split()))


def find_documents(root: Path) -> list[Path]:
    """The hand-written pages, which may have blocks."""
    found = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    if not found[0].is_file():
        raise UserError(f"{found[0]}: no such file; results are written in a checkout")
    return found


def find_document(documents: dict[Path, str], name: str) -> Path:
    """The one document with the block."""
    begin, end = markers(name)
    found = [path for path, text in documents.items() if begin in text or end in text]
    if len(found) != 1 or documents[found[0]].count(begin) != 1 or documents[found[0]].count(end) != 1:
        raise UserError(f"{begin} and {end} must be once in README.md or in one page of docs/")
    return found[0]


def replace_block(text: str, name: str, block: str) -> str:
    begin, end = markers(name)
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{block}\n\n{end}{rest.partition(end)[2]}"


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def write(made: Results, root: Path) -> None:
    """Writes all texts and figures; prints for each file whether it changed."""
    for path in [*made.texts, *made.figures]:
        target = root / path
        before = target.read_bytes() if target.is_file() else None
        if path in made.texts:
            write_atomic(target, made.texts[path])
        else:
            style.save(made.figures[path](), target)
        print(f"{path}: {'unchanged' if target.read_bytes() == before else 'written'}")


def refuse_leftovers(made: Results, root: Path) -> None:
    """Raises UserError if docs/results/ has a file that no template makes."""
    known = {*made.texts, *made.figures, *(path.with_suffix(".pdf") for path in made.figures)}
    found = [path.relative_to(root) for path in sorted((root / PAGES).iterdir())]
    if strange := [str(path) for path in found if path not in known]:
        raise UserError(f"no template makes {', '.join(strange)}; remove with git rm")


def main(arguments: list[str]) -> None:
    if arguments:
        raise UserError(f"{arguments[0]}: this command takes no arguments")
    made = make_results()
    write(made, ROOT)
    paper.write_headers()
    refuse_leftovers(made, ROOT)


if __name__ == "__main__":
    run_command(main, lambda _: __doc__.strip(), stopped="the same command starts again")
