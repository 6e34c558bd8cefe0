"""The operations' Triton kernels, for CUDA devices.

`operators` alone can be imported without triton. Whether the kernels are compiled, or run in Triton's interpreter on
tensors of any device, is decided by TRITON_INTERPRET when the other modules are imported; triton itself must not have
been imported before that variable was set.
"""
