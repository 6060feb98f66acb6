#!/usr/bin/env bash
# Three arms of equal compute a pass on the digits: elastic (ILSD), vanilla loop, unique-layer twin.
# `short` trains just enough to see every part work.
set -euo pipefail
common="objective=diffusion data=digits"
case "${1:-}" in
    short) runs=runs/demo-short common="$common budget.images=2560 metrics.samples=100 sampler.steps=8" ;;
    "") runs=runs/demo common="$common budget.images=64000 metrics.samples=500 sampler.steps=32" ;;
    *) echo "usage: demo.sh [short]" >&2; exit 2 ;;
esac

fit() { # name, overrides
    echo "== $1" >&2
    # shellcheck disable=SC2086  # the words of $common are overrides
    python -m eltlab.fit $common runs_dir="$runs" name="$1" "${@:2}"
}

fit elastic supervision=ilsd
fit vanilla supervision=final
fit twin loops=1
python analysis/anytime.py out="$runs/anytime.png" "$runs"
python analysis/arms.py out="$runs/arms.png" "$runs"
