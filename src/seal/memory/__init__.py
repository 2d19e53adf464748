"""What was learnt, and stays: one edit after another, and what is done against forgetting."""
