"""The manifest of a bundle: what must be in it, in every bundle and by kind, checked before anything runs."""

import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, cast

from ..audio.features import feature_shape
from ..engines.request import check_covers, check_request
from ..errors import UserError
from ..schema import Manifest

SCHEMA = "edgeqlora.bundle/2"

Needed = List[Tuple[str, Dict[str, Sequence[int]], str]]
"""(graph, shapes of inputs, what for) that engines must take."""

_LOW = ("int8", "fp16", "bf16")

_TEXT = ((str,), "a text")
_TEXTS = ((list,), "a list of texts")
_FILE = ((str,), "a file name")
_NUMBER = ((int,), "a whole number")
_TOKEN = ((int,), "a token id")
_TOKENS = ((list,), "a list of token ids")
_NUMBERS = ((list,), "a list of whole numbers")
_SWITCH = ((bool,), "true or false")

# What the runner reads, and of which type, in every bundle: path of keys -> (types, what it must be).
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
    "audio.cut_in_training": _SWITCH,
    "audio.tuned_windows_s": ((list,), "a list of seconds"),
    "audio.margin": ((dict,), "an object with margin_s and least_s"),
    "audio.margin.margin_s": ((int, float), "a number of seconds"),
    "created_utc": _TEXT,
    "decoder.language": _TEXT,
    "decoder.n_candidates": _NUMBER,
    "decoder.task": _TEXT,
    "gates": ((list,), "a list of gates"),
    "model.base_model": _TEXT,
    "model.family": _TEXT,
    "normaliser": _TEXT,
    "parents": ((dict,), "an object of name -> sha256"),
    "precision": ((dict,), "an object with the parts of each precision and tried"),
    "precision.int8": _TEXTS,
    "precision.fp16": _TEXTS,
    "precision.bf16": _TEXTS,
    "precision.fp32": _TEXTS,
    "precision.tried": ((list,), "a list of mixes"),
    "profile": ((dict,), "an object"),
    "profile.compatible": _TEXTS,
    "profile.energy_scope": _TEXT,
    "profile.max_batch": _NUMBER,
    "profile.memory_budget_mib": ((int, float), "a number"),
    "profile.models": _TEXTS,
    "profile.name": _TEXT,
    "profile.optional_rails": _TEXTS,
    "profile.part_numbers": _TEXTS,
    "profile.rails": _TEXTS,
    "profile.sum_rails": _TEXTS,
    "profile.tensorrt": _TEXT,
    "profile.threads": _NUMBER,
    "profile.title": _TEXT,
    "profile.total_rail": _TEXT,
    "profile.unsourced": _TEXTS,
    "versions": ((dict,), "an object of name -> version"),
}
_GATE = {
    "name": _TEXT,
    "passed": _SWITCH,
    "measured": ((int, float), "a number"),
    "limit": ((int, float), "a number"),
    "detail": _TEXT,
}
_FEATURES: Dict[str, Dict[str, Any]] = {
    "log-mel": {
        "features.n_fft": _NUMBER,
        "features.hop_length": _NUMBER,
        "features.n_mels": _NUMBER,
        "features.mel_filters": _FILE,
    },
    "waveform": {"features.normalise": _SWITCH},
}


class DecoderKind(NamedTuple):
    """What one decoder.kind needs of a manifest."""

    graphs: List[str]  # in the order in which they run
    required: Dict[str, Any]
    check: Callable[[Any, Any], None]
    needed_shapes: Callable[[Manifest], Needed]


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
    for part, kinds in (("features", _FEATURES), ("decoder", DECODERS)):
        if manifest[part]["kind"] not in kinds:
            raise UserError(
                "{}: field {}.kind is {!r}, this runner knows {}".format(
                    name, part, manifest[part]["kind"], ", ".join(sorted(kinds))
                )
            )
    decoder = DECODERS[manifest["decoder"]["kind"]]
    _check_fields(manifest, _FEATURES[manifest["features"]["kind"]], name)
    _check_fields(manifest, decoder.required, name)
    _check_graphs(manifest, decoder.graphs, name)
    _check_audio(manifest, name)
    decoder.check(manifest, name)
    _check_precision(manifest, name)
    if manifest.get("engine_request") is not None:
        check_request(manifest["engine_request"], name, manifest["graphs"])
        for graph, shapes, what in decoder.needed_shapes(cast(Manifest, manifest)):
            check_covers(manifest["engine_request"], graph, shapes, what, name)
    _check_files(manifest, name)


def _check_fields(manifest: Any, required: Dict[str, Any], name: Any, null: bool = False) -> None:
    """null: None and missing are allowed as well."""
    for path, (types, wanted) in sorted(required.items()):
        value: Any = manifest
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and null:
            continue
        is_wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if (types, wanted) == _TEXTS:
            is_wrong = is_wrong or not all(isinstance(item, str) for item in value)
        if is_wrong or (isinstance(value, int) and abs(value) >= 2**63):
            raise UserError("{}: field {} is {!r}, needed: {}".format(name, path, value, wanted))


def _check_graphs(manifest: Any, wanted: Sequence[str], name: Any) -> None:
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


def _check_audio(manifest: Any, name: Any) -> None:
    audio, rate = manifest["audio"], manifest["audio"]["sample_rate_hz"]
    for field in ("windows_s", "tuned_windows_s"):
        seconds = audio.get(field, audio["windows_s"])
        if not seconds or not all(_is_number(w) and 0 < w <= 3600 for w in seconds):
            raise UserError(
                "{}: audio.{} is {!r}, needed: one or more seconds above 0, at most 3600".format(name, field, seconds)
            )
    margin = audio.get("margin") or {}
    if margin.get("margin_s") is not None:
        for field in ("margin_s", "least_s"):
            if not _is_number(margin.get(field)) or not 0 < margin[field] <= 3600:
                raise UserError(
                    "{}: audio.margin.{} is {!r}, allowed: seconds above 0, at most 3600".format(
                        name, field, margin.get(field)
                    )
                )
    if not 1000 <= rate <= 192000:
        raise UserError("{}: audio.sample_rate_hz is {}, allowed 1000 to 192000".format(name, rate))
    features, profile = manifest["features"], manifest.get("profile") or {}
    sizes = [key for key in ("n_fft", "hop_length", "n_mels") if "features." + key in _FEATURES[features["kind"]]]
    for part, values, keys in (("features", features, sizes), ("profile", profile, ("max_batch", "threads"))):
        for key in keys:
            if values.get(key) is not None and not 1 <= values[key] <= 65536:
                raise UserError("{}: {}.{} is {}, allowed 1 to 65536".format(name, part, key, values[key]))


def _check_precision(manifest: Any, name: Any) -> None:
    """What is lower than fp32 comes with the row of the mix that ships."""
    found = manifest.get("precision") or {}
    if not any(found.get(name) for name in _LOW):
        return
    rows = [row for row in found.get("tried") or [] if isinstance(row, dict) and _is_mix(row, found)]
    if (
        not rows
        or not _is_number(rows[0].get("increase"))
        or not _is_number(found.get("n_clips"))
        or found.get("fp32") is None
    ):
        raise UserError(
            "{}: precision needs fp32, n_clips, and a row of tried with the same int8, fp16 and bf16 and its increase: export the bundle "
            "again".format(name)
        )


def _is_mix(row: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a row of `tried` is the mix that ships."""
    return all((row.get(name) or []) == (found.get(name) or []) for name in _LOW)


def describe_mix(manifest: Manifest) -> Optional[str]:
    """How many parts of the graphs have which precision, and what that cost at the export; None: all are fp32."""
    found: Any = manifest.get("precision") or {}
    if not any(found.get(name) for name in _LOW):
        return None
    parts = [(name, found.get(name)) for name in _LOW + ("fp32",)]
    row = next(row for row in found["tried"] if _is_mix(row, found))
    on_board = bool(manifest.get("engine_request"))
    return "{}; error rate {:+.2f} points over fp32 on {} clips of the export{}".format(
        ", ".join("{} {}{}".format(len(names), name, _inside(name, on_board)) for name, names in parts if names),
        row["increase"],
        found["n_clips"],
        ", computed with the same roundings there" if on_board else "",
    )


def _inside(name: str, on_board: bool) -> str:
    """For TensorRT the linear layers of a part can be int8, and the part is fp16."""
    return " inside of fp16" if on_board and name == "int8" else ""


def _check_tokens(manifest: Any, fields: Sequence[str], name: Any) -> None:
    vocab_size, decoder = manifest["model"]["vocab_size"], manifest["decoder"]
    for field in fields:
        for token in decoder[field] if isinstance(decoder[field], list) else [decoder[field]]:
            if not _is_number(token) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise UserError(
                    "{}: decoder.{} holds {!r}, allowed: token ids 0 to {}".format(name, field, token, vocab_size - 1)
                )


def _check_greedy(manifest: Any, name: Any) -> None:
    _check_tokens(manifest, ("prompt_ids", "eos_ids", "suppress_ids", "begin_suppress_ids"), name)
    decoder, model = manifest["decoder"], manifest["model"]
    for field, token in (("prompt_ids", "the start token"), ("eos_ids", "one end token")):
        if not decoder[field]:
            raise UserError("{}: decoder.{} is empty, at least {} is needed".format(name, field, token))
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


def _check_buffered(manifest: Any, name: Any) -> None:
    """No engine is asked for: the graphs take buffers of any length, made for onnxruntime. n_candidates: see BufferedDecoder."""
    _check_greedy(manifest, name)
    if manifest.get("engine_request") is not None:
        raise UserError("{}: engine_request is not null, and decoder.kind greedy-buffered has no engines".format(name))
    n, decoder = manifest["decoder"].get("n_candidates"), manifest["decoder"]
    n_hidden = len(set(decoder["suppress_ids"]) | set(decoder["begin_suppress_ids"]))
    if n is not None and not n_hidden < n <= manifest["model"]["vocab_size"]:
        raise UserError(
            "{}: decoder.n_candidates is {}, allowed: {} (more than the suppressed tokens) to {} (all tokens): export the "
            "bundle again".format(name, n, n_hidden + 1, manifest["model"]["vocab_size"])
        )


def _greedy_shapes(manifest: Manifest) -> Needed:
    """Every window, and the longest transcript."""
    decoder, model = manifest["decoder"], manifest["model"]
    n_past = len(decoder["prompt_ids"]) + max(decoder["max_new_tokens"].values()) - 1
    past = (1, model["n_heads"], n_past, model["head_dim"])
    return _window_shapes(manifest, "encoder", "mel") + [("decoder", {"past_k_0": past}, "the longest transcript")]


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


def _window_shapes(manifest: Manifest, graph: str, name: str) -> Needed:
    return [
        (graph, {name: (1,) + feature_shape(manifest, window_s)}, "the window of {:g} s".format(window_s))
        for window_s in manifest["audio"]["windows_s"]
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_files(manifest: Any, name: Any) -> None:
    for file_name, entry in manifest["files"].items():
        parts = file_name.split("/")
        if os.path.isabs(file_name) or ".." in parts or "\\" in file_name or "\0" in file_name:
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
    if "features.mel_filters" in _FEATURES[manifest["features"]["kind"]]:
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


_GREEDY = DecoderKind(
    ["encoder", "decoder"],
    {
        "model.n_layers": _NUMBER,
        "model.n_heads": _NUMBER,
        "model.head_dim": _NUMBER,
        "model.max_target_positions": _NUMBER,
        "decoder.prompt_ids": _TOKENS,
        "decoder.eos_ids": _TOKENS,
        "decoder.suppress_ids": _TOKENS,
        "decoder.begin_suppress_ids": _TOKENS,
        "decoder.max_new_tokens": ((dict,), "an object of window -> tokens"),
    },
    _check_greedy,
    _greedy_shapes,
)
DECODERS = {
    "greedy": _GREEDY,
    "greedy-buffered": _GREEDY._replace(check=_check_buffered),
    "ctc": DecoderKind(
        ["ctc"],
        {
            "decoder.blank_id": _TOKEN,
            "decoder.word_delimiter": _TEXT,
            "decoder.uses_mask": _SWITCH,
            "decoder.conv_kernel": _NUMBERS,
            "decoder.conv_stride": _NUMBERS,
        },
        _check_ctc,
        lambda manifest: _window_shapes(manifest, "ctc", "audio"),
    ),
}
