"""The run as a whole: launch and its gates, controller, rollouts, rewards, closing table."""
