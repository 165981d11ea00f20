#!/usr/bin/env bash
# Builds the documentation site, notebooks executed, into build/site; any warning is an
# error. usage: bash scripts/docs.sh [mkdocs options]
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh" docs
export NO_MKDOCS_2_WARNING=1
exec .venv/bin/python -m mkdocs build --site-dir build/site "$@"
