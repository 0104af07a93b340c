"""The bundle folder: manifest, graphs and tables, checked before anything runs."""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, cast

import numpy as np

from .audio.features import feature_shape
from .engines.request import check_covers, check_request
from .errors import UserError
from .files import read_json, read_json_lines, sha256_file
from .schema import Manifest

SCHEMA = "edgeqlora.bundle/2"
MANIFEST = "manifest.json"

_TEXT = ((str,), "a text")
_FILE = ((str,), "a file name")
_NUMBER = ((int,), "a whole number")
_TOKEN = ((int,), "a token id")
_TOKENS = ((list,), "a list of token ids")
_NUMBERS = ((list,), "a list of whole numbers")
_SWITCH = ((bool,), "true or false")

# What the runner reads, and of which type, in every bundle and by kind: path of keys -> (types, what it must be).
_REQUIRED: Dict[str, Any] = {
    "name": _TEXT,
    "model.vocab_size": _NUMBER,
    "audio.sample_rate_hz": _NUMBER,
    "audio.windows_s": ((list,), "a list of seconds"),
    "features.kind": _TEXT,
    "decoder.kind": _TEXT,
    "decoder.detokenizer": _FILE,
    "files": ((dict,), "an object of name -> sha256 and bytes"),
    "graphs": ((dict,), "an object of name -> file, inputs and outputs"),
}
# What is only shown, or has a default: null and missing are allowed.
_OPTIONAL: Dict[str, Any] = {
    "created_utc": _TEXT,
    "decoder.language": _TEXT,
    "decoder.task": _TEXT,
    "gates": ((list,), "a list of gates"),
    "model.base_model": _TEXT,
    "model.family": _TEXT,
    "normaliser": _TEXT,
    "parents": ((dict,), "an object of name -> sha256"),
    "profile": ((dict,), "an object"),
    "profile.max_batch": _NUMBER,
    "profile.name": _TEXT,
    "profile.threads": _NUMBER,
    "versions": ((dict,), "an object of name -> version"),
}
_GATE = {
    "name": _TEXT,
    "passed": _SWITCH,
    "measured": ((int, float), "a number"),
    "limit": ((int, float), "a number"),
    "detail": _TEXT,
}
_REQUIRED_BY_KIND: Dict[str, Dict[str, Dict[str, Any]]] = {
    "features": {
        "log-mel": {
            "features.n_fft": _NUMBER,
            "features.hop_length": _NUMBER,
            "features.n_mels": _NUMBER,
            "features.mel_filters": _FILE,
        },
        "waveform": {"features.normalise": _SWITCH},
    },
    "decoder": {
        "greedy": {
            "model.n_layers": _NUMBER,
            "model.n_heads": _NUMBER,
            "model.head_dim": _NUMBER,
            "model.max_target_positions": _NUMBER,
            "decoder.prompt_ids": _TOKENS,
            "decoder.eos_id": _TOKEN,
            "decoder.suppress_ids": _TOKENS,
            "decoder.begin_suppress_ids": _TOKENS,
            "decoder.max_new_tokens": ((dict,), "an object of window -> tokens"),
        },
        "ctc": {
            "decoder.blank_id": _TOKEN,
            "decoder.word_delimiter": _TEXT,
            "decoder.uses_mask": _SWITCH,
            "decoder.conv_kernel": _NUMBERS,
            "decoder.conv_stride": _NUMBERS,
        },
    },
}
_GRAPHS = {"greedy": ["encoder", "decoder"], "ctc": ["ctc"]}  # in the order in which they run


class EvalClip(NamedTuple):
    """One clip to measure on."""

    path: str  # audio file
    reference: Optional[str]  # what was said; None: not known
    name: str  # for reports: the path as the manifest writes it


class Bundle(object):
    """An opened bundle.

    folder: its path. manifest: the whole manifest.
    """

    def __init__(self, folder: str, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Any) -> "Bundle":
        """Open a bundle folder and check it: schema, fields, and the SHA-256 of every file.

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
        verify_files(folder, manifest)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def graphs(self) -> List[str]:
        """Names of the graphs, in the order in which they run."""
        return _GRAPHS[self.manifest["decoder"]["kind"]]

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
        """Full path of a graph."""
        return self.path(self.manifest["graphs"][graph]["file"])

    def max_new_tokens(self, window_s: float) -> Optional[int]:
        """Most tokens to generate for a window, the end token included; None for a decoder that has no such limit."""
        limits = self.manifest["decoder"].get("max_new_tokens") or {}
        return {float(window): n_tokens for window, n_tokens in limits.items()}.get(float(window_s))

    def load_mel_filters(self) -> np.ndarray:
        """Mel filters: float32 (n_fft//2 + 1, n_mels)."""
        features = self.manifest["features"]
        path = self.path(features["mel_filters"])
        try:
            filters = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError("{}: the mel filters cannot be read: {}".format(path, error)) from error
        expected = (features["n_fft"] // 2 + 1, features["n_mels"])
        if filters.shape != expected:
            raise UserError(
                "{}: mel filters of shape {}, the manifest needs {}: export the bundle again".format(
                    path, filters.shape, expected
                )
            )
        return filters

    def load_detokenizer(self) -> List[Optional[str]]:
        """Table of token id -> its bytes as a latin-1 string, None for special tokens (of a CTC model: id -> character)."""
        path = self.path(self.manifest["decoder"]["detokenizer"])
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
    _check_fields(manifest, _REQUIRED, name)
    _check_fields(manifest, _OPTIONAL, name, null=True)
    for i, gate in enumerate(manifest.get("gates") or []):
        _check_fields(gate, _GATE, "{}: gates[{}]".format(name, i))
    for part, kinds in sorted(_REQUIRED_BY_KIND.items()):
        kind = manifest[part]["kind"]
        if kind not in kinds:
            raise UserError(
                "{}: field {}.kind is {!r}, this runner knows {}".format(name, part, kind, ", ".join(sorted(kinds)))
            )
        _check_fields(manifest, kinds[kind], name)
    _check_graphs(manifest, name)
    _check_windows(manifest, name)
    if manifest["decoder"]["kind"] == "greedy":
        _check_greedy(manifest, name)
    else:
        _check_ctc(manifest, name)
    if manifest.get("engine_request") is not None:
        check_request(manifest["engine_request"], name, manifest["graphs"])
        for graph, shapes, what in needed_shapes(cast(Manifest, manifest)):
            check_covers(manifest["engine_request"], graph, shapes, what, name)
    _check_files(manifest, name)


def needed_shapes(manifest: Manifest) -> List[Tuple[str, Dict[str, Sequence[int]], str]]:
    """(graph, shapes of inputs, what for) that engines must take: every window, and the longest transcript."""
    needed: List[Tuple[str, Dict[str, Sequence[int]], str]] = []
    decoder, model = manifest["decoder"], manifest["model"]
    graph, name = ("encoder", "mel") if decoder["kind"] == "greedy" else ("ctc", "audio")
    for window_s in manifest["audio"]["windows_s"]:
        shape = (1,) + feature_shape(manifest, window_s)
        needed.append((graph, {name: shape}, "the window of {:g} s".format(window_s)))
    if decoder["kind"] == "greedy" and model["n_layers"]:
        n_past = len(decoder["prompt_ids"]) + max(decoder["max_new_tokens"].values()) - 1
        past = (1, model["n_heads"], n_past, model["head_dim"])
        needed.append(("decoder", {"past_k_0": past}, "the longest transcript"))
    return needed


def verify_files(folder: Any, manifest: Manifest) -> None:
    """Compare every file of the bundle with the manifest: size first, then SHA-256.

    Raises UserError naming the first file that is missing or differs, with expected and found.
    """
    folder = os.fspath(folder)
    for name, entry in sorted(manifest["files"].items()):
        path = os.path.join(folder, *name.split("/"))
        if not os.path.isfile(path):
            raise UserError("{}: this file of the bundle is missing. Copy the whole bundle folder again".format(path))
        found_bytes = os.path.getsize(path)
        if found_bytes != entry["bytes"]:
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


def _check_fields(manifest: Any, required: Dict[str, Any], name: Any, null: bool = False) -> None:
    """null: None and missing are allowed as well."""
    for path, (types, wanted) in sorted(required.items()):
        value: Any = manifest
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and null:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise UserError("{}: field {} is {!r}, needed: {}".format(name, path, value, wanted))


def _check_graphs(manifest: Dict[str, Any], name: Any) -> None:
    wanted = _GRAPHS[manifest["decoder"]["kind"]]
    if sorted(manifest["graphs"]) != sorted(wanted):
        raise UserError("{}: graphs has {}, needed: {}".format(name, sorted(manifest["graphs"]), " and ".join(wanted)))
    for graph in wanted:
        entry = manifest["graphs"][graph]
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise UserError("{}: field graphs.{}.file is missing, needed: a file name".format(name, graph))
        for part in ("inputs", "outputs"):
            names = entry.get(part)
            if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
                raise UserError("{}: field graphs.{}.{} is {!r}, needed: names".format(name, graph, part, names))


def _check_windows(manifest: Any, name: Any) -> None:
    windows_s, rate = manifest["audio"]["windows_s"], manifest["audio"]["sample_rate_hz"]
    if not windows_s or not all(_is_number(w) and 0 < w <= 3600 for w in windows_s):
        raise UserError("{}: audio.windows_s is {!r}, needed: one or more seconds above 0".format(name, windows_s))
    if not 1000 <= rate <= 192000:
        raise UserError("{}: audio.sample_rate_hz is {}, allowed 1000 to 192000".format(name, rate))
    features = manifest["features"]
    if features["kind"] == "log-mel":
        for key in ("n_fft", "hop_length", "n_mels"):
            if not 1 <= features[key] <= 65536:
                raise UserError("{}: features.{} is {}, allowed 1 to 65536".format(name, key, features[key]))


def _check_tokens(manifest: Any, fields: Sequence[str], name: Any) -> None:
    vocab_size, decoder = manifest["model"]["vocab_size"], manifest["decoder"]
    for field in fields:
        for token in decoder[field] if isinstance(decoder[field], list) else [decoder[field]]:
            if not _is_number(token) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise UserError(
                    "{}: decoder.{} holds {!r}, allowed: token ids 0 to {}".format(name, field, token, vocab_size - 1)
                )


def _check_greedy(manifest: Any, name: Any) -> None:
    _check_tokens(manifest, ("prompt_ids", "eos_id", "suppress_ids", "begin_suppress_ids"), name)
    decoder, model = manifest["decoder"], manifest["model"]
    if not decoder["prompt_ids"]:
        raise UserError("{}: decoder.prompt_ids is empty, at least the start token is needed".format(name))
    for key in ("n_layers", "n_heads", "head_dim"):
        if not 1 <= model[key] <= 65536:
            raise UserError("{}: model.{} is {}, allowed 1 to 65536".format(name, key, model[key]))
    limit = model["max_target_positions"] - len(decoder["prompt_ids"])
    tokens = {}
    for window, n_tokens in decoder["max_new_tokens"].items():
        try:
            tokens[float(window)] = n_tokens
        except ValueError:
            raise UserError(
                "{}: decoder.max_new_tokens has the window {!r}, needed: seconds".format(name, window)
            ) from None
    for window_s in list(manifest["audio"]["windows_s"]) + sorted(tokens):
        n_tokens = tokens.get(float(window_s))
        if not isinstance(n_tokens, int) or isinstance(n_tokens, bool) or not 1 <= n_tokens <= limit:
            raise UserError(
                "{}: decoder.max_new_tokens for the window of {} s is {!r}, allowed 1 to {}".format(
                    name, window_s, n_tokens, limit
                )
            )


def _check_ctc(manifest: Any, name: Any) -> None:
    _check_tokens(manifest, ("blank_id",), name)
    decoder = manifest["decoder"]
    for field in ("conv_kernel", "conv_stride"):
        if not decoder[field] or not all(isinstance(n, int) and _is_number(n) and n >= 1 for n in decoder[field]):
            raise UserError(
                "{}: decoder.{} is {!r}, needed: whole numbers of at least 1".format(name, field, decoder[field])
            )
    if len(decoder["conv_kernel"]) != len(decoder["conv_stride"]):
        raise UserError(
            "{}: decoder.conv_kernel and conv_stride differ in length, needed: one each a layer".format(name)
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_files(manifest: Any, name: Any) -> None:
    for file_name, entry in manifest["files"].items():
        parts = file_name.split("/")
        if os.path.isabs(file_name) or ".." in parts or "\\" in file_name:
            raise UserError("{}: files names {!r}, allowed: paths inside the bundle".format(name, file_name))
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise UserError("{}: files entry {!r} has no sha256".format(name, file_name))
        if not _is_number(entry.get("bytes")):
            raise UserError("{}: files entry {!r} has no size in bytes".format(name, file_name))
    try:
        named = _named_files(manifest)
    except UserError as error:
        raise UserError("{}: {}".format(name, error)) from None
    for file_name, user in named:
        if file_name not in manifest["files"]:
            raise UserError("{}: {} names {!r}, which is not listed under files".format(name, user, file_name))


def _named_files(manifest: Manifest) -> List[Tuple[str, str]]:
    named = [(manifest["decoder"]["detokenizer"], "decoder.detokenizer")]
    if "mel_filters" in manifest["features"]:
        named.append((manifest["features"]["mel_filters"], "features.mel_filters"))
    named += [(entry["file"], "graphs.{}.file".format(graph)) for graph, entry in sorted(manifest["graphs"].items())]
    evaluation = manifest.get("eval")
    if evaluation:
        file_name = evaluation.get("manifest") if isinstance(evaluation, dict) else None
        if not isinstance(file_name, str) or not _is_number(evaluation.get("n_clips")):
            raise UserError(
                "eval is {!r}, needed: an object with manifest (a file name) and n_clips".format(evaluation)
            )
        named.append((file_name, "eval.manifest"))
    return named
