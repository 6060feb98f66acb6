#!/usr/bin/env bash
# Does FID fall with more training? A small diffusion model of CIFAR-10 as JPEG (any folder or zip of the
# ten classes) at two budgets, with two sample seeds each. Rows: analysis/data/cifar.jsonl.
#     make cifar CIFAR=folder
set -euo pipefail
: "${CIFAR:?the folder that holds train/ and test/}"
settings=(data=images "data.root=$CIFAR" data.size=32 data.flip=true objective=diffusion batch_size=32
    optim.lr=2.0e-3 sampler.steps=25 metrics.extractor=inception metrics.reference=2000 metrics.statistics=reference evaluate_loops=[4])
rows=()

for images in 6400 64000; do
    run=$(python -m eltlab.fit name="cifar/$images" budget.images="$images" "${settings[@]}" | tail -1)
    python -m eltlab.evaluate run="${run#run: }" seed=1
    rows+=("${run#run: }/rows.jsonl")
done

mkdir -p analysis/data
cat "${rows[@]}" > analysis/data/cifar.jsonl
