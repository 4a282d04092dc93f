"""Writers that need no download: 62 handwritten characters drawn from strokes."""
