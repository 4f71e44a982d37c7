"""Model folders: tensors read and mapped to a stack, in bfloat16 or NVFP4, and written as NVFP4."""
