"""WAV files: an own RIFF reader, so that the board needs no audio library, and a PCM16 writer."""

import struct
from typing import Any, Dict, NamedTuple, Tuple

import numpy as np

from ..errors import UserError
from ..files import write_bytes
from .windows import SAMPLE_RATE_HZ

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_FORMAT_NAMES = {0x0002: "Microsoft ADPCM", 0x0006: "A-law", 0x0007: "mu-law", 0x0011: "IMA ADPCM", 0x0055: "MP3"}
# Recorders that write to a pipe cannot go back to fill in the size; they leave the largest one.
_STREAM_SIZE = 0x7FFF0000
# A float sample above this is an integer that nobody scaled; below, it is head room of a loud recording.
_MAX_FLOAT_PEAK = 256.0


class WavFormat(NamedTuple):
    """The fmt chunk of a WAV file."""

    encoding: int  # 1 integer, 3 float
    n_channels: int
    sample_rate_hz: int
    bits: int


class UnsupportedWav(UserError):
    """A sound WAV file whose encoding needs an audio library."""


def parse_wav(data: bytes, name: Any) -> Tuple[np.ndarray, int]:
    """Decode the bytes of a WAV file: float32 (n_samples, n_channels) in [-1, 1], and sample_rate_hz.

    PCM 8/16/24/32 bit, float 32/64 bit, also as WAVE_FORMAT_EXTENSIBLE; float samples beyond full scale are
    clipped. Raises UserError naming `name` when the file is damaged or cut off, UnsupportedWav for other encodings.
    Source: Microsoft/IBM "Multimedia Programming Interface and Data Specifications 1.0"; mmreg.h.
    """
    chunks = _find_chunks(data, name)
    if "fmt " not in chunks:
        raise UserError("{}: this WAV file has no 'fmt ' chunk: it is damaged, record or convert it again".format(name))
    if "data" not in chunks:
        raise UserError("{}: this WAV file has no 'data' chunk: it is damaged, record or convert it again".format(name))
    wav_format = _parse_format(data, chunks["fmt "], name)
    start, size = chunks["data"]
    frame_bytes = wav_format.n_channels * wav_format.bits // 8
    n_frames = size // frame_bytes
    raw = np.frombuffer(data, dtype=np.uint8, count=n_frames * frame_bytes, offset=start)
    samples = _decode(raw, wav_format, name)
    return samples.reshape(n_frames, wav_format.n_channels), wav_format.sample_rate_hz


def encode_wav(audio: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """Encode audio, float (n_samples,) in [-1, 1], as a mono PCM16 WAV file; beyond full scale is clipped."""
    scaled = np.clip(np.rint(np.asarray(audio, dtype=np.float64) * 32768.0), -32768, 32767)
    samples = scaled.astype("<i2").tobytes()
    fmt = struct.pack("<HHIIHH", _PCM, 1, sample_rate_hz, sample_rate_hz * 2, 2, 16)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def write_wav(path: Any, audio: np.ndarray, sample_rate_hz: int = SAMPLE_RATE_HZ) -> None:
    """Write audio, float (n_samples,) in [-1, 1], as a mono PCM16 WAV file, atomically."""
    write_bytes(path, encode_wav(audio, sample_rate_hz))


def _find_chunks(data: bytes, name: Any) -> Dict[str, Tuple[int, int]]:
    """First chunk of each kind: {id: (start, size in bytes)}."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise UserError("{}: not a WAV file".format(name))
    riff_size = struct.unpack("<I", data[4:8])[0]
    chunks: Dict[str, Tuple[int, int]] = {}
    position = 12
    while position + 8 <= len(data):
        kind = data[position : position + 4].decode("latin-1")
        size = struct.unpack("<I", data[position + 4 : position + 8])[0]
        start = position + 8
        if start + size > len(data) or (kind == "data" and size == 0 and riff_size == 0):
            if kind == "data" and size < _STREAM_SIZE and size != 0:
                raise UserError(
                    "{}: the WAV header announces {} bytes of sound, the file holds {}: it is cut off, "
                    "copy or record it again".format(name, size, len(data) - start)
                )
            size = len(data) - start
        chunks.setdefault(kind, (start, size))
        position = start + size + size % 2
    return chunks


def _parse_format(data: bytes, chunk: Tuple[int, int], name: Any) -> WavFormat:
    start, size = chunk
    if size < 16:
        raise UserError("{}: the 'fmt ' chunk has {} bytes, at least 16 are needed: damaged WAV".format(name, size))
    encoding, n_channels, sample_rate_hz, _, _, bits = struct.unpack("<HHIIHH", data[start : start + 16])
    if encoding == _EXTENSIBLE and size >= 26:
        encoding = struct.unpack("<H", data[start + 24 : start + 26])[0]
    known = (encoding == _PCM and bits in (8, 16, 24, 32)) or (encoding == _FLOAT and bits in (32, 64))
    if not known:
        shown = _FORMAT_NAMES.get(encoding, "encoding 0x{:04x}".format(encoding))
        raise UnsupportedWav(
            "{}: WAV with {} at {} bits, readable without an audio library: PCM 8/16/24/32 and float 32/64".format(
                name, shown, bits
            )
        )
    if n_channels < 1:
        raise UserError("{}: the WAV header says {} channels, at least 1 is needed: damaged".format(name, n_channels))
    return WavFormat(encoding, n_channels, sample_rate_hz, bits)


def _decode(raw: np.ndarray, wav_format: WavFormat, name: Any) -> np.ndarray:
    """Bytes to float32 (n_samples * n_channels,) in [-1, 1]."""
    bits = wav_format.bits
    if wav_format.encoding == _FLOAT:
        return _checked_floats(raw.view("<f{}".format(bits // 8)), name)
    if bits == 8:  # the only unsigned one
        return (raw.astype(np.float32) - 128.0) / np.float32(128.0)
    if bits == 24:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float32) / np.float32(2**31)
    return raw.view("<i{}".format(bits // 8)).astype(np.float32) / np.float32(2 ** (bits - 1))


def _checked_floats(samples: np.ndarray, name: Any) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise UserError("{}: holds samples that are not numbers (NaN or infinity): convert it again".format(name))
    peak = float(np.abs(samples).max()) if len(samples) else 0.0
    if peak > _MAX_FLOAT_PEAK:
        raise UserError(
            "{}: float samples reach {:g}, allowed -1 to 1: integers that were not scaled? "
            "Divide them by 32768 and write the file again".format(name, peak)
        )
    return np.clip(samples, -1.0, 1.0).astype(np.float32)
