#!/usr/bin/env bash
# What action.yml runs: evaluate where asked for, judge the report, leave the outputs. Every input comes by the
# environment and is passed on as one argument, never as shell text. It runs anywhere, without GitHub too.
set -euo pipefail

report=${FLATQ_REPORT:-flatq-eval}
junit=${FLATQ_JUNIT:-flatq-junit.xml}

case ${FLATQ_INSTALL-} in
    "") ;;
    action) python -m pip install --quiet "${FLATQ_ACTION:?}[cpu]" ;;
    *) python -m pip install --quiet "$FLATQ_INSTALL" ;;
esac

if [[ -n ${FLATQ_EVAL_ARGS-} ]]; then
    read -r -d '' -a arguments <<<"$FLATQ_EVAL_ARGS" || true
    # A gate among the arguments (--until-decided) may fail or stay open; what counts is judged below. Its page
    # would stand in the summary twice.
    code=0
    GITHUB_STEP_SUMMARY='' flatq eval "${arguments[@]}" -o "$report" || code=$?
    case $code in
        0 | 1 | 4) ;;
        *) exit "$code" ;;
    esac
fi

gate=(flatq gate "$report" --json --junit "$junit" --on-inconclusive "${FLATQ_ON_INCONCLUSIVE:-error}")
[[ -z ${FLATQ_PREVIOUS-} ]] || gate+=(--baseline "$FLATQ_PREVIOUS")
[[ -z ${FLATQ_MAX_DRIFT-} ]] || gate+=(--max-drift "$FLATQ_MAX_DRIFT")
[[ -z ${FLATQ_MAX_DRIFT_REL-} ]] || gate+=(--max-drift-rel "$FLATQ_MAX_DRIFT_REL")
[[ -z ${FLATQ_CONFIDENCE-} ]] || gate+=(--confidence "$FLATQ_CONFIDENCE")
[[ -z ${FLATQ_MIN_SAMPLES-} ]] || gate+=(--min-samples "$FLATQ_MIN_SAMPLES")

code=0
result=$("${gate[@]}") || code=$?
if [[ -z $result ]]; then # no verdict: bad input or a bug, which must not look like a failed gate
    exit "$code"
fi
outcome=$(python -c 'import json, sys; print(json.load(sys.stdin)["outcome"])' <<<"$result")
printf '%s\n' "$result"
{
    echo "outcome=$outcome"
    echo "exit-code=$code"
    echo "report=$report"
    echo "junit=$junit"
} >>"${GITHUB_OUTPUT:-/dev/stderr}"
exit "$code"
