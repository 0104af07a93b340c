"""The bundle folder: manifest, graphs and tables, checked before anything runs."""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from .engines.request import check_covers, check_request
from .errors import UserError
from .files import read_json, read_json_lines, sha256_file

SCHEMA = "edgeqlora.bundle/1"
MANIFEST = "manifest.json"

# What the runner reads, and of which type: (path of keys, types, description of the types).
_REQUIRED = (
    (("name",), (str,), "a text"),
    (("model", "n_layers"), (int,), "a whole number"),
    (("model", "n_heads"), (int,), "a whole number"),
    (("model", "head_dim"), (int,), "a whole number"),
    (("model", "vocab_size"), (int,), "a whole number"),
    (("model", "max_target_positions"), (int,), "a whole number"),
    (("audio", "sample_rate_hz"), (int,), "a whole number"),
    (("audio", "n_fft"), (int,), "a whole number"),
    (("audio", "hop_length"), (int,), "a whole number"),
    (("audio", "n_mels"), (int,), "a whole number"),
    (("audio", "windows_s"), (list,), "a list of seconds"),
    (("audio", "mel_filters"), (str,), "a file name"),
    (("decoding", "prompt_ids"), (list,), "a list of token ids"),
    (("decoding", "eos_id"), (int,), "a token id"),
    (("decoding", "suppress_ids"), (list,), "a list of token ids"),
    (("decoding", "begin_suppress_ids"), (list,), "a list of token ids"),
    (("decoding", "max_new_tokens"), (dict,), "an object of window -> tokens"),
    (("decoding", "detokenizer"), (str,), "a file name"),
    (("graphs", "encoder", "file"), (str,), "a file name"),
    (("graphs", "decoder", "file"), (str,), "a file name"),
    (("files",), (dict,), "an object of name -> sha256 and bytes"),
)


class EvalClip(NamedTuple):
    """One clip to measure on."""

    path: str  # audio file
    reference: Optional[str]  # what was said; None: not known
    name: str  # for reports: the path as the manifest writes it


class Bundle(object):
    """An opened bundle.

    folder: its path. manifest: the whole manifest, a dict (schema "edgeqlora.bundle/1").
    """

    def __init__(self, folder: str, manifest: Dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Any, verify: bool = True) -> "Bundle":
        """Open a bundle folder and check it: schema, fields, and with `verify` the SHA-256 of every file.

        Raises UserError when it is no bundle, of another schema, or a file is missing or changed (names the file).
        """
        folder = os.fspath(folder)
        if not os.path.isdir(folder):
            raise UserError("{}: there is no such bundle folder".format(folder))
        path = os.path.join(folder, MANIFEST)
        if not os.path.isfile(path):
            raise UserError(
                "{}: not a bundle, there is no {} in it. Make one on the workstation with: edgeqlora export".format(
                    folder, MANIFEST
                )
            )
        manifest = read_json(path, "bundle manifest")
        check_manifest(manifest, path)
        if verify:
            verify_files(folder, manifest)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def windows_s(self) -> List[float]:
        """Audio seconds the encoder can see, ascending."""
        return sorted(float(window_s) for window_s in self.manifest["audio"]["windows_s"])

    @property
    def sample_rate_hz(self) -> int:
        return self.manifest["audio"]["sample_rate_hz"]

    @property
    def manifest_sha256(self) -> str:
        """Identifies the bundle: the manifest holds the hashes of all other files."""
        return sha256_file(self.path(MANIFEST))

    def path(self, name: str) -> str:
        """Full path of a file of the bundle."""
        return os.path.join(self.folder, *name.split("/"))

    def graph_path(self, graph: str) -> str:
        """Full path of the "encoder" or "decoder" graph."""
        return self.path(self.manifest["graphs"][graph]["file"])

    def max_new_tokens(self, window_s: float) -> int:
        """Most tokens to generate for a window, the end token included."""
        return _window_tokens(self.manifest)[float(window_s)]

    def load_mel_filters(self) -> np.ndarray:
        """Mel filters: float32 (n_fft//2 + 1, n_mels)."""
        audio = self.manifest["audio"]
        path = self.path(audio["mel_filters"])
        try:
            filters = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError("{}: the mel filters cannot be read: {}".format(path, error)) from error
        expected = (audio["n_fft"] // 2 + 1, audio["n_mels"])
        if filters.shape != expected:
            raise UserError(
                "{}: mel filters of shape {}, the manifest needs {}: export the bundle again".format(
                    path, filters.shape, expected
                )
            )
        return filters

    def load_detokenizer(self) -> List[Optional[str]]:
        """Table of token id -> its bytes as a latin-1 string, None for special tokens."""
        path = self.path(self.manifest["decoding"]["detokenizer"])
        table = read_json(path, "detokenizer table")
        if not isinstance(table, list):
            raise UserError("{}: a detokenizer table is a JSON list, this is {}".format(path, type(table).__name__))
        return table

    def read_eval_clips(self) -> List[EvalClip]:
        """The evaluation clips that travel with the bundle. Raises UserError when it has none."""
        evaluation = self.manifest.get("eval")
        if not evaluation:
            raise UserError(
                "{}: this bundle carries no evaluation clips. Give some with --manifest clips.jsonl "
                '(one {{"audio": file, "text": what is said}} a line)'.format(self.folder)
            )
        return read_clips(self.path(evaluation["manifest"]))


def read_clips(path: Any) -> List[EvalClip]:
    """Read a manifest.jsonl: one {"audio": path relative to the manifest, "text": reference} a line.

    `text` may be missing or null. Raises UserError with the line number for a wrong row, or when there is no row.
    """
    folder = os.path.dirname(os.path.abspath(os.fspath(path)))
    clips = []
    for number, row in read_json_lines(path, "manifest"):
        audio, text = row.get("audio"), row.get("text")
        if not isinstance(audio, str) or not audio:
            raise UserError(
                '{}, line {}: field "audio" is {}, needed: the path of an audio file'.format(
                    path, number, "missing" if "audio" not in row else repr(audio)
                )
            )
        if text is not None and not isinstance(text, str):
            raise UserError('{}, line {}: field "text" is {!r}, needed: a text or null'.format(path, number, text))
        clips.append(EvalClip(os.path.join(folder, audio), text, audio))
    if not clips:
        raise UserError("{}: no rows in this manifest, at least one is needed".format(path))
    return clips


def check_manifest(manifest: Any, name: Any) -> None:
    """Check schema and fields of a manifest. Raises UserError naming `name`, the field, and what it should be."""
    if not isinstance(manifest, dict):
        raise UserError("{}: a bundle manifest is a JSON object, this is {}".format(name, type(manifest).__name__))
    schema = manifest.get("schema")
    if schema != SCHEMA:
        raise UserError(
            "{}: schema {!r}, this runner reads {!r}. Export the bundle again with the edgeqlora of "
            "this runner, or use the runner inside the bundle".format(name, schema, SCHEMA)
        )
    for keys, types, wanted in _REQUIRED:
        value: Any = manifest
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, types) or isinstance(value, bool):
            raise UserError("{}: field {} is {!r}, needed: {}".format(name, ".".join(keys), value, wanted))
    _check_decoding(manifest, name)
    if manifest.get("engine_request") is not None:
        check_request(manifest["engine_request"], name, manifest["model"])
        check_covers(manifest["engine_request"], manifest, name)
    _check_files(manifest, name)


def verify_files(folder: Any, manifest: Dict[str, Any]) -> None:
    """Compare every file of the bundle with the manifest: size first, then SHA-256.

    Raises UserError naming the first file that is missing or differs, with expected and found.
    """
    folder = os.fspath(folder)
    for name, entry in sorted(manifest["files"].items()):
        path = os.path.join(folder, *name.split("/"))
        if not os.path.isfile(path):
            raise UserError("{}: this file of the bundle is missing. Copy the whole bundle folder again".format(path))
        found_bytes = os.path.getsize(path)
        if "bytes" in entry and found_bytes != entry["bytes"]:
            raise UserError(
                "{}: expected {} bytes, found {}: damaged or half copied. Copy the bundle again".format(
                    path, entry["bytes"], found_bytes
                )
            )
        found = sha256_file(path)
        if found != entry["sha256"]:
            raise UserError(
                "{}: expected sha256 {}, found {}: the file was changed or damaged. Copy the bundle again".format(
                    path, entry["sha256"], found
                )
            )


def _check_decoding(manifest: Dict[str, Any], name: Any) -> None:
    vocab_size = manifest["model"]["vocab_size"]
    decoding = manifest["decoding"]
    for field in ("prompt_ids", "suppress_ids", "begin_suppress_ids"):
        for token in decoding[field] + [decoding["eos_id"]]:
            if not isinstance(token, int) or not 0 <= token < vocab_size:
                raise UserError(
                    "{}: decoding.{} or eos_id holds {!r}, allowed: token ids 0 to {}".format(
                        name, field, token, vocab_size - 1
                    )
                )
    if not decoding["prompt_ids"]:
        raise UserError("{}: decoding.prompt_ids is empty, at least the start token is needed".format(name))
    windows_s = manifest["audio"]["windows_s"]
    if not windows_s or not all(isinstance(w, (int, float)) and w > 0 for w in windows_s):
        raise UserError("{}: audio.windows_s is {!r}, needed: one or more seconds above 0".format(name, windows_s))
    tokens = _window_tokens(manifest)
    limit = manifest["model"]["max_target_positions"] - len(decoding["prompt_ids"])
    for window_s in windows_s:
        if not 1 <= tokens.get(float(window_s), 0) <= limit:
            raise UserError(
                "{}: decoding.max_new_tokens for the window of {} s is {}, allowed 1 to {}".format(
                    name, window_s, tokens.get(float(window_s)), limit
                )
            )


def _window_tokens(manifest: Dict[str, Any]) -> Dict[float, int]:
    return {float(window_s): tokens for window_s, tokens in manifest["decoding"]["max_new_tokens"].items()}


def _check_files(manifest: Dict[str, Any], name: Any) -> None:
    for file_name, entry in manifest["files"].items():
        parts = file_name.split("/")
        if os.path.isabs(file_name) or ".." in parts or "\\" in file_name:
            raise UserError("{}: files names {!r}, allowed: paths inside the bundle".format(name, file_name))
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise UserError("{}: files entry {!r} has no sha256".format(name, file_name))
    for file_name, user in _named_files(manifest):
        if file_name not in manifest["files"]:
            raise UserError("{}: {} names {!r}, which is not listed under files".format(name, user, file_name))


def _named_files(manifest: Dict[str, Any]) -> List[Tuple[str, str]]:
    named = [
        (manifest["audio"]["mel_filters"], "audio.mel_filters"),
        (manifest["decoding"]["detokenizer"], "decoding.detokenizer"),
        (manifest["graphs"]["encoder"]["file"], "graphs.encoder.file"),
        (manifest["graphs"]["decoder"]["file"], "graphs.decoder.file"),
    ]
    evaluation = manifest.get("eval")
    if evaluation:
        named.append((evaluation.get("manifest"), "eval.manifest"))
    return named
