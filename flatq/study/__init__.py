"""Studies: the same measurements over methods and training seeds, and what they say of a claim.

judging.py    a claim's conditions over seeds: paired t, Holm, three verdicts
"""
