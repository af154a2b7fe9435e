"""Every README says what is so: its code runs, its commands are understood, its links lead somewhere, and its length is
what a reader has time for."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sd21
from composition import Settings, compose
from composition.cli import build_parser
from composition.mini.demo import demo_request

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "composition" / "mini" / "examples"
READMES = sorted(path for top in ("", "*/", "*/*/") for path in ROOT.glob(f"{top}README.md"))
BLOCK = re.compile(r"(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)

# Which test runs a block, by the comment above it.
RUN = {
    "the method": "test_readmes.py::test_the_method_in_the_readme_is_what_compose_does",
    "data set": "test_readmes.py::test_two_commands_make_a_data_set_for_nnunet_of_two_folders",
    "test command": ".ci/run",
    "maps of a word": "test_calls.py::test_the_readmes_maps_of_a_word_over_the_steps",
    "inversions of a scan": "test_calls.py::test_the_readmes_comparison_of_inversions_is_six_lines",
    "a new solver": "test_solvers_readme.py::test_the_new_solver_is_ab2_and_has_the_order_it_shows",
    **dict.fromkeys(
        (
            "sampling",
            "the states on the way",
            "a part of the grid",
            "a run that continues",
            "inversion",
            "an own sampler",
        ),
        "test_solvers_readme.py::test_the_shown_code_runs_and_agrees_with_itself",
    ),
}
# Why no test runs a block. Its commands are parsed all the same.
NOT_RUN = {
    "first commands": "test_mini.py runs the demo; the other takes a reader's scans, and the weights of the hub",
    "one composition": "it takes a reader's scans, and the weights of the hub; test_cli.py runs such commands",
    "a volume": "it takes a reader's volumes, and the weights of the hub; test_volume_command.py runs such commands",
    "in Python": "it takes a reader's scans, and the weights of the hub; test_compose.py calls compose so",
    "your own weights": "it takes the hub and a reader's files; test_sd21_sources.py loads from such sources",
    "sources of weights": "it takes the hub and a reader's files; test_sd21_sources.py loads from such sources",
    "a hook": "its hook is a form to fill in; test_sd21_attention.py sets such hooks",
    "realism and utility": "they take a data set and an hour; test_realism.py and test_utility_command.py run them",
    "training": "it takes a GPU and the data sets; test_training.py runs every stage in small",
    "the benchmark": "it takes the data sets and hours; test_benchmark_command.py runs it in small",
    "the benchmark on two processes": "it takes the data sets and hours; test_benchmark_command.py runs it in small",
    "the steps on two processes": "it takes the data sets and hours; test_benchmark_command.py runs it in small",
    "citation": "it is no code",
}


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """(name, language, text) of the code blocks of a README; the name is that of the comment above a block, or ""."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def shown(path: str, name: str) -> str:
    (text,) = [text for one, _, text in blocks(ROOT / path) if one == name]
    return text


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_run_by_a_test_or_says_why_not(path):
    for name, _, text in blocks(path):
        assert (name in RUN) != (name in NOT_RUN), f"{name!r}: {text[:60]!r}"


def test_the_tests_that_run_the_blocks_are_there():
    there = {name for path in READMES for name, _, _ in blocks(path)}
    assert not {*RUN, *NOT_RUN} - there
    for test in set(RUN.values()) - {".ci/run"}:
        file, name = test.split("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def commands(path: Path) -> list[list[str]]:
    """The commands of `python -m composition` that a README shows, in blocks and in indented lines, as words."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [
        line
        for _, language, block in blocks(path)
        if language == "sh"
        for line in block.replace("\\\n", " ").split("\n")
    ]
    lines += re.findall(r"^    (\S.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    found = [re.search(r"-m (?:-- )?composition (.+)$", line.split(" && ")[-1]) for line in lines]
    return [shlex.split(one[1], comments=True) for one in found if one]


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_have_the_options_that_they_are_shown_with(path):
    for words in commands(path):
        build_parser(words[0]).parse_args(words)  # leaves with SystemExit where it does not understand


def test_there_are_commands_in_the_readmes():
    assert sum(len(commands(path)) for path in READMES) >= 8


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_lead_to_files(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" not in link:
            file = path.parent / target if target else path
            assert file.exists(), link
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings]


def test_the_readme_is_read_in_five_minutes():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(re.findall(r"\w[\w'’.-]*", re.sub(r"\]\([^)]*\)", "]", text))) <= 1200


@pytest.mark.slow
def test_the_method_in_the_readme_is_what_compose_does():
    """To the bit: both do the same operations in the same order."""
    model, one = sd21.load("mini", device="cpu"), demo_request().read()
    names = ("background", "obj", "object_mask", "user_mask", "prompt")
    scope = {"model": model, **dict(zip(names, one, strict=True))}
    exec(shown("README.md", "the method"), scope)
    pixels = one.background.render(scope["result"], grayscale=one.grayscale)
    # The README's lines show the whole scan to the network, where compose would show it a window.
    assert np.array_equal(pixels, compose(model, *one, Settings(focus="scan", size="region")).image)


@pytest.mark.slow
def test_two_commands_make_a_data_set_for_nnunet_of_two_folders(tmp_path):
    for folder, names in {"free": ["brain_background"], "tumours": ["brain_object", "brain_object_mask"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(EXAMPLES / f"{name}.png", tmp_path / folder)
    text = shown("composition/README.md", "data set")
    steps = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
    assert [command[:4] for command in steps] == [["python", "-m", "composition", one] for one in ("pair", "batch")]
    for command in steps:
        ran = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    assert re.search(r"\d+ an hour", ran.stdout)
    data_set = tmp_path / "dataset" / "nnunet" / "Dataset500_dataset"
    told = json.loads((data_set / "dataset.json").read_text())
    assert told["numTraining"] == 4 and told["labels"] == {"background": 0, "tumour": 1}
    labels = sorted((data_set / "labelsTr").glob("*.png"))
    assert [path.stem + "_0000" for path in labels] == sorted(p.stem for p in (data_set / "imagesTr").glob("*.png"))
    assert all(set(np.unique(np.asarray(Image.open(path)))) == {0, 1} for path in labels)
