"""Train image classifiers that withstand several kinds of attack, and measure how well any does."""
