# Sourced by the other scripts: a virtual environment with the package in it.
# usage: source scripts/_venv.sh EXTRA
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
    base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "jnode needs Python 3.11 or newer; name one with PYTHON=..." >&2
        exit 2
    }
    "$base" -m venv .venv
fi
# Installed once, and again whenever the dependencies change.
stamp=".venv/.jnode-$1"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "Installing jnode[$1] into .venv ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    touch "$stamp"
fi
