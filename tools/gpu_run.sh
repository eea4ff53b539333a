#!/usr/bin/env bash
# Everything that flatq has to learn from a GPU, for a quarter of an hour on a machine without a network.
#
#   tools/gpu_run.sh [PART...]     the parts named, else all of them, in this order:
#
#   smoke       CUDA, imports, a few training steps of ADM and SAM, a few samples; nothing else runs if it fails
#   throughput  images per second and fraction of the bf16 peak: ADM and SAM, torch.compile off and on
#   sam         trains SAM for three minutes
#   adm         trains ADM for as many steps
#   adm-twice   goes on from there to as many gradient passes as SAM had
#   sample      images per second and paired RMSE: float, w8a8 and w4a8 on the GPU in torch, float and w8a8 on
#               ONNX Runtime on the CPU
#   tests       the tests that are marked `gpu`
#
# A part that has a result is skipped, so the same call goes on where an earlier one ended. A part that runs out
# of time or fails leaves no result; training goes on from its last saved state. The exit code is 1 if one did.
#
# Environment:
#   GPU_FOLDER    holds cifar10-train.zip, and wheels/ for packages that are missing (tools/gpu_wheels.sh);
#                 results/ is written there: a JSON file for each part, log.txt, runs. Default: gpu
#   OUT           an empty folder to copy results to, as at most 8 files of 16 MiB, 64 MiB together:
#                 results.json, samples.png, and the raw and EMA weights in half precision as far as there is
#                 room; call again for the rest, with an empty folder again. Default: none.
#                 `benchmarks/gpu_files.py join` makes checkpoints of the weights.
#   PYTHON        Default: python3
#   GPU_LIMIT_S   seconds that each part may take, in place of its own limit
#   FLATQ_COMMIT  the commit to name in the results where this is no git checkout
#   REHEARSAL     1 runs every part on the CPU with a tiny network, in seconds
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
folder=${GPU_FOLDER:-gpu}
results=$folder/results
parts=(smoke throughput sam adm adm-twice sample tests)
declare -A limit_s=([smoke]=200 [throughput]=200 [sam]=270 [adm]=180 [adm-twice]=180 [sample]=180 [tests]=120)

for part in "$@"; do
    if [[ -z ${limit_s[$part]-} ]]; then
        echo "there is no part '$part'; expected some of: ${parts[*]}" >&2
        exit 2
    fi
done
[[ $# -eq 0 ]] || parts=("$@")
mkdir -p "$results" || exit 2
results=$(cd "$results" && pwd)

# flatq itself is installed anew at each call, as it may have changed since the last one.
if compgen -G "$folder/wheels/*.whl" >/dev/null; then
    site=$(cd "$folder" && pwd)/site
    export PYTHONPATH=$site
    pip=("$python" -m pip --disable-pip-version-check install -q --no-index --no-deps --no-compile --upgrade)
    if [[ ! -f $site/.complete ]]; then
        "${pip[@]}" --target "$site" "$folder"/wheels/*.whl && touch "$site/.complete" || exit 3
    fi
    "${pip[@]}" --no-build-isolation --target "$site" . || exit 3
fi

export PYTHONUNBUFFERED=1 FLATQ_COMMIT=${FLATQ_COMMIT:-$(git rev-parse HEAD 2>/dev/null)}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$results/compiled} # shared by the parts

failed=0
deliver() {
    [[ -z ${OUT-} ]] || "$python" -P benchmarks/gpu_files.py deliver "$results" "$OUT" || failed=1
}
deliver # first of all: whatever ends this call, what an earlier one made is there
for part in "${parts[@]}"; do
    if [[ -f $results/$part.json ]]; then
        echo "$part: has a result, skipped"
        continue
    fi
    limit=${GPU_LIMIT_S:-${limit_s[$part]}}
    echo "$part: at most $limit s" | tee -a "$results/log.txt"
    # -P: benchmarks/ holds files that are named like packages, such as coverage
    timeout -k 10 "$limit" "$python" benchmarks/gpu.py "$part" "$results" ${REHEARSAL:+--rehearsal} 2>&1 |
        tee -a "$results/log.txt"
    code=${PIPESTATUS[0]}
    if [[ $code -ne 0 ]]; then
        failed=1
        reason="exit code $code"
        [[ $code -ne 124 && $code -ne 137 ]] || reason="stopped after $limit s"
        echo "$part: FAILED, $reason" | tee -a "$results/log.txt"
    fi
    deliver
    [[ $code -eq 0 || $part != smoke ]] || break
done
exit "$failed"
