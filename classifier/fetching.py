"""Download of a published model's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from classifier.importing import FEATURES_FILE, STEMS
from classifier.model import ModelError

PUBLISHED: Final = "https://assets.alerce.online/pipeline/hierarchical_rf_{version}/"
MAX_FILE_BYTES: Final = 2 << 30
_CHUNK_BYTES: Final = 1 << 20
_RETRIED: Final = (429, 500, 502, 503, 504)


def address_of(model: str) -> str:
    """Address of a model's folder, from an address or the version of one that ALeRCE has published."""
    if model.startswith(("http://", "https://")):
        return model.rstrip("/") + "/"
    return PUBLISHED.format(version=model)


def fetch_model(
    address: str,
    folder: str | Path,
    *,
    timeout_s: float = 30.0,
    retries: int = 4,
    backoff_s: float = 0.5,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Download the five files of a published model; each appears under its name when it is complete.

    Parameters
    ----------
    address : str
        Of the folder on the server.
    folder : path
        Where to put the files.
    timeout_s : float
        Longest silence of the server, in seconds.
    retries : int
        How often to ask again, waiting twice as long each time, beginning with `backoff_s` seconds.
    max_file_bytes : int
        A larger file is refused.
    progress : callable, optional
        Told the file's name and the number of bytes that came.

    Raises
    ------
    ModelError
        If a file is not there, too large or cannot be had.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with requests.Session() as session:
        policy = Retry(total=retries, backoff_factor=backoff_s, status_forcelist=_RETRIED, backoff_jitter=backoff_s)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=policy))

        def get(name: str) -> bool:
            for attempt in range(retries + 1):
                try:
                    return _download(session, address, folder / name, timeout_s, max_file_bytes, progress)
                except requests.RequestException as error:
                    # A body that broke off is not retried by the session.
                    if attempt == retries or not isinstance(error, requests.exceptions.ChunkedEncodingError):
                        raise ModelError(f"{address}{name} cannot be had: {error}") from error
            raise AssertionError

        for names in ((FEATURES_FILE,), *STEMS.values()):
            if not any(get(name) for name in names):
                raise ModelError(f"{address} has no {' or '.join(names)}")


def _download(
    session: requests.Session,
    address: str,
    path: Path,
    timeout_s: float,
    max_file_bytes: int,
    progress: Callable[[str, int], None] | None,
) -> bool:
    with session.get(address + path.name, timeout=timeout_s, stream=True) as answer:
        if answer.status_code in (403, 404):
            return False
        answer.raise_for_status()
        partial = path.with_name(f".{path.name}.partial")
        size = 0
        try:
            with open(partial, "wb") as file:
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    size += len(chunk)
                    if size > max_file_bytes:
                        raise ModelError(f"{address}{path.name} has more than {max_file_bytes:,} bytes")
                    file.write(chunk)
                    if progress is not None:
                        progress(path.name, len(chunk))
            announced = answer.headers.get("Content-Length")
            if announced is not None and "Content-Encoding" not in answer.headers and int(announced) != size:
                raise requests.exceptions.ChunkedEncodingError(f"{size} of {announced} bytes came")
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    return True
