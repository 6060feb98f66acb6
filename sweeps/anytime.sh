#!/usr/bin/env bash
# The any-time study: is every loop count of one model good? Elastic (ILSD), vanilla loop and
# unique-layer twin, three seeds, masked and diffusion, on the digits: 18 runs, about 45 minutes on
# two cores. The same command goes on where it stopped. Rows: analysis/data/anytime.jsonl.
#     make anytime [JOBS=2]
set -euo pipefail
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
} | xargs -P "$jobs" -L 1 python -m eltlab.fit

mkdir -p analysis/data
cat runs/anytime/*/*/rows.jsonl > analysis/data/anytime.jsonl
for objective in masked diffusion; do
    python analysis/anytime.py "out=runs/anytime/$objective.png" runs/anytime/$objective-*/
done
