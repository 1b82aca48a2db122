"""Runs on disk."""

from zeroloss.runs.folder import check_free, create, gather, gather_studies, read, write_results

__all__ = ["check_free", "create", "gather", "gather_studies", "read", "write_results"]
