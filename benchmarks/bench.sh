#!/usr/bin/env bash
# Times tiny and base width at equal depth on the digits: twelve layers as 1, 2, 4 and 12 loops.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rows=${1:-benchmarks/rows.jsonl}
common=(out="$rows" "loop_counts=[2,4,12]" sampler.steps=4 model.dropout=0.0)
python -m eltlab.bench "${common[@]}" model=elt_tiny model.depth=12 batch_size=64 repeats=30
python -m eltlab.bench "${common[@]}" model=elt_b batch_size=8 "batches=[1,8]" repeats=10
