"""token-broker: mints short-lived session tokens for browser components.

The package is a set of small rooms; README.md ("The house") draws which room may import which.
"""

__version__ = "0.1.0"
