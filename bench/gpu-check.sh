#!/usr/bin/env bash
# Are the kernels right on the GPU at hand? `bash bench/gpu-check.sh FOLDER`; see docs/kernels.md.
# Runs their tests, into kernels.xml, then some of them under compute-sanitizer, into sanitizer.txt.
# Exit code 1: a test failed or was not reached, or the sanitizer found something; 2: it cannot run here.
if [ $# != 1 ] || ! python3 -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "gpu-check.sh: expected a folder for what it finds, and a GPU that PyTorch sees" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) && cd "$(dirname "$0")/.." || exit 2
has() { python3 -c "import $1" 2>/dev/null; }
pytest=(python3 -m pytest -q --tb short --disable-warnings --device cuda -o addopts= -p no:cacheprovider)
wrong=0

more=(--junitxml "$out/kernels.xml") # interrupted, as when the time is up, pytest writes it as well
if has xdist; then more+=(-n "$(nproc)" --maxprocesses 12); fi
if has pytest_timeout; then more+=(--timeout 120 --timeout-method thread); fi # ends a process that a kernel holds up
# The most important files come first.
timeout --foreground -s INT -k 30 330 "${pytest[@]}" "${more[@]}" \
  tests/kernels/test_{shipped,invariants,prototypes,tiled,resident,fusion,prepare,moments,offsets}.py || wrong=1

sanitize() { # a tool's name and a test's
  local said
  # Without PyTorch's pool of memory every tensor is an allocation of its own, with bounds that can be watched.
  said=$(PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 150 \
    compute-sanitizer --tool "$1" --error-exitcode 9 "${pytest[@]}" "$2" 2>&1)
  printf '%s\n' "== exit code $? of $1 on $2" "$said" >>"$out/sanitizer.txt"
}
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not on the PATH: nothing was watched"
  exit $wrong
fi
watched=$("${pytest[@]}" tests/kernels/test_invariants.py -k test_watched --collect-only | grep ::)
: >"$out/sanitizer.txt"
for tool in memcheck racecheck; do
  for test in $watched; do sanitize "$tool" "$test" & done # side by side: most of their time is the host's
done
wait
grep '^== exit code' "$out/sanitizer.txt" # 0: nothing found, 9: something, 124: not done in time; else it does not work
grep -q '^== exit code 9 ' "$out/sanitizer.txt" && wrong=1
exit $wrong
