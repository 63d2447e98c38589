#!/usr/bin/env bash
# Are the kernels right on the GPU at hand? `bash bench/gpu-check.sh FOLDER`; see docs/kernels.md.
# Runs their tests, into kernels.xml, then some of them under compute-sanitizer, into memcheck.txt and racecheck.txt.
# Exit code 1: a test failed or was not reached, or the sanitizer found something; 2: it cannot run here.
if [ $# != 1 ] || ! python3 -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "gpu-check.sh: expected a folder for what it finds, and a GPU that PyTorch sees" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) && cd "$(dirname "$0")/.." || exit 2
has() { python3 -c "import $1" 2>/dev/null; }
pytest=(python3 -m pytest -q --tb short --disable-warnings --device cuda -o addopts= -p no:cacheprovider)
wrong=0

# The most important files come first. When the time is up pytest is interrupted, and writes its XML file all the same.
more=(--junitxml "$out/kernels.xml")
if has xdist; then
  more+=(-n "$(nproc)" --maxprocesses 12)
  if has pytest_timeout; then more+=(--timeout 120 --timeout-method thread); fi # ends a process that hangs
fi
timeout --foreground -s INT -k 30 300 "${pytest[@]}" "${more[@]}" \
  tests/kernels/test_{shipped,invariants,prototypes,tiled,resident,fusion,prepare,moments,offsets}.py || wrong=1

command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on the PATH"; exit $wrong; }
# PyTorch asks the driver for what it may not have: such errors of API calls are none of the kernels'.
for tool in "memcheck --report-api-errors no" racecheck; do
  log=$out/${tool%% *}.txt
  rm -f "$log"
  # Without PyTorch's pool of memory every tensor is an allocation of its own, with bounds that can be watched.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 100 \
    compute-sanitizer --tool $tool --destroy-on-device-error kernel --log-file "$log" \
    "${pytest[@]}" -v tests/kernels/test_invariants.py -k test_watched
  said=$(grep -s SUMMARY "$log" || echo "not done in time, or it does not work here")
  echo "${tool%% *}: $said"
  if grep -q '[1-9][0-9]* error' <<<"$said"; then wrong=1; fi
done
exit $wrong
