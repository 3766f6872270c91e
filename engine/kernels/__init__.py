"""Our own CPU kernels: few-row products and paged attention in float32, compiled where they run.

``build`` compiles ``cpu.cpp``, ``cpu`` calls it, ``modules`` puts it in the place of a model's layers. All is
optional: without a compiler, on a GPU and in half precision arithmetic, plain torch does the work.
"""
