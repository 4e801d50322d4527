#!/usr/bin/env bash
# What a GPU machine is for: the gpu tests, then the small-english model, benchmarks; results in $OUT.
#   benchmarks/gpu.sh tests                    the tests marked gpu
#   benchmarks/gpu.sh speech FROM              FROM/*.jsonl and their audio as data/small-english, decoded to WAV
#   benchmarks/gpu.sh read                     what the recipe needs that is read aloud, from the texts in runs/
#   benchmarks/gpu.sh train RECIPE [SECONDS]   trains (in that time), writes back the best weights and metrics
#   benchmarks/gpu.sh bench                    experts, training steps, packing, recognition (the GPU should be idle)
#   benchmarks/gpu.sh many RECIPE              a run on all GPUs of the machine under torchrun, DDP then FSDP2
# Needs the package's dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD/src" PYTHONUNBUFFERED=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True # batches differ in shape
OUT="${OUT:-runs/gpu}"
mkdir -p "$OUT"

case "${1:-tests}" in
  tests)
    python3 -m pytest -q -m gpu -p no:cacheprovider "${@:2}" tests/parity/test_cuda*.py 2>&1 | tee "$OUT/gpu-tests.log"
    ;;
  speech)
    mkdir -p data/small-english
    python3 - "$2" data/small-english << 'PYTHON'
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

source, target = map(Path, sys.argv[1:])


def decoded(row):
    name = Path("audio", row["id"] + ".wav")
    samples, rate = soundfile.read(source / row["audio_filepath"], dtype="int16")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target / name, samples, rate)
    return row | {"audio_filepath": str(name)}


for manifest in source.glob("*.jsonl"):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(decoded, rows))
    (target / manifest.name).write_text("".join(json.dumps(row) + "\n" for row in made))
PYTHON
    ;;
  read)
    export OMP_NUM_THREADS=1
    python3 -m omnirouter prepare synthetic runs/single-words.txt runs/single-words --hours 3
    python3 -m omnirouter prepare synthetic runs/everyday.txt runs/everyday --hours 14
    python3 -m omnirouter prepare synthetic data/small-english/text/english.txt runs/reading --hours 30
    ;;
  train)
    run=$(sed -n 's/^out: *//p' "$2") # where the recipe says: a later one may start from it
    name=$(basename "$run")
    if [[ -n ${3:-} ]]; then
      python3 benchmarks/paced.py "$2" --seconds "$3" --device cuda 2>&1 | tee "$OUT/$name.log"
    else
      resume=()
      [[ -e $run/config.yaml ]] && resume=(--resume)
      python3 -m omnirouter train "$2" --device cuda "${resume[@]}" 2>&1 | tee "$OUT/$name.log"
    fi
    cp "$run/metrics.jsonl" "$OUT/$name.metrics.jsonl"
    # half precision, and files of at most 15 MB, so that they travel: cat NAME.tar.* | tar x
    python3 -c "
import sys, torch, safetensors.torch as s
p = sys.argv[1] + '/best/model.safetensors'
s.save_file({k: v.bfloat16() for k, v in s.load_file(p).items()}, p)" "$run"
    tar c -C "$run" best | split -b 15M - "$OUT/$name.tar."
    ;;
  bench)
    experts=(benchmarks/experts.py --device cuda --dtypes bf16 --rounds 15 --modes)
    step=(benchmarks/train_step.py --device cuda --family 559m --seconds 1560 --rounds 5 --micro-batches)
    for task in \
      "${experts[*]} train --tokens 39000 --experts 8 4 2 --out $OUT/experts-cuda.json" \
      "${step[*]} 1 --out $OUT/train-step-559m-bf16-cuda.json" \
      "${step[*]} 8 --no-peer --out $OUT/train-step-559m-bf16-x8-cuda.json" \
      "benchmarks/train_step.py --device cuda --family small --seconds 900 --rounds 7 --out $OUT/train-step-small-bf16-cuda.json" \
      "${experts[*]} infer --tokens 39000 400 --experts 8 --out $OUT/experts-infer-cuda.json" \
      "benchmarks/attention.py --device cuda --utterances 32 128 --dtypes bf16 --rounds 11 --out $OUT/attention-cuda.json" \
      "benchmarks/transcribe.py --device cuda --family 559m --recordings 64 --out $OUT/transcribe-559m-cuda.json"; do
      echo "== $task"
      # shellcheck disable=SC2086
      timeout "${BENCH_SECONDS:-600}" python3 $task 2>&1 | tee -a "$OUT/bench.log" || echo "ended with an error: $task"
    done
    ;;
  many)
    for strategy in ddp fsdp2; do
      torchrun --standalone --nproc-per-node gpu -m omnirouter train "$2" --device cuda --strategy "$strategy" \
        --out "runs/gpu/$strategy" 2>&1 | tee "$OUT/$strategy.log"
      cp "runs/gpu/$strategy/metrics.jsonl" "$OUT/$strategy.metrics.jsonl"
    done
    ;;
  *)
    sed -n '2,8p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
