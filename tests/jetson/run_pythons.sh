#!/usr/bin/env bash
# Run tests/jetson on the Pythons a board has: 3.6 (JetPack 4), 3.8 (5), 3.10 (6), 3.12 (7).
#
#   tests/jetson/run_pythons.sh [VERSION ...]        default: 3.6 3.8 3.10 3.12
#
# Virtual environments are made once, in $EDGEQLORA_PYTHONS (default: .venv-pythons/ in the repository).
# 3.6 runs twice: with numpy 1.13 alone (JetPack 4's), and with onnxruntime 1.10.0, the last that 3.6 can install.
# An interpreter that is not here is reported as SKIPPED. Exit code 1 if a test or an installation failed.
set -u
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cache="${EDGEQLORA_PYTHONS:-$root/.venv-pythons}"
[ $# -gt 0 ] || set -- 3.6 3.8 3.10 3.12
summary=()
names=()

find_version() { # PYTHON -> 3.6
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() { # VERSION -> path of an interpreter that really is of that version
    local candidate
    for candidate in "$(command -v "python$1")" "$HOME"/.pyenv/versions/"$1"*/bin/python; do
        if [ -n "$candidate" ] && [ "$(find_version "$candidate")" = "$1" ]; then
            echo "$candidate"
            return
        fi
    done
}

make_venv() { # PYTHON FOLDER PACKAGE... : does nothing if the folder already holds these packages
    local python="$1" folder="$2"
    shift 2
    [ "$(cat "$folder/packages" 2>/dev/null)" = "$*" ] && return
    rm -rf "$folder"
    "$python" -m venv "$folder" || return 1
    local pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [ "$(find_version "$python")" = 3.6 ]; then
        # The pip that comes with 3.6 does not find onnxruntime's wheels (manylinux_2_17).
        "${pip[@]}" --upgrade 'pip>=19.3,<22' 2>"$folder/pip.log" || return 1
    fi
    "${pip[@]}" "$@" 2>>"$folder/pip.log" && echo "$*" >"$folder/packages"
}

run_tests() { # NAME PYTHON PACKAGE... : the whole run in $cache/NAME.log, its one line of result in $cache/NAME.result
    local name="$1" python="$2" folder="$cache/$1" log="$cache/$1.log"
    shift 2
    if ! make_venv "$python" "$folder" "$@"; then
        cat "$folder/pip.log" >"$log" 2>/dev/null
        echo "FAILED: could not install $*" >"$cache/$name.result"
        return
    fi
    if (cd "$root" && PYTHONPATH=jetson OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
        "$folder/bin/python" -m pytest -q -rs -p no:cacheprovider -c /dev/null --rootdir "$root" tests/jetson) >"$log" 2>&1; then
        echo "passed: $(tail -n 1 "$log" | tr -d =)" >"$cache/$name.result"
    else
        echo "FAILED: $(tail -n 1 "$log" | tr -d =)" >"$cache/$name.result"
    fi
}

start() { # NAME PYTHON PACKAGE... : three run at a time, since many tests sleep
    rm -f "$cache/$1.result"
    names+=("$1")
    while [ "$(jobs -rp | wc -l)" -ge 3 ]; do wait -n; done
    echo "== Python $1: ${*:3}"
    run_tests "$@" &
}

mkdir -p "$cache"
echo '*' >"$cache/.gitignore"
for version in "$@"; do
    python="$(find_python "$version")"
    if [ -z "$python" ]; then
        summary+=("$version  SKIPPED: no python$version on PATH or in ~/.pyenv/versions")
    elif [ "$version" = 3.6 ]; then
        start 3.6-numpy1.13 "$python" numpy==1.13.3 pytest==7.0.1
        start 3.6 "$python" onnxruntime==1.10.0 pytest==7.0.1
    else
        start "$version" "$python" onnxruntime pytest
    fi
done
wait
failed=0
for name in "${names[@]}"; do
    result="$(cat "$cache/$name.result" 2>/dev/null || echo "FAILED: it ended without a result")"
    summary+=("$name  $result")
    if [ "${result%%:*}" != passed ]; then
        failed=1
        cat "$cache/$name.log" 2>/dev/null
    fi
done
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
