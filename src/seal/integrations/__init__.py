"""What joins SEAL to other libraries; each is an optional extra."""
