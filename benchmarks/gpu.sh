#!/usr/bin/env bash
# All that is to be measured on a machine with a GPU and no internet:
#
#   bash benchmarks/gpu.sh [OUT_FOLDER] [small]
#
# The speed table beside PyTorch, the share of the roofline, what lower precision costs in
# training, and the tests of what is computed otherwise on accelerators. Needs jax with
# CUDA, torch, torchdiffeq and pytest; PYTHON names the interpreter. What a part lacks is
# said and the others go on. Each part writes into OUT_FOLDER, by default
# benchmarks/results/gpu-NAME-OF-THE-CARD; half an hour, or with `small` some minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-}"
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs memory too

card="$("$python" -c 'import jax; print(jax.devices()[0].device_kind)')" || {
    echo "jax does not start: see above." >&2
    exit 2
}
name="$(tr -cs 'A-Za-z0-9' '-' <<<"$card" | sed 's/-*$//')"
out="${1:-benchmarks/results/gpu-$name}"
mkdir -p "$out"
echo "$card; results in $out"
nvidia-smi >"$out/nvidia-smi.txt" 2>/dev/null || rm -f "$out/nvidia-smi.txt"

if [ "${2:-}" = small ]; then
    roofline=(--images 8 --size 512 --rounds 2 --preset ortho)
    speed=(--batch 4 --channels 8 --side 5 --rounds 1 --part groups)
    precision=(--epochs 1 --seeds 1)
else
    roofline=(--images 128 256 1024)
    speed=(--part groups)
    precision=()
fi

failed=()
part() { # what it is called, and its command
    local what="$1" begin=$SECONDS
    shift
    echo "== $what"
    if "$@" >"$out/$what.log" 2>&1; then
        tail -n 12 "$out/$what.log"
    else
        failed+=("$what")
        tail -n 5 "$out/$what.log"
        echo "$what failed: $out/$what.log"
    fi
    echo "== $what took $((SECONDS - begin)) s"
}

part roofline "$python" benchmarks/roofline.py "${roofline[@]}" --out "$out/roofline"
part speed "$python" benchmarks/speed.py "${speed[@]}" --out "$out/speed"
part precision "$python" benchmarks/training_precision.py "${precision[@]}" --out "$out/precision"
# The tests ask for CPU unless they are told otherwise.
part tests env JAX_PLATFORMS="$("$python" -c 'import jax; b = jax.default_backend(); print(b if b == "cpu" else "cuda,cpu")')" \
    JAX_DISABLE_MOST_OPTIMIZATIONS=0 "$python" -m pytest -n 0 -p no:cacheprovider \
    tests/test_linear.py tests/test_low_precision.py tests/test_data.py -k "not tfds"

if [ ${#failed[@]} -gt 0 ]; then
    echo "Failed: ${failed[*]}"
    exit 1
fi
echo "All parts are in $out."
