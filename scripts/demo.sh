#!/usr/bin/env bash
# Trains, attacks, certifies and reports three models on the embedded digits:
#   bash scripts/demo.sh [folder, by default runs/demo]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" data,report
out="${1:-runs/demo}"
for preset in contractive ortho unconstrained; do
    echo "== $preset: training"
    .venv/bin/python scripts/train.py "$preset" "$out/$preset" --overwrite
    echo "== $preset: attacks and certificate"
    .venv/bin/python scripts/evaluate.py "$out/$preset"
done
.venv/bin/python scripts/report.py "$out"/{contractive,ortho,unconstrained} --out "$out/report.html"
