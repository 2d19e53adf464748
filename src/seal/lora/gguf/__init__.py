"""GGUF, llama.cpp's one-file format: read as an ordinary model folder, and written, whole or as an adapter.

What a file sets and is not known here is refused by its name: a model that is computed otherwise than its makers
meant answers all the same, and nobody notices.
"""
