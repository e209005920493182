"""How much of a score is the noise of the projections: intervals of scores, and of sums of scores."""
