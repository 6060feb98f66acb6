#!/usr/bin/env bash
# Three arms with equal compute per pass on the digits: elastic (ILSD), vanilla loop, unique-layer twin.
# `short` trains only enough to see that every part works.
set -euo pipefail
runs=runs/demo
overrides=(experiment=demo)
case "${1:-}" in
    short)
        runs=runs/demo-short
        overrides+=(budget.images=2560 metrics.samples=100 sampler.steps=8)
        ;;
    "") ;;
    *)
        echo "usage: demo.sh [short]" >&2
        exit 2
        ;;
esac

fit() { # name, overrides
    echo "== $1" >&2
    python -m eltlab.fit "${overrides[@]}" runs_dir="$runs" name="$1" "${@:2}"
}

fit elastic supervision=ilsd
fit vanilla supervision=final
fit twin loops=1
python -m eltlab.analysis.anytime out="$runs/anytime.png" "$runs"
python -m eltlab.analysis.samples out="$runs/samples.png" "$runs"
python -m eltlab.report runs_dir="$runs" out="$runs/report.html"
