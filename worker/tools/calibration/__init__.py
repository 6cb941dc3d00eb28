"""What the numbers of a network mean for a node: odds, calibration, a check before a round."""
