"""w2sr: strong reasoners from weak teachers."""

__version__ = "0.1.0"
