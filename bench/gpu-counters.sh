#!/usr/bin/env bash
# What do the hardware counters say of the kernels? `bash bench/gpu-counters.sh FOLDER`; see docs/kernels.md.
# One call each of prototypes, symmetric and resident under Nsight Compute; counters.csv has a line per launch.
if [ $# != 1 ] || ! command -v ncu >/dev/null; then
  echo "gpu-counters.sh: expected a folder for what it finds, and ncu on the PATH" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) && cd "$(dirname "$0")/.." || exit 2
timeout -k 5 150 ncu --set full --csv --page raw --clock-control none --log-file "$out/counters.csv" \
  --kernel-name 'regex:^(gather|norms|finish|apply|unit|rows|symmetric|sum|resident)_kernel$' python3 -c '
import torch
from bench import problems, tiles

for method, B, C, side, values in (
    ("prototypes", 16, 256, 128, "rand"), ("tiled", 1, 256, 128, "randn"), ("resident", 1, 1024, 14, "randn"),
):
    problem = problems.Problem(B, 20, C, side, side, min(32, side), min(32, side), values=values)
    tiles.launch(method, problem, *problem.draw(torch.device("cuda"), 0))
torch.cuda.synchronize()
'
