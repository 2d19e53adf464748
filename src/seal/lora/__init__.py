"""K LoRA adapters side by side on one frozen model: trained, sampled, asked and scored. Knows nothing of
SEAL, and is usable alone."""
