"""The report of the study: statistics, tables, figures and text."""
