"""A store of inversions gives back what was put in, or nothing. These tests check that."""

import threading
import warnings
from dataclasses import replace

import pytest
import torch

from composition.inversions import Trajectory
from composition.runs.store import InversionStore
from solvers import InversionReport

KEY = "0" * 64


def trajectory(seed: int = 0) -> Trajectory:
    states = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return Trajectory(states, InversionReport("defect", 0.05, 21, 2, 0.1 / 3, True, residuals=(0.5, 0.1 / 3)))


def equal(a: Trajectory, b: Trajectory) -> bool:
    return torch.equal(a.states, b.states) and a.report == b.report


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_mapping(tmp_path, on_disk):
    store = InversionStore(tmp_path / "cache" if on_disk else None)
    assert KEY not in store and len(store) == 0
    with pytest.raises(KeyError):
        del store[KEY]
    store[KEY] = trajectory()
    assert equal(store[KEY], trajectory()) and list(store) == [KEY]
    del store[KEY]
    assert KEY not in store and not list(tmp_path.rglob("*.safetensors"))


def test_another_process_reads_the_same_bits(tmp_path):
    InversionStore(tmp_path)[KEY] = replace(trajectory(), states=trajectory().states.transpose(2, 3))
    assert equal(InversionStore(tmp_path)[KEY], replace(trajectory(), states=trajectory().states.transpose(2, 3)))


def test_memory_keeps_the_last_used_and_the_disk_all(tmp_path):
    keys = [str(n) * 64 for n in range(4)]
    for store in (InversionStore(keep=2), InversionStore(tmp_path, keep=2)):
        for n, key in enumerate(keys[:3]):
            store[key] = trajectory(n)
            _ = store.get(keys[0])  # stays, as it is in use
        assert (keys[0] in store, keys[2] in store) == (True, True)
        assert (keys[1] in store) == (store.folder is not None)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rename(path):
    path.replace(path.with_name("1" * 64 + ".safetensors"))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, rename, empty])
def test_a_damaged_file_is_warned_of_and_made_again(tmp_path, damage):
    InversionStore(tmp_path)[KEY] = trajectory()
    damage(tmp_path / f"{KEY}.safetensors")
    key = "1" * 64 if damage is rename else KEY
    store = InversionStore(tmp_path)
    with pytest.warns(UserWarning, match="will be made again"):
        assert key not in store
    store[key] = trajectory()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(InversionStore(tmp_path)[key], trajectory())


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    writers = [
        threading.Thread(target=InversionStore(tmp_path).__setitem__, args=(KEY, trajectory())) for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.safetensors"]
    assert equal(InversionStore(tmp_path)[KEY], trajectory())
