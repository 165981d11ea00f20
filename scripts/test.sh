#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [pytest options]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" test
exec .venv/bin/python -m pytest "$@"
