"""From the variables of ALeRCE's steps to the URL of a database.

The variables are given, never read from the environment here.
"""

from collections.abc import Mapping

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["DatabaseSettingsError", "database_url", "normalise_url", "safe_url"]

_ENGINES = ("postgres", "postgresql", "postgresql+psycopg2")
_DRIVER = "postgresql+psycopg2"
_REQUIRED = ("DB_HOST", "DB_USER", "DB_PASSWORD", "DB_NAME")
_DEFAULT_PORT = "5432"

#: What stands for a password in messages and logs.
HIDDEN_PASSWORD = "***"


class DatabaseSettingsError(ValueError):
    """The settings do not name a database that can be used."""


def database_url(variables: Mapping[str, str]) -> str | None:
    """Give the URL of the database that a set of variables names.

    Parameters
    ----------
    variables
        `DB_ENGINE` or `ENGINE` (default postgresql), `DB_HOST`, `DB_USER`, `DB_PASSWORD`, `DB_PORT` (default 5432) and
        `DB_NAME`; others are not looked at. An empty value counts as absent, but for the password.

    Returns
    -------
    str or None
        URL for SQLAlchemy, or None where no `DB_` variable is set.

    Raises
    ------
    DatabaseSettingsError
        If a part is missing, the engine is not PostgreSQL or the port is not a number.

    Examples
    --------
    >>> database_url({"DB_HOST": "db", "DB_USER": "me", "DB_PASSWORD": "p@ss/word", "DB_NAME": "ztf"})
    'postgresql+psycopg2://me:p%40ss%2Fword@db:5432/ztf'
    >>> database_url({}) is None
    True
    """
    given = {name: value for name, value in variables.items() if value or name == "DB_PASSWORD"}
    # A bare ENGINE is too common a name to mean by itself that a database is wanted.
    if not any(given.get(name) for name in (*_REQUIRED, "DB_ENGINE", "DB_PORT")):
        return None
    engine = given.get("DB_ENGINE") or given.get("ENGINE") or "postgresql"
    if engine.lower() not in _ENGINES:
        raise DatabaseSettingsError(
            f"DB_ENGINE is {engine!r}, but only PostgreSQL is supported: set DB_ENGINE=postgresql."
        )
    missing = [name for name in _REQUIRED if name not in given]
    if missing:
        raise DatabaseSettingsError(
            f"The database settings are incomplete: set {', '.join(missing)} as well, or none of the DB_ variables."
        )
    port = given.get("DB_PORT", _DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise DatabaseSettingsError(f"DB_PORT is {port!r}: set it to a port number, such as {_DEFAULT_PORT}.")
    # A host that is a path is the folder of the server's socket, which only fits into the URL's query.
    socket = given["DB_HOST"].startswith("/")
    url = URL.create(
        _DRIVER,
        username=given["DB_USER"],
        password=given["DB_PASSWORD"] or None,
        host=None if socket else given["DB_HOST"],
        port=None if socket else int(port),
        database=given["DB_NAME"],
        query={"host": given["DB_HOST"], "port": port} if socket else {},
    )
    return url.render_as_string(hide_password=False)


def normalise_url(url: str) -> str:
    """Give a PostgreSQL URL the driver that alertbeam uses.

    Examples
    --------
    >>> normalise_url("postgres://me@db/ztf")
    'postgresql+psycopg2://me@db/ztf'
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text is not shown: it may hold a password.
        raise DatabaseSettingsError(
            "The database URL cannot be read: write it as postgresql://user:password@host:port/name, "
            "with special characters of the password percent-encoded."
        ) from None
    if parsed.drivername.lower() not in _ENGINES:
        raise DatabaseSettingsError(
            f"The database URL starts with {parsed.drivername!r}, but only PostgreSQL is supported: "
            "start it with postgresql://"
        )
    return parsed.set(drivername=_DRIVER).render_as_string(hide_password=False)


def safe_url(url: str) -> str:
    """Give the URL with its password hidden, fit for messages and logs.

    Examples
    --------
    >>> safe_url("postgresql://me:secret@db/ztf")
    'postgresql://me:***@db/ztf'
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "(a database URL that cannot be read)"
    if "password" in parsed.query:
        parsed = parsed.update_query_dict({"password": HIDDEN_PASSWORD})
    return parsed.render_as_string(hide_password=True)
