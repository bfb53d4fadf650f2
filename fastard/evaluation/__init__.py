"""Measuring what a network withstands: suites of attacks, verdicts, reports."""
