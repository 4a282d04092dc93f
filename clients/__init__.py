"""The on-device pipeline: personalise, calibrate, prune, infer. It needs no server, no Flower and no Ray.

Start reading at `personalisation/personalise.py`.
"""
