"""Pages that a person looks at."""

from plait.report.page import write_report

__all__ = ["write_report"]
