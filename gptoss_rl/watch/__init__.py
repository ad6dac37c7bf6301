"""Looking at a run from its files: state, alerts, live view."""
