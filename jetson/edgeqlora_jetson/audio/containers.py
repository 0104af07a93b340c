"""What a container announces about its own length, compared with the file: libsndfile corrects it without a word."""

import re
import struct
from typing import IO, Callable, Dict, Iterator, Optional, Tuple

from ..errors import UserError

_MAX_OGG_PAGE = 27 + 255 + 255 * 255
_OGG_END = 0x04  # flag of the last page of a stream, RFC 3533

Sizes = Optional[Tuple[int, int]]  # bytes of sound announced and held; None: not known


class CutOff(UserError):
    """A file that holds less sound than its header announces."""


def refuse_cut_off(name: str, container: str, announced: int, held: int) -> None:
    """Raise CutOff where the header announces more bytes of sound than the file holds."""
    if announced > max(0, held):
        raise CutOff(
            "{}: the {} header announces {} bytes of sound, the file holds {}: it is cut off, "
            "copy or record it again".format(name, container, announced, max(0, held))
        )


def is_stream_size(size: int) -> bool:
    """True for the 32-bit sizes that programs write to a pipe, where they cannot go back to fill in the length.

    sox writes 0x7f000000 or 0x7ffff000, arecord 0x80000000, ffmpeg 0xffffffff, all of them with or without a header's
    length added or taken off.
    """
    return 0x7F000000 <= size < 0x80010000 or size >= 0xFFFF0000


def walk_chunks(stream: IO[bytes], size: int, position: int, head: str, align: int) -> Iterator[Tuple[bytes, int, int]]:
    """Chunks of a file of `size` bytes from `position` on: (id, start of the content, announced bytes of it).

    head: struct format of id and size. Ends at the first that has no name of ASCII letters, or a negative size.
    """
    n_head = struct.calcsize(head)
    while position + n_head <= size:
        stream.seek(position)
        raw = stream.read(n_head)
        if len(raw) < n_head:
            return
        kind, n_bytes = struct.unpack(head, raw)
        if len(kind) > 4:
            n_bytes -= n_head  # W64 counts the head too
        elif not all(32 <= byte < 127 for byte in kind):
            return
        if n_bytes < 0:
            return
        start = position + n_head
        yield kind, start, n_bytes
        position = start + n_bytes + -n_bytes % align


def verify_whole(stream: IO[bytes], size: int, name: str) -> None:
    """Raise CutOff for an AIFF, AIFC, AU, CAF, W64 or SPHERE file that announces more sound than it holds."""
    stream.seek(0)
    signature = stream.read(4)
    if signature in _CONTAINERS:
        container, measure = _CONTAINERS[signature]
        sizes = measure(stream, size)
        if sizes is not None:
            refuse_cut_off(name, container, *sizes)


def ogg_lacks_end(stream: IO[bytes], size: int) -> bool:
    """True if the last page of an Ogg file is not whole, or not marked as the last: a copy may have broken off.

    Source: RFC 3533, section 6.
    """
    stream.seek(max(0, size - _MAX_OGG_PAGE))
    tail = stream.read(_MAX_OGG_PAGE)
    position = tail.rfind(b"OggS\0")
    page = tail[position:] if position >= 0 else b""
    if len(page) < 27 or not page[5] & _OGG_END:
        return True
    sizes = page[27 : 27 + page[26]]
    return len(sizes) < page[26] or len(page) < 27 + len(sizes) + sum(sizes)


def _aiff(stream: IO[bytes], size: int) -> Sizes:
    for kind, start, n_bytes in walk_chunks(stream, size, 12, ">4sI", 2):
        if kind == b"SSND":  # the content begins with an offset and a block size, 8 bytes
            return None if is_stream_size(n_bytes) else (n_bytes - 8, size - start - 8)
    return None


def _au(stream: IO[bytes], size: int) -> Sizes:
    stream.seek(0)
    head = stream.read(12)
    if len(head) < 12:
        return None
    start, n_bytes = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:])
    return None if is_stream_size(n_bytes) else (n_bytes, size - start)


def _caf(stream: IO[bytes], size: int) -> Sizes:
    for kind, start, n_bytes in walk_chunks(stream, size, 8, ">4sq", 1):
        if kind == b"data":  # the content begins with an edit count, 4 bytes
            return n_bytes - 4, size - start - 4
    return None


def _w64(stream: IO[bytes], size: int) -> Sizes:
    for kind, start, n_bytes in walk_chunks(stream, size, 40, "<16sQ", 8):
        if kind[:4] == b"data":
            return None if n_bytes >= 2**62 else (n_bytes, size - start)
    return None


def _sphere(stream: IO[bytes], size: int) -> Sizes:
    stream.seek(0)
    first = re.match(rb"NIST_1A\n *(\d{1,8})\n", stream.read(16))
    if not first:
        return None
    n_head = int(first.group(1))
    stream.seek(0)
    text = stream.read(min(n_head, 1 << 16)).decode("latin-1")
    fields = dict(re.findall(r"^(\w+) -\w+ (\S+)", text, re.MULTILINE))
    if "," in fields.get("sample_coding", ""):  # compressed inside: "pcm,embedded-shorten-v2.00"
        return None
    try:
        n_samples, n_channels, n_bytes = (
            int(fields.get(field, default))
            for field, default in (("sample_count", "0"), ("channel_count", "1"), ("sample_n_bytes", "2"))
        )
    except ValueError:
        return None
    return n_samples * n_channels * n_bytes, size - n_head


_CONTAINERS: Dict[bytes, Tuple[str, Callable[[IO[bytes], int], Sizes]]] = {
    b"FORM": ("AIFF", _aiff),
    b".snd": ("AU", _au),
    b"dns.": ("AU", _au),
    b"caff": ("CAF", _caf),
    b"riff": ("W64", _w64),
    b"NIST": ("SPHERE", _sphere),
}
