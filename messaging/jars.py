"""Java programs from Maven: what they need on this machine, and their jars in a cache."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from storage.files import locked

CACHE: Final = Path("~/.cache/alertbeam")
OLDEST_JAVA: Final = 17
# For a small heap on few cores: two thirds of the processor time of a start, and no more for the work.
SMALL_JAVA: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
# Of programs that log by slf4j-simple.
LOG_SETTINGS: Final = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)

_NAMESPACE: Final = "{http://maven.apache.org/POM/4.0.0}"
_JAVA_TIMEOUT_S: Final = 60
_MAVEN_TIMEOUT_S: Final = 1800


class JarsError(RuntimeError):
    """Jars cannot be had; the message says why."""


def missing_programs(pom: Path, cache: Path = CACHE) -> str | None:
    """Say in one sentence what this machine lacks to run what a POM names; None if nothing.

    Parameters
    ----------
    pom : Path
    cache : Path
        Folder of :func:`jars_of`. With the jars in it, Maven is not needed.
    """
    java = shutil.which("java")
    if java is None:
        return f"there is no 'java' on the PATH: install Java {OLDEST_JAVA} or newer (Debian: openjdk-17-jre-headless)"
    version = _java_version(java)
    if version is not None and version < OLDEST_JAVA:
        return f"{java} is Java {version}: install Java {OLDEST_JAVA} or newer (Debian: openjdk-17-jre-headless)"
    if shutil.which("mvn") is None and not jars_folder(pom, cache).is_dir():
        return "there is no 'mvn' on the PATH to fetch the jars once: install Apache Maven (Debian: maven)"
    return None


def _java_version(java: str) -> int | None:
    """Major version; None if the program does not tell it in the usual way."""
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=_JAVA_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', told.stderr + told.stdout)
    return int(found.group(1)) if found else None


def jars_folder(pom: Path, cache: Path = CACHE) -> Path:
    """Folder that the jars of a POM have in the cache: another content of the POM has another one."""
    text = pom.read_bytes()
    root = ElementTree.fromstring(text)
    name, version = (root.findtext(f"{_NAMESPACE}{tag}", "") for tag in ("artifactId", "version"))
    return cache.expanduser() / f"{name}-{version}-{hashlib.sha256(text).hexdigest()[:8]}"


def jars_of(pom: Path, cache: Path = CACHE) -> Path:
    """Give the folder with the jars that a POM names and all that they need; Maven fetches them once.

    The folder appears when it is complete. Of several processes one fetches, and the others wait for it.

    Raises
    ------
    JarsError
        If Maven is absent or fails; the message holds the end of what it said.
    """
    folder = jars_folder(pom, cache)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
            try:
                _copy_dependencies(pom, partial)
                partial.chmod(0o755)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _copy_dependencies(pom: Path, folder: Path) -> None:
    command = ["mvn", "--quiet", "--batch-mode", "--file", str(pom), "dependency:copy-dependencies"]
    try:
        told = subprocess.run(
            [*command, f"-DoutputDirectory={folder}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_MAVEN_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise JarsError("the jars are not in the cache, and there is no 'mvn' on the PATH to fetch them") from error
    except subprocess.TimeoutExpired as error:
        raise JarsError(f"Maven did not fetch the jars of {pom} within {_MAVEN_TIMEOUT_S} s") from error
    if told.returncode or not any(folder.glob("*.jar")):
        raise JarsError(f"Maven could not fetch the jars of {pom} (status {told.returncode}): {told.stdout[-2000:]}")
