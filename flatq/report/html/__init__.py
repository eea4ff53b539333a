"""The page report.html: one file that holds all it shows and loads nothing.

`page` gathers and `templates/` lays out; `verdicts`, `numbers`, `details` and `settings` are its sections,
`intervals`, `scatter` and `axis` place plots, `images` makes pictures. Renders only: every number is the
report's.
"""
