"""What a file looks like from its first bytes: for errors about files that cannot be read as audio."""

from typing import NamedTuple


class Look(NamedTuple):
    """What the first bytes say."""

    description: str
    is_media: bool  # a format that holds sound: worth converting


# offset, bytes there, name; the first block holds sound
_MEDIA = (
    (8, b"WAVE", "a WAV file"),
    (0, b"RIFF", "a RIFF file"),
    (0, b"RIFX", "a RIFX (big-endian WAV) file"),
    (0, b"riff\x2e\x91\xcf\x11", "a W64 (Sony Wave64) file"),
    (0, b"NIST_1A", "a NIST SPHERE file"),
    (0, b"fLaC", "FLAC audio"),
    (0, b"OggS", "Ogg audio"),
    (0, b"ID3", "MP3 audio"),
    (0, b"\xff\xfb", "MP3 audio"),
    (0, b"\xff\xf3", "MP3 audio"),
    (0, b"\xff\xf2", "MP3 audio"),
    (0, b"\xff\xf1", "AAC audio"),
    (0, b"\xff\xf9", "AAC audio"),
    (0, b"FORM", "AIFF audio"),
    (0, b".snd", "AU audio"),
    (0, b"dns.", "AU audio"),
    (0, b"caff", "CAF audio"),
    (0, b"#!AMR", "AMR audio"),
    (0, b"Creative Voice File", "VOC audio"),
    (0, b"ajkg", "Shorten audio"),
    (0, b"wvpk", "WavPack audio"),
    (0, b"\x30\x26\xb2\x75", "a WMA/ASF file"),
    (4, b"ftyp", "an MP4/M4A file"),
    (0, b"\x1aE\xdf\xa3", "a WebM/Matroska file"),
)
_OTHER = (
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself (run: git lfs pull)"),
)


def look_at(head: bytes) -> Look:
    """Describe a file by its first bytes (24 or more): "a PNG image", "text ('{"audio"...')", "bytes 00 01 ..."."""
    for signatures, is_media in ((_MEDIA, True), (_OTHER, False)):
        for offset, signature, name in signatures:
            if head[offset : offset + len(signature)] == signature:
                return Look(name, is_media)
    if not head.strip(b"\0"):
        return Look("zero bytes only", False)
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if text and all(char.isprintable() or char in "\r\n\t" for char in text):
        return Look("text ({!r})".format(text[:24]), False)
    return Look("bytes " + " ".join("{:02x}".format(byte) for byte in head[:8]), False)
