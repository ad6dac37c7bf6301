"""Checkpoints and models that this repository makes: tiny and random gpt-oss, MXFP4 and BF16."""
