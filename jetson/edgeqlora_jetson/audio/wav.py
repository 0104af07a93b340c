"""WAV files: an own reader, so that the board needs no audio library, and a PCM16 writer."""

import struct
from typing import IO, Any, Dict, NamedTuple, Tuple

import numpy as np

from ..errors import UserError
from ..files import write_bytes
from .containers import is_stream_size, refuse_cut_off, walk_chunks
from .windows import SAMPLE_RATE_HZ

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_CODEC_NAMES = {
    0x0002: "Microsoft ADPCM",
    0x0006: "A-law",
    0x0007: "mu-law",
    0x0011: "IMA ADPCM",
    0x0031: "GSM",
    0x0055: "MP3",
}
_UNKNOWN_SIZE = 2**32 - 1  # of an RF64 file: the size is in its ds64 chunk
_MAX_CHANNELS = 1024


class WavHeader(NamedTuple):
    """How the sound of a WAV file is stored, and where."""

    codec: str  # "integer", "float", or the name of one that needs an audio library
    sample_bytes: int
    n_channels: int
    sample_rate_hz: int
    start: int  # byte at which the sound begins
    n_bytes: int  # of sound
    is_stream: bool  # the header states no length: the sound goes on to the end of the file

    @property
    def is_own(self) -> bool:
        """True if WavSamples reads it."""
        return self.codec in ("integer", "float")


class WavSamples(object):
    """The samples of a WAV file: integers of 8 to 32 bits, floats of 32 and 64."""

    def __init__(self, stream: IO[bytes], header: WavHeader) -> None:
        self._stream, self._header = stream, header
        self._frame_bytes = header.n_channels * header.sample_bytes
        self.n_channels = header.n_channels
        self.sample_rate_hz = header.sample_rate_hz
        self.n_samples = header.n_bytes // self._frame_bytes
        self.is_float = header.codec == "float"

    def read(self, start: int, n_samples: int) -> np.ndarray:
        """Samples from `start` on: float32 (float64 where the file has it), shape (n_samples, n_channels)."""
        self._stream.seek(self._header.start + start * self._frame_bytes)
        raw = self._stream.read(n_samples * self._frame_bytes)
        frames = np.frombuffer(raw, dtype=np.uint8, count=len(raw) - len(raw) % self._frame_bytes)
        return _decode(frames, self.is_float, self._header.sample_bytes).reshape(-1, self.n_channels)

    def close(self) -> None:
        """Nothing of its own is open."""


def is_wav(head: bytes) -> bool:
    """True if a file begins as WAV does, also as RF64, BW64 or RIFX."""
    return head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def read_wav_header(stream: IO[bytes], size: int, name: str) -> WavHeader:
    """Read the header of a WAV file of `size` bytes.

    A length of 0 or of the kind that is written to a pipe means: to the end of the file. Raises UserError naming the
    file when it is damaged or cut off.
    Source: Microsoft/IBM "Multimedia Programming Interface and Data Specifications 1.0"; mmreg.h; EBU Tech 3306.
    """
    stream.seek(0)
    signature = stream.read(4)
    order = ">" if signature == b"RIFX" else "<"
    chunks: Dict[bytes, Tuple[int, int]] = {}
    long_size = None
    for kind, start, n_bytes in walk_chunks(stream, size, 12, order + "4sI", 2):
        if kind == b"ds64" and n_bytes >= 16:
            stream.seek(start + 8)
            content = stream.read(8)
            long_size = struct.unpack("<Q", content)[0] if len(content) == 8 else None
        if kind == b"data" and n_bytes == _UNKNOWN_SIZE and long_size is not None:
            n_bytes = long_size
        chunks.setdefault(kind, (start, n_bytes))
        if b"fmt " in chunks and b"data" in chunks:
            break
    for kind in (b"fmt ", b"data"):
        if kind not in chunks:
            raise UserError(
                "{}: this WAV file has no '{}' chunk: it is damaged, record or convert it again".format(
                    name, kind.decode()
                )
            )
    codec, sample_bytes, n_channels, sample_rate_hz = _read_format(stream, chunks[b"fmt "], order, name)
    start, announced = chunks[b"data"]
    held = size - start
    is_stream = _is_stream(stream, size, start, announced)
    if not is_stream:
        refuse_cut_off(name, "WAV", announced, held)
    return WavHeader(
        codec, sample_bytes, n_channels, sample_rate_hz, start, held if is_stream else announced, is_stream
    )


def with_length(content: bytes, header: WavHeader) -> bytes:
    """The content of a WAV file whose header states no length, with that length in it."""
    signature, order = (b"RIFX", ">I") if content[:4] == b"RIFX" else (b"RIFF", "<I")
    riff, data = struct.pack(order, len(content) - 8), struct.pack(order, header.n_bytes)
    return signature + riff + content[8 : header.start - 4] + data + content[header.start :]


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


def _is_stream(stream: IO[bytes], size: int, start: int, announced: int) -> bool:
    if announced == 0:
        # A recording of nothing: the file ends here, or other chunks follow and fill it.
        end = start
        for _, content, n_bytes in walk_chunks(stream, size, start, "<4sI", 2):
            end = content + n_bytes
        return end not in (size - 1, size)
    return announced > size - start and (is_stream_size(announced) if announced < 2**32 else announced >= 2**62)


def _read_format(stream: IO[bytes], chunk: Tuple[int, int], order: str, name: str) -> Tuple[str, int, int, int]:
    """Codec, bytes a sample, number of channels, sample rate in Hz of the fmt chunk."""
    start, n_bytes = chunk
    stream.seek(start)
    content = stream.read(min(n_bytes, 40))
    if len(content) < 16:
        raise UserError(
            "{}: the 'fmt ' chunk has {} bytes, at least 16 are needed: damaged WAV".format(name, len(content))
        )
    encoding, n_channels, sample_rate_hz, _, frame_bytes, bits = struct.unpack(order + "HHIIHH", content[:16])
    if encoding == _EXTENSIBLE and len(content) >= 26:
        encoding = struct.unpack(order + "H", content[24:26])[0]
    if not 1 <= n_channels <= _MAX_CHANNELS:
        raise UserError(
            "{}: the WAV header says {} channels, allowed 1 to {}: damaged".format(name, n_channels, _MAX_CHANNELS)
        )
    # Recorders of 24 bits may put each sample into 4 bytes, the lowest of them empty.
    sample_bytes = 4 if bits == 24 and frame_bytes == 4 * n_channels else bits // 8
    if order == "<" and encoding == _PCM and bits in (8, 16, 24, 32):
        codec = "integer"
    elif order == "<" and encoding == _FLOAT and bits in (32, 64):
        codec = "float"
    else:
        known = {_PCM: "integers", _FLOAT: "floats"}
        codec = "{} at {} bits".format(
            known.get(encoding) or _CODEC_NAMES.get(encoding, "encoding 0x{:04x}".format(encoding)), bits
        )
    return codec, sample_bytes, n_channels, sample_rate_hz


def _decode(raw: np.ndarray, is_float: bool, sample_bytes: int) -> np.ndarray:
    """Bytes, uint8 (n,), to samples, float (n // sample_bytes,); integers in [-1, 1]."""
    if is_float:
        return raw.view("<f{}".format(sample_bytes))
    if sample_bytes == 1:  # the only unsigned one
        return (raw.astype(np.float32) - 128.0) / np.float32(128.0)
    if sample_bytes == 3:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw, sample_bytes = wide.reshape(-1), 4
    return raw.view("<i{}".format(sample_bytes)).astype(np.float32) / np.float32(2 ** (8 * sample_bytes - 1))
