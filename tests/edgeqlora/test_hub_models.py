"""A model of the hub's cache: trained on, merged and exported by its name, and known again by its commit."""

import json
import shutil
from pathlib import Path

import pytest

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def hub(tmp_path, tiny_model, monkeypatch) -> Path:
    """A cache with owner/tiny at the first of two commits, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "models--owner--tiny"
    for commit in COMMITS:
        shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return repository


def test_an_adapter_knows_its_hub_base_by_the_commit(hub, clips, command):
    flags = ["--window-s", 1, "--steps", 2, "--batch-size", 2, "--limit", 4, "--cache", "none"]
    code, said = command("train", "-m", "owner/tiny", "--train", clips, "-o", "adapter", *flags)
    assert code == 0, said
    card = json.loads(Path("adapter/card.json").read_text())
    assert card["parents"]["base_model"] == {"commit": COMMITS[0]}
    code, said = command("merge", "adapter", "-o", "merged", "--candidate", "original")
    assert code == 0, said
    (hub / "refs" / "main").write_text(COMMITS[1])
    for arguments in (
        ("merge", "adapter", "-o", "again", "--candidate", "original"),
        ("evaluate", "adapter", "-d", clips),
    ):
        code, said = command(*arguments)
        assert code == 2
        assert f"owner/tiny at commit {'b' * 12} is not the base model that the adapter was trained on" in said
        assert f"--revision {COMMITS[0]}" in said


def test_a_hub_name_is_exported_and_an_adapter_is_not(hub, clips, command, tmp_path):
    flags = ["-d", clips, "--window-s", 1, "--eval-clips", 1, "-o", "bundle"]
    code, said = command("export", "owner/tiny", *flags)
    assert code == 0, said
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    assert (manifest["name"], manifest["model"]["base_model"]) == ("tiny", "owner/tiny")
    code, said = command("export", "owner/nothing", *flags, "--overwrite")
    assert (code, "neither a folder here nor in the hub's cache" in said) == (2, True), said
    Path("by-peft").mkdir()
    Path("by-peft/adapter_config.json").write_text("{}")
    code, said = command("export", "by-peft", *flags, "--overwrite")
    assert (code, "merge it first (edgeqlora merge by-peft -o merged)" in said) == (2, True), said
