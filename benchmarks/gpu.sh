#!/usr/bin/env bash
# What a GPU machine is for: the gpu tests, then the small-english models, results in $OUT.
#   benchmarks/gpu.sh tests            the tests marked gpu
#   benchmarks/gpu.sh bench            experts, packing, training steps, recognition against peers (the GPU should be idle)
#   benchmarks/gpu.sh many RECIPE      a run on all GPUs of the machine under torchrun, DDP then FSDP2
#   benchmarks/gpu.sh train RECIPE...  trains (or goes on with) each recipe, writes back best/ and metrics
# Needs the package importable (PYTHONPATH=src), its dependencies, and the audio the recipes name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}src" PYTHONUNBUFFERED=1
OUT="${OUT:-runs/gpu}"
mkdir -p "$OUT"

case "${1:-tests}" in
  tests)
    python3 -m pytest -q -m gpu -p no:cacheprovider tests 2>&1 | tee "$OUT/gpu-tests.log"
    ;;
  bench)
    python3 benchmarks/experts.py --device cuda --modes train --tokens 39000 4096 512 --out "$OUT/experts-cuda.json" \
      2>&1 | tee "$OUT/experts-cuda.log"
    python3 benchmarks/experts.py --device cuda --modes infer --tokens 39000 4096 400 --out "$OUT/experts-infer-cuda.json" \
      2>&1 | tee "$OUT/experts-infer-cuda.log"
    python3 benchmarks/attention.py --device cuda --utterances 32 128 --out "$OUT/attention-cuda.json" \
      2>&1 | tee "$OUT/attention-cuda.log"
    for many in 1 8; do
      python3 benchmarks/train_step.py --device cuda --family 559m --seconds 1560 --micro-batches $many \
        --out "$OUT/train-step-559m-bf16$([ $many = 1 ] || echo "-x$many")-cuda.json" 2>&1 | tee "$OUT/train-step-$many.log"
    done
    python3 benchmarks/transcribe.py --device cuda --family 559m --recordings 64 --out "$OUT/transcribe-559m-cuda.json" \
      2>&1 | tee "$OUT/transcribe-cuda.log"
    ;;
  many)
    for strategy in ddp fsdp2; do
      torchrun --standalone --nproc-per-node gpu -m omnirouter train "$2" --device cuda --strategy "$strategy" \
        --out "runs/gpu/$strategy" 2>&1 | tee "$OUT/$strategy.log"
      cp "runs/gpu/$strategy/metrics.jsonl" "$OUT/$strategy.metrics.jsonl"
    done
    ;;
  train)
    shift
    for recipe in "$@"; do
      run=$(sed -n 's/^out: *//p' "$recipe") # where the recipe says: a later one may start from it
      name=$(basename "$run")
      resume=()
      [[ -e $run/config.yaml ]] && resume=(--resume)
      python3 -m omnirouter train "$recipe" --device cuda "${resume[@]}" \
        2>&1 | tee "$OUT/$name.log"
      cp "$run/metrics.jsonl" "$OUT/$name.metrics.jsonl"
      # files of at most 15 MB, so that they travel: cat NAME.tar.* | tar x
      tar c -C "$run" best | split -b 15M - "$OUT/$name.tar."
    done
    ;;
  *)
    echo "usage: benchmarks/gpu.sh tests | bench | many RECIPE | train RECIPE..." >&2
    exit 2
    ;;
esac
