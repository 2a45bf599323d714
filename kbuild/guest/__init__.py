"""Run kernels in QEMU guests, read their output, and judge them.

This room does not know how a kernel was built; it takes a :class:`kbuild.core.model.Kernel`.
"""
