"""These tests check which folder or file a source names, what is fetched from the hub, and that what cannot be had is
one clear error."""

import os
import shutil
import subprocess
import sys

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from small_models import write_small_pipeline, write_small_tokenizer

import sd21
from sd21 import sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/small-model"
# The files of the default repository, at the revision that its public users pin.
PUBLISHED = [
    *(".gitattributes", "README.md", "model_index.json", "feature_extractor/preprocessor_config.json"),
    *("scheduler/scheduler_config.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"),
    *("tokenizer/merges.txt", "tokenizer/special_tokens_map.json"),
    *("tokenizer/tokenizer_config.json", "tokenizer/vocab.json"),
    *("v2-1_512-ema-pruned.ckpt", "v2-1_512-ema-pruned.safetensors", "v2-1_512-nonema-pruned.safetensors"),
    *(
        f"{part}/{stem}{variant}.{kind}"
        for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"))
        for variant in ("", ".fp16")
        for kind in ("bin", "safetensors")
    ),
    *("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors"),
    *("text_encoder/pytorch_model.bin", "text_encoder/pytorch_model.fp16.bin"),
]
CONFIGS = [name for name in PUBLISHED if name.startswith(("scheduler", "tokenizer")) or name.endswith("/config.json")]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub client's cache, in its own layout, with one repository in it; the network stays out of reach."""
    cache = tmp_path / "hub"
    repo = cache / f"models--{REPO.replace('/', '--')}"
    write_small_pipeline(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return repo / "snapshots" / COMMIT


def test_a_hub_id_loads_from_the_cache_without_the_network(hub):
    model = sd21.load(REPO, local_files_only=True, device="cpu")
    assert (model.identity["source"], model.identity["revision"]) == (REPO, COMMIT)
    assert sd21.load(REPO, revision=COMMIT, local_files_only=True, device="cpu").revision == COMMIT
    with pytest.raises(sd21.CheckpointError, match=f"'{REPO}' .* at revision v7 it cannot be had"):
        sd21.load(REPO, revision="v7", local_files_only=True, device="cpu")


def test_a_tokenizer_comes_from_a_hub_id_too(hub, tmp_path):
    assert sources.locate_tokenizer(REPO, local_files_only=True) == hub / "tokenizer"
    assert sources.locate_tokenizer(hub, local_files_only=True) == hub / "tokenizer"
    write_small_tokenizer(tmp_path / "bare")
    assert sources.locate_tokenizer(tmp_path / "bare", local_files_only=True) == tmp_path / "bare"
    shutil.rmtree(hub / "tokenizer")
    with pytest.raises(sd21.CheckpointError, match=r"holds no tokenizer: expected vocab.json and merges.txt"):
        sources.locate_tokenizer(REPO, local_files_only=True)


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """Calls to the hub client; it serves `requests.repository`, a list of file names, as empty files."""

    class Requests(list):
        repository = PUBLISHED

    calls = Requests()

    def snapshot_download(repo, *, revision, allow_patterns, local_files_only):
        names = list(filter_repo_objects(calls.repository, allow_patterns=allow_patterns))
        calls.append((repo, revision, sorted(names)))
        for name in names:
            path = tmp_path / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    return calls


def weight_files(suffix):
    stems = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    return [f"{stem}{suffix}.safetensors" for stem in stems]


@pytest.mark.parametrize(("variant", "suffix"), [(None, ""), ("fp16", ".fp16")])
def test_only_the_files_needed_are_fetched_and_of_one_variant(requests, variant, suffix):
    sources.locate(REPO, None, variant, False)
    assert requests == [(REPO, None, sorted(CONFIGS + weight_files(suffix)))]


def test_a_repository_of_float16_files_alone_is_fetched_as_such(requests):
    requests.repository = CONFIGS + weight_files(".fp16")
    sources.locate(REPO, None, None, False)
    assert [names for *_, names in requests] == [sorted(CONFIGS), sorted(requests.repository)]


def test_the_default_is_pinned_and_nothing_else_is(requests):
    for source, revision in ((sources.DEFAULT, None), (sources.DEFAULT, "main"), (REPO, None), (REPO, "v1")):
        sources.locate(source, revision, None, False)
    assert [revision for _, revision, _ in requests] == [sources.DEFAULT_REVISION, "main", None, "v1"]


def test_a_repository_that_cannot_be_reached_or_is_gone_is_one_clear_error(monkeypatch):
    def snapshot_download(*_, **__):
        raise OfflineModeIsEnabled("401 Client Error.\n\nRepository Not Found for url: ...")

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    with pytest.raises(sd21.CheckpointError) as error:
        sd21.load("stabilityai/stable-diffusion-2-1-base", device="cpu")
    said = str(error.value)
    for part in ("'stabilityai/stable-diffusion-2-1-base'", "withdrawn", sources.DEFAULT, "local folder", '"mini"'):
        assert part in said
    assert said.endswith("OfflineModeIsEnabled: 401 Client Error. Repository Not Found for url: ...")


def test_offline_mode_is_the_hub_clients_own(tmp_path):
    """The real client, in a process of its own because it reads HF_HUB_OFFLINE when imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    script = "import sd21; sd21.load(device='cpu')"
    root = sources.MINI.parent.parent
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"sd21.weights.CheckpointError: '{sources.DEFAULT}' is no folder here") and "offline" in last


@pytest.mark.parametrize("name", ["v2-1_512-ema-pruned.ckpt", "unet.bin", "weights.pt", "weights.PTH", "weights.pkl"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_pickle_is_refused_with_the_reason_and_the_way_out(tmp_path, name, exists):
    if exists:
        torch.save({"state_dict": {}}, tmp_path / name)
    with pytest.raises(sd21.CheckpointError, match=r"runs whatever code it carries.*safetensors.torch.save_file"):
        sd21.load(tmp_path / name, device="cpu")


def test_paths_that_name_no_model(tmp_path):
    with pytest.raises(sd21.CheckpointError, match=r"gone.safetensors is not there; expected a .safetensors file"):
        sd21.load(tmp_path / "gone.safetensors", device="cpu")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(sd21.CheckpointError, match=r"notes.txt is neither a folder nor a .safetensors file"):
        sd21.load(tmp_path / "notes.txt", device="cpu")
    with pytest.raises(sd21.CheckpointError, match=r"is no folder here, and as a hub id it cannot be had"):
        sd21.load(tmp_path / "gone", device="cpu")
    with pytest.raises(sd21.CheckpointError, match=r"a revision belongs to a hub id.*leave 'main' out"):
        sd21.load(tmp_path, revision="main", device="cpu")


def test_a_mini_that_is_not_installed_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MINI", tmp_path / "mini")
    with pytest.raises(sd21.CheckpointError, match='"mini" is not part of this installation'):
        sd21.load("mini", device="cpu")
    write_small_pipeline(tmp_path / "mini")
    assert sd21.load("mini", device="cpu").identity["source"] == "mini"
