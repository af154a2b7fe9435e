"""The README's commands from two folders to a labelled data set do what it says, on the shipped examples, and those
that judge a data set have the options that it names."""

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

from composition.cli import build_parser
from composition.utility import experiment

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "composition" / "mini" / "examples"


def commands_of(name: str) -> list[list[str]]:
    """The commands of the README's block of shell that is marked with this name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", text, re.DOTALL)[1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line]


def test_the_commands_of_realism_and_utility_have_the_options_that_they_name():
    *commands, recipe = commands_of("realism and utility")
    named = [command[3] for command in commands]
    assert named == ["realism", "realism", "utility", "pair", "batch", "utility"]
    for command in commands:
        assert command[:3] == ["python", "-m", "composition"]
        build_parser(command[3]).parse_args(command[3:])
    assert recipe[:3] == ["python", "-m", "composition.utility.experiment"]
    experiment._options_of(recipe[3:])


@pytest.mark.slow
def test_two_commands_make_a_data_set_for_nnunet_of_two_folders(tmp_path):
    for folder, names in {"free": ["brain_background"], "tumours": ["brain_object", "brain_object_mask"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(EXAMPLES / f"{name}.png", tmp_path / folder)
    commands = commands_of("data set")
    assert [command[:4] for command in commands] == [["python", "-m", "composition", one] for one in ("pair", "batch")]
    for command in commands:
        ran = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    assert re.search(r"\d+ an hour", ran.stdout)
    data_set = tmp_path / "dataset" / "nnunet" / "Dataset500_dataset"
    told = json.loads((data_set / "dataset.json").read_text())
    assert told["numTraining"] == 4 and told["labels"] == {"background": 0, "tumour": 1}
    labels = sorted((data_set / "labelsTr").glob("*.png"))
    assert [path.stem + "_0000" for path in labels] == sorted(p.stem for p in (data_set / "imagesTr").glob("*.png"))
    assert all(set(np.unique(np.asarray(Image.open(path)))) == {0, 1} for path in labels)
