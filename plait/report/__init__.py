"""Pages that a person looks at."""

from plait.report.run_page import write_report

__all__ = ["write_report"]
