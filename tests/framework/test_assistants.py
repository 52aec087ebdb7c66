"""Assistants: trained alike but for the forget rows, or given; deterministic; gone when read."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import tiny
import torch

from framework import ConfigError, DataError, assistants
