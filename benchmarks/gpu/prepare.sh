#!/usr/bin/env bash
# Fill benchmarks/gpu/carry/ with what a GPU machine without network lacks: wheels, the default model in two halves,
# and the problems of the learning experiment. Run it in the virtual environment of `make test`:
#
#     benchmarks/gpu/prepare.sh [PYTHON_VERSION_THERE]      # 3.12 unless given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=.venv/bin/python
there=${1:-3.12}
carry=benchmarks/gpu/carry
rm -rf "$carry"
mkdir -p "$carry/wheels" "$carry/first_half" "$carry/second_half" "$carry/problems"

# Not on the machine: everything else is expected there (README.md). pip takes the versions from constraints.txt.
wheels="peft jsonargparse docstring-parser typeshed-client gymnasium farama-notifications datasets dill multiprocess
    math-verify latex2sympy2-extended antlr4-python3-runtime gguf trl==1.16.0"
platforms=$(for glibc in 2_28 2_17 2014 2_5 1; do case $glibc in 2_*) echo "--platform manylinux_${glibc}_x86_64" ;;
    *) echo "--platform manylinux${glibc}_x86_64" ;; esac; done)
# shellcheck disable=SC2086
$python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$there" \
    --implementation cp $platforms -c constraints.txt -d "$carry/wheels" $wheels

model=$($python -c 'from lit_rft.models.smollm2 import _gguf_file; print(_gguf_file())')
half=$(( ($(stat -c %s "$model") + 1) / 2 ))
head -c "$half" "$model" >"$carry/first_half/model"
tail -c "+$((half + 1))" "$model" >"$carry/second_half/model"
(cd "$(dirname "$model")" && sha256sum "$(basename "$model")") >"$carry/wheels/model.sha256"

$python benchmarks/gpu/learn.py --write-problems "$carry/problems"

# what travels: the tree that git knows, and in each call the folders named in README.md
tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 stat -c %s 2>/dev/null | awk '{ s += $1 } END { print s }')
size() { du -sb --apparent-size "$@" | awk '{ s += $1 } END { print s }'; }
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }
first=$((tree + $(size "$carry/wheels" "$carry/problems" "$carry/first_half")))
second=$((tree + $(size "$carry/wheels" "$carry/problems" "$carry/second_half")))
echo "working tree $(mib "$tree"), wheels $(mib "$(size "$carry/wheels")"), halves of the model $(mib "$half")"
echo "first call $(mib "$first"), second call $(mib "$second")"
for call in "$first" "$second"; do
    if [ "$call" -gt $((64 * 1048576)) ]; then echo "more than 64 MiB in one call: split further" >&2; exit 1; fi
done
