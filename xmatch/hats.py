"""HATS catalogues: Parquet partitioned by HEALPix pixel, with properties and a list of the partitions.

Facts from the HATS note of the IVOA (https://www.ivoa.net/documents/Notes/HATS/) and from catalogues that `hats` 0.11
writes. Pixels are nested; the pixel of order k that holds one of order 29 is its number shifted by 2 (29 - k) bits.
"""

import csv
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from xmatch.download import fetch
from xmatch.layout import CatalogError

HEALPIX_COLUMN = "_healpix_29"
HEALPIX_ORDER = 29
PROPERTIES = ("hats.properties", "properties")
IDENTIFIER_PROPERTY = "alertbeam_col_identifier"
_COLLECTION = "collection.properties"
_PARTITION_COLUMNS = ("Norder", "Dir", "Npix", "_hipscat_index", HEALPIX_COLUMN)


@dataclass(frozen=True)
class Pixel:
    """A HEALPix pixel in nested numbering."""

    order: int
    number: int

    @property
    def path(self) -> str:
        """Path of the pixel's partition within a HATS catalogue."""
        return f"{self._folder}/Npix={self.number}.parquet"

    @property
    def begin(self) -> int:
        """First pixel of order 29 within this one."""
        return self.number << 2 * (HEALPIX_ORDER - self.order)

    @property
    def end(self) -> int:
        """First pixel of order 29 beyond this one."""
        return (self.number + 1) << 2 * (HEALPIX_ORDER - self.order)

    @property
    def _folder(self) -> str:
        return f"dataset/Norder={self.order}/Dir={self.number // 10_000 * 10_000}"

    def file_or_folder(self, suffix: str) -> str:
        """Path of the partition where its name ends with `suffix`; `/` stands for a folder of files."""
        return f"{self._folder}/Npix={self.number}{suffix}"


@dataclass(frozen=True)
class HatsListing:
    """What a HATS catalogue consists of.

    Attributes
    ----------
    files : tuple of str
        Paths or addresses of its partitions' files, in the order of the list of partitions.
    schema : pyarrow.Schema or None
        Columns, where the catalogue says.
    ra, dec, identifier : str or None
        Columns that its properties name.
    state : str
        Text that changes when the catalogue does.
    """

    files: tuple[str, ...]
    schema: pa.Schema | None
    ra: str | None
    dec: str | None
    identifier: str | None
    state: str


class _Root(Protocol):
    """Where a HATS catalogue lies."""

    name: str

    def get(self, path: str) -> Path | None:
        """A small file, None if there is none."""

    def files(self, paths: Iterable[str]) -> list[str]:
        """Full names of files; a path that ends with `/` stands for all Parquet files of the folder."""

    def below(self, path: str) -> "_Root":
        """Another root, relative to this one."""


class _LocalRoot:
    def __init__(self, folder: Path):
        self.name = str(folder)
        self._folder = folder

    def get(self, path: str) -> Path | None:
        file = self._folder / path
        return file if file.is_file() else None

    def files(self, paths: Iterable[str]) -> list[str]:
        found: list[str] = []
        for path in paths:
            place = self._folder / path
            found += map(str, sorted(place.glob("*.parquet")) if path.endswith("/") else [place])
        return found

    def below(self, path: str) -> "_LocalRoot":
        return _LocalRoot(self._folder / path)


class _RemoteRoot:
    def __init__(self, url: str, folder: Path):
        self.name = url.rstrip("/")
        self._folder = folder

    def get(self, path: str) -> Path | None:
        file = self._folder / path.replace("/", "_")
        return file if fetch(f"{self.name}/{quote(path, safe='/=')}", file) else None

    def files(self, paths: Iterable[str]) -> list[str]:
        paths = list(paths)
        if any(path.endswith("/") for path in paths):
            raise CatalogError(
                f"{self.name} keeps folders of files and no dataset/_metadata, which a server cannot list."
            )
        return [f"{self.name}/{quote(path, safe='/=')}" for path in paths]

    def below(self, path: str) -> "_RemoteRoot":
        folder = self._folder / path.strip("/").replace("/", "_")
        folder.mkdir(exist_ok=True)
        return _RemoteRoot(f"{self.name}/{path}", folder)


def is_url(place: str) -> bool:
    """Whether a place is an http or https address."""
    return place.startswith(("http://", "https://"))


def is_hats_folder(path: Path) -> bool:
    """Whether a folder is a HATS catalogue or a collection of them."""
    named = any((path / name).is_file() for name in (*PROPERTIES, _COLLECTION))
    return named or ((path / "dataset").is_dir() and (path / "partition_info.csv").is_file())


def list_hats(place: str | Path) -> HatsListing:
    """List the partitions of a HATS catalogue; of a collection its main catalogue.

    Parameters
    ----------
    place : str or Path
        Folder, or http(s) address of the root.

    Raises
    ------
    CatalogError
        If there is no HATS catalogue, or a file that it lists is missing.
    DownloadError
        If the server cannot be reached.
    """
    if not is_url(str(place)):
        return _list(_LocalRoot(Path(place)))
    with tempfile.TemporaryDirectory(prefix="alertbeam-hats-") as folder:
        return _list(_RemoteRoot(str(place), Path(folder)))


def _list(root: _Root) -> HatsListing:
    if collection := root.get(_COLLECTION):
        return _list(root.below(_read_properties(collection)["hats_primary_table_url"]))
    found = next(filter(None, map(root.get, PROPERTIES)), None)
    properties = _read_properties(found) if found else {}
    info, metadata = root.get("partition_info.csv"), root.get("dataset/_metadata")
    suffix = properties.get("hats_npix_suffix") or ".parquet"
    if metadata and (info is None or suffix == "/"):
        paths = _paths_of_metadata(metadata)
    elif info:
        paths = _paths_of_info(info, suffix)
    else:
        raise CatalogError(
            f"{root.name} is no HATS catalogue: it has neither partition_info.csv nor dataset/_metadata."
        )
    files = root.files(paths)
    missing = next((file for file in files if not is_url(file) and not Path(file).is_file()), None)
    if missing:
        raise CatalogError(f"{missing} is missing, which the HATS catalogue lists; fetch it again.")
    described = metadata or root.get("dataset/_common_metadata")
    return HatsListing(
        files=tuple(files),
        schema=pq.read_schema(described) if described else None,
        ra=properties.get("hats_col_ra"),
        dec=properties.get("hats_col_dec"),
        identifier=properties.get(IDENTIFIER_PROPERTY),
        state=repr((sorted(properties.items()), paths)),
    )


def is_partition_column(name: str) -> bool:
    """Whether a column belongs to the partitioning, not to the catalogue."""
    return name in _PARTITION_COLUMNS


def _read_properties(path: Path) -> dict[str, str]:
    """Keys and values of a Java properties file, as far as HATS makes use of the format."""
    properties: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith(("#", "!")):
            properties[key.strip()] = value.strip().replace("\\:", ":").replace("\\=", "=")
    return properties


def _paths_of_info(path: Path, suffix: str) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        pixels = [Pixel(int(row["Norder"]), int(row["Npix"])) for row in csv.DictReader(file)]
    return [pixel.file_or_folder(suffix) for pixel in pixels]


def _paths_of_metadata(path: Path) -> list[str]:
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return list(dict.fromkeys(f"dataset/{unquote(group.column(0).file_path)}" for group in groups))
