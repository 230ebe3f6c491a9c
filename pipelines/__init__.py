"""Graphs, options and the command line."""

import logging

__version__ = "0.1.0"

# Beam says at each import that it lacks a Google client, to the root logger. Nobody here uses it.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
