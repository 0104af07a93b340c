"""Tables of clips with a line of column names: CSV, TSV, and others that csv can tell apart."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgeqlora.data.row import NAMES, Row, parse_row
from edgeqlora.errors import UserError

TABLE = "table (CSV or TSV)"
AUDIO_FOLDER = "folder of audio with a metadata table"
SUFFIXES = (".csv", ".tsv", ".psv")
DELIMITERS = ",\t;|"


def metadata_of(folder: Path) -> dict[str, Path]:
    """Metadata files in Hugging Face's audiofolder layout by split: "manifest" of the folder, or those of folders in it.

    Source of the layout: https://huggingface.co/docs/datasets/audio_dataset
    """
    names = ("metadata.csv", "metadata.jsonl")
    for name in names:
        if (folder / name).is_file():
            return {"manifest": folder / name}
    return {path.parent.name: path for name in names for path in sorted(folder.glob(f"*/{name}"))}


def is_table(path: Path) -> bool:
    """True by name, or by a first line that names columns."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open(path, encoding="utf-8-sig") as stream:
            header = stream.readline(10_000)
        return header.lstrip()[:1] not in ("{", "[") and bool(delimiter_of(path, header))
    except (OSError, UnicodeDecodeError, UserError):
        return False


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """(split or "", row) of each line of a table whose first line names its columns, under any of row.NAMES.

    Clips are looked for in `clips/` beside the table where that is a folder (Common Voice), else beside the table itself.
    Quotation marks are parsed in CSV. Tab-separated tables hold them unparsed and unpaired: a sentence that a careless
    writer has put into marks, with those inside doubled or escaped, is taken out of them.

    Raises UserError for a table without these columns, or a line with too few fields.
    """
    folder = os.path.dirname(os.path.abspath(path))
    clips = os.path.join(folder, "clips")
    clips = clips if os.path.isdir(clips) else folder
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            delimiter = delimiter_of(path, stream.readline())
            stream.seek(0)
            table = csv.DictReader(
                stream, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            )
            columns = table.fieldnames or []
            twice = next((name for name in columns if columns.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"{path}:1: column {twice!r} is there twice: keep one of them")
            for record in table:
                where = f"{path}:{table.line_num}"
                if None in record or None in record.values():
                    n = len(columns) + len(record.pop(None, ())) - sum(v is None for v in record.values())
                    raise UserError(f"{where}: row has {n} fields, the first line names {len(columns)} columns")
                yield record.get("split") or "", _unquoted(parse_row(record, where, clips), delimiter)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read table {path}: {error}") from None


def delimiter_of(path: Path, header: str) -> str:
    """What stands between the columns of a table, from its first line. UserError where that names no audio and text."""
    names = {name for key in ("audio", "text") for name in NAMES[key]}
    for delimiter in DELIMITERS:
        columns = [column.strip().strip('"') for column in header.rstrip("\r\n").split(delimiter)]
        if len(columns) > 1 and names.intersection(columns):
            return delimiter
    raise UserError(
        f"{path}:1: a table whose first line names no columns that we know ({header.strip()[:60]!r}): "
        "begin it with a line such as audio,text"
    )


def _unquoted(row: Row, delimiter: str) -> Row:
    text = unquote(row.text) if delimiter == "\t" else row.text
    return row if text == row.text else dataclasses.replace(row, text=text, was_quoted=True)


def unquote(text: str) -> str:
    """A field without the quotation marks that a table's writer put around and into it; a lone or paired mark stays."""
    text = text.replace('\\"', '""')
    if len(text) > 2 and text[0] == text[-1] == '"' and '""' in text[1:-1]:
        text = text[1:-1]
    return re.sub('""', '"', text)
