"""Reports: what report.json holds, the page made of it, the grids beside it, and gating it again.

Import from the modules; nothing is re-exported here. Nothing here measures: the numbers come from
`flatq.evaluate`, and the verdict on a stored report from its gate.
"""
