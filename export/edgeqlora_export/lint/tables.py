"""Operator tables that were published for TensorRT versions: what their ONNX parser takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeqlora_jetson.errors import UserError

TABLES = Path(__file__).parent.parent / "trt_ops"


@dataclass(frozen=True)
class OperatorTable:
    """What one TensorRT version's ONNX parser takes."""

    version: str
    """TensorRT version that the table is of, such as "8.2"."""
    asked: str
    """TensorRT version that was asked for, such as "8.2.1"; a newer one than the table's where it has none itself."""
    max_opset: int
    """Highest ONNX opset it reads."""
    operators: dict[str, str]
    """Supported operator -> its restriction as published, "" for none."""
    types: frozenset[str]
    """Element types that it reads, by their ONNX names; some only as constants."""
    source: str
    """Where the table comes from."""

    @property
    def title(self) -> str:
        """Which table it is, in words: says so where it is not the asked version's own."""
        if _version_key(self.asked)[:2] == _version_key(self.version):
            return f"TensorRT {self.version}"
        return f"TensorRT {self.version} (the newest one not newer than {self.asked}, which has no table here)"


def known_versions() -> list[str]:
    """TensorRT versions with a table here."""
    return sorted((p.stem.removeprefix("TRT-") for p in TABLES.glob("TRT-*.tsv")), key=_version_key)


def load_operators(version: str) -> OperatorTable:
    """The newest table that is not newer than a TensorRT version; `.title` says which one that is.

    No table has been published for some versions, and operators are added, hardly ever taken away. The patch number,
    as in "8.2.1", is not looked at. Raises UserError when every table is newer.
    """
    wanted = _version_key(version)[:2]
    fitting = [known for known in known_versions() if _version_key(known) <= wanted]
    if not fitting:
        raise UserError(
            f"tensorrt={version!r}: no operator table of that version or an older one; known are "
            f"{', '.join(known_versions())}: choose one of them in the profile"
        )
    text = (TABLES / f"TRT-{fitting[-1]}.tsv").read_text(encoding="utf-8")
    return parse_operators(fitting[-1], text, asked=version)


def parse_operators(version: str, text: str, asked: str = "") -> OperatorTable:
    """Parse a table: '# source:', '# max_opset:' and '# types:' lines, a header, then operator, Y or N, restriction (tabs)."""
    lines = text.splitlines()
    notes = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")][1:]
    return OperatorTable(
        version=version,
        asked=asked or version,
        max_opset=int(notes["max_opset"]),
        operators={name: restriction for name, supported, restriction in rows if supported == "Y"},
        types=frozenset(notes["types"].partition(" (")[0].split()),
        source=notes["source"],
    )


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
