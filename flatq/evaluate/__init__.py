"""Features, Frechet distance, KID, the paired drift with its interval, precision and recall, and the gate.

Numpy only at import time. Import from the modules; nothing is re-exported here. Sampling, drawing and
reading reports live elsewhere.

    extractor.py  what an extractor offers, and opening one by name
    features.py   ONNX feature networks
    inception.py  the network of the standard FID, through torch-fidelity
    moments.py    mean, covariance, reference statistics in memory
    reference.py  files of reference statistics, flatq's own and others'
    cache.py      the cache folder
    measure.py    the reference's features and statistics, by way of the cache
    frechet.py    the distance, its influence values and its bias
    drift.py      the paired drift and its interval
    restate.py    a drift at another confidence, or with a relative tolerance
    contrast.py   any weighted sum of several models' FIDs; when there is an interval, and how wide
    difference.py the difference of two drifts: of two evaluations, or over training seeds
    bootstrap.py  the interval by resampling, as a slow check of the closed form
    kid.py        KID, its paired drift, the KID from the float samples
    prc.py        precision and recall
    compare.py    one model against its float model
    growing.py    a model's samples and features, which may grow
    samples.py    the cache of samples and features
    ladder.py     export, quantization and kernel error
    gate.py       the verdict of one tolerance
    judge.py      the verdict of all tolerances
    looks.py      planned looks at a growing sample
    plan.py       from a pilot to images, wall time and the drift that they resolve
"""

from __future__ import annotations

from flatq.callable_package import make_callable

make_callable(__name__)
