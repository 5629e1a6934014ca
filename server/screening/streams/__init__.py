"""Screening of streamed responses: events, buffers that hold text back, formats."""
