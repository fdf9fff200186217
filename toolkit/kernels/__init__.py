"""Optional fast paths; each equals the plain PyTorch version beside it."""
