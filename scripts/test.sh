#!/usr/bin/env bash
# Runs the quick tests, or all of them with --all: bash scripts/test.sh [pytest options]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" test
# Two processes: most of the time goes into compilation, which uses one core. Each takes
# whole files, whose tests share what they train and compile.
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
