"""These tests hold the frame of the house: who may import whom, what modules are called, and what is not imported too
early."""

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Inside `composition` imports point down this list only; parts of one line may import each other.
LAYERS = (
    ("cli", "__main__", "commands", "options"),
    ("benchmark", "inversion_bench", "mini", "realism", "utility"),
    ("runs",),
    ("methods",),
    ("datasets",),
    ("metrics",),
    (
        *(
            "settings",
            "placement",
            "placement3d",
            "matching",
            "canvas",
            "focus",
            "prompts",
            "inversions",
            "variation",
            "blending",
            "calls",
        ),
        *("fields", "figures", "model", "plotting", "tables"),
    ),
    ("scans",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# The packages of this repository that each package may import.
KNOWN = {"sd21": {"sd21"}, "solvers": {"solvers"}, "composition": {"composition", "sd21", "solvers"}}
# Modules that are imported only where a package is installed that not every machine has.
NEEDS = {"sd21.kernels": "triton"}
MODULES = [path for package in KNOWN for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path, root: Path = ROOT) -> set[str]:
    """The absolute names of the modules, or of the names in them, that a file imports anywhere, in functions too."""
    package = ".".join(path.relative_to(root).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            base = ".".join(filter(None, (above if node.level else "", node.module)))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def place_of(name: str) -> str | None:
    """The line of LAYERS that a dotted name under `composition` belongs to; the package's own names have none."""
    parts = name.split(".")
    return parts[1] if parts[0] == "composition" and len(parts) > 1 and parts[1] in LAYER else None


def test_every_part_of_composition_has_its_layer():
    parts = {path.stem if path.is_file() else path.name for path in (ROOT / "composition").iterdir()}
    assert {part for part in parts if not part.startswith("__pycache__")} - {"__init__", "README"} == set(LAYER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).with_suffix("").parts
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in KNOWN or top in KNOWN[own[0]], f"{path} imports {name}"
        there = place_of(name)
        if own[0] == "composition" and own[1] in LAYER and there is not None:
            assert LAYER[there] >= LAYER[own[1]], f"{path} imports {name}, which lies above it"
        # A package's lazy names are for its users; a module of it that took them would hide where it looks.
        assert not (own[0] == top == "composition" and there is None), f"{path} imports {name}"


def test_every_way_to_import_is_seen(tmp_path):
    path = tmp_path / "composition" / "scans" / "wrong.py"
    path.parent.mkdir(parents=True)
    lines = [
        "import composition.runs.batch",
        "from ..methods import compose",
        "from .. import cli",
        "from . import dicom",
    ]
    path.write_text("def f():\n" + "".join(f"    {line}\n" for line in lines))
    found = [place_of(name) for name in sorted(imported(path, tmp_path))]
    assert found == ["cli", "methods", "runs", "scans"]


@pytest.mark.parametrize("package", [path.parent for path in MODULES if path.name == "__init__.py"], ids=str)
def test_no_module_bears_the_name_of_a_public_function_of_its_package(package):
    name = ".".join(package.relative_to(ROOT).parts)
    module = importlib.import_module(name)
    for path in package.iterdir():
        needs = NEEDS.get(f"{name}.{path.stem}")
        if needs is not None and importlib.util.find_spec(needs) is None:
            continue
        if path.suffix == ".py" and path.stem not in ("__init__", "__main__"):
            submodule = importlib.import_module(f"{name}.{path.stem}")
            assert getattr(module, path.stem) is submodule, f"{name}.{path.stem} is not the module of that name"
    public = [getattr(module, one) for one in getattr(module, "__all__", ())]
    assert not {one.__name__ for one in public if inspect.isfunction(one)} & {
        path.stem for path in package.glob("*.py")
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_a_sitting_and_says_what_it_holds(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} does not say what it holds"
    assert len(text.splitlines()) <= 360
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < 60, f"{path}: {node.name}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=lambda path: path.name)
def test_no_test_imports_another_test(path):
    assert not [name for name in imported(path) if name.split(".")[0].startswith("test_")]


def loaded_by(program: str) -> set[str]:
    """The top-level modules that are loaded when a program has run in a process of its own."""
    program += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_help_of_all_commands_imports_nothing_heavy():
    program = "from composition.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    heavy = {"torch", "numpy", "PIL", "transformers", "huggingface_hub", "safetensors", "einops", "matplotlib", "tqdm"}
    assert not loaded_by(program) & heavy


@pytest.mark.slow
def test_solvers_import_no_more_than_torch_does():
    added = loaded_by("import solvers") - loaded_by("import torch, numpy")
    assert added == {"solvers"}


def test_the_packages_offer_their_names_and_no_others():
    for name in ("composition", "sd21", "solvers"):
        package = importlib.import_module(name)
        assert all(getattr(package, one) is not None for one in package.__all__)
        assert set(package.__all__) <= set(dir(package))
        with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'no_such_name'"):
            _ = package.no_such_name
