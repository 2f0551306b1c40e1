"""An interpreter of PTX for tests: what nvcc and Triton compile for a GPU, run on the CPU with every access checked.

It finds accesses out of bounds or misaligned, reads of what nothing has written or a copy has not brought yet, races, lanes that
hold another number than PTX says they do, and barriers that some threads do not reach. It knows nothing of time, and of rounding
only what PTX promises.
"""

from .machine import run
from .memory import Buffer, GlobalMemory
from .parser import PtxError, parse
from .program import Program

__all__ = ["Buffer", "GlobalMemory", "Program", "PtxError", "parse", "run"]
