#!/usr/bin/env bash
# All checks and tests: linters, types, arrows of import, then pytest. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source scripts/environment.sh
make_environment test

python=.venv/bin/python
"$python" -m ruff check .
"$python" -m ruff format --check --quiet .
"$python" -m mypy
.venv/bin/lint-imports --no-cache > .venv/import-linter.log || { cat .venv/import-linter.log; exit 1; }
bash -n run_local.sh scripts/*.sh
# Else each process that the tests start would compile all modules of ours, and each of pytest all kernels.
unset PYTHONDONTWRITEBYTECODE
"$python" tests/compile_kernels.py
# Three processes on two cores: the tests wait for servers, workers and kills. The fixtures of a file stay together.
# Where Java and Maven are, the tests that need them must have run.
exec "$python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder --require-components "$@"
