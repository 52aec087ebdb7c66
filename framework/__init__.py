"""Lethe's machinery: losses, gradients per objective, ZeRO, evaluation. It names no paper."""
