"""The folder beside the output in which a catalogue is built: begun, gone on with, moved to its place."""

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xmatch.jobs import Progress, Workers, locked, write_whole
from xmatch.layout import FORMAT_VERSION, CatalogError
from xmatch.sources import Inputs, list_inputs, plan_reading
from xmatch.writer import Build, write_folder

_STATE = "state.json"
_LOCK = "lock"
# Rows that a task holds exist several times at once: as read, cleaned, sorted, written.
_MEMORY_PER_BLOCK = 8
_LARGEST_BLOCK_BYTES = 96 << 20


@dataclass(frozen=True)
class BuildOptions:
    """What a catalogue is built as; see `xmatch.catalog.build_catalog`."""

    name: str
    version: str
    ra: str | None
    dec: str | None
    identifier: str | None
    columns: tuple[str, ...] | None
    with_hats: bool


def build_folder(
    inputs: str | Path | Sequence[str | Path],
    output: Path,
    options: BuildOptions,
    workers: int,
    memory_bytes: int,
    report: Callable[[Progress], None],
    say: Callable[[str], None],
) -> None:
    """Build a catalogue and move it to `output`, where nothing or an old catalogue is.

    An interrupted build with the same inputs and options is gone on with.

    Raises
    ------
    CatalogError
        If the inputs cannot be used, or another process builds the same catalogue.
    OSError
        If a disk, a server or a process gave way; what is done is kept.
    """
    listed = list_inputs(inputs)
    reading = plan_reading(listed, options.name, options.ra, options.dec, options.identifier, options.columns)
    folder = output.with_name(f".{output.name}.building")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / _LOCK):
            block_bytes = min(_LARGEST_BLOCK_BYTES, max(1, memory_bytes // (_MEMORY_PER_BLOCK * workers)))
            begun = _begin(folder, _state_of(listed, options), block_bytes, say)
            build = Build(
                listed,
                reading,
                options.name,
                options.version,
                begun["block_bytes"],
                options.with_hats,
                begun["created"],
            )
            with Workers(workers) as pool:
                _replace(write_folder(folder, build, pool, report), output)
    except BlockingIOError as error:
        raise CatalogError(f"Another process builds {output}; wait for it, or choose another output folder.") from error
    except CatalogError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            text = f"no space left for {folder}; free some, then start the same command again to go on"
            raise OSError(errno.ENOSPC, text) from error
        raise
    shutil.rmtree(folder)


def _begin(folder: Path, state: dict[str, Any], block_bytes: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Empty the folder unless it holds a build in the same state; gives the block size and beginning of the build."""
    file = folder / _STATE
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = None
    # Without its catalogue, the build was finished and moved.
    if old is not None and old["state"] == state and (folder / "catalog").is_dir():
        say(f"going on with the build in {folder}")
        return old
    if old is not None and old["state"] != state:
        say(f"the inputs or options differ from those of the unfinished build in {folder}; starting afresh")
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
    created = datetime.now(UTC).isoformat(timespec="seconds")
    begun = {"state": state, "block_bytes": block_bytes, "created": created}
    write_whole(file, json.dumps(begun))
    return begun


def _state_of(inputs: Inputs, options: BuildOptions) -> dict[str, Any]:
    """All that the result depends on, as it is after reading it from JSON."""
    state = {"format": FORMAT_VERSION, "options": asdict(options), "files": inputs.files}
    return json.loads(json.dumps(state))


def _replace(built: Path, output: Path) -> None:
    """Move a catalogue to its place; the old one is removed last."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    built.rename(output)
    shutil.rmtree(old, ignore_errors=True)
