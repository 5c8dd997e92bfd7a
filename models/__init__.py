"""Tensors in, tensors out: the networks of a world. No files (but `checkpoint`), no threads, no clock of their own."""
