"""What the backends for GPUs share: checks, plans and pieces of a call (launch.py)."""
