"""Configs, files, tables, errors and versions."""
