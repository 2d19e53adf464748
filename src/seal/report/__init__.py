"""Reads run folders, and shows them: tables, figures, pages. No torch."""
