# Sourced by run_local.sh: the sample night as a live stream. A broker, a player and the stream run at the same time;
# Ctrl-C, or the end of the night, ends all of them.

# Address of the broker, and processes that run in the background.
kafka=
broker_pid= player_pid= stream_pid= begun=

# Start a process in a group of its own: Ctrl-C reaches this script alone, which ends the others in order.
begin() {
    set -m
    "$@" &
    begun=$!
    set +m
}

stop_all() {
    # The player first, so that the stream ends with what was sent; the broker last, so that offsets can be committed.
    local pid
    trap 'kill -TERM $player_pid $stream_pid 2>/dev/null || true' INT TERM HUP
    for pid in $player_pid $stream_pid $broker_pid; do
        kill -TERM "$pid" 2>/dev/null || continue
        finished "$pid" || true
    done
    broker_pid= player_pid= stream_pid=
}

# Wait for a process, also where signals interrupt the waiting, and give its status.
finished() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    wait "$1"
}

start_kafka() {
    local log="$1/broker.out"
    mkdir -p "$1"
    : > "$log"
    begin "$alertbeam" broker --data "$1" --port 0 --topics "$2" --partitions 2 > "$log"
    broker_pid=$begun
    until kafka="$(sed -n 's/^Kafka answers at \([^;]*\);.*/\1/p' "$log")" && [ -n "$kafka" ]; do
        # What it lacks or hurts it has said itself.
        kill -0 "$broker_pid" 2>/dev/null || { finished "$broker_pid"; return; }
        sleep 0.2
    done
}

stream_sample() {
    local run="${RUN:-runs/stream}" topic=ztf_20260101_programid1 port="${METRICS_PORT:-9464}" rate="${RATE:-50}" status=0
    local metrics="http://127.0.0.1:$port/metrics"
    mkdir -p "$run"
    trap stop_all EXIT
    trap 'echo "Stopping ..." >&2; exit 130' INT TERM HUP

    echo "Starting a Kafka broker (the first time, Maven fetches 46 MB) ..." >&2
    start_kafka "$run/kafka" "$topic"
    cat <<EOF
Kafka answers at $kafka. While the stream runs, in another terminal:
  .venv/bin/alertbeam sql $run "SELECT count(*) FROM detection"
  .venv/bin/alertbeam sql $run "SELECT oid, class_name, probability FROM probability WHERE classifier_name = 'lc_classifier' AND ranking = 1 LIMIT 5"
  curl $metrics            counts, lag and latency, as Prometheus reads them
Ctrl-C ends it; started again, it goes on. The same night again leaves the same rows.
EOF
    begin "$alertbeam" stream --step all --server "$kafka" --topics "$topic" --group run_local \
        --catalog "$sample/allwise" --model "${MODEL_DIR:-classifier/demo_model}" \
        --output "$run" --metrics-port "$port"
    stream_pid=$begun
    if .venv/bin/python scripts/wait_for_stream.py reading "$metrics" "$stream_pid"; then
        begin "$alertbeam" play "$sample"/ztf_public_*.tar.gz \
            --server "$kafka" --topic "$topic" --key objectId --rate "$rate" --quiet
        player_pid=$begun
        finished "$player_pid" || status=$?
        player_pid=
        if .venv/bin/python scripts/wait_for_stream.py drained "$metrics" "$stream_pid"; then
            kill -TERM "$stream_pid"
        fi
    fi
    finished "$stream_pid" || status=$?
    stream_pid=
    [ "$status" -eq 0 ] || exit "$status"
    cat <<EOF

Look at it:
  .venv/bin/alertbeam sql $run "SELECT classifier_name, class_name, count(*) FROM probability WHERE ranking = 1 GROUP BY 1, 2 ORDER BY 1, 3 DESC"
  $run/dead_letters/      what could not be processed (the sample holds a few broken packets on purpose)
EOF
}
