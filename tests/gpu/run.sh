#!/usr/bin/env bash
# Tests and figures of a machine with one GPU: what is installed, then at most 8 minutes (without installing).
#
#   tests/gpu/run.sh [--dry-run]         --dry-run: says what it would do, and stops
#
# Settings, as variables of the environment:
#   PYTHON   which Python has torch (default: .venv/bin/python, .venv-gpu/bin/python, python3: the first that is there)
#   WHEELS   folder of wheels for what it lacks (default .whl); no network is used where it has some
#   OUT      folder for the results (default gpu-figures): tests.txt, figures.json, figures.txt
#   LIMIT_S  seconds for tests and figures together (default 480)
# Without PYTHON's packages and without wheels it makes .venv-gpu and installs into it, from the network: gigabytes.
# Exit code 1 if a test failed, 2 if it cannot run here. tests/gpu/README.md lists the wheels with their sizes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root="$PWD"
out="${OUT:-$root/gpu-figures}"
wheels="${WHEELS:-$root/.whl}"
limit_s="${LIMIT_S:-480}"
dry_run=0
if [ "${1:-}" = --dry-run ]; then dry_run=1; fi

python="${PYTHON:-}"
for candidate in "$root/.venv/bin/python" "$root/.venv-gpu/bin/python" python3; do
    if [ -z "$python" ] && command -v "$candidate" >/dev/null; then python="$candidate"; fi
done

needed="torch torchaudio transformers peft accelerate bitsandbytes safetensors onnx onnxruntime numpy soundfile soxr"
needed="$needed sacrebleu pydantic typer rich tomli_w pynvml packaging pytest"
lacks() { # modules of $needed that the Python does not find, without loading them
    "$python" -c 'import importlib.util as i, sys; print(*(n for n in sys.argv[1:] if i.find_spec(n) is None))' $needed
}

site="${SITE:-${TMPDIR:-/tmp}/edgeqlora-gpu-site}"
export PYTHONPATH="$root:$root/export:$root/jetson:$root/tests:$site"
missing="$(lacks)"
echo "Python   $python ($("$python" -c 'import platform; print(platform.python_version())'))"
echo "Lacks    ${missing:-nothing}"
echo "Results  $out"
n_wheels=$({ find "$wheels" -name '*.whl' 2>/dev/null || true; } | wc -l) # the folder may not be there
if [ -n "$missing" ] && [ "$n_wheels" -gt 0 ]; then
    echo "Installs $n_wheels wheels of $wheels into $site"
elif [ -n "$missing" ]; then
    echo "Installs torch, edgeqlora and its gpu and dev extras from the network into $root/.venv-gpu"
fi
if [ "$dry_run" = 1 ]; then exit 0; fi

if [ -n "$missing" ] && [ "$n_wheels" -gt 0 ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
elif [ -n "$missing" ]; then
    "$python" -m venv "$root/.venv-gpu"
    python="$root/.venv-gpu/bin/python"
    "$python" -m pip install -q torch torchaudio
    "$python" -m pip install -q -e ./jetson -e '.[gpu,dev]'
    # Both packages are called onnxruntime when imported: of two, the one for the GPU must be the one that is there.
    "$python" -m pip uninstall -q -y onnxruntime onnxruntime-gpu
    "$python" -m pip install -q --no-deps onnxruntime-gpu
fi
missing="$(lacks)"
if [ -n "$missing" ]; then
    echo "error: $missing cannot be imported by $python: put their wheels into $wheels (tests/gpu/README.md)" >&2
    exit 2
fi

# NVIDIA's wheels lie where no loader looks: onnxruntime and TensorRT find CUDA's and cuDNN's libraries so.
libraries="$("$python" -c '
import glob, os, sys
found = [f for p in sys.path if p for part in ("nvidia/*/lib", "tensorrt_libs") for f in glob.glob(os.path.join(p, part))]
print(":".join(found))')"
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$out"
start_s=$SECONDS

# Several at a time: most of their time is the start of processes. They measure nothing.
parallel=""
if "$python" -c 'import importlib.util as i, sys; sys.exit(i.find_spec("xdist") is None)'; then parallel="-n 4"; fi
code=0
# Notices of plugins and libraries that only such a machine has are shown, not raised.
# shellcheck disable=SC2086 - two words
timeout --signal=INT $((limit_s / 2)) "$python" -m pytest tests/gpu -m "gpu or tensorrt" $parallel -W default -p no:benchmark \
    -o cache_dir="${TMPDIR:-/tmp}/edgeqlora-gpu-pytest" 2>&1 | tee "$out/tests.txt" || code=1

left_s=$((limit_s - (SECONDS - start_s) - 10))
timeout --signal=INT $((left_s + 10)) "$python" tests/gpu/figures.py --output "$out" --budget-s "$left_s" || code=1
echo "$((SECONDS - start_s)) s of at most $limit_s s"
exit $code
