"""The kernels: a function `kernel(a, unit, scratch)` each, compiled to object code and kept on disk by `objects`.

a: address of the int64 arguments of the instruction, laid out as the kernel's table of fields says
unit: which part of the work to do, 0 to units - 1; units are independent of one another, in any order, on any thread
scratch: address of memory that belongs to the thread, aligned to 64 bytes

Only compiling imports these modules: a process that finds the object code on disk never needs Numba.
"""
