"""Benchmarks of unlearning in vision-language models, read into one form.

Each reader takes the files as they were released; none of them is part of this package.
"""
