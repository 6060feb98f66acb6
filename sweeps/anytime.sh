#!/usr/bin/env bash
# The any-time study: is every loop count of one model good? Elastic (ILSD), vanilla loop and
# unique-layer twin, three seeds, masked and diffusion, on the digits: 18 runs, about 45 minutes on
# two cores. The same command goes on where it stopped. Rows: analysis/data/anytime_*.jsonl;
# figures: docs/anytime_*.png.
#     make anytime [JOBS=2]
set -euo pipefail
analysis=$(cd "$(dirname "${BASH_SOURCE[0]}")/../analysis" && pwd)
jobs=${JOBS:-2}
export OMP_NUM_THREADS=1  # one thread a run: two runs that use all cores slow each other many times

arm() { # name, overrides: one line a seed and objective
    for objective in masked diffusion; do
        for seed in 0 1 2; do
            echo "name=anytime/$objective-$1 objective=$objective seed=$seed ${*:2}"
        done
    done
}

{
    arm vanilla supervision=final
    arm elastic supervision=ilsd
    arm twin loops=1
} | xargs -r -P "$jobs" -L 1 python -m eltlab.fit

mkdir -p analysis/data docs
for objective in masked diffusion; do
    rows=analysis/data/anytime_$objective.jsonl
    cat runs/anytime/"$objective"-*/*/rows.jsonl > "$rows"
    python "$analysis"/anytime.py "out=docs/anytime_$objective.png" "$rows"
done
