"""The report of the study: statistics, tables, figures and text.

`render` writes it. `tables` and `figures` show what `numbers` and `statistics` compute
from the rows of `evidence.runs`, so that no result is ever typed.
"""
