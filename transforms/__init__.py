"""Beam transforms: each calls plain functions of the rooms below."""
