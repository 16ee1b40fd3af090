#!/usr/bin/env bash
# The experiments on the demo corpus with the demo weights, offline: what `make demo` runs.
# Every line is a command you can run yourself. Run it again and it goes on where it stopped.
set -euo pipefail
BIN=${BIN:-.venv/bin} OUT=${OUT:-demo-out} DEMO=${DEMO:-data_manifests/demo}
STORE=$OUT/store PAIRS=$OUT/pairs STEPS=$OUT/steps
export OMP_NUM_THREADS=1 # two steps at a time, a core each: what is this small gains nothing from a second thread
# glibc gives large blocks back at once and asks for them again at the next step: half of what unfreezing takes.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
mkdir -p "$OUT/runs" "$STEPS"
trap 'trap "" TERM; kill 0; echo "interrupted: the same command goes on" >&2; exit 130' INT TERM

step() { # NAME COMMAND …: unless it is done; what it says is shown at its end, what it took is kept
  local name=$1 TIMEFORMAT='%R %U %S'
  shift
  [ ! -f "$STEPS/$name.took" ] || return 0
  if ! { time "$@" >"$STEPS/$name.out" 2>"$STEPS/$name.log"; } 2>"$STEPS/$name.time"; then
    echo "error: $name failed; all that it said is in $STEPS/$name.log:" >&2
    tail -n 5 "$STEPS/$name.log" >&2
    return 1
  fi
  printf '\n== %s\n' "$name"
  cat "$STEPS/$name.out"
  mv "$STEPS/$name.time" "$STEPS/$name.took"
}
extract() { # NAME FEATURE MANIFEST STORE [more …]
  step "$1" "$BIN/featstore" extract "$3" --store "$4" --feature "$2" --weights demo --workers 1 "${@:5}"
}
fit() { # KIND RUN STORE [more …]
  step "$2" "$BIN/trainers" fit "$1" --store "$3" --out "$OUT/runs/$2" --resume "${@:4}"
}
both() { # LANE LANE: side by side; fails where one does
  "$1" & local one=$!
  "$2" & local other=$!
  wait $one && wait $other
}

codec() { # 1: what Mimi hears, and what needs nothing else
  extract mimi-utterances mimi "$DEMO/manifest.jsonl" "$STORE"
  extract mimi-codes mimi-codes "$DEMO/manifest.jsonl" "$STORE"
  extract mimi-sessions mimi "$OUT/sessions/manifest.jsonl" "$STORE"
}
voices() { # TitaNet, a window every 0.24 s: it costs most
  extract titanet-sessions titanet "$OUT/sessions/manifest.jsonl" "$STORE" --set hop_frames=3
  extract titanet-utterances titanet "$DEMO/manifest.jsonl" "$STORE" --set hop_frames=3
  step pairs "$BIN/featstore" simulate "$DEMO/manifest.jsonl" --recipe "$DEMO/pairs.toml" --out "$OUT/pairs-audio"
  extract mimi-pairs mimi "$OUT/pairs-audio/manifest.jsonl" "$PAIRS"
}
small=(--preset small --config "$DEMO/fit.toml")
alone() { # 2: who, linearly; who spoke when, by the codec alone
  fit probe probe "$STORE" --set trials="$DEMO/trials.txt"
  fit probe probe-reference "$STORE" --set trials="$DEMO/trials.txt" --protocol reference
  fit adapter adapter "$STORE" "${small[@]}"
  fit adapter adapter-reference "$STORE" "${small[@]}" --protocol reference
  fit adapter poc "$PAIRS" "${small[@]}" --set experiment=poc
  fit unfreeze unfreeze "$STORE" --preset small --config "$DEMO/unfreeze.toml"
}
together() { # with the voices
  fit fusion fusion "$STORE" "${small[@]}" --set epochs=21 # half of its examples hear what came before
  fit fusion fusion-reference "$STORE" "${small[@]}" --protocol reference
  fit cascade cascade "$STORE" --config "$DEMO/cascade.toml"
  fit proxy proxy "$STORE" --config "$DEMO/proxy.toml" --set trials="$DEMO/trials.txt"
  fit probe probe-titanet "$STORE" --set trials="$DEMO/trials.txt" --set feature=titanet
  fit unfreeze unfreeze-reference "$STORE" --preset small --config "$DEMO/unfreeze.toml" --protocol reference
}

step sessions "$BIN/featstore" simulate "$DEMO/manifest.jsonl" --recipe demo --out "$OUT/sessions"
both codec voices
both alone together
rm -f "$STEPS"/report.took "$STEPS"/doctor.took # of whatever runs there are now
step doctor "$BIN/evaluation" doctor --store "$STORE" "$OUT"/runs/adapter "$OUT"/runs/fusion
step report "$BIN/evaluation" report "$OUT"/runs/* --out "$OUT/report"

printf '\n== what it took: seconds of a core, the dearest first\n'
for took in "$STEPS"/*.took; do
  awk -v name="$(basename "$took" .took)" '{ printf "%6.0f  %s\n", $2 + $3, name }' "$took"
done | sort -rn
