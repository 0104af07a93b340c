"""The files of a model or adapter folder: whole, of the right kind, and those that a card recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeqlora.card import Card, folder_sha256
from edgeqlora.errors import UserError
from edgeqlora.hub_access import hub_commit, is_hub_name
from edgeqlora_jetson.audio.sniff import look_at
from edgeqlora_jetson.files import read_json, sha256_file

WEIGHTS = (".safetensors", ".bin")
_TEXTS = ("merges.txt", "vocab.txt")


def check_files(folder: Path) -> None:
    """Raise UserError naming the first file of a model or adapter folder that no library could read.

    Found are Git LFS pointers, web pages saved in a file's place, empty files, weights that are cut short, JSON that is
    none, and shards that are not there.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix in (*WEIGHTS, ".json", ".model") or path.name in _TEXTS):
            _check_file(path)
    for index in sorted(folder.glob("*.index.json")):
        shards = set(read_json(index, "list of shards").get("weight_map", {}).values())
        if absent := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise UserError(
                f"{folder}: {len(absent)} of {len(shards)} shards of {index.name} are not there, first {absent[0]}: "
                "copy or download the folder again"
            )


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    what = look_at(head).description
    if not head:
        what = "an empty file"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "a web page, such as an error message saved in the file's place"
    elif path.suffix == ".safetensors" and "Git LFS" not in what:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt"):
                return
        except SafetensorError as error:
            raise UserError(
                f"{path}: these weights are damaged or cut short ({error}): copy or download the file again"
            ) from error
    elif "Git LFS" not in what:
        if path.suffix == ".json":
            read_json(path, "file")
        return
    raise UserError(f"{path} is {what}" + ("" if "Git LFS" in what else ": copy or download it again"))


def base_record(source: str) -> dict[str, str]:
    """What a card records of a base model: sha256 of a folder's files, or the commit of a hub model.

    Call after the model's config was loaded: the commit is that of the cache.
    """
    return {"commit": hub_commit(source)} if is_hub_name(source) else folder_sha256(Path(source))


def verify_base(base: str, card: Card) -> None:
    """The base model must be the one that the adapter was trained on: other weights ruin it silently (peft#2115)."""
    recorded: Any = (card.get("parents") or {}).get("base_model")
    if not isinstance(recorded, dict):
        return
    trained_on = f"is not the base model that the adapter was trained on ({card.get('base_model')}"
    advice = "pass --base-model with the right one"
    if is_hub_name(base):
        now = base_record(base)
        if "commit" in recorded and now != recorded:
            commit = recorded["commit"]
            raise UserError(
                f"{base} at commit {now['commit'][:12]} {trained_on} at commit {commit[:12]}): download that one with "
                f"hf download {base} --revision {commit} --local-dir base, then {advice.replace('the right one', 'base')}"
            )
        return
    if "commit" in recorded:
        return  # another kind of source: nothing to compare it by
    found = folder_sha256(Path(base))
    for name, digest in recorded.items():
        if found.get(name) != digest:
            have = f"sha256 {found[name][:12]}..." if name in found else "not there"
            raise UserError(f"{base}/{name} {trained_on}: {have}, trained on {digest[:12]}...): {advice}")
    if added := [name for name in found if name.endswith(WEIGHTS) and name not in recorded]:
        raise UserError(f"{base}/{added[0]} {trained_on}: that one had no such file): {advice}")


def verify_weights(folder: Path, card: Card) -> None:
    """The weights must be those that the folder's own card recorded when they were written."""
    for name, digest in (card.get("weights") or {}).items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            raise UserError(
                f"{path} is not what {folder / 'card.json'} recorded ({'another sha256' if path.is_file() else 'not there'}): "
                "the file was changed, or a copy broke off; copy the folder again, or make it again"
            )
