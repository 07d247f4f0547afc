"""A folder through transformers and through this package, side by side: see configs/compare_torch.py."""
