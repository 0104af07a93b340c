"""Times and memory of a bundle here, in a process that has only what a board has: python -m edgeqlora_export.plan.probe < asked."""

import json
import sys
import time

import numpy as np

from edgeqlora_jetson.audio.features import feature_shape
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.decoders import open_decoder
from edgeqlora_jetson.decoders.key_value import KeyValueDecoder
from edgeqlora_jetson.runtimes import open_runtime


def main() -> None:
    """Reads folder, manifest, threads, window_s, n_steps, repeats; prints encoder_ms, step_ms (of one token) and peak_mib."""
    asked = json.load(sys.stdin)
    bundle = Bundle(asked["folder"], asked["manifest"])
    decoder = open_decoder(bundle, open_runtime(bundle, threads=asked["threads"]))
    features = np.random.default_rng(0).normal(0, 0.3, (1, *feature_shape(bundle.manifest, asked["window_s"])))
    features = features.astype(np.float32)
    encoder_ms, step_ms = [], []
    for _ in range(asked["repeats"] + 1):
        start_s = time.perf_counter()
        if isinstance(decoder, KeyValueDecoder):
            state = decoder.start(decoder.encode(features))
            encoded_s = time.perf_counter()
            state.step(np.array([bundle.manifest["decoder"]["prompt_ids"]], dtype=np.int32))
            for _step in range(asked["n_steps"]):
                state.step(np.array([[5]], dtype=np.int32))
            step_ms.append(1e3 * (time.perf_counter() - encoded_s) / (asked["n_steps"] + 1))
        else:
            decoder.logits(features, [features.shape[1]])
            encoded_s = time.perf_counter()
        encoder_ms.append(1e3 * (encoded_s - start_s))
    found = {
        "encoder_ms": float(np.median(encoder_ms[1:])),  # the first run warms up
        "step_ms": float(np.median(step_ms[1:])) if step_ms else 0.0,
        "peak_mib": _peak_mib(),
    }
    print(json.dumps(found))


def _peak_mib() -> float:
    """Largest resident memory of this process; getrusage would count that of its parent, from before exec."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
