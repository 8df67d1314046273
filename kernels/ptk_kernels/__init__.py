"""ptk_kernels: the hot loops; arrays in, arrays out."""
