"""Risk control: which policy keeps the loss against the last exit within what was promised (Sec. 3.1.4)."""
