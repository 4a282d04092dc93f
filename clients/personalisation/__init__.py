"""One user's personalisation round (Sec. 3.1 and 3.3). Start reading at `personalise.py`."""
