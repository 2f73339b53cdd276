"""The published code's modules against recorded outputs: what it computes around its networks, and the check."""
