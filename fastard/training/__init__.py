"""The trainer's parts; `fastard.train` is the way in."""
