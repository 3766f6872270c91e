"""Our own kernels: on a CPU few-row products and paged attention in float32, on CUDA attention in Triton.

``build`` compiles ``cpu.cpp``, ``cpu`` calls it, ``modules`` puts it in the place of a model's layers.
``spans`` is the contract of everything that attends, ``choose`` picks by device. All is optional: without a
compiler or Triton plain torch does the work.
"""
