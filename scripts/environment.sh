# Sourced by run_local.sh and run_tests.sh: makes the virtual environment .venv once, and again when the
# requirements change. Progress goes to standard error.
# Usage: source scripts/environment.sh [EXTRA]     e.g. "test"

make_environment() {
    local extra="${1:-}" python="${PYTHON:-python3}" stamp mark
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        echo "alertbeam needs Python 3.11 to 3.13; '$python' is not one. Name another: PYTHON=/path/to/python3.11 $0" >&2
        return 1
    fi
    stamp="$(cat setup.py pyproject.toml constraints.txt <("$python" -VV) <(pwd) | sha256sum | cut -d' ' -f1)"
    mark=".venv/.made${extra:+-$extra}"
    if [ "$(cat "$mark" 2>/dev/null)" != "$stamp" ]; then
        echo "Making the virtual environment .venv (about two minutes, once) ..." >&2
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt --editable ".${extra:+[$extra]}" >&2
        echo "$stamp" > "$mark"
    fi
}
