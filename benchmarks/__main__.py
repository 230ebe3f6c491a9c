"""Command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import (
    archive,
    catalog,
    decode,
    features,
    features_parity,
    flink,
    forest,
    match,
    night,
    scaling,
    serve,
    stream,
    upsert,
)

BENCHMARKS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "decode": decode.run,
    "archive": archive.run,
    "upsert": upsert.run,
    "catalog": catalog.run,
    "match": match.run,
    "serve": serve.run,
    "forest": forest.run,
    "features": features.run,
    "features-parity": features_parity.run,
    "night": night.run,
    "scaling": scaling.run,
    "stream": stream.run,
    "flink": flink.run,
}


def main(argv: list[str] | None = None) -> int:
    """Run benchmarks and print a line for each figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the hot paths on this machine, each beside its peer in the same run.",
        epilog="Run them on an idle machine; the ratio to the peer holds better than the rate.",
    )
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(argv)
    for name in BENCHMARKS if options.name == "all" else [options.name]:
        for line in BENCHMARKS[name]():
            print(json.dumps(line) if options.json else _readable(line), flush=True)
    return 0


def _readable(line: dict[str, Any]) -> str:
    if "summary" in line:
        return str(line["summary"])
    what = "peer" if line.get("peer") else f"{line['ratio']:.2f} x the best peer"
    return f"{line['name']:<24}{line['rate']:>14,.0f} {line['unit']:<14}{what}"


if __name__ == "__main__":
    sys.exit(main())
