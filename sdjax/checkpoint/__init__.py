"""Weights in and out: safetensors files, their layouts, conversion, download."""
