"""Reports: what a run or versions of the catalog show, as one file for people."""
