#!/usr/bin/env bash
# At which sampling steps do loops matter? Samples the ilsd models of the digits (train the study supervision
# first) at constant loop counts, with schedules over the sampling steps, and with halting.
# Rows: analysis/data/schedules.jsonl, which `make results` reads.
#     make schedules
set -euo pipefail

for run in runs/supervision/ilsd/*/; do
    python -m eltlab.evaluate run="${run%/}" 'loops=[1,2,3,4,4to1,1to4,3to2,2to3]'
    for threshold in 0.11 0.14 0.17 0.2; do
        python -m eltlab.evaluate run="${run%/}" loops=4 sampler.halting="$threshold"
    done
done

mkdir -p analysis/data
cat runs/supervision/ilsd/*/rows.jsonl > analysis/data/schedules.jsonl
