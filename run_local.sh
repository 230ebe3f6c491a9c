#!/usr/bin/env bash
# Crossmatch a night on this machine: the generated sample, or your own archives, folders and .avro files.
#   ./run_local.sh                 sample night and sample catalogue
#   ./run_local.sh FILE...         your own input, with the catalogue named by CATALOG_DIR (else the sample's)
# Variables: RUN (folder of the results, default runs/sample or runs/local), ALERTS (size of the sample, default 2000),
# CATALOG_DIR (catalogue folder made by 'alertbeam catalog build'), PYTHON (interpreter for the environment).
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")"

case "${1:-}" in
    -h | --help)
        sed -n '2,6s/^# \{0,1\}//p' "$0"
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
    echo "The first run compiles its kernels: it takes some ten seconds more than later ones." >&2
fi
status=0
if [ $# -eq 0 ]; then
    run="${RUN:-runs/sample}"
    # The sample holds a few broken packets on purpose.
    "$alertbeam" xmatch "$sample"/ztf_public_*.tar.gz --catalog "$sample/allwise" --output "$run" \
        --max-dead-letters 100
else
    run="${RUN:-runs/local}"
    if [ -z "${CATALOG_DIR:-}" ]; then
        echo "Note: CATALOG_DIR is not set, so your alerts meet the sample catalogue, which holds invented sources." >&2
    fi
    inputs=()
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
fi

cat <<EOF

Look at them:
  .venv/bin/python -c "import pandas; print(pandas.read_parquet('$run/crossmatches.parquet').head(10))"
  .venv/bin/python -c "import fastavro, glob; print(next((a['xmatches'] for f in glob.glob('$run/alerts/*.avro') for a in fastavro.reader(open(f, 'rb')) if a['xmatches']), 'no match'))"
  .venv/bin/alertbeam sql $run "SELECT oid, oid_catalog, dist FROM xmatch ORDER BY dist LIMIT 10"
EOF
exit "$status"
