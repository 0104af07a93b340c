"""One reader of sound files for workstation and board: header first, then any range of samples."""

import io
import os
from typing import IO, Any, Optional, Tuple

import numpy as np

from ..errors import UserError
from .containers import CutOff, ogg_lacks_end, verify_whole
from .sniff import Look, look_at
from .wav import WavSamples, is_wav, read_wav_header, with_length

_MIN_RATE_HZ, _MAX_RATE_HZ = 1000, 768000
_BLOCK_SAMPLES = 1 << 20
# A sample above this is an integer that nobody scaled; below, it is head room of a loud recording.
_MAX_PEAK = 256.0
_INTEGER_SCALES = (2**15, 2**23, 2**31)


class NotScaled(UserError):
    """A file of floats that holds integers."""


class AudioFile(object):
    """A sound file, opened: its header is known, its samples are read by range. Use it in a `with`.

    WAV of integers or floats needs nothing but this package; everything else is read through soundfile if it is
    installed. What a file is, its bytes say, never its name.
    """

    def __init__(self, source: Any, name: Optional[str] = None) -> None:
        """source: path, or the bytes of a file; name: what messages call it.

        Raises UserError naming it when it is missing, empty, no audio, cut off, or holds no samples.
        """
        self.name = os.fspath(source) if name is None else name
        self._stream, size = _open_stream(source, self.name)
        self._samples: Any = None
        try:
            head = self._stream.read(64)
            self.lacks_end = head[:4] == b"OggS" and ogg_lacks_end(self._stream, size)
            """An Ogg file without a last page: it may be cut off."""
            self._samples = self._open_samples(head, size)
            self.sample_rate_hz: int = self._samples.sample_rate_hz
            self.n_channels: int = self._samples.n_channels
            self.n_samples: int = self._samples.n_samples
            self.is_float: bool = self._samples.is_float
            """The samples are stored as floats, and may exceed 1."""
            self._verify_header()
        except OSError as error:
            self.close()
            raise _unreadable(self.name, error)
        except BaseException:
            self.close()
            raise

    def read(self, start: int = 0, end: Optional[int] = None) -> np.ndarray:
        """Samples `start` to `end` (default: to the last): float, shape (n_samples, n_channels), as they are stored.

        Fewer where the file ends early. Raises UserError when there is none, or one is not a number or above 256.
        """
        n_samples = (self.n_samples if end is None else end) - start
        try:
            samples = self._samples.read(start, n_samples)
        except OSError as error:
            raise _unreadable(self.name, error)
        if len(samples) == 0:
            raise self._no_sound()
        peak = float(np.abs(samples).max())
        if not np.isfinite(peak):
            raise UserError(
                "{}: holds samples that are not numbers (NaN or infinity): convert it again".format(self.name)
            )
        if peak > _MAX_PEAK:
            scale = next((scale for scale in _INTEGER_SCALES if peak <= scale), _INTEGER_SCALES[-1])
            raise NotScaled(
                "{}: float samples reach {:g}, allowed -1 to 1: integers that were not scaled? "
                "Divide them by {} and write the file again".format(self.name, peak, scale)
            )
        return samples

    def close(self) -> None:
        """Close the file."""
        if self._samples is not None:
            self._samples.close()
        self._stream.close()

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open_samples(self, head: bytes, size: int) -> Any:
        if not is_wav(head):
            verify_whole(self._stream, size, self.name)
            return _LibrarySamples(self._stream, self.name, look_at(head))
        header = read_wav_header(self._stream, size, self.name)
        if header.is_own:
            return WavSamples(self._stream, header)
        stream = self._stream
        if header.is_stream:
            stream.seek(0)
            stream = _Memory(with_length(stream.read(), header))
        return _LibrarySamples(stream, self.name, Look("WAV with {}".format(header.codec), True))

    def _verify_header(self) -> None:
        if self.n_samples <= 0:
            raise self._no_sound()
        if not _MIN_RATE_HZ <= self.sample_rate_hz <= _MAX_RATE_HZ:
            raise UserError(
                "{}: sample rate {} Hz, allowed {} to {} Hz: a damaged header?".format(
                    self.name, self.sample_rate_hz, _MIN_RATE_HZ, _MAX_RATE_HZ
                )
            )

    def _no_sound(self) -> UserError:
        if self.lacks_end:
            return CutOff(
                "{}: no page of sound in this Ogg file is whole: it is cut off, copy or record it again".format(
                    self.name
                )
            )
        return UserError("{}: holds 0 samples of sound: record it again or leave it out".format(self.name))


class _Memory(io.BytesIO):
    """The bytes of a file. In damaged ones libsndfile seeks to before the beginning: it stays where it is."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.tell() if whence == os.SEEK_SET and offset < 0 else super(_Memory, self).seek(offset, whence)


class _LibrarySamples(object):
    """The samples of any file that soundfile (libsndfile) reads."""

    def __init__(self, stream: IO[bytes], name: str, look: Look) -> None:
        self._name, self._look = name, look
        try:
            import soundfile
        except (ImportError, OSError):  # OSError: the Python part is there, libsndfile is not
            raise self._without_library()
        stream.seek(0)
        try:
            if isinstance(stream, _Memory):
                self._file = soundfile.SoundFile(stream)
            else:
                # By its descriptor: given a path, libsndfile takes text in a file named .au for samples.
                os.lseek(stream.fileno(), 0, os.SEEK_SET)
                self._file = soundfile.SoundFile(stream.fileno(), closefd=False)
        except (RuntimeError, OSError) as error:  # soundfile.LibsndfileError is a RuntimeError
            raise self._not_audio(error)
        self._position = 0
        self.n_channels = self._file.channels
        self.sample_rate_hz = self._file.samplerate
        self.n_samples = self._file.frames
        self.is_float = self._file.subtype in ("FLOAT", "DOUBLE")

    def read(self, start: int, n_samples: int) -> np.ndarray:
        """Samples from `start` on: float, shape (n_samples, n_channels)."""
        try:
            if start > self._position and not self._file.seekable():
                self._read_on(start - self._position)
            elif start != self._position:
                self._position = self._file.seek(start)
            return self._read_on(n_samples)
        except RuntimeError as error:
            raise self._not_audio(error)

    def _read_on(self, n_samples: int) -> np.ndarray:
        """The next samples.

        In blocks: a damaged header can claim terabytes of samples, and memory must not be set aside for a claim.
        """
        dtype = "float64" if self._file.subtype == "DOUBLE" else "float32"
        blocks = [np.zeros((0, self.n_channels), dtype=dtype)]
        while n_samples > 0:
            block = self._file.read(min(n_samples, _BLOCK_SAMPLES), dtype=dtype, always_2d=True)
            if len(block) == 0:
                break
            blocks.append(block)
            n_samples -= len(block)
            self._position += len(block)
        return blocks[1] if len(blocks) == 2 else np.concatenate(blocks)

    def close(self) -> None:
        """Let go of the library's part; the file itself stays open."""
        self._file.close()

    def _without_library(self) -> UserError:
        if self._look.is_media or self._look.description.startswith("bytes"):
            return UserError(
                "{}: looks like {}; without the soundfile library only WAV (PCM or float) is read. If it is audio, "
                "convert it: ffmpeg -i {} -ac 1 -ar 16000 speech.wav   or: pip install soundfile".format(
                    self._name, self._look.description, self._name
                )
            )
        return self._not_audio(None)

    def _not_audio(self, error: Optional[Exception]) -> UserError:
        description = self._look.description
        if not self._look.is_media and not description.startswith("bytes"):
            return UserError(
                "{}: not audio, it looks like {}. Wanted: WAV, FLAC, Ogg or MP3".format(self._name, description)
            )
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        return UserError(
            "{}: cannot be read as audio ({}), it looks like {}. Wanted: WAV, FLAC, Ogg or MP3. If it is audio, "
            "convert it: ffmpeg -i {} -ac 1 -ar 16000 speech.wav".format(self._name, reason, description, self._name)
        )


def _open_stream(source: Any, name: str) -> Tuple[IO[bytes], int]:
    """The file, at its beginning, and its size in bytes. Raises UserError where it cannot be read or is empty."""
    stream: IO[bytes]
    try:
        if isinstance(source, bytes):
            stream = _Memory(source)
        else:
            stream = open(source, "rb")  # noqa: SIM115 - AudioFile closes it
            if not stream.seekable():  # a pipe
                with stream:
                    stream = _Memory(stream.read())
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
    except IsADirectoryError:
        raise UserError("{} is a folder, not an audio file: check the path".format(name))
    except OSError as error:
        raise _unreadable(name, error)
    if size == 0:
        stream.close()
        raise UserError("{}: the file is empty (0 bytes): record it again or leave it out".format(name))
    return stream, size


def _unreadable(name: str, error: OSError) -> UserError:
    return UserError("audio file {} cannot be read: {}: check the path".format(name, error.strerror or error))
