"""The operator on GPUs: what its Triton and its CUDA C++ kernels share."""
