"""Features, Frechet distance, KID, the paired drift with its interval, precision and recall, and the gate.

Numpy only at import time. Import from the modules; nothing is re-exported here. Sampling, drawing and
reading reports live elsewhere.

    extractor.py         a feature network that is ready to run
    features.py          opening one: ONNX files
    inception.py         the network of the standard FID, through torch-fidelity
    moments.py           mean, covariance, reference statistics in memory
    statistics_file.py   files of reference statistics, flatq's own and others'
    cache.py             arrays kept by content in the cache folder
    reference.py         the reference, measured once
    samples.py           a model's samples, on disk as uint8, with their features; they may grow
    frechet.py           the distance, its influence values and its bias
    drift.py             the paired drift and its interval, any weighted sum of FIDs
    kid.py               the paired KID drift, the KID from the float samples
    precision_recall.py  precision and recall
    compare.py           one model against its float model
    difference.py        the difference of two evaluations' drifts
    gate.py              the verdict
    looks.py             planned looks at a growing sample
    sample_size.py       from a pilot to images, wall time and the drift that they resolve
    ladder.py            export, quantization and kernel error
"""

from __future__ import annotations

from flatq.callable_package import make_callable

make_callable(__name__)
