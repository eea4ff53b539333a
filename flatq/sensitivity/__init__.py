"""How much each layer's quantization harms the prediction and the final image, and what a plan will cost.

`measure` runs the network with one layer quantized at a time, `result` holds the numbers and forecasts plans,
`tables` renders them.
"""

from __future__ import annotations

from flatq.callable_package import make_callable

make_callable(__name__)
