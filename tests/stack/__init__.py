"""Tests of the embedded local stack, on real servers."""
