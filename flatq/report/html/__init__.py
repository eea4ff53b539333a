"""The page report.html: one file that holds all it shows and loads nothing.

`page` gathers and `flatq/report/templates/` lays out; `headline`, `numbers`, `images` and `latency` are its
parts, `plots` draws. Renders only: every number is the report's.
"""
