"""The JSON of the service: which keys in which order, in CrossWave's present form and in the older upper-case form.

The present form is CrossWave's of April 2026. The upper-case form is the one until August 2025, which ALeRCE's
published client reads.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import orjson

FORMATS = ("present", "upper")
UPPER_MISSING = -9999.0

_ALLWISE_BANDS = tuple(f"w{band}{kind}" for band in range(1, 5) for kind in ("mpro", "sigmpro"))
ALLWISE_KEYS = (*_ALLWISE_BANDS, *(f"{band}_{kind}_2mass" for band in "jhk" for kind in ("m", "msig")))
_ALLWISE_UPPER_KEYS = (*_ALLWISE_BANDS, *(f"{band}_{kind}_2mass" for kind in ("m", "msig") for band in "jhk"))


@dataclass(frozen=True)
class Layout:
    """How rows become JSON: what stands before, between and behind the values.

    Attributes
    ----------
    keys : tuple of str
        Which values, as `xmatch.service_catalogs.ServedCatalog.values` names them.
    pieces : tuple of bytes
        Text around the values, one more than there are keys; the last one ends with a comma.
    missing : float or None
        Number in the place of missing ones; None for null.
    opening, closing : bytes
        Text around the rows of one catalogue.
    """

    keys: tuple[str, ...]
    pieces: tuple[bytes, ...]
    missing: float | None = None
    opening: bytes = b""
    closing: bytes = b""


@dataclass(frozen=True)
class Layouts:
    """The layouts of one catalogue in one form.

    Attributes
    ----------
    cone, cone_metadata : Layout
        Answer of a cone search, without and with metadata.
    bulk, bulk_metadata : Layout
        Element of the answer of a bulk cone search, which says the number of its position.
    metadata : Layout
        Metadata of one identifier.
    """

    cone: Layout
    cone_metadata: Layout
    bulk: Layout
    bulk_metadata: Layout
    metadata: Layout


def present_layouts(name: str, title: str, metadata_keys: Iterable[str]) -> Layouts:
    """CrossWave's present JSON; the metadata of a bulk search, which CrossWave has not, are added to its items.

    Parameters
    ----------
    name, title : str
        The catalogue in answers without and with metadata.
    metadata_keys : iterable of str
    """
    cone = ["id", "ipix", "ra", "dec", "cat", "distance"]
    metadata = ["cntr", *metadata_keys]
    catalog = b'{"catalog":' + orjson.dumps(name) + b',"data":['
    titled = b'{"catalog":' + orjson.dumps(title) + b',"data":['

    def layout(keys: list[str], before: bytes = b"", *, index: bool = False) -> Layout:
        names = {key: key for key in keys}
        end = (b'}],"index":', b"},") if index else (b"},",)
        return _layout(names, name, before=before, end=end)

    return Layouts(
        cone=replace(layout(cone), opening=catalog, closing=b'],"index":0}'),
        cone_metadata=replace(layout(sorted(["id", "distance", *metadata])), opening=titled, closing=b"]}"),
        bulk=layout(cone, catalog, index=True),
        bulk_metadata=layout(cone + metadata, catalog, index=True),
        metadata=layout(["id", *metadata, "ra", "dec"]),
    )


def upper_layouts(name: str, metadata_keys: Iterable[str]) -> Layouts:
    """The JSON that ALeRCE's published client reads: flat, upper-case initials, -9999 where a number is missing.

    The element of a bulk answer has the key `Index` besides.
    """
    keys = list(metadata_keys)
    if set(keys) >= set(_ALLWISE_UPPER_KEYS):
        keys = [*_ALLWISE_UPPER_KEYS, *(key for key in keys if key not in _ALLWISE_UPPER_KEYS)]
    metadata = {key[:1].upper() + key[1:]: key for key in keys}
    cone = {"ID": "id", "Ipix": "ipix", "Ra": "ra", "Dec": "dec", "Cat": "cat"}

    def layout(names: Mapping[str, str], index: bool = False) -> Layout:
        return _layout(names, name, end=(b',"Index":', b"},") if index else (b"},",), missing=UPPER_MISSING)

    return Layouts(
        cone=layout(cone),
        cone_metadata=layout(cone | metadata),
        bulk=layout(cone, index=True),
        bulk_metadata=layout(cone | metadata, index=True),
        metadata=layout({"Source_id": "id"} | metadata),
    )


def _layout(
    names: Mapping[str, str],
    catalog: str,
    *,
    end: tuple[bytes, ...],
    before: bytes = b"",
    missing: float | None = None,
) -> Layout:
    """Layout of objects with the given JSON names and keys of values; `cat` is the same in all rows.

    `end` is what follows the last value; where it has two pieces, the value of the key `index` stands between them.
    """
    keys, pieces, text = [], [], before + b"{"
    for name, key in names.items():
        text += orjson.dumps(name) + b":"
        if key == "cat":
            text += orjson.dumps(catalog) + b","
            continue
        keys.append(key)
        pieces.append(text)
        text = b","
    index = ["index"] if len(end) == 2 else []
    return Layout((*keys, *index), (*pieces, text.removesuffix(b",") + end[0], *end[1:]), missing)
