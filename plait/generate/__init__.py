"""Interleaved generation: text, images and speech in any order, many requests at once, with a KV cache."""

from plait.generate.engine import Generator, generate
from plait.generate.request import Request, Result, check_request

__all__ = ["Generator", "Request", "Result", "check_request", "generate"]
