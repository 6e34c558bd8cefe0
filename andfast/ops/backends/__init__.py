"""The backends of the operations: the vendor's library, our own compiled convolutions, Triton."""
