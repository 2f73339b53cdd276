"""Training of the two stages: losses, the loop that both share, checkpoints that resume to the bit."""
