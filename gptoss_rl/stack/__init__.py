"""The patch stack over the installed OpenRLHF: read, apply, prove, report."""
