"""The engine's kernels: float32 products of few rows and paged attention on a CPU, Triton kernels on CUDA.

``build`` compiles ``cpu.cpp``, ``cpu`` calls it, ``modules`` has the layers that use it. ``spans`` is the
interface of all attention kernels, ``choose`` selects them by device. All kernels are optional: without a
compiler or Triton, plain torch is used, on a CPU with weights packed for oneDNN (``onednn``).
"""
