#!/usr/bin/env bash
# From a night of alerts to classes on this machine: the generated sample, or your own archives, folders, .avro files.
#   ./run_local.sh                 sample night, sample catalogue and demonstration model
#   ./run_local.sh FILE...         your own input, with the catalogue named by CATALOG_DIR (else the sample's)
#   ./run_local.sh stream          the sample night as a live stream: a Kafka broker, a player, and the stream that follows
# Variables: RUN (folder of the results, default runs/sample, runs/local or runs/stream), ALERTS (size of the sample,
# default 2000), CATALOG_DIR (catalogue folder made by 'alertbeam catalog build'), MODEL_DIR (model folder; without one
# your own input is not classified), PYTHON (interpreter for the environment); for the stream RATE (alerts per second,
# default 50, 0 for as fast as possible) and METRICS_PORT (default 9464).
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")"

case "${1:-}" in
    -h | --help)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    stream)
        [ $# -eq 1 ] || { echo "$0 stream plays the sample: it takes no files" >&2; exit 2; }
        ;;
esac

source scripts/environment.sh
make_environment
alertbeam=.venv/bin/alertbeam
sample=runs/data
stream=
[ "${1:-}" != stream ] || { stream=yes; shift; }

if [ ! -d "$sample/allwise" ] || { [ $# -eq 0 ] && [ ! -f "$sample/ztf_public_20260101.tar.gz" ]; }; then
    echo "Generating a sample night and a sample catalogue in $sample ..." >&2
    "$alertbeam" sample --output "$sample" --alerts "${ALERTS:-2000}"
    "$alertbeam" catalog build allwise "$sample/allwise_sample.csv" --version sample --output "$sample/allwise"
fi

if [ ! -d runs/sample ] && [ ! -d runs/local ] && [ ! -d runs/stream ]; then
    echo "The first run compiles its kernels: it takes about two minutes more than later ones." >&2
fi
if [ -n "$stream" ]; then
    source scripts/stream.sh
    stream_sample
    exit
fi
status=0
model="${MODEL_DIR:-}"
inputs=()
options=()
if [ $# -eq 0 ]; then
    model="${model:-classifier/demo_model}"
    inputs=("$sample"/ztf_public_*.tar.gz)
    run="${RUN:-runs/sample}"
    catalog="$sample/allwise"
    # The sample holds a few broken packets on purpose, and few objects.
    options+=(--max-dead-letters 100 --buckets 16)
else
    run="${RUN:-runs/local}"
    if [ -z "${CATALOG_DIR:-}" ]; then
        echo "Note: CATALOG_DIR is not set, so your alerts meet the sample catalogue, which holds invented sources." >&2
    fi
    for input in "$@"; do
        case "$input" in
            /* | http://* | https://*) inputs+=("$input") ;;
            *) inputs+=("$here/$input") ;;
        esac
    done
    catalog="${CATALOG_DIR:-$sample/allwise}"
    [ -d "$catalog" ] || catalog="$here/$catalog"
    [ -z "$model" ] || [ -d "$model" ] || model="$here/$model"
fi
[ -z "$model" ] || options+=(--model "$model")

"$alertbeam" backfill "${inputs[@]}" --catalog "$catalog" --output "$run" ${options[@]+"${options[@]}"} || status=$?
[ "$status" -le 1 ] || exit "$status"
"$alertbeam" report "$run" --quiet

some="$(.venv/bin/python -c "from run_folder import open_run; print(next(iter(open_run('$run').features(columns=[]).index), 'OID'))")"
cat <<EOF

Look at it:
  $run/report.html     in a browser: maps, light curves, classes, dead letters
  .venv/bin/alertbeam show $some $run --output light_curve.png
  .venv/bin/alertbeam sql $run "SELECT oid, oid_catalog, dist FROM xmatch ORDER BY dist LIMIT 10"
  .venv/bin/python -c "from run_folder import open_run; print(open_run('$run').light_curve('$some').detections)"
  .venv/bin/python -c "import pandas; print(pandas.read_parquet('$run/crossmatches.parquet').head(10))"
EOF
exit "$status"
