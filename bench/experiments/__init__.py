"""Experiments whose figures decided something; each ADR names the one that it rests on."""
