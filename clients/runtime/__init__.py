"""The device that lives with its user: it answers, explores, keeps samples and personalises (Sec. 3.4)."""
