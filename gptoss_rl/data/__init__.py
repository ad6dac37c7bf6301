"""Data for training and evaluation: rules, contamination, and files that can be checked again.

`python -m gptoss_rl.data verify` rechecks every file under data/ against its manifest.
"""
