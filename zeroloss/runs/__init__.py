"""Runs on disk."""

from zeroloss.runs.folder import create, gather, read, write_results

__all__ = ["create", "gather", "read", "write_results"]
