"""From a checkpoint to a target-neutral artifact, and from the artifact to a graph for one target.

Both ways go through torchao's PT2E (`prepare_pt2e`, `convert_pt2e`). Running and exporting live elsewhere.
"""

from __future__ import annotations

from flatq.callable_package import make_callable

make_callable(__name__)
