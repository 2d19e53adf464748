"""The dashboard: run folders as live pages, and a page to teach a model on. Reads only files; needs the extra
``ui``."""
