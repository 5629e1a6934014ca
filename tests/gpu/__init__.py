"""One command for a day with a GPU: `make test-gpu`, or `python -m tests.gpu`."""
