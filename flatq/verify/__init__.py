"""Verification: does a deployment compute what its torch graph does (parity), and which kernels run (audit)?

Nothing here makes model files. The results are plain data (`flatq.verify.results`) and need no torch.
"""

from __future__ import annotations

from flatq.callable_package import make_callable
from flatq.verify.results import Audit, Parity, read_audit, read_parity

__all__ = ["Audit", "Parity", "read_audit", "read_parity"]

make_callable(__name__)
