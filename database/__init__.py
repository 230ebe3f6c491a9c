"""PostgreSQL: ALeRCE's tables, idempotent bulk upserts and an embedded server.

`database.client.Database` writes, `database.embedded.start_embedded` gives a server, `database.settings.database_url`
reads settings.
"""
