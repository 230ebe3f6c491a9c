#!/usr/bin/env bash
# Flink on this one machine: a job manager, task managers, the job server and the worker pool, until Ctrl-C or SIGTERM.
#
#   deploy/standalone.sh FOLDER                    (FOLDER holds checkpoints, savepoints and logs; keep it)
#   TASK_MANAGERS=2 SLOTS=2 JOB_PORT=8099 WORKER_PORT=50000 deploy/standalone.sh FOLDER
#
# Needs Java 17 and Maven; Flink (230 MB) and the job server (150 MB) are fetched once into ~/.cache/alertbeam. All of it
# listens at 127.0.0.1 alone. What to submit a stream or a backfill with is printed when everything answers.
set -euo pipefail

if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
fi
folder="$1" project="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$project/.venv/bin/python}"
[ -x "$python" ] || python=python3
pool_pid='' flink_pid=''

stop() {
    trap - EXIT INT TERM HUP
    # The workers first: a task manager that goes away takes their connection with it, which they would complain about.
    for pid in $pool_pid $flink_pid; do
        kill -TERM "$pid" 2>/dev/null || continue
        wait "$pid" || true
    done
}
trap stop EXIT
trap 'exit 130' INT TERM HUP

mkdir -p "$folder"
cd "$project"
"$python" -m pipelines.cli worker-pool --port="${WORKER_PORT:-50000}" &
pool_pid=$!
"$python" - "$folder" "${TASK_MANAGERS:-1}" "${SLOTS:-2}" "${JOB_PORT:-8099}" "${WORKER_PORT:-50000}" <<'PYTHON' &
import signal
import sys
from pathlib import Path

from pipelines.flink_cluster import FlinkSettings, start_cluster, start_job_server

folder, managers, slots, job_port, worker_port = Path(sys.argv[1]), *map(int, sys.argv[2:])
ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
# What is started here inherits no blocked signals: they are blocked when all of it runs.
with start_cluster(folder, managers, settings=FlinkSettings(slots=slots)) as cluster:
    with start_job_server(folder / "job_server", flink_master=cluster.master, port=job_port) as server:
        signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        print(
            f"Flink: {cluster.rest_url} (its pages and REST), {managers * slots} slots, checkpoints in {cluster.checkpoints}\n"
            f"submit with: --runner=FlinkRunner --job_endpoint={server.job_endpoint} "
            f"--environment_config=localhost:{worker_port} --parallelism={managers * slots}",
            flush=True,
        )
        signal.sigwait(ending)
PYTHON
flink_pid=$!
# Whichever ends first ends the other.
status=0
wait -n "$pool_pid" "$flink_pid" || status=$?
echo "standalone.sh: a part ended with status $status; ending the others" >&2
exit "$((status == 0 ? 1 : status))"
