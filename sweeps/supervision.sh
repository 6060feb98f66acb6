#!/usr/bin/env bash
# The supervision study: final, ilsd, deep and random_depth at one split (2 unique layers x 4 loops),
# diffusion on the digits and on Fashion-MNIST, three seeds. Every arm trains on equal images; an arm
# that spends over 3 % more or less FLOPs on them than final trains again, named -flops, on images of equal
# FLOPs. The same command goes on where it stopped. Rows: analysis/data/supervision_*.jsonl.
#     make supervision [JOBS=2] [FASHION=/usr/share/datasets/fashion-mnist]
set -euo pipefail
analysis=$(cd "$(dirname "${BASH_SOURCE[0]}")/../analysis" && pwd)
jobs=${JOBS:-2}
fashion=${FASHION:-null}  # null: downloaded
export OMP_NUM_THREADS=1  # one thread a run: two runs that use all cores slow each other many times

settings() { # data set: what its arms share
    local shared="objective=diffusion batch_size=32 optim.lr=2.0e-3 sampler.steps=32"
    case $1 in
        digits) echo "data=digits $shared budget.images=64000" ;;
        fashion_mnist)
            echo "data=fashion_mnist data.root=$fashion data.patch=7 $shared budget.images=64000" \
                "metrics.reference=10000"
            ;;
    esac
}

equal_flops() { # overrides of an arm: the images that cost what final's budget costs, if other images do
    python - "$@" <<'PY'
import sys
from eltlab import compute
from eltlab.compose import compose

config = compose(sys.argv[1:])
each = compute.train_flops(config)
final = compute.train_flops(compose([*sys.argv[1:], "supervision=final"]))
if abs(each / final - 1) > 0.03:
    print(round(config.budget.images * final / each))
PY
}

arms() { # data set: one line a run
    local common images
    common=$(settings "$1")
    for supervision in final ilsd deep random_depth; do
        images=$(equal_flops $common supervision="$supervision")
        for seed in 0 1 2; do
            echo "name=supervision/$1-$supervision $common supervision=$supervision seed=$seed"
            if [ -n "$images" ]; then
                echo "name=supervision/$1-$supervision-flops $common supervision=$supervision" \
                    "seed=$seed budget.images=$images"
            fi
        done
    done
}

for data in digits fashion_mnist; do
    arms "$data" | xargs -r -P "$jobs" -L 1 python -m eltlab.fit
    mkdir -p analysis/data docs
    rows=analysis/data/supervision_$data.jsonl
    cat runs/supervision/"$data"-*/*/rows.jsonl | grep '"loop_schedule": "constant"' > "$rows"
    python "$analysis"/anytime.py "out=docs/supervision_$data.png" "$rows"
done
