#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [pytest options]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" test
# Two processes: most of the time goes into compilation, which uses one core.
exec .venv/bin/python -m pytest -n 2 "$@"
