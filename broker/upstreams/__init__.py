"""How to talk to third parties: one seam that sends, and what is said over it."""
