"""Library behind the patched OpenRLHF: everything the patches call and the scripts share."""
