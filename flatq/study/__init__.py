"""Studies: the same measurements over methods and training seeds, and verdicts on claims.

config.py       StudyConfig: runs, quantizers, measurements, claims
expressions.py  contrasts as text, such as log(lpf(flat, raw) / lpf(plain, raw))
measure.py      the measurements of one model
run.py          a cell from training to its result
results.py      what a cell found, as JSON
estimate.py     time and disk of cells
values.py       from cells to a number for each quantity and seed
judging.py      a claim's conditions over seeds: paired t, Holm, three verdicts
findings.py     claims, controls, questions and the pilot's choices
"""
