"""A merged Whisper in the formats of other runtimes: CTranslate2 (faster-whisper), whisper.cpp, sherpa-onnx."""

from edgeqlora_export.whisper.also import ct2, ggml, sherpa

WRITERS = {"ct2": ct2, "ggml": ggml, "sherpa-onnx": sherpa}
"""--also -> module with PACKAGE (what reads it), `check(exporter)`, `write(exporter, folder, spec)` and `reader(folder, spec, threads)`."""
