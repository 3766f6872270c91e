"""Decides how much to speculate, from the value of drafts and the cost of forward passes."""
