"""Entry points, `python -m launch.<name>`: wiring only, no mathematics."""
