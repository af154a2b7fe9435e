"""These tests hold what a reader may expect of every notebook: it says where to start, it was run from top to bottom,
its pictures are there, and nothing of the machine that ran it is.

nbmake runs the notebooks themselves, each as a test of its own, so that xdist can give each to another worker."""

import ast
import base64
import copy
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINES, BYTES = 15, 1_200_000
LEAST_WIDTH = 300  # pixels of a picture; a smaller one is an axis that nobody can read
# Folders of a machine, as a path, a traceback or a warning shows them.
OF_A_MACHINE = re.compile(
    r"(?<![\w.])/(tmp|home|root|work|Users|usr|opt|mnt|private)/|\b[A-Z]:\\|site-packages|ipykernel_\d"
)
RUN_AT = {"execution", "ExecuteTime", "papermill", "collapsed"}  # metadata that tell when and how something was run

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures_of(cell) -> list[str]:
    """The PNGs of a cell's outputs, in base64."""
    return [output.data["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def faults_of(notebook) -> list[str]:
    """Everything about a notebook that a reader should not find."""
    return [*_faults_of_the_text(notebook), *_faults_of_the_outputs(notebook), *_faults_of_the_metadata(notebook)]


def _faults_of_the_text(notebook) -> list[str]:
    first = notebook.cells[0]
    start = first.source.split("\n")[0]
    found = [
        f"cell {number} has {len(cell.source.splitlines())} lines"
        for number, cell in enumerate(notebook.cells)
        if len(cell.source.splitlines()) > LINES
    ]
    if first.cell_type != "markdown" or not all(word in start for word in ("Colab", 'pip install ".[notebooks]"')):
        found.append("the first line does not say where a user of Colab or of plain Jupyter starts")
    if not any(line.startswith("# ") for line in first.source.split("\n")):
        found.append("the first cell has no title")
    return found


def _faults_of_the_outputs(notebook) -> list[str]:
    cells, found = code_cells(notebook), []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("the cells were not run once each, from top to bottom")
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number} shows an error or a warning")
        pictures = pictures_of(cell)
        if cell.cell_type == "code" and _draws(cell.source) and not pictures:
            found.append(f"cell {number} draws, and its picture is not there")
        for picture in pictures:
            with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
                image.load()
                if image.width < LEAST_WIDTH:
                    found.append(f"cell {number} has a picture of {image.width} pixels")
        after = notebook.cells[number + 1] if number + 1 < len(notebook.cells) else None
        if pictures and (after is None or after.cell_type != "markdown"):
            found.append(f"no text after the picture of cell {number} says what to see")
    if not any(map(pictures_of, cells)):
        found.append("there is no picture")
    return found


def _draws(source: str) -> bool:
    """Whether a cell makes a figure outside the functions that it defines."""
    tree = ast.parse(source)
    run = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = {node.attr for top in run for node in ast.walk(top) if isinstance(node, ast.Attribute)}
    return bool(names & {"subplots", "figure", "imshow", "show"})


def _faults_of_the_metadata(notebook) -> list[str]:
    found = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    for number, part in enumerate([notebook, *notebook.cells]):
        if told := RUN_AT & set(part.metadata):
            found.append(f"the metadata of part {number} have {', '.join(sorted(told))}")
    bare = copy.deepcopy(notebook)
    for cell in code_cells(bare):
        for output in cell.outputs:
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                output.data[kind] = ""
    found += [f"it has a path of a machine: {match[0]}" for match in OF_A_MACHINE.finditer(nbformat.writes(bare))]
    return found


@each
def test_a_notebook_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not faults_of(notebook)
    assert path.stat().st_size < BYTES


def sound() -> nbformat.NotebookNode:
    """A small notebook that keeps every rule."""
    file = io.BytesIO()
    Image.new("L", (LEAST_WIDTH, 100)).save(file, format="png")
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"}
    drawing = nbformat.v4.new_code_cell("figure, axis = plt.subplots()", execution_count=1)
    drawing.outputs = [nbformat.v4.new_output("display_data", data)]
    start = 'Start: `pip install ".[notebooks]"`; on Colab the same.\n\n# Title'
    cells = [nbformat.v4.new_markdown_cell(start), drawing, nbformat.v4.new_markdown_cell("What to see.")]
    kernel = {"name": "python3", "display_name": "Python 3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def printed(text: str, name: str = "stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


# What spoils the sound notebook, and a word of what is then said.
SPOILT = {
    "long cell": (lambda nb: nb.cells[2].update(source="line\n" * 16), "16 lines"),
    "no start": (lambda nb: nb.cells[0].update(source="# Title"), "where a user"),
    "no title": (lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("#", "")), "no title"),
    "not run": (lambda nb: nb.cells[1].update(execution_count=None), "not run"),
    "run out of order": (lambda nb: nb.cells[1].update(execution_count=2), "not run"),
    "warning": (lambda nb: nb.cells[1].outputs.append(printed("careful", "stderr")), "a warning"),
    "error": (
        lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])),
        "an error",
    ),
    "no picture": (lambda nb: nb.cells[1].update(outputs=[printed("1")]), "its picture is not there"),
    "no caption": (lambda nb: nb.cells.pop(), "says what to see"),
    "path": (lambda nb: nb.cells[1].outputs.append(printed("wrote /tmp/x/y.png")), "path of a machine: /tmp/"),
    "kernel": (lambda nb: nb.metadata.kernelspec.update(name="mine"), "kernel"),
    "time": (lambda nb: nb.cells[1].metadata.update(execution={"iopub.execute_input": "2024"}), "execution"),
}


def test_a_sound_notebook_has_no_faults():
    assert faults_of(sound()) == []


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_each_rule_is_seen_to_be_broken(spoil):
    notebook = sound()
    spoil[0](notebook)
    assert any(spoil[1] in fault for fault in faults_of(notebook))


def test_every_notebook_is_a_test_of_its_own():
    """By the options in pyproject.toml. `--dist loadfile` gives each file to a worker, and a notebook is a file."""
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "notebooks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = [line.split("::")[0] for line in listed.stdout.splitlines() if "::" in line]
    assert found == [f"notebooks/{path.name}" for path in NOTEBOOKS], listed.stdout + listed.stderr
    assert found
