"""What begins a project of one's own."""
