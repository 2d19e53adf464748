"""Models: the only place that imports torch. They know no world: text and records in, text and records out."""
