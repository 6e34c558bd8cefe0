"""The kernels of the convolutional operations, a class for each backend: the vendor's library, our own, Triton."""
