"""Wait until a stream reads its topics, or has done all that they hold, by what it tells Prometheus.

Usage: python wait_for_stream.py reading|drained URL PID. Fails when the stream's process is gone.
"""

import os
import sys
import time
import urllib.error
import urllib.request
from collections import Counter

# The stream looks at the ends of its topics once in a while only.
SECONDS_AT_REST = 5.0
SECONDS_BETWEEN_LOOKS = 0.5


def numbers_of(text: str) -> Counter[str]:
    """Sum of each metric over its labels, by name; what has no sample is absent."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]
    return found


def is_at_rest(numbers: Counter[str]) -> bool:
    """Say whether all messages are read and committed."""
    received, committed = (numbers[f"alertbeam_alerts_{what}_total"] for what in ("received", "committed"))
    return "alertbeam_lag_messages" in numbers and not numbers["alertbeam_lag_messages"] and received == committed


def main(wanted: str, url: str, pid: int) -> int:
    """Wait."""
    at_rest_since: float | None = None
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return 1
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                numbers = numbers_of(answer.read().decode())
        except (urllib.error.URLError, OSError):
            numbers = Counter()
        if wanted == "reading" and "alertbeam_lag_messages" in numbers:
            return 0
        if wanted == "drained":
            now = time.monotonic()
            at_rest_since = (at_rest_since or now) if is_at_rest(numbers) else None
            if at_rest_since is not None and now - at_rest_since >= SECONDS_AT_REST:
                return 0
        time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except KeyboardInterrupt:
        sys.exit(130)
