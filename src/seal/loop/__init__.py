"""The loop of SEAL: write self-edits, try each in an inner loop, keep what helped, imitate it
(`outer.py`)."""
