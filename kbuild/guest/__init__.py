"""How kernels are tried: QEMU guests, what they said, and the verdict on them.

Nothing here knows how a kernel was built: it takes a :class:`kbuild.core.model.Kernel`.
"""
