"""Prompts that fits learn from and calibrate on."""
