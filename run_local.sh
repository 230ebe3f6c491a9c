#!/usr/bin/env bash
# From a night of alerts to classes on this machine: the generated sample, or your own archives, folders, .avro files.
#   ./run_local.sh                 sample night, sample catalogue and demonstration model
#   ./run_local.sh FILE...         your own input, with the catalogue named by CATALOG_DIR (else the sample's)
# Variables: RUN (folder of the results, default runs/sample or runs/local), ALERTS (size of the sample, default 2000),
# CATALOG_DIR (catalogue folder made by 'alertbeam catalog build'), MODEL_DIR (model folder; without one your own input
# is not classified), PYTHON (interpreter for the environment).
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")"

case "${1:-}" in
    -h | --help)
        sed -n '2,7s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac

source scripts/environment.sh
make_environment
alertbeam=.venv/bin/alertbeam
sample=runs/data

if [ ! -d "$sample/allwise" ] || { [ $# -eq 0 ] && [ ! -f "$sample/ztf_public_20260101.tar.gz" ]; }; then
    echo "Generating a sample night and a sample catalogue in $sample ..." >&2
    "$alertbeam" sample --output "$sample" --alerts "${ALERTS:-2000}"
    "$alertbeam" catalog build allwise "$sample/allwise_sample.csv" --version sample --output "$sample/allwise"
fi

if [ ! -d runs/sample ] && [ ! -d runs/local ]; then
    echo "The first run compiles its kernels: it takes about two minutes more than later ones." >&2
fi
status=0
model="${MODEL_DIR:-}"
inputs=()
if [ $# -eq 0 ]; then
    model="${model:-classifier/demo_model}"
    inputs=("$sample"/ztf_public_*.tar.gz)
    run="${RUN:-runs/sample}"
    # The sample holds a few broken packets on purpose.
    "$alertbeam" xmatch "${inputs[@]}" --catalog "$sample/allwise" --output "$run" --max-dead-letters 100
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
    "$alertbeam" xmatch "${inputs[@]}" --catalog "$catalog" --output "$run" || status=$?
    [ "$status" -le 1 ] || exit "$status"
    [ -z "$model" ] || [ -d "$model" ] || model="$here/$model"
fi

if [ -n "$model" ]; then
    # Packets that cannot be read were told of above.
    "$alertbeam" features "${inputs[@]}" --crossmatches "$run/crossmatches.parquet" \
        --output "$run/features.parquet" --max-dead-letters 1000000
    "$alertbeam" classify "$run/features.parquet" --model "$model" --output "$run/probabilities.parquet"
fi

cat <<EOF

Look at them:
  .venv/bin/python -c "import pandas; print(pandas.read_parquet('$run/crossmatches.parquet').head(10))"
  .venv/bin/python -c "import fastavro, glob; print(next((a['xmatches'] for f in glob.glob('$run/alerts/*.avro') for a in fastavro.reader(open(f, 'rb')) if a['xmatches']), 'no match'))"
  .venv/bin/alertbeam sql $run "SELECT oid, oid_catalog, dist FROM xmatch ORDER BY dist LIMIT 10"
EOF
if [ -n "$model" ]; then
    some="$(.venv/bin/python -c "import pandas; print(next(iter(pandas.read_parquet('$run/features.parquet')['oid']), 'OID'))")"
    cat <<EOF
  .venv/bin/python -c "import pandas; print(pandas.read_parquet('$run/probabilities.parquet')[['oid', 'class', 'probability']].head(10))"
  .venv/bin/alertbeam show $some $run --output light_curve.png
EOF
fi
exit "$status"
