"""Features, Frechet distance, KID, the paired drift with its interval, and the gate.

Numpy only at import time. Import from the modules; nothing is re-exported here. Sampling, drawing and
reading reports live elsewhere.
"""
