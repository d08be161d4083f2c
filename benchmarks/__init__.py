"""Figures of datasette-vec-gemini, measured: `make bench`, with `DATA=directory` for the retrieval sets too."""
