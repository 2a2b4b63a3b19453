#!/usr/bin/env bash
# All that a bare machine with a GPU needs, in one folder: prepare.sh OUT [CIFAR-10 [PACKAGE ...]]
# CIFAR-10 is the folder of its files, or - for none. The PACKAGEs, such as diffusers, are what the
# machine lacks beside torch: their wheels come along. There: OUT/run.sh RESULTS.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
data=${2:--}
[ "$data" = - ] || data=$(cd "$data" && pwd)
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
rm -rf "$out/wheels"
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$out/wheels" .
if [ $# -gt 0 ]; then
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$out/wheels" "$@"
fi
tar -c --exclude=__pycache__ --exclude=benchmarks/results benchmarks tests pyproject.toml |
  tar -x -C "$out"
[ "$data" = - ] || "$python" -m benchmarks.gpu.cifar10 "$data" "$out/cifar10"
cat >"$out/run.sh" <<'RUN'
#!/usr/bin/env bash
# Installs the wheels beside this file and runs the parts that are not done: run.sh RESULTS [OPTIONS]
set -euo pipefail
results=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")"
python=${PYTHON:-python3}
[ -d site ] || "$python" -m pip install --quiet --no-index --no-deps --target site wheels/*.whl
[ ! -d cifar10 ] || set -- --data cifar10 "$@"
PYTHONPATH="$PWD/site:$PWD" exec "$python" -m benchmarks.gpu "$results" --work work "$@"
RUN
chmod +x "$out/run.sh"
du -sh "$out"
