"""This file makes every test run on one thread. On the tests' small tensors a second thread costs more than it brings,
above all on a busy machine. The last bits of a result depend on the number of threads, and one is the same everywhere.
Only the tests of the true size take all threads. The notebooks are tests too, which nbmake runs; their kernels are
processes of their own, and get one thread each as well.

The fixtures that the tests of the loader share are here too."""

import shutil

import pytest
import torch
from small_models import write_small_pipeline

ALL_THREADS = torch.get_num_threads()
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_pipeline(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder, to be changed or damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def is_notebook(item: pytest.Item) -> bool:
    return item.path.suffix == ".ipynb"


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Notebooks compose and train for a minute each: the fast tier leaves them out."""
    for item in filter(is_notebook, items):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with pytest.MonkeyPatch.context() as patch:
        if is_notebook(item):
            patch.setenv("OMP_NUM_THREADS", "1")
        return (yield)
