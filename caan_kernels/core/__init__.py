"""What every operator shares; no file here knows the formula of one."""
