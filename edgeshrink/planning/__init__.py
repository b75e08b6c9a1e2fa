"""What it would take to make a model fit, before any training: prices, search, certificates."""

from edgeshrink.planning.plan import Candidate, Plan, Trainable, after, plan
from edgeshrink.planning.price import Price, price

__all__ = ["Candidate", "Plan", "Price", "Trainable", "after", "plan", "price"]
