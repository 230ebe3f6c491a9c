"""Large files over HTTP: streamed to the disk, gone on with where a connection broke."""

import hashlib
import random
import time
from pathlib import Path

import requests

_TIMEOUT_S = (10.0, 60.0)
_ATTEMPTS = 6
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_PIECE_BYTES = 1 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(OSError):
    """A file could not be fetched; the same request may succeed later."""


def fetch(url: str, path: Path, first_wait_s: float = _FIRST_WAIT_S) -> bool:
    """Fetch a file; waits and tries again when the server or the connection fails, from where it broke off.

    Parameters
    ----------
    url : str
    path : Path
        File to write.
    first_wait_s : float
        Wait before the second attempt; it doubles with each, less up to half of it at random.

    Returns
    -------
    bool
        False if the server says that there is no such file (404, 410).

    Raises
    ------
    DownloadError
        If no attempt succeeded, or the server refuses.
    """
    path.unlink(missing_ok=True)
    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(min(_LONGEST_WAIT_S, first_wait_s * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0))
        try:
            status = _attempt(url, path)
        except requests.RequestException as error:
            problem = f"{type(error).__name__}: {error}"[:300]
            continue
        if status in (404, 410):
            return False
        if status in (200, 206):
            return True
        problem = f"HTTP {status}"
        if status == 416:
            path.unlink(missing_ok=True)
        elif status not in _TRANSIENT:
            raise DownloadError(f"{url} cannot be fetched: {problem}.")
    raise DownloadError(f"{url} cannot be fetched, tried {_ATTEMPTS} times: {problem}.")


def sha256_of_text(text: str) -> str:
    """Hexadecimal sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _attempt(url: str, path: Path) -> int:
    """Fetch what `path` still lacks; give the HTTP status."""
    present = path.stat().st_size if path.exists() else 0
    # Encoded bytes would count otherwise than those written.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={present}-"} if present else {})
    with requests.get(url, headers=headers, timeout=_TIMEOUT_S, stream=True) as response:
        if response.status_code not in (200, 206):
            return response.status_code
        goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {present}-"
        )
        if response.status_code == 206 and not goes_on:
            raise requests.ConnectionError("the server sends another part than asked")
        received = 0
        with path.open("ab" if goes_on else "wb") as file:
            for piece in response.iter_content(_PIECE_BYTES):
                file.write(piece)
                received += len(piece)
        expected = response.headers.get("Content-Length")
        if expected is not None and received != int(expected):
            raise requests.ConnectionError(f"{received} bytes of {expected} came")
        return response.status_code
