#!/usr/bin/env bash
# The five experiments on the demo corpus with the demo weights, offline: what `make demo` runs.
# Every line is a command you can run yourself. Run it again and it goes on where it stopped.
set -euo pipefail
BIN=${BIN:-.venv/bin} OUT=${OUT:-demo-out} DEMO=${DEMO:-data_manifests/demo}
STORE=$OUT/store PAIRS=$OUT/pairs
say() { printf '\n== %s\n' "$*"; }
fit() { # KIND RUN STORE [more …]: fit unless it is done
  local kind=$1 run=$OUT/runs/$2 store=$3
  shift 3
  [ -f "$run/result.json" ] || "$BIN/trainers" fit "$kind" --store "$store" --out "$run" --resume "$@"
}
mkdir -p "$OUT/runs"

say "1/5 features: Mimi and TitaNet of utterances and sessions"
for feature in mimi titanet; do
  for manifest in manifest sessions; do
    "$BIN/featstore" extract "$DEMO/$manifest.jsonl" --store "$STORE" --feature $feature --weights demo
  done
done
"$BIN/featstore" info "$STORE"

say "2/5 the probe: who, linearly"
fit probe probe "$STORE" --set trials="$DEMO/trials.txt"
fit probe probe-titanet "$STORE" --set trials="$DEMO/trials.txt" --set feature=titanet
fit probe probe-reference "$STORE" --set trials="$DEMO/trials.txt" --protocol reference

say "3/5 proof of concept: an adapter on two-speaker mixtures"
"$BIN/featstore" simulate "$DEMO/manifest.jsonl" --recipe "$DEMO/pairs.toml" --out "$OUT/pairs-audio"
"$BIN/featstore" extract "$OUT/pairs-audio/manifest.jsonl" --store "$PAIRS" --feature mimi --weights demo
fit adapter poc "$PAIRS" --config "$DEMO/fit.toml" --set experiment=poc --set crop_s=8

say "4/5 who spoke when: adapter, unfreeze, fusion, each soundly and as published"
for kind in adapter unfreeze fusion; do
  config=$DEMO/fit.toml
  [ $kind = unfreeze ] && config=$DEMO/unfreeze.toml
  # Side by side, a core each: steps this small gain nothing from a second thread.
  OMP_NUM_THREADS=1 fit $kind $kind "$STORE" --config "$config" & sound=$!
  OMP_NUM_THREADS=1 fit $kind $kind-reference "$STORE" --config "$config" --protocol reference || { wait $sound; exit 1; }
  wait $sound
done

say "5/5 the report"
"$BIN/evaluation" doctor --store "$STORE" "$OUT"/runs/adapter "$OUT"/runs/fusion
"$BIN/evaluation" report "$OUT"/runs/* --out "$OUT/report"
