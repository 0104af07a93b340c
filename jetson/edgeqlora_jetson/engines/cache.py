"""Engines built on this machine, found again by everything that a TensorRT engine depends on.

An engine holds for one TensorRT build, one GPU (and the processors of it that the power mode leaves on), one graph and
one set of shapes; used elsewhere it fails or crashes. So its name is a hash of all of these, and the record beside it
says them in words, for the message when nothing fits.
"""

import hashlib
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional

from ..errors import UserError
from ..files import read_json, sha256_file, user_cache_folder, write_json
from ..pyz import command_name, find_pyz
from ..screen import command_line
from .request import choose_precision

SCHEMA = "edgeqlora.engine/1"
_RECORD = ".json"

# Parts of a key that a message compares, with their names in words.
_WORDS = (
    ("tensorrt", "TensorRT"),
    ("gpu", "GPU"),
    ("compute_capability", "compute capability"),
    ("n_sms", "streaming multiprocessors"),
    ("power_mode", "power mode"),
    ("onnx_sha256", "graph"),
    ("optimization_profiles", "shapes asked for"),
    ("precision", "precision"),
)


class Place(NamedTuple):
    """Where an engine is built and run: what it depends on beside the bundle."""

    tensorrt: str  # full version, such as "8.2.1.8"
    gpu: str
    compute_capability: str
    n_sms: int
    power_mode: Optional[str]  # by name; None: not a Jetson, or it does not say


def read_place(trt: Any, cuda: Any, root: str = "/") -> Place:
    """What this machine is for an engine. trt: TensorRT's package. cuda: an opened Cudart."""
    gpu = cuda.gpu()
    return Place(str(trt.__version__), gpu.name, gpu.compute_capability, gpu.n_sms, read_power_mode(root))


def read_power_mode(root: str = "/") -> Optional[str]:
    """Name of the nvpmodel mode in force; None where there is none."""
    from ..board.detect import detect_board

    return detect_board(root=root).power_mode


def default_cache_dir() -> str:
    """Folder of the engines: $XDG_CACHE_HOME/edgeqlora/engines, else ~/.cache/edgeqlora/engines."""
    return user_cache_folder("engines")


def engine_key(bundle: Any, graph: str, place: Place, precision: str) -> Dict[str, Any]:
    """Everything that the engine of a graph depends on, as plain values.

    The workspace cap is not part of it: it decides which kernels may be chosen, not whether the engine runs.
    """
    key: Dict[str, Any] = dict(place._asdict())
    key.update(
        graph=graph,
        onnx_sha256=graph_hashes(bundle.manifest, graph),
        optimization_profiles=bundle.manifest["engine_request"]["graphs"][graph]["optimization_profiles"],
        precision=precision,
    )
    return key


def graph_hashes(manifest: Dict[str, Any], graph: str) -> Dict[str, str]:
    """sha256 of a graph's files, by name: the graph, and the weights beside one above 2 GB."""
    file_name = manifest["graphs"][graph]["file"]
    return {
        name: entry["sha256"] for name, entry in manifest["files"].items() if name in (file_name, file_name + ".data")
    }


def key_sha256(key: Dict[str, Any]) -> str:
    """Hash of a key: 64 hex digits, the same on every machine."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


def engine_path(cache_dir: str, key: Dict[str, Any]) -> str:
    """Where the engine of a key lies; its record has ".json" after it."""
    return os.path.join(cache_dir, "{}-{}-{}.engine".format(key["graph"], key["precision"], key_sha256(key)[:24]))


def write_record(cache_dir: str, key: Dict[str, Any], facts: Dict[str, Any]) -> Dict[str, Any]:
    """Write the record of an engine that lies at engine_path: from now on it is found. Returns the record."""
    path = engine_path(cache_dir, key)
    record = dict(facts, schema=SCHEMA, key=key, sha256=sha256_file(path), bytes=os.path.getsize(path))
    write_json(path + _RECORD, record)
    return dict(record, path=path)


def look_up(cache_dir: str, key: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """The record of the engine of this key with its "path", or None; the engine itself is not read."""
    path = engine_path(cache_dir, key)
    if not (os.path.isfile(path) and os.path.isfile(path + _RECORD)):
        return None
    record = _read_record(path + _RECORD)
    # The file's name is a shortened hash: the key inside decides.
    return dict(record, path=path) if record is not None and record["key"] == key else None


def find_engine(
    bundle: Any, graph: str, cache_dir: str, place: Place, precision: Optional[str] = None
) -> Dict[str, Any]:
    """The record of an engine for this bundle and place.

    precision: the one asked for at the build; None: the first of the bundle's preferences that was built.
    Raises UserError that says what differs in the engines there are, and the command that builds the right one.
    """
    request = bundle.manifest["engine_request"]
    wanted = [choose_precision(request, precision)] if precision else list(request["precisions"])
    keys = [engine_key(bundle, graph, place, name) for name in wanted]
    for key in keys:
        record = look_up(cache_dir, key)
        if record is not None:
            return record
    reason = explain_missing(keys[0], list_records(cache_dir))
    raise UserError(
        "no {} engine for this bundle in {}: {}. Build it (minutes, once): {}".format(
            graph, cache_dir, reason, build_command(bundle, precision, cache_dir)
        )
    )


def read_engine(record: Dict[str, Any]) -> bytes:
    """The engine of a record. Raises UserError when it was damaged."""
    try:
        with open(record["path"], "rb") as file:
            plan = file.read()
    except OSError as error:
        raise UserError(
            "{}: this engine cannot be read: {}. Build it again with --force".format(record["path"], error.strerror)
        ) from error
    found = hashlib.sha256(plan).hexdigest()
    if found != record["sha256"]:
        raise UserError(
            "{}: expected sha256 {}, found {} ({} bytes): the engine was damaged. Build it again with --force".format(
                record["path"], record["sha256"], found, len(plan)
            )
        )
    return plan


def list_records(cache_dir: str) -> List[Dict[str, Any]]:
    """Records of all engines in a folder that can be read, newest last."""
    try:
        names = sorted(os.listdir(cache_dir))
    except OSError:
        return []
    paths = [os.path.join(cache_dir, name) for name in names if name.endswith(".engine" + _RECORD)]
    records = [record for record in map(_read_record, paths) if record is not None]
    return sorted(records, key=lambda record: str(record.get("created_utc")))


def explain_missing(key: Dict[str, Any], records: List[Dict[str, Any]]) -> str:
    """Why none of these engines is the one of the key: what the nearest of them differs in."""
    others = [record["key"] for record in records if record["key"].get("graph") == key["graph"]]
    if not others:
        return "none was built yet"

    def differences(other: Dict[str, Any]) -> List[str]:
        return [part for part, _ in _WORDS if other.get(part) != key[part]]

    nearest = min(reversed(others), key=lambda other: len(differences(other)))
    words = dict(_WORDS)
    parts = [_difference(words[part], nearest.get(part), key[part]) for part in differences(nearest)]
    return "the nearest of {} was built for {}".format(len(others), "; ".join(parts) or "the same, but is damaged")


def build_command(bundle: Any, precision: Optional[str] = None, cache_dir: Optional[str] = None) -> str:
    """The command that builds a bundle's engines, to be pasted."""
    pyz = find_pyz()
    is_inside = pyz is not None and os.path.realpath(os.path.dirname(pyz)) == os.path.realpath(bundle.folder)
    words = ["build"] + ([] if is_inside else [bundle.folder])
    words += ["--precision", precision] if precision else []
    words += ["--cache", cache_dir] if cache_dir not in (None, default_cache_dir()) else []
    return "{} {}".format(command_name(), command_line(*words))


def _difference(word: str, built: Any, here: Any) -> str:
    if isinstance(here, (dict, list)):  # hashes and shapes say nothing to a reader
        return "another {}".format(word)
    return "{} {}, here it is {}".format(word, built or "unknown", here or "unknown")


def _read_record(path: str) -> Optional[Dict[str, Any]]:
    """A record, or None for a file that is none: an engine without a good record is as good as not there."""
    try:
        record = read_json(path, "engine record")
    except UserError:
        return None
    good = isinstance(record, dict) and record.get("schema") == SCHEMA and isinstance(record.get("key"), dict)
    return record if good and isinstance(record.get("sha256"), str) else None
