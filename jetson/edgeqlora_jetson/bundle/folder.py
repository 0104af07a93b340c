"""A bundle on disk: its folder opened, its files compared with the manifest, its tables and clips read."""

import os
from typing import Any, List, NamedTuple, Optional

import numpy as np

from ..errors import UserError
from ..files import read_json, read_json_lines, sha256_file
from ..schema import Manifest
from .manifest import DECODERS, check_manifest
from .verified import remember, stamps_of, was_verified

MANIFEST = "manifest.json"


class EvalClip(NamedTuple):
    """One clip to measure on."""

    path: str  # audio file
    reference: Optional[str]  # what was said; None: not known
    name: str  # for reports: the path as the manifest writes it


class Bundle(object):
    """An opened bundle.

    folder: its path. manifest: the whole manifest. is_hashed: every file was hashed now, not at an earlier start.
    """

    def __init__(self, folder: str, manifest: Manifest, is_hashed: bool = True) -> None:
        self.folder = folder
        self.manifest = manifest
        self.is_hashed = is_hashed

    @classmethod
    def load(cls, folder: Any, verify: bool = False) -> "Bundle":
        """Open a bundle folder and check it: schema, fields, and every file.

        The first time by SHA-256; afterwards sizes and times are compared with those of that time, unless `verify`.
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
        stamps, manifest_sha256 = stamps_of(folder, sorted(manifest["files"])), sha256_file(path)
        if not verify and was_verified(folder, manifest_sha256, stamps):
            return cls(folder, manifest, is_hashed=False)
        verify_files(folder, manifest)
        if not verify and stamps is not None:
            remember(folder, manifest_sha256, stamps)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def graphs(self) -> List[str]:
        """Names of the graphs, in the order in which they run."""
        return DECODERS[self.manifest["decoder"]["kind"]].graphs

    @property
    def precision(self) -> str:
        """The lowest precision of its graphs: int8, fp16, bf16 or fp32."""
        found = [entry.get("precision") for entry in self.manifest["graphs"].values()]
        return next((name for name in ("int8", "fp16", "bf16") if name in found), "fp32")

    @property
    def is_int8(self) -> bool:
        """Whether a graph of it multiplies integers that are made of its inputs as they come, as graphs for a CPU do."""
        return self.precision == "int8" and not self.manifest.get("engine_request")

    @property
    def is_for_cpu(self) -> bool:
        """Whether its graphs run on a CPU alone: int8, or buffers of the runner that a GPU would not see change."""
        return self.is_int8 or self.manifest["decoder"]["kind"] == "greedy-buffered"

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
