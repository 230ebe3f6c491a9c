#!/usr/bin/env bash
# Flink on this one machine: a job manager, task managers, the job server and the worker pool, until Ctrl-C or SIGTERM.
#
#   deploy/standalone.sh FOLDER                    (FOLDER holds checkpoints, savepoints and logs; keep it)
#   TASK_MANAGERS=2 SLOTS=2 REST_PORT=8081 JOB_PORT=8099 WORKER_PORT=50000 HEALTH_PORT=50001 deploy/standalone.sh FOLDER
#
# Needs Java 17 and Maven; Flink (230 MB) and the job server (150 MB) are fetched once into ~/.cache/alertbeam. All of it
# listens at 127.0.0.1 alone. What to submit a stream or a backfill with is printed when everything answers. If a part
# ends, all end, with status 1; kill -9 of this program ends all of them too.
set -euo pipefail

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
fi
project="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$project/.venv/bin/python}"
[ -x "$python" ] || python=python3
mkdir -p "$1"
# Workers, which run elsewhere, find the project by this path.
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$project/deploy/standalone.py" "$1" "${TASK_MANAGERS:-1}" "${SLOTS:-2}" \
    "${REST_PORT:-8081}" "${JOB_PORT:-8099}" "${WORKER_PORT:-50000}" "${HEALTH_PORT:-50001}"
